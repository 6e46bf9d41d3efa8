"""What an autograd message carries besides its tensors: a head of fixed size.

    FORWARD_AUTOGRAD_REQ    context, message, kind of the request that it wraps, origin; stands before that
                            request's body
    FORWARD_AUTOGRAD_RESP   context, message, origin; stands before the answer's body
    BACKWARD_AUTOGRAD_REQ   context, message, pass, origin, weight, whether to retain the graph; stands before the
                            gradients
    BACKWARD_AUTOGRAD_RESP  context, message (a number of its own, that it counts once), pass; the first of its
                            values: the weights or the error follow
    CLEANUP_AUTOGRAD_CONTEXT_REQ   context; its only value

An id is (worker id << 48 | counter). A worker id can be an incarnation, which needs more than the 16 bits that
torch has for it, so the halves travel apart.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from rpcgroup.errors import RemoteProtocolError
from rpcgroup.wire.frames import Body

__all__ = ["COUNTER_BITS", "HEAD_SIZE", "Head", "head_of", "read_head", "unwrap"]

COUNTER_BITS: Final = 48
_MASK: Final = (1 << COUNTER_BITS) - 1

# A multiple of 16 bytes: the tensors behind it stay aligned.
_HEAD: Final = struct.Struct("<10Q")
HEAD_SIZE: Final = _HEAD.size


class Head(NamedTuple):
    context_id: int
    message_id: int = 0
    kind: int = 0
    """The `MessageType` of the request that is wrapped."""
    pass_id: int = 0
    origin: int = 0
    """Incarnation of the worker that called backward; of a forwarded message, of the one that made the context."""
    weight: int = 0
    """See `rpcgroup.autograd.weight`."""
    retain_graph: bool = False

    def pack(self) -> bytes:
        context, message, kind, pass_id, origin, weight, retain_graph = self
        return _HEAD.pack(
            *(context >> COUNTER_BITS, context & _MASK),
            *(message >> COUNTER_BITS, message & _MASK),
            *(pass_id >> COUNTER_BITS, pass_id & _MASK),
            *(origin, weight, kind, retain_graph),
        )


def head_of(body: Body | None) -> Head:
    """Of an enveloped message; raises `RemoteProtocolError` where there is none."""
    if body is None:
        raise RemoteProtocolError("an autograd message has no head")
    return read_head(body.data, body.start)


def read_head(data: bytes | bytearray, start: int = 0) -> Head:
    if len(data) < start + HEAD_SIZE:
        raise RemoteProtocolError("an autograd message has no head")
    context, context_low, message, message_low, pass_id, pass_low, *rest = _HEAD.unpack_from(data, start)
    origin, weight, kind, retain_graph = rest
    return Head(
        context << COUNTER_BITS | context_low,
        message << COUNTER_BITS | message_low,
        kind,
        pass_id << COUNTER_BITS | pass_low,
        origin,
        weight,
        bool(retain_graph),
    )


def unwrap(body: Body) -> Body:
    """What stands behind the head."""
    return body._replace(start=body.start + HEAD_SIZE)
