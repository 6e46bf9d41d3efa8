"""The digits job as real pods, with the operator in pods of its own: `make demo-cluster` as a test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.bed.installation import installed
from tests.cluster.bed.real_cluster import RealCluster
from tests.cluster.digits import TARGET, Digits


@pytest.mark.timeout(1200)
def test_the_digits_job_ends_well_through_scaling_and_a_kill(
    real_cluster: RealCluster, real_namespace: str, programs: Path
) -> None:
    with installed(real_cluster, programs):
        assert Digits(real_cluster.access, real_namespace, print).run() >= 100 * TARGET
