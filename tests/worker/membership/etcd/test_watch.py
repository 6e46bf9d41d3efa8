from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from rpcgroup.local.etcd_server import EtcdServer
from rpcgroup.membership.etcd.client import EtcdClient
from rpcgroup.membership.etcd.credentials import EtcdCredentials
from rpcgroup.membership.etcd.messages import (
    COMPACT,
    DELETE,
    PUT,
    RANGE,
    TXN,
    CompactRequest,
    DeleteRequest,
    Event,
    Header,
    KeyValue,
    PutRequest,
    RangeRequest,
    RequestOp,
    TxnRequest,
)
from rpcgroup.membership.etcd.watch import KeyRange, Probe, Watch
from rpcgroup.testing.proxy import FaultyProxy

WAIT = 30.0


class Sink:
    """Keeps all it is told."""

    def __init__(self) -> None:
        self._told = threading.Condition()  # guards the rest
        self.snapshots: list[dict[str, str]] = []
        self.changes: list[str] = []
        self.batches: list[int] = []

    def on_snapshot(self, values: Sequence[KeyValue], revision: int) -> None:
        with self._told:
            self.snapshots.append({name(kv): kv.value.decode() for kv in values})
            self._told.notify_all()

    def on_events(self, events: Sequence[Event]) -> None:
        with self._told:
            self.batches.append(len(events))
            for event in events:
                self.changes.append(
                    f"-{name(event.kv)}" if event.is_delete else f"{name(event.kv)}={event.kv.value.decode()}"
                )
            self._told.notify_all()

    def wait(self, what: Callable[[Sink], object]) -> None:
        with self._told:
            if not self._told.wait_for(lambda: what(self), WAIT):
                pytest.fail(f"snapshots {self.snapshots}, changes {self.changes[-20:]}")


def name(kv: KeyValue) -> str:
    return kv.key.rpartition(b"/")[2].decode()


class Writer:
    """Writes with a connection of its own that no fault touches."""

    def __init__(self, client: EtcdClient, prefix: bytes) -> None:
        self.client = client
        self.prefix = prefix

    def put(self, key: str, value: str) -> int:
        put = PutRequest(self.prefix + key.encode(), value.encode())
        return self.client.retry(PUT, put, WAIT).header.revision

    def delete(self, key: str) -> None:
        self.client.call(DELETE, DeleteRequest(self.prefix + key.encode()))

    def compact(self) -> None:
        revision = self.client.call(RANGE, RangeRequest(self.prefix)).header.revision
        self.client.call(COMPACT, CompactRequest(revision, physical=True))


@pytest.fixture
def writer(client: EtcdClient, prefix: bytes) -> Writer:
    return Writer(client, prefix)


@contextmanager
def watching(client: EtcdClient, prefix: bytes, known: Header | None = None) -> Iterator[tuple[Sink, Watch]]:
    sink = Sink()
    watch = Watch(client, KeyRange.of_prefix(prefix), sink, "rpcgroup-test-watch", known)
    watch.start()
    try:
        yield sink, watch
    finally:
        watch.stop()


def test_first_what_is_there_then_what_changes(client: EtcdClient, writer: Writer) -> None:
    writer.put("a", "1")
    with watching(client, writer.prefix) as (sink, _):
        sink.wait(lambda me: me.snapshots)
        writer.put("a", "2")
        writer.put("b", "1")
        writer.delete("a")
        sink.wait(lambda me: len(me.changes) == 3)
    assert (sink.snapshots, sink.changes) == ([{"a": "1"}], ["a=2", "b=1", "-a"])


def test_who_knows_the_state_is_told_the_changes_only(client: EtcdClient, writer: Writer) -> None:
    writer.put("a", "1")
    known = client.call(RANGE, RangeRequest(writer.prefix)).header
    writer.put("a", "2")
    with watching(client, writer.prefix, known) as (sink, _):
        sink.wait(lambda me: me.changes)
    assert (sink.snapshots, sink.changes) == ([], ["a=2"])


