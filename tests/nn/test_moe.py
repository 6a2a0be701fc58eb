"""The layer as a whole: bad input, dtypes, what a training loop does to it."""

from __future__ import annotations

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch.utils.checkpoint import checkpoint  # noqa: E402

from polyroute.errors import ConfigError, ShapeError, UnknownNameError  # noqa: E402
from polyroute.nn.experts import Experts, FeedForward  # noqa: E402
from polyroute.nn.gates import ChosenSoftmax, Hard, Raw  # noqa: E402
from polyroute.nn.inputs import Pooled, PreAttention, Recurrent, TokenStream  # noqa: E402
from polyroute.nn.losses import LBL, Entropy  # noqa: E402
from polyroute.nn.moe import MoE, RouterGradientWarning, aux_losses, end_step, layers, routings  # noqa: E402
from polyroute.nn.normalise import (  # noqa: E402
    CandidateMask,
    Delta,
    Noise,
    ProductLogSoftmax,
    SelectionBias,
    Sigmoid,
    Steer,
    UniformNoise,
)
from polyroute.nn.routing import TokenContext  # noqa: E402
from polyroute.nn.scorers import MLP, Cosine, Linear, ProductKeys  # noqa: E402
from polyroute.nn.selection import Capacity, ExpertChoice, GroupTopK, ProductTopK, TopK, TopP  # noqa: E402

pytestmark = pytest.mark.torch
KEYS = {"scorer": ProductKeys(2, 2), "norm": ProductLogSoftmax(), "select": ProductTopK(2)}


