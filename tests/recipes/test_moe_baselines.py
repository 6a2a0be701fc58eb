"""Each baseline against what its source says, written out by hand."""

import math

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'polyroute[nn]'")

import torch

from polyroute.errors import ConfigError
from polyroute.nn.losses import ZLoss
from polyroute.nn.moe import aux_losses, end_step
from polyroute.nn.routing import TokenContext
from polyroute.nn.testbed import seeded
from polyroute.recipes.moe_baselines import (
    BASELINES,
    expert_choice,
    noisy_top_k,
    shared_experts,
    sigmoid_bias,
    softmax_top_k,
    switch,
)

pytestmark = pytest.mark.torch


def built(recipe, *, num_tokens=40, **options):
    """(layer, x [T, 8]) of 6 experts, from fixed seeds."""
    with seeded(0):
        return recipe(8, 4, 6, **options), torch.randn(num_tokens, 8)


def by_hand(layer, x_TD, gates_TE):
    """Sum of every expert's output times its gate."""
    gate, up = torch.einsum("egd,td->teg", layer.pool.w1_EGD, x_TD).chunk(2, dim=-1)
    y_TEO = torch.einsum("tef,efo->teo", torch.nn.functional.silu(gate) * up, layer.pool.w2_EFO)
    return (y_TEO * gates_TE[..., None]).sum(1)


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_is_the_gated_sum_of_its_experts_and_trains(name):
    layer, x_TD = built(BASELINES[name], aux=(ZLoss(),))
    y_TD = layer(x_TD)
    expected = by_hand(layer, x_TD, layer.routing.gates_TE())
    if layer.shared is not None:
        expected = expected + layer.shared(x_TD)
    torch.testing.assert_close(y_TD, expected)
    losses = aux_losses(layer)
    assert "z" in losses
    (y_TD.square().mean() + sum(losses.values())).backward()
    end_step(layer)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in layer.parameters())


@pytest.mark.parametrize("renorm", [True, False])
def test_softmax_gates_are_a_softmax_of_the_chosen_or_the_probabilities(renorm):
    layer, x_TD = built(softmax_top_k, renorm=renorm, k=3)
    layer(x_TD)
    logits = x_TD @ layer.router.scorer.weight.T
    best = logits.topk(3)
    expected = best.values.softmax(-1) if renorm else logits.softmax(-1).gather(1, best.indices)
    torch.testing.assert_close(layer.routing.gate_N.reshape(-1, 3), expected)
    assert not aux_losses(built(softmax_top_k, balance=0.0)[0])


def test_noisy_routing_starts_flat_is_noisy_only_in_training_and_learns_its_noise():
    layer, x_TD = built(noisy_top_k, num_tokens=600)
    layer(x_TD)
    logits = layer.routing.logits_TE.detach()
    assert abs(float(logits.std()) - math.log(2)) < 0.05, "softplus(0) is the first width of the noise"
    assert set(aux_losses(layer)) == {"importance", "noisy_load"}
    sum(aux_losses(layer).values()).backward()
    assert layer.router.mods[0].weight.grad.abs().sum() > 0
    assert layer.router.scorer.weight.grad.abs().sum() > 0
    layer.eval()(x_TD)
    assert layer.routing.logits_TE.abs().max() == 0
    torch.testing.assert_close(layer.routing.gate_N, torch.full((1200,), 0.5))


def test_switch_drops_what_overflows_in_order_of_token():
    layer, x_TD = built(switch, num_tokens=60)
    with torch.no_grad():
        layer.router.scorer.weight[0] += 3.0
    x_TD = x_TD.abs()
    layer(x_TD)
    routing, p = layer.routing, layer.routing.probs_TE
    limit = math.ceil(1.25 * 60 / 6)
    first = [t for t in range(60) if p[t].argmax() == 0][:limit]
    assert len(first) == limit
    assert routing.tok_N[routing.exp_N == 0].tolist() == first
    torch.testing.assert_close(routing.gate_N, p[routing.tok_N, routing.exp_N])
    assert layer(x_TD)[max(first) + 1 :][p[max(first) + 1 :].argmax(-1) == 0].abs().max() == 0
    kept, _ = built(switch, factor=None)
    kept(x_TD)
    assert kept.routing.count_E.sum() == 60


def test_experts_that_choose_are_balanced_also_with_padding():
    layer, x_TD = built(expert_choice, num_tokens=36)
    layer(x_TD)
    assert layer.routing.count_E.tolist() == [12] * 6
    assert layer.routing.K is None
    layer(x_TD, context=TokenContext(x_TD, (1, 36), valid_T=torch.arange(36) < 30))
    assert layer.routing.count_E.tolist() == [10] * 6
    assert layer.routing.tok_N.max() < 30


def test_the_bias_moves_the_choice_towards_idle_experts_and_never_a_gate():
    layer, x_TD = built(sigmoid_bias, rate=0.1, scale=2.5)
    layer(x_TD)
    count, bias = layer.routing.count_E.float(), layer.router.mods[0].bias_E
    end_step(layer)
    change = 0.1 * (count.mean() - count).sign()
    torch.testing.assert_close(bias, change - change.mean())
    layer(x_TD)
    scores = torch.sigmoid(x_TD @ layer.router.scorer.weight.T)
    chosen = (scores + bias).topk(2).indices
    assert (chosen.sort(-1).values != scores.topk(2).indices.sort(-1).values).any()
    kept = scores.gather(1, chosen)
    torch.testing.assert_close(layer.routing.gate_N.reshape(-1, 2), 2.5 * kept / kept.sum(-1, keepdim=True))
    assert not aux_losses(layer)
    assert bias.grad_fn is None
    assert "router.mods.0.bias_E" in layer.state_dict()


def test_groups_limit_where_a_token_goes():
    layer, x_TD = built(sigmoid_bias, k=2, groups=(3, 1), sequence_balance=1e-4, shared=4)
    layer(x_TD)
    groups = layer.routing.exp_N.reshape(-1, 2) // 2
    assert (groups[:, 0] == groups[:, 1]).all()
    scores = layer.routing.probs_TE.reshape(-1, 3, 2).sum(-1)
    assert torch.equal(groups[:, 0], scores.argmax(-1))
    assert set(aux_losses(layer)) == {"load_balance"}


def test_shared_experts_are_added_to_every_token_and_not_counted():
    layer, x_TD = built(shared_experts, num_shared=2)
    y_TD = layer(x_TD)
    assert layer.shared.w2.in_features == 2 * 4
    assert layer.routing.count_E.sum() == 40 * 2
    torch.testing.assert_close(y_TD - layer.shared(x_TD), by_hand(layer, x_TD, layer.routing.gates_TE()))


def test_impossible_settings_are_told():
    for recipe, options in ((softmax_top_k, {"k": 7}), (switch, {"factor": 0.0}), (sigmoid_bias, {"groups": (4, 1)})):
        with pytest.raises(ConfigError):
            recipe(8, 4, 6, **options)
