from __future__ import annotations

import asyncio

import pytest
from kopf import Resource
from kopf._cogs.structs.references import Insights

from rpcgroup_operator.process import _require_resource

RPCGROUPS = Resource(group="rpcgroup.dev", version="v1alpha1", plural="rpcgroups")
PODS = Resource(group="", version="v1", plural="pods")


@pytest.mark.parametrize("found", [{RPCGROUPS}, {PODS, RPCGROUPS}])
def test_the_resource_is_there(found: set[Resource]) -> None:
    insights = Insights(watched_resources=found)
    insights.ready_resources.set()
    asyncio.run(asyncio.wait_for(_require_resource(insights), 10))


@pytest.mark.parametrize("found", [set(), {PODS}])
def test_an_api_server_that_has_not_found_its_crds_yet_is_asked_again(found: set[Resource]) -> None:
    insights = Insights(watched_resources=found)
    insights.ready_resources.set()
    with pytest.raises(RuntimeError, match=r"does not serve rpcgroups\..*a fresh process looks again"):
        asyncio.run(asyncio.wait_for(_require_resource(insights), 10))
