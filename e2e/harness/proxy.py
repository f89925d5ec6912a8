"""A TCP proxy that can be told to misbehave."""

import socket
import struct
import threading
from typing import Callable, Optional

from harness.wait import until


class Proxy:
    """Forwards connections to target until it is told otherwise. Closes with close."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._flowing = threading.Event()
        self._flowing.set()
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._closed = False
        # Resets every connection when so many more bytes were forwarded.
        self._fuse: Optional[int] = None
        self.connections = 0
        self.resets = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def stall(self) -> None:
        """Nothing gets through any more, and nobody is told: what a broken network does."""
        self._flowing.clear()

    def flow(self) -> None:
        self._flowing.set()

    def arm(self, size: int) -> Callable[[], None]:
        """Has all connections reset within what is sent, after so many more bytes; returns a wait for that."""
        before = self.resets
        with self._lock:
            self._fuse = size

        def cut() -> None:
            until(lambda: self.resets > before, f"the cut after {size} bytes")

        return cut

    def close(self) -> None:
        self._closed = True
        self._flowing.set()
        # Wakes accept, which a mere close does not.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._reset()

    def _reset(self) -> None:
        with self._lock:
            sockets, self._sockets = self._sockets, set()
        for s in sockets:
            # With no time to linger a close is a reset.
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            try:
                s.shutdown(socket.SHUT_RD)
            except OSError:
                pass
            s.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self._target, timeout=5)
                far.settimeout(None)
            except OSError:
                near.close()
                continue
            self.connections += 1
            with self._lock:
                self._sockets |= {near, far}
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(16384):
                self._flowing.wait()
                if self._closed:
                    return
                with self._lock:
                    blown = self._fuse is not None and len(data) > self._fuse
                    if self._fuse is not None:
                        data = data[: self._fuse]
                        self._fuse -= len(data)
                    if blown:
                        self._fuse = None
                        self.resets += 1
                sink.sendall(data)
                if blown:
                    self._reset()
                    return
        except OSError:
            pass
        for s in (source, sink):
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
