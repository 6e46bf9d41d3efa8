from __future__ import annotations

import gc
import threading
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from rpcgroup.transport.memory_pool import MAX_TYPES, SMALLEST, ReceivePool, size_class


def address(buffer: Any) -> int:
    return torch.frombuffer(buffer, dtype=torch.uint8).data_ptr()


@given(st.integers(SMALLEST, 1 << 40))
def test_a_class_is_at_most_an_eighth_larger_than_its_size(size: int) -> None:
    capacity = size_class(size)
    assert size <= capacity <= size * 9 / 8
    assert capacity % 4096 == 0
    assert size_class(capacity) == capacity


def test_small_buffers_do_not_come_from_the_pool() -> None:
    pool = ReceivePool()
    for size in (0, 1, SMALLEST - 1):
        assert isinstance(pool.allocate(size), bytearray)
        assert len(pool.allocate(size)) == size


def test_memory_is_used_again_once_the_last_view_of_it_is_gone() -> None:
    pool = ReceivePool()
    buffer = pool.allocate(SMALLEST)
    first = address(buffer)
    tensor = torch.frombuffer(buffer, dtype=torch.float32)
    view = tensor[1000:2000].view(10, 100)[3]
    del buffer, tensor
    gc.collect()
    assert pool.idle_bytes == 0, "a view of it lives"
    other = pool.allocate(SMALLEST)
    assert address(other) != first
    del view
    gc.collect()
    assert pool.idle_bytes == size_class(SMALLEST)
    again = pool.allocate(SMALLEST)
    assert address(again) == first
    assert pool.idle_bytes == 0


def test_sizes_of_one_class_share_their_memory() -> None:
    pool = ReceivePool()
    size = SMALLEST + 1
    first = address(pool.allocate(size))
    gc.collect()
    buffer = pool.allocate(size + 5)
    assert address(buffer) == first
    assert memoryview(buffer).nbytes == size + 5


def test_what_is_kept_idle_is_bounded() -> None:
    pool = ReceivePool(idle_limit=3 * SMALLEST)
    held = [pool.allocate(SMALLEST) for _ in range(10)]
    held.clear()
    gc.collect()
    assert pool.idle_bytes == 3 * SMALLEST
    kept = [pool.allocate(SMALLEST) for _ in range(4)]
    assert pool.idle_bytes == 0
    kept.clear()
    gc.collect()
    assert pool.idle_bytes == 3 * SMALLEST


def test_memory_larger_than_the_bound_goes_back_to_the_system() -> None:
    pool = ReceivePool(idle_limit=SMALLEST)
    pool.allocate(2 * SMALLEST)
    gc.collect()
    assert pool.idle_bytes == 0


def test_idle_memory_of_other_sizes_makes_room() -> None:
    """Else the first sizes of a program keep the pool for ever, and the later ones are never used again."""
    pool = ReceivePool(idle_limit=4 * SMALLEST)
    held = [pool.allocate(SMALLEST) for _ in range(4)]
    held.clear()
    gc.collect()
    torch.frombuffer(pool.allocate(3 * SMALLEST), dtype=torch.uint8).fill_(7)
    gc.collect()
    assert pool.idle_bytes == 4 * SMALLEST
    assert pool.allocate(3 * SMALLEST)[0] == b"\7", "new memory is zero"


def test_content_of_many_threads_is_never_mixed_up() -> None:
    pool = ReceivePool(idle_limit=6 * SMALLEST)
    wrong: list[str] = []

    def churn(n: int) -> None:
        for turn in range(60):
            buffer = pool.allocate(SMALLEST + 4096 * (turn % 3))
            tensor = torch.frombuffer(buffer, dtype=torch.uint8)
            del buffer
            tensor.fill_(n)
            if int(tensor[0]) != n or int(tensor[-1]) != n or not bool((tensor[::4096] == n).all()):
                wrong.append(f"thread {n}, turn {turn}")

    threads = [threading.Thread(target=churn, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    assert not wrong
    assert 0 <= pool.idle_bytes <= 6 * SMALLEST + 8 * 2 * SMALLEST


def test_many_sizes_do_not_pile_up() -> None:
    pool = ReceivePool(idle_limit=0)
    for n in range(MAX_TYPES + 10):
        pool.allocate(SMALLEST + n)
    assert len(pool._types) <= MAX_TYPES
