"""Languages that share no word and say the same."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'polyroute[nn]'")

import numpy as np
import torch

from polyroute.errors import ConfigError
from polyroute.nn.corpora import IGNORE
from polyroute.nn.languages import GENERAL, TASK, Languages

pytestmark = pytest.mark.torch


def test_sums_are_right_in_every_language():
    world = Languages(3, modulus=5, words=4, problems=6)
    for i, batch in enumerate(world.parallel(np.random.default_rng(0), 10, kind=TASK)):
        a, b, equals, c = (batch.x - i * world.own).reshape(10, 6, 4).unbind(-1)
        assert torch.equal((a + b) % 5, c)
        assert (equals == 5).all()
        assert torch.equal(batch.y.reshape(10, 6, 4)[..., 2], batch.x.reshape(10, 6, 4)[..., 3])
        assert (batch.y != IGNORE).sum() == 60
        assert (batch.domain_B == 2 * i).all()


def test_parallel_text_differs_by_vocabulary_alone():
    world = Languages(2, words=6)
    a, b = world.parallel(np.random.default_rng(0), 8, kind=GENERAL)
    assert torch.equal(a.x + world.own, b.x)
    assert torch.equal(a.y + world.own, b.y)
    assert torch.equal(a.x[:, 1:], a.y[:, :-1])
    assert not set(a.x.unique().tolist()) & set(b.x.unique().tolist())
    assert int(b.x.max()) < world.vocab


def test_text_follows_the_chain():
    world = Languages(1, words=3, problems=100, seed=1)
    batch = world.parallel(np.random.default_rng(0), 50, kind=GENERAL)[0]
    count = np.zeros((3, 3))
    np.add.at(count, ((batch.x - 8).flatten().numpy(), (batch.y - 8).flatten().numpy()), 1)
    np.testing.assert_allclose(count / count.sum(1, keepdims=True), world.follows_WW, atol=0.03)


def test_domains_are_language_and_kind_and_shares_hold():
    world = Languages(2, shares=(10, 1))
    batch = world.batch(np.random.default_rng(0), 2000)
    language, text = batch.domain_B // 2, batch.domain_B % 2
    assert torch.equal(batch.x // world.own, language[:, None].expand_as(batch.x))
    assert torch.equal((batch.x % world.own > world.modulus).all(1), text == GENERAL)
    assert float((language == 1).float().mean()) == pytest.approx(1 / 11, abs=0.02)
    assert float(text.float().mean()) == pytest.approx(0.5, abs=0.04)
    assert (world.batch(np.random.default_rng(0), 5, domain=3).domain_B == 3).all()


def test_what_cannot_be_said_is_told():
    with pytest.raises(ConfigError, match="modulus"):
        Languages(modulus=1)
    with pytest.raises(ConfigError, match="shares"):
        Languages(2, shares=(1,))
    with pytest.raises(ConfigError, match="kind"):
        Languages().parallel(np.random.default_rng(0), 2, kind=2)
