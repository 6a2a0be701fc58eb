"""Objectives that tie routers to experts, teachers and their own past."""

from __future__ import annotations

import copy
import math

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'polyroute[nn]'")

import torch
import torch.nn.functional as F

from polyroute.errors import ConfigError, ShapeError, UnknownNameError
from polyroute.nn import coupling as module
from polyroute.nn.atoms import AtomBank
from polyroute.nn.coupling import ERC, PA, InfoNCE, coupling, coupling_loss, nearest_experts, shaken, tightest_alpha
from polyroute.nn.experts import FeedForward
from polyroute.nn.gates import Hard, Raw
from polyroute.nn.inputs import Pooled, Recurrent
from polyroute.nn.moe import MoE, aux_losses, end_step
from polyroute.nn.normalise import ProductLogSoftmax
from polyroute.nn.routing import TokenContext
from polyroute.nn.scorers import MLP, ProductKeys
from polyroute.nn.selection import ProductTopK, TopK, TopP

pytestmark = pytest.mark.torch


def layer_of(*aux, dim=8, width=6, num_experts=4, **options):
    torch.manual_seed(0)
    return MoE(dim, width, num_experts, aux=aux, **options)


def coupling_by_hand(rows, gates):
    """M entry by entry."""
    return torch.stack([torch.stack([(gate @ row).norm() for gate in gates]) for row in rows])


@pytest.mark.parametrize("act", ["swiglu", "relu"])
def test_coupling_is_the_norm_of_each_gate_projection_of_each_row(act):
    layer = layer_of(ERC(alpha=0.7, coef=3.0), act=act).eval()
    layer(torch.randn(5, 8))
    rows, w1 = layer.router.scorer.weight.detach(), layer.pool.w1_EGD.detach()
    gates = w1[:, :6] if act == "swiglu" else w1
    m = coupling_by_hand(rows, gates)
    torch.testing.assert_close(coupling(rows, gates), m)
    total = 0.0
    for i in range(4):
        for j in range(4):
            if i != j:
                total += max(m[i, j] - 0.7 * m[i, i], 0) + max(m[j, i] - 0.7 * m[i, i], 0)
    assert aux_losses(layer)["erc"].item() == pytest.approx(3.0 * float(total) / 16, rel=1e-5)


def test_coupled_rows_cost_nothing_and_the_tightest_alpha_says_so():
    m = torch.tensor([[4.0, 1.0, 2.0], [1.0, 5.0, 0.5], [1.0, 3.0, 6.0]])
    assert tightest_alpha(m) == pytest.approx(3 / 5)
    assert coupling_loss(m, 1.0).item() == 0
    assert coupling_loss(m, 0.61).item() == 0
    assert coupling_loss(m, 0.59).item() == pytest.approx((3 - 0.59 * 5) / 9, rel=1e-4)


def test_gradient_flows_into_rows_and_gates_and_lowers_the_loss():
    layer = layer_of(ERC(alpha=0.8), num_experts=6)
    layer(torch.randn(3, 8))
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.03)
    first = None
    for _ in range(80):
        loss = aux_losses(layer)["erc"]
        first = first or loss.item()
        optimizer.zero_grad()
        loss.backward()
        assert (layer.router.scorer.weight.grad.abs().sum(-1) > 0).any() or loss.item() == 0
        optimizer.step()
    assert layer.pool.w1_EGD.grad[:, 6:].abs().sum() == 0, "the up projection takes no part"
    assert first > 0.1
    assert loss.item() < 0.05 * first


def test_shaken_rows_stay_nearest_to_themselves_and_pass_gradients():
    torch.manual_seed(0)
    rows = torch.randn(12, 16, requires_grad=True)
    for _ in range(20):
        assert torch.equal(torch.cdist(shaken(rows), rows).argmin(-1), torch.arange(12))
    assert not torch.equal(shaken(rows), rows)
    shaken(rows).sum().backward()
    assert (rows.grad > 0).all()
    layer = layer_of(ERC())
    layer(torch.randn(3, 8))
    assert aux_losses(layer)["erc"] != aux_losses(layer)["erc"]
    layer.eval()
    assert aux_losses(layer)["erc"] == aux_losses(layer)["erc"]


def test_coupling_in_chunks_is_the_same(monkeypatch):
    torch.manual_seed(0)
    rows, gates = torch.randn(7, 5, requires_grad=True), torch.randn(7, 3, 5, requires_grad=True)
    whole = coupling(rows, gates)
    grads = torch.autograd.grad(whole.square().mean(), (rows, gates))
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 2 * 7 * 3)
    parts = coupling(rows, gates)
    torch.testing.assert_close(parts, whole)
    for got, expected in zip(torch.autograd.grad(parts.square().mean(), (rows, gates)), grads, strict=True):
        torch.testing.assert_close(got, expected)


