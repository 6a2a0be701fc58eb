"""Part 4, scores [T, E] -> (token, expert) pairs. The kernels are those of polyroute.kernels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from polyroute.errors import ConfigError
from polyroute.kernels.nucleus import nucleus
from polyroute.kernels.topk import top_k
from polyroute.nn.routing import Pairs, TokenContext, built, require_k


@dataclass(frozen=True)
class TopK:
    """The k best experts of each token. on: "scores" after normalising, or "logits" before."""

    k: int = 2
    on: str = "scores"

    def build(self, dim: int, num_experts: int) -> TopK:
        require_k(self.k, num_experts)
        if self.on not in ("scores", "logits"):
            raise ConfigError("select.on", got=self.on, expected='"scores" or "logits"')
        return self

    def __call__(self, choice_TE: Tensor, ctx: TokenContext) -> Pairs:
        return Pairs.of_index(top_k(choice_TE, self.k).index)


@dataclass(frozen=True)
class GroupTopK:
    """The k best experts within the best groups; a group is worth the sum of its `best` best experts.

    Source: DeepSeek-V3 (arXiv:2412.19437), which limits the devices a token is sent to; DeepSeek-V2
    (arXiv:2405.04434) has best=1.
    """

    k: int
    num_groups: int
    groups: int  # kept for each token
    best: int = 2

    def build(self, dim: int, num_experts: int) -> GroupTopK:
        if self.num_groups < 1 or num_experts % self.num_groups:
            raise ConfigError("select.num_groups", got=self.num_groups, expected=f"a divisor of {num_experts}")
        require_k(self.groups, self.num_groups, name="select.groups")
        if self.best < 1:
            raise ConfigError("select.best", got=self.best, expected="1 or more")
        require_k(self.k, self.groups * (num_experts // self.num_groups))
        return self

    def __call__(self, choice_TE: Tensor, ctx: TokenContext) -> Pairs:
        grouped = choice_TE.unflatten(1, (self.num_groups, choice_TE.shape[1] // self.num_groups))
        worth = grouped.topk(min(self.best, grouped.shape[-1]), dim=-1).values.sum(-1)
        kept = torch.zeros_like(worth, dtype=torch.bool).scatter_(1, top_k(worth, self.groups).index, True)
        masked = grouped.masked_fill(~kept[..., None], -torch.inf).reshape(choice_TE.shape)
        return Pairs.of_index(top_k(masked, self.k).index)


@dataclass(frozen=True)
class TopP:
    """The fewest experts whose scores sum to more than p: hard tokens use more. k_max: at most so many.

    Source: Huang et al. 2024 (arXiv:2403.07652), p = 0.4.
    """

    p: float = 0.4
    k_max: int | None = None

    def build(self, dim: int, num_experts: int) -> TopP:
        if not 0.0 < self.p <= 1.0:
            raise ConfigError("select.p", got=self.p, expected="a share of the mass in (0, 1]")
        if self.k_max is not None:
            require_k(self.k_max, num_experts, name="select.k_max")
        return self

    def __call__(self, choice_TE: Tensor, ctx: TokenContext) -> Pairs:
        index, weight = nucleus(choice_TE.detach().float(), self.p, k=self.k_max)[:2]
        kept = torch.zeros_like(choice_TE, dtype=torch.bool).scatter_(1, index, weight > 0)
        return Pairs.of_mask(kept)


@dataclass(frozen=True)
class Positive:
    """Every expert with a score above 0; a token may use none."""

    def build(self, dim: int, num_experts: int) -> Positive:
        return self

    def __call__(self, choice_TE: Tensor, ctx: TokenContext) -> Pairs:
        return Pairs.of_mask(choice_TE > 0)


@dataclass(frozen=True)
class ExpertChoice:
    """Each expert takes its own best tokens, T x capacity / E of them: balanced by construction.

    It looks at the whole batch, so a causal model sees its own future; for encoders only.
    Source: Zhou et al. 2022 (arXiv:2202.09368).
    """

    capacity: float = 2.0  # mean number of experts a token

    def build(self, dim: int, num_experts: int) -> ExpertChoice:
        if not 0 < self.capacity <= num_experts:
            raise ConfigError("select.capacity", got=self.capacity, expected=f"above 0, at most {num_experts}")
        return self

    def __call__(self, choice_TE: Tensor, ctx: TokenContext) -> Pairs:
        scores = choice_TE.detach()
        if ctx.valid_T is not None:
            scores = scores.masked_fill(~ctx.valid_T[:, None], -torch.inf)
            num_real = int(ctx.valid_T.sum())
        else:
            num_real = len(scores)
        each = min(math.ceil(num_real * self.capacity / scores.shape[1]), num_real)
        taken = top_k(scores.T, max(each, 1)).index  # [E, c]
        return Pairs.of_mask(torch.zeros_like(scores, dtype=torch.bool).scatter_(0, taken.T, True))


@dataclass(frozen=True)
class Capacity:
    """At most factor x T k / E tokens an expert, in order of token; what overflows is dropped (a baseline).

    inner: the selection whose overflow is dropped. Source: Switch transformer (arXiv:2101.03961).
    """

    inner: TopK = TopK(1)
    factor: float = 1.25

    def build(self, dim: int, num_experts: int) -> Capacity:
        if not self.factor > 0:
            raise ConfigError("select.factor", got=self.factor, expected="a capacity factor above 0")
        built("select.inner", self.inner, dim, num_experts)
        return self

    def __call__(self, choice_TE: Tensor, ctx: TokenContext) -> Pairs:
        pairs = self.inner(choice_TE, ctx)
        if ctx.valid_T is not None:
            pairs = pairs.where(ctx.valid_T)
        limit = math.ceil(self.factor * len(pairs.exp_N) / choice_TE.shape[1])
        order = pairs.exp_N.argsort(stable=True)
        first = torch.searchsorted(pairs.exp_N[order], pairs.exp_N[order])  # where the expert's run begins
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=order.device) - first
        kept = rank < limit
        return Pairs(pairs.tok_N[kept], pairs.exp_N[kept], None)


@dataclass(frozen=True)
class ProductTopK:
    """The k best of rows x columns experts, exact, without looking at more than k of either axis.

    The pair of row rank i and column rank j (from 1) can only win if i x j <= k.
    Source: product keys (arXiv:1907.05242); the staircase of ranks as in OmniMoE.
    """

    k: int

    def build(self, dim: int, num_experts: int) -> ProductTopK:
        require_k(self.k, num_experts)
        return self

    def __call__(self, choice: tuple[Tensor, Tensor], ctx: TokenContext) -> Pairs:
        row, column = choice
        num_columns = column.shape[-1]
        best_row, best_column = top_k(row.detach(), self.k), top_k(column.detach(), self.k)
        i, j = staircase(self.k, best_row.index.shape[1], best_column.index.shape[1], row.device)
        place = top_k(best_row.weight[:, i] + best_column.weight[:, j], self.k).index
        index = best_row.index[:, i].gather(1, place) * num_columns + best_column.index[:, j].gather(1, place)
        return Pairs.of_index(index)


def staircase(k: int, rows: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ranks (i, j) from 0 with (i + 1)(j + 1) <= k, i below `rows` and j below `columns`."""
    ranks = [(i, j) for i in range(min(k, rows)) for j in range(min(k // (i + 1), columns))]
    i, j = torch.tensor(ranks, device=device).T
    return i, j
