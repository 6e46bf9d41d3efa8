"""Calls, beside torch RPC and a bare socket: all servers up once, slices of all peers interleaved."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from benchmarks.meeting import Meeting
from benchmarks.report import Report, Row
from benchmarks.stage import Stage
from benchmarks.workloads import WORKLOADS, Workload

__all__ = ["compare"]


def compare(
    meeting: Meeting,
    peers: Sequence[str],
    workloads: Sequence[str],
    *,
    rounds: int,
    seconds: float,
    say: Callable[[str], None],
) -> Report:
    """Run `rounds` slices of `seconds` of each workload with each peer, peer after peer within a round."""
    chosen = [w for w in WORKLOADS if w.name in workloads]
    load = os.getloadavg()[0]
    stages: dict[str, Stage] = {}
    try:
        for peer in _cast(chosen, peers):
            say(f"starting {peer}")
            stages[peer] = Stage(peer, meeting)
        rows = [row for workload in chosen for row in _run(workload, stages, peers, rounds, seconds, say)]
    finally:
        for stage in stages.values():
            stage.close()
    return Report(rows, list(peers), load)


def _cast(workloads: Sequence[Workload], peers: Sequence[str]) -> list[str]:
    """Who has to be there: the peers, and those that take their place in some workload."""
    stand_ins = [s for w in workloads for peer, s in w.instead if s and peer in peers]
    return list(dict.fromkeys([*peers, *stand_ins]))


def _run(
    workload: Workload,
    stages: dict[str, Stage],
    peers: Sequence[str],
    rounds: int,
    seconds: float,
    say: Callable[[str], None],
) -> list[Row]:
    say(f"measuring {workload.name}")
    players = {peer: dict(workload.instead).get(peer, peer) for peer in peers}
    able = {peer: stages[s] for peer, s in players.items() if s and stages[s].can(workload.needs)}
    rows = [Row(metric, {peer: [] for peer in able}) for metric in workload.metrics]
    for number in range(rounds + 1):
        for peer, stage in able.items():
            with stage.awake():
                # After the others' turns caches are cold, and nobody measures that: the first slice warms up.
                stage.measure(workload.name, seconds / 10)
                values = stage.measure(workload.name, seconds)
            if number:  # round 0 warms up: connections, threads, memory
                for row in rows:
                    row.rounds[peer].append(row.metric.of(values))
    return rows
