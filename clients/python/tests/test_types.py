"""What type checkers see; mypy reads these functions, and they run as well."""

from __future__ import annotations

from collections.abc import Iterator

import treadle
from treadle.testing import LocalClient


def length(text: str) -> int:
    return len(text)


def test_types() -> None:
    client: treadle.Client = LocalClient()
    future: treadle.TaskFuture[int] = client.submit(length, "ab")
    value: int = future.result()
    function: treadle.Function[int] = client.register(length)
    again: int = function("abc")
    lengths: Iterator[int] = client.map(length, ["a", "ab"])
    urgent: treadle.Function[int] = function.options(priority=9)
    total: int = sum(urgent.map(["a"]))
    assert (value, again, list(lengths), total) == (2, 3, [1, 2], 1)
