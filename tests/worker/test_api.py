"""The module-level functions over the memory rendezvous: one member of this process, its peers by hand."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import rpcgroup as rpc
from rpcgroup import api, contract
from rpcgroup.agent.agent import Agent
from rpcgroup.c10d import dist
from rpcgroup.errors import (
    GroupError,
    JoinError,
    MemberExistsError,
    NotInitializedError,
    RendezvousError,
    RpcGroupError,
    UnknownWorkerError,
)
from rpcgroup.membership.memory import MemoryGroup, MemoryRendezvous
from rpcgroup.options import RpcBackendOptions

PATIENCE = 30.0
_places = itertools.count()


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in [name for name in os.environ if name.startswith("RPCGROUP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv(contract.ENV_SECRET, "secret")
    handler = signal.getsignal(signal.SIGTERM)
    yield f"memory://test-api-{next(_places)}/default/g"
    if api._group is not None:
        rpc.shutdown(graceful=False)
    signal.signal(signal.SIGTERM, handler)


def echo(x: Any) -> Any:
    return x


class Counter:
    def __init__(self) -> None:
        self.value = 0

    def add(self, n: int) -> int:
        self.value += n
        return self.value


def test_before_and_after(url: str) -> None:
    uses = (
        lambda: rpc.rpc_sync("w0", echo, (1,)),
        lambda: rpc.rpc_async("w0", echo, (1,)),
        lambda: rpc.remote("w0", echo, (1,)),
        lambda: rpc.RRef(1),
        lambda: rpc.get_worker_info(),
        lambda: rpc.on_drain(print),
        lambda: rpc.progress(x=1),
        lambda: rpc.shutdown(),
    )
    for turn in range(3):
        for use in uses:
            with pytest.raises(NotInitializedError, match=r"not been initialized|agent is not set"):
                use()  # type: ignore[no-untyped-call]
        group = rpc.init_rpc("w0", init_method=url)
        assert group.name == "w0"
        assert rpc.rpc_sync("w0", echo, (turn,)) == turn
        rpc.shutdown()


def test_everything_of_one_worker(url: str) -> None:
    rpc.init_rpc("w0", init_method=url, role="server", labels={"zone": "x"})
    assert rpc.rpc_sync("w0", echo, args=(1,), kwargs={}, timeout=5) == 1
    assert rpc.rpc_async("w0", echo, args=(2,)).wait() == 2
    assert rpc.remote("w0", echo, args=(3,)).to_here() == 3
    counter = rpc.RRef(Counter())
    assert counter.rpc_sync().add(2) == 2
    info = rpc.get_worker_info()
    assert info.name == "w0"
    assert rpc.get_worker_info("w0") == info
    assert rpc.rpc_sync(info, echo, (4,)) == 4
    with pytest.raises(UnknownWorkerError):
        rpc.get_worker_info("nobody")
    (me,) = rpc.init_rpc.__globals__["_group"].members()
    assert (me.role, me.labels) == ("server", {"zone": "x"})


def test_torchs_static_group_by_rank(url: str) -> None:
    group = rpc.init_rpc("w0", rank=0, world_size=1, init_method=url)
    assert group.me.id == 0
    assert rpc.rpc_sync(0, echo, (1,)) == 1


def test_the_group_is_in_place_before_others_are_answered(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []

    def serve(agent: Agent) -> None:
        found.extend([rpc.get_worker_info().name, rpc.RRef(1).owner_name()])
        serves(agent)

    serves = Agent.serve
    monkeypatch.setattr(Agent, "serve", serve)
    rpc.init_rpc("w0", init_method=url)
    assert found == ["w0", "w0"]


def test_a_pods_worker_keeps_its_name_whatever_the_program_calls_it(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(contract.ENV_RENDEZVOUS, url)
    monkeypatch.setenv(contract.ENV_NAME, "g-worker-0")
    monkeypatch.setenv(contract.ENV_COMPAT, contract.COMPAT_TORCH)
    group = rpc.init_rpc("trainer0", rank=0)
    assert (group.me.name, group.me.called) == ("g-worker-0", "trainer0")
    assert rpc.get_worker_info() == rpc.get_worker_info("trainer0") == rpc.get_worker_info("g-worker-0")
    assert rpc.get_worker_info().name == rpc.RRef(1).owner_name() == rpc.RRef(1).owner().name == "trainer0"
    assert rpc.rpc_sync("trainer0", echo, (1,)) == rpc.rpc_sync("g-worker-0", echo, (1,)) == 1
    assert rpc.remote("trainer0", echo, (2,)).owner_name() == "trainer0"


@pytest.mark.parametrize(("rank", "world_size"), [(1, None), (0, 3), (1, 3)])
def test_a_pod_is_one_rank(url: str, monkeypatch: pytest.MonkeyPatch, rank: int, world_size: int) -> None:
    """A program that starts all ranks by itself would fight with itself for the pod's name."""
    monkeypatch.setenv(contract.ENV_RENDEZVOUS, url)
    monkeypatch.setenv(contract.ENV_NAME, "g-worker-0")
    monkeypatch.setenv(contract.ENV_COMPAT, contract.COMPAT_TORCH)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(GroupError, match="this pod is rank 0 of 1, and its program joins as rank"):
        rpc.init_rpc("trainer1", rank=rank, world_size=world_size)
    assert rpc.init_rpc("trainer0", rank=0, world_size=1).me.name == "g-worker-0"


