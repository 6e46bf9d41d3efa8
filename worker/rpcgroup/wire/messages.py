"""The message types of the protocol: one number each, carried in a frame's `kind`.

The names are those of torch's RPC protocol (`torch/csrc/distributed/rpc/message.h`), so that fault injection
keyed on them works; what is ours stands below them.
"""

from __future__ import annotations

import enum

__all__ = ["MessageType"]


class MessageType(enum.IntEnum):
    """`ACK` is the only kind that is not counted, retained or replayed by a channel."""

    ACK = 0
    RESPONSE = 1
    EXCEPTION = 2
    PYTHON_CALL = 3
    SCRIPT_CALL = 4
    PYTHON_REMOTE_CALL = 5
    SCRIPT_REMOTE_CALL = 6
    PYTHON_RREF_FETCH_CALL = 7
    SCRIPT_RREF_FETCH_CALL = 8
    RREF_USER_DELETE = 9
    RREF_CHILD_ACCEPT = 10
    RREF_FORK_REQUEST = 11
    RREF_ACK = 12
    REMOTE_RET = 13
    FORWARD_AUTOGRAD_REQ = 14
    FORWARD_AUTOGRAD_RESP = 15
    BACKWARD_AUTOGRAD_REQ = 16
    BACKWARD_AUTOGRAD_RESP = 17
    CLEANUP_AUTOGRAD_CONTEXT_REQ = 18
    CLEANUP_AUTOGRAD_CONTEXT_RESP = 19
    RUN_WITH_PROFILING_REQ = 20
    RUN_WITH_PROFILING_RESP = 21
    # Ours.
    DEFINE_FUNCTION = 32
    """Gives a function a number on this channel; later calls name the number."""
    CANCEL = 33
    """The caller no longer wants the call of this id: do not start it."""
    AUTOGRAD_CONTEXT_QUERY = 35
    """Whether the receiver, which made this autograd context, has it still: the answer is a bool."""
    GOODBYE = 34
    """The sender of responses is leaving: calls that arrive from now on are refused, not run."""
    TENSOR_CHUNK = 36
    """Bytes of a tensor on a device. The header's id is the transfer, its function the tensor's place in the table
    of payloads, its timeout the chunk's place in the tensor; the bytes are the only buffer."""
    TENSOR_FAILED = 37
    """What this transfer (the id) still lacks does not come; the body is the exception, as that of `EXCEPTION`."""
    TENSOR_RELEASE = 38
    """The memory that this transfer (the id) shares with the sender of this has been read."""
    IPC_PROBE = 39
    """Asks whether the receiver can open the memory that the body names: the answer is what it read there."""
