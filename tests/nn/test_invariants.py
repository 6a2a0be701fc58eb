"""The seven invariants of every mixture-of-experts layer, over all combinations of stock parts that make sense."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from polyroute.nn.dispatch import EXECUTORS, Weights, dense  # noqa: E402
from polyroute.nn.gates import ChosenSoftmax, Hard, Raw, Renorm  # noqa: E402
from polyroute.nn.inputs import Hidden, Pooled, PreAttention, Recurrent  # noqa: E402
from polyroute.nn.losses import LBL  # noqa: E402
from polyroute.nn.moe import MoE, RouterGradientWarning, aux_losses  # noqa: E402
from polyroute.nn.normalise import (  # noqa: E402
    CandidateMask,
    Delta,
    Noise,
    ProductLogSoftmax,
    ReLURMS,
    SelectionBias,
    Sigmoid,
    Softmax,
    Steer,
)
from polyroute.nn.routing import TokenContext  # noqa: E402
from polyroute.nn.scorers import MLP, Cosine, Linear, ProductKeys  # noqa: E402
from polyroute.nn.selection import (  # noqa: E402
    Capacity,
    ExpertChoice,
    GroupTopK,
    Positive,
    ProductTopK,
    TopK,
    TopP,
)

pytestmark = pytest.mark.torch

D, F, E, B, L = 16, 8, 9, 3, 7
T = B * L
INPUTS = {
    "hidden": Hidden(),
    "pre-attention": PreAttention(),
    "pooled": Pooled(),
    "pooled-causal": Pooled(causal=True),
    "recurrent": "recurrent",  # needs a cell of its own for each layer built
}
SCORERS = {"linear": Linear(), "bias": Linear(bias=True), "mlp": MLP(), "cosine": Cosine(width=5)}
NORMS = {"softmax": Softmax(), "sigmoid": Sigmoid(), "relu-rms": ReLURMS()}
MODS: dict[str, list[Any]] = {
    "none": [],
    "noise": [Noise(learned=True)],
    "delta+steer": [Delta(), Steer()],
    "mask+bias": [CandidateMask((0, 6), 0, 10), SelectionBias()],
}
SELECTIONS = {
    "top2": TopK(2),
    "top2-logits": TopK(2, on="logits"),
    "top1": TopK(1),
    "all": TopK(E),
    "groups": GroupTopK(2, 3, 2),
    "top-p": TopP(0.4),
    "top-p-2": TopP(0.7, k_max=2),
    "positive": Positive(),
    "expert-choice": ExpertChoice(2.0),
    "capacity": Capacity(TopK(2), 1.0),
}
GATES = {"raw": Raw(), "renorm": Renorm(), "hard": Hard(0.5), "chosen-softmax": ChosenSoftmax(), "scaled": Renorm(2.5)}
BATCH_DEPENDENT = ("expert-choice", "capacity")  # what one token gets depends on the others, by design


def sensible(inp: str, scorer: str, norm: str, mods: str, select: str, gate: str) -> bool:
    """Leave out what nobody would build."""
    if norm == "relu-rms" and (
        select not in ("positive", "top2", "top2-logits") or gate in ("chosen-softmax", "renorm", "scaled")
    ):
        return False  # rows may be all zero
    if select.startswith("top-p") and norm != "softmax":
        return False  # needs one unit of mass
    if select == "positive" and norm != "relu-rms":
        return False  # every softmax or sigmoid is positive
    if mods == "mask+bias" and select in ("all", "expert-choice", "groups"):
        return False  # a closed expert must not be taken
    if inp.startswith("pooled") and select == "expert-choice":
        return False  # all tokens of a sequence tie
    return not (select == "top1" and gate in ("renorm", "scaled", "chosen-softmax"))  # constant; has its own test


def combinations() -> list[tuple[str, ...]]:
    """Every sensible pair of choices: each selection with each gate and norm, the other parts in turn."""
    rest = itertools.cycle(itertools.product(INPUTS, SCORERS, MODS))
    found = []
    for select, gate, norm in itertools.product(SELECTIONS, GATES, NORMS):
        for _ in range(2):
            inp, scorer, mods = next(rest)
            if sensible(inp, scorer, norm, mods, select, gate):
                found.append((inp, scorer, norm, mods, select, gate))
    return found


COMBINATIONS = combinations()


def layer(combination: tuple[str, ...], seed: int = 0, **options: Any) -> MoE:
    inp, scorer, norm, mods, select, gate = combination
    torch.manual_seed(seed)
    source = Recurrent(torch.nn.GRUCell(6, 6)) if inp == "recurrent" else INPUTS[inp]
    made = MoE(
        D, F, E, inp=source, scorer=SCORERS[scorer], norm=NORMS[norm], mods=MODS[mods], select=SELECTIONS[select],
        gate=GATES[gate], **options,
    )  # fmt: skip
    return made.eval()  # noise and counts are for training


def tokens(seed: int = 1, dtype: torch.dtype = torch.float32) -> tuple[Any, TokenContext]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(B, L, D, generator=generator).to(dtype)
    before = torch.randn(T, D, generator=generator).to(dtype)
    return x, TokenContext(x.reshape(T, D), (B, L), pre_attention_TD=before)


def outputs_and_gradients(moe: MoE, name: str, dtype: torch.dtype = torch.float32) -> list[Any]:
    """y, then the gradient of x and of every parameter (0 where there is none)."""
    moe.executor = name
    moe.zero_grad()
    x, ctx = tokens(dtype=dtype)
    x.requires_grad_()
    y = moe(x, context=ctx)
    weight = torch.linspace(-1, 1, y.shape[-1], dtype=dtype)
    (y.float() * weight.float() * y.float()).sum().backward()
    return [y.detach(), x.grad, *(p.grad if p.grad is not None else torch.zeros_like(p) for p in moe.parameters())]


def assert_near(got: Any, expected: Any) -> None:
    """Equal within 1e-5 of the tensor's largest number, what fp32 sums in another order may differ by."""
    scale = max(1.0, float(expected.detach().abs().max())) if expected.numel() else 1.0
    torch.testing.assert_close(got, expected, atol=1e-5 * scale, rtol=1e-5)


