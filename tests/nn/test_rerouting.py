"""Vectors fitted to one sequence, experts pushed for a while: what moves, what does not, and that nothing stays."""

from __future__ import annotations

import math
from contextlib import suppress

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'polyroute[nn]'")

import torch
from torch import nn

from polyroute.errors import ConfigError, ShapeError, UnknownNameError
from polyroute.nn.corpora import Batch
from polyroute.nn.gates import Hard, Raw
from polyroute.nn.moe import MoE
from polyroute.nn.rerouting import TestTimeRerouter, find_experts, selection_surprise, steering
from polyroute.nn.selection import TopK
from polyroute.nn.testbed import seeded
from polyroute.nn.transformer import TinyLM

pytestmark = pytest.mark.torch


def small_lm() -> TinyLM:
    with seeded(0):
        return TinyLM(11, 16, 3, 2, lambda layer: MoE(16, 8, 4), context=24).train()


def ids(length: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(11, (1, length), generator=torch.Generator().manual_seed(seed))


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}


def test_the_first_step_of_adam_goes_down_the_gradient_by_the_rate():
    with seeded(0):
        layer = MoE(6, 4, 5, select=TopK(5))
    x, y = torch.randn(1, 7, 6), torch.randn(1, 7, 6)
    shift = torch.zeros(5, requires_grad=True)
    probs = (layer.router.scorer(x[0]) + shift).softmax(-1)  # with all experts the gates are the softmax
    w1, w2, act = layer.pool.weights()
    out = sum(probs[:, e : e + 1] * (act.forward(x[0] @ w1[e].T) @ w2[e]) for e in range(5))
    (gradient,) = torch.autograd.grad((out - y[0]).square().mean(), shift)
    batch = Batch(x, y, torch.zeros(1, dtype=torch.int64))
    with TestTimeRerouter(layer, lr=0.05, steps=1).rewired(batch) as rewiring:
        torch.testing.assert_close(rewiring.delta[""], -0.05 * gradient.sign(), rtol=1e-3, atol=1e-5)
        with torch.no_grad():
            layer(x)
        torch.testing.assert_close(layer.routing.logits_TE, layer.router.scorer(x[0]) - 0.05 * gradient.sign())


def test_nothing_but_the_vectors_moves_and_nothing_is_left():
    model, prompt = small_lm(), ids(16)
    model.stack.blocks[0].ffn.pool.w1_EGD.requires_grad_(False)  # stays frozen
    before, trained = snapshot(model), [p.requires_grad for p in model.parameters()]
    with torch.no_grad():
        plain = model(prompt)
    rerouter = TestTimeRerouter(model, lr=0.3, steps=4)
    with suppress(InterruptedError), rerouter.rewired(prompt) as rewiring:
        assert model.training
        assert rewiring.loss[-1] < rewiring.loss[0]
        assert all(0 < float(delta.abs().max()) <= 0.3 * 4 * 1.01 for delta in rewiring.delta.values())
        with torch.no_grad():
            assert not torch.equal(model(prompt), plain)
        raise InterruptedError
    with torch.no_grad():
        assert torch.equal(model(prompt), plain)
    assert snapshot(model).keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in snapshot(model).items())
    assert [p.requires_grad for p in model.parameters()] == trained
    assert all(p.grad is None for p in model.parameters())


def test_a_sequence_knows_nothing_of_the_one_before():
    rerouter = TestTimeRerouter(small_lm())
    with rerouter.rewired(ids(16, seed=2)) as alone:
        pass
    with rerouter.rewired(ids(16, seed=3)):
        pass
    with rerouter.rewired(ids(16, seed=2)) as again:
        pass
    assert alone.loss == again.loss
    assert all(torch.equal(alone.delta[name], again.delta[name]) for name in alone.delta)


@pytest.mark.parametrize(("prefer", "place"), [("high_C", max), ("low_C", min)])
def test_only_the_preferred_layers_are_fitted(prefer, place):
    rerouter = TestTimeRerouter(small_lm(), ratio=0.34, prefer=prefer)
    with rerouter.rewired(ids(16)) as rewiring:
        assert rewiring.chosen == (place(rewiring.confidence, key=rewiring.confidence.__getitem__),)
        moved = [name for name, delta in rewiring.delta.items() if delta.any()]
    assert tuple(moved) == rewiring.chosen


