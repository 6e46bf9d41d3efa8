from __future__ import annotations

import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rpcgroup.errors import RemoteProtocolError, SerializationError
from rpcgroup.wire.tensors import (
    _DTYPES,
    INLINE_LIMIT,
    MAX_BUFFERS,
    can_travel,
    decode_tensor,
    encode_tensor,
    tensor_memory,
)

DTYPES = [d for d in _DTYPES if d is not None]
GRAD_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.complex64)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Any dtype, up to four dimensions, small and large, any strides, with and without gradient."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 5), max_size=4))
    if draw(st.booleans()):
        shape.append(draw(st.sampled_from([1, 2, 5000, 20_000])))
    size = dtype.itemsize
    count = 1
    for n in shape:
        count *= n
    if count > 50_000:
        shape, count = [9, 40], 360
    raw = torch.arange(count * size, dtype=torch.int64).mul(37).to(torch.uint8)
    if dtype is torch.bool:
        raw = raw.remainder(2)
    tensor = raw.view(dtype).view(shape) if count else torch.empty(shape, dtype=dtype)
    if tensor.dim():
        if draw(st.booleans()):
            tensor = tensor.transpose(0, -1)
        if draw(st.booleans()) and tensor.shape[-1] > 1:
            tensor = tensor[..., 1::2]
        if draw(st.booleans()):
            tensor = tensor.unsqueeze(0).expand(2, *tensor.shape)
    if dtype in GRAD_DTYPES and draw(st.booleans()):
        tensor = tensor.detach().requires_grad_(True)
    return tensor


def raw_bytes(tensor: torch.Tensor) -> bytes:
    return (
        tensor.detach()
        .clone(memory_format=torch.contiguous_format)
        .reshape(-1)
        .view(torch.uint8)
        .numpy()
        .tobytes()
    )


def assert_same(there: torch.Tensor, tensor: torch.Tensor) -> None:
    assert there.dtype == tensor.dtype
    assert there.shape == tensor.shape
    assert there.requires_grad == tensor.requires_grad
    assert there.is_contiguous() or there.stride() == tensor.stride()
    assert raw_bytes(there) == raw_bytes(tensor)


def travelled(tensor: torch.Tensor, prefix: int = 0, base: int = 0) -> torch.Tensor:
    """Encoded behind `prefix` bytes of a body that begins at `base`, and decoded from there."""
    parts = [bytes(prefix)]
    buffers: list[memoryview] = []
    end = encode_tensor(tensor, parts, prefix, buffers)
    data = b"".join(parts)
    assert len(data) == end
    body = bytearray(base) + data
    received = [bytearray(b) for b in buffers]
    there, offset = decode_tensor(body, base + prefix, base, iter(received))
    assert offset == base + end
    return there


@given(tensors(), st.integers(0, 40), st.integers(0, 40))
def test_any_tensor_comes_back_the_same(tensor: torch.Tensor, prefix: int, base: int) -> None:
    assert can_travel(tensor)
    assert_same(travelled(tensor, prefix, base * 8), tensor)


def test_a_view_keeps_its_strides_where_it_spans_little_more_than_it_shows() -> None:
    tensor = torch.arange(10_000.0).view(100, 100)
    for view in (tensor.t(), tensor[:, 10:60], tensor.unsqueeze(0).transpose(0, 2)):
        there = travelled(view)
        assert there.stride() == view.stride()
        assert torch.equal(there, view)
    assert travelled(tensor[:, :1]).is_contiguous(), "99 of 100 would be gaps"
    assert travelled(tensor[0].expand(50, 100)).is_contiguous(), "its elements would share memory"


@given(tensors())
def test_the_memory_of_a_tensor_is_its_dense_content(tensor: torch.Tensor) -> None:
    assert bytes(tensor_memory(tensor)) == raw_bytes(tensor)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,), (3, 1, 2)], ids=str)
def test_every_dtype_and_odd_shape(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.zeros(shape, dtype=torch.uint8).to(dtype)
    assert_same(travelled(tensor), tensor)


def test_every_dtype_of_this_torch_that_is_plain_has_a_code() -> None:
    assert DTYPES[: len(_DTYPES)] == _DTYPES[: len(DTYPES)], "the codes on the wire must not move"


def test_the_memory_is_the_tensors_own_and_keeps_it_alive() -> None:
    tensor = torch.arange(100_000)
    memory = tensor_memory(tensor)
    tensor[0] = 7
    assert memory[0] == 7
    del tensor
    assert int.from_bytes(memory[8:16], "little") == 1


def test_small_tensors_are_copied_at_once() -> None:
    """The caller may go on changing them: a frame is sent, and sent again, as it was."""
    tensor = torch.zeros(4)
    parts: list[bytes] = []
    encode_tensor(tensor, parts, 0, [])
    tensor.fill_(1)
    there, _ = decode_tensor(bytearray(b"".join(parts)), 0, 0, iter(()))
    assert there.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("size", "buffers"), [(INLINE_LIMIT, 0), (INLINE_LIMIT + 1, 1)], ids=["inline", "beside"]
)
def test_the_limit_between_inline_and_beside(size: int, buffers: int) -> None:
    made: list[memoryview] = []
    encode_tensor(torch.zeros(size, dtype=torch.uint8), [], 0, made)
    assert len(made) == buffers


def test_a_frame_that_has_all_its_buffers_takes_the_rest_inline() -> None:
    made = [memoryview(b"")] * MAX_BUFFERS
    parts: list[bytes] = []
    tensor = torch.arange(INLINE_LIMIT)
    encode_tensor(tensor, parts, 0, made)
    assert len(made) == MAX_BUFFERS
    there, _ = decode_tensor(bytearray(b"".join(parts)), 0, 0, iter(()))
    assert torch.equal(there, tensor)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.eye(3).to_sparse(),
        torch.tensor([1 + 2j]).conj(),
        torch.tensor([1 + 2j]).conj().imag,
        torch.empty(2, device="meta"),
    ],
    ids=["sparse", "conj", "neg", "meta"],
)
def test_what_is_not_plain_memory_cannot_travel(tensor: torch.Tensor) -> None:
    assert not can_travel(tensor)


def test_a_tensor_beyond_its_message_is_the_peers_fault() -> None:
    parts: list[bytes] = []
    encode_tensor(torch.arange(8), parts, 0, [])
    body = bytearray(b"".join(parts))
    with pytest.raises((RemoteProtocolError, ValueError)):
        decode_tensor(body[:-1], 0, 0, iter(()))


def test_an_unknown_dtype_is_named() -> None:
    with pytest.raises(SerializationError, match="no dtype of code 99"):
        decode_tensor(bytearray(struct.pack("<BBBBI", 99, 0, 0, 0, 0) + bytes(16)), 0, 0, iter(()))
