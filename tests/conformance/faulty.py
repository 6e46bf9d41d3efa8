"""The suites of the backend whose messages fail or come late, as classes of this module."""

from __future__ import annotations

from tests.conformance.swapped import swap

swap()

from torch.testing._internal.distributed import rpc_utils  # noqa: E402
from torch.testing._internal.distributed.rpc.faulty_rpc_agent_test_fixture import (  # noqa: E402
    FaultyRpcAgentTestFixture,
)

from tests.conformance.spawning import fork_from_server  # noqa: E402

fork_from_server()
SUITES = rpc_utils.generate_tests("", FaultyRpcAgentTestFixture, rpc_utils.FAULTY_AGENT_TESTS, __name__)
globals().update(SUITES)
