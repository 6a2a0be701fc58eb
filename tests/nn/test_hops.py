"""Tables looked up in a row: what they say of common entities, and what a block is told."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'polyroute[nn]'")

import torch
from torch import nn

from polyroute.errors import ConfigError, ShapeError
from polyroute.nn.hops import Hops, LookUps, hops_loss
from polyroute.nn.moe import MoE
from polyroute.nn.testbed import seeded

pytestmark = pytest.mark.torch


def tables(world):
    """The answer of each entity at each hop [H, N]."""
    asked = torch.cat([torch.arange(world.answer_HN.shape[1])[None], world.answer_HN[:-1]])
    return torch.stack([answer[at.argsort()] for at, answer in zip(asked, world.answer_HN, strict=True)])


def stack(world, hops=2):
    with seeded(0):
        return Hops(world.key_ND, hops, lambda layer: MoE(4, 4, 2))


def test_tables_agree_on_common_clusters_alone():
    world = LookUps(80, 4, hops=3, common=0.75, clusters=4, seed=3)
    first, second, third = tables(world)
    for table in (first, second, third):
        assert table.sort().values.tolist() == list(range(80))
    common = torch.arange(80) % 4 < 3
    for table in (second, third):
        assert torch.equal(table[common], first[common])
        assert (table[~common] != first[~common]).float().mean() > 0.7
    assert torch.allclose(world.key_ND.norm(dim=-1), torch.tensor(2.0))


def test_one_table_or_none_in_common():
    first, second = tables(LookUps(60, 4, common=1.0, seed=0))
    assert torch.equal(first, second)
    first, second = tables(LookUps(60, 4, common=0.0, seed=0))
    assert (first == second).float().mean() < 0.1


def test_entities_of_a_cluster_lie_close():
    key = LookUps(64, 16, clusters=8, spread=3.0, seed=1).key_ND.numpy()
    cosine, same = key @ key.T / 16, np.subtract.outer(np.arange(64), np.arange(64)) % 8 == 0
    assert cosine[same].mean() > cosine[~same].mean() + 0.5


class Answers(nn.Module):
    """Says, of each entity's key, the key of the next one, less the key itself: the stream is then the answer."""

    def __init__(self, key_ND):
        super().__init__()
        self.key_ND, self.read = key_ND, []

    def forward(self, x_BLD, *, context):
        entity = (x_BLD @ self.key_ND.T).argmax(-1)
        self.read.append(entity)
        return self.key_ND[(entity + 1) % len(self.key_ND)] - self.key_ND[entity]


def test_a_block_reads_what_the_one_before_said_or_what_it_is_told():
    world = LookUps(12, 16, hops=2, seed=2)
    model = Hops(world.key_ND, 2, lambda layer: Answers(world.key_ND))
    scores = model(world.key_ND[None])
    assert scores.shape == (1, 12, 2, 12)
    own = torch.arange(12)
    assert torch.equal(scores.argmax(-1)[0], torch.stack([(own + 1) % 12, (own + 2) % 12], dim=1))
    told = model(world.key_ND[None], torch.full((1, 12, 2), 7))
    assert torch.equal(told.argmax(-1)[0, :, 1], torch.full((12,), 8))
    assert model.blocks[1].ffn.read[-1].tolist() == [[7] * 12]


def test_the_loss_is_that_of_all_hops_with_right_answers_said():
    world = LookUps(20, 4, hops=2, seed=0)
    model, batch = stack(world), world.everything()
    with torch.no_grad():
        scores, loss = model(batch.x, world.answer_HN.T[None]), float(hops_loss(model, batch))
    by_hand = -scores.log_softmax(-1).gather(-1, batch.y[..., None]).mean()
    assert loss == pytest.approx(float(by_hand), rel=1e-5)


def test_wrong_shapes_and_sizes_are_refused():
    world = LookUps(20, 4, seed=0)
    with pytest.raises(ShapeError, match="said"):
        stack(world)(world.key_ND[None], torch.zeros(1, 20, 1, dtype=torch.int64))
    with pytest.raises(ConfigError, match="common"):
        LookUps(20, 4, common=1.5)
    with pytest.raises(ConfigError, match="hops"):
        LookUps(20, 4, hops=0)
