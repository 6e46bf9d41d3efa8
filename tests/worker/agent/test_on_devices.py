"""Groups with devices, without a GPU: what tests/gpu does on CUDA's, on recorded ones, with their order checked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from rpcgroup.testing.cluster import LocalCluster
from rpcgroup.testing.recording_device import recording_device
from tests.gpu.scenarios import SCENARIOS, Scenario, World, large

MAPS = {
    "here": {
        "there": {"cuda:0": "cuda:1", "cuda:1": "cuda:0"},
        "host": {"cuda:0": "cpu"},
        "push": {"cpu": "cuda:0"},
    }
}


@pytest.fixture(params=["memory", "tcp"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    with recording_device() as device:
        names = ("here", "there", "host", "push", "plain")
        with LocalCluster(names, transport=request.param, device_maps=MAPS) as cluster:
            yield World(cluster.agent("here"), device, torch.device("cuda", 1))


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_scenario(scenario: Scenario, world: World) -> None:
    scenario(world)


@pytest.mark.parametrize("size", [1, 4096, 64 << 10, (4 << 20) + 1, 20 << 20])
def test_of_any_size(size: int, world: World) -> None:
    large(world, size)
