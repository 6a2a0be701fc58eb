"""Objectives that make neighbours share experts."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'polyroute[nn]'")

import torch
import torch.nn.functional as F

from polyroute.errors import ConfigError, ShapeError
from polyroute.nn.continuity import (
    ActivationLocality,
    Adaptive,
    ChunkSparsity,
    TaskLocality,
    chunk_union,
    manifold_loss,
    task_locality,
)
from polyroute.nn.gates import Raw
from polyroute.nn.moe import MoE, aux_losses, end_step
from polyroute.nn.normalise import ReLURMS
from polyroute.nn.routing import TokenContext
from polyroute.nn.selection import Positive, TopK

pytestmark = pytest.mark.torch


def relu_layer(*aux, dim=8, num_experts=6):
    torch.manual_seed(0)
    return MoE(dim, 6, num_experts, norm=ReLURMS(), select=Positive(), gate=Raw(), aux=aux)


def padded(x, valid):
    return TokenContext(x.reshape(-1, x.shape[-1]), tuple(x.shape[:2]), valid_T=valid.reshape(-1))


def test_locality_is_the_cross_entropy_with_the_next_token_of_the_sequence():
    layer = relu_layer(ActivationLocality(1.0, sharpness=3.0))
    x = torch.randn(3, 5, 8)
    valid = torch.ones(3, 5, dtype=torch.bool)
    valid[0, 4] = valid[2, 1] = False
    layer(x, context=padded(x, valid))
    z = 3.0 * layer.routing.logits_TE.reshape(3, 5, 6)
    found = []
    for b in range(3):
        for t in range(4):
            if valid[b, t] and valid[b, t + 1]:
                found.append(F.binary_cross_entropy(z[b, t].sigmoid(), z[b, t + 1].sigmoid()))
    assert len(found) == 9
    assert aux_losses(layer)["activation_locality"].item() == pytest.approx(torch.stack(found).mean().item(), rel=1e-5)


def test_equal_sharp_neighbours_cost_nothing_and_boundaries_do_not_count():
    layer = relu_layer(ActivationLocality(1.0))
    layer(torch.randn(2, 1, 8).expand(2, 7, 8))
    layer.routing.logits_TE = (layer.routing.logits_TE.sign()).detach()
    assert aux_losses(layer)["activation_locality"].item() == pytest.approx(0, abs=1e-6)
    layer(torch.randn(7, 1, 8))
    assert aux_losses(layer)["activation_locality"].item() == 0, "sequences of one token have no neighbours"


def test_the_target_may_be_detached():
    grads = []
    for detach in (False, True):
        layer = relu_layer(ActivationLocality(1.0, sharpness=1.0, detach=detach))
        layer(torch.randn(1, 2, 8))
        logits = layer.routing.logits_TE
        grads.append(torch.autograd.grad(aux_losses(layer)["activation_locality"], logits)[0])
    torch.testing.assert_close(grads[0][0], grads[1][0])
    assert (grads[1][1] == 0).all()
    assert (grads[0][1] != 0).all()


def test_chunk_sparsity_has_its_known_values():
    same = F.one_hot(torch.zeros(8, dtype=torch.int64), 8).float()
    assert chunk_union(same, 8, (1, 8)).item() == pytest.approx(0.125, abs=1e-4)
    assert chunk_union(torch.full((8, 8), 1 / 8), 8, (1, 8)).item() == pytest.approx(1 - (7 / 8) ** 8, abs=1e-4)
    assert chunk_union(torch.eye(8), 8, (1, 8)).item() == pytest.approx(1.0, abs=1e-4)


def union_by_hand(p, chunk, valid):
    """Mean over chunks with tokens and over experts of the chance that some token uses the expert."""
    found = []
    for b in range(p.shape[0]):
        for s in range(0, p.shape[1], chunk):
            rows = [p[b, t] for t in range(s, min(s + chunk, p.shape[1])) if valid[b, t]]
            if rows:
                found.append((1 - torch.stack([1 - row for row in rows]).prod(0)).mean())
    return torch.stack(found).mean()


@pytest.mark.parametrize("chunk", [1, 3, 4, 20])
def test_chunks_stay_within_sequences_and_leave_padding_out(chunk):
    generator = torch.Generator().manual_seed(chunk)
    p = torch.rand(3, 7, 5, generator=generator).softmax(-1)
    valid = torch.rand(3, 7, generator=generator) < 0.7
    valid[1] = False
    got = chunk_union(p.reshape(21, 5), chunk, (3, 7), valid.reshape(21))
    assert got.item() == pytest.approx(union_by_hand(p, chunk, valid).item(), rel=1e-4)


def test_chunk_sparsity_reads_relu_shares_before_the_norm():
    layer = relu_layer(ChunkSparsity(2.0, chunk=4))
    torch.nn.init.uniform_(layer.router.norm.weight, 0.5, 2.0)
    layer(torch.randn(2, 8, 8))
    active = layer.routing.logits_TE.relu()
    p = (active / active.sum(-1, keepdim=True).clamp(min=1e-9)).reshape(2, 8, 6)
    expected = 2.0 * union_by_hand(p, 4, torch.ones(2, 8, dtype=torch.bool))
    assert aux_losses(layer)["chunk_sparsity"].item() == pytest.approx(expected.item(), rel=1e-4)
    layer = MoE(8, 6, 4, aux=(ChunkSparsity(1.0, chunk=3, on="scores"),))
    layer(torch.randn(2, 6, 8))
    expected = union_by_hand(layer.routing.probs_TE.reshape(2, 6, 4), 3, torch.ones(2, 6, dtype=torch.bool))
    assert aux_losses(layer)["chunk_sparsity"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_a_row_without_mass_and_a_certain_choice_keep_finite_gradients():
    layer = relu_layer(ChunkSparsity(1.0, chunk=4), ActivationLocality(1.0))
    layer(torch.randn(2, 4, 8))
    logits = torch.tensor([[-1.0] * 6, [5.0] + [-1.0] * 5] * 4, requires_grad=True)
    layer.routing.logits_TE = logits
    sum(aux_losses(layer).values()).backward()
    assert torch.isfinite(logits.grad).all()
    assert logits.grad.abs().sum() > 0


def run(layer, values):
    """Steps whose chunk losses are the given values; returns the coefficient after each."""
    objective, seen = layer.aux[0], []
    for number in values:
        objective._total, objective._count = objective._total + number, objective._count + 1
        end_step(layer)
        seen.append(objective.coef)
    return seen


def test_the_coefficient_follows_the_ratio_of_windows():
    schedule = Adaptive(warmup=4, every=2, least=1.025)
    layer = relu_layer(ChunkSparsity(0.1, schedule=schedule))
    seen = run(layer, [1.0, 1.0, 1.0, 1.0, 0.5, 0.7, 0.6, 0.606, 0.9, 0.9])
    assert seen[:5] == [0.1] * 5
    assert seen[5] == pytest.approx(0.1 * 0.6)
    assert seen[7] == pytest.approx(0.1 * 0.6 * 1.025), "a small rise counts as 1.025"
    assert seen[9] == pytest.approx(0.1 * 0.6 * 1.025 * 0.9 / 0.603)
    assert run(relu_layer(ChunkSparsity(0.1, schedule=None)), [1.0, 3.0] * 3) == [0.1] * 6


def test_the_schedule_measures_training_alone_and_is_saved():
    layer = relu_layer(ChunkSparsity(0.1, chunk=4, schedule=Adaptive(warmup=0, every=2)))
    layer(torch.randn(2, 8, 8))
    first = aux_losses(layer)["chunk_sparsity"].item() / 0.1
    end_step(layer)
    layer.eval()
    layer(torch.randn(2, 8, 8))
    aux_losses(layer)
    state = layer.state_dict()
    assert state["aux.0._extra_state"]["total"] == pytest.approx(first, rel=1e-5)
    layer.train()
    layer.aux[0].coef = 0.07
    other = relu_layer(ChunkSparsity(0.1, chunk=4, schedule=Adaptive(warmup=0, every=2)))
    other.load_state_dict(layer.state_dict())
    assert other.aux[0].get_extra_state() == layer.aux[0].get_extra_state()


def test_training_with_it_makes_chunks_sparse():
    layer = relu_layer(ChunkSparsity(1.0, chunk=8, schedule=None), num_experts=8)
    optimizer = torch.optim.Adam(layer.router.parameters(), lr=0.02)
    x = torch.randn(4, 16, 8)
    losses = []
    for _ in range(60):
        layer(x)
        loss = aux_losses(layer)["chunk_sparsity"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_manifold_loss_is_the_weighted_squared_distance():
    generator = torch.Generator().manual_seed(0)
    routes = torch.rand(4, 6, generator=generator, requires_grad=True)
    neighbours = torch.rand(4, 3, 6, generator=generator, requires_grad=True)
    weights = torch.rand(4, 3, generator=generator).softmax(-1)
    expected = sum(weights[i, j] * (routes[i] - neighbours[i, j]).square().sum() for i in range(4) for j in range(3))
    loss = manifold_loss(routes, neighbours, weights)
    assert loss.item() == pytest.approx(expected.item() / 4, rel=1e-5)
    loss.backward()
    pull = (weights[..., None] * (routes[:, None] - neighbours)).sum(1).detach()
    torch.testing.assert_close(routes.grad, pull / 2)
    assert neighbours.grad is None
    assert manifold_loss(routes[:0], neighbours[:0], weights[:0]).item() == 0
    with pytest.raises(ShapeError, match="neighbours"):
        manifold_loss(routes, neighbours[:, :2], weights)


def test_task_locality_costs_the_experts_that_served():
    probs = torch.tensor([0.5, 0.3, 0.2], requires_grad=True)
    moved, served = torch.tensor([2.0, 4.0, 9.0]), torch.tensor([True, True, False])
    loss = task_locality(probs, moved, served, baseline=1.0)
    assert loss.item() == pytest.approx(0.5 * 1 + 0.3 * 3)
    loss.backward()
    assert probs.grad.tolist() == [1.0, 3.0, 0.0]


def test_the_baseline_follows_the_movements():
    layer = MoE(8, 6, 3, select=TopK(1), gate=Raw(), aux=(TaskLocality(baseline="ema", decay=0.75),))
    layer.router.scorer.weight.data.copy_(torch.eye(3, 8))
    x = torch.eye(8)[:1].expand(4, 8) * 3
    layer(x)
    assert aux_losses(layer)["task_locality"].item() == 0, "nobody moved yet"
    p = layer.routing.probs_TE[0, 0].item()
    found = []
    for moved in (2.0, 6.0, 1.0):
        layer.aux[0].moved(torch.tensor([moved, 50.0, 50.0]))
        found.append(aux_losses(layer)["task_locality"].item())
        assert aux_losses(layer)["task_locality"].item() == 0, "a movement counts once"
    assert found == pytest.approx([0.0, p * (6 - 2), p * (1 - 3)], rel=1e-5)
    plain = MoE(8, 6, 3, select=TopK(1), gate=Raw(), aux=(TaskLocality(baseline=None),))
    plain.load_state_dict(layer.state_dict())
    plain(x)
    plain.aux[0].moved(torch.tensor([2.0, 50.0, 50.0]))
    assert aux_losses(plain)["task_locality"].item() == pytest.approx(2 * p, rel=1e-5)
    with pytest.raises(ShapeError, match="norms"):
        layer.aux[0].moved(torch.ones(4))


@pytest.mark.parametrize(
    "config",
    [
        ActivationLocality(sharpness=0),
        ChunkSparsity(chunk=0),
        ChunkSparsity(on="logit"),
        TaskLocality(baseline="mean"),
        TaskLocality(decay=1.0),
    ],
    ids=repr,
)
def test_what_makes_no_sense_is_refused_when_built(config):
    with pytest.raises(ConfigError):
        config.build(8, 4)


@pytest.mark.parametrize("config", [ActivationLocality(1.0), ChunkSparsity(1.0), TaskLocality()], ids=repr)
@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (2, 3)])
def test_an_empty_batch_costs_nothing_and_has_a_gradient(config, shape):
    layer = relu_layer(config)
    x = torch.randn(*shape, 8)
    layer.routing = layer.router(padded(x, torch.zeros(shape, dtype=torch.bool)))
    loss = sum(aux_losses(layer).values())
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(layer.router.scorer.weight.grad).all()
