"""System 3: one cell for all layers, a state that travels over depth and starts anew for each token."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'polyroute[nn]'")

import torch

from polyroute.nn.chars import Chars
from polyroute.nn.corpora import batches
from polyroute.nn.moe import aux_losses, routings
from polyroute.nn.testbed import seeded, train
from polyroute.nn.transformer import TinyLM
from polyroute.recipes.rmoe import rmoe

pytestmark = pytest.mark.torch


def model(**options):
    with seeded(0):
        return TinyLM(Chars.vocab, 16, 3, 2, rmoe(16, 8, 4, state=6, **options), context=16)


def gradient(lm):
    """Of each layer's projection into the state, from what the last layer's router says alone."""
    lm.zero_grad()
    lm(torch.arange(12).reshape(1, 12))
    list(routings(lm).values())[-1].logits_TE.square().sum().backward()
    return [block.ffn.router.inp.project.weight.grad for block in lm.stack.blocks]


def test_layers_share_the_cell_and_hand_their_state_on():
    lm = model()
    inputs = [block.ffn.router.inp for block in lm.stack.blocks]
    assert len({id(part.cell) for part in inputs}) == 1
    assert len({id(part.project) for part in inputs}) == 3
    lm(torch.arange(12).reshape(1, 12))
    states = [routing.carry_TR for routing in routings(lm).values()]
    assert all(state.shape == (12, 6) for state in states)
    assert (states[0] - states[1]).abs().max() > 1e-3


def test_the_gradient_reaches_earlier_routers_unless_it_is_cut():
    stream = model()
    for block in stream.stack.blocks:  # leave the routers' own path alone open
        block.ffn.router.inp.register_forward_pre_hook(_cut)
    own = gradient(stream)
    assert all(float(grad.norm()) > 0 for grad in own)
    for options in ({"detach": True}, {"carry": False}):
        lm = model(**options)
        for block in lm.stack.blocks:
            block.ffn.router.inp.register_forward_pre_hook(_cut)
        first, second, last = gradient(lm)
        assert first is None or float(first.norm()) == 0
        assert second is None or float(second.norm()) == 0
        assert float(last.norm()) > 0


def _cut(part, arguments):
    (ctx,) = arguments
    ctx.x_TD = ctx.x_TD.detach()


def test_without_carry_every_layer_starts_from_nothing_and_with_detach_only_gradients_differ():
    ids = torch.arange(12).reshape(1, 12)
    whole, cut, alone = model(), model(detach=True), model(carry=False)
    assert torch.equal(whole(ids), cut(ids))
    alone(ids)
    block = alone.stack.blocks[2].ffn
    state = block.router.inp.cell(block.router.inp.project(alone.stack.blocks[2].norm2(torch.zeros(1, 16))), None)
    assert state.shape == (1, 6)
    assert (whole(ids) - alone(ids)).abs().max() > 1e-4


def test_it_learns_and_its_balance_is_collected():
    lm = model()
    history = train(lm, batches(Chars(16, size=2000), 8, seed=0), steps=40, lr=1e-2, seed=0)
    assert history.last(5) < history.loss[0] - 0.5
    assert len(aux_losses(lm)) == 3
