"""Bodies of the form OBJECTS: any Python objects, with tensors, arrays and references beside their pickle.

The body is the `_OBJECTS` header, the attached tensors and references, the references as plain data, the order of the
buffers, the pickle. The pickle says `getitem(LIST, i)` for the i-th attached tensor or reference, where LIST is an
out-of-band buffer for which the receiver hands in its decoded list: the C unpickler picks the objects up and no Python
code runs. Pickle by reference is tried first, then `cloudpickle` by value.
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
from typing import Any, Final

import torch

from rpcgroup.errors import DevicePlacementError, RemoteProtocolError, SerializationError
from rpcgroup.wire.forms import OBJECTS, Encoded, Placement, ReferenceForks, require_size
from rpcgroup.wire.scripts import SCRIPTED, SCRIPTED_MODULES, reduce_script_module, reduce_scripted
from rpcgroup.wire.tensors import (
    INLINE_LIMIT,
    MAX_BUFFERS,
    OnDevice,
    decode_tensor,
    encode_device_tensor,
    encode_tensor,
    has_plain_data,
)
from rpcgroup.wire.unpicklable import find_unpicklable

__all__ = ["decode_objects", "pickled_objects", "references_in", "register_reducer"]

_Tensor = torch.Tensor
_sparse_coo = torch.sparse_coo
Put = Callable[[torch.Tensor, int], torch.Tensor]
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


def pickled_objects(
    values: tuple[Any, ...],
    reference_type: type | None,
    tensor_type: type[torch.Tensor],
    placement: Placement | None,
    by_value: bool,
) -> Pickling:
    """The values pickled, for `Pickling.finish` to make a body of; raises `SerializationError`."""
    try:
        pickled = Pickling(reference_type, tensor_type, placement)
        pickled.dump(values)
        if by_value and b"__main__" in pickled.stream.getvalue():
            raise pickle.PicklingError("refers to this program's __main__")
        return pickled
    except RecursionError as exc:
        raise SerializationError("cannot be sent: nested too deeply to pickle") from exc
    except DevicePlacementError:
        raise
    except Exception as exc:
        by_reference = exc
    pickled = Pickling(reference_type, tensor_type, placement)
    try:
        pickled.dump_by_value(values)
    except SerializationError:
        raise
    except Exception as exc:
        place = find_unpicklable(values, pickled.dump_apart)
        also = f" (by reference: {by_reference})" if str(by_reference) != str(exc) else ""
        raise SerializationError(f"cannot be sent: {type(exc).__name__}: {exc}{place}{also}") from exc
    return pickled


class Pickling:
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

    def dump_apart(self, value: Any) -> None:
        """Only to find out whether that can be pickled."""
        Pickling(self.reference_type, self.tensor_type, self.placement).dump_by_value((value,))

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
        require_size(offset + self.stream.tell() + 8 * len(buffers), max_body)
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


def decode_objects(
    body: bytearray,
    start: int,
    buffers: list[Any],
    payloads: Iterator[torch.Tensor],
    put: Put | None,
    receive: Callable[[list[Any]], list[Any]] | None,
    adopt: Callable[[list[Any]], list[Any]] | None,
) -> tuple[Any, ...]:
    """`adopt` gets what is attached, and gives what takes its place."""
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
        attached = adopt(attached)
    if order_size:
        raw = iter(buffers)
        order = view[tail + blob_size : tail + blob_size + order_size]
        lists: Any = [next(raw) if entry else attached for entry in order]
    else:
        lists = repeat(attached)
    values: tuple[Any, ...] = pickle.loads(view[len(body) - pickle_size :], buffers=lists)
    return values


def references_in(body: bytes | bytearray | memoryview, start: int) -> list[Any]:
    """The references of a body that will not be decoded, as plain data."""
    _, _, blob_size, order_size, pickle_size = _OBJECTS.unpack_from(body, start)
    end = len(body) - pickle_size - order_size
    if not blob_size or end - blob_size < start:
        return []
    references: list[Any] = pickle.loads(memoryview(body)[end - blob_size : end])
    return references


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
