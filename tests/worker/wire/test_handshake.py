from __future__ import annotations

import json
import queue
import struct
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpcgroup.contract import PROTOCOL_VERSION
from rpcgroup.errors import HandshakeError
from rpcgroup.wire.handshake import MAX_HANDSHAKE, Hello, Identity, accept_handshake, dial_handshake

SECRET = b"s" * 32
DIALER = Identity("group", "a", 11, "/a.py")
LISTENER = Identity("group", "b", 22, "/b.py")
PATIENCE = 10.0


class Wire:
    """Both directions of one connection; an end that closes makes the other's read fail."""

    def __init__(self) -> None:
        self.sent: dict[str, bytes] = {"dialer": b"", "listener": b""}
        self._arrived: dict[str, bytes] = {"dialer": b"", "listener": b""}
        self._queues: dict[str, queue.SimpleQueue[bytes]] = {
            "dialer": queue.SimpleQueue(),
            "listener": queue.SimpleQueue(),
        }

    def send(self, sender: str) -> Callable[[bytes], None]:
        def send(data: bytes) -> None:
            self.sent[sender] += data
            self._queues[sender].put(data)

        return send

    def receive(self, sender: str) -> Callable[[int], bytes]:
        def receive(n: int) -> bytes:
            while len(self._arrived[sender]) < n:
                data = self._queues[sender].get(timeout=PATIENCE)
                if not data:
                    self._queues[sender].put(b"")
                    raise ConnectionResetError("closed")
                self._arrived[sender] += data
            taken, self._arrived[sender] = self._arrived[sender][:n], self._arrived[sender][n:]
            return taken

        return receive

    def close(self, sender: str) -> None:
        self._queues[sender].put(b"")


def shake(
    *,
    dialer_secret: bytes = SECRET,
    listener_secret: bytes = SECRET,
    dialer: Identity = DIALER,
    listener: Identity = LISTENER,
    to: tuple[str, int] = ("b", 22),
    admit: Callable[[Hello], int] = lambda hello: 5,
    wire: Wire | None = None,
) -> tuple[Any, Any, Wire]:
    """Run both sides; returns what each returned or raised, and the wire."""
    wire = wire or Wire()
    results: dict[str, Any] = {}

    def accept() -> None:
        try:
            results["listener"] = accept_handshake(
                wire.send("listener"), wire.receive("dialer"), listener_secret, listener, admit
            )
        except Exception as exc:
            results["listener"] = exc
        wire.close("listener")

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        results["dialer"] = dial_handshake(
            *(wire.send("dialer"), wire.receive("listener"), dialer_secret, dialer, *to, "channel-1", 7, True)
        )
    except Exception as exc:
        results["dialer"] = exc
    wire.close("dialer")
    thread.join(PATIENCE)
    return results["dialer"], results["listener"], wire


def accept_bytes(data: bytes, admit: Callable[[Hello], int] | None = None) -> tuple[Exception, bytes]:
    """What the listener makes of a stranger who sends these bytes, and what it answers."""
    wire = Wire()
    wire.send("dialer")(data)
    wire.close("dialer")
    admitted: list[Hello] = []
    with pytest.raises((HandshakeError, ConnectionResetError)) as raised:
        accept_handshake(
            wire.send("listener"),
            wire.receive("dialer"),
            SECRET,
            LISTENER,
            admit or (lambda hello: admitted.append(hello) or 0),  # type: ignore[func-returns-value]
        )
    assert not admitted
    return raised.value, wire.sent["listener"]


def message(kind: int, content: Any, version: int = PROTOCOL_VERSION, magic: bytes = b"RPCG") -> bytes:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<4sBBH", magic, version, kind, len(data)) + data


HELLO = {
    "group": "group",
    "name": "a",
    "incarnation": 11,
    "main": "",
    "to": "b",
    "to_incarnation": 22,
    "channel": "c",
    "received": 0,
    "resuming": False,
    "nonce": "00",
}


def test_two_who_know_the_secret_learn_of_each_other() -> None:
    dialer, listener, _ = shake()
    assert dialer == (LISTENER, 5)
    assert listener == Hello(DIALER, "channel-1", 7, True)


def test_the_secret_does_not_travel() -> None:
    *_, wire = shake()
    assert SECRET not in wire.sent["dialer"] + wire.sent["listener"]


def test_a_dialer_without_the_secret_is_refused_and_learns_why() -> None:
    """It cannot even tell the true listener from another: it sees a proof that it cannot check."""
    dialer, listener, _ = shake(dialer_secret=b"guess")
    assert isinstance(dialer, HandshakeError)
    assert "b does not know this group's secret" in str(dialer)
    assert isinstance(listener, (HandshakeError, ConnectionResetError))


def test_a_listener_without_the_secret_is_found_out_before_the_dialer_proves_anything() -> None:
    dialer, _, wire = shake(listener_secret=b"guess")
    assert isinstance(dialer, HandshakeError)
    assert "does not know this group's secret" in str(dialer)
    assert wire.sent["dialer"].count(b"RPCG") == 1, "HELLO only"


def test_a_dialer_that_proves_nothing_is_refused() -> None:
    error, answer = accept_bytes(message(1, HELLO) + message(3, {"proof": "00" * 32}))
    assert "it does not know this group's secret" in str(error)
    assert b"refused" not in answer
    assert b"it does not know this group's secret" in answer


