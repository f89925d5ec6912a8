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

from . import _value
from ._value import PROTOCOL
from .errors import PicklingError, UnpicklingError

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

# Bytecode belongs to the minor version that wrote it, and may end another one by SIGSEGV. So a
# pickle that holds some says which it is, right behind its PROTOCOL opcode, in opcodes that
# every unpickler takes and that leave nothing on the stack: SHORT_BINUNICODE, POP. Workers do
# the same, and each side refuses what is not its own.
_PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
_NAMES_PYTHON = b"treadle/python="
_MARK = b"\x8c" + bytes([len(_NAMES_PYTHON) + len(_PYTHON)]) + _NAMES_PYTHON + _PYTHON.encode() + b"0"


def python_of(data: bytes) -> str:
    """The Python that a function's pickle is bound to, as in "3.12": this one if it holds bytecode, else ""."""
    return _PYTHON if any(name in data for name in _MAKES_CODE) else ""


def _marked(data: bytes) -> bytes:
    """A pickle that says which Python it is for, where it holds bytecode.

    All of it is looked through: a pickle may hold another one, as joblib's do.
    """
    if python_of(data) and not _written_by(data):
        return data[:2] + _MARK + data[2:]
    return data


def _written_by(data: bytes) -> str:
    """The version that a pickle says it is for, "" where it says nothing."""
    if data[2:3] != b"\x8c" or data[4 : 4 + len(_NAMES_PYTHON)] != _NAMES_PYTHON:
        return ""
    return data[4 + len(_NAMES_PYTHON) : 4 + data[3]].decode("ascii", "replace")


def dump_args(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """Pickle the arguments of a call."""
    return dump_value((args, kwargs), "the arguments")


def dump_value(value: Any, what: str = "the value") -> bytes:
    """Pickle a value: plainly where that is enough, else by value.

    Workers send back by cloudpickle what came by it. They look for the names of cloudpickle's own
    functions, which it writes for every class and function that goes by value; where there are
    none it has written what plain pickle would, and it does not matter.
    """
    return _marked(_dump_value(value, what))


def _dump_value(value: Any, what: str) -> bytes:
    try:
        data = pickle.dumps(value, PROTOCOL)
    except KeyboardInterrupt:
        raise
    except BaseException as exc:  # __reduce__ is user code
        found = _by_value(value, what)
        if found is None:
            raise _refused(what, exc, hint=True) from exc
        return found
    # Perhaps a class or a function of such a module, perhaps only a text that contains the word.
    if _value.MAIN_MARK not in data and not any(name.encode() in data for name in _value.modules_by_value()):
        return data
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
        except (KeyboardInterrupt, PicklingError):
            raise
        except BaseException as exc:  # __reduce__ is user code
            raise _refused(what, exc) from exc
    return None


def _cloudpickle(cloudpickle: Any, value: Any) -> bytes:
    return _value.dump(cloudpickle, value)


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
        if isinstance(obj, (type, types.FunctionType)) and obj.__module__ in _value.MAINS:
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
    theirs = _written_by(data)
    if theirs and theirs != _PYTHON:
        raise UnpicklingError(
            f"the value holds a function, or an object of a class, that was pickled by value under Python {theirs}, "
            f"whose bytecode this Python {_PYTHON} cannot run. Three ways out: run this program under Python {theirs}; "
            f"start the workers with --python PATH of a Python {_PYTHON}; or return plain data, or objects of a "
            "module that both can import"
        )
    try:
        return _loads(data)
    except ModuleNotFoundError as exc:
        package = exc.name.partition(".")[0] if type(exc.name) is str else ""
        raise UnpicklingError(
            f"the value needs the package {package!r}, which this interpreter cannot import ({_told(exc)}); "
            f"if it is a module of your own, put its folder on this program's sys.path; if it is a published package, "
            f"pip install {package}; or return a value of another type"
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
