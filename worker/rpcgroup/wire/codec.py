"""Python objects to bodies and back: pickle protocol 5, tensors, arrays and references beside the pickle.

A body is one of
    NOTHING   no bytes: no arguments, or None
    PICKLE    one pickle of simple values
    TENSORS   u16 count, padding to 8, then the tensors: arguments that are all plain tensors
    OBJECTS   the general case: `_OBJECTS` header, the attached tensors, the references, the pickle

In OBJECTS the pickle says `getitem(LIST, i)` for the i-th attached tensor or reference, where LIST is an
out-of-band buffer for which the receiver hands in its decoded list: the C unpickler picks the objects up and
no Python code runs. Pickle by reference is tried first, then `cloudpickle` by value.
"""

from __future__ import annotations

import copyreg
import pickle
import struct
from collections import ChainMap
from collections.abc import Callable, Iterator
from io import BytesIO
from itertools import repeat
from operator import getitem
from typing import Any, Final, NamedTuple, Protocol

import torch

from rpcgroup.errors import (
    DevicePlacementError,
    MessageTooLargeError,
    RemoteProtocolError,
    SerializationError,
)
from rpcgroup.wire.frames import MAX_BODY, Body
from rpcgroup.wire.scripts import SCRIPTED, SCRIPTED_MODULES, reduce_script_module, reduce_scripted
from rpcgroup.wire.tensors import (
    INLINE_LIMIT,
    MAX_BUFFERS,
    OnDevice,
    can_travel,
    decode_tensor,
    encode_device_tensor,
    encode_tensor,
    has_plain_data,
)

__all__ = [
    "FORMAT_MASK",
    "NOTHING",
    "OBJECTS",
    "PICKLE",
    "TENSORS",
    "Codec",
    "Encoded",
    "Placement",
    "ReferenceForks",
    "register_reducer",
]

NOTHING: Final = 0
PICKLE: Final = 1
TENSORS: Final = 2
OBJECTS: Final = 3
FORMAT_MASK: Final = 3

_SIMPLE: Final = frozenset((int, float, str, bool, type(None), bytes))
_Tensor = torch.Tensor
_sparse_coo = torch.sparse_coo
Adopt = Callable[[list[torch.Tensor]], list[torch.Tensor]]
Put = Callable[[torch.Tensor, int], torch.Tensor]
_COUNT: Final = struct.Struct("<HHI")
_OBJECTS: Final = struct.Struct("<IIIIQ")
"""attached objects, raw buffers, bytes of the references, entries of the buffer order, size of the pickle"""
_REFERENCE: Final = 255
"""Instead of a tensor's dtype code: the attached object is the next reference."""
_REFERENCE_ENTRY: Final = bytes((_REFERENCE, 0, 0, 0, 0, 0, 0, 0))

_SPARSE: Final = 254
"""Instead of a dtype code: a COO tensor of the two tensors before it. Flags (1 requires grad, 2 coalesced), shape."""

_LIST_STAND_IN: Final = bytearray(1)
_reducers: dict[type, Callable[[Any], Any]] = {
    **dict.fromkeys(SCRIPTED, reduce_scripted),
    **dict.fromkeys(SCRIPTED_MODULES, reduce_script_module),
}
"""How objects of exactly these types travel, before what `copyreg` says; changed by `register_reducer` alone."""


def register_reducer(kind: type, reducer: Callable[[Any], Any]) -> None:
    """Let objects of exactly that type travel as `reducer` says, which returns what `__reduce__` does."""
    _reducers[kind] = reducer


class Encoded(NamedTuple):
    """`flags` (one of the formats), the body, the buffers that follow it, the data that go from device to device."""

    flags: int
    body: bytes
    buffers: list[memoryview]
    payloads: list[OnDevice] | None = None


_NOTHING_ENCODED: Final = Encoded(NOTHING, b"", [])


