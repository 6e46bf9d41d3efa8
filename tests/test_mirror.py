"""The tests mirror the sources: `worker/rpcgroup/a/b.py` is tested by `tests/worker/a/test_b.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MIRRORS = {
    ROOT / "tests/worker": ROOT / "worker/rpcgroup",
    ROOT / "tests/operator": ROOT / "operator/rpcgroup_operator",
    ROOT / "tests/examples": ROOT / "examples",
    ROOT / "tests/benchmarks": ROOT / "benchmarks",
}
OF_SEVERAL_MODULES = {
    "agent/test_concurrency.py",
    "agent/test_on_devices.py",
    "agent/test_over_tls.py",
    "agent/test_references.py",
    "agent/test_stream_order.py",
}
"""What no single module does: races between the agent's threads; references, TLS, devices and their order, over
real agents."""

TESTS = sorted(
    (test, tests, sources)
    for tests, sources in MIRRORS.items()
    for test in tests.rglob("test_*.py")
    if str(test.relative_to(tests)) not in OF_SEVERAL_MODULES
)


@pytest.mark.parametrize(
    ("test", "tests", "sources"), TESTS, ids=[str(t.relative_to(ROOT)) for t, _, _ in TESTS]
)
def test_every_test_file_names_its_source(test: Path, tests: Path, sources: Path) -> None:
    subject = sources / test.relative_to(tests).parent / test.stem.removeprefix("test_")
    candidates = [subject.with_suffix(".py"), subject / "__init__.py", subject]
    assert any(path.exists() for path in candidates), f"no source {candidates[0].relative_to(ROOT)}"


def test_no_tests_folder_is_a_package() -> None:
    """In importlib mode an `__init__.py` makes equal file names collide again."""
    assert not list((ROOT / "tests").rglob("__init__.py"))
