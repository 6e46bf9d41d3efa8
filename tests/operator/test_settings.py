from __future__ import annotations

from rpcgroup_operator.settings import Settings


def test_only_what_is_watched_may_be_cleared_away() -> None:
    assert Settings(etcd=("e:1",)).watches("any")
    some = Settings(etcd=("e:1",), watch_namespaces=("a", "b"))
    assert [some.watches(namespace) for namespace in ("a", "b", "c")] == [True, True, False]
