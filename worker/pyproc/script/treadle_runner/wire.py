"""Frames between the agent and the runner.

A frame is a header (magic, sequence number, kind, length of the body) and a body. The
runner answers each frame of the agent, in order, with one of the same sequence number,
so that neither side ever has to guess where it is. One read never takes in more than one
frame: what the runner has not read, the agent can take back. Integers are little-endian.
``protocol.go`` is the other half of this file.
"""

from __future__ import annotations

import builtins
import os
import struct
from typing import NamedTuple

# What functions defined below find as len and the like. A function of a task may put another one
# into builtins; a frame of a wrong length would have the agent wait for ever.
__builtins__ = dict(vars(builtins))

MAGIC = b"TRDL"
HEAD = struct.Struct("<4sIII")
# form, flags, length of the name, length of the code, memory limit, largest result, task, hash
CALL = struct.Struct("<BBHIQQ16s32s")
# what the function may know: its id, the task's deadline, the timeout, attempt, retries, parent; it
# follows, and is unpacked only when the function asks
TOLD = struct.Struct("<16sqqII16s")
CALL_SIZE = CALL.size + TOLD.size
# end, encoding, flags, the lengths of: repr or type, message, traceback, pickle, foreign
# pickle; and the run time in nanoseconds
REPLY = struct.Struct("<BBHIIIIIQ")

KIND_SETUP, KIND_HELLO, KIND_CALL, KIND_REPLY = 1, 2, 3, 4

FORM_PICKLE, FORM_SOURCE = 0, 1

# CALL_AHEAD: the agent reads no output while calls may be waiting; it is told of some.
CALL_ARGS_JSON, CALL_RETURNS_JSON, CALL_HAS_CODE, CALL_RLIMIT, CALL_AHEAD = 1, 2, 4, 8, 16

END_SUCCEEDED, END_RAISED, END_UNREADABLE, END_EXHAUSTED, END_MISSING = 0, 1, 2, 3, 4

ENCODING_PICKLE, ENCODING_JSON = 0, 1

# After a reply with REPLY_OUTPUT the runner waits for leave to go on, after one with
# REPLY_RECYCLE for its end. REPLY_SPENT: it has run as many attempts as it may.
REPLY_CACHED, REPLY_RECYCLE, REPLY_OUTPUT, REPLY_SPENT = 1, 2, 4, 8

_READ_SIZE = 1 << 16
_JOIN_BELOW = 1 << 16


class WireError(Exception):
    """The other side closed the pipe, or what came from it is no frame."""


class Reply(NamedTuple):
    """The answer to a call."""

    end: int
    encoding: int = ENCODING_PICKLE
    result: bytes = b""  # with END_RAISED the function's word on its next attempt; see retry.py
    label: bytes = b""  # the repr of a result that JSON cannot hold, or the class of an exception
    message: bytes = b""
    traceback: bytes = b""
    pickle: bytes = b""
    foreign: bytes = b""

    def head(self, flags: int, took: int) -> bytes:
        """The body without the result, which is its end."""
        end, encoding, _, label, message, traceback, pickle, foreign = self
        if end == END_SUCCEEDED and not label:
            return _PACK_REPLY(end, encoding, flags, 0, 0, 0, 0, 0, took)
        lengths = len(label), len(message), len(traceback), len(pickle), len(foreign)
        return _PACK_REPLY(end, encoding, flags, *lengths, took) + label + message + traceback + pickle + foreign


_PACK_REPLY = REPLY.pack


class Wire:
    """Blocking frames on two descriptors; a third one brings leave to go on."""

    def __init__(self, fd_in: int, fd_out: int, fd_leave: int) -> None:
        self.fd_in = fd_in
        self.fd_out = fd_out
        self.fd_leave = fd_leave
        # Bound here once, so that user code that patches a module cannot break the wire.
        self._read = os.read
        self._readv = os.readv
        self._write = os.write
        self._unpack = HEAD.unpack_from
        self._pack = HEAD.pack

    def receive(self) -> tuple[int, int, memoryview]:
        """Wait for a frame; returns kind, sequence number and body."""
        data = self._read(self.fd_in, _READ_SIZE)
        while len(data) < 16:
            more = self._read(self.fd_in, _READ_SIZE) if data else b""
            if not more:
                raise WireError("the agent closed the pipe")
            data += more
        magic, seq, kind, length = self._unpack(data)
        if magic != MAGIC:
            raise WireError(f"not a frame: {data[:16]!r}")
        have = len(data) - 16
        if have == length:
            return kind, seq, memoryview(data)[16:]
        if have > length:
            raise WireError(f"{have - length} bytes after a frame")
        body = memoryview(bytearray(length))
        body[:have] = memoryview(data)[16:]
        while have < length:
            n = self._readv(self.fd_in, [body[have:]])
            if n == 0:
                raise WireError("the agent closed the pipe inside a frame")
            have += n
        return kind, seq, body

    def await_leave(self) -> None:
        """Wait until the agent lets this runner go on, or ends it."""
        if not self._read(self.fd_leave, 1):
            raise WireError("the agent closed the pipe")

    def send(self, seq: int, kind: int, body: bytes, tail: bytes = b"") -> None:
        """Send one frame whose body is ``body + tail``."""
        head = self._pack(MAGIC, seq, kind, len(body) + len(tail)) + body
        if len(tail) < _JOIN_BELOW:
            self._send_all(head + tail)
            return
        self._send_all(head)
        self._send_all(tail)

    def _send_all(self, data: bytes) -> None:
        n = self._write(self.fd_out, data)
        if n == len(data):
            return
        rest = memoryview(data)[n:]
        while rest:
            rest = rest[self._write(self.fd_out, rest) :]
