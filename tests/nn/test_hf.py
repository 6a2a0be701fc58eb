"""Expert layers of transformers: outputs, gradients, weights and router logits against transformers itself."""

from __future__ import annotations

import copy
import json
import sys

import pytest

from polyroute.errors import CheckpointError, ConfigError, MissingExtraError, ShapeError, UnknownNameError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.0", reason="needs transformers 5: pip install '.[hf]'")

from polyroute.nn import hf  # noqa: E402
from polyroute.nn.gates import Raw  # noqa: E402
from polyroute.nn.losses import LBL  # noqa: E402
from polyroute.nn.moe import MoE, aux_losses  # noqa: E402
from polyroute.nn.normalise import Delta, SelectionBias  # noqa: E402
from polyroute.nn.selection import TopK, TopP  # noqa: E402
from polyroute.nn.surgery import slice_ffn, upcycle  # noqa: E402

pytestmark = pytest.mark.torch

SMALL = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
}
HEADS = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
DEEP = {**HEADS, "n_routed_experts": 8, "moe_intermediate_size": 12, "n_shared_experts": 2, "first_k_dense_replace": 1}
QWEN = {"num_experts": 6, "moe_intermediate_size": 12, "shared_expert_intermediate_size": 20, "decoder_sparse_step": 1}
CASES = {
    "mixtral": ("Mixtral", {"num_local_experts": 4}),
    "mixtral gelu": ("Mixtral", {"num_local_experts": 4, "hidden_act": "gelu"}),
    "olmoe": ("Olmoe", {"num_experts": 8}),
    "olmoe renormed": ("Olmoe", {"num_experts": 8, "norm_topk_prob": True}),
    "qwen2": ("Qwen2Moe", QWEN),
    "qwen2 renormed": ("Qwen2Moe", {**QWEN, "norm_topk_prob": True}),
    "qwen3": ("Qwen3Moe", QWEN),
    "qwen3 renormed": ("Qwen3Moe", {**QWEN, "norm_topk_prob": True, "head_dim": 8}),
    "deepseek2 greedy": ("DeepseekV2", {**DEEP, "topk_method": "greedy", "routed_scaling_factor": 1.7}),
    "deepseek2 groups": (
        "DeepseekV2",
        {**DEEP, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2, "routed_scaling_factor": 16.0},
    ),
    "deepseek3": ("DeepseekV3", {**DEEP, "n_group": 4, "topk_group": 2, "num_hidden_layers": 3}),
    "deepseek3 raw": ("DeepseekV3", {**DEEP, "n_group": 2, "topk_group": 1, "norm_topk_prob": False}),
}


def model_of(case, seed=0, **changed):
    name, options = CASES[case]
    torch.manual_seed(seed)
    config = getattr(transformers, f"{name}Config")(**{**SMALL, **options, **changed})
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for part in model.modules():
            if type(part).__name__ in hf.FAMILIES:  # wide enough that gates and biases decide something
                part.gate.weight.normal_(std=0.5)
                part.experts.gate_up_proj.normal_(std=0.3)
                part.experts.down_proj.normal_(std=0.3)
                if hasattr(part.gate, "e_score_correction_bias"):
                    part.gate.e_score_correction_bias.copy_(torch.linspace(-0.3, 0.3, part.gate.num_experts))
    return model


def first_block(case, seed=0, **options):
    return next(iter(hf.blocks(model_of(case, seed, **options)).values()))


