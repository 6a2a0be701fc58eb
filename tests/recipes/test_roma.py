"""The recipe's settings, and the proof's prompts, texts and damage."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'polyroute[nn]'")

import numpy as np
import torch

from polyroute.nn.manifold import route_layers
from polyroute.nn.moe import MoE
from polyroute.nn.testbed import seeded, task_loss
from polyroute.nn.transformer import TinyLM
from polyroute.proofs import roma as proof
from polyroute.proofs.roma import (
    LAYERS,
    VALUES,
    WORDS,
    Prompts,
    damaged,
    informative,
    repaired,
    right,
    streams,
    tail,
    texts,
    whole_model,
)
from polyroute.recipes.roma import roma

pytestmark = pytest.mark.torch


def test_the_last_five_layers_and_three_neighbours():
    model = TinyLM(5, 8, 7, 0, lambda layer: MoE(8, 4, 2), context=4)
    tuner = roma(model)
    assert [layer is block.ffn for layer, block in zip(tuner.layers, model.stack.blocks[2:], strict=True)] == [True] * 5
    assert (tuner.k, tuner.lam, tuner.token) == (3, 1.0, "last")
    assert roma(model, layers=["stack.blocks.1.ffn"], lam=0.0).layers == [model.stack.blocks[1].ffn]


def test_a_prompt_ends_with_a_word_of_its_task_and_asks_for_the_value_s_image():
    world = Prompts(3)
    data = world.batch(np.random.default_rng(0), 50)
    task, last = data.domain_B.numpy(), data.x[:, -1].numpy() - VALUES
    assert (last // WORDS == task).all()
    assert (data.y[:, -1].numpy() == world.map_TV[task, data.x[:, 0].numpy()]).all()
    assert bool((data.y[:, :-1] == -100).all())


def test_texts_tell_tasks_apart_and_do_not_read_the_value():
    world, rng = Prompts(3), np.random.default_rng(1)
    vectors, data = world.word_vectors(rng), world.batch(rng, 120)
    found = texts(vectors, data)
    nearest = torch.cdist(found, found).fill_diagonal_(torch.inf).argmin(1)
    assert float((data.domain_B[nearest] == data.domain_B).double().mean()) > 0.9
    other = data._replace(x=torch.cat([(data.x[:, :1] + 1) % VALUES, data.x[:, 1:]], 1))
    assert torch.equal(texts(vectors, other), found)


def test_damage_mixes_noise_into_the_last_router_alone_at_its_old_size():
    world = Prompts(3)
    with seeded(0):
        model = TinyLM(world.vocab, 8, 2, 2, lambda layer: MoE(8, 4, 16), context=4)
    worse = damaged(model, world.batch(np.random.default_rng(0), 20), 0)
    moved = {n for n, p in worse.named_parameters() if not torch.equal(p, model.get_parameter(n))}
    assert moved == {"stack.blocks.1.ffn.router.scorer.weight"}
    before, after = (route_layers(m, LAYERS)[0].router.scorer.weight.detach().std() for m in (model, worse))
    assert float(after / before) == pytest.approx(1, abs=0.25)


def small_lm(world: Prompts) -> TinyLM:
    with seeded(0):
        return TinyLM(world.vocab, proof.DIM, 2, 2, lambda layer: MoE(proof.DIM, 4, 16), context=4)


def test_the_tail_of_a_model_answers_as_the_model_does_and_shares_nothing_with_it():
    world = Prompts(3)
    model, data = small_lm(world), world.batch(np.random.default_rng(0), 40)
    net, given = tail(model), streams(model, data)
    assert given.x.shape == (40, 1, proof.DIM)
    assert torch.equal(given.y[:, 0], data.y[:, -1])
    before = model(data.x)[:, -1].detach()
    torch.testing.assert_close(net(given.x)[:, 0].detach(), before)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    assert torch.equal(model(data.x)[:, -1].detach(), before)


def test_a_repair_moves_the_router_alone_and_is_the_best_on_the_kept_prompts(monkeypatch):
    monkeypatch.setattr(proof, "EPOCHS", 2)
    world, rng = Prompts(3), np.random.default_rng(0)
    model, labelled = small_lm(world), world.batch(rng, 120)
    labelled.y[:, -1] = model(labelled.x)[:, -1].argmax(-1)  # what the whole model says is right
    data = streams(model, labelled)
    start, near, scores = damaged(tail(model), data, 0), texts(world.word_vectors(rng), labelled), []
    monkeypatch.setattr(proof, "right", lambda m, d: scores.append(right(m, d)) or scores[-1])
    found = repaired(start, data, data, near, 0, lam=1.0)
    assert len(scores) == 1 + 2 * len(proof.RATES)
    assert right(found, data) == max(scores) > scores[0]
    moved = {name for name, p in found.named_parameters() if not torch.equal(p, start.get_parameter(name))}
    assert moved == {"stack.blocks.0.ffn.router.scorer.weight"}


def test_a_model_learns_on_until_it_is_whole_or_the_bound(monkeypatch):
    steps = []
    monkeypatch.setattr("polyroute.nn.testbed.train", lambda *_, **options: steps.append(options["steps"]))
    rightly = iter([50.0, 99.0, 99.9])
    monkeypatch.setattr(proof, "right", lambda *_: next(rightly))
    whole_model(Prompts(3), 3)
    assert steps == [proof.STEPS, proof.MORE, proof.MORE]
    monkeypatch.setattr(proof, "right", lambda *_: 50.0)
    whole_model(Prompts(3), 3)
    assert steps[3:] == [proof.STEPS] + proof.ROUNDS * [proof.MORE]


def test_information_is_paid_for_when_each_task_has_its_expert():
    world = Prompts(3)
    data = world.batch(np.random.default_rng(0), 64)
    with seeded(0):
        model = TinyLM(world.vocab, 8, 2, 2, lambda layer: MoE(8, 4, 16), context=4)
    weight, paid = route_layers(model, LAYERS)[0].router.scorer.weight, []
    for size in (0.0, 50.0):
        with seeded(1), torch.no_grad():
            weight.copy_(size * torch.randn_like(weight))
            paid.append(float(task_loss(model, data) - informative(model, data)))
    assert paid[0] == pytest.approx(0.0, abs=1e-4)  # equal scores tell nothing
    assert paid[1] > 0.1
