from __future__ import annotations

from torch.distributed import HashStore  # type: ignore[attr-defined]

from rpcgroup.membership.store.client import Store, StoreClient
from rpcgroup.membership.store.identity import group_identity, group_secret, has_group, store_identity


def test_whether_somebody_has_met_here(store: Store) -> None:
    client = StoreClient(store)
    assert not has_group(client)
    group_identity(client)
    assert has_group(client)


def test_the_first_to_ask_makes_it_for_all(store: Store) -> None:
    one, two = StoreClient(store), StoreClient(store)
    assert group_identity(one) == group_identity(two) != ""
    assert group_secret(two) == group_secret(one)
    assert len(group_secret(one)) == 64, "256 random bits"


def test_a_store_is_the_same_one_for_all_and_no_other(store: Store) -> None:
    assert store_identity(StoreClient(store)) == store_identity(StoreClient(store)) != ""
    assert store_identity(StoreClient(HashStore())) != store_identity(StoreClient(store))
