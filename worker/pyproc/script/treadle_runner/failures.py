"""Exceptions as text, and as pickles that a client can load.

A reader of a failed task may have nothing but Python. So the pickled exception is the
original object only when its pickle names nothing but classes of the standard library and
loads again; otherwise it is a RuntimeError that names class and message. A faithful copy
for readers that have the class travels beside it.
"""

from __future__ import annotations

import errno
import io
import os
import pickle
import re
import sys
import sysconfig
import traceback
from typing import Any, NamedTuple

from . import pickling

TEXT_LIMIT = 64 << 10
# The message of the pickled object contains the traceback, which is also an attribute of
# its own: three texts that together have to stay under the limit of a record.
_PICKLED_TRACEBACK = 18 << 10
_PICKLED_TEXT = 8 << 10
_PICKLE_LIMIT = 64 << 10

_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_STDLIB_PATH = os.path.abspath(sysconfig.get_path("stdlib")) + os.sep
_STDLIB_NAMES: frozenset[str] = getattr(sys, "stdlib_module_names", frozenset())

_SOURCE_MODULE = re.compile(re.escape(pickling.SOURCE_PREFIX) + r"[0-9a-f]{16}\.")

_dumps = pickle.dumps


class Failure(NamedTuple):
    """What is told of an exception."""

    type: bytes
    message: bytes
    traceback: bytes
    pickle: bytes
    foreign: bytes


def clip(text: str, limit: int) -> bytes:
    """The first bytes of a text as UTF-8, cut at a character."""
    data = text[:limit].encode("utf-8", "backslashreplace")
    return data if len(data) <= limit else data[:limit].decode("utf-8", "ignore").encode("utf-8")


def clip_tail(text: str, limit: int) -> bytes:
    """The last bytes of a text: in a traceback that is where the raised line is."""
    data = text[-limit:].encode("utf-8", "backslashreplace")
    if len(data) <= limit and len(text) <= limit:
        return data
    mark = b"... (start of the traceback cut)\n"
    return mark + data[-(limit - len(mark)) :].decode("utf-8", "ignore").encode("utf-8")


def class_name(exc: BaseException) -> str:
    """The class as a traceback names it."""
    cls = type(exc)
    module = cls.__module__
    if not isinstance(module, str) or module in ("builtins", "__main__") or module.startswith(pickling.SOURCE_PREFIX):
        return cls.__qualname__
    return f"{module}.{cls.__qualname__}"


def text_of(exc: BaseException) -> str:
    """str(exc), or the best that can be had of an exception whose __str__ raises."""
    for render in (str, BaseException.__str__, repr):
        try:
            text = render(exc)
        except BaseException:  # user code
            continue
        if isinstance(text, str):
            return str.__str__(text)
    return "<the exception's text cannot be had: its __str__ raises>"


def one_line(exc: BaseException) -> str:
    """Class and message on one line, for use inside another message."""
    if isinstance(exc, SyntaxError) and exc.lineno:
        return f"{class_name(exc)}: {exc.msg} (line {exc.lineno})"
    text = " ".join(text_of(exc).split())
    name = class_name(exc)
    return f"{name}: {text[:2000]}" if text else name


def traceback_text(exc: BaseException) -> str:
    """What the interpreter would print, without the runner's own frames and module names."""
    try:
        told = traceback.TracebackException(type(exc), exc, exc.__traceback__)
        _cut_frames(told, set())
        text = "".join(told.format())
    except BaseException as broken:  # formatting runs user code
        return f"{class_name(exc)}: {text_of(exc)}\n(the traceback cannot be formatted: {class_name(broken)})\n"
    return _SOURCE_MODULE.sub("", text)


def _cut_frames(told: traceback.TracebackException, seen: set[int]) -> None:
    if id(told) in seen:
        return
    seen.add(id(told))
    told.stack[:] = [frame for frame in told.stack if not frame.filename.startswith(_HERE)]
    members = getattr(told, "exceptions", None) or []
    for other in (told.__cause__, told.__context__, *members):
        if other is not None:
            _cut_frames(other, seen)


