"""From what the server says of a finished task to a value or an exception."""

from __future__ import annotations

import json
import re
import sys
from typing import Any, Callable

from . import _pickling
from ._gen.treadle.v1 import fabric_pb2 as pb
from ._value import own_folder
from .errors import RemoteTraceback, UnpicklingError, task_failed
from .records import Status

Loader = Callable[[bytes], Any]


def loader(mode: str) -> Loader:
    """The function that reads pickles in that mode; raises ValueError for an unknown one."""
    if mode == "trust":
        return _pickling.loads
    if mode == "safe":
        return _pickling.safe_loads
    raise ValueError(f"unpickle={mode!r}: want 'trust' or 'safe'")


class Outcome:
    """What a finished task came to: a value, or an exception to raise."""

    __slots__ = ("cancelled", "error", "value")

    def __init__(self, value: Any = None, error: BaseException | None = None, cancelled: bool = False) -> None:
        self.value = value
        self.error = error
        self.cancelled = cancelled

    def get(self) -> Any:
        """Return the value or raise the exception."""
        if self.error is not None:
            raise self.error
        return self.value


def finished(result: pb.TaskResult) -> bool:
    """Whether a result is that of a finished task."""
    return Status.of(result.status).terminal


def outcome(result: pb.TaskResult, load: Loader) -> Outcome:
    """What a finished task came to. Never raises: what cannot be read is an outcome too."""
    try:
        if result.status != pb.Task.COMPLETED:
            return Outcome(error=failure(result.error, load), cancelled=result.status == pb.Task.CANCELLED)
        return Outcome(value=_value(result, load))
    except BaseException as exc:  # a lone MemoryError, or code of the value: it concerns this task only
        return Outcome(error=exc)


def _value(result: pb.TaskResult, load: Loader) -> Any:
    if result.HasField("result_pickle"):
        return load(result.result_pickle)
    if result.HasField("result"):
        return parse_json(result.result)
    return None


def parse_json(text: bytes) -> Any:
    """A value from JSON, its integers exact whatever their length."""
    try:
        return json.loads(text)
    except ValueError as exc:
        if not hasattr(sys, "get_int_max_str_digits"):
            raise UnpicklingError(f"the result is not JSON: {exc}") from exc
    try:
        return json.loads(text, parse_int=_long_int)
    except ValueError as exc:
        raise UnpicklingError(f"the result is not JSON: {exc}") from exc


def _long_int(digits: str) -> int:
    """int(digits) without Python's limit on their number, which is the process's to set."""
    sign, digits = (-1, digits[1:]) if digits.startswith("-") else (1, digits)
    if len(digits) <= 4000:
        return sign * int(digits)
    half = len(digits) // 2
    high, low = _long_int(digits[:-half]), _long_int(digits[-half:])
    return sign * (high * _ten_to(half) + low)


def _ten_to(power: int) -> int:
    # To mypy a power of integers may be a float.
    raised: int = 10**power
    return raised


def failure(error: pb.TaskError, load: Loader) -> BaseException:
    """The exception of a FAILED or CANCELLED task: the original where it can be had."""
    if error.error_type == "FunctionExecutionFailure":
        original = _original(error, load)
        if original is not None:
            if error.traceback:
                # The class may forbid to set attributes, or run code when one is set.
                _set_cause(original, RemoteTraceback(error.traceback))
            return original
    exc = task_failed(
        error.error_type,
        message=_with_own_module(error),
        exception_type=error.exception_type,
        traceback=error.traceback,
        task_id=error.task_id,
        worker_id=error.worker_id,
    )
    if error.traceback:
        exc.__cause__ = RemoteTraceback(error.traceback)
    return exc


# Python's own words for a module that is not there.
_MISSING = re.compile(r"No module named '([^']+)'")


def _with_own_module(error: pb.TaskError) -> str:
    """The message of a failure; where a module of this program's own was missing, what to do about it comes first."""
    message: str = error.message
    if error.error_type != "SerializationError" or error.exception_type != "ModuleNotFoundError":
        return message
    found = _MISSING.search(message)
    if found is None or "register_pickle_by_value" not in message:  # it does not help source text
        return message
    package = found.group(1).partition(".")[0]
    folder = own_folder(package)
    if not folder:
        return message
    return (
        f"{package!r} is a module of your own, in {folder}, and the worker does not have it. Call "
        f"cloudpickle.register_pickle_by_value({package}) before you submit, which sends it along, or start the worker "
        f"with --python-path DIR, where DIR contains {package}. The worker says: {message}"
    )


# BaseException's own: an exception's class has no say in it.
_set_cause: Callable[[BaseException, BaseException], None] = vars(BaseException)["__cause__"].__set__
_qualname_of: Callable[[type], str] = vars(type)["__qualname__"].__get__


def _original(error: pb.TaskError, load: Loader) -> Exception | None:
    """The exception object that the function raised, None where only a stand-in can be had."""
    for data in (error.foreign_pickle, error.exception_pickle):
        if not data:
            continue
        try:
            found = load(data)
        except Exception:  # its class is not here, or may not be loaded
            continue
        # What ends an interpreter (SystemExit and the like) is never raised by a reader, and
        # a RuntimeError that stands for another class says less than TaskFailed does.
        # Its type, not isinstance: that asks the object.
        cls = type(found)
        if issubclass(cls, Exception) and _is(cls, error.exception_type):
            original: Exception = found
            return original
    return None


def _is(cls: type, name: str) -> bool:
    """Whether a class has that name, which the worker may have given with its module."""
    return name.rpartition(".")[2] == _qualname_of(cls).rpartition(".")[2]
