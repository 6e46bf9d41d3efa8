"""What one worker's contexts do, over a port that notes what it is asked for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import pytest
import torch

import rpcgroup.autograd as public
import rpcgroup.autograd.container as container_module
from rpcgroup.autograd.container import Container, CurrentContext
from rpcgroup.autograd.engine import Arrival
from rpcgroup.autograd.messages import Head
from rpcgroup.autograd.port import Done, Lost, Outgoing
from rpcgroup.errors import CallTimeoutError, NotInitializedError, PeerUnreachableError

ME, OTHER, THIRD = 11, 12, 13
LATE = 14
"""One that this worker has not heard of yet."""


class NotingPort:
    incarnation = ME
    worker_id = 1
    rpc_timeout = 10.0

    def __init__(self) -> None:
        self.members = {ME, OTHER, THIRD}
        self.newest = THIRD
        self.cleanups: list[tuple[int, int, Done]] = []
        self.asked: list[tuple[int, int, Callable[[bool | None], None]]] = []
        self.propagated: list[tuple[int, Head, Sequence[torch.Tensor | None], Lost]] = []
        self.reports: list[tuple[int, Outgoing]] = []
        self.attempts: list[tuple[int, Done]] = []
        """To report: the id of each report, and what its answer is told to."""
        self.forgotten: list[Lost] = []
        self.delayed: list[tuple[float, Callable[[], None]]] = []

    def new_streams(self) -> None:
        return None

    def events_of(self, tensors: Sequence[torch.Tensor | None]) -> None:
        return None

    def propagate(
        self, to: int, head: Head, grads: Sequence[torch.Tensor | None], lost: Lost, of_answer: bool
    ) -> None:
        self.propagated.append((to, head, grads, lost))

    def report(self, head: Head, outcome: Outgoing, done: Done) -> None:
        self.reports.append((head.pass_id, outcome))
        self.attempts.append((head.message_id, done))

    def forget(self, lost: Lost) -> None:
        self.forgotten.append(lost)

    def cleanup(self, to: int, context_id: int, done: Done) -> None:
        self.cleanups.append((to, context_id, done))

    def ask(self, to: int, context_id: int, answer: Callable[[bool | None], None]) -> None:
        self.asked.append((to, context_id, answer))

    def others(self) -> list[int]:
        return sorted(self.members - {ME})

    def call_later(self, delay: float, fn: Callable[[], None]) -> None:
        self.delayed.append((delay, fn))

    def is_gone(self, incarnation: int) -> bool:
        return incarnation not in self.members and incarnation <= self.newest

    def wait(self, event: threading.Event, timeout: float | None) -> bool:
        return event.wait(timeout)

    def step_aside(self) -> None: ...


@pytest.fixture
def port() -> NotingPort:
    return NotingPort()


@pytest.fixture
def container(port: NotingPort) -> Container:
    return Container(port, CurrentContext())


def received(container: Container, context_id: int, message_id: int = 5, sender: int = OTHER) -> torch.Tensor:
    context = container.introduce(context_id, (context_id >> 48) + 10, sender)
    assert context is not None
    return context.add_recv(message_id, sender, False, [torch.ones(2)])[0]


def test_ids_begin_with_the_workers(container: Container) -> None:
    context = container.new_context()
    assert context.id >> 48 == 1 and context.id < container.max_id()
    container.release(context.id)
    assert container.new_context().id == context.id + 1
    assert container.max_id() == (1 << 48) + 281474976710655


def test_a_worker_that_comes_back_makes_other_contexts(port: NotingPort) -> None:
    ids = []
    for port.incarnation in (11, 14):
        ids.append(Container(port, CurrentContext()).new_context().id)
    assert ids[0] != ids[1] and {i >> 48 for i in ids} == {1}


def test_a_thread_is_in_one_context(container: Container) -> None:
    with pytest.raises(RuntimeError, match="doesn't have a valid autograd context"):
        container.current_context()
    context = container.new_context()
    assert container.current_context() is context is container.retrieve(context.id)
    with pytest.raises(RuntimeError, match="Already have an autograd context id for this thread"):
        container.new_context()
    container.release(context.id)
    with pytest.raises(RuntimeError, match=f"Could not find autograd context with id: {context.id}"):
        container.retrieve(context.id)
    container.new_context()


def test_those_who_were_called_are_told_of_the_release_until_they_answer(
    container: Container, port: NotingPort
) -> None:
    context = container.new_context()
    context.add_send(7, OTHER, 2, [])
    context.add_send(8, THIRD, 3, [])
    assert context._known_worker_ids() == {2, 3}
    container.release(context.id)
    assert [(to, context_id) for to, context_id, _ in port.cleanups] == [
        (OTHER, context.id),
        (THIRD, context.id),
    ]
    port.cleanups[0][2](None)
    port.cleanups[1][2](TimeoutError())
    (delay, again) = port.delayed.pop()
    again()
    port.cleanups[2][2](TimeoutError())
    assert port.cleanups[2][0] == THIRD and port.delayed[0][0] > delay
    port.cleanups[2][2](None)
    assert len(port.cleanups) == 3 and len(port.delayed) == 1


def test_where_one_who_was_to_be_told_is_dead_all_are_told_once(
    container: Container, port: NotingPort
) -> None:
    context = container.new_context()
    context.add_send(7, OTHER, 2, [])
    port.members.remove(OTHER)
    container.release(context.id)
    assert [to for to, _, _ in port.cleanups] == [THIRD]
    port.members.remove(THIRD)
    port.cleanups.pop()[2](TimeoutError())
    port.delayed.pop()[1]()
    assert not port.cleanups and not port.delayed


def test_a_release_is_passed_on_but_not_back(container: Container, port: NotingPort) -> None:
    context = container.introduce(2 << 48, OTHER, OTHER)
    assert context is not None
    context.add_send(7, OTHER, 2, [])
    context.add_send(8, THIRD, 3, [])
    for _ in range(2):
        container.on_cleanup(context.id, OTHER)
    assert [to for to, _, _ in port.cleanups] == [THIRD]


def test_a_late_message_does_not_bring_a_context_back(container: Container) -> None:
    container.on_cleanup(2 << 48, OTHER)
    assert container.introduce(2 << 48, OTHER, THIRD) is None
    assert container.debug_info() == {"num_autograd_contexts": "0", "num_current_backward_passes": "0"}


def test_a_late_message_brings_no_context_back_that_is_forgotten(
    container: Container, port: NotingPort, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container_module, "RELEASED_KEPT", 2)
    mine = container.new_context()
    container.release(mine.id)
    for number in range(3):
        container.on_cleanup(2 << 48 | number, OTHER)
    assert container.introduce(mine.id, ME, OTHER) is None
    assert container.introduce(2 << 48 | 3, OTHER, OTHER) is not None and not port.asked
    late = container.introduce(2 << 48 | 0, OTHER, THIRD)
    assert late is not None and [to for to, _, _ in port.asked] == [OTHER]
    port.asked.pop()[2](False)
    assert late.released


def test_a_context_is_not_introduced_while_its_release_is_noted(container: Container) -> None:
    """Whoever looks it up before the release is noted does so under the same lock."""
    introduced: list[Any] = []

    class Contexts(dict[int, Any]):
        def get(self, key: int, default: Any = None) -> Any:
            assert container._lock.locked()
            introduced.append(key)
            return super().get(key, default)

    container._contexts = Contexts()
    container.on_cleanup(2 << 48, OTHER)
    assert container.introduce(2 << 48, OTHER, THIRD) is None
    assert introduced == [2 << 48, 2 << 48]


def test_a_context_dies_with_its_maker(container: Container) -> None:
    context = container.introduce(3 << 48, THIRD, OTHER)
    assert context is not None and context.creator == THIRD
    container.member_died(THIRD)
    assert context.released


def test_after_a_death_the_maker_of_a_context_is_asked_whether_it_is_there(
    container: Container, port: NotingPort
) -> None:
    mine = container.new_context()
    context = container.introduce(3 << 48, THIRD, OTHER)
    assert context is not None
    container.member_died(OTHER)
    assert [(to, context_id) for to, context_id, _ in port.asked] == [(THIRD, context.id)]
    port.asked.pop()[2](True)
    container.member_died(OTHER)
    port.asked.pop()[2](None)
    assert not context.released
    port.delayed.pop()[1]()
    port.asked.pop()[2](False)
    assert context.released and not mine.released


def test_a_message_of_one_who_has_died_meanwhile(container: Container, port: NotingPort) -> None:
    port.members.remove(OTHER)
    context = container.introduce(3 << 48, THIRD, OTHER)
    assert context is not None and not context.released and port.asked[0][0] == THIRD
    orphan = container.introduce(2 << 48, OTHER, OTHER)
    assert orphan is not None and orphan.released


def test_a_context_of_one_who_is_not_known_yet_is_kept_until_that_one_is_gone(
    container: Container, port: NotingPort
) -> None:
    context = container.introduce(LATE << 48, LATE, LATE)
    port.members.remove(OTHER)
    container.member_died(OTHER)
    assert context is not None and not context.released
    assert [(to, context_id) for to, context_id, _ in port.asked] == [(LATE, context.id)]
    port.asked.pop()[2](None)
    port.newest = LATE
    port.delayed.pop()[1]()
    assert context.released


def test_a_receiver_that_is_not_known_yet_is_waited_for(container: Container, port: NotingPort) -> None:
    context = container.introduce(LATE << 48, LATE, LATE)
    assert context is not None
    x = torch.ones(1, requires_grad=True)
    for message_id in (7, 8):
        context.add_send(message_id, LATE, None, [x])
    head = Head(context.id, 7, pass_id=1, origin=LATE, weight=2)
    container.on_propagation(head, [torch.ones(1)])
    assert not port.reports
    container.on_propagation(head._replace(message_id=8), [torch.ones(1)])
    assert port.reports == [(head.pass_id, [2, 2])] and context.gradients()[x].tolist() == [2]


def background(container: Container, loss: torch.Tensor, context_id: int) -> Future[None]:
    """A backward pass that runs in a thread of its own, which its end ends."""
    future: Future[None] = Future()

    def run() -> None:
        try:
            future.set_result(container.backward(context_id, [loss], False))
        except BaseException as exc:
            future.set_exception(exc)

    threading.Thread(target=run).start()
    return future


def propagated(port: NotingPort, count: int) -> None:
    deadline = time.monotonic() + 10
    while len(port.propagated) < count:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_backward_ends_when_all_that_was_sent_is_accounted_for(
    container: Container, port: NotingPort
) -> None:
    context = container.new_context()
    loss = (received(container, context.id) * 3).sum() + received(container, context.id, 6, THIRD).sum()
    future = background(container, loss, context.id)
    propagated(port, 2)
    (to, first, grads, lost), (_, second, _, _) = sorted(port.propagated, key=lambda sent: sent[0])
    assert (to, first.context_id, first.message_id, first.origin) == (OTHER, context.id, 5, ME)
    assert grads[0] is not None and grads[0].tolist() == [3, 3]
    assert (second.message_id, first.weight, second.weight) == (6, 1, 1)
    container.on_outcome(first._replace(message_id=50), [first.weight])
    for _ in range(2):  # it was told again
        container.on_outcome(second._replace(message_id=51), [2])
    assert not future.done()
    container.on_outcome(second._replace(message_id=52), [2])
    future.result(10)
    assert lost in port.forgotten
    container.on_outcome(second, [2])  # late, and of no interest


@pytest.mark.parametrize("how", ["error", "lost", "timeout"])
def test_backward_ends_with_the_first_error(container: Container, port: NotingPort, how: str) -> None:
    context = container.new_context()
    if how == "timeout":
        port.rpc_timeout = 0.01
    future = background(container, received(container, context.id).sum(), context.id)
    propagated(port, 1)
    _, head, _, lost = port.propagated[0]
    if how == "error":
        container.on_outcome(head, ValueError("there"))
    elif how == "lost":
        lost(PeerUnreachableError("it died"))
    expected = {"error": ValueError, "lost": PeerUnreachableError, "timeout": CallTimeoutError}[how]
    with pytest.raises(expected):
        future.result(10)


def test_gradients_that_arrive_are_sent_on_with_their_weight(container: Container, port: NotingPort) -> None:
    context = container.introduce(3 << 48, THIRD, OTHER)
    assert context is not None
    x = torch.ones(2, requires_grad=True)
    context.add_send(7, OTHER, None, [received(container, context.id) * x])
    context.add_send(8, OTHER, None, [x])
    head = Head(context.id, 7, pass_id=1, origin=THIRD, weight=4)
    container.on_propagation(head, [torch.ones(2)])
    to, sent, _, lost = port.propagated[0]
    assert to == OTHER and sent == head._replace(message_id=5) and not port.reports
    container.on_propagation(head._replace(message_id=8, weight=6), [None])
    assert port.reports == [(head.pass_id, [6])]  # nothing is left to run
    assert context.gradients()[x].tolist() == [1, 1]
    failure = PeerUnreachableError("it died")
    lost(failure)
    assert port.reports[1] == (head.pass_id, failure)


def test_a_report_is_repeated_until_it_is_answered_or_nobody_is_there(
    container: Container, port: NotingPort
) -> None:
    head = Head(3 << 48, 7, pass_id=1, origin=THIRD)
    for number in range(2):
        container.report(head, [number])
        port.attempts.pop()[1](None)
    container.report(head, [2])
    (first, done) = port.attempts.pop()
    done(TimeoutError())
    (delay, again) = port.delayed.pop()
    again()
    (second, done) = port.attempts.pop()
    assert first == second
    done(TimeoutError())
    port.members.remove(THIRD)
    assert port.delayed[0][0] > delay
    port.delayed.pop()[1]()
    assert port.reports == [(1, [0]), (1, [1]), (1, [2]), (1, [2])] and not port.delayed


def test_a_weight_is_kept_until_everything_has_been_run(container: Container, port: NotingPort) -> None:
    context = container.introduce(3 << 48, THIRD, OTHER)
    assert context is not None
    x = torch.ones(2, requires_grad=True)
    for message_id in (7, 8):
        context.add_send(message_id, OTHER, None, [x])
    head = Head(context.id, 7, pass_id=1, origin=THIRD, weight=4)
    container.on_propagation(head, [torch.ones(2)])
    assert not port.reports
    container.on_propagation(head._replace(message_id=8, weight=2), [torch.ones(2)])
    assert port.reports == [(head.pass_id, [2, 4])]


def test_a_send_that_is_never_heard_of_ends_the_pass_by_its_timeout(
    container: Container, port: NotingPort
) -> None:
    context = container.new_context()
    x = torch.ones(2, requires_grad=True)
    context.add_send(7, OTHER, 2, [x])
    port.rpc_timeout = 0.01
    with pytest.raises(CallTimeoutError, match=r"\(10 ms\).* for 1 messages of this worker, to .*\[12\]"):
        container.backward(context.id, [(x * 2).sum()], True)
    assert not context.gradients()
    port.members.remove(OTHER)  # nobody waits for the dead
    container.backward(context.id, [(x * 2).sum()], False)
    assert context.gradients()[x].tolist() == [2, 2]


def test_gradients_that_come_after_the_end_of_a_pass_are_dropped(
    container: Container, port: NotingPort
) -> None:
    context = container.new_context()
    x = torch.ones(2, requires_grad=True)
    context.add_send(7, OTHER, 2, [x])
    loss = received(container, context.id).sum()
    port.rpc_timeout = 0.01
    with pytest.raises(CallTimeoutError):
        container.backward(context.id, [loss], True)
    (_, head, _, _) = port.propagated[0]
    container.on_propagation(head._replace(message_id=7), [torch.ones(2)])
    assert not context.gradients() and not context.in_pass and not port.reports


def test_gradients_that_reach_a_pass_as_it_ends_are_not_added(container: Container, port: NotingPort) -> None:
    context = container.introduce(3 << 48, THIRD, OTHER)
    assert context is not None
    x = torch.ones(2, requires_grad=True)
    context.add_send(7, OTHER, None, [x])
    context.add_send(8, OTHER, None, [x])
    head = Head(context.id, 7, pass_id=1, origin=THIRD)
    container.on_propagation(head, [torch.ones(2)])
    running = context.current_pass
    assert running is not None
    running.end()
    running.arrive(Arrival(8, 1, [torch.ones(2)]))
    assert not context.gradients() and "after the end" in str(port.reports[-1][1])


def test_what_goes_wrong_is_reported_to_the_caller_of_the_pass(
    container: Container, port: NotingPort
) -> None:
    head = Head(3 << 48, 7, pass_id=1, origin=THIRD)
    container.on_propagation(head, [None])
    context = container.introduce(3 << 48, THIRD, OTHER)
    assert context is not None
    container.on_propagation(head, [None])
    assert [str(outcome) for _, outcome in port.reports] == [
        f"Could not find autograd context with id: {3 << 48}",
        f"Error on Node 1: autograd message 7 has no send function in context {3 << 48}",
    ]


def test_a_new_pass_takes_the_place_of_an_old_one(container: Container, port: NotingPort) -> None:
    context = container.introduce(3 << 48, THIRD, OTHER)
    assert context is not None
    x = torch.ones(1, requires_grad=True)
    context.add_send(7, OTHER, None, [x])
    context.add_send(8, OTHER, None, [x])

    def arrive(message_id: int, pass_id: int) -> None:
        container.on_propagation(Head(context.id, message_id, pass_id=pass_id, origin=OTHER), [torch.ones(1)])

    arrive(7, 1)
    arrive(7, 2)
    assert not context.gradients()  # each pass lacks one
    assert container.debug_info()["num_current_backward_passes"] == "1"
    arrive(8, 2)
    assert context.gradients()[x].tolist() == [2]
    assert container.debug_info()["num_current_backward_passes"] == "0"
    arrive(8, 1)
    assert "earlier backward pass" in str(port.reports[-1][1])


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ([], "No tensors provided for gradient computation"),
        ([torch.ones(1)], "requires_grad not set on"),
        ([torch.ones(2, requires_grad=True) * 2], "is not a scalar, all roots need to be scalar"),
        ([torch.ones(1, requires_grad=True)], "does not have a valid gradient function"),
    ],
)
def test_what_cannot_be_a_root(container: Container, given: Any, what: str) -> None:
    with pytest.raises(RuntimeError, match=what):
        container.backward(container.new_context().id, given, False)


def test_several_roots_and_a_root_twice(container: Container) -> None:
    x = torch.ones(2, requires_grad=True)
    loss = (x * 2).sum()
    context = container.new_context()
    container.backward(context.id, [loss, loss, (x * 3).sum()], False)
    assert context.gradients()[x].tolist() == [7, 7]


def test_a_profile_sees_the_pass(container: Container, port: NotingPort) -> None:
    context = container.new_context()
    loss = received(container, context.id).sum()
    port.propagate = lambda to, head, *_: container.on_outcome(head, [0])  # type: ignore[method-assign]
    with torch.autograd.profiler.profile() as profile:
        container.backward(context.id, [loss], False)
    names = {event.name for event in profile.function_events}  # type: ignore[union-attr]
    assert {
        "torch::distributed::autograd::backward",
        "torch::distributed::autograd::RecvRpcBackward",
    } <= names


def test_a_closed_container_is_empty(container: Container) -> None:
    context = container.new_context()
    container.close()
    container.close()
    assert context.released and container.introduce(3 << 48, THIRD, OTHER) is None


def test_the_public_names(container: Container) -> None:
    public.use_container(container)
    try:
        with public.context() as context_id:
            assert public._current_context().id == context_id
            assert public._retrieve_context(context_id)._context_id() == context_id
            public._is_valid_context(context_id)
            x = torch.ones(2, requires_grad=True)
            public.backward(context_id, [(x * 2).sum()])
            assert public.get_gradients(context_id)[x].tolist() == [2, 2]
            for wrong in ((context_id, None), (None, None), (context_id, x), (context_id, [1])):
                with pytest.raises(TypeError, match="incompatible function arguments"):
                    public.backward(*wrong)  # type: ignore[arg-type]
        assert public._get_debug_info()["num_autograd_contexts"] == "0"
        assert public._get_max_id() == container.max_id() and public.is_available()
    finally:
        public.use_container(None)
    with pytest.raises(NotInitializedError):
        public.get_gradients(1)