def test_a_transactions_events_come_together(client: EtcdClient, writer: Writer) -> None:
    with watching(client, writer.prefix) as (sink, _):
        sink.wait(lambda me: me.snapshots)
        puts = [PutRequest(writer.prefix + key, b"1") for key in (b"a", b"b", b"c")]
        client.call(TXN, TxnRequest(success=[RequestOp(request_put=put) for put in puts]))
        sink.wait(lambda me: me.changes)
    assert sink.batches == [3]


@pytest.mark.parametrize("fault", ["cut", "lose"])
def test_nothing_is_lost_or_told_twice_when_the_network_fails(
    far_client: EtcdClient, proxy: FaultyProxy, writer: Writer, fault: str
) -> None:
    with watching(far_client, writer.prefix) as (sink, _), probing(far_client):
        sink.wait(lambda me: me.snapshots)
        writer.put("k", "0")
        sink.wait(lambda me: me.changes)
        for number in range(1, 21):
            if number == 5:
                getattr(proxy, fault)()
            if number == 15:
                proxy.mend()
            writer.put("k", str(number))
        sink.wait(lambda me: len(me.changes) >= 21)
    assert sink.changes == [f"k={number}" for number in range(21)]
    assert len(sink.snapshots) == 1


def test_a_connection_that_is_dead_in_silence_is_left_for_the_next_endpoint(
    etcd_server: EtcdServer, writer: Writer
) -> None:
    with ExitStack() as stack:
        proxies = [stack.enter_context(FaultyProxy(etcd_server.endpoint)) for _ in range(2)]
        client = stack.enter_context(closing(EtcdClient([proxy.endpoint for proxy in proxies])))
        sink, _ = stack.enter_context(watching(client, writer.prefix))
        stack.enter_context(probing(client))
        sink.wait(lambda me: me.snapshots)
        used = client._current().endpoint
        next(proxy for proxy in proxies if proxy.endpoint == used).lose()
        writer.put("k", "1")
        sink.wait(lambda me: me.changes)
    assert sink.changes == ["k=1"]


@contextmanager
def probing(client: EtcdClient) -> Iterator[None]:
    probe = Probe(client, b"/rpcgroup/")
    probe.start()
    try:
        yield
    finally:
        probe.stop()


def test_a_compaction_under_a_broken_watch_gives_the_state_anew(
    far_client: EtcdClient, proxy: FaultyProxy, writer: Writer
) -> None:
    writer.put("a", "1")
    writer.put("b", "1")
    with watching(far_client, writer.prefix) as (sink, _):
        sink.wait(lambda me: me.snapshots)
        proxy.cut()
        writer.put("a", "2")
        writer.delete("b")
        writer.compact()
        writer.put("c", "1")
        proxy.mend()
        sink.wait(lambda me: len(me.snapshots) == 2)
        writer.put("d", "1")
        sink.wait(lambda me: "d=1" in me.changes)
    assert sink.snapshots[1] == {"a": "2", "c": "1"}
    assert sink.changes == ["d=1"]


def test_a_catch_up_of_more_than_grpcs_limit_arrives(client: EtcdClient, writer: Writer) -> None:
    known = client.call(RANGE, RangeRequest(writer.prefix)).header
    value = "x" * 500_000
    for number in range(20):
        writer.put(str(number), value)
    with watching(client, writer.prefix, known) as (sink, _):
        sink.wait(lambda me: len(me.changes) == 20)
    assert sink.changes == [f"{number}={value}" for number in range(20)]


def test_a_catch_up_of_thousands_of_revisions_survives_a_break(
    far_client: EtcdClient, proxy: FaultyProxy, client: EtcdClient, writer: Writer
) -> None:
    """The header of a catch-up response is ahead of its events: who resumes after it loses the rest."""
    known = client.call(RANGE, RangeRequest(writer.prefix)).header
    for number in range(2500):
        writer.put("k", str(number))
    with watching(far_client, writer.prefix, known) as (sink, _):
        sink.wait(lambda me: me.changes)
        proxy.cut()
        proxy.mend()
        sink.wait(lambda me: len(me.changes) >= 2500)
    assert sink.changes == [f"k={number}" for number in range(2500)]


