"""A gRPC client that knows nothing but an address: everything else comes by reflection."""

from collections.abc import Iterator
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

Json = dict[str, Any]


class Generic:
    """Calls methods by name with JSON-like dicts. Closes with close."""

    def __init__(self, address: str) -> None:
        unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self.channel = grpc.insecure_channel(address, options=unlimited)
        self._database = ProtoReflectionDescriptorDatabase(self.channel)
        self._pool = DescriptorPool(self._database)

    def close(self) -> None:
        self.channel.close()

    def services(self) -> list[str]:
        return list(self._database.get_services())

    def methods(self, service: str) -> list[str]:
        return [method.name for method in self._pool.FindServiceByName(service).methods]

    def _prepare(self, method: str, request: Json) -> tuple[str, Message, type[Message]]:
        service, _, name = method.partition("/")
        descriptor = self._pool.FindServiceByName(service).FindMethodByName(name)
        message = json_format.ParseDict(request, GetMessageClass(descriptor.input_type)())
        return f"/{service}/{name}", message, GetMessageClass(descriptor.output_type)

    def call(self, method: str, request: Json, timeout: float = 60) -> Json:
        """A unary call, "package.Service/Method"; raises grpc.RpcError."""
        path, message, answer = self._prepare(method, request)
        stub = self.channel.unary_unary(path, serialize, answer.FromString)
        return plain(stub(message, timeout=timeout))

    def stream(self, method: str, request: Json, timeout: float = 60) -> Iterator[Json]:
        """A call that is answered by a stream."""
        path, message, answer = self._prepare(method, request)
        stub = self.channel.unary_stream(path, serialize, answer.FromString)
        for item in stub(message, timeout=timeout):
            yield plain(item)


def serialize(message: Message) -> bytes:
    return message.SerializeToString()


def plain(message: Message) -> Json:
    answer: Json = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return answer
