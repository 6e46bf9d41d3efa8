"""`python -m benchmarks`: calls beside torch RPC and a bare socket, joins, idling."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import click

from benchmarks.calls import compare
from benchmarks.meeting import Meeting, free_port
from benchmarks.members import idle, joins
from benchmarks.report import OURS, THEIRS
from benchmarks.workloads import WORKLOADS
from rpcgroup.local.etcd_server import EtcdServer

RESULTS = Path(__file__).parent / "results"
NAMES = [*(workload.name for workload in WORKLOADS), "joins", "idle"]
PEERS = [OURS, THEIRS, "torch default", "socket"]
PORTS = ["TorchTcp", "TorchTcpManyThreads", "TorchDefault", "RawSocket"]


@click.command()
@click.option("--quick", is_flag=True, help="Few and short slices: shows that it runs, not how fast.")
@click.option("--only", type=click.Choice(NAMES), multiple=True, help="Just this; may be repeated.")
def main(quick: bool, only: tuple[str, ...]) -> None:
    """Measure this project beside torch RPC and a bare socket, in one run on this machine."""
    chosen = only or tuple(NAMES)
    began = time.monotonic()
    RESULTS.mkdir(exist_ok=True)

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {text}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as folder, EtcdServer(Path(folder)) as etcd:
        if workloads := [name for name in chosen if name not in ("joins", "idle")]:
            meeting = Meeting({peer: free_port() for peer in PORTS}, etcd=etcd.endpoint)
            rounds, seconds = (2, 0.1) if quick else (5, 0.3)
            report = compare(meeting, PEERS, workloads, rounds=rounds, seconds=seconds, say=say)
            (RESULTS / "calls.json").write_text(report.to_json())
            report.plot(RESULTS / "calls.png")
            print(report.table())
            print("\n" + ", ".join(f"{key} {value}" for key, value in report.machine().items()) + "\n")
        findings = joins(etcd.endpoint, times=1 if quick else 7, say=say) if "joins" in chosen else []
        findings += idle(etcd.endpoint, seconds=2 if quick else 10, say=say) if "idle" in chosen else []
    if findings:
        (RESULTS / "members.json").write_text(json.dumps([asdict(f) for f in findings], indent=2) + "\n")
        print("\n".join(f"- {finding}" for finding in findings))


if __name__ == "__main__":
    main()
