from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest

from rpcgroup.errors import NotInitializedError
from rpcgroup.functions import async_execution
from rpcgroup.rref.context import RRefContext
from rpcgroup.rref.rref import RRef, use_context
from rpcgroup.rref.uses import AsyncResult
from rpcgroup.testing.rref_network import RRefNetwork


class Counter:
    def __init__(self) -> None:
        self.count = 0

    def add(self, amount: int, *, times: int = 1) -> int:
        self.count += amount * times
        return self.count

    @async_execution
    def later(self) -> str:
        return "a future"


@pytest.fixture
def network() -> Iterator[RRefNetwork]:
    network = RRefNetwork()
    yield network
    use_context(None)
    for context in network.contexts.values():
        context.close()


@pytest.fixture
def owner(network: RRefNetwork) -> RRefContext:
    context = network.join("ps", 1)
    use_context(context)
    return context


@pytest.fixture
def user(network: RRefNetwork) -> RRefContext:
    return network.join("trainer", 2)


def test_without_a_group_there_are_no_references() -> None:
    with pytest.raises(NotInitializedError, match="init_rpc"):
        RRef(1)


def test_on_the_owner_every_way_gives_the_same_object(owner: RRefContext) -> None:
    value = Counter()
    rref = RRef(value)
    assert rref.local_value() is value is rref.to_here()
    assert rref.is_owner() and rref.confirmed_by_owner()
    assert rref.owner_name() == rref.owner().name == "ps"


def test_on_a_user_the_local_value_is_refused_with_the_owners_name(
    network: RRefNetwork, owner: RRefContext, user: RRefContext
) -> None:
    (rref,) = network.call(owner, user, RRef(Counter()))
    assert not rref.is_owner() and rref.owner().id == 1 and rref.owner_name() == "ps"
    with pytest.raises(
        RuntimeError,
        match=r"For UserRRef\(rref_id=GloballyUniqueId\(created_on=1, local_id=0\), "
        r"fork_id=GloballyUniqueId\(created_on=1, local_id=1\)\), "
        r"can't call localValue\(\) on user WorkerInfo\(id=2, name=trainer\). "
        r"Call it on owner WorkerInfo\(id=1, name=ps\)",
    ):
        rref.local_value()


def test_it_prints_as_torch_prints_it(network: RRefNetwork, owner: RRefContext, user: RRefContext) -> None:
    rref = RRef(1)
    (held,) = network.call(owner, user, rref)
    assert str(rref) == "OwnerRRef(GloballyUniqueId(created_on=1, local_id=0))"
    assert str(held) == (
        "UserRRef(RRefId = GloballyUniqueId(created_on=1, local_id=0), "
        "ForkId = GloballyUniqueId(created_on=1, local_id=1))"
    )


def test_equality_is_identity(owner: RRefContext) -> None:
    first, second = RRef(1), RRef(1)
    assert first == first and first != second and len({first, second}) == 2


@pytest.mark.parametrize("use", [pickle.dumps, copy.copy, copy.deepcopy])
def test_outside_of_a_call_it_cannot_be_pickled(owner: RRefContext, use: Any) -> None:
    with pytest.raises(RuntimeError, match="pickle"):
        use(RRef(1))


def test_the_proxies_call_methods_where_the_value_lives(
    network: RRefNetwork, owner: RRefContext, user: RRefContext
) -> None:
    value = Counter()
    (held,) = network.call(owner, user, RRef(value))
    assert held.rpc_sync().add(2, times=3) == 6
    assert held.rpc_async(timeout=5).add(1).wait() == 7
    assert held.remote().add(amount=1) == 8
    assert value.count == 8


def test_an_async_method_answers_with_its_future(
    network: RRefNetwork, owner: RRefContext, user: RRefContext
) -> None:
    (held,) = network.call(owner, user, RRef(Counter()))
    answer = held.rpc_sync().later()
    assert type(answer) is AsyncResult and answer.future == "a future"


def test_the_type_is_asked_for_once(
    network: RRefNetwork, owner: RRefContext, user: RRefContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    rref = RRef(Counter())
    (held,) = network.call(owner, user, rref)
    assert held._get_type() is Counter
    monkeypatch.setattr(user.port, "call", None)
    assert held._get_type() is Counter


def test_backward_needs_a_tensor(owner: RRefContext) -> None:
    with pytest.raises(RuntimeError, match="should contain a tensor"):
        RRef(1).backward(0)


def test_a_reference_of_an_earlier_group_is_not_passed_on(network: RRefNetwork, owner: RRefContext) -> None:
    rref = RRef(1)
    again = network.join("ps", 5)
    with pytest.raises(RuntimeError, match="before the last init_rpc"):
        again.fork(rref, 2)
