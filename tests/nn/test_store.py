"""Layers in a file: exact round trips of every part, shared modules once, and files that must be refused."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

import pytest

from polyroute.errors import CheckpointError, ConfigError, MissingExtraError, ShapeError

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors")
from safetensors.torch import load_file, save_file  # noqa: E402
from torch import nn  # noqa: E402

from polyroute.nn import store  # noqa: E402
from polyroute.nn.continuity import Adaptive, ChunkSparsity  # noqa: E402
from polyroute.nn.coupling import PA  # noqa: E402
from polyroute.nn.experts import Experts, FeedForward, GatedFeedForward  # noqa: E402
from polyroute.nn.gates import ChosenSoftmax, Hard, Raw, Renorm  # noqa: E402
from polyroute.nn.inputs import Pooled, Recurrent, TokenStream  # noqa: E402
from polyroute.nn.losses import LBL, ZLoss  # noqa: E402
from polyroute.nn.metrics import Load  # noqa: E402
from polyroute.nn.moe import MoE, end_step  # noqa: E402
from polyroute.nn.neighbours import Neighbours  # noqa: E402
from polyroute.nn.normalise import (  # noqa: E402
    CandidateMask,
    Delta,
    Late,
    Noise,
    ProductLogSoftmax,
    ReLURMS,
    SelectionBias,
    Sigmoid,
    Steer,
)
from polyroute.nn.routing import TokenContext  # noqa: E402
from polyroute.nn.scorers import MLP, Cosine, Linear, ProductKeys  # noqa: E402
from polyroute.nn.selection import Capacity, ExpertChoice, GroupTopK, Positive, ProductTopK, TopK, TopP  # noqa: E402
from polyroute.nn.spec import layer_of, part_class, spec_of  # noqa: E402
from polyroute.nn.surgery import upcycle  # noqa: E402
from polyroute.nn.wrappers import Chain  # noqa: E402

pytestmark = pytest.mark.torch
D, F, E = 8, 6, 4

LAYERS = {
    "plain": {},
    "sizes": {"act": "relu", "out": 5, "shared": 3, "executor": "dense"},
    "sigmoid groups": {"norm": Sigmoid(), "select": GroupTopK(2, 2, 1, best=1), "mods": (SelectionBias(rate=0.25),)},
    "mlp": {"scorer": MLP(hidden=3, activation="silu"), "gate": Raw(2.5), "select": TopK(1)},
    "cosine": {"scorer": Cosine(width=3, temperature=0.2), "select": TopP(0.6, k_max=3), "gate": Raw()},
    "keys": {"scorer": ProductKeys(2, 2, batch_norm=True), "norm": ProductLogSoftmax(), "select": ProductTopK(2)},
    "relu": {"norm": ReLURMS(), "select": Positive(), "gate": Raw(), "aux": (ChunkSparsity(schedule=Adaptive()),)},
    "modifiers": {
        "scorer": Linear(bias=True),
        "mods": (Noise(learned=True), Delta(), Steer(), CandidateMask((1, 3), 0, 4, seed=3), Late(2, price=0.1)),
    },
    "nested": {"select": Capacity(TopK(2), factor=0.75), "gate": ChosenSoftmax()},
    "choice": {"inp": Pooled(causal=True), "select": ExpertChoice(1.5), "gate": Hard(0.5)},
    "neighbours": {"norm": Neighbours("uniform", mix="logits", causal=False)},  # with a field called kind
    "losses": {"aux": (LBL(0.02, "global"), ZLoss()), "taps": (Load(),)},
}


def layer(name="plain", seed=0):
    torch.manual_seed(seed)
    moe = MoE(D, F, E, **LAYERS[name])
    optimizer = torch.optim.SGD([p for p in moe.parameters() if p.requires_grad], lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        moe(tokens(step)).square().mean().backward()
        optimizer.step()
        end_step(moe)
    return moe


def tokens(seed=5):
    return torch.randn(3, 5, D, generator=torch.Generator().manual_seed(seed))


def same(a, b):
    state = a.state_dict()
    assert state.keys() == b.state_dict().keys()
    for key, value in b.state_dict().items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == state[key].dtype
            assert torch.equal(value, state[key])
        else:
            assert value == state[key]


@pytest.mark.parametrize("name", LAYERS)
def test_every_part_comes_back_exactly(name, tmp_path):
    moe, path = layer(name), tmp_path / "moe.safetensors"
    store.save(moe, path)
    again = store.load(path)[""]
    same(moe, again)
    assert again.step == 3
    for field in ("inp", "scorer", "norm", "mods", "select", "gate", "aux", "taps", "executor", "dim"):
        assert again.config[field] == moe.config[field]
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in moe.parameters()]
    assert torch.equal(again.eval()(tokens()), moe.eval()(tokens()))
    assert torch.equal(again.routing.gate_N, moe.routing.gate_N)


@pytest.mark.parametrize("name", LAYERS)
def test_a_spec_is_json_and_says_everything(name):
    moe = layer(name)
    spec = json.loads(json.dumps(spec_of(moe), allow_nan=False))
    again = layer_of(spec)
    assert spec_of(again) == spec
    again.load_state_dict(moe.state_dict())
    assert torch.equal(again.eval()(tokens()), moe.eval()(tokens()))


def test_the_selection_bias_is_not_flat_in_these_tests():
    assert layer("sigmoid groups").router.mods[0].bias_E.abs().max() > 0.1


def test_the_file_is_safetensors_with_a_versioned_header(tmp_path):
    store.save(layer(), tmp_path / "moe.safetensors")
    with safetensors.safe_open(tmp_path / "moe.safetensors", framework="pt") as file:
        header = json.loads(file.metadata()["polyroute"])
    assert (header["format"], header["version"]) == ("polyroute-moe", 1)
    assert header["layers"][""]["select"] == {"part": "selection.TopK", "k": 2, "on": "scores"}
    assert os.listdir(tmp_path) == ["moe.safetensors"]


class Stack(nn.Module):
    """Two layers that share a pool and the cell of their routers."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        pool, cell = Experts(D, F, E), nn.GRUCell(3, 3)
        self.head = nn.Linear(D, D)
        self.layers = nn.ModuleList(MoE(D, F, E, pool=pool, inp=Recurrent(cell, detach=True)) for _ in range(2))

    def forward(self, x):
        context = TokenContext(x.reshape(-1, D), tuple(x.shape[:2]))
        for moe in self.layers:
            x = moe(x, context=context)
        return x


