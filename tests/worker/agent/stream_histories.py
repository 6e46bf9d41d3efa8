"""Random histories of calls with tensors on devices, which one process can run on its CPU too.

Users, each a thread of some worker's, make tensors, call other workers in every way there is, and use what comes back,
on streams of their own and with the events that a right user keeps. So whatever is not ordered is the product's fault.
A history is told by its number: `World` by that of its group, what the users do by its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from random import Random
from typing import Any, Final

import torch

from rpcgroup.agent.agent import Agent
from rpcgroup.agent.options import AgentOptions
from rpcgroup.cuda.runtime import Event
from rpcgroup.functions import async_execution
from rpcgroup.futures import Future, collect_all
from rpcgroup.rref.rref import RRef
from rpcgroup.testing.cluster import LocalCluster
from rpcgroup.testing.recording_device import RecordingDevice
from tests.worker.autograd.programs import SHAPES, Step, random_leaves, random_program, run_program

__all__ = ["World", "run_history"]

CPU: Final = torch.device("cpu")
DEADLINE: Final = 60.0
LARGE: Final = (40, 2, 3)
"""Of several chunks; to be used together with the shapes of the programs."""
CLOSE: Final = 1e-9
OPTIONS: Final = AgentOptions(rpc_timeout=DEADLINE / 2)
Program = Sequence[Step]
Tensors = list[torch.Tensor]
Map = dict[torch.device, torch.device]


class World:
    """A group over the recording device: who its members are, where their maps lead, what they have.

    One at a time: what is called at its members finds it in `current`.
    """

    def __init__(self, device: RecordingDevice, number: int) -> None:
        random = Random(f"world {number}")
        self.device = device
        self.number = number
        self.names = "abcd"[: random.randint(2, 4)]
        self.devices = [torch.device("cuda", index) for index in range(device.device_count())]
        self.maps = {
            (name, peer): random_map(random, self.devices)
            for name in self.names
            for peer in self.names
            if name != peer
        }
        self.anchors = {on: device.tensor(torch.zeros(1, dtype=torch.float64), on) for on in self.devices}
        self.plain_leaves = {name: random_leaves(random, torch.float64) for name in self.names}
        self.leaves = {
            name: [self._leaf(random, leaf) for leaf in leaves] for name, leaves in self.plain_leaves.items()
        }
        # torch 2.15 makes the node of a leaf when it is first used, under a lock for which it then wants the GIL; a
        # custom Function's `apply` waits for that lock with the GIL. So the users, which share them, are not the first.
        both = [*self.plain_leaves.values(), *self.leaves.values()]
        self._uses = [leaf.view_as(leaf) for leaves in both for leaf in leaves if leaf.requires_grad]

    def _leaf(self, random: Random, plain: torch.Tensor) -> torch.Tensor:
        leaf = self.device.tensor(plain, random.choice(self.devices)).requires_grad_(plain.requires_grad)
        self.device.to_host(leaf)  # from here on it can be used on any stream
        return leaf

    @contextmanager
    def running(self) -> Iterator[World]:
        global current
        texts = {
            name: {
                peer: {str(source): str(target) for source, target in self.maps[name, peer].items()}
                for peer in self.names
                if peer != name
            }
            for name in self.names
        }
        with LocalCluster(self.names, options=OPTIONS, device_maps=texts) as self.cluster:
            current = self
            yield self

    def agent(self, name: str) -> Agent:
        return self.cluster.agent(name)

    def moved(self, tensor: torch.Tensor, to: torch.device) -> torch.Tensor:
        """By an op of torch's, so gradients find back."""
        if tensor.device == to:
            return tensor
        if tensor.device != CPU or to == CPU:
            return tensor.to(to)
        return tensor.to(self.anchors[to])

    def to_be_sent(self, tensor: torch.Tensor, source: str, target: str) -> torch.Tensor:
        """Where the map of the source has a device for it."""
        mapped = self.maps[source, target]
        return tensor if tensor.device in (CPU, *mapped) else self.moved(tensor, next(iter(mapped)))

    def to_be_answered(self, tensor: torch.Tensor, caller: str, here: str) -> torch.Tensor:
        back = list(self.maps[caller, here].values())
        return tensor if tensor.device in (CPU, *back) else self.moved(tensor, back[0])


