"""Results as a table, as JSON and as a plot."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.workloads import Metric

__all__ = ["OURS", "THEIRS", "Report", "Row"]

OURS = "rpcgroup"
THEIRS = "torch tcp"


@dataclass
class Row:
    """One metric: for each peer a value a round; a peer that cannot do it has none."""

    metric: Metric
    rounds: dict[str, list[float]] = field(default_factory=dict)

    def median(self, peer: str) -> float | None:
        values = self.rounds.get(peer)
        return statistics.median(values) if values else None

    def ratio(self, peer: str = OURS) -> float | None:
        """To torch over TCP, round by round: the machine's speed drifts between rounds, not within one."""
        pairs = list(zip(self.rounds.get(peer, ()), self.rounds.get(THEIRS, ()), strict=False))
        return statistics.median(mine / theirs for mine, theirs in pairs) if pairs else None

    def verdict(self) -> str:
        ratio = self.ratio()
        if self.metric.bar is None or ratio is None:
            return ""
        return "met" if self.metric.bar.met(ratio) else "NOT MET"


@dataclass
class Report:
    rows: list[Row]
    peers: list[str]
    load: float = 0.0
    """Runnable processes before the run, averaged over a minute."""
    date: str = field(default_factory=lambda: datetime.date.today().isoformat())

    def table(self) -> str:
        head = ["", "unit", *self.peers, f"{OURS} / {THEIRS}", "bar", ""]
        body = [
            [
                row.metric.name,
                row.metric.unit,
                *(_figure(row.median(peer)) for peer in self.peers),
                _figure(row.ratio(), "x"),
                str(row.metric.bar or ""),
                row.verdict(),
            ]
            for row in self.rows
        ]
        return _markdown([head, *body])

    def machine(self) -> dict[str, object]:
        """What the figures were measured on."""
        return {
            "cpu": _processor(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "load before": round(self.load, 2),
            "date": self.date,
        }

    def to_json(self) -> str:
        return json.dumps(self._data(), indent=2) + "\n"

    def _data(self) -> dict[str, object]:
        return {
            "machine": self.machine(),
            "metrics": [
                {
                    "name": row.metric.name,
                    "unit": row.metric.unit,
                    "rounds": row.rounds,
                    "median": {peer: row.median(peer) for peer in self.peers},
                    "ratio": {peer: row.ratio(peer) for peer in self.peers},
                    "bar": str(row.metric.bar or ""),
                    "verdict": row.verdict(),
                }
                for row in self.rows
            ],
        }

    def plot(self, path: Path) -> None:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot, ticker

        others = [peer for peer in self.peers if peer != THEIRS]
        figure, axes = pyplot.subplots(figsize=(9, 0.5 + 0.55 * len(self.rows)), layout="constrained")
        height = 0.8 / len(others)
        for n, peer in enumerate(others):
            speedups = [_speedup(row, peer) for row in self.rows]
            places = [place + n * height for place in range(len(self.rows))]
            axes.barh(places, [s if s else 0 for s in speedups], height, label=peer)
        axes.set_yticks(
            [i + 0.4 - height / 2 for i in range(len(self.rows))], [r.metric.name for r in self.rows]
        )
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
        axes.axvline(1, color="black", linewidth=1)
        axes.set_xlabel(f"times as fast as {THEIRS}")
        axes.legend()
        figure.savefig(path, dpi=120)
        pyplot.close(figure)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(
        (line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine()
    )


def _speedup(row: Row, peer: str) -> float | None:
    ratio = row.ratio(peer)
    if not ratio:
        return None
    return 1 / ratio if row.metric.lower_is_better else ratio


def _figure(value: float | None, suffix: str = "") -> str:
    """Three significant digits; thousands are set apart."""
    if value is None:
        return "-"
    digits = max(0, 2 - len(str(int(abs(value)))) + 1) if abs(value) >= 1 else 3
    return f"{value:,.{digits}f}{suffix}"


def _markdown(lines: list[list[str]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rows = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    ]
    rows.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(rows)
