"""Device maps: which device of this worker stands for which of another's. Pure; the records carry them as text.

A map is source device -> target device, one to one. What a worker sends to another moves along its map for that
worker, what it gets back along the same map inverted. Source of the rules and of their order: torch's
`torch.distributed.rpc.backend_registry`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch

from rpcgroup.cuda.runtime import current_runtime
from rpcgroup.errors import DeviceMapError, DevicePlacementError
from rpcgroup.membership.record import MemberRecord

__all__ = [
    "Device",
    "DeviceMap",
    "DevicePlacement",
    "as_device_map",
    "as_devices",
    "device_count",
    "device_list",
    "maps_of",
    "maps_text",
    "reverse_maps",
    "validate_group",
    "validate_joiner",
]

Device = int | str | torch.device
"""What a user may write for a device; a number is an index of CUDA."""
DeviceMap = dict[torch.device, torch.device]


# What users write.
def as_device_map(device_map: Mapping[Device, Device]) -> DeviceMap:
    """The map in torch's devices; raises `ValueError` where two devices map to one."""
    result: DeviceMap = {}
    sources: DeviceMap = {}
    for source, target in ((_as_device(k), _as_device(v)) for k, v in device_map.items()):
        if target in sources:
            raise ValueError(
                "`device_map` only supports 1-to-1 mapping, trying to map "
                f"{source} and {sources[target]} to {target}"
            )
        result[source] = target
        sources[target] = source
    return result


def as_devices(devices: Iterable[Device]) -> list[torch.device]:
    """A worker's own devices; raises `ValueError` for one that is not of the accelerator's type."""
    result = [_as_device(device) for device in devices]
    for device in result:
        if device.type != accelerator_type():
            raise ValueError(
                f"`set_devices` expect a list of {accelerator_type().upper()} devices, but got "
                f"device type {device.type}."
            )
    return result


def _as_device(device: Device) -> torch.device:
    if isinstance(device, int) and device >= 0:
        return torch.device(accelerator_type(), device)  # torch 2.6 takes no number where there is none
    return torch.device(device)


def accelerator_type() -> str:
    """Of this process's accelerator; `cuda` where there is none."""
    try:
        accelerator = torch.accelerator.current_accelerator()
    except RuntimeError:  # torch 2.6 raises where there is none
        accelerator = None
    return accelerator.type if accelerator is not None else "cuda"


def device_count() -> int:
    """Of this process's accelerator; 0 where there is none."""
    runtime = current_runtime()
    return runtime.device_count() if runtime is not None else 0


# What a record says.
def maps_text(maps: Mapping[str, DeviceMap]) -> dict[str, dict[str, str]]:
    """As a member record carries them."""
    return {target: {str(k): str(v) for k, v in device_map.items()} for target, device_map in maps.items()}


def maps_of(record: MemberRecord) -> dict[str, DeviceMap]:
    return {
        target: {torch.device(k): torch.device(v) for k, v in device_map.items()}
        for target, device_map in record.device_maps.items()
    }


def reverse_maps(name: str, records: Iterable[MemberRecord]) -> dict[str, DeviceMap]:
    """For each worker that has a map for `name`: from `name`'s devices back to that worker's."""
    return {
        record.called: {torch.device(v): torch.device(k) for k, v in record.device_maps[name].items()}
        for record in records
        if name in record.device_maps
    }


def device_list(
    devices: Sequence[torch.device], maps: Mapping[str, DeviceMap], reversed_maps: Mapping[str, DeviceMap]
) -> list[torch.device]:
    """The devices that a worker sends from and receives on, by index: those it was given, else all that its own
    maps and those of others for it name, but the CPU.
    """
    if devices:
        return sorted(devices, key=_by_index)
    named = {device for device_map in (*maps.values(), *reversed_maps.values()) for device in device_map}
    return sorted((device for device in named if device.type != "cpu"), key=_by_index)


def _by_index(device: torch.device) -> tuple[int, str]:
    return -1 if device.index is None else device.index, device.type


