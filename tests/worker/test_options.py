from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

import pytest
import torch

from rpcgroup.agent.options import AgentOptions
from rpcgroup.options import (
    RpcBackendOptions,
    TensorPipeRpcBackendOptions,
    agent_options,
    as_options,
    device_options,
)

CUDA0, CUDA1 = torch.device("cuda:0"), torch.device("cuda:1")


def test_the_defaults_are_torchs() -> None:
    options = TensorPipeRpcBackendOptions()
    assert (options.num_worker_threads, options.rpc_timeout, options.init_method) == (16, 60.0, "env://")
    assert (options.device_maps, options.devices) == ({}, [])


def test_devices_are_written_as_one_likes_and_kept_as_torch_has_them() -> None:
    options = TensorPipeRpcBackendOptions(device_maps={"b": {0: "cuda:1"}}, devices=[1, "cuda:0"])
    assert options.device_maps == {"b": {CUDA0: CUDA1}}
    assert options.devices == [CUDA1, CUDA0]
    options.set_devices([0])
    assert options.devices == [CUDA0]


def test_a_map_grows_and_stays_one_to_one() -> None:
    options = TensorPipeRpcBackendOptions()
    options.set_device_map("b", {0: 1})
    options.set_device_map("b", {1: 0, 0: 1})
    with pytest.raises(ValueError, match="`set_device_map` only supports 1-to-1 mapping"):
        options.set_device_map("b", {0: 0})
    assert options.device_maps == {"b": {CUDA0: CUDA1, CUDA1: CUDA0}}
    with pytest.raises(RuntimeError):
        options.set_device_map("b", {-1: 0})


@pytest.mark.parametrize("kind", [RpcBackendOptions, TensorPipeRpcBackendOptions])
def test_a_timeout_is_a_number(kind: type[RpcBackendOptions]) -> None:
    assert kind(rpc_timeout=3).rpc_timeout == 3.0
    with pytest.raises(TypeError, match="incompatible constructor arguments"):
        kind(rpc_timeout=timedelta())  # type: ignore[arg-type]


def test_transports_and_channels_are_accepted_and_said_to_have_no_effect(caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    TensorPipeRpcBackendOptions(_transports=["uv"], _channels=None)
    assert "transports ['uv']" in caplog.text


def test_what_the_agent_and_the_record_are_told() -> None:
    options = TensorPipeRpcBackendOptions(
        rpc_timeout=5, num_worker_threads=3, device_maps={"b": {0: 1}}, devices=[0]
    )
    options.init_method = "file:///tmp/x"
    assert agent_options(options) == AgentOptions(rpc_timeout=5.0, num_worker_threads=3)
    assert device_options(options) == (("cuda:0",), {"b": {"cuda:0": "cuda:1"}})
    assert agent_options(None) == AgentOptions()
    own = AgentOptions(rpc_timeout=7)
    assert agent_options(own) is own
    assert device_options(own) == ((), {})


class OfTorch:
    """The attributes of `torch._C._distributed_rpc._TensorPipeRpcBackendOptionsBase`."""

    num_worker_threads = 4
    rpc_timeout = 3.0
    init_method = "tcp://h:1"

    @property
    def device_maps(self) -> dict[str, dict[torch.device, torch.device]]:
        return {"b": {CUDA0: CUDA1}}

    @property
    def devices(self) -> list[torch.device]:
        return [CUDA0]


def test_torchs_own_options_are_taken_over() -> None:
    options = as_options(OfTorch())
    assert type(options) is TensorPipeRpcBackendOptions
    assert (options.num_worker_threads, options.rpc_timeout, options.init_method) == (4, 3.0, "tcp://h:1")
    assert (options.device_maps, options.devices) == ({"b": {CUDA0: CUDA1}}, [CUDA0])


def test_what_is_ours_or_no_options_at_all_is_left_as_it_is() -> None:
    for options in (TensorPipeRpcBackendOptions(), RpcBackendOptions(), AgentOptions(), None, {}):
        assert as_options(options) is options