def test_what_layers_share_is_saved_once_and_shared_again(tmp_path):
    model, path = Stack(), tmp_path / "moe.safetensors"
    store.save(model, path)
    tensors = load_file(path)
    assert len([key for key in tensors if "w1_EGD" in key]) == len([key for key in tensors if "weight_hh" in key]) == 1
    first, second = store.load(path).values()
    assert first.pool is second.pool
    assert first.router.inp.cell is second.router.inp.cell
    assert first.router.inp.project is not second.router.inp.project
    again = Stack(seed=1)
    again.layers = nn.ModuleList([first, second])
    assert torch.equal(again(tokens()), model(tokens()))
    other, head = Stack(seed=2), Stack(seed=2).head.weight
    store.load_into(other, path)
    assert torch.equal(other(tokens()), model(tokens()))
    assert other.layers[0].pool is other.layers[1].pool
    assert torch.equal(other.head.weight, head)


class Net(nn.Module):
    """Token ids -> r [B, L, 3]."""

    width = 3

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, 3)

    def forward(self, ids):
        return self.table(ids)


@pytest.mark.parametrize("shared_gate", [False, True])
def test_a_chain_whose_first_layer_made_what_all_hold(shared_gate, tmp_path):
    torch.manual_seed(0)
    chain = Chain(MoE(D, F, E, shared=3), 3, shared_gate=shared_gate)
    store.save(chain, tmp_path / "moe")
    steps = list(store.load(tmp_path / "moe").values())
    assert len({id(step.pool) for step in steps}) == len({id(step.shared) for step in steps}) == 1
    assert len({id(step.router.scorer.weight) for step in steps}) == (1 if shared_gate else 3)
    again = Chain(MoE(D, F, E), 3)
    again.steps = nn.ModuleList(steps)
    assert torch.equal(again(tokens()), chain(tokens()))
    other = Chain(MoE(D, F, E, shared=3), 3, shared_gate=shared_gate)
    store.load_into(other, tmp_path / "moe")
    assert torch.equal(other(tokens()), chain(tokens()))


def test_atoms_are_a_pool_too(tmp_path):
    atoms = pytest.importorskip("polyroute.nn.atoms")
    torch.manual_seed(0)
    moe = MoE(D, 1, 9, **{**LAYERS["keys"], "scorer": ProductKeys(3, 3)}, pool=atoms.AtomBank(D, 9, act="relu"))
    store.save(moe, tmp_path / "moe")
    assert torch.equal(store.load(tmp_path / "moe")[""](tokens()), moe(tokens()))


def test_weights_tied_by_storage_are_both_written(tmp_path):
    moe = MoE(D, F, E)
    moe.router.scorer.weight = nn.Parameter(moe.pool.w1_EGD.detach()[0, :E])
    store.save(moe, tmp_path / "moe")
    same(moe, store.load(tmp_path / "moe")[""])


