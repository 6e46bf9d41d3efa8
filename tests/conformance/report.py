"""What came out, against what was expected."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

__all__ = ["Outcome", "beside", "junit", "read_expected", "score", "table", "unexpected"]

STOCK_PASSES = 463
"""Tests that torch's own TensorPipe passes without a GPU."""


@dataclass(frozen=True)
class Outcome:
    """Of one test: passed, failed or skipped; `why` for the last two."""

    name: str
    outcome: str
    seconds: float
    why: str
    log: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def read_expected(path: Path) -> dict[str, str]:
    """The tests that are expected to fail, each with its reason."""
    lines = [line.strip() for line in path.read_text().splitlines()]
    pairs = [re.split(r":\s+", line, maxsplit=1) for line in lines if line and not line.startswith("#")]
    broken = [pair for pair in pairs if len(pair) != 2]
    if broken:
        raise ValueError(f"{path}: expected `Class.test: reason`, got {broken[0]}")
    return dict(pairs)  # type: ignore[arg-type]


def unexpected(outcomes: list[Outcome], expected: dict[str, str]) -> list[str]:
    """One line for each test that failed and is not listed, or is listed and did not fail."""
    lines = []
    for o in outcomes:
        if o.outcome == "failed" and o.name not in expected:
            lines.append(f"FAILED {o.name}: {last_line(o.why)}")
        elif o.outcome == "passed" and o.name in expected:
            lines.append(f"PASSED, but it is listed as an expected failure: {o.name}")
    return lines


def beside(outcomes: list[Outcome], stock: list[Outcome]) -> list[Outcome]:
    """Those of the tests that torch's own RPC passes, where it has been run on the same machine."""
    passed = {o.name for o in stock if o.outcome == "passed"}
    return [o for o in outcomes if o.name in passed]


def last_line(text: str) -> str:
    """Of what the test says, without torch's advice how to run it."""
    lines = [
        line.strip() for line in text.partition("\nTo execute this test")[0].splitlines() if line.strip()
    ]
    return lines[-1][:200] if lines else ""


def table(outcomes: list[Outcome], expected: dict[str, str]) -> str:
    """By class: passed, failed, failed as expected, skipped."""
    counts: dict[str, Counter[str]] = {}
    for o in outcomes:
        kind = "expected" if o.outcome == "failed" and o.name in expected else o.outcome
        counts.setdefault(o.name.partition(".")[0], Counter())[kind] += 1
    columns = ("passed", "failed", "expected", "skipped")
    lines = [f"{'class':34}" + "".join(f"{c:>10}" for c in columns)]
    for name, count in counts.items():
        lines.append(f"{name:34}" + "".join(f"{count[c]:>10}" for c in columns))
    total = sum(counts.values(), Counter())
    lines.append(f"{'in all':34}" + "".join(f"{total[c]:>10}" for c in columns))
    return "\n".join(lines)


def score(outcomes: list[Outcome]) -> str:
    passed = sum(o.outcome == "passed" for o in outcomes)
    return f"score: {passed} of {STOCK_PASSES} that torch's own backend passes without a GPU"


def junit(outcomes: list[Outcome]) -> bytes:
    suite = ElementTree.Element("testsuite", name="conformance", tests=str(len(outcomes)))
    for o in outcomes:
        cls, _, test = o.name.partition(".")
        case = ElementTree.SubElement(suite, "testcase", classname=cls, name=test, time=str(o.seconds))
        if o.outcome != "passed":
            kind = "failure" if o.outcome == "failed" else "skipped"
            ElementTree.SubElement(case, kind, message=last_line(o.why)).text = printable(o.why)
    return ElementTree.tostring(suite)


def printable(text: str) -> str:
    return "".join(c for c in text if c.isprintable() or c in "\n\t")
