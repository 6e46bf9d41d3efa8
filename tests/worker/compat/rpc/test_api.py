from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

import rpcgroup
from rpcgroup import api as own_api
from rpcgroup.compat import rpc
from rpcgroup.compat.rpc import api
from rpcgroup.errors import NotInitializedError


def fails() -> None:
    raise ValueError("why")


@torch.jit.script
def scripted(x: torch.Tensor) -> torch.Tensor:
    return x + 1


class Counter:
    def __init__(self) -> None:
        self.count = 0

    def add(self, n: int) -> int:
        self.count += n
        return self.count


@pytest.mark.parametrize(
    "call", [lambda: rpc.rpc_sync("a", min), lambda: rpc.get_worker_info(), lambda: rpc.shutdown()]
)
def test_nothing_works_before_init_rpc(call: Any) -> None:
    with pytest.raises(
        RuntimeError, match=r"^RPC has not been initialized. Call torch.distributed.rpc.init_rpc first."
    ):
        call()
    assert not api._is_current_rpc_agent_set()


def test_every_kind_of_function(alone: str) -> None:
    ones = torch.ones(2)
    assert rpc.rpc_sync(alone, min, (2, 1)) == 1
    assert torch.equal(rpc.rpc_sync(alone, torch.add, args=(ones, 1)), ones + 1)
    assert torch.equal(rpc.rpc_async(alone, scripted, args=[ones]).wait(), ones + 1)
    rref = rpc.remote(alone, Counter)
    assert rref.rpc_sync().add(2) == 2
    assert rref.remote().add(3).to_here() == 5
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        rref.remote().nothing()


def test_what_cannot_be_called(alone: str) -> None:
    with pytest.raises(TypeError, match="callable"):
        rpc.rpc_sync(alone, 3)
    with pytest.raises(ValueError, match=r"Cannot get WorkerInfo from name 0\.5"):
        rpc.rpc_sync(0.5, min, (1, 2))
    with pytest.raises(RuntimeError, match="could not find destination 'nobody'"):
        rpc.get_worker_info("nobody")
    with pytest.raises(RuntimeError, match="no worker 7"):
        rpc.rpc_sync(7, min, (1, 2))
    with pytest.raises(RuntimeError, match="failed to match any schema"):
        rpc.rpc_sync(alone, torch.add)
    with pytest.raises(RuntimeError, match=r"scripted\(\) expected at most 1 argument"):
        rpc.rpc_sync(alone, scripted, (1, 2))


def test_a_failure_is_printed_where_it_happens(alone: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"On WorkerInfo\(id=0, name=alone\)"):
        rpc.rpc_sync(alone, fails)
    assert "ValueError('why')" in capsys.readouterr().err


def test_timeouts(alone: str) -> None:
    assert rpc.get_rpc_timeout() == 60
    release = threading.Event()
    api._set_rpc_timeout(0.01)
    try:
        with pytest.raises(RuntimeError, match=r"^RPC ran for more than set timeout \(10 ms\)"):
            rpc.rpc_sync(alone, _wait, (0.2,))
        assert rpc.rpc_sync(alone, min, (1, 2), timeout=0) == 1
        rref = rpc.remote(alone, _wait, (0.2,), timeout=0.01)
        with pytest.raises(RuntimeError, match="RPC ran for more"):
            rref._get_future().wait()
    finally:
        release.set()
        api._set_rpc_timeout(60)


def _wait(seconds: float) -> None:
    threading.Event().wait(seconds)


def test_wait_all_waits_for_what_was_called_inside(alone: str) -> None:
    with api._wait_all():
        future = rpc.rpc_async(alone, min, (1, 2))
        assert api._thread_local_var.future_list == [future]
    assert future.done()
    with pytest.raises(ValueError, match="why"), api._wait_all():
        rpc.rpc_async(alone, fails)
    assert not hasattr(api._thread_local_var, "future_list")