def test_one_expert_is_always_coupled():
    layer = layer_of(ERC(), num_experts=1, select=TopK(1), gate=Raw())
    layer(torch.randn(3, 8))
    loss = aux_losses(layer)["erc"]
    loss.backward()
    assert loss.item() == 0
    assert tightest_alpha(torch.ones(1, 1)) == 0


def test_a_scorer_that_does_not_read_the_hidden_state_is_refused_when_built():
    with pytest.raises(ConfigError, match="scorer=Linear"):
        layer_of(ERC(), scorer=MLP(hidden=5))
    with pytest.raises(ConfigError, match="alpha"):
        layer_of(ERC(alpha=0))
    with pytest.raises(ConfigError, match="TopK"):
        layer_of(PA(), select=TopP(0.5))
    with pytest.raises(UnknownNameError, match="soft"):
        layer_of(PA(target="sft"))
    with pytest.raises(ConfigError, match="Recurrent"):
        layer_of(InfoNCE(), inp=Recurrent(torch.nn.GRUCell(4, 4)))
    with pytest.raises(ConfigError, match="ema"):
        layer_of(InfoNCE(ema=0))


def nearest_by_hand(x, layer, teacher, k):
    """For each token the k experts whose output is nearest to its share of the teacher's."""
    chosen = torch.zeros(len(x), layer.pool.num_experts)
    for t in range(len(x)):
        goal = teacher(x[t : t + 1])[0] * k / layer.pool.num_experts
        distance = []
        for e in range(layer.pool.num_experts):
            h = layer.pool.w1_EGD[e] @ x[t]
            y = (F.silu(h[:6]) * h[6:]) @ layer.pool.w2_EFO[e]
            distance.append(float((y - goal).detach().square().mean()))
        for e in sorted(range(len(distance)), key=distance.__getitem__)[:k]:
            chosen[t, e] = 1
    return chosen


@pytest.mark.parametrize("target", ["soft", "share"])
def test_prior_approximation_is_its_definition(target):
    teacher = FeedForward(8, 24)
    layer = layer_of(PA(1.0, teacher=teacher, target=target))
    x = torch.randn(10, 8)
    valid = torch.arange(10) < 8
    layer(x, context=TokenContext(x, (1, 10), valid_T=valid))
    near = nearest_by_hand(x, layer, teacher, 2)
    assert torch.equal(nearest_experts(x, layer, teacher, 2), near)
    log_p = layer.routing.logits_TE.log_softmax(-1)
    if target == "soft":
        y = near.softmax(-1)
        assert sorted(set(y.flatten().mul(1000).round().tolist())) == [134.0, 366.0]
        expected = (log_p.exp() * (log_p - y.log())).sum(-1)
    else:
        expected = F.kl_div(log_p, near / 2, reduction="none").sum(-1)
    loss = aux_losses(layer)["pa"]
    assert loss.item() == pytest.approx(expected[valid].mean().item(), rel=1e-5)
    loss.backward()
    assert layer.router.scorer.weight.grad.abs().sum() > 0
    assert layer.pool.w1_EGD.grad is None, "the target is fixed"
    assert teacher.w1.weight.grad is None
    assert not [name for name in layer.state_dict() if "teacher" in name]
    assert len(list(layer.parameters())) == 3


def test_the_teachers_own_input_is_read_where_it_is_given():
    teacher = FeedForward(8, 24)
    layer = layer_of(PA(1.0, teacher=teacher))
    x, other = torch.randn(6, 8, requires_grad=True), torch.randn(6, 8)
    layer(x, context=TokenContext(x, (1, 6), extras={"teacher_TD": other}))
    log_p = layer.router.scorer(other).log_softmax(-1)
    y = nearest_experts(other, layer, teacher, 2).softmax(-1)
    loss = aux_losses(layer)["pa"]
    assert loss.item() == pytest.approx((log_p.exp() * (log_p - y.log())).sum(-1).mean().item(), rel=1e-5)
    loss.backward()
    assert x.grad is None


def test_without_a_teacher_the_sum_of_the_experts_is_it():
    layer = layer_of(PA(1.0))
    x = torch.randn(6, 8)
    layer(x)
    whole = layer_of(select=TopK(4), gate=Hard(1.0))
    near = nearest_by_hand(x, layer, lambda t: whole(t), 2)
    assert torch.equal(nearest_experts(x, layer, None, 2), near)


