"""System 95: choices by the mean of the neighbours, and the control that must change nothing."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'polyroute[nn]'")

import torch

from polyroute.nn.chars import Chars
from polyroute.nn.corpora import batches
from polyroute.nn.losses import LBL
from polyroute.nn.moe import MoE, aux_losses
from polyroute.nn.testbed import seeded, train
from polyroute.nn.transformer import TinyLM
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
