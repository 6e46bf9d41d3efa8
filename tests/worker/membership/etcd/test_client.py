from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from rpcgroup.errors import RendezvousError, RendezvousUnavailableError
from rpcgroup.local.etcd_server import EtcdServer
from rpcgroup.membership.etcd.client import EtcdClient, EtcdRefusedError
from rpcgroup.membership.etcd.credentials import EtcdCredentials
from rpcgroup.membership.etcd.messages import (
    PUT,
    RANGE,
    STATUS,
    PutRequest,
    RangeRequest,
    StatusRequest,
)
from rpcgroup.testing.proxy import FaultyProxy

NOBODY = "127.0.0.1:1"


def test_a_value_goes_there_and_back(client: EtcdClient, prefix: bytes) -> None:
    client.call(PUT, PutRequest(prefix + b"k", b"v"))
    answer = client.call(RANGE, RangeRequest(prefix + b"k"))
    assert [(kv.key, kv.value) for kv in answer.kvs] == [(prefix + b"k", b"v")]
    assert client.call(STATUS, StatusRequest()).version


def test_nobody_there_is_said_in_time_with_all_that_was_tried() -> None:
    with (
        closing(EtcdClient([NOBODY, "127.0.0.1:2"])) as client,
        pytest.raises(RendezvousUnavailableError, match="does not answer") as caught,
    ):
        client.retry(RANGE, RangeRequest(b"k"), seconds=1)
    text = str(caught.value)
    assert NOBODY in text
    assert "127.0.0.1:2" in text
    assert "check that it runs" in text


def test_the_next_endpoint_is_dialled_after_a_failure(etcd_server: EtcdServer) -> None:
    for _ in range(3):  # the order is shuffled
        with closing(EtcdClient([NOBODY, etcd_server.endpoint])) as client:
            client.retry(STATUS, StatusRequest(), seconds=10)


def test_a_refusal_is_not_tried_again(client: EtcdClient) -> None:
    with pytest.raises(EtcdRefusedError, match="key is not provided"):
        client.retry(PUT, PutRequest(b"", b"v"), seconds=10)


def test_lost_packets_end_a_call_and_the_next_channel_works(
    far_client: EtcdClient, proxy: FaultyProxy, prefix: bytes
) -> None:
    far_client.call(PUT, PutRequest(prefix, b"1"))
    proxy.lose()
    with pytest.raises(RendezvousUnavailableError, match="DEADLINE_EXCEEDED"):
        far_client.call(RANGE, RangeRequest(prefix), seconds=0.3)
    proxy.mend()
    assert far_client.retry(RANGE, RangeRequest(prefix), seconds=10).kvs[0].value == b"1"


def test_many_failing_threads_are_all_served_by_one_new_channel(
    far_client: EtcdClient, proxy: FaultyProxy, prefix: bytes
) -> None:
    far_client.call(PUT, PutRequest(prefix, b"1"))
    generation = far_client._generation
    start = threading.Barrier(9)

    def read(_: int) -> bytes:
        start.wait(10)
        return far_client.retry(RANGE, RangeRequest(prefix), seconds=10).kvs[0].value

    with ThreadPoolExecutor(8) as pool:
        reads = pool.map(read, range(8))
        proxy.cut()
        start.wait(10)
        proxy.mend()
        assert list(reads) == [b"1"] * 8
    assert far_client._generation - generation < 8


def test_after_close_a_call_says_so(etcd_server: EtcdServer) -> None:
    client = EtcdClient([etcd_server.endpoint])
    client.call(STATUS, StatusRequest())
    client.close()
    client.close()
    with pytest.raises(RendezvousError, match="closed"):
        client.call(STATUS, StatusRequest())


def test_close_ends_a_call_in_flight(far_client: EtcdClient, proxy: FaultyProxy) -> None:
    far_client.call(STATUS, StatusRequest())
    proxy.lose()
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(far_client.retry, STATUS, StatusRequest(), 60.0)
        far_client.close()
        with pytest.raises(RendezvousError):
            call.result(10)


FORK = """
import os, sys
from rpcgroup.errors import RendezvousError
from rpcgroup.membership.etcd.client import EtcdClient
from rpcgroup.membership.etcd.messages import STATUS, StatusRequest

def child():
    for use in (client, EtcdClient([sys.argv[1]])):
        try:
            use.call(STATUS, StatusRequest())
        except RendezvousError as exc:
            assert "spawn" in str(exc)
            use.close()
        else:
            os._exit(1)
    os._exit(0)

client = EtcdClient([sys.argv[1]])
client.call(STATUS, StatusRequest())
pids = [os.fork() or child() for _ in range(3)]
codes = [os.waitpid(pid, 0)[1] for pid in pids]
client.call(STATUS, StatusRequest())
client.close()
sys.exit(any(codes))
"""