def states(shape=(2, 7, 16), seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ids(seed=2, shape=(2, 9)):
    return torch.randint(1, 50, shape, generator=torch.Generator().manual_seed(seed))


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_a_converted_block_gives_the_same_outputs_and_gradients(case):
    block = first_block(case)
    moe = hf.convert(block)
    x1, x2 = states().requires_grad_(), states().requires_grad_()
    y1, y2 = block(x1), moe(x2)
    close(y2, y1)
    grad = states(y1.shape, 5)
    y1.backward(grad)
    y2.backward(grad)
    close(x2.grad, x1.grad)
    close(moe.router.scorer.weight.grad, block.gate.weight.grad)
    close(moe.pool.w1_EGD.grad, block.experts.gate_up_proj.grad)
    close(moe.pool.w2_EFO.grad, block.experts.down_proj.grad.transpose(1, 2))
    shared = getattr(block, "shared_expert", getattr(block, "shared_experts", None))
    assert (moe.shared is None) == (shared is None)
    if shared is not None:
        close(moe.shared.w1.weight.grad, torch.cat([shared.gate_proj.weight.grad, shared.up_proj.weight.grad]))
        close(moe.shared.w2.weight.grad, shared.down_proj.weight.grad)
    if hasattr(block, "shared_expert_gate"):
        close(moe.shared.gate.weight.grad, block.shared_expert_gate.weight.grad)


@pytest.mark.parametrize("case", CASES)
def test_weights_come_back_bit_by_bit(case):
    source, target = first_block(case), first_block(case, seed=9)
    before = {name: value.clone() for name, value in source.state_dict().items()}
    hf.write_back(hf.convert(source), target)
    assert target.state_dict().keys() == before.keys()
    for name, value in target.state_dict().items():
        assert torch.equal(value, before[name])
        assert torch.equal(source.state_dict()[name], before[name])


@pytest.mark.parametrize("case", CASES)
def test_an_installed_model_gives_what_the_model_gave(case):
    plain, model = model_of(case), model_of(case)
    names = list(model.state_dict())
    assert hf.install(model) is model
    assert list(model.state_dict()) == names
    expected = plain(ids(), labels=ids(), output_router_logits=True)
    got = model(ids(), labels=ids(), output_router_logits=True)
    close(got.logits, expected.logits)
    close(got.loss, expected.loss)
    logits, wanted = getattr(got, "router_logits", None), getattr(expected, "router_logits", None)
    assert (logits is None) == (wanted is None)
    for ours, theirs in zip(logits or (), wanted or (), strict=True):
        assert ours.dtype == theirs.dtype
        close(ours, theirs)
    expected.loss.backward()
    got.loss.backward()
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None:
            close(ours.grad, theirs.grad)


@pytest.mark.parametrize("case", ["mixtral", "qwen2", "deepseek3"])
@pytest.mark.parametrize("executor", ["dense", "grouped", "padded", "sorted_loop"])
def test_every_executor_can_be_installed(case, executor):
    plain, model = model_of(case), hf.install(model_of(case), executor)
    close(model(ids()).logits, plain(ids()).logits)
    assert {moe.executor for moe in hf.installed(model).values()} == {executor}


@pytest.mark.parametrize("case", ["olmoe", "deepseek3"])
def test_restoring_leaves_no_trace(case):
    plain, model = model_of(case), model_of(case)
    hf.install(hf.install(model))
    assert hf.installed(model).keys() == hf.blocks(model).keys()
    hf.restore(model)
    assert not hf.installed(model)
    for ours, theirs in zip(model.modules(), plain.modules(), strict=True):
        assert ours.__dict__.keys() == theirs.__dict__.keys()
        assert len(ours._forward_pre_hooks) == len(theirs._forward_pre_hooks)
    assert torch.equal(model(ids()).logits, plain(ids()).logits)


def test_an_installed_layer_is_the_whole_block():
    model = hf.install(model_of("qwen2"))
    for name, moe in hf.installed(model).items():
        close(moe(states()), model.get_submodule(name)(states()))
        assert moe.routing.shape == (2, 7)


def test_a_copy_of_an_installed_model_runs_on_weights_of_its_own():
    model = hf.install(model_of("deepseek3"))
    twin = copy.deepcopy(model)
    expected = model(ids()).logits
    with torch.no_grad():
        for block in hf.blocks(model).values():
            block.experts.down_proj.zero_()
            block.gate.e_score_correction_bias.zero_()
    close(twin(ids()).logits, expected)
    assert not torch.allclose(model(ids()).logits, expected)


def test_training_an_installed_model_trains_the_model():
    model = hf.install(model_of("deepseek3").train())
    block = next(iter(hf.blocks(model).values()))
    moe = next(iter(hf.installed(model).values()))
    before, bias = block.experts.down_proj.detach().clone(), block.gate.e_score_correction_bias.clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(ids(), labels=ids()).loss.backward()
    optimizer.step()
    moe.end_step()
    assert not torch.equal(block.experts.down_proj, before)
    load = moe.routing.count_E.float()
    step = 1e-3 * (load.mean() - load).sign()
    close(block.gate.e_score_correction_bias - bias, step - step.mean())


class Counts:
    """A tap that keeps what it saw."""

    def __init__(self):
        self.seen = []

    def build(self, dim, num_experts):
        return self

    def observe(self, routing, ctx):
        self.seen.append((ctx.layer, ctx.shape, int(routing.count_E.sum())))


@pytest.mark.parametrize("case", ["mixtral", "deepseek3"])
def test_generation_and_gradient_checkpointing_go_on(case):
    plain, model = model_of(case), hf.install(model_of(case))
    options = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(model.generate(ids(), **options), plain.generate(ids(), **options))
    for part in (plain, model):
        part.train()
    counts = Counts()
    hf.install(model, taps=(counts,), aux=(LBL(0.5),))
    model.activation_checkpointing_enable()
    model(ids(), labels=ids()).loss.backward()
    plain(ids(), labels=ids()).loss.backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        close(ours.grad, theirs.grad)
    assert len(counts.seen) == len(hf.blocks(model))  # counted once, although blocks ran twice
    moe = next(iter(hf.installed(model).values()))
    assert aux_losses(moe)["load_balance"].requires_grad
    if case == "deepseek3":
        assert int(moe.router.mods[0].load_E.sum()) == 36


def test_our_buffers_follow_the_model_to_its_device():
    model = hf.install(model_of("deepseek3"))
    link = next(iter(hf.blocks(model).values())).polyroute_link
    model.to("meta")
    link.relink()
    assert {part.device.type for part in (*link.moe.parameters(), *link.moe.buffers())} == {"meta"}


def test_modifiers_and_taps_can_be_put_into_a_model():
    counts = Counts()
    model = hf.install(model_of("mixtral"), mods=(Delta(),), taps=(counts,))
    plain = model(ids()).logits
    assert counts.seen == [(0, (2, 9), 36), (1, (2, 9), 36)]
    moe = next(iter(hf.installed(model).values()))
    moe.router.mods[-1].delta_E.data[3] = 100.0
    changed = model(ids()).logits
    assert moe.routing.mask_TE()[:, 3].all()
    assert not torch.allclose(changed, plain)


@pytest.mark.parametrize("executor", ["sorted_loop", "dense"])
def test_a_router_whose_number_of_experts_varies(executor):
    everything = hf.install(model_of("mixtral"), select=TopK(4), gate=Raw())
    expected = everything(ids()).logits
    hf.install(everything, executor, select=TopP(1.0), gate=Raw())
    close(everything(ids()).logits, expected)
    model = hf.install(model_of("mixtral"), executor, select=TopP(0.5), gate=Raw())
    with hf.tap(model) as found:
        model(ids())
    for name, moe in hf.installed(model).items():
        used = torch.bincount(moe.routing.tok_N, minlength=18)
        assert used.min() < used.max()
        assert torch.equal(found[name].count_E, moe.routing.count_E)
        assert found[name].K is None


@pytest.mark.parametrize("case", ["olmoe", "deepseek2 groups", "deepseek3"])
def test_a_tap_sees_the_same_with_and_without_our_parts(case):
    model = model_of(case)
    seen = []
    with torch.no_grad(), hf.tap(model, each=lambda name, routing: seen.append(name)) as plain:
        model(ids())
        expected = {name: block(states()) for name, block in hf.blocks(model).items()}
    assert seen == list(expected) * 2
    with torch.no_grad(), hf.tap(hf.install(model)) as ours:
        for block in hf.blocks(model).values():
            block(states())
    model(ids())
    assert len(seen) == 2 * len(expected)  # nothing is watched any more
    for name, block in hf.blocks(hf.restore(model)).items():
        a, b, moe = plain[name], ours[name], hf.convert(block)
        moe(states())
        for routing in (a, b):
            assert (routing.shape, routing.num_tokens, routing.K) == ((2, 7), 14, 2)
            assert torch.equal(routing.mask_TE(), moe.routing.mask_TE())
            close(routing.gates_TE(), moe.routing.gates_TE().detach())
            close(routing.probs_TE, moe.routing.probs_TE.detach())
            close(routing.logits_TE, moe.routing.logits_TE.detach())


def test_a_tap_leaves_padding_out():
    model, mask = model_of("olmoe"), torch.ones(2, 9, dtype=torch.long)
    mask[1, 6:] = 0
    with hf.tap(model, valid=mask) as found:
        model(ids(), attention_mask=mask)
    for routing in found.values():
        assert routing.num_valid() == 15
        assert int(routing.count_E.sum()) == 30
        assert not routing.mask_TE()[15:].any()


def saved(case, folder, **options):
    model = model_of(case)
    model.save_pretrained(folder, **options)
    return model


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", ["50GB", "8KB"])  # one file; many shards
def test_experts_of_a_saved_checkpoint_are_those_of_the_model(case, size, tmp_path):
    model = saved(case, tmp_path, max_shard_size=size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (size == "8KB")
    wanted = {name: hf.convert(block).pool for name, block in hf.blocks(model).items()}
    from_model = hf.load_experts(model)
    found = hf.load_experts(tmp_path)
    assert [name.split(".")[:3] for name in found] == [name.split(".")[:3] for name in wanted]
    for ours, again, experts in zip(found.values(), from_model.values(), wanted.values(), strict=True):
        assert ours.act == experts.act
        for a, b, c in zip(ours.parameters(), experts.parameters(), again.parameters(), strict=True):
            assert torch.equal(a, b)
            assert torch.equal(c, b)


def test_both_layouts_of_a_checkpoint_and_one_layer_of_it(tmp_path):
    from safetensors.torch import save_file

    model = model_of("qwen3")
    (tmp_path / "fused").mkdir()
    (tmp_path / "apart").mkdir()
    fused = {name: value for name, value in model.state_dict().items() if ".experts." in name}
    assert all(value.ndim == 3 for value in fused.values())
    apart = {}
    for name, value in fused.items():
        for e, matrix in enumerate(value):
            stem = name.rsplit(".", 1)[0]
            parts = {"gate_proj": matrix[:12], "up_proj": matrix[12:]} if "gate_up" in name else {"down_proj": matrix}
            apart |= {f"{stem}.{e}.{kind}.weight": part.contiguous() for kind, part in parts.items()}
    for name, tensors in (("fused", fused), ("apart", apart)):
        save_file(tensors, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps({"hidden_act": "silu"}))
        found = hf.load_experts(tmp_path / name, layers=[1])
        assert list(found) == ["model.layers.1.mlp"]
        assert torch.equal(found["model.layers.1.mlp"].w1_EGD, model.model.layers[1].mlp.experts.gate_up_proj)
    apart.pop("model.layers.1.mlp.experts.3.up_proj.weight")
    save_file(apart, tmp_path / "apart" / "model.safetensors")
    with pytest.raises(CheckpointError, match="up of 3"):
        hf.load_experts(tmp_path / "apart")
    apart["model.layers.1.mlp.experts.3.up_proj.weight"] = torch.zeros(12, 15)
    save_file(apart, tmp_path / "apart" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"\(12, 15\)"):
        hf.load_experts(tmp_path / "apart")


def test_a_saved_model_is_loaded_with_our_parts_in_it(tmp_path):
    model = saved("qwen2", tmp_path)
    again = hf.load_model(tmp_path, "dense").eval()
    assert len(hf.installed(again)) == 2
    close(again(ids()).logits, model(ids()).logits)
    with torch.no_grad():
        hf.installed(again)["model.layers.0.mlp"].router.scorer.weight.add_(1.0)
    again.save_pretrained(tmp_path / "again")
    third = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    for name, value in again.state_dict().items():
        assert torch.equal(value, third.state_dict()[name])


def test_bfloat16_models_keep_their_dtype():
    block = first_block("deepseek3").to(torch.bfloat16)
    block.gate.e_score_correction_bias = block.gate.e_score_correction_bias.float()
    block.experts.config._experts_implementation = "eager"  # grouped products refuse so narrow matrices
    moe = hf.convert(block)
    assert moe.pool.w1_EGD.dtype == moe.router.scorer.weight.dtype == torch.bfloat16
    assert moe.router.mods[0].bias_E.dtype == torch.float32
    x = states().bfloat16()
    torch.testing.assert_close(moe(x), block(x), rtol=0.05, atol=0.05)
    hf.write_back(moe, block)


def test_surgery_on_a_model():
    model = model_of("qwen3")
    dense = (
        transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**{**SMALL, **QWEN, "mlp_only_layers": [0, 1]}))
        .model.layers[0]
        .mlp
    )
    sliced = slice_ffn(hf.feed_forward(dense), 4)
    moe = MoE(16, 6, 4, pool=sliced, select=TopK(4))
    moe.router.scorer.weight.data.zero_()
    close(4 * moe(states()), dense(states()))
    grown = upcycle(hf.convert(next(iter(hf.blocks(model).values()))), bias_noise=0.0).moe
    assert grown.pool.num_experts == 12
    with pytest.raises(ShapeError, match=r"gate\.weight"):
        hf.write_back(grown, first_block("qwen3"))


