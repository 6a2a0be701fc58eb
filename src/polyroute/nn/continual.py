"""A world in which what an expert forgets can be computed: linear tasks that come one after the other, in clusters.

Each round brings s < D columns of data of one task; the expert that gets it makes the smallest move that fits them all.
Fitting another cluster's task later is forgetting; tasks of one cluster hardly disturb each other.
Source: Li et al. 2024, Theory on mixture-of-experts in continual learning (arXiv:2406.16437).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from polyroute.errors import ConfigError
from polyroute.nn.losses import mean_shares
from polyroute.nn.routing import Routing


class Round(NamedTuple):
    """The data of one round."""

    x_SD: Tensor
    y_S: Tensor
    task: int


class LinearTasks:
    """y = x . w_n for task n; one of a round's s samples is signal x v_n, the others are noise; v_n orthonormal.

    within: how far tasks of a cluster lie apart, in units of the spread between clusters.
    """

    def __init__(
        self, tasks: int = 6, clusters: int = 3, dim: int = 10, samples: int = 6, *, signal: float = 4.0,
        noise: float = 0.1, within: float = 0.1, seed: int = 0,
    ):  # fmt: skip
        if not (1 <= clusters <= tasks <= dim and 1 <= samples < dim):
            got = (tasks, clusters, dim, samples)
            expected = "clusters <= tasks <= dim, samples < dim"
            raise ConfigError("tasks, clusters, dim, samples", got=got, expected=expected)
        rng = np.random.default_rng(seed)
        self.dim, self.samples, self.signal, self.noise = dim, samples, signal, noise
        self.cluster_N = np.arange(tasks) % clusters
        centre_CD = rng.standard_normal((clusters, dim))
        self.truth_ND = torch.tensor(centre_CD[self.cluster_N] + within * rng.standard_normal((tasks, dim))).float()
        self.sign_ND = np.linalg.qr(rng.standard_normal((dim, dim)))[0][:tasks]  # v_n

    def round(self, rng: np.random.Generator) -> Round:
        """Data of a task drawn at random."""
        task = int(rng.integers(len(self.sign_ND)))
        x_SD = self.noise * rng.standard_normal((self.samples, self.dim))
        x_SD[rng.integers(self.samples)] = self.signal * self.sign_ND[task]
        x = torch.from_numpy(x_SD.astype(np.float32))
        return Round(x, x @ self.truth_ND[task], task)


class LinearExperts(nn.Module):
    """E linear functions of x without a bias, for MoE(pool=...), that are fitted in closed form: w_ED."""

    def __init__(self, dim: int, num_experts: int):
        super().__init__()
        self.register_buffer("w_ED", torch.zeros(num_experts, dim))

    @property
    def num_experts(self) -> int:
        return self.w_ED.shape[0]

    def forward(self, x_TD: Tensor, routing: Routing, choose: str = "auto") -> Tensor:
        """y [T, 1]. choose: not read."""
        y_N = (x_TD[routing.tok_N] * self.w_ED[routing.exp_N]).sum(-1) * routing.gate_N
        return y_N.new_zeros(len(x_TD)).index_add(0, routing.tok_N, y_N)[:, None]

    @torch.no_grad()
    def fit(self, expert: int, x_SD: Tensor, y_S: Tensor) -> float:
        """Move an expert as little as possible so that it fits all samples; how far it moved."""
        change_D = torch.linalg.lstsq(x_SD, y_S - x_SD @ self.w_ED[expert], driver="gelsd").solution
        self.w_ED[expert] += change_D
        return float(change_D.norm())


@dataclass(frozen=True)
class RunningBalance:
    """E x sum of (share of rounds x mean probability of those rounds), over all rounds so far; gradient to the last.

    For routing of whole data sets, one a step, where the counts of a step say nothing. Source: arXiv:2406.16437.
    """

    coef: float = 0.5
    name: ClassVar[str] = "running_balance"

    def build(self, dim: int, num_experts: int) -> Running:
        return Running(num_experts, self.coef)


class Running(nn.Module):
    """See RunningBalance."""

    name = "running_balance"

    def __init__(self, num_experts: int, coef: float):
        super().__init__()
        self.coef = coef
        self.register_buffer("count_E", torch.zeros(num_experts))
        self.register_buffer("total_E", torch.zeros(num_experts))

    def forward(self, routing: Routing, layer: Any) -> Tensor:
        served_E = routing.count_E > 0
        probs_E = mean_shares(routing)[0] * served_E
        self.count_E += served_E
        rounds = self.count_E.sum().clamp(min=1)
        loss = len(served_E) * (self.count_E / rounds * (self.total_E + probs_E) / rounds).sum()
        self.total_E += probs_E.detach()
        return loss


def purity(expert_R: np.ndarray, cluster_R: np.ndarray) -> float:
    """Share of rounds that went to an expert whose commonest cluster is theirs; 1: each expert serves one cluster."""
    counts = np.zeros((int(expert_R.max(initial=0)) + 1, int(cluster_R.max(initial=0)) + 1), dtype=int)
    np.add.at(counts, (expert_R, cluster_R), 1)
    return float(counts.max(axis=1).sum() / max(counts.sum(), 1))
