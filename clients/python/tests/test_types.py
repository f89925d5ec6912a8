"""What type checkers see; mypy and pyright read these functions, and they run as well."""

from __future__ import annotations

import asyncio
import inspect
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import treadle
from treadle.testing import LocalClient


def length(text: str) -> int:
    """The length of a text."""
    return len(text)


def test_types() -> None:
    client: treadle.Client = LocalClient()
    future: treadle.TaskFuture[int] = client.submit(length, "ab")
    value: int = future.result()
    urgent_once: treadle.TaskFuture[int] = client.submit(length, "ab", options=treadle.Options(priority=9))
    function: treadle.Function[[str], int] = client.register(length)
    again: int = function("abc")
    lengths: Iterator[int] = client.map(length, ["a", "ab"])
    urgent: treadle.Function[[str], int] = function.options(priority=9)
    total: int = sum(urgent.map(["a"]))
    assert (value, again, list(lengths), total) == (2, 3, [1, 2], 1)
    assert urgent_once.result() == function.submit("ab", options=treadle.Options()).result() == 2

    async def main() -> int:
        found: int = await client.submit(length, "abcd")
        return found

    assert asyncio.run(main()) == 4


def test_decorators() -> None:
    client: treadle.Client = LocalClient()

    @client.register
    def plain(x: int, y: int = 1) -> int:
        """Adds."""
        return x + y

    @client.register(name="sum", queue="gpu")
    def named(x: int, *, y: int = 1) -> int:
        return x + y

    first: int = plain(1, y=2)
    second: treadle.TaskFuture[int] = named.submit(1, y=3)
    assert (first, second.result(), named.name, named.queue) == (3, 4, "sum", "gpu")
    assert (plain.__name__, plain.__doc__) == ("plain", "Adds.")  # type: ignore[attr-defined,unused-ignore]
    assert str(inspect.signature(plain)) == "(x: 'int', y: 'int' = 1) -> 'int'"
    assert inspect.unwrap(plain)(1, 2) == 3


def test_every_name_may_be_an_argument() -> None:
    client = LocalClient()

    def names_of(**names: int) -> list[str]:
        return sorted(names)

    function = client.register(names_of)
    for name in ("self", "fn", "args", "kwargs", "client", "function"):
        assert client.submit(names_of, **{name: 1}).result() == [name]
        assert function(**{name: 1}) == function.submit(**{name: 1}).result() == [name]


WRONG = """
import treadle

def double(x: int) -> int:
    return 2 * x

def main(client: treadle.Client) -> None:
    client.submit(double, "wrong")
    client.submit(double, 1, 2)
    client.submit(double)
    double_there = client.register(double)
    double_there("wrong")
    double_there.submit(y=1)
    text: str = double_there(1)
"""


def test_wrong_arguments_are_seen(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "wrong.py").write_text(WRONG)
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--cache-dir",
        str(tmp_path / "cache"),
        str(tmp_path / "wrong.py"),
    ]
    source = str(Path(treadle.__file__).parent.parent)
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path, env={"MYPYPATH": source})
    lines = {int(line.split(":")[1]) for line in done.stdout.splitlines() if ": error:" in line}
    assert lines == {8, 9, 10, 12, 13, 14}, done.stdout + done.stderr


def pyright(folder: Path) -> tuple[set[int], str]:
    """The lines of a program that pyright refuses in strict mode, and all that it says."""
    program = shutil.which("pyright")
    if program is None:
        # tools/test-python.sh has it, and fails without.
        pytest.skip("NOT TRIED: pyright is not on PATH (tools/install.sh node)")
    source = str(Path(treadle.__file__).parent.parent)
    config = {"include": ["program.py"], "extraPaths": [source], "typeCheckingMode": "strict", "pythonVersion": "3.10"}
    (folder / "pyrightconfig.json").write_text(json.dumps(config))
    command = [program, "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=folder)
    told = json.loads(done.stdout)
    assert told["summary"]["filesAnalyzed"] == 1, done.stdout
    return {found["range"]["start"]["line"] + 1 for found in told["generalDiagnostics"]}, done.stdout


def test_pyright_agrees(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(Path(__file__).read_text())
    lines, told = pyright(tmp_path)
    assert lines == set(), told


def test_pyright_sees_wrong_arguments(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(WRONG)
    lines, told = pyright(tmp_path)
    assert lines == {8, 9, 10, 12, 13, 14}, told
