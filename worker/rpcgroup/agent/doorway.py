"""Where peers arrive: accepts connections, has each prove the secret, gives it to its session."""

from __future__ import annotations

import logging
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from rpcgroup.agent.exchange import Exchange
from rpcgroup.agent.session import Session
from rpcgroup.errors import HandshakeError
from rpcgroup.transport.base import Listener, Stream
from rpcgroup.wire.handshake import Hello, accept_handshake

if TYPE_CHECKING:
    from rpcgroup.agent.agent import Agent

__all__ = ["Doorway"]

HANDSHAKE_TIMEOUT: Final = 5.0
"""Seconds that a stranger may take for the whole of it."""
MAX_STRANGERS: Final = 256
"""Connections in the handshake at once; further ones are closed at once."""

_log = logging.getLogger(__name__)


class Doorway:
    """Owns the listener and the acceptor thread; `close` joins it."""

    def __init__(self, agent: Agent, listener: Listener, name: str) -> None:
        self._agent = agent
        self._listener = listener
        self._lock = threading.Lock()  # guards _strangers
        self._strangers: set[Stream] = set()
        self._closed = False
        self._thread = threading.Thread(target=self._accept, name=f"rpcgroup-acceptor-{name}", daemon=True)

    @property
    def address(self) -> str:
        return self._listener.address

    def start(self) -> None:
        self._thread.start()

    def forget(self) -> None:
        """In a forked child."""
        self._listener.forget()

    def close(self, timeout: float) -> None:
        self._closed = True
        self._listener.close()
        with self._lock:
            strangers = list(self._strangers)
        for stream in strangers:
            stream.shutdown()
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def _accept(self) -> None:
        while not self._closed:
            try:
                stream = self._listener.accept()
            except OSError as exc:
                if self._closed:
                    return
                _log.warning("cannot accept a connection: %s", exc)
                time.sleep(0.1)  # out of descriptors, most likely: the peer tries again
                continue
            with self._lock:
                crowded = len(self._strangers) >= MAX_STRANGERS
                if not crowded:
                    self._strangers.add(stream)
            if crowded:
                _log.warning("a connection was closed: %d others are in the handshake", MAX_STRANGERS)
                stream.close()
                continue
            self._agent.chores.submit(partial(self._welcome, stream))

    def _welcome(self, stream: Stream) -> None:
        """Off the acceptor: a stranger may be slow."""
        agent = self._agent
        held: list[Session] = []
        hello: Hello | None = None
        exchange = Exchange(stream, HANDSHAKE_TIMEOUT)
        try:
            exchange.begin()
            hello = accept_handshake(
                exchange.send, exchange.receive, agent.secret, agent.identity, partial(self._admit, held)
            )
            exchange.end()
        except (HandshakeError, TimeoutError) as exc:
            _log.warning("a connection was refused: %s", exc)
        except OSError as exc:
            # One that ends without a word is a probe of the port.
            _log.log(
                logging.WARNING if exchange.received else logging.DEBUG,
                "a connection was refused: it broke off in the handshake (%s)",
                exc,
            )
        finally:
            with self._lock:
                self._strangers.discard(stream)
            if hello is None or self._closed:
                stream.close()
                for session in held:
                    session.let_go()
                held.clear()
        if hello is not None and held:
            if agent.members.of_incarnation(hello.peer.incarnation) is None:
                agent.on_unknown()  # it has joined a moment ago: what it asks for may name it
            held[0].attach(stream, hello.received)
            agent.monitor.wake()

    def _admit(self, held: list[Session], hello: Hello) -> int:
        """The session of a proven peer; returns how many frames it has received."""
        agent = self._agent
        session = agent.connections.find_session(hello.peer.incarnation, hello.channel)
        if session is None:
            if hello.resuming:
                raise HandshakeError("this channel is not known here any more")
            session = agent.connections.new_session(hello.peer, hello.channel)
        received = session.hold()
        held.append(session)
        return received