class ReferenceForks(Protocol):
    """Turns references into plain data for one receiver; `fork_failed` takes one back that was not sent."""

    def fork(self, reference: Any) -> Any: ...

    def fork_failed(self, fork: Any) -> None: ...


class Placement(Protocol):
    """Where the tensors of a message to one worker go."""

    moves_cpu: bool
    """Those of the CPU may go to a device."""

    def target(self, tensor: torch.Tensor) -> int:
        """Index of the receiver's device, -1 for the CPU; raises `SerializationError` where there is none."""
        ...


class Codec:
    """Encodes and decodes for one agent; stateless, thread-safe.

    `reference_type` is the class whose instances travel as references: `forks` turns one into plain data when
    it is encoded, `receive` turns the list of such data into references when a body is decoded.
    `tensor_type` is the exact type of tensors on devices; `put` copies a tensor onto the device of that index.
    """

    def __init__(
        self,
        reference_type: type | None = None,
        max_body: int = MAX_BODY,
        tensor_type: type[torch.Tensor] = torch.Tensor,
        put: Put | None = None,
    ) -> None:
        self._reference_type = reference_type
        self._max_body = max_body
        self._tensor_type = tensor_type
        self._put = put

    def encode(
        self,
        values: tuple[Any, ...],
        forks: ReferenceForks | None = None,
        by_value: bool = False,
        sent: list[torch.Tensor] | None = None,
        placement: Placement | None = None,
    ) -> Encoded:
        """Encode arguments, or a result as a 1-tuple.

        `by_value` sends what lives in `__main__` by value: the receiver's `__main__` is another program.
        The tensors that require grad are appended to `sent`, in the order in which `decode` adopts them.
        `placement` says where tensors go; without it, from the CPU to the CPU. Data of a device that stay there are
        read by the current streams at first. Raises `SerializationError` naming what cannot be sent, and
        `MessageTooLargeError`.
        """
        if not values:
            return _NOTHING_ENCODED
        simple = tensors = True
        for value in values:
            kind = type(value)
            if kind is not _Tensor:
                tensors = False
            if kind not in _SIMPLE:
                simple = False
        if simple:
            encoded = Encoded(PICKLE, pickle.dumps(values, 5), [])
        elif (
            tensors
            and (placement is None or not placement.moves_cpu)
            and len(values) <= MAX_BUFFERS
            and all(map(can_travel, values))
            and _differ(values)
        ):
            encoded = _encode_tensors(values)
            if sent is not None:
                sent += [tensor for tensor in values if tensor.requires_grad]
        else:
            return self._encode_objects(values, forks, by_value, sent, placement)
        _require_size(len(encoded.body) + 8 * len(encoded.buffers), self._max_body)
        return encoded

    def decode(
        self,
        flags: int,
        body: Body | None,
        receive: Callable[[list[Any]], list[Any]] | None = None,
        adopt: Adopt | None = None,
    ) -> tuple[Any, ...]:
        """The values that `encode` was given. Runs the pickles of a peer that has proved the secret.

        `adopt` gets the tensors that require grad, and gives what takes their place.
        """
        form = flags & FORMAT_MASK
        if form == NOTHING:
            return ()
        if body is None:
            raise RemoteProtocolError("a message says that it has a body, and has none")
        data, start, buffers, events = body
        if form == PICKLE:
            values: tuple[Any, ...] = pickle.loads(memoryview(data)[start:] if start else data)
            return values
        if not isinstance(data, bytearray):
            data = bytearray(data)
        if form == TENSORS:
            tensors = _decode_tensors(data, start, iter(buffers or ()))
            return tuple(tensors) if adopt is None else tuple(_adopted(tensors, adopt))
        payloads = iter(events.tensors if events is not None else ())
        return _decode_objects(data, start, list(buffers or ()), payloads, self._put, receive, adopt)

    def references_in(self, flags: int, body: Body | None) -> list[Any]:
        """The references of a body that will not be decoded."""
        if flags & FORMAT_MASK != OBJECTS or body is None:
            return []
        data, start, _, _ = body
        _, _, blob_size, order_size, pickle_size = _OBJECTS.unpack_from(data, start)
        end = len(data) - pickle_size - order_size
        if not blob_size or end - blob_size < start:
            return []
        references: list[Any] = pickle.loads(memoryview(data)[end - blob_size : end])
        return references

    def _encode_objects(
        self,
        values: tuple[Any, ...],
        forks: ReferenceForks | None,
        by_value: bool,
        sent: list[torch.Tensor] | None,
        placement: Placement | None,
    ) -> Encoded:
        try:
            pickled = _Pickling(self._reference_type, self._tensor_type, placement)
            pickled.dump(values)
            if by_value and b"__main__" in pickled.stream.getvalue():
                raise pickle.PicklingError("refers to this program's __main__")
        except RecursionError as exc:
            raise SerializationError("cannot be sent: nested too deeply to pickle") from exc
        except Exception as exc:
            if isinstance(exc, DevicePlacementError):
                raise
            pickled = _Pickling(self._reference_type, self._tensor_type, placement)
            try:
                pickled.dump_by_value(values)
            except SerializationError:
                raise
            except Exception as last:
                raise SerializationError(
                    f"cannot be sent: {type(last).__name__}: {last} (by reference: {exc})"
                ) from last
        if sent is not None:
            sent += [
                value for value in pickled.attached if isinstance(value, _Tensor) and value.requires_grad
            ]
        return pickled.finish(forks, self._max_body)


