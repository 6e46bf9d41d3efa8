from __future__ import annotations

import collections
import dataclasses
import functools
import math
import operator
import pickle
import subprocess
import sys
import textwrap
import threading
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rpcgroup.errors import MessageTooLargeError, RemoteProtocolError, SerializationError
from rpcgroup.wire.codec import Codec
from rpcgroup.wire.forms import FORMAT_MASK, NOTHING, OBJECTS, PICKLE, TENSORS, Encoded
from rpcgroup.wire.frames import Body

Point = collections.namedtuple("Point", "x y")


@dataclasses.dataclass
class Batch:
    """A user's own class."""

    data: torch.Tensor
    tags: dict[str, Any]


class Reference:
    """What stands for an RRef here."""

    def __init__(self, key: int) -> None:
        self.key = key


class Unpicklable:
    def __reduce__(self) -> Any:
        raise ValueError("never")


def received(encoded: Encoded) -> Body | None:
    """As a reader delivers it: the body behind the table of sizes, and each buffer in memory of its own."""
    if not encoded.body:
        return None
    start = 8 * len(encoded.buffers)
    return Body(bytearray(start) + encoded.body, start, [bytearray(b) for b in encoded.buffers])


def travelled(*values: Any, by_value: bool = False) -> tuple[Any, ...]:
    codec = Codec()
    encoded = codec.encode(values, by_value=by_value)
    return codec.decode(encoded.flags, received(encoded))


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return (
            type(a) is type(b)
            and a.dtype == b.dtype
            and a.requires_grad == b.requires_grad
            and a.shape == b.shape
            and torch.equal(a, b)
        )
    if isinstance(a, np.ndarray):
        return (
            a.dtype == b.dtype
            and a.shape == b.shape
            and a.tobytes() == b.tobytes()
            and a.flags.writeable == b.flags.writeable
        )
    if isinstance(a, dict):
        return type(a) is type(b) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and math.isnan(a):
        return isinstance(b, float) and math.isnan(b)
    return type(a) is type(b) and bool(a == b)


shapes = st.one_of(
    st.just(()), st.lists(st.integers(0, 5), max_size=3).map(tuple), st.just((70, 80)), st.just((5000,))
)
tensors = st.builds(
    lambda shape, dtype, grad: (
        torch.full(shape, 3).to(dtype).requires_grad_(grad and dtype.is_floating_point)
    ),
    shapes,
    st.sampled_from([torch.float32, torch.int64, torch.bfloat16, torch.bool, torch.complex128]),
    st.booleans(),
)
arrays = st.one_of(
    hnp.arrays(st.sampled_from([np.float32, np.int64, np.uint8, np.complex64, "U4", "M8[s]"]), (2, 3)),
    st.builds(lambda n: np.arange(n, dtype=np.int64), st.sampled_from([0, 2047, 2048, 2049, 9000])),
    st.builds(lambda n: np.asfortranarray(np.ones((n, 3))), st.sampled_from([2, 3000])),
    st.builds(lambda n: np.arange(n)[::2], st.sampled_from([4, 9000])),
)
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.complex_numbers(allow_nan=False),
    st.text(max_size=20),
    st.binary(max_size=20),
    st.builds(bytearray, st.binary(max_size=20)),
    st.builds(np.float32, st.integers(0, 9)),
    st.sampled_from(
        [np.int64(3), np.bool_(True), np.datetime64("2020-01-01"), torch.float16, torch.Size([2])]
    ),
    tensors,
    arrays,
)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner, inner),
        st.builds(Point, inner, inner),
        st.dictionaries(st.text(max_size=4), inner, max_size=4),
        st.builds(collections.OrderedDict, st.dictionaries(st.integers(), inner, max_size=3)),
    ),
    max_leaves=10,
)


@given(st.lists(values, max_size=4).map(tuple))
def test_any_nest_of_containers_comes_back_the_same(sent: tuple[Any, ...]) -> None:
    assert same(travelled(*sent), sent)


@pytest.mark.parametrize(
    ("values", "form"),
    [
        ((), NOTHING),
        ((1, "two", 3.0, None, True, b"six"), PICKLE),
        ((torch.ones(2), torch.ones(3)), TENSORS),
        ((torch.ones(2), 1), OBJECTS),
        (([1],), OBJECTS),
        ((torch.eye(2).to_sparse(),), OBJECTS),
    ],
    ids=["nothing", "simple", "tensors", "mixed", "list", "sparse"],
)
def test_the_form_of_the_body(values: tuple[Any, ...], form: int) -> None:
    encoded = Codec().encode(values)
    assert encoded.flags & FORMAT_MASK == form
    there = Codec().decode(encoded.flags, received(encoded))
    assert len(there) == len(values)


