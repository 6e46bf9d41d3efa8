from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rpcgroup import api
from rpcgroup.compat.agent import TensorPipeAgent
from rpcgroup.errors import UnknownWorkerError
from rpcgroup.options import TensorPipeRpcBackendOptions
from rpcgroup.worker_info import WorkerInfo


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[TensorPipeAgent]:
    """Of a static group of one."""
    options = TensorPipeRpcBackendOptions(init_method=f"file://{tmp_path}/store", num_worker_threads=3)
    group = api.init_rpc("one", rank=0, world_size=1, rpc_backend_options=options)
    agent = TensorPipeAgent(group, None, options)
    yield agent
    agent.shutdown()


def test_who_is_there(agent: TensorPipeAgent) -> None:
    me = WorkerInfo("one", 0)
    assert agent.get_worker_info() == agent.get_worker_info("one") == agent.get_worker_info(0) == me
    assert agent.get_worker_infos() == [me]
    assert agent.is_static_group
    with pytest.raises(UnknownWorkerError, match="could not find destination 'two'"):
        agent.get_worker_info("two")


def test_what_it_tells_of_itself(agent: TensorPipeAgent) -> None:
    info = agent.get_debug_info()
    assert info["agent.thread_pool_size"] == "3"
    assert all(isinstance(value, str) for value in info.values())
    assert agent.get_metrics() == info


def test_the_timeout_of_calls_can_be_changed(agent: TensorPipeAgent) -> None:
    assert agent.rpc_timeout == 60
    agent.rpc_timeout = 5
    assert agent.group.agent.options.rpc_timeout == 5


def test_device_maps_are_those_of_the_options(agent: TensorPipeAgent) -> None:
    agent._get_backend_options().set_device_map("two", {"cpu": "cpu"})
    assert agent._get_device_map(WorkerInfo("two", 1)) == {torch.device("cpu"): torch.device("cpu")}
    assert agent._get_device_map(WorkerInfo("three", 2)) == {}


def test_a_map_for_the_role_of_a_member_counts_where_the_options_say_nothing(
    agent: TensorPipeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu, cuda0, cuda1 = torch.device("cpu"), torch.device("cuda:0"), torch.device("cuda:1")
    me = replace(agent.group.me, role_device_maps={"worker": {"cuda:0": "cuda:1", "cpu": "cpu"}})
    monkeypatch.setattr(agent.group, "_record", me)
    assert agent._get_device_map(agent.get_worker_info()) == {cuda0: cuda1, cpu: cpu}
    agent._get_backend_options().set_device_map("one", {"cuda:0": "cuda:0"})
    assert agent._get_device_map(agent.get_worker_info()) == {cuda0: cuda0, cpu: cpu}


def test_it_can_join_and_end_more_than_once(agent: TensorPipeAgent) -> None:
    agent.sync()
    agent.join()
    assert agent.group.agent.rpc_sync("one", max, (1, 2)) == 2
    agent.join(shutdown=True, timeout=30)
    agent.shutdown()
    agent.shutdown()
    assert api._group is None
