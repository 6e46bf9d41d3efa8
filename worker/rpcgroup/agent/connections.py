"""One agent's connections: its links to others, and the sessions of others with it."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Final

from rpcgroup.agent.link import Link
from rpcgroup.agent.members import Target, targets
from rpcgroup.agent.session import Session
from rpcgroup.agent.transfers import Transfers
from rpcgroup.errors import PeerUnreachableError
from rpcgroup.membership.record import MemberRecord
from rpcgroup.transport.base import Stream
from rpcgroup.transport.channel import Channel
from rpcgroup.transport.memory_pool import ReceivePool
from rpcgroup.wire.frames import FrameReader, pack_frame
from rpcgroup.wire.handshake import Identity
from rpcgroup.wire.messages import MessageType

if TYPE_CHECKING:
    from rpcgroup.agent.agent import Agent
    from rpcgroup.agent.peer import Peer

__all__ = ["Connections"]

SWEEP_PAUSE: Final = 0.005
"""Seconds between two sweeps, at the least."""
_log = logging.getLogger(__name__)


class Connections:
    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self.receive_pool = ReceivePool()
        self.ready: dict[Target, Link] = {}
        """Connected links by what users call their peers; the hot path's only look-up."""
        self.links: tuple[Link, ...] = ()
        self._lock = threading.Lock()  # guards changes of links
        self._sessions: dict[tuple[int, str], Session] = {}
        self._closed = False

    # -- channels -----------------------------------------------------------------------------------------

    def new_transfers(self, peer: str, incarnation: int) -> Transfers | None:
        """For one end of a channel with that member; None in a process without devices."""
        accelerator = self._agent.accelerator
        return Transfers(self._agent, accelerator, peer, incarnation) if accelerator is not None else None

    def new_channel(self, stream: Stream, transfers: Transfers | None) -> Channel:
        allocate = self.receive_pool.allocate
        if transfers is None:
            return Channel(stream, FrameReader(allocate))
        allocators = {int(MessageType.TENSOR_CHUNK): transfers.arrivals.allocate}
        transfers.channel = Channel(stream, FrameReader(allocate, allocators=allocators))
        return transfers.channel

    # -- links --------------------------------------------------------------------------------------------

    def link_made(self, peer: Peer, link: Link) -> None:
        agent = self._agent
        with self._lock:
            self.links = (*self.links, link)
        if agent.closing:  # looked at after the link could be seen: one of the two fails it
            link.fail(_shut_down(agent))
            return
        link.watch()
        agent.on_reachable(peer.name, peer.incarnation)

    def link_lost(self, peer: Peer, link: Link) -> None:
        agent = self._agent
        with self._lock:
            self.links = tuple(other for other in self.links if other is not link)
        # Copied at once: other threads add to it.
        for target in [key for key, ready in list(self.ready.items()) if ready is link]:
            self.ready.pop(target, None)
        if agent.closing or peer.gone:
            return
        if link.leaving:
            agent.on_goodbye(peer.incarnation)
        agent.on_unreachable(peer.name, peer.incarnation)

    def make_ready(self, to: Target, link: Link) -> None:
        """Calls to that target find the link, unless it has failed, or its peer is no member any more."""
        self.ready[to] = link
        if link.failure is not None or link.peer.gone:
            self.ready.pop(to, None)

    def unready(self, record: MemberRecord) -> None:
        """The next call of that member looks it up again."""
        for target in targets(record):
            self.ready.pop(target, None)

    def has_pending_calls(self) -> bool:
        return any(link.pending for link in self.links)

    def sweep(self, now: float) -> None:
        """End the calls that are past their deadline; arrange for the next."""
        nearest = 0.0
        for link in self.links:
            for call in list(link.pending.values()):
                if not call.deadline:
                    continue
                if call.deadline <= now:
                    link.expire(call)
                elif not nearest or call.deadline < nearest:
                    nearest = call.deadline
        if nearest:
            self._agent.monitor.expect(max(nearest, now + SWEEP_PAUSE))

    def check_silence(self) -> None:
        """Give up connections whose host has gone quiet while it owes an answer."""
        for link in self.links:
            if (link.pending or link.listeners) and not link.channel.broken:
                silence = link.channel.stream.silence()
                if silence > self._agent.options.silence:
                    _log.warning(
                        "%s has been silent for %.1f s: trying to reconnect", link.peer.name, silence
                    )
                    link.interrupt()

    # -- sessions -----------------------------------------------------------------------------------------

    def sessions(self) -> list[Session]:
        return list(self._sessions.values())

    def find_session(self, incarnation: int, channel_id: str) -> Session | None:
        return self._sessions.get((incarnation, channel_id))

    def new_session(self, peer: Identity, channel_id: str) -> Session:
        session = Session(self._agent, peer, channel_id)
        self._sessions[(peer.incarnation, channel_id)] = session
        if self._closed:  # looked at after the session could be seen: one of the two closes it
            session.close()
        return session

    def forget_session(self, session: Session) -> None:
        self._sessions.pop((session.peer.incarnation, session.channel_id), None)

    def sessions_of(self, incarnation: int) -> list[Session]:
        return [session for session in self.sessions() if session.peer.incarnation == incarnation]

    @property
    def in_flight(self) -> int:
        """Requests of others that are not answered yet."""
        return sum(session.in_flight for session in self.sessions())

    @property
    def answers_arrived(self) -> bool:
        return all(session.answers_arrived for session in self.sessions())

    def say_goodbye(self) -> None:
        """To those that call here: no further request is answered."""
        for session in self.sessions():
            session.say_goodbye()

    # -- the end ------------------------------------------------------------------------------------------

    def close_links(self) -> None:
        """Pending calls fail. The agent is closing already: no link is made any more."""
        for session in self.sessions():
            session.part()
        for link in self.links:
            channel = link.channel
            channel.queue(pack_frame(MessageType.GOODBYE, 0, 0, 0, 0, channel.acknowledgement()))
            channel.try_flush()
            link.fail(_shut_down(self._agent))

    def close_sessions(self) -> None:
        self._closed = True
        for session in self.sessions():
            session.close()

    def forget_in_child(self) -> None:
        """In a forked child: give back what was inherited, so that the parent's death is seen."""
        self.ready.clear()
        for channel in [link.channel for link in self.links] + [s.channel for s in self.sessions()]:
            if channel is not None:
                channel.stream.forget()


def _shut_down(agent: Agent) -> PeerUnreachableError:
    return PeerUnreachableError(f"this worker ({agent.name}) was shut down")