def test_large_memory_goes_beside_the_body_and_small_does_not() -> None:
    large, small = torch.zeros(100_000), np.zeros(10)
    encoded = Codec().encode((large, np.zeros(100_000), small, {"x": large}))
    assert sorted(b.nbytes for b in encoded.buffers) == [400_000, 800_000]
    assert len(encoded.body) < 2000


def test_nothing_is_copied_at_the_sender() -> None:
    tensor, array = torch.zeros(100_000), np.zeros(100_000)
    encoded = Codec().encode(([tensor], array))
    tensor.fill_(1)
    array.fill(2)
    [there], array_there = Codec().decode(encoded.flags, received(encoded))
    assert there[0] == 1
    assert array_there[0] == 2


def test_shared_objects_stay_shared() -> None:
    tensor, array, inner = torch.ones(3), np.ones(5000), [1]
    first, second, nest = travelled(tensor, tensor, {"t": tensor, "a": [array, array], "i": [inner, inner]})
    assert first is second is nest["t"]
    assert nest["a"][0] is nest["a"][1]
    assert nest["i"][0] is nest["i"][1]


def test_one_tensor_twice_is_one_tensor_there() -> None:
    tensor = torch.ones(3)
    first, second = travelled(tensor, tensor)
    assert first is second


def test_a_structure_that_contains_itself() -> None:
    loop: list[Any] = [torch.ones(1)]
    loop.append(loop)
    (there,) = travelled(loop)
    assert there[1] is there


def test_received_memory_can_be_written() -> None:
    for value in (torch.zeros(3), torch.zeros(10_000), np.zeros(3), np.zeros(10_000)):
        (there,) = travelled(value)
        there[0] = 1
        assert there[0] == 1


def test_read_only_arrays_stay_read_only() -> None:
    for n in (3, 10_000):
        array = np.zeros(n)
        array.flags.writeable = False
        (there,) = travelled([array])
        assert not there[0].flags.writeable


@pytest.mark.parametrize(
    "tensor",
    [torch.eye(3).to_sparse(), torch.eye(3).to_sparse_csr(), torch.tensor([1 + 2j]).conj()],
    ids=["coo", "csr", "conj"],
)
def test_tensors_that_are_not_plain_memory(tensor: torch.Tensor) -> None:
    (there,) = travelled(tensor)
    assert there.layout == tensor.layout
    assert there.dtype == tensor.dtype
    assert torch.equal(there.to_dense().resolve_conj(), tensor.to_dense().resolve_conj())


def test_modules_and_their_parameters() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(100, 100), torch.nn.BatchNorm1d(100))
    (there,) = travelled(module)
    assert isinstance(there[0].weight, torch.nn.Parameter)
    assert there[0].weight.requires_grad
    for key, value in module.state_dict().items():
        assert torch.equal(there.state_dict()[key], value)
    encoded = Codec().encode((module,))
    assert any(b.nbytes == 40_000 for b in encoded.buffers), "a parameter's data travels as a tensor"


def test_a_result_of_autograd_arrives_as_a_leaf() -> None:
    result = torch.ones(3, requires_grad=True) * 2
    (there,) = travelled(result)
    assert there.requires_grad
    assert there.is_leaf


def test_users_classes() -> None:
    (there,) = travelled(Batch(torch.ones(5), {"a": [Point(1, 2)]}))
    assert isinstance(there, Batch)
    assert torch.equal(there.data, torch.ones(5))
    assert there.tags == {"a": [Point(1, 2)]}


def test_functions_by_reference_lambdas_and_closures_by_value() -> None:
    offset = torch.ones(2)

    def closure(x: Any) -> Any:
        return x + offset

    by_reference, partial, by_value, local = travelled(
        math.sqrt, functools.partial(operator.add, 3), lambda x: x * 2, closure
    )
    assert by_reference is math.sqrt
    assert partial(4) == 7
    assert by_value(4) == 8
    assert torch.equal(local(torch.zeros(2)), torch.ones(2))


