from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from rpcgroup.errors import JoinError, RendezvousError, RendezvousUnavailableError
from rpcgroup.membership.record import MemberRecord, MemberState
from rpcgroup.membership.rendezvous import DrainRequest, RecordGone, RecordPut
from rpcgroup.membership.store import static
from rpcgroup.membership.store.client import Store, StoreClient
from rpcgroup.membership.store.static import StaticRendezvous
from rpcgroup.testing.rendezvous import RecordingListener

TIMEOUT = 20.0
SHORT = 0.2

Connect = Callable[[], Store]


def record(rank: int, **fields: object) -> MemberRecord:
    made = MemberRecord(name=f"w{rank}", id=rank, address=f"tcp://w{rank}:1", state=MemberState.READY)
    return replace(made, **fields)  # type: ignore[arg-type]


def admit_all(last: MemberRecord, others: Sequence[MemberRecord]) -> None:
    pass


class Table:
    """Seats of one group, and what became of each that came."""

    def __init__(self, connect: Connect, size: int) -> None:
        self.seats = [StaticRendezvous(StoreClient(connect()), size) for _ in range(size)]
        self.listeners = [RecordingListener() for _ in range(size)]

    def come(
        self,
        records: Sequence[MemberRecord],
        *,
        admit: Callable[[MemberRecord, Sequence[MemberRecord]], None] = admit_all,
        timeout: float = TIMEOUT,
    ) -> list[MemberRecord | BaseException]:
        """All at the same time, each in the seat of its place in the list."""

        def join(place: int) -> MemberRecord | BaseException:
            start.wait(TIMEOUT)
            try:
                return self.seats[place].join(
                    records[place], admit=admit, listener=self.listeners[place], timeout=timeout
                )
            except JoinError as exc:
                return exc

        start = threading.Barrier(len(records))
        with ThreadPoolExecutor(len(records)) as pool:
            return list(pool.map(join, range(len(records))))


def reasons(results: Sequence[MemberRecord | BaseException]) -> set[str]:
    assert all(isinstance(result, JoinError) for result in results), results
    return {str(result) for result in results}


def test_all_come_and_know_each_other(connect: Connect) -> None:
    table = Table(connect, 4)
    results = table.come([record(rank) for rank in range(4)])
    members = [r for r in results if isinstance(r, MemberRecord)]
    assert [(m.name, m.id, m.incarnation) for m in members] == [(f"w{n}", n, n + 1) for n in range(4)]
    for seat, listener in zip(table.seats, table.listeners, strict=True):
        assert seat.view().members == {m.name: m for m in members}
        assert listener.events == [RecordPut(m) for m in members]
        seat.close()


def test_the_first_waits_for_the_last(connect: Connect) -> None:
    table = Table(connect, 2)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(
            table.seats[0].join, record(0), admit=admit_all, listener=table.listeners[0], timeout=TIMEOUT
        )
        assert not first.done()
        table.seats[1].join(record(1), admit=admit_all, listener=table.listeners[1], timeout=TIMEOUT)
        assert first.result(TIMEOUT).name == "w0"


def test_one_of_the_last_judges_them_all_at_once(connect: Connect) -> None:
    asked: list[tuple[MemberRecord, Sequence[MemberRecord]]] = []
    Table(connect, 3).come(
        [record(n) for n in range(3)], admit=lambda last, others: asked.append((last, others))
    )
    assert asked
    for last, others in asked:
        assert (last.name, [m.name for m in others]) == ("w2", ["w0", "w1"])


def test_who_does_not_fit_fails_them_all_with_one_reason(connect: Connect) -> None:
    counter = itertools.count()

    def refuse(last: MemberRecord, others: Sequence[MemberRecord]) -> None:
        raise JoinError(f"w1's device map names cuda:9 (judge {next(counter)})")

    (reason,) = reasons(Table(connect, 4).come([record(n) for n in range(4)], admit=refuse))
    assert "cuda:9" in reason


def test_a_name_is_unique(connect: Connect) -> None:
    records = [record(0), record(1, name="same"), record(2, name="same")]
    assert reasons(Table(connect, 3).come(records)) == {"the name 'same' is not unique: ranks [1, 2] have it"}


def test_a_rank_is_unique(connect: Connect) -> None:
    (reason,) = reasons(Table(connect, 3).come([record(0), record(1), record(1, name="other")]))
    assert "rank 1 is taken twice" in reason
    assert "w1" in reason and "other" in reason


def test_a_rank_is_within_the_size(connect: Connect) -> None:
    (reason,) = reasons(Table(connect, 3).come([record(0), record(1), record(3)]))
    assert reason == "w3 has rank 3 in a group of 3"


def test_who_does_not_come_is_named_to_all_who_did(connect: Connect) -> None:
    (reason,) = reasons(Table(connect, 4).come([record(0), record(3)], timeout=SHORT))
    assert reason == (
        "2 of 4 members did not come within 0.2 s: ranks 1, 2; there are: w0 (rank 0), w3 (rank 3)"
    )


