from __future__ import annotations

import pytest

from rpcgroup.compat.alias import AliasFinder, own_name


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("torch.distributed.rpc", "rpcgroup.compat.rpc"),
        ("torch.distributed.rpc.api", "rpcgroup.compat.rpc.api"),
        ("torch.distributed.autograd", "rpcgroup.compat.autograd"),
        ("torch.distributed.rpcs", None),
        ("torch.distributed", None),
        ("rpcgroup.compat.rpc", None),
    ],
)
def test_ours_for_torchs_name(theirs: str, ours: str | None) -> None:
    assert own_name(theirs) == ours


def test_only_modules_that_there_are_are_found() -> None:
    finder = AliasFinder()
    found = finder.find_spec("torch.distributed.rpc._testing", None)
    assert found is not None and found.name == "torch.distributed.rpc._testing"
    assert finder.find_spec("torch.distributed.rpc.nothing", None) is None
    assert finder.find_spec("torch.distributed.elastic", None) is None
