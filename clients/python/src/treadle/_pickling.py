"""Objects to bytes and back.

Writing: plain pickle names what a module defines, which is small and fast, but means
nothing to a worker when the module is __main__. Such objects, lambdas and closures are
written by value, by cloudpickle or dill, whichever is installed.

Reading: a pickle may run any code. Results come from the user's own workers, which is
why "trust" is the default; "safe" reads built-in values and nothing else.
"""

from __future__ import annotations

import builtins
import collections
import datetime
import decimal
import importlib
import io
import pickle
import sys
import threading
import types
from typing import Any, Callable

from .errors import PicklingError, UnpicklingError

# The newest that every supported Python reads; 5 adds nothing for bytes that travel in one piece.
PROTOCOL = 4

_HINT = "install cloudpickle (pip install 'treadle[cloudpickle]') or dill (pip install 'treadle[dill]') for that"


def dump_function(fn: Callable[..., Any]) -> bytes:
    """Pickle a callable for a worker: by cloudpickle, else dill, else plain pickle."""
    if not callable(fn):
        raise PicklingError(f"an object of type {type(fn).__qualname__!r} is not callable")
    name = getattr(fn, "__qualname__", None) or repr(fn)
    data = _by_value(fn, f"the function {name!r}")
    return data if data is not None else _plain(fn, f"the function {name!r}")


# The names by which cloudpickle and dill make code objects, as opcodes of protocol 4.
_MAKES_CODE = (b"\x8c\x08CodeType", b"\x8c\x0c_create_code")


def python_of(data: bytes) -> str:
    """The Python that a function's pickle is bound to, as in "3.12": this one if it holds bytecode, else ""."""
    if any(mark in data for mark in _MAKES_CODE):
        return f"{sys.version_info[0]}.{sys.version_info[1]}"
    return ""


def dump_args(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """Pickle the arguments of a call."""
    return dump_value((args, kwargs), "the arguments")


def dump_value(value: Any, what: str = "the value") -> bytes:
    """Pickle a value: plainly where that is enough, else by value."""
    try:
        data = pickle.dumps(value, PROTOCOL)
    except KeyboardInterrupt:
        raise
    except BaseException as exc:  # __reduce__ is user code
        found = _by_value(value, what)
        if found is None:
            raise _refused(what, exc, hint=True) from exc
        return found
    if b"__main__" not in data:
        return data
    # Perhaps a class or a function of __main__, perhaps only a text that contains the word.
    found = _by_value(value, what)
    return found if found is not None else _plain(value, what)


def _by_value(value: Any, what: str) -> bytes | None:
    """Pickle with the code that a value needs; None where nothing is installed that can."""
    for package, dump in (("cloudpickle", _cloudpickle), ("dill", _dill)):
        try:
            module = importlib.import_module(package)
        except ImportError:
            continue
        try:
            return dump(module, value)
        except KeyboardInterrupt:
            raise
        except BaseException as exc:  # __reduce__ is user code
            raise _refused(what, exc) from exc
    return None


def _cloudpickle(cloudpickle: Any, value: Any) -> bytes:
    data: bytes = cloudpickle.dumps(value, protocol=PROTOCOL)
    return data


def _dill(dill: Any, value: Any) -> bytes:
    # recurse: the globals that a function names, not all of its module.
    data: bytes = dill.dumps(value, protocol=PROTOCOL, recurse=True)
    return data


def _plain(value: Any, what: str) -> bytes:
    out = io.BytesIO()
    try:
        _PlainPickler(out, PROTOCOL).dump(value)
    except KeyboardInterrupt:
        raise
    except BaseException as exc:
        raise _refused(what, exc, hint=True) from exc
    return out.getvalue()


class _PlainPickler(pickle.Pickler):
    """Refuses what plain pickle would write as a name in __main__."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, (type, types.FunctionType)) and obj.__module__ in ("__main__", "__mp_main__"):
            raise pickle.PicklingError(
                f"{obj.__qualname__!r} is defined in __main__, which workers cannot import; "
                "move it into a module that they can, or send it by value"
            )
        return NotImplemented


def _refused(what: str, exc: BaseException, hint: bool = False) -> PicklingError:
    text = f"{what} cannot be pickled: {_told(exc)}"
    return PicklingError(f"{text}; {_HINT}" if hint else text)


def loads(data: bytes) -> Any:
    """Load a pickle and run whatever code it contains; raises UnpicklingError."""
    try:
        return _loads(data)
    except ModuleNotFoundError as exc:
        package = exc.name.partition(".")[0] if type(exc.name) is str else ""
        raise UnpicklingError(
            f"the value needs the package {package!r}, which this interpreter cannot import ({_told(exc)}); "
            f"pip install {package}, or return a value of another type"
        ) from exc
    except BaseException as exc:  # loading runs code, which may raise SystemExit
        if isinstance(exc, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
            raise  # the user's, who waits for this value
        raise UnpicklingError(f"the value cannot be unpickled here: {_told(exc)}") from exc


def _told(exc: BaseException) -> str:
    """Class and text of an exception, whose __str__ may raise anything."""
    try:
        return f"{type(exc).__name__}: {exc}"
    except BaseException:
        return f"{type.__repr__(type(exc))} (its text cannot be had)"


def _loads(data: bytes) -> Any:
    try:
        return pickle.loads(data)
    except (AttributeError, pickle.UnpicklingError):
        # dill's own reader knows references that plain pickle does not.
        try:
            dill = importlib.import_module("dill")
        except ImportError:
            dill = None
        if dill is None:
            raise
        return dill.loads(data)


def safe_loads(data: bytes) -> Any:
    """Load a pickle of built-in values and refuse every other; raises UnpicklingError.

    It runs no code of the pickle's choice, but does not bound the memory that a value takes.
    """
    try:
        return _SafeUnpickler(io.BytesIO(data)).load()
    except UnpicklingError:
        raise
    except Exception as exc:
        raise UnpicklingError(f"the value cannot be unpickled safely: {type(exc).__name__}: {exc}") from exc


# Flags of CPython's types: made at run time, and closed to changes all the same.
_HEAP_TYPE, _IMMUTABLE_TYPE = 1 << 9, 1 << 8


def _is_fixed(cls: type) -> bool:
    """Whether nobody can set the class's attributes: a pickle may assign to what it names."""
    return not cls.__flags__ & _HEAP_TYPE or bool(cls.__flags__ & _IMMUTABLE_TYPE)


# Their constructors take data and call nothing but each other.
_SAFE: dict[tuple[str, str], Any] = {
    (cls.__module__, cls.__qualname__): cls
    for cls in (
        set,
        frozenset,
        bytearray,
        complex,
        range,
        slice,
        collections.OrderedDict,
        collections.deque,
        datetime.date,
        datetime.time,
        datetime.datetime,
        datetime.timedelta,
        datetime.timezone,
        decimal.Decimal,
        *(cls for cls in vars(builtins).values() if isinstance(cls, type) and issubclass(cls, Exception)),
    )
    if _is_fixed(cls)
}


class _SafeUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = _SAFE.get((module, name))
        if found is None:
            raise UnpicklingError(
                f"the value needs {module}.{name}, which unpickle='safe' does not load: it reads built-in "
                "values only; return one of those, or make the client with unpickle='trust'"
            )
        return found

    def persistent_load(self, pid: Any) -> Any:
        raise UnpicklingError("the value refers to something outside of its pickle")
