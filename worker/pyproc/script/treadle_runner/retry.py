"""What a function says of its next attempt by raising treadle.NoRetry or treadle.RetryAfter.

Looked at after an exception only. The two classes exist twice, in the client package and in the
small module that comes with the runner, so they are known by a mark and not by what they are.
"""

from __future__ import annotations

import struct

# Nanoseconds that the next attempt waits, or _NEVER; see protocol.go.
_WORD = struct.Struct("<q")
_NEVER = -1
_LEAST, _MOST = 1_000_000, 86_400_000_000_000
# One word may be given to another; a ring of them ends here.
_DEPTH = 16


def word_of(exc: BaseException) -> tuple[BaseException, bytes]:
    """The exception to report, and the word for the wire: empty where there is none.

    The outermost word counts, the innermost exception is reported.
    """
    word = b""
    try:
        for _ in range(_DEPTH):
            kind = getattr(type(exc), "__treadle_retry__", None)
            if kind != "never" and kind != "after":
                break
            word = word or _WORD.pack(_NEVER if kind == "never" else _wait(exc))
            inner = getattr(exc, "error", None)
            if not isinstance(inner, BaseException):
                break
            outer, exc = exc, inner
            _hand_down(outer, inner)
    except Exception:  # a class may run code for each attribute
        pass
    return exc, word


def _wait(exc: BaseException) -> int:
    try:
        seconds = float(exc.seconds)  # type: ignore[attr-defined]
        return int(min(max(seconds * 1e9, _LEAST), _MOST))
    except (AttributeError, TypeError, ValueError, OverflowError):
        # A subclass that does not call the __init__ of its base, or wrote something else there.
        return _LEAST


def _hand_down(outer: BaseException, inner: BaseException) -> None:
    """Give an exception that was not raised itself the traceback and the cause of the one around it."""
    if inner.__traceback__ is not None:
        return
    BaseException.with_traceback(inner, outer.__traceback__)
    if inner.__cause__ is not None or inner.__context__ is not None:
        return
    if outer.__cause__ is not inner:
        inner.__cause__ = outer.__cause__
    if outer.__context__ is not inner:
        inner.__context__ = outer.__context__
    inner.__suppress_context__ = outer.__suppress_context__