current: World


def random_map(random: Random, devices: list[torch.device]) -> Map:
    """Of some devices, or all; the CPU may be among them, on either side."""
    sources = random.sample(devices, random.randint(1, len(devices)))
    targets = random.sample(devices, len(sources))
    made = dict(zip(sources, targets, strict=True))
    kind = random.random()
    if kind < 0.15:
        source = random.choice(sources)
        made[source], made[CPU] = CPU, made[source]  # were the CPU not mapped, gradients could not find back
    elif kind < 0.3:
        free = [device for device in devices if device not in targets]
        if free:
            made[CPU] = random.choice(free)
        elif len(sources) > 1:
            made[CPU] = made.pop(sources[0])
    return made


# -- what is called -----------------------------------------------------------------------------------------


def run_at(caller: str, name: str, program: Program, given: Tensors) -> Tensors:
    """As the worker of that name; the results are where the caller's map has a device for them."""
    world, agent = current, current.agent(name)
    home = given[0].device if given else world.leaves[name][0].device

    def call(how: str, step: Step, passed: Tensors) -> Tensors:
        to = step.to
        if to == name:
            within = run_at(name, name, step.program, [tensor * 1 for tensor in passed])
            return [world.moved(result, home) for result in within]
        args = (name, to, step.program, [world.to_be_sent(tensor, name, to) for tensor in passed])
        if how == "sync":
            results = agent.rpc_sync(to, run_at, args)
        elif how == "async":
            results = agent.rpc_async(to, run_at, args).wait()
        elif how == "remote":
            results = agent.remote(to, run_at, args).to_here()
        else:
            results = agent.rpc_sync(to, take, (agent.remote(to, run_at, args),))
        return [world.moved(result, home) for result in results]

    leaves = LeavesAt(world, name, home)
    results = run_program(program, [world.moved(tensor, home) for tensor in given], leaves, call)
    return results if caller == name else [world.to_be_answered(t, caller, name) for t in results]


class LeavesAt(Sequence[torch.Tensor]):
    """Of a worker, each moved when it is used."""

    def __init__(self, world: World, name: str, home: torch.device) -> None:
        self._world, self._leaves, self._home = world, world.leaves[name], home

    def __getitem__(self, number: Any) -> Any:
        return self._world.moved(self._leaves[number], self._home)

    def __len__(self) -> int:
        return len(self._leaves)


def take(rref: RRef[Tensors]) -> Tensors:
    """At the owner of the reference."""
    return [tensor * 1 for tensor in rref.local_value()]


def take_elsewhere(caller: str, name: str, rref: RRef[Tensors]) -> Tensors:
    """At a worker that is not its owner."""
    return [current.to_be_answered(tensor * 1, caller, name) for tensor in rref.to_here()]


@async_execution
def run_in_between(caller: str, name: str, to: str, program: Program, given: Tensors) -> Future[Tensors]:
    """By another worker, or by this one's own thread; answered by callbacks."""
    world, agent = current, current.agent(name)
    if to in (name, caller):
        return run_in_thread(caller, name, program, given)
    sent = [world.to_be_sent(tensor, name, to) for tensor in given]
    called = agent.rpc_async(to, run_at, (name, to, program, sent))
    return called.then(lambda done: [world.to_be_answered(t, caller, name) for t in done.value()])


def run_in_thread(caller: str, name: str, program: Program, given: Tensors) -> Future[Tensors]:
    """Settled by hand, on the streams of a thread of its own."""
    device = current.device
    come: Future[Tensors] = Future(devices=current.devices)
    before = [device.record(device.current_stream(on)) for on in current.devices]

    def run() -> None:
        with device.use([device.new_stream(on) for on in current.devices]):
            for event in before:
                for on in current.devices:
                    device.wait(device.current_stream(on), event)
            for tensor in given:
                if tensor.device != CPU:
                    device.retain(tensor, device.current_stream(tensor.device))
            try:
                come.set_result(run_at(caller, name, program, given))
            except BaseException as exc:
                come.set_exception(exc)

    threading.Thread(target=run, daemon=True).start()
    return come