def test_who_comes_after_the_verdict_hears_it_at_once(connect: Connect) -> None:
    table = Table(connect, 2)
    with pytest.raises(JoinError, match="ranks 1"):
        table.seats[0].join(record(0), admit=admit_all, listener=table.listeners[0], timeout=SHORT)
    with pytest.raises(JoinError, match="ranks 1"):
        table.seats[1].join(record(1), admit=admit_all, listener=table.listeners[1], timeout=TIMEOUT)


def test_a_member_that_cannot_start_fails_them_all(connect: Connect) -> None:
    table = Table(connect, 3)
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(table.come, [record(0), record(1)])
        table.seats[2].give_up("w2", 2, "the port 80 is taken")
        assert reasons(coming.result(TIMEOUT)) == {"w2 (rank 2) could not start: the port 80 is taken"}


def test_a_complete_group_does_not_fail_for_one_that_comes_too(connect: Connect) -> None:
    table = Table(connect, 2)
    assert all(isinstance(r, MemberRecord) for r in table.come([record(0), record(1)]))
    for late in (record(1, name="other"), record(5)):
        seat = StaticRendezvous(StoreClient(connect()), 2)
        with pytest.raises(JoinError):
            seat.join(late, admit=admit_all, listener=RecordingListener(), timeout=TIMEOUT)
    assert set(table.seats[0].view().members) == {"w0", "w1"}


def test_a_seat_joins_once(connect: Connect) -> None:
    table = Table(connect, 1)
    table.come([record(0)])
    with pytest.raises(JoinError, match="joined already, as rank 0"):
        table.seats[0].join(record(0), admit=admit_all, listener=table.listeners[0], timeout=TIMEOUT)


# Ends.
def test_a_suspect_is_gone_here_and_nowhere_else(connect: Connect) -> None:
    table = Table(connect, 3)
    table.come([record(n) for n in range(3)])
    dead = table.seats[0].view().members["w2"]
    epoch = table.seats[0].view().epoch
    table.seats[0].suspect(dead)
    table.seats[0].suspect(dead)
    assert table.listeners[0].events[3:] == [RecordGone(dead)]
    assert set(table.seats[0].view().members) == {"w0", "w1"}
    assert table.seats[0].view().epoch > epoch
    assert set(table.seats[1].view().members) == {"w0", "w1", "w2"}


def test_who_has_said_goodbye_is_not_taken_for_dead(connect: Connect) -> None:
    table = Table(connect, 2)
    table.come([record(0), record(1)])
    table.seats[0].suspect(replace(record(1), state=MemberState.LEAVING))
    (gone,) = table.listeners[0].gone("w1")
    assert gone.state is MemberState.LEAVING


def test_who_has_left_hears_no_more(connect: Connect) -> None:
    table = Table(connect, 2)
    table.come([record(0), record(1)])
    table.seats[0].leave(TIMEOUT)
    table.seats[0].leave(TIMEOUT)
    table.seats[0].suspect(table.seats[0].view().members["w1"])
    assert table.listeners[0].gone("w1") == []


def test_rank_0_stays_until_the_others_know_the_verdict(connect: Connect) -> None:
    """Its process may be the one that serves the store."""
    table = Table(connect, 3)
    table.seats[2].give_up("w2", 2, "no room")
    with pytest.raises(JoinError):
        table.seats[0].join(record(0), admit=admit_all, listener=table.listeners[0], timeout=TIMEOUT)
    closing = threading.Thread(target=table.seats[0].close)
    closing.start()
    with pytest.raises(JoinError, match="no room"):
        table.seats[1].join(record(1), admit=admit_all, listener=table.listeners[1], timeout=TIMEOUT)
    closing.join(TIMEOUT)
    assert not closing.is_alive()
    table.seats[0].close()


def test_rank_0_does_not_wait_for_those_that_are_missing(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(static, "LINGER_SECONDS", 1e6)
    table = Table(connect, 3)
    reasons(table.come([record(0), record(1)], timeout=SHORT))
    table.seats[0].close()


def test_what_has_no_meaning_is_refused(connect: Connect) -> None:
    seat = Table(connect, 1).seats[0]
    uses = (
        lambda: seat.update(state=MemberState.DRAINING),
        lambda: seat.evict("w0"),
        lambda: seat.request_drain("w0", DrainRequest(0.0, "")),
    )
    for use in uses:
        with pytest.raises(RendezvousError, match="static group"):
            use()  # type: ignore[no-untyped-call]
    seat.refresh()
    seat.put_stats(b"{}")
    assert seat.stats() == {}
    seat.kv.put("key", b"1")
    assert seat.kv.get("key") == b"1"


def test_a_store_that_fails() -> None:
    class NoStore:
        def __getattr__(self, name: str) -> object:
            raise RuntimeError("Connection refused")

    seat = StaticRendezvous(StoreClient(NoStore()), 1)  # type: ignore[arg-type]
    with pytest.raises(RendezvousUnavailableError):
        seat.join(record(0), admit=admit_all, listener=RecordingListener(), timeout=TIMEOUT)
    seat.give_up("w0", 0, "no reason")
    seat.leave(TIMEOUT)
    seat.close()
