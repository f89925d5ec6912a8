"""A function's word on its next attempt."""

from __future__ import annotations

from typing import Union


class NoRetry(Exception):
    """Raise it in a function to fail the task, whatever is left of ``function_retries``.

    For errors that no further attempt would mend. The caller sees the exception that is given;
    for a text it sees NoRetry itself, or the subclass that was raised, with that text.

    Args:
        error: the exception to report, or a text.
    """

    # The runner of a worker goes by this mark: it has a module of its own with these classes.
    __treadle_retry__ = "never"

    def __init__(self, error: Union[BaseException, str] = "") -> None:
        super().__init__(error)
        self.error = error

    def __str__(self) -> str:
        return str(self.error)


class RetryAfter(Exception):
    """Raise it in a function to have the next attempt wait, as long as a rate limit asks for.

    The wait takes the place of the delay that grows from half a second to 30 s. The attempt
    spends one of ``function_retries``: with none left the task fails. The caller then sees the
    exception that is given; for a text it sees RetryAfter itself, or the subclass that was raised.

    Args:
        seconds: how long to wait, cut to 0.001 and 86400, which are 1 ms and 24 hours.
        error: the exception to report, or a text.

    Raises:
        TypeError: seconds is no number, a text for example.
        ValueError: seconds is NaN.
    """

    __treadle_retry__ = "after"

    def __init__(self, seconds: float, error: Union[BaseException, str] = "") -> None:
        super().__init__(seconds, error)
        self.error = error
        try:
            self.seconds = float(min(max(seconds, 0.001), 86400.0))
        except TypeError:
            raise TypeError(f"RetryAfter: seconds is {seconds!r}: want a number, 0.001 to 86400") from None
        if self.seconds != self.seconds:  # the one number that differs from itself
            raise ValueError("RetryAfter: seconds is NaN: want a number, 0.001 to 86400")

    def __str__(self) -> str:
        return str(self.error)


# Pickles name the classes where every worker has them: in its small module of that name, too.
for _class in (NoRetry, RetryAfter):
    _class.__module__ = "treadle"


def reported(exc: BaseException) -> BaseException:
    """The exception that a caller sees: the innermost one that was given, or the word itself."""
    for _ in range(16):  # a ring of them ends here
        if not isinstance(exc, (NoRetry, RetryAfter)) or not isinstance(exc.error, BaseException):
            break
        exc = exc.error
    return exc
