"""Fabrics: the processes that one deployment consists of."""

import shutil
import sys
from pathlib import Path
from typing import Literal, Optional

from harness import procfs
from harness.process import Process
from harness.root import Root
from harness.v1 import V1, Json
from harness.wait import until

Mode = Literal["local", "push", "pull"]
MODES: tuple[Mode, ...] = ("local", "push", "pull")

# Where the parts are and what keeps their state: `up` on its embedded store, `up` on a
# Redis, or a server and two dispatchers on a Redis.
Layout = Literal["embedded", "redis", "split"]
LAYOUTS: tuple[Layout, ...] = ("embedded", "redis", "split")
IMPORTABLE = Path(__file__).resolve().parents[1] / "importable"
CLIENT = Path(__file__).resolve().parents[2] / "clients" / "python" / "src"

# Runners get the interpreter that runs the tests, as it has dill, cloudpickle and gRPC, and the
# client, with which functions submit tasks themselves.
PYTHON = ["--python", sys.executable, "--python-path", str(IMPORTABLE), "--python-path", str(CLIENT)]

# Signs of death are noticed sooner than by default, where a test waits for them.
QUICK = ["--lease", "2s", "--heartbeat", "200ms", "--reconnect-grace", "500ms"]

# Flags that one of the two roles does not have; the others are everybody's.
SERVER_FLAGS = {"--rest-compat", "--rest-created-status", "--retention"}
DISPATCHER_FLAGS = {"--lease", "--heartbeat", "--reconnect-grace", "--drain-timeout"}


class Node:
    """A server or dispatcher process, which comes back at the addresses that it had."""

    def __init__(self, name: str, args: list[str], folder: Path, cwd: Optional[Path] = None) -> None:
        self.name = name
        self._args = args
        self._folder = folder
        self._cwd = cwd
        self.grpc_addr = "127.0.0.1:0"
        # Dispatchers have REST only where they are told.
        self.http_addr = "" if args[0] == "dispatcher" else "127.0.0.1:0"
        self.launch()

    def launch(self) -> Process:
        """Starts a process and waits for nothing."""
        args = [*self._args, "--json", "--grpc-addr", self.grpc_addr, "--http-addr", self.http_addr]
        self.process = Process(self.name, args, self._folder, self._cwd)
        return self.process

    def ready(self) -> None:
        """Waits until the process serves."""
        try:
            ready = self.process.ready()
            assert ready["pid"] == self.process.pid, ready
        except BaseException:
            self.process.stop()
            raise
        self.grpc_addr, self.http_addr = ready["grpc_addr"], ready["http_addr"]

    def restart(self) -> None:
        """Starts a new process where the old one was, which must have ended."""
        assert not self.process.running
        self.launch()
        self.ready()


class Fabric:
    """One deployment: a process that has the API, what else serves, and the workers that were started beside it."""

    # The process that has the API; set by the kinds of fabrics.
    _front: Node

    def __init__(self, folder: Path, slots: int = 0) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.workers: list[Process] = []
        self.dispatchers: list[Node] = []
        # The pool in the process that has the API.
        self._slots = slots
        self._started = 0

    @property
    def _own(self) -> list[str]:
        return ["--data-dir", str(self.data)]

    def _serve(self) -> None:
        self._front.ready()
        try:
            self.root = Root(f"http://{self.http_addr}/")
            self.v1 = V1(f"http://{self.http_addr}")
            if self._slots:
                self._attached(self.up, self._slots)
        except BaseException:
            self.up.stop()
            raise

    @property
    def up(self) -> Process:
        """The process that has the API."""
        return self._front.process

    @property
    def grpc_addr(self) -> str:
        return self._front.grpc_addr

    @property
    def http_addr(self) -> str:
        return self._front.http_addr

    def again(self) -> Process:
        """Starts a process as `up` was, and waits for nothing."""
        return self._front.launch()

    def restart(self) -> None:
        """Starts a new `up` where the old one was, which must have ended: same folder, same ports."""
        assert not self.up.running
        self.again()
        self._serve()

    @property
    def dispatcher_addrs(self) -> list[str]:
        """Where workers dial."""
        return [d.grpc_addr for d in self.dispatchers] or [self.grpc_addr]

    def worker(
        self,
        mode: str,
        *args: str,
        slots: int = 1,
        cwd: Optional[Path] = None,
        dispatcher: str = "",
        wait: bool = True,
    ) -> Process:
        """Starts a worker and, unless told otherwise, waits until it is attached.

        Where there are several dispatchers it knows them all, and they take turns in being
        the first one of a worker.
        """
        addrs = self.dispatcher_addrs
        first = self._started % len(addrs)
        self._started += 1
        dispatcher = dispatcher or ",".join(addrs[first:] + addrs[:first])
        flags = ["worker", "--mode", mode, "--dispatcher", dispatcher, "--slots", str(slots)]
        flags += [*self._own, *PYTHON, *args]
        worker = Process(f"worker-{self._started}", flags, self.folder, cwd)
        self.workers.append(worker)
        if wait:
            self._attached(worker, slots)
        return worker

    def _attached(self, process: Process, slots: int) -> None:
        def active() -> Optional[Json]:
            assert process.running, f"{process.name} ended with {process.exit_code()}:\n{process.log()}"
            return self.worker_record(process)

        record = until(active, f"{process.name} among the workers")
        assert record["slots"] == slots, record

    def worker_record(self, process: Process) -> Optional[Json]:
        """What the fabric says about a worker that is attached and active."""
        for w in self.v1.get("/v1/workers")["workers"]:
            if w["pid"] == process.pid and w["state"] == "active":
                assert isinstance(w, dict)
                return w
        return None

    @property
    def processes(self) -> list[Process]:
        return [self.up, *(d.process for d in self.dispatchers), *self.workers]

    def close(self) -> None:
        """Kills everything and removes what it stored; a process that outlives this is an error."""
        for process in self.processes:
            process.stop()
        until(
            lambda: not procfs.mentioning(str(self.folder)),
            f"the end of all runners of {self.folder}: {procfs.mentioning(str(self.folder))}",
            timeout=5,
        )
        shutil.rmtree(self.data, ignore_errors=True)


