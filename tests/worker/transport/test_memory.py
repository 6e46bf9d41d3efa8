from __future__ import annotations

import pytest

from rpcgroup.transport.memory import MemoryTransport


def test_each_instance_is_a_network_of_its_own() -> None:
    here, there = MemoryTransport(), MemoryTransport()
    listener = here.listen("a", 1)
    with pytest.raises(ConnectionRefusedError, match="nobody listens on memory://a-1"):
        there.connect(listener.address, 1)
    listener.close()


def test_names_are_never_given_twice() -> None:
    transport = MemoryTransport()
    first = transport.listen("a", 0)
    first.close()
    second = transport.listen("a", 0)
    assert first.address != second.address
    second.close()