class Spelled:
    """A pickler of a program's own."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def serialize(self, udf: Any) -> tuple[bytes, list[Any]]:
        self.calls.append(udf)
        return rpc.internal.serialize(udf)


def test_a_programs_own_pickler_serializes_its_calls(alone: str) -> None:
    pickler = Spelled()
    with api._use_rpc_pickler(pickler):
        assert torch.equal(rpc.rpc_sync(alone, _double, (torch.ones(2),)), torch.full((2,), 2.0))
    assert [call.func for call in pickler.calls] == [_double]
    assert api._default_pickler is rpc.internal._internal_rpc_pickler


def _double(x: torch.Tensor) -> torch.Tensor:
    return x * 2


def test_gatherings(alone: str) -> None:
    assert api._all_gather("mine") == {alone: "mine"}
    api._barrier([alone])
    assert len(api._gatherings) == 0


DEATHS = """
import os, signal
from rpcgroup.compat import rpc
from rpcgroup.errors import PeerUnreachableError

def begin(number, rank):
    options = rpc.TensorPipeRpcBackendOptions(init_method=f"file://{os.getcwd()}/{number}")
    rpc.init_rpc(f"w{rank}", rank=rank, world_size=3, rpc_backend_options=options)

def before(rank, dies):
    if rank == dies:
        os._exit(0)
    rpc.shutdown()
    return "left"

def within(rank, dies):
    # Before it has given what is its own, or, of the one who leads, before it has told what all have given.
    rpc.api._tell_followers = lambda *args: os._exit(0)
    if rank == dies == 2:
        os._exit(0)
    if rank != dies:
        rpc.api._tell_followers = tell
    try:
        rpc.api._all_gather(rank)
    except PeerUnreachableError as exc:
        assert f"w{dies}" in str(exc)
        rpc.shutdown()
        return "told"

tell = rpc.api._tell_followers
for number, (scenario, dies) in enumerate([(before, 0), (before, 2), (within, 0), (within, 2)]):
    children = []
    for rank in range(3):
        pid = os.fork()
        if not pid:
            signal.alarm(30)  # of one that hangs nothing is seen
            begin(number, rank)
            os.write(1, f"{scenario.__name__} {dies}: {rank} {scenario(rank, dies)}\\n".encode())
            os._exit(0)
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)
"""


def test_nobody_waits_for_the_dead(python: Callable[[str], str]) -> None:
    assert sorted(python(DEATHS).splitlines()) == [
        "before 0: 1 left",
        "before 0: 2 left",
        "before 2: 0 left",
        "before 2: 1 left",
        "within 0: 1 told",
        "within 0: 2 told",
        "within 2: 0 told",
        "within 2: 1 told",
    ]


OWNER_DIES = """
import os, signal
from rpcgroup.compat import rpc

def raises(use):
    try:
        use()
    except RuntimeError as exc:
        return type(exc).__name__

signal.alarm(60)
rank = 0 if os.fork() else 1
options = rpc.TensorPipeRpcBackendOptions(init_method=f"file://{os.getcwd()}/store")
rpc.init_rpc(f"w{rank}", rank=rank, world_size=2, rpc_backend_options=options)
if rank == 1:
    signal.pause()
before = rpc.remote("w1", dict)
before.to_here()
w1 = rpc.get_worker_info("w1")
print(raises(rpc.rpc_async(w1, os._exit, (0,)).wait))
for to in ("w1", 1, w1):
    after = rpc.remote(to, dict)
    print(after.owner_name(), after.is_owner(), *map(raises, (after.to_here, after._get_future().wait)))
