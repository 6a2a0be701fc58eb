"""Stalls by hand, against the cache simulator of nn/locality.py, and in the limits."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'polyroute[nn]'")

import numpy as np
import torch

from polyroute.errors import ConfigError, ShapeError
from polyroute.nn.corpora import sticky_trace
from polyroute.nn.locality import hit_rate, interleaved
from polyroute.nn.prefetch import Stalls, last_token, simulate

pytestmark = pytest.mark.torch


def traces(num_layers=3, num_tokens=60, num_experts=6, k=2, stay=0.6, seed=0):
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(num_layers):
        index = torch.as_tensor(sticky_trace(num_tokens, num_experts, k, stay=stay, rng=rng))
        found.append(torch.zeros(num_tokens, num_experts, dtype=torch.bool).scatter_(1, index, True))
    return found


@pytest.mark.parametrize(("size", "lengths"), [(2, None), (5, None), (9, [20, 0, 40]), (18, [30, 30])])
def test_misses_are_those_of_one_lru_cache_for_all_layers(size, lengths):
    masks = traces()
    found = simulate(masks, size, t_io=2.0, lengths=lengths)
    steps = None if lengths is None else [3 * n for n in lengths]
    hits = hit_rate(interleaved(masks), size, "lru", lengths=steps)
    assert found.misses == pytest.approx((1 - hits) * 3 * 2)  # 3 layers x 2 experts a token
    assert found.reads == found.misses
    assert found.stall == pytest.approx(2.0 * found.misses)  # nothing is known early


def test_an_early_router_hides_reading_behind_attention():
    masks = [torch.tensor([[1, 1, 0], [0, 1, 1]], dtype=torch.bool)]
    # token 0 reads two experts, token 1 one
    late = simulate(masks, 3, t_io=1.0, t_attention=1.0)
    assert late == Stalls(stall=1.5, reads=1.5, misses=1.5)
    early = simulate(masks, 3, t_io=1.0, t_attention=1.0, early=masks)
    assert early == Stalls(stall=0.5, reads=1.5, misses=1.5)  # max(0, 2 - 1) and max(0, 1 - 1), over two tokens
    assert early.saved(late) == pytest.approx(2 / 3)
    assert simulate(masks, 3, t_io=1.0, t_attention=2.0, early=masks).stall == 0.0
    assert simulate(masks, 3, t_io=1.0, t_attention=0.0, early=masks) == late


def test_a_wrong_guess_costs_its_reading_beyond_attention():
    need = [torch.tensor([[1, 0, 0]], dtype=torch.bool)]
    guess = [torch.tensor([[0, 1, 1]], dtype=torch.bool)]
    found = simulate(need, 3, t_io=1.0, t_attention=0.5, early=guess)
    assert found == Stalls(stall=1.5 + 1.0, reads=3.0, misses=1.0)


def test_knowing_earlier_never_stalls_longer():
    for seed in range(10):
        masks = traces(seed=seed)
        late = simulate(masks, 7, t_io=1.0, t_attention=0.7)
        early = simulate(masks, 7, t_io=1.0, t_attention=0.7, early=masks)
        assert early.reads == late.reads
        assert 0 <= early.stall <= late.stall


def test_the_last_tokens_experts_are_a_guess_that_a_cache_already_holds():
    masks = traces(num_layers=1)
    guess = last_token(masks)
    assert torch.equal(guess[0][1:], masks[0][:-1])
    assert not guess[0][0].any()
    late, guessed = (simulate(masks, 4, t_io=1.0, t_attention=1.0, early=e) for e in (None, guess))
    assert guessed == late


def test_no_stall_is_no_saving():
    always = simulate(traces(stay=1.0), 18, t_io=0.0)
    assert always.saved(always) == 0.0


def test_what_does_not_fit_is_told():
    masks = traces()
    with pytest.raises(ConfigError, match="at least 2, the experts of one token and layer"):
        simulate(masks, 1, t_io=1.0)
    with pytest.raises(ShapeError, match="early"):
        simulate(masks, 6, t_io=1.0, early=masks[:2])
    with pytest.raises(ShapeError, match="masks"):
        simulate([m.float() for m in masks], 6, t_io=1.0)
    with pytest.raises(ShapeError, match="lengths"):
        simulate(masks, 6, t_io=1.0, lengths=[3])
