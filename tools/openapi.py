"""Writes the OpenAPI description of the REST API, and the table of its routes for the server.

    openapi.py DESCRIPTORS HTTP_YAML OUT

DESCRIPTORS is a FileDescriptorSet with comments and imports, HTTP_YAML the routes. OUT gets
treadle.openapi.json, OpenAPI 3.1, and routes.gen.go.

Types, fields, comments and routes come from the contract. What it does not say (limits,
formats, examples, answers) stands in openapi_hints.py. A hint that no longer fits, or one
that is missing, ends the run.
"""

from __future__ import annotations

import copy
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openapi_hints as hints
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
)

Schema = dict[str, Any]
Field = FieldDescriptorProto
# Where a name stands in a file, as in SourceCodeInfo.
Place = tuple[int, ...]

PACKAGE = "treadle.v1."
RULE = re.compile(
    r"\{selector: (?P<rpc>[\w.]+), (?P<method>get|post|delete): "
    r'(?:"(?P<quoted>/[^"]*)"|(?P<path>/[^",{}\s]*))(?:, body: "?(?P<body>\*|\w+)"?)?\}'
)
INTEGERS = {
    Field.TYPE_INT32: "int32",
    Field.TYPE_SINT32: "int32",
    Field.TYPE_SFIXED32: "int32",
    Field.TYPE_INT64: "int64",
    Field.TYPE_SINT64: "int64",
    Field.TYPE_SFIXED64: "int64",
    Field.TYPE_UINT32: "int64",
    Field.TYPE_FIXED32: "int64",
    Field.TYPE_UINT64: "int64",
    Field.TYPE_FIXED64: "int64",
}
PLAIN: dict[int, Schema] = {
    Field.TYPE_STRING: {"type": "string"},
    Field.TYPE_BOOL: {"type": "boolean"},
    Field.TYPE_DOUBLE: {"type": "number"},
    Field.TYPE_FLOAT: {"type": "number"},
    Field.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
}
# What answers write for a field that is not set.
EMPTY: dict[str, Any] = {"string": "", "integer": 0, "number": 0, "boolean": False, "array": [], "object": {}}


class Mistake(Exception):
    """The contract and the hints do not fit each other."""


@dataclass(frozen=True)
class Route:
    rpc: str
    method: str
    path: str
    body: str

    @property
    def name(self) -> str:
        return self.rpc.removeprefix(PACKAGE)

    @property
    def parameters(self) -> list[str]:
        return re.findall(r"\{(\w+)\}", self.path)

    @property
    def is_root(self) -> bool:
        return not self.path.startswith("/v1/")


def read_routes(path: Path) -> list[Route]:
    routes = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if "selector:" not in line:
            continue
        found = RULE.search(line)
        if not found:
            raise Mistake(f"{path}:{number}: want one rule a line, {{selector: ..., get: ...}}: {line}")
        routes.append(Route(found["rpc"], found["method"], found["path"] or found["quoted"], found["body"] or ""))
    return routes


class Contract:
    """Messages, enums, methods and comments of the proto files, by full name."""

    def __init__(self, files: FileDescriptorSet) -> None:
        self.messages: dict[str, DescriptorProto] = {}
        self.enums: dict[str, EnumDescriptorProto] = {}
        self.methods: dict[str, MethodDescriptorProto] = {}
        self.comments: dict[str, str] = {}
        for file in files.file:
            at: dict[Place, str] = {}
            for i, message in enumerate(file.message_type):
                self._message(message, file.package, (4, i), at)
            for i, enum in enumerate(file.enum_type):
                self._enum(enum, file.package, (5, i), at)
            for i, service in enumerate(file.service):
                name = f"{file.package}.{service.name}"
                at[6, i] = name
                for j, method in enumerate(service.method):
                    self.methods[f"{name}.{method.name}"] = method
                    at[6, i, 2, j] = f"{name}.{method.name}"
            for place in file.source_code_info.location:
                if tuple(place.path) in at and place.leading_comments:
                    self.comments[at[tuple(place.path)]] = prose(place.leading_comments)

    def _message(self, message: DescriptorProto, scope: str, path: Place, at: dict[Place, str]) -> None:
        name = f"{scope}.{message.name}"
        self.messages[name] = message
        at[path] = name
        for i, field in enumerate(message.field):
            at[(*path, 2, i)] = f"{name}.{field.name}"
        for i, nested in enumerate(message.nested_type):
            self._message(nested, name, (*path, 3, i), at)
        for i, enum in enumerate(message.enum_type):
            self._enum(enum, name, (*path, 4, i), at)

    def _enum(self, enum: EnumDescriptorProto, scope: str, path: Place, at: dict[Place, str]) -> None:
        name = f"{scope}.{enum.name}"
        self.enums[name] = enum
        at[path] = name
        for i, value in enumerate(enum.value):
            at[(*path, 2, i)] = f"{name}.{value.name}"


