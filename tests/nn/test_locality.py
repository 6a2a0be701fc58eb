"""Windows and caches against brute force, closed forms on synthetic traces, and the optimum."""

from __future__ import annotations

import itertools
import math

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'polyroute[nn]'")

import numpy as np
import torch

from polyroute.errors import ConfigError, ShapeError, UnknownNameError
from polyroute.nn.locality import (
    chunk_union_sparsity,
    hit_rate,
    interleaved,
    sch,
    segment_routing,
    srp,
    token_sparsity,
    used,
    window_histogram,
)
from polyroute.nn.moe import MoE
from polyroute.nn.routing import TokenContext

pytestmark = pytest.mark.torch


def random_trace(seed, num_tokens=40, num_experts=6, k=2, stick=0.0):
    """[T, K] distinct experts a token; with probability `stick` a token repeats the last one's."""
    rng = np.random.default_rng(seed)
    rows = []
    for t in range(num_tokens):
        again = t and rng.random() < stick
        rows.append(rows[-1] if again else rng.permutation(num_experts)[:k])
    return torch.as_tensor(np.array(rows))


def mask_of(index, num_experts=6):
    return torch.zeros(len(index), num_experts, dtype=torch.bool).scatter_(1, index, True)


def cut(rows, lengths):
    return [rows[end - n : end] for n, end in zip(lengths, itertools.accumulate(lengths), strict=True)]


def windows_by_hand(mask, m, lengths):
    """Uses of each expert in every window, one after the other."""
    found = []
    for part in cut(mask.tolist(), lengths):
        for s in range(len(part) - m + 1):
            found += [sum(row[e] for row in part[s : s + m]) for e in range(len(mask[0]))]
    return found


@pytest.mark.parametrize(("m", "lengths"), [(1, [40]), (4, [40]), (5, [3, 20, 0, 5, 12]), (16, [24, 16])])
def test_srp_is_the_best_f1_over_thresholds(m, lengths):
    mask = torch.rand(40, 6, generator=torch.Generator().manual_seed(m)) < torch.linspace(0.05, 0.6, 6)
    uses = windows_by_hand(mask, m, lengths)
    best = (-1.0, 0, 0.0)
    for alpha in range(1, m + 1):
        caught = sum(f for f in uses if f >= alpha)
        kept = m * sum(f >= alpha for f in uses)
        best = max(best, (2 * caught / (kept + sum(uses)), -alpha, kept / sum(uses)))
    found = srp(mask, m, lengths)
    assert (found.srp, found.alpha, found.size_ratio) == pytest.approx((best[0], -best[1], best[2]))
    expected = sum(f == 0 for f in uses) / len(uses)
    assert chunk_union_sparsity(mask, m, lengths) == pytest.approx(expected)


def test_constant_routing_is_perfectly_local():
    mask = mask_of(torch.tensor([[1, 4]]).expand(300, 2))
    assert srp(mask, 16) == (1.0, 1, 1.0)
    assert chunk_union_sparsity(mask, 16) == pytest.approx(4 / 6)
    assert token_sparsity(mask) == pytest.approx(4 / 6)
    assert sch(torch.tensor([[1, 4]]).expand(300, 2), 2, 16) == pytest.approx(598 / 600)


def test_independent_routing_gives_the_binomial_value():
    q, m = 1 / 8, 16
    f = np.arange(m + 1)
    chance = np.array([math.comb(m, i) * q**i * (1 - q) ** (m - i) for i in f])
    f1 = [2 * (f * chance)[a:].sum() / (m * chance[a:].sum() + m * q) for a in range(1, m + 1)]
    assert max(f1) == pytest.approx(0.3214, abs=1e-4)
    mask = torch.rand(200_000, 2, generator=torch.Generator().manual_seed(0)) < q
    assert srp(mask, m).srp == pytest.approx(max(f1), abs=0.004)


def test_sticky_routing_is_more_local():
    found = [srp(mask_of(random_trace(0, 2000, stick=stick)), 16).srp for stick in (0.0, 0.5, 0.8, 0.95)]
    assert found == sorted(found)
    assert found[-1] > found[0] + 0.2


def test_histograms_add_up_over_batches():
    mask = mask_of(random_trace(0))
    both = window_histogram(mask[:15], 4) + window_histogram(mask[15:], 4)
    assert segment_routing(both) == srp(mask, 4, [15, 25])
    assert (both.sum(1) == 12 + 22).all()


def test_padding_is_left_out_of_the_trace():
    torch.manual_seed(0)
    layer = MoE(8, 4, 6)
    x = torch.randn(3, 5, 8)
    valid = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 1, 1, 1, 1]], dtype=torch.bool)
    layer(x)
    whole = layer.routing.mask_TE()
    assert used(layer.routing).lengths.tolist() == [5, 5, 5]
    layer(x, context=TokenContext(x.reshape(15, 8), (3, 5), valid_T=valid.reshape(15)))
    mask, lengths = used(layer.routing)
    assert lengths.tolist() == [3, 3, 5]
    assert torch.equal(mask, whole[valid.reshape(15)])


