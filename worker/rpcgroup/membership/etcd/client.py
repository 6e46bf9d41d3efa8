"""Calls to etcd that survive what happens to etcd: one channel at a time, dropped after a failed call.

A channel that failed is closed and the next endpoint dialled: that is what brings recovery in under a second,
where gRPC's own reconnection takes seconds or, after lost packets, never comes.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final, Protocol, TypeVar, cast

# gRPC's fork handlers warn at every fork of a process with a channel (each DataLoader worker), and are known
# to hang. Without them gRPC does not work in a forked child, which `_refuse_in_forked_child` says there.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc

from rpcgroup.errors import RemoteProtocolError, RendezvousError, RendezvousUnavailableError
from rpcgroup.membership.etcd.auth_messages import AUTHENTICATE, AuthenticateRequest
from rpcgroup.membership.etcd.codec import decode, encode
from rpcgroup.membership.etcd.credentials import EtcdCredentials
from rpcgroup.membership.etcd.login import USERS_CHANGED, Login, token_is_stale
from rpcgroup.membership.etcd.messages import KEEP_ALIVE, WATCH, Method, WatchRequest, WatchResponse

__all__ = ["AUTHENTICATE_SECONDS", "CALL_SECONDS", "EtcdClient", "EtcdRefusedError", "WatchStream"]

CALL_SECONDS: Final = 2.0
"""The deadline of one call: longer than an election takes, shorter than a user waits."""
AUTHENTICATE_SECONDS: Final = 10.0
"""A login costs etcd 100 ms of bcrypt, given up or not: with a short deadline a crowd locks itself out."""
LOG_SECONDS: Final = 10.0
"""An outage is logged at once and then each so many seconds."""

CHANNEL_OPTIONS: Final = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),  # is the connection's time limit too
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 10_000),  # etcd refuses pings more often than each 5 s
    ("grpc.keepalive_timeout_ms", 3000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # or a new channel inherits the old one's backoff
    ("grpc.enable_retries", 0),
    ("grpc.service_config_disable_resolution", 1),
)

LOST: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
    }
)
"""After these nobody knows whether the call was applied, and the channel is not to be trusted."""

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
_log = logging.getLogger(__name__)


_grpc_pid = 0  # of the first process that dialled


def _refuse_in_forked_child() -> None:
    """A call would hang there for ever, deadline or not (measured with grpcio 1.85.1)."""
    global _grpc_pid
    _grpc_pid = _grpc_pid or os.getpid()
    if _grpc_pid != os.getpid():
        raise RendezvousError(
            f"process {os.getpid()} was forked from {_grpc_pid}, which uses etcd, and gRPC does not work "
            "after a fork: start such processes by 'spawn' or 'forkserver'"
        )


class EtcdRefusedError(RendezvousError):
    """etcd answered, and the answer is no; `code` is gRPC's status."""

    def __init__(self, text: str, code: grpc.StatusCode) -> None:
        super().__init__(text)
        self.code = code


class WatchStream(Protocol):
    """The responses to one watch request."""

    def __iter__(self) -> Iterator[WatchResponse]: ...

    def cancel(self) -> object: ...


class _Connection:
    """One channel to one endpoint; `generation` counts them."""

    def __init__(self, generation: int, endpoint: str, credentials: EtcdCredentials) -> None:
        self.generation = generation
        self.endpoint = endpoint
        if credentials.tls:
            tls = grpc.ssl_channel_credentials(credentials.ca(), credentials.key(), credentials.cert())
            self.channel = grpc.secure_channel(endpoint, tls, CHANNEL_OPTIONS)
        else:
            self.channel = grpc.insecure_channel(endpoint, CHANNEL_OPTIONS)

    def unary(self, method: Method[_Request, _Response], request: _Request, **how: Any) -> _Response:
        call = self.channel.unary_unary(method.path, encode, lambda data: decode(method.response, data))
        return cast(_Response, call(request, **how))

    def watch(self, request: WatchRequest, **how: Any) -> WatchStream:
        call = self.channel.unary_stream(WATCH.path, encode, lambda data: decode(WatchResponse, data))
        return cast(WatchStream, call(request, **how))