def test_the_layer_of_the_front_page() -> None:
    torch.manual_seed(0)
    moe = MoE(16, 8, 6, select=TopP(0.4), aux=[LBL(0.01, "global"), Entropy(1e-4)])
    y = moe(torch.randn(2, 5, 16))
    assert y.shape == (2, 5, 16)
    assert set(aux_losses(moe)) == {"load_balance", "entropy"}
    (y.square().mean() + sum(aux_losses(moe).values())).backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in moe.parameters())


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: MoE(8, 4, 4, select=TopK(5)), ConfigError, r"select.k: expected 1 to 4"),
        (lambda: MoE(8, 4, 4, select=TopK(0)), ConfigError, r"select.k"),
        (lambda: MoE(8, 4, 4, select=TopK(2, on="x")), ConfigError, r"select.on"),
        (lambda: MoE(8, 4, 4, select=TopP(0.0)), ConfigError, r"select.p"),
        (lambda: MoE(8, 4, 4, select=ExpertChoice(0.0)), ConfigError, r"select.capacity"),
        (lambda: MoE(8, 4, 4, select=Capacity(TopK(1), 0.0), gate=Raw()), ConfigError, r"select.factor"),
        (lambda: MoE(8, 4, 4, select=GroupTopK(2, 3, 1)), ConfigError, r"select.num_groups"),
        (lambda: MoE(8, 4, 0), ConfigError, r"num_experts"),
        (lambda: MoE(8, 0, 4), ConfigError, r"width"),
        (lambda: MoE(8, 4, 4, act="tanhh"), UnknownNameError, r"activation 'tanhh'"),
        (lambda: MoE(8, 4, 4, pool=Experts(8, 4, 3)), ConfigError, r"pool: expected 4 experts"),
        (lambda: MoE(8, 4, 4, scorer=ProductKeys(3, 2)), ConfigError, r"rows x columns = 4"),
        (lambda: MoE(8, 4, 4, scorer=Cosine(temperature=0.0)), ConfigError, r"temperature"),
        (lambda: MoE(8, 4, 4, scorer=MLP(activation="x")), ConfigError, r"scorer.activation"),
        (lambda: MoE(8, 4, 4, mods=[CandidateMask((0, 9), 0, 1)]), ConfigError, r"mask.local"),
        (lambda: Recurrent(torch.nn.GRUCell(3, 4)), ConfigError, r"cell"),
        (lambda: Recurrent(4), ConfigError, r"cell: expected an nn.GRUCell"),
        (lambda: MoE(8, 4, 4, inp=TokenStream(torch.nn.Linear(2, 2))), ConfigError, r"inp.network"),
        (lambda: MoE(8, 4, 4, select=TopK), ConfigError, r"select: expected a part .* got 'the class TopK'"),
        (lambda: MoE(8, 4, 4, norm="softmax"), ConfigError, r"norm: expected a part"),
        (lambda: MoE(8, 4, 4, mods=Noise()), ConfigError, r"mods: expected several parts, as mods=\(part,\)"),
        (lambda: MoE(8, 4, 4, aux=LBL()), ConfigError, r"aux: expected several"),
        (lambda: MoE(8, 4, 4, aux=[LBL(), LBL]), ConfigError, r"aux\[1\]: .* got 'the class LBL'"),
        (lambda: MoE(8, 4, 4, select=Capacity(2)), ConfigError, r"select.inner"),
        (lambda: MoE(8, 4, 4, select=TopK(2.5)), ConfigError, r"select.k: expected 1 to 4.* got 2.5"),
        (lambda: MoE(8, 4, 4, shared=-1), ConfigError, r"shared: expected a whole number, 0 or more"),
        (lambda: MoE(8, 4, 4, shared=2.5), ConfigError, r"shared"),
        (lambda: MoE(8, 4, 4, out=0), ConfigError, r"out: expected a whole number, 1 or more, got 0"),
        (lambda: MoE(8.0, 4, 4), ConfigError, r"dim: expected a whole number"),
        (lambda: MoE(8, 4, 4, pool=torch.nn.Linear(8, 8)), ConfigError, r"pool: expected 4 experts, got 'Linear"),
        (lambda: MoE(8, 4, 4, executor="sorted"), UnknownNameError, r"executor 'sorted'.*sorted_loop"),
        (lambda: MoE(8, 4, 4, scorer=MLP(hidden=-1)), ConfigError, r"scorer.hidden"),
        (lambda: MoE(8, 4, 4, scorer=Cosine(width=-1)), ConfigError, r"scorer.width"),
        (lambda: MoE(8, 4, 4, scorer=ProductKeys(-2, -2)), ConfigError, r"scorer.rows"),
        (lambda: MoE(8, 4, 4, scorer=Linear(std=-1.0)), ConfigError, r"scorer.std"),
        (lambda: MoE(8, 4, 4, mods=[Noise(float("nan"))]), ConfigError, r"noise.std"),
        (lambda: MoE(8, 4, 4, mods=[UniformNoise(-1.0)]), ConfigError, r"uniform_noise.width"),
        (lambda: MoE(8, 4, 4, mods=[SelectionBias(float("nan"))]), ConfigError, r"selection_bias.rate"),
        (lambda: MoE(8, 4, 4, mods=[CandidateMask((0, 2.5), 0, 1)]), ConfigError, r"mask.local"),
        (lambda: MoE(8, 4, 4, scorer=ProductKeys(2, 2)), ConfigError, r"norm: expected ProductLogSoftmax, got 'Soft"),
        (lambda: MoE(8, 4, 4, select=ProductTopK(2)), ConfigError, r"scorer: expected ProductKeys, got 'Linear'"),
        (lambda: MoE(8, 4, 4, **KEYS, mods=[Delta()]), ConfigError, r"mods\[0\]: expected none"),
    ],
)
def test_a_wrong_configuration_is_refused_when_it_is_built(make: Any, error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        make()


def test_a_wrong_shape_names_the_argument_before_any_work() -> None:
    moe = MoE(8, 4, 4)
    with pytest.raises(ShapeError, match=r"x: expected shape \('B', 'L', 8\), got \(2, 3, 7\)"):
        moe(torch.zeros(2, 3, 7))
    with pytest.raises(ShapeError, match=r"context.valid_T"):
        moe(torch.zeros(2, 3, 8), context=TokenContext(torch.zeros(6, 8), (2, 3), valid_T=torch.ones(5).bool()))
    with pytest.raises(ShapeError, match=r"context.shape"):
        moe(torch.zeros(2, 3, 8), context=TokenContext(torch.zeros(6, 8), (2, 4)))
    assert moe.routing is None


def test_a_mask_of_numbers_is_refused() -> None:
    """0 and 1 would be read as places: other tokens' experts, and no error."""
    moe, x = MoE(8, 4, 4), torch.randn(2, 3, 8)
    for mask, got in ((torch.tensor([1, 1, 1, 1, 0, 0]), "torch.int64"), ([True] * 6, "list")):
        with pytest.raises(ConfigError, match=rf"context.valid_T: expected a tensor of bool, got '{got}'"):
            moe(x, context=TokenContext(x.reshape(6, 8), (2, 3), valid_T=mask))
    with pytest.raises(ShapeError, match=r"context.valid_T: expected shape \(6,\), got \(2, 3\)"):
        moe(x, context=TokenContext(x.reshape(6, 8), (2, 3), valid_T=torch.ones(2, 3, dtype=torch.bool)))
    assert moe.routing is None


def test_sequences_cut_otherwise_than_x_are_refused() -> None:
    x = torch.randn(2, 3, 8)
    with pytest.raises(ShapeError, match=r"context.shape: expected shape \(2, 3\), got \(3, 2\)"):
        MoE(8, 4, 4, inp=Pooled())(x, context=TokenContext(x.reshape(6, 8), (3, 2)))
    with pytest.raises(ConfigError, match="x: expected a tensor"):
        MoE(8, 4, 4)(x.tolist())


def test_a_dense_network_of_another_width_is_not_broadcast() -> None:
    with pytest.raises(ShapeError, match=r"output of shared: expected shape \(5, 8\), got \(5, 1\)"):
        MoE(8, 4, 4, shared=torch.nn.Linear(8, 1))(torch.randn(5, 8))


@pytest.mark.parametrize("select", [TopK(3), ExpertChoice(2.0), GroupTopK(3, 2, 2), Capacity(TopK(3), 2.0)], ids=str)
@pytest.mark.parametrize("gate", [Raw(), Hard(1.0)], ids=str)
def test_a_closed_expert_is_never_chosen(select: Any, gate: Any) -> None:
    """Neither for want of open ones nor for its price, which must not rise while nobody may go there."""
    torch.manual_seed(0)
    moe = MoE(8, 4, 6, select=select, gate=gate, mods=(CandidateMask((1, 3), 5, 9), SelectionBias(rate=1.0)))
    moe.router.mods[1].bias_E[:] = torch.tensor([9.0, 0.0, 0.0, 9.0, 9.0, 9.0])
    for _ in range(3):
        moe(torch.randn(2, 5, 8))
        assert moe.routing.count_E[[0, 3, 4, 5]].sum() == 0 < moe.routing.count_E.sum()
        end_step(moe)
    assert moe.router.mods[1].bias_E[[0, 3, 4, 5]].tolist() == [9.0] * 4


def test_modifiers_that_make_no_number_are_named() -> None:
    """The spread of logits of which some are closed is not a number."""
    moe = MoE(8, 4, 4, mods=(CandidateMask((0, 2), 5, 9), Steer()))
    moe.router.mods[1].experts = (1,)
    with pytest.raises(ConfigError, match="scores, after mods: expected finite numbers"):
        moe(torch.randn(5, 8))


def test_logits_whose_sum_overflows_are_finite() -> None:
    moe = MoE(8, 4, 4, select=TopK(4), scorer=Linear(bias=True))
    with torch.no_grad():
        moe.router.scorer.bias[0] = 3e38
    assert moe(torch.randn(5, 8)).isfinite().all()
    assert moe.routing.gates_TE()[:, 0].tolist() == [1.0] * 5


def test_a_constant_gate_warns_wherever_it_comes_from() -> None:
    for select in (Capacity(), TopP(0.4, k_max=1)):
        with pytest.warns(RouterGradientWarning, match="Renorm with one expert"):
            MoE(8, 4, 4, select=select)
    with pytest.warns(RouterGradientWarning, match="ChosenSoftmax with one expert"):
        MoE(8, 4, 4, select=TopK(1), gate=ChosenSoftmax())


def test_a_layer_in_bf16_counts_and_balances_in_fp32() -> None:
    """In bf16 300 pairs are 300 or 302, and a bias of 1 does not move by 0.001."""
    torch.manual_seed(0)
    moe = MoE(8, 4, 4, select=TopK(1), gate=Raw(), mods=(SelectionBias(rate=1e-3, centre=False),)).to(torch.bfloat16)
    bias = moe.router.mods[0]
    bias.bias_E[:] = 1.0
    bias.load_E += torch.tensor([301.0, 300.0, 300.0, 299.0])
    end_step(moe)
    assert bias.bias_E.tolist() == pytest.approx([0.999, 1.0, 1.0, 1.001])
    moe(torch.randn(5, 8, dtype=torch.bfloat16))
    assert bias.load_E.sum() == 5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("part", ["keys", "recurrent"])
def test_routers_with_networks_of_their_own_can_be_converted(part: str, dtype: Any) -> None:
    torch.manual_seed(0)
    keys = {**KEYS, "scorer": ProductKeys(2, 2, batch_norm=True)}
    moe = MoE(8, 4, 4, **(keys if part == "keys" else {"inp": Recurrent(torch.nn.GRUCell(3, 3))})).to(dtype)
    x = torch.randn(2, 5, 8, dtype=dtype, requires_grad=True)
    moe(x).float().square().sum().backward()
    assert moe.routing.gate_N.dtype == torch.float32
    assert all(p.grad is not None and p.grad.isfinite().all() for p in moe.router.parameters())


def test_a_recurrent_router_is_fp32_under_autocast() -> None:
    torch.manual_seed(0)
    moe, x = MoE(8, 4, 4, inp=Recurrent(torch.nn.GRUCell(3, 3))), torch.randn(2, 5, 8)
    moe(x)
    plain = moe.routing
    with torch.autocast("cpu", dtype=torch.bfloat16):
        moe(x)
    assert torch.equal(moe.routing.logits_TE, plain.logits_TE)
    assert torch.equal(moe.routing.carry_TR, plain.carry_TR)


def test_mixed_dtypes_are_refused_before_any_work() -> None:
    moe = MoE(8, 4, 4)
    with pytest.raises(ConfigError, match=r"expected one dtype, got 'torch.bfloat16, torch.float32"):
        moe(torch.zeros(2, 3, 8, dtype=torch.bfloat16))
    assert moe.routing is None


def test_missing_inputs_say_what_to_pass() -> None:
    with pytest.raises(ConfigError, match=r"context.pre_attention_TD"):
        MoE(8, 4, 4, inp=PreAttention())(torch.zeros(2, 3, 8))
    net = torch.nn.Embedding(5, 6)
    net.width = 6
    with pytest.raises(ConfigError, match=r"context.token_ids_T"):
        MoE(8, 4, 4, inp=TokenStream(net))(torch.zeros(2, 3, 8))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_refused(bad: float) -> None:
    moe = MoE(8, 4, 4)
    x = torch.zeros(1, 3, 8)
    x[0, 1, 2] = bad
    with pytest.raises(ConfigError, match=r"logits: expected finite numbers"):
        moe(x)


def test_an_unknown_executor_names_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"sorted_loop"):
        MoE(8, 4, 4, executor="sorted")(torch.zeros(1, 3, 8))


