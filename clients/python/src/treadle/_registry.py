"""What a client has registered, so that it does so once."""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections import OrderedDict
from collections.abc import MutableMapping
from typing import Any, Callable, Optional, TypeVar

from ._await import copied
from ._gen.treadle.v1 import fabric_pb2 as pb

K = TypeVar("K")
Ask = Callable[[], pb.Function]

# Registrations remembered by their bytes.
_MAX_CONTENTS = 1024


class Registration:
    """What the server answers to one registration; asked for once, by the first that needs it."""

    def __init__(self, ask: Ask, failed: Callable[[Registration], None]) -> None:
        self._lock = threading.RLock()  # __del__ of anything may run in between, and submit
        # Guarded by the lock; the first holds the function's bytes and goes when it was asked.
        self._ask: Optional[Ask] = ask
        self._failed = failed
        self._error: Optional[Exception] = None
        self.known: Optional[pb.Function] = None
        """The answer, None until it is there."""

    def get(self) -> pb.Function:
        """The answer; asks for it, or waits for whoever does."""
        with self._lock:
            if self.known is not None:
                return self.known
            if self._ask is None:
                # Those who waited for it hear the same, and do not try again one after the other.
                raise copied(self._error) if self._error else RuntimeError("the registration was interrupted")
            ask, self._ask = self._ask, None
            try:
                self.known = ask()
            except BaseException as exc:
                self._error = exc if isinstance(exc, Exception) else None
                self._failed(self)
                raise
            return self.known


class Registry:
    """Registrations by callable, by content and by name; any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # __del__ of anything may run in between, and submit
        # Guarded by the lock.
        self._callables: weakref.WeakKeyDictionary[Any, Registration] = weakref.WeakKeyDictionary()
        self._contents: OrderedDict[tuple[str, bytes, str, str], Registration] = OrderedDict()
        self._named: OrderedDict[str, Registration] = OrderedDict()

    def of_callable(self, fn: Callable[..., Any], ask: Ask) -> Registration:
        """The registration of a function that goes by reference: its name is all there is to send."""
        return self._once(self._callables, fn, ask)

    def of_content(self, form: str, content: bytes, name: str, queue: str, ask: Ask) -> Registration:
        """The registration of these bytes under that name in that queue."""
        key = (form, hashlib.sha256(content).digest(), name, queue)
        found = self._once(self._contents, key, ask)
        with self._lock:
            while len(self._contents) > _MAX_CONTENTS:
                self._contents.popitem(last=False)
        return found

    def has_content(self, form: str, content: bytes, name: str, queue: str) -> bool:
        """Whether these bytes were registered in that form."""
        with self._lock:
            return (form, hashlib.sha256(content).digest(), name, queue) in self._contents

    def of_name(self, function: str, look_up: Ask) -> Registration:
        """The registration that an id or name meant when this client first used it."""
        found = self._once(self._named, function, look_up)
        with self._lock:
            while len(self._named) > _MAX_CONTENTS:
                self._named.popitem(last=False)
        return found

    def forget(self, function: str) -> None:
        """Drop what led to that id or name: the server does not know it (any more)."""
        with self._lock:
            self._named.pop(function, None)
            for known in (self._callables, self._contents):
                _drop(known, lambda r: r.known is not None and r.known.function_id == function)

    def _once(self, known: MutableMapping[K, Registration], key: K, ask: Ask) -> Registration:
        with self._lock:
            found = known.get(key)
            if found is None:
                found = known[key] = Registration(ask, self._remove)
            return found

    def _remove(self, failed: Registration) -> None:
        """The next one who needs it tries anew."""
        with self._lock:
            for known in (self._callables, self._contents, self._named):
                _drop(known, lambda r: r is failed)


def _drop(known: MutableMapping[Any, Registration], is_meant: Callable[[Registration], bool]) -> None:
    for key, registration in list(known.items()):
        if is_meant(registration):
            known.pop(key, None)
