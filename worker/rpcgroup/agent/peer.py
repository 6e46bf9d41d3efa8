"""Another member, as this agent calls it: where it is, and the link to it."""

from __future__ import annotations

import secrets
import threading
import time
from typing import TYPE_CHECKING, Final

from rpcgroup.agent.exchange import Exchange
from rpcgroup.agent.forks import Forks
from rpcgroup.agent.link import Link
from rpcgroup.devices import DevicePlacement
from rpcgroup.errors import HandshakeError, PeerUnreachableError
from rpcgroup.membership.record import MemberRecord
from rpcgroup.transport.base import Stream
from rpcgroup.wire.handshake import Identity, dial_handshake

if TYPE_CHECKING:
    from rpcgroup.agent.agent import Agent

__all__ = ["Peer"]

RETRY_PAUSE: Final = 0.05
"""Seconds between two attempts to get a broken connection back."""


class Peer:
    """One incarnation of one member. Its link is made by the first call, and again by the next after it failed."""

    def __init__(self, agent: Agent, record: MemberRecord) -> None:
        self.agent = agent
        self.record = record
        self.name = record.name
        self.incarnation = record.incarnation
        self.gone = ""
        """Why it is no longer a member; calls to it fail at once then."""
        self.forks = Forks(agent, record.incarnation)
        self.placement: DevicePlacement | None = None
        """Where the tensors of requests to it go; None in a process without devices."""
        self.answers_reach_devices = False
        """The CPU of this peer is a device here, for its answers."""
        self._link: Link | None = None
        self._lock = threading.Lock()  # guards the making of the link

    def link(self) -> Link:
        """The link, connected if need be; raises `PeerUnreachableError`."""
        link = self._link
        if link is not None and link.failure is None:
            return link
        with self._lock:
            link = self._link
            if link is None or link.failure is not None:
                link = self._connect()
                self._link = link
                if self.gone:  # looked at after the link could be seen: one of the two fails it
                    link.fail(PeerUnreachableError(f"{self.name} {self.gone}"))
        if link.failure is not None:
            raise PeerUnreachableError(*link.failure.args)
        return link

    def existing_link(self) -> Link | None:
        link = self._link
        return link if link is not None and link.failure is None else None

    def lost(self, link: Link) -> None:
        """The link has failed for good."""
        self.agent.connections.link_lost(self, link)

    def leave(self) -> None:
        """It is `gone`: pending calls fail, too."""
        link = self._link
        if link is not None and link.failure is None:
            link.fail(PeerUnreachableError(f"{self.name} {self.gone}"))

    # -- connecting ---------------------------------------------------------------------------------------

    def _connect(self) -> Link:
        agent = self.agent
        if self.gone:
            raise PeerUnreachableError(f"{self.name} {self.gone}")
        if agent.closing:
            raise PeerUnreachableError(f"{self.name} is not called any more: this worker is shutting down")
        channel_id = secrets.token_hex(8)
        deadline = time.monotonic() + agent.options.handshake_timeout
        try:
            stream, identity, _ = self._dial_until(deadline, channel_id, 0, False)
        except HandshakeError as exc:
            raise PeerUnreachableError(
                f"{self.name} at {self.record.address} was not accepted: {exc}"
            ) from exc
        except OSError as exc:
            raise PeerUnreachableError(
                f"{self.name} at {self.record.address} cannot be reached: {_reason(exc)}"
            ) from exc
        transfers = agent.connections.new_transfers(self.name, self.incarnation)
        channel = agent.connections.new_channel(stream, transfers)
        make_link = agent.options.make_link or Link
        link = make_link(agent, self, channel_id, channel, identity.main != agent.identity.main, transfers)
        agent.connections.link_made(self, link)
        return link

    def reconnect(self, link: Link, cause: BaseException) -> tuple[Stream, int]:
        """A new connection for a link whose old one broke, and how much the peer had received.

        Raises `PeerUnreachableError`: at once where the peer's port is closed, else after the suspicion time.
        """
        deadline = time.monotonic() + self.agent.options.suspicion
        last: BaseException = cause
        if not self.gone and not self.agent.closing:
            try:
                received = link.channel.reader.received
                stream, _, received_by_peer = self._dial_until(deadline, link.channel_id, received, True)
                return stream, received_by_peer
            except OSError as exc:
                last = exc
        if self.agent.closing:
            raise PeerUnreachableError(f"this worker ({self.agent.name}) was shut down")
        why = (
            self.gone
            or f"was lost: the connection broke ({_reason(cause)}) and did not come back ({_reason(last)})"
        )
        raise PeerUnreachableError(f"{self.name} at {self.record.address} {why}")

    def _dial_until(
        self, deadline: float, channel_id: str, received: int, resuming: bool
    ) -> tuple[Stream, Identity, int]:
        """Dial, again and again while the connection breaks; not where the port is closed or we are refused."""
        while True:
            began = time.monotonic()
            try:
                return self._dial(channel_id, received, resuming, max(0.01, deadline - time.monotonic()))
            except ConnectionRefusedError:
                self.agent.on_refused(self.name, self.incarnation)
                raise
            except HandshakeError:
                raise
            except OSError:
                silent = time.monotonic() - began >= self.agent.options.connect_timeout
                in_vain = silent or self.gone or self.agent.closing
                if in_vain or time.monotonic() + RETRY_PAUSE >= deadline:
                    raise
                time.sleep(RETRY_PAUSE)

    def _dial(
        self, channel_id: str, received: int, resuming: bool, timeout: float
    ) -> tuple[Stream, Identity, int]:
        agent = self.agent
        stream = agent.transport.connect(self.record.address, min(timeout, agent.options.connect_timeout))
        exchange = Exchange(stream, timeout)
        try:
            exchange.begin()
            identity, received_by_peer = dial_handshake(
                exchange.send,
                exchange.receive,
                agent.secret,
                agent.identity,
                self.name,
                self.incarnation,
                channel_id,
                received,
                resuming,
            )
            exchange.end()
        except BaseException:
            stream.close()
            raise
        return stream, identity, received_by_peer


def _reason(exc: BaseException) -> str:
    if isinstance(exc, ConnectionRefusedError):
        return "connection refused: no process listens there any more"
    return str(exc) or type(exc).__name__
