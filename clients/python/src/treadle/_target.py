"""What a submission is for, from what the caller named to what the request says."""

from __future__ import annotations

import json
from typing import Any, Callable, Optional

from . import _pickling
from ._gen.treadle.v1 import fabric_pb2 as pb
from ._registry import Registration
from ._submit import Call
from .errors import PicklingError

Finder = Callable[[], Registration]


class Target:
    """The function of one submission, or of all of one map."""

    __slots__ = ("_find", "_made", "_size", "id", "label", "runtime")

    def __init__(
        self,
        label: str,
        runtime: str,
        id: str,
        made: Optional[Registration] = None,
        find: Optional[Finder] = None,
        size: int = 0,
    ) -> None:
        """runtime and id are "" where the server has to be asked, by made. find makes a registration
        that the server has forgotten anew. size is how many bytes that will send."""
        self.label = label
        self.runtime = runtime
        self.id = id
        self._made = made
        self._find = find
        self._size = size

    def call(self, request: pb.ExecuteRequest, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """The submission of a request; what the server has to be asked for first is left to its sender."""
        made, find = self._made, self._find
        renew = None if find is None else lambda: _name(request, find())
        if made is None or (self.id and self.runtime):
            return Call(request, self.label, renew=renew)
        if self.runtime:
            size, self._size = self._size, 0
            return Call(request, self.label, lambda: _name(request, made), renew, size)
        # By name, and the first time: which form the arguments need is not known yet.
        payload = _pickling.dump_args(args, kwargs)
        texts: Any
        try:
            texts = as_json(list(args)), as_json(kwargs)
        except PicklingError as exc:
            texts = exc

        def fill() -> None:
            if made.get().runtime == "python":
                request.payload = payload
            elif isinstance(texts, PicklingError):
                raise texts
            else:
                request.args, request.kwargs = texts

        return Call(request, self.label, fill, renew, len(payload))


def _name(request: pb.ExecuteRequest, made: Registration) -> None:
    request.function = made.get().function_id


def as_json(value: Any) -> bytes:
    """A value as JSON; raises PicklingError."""
    try:
        return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as exc:
        raise PicklingError(f"the function is not Python, so its arguments travel as JSON: {exc}") from exc
