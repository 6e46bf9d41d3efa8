"""CUDA's devices for the suite where there are none: those of a recording device, whose order each test checks."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

from rpcgroup.testing.emulated_cuda import emulate_cuda
from rpcgroup.testing.recording_device import RecordingDevice

__all__ = ["emulate", "put_our_futures"]

DEVICES = 4
"""As many as any of the tests needs."""
RACES = {
    "test_cuda_future_callback_changes_devices": "what the default stream fills with zeros is used on other streams",
    "test_cuda_future_value_on_bad_device": "what the default stream fills with zeros is used on other streams",
}
"""Tests that are not in order themselves, which a device is too quick to show: their values are checked alone."""


def emulate() -> None:
    """For this process; before anything is imported that looks for CUDA."""
    check_after_each_test(emulate_cuda(DEVICES))


def check_after_each_test(device: RecordingDevice) -> None:
    """A use of a tensor that is not ordered fails the test, in whichever of its processes it was."""
    from torch.testing._internal.common_distributed import MultiProcessTestCase

    join_or_run = MultiProcessTestCase.join_or_run

    def join_or_run_and_check(self: Any, test: Callable[[], None]) -> Any:
        def run() -> None:
            test()
            gc.collect()  # a tensor in a cycle is freed
            if self._testMethodName not in RACES:
                device.check()
            elif not device.violations:
                raise AssertionError("it is in order: take it off the list of RACES")

        return join_or_run(self, run)

    MultiProcessTestCase.join_or_run = join_or_run_and_check


def put_our_futures() -> None:
    """In the place of those that the suite makes itself: torch's are C++ and need a driver where they have devices."""
    from torch.testing._internal.distributed.rpc import rpc_test

    from rpcgroup.futures import Future

    rpc_test.Future = Future
