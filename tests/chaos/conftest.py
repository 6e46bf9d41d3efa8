"""One etcd for all random histories."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rpcgroup.local.etcd_server import EtcdServer


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    server = EtcdServer(tmp_path_factory.mktemp("etcd"))
    server.start()
    yield server
    server.stop()
