"""Objectives that tie a router to something else: to its experts, to a teacher, to an older copy of itself."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from polyroute.errors import ConfigError, ShapeError, UnknownNameError
from polyroute.nn.losses import mean_of_tokens, mean_shares
from polyroute.nn.routing import Routing, TokenContext
from polyroute.nn.scorers import ProductKeyScorer

CHUNK_ELEMENTS = 1 << 24  # of ERC's activations at a time


@dataclass(frozen=True)
class ERC:
    """Each router row excites its own expert most: E^2 products of weights, no tokens.

    M[i, j] = norm of expert j's gate projection of row i. Penalised: M[i, j] and M[j, i] above alpha x M[i, i].
    While training each row is shaken elementwise within half the distance to its nearest neighbour. A smaller alpha
    forces more specialisation. Needs a Linear scorer on the hidden state and `Experts`.
    Source: expert-router coupling (ERC) loss, Lv et al. 2025 (arXiv:2512.23447).
    """

    alpha: float = 1.0
    coef: float = 1.0
    name: ClassVar[str] = "erc"

    def build(self, dim: int, num_experts: int) -> ERC:
        if not self.alpha > 0:
            raise ConfigError("erc.alpha", got=self.alpha, expected="a number above 0")
        return self

    def attach(self, layer: Any) -> None:
        """Check that rows and experts fit. Raises: ConfigError."""
        rows_and_gates(layer)

    def __call__(self, routing: Routing, layer: Any) -> Tensor:
        rows_ED, gates_EFD = rows_and_gates(layer)
        rows_ED = shaken(rows_ED) if layer.training else rows_ED
        return coupling_loss(coupling(rows_ED, gates_EFD), self.alpha)


def rows_and_gates(layer: Any) -> tuple[Tensor, Tensor]:
    """Router rows [E, D] and each expert's gate projection [E, F, D] (its first one where it is not gated)."""
    rows_ED, w1_EGD = getattr(layer.router.scorer, "weight", None), getattr(layer.pool, "w1_EGD", None)
    if rows_ED is None or w1_EGD is None:
        got = f"{type(layer.router.scorer).__name__}, {type(layer.pool).__name__}"
        raise ConfigError("erc", got=got, expected="a scorer with `weight` [E, D] and a pool with `w1_EGD`")
    if rows_ED.shape != (w1_EGD.shape[0], w1_EGD.shape[2]):
        expected = f"one row of width {w1_EGD.shape[2]} for each of {w1_EGD.shape[0]} experts"
        raise ConfigError("erc", got=tuple(rows_ED.shape), expected=expected, hint="Use scorer=Linear() on Hidden().")
    return rows_ED, w1_EGD.chunk(2, dim=1)[0] if layer.pool.act.gated else w1_EGD


def shaken(rows_ED: Tensor) -> Tensor:
    """Rows times uniform noise that keeps each nearest to itself: within half the distance to its neighbour."""
    if len(rows_ED) < 2:
        return rows_ED
    with torch.no_grad():
        rows = rows_ED.float()
        distance = torch.cdist(rows, rows).fill_diagonal_(torch.inf).min(dim=1).values
        width_E1 = (distance / (2 * rows.norm(dim=1).clamp(min=1e-12)))[:, None]
        noise_ED = 1 + width_E1 * (2 * torch.rand_like(rows) - 1)
    return rows_ED * noise_ED


