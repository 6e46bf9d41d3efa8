"""The handshake: both sides prove that they know the group's secret before either unpickles a byte.

    dialer -> listener   HELLO     who I am, who you should be, which channel this is, a nonce
    listener -> dialer   WELCOME   who I am, a nonce, HMAC(secret, "listener" + transcript)
    dialer -> listener   PROOF     HMAC(secret, "dialer" + transcript)
    listener -> dialer   READY     frames received on this channel so far    or    REFUSED   why

Each message is `RPCG`, u8 version, u8 kind, u16 length, then that many bytes of JSON; nothing longer than
`MAX_HANDSHAKE` is read. The transcript is HELLO and WELCOME without its proof, so both nonces are in it and a
recorded handshake proves nothing later. The secret never travels. This follows the shape of SCRAM (RFC 5802)
without its password stretching: the secret is random.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from rpcgroup.contract import PROTOCOL_VERSION
from rpcgroup.errors import HandshakeError

__all__ = ["MAX_HANDSHAKE", "Hello", "Identity", "accept_handshake", "dial_handshake"]

_MAGIC: Final = b"RPCG"
_PREFIX: Final = struct.Struct("<4sBBH")
MAX_HANDSHAKE: Final = 4096
"""Bytes of one handshake message: what a stranger can make this process read."""
MAX_REASON: Final = 500
"""Characters of a refusal."""

_HELLO, _WELCOME, _PROOF, _READY, _REFUSED = 1, 2, 3, 4, 5
_NONCE_BYTES: Final = 32

Send = Callable[[bytes], None]
Receive = Callable[[int], bytes]
"""Receive(n) gives exactly n bytes or raises."""


@dataclass(frozen=True)
class Identity:
    """One end of a connection."""

    group: str
    name: str
    incarnation: int
    main: str = ""
    """`main_identity()` of its program."""


@dataclass(frozen=True)
class Hello:
    """What the dialer asked for: `received` counts the frames of this channel that it has already.

    `resuming`: the channel must exist; a listener that has forgotten it refuses.
    """

    peer: Identity
    channel: str
    received: int
    resuming: bool


def dial_handshake(
    send: Send,
    receive: Receive,
    secret: bytes,
    me: Identity,
    peer_name: str,
    peer_incarnation: int,
    channel: str,
    received: int,
    resuming: bool,
) -> tuple[Identity, int]:
    """The dialer's side; returns the peer and how many frames of this channel it has received.

    Raises `HandshakeError` where the peer is not `peer_name` of that incarnation, does not know the secret,
    refuses, or does not speak this protocol.
    """
    hello = {
        "group": me.group,
        "name": me.name,
        "incarnation": me.incarnation,
        "main": me.main,
        "to": peer_name,
        "to_incarnation": peer_incarnation,
        "channel": channel,
        "received": received,
        "resuming": resuming,
        "nonce": secrets.token_hex(_NONCE_BYTES),
    }
    hello_bytes = _pack(_HELLO, hello)
    send(hello_bytes)
    welcome = _receive(receive, _WELCOME)
    proof = _text(welcome, "proof")
    transcript = _transcript(hello, {k: v for k, v in welcome.items() if k != "proof"})
    if not _equal(proof, _prove(secret, "listener", transcript)):
        raise HandshakeError(f"{peer_name} does not know this group's secret")
    send(_pack(_PROOF, {"proof": _prove(secret, "dialer", transcript)}))
    ready = _receive(receive, _READY)
    peer = _identity(welcome)
    return peer, _number(ready, "received")


def accept_handshake(
    send: Send,
    receive: Receive,
    secret: bytes,
    me: Identity,
    admit: Callable[[Hello], int],
) -> Hello:
    """The listener's side; returns what the proven peer asked for.

    `admit` runs after the proof, returns how many frames of that channel have been received here, and raises
    `HandshakeError` to refuse. Whatever is wrong is told to the dialer and raised as `HandshakeError`.
    """
    try:
        hello = _receive(receive, _HELLO)
        peer = _identity(hello)
        welcome = {
            "group": me.group,
            "name": me.name,
            "incarnation": me.incarnation,
            "main": me.main,
            "nonce": secrets.token_hex(_NONCE_BYTES),
        }
        transcript = _transcript(hello, welcome)
        send(_pack(_WELCOME, {**welcome, "proof": _prove(secret, "listener", transcript)}))
        proof = _text(_receive(receive, _PROOF), "proof")
        if not _equal(proof, _prove(secret, "dialer", transcript)):
            raise HandshakeError("it does not know this group's secret")
        if peer.group != me.group:
            raise HandshakeError(f"it is of group {peer.group!r}, this is group {me.group!r}")
        wanted = _text(hello, "to"), _number(hello, "to_incarnation")
        if wanted != (me.name, me.incarnation):
            raise HandshakeError(
                f"it wants {wanted[0]!r} of incarnation {wanted[1]}, "
                f"this is {me.name!r} of incarnation {me.incarnation}"
            )
        channel, received = _text(hello, "channel"), _number(hello, "received")
        result = Hello(peer, channel, received, hello.get("resuming") is True)
        send(_pack(_READY, {"received": admit(result)}))
        return result
    except HandshakeError as exc:
        try:
            send(_pack(_REFUSED, {"reason": str(exc)[:MAX_REASON]}))
        except OSError:
            pass
        raise


def _prove(secret: bytes, role: str, transcript: bytes) -> str:
    return hmac.new(secret, role.encode() + b"\0" + transcript, hashlib.sha256).hexdigest()


def _equal(proof: str, expected: str) -> bool:
    # As bytes: compare_digest raises for a str that is not ASCII.
    return hmac.compare_digest(proof.encode(errors="replace"), expected.encode())


def _transcript(hello: dict[str, Any], welcome: dict[str, Any]) -> bytes:
    return json.dumps([hello, welcome], sort_keys=True).encode()


def _pack(kind: int, content: dict[str, Any]) -> bytes:
    data = json.dumps(content).encode()
    if len(data) > MAX_HANDSHAKE:
        raise HandshakeError(f"a handshake message of {len(data)} bytes is over the cap of {MAX_HANDSHAKE}")
    return _PREFIX.pack(_MAGIC, PROTOCOL_VERSION, kind, len(data)) + data


def _receive(receive: Receive, expected: int) -> dict[str, Any]:
    magic, version, kind, length = _PREFIX.unpack(receive(_PREFIX.size))
    if magic != _MAGIC:
        raise HandshakeError(f"it does not speak this protocol: it began with {magic!r}")
    if version != PROTOCOL_VERSION:
        raise HandshakeError(f"it speaks protocol version {version}, this is version {PROTOCOL_VERSION}")
    if length > MAX_HANDSHAKE:
        raise HandshakeError(f"a handshake message of {length} bytes is over the cap of {MAX_HANDSHAKE}")
    try:
        content = json.loads(receive(length))
    except (ValueError, RecursionError) as exc:
        raise HandshakeError("a handshake message is no JSON") from exc
    if not isinstance(content, dict):
        raise HandshakeError("a handshake message is no JSON object")
    if kind == _REFUSED:
        raise HandshakeError(f"refused: {str(content.get('reason'))[:MAX_REASON]}")
    if kind != expected:
        raise HandshakeError(f"expected handshake message {expected}, got {kind}")
    return content


def _identity(content: dict[str, Any]) -> Identity:
    return Identity(
        _text(content, "group"),
        _text(content, "name"),
        _number(content, "incarnation"),
        _text(content, "main"),
    )


def _text(content: dict[str, Any], key: str) -> str:
    value = content.get(key)
    if not isinstance(value, str):
        raise HandshakeError(f"handshake field {key!r} is not a text")
    return value


def _number(content: dict[str, Any], key: str) -> int:
    value = content.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise HandshakeError(f"handshake field {key!r} is not a number")
    return value
