"""Every field of an `RPCGroup`, for people. `python -m rpcgroup_operator.field_reference` prints docs/fields.md.

Read from the custom resource definition, so that it says what an API server holds a group to, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from rpcgroup.contract import API_VERSION, KIND
from rpcgroup_operator.crd import custom_resource_definition

__all__ = ["field_reference"]

Schema = dict[str, Any]

HEAD: Final = f"""\
<!-- Made by `make crd` from worker/rpcgroup/control/{{model,rules}}.py; not to be edited. -->
# Fields of an {KIND}
The API version is `{API_VERSION}`. The API server refuses a field that is not named here, a value out of bounds,
and what breaks a rule; its message names the field. `kubectl explain {KIND.lower()}.spec` shows the same.
"""
TABLE: Final = "| field | type | default | bounds | what it is |\n|---|---|---|---|---|"
FOREIGN: Final = "Kubernetes' other fields of it are taken as well."


def field_reference() -> str:
    """The page, as Markdown."""
    (version,) = custom_resource_definition()["spec"]["versions"]
    resource = version["schema"]["openAPIV3Schema"]
    resource["properties"]["metadata"] |= {"x-kubernetes-validations": resource["x-kubernetes-validations"]}
    parts = [HEAD]
    shown: dict[str, Schema] = {}
    for path in resource["properties"]:
        parts += sections(path, resource["properties"][path], shown)
    return "\n".join(parts)


def sections(path: str, schema: Schema, shown: dict[str, Schema]) -> Iterator[str]:
    """Of an object and of all objects in it; `[]` stands for each entry of a list.

    `shown` has the objects that have their section. What stands in two places is described once.
    """
    twin = next((other for other, known in shown.items() if known == schema["properties"]), None)
    if twin is not None:
        yield f"## {path}\nThe same fields as [{twin}](#{anchor(twin)}).\n"
        return
    shown[path] = schema["properties"]
    yield section(path, schema)
    for name, field in schema["properties"].items():
        entry, suffix = (field["items"], "[]") if field.get("type") == "array" else (field, "")
        if "properties" in entry:
            yield from sections(f"{path}.{name}{suffix}", entry, shown)


def section(path: str, schema: Schema) -> str:
    needed = schema.get("required", [])
    rows = [row(name, field, name in needed) for name, field in schema["properties"].items()]
    lines = [f"## {path}", TABLE, *rows]
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        lines += ["", FOREIGN]
    if rules := schema.get("x-kubernetes-validations"):
        lines += ["", "Rules:", "", *(f"- {sentence(rule)}" for rule in rules)]
    return "\n".join(lines) + "\n"


def row(name: str, field: Schema, needed: bool) -> str:
    default = "needed" if needed else written(field.get("default"))
    cells = [f"`{name}`", kind(field), default, bounds(field), field.get("description", "")]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def written(default: object) -> str:
    if default is None:
        return ""
    return "that of its fields" if isinstance(default, dict) else code(default)


def kind(field: Schema) -> str:
    if field.get("x-kubernetes-int-or-string"):
        return "integer or string"
    if field["type"] == "array":
        return f"list of {kind(field['items'])}"
    if field["type"] == "object" and "additionalProperties" in field:
        return f"map of {kind(field['additionalProperties'])}"
    return "time" if field.get("format") == "date-time" else str(field["type"])


def bounds(field: Schema) -> str:
    """What the schema demands of the value, and of each entry of a list or a map."""
    found = []
    if "enum" in field:
        found.append("one of " + ", ".join(map(code, field["enum"])))
    if "minimum" in field and "maximum" in field:
        found.append(f"{field['minimum']:,} to {field['maximum']:,}")
    found += [f"{word} {field[key]:,} {what}" for key, word, what in LENGTHS if key in field]
    if "pattern" in field:
        found.append(code(field["pattern"]))
    if keys := field.get("x-kubernetes-list-map-keys"):
        found.append(f"no two of the same {' and '.join(map(code, keys))}")
    inner = field.get("items") or field.get("additionalProperties")
    if inner and "properties" not in inner and (each := bounds(inner)):
        found.append(f"each {each}")
    return "; ".join(found)


LENGTHS: Final = (
    ("minLength", "at least", "character"),
    ("maxLength", "at most", "characters"),
    ("minItems", "at least", "entry"),
    ("maxItems", "at most", "entries"),
    ("maxProperties", "at most", "entries"),
)


def sentence(rule: Schema) -> str:
    """As the API server says it, without what was found there."""
    expected, _, _ = rule["message"].partition(", got ")
    return f"`{rule['fieldPath'].removeprefix('.')}`: {expected.removeprefix('expected ')}"


def anchor(heading: str) -> str:
    """As Markdown's renderers make it of a heading."""
    return "".join(c for c in heading.lower() if c.isalnum() or c in "-_ ").replace(" ", "-")


def code(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"`{text}`"


if __name__ == "__main__":
    print(field_reference(), end="")
