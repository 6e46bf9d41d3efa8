from __future__ import annotations

import torch

from rpcgroup.agent import serving
from rpcgroup.agent.recording import Settings


def test_a_request_belongs_to_those_that_are_open_before_and_after() -> None:
    outer = serving.begin(Settings())
    assert serving.run_served(torch.ones, 2).tolist() == [1, 1]
    inner = serving.begin(Settings())

    def end_inner() -> None:
        torch.zeros(1)
        assert len(serving.end(inner)) == 1

    serving.run_served(torch.ones, 3, dtype=torch.int)
    serving.run_served(end_inner)
    requests = serving.end(outer)
    assert [request.events[0].name for request in requests] == ["aten::ones", "aten::ones", "aten::zeros"]
    assert len(inner.requests) == 1


def test_where_none_is_open_the_function_is_called_as_it_is() -> None:
    assert serving.run_served(dict, a=1) == {"a": 1}
    assert not serving.servings
