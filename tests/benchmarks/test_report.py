from __future__ import annotations

import json

import pytest

from benchmarks.report import OURS, THEIRS, Report, Row
from benchmarks.workloads import Metric, at_least, at_most

LATENCY = Metric("no-op", "us", max, at_most(0.15))
RATE = Metric("calls", "calls/s", max, at_least(20), lower_is_better=False)


def test_a_ratio_is_taken_round_by_round() -> None:
    """A machine that slows down between rounds does not change it."""
    row = Row(LATENCY, {OURS: [10, 40, 20], THEIRS: [100, 400, 200]})
    assert row.ratio() == pytest.approx(0.1)
    assert (row.median(OURS), row.median(THEIRS)) == (20, 200)


@pytest.mark.parametrize(
    ("metric", "ours", "verdict"),
    [(LATENCY, 15, "met"), (LATENCY, 16, "NOT MET"), (RATE, 2000, "met"), (RATE, 1999, "NOT MET")],
)
def test_a_bar_is_met_or_not(metric: Metric, ours: float, verdict: str) -> None:
    assert Row(metric, {OURS: [ours], THEIRS: [100]}).verdict() == verdict


def test_what_was_not_measured_has_no_verdict() -> None:
    row = Row(LATENCY, {THEIRS: [100]})
    assert (row.ratio(), row.verdict()) == (None, "")


def test_a_report_is_a_table_and_json() -> None:
    report = Report([Row(LATENCY, {OURS: [12.3], THEIRS: [1234.5]})], [OURS, THEIRS, "socket"])
    assert "| no-op | us   | 12.3" in report.table()
    assert "1,234" in report.table() and "0.010x" in report.table()
    [metric] = json.loads(report.to_json())["metrics"]
    assert metric["median"] == {OURS: 12.3, THEIRS: 1234.5, "socket": None}
