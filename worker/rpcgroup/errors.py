"""One hierarchy for everything this package raises.

The torch-facing ones also derive from what `torch.distributed.rpc` programs catch: `RuntimeError` for calls,
`ValueError` for arguments and device maps. Our own misuse (`Local...`) and the peer's fault (`Remote...`) are
told apart, as in h11.
"""

from __future__ import annotations

import functools
from typing import Any

__all__ = [
    "CallCancelledError",
    "CallTimeoutError",
    "DeviceMapError",
    "DevicePlacementError",
    "DrainedError",
    "EtcdServerError",
    "FunctionNotFoundError",
    "GroupError",
    "HandshakeError",
    "JoinError",
    "LocalProtocolError",
    "ManifestError",
    "MemberExistsError",
    "MessageTooLargeError",
    "NotInitializedError",
    "OwnerDiedError",
    "PeerUnreachableError",
    "ProtocolError",
    "RRefCreationTimeoutError",
    "RRefError",
    "RemoteProtocolError",
    "RendezvousError",
    "RendezvousUnavailableError",
    "RpcGroupError",
    "SerializationError",
    "UnknownGroupError",
    "UnknownWorkerError",
    "WorkerNameError",
    "and_runtime_error",
    "original_type",
]


class RpcGroupError(Exception):
    """Base of every error of this package."""


class NotInitializedError(RpcGroupError, RuntimeError):
    """A call before `init_rpc` or after `shutdown`."""


# Calls.
class CallTimeoutError(RpcGroupError, RuntimeError, TimeoutError):
    """A call took longer than its timeout. The text begins `RPC ran for more than set timeout (N ms)`."""


class CallCancelledError(RpcGroupError, RuntimeError):
    """The call was cancelled before its function started."""


class PeerUnreachableError(RpcGroupError, RuntimeError, ConnectionError):
    """The callee died or cannot be reached. The function of a pending call ran at most once."""


class UnknownWorkerError(RpcGroupError, RuntimeError, ValueError):
    """No member of the group has that name, id or info."""


class FunctionNotFoundError(RpcGroupError, AttributeError, RuntimeError):
    """The callee cannot import the function; raised by the callee, and nothing was run."""


class SerializationError(RpcGroupError, RuntimeError, TypeError):
    """An argument or a result cannot be sent; raised at the sender, and nothing was sent."""


class DevicePlacementError(SerializationError):
    """A tensor is on a device that no device map has for the receiver; the text names tensor, device and map."""


class MessageTooLargeError(SerializationError):
    """A message is over the cap; raised at the sender, and nothing was sent."""


# References.
class RRefError(RpcGroupError, RuntimeError):
    """A reference cannot be used: its creation failed, or it is used where it must not be."""


class RRefCreationTimeoutError(RRefError, TimeoutError):
    """`remote` was not answered in time: the value may or may not exist on its owner."""


class OwnerDiedError(RRefError, PeerUnreachableError):
    """The worker that held the value of an RRef is dead; the value is lost."""


class WorkerNameError(RpcGroupError, RuntimeError, ValueError):
    """No worker can have that name."""


# The wire.
class ProtocolError(RpcGroupError):
    """The wire protocol was violated."""


class LocalProtocolError(ProtocolError):
    """By this process: a bug here."""


class RemoteProtocolError(ProtocolError):
    """By the peer: it is disconnected, nothing of what it sent is used."""


class HandshakeError(RemoteProtocolError, ConnectionError):
    """The peer did not prove the group's secret, or speaks another version, or is not who it should be."""


# Membership.
class GroupError(RpcGroupError, RuntimeError):
    """Something about the group."""


class UnknownGroupError(GroupError, ValueError):
    """No group of that name runs on this machine."""


class RendezvousError(GroupError):
    """The rendezvous refused an operation."""


class RendezvousUnavailableError(RendezvousError, ConnectionError):
    """No endpoint of the rendezvous answers."""


class JoinError(GroupError, ValueError):
    """This worker does not fit into the group; the text names the member and the reason."""


class DeviceMapError(JoinError):
    """Device maps do not fit together; the text names the worker and the maps."""


class MemberExistsError(JoinError):
    """A live member has this name already."""


class EtcdServerError(GroupError):
    """There is no etcd to run here, or it does not start; the text says what was tried and what to do."""


class DrainedError(GroupError):
    """The work was refused because the worker is leaving."""


# The resource.
class ManifestError(RpcGroupError, ValueError):
    """A manifest is not valid: a line of text for each fault, with the field's path and what is expected."""


# Errors of programs.
def original_type(exc: BaseException) -> type[BaseException]:
    """What it was before `and_runtime_error`."""
    kind: type[BaseException] = getattr(type(exc), "_rpcgroup_original", type(exc))
    return kind


def and_runtime_error(cls: Any) -> Any:
    """That exception class, as one of RuntimeErrors too: what torch makes of errors that pass through its C++."""
    return cls if issubclass(cls, RuntimeError) else _both(cls)


@functools.cache
def _both(cls: Any) -> Any:
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "_rpcgroup_original": cls}
    try:
        return type(cls.__name__, (cls, RuntimeError), names)
    except TypeError:  # a metaclass or a final class of its own
        return cls
