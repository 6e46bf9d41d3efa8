"""Run by `helm test`: etcd takes a value, gives it back and deletes it, with the operator's credentials."""

import os

from rpcgroup.membership.url import open_rendezvous

place = open_rendezvous(f"etcd://{os.environ['RPCGROUP_OPERATOR_ETCD']}/helm/test")
values = place.kv
values.put("asked", b"answered")
assert values.get("asked") == b"answered", "etcd has not kept a value"
assert values.delete("asked"), "etcd has not deleted a value"
place.close()
print("etcd answers")