def test_unknown_blocks_name_the_known_ones():
    with pytest.raises(UnknownNameError, match="MixtralSparseMoeBlock"):
        hf.convert(torch.nn.Linear(2, 2))
    with pytest.raises(UnknownNameError, match="Qwen3MoeSparseMoeBlock"):
        hf.install(torch.nn.Sequential(torch.nn.Linear(2, 2)))


def test_what_no_part_does_is_refused():
    block = first_block("mixtral")
    block.jitter_noise = 0.1
    with pytest.raises(ConfigError, match="jitter_noise"):
        hf.convert(block)
    block = first_block("deepseek2 greedy")
    block.gate.topk_method = "noaux_tc"
    with pytest.raises(UnknownNameError, match="noaux_tc"):
        hf.convert(block)
    block = first_block("olmoe")
    block.experts.config.hidden_act = "gelu_pytorch_tanh"
    with pytest.raises(ConfigError, match="hidden_act"):
        hf.convert(block)
    block = first_block("olmoe")
    block.experts = torch.nn.ModuleList()
    with pytest.raises(ConfigError, match="transformers 5"):
        hf.convert(block)


def test_a_bias_that_a_block_cannot_hold_is_not_lost_silently():
    moe = MoE(16, 12, 8, mods=(SelectionBias(),))
    block = first_block("qwen3", num_experts=8)
    hf.write_back(moe, block)
    moe.router.mods[0].bias_E[3] = 0.1
    with pytest.raises(ConfigError, match="no place"):
        hf.write_back(moe, block)