@pytest.mark.parametrize("combination", COMBINATIONS, ids="-".join)
def test_3_every_executor_equals_the_dense_oracle(combination: tuple[str, ...]) -> None:
    moe = layer(combination)
    oracle = outputs_and_gradients(moe, "dense")
    for name in EXECUTORS:
        for got, expected in zip(outputs_and_gradients(moe, name), oracle, strict=True):
            assert_near(got, expected)


@pytest.mark.parametrize("combination", COMBINATIONS[::5], ids="-".join)
@pytest.mark.parametrize("name", [name for name in EXECUTORS if name != "dense"])
def test_3_bf16_stays_near_the_fp32_oracle(combination: tuple[str, ...], name: str) -> None:
    moe = layer(combination, executor=name)
    moe.pool.to(torch.bfloat16)
    x, ctx = tokens(dtype=torch.bfloat16)
    with torch.no_grad():
        got = moe(x, context=ctx)
        widened = Weights(moe.pool.w1_EGD.float(), moe.pool.w2_EFO.float(), moe.pool.act)
        exact = dense(x.reshape(T, D).float(), moe.routing, widened)
    assert got.dtype == torch.bfloat16
    scale = float(exact.abs().max()) + 1e-3
    assert float((got.reshape(T, -1).float() - exact).abs().max()) <= 0.03 * scale


INDEPENDENT = [c for c in COMBINATIONS if c[4] not in BATCH_DEPENDENT and "pooled" not in c[0]]


@pytest.mark.parametrize("combination", INDEPENDENT, ids="-".join)
def test_4_permuting_tokens_permutes_outputs(combination: tuple[str, ...]) -> None:
    moe = layer(combination)
    x, ctx = tokens()
    order = torch.randperm(T, generator=torch.Generator().manual_seed(2))
    before = moe(x, context=ctx).reshape(T, -1)
    moved = TokenContext(ctx.x_TD, (1, T), pre_attention_TD=ctx.pre_attention_TD[order])
    after = moe(x.reshape(1, T, D)[:, order], context=moved)[0]
    torch.testing.assert_close(after, before[order], atol=1e-5, rtol=1e-5)


def test_4_fails_by_design_where_tokens_compete() -> None:
    moe = layer(("hidden", "linear", "softmax", "none", "capacity", "raw"))
    x, ctx = tokens()
    order = torch.arange(T - 1, -1, -1)
    before = moe(x, context=ctx).reshape(T, -1)
    after = moe(x.reshape(1, T, D)[:, order])[0]
    assert not torch.allclose(after, before[order], atol=1e-4)


