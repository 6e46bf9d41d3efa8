"""The fork protocol: each way of passing on by itself, then hundreds of random histories of several machines.

The histories run on a network that loses, delays, reorders and repeats control messages, and whose workers
die and restart. After every step no value may be gone that a living user refers to; whenever the network has
come to rest, owners and users must agree exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rpcgroup.errors import PeerUnreachableError, RemoteProtocolError, RRefError
from rpcgroup.rref.ids import ForkData, ForkId, RRefId
from rpcgroup.rref.instructions import (
    Confirmed,
    Drop,
    Expire,
    Forget,
    Instruction,
    Later,
    Lose,
    Reclaim,
    Retry,
    Send,
    Timer,
)
from rpcgroup.rref.machine import Machine
from rpcgroup.rref.messages import Message
from rpcgroup.rref.transitions import UserState, ValueState
from rpcgroup.rref.user import UserFork
from rpcgroup.wire.messages import MessageType

OWNER, ALICE, BOB, CAROL = 10, 11, 12, 13


def only(instructions: list[Instruction], kind: type) -> Any:
    found = [i for i in instructions if isinstance(i, kind)]
    assert len(found) == 1, instructions
    return found[0]


def sent(machine: Machine) -> list[Message]:
    return [i.message for i in machine.take() if isinstance(i, Send)]


def share(owner: Machine, user: Machine) -> UserFork:
    """A value of `owner` in the hands of `user`."""
    fork = owner.pass_on_owned(owner.new_rref_id(), "", user.me)
    held = user.receive(fork, owner.me)
    assert held is not None
    return held


@pytest.fixture
def owner() -> Machine:
    return Machine(OWNER, "owner")


@pytest.fixture
def alice() -> Machine:
    return Machine(ALICE, "alice")


@pytest.fixture
def bob() -> Machine:
    return Machine(BOB, "bob")


# -- owner -> user ------------------------------------------------------------------------------------------


def test_a_fork_by_the_owner_is_known_at_once_and_costs_no_message(owner: Machine, alice: Machine) -> None:
    user = share(owner, alice)
    assert user.state is UserState.CONFIRMED
    assert owner.owned.forks() == {user.rref_id: {user.fork_id: ALICE}}
    assert owner.take() == [] and alice.take() == []


def test_the_owner_is_told_of_a_deletion_and_drops_the_value(owner: Machine, alice: Machine) -> None:
    user = share(owner, alice)
    alice.release([user])
    (message,) = sent(alice)
    assert message.kind is MessageType.RREF_USER_DELETE and user.state is UserState.DELETING
    owner.on_message(message.kind, message.items, ALICE)
    assert owner.take() == [Drop(user.rref_id)]
    alice.acknowledged(message)
    assert user.state is UserState.DELETED and alice.quiet()


def test_a_fork_that_never_left_is_taken_back(owner: Machine) -> None:
    fork = owner.pass_on_owned(owner.new_rref_id(), "", ALICE)
    owner.take_back(fork)
    assert owner.take() == [Drop(fork.rref_id)]


def test_an_owner_that_passes_a_value_to_itself_keeps_it_until_it_arrives(owner: Machine) -> None:
    fork = owner.pass_on_owned(owner.new_rref_id(), "", OWNER)
    assert owner.expect(fork.rref_id) is ValueState.PRESENT
    assert owner.receive(fork, OWNER) is None
    assert owner.take() == [Drop(fork.rref_id)]


# -- user -> owner ------------------------------------------------------------------------------------------


def test_back_to_the_owner_the_parent_is_kept_until_it_is_accepted(owner: Machine, alice: Machine) -> None:
    user = share(owner, alice)
    fork = alice.pass_on(user, OWNER)
    alice.release([user])
    assert alice.take() == [], "G2: a child is under way"
    assert owner.expect(fork.rref_id) is ValueState.PRESENT
    assert owner.receive(fork, ALICE) is None
    (accept,) = sent(owner)
    assert accept.kind is MessageType.RREF_CHILD_ACCEPT and accept.to == ALICE
    alice.on_message(accept.kind, accept.items, OWNER)
    (delete,) = sent(alice)
    assert delete.kind is MessageType.RREF_USER_DELETE


# -- user -> user -------------------------------------------------------------------------------------------


def test_from_user_to_user_the_child_asks_the_owner_and_then_frees_its_parent(
    owner: Machine, alice: Machine, bob: Machine
) -> None:
    parent = share(owner, alice)
    child = bob.receive(alice.pass_on(parent, BOB), ALICE)
    assert child is not None and child.state is UserState.PENDING
    bob.release([child])
    (request,) = sent(bob)
    assert request.kind is MessageType.RREF_FORK_REQUEST and request.to == OWNER, "pending: not deleted"
    owner.on_message(request.kind, request.items, BOB)
    bob.acknowledged(request)
    instructions = bob.take()
    assert Confirmed(child.fork_id, None) in instructions
    kinds = {i.message.kind: i.message for i in instructions if isinstance(i, Send)}
    assert set(kinds) == {MessageType.RREF_CHILD_ACCEPT, MessageType.RREF_USER_DELETE}
    assert kinds[MessageType.RREF_CHILD_ACCEPT].to == ALICE
    assert alice.held.pending_children() == 1
    alice.on_message(MessageType.RREF_CHILD_ACCEPT, kinds[MessageType.RREF_CHILD_ACCEPT].items, BOB)
    assert alice.held.pending_children() == 0


def test_a_call_to_oneself_with_a_fork_needs_no_message_to_oneself(owner: Machine, alice: Machine) -> None:
    parent = share(owner, alice)
    child = alice.receive(alice.pass_on(parent, ALICE), ALICE)
    assert child is not None
    (request,) = sent(alice)
    owner.on_message(request.kind, request.items, ALICE)
    alice.acknowledged(request)
    assert sent(alice) == [] and alice.held.pending_children() == 0


def test_one_message_asks_for_all_forks_of_an_owner(owner: Machine, alice: Machine, bob: Machine) -> None:
    children = [bob.receive(alice.pass_on(share(owner, alice), BOB), ALICE) for _ in range(3)]
    (request,) = sent(bob)
    assert [item.fork_id for item in request.items] == [child.fork_id for child in children if child]


# -- remote -------------------------------------------------------------------------------------------------


def test_a_creator_deletes_only_after_its_creation_is_answered(owner: Machine, alice: Machine) -> None:
    user, fork = alice.begin_remote(OWNER, "owner", "")
    assert user is not None
    alice.release([user])
    assert alice.take() == []
    owner.accept_remote(fork, ALICE)
    alice.remote_confirmed(fork)
    (delete,) = sent(alice)
    owner.on_message(delete.kind, delete.items, ALICE)
    assert owner.take() == [Drop(fork.rref_id)], "no tombstone: nothing can be late"


def test_a_creation_on_oneself_is_kept_by_its_own_id(owner: Machine) -> None:
    user, fork = owner.begin_remote(OWNER, "owner", "")
    assert user is None and tuple(fork.fork_id) == tuple(fork.rref_id)
    owner.accept_remote(fork, OWNER)
    assert owner.expect(fork.rref_id) is ValueState.PRESENT
    owner.remote_confirmed(fork)
    assert owner.take() == [Drop(fork.rref_id)]


def test_a_value_can_be_asked_for_before_it_is_created(owner: Machine, alice: Machine) -> None:
    _, fork = alice.begin_remote(OWNER, "owner", "")
    assert owner.expect(fork.rref_id) is ValueState.EXPECTED
    owner.accept_remote(fork, ALICE)
    assert owner.expect(fork.rref_id) is ValueState.PRESENT


def test_a_deletion_overtakes_a_creation_in_doubt(owner: Machine, alice: Machine) -> None:
    user, fork = alice.begin_remote(OWNER, "owner", "")
    assert user is not None
    assert owner.expect(fork.rref_id) is ValueState.EXPECTED
    owner.take()
    alice.remote_failed(fork, RRefError("timed out"))
    alice.release([user])
    (delete,) = sent(alice)
    owner.on_message(delete.kind, delete.items, ALICE)
    lost = only(owner.take(), Lose)
    assert lost.rref_id == fork.rref_id, "whoever waits for the value is told"
    with pytest.raises(RRefError, match="given it up"):
        owner.accept_remote(fork, ALICE)
    assert len(owner.owned) == 0


def test_tombstones_are_forgotten(owner: Machine, alice: Machine) -> None:
    user, fork = alice.begin_remote(OWNER, "owner", "")
    assert user is not None
    alice.remote_failed(fork, RRefError("timed out"))
    alice.release([user])
    (delete,) = sent(alice)
    owner.on_message(delete.kind, delete.items, ALICE)
    timers = [i.timer for i in owner.take() if isinstance(i, Later)]
    assert owner.owned.tombstones() == len(timers) > 0
    for timer in timers:
        owner.fire(timer)
    assert owner.owned.tombstones() == 0


def test_what_nothing_creates_is_lost_in_the_end(owner: Machine) -> None:
    rref_id = RRefId(ALICE, 5)
    assert owner.expect(rref_id) is ValueState.EXPECTED
    owner.fire(only(owner.take(), Later).timer)
    assert only(owner.take(), Lose).rref_id == rref_id


# -- lost, late and repeated messages -----------------------------------------------------------------------


def test_every_message_may_be_repeated(owner: Machine, alice: Machine, bob: Machine) -> None:
    parent = share(owner, alice)
    child = bob.receive(alice.pass_on(parent, BOB), ALICE)
    assert child is not None
    (request,) = sent(bob)
    for _ in range(3):
        owner.on_message(request.kind, request.items, BOB)
    assert len(owner.owned.forks()[parent.rref_id]) == 2
    bob.acknowledged(request)
    bob.acknowledged(request)
    (accept,) = sent(bob)
    alice.on_message(accept.kind, accept.items, BOB)
    alice.on_message(accept.kind, accept.items, BOB)
    bob.release([child])
    bob.release([child])
    (delete,) = sent(bob)
    for _ in range(3):
        owner.on_message(delete.kind, delete.items, BOB)
    assert owner.owned.forks() == {parent.rref_id: {parent.fork_id: ALICE}}


def test_an_unanswered_message_is_sent_again_ever_more_slowly(owner: Machine, alice: Machine) -> None:
    alice.release([share(owner, alice)])
    (message,) = sent(alice)
    delays = []
    for _ in range(12):
        alice.unanswered(message)
        later = only(alice.take(), Later)
        delays.append(later.delay)
        alice.fire(later.timer)
        assert sent(alice) == [message]
    assert delays[0] == 0.05 and delays[-1] == 5.0 and delays == sorted(delays)


def test_a_late_request_does_not_bring_a_deleted_fork_back(
    owner: Machine, alice: Machine, bob: Machine
) -> None:
    child = bob.receive(alice.pass_on(share(owner, alice), BOB), ALICE)
    assert child is not None
    (request,) = sent(bob)
    bob.unanswered(request)  # its first copy stays under way
    bob.fire(only(bob.take(), Later).timer)
    owner.on_message(request.kind, request.items, BOB)
    bob.acknowledged(request)
    bob.release([child])
    delete = next(m for m in sent(bob) if m.kind is MessageType.RREF_USER_DELETE)
    owner.on_message(delete.kind, delete.items, BOB)
    known = owner.owned.forks()
    owner.on_message(request.kind, request.items, BOB)
    assert owner.owned.forks() == known


def test_a_refused_fork_fails_and_frees_its_parent(owner: Machine, alice: Machine, bob: Machine) -> None:
    child = bob.receive(alice.pass_on(share(owner, alice), BOB), ALICE)
    assert child is not None
    (request,) = sent(bob)
    refusal = RRefError("you are dead")
    bob.refused(request, refusal)
    instructions = bob.take()
    assert Confirmed(child.fork_id, refusal) in instructions and child.state is UserState.FAILED
    assert only(instructions, Send).message.kind is MessageType.RREF_CHILD_ACCEPT


def test_a_fork_in_somebody_elses_name_is_refused(owner: Machine, alice: Machine, bob: Machine) -> None:
    fork = alice.pass_on(share(owner, alice), BOB)
    with pytest.raises(RemoteProtocolError, match="in the name of"):
        bob.receive(fork, CAROL)


def test_a_fork_received_twice_is_refused(owner: Machine, alice: Machine) -> None:
    fork = owner.pass_on_owned(owner.new_rref_id(), "", ALICE)
    alice.receive(fork, OWNER)
    with pytest.raises(RemoteProtocolError, match="twice"):
        alice.receive(fork, OWNER)


# -- deaths -------------------------------------------------------------------------------------------------


def test_a_dead_users_forks_are_reclaimed_after_the_grace_period(owner: Machine, alice: Machine) -> None:
    user = share(owner, alice)
    owner.member_died(ALICE)
    later = only(owner.take(), Later)
    assert user.rref_id in owner.owned and later.timer == Reclaim(ALICE)
    owner.fire(later.timer)
    assert owner.take() == [Drop(user.rref_id)]


def test_what_a_dead_user_handed_on_lives(owner: Machine, alice: Machine, bob: Machine) -> None:
    child = bob.receive(alice.pass_on(share(owner, alice), BOB), ALICE)
    assert child is not None
    (request,) = sent(bob)
    owner.member_died(ALICE)
    timer = only(owner.take(), Later).timer
    owner.on_message(request.kind, request.items, BOB)
    owner.fire(timer)
    assert owner.owned.forks() == {child.rref_id: {child.fork_id: BOB}}


def test_a_dead_owner_orphans_pending_and_confirmed_forks(
    owner: Machine, alice: Machine, bob: Machine
) -> None:
    parent = share(owner, alice)
    child = bob.receive(alice.pass_on(parent, BOB), ALICE)
    assert child is not None
    sent(bob)
    bob.member_died(OWNER)
    alice.member_died(OWNER)
    settled = only(bob.take(), Confirmed)
    assert settled.fork_id == child.fork_id and "died" in str(settled.error)
    assert parent.state is child.state is UserState.ORPHANED
    alice.release([parent])
    bob.release([child])
    assert parent.state is child.state is UserState.DELETED
    assert not alice.held and not bob.held


def test_a_deletion_under_way_ends_with_its_owner(owner: Machine, alice: Machine) -> None:
    alice.release([share(owner, alice)])
    (message,) = sent(alice)
    alice.member_died(OWNER)
    assert not alice.held
    alice.unanswered(message)
    assert all(not isinstance(i, Later) or isinstance(i.timer, Reclaim) for i in alice.take())
    assert alice.quiet()


def test_a_dead_worker_is_refused_and_not_written_to(owner: Machine, alice: Machine) -> None:
    user = share(owner, alice)
    owner.member_died(ALICE)
    with pytest.raises(RRefError, match="declared dead"):
        owner.on_message(MessageType.RREF_USER_DELETE, [], ALICE)
    with pytest.raises(PeerUnreachableError, match="died"):
        owner.pass_on_owned(user.rref_id, "", ALICE)
    with pytest.raises(PeerUnreachableError, match="died"):
        owner.begin_remote(ALICE, "alice", "")


def test_a_restarted_owner_is_not_mixed_up_with_its_predecessor(alice: Machine) -> None:
    old, new = Machine(OWNER, "owner"), Machine(OWNER + 10, "owner")
    user = share(old, alice)
    alice.member_died(OWNER)
    fresh = share(new, alice)
    assert user.state is UserState.ORPHANED and fresh.state is UserState.CONFIRMED
    # A fork of the predecessor's value comes back to the new incarnation, which nobody told of the old one.
    stale = ForkData(OWNER, "owner", RRefId(OWNER, 0), ForkId(ALICE, 99), ALICE, "")
    received = new.receive(stale, ALICE)
    assert received is not None and received.state is UserState.ORPHANED
    assert only(new.take(), Send).message.kind is MessageType.RREF_CHILD_ACCEPT


def test_a_value_whose_creator_died_first_is_lost(owner: Machine) -> None:
    rref_id = RRefId(ALICE, 0)
    owner.expect(rref_id)
    owner.take()
    owner.member_died(ALICE)
    assert only(owner.take(), Lose).rref_id == rref_id
    assert owner.expect(RRefId(ALICE, 1)) is ValueState.LOST


def test_shutdown_deletes_what_is_held_and_what_still_comes(owner: Machine, alice: Machine) -> None:
    user = share(owner, alice)
    alice.release_all()
    late = share(owner, alice)
    messages = sent(alice)
    assert user.state is late.state is UserState.DELETING
    for message in messages:
        owner.on_message(message.kind, message.items, ALICE)
        alice.acknowledged(message)
    assert alice.quiet() and len(owner.owned) == 0


# -- histories ----------------------------------------------------------------------------------------------

NAMES = ("ada", "bea", "cyd", "dot")


@dataclass
class Worker:
    machine: Machine
    name: str
    users: list[UserFork] = field(default_factory=list)
    """What its program holds of others' values."""
    own: set[RRefId] = field(default_factory=set)
    """What its program holds of its own values."""
    timers: list[Timer] = field(default_factory=list)
    noticed: set[int] = field(default_factory=set)


