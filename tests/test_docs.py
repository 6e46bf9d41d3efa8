"""The pages for people: their links lead somewhere, and what the code can say is explained."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from rpcgroup.control import status
from rpcgroup_operator.__main__ import main
from rpcgroup_operator.field_reference import anchor
from rpcgroup_operator.metrics import Metrics

ROOT: Final = Path(__file__).parents[1]
DOCS: Final = ROOT / "docs"
PAGES: Final = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
OPERATOR: Final = sorted((ROOT / "operator/rpcgroup_operator").glob("*.py"))
LINK: Final = re.compile(r"\]\((?!https?://)([^)\s]*)\)")
CODE: Final = re.compile(r"^```.*?^```|`[^`\n]*`", re.DOTALL | re.MULTILINE)


def headings(page: Path) -> set[str]:
    lines = page.read_text().splitlines()
    return {anchor(line.lstrip("#").strip()) for line in lines if line.startswith("#")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(CODE.sub("", page.read_text())):
        file, _, heading = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert not heading or heading in headings(target), link


def test_the_index_has_every_page() -> None:
    linked = {(DOCS / link).resolve() for link in LINK.findall((DOCS / "README.md").read_text())}
    pages = {page for page in DOCS.glob("*.md") if page.name != "README.md"}
    assert pages <= linked


def in_table(page: str, names: set[str]) -> set[str]:
    """Those that are not the first cell of any row."""
    text = (DOCS / page).read_text()
    return {name for name in names if f"\n| `{name}` |" not in text}


def conditions() -> Iterator[tuple[str, str]]:
    """Type and reason of every finding in `rpcgroup.control.status`."""
    source = Path(status.__file__).read_text()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Tuple) and len(node.elts) == 4 and isinstance(node.elts[0], ast.Constant):
            kind, _, reason, _ = node.elts
            assert isinstance(kind, ast.Constant)
            yield from ((kind.value, word) for word in words(reason))


def words(reason: ast.expr) -> Iterator[str]:
    if isinstance(reason, ast.Constant):
        yield reason.value
    elif isinstance(reason, ast.Name):
        yield getattr(status, reason.id)
    else:
        assert ast.unparse(reason) == "outcome.value", "a reason that this test cannot read"
        yield from (outcome.value for outcome in status.Outcome)


def test_every_condition_and_reason_is_explained() -> None:
    found = set(conditions())
    assert ("Progressing", "Suspended") in found
    assert in_table("conditions.md", {reason for _, reason in found}) == set()
    page = (DOCS / "conditions.md").read_text()
    assert {kind for kind, _ in found if f"\n## {kind}" not in page} == set()


def event_reasons() -> Iterator[str]:
    for path in OPERATOR:
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in ("normal", "warn")
            ):
                _, reason, _ = node.args
                assert isinstance(reason, ast.Constant), "a reason that this test cannot read"
                yield reason.value


def test_every_event_is_explained() -> None:
    found = set(event_reasons())
    assert "Draining" in found
    assert in_table("conditions.md", found) == set()


def test_every_metric_is_explained() -> None:
    families = list(Metrics().registry.collect())
    names = {family.name + ("_total" if family.type == "counter" else "") for family in families}
    assert "rpcgroup_reconciles_total" in names
    assert in_table("operator.md", names) == set()


def test_every_option_is_explained() -> None:
    assert in_table("operator.md", {"`, `".join([*o.opts, *o.secondary_opts]) for o in main.params}) == set()


RIGHT: Final = re.compile(
    r"- apiGroups: \[(.*)\]\n +resources: \[(.*)\]\n(?: +resourceNames: .*\n)? +verbs: \[(.*)\]"
)
ROW: Final = re.compile(r"^\| `([a-z]+)` \| *([a-z.0-9]*) *\| `([a-z/]+)` \| ([a-z, ]+) \|", re.MULTILINE)


def test_the_operators_rights_are_the_charts() -> None:
    chart: set[tuple[str, str, str, str]] = set()
    for part in (ROOT / "charts/rpcgroup/templates/rbac.yaml").read_text().split("\n---\n"):
        name = re.search(r"^ +name: \{\{ \$name \}\}-([a-z]+)$", part, re.MULTILINE)
        for group, resource, verbs in RIGHT.findall(part):
            assert name is not None
            chart |= {(name[1], group.strip('"'), resource, verb) for verb in verbs.split(", ")}
    told = {
        (role, group, resource, verb)
        for role, group, resource, verbs in ROW.findall((DOCS / "operator.md").read_text())
        for verb in verbs.split(", ")
    }
    assert len(chart) > 20
    assert told == chart, "docs/operator.md has a table of what the operator may do"
