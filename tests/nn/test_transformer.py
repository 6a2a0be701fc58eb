"""The small transformer: causal, blind to padding, the same with checkpointing, and a full context for every layer."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'polyroute[nn]'")

import torch
from torch import nn

from polyroute.errors import ConfigError, ShapeError
from polyroute.nn.experts import FeedForward
from polyroute.nn.inputs import Recurrent
from polyroute.nn.losses import LBL
from polyroute.nn.moe import MoE, aux_losses
from polyroute.nn.normalise import SelectionBias
from polyroute.nn.transformer import Block, TinyLM, TinyNet

pytestmark = pytest.mark.torch
V, D, L = 11, 16, 9


class Spy(nn.Module):
    """A feed-forward part that keeps the contexts it was given."""

    def __init__(self):
        super().__init__()
        self.inner, self.seen = FeedForward(D, 8), []

    def forward(self, x, *, context=None):
        self.seen.append((x, context, context.carry_TR))
        context.carry_TR = torch.full((context.num_tokens, 1), float(context.layer))
        return self.inner(x, context=context)


def model(ffn=lambda layer: MoE(D, 8, 4), layers=2, **options):
    torch.manual_seed(0)
    return TinyLM(V, D, layers, 2, ffn, context=L, **options)


def ids(seed=0, rows=3):
    return torch.randint(V, (rows, L), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("options", [{}, {"needs_attention": True}], ids=["fused", "open"])
def test_no_token_reads_a_later_one(options):
    lm, x = model(**options), ids()
    changed = x.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % V
    a, b = lm(x), lm(changed)
    torch.testing.assert_close(a[:, :5], b[:, :5])
    assert (a[:, 5:] - b[:, 5:]).abs().amax(-1).min() > 1e-4


@pytest.mark.parametrize("options", [{}, {"needs_attention": True}], ids=["fused", "open"])
def test_padding_changes_nothing(options):
    lm, x = model(**options), ids()
    valid = torch.ones(3, L, dtype=torch.bool)
    valid[0, 6:] = False  # at the end
    valid[1, :2] = False  # at the start: its rows see only themselves
    a, other = lm(x, valid), x.clone()
    other[~valid] = (other[~valid] + 3) % V
    torch.testing.assert_close(a[valid], lm(other, valid)[valid])
    torch.testing.assert_close(lm(x, torch.ones_like(valid)), lm(x))
    torch.testing.assert_close(a[0, :6], lm(x[:1, :6])[0])
    assert a.isfinite().all()


def test_open_attention_is_fused_attention_and_its_rows_sum_to_one():
    fused, spies, x = model(lambda layer: Spy()), [Spy(), Spy()], ids()
    opened = model(lambda layer: spies[layer], needs_attention=True)
    opened.load_state_dict(fused.state_dict())
    torch.testing.assert_close(opened(x), fused(x))
    attention = spies[0].seen[0][1].attention_BLL
    torch.testing.assert_close(attention.sum(-1), torch.ones(3, L))
    assert (attention.triu(1) == 0).all()


def test_every_layer_gets_a_full_context():
    spies, x = [Spy(), Spy()], ids()
    lm = model(lambda layer: spies[layer])
    valid = torch.ones(3, L, dtype=torch.bool)
    lm(x, valid)
    for layer, spy in enumerate(spies):
        h, ctx, carry = spy.seen[0]
        assert ctx.layer == layer
        assert ctx.shape == (3, L)
        assert torch.equal(ctx.token_ids_T, x.flatten())
        assert ctx.valid_T.all()
        assert ctx.attention_BLL is None
        torch.testing.assert_close(h.flatten(0, 1), ctx.x_TD)
        assert (carry is None) == (layer == 0)
    assert (spies[1].seen[0][2] == 0).all(), "layer 1 gets what layer 0 left"
    embedded = (lm.tokens(x) + lm.positions.weight).flatten(0, 1)
    torch.testing.assert_close(spies[0].seen[0][1].pre_attention_TD, embedded)


def test_a_block_returns_the_routers_state():
    torch.manual_seed(0)
    cell = nn.GRUCell(6, 6)
    block = Block(D, 2, MoE(D, 8, 4, inp=Recurrent(cell)), layer=0)
    x = torch.randn(2, L, D)
    y, carry = block(x, None, None, None, False)
    again, other = block(x, carry, None, None, False)
    assert carry.shape == (2 * L, 6)
    assert not torch.equal(carry, other)
    assert y.shape == again.shape == x.shape


def recurrent(layer, cells=[]):  # noqa: B006
    if layer == 0:
        cells[:] = [nn.GRUCell(6, 6)]
    return MoE(D, 8, 4, inp=Recurrent(cells[0]), mods=[SelectionBias()], aux=[LBL(0.01, "global")])


def test_checkpointing_gives_the_same_gradients_and_counts():
    x, found = ids(), {}
    for name, flag in (("plain", False), ("checkpoint", True)):
        lm = model(recurrent, layers=3, checkpoint=flag)
        loss = lm(x).square().mean() + sum(aux_losses(lm).values())
        loss.backward()
        found[name] = [loss.detach(), *(p.grad for p in lm.parameters())]
        assert all(grad is not None for grad in found[name])
        assert all(int(m.load_E.sum()) == 3 * L * 2 for m in lm.modules() if hasattr(m, "load_E"))
    for a, b in zip(found["plain"], found["checkpoint"], strict=True):
        torch.testing.assert_close(a, b)


def test_features_without_attention_are_tokens_by_themselves():
    torch.manual_seed(0)
    net = TinyNet(5, 3, D, 2, 0, lambda layer: MoE(D, 8, 4))
    x = torch.randn(4, 7, 5)
    y = net(x)
    assert y.shape == (4, 7, 3)
    torch.testing.assert_close(net(x.flip(1)).flip(1), y)
    context = TinyNet(5, 3, D, 2, 2, lambda layer: MoE(D, 8, 4))
    assert not torch.allclose(context(x.flip(1)).flip(1), context(x), atol=1e-3)


def test_bad_arguments_are_named():
    with pytest.raises(ConfigError, match="num_heads: expected a divisor of dim = 16, got 3"):
        TinyLM(V, D, 1, 3, lambda layer: FeedForward(D, 8))
    with pytest.raises(ConfigError, match="num_layers"):
        TinyLM(V, D, 0, 2, lambda layer: FeedForward(D, 8))
    with pytest.raises(ConfigError, match="needs_attention"):
        TinyNet(5, 3, D, 1, 0, lambda layer: FeedForward(D, 8), needs_attention=True)
    with pytest.raises(ConfigError, match="width"):
        TinyNet(5, 3, D, 1, 0, lambda layer: FeedForward(D, 8), project=False)
    lm = model()
    with pytest.raises(ShapeError, match="ids"):
        lm(torch.zeros(1, L + 1, dtype=torch.int64))
    with pytest.raises(ShapeError, match="valid"):
        lm(ids(), torch.ones(3, L - 1, dtype=torch.bool))
    with pytest.raises(ShapeError, match="x: expected"):
        TinyNet(5, 3, D, 1, 0, lambda layer: FeedForward(D, 8))(torch.zeros(2, 3, 4))