def test_a_forked_child_is_refused_at_once_and_leaves_the_parents_channel_alone(
    etcd_server: EtcdServer,
) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORK, etcd_server.endpoint]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# TLS.
class TlsEtcdServer(EtcdServer):
    """Clients must speak TLS, with a certificate; health is told in the clear on the port beside."""

    def __init__(self, directory: Path, files: Path) -> None:
        super().__init__(directory)
        self._files = files
        self.tls_endpoint = ""

    def _command(self, program: str, ports: tuple[int, int]) -> list[str]:
        client, _ = ports
        secure = 1 + max(ports) if max(ports) < 65535 else min(ports) - 1
        self.tls_endpoint = f"127.0.0.1:{secure}"
        return [
            *super()._command(program, ports),
            *("--listen-client-urls", f"https://{self.tls_endpoint}"),
            *("--advertise-client-urls", f"https://{self.tls_endpoint}"),
            *("--listen-metrics-urls", f"http://127.0.0.1:{client}"),
            *("--trusted-ca-file", str(self._files / "ca.pem")),
            *("--cert-file", str(self._files / "server.pem")),
            *("--key-file", str(self._files / "server.key")),
            "--client-cert-auth",
        ]


@pytest.fixture
def tls_server(etcd_server: EtcdServer, tmp_path: Path, tls_files: Path) -> Iterator[TlsEtcdServer]:
    server = TlsEtcdServer(tmp_path / "etcd", tls_files)
    with server:
        yield server


def test_tls_with_certificates_on_both_sides(tls_server: TlsEtcdServer, tls_files: Path) -> None:
    mine = EtcdCredentials(
        ca_file=str(tls_files / "ca.pem"),
        cert_file=str(tls_files / "worker.pem"),
        key_file=str(tls_files / "worker.key"),
    )
    with closing(EtcdClient([tls_server.tls_endpoint], mine)) as client:
        assert client.retry(STATUS, StatusRequest(), 10).version
    for wrong in (EtcdCredentials(ca_file=mine.ca_file), EtcdCredentials()):
        with (
            closing(EtcdClient([tls_server.tls_endpoint], wrong)) as client,
            pytest.raises(RendezvousUnavailableError),
        ):
            client.retry(STATUS, StatusRequest(), 0.5)


# Users and tokens.
def test_a_user_reaches_its_own_keys_only(locked_etcd: EtcdServer, user: EtcdCredentials) -> None:
    with closing(EtcdClient([locked_etcd.endpoint], user)) as client:
        client.call(PUT, PutRequest(b"/mine/k", b"v"))
        assert client.call(RANGE, RangeRequest(b"/mine/k")).kvs[0].value == b"v"
        with pytest.raises(EtcdRefusedError, match="permission denied"):
            client.call(RANGE, RangeRequest(b"/theirs/k"))


def test_a_wrong_password_or_none_is_refused_and_says_so(locked_etcd: EtcdServer) -> None:
    wrong = EtcdCredentials(username="worker", password="wrong")
    with (
        closing(EtcdClient([locked_etcd.endpoint], wrong)) as client,
        pytest.raises(EtcdRefusedError, match="invalid user ID or password"),
    ):
        client.retry(RANGE, RangeRequest(b"/mine/k"), 10)
    with (
        closing(EtcdClient([locked_etcd.endpoint])) as client,
        pytest.raises(EtcdRefusedError, match="user name is empty"),
    ):
        client.retry(RANGE, RangeRequest(b"/mine/k"), 10)


def test_a_restart_costs_no_call(locked_etcd: EtcdServer, user: EtcdCredentials) -> None:
    with closing(EtcdClient([locked_etcd.endpoint], user)) as client:
        client.call(PUT, PutRequest(b"/mine/k", b"v"))
        locked_etcd.kill()
        locked_etcd.start()
        with ThreadPoolExecutor(8) as pool:
            reads = [pool.submit(client.retry, RANGE, RangeRequest(b"/mine/k"), 20.0) for _ in range(8)]
            assert [read.result().kvs[0].value for read in reads] == [b"v"] * 8


def test_a_token_that_expired_is_renewed_without_a_failed_call(
    locked_etcd: EtcdServer, user: EtcdCredentials
) -> None:
    with closing(EtcdClient([locked_etcd.endpoint], user)) as client:
        client.call(PUT, PutRequest(b"/mine/k", b"v"))
        client._login._token = "worker-no-longer-valid.7"
        assert client.call(RANGE, RangeRequest(b"/mine/k")).kvs[0].value == b"v"


def test_a_token_of_a_store_that_is_gone_is_given_up(locked_etcd: EtcdServer, user: EtcdCredentials) -> None:
    """The raft index at its end is not reached for long, and etcd lets a call wait for it."""
    with closing(EtcdClient([locked_etcd.endpoint], user)) as client:
        client.call(PUT, PutRequest(b"/mine/k", b"v"))
        client._login._token = f"{client._login._token.partition('.')[0]}.1000000000"
        assert client.retry(RANGE, RangeRequest(b"/mine/k"), 20).kvs[0].value == b"v"


def test_grpcs_fork_handlers_are_off() -> None:
    """They warn at each fork of a process that has a channel, and are known to hang."""
    assert os.environ["GRPC_ENABLE_FORK_SUPPORT"] == "0"
