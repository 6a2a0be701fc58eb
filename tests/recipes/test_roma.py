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
from polyroute.proofs.roma import LAYERS, VALUES, WORDS, Prompts, damaged, informative, texts
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
