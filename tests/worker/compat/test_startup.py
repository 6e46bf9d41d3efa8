from __future__ import annotations

import pytest

from tests.worker.compat.conftest import Python

pytestmark = pytest.mark.timeout(300)
"""Each of several processes imports torch, one after the other."""

CHILDREN = """
    import multiprocessing, subprocess, sys

    def is_ours():
        import torch.distributed.rpc as rpc
        return rpc.__name__ == "rpcgroup.compat.rpc"

    if __name__ == "__main__":
        {begin}
        for method in ("fork", "spawn", "forkserver"):
            with multiprocessing.get_context(method).Pool(1) as pool:
                assert pool.apply(is_ours), method
        code = "import torch; from torch.distributed import rpc; print(rpc.__name__)"
        print(subprocess.check_output([sys.executable, "-W", "ignore", "-c", code], text=True).strip())
"""


def test_children_are_installed_however_they_are_started(python: Python) -> None:
    assert (
        python(CHILDREN.format(begin="import rpcgroup.compat; rpcgroup.compat.install()"))
        == "rpcgroup.compat.rpc\n"
    )


def test_the_environment_installs(python: Python) -> None:
    assert (
        python(CHILDREN.format(begin="assert is_ours()"), RPCGROUP_COMPAT="torch") == "rpcgroup.compat.rpc\n"
    )


def test_it_costs_nothing_without_torch(python: Python) -> None:
    assert python(
        "import sys; print('torch' in sys.modules, 'click' in sys.modules)", RPCGROUP_COMPAT="torch"
    ) == ("False False\n")


def test_who_asks_for_torch_before_importing_it_changes_nothing(python: Python) -> None:
    program = """
        import importlib.util, sys
        for _ in range(2):
            assert importlib.util.find_spec("torch")
        import torch.distributed.rpc
        print(torch.distributed.rpc.__name__, [f for f in sys.meta_path if "startup" in type(f).__module__])
    """
    assert python(program, RPCGROUP_COMPAT="torch") == "rpcgroup.compat.rpc []\n"


def test_torch_is_loaded_as_it_would_be_otherwise(python: Python) -> None:
    program = """
        import inspect, sys
        import torch
        assert type(torch.__loader__).__module__.endswith("_frozen_importlib_external"), torch.__loader__
        assert torch.__spec__.loader is torch.__loader__
        assert inspect.getsource(torch)
        assert not [f for f in sys.meta_path if "startup" in type(f).__module__]
        import torch.distributed.rpc
        print(torch.distributed.rpc.__name__)
    """
    assert python(program, RPCGROUP_COMPAT="torch") == "rpcgroup.compat.rpc\n"
    assert python(program) == "torch.distributed.rpc\n"
    assert python(program, RPCGROUP_COMPAT="other") == "torch.distributed.rpc\n"
