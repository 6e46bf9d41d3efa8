"""A watch that resumes: state first, then every change once, across outages, compactions and lost stores."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import grpc

from rpcgroup.errors import RendezvousError, RendezvousUnavailableError
from rpcgroup.membership.etcd.client import EtcdClient, WatchStream
from rpcgroup.membership.etcd.cursor import Verdict, WatchCursor
from rpcgroup.membership.etcd.login import token_is_stale
from rpcgroup.membership.etcd.messages import (
    RANGE,
    Event,
    Header,
    KeyValue,
    RangeRequest,
    WatchCreateRequest,
    WatchRequest,
    prefix_end,
)

__all__ = ["PROBE_SECONDS", "KeyRange", "Probe", "Watch", "WatchSink"]

PROBE_SECONDS: Final = 2.5
REFUSED_SECONDS: Final = 5.0
"""The pause after etcd refused a watch (the role was taken away, say): it will not relent at once."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KeyRange:
    """One key, or with `end` all keys from `key` up to it."""

    key: bytes
    end: bytes = b""

    @classmethod
    def of_prefix(cls, prefix: bytes) -> KeyRange:
        return cls(prefix, prefix_end(prefix))


class WatchSink(Protocol):
    """Called by the watch's thread. Errors of a sink end nothing: they are logged."""

    def on_snapshot(self, values: Sequence[KeyValue], revision: int) -> None:
        """Everything there is at `revision`: at the start, and again after a break that nothing bridges."""
        ...

    def on_events(self, events: Sequence[Event]) -> None:
        """What changed since, in order, each event once; a transaction's events come together."""
        ...


class Watch:
    """One thread that follows a range of keys.

    A stream's silence is no sign of life: the seat's keep-alive or a `Probe` finds a dead connection and
    drops the channel, and the end of the stream reopens the watch.
    """

    def __init__(
        self, client: EtcdClient, keys: KeyRange, sink: WatchSink, name: str, known: Header | None = None
    ) -> None:
        """`known`: of the answer whose state the caller has; without it a snapshot is told first."""
        self._client = client
        self._keys = keys
        self._sink = sink
        self._cursor = _after(known) if known else None  # the thread's own
        self._logged_in_anew = False  # the thread's own
        self._lock = threading.Lock()  # guards all of the following
        self._stream: WatchStream | None = None
        self._stopped = False
        self._relist = False
        self._verify = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()  # joined in stop()

    def stop(self) -> None:
        """Nothing is told after this, unless the watch's own thread calls it. Idempotent."""
        with self._lock:
            self._stopped = True
            stream = self._stream
        if stream:
            stream.cancel()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def relist(self) -> None:
        """Read everything anew, now. What happened in between shows as differences only."""
        with self._lock:
            self._relist = True
            stream = self._stream
        if stream:
            stream.cancel()

    def verify(self) -> None:
        """Once there is news, tell it as it happened, and then compare: is this the store that it was?"""
        with self._lock:
            self._verify = True

    def _run(self) -> None:
        while not self._ended():
            try:
                if self._cursor is None:
                    self._cursor = self._list()
                self._follow(self._cursor)
            except RendezvousUnavailableError:
                pass  # the client logs outages
            except RendezvousError as exc:
                if not self._ended():
                    _log.error("the watch of %r is refused; trying on: %s", self._keys.key, exc)
                    self._client.pause(REFUSED_SECONDS)
            except Exception:
                _log.exception("the watch of %r failed; reading everything anew", self._keys.key)
                self._cursor = None
            if not self._ended():
                self._client.pause()

    def _list(self) -> WatchCursor:
        with self._lock:
            self._relist = False
        answer = self._client.call(RANGE, RangeRequest(self._keys.key, self._keys.end))
        if not self._ended():
            self._sink.on_snapshot(answer.kvs, answer.header.revision)
        return _after(answer.header)

    def _follow(self, cursor: WatchCursor) -> None:
        """Until the stream ends; leaves `_cursor` where to go on."""
        cursor.reopened()
        create = WatchCreateRequest(
            self._keys.key, self._keys.end, cursor.next_revision, progress_notify=True, fragment=True
        )
        stream, generation, token = self._client.watch(WatchRequest(create))
        try:
            if not self._adopt(stream):
                return
            verdict = self._read(stream, cursor)
            if verdict is Verdict.RELIST:
                self._cursor = None
            elif verdict is Verdict.REOPEN:
                self._refused(cursor.cancel_reason, token)
        except grpc.RpcError as exc:
            self._broken(exc, generation, token)
        finally:
            stream.cancel()
            with self._lock:
                self._stream = None
                if self._relist:
                    self._cursor = None

    def _read(self, stream: WatchStream, cursor: WatchCursor) -> Verdict:
        for response in stream:
            verdict, events = cursor.feed(response)
            if self._ended():
                break
            if events:
                self._sink.on_events(events)
                self._verify_if_asked(cursor)
            if verdict is not Verdict.FOLLOW:
                return verdict
            self._logged_in_anew = False
        return Verdict.FOLLOW

    def _verify_if_asked(self, cursor: WatchCursor) -> None:
        with self._lock:
            asked, self._verify = self._verify, False
        if not asked:
            return
        told = cursor.next_revision - 1
        try:
            answer = self._client.call(RANGE, RangeRequest(self._keys.key, self._keys.end, revision=told))
        except RendezvousError:  # compacted meanwhile, or etcd is away again
            self.relist()
        else:
            self._sink.on_snapshot(answer.kvs, told)

    def _refused(self, reason: str, token: str) -> None:
        """A token that expired needs a new login; older etcd call that "permission denied" (etcd#12385)."""
        if token_is_stale(reason) or (token and not self._logged_in_anew):
            self._logged_in_anew = True
            self._client.forget_token(token)
        else:
            raise RendezvousError(reason or "no reason given")

    def _broken(self, exc: grpc.RpcError, generation: int, token: str) -> None:
        if self._wants_cancel() or self._client.closed:
            return
        error = self._client.watch_failed(exc, generation)
        if token_is_stale(error):
            self._client.forget_token(token)
        else:
            raise error from exc

    def _adopt(self, stream: WatchStream) -> bool:
        """Make the stream one that `stop` and `relist` can cancel; False if one of them came first."""
        with self._lock:
            self._stream = stream
            return not (self._stopped or self._relist)

    def _wants_cancel(self) -> bool:
        with self._lock:
            return self._stopped or self._relist

    def _ended(self) -> bool:
        with self._lock:
            return self._stopped or self._client.closed


def _after(header: Header) -> WatchCursor:
    return WatchCursor(header.revision + 1, header.raft_term)


class Probe:
    """Reads a key each PROBE_SECONDS: the liveness of watches in a process that keeps no lease.

    A failed call drops the channel, and with it the watches on it, which then reopen elsewhere.
    """

    def __init__(self, client: EtcdClient, key: bytes) -> None:
        """`key`: one that the client's user may read; it need not exist."""
        self._client = client
        self._key = key
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rpcgroup-etcd-probe", daemon=True)

    def start(self) -> None:
        self._thread.start()  # joined in stop()

    def stop(self) -> None:
        """Idempotent; also of one that was never started."""
        self._stopped.set()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(PROBE_SECONDS):
            try:
                self._client.call(RANGE, RangeRequest(self._key))
            except RendezvousError:
                pass  # logged by the client; the call itself was the point
