"""Python objects to bodies and back: pickle protocol 5, tensors, arrays and references beside the pickle.

A body is one of
    NOTHING   no bytes: no arguments, or None
    PICKLE    one pickle of simple values
    TENSORS   u16 count, padding to 8, then the tensors: arguments that are all plain tensors
    OBJECTS   the general case: see `rpcgroup.wire.objects`
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import torch

from rpcgroup.errors import RemoteProtocolError
from rpcgroup.wire.forms import (
    FORMAT_MASK,
    NOTHING,
    OBJECTS,
    PICKLE,
    TENSORS,
    Encoded,
    Placement,
    ReferenceForks,
    require_size,
)
from rpcgroup.wire.frames import MAX_BODY, Body
from rpcgroup.wire.objects import Put, decode_objects, pickled_objects, references_in
from rpcgroup.wire.tensors import MAX_BUFFERS, can_travel, decode_tensor, encode_tensor

__all__ = ["Adopt", "Codec"]

_SIMPLE: Final = frozenset((int, float, str, bool, type(None), bytes))
_Tensor = torch.Tensor
Adopt = Callable[[list[torch.Tensor]], list[torch.Tensor]]
_COUNT: Final = struct.Struct("<HHI")
_NOTHING_ENCODED: Final = Encoded(NOTHING, b"", [])


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
            pickled = pickled_objects(values, self._reference_type, self._tensor_type, placement, by_value)
            if sent is not None:
                sent += _requiring_grad(pickled.attached)
            return pickled.finish(forks, self._max_body)
        require_size(len(encoded.body) + 8 * len(encoded.buffers), self._max_body)
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
        replace = None if adopt is None else partial(_adopted, adopt=adopt)
        return decode_objects(data, start, list(buffers or ()), payloads, self._put, receive, replace)

    def references_in(self, flags: int, body: Body | None) -> list[Any]:
        """The references of a body that will not be decoded."""
        if flags & FORMAT_MASK != OBJECTS or body is None:
            return []
        data, start, _, _ = body
        return references_in(data, start)


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


def _decode_tensors(body: bytearray, start: int, buffers: Any) -> list[Any]:
    count = _COUNT.unpack_from(body, start)[0]
    offset = start + 8
    tensors = []
    for _ in range(count):
        tensor, offset = decode_tensor(body, offset, start, buffers)
        tensors.append(tensor)
    return tensors


def _requiring_grad(values: list[Any]) -> list[torch.Tensor]:
    return [value for value in values if isinstance(value, _Tensor) and value.requires_grad]


def _adopted(values: list[Any], adopt: Adopt) -> list[Any]:
    places = [i for i, value in enumerate(values) if isinstance(value, _Tensor) and value.requires_grad]
    if places:
        for place, tensor in zip(places, adopt([values[i] for i in places]), strict=True):
            values[place] = tensor
    return values
