from __future__ import annotations

from contextlib import closing
from pathlib import Path

from rpcgroup.local.etcd_server import EtcdServer
from rpcgroup.membership.etcd.client import EtcdClient
from rpcgroup_operator.marks import Marks


def test_marks_are_found_by_whoever_has_the_name(tmp_path: Path) -> None:
    with EtcdServer(tmp_path) as server, closing(EtcdClient([server.endpoint])) as client:
        mine, theirs = Marks(client, "marks/a"), Marks(client, "marks/ab")
        mine.put(("ns", "g"), "1")
        mine.put(("ns", "g"), "2")
        mine.put(("other", "g"), "3")
        theirs.put(("ns", "g"), "4")
        assert Marks(client, "marks/a").read() == {("ns", "g"): "2", ("other", "g"): "3"}
        mine.remove(("ns", "g"))
        mine.remove(("ns", "g"))
        assert mine.read() == {("other", "g"): "3"}
        assert theirs.read() == {("ns", "g"): "4"}
