"""Local routing of a model: what is read equals what its layers decided; order matters and nothing else changes."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'polyroute[nn]'")

import numpy as np
import torch

from polyroute.errors import ConfigError
from polyroute.nn.chars import Chars
from polyroute.nn.corpora import batches, constant_trace, sticky_trace
from polyroute.nn.locality import Used, hit_rate, srp
from polyroute.nn.moe import MoE, routings
from polyroute.nn.selection import TopP
from polyroute.nn.testbed import seeded
from polyroute.nn.transformer import TinyLM
from polyroute.proofs.routing_locality import binomial_srp, in_random_order, on_traces
from polyroute.recipes.routing_locality import consistency, local_routing, traces

pytestmark = pytest.mark.torch


def used(index, num_experts=8, lengths=None):
    mask = torch.zeros(len(index), num_experts, dtype=torch.bool).scatter_(1, torch.as_tensor(index), True)
    return Used(mask, torch.tensor([len(index)] if lengths is None else lengths))


def tiny(**parts):
    with seeded(0):
        return TinyLM(Chars.vocab, 16, 2, 2, lambda layer: MoE(16, 8, 4, **parts), context=32)


def test_what_is_read_is_what_the_layers_decided_and_the_model_stays_as_it_was():
    model, corpus = tiny().train(), Chars(length=32, size=1000)
    read = traces(model, batches(corpus, 4, seed=1), min_tokens=200)
    assert model.training
    assert set(read) == {"stack.blocks.0.ffn", "stack.blocks.1.ffn"}
    stream = batches(corpus, 4, seed=1)
    parts = []
    with torch.no_grad():
        for _ in range(2):  # 2 x 128 tokens are the first to reach 200
            model(next(stream).x)
            parts.append(routings(model)["stack.blocks.1.ffn"].mask_TE())
    assert torch.equal(read["stack.blocks.1.ffn"].mask_TE, torch.cat(parts))
    assert read["stack.blocks.1.ffn"].lengths.tolist() == [32] * 8


def test_srp_is_pooled_over_layers_with_one_threshold():
    rng = np.random.default_rng(0)
    lazy, busy = used(sticky_trace(400, 8, 2, stay=0.9, rng=rng)), used(sticky_trace(400, 8, 2, stay=0.0, rng=rng))
    both = consistency({"a": lazy, "b": busy}, m=(16,))
    assert both.layers["a"][16] == srp(lazy.mask_TE, 16, lazy.lengths).srp > both.layers["b"][16]
    joined = torch.cat([lazy.mask_TE, busy.mask_TE])
    assert both.srp[16] == pytest.approx(srp(joined, 16, [400, 400]).srp)
    assert both.srp[16] < (both.layers["a"][16] + both.layers["b"][16]) / 2 + 1e-9


def test_cache_rates_are_over_all_activations_and_sizes_follow_each_layers_k():
    rng = np.random.default_rng(1)
    two, four = used(sticky_trace(200, 8, 2, stay=0.5, rng=rng)), used(sticky_trace(200, 8, 4, stay=0.5, rng=rng))
    found = consistency({"a": two, "b": four}, m=(4,), rho=(1.5,))
    rates = hit_rate(two.mask_TE, 3), hit_rate(four.mask_TE, 6)
    assert found.lru[1.5] == pytest.approx((2 * rates[0] + 4 * rates[1]) / 6)
    assert found.mean_k == 3.0
    assert found.tokens == 200


def test_a_cache_holds_at_least_what_one_token_needs():
    model = tiny(select=TopP(0.6))
    found = local_routing(model, batches(Chars(length=32, size=1000), 8, seed=0), min_tokens=256, m=(4,), rho=(0.1,))
    assert 0 <= found.lru[0.1] <= found.sch[0.1] + 0.05
    assert 1 <= found.mean_k <= 4


def test_constant_routing_is_perfectly_local():
    found = consistency({"a": used(constant_trace(640, 8, 2), lengths=[320, 320])}, m=(4, 64))
    assert found.srp == {4: 1.0, 64: 1.0}
    assert found.size_ratio == {4: 1.0, 64: 1.0}
    assert found.lru[1.0] == pytest.approx(1 - 1 / 320)  # each sequence starts cold
    assert json.loads(json.dumps(found.as_json()))["tokens"] == 640


def test_order_alone_makes_the_difference():
    trace = used(sticky_trace(4000, 8, 2, stay=0.9, rng=np.random.default_rng(2)))
    mixed = in_random_order({"a": trace}, 0)["a"]
    assert torch.equal(mixed.mask_TE.sum(0), trace.mask_TE.sum(0))
    before, after = consistency({"a": trace}, m=(16,)), consistency({"a": mixed}, m=(16,))
    assert after.srp[16] == pytest.approx(binomial_srp(0.25, 16), abs=0.02)
    assert before.srp[16] > after.srp[16] + 0.2


def test_closed_forms():
    assert binomial_srp(0.125, 16) == pytest.approx(0.3214, abs=5e-5)
    assert binomial_srp(1.0, 4) == 1.0
    found = on_traces(np.random.default_rng(3))
    assert found["error"] < 0.01
    assert found["rise"] > 0.02
    assert found["lead"] >= -1e-12


def test_nothing_to_read_is_told():
    with pytest.raises(ConfigError, match="nothing routed"):
        traces(tiny(), [])
    with pytest.raises(ConfigError, match="nothing routed"):
        traces(torch.nn.Identity(), batches(Chars(length=32, size=1000), 2, seed=0), min_tokens=64)
