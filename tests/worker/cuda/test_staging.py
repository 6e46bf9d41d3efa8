from __future__ import annotations

import gc
import threading

import pytest

from rpcgroup.cuda.staging import PinnedPool, Share, staging_of
from rpcgroup.testing.recording_device import RecordingDevice

CHUNK = 1024
SECONDS = 20.0


def pool_of(blocks: int) -> PinnedPool:
    return PinnedPool(RecordingDevice(), limit=blocks * CHUNK, chunk=CHUNK)


def test_a_block_is_in_use_until_the_last_view_of_it_dies() -> None:
    pool = pool_of(1)
    staging = pool.try_take()
    assert staging is not None and pool.try_take() is None and pool.in_use == 1
    views = [staging.memory(100)[10:20], memoryview(staging.memory(CHUNK)).cast("B")]
    assert [len(view) for view in views] == [10, CHUNK]
    del staging
    assert pool.try_take() is None
    del views[0]
    assert pool.try_take() is None
    views.clear()
    assert pool.in_use == 0 and pool.try_take() is not None


def test_what_is_written_is_in_the_block() -> None:
    staging = pool_of(1).try_take()
    assert staging is not None
    staging.memory(4)[:] = b"abcd"
    assert bytes(staging.pinned[:4].tolist()) == b"abcd"


def test_memory_leads_to_its_block_and_other_memory_to_none() -> None:
    staging = pool_of(1).try_take()
    assert staging is not None
    memory = staging.memory(10)
    assert staging_of(memory) is staging_of(memory[2:4]) is staging
    for other in (b"abc", bytearray(3), memoryview(b"abc")):
        assert staging_of(other) is None


def test_blocks_are_used_again() -> None:
    pool = pool_of(4)
    addresses = set()
    for _ in range(10):
        first, second = pool.try_take(), pool.try_take()
        assert first is not None and second is not None
        addresses |= {first.pinned.data_ptr(), second.pinned.data_ptr()}
        del first, second
    assert len(addresses) == 2


def test_whoever_waits_gets_what_comes_back() -> None:
    pool = pool_of(1)
    held = [pool.try_take()]
    taken = []
    thread = threading.Thread(target=lambda: taken.append(pool.take(SECONDS)))
    thread.start()
    held.clear()
    thread.join(SECONDS)
    assert not thread.is_alive() and taken[0] is not None


def test_a_wait_ends() -> None:
    pool = pool_of(1)
    held = pool.try_take()
    assert pool.take(0.01) is None
    del held


def test_memory_that_cannot_be_pinned_costs_no_block(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = RecordingDevice()
    pool = PinnedPool(runtime, limit=CHUNK, chunk=CHUNK)
    with monkeypatch.context() as patch:

        def refuse(size: int) -> None:
            raise RuntimeError(f"cannot pin {size}")

        patch.setattr(runtime, "pinned", refuse)
        with pytest.raises(RuntimeError, match="cannot pin 1024"):
            pool.try_take()
        with pytest.raises(RuntimeError, match="cannot pin 1024"):
            pool.take(SECONDS)
    assert pool.try_take() is not None


def test_a_block_comes_back_from_inside_the_garbage_collector() -> None:
    """Whatever the thread is doing with the pool just then."""
    pool = pool_of(2)
    for _ in range(200):
        cycle: list[object] = [pool.take(SECONDS)]
        cycle.append(cycle)
        del cycle
        if not pool.try_take():
            gc.collect()
    gc.collect()
    assert pool.in_use == 0


def test_many_threads_never_hold_more_than_there_is() -> None:
    pool = pool_of(3)
    most = []
    addresses = set()

    def work() -> None:
        for _ in range(100):
            staging = pool.take(SECONDS)
            assert staging is not None
            addresses.add(staging.pinned.data_ptr())
            most.append(pool.in_use)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert len(most) == 600 and max(most) <= 3 and len(addresses) <= 3
    assert pool.in_use == 0


def test_one_share_leaves_the_rest_of_the_pool_to_others() -> None:
    pool = pool_of(4)
    slow, other = Share(pool), Share(pool, 3)
    assert (slow.blocks, slow.chunk) == (2, CHUNK)
    kept = [slow.try_take(), slow.take(SECONDS)]
    assert None not in kept and slow.try_take() is None and slow.take(0.01) is None
    assert pool.in_use == 2
    others = [other.try_take(), other.try_take()]
    assert None not in others and other.try_take() is None  # the pool is empty
    others.clear()
    assert other.try_take() is not None and slow.try_take() is None
    kept.clear()
    assert pool.in_use == 0 and slow.try_take() is not None


def test_a_share_waits_for_what_comes_back() -> None:
    pool = pool_of(2)
    share = Share(pool)
    held = [share.try_take()]
    taken = []
    thread = threading.Thread(target=lambda: taken.append(share.take(SECONDS)))
    thread.start()
    held.clear()
    thread.join(SECONDS)
    assert not thread.is_alive() and taken[0] is not None


def test_memory_that_cannot_be_pinned_costs_no_share(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = RecordingDevice()
    share = Share(PinnedPool(runtime, limit=2 * CHUNK, chunk=CHUNK))
    with monkeypatch.context() as patch:

        def refuse(size: int) -> None:
            raise RuntimeError(f"cannot pin {size}")

        patch.setattr(runtime, "pinned", refuse)
        with pytest.raises(RuntimeError, match="cannot pin"):
            share.try_take()
    assert share.try_take() is not None