def test_the_environment_says_it_all(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(contract.ENV_RENDEZVOUS, url)
    monkeypatch.setenv(contract.ENV_NAME, "g-worker-0")
    monkeypatch.setenv(contract.ENV_ROLE, "trainer")
    monkeypatch.setenv(contract.ENV_POD_NAME, "pod")
    monkeypatch.setenv(contract.ENV_POD_UID, "uid")
    monkeypatch.setenv(contract.ENV_DEVICE_MAPS, '{"server": {"cpu": "cpu"}}')
    me = rpc.init_rpc().me
    assert (me.name, me.role, me.pod_name, me.pod_uid) == ("g-worker-0", "trainer", "pod", "uid")
    assert me.role_device_maps == {"server": {"cpu": "cpu"}}


def test_a_worker_has_to_have_the_devices_that_its_role_is_said_to_have(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(contract.ENV_DEVICE_MAPS, '{"server": {"cuda:99": "cuda:0"}}')
    with pytest.raises(
        JoinError, match="Node w0 has source devices with invalid indices in its device map for role"
    ):
        rpc.init_rpc("w0", init_method=url)


def test_what_is_missing_is_said(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GroupError, match=r"where the group meets: give init_method='etcd://"):
        rpc.init_rpc("w0")
    with pytest.raises(GroupError, match="needs the worker's name"):
        rpc.init_rpc(init_method=url)
    with pytest.raises(RendezvousError, match="is no place to meet"):
        rpc.init_rpc("w0", init_method="http://somewhere/n/g")
    monkeypatch.delenv(contract.ENV_SECRET)
    with pytest.raises(GroupError, match="the group has no secret"):
        rpc.init_rpc("w0", init_method=url)
    monkeypatch.setenv(contract.ENV_PORT, "many")
    with pytest.raises(GroupError, match="RPCGROUP_PORT='many'"):
        rpc.init_rpc("w0", init_method=url)


def test_twice_is_an_error(url: str) -> None:
    rpc.init_rpc("w0", init_method=url)
    with pytest.raises(GroupError, match="already initialized: this process is 'w0'"):
        rpc.init_rpc("w1", init_method=url)
    assert rpc.rpc_sync("w0", echo, (1,)) == 1


def test_a_name_that_is_taken(url: str) -> None:
    place = MemoryGroup.named(*_parts(url))
    with place.changed:
        place.put(rpc.MemberRecord(name="w0", token="another", address="memory://elsewhere"))
    with pytest.raises(MemberExistsError, match="cannot join as 'w0'"):
        rpc.init_rpc("w0", init_method=url)
    assert api._group is None
    rpc.init_rpc("w1", init_method=url)


def test_a_static_group_that_stays_incomplete(url: str) -> None:
    options = rpc.AgentOptions(rpc_timeout=0.05)
    with pytest.raises(GroupError, match="1 members are here, 2 were waited for"):
        rpc.init_rpc("w0", rank=0, world_size=2, init_method=url, rpc_backend_options=options)
    assert api._group is None


def test_draining_and_progress(url: str) -> None:
    rpc.init_rpc("w0", init_method=url)
    heard: list[rpc.DrainRequest] = []
    drained = threading.Event()

    def on_drain(request: rpc.DrainRequest) -> None:
        heard.append(request)
        drained.set()

    rpc.on_drain(on_drain)
    rpc.progress(step=1)
    place = MemoryRendezvous(MemoryGroup.named(*_parts(url)))
    place.request_drain("w0", rpc.DrainRequest(1e12, "scaled down"))
    assert drained.wait(PATIENCE)
    assert heard[0].reason == "scaled down"


def test_a_sigterm_asks_to_leave(url: str) -> None:
    rpc.init_rpc("w0", init_method=url)
    drained = threading.Event()
    rpc.on_drain(lambda request: drained.set())
    signal.raise_signal(signal.SIGTERM)
    assert drained.wait(PATIENCE)


def test_a_program_that_handles_sigterm_itself_keeps_its_handler(url: str) -> None:
    handled: list[int] = []

    def mine(signum: int, frame: Any) -> None:
        handled.append(signum)

    before = signal.signal(signal.SIGTERM, mine)
    try:
        rpc.init_rpc("w0", init_method=url)
        signal.raise_signal(signal.SIGTERM)
        assert handled == [signal.SIGTERM]
        rpc.shutdown()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_sigterm_after_shutdown_is_an_ordinary_one(url: str) -> None:
    before = signal.getsignal(signal.SIGTERM)
    rpc.init_rpc("w0", init_method=url)
    assert signal.getsignal(signal.SIGTERM) is not before
    rpc.shutdown()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_sigterm_after_a_shutdown_in_another_thread_is_an_ordinary_one() -> None:
    program = textwrap.dedent(
        """
        import signal, threading
        import rpcgroup as rpc
        rpc.init_rpc("w0", init_method="memory://place/default/g")
        thread = threading.Thread(target=rpc.shutdown)
        thread.start()
        thread.join()
        signal.raise_signal(signal.SIGTERM)
        """
    )
    environment = {**os.environ, contract.ENV_SECRET: "s"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, timeout=100, check=False)
    assert done.returncode == -signal.SIGTERM


def test_a_drained_program_that_does_not_listen_leaves_and_ends() -> None:
    """In good order: its record is gone, and its exit status is that of SIGTERM."""
    program = textwrap.dedent(
        """
        import os, signal, threading
        import rpcgroup as rpc
        rpc.init_rpc("w0", init_method="memory://place/default/g")
        print("in", flush=True)
        # Not without end: Python misses a signal that comes just before its main thread blocks in a lock.
        while not threading.Event().wait(0.05): pass
        """
    )
    environment = {**os.environ, contract.ENV_SECRET: "s"}
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    assert process.stdout.readline() == b"in\n"
    process.terminate()
    assert process.wait(PATIENCE) in (-signal.SIGTERM, 0)
    process.stdout.close()


def test_a_program_that_forgets_to_shut_down_ends_all_the_same() -> None:
    program = textwrap.dedent(
        """
        import operator
        import rpcgroup as rpc
        rpc.init_rpc("w0", init_method="memory://place/default/g")
        assert rpc.rpc_sync("w0", operator.add, (1, 2)) == 3
        reference = rpc.remote("w0", operator.add, (1, 2))
        print(reference.to_here())
        """
    )
    environment = {**os.environ, contract.ENV_SECRET: "s"}
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        env=environment,
        timeout=100,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (0, "3\n")
    assert "Traceback" not in result.stderr


def _parts(url: str) -> tuple[str, str, str]:
    place, namespace, group = url.removeprefix("memory://").split("/")
    return place, namespace, group


# Over a store of torch.distributed: real groups of several processes stand in test_meeting.py.
def test_a_static_group_of_one(url: str, tmp_path: Path) -> None:
    for _ in range(3):
        group = rpc.init_rpc("w0", rank=0, world_size=1, init_method=f"file://{tmp_path}/store")
        assert (group.is_static, group.world_size, group.roster) == (True, 1, ["w0"])
        assert rpc.rpc_sync("w0", echo, (1,)) == rpc.rpc_sync(0, echo, (1,)) == 1
        assert rpc.get_worker_info("w0").id == 0
        rpc.shutdown()


def test_a_dynamic_group_of_one(url: str, tmp_path: Path) -> None:
    ids = []
    for _ in range(3):
        group = rpc.init_rpc("w0", init_method=f"file://{tmp_path}/store")
        assert (group.is_static, group.world_size, group.roster) == (False, None, [])
        ids.append(group.me.id)
        assert rpc.rpc_sync("w0", echo, (1,)) == 1
        rpc.shutdown()
    assert ids == sorted(set(ids))


def test_a_store_and_a_secret_of_its_own(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(contract.ENV_SECRET)
    store = dist.HashStore()
    group = rpc.init_rpc("w0", rank=0, world_size=1, store=store)
    assert rpc.rpc_sync("w0", echo, (1,)) == 1
    assert len(group.agent.secret) == 64
    group.kv.put("key", b"value")
    assert group.kv.get("key") == b"value"


def test_the_options_say_where_and_how_long(url: str, tmp_path: Path) -> None:
    options = RpcBackendOptions(rpc_timeout=7.5, init_method=f"file://{tmp_path}/store")
    group = rpc.init_rpc("w0", rank=0, world_size=1, rpc_backend_options=options)
    assert group.is_static
    assert group.agent.options.rpc_timeout == 7.5


def test_torchs_environment_is_where_to_meet_if_nothing_else_is(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with pytest.raises(RendezvousError, match=r"env://.*MASTER_PORT"):
        rpc.init_rpc("w0", rank=0, world_size=1)
    monkeypatch.setenv(contract.ENV_RENDEZVOUS, url)
    assert not rpc.init_rpc("w0", rank=0, world_size=1).is_static, "in a pod the pod's group"


def test_a_rank_that_does_not_exist(url: str, tmp_path: Path) -> None:
    with pytest.raises(JoinError, match="rank 1 is none of 0 to 0"):
        rpc.init_rpc("w0", rank=1, world_size=1, init_method=f"file://{tmp_path}/store")
    assert api._group is None


def test_an_agent_that_cannot_be_made_leaves_nothing_behind(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(contract.ENV_HOST, "203.0.113.1")
    with pytest.raises(RpcGroupError, match="cannot listen on 203"):
        rpc.init_rpc("w0", rank=0, world_size=1, init_method=f"file://{tmp_path}/store")
    assert api._group is None
    monkeypatch.delenv(contract.ENV_HOST)
    rpc.init_rpc("w0", rank=0, world_size=1, init_method=f"file://{tmp_path}/store")