def test_a_failed_write_changes_nothing():
    target, moe = first_block("qwen2", seed=3), hf.convert(first_block("qwen2"))
    before = {name: value.clone() for name, value in target.state_dict().items()}
    moe.shared.w2.weight = torch.nn.Parameter(torch.zeros(16, 5))
    with pytest.raises(ShapeError, match="down_proj"):
        hf.write_back(moe, target)
    moe = hf.convert(first_block("qwen2"))
    moe.shared = None
    with pytest.raises(ConfigError, match="shared"):
        hf.write_back(moe, target)
    with pytest.raises(ConfigError, match="bfloat16"):
        hf.write_back(hf.convert(first_block("qwen2")).bfloat16(), target)
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


def test_folders_that_are_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json"):
        hf.load_experts(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        hf.load_experts(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x04not safetensors")
    with pytest.raises(CheckpointError, match="safetensors file"):
        hf.load_experts(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    with pytest.raises(CheckpointError, match="elsewhere"):
        hf.load_experts(tmp_path)
    index.write_text("[]")
    with pytest.raises(CheckpointError, match="weight_map"):
        hf.load_experts(tmp_path)
    (tmp_path / "config.json").write_text('{"hidden_act": "relu2"}')
    with pytest.raises(UnknownNameError, match="relu2"):
        hf.load_experts(tmp_path)


def test_missing_packages_name_their_extra(tmp_path, monkeypatch):
    saved("mixtral", tmp_path)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(MissingExtraError, match=r"polyroute\[nn\]"):
        hf.load_experts(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"polyroute\[hf\]"):
        hf.load_model(tmp_path)
