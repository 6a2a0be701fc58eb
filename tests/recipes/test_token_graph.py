"""System 95: choices by the mean of the neighbours, and the control that must change nothing."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'polyroute[nn]'")

import numpy as np
import torch

from polyroute.nn.chars import Chars
from polyroute.nn.corpora import batches
from polyroute.nn.losses import LBL
from polyroute.nn.moe import MoE, aux_losses
from polyroute.nn.routing import TokenContext
from polyroute.nn.testbed import seeded, train
from polyroute.nn.transformer import TinyLM
from polyroute.proofs.token_graph import DIM, KINDS, LENGTH, NOISE, BesideMean, astray, draw, kinds, world
from polyroute.recipes.token_graph import token_graph

pytestmark = pytest.mark.torch


def language_model(layer, attention=False):
    with seeded(0):
        return TinyLM(Chars.vocab, 16, 2, 2, lambda _: layer(), context=16, needs_attention=attention)


def test_with_itself_as_neighbour_it_is_the_plain_layer_exactly():
    corpus, losses = Chars(16, size=2000), []
    for layer in (lambda: MoE(16, 8, 4, aux=[LBL(0.01)]), lambda: token_graph(16, 8, 4, kind="self")):
        losses.append(train(language_model(layer), batches(corpus, 4, seed=0), steps=8, seed=0).loss)
    assert losses[0] == losses[1]


@pytest.mark.parametrize("kind", ["similarity", "attention", "uniform"])
def test_it_learns(kind):
    lm = language_model(lambda: token_graph(16, 8, 4, kind=kind), attention=kind == "attention")
    history = train(lm, batches(Chars(16, size=2000), 8, seed=0), steps=40, lr=1e-2, seed=0)
    assert history.last(5) < history.loss[0] - 0.5
    assert len(aux_losses(lm)) == 2


def test_more_alike_neighbours_choose_more_alike():
    x = torch.randn(1, 40, 16, generator=torch.Generator().manual_seed(0))
    x[0, 20:] = x[0, :20] + 0.05 * x[0, 20:]  # the second half says the first again

    def apart(**options):
        with seeded(0):
            layer = token_graph(16, 8, 8, causal=False, **options)
        layer(x)
        probs = layer.routing.probs_TE
        return float((probs[:20] - probs[20:]).abs().sum().detach())

    assert apart(tau=0.5) < 0.5 * apart(kind="self")


def test_the_proofs_sequences_have_one_topic_with_both_sides_and_a_mean_of_nothing():
    corpus, rng = world(3), np.random.default_rng(0)
    kind_BL = kinds(rng, 200)
    topic_BL, side_BL = kind_BL % (KINDS // 2), kind_BL // (KINDS // 2)
    assert (topic_BL == topic_BL[:, :1]).all()
    assert len(np.unique(topic_BL)) == KINDS // 2
    assert side_BL.mean() == pytest.approx(0.5, abs=0.02)
    batch = draw(corpus, rng, kind_BL)
    assert batch.x.numpy()[topic_BL == 0].mean(0) == pytest.approx(np.zeros(DIM), abs=0.15)
    for kind in (0, KINDS // 2):
        x_ND, y_NO = (part.numpy()[kind_BL == kind] for part in (batch.x, batch.y))
        assert x_ND.mean(0) == pytest.approx(corpus.centre_CD[kind], abs=0.3)
        assert (x_ND - corpus.centre_CD[kind]).std() == pytest.approx(NOISE, rel=0.05)
        assert y_NO == pytest.approx(x_ND @ corpus.map_COD[kind].T, abs=1e-4)


def test_the_proofs_baseline_reads_the_mean_so_far_beside_the_token():
    x_TD = torch.arange(6.0).reshape(6, 1)
    read = BesideMean(width=2).build(1, 4)(TokenContext(x_TD, (2, 3)))
    assert read.tolist() == [[0, 0], [1, 0.5], [2, 1], [3, 3], [4, 3.5], [5, 4]]


def test_the_proofs_falsifier_weighs_each_token_by_the_one_before():
    with seeded(0):
        layer = token_graph(DIM, DIM, KINDS, causal=False)
    x = torch.randn(2, LENGTH, DIM, generator=torch.Generator().manual_seed(0))
    ctx = TokenContext(x.flatten(0, 1), (2, LENGTH))
    right = layer.router.norm.weights(ctx)
    astray(layer)
    torch.testing.assert_close(layer.router.norm.weights(ctx), right.roll(1, dims=2))
