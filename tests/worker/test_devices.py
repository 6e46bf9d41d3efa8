from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rpcgroup.devices import (
    as_device_map,
    as_devices,
    device_list,
    maps_of,
    maps_text,
    reverse_maps,
    validate_group,
    validate_joiner,
)
from rpcgroup.errors import DeviceMapError
from rpcgroup.membership.record import MemberRecord

CUDA = [torch.device("cuda", i) for i in range(4)]
CPU = torch.device("cpu")


def record(name: str, count: int = 2, devices: Any = (), **maps: dict[str, str]) -> MemberRecord:
    return MemberRecord(name=name, devices=tuple(devices), device_count=count, device_maps=maps)


def test_a_map_may_be_written_with_numbers_strings_and_devices() -> None:
    assert as_device_map({0: "cuda:1", "cuda:1": 0, CPU: "cpu"}) == {
        CUDA[0]: CUDA[1],
        CUDA[1]: CUDA[0],
        CPU: CPU,
    }


def test_two_devices_cannot_map_to_one() -> None:
    with pytest.raises(
        ValueError, match="only supports 1-to-1 mapping, trying to map cuda:1 and cuda:0 to cuda:0"
    ):
        as_device_map({0: 0, 1: 0})


def test_a_workers_devices_are_accelerators() -> None:
    assert as_devices([1, "cuda:0"]) == [CUDA[1], CUDA[0]]
    with pytest.raises(ValueError, match="got device type cpu"):
        as_devices(["cpu"])


def test_the_text_of_maps_comes_back_as_it_was() -> None:
    maps = {"b": {CUDA[0]: CUDA[1], CPU: CPU}}
    assert maps_of(MemberRecord(name="a", device_maps=maps_text(maps))) == maps


def test_a_reverse_map_leads_back() -> None:
    records = [record("a", b={"cuda:0": "cuda:1"}), record("b", b={"cuda:0": "cuda:0"}), record("c")]
    assert reverse_maps("b", records) == {"a": {CUDA[1]: CUDA[0]}, "b": {CUDA[0]: CUDA[0]}}
    assert reverse_maps("a", records) == {}


def test_the_device_list_is_the_given_one_or_all_that_the_maps_name() -> None:
    maps, back = {"b": {CUDA[3]: CUDA[0], CPU: CPU}}, {"c": {CUDA[1]: CUDA[2]}}
    assert device_list([CUDA[2], CUDA[0]], maps, back) == [CUDA[0], CUDA[2]]
    assert device_list([], maps, back) == [CUDA[1], CUDA[3]]
    assert device_list([], {}, {}) == []


INVALID = {
    "duplicated devices": (
        [record("a", devices=["cuda:0", "cuda:0"])],
        r"Node a has duplicated devices\ndevices = \[device\(type='cuda', index=0\), device",
    ),
    "devices that do not exist": (
        [record("a", 1, devices=["cuda:1"])],
        r"Node a has devices with invalid indices\ndevices = .*\ndevice count = 1",
    ),
    "devices of another type": ([record("a", devices=["xpu:0"])], "Node a has devices with invalid indices"),
    "devices without an index": ([record("a", devices=["cuda"])], "Node a has devices with invalid indices"),
    "two to one": (
        [record("a", b={"cuda:0": "cuda:0", "cuda:1": "cuda:0"}), record("b")],
        "Node a has duplicated target devices in its device map for b\ndevice map = {",
    ),
    "sources beside the list": (
        [record("a", devices=["cuda:0"], b={"cuda:1": "cuda:0"}), record("b")],
        r"Node a has unexpected source devices in its device map for b\ndevice map = .*\ndevices = ",
    ),
    "sources that do not exist": (
        [record("a", 1, b={"cuda:1": "cuda:0"}), record("b")],
        r"Node a has source devices with invalid indices in its device map for b\n.*\ndevice count = 1",
    ),
    "targets beside the list": (
        [record("a", b={"cuda:0": "cuda:0"}), record("b", devices=["cuda:1"])],
        r"Node a has unexpected target devices in its device map for b\n.*\ndevices = .*index=1",
    ),
    "targets that do not exist": (
        [record("a", b={"cuda:0": "cuda:1"}), record("b", 1)],
        r"Node a has target devices with invalid indices in its device map for b\n.*\ndevice count = 1",
    ),
    "to oneself": (
        [record("a", 1, a={"cuda:0": "cuda:1"})],
        "Node a has target devices with invalid indices in its device map for a",
    ),
}


@pytest.mark.parametrize(("records", "text"), INVALID.values(), ids=INVALID)
def test_what_does_not_fit_is_refused(records: list[MemberRecord], text: str) -> None:
    for is_static in (True, False):
        with pytest.raises(DeviceMapError, match=text) as caught:
            validate_group(records, is_static=is_static)
        assert isinstance(caught.value, ValueError)
    # Whoever comes last finds it.
    for i in range(len(records)):
        with pytest.raises(DeviceMapError, match=text):
            validate_joiner(records[i], records[:i] + records[i + 1 :])
            validate_joiner(records[i - 1], [])


def test_unknown_targets_are_refused_in_static_groups_alone() -> None:
    records = [record("a", b={"cuda:0": "cuda:1"})]
    text = r"Node a has invalid target node names in its device maps\ndevice maps = .*'b'.*\nnode names = \['a'\]"
    with pytest.raises(DeviceMapError, match=text):
        validate_group(records, is_static=True)
    validate_group(records, is_static=False)
    validate_joiner(records[0], [])


def test_own_devices_are_judged_before_maps_and_unknown_targets_before_the_rest() -> None:
    unknown = record("a", 0, z={"cuda:0": "cuda:0", "cuda:1": "cuda:0"})
    with pytest.raises(DeviceMapError, match="Node b has duplicated devices"):
        validate_group([unknown, record("b", devices=["cuda:0", "cuda:0"])], is_static=True)
    with pytest.raises(DeviceMapError, match="invalid target node names"):
        validate_group([unknown], is_static=True)
    with pytest.raises(DeviceMapError, match="duplicated target devices"):
        validate_group([unknown], is_static=False)


def test_a_joiner_does_not_answer_for_what_others_are_to_each_other() -> None:
    others = [record("a", 0, b={"cuda:0": "cuda:0"}), record("b", 0)]
    validate_joiner(record("c", a={"cpu": "cpu"}), others)


@given(st.permutations(range(4)), st.integers(1, 4))
def test_the_reverse_of_a_valid_map_is_valid_and_its_own_reverse(targets: list[int], count: int) -> None:
    maps = {f"cuda:{i}": f"cuda:{target}" for i, target in enumerate(targets)}
    one, two = record("a", 4, b=maps), record("b", count)
    if count < 4:
        with pytest.raises(DeviceMapError, match="target devices with invalid indices"):
            validate_group([one, two], is_static=True)
        return
    validate_group([one, two], is_static=True)
    back = reverse_maps("b", [one, two])["a"]
    assert {v: k for k, v in back.items()} == maps_of(one)["b"]
    validate_group([record("a", 4), record("b", 4, a=maps_text({"a": back})["a"])], is_static=True)
