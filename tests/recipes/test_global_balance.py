"""A layer balanced over the step: what the loss asks of single-domain sequences, and over micro-batches."""

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'polyroute[nn]'")

import torch

from polyroute.errors import UnknownNameError
from polyroute.nn.losses import ZLoss
from polyroute.nn.moe import aux_losses, end_step
from polyroute.nn.testbed import seeded
from polyroute.recipes.global_balance import global_balance

pytestmark = pytest.mark.torch


def sharp(scope, coef=1.0):
    """A layer that sends a token of domain d to experts 2 d and 2 d + 1, nearly certainly."""
    layer = global_balance(4, 4, 8, coef=coef, scope=scope)
    with torch.no_grad():
        layer.router.scorer.weight.copy_(20.0 * torch.eye(4).repeat_interleave(2, dim=0))
    return layer


@pytest.mark.parametrize(("scope", "expected"), [("sequence", 4.0), ("global", 1.0), ("micro", 1.0)])
def test_experts_of_one_domain_cost_the_number_of_domains_by_sequence_and_nothing_extra_by_batch(scope, expected):
    x_BLD = torch.eye(4)[:, None].expand(4, 8, 4)  # one domain a sequence
    layer = sharp(scope)
    layer(x_BLD)
    assert float(aux_losses(layer)["load_balance"].detach()) == pytest.approx(expected, rel=1e-3)


def test_over_micro_batches_only_the_global_count_comes_to_balance():
    """The last of four micro-batches of one sequence each sees the whole step; the next step starts again."""
    last = {}
    for scope in ("global", "micro"):
        layer = sharp(scope)
        for domain in range(4):
            layer(torch.eye(4)[domain].expand(1, 8, 4))
            last[scope] = float(aux_losses(layer)["load_balance"].detach())
        end_step(layer)
        layer(torch.eye(4)[0].expand(1, 8, 4))
        assert float(aux_losses(layer)["load_balance"].detach()) == pytest.approx(4.0, rel=1e-3)
    assert last == pytest.approx({"global": 1.0, "micro": 4.0}, rel=1e-3)


def test_its_gradient_is_the_counts_times_the_mean_scores():
    with seeded(0):
        layer = global_balance(4, 4, 8, coef=0.5)
        x_BLD = torch.randn(3, 5, 4)
    layer(x_BLD)
    (got,) = torch.autograd.grad(aux_losses(layer)["load_balance"], layer.router.scorer.weight)
    routing = layer.routing
    loss = 0.5 * 8 * (routing.count_E / routing.count_E.sum() * routing.probs_TE.mean(0)).sum()
    layer(x_BLD)
    (expected,) = torch.autograd.grad(
        0.5 * 8 * (routing.count_E / routing.count_E.sum() * layer.routing.probs_TE.mean(0)).sum(),
        layer.router.scorer.weight,
    )
    assert float(loss.detach()) > 0.5
    torch.testing.assert_close(got, expected)


def test_further_objectives_and_parts_are_kept():
    layer = global_balance(4, 4, 8, k=3, aux=(ZLoss(),), act="identity")
    layer(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))
    assert set(aux_losses(layer)) == {"load_balance", "z"}
    assert layer.routing.K == 3


def test_an_unknown_scope_is_told():
    with pytest.raises(UnknownNameError, match="scope"):
        global_balance(4, 4, 8, scope="world")
