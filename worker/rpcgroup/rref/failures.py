"""The errors that a use of a reference raises, by the kind of what went wrong."""

from __future__ import annotations

from rpcgroup.errors import (
    CallTimeoutError,
    NotInitializedError,
    OwnerDiedError,
    PeerUnreachableError,
    RRefCreationTimeoutError,
    RRefError,
)
from rpcgroup.rref.ids import ForkData, RRefId
from rpcgroup.rref.transitions import UserState
from rpcgroup.rref.user import UserFork

__all__ = [
    "again",
    "closed_error",
    "creation_error",
    "lost_error",
    "owner_died_error",
    "require_usable",
    "use_error",
]


def require_usable(user: UserFork) -> None:
    """Raises where the fork can be neither used nor passed on. Needs no lock: it judges the state of this
    moment.
    """
    if user.held and user.state in (UserState.PENDING, UserState.CONFIRMED):
        return
    raise use_error(user)


def use_error(user: UserFork) -> Exception:
    if user.state is UserState.ORPHANED:
        return owner_died_error(user)
    if user.error is not None:
        return again(user.error)
    return RRefError(f"the RRef {user.fork_id} was deleted by shutdown()")


def creation_error(fork: ForkData, error: BaseException) -> Exception:
    """`remote` was not answered: by timeout, because the owner is out of reach, or otherwise."""
    failure: Exception
    if isinstance(error, CallTimeoutError):
        failure = RRefCreationTimeoutError(
            f"RRef creation on worker {fork.owner_name!r} timed out; its value may or may not exist: {error}"
        )
    elif isinstance(error, PeerUnreachableError):
        failure = OwnerDiedError(f"RRef creation on worker {fork.owner_name!r} failed: {error}")
    else:
        failure = RRefError(f"RRef creation on worker {fork.owner_name!r} failed: {error}")
    failure.__cause__ = error
    return failure


def again(error: Exception) -> Exception:
    """The same error to be raised once more: a raised one keeps its traceback, and with it the caller's
    locals.
    """
    copy = type(error)(*error.args)
    copy.__cause__ = error.__cause__
    return copy


def lost_error(rref_id: RRefId, reason: str) -> RRefError:
    return RRefError(f"the value of {rref_id} does not exist: {reason}")


def owner_died_error(user: UserFork) -> OwnerDiedError:
    return OwnerDiedError(f"worker {user.owner_name!r}, the owner of {user.rref_id}, died; the value is lost")


def closed_error(use: str = "use it") -> NotInitializedError:
    return NotInitializedError(f"RPC is shut down, and the RRef with it. Cannot {use} after deletion.")
