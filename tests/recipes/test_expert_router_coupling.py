"""A layer whose rows are tied to its experts: the loss falls to 0, and what agreement counts."""

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'polyroute[nn]'")

import torch

from polyroute.errors import ConfigError
from polyroute.nn.coupling import coupling, rows_and_gates, tightest_alpha
from polyroute.nn.moe import aux_losses
from polyroute.nn.scorers import MLP
from polyroute.nn.testbed import seeded
from polyroute.recipes.expert_router_coupling import agreement, excitement, expert_router_coupling, standing

pytestmark = pytest.mark.torch


def test_rows_that_excite_their_own_expert_agree_and_shifted_ones_do_not():
    layer = expert_router_coupling(4, 2, 4)
    with torch.no_grad():
        layer.router.scorer.weight.copy_(torch.eye(4))
        layer.pool.w1_EGD.zero_()
        layer.pool.w1_EGD[torch.arange(4), 0, torch.arange(4)] = 3.0  # the gate half: expert e looks at feature e
    x_TD = torch.eye(4).repeat(5, 1) + 0.01
    assert excitement(layer, x_TD).argmax(-1).tolist() == [0, 1, 2, 3] * 5
    torch.testing.assert_close(excitement(layer, x_TD)[0], torch.tensor([3.03, 0.03, 0.03, 0.03]))
    assert agreement(layer, x_TD) == standing(layer, x_TD) == 1.0
    with torch.no_grad():
        layer.router.scorer.weight.copy_(torch.eye(4).roll(1, 0))
    assert agreement(layer, x_TD) == 0.0
    assert standing(layer, x_TD) == 0.0


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_its_loss_alone_brings_the_layer_to_its_alpha(alpha):
    with seeded(0):
        layer = expert_router_coupling(16, 8, 8, alpha=alpha, balance=0.0)
        x_TD = torch.randn(4, 16)
        optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
        first = tightest_alpha(coupling(*rows_and_gates(layer)))
        for _ in range(150):
            layer(x_TD)
            optimizer.zero_grad()
            aux_losses(layer)["erc"].backward()
            optimizer.step()
    assert tightest_alpha(coupling(*rows_and_gates(layer))) < alpha * 1.02 < first


def test_both_objectives_are_there_and_routing_uses_the_clean_rows():
    with seeded(0):
        layer = expert_router_coupling(8, 4, 6, coef=0.5, balance=0.02)
        x_TD = torch.randn(12, 8)
    layer(x_TD)
    assert set(aux_losses(layer)) == {"erc", "load_balance"}
    torch.testing.assert_close(layer.routing.logits_TE, x_TD @ layer.router.scorer.weight.T)


def test_a_scorer_without_rows_is_told():
    with pytest.raises(ConfigError, match="erc"):
        expert_router_coupling(8, 4, 6, scorer=MLP(hidden=3))