def cache_by_hand(parts, size, worth):
    """Hits over activations; least (worth, last use, id) leaves. worth(part, t, expert)."""
    hits = total = 0
    for part in parts:
        cached, last = set(), {}
        for t, row in enumerate(part):
            row = set(row)
            hits, total = hits + len(row & cached), total + len(row)
            cached |= row
            last.update(dict.fromkeys(row, t))
            while len(cached) > size:
                cached.remove(min(cached - row, key=lambda e: (worth(part, t, e), last[e], e)))
    return hits / total


def next_use(part, t, e):
    return next((u for u in range(t + 1, len(part)) if e in part[u]), len(part))


WORTH = {
    "lru": lambda part, t, e: 0,
    "lfu": lambda part, t, e: sum(e in row for row in part[: t + 1]),
    "belady": lambda part, t, e: -next_use(part, t, e),
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", [2, 3, 5, 6])
def test_caches_equal_a_simulation_by_hand(seed, size):
    index, lengths = random_trace(seed, stick=0.3), [11, 0, 25, 4]
    parts = cut(index.tolist(), lengths)
    for policy, worth in WORTH.items():
        expected = cache_by_hand(parts, size, worth)
        assert hit_rate(index, size, policy, lengths=lengths) == pytest.approx(expected), policy
        assert hit_rate(mask_of(index), size, policy, lengths=lengths) == pytest.approx(expected), policy
    for m in (1, 4, 100):
        expected = cache_by_hand(parts, size, lambda part, t, e, m=m: sum(e in row for row in part[t + 1 : t + 1 + m]))
        assert sch(index, size, m, lengths=lengths) == pytest.approx(expected)


def optimum(part, size):
    """The most hits any policy can have: every set of residents that holds the token's experts is tried."""
    best = {frozenset(): 0}
    for row in part:
        row, after = frozenset(row), {}
        for cached, hits in best.items():
            hits, others = hits + len(row & cached), sorted(cached - row)
            for keep in range(min(len(others), size - len(row)) + 1):
                for kept in itertools.combinations(others, keep):
                    state = row | frozenset(kept)
                    after[state] = max(after.get(state, 0), hits)
        best = after
    return max(best.values())


@pytest.mark.parametrize("seed", range(12))
def test_belady_is_the_optimum(seed):
    index = random_trace(seed, num_tokens=10, num_experts=5, k=1 + seed % 2, stick=0.2)
    for size in (2, 3):
        assert hit_rate(index, size, "belady") * index.numel() == pytest.approx(optimum(index.tolist(), size))


@pytest.mark.parametrize("seed", range(20))
def test_no_policy_beats_belady(seed):
    index = random_trace(seed, num_tokens=120, num_experts=8, k=2, stick=0.1 * (seed % 5))
    lengths = [50, 70]
    for size in (2, 4, 7):
        best = hit_rate(index, size, "belady", lengths=lengths)
        others = [hit_rate(index, size, policy, lengths=lengths) for policy in ("lru", "lfu")]
        others += [sch(index, size, m, lengths=lengths) for m in (1, 8, 64)]
        assert best >= max(others) - 1e-12
    assert hit_rate(index, 8) == hit_rate(index, 8, "belady"), "with room for all only first uses miss"


def test_a_cache_shared_by_layers_sees_them_in_turn():
    masks = [mask_of(random_trace(seed, 10)) for seed in range(3)]
    trace = interleaved(masks)
    assert trace.shape == (30, 18)
    for t in range(10):
        for i in range(3):
            row = torch.zeros(3, 6, dtype=torch.bool)
            row[i] = masks[i][t]
            assert torch.equal(trace[t * 3 + i], row.flatten())
    own = sum(hit_rate(mask, 6) for mask in masks) / 3
    assert hit_rate(trace, 18) == pytest.approx(own)


def test_ragged_and_empty_tokens():
    index = torch.tensor([[0, 1], [-1, -1], [1, -1], [2, 0], [1, 2]])
    assert hit_rate(index, 2) == pytest.approx(3 / 7)
    assert math.isnan(hit_rate(index[:0], 2))
    assert math.isnan(srp(mask_of(random_trace(0, 3)), 4).srp)
    assert math.isnan(chunk_union_sparsity(torch.zeros(0, 4, dtype=torch.bool), 1))
    assert srp(torch.zeros(9, 4, dtype=torch.bool), 4) == (0.0, 0, 0.0)


def test_bad_input_is_named():
    index = random_trace(0)
    with pytest.raises(UnknownNameError, match="belady"):
        hit_rate(index, 4, "beladi")
    with pytest.raises(ConfigError, match="at least 2"):
        hit_rate(index, 1)
    with pytest.raises(ShapeError, match="lengths"):
        hit_rate(index, 4, lengths=[3, 4])
    with pytest.raises(ShapeError, match="bool"):
        srp(index, 4)
    for call in (lambda: srp(mask_of(index), 0), lambda: sch(index, 4, 0)):
        with pytest.raises(ConfigError, match="1 token"):
            call()
