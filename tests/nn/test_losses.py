"""Auxiliary objectives: values known in closed form, gradients, padding, sequences, micro-batches and ranks."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'polyroute[nn]'")

import torch
from torch.utils.checkpoint import checkpoint

from polyroute.errors import ConfigError, UnknownNameError
from polyroute.nn.gates import Raw
from polyroute.nn.losses import LBL, Entropy, Importance, NoisyLoad, ZLoss, chance_of_choice, mean_shares
from polyroute.nn.metrics import Load
from polyroute.nn.moe import MoE, aux_losses, end_step
from polyroute.nn.normalise import CandidateMask, Noise, ProductLogSoftmax, Sigmoid
from polyroute.nn.routing import Routing, TokenContext, count_pairs
from polyroute.nn.scorers import ProductKeys
from polyroute.nn.selection import ProductTopK, TopK, TopP

pytestmark = pytest.mark.torch


class Training:
    """Stands where an objective asks only whether its layer trains."""

    training = True


def routing_of(logits, mask=None, *, k=2, shape=None, valid=None, open_experts=None):
    """A Routing of softmax scores; mask: who is used, else the k best."""
    num_tokens, num_experts = logits.shape
    probs = logits.softmax(-1)
    if mask is None:
        mask = torch.zeros_like(probs, dtype=torch.bool).scatter_(1, probs.topk(k).indices, True)
    if valid is not None:
        mask = mask & valid[:, None]
    tok, exp = mask.nonzero(as_tuple=True)
    return Routing(
        tok_N=tok,
        exp_N=exp,
        gate_N=probs[tok, exp],
        K=None,
        num_tokens=num_tokens,
        num_experts=num_experts,
        logits_TE=logits,
        probs_TE=probs,
        count_E=count_pairs(exp, num_experts),
        shape=shape or (1, num_tokens),
        valid_T=valid,
        open_E=open_experts,
    )


def random_routing(seed=0, num_tokens=24, num_experts=8, **options):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_tokens, num_experts, generator=generator).requires_grad_()
    return routing_of(logits, **options)


def value(config, routing, layer=None):
    return config.build(4, routing.num_experts)(routing, layer or Training())


def by_hand(routing):
    """Load balance by its definition, pair by pair."""
    probs = routing.probs_TE.detach()
    probs = probs if routing.valid_T is None else probs[routing.valid_T]
    total = 0.0
    for e in range(routing.num_experts):
        share = sum(int(x) == e for x in routing.exp_N) / len(routing.exp_N)
        total += share * float(probs[:, e].mean())
    return routing.num_experts * total


@pytest.mark.parametrize("scope", ["micro", "sequence", "group", "global"])
def test_load_balance_is_one_where_counts_or_probabilities_are_uniform(scope):
    even = torch.eye(8, dtype=torch.bool).repeat(3, 1)
    assert value(LBL(scope=scope), routing_of(torch.randn(24, 8), even, shape=(3, 8))).item() == pytest.approx(1)
    generator = torch.Generator().manual_seed(1)
    ragged = torch.rand(24, 8, generator=generator) < 0.4
    assert value(LBL(scope=scope), routing_of(torch.zeros(24, 8), ragged, shape=(3, 8))).item() == pytest.approx(1)


def test_load_balance_is_the_number_of_experts_at_collapse():
    logits = torch.full((24, 8), -40.0)
    logits[:, 3] = 0
    assert value(LBL(), routing_of(logits, k=1)).item() == pytest.approx(8)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_load_balance_equals_its_definition(seed):
    valid = torch.arange(24) % 5 != 0
    for options in ({}, {"valid": valid}):
        routing = random_routing(seed, **options)
        assert value(LBL(), routing).item() == pytest.approx(by_hand(routing), rel=1e-5)


def disjoint_domains():
    """4 sequences of one domain each; domain d uses experts 2 d and 2 d + 1 alone."""
    logits = torch.full((4, 16, 8), -40.0)
    for d in range(4):
        logits[d, :, 2 * d : 2 * d + 2] = 0
    return routing_of(logits.reshape(64, 8), k=2, shape=(4, 16))


def test_domains_with_experts_of_their_own_are_balanced_only_globally():
    routing = disjoint_domains()
    assert value(LBL(scope="sequence"), routing).item() == pytest.approx(4)
    assert value(LBL(scope="global"), routing).item() == pytest.approx(1)


def test_sequences_are_averaged_and_those_of_padding_alone_left_out():
    valid = torch.ones(24, dtype=torch.bool)
    valid[6:8] = valid[16:] = False
    whole = random_routing(3, shape=(3, 8), valid=valid)
    parts = []
    for s in (slice(0, 8), slice(8, 16)):
        parts.append(by_hand(routing_of(whole.logits_TE[s].detach(), whole.mask_TE()[s], valid=valid[s])))
    assert value(LBL(scope="sequence"), whole).item() == pytest.approx(sum(parts) / 2, rel=1e-5)


def test_global_counts_add_up_over_micro_batches_until_the_step_ends():
    objective = LBL(scope="global").build(4, 8)
    micro = [random_routing(seed) for seed in range(3)]
    for i, routing in enumerate(micro):
        counts = sum(r.count_E for r in micro[: i + 1])
        expected = 8 * (counts / counts.sum() * routing.probs_TE.mean(0)).sum()
        assert objective(routing, Training()).item() == pytest.approx(expected.item(), rel=1e-5)
        again = objective(routing, Training()).item()
        assert again == pytest.approx(expected.item(), rel=1e-5), "asking twice must not count twice"
    objective.end_step()
    assert objective(micro[0], Training()).item() == pytest.approx(by_hand(micro[0]), rel=1e-5)
    assert "count_E" not in objective.state_dict()


def test_evaluation_leaves_the_counts_of_the_step_alone():
    layer = MoE(8, 8, 4, aux=(LBL(scope="global"),))
    layer(torch.randn(12, 8))
    aux_losses(layer)
    before = layer.aux[0].count_E.clone()
    layer.eval()
    layer(torch.randn(30, 8))
    aux_losses(layer)
    assert torch.equal(layer.aux[0].count_E, before)
    end_step(layer)
    assert layer.aux[0].count_E.sum() == 0


def test_recomputed_passes_count_once():
    """Under activation checkpointing the layer runs twice; losses, counts and gradients are those of one pass."""
    torch.manual_seed(0)
    layer, x = MoE(8, 8, 4, aux=(LBL(1.0, "global"), ZLoss(1.0)), taps=(Load(),)), torch.randn(12, 8)
    found = []
    for run in (layer, lambda x: checkpoint(layer, x, use_reentrant=False)):
        layer.zero_grad()
        layer.taps[0].reset()
        (run(x).square().mean() + sum(aux_losses(layer).values())).backward()
        found.append([p.grad.clone() for p in layer.parameters()])
        assert layer.aux[0].count_E.sum() == layer.taps[0].result()["count_E"].sum() == 24
        end_step(layer)
    for plain, recomputed in zip(*found, strict=True):
        torch.testing.assert_close(plain, recomputed)


RANK = """
import sys, torch
from polyroute.nn.losses import LBL
from polyroute.nn.moe import MoE, aux_losses
rank = int(sys.argv[1])
torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
torch.manual_seed(0)
layer = MoE(8, 8, 4, aux=(LBL(1.0, "global"),))
counts, losses = torch.zeros(4, dtype=torch.int64), []
for micro_batch in range(2):
    batches = torch.randn(2, 10, 8)
    for other in range(2):
        layer(batches[other])
        counts += layer.routing.count_E
    layer(batches[rank])
    expected = 4 * (counts / counts.sum() * layer.routing.probs_TE.mean(0)).sum()
    torch.testing.assert_close(aux_losses(layer)["load_balance"], expected)
