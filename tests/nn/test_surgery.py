"""Dense networks into experts, E experts into m x E: against the dense network, and against the layer before."""

from __future__ import annotations

import copy

import pytest

from polyroute.errors import ConfigError, ShapeError, UnknownNameError

torch = pytest.importorskip("torch")

from polyroute.nn.experts import FeedForward  # noqa: E402
from polyroute.nn.gates import Hard, Raw, Renorm  # noqa: E402
from polyroute.nn.moe import MoE, end_step  # noqa: E402
from polyroute.nn.normalise import CandidateMask, ProductLogSoftmax, ReLURMS, SelectionBias, Sigmoid  # noqa: E402
from polyroute.nn.scorers import MLP, Cosine, Linear, ProductKeys  # noqa: E402
from polyroute.nn.selection import GroupTopK, ProductTopK, TopK  # noqa: E402
from polyroute.nn.surgery import (  # noqa: E402
    masked_experts,
    neuron_masks,
    neurons,
    slice_ffn,
    subnetworks,
    upcycle,
    upcycle_dense,
)

pytestmark = pytest.mark.torch
D, F, E, T = 12, 30, 4, 50


def ffn(act="swiglu", seed=0):
    torch.manual_seed(seed)
    return FeedForward(D, F, act=act)


def tokens(seed=1, count=T):
    return torch.randn(count, D, generator=torch.Generator().manual_seed(seed))


def one_by_one(experts, x):
    """[E, T, O]: what each expert alone gives."""
    h = torch.einsum("td,egd->etg", x, experts.w1_EGD)
    return torch.einsum("etf,efo->eto", experts.act.forward(h), experts.w2_EFO)


def change(old, new):
    return float(((new - old).norm() / old.norm()).detach())


@pytest.mark.parametrize("order", ["contiguous", "random", "kmeans"])
@pytest.mark.parametrize("act", ["swiglu", "geglu", "relu", "gelu"])
@pytest.mark.parametrize("num_experts", [1, 3, 4, 30])  # 4 does not divide 30
def test_all_slices_together_are_the_dense_network(order, act, num_experts):
    dense, x = ffn(act), tokens()
    sliced = slice_ffn(dense, num_experts, order)
    assert sliced.num_experts == num_experts
    torch.testing.assert_close(one_by_one(sliced, x).sum(0), dense(x), rtol=0, atol=1e-5)


def test_a_layer_of_slices_with_every_expert_is_the_dense_network():
    dense, x = ffn(), tokens()
    moe = MoE(D, 8, E, pool=slice_ffn(dense, E, "random"), select=TopK(E), gate=Hard(1.0))
    torch.testing.assert_close(moe(x), dense(x), rtol=0, atol=1e-5)


def test_contiguous_slices_own_runs_of_neurons():
    dense = ffn("relu")
    sliced = slice_ffn(dense, 3)
    for e in range(3):
        assert torch.equal(sliced.w1_EGD[e], dense.w1.weight[10 * e : 10 * (e + 1)])
        assert torch.equal(sliced.w2_EFO[e], dense.w2.weight[:, 10 * e : 10 * (e + 1)].T)


def test_kmeans_finds_groups_of_neurons_that_fire_together():
    generator = torch.Generator().manual_seed(3)
    group_F = torch.arange(F)[torch.randperm(F, generator=generator)] % 3
    centre = 10 * torch.eye(3)
    features = centre[group_F] + 0.1 * torch.randn(F, 3, generator=generator)
    dense = ffn("relu")
    sliced = slice_ffn(dense, 3, "kmeans", features_FX=features)
    found = [{tuple(row) for row in expert.tolist()} for expert in sliced.w1_EGD.detach()]
    for g in range(3):
        assert {tuple(row) for row in dense.w1.weight[group_F == g].tolist()} in found


def test_kmeans_groups_stay_even_when_all_neurons_are_alike():
    sliced = slice_ffn(ffn("relu"), E, "kmeans", features_FX=torch.zeros(F, 2))
    used = (sliced.w2_EFO.abs().sum(-1) > 0).sum(-1)
    assert used.tolist() == [8, 8, 7, 7]


