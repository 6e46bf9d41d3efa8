from __future__ import annotations

from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpcgroup import contract
from rpcgroup.errors import RendezvousError
from rpcgroup.membership.memory import MemoryRendezvous
from rpcgroup.membership.url import RendezvousUrl, open_rendezvous, parse_rendezvous_url


@pytest.mark.parametrize(
    ("url", "parsed"),
    [
        ("etcd://h:2379/ns/g", RendezvousUrl("etcd", ("h:2379",), "ns", "g")),
        ("etcd://a:1,b:2,c:3/ns/g", RendezvousUrl("etcd", ("a:1", "b:2", "c:3"), "ns", "g")),
        ("etcd://h/ns/g", RendezvousUrl("etcd", ("h:2379",), "ns", "g")),
        ("etcd://[::1]:7/ns/g", RendezvousUrl("etcd", ("[::1]:7",), "ns", "g")),
        ("etcd://[::1]/ns/g", RendezvousUrl("etcd", ("[::1]:2379",), "ns", "g")),
        ("memory://here/ns/g", RendezvousUrl("memory", ("here",), "ns", "g")),
    ],
)
def test_urls(url: str, parsed: RendezvousUrl) -> None:
    assert parse_rendezvous_url(url) == parsed


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("", "begins with"),
        ("http://h:1/ns/g", "begins with"),
        ("etcd:/h:1/ns/g", "begins with"),
        ("etcd://h:1", "NAMESPACE/GROUP"),
        ("etcd://h:1/ns", "NAMESPACE/GROUP"),
        ("etcd://h:1/ns/", "NAMESPACE/GROUP"),
        ("etcd://h:1//g", "NAMESPACE/GROUP"),
        ("etcd://h:1/ns/g/more", "NAMESPACE/GROUP"),
        ("etcd:///ns/g", "no place"),
        ("etcd://a:1,,b:2/ns/g", "no place"),
        ("etcd://h:port/ns/g", "HOST:PORT"),
        ("etcd://h:99999/ns/g", "HOST:PORT"),
        ("etcd://:2379/ns/g", "HOST:PORT"),
        ("etcd://h:1/ns/g?x=1", "options"),
        ("etcd://user:pw@h:1/ns/g", "credentials"),
    ],
)
def test_what_is_no_url_says_what_is_wrong_and_what_is_expected(url: str, fault: str) -> None:
    with pytest.raises(RendezvousError, match=fault) as caught:
        parse_rendezvous_url(url)
    assert "etcd://HOST:PORT[,HOST:PORT...]/NAMESPACE/GROUP" in str(caught.value)


@given(st.text(alphabet="etcdmory:/,[]?@1.", max_size=30))
def test_nothing_else_is_ever_raised(url: str) -> None:
    try:
        parse_rendezvous_url(url)
    except RendezvousError:
        pass


def test_a_memory_place_is_the_same_for_all_of_its_name() -> None:
    one, same = (open_rendezvous("memory://url/ns/g") for _ in range(2))
    other = open_rendezvous("memory://url/ns/other")
    assert isinstance(one, MemoryRendezvous)
    one.kv.put("k", b"v")
    assert same.kv.get("k") == b"v"
    assert other.kv.get("k") is None


def test_opening_dials_nobody() -> None:
    with closing(open_rendezvous("etcd://127.0.0.1:1/ns/g")):
        pass


@pytest.mark.parametrize("ttl", ["soon", "1", "-5", "2.5"])
def test_a_lease_time_that_is_none_is_refused(ttl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(contract.ENV_LEASE_TTL, ttl)
    with pytest.raises(RendezvousError, match=contract.ENV_LEASE_TTL):
        open_rendezvous("etcd://127.0.0.1:1/ns/g")
