from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from rpcgroup.membership.store.client import Store


@pytest.fixture(params=["hash", "file", "tcp"])
def connect(
    request: pytest.FixtureRequest, tmp_path: Path, store_connector: Callable[..., Callable[[str], Store]]
) -> Iterator[Callable[[], Store]]:
    """Opens one and the same store, for another member each time."""
    with ExitStack() as stack:
        opened = store_connector(stack, request.param, tmp_path)
        yield lambda: opened("group")


@pytest.fixture
def store(connect: Callable[[], Store]) -> Store:
    return connect()
