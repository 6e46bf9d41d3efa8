"""Workers with recorded devices, so that the group itself can be tested without a GPU (tests/test_gpu_suite.py)."""

from __future__ import annotations

from rpcgroup.cuda.runtime import current_runtime, use_runtime
from rpcgroup.testing.recording_device import RecordingDevice
from tests.gpu import workers

__all__ = ["serve", "violations"]


def serve(name: str, names: list[str], meeting: str) -> None:
    if name != workers.NO_GPU:
        use_runtime(RecordingDevice())
    workers.serve(name, names, meeting)


def violations() -> list[str]:
    """Of the order of this worker's devices."""
    runtime = current_runtime()
    return runtime.violations if isinstance(runtime, RecordingDevice) else []
