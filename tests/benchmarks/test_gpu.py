from __future__ import annotations

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu import Finding, table


def test_a_bar_is_a_share_or_a_limit() -> None:
    assert [
        Finding("a", 81.0, "GB/s", 100.0, 0.8).verdict,
        Finding("b", 79.0, "GB/s", 100.0, 0.8).verdict,
        Finding("c", 49.0, "ms", bar=50.0).verdict,
        Finding("d", 51.0, "ms", bar=50.0).verdict,
        Finding("e", 51.0, "ms").verdict,
    ] == ["met", "NOT MET", "met", "NOT MET", ""]


def test_the_table_has_ratios_and_bars() -> None:
    findings = [
        Finding("x", 81.0, "GB/s", 100.0, 0.8),
        Finding("y", 2.0, "ms"),
        Finding("z", 2.0, "ms", bar=50.0),
    ]
    assert [line.split() for line in table(findings).splitlines()[1:]] == [
        ["x", "81.00", "GB/s", "81.0%", ">=", "80%", "met"],
        ["y", "2.00", "ms"],
        ["z", "2.00", "ms", "<", "50", "ms", "met"],
    ]


def test_it_says_that_there_is_no_gpu(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main() == 0
    assert (
        capsys.readouterr().out == f"benchmarks.gpu is skipped: torch {torch.__version__} finds no GPU here\n"
    )