assert layer.aux[0].count_E.sum() == 2 * 2 * 10 * 2
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_ranks_count_together(tmp_path):
    command = [sys.executable, "-c", RANK]
    ranks = [subprocess.Popen([*command, str(rank), str(tmp_path / "store")]) for rank in range(2)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]


@pytest.mark.parametrize("scope", ["group", "global"])
def test_counts_of_other_ranks_are_added(scope, monkeypatch):
    mine, other = random_routing(0), random_routing(1)
    groups = []

    def all_reduce(count, group=None):
        groups.append(group)
        count += other.count_E

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    before = mine.count_E.clone()
    counts = mine.count_E + other.count_E
    expected = 8 * (counts / counts.sum() * mine.probs_TE.mean(0)).sum()
    got = value(LBL(scope=scope, group="ranks"), mine)
    assert got.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.equal(mine.count_E, before)
    assert groups == ["ranks"]
    value(LBL(scope="micro"), mine)
    assert len(groups) == 1


def test_only_open_experts_are_balanced():
    layer = MoE(8, 8, 8, mods=(CandidateMask(local=(2, 6), start=10, end=20),), aux=(LBL(1.0),))
    torch.nn.init.zeros_(layer.router.scorer.weight)
    layer(torch.randn(16, 8))
    assert layer.routing.open_E.sum() == 4
    assert aux_losses(layer)["load_balance"].item() == pytest.approx(1)


