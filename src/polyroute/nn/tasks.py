"""Tasks that are learned from their own context: linear maps and bandits of a few families."""

from __future__ import annotations

import numpy as np
import torch

from polyroute.errors import ConfigError
from polyroute.nn.corpora import IGNORE, Batch

Rng = np.random.Generator


class LinearTasks:
    """In-context linear regression: tokens x_1, y_1, x_2, y_2...; y = w x is asked at every x.

    A task is a w [D], drawn near the centre of its family with std `within` (centres have unit length). A token is
    [x or 0, y or 0, whether it is an x]: width D + 2. pairs: of x and y in a sequence.
    """

    def __init__(
        self,
        families: int = 8,
        dim: int = 4,
        *,
        pairs: int = 16,
        within: float = 0.3,
        noise: float = 0.05,
        seed: int = 0,
    ):
        if families < 1 or dim < 1 or pairs < 1:
            raise ConfigError("families, dim, pairs", got=(families, dim, pairs), expected="1 and more each")
        self.num_domains, self.dim, self.pairs, self.within, self.noise = families, dim, pairs, within, noise
        self.width, self.out, self.length = dim + 2, 1, 2 * pairs
        centre = np.random.default_rng(seed).normal(size=(families, dim))
        self.centre_CD = centre / np.linalg.norm(centre, axis=1, keepdims=True)

    def tasks(self, rng: Rng, family_N: np.ndarray) -> np.ndarray:
        """One task of each given family: w [N, D]."""
        return self.centre_CD[family_N] + self.within * rng.normal(size=(len(family_N), self.dim)) / self.dim**0.5

    def sequences(self, rng: Rng, task_ND: np.ndarray, family_N: np.ndarray) -> Batch:
        """One sequence of each given task."""
        num = len(task_ND)
        x = rng.normal(size=(num, self.pairs, self.dim))
        y = np.einsum("npd,nd->np", x, task_ND) + self.noise * rng.normal(size=(num, self.pairs))
        tokens = np.zeros((num, self.pairs, 2, self.width), dtype=np.float32)
        tokens[:, :, 0, : self.dim], tokens[:, :, 0, -1] = x, 1.0
        tokens[:, :, 1, self.dim] = y
        asked = np.full((num, self.pairs, 2, 1), np.nan, dtype=np.float32)
        asked[:, :, 0, 0] = y
        return Batch(
            torch.from_numpy(tokens.reshape(num, self.length, self.width)),
            torch.from_numpy(asked.reshape(num, self.length, 1)), torch.from_numpy(family_N),
        )  # fmt: skip

    def batch(self, rng: Rng, num_sequences: int, *, domain: int | None = None) -> Batch:
        return _batch(self, rng, num_sequences, domain)


class BanditTasks:
    """In-context bandits: tokens tell of pulls at random, the best arm is asked at every token.

    A task is a mean reward for each arm, near the profile of its family with std `within`. A token is [arm as one
    hot, reward]: width arms + 1. pulls: tokens of a sequence. Targets are arms, IGNORE at the first token, which
    knows one reward only.
    """

    def __init__(
        self,
        families: int = 8,
        arms: int = 10,
        *,
        pulls: int = 32,
        within: float = 0.3,
        noise: float = 0.3,
        seed: int = 0,
    ):
        if families < 1 or arms < 2 or pulls < 2:
            raise ConfigError("families, arms, pulls", got=(families, arms, pulls), expected="at least 1, 2, 2")
        self.num_domains, self.arms, self.within, self.noise = families, arms, within, noise
        self.width, self.out, self.length = arms + 1, arms, pulls
        self.mean_CA = np.random.default_rng(seed).normal(size=(families, arms))

    def tasks(self, rng: Rng, family_N: np.ndarray) -> np.ndarray:
        """One task of each given family: mean rewards [N, arms]."""
        return self.mean_CA[family_N] + self.within * rng.normal(size=(len(family_N), self.arms))

    def sequences(self, rng: Rng, task_NA: np.ndarray, family_N: np.ndarray) -> Batch:
        """One sequence of each given task."""
        num = len(task_NA)
        arm = rng.integers(self.arms, size=(num, self.length))
        tokens = np.zeros((num, self.length, self.width), dtype=np.float32)
        np.put_along_axis(tokens, arm[..., None], 1.0, axis=2)
        tokens[..., -1] = np.take_along_axis(task_NA, arm, axis=1) + self.noise * rng.normal(size=arm.shape)
        asked = np.repeat(task_NA.argmax(axis=1)[:, None], self.length, axis=1)
        asked[:, 0] = IGNORE
        return Batch(torch.from_numpy(tokens), torch.from_numpy(asked), torch.from_numpy(family_N))

    def batch(self, rng: Rng, num_sequences: int, *, domain: int | None = None) -> Batch:
        return _batch(self, rng, num_sequences, domain)


class PairedTaskSampler:
    """Two sequences of every task: sequence i of the first half and i of the second half share theirs.

    No task comes twice in one half, and families are dealt in turn, so that others in the half are negatives.
    `batch` wants an even number of sequences.
    """

    def __init__(self, tasks: LinearTasks | BanditTasks):
        self.tasks, self.num_domains = tasks, tasks.num_domains

    def batch(self, rng: Rng, num_sequences: int, *, domain: int | None = None) -> Batch:
        if num_sequences < 2 or num_sequences % 2:
            raise ConfigError("num_sequences", got=num_sequences, expected="an even number, 2 and more")
        family = _families(rng, num_sequences // 2, self.num_domains, domain)
        task, family = np.tile(self.tasks.tasks(rng, family), (2, 1)), np.tile(family, 2)
        return self.tasks.sequences(rng, task, family)


def _batch(tasks: LinearTasks | BanditTasks, rng: Rng, num_sequences: int, domain: int | None) -> Batch:
    family = _families(rng, num_sequences, tasks.num_domains, domain)
    return tasks.sequences(rng, tasks.tasks(rng, family), family)


def _families(rng: Rng, num: int, num_families: int, domain: int | None) -> np.ndarray:
    """Families [num], each as often as the others up to one, in random order."""
    if domain is not None:
        if not 0 <= domain < num_families:
            raise ConfigError("domain", got=domain, expected=f"0 to {num_families - 1}")
        return np.full(num, domain)
    rounds = [rng.permutation(num_families) for _ in range(-(-num // num_families))]
    return np.concatenate(rounds)[:num]
