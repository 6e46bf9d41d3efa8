from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rpcgroup.devices import (
    as_device_map,
    as_devices,
    device_list,
    map_for,
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
    assert reverse_maps(records[1], records) == {"a": {CUDA[1]: CUDA[0]}, "b": {CUDA[0]: CUDA[0]}}
    assert reverse_maps(records[0], records) == {}


def test_the_device_list_is_the_given_one_or_all_that_the_maps_name() -> None:
    others = [record("c", 4, a={"cuda:2": "cuda:1"}), record("d", 4, c={"cuda:2": "cuda:0"})]
    maps = {"b": {"cuda:3": "cuda:0", "cpu": "cpu"}}
    assert device_list(record("a", 4, ["cuda:2", "cuda:0"], **maps), others) == [CUDA[0], CUDA[2]]
    assert device_list(record("a", 4, **maps), others) == [CUDA[1], CUDA[3]]
    assert device_list(record("b", 4), others) == []


def of_role(role: str, name: str, maps: Any, count: int = 2, devices: Any = (), **own: Any) -> MemberRecord:
    """`maps` are those of its role, by the role of the target."""
    return replace(record(name, count, devices, **own), role=role, role_device_maps=maps)


def test_a_map_for_a_role_is_one_for_each_worker_of_it() -> None:
    trainer = of_role("trainer", "t", {"server": {"cuda:0": "cuda:1"}})
    servers = [of_role("server", name, {}) for name in "ab"]
    for server in servers:
        assert map_for(trainer, server) == {CUDA[0]: CUDA[1]}
        assert reverse_maps(server, [trainer, *servers]) == {"t": {CUDA[1]: CUDA[0]}}
        assert map_for(server, trainer) == {}
    assert map_for(trainer, trainer) == {}


def test_what_a_worker_says_of_a_device_itself_goes_over_what_its_role_says_of_it() -> None:
    maps = {"server": {"cuda:0": "cuda:0", "cuda:1": "cuda:1"}}
    trainer = of_role("trainer", "t", maps, 4, a={"cuda:1": "cuda:2", "cuda:3": "cuda:3"})
    a, b = (of_role("server", name, {}, 4) for name in "ab")
    assert map_for(trainer, a) == {CUDA[0]: CUDA[0], CUDA[1]: CUDA[2], CUDA[3]: CUDA[3]}
    assert map_for(trainer, b) == {CUDA[0]: CUDA[0], CUDA[1]: CUDA[1]}


def test_the_device_list_has_what_maps_for_roles_name_whoever_is_there() -> None:
    trainer = of_role("trainer", "t", {"server": {"cuda:1": "cuda:3"}}, 4, a={"cuda:0": "cuda:0"})
    assert device_list(trainer, []) == [CUDA[0], CUDA[1]]
    assert device_list(of_role("server", "b", {}, 4), [trainer]) == [CUDA[3]]
    assert device_list(of_role("other", "c", {}, 4), [trainer]) == []


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
    "a role's two to one": (
        [of_role("t", "a", {"s": {"cuda:0": "cuda:0", "cuda:1": "cuda:0"}})],
        "Node a has duplicated target devices in its device map for role s\ndevice map = {",
    ),
    "a role's sources that do not exist": (
        [of_role("t", "a", {"s": {"cuda:1": "cuda:0"}}, 1)],
        r"Node a has source devices with invalid indices in its device map for role s\n.*\ndevice count = 1",
    ),
    "a role's sources beside the list": (
        [of_role("t", "a", {"s": {"cuda:1": "cuda:0"}}, devices=["cuda:0"])],
        r"Node a has unexpected source devices in its device map for role s\n",
    ),
    "a role's targets that one of it has not": (
        [of_role("t", "a", {"s": {"cuda:0": "cuda:1"}}), of_role("s", "b", {}, 1)],
        r"Node a has target devices with invalid indices in its device map for b\n.*\ndevice count = 1",
    ),
    "two to one by an own entry and one of the role": (
        [of_role("t", "a", {"s": {"cuda:0": "cuda:0"}}, b={"cuda:1": "cuda:0"}), of_role("s", "b", {})],
        "Node a has duplicated target devices in its device map for b\ndevice map = {",
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


def test_a_role_may_have_nobody() -> None:
    lonely = of_role("t", "a", {"s": {"cuda:0": "cuda:1"}})
    validate_group([lonely], is_static=True)
    validate_joiner(lonely, [])


DEVICES = st.sampled_from(["cpu", "cuda:0", "cuda:1", "cuda:2"])
MAPS = st.dictionaries(DEVICES, DEVICES, max_size=3)
ROLES = st.sampled_from(["s", "t"])
MEMBERS = st.lists(
    st.builds(
        MemberRecord,
        name=st.sampled_from("abcd"),
        role=ROLES,
        devices=st.sampled_from([(), (), ("cuda:0",), ("cuda:1", "cuda:0")]),
        device_count=st.integers(1, 3),
        device_maps=st.dictionaries(st.sampled_from("abcd"), MAPS, max_size=2),
        role_device_maps=st.dictionaries(ROLES, MAPS, max_size=1),
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda member: member.name,
)


def refused(check: Any, *args: Any, **kwargs: Any) -> bool:
    try:
        check(*args, **kwargs)
    except DeviceMapError:
        return True
    return False


@settings(max_examples=400)
@given(MEMBERS)
def test_a_group_fits_where_each_of_it_did_as_it_came(members: list[MemberRecord]) -> None:
    one_by_one = any(refused(validate_joiner, mine, members[:i]) for i, mine in enumerate(members))
    backwards = members[::-1]
    other_order = any(refused(validate_joiner, mine, backwards[:i]) for i, mine in enumerate(backwards))
    assert one_by_one == other_order == refused(validate_group, members, is_static=False)


@given(MEMBERS)
def test_what_fits_leads_there_and_back(members: list[MemberRecord]) -> None:
    if refused(validate_group, members, is_static=False):
        return
    for target in members:
        back = reverse_maps(target, members)
        for source in members:
            there = map_for(source, target)
            assert back.get(source.name, {}) == {v: k for k, v in there.items()}
            assert len(there) == len(set(there.values()))
            for device_map, node in ((there, source), (back.get(source.name, {}), target)):
                assert {d for d in device_map if d != CPU} <= set(device_list(node, members))


@given(st.permutations(range(4)), st.integers(1, 4))
def test_the_reverse_of_a_valid_map_is_valid_and_its_own_reverse(targets: list[int], count: int) -> None:
    maps = {f"cuda:{i}": f"cuda:{target}" for i, target in enumerate(targets)}
    one, two = record("a", 4, b=maps), record("b", count)
    if count < 4:
        with pytest.raises(DeviceMapError, match="target devices with invalid indices"):
            validate_group([one, two], is_static=True)
        return
    validate_group([one, two], is_static=True)
    back = reverse_maps(two, [one, two])["a"]
    assert {v: k for k, v in back.items()} == maps_of(one)["b"]
    validate_group([record("a", 4), record("b", 4, a=maps_text({"a": back})["a"])], is_static=True)
