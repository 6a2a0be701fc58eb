"""Part 3 by optimal transport: scores [T, E] whose rows sum to 1 and whose columns all sum to T / E."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from polyroute.errors import ConfigError, UnknownNameError
from polyroute.kernels.sinkhorn import sinkhorn_prices
from polyroute.nn.routing import TokenContext

COSTS = ("linear", "softmax")
GRADIENTS = ("detach", "plan")


@dataclass(frozen=True)
class SelectiveSinkhorn:
    """Softmax, but a plan of optimal transport on a small random share of training steps. No auxiliary loss.

    p: share of the steps of each layer. xi: weight of the plan's entropy, in the unit of the cost; small is sharp.
    cost: "linear", the logits, or "softmax", the probabilities. iters: of Sinkhorn's scaling; rows sum to 1 exactly,
    columns as nearly as these reach. grad: "detach" gives such a step's router no gradient through its gates; "plan"
    one through each token's own row, at fixed prices (the publication does not say, inferred). seed: of the coin, drawn
    from (seed, step, layer), so that recomputation and all ranks draw the same; layers need `TokenContext.layer`.

    noise: standard deviation of Gaussian noise on the logits of the other training steps; the plan reads them clean.

    A balanced plan is not a balanced choice of its k largest: small xi and the linear cost come nearest. Each rank
    balances its own tokens. Never in evaluation, where an output would depend on its batch. Source: Nguyen et al. 2025
    (arXiv:2511.08972), system 78.
    """

    p: float = 0.005
    xi: float = 0.5
    cost: str = "linear"
    iters: int = 20
    grad: str = "detach"
    seed: int = 0
    noise: float = 0.0

    def build(self, dim: int, num_experts: int) -> SelectiveSinkhorn:
        if not 0.0 <= self.p <= 1.0:
            raise ConfigError("norm.p", got=self.p, expected="a share of the steps, 0 to 1")
        if not self.xi > 0:
            raise ConfigError("norm.xi", got=self.xi, expected="a number above 0, in the unit of the cost")
        if self.iters < 1:
            raise ConfigError("norm.iters", got=self.iters, expected="1 or more")
        if not self.noise >= 0:
            raise ConfigError("norm.noise", got=self.noise, expected="0 or more, in the unit of the logits")
        if self.seed < 0:
            raise ConfigError("norm.seed", got=self.seed, expected="0 or more")
        if self.cost not in COSTS:
            raise UnknownNameError("norm.cost", self.cost, COSTS)
        if self.grad not in GRADIENTS:
            raise UnknownNameError("norm.grad", self.grad, GRADIENTS)
        return self

    def draws(self, step: int, layer: int) -> bool:
        """Whether this step of this layer is one of transport."""
        return bool(np.random.default_rng([self.seed, step, layer]).random() < self.p)

    def __call__(self, logits_TE: Tensor, ctx: TokenContext) -> Tensor:
        probs_TE = logits_TE.softmax(-1)
        if not ctx.training:
            return probs_TE
        if not self.draws(ctx.step, ctx.layer):
            return (logits_TE + self.noise * torch.randn_like(logits_TE)).softmax(-1) if self.noise else probs_TE
        cost_TE = logits_TE if self.cost == "linear" else probs_TE.masked_fill(logits_TE == -torch.inf, -torch.inf)
        with torch.set_grad_enabled(self.grad == "plan" and torch.is_grad_enabled()):
            plan_TE = transport_plan(cost_TE, xi=self.xi, iters=self.iters, valid_T=ctx.valid_T)
        return plan_TE if ctx.valid_T is None else torch.where(ctx.valid_T[:, None], plan_TE, probs_TE)


def transport_plan(cost_TE: Tensor, *, xi: float, iters: int, valid_T: Tensor | None = None) -> Tensor:
    """The plan [T, E], fp32: rows sum to 1, columns to (real tokens) / (open experts) each. Padding plays no part.

    Gradients pass through each row, not through the prices that hold the columns. -inf closes an expert to a token.
    """
    cost_TE = cost_TE.float()
    with torch.no_grad():
        real_TE = cost_TE if valid_T is None else cost_TE[valid_T]
        open_E = torch.isfinite(real_TE).any(0)
        share = len(real_TE) / open_E.sum().clamp(min=1)
        share_E = share.expand(len(open_E))  # also of closed ones: nobody goes there whatever their share
        price_E = sinkhorn_prices(real_TE, share_E, temperature=xi, steps=iters, fixed=True)
    return ((cost_TE - price_E) / xi).softmax(-1)
