from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from examples.digits import data

COUNT = 500
names = st.sets(st.from_regex(r"digits-worker-[0-9]{1,3}", fullmatch=True), min_size=1, max_size=8)


def shards(trainers: set[str]) -> dict[str, set[int]]:
    return {t: set(data.shard(t, trainers, COUNT).tolist()) for t in trainers}


@given(names)
def test_each_image_is_in_exactly_one_shard(trainers: set[str]) -> None:
    dealt = [index for shard in shards(trainers).values() for index in shard]
    assert sorted(dealt) == list(range(COUNT))


@given(names, st.just("digits-worker-new"))
def test_a_newcomer_takes_and_nothing_else_moves(trainers: set[str], newcomer: str) -> None:
    before, after = shards(trainers), shards(trainers | {newcomer})
    for trainer in trainers:
        assert after[trainer] == before[trainer] - after[newcomer]


def test_the_split_is_the_same_each_time_and_covers_all() -> None:
    (train, held_out), (again, _) = data.load(), data.load()
    assert (len(train), len(held_out)) == (1438, 359)
    assert torch.equal(train.pixels, again.pixels)
    assert float(train.pixels.min()) >= 0 and float(train.pixels.max()) <= 1


def test_an_epoch_sees_each_image_once() -> None:
    _, images = data.load()
    seen = list(data.batches(images, 32, torch.Generator().manual_seed(1)))
    assert max(len(batch) for batch in seen) == 32
    assert sorted(torch.cat([batch.digits for batch in seen]).tolist()) == sorted(images.digits.tolist())
