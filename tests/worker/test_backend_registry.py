from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.distributed import HashStore

from rpcgroup import api, backend_registry
from rpcgroup.backend_registry import (
    BackendType,
    backend_registered,
    construct_rpc_backend_options,
    infer_backend,
    init_backend,
    register_backend,
)
from rpcgroup.errors import NotInitializedError
from rpcgroup.options import RpcBackendOptions, TensorPipeRpcBackendOptions


class StubOptions(RpcBackendOptions):
    pass


@pytest.fixture
def stub() -> Iterator[BackendType]:
    def construct(rpc_timeout: float, init_method: str, **kwargs: Any) -> StubOptions:
        return StubOptions(rpc_timeout, init_method)

    def init(**kwargs: Any) -> dict[str, Any]:
        return kwargs

    yield register_backend("STUB", construct, init)
    del backend_registry._backends["STUB"]


def test_tensorpipe_is_there() -> None:
    assert backend_registered("TENSORPIPE")
    assert not backend_registered("MPI")
    assert repr(BackendType.TENSORPIPE) == "BackendType.TENSORPIPE"
    assert BackendType["TENSORPIPE"] is BackendType.TENSORPIPE
    assert isinstance(BackendType.TENSORPIPE, BackendType)
    assert BackendType.TENSORPIPE.name == "TENSORPIPE"
    with pytest.raises(AttributeError, match="no RPC backend MPI is registered: there are TENSORPIPE"):
        _ = BackendType.MPI


def test_a_backend_is_registered_once(stub: BackendType) -> None:
    assert stub is BackendType.STUB and list(BackendType)[-1] is stub
    assert "STUB" in BackendType.__members__ and len(BackendType) == len(list(BackendType))
    with pytest.raises(RuntimeError, match=r"^RPC backend STUB: already registered$"):
        register_backend("STUB", dict, dict)


def test_a_backend_makes_its_options_and_its_agent(stub: BackendType) -> None:
    options = construct_rpc_backend_options(stub, rpc_timeout=3, anything="else")
    assert (type(options), options.rpc_timeout, options.init_method) == (StubOptions, 3.0, "env://")
    assert init_backend(stub, name="a", rank=1) == {"name": "a", "rank": 1}


def test_the_backend_is_known_by_its_options(stub: BackendType) -> None:
    assert infer_backend(TensorPipeRpcBackendOptions()) is BackendType.TENSORPIPE
    assert infer_backend(StubOptions()) is stub
    with pytest.raises(TypeError, match="Could not infer backend for options"):
        infer_backend(RpcBackendOptions())


def test_tensorpipe_has_torchs_options() -> None:
    options = construct_rpc_backend_options(
        BackendType.TENSORPIPE, init_method="file:///x", num_worker_threads=4, _transports=["uv"], other=1
    )
    assert type(options) is TensorPipeRpcBackendOptions
    assert (options.init_method, options.num_worker_threads) == ("file:///x", 4)


def test_tensorpipe_takes_no_other_options() -> None:
    with pytest.raises(TypeError, match="`rpc_backend_options` must be a `TensorPipeRpcBackendOptions`"):
        init_backend(
            BackendType.TENSORPIPE,
            store=None,
            name="a",
            rank=0,
            world_size=1,
            rpc_backend_options=RpcBackendOptions(),
        )


def test_a_backend_survives_pickling() -> None:
    assert pickle.loads(pickle.dumps(BackendType.TENSORPIPE)) is BackendType.TENSORPIPE


def test_tensorpipe_starts_a_group_of_ours_at_a_store() -> None:
    options = TensorPipeRpcBackendOptions(rpc_timeout=7, device_maps={"a": {"cpu": "cpu"}})
    group = init_backend(
        BackendType.TENSORPIPE,
        store=HashStore(),
        name="a",
        rank=0,
        world_size=1,
        rpc_backend_options=options,
    )
    try:
        assert group.agent.options.rpc_timeout == 7
        assert group.reverse_device_maps == {"a": {torch.device("cpu"): torch.device("cpu")}}
        assert api.rpc_sync("a", torch.add, (1, 2)) == 3
    finally:
        api.shutdown()


def test_device_maps_are_judged_before_anybody_is_called() -> None:
    options = TensorPipeRpcBackendOptions(device_maps={"nobody": {"cpu": "cpu"}})
    with pytest.raises(ValueError, match="Node a has invalid target node names in its device maps"):
        init_backend(
            BackendType.TENSORPIPE,
            store=HashStore(),
            name="a",
            rank=0,
            world_size=1,
            rpc_backend_options=options,
        )
    with pytest.raises(NotInitializedError):
        api.shutdown()
