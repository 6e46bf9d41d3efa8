from __future__ import annotations

import threading

from rpcgroup.cuda.traffic import RECEIVED, SENT, Traffic
from rpcgroup.wire.payloads import IPC, Payload


def test_bytes_count_by_peer_direction_and_path() -> None:
    traffic = Traffic()
    assert traffic.total == {"sent_host": 0, "sent_ipc": 0, "received_host": 0, "received_ipc": 0}
    traffic.add("b", SENT, [Payload(5, 0), Payload(70, 1, IPC, b"x"), Payload(1, 0)])
    traffic.add("b", SENT, [Payload(4, 0)])
    traffic.add("c", RECEIVED, [Payload(300, 0, IPC, b"x")])
    assert traffic.total == {"sent_host": 10, "sent_ipc": 70, "received_host": 0, "received_ipc": 300}
    assert traffic.by_peer(9) == {"c": {"received": {"ipc": 300}}, "b": {"sent": {"host": 10, "ipc": 70}}}


def test_those_with_the_most_bytes_are_shown() -> None:
    traffic = Traffic()
    for size, peer in enumerate("abcd"):
        traffic.add(peer, SENT, [Payload(size, 0)])
    assert list(traffic.by_peer(2)) == ["d", "c"]
    assert list(traffic.by_peer(9)) == ["d", "c", "b"]  # nothing has gone to a


def test_of_who_has_gone_the_total_keeps_what_there_was() -> None:
    traffic = Traffic()
    traffic.add("b", SENT, [Payload(5, 0)])
    traffic.forget("b")
    traffic.forget("b")
    assert traffic.by_peer(9) == {}
    assert traffic.total["sent_host"] == 5


def test_threads_lose_nothing() -> None:
    traffic = Traffic()
    payloads = [Payload(1, 0)]
    threads = [
        threading.Thread(target=lambda: [traffic.add("b", SENT, payloads) for _ in range(200)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert traffic.by_peer(1) == {"b": {"sent": {"host": 800}}}