@pytest.mark.parametrize(
    "select", [TopK(2), TopP(0.5), ExpertChoice(2.0), Capacity(TopK(2), 1.0), GroupTopK(2, 2, 1)], ids=str
)
@pytest.mark.parametrize("name", ["dense", "sorted_loop", "grouped", "padded"])
def test_an_empty_batch_gives_an_empty_answer(select: Any, name: str) -> None:
    moe = MoE(16, 8, 4, select=select, gate=Raw(), executor=name, aux=[LBL()])
    x = torch.zeros(0, 5, 16, requires_grad=True)
    y = moe(x)
    assert y.shape == (0, 5, 16)
    (y.sum() + sum(aux_losses(moe).values())).backward()
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("act", ["swiglu", "relu", "identity"])
@pytest.mark.parametrize("needed", ["everything", "x", "experts"])
def test_every_token_to_every_expert_is_what_the_oracle_computes(act: str, needed: str) -> None:
    def results(name: str) -> list[torch.Tensor]:
        torch.manual_seed(0)
        moe = MoE(16, 8, 4, select=TopK(4), gate=Raw(), act=act, executor=name)
        x = torch.randn(1, 9, 16, requires_grad=needed != "experts")
        for parameter in moe.parameters():
            parameter.requires_grad_(needed != "x")
        y = moe(x)
        y.square().sum().backward()
        return [y.detach(), *(t.grad for t in (x, *moe.parameters()) if t.grad is not None)]

    found = results("sorted_loop"), results("dense")
    assert len(found[0]) == {"everything": 5, "x": 2, "experts": 4}[needed]
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("executor", ["sorted_loop", "dense"])
def test_padding_among_tokens_that_go_everywhere_has_no_part(executor: str) -> None:
    torch.manual_seed(0)
    moe = MoE(16, 8, 4, select=TopK(4), executor=executor)
    x = torch.randn(9, 16)
    valid = torch.arange(9) < 6
    y = moe(x[None], context=TokenContext(x, (1, 9), valid_T=valid))[0]
    assert not y[6:].any()
    torch.testing.assert_close(y[:6], moe(x[None, :6])[0])