def test_z_loss_has_its_closed_form():
    logits = torch.zeros(6, 8)
    logits[0] = 1.0
    expected = (5 * math.log(8) ** 2 + (1 + math.log(8)) ** 2) / 6
    assert value(ZLoss(), routing_of(logits)).item() == pytest.approx(expected, rel=1e-6)


def test_entropy_has_its_closed_form():
    assert value(Entropy(), routing_of(torch.zeros(6, 8))).item() == pytest.approx(math.log(8), rel=1e-6)
    sharp = torch.full((6, 8), -torch.inf)
    sharp[:, 2] = 0
    sharp.requires_grad_()
    found = value(Entropy(), routing_of(sharp, k=1))
    found.backward()
    assert found.item() == 0
    assert torch.isfinite(sharp.grad).all()


def product_layer(aux):
    return MoE(
        8, 8, 12, scorer=ProductKeys(3, 4), norm=ProductLogSoftmax(), select=ProductTopK(2), aux=aux, executor="dense"
    )


def test_product_keys_count_both_axes():
    torch.manual_seed(0)
    layer = product_layer((LBL(1.0), LBL(1.0, "sequence"), ZLoss(1.0), Entropy(1.0)))
    x = torch.randn(3, 5, 8)
    valid = torch.arange(15) < 13
    layer(x, context=TokenContext(x.reshape(15, 8), (3, 5), valid_T=valid))
    row, column = (axis.softmax(-1)[valid] for axis in layer.routing.logits_TE)
    probs = (row[:, :, None] * column[:, None]).reshape(13, 12)
    found = aux_losses(layer)
    share = layer.routing.count_E / layer.routing.count_E.sum()
    assert found["load_balance"].item() == pytest.approx(12 * (share * probs.mean(0)).sum().item(), rel=1e-5)
    assert found["entropy"].item() == pytest.approx(-(probs * probs.log()).sum(-1).mean().item(), rel=1e-5)
    row, column = (axis[valid].logsumexp(-1).square().mean() for axis in layer.routing.logits_TE)
    assert found["z"].item() == pytest.approx((row + column).item(), rel=1e-5)
    assert found["load_balance.1"].item() > 0


def test_scores_that_do_not_sum_to_one_are_shares_first():
    layer = MoE(8, 8, 6, norm=Sigmoid(), aux=(LBL(1.0),))
    torch.nn.init.zeros_(layer.router.scorer.weight)
    layer(torch.randn(10, 8))
    assert aux_losses(layer)["load_balance"].item() == pytest.approx(1)


def test_importance_is_the_variation_of_the_sums_of_gates():
    routing = random_routing(0)
    sums = routing.gates_TE().sum(0)
    expected = sums.var(unbiased=False) / sums.mean() ** 2
    assert value(Importance(), routing).item() == pytest.approx(expected.item(), rel=1e-5)
    even = routing_of(torch.zeros(8, 8), torch.eye(8, dtype=torch.bool))
    assert value(Importance(), even).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("k", [1, 2, 5, 6])
def test_the_chance_of_a_choice_is_its_frequency_when_its_own_noise_is_drawn_again(k):
    generator = torch.Generator().manual_seed(k)
    num_experts, draws = 6, 40_000
    clean = torch.randn(1, num_experts, generator=generator)
    std = torch.rand(1, num_experts, generator=generator) + 0.5
    noisy = clean + std * torch.randn(1, num_experts, generator=generator)
    chance = chance_of_choice(clean, noisy, std, k)[0]
    for i in range(num_experts):
        drawn = noisy.repeat(draws, 1)
        drawn[:, i] = clean[0, i] + std[0, i] * torch.randn(draws, generator=generator)
        chosen = (drawn.topk(k).indices == i).any(-1).float().mean()
        assert chance[i].item() == pytest.approx(chosen.item(), abs=5 * 0.5 / math.sqrt(draws))


def test_the_expected_load_is_that_of_noisy_top_k():
    """Over many draws of all noise the mean chance is the mean count: the estimate is unbiased."""
    torch.manual_seed(0)
    clean = torch.tensor([[0.0, 0.5, 1.0, -1.0, 2.0]]).repeat(40_000, 1)
    std = torch.full_like(clean, 0.7)
    noisy = clean + std * torch.randn_like(clean)
    counts = torch.zeros_like(clean).scatter_(1, noisy.topk(2).indices, 1.0).mean(0)
    torch.testing.assert_close(chance_of_choice(clean, noisy, std, 2).mean(0), counts, atol=0.015, rtol=0)


