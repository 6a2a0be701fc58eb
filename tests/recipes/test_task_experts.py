"""Two-sided layers: what the recipe sets, that the contrast trains the task side, and the pieces of the proof."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'polyroute[nn]'")

import torch

from polyroute.errors import ConfigError
from polyroute.nn.corpora import batches
from polyroute.nn.moe import aux_losses, layers
from polyroute.nn.tasks import BanditTasks, PairedTaskSampler
from polyroute.nn.testbed import seeded, train
from polyroute.proofs.task_experts import family_information, token_only
from polyroute.recipes.task_experts import TASK_SIDE, task_experts, task_net

pytestmark = pytest.mark.torch


def test_each_side_gives_half_and_has_its_own_objectives():
    layer = task_experts(16, 8)
    x = torch.randn(4, 6, 16, generator=torch.Generator().manual_seed(0))
    assert layer(x).shape == x.shape
    by_token, by_task = layer.routings
    assert (by_token.num_experts, by_task.num_experts, by_token.K, by_task.K) == (6, 8, 2, 2)
    assert set(aux_losses(layer)) == {"parts.0/importance", "parts.0/noisy_load", "parts.1/info_nce"}
    assert set(aux_losses_of(task_experts(16, 8, contrast=0, balance=0), x)) == set()
    with pytest.raises(ConfigError, match="an even number"):
        task_experts(15, 8)


def aux_losses_of(layer, x):
    layer(x)
    return aux_losses(layer)


def test_noise_is_of_the_token_side_and_of_training_alone():
    layer, x = task_experts(16, 8), torch.randn(2, 5, 16)
    assert not torch.equal(layer(x), layer(x))
    with torch.no_grad():
        first = layer(x)
        second = layer(x)
    assert torch.equal(first[..., 8:], second[..., 8:])
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_a_pooled_side_reads_the_past_alone():
    layer = task_experts(16, 8, pooled=True).eval()
    x = torch.randn(2, 5, 16)
    later = torch.cat([x[:, :3], torch.randn(2, 2, 16)], 1)
    torch.testing.assert_close(layer(x)[:, :3], layer(later)[:, :3])


def test_keys_follow_and_the_contrast_falls():
    tasks = BanditTasks(4, 5, pulls=8, seed=0)
    with seeded(0):
        model = task_net(tasks.width, tasks.out, 16, 2, 2, 8, context=8, contrast=1.0, scale=10.0, ema=0.5)
    assert list(layers(model)) == ["stack.blocks.1.ffn.parts.0", "stack.blocks.1.ffn.parts.1"]
    objective = model.stack.blocks[1].ffn.parts[TASK_SIDE].aux[0]
    before = objective.key_scorer.first.weight.clone()
    history = train(model, batches(PairedTaskSampler(tasks), 8, seed=0), steps=40, lr=1e-2, seed=0)
    assert not torch.equal(objective.key_scorer.first.weight, before)
    contrast = history.aux["stack.blocks.1.ffn.parts.1/info_nce"]
    assert sum(contrast[-10:]) < sum(contrast[:10])


def test_information_is_of_family_and_dominant_expert():
    tasks = BanditTasks(3, 4, pulls=6, seed=0)
    model = task_net(tasks.width, tasks.out, 16, 1, 2, 8, context=6)
    name = f"stack.blocks.0.ffn.parts.{TASK_SIDE}"
    assert 0 <= family_information(model, tasks, name, 1) <= 1
    with torch.no_grad():
        for p in model.stack.blocks[0].ffn.parts[TASK_SIDE].router.parameters():
            p.zero_()
    assert family_information(model, tasks, name, 1) == 0  # one expert dominates everywhere
    assert token_only()(torch.zeros(2, 3, 32)).shape == (2, 3, 32)
