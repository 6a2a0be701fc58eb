"""The neuron-sparse executor equals the oracle in outputs and all gradients, and reads only what it needs."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'polyroute[nn]'")

import torch

from polyroute.nn.dispatch import dense
from polyroute.nn.experts import Experts
from polyroute.nn.moe import Router
from polyroute.nn.routing import TokenContext
from polyroute.nn.selection import Positive, TopK, TopP
from polyroute.nn.sparse import neuron_sparse, neuron_sparsity

pytestmark = pytest.mark.torch


def setup(act, select, num_tokens, dtype=torch.float64):
    torch.manual_seed(0)
    router = Router(8, 5, select=select)
    pool = Experts(8, 12, 5, act=act).to(dtype)
    x = torch.randn(num_tokens, 8, dtype=dtype, requires_grad=True)
    return router, pool, x


def run(execute, router, pool, x):
    routing = router(TokenContext(x, (1, len(x))))
    y = execute(x, routing, pool.weights())
    asked = [x, *pool.parameters(), router.scorer.weight]
    return y, torch.autograd.grad(y.float().square().sum() if y.numel() else y.sum(), asked, allow_unused=True)


@pytest.mark.parametrize("act", ["reglu", "relu", "swiglu", "gelu"])
@pytest.mark.parametrize(("select", "num_tokens"), [(TopK(2), 1), (TopK(2), 9), (TopP(0.5), 7), (TopK(5), 3)])
def test_it_equals_the_dense_oracle_in_outputs_and_gradients(act, select, num_tokens):
    parts = setup(act, select, num_tokens)
    (y, grads), (oracle, expected) = run(neuron_sparse, *parts), run(dense, *parts)
    torch.testing.assert_close(y, oracle, rtol=1e-6, atol=1e-7)  # gates are fp32
    for got, want in zip(grads, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


def test_tokens_without_experts_and_no_tokens_give_zeros():
    router, pool, x = setup("reglu", Positive(), 4)
    with torch.no_grad():
        router.scorer.weight.zero_()
        routing = router(TokenContext(x, (1, 4)))
        routing.tok_N, routing.exp_N, routing.gate_N = (v[:0] for v in (routing.tok_N, routing.exp_N, routing.gate_N))
        routing.count_E = torch.zeros(5, dtype=torch.int64)
        assert torch.equal(neuron_sparse(x, routing, pool.weights()), torch.zeros(4, 8, dtype=x.dtype))


def test_an_unused_neuron_is_never_read():
    router, pool, x = setup("reglu", TopK(2), 1)
    with torch.no_grad():
        routing = router(TokenContext(x, (1, 1)))
        before = neuron_sparse(x, routing, pool.weights())
        gate_EF = torch.einsum("efd,d->ef", pool.w1_EGD[:, :12], x[0])
        idle_EF = gate_EF <= 0
        assert 0 < int(idle_EF.sum()) < idle_EF.numel()
        pool.w1_EGD[:, 12:][idle_EF] = torch.nan
        pool.w2_EFO[idle_EF] = torch.nan
        assert torch.equal(neuron_sparse(x, routing, pool.weights()), before)
        assert dense(x, routing, pool.weights()).isnan().all()


def test_sparsity_is_the_share_of_idle_neurons_of_each_pair():
    router, pool, x = setup("reglu", TopK(2), 6)
    with torch.no_grad():
        routing = router(TokenContext(x, (1, 6)))
        found = neuron_sparsity(x, routing, pool.weights())
        by_hand = [
            float((pool.w1_EGD[e, :12] @ x[t] <= 0).double().mean())
            for t, e in zip(routing.tok_N.tolist(), routing.exp_N.tolist(), strict=True)
        ]
        assert found.tolist() == pytest.approx(by_hand)
        silu = Experts(8, 12, 5, act="swiglu").double()
        assert float(neuron_sparsity(x, routing, silu.weights()).max()) == 0.0
        assert float(neuron_sparsity(x, routing, silu.weights(), threshold=1e9).min()) == 1.0


def test_low_precision_stays_close_and_keeps_its_type():
    router, pool, x = setup("reglu", TopK(2), 3, torch.bfloat16)
    with torch.no_grad():
        routing = router(TokenContext(x, (1, 3)))
        y = neuron_sparse(x, routing, pool.weights())
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y, dense(x, routing, pool.weights()), rtol=0.05, atol=0.05)
