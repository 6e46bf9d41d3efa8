from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from rpcgroup.errors import DevicePlacementError, JoinError
from rpcgroup.testing.cluster import LocalCluster
from rpcgroup.testing.recording_device import RecordingDevice, recording_device

ZERO, ONE = torch.device("cuda", 0), torch.device("cuda", 1)
ROLE_MAPS = {"trainer": {"server": {"cuda:0": "cuda:1"}}}


def place(tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
    """Where it has arrived, and a result from there."""
    return str(tensor.device), tensor + 1


@pytest.fixture
def device() -> Iterator[RecordingDevice]:
    with recording_device() as device:
        yield device


@pytest.fixture
def cluster(device: RecordingDevice) -> Iterator[LocalCluster]:
    """`t0` says of `s1` itself where its `cuda:0` stands there."""
    own = {"t0": {"s1": {"cuda:0": "cuda:0"}}}
    with LocalCluster(device_maps=own, role_device_maps=ROLE_MAPS) as cluster:
        cluster.join("t0", role="trainer")
        cluster.join("s0", role="server")
        cluster.join("s1", role="server")
        yield cluster


def sees(cluster: LocalCluster, caller: str, callee: str, device: RecordingDevice) -> str:
    """Where a tensor of the caller's first device arrives; its answer is back where it came from."""
    where, answer = cluster.agent(caller).rpc_sync(callee, place, (device.tensor([1.0, 2.0], ZERO),))
    assert answer.device == ZERO
    assert device.to_host(answer).tolist() == [2.0, 3.0]
    return str(where)


def test_tensors_go_by_the_map_for_the_callees_role_and_back(
    cluster: LocalCluster, device: RecordingDevice
) -> None:
    assert sees(cluster, "t0", "s0", device) == "cuda:1"
    assert sees(cluster, "t0", "s1", device) == "cuda:0"
    assert cluster["t0"].devices == [ZERO]
    assert cluster["s0"].devices == [ONE]
    assert cluster["s0"].reverse_device_maps == {"t0": {ONE: ZERO}}


def test_who_joins_later_has_the_maps_of_its_role(cluster: LocalCluster, device: RecordingDevice) -> None:
    cluster.join("t1", role="trainer")
    cluster.join("s2", role="server")
    assert sees(cluster, "t1", "s1", device) == "cuda:1"
    assert sees(cluster, "t0", "s2", device) == sees(cluster, "t1", "s2", device) == "cuda:1"


def test_a_role_without_a_map_is_sent_no_tensor_on_a_device(
    cluster: LocalCluster, device: RecordingDevice
) -> None:
    tensor = device.tensor([1.0], ZERO)
    with pytest.raises(DevicePlacementError, match=r"on the way to t0; its map: none"):
        cluster.agent("s0").rpc_sync("t0", place, (tensor,))


def test_a_worker_without_the_devices_of_its_roles_map_does_not_join() -> None:
    with recording_device(device_count=1), LocalCluster(role_device_maps=ROLE_MAPS) as cluster:
        cluster.join("t0", role="trainer")
        with pytest.raises(
            JoinError, match="Node t0 has target devices with invalid indices in its device map for s0"
        ):
            cluster.join("s0", role="server")
        cluster.join("c0", role="other")
        assert sorted(member.name for member in cluster["t0"].members()) == ["c0", "t0"]
