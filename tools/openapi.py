"""Finishes the generated OpenAPI description, where its generator has no option for it.

- Fields of type bytes that hold JSON stand in REST documents as the JSON they hold: the
  gateway's marshaler embeds them, the generator calls them base64 text.
- The worker service has no REST form, so it is no section of the document.

usage: openapi.py FILE, which is rewritten in place.
"""

import json
import sys

ARRAY = {"type": "array", "items": {}}
OBJECT = {"type": "object"}
ANYTHING: dict[str, object] = {}

JSON_FIELDS: dict[tuple[str, str], dict[str, object]] = {
    ("v1CallInput", "args"): ARRAY,
    ("v1CallInput", "kwargs"): OBJECT,
    ("v1ExecuteRequest", "args"): ARRAY,
    ("v1ExecuteRequest", "kwargs"): OBJECT,
    ("v1TaskResult", "result"): ANYTHING,
}


def finish(document: dict) -> None:
    for (definition, field), schema in JSON_FIELDS.items():
        properties = document["definitions"][definition]["properties"]
        old = properties[field]
        if old.get("format") != "byte":
            raise SystemExit(f"openapi: {definition}.{field} is no field of type bytes: {old}")
        properties[field] = {**schema, "description": old["description"]}
    document["tags"] = [tag for tag in document["tags"] if tag["name"] != "WorkerService"]


def main() -> None:
    (path,) = sys.argv[1:]
    with open(path, encoding="utf-8") as file:
        document = json.load(file)
    finish(document)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(document, file, indent=2, ensure_ascii=False)
        file.write("\n")


if __name__ == "__main__":
    main()