def test_padding_of_ragged_experts_stays_zero_while_training():
    made = subnetworks(ffn(), [torch.arange(9), torch.tensor([1]), torch.tensor([], dtype=torch.long)])
    one_by_one(made, tokens()).pow(2).sum().backward()
    torch.optim.AdamW(made.parameters(), lr=0.1).step()
    w1 = made.w1_EGD.reshape(3, 2, 9, D)
    assert not w1[1, :, 1:].any()
    assert not w1[2].any()
    assert not made.w2_EFO[1, 1:].any()
    assert w1[0].any()


def test_masks_keep_the_neurons_that_are_active_whatever_their_sign():
    a = torch.zeros(5, 6)
    a[:, 1], a[:, 4], a[:, 5] = -3.0, 2.0, 1.0
    masks = neuron_masks({"code": a, "text": a.abs().mean(0).flip(0)}, keep=0.5)
    assert masks.tolist() == [[False, True, False, False, True, True], [True, True, False, False, True, False]]


@pytest.mark.parametrize("act", ["swiglu", "relu"])
def test_an_expert_of_a_mask_is_the_dense_network_without_the_other_neurons(act):
    dense, x = ffn(act), tokens()
    masks = neuron_masks({str(j): neurons(dense, tokens(10 + j)) * torch.rand(F) for j in range(3)})
    always, private, width_E = masked_experts(dense, masks)
    assert masks.sum(-1).tolist() == [15, 15, 15]
    assert width_E.tolist() == (masks & ~masks.all(0)).sum(-1).tolist()
    assert private.w2_EFO.shape[1] == int(width_E.max())
    alone = one_by_one(private, x) + (0 if always is None else always(x))
    for j in range(3):
        expected = dense.w2(neurons(dense, x) * masks[j])
        torch.testing.assert_close(alone[j], expected, rtol=0, atol=1e-5)
    moe = MoE(D, 8, 3, pool=private, shared=always or 0, select=TopK(1), gate=Hard(1.0))
    y = moe(x)
    torch.testing.assert_close(y, alone[moe.routing.exp_N, torch.arange(T)], rtol=0, atol=1e-5)


def test_masks_without_common_neurons_have_nothing_that_is_always_on():
    masks = torch.zeros(2, F, dtype=torch.bool)
    masks[0, :4], masks[1, 4:7] = True, True
    always, private, width_E = masked_experts(ffn(), masks)
    assert always is None
    assert width_E.tolist() == [4, 3]
    assert private.w2_EFO.shape[1] == 4


@pytest.mark.parametrize("k", [1, 2, 4])
def test_copies_of_a_dense_network_start_as_the_network(k):
    dense, x = ffn(), tokens()
    gate = Hard(1.0) if k == 1 else Renorm()
    moe = MoE(D, F, E, pool=upcycle_dense(dense, E), select=TopK(k), gate=gate)
    torch.testing.assert_close(moe(x), dense(x), rtol=0, atol=1e-5)


def test_noise_sets_copies_apart_by_a_share_of_the_weights():
    dense = ffn()
    made = upcycle_dense(dense, 8, noise=0.1)
    off = (made.w1_EGD - dense.w1.weight).detach()
    assert float(off.std() / dense.w1.weight.detach().std()) == pytest.approx(0.1, rel=0.05)
    assert torch.equal(upcycle_dense(dense, 8, noise=0.1).w1_EGD, made.w1_EGD)
    assert not torch.equal(upcycle_dense(dense, 8, noise=0.1, seed=1).w1_EGD, made.w1_EGD)


def layer(k=2, seed=0, **parts):
    torch.manual_seed(seed)
    gate = parts.pop("gate", Renorm() if k > 1 else Raw())
    return MoE(D, F, 8, select=parts.pop("select", TopK(k)), gate=gate, mods=(SelectionBias(),), **parts).eval()


