"""From the bytes of a registration to a callable, once per runner."""

from __future__ import annotations

import importlib
import io
import linecache
import pickle
import sys
import types
from collections import OrderedDict
from typing import Any, Callable

from . import failures, pickling, settings, wire

_MAX_FUNCTIONS = 256
_MAX_BYTES = 256 << 20


class UnreadableError(Exception):
    """A payload that cannot be used; the text says why and what to do."""

    def __init__(self, text: str, cause: BaseException | None = None) -> None:
        super().__init__(text)
        self.cause = cause


class Entry:
    """One loaded function."""

    __slots__ = ("context", "fn", "origin", "own", "runs", "size")

    def __init__(self, fn: Callable[..., Any], size: int, origin: pickling.Origin, context: settings.Context) -> None:
        self.fn = fn
        self.size = size
        self.runs = 0
        self.origin = origin
        self.context = context
        # The settings that are in force during its attempts, where they are not the usual ones.
        self.own: tuple[Any, ...] | None = None


class Cache:
    """The functions that this runner has loaded, by content hash, least recently used first."""

    def __init__(self) -> None:
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()
        self._bytes = 0

    def get(self, digest: bytes) -> Entry | None:
        """The entry, which becomes the most recently used one, or None."""
        entry = self._entries.get(digest)
        if entry is not None:
            self._entries.move_to_end(digest)
        return entry

    def put(self, digest: bytes, entry: Entry) -> None:
        """Keep a function, dropping others when there are too many or they are too large."""
        self._entries[digest] = entry
        self._bytes += entry.size
        while len(self._entries) > 1 and (len(self._entries) > _MAX_FUNCTIONS or self._bytes > _MAX_BYTES):
            _, dropped = self._entries.popitem(last=False)
            self._bytes -= dropped.size


# The agent puts the Python whose bytecode a pickle holds before it, where the registration said it.
_FOR_PYTHON = b"#python="


def _for_this_python(code: bytes) -> bytes:
    """The pickle itself; bytecode of another Python is refused, as it may end this one."""
    theirs = ""
    if code.startswith(_FOR_PYTHON):
        line, _, code = code.partition(b"\n")
        theirs = line[len(_FOR_PYTHON) :].decode("ascii", "replace")
    theirs = theirs or pickling.python_of(code)
    ours = pickling.PYTHON
    if theirs and theirs != ours:
        raise UnreadableError(
            f"the function was pickled by value under Python {theirs}, whose bytecode the worker's Python {ours} "
            f"({sys.executable}) cannot run. Three ways out: register it from Python {ours}; start a worker with "
            f"--python PATH of a Python {theirs}; or register the function as source text"
        )
    return code


def check_arguments(data: Any) -> None:
    """Refuse arguments that hold bytecode of another Python, before any of it is loaded."""
    theirs = pickling.python_of(data)
    if theirs and theirs != pickling.PYTHON:
        raise UnreadableError(
            f"the arguments hold a function, or an object of a class, that was pickled by value under Python {theirs}, "
            f"whose bytecode the worker's Python {pickling.PYTHON} ({sys.executable}) cannot run. Three ways out: call "
            f"from Python {pickling.PYTHON}; start a worker with --python PATH of a Python {theirs}; or pass plain "
            "data to a function that is registered as source text, or that the worker can import"
        )


def _foreign(form: int, code: bytes) -> str:
    """What a pickle that holds code and cannot be loaded may suffer from."""
    if form == wire.FORM_SOURCE or not any(mark in code for mark in pickling.MAKES_CODE):
        return ""
    return (
        "; it holds bytecode, which only the Python version that wrote it can run: if that is another one, register "
        "the function from this version, start the worker with --python PATH of that one, or register it as source"
    )


def load(form: int, name: str, digest: bytes, code: bytes) -> Callable[..., Any]:
    """Return the callable that the bytes describe, or raise UnreadableError."""
    if form != wire.FORM_SOURCE:
        code = _for_this_python(code)
    try:
        fn = _from_source(name, digest, code) if form == wire.FORM_SOURCE else unpickle(code)
    except UnreadableError:
        raise
    except ImportError as exc:
        raise UnreadableError(missing_module("the function", exc, form == wire.FORM_SOURCE), exc) from None
    except MemoryError:
        raise
    except BaseException as exc:  # a payload may raise anything, SystemExit included
        if form == wire.FORM_SOURCE:
            raise UnreadableError(f"the function's source does not run: {failures.one_line(exc)}", exc) from None
        raise UnreadableError(
            f"the function's pickle cannot be loaded: {failures.one_line(exc)} (the worker has {_versions()})"
            f"{_foreign(form, code)}",
            exc,
        ) from None
    if not callable(fn):
        raise UnreadableError(f"the function's payload is an object of type {type_name(fn)!r}, which is not callable")
    loaded: Callable[..., Any] = fn
    return loaded


