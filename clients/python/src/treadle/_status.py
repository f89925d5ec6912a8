"""The details of a gRPC status, and the exceptions that statuses become."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from . import errors
from .errors import TreadleError

_DETAILS = "grpc-status-details-bin"
_ERROR_INFO = "google.rpc.ErrorInfo"


def _messages() -> tuple[Any, Any]:
    """google.rpc.Status and ErrorInfo, as far as they are read here, in a pool of their own.

    So the package that has them all (googleapis-common-protos) is not needed, nor disturbed.
    """
    string = descriptor_pb2.FieldDescriptorProto.TYPE_STRING
    data = descriptor_pb2.FieldDescriptorProto.TYPE_BYTES
    nested = descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE
    one = descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL
    many = descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED
    file = descriptor_pb2.FileDescriptorProto(name="status.proto", package="treadle.status", syntax="proto3")
    detail = file.message_type.add(name="Detail")  # google.protobuf.Any
    detail.field.add(name="type_url", number=1, type=string, label=one)
    detail.field.add(name="value", number=2, type=data, label=one)
    status = file.message_type.add(name="Status")
    status.field.add(name="details", number=3, type=nested, label=many, type_name=".treadle.status.Detail")
    info = file.message_type.add(name="ErrorInfo")
    info.field.add(name="reason", number=1, type=string, label=one)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return (
        message_factory.GetMessageClass(pool.FindMessageTypeByName("treadle.status.Status")),
        message_factory.GetMessageClass(pool.FindMessageTypeByName("treadle.status.ErrorInfo")),
    )


_Status, _ErrorInfo = _messages()

_BY_CODE: dict[grpc.StatusCode, type[TreadleError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: errors.InvalidRequest,
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.ALREADY_EXISTS: errors.Conflict,
    grpc.StatusCode.ABORTED: errors.Conflict,
    grpc.StatusCode.FAILED_PRECONDITION: errors.IllegalState,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.Exhausted,
    grpc.StatusCode.UNAVAILABLE: errors.Unavailable,
    # The call's own deadline, which this package sets: nobody answered in time.
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.Unavailable,
    # Calls that this package cancels are not asked for their error: the server went away.
    grpc.StatusCode.CANCELLED: errors.Unavailable,
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: errors.PermissionDenied,
}
_BY_NUMBER: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def from_rpc(op: str, err: grpc.RpcError) -> TreadleError:
    """The exception that a failed call becomes; op names the call."""
    # What calls raise is the call itself; the types do not say so.
    call: Any = err
    if not isinstance(call, grpc.Call):
        return TreadleError(f"{op}: {err}")
    return _make(op, call.code(), _reason(call), call.details() or "")


def from_item(op: str, code: int, reason: str, message: str) -> TreadleError:
    """The exception of one refused item of a batch."""
    return _make(op, _BY_NUMBER.get(code, grpc.StatusCode.UNKNOWN), reason, message)


def _make(op: str, code: grpc.StatusCode, reason: str, message: str) -> TreadleError:
    cls = _BY_CODE.get(code, TreadleError)
    # Both are RESOURCE_EXHAUSTED; the transport's own refusal of a message has no reason.
    if cls is errors.Exhausted and (reason == "TOO_LARGE" or (not reason and "larger than max" in message)):
        cls = errors.TooLarge
    if cls is errors.Unavailable and "WRONG_VERSION_NUMBER" in message:
        message = (
            "the server speaks plain text and this client TLS: leave the CA (ca=, TREADLE_TLS_CA) out, "
            f"or start the server with --tls-cert and --tls-key ({message})"
        )
    suffix = f" ({reason})" if reason else ""
    exc = cls(f"{op}: {message or code.name}{suffix}")
    exc.reason = reason
    return exc


def _reason(err: Any) -> str:
    for key, value in err.trailing_metadata() or ():
        if key != _DETAILS or not isinstance(value, bytes):
            continue
        try:
            for detail in _Status.FromString(value).details:
                if detail.type_url.rpartition("/")[2] == _ERROR_INFO:
                    return str(_ErrorInfo.FromString(detail.value).reason)
        except DecodeError:  # something between us and the server wrote it
            continue
    return ""
