"""What multiprocessing asks of a runner's ``__main__``.

Pickle names the functions and classes of a script by their name in ``__main__``. In a runner they
live in the globals of the function that came by value, so the module finds them there, for the
function that runs. Children that do not inherit the memory (spawn, forkserver) run the file of their
parent's ``__main__``: one is written when they are started, and makes the same names there.
Nothing of this is looked at unless a name is missing in the module.
"""

from __future__ import annotations

import functools
import linecache
import os
import pickle
import sys
import types
from typing import Any, Callable

from . import pickling

_HERE = os.path.dirname(os.path.abspath(__file__))
_FOLDER = os.path.join(os.path.dirname(_HERE), "children")

# Bound at start: user code may replace what the modules hold.
_getpid, _replace, _kill, _frames = os.getpid, os.replace, os.kill, sys._current_frames
_dumps = pickle.dumps

# What a child runs: TEXT, behind the path of the data that belongs to it.
_SCRIPT = '''"""What the children of a task run as the script of their parent."""
import importlib.util, linecache, pickle, sys, types
if importlib.util.find_spec("treadle") is None:
    sys.path.append({bundled!r})
with open({data!r}, "rb") as file:
    source, names = pickle.load(file)
if source is not None:
    module = types.ModuleType(source[0])
    module.__file__ = source[1]
    linecache.cache[source[1]] = (len(source[2]), None, source[2].splitlines(keepends=True), source[1])
    sys.modules[source[0]] = module
    exec(compile(source[2], source[1], "exec", dont_inherit=True), module.__dict__)
if names is not None:
    globals().update(pickle.loads(names))
'''


class Main:
    """The module that functions see as ``__main__``."""

    def __init__(self, call: types.CodeType, thread: int) -> None:
        """call is the code of the method whose frame holds the arguments of an attempt, on that thread."""
        self._call = call
        self._thread = thread
        # Whether a function runs. What the runner itself pickles, results above all, goes by value.
        self.is_asked: Callable[[], bool] = lambda: False
        self.module = types.ModuleType("__main__")
        self.module.__getattr__ = self._find  # type: ignore[method-assign]

    def _find(self, name: str) -> Any:
        if not self.is_asked():
            pass
        elif name == "__file__":
            # Others take a file for the sign that nobody types here.
            if "multiprocessing.spawn" in sys.modules:
                path = self._write()
                if path:
                    return path
        elif not name.startswith("__"):
            found = self._names()
            if name in found:
                return found[name]
        raise AttributeError(f"module '__main__' has no attribute {name!r}")

    def _names(self) -> dict[str, Any]:
        """The functions and classes of the caller's script that came with the call that runs."""
        found: dict[str, Any] = {}
        fn = pickling.origin.fn
        if fn is not None:
            _collect(fn, found)
        for value in self._arguments():
            _collect(value, found)
        return found

    def _arguments(self) -> list[Any]:
        frame = _frames().get(self._thread)
        while frame is not None:
            if frame.f_code is self._call:
                here = frame.f_locals
                return [*here.get("args", ()), *here.get("kwargs", {}).values()]
            frame = frame.f_back
        return []

    def _write(self) -> str:
        """Write the file that children run; empty where it cannot be had."""
        try:
            names = self._names()
            by_value = pickling.dump_cloudpickle(names) if names else None
            if names and by_value is None:
                return ""
            data = _dumps((_source(), by_value), pickling.PROTOCOL)
            os.makedirs(_FOLDER, 0o700, exist_ok=True)
            _sweep()
            stem = os.path.join(_FOLDER, str(_getpid()))
            _put(stem + ".data", data)
            script = _SCRIPT.format(bundled=os.path.join(os.path.dirname(_HERE), "bundled"), data=stem + ".data")
            _put(stem + ".py", script.encode())
        except Exception:  # what a function holds may refuse to be pickled: as if there were no file
            return ""
        return stem + ".py"


def _source() -> tuple[str, str, str] | None:
    """Module, file and text of the function that runs, where it came as source text."""
    fn = pickling.origin.fn
    module = sys.modules.get(getattr(fn, "__module__", None) or "")
    if module is None or not module.__name__.startswith(pickling.SOURCE_PREFIX):
        return None
    filename = str(module.__file__)
    return module.__name__, filename, "".join(linecache.getlines(filename))


def _put(path: str, data: bytes) -> None:
    """Write a file that another child may be reading."""
    with open(path + "-", "wb") as file:
        file.write(data)
    _replace(path + "-", path)


def _sweep() -> None:
    """Remove the files of runners that are gone."""
    for name in os.listdir(_FOLDER):
        try:
            _kill(int(name.partition(".")[0]), 0)
        except (ProcessLookupError, ValueError):
            try:
                os.unlink(os.path.join(_FOLDER, name))
            except FileNotFoundError:
                pass  # another runner was faster
        except PermissionError:
            pass


def _collect(value: Any, found: dict[str, Any], depth: int = 4) -> None:
    """Add what is named in the caller's ``__main__`` and that a value brought along."""
    if depth == 0:
        return
    if isinstance(value, types.FunctionType):
        for name, held in list(value.__globals__.items()):
            _add(name, held, found)
        _add(value.__name__, value, found)
        inner = getattr(value, "__wrapped__", None)
    elif isinstance(value, types.MethodType):
        inner = value.__func__
    elif isinstance(value, functools.partial):
        for held in (*value.args, *value.keywords.values()):
            _collect(held, found, depth - 1)
        inner = value.func
    elif isinstance(value, type):
        if _add(value.__name__, value, found):
            for held in list(vars(value).values()):
                if isinstance(held, types.FunctionType):
                    _collect(held, found, depth - 1)
        inner = None
    elif isinstance(value, (list, tuple)) and len(value) <= 100:
        for held in value:
            _collect(held, found, depth - 1)
        inner = None
    else:
        inner = getattr(value, "__wrapped__", None) or type(value)
    if inner is not None:
        _collect(inner, found, depth - 1)


def _add(name: str, value: Any, found: dict[str, Any]) -> bool:
    """Note a value under its name, where that is its name in ``__main__``."""
    if getattr(value, "__module__", None) != "__main__" or getattr(value, "__qualname__", None) != name:
        return False
    found.setdefault(name, value)
    return True
