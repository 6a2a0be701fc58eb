"""The world of linear tasks: smallest moves, forgetting and balance against their formulas."""

from __future__ import annotations

import numpy as np
import pytest

from polyroute.errors import ConfigError

torch = pytest.importorskip("torch")

from polyroute.nn.continual import LinearExperts, LinearTasks, RunningBalance, purity  # noqa: E402
from polyroute.nn.gates import Raw  # noqa: E402
from polyroute.nn.moe import MoE  # noqa: E402
from polyroute.nn.selection import TopK  # noqa: E402

pytestmark = pytest.mark.torch


def test_rounds_hold_one_signal_and_exact_answers():
    world = LinearTasks(seed=3, within=0.0)
    data = world.round(np.random.default_rng(0))
    torch.testing.assert_close(data.y_S, data.x_SD @ world.truth_ND[data.task])
    along = data.x_SD.numpy() @ world.sign_ND[data.task]
    assert np.isclose(along, 4.0, atol=1e-5).sum() == 1
    same = world.cluster_N == world.cluster_N[data.task]
    assert torch.equal(world.truth_ND[same][0], world.truth_ND[same][1])


def test_an_expert_moves_by_the_pseudoinverse_and_then_fits():
    world = LinearTasks(seed=1)
    experts, data = LinearExperts(world.dim, 3), world.round(np.random.default_rng(1))
    experts.w_ED.copy_(torch.randn(3, world.dim, generator=torch.Generator().manual_seed(0)))
    before = experts.w_ED.clone()
    moved = experts.fit(1, data.x_SD, data.y_S)
    x = data.x_SD.double().numpy()
    change = np.linalg.pinv(x) @ (data.y_S.numpy() - x @ before[1].double().numpy())
    np.testing.assert_allclose((experts.w_ED - before)[1], change, atol=1e-4)
    assert moved == pytest.approx(np.linalg.norm(change), rel=1e-4)
    torch.testing.assert_close(data.x_SD @ experts.w_ED[1], data.y_S, atol=1e-3, rtol=0)
    assert torch.equal(experts.w_ED[[0, 2]], before[[0, 2]])


def test_a_layer_of_linear_experts_is_the_gated_sum():
    torch.manual_seed(0)
    layer = MoE(5, 1, 3, select=TopK(2), gate=Raw(), pool=LinearExperts(5, 3))
    layer.pool.w_ED.normal_()
    x = torch.randn(7, 5)
    expected = (layer(x), (layer.routing.gates_TE() * (x @ layer.pool.w_ED.T)).sum(-1, keepdim=True))
    torch.testing.assert_close(*expected)


def test_running_balance_is_its_formula_over_all_rounds():
    torch.manual_seed(0)
    layer = MoE(5, 1, 3, select=TopK(1), gate=Raw(), pool=LinearExperts(5, 3), aux=(RunningBalance(0.5),))
    count, total, objective = np.zeros(3), np.zeros(3), layer.aux[0]
    for rounds in range(1, 6):
        layer(torch.randn(1, 5))
        served, probs = int(layer.routing.exp_N[0]), layer.routing.probs_TE[0].detach().numpy()
        count[served] += 1
        total[served] += probs[served]
        loss = objective(layer.routing, layer)
        assert loss.item() == pytest.approx(3 * (count / rounds * total / rounds).sum(), rel=1e-5)
    loss.backward()
    assert float(layer.router.scorer.weight.grad.abs().sum()) > 0


def test_purity_of_clean_and_of_mixed_rounds():
    cluster = np.array([0, 1, 2] * 10)
    assert purity(cluster, cluster) == 1.0
    assert purity(np.zeros(30, int), cluster) == pytest.approx(1 / 3)


def test_a_world_that_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="samples"):
        LinearTasks(samples=10)
