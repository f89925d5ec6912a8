"""Checks an OpenAPI document, its examples, and answers of a server against it.

    check.py DOCUMENT [ANSWERS]

ANSWERS has one JSON object a line: path (as in the document), method, status and body. Every
fault is printed; the exit code is 1 when there are any.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker
from openapi_spec_validator import OpenAPIV31SpecValidator

Json = dict[str, Any]


class Document:
    def __init__(self, text: str) -> None:
        self.whole: Json = json.loads(text)
        self.faults: list[str] = []

    def check(self, where: str, schema: Json, value: object) -> None:
        # References of the schema lead into the document.
        rooted = {"$schema": Draft202012Validator.META_SCHEMA["$id"], **schema, "components": self.whole["components"]}
        for error in Draft202012Validator(rooted, format_checker=FormatChecker()).iter_errors(value):
            self.faults.append(f"{where}: {error.json_path}: {error.message}")

    def follow(self, node: Json) -> Json:
        while "$ref" in node:
            found: Any = self.whole
            for step in node["$ref"].removeprefix("#/").split("/"):
                found = found[step]
            node = found
        return node

    def media(self, where: str, content: Json) -> None:
        for kind, media in content.items():
            examples = [media["example"]] if "example" in media else []
            examples += [x["value"] for x in media.get("examples", {}).values()]
            if not examples:
                self.faults.append(f"{where}: {kind} has no example")
            for example in examples:
                self.check(where, media["schema"], example)
                if line := media["schema"].get("contentSchema"):
                    for text in example.splitlines():
                        self.check(where, line, json.loads(text))

    def operations(self) -> Iterator[tuple[str, Json]]:
        for path, item in self.whole["paths"].items():
            for method, operation in item.items():
                yield f"{method.upper()} {path}", operation

    def examples(self) -> None:
        for where, operation in self.operations():
            for parameter in map(self.follow, operation.get("parameters", [])):
                if "example" in parameter:
                    self.check(f"{where}: {parameter['name']}", parameter["schema"], parameter["example"])
            if "requestBody" in operation:
                self.media(where, operation["requestBody"]["content"])
            for status, response in operation["responses"].items():
                self.media(f"{where}: {status}", self.follow(response)["content"])

    def answer(self, answer: Json) -> None:
        where = f"{answer['method']} {answer['path']}: {answer['status']}"
        operation = self.whole["paths"][answer["path"]][answer["method"].lower()]
        response = operation["responses"].get(str(answer["status"]))
        if response is None:
            self.faults.append(f"{where} is not described")
            return
        (media,) = self.follow(response)["content"].values()
        self.check(where, media["schema"].get("contentSchema", media["schema"]), answer["body"])


def main() -> int:
    document = Document(Path(sys.argv[1]).read_text(encoding="utf-8"))
    OpenAPIV31SpecValidator(document.whole).validate()
    document.examples()
    for path in sys.argv[2:]:
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            document.answer(json.loads(line))
    print("\n".join(document.faults) or "ok")
    return 1 if document.faults else 0


if __name__ == "__main__":
    sys.exit(main())
