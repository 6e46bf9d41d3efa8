"""pytest fixtures: a real etcd for a test run, and a group in it for a test.

In a `conftest.py`: `from rpcgroup.testing.etcd import etcd_server, etcd_url`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from rpcgroup.errors import RendezvousError
from rpcgroup.local.etcd_server import EtcdServer
from rpcgroup.membership.etcd.client import EtcdClient
from rpcgroup.membership.etcd.messages import STATUS, StatusRequest

__all__ = ["etcd_server", "etcd_url"]

_numbers = itertools.count()


@pytest.fixture(scope="session")
def etcd_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """One etcd for all tests of the run that only store things in it. Tests that break it make their own."""
    with EtcdServer(tmp_path_factory.mktemp("etcd")) as server:
        _warm_up_grpc(server)
        yield server


@pytest.fixture
def etcd_url(etcd_server: EtcdServer) -> str:
    """The URL of a group that no other test uses."""
    return f"etcd://{etcd_server.endpoint}/tests/group-{next(_numbers)}"


def _warm_up_grpc(server: EtcdServer) -> None:
    """gRPC opens descriptors at its first call and keeps them: they are no test's leak."""
    client = EtcdClient([server.endpoint])
    try:
        client.call(STATUS, StatusRequest())
    except RendezvousError:
        pass  # the tests will say so
    finally:
        client.close()
