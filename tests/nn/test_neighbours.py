"""Scores of neighbours are mixed as written; nothing comes from the future, another sequence or padding."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'polyroute[nn]'")

import torch

from polyroute.errors import ConfigError, ShapeError
from polyroute.nn.losses import LBL
from polyroute.nn.moe import MoE, aux_losses
from polyroute.nn.neighbours import Neighbours
from polyroute.nn.normalise import CandidateMask, Sigmoid
from polyroute.nn.routing import TokenContext
from polyroute.nn.selection import TopK
from polyroute.nn.testbed import seeded
from polyroute.nn.transformer import TinyLM

pytestmark = pytest.mark.torch
B, L, D, E = 2, 7, 8, 4
KINDS = ("similarity", "attention", "uniform")


def draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def context(valid_T=None, seed=1):
    attention = draw(B, L, L, seed=seed + 50).exp().tril()
    return TokenContext(
        draw(B * L, D, seed=seed), (B, L), attention_BLL=attention / attention.sum(-1, keepdim=True), valid_T=valid_T
    )


def built(**options):
    norm = Neighbours(**options).build(D, E)
    if norm.weight is not None:
        with torch.no_grad():
            norm.weight.copy_(draw(D, D, seed=9))
    return norm


def by_hand(config, norm, logits_TE, ctx):
    """The definition, token by token."""
    out = torch.empty_like(logits_TE)
    probs, x, real = logits_TE.softmax(-1), ctx.x_TD, torch.ones(B * L, dtype=torch.bool)
    real = real if ctx.valid_T is None else ctx.valid_T
    w = torch.eye(D) if norm.weight is None else norm.weight
    for b in range(B):
        for i in range(L):
            t = b * L + i
            seen = [b * L + j for j in range(L) if real[b * L + j] and (j <= i or not config.causal)]
            seen = [s for s in seen if config.window is None or t - s < config.window] if real[t] else [t]
            if config.kind == "similarity":
                share = torch.stack([x[t] @ w @ x[s] for s in seen]).div(config.tau * D**0.5).softmax(-1)
            elif config.kind == "attention":
                share = ctx.attention_BLL[b, i, [s - b * L for s in seen]]
                share = share / share.sum()
            else:
                share = torch.full((len(seen),), 1 / len(seen))
            values = probs if config.mix == "probs" else logits_TE
            out[t] = share @ values[seen]
    return out if config.mix == "probs" else out.softmax(-1)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        *({"kind": kind, "mix": mix} for kind in KINDS for mix in ("probs", "logits")),
        {"causal": False},
        {"kind": "uniform", "causal": False},
        {"tau": 0.3},
        {"learned": True},
        *({"window": window, "learned": True} for window in (1, 2, 3, 7, 20)),
    ],
    ids=str,
)
def test_it_is_the_mean_over_neighbours_token_by_token(options, padded):
    valid_T = torch.tensor([True] * 5 + [False] * 2 + [False] + [True] * 6) if padded else None
    ctx, norm, logits = context(valid_T), built(**options), 3 * draw(B * L, E, seed=2)
    mixed = norm(logits, ctx)
    expected = by_hand(Neighbours(**options), norm, logits, ctx)
    assert torch.allclose(mixed, expected, atol=1e-5)
    assert torch.allclose(mixed.sum(-1), torch.ones(B * L), atol=1e-5)


@pytest.mark.parametrize("options", [*({"kind": k} for k in KINDS), {"window": 3}, {"learned": True}], ids=str)
def test_nothing_comes_from_the_future_or_from_another_sequence(options):
    norm, logits, ctx = built(**options), draw(B * L, E, seed=2).requires_grad_(), context()
    ctx.x_TD.requires_grad_()
    mixed = norm(logits, ctx)
    i = 3  # of the second sequence
    mixed[L + i].mul(torch.arange(E)).sum().backward()
    grad_T = logits.grad.abs().sum(-1)
    assert (grad_T[:L] == 0).all()
    assert (grad_T[L + i + 1 :] == 0).all()
    assert (grad_T[L + i - 2 : L + i + 1] > 0).all()
    if ctx.x_TD.grad is not None:
        assert (ctx.x_TD.grad[:L] == 0).all()
        assert (ctx.x_TD.grad[L + i + 1 :] == 0).all()


def test_attention_that_sees_the_future_is_cut():
    norm, logits, ctx = built(kind="attention"), draw(B * L, E), context()
    ctx.attention_BLL = torch.softmax(draw(B, L, L, seed=4), -1)
    assert torch.allclose(norm(logits, ctx)[0], logits.softmax(-1)[0], atol=1e-6), "the first token has itself alone"
    ctx.attention_BLL = torch.eye(L).flip(0).expand(B, L, L)
    assert torch.allclose(norm(logits, ctx)[0], logits.softmax(-1)[0], atol=1e-6), "nor is there anything else left"


def test_padding_is_nobodys_neighbour():
    real, logits = torch.arange(B * L) % L < 5, draw(B * L, E, seed=2)
    for options in ({"kind": "similarity", "causal": False}, {"window": 3}, {"kind": "uniform", "causal": False}):
        a, b = context(real), context(real)
        b.x_TD = torch.where(real[:, None], a.x_TD, 50.0)
        other = torch.where(real[:, None], logits, -7.0)
        norm = built(**options)
        assert torch.equal(norm(logits, a)[real], norm(other, b)[real])


def test_a_token_that_is_its_own_neighbour_is_the_inner_normaliser_exactly():
    logits, ctx = draw(B * L, E), context()
    assert torch.equal(built(kind="self")(logits, ctx), logits.softmax(-1))
    assert torch.equal(built(kind="self", inner=Sigmoid())(logits, ctx), logits.sigmoid())
    assert torch.allclose(built(tau=1e-4, window=None)(logits, _spread(ctx)), logits.softmax(-1), atol=1e-6)


def _spread(ctx):
    """States of one length, so that each is nearest to itself."""
    ctx.x_TD = torch.nn.functional.normalize(ctx.x_TD, dim=-1)
    return ctx


def test_tokens_that_are_the_same_route_alike_at_last():
    logits, ctx = 4 * draw(B * L, E), context()
    ctx.x_TD = ctx.x_TD[:1].expand(B * L, D)
    mixed = ctx.rows(built(causal=False)(logits, ctx))
    assert torch.allclose(mixed, mixed[:, :1].expand_as(mixed), atol=1e-6)
    assert torch.allclose(mixed[:, 0], ctx.rows(logits.softmax(-1)).mean(1), atol=1e-6)


def test_in_a_model_later_text_changes_no_earlier_choice_and_objectives_read_the_mixture():
    for kind in KINDS:
        with seeded(0):
            model = TinyLM(
                11, 8, 2, 2, lambda layer, kind=kind: MoE(8, 8, 4, norm=Neighbours(kind), aux=[LBL(0.01)]),
                context=9, needs_attention=kind == "attention",
            )  # fmt: skip
        ids = torch.randint(11, (3, 9), generator=torch.Generator().manual_seed(0))
        out = model(ids)
        moe = model.stack.blocks[1].ffn
        mask, probs = moe.routing.mask_TE().reshape(3, 9, 4), moe.routing.probs_TE
        (loss,) = [value for name, value in aux_losses(model).items() if ".1." in name]
        share = moe.routing.count_E / moe.routing.count_E.sum()
        assert float(loss.detach()) == pytest.approx(0.01 * 4 * float((share * probs.detach().mean(0)).sum()), rel=1e-5)
        changed = ids.clone()
        changed[:, 6:] = (changed[:, 6:] + 1) % 11
        later = model(changed)
        assert torch.allclose(later[:, :6], out[:, :6], atol=1e-5)
        assert torch.equal(moe.routing.mask_TE().reshape(3, 9, 4)[:, :6], mask[:, :6])


def test_what_is_missing_or_wrong_is_told():
    for options, path in [
        ({"kind": "cosine"}, "kind"),
        ({"mix": "gates"}, "mix"),
        ({"tau": 0.0}, "tau"),
        ({"window": 0}, "window"),
        ({"window": 3, "causal": False}, "window"),
        ({"window": 3, "kind": "attention"}, "window"),
    ]:
        with pytest.raises(ConfigError, match=rf"neighbours\.{path}"):
            Neighbours(**options).build(D, E)
    ctx = context()
    ctx.attention_BLL = None
    with pytest.raises(ConfigError, match="needs_attention"):
        built(kind="attention")(draw(B * L, E), ctx)
    ctx.attention_BLL = torch.ones(B, L, L - 1)
    with pytest.raises(ShapeError, match="attention_BLL"):
        built(kind="attention")(draw(B * L, E), ctx)
    with pytest.raises(ShapeError, match=r"neighbours\.weight"):
        Neighbours(learned=True).build(D + 1, E)(draw(B * L, E), context())
    assert MoE(8, 6, 4, norm=Neighbours(), select=TopK(2))(draw(5, 8)).shape == (5, 8)


def test_an_expert_that_a_mask_closes_stays_closed_when_logits_are_mixed():
    torch.manual_seed(0)
    mask = CandidateMask((0, 2), 5, 9)
    moe = MoE(8, 4, 4, norm=Neighbours("uniform", mix="logits"), mods=(mask,))
    x = torch.randn(2, 5, 8)
    moe(x)
    assert moe.routing.probs_TE[:, 2:].abs().max() == 0
    mean = torch.cumsum(moe.router.scorer(x), 1) / torch.arange(1, 6)[:, None]
    assert torch.allclose(moe.routing.probs_TE[:, :2], mean[..., :2].softmax(-1).reshape(10, 2), atol=1e-6)


def test_an_empty_batch_has_no_windows():
    moe = MoE(8, 4, 4, norm=Neighbours("similarity", window=2))
    assert moe(torch.zeros(0, 3, 8)).shape == (0, 3, 8)
    assert moe(torch.zeros(2, 0, 8)).shape == (2, 0, 8)