class EtcdClient:
    """Thread-safe. Belongs to the process that made it: in a forked child it refuses and closes nothing."""

    def __init__(self, endpoints: Sequence[str], credentials: EtcdCredentials | None = None) -> None:
        self._endpoints = random.sample(endpoints, len(endpoints))
        self._credentials = credentials or EtcdCredentials()
        self._closed = threading.Event()
        self._lock = threading.Lock()  # guards _connection, _generation and the outage's two times
        self._login = Login(self._credentials)
        self._pid = os.getpid()
        self._generation = 0
        self._connection: _Connection | None = None
        self._failing_since = 0.0
        self._logged_at = 0.0

    def call(
        self, method: Method[_Request, _Response], request: _Request, seconds: float = CALL_SECONDS
    ) -> _Response:
        """One try, and up to two more where etcd refuses this client's token.

        Raises `RendezvousUnavailableError` where nobody knows whether it was applied, `EtcdRefusedError`
        where etcd refused it.
        """
        refusals = 0
        while True:
            connection = self._current()
            token = self._token_for(connection)
            try:
                response = connection.unary(method, request, timeout=seconds, metadata=self._metadata(token))
            except (grpc.RpcError, ValueError, RemoteProtocolError) as exc:
                error = self._understand(exc, connection, method.name)
                refusals += 1
                if refusals > 2 or not token_is_stale(error):
                    raise error from exc
                if refusals == 2 or USERS_CHANGED not in str(error):
                    self.forget_token(token)
            else:
                self._note_answer()
                if method.path != KEEP_ALIVE.path:  # which older etcd answers whatever the token
                    self._login.was_answered()
                return response

    def retry(self, method: Method[_Request, _Response], request: _Request, seconds: float) -> _Response:
        """For reads and for writes that can be repeated: tries until it works or the time is over.

        Raises as `call` does; `RendezvousUnavailableError` then names all endpoints and what to do.
        """
        deadline = time.monotonic() + seconds
        while True:
            left = max(deadline - time.monotonic(), 0.05)
            try:
                return self.call(method, request, min(CALL_SECONDS, left))
            except RendezvousUnavailableError as exc:
                if self._closed.is_set() or time.monotonic() + 0.1 > deadline:
                    raise self.unavailable(seconds, exc) from exc
            self.pause()

    def watch(self, request: WatchRequest) -> tuple[WatchStream, int, str]:
        """Open a watch; with it the generation of its channel and the token it was opened with."""
        connection = self._current()
        token = self._token_for(connection)
        try:
            return connection.watch(request, metadata=self._metadata(token)), connection.generation, token
        except (grpc.RpcError, ValueError) as exc:
            raise self._understand(exc, connection, WATCH.name) from exc

    def watch_failed(self, exc: Exception, generation: int) -> RendezvousError:
        """What the error of an open watch means; drops its channel where that is what failed."""
        connection = self._current()
        if connection.generation != generation:
            return RendezvousUnavailableError("etcd: the watch's channel was dropped")
        return self._understand(exc, connection, WATCH.name)

    def pause(self, seconds: float = 0.2) -> None:
        """Between two tries: half to one and a half of `seconds`, to spread a crowd; none once closed."""
        self._closed.wait(seconds * random.uniform(0.5, 1.5))

    def unavailable(self, seconds: float, last: object) -> RendezvousUnavailableError:
        where = ", ".join(self._endpoints)
        return RendezvousUnavailableError(
            f"etcd does not answer at {where} (tried for {seconds:.1f} s; last: {last}); check that it runs, "
            "that the rendezvous URL names its client port, and the network in between"
        )

    def forget_token(self, token: str) -> None:
        """The next call logs in, unless another thread has since `token`. Spreads a crowd's logins."""
        self._closed.wait(random.uniform(0.0, 0.2))
        self._login.forget(token)

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    def close(self) -> None:
        """Ends calls and watches in flight. Idempotent."""
        self._closed.set()
        if self._pid != os.getpid():
            return
        with self._lock:
            connection, self._connection = self._connection, None
        if connection:
            connection.channel.close()

    def _current(self) -> _Connection:
        if self._closed.is_set():
            raise RendezvousError("this rendezvous is closed")
        _refuse_in_forked_child()
        with self._lock:
            if self._connection is None:
                endpoint = self._endpoints[self._generation % len(self._endpoints)]
                self._connection = _Connection(self._generation, endpoint, self._credentials)
            return self._connection

    def _drop(self, connection: _Connection) -> None:
        """Close that channel, which ends the watches on it, once, however many threads it failed under."""
        with self._lock:
            if self._connection is connection:
                self._connection = None
                self._generation += 1
        connection.channel.close()

    def _metadata(self, token: str) -> list[tuple[str, str]]:
        """`hasleader`: a member cut off from its peers says so, instead of serving old data in silence."""
        return [("hasleader", "true")] + ([("token", token)] if token else [])

    def _token_for(self, connection: _Connection) -> str:
        return self._login.token(lambda request: self._log_in(connection, request))

    def _log_in(self, connection: _Connection, request: AuthenticateRequest) -> str:
        """The token; "" where etcd knows no users, or none yet: then it wants no token either."""
        try:
            return connection.unary(AUTHENTICATE, request, timeout=AUTHENTICATE_SECONDS).token
        except (grpc.RpcError, ValueError, RemoteProtocolError) as exc:
            error = self._understand(exc, connection, AUTHENTICATE.name)
            if "authentication is not enabled" in str(error):
                return ""
            raise error from exc

    def _understand(self, exc: Exception, connection: _Connection, what: str) -> RendezvousError:
        """The one place where gRPC's errors become ours."""
        if not isinstance(exc, grpc.RpcError):  # "channel closed" (another thread dropped it), or garbage
            self._drop(connection)
            return RendezvousUnavailableError(f"etcd {connection.endpoint}: {what}: {exc}")
        code, details = exc.code(), exc.details()
        text = f"etcd {connection.endpoint}: {what}: {code.name}: {details}"
        if code not in LOST:
            return EtcdRefusedError(text, code)
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            self._login.was_overdue()
        self._drop(connection)
        self._note_failure(text)
        return RendezvousUnavailableError(text)

    def _note_failure(self, text: str) -> None:
        now = time.monotonic()
        with self._lock:
            self._failing_since = self._failing_since or now
            quiet = now - self._logged_at < LOG_SECONDS or self._closed.is_set()
            if not quiet:
                self._logged_at = now
            since = now - self._failing_since
        if not quiet:
            _log.warning("etcd does not answer since %.0f s; trying on: %s", since, text)

    def _note_answer(self) -> None:
        if not self._failing_since:
            return
        with self._lock:
            since, self._failing_since, self._logged_at = self._failing_since, 0.0, 0.0
        if since:
            _log.info("etcd answers again after %.1f s", time.monotonic() - since)