def coupling(rows_ED: Tensor, gates_EFD: Tensor) -> Tensor:
    """M [E rows, E experts], fp32: how strongly each router row excites each expert. Passes gradients to both."""
    num_experts, width, dim = gates_EFD.shape

    def norms(rows_CD: Tensor, gates: Tensor) -> Tensor:
        with torch.autocast(rows_CD.device.type, enabled=False):
            excited = F.linear(rows_CD.float(), gates.float().reshape(num_experts * width, dim))
        return excited.reshape(-1, num_experts, width).norm(dim=-1)

    each = max(CHUNK_ELEMENTS // (num_experts * width), 1)
    if each >= len(rows_ED):
        return norms(rows_ED, gates_EFD)
    chunks = rows_ED.split(each)
    return torch.cat([checkpoint(norms, chunk, gates_EFD, use_reentrant=False) for chunk in chunks])


def coupling_loss(m_EE: Tensor, alpha: float = 1.0) -> Tensor:
    """What stands above alpha x the diagonal, in row and column, over E^2."""
    own_E1 = alpha * m_EE.diagonal()[:, None]
    above = (m_EE - own_E1).relu() + (m_EE.T - own_E1).relu()
    return above.masked_fill(torch.eye(len(m_EE), dtype=torch.bool, device=m_EE.device), 0).sum() / len(m_EE) ** 2


def tightest_alpha(m_EE: Tensor) -> float:
    """The smallest alpha at which the coupling loss is 0; at most 1 means every row excites its own expert most."""
    if len(m_EE) < 2:
        return 0.0
    m = m_EE.detach().masked_fill(torch.eye(len(m_EE), dtype=torch.bool, device=m_EE.device), 0)
    worst_E = torch.maximum(m.max(dim=1).values, m.max(dim=0).values)
    return float((worst_E / m_EE.detach().diagonal().clamp(min=1e-12)).max())


@dataclass(frozen=True, eq=False)
class PA:
    """Prior-approximate: send a token where an expert alone comes nearest to its share of a teacher's output.

    teacher: a module [n, D] -> [n, O], frozen, kept outside the model's parameters; the network the experts were cut
    from. None: the sum of the layer's own experts as they are. The experts nearest to teacher x K / E form the target;
    the loss is a divergence between the router's softmax and it, with gradient to the router alone.
    target: "soft" is softmax of the K-hot label and KL(router || target), as published, a very soft target (0.366 and
    0.134 at E = 4, K = 2); "share" is 1 / K for the nearest and KL(target || router) (inferred).
    A model that runs its teacher beside it puts the teacher's input of this layer in `context.extras["teacher_TD"]`:
    experts and router are then asked about that. Source: FactorLLM (arXiv:2408.11855).
    """

    coef: float = 0.05
    teacher: nn.Module | None = field(default=None, repr=False)
    target: str = "soft"

    def build(self, dim: int, num_experts: int) -> PriorApproximate:
        if self.target not in ("soft", "share"):
            raise UnknownNameError("target", self.target, ("soft", "share"))
        return PriorApproximate(self)


class PriorApproximate:
    """See PA."""

    name = "pa"

    def __init__(self, config: PA):
        self.coef, self.config = config.coef, config
        self._x_TD: Tensor | None = None
        self._apart = False  # the input is the teacher's

    def attach(self, layer: Any) -> None:
        """Check the selection. Raises: ConfigError."""
        if getattr(layer.router.select, "k", None) is None:
            got = type(layer.router.select).__name__
            raise ConfigError("select", got=got, expected="TopK, a fixed number of experts, for PA")
        if not hasattr(layer.pool, "weights"):
            got = type(layer.pool).__name__
            raise ConfigError("pool", got=got, expected="Experts, whose outputs are compared one by one, for PA")

    def observe(self, routing: Routing, ctx: TokenContext) -> None:
        self._apart = "teacher_TD" in ctx.extras
        self._x_TD = ctx.extras["teacher_TD"].detach() if self._apart else ctx.x_TD.detach()

    def __call__(self, routing: Routing, layer: Any) -> Tensor:
        if self._x_TD is None:
            raise ConfigError("aux", got="PA before a forward pass", expected="the layer's input")
        logits = layer.router.scorer(self._x_TD) if self._apart else routing.logits_TE
        if isinstance(logits, tuple):
            raise ConfigError("scorer", got="ProductKeys", expected="one logit for each expert, for PA")
        log_p = logits.float().log_softmax(-1)
        near_TE = nearest_experts(self._x_TD, layer, self.config.teacher, layer.router.select.k)
        if self.config.target == "soft":
            divergence_T = (log_p.exp() * (log_p - near_TE.log_softmax(-1))).sum(-1)
        else:
            share = near_TE / near_TE.sum(-1, keepdim=True)
            divergence_T = (torch.xlogy(share, share) - share * log_p).sum(-1)
        return mean_of_tokens(divergence_T, routing)


@torch.no_grad()
def nearest_experts(x_TD: Tensor, layer: Any, teacher: nn.Module | None, k: int) -> Tensor:
    """1 for the k experts of each token whose own output is nearest to teacher(x) x k / E, else 0: fp32 [T, E]."""
    w1_EGD, w2_EFO, act = layer.pool.weights()
    w1_EGD, w2_EFO = w1_EGD.to(x_TD.dtype), w2_EFO.to(x_TD.dtype)
    outputs = [act.forward(x_TD @ w1.T) @ w2 for w1, w2 in zip(w1_EGD, w2_EFO, strict=True)]
    whole_TO = sum(outputs) if teacher is None else teacher(x_TD)
    goal_TO = whole_TO.float() * k / len(outputs)
    distance_TE = torch.stack([(y_TO.float() - goal_TO).square().mean(-1) for y_TO in outputs], -1)
    return torch.zeros_like(distance_TE).scatter_(1, distance_TE.topk(k, largest=False).indices, 1.0)


@dataclass(frozen=True)
class InfoNCE:
    """Sequences of one task route alike, those of different tasks apart.

    A batch holds two sequences of each of B / 2 tasks: sequence i and B / 2 + i. Queries are each sequence's mean
    scores; keys those of a slowly moving copy of the scorer (share `ema` of the way a step, after the optimizer: call
    `end_step(model)`), without gradient; they are compared through a learned [E, E] matrix, `scale` x identity at
    first. One task twice in a half would be a false negative. Source: T2MIR (arXiv:2506.05426).
    """

    coef: float = 0.01
    ema: float = 0.005
    scale: float = 1.0

    def build(self, dim: int, num_experts: int) -> Contrast:
        if not 0 < self.ema <= 1:
            raise ConfigError("info_nce.ema", got=self.ema, expected="a share in (0, 1]")
        return Contrast(num_experts, self)


class Contrast(nn.Module):
    """See InfoNCE. weight [E, E]; key_scorer: the slow copy, saved with the layer."""

    name = "info_nce"

    def __init__(self, num_experts: int, config: InfoNCE):
        super().__init__()
        self.coef, self.ema = config.coef, config.ema
        self.weight = nn.Parameter(torch.eye(num_experts) * config.scale)
        self.key_scorer: nn.Module | None = None
        self._live: tuple[nn.Module, ...] = ()  # the layer's scorer, not a part of this one
        self._ctx: TokenContext | None = None

    def attach(self, layer: Any) -> None:
        """Copy the layer's scorer. Raises: ConfigError where the input part keeps a state of its own."""
        if hasattr(layer.router.inp, "cell"):
            raise ConfigError("inp", got="Recurrent", expected="an input without a state, for InfoNCE")
        if isinstance(layer.router.scorer, ProductKeyScorer):
            raise ConfigError("scorer", got="ProductKeys", expected="one logit for each expert, for InfoNCE")
        self._live = (layer.router.scorer,)
        self.key_scorer = copy.deepcopy(layer.router.scorer).requires_grad_(False)

    def observe(self, routing: Routing, ctx: TokenContext) -> None:
        self._ctx = replace(ctx)

    def forward(self, routing: Routing, layer: Any) -> Tensor:
        if self._ctx is None:
            raise ConfigError("aux", got="InfoNCE before a forward pass", expected="the layer's input")
        if not self._live or self._live[0] is not layer.router.scorer:
            self.attach(layer)  # the scorer was replaced
        if routing.shape[0] % 2:
            raise ShapeError("batch", got=routing.shape, expected=("an even B", "L"))
        with torch.no_grad():
            logits = self.key_scorer(layer.router.inp(self._ctx))
            probs = layer.router.norm(logits, self._ctx)
            key_BE = mean_shares(replace(routing, logits_TE=logits, probs_TE=probs), routing.shape[0])
        return self.contrast(mean_shares(routing, routing.shape[0]), key_BE)

    def contrast(self, query_BE: Tensor, key_BE: Tensor) -> Tensor:
        """Mean cross entropy of finding one's partner in the other half; sequences of padding alone are left out."""
        (query_a, query_b), (key_a, key_b) = query_BE.chunk(2), key_BE.chunk(2)
        real = (key_a.sum(-1) > 0) & (key_b.sum(-1) > 0)
        partner = torch.arange(int(real.sum()), device=real.device)
        if not len(partner):
            return (query_BE.sum() + self.weight.sum()) * 0.0
        with torch.autocast(query_BE.device.type, enabled=False):
            a_to_b = query_a[real] @ self.weight @ key_b[real].T
            b_to_a = query_b[real] @ self.weight @ key_a[real].T
            return 0.5 * (F.cross_entropy(a_to_b, partner) + F.cross_entropy(b_to_a, partner))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ctx": None}  # a copy does not take the last pass with it

    @torch.no_grad()
    def end_step(self) -> None:
        """Move the slow copy; buffers are taken over."""
        for live in self._live:
            for slow, fast in zip(self.key_scorer.parameters(), live.parameters(), strict=True):
                slow.lerp_(fast.to(slow.dtype), self.ema)
            for slow, fast in zip(self.key_scorer.buffers(), live.buffers(), strict=True):
                slow.copy_(fast)
