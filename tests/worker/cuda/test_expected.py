from __future__ import annotations

from typing import Any

import pytest
import torch

from rpcgroup.cuda.expected import expected_devices, require_expected

ONE, TWO = torch.device("cuda", 0), torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([1, "cuda:0", TWO], (ONE, TWO)),
        (iter(["cuda:10", "cuda:9"]), (torch.device("cuda:9"), torch.device("cuda:10"))),
        ([], ()),
        (["cpu:0"], ()),
    ],
)
def test_they_are_given_as_to_torchs_future(given: Any, expected: Any) -> None:
    assert expected_devices(given) == expected


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (["cuda"], "Expected devices to have indices, got cuda"),
        (["cpu"], "Expected devices to have indices, got cpu"),
        (["cpu:0", "cuda:0"], "Expected all devices to be of the same type, got cpu:0 and cuda:0"),
    ],
)
def test_what_torchs_future_refuses(given: Any, why: str) -> None:
    with pytest.raises(ValueError, match=f"^{why}$"):
        expected_devices(given)


def test_a_tensor_elsewhere_is_refused_as_torchs_future_does() -> None:
    class On:
        def __init__(self, index: int) -> None:
            self.device = torch.device("cuda", index)

    tensors: Any = [On(3), On(1), On(2), On(0)]
    require_expected(tensors, tuple(torch.device("cuda", n) for n in range(4)))
    require_expected([], (ONE,))
    with pytest.raises(ValueError) as refused:
        require_expected(tensors, (ONE,))
    assert str(refused.value) == (
        "The result contained tensors residing on device(s) cuda:1, cuda:2 and cuda:3 "
        "which are not among the expected device(s) cuda:0"
    )