def test_modules_of_the_caller_are_named_and_given_again(tmp_path):
    torch.manual_seed(0)
    net, path = Net(), tmp_path / "moe.safetensors"
    moe = MoE(D, F, E, inp=TokenStream(net))
    with pytest.raises(ConfigError, match=r"inp\.network.*Net.*modules"):
        store.save(moe, path)
    store.save(moe, path, modules={"net": net})
    with pytest.raises(CheckpointError, match="'net'"):
        store.load(path)
    fresh = Net()
    again = store.load(path, modules={"net": fresh})[""]
    assert again.router.inp.network is fresh
    assert torch.equal(fresh.table.weight, net.table.weight)


def test_a_teacher_that_is_not_in_the_layer_is_not_forgotten(tmp_path):
    torch.manual_seed(0)
    teacher, path = FeedForward(D, F), tmp_path / "moe.safetensors"
    moe = MoE(D, F, E, aux=(PA(0.1, teacher=teacher),))
    with pytest.raises(ConfigError, match=r"FeedForward.*modules"):
        store.save(moe, path)
    assert not path.exists()
    store.save(moe, path, modules={"teacher": teacher})
    again = store.load(path, modules={"teacher": teacher})[""]
    assert again.config["aux"][0].teacher is teacher


def test_shared_networks_given_as_modules_and_pools_put_in_later(tmp_path):
    torch.manual_seed(0)
    moe = MoE(D, F, E, shared=GatedFeedForward(D, 3), norm=Sigmoid())
    moe.pool = Experts(D, 9, E, act="geglu")
    store.save(moe, tmp_path / "a")
    again = store.load(tmp_path / "a")[""]
    assert type(again.shared) is GatedFeedForward
    assert torch.equal(again(tokens()), moe(tokens()))
    grown = upcycle(moe, exact_start=True).moe
    store.save(grown, tmp_path / "b")
    assert torch.equal(store.load(tmp_path / "b")[""](tokens()), grown(tokens()))


def test_dtypes_and_frozen_parameters_come_back(tmp_path):
    moe = layer("sigmoid groups").bfloat16()
    moe.router.scorer.weight.requires_grad_(False)
    store.save(moe, tmp_path / "moe")
    again = store.load(tmp_path / "moe")[""]
    same(moe, again)
    assert again.pool.w1_EGD.dtype == torch.bfloat16
    assert not again.router.scorer.weight.requires_grad
    with pytest.raises(CheckpointError, match=r"bfloat16.*expected|expected.*float32"):
        store.load_into(MoE(D, F, E, **LAYERS["sigmoid groups"]), tmp_path / "moe")


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"select": TopK(3)}, '"k": 3'),
        ({"gate": Raw()}, "gates.Raw"),
        ({"act": "relu"}, "act"),
        ({"mods": (SelectionBias(),)}, "SelectionBias"),
    ],
)
def test_another_architecture_is_refused_before_anything_changes(other, says, tmp_path):
    store.save(layer(), tmp_path / "moe")
    target = MoE(D, F, E, **other)
    before = {key: value.clone() for key, value in target.state_dict().items() if isinstance(value, torch.Tensor)}
    with pytest.raises(CheckpointError, match=says):
        store.load_into(target, tmp_path / "moe")
    assert all(torch.equal(target.state_dict()[key], value) for key, value in before.items())
    assert target.step == 0


def rewritten(path, change):
    """The file again, after a change of (tensors, header)."""
    with safetensors.safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["polyroute"])
    tensors = load_file(path)
    change(tensors, header)
    save_file(tensors, path, metadata={"polyroute": json.dumps(header)})


def spec_change(field, value):
    return lambda tensors, header: header["layers"][""].update({field: value})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t, h: h.update(version=2), "version 2"),
        (lambda t, h: h.update(format="polyroute-router"), "polyroute-router"),
        (lambda t, h: h.pop("layers"), "without a proper layers"),
        (lambda t, h: h.update(layers={"": 3}), "without a spec"),
        (lambda t, h: h.update(same={"/pool.w2_EFO": []}), "without a proper same"),
        (lambda t, h: h.update(same={"/pool.w2_EFO": "elsewhere"}), "a proper same"),
        (lambda t, h: h.update(same={"/pool.w2_EFO": "/elsewhere"}), "elsewhere|w2_EFO"),
        (lambda t, h: h.update(same={"b/pool.w2_EFO": "/pool.w2_EFO"}), "a proper same"),
        (lambda t, h: t.pop("/router.scorer.weight"), "router.scorer.weight"),
        (lambda t, h: t.update({"/router.more": torch.zeros(1)}), "router.more"),
        (lambda t, h: t.update({"/router.scorer.weight": torch.zeros(4, 9)}), r"\(4, 9\)"),
        (lambda t, h: t.update({"/pool.w2_EFO": torch.zeros(4, 5, 8)}), r"w2_EFO \[4, 5, 8\]"),
        (spec_change("num_experts", 10**12), "1000000000000"),
        (spec_change("select", {"part": "selection.TopKay"}), "TopKay"),
        (spec_change("select", {"part": "os.system", "command": "true"}), "os.system"),
        (spec_change("select", {"part": "selection.math"}), "selection.math"),
        (spec_change("select", {"part": "experts.Experts", "dim": 1}), "experts.Experts"),
        (spec_change("select", {"part": "selection.TopK", "q": 2}), "'q'"),
        (spec_change("select", {"part": "selection.TopK", "k": 9}), "select.k"),
        (spec_change("shared", {"module": "0", "kind": "Linear"}), "Linear"),
        (spec_change("surprise", 1), "surprise"),
        (spec_change("executor", "quick"), "executor 'quick'"),
        (lambda t, h: t.update({"other/pool.w2_EFO": torch.zeros(1)}), "the tensor 'other/pool.w2_EFO'"),
        (lambda t, h: h["extra"].update({"/_extra_state": {"step": "x"}}), "step 'x'"),
        (lambda t, h: h["extra"].update({"/_extra_state": {}}), "step None"),
        (lambda t, h: t.update({"/pool.w2_EFO": t["/pool.w2_EFO"].to(torch.int32)}), "w2_EFO torch.int32"),
    ],
)
def test_changed_files_are_refused(change, says, tmp_path):
    path = tmp_path / "moe.safetensors"
    store.save(layer(), path)
    rewritten(path, change)
    with pytest.raises(CheckpointError, match=says):
        store.load(path)


