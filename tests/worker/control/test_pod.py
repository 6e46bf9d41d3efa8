from __future__ import annotations

import pytest

from rpcgroup.control.pod import BACKOFF_CAP, HEALTHY_AFTER, backoff, failures_in_a_row, pod_name


def test_names() -> None:
    assert pod_name("digits", "server", 0) == "digits-server-0"


@pytest.mark.parametrize(("failures", "seconds"), [(1, 1.0), (2, 2.0), (3, 4.0), (10_000, BACKOFF_CAP)])
def test_backoff_doubles_up_to_the_cap(failures: int, seconds: float) -> None:
    assert backoff(failures) == seconds


def test_a_long_run_forgives_earlier_failures() -> None:
    assert failures_in_a_row(3, ran_for=HEALTHY_AFTER - 1) == 4
    assert failures_in_a_row(3, ran_for=HEALTHY_AFTER) == 1
