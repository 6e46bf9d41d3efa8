"""Tensors beside the pickle: metadata and small data in the body, larger data as buffers of the frame.

    per tensor  u8 dtype  u8 dimensions  u8 flags  u8 place  u32 0   then i64 for each dimension
                with STRIDED another i64 for each, its stride
                then, unless OUT_OF_BAND or ON_DEVICE, padding to 16 bytes and the data

With ON_DEVICE the data are the next payload of the message. `place` is 0, or for data that came by way of the host
the index of the device that the receiver puts them on, plus 1.

A view comes back with its strides, as from torch's RPC, where the memory that it spans is not much more than what
it shows; else it travels dense. Never does the whole storage behind one.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import torch

from rpcgroup.errors import RemoteProtocolError, SerializationError

__all__ = [
    "INLINE_LIMIT",
    "MAX_BUFFERS",
    "OnDevice",
    "can_travel",
    "decode_tensor",
    "encode_device_tensor",
    "encode_tensor",
    "has_plain_data",
    "tensor_memory",
]

INLINE_LIMIT: Final = 16384
"""Bytes: up to this size one copy into the frame is cheaper than a buffer of its own."""

MAX_BUFFERS: Final = 65535
"""Of one message: what its frame can count."""

REQUIRES_GRAD: Final = 1
OUT_OF_BAND: Final = 2
STRIDED: Final = 4
ON_DEVICE: Final = 8
GAPS_FACTOR: Final = 2
GAPS_BYTES: Final = 8192
"""A view travels with its gaps up to this many times its size, or this much more.

One whose elements share memory travels dense: what arrives can be written to.
"""
_ALIGNMENT: Final = 16

# The position is the code on the wire: append only. A torch that lacks one cannot receive it.
_DTYPE_NAMES: Final = (
    *("uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64", "bool", "bfloat16"),
    *("complex32", "complex64", "complex128", "uint16", "uint32", "uint64"),
    *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"),
)
_DTYPES: Final[list[torch.dtype | None]] = [getattr(torch, name, None) for name in _DTYPE_NAMES]
_CODES: Final[dict[torch.dtype, int]] = {d: i for i, d in enumerate(_DTYPES) if d is not None}
_SIZES: Final = [d.itemsize if d is not None else 0 for d in _DTYPES]

_META: Final = struct.Struct("<BBBBI")
_SHAPES: Final = [struct.Struct(f"<{n}q") for n in range(129)]
_NO_PAYLOADS: Final[Iterator[torch.Tensor]] = iter(())
_uint8 = torch.uint8
_frombuffer = torch.frombuffer
_string_at = ctypes.string_at


class OnDevice(NamedTuple):
    """Data of a tensor that stay on their device when the message is made."""

    data: torch.Tensor
    """Flat, of bytes; shares the tensor's memory where that is dense."""
    target: int
    """Index of the receiver's device."""


def can_travel(tensor: torch.Tensor) -> bool:
    """Whether a tensor is plain enough to travel as raw memory; else torch's own reduction has to do."""
    return tensor.is_cpu and has_plain_data(tensor)


def has_plain_data(tensor: torch.Tensor) -> bool:
    """The same of a tensor on any device."""
    return (
        tensor.layout is torch.strided
        and tensor.dtype in _CODES
        and not tensor.is_conj()
        and not tensor.is_neg()
    )


def tensor_memory(tensor: torch.Tensor) -> memoryview:
    """The bytes of the tensor where it is contiguous, else of a dense copy; keeps alive what it shows."""
    dense = tensor if tensor.is_contiguous() else tensor.detach().contiguous()
    return _memory(dense, dense.nbytes)


def _memory(tensor: torch.Tensor, size: int) -> memoryview:
    # It is read by address and not through numpy, which has no bfloat16 and which torch can lack.
    memory: Any = (ctypes.c_char * size).from_address(tensor.data_ptr())
    memory.tensor = tensor
    return memoryview(memory).cast("B")


def _span(shape: Any, strides: Any) -> int:
    """Elements from the first to the last one of a view."""
    spanned: int = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    return spanned


