"""Fixtures: fabrics that tests share or have for themselves."""

import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
from harness.fabric import LAYOUTS, MODES, Fabric, Layout, Mode, Split, Up, start
from harness.process import BINARY
from harness.redis import Redis
from harness.root import Root
from harness.v1 import V1
from importable_zoo import nap

LOG_TAIL = 6000
FABRICS = pytest.StashKey[list[Fabric]]()


def pytest_sessionstart() -> None:
    # Processes inherit a signal that is ignored, as SIGHUP under nohup, and do not inherit a handler.
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda _number, _frame: None)
    if not BINARY.is_file():
        raise pytest.UsageError(f"there is no {BINARY}: build it (make build), or set TREADLE_BIN")


def show_on_failure(request: pytest.FixtureRequest, fabric: Fabric) -> None:
    """Adds the logs of a fabric to the report of the test that uses it, should it fail."""
    request.node.stash.setdefault(FABRICS, []).append(fabric)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        for fabric in item.stash.get(FABRICS, []):
            for process in fabric.processes:
                report.sections.append((f"{process.name}: {' '.join(process.args)}", process.log()[-LOG_TAIL:]))
    return report


def warm(fabric: Fabric, slots: int) -> None:
    """Has every runner of the pool work once, side by side."""
    tasks = [fabric.v1.submit(nap, 0.2) for _ in range(slots)]
    for task_id in tasks:
        fabric.v1.value(task_id)


SLOTS = 4


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests run in the embedded layout, and in those that the mark `layouts` names."""
    if "layout" in metafunc.fixturenames:
        mark = metafunc.definition.get_closest_marker("layouts")
        layouts = mark.args if mark else ("embedded",)
        assert set(layouts) <= set(LAYOUTS), layouts
        metafunc.parametrize("layout", layouts, scope="session")


@pytest.fixture(scope="session")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """The Redis that fabrics share, each with a namespace of its own."""
    server = Redis(tmp_path_factory.mktemp("redis"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def new_store(request: pytest.FixtureRequest) -> Callable[[Layout], str]:
    """Makes stores for fabrics: URLs, empty for the embedded one. Redis is started when it is needed."""

    def make(layout: Layout) -> str:
        if layout == "embedded":
            return ""
        server: Redis = request.getfixturevalue("redis")
        return server.url()

    return make


@pytest.fixture(scope="session", params=MODES)
def mode(request: pytest.FixtureRequest) -> Mode:
    value: Mode = request.param
    return value


@pytest.fixture(scope="session")
def running(
    mode: Mode, layout: Layout, new_store: Callable[[Layout], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fabric]:
    """A fabric with four warm slots, one for each mode and layout, that tests share and leave as they found it."""
    folder = tmp_path_factory.mktemp(f"{layout}-{mode}")
    fabric = start(folder, mode, slots=SLOTS, layout=layout, store=new_store(layout))
    try:
        warm(fabric, SLOTS)
        yield fabric
    finally:
        fabric.close()


@pytest.fixture
def shared(request: pytest.FixtureRequest, running: Fabric) -> Fabric:
    """The shared fabric, its logs shown when the test fails."""
    show_on_failure(request, running)
    return running


@pytest.fixture
def root(shared: Fabric) -> Root:
    return shared.root


@pytest.fixture
def v1(shared: Fabric) -> V1:
    return shared.v1


class Own:
    """Makes fabrics for one test, in its layout."""

    def __init__(self, add: Callable[[Fabric], None], folder: Path, layout: Layout, store: Callable[[], str]) -> None:
        self._add = add
        self._folder = folder
        self._layout: Layout = layout
        self._store = store
        self._made = 0

    def _next(self) -> Path:
        self._made += 1
        return self._folder / f"fabric-{self._made}"

    def up(self, *args: str, **kwargs: Any) -> Fabric:
        """`up` with these flags and, unless slots are given, no pool."""
        if self._layout == "split":
            fabric: Fabric = Split(self._next(), *args, store=self._store(), **kwargs)
        else:
            fabric = Up(self._next(), *args, store=self._store(), **kwargs)
        self._add(fabric)
        return fabric

    def split(self, store: str, *args: str, **kwargs: Any) -> Split:
        """A server and two dispatchers on that store."""
        fabric = Split(self._next(), *args, store=store, **kwargs)
        self._add(fabric)
        return fabric

    def start(self, mode: Mode, *args: str, slots: int = 4) -> Fabric:
        """A fabric with slots for that mode."""
        fabric = start(self._next(), mode, *args, slots=slots, layout=self._layout, store=self._store())
        self._add(fabric)
        return fabric


@pytest.fixture
def own(
    request: pytest.FixtureRequest, tmp_path: Path, layout: Layout, new_store: Callable[[Layout], str]
) -> Iterator[Own]:
    """Makes fabrics that only this test uses."""
    made: list[Fabric] = []

    def add(fabric: Fabric) -> None:
        made.append(fabric)
        show_on_failure(request, fabric)

    yield Own(add, tmp_path, layout, lambda: new_store(layout))
    for fabric in made:
        fabric.close()
