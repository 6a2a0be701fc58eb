"""System 22: the same arithmetic as a layer of K experts, in C steps."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'polyroute[nn]'")

import torch

from polyroute.errors import ConfigError
from polyroute.nn.corpora import TwoHop, batches
from polyroute.nn.metrics import jaccard
from polyroute.nn.moe import aux_losses
from polyroute.nn.testbed import evaluate, seeded, train
from polyroute.nn.transformer import TinyNet
from polyroute.recipes.chain_of_experts import chain_of_experts

pytestmark = pytest.mark.torch


def test_experts_are_split_over_the_steps_with_raw_gates():
    with seeded(0):
        chain = chain_of_experts(8, 6, 12, k=8, C=4, shared=5)
    x = torch.randn(9, 8, generator=torch.Generator().manual_seed(0))
    assert chain(x).shape == (9, 8)
    for routing in chain.routings:
        assert routing.K == 2
        assert torch.allclose(routing.gate_N.reshape(9, 2), routing.probs_TE.topk(2).values)
    assert len(aux_losses(chain)) == 4


def test_steps_choose_experts_of_their_own_and_the_model_learns():
    corpus, chosen = TwoHop(4, 4, problems=16, packed=True), {}
    for shared_gate in (False, True):
        with seeded(0):
            net = TinyNet(
                corpus.width, corpus.values, 16, 1, 0,
                lambda _, s=shared_gate: chain_of_experts(16, 16, 8, k=4, shared_gate=s),
            )  # fmt: skip
        train(net, batches(corpus, 8, seed=0), steps=60, lr=1e-2, seed=0)
        readout = evaluate(net, batches(corpus, 32, seed=1), min_tokens=1_000)
        assert readout.accuracy > 0.5, "a guess has 0.25"
        chosen[shared_gate] = jaccard(*net.stack.blocks[0].ffn.routings)
    assert chosen[False] < chosen[True]


def test_steps_that_do_not_divide_are_told():
    with pytest.raises(ConfigError, match="C: expected a divisor of k = 8, got 3"):
        chain_of_experts(8, 6, 12, k=8, C=3)
