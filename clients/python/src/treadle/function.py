"""A registered function."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Callable, Generic, Optional, TypeVar, overload

from ._typing import ParamSpec
from .future import TaskFuture
from .options import Options
from .records import when

if TYPE_CHECKING:
    from ._gen.treadle.v1 import fabric_pb2 as pb
    from .client import Client

T = TypeVar("T")
P = ParamSpec("P")


@dataclass(frozen=True, eq=False)
class Function(Generic[P, T]):
    """A registration, which never changes; calling it runs it on a worker and waits.

    Where this client made it, it has the name, doc and signature of what it runs.
    """

    id: str
    name: str
    runtime: str
    """python, or go/<handler name>."""
    queue: str
    form: str
    """pickle, source or none."""
    payload_sha256: str
    payload_size: int
    created_at: Optional[datetime]
    client: Client = field(repr=False)
    callable: Optional[Callable[P, T]] = field(default=None, repr=False)
    """What was registered, where this client did it."""
    created_by: str = ""
    """Id of the token that registered it; empty on servers that ask for none."""
    transient: bool = False
    """Made by submit or map of a callable: it goes when no task has named it for a retention."""

    def __post_init__(self) -> None:
        if self.callable is None:
            return
        for name in functools.WRAPPER_ASSIGNMENTS:
            try:
                value = getattr(self.callable, name)
            except Exception:  # few callables have all of them; annotations may not be there yet
                continue
            object.__setattr__(self, name, value)
        object.__setattr__(self, "__wrapped__", self.callable)

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Execute on a worker and wait for the result."""
        return self.client._submit(self, args, kwargs).result()  # type: ignore[no-any-return]

    @overload
    def submit(self, /, *args: Any, options: Options, **kwargs: Any) -> TaskFuture[T]: ...

    @overload
    def submit(self, /, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[T]: ...

    def submit(self, /, *args: Any, **kwargs: Any) -> TaskFuture[T]:
        """Execute on a worker; see Client.submit."""
        return self.client._submit(self, args, kwargs)

    def map(
        self,
        /,
        *iterables: Iterable[Any],
        chunksize: int = 1,
        buffersize: int = 1000,
        timeout: Optional[float] = None,
    ) -> Iterator[T]:
        """Execute for every item; see Client.map."""
        return self.client.map(self, *iterables, chunksize=chunksize, buffersize=buffersize, timeout=timeout)

    def options(self, **choices: Any) -> Function[P, T]:
        """The same function with other options for its tasks; see Options."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return Function(**{**fields, "client": self.client.options(**choices)})

    def __reduce__(self) -> Any:
        # On a worker the registration means nothing: it gets the plain function, so that functions
        # that call each other, or themselves, are called there and not submitted.
        if self.callable is None:
            raise TypeError(
                f"the registered function {self.name!r} belongs to this process, and what it runs is not known here; "
                "send the id, and a client made on the worker"
            )
        return operator.getitem, ((self.callable,), 0)


def function_of(m: pb.Function, client: Client, callable: Optional[Callable[P, T]] = None) -> Function[P, T]:
    """A registration from its message."""
    return Function(
        id=m.function_id,
        name=m.name,
        runtime=m.runtime,
        queue=m.queue,
        form=m.form,
        payload_sha256=m.payload_sha256,
        payload_size=m.payload_size,
        created_at=when(m, "created_at"),
        client=client,
        callable=callable,
        created_by=m.created_by,
        transient=m.transient,
    )
