"""A backend of joblib, and so of scikit-learn: its batches run on Treadle's workers.

    import joblib
    import treadle.joblib

    treadle.joblib.register()
    with joblib.parallel_config(backend="treadle", n_jobs=-1):
        search.fit(x, y)

Workers need joblib and the packages that the functions use.
"""

from __future__ import annotations

import operator
import threading
from typing import Any, Callable, Optional

from joblib._parallel_backends import AutoBatchingMixin, ParallelBackendBase, SequentialBackend
from joblib.parallel import register_parallel_backend

from .client import Client
from .future import TaskFuture

# Calls the batch on the worker. The batch itself is an argument: as a function it would be registered each time.
_call = operator.methodcaller("__call__")


class TreadleBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]  # joblib has no types
    """Sends each batch as one task."""

    supports_retrieve_callback = True
    supports_return_generator = True
    default_n_jobs = -1

    def __init__(self, client: Optional[Client] = None, **kwargs: Any) -> None:
        """client: whose tasks they are; it stays open. Without one, each Parallel makes a Client()."""
        super().__init__(**kwargs)
        self._given = client
        self._client: Optional[Client] = client
        self._lock = threading.Lock()
        self._open: set[TaskFuture[Any]] = set()

    def effective_n_jobs(self, n_jobs: Optional[int]) -> int:
        """How many batches are under way: n_jobs, and for negative ones what the workers' slots allow, as in joblib.

        None is the default, all slots, as in a Parallel that is told no number.
        """
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            n_jobs = self.default_n_jobs
        if n_jobs > 0:
            return n_jobs
        slots = sum(worker.slots for worker in self._connected().workers())
        # joblib does one job by itself, here. Workers that are not there yet, or have one slot, are no reason for that.
        return max(2, slots + 1 + n_jobs)

    def configure(self, n_jobs: int = 1, parallel: Any = None, **_: Any) -> int:
        """Called by a Parallel that begins."""
        self.parallel = parallel
        return self.effective_n_jobs(n_jobs)

    def submit(self, func: Callable[[], Any], callback: Optional[Callable[[Any], object]] = None) -> TaskFuture[Any]:
        """Send a batch."""
        future: TaskFuture[Any] = self._connected().submit(_call, func)
        with self._lock:
            self._open.add(future)
        future.add_done_callback(self._ended)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out: TaskFuture[Any]) -> Any:
        """The results of a batch that has ended."""
        return out.result()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Cancel what is under way."""
        with self._lock:
            left = list(self._open)
        self._connected()._backend.cancel_all(left)

    def terminate(self) -> None:
        """Called by a Parallel that ends."""
        client, self._client = self._client, self._given
        if client is not None and client is not self._given:
            client.close()

    def get_nested_backend(self) -> tuple[Any, Optional[int]]:
        """Inside of a task joblib runs one call after the other: its slot is one process."""
        return SequentialBackend(nesting_level=(self.nesting_level or 0) + 1), None

    def _connected(self) -> Client:
        if self._client is None:
            self._client = Client()
        return self._client

    def _ended(self, future: Any) -> None:
        with self._lock:
            self._open.discard(future)


def register(name: str = "treadle", make_default: bool = False) -> None:
    """Make the backend known to joblib under a name."""
    register_parallel_backend(name, TreadleBackend, make_default=make_default)
