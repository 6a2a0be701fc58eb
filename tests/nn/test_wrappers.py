"""A chain is the layers written out by hand, its steps share experts only; parallel layers nothing."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'polyroute[nn]'")

import torch
from torch import nn

from polyroute.errors import ConfigError
from polyroute.nn.experts import FeedForward
from polyroute.nn.gates import Raw
from polyroute.nn.inputs import Recurrent
from polyroute.nn.losses import LBL
from polyroute.nn.metrics import Load
from polyroute.nn.moe import MoE, aux_losses, end_step, layers
from polyroute.nn.normalise import SelectionBias
from polyroute.nn.routing import TokenContext
from polyroute.nn.selection import TopK
from polyroute.nn.testbed import seeded
from polyroute.nn.wrappers import Chain, Parallel

pytestmark = pytest.mark.torch


def layer(seed=0, **options):
    with seeded(seed):
        return MoE(8, 6, 4, **{"select": TopK(2), "gate": Raw(), "aux": [LBL(0.01)], **options})


def tokens(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("inner", "outer"), [(True, False), (False, True), (False, False), (True, True)])
def test_it_is_the_steps_written_out(inner, outer):
    chain, x = Chain(layer(shared=6), 3, inner_residual=inner, outer_residual=outer), tokens(2, 5, 8)
    by_hand = x
    for step in chain.steps:
        by_hand = step(by_hand) + (by_hand if inner else 0.0)
    assert torch.equal(chain(x), by_hand + x if outer else by_hand)


def test_one_step_without_residuals_is_the_layer_itself():
    moe, x = layer(), tokens(7, 8)
    expected = moe(x)
    assert torch.equal(Chain(moe, 1, inner_residual=False)(x), expected)


def test_steps_hold_the_same_experts_and_routers_of_their_own():
    moe = layer(shared=6)
    chain = Chain(moe, 3)
    assert {id(step.pool) for step in chain.steps} == {id(moe.pool)}
    assert {id(step.shared) for step in chain.steps} == {id(moe.shared)}
    weights = [step.router.scorer.weight for step in chain.steps]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
    own = sum(p.numel() for p in moe.parameters())
    assert sum(p.numel() for p in chain.parameters()) == own + 2 * weights[0].numel(), "experts are counted once"
    shared = Chain(layer(), 3, shared_gate=True)
    assert len({id(step.router) for step in shared.steps}) == 1
    assert len({id(step) for step in shared.steps}) == 3


def test_gradients_of_all_steps_reach_the_experts_once():
    chain, x = Chain(layer(aux=()), 2), tokens(6, 8).double()
    chain.double()
    chain(x).square().sum().backward()
    found = chain.steps[0].pool.w2_EFO.grad.clone()
    w2 = chain.steps[0].pool.w2_EFO
    index, step = (2, 1, 3), 1e-3
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            w2[index] += sign * step
            values.append(float(chain(x).square().sum()))
            w2[index] -= sign * step
    assert float(found[index]) == pytest.approx((values[0] - values[1]) / (2 * step), rel=2e-2)


def test_loads_and_objectives_are_kept_for_each_step():
    chain = Chain(layer(taps=[Load()]), 2)
    model = nn.ModuleDict({"ffn": chain})
    chain(tokens(3, 9, 8))
    assert list(layers(model)) == ["ffn.steps.0", "ffn.steps.1"]
    assert list(aux_losses(model)) == ["ffn.steps.0/load_balance", "ffn.steps.1/load_balance"]
    assert [int(routing.count_E.sum()) for routing in chain.routings] == [54, 54]
    assert [int(step.taps[0].result()["count_E"].sum()) for step in chain.steps] == [54, 54]
    end_step(model)
    assert [step.step for step in chain.steps] == [1, 1]


def test_the_router_of_a_shared_gate_moves_its_prices_once_a_step():
    chain = Chain(layer(mods=[SelectionBias(0.1, centre=False)], aux=()), 2, shared_gate=True).train()
    chain(tokens(50, 8))
    counts = sum(routing.count_E for routing in chain.routings).float()
    end_step(chain)
    assert torch.allclose(chain.steps[0].router.mods[0].bias_E, 0.1 * (counts.mean() - counts).sign())


def test_padding_changes_nothing_and_a_state_goes_from_step_to_step():
    cell = nn.GRUCell(4, 4)
    chain = Chain(layer(inp=Recurrent(cell)), 2)
    x = tokens(1, 5, 8)
    context = TokenContext(x[0], (1, 5))
    y = chain(x, context=context)
    first, second = (step.routing.carry_TR for step in chain.steps)
    assert torch.allclose(second, cell(chain.steps[1].router.inp.project((x + chain.steps[0](x))[0]), first), atol=1e-6)
    assert context.carry_TR is second
    valid_T = torch.tensor([True] * 5 + [False] * 2)
    longer = torch.cat([x, 100 * tokens(1, 2, 8)], 1)
    padded = chain(longer, context=TokenContext(longer[0], (1, 7), valid_T=valid_T))
    assert torch.allclose(padded[:, :5], y, atol=1e-6)
    assert all(int(routing.count_E.sum()) == 10 for routing in chain.routings)


def test_what_cannot_be_chained_is_told():
    with pytest.raises(ConfigError, match="C: expected 1 step or more, got 0"):
        Chain(layer(), 0)
    with pytest.raises(ConfigError, match=r"moe\.out"):
        Chain(layer(out=3), 2)


def test_parallel_halves_stand_side_by_side_and_route_for_themselves():
    with seeded(0):
        a, b = MoE(8, 4, 3, out=3), MoE(8, 4, 5, out=5)
        both = Parallel([a, b])
        x = torch.randn(2, 6, 8)
    context = TokenContext(x.flatten(0, 1), (2, 6), valid_T=torch.arange(12) < 9)
    y = both(x, context=context)
    assert y.shape == x.shape
    assert [routing.num_experts for routing in both.routings] == [3, 5]
    assert all(int(routing.count_E.sum()) == 18 for routing in both.routings)
    torch.testing.assert_close(y[:1], torch.cat([a(x[:1]), b(x[:1])], -1))
    assert list(layers(both)) == ["parts.0", "parts.1"]


def test_parallel_sums_dense_layers_too():
    with seeded(0):
        parts = [MoE(8, 4, 3), FeedForward(8, 4)]
        x = torch.randn(5, 8)
    torch.testing.assert_close(Parallel(parts, combine="sum")(x), parts[0](x) + parts[1](x))


def test_what_cannot_stand_side_by_side_is_told():
    with pytest.raises(ConfigError, match="parts"):
        Parallel([])
    with pytest.raises(ConfigError, match="combine"):
        Parallel([layer()], combine="mean")
    cell = nn.GRUCell(4, 4)
    with pytest.raises(ConfigError, match="several Recurrent"):
        Parallel([MoE(8, 4, 3, inp=Recurrent(cell)), MoE(8, 4, 3, inp=Recurrent(cell))])
