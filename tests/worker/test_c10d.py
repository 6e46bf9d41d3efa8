from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rpcgroup import c10d
from rpcgroup.c10d import (
    dist,
    is_init_method,
    next_static,
    open_store,
    prefixed,
    store_host,
    store_place,
)
from rpcgroup.errors import RendezvousError, RendezvousUnavailableError

TIMEOUT = 20.0
ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE")


@pytest.fixture(scope="module", autouse=True)
def tcp_store_warmed_up() -> None:
    """The first one in a process opens a pipe of libuv that lives as long as the process."""
    dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


@pytest.fixture(autouse=True)
def nothing_stays_open(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    yield
    c10d._rendezvous = None


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def test_torchs_urls_are_told_from_ours() -> None:
    for url in ("file:///tmp/x", "tcp://h:1", "env://"):
        assert is_init_method(url)
    for url in ("etcd://h:1/n/g", "memory://p/n/g", "", "http://x"):
        assert not is_init_method(url)


@pytest.mark.parametrize("world_size", [None, 2])
def test_a_file(tmp_path: Path, world_size: int | None) -> None:
    url = f"file://{tmp_path}/store"
    one, two = (open_store(url, rank, world_size, TIMEOUT) for rank in range(2))
    assert (one.rank, two.rank) == (0, 1)
    one.store.set("key", "value")
    assert two.store.get("key") == b"value"
    assert store_host(one.store) is None


@pytest.mark.parametrize("world_size", [None, 2])
def test_a_port_and_nobody_waits_for_the_others(world_size: int | None) -> None:
    url = f"tcp://127.0.0.1:{free_port()}"
    one = open_store(url, 0, world_size, TIMEOUT)
    two = open_store(url, 1, world_size, TIMEOUT)
    one.store.set("key", "value")
    assert two.store.get("key") == b"value"
    assert store_host(dist.PrefixStore("a", two.store)) == ("127.0.0.1", one.store.port)


@pytest.mark.parametrize("rank", [0, -1])
def test_the_environment(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    opened = open_store("env://", rank, 2, TIMEOUT)
    assert opened.rank == 0
    opened.store.set("key", "value")


def test_a_dynamic_group_in_the_environment_needs_no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(server.port))
    opened = open_store("env://", -1, None, TIMEOUT)
    assert opened.rank == -1
    opened.store.set("key", "value")
    assert server.get("key") == b"value"


def test_what_cannot_be_used_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RendezvousError, match=r"cannot meet at env://.*MASTER_ADDR"):
        open_store("env://", 0, 2, TIMEOUT)
    with pytest.raises(RendezvousError, match="port number missing"):
        open_store("tcp://127.0.0.1", 0, 2, TIMEOUT)
    with pytest.raises(RendezvousUnavailableError, match=r"cannot meet at tcp://127\.0\.0\.1"):
        open_store(f"tcp://127.0.0.1:{free_port()}", 1, 2, 0.5)


def test_an_environment_that_makes_no_sense_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "abc")
    with pytest.raises(RendezvousError, match=r"in the environment: MASTER_ADDR=localhost, MASTER_PORT=abc"):
        open_store("env://", 0, 1, TIMEOUT)


def test_a_torch_without_distributed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(dist, "is_available", lambda: False)
    with pytest.raises(RendezvousError, match="built without"):
        open_store(f"file://{tmp_path}/store", 0, 2, TIMEOUT)


def test_a_server_outlives_the_group_that_opened_it_until_the_next_has_one() -> None:
    url = f"tcp://127.0.0.1:{free_port()}"
    open_store(url, 0, 2, TIMEOUT).store.set("key", "value")
    assert open_store(url, 0, 2, TIMEOUT).store.get("key") == b"value"


def test_each_static_group_of_a_process_has_a_prefix_of_its_own() -> None:
    store: Any = dist.HashStore()
    one, two = prefixed(store, 2), prefixed(store, 2)
    one.set("key", "1")
    assert not two.check(["key"])


def test_groups_at_other_stores_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    prefixed(dist.HashStore(), 2)
    store: Any = dist.HashStore()
    prefixed(store, 2).set("key", "1")
    monkeypatch.setattr(c10d, "_inits", Counter())  # as in another process
    assert next_static(store).check(["key"])
    assert prefixed(store, 2).check(["key"])
    assert not prefixed(store, 2).check(["key"])


def test_a_file_that_is_made_anew_is_another_store(tmp_path: Path) -> None:
    file = tmp_path / "store"
    prefixed(dist.FileStore(str(file), -1), 2).set("key", "1")
    file.unlink()
    store = dist.FileStore(str(file), -1)
    prefixed(store, 2).set("key", "2")
    assert dist.PrefixStore("rpcgroup/0", store).check(["key"]), "the first group there"


def test_a_dynamic_group_is_the_same_for_whoever_comes() -> None:
    store: Any = dist.HashStore()
    prefixed(store, None).set("key", "1")
    prefixed(store, 2)
    assert prefixed(store, None).get("key") == b"1"


def test_a_store_is_named_as_users_know_it(tmp_path: Path) -> None:
    file = dist.PrefixStore("a", dist.PrefixStore("b", dist.FileStore(f"{tmp_path}/store", 1)))
    assert store_place(file) == f"file://{tmp_path}/store"
    assert store_place(dist.HashStore()) == "a HashStore"
    served = dist.TCPStore("127.0.0.1", 0, 1, True)
    assert store_place(dist.PrefixStore("a", served)) == f"tcp://127.0.0.1:{served.port}"
