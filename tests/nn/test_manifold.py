"""Routes of sequences, neighbours that went well, and a fit that moves nothing but routers."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'polyroute[nn]'")

import torch

from polyroute.errors import ConfigError, ShapeError, UnknownNameError
from polyroute.nn.corpora import IGNORE, Batch
from polyroute.nn.manifold import (
    RouteManifold,
    alignment,
    answered,
    collect_routes,
    neighbours,
    route_layers,
    sequence_routes,
)
from polyroute.nn.moe import MoE, layers
from polyroute.nn.routing import TokenContext
from polyroute.nn.testbed import seeded
from polyroute.nn.transformer import TinyLM

pytestmark = pytest.mark.torch


def small_lm() -> TinyLM:
    with seeded(0):
        return TinyLM(9, 16, 3, 2, lambda layer: MoE(16, 8, 4), context=6).train()


def labelled(model: TinyLM, num: int = 24, wrong: int = 8) -> Batch:
    """Sequences asked at their last token; the first `wrong` labels are not what the model says."""
    x = torch.randint(9, (num, 6), generator=torch.Generator().manual_seed(1))
    y = torch.full_like(x, IGNORE)
    with torch.no_grad():
        y[:, -1] = model(x)[:, -1].argmax(-1)
    y[:wrong, -1] = (y[:wrong, -1] + 1) % 9
    return Batch(x, y, torch.zeros(num, dtype=torch.int64))


def test_routes_are_the_scores_at_the_last_token_layer_by_layer():
    model = small_lm()
    data = labelled(model)
    routes = collect_routes(model, [data], layers=-2)
    assert routes.shape == (24, 8)
    assert model.training
    with torch.no_grad():
        model(data.x)
    last = model.stack.blocks[2].ffn.routing.probs_TE.reshape(24, 6, 4)
    torch.testing.assert_close(routes[:, 4:], last[:, -1])
    torch.testing.assert_close(collect_routes(model, [data], token="mean", layers=-1), last.mean(1))


def test_the_last_token_is_the_last_real_one_on_either_side():
    layer, x = MoE(8, 4, 3), torch.randn(2, 4, 8)
    valid = torch.tensor([[True, True, False, False], [False, False, True, True]])
    layer(x, context=TokenContext(x.flatten(0, 1), (2, 4), valid_T=valid.flatten()))
    shares = layer.routing.probs_TE.reshape(2, 4, 3)
    torch.testing.assert_close(sequence_routes([layer.routing]), torch.stack([shares[0, 1], shares[1, 3]]))


def test_neighbours_are_good_near_and_never_oneself():
    points = torch.tensor([[0.0], [1.0], [2.0], [10.0], [0.1]])
    ids, weights = neighbours(points, torch.tensor([True, True, True, True, False]), 2)
    assert [sorted(row) for row in ids.tolist()] == [[1, 2], [0, 2], [0, 1], [1, 2], [0, 1]]
    torch.testing.assert_close(weights.sum(1), torch.ones(5))
    torch.testing.assert_close(weights[1], torch.tensor([0.5, 0.5]))
    assert ids[0, weights[0].argmax()] == 1
    distance = torch.tensor([1, 2, 1, 1, 2, 1, 8, 9, 0.1, 0.9]).sort().values
    width = float(distance[4])  # torch's median is the lower one
    expected = torch.exp(torch.tensor((2**2 - 1**2) / (2 * width**2)))
    torch.testing.assert_close(weights[0].max() / weights[0].min(), expected)
    with pytest.raises(ConfigError, match="more than k = 2"):
        neighbours(points, torch.tensor([True, True, False, False, False]), 2)


def test_only_the_routers_of_the_chosen_layers_move():
    model = small_lm()
    data = labelled(model)
    model.stack.blocks[0].ffn.pool.w1_EGD.requires_grad_(False)
    before, trained = [p.clone() for p in model.parameters()], [p.requires_grad for p in model.parameters()]
    history = RouteManifold(model, layers=-2).fit(data, torch.randn(24, 3), epochs=2, batch_size=8, seed=0)
    moved = {name for (name, p), old in zip(model.named_parameters(), before, strict=True) if not torch.equal(p, old)}
    assert moved == {f"stack.blocks.{i}.ffn.router.scorer.weight" for i in (1, 2)}
    assert [p.requires_grad for p in model.parameters()] == trained
    assert all(p.grad is None for p in model.parameters())
    assert model.training
    assert history.good == 16
    assert len(history.loss) == len(history.distance) == 2


def test_routes_come_nearer_with_the_distance_than_without():
    found = {}
    for lam in (0.0, 30.0):
        model = small_lm()
        data = labelled(model)
        fitted = RouteManifold(model, layers=-2, lam=lam).fit(data, torch.zeros(24, 1), epochs=8, lr=1e-2, seed=0)
        found[lam] = fitted.distance
    assert found[30.0][-1] < 0.7 * found[30.0][0]
    assert found[30.0][-1] < 0.8 * found[0.0][-1]


def test_all_samples_or_the_repaired_ones_may_be_neighbours_and_each_epoch_is_told():
    stored = {}
    for name, options in {"good": {}, "all": {"among": "all"}, "renewed": {"renew": True}}.items():
        model = small_lm()
        data, seen = labelled(model), []
        tuner = RouteManifold(model, layers=-1, lam=1.0, **options)
        find, calls = tuner._neighbours, []
        tuner._neighbours = lambda *a, find=find, calls=calls: calls.append(find(*a)) or calls[-1]
        tuner.fit(
            data, torch.arange(24.0)[:, None], epochs=3, seed=0,
            on_epoch=lambda epoch, history, seen=seen: seen.append((epoch, len(history.loss))),
        )  # fmt: skip
        assert seen == [(0, 1), (1, 2), (2, 3)]
        stored[name] = calls
    assert [len(calls) for calls in stored.values()] == [1, 1, 3]
    good_N, (ids_NK, _) = stored["good"][0]
    assert bool(good_N[ids_NK].all())
    good_N, (ids_NK, _) = stored["all"][0]
    assert not bool(good_N[ids_NK].all())
    with pytest.raises(ConfigError, match="among"):
        RouteManifold(small_lm(), among="bad")


def test_a_fit_repeats_for_its_seed():
    weights = []
    for _ in range(2):
        model = small_lm()
        data = labelled(model)
        embedding = torch.randn(24, 3, generator=torch.Generator().manual_seed(2))
        RouteManifold(model).fit(data, embedding, epochs=1, seed=3)
        weights.append(model.stack.blocks[2].ffn.router.scorer.weight.detach())
    assert torch.equal(*weights)


def test_alignment_is_the_rank_correlation_of_distances():
    points = torch.randn(9, 2, generator=torch.Generator().manual_seed(0))
    assert alignment(points, 3 * points) == pytest.approx(1)
    stats = pytest.importorskip("scipy.stats", reason="needs scipy")
    grid, other = points.round(), torch.randn(9, 4, generator=torch.Generator().manual_seed(1))  # with ties
    pairs = [torch.nn.functional.pdist(x.double()) for x in (grid, other)]
    assert alignment(grid, other) == pytest.approx(float(stats.spearmanr(*pairs).statistic))


def test_what_does_not_fit_is_told():
    model = small_lm()
    data = labelled(model)
    assert answered(model, data).sum() == 16
    assert route_layers(model, -9) == list(layers(model).values())
    with pytest.raises(UnknownNameError):
        route_layers(model, ["head"])
    with pytest.raises(ConfigError, match="layers"):
        route_layers(model, 5)
    with pytest.raises(ConfigError, match="token"):
        collect_routes(model, [data], token="first")
    with pytest.raises(ConfigError, match="k, lam"):
        RouteManifold(model, k=0)
    with pytest.raises(ShapeError):
        RouteManifold(model).fit(data, torch.zeros(3, 2), seed=0)