def test_relisting_on_request(client: EtcdClient, writer: Writer) -> None:
    writer.put("a", "1")
    with watching(client, writer.prefix) as (sink, watch):
        sink.wait(lambda me: me.snapshots)
        watch.relist()
        sink.wait(lambda me: len(me.snapshots) == 2)
        writer.put("a", "2")
        sink.wait(lambda me: me.changes == ["a=2"])


def test_an_empty_store_under_the_same_address_is_noticed(own_etcd: EtcdServer, prefix: bytes) -> None:
    with ExitStack() as stack:
        client = stack.enter_context(closing(EtcdClient([own_etcd.endpoint])))
        writer = Writer(client, prefix)
        for number in range(10):
            writer.put("k", str(number))
        sink, _ = stack.enter_context(watching(client, prefix))
        sink.wait(lambda me: me.snapshots == [{"k": "9"}])
        own_etcd.kill()
        own_etcd.wipe()
        own_etcd.start()
        writer.put("new", "1")
        sink.wait(lambda me: me.snapshots[-1] == {"new": "1"} or "new=1" in me.changes)
    assert {} in sink.snapshots or {"new": "1"} in sink.snapshots


def test_a_sink_that_fails_is_told_the_state_anew(
    client: EtcdClient, writer: Writer, caplog: pytest.LogCaptureFixture
) -> None:
    class Fragile(Sink):
        def on_events(self, events: Sequence[Event]) -> None:
            raise RuntimeError("the user's fault")

    sink = Fragile()
    watch = Watch(client, KeyRange.of_prefix(writer.prefix), sink, "rpcgroup-test-watch")
    watch.start()
    try:
        sink.wait(lambda me: me.snapshots)
        writer.put("a", "1")
        sink.wait(lambda me: {"a": "1"} in me.snapshots)
    finally:
        watch.stop()
    assert "the user's fault" in caplog.text


def test_a_watch_opened_with_a_token_that_expired_logs_in_anew(
    locked_etcd: EtcdServer, user: EtcdCredentials
) -> None:
    """etcd answers such a watch with `canceled`, not with an error."""
    with ExitStack() as stack:
        client = stack.enter_context(closing(EtcdClient([locked_etcd.endpoint], user)))
        writer = Writer(stack.enter_context(closing(EtcdClient([locked_etcd.endpoint], user))), b"/mine/")
        sink, watch = stack.enter_context(watching(client, b"/mine/"))
        sink.wait(lambda me: me.snapshots)
        writer.put("k", "1")
        sink.wait(lambda me: me.changes)
        client._login._token = "worker-no-longer-valid.7"
        assert watch._stream
        watch._stream.cancel()
        writer.put("k", "2")
        sink.wait(lambda me: len(me.changes) == 2)
    assert (sink.changes, len(sink.snapshots)) == (["k=1", "k=2"], 1)
    assert client._login._token != "worker-no-longer-valid.7"


def test_it_stops_while_etcd_is_away(tmp_path: Path, etcd_server: EtcdServer, prefix: bytes) -> None:
    with (
        EtcdServer(tmp_path / "etcd") as server,
        closing(EtcdClient([server.endpoint])) as client,
        watching(client, prefix) as (sink, _),
    ):
        sink.wait(lambda me: me.snapshots)
        server.kill()


def test_it_may_be_stopped_by_its_own_sink(client: EtcdClient, writer: Writer) -> None:
    stopped = threading.Event()

    class Once(Sink):
        def on_snapshot(self, values: Sequence[KeyValue], revision: int) -> None:
            watch.stop()
            stopped.set()

    watch = Watch(client, KeyRange.of_prefix(writer.prefix), Once(), "rpcgroup-test-watch")
    watch.start()
    assert stopped.wait(WAIT)
    watch.stop()
