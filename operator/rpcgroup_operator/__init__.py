"""The operator: reconciles `RPCGroup` resources into pods. kopf glue around the planner of `rpcgroup.control`."""
