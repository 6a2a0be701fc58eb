"""A model cut into slices: exact with all of them, and only routers learn."""

from __future__ import annotations

import pytest

from polyroute.errors import ConfigError

torch = pytest.importorskip("torch")

from polyroute.nn.experts import FeedForward  # noqa: E402
from polyroute.nn.moe import MoE, aux_losses, layers  # noqa: E402
from polyroute.nn.transformer import TinyLM  # noqa: E402
from polyroute.nn.transplant import activations, feed_forwards, transplant  # noqa: E402
from polyroute.recipes.factor_llm import factor_llm, routers  # noqa: E402

pytestmark = pytest.mark.torch


def dense(seed=0):
    torch.manual_seed(seed)
    return TinyLM(11, 8, 2, 2, lambda layer: FeedForward(8, 12))


IDS = torch.arange(24).reshape(2, 12) % 11


@pytest.mark.parametrize("order", ["contiguous", "random", "kmeans"])
def test_with_all_slices_on_the_model_is_the_dense_one(order):
    model = dense()
    torch.testing.assert_close(factor_llm(model, 4, k=4, order=order)(IDS), model(IDS), rtol=0, atol=1e-5)


def test_half_of_the_slices_run_twice_as_strong():
    student = factor_llm(dense(), 4)
    student(IDS)
    for layer in layers(student).values():
        assert layer.routing.K == 2
        assert torch.equal(layer.routing.gate_N, torch.full((48,), 2.0))


def test_hard_gates_pass_routers_no_gradient_and_the_prior_approximate_loss_does():
    student = factor_llm(dense(), 4)
    trained = routers(student)
    assert {id(p) for p in student.parameters() if p.requires_grad} == {id(p) for p in trained}
    y = student(IDS)
    assert not y.requires_grad  # hard gates: the language loss never reaches a router
    sum(aux_losses(student).values()).backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in trained)


def test_the_original_is_left_alone():
    model = dense()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    student = factor_llm(model, 4)
    assert len(feed_forwards(model)) == 2
    assert not any(p is q for p in model.parameters() for q in student.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_activations_are_what_the_second_matrix_reads():
    model, read = dense(), {}
    hooks = [
        network.w2.register_forward_pre_hook(lambda module, inputs, name=name: read.update({name: inputs[0]}))
        for name, network in feed_forwards(model).items()
    ]
    model(IDS)
    for hook in hooks:
        hook.remove()
    found = activations(model, IDS)
    assert list(found) == list(read)
    for name, value in found.items():
        torch.testing.assert_close(value, read[name].flatten(0, 1))
    assert not any(network._forward_pre_hooks for network in feed_forwards(model).values())


def test_networks_inside_expert_layers_are_not_cut_again():
    torch.manual_seed(0)
    model = TinyLM(11, 8, 1, 2, lambda layer: MoE(8, 6, 2, shared=4))
    with pytest.raises(ConfigError, match="FeedForward"):
        feed_forwards(model)
    with pytest.raises(ConfigError, match="holds one"):
        transplant(FeedForward(8, 12), lambda name, network: network)