class _Pickling:
    """One pickle under way and what was taken out of it."""

    __slots__ = (
        "attached",
        "order",
        "placement",
        "raw",
        "reference_type",
        "stream",
        "targets",
        "tensor_type",
    )

    def __init__(
        self, reference_type: type | None, tensor_type: type[torch.Tensor], placement: Placement | None
    ) -> None:
        self.reference_type = reference_type
        self.tensor_type = tensor_type
        self.placement = placement
        self.targets: dict[int, int] = {}
        """Of attached tensors that go to a device: by their places, its index."""
        self.stream = BytesIO()
        self.attached: list[Any] = []
        self.raw: list[memoryview] = []
        self.order = bytearray()
        """For each out-of-band buffer of the pickle: 0 = the attached objects, 1 = the next raw buffer."""

    def dump(self, values: tuple[Any, ...]) -> None:
        pickler = pickle.Pickler(self.stream, 5, buffer_callback=self._keep_in_band)
        # A plain dict, not a ChainMap: every object of the graph looks itself up here.
        pickler.dispatch_table = {**copyreg.dispatch_table, **self._reductions()}
        pickler.dump(values)

    def dump_by_value(self, values: tuple[Any, ...]) -> None:
        import cloudpickle

        class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
            # Of the class: cloudpickle's own hides what is set on an instance from the C pickler.
            dispatch_table = ChainMap(self._reductions(), cloudpickle.Pickler.dispatch_table)  # noqa: RUF012

        Pickler(self.stream, 5, buffer_callback=self._keep_in_band).dump(values)

    def finish(self, forks: ReferenceForks | None, max_body: int) -> Encoded:
        references: list[Any] = []
        parts: list[bytes] = [b""]
        buffers = self.raw
        raw_count = len(buffers)
        payloads: list[OnDevice] = []
        offset = _OBJECTS.size
        for place, value in enumerate(self.attached):
            if isinstance(value, _Tensor):
                target = self.targets.get(place, -1)
                if value.layout is _sparse_coo:
                    entry = _encode_sparse(value)
                    parts.append(entry)
                    offset += len(entry)
                elif value.is_cpu:
                    offset = encode_tensor(value, parts, offset, buffers, target + 1)
                elif target < 0:
                    offset = encode_tensor(value.cpu(), parts, offset, buffers)
                else:
                    offset += encode_device_tensor(value, target, parts, payloads)
            elif forks is None:
                raise SerializationError("a reference can only be sent by a call")
            else:
                references.append(value)
                parts.append(_REFERENCE_ENTRY)
                offset += len(_REFERENCE_ENTRY)
        _require_size(offset + self.stream.tell() + 8 * len(buffers), max_body)
        # Last of all: from here on nothing fails, so what is forked is sent.
        blob = pickle.dumps(_fork_all(references, forks), 5) if references and forks else b""
        # Without raw buffers every out-of-band buffer is the list, and the order need not be said.
        order = bytes(self.order) if raw_count else b""
        pickled = self.stream.getvalue()
        parts[0] = _OBJECTS.pack(len(self.attached), raw_count, len(blob), len(order), len(pickled))
        parts += (blob, order, pickled)
        return Encoded(OBJECTS, b"".join(parts), buffers, payloads)

    def _reductions(self) -> dict[type, Callable[[Any], Any]]:
        table: dict[type, Callable[[Any], Any]] = {**_reducers, _Tensor: self._reduce_tensor}
        table[self.tensor_type] = self._reduce_tensor
        if self.reference_type is not None:
            table[self.reference_type] = self._attach
        return table

    def _reduce_tensor(self, tensor: torch.Tensor) -> Any:
        if tensor.layout is _sparse_coo:
            # The two before it in the list are what it is made of.
            detached = tensor.detach()
            self._attach_tensor(detached._indices())
            self._attach_tensor(detached._values())
            return self._attach(tensor)
        if has_plain_data(tensor) and not tensor.is_meta:
            return self._attach_tensor(tensor)
        if tensor.is_conj() or tensor.is_neg():
            return self._reduce_tensor(tensor.resolve_conj().resolve_neg())  # connected to it
        if not (tensor.is_cpu or tensor.is_meta):
            raise SerializationError(
                f"cannot be sent: a tensor of shape {tuple(tensor.shape)} on {tensor.device} has the layout "
                f"{tensor.layout}, dtype {tensor.dtype}; move it to the CPU first"
            )
        return tensor.__reduce_ex__(5)  # type: ignore[no-untyped-call]

    def _attach_tensor(self, tensor: torch.Tensor) -> Any:
        target = -1
        if self.placement is not None:
            target = self.placement.target(tensor)
        elif not tensor.is_cpu:
            raise DevicePlacementError(
                f"cannot be sent: a tensor of shape {tuple(tensor.shape)} is on {tensor.device}, and tensors travel "
                "from CPU to CPU here; move it to the CPU first"
            )
        if target >= 0:
            self.targets[len(self.attached)] = target
        return self._attach(tensor)

    def _attach(self, value: Any) -> Any:
        self.attached.append(value)
        return getitem, (pickle.PickleBuffer(_LIST_STAND_IN), len(self.attached) - 1)

    def _keep_in_band(self, buffer: pickle.PickleBuffer) -> bool:
        """pickle's buffer callback: true leaves the buffer inside the pickle."""
        memory = buffer.raw()
        if memory.obj is _LIST_STAND_IN:
            self.order.append(0)
            return False
        if memory.nbytes <= INLINE_LIMIT or len(self.raw) == MAX_BUFFERS:
            return True
        self.raw.append(memory)
        self.order.append(1)
        return False