def describe(exc: BaseException, task_id: str) -> Failure:
    """Everything that is told of an exception that a function raised."""
    name, text, trace = class_name(exc), text_of(exc), traceback_text(exc)
    forget_frames(exc)
    short_trace = clip_tail(trace, _PICKLED_TRACEBACK).decode()
    short_text = clip(text, _PICKLED_TEXT).decode()
    attributes = {
        "status": "FAILED",
        "error_type": "FunctionExecutionFailure",
        "message": f"{name}: {short_text}\n\n{short_trace}",
        "traceback": short_trace,
        "task_id": task_id,
    }
    own, foreign = _pickle_original(exc, attributes)
    if not own:
        stand_in = RuntimeError(f"{name}: {short_text}")
        stand_in.__dict__.update(attributes)
        own = _dumps(stand_in, pickling.PROTOCOL)
    return Failure(
        clip(name, 1024),
        clip(text, TEXT_LIMIT),
        clip_tail(trace, TEXT_LIMIT),
        own if len(own) <= _PICKLE_LIMIT else b"",
        foreign if len(foreign) <= TEXT_LIMIT else b"",
    )


def lacks_files(exc: BaseException) -> bool:
    """Whether an exception comes, directly or not, from having too many open files."""
    seen: BaseException | None = exc
    for _ in range(16):
        if seen is None:
            break
        if isinstance(seen, OSError) and seen.errno in (errno.EMFILE, errno.ENFILE):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def forget_frames(exc: BaseException) -> None:
    """Let go of what the frames of a traceback hold. A class may forbid to set attributes; C does not ask it."""
    BaseException.with_traceback(exc, None)


def _pickle_original(exc: BaseException, attributes: dict[str, str]) -> tuple[bytes, bytes]:
    """Return (the pickle that any Python loads, the pickle for those who have the class).

    The first carries the attributes, the second is a faithful copy.
    """
    own = dict(getattr(exc, "__dict__", None) or {})
    for key, value in attributes.items():
        try:
            setattr(exc, key, value)
        except BaseException:  # a class may refuse attributes, or run code
            continue
    try:
        data = _Pickler.dump_exception(exc)
    except BaseException:
        _restore(exc, own)
        return b"", pickling.by_value(exc) or b""
    if len(data) > _PICKLE_LIMIT:
        return b"", b""
    checker = _Checker(io.BytesIO(data))
    try:
        loaded = checker.load()
    except BaseException:
        loaded = None
    if checker.foreign:
        _restore(exc, own)
        return b"", pickling.dump(exc)
    # A reader may raise what it reads: what ends an interpreter is never handed out.
    if type(loaded) is not type(exc) or isinstance(exc, (SystemExit, KeyboardInterrupt, GeneratorExit)):
        return b"", b""
    return data, b""


def _restore(exc: BaseException, attributes: dict[str, Any]) -> None:
    """Take back what was set on an exception."""
    try:
        exc.__dict__.clear()
        exc.__dict__.update(attributes)
    except BaseException:  # a class may hide its __dict__
        return


class _Pickler(pickle.Pickler):
    """Writes an exception with its attributes, also where the class names its arguments only."""

    top: BaseException

    @classmethod
    def dump_exception(cls, exc: BaseException) -> bytes:
        out = io.BytesIO()
        pickler = cls(out, pickling.PROTOCOL)
        pickler.top = exc
        pickler.dump(exc)
        return out.getvalue()

    def reducer_override(self, obj: Any) -> Any:
        if obj is not self.top:
            return NotImplemented
        reduced = obj.__reduce_ex__(pickling.PROTOCOL)
        attributes = getattr(obj, "__dict__", None)
        if isinstance(reduced, tuple) and len(reduced) == 2 and attributes:
            return (*reduced, attributes)
        return reduced


class _Checker(pickle.Unpickler):
    """Loads a pickle and notes whether it names anything but classes of the standard library."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.foreign = False

    def find_class(self, module: str, name: str) -> Any:
        if not is_stdlib(module):
            self.foreign = True
            raise pickle.UnpicklingError(f"{module}.{name}")
        found = super().find_class(module, name)
        if not isinstance(found, type):
            self.foreign = True
            raise pickle.UnpicklingError(f"{module}.{name} is no class")
        return found


def is_stdlib(module: str) -> bool:
    """Whether a module belongs to Python itself."""
    top = module.partition(".")[0]
    if top in ("__main__", "__mp_main__"):
        return False
    if _STDLIB_NAMES:
        return top in _STDLIB_NAMES
    if top in sys.builtin_module_names:
        return True
    found = sys.modules.get(top)
    path = os.path.abspath(getattr(found, "__file__", None) or "")
    return path.startswith(_STDLIB_PATH) and "site-packages" not in path
