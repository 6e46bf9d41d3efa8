from __future__ import annotations

import asyncio

import pytest

from rpcgroup_operator.turns import Turns

LARGE, SMALL, THIRD = ("ns", "large"), ("ns", "small"), ("ns", "third")
PATIENCE = 30.0


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


class Requests:
    """Each waits at a gate of its own once it has its turn."""

    def __init__(self, limit: int) -> None:
        self.turns = Turns(limit)
        self.begun: list[tuple[str, str]] = []
        self.gates: list[asyncio.Event] = []

    def ask(self, group: tuple[str, str]) -> asyncio.Task[None]:
        return asyncio.create_task(self._ask(group))

    async def _ask(self, group: tuple[str, str]) -> None:
        async with self.turns.turn(group):
            self.begun.append(group)
            gate = asyncio.Event()
            self.gates.append(gate)
            await gate.wait()

    async def end(self, number: int) -> None:
        self.gates[number].set()
        await settle()

    async def end_all(self, tasks: list[asyncio.Task[None]]) -> None:
        while not all(task.done() for task in tasks):
            for gate in self.gates:
                gate.set()
            await asyncio.sleep(0)


def test_a_few_at_once_and_the_groups_in_turn() -> None:
    async def drive() -> None:
        requests = Requests(2)
        tasks = [requests.ask(LARGE) for _ in range(6)]
        await settle()
        assert requests.begun == [LARGE] * 2
        tasks += [requests.ask(SMALL), requests.ask(THIRD)]
        await settle()
        for number in range(4):
            await requests.end(number)
        assert requests.begun[2:] == [LARGE, SMALL, THIRD, LARGE]
        await requests.end_all(tasks)
        assert requests.begun.count(LARGE) == 6

    asyncio.run(asyncio.wait_for(drive(), PATIENCE))


def test_one_that_is_cancelled_holds_nobody_up() -> None:
    async def drive() -> None:
        requests = Requests(1)
        first, waiting, last = requests.ask(LARGE), requests.ask(LARGE), requests.ask(SMALL)
        await settle()
        waiting.cancel()
        await settle()
        await requests.end(0)
        assert requests.begun == [LARGE, SMALL]
        await requests.end_all([first, last])

    asyncio.run(asyncio.wait_for(drive(), PATIENCE))


def test_a_turn_that_comes_as_its_request_is_cancelled_goes_to_the_next() -> None:
    async def drive() -> None:
        requests = Requests(1)
        tasks = [requests.ask(LARGE), requests.ask(SMALL), requests.ask(THIRD)]
        await settle()
        requests.gates[0].set()
        while not tasks[0].done():
            await asyncio.sleep(0)
        tasks[1].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[1]
        await settle()
        assert THIRD in requests.begun
        await requests.end_all(tasks)

    asyncio.run(asyncio.wait_for(drive(), PATIENCE))
