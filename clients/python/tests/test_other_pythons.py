"""A worker of another Python: nothing that holds bytecode reaches an interpreter that cannot run it."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

import pytest
import treadle
from test_binary import BINARY, Up

pytest.importorskip("cloudpickle")

pytestmark = [
    pytest.mark.binary,
    pytest.mark.skipif(not BINARY.exists(), reason=f"{BINARY} is not built (go build -o bin/treadle ./cmd/treadle)"),
]

OURS = f"{sys.version_info[0]}.{sys.version_info[1]}"
VERSIONS = [f"3.{minor}" for minor in range(9, 15) if f"3.{minor}" != OURS]

SOURCE = """
class E(Exception):
    def __init__(self, n):
        super().__init__(n)
        self.n = n
    def __str__(self):
        return f"number {self.n}"

class Thing:
    def twice(self): return 42

def main(what):
    if what == "raise":
        raise E(4)
    return {"thing": Thing(), "class": Thing, "function": lambda x: x + 1, "plain": [1, 2]}[what]
"""


def find(version: str) -> Optional[str]:
    """An interpreter of that version that starts, or None: on PATH, or where pyenv keeps its own."""
    installed = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python"))
    for path in (shutil.which(f"python{version}"), *map(str, installed)):
        if path is None:
            continue
        asked = [path, "-c", "import sys; print(sys.executable, '%d.%d' % sys.version_info[:2])"]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=60)
        executable, _, told = done.stdout.strip().rpartition(" ")
        if told == version:
            return executable
    return None


@pytest.fixture(scope="module", params=VERSIONS)
def other(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The address of a fabric whose workers are of that version, and the version."""
    python = find(request.param)
    if python is None:
        warnings.warn(f"not tried: no Python {request.param} here", pytest.PytestWarning, stacklevel=1)
        pytest.skip(f"NOT TRIED: there is no Python {request.param} on PATH or in ~/.pyenv that starts")
    folder = tmp_path_factory.mktemp(f"python{request.param}")
    # With the picklers of this process, so that nothing is installed from anywhere.
    subprocess.run([python, "-m", "venv", "--without-pip", str(folder / "venv")], check=True, timeout=120)
    site = next((folder / "venv" / "lib").glob("python3*/site-packages"))
    for package in ("cloudpickle", "dill"):
        spec = importlib.util.find_spec(package)
        assert spec is not None and spec.origin is not None, f"{package} is one of the tests' pins"
        shutil.copytree(Path(spec.origin).parent, site / package, ignore=shutil.ignore_patterns("__pycache__", "tests"))
    up = Up(folder, str(folder / "venv" / "bin" / "python"))
    up.start()
    yield up.address, request.param
    up.end()


def check_refusal(error: Optional[BaseException], theirs: str) -> None:
    assert type(error) is treadle.SerializationError
    assert f"under Python {OURS}" in str(error) and f"worker's Python {theirs}" in str(error), str(error)


@pytest.mark.filterwarnings("default::pytest.PytestWarning")
def test_bytecode_stays_at_home(other: tuple[str, str]) -> None:
    address, theirs = other
    with treadle.Client(address) as client:
        futures = [
            client.submit(sorted, [3, 1, 2], key=lambda x: -x),
            client.submit(sorted, [3, 1, 2]),
            client.submit(lambda: [n for n in range(3)]),
        ]
        check_refusal(futures[0].exception(60), theirs)
        check_refusal(futures[2].exception(60), theirs)
        assert futures[1].result(60) == [1, 2, 3], "plain data and what both can import"
        for chunksize in (1, 2):
            with pytest.raises(treadle.SerializationError) as info:
                list(client.map(lambda x: x, range(4), chunksize=chunksize))
            check_refusal(info.value, theirs)
        assert list(client.map(abs, [-1, -2, -3], chunksize=2)) == [1, 2, 3]


@pytest.mark.filterwarnings("default::pytest.PytestWarning")
@pytest.mark.parametrize("what", ["thing", "class", "function"])
def test_bytecode_does_not_come_back(other: tuple[str, str], what: str) -> None:
    address, theirs = other
    with treadle.Client(address) as client:
        main = client.register_source("main", SOURCE)
        futures = [main.submit("plain"), main.submit(what), main.submit("plain")]
        error = futures[1].exception(60)
        assert type(error) is treadle.UnpicklingError
        assert f"under Python {theirs}" in str(error) and f"this Python {OURS}" in str(error), str(error)
        assert [futures[0].result(60), futures[2].result(60)] == [[1, 2], [1, 2]]


@pytest.mark.filterwarnings("default::pytest.PytestWarning")
def test_exceptions_come_back_as_text(other: tuple[str, str]) -> None:
    with treadle.Client(other[0]) as client:
        main = client.register_source("main", SOURCE)
        with pytest.raises(treadle.TaskFailed, match=r"E: number 4") as info:
            main("raise")
        assert type(info.value) is treadle.TaskFailed and "raise E(4)" in info.value.traceback
