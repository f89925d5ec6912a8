"""What a client has registered, so that it does so once."""

from __future__ import annotations

import concurrent.futures
import hashlib
import threading
import types
import weakref
from collections import OrderedDict
from collections.abc import MutableMapping
from typing import Any, Callable, TypeVar

from ._gen.treadle.v1 import fabric_pb2 as pb

K = TypeVar("K")
_Answer = concurrent.futures.Future[pb.Function]

# Registrations remembered by their bytes.
_MAX_CONTENTS = 1024


class Registry:
    """Registrations by callable, by content and by name; any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Guarded by the lock. An answer is there before it has arrived: who asks for the same
        # meanwhile waits for it.
        self._callables: weakref.WeakKeyDictionary[Any, _Answer] = weakref.WeakKeyDictionary()
        self._contents: OrderedDict[tuple[str, bytes, str, str], _Answer] = OrderedDict()
        self._named: OrderedDict[str, _Answer] = OrderedDict()

    def of_callable(self, fn: Callable[..., Any], register: Callable[[], pb.Function]) -> pb.Function:
        """The registration of a callable under its own name.

        Functions are told apart by identity. Other callables may change, so that their bytes decide.
        """
        if not isinstance(fn, (types.FunctionType, types.BuiltinFunctionType)):
            return register()
        return self._once(self._callables, fn, register)

    def of_content(
        self, form: str, content: bytes, name: str, queue: str, register: Callable[[], pb.Function]
    ) -> pb.Function:
        """The registration of these bytes under that name in that queue."""
        key = (form, hashlib.sha256(content).digest(), name, queue)
        answer = self._once(self._contents, key, register)
        with self._lock:
            while len(self._contents) > _MAX_CONTENTS:
                self._contents.popitem(last=False)
        return answer

    def of_name(self, function: str, look_up: Callable[[], pb.Function]) -> pb.Function:
        """The registration that an id or name meant when this client first used it."""
        answer = self._once(self._named, function, look_up)
        with self._lock:
            while len(self._named) > _MAX_CONTENTS:
                self._named.popitem(last=False)
        return answer

    def forget(self, function: str) -> None:
        """Drop what led to that id or name: the server does not know it (any more)."""
        with self._lock:
            self._named.pop(function, None)
            _drop(self._callables, function)
            _drop(self._contents, function)

    def _once(self, known: MutableMapping[K, _Answer], key: K, make: Callable[[], pb.Function]) -> pb.Function:
        with self._lock:
            answer = known.get(key)
            first = answer is None
            if answer is None:
                answer = known[key] = concurrent.futures.Future()
        if first:
            try:
                answer.set_result(make())
            except BaseException as exc:
                with self._lock:
                    known.pop(key, None)
                answer.set_exception(exc)
                raise
        return answer.result()


def _drop(known: MutableMapping[Any, _Answer], function_id: str) -> None:
    for key, answer in list(known.items()):
        if answer.done() and answer.exception() is None and answer.result().function_id == function_id:
            known.pop(key, None)
