"""Corpora: what they ask for is true, the same seed gives the same batches, domains and halves are as told."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'polyroute[nn]'")

import torch

from polyroute.errors import ConfigError
from polyroute.nn.chars import ALPHABET, DOMAINS, Chars, decode, encode
from polyroute.nn.corpora import (
    IGNORE,
    Memory,
    Regress,
    TwoHop,
    batches,
    constant_trace,
    iid_trace,
    sticky_trace,
)
from polyroute.nn.tasks import BanditTasks, LinearTasks, PairedTaskSampler

pytestmark = pytest.mark.torch
CORPORA = {
    "regress": lambda: Regress(3, 8, out=5, length=6),
    "chars": lambda: Chars(20, size=2_000),
    "twohop": lambda: TwoHop(problems=4),
    "packed": lambda: TwoHop(packed=True),
    "memory": lambda: Memory(50, 6, values=7),
    "linear": lambda: LinearTasks(pairs=4),
    "bandit": lambda: BanditTasks(pulls=5),
    "paired": lambda: PairedTaskSampler(LinearTasks()),
}


@pytest.mark.parametrize("name", CORPORA)
def test_the_same_seed_gives_the_same_batches(name):
    one, two, other = (batches(CORPORA[name](), 6, seed=seed) for seed in (3, 3, 4))
    for a, b, c in itertools.islice(zip(one, two, other, strict=False), 3):
        for left, right in zip(a, b, strict=True):
            torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=True)
        assert not torch.equal(a.x, c.x)
        assert a.x.shape[:2] == a.y.shape[:2]
        assert a.domain_B.shape == (6,)
        assert a.domain_B.dtype == torch.int64
        assert a.x.dtype in (torch.int64, torch.float32)
        assert a.x.is_contiguous()


@pytest.mark.parametrize("name", ["regress", "chars", "linear", "bandit", "paired"])
def test_one_domain_on_demand(name):
    corpus = CORPORA[name]()
    assert corpus.batch(np.random.default_rng(0), 4, domain=1).domain_B.tolist() == [1] * 4
    with pytest.raises(ConfigError, match="domain: expected 0 to"):
        corpus.batch(np.random.default_rng(0), 4, domain=corpus.num_domains)


def test_regression_is_one_map_a_domain():
    corpus = Regress(4, 8, spread=2.0, seed=5)
    batch = corpus.batch(np.random.default_rng(0), 400)
    for domain in range(4):
        x, y = (part[batch.domain_B == domain].flatten(0, 1) for part in (batch.x, batch.y))
        found = torch.linalg.lstsq(x, y).solution.T
        np.testing.assert_allclose(found, corpus.map_COD[domain], atol=1e-4)
        np.testing.assert_allclose(x.mean(0), corpus.centre_CD[domain], atol=0.1)
    assert 0.4 < float(batch.y.square().mean()) < 2.5


def test_the_mixture_sets_the_shares():
    batch = Regress(3, 2, length=1, mixture=(3, 1, 0)).batch(np.random.default_rng(0), 4_000)
    share = np.bincount(batch.domain_B, minlength=3) / 4_000
    np.testing.assert_allclose(share, [0.75, 0.25, 0.0], atol=0.03)
    with pytest.raises(ConfigError, match="3 shares"):
        Regress(3, 2, mixture=(1, 1)).batch(np.random.default_rng(0), 1)


def test_text_of_every_domain_follows_its_grammar():
    corpus = Chars(300, size=5_000, seed=1)
    texts = [decode(corpus.text_CN[domain]) for domain in range(4)]
    for line in texts[0].splitlines()[1:-1]:
        left, right = line.split("=")
        assert eval(left, {"__builtins__": {}}) == int(right)
    partner = dict(["()", "[]", "{}", "<>"])
    for line in texts[1].splitlines()[1:-1]:
        stack = []
        for c in line:
            if c in partner:
                stack.append(partner[c])
            else:
                assert stack.pop() == c
        assert not stack
    assert all(line.endswith(".") and " the " in f" {line}" for line in texts[2].splitlines()[1:-1])
    lines = texts[3].splitlines()[:-3]
    for first, _, shown in zip(lines[::3], lines[1::3], lines[2::3], strict=False):
        assert shown == f"print({first.split('=')[0]})"


def test_windows_are_of_the_text_and_targets_are_the_next_character():
    corpus = Chars(40, domains=("code", "english"), size=3_000)
    batch = corpus.batch(np.random.default_rng(2), 8)
    assert torch.equal(batch.x[:, 1:], batch.y[:, :-1])
    for ids, domain in zip(batch.x, batch.domain_B, strict=True):
        assert decode(ids) in decode(corpus.text_CN[domain])
    assert corpus.vocab == len(ALPHABET)
    assert torch.equal(Chars(40, size=3_000).text_CN[DOMAINS.index("code")], corpus.text_CN[0])


def test_held_out_text_is_another_text():
    seen, unseen = Chars(40, size=3_000), Chars(40, size=3_000, held_out=True)
    text = [decode(t) for t in seen.text_CN]
    batch = unseen.batch(np.random.default_rng(0), 32)
    assert not any(decode(ids) in text[domain] for ids, domain in zip(batch.x, batch.domain_B, strict=True))


def test_ids_and_text_are_the_same_thing():
    assert decode(encode(ALPHABET)) == ALPHABET
    with pytest.raises(ConfigError, match="'é'"):
        encode("é")
    with pytest.raises(ConfigError, match="domains"):
        Chars(domains=("poetry",))


@pytest.mark.parametrize("packed", [False, True])
def test_two_hops_by_hand(packed):
    corpus = TwoHop(5, 7, problems=3, packed=packed, seed=1)
    batch = corpus.batch(np.random.default_rng(0), 20)
    if packed:
        i, j, v = (part.argmax(-1) for part in batch.x.split([5, 5, 7], dim=-1))
        answer = batch.y
        assert batch.x.sum(-1).eq(3).all()
    else:
        i, j, v = batch.x[:, 0::3] - 7, batch.x[:, 1::3] - 7, batch.x[:, 2::3]
        answer = batch.y[:, 2::3]
        assert (batch.y == IGNORE).float().mean() == pytest.approx(2 / 3)
    for a, b, c, y in zip(i.flatten(), j.flatten(), v.flatten(), answer.flatten(), strict=True):
        assert corpus.map_MV[b][corpus.map_MV[a][c]] == y


def test_memory_holds_the_same_pairs_for_ever():
    corpus = Memory(40, 5, values=9, length=60)
    whole, drawn = corpus.everything(), corpus.batch(np.random.default_rng(0), 3)
    assert whole.x.shape == (1, 40, 5)
    nearest = torch.cdist(drawn.x.flatten(0, 1), whole.x[0]).argmin(1)
    assert torch.equal(whole.y[0][nearest], drawn.y.flatten())
    torch.testing.assert_close(whole.x.norm(dim=-1), torch.ones(1, 40))


def test_linear_tasks_ask_at_every_x():
    tasks = LinearTasks(4, 3, pairs=12, noise=0.0)
    batch = tasks.batch(np.random.default_rng(0), 6)
    x, y = batch.x[:, 0::2, :3], batch.x[:, 1::2, 3]
    torch.testing.assert_close(batch.y[:, 0::2, 0], y)
    assert batch.y[:, 1::2].isnan().all()
    found = torch.linalg.lstsq(x, y[..., None]).solution[..., 0]
    torch.testing.assert_close(torch.einsum("bpd,bd->bp", x, found), y, rtol=1e-3, atol=1e-4)
    centre = torch.from_numpy(tasks.centre_CD[batch.domain_B]).float()
    assert float((found - centre).norm(dim=-1).mean()) < 0.6


def test_bandits_ask_for_the_best_arm():
    tasks = BanditTasks(2, 4, pulls=400, noise=0.1)
    batch = tasks.batch(np.random.default_rng(0), 5)
    arm, reward = batch.x[..., :4], batch.x[..., 4:]
    mean = (arm * reward).sum(1) / arm.sum(1)
    assert torch.equal(mean.argmax(-1), batch.y[:, -1])
    assert (batch.y[:, 0] == IGNORE).all()


def test_pairs_share_a_task_and_halves_do_not():
    sampler = PairedTaskSampler(LinearTasks(8, 3, noise=0.0))
    batch = sampler.batch(np.random.default_rng(0), 16)
    w = torch.linalg.lstsq(batch.x[:, 0::2, :3], batch.y[:, 0::2]).solution[..., 0]
    distance = torch.cdist(w[:8], w[8:])
    assert torch.equal(distance.argmin(1), torch.arange(8))
    assert (distance.diagonal() < 1e-3).all()
    assert sorted(batch.domain_B[:8].tolist()) == list(range(8))
    assert torch.equal(batch.domain_B[:8], batch.domain_B[8:])
    with pytest.raises(ConfigError, match="even"):
        sampler.batch(np.random.default_rng(0), 3)


def test_traces():
    rng = np.random.default_rng(0)
    assert (constant_trace(5, 4, 2) == [0, 1]).all()
    fresh = iid_trace(20_000, 16, 2, rng=rng)
    assert (fresh[:, 0] != fresh[:, 1]).all()
    np.testing.assert_allclose(np.bincount(fresh.ravel()) / 20_000, 1 / 8, atol=0.01)
    stuck = sticky_trace(50, 8, 2, stay=1.0, rng=rng)
    assert (stuck == stuck[0]).all()
    sticky = sticky_trace(20_000, 16, 2, stay=0.7, rng=rng)
    kept = (sticky[1:] == sticky[:-1]).all(1).mean()
    assert 0.69 < kept < 0.73
    for call in (lambda: constant_trace(1, 2, 3), lambda: sticky_trace(1, 2, 1, stay=1.5, rng=rng)):
        with pytest.raises(ConfigError):
            call()