GROWN = {
    "one sigmoid expert": ({"k": 1, "norm": Sigmoid(), "gate": Raw()}, {}),
    "one expert, hard": ({"k": 1, "gate": Hard(1.0)}, {}),
    "k doubles, softmax, renorm": ({"k": 2}, {"k": 4}),
    "k doubles, softmax, raw": ({"k": 2, "gate": Raw()}, {"k": 4}),
    "k doubles, sigmoid, renorm": ({"k": 2, "norm": Sigmoid()}, {"k": 4}),
}


@pytest.mark.parametrize("case", GROWN)
def test_growth_is_exact_where_the_gates_allow_it(case):
    parts, options = GROWN[case]
    old, x = layer(**parts), tokens()
    new = upcycle(old, bias_noise=0.0, **options).moe
    assert change(old(x), new(x)) < 1e-5


@pytest.mark.filterwarnings("ignore::polyroute.nn.moe.RouterGradientWarning")
def test_growth_at_one_renormed_expert_changes_nothing():
    old, x = layer(k=1, gate=Renorm()), tokens()
    assert change(old(x), upcycle(old, bias_noise=0.0).moe(x)) < 1e-6


def test_growth_at_one_raw_softmax_expert_halves_the_output():
    old, x = layer(k=1), tokens()
    torch.testing.assert_close(2 * upcycle(old, bias_noise=0.0).moe(x), old(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("parts", [{"norm": Sigmoid(), "gate": Raw()}, {"gate": Hard(1.0)}])
def test_gates_that_do_not_share_a_unit_double_the_output_when_k_doubles(parts):
    old, x = layer(**parts), tokens()
    torch.testing.assert_close(upcycle(old, bias_noise=0.0, k=4).moe(x), 2 * old(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("k", "least", "most"), [(2, 0.2, 0.9), (4, 0.1, 0.7)])
def test_twins_are_chosen_together_so_growth_changes_the_function(k, least, most):
    old, x = layer(k=k), tokens(count=400)
    new = upcycle(old, bias_noise=0.0).moe
    assert least < change(old(x), new(x)) < most
    distinct = (new.routing.exp_N % 8).reshape(-1, k).sort(-1).values.diff(dim=-1).count_nonzero(-1) + 1
    assert distinct.tolist() == [k // 2] * 400


@pytest.mark.parametrize(
    "parts",
    [
        {"k": 2},
        {"k": 4, "norm": Sigmoid(), "gate": Raw()},
        {"k": 2, "gate": Hard(0.5)},
        {"k": 2, "gate": Raw()},
        {"k": 1},
        {"k": 2, "scorer": MLP()},
        {"k": 2, "scorer": Cosine(width=5)},
        {"select": GroupTopK(2, 4, 2), "norm": Sigmoid()},
    ],
)
def test_an_exact_start_is_exact_and_ends(parts):
    old, x = layer(**parts), tokens()
    old.router.mods[0].bias_E.copy_(torch.linspace(-1, 1, 8))
    old.step = 7
    new = upcycle(old, exact_start=True, anneal=4).moe
    assert change(old(x), new(x)) < 1e-6
    plain = upcycle(old).moe
    for _ in range(4):
        new.step += 1
    assert torch.equal(new(x), plain(x))
    assert int(new.routing.count_E[8:].sum()) > 0


def test_rows_biases_and_counts_grow():
    old = layer(scorer=Linear(bias=True), shared=6)
    old.router.mods[0].bias_E.copy_(torch.linspace(-1, 1, 8))
    old.router.mods[0].load_E.fill_(3.0)
    old.step, old.pool.w1_EGD.requires_grad = 11, False
    before = copy.deepcopy(old.state_dict())
    new, source_E = upcycle(old, m=3)
    assert source_E.tolist() == [*range(8)] * 3
    for name in ("router.scorer.weight", "router.scorer.bias", "pool.w1_EGD", "pool.w2_EFO"):
        assert torch.equal(new.get_parameter(name), old.get_parameter(name)[source_E])
    assert torch.equal(new.shared.w1.weight, old.shared.w1.weight)
    assert new.shared.w1.weight is not old.shared.w1.weight
    bias_E = new.router.mods[0].bias_E
    assert torch.equal(bias_E[:8], old.router.mods[0].bias_E)
    off = bias_E[8:] - bias_E[:8].repeat(2)
    assert off.abs().min() > 0
    assert off.std() == pytest.approx(0.01 * float(bias_E[:8].std()), rel=0.6)
    assert new.router.mods[0].load_E.tolist() == [3.0] * 8 + [0.0] * 16
    assert (new.step, new.training, new.pool.w1_EGD.requires_grad) == (11, False, False)
    for name, value in old.state_dict().items():
        assert torch.equal(value, before[name]) if isinstance(value, torch.Tensor) else value == before[name]
    assert len(new.state_dict()) == len(before)


def test_flat_biases_still_get_noise_and_a_layer_without_a_bias_gets_one():
    torch.manual_seed(0)
    new = upcycle(MoE(D, F, 8)).moe
    bias_E = new.router.mods[0].bias_E
    assert not bias_E[:8].any()
    assert (bias_E[8:] != 0).all()
    assert float(bias_E.abs().max()) < 0.01


def test_learned_noise_and_score_norms_grow_too():
    torch.manual_seed(0)
    old = MoE(D, F, 8, norm=ReLURMS(), select=TopK(2))
    old.router.norm.weight.data = torch.arange(8.0)
    assert upcycle(old).moe.router.norm.weight.tolist() == [*range(8)] * 2


def trained(score_grad=True, seed=0):
    torch.manual_seed(seed)
    moe = MoE(D, F, 4, mods=(SelectionBias(),))
    optimizer = torch.optim.AdamW(moe.parameters(), lr=1e-2)
    for step in range(3):
        optimizer.zero_grad()
        (moe(tokens(step)) - 1).pow(2).mean().backward()
        optimizer.step()
        end_step(moe)
    return moe, optimizer


@pytest.mark.parametrize("opt_state", ["copy", "zero"])
def test_the_optimizer_goes_on_with_the_new_parameters(opt_state):
    moe, optimizer = trained()
    old_state = {n: copy.deepcopy(optimizer.state[p]) for n, p in moe.named_parameters()}
    new, source_E = upcycle(moe, optimizer, opt_state=opt_state)
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in new.parameters()}
    assert {id(p) for p in optimizer.state} == {id(p) for p in new.parameters()}
    for name, parameter in new.named_parameters():
        for key in ("exp_avg", "exp_avg_sq"):
            moment = optimizer.state[parameter][key]
            expected = old_state[name][key][source_E] if len(parameter) == 8 else old_state[name][key]
            if opt_state == "zero" and len(parameter) == 8:
                expected[4:] = 0
            assert torch.equal(moment, expected)
        assert optimizer.state[parameter]["step"] == old_state[name]["step"]
    before = new.pool.w1_EGD.detach().clone()
    new(tokens()).pow(2).mean().backward()
    optimizer.step()
    assert not torch.equal(new.pool.w1_EGD, before)


def test_two_steps_after_growth_with_every_expert_chosen_twins_are_still_equal():
    """Why twins part only if they are not always chosen together."""
    torch.manual_seed(0)
    new = upcycle(MoE(D, F, 4, select=TopK(4)), k=8, bias_noise=0.0).moe
    optimizer = torch.optim.SGD(new.parameters(), lr=0.1)
    for step in range(2):
        new(tokens(step)).pow(2).mean().backward()
        optimizer.step()
    torch.testing.assert_close(new.pool.w1_EGD[:4], new.pool.w1_EGD[4:], rtol=0, atol=1e-6)


@pytest.mark.parametrize("score", ["weight", "gradient", "saliency", "moment"])
def test_utility_copies_the_most_useful_experts_first(score):
    moe, optimizer = trained()
    w1 = moe.pool.w1_EGD
    w, g = w1.detach().flatten(1).norm(dim=1), w1.grad.flatten(1).norm(dim=1)
    v = optimizer.state[w1]["exp_avg_sq"].flatten(1).norm(dim=1)
    utility = {"weight": w, "gradient": g**2, "saliency": w * g, "moment": g**2 / (v + 1e-8)}[score]
    order = utility.argsort(descending=True).tolist()
    source_E = upcycle(moe, optimizer, score=score, max_copies=3).source_E
    assert source_E[4:].tolist() == [order[0]] * 3 + [order[1]]
    moe2, optimizer2 = trained()
    assert sorted(upcycle(moe2, optimizer2, score=score, max_copies=1).source_E[4:].tolist()) == [0, 1, 2, 3]


def test_a_given_utility_and_sampling():
    moe = layer()
    best = torch.tensor([0.0, 5.0, 1.0, 2.0, 0.0, 0.0, 0.0, 9.0])
    assert upcycle(moe, score=best).source_E[8:].tolist() == [7, 7, 7, 1, 1, 1, 3, 3]
    drawn = upcycle(moe, m=100, score=best, choose="sample", seed=3).source_E[8:]
    share = drawn.bincount(minlength=8) / len(drawn)
    torch.testing.assert_close(share, (best / best.std()).softmax(-1), rtol=0, atol=0.06)
    cold = upcycle(moe, score=best, choose="sample", temperature=0.01).source_E[8:]
    assert cold.tolist() == [7] * 8


def test_a_grown_layer_can_grow_again():
    old = layer(norm=Sigmoid())
    twice = upcycle(upcycle(old, bias_noise=0.0).moe, bias_noise=0.0, k=8).moe
    assert twice.router.num_experts == 32
    assert change(old(tokens()), twice(tokens())) < 1e-5


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: slice_ffn(ffn(), 31), ConfigError, "num_experts"),
        (lambda: slice_ffn(ffn(), 4, "kmean"), UnknownNameError, "kmeans"),
        (lambda: slice_ffn(ffn(), 4, "kmeans", features_FX=torch.zeros(3, 2)), ShapeError, "features_FX"),
        (lambda: neuron_masks({}), ConfigError, "activations"),
        (lambda: neuron_masks({"a": torch.zeros(2, 3)}, keep=0.0), ConfigError, "keep"),
        (lambda: neuron_masks({"a": torch.zeros(2, 3), "b": torch.zeros(2, 4)}), ShapeError, "'b'"),
        (lambda: masked_experts(ffn(), torch.ones(2, 3, dtype=torch.bool)), ShapeError, "mask_JF"),
        (lambda: upcycle_dense(ffn(), 0), ConfigError, "num_experts"),
        (lambda: upcycle_dense(ffn(), 2, noise=-1.0), ConfigError, "noise"),
        (lambda: upcycle(FeedForward(8, 4), m=2), ConfigError, "moe: expected a MoE layer, got .FeedForward"),
        (lambda: upcycle(layer(), m=1), ConfigError, "m: expected 2"),
        (lambda: upcycle(layer(), score="salience"), UnknownNameError, "saliency"),
        (lambda: upcycle(layer(), score="saliency"), ConfigError, "backward pass"),
        (lambda: upcycle(layer(), score=torch.zeros(3)), ShapeError, "score"),
        (lambda: upcycle(layer(), m=5, score="weight", max_copies=3), ConfigError, "max_copies"),
        (lambda: upcycle(layer(), opt_state="keep"), ConfigError, "opt_state"),
        (lambda: upcycle(layer(), choose="best"), ConfigError, "choose"),
        (lambda: upcycle(layer(select=TopK(2, on="logits")), exact_start=True), ConfigError, "exact_start"),
        (lambda: upcycle(layer(norm=ReLURMS()), exact_start=True), ConfigError, "exact_start"),
    ],
)
def test_wrong_input_is_named(call, error, says):
    with pytest.raises(error, match=says):
        call()


def test_layers_whose_experts_have_fixed_places_are_refused():
    product = {"scorer": ProductKeys(2, 4), "norm": ProductLogSoftmax(), "select": ProductTopK(2)}
    for parts in (product, {"mods": (CandidateMask((0, 4), 0, 10),)}):
        with pytest.raises(ConfigError, match="fixed places"):
            upcycle(MoE(D, F, 8, **parts))
