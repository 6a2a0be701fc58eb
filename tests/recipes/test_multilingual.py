"""Divergence between languages, a task's experts, steering: on models whose routes are known."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'polyroute[nn]'")

import numpy as np
import torch
from torch import nn

from polyroute.errors import ShapeError
from polyroute.nn.gates import Raw
from polyroute.nn.languages import GENERAL, TASK, Languages
from polyroute.nn.metrics import divergence
from polyroute.nn.moe import MoE
from polyroute.nn.selection import TopK
from polyroute.nn.testbed import seeded
from polyroute.nn.transformer import TinyLM
from polyroute.proofs.multilingual import MODULUS, OWN, RICH, Crawls, every_sum, right, right_with_routes_of
from polyroute.recipes.multilingual import (
    frequencies,
    language_divergence,
    middle_layers,
    sequence_scores,
    steered,
    task_experts_of,
)

pytestmark = pytest.mark.torch
WORLD = Languages(2, modulus=3, words=4, problems=3)


class ByWord(nn.Module):
    """A layer that sends a word to the expert named for it."""

    def __init__(self, expert_of_word):
        super().__init__()
        self.words = nn.Embedding(WORLD.vocab, 4)
        self.moe = MoE(4, 2, 4, select=TopK(1), gate=Raw())
        with torch.no_grad():
            self.words.weight.copy_(torch.eye(4)[torch.tensor(expert_of_word)])
            self.moe.router.scorer.weight.copy_(20 * torch.eye(4))

    def forward(self, ids):
        return self.moe(self.words(ids))


def sums(n=6):
    return [[batch] for batch in WORLD.parallel(np.random.default_rng(0), n, kind=TASK)]


def text(n=6):
    return [[batch] for batch in WORLD.parallel(np.random.default_rng(0), n, kind=GENERAL)]


def test_the_same_routes_have_no_divergence_and_others_have():
    alike = ByWord([0, 1, 2, 3, 0, 1, 2, 3] * 2)
    a, b = sums()
    assert language_divergence(alike, b, a) == pytest.approx({"moe": 0.0}, abs=1e-6)
    apart = ByWord([0, 0, 0, 1] * 2 + [2, 2, 2, 3] * 2)
    assert language_divergence(apart, b, a, normalised=False)["moe"] == pytest.approx(np.log(2), rel=1e-4)
    with pytest.raises(ShapeError):
        language_divergence(apart, b, [a[0], a[0]])


def test_divergence_is_the_mean_over_aligned_sequences():
    with seeded(0):
        model = TinyLM(WORLD.vocab, 8, 2, 2, lambda layer: MoE(8, 4, 3), context=12)
    a, b = sums()
    found, p, q = language_divergence(model, b, a), sequence_scores(model, b), sequence_scores(model, a)
    for name in p:
        each = [float(divergence(p[name][i], q[name][i])) for i in range(6)]
        assert found[name] == pytest.approx(np.mean(each))


def test_frequencies_are_shares_of_tokens():
    model = ByWord([0, 0, 0, 1, 2, 2, 2, 2] * 2)
    assert frequencies(model, sums()[0])["moe"].tolist() == pytest.approx([0.75, 0.25, 0, 0])
    assert frequencies(model, text()[1])["moe"].tolist() == pytest.approx([0, 0, 1, 0])
    assert model.training


def test_task_experts_and_steering_towards_them():
    model = ByWord([0, 0, 0, 1, 2, 2, 2, 2] + [3] * 8)
    experts = task_experts_of(model, sums()[0], text()[0], tau=0.3)
    assert experts == {"moe": [0]}
    batch = sums()[1][0]
    with torch.no_grad():
        with steered(model, experts, strength=5.0):
            model(batch.x)
            assert (model.moe.routing.exp_N == 0).all()
        model(batch.x)
    assert (model.moe.routing.exp_N == 3).all()


@pytest.mark.parametrize(("depth", "expected"), [(1, [0]), (2, [1]), (6, [2, 3]), (7, [2, 3, 4])])
def test_the_middle_third(depth, expected):
    model = TinyLM(5, 4, depth, 0, lambda layer: MoE(4, 2, 2), context=4)
    assert middle_layers(model) == [f"stack.blocks.{i}.ffn" for i in expected]


def test_the_proof_s_world_says_the_same_in_all_languages():
    world, rng = Crawls(3), np.random.default_rng(0)
    a, b = every_sum(0), every_sum(5)
    assert len(a.x) == 36
    assert torch.equal(a.x + 5 * OWN, b.x)
    assert torch.equal(a.y, b.y)
    terms = a.x[:, 1:] - MODULUS
    assert torch.equal(terms.sum(1) % MODULUS, a.y[:, -1])
    domain_B = world.batch(rng, 20_000).domain_B
    poor = domain_B >= 2 * RICH
    assert float(poor.float().mean()) == pytest.approx(0.5, abs=0.02)
    assert float((domain_B[poor] % 2 == 0).float().mean()) == pytest.approx(0.003, abs=0.002)


def test_given_routes_are_taken_and_given_back():
    batch, other = every_sum(1), every_sum(0)
    with seeded(0):
        model = TinyLM(Crawls.vocab, 8, 3, 2, lambda layer: MoE(8, 4, 4, select=TopK(1), gate=Raw()), context=3)
    before = right(model, batch)
    assert right_with_routes_of(model, batch, batch) == before
    right_with_routes_of(model, other, batch)
    name = middle_layers(model)[0]
    taken = dict(model.named_modules())[name].routing.exp_N.clone()
    with torch.no_grad():
        model(other.x)
    assert torch.equal(dict(model.named_modules())[name].routing.exp_N, taken)
    assert right(model, batch) == before
