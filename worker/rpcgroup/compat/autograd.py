"""`torch.distributed.autograd`: ours under torch's name."""

from __future__ import annotations

from rpcgroup import autograd as _ours
from rpcgroup.autograd import DistAutogradContext, backward, context, get_gradients, is_available

__all__ = ["DistAutogradContext", "backward", "context", "get_gradients", "is_available"]

_new_context = _ours._new_context
_current_context = _ours._current_context
_retrieve_context = _ours._retrieve_context
_release_context = _ours._release_context
_is_valid_context = _ours._is_valid_context
_get_max_id = _ours._get_max_id
_get_debug_info = _ours._get_debug_info
_init = _ours._init
