from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rpcgroup import api as own_api
from rpcgroup.compat import rpc


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[str]:
    """A static group of this process only, by the worker's name."""
    options = rpc.TensorPipeRpcBackendOptions(init_method=f"file://{tmp_path}/store")
    rpc.init_rpc("alone", rank=0, world_size=1, rpc_backend_options=options)
    yield "alone"
    if own_api._group is not None:
        rpc.shutdown()
