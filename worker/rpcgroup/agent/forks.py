"""References on their way to and from one peer: what the codec asks of the references."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rpcgroup.rref.ids import ForkData, WireFork

if TYPE_CHECKING:
    from rpcgroup.agent.agent import Agent
    from rpcgroup.rref.context import Pending
    from rpcgroup.rref.rref import RRef

__all__ = ["Forks"]


class Forks:
    """Made once for each peer; the codec's `Forks`."""

    __slots__ = ("_agent", "_incarnation")

    def __init__(self, agent: Agent, incarnation: int) -> None:
        self._agent = agent
        self._incarnation = incarnation

    def fork(self, reference: RRef[Any]) -> WireFork:
        return self._agent.references.fork(reference, self._incarnation).to_wire()

    def fork_failed(self, fork: WireFork) -> None:
        self._agent.references.fork_failed(ForkData.from_wire(fork))

    def receive(self, forks: list[WireFork]) -> tuple[list[RRef[Any]], Pending | None]:
        return self._agent.references.receive(forks, self._incarnation)

    def receive_answer(self, forks: list[WireFork]) -> list[RRef[Any]]:
        """Of an answer: nothing waits for the confirmation."""
        return self.receive(forks)[0]

    def decline(self, forks: list[WireFork]) -> None:
        """Of a message that nobody will look at."""
        if forks:
            self._agent.references.decline(forks, self._incarnation)
