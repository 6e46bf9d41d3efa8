"""Tensors of the recording device: a CPU tensor inside, and a note of every op on it.

For C++ they are on the CPU, so torch needs no accelerator for them, autograd included; for Python on `cuda:N`. Every op
is done at once; what it reads and writes is noted as work of the current stream of its device. Not covered: sparse
tensors, and ops that give a tensor other memory or another shape in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree

from rpcgroup.testing.stream_order import EVERYTHING, Memory, Span

if TYPE_CHECKING:
    from rpcgroup.testing.recording_device import RecordingDevice

__all__ = ["Block", "DeviceTensor", "move", "span_of"]

_COPY = torch.ops.aten.copy_.default
_GRAD_FN: Any = vars(torch._C.TensorBase)["grad_fn"].__get__
_INDEXING = ("index", "index_put", "index_put_")
"""They take their indices from the host, too."""


class Block:
    """Memory of the device, freed with the last tensor that has it."""

    __slots__ = ("_drop", "memory")

    def __init__(self, memory: Memory, drop: Callable[[Memory], None]) -> None:
        self.memory = memory
        self._drop = drop

    def __del__(self) -> None:
        self._drop(self.memory)


class DeviceTensor(torch.Tensor):
    """Made by `RecordingDevice.tensor` and by ops on others."""

    wrapped: torch.Tensor
    block: Block
    recorder: RecordingDevice
    streams: Mapping[torch.device, Any]
    """The current ones when its value was made."""
    _device: torch.device

    @staticmethod
    def __new__(
        cls, recorder: RecordingDevice, device: torch.device, inner: torch.Tensor, block: Block
    ) -> DeviceTensor:
        self: DeviceTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
        )
        self.wrapped = inner
        self.block = block
        self.recorder = recorder
        self.streams = recorder.current_streams.all()
        self._device = device
        return self

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self._device

    is_cuda = True
    is_cpu = False

    def get_device(self) -> int:
        index: int = self._device.index
        return index

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"DeviceTensor({self.wrapped!r}, device='{self._device}')"

    def __format__(self, format_spec: str) -> str:
        return format(self.item() if self.dim() == 0 else repr(self), format_spec)

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.wrapped.untyped_storage()

    def data_ptr(self) -> int:
        return self.wrapped.data_ptr()

    def record_stream(self, s: Any) -> None:
        self.recorder.retain(self, s)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError(
                f"can't convert {self._device} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to "
                "host memory first."
            )
        return self.detach().cpu().numpy()

    def cpu(self, memory_format: torch.memory_format = torch.preserve_format) -> torch.Tensor:
        return self.to("cpu", memory_format=memory_format)

    def cuda(self, device: Any = None, non_blocking: bool = False) -> torch.Tensor:  # type: ignore[override]
        if isinstance(device, int):
            device = torch.device("cuda", device)
        return self.to(device or "cuda", non_blocking=non_blocking)

    def to(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        copy = kwargs.pop("copy", False)
        if args and isinstance(args[0], torch.Tensor):
            args = (args[0].device, args[0].dtype, *args[1:])
        device, dtype, non_blocking, memory_format = torch._C._nn._parse_to(*args, **kwargs)
        target = self._device if device is None else self.recorder.exact(device)
        keeps: dict[str, Any] = {} if memory_format is None else {"memory_format": memory_format}
        result: torch.Tensor = super().to(dtype or self.dtype, copy=copy and target == self._device, **keeps)
        if target == self._device:
            return result
        return move(result, self.recorder, target, non_blocking)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(f"a tensor of the recording device is not pickled: {self!r}")

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if func.__name__ == "__get__" and func != _GRAD_FN:
                return func(*args)
            _mark_nodes(args)
            if func is torch.Tensor.to and not isinstance(
                args[0], cls
            ):  # the other way round it is a method above
                return _Move.apply(args[0].to(args[1].dtype), args[1].recorder, args[1].device, False)
            place = kwargs.pop("device", None)
            out = func(*args, **kwargs)
            _mark_nodes(out)
        return out if place is None else _mapped(DeviceTensor, lambda t: t.to(place), out)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is _COPY:
            return _copy(args[0], args[1], non_blocking=len(args) > 2 and args[2])
        return _run(func, args, kwargs or {})


class _Move(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, tensor: torch.Tensor, recorder: RecordingDevice, target: torch.device, non_blocking: bool
    ) -> torch.Tensor:
        ctx.source, ctx.recorder = tensor.device, recorder
        return recorder.moved(tensor, target, non_blocking)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        return ctx.recorder.moved(grads[0], ctx.source, False), None, None, None


def move(
    tensor: torch.Tensor, recorder: RecordingDevice, target: torch.device, non_blocking: bool
) -> torch.Tensor:
    """To another device, or from or to the host; gradients go back the same way."""
    moved: torch.Tensor = _Move.apply(tensor, recorder, target, non_blocking)
    return moved


def span_of(tensor: torch.Tensor) -> Span:
    """From its first byte to its last one; with what lies between, if it is not contiguous."""
    if tensor.numel() == 0:
        return Span(0, 0)
    last = sum((size - 1) * stride for size, stride in zip(tensor.size(), tensor.stride(), strict=True))
    start = int(tensor.storage_offset())
    return Span(start * tensor.itemsize, (start + last + 1) * tensor.itemsize)


def _mark_nodes(values: Any) -> None:
    for tensor in _device_tensors(values):
        if tensor.grad_fn is not None:
            tensor.recorder.current_streams.mark(tensor.grad_fn, tensor.streams)


def _device_tensors(values: Any) -> Iterator[DeviceTensor]:
    return (leaf for leaf in _leaves(values) if isinstance(leaf, DeviceTensor))


def _leaves(value: Any) -> Iterator[Any]:
    """As pytree's, which takes several times as long; ops take and give no other containers."""
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _leaves(item)
    else:
        yield value