futures = [before.rpc_async().keys(), after.rpc_async().keys()]
print([raises(future.wait) for future in futures])
del before, after
rpc.shutdown()
"""


def test_a_worker_that_has_died_is_noticed_where_torch_notices_it(python: Callable[[str], str]) -> None:
    lines = python(OWNER_DIES).splitlines()
    uses = [f"{to} False OwnerDiedError PeerUnreachableError" for to in ("w1", "1", "w1")]
    assert lines == ["PeerUnreachableError", *uses, "['OwnerDiedError', 'OwnerDiedError']"]


def test_futures_of_methods_are_torchs(alone: str) -> None:
    counter = rpc.remote(alone, Counter)
    with api._wait_all():
        future = counter.rpc_async().add(2)
        assert api._thread_local_var.future_list == [future] and future._has_torch_part
    assert torch._C._collect_all([future]).wait()[0].value() == 2


def test_a_gathering_looks_its_parts_up_when_it_needs_them(
    alone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(api, "_broadcast_to_followers", lambda *args: told.append(args))
    rpc.rpc_sync(alone, api._deliver, ("id", {"a": 1}))
    assert told == [("id", {"a": 1})]


@pytest.mark.parametrize("ignored", [True, False])
def test_a_leak_is_an_error_where_it_is_not_ignored(
    alone: str, monkeypatch: pytest.MonkeyPatch, ignored: bool
) -> None:
    references = own_api._current().agent.references
    monkeypatch.setattr(references, "leaks", lambda: ["Leaking RRef 1", "Leaking RRef 2"])
    monkeypatch.setattr(api, "_ignore_rref_leak", ignored)
    if ignored:
        rpc.shutdown()
    else:
        with pytest.raises(RuntimeError, match="Leaking RRef 1\nLeaking RRef 2"):
            rpc.shutdown()
    assert not api._is_current_rpc_agent_set()


def test_a_reference_after_shutdown(alone: str) -> None:
    rref = rpc.remote(alone, Counter)
    rpc.shutdown()
    with pytest.raises(RuntimeError, match=r"Cannot call to_here\(\) on it after deletion."):
        rref.to_here()
    with pytest.raises(RuntimeError, match="Cannot call fork an UserRRef after deletion"):
        rpc.internal.serialize(rref)


def test_debug_info_has_torchs_keys_once(alone: str) -> None:
    parts = [
        api._rref_context_get_debug_info(),
        api._get_current_rpc_agent().get_debug_info(),
        rpc.dist_autograd._get_debug_info(),
    ]
    info = rpc._get_debug_info()
    assert len(info) == sum(map(len, parts))
    assert info.keys() >= {
        "num_owner_rrefs",
        "num_pending_users",
        "num_pending_futures",
        "agent.thread_pool_size",
    }
    assert info["agent.thread_pool_size"] == "16"
    assert "agent.gil_average_wait_time_us" not in info
    rpc.enable_gil_profiling(True)
    assert "agent.gil_average_wait_time_us" in rpc._get_debug_info()


def test_a_group_that_the_program_joined_by_our_own_name_is_the_agent(tmp_path: Any) -> None:
    rpcgroup.init_rpc("own", rank=0, world_size=1, init_method=f"file://{tmp_path}/store")
    try:
        assert api._get_current_rpc_agent().get_worker_info().name == "own"
        assert api._get_current_rpc_agent() is api._get_current_rpc_agent()
        assert api._all_gather(1) == {"own": 1}
    finally:
        rpcgroup.shutdown()
    with pytest.raises(NotInitializedError, match="agent is not set"):
        api._get_current_rpc_agent()


def test_another_group_may_follow(tmp_path: Any) -> None:
    for number in range(3):
        options = rpc.TensorPipeRpcBackendOptions(init_method=f"file://{tmp_path}/{number}")
        rpc.init_rpc("again", rank=0, world_size=1, rpc_backend_options=options)
        with pytest.raises(RuntimeError, match="is already initialized"):
            rpc.init_rpc("again", rank=0, world_size=1, rpc_backend_options=options)
        assert rpc.rpc_sync("again", max, (1, number)) == max(1, number)
        begin = time.monotonic()
        rpc.shutdown(graceful=number % 2 == 0)
        assert time.monotonic() - begin < 30
