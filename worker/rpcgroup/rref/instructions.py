"""What the machine asks its shell to do, and the timers it asks to be called back with."""

from __future__ import annotations

from dataclasses import dataclass

from rpcgroup.rref.ids import ForkId, RRefId
from rpcgroup.rref.messages import Message

__all__ = [
    "Confirmed",
    "Drop",
    "Expire",
    "Forget",
    "Instruction",
    "Later",
    "Lose",
    "Reclaim",
    "Retry",
    "Send",
    "Timer",
]


@dataclass(frozen=True)
class Retry:
    """Send a message again that was not answered."""

    message: Message


@dataclass(frozen=True)
class Reclaim:
    """The grace period after a worker's death is over."""

    worker: int


@dataclass(frozen=True)
class Expire:
    """A message that creates the value cannot be under way any more."""

    rref_id: RRefId


@dataclass(frozen=True)
class Forget:
    """No message about the id can be under way any more."""

    dead_id: RRefId | ForkId


Timer = Retry | Reclaim | Expire | Forget


@dataclass(frozen=True)
class Send:
    """Send, then report `acknowledged`, `refused` or `unanswered`."""

    message: Message


@dataclass(frozen=True)
class Later:
    """Report `fire(timer)` after `delay` seconds."""

    delay: float
    timer: Timer


@dataclass(frozen=True)
class Confirmed:
    """A received fork is settled: known to its owner, or (with an error) never will be."""

    fork_id: ForkId
    error: Exception | None


@dataclass(frozen=True)
class Drop:
    """The value's last user is gone: only the program on the owner may still hold it."""

    rref_id: RRefId


@dataclass(frozen=True)
class Lose:
    """The value will never be created: whoever waits for it gets an error."""

    rref_id: RRefId
    reason: str


Instruction = Send | Later | Confirmed | Drop | Lose
