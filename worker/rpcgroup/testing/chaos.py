"""Workers that call each other without pause and write down every call, for tests that kill some of them.

A ledger line is written before a call is made, when it ends, and when it runs, by one `write` each: it survives
the SIGKILL of its process. `judge` reads all ledgers and says what was lost or ran twice.
"""

from __future__ import annotations

import os
import random
import threading
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import rpcgroup as rpc
from rpcgroup import contract
from rpcgroup.errors import DrainedError, PeerUnreachableError, UnknownWorkerError

__all__ = ["Verdict", "judge", "run_worker"]

CALL_TIMEOUT = 60.0
_ledger: int = -1


def write_line(*words: object) -> None:
    os.write(_ledger, (" ".join(map(str, words)) + "\n").encode())


def serve(call_id: str) -> str:
    """What everybody calls."""
    write_line("ran", call_id)
    return call_id


def run_worker(
    name: str, url: str, secret: str, ttl: int, directory: str, seed: int, control: Connection
) -> None:
    """A worker's life: join, call whoever is there until told to leave or drained, leave.

    Says ("joined", incarnation) and ("left", number of calls) through `control`; anything received ends it.
    """
    global _ledger
    os.environ[contract.ENV_SECRET] = secret
    os.environ[contract.ENV_LEASE_TTL] = str(ttl)
    # Before joining: from then on others call.
    _ledger = os.open(f"{directory}/{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    group = rpc.init_rpc(name, init_method=url)
    incarnation = group.me.incarnation
    write_line("me", incarnation)
    stop = threading.Event()
    group.on_drain(lambda request: stop.set())
    control.send(("joined", incarnation))
    callers = [
        threading.Thread(target=_call_around, args=(group, incarnation, i, seed, stop), name=f"caller-{i}")
        for i in range(2)
    ]
    for caller in callers:
        caller.start()
    while not stop.is_set() and not control.poll(0.05):
        pass
    stop.set()
    for caller in callers:
        caller.join()
    rpc.shutdown()
    write_line("left")
    control.send(("left", sorted(t.name for t in threading.enumerate() if t.name.startswith("rpcgroup"))))


def _call_around(group: rpc.Group, incarnation: int, number: int, seed: int, stop: threading.Event) -> None:
    chance = random.Random(f"{seed}-{incarnation}-{number}")
    count = 0
    while not stop.is_set():
        target = chance.choice(group.members())
        count += 1
        call_id = f"{incarnation}.{number}.{count}"
        try:
            answer = rpc.rpc_sync(target.name, serve, (call_id,), timeout=CALL_TIMEOUT)
        except (DrainedError, UnknownWorkerError):
            outcome = "refused"
        except PeerUnreachableError:
            outcome = "unreachable"
        except Exception as exc:
            outcome = f"{type(exc).__name__}:{exc}".replace(" ", "_").replace("\n", "_")
        else:
            outcome = "ok" if answer == call_id else f"wrong_answer:{answer}"
        write_line("call", call_id, target.incarnation, outcome)
        if outcome != "ok":
            stop.wait(0.005)


@dataclass
class Verdict:
    """`faults`: one line for each call that was lost or ran twice."""

    calls: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def judge(directory: Path, killed: set[int]) -> Verdict:
    """Read all ledgers. `killed`: incarnations that met SIGKILL.

    Nothing runs twice; an answered call ran once; a call fails only to a worker that was killed, or that left, and
    what a leaver refused did not run.
    """
    verdict = Verdict()
    runs: dict[str, list[int]] = defaultdict(list)
    calls: list[tuple[int, str, int, str]] = []
    left: set[int] = set()
    for path in directory.glob("*.log"):
        lines = [line.split() for line in path.read_text().splitlines()]
        me = next((int(words[0]) for kind, *words in lines if kind == "me"), 0)
        for kind, *words in lines:
            if kind == "ran":
                runs[words[0]].append(me)
            elif kind == "call":
                calls.append((me, words[0], int(words[1]), words[2]))
            elif kind == "left":
                left.add(me)
    for call_id, where in runs.items():
        if len(where) > 1:
            verdict.faults.append(f"{call_id} ran {len(where)} times, on {where}")
    for me, call_id, target, outcome in calls:
        verdict.calls += 1
        verdict.outcomes[outcome] += 1
        ran = len(runs.get(call_id, []))
        if outcome == "ok":
            if ran != 1:
                verdict.faults.append(f"{call_id} was answered and ran {ran} times")
        elif outcome == "refused":
            if ran:
                verdict.faults.append(f"{call_id} was refused by {target} and ran")
        elif outcome == "unreachable":
            if target in killed:
                continue
            if target not in left:
                verdict.faults.append(f"{call_id} of {me}: {target} was unreachable, and lived")
            elif ran:
                verdict.faults.append(f"{call_id} of {me}: {target} ran it, left, and the answer was lost")
        else:
            verdict.faults.append(f"{call_id} of {me} to {target}: {outcome}")
    return verdict
