from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rpcgroup_operator.crd import custom_resource_definition
from rpcgroup_operator.field_reference import field_reference, sections

ROOT = Path(__file__).parents[2]
(VERSION,) = custom_resource_definition()["spec"]["versions"]
PROPERTIES = VERSION["schema"]["openAPIV3Schema"]["properties"]


def test_the_page_is_what_the_model_says() -> None:
    assert (ROOT / "docs/fields.md").read_text() == field_reference(), "if the change is meant: make crd"


def nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for field in node.get("properties", {}).values():
        yield from nodes(field)
    if "items" in node:
        yield from nodes(node["items"])


def test_every_field_and_every_rule_is_in_it() -> None:
    page = field_reference()
    found = [node for name in ("spec", "status") for node in nodes(PROPERTIES[name])]
    for node in found:
        assert all(f"\n| `{name}` |" in page for name in node.get("properties", {}))
        for rule in node.get("x-kubernetes-validations", []):
            assert rule["message"].partition(", got ")[0].removeprefix("expected ") in page


def shown(field: dict[str, Any], needed: bool = False) -> str:
    """The row of a field."""
    schema = {"properties": {"f": field}, "required": ["f"] if needed else []}
    (page,) = sections("spec", schema, {})
    return page.splitlines()[3]


def test_a_row_says_what_the_schema_demands() -> None:
    number = {"type": "integer", "minimum": 0, "maximum": 100000, "default": 0, "description": "How many."}
    assert shown(number) == "| `f` | integer | `0` | 0 to 100,000 | How many. |"
    assert shown({"type": "boolean", "default": False}) == "| `f` | boolean | `false` |  |  |"
    assert (
        shown({"type": "string", "pattern": "^a|b$"}, needed=True)
        == r"| `f` | string | needed | `^a\|b$` |  |"
    )
    texts = {"type": "array", "maxItems": 3, "items": {"type": "string", "maxLength": 5}}
    assert shown(texts) == "| `f` | list of string |  | at most 3 entries; each at most 5 characters |  |"


def test_what_stands_twice_is_described_once() -> None:
    part = {"type": "object", "properties": {"x": {"type": "string"}}}
    schema = {"properties": {"a": part, "b": {"type": "array", "items": part}}}
    pages = list(sections("spec", schema, {}))
    assert [page.splitlines()[0] for page in pages] == ["## spec", "## spec.a", "## spec.b[]"]
    assert pages[2].splitlines()[1] == "The same fields as [spec.a](#speca)."
