"""System 3: one cell for all layers, a state that travels over depth and starts anew for each token."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'polyroute[nn]'")

import torch

from polyroute.nn.chars import Chars
from polyroute.nn.corpora import Regress, batches
from polyroute.nn.moe import MoE, aux_losses, routings
from polyroute.nn.testbed import seeded, task_loss, train
from polyroute.nn.transformer import TinyLM, TinyNet
from polyroute.proofs.rmoe import LogitsAddedUp, blur, gradient_norms, swapped_loss
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


def test_a_blurred_router_reads_noise_and_its_experts_do_not():
    layer = rmoe(16, 8, 4, state=6)(0)
    x, seen = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0)), []
    layer.router.inp.register_forward_pre_hook(lambda part, arguments: seen.append(arguments[0].x_TD))
    layer.pool.register_forward_pre_hook(lambda part, arguments: seen.append(arguments[0]))
    blur(layer, 2.0)
    with seeded(1):
        layer(3 * x)
        layer(3 * x)
    first, experts, second, _ = seen
    assert torch.equal(experts, 3 * x.flatten(0, 1))
    assert float((first - second).abs().min()) > 0
    noise = (first - experts) / experts.square().mean(-1, keepdim=True).sqrt()
    assert float(noise.std()) == pytest.approx(2.0, rel=0.15)


def test_added_logits_are_those_of_all_layers_so_far():
    mod = LogitsAddedUp()
    assert mod.build(16, 4) is mod
    with seeded(0):
        lm = TinyLM(Chars.vocab, 16, 3, 2, lambda layer: MoE(16, 8, 4, mods=(mod,)), context=16)
    read = []
    for block in lm.stack.blocks:
        block.ffn.router.scorer.register_forward_hook(lambda part, arguments, out: read.append(out))
    lm(torch.arange(12).reshape(1, 12))
    for depth, routing in enumerate(routings(lm).values()):
        assert torch.allclose(routing.logits_TE, sum(read[: depth + 1]), atol=1e-6)


def test_states_of_others_cost_only_a_router_that_reads_them():
    with seeded(0):
        ffns = [rmoe(16, 4, 4, state=6, carry=carry) for carry in (True, False)]
        nets = [TinyNet(16, 16, 16, 3, 0, ffn, project=False) for ffn in ffns]
    world = next(batches(Regress(4, 16, length=4, seed=0), 8, seed=0))
    with torch.no_grad():
        plain = [float(task_loss(net, world)) for net in nets]
    assert swapped_loss(nets[0], world, 0) != plain[0]
    assert swapped_loss(nets[1], world, 0) == pytest.approx(plain[1])
    whole, cut = (gradient_norms(nets[0], world, 0, detach=detach) for detach in (False, True))
    assert whole[-1] == pytest.approx(cut[-1], rel=1e-5)
    assert (whole[:-1] != cut[:-1]).all()
