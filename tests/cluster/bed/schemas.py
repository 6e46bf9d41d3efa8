"""What an API server says of its kinds, as files for kubeconform, whose own come from the internet."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

__all__ = ["LOCATION", "write_schemas"]

LOCATION: Final = "{{ .Group }}_{{ .ResourceAPIVersion }}_{{ .ResourceKind }}.json"
"""A file's name as kubeconform asks for it; the core group's is its version there."""

REF: Final = "#/definitions/"
UNTYPED: Final = ("intstr.IntOrString", "resource.Quantity")
"""Numbers or texts; the document says text."""


def write_schemas(document: Mapping[str, Any], folder: Path) -> None:
    """`document` is the server's `/openapi/v2`. One file for each kind, in which no unknown field is taken."""
    definitions = {name: closed(name, definition) for name, definition in document["definitions"].items()}
    for name, definition in definitions.items():
        for of in definition.get("x-kubernetes-group-version-kind", ()):
            parts = of["group"] or of["version"], of["version"], of["kind"].lower()
            schema = {
                "$ref": REF + name,
                "definitions": {n: definitions[n] for n in needed(name, definitions)},
            }
            (folder / ("_".join(parts) + ".json")).write_text(json.dumps(schema))


def closed(name: str, definition: dict[str, Any]) -> dict[str, Any]:
    if name.endswith(UNTYPED):
        return {}
    if "properties" in definition:
        return {"additionalProperties": False, **definition}
    return definition


def needed(name: str, definitions: Mapping[str, Any]) -> set[str]:
    found: set[str] = set()
    new = {name}
    while new:
        found |= new
        new = {ref for each in new for ref in references(definitions[each])} - found
    return found


def references(schema: Any) -> Iterator[str]:
    inner = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    if isinstance(schema, dict) and isinstance(schema.get("$ref"), str):
        yield schema["$ref"].removeprefix(REF)
    for each in inner:
        yield from references(each)