def test_contrast_is_its_definition():
    layer = layer_of(InfoNCE(1.0, scale=2.0), num_experts=5)
    x = torch.randn(6, 4, 8)
    valid = torch.ones(24, dtype=torch.bool)
    valid[2:4] = valid[21:] = False
    layer(x, context=TokenContext(x.reshape(24, 8), (6, 4), valid_T=valid))
    probs = layer.routing.probs_TE.reshape(6, 4, 5)
    real = valid.reshape(6, 4, 1)
    q = (probs * real).sum(1) / real.sum(1)
    logits = 2 * q @ q.T.detach()
    a_to_b, b_to_a = logits[:3, 3:], logits[3:, :3]
    expected = 0.5 * (F.cross_entropy(a_to_b, torch.arange(3)) + F.cross_entropy(b_to_a, torch.arange(3)))
    loss = aux_losses(layer)["info_nce"]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    row, matrix = torch.autograd.grad(loss, (layer.router.scorer.weight, layer.aux[0].weight), retain_graph=True)
    torch.testing.assert_close(row, torch.autograd.grad(expected, layer.router.scorer.weight)[0])
    assert matrix.abs().sum() > 0


def test_the_slow_copy_moves_by_its_share_each_step_and_is_saved():
    layer = layer_of(InfoNCE(ema=0.25))
    slow = layer.aux[0].key_scorer.weight.clone()
    assert torch.equal(slow, layer.router.scorer.weight)
    assert not layer.aux[0].key_scorer.weight.requires_grad
    with torch.no_grad():
        layer.router.scorer.weight += 1.0
    end_step(layer)
    torch.testing.assert_close(layer.aux[0].key_scorer.weight, slow + 0.25)
    end_step(layer)
    torch.testing.assert_close(layer.aux[0].key_scorer.weight, slow + 0.25 + 0.25 * 0.75)
    other = layer_of(InfoNCE(ema=0.25))
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(other.aux[0].key_scorer.weight, layer.aux[0].key_scorer.weight)
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        twin.router.scorer.weight += 1.0
    twin.aux[0].end_step()
    assert not torch.equal(twin.aux[0].key_scorer.weight, layer.aux[0].key_scorer.weight)


def test_a_layer_is_copied_after_a_forward_pass():
    layer = layer_of(InfoNCE(1.0), PA(1.0), ERC())
    x = torch.randn(4, 3, 8, requires_grad=True)
    layer(2 * x)
    twin = copy.deepcopy(layer).eval()
    assert twin.routing is None
    assert layer.routing is not None
    assert torch.equal(twin(x), layer.eval()(x))
    first, second = aux_losses(twin), aux_losses(layer)
    assert {name: loss.item() for name, loss in first.items()} == {name: loss.item() for name, loss in second.items()}


def test_contrast_pairs_what_belongs_together():
    """Sequences of 4 tasks: after training, each one's partner has the nearest route."""
    layer = layer_of(InfoNCE(1.0, ema=0.1), inp=Pooled(), num_experts=4, dim=8)
    centre = torch.randn(4, 1, 8)
    optimizer = torch.optim.Adam((*layer.router.parameters(), layer.aux[0].weight), lr=0.05)
    for _ in range(120):
        layer(torch.cat([centre, centre]) + 0.3 * torch.randn(8, 6, 8))
        loss = aux_losses(layer)["info_nce"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        end_step(layer)
    assert loss.item() < 0.3 * math.log(4)
    routes = layer.routing.probs_TE.detach().reshape(8, 6, 4).mean(1)
    assert torch.cdist(routes[:4], routes[4:]).argmin(-1).tolist() == [0, 1, 2, 3]


def test_odd_batches_are_refused_and_empty_ones_cost_nothing():
    layer = layer_of(InfoNCE(1.0))
    layer(torch.randn(3, 4, 8))
    with pytest.raises(ShapeError, match="even B"):
        aux_losses(layer)
    x = torch.randn(4, 2, 8)
    layer(x, context=TokenContext(x.reshape(8, 8), (4, 2), valid_T=torch.zeros(8, dtype=torch.bool)))
    loss = aux_losses(layer)["info_nce"]
    loss.backward()
    assert loss.item() == 0


def test_each_layer_keeps_its_own_input_though_the_context_is_shared():
    torch.manual_seed(0)
    first, second = MoE(8, 6, 4, aux=(InfoNCE(1.0), PA(1.0))), MoE(8, 6, 4)
    x, y = torch.randn(4, 3, 8), torch.randn(4, 3, 8)
    first(x)
    alone = {name: loss.item() for name, loss in aux_losses(first).items()}
    context = TokenContext(x.reshape(12, 8), (4, 3))
    first(x, context=context)
    second(y, context=context)
    assert {name: loss.item() for name, loss in aux_losses(first).items()} == alone


def test_parts_that_an_objective_cannot_read_are_named_when_the_layer_is_built():
    keys = {"scorer": ProductKeys(2, 2), "norm": ProductLogSoftmax(), "select": ProductTopK(2)}
    with pytest.raises(ConfigError, match="scorer: expected one logit for each expert, for InfoNCE"):
        MoE(8, 4, 4, aux=(InfoNCE(),), **keys)
    with pytest.raises(ConfigError, match=r"pool: expected Experts.*got 'AtomBank'"):
        MoE(8, 1, 4, aux=(PA(),), pool=AtomBank(8, 4))
