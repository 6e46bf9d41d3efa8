"""The devices that a future is told of when it is made: what its value may be on, and what its callbacks may use.

Source: torch's own future, whose refusals and texts these are (`ATen/core/ivalue_inl.h`).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

__all__ = ["expected_devices", "require_expected"]


def expected_devices(devices: Iterable[int | str | torch.device]) -> tuple[torch.device, ...]:
    """Each once and in order, none where they are the CPU.

    Raises `ValueError` where one has no index, or where they are not of one kind.
    """
    expected = {torch.device("cuda", d) if isinstance(d, int) else torch.device(d) for d in devices}
    for device in expected:
        if device.index is None:
            raise ValueError(f"Expected devices to have indices, got {device}")
    kinds = {device.type for device in expected}
    if len(kinds) > 1:
        raise ValueError(f"Expected all devices to be of the same type, got {_listed(expected)}")
    return tuple(_in_order(expected)) if kinds != {"cpu"} else ()


def require_expected(tensors: Iterable[torch.Tensor], expected: tuple[torch.device, ...]) -> None:
    """Raises `ValueError` where a tensor is on a device that is not among the expected ones."""
    unexpected = {tensor.device for tensor in tensors}.difference(expected)
    if unexpected:
        raise ValueError(
            f"The result contained tensors residing on device(s) {_listed(unexpected)} "
            f"which are not among the expected device(s) {_listed(expected)}"
        )


def _in_order(devices: Iterable[torch.device]) -> list[torch.device]:
    return sorted(devices, key=lambda device: (device.type, device.index))


def _listed(devices: Iterable[torch.device]) -> str:
    *others, last = map(str, _in_order(devices))
    return f"{', '.join(others)} and {last}" if others else last