class Holder:
    """What a worker keeps for its users: it can be asked for and added to."""

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = [tensor.detach().clone() for tensor in tensors]

    def get(self) -> Tensors:
        return [tensor * 2 for tensor in self.tensors]

    def add(self, tensors: Tensors) -> Tensors:
        """Not to be used before the answer, which is behind it."""
        for total, tensor in zip(self.tensors, tensors, strict=True):
            total += tensor
        return [total * 1 for total in self.tensors]

    @async_execution
    def get_later(self) -> Future[Tensors]:
        come: Future[Tensors] = Future(devices=current.devices)
        result = come.then(lambda done: [tensor * 2 for tensor in done.value()])
        come.set_result([tensor * 1 for tensor in self.tensors])
        return result


# -- what one process computes ------------------------------------------------------------------------------


def run_here(world: World, name: str, program: Program, given: Tensors) -> Tensors:
    def call(how: str, step: Step, passed: Tensors) -> Tensors:
        return run_here(world, step.to, step.program, [tensor * 1 for tensor in passed])

    return run_program(program, given, world.plain_leaves[name], call)


# -- users --------------------------------------------------------------------------------------------------


class Kept:
    """A tensor of a user's, and what it is to be."""

    def __init__(self, world: World, tensor: torch.Tensor, expected: torch.Tensor) -> None:
        self.tensor = tensor
        self.expected = expected
        self._device = world.device
        self._written: Event = None
        self._used: list[Event] = []
        self.sent = 0
        """Calls with it that nobody has waited for."""
        self.is_shared = False
        self._note_written()

    def take(self) -> torch.Tensor:
        """For use on this thread's current stream, and no other."""
        if self.tensor.device != CPU:
            stream = self._device.current_stream(self.tensor.device)
            self._device.wait(stream, self._written)
            self._device.retain(self.tensor, stream)
        return self.tensor

    def used(self) -> None:
        """What reads it has been enqueued on the current stream."""
        if self.tensor.device != CPU:
            self._used.append(self._device.record(self._device.current_stream(self.tensor.device)))

    def change(self) -> None:
        """In place."""
        tensor = self.take()
        if tensor.device != CPU:
            for event in self._used:
                self._device.wait(self._device.current_stream(tensor.device), event)
        with torch.no_grad():
            tensor.add_(1)
        self.expected = self.expected.detach() + 1
        self._note_written()

    def check(self) -> None:
        check(self.take().detach().cpu(), self.expected)

    def _note_written(self) -> None:
        self._used = []
        if self.tensor.device != CPU:
            self._written = self._device.record(self._device.current_stream(self.tensor.device))


def check(mine: torch.Tensor | None, expected: torch.Tensor | None) -> None:
    if mine is None or expected is None:
        present = mine if mine is not None else expected
        assert present is None or not present.any()
        return
    torch.testing.assert_close(mine.detach(), expected.detach(), rtol=CLOSE, atol=CLOSE)