def _mapped(kind: type[Any], change: Callable[[Any], Any], value: Any) -> Any:
    """As pytree's `tree_map_only`, for the same reason."""
    if isinstance(value, kind):
        return change(value)
    if type(value) in (tuple, list):
        return type(value)(_mapped(kind, change, item) for item in value)
    if type(value) is dict:
        return {key: _mapped(kind, change, item) for key, item in value.items()}
    return pytree.tree_map_only(kind, change, value) if isinstance(value, tuple) else value  # with names


def _run(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    tensors = list(_device_tensors((args, kwargs)))
    recorder = tensors[0].recorder
    device = _common_device(func, tensors, list(_leaves((args, kwargs))))
    stream = recorder.current_stream(device)
    inner_args, inner_kwargs = _mapped(DeviceTensor, lambda t: t.wrapped, (args, kwargs))
    inner_out = func(*inner_args, **inner_kwargs)
    blocks = {tensor.wrapped.untyped_storage()._cdata: tensor.block for tensor in tensors}
    wrappers = {id(tensor.wrapped): tensor for tensor in tensors}
    uses = [(tensor.block.memory, span_of(tensor), writes) for tensor, writes in _uses(func, args, kwargs)]

    def wrap(out: torch.Tensor) -> DeviceTensor:
        wrapper = wrappers.get(id(out))
        if wrapper is not None:
            if (out.size(), out.stride()) != (wrapper.size(), wrapper.stride()):
                raise NotImplementedError(f"{func} of a tensor of the recording device: it changes its shape")
            wrapper.streams = recorder.current_streams.all()
            return wrapper
        block = blocks.get(out.untyped_storage()._cdata)
        if block is None:
            block = recorder.allocate(stream, out, str(func))
            blocks[out.untyped_storage()._cdata] = block
            uses.append((block.memory, EVERYTHING, True))
        return DeviceTensor(recorder, device, out, block)

    out = _mapped(torch.Tensor, wrap, inner_out)
    if uses:
        recorder.enqueue(stream, str(func), uses)
    if any(not isinstance(leaf, torch.Tensor) and leaf is not None for leaf in _leaves(inner_out)):
        recorder.drain(stream)  # the host has got a value
    return out


def _common_device(func: Any, tensors: Sequence[DeviceTensor], leaves: Sequence[Any]) -> torch.device:
    devices = dict.fromkeys(str(tensor.device) for tensor in tensors)
    if (
        func.overloadpacket.__name__ not in _INDEXING
        and not tensors[0].recorder.current_streams.in_backward()
    ):
        plain = [x for x in leaves if isinstance(x, torch.Tensor) and not isinstance(x, DeviceTensor)]
        devices.update((str(tensor.device), None) for tensor in plain if tensor.dim() > 0)
    if len(devices) > 1:
        first, second = list(devices)[:2]
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{first} and {second}! (in {func})"
        )
    return tensors[0].device


def _uses(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[tuple[DeviceTensor, bool]]:
    """The tensors that the op reads, or writes as its schema says; a view is not a use."""
    schema = func._schema
    name: str = func.overloadpacket.__name__
    if name.endswith("_like") or name.startswith("new_"):
        return
    written = any(
        argument.alias_info is not None and argument.alias_info.is_write for argument in schema.arguments
    )
    if not written and schema.returns and all(result.alias_info is not None for result in schema.returns):
        return
    for number, argument in enumerate(schema.arguments):
        value = args[number] if number < len(args) else kwargs.get(argument.name)
        writes = argument.alias_info is not None and argument.alias_info.is_write
        for tensor in _device_tensors(value):
            yield tensor, writes


def _copy(target: torch.Tensor, source: torch.Tensor, non_blocking: bool) -> torch.Tensor:
    """As torch copies: on the stream of the source's device, else of the target's; the host waits if it must."""
    (recorder, *_) = (tensor.recorder for tensor in _device_tensors((target, source)))
    inner_target, inner_source = (t.wrapped if isinstance(t, DeviceTensor) else t for t in (target, source))
    inner_target.copy_(inner_source)
    at = recorder.current_stream(source.device if isinstance(source, DeviceTensor) else target.device)
    places = [(tensor, writes) for tensor, writes in ((source, False), (target, True))]
    uses = [
        (memory, span_of(t), writes) for t, writes in places if (memory := recorder.memory_of(t)) is not None
    ]
    if isinstance(target, DeviceTensor):
        other = recorder.current_stream(target.device)
        recorder.join(at, other)
        recorder.enqueue(at, str(_COPY), uses)
        recorder.join(other, at)
        target.streams = recorder.current_streams.all()
    else:
        recorder.enqueue(at, str(_COPY), uses)
    on_host = [t for t in (source, target) if not isinstance(t, DeviceTensor)]
    pinned = all(recorder.memory_of(tensor) is not None for tensor in on_host)
    if on_host and (not non_blocking or (not pinned and on_host[0] is target)):
        recorder.drain(at)  # what is not pinned is read before the copy is enqueued
    return target