def prose(comment: str) -> str:
    """Lines of a comment as paragraphs."""
    paragraphs = re.split(r"\n\s*\n", comment.strip())
    return "\n\n".join(" ".join(line.strip() for line in p.splitlines()) for p in paragraphs)


def short(full: str) -> str:
    name = full.removeprefix(PACKAGE).replace(".", "")
    return hints.NAMES.get(name, name)


class Writer:
    def __init__(self, contract: Contract, routes: list[Route]) -> None:
        self.contract = contract
        self.routes = routes
        self.schemas: dict[str, Schema] = {}
        self.used: set[str] = set()

    def document(self) -> Schema:
        paths: dict[str, Schema] = {}
        for route in self.routes:
            paths.setdefault(self.path(route), {})[route.method] = self.operation(route)
        for path, page in hints.PAGES.items():
            paths[path] = {"get": page}
        self.schemas |= copy.deepcopy(hints.SCHEMAS)
        for operation in hints.OPERATIONS.values():
            taken = f"{operation['id']}Response".lower()
            if taken in {name.lower() for name in self.schemas}:
                raise Mistake(f"{taken} is what generators name the answer of an operation: give the schema a name")
        left = (hints.FIELDS.keys() | hints.OPERATIONS.keys() | hints.REQUIRED.keys()) - self.used
        if left:
            raise Mistake(f"hints for what is not in the contract: {sorted(left)}")
        return {
            "openapi": "3.1.0",
            "info": hints.INFO,
            "servers": [{"url": "/", "description": "The server that this document came from."}],
            "tags": hints.TAGS,
            "security": hints.TOKEN_OR_NONE,
            "paths": paths,
            "components": {
                "schemas": dict(sorted(self.schemas.items())),
                "parameters": hints.PARAMETERS,
                "headers": hints.HEADERS,
                "responses": hints.RESPONSES,
                "securitySchemes": hints.SECURITY_SCHEMES,
            },
        }

    def path(self, route: Route) -> str:
        """The path of a route. Paths that differ by the names of their parameters are one."""
        bare = re.sub(r"\{\w+\}", "{}", route.path)
        return next(r.path for r in self.routes if re.sub(r"\{\w+\}", "{}", r.path) == bare)

    def operation(self, route: Route) -> Schema:
        hint = hints.OPERATIONS.get(route.name)
        if hint is None:
            raise Mistake(f"{route.name} has no entry in OPERATIONS")
        self.used.add(route.name)
        method = self.contract.methods[route.rpc]
        text = hint.get("description") or self.contract.comments[route.rpc]
        operation: Schema = {
            "operationId": hint["id"],
            "summary": hint["summary"],
            "description": text,
            "tags": [hint["tag"]],
            "security": hints.TOKEN_OR_NONE,
        }
        source = method.input_type.lstrip(".")
        message = self.contract.messages[source]
        parameters = [self.parameter(source, f, route) for f in message.field if self.place(f, route)]
        if not route.is_root:
            parameters.append({"$ref": "#/components/parameters/Strict"})
        if parameters:
            operation["parameters"] = parameters
        if route.body:
            operation["requestBody"] = self.request(route, source, hint)
        operation["responses"] = self.responses(route, method, hint)
        return operation

    @staticmethod
    def place(field: Field, route: Route) -> str:
        if field.name in route.parameters:
            return "path"
        return "" if route.body in ("*", field.name) else "query"

    def parameter(self, message: str, field: Field, route: Route) -> Schema:
        schema = self.field(message, field)
        parameter: Schema = {"name": field.name, "in": self.place(field, route)}
        if parameter["in"] == "path":
            parameter["required"] = True
            names = re.findall(r"\{(\w+)\}", self.path(route))
            parameter["name"] = names[route.parameters.index(field.name)]
        if "description" in schema:
            parameter["description"] = schema.pop("description")
        examples = schema.pop("examples", None)
        if examples:
            parameter["example"] = examples[0]
        parameter["schema"] = schema
        return parameter

    def request(self, route: Route, source: str, hint: Schema) -> Schema:
        name = source
        if route.body != "*":
            (field,) = (f for f in self.contract.messages[source].field if f.name == route.body)
            name = field.type_name.lstrip(".")
        content = {"schema": self.message(name, is_input=True)}
        if len(hint["request"]) == 1:
            (content["example"],) = hint["request"].values()
        else:
            content["examples"] = {key: {"value": value} for key, value in hint["request"].items()}
        return {"required": hint.get("body_required", True), "content": {"application/json": content}}

    def responses(self, route: Route, method: MethodDescriptorProto, hint: Schema) -> Schema:
        answer = self.message(method.output_type.lstrip("."))
        content: Schema
        if method.server_streaming:
            lines = "".join(json.dumps(self.complete(answer, line)) + "\n" for line in hint["response"])
            content = {
                hints.STREAM: {
                    "schema": {
                        "type": "string",
                        "description": "JSON documents, one a line.",
                        "contentMediaType": "application/json",
                        "contentSchema": answer,
                    },
                    "example": lines,
                }
            }
        else:
            content = {"application/json": {"schema": answer, "example": self.complete(answer, hint["response"])}}
        responses: Schema = {"200": {"description": hint["answer"], "content": content}}
        if hint.get("created"):
            responses["201"] = {
                "description": "The same, on a server with --rest-created-status 201.",
                "content": copy.deepcopy(content),
            }
        for code in sorted([*hints.ALWAYS, *hint.get("errors", []), *(hints.WITH_BODY if route.body else [])]):
            kind = "Root" if route.is_root else ""
            if f"{kind}{code}" not in hints.RESPONSES:
                kind = ""
            responses[str(code)] = {"$ref": f"#/components/responses/{kind}{code}"}
        responses["default"] = {"$ref": f"#/components/responses/{'Root' if route.is_root else ''}Default"}
        return responses

    def complete(self, schema: Schema, example: Any) -> Any:
        """An example of an answer with what it leaves out and answers always have."""
        if "$ref" in schema:
            schema = self.schemas[schema["$ref"].rpartition("/")[2]]
        if isinstance(example, list):
            return [self.complete(schema["items"], item) for item in example]
        properties = schema.get("properties", {})
        if not isinstance(example, dict) or not properties:
            return example
        whole = {}
        for name, of in properties.items():
            if name in example:
                whole[name] = self.complete(of, example[name])
            elif name in schema.get("required", ()):
                if of.get("type") not in EMPTY:
                    raise Mistake(f"an example lacks {name}: {example}")
                whole[name] = EMPTY[of["type"]]
        if example.keys() - whole.keys():
            raise Mistake(f"an example has {sorted(example.keys() - whole.keys())}, which no answer has")
        return whole

    def message(self, full: str, *, is_input: bool = False) -> Schema:
        name = short(full)
        ref = {"$ref": f"#/components/schemas/{name}"}
        if name in self.schemas:
            return ref
        message = self.contract.messages[full]
        schema: Schema = {"type": "object", "description": self.contract.comments[full]}
        self.schemas[name] = schema
        properties = {f.name: self.field(full, f, is_input=is_input) for f in message.field}
        if properties:
            schema["properties"] = properties
        if is_input or name in hints.REQUIRED:
            self.used.add(name)
            if name not in hints.REQUIRED:
                raise Mistake(f"{name} has no entry in REQUIRED: say which of its fields clients must send")
            required = hints.REQUIRED[name]
            if set(required) - properties.keys():
                raise Mistake(f"REQUIRED of {name} names no field: {required}")
        else:
            required = [f.name for f in message.field if self.always(full, f)]
        if required:
            schema["required"] = required
        if is_input and name in hints.CLOSED:
            schema["additionalProperties"] = False
        return ref

    @staticmethod
    def always(message: str, f: Field) -> bool:
        """Whether answers always have a field; package restjson decides it."""
        if f.label == Field.LABEL_REPEATED:
            return True
        if f.type in (Field.TYPE_MESSAGE, Field.TYPE_BYTES) or f.HasField("oneof_index"):
            return False
        return f"{short(message)}.{f.name}" not in hints.LEFT_OUT

    def field(self, message: str, f: Field, *, is_input: bool = False) -> Schema:
        schema = self.type(message, f, is_input=is_input)
        entry = self.contract.messages.get(f.type_name.lstrip("."))
        if entry is not None and entry.options.map_entry:
            value = self.type(f.type_name.lstrip("."), entry.field[1], is_input=is_input)
            schema = {"type": "object", "additionalProperties": value}
        elif f.label == Field.LABEL_REPEATED:
            schema = {"type": "array", "items": schema}
        for key in (f"*.{f.name}", f"{short(message)}.{f.name}"):
            if key in hints.FIELDS:
                self.used.add(key)
                if key[0] != "*" or f.type == hints.FIELDS[key].get("of", f.type):
                    schema |= {k: v for k, v in hints.FIELDS[key].items() if k != "of"}
        full = f"{message}.{f.name}"
        if full in self.contract.comments and "description" not in schema:
            schema["description"] = self.contract.comments[full]
        return schema

    def type(self, message: str, f: Field, *, is_input: bool) -> Schema:
        if f"{short(message)}.{f.name}" in hints.JSON_FIELDS:
            return copy.deepcopy(hints.JSON_FIELDS[f"{short(message)}.{f.name}"])
        if f.type in INTEGERS:
            return {"type": "integer", "format": INTEGERS[f.type]}
        if f.type in PLAIN:
            return dict(PLAIN[f.type])
        name = f.type_name.lstrip(".")
        if f.type == Field.TYPE_ENUM:
            return self.enum(name)
        if name in hints.WELL_KNOWN:
            return copy.deepcopy(hints.WELL_KNOWN[name])
        if name in self.contract.messages:
            is_map = self.contract.messages[name].options.map_entry
            return {} if is_map else dict(self.message(name, is_input=is_input))
        raise Mistake(f"{message}.{f.name}: no schema for fields of type {f.type}")

    def enum(self, full: str) -> Schema:
        name = short(full)
        values = [v.name for v in self.contract.enums[full].value if v.number]
        about = [self.contract.comments[full]] + [f"- {v}: {self.contract.comments[f'{full}.{v}']}" for v in values]
        self.schemas[name] = {"type": "string", "enum": values, "description": "\n".join(about)}
        return {"$ref": f"#/components/schemas/{name}"}


def go_routes(routes: list[Route]) -> str:
    rows = ""
    for r in routes:
        body = f', Body: "{r.body}"' if r.body else ""
        rows += f'\t{{Method: "{r.method.upper()}", Path: "{r.path}", RPC: "{r.rpc}"{body}}},\n'
    return (
        "// Code generated by tools/openapi.py. DO NOT EDIT.\n\npackage openapi\n\n"
        "// Routes are the routes of the contract.\nvar Routes = []Route{\n" + rows + "}\n"
    )


def main() -> None:
    descriptors, http_yaml, out = map(Path, sys.argv[1:])
    files = FileDescriptorSet.FromString(descriptors.read_bytes())
    routes = read_routes(http_yaml)
    document = Writer(Contract(files), routes).document()
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    (out / "treadle.openapi.json").write_text(text, encoding="utf-8")
    (out / "routes.gen.go").write_text(go_routes(routes), encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except Mistake as mistake:
        sys.exit(f"openapi: {mistake}")