class User:
    """A thread of a worker's. A history is so many of its steps."""

    def __init__(self, world: World, name: str, random: Random, shared: Sequence[Kept]) -> None:
        self.world = world
        self.name = name
        self.random = random
        self.agent = world.agent(name)
        self.device = world.device
        self.kept = list(shared)
        self.calls: list[tuple[Any, Tensors, list[Kept]]] = []
        """Futures of lists, what they are to be, and what was sent."""
        self.references: list[tuple[RRef[Any], Tensors]] = []
        self.steps: list[Callable[[], None]] = [
            *[self.make, self.compute, self.change, self.drop],
            *[self.call_and_wait, self.call_later, self.call_later, self.chain, self.wait_for_call] * 2,
            *[
                self.collect,
                self.collect,
                self.make_remote,
                self.fetch,
                self.fetch,
                self.fetch_in_threads,
                self.hand_on,
            ],
            *[self.share_own, self.use_holder, self.call_in_between, self.backward, self.backward],
        ]

    def run(self, steps: int) -> None:
        self.make()
        for _ in range(steps):
            with self.streams():
                self.random.choice(self.steps)()
        with self.streams():
            while self.calls:
                self.wait_for_call()
            for kept in self.kept:
                kept.check()

    @contextmanager
    def streams(self) -> Iterator[None]:
        """Those of before, or new ones on some devices."""
        some = self.random.sample(self.world.devices, self.random.randint(0, len(self.world.devices)))
        with self.device.use([self.device.new_stream(on, self.random.choice((0, 0, -1))) for on in some]):
            yield

    # Tensors.

    def make(self) -> None:
        shape = LARGE if self.random.random() < 0.4 else self.random.choice(SHAPES)
        plain = torch.rand(
            shape, dtype=torch.float64, generator=torch.Generator().manual_seed(self.random.getrandbits(30))
        )
        on = self.random.choice([CPU, *self.world.devices * 2])
        self.keep([plain.clone() if on == CPU else self.device.tensor(plain, on)], [plain])

    def keep(self, tensors: Tensors, expected: Tensors) -> None:
        self.kept += [Kept(self.world, *pair) for pair in zip(tensors, expected, strict=True)]
        del self.kept[: max(0, len(self.kept) - 8)]

    def some(self, at_most: int) -> list[Kept]:
        return self.random.sample(self.kept, min(len(self.kept), self.random.randint(0, at_most)))

    def compute(self) -> None:
        for kept in self.some(2):
            self.keep([torch.tanh(kept.take()) * 2], [torch.tanh(kept.expected) * 2])
            kept.used()

    def change(self) -> None:
        if self.kept:
            self.change_one(self.kept)

    def change_one(self, kept: Sequence[Kept]) -> None:
        one = self.random.choice(kept)
        if not one.sent and not one.is_shared and not one.tensor.requires_grad:
            one.change()

    def drop(self) -> None:
        if self.kept:
            del self.kept[self.random.randrange(len(self.kept))]

    # Calls.

    def peer(self) -> str:
        return self.random.choice([name for name in self.world.names if name != self.name])

    def prepared(self, to: str) -> tuple[list[Kept], tuple[Any, ...], Tensors]:
        """What is sent, the arguments of `run_at`, and the results."""
        sent = self.some(3)
        program = random_program(self.random, self.world.names, len(sent), self.random.choice((0, 0, 1)))
        given = [self.world.to_be_sent(kept.take(), self.name, to) for kept in sent]
        for kept in sent:
            kept.used()  # where it was moved
        expected = run_here(self.world, to, program, [kept.expected for kept in sent])
        return sent, (self.name, to, program, given), expected

    def call_and_wait(self) -> None:
        to = self.peer()
        sent, args, expected = self.prepared(to)
        self.keep(self.agent.rpc_sync(to, run_at, args), expected)
        del args
        if sent and self.random.random() < 0.5:
            self.change_one(sent)  # the answer is behind all that was read for it

    def call_later(self) -> None:
        to = self.peer()
        sent, args, expected = self.prepared(to)
        self.await_later(self.agent.rpc_async(to, run_at, args), expected, sent)
        if self.random.random() < 0.3:
            self.kept = [kept for kept in self.kept if kept not in sent]

    def call_in_between(self) -> None:
        to = self.peer()
        sent, (_, _, program, given), _ = self.prepared(to)
        by = self.random.choice(self.world.names)
        runner = to if by in (to, self.name) else by
        expected = run_here(self.world, runner, program, [kept.expected for kept in sent])
        args = (self.name, to, by, program, given)
        self.await_later(self.agent.rpc_async(to, run_in_between, args), expected, sent)

    def await_later(self, future: Any, expected: Tensors, sent: list[Kept]) -> None:
        for kept in sent:
            kept.sent += 1
        self.calls.append((future, expected, sent))

    def chain(self) -> None:
        if not self.calls or self.random.random() < 0.5:
            self.call_later()
        future, expected, sent = self.calls.pop()
        for _ in range(self.random.randint(1, 3)):
            by = self.random.randint(2, 3)
            how = self.random.choice(("value", "wait", "non_blocking"))
            future = future.then(lambda done, how=how, by=by: [t * by for t in value_of(done, how)])
            expected = [tensor * by for tensor in expected]
        self.calls.append((future, expected, sent))

    def wait_for_call(self) -> None:
        if self.calls:
            future, expected, sent = self.calls.pop(self.random.randrange(len(self.calls)))
            values = future.wait(non_blocking=self.random.random() < 0.7)
            for kept in sent:
                kept.sent -= 1
            self.keep([tensor * 1 for tensor in values], expected)

    def collect(self) -> None:
        while len(self.calls) < 2:
            self.call_later()
        calls, self.calls = self.calls, []
        collected = collect_all([future for future, _, _ in calls])
        how = self.random.choice(("value", "wait", "non_blocking"))

        def sums(done: Any) -> Tensors:
            return [sum_of([t.cpu() for t in value_of(each, how)]) for each in value_of(done, how)]

        def doubles(done: Any) -> Tensors:
            return [tensor * 2 for each in value_of(done, how) for tensor in value_of(each, how)]

        if self.random.random() < 0.2:
            expected = [sum_of(tensors) for _, tensors, _ in calls]
            result = collected.then(sums)
        else:
            expected = [tensor * 2 for _, tensors, _ in calls for tensor in tensors]
            result = collected.then(doubles)
        self.calls.append((result, expected, [kept for _, _, sent in calls for kept in sent]))

    # References.

    def make_remote(self) -> None:
        to = self.peer()
        sent, args, expected = self.prepared(to)
        for kept in sent:
            kept.sent += 1  # for good: nobody waits for the call itself
        self.references.append((self.agent.remote(to, run_at, args), expected))

    def fetch(self) -> None:
        if self.references:
            rref, expected = self.random.choice(self.references)
            if self.random.random() < 0.5:
                self.keep(rref.to_here(), expected)
            elif not rref.is_owner():
                number = self.random.randrange(len(expected))
                future = rref.rpc_async().__getitem__(number)
                future = future.then(lambda done: [value_of(done, "value") * 1])
                self.await_later(future, [expected[number]], [])
            else:
                self.keep(rref.local_value(), expected)
                for kept in self.kept[-len(expected) :]:
                    kept.is_shared = True

    def fetch_in_threads(self) -> None:
        if self.references:
            rref, expected = self.random.choice(self.references)

            def fetch(number: int) -> None:
                with self.device.use([self.device.new_stream(on) for on in self.world.devices]):
                    for mine, plain in zip(rref.to_here(), expected, strict=True):
                        check((mine * number).cpu(), plain * number)

            in_threads([lambda number=number: fetch(number) for number in (1, 2)])

    def hand_on(self) -> None:
        if self.references:
            rref, expected = self.random.choice(self.references)
            to = self.peer()
            if rref.owner_name() == to:
                self.await_later(self.agent.rpc_async(to, take, (rref,)), expected, [])
            elif self.reaches(rref.owner_name(), to, rref):
                args = (self.name, to, rref)
                self.await_later(self.agent.rpc_async(to, take_elsewhere, args), expected, [])

    def reaches(self, owner: str, to: str, rref: RRef[Any]) -> bool:
        """Whether a copy can go from the owner to that worker, wherever its tensors are."""
        back = self.world.maps[to, owner].values()
        return {*back} >= {*self.world.devices}

    def share_own(self) -> None:
        kept = self.random.choice(self.kept) if self.kept else None
        if kept is None:
            return
        copy = kept.take() * 1
        kept.used()
        expected = [kept.expected * 1]
        to = self.peer()
        copy = self.world.to_be_answered(copy, to, self.name)
        rref = self.agent.references.create([copy])
        args = (self.name, to, rref)
        if self.random.random() < 0.5:
            del copy
        self.await_later(self.agent.rpc_async(to, take_elsewhere, args), expected, [])

    def use_holder(self) -> None:
        to = self.peer()
        sent = self.some(2)
        given = [self.world.to_be_sent(kept.take(), self.name, to).detach() for kept in sent]
        for kept in sent:
            kept.used()
        holder = self.agent.remote(to, Holder, (given,))
        factor = 2
        if self.random.random() < 0.5:
            holder.rpc_sync().add(given)
            factor = 4
        ways = [
            lambda: holder.rpc_sync().get(),
            lambda: holder.remote().get().to_here(),
            lambda: holder.rpc_async().get_later().wait(non_blocking=True),
            lambda: holder.remote().get_later().to_here(),
        ]
        self.keep(self.random.choice(ways)(), [kept.expected.detach() * factor for kept in sent])

    # Gradients.

    def backward(self) -> None:
        world, random = self.world, self.random
        autograd = self.agent.autograd
        sent = [kept for kept in self.some(2) if not kept.tensor.requires_grad]
        to = self.peer()
        program = random_program(random, world.names, len(sent), random.randint(1, 2))
        plain = [kept.expected.detach().clone().requires_grad_() for kept in sent]
        expected_loss = run_here(world, to, program, plain)[1]
        context = autograd.new_context()
        try:
            mine = [kept.take().detach().clone().requires_grad_() for kept in sent]
            for kept in sent:
                kept.used()
            given = [world.to_be_sent(tensor, self.name, to) for tensor in mine]
            called = self.agent.rpc_async(to, run_at, (self.name, to, program, given))
            with self.streams_between(mine):
                loss = called.wait(non_blocking=random.random() < 0.7)[1]
                check(loss.detach().cpu(), expected_loss)
                if not loss.requires_grad:
                    return
                passes = random.randint(1, 2)
                for last in [False, True][-passes:]:
                    autograd.backward(context.id, [loss.sum()], not last)
                self.check_gradients(context.id, mine, plain, expected_loss.sum(), passes)
        finally:
            autograd.release(context.id)

    @contextmanager
    def streams_between(self, tensors: Tensors) -> Iterator[None]:
        """Others than before, behind them."""
        device = self.device
        before = {on: device.record(device.current_stream(on)) for on in self.world.devices}
        with self.streams():
            for on, event in before.items():
                device.wait(device.current_stream(on), event)
            for tensor in tensors:
                if tensor.device != CPU:
                    device.retain(tensor, device.current_stream(tensor.device))
            yield

    def check_gradients(
        self, id: int, mine: Tensors, plain: Tensors, expected_loss: torch.Tensor, passes: int
    ) -> None:
        world = self.world
        pairs = [(self.name, *pair) for pair in zip(mine, plain, strict=True)]
        for name in world.names:
            for leaf, copy in zip(world.leaves[name], world.plain_leaves[name], strict=True):
                if copy.requires_grad:
                    pairs.append((name, leaf, copy))
        expected = torch.autograd.grad(expected_loss, [copy for _, _, copy in pairs], allow_unused=True)
        gradients: dict[str, Any] = {}
        for name in world.names:
            known = world.agent(name).autograd._contexts.get(id)
            gradients[name] = known.gradients() if known is not None else {}
        for (name, leaf, _), grad in zip(pairs, expected, strict=True):
            got = gradients[name].get(leaf)
            check(None if got is None else (got * 1).cpu(), None if grad is None else grad * passes)


