"""Runs one worker's references: the pure machine under one lock, its instructions carried out through a `Port`.

The agent calls this; for a call with references in it the order is

    caller   fork (each, while encoding) ........ fork_failed if the message provably did not reach the peer
    callee   receive -> when_confirmed -> run the function
    reply    the same, with the roles exchanged

A message that arrived is always given to `receive`, even if its function will not run (cancelled, past its
deadline, an answer nobody waits for any more): let go of the references then, and everybody is told.
For `remote`: begin_remote and remote_done at the caller, accept_remote and set_value or set_error at the owner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from rpcgroup.rref.ids import ForkData, WireFork
from rpcgroup.rref.port import Port
from rpcgroup.rref.rref import RRef
from rpcgroup.wire.messages import MessageType

__all__ = ["Counts", "Pending", "RRefContext"]


class Counts(NamedTuple):
    """How much one worker holds."""

    owner_rrefs: int
    user_rrefs: int
    forks: int
    pending_users: int
    pending_children: int


class Pending:
    """References of one message that their owners have not confirmed yet."""


class RRefContext:
    """All references of one worker, from join to shutdown. Thread-safe; a closed one raises `NotInitializedError`."""

    def __init__(self, port: Port) -> None: ...

    # On the owner.
    def create(self, value: Any) -> RRef[Any]:
        """`RRef(value)`: this worker owns it. Known to the context only once it is shared."""

    def accept_remote(self, fork: WireFork, sender: int) -> RRef[Any]:
        """A creation by `remote` has arrived: the reference to give to `set_value` or `set_error`.

        Answer REMOTE_RET at once: it says that the value is pinned, not that its function has finished.
        Raises `RRefError` where its creator has given it up or is dead: do not run the function then.
        """

    def set_value(self, rref: RRef[Any], value: Any) -> None:
        """The function of an accepted creation returned. Runs the callbacks of waiting fetches inline."""

    def set_error(self, rref: RRef[Any], error: BaseException) -> None:
        """The function of an accepted creation raised: every use of the value raises `error`."""

    def when_owner_value(
        self, payload: bytes, sender: int, callback: Callable[[Any, BaseException | None], None]
    ) -> None:
        """Answer a fetch: `callback(value, None)` or `callback(None, error)`.

        Inline where the value is there; else later, from the thread that sets it. Occupies no thread meanwhile,
        and works before the value's creation has arrived.
        """

    # Creation by `remote`.
    def begin_remote(self, owner: int, owner_name: str, type_name: str = "") -> tuple[RRef[Any], ForkData]:
        """Make up the reference for a `remote` call to `owner` (an incarnation; one's own too).

        The second part travels with the call. Raises `PeerUnreachableError` where `owner` is dead.
        """

    def remote_done(self, fork: ForkData, error: BaseException | None) -> None:
        """The creation was answered, or failed, or timed out; call exactly once.

        With an error, every later use or pass of the reference raises one of its kind. It need not be known
        whether the owner has run the call. A function that raised is not an error here: that is the value.
        """

    # Passing on.
    def fork(self, rref: RRef[Any], to: int) -> ForkData:
        """One reference more, for the message being encoded to the worker of incarnation `to`.

        Raises what a use of `rref` raises, and `PeerUnreachableError` where `to` is dead.
        """

    def fork_failed(self, fork: ForkData) -> None:
        """The message with this fork provably never reached the peer's `receive`.

        Do not call it where that is unknown: then the peer's answer or its death settles the fork.
        """

    def receive(self, forks: Iterable[WireFork], sender: int) -> tuple[list[RRef[Any]], Pending | None]:
        """The references of a message that arrived, in order, and what to wait for before user code sees them.

        Raises `RRefError` where `sender` is dead; a message is received at most once.
        """

    def when_confirmed(
        self, pending: Pending | None, callback: Callable[[BaseException | None], None]
    ) -> None:
        """Call `callback` once every reference is known to its owner; inline if nothing is pending.

        With an error (`OwnerDiedError`, `RRefError`) where one never will be: do not run the function.
        """

    # Events.
    def on_message(self, kind: MessageType, payload: bytes, sender: int) -> None:
        """RREF_USER_DELETE, RREF_CHILD_ACCEPT or RREF_FORK_REQUEST. Idempotent, quick; answer RREF_ACK after it.

        Raises `RRefError` where `sender` is dead (send it back), `RemoteProtocolError` for a malformed payload.
        """

    def member_died(self, incarnation: int) -> None:
        """The worker is gone for good: record gone and unreachable, left, or replaced by a newer incarnation."""

    def reap(self) -> None:
        """Delete what the program has let go of. Cheap when there is nothing; every other method does it too."""

    # The end.
    def shutdown(self, timeout: float | None) -> bool:
        """Delete every user reference held here and wait until their owners have answered.

        False where that took longer than `timeout` seconds (None: no limit). A use of one afterwards raises.
        """

    def leaks(self) -> list[str]:
        """One line for each reference that is still there: after `shutdown` on all workers, a leak."""

    def close(self) -> None:
        """Drop everything and send nothing more; waiting fetches and calls get `NotInitializedError`."""

    def counts(self) -> Counts: ...

    def debug_info(self) -> dict[str, str]:
        """`counts` under torch's names (`num_owner_rrefs`, `num_user_rrefs`, `num_forks`, ...)."""