def test_autocast_runs_the_experts_in_bf16_and_the_router_in_fp32() -> None:
    torch.manual_seed(0)
    moe = MoE(16, 8, 4)
    x = torch.randn(2, 5, 16, requires_grad=True)
    exact = moe(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = moe(x)
    assert y.dtype == torch.bfloat16
    assert moe.routing.logits_TE.dtype == moe.routing.gate_N.dtype == torch.float32
    torch.testing.assert_close(y.float(), exact, atol=0.05 * exact.detach().abs().max().item(), rtol=0.05)
    y.float().sum().backward()
    assert moe.pool.w1_EGD.grad.dtype == torch.float32


def test_shared_experts_are_added_and_padding_gets_them_too() -> None:
    torch.manual_seed(0)
    moe = MoE(8, 4, 4, shared=6)
    x = torch.randn(1, 5, 8)
    y, shared = moe(x), moe.shared(x)
    moe.shared = None
    torch.testing.assert_close(y, moe(x) + shared)
    assert isinstance(FeedForward(8, 6)(x), torch.Tensor)


def test_a_pool_shared_by_layers_counts_once() -> None:
    pool = Experts(8, 4, 6)
    model = torch.nn.ModuleList(MoE(8, 4, 6, pool=pool) for _ in range(3))
    names = [name for name, _ in model.named_parameters() if "pool" in name]
    assert len(names) == 2
    assert len(layers(model)) == 3


def test_recomputation_counts_nothing_twice() -> None:
    torch.manual_seed(0)
    counts = []
    for recompute in (False, True):
        torch.manual_seed(1)
        moe = MoE(8, 4, 4, norm=Sigmoid(), mods=[SelectionBias()]).train()
        x = torch.randn(2, 5, 8, requires_grad=True)
        y = checkpoint(moe, x, use_reentrant=False) if recompute else moe(x)
        y.sum().backward()
        counts.append(moe.router.mods[0].load_E.clone())
        assert counts[-1].sum() == 20
    assert torch.equal(*counts)


def test_the_bias_of_busy_experts_falls_once_a_step() -> None:
    torch.manual_seed(0)
    moe = MoE(8, 4, 4, norm=Sigmoid(), mods=[SelectionBias(rate=0.01)]).train()
    moe(torch.randn(4, 8, 8))
    count = moe.routing.count_E
    end_step(moe)
    bias = moe.router.mods[0].bias_E
    assert bias[count.argmax()] < bias[count.argmin()]
    assert bias.sum().abs() < 1e-6
    assert moe.router.mods[0].load_E.sum() == 0
    moe.eval()(torch.randn(4, 8, 8))
    assert moe.router.mods[0].load_E.sum() == 0
    assert moe.step == 1
    again = MoE(8, 4, 4, norm=Sigmoid(), mods=[SelectionBias(rate=0.01)])
    again.load_state_dict(moe.state_dict())
    assert again.step == 1
    assert torch.equal(again.router.mods[0].bias_E, bias)


def test_a_layer_can_be_copied_after_a_training_pass() -> None:
    moe = MoE(8, 4, 4, mods=[Noise(learned=True)]).train()
    x = torch.randn(1, 5, 8)
    moe(x).sum().backward()
    twin = copy.deepcopy(moe).eval()
    assert torch.equal(twin(x), moe.eval()(x))


def test_every_layer_says_what_it_decided() -> None:
    model = torch.nn.Sequential(MoE(8, 4, 4), MoE(8, 4, 5))
    assert routings(model) == {}
    model(torch.randn(1, 6, 8))
    assert {name: routing.num_experts for name, routing in routings(model).items()} == {"0": 4, "1": 5}
    routing = routings(model)["1"]
    assert routing.gates_TE().sum(-1).allclose(torch.ones(6))
    assert routing.mask_TE().sum() == routing.count_E.sum() == 12


def test_batch_norm_of_product_keys_leaves_padding_out() -> None:
    torch.manual_seed(0)
    parts = {"scorer": ProductKeys(2, 2, batch_norm=True), "norm": ProductLogSoftmax(), "gate": Raw()}
    moe = MoE(8, 4, 4, select=ProductTopK(2), **parts).train()
    x = torch.randn(1, 6, 8)
    alone = moe(x)
    padded = torch.cat([x, 50 * torch.randn(1, 3, 8)], dim=1)
    ctx = TokenContext(padded[0], (1, 9), valid_T=torch.arange(9) < 6)
    torch.testing.assert_close(moe(padded, context=ctx)[:, :6], alone)


def test_the_same_seed_gives_the_same_bits() -> None:
    def run() -> torch.Tensor:
        torch.manual_seed(3)
        moe = MoE(16, 8, 8, mods=[Noise()]).train()
        x = torch.randn(2, 16, 16, requires_grad=True)
        moe(x).square().sum().backward()
        return x.grad

    assert torch.equal(run(), run())


@pytest.mark.parametrize("inp", [Pooled(), Pooled(causal=True), Recurrent(torch.nn.GRUCell(3, 3))], ids=type)
@pytest.mark.parametrize("shape", [(0, 3, 8), (2, 0, 8), (0, 8)], ids=str)
def test_an_empty_batch_is_read_by_every_input(inp: Any, shape: tuple[int, ...]) -> None:
    assert MoE(8, 4, 4, inp=inp)(torch.zeros(shape)).shape == shape