def _fork_all(references: list[Any], forks: ReferenceForks) -> list[Any]:
    made: list[Any] = []
    try:
        for reference in references:
            made.append(forks.fork(reference))
    except BaseException:
        for fork in made:
            forks.fork_failed(fork)
        raise
    return made


def _require_size(size: int, cap: int) -> None:
    if size > cap:
        raise MessageTooLargeError(
            f"cannot be sent: it pickles to {size} bytes, and the cap is {cap}. "
            "Large tensors and numpy arrays do not count: send large data as those"
        )


def _differ(values: tuple[Any, ...]) -> bool:
    """Whether no two are the same object; the general way keeps that."""
    return len(values) == 1 or len(set(map(id, values))) == len(values)


def _encode_tensors(values: tuple[Any, ...]) -> Encoded:
    parts = [_COUNT.pack(len(values), 0, 0)]
    buffers: list[memoryview] = []
    offset = 8
    for tensor in values:
        offset = encode_tensor(tensor, parts, offset, buffers)
    return Encoded(TENSORS, b"".join(parts), buffers)


def _encode_sparse(tensor: torch.Tensor) -> bytes:
    shape = tensor.shape
    flags = tensor.requires_grad | tensor.is_coalesced() << 1
    return struct.pack(f"<BBBBI{len(shape)}q", _SPARSE, len(shape), flags, 0, 0, *shape)