class Up(Fabric):
    """`treadle up` on its embedded store or a shared one."""

    def __init__(self, folder: Path, *args: str, slots: int = 0, cwd: Optional[Path] = None, store: str = "") -> None:
        super().__init__(folder, slots)
        if store:
            args = ("--store", store, *args)
        self._front = Node("up", ["up", *self._own, "--slots", str(slots), *PYTHON, *args], folder, cwd)
        self._serve()


class Split(Fabric):
    """`treadle server` and two `treadle dispatcher` on a store that they share, and workers.

    pools are the slots of dispatchers that run a pool themselves (--mode local) and need no
    workers. Without them one dispatcher takes any worker, and the other one those of mode.
    """

    def __init__(
        self,
        folder: Path,
        *args: str,
        store: str,
        mode: Mode = "push",
        pools: tuple[int, ...] = (),
        cwd: Optional[Path] = None,
    ) -> None:
        super().__init__(folder)
        shared = ["--store", store, *self._own]
        self._front = Node("server", ["server", *shared, *without(args, DISPATCHER_FLAGS)], folder, cwd)
        flags = [*shared, *without(args, SERVER_FLAGS)]
        roles = [["--mode", "local", "--slots", str(slots), *PYTHON] for slots in pools]
        roles += [["--mode", "any"], ["--mode", "any" if mode == "local" else mode]][len(pools) :]
        try:
            for n, role in enumerate(roles, 1):
                self.dispatchers.append(Node(f"dispatcher-{n}", ["dispatcher", *flags, *role], folder, cwd))
            self._serve()
            for node in self.dispatchers:
                node.ready()
            for node, slots in zip(self.dispatchers, pools):
                self._attached(node.process, slots)
        except BaseException:
            self.close()
            raise


def without(args: tuple[str, ...], flags: set[str]) -> list[str]:
    """Command-line arguments, all of the form --flag value, less those flags."""
    assert len(args) % 2 == 0, args
    return [text for n in range(0, len(args), 2) if args[n] not in flags for text in args[n : n + 2]]


def start(folder: Path, mode: Mode, *args: str, slots: int = 4, layout: Layout = "embedded", store: str = "") -> Fabric:
    """A fabric with slots in one place, the pool of `up` or one worker of the given mode.

    In the split layout there are two of them with half of the slots each, where those
    suffice: pools in both dispatchers, or workers of which each dispatcher gets one.
    """
    assert bool(store) == (layout != "embedded")
    parts = [slots]
    if layout == "split" and slots > 1:
        parts = [slots - slots // 2, slots // 2]
    if layout == "split":
        fabric: Fabric = Split(folder, *args, store=store, mode=mode, pools=tuple(parts) if mode == "local" else ())
    else:
        fabric = Up(folder, *args, slots=slots if mode == "local" else 0, store=store)
    if mode == "local":
        return fabric
    try:
        for part in parts:
            fabric.worker(mode, slots=part)
    except BaseException:
        fabric.close()
        raise
    return fabric
