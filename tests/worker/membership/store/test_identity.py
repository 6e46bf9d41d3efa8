from __future__ import annotations

from rpcgroup.membership.store.client import Store, StoreClient
from rpcgroup.membership.store.identity import group_identity, group_secret


def test_the_first_to_ask_makes_it_for_all(store: Store) -> None:
    one, two = StoreClient(store), StoreClient(store)
    assert group_identity(one) == group_identity(two) != ""
    assert group_secret(two) == group_secret(one)
    assert len(group_secret(one)) == 64, "256 random bits"