def test_files_of_another_kind(tmp_path):
    path = tmp_path / "moe.safetensors"
    with pytest.raises(CheckpointError, match="no file"):
        store.load(path)
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="damaged or other file"):
        store.load(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="no polyroute header"):
        store.load(path)
    store.save(layer(), path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="damaged"):
        store.load(path)


def test_a_place_that_cannot_hold_a_file_is_named_before_any_work(tmp_path):
    for place in (tmp_path / "none" / "moe.safetensors", tmp_path):
        with pytest.raises(ConfigError, match="path: expected a file in a folder that exists"):
            store.save(layer(), place)
    with pytest.raises(ConfigError, match="module: expected a module with MoE layers"):
        store.save("layer", tmp_path / "moe.safetensors")
    assert os.listdir(tmp_path) == []


def test_layers_whose_names_have_a_slash_share_again(tmp_path):
    pool = Experts(D, F, E)
    model = nn.ModuleDict({"block/0": MoE(D, F, E, pool=pool), "block/1": MoE(D, F, E, pool=pool)})
    store.save(model, tmp_path / "moe.safetensors")
    again = store.load(tmp_path / "moe.safetensors")
    assert again["block/0"].pool.w2_EFO is again["block/1"].pool.w2_EFO
    assert torch.equal(again["block/1"](tokens()), model["block/1"](tokens()))


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "moe.safetensors"
    moe = layer()
    store.save(moe, path)
    before = path.read_bytes()

    def broken(tensors, target, metadata):
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", broken)
    with pytest.raises(OSError, match="disk full"):
        store.save(layer(seed=1), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["moe.safetensors"]


@dataclass(frozen=True)
class Mine:
    """A part from outside polyroute."""

    def build(self, dim, num_experts):
        return TopK(2)


def test_what_cannot_be_described_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"select.*Mine"):
        store.save(MoE(D, F, E, select=Mine()), tmp_path / "moe")
    with pytest.raises(ConfigError, match="MoE layers"):
        store.save(nn.Linear(2, 2), tmp_path / "moe")
    store.save(MoE(D, F, E, select=Mine()), tmp_path / "moe", spec={"": spec_of(MoE(D, F, E))})
    assert store.load(tmp_path / "moe")[""].config["select"] == TopK(2)


def test_other_layers_than_the_module_has(tmp_path):
    store.save(Stack(), tmp_path / "moe")
    with pytest.raises(CheckpointError, match=r"layers\.1"):
        store.load_into(layer(), tmp_path / "moe")


def test_only_frozen_parts_of_the_package_have_names():
    assert part_class("gates.Renorm") is Renorm
    for name in ("gates.torch", "gates.Tensor", "moe.MoE", "gates", "gates.score_of", "os.path", "..gates.Raw", ""):
        with pytest.raises(ConfigError, match="a part of polyroute"):
            part_class(name)


def test_errors_of_a_spec_are_typed():
    spec = spec_of(layer())
    with pytest.raises(ConfigError, match="dim: expected a whole number"):
        layer_of({**spec, "dim": "wide"})
    with pytest.raises(ConfigError, match="spec"):
        layer_of({name: value for name, value in spec.items() if name != "width"})
    with pytest.raises((ConfigError, ShapeError)):
        layer_of({**spec, "num_experts": 1})


def test_a_missing_library_names_its_extra(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(MissingExtraError, match=r"polyroute\[nn\]"):
        store.save(layer(), tmp_path / "moe")
