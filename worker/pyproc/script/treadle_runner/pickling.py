"""Writing pickles: plain where that is enough, by value where it is not."""

from __future__ import annotations

import io
import pickle
import sys
import threading
from typing import Any

PROTOCOL = 4
# The modules that functions from source text live in; they exist in this process only.
SOURCE_PREFIX = "treadle_source_"

_SOURCE_MARK = SOURCE_PREFIX.encode()
# Whether the function that runs came by cloudpickle. It follows the classes that it carries in
# both directions, so that what goes back by it is of the caller's own class.
cloudpickle_first = False

# Bound at start: a function that patches the pickle module changes nothing for the next one.
_dumps = pickle.dumps


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
    return data


def by_value(value: Any) -> bytes | None:
    """Pickle a value with the code that it needs, or None where that cannot be done."""
    kept = None
    for dumper in (_dump_cloudpickle, _dump_dill) if cloudpickle_first else (_dump_dill, _dump_cloudpickle):
        try:
            data = dumper(value)
        except MemoryError:
            raise
        except BaseException:
            continue
        if data is None:
            continue
        if dumper is _dump_cloudpickle or _SOURCE_MARK not in data:
            return data
        kept = data  # dill took the module for one that can be imported
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
        dispatch = type(base.dispatch)(
            (cls, save)
            for cls, save in base.dispatch.items()
            if cls not in refused and getattr(cls, "__module__", "") not in ("_io", "io")
        )
        _dill_class = type("Pickler", (base,), {"dispatch": dispatch, "__module__": base.__module__})
    return _dill_class


def _dump_cloudpickle(value: Any) -> bytes | None:
    try:
        import cloudpickle  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        return None
    for name, module in list(sys.modules.items()):
        if name.startswith(SOURCE_PREFIX):
            cloudpickle.register_pickle_by_value(module)
    data: bytes = cloudpickle.dumps(value, protocol=PROTOCOL)
    return data