def _decode_sparse(body: bytearray, offset: int, attached: list[Any]) -> tuple[torch.Tensor, int]:
    _, dimensions, flags = struct.unpack_from("<BBB", body, offset)
    shape = struct.unpack_from(f"<{dimensions}q", body, offset + 8)
    tensor = torch.sparse_coo_tensor(
        attached[-2], attached[-1], shape, is_coalesced=bool(flags & 2), check_invariants=False
    )
    return tensor.requires_grad_(bool(flags & 1)), offset + 8 + 8 * dimensions


def _adopted(values: list[Any], adopt: Adopt) -> list[Any]:
    places = [i for i, value in enumerate(values) if isinstance(value, _Tensor) and value.requires_grad]
    if places:
        for place, tensor in zip(places, adopt([values[i] for i in places]), strict=True):
            values[place] = tensor
    return values


def _decode_tensors(body: bytearray, start: int, buffers: Any) -> list[Any]:
    count = _COUNT.unpack_from(body, start)[0]
    offset = start + 8
    tensors = []
    for _ in range(count):
        tensor, offset = decode_tensor(body, offset, start, buffers)
        tensors.append(tensor)
    return tensors


def _decode_objects(
    body: bytearray,
    start: int,
    buffers: list[Any],
    payloads: Iterator[torch.Tensor],
    put: Put | None,
    receive: Callable[[list[Any]], list[Any]] | None,
    adopt: Adopt | None,
) -> tuple[Any, ...]:
    count, raw_count, blob_size, order_size, pickle_size = _OBJECTS.unpack_from(body, start)
    tail = len(body) - pickle_size - order_size - blob_size
    if tail < start + _OBJECTS.size or raw_count > len(buffers):
        raise RemoteProtocolError("a message's sections do not fit into its body")
    view = memoryview(body)
    references: list[Any] = []
    if blob_size:
        if receive is None:
            raise RemoteProtocolError("a message carries references where none are expected")
        references = receive(pickle.loads(view[tail : tail + blob_size]))
    attached = _decode_attached(
        body, start, count, iter(buffers[raw_count:]), iter(references), payloads, put
    )
    if adopt is not None:
        attached = _adopted(attached, adopt)
    if order_size:
        raw = iter(buffers)
        order = view[tail + blob_size : tail + blob_size + order_size]
        lists: Any = [next(raw) if entry else attached for entry in order]
    else:
        lists = repeat(attached)
    values: tuple[Any, ...] = pickle.loads(view[len(body) - pickle_size :], buffers=lists)
    return values


def _decode_attached(
    body: bytearray,
    start: int,
    count: int,
    buffers: Any,
    references: Any,
    payloads: Iterator[torch.Tensor],
    put: Put | None,
) -> list[Any]:
    offset = start + _OBJECTS.size
    attached: list[Any] = []
    for _ in range(count):
        if body[offset] == _REFERENCE:
            attached.append(next(references))
            offset += len(_REFERENCE_ENTRY)
        elif body[offset] == _SPARSE:
            tensor, offset = _decode_sparse(body, offset, attached)
            attached.append(tensor)
        else:
            tensor, offset = decode_tensor(body, offset, start, buffers, payloads, put)
            attached.append(tensor)
    return attached
