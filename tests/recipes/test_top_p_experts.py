"""Top-p layers: what the recipe sets, how many experts are used, what flat and sure routers cost."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'polyroute[nn]'")

import numpy as np
import torch

from polyroute.nn.chars import Chars
from polyroute.nn.corpora import batches
from polyroute.nn.experts import FeedForward
from polyroute.nn.moe import aux_losses, layers
from polyroute.nn.testbed import seeded, train
from polyroute.proofs.top_p_experts import DealtOut, OnAverage, Sums
from polyroute.recipes.top_p_experts import top_p_experts, top_p_lm

pytestmark = pytest.mark.torch


def test_experts_are_taken_until_their_probability_exceeds_p():
    layer = top_p_experts(12, 8, 16, p=0.4)
    x = 3 * torch.randn(50, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        layer(x)
    routing = layer.routing
    for t in range(50):
        chosen = routing.probs_TE[t][routing.exp_N[routing.tok_N == t]].sort(descending=True).values
        assert chosen.sum() > 0.4 >= chosen[:-1].sum()
    torch.testing.assert_close(routing.gate_N, routing.probs_TE[routing.tok_N, routing.exp_N])


def test_a_flat_router_takes_seven_of_sixteen_and_k_max_bounds_it():
    for k_max, expected in ((None, 7), (3, 3)):
        layer = top_p_experts(12, 8, 16, p=0.4, k_max=k_max)
        with torch.no_grad():
            layer.router.scorer.weight.zero_()
            layer(torch.ones(5, 12))
        assert layer.taps[0].result() == {"mean_k": expected, "std_k": 0.0, "none": 0.0}


def test_a_sure_router_takes_one():
    layer = top_p_experts(4, 8, 4, p=0.9)
    with torch.no_grad():
        layer.router.scorer.weight.copy_(50 * torch.eye(4))
        layer(torch.eye(4))
    assert layer.taps[0].result()["mean_k"] == 1.0
    assert layer.routing.exp_N.tolist() == [0, 1, 2, 3]


def test_objectives_and_gates_follow_the_arguments():
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    layer = top_p_experts(4, 8, 4)
    layer(x)
    assert set(aux_losses(layer)) == {"load_balance", "entropy"}
    bare = top_p_experts(4, 8, 4, balance=0, entropy=0, renorm=True, p=0.7)
    bare(x)
    assert aux_losses(bare) == {}
    torch.testing.assert_close(bare.routing.gates_TE().sum(1), torch.ones(6))


def test_every_second_layer_is_a_mixture_and_it_learns():
    corpus = Chars(length=16, size=1000)
    with seeded(0):
        model = top_p_lm(corpus.vocab, 16, 4, 2, 8, 4, context=16, p=0.6)
    assert list(layers(model)) == ["stack.blocks.1.ffn", "stack.blocks.3.ffn"]
    assert sum(type(part) is FeedForward for part in model.modules()) == 2
    history = train(model, batches(corpus, 8, seed=0), steps=30, seed=0)
    assert history.last(5) < history.loss[0] - 0.3


def test_sums_are_means_of_one_or_three_maps():
    world = Sums(seed=0)
    x, y, kind = world.batch(np.random.default_rng(0), 40)
    used = (x[..., world.dim :] > 0).sum(-1)
    assert set(used[kind == 0].unique().tolist()) == {1}
    assert set(used[kind == 1].unique().tolist()) == {3}
    b = int((kind == 1).nonzero()[0])
    chosen = (x[b, 0, world.dim :] > 0).numpy()
    assert float(x[..., : world.dim].norm(dim=-1).std()) < 1e-4
    assert float(x[..., world.dim :].norm(dim=-1).std()) < 1e-4
    expected = world.map_MOD[chosen].mean(0) @ x[b, 0, : world.dim].numpy()
    np.testing.assert_allclose(y[b, 0].numpy(), expected, rtol=1e-4, atol=1e-5)
    assert (world.batch(np.random.default_rng(0), 5, domain=1).domain_B == 1).all()


def test_dealing_out_keeps_how_many_and_the_best_first():
    torch.manual_seed(0)
    scores = torch.softmax(2 * torch.randn(200, 6), -1)
    deal = DealtOut(0.7).build(4, 6)
    from polyroute.nn.selection import TopP

    fair, dealt = TopP(0.7)(scores, None), deal(scores, None)
    count = [torch.bincount(pairs.tok_N, minlength=200) for pairs in (fair, dealt)]
    assert not torch.equal(*count)
    assert torch.equal(count[0].sort().values, count[1].sort().values)
    mask = torch.zeros(200, 6, dtype=torch.bool)
    mask[dealt.tok_N, dealt.exp_N] = True
    worst_in = torch.where(mask, scores, 2.0).min(-1).values
    best_out = torch.where(mask, -1.0, scores).max(-1).values
    assert (worst_in > best_out).all()


def test_the_fixed_baseline_keeps_its_mean_and_takes_the_best():
    torch.manual_seed(0)
    scores = torch.softmax(torch.randn(4000, 6), -1)
    for mean in (2.0, 2.3):
        select = OnAverage(mean).build(4, 6)
        pairs = select(scores, None)
        count = torch.bincount(pairs.tok_N, minlength=4000)
        assert set(count.tolist()) == ({2} if mean == 2.0 else {2, 3})
        assert float(count.float().mean()) == pytest.approx(mean, abs=0.03)
        mask = torch.zeros(4000, 6, dtype=torch.bool)
        mask[pairs.tok_N, pairs.exp_N] = True
        worst_in = torch.where(mask, scores, 2.0).min(-1).values
        assert (worst_in > torch.where(mask, -1.0, scores).max(-1).values).all()
