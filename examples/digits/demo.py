"""`make run`: the digits job on this machine, scaled 3 -> 6 -> 2 and hurt on the way; then what came of it.

It does what a person would do at a second terminal: `rpcgroup run`, `status`, `scale`, and `kill -9`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["Demo", "faults", "main"]

ROOT = Path(__file__).parents[2]
MANIFEST = ROOT / "manifests/samples/digits.yaml"
GROUP = "digits"
"""The manifest's `metadata.name`."""
RPCGROUP = Path(sys.executable).with_name("rpcgroup")
READY = "ready"
WANTED_ACCURACY = 0.95
STEP_SECONDS = 60.0
END_SECONDS = 90.0


class Demo:
    """A running job, and what its output said at the end."""

    def __init__(self, manifest: Path = MANIFEST, group: str = GROUP) -> None:
        self._group = group
        self._began = time.monotonic()
        self.summary: dict[str, Any] = {}
        self._job = subprocess.Popen(
            [RPCGROUP, "run", "-f", manifest],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._relay = threading.Thread(target=self._read_output, name="relay")
        self._relay.start()

    def say(self, text: str) -> None:
        print(f"== {time.monotonic() - self._began:5.1f} s  {text}", flush=True)

    def workers(self) -> list[dict[str, Any]]:
        """As `rpcgroup status` tells them; none while the job is not up yet."""
        answer = subprocess.run(
            [RPCGROUP, "status", self._group, "-o", "json"],
            check=False,
            capture_output=True,
            text=True,
            timeout=30,
        )
        workers: list[dict[str, Any]] = json.loads(answer.stdout)["workers"] if answer.returncode == 0 else []
        return workers

    def trainers(self) -> dict[str, dict[str, Any]]:
        """Those that are ready, by name."""
        return {m["name"]: m for m in self.workers() if m["role"] == "worker" and m["state"] == READY}

    def until(
        self, what: str, holds: Callable[[dict[str, dict[str, Any]]], bool]
    ) -> dict[str, dict[str, Any]]:
        """Wait for it and say so; gives up when the job has ended or a minute has passed."""
        deadline = time.monotonic() + STEP_SECONDS
        pause = threading.Event()
        while not holds(trainers := self.trainers()):
            if self._job.poll() is not None:
                raise RuntimeError(f"the job ended (exit {self._job.returncode}) before: {what}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"not within {STEP_SECONDS:g} s: {what}; ready: {sorted(trainers)}")
            pause.wait(0.2)
        self.say(what)
        return trainers

    def scale(self, count: int) -> None:
        self.say(f"rpcgroup scale {self._group} {count}")
        subprocess.run([RPCGROUP, "scale", self._group, str(count)], check=True, timeout=30)
        self.until(f"{count} trainers are ready", lambda trainers: len(trainers) == count)

    def kill_one(self) -> str:
        name, victim = max(self.trainers().items())
        self.say(f"kill -9 {victim['pid']} ({name})")
        os.kill(victim["pid"], signal.SIGKILL)
        self.until(
            f"{name} was started again and is ready, as a new incarnation",
            lambda trainers: trainers.get(name, victim)["incarnation"] != victim["incarnation"],
        )
        return name

    def finish(self) -> int:
        """Wait for the job's own end; its exit code."""
        try:
            return self._job.wait(END_SECONDS)
        finally:
            self.close()

    def close(self) -> None:
        """Ask a job that still runs to drain, as Ctrl-C does."""
        if self._job.poll() is None:
            self._job.send_signal(signal.SIGINT)
            try:
                self._job.wait(30)
            except subprocess.TimeoutExpired:
                self._job.kill()
                self._job.wait()
        self._relay.join()

    def _read_output(self) -> None:
        assert self._job.stdout
        with self._job.stdout as lines:
            for line in lines:
                before, mark, data = line.rstrip().partition("summary {")
                if mark:
                    self.summary = json.loads("{" + data)
                else:
                    print(f"   {before}", flush=True)


def faults(demo: Demo, code: int, killed: list[str]) -> list[str]:
    """What the job should have done and did not."""
    summary = demo.summary
    if not summary:
        return [f"the server gave no summary; exit {code}"]
    checks = {
        f"exit code {code}, not 0": code == 0,
        f"accuracy {summary['accuracy']:.1%}, not {WANTED_ACCURACY:.0%}": summary["accuracy"]
        >= WANTED_ACCURACY,
        f"{summary['lost']} gradient calls lost": summary["lost"] == 0,
        f"{summary['repeated']} gradient calls run twice": summary["repeated"] == 0,
        f"killed: {summary['killed']}, not {killed}": summary["killed"] == killed,
    }
    return [fault for fault, passed in checks.items() if not passed]


def main() -> int:
    demo = Demo()
    try:
        demo.until("3 trainers are ready", lambda trainers: len(trainers) == 3)
        demo.scale(6)
        killed = demo.kill_one()
        demo.scale(2)
        demo.say("the rest of the job")
        code = demo.finish()
    except (RuntimeError, subprocess.SubprocessError) as exc:
        demo.say(f"FAILED: {exc}")
        return 1
    finally:
        demo.close()
    if found := faults(demo, code, [killed]):
        demo.say("FAILED: " + "; ".join(found))
        return 1
    demo.say(
        f"done: test accuracy {demo.summary['accuracy']:.2%} after {demo.summary['gradients']} gradients; "
        f"3 -> 6 -> 2 trainers, {killed} killed and replaced; no gradient call lost, none run twice"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
