"""What can be chosen about an agent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rpcgroup.agent.link import Link

__all__ = ["AgentOptions"]


@dataclass(frozen=True)
class AgentOptions:
    """All times in seconds."""

    rpc_timeout: float = 60.0
    """Of a call that names none; 0 = none."""
    connect_timeout: float = 5.0
    """Of a first connection, for the peer's host to accept it."""
    handshake_timeout: float = 15.0
    """Of a first connection with its handshake: the peer lives, and may be in code that lets no other thread run."""
    suspicion: float = 1.0
    """How long a broken connection is tried again before its peer counts as unreachable."""
    silence: float = 1.5
    """How long the host of a peer that owes an answer may acknowledge nothing before its connection is given up.

    The kernel asks for a sign of life after each second of silence, so it must be longer than that.
    """
    resume_window: float = 10.0
    """How long a callee keeps the answers of a caller whose connection broke; longer than any `suspicion`."""
    num_worker_threads: int = 16
    """What a program for torch asks for and reads again. Threads come and go with the work here: it bounds nothing."""
    stream_priority: int = 0
    """Of the streams that functions and callbacks run on; negative is high."""
    make_link: Callable[..., Link] | None = None
    """Makes the links, with the arguments of `Link`; None: `Link` itself. Fault injection has one of its own."""
