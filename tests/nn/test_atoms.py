"""One-neuron experts: every executor against every atom on every token, and against plain experts of width one."""

from __future__ import annotations

import copy

import pytest

from polyroute.errors import ConfigError, ShapeError, UnknownNameError

torch = pytest.importorskip("torch")

from polyroute.nn.atoms import ATOM_EXECUTORS, AtomBank, fastest, grouped  # noqa: E402
from polyroute.nn.gates import Raw  # noqa: E402
from polyroute.nn.moe import MoE  # noqa: E402
from polyroute.nn.normalise import ProductLogSoftmax  # noqa: E402
from polyroute.nn.routing import TokenContext  # noqa: E402
from polyroute.nn.scorers import ProductKeys  # noqa: E402
from polyroute.nn.selection import Positive, ProductTopK, TopK, TopP  # noqa: E402

pytestmark = pytest.mark.torch
D, N, T = 12, 64, 40
OTHERS = sorted(set(ATOM_EXECUTORS) - {"dense"})


def layer(select, out=None, act="silu", seed=0):
    torch.manual_seed(seed)
    return MoE(D, 1, N, select=select, gate=Raw(), pool=AtomBank(D, N, out=out, act=act), shared=8, out=out)


def passed(moe, x, name, context=None):
    moe = copy.deepcopy(moe)
    moe.executor = name
    x = x.clone().requires_grad_()
    y = moe(x, context=context)
    (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(5))).sum().backward()
    grads = {name: torch.zeros(()) if p.grad is None else p.grad for name, p in moe.named_parameters()}
    return {"y": y.detach(), "x": x.grad, **grads}


@pytest.mark.parametrize("name", [*OTHERS, "auto"])
@pytest.mark.parametrize("select", [TopK(1), TopK(4), TopP(0.3), TopK(N), Positive()], ids=repr)
@pytest.mark.parametrize("act", ["silu", "relu"])
def test_every_executor_gives_the_outputs_and_gradients_of_every_atom_asked(name, select, act):
    moe, x = layer(select, out=7, act=act), torch.randn(T, D, generator=torch.Generator().manual_seed(1))
    for key, value in passed(moe, x, "dense").items():
        torch.testing.assert_close(passed(moe, x, name)[key], value, rtol=1e-5, atol=1e-5, msg=lambda m, k=key: k + m)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("case", ["one token", "one atom", "padding", "nobody"])
def test_executors_agree_at_the_edges(name, case):
    moe, x, context = layer(TopK(2)), torch.randn(T, D, generator=torch.Generator().manual_seed(2)), None
    if case == "one token":
        x = x[:1]
    if case == "one atom":
        moe = layer(TopK(1))
        with torch.no_grad():
            moe.router.scorer.weight.zero_()  # ties go to the first
    if case in ("padding", "nobody"):
        context = TokenContext(x, (4, T // 4), valid_T=torch.arange(T) % 10 < (6 if case == "padding" else 0))
    oracle = passed(moe, x, "dense", copy.copy(context))
    for key, value in passed(moe, x, name, copy.copy(context)).items():
        torch.testing.assert_close(value, oracle[key], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("group", [1, 3, 64, 1000])
def test_groups_of_any_size_change_nothing(group):
    moe, x = layer(TopK(4)), torch.randn(T, D, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        routing = moe.router(TokenContext(x, (1, T)))
        bank = moe.pool
        y = grouped(x, routing, bank.w_ND, bank.v_NO, bank.act, group)
        torch.testing.assert_close(y, bank(x, routing, "dense"), rtol=1e-5, atol=1e-5)


def test_an_atom_is_an_expert_of_width_one():
    bank, x = AtomBank(D, N), torch.randn(T, D, generator=torch.Generator().manual_seed(4))
    torch.manual_seed(0)
    plain = MoE(D, 1, N, select=TopK(4), gate=Raw(), act="silu")
    with torch.no_grad():
        plain.pool.w1_EGD.copy_(bank.w_ND[:, None])
        plain.pool.w2_EFO.copy_(bank.v_NO[:, None])
        y = plain(x)
        torch.testing.assert_close(bank(x, plain.routing), y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", sorted(ATOM_EXECUTORS))
def test_half_precision_stays_near_and_keeps_its_type(name):
    moe, x = layer(TopK(4)), torch.randn(T, D, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        routing = moe.router(TokenContext(x, (1, T)))
        exact = moe.pool(x, routing, "dense")
        y = moe.pool(x.bfloat16(), routing, name)
    assert y.dtype == torch.bfloat16
    assert float((y.float() - exact).norm() / exact.norm()) < 0.02


def test_the_router_of_product_keys_learns_through_every_executor():
    torch.manual_seed(0)
    moe = MoE(D, 1, N, scorer=ProductKeys(8, 8), norm=ProductLogSoftmax(), select=ProductTopK(4), pool=AtomBank(D, N))
    x = torch.randn(T, D)
    for name in OTHERS:
        grads = passed(moe, x, name)
        assert float(grads["router.scorer.row.weight"].abs().sum()) > 0


def test_the_choice_of_executor_follows_how_much_is_fetched():
    class Fake:
        def __init__(self, pairs, tokens):
            self.exp_N, self.num_tokens = torch.empty(pairs, dtype=torch.int64), tokens

    assert fastest(Fake(64 * 16, 64), 64, 32) == "dense"
    assert fastest(Fake(64 * 16, 64), 16384, 256) == "embedding_bag"
    assert fastest(Fake(2048 * 16, 2048), 4096, 256) == "grouped"


def test_what_cannot_work_is_refused():
    with pytest.raises(ConfigError, match="not gated"):
        AtomBank(D, N, act="swiglu")
    with pytest.raises(ConfigError, match="num_experts"):
        AtomBank(D, 0)
    moe = layer(TopK(2))
    moe(torch.randn(3, D))
    with pytest.raises(UnknownNameError, match="embedding_bag"):
        moe.pool(torch.randn(3, D), moe.routing, "embeding_bag")
    with pytest.raises(ShapeError, match="x"):
        moe.pool(torch.randn(3, D + 1), moe.routing)
    with pytest.raises(ShapeError, match="count_E"):
        AtomBank(D, N + 1)(torch.randn(3, D), moe.routing)
