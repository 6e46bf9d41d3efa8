from __future__ import annotations

from tests.worker.compat.conftest import Python


def test_names_that_were_taken_before_are_bound_anew_and_back(python: Python) -> None:
    python(
        """
        import os, sys
        import torch
        import torch.distributed.autograd as dist_autograd
        import torch.distributed.rpc as rpc
        import torch.nn.parallel.distributed as ddp
        from torch.distributed.rpc import RRef, WorkerInfo, api, rpc_sync
        from torch.distributed.rpc.internal import _internal_rpc_pickler
        from torch._C._distributed_rpc import _is_current_rpc_agent_set

        def held():
            return [
                rpc, RRef, WorkerInfo, api, rpc_sync, _internal_rpc_pickler, _is_current_rpc_agent_set, dist_autograd,
                ddp.RRef, torch._jit_internal.RRef, torch._jit_internal.PyRRef, torch._C._distributed_rpc.PyRRef,
                torch.distributed.rpc, torch.distributed.autograd, torch.distributed.rpc.api.rpc_sync,
                sys.modules["torch.distributed.rpc"], sys.modules["torch.distributed.rpc.api"],
                torch._C._distributed_autograd._new_context,
            ]

        stock = held()
        import rpcgroup.compat
        rpcgroup.compat.install()
        ours = held()
        for before, after in zip(stock, ours):
            assert before is not after, before
        assert RRef is ddp.RRef is torch._jit_internal.PyRRef is rpcgroup.RRef
        assert not _is_current_rpc_agent_set()
        assert os.environ["RPCGROUP_COMPAT"] == "torch"
        rpcgroup.compat.install()
        assert [id(a) for a in held()] == [id(a) for a in ours]
        rpcgroup.compat.uninstall()
        assert [id(a) for a in held()] == [id(a) for a in stock]
        assert "RPCGROUP_COMPAT" not in os.environ
        assert not [f for f in sys.meta_path if type(f).__module__.startswith("rpcgroup")]
        rpcgroup.compat.uninstall()
        rpcgroup.compat.install()
        assert [id(a) for a in held()] == [id(a) for a in ours]
        """
    )


def test_names_that_are_taken_afterwards_are_ours_and_go_back(python: Python) -> None:
    python(
        """
        import rpcgroup.compat
        rpcgroup.compat.install()
        import torch
        import torch.distributed.rpc as rpc
        from torch.distributed import autograd
        from torch.distributed.rpc import rpc_sync
        from torch.distributed.rpc._testing import FaultyTensorPipeRpcBackendOptions
        import torch.distributed.rpc._testing as testing
        import rpcgroup.compat.rpc._testing as own
        assert testing is own and testing.__spec__.name == "rpcgroup.compat.rpc._testing"
        assert rpc.BackendType.FAULTY_TENSORPIPE.name == "FAULTY_TENSORPIPE"
        assert rpc_sync is rpcgroup.compat.rpc.rpc_sync
        rpcgroup.compat.uninstall()
        assert rpc is torch.distributed.rpc
        assert rpc_sync is torch.distributed.rpc.api.rpc_sync
        assert rpc_sync.__module__ == "torch.distributed.rpc.api"
        assert autograd is torch.distributed.autograd
        """
    )


def test_the_optimizer_is_ours_whenever_it_was_imported(python: Python) -> None:
    python(
        """
        import rpcgroup.compat, rpcgroup.optim
        rpcgroup.compat.install()
        import torch.distributed.optim
        from torch.distributed.optim import DistributedOptimizer
        assert DistributedOptimizer is rpcgroup.optim.DistributedOptimizer
        """
    )
    python(
        """
        import torch.distributed.optim
        from torch.distributed.optim import DistributedOptimizer
        stock = [DistributedOptimizer]  # in a list, which nobody looks into
        import rpcgroup.compat, rpcgroup.optim
        from rpcgroup.optim import DistributedOptimizer as own
        rpcgroup.compat.install()
        assert DistributedOptimizer is torch.distributed.optim.DistributedOptimizer is own is not stock[0]
        rpcgroup.compat.uninstall()
        assert DistributedOptimizer is torch.distributed.optim.DistributedOptimizer is stock[0]
        assert own is rpcgroup.optim.DistributedOptimizer
        """
    )


def test_reducers_that_were_registered_before_count(python: Python) -> None:
    python(
        """
        import torch
        from torch.distributed.rpc.internal import _internal_rpc_pickler

        class Odd:
            def __reduce__(self):
                raise RuntimeError("only by the reducer")

        _internal_rpc_pickler._register_reducer(Odd, lambda odd: (Odd, ()))
        import rpcgroup.compat
        rpcgroup.compat.install()
        from rpcgroup.wire.codec import Codec
        from rpcgroup.wire.frames import Body
        codec = Codec()
        encoded = codec.encode((Odd(),))
        (there,) = codec.decode(encoded.flags, Body(encoded.body, 0, None))
        assert type(there) is Odd
        """
    )


GROUP_OF_ONE = """
    def group_of_one():
        import tempfile
        options = rpc.TensorPipeRpcBackendOptions(init_method=f"file://{tempfile.mktemp()}")
        rpc.init_rpc("me", rank=0, world_size=1, rpc_backend_options=options)
        assert rpc.rpc_sync("me", torch.add, args=(torch.ones(2), 1)).tolist() == [2, 2]
        assert rpc.remote("me", max, args=(1, 2)).to_here() == 2
        rpc.shutdown()
"""


def test_a_torch_that_was_built_without_rpc_has_it(python: Python) -> None:
    """Its loader takes out what such a build does not have, before torch's Python looks for it."""
    printed = python(
        """
        import importlib.abc, importlib.util, sys

        GONE = ("_rpc_init", "_dist_autograd_init", "_faulty_agent_init", "_distributed_rpc", "_distributed_autograd")

        class WithoutRpc(importlib.abc.MetaPathFinder, importlib.abc.Loader):
            def find_spec(self, name, path, target=None):
                if name != "torch._C":
                    return None
                sys.meta_path.remove(self)
                spec = importlib.util.find_spec(name)
                self.loader, spec.loader = spec.loader, self
                return spec

            def create_module(self, spec):
                return self.loader.create_module(spec)

            def exec_module(self, module):
                self.loader.exec_module(module)
                for name in GONE:
                    if hasattr(module, name):
                        delattr(module, name)

        sys.meta_path.insert(0, WithoutRpc())
        import torch
        import torch.distributed.rpc as rpc
        import torch.distributed.optim, torch.distributed.nn
        assert not rpc.is_available() and not torch.distributed.autograd.is_available()
        assert not hasattr(torch.distributed.optim, "DistributedOptimizer")
        import rpcgroup.compat
        rpcgroup.compat.install()
        assert rpc.is_available() and torch.distributed.autograd.is_available()
        """
        + GROUP_OF_ONE.replace("\n    ", "\n        ")
        + """
        group_of_one()
        from torch.distributed.nn import RemoteModule
        from torch.distributed.optim import DistributedOptimizer
        from torch._C._distributed_rpc import PyRRef
        assert PyRRef is rpc.RRef and torch.nn.parallel.distributed.RPC_AVAILABLE

        @torch.jit.script
        def scripted(x: torch.Tensor) -> torch.Tensor:
            return x + 1

        assert scripted(torch.ones(1)).item() == 2
        rpcgroup.compat.uninstall()
        assert not rpc.is_available() and not hasattr(torch._C, "_rpc_init")
        print("done")
        """
    )
    assert printed == "done\n"
