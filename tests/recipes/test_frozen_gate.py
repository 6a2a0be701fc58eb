"""Rounds of tasks through the layer of system 61: forgetting by hand, the freeze, and its control."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from polyroute.nn.continual import LinearTasks, purity  # noqa: E402
from polyroute.recipes.frozen_gate import frozen_gate, learn  # noqa: E402

pytestmark = pytest.mark.torch


def test_a_single_expert_forgets_by_the_formula():
    world = LinearTasks(seed=5)
    learned = learn(world, frozen_gate(world.dim, 1), rounds=30, seed=2)
    rng, w, errors, truths = np.random.default_rng(2), np.zeros(world.dim), [], []
    for _ in range(30):
        x, y, n = world.round(rng)
        x, y, truth = x.double().numpy(), y.double().numpy(), world.truth_ND[n].double().numpy()
        w = w + np.linalg.pinv(x) @ (y - x @ w)
        errors.append(((w - truth) ** 2).sum())
        truths.append(truth)
    last = ((w - np.array(truths)) ** 2).sum(1)
    assert learned.forgetting == pytest.approx((last - errors).mean(), rel=1e-3)
    assert learned.frozen_at is None


def test_a_gate_frozen_at_once_keeps_its_weights_and_the_experts_learn_on():
    world = LinearTasks(seed=5)
    layer = frozen_gate(world.dim, 3, baseline=None)
    learned = learn(world, layer, rounds=25, freeze_after=0, seed=2)
    assert learned.frozen_at is not None
    assert not layer.router.scorer.weight.requires_grad
    again = frozen_gate(world.dim, 3, baseline=None)
    learn(world, again, rounds=learned.frozen_at + 1, freeze_after=0, seed=2)
    assert torch.equal(layer.router.scorer.weight, again.router.scorer.weight)
    assert not torch.equal(layer.pool.w_ED, again.pool.w_ED)


def test_with_a_running_mean_experts_come_to_serve_a_cluster_each():
    world = LinearTasks(seed=200)
    learned = learn(world, frozen_gate(world.dim, 6), rounds=500, seed=200)
    assert purity(learned.expert_R[-150:], world.cluster_N[learned.task_R[-150:]]) > 0.9
