from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.conformance.report import (
    Outcome,
    beside,
    junit,
    last_line,
    read_expected,
    score,
    table,
    unexpected,
)

HERE = Path(__file__).parent
EXPECTED = {"A.test_listed": "a reason", "A.test_mended": "a reason"}
OUTCOMES = [
    Outcome("A.test_good", "passed", 1.0, ""),
    Outcome("A.test_listed", "failed", 1.0, "Traceback\nError: why"),
    Outcome("A.test_mended", "passed", 1.0, ""),
    Outcome("B.test_bad", "failed", 1.0, "Traceback\nError: why\n\nTo execute this test, run\nsomething"),
    Outcome("B.test_gpu", "skipped", 1.0, "Need at least 1 CUDA device"),
]


def test_what_is_not_as_listed_is_told() -> None:
    assert unexpected(OUTCOMES, EXPECTED) == [
        "PASSED, but it is listed as an expected failure: A.test_mended",
        "FAILED B.test_bad: Error: why",
    ]
    assert unexpected(OUTCOMES[:2], EXPECTED) == []


def test_what_torchs_own_fails_is_not_asked_for() -> None:
    stock = [replace(o, outcome="passed" if o.name != "B.test_bad" else "failed") for o in OUTCOMES]
    judged = beside(OUTCOMES, stock)
    assert [o.name for o in judged] == [o.name for o in OUTCOMES if o.name != "B.test_bad"]
    assert unexpected(judged, {"A.test_listed": "a reason"}) == []


def test_the_table_counts_by_class() -> None:
    lines = [line.split() for line in table(OUTCOMES, EXPECTED).splitlines()]
    assert lines[1:4] == [
        ["A", "2", "0", "1", "0"],
        ["B", "0", "1", "0", "1"],
        ["in", "all", "2", "1", "1", "1"],
    ]
    assert score(OUTCOMES).startswith("score: 2 of 463 ")


@pytest.mark.parametrize("name", ["expected_failures.txt", "expected_failures_emulated.txt"])
def test_the_lists_that_are_checked_in_can_be_read(name: str) -> None:
    expected = read_expected(HERE / name)
    assert expected
    assert all(name.count(".") == 1 and reason for name, reason in expected.items())


def test_a_line_without_a_reason_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "expected.txt"
    path.write_text("# a comment\nA.test_a: why\nA.test_b\n")
    with pytest.raises(ValueError, match=r"A\.test_b"):
        read_expected(path)


def test_junit_can_be_read_whatever_a_test_printed() -> None:
    odd = Outcome("A.test_odd", "failed", 0.1, "a colour: \x1b[31m\nlast")
    suite = ElementTree.fromstring(junit([*OUTCOMES, odd]))
    assert [case.get("name") for case in suite] == [o.name.partition(".")[2] for o in [*OUTCOMES, odd]]
    assert len(suite.findall(".//failure")) == 3
    assert len(suite.findall(".//skipped")) == 1


def test_the_last_line_is_the_tests_own() -> None:
    assert last_line("") == ""
    assert last_line(OUTCOMES[3].why) == "Error: why"
