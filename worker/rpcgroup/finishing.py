"""How a worker's work is brought to an end before it leaves: its own calls, and those of others that it serves."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from typing import Final

from rpcgroup.agent.agent import Agent
from rpcgroup.collectives import Collectives

__all__ = ["finish_alone", "finish_together", "rest_together"]

REFERENCES_TIMEOUT: Final = 1.0
"""Seconds for owners to answer that the references held here are deleted."""

LEAST_SECONDS: Final = 0.001
"""Of a timeout that is over: 0 would be none."""

_log = logging.getLogger(__name__)


def finish_alone(agent: Agent, timeout: float) -> None:
    """The group goes on: end what is under way here, refuse what comes anew. `timeout` in seconds."""
    deadline = time.monotonic() + timeout
    if not agent.finish_calls(timeout):
        _log.warning("left without the answers to some calls, after %.0f s", timeout)
    agent.references.shutdown(REFERENCES_TIMEOUT)
    if not agent.finish_serving(max(REFERENCES_TIMEOUT, deadline - time.monotonic())):
        _log.warning("left before all calls of others had ended and their answers had arrived")


def finish_together(
    agent: Agent, collectives: Collectives, names: Sequence[str], timeout: float | None
) -> None:
    """All members end: wait until all have come here, then serve each other until nobody has work any more.

    Nobody waits for the dead, and nobody calls anybody any more when this returns. Raises `GroupError` after
    `timeout` seconds (None: no limit), naming who has not come.
    """
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    collectives.meet(None, names, 0.0 if timeout is None else timeout)
    agent.finish_calls(max(deadline - time.monotonic(), LEAST_SECONDS))
    agent.references.shutdown(REFERENCES_TIMEOUT)
    rest_together(
        agent,
        collectives,
        names,
        None if timeout is None else max(deadline - time.monotonic(), LEAST_SECONDS),
    )


def rest_together(
    agent: Agent, collectives: Collectives, names: Sequence[str], timeout: float | None
) -> None:
    """Serve each other until nobody has work any more; all members call this. Raises as `finish_together`.

    Work that others give me keeps them from being idle: so a round of which all were idle at its begin is the last.
    """
    deadline = math.inf if timeout is None else time.monotonic() + timeout

    def left() -> float:
        return max(deadline - time.monotonic(), LEAST_SECONDS)

    def is_idle() -> bool:
        return not agent.connections.has_pending_calls() and agent.connections.in_flight <= collectives.guests

    while True:
        was_idle = is_idle()
        agent.wait_until(is_idle, left())
        if all(collectives.meet(was_idle, names, 0.0 if timeout is None else left()).values()):
            return
