"""SmallThinker layers: the router reads what stands before attention; stalls, idle neurons, exact sparse execution."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'polyroute[nn]'")

import torch

from polyroute.errors import ConfigError
from polyroute.nn.chars import Chars
from polyroute.nn.corpora import batches
from polyroute.nn.moe import aux_losses, layers
from polyroute.nn.routing import TokenContext
from polyroute.nn.testbed import seeded, train
from polyroute.proofs.smallthinker import one_token_us
from polyroute.recipes.smallthinker import idle_neurons, serving, smallthinker, smallthinker_lm

pytestmark = pytest.mark.torch


def tiny(**options):
    corpus = Chars(length=16, size=1000)
    with seeded(0):
        return smallthinker_lm(corpus.vocab, 16, 2, 2, 8, 4, k=2, context=16, **options), corpus


def test_the_router_reads_the_stream_before_attention_and_the_experts_what_comes_after():
    torch.manual_seed(0)
    layer = smallthinker(8, 4, 6, k=2)
    x, before = torch.randn(5, 8), torch.randn(5, 8)
    layer(x, context=TokenContext(x, (1, 5), pre_attention_TD=before))
    logits = before @ layer.router.scorer.weight.T
    torch.testing.assert_close(layer.routing.logits_TE, logits)
    best = logits.topk(2).indices.sort(1).values
    assert torch.equal(layer.routing.exp_N.reshape(5, 2).sort(1).values, best)
    sure = logits.sigmoid().gather(1, layer.routing.exp_N.reshape(5, 2))
    torch.testing.assert_close(layer.routing.gate_N.reshape(5, 2), sure / sure.sum(1, keepdim=True))
    assert set(aux_losses(layer)) == {"load_balance", "z"}
    with pytest.raises(ConfigError, match="pre_attention_TD"):
        layer(x)


def test_routes_are_known_before_attention_runs():
    model, corpus = tiny()
    ids = next(batches(corpus, 3, seed=0)).x
    with torch.no_grad():
        model(ids)
        first = next(iter(layers(model).values()))
        stream = (model.tokens(ids) + model.positions.weight[:16]).flatten(0, 1)
        torch.testing.assert_close(first.routing.logits_TE, stream @ first.router.scorer.weight.T)


def test_the_sparse_executor_says_the_same_as_the_dense_oracle_and_trains():
    losses, said = {}, {}
    for executor in ("dense", "neuron_sparse"):
        model, corpus = tiny(executor=executor)
        losses[executor] = train(model, batches(corpus, 4, seed=0), steps=5, seed=0).loss
        with torch.no_grad():
            said[executor] = model(next(batches(corpus, 1, seed=1)).x)
    assert losses["neuron_sparse"] == pytest.approx(losses["dense"], rel=1e-4)
    torch.testing.assert_close(said["neuron_sparse"], said["dense"], rtol=1e-3, atol=1e-3)


def test_serving_with_everything_in_the_cache_only_starts_cold():
    model, corpus = tiny()
    found = serving(model, batches(corpus, 2, seed=0), cached=1.0, min_tokens=32)
    assert found.after_attention.misses * 32 <= 2 * 2 * 4  # each of 8 experts at most once a sequence
    assert 0 < found.saved <= 1
    assert found.before_attention.misses == found.after_attention.misses
    hidden = serving(model, batches(corpus, 2, seed=0), cached=0.5, t_attention=2.0, min_tokens=32)
    assert hidden.before_attention.stall == 0.0  # two reads fit into attention
    assert hidden.saved == 1.0
    assert abs(hidden.saved_by_guess) < 0.2


def test_idle_neurons_are_zeros_of_the_gate():
    model, corpus = tiny()
    found = idle_neurons(model, batches(corpus, 2, seed=0))
    assert set(found) == set(layers(model))
    assert all(0.3 < share < 0.7 for share in found.values())
    smooth, _ = tiny(act="swiglu")
    assert all(share == 0.0 for share in idle_neurons(smooth, batches(corpus, 2, seed=0)).values())
    with torch.no_grad():
        for layer in layers(model).values():
            layer.pool.w1_EGD[:, :8].zero_()
    assert all(share == 1.0 for share in idle_neurons(model, batches(corpus, 2, seed=0)).values())


def test_the_clock_runs():
    found = one_token_us(0, 0.9, dim=16, width=8)
    assert set(found) == {"sorted_loop", "neuron_sparse"}
    assert min(found.values()) > 0
