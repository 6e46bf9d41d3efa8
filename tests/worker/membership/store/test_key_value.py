"""What the suite of all rendezvous does not say of the values: see ../test_rendezvous.py."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from rpcgroup.errors import RendezvousError
from rpcgroup.membership.store.client import Store, StoreClient
from rpcgroup.membership.store.key_value import StoreKeyValue


def test_every_value_comes_back(store: Store) -> None:
    kv = StoreKeyValue(StoreClient(store))
    for value in (b"", b"-", b"=", bytes(range(256)), b"x" * 100_000):
        kv.put("key", value)
        assert kv.get("key") == value


def test_a_value_is_deleted_once(store: Store) -> None:
    kv = StoreKeyValue(StoreClient(store))
    kv.put("key", b"1")
    with ThreadPoolExecutor(4) as pool:
        deleted = list(pool.map(lambda _: kv.delete("key"), range(4)))
    assert sorted(deleted) == [False, False, False, True]
    kv.put("key", b"2")
    assert kv.get("key") == b"2"


def test_a_watch_is_refused_with_the_way_out(store: Store) -> None:
    with pytest.raises(RendezvousError, match=r"tells of no change.*kv\.get"):
        StoreKeyValue(StoreClient(store)).watch("", lambda key, value: None)