@pytest.mark.parametrize("combination", COMBINATIONS, ids="-".join)
def test_5_padding_changes_nothing(combination: tuple[str, ...]) -> None:
    moe = layer(combination)
    x, ctx = tokens()
    alone = moe(x, context=ctx)
    counts = moe.routing.count_E.clone()
    generator = torch.Generator().manual_seed(3)
    padded = torch.cat([x, 50 * torch.randn(B, 2, D, generator=generator)], dim=1)
    valid = torch.arange(L + 2).expand(B, -1) < L
    before = torch.cat([ctx.pre_attention_TD.reshape(B, L, D), torch.zeros(B, 2, D)], dim=1)
    filled = TokenContext(
        padded.reshape(-1, D), (B, L + 2), pre_attention_TD=before.reshape(-1, D), valid_T=valid.reshape(-1)
    )
    y = moe(padded, context=filled)
    torch.testing.assert_close(y[:, :L], alone, atol=1e-5, rtol=1e-5)
    assert bool((y[:, L:] == 0).all())
    assert counts.tolist() == moe.routing.count_E.tolist()


@pytest.mark.parametrize("norm", ["softmax", "sigmoid"])
@pytest.mark.parametrize("name", list(EXECUTORS))
def test_1_all_experts_with_renorm_is_the_dense_mixture(norm: str, name: str) -> None:
    moe = layer(("hidden", "linear", norm, "none", "all", "renorm"), executor=name)
    x, _ = tokens()
    x_TD = x.reshape(T, D)
    score = (x_TD @ moe.router.scorer.weight.T).softmax(-1) if norm == "softmax" else (
        x_TD @ moe.router.scorer.weight.T).sigmoid()  # fmt: skip
    gate = score / score.sum(-1, keepdim=True)
    h = torch.einsum("td,egd->teg", x_TD, moe.pool.w1_EGD)
    each = torch.einsum("tef,efo->teo", torch.nn.functional.silu(h[..., :F]) * h[..., F:], moe.pool.w2_EFO)
    torch.testing.assert_close(moe(x).reshape(T, D), (gate[..., None] * each).sum(1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("select", ["top2", "top-p", "groups", "expert-choice", "all"])
@pytest.mark.parametrize("name", list(EXECUTORS))
def test_2_identical_experts_with_renorm_are_one_expert(select: str, name: str) -> None:
    moe = layer(("hidden", "linear", "softmax", "none", select, "renorm"), executor=name)
    with torch.no_grad():
        moe.pool.w1_EGD.copy_(moe.pool.w1_EGD[:1].expand_as(moe.pool.w1_EGD))
        moe.pool.w2_EFO.copy_(moe.pool.w2_EFO[:1].expand_as(moe.pool.w2_EFO))
    x, _ = tokens()
    h = x @ moe.pool.w1_EGD[0].T
    one = (torch.nn.functional.silu(h[..., :F]) * h[..., F:]) @ moe.pool.w2_EFO[0]
    used = torch.zeros(T, dtype=torch.bool)
    y = moe(x)
    used[moe.routing.tok_N] = True  # expert choice may leave a token out
    torch.testing.assert_close(y.reshape(T, D)[used], one.reshape(T, D)[used], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", ["empty-experts", "one-token", "all-to-one", "no-pairs"])
@pytest.mark.parametrize("name", [name for name in EXECUTORS if name != "dense"])
def test_3_extremes_equal_the_oracle(case: str, name: str) -> None:
    torch.manual_seed(4)
    norm, select = (
        (ReLURMS(), Positive()) if case == "no-pairs" else (Softmax(), TopK(1 if case == "all-to-one" else 2))
    )
    moe = MoE(D, F, E, norm=norm, select=select, gate=Raw())
    num = 1 if case == "one-token" else T
    with torch.no_grad():
        if case == "all-to-one":
            moe.router.scorer.weight.copy_(torch.zeros(E, D)), moe.router.scorer.weight[3].fill_(1.0)
        elif case == "empty-experts":
            moe.router.scorer.weight[4:].zero_(), moe.router.scorer.weight[:, 0].copy_(-100 * (torch.arange(E) >= 4.0))
        elif case == "no-pairs":
            moe.router.scorer.weight.fill_(-1.0)
    results = []
    for executor in ("dense", name):
        moe.executor = executor
        moe.zero_grad()
        x = torch.rand(num, D, generator=torch.Generator().manual_seed(5)).requires_grad_()
        y = moe(x)
        y.square().sum().backward()
        results.append([y.detach(), x.grad, *(p.grad for p in moe.parameters() if p.grad is not None)])
    if case == "empty-experts":
        assert moe.routing.count_E[4:].sum() == 0
    if case == "all-to-one":
        assert moe.routing.count_E[3] == num
    if case == "no-pairs":
        assert len(moe.routing.exp_N) == 0
        assert bool((results[1][0] == 0).all())
    for got, expected in zip(results[1], results[0], strict=True):
        assert_near(got, expected)


@pytest.mark.parametrize("combination", [c for c in COMBINATIONS if c[2] == "softmax" and c[3] != "mask+bias"][::2],
                         ids="-".join)  # fmt: skip
def test_6_load_balance_is_one_when_either_side_is_uniform(combination: tuple[str, ...]) -> None:
    moe = layer(combination, aux=[LBL(1.0, "micro")])
    with torch.no_grad():  # flat probabilities, whatever is chosen
        for parameter in moe.router.scorer.parameters():
            parameter.zero_()
    x, ctx = tokens()
    moe(x, context=ctx)
    assert next(iter(aux_losses(moe).values())).item() == pytest.approx(1.0, abs=1e-5)


def test_7_renorm_with_one_expert_warns_and_gives_no_router_gradient() -> None:
    with pytest.warns(RouterGradientWarning, match="learns nothing"):
        moe = MoE(D, F, E, select=TopK(1), gate=Renorm())
    x, _ = tokens()
    moe(x).square().sum().backward()
    assert float(moe.router.scorer.weight.grad.abs().max()) < 1e-6 * float(moe.pool.w1_EGD.grad.abs().max())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MoE(D, F, E, select=TopK(1), gate=Raw())


@pytest.mark.parametrize("k", [1, 3, 9])
def test_product_keys_choose_what_a_full_scan_chooses(k: int) -> None:
    torch.manual_seed(6)
    moe = MoE(D, F, E, scorer=ProductKeys(3, 3), norm=ProductLogSoftmax(), select=ProductTopK(k), gate=Raw())
    x, _ = tokens()
    oracle = outputs_and_gradients(moe, "dense")
    for name in EXECUTORS:
        for got, expected in zip(outputs_and_gradients(moe, name), oracle, strict=True):
            assert_near(got, expected)
    moe(x)
    row, column = (part.log_softmax(-1) for part in moe.routing.logits_TE)
    scan = (row[:, :, None] + column[:, None]).reshape(T, E)
    chosen = moe.routing.exp_N.reshape(T, k)
    torch.testing.assert_close(scan.gather(1, chosen).sort().values, scan.topk(k).values.sort().values)


@pytest.mark.filterwarnings("ignore::UserWarning")  # what the tracer says of array_api_compat and of its own guards
def test_a_compiled_layer_equals_the_eager_one() -> None:
    moe = layer(("hidden", "linear", "softmax", "none", "top-p", "raw"))
    compiled = torch.compile(moe, backend="aot_eager")
    x, _ = tokens()
    expected = moe(x)
    torch.testing.assert_close(compiled(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of the tracer
def test_grouped_products_in_fp32_are_called_as_they_are_by_a_compiled_layer() -> None:
    torch.manual_seed(0)
    moe, x = MoE(D, F, E, executor="grouped"), torch.randn(2, 5, D)
    expected = moe(x)
    expected.square().sum().backward()
    gradients = [p.grad.clone() for p in moe.parameters()]
    moe.zero_grad()
    y = torch.compile(moe, backend="aot_eager")(x)
    y.square().sum().backward()
    assert_near(y, expected)
    for p, gradient in zip(moe.parameters(), gradients, strict=True):
        assert_near(p.grad, gradient)


def test_an_expanded_and_a_strided_gradient_are_taken() -> None:
    for name in EXECUTORS:
        moe = layer(("hidden", "linear", "softmax", "none", "top2", "renorm"), executor=name)
        x, _ = tokens()
        x = x.transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()  # not contiguous
        moe(x).sum().backward()  # an expanded gradient
        got = x.grad.clone()
        x.grad = None
        y = moe(x)
        y.backward(torch.ones(D, L, B).permute(2, 1, 0))
        torch.testing.assert_close(x.grad, got)
