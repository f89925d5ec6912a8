"""Arguments in, results out."""

from __future__ import annotations

import json
import pickle
import sys
from typing import Any, Callable

from . import failures, functions, pickling, wire

REPR_LIMIT = 4096
# Servers read JSON that nests no deeper than this.
MAX_DEPTH = 512

# Bound at start, see functions.pickle_loads.
_pickle_loads, _pickle_dumps = pickle.loads, pickle.dumps
_json_decode = json.JSONDecoder().decode
_json_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
# Python refuses to print or to read integers of more than 4,300 digits; JSON has no such limit.
_set_digits: Callable[[int], None] | None = getattr(sys, "set_int_max_str_digits", None)
_get_digits: Callable[[], int] | None = getattr(sys, "get_int_max_str_digits", None)

_SCALARS = {str, int, float, bool, type(None)}
_TEXT = {str}
_NO_KEYWORDS: dict[str, Any] = {}


class TooLargeError(Exception):
    """A result over the limit of its attempt."""


def decode_args(data: Any, as_json: bool) -> tuple[Any, Any]:
    """Return the positional and the keyword arguments of a call."""
    if not len(data):
        return (), _NO_KEYWORDS
    if as_json:
        return _decode_json(data)
    if len(data) >= pickling.SHORTEST_MARK:
        functions.check_arguments(data)
        pickling.load_for(data)
    try:
        value = _pickle_loads(data)
    except MemoryError:
        raise
    except BaseException as first:
        value = _unpickle_again(data, first)
    kind = type(value)
    if kind is tuple and len(value) == 2:
        args, kwargs = value
        if type(kwargs) is dict and type(args) in (tuple, list):
            return args, kwargs
    if kind is tuple or kind is list:
        return value, _NO_KEYWORDS
    if kind is dict:
        return (), value
    return (value,), _NO_KEYWORDS


def _unpickle_again(data: Any, first: BaseException) -> Any:
    """dill knows references that plain pickle does not; a failure is told in the words of the first try."""
    try:
        return functions.unpickle(data)
    except ImportError as exc:
        raise functions.UnreadableError(functions.missing_module("an argument", exc), exc) from None
    except MemoryError:
        raise
    except BaseException:
        raise functions.UnreadableError(
            f"the arguments cannot be unpickled: {failures.one_line(first)}", first
        ) from None


def _decode_json(data: Any) -> tuple[Any, Any]:
    try:
        text = str(data, "utf-8")
        try:
            value = _json_decode(text)
        except json.JSONDecodeError:
            raise
        except ValueError:
            value = _any_digits(lambda: _json_decode(text))
    except (ValueError, RecursionError) as exc:
        raise functions.UnreadableError(f"the arguments are not JSON: {failures.one_line(exc)}", exc) from None
    if not isinstance(value, dict) or not set(value) <= {"args", "kwargs"}:
        raise functions.UnreadableError('JSON arguments must be an object of the form {"args": [...], "kwargs": {...}}')
    args = value.get("args")
    kwargs = value.get("kwargs")
    args = [] if args is None else args
    kwargs = {} if kwargs is None else kwargs
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise functions.UnreadableError('in JSON arguments "args" must be an array and "kwargs" an object')
    return args, kwargs


def _any_digits(work: Callable[[], Any]) -> Any:
    """Work with integers of any length."""
    if _set_digits is None or _get_digits is None:
        return work()
    before = _get_digits()
    _set_digits(0)
    try:
        return work()
    finally:
        _set_digits(before)


def encode_result(value: Any, as_json: bool, limit: int) -> wire.Reply:
    """Encode what a function returned; raises functions.UnreadableError or TooLargeError."""
    if as_json:
        data = _to_json(value)
        if data is not None:
            _check(data, limit)
            return wire.Reply(wire.END_SUCCEEDED, wire.ENCODING_JSON, data)
        data = _dump(value)
        _check(data, limit)
        return wire.Reply(wire.END_SUCCEEDED, wire.ENCODING_PICKLE, data, _repr(value))
    data = _pickle_dumps(value, pickling.PROTOCOL) if type(value) in _SCALARS else _dump(value)
    if len(data) > limit:
        _check(data, limit)
    return wire.Reply(wire.END_SUCCEEDED, wire.ENCODING_PICKLE, data)


def _check(data: bytes, limit: int) -> None:
    if len(data) > limit:
        raise TooLargeError(f"the result has {len(data)} bytes; the limit is {limit} bytes")


def _to_json(value: Any) -> bytes | None:
    """The value as JSON, or None where JSON would refuse or silently change it."""
    shared = False
    try:
        if type(value) not in _SCALARS:
            depth, shared = _nesting(value)
            if depth is None or depth > MAX_DEPTH:
                return None
        try:
            text: str = _json_encode(value)
        except ValueError:  # a long integer, or one of those that there is no JSON for
            text = _any_digits(lambda: _json_encode(value))
        if shared and _is_deeper(value, MAX_DEPTH):
            return None
        # A lone surrogate is no character: the strict encoder refuses it.
        return text.encode("utf-8")
    except (TypeError, ValueError, RecursionError):
        return None


def _nesting(value: Any) -> tuple[int | None, bool]:
    """How deep a value nests, and whether it holds something twice: then it may nest deeper.

    The depth is None where a mapping has keys that are no text: JSON would turn them into strings.
    """
    seen: set[int] = set()
    depth, shared = 0, False
    level = [value]
    while level:
        depth += 1
        below: list[Any] = []
        for item in level:
            if id(item) in seen:
                shared = True
                continue
            if isinstance(item, dict):
                if not set(map(type, item)) <= _TEXT and not all(isinstance(key, str) for key in item):
                    return None, shared
                children: Any = item.values()
            elif isinstance(item, (list, tuple)):
                children = item
            else:
                continue
            seen.add(id(item))
            # The set of types is made at C speed; long flat lists are the usual large value.
            if set(map(type, children)) <= _SCALARS:
                continue
            below.extend(child for child in children if isinstance(child, (dict, list, tuple)))
        level = below
    return depth, shared


def _is_deeper(value: Any, limit: int) -> bool:
    """Whether a value without cycles nests deeper, by every way through what it holds twice."""
    level = [value]
    for _ in range(limit):
        below: dict[int, Any] = {}
        for item in level:
            children = item.values() if isinstance(item, dict) else item
            below.update((id(child), child) for child in children if isinstance(child, (dict, list, tuple)))
        if not below:
            return False
        level = list(below.values())
    return True


def _repr(value: Any) -> bytes:
    try:
        text = repr(value)
    except BaseException:  # a broken __repr__ must not change the outcome
        text = f"<{functions.type_name(value)} object>"
    return failures.clip(text, REPR_LIMIT)


def _dump(value: Any) -> bytes:
    try:
        return pickling.dump(value)
    except MemoryError:
        raise
    except BaseException as exc:
        what = f"the result, an object of type {functions.type_name(value)!r},"
        raise functions.UnreadableError(f"{what} cannot be pickled: {failures.one_line(exc)}", exc) from None
