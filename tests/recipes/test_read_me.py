"""The converted model: each expert is the dense model without the neurons its domain does not need, in all layers."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")

from polyroute.nn.experts import FeedForward  # noqa: E402
from polyroute.nn.moe import layers  # noqa: E402
from polyroute.nn.token_router import TokenRouter  # noqa: E402
from polyroute.nn.transformer import TinyLM  # noqa: E402
from polyroute.nn.transplant import activations, feed_forwards  # noqa: E402
from polyroute.proofs.read_me import random_masks, with_expert  # noqa: E402
from polyroute.recipes.read_me import domain_masks, read_me  # noqa: E402

pytestmark = pytest.mark.torch
DOMAINS = 4


def dense():
    torch.manual_seed(0)
    return TinyLM(11, 8, 2, 2, lambda layer: FeedForward(8, 12))


def texts():
    generator = torch.Generator().manual_seed(1)
    return {f"domain {d}": torch.randint(2 * d, 2 * d + 4, (3, 10), generator=generator) for d in range(DOMAINS)}


def converted():
    model = dense()
    return model, read_me(model, domain_masks(model, texts()), TokenRouter(11, 8, DOMAINS))


def test_masks_keep_the_neurons_of_largest_mean_size():
    model, found = dense(), domain_masks(dense(), texts(), keep=0.5)
    for layer, mask in found.items():
        assert mask.sum(-1).tolist() == [6] * DOMAINS
        for row, ids in zip(mask, texts().values(), strict=True):
            size = activations(model, ids)[layer].abs().mean(0)
            assert float(size[row].min()) >= float(size[~row].max())


@pytest.mark.parametrize("expert", range(DOMAINS))
def test_an_expert_is_the_dense_model_without_the_neurons_outside_its_mask(expert):
    model, made = converted()
    pruned, ids = copy.deepcopy(model), texts()["domain 1"]
    masks = domain_masks(model, texts())
    with torch.no_grad():
        for name, network in feed_forwards(pruned).items():
            network.w2.weight[:, ~masks[name][expert]] = 0
        torch.testing.assert_close(with_expert(made.model, expert)(ids), pruned(ids), rtol=0, atol=1e-5)


def test_routes_are_known_before_the_model_runs_and_the_same_in_every_layer():
    _, made = converted()
    ids = torch.arange(20).reshape(2, 10) % 11
    before = made.router(ids).argmax(-1).flatten()
    made.model(ids)
    assert [torch.equal(layer.routing.exp_N, before) for layer in layers(made.model).values()] == [True, True]


def test_the_router_learns_from_neurons_and_the_dense_model_stays():
    model, made = converted()
    made.router_loss(torch.arange(20).reshape(2, 10) % 11).backward()
    assert float(made.router.head.weight.grad.abs().sum()) > 0
    assert not any(p.requires_grad for p in made.dense.parameters())
    assert all(p.requires_grad for p in model.parameters())


def test_random_masks_have_the_same_sizes_and_the_same_part_in_common():
    masks = domain_masks(dense(), texts())
    for name, drawn in random_masks(masks, 3).items():
        assert not torch.equal(drawn, masks[name])
        assert torch.equal(drawn.sum(-1), masks[name].sum(-1))
        assert int(drawn.all(0).sum()) == int(masks[name].all(0).sum())
