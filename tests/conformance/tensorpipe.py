"""The suites of torch's only backend, as classes of this module."""

from __future__ import annotations

from tests.conformance.swapped import swap

swap()

from torch.testing._internal.distributed import rpc_utils  # noqa: E402
from torch.testing._internal.distributed.rpc.tensorpipe_rpc_agent_test_fixture import (  # noqa: E402
    TensorPipeRpcAgentTestFixture,
)

from tests.conformance.spawning import fork_from_server  # noqa: E402

fork_from_server()
SUITES = rpc_utils.generate_tests(
    "",
    TensorPipeRpcAgentTestFixture,
    rpc_utils.GENERIC_TESTS
    + rpc_utils.GENERIC_CUDA_TESTS
    + rpc_utils.TENSORPIPE_TESTS
    + rpc_utils.TENSORPIPE_CUDA_TESTS,
    __name__,
)
globals().update(SUITES)
