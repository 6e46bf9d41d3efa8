from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from rpcgroup_operator.__main__ import main, silence


@pytest.fixture
def loggers() -> Iterator[None]:
    """As they were, afterwards."""
    levels = {name: logging.getLogger(name).level for name in ("kopf", "aiohttp.access")}
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.mark.usefixtures("loggers")
def test_probes_are_no_news(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    silence()
    logging.getLogger("aiohttp.access").info("GET /healthz")
    logging.getLogger("aiohttp.access").error("Error handling request")
    assert caplog.messages == ["Error handling request"]


def test_etcd_has_to_be_named() -> None:
    result = CliRunner().invoke(main, [])
    assert result.exit_code == 2
    assert "Missing option '--etcd'" in result.output


def test_without_a_cluster_it_says_so_in_one_line(tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith("KUBE")}
    done = subprocess.run(
        [sys.executable, "-m", "rpcgroup_operator", "--etcd=127.0.0.1:1"],
        env={**env, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "KUBECONFIG" in line
