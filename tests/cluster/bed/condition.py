"""How a real cluster is: what a failed test shows of it, where its logs are gone by the time somebody reads."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

from tests.cluster.bed.access import Access, CommandError

__all__ = ["describe"]

TROUBLE: Final = re.compile(r"^[EF]\d{4} |level=(error|fatal)")
"""What klog and containerd begin such a line with."""
LINES: Final = 6
"""Of each log and list."""
LINE: Final = 220
"""Characters."""


def describe(access: Access, folder: Path) -> str:
    """The node's conditions, the pods that do not run, the last warnings and the last errors of each program."""
    parts = [_machine(folder)]
    for title, ask in (("node", _conditions), ("pods", _pods), ("warnings", _warnings)):
        try:
            parts += [f"{title}:", *(f"  {line[:LINE]}" for line in ask(access))]
        except (CommandError, subprocess.TimeoutExpired, OSError) as exc:
            parts.append(f"{title}: {exc}")
    for log in sorted((folder / "logs").glob("*.log")):
        found = [line for line in log.read_text(errors="replace").splitlines() if TROUBLE.search(line)]
        parts += [f"{log.name}: {len(found)} errors", *(f"  {line[:LINE]}" for line in found[-LINES:])]
    return "\n".join(parts)


def _machine(folder: Path) -> str:
    memory = re.search(r"MemAvailable: +(\d+)", Path("/proc/meminfo").read_text())
    free = shutil.disk_usage(folder).free // 2**20
    load = Path("/proc/loadavg").read_text().split()[0]
    return f"machine: {int(memory[1]) // 1024 if memory else '?'} MB of memory, {free} MB of disk left; load {load}"


def _conditions(access: Access) -> list[str]:
    lines = []
    for node in access.get("nodes")["items"]:
        taints = [taint["key"] for taint in node["spec"].get("taints", [])]
        lines.append(f"{node['metadata']['name']}: taints {taints}")
        for condition in node["status"]["conditions"]:
            told = condition["type"], condition["status"], condition["reason"], condition["message"]
            lines.append(" ".join(told))
    return lines


def _pods(access: Access) -> list[str]:
    pods = access.get("pods", "--all-namespaces")["items"]
    lines = [f"{len(pods)} in all"]
    for pod in pods:
        if not all(container.get("ready") for container in pod["status"].get("containerStatuses", [{}])):
            lines.append(_pod(pod))
    return lines[: 1 + LINES]


def _pod(pod: dict[str, Any]) -> str:
    meta, status = pod["metadata"], pod["status"]
    states = [container["state"] for container in status.get("containerStatuses", [])]
    ending = " ending" if "deletionTimestamp" in meta else ""
    return f"{meta['namespace']}/{meta['name']} {status['phase']}{ending} {states}"


def _warnings(access: Access) -> list[str]:
    events = access.get(
        "events", "--all-namespaces", "--field-selector=type=Warning", "--sort-by=.metadata.creationTimestamp"
    )["items"]
    return [
        f"{event['involvedObject']['name']}: {event['reason']}: {event['message']}"
        for event in events[-LINES:]
    ]
