"""Programs written for `torch.distributed.rpc`, which know nothing of rpcgroup.

python -m examples.torch_rpc.pipeline                       on torch's own RPC
rpcgroup exec -- python -m examples.torch_rpc.pipeline      on rpcgroup, with the same output
"""