def sum_of(tensors: Tensors) -> torch.Tensor:
    return torch.stack([tensor.sum() for tensor in tensors]).sum()


def value_of(done: Any, how: str) -> Any:
    """Of a future that is done, in a callback."""
    return done.value() if how == "value" else done.wait(non_blocking=how == "non_blocking")


def run_history(world: World, number: int) -> None:
    """Raises `AssertionError` where a value is not what one process computes."""
    random = Random(f"history {number}")
    users = [random.choice(world.names) for _ in range(random.choice((1, 1, 2, 3)))]
    steps = 8 if len(users) == 1 else 4
    device = world.device
    shared = []
    for _ in range(2):
        plain = torch.rand(
            random.choice((LARGE, *SHAPES)),
            dtype=torch.float64,
            generator=torch.Generator().manual_seed(random.getrandbits(30)),
        )
        kept = Kept(world, device.tensor(plain, random.choice(world.devices)), plain)
        kept.is_shared = True
        shared.append(kept)
    seeds = [random.getrandbits(60) for _ in users]
    made = [User(world, name, Random(seed), shared) for name, seed in zip(users, seeds, strict=True)]
    in_threads([lambda user=user: user.run(steps) for user in made])


_numbers = count(1)


def in_threads(targets: Sequence[Callable[[], None]]) -> None:
    """Raises what one of them has failed with."""
    failures: list[BaseException] = []

    def run(target: Callable[[], None]) -> None:
        try:
            target()
        except BaseException as exc:
            failures.append(exc)

    threads = [
        threading.Thread(target=run, args=(target,), name=f"user {next(_numbers)}", daemon=True)
        for target in targets
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert not [thread for thread in threads if thread.is_alive()], "a user's step does not end"
    if failures:
        raise failures[0]
