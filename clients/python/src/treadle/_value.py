"""By value or by reference: what a worker can import, and how the rest is written by cloudpickle.

cloudpickle names what a module defines and copies what __main__ defines, with a few gaps. They
are filled here, in a pickler of this package's own; cloudpickle itself is left as it is.
"""

from __future__ import annotations

import copyreg
import functools
import importlib
import io
import os
import sys
import types
import typing
from typing import Any, Callable

from .errors import PicklingError

# Modules of this process alone. The second is what a child process started by spawn or forkserver
# calls the script of its parent.
MAINS = ("__main__", "__mp_main__")
# How both show in a pickle.
MAIN_MARK = b"_main__"

# The newest that every supported Python reads; 5 adds nothing for bytes that travel in one piece.
PROTOCOL = 4

# Its constructor, which plain lru_cache calls as well; an instance's class says no more than "functools".
_CACHE_TYPE = type(functools.lru_cache(maxsize=1)(lambda: None))
_new_cache: Callable[..., Any] = vars(functools)["_lru_cache_wrapper"]
_CacheInfo: Any = vars(functools)["_CacheInfo"]


def modules_by_value() -> set[str]:
    """The modules that the program gave to cloudpickle.register_pickle_by_value."""
    if sys.modules.get("cloudpickle") is None:
        return set()
    # What stands there may be half a module, as another thread imports it: this waits for it.
    found: set[str] = importlib.import_module("cloudpickle").list_registry_pickle_by_value()
    return found


def _is_by_value(module: str) -> bool:
    """Whether what a module defines goes by value, as its package may be registered for that."""
    if module in MAINS:
        return True
    registered = modules_by_value()
    while registered and module:
        if module in registered:
            return True
        module = module.rpartition(".")[0]
    return False


def own_folder(package: str) -> str:
    """The folder that holds a module of this program's own; "" where it is installed, Python's, or not loaded."""
    module = sys.modules.get(package)
    file = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), None)
    if type(file) is not str:
        return ""
    path = os.path.abspath(file)
    if any(part in ("site-packages", "dist-packages") for part in path.split(os.sep)):
        return ""
    stdlib = os.path.dirname(os.path.abspath(os.__file__))
    if path.startswith(stdlib + os.sep):
        return ""
    folder = os.path.dirname(path)
    is_package = getattr(module, "__path__", None) is not None and getattr(module, "__file__", None)
    return os.path.dirname(folder) if is_package else folder


def is_named(obj: Any) -> bool:
    """Whether an object is what its module has under its name, and the module is one that workers import."""
    module, name = getattr(obj, "__module__", None), getattr(obj, "__qualname__", None)
    if type(module) is not str or type(name) is not str or _is_by_value(module):
        return False
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is obj


def goes_by_reference(fn: Any) -> bool:
    """Whether a callable's pickle is its name, which stays the same whatever its globals become."""
    if isinstance(fn, types.BuiltinFunctionType):
        # A method that is held is one of these too, and its object is not its module.
        return isinstance(fn.__self__, (types.ModuleType, type(None))) and is_named(fn)
    return isinstance(fn, types.FunctionType) and is_named(fn)


_pickler: Any = None


def dump(cloudpickle: Any, value: Any) -> bytes:
    """Pickle by cloudpickle, so that a worker needs nothing of this program."""
    global _pickler
    if _pickler is None or not issubclass(_pickler, cloudpickle.Pickler):
        _pickler = _make_pickler(cloudpickle)
    main = sys.modules.get("__mp_main__")
    if main is not None and getattr(main, "__name__", "") == "__mp_main__":
        # To cloudpickle it is a module like any other; no worker can import it.
        cloudpickle.register_pickle_by_value(main)
    out = io.BytesIO()
    _pickler(out, PROTOCOL).dump(value)
    return out.getvalue()


def _make_pickler(cloudpickle: Any) -> Any:
    base: Any = cloudpickle.Pickler

    class Pickler(base):  # type: ignore[misc]  # its base is known at run time
        def reducer_override(self, obj: Any) -> Any:
            if type(obj) is _CACHE_TYPE and not is_named(obj):
                return _empty_cache(obj)
            if type(obj) is functools.cached_property:
                return functools.cached_property, (obj.func,), _without_lock(obj)
            reduced = super().reducer_override(obj)
            if isinstance(obj, type) and "__slots__" in vars(obj):
                return _with_slots(obj, reduced)
            if reduced is not NotImplemented or isinstance(obj, (type, types.FunctionType)):
                return reduced
            if _module_of(obj) not in MAINS:
                return reduced
            # What is asked before this method answers for it here, too: class methods, properties, type variables.
            reducer = getattr(self, "dispatch_table", copyreg.dispatch_table).get(type(obj))
            return _reduce_of_main(obj, reducer)

    return Pickler


