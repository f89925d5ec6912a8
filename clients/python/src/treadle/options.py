"""The choices of one task."""

from __future__ import annotations

import dataclasses
import reprlib
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, Callable, Optional, Union

from ._gen.treadle.v1 import fabric_pb2 as pb
from .errors import InvalidRequest


@dataclass(frozen=True)
class Options:
    """The choices of one task; everything is optional, and None means the default."""

    priority: Optional[int] = None
    """0 to 9, higher first. Default 5."""
    timeout: Union[float, timedelta, None] = None
    """Limits one attempt's run time, in seconds. Default: the server's, which is none unless set."""
    deadline: Union[datetime, timedelta, None] = None
    """When the task has to be finished, waiting included; a timedelta counts from submit."""
    max_retries: Optional[int] = None
    """How many lost workers the task survives. Default: the server's, which is 3 unless set."""
    function_retries: Optional[int] = None
    """How often a raised exception is tried again. Default 0."""
    memory_limit: Optional[int] = None
    """Memory of one attempt in bytes. Default: the worker's own limit, if it has one."""

    def replace(self, **changes: Any) -> Options:
        """These options with some of them changed; raises TypeError for an unknown name."""
        return dataclasses.replace(self, **changes)

    def over(self, defaults: Options) -> Options:
        """These options, and those of defaults where they are None."""
        mine = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return dataclasses.replace(defaults, **{k: v for k, v in mine.items() if v is not None})

    def to_proto(self) -> Optional[pb.ExecuteOptions]:
        """The options as the API has them, None when all are defaults."""
        if self == _DEFAULTS:
            return None
        out = pb.ExecuteOptions()
        for name, (set_, want) in _FIELDS.items():
            value = getattr(self, name)
            if value is None:
                continue
            try:
                set_(out, value)
            except (TypeError, ValueError, OverflowError, AttributeError) as exc:
                raise InvalidRequest(f"options.{name} = {reprlib.repr(value)}: want {want}") from exc
        return out


def _set_timeout(out: pb.ExecuteOptions, value: Any) -> None:
    out.timeout.FromTimedelta(_seconds(value))


def _set_deadline(out: pb.ExecuteOptions, value: Any) -> None:
    out.deadline.FromDatetime(_moment(value))


def _set_number(name: str) -> Callable[[pb.ExecuteOptions, Any], None]:
    return lambda out, value: setattr(out, name, value)


_FIELDS: dict[str, tuple[Callable[[pb.ExecuteOptions, Any], None], str]] = {
    "priority": (_set_number("priority"), "an integer from 0 to 9"),
    "timeout": (_set_timeout, "seconds as a number, or a timedelta"),
    "deadline": (_set_deadline, "a datetime, or a timedelta from now"),
    "max_retries": (_set_number("max_retries"), "an integer from 0"),
    "function_retries": (_set_number("function_retries"), "an integer from 0"),
    "memory_limit": (_set_number("memory_limit"), "bytes as an integer"),
}
_DEFAULTS = Options()


def _seconds(value: Union[float, timedelta]) -> timedelta:
    return value if isinstance(value, timedelta) else timedelta(seconds=value)


def _moment(value: Union[datetime, timedelta]) -> datetime:
    """A point in time as UTC; a datetime without a zone is local time, as everywhere in Python."""
    if isinstance(value, timedelta):
        return datetime.now(timezone.utc) + value
    return value.astimezone(timezone.utc)
