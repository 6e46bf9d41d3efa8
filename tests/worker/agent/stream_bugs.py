"""Each takes one piece of the order of streams away from the product, for tests/worker/agent/test_stream_order.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Final

import pytest
import torch

from rpcgroup import futures
from rpcgroup.agent.accelerator import Accelerator
from rpcgroup.agent.call_future import CallFuture
from rpcgroup.autograd.streams import ContextStreams
from rpcgroup.cuda.arrival import Arrival
from rpcgroup.cuda.completions import Completions
from rpcgroup.cuda.events import Events
from rpcgroup.cuda.outbound import Departure, PutChunk
from rpcgroup.cuda.runtime import Runtime
from rpcgroup.cuda.staging import SMALL
from rpcgroup.futures import Future
from rpcgroup.rref.cell import Cell
from rpcgroup.wire.payloads import Payload

__all__ = ["BUGS", "Bug"]

Bug = Callable[[pytest.MonkeyPatch], None]
BUGS: Final[list[Bug]] = []


def bug(seed: Bug) -> Bug:
    BUGS.append(seed)
    return seed


@bug
def a_value_is_taken_without_waiting_for_its_events(patch: pytest.MonkeyPatch) -> None:
    def wait(events: Events) -> None:
        for tensor in events.tensors:
            events._runtime.retain(tensor, events._runtime.current_stream(tensor.device))

    patch.setattr(Events, "wait", wait)


@bug
def a_value_is_taken_without_telling_the_allocator(patch: pytest.MonkeyPatch) -> None:
    def wait(events: Events) -> None:
        for device, event in events._events.items():
            events._runtime.wait(events._runtime.current_stream(device), event)

    patch.setattr(Events, "wait", wait)


@bug
def events_are_recorded_on_streams_that_did_not_write(patch: pytest.MonkeyPatch) -> None:
    def record(
        runtime: Runtime, tensors: Sequence[torch.Tensor], devices: Sequence[torch.device] = ()
    ) -> Events:
        on = dict.fromkeys((*(tensor.device for tensor in tensors), *devices))
        return Events(runtime, {d: runtime.record(runtime.new_stream(d)) for d in on}, tensors)

    patch.setattr(Events, "record", record)


@bug
def a_departure_is_not_behind_what_wrote_it(patch: pytest.MonkeyPatch) -> None:
    def branch(departure: Departure, device: torch.device) -> Any:
        stream = departure._runtime.new_stream(device, -1)
        return stream, departure._runtime.record(stream)

    patch.setattr(Departure, "_branch", branch)


@bug
def a_chunk_is_sent_before_it_has_been_copied(patch: pytest.MonkeyPatch) -> None:
    def put(departure: Departure, load: Any, put_chunk: PutChunk) -> None:
        last = load.pieces[-1]
        used = last.at + last.size
        memory = load.staging.memory(used)
        if used <= SMALL:
            memory = memoryview(bytes(memory))
        for index, place, _, size, at in load.pieces:
            put_chunk(departure.transfer_id, index, place, memory[at : at + size])

    patch.setattr(Departure, "_put", put)


@bug
def the_events_of_an_arrival_are_lost(patch: pytest.MonkeyPatch) -> None:
    def record(arrival: Arrival) -> Events:
        return Events.record(arrival._runtime, arrival._targets)

    patch.setattr(Arrival, "_record", record)


@bug
def an_arrival_is_ready_before_its_last_copy(patch: pytest.MonkeyPatch) -> None:
    copy, record = Arrival._copy, Arrival._record
    before: dict[Arrival, Events] = {}

    def copy_behind(arrival: Arrival, *args: Any) -> None:
        before[arrival] = record(arrival)
        copy(arrival, *args)

    patch.setattr(Arrival, "_copy", copy_behind)
    patch.setattr(Arrival, "_record", lambda arrival: before.pop(arrival, None) or record(arrival))


@bug
def an_arrival_is_allocated_on_another_stream(patch: pytest.MonkeyPatch) -> None:
    def allocate(arrival: Arrival) -> None:
        for payload in arrival._payloads:
            device = torch.device("cuda", payload.device)
            arrival._stream(device)
            arrival._targets.append(arrival._runtime.empty(payload.size, device))

    patch.setattr(Arrival, "_allocate", allocate)


@bug
def shared_memory_is_read_before_it_is_written(patch: pytest.MonkeyPatch) -> None:
    def read(arrival: Arrival, payload: Payload, target: torch.Tensor) -> None:
        runtime, ipc = arrival._runtime, arrival._ipc
        assert ipc is not None
        with runtime.use([arrival._stream(target.device), arrival._stream(ipc.device_of(payload.blob))]):
            source, _ = ipc.open(payload.blob)
            arrival._sources.append(source)
            runtime.copy(target, source)

    patch.setattr(Arrival, "_read", read)


@bug
def shared_memory_is_released_before_it_has_been_read(patch: pytest.MonkeyPatch) -> None:
    def let_go(arrival: Arrival) -> None:
        arrival._sources.clear()
        arrival._released()

    patch.setattr(Arrival, "_let_go", let_go)


@bug
def staging_comes_back_before_it_has_been_copied(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Completions, "keep", lambda completions, thing, stream: None)


@bug
def a_function_does_not_wait_for_its_arguments(patch: pytest.MonkeyPatch) -> None:
    streams = Accelerator.streams
    patch.setattr(Accelerator, "streams", lambda accelerator, events: streams(accelerator, None))


@bug
def a_function_runs_on_whatever_streams_are_current(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Accelerator, "streams", lambda accelerator, events: nullcontext())


@bug
def what_another_thread_resumes_does_not_wait(patch: pytest.MonkeyPatch) -> None:
    def resumed(
        accelerator: Accelerator, events: Events | None, run: Callable[..., None]
    ) -> Callable[..., None]:
        def resume(*args: Any) -> None:
            with accelerator.streams(None):
                run(*args)

        return resume

    patch.setattr(Accelerator, "resumed", resumed)


@bug
def a_reference_keeps_no_events(patch: pytest.MonkeyPatch) -> None:
    settle = Cell.settle
    patch.setattr(Cell, "settle", lambda cell, value, error, events=None: settle(cell, value, error))


@bug
def callbacks_run_on_the_streams_of_who_settles(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Future, "_streams", lambda future: nullcontext())


@bug
def a_non_blocking_wait_does_not_order(patch: pytest.MonkeyPatch) -> None:
    take_over = Events.take_over

    def take(events: Events, non_blocking: bool) -> None:
        if not non_blocking:
            take_over(events, non_blocking)

    patch.setattr(Events, "take_over", take)


@bug
def an_answer_is_decoded_on_whatever_streams_are_current(patch: pytest.MonkeyPatch) -> None:
    def result(future: CallFuture[Any], events: Events | None, kind: int, flags: int, body: Any) -> Any:
        value = future.link.decode_answer(kind, flags, body)
        future._events = future.link.agent.accelerator.events_of(value)  # type: ignore[union-attr]
        return value

    patch.setattr(CallFuture, "_result_on_devices", result)


@bug
def collected_futures_are_not_waited_for(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(futures, "_events_of", lambda collected, runtime: None)


@bug
def a_backward_stage_does_not_wait_for_what_arrived(patch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def use(streams: ContextStreams, arrived: Sequence[Events | None]) -> Iterator[None]:
        known = [events for events in arrived if events is not None]
        with streams._runtime.use(streams._add([device for events in known for device in events.devices])):
            yield

    patch.setattr(ContextStreams, "use", use)


@bug
def gradients_are_handed_over_without_order(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ContextStreams, "hand_over", lambda streams, gradients: None)


@bug
def what_the_engine_made_is_not_retained(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ContextStreams, "retain", lambda streams, used: None)
