"""Tensors beside the pickle: metadata and small data in the body, larger data as buffers of the frame.

    per tensor  u8 dtype  u8 dimensions  u8 flags  u8 0  u32 0   then i64 for each dimension
                with STRIDED another i64 for each, its stride
                then, unless OUT_OF_BAND, padding to 16 bytes and the data

A view comes back with its strides, as from torch's RPC, where the memory that it spans is not much more than what
it shows; else it travels dense. Never does the whole storage behind one.
"""

from __future__ import annotations

import ctypes
import struct
from typing import Any, Final

import torch

from rpcgroup.errors import RemoteProtocolError, SerializationError

__all__ = ["INLINE_LIMIT", "MAX_BUFFERS", "can_travel", "decode_tensor", "encode_tensor", "tensor_memory"]

INLINE_LIMIT: Final = 16384
"""Bytes: up to this size one copy into the frame is cheaper than a buffer of its own."""

MAX_BUFFERS: Final = 65535
"""Of one message: what its frame can count."""

REQUIRES_GRAD: Final = 1
OUT_OF_BAND: Final = 2
STRIDED: Final = 4
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
_uint8 = torch.uint8
_frombuffer = torch.frombuffer
_string_at = ctypes.string_at


def can_travel(tensor: torch.Tensor) -> bool:
    """Whether a tensor is plain enough to travel as raw memory; else torch's own reduction has to do."""
    return (
        tensor.is_cpu
        and tensor.layout is torch.strided
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


def encode_tensor(tensor: torch.Tensor, parts: list[bytes], offset: int, buffers: list[memoryview]) -> int:
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
        if size <= spanned <= max(GAPS_FACTOR * size, size + GAPS_BYTES):
            flags |= STRIDED
            layout += _SHAPES[dimensions].pack(*strides)
            size = spanned
        else:
            tensor = tensor.detach().contiguous()
    if size > INLINE_LIMIT and len(buffers) < MAX_BUFFERS:
        parts.append(_META.pack(code, dimensions, flags | OUT_OF_BAND, 0, 0) + layout)
        buffers.append(_memory(tensor, size))
        return offset + 8 + len(layout)
    head = _META.pack(code, dimensions, flags, 0, 0) + layout
    start = offset + len(head)
    padding = -start % _ALIGNMENT
    data = _string_at(tensor.data_ptr(), size)
    parts.append(head + b"\0" * padding + data)
    return start + padding + size


def decode_tensor(body: bytearray, offset: int, base: int, buffers: Any) -> tuple[torch.Tensor, int]:
    """The tensor at `offset` of `body`; alignment counts from `base`; `buffers` iterates over what follows.

    Returns the tensor, which shares the body's or the buffer's memory, and the offset behind it.
    """
    code, dimensions, flags, _, _ = _META.unpack_from(body, offset)
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
    if flags & OUT_OF_BAND:
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
    if flags & REQUIRES_GRAD:
        tensor.requires_grad_(True)
    return tensor, offset