def encode_tensor(
    tensor: torch.Tensor, parts: list[bytes], offset: int, buffers: list[memoryview], place: int = 0
) -> int:
    """Append a tensor that `can_travel` to the body's `parts`, which hold `offset` bytes.

    Returns the new offset; data over `INLINE_LIMIT` is appended to `buffers` instead.
    """
    shape = tensor.shape
    dimensions = len(shape)
    size = tensor.nbytes
    flags = REQUIRES_GRAD if tensor.requires_grad else 0
    code = _CODES[tensor.dtype]
    layout = _SHAPES[dimensions].pack(*shape)
    if not tensor.is_contiguous():
        strides = tensor.stride()
        spanned = _span(shape, strides) * tensor.itemsize
        if _may_keep_gaps(size, spanned):
            flags |= STRIDED
            layout += _SHAPES[dimensions].pack(*strides)
            size = spanned
        else:
            tensor = tensor.detach().contiguous()
    if size > INLINE_LIMIT and len(buffers) < MAX_BUFFERS:
        parts.append(_META.pack(code, dimensions, flags | OUT_OF_BAND, place, 0) + layout)
        buffers.append(_memory(tensor, size))
        return offset + 8 + len(layout)
    head = _META.pack(code, dimensions, flags, place, 0) + layout
    start = offset + len(head)
    padding = -start % _ALIGNMENT
    data = _string_at(tensor.data_ptr(), size)
    parts.append(head + b"\0" * padding + data)
    return start + padding + size


def _may_keep_gaps(size: int, spanned: int) -> bool:
    return size <= spanned <= max(GAPS_FACTOR * size, size + GAPS_BYTES)


def encode_device_tensor(
    tensor: torch.Tensor, target: int, parts: list[bytes], payloads: list[OnDevice]
) -> int:
    """Append a tensor on a device that `has_plain_data`, its data to `payloads`. Returns the bytes of the body.

    What has to be done to make the data dense is enqueued on the current stream.
    """
    shape, strides = tensor.shape, tensor.stride()
    flags = ON_DEVICE | (REQUIRES_GRAD if tensor.requires_grad else 0)
    layout = _SHAPES[len(shape)].pack(*shape)
    data = tensor.detach()
    if not data.is_contiguous():
        spanned = _span(shape, strides)
        if _may_keep_gaps(data.nbytes, spanned * data.itemsize):
            flags |= STRIDED
            layout += _SHAPES[len(shape)].pack(*strides)
            data = data.as_strided((spanned,), (1,))
        else:
            data = data.contiguous()
    payloads.append(OnDevice(data.reshape(-1).view(_uint8), target))
    parts.append(_META.pack(_CODES[tensor.dtype], len(shape), flags, 0, 0) + layout)
    return 8 + len(layout)


def decode_tensor(
    body: bytearray,
    offset: int,
    base: int,
    buffers: Any,
    payloads: Iterator[torch.Tensor] = _NO_PAYLOADS,
    put: Callable[[torch.Tensor, int], torch.Tensor] | None = None,
) -> tuple[torch.Tensor, int]:
    """The tensor at `offset` of `body`; alignment counts from `base`; `buffers` iterates over what follows.

    `payloads` iterates over what came onto devices; `put` copies a tensor onto the device of that index. Returns the
    tensor, which shares the memory of the body, the buffer or the payload, and the offset behind it.
    """
    code, dimensions, flags, place, _ = _META.unpack_from(body, offset)
    shape = _SHAPES[dimensions].unpack_from(body, offset + 8)
    offset += 8 + 8 * dimensions
    strides = None
    if flags & STRIDED:
        strides = _SHAPES[dimensions].unpack_from(body, offset)
        offset += 8 * dimensions
    dtype = _DTYPES[code] if code < len(_DTYPES) else None
    if dtype is None:
        name = _DTYPE_NAMES[code] if code < len(_DTYPE_NAMES) else f"of code {code}"
        raise SerializationError(f"this torch ({torch.__version__}) has no dtype {name}")
    if flags & (OUT_OF_BAND | ON_DEVICE):
        if flags & ON_DEVICE:
            tensor = next(payloads).view(dtype)
        else:
            tensor = _frombuffer(next(buffers), dtype=dtype)
        if strides is not None:
            tensor = tensor.as_strided(shape, strides)
        elif dimensions != 1:
            tensor = tensor.view(shape)
    else:
        if strides is not None:
            count = _span(shape, strides)
        else:
            count = 1
            for n in shape:
                count *= n
        offset += (base - offset) % _ALIGNMENT
        if count:
            size = count * _SIZES[code]
            if offset % _ALIGNMENT:
                # An odd number of buffer sizes stands before: torch's kernels fault on memory that is not aligned.
                tensor = _frombuffer(body[offset : offset + size], dtype=dtype, count=count)
            else:
                tensor = _frombuffer(body, dtype=dtype, count=count, offset=offset)
            offset += size
            if strides is not None:
                tensor = tensor.as_strided(shape, strides)
            elif dimensions != 1:
                tensor = tensor.view(shape)
        else:
            tensor = torch.empty(shape, dtype=dtype)
    if tensor.numel() and offset > len(body):
        raise RemoteProtocolError("a tensor reaches beyond its message")
    if place:
        if put is None:
            raise RemoteProtocolError(f"a tensor is for device {place - 1}, and this worker uses none")
        tensor = put(tensor, place - 1)
    if flags & REQUIRES_GRAD:
        tensor.requires_grad_(True)
    return tensor, offset
