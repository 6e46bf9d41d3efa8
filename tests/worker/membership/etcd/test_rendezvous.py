"""What the rendezvous in etcd survives. What it does is in `tests/worker/membership/test_rendezvous.py`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace

import pytest

from rpcgroup.errors import RendezvousError, RendezvousUnavailableError
from rpcgroup.local.etcd_server import EtcdServer
from rpcgroup.membership.etcd.client import CALL_SECONDS, EtcdClient
from rpcgroup.membership.etcd.credentials import EtcdCredentials
from rpcgroup.membership.etcd.messages import (
    COMPACT,
    DELETE,
    PUT,
    RANGE,
    CompactRequest,
    DeleteRequest,
    Method,
    PutRequest,
    RangeRequest,
    RangeResponse,
)
from rpcgroup.membership.etcd.rendezvous import EtcdRendezvous
from rpcgroup.membership.record import MemberRecord, MemberState
from rpcgroup.membership.rendezvous import (
    OPERATION_SECONDS,
    DrainRequest,
    GroupView,
    RecordEvent,
    RecordPut,
    Rendezvous,
)
from rpcgroup.membership.tracker import Change, ChangeKind, MemberTracker
from rpcgroup.membership.url import open_rendezvous, parse_rendezvous_url
from rpcgroup.testing.proxy import FaultyProxy
from rpcgroup.testing.rendezvous import EtcdPlace, RecordingListener

TTL = 2
"""Seconds: the shortest lease there is."""


def admit_all(mine: MemberRecord, earlier: Sequence[MemberRecord]) -> None:
    pass


@dataclass
class Worker:
    seat: Rendezvous
    listener: RecordingListener
    record: MemberRecord

    def changes(self) -> list[Change]:
        """What the tracker makes of all it was told."""
        tracker = MemberTracker()
        return [change for event in self.listener.events for change in tracker.handle(event)]

    def lost(self) -> list[Change]:
        return [change for change in self.changes() if change.kind is not ChangeKind.JOINED]

    @property
    def view(self) -> GroupView:
        return self.listener.views[-1]


def enter(seat: Rendezvous, name: str, **fields: object) -> Worker:
    listener = RecordingListener()
    record = replace(MemberRecord(name=name), **fields)  # type: ignore[arg-type]
    mine = seat.join(record, admit=admit_all, listener=listener, timeout=10)
    return Worker(seat, listener, mine)


def gather(place: EtcdPlace, count: int) -> list[Worker]:
    """Workers that know each other."""
    workers = [enter(place.open(), f"w{number}") for number in range(count)]
    for worker in workers:
        worker.listener.wait(lambda me: len(me.views[-1].members) == count)
    return workers


def wait_until_whole(workers: list[Worker], state: MemberState) -> None:
    """Each has told all others of its new state: the group works again."""
    for worker in workers:
        worker.seat.update(state=state)
    for worker in workers:
        worker.listener.wait(
            lambda me: (
                len(me.views[-1].members) == len(workers)
                and all(m.state is state for m in me.views[-1].members.values())
            )
        )


def pass_time(seconds: float) -> None:
    """An outage has a length, and this is it."""
    threading.Event().wait(seconds)


def test_an_etcd_killed_for_three_lease_times_costs_nobody(
    own_etcd: EtcdServer, own_place: EtcdPlace
) -> None:
    workers = gather(own_place, 8)
    own_etcd.kill()
    pass_time(3 * TTL)
    own_etcd.start()
    wait_until_whole(workers, MemberState.READY)
    assert [worker.lost() for worker in workers] == [[]] * 8
    for worker in workers:
        assert {m.name: m.incarnation for m in worker.view.members.values()} == {
            w.record.name: w.record.incarnation for w in workers
        }


def test_an_etcd_frozen_past_the_leases_costs_nobody(own_etcd: EtcdServer, own_place: EtcdPlace) -> None:
    workers = gather(own_place, 4)
    own_etcd.freeze()
    pass_time(2 * TTL)
    own_etcd.thaw()
    wait_until_whole(workers, MemberState.READY)
    assert [worker.lost() for worker in workers] == [[]] * 4


def test_an_etcd_that_comes_back_empty_costs_nobody(own_etcd: EtcdServer, own_place: EtcdPlace) -> None:
    workers = gather(own_place, 4)
    for _ in range(5):
        workers[0].seat.update(labels={"step": "x"})
    epochs = [worker.view.epoch for worker in workers]
    own_etcd.kill()
    own_etcd.wipe()
    own_etcd.start()
    wait_until_whole(workers, MemberState.READY)
    assert [worker.lost() for worker in workers] == [[]] * 4
    assert all(worker.view.epoch > before for worker, before in zip(workers, epochs, strict=True))
    newcomer = enter(own_place.open(), "w9")
    incarnations = {w.record.incarnation for w in workers}
    assert newcomer.record.incarnation > max(incarnations), "the new store's revisions began anew"
    workers[0].listener.wait(lambda me: me.views[-1].members.get("w9") == newcomer.record)


def test_leases_that_end_all_at_once_are_replaced(own_place: EtcdPlace) -> None:
    workers = gather(own_place, 4)
    for worker in workers:
        own_place.expire(worker.record.name)
    wait_until_whole(workers, MemberState.READY)
    assert [worker.lost() for worker in workers] == [[]] * 4


def test_a_record_deleted_by_hand_is_put_back(own_place: EtcdPlace) -> None:
    workers = gather(own_place, 2)
    own_place.client.call(DELETE, DeleteRequest(own_place.keys.member("w0")))
    workers[1].listener.wait(lambda me: me.gone("w0") and "w0" in me.views[-1].members)
    assert workers[1].lost() == []


def test_an_eviction_that_was_begun_and_never_ended_passes(own_place: EtcdPlace) -> None:
    workers = gather(own_place, 2)
    key = own_place.keys.member("w0")
    (stored,) = own_place.client.call(RANGE, RangeRequest(key)).kvs
    marked = replace(workers[0].record, state=MemberState.EVICTED).to_json()
    own_place.client.call(PUT, PutRequest(key, marked, stored.lease))
    workers[1].listener.wait(lambda me: me.story("w0")[-2:] == ["+w0:evicted", "+w0:joining"])


def test_a_record_nobody_can_read_is_no_member_and_in_nobodys_way(own_place: EtcdPlace) -> None:
    for name in ("w0", "odd"):
        own_place.client.call(PUT, PutRequest(own_place.keys.member(name), b"{"))
    worker = enter(own_place.open(), "w0")
    assert set(worker.view.members) == {"w0"}
    own_place.open().evict("odd")
    assert own_place.client.call(RANGE, RangeRequest(own_place.keys.member("odd"))).kvs == []


@pytest.fixture
def cut_off(own_etcd: EtcdServer, own_place: EtcdPlace) -> Iterator[tuple[FaultyProxy, Worker]]:
    """A worker whose network can be broken, in the group of `own_place`."""
    with FaultyProxy(own_etcd.endpoint) as proxy:
        parsed = parse_rendezvous_url(own_place.url)
        url = f"etcd://{proxy.endpoint}/{parsed.namespace}/{parsed.group}"
        with closing(open_rendezvous(url, lease_ttl=TTL)) as seat:
            yield proxy, enter(seat, "far")


@pytest.mark.parametrize("fault", ["cut", "lose"])
def test_who_is_cut_off_comes_back_as_the_same_and_learns_what_it_missed(
    own_place: EtcdPlace, cut_off: tuple[FaultyProxy, Worker], fault: str
) -> None:
    proxy, far = cut_off
    near = enter(own_place.open(), "near")
    leaver = enter(own_place.open(), "leaver")
    far.listener.wait_for_names("far", "near", "leaver")
    getattr(proxy, fault)()
    leaver.seat.leave(10)
    enter(own_place.open(), "new")
    near.listener.wait_for_names("near", "new")  # the lease of "far" has ended
    proxy.mend()
    near.listener.wait_for_names("near", "new", "far")
    far.listener.wait_for_names("near", "new", "far")
    assert near.view.members["far"].incarnation == far.record.incarnation
    kinds = [(change.kind, change.member.name) for change in far.changes()]
    assert (ChangeKind.LEFT, "leaver") in kinds, "the farewell was heard although it was said in the outage"
    assert (ChangeKind.JOINED, "new") in kinds
    assert ChangeKind.DIED not in {kind for kind, _ in kinds}


def test_a_compaction_in_an_outage_gives_the_differences(
    own_place: EtcdPlace, cut_off: tuple[FaultyProxy, Worker]
) -> None:
    proxy, far = cut_off
    near = enter(own_place.open(), "near")
    leaver = enter(own_place.open(), "leaver")
    far.listener.wait_for_names("far", "near", "leaver")
    proxy.cut()
    leaver.seat.leave(10)
    near.seat.update(state=MemberState.READY)
    revision = own_place.client.call(RANGE, RangeRequest(b"x")).header.revision
    own_place.client.call(COMPACT, CompactRequest(revision, physical=True))
    new = enter(own_place.open(), "new")
    proxy.mend()
    far.listener.wait_for_names("near", "new", "far")
    events = far.listener.events
    assert RecordPut(new.record) in events
    assert far.listener.story("near")[-1] == "+near:ready"
    assert far.listener.story("leaver")[-1].startswith("-leaver")


# An answer that is lost: nobody knows whether the call was applied, and it was.
class Forgetful(EtcdClient):
    """Loses the answer of the next call of each method named in `forget`."""

    def __init__(self, endpoints: Sequence[str]) -> None:
        super().__init__(endpoints)
        self.forget: set[str] = set()

    def call(self, method: Method, request: object, seconds: float = CALL_SECONDS) -> object:  # type: ignore[override, type-arg]
        answer = super().call(method, request, seconds)
        if method.name in self.forget:
            self.forget.remove(method.name)
            raise RendezvousUnavailableError("the answer was lost")
        return answer


@pytest.fixture
def forgetful(own_place: EtcdPlace) -> Iterator[tuple[Forgetful, EtcdRendezvous]]:
    parsed = parse_rendezvous_url(own_place.url)
    client = Forgetful(parsed.places)
    with closing(EtcdRendezvous(client, own_place.keys, 10)) as seat:
        yield client, seat


@pytest.mark.parametrize("method", ["LeaseGrant", "Txn"])
def test_a_join_whose_answer_is_lost_is_recognised_as_mine(
    own_place: EtcdPlace, forgetful: tuple[Forgetful, EtcdRendezvous], method: str
) -> None:
    client, seat = forgetful
    other = enter(own_place.open(), "w0")
    client.forget.add(method)
    mine = enter(seat, "w1")
    assert client.forget == set()
    assert set(mine.view.members) == {"w0", "w1"}
    other.listener.wait(lambda me: me.views[-1].members.get("w1") == mine.record)
    assert other.lost() == []


def test_who_joins_while_an_answer_is_lost_does_not_count_as_earlier(
    own_place: EtcdPlace, forgetful: tuple[Forgetful, EtcdRendezvous], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, seat = forgetful
    other = enter(own_place.open(), "w0")
    client.forget.add("Txn")
    later: list[Worker] = []
    monkeypatch.setattr(client, "pause", lambda seconds=0: later.append(enter(own_place.open(), "w2")))
    earlier: list[MemberRecord] = []
    mine = seat.join(
        MemberRecord(name="w1"),
        admit=lambda me, before: earlier.extend(before),
        listener=RecordingListener(),
        timeout=10,
    )
    assert earlier == [other.record]
    assert mine.incarnation < later[0].record.incarnation
    assert set(seat.view().members) == {"w0", "w1", "w2"}
    later[0].listener.wait(lambda me: me.views[-1].members["w1"] == mine)
    assert other.lost() == later[0].lost() == []


WRITES: dict[str, tuple[str, Callable[[Rendezvous], object]]] = {
    "update": ("Txn", lambda seat: seat.update(state=MemberState.READY)),
    "leave": ("Txn", lambda seat: seat.leave(10)),
    "revoke": ("LeaseRevoke", lambda seat: seat.leave(10)),
    "evict": ("Txn", lambda seat: seat.evict("w0")),
    "drain": ("Txn", lambda seat: seat.request_drain("w0", DrainRequest(1.0, "why"))),
    "put": ("Txn", lambda seat: seat.kv.put("k", b"2")),
    "delete": ("Txn", lambda seat: seat.kv.delete("k")),
}


@pytest.mark.parametrize("write", WRITES)
def test_a_write_whose_answer_is_lost_is_done_once(
    own_place: EtcdPlace, forgetful: tuple[Forgetful, EtcdRendezvous], write: str
) -> None:
    client, seat = forgetful
    method, do = WRITES[write]
    other = enter(own_place.open(), "w0")
    mine = enter(seat, "w1")
    other.seat.kv.put("k", b"1")
    client.forget.add(method)
    do(seat)
    assert client.forget == set()
    if write == "update":
        other.listener.wait(lambda me: me.views[-1].members["w1"].state is MemberState.READY)
    elif write in ("leave", "revoke"):
        other.listener.wait(lambda me: "-w1:leaving" in me.story())
        assert other.lost()[0].kind is ChangeKind.LEFT
    elif write == "evict":
        mine.listener.wait(lambda me: "-w0:evicted" in me.story())
    elif write == "drain":
        other.listener.wait(lambda me: me.drains)
        assert other.listener.drains == [DrainRequest(1.0, "why")]
    else:
        assert other.seat.kv.get("k") == (b"2" if write == "put" else None)


def test_a_repeated_put_undoes_no_later_one(
    own_place: EtcdPlace, forgetful: tuple[Forgetful, EtcdRendezvous], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, seat = forgetful
    other = own_place.open()
    client.forget.add("Txn")
    monkeypatch.setattr(client, "pause", lambda seconds=0: other.kv.put("k", b"theirs"))
    seat.kv.put("k", b"mine")
    assert other.kv.get("k") == b"theirs"


def test_an_etcd_that_is_not_there_is_said_within_five_seconds() -> None:
    with closing(open_rendezvous("etcd://127.0.0.1:1/d/g")) as seat:
        assert OPERATION_SECONDS < 5
        with pytest.raises(RendezvousUnavailableError, match=r"127\.0\.0\.1:1.*check that it runs"):
            seat.view()


def test_a_listener_that_fails_is_logged_and_hears_on(
    own_place: EtcdPlace, caplog: pytest.LogCaptureFixture
) -> None:
    class Fragile(RecordingListener):
        def on_view(self, view: GroupView, events: Sequence[RecordEvent]) -> None:
            super().on_view(view, events)
            raise RuntimeError("the listener's fault")

    listener = Fragile()
    own_place.open().join(MemberRecord(name="w0"), admit=admit_all, listener=listener, timeout=10)
    for name in ("w1", "w2"):
        enter(own_place.open(), name)
    listener.wait_for_names("w0", "w1", "w2")
    assert listener.story() == ["+w0:joining", "+w1:joining", "+w2:joining"]
    assert "the listener's fault" in caplog.text


def test_a_drain_request_that_cannot_be_read_is_ignored(own_place: EtcdPlace) -> None:
    worker = enter(own_place.open(), "w0")
    key = own_place.keys.drain("w0")
    for value in (b"{", b"[]", b'{"reason":"no deadline"}', b'{"deadline":7,"reason":"scale down"}'):
        own_place.client.call(PUT, PutRequest(key, value))
    worker.listener.wait(lambda me: me.drains)
    assert worker.listener.drains == [DrainRequest(7.0, "scale down")]


def test_leaving_deletes_all_keys_of_the_worker(own_place: EtcdPlace) -> None:
    worker = enter(own_place.open(), "w0")
    own_place.open().request_drain("w0", DrainRequest(1.0, ""))
    worker.seat.put_stats(b"{}")
    worker.seat.leave(10)
    everything: RangeResponse = own_place.client.call(RANGE, RangeRequest(b"/", b"0"))
    assert everything.kvs == []


def test_a_group_under_its_own_user(locked_etcd: EtcdServer, user: EtcdCredentials) -> None:
    with ExitStack() as stack:
        url = f"etcd://{locked_etcd.endpoint}/mine/g"
        seats = [stack.enter_context(closing(open_rendezvous(url, credentials=user))) for _ in range(2)]
        one, two = (enter(seat, f"w{number}") for number, seat in enumerate(seats))
        locked_etcd.kill()
        locked_etcd.start()
        wait_until_whole([one, two], MemberState.READY)
        one.seat.evict("w1")
        one.listener.wait(lambda me: me.gone("w1"))
        theirs = open_rendezvous(f"etcd://{locked_etcd.endpoint}/theirs/g", credentials=user)
        with closing(theirs), pytest.raises(RendezvousError, match="permission denied"):
            enter(theirs, "w0")


def test_many_groups_in_one_etcd_and_one_close_of_all(etcd_server: EtcdServer) -> None:
    with ExitStack() as stack:
        places = [EtcdPlace(stack, etcd_server) for _ in range(3)]
        for place in places:
            gather(place, 2)
