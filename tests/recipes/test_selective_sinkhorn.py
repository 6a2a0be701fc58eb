"""A layer that balances by transport on some steps: which steps, how well, and that it is plain in evaluation."""

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'polyroute[nn]'")

import torch

from polyroute.nn.corpora import Regress, batches
from polyroute.nn.gates import Hard
from polyroute.nn.metrics import max_vio
from polyroute.nn.moe import aux_losses, layers
from polyroute.nn.normalise import SelectionBias
from polyroute.nn.side_by_side import side_by_side
from polyroute.nn.testbed import seeded, train
from polyroute.nn.transformer import TinyNet
from polyroute.proofs.selective_sinkhorn import (
    ARMS,
    BIAS,
    EXPERTS,
    GROUP,
    SIZES,
    Arm,
    Biases,
    Worlds,
    built,
    optimizer,
    together,
    trained,
)
from polyroute.recipes.moe_baselines import softmax_top_k
from polyroute.recipes.selective_sinkhorn import selective_sinkhorn

pytestmark = pytest.mark.torch
WORLD = Regress(4, 8, length=16, spread=2.0)


def layer_of(**options):
    with seeded(0):
        return selective_sinkhorn(8, 8, 8, **options)


def test_a_step_of_transport_is_balanced_after_two_are_taken_of_each_row():
    x_BLD = next(batches(WORLD, 64, seed=0)).x
    always, never = layer_of(p=1.0), layer_of(p=0.0)
    always(x_BLD)
    never(x_BLD)
    assert max_vio(always.routing.count_E) < 0.5 < max_vio(never.routing.count_E)
    gates = always.routing.gate_N.reshape(-1, 2)
    torch.testing.assert_close(gates.sum(1), torch.ones(len(gates)))
    assert not aux_losses(always), "no auxiliary loss"


def test_in_evaluation_it_is_softmax_top_k_to_the_bit():
    x_BLD = next(batches(WORLD, 2, seed=0)).x
    with seeded(0):
        plain = softmax_top_k(8, 8, 8, balance=0.0)
    assert torch.equal(layer_of(p=1.0, noise=2.0).eval()(x_BLD), plain.eval()(x_BLD))


def test_noise_is_a_choice_and_falls_on_the_other_steps_of_training_alone():
    x_BLD = next(batches(WORLD, 2, seed=0)).x
    for p, changes in ((0.0, True), (1.0, False)):
        clean, noisy = layer_of(p=p), layer_of(p=p, noise=2.0)
        clean(x_BLD)
        with seeded(1):
            noisy(x_BLD)
        moved = (clean.routing.probs_TE - noisy.routing.probs_TE).abs().max()
        assert (moved > 0.1) == changes
        assert (moved == 0) != changes


def test_one_expert_a_token_is_weighed_by_its_score():
    x_BLD = next(batches(WORLD, 2, seed=0)).x
    layer = layer_of(k=1, p=1.0)
    layer(x_BLD)
    torch.testing.assert_close(layer.routing.gate_N, layer.routing.probs_TE.max(-1).values)
    assert layer_of(k=2, gate=Hard(0.5)).router.gate == Hard(0.5)


