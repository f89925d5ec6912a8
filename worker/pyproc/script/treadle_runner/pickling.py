"""Writing pickles: plain where that is enough, by value where it is not."""

from __future__ import annotations

import importlib
import io
import pickle
import sys
import threading
from typing import Any

PROTOCOL = 4
# The modules that functions from source text live in; they exist in this process only.
SOURCE_PREFIX = "treadle_source_"

_SOURCE_MARK = SOURCE_PREFIX.encode()
# How numpy writes an array: plain pickle drops the attributes of a subclass's instance.
_ARRAY_MARK = b"_reconstruct"
# What the modules of the two picklers are called in what they wrote.
_CLOUDPICKLE_MARK, _DILL_MARK = b"cloudpickle.cloudpickle", b"dill._dill"

# Bound at start: a function that patches the pickle module changes nothing for the next one.
_dumps = pickle.dumps
_modules = sys.modules

# Bytecode belongs to the minor version that wrote it, and may end another one by SIGSEGV. So a
# pickle that holds some says which it is, right behind its PROTOCOL opcode, in opcodes that
# every unpickler takes and that leave nothing on the stack: SHORT_BINUNICODE, POP.
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
_NAMES_PYTHON = b"treadle/python="
_MARK = b"\x8c" + bytes([len(_NAMES_PYTHON) + len(PYTHON)]) + _NAMES_PYTHON + PYTHON.encode() + b"0"
# Arguments of fewer bytes can neither say a Python nor name cloudpickle: most calls need not be looked through.
SHORTEST_MARK = min(4 + len(_NAMES_PYTHON), len(_CLOUDPICKLE_MARK))
# The names by which cloudpickle and dill make code objects, as opcodes of protocol 4.
MAKES_CODE = (b"\x8c\x08CodeType", b"\x8c\x0c_create_code")


def mark(data: bytes) -> bytes:
    """Say in a pickle which Python it is for, where it holds bytecode."""
    if any(name in data for name in MAKES_CODE) and not python_of(data):
        return data[:2] + _MARK + data[2:]
    return data


def python_of(data: Any) -> str:
    """The version that a pickle says it is for, as in "3.12"; empty where it says nothing."""
    if len(data) < 20 or data[2] != 0x8C or data[4:19] != _NAMES_PYTHON:
        return ""
    return bytes(data[19 : 4 + data[3]]).decode("ascii", "replace")


# The working directory, which comes first in sys.path; main sets it.
folder = ""


def load(name: str) -> Any:
    """Import what the runner needs, unless it is there: a uuid.py beside the functions is not meant."""
    found = _modules.get(name)
    if found is not None:
        return found
    before = sys.path[:]
    sys.path[:] = [entry for entry in before if entry != folder]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name != name:
            raise
    finally:
        sys.path[:] = before
    return importlib.import_module(name)  # it is there, after all


def load_for(data: Any) -> None:
    """Import what a pickle is going to ask for; it cannot say where from."""
    if "cloudpickle" not in _modules and getattr(data, "obj", data).find(_CLOUDPICKLE_MARK) >= 0:
        try:
            load("cloudpickle")
        except ImportError:
            return  # the pickle's own import says so


class Origin:
    """How the attempt that runs came: what goes back by value goes back the same way.

    cloudpickle follows the classes that it carries in both directions, so that what goes back
    by it is of the caller's own class; and a caller need not have the other package.
    """

    __slots__ = ("args", "cloudpickle", "dill", "fn")

    def __init__(self, data: bytes, source: bool, fn: Any = None) -> None:
        # Source text says nothing, only the arguments of its call may; callers of the routes that
        # promise dill cannot send it. A reference says nothing either, and may be theirs.
        self.cloudpickle = not source and _CLOUDPICKLE_MARK in data
        self.dill = not source and not self.cloudpickle
        self.args: Any = b""
        # The function itself: what of the caller's script came with it is found in its globals.
        self.fn = fn

    def cloudpickle_first(self) -> bool:
        """Asked only when something has to go by value: it looks through the arguments."""
        if self.cloudpickle:
            return True
        args = bytes(self.args)
        if _CLOUDPICKLE_MARK in args:
            return True
        return not self.dill and _DILL_MARK not in args


NOBODY = Origin(b"", False)
# That of the attempt that runs.
origin = NOBODY


def dump(value: Any) -> bytes:
    """Pickle a value; raises what the first pickler raised when none can."""
    try:
        data = _dumps(value, PROTOCOL)
    except MemoryError:
        raise
    except BaseException as exc:  # __reduce__ is user code
        found = by_value(value)
        if found is None:
            raise exc from None
        return found
    if _SOURCE_MARK in data:
        # By reference it would mean something to this process only.
        return by_value(value) or data
    if "numpy" in _modules and _ARRAY_MARK in data and not origin.cloudpickle_first():
        return _with_attributes(value) or data
    return data


def _with_attributes(value: Any) -> bytes | None:
    """What dill writes of arrays, whose attributes it keeps; None where that cannot be had."""
    try:
        data = _dump_dill(value)
    except MemoryError:
        raise
    except BaseException:
        return None
    return data if data is None else mark(data)


def by_value(value: Any) -> bytes | None:
    """Pickle a value with the code that it needs, or None where that cannot be done."""
    kept = None
    dumpers = (dump_cloudpickle, _dump_dill) if origin.cloudpickle_first() else (_dump_dill, dump_cloudpickle)
    for dumper in dumpers:
        try:
            data = dumper(value)
        except MemoryError:
            raise
        except BaseException:
            continue
        if data is None:
            continue
        if dumper is dump_cloudpickle or _SOURCE_MARK not in data:
            return mark(data)
        kept = mark(data)  # dill took the module for one that can be imported
    return kept


def _dump_dill(value: Any) -> bytes | None:
    dill = sys.modules.get("dill")
    if dill is None:
        return None
    out = io.BytesIO()
    _dill_pickler(dill)(out, protocol=PROTOCOL).dump(value)
    return out.getvalue()


_dill_class: Any = None


def _dill_pickler(dill: Any) -> Any:
    """dill's pickler, less what it would write as a new, unrelated object: locks and open files.

    A result that means nothing to its reader is refused instead.
    """
    global _dill_class
    if _dill_class is None:
        base = dill.Pickler
        refused = (type(threading.Lock()), type(threading.RLock()))

        def is_refused(cls: Any) -> bool:
            return cls in refused or getattr(cls, "__module__", "") in ("_io", "io")

        class Dispatch(type(base.dispatch)):  # type: ignore[misc]
            def __missing__(self, key: Any) -> Any:
                # dill adds classes of numpy while it meets them.
                found = None if is_refused(key) else dict.get(base.dispatch, key)
                return super().__missing__(key) if found is None else found

        dispatch = Dispatch((cls, save) for cls, save in base.dispatch.items() if not is_refused(cls))
        _dill_class = type("Pickler", (base,), {"dispatch": dispatch, "__module__": base.__module__})
    return _dill_class


def dump_cloudpickle(value: Any) -> bytes | None:
    """What cloudpickle writes of a value; None where it is not installed."""
    try:
        cloudpickle = load("cloudpickle")
    except ImportError:
        return None
    for name, module in list(sys.modules.items()):
        if name.startswith(SOURCE_PREFIX):
            cloudpickle.register_pickle_by_value(module)
    data: bytes = cloudpickle.dumps(value, protocol=PROTOCOL)
    return data
