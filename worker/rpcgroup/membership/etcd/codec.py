"""Protobuf's wire format for etcd's messages, without protobuf (docs/adr/0004-own-etcd-client.md).

A message is a dataclass whose fields are made by `wire`. A field whose default is None has explicit presence
(the members of a oneof); any other is left out where it has its default, as proto3 does.
Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass
from typing import Any, TypeVar

from rpcgroup.errors import RemoteProtocolError

__all__ = ["Kind", "decode", "encode", "wire"]

_Message = TypeVar("_Message")

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10


class Kind(enum.Enum):
    """The scalar types etcd's messages use. Enums travel as INT64; fixed and floating types do not occur."""

    INT64 = enum.auto()
    UINT64 = enum.auto()
    BOOL = enum.auto()
    BYTES = enum.auto()
    STRING = enum.auto()


_VARINTS = (Kind.INT64, Kind.UINT64, Kind.BOOL)
_DEFAULTS: dict[Kind, Any] = {
    Kind.INT64: 0,
    Kind.UINT64: 0,
    Kind.BOOL: False,
    Kind.BYTES: b"",
    Kind.STRING: "",
}


def wire(number: int, kind: Kind | type, *, repeated: bool = False, optional: bool = False) -> Any:
    """A dataclass field with that field number; `kind` is a scalar or a message class.

    `optional`: None where it is absent. A message field is always optional, a repeated one an empty list.
    """
    metadata = {"number": number, "kind": kind, "repeated": repeated}
    if repeated:
        return dataclasses.field(default_factory=list, metadata=metadata)
    default = _DEFAULTS[kind] if isinstance(kind, Kind) and not optional else None
    return dataclasses.field(default=default, metadata=metadata)


def encode(message: Any) -> bytes:
    out: list[bytes] = []
    for field in _plan(type(message)).fields:
        value = getattr(message, field.name)
        if field.repeated:
            for item in value:
                _encode_one(out, field, item)
        elif value != field.default:
            _encode_one(out, field, value)
    return b"".join(out)


def decode(cls: type[_Message], data: bytes) -> _Message:
    """Fields unknown to this table are skipped. Raises `RemoteProtocolError` for what is no such message."""
    try:
        return _decode(cls, data)
    except (IndexError, ValueError, TypeError) as exc:
        raise RemoteProtocolError(f"etcd sent what is no {cls.__name__}: {data[:40]!r}...: {exc}") from exc


@dataclass(frozen=True)
class _Field:
    name: str
    number: int
    kind: Kind | type
    repeated: bool
    default: Any
    tag: bytes


@dataclass(frozen=True)
class _Plan:
    fields: tuple[_Field, ...]
    by_number: dict[int, _Field]


_plans: dict[type, _Plan] = {}


def _plan(cls: type) -> _Plan:
    plan = _plans.get(cls)
    if plan is None:
        made = tuple(_field(field) for field in dataclasses.fields(cls))
        plan = _plans[cls] = _Plan(made, {field.number: field for field in made})
    return plan


def _field(field: dataclasses.Field[Any]) -> _Field:
    number, kind = field.metadata["number"], field.metadata["kind"]
    wire_type = _VARINT if kind in _VARINTS else _BYTES
    return _Field(
        field.name, number, kind, field.metadata["repeated"], field.default, _varint(number << 3 | wire_type)
    )


def _varint(value: int) -> bytes:
    """Negative numbers as 64-bit two's complement."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _encode_one(out: list[bytes], field: _Field, value: Any) -> None:
    out.append(field.tag)
    if field.kind in _VARINTS:
        out.append(_varint(int(value)))
        return
    if field.kind is Kind.BYTES:
        data = value
    elif field.kind is Kind.STRING:
        data = value.encode()
    else:
        data = encode(value)
    out.append(_varint(len(data)))
    out.append(data)


def _decode(cls: type[_Message], data: bytes) -> _Message:
    by_number = _plan(cls).by_number
    message = cls()
    at, end = 0, len(data)
    while at < end:
        tag, at = _read_varint(data, at)
        number, wire_type = tag >> 3, tag & 7
        value: Any
        if wire_type == _VARINT:
            value, at = _read_varint(data, at)
        elif wire_type == _BYTES:
            length, at = _read_varint(data, at)
            value = data[at : at + length]
            at += length
        elif wire_type in (_FIXED64, _FIXED32):
            value = None
            at += 8 if wire_type == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire_type}")
        if at > end:
            raise ValueError("truncated")
        field = by_number.get(number)
        if field is not None:
            _set(message, field, _value(field.kind, value))
    return message


def _set(message: Any, field: _Field, value: Any) -> None:
    if field.repeated:
        getattr(message, field.name).append(value)
    else:
        setattr(message, field.name, value)


def _value(kind: Kind | type, raw: int | bytes | None) -> Any:
    if isinstance(raw, int):
        if kind is Kind.INT64:
            return raw - (1 << 64) if raw >= 1 << 63 else raw
        if kind is Kind.UINT64:
            return raw
        if kind is Kind.BOOL:
            return bool(raw)
    elif isinstance(raw, bytes):
        if kind is Kind.BYTES:
            return raw
        if kind is Kind.STRING:
            return raw.decode()
        if isinstance(kind, type):
            return _decode(kind, raw)
    raise ValueError(f"a field of type {kind} in another wire type")


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    byte = data[at]
    if byte < 0x80:
        return byte, at + 1
    value, shift, start = byte & 0x7F, 7, at
    while True:
        at += 1
        byte = data[at]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (1 << 64) - 1, at + 1
        shift += 7
        if at - start >= _MAX_VARINT_BYTES - 1:
            raise ValueError("a varint of more than 10 bytes")
