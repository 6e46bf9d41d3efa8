from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from rpcgroup.errors import RendezvousUnavailableError
from rpcgroup.membership.store.client import Store, StoreClient

PATIENCE = 20.0


@pytest.fixture
def client(store: Store) -> StoreClient:
    return StoreClient(store)


class NoStore:
    """As a TCPStore whose server has gone."""

    def __getattr__(self, name: str) -> object:
        def fail(*args: object) -> None:
            raise RuntimeError("Connection reset by peer")

        return fail


def test_the_first_to_claim_a_key_has_it(client: StoreClient) -> None:
    assert client.read("key") is None
    assert client.claim("key", "mine") == "mine"
    assert client.claim("key", "yours") == "mine"
    assert client.read("key") == "mine"


def test_one_of_many_claims_wins_for_all(client: StoreClient) -> None:
    with ThreadPoolExecutor(8) as pool:
        got = set(pool.map(lambda n: client.claim("key", str(n)), range(8)))
    assert got == {client.read("key")}


def test_replace_needs_to_know_what_is_there(client: StoreClient) -> None:
    client.put("key", "1")
    assert not client.replace("key", "2", "3")
    assert client.replace("key", "1", "2")
    assert client.read("key") == "2"


def test_has_all_and_count(client: StoreClient) -> None:
    client.put("a", "1")
    assert client.has_all(["a"])
    assert not client.has_all(["a", "b"])
    assert [client.count("n"), client.count("n", 2), client.count("n", 1), client.count("n")] == [0, 2, 3, 3]


def test_any_text_goes(client: StoreClient) -> None:
    assert client.claim("key", "é\n\0z") == "é\n\0z"


def test_waiting_ends_when_the_key_is_there(client: StoreClient) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.wait, "key", time.monotonic() + PATIENCE)
        client.put("key", "text")
        assert waiting.result(PATIENCE) == "text"


def test_waiting_ends_at_the_deadline(client: StoreClient) -> None:
    assert client.wait("key", time.monotonic() + 0.05) is None
    assert client.wait("key", time.monotonic() - 1) is None


def test_a_wait_keeps_no_other_thread_from_the_store(client: StoreClient) -> None:
    begun = threading.Event()

    def wait() -> str | None:
        begun.set()
        return client.wait("end", time.monotonic() + PATIENCE)

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait)
        assert begun.wait(PATIENCE)
        for turn in range(20):
            client.put(f"key{turn}", "1")
        assert not waiting.done()
        client.put("end", "now")
        assert waiting.result(PATIENCE) == "now"


def test_a_store_that_fails_is_told_as_such() -> None:
    client = StoreClient(NoStore())  # type: ignore[arg-type]
    uses = (
        lambda: client.claim("k", "t"),
        lambda: client.replace("k", "", "t"),
        lambda: client.put("k", "t"),
        lambda: client.read("k"),
        lambda: client.has_all(["k"]),
        lambda: client.count("k"),
        lambda: client.wait("k", time.monotonic() + PATIENCE),
    )
    for use in uses:
        with pytest.raises(RendezvousUnavailableError, match=r"'k'.*Connection reset by peer"):
            use()  # type: ignore[no-untyped-call]


def test_a_store_that_has_failed_is_not_asked_again(store: Store) -> None:
    """A TCPStore whose server has ended writes a C++ traceback for every question."""
    client = StoreClient(NoStore())  # type: ignore[arg-type]
    with pytest.raises(RendezvousUnavailableError):
        client.read("k")
    client._store = store
    with pytest.raises(RendezvousUnavailableError, match="Connection reset by peer"):
        client.read("k")
