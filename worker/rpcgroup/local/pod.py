"""A pod of the local driver: one worker process after the other, and its state by the lifecycle's table."""

from __future__ import annotations

import signal
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from rpcgroup.control.lifecycle import PodEvent, PodState, advance
from rpcgroup.control.pod import ObservedPod, failures_in_a_row
from rpcgroup.local.process import WorkerProcess
from rpcgroup.local.template import Command
from rpcgroup.membership.record import MemberRecord, MemberState

__all__ = ["LocalPod"]

BEFORE_KILL: Final = "killed: it did not end within its grace period"


class LocalPod:
    """Owns its process and its state; used by the driver's loop only.

    `on_event` gets one line of text for each thing that a person wants to know.
    """

    def __init__(
        self,
        name: str,
        role: str,
        index: int,
        log: Path,
        now: float,
        on_line: Callable[[str], None],
        on_event: Callable[[str], None],
        deletion_cost: int = 0,
    ) -> None:
        self.name = name
        self.role = role
        self.index = index
        self.uid = str(uuid.uuid4())
        self.state = PodState.PENDING
        self.restarts = 0
        self.exit_status: int | None = None
        self.process: WorkerProcess | None = None
        self.kill_at: float | None = None
        self._log = log
        self._on_line = on_line
        self._on_event = on_event
        self._created_at = now
        self._started_at = now
        self._failures = 0
        self._failed_at = 0.0
        self._drain_deadline = 0.0
        self._deletion_cost = deletion_cost
        self._incarnation = 0
        self._past_incarnation = 0

    def observed(self) -> ObservedPod:
        return ObservedPod(
            self.name,
            self.role,
            self.index,
            self.state,
            self._created_at,
            self._failures,
            self._failed_at,
            self._drain_deadline,
            self._deletion_cost,
        )

    # What the plan asks for.
    def start(self, command: Command, now: float) -> None:
        self._started_at = now
        try:
            self.process = WorkerProcess(
                command.arguments, command.env, command.cwd, self._log, self._on_line
            )
        except OSError as exc:  # no memory, no process slot, no descriptor
            self._failed(now)
            self._on_event(f"cannot be started: {exc}")
            return
        self._see(PodEvent.STARTED)
        self._on_event(f"started (pid {self.process.pid})")

    def restart(self) -> None:
        self.restarts += 1
        self._see(PodEvent.RESTART)

    def drained(self, deadline: float, now: float, reason: str) -> None:
        """Its worker was asked to leave."""
        self._drain_deadline = deadline
        self._see(PodEvent.DRAIN)
        self._on_event(f"asked to leave within {deadline - now:.0f} s: {reason}")

    def delete(self, grace: float, now: float) -> None:
        """What still runs is asked to end, and killed after `grace` seconds."""
        self._see(PodEvent.DELETE)
        if self.process is None:
            return
        if grace > 0:
            self.terminate()
            self.kill_at = now + grace
        else:
            self.kill("killed: it did not leave in time")

    def terminate(self) -> None:
        """Ask the process to end, which a worker takes for a request to drain."""
        if self.process is not None:
            self.process.terminate()

    def kill(self, why: str) -> None:
        if self.process is not None:
            self._on_event(why)
            self.process.kill()
            self.kill_at = None

    def close(self) -> None:
        """Whatever it does, it ends here."""
        if self.process is not None:
            self.process.kill()
            self.process.close()
            self.process = None

    # What is observed.
    def observe(self, record: MemberRecord | None, now: float) -> None:
        """Advance by what its process and its record show now."""
        ended = self.process.poll() if self.process else None
        if self.process and ended is not None:
            self._ended(ended, now)
        elif self.process and self.kill_at is not None and now >= self.kill_at:
            self.kill(BEFORE_KILL)
        if self.state is PodState.TERMINATING and self.process is None:
            self._see(PodEvent.REMOVED)
        self._observe_record(record)

    def _observe_record(self, record: MemberRecord | None) -> None:
        if record is not None and (self.process is None or record.incarnation <= self._past_incarnation):
            self._past_incarnation = max(self._past_incarnation, record.incarnation)
            record = None  # of a process that has ended; the plan evicts it
        if record is not None:
            self._incarnation = record.incarnation
        ready = record is not None and record.state is MemberState.READY
        if self.state is PodState.RUNNING and ready:
            self._see(PodEvent.JOINED)
            self._on_event("ready")
        elif self.state is PodState.READY and not ready:
            self._see(PodEvent.LOST)
            self._on_event("not ready" if record else "out of the group")
        elif self.state is PodState.DRAINING and record is None:
            self._see(PodEvent.LEAVING)
            self._on_event("has left the group")

    def _ended(self, status: int, now: float) -> None:
        assert self.process
        self.process.close()
        self.process, self.kill_at, self.exit_status = None, None, status
        self._past_incarnation = self._incarnation
        if self.state is PodState.TERMINATING:
            self._on_event("ended")
        elif status == 0:
            self._see(PodEvent.ENDED_WELL)
            self._on_event("succeeded" if self.state is PodState.SUCCEEDED else "drained")
        else:
            self._failed(now)
            often = f" ({self._failures} in a row)" if self._failures > 1 else ""
            self._on_event(f"failed: {in_words(status)}{often}")

    def _failed(self, now: float) -> None:
        self._failures = failures_in_a_row(self._failures, now - self._started_at)
        self._failed_at = now
        self._see(PodEvent.ENDED_BADLY)

    def _see(self, event: PodEvent) -> None:
        self.state = advance(self.state, event)


def in_words(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


def deletion_cost(annotations: Mapping[str, str], key: str) -> int:
    """0 for what is no number, as Kubernetes takes it."""
    try:
        return int(annotations.get(key, "0"))
    except ValueError:
        return 0
