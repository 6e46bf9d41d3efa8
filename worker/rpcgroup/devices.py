"""Device maps: which device of this worker stands for which of another's. Pure; the records carry them as text.

A map is source device -> target device, one to one. What a worker sends to another moves along its map for that
worker, what it gets back along the same map inverted. Source of the rules and of their order: torch's
`torch.distributed.rpc.backend_registry`. Maps by the target's role are this package's own; see `map_for`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping
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
    "map_for",
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
    """Its own, by the names of their targets."""
    return {target: _parsed(device_map) for target, device_map in record.device_maps.items()}


def map_for(source: MemberRecord, target: MemberRecord) -> DeviceMap:
    """How the devices of `source` stand to those of `target`: the one map that counts between the two.

    It is the map of `source` for the target's role, and over it, device by device, what `source` says itself of the
    target by name: a device that both name goes where the latter says. Empty where there is neither.
    """
    of_role = source.role_device_maps.get(target.role, {})
    return _parsed({**of_role, **source.device_maps.get(target.called, {})})


def _has_map(source: MemberRecord, target: MemberRecord) -> bool:
    return target.called in source.device_maps or target.role in source.role_device_maps


def _parsed(device_map: Mapping[str, str]) -> DeviceMap:
    return {_named(k): _named(v) for k, v in device_map.items()}


@functools.lru_cache(maxsize=1024)
def _named(text: str) -> torch.device:
    """Records name the same few, thousands of times in a large group."""
    return torch.device(text)


def reverse_maps(me: MemberRecord, records: Iterable[MemberRecord]) -> dict[str, DeviceMap]:
    """For each worker that has a map for me: from my devices back to that worker's."""
    return {
        record.called: {mine: theirs for theirs, mine in map_for(record, me).items()}
        for record in records
        if _has_map(record, me)
    }


def device_list(me: MemberRecord, others: Iterable[MemberRecord]) -> list[torch.device]:
    """The devices that a worker sends from and receives on, by index: those it was given, else all that its own
    maps and those of others for it name, but the CPU.
    """
    if me.devices:
        return sorted(map(torch.device, me.devices), key=_by_index)
    own = (_parsed(device_map) for device_map in (*me.device_maps.values(), *me.role_device_maps.values()))
    maps = itertools.chain(own, reverse_maps(me, others).values())
    named = set(itertools.chain.from_iterable(maps))
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
        self.leaves_for_cpu = any(d.type != "cpu" and t.type == "cpu" for d, t in device_map.items())

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
    record: MemberRecord

    @classmethod
    def of(cls, record: MemberRecord) -> _Node:
        return cls(record.called, [torch.device(d) for d in record.devices], record.device_count, record)


class _Map(NamedTuple):
    of: _Node
    target: str
    """A worker's name, or what a role is called in a message."""
    node: _Node | None
    """The target, where it is a worker that is there."""
    devices: DeviceMap


def validate_group(records: Iterable[MemberRecord], *, is_static: bool) -> None:
    """Whether the maps of all members fit; raises `DeviceMapError`, the same one wherever it is asked.

    In a group that is not static a map may name workers that are not there yet. Nobody need have a role that has a
    map; it is judged by itself, and with each worker of the role as `map_for` has it.
    """
    nodes = {record.called: _Node.of(record) for record in records}
    for node in nodes.values():
        _check_own_devices(node)
    for source in nodes.values():
        if is_static:
            _check_targets_are_known(source, list(nodes))
        for device_map in _maps_of(source, nodes):
            _check_map(device_map)


def validate_joiner(mine: MemberRecord, earlier: Iterable[MemberRecord]) -> None:
    """Whether a worker's maps fit to those of the members that were there first, both ways; raises
    `DeviceMapError`. What they are to each other was judged as each of them came.
    """
    me = _Node.of(mine)
    _check_own_devices(me)
    nodes = {r.called: _Node.of(r) for r in earlier if _has_map(mine, r) or _has_map(r, mine)}
    nodes[me.name] = me
    for device_map in _maps_of(me, nodes):
        _check_map(device_map)
    for node in nodes.values():
        if node is not me and _has_map(node.record, mine):
            _check_map(_Map(node, me.name, me, map_for(node.record, mine)))


def _maps_of(source: _Node, nodes: Mapping[str, _Node]) -> Iterator[_Map]:
    """Those for workers by name, be they there or not, those for roles, and those for the workers of these."""
    record = source.record
    for name, own in maps_of(record).items():
        node = nodes.get(name)
        yield _Map(source, name, node, own if node is None else map_for(record, node.record))
    for role, of_role in record.role_device_maps.items():
        yield _Map(source, f"role {role}", None, _parsed(of_role))
    for name, node in nodes.items():
        if node.record.role in record.role_device_maps and name not in record.device_maps:
            yield _Map(source, name, node, map_for(record, node.record))


def _check_own_devices(node: _Node) -> None:
    if len(set(node.devices)) != len(node.devices):
        raise DeviceMapError(f"Node {node.name} has duplicated devices\ndevices = {node.devices}")
    if not _exist(node.devices, node.device_count):
        raise DeviceMapError(
            f"Node {node.name} has devices with invalid indices\n"
            f"devices = {node.devices}\ndevice count = {node.device_count}"
        )


def _check_targets_are_known(source: _Node, names: list[str]) -> None:
    maps = source.record.device_maps
    if not maps.keys() <= set(names):
        raise DeviceMapError(
            f"Node {source.name} has invalid target node names in its device maps\n"
            f"device maps = {maps.keys()}\nnode names = {names}"
        )


def _check_map(checked: _Map) -> None:
    source, target, node, device_map = checked
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
