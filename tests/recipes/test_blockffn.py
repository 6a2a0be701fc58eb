"""BlockFFN layers: what is positive is selected, zeros stay zeros, and the objectives make neighbours share."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'polyroute[nn]'")

import torch

from polyroute.nn.chars import Chars
from polyroute.nn.continuity import Adaptive, chunk_union
from polyroute.nn.corpora import batches
from polyroute.nn.locality import chunk_union_sparsity, token_sparsity
from polyroute.nn.moe import aux_losses, end_step, routings
from polyroute.nn.testbed import seeded
from polyroute.nn.transformer import TinyLM
from polyroute.recipes.blockffn import blockffn, sparsities

pytestmark = pytest.mark.torch


def test_the_positive_logits_are_the_selection_and_their_norm_the_gate():
    torch.manual_seed(0)
    layer = blockffn(8, 4, 6)
    with torch.no_grad():
        layer(torch.randn(20, 8))
    routing = layer.routing
    assert torch.equal(routing.mask_TE(), routing.logits_TE > 0)
    active = routing.logits_TE.relu()
    rms = (active.square().mean(1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(routing.gates_TE(), active / rms)
    assert not layer.pool.act.gated


def test_a_token_without_experts_gets_nothing():
    layer = blockffn(4, 4, 3)
    with torch.no_grad():
        layer.router.scorer.weight.copy_(torch.ones(3, 4))
        y = layer(torch.stack([torch.ones(4), -torch.ones(4)]))
    assert y[0].abs().sum() > 0
    assert torch.equal(y[1], torch.zeros(4))


def test_objectives_follow_the_arguments_and_train_the_router():
    torch.manual_seed(0)
    x = torch.randn(2, 16, 8)
    layer = blockffn(8, 4, 6, chunk=8)
    layer(x)
    losses = aux_losses(layer)
    assert set(losses) == {"activation_locality", "chunk_sparsity"}
    sum(losses.values()).backward()
    assert layer.router.scorer.weight.grad.abs().sum() > 0
    bare = blockffn(8, 4, 6, locality=0, sparsity=0)
    bare(x)
    assert aux_losses(bare) == {}


def test_chunk_sparsity_of_eight_tokens_and_eight_experts():
    same = torch.zeros(8, 8)
    same[:, 0] = 1.0
    for p_TE, expected in ((same, 0.125), (torch.full((8, 8), 1 / 8), 1 - (7 / 8) ** 8), (torch.eye(8), 1.0)):
        assert float(chunk_union(p_TE, 8, (1, 8))) == pytest.approx(expected, abs=1e-4)


def test_a_schedule_moves_the_coefficient():
    torch.manual_seed(0)
    layer = blockffn(8, 4, 6, sparsity=0.05, schedule=Adaptive(warmup=0, every=1))
    chunk = layer.aux[1]
    for scale in (1.0, 3.0, 1.0):
        layer(scale * torch.randn(2, 8, 8))
        aux_losses(layer)
        end_step(layer)
    assert chunk.coef != 0.05


def test_the_objectives_make_neighbours_share():
    torch.manual_seed(0)
    x = torch.randn(4, 1, 8).expand(4, 8, 8) + torch.randn(4, 8, 8)  # tokens of a chunk have something in common
    found = {}
    for coef in (0.0, 1.0):
        torch.manual_seed(1)
        layer = blockffn(8, 4, 12, locality=0.01 * coef, sparsity=coef, chunk=8)
        optimizer = torch.optim.Adam(layer.router.parameters(), lr=0.02)
        for _ in range(60):
            optimizer.zero_grad()
            (layer(x).sum() * 0 + sum(aux_losses(layer).values())).backward()
            optimizer.step()
        found[coef] = chunk_union_sparsity(layer.routing.mask_TE(), 8, [8] * 4)
    assert found[1.0] > found[0.0] + 0.2


def test_sparsities_are_means_over_layers():
    corpus = Chars(length=16, size=1000)
    with seeded(0):
        model = TinyLM(corpus.vocab, 16, 2, 2, lambda _: blockffn(16, 4, 6), context=16)
    stream = [next(batches(corpus, 4, seed=0))]
    found = sparsities(model, stream, m=4)
    with torch.no_grad():
        model(stream[0].x)
    masks = [routing.mask_TE() for routing in routings(model).values()]
    assert found["tls"] == pytest.approx(sum(map(token_sparsity, masks)) / 2)
    assert found["cls"] == pytest.approx(sum(chunk_union_sparsity(mask, 4, [16] * 4) for mask in masks) / 2)
    assert found["mean_k"] == pytest.approx(6 * (1 - found["tls"]))
    assert found["none"] == pytest.approx(sum(float((~mask.any(1)).double().mean()) for mask in masks) / 2)