def _with_slots(cls: type, reduced: Any) -> Any:
    """A class by value with its slots, which cloudpickle leaves out: its objects then have another form there."""
    bases = types.resolve_bases(getattr(cls, "__orig_bases__", cls.__bases__))
    if not all(issubclass(type(cls), type(base)) for base in bases):
        return (
            reduced  # its base makes classes in its own way, and sets their slots: NamedTuple refuses to be given any
        )
    if isinstance(reduced, tuple) and isinstance(reduced[1], tuple):
        for part in reduced[1]:
            if isinstance(part, dict) and "__module__" in part:  # what the class is made with
                part["__slots__"] = vars(cls)["__slots__"]
    return reduced


# Annotations name these, and a function by value takes its annotations along: what makes them anew, by their class.
# The classes are those that this Python has.
_FORMS: dict[type, Callable[[Any], tuple[Any, ...]]] = {
    form: make
    for name, make in (
        ("NewType", lambda form: (form.__name__, form.__supertype__)),
        ("ParamSpec", lambda form: (form.__name__,)),
        ("TypeVarTuple", lambda form: (form.__name__,)),
        ("TypeAliasType", lambda form: (form.__name__, form.__value__)),
    )
    if isinstance(form := getattr(typing, name, None), type)
}


def _module_of(obj: Any) -> Any:
    try:
        return obj.__module__
    except Exception:  # few objects have one, and some run code when they are asked
        return None


def _empty_cache(cached: Any) -> Any:
    """A function under lru_cache, as one with the same parameters and nothing in its cache."""
    parameters = cached.cache_parameters()
    state = {**vars(cached), "cache_parameters": functools.partial(dict, parameters)}
    return _new_cache, (cached.__wrapped__, parameters["maxsize"], parameters["typed"], _CacheInfo), state


def _without_lock(obj: Any) -> dict[str, Any]:
    """The state of a cached_property, less the lock that it has before Python 3.12."""
    return {name: value for name, value in vars(obj).items() if name not in ("func", "lock")}


def _reduce_of_main(obj: Any, reducer: Callable[[Any], Any] | None) -> Any:
    """What an object of __main__ is made of; a name in __main__ is refused, since no worker has it."""
    reduced = obj.__reduce_ex__(PROTOCOL) if reducer is None else reducer(obj)
    if isinstance(reduced, str):
        make = _FORMS.get(type(obj))
        if make is not None:
            return type(obj), make(obj)
        raise PicklingError(
            f"an object of type {type(obj).__qualname__!r} pickles as the name {reduced!r} in __main__, which workers "
            "cannot import: move it into a module that they can, or pass what it is made from"
        )
    return reduced


def with_own_name(fn: Callable[..., Any], is_outdated: Callable[[Any], bool]) -> Callable[..., Any]:
    """A function that is being decorated, so that it finds itself under its own name.

    While a decorator runs, that name means nothing yet, or what an earlier run of the same cell
    has left there (is_outdated tells). The copy has the name; fn and its globals are left alone.
    """
    if type(fn) is _CACHE_TYPE:
        # The name will mean the function with its cache.
        own = _with_name(fn.__wrapped__, is_outdated, functools.lru_cache(**fn.cache_parameters()))
        return fn if own is None else own
    own = _with_name(fn, is_outdated, lambda copy: copy)
    return fn if own is None else own


def _with_name(fn: Any, is_outdated: Callable[[Any], bool], made: Callable[[Any], Any]) -> Any:
    """What is made of a copy of fn that finds it under its name; None where that name is not to be bound."""
    if not isinstance(fn, types.FunctionType) or fn.__name__ not in _names(fn.__code__):
        return None
    name, missing = fn.__name__, object()
    cells = dict(zip(fn.__code__.co_freevars, fn.__closure__ or ()))
    closure, namespace = fn.__closure__, fn.__globals__
    own = None
    if name in cells:
        if not _is_open(cells[name], is_outdated):
            return None
        own = types.CellType()
        closure = tuple(own if key == name else cell for key, cell in cells.items())
    else:
        now = namespace.get(name, missing)
        if now is not missing and not is_outdated(now):
            return None
        namespace = dict(namespace)
    copy = types.FunctionType(fn.__code__, namespace, name, fn.__defaults__, closure)
    copy.__kwdefaults__ = fn.__kwdefaults__
    for attribute in ("__module__", "__qualname__", "__doc__", "__annotations__"):
        try:
            setattr(copy, attribute, getattr(fn, attribute))
        except Exception:  # annotations that name what is not there yet
            continue
    copy.__dict__.update(fn.__dict__)
    named = made(copy)
    if own is None:
        namespace[name] = named
    else:
        own.cell_contents = named
    return named


def _is_open(cell: Any, is_outdated: Callable[[Any], bool]) -> bool:
    try:
        return is_outdated(cell.cell_contents)
    except ValueError:  # it is empty
        return True


def _names(code: types.CodeType) -> set[str]:
    """The globals and free variables that code and the code inside of it name."""
    found = {*code.co_names, *code.co_freevars}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _names(constant)
    return found
