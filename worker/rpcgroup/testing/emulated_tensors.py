"""Tensors of a recording device by torch's own calls: `torch.ones(2, device="cuda:1")`, `x.to(1)`, `module.cuda()`.

What torch makes on a device it makes of two ops, which are registered here for CUDA's dispatch key, with a few more
that would give a tensor another shape. Where a tensor of the host is moved, torch's function is replaced: for C++ both
tensors are the host's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from rpcgroup.testing.device_tensor import DeviceTensor, move
from rpcgroup.testing.recording_device import RecordingDevice

__all__ = ["emulate_tensors"]

_library: torch.library.Library | None = None
"""Refers to the kernels, which are gone when it is."""
_to = torch.Tensor.to
_FILLED = (
    *("arange", "arange.start", "arange.start_step", "linspace", "eye", "eye.m", "randperm"),
    *("tril_indices", "triu_indices"),
)


def emulate_tensors(recorder: RecordingDevice) -> None:
    """For the rest of the process."""
    global _library
    _library = torch.library.Library("aten", "IMPL", "CUDA")  # type: ignore[no-untyped-call]
    _library.impl("empty.memory_format", _factory(recorder, torch.empty))  # type: ignore[no-untyped-call]
    _library.impl("empty_strided", _factory(recorder, torch.empty_strided))  # type: ignore[no-untyped-call]
    for name in _FILLED:
        _library.impl(name, _filled(recorder, name))  # type: ignore[no-untyped-call]
    torch.tensor = _from_host(torch.tensor, "aten::tensor")
    torch.as_tensor = _from_host(torch.as_tensor, "aten::as_tensor")
    torch.Tensor.to = _mover(recorder)  # type: ignore[method-assign]
    torch.Tensor.cuda = _to_cuda  # type: ignore[assignment, method-assign]
    # Parameters become tensors of another class, in place: those who refer to them have the moved ones then.
    torch.__future__.set_swap_module_params_on_conversion(True)


def _factory(recorder: RecordingDevice, factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def made(*args: Any, device: Any = None, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        place = recorder.exact(device)
        inner = factory(*args, **kwargs, device="cpu")
        recorder.fill_with_garbage(inner)
        return DeviceTensor(
            recorder, place, inner, recorder.allocate(recorder.current_stream(place), inner, factory.__name__)
        )

    return made


def _filled(recorder: RecordingDevice, name: str) -> Callable[..., torch.Tensor]:
    packet, _, overload = name.partition(".")
    on_host = getattr(getattr(torch.ops.aten, packet), overload or "default")

    def made(*args: Any, device: Any = None, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        return recorder.tensor(on_host(*args, **kwargs, device="cpu"), device)

    return made


def _from_host(factory: Callable[..., torch.Tensor], name_in_scripts: str) -> Callable[..., torch.Tensor]:
    def made(*args: Any, device: Any = None, requires_grad: bool = False, **kwargs: Any) -> torch.Tensor:
        tensor = factory(*args, **kwargs)
        if device is not None:
            tensor = tensor.to(device)
        return tensor.requires_grad_() if requires_grad else tensor

    torch.jit._builtins._register_builtin(made, name_in_scripts)
    return made


def _mover(recorder: RecordingDevice) -> Callable[..., torch.Tensor]:
    def to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        others = {name: value for name, value in kwargs.items() if name != "copy"}
        device, dtype, non_blocking, _ = torch._C._nn._parse_to(*_placed(args), **others)
        if isinstance(self, DeviceTensor) or device is None or device.type != "cuda":
            return _to(self, *args, **kwargs)
        return move(_to(self, dtype or self.dtype), recorder, recorder.exact(device), non_blocking)

    return to


def _placed(args: Sequence[Any]) -> Sequence[Any]:
    """`to(other)` as `to(device, dtype)`."""
    if args and isinstance(args[0], torch.Tensor):
        return (args[0].device, args[0].dtype, *args[1:])
    return args


def _to_cuda(self: torch.Tensor, device: Any = None, non_blocking: bool = False) -> torch.Tensor:
    place = torch.device("cuda", device) if isinstance(device, int) else torch.device(device or "cuda")
    return self.to(place, non_blocking=non_blocking)
