"""The trainer repeats itself, accumulates exactly, learns; the readouts agree with arithmetic by hand."""

from __future__ import annotations

import itertools
import json
import math

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'polyroute[nn]'")

import torch

from polyroute.errors import ConfigError
from polyroute.nn.chars import Chars
from polyroute.nn.corpora import Batch, Memory, Regress, TwoHop, batches
from polyroute.nn.experts import FeedForward
from polyroute.nn.gates import Raw
from polyroute.nn.losses import LBL
from polyroute.nn.moe import MoE
from polyroute.nn.normalise import Noise, SelectionBias
from polyroute.nn.selection import TopK
from polyroute.nn.tasks import LinearTasks
from polyroute.nn.testbed import (
    active_flops,
    adamw,
    evaluate,
    fluctuation_between,
    routes,
    schedule,
    seeded,
    task_loss,
    train,
)
from polyroute.nn.transformer import TinyLM, TinyNet

pytestmark = pytest.mark.torch


def language_model(seed=0, **options):
    with seeded(seed):
        return TinyLM(Chars.vocab, 16, 2, 2, lambda layer: MoE(16, 8, 4, **options), context=16)


@pytest.fixture(scope="module")
def chars():
    return Chars(16, size=2_000)


def test_the_same_seed_gives_the_same_numbers(chars):
    def run(seed):
        model = language_model(mods=[Noise(1.0)], aux=[LBL(0.01)])
        return train(model, batches(chars, 4, seed=0), steps=6, seed=seed, micro=2), model

    (one, a), (two, b), (other, _) = run(0), run(0), run(1)
    assert one.loss == two.loss
    assert one.aux == two.aux
    assert one.load == two.load
    assert one.loss != other.loss, "the seed drives the routers' noise"
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert set(one.aux) == {f"stack.blocks.{layer}.ffn/load_balance" for layer in (0, 1)}
    told = json.loads(json.dumps(one.as_json()))
    assert told["loss"] == one.loss
    assert told["torch"] == torch.__version__


def test_the_outer_generator_is_left_alone(chars):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    train(language_model(mods=[Noise(1.0)]), batches(chars, 2, seed=0), steps=1, seed=9)
    assert torch.equal(torch.get_rng_state(), before)


def test_micro_batches_are_one_batch(chars):
    parts = list(itertools.islice(batches(chars, 4, seed=0), 6))
    wholes = [
        Batch(*(torch.cat(pair) for pair in zip(a, b, strict=True)))
        for a, b in zip(parts[::2], parts[1::2], strict=True)
    ]
    one, two = language_model(mods=[SelectionBias()]), language_model(mods=[SelectionBias()])
    split = train(one, parts, steps=3, seed=0, micro=2)
    whole = train(two, wholes, steps=3, seed=0)
    assert split.loss == pytest.approx(whole.loss, rel=1e-5)
    assert split.load == whole.load
    torch.testing.assert_close(one.head.weight, two.head.weight, rtol=1e-3, atol=1e-4)
    moe = one.stack.blocks[0].ffn
    assert moe.step == 3
    assert torch.equal(moe.router.mods[0].bias_E, two.stack.blocks[0].ffn.router.mods[0].bias_E)


def test_load_is_every_pair_and_hooks_see_gradients(chars):
    seen = []
    model = language_model()

    def on_step(step, history):
        seen.append((step, len(history.loss), model.head.weight.grad is not None))

    history = train(model, batches(chars, 4, seed=0), steps=5, seed=0, load_every=2, on_step=on_step)
    assert seen == [(step, step + 1, True) for step in range(5)]
    for records in history.load.values():
        assert [sum(counts) for counts in records] == [2 * 128, 2 * 128, 128]
    assert all(sum(share) == pytest.approx(1.0) for share in history.shares().values())
    assert len(history.ms) == len(history.grad_norm) == 5
    assert history.num_parameters == sum(p.numel() for p in model.parameters())


def test_it_learns_one_map_a_domain():
    corpus = Regress(2, 8, spread=2.0, noise=0.5)
    with seeded(0):
        net = TinyNet(8, 8, 8, 1, 0, lambda layer: MoE(8, 16, 4), project=False)
    before = evaluate(net, batches(corpus, 16, seed=1), min_tokens=2_000)
    history = train(net, batches(corpus, 16, seed=0), steps=120, lr=1e-2, seed=0)
    after = evaluate(net, batches(corpus, 16, seed=1), min_tokens=2_000)
    assert after.loss < 0.3 * before.loss
    assert history.last() < 0.4 * history.loss[0]
    assert set(after.domain_loss) == {0, 1}
    assert after.bits is None
    assert after.accuracy is None
    (information,) = after.information.values()
    assert 0.1 < information <= math.log(2) + 1e-9


def test_readouts_by_hand():
    corpus = Regress(2, 4, length=8, spread=50.0, noise=0.1)
    with seeded(0):
        net = TinyNet(4, 4, 4, 1, 0, lambda layer: MoE(4, 4, 2, select=TopK(1), gate=Raw()), project=False)
    layer = net.stack.blocks[0].ffn
    centre = torch.from_numpy(corpus.centre_CD)
    direction = centre[0] / centre[0].norm() - centre[1] / centre[1].norm()
    with torch.no_grad():
        layer.router.scorer.weight.copy_(torch.stack([direction, -direction]))
    found = evaluate(net, batches(corpus, 25, seed=0), min_tokens=1_000)
    share = torch.cat([b.domain_B for b in itertools.islice(batches(corpus, 25, seed=0), 5)]).double().mean()
    (name,) = found.mean_k
    assert found.tokens == 1_000
    assert found.mean_k[name] == 1.0
    assert found.max_vio[name] == pytest.approx(2 * max(share, 1 - share) - 1)
    entropy = -(share * share.log() + (1 - share) * (1 - share).log())
    assert found.information[name] == pytest.approx(float(entropy)), "the expert tells the domain"
    # expert: 8 x 4 and 4 x 4; router 2 x 4; head 4 x 4
    assert found.flops == 2 * (32 + 16 + 8 + 16)
    assert net.training