def test_surprise_of_flat_and_sure_routers():
    layer = MoE(4, 4, 8)
    with torch.no_grad():
        layer.router.scorer.weight.zero_()
        layer(torch.ones(3, 4))
        assert selection_surprise(layer.routing) == pytest.approx(math.log(8))
        sure = MoE(4, 4, 4, select=TopK(1), gate=Raw())
        sure.router.scorer.weight.copy_(100 * torch.eye(4))
        sure(torch.eye(4))
    assert selection_surprise(sure.routing) == pytest.approx(0, abs=1e-6)


def test_generating_fits_every_so_many_tokens_and_reads_a_window():
    model, prompt = small_lm(), ids(20)
    written, fits = TestTimeRerouter(model, every=3, lr=0.3).generate(prompt, 7)
    assert written.shape == (1, 27)  # beyond the model's 24
    assert torch.equal(written[:, :20], prompt)
    assert len(fits) == 3
    with TestTimeRerouter(model, every=3, lr=0.3).rewired(prompt) as first, torch.no_grad():
        assert torch.equal(fits[0].delta["stack.blocks.0.ffn"], first.delta["stack.blocks.0.ffn"])
        assert int(model(prompt)[0, -1].argmax()) == int(written[0, 20])
    again, _ = TestTimeRerouter(model, every=3, lr=0.3).generate(prompt, 7)
    assert torch.equal(written, again)
    assert model.training


def test_where_no_gradient_can_reach_is_told():
    for bad in (MoE(4, 4, 4, gate=Hard()), MoE(4, 4, 4, select=TopK(1), gate=Raw())):
        if isinstance(bad.router.gate, Raw):
            TestTimeRerouter(bad)
            continue
        with pytest.raises(ConfigError, match="a gate that depends on the logits"):
            TestTimeRerouter(bad)
    with pytest.raises(ConfigError, match="no MoE layer"):
        TestTimeRerouter(nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="prefer"):
        TestTimeRerouter(small_lm(), prefer="high")
    with pytest.raises(ConfigError, match="ratio"):
        TestTimeRerouter(small_lm(), ratio=0.0)
    with pytest.raises(ConfigError, match="steps"):
        TestTimeRerouter(small_lm(), steps=0)


def test_one_sequence_at_a_time():
    rerouter = TestTimeRerouter(small_lm())
    with pytest.raises(ShapeError), rerouter.rewired(torch.zeros(2, 8, dtype=torch.int64)):
        pass
    with pytest.raises(ShapeError), rerouter.rewired(torch.zeros(1, 1, dtype=torch.int64)):
        pass


def test_steering_lifts_the_given_experts_inside_only():
    model, prompt = small_lm(), ids(16)
    layer = model.stack.blocks[1].ffn
    with torch.no_grad():
        plain = model(prompt)
        logits, count = layer.routing.logits_TE, layer.routing.count_E
        with steering(model, {"stack.blocks.1.ffn": [3]}, strength=0.5):
            model(prompt)
            lifted = layer.routing.logits_TE
        torch.testing.assert_close(lifted[:, 3], logits[:, 3] + 0.5 * logits.std(-1))
        assert torch.equal(lifted[:, :3], logits[:, :3])
        with steering(model, {"stack.blocks.1.ffn": [0, 3]}, mode="hard"):
            model(prompt)
            assert layer.routing.count_E[[0, 3]].sum() > count[[0, 3]].sum()
            torch.testing.assert_close(layer.routing.logits_TE[:, 0], logits.max(-1).values, rtol=0, atol=1e-4)
        assert torch.equal(model(prompt), plain)


def test_what_cannot_be_steered_is_told():
    model = small_lm()
    for wrong, error in (({"block": [0]}, UnknownNameError), ({"stack.blocks.0.ffn": [4]}, ConfigError)):
        with pytest.raises(error), steering(model, wrong):
            pass
    with pytest.raises(ConfigError, match="at most 2"), steering(model, {"stack.blocks.0.ffn": [0, 1, 2]}, mode="hard"):
        pass
    assert len(model.stack.blocks[0].ffn.router.mods) == 0


def test_experts_are_those_the_task_uses_more():
    task, base = {"a": [0.9, 0.5, 0.1], "b": [0.4, 0.0, 0.0]}, {"a": [0.5, 0.3, 0.5], "b": [0.0, 0.0, 0.0]}
    assert find_experts(task, base, tau=0.3) == {"a": [0], "b": [0]}
    assert find_experts(task, base, tau=0.1, layers=["a"]) == {"a": [0, 1]}
    with pytest.raises(UnknownNameError):
        find_experts(task, {"a": [0.0, 0.0, 0.0]})
