"""Control messages on their way: gathered per event, retried until answered or the peer is dead."""

from __future__ import annotations

from collections.abc import Set
from typing import Final

from rpcgroup.rref.instructions import Instruction, Later, Retry, Send
from rpcgroup.rref.messages import Item, Message
from rpcgroup.wire.messages import MessageType

__all__ = ["FIRST_RETRY", "ITEMS_PER_MESSAGE", "LAST_RETRY", "Outbox"]

FIRST_RETRY: Final = 0.05
LAST_RETRY: Final = 5.0
"""Seconds between two attempts; doubled from the first to the last."""
ITEMS_PER_MESSAGE: Final = 4096
"""132 KiB: far below any cap of a frame."""


class Outbox:
    """Owns every control message of this worker that has not been answered."""

    def __init__(self, out: list[Instruction], dead: Set[int]) -> None:
        self._out = out
        self._dead = dead
        self._gathered: dict[tuple[int, MessageType], list[Item]] = {}
        self._unanswered: set[Message] = set()

    def __len__(self) -> int:
        return len(self._unanswered)

    def add(self, to: int, kind: MessageType, item: Item) -> None:
        """Part of the next message of that kind to that worker; nothing is said to the dead."""
        if to not in self._dead:
            self._gathered.setdefault((to, kind), []).append(item)

    def flush(self) -> None:
        """What one event gathered goes out in one message per worker and kind."""
        if not self._gathered:
            return
        for (to, kind), items in self._gathered.items():
            for start in range(0, len(items), ITEMS_PER_MESSAGE):
                message = Message(to, kind, items[start : start + ITEMS_PER_MESSAGE])
                self._unanswered.add(message)
                self._out.append(Send(message))
        self._gathered.clear()

    def answered(self, message: Message) -> bool:
        """False where it no longer matters: the peer died meanwhile."""
        if message not in self._unanswered:
            return False
        self._unanswered.remove(message)
        return True

    def unanswered(self, message: Message) -> bool:
        """Arrange for another attempt; false where it no longer matters."""
        if message not in self._unanswered:
            return False
        delay = min(FIRST_RETRY * 2.0 ** min(message.attempts, 16), LAST_RETRY)
        message.attempts += 1
        self._out.append(Later(delay, Retry(message)))
        return True

    def retry(self, message: Message) -> None:
        if message in self._unanswered:
            self._out.append(Send(message))

    def peer_died(self, worker: int) -> None:
        self._unanswered -= {message for message in self._unanswered if message.to == worker}