def unpickle(data: Any) -> Any:
    """Load a pickle the way its writer meant it: with dill where there is dill."""
    pickling.load_for(data)
    try:
        return _loads_function(data)
    except ImportError:
        # A module that appeared after the finder looked into its folder last.
        importlib.invalidate_caches()
        return _loads_function(data)


def _loads_function(data: Any) -> Any:
    dill = sys.modules.get("dill")
    return pickle_loads(data) if dill is None else dill.loads(data)


# Bound at start: a function that patches the pickle module changes nothing for the next one.
pickle_loads = pickle.loads


def missing_module(what: str, exc: ImportError, source: bool = False) -> str:
    """Name the missing module and the ways to get it; source says that its importer came as text, not as a pickle."""
    module = exc.name or ""
    if not isinstance(exc, ModuleNotFoundError) or not module:
        return f"{what} cannot be loaded: {failures.one_line(exc)}"
    package = module.partition(".")[0]
    needs = (
        f"{what} needs the Python package {package!r}, which the worker's interpreter {sys.executable} "
        f"cannot import ({failures.one_line(exc)}). "
    )
    pip = f"run '{sys.executable} -m pip install {package}' on the worker's machine"
    python = "start the worker with --python PATH of an interpreter that has it"
    folder = f"start the worker with --python-path DIR, where DIR contains {package}"
    if package in ("dill", "cloudpickle"):
        return f"{needs}Three ways to get it: {pip}; {python}; or {folder}"
    own = folder
    if not source:
        own = f"call cloudpickle.register_pickle_by_value({package}) before you submit, which sends it along, or {own}"
    return f"{needs}If it is a module of your own: {own}. If it is a published package: {pip}, or {python}"


def _versions() -> str:
    """What a pickle of another version may trip over."""
    found = ["Python " + ".".join(str(part) for part in sys.version_info[:3])]
    for name in ("dill", "cloudpickle"):
        version = getattr(sys.modules.get(name), "__version__", None)
        if version:
            found.append(f"{name} {version}")
    return ", ".join(found)


def type_name(value: object) -> str:
    """The class of a value the way people write it."""
    cls = type(value)
    if cls.__module__ in ("builtins", "__main__") or cls.__module__.startswith(pickling.SOURCE_PREFIX):
        return cls.__qualname__
    return f"{cls.__module__}.{cls.__qualname__}"


def _from_source(name: str, digest: bytes, code: bytes) -> Any:
    module_name = pickling.SOURCE_PREFIX + digest.hex()[:16]
    # Two texts may be registered under one name: each has a file of its own in tracebacks.
    filename = f"<function {name} {digest.hex()[:8]}>"
    try:
        text = io.TextIOWrapper(io.BytesIO(code), encoding="utf-8-sig").read()
        compiled = compile(text, filename, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as exc:
        raise UnreadableError(f"the function's source cannot be compiled: {failures.one_line(exc)}", exc) from None
    module = types.ModuleType(module_name)
    module.__file__ = filename
    # Tracebacks show the source's lines; without a time of change the entry never goes stale.
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    sys.modules[module_name] = module
    try:
        exec(compiled, module.__dict__)
        return _choose(name, module)
    except BaseException:
        del sys.modules[module_name]
        raise


def _choose(name: str, module: types.ModuleType) -> Any:
    named = module.__dict__.get(name)
    if named is not None:
        return named
    defined = {
        key: value
        for key, value in module.__dict__.items()
        if isinstance(value, types.FunctionType) and value.__module__ == module.__name__
    }
    if len(defined) == 1:
        return next(iter(defined.values()))
    if not defined:
        raise UnreadableError(f"the source defines no function, and nothing named {name!r}")
    listed = ", ".join(sorted(defined))
    raise UnreadableError(
        f"the source defines nothing named {name!r} and more than one function ({listed}): "
        "register it under the name of the one to run"
    )