def test_a_large_tensor_in_a_closure_goes_beside_the_body() -> None:
    tensor, array = torch.zeros(100_000), np.zeros(100_000)
    encoded = Codec().encode((lambda: (tensor, array),))
    assert sorted(b.nbytes for b in encoded.buffers) == [400_000, 800_000]
    (function,) = Codec().decode(encoded.flags, received(encoded))
    assert torch.equal(function()[0], tensor)
    assert np.array_equal(function()[1], array)


def test_a_local_class_and_its_instance() -> None:
    class Local:
        def __init__(self, x: int) -> None:
            self.x = x

    cls, instance = travelled(Local, Local(5))
    assert instance.x == 5
    assert isinstance(instance, cls)


def test_functions_of_main_go_by_value_to_another_program() -> None:
    program = textwrap.dedent(
        """
        import pickle, sys, torch
        from rpcgroup.wire.codec import Codec
        class Config:
            def __init__(self, n): self.n = n
        def double(x): return helper(x) * 2
        def helper(x): return x + 1
        encoded = Codec().encode((double, Config(3), torch.ones(3)), by_value=True)
        buffers = [bytes(b) for b in encoded.buffers]
        sys.stdout.buffer.write(pickle.dumps((encoded.flags, encoded.body, buffers)))
        """
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, timeout=100).stdout
    flags, body, buffers = pickle.loads(out)
    double, config, tensor = Codec().decode(flags, Body(bytearray(body), 0, [bytearray(b) for b in buffers]))
    assert double(4) == 10
    assert config.n == 3
    assert torch.equal(tensor, torch.ones(3))


@pytest.mark.parametrize(
    "value",
    [Unpicklable(), (n for n in ()), sys._getframe(), threading.Lock()],
    ids=["reduce", "generator", "frame", "lock"],
)
def test_what_cannot_be_pickled_is_a_serialization_error(value: Any) -> None:
    with pytest.raises(SerializationError, match="cannot be sent"):
        Codec().encode(([value],))


def test_nested_too_deeply() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(SerializationError, match="nested too deeply"):
        Codec().encode((deep,))


def test_a_meta_tensor_has_no_data_to_send() -> None:
    (there,) = travelled([torch.empty(2, 3, device="meta")])
    assert there[0].device.type == "meta"
    assert there[0].shape == (2, 3)


@pytest.mark.parametrize("value", ["x" * 2000, [b"x" * 2000], torch.zeros(250, dtype=torch.int64)])
def test_a_body_over_the_cap_is_refused_at_the_sender(value: Any) -> None:
    with pytest.raises(MessageTooLargeError, match="and the cap is 1000"):
        Codec(max_body=1000).encode((value,))


def test_buffers_do_not_count() -> None:
    Codec(max_body=1000).encode((torch.zeros(100_000), torch.zeros(100_000)))


