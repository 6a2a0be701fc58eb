"""Plans of optimal transport: their sums, an independent oracle, padding, closed experts, and when they are used."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'polyroute[nn]'")

import torch

from polyroute.errors import ConfigError, UnknownNameError
from polyroute.nn.metrics import max_vio
from polyroute.nn.moe import MoE, end_step
from polyroute.nn.normalise import CandidateMask
from polyroute.nn.routing import TokenContext
from polyroute.nn.sinkhorn import SelectiveSinkhorn, transport_plan
from polyroute.nn.testbed import seeded

pytestmark = pytest.mark.torch


def skewed(num_tokens=1024, num_experts=16, seed=0):
    """Logits of a router with a taste: x W + b."""
    generator = torch.Generator().manual_seed(seed)
    x_TD, w_DE = torch.randn(num_tokens, 8, generator=generator), torch.randn(8, num_experts, generator=generator)
    return x_TD @ w_DE / 8**0.5 + torch.randn(num_experts, generator=generator)


def context(logits_TE, *, training=True, step=0, layer=0, valid_T=None):
    shape = (1, len(logits_TE))
    return TokenContext(logits_TE, shape, training=training, step=step, layer=layer, valid_T=valid_T)


def test_the_plan_is_that_of_alternate_scaling_in_double_precision():
    cost = skewed(64, 4).double().numpy()
    kernel = np.exp(cost / 0.5)
    row, column = np.ones(64), np.ones(4)
    for _ in range(200):
        column = (64 / 4) / (row @ kernel)
        row = 1.0 / (kernel @ column)
    plan = transport_plan(torch.tensor(cost), xi=0.5, iters=200)
    np.testing.assert_allclose(plan.numpy(), row[:, None] * kernel * column, atol=2e-6)


@pytest.mark.parametrize(("cost", "xi", "iters"), [("linear", 0.5, 20), ("linear", 0.02, 300), ("softmax", 0.05, 100)])
def test_rows_and_columns_sum_to_what_they_should_and_nothing_overflows(cost, xi, iters):
    z = skewed(256)
    plan = transport_plan(z if cost == "linear" else z.softmax(-1), xi=xi, iters=iters)
    torch.testing.assert_close(plan.sum(1), torch.ones(256))
    torch.testing.assert_close(plan.sum(0), torch.full((16,), 16.0), rtol=0.05, atol=0)
    assert torch.isfinite(transport_plan(1e4 * z, xi=0.01, iters=5)).all()


def test_a_balanced_plan_is_not_a_balanced_choice():
    """Columns are exact in both; what is left after taking two of each row is what counts."""
    z = skewed()

    def of(scores):
        return max_vio(torch.bincount(scores.topk(2).indices.flatten(), minlength=16))

    raw, linear = of(z), of(transport_plan(z, xi=0.5, iters=20))
    blurred = of(transport_plan(z.softmax(-1), xi=0.5, iters=100))
    assert linear < 0.25 < blurred < raw


def test_padding_plays_no_part():
    z = skewed(80, 4)
    valid = torch.arange(80) % 5 != 0
    z_padded = z.masked_fill(~valid[:, None], 30.0)
    plan = transport_plan(z_padded, xi=0.5, iters=50, valid_T=valid)
    torch.testing.assert_close(plan[valid], transport_plan(z[valid], xi=0.5, iters=50))
    probs = SelectiveSinkhorn(p=1.0)(z_padded, context(z, valid_T=valid))
    assert torch.isfinite(probs).all()
    assert transport_plan(z, xi=0.5, iters=5, valid_T=torch.zeros(80, dtype=torch.bool)).shape == (80, 4)


def test_closed_experts_get_nothing_and_the_others_share_evenly():
    z = skewed(60, 6)
    z[:, 4:] = -torch.inf
    for cost in ("linear", "softmax"):
        plan = SelectiveSinkhorn(p=1.0, cost=cost, xi=0.2, iters=100)(z, context(z))
        assert plan[:, 4:].abs().max() == 0
        torch.testing.assert_close(plan[:, :4].sum(0), torch.full((4,), 15.0), rtol=1e-3, atol=0)


def test_it_is_softmax_in_evaluation_and_on_steps_that_were_not_drawn():
    z = skewed(32, 4)
    always, never, some = SelectiveSinkhorn(p=1.0), SelectiveSinkhorn(p=0.0), SelectiveSinkhorn(p=0.3)
    assert torch.equal(always(z, context(z, training=False)), z.softmax(-1))
    assert torch.equal(never(z, context(z)), z.softmax(-1))
    for step in range(20):
        plain = torch.equal(some(z, context(z, step=step, layer=2)), z.softmax(-1))
        assert plain != some.draws(step, 2)


def test_the_coin_is_fair_repeats_and_differs_between_layers_and_seeds():
    drawn = np.array([[SelectiveSinkhorn(p=0.2).draws(step, layer) for step in range(1000)] for layer in range(2)])
    assert abs(drawn.mean() - 0.2) < 0.03  # 3 standard deviations
    assert (drawn[0] != drawn[1]).any()
    assert [SelectiveSinkhorn(p=0.2).draws(step, 0) for step in range(50)] == drawn[0, :50].tolist()
    assert [SelectiveSinkhorn(p=0.2, seed=1).draws(step, 0) for step in range(50)] != drawn[0, :50].tolist()


@pytest.mark.parametrize("grad", ["detach", "plan"])
def test_whether_the_router_learns_on_such_a_step_is_a_choice(grad):
    with seeded(0):
        layer = MoE(8, 8, 4, norm=SelectiveSinkhorn(p=1.0, grad=grad))
        x_TD = torch.randn(32, 8)
    layer(x_TD).square().sum().backward()
    gradient = layer.router.scorer.weight.grad
    assert (gradient is None) == (grad == "detach")
    assert layer.pool.w1_EGD.grad.abs().sum() > 0
    if grad == "plan":
        assert gradient.abs().sum() > 0


def test_the_gradient_of_a_plan_is_that_of_a_softmax_at_its_prices():
    z = skewed(12, 3).requires_grad_()
    weight = torch.randn(12, 3, generator=torch.Generator().manual_seed(1))
    plan = transport_plan(z, xi=0.5, iters=50)
    (got,) = torch.autograd.grad((plan * weight).sum(), z)
    expected = plan * (weight - (plan * weight).sum(1, keepdim=True)) / 0.5
    torch.testing.assert_close(got, expected.detach())


def test_a_layer_routes_by_it_and_moves_on():
    with seeded(0):
        layer = MoE(8, 8, 8, norm=SelectiveSinkhorn(p=0.5), mods=(CandidateMask((0, 6), 10**6, 10**6 + 1),))
        x_BLD = torch.randn(8, 32, 8) + 2.0 * torch.randn(8)
    drawn, plain = [], []
    for step in range(12):
        layer(x_BLD)
        (drawn if SelectiveSinkhorn(p=0.5).draws(step, 0) else plain).append(max_vio(layer.routing.count_E[:6]))
        assert layer.routing.count_E[6:].sum() == 0
        end_step(layer)
    assert drawn
    assert plain
    assert max(drawn) < min(plain)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"p": 1.5}, ConfigError), ({"xi": 0.0}, ConfigError), ({"iters": 0}, ConfigError), ({"seed": -1}, ConfigError),
        ({"noise": -1.0}, ConfigError),
        ({"cost": "cubic"}, UnknownNameError), ({"grad": "some"}, UnknownNameError),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_told_when_the_layer_is_built(options, error):
    with pytest.raises(error, match=next(iter(options))):
        MoE(4, 4, 4, norm=SelectiveSinkhorn(**options))