def test_noisy_load_reads_the_noise_of_the_layer():
    torch.manual_seed(0)
    layer = MoE(8, 8, 4, mods=(Noise(learned=True),), aux=(NoisyLoad(1.0),))
    x = torch.randn(20, 8)
    valid = torch.arange(20) < 15
    layer(x, context=TokenContext(x, (1, 20), valid_T=valid))
    noise = layer.router.mods[0]
    load = chance_of_choice(noise.clean_TE, noise.noisy_TE, noise.std_TE, 2)[valid].sum(0)
    loss = aux_losses(layer)["noisy_load"]
    assert loss.item() == pytest.approx((load.var(unbiased=False) / load.mean() ** 2).item(), rel=1e-4)
    loss.backward()
    assert layer.router.scorer.weight.grad.abs().sum() > 0
    assert noise.weight.grad.abs().sum() > 0
    layer.eval()
    layer(torch.randn(6, 8))
    count = layer.routing.count_E.float()
    expected = count.var(unbiased=False) / count.mean() ** 2
    assert aux_losses(layer)["noisy_load"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_what_does_not_fit_is_named():
    with pytest.raises(UnknownNameError, match="global"):
        LBL(scope="globl").build(4, 4)
    layer = MoE(8, 8, 4, aux=(NoisyLoad(),))
    layer(torch.randn(4, 8))
    with pytest.raises(ConfigError, match="Noise"):
        aux_losses(layer)
    layer = MoE(8, 8, 4, select=TopP(0.5), mods=(Noise(),), aux=(NoisyLoad(),))
    layer(torch.randn(4, 8))
    with pytest.raises(ConfigError, match="TopK"):
        aux_losses(layer)


EVERY = [LBL(), LBL(scope="sequence"), LBL(scope="global"), ZLoss(), Entropy(), Importance()]


@pytest.mark.parametrize("config", EVERY, ids=repr)
def test_padding_changes_nothing_and_gets_no_gradient(config):
    valid = torch.ones(24, dtype=torch.bool)
    valid[5:8] = valid[13:16] = valid[22:] = False
    routing = random_routing(0, shape=(3, 8), valid=valid)
    other = routing.logits_TE.detach().clone()
    other[~valid] = 50.0
    other.requires_grad_()
    changed = routing_of(other, routing.mask_TE(), shape=(3, 8), valid=valid)
    first, second = value(config, routing), value(config, changed)
    assert first.item() == pytest.approx(second.item(), rel=1e-5)
    second.backward()
    assert (other.grad[~valid] == 0).all()
    assert other.grad[valid].abs().sum() > 0


@pytest.mark.parametrize("config", EVERY, ids=repr)
@pytest.mark.parametrize("num_tokens", [0, 6])
def test_an_empty_batch_costs_nothing_and_has_a_gradient(config, num_tokens):
    logits = torch.randn(num_tokens, 4).requires_grad_()
    shape = (2, num_tokens // 2)
    loss = value(config, routing_of(logits, shape=shape, valid=torch.zeros(num_tokens, dtype=torch.bool)))
    loss.backward()
    assert loss.item() == 0
    assert loss.dtype == torch.float32
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("config", EVERY, ids=repr)
def test_gradients_are_those_of_finite_differences(config):
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    mask = routing_of(logits).mask_TE()

    def loss(z):
        return value(config, routing_of(z, mask, shape=(2, 3)))

    loss(logits).backward()
    step, found = 1e-2, torch.zeros_like(logits)
    for i in range(logits.numel()):
        change = torch.zeros(logits.numel())
        change[i] = step
        change = change.reshape(logits.shape)
        base = logits.detach()
        found.view(-1)[i] = (loss(base + change) - loss(base - change)) / (2 * step)
    torch.testing.assert_close(logits.grad, found, atol=2e-3, rtol=2e-2)


def test_objectives_stay_in_fp32_under_autocast():
    routing = random_routing(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = mean_shares(routing)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside[0], routing.probs_TE.mean(0))


def test_balance_is_learned():
    """Gradient descent on LBL alone spreads a collapsed router."""
    torch.manual_seed(0)
    layer = MoE(16, 8, 4, select=TopK(1), gate=Raw(), aux=(LBL(1.0),))
    x = torch.randn(512, 16) + torch.linspace(0, 1, 16)
    layer.router.scorer.weight.data[0] += 1.0
    optimizer = torch.optim.Adam(layer.router.parameters(), lr=0.05)
    layer(x)
    before = layer.routing.count_E.max().item()
    for _ in range(60):
        layer(x)
        optimizer.zero_grad()
        aux_losses(layer)["load_balance"].backward()
        optimizer.step()
        end_step(layer)
    assert before > 400
    assert layer.routing.count_E.max().item() < 220