@dataclass(eq=False)
class Packet:
    sender: int
    to: int
    deliver: Callable[[], None]
    lose: Callable[[], None] | None = None
    """Tell the sender that the outcome is unknown; None: this kind is never lost while both ends live."""
    fork: ForkData | None = None


class Histories(RuleBasedStateMachine):
    """Every rule picks by a number modulo what there is, so that histories shrink well."""

    def __init__(self) -> None:
        super().__init__()
        self.incarnations = 100
        self.workers: dict[int, Worker] = {}
        self.dead: set[int] = set()
        self.packets: list[Packet] = []
        self.late: list[Packet] = []
        """Given up by their senders, and still to arrive."""
        self.created: set[RRefId] = set()
        """Values that exist, by what has happened to them."""
        self.owner_of: dict[RRefId, int] = {}
        self.holder: dict[ForkId, int] = {}
        self.parent: dict[ForkId, ForkId | None] = {}
        self.rref_of: dict[ForkId, RRefId] = {}
        self.excused: set[ForkId] = set()
        """Handed on by a worker that died, and not known to the owner when the grace period ended."""
        for name in NAMES:
            self.start(name)

    # What the workers' programs do.

    @rule(who=st.integers(0, 99), to=st.integers(0, 99))
    def share_new(self, who: int, to: int) -> None:
        worker, peer = self.pick(who), self.pick(to)
        rref_id = worker.machine.new_rref_id()
        self.created.add(rref_id)
        self.owner_of[rref_id] = worker.machine.me
        worker.own.add(rref_id)
        self.pass_on_owned(worker, rref_id, peer)

    @rule(who=st.integers(0, 99), to=st.integers(0, 99))
    def create_remotely(self, who: int, to: int) -> None:
        worker, peer = self.pick(who), self.pick(to)
        try:
            user, fork = worker.machine.begin_remote(peer.machine.me, peer.name, "")
        except PeerUnreachableError:
            return
        self.owner_of[fork.rref_id] = fork.owner
        self.know(fork, None, worker.machine.me)
        if user is not None:
            worker.users.append(user)
        self.send_creation(worker.machine.me, fork)

    @rule(who=st.integers(0, 99), which=st.integers(0, 99), to=st.integers(0, 99), fails=st.booleans())
    def pass_on(self, who: int, which: int, to: int, fails: bool) -> None:
        worker, peer = self.pick(who), self.pick(to)
        usable = [u for u in worker.users if u.state in (UserState.PENDING, UserState.CONFIRMED)]
        if not usable or worker.machine.is_dead(peer.machine.me):
            return
        user = usable[which % len(usable)]
        fork = worker.machine.pass_on(user, peer.machine.me)
        self.know(fork, user.fork_id, peer.machine.me)
        if fails:
            worker.machine.take_back(fork)
        else:
            self.send_call(fork, worker.machine.me, peer.machine.me)
        self.run(worker)

    @rule(who=st.integers(0, 99), which=st.integers(0, 99), to=st.integers(0, 99))
    def share_again(self, who: int, which: int, to: int) -> None:
        worker, peer = self.pick(who), self.pick(to)
        if worker.own:
            self.pass_on_owned(worker, sorted(worker.own)[which % len(worker.own)], peer)

    @rule(who=st.integers(0, 99), which=st.integers(0, 99))
    def let_go(self, who: int, which: int) -> None:
        worker = self.pick(who)
        if worker.users:
            worker.machine.release([worker.users.pop(which % len(worker.users))])
            self.run(worker)

    @rule(who=st.integers(0, 99), which=st.integers(0, 99))
    def let_go_of_own(self, who: int, which: int) -> None:
        worker = self.pick(who)
        if worker.own:
            rref_id = sorted(worker.own)[which % len(worker.own)]
            worker.own.remove(rref_id)
            if rref_id not in worker.machine.owned:
                self.created.discard(rref_id)

    # What the network does.

    @precondition(lambda self: self.packets)
    @rule(which=st.integers(0, 999))
    def deliver(self, which: int) -> None:
        self.packets.pop(which % len(self.packets)).deliver()

    @precondition(lambda self: self.late)
    @rule(which=st.integers(0, 999))
    def deliver_late(self, which: int) -> None:
        self.late.pop(which % len(self.late)).deliver()

    @precondition(lambda self: self.packets)
    @rule(which=st.integers(0, 999), arrives_later=st.booleans())
    def lose(self, which: int, arrives_later: bool) -> None:
        """The sender hears of a failure; the message itself is gone, or arrives at some later time."""
        packet = self.packets[which % len(self.packets)]
        if packet.lose is None:
            return
        lose, packet.lose = packet.lose, None
        self.packets.remove(packet)
        if arrives_later:
            self.late.append(packet)
        if packet.sender in self.workers:
            lose()

    @rule(who=st.integers(0, 99), which=st.integers(0, 99))
    def timer(self, who: int, which: int) -> None:
        worker = self.pick(who)
        due = [t for t in worker.timers if isinstance(t, Retry | Reclaim)]
        if due:
            self.fire(worker, due[which % len(due)])

    # Deaths.

    @precondition(lambda self: len(self.workers) > 2)
    @rule(who=st.integers(0, 99))
    def crash(self, who: int) -> None:
        worker = self.pick(who)
        me = worker.machine.me
        del self.workers[me]
        self.dead.add(me)
        self.late = [packet for packet in self.late if packet.to != me]
        for packet in [p for p in self.packets if p.to == me]:
            self.packets.remove(packet)
            if packet.lose is not None and packet.sender in self.workers:
                packet.lose()

    @precondition(lambda self: len(self.workers) < len(NAMES))
    @rule()
    def restart(self) -> None:
        running = {worker.name for worker in self.workers.values()}
        self.start(next(name for name in NAMES if name not in running))

    @precondition(lambda self: self.dead)
    @rule(who=st.integers(0, 99), which=st.integers(0, 99))
    def notice(self, who: int, which: int) -> None:
        worker = self.pick(who)
        news = sorted(self.dead - worker.noticed)
        if news:
            self.notice_death(worker, news[which % len(news)])

    # What must hold.

    @rule()
    def come_to_rest(self) -> None:
        self.settle()
        self.check_agreement()

    @invariant()
    def no_value_is_gone_that_somebody_uses(self) -> None:
        forks = [u.fork_id for w in self.workers.values() for u in w.users if self.is_live(u)]
        forks += [p.fork.fork_id for p in self.packets if p.fork is not None and p.to in self.workers]
        for fork_id in forks:
            rref_id = self.rref_of[fork_id]
            owner = self.workers.get(self.owner_of[rref_id])
            if owner is None or fork_id in self.excused or rref_id not in self.created:
                continue
            assert rref_id in owner.machine.owned or rref_id in owner.own, f"{fork_id} refers to nothing"
            if self.holder[fork_id] != owner.machine.me:
                assert rref_id in owner.machine.owned, f"{fork_id}'s value is not in its owner's table"

    def teardown(self) -> None:
        self.settle()
        self.check_agreement()
        for worker in self.workers.values():
            worker.own.clear()
            worker.machine.release(worker.users)
            worker.users.clear()
            self.run(worker)
        self.settle()
        for worker in self.workers.values():
            machine = worker.machine
            assert machine.quiet(), f"{worker.name} still holds something"
            assert not machine.owned.forks(), f"{worker.name} keeps values that nobody uses"
            assert machine.owned.tombstones() == 0

    # The parts.

    def start(self, name: str) -> None:
        self.incarnations += 1
        me = self.incarnations
        self.workers[me] = Worker(Machine(me, name), name)

    def pick(self, number: int) -> Worker:
        return list(self.workers.values())[number % len(self.workers)]

    def is_live(self, user: UserFork) -> bool:
        return user.state in (UserState.PENDING, UserState.CONFIRMED)

    def know(self, fork: ForkData, parent: ForkId | None, holder: int) -> None:
        self.holder[fork.fork_id] = holder
        self.parent[fork.fork_id] = parent
        self.rref_of[fork.fork_id] = fork.rref_id

    def pass_on_owned(self, worker: Worker, rref_id: RRefId, peer: Worker) -> None:
        if worker.machine.is_dead(peer.machine.me):
            return
        fork = worker.machine.pass_on_owned(rref_id, "", peer.machine.me)
        self.know(fork, None, peer.machine.me)
        self.send_call(fork, worker.machine.me, peer.machine.me)
        self.run(worker)

    def send_call(self, fork: ForkData, sender: int, to: int) -> None:
        """Arrives once, whatever happens, while both ends live."""

        def deliver() -> None:
            worker = self.workers[to]
            try:
                worker.machine.require_living(sender)
            except RRefError:
                return
            if fork.owner == to:
                state = worker.machine.expect(fork.rref_id)
                worker.machine.receive(fork, sender)
                if state is not ValueState.LOST:
                    worker.own.add(fork.rref_id)
            else:
                user = worker.machine.receive(fork, sender)
                assert user is not None
                worker.users.append(user)
            self.run(worker)

        self.packets.append(Packet(sender, to, deliver, fork=fork))

    def send_creation(self, sender: int, fork: ForkData) -> None:
        answered = False

        def answer(error: RRefError | None) -> None:
            nonlocal answered
            worker = self.workers.get(sender)
            if answered or worker is None:
                return
            answered = True
            if error is None:
                worker.machine.remote_confirmed(fork)
            else:
                worker.machine.remote_failed(fork, error)
            self.run(worker)

        def lose() -> None:
            answer(RRefError("timed out"))

        def deliver() -> None:
            worker = self.workers[fork.owner]
            error: RRefError | None = None
            try:
                worker.machine.accept_remote(fork, sender)
                self.created.add(fork.rref_id)
            except RRefError as exc:
                error = exc
            self.run(worker)
            if not answered and sender in self.workers:
                self.packets.append(Packet(fork.owner, sender, lambda: answer(error), lose))

        self.packets.append(Packet(sender, fork.owner, deliver, lose))

    def send_control(self, sender: int, message: Message) -> None:
        reported = False

        def lose() -> None:
            nonlocal reported
            worker = self.workers.get(sender)
            if reported or worker is None:
                return
            reported = True
            worker.machine.unanswered(message)
            self.run(worker)

        def answer(error: RRefError | None) -> None:
            nonlocal reported
            worker = self.workers.get(sender)
            if reported or worker is None:
                return
            reported = True
            if error is None:
                worker.machine.acknowledged(message)
            else:
                worker.machine.refused(message, error)
            self.run(worker)

        def deliver() -> None:
            worker = self.workers[message.to]
            error: RRefError | None = None
            try:
                worker.machine.on_message(message.kind, message.items, sender)
            except RRefError as exc:
                error = exc
            self.run(worker)
            if not reported and sender in self.workers:
                self.packets.append(Packet(message.to, sender, lambda: answer(error), lose))

        if message.to in self.workers:
            self.packets.append(Packet(sender, message.to, deliver, lose))
        else:
            lose()

    def run(self, worker: Worker) -> None:
        """Do what the machine asks for."""
        for instruction in worker.machine.take():
            if isinstance(instruction, Send):
                self.send_control(worker.machine.me, instruction.message)
            elif isinstance(instruction, Later):
                worker.timers.append(instruction.timer)
            elif isinstance(instruction, Drop) and instruction.rref_id not in worker.own:
                self.no_value_is_gone_that_somebody_uses()
                self.created.discard(instruction.rref_id)
            elif isinstance(instruction, Lose):
                worker.own.discard(instruction.rref_id)

    def fire(self, worker: Worker, timer: Timer) -> None:
        worker.timers.remove(timer)
        if isinstance(timer, Reclaim):
            self.excuse(timer.worker)
        worker.machine.fire(timer)
        self.run(worker)

    def excuse(self, dead: int) -> None:
        for fork_id, rref_id in self.rref_of.items():
            owner = self.workers.get(self.owner_of[rref_id])
            known = owner is not None and fork_id in owner.machine.owned.forks().get(rref_id, {})
            ancestor: ForkId | None = fork_id
            while ancestor is not None and not known:
                if self.holder[ancestor] == dead:
                    self.excused.add(fork_id)
                ancestor = self.parent[ancestor]

    def notice_death(self, worker: Worker, dead: int) -> None:
        worker.noticed.add(dead)
        worker.machine.member_died(dead)
        self.run(worker)

    def settle(self) -> None:
        """No more losses: everybody hears of every death, every message and every timer's time comes."""
        for worker in self.workers.values():
            for dead in sorted(self.dead - worker.noticed):
                self.notice_death(worker, dead)
        for _ in range(1000):
            while self.packets or self.late:
                (self.packets or self.late).pop(0).deliver()
                self.no_value_is_gone_that_somebody_uses()
            due = [
                (worker, timer)
                for worker in self.workers.values()
                for timer in worker.timers
                if not isinstance(timer, Expire | Forget)
            ]
            if not due:
                break
            for worker, timer in due:
                self.fire(worker, timer)
        else:
            raise AssertionError("it does not come to rest")
        self.check_expectations()
        # Nothing is under way: what is remembered because of late messages can be forgotten.
        for worker in self.workers.values():
            for timer in list(worker.timers):
                self.fire(worker, timer)

    def check_expectations(self) -> None:
        """At rest a value is only expected of a living creator that has not deleted its own fork yet."""
        for worker in self.workers.values():
            for rref_id in worker.machine.owned.forks():
                if worker.machine.expect(rref_id) is ValueState.EXPECTED:
                    creator = self.workers.get(rref_id.worker)
                    assert creator is not None, f"{rref_id} is expected of a dead worker"
                    assert any(user.rref_id == rref_id for user in creator.machine.held.users())

    def check_agreement(self) -> None:
        """At rest every owner knows exactly the forks that living workers hold."""
        held: dict[int, dict[RRefId, dict[ForkId, int]]] = {}
        for me, worker in self.workers.items():
            for user in worker.machine.held.users():
                assert user.state is not UserState.PENDING, f"{user.fork_id} was never confirmed"
                assert user.state is not UserState.DELETING, f"{user.fork_id} was never deleted"
                if user.state is UserState.CONFIRMED:
                    forks = held.setdefault(user.owner, {}).setdefault(user.rref_id, {})
                    forks[user.fork_id] = me
            assert worker.machine.held.pending_children() == 0
        for me, worker in self.workers.items():
            known = {rref_id: dict(forks) for rref_id, forks in worker.machine.owned.forks().items()}
            for user in (u for w in self.workers.values() for u in w.users):
                # A failed creation: whether the owner knows the fork is open until it is deleted.
                if user.state is UserState.FAILED and user.owner == me:
                    known.get(user.rref_id, {}).pop(user.fork_id, None)
            known = {rref_id: forks for rref_id, forks in known.items() if forks}
            assert known == held.get(me, {}), f"{worker.name} and its users do not agree"


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
