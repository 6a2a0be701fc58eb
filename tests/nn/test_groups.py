"""A group computes what its layers did until its pool opens; then each may use the experts of all."""

from __future__ import annotations

import copy
import itertools

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'polyroute[nn]'")

import torch
from torch import nn

from polyroute.errors import ConfigError
from polyroute.nn.experts import Experts
from polyroute.nn.groups import pool_counts, share_experts, share_in_groups
from polyroute.nn.inputs import Recurrent
from polyroute.nn.losses import LBL
from polyroute.nn.moe import MoE, aux_losses, end_step, layers
from polyroute.nn.normalise import ReLURMS
from polyroute.nn.scorers import MLP, Linear
from polyroute.nn.selection import Positive, TopK
from polyroute.nn.testbed import seeded

pytestmark = pytest.mark.torch


def group(num=2, seed=0, **options):
    with seeded(seed):
        return [MoE(8, 6, 4, **{"select": TopK(2), "aux": [LBL(0.01)], **options}) for _ in range(num)]


def tokens(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("options", [{}, {"scorer": Linear(bias=True)}, {"shared": 5}, {"act": "gelu"}])
def test_before_it_opens_each_layer_computes_what_it_did(options):
    local, x = group(3, **options), tokens(40, 8)
    shared = share_experts(local, start=1, end=3)
    for old, new in zip(local, shared, strict=True):
        assert torch.allclose(new(x), old(x), atol=1e-6)
        first = shared.index(new) * 4
        assert torch.equal(new.routing.exp_N - first, old.routing.exp_N)
        (a,), (b,) = aux_losses(old).values(), aux_losses(new).values()
        assert float(a.detach()) == pytest.approx(float(b.detach()), rel=1e-5), "balance among the open experts"


def test_training_before_it_opens_is_the_local_model_too():
    def step(model, optimizer, x):
        y = x
        for moe in model:
            y = y + moe(y)
        (y.square().mean() + sum(aux_losses(model).values())).backward()
        optimizer.step()
        optimizer.zero_grad()
        end_step(model)
        return y

    local = nn.ModuleList(group())
    shared = nn.ModuleList(share_experts(list(local), start=4, end=4))
    optimizers = [torch.optim.Adam(model.parameters(), lr=0.01) for model in (local, shared)]
    for i in range(6):
        x = tokens(30, 8, seed=i)
        a, b = (step(model, opt, x) for model, opt in zip((local, shared), optimizers, strict=True))
        if i < 5:
            assert torch.allclose(a, b, atol=1e-5), i
    assert not torch.allclose(a, b, atol=1e-3), "everything is open after step 4"


def test_experts_open_one_after_the_other_and_none_closes():
    (first, second) = share_experts(group(), start=2, end=6)
    seen, x = [], tokens(400, 8)
    for _ in range(8):
        first(x), second(x)
        seen.append((first.routing.open_E, second.routing.open_E))
        for moe in (first, second):
            assert not moe.routing.mask_TE()[:, ~moe.routing.open_E].any()
        end_step(nn.ModuleList([first, second]))
    assert [int(a.sum()) for a, _ in seen] == [4, 4, 4, 5, 6, 7, 8, 8]
    assert all((a <= b).all() for (a, _), (b, _) in itertools.pairwise(seen))
    assert seen[0][0].tolist() == [True] * 4 + [False] * 4
    assert seen[0][1].tolist() == [False] * 4 + [True] * 4
    assert first.routing.mask_TE()[:, 4:].any(), "it uses the other's experts"


def test_no_schedule_opens_all_at_once():
    new = share_experts(group(), start=None)[0]
    new(tokens(200, 8))
    assert new.routing.open_E is None
    assert new.routing.mask_TE()[:, 4:].any()


def test_experts_exist_once_and_the_old_layers_stay_as_they_are():
    local = group(2)
    before = copy.deepcopy([moe.state_dict() for moe in local])
    shared = nn.ModuleList(share_experts(local))
    assert shared[0].pool is shared[1].pool
    assert torch.equal(shared[0].pool.w1_EGD[4:], local[1].pool.w1_EGD)
    experts = sum(p.numel() for moe in local for p in moe.pool.parameters())
    assert sum(p.numel() for p in shared.parameters()) == experts + 2 * 8 * 8
    with torch.no_grad():
        shared[0].pool.w1_EGD.zero_()
    assert all(torch.equal(a[k], b.state_dict()[k]) for a, b in zip(before, local, strict=True) for k in a if "w1" in k)


def test_the_same_seed_draws_the_same_rows_and_leaves_torchs_generator_alone():
    local = group()
    state = torch.random.get_rng_state()
    a, b, c = (share_experts(local, seed=seed)[0].router.scorer.weight for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_a_model_is_changed_in_place_and_physical_load_adds_up_over_layers():
    model = nn.Sequential(*group(4))
    expected = model(tokens(20, 8))
    assert share_in_groups(model, 2, start=1, end=1) is model
    assert torch.allclose(model(tokens(20, 8)), expected, atol=1e-5)
    found = list(layers(model).values())
    assert [moe.pool is found[0].pool for moe in found] == [True, True, False, False]
    counts = pool_counts(model)
    assert len(counts) == 2
    assert torch.equal(counts[1], found[2].routing.count_E + found[3].routing.count_E)
    assert int(counts[0].sum()) == 2 * 20 * 2


def test_a_state_over_depth_is_kept():
    cell = nn.GRUCell(5, 5)
    local = group(inp=Recurrent(cell))
    new = share_experts(local, start=1, end=1)[1]
    assert torch.equal(new.router.inp.project.weight, local[1].router.inp.project.weight)
    assert new.router.inp.cell is cell


def test_layers_that_do_not_fit_are_told():
    with pytest.raises(ConfigError, match="group: expected layers of one size"):
        share_experts([*group(1), MoE(8, 5, 4)])
    with pytest.raises(ConfigError, match="a row for each expert"):
        share_experts(group(scorer=MLP()))
    with pytest.raises(ConfigError, match="norm: expected none that depends on E"):
        share_experts(group(norm=ReLURMS(), select=Positive()))
    with pytest.raises(ConfigError, match="a pool of its own for each"):
        share_experts(group(pool=Experts(8, 6, 4)))
    with pytest.raises(ConfigError, match="model: expected a model with MoE layers, got 'Linear'"):
        share_in_groups(torch.nn.Linear(2, 2), 2)
    with pytest.raises(ConfigError, match="r: expected a divisor of 3"):
        share_in_groups(nn.Sequential(*group(3)), 2)
    with pytest.raises(ConfigError, match="no layer"):
        share_experts([])
