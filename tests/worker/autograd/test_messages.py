from __future__ import annotations

import pytest

from rpcgroup.autograd.messages import HEAD_SIZE, Head, head_of, read_head, unwrap
from rpcgroup.errors import RemoteProtocolError
from rpcgroup.wire.frames import Body


@pytest.mark.parametrize(
    "head",
    [
        Head(0),
        Head(5 << 48 | 7, 3 << 48 | 9, 3),
        Head((1 << 60) << 48 | 7, 1, 2, (1 << 63) << 48 | (1 << 48) - 1, 1 << 60, 77, True),
    ],
)
def test_a_head_comes_back(head: Head) -> None:
    """A worker's id can be an incarnation, which is more than torch's 16 bits."""
    assert read_head(head.pack()) == head


def test_what_stands_behind_the_head() -> None:
    body = Body(b"8bytes.." + Head(1).pack() + b"rest", 8, None)
    assert head_of(body) == Head(1)
    inner = unwrap(body)
    assert inner.data[inner.start :] == b"rest"
    assert HEAD_SIZE % 16 == 0  # tensors behind it stay aligned


@pytest.mark.parametrize("body", [None, Body(b"short", 0, None)])
def test_a_message_without_a_head_is_refused(body: Body | None) -> None:
    with pytest.raises(RemoteProtocolError, match="no head"):
        head_of(body)
