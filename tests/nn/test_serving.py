"""Batches by expert: everybody is served once, few experts load, nobody waits for ever."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyroute.errors import ConfigError

pytest.importorskip("torch")

from polyroute.nn.serving import ExpertBatcher

pytestmark = pytest.mark.torch


def drained(batcher):
    found = []
    while (batch := batcher.next()) is not None:
        found.append(batch)
    return found


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5), max_size=60), st.integers(1, 9), st.one_of(st.none(), st.integers(1, 4)))
def test_everybody_is_served_once_in_full_batches_and_in_order_within_an_expert(experts, size, patience):
    batcher = ExpertBatcher(size, patience=patience)
    for request, expert in enumerate(experts):
        batcher.add(request, expert)
    assert len(batcher) == len(experts)
    batches = drained(batcher)
    assert len(batcher) == 0
    assert all(len(batch.requests) == size for batch in batches[:-1])
    served = [(r, e) for batch in batches for r, e in zip(batch.requests, batch.experts, strict=True)]
    assert sorted(r for r, _ in served) == list(range(len(experts)))
    assert all(experts[r] == e for r, e in served)
    for expert in set(experts):
        mine = [r for r, e in served if e == expert]
        assert mine == sorted(mine)


def test_the_longest_queue_goes_first_and_the_next_fills_up():
    batcher = ExpertBatcher(4)
    for request, expert in enumerate([2, 0, 1, 0, 1, 0]):
        batcher.add(request, expert)
    assert batcher.waiting() == {0: 3, 1: 2, 2: 1}
    assert list(batcher.waiting()) == [0, 1, 2]
    batch = batcher.next()
    assert batch.requests == (1, 3, 5, 2)
    assert batch.distinct == 2
    assert batcher.next().requests == (0, 4)  # one each: who waits longest
    assert batcher.next() is None


@pytest.mark.parametrize("patience", [3, None])
def test_a_rare_expert_waits_for_its_patience_and_no_longer(patience):
    batcher = ExpertBatcher(2, patience=patience)
    batcher.add("rare", 9)
    served_at = None
    for turn in range(10):
        for i in range(3):
            batcher.add((turn, i), 0)
        if "rare" in batcher.next().requests:
            served_at = turn
            break
    assert served_at == patience


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="size"):
        ExpertBatcher(0)
    with pytest.raises(ConfigError, match="patience"):
        ExpertBatcher(1, patience=0)
