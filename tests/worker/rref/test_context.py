"""The context on an in-memory port: what the agent relies on, with threads and the garbage collector."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from rpcgroup.errors import (
    CallTimeoutError,
    NotInitializedError,
    OwnerDiedError,
    PeerUnreachableError,
    RRefCreationTimeoutError,
    RRefError,
)
from rpcgroup.rref.context import Counts, RRefContext
from rpcgroup.rref.messages import encode_fetch
from rpcgroup.rref.rref import RRef
from rpcgroup.testing.rref_network import RRefNetwork
from rpcgroup.wire.messages import MessageType

NOTHING = Counts(0, 0, 0, 0, 0)


class Value:
    """Something that a weak reference can watch."""


@pytest.fixture
def network() -> Iterator[RRefNetwork]:
    network = RRefNetwork()
    yield network
    for context in network.contexts.values():
        context.close()


@pytest.fixture
def owner(network: RRefNetwork) -> RRefContext:
    return network.join("owner", 1)


@pytest.fixture
def alice(network: RRefNetwork) -> RRefContext:
    return network.join("alice", 2)


@pytest.fixture
def bob(network: RRefNetwork) -> RRefContext:
    return network.join("bob", 3)


def created(owner: RRefContext, user: RRefContext) -> tuple[RRef[Any], RRef[Any]]:
    """A creation by `remote` that is answered; the user's and the owner's reference."""
    rref, fork = user.begin_remote(owner.port.incarnation, owner.port.name)
    accepted = owner.accept_remote(fork.to_wire(), user.port.incarnation)
    user.remote_done(fork, None)
    return rref, accepted


# -- lifetime ----------------------------------------------------------------------------------------------


def test_a_value_is_in_no_table_before_it_is_shared(owner: RRefContext) -> None:
    rref = owner.create(5)
    assert rref.local_value() == 5
    assert owner.counts() == NOTHING


def test_a_value_lives_until_its_last_user_is_gone(
    network: RRefNetwork, owner: RRefContext, alice: RRefContext, bob: RRefContext
) -> None:
    value = Value()
    watch = weakref.ref(value)
    (held,) = network.call(owner, alice, owner.create(value))
    del value
    assert owner.counts() == Counts(1, 0, 1, 0, 0) and alice.counts() == Counts(0, 1, 0, 0, 0)
    (handed_on,) = network.call(alice, bob, held)
    del held
    alice.reap()
    assert alice.counts() == NOTHING and watch() is not None
    del handed_on
    bob.reap()
    assert owner.counts() == bob.counts() == NOTHING
    assert watch() is None


def test_the_owner_gets_its_own_value_back(
    network: RRefNetwork, owner: RRefContext, alice: RRefContext
) -> None:
    rref = owner.create(Value())
    (held,) = network.call(owner, alice, rref)
    (back,) = network.call(alice, owner, held)
    assert back.is_owner() and back.local_value() is rref.local_value()
    del held
    alice.reap()
    assert owner.counts() == NOTHING and isinstance(back.local_value(), Value)


def test_a_value_can_be_shared_again_after_its_last_user(
    network: RRefNetwork, owner: RRefContext, alice: RRefContext
) -> None:
    rref = owner.create("x")
    for _ in range(2):
        (held,) = network.call(owner, alice, rref)
        assert held.to_here() == "x"
        del held
        alice.reap()
        assert owner.counts() == NOTHING


def test_a_message_that_never_left_leaves_nothing(
    network: RRefNetwork, owner: RRefContext, alice: RRefContext
) -> None:
    owner.fork_failed(owner.fork(owner.create(1), 2))
    assert owner.counts() == NOTHING
    (held,) = network.call(owner, alice, owner.create(1))
    fork = alice.fork(held, 3)
    assert alice.counts().pending_children == 1
    alice.fork_failed(fork)
    assert alice.counts().pending_children == 0


def test_a_message_nobody_looks_at_leaves_nothing(
    network: RRefNetwork, owner: RRefContext, alice: RRefContext, bob: RRefContext
) -> None:
    (held,) = network.call(owner, alice, owner.create(1))
    bob.decline([alice.fork(held, 3).to_wire()], 2)
    assert bob.counts() == NOTHING and alice.counts() == Counts(0, 1, 0, 0, 0)
    alice.decline([owner.fork(owner.create(1), 2).to_wire()], 1)
    assert owner.counts() == Counts(1, 0, 1, 0, 0), "what alice holds"


def test_a_creation_may_be_dropped_while_its_function_runs(owner: RRefContext, alice: RRefContext) -> None:
    rref, accepted = created(owner, alice)
    del rref
    alice.reap()
    assert owner.counts() == NOTHING
    owner.set_value(accepted, 1)


def test_a_creation_on_oneself(owner: RRefContext) -> None:
    rref, fork = owner.begin_remote(1, "owner")
    accepted = owner.accept_remote(fork.to_wire(), 1)
    assert owner.counts().owner_rrefs == 1
    owner.set_value(accepted, [1])
    owner.remote_done(fork, None)
    assert owner.counts() == NOTHING and rref.local_value() is accepted.local_value()


# -- confirmation ------------------------------------------------------------------------------------------


def test_nothing_pending_calls_back_inline(
    network: RRefNetwork, owner: RRefContext, alice: RRefContext
) -> None:
    called: list[Any] = []
    alice.when_confirmed(None, called.append)
    _, pending = alice.receive([owner.fork(owner.create(1), 2).to_wire()], 1)
    assert pending is None and called == [None]


def test_a_function_waits_for_every_reference_of_its_message(
    network: RRefNetwork, owner: RRefContext, alice: RRefContext, bob: RRefContext
) -> None:
    held = network.call(owner, alice, owner.create(1), owner.create(2))
    network.held = True
    forks = [alice.fork(rref, 3).to_wire() for rref in held]
    received, pending = bob.receive(forks, 2)
    called: list[Any] = []
    bob.when_confirmed(pending, called.append)
    assert called == [] and not any(rref.confirmed_by_owner() for rref in received)
    assert bob.counts().pending_users == 2
    network.deliver()
    assert called == [None] and all(rref.confirmed_by_owner() for rref in received)
    assert alice.counts().pending_children == 0


def test_confirmation_before_anybody_asks(
    network: RRefNetwork, owner: RRefContext, alice: RRefContext, bob: RRefContext
) -> None:
    (held,) = network.call(owner, alice, owner.create(1))
    _, pending = bob.receive([alice.fork(held, 3).to_wire()], 2)
    called: list[Any] = []
    bob.when_confirmed(pending, called.append)
    assert called == [None]


def test_the_owners_death_ends_the_wait(
    network: RRefNetwork, owner: RRefContext, alice: RRefContext, bob: RRefContext
) -> None:
    (held,) = network.call(owner, alice, owner.create(1))
    network.held = True
    received, pending = bob.receive([alice.fork(held, 3).to_wire()], 2)
    called: list[Any] = []
    bob.when_confirmed(pending, called.append)
    bob.member_died(1)
    assert isinstance(called[0], OwnerDiedError) and "owner" in str(called[0])
    with pytest.raises(OwnerDiedError):
        received[0].to_here()


def test_a_refusal_ends_the_wait(
    network: RRefNetwork, owner: RRefContext, alice: RRefContext, bob: RRefContext
) -> None:
    (held,) = network.call(owner, alice, owner.create(1))
    owner.member_died(3)
    with pytest.raises(RRefError, match="declared dead"):
        network.call(alice, bob, held)
    assert alice.counts().pending_children == 0


# -- values ------------------------------------------------------------------------------------------------


def test_a_fetch_waits_without_a_thread(owner: RRefContext, alice: RRefContext) -> None:
    rref, fork = alice.begin_remote(1, "owner")
    answers: list[Any] = []
    owner.when_owner_value(encode_fetch(fork.rref_id), 2, lambda *answer: answers.append(answer))
    accepted = owner.accept_remote(fork.to_wire(), 2)
    owner.when_owner_value(encode_fetch(fork.rref_id), 2, lambda *answer: answers.append(answer))
    assert answers == []
    owner.set_value(accepted, 7)
    assert answers == [(7, None), (7, None)]
    alice.remote_done(fork, None)
    assert rref.to_here() == 7


def test_a_function_that_raised_raises_at_every_use(owner: RRefContext, alice: RRefContext) -> None:
    rref, accepted = created(owner, alice)
    owner.set_error(accepted, ZeroDivisionError("no"))
    for use in (rref.to_here, accepted.local_value, accepted.to_here):
        with pytest.raises(ZeroDivisionError, match="no"):
            use()


def test_one_waiter_that_raises_does_not_keep_the_others_waiting(
    owner: RRefContext, alice: RRefContext
) -> None:
    rref, accepted = created(owner, alice)
    answers: list[Any] = []

    def fail(value: Any, error: BaseException | None) -> None:
        raise RuntimeError("of the agent")

    payload = encode_fetch(rref._rref_id)
    owner.when_owner_value(payload, 2, fail)
    owner.when_owner_value(payload, 2, lambda *answer: answers.append(answer))
    owner.set_value(accepted, 1)
    assert answers == [(1, None)]


def test_on_the_owner_a_use_waits_for_the_value(owner: RRefContext, alice: RRefContext) -> None:
    _, accepted = created(owner, alice)
    with pytest.raises(CallTimeoutError, match=r"^RPC ran for more than set timeout \(1 ms\)"):
        accepted.to_here(timeout=0.001)
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(accepted.local_value()))
    thread.start()
    owner.set_value(accepted, 3)
    thread.join(10)
    assert got == [3]


# -- failures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "expected"),
    [(CallTimeoutError("RPC ran ..."), RRefCreationTimeoutError), (RuntimeError("injected"), RRefError)],
)
def test_a_failed_creation_raises_by_kind_at_every_use(
    owner: RRefContext, alice: RRefContext, error: Exception, expected: type[Exception]
) -> None:
    rref, fork = alice.begin_remote(1, "owner")
    alice.remote_done(fork, error)
    for _ in range(2):
        with pytest.raises(expected, match="RRef creation") as caught:
            rref.to_here()
        assert caught.value.__cause__ is error
    with pytest.raises(expected, match="RRef creation"):
        alice.fork(rref, 3)
    del rref, caught
    gc.collect()
    alice.reap()
    assert alice.counts() == owner.counts() == NOTHING


def test_a_failed_creation_on_oneself(owner: RRefContext) -> None:
    rref, fork = owner.begin_remote(1, "owner")
    owner.remote_done(fork, RuntimeError("injected"))
    with pytest.raises(RRefError, match="RRef creation"):
        rref.to_here()
    with pytest.raises(RRefError, match="RRef creation"):
        owner.fork(rref, 2)
    assert owner.counts() == NOTHING


def test_the_function_of_a_creation_that_was_given_up_must_not_run(
    owner: RRefContext, alice: RRefContext
) -> None:
    rref, fork = alice.begin_remote(1, "owner")
    alice.remote_done(fork, CallTimeoutError("RPC ran ..."))
    del rref
    alice.reap()
    with pytest.raises(RRefError, match="given it up"):
        owner.accept_remote(fork.to_wire(), 2)


def test_a_dead_owner_fails_uses_at_once(
    network: RRefNetwork, owner: RRefContext, alice: RRefContext
) -> None:
    (held,) = network.call(owner, alice, owner.create(1))
    network.crash(1)
    with pytest.raises(PeerUnreachableError):
        held.to_here()
    alice.member_died(1)
    with pytest.raises(OwnerDiedError, match="'owner'"):
        held.to_here()
    with pytest.raises(OwnerDiedError, match="'owner'"):
        alice.fork(held, 3)
    with pytest.raises(OwnerDiedError, match="'owner'"):
        held.rpc_sync().anything()
    del held
    gc.collect()
    alice.reap()
    assert alice.counts() == NOTHING


def test_a_pending_fetch_of_a_dead_owner_is_an_owners_death(
    network: RRefNetwork, owner: RRefContext, alice: RRefContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    (held,) = network.call(owner, alice, owner.create(1))

    class Failing:
        def wait(self) -> Any:
            alice.member_died(1)
            raise PeerUnreachableError("connection refused")

    monkeypatch.setattr(alice.port, "fetch", lambda to, payload, timeout: Failing())
    with pytest.raises(OwnerDiedError):
        held.to_here()


def test_a_dead_users_values_go_after_the_grace_period(
    network: RRefNetwork, owner: RRefContext, alice: RRefContext
) -> None:
    network.call(owner, alice, owner.create(1))
    network.crash(2)
    owner.member_died(2)
    assert owner.counts().forks == 1
    network.fire_timers()
    assert owner.counts() == NOTHING


def test_a_restarted_worker_is_another_one(
    network: RRefNetwork, owner: RRefContext, alice: RRefContext
) -> None:
    (held,) = network.call(owner, alice, owner.create("old"))
    network.crash(1)
    alice.member_died(1)
    again = network.join("owner", 9)
    (fresh,) = network.call(again, alice, again.create("new"))
    assert fresh.to_here() == "new"
    with pytest.raises(OwnerDiedError):
        held.to_here()
    with pytest.raises(RRefError, match="declared dead"):
        alice.on_message(MessageType.RREF_CHILD_ACCEPT, b"", 1)


def test_control_messages_are_sent_again_until_they_are_answered(
    network: RRefNetwork, owner: RRefContext, alice: RRefContext
) -> None:
    (held,) = network.call(owner, alice, owner.create(1))
    del network.contexts[1]
    del held
    alice.reap()
    network.fire_timers()
    assert alice.counts().user_rrefs == 1
    network.contexts[1] = owner
    network.fire_timers()
    assert alice.counts() == owner.counts() == NOTHING


# -- deletion from anywhere --------------------------------------------------------------------------------


def test_deletion_only_wakes(network: RRefNetwork, owner: RRefContext, alice: RRefContext) -> None:
    (held,) = network.call(owner, alice, owner.create(1))
    port: Any = alice.port
    with alice._driver:  # its lock is taken, as when the collector runs inside an event
        del held
    assert port.woken == 1
    alice.reap()
    assert alice.counts() == owner.counts() == NOTHING


def test_the_collector_may_run_inside_the_lock(
    network: RRefNetwork, owner: RRefContext, alice: RRefContext
) -> None:
    """References in cycles, collected at random allocations, most of them inside the machine."""
    threshold = gc.get_threshold()
    gc.set_threshold(5)
    try:
        for number in range(200):
            (held,) = network.call(owner, alice, owner.create(number))
            cycle: list[Any] = [held]
            cycle.append(cycle)
            weakref.finalize(held, alice.reap)
            del held, cycle
    finally:
        gc.set_threshold(*threshold)
    gc.collect()
    alice.reap()
    assert alice.counts() == owner.counts() == NOTHING


def test_deletion_from_many_threads(
    network: RRefNetwork, owner: RRefContext, alice: RRefContext, bob: RRefContext
) -> None:
    failures: list[BaseException] = []

    def pass_around() -> None:
        try:
            for number in range(100):
                (held,) = network.call(owner, alice, owner.create(number))
                (handed_on,) = network.call(alice, bob, held)
                (back,) = network.call(bob, owner, handed_on)
                assert handed_on.to_here() == back.local_value() == number
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=pass_around) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    for context in (alice, bob, owner):
        context.reap()
    assert owner.counts() == alice.counts() == bob.counts() == NOTHING


def test_a_value_is_destroyed_outside_the_lock(
    network: RRefNetwork, owner: RRefContext, alice: RRefContext
) -> None:
    counted: list[Counts] = []

    class Nosy:
        def __del__(self) -> None:
            counted.append(owner.counts())

    (held,) = network.call(owner, alice, owner.create(Nosy()))
    del held
    alice.reap()
    assert counted == [NOTHING]


# -- the end -----------------------------------------------------------------------------------------------


def test_shutdown_deletes_what_the_program_still_holds(
    network: RRefNetwork, owner: RRefContext, alice: RRefContext
) -> None:
    (held,) = network.call(owner, alice, owner.create(1))
    assert alice.shutdown(10) is True
    assert alice.counts() == owner.counts() == NOTHING and owner.leaks() == alice.leaks() == []
    with pytest.raises(RRefError, match="shutdown"):
        held.to_here()


def test_shutdown_does_not_wait_for_the_dead_nor_for_ever(
    network: RRefNetwork, owner: RRefContext, alice: RRefContext
) -> None:
    (held,) = network.call(owner, alice, owner.create(1))
    network.crash(1)
    assert alice.shutdown(0.01) is False
    alice.member_died(1)
    assert alice.shutdown(10) is True
    del held


def test_leaks_are_named(network: RRefNetwork, owner: RRefContext, alice: RRefContext) -> None:
    (held,) = network.call(owner, alice, owner.create(1))
    (at_owner,), (at_user,) = owner.leaks(), alice.leaks()
    assert at_owner.startswith("Leaking RRef") and "[2]" in at_owner
    assert at_user.startswith("Leaking RRef") and "'owner'" in at_user
    del held


def test_a_closed_context_tells_those_who_wait_and_refuses_the_rest(
    network: RRefNetwork, owner: RRefContext, alice: RRefContext, bob: RRefContext
) -> None:
    rref, accepted = created(owner, alice)
    answers: list[Any] = []
    owner.when_owner_value(encode_fetch(rref._rref_id), 2, lambda *answer: answers.append(answer))
    network.held = True
    _, pending = bob.receive([alice.fork(rref, 3).to_wire()], 2)
    errors: list[Any] = []
    bob.when_confirmed(pending, errors.append)
    for context in (owner, bob, owner):
        context.close()
    assert isinstance(answers[0][1], NotInitializedError) and isinstance(errors[0], NotInitializedError)
    owner.set_value(accepted, 1)
    for use in (accepted.local_value, owner.counts, lambda: owner.member_died(2)):
        with pytest.raises(NotInitializedError):
            use()
    owner.reap()
    network.deliver()


def test_debug_info_has_torchs_names(owner: RRefContext) -> None:
    assert owner.debug_info() == {
        "num_owner_rrefs": "0",
        "num_user_rrefs": "0",
        "num_forks": "0",
        "num_pending_users": "0",
        "num_pending_children": "0",
        "num_pending_futures": "0",
    }


def test_creations_that_are_under_way_are_counted(owner: RRefContext, alice: RRefContext) -> None:
    made = [alice.begin_remote(owner.port.incarnation, "ps") for _ in range(2)]
    assert alice.counts().pending_futures == 2
    alice.remote_done(made[0][1], None)
    alice.remote_done(made[1][1], ValueError("why"))
    assert alice.counts().pending_futures == 0
