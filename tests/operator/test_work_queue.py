from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

from rpcgroup_operator.work_queue import WorkQueue

Key = tuple[str, str]
A, B = ("ns", "a"), ("ns", "b")
PATIENCE = 30.0


def run(
    work: Callable[[Key], Awaitable[float | None]],
    drive: Callable[[WorkQueue], Awaitable[None]],
    workers: int = 4,
) -> None:
    async def both() -> None:
        queue = WorkQueue(work, workers)
        serving = asyncio.create_task(queue.run())
        try:
            await asyncio.wait_for(drive(queue), PATIENCE)
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)

    asyncio.run(both())


def test_a_key_is_at_work_once_and_worked_on_again_if_it_was_added_meanwhile() -> None:
    gate = asyncio.Event()
    at_work: Counter[Key] = Counter()
    done: list[Key] = []

    async def work(key: Key) -> float | None:
        at_work[key] += 1
        assert at_work[key] == 1
        await gate.wait()
        at_work[key] -= 1
        done.append(key)
        return None

    async def drive(queue: WorkQueue) -> None:
        for key in (A, B, A, A):
            queue.add(key)
        while not (at_work[A] and at_work[B]):
            await asyncio.sleep(0)
        queue.add(A)
        queue.add(A)
        assert queue.busy
        gate.set()
        while len(done) < 3:
            await asyncio.sleep(0)
        assert sorted(done) == [A, A, B]

    run(work, drive)


def test_a_failure_is_tried_again_and_the_next_key_does_not_wait_for_it() -> None:
    runs: Counter[Key] = Counter()
    succeeded = asyncio.Event()

    async def work(key: Key) -> float | None:
        runs[key] += 1
        if key == A and runs[A] < 3:
            raise OSError("no answer")
        if key == A:
            succeeded.set()
        return None

    async def drive(queue: WorkQueue) -> None:
        queue.add(A)
        queue.add(B)
        await succeeded.wait()
        assert runs == {A: 3, B: 1}

    run(work, drive, workers=1)


def test_work_that_asks_for_it_is_done_again() -> None:
    runs: list[Key] = []
    twice = asyncio.Event()

    async def work(key: Key) -> float | None:
        runs.append(key)
        if len(runs) == 2:
            twice.set()
            return None
        return 0.01

    async def drive(queue: WorkQueue) -> None:
        queue.add(A)
        await twice.wait()

    run(work, drive)


def test_what_happens_while_a_key_rests_is_done_at_once() -> None:
    runs: list[Key] = []
    seen: list[int] = []
    news: list[int] = []

    async def work(key: Key) -> float | None:
        runs.append(key)
        seen.append(len(news))
        return 3600.0

    async def drive(queue: WorkQueue) -> None:
        queue.add(A)
        while not runs:
            await asyncio.sleep(0)
        for number in range(100):
            news.append(number)
            queue.add(A)
            await asyncio.sleep(0)
        while len(runs) < 2:
            await asyncio.sleep(0)
        assert seen == [0, 100]

    run(work, drive)


def test_the_earliest_of_several_times_counts() -> None:
    worked = asyncio.Event()

    async def work(key: Key) -> float | None:
        worked.set()
        return None

    async def drive(queue: WorkQueue) -> None:
        queue.add_after(A, 3600)
        queue.add_after(A, 0.01)
        queue.add_after(A, 3600)
        await worked.wait()

    run(work, drive)
