from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from examples.digits import demo


@pytest.fixture
def manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The sample's job under a name of its own, with two trainers, and done as soon as it is good enough."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    group = yaml.safe_load(demo.MANIFEST.read_text())
    group["metadata"]["name"] = "small"
    group["spec"]["replicas"] = 2
    group["spec"]["roles"][0]["template"]["spec"]["containers"][0]["args"] = ["--target", "0.95"]
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(group))
    return path


def test_the_job_reaches_its_accuracy_and_loses_no_gradient(
    manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = demo.Demo(manifest, "small")
    try:
        job.until("a trainer is ready", lambda trainers: len(trainers) >= 1)
        code = job.finish()
    finally:
        job.close()
    assert demo.faults(job, code, killed=[]) == []
    assert job.summary["gradients"] > 0
    assert "small: Complete" in capsys.readouterr().out


def test_a_fault_is_told() -> None:
    class Finished(demo.Demo):
        def __init__(self) -> None:
            self.summary = {"accuracy": 0.9, "gradients": 5, "lost": 1, "repeated": 0, "killed": ["w"]}

    found = demo.faults(Finished(), 0, killed=[])
    assert found == ["accuracy 90.0%, not 95%", "1 gradient calls lost", "killed: ['w'], not []"]
