"""The digits job as real pods, with the operator in pods of its own: `make demo-cluster` as a test."""

from __future__ import annotations

import pytest

from tests.cluster.bed.real_cluster import RealCluster
from tests.cluster.digits import TARGET, Digits


@pytest.mark.timeout(1200)
def test_the_digits_job_ends_well_through_scaling_and_a_kill(
    operator_pods: RealCluster, real_namespace: str
) -> None:
    assert Digits(operator_pods.access, real_namespace, print).run() >= 100 * TARGET