def test_layers_draw_for_themselves_and_recomputation_draws_the_same():
    losses = []
    for checkpoint in (False, True):
        with seeded(0):
            model = TinyNet(
                8, 8, 8, 2, 0, lambda _: selective_sinkhorn(8, 8, 8, p=0.3, grad="plan"), checkpoint=checkpoint
            )
        losses.append(train(model, batches(WORLD, 4, seed=0), steps=8, seed=0).loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    norms = [layer.router.norm for layer in layers(model).values()]
    drawn = [[norm.draws(step, depth) for step in range(8)] for depth, norm in enumerate(norms)]
    assert any(drawn[0])
    assert drawn[0] != drawn[1]


def test_the_proofs_arms_begin_alike_and_differ_in_training_alone():
    x_WLD = torch.randn(2, 40, 16, generator=torch.Generator().manual_seed(0))
    outputs = [together([3, 4], arm).eval()(x_WLD) for arm in ARMS.values()]
    assert all(torch.equal(outputs[0], y) for y in outputs[1:])
    draws = [built(Arm("transport", 0.1), seed).router.norm.draws for seed in (3, 4)]
    made = {}
    for how in ("nothing", "balance", "transport", "dealt", "rows"):
        layer = together([3, 4], Arm(how, 0.1 * (how in ("transport", "dealt", "rows"))))
        layer.step = next(step for step in range(300) if draws[0](step, 0) and not draws[1](step, 0))
        layer(x_WLD)
        made[how] = layer.routing.probs_TE.detach().reshape(2, 40, EXPERTS)
    assert all(torch.equal(made["nothing"][1], scores[1]) for scores in made.values())
    assert torch.equal(made["nothing"], made["balance"])
    plan, dealt, rows = (made[how][0] for how in ("transport", "dealt", "rows"))
    torch.testing.assert_close(dealt.sum(0), plan.sum(0))
    assert not torch.equal(dealt, plan)
    assert (plan.sum(0) - 5).abs().max() < 0.05 < (rows.sum(0) - 5).abs().max()


def test_the_proofs_plans_are_those_of_each_world_alone():
    seeds, arm = [3, 4, 5], Arm("transport", 0.5)
    apart, one = side_by_side([built(arm, seed) for seed in seeds]), together(seeds, arm)
    x_WLD = torch.randn(3, 40, 16, generator=torch.Generator().manual_seed(0))
    for step in range(6):
        apart.step = one.step = step
        torch.testing.assert_close(one(x_WLD), apart(x_WLD))
    for layer in (apart, one):
        layer(x_WLD).square().sum().backward()
    for ours, theirs in zip(one.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_worlds_tokens_are_the_same_however_many_worlds_there_are():
    few, many = Worlds(range(70, 70 + GROUP)), Worlds(range(70, 70 + GROUP + 3))
    for _, one, other in zip(range(2), few.stream(), many.stream(), strict=False):
        assert torch.equal(one.x, other.x[:GROUP])
        assert torch.equal(one.y, other.y[:GROUP])
    assert not torch.equal(other.x[0], other.x[GROUP])


def test_only_an_auxiliary_loss_feels_the_size_of_the_tasks():
    seeds = [3, 4]
    for how, feels in (("transport", False), ("bias", False), ("balance", True)):
        ends = [trained(Worlds(seeds), Arm(how, 0.3 * (how == "transport"), size), 30) for size in SIZES]
        weights = [[p.detach() for p in layer.parameters()] for layer in ends]
        same = [all(torch.equal(a, b) for a, b in zip(weights[1], w, strict=True)) for w in weights]
        assert same == [not feels, True, not feels], how


def test_the_proofs_biases_are_those_of_each_world_alone():
    both, alone = Biases(2), [SelectionBias(BIAS).build(16, EXPERTS) for _ in range(2)]
    layer = softmax_top_k(16, 16, EXPERTS, k=1, renorm=False)
    x_TD = torch.randn(40, 16, generator=torch.Generator().manual_seed(0))
    for bias, part in zip(alone, x_TD.chunk(2), strict=True):
        layer(part)
        bias.observe(layer.routing)
        bias.end_step()
    layer(x_TD)
    both.observe(layer.routing)
    both.end_step()
    choice_TE = torch.zeros(40, EXPERTS)
    expected = torch.cat([bias(choice_TE[:20], None, x_TD) for bias in alone])
    assert torch.equal(both(choice_TE, None, x_TD), expected)
    assert not torch.equal(expected[0], expected[20])
    assert expected[0].abs().max() < 2 * BIAS


def test_the_proofs_optimizer_moves_router_and_experts_at_their_own_rates():
    layer = built(Arm("nothing"), 3)
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    made = optimizer(layer, 8e-2)
    layer(torch.randn(40, 16, generator=torch.Generator().manual_seed(0))).square().mean().backward()
    made.step()
    moved = {name: float((p.detach() - before[name]).abs().max()) for name, p in layer.named_parameters()}
    assert moved["router.scorer.weight"] == pytest.approx(8e-2, rel=0.02)
    assert moved["pool.w1_EGD"] == pytest.approx(4e-3, rel=0.02)
