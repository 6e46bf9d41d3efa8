from __future__ import annotations

from rpcgroup.wire.messages import MessageType


def test_every_number_fits_a_frame_and_means_one_thing() -> None:
    numbers = [kind.value for kind in MessageType]
    assert len(numbers) == len(set(numbers)) == len(MessageType.__members__)
    assert all(0 <= number < 256 for number in numbers)


def test_torchs_names_are_there() -> None:
    """Fault injection of torch's own suite is keyed on them."""
    names = (
        "PYTHON_CALL PYTHON_REMOTE_CALL PYTHON_RREF_FETCH_CALL SCRIPT_CALL SCRIPT_REMOTE_CALL "
        "SCRIPT_RREF_FETCH_CALL RREF_FORK_REQUEST RREF_CHILD_ACCEPT RREF_USER_DELETE RREF_ACK REMOTE_RET "
        "CLEANUP_AUTOGRAD_CONTEXT_REQ EXCEPTION"
    )
    assert set(names.split()) <= set(MessageType.__members__)