def test_a_replayed_handshake_is_refused() -> None:
    """The listener's nonce is in what a proof proves."""
    *_, recorded = shake()
    error, _ = accept_bytes(recorded.sent["dialer"])
    assert "it does not know this group's secret" in str(error)


def test_a_listeners_proof_is_not_a_dialers() -> None:
    """Else a stranger could have the listener answer its own challenge by reflecting it."""
    wire = Wire()
    wire.send("dialer")(message(1, HELLO))
    state: dict[str, str] = {}

    def send(data: bytes) -> None:
        if data[5] == 2:
            state["proof"] = json.loads(data[8:])["proof"]
            wire.send("dialer")(message(3, state))

    with pytest.raises(HandshakeError, match="does not know this group's secret"):
        accept_handshake(send, wire.receive("dialer"), SECRET, LISTENER, lambda hello: 0)
    assert state["proof"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"dialer": Identity("other", "a", 11)}, "it is of group 'other', this is group 'group'"),
        ({"to": ("c", 22)}, "it wants 'c' of incarnation 22, this is 'b' of incarnation 22"),
        ({"to": ("b", 21)}, "it wants 'b' of incarnation 21, this is 'b' of incarnation 22"),
    ],
    ids=["group", "name", "incarnation"],
)
def test_the_wrong_worker_is_refused_and_both_know_why(change: dict[str, Any], why: str) -> None:
    dialer, listener, _ = shake(**change)
    assert why in str(listener)
    assert isinstance(dialer, HandshakeError)
    assert f"refused: {why}" in str(dialer)


def test_a_refusal_by_the_listener_reaches_the_dialer() -> None:
    def admit(hello: Hello) -> int:
        raise HandshakeError("this channel is not known here any more" + "!" * 5000)

    dialer, listener, _ = shake(admit=admit)
    assert isinstance(listener, HandshakeError)
    assert "refused: this channel is not known here any more" in str(dialer)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "does not speak this protocol: it began with b'GET '"),
        (message(1, HELLO, version=PROTOCOL_VERSION + 1), f"speaks protocol version {PROTOCOL_VERSION + 1}"),
        (struct.pack("<4sBBH", b"RPCG", 1, 1, MAX_HANDSHAKE + 1), "4097 bytes is over the cap of 4096"),
        (message(1, b"{not json"), "no JSON"),
        (message(1, b"\xff\xfe\xfd"), "no JSON"),
        (message(1, b"[" * 4000), "no JSON"),
        (message(1, [1]), "no JSON object"),
        (message(3, HELLO), "expected handshake message 1, got 3"),
        (message(1, {**HELLO, "name": 5}), "field 'name' is not a text"),
        (message(1, {**HELLO, "incarnation": True}), "field 'incarnation' is not a number"),
        (message(1, {**HELLO, "incarnation": -1}), "field 'incarnation' is not a number"),
        (message(1, HELLO) + message(3, {"proof": "é" * 10}), "does not know this group's secret"),
        (message(1, HELLO) + message(3, {"proof": "\ud800"}), "does not know this group's secret"),
        (message(1, HELLO) + message(3, {"proof": None}), "field 'proof' is not a text"),
        (message(1, {**HELLO, "nonce": ["\ud800" * 50]}) + message(3, {"proof": ""}), "does not know"),
    ],
)
def test_what_is_no_handshake_is_refused_with_its_reason(data: bytes, why: str) -> None:
    error, _ = accept_bytes(data)
    assert isinstance(error, HandshakeError)
    assert why in str(error)


@given(st.binary(max_size=300), st.integers(0, 4))
def test_any_bytes_at_any_step_are_refused(garbage: bytes, kind: int) -> None:
    accept_bytes(garbage)
    accept_bytes(message(kind, garbage))
    accept_bytes(message(1, HELLO) + garbage)
    accept_bytes(message(1, HELLO) + message(kind, garbage))


@given(
    st.dictionaries(
        st.sampled_from([*HELLO, "proof"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
            ),
            max_leaves=4,
        ),
    )
)
def test_any_fields_are_refused(fields: dict[str, Any]) -> None:
    accept_bytes(message(1, {**HELLO, **fields}) + message(3, fields))


@given(st.data())
def test_a_handshake_that_breaks_off_is_no_handshake(data: st.DataObject) -> None:
    *_, recorded = shake()
    whole = recorded.sent["dialer"]
    accept_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])


def test_what_a_listener_says_is_checked_too() -> None:
    for answer in (b"HTTP/1.1 400 Bad Request", message(2, b"[" * 4000), message(2, {"proof": "é"}), b"RP"):
        wire = Wire()
        wire.send("listener")(answer)
        wire.close("listener")
        with pytest.raises((HandshakeError, ConnectionResetError)):
            dial_handshake(
                *(wire.send("dialer"), wire.receive("listener"), SECRET, DIALER, "b", 22, "channel", 0, False)
            )


def test_an_identity_that_does_not_fit_is_the_callers_error() -> None:
    with pytest.raises(HandshakeError, match="over the cap"):
        dial_handshake(
            *(lambda data: None, lambda n: b"", SECRET, Identity("g", "x" * 5000, 1), "b", 22, "c", 0, False)
        )