# Where a tensor goes.
class DevicePlacement:
    """Of the tensors that one worker is sent: requests go along the map for it, answers along its map inverted.

    From the CPU to the CPU, unless the map says otherwise.
    """

    def __init__(self, to: str, device_map: DeviceMap, *, is_answer: bool = False) -> None:
        self._to = to
        self._map = device_map
        self._is_answer = is_answer
        self.moves_cpu = any(d.type == "cpu" and t.type != "cpu" for d, t in device_map.items())

    def target(self, tensor: torch.Tensor) -> int:
        """Index of the receiver's device, -1 for the CPU; raises `DevicePlacementError`."""
        device = tensor.device
        target = self._map.get(device)
        if target is None:
            if device.type == "cpu":
                return -1
            raise self._unavailable(tensor)
        return -1 if target.type == "cpu" else target.index

    def _unavailable(self, tensor: torch.Tensor) -> DevicePlacementError:
        kind = "Response" if self._is_answer else "Request"
        pairs = ", ".join(f"{source} -> {target}" for source, target in self._map.items())
        return DevicePlacementError(
            f"cannot be sent: a tensor of shape {tuple(tensor.shape)} is on {tensor.device}. "
            "TensorPipe RPC backend only supports CPU tensors by default: move it to the CPU, or call "
            f"`set_device_map` on `TensorPipeRpcBackendOptions`. {kind} device mapping is not available for "
            f"{tensor.device} on the way to {self._to}; its map: {pairs or 'none'}"
        )


# Whether they fit together.
class _Node(NamedTuple):
    name: str
    devices: list[torch.device]
    device_count: int
    maps: dict[str, DeviceMap]

    @classmethod
    def of(cls, record: MemberRecord) -> _Node:
        return cls(
            record.called, [torch.device(d) for d in record.devices], record.device_count, maps_of(record)
        )


def validate_group(records: Iterable[MemberRecord], *, is_static: bool) -> None:
    """Whether the maps of all members fit; raises `DeviceMapError`, the same one wherever it is asked.

    In a group that is not static a map may name workers that are not there yet.
    """
    nodes = {record.called: _Node.of(record) for record in records}
    for node in nodes.values():
        _check_own_devices(node)
    for source in nodes.values():
        if is_static:
            _check_targets_are_known(source, list(nodes))
        for target in source.maps:
            _check_map(source, target, nodes.get(target))


def validate_joiner(mine: MemberRecord, earlier: Iterable[MemberRecord]) -> None:
    """Whether a worker's maps fit to those of the members that were there first, both ways; raises
    `DeviceMapError`. What they are to each other was judged as each of them came.
    """
    me = _Node.of(mine)
    _check_own_devices(me)
    nodes = {r.called: _Node.of(r) for r in earlier if r.called in me.maps or me.name in r.device_maps}
    nodes[me.name] = me
    for target in me.maps:
        _check_map(me, target, nodes.get(target))
    for node in nodes.values():
        if node is not me and me.name in node.maps:
            _check_map(node, me.name, me)


def _check_own_devices(node: _Node) -> None:
    if len(set(node.devices)) != len(node.devices):
        raise DeviceMapError(f"Node {node.name} has duplicated devices\ndevices = {node.devices}")
    if not _exist(node.devices, node.device_count):
        raise DeviceMapError(
            f"Node {node.name} has devices with invalid indices\n"
            f"devices = {node.devices}\ndevice count = {node.device_count}"
        )


def _check_targets_are_known(source: _Node, names: list[str]) -> None:
    if not source.maps.keys() <= set(names):
        raise DeviceMapError(
            f"Node {source.name} has invalid target node names in its device maps\n"
            f"device maps = {source.maps.keys()}\nnode names = {names}"
        )


def _check_map(source: _Node, target: str, node: _Node | None) -> None:
    """One map of one worker; `node` is its target, None where that is not there."""
    device_map = source.maps[target]
    if len(set(device_map.values())) != len(device_map):
        raise DeviceMapError(
            f"Node {source.name} has duplicated target devices in its device map for {target}\n"
            f"device map = {device_map}"
        )
    _check_side("source", source.name, target, device_map, device_map.keys(), source)
    if node is not None:
        _check_side("target", source.name, target, device_map, device_map.values(), node)


def _check_side(
    side: str, name: str, target: str, device_map: DeviceMap, devices: Iterable[torch.device], node: _Node
) -> None:
    """One side of a map against the worker whose devices it names."""
    if node.devices:
        if not set(devices) <= set(node.devices):
            raise DeviceMapError(
                f"Node {name} has unexpected {side} devices in its device map for {target}\n"
                f"device map = {device_map}\ndevices = {node.devices}"
            )
    elif not _exist(devices, node.device_count):
        raise DeviceMapError(
            f"Node {name} has {side} devices with invalid indices in its device map for {target}\n"
            f"device map = {device_map}\ndevice count = {node.device_count}"
        )


def _exist(devices: Iterable[torch.device], count: int) -> bool:
    kind = accelerator_type()
    return all(
        d.type == "cpu" or (d.type == kind and d.index is not None and 0 <= d.index < count) for d in devices
    )