@pytest.mark.parametrize("kind", ["tensors", "arrays"])
def test_more_large_objects_than_a_frame_can_count(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("codec", "objects", "tensors"):
        monkeypatch.setattr(f"rpcgroup.wire.{module}.MAX_BUFFERS", 3)
    sent = [torch.full((5000,), n, dtype=torch.int64) for n in range(5)]
    values = sent if kind == "tensors" else [t.numpy() for t in sent]
    encoded = Codec().encode((values,))
    assert len(encoded.buffers) == 3
    (there,) = Codec().decode(encoded.flags, received(encoded))
    assert [int(value[-1]) for value in there] == [0, 1, 2, 3, 4]


class Forks:
    """Gives out the references' keys; refuses the key 13."""

    def __init__(self) -> None:
        self.made: list[int] = []
        self.failed: list[int] = []

    def fork(self, reference: Reference) -> int:
        if reference.key == 13:
            raise SerializationError("unlucky")
        self.made.append(reference.key)
        return reference.key

    def fork_failed(self, fork: int) -> None:
        self.failed.append(fork)


def test_forks_of_a_message_that_cannot_be_sent_are_taken_back() -> None:
    forks = Forks()
    with pytest.raises(SerializationError, match="unlucky"):
        Codec(Reference).encode(([Reference(1), Reference(13)],), forks)
    assert forks.made == forks.failed == [1]
    with pytest.raises(MessageTooLargeError):
        Codec(Reference, max_body=100).encode(([Reference(1), "x" * 200],), forks)
    assert forks.made == [1], "nothing is forked for a message that is too large"


def test_references_of_a_body_nobody_decodes() -> None:
    codec = Codec(Reference)
    encoded = codec.encode(([Reference(1), torch.ones(3), Reference(2)],), Forks())
    assert codec.references_in(encoded.flags, received(encoded)) == [1, 2]
    plain = codec.encode((1, "x"))
    assert codec.references_in(plain.flags, received(plain)) == []


def test_references_travel_beside_the_pickle() -> None:
    codec = Codec(Reference)
    forks = Forks()

    def receive(forks: list[Any]) -> list[Any]:
        return [Reference(key + 100) for key in forks]

    one, two = Reference(1), Reference(2)
    encoded = codec.encode((one, [two, one, torch.ones(2)], np.ones(5000)), forks)
    assert forks.made == [1, 2], "once for each object, in order"
    first, (second, again, tensor), array = codec.decode(encoded.flags, received(encoded), receive)
    assert (first.key, second.key) == (101, 102)
    assert again is first
    assert torch.equal(tensor, torch.ones(2))
    assert len(array) == 5000


def test_a_reference_in_a_closure() -> None:
    codec, one = Codec(Reference), Reference(1)
    encoded = codec.encode((lambda: one.key,), Forks())
    (function,) = codec.decode(encoded.flags, received(encoded), lambda forks: [Reference(7)])
    assert function() == 7


def test_a_reference_without_a_call_is_refused() -> None:
    with pytest.raises(SerializationError, match="only be sent by a call"):
        Codec(Reference).encode((Reference(1),))


def test_a_reference_where_none_is_expected_is_the_peers_fault() -> None:
    encoded = Codec(Reference).encode((Reference(1),), Forks())
    with pytest.raises(RemoteProtocolError, match="references where none"):
        Codec(Reference).decode(encoded.flags, received(encoded))


def test_sections_that_do_not_fit_are_the_peers_fault() -> None:
    encoded = Codec().encode(([1],))
    with pytest.raises(RemoteProtocolError, match="do not fit"):
        Codec().decode(encoded.flags, Body(bytearray(encoded.body[:-10]), 0, None))


@pytest.mark.parametrize("wrapped", [False, True])
def test_tensors_that_require_grad_are_told_and_adopted_in_order(wrapped: bool) -> None:
    x = torch.ones(2, requires_grad=True)
    y, plain = x * 2, torch.ones(3)
    values: tuple[Any, ...] = (y, plain, x)
    if wrapped:
        sparse = torch.eye(2).to_sparse().requires_grad_()
        turned = torch.ones(2, dtype=torch.complex64, requires_grad=True).conj()
        values = ({"values": [y, plain, x, sparse, turned, y]},)
    sent: list[torch.Tensor] = []
    codec = Codec()
    flags, body, _, _ = codec.encode(values, sent=sent)
    assert sent[0] is y and sent[1] is x and len(sent) == (4 if wrapped else 2)
    adopted: list[torch.Tensor] = []

    def adopt(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        assert all(tensor.requires_grad for tensor in tensors)
        adopted.extend(tensor.detach() * 10 for tensor in tensors)
        return adopted

    decoded = codec.decode(flags, Body(body, 0, []), adopt=adopt)
    if wrapped:
        decoded = decoded[0]["values"]
        assert decoded[3] is adopted[2] and decoded[3].is_sparse
        assert decoded[4] is adopted[3] and decoded[4].tolist() == [10, 10]
        assert decoded[5] is decoded[0]
    assert decoded[0] is adopted[0] and decoded[0].tolist() == [20, 20]
    assert decoded[2] is adopted[1]
    assert decoded[1].tolist() == [1, 1, 1]


def test_a_sparse_tensor_comes_back_as_it_was() -> None:
    for sparse in (
        torch.eye(3).to_sparse(),
        torch.sparse_coo_tensor(torch.tensor([[0, 0]]), torch.ones(2, 4), (3, 4)),
        torch.sparse_coo_tensor(torch.tensor([[1], [2]]), torch.ones(1), (3, 4), requires_grad=True),
    ):
        flags, body, _, _ = Codec().encode((sparse,))
        (back,) = Codec().decode(flags, Body(body, 0, []))
        assert back.is_sparse and back.requires_grad == sparse.requires_grad and back.is_leaf
        assert back.is_coalesced() == sparse.is_coalesced()
        assert back._nnz() == sparse._nnz() and torch.equal(back.to_dense(), sparse.to_dense())
