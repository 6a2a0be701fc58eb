"""Growing whole models: in place, with the optimizer, and what twins do afterwards."""

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'polyroute[nn]'")

import torch

from polyroute.nn.corpora import Regress, batches
from polyroute.nn.moe import layers
from polyroute.nn.testbed import adamw, seeded, train
from polyroute.nn.transformer import TinyNet
from polyroute.proofs import expert_upcycling as proof
from polyroute.recipes.expert_upcycling import expert_upcycling, twin_cosine, upcyclable

pytestmark = pytest.mark.torch
WORLD = Regress(2, 8, length=8)


def trained(k=2, steps=6):
    with seeded(0):
        model = TinyNet(8, 8, 8, 2, 0, lambda layer: upcyclable(8, 8, 4, k=k, act="identity"))
    optimizer, stream = adamw(model), batches(WORLD, 4, seed=0)
    train(model, stream, steps=steps, seed=0, optimizer=optimizer)
    return model, optimizer, stream


def test_every_layer_grows_in_place_and_training_goes_on():
    model, optimizer, stream = trained()
    old = {name: layer.pool.w1_EGD.detach().clone() for name, layer in layers(model).items()}
    steps = {name: layer.step for name, layer in layers(model).items()}
    grown = expert_upcycling(model, optimizer)
    assert grown.model is model
    assert set(grown.source_E) == set(old) == set(layers(model))
    for name, layer in layers(model).items():
        assert torch.equal(layer.pool.w1_EGD, old[name][grown.source_E[name]])
        assert layer.step == steps[name]
        moments = optimizer.state[layer.pool.w1_EGD]["exp_avg"]
        assert torch.equal(moments[:4], moments[4:])
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}
    train(model, stream, steps=3, seed=1, optimizer=optimizer)
    assert all(len(layer.routing.count_E) == 8 for layer in layers(model).values())


def test_a_layer_alone_comes_back_grown():
    with seeded(0):
        layer = upcyclable(8, 8, 4)
    grown = expert_upcycling(layer, m=3)
    assert grown.model is not layer
    assert grown.model.router.num_experts == 12
    assert grown.source_E[""].tolist() == [0, 1, 2, 3] * 3
    assert twin_cosine(grown.model, grown.source_E[""]) == pytest.approx(1.0)


def test_without_noise_twins_never_part_and_with_it_they_do():
    cosines = {}
    for noise in (0.0, 100.0):
        model, optimizer, stream = trained()
        sources = expert_upcycling(model, optimizer, bias_noise=noise).source_E
        train(model, stream, steps=60, seed=1, optimizer=optimizer, lr=3e-2)
        cosines[noise] = [twin_cosine(layer, sources[name]) for name, layer in layers(model).items()]
    assert cosines[0.0] == pytest.approx([1.0, 1.0], abs=1e-6)
    assert max(cosines[100.0]) < 0.99


def test_an_exact_start_keeps_the_function_and_utility_picks_who_is_copied():
    model, optimizer, stream = trained()
    x = next(stream).x
    model.eval()
    before = model(x).detach()
    grown = expert_upcycling(model, optimizer, score="saliency", exact_start=True, anneal=5)
    torch.testing.assert_close(model(x).detach(), before)
    assert any(source.tolist() != [0, 1, 2, 3] * 2 for source in grown.source_E.values())
    assert all(source[4:].bincount().max() <= 3 for source in grown.source_E.values())


def test_the_cosine_of_twins_is_that_of_all_their_weights():
    with seeded(0):
        layer = upcyclable(8, 8, 4, act="identity")
    source_E = torch.tensor([0, 1, 2, 0])
    flat = torch.cat([layer.pool.w1_EGD.flatten(1), layer.pool.w2_EFO.flatten(1)], 1).detach()
    expected = torch.nn.functional.cosine_similarity(flat[3], flat[0], dim=0)
    assert twin_cosine(layer, source_E) == pytest.approx(float(expected), rel=1e-5)


def test_the_proof_s_arms_share_a_first_half_that_none_of_them_moves(monkeypatch):
    monkeypatch.setattr(proof, "STEPS", 3)
    world = Regress(proof.DOMAINS, proof.DIM, seed=1)
    layer, optimizer = proof.begun(world, 1, proof.SMALL)
    before = [p.detach().clone() for p in layer.parameters()]
    moment = optimizer.state[layer.pool.w1_EGD]["exp_avg"].clone()
    plain = proof.arm(world, 1, (layer, optimizer), None)
    grown = proof.arm(world, 1, (layer, optimizer), {"bias_noise": proof.NOISE, "score": "saliency"})
    assert all(torch.equal(p, old) for p, old in zip(layer.parameters(), before, strict=True))
    assert torch.equal(optimizer.state[layer.pool.w1_EGD]["exp_avg"], moment)
    assert proof.arm(world, 1, (layer, optimizer), None)["error"] == plain["error"]
    assert grown["error"] != plain["error"]
    assert grown["twin cosine"] > 0.9
