"""Metrics and taps: closed forms, brute force, padding, accumulation over batches."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'polyroute[nn]'")

import torch

from polyroute.errors import ConfigError, ShapeError
from polyroute.nn.gates import Raw
from polyroute.nn.locality import srp, token_sparsity
from polyroute.nn.metrics import (
    Load,
    LocalRouting,
    MeanK,
    RouteProfile,
    depth_information,
    divergence,
    domain_information,
    fluctuation,
    jaccard,
    max_vio,
    mutual_information,
    nmi,
    profile,
    route_entropy,
)
from polyroute.nn.moe import MoE
from polyroute.nn.normalise import ProductLogSoftmax
from polyroute.nn.routing import TokenContext
from polyroute.nn.scorers import ProductKeys
from polyroute.nn.selection import ProductTopK, TopP

pytestmark = pytest.mark.torch

VALID = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], dtype=torch.bool)


def layer_of(*taps, **options):
    torch.manual_seed(0)
    return MoE(8, 4, 6, taps=taps, **options)


def run(layer, seed=0, valid=VALID):
    x = torch.randn(*valid.shape, 8, generator=torch.Generator().manual_seed(seed))
    layer(x, context=TokenContext(x.reshape(-1, 8), tuple(valid.shape), valid_T=valid.reshape(-1)))
    return layer.routing


def test_max_vio_is_the_excess_of_the_busiest_expert():
    assert max_vio([5, 5, 5]) == 0
    assert max_vio(torch.tensor([8, 2, 2])) == pytest.approx(1.0)
    assert max_vio([0, 0, 9, 0]) == pytest.approx(3.0)
    assert max_vio([0, 0]) == 0


def test_fluctuation_is_the_share_of_places_that_changed():
    assert fluctuation([[1, 2], [3, 4]], [[1, 5], [3, 0]]) == 0.5
    assert fluctuation([], []) == 0
    with pytest.raises(ShapeError):
        fluctuation([1, 2], [1])


def test_route_entropy_leaves_padding_out():
    routing = run(layer_of())
    p = routing.probs_TE[VALID.reshape(-1)]
    assert route_entropy(routing) == pytest.approx(-(p * p.log()).sum(-1).mean().item(), rel=1e-5)


def information_by_hand(a, b):
    """Sum over pairs of values of p log(p / (p p))."""
    n, total = len(a), 0.0
    for x in set(a):
        for y in set(b):
            p = sum(i == x and j == y for i, j in zip(a, b, strict=True)) / n
            if p:
                total += p * math.log(p / (a.count(x) / n * b.count(y) / n))
    return total


def test_mutual_information_has_its_known_values():
    a = [0, 0, 1, 1, 2, 2, 3, 3]
    assert mutual_information(a, a) == pytest.approx(math.log(4))
    assert mutual_information(a, [x // 2 for x in a]) == pytest.approx(math.log(2))
    assert mutual_information([0, 0, 1, 1], [7, -3, 7, -3]) == pytest.approx(0, abs=1e-12)
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randint(5, (60,), generator=generator).tolist() for _ in range(2))
    assert mutual_information(x, y) == pytest.approx(information_by_hand(x, y))
    assert mutual_information(torch.tensor(x) * 1000 - 7, torch.tensor(y)) == pytest.approx(information_by_hand(x, y))
    assert mutual_information([], []) == 0
    with pytest.raises(ShapeError):
        mutual_information([1, 2], [1])


def test_nmi_is_one_for_a_renaming_and_zero_for_constants():
    a = [0, 0, 1, 1, 2, 2]
    assert nmi(a, [5, 5, 9, 9, 1, 1]) == pytest.approx(1)
    assert nmi(a, [x // 2 for x in a]) == pytest.approx(
        2 * mutual_information(a, [0, 0, 0, 0, 1, 1]) / (math.log(3) + information_by_hand(*[[0, 0, 0, 0, 1, 1]] * 2))
    )
    assert nmi([1, 1, 1], [1, 1, 1]) == 0
    assert nmi([1, 1, 1], [1, 2, 3]) == 0


def test_information_of_domains_and_of_adjacent_layers():
    routing = run(layer_of())
    domain = torch.arange(15) % 3
    valid = VALID.reshape(-1)
    pairs = [(int(domain[t]), e) for t in range(15) for e in range(6) if routing.mask_TE()[t, e] and valid[t]]
    a, b = zip(*pairs, strict=True)
    assert domain_information(routing, domain) == pytest.approx(information_by_hand(a, b))
    others = [run(layer_of(), seed) for seed in (1, 2)]
    tops = [r.probs_TE.argmax(-1)[valid].tolist() for r in (routing, *others)]
    expected = [information_by_hand(tops[0], tops[1]), information_by_hand(tops[1], tops[2])]
    assert depth_information([routing, *others]) == pytest.approx(expected)
    assert depth_information({"a": routing}) == []


def test_divergence_is_jensen_shannon_over_entropy():
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.1, 0.3, 0.6])
    mean = (p + q) / 2
    shannon = 0.5 * (p * (p / mean).log()).sum() + 0.5 * (q * (q / mean).log()).sum()
    entropy = -0.5 * ((p * p.log()).sum() + (q * q.log()).sum())
    assert divergence(p, q, normalised=False).item() == pytest.approx(shannon.item(), rel=1e-5)
    assert divergence(p, q).item() == pytest.approx((shannon / entropy).item(), rel=1e-5)
    assert divergence(3 * p, p).item() == pytest.approx(0, abs=1e-6)
    assert divergence(q, p).item() == pytest.approx(divergence(p, q).item())
    assert divergence([[1, 0], [1, 0]], [[0, 1], [1, 0]], normalised=False).tolist() == pytest.approx([math.log(2), 0])
    assert divergence([1, 0], [0, 1]).item() == math.inf
    assert divergence([1, 0], [1, 0]).item() == 0


def test_jaccard_compares_sets_of_experts():
    a = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    b = torch.tensor([[1, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    assert jaccard(a, b) == pytest.approx((1 / 3 + 1) / 2)
    routing = run(layer_of())
    assert jaccard(routing, routing) == 1
    assert jaccard(routing, ~routing.mask_TE()) == 0
    assert math.isnan(jaccard(a[2:], b[2:]))


@pytest.mark.parametrize("per", ["token", "sequence"])
def test_profile_is_the_mean_over_tokens_or_sequences(per):
    routing = run(layer_of())
    probs, mask = routing.probs_TE.detach().reshape(3, 5, 6), routing.mask_TE().float().reshape(3, 5, 6)
    if per == "token":
        expected = probs[VALID].mean(0), mask[VALID].mean(0)
    else:
        expected = tuple((x[0, :3].mean(0) + x[1].mean(0)) / 2 for x in (probs, mask))
    found = profile(routing, per)
    torch.testing.assert_close(found.probs_E.float(), expected[0])
    torch.testing.assert_close(found.frequency_E.float(), expected[1])
    assert found.probs_E.sum().item() == pytest.approx(1, abs=1e-5)
    assert found.frequency_E.sum().item() == pytest.approx(2, abs=1e-5)
    layer = layer_of(RouteProfile(per))
    run(layer, 0)
    run(layer, 0)
    torch.testing.assert_close(layer.taps[0].result()["probs_E"], found.probs_E)


def test_load_counts_every_pass_until_reset():
    layer = layer_of(Load())
    counts = run(layer, 0).count_E + run(layer.eval(), 1).count_E
    found = layer.taps[0].result()
    assert torch.equal(found["count_E"], counts)
    assert found["max_vio"] == pytest.approx(max_vio(counts))
    assert counts.sum() == 2 * 8 * 2
    layer.taps[0].reset()
    assert layer.taps[0].result()["count_E"].sum() == 0


def test_mean_k_counts_experts_of_real_tokens():
    layer = layer_of(MeanK(), select=TopP(0.5), gate=Raw())
    each = torch.cat([run(layer, seed).mask_TE().sum(1)[VALID.reshape(-1)] for seed in (0, 1)]).double()
    found = layer.taps[0].result()
    assert found["mean_k"] == pytest.approx(each.mean().item())
    assert found["std_k"] == pytest.approx(each.std(unbiased=False).item())
    assert each.std() > 0
    assert found["none"] == 0
    layer.taps[0].reset()
    assert math.isnan(layer.taps[0].result()["mean_k"])


def test_local_routing_adds_up_windows_of_all_passes():
    layer = layer_of(LocalRouting(m=(2, 4)))
    masks = [run(layer, seed).mask_TE()[VALID.reshape(-1)] for seed in (0, 1)]
    found = layer.taps[0].result()
    lengths, mask = [3, 5, 3, 5], torch.cat(masks)
    for m in (2, 4):
        best = srp(mask, m, lengths)
        assert (found[f"srp_{m}"], found[f"size_ratio_{m}"]) == pytest.approx((best.srp, best.size_ratio))
    assert found["tls"] == pytest.approx(token_sparsity(mask)) == pytest.approx(4 / 6)
    assert 0 < found["cls_4"] < found["cls_2"] < found["tls"]
    with pytest.raises(ConfigError, match=r"local_routing\.m"):
        LocalRouting(m=(0,)).build(8, 6)
    with pytest.raises(ConfigError, match="per"):
        RouteProfile("batch").build(8, 6)


def test_taps_read_product_keys_too():
    taps = (Load(), MeanK(), RouteProfile(), LocalRouting(m=(2,)))
    keys = {"scorer": ProductKeys(2, 3), "norm": ProductLogSoftmax(), "select": ProductTopK(2)}
    layer = layer_of(*taps, **keys)
    routing = run(layer)
    row, column = (axis.softmax(-1)[VALID.reshape(-1)] for axis in routing.logits_TE)
    expected = (row[:, :, None] * column[:, None]).mean(0).flatten().double()
    torch.testing.assert_close(layer.taps[2].result()["probs_E"], expected.detach(), atol=1e-6, rtol=1e-5)
    assert layer.taps[1].result()["mean_k"] == 2
    assert route_entropy(routing) > 0
