"""`RemoteModule`: a module that lives on another worker and is called as a local one.

Source of the behaviour: torch's `torch.distributed.nn.RemoteModule`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import nn

from rpcgroup import api
from rpcgroup.futures import Future
from rpcgroup.rref.rref import RRef

__all__ = ["RemoteModule"]

RANK: Final = "rank:"
UNSUPPORTED: Final = (
    *("register_buffer", "register_parameter", "add_module", "apply", "to", "cuda", "cpu", "type", "float"),
    *("double", "half", "bfloat16", "ipu", "xpu", "share_memory", "requires_grad_", "zero_grad"),
    *("register_full_backward_hook", "register_backward_hook", "register_forward_pre_hook"),
    *("register_forward_hook", "state_dict", "load_state_dict", "parameters", "named_parameters"),
    *("buffers", "named_buffers", "children", "named_children", "modules", "named_modules", "extra_repr"),
)
"""Of `nn.Module`: what they would do here is not what they do for a local module."""


class RemoteDevice(NamedTuple):
    """Where a module lives."""

    worker: str | int
    device: str


class RemoteModule(nn.Module):
    """Creates `module_cls(*args, **kwargs)` on `remote_device`, which is `WORKER[/DEVICE]` or `rank:N[/DEVICE]`; the
    device is the CPU where it is not given.

    A call runs the module's `forward` there and waits; `forward_async` returns a future. Gradients go through both,
    in an `autograd.context`. It can be handed to other workers in the arguments and results of calls: that is a
    reference to the same module. Input on the CPU is moved to the module's device.
    Raises `ValueError` for a device that cannot be read.
    """

    def __init__(
        self,
        remote_device: str,
        module_cls: Callable[..., nn.Module],
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.on, self.device = parse_remote_device(remote_device)
        self.module_rref: RRef[nn.Module] = api.remote(
            self.on, create_module, (module_cls, tuple(args or ()), dict(kwargs or {}), self.device)
        )

    @classmethod
    def init_from_module_rref(cls, remote_device: str, module_rref: RRef[nn.Module]) -> RemoteModule:
        """A module that is on `remote_device` already."""
        return cls._refer(*parse_remote_device(remote_device), module_rref)

    @classmethod
    def _refer(cls, on: str | int, device: str, module_rref: RRef[nn.Module]) -> RemoteModule:
        module = cls.__new__(cls)
        nn.Module.__init__(module)
        module.on, module.device, module.module_rref = on, device, module_rref
        return module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return api.rpc_sync(self.on, call_module, (self.module_rref, self.device, args, kwargs))

    def forward_async(self, *args: Any, **kwargs: Any) -> Future[Any]:
        return api.rpc_async(self.on, call_module, (self.module_rref, self.device, args, kwargs))

    def remote_parameters(self, recurse: bool = True) -> list[RRef[nn.Parameter]]:
        """References to the parameters, in the module's order: what a `DistributedOptimizer` takes."""
        return api.rpc_sync(self.on, parameters_of, (self.module_rref, recurse))

    def get_module_rref(self) -> RRef[nn.Module]:
        return self.module_rref

    def train(self, mode: bool = True) -> RemoteModule:
        """Of the module where it lives."""
        api.rpc_sync(self.on, set_training, (self.module_rref, mode))
        self.training = mode
        return self

    def __reduce__(self) -> Any:
        return RemoteModule._refer, (self.on, self.device, self.module_rref)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(on={self.on!r}, device={self.device!r})"


def _unsupported(name: str) -> Callable[..., Any]:
    def method(self: RemoteModule, *args: Any, **kwargs: Any) -> Any:
        raise ValueError(
            f"Method ``{name}`` not supported for RemoteModule: call it where the module lives, by "
            f"get_module_rref().rpc_sync().{name}(...)"
        )

    return method


for _name in UNSUPPORTED:
    setattr(RemoteModule, _name, _unsupported(_name))


def parse_remote_device(text: str) -> RemoteDevice:
    """Raises `ValueError` that shows what is expected."""
    worker, slash, device = text.partition("/")
    expected = f"{text!r} is no remote device: expected WORKER[/DEVICE] or rank:N[/DEVICE], as in ps0/cuda:0"
    if not worker or (slash and not device):
        raise ValueError(expected)
    try:
        place = str(torch.device(device or "cpu"))
        on = int(worker.removeprefix(RANK)) if worker.startswith(RANK) else worker
    except (RuntimeError, ValueError) as exc:
        raise ValueError(f"{expected}: {exc}") from None
    return RemoteDevice(on, place)


# Where the module lives.
def create_module(
    module_cls: Callable[..., nn.Module], args: tuple[Any, ...], kwargs: dict[str, Any], device: str
) -> nn.Module:
    module = module_cls(*args, **kwargs)
    if not isinstance(module, nn.Module):
        raise ValueError(
            f"a RemoteModule's class must make an nn.Module, {module_cls!r} made an instance of {type(module)}"
        )
    return module.to(device)


def call_module(rref: RRef[nn.Module], device: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if device != "cpu":
        args = tuple(on_device(value, device) for value in args)
        kwargs = {name: on_device(value, device) for name, value in kwargs.items()}
    return rref.local_value()(*args, **kwargs)


def on_device(value: Any, device: str) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) and value.is_cpu else value


def parameters_of(rref: RRef[nn.Module], recurse: bool) -> list[RRef[nn.Parameter]]:
    return [RRef(parameter) for parameter in rref.local_value().parameters(recurse)]


def set_training(rref: RRef[nn.Module], mode: bool) -> None:
    rref.local_value().train(mode)