def test_active_arithmetic_of_a_dense_transformer():
    model = TinyLM(11, 8, 1, 2, lambda layer: FeedForward(8, 6), context=5)
    matrices = 8 * 24 + 8 * 8 + 8 * 12 + 6 * 8 + 8 * 11
    assert active_flops(model, {}, length=5) == 2 * matrices + 4 * 8 * 3


def test_what_is_not_asked_is_not_judged():
    corpus = TwoHop(3, 5, problems=2)
    with seeded(0):
        model = TinyLM(corpus.vocab, 8, 1, 2, lambda layer: FeedForward(8, 8))
    batch = next(batches(corpus, 8, seed=0))
    found = evaluate(model, [batch])
    logits = model(batch.x)[:, 2::3].detach().flatten(0, 1)
    answer = batch.y[:, 2::3].flatten()
    assert found.loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits, answer)), rel=1e-5)
    assert found.bits == pytest.approx(found.loss / math.log(2))
    assert found.accuracy == pytest.approx(float((logits.argmax(-1) == answer).float().mean()))
    assert float(task_loss(model, batch).detach()) == pytest.approx(found.loss, rel=1e-5)
    tasks = LinearTasks(2, 3, pairs=4)
    with seeded(0):
        net = TinyNet(tasks.width, 1, 8, 1, 2, lambda layer: FeedForward(8, 8))
    batch = next(batches(tasks, 8, seed=0))
    expected = (net(batch.x) - batch.y)[:, 0::2].detach().square().mean()
    assert evaluate(net, [batch]).loss == pytest.approx(float(expected), rel=1e-5)
    assert float(task_loss(net, batch).detach()) == pytest.approx(float(expected), rel=1e-5)


def test_fluctuation_counts_changed_places(chars):
    model, text = language_model(), [next(batches(chars, 8, seed=3))]
    before = routes(model, text)
    assert [len(top) for top in before.values()] == [128, 128]
    assert fluctuation_between(before, routes(model, text)) == 0.0
    changed = {name: top.clone() for name, top in before.items()}
    next(iter(changed.values()))[:32] += 1
    assert fluctuation_between(before, changed) == 32 / 256
    with pytest.raises(ConfigError, match="after"):
        fluctuation_between(before, {})


def test_the_rate_rises_and_falls():
    rate = [schedule(step / 100, 100, 0.1, 0.1) for step in range(100)]
    assert rate[0] == pytest.approx(0.1)
    assert max(rate) == pytest.approx(rate[9])
    assert rate == rate[:9] + sorted(rate[9:], reverse=True)
    assert rate[-1] == pytest.approx(0.1, abs=0.01)


def test_decay_is_for_matrices_and_frozen_weights_stay(chars):
    model = language_model()
    model.tokens.weight.requires_grad_(False)
    optimizer, before = adamw(model, weight_decay=0.3), model.tokens.weight.clone()
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    train(model, batches(chars, 4, seed=0), steps=2, seed=0, optimizer=optimizer)
    assert torch.equal(model.tokens.weight, before)
    assert optimizer.state[model.head.weight]["step"] == 2


def test_a_time_limit_ends_it(chars):
    history = train(language_model(), batches(chars, 4, seed=0), steps=10**6, seed=0, seconds=0.2)
    assert 1 <= len(history.loss) < 10**5


def test_it_shows_progress_when_asked(chars, capsys, monkeypatch):
    clock = itertools.count(0, 5)
    monkeypatch.setattr("polyroute.nn.testbed.time.monotonic", lambda: next(clock))
    train(language_model(), batches(chars, 2, seed=0), steps=5, seed=0, progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("training: 1 of 5  loss ")
    train(language_model(), batches(chars, 2, seed=0), steps=5, seed=0)
    assert capsys.readouterr().err == ""


def test_bad_runs_say_why(chars):
    model = language_model()
    with pytest.raises(ConfigError, match="an end after 2 steps"):
        train(model, itertools.islice(batches(chars, 2, seed=0), 2), steps=3, seed=0)
    with pytest.raises(ConfigError, match="steps"):
        train(model, batches(chars, 2, seed=0), steps=0, seed=0)
    with pytest.raises(ConfigError, match="at least one"):
        evaluate(model, [])
    net = TinyNet(4, 9, 8, 1, 0, lambda layer: FeedForward(8, 8))
    with torch.no_grad():
        net.head.bias.fill_(math.inf)
    with pytest.raises(ConfigError, match="loss: expected a finite number"):
        train(net, batches(Memory(10, 4, values=9), 2, seed=0), steps=1, seed=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_follow_the_model_to_its_device(chars):
    model = language_model(aux=[LBL(0.01)]).cuda()
    history = train(model, batches(chars, 4, seed=0), steps=3, seed=0)
    found = evaluate(model, batches(chars, 4, seed=1), min_tokens=200)
    assert len(history.loss) == 3
    assert found.loss > 0
