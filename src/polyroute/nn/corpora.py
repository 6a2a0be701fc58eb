"""Small worlds in which a routing mechanism shows or does not: generated in milliseconds, no file, no download.

Every corpus has `batch(rng, num_sequences) -> Batch` and attribute `num_domains`; `batches(corpus, ...)` makes an
endless stream of it. Worlds are fixed by their `seed`; what is drawn from them by the `rng` that is passed.
Texts of four domains are in chars.py, in-context tasks in tasks.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from polyroute.errors import ConfigError

__all__ = [
    "IGNORE", "Batch", "Corpus", "Memory", "Regress", "TwoHop", "batches", "constant_trace", "draw_domains",
    "iid_trace", "sticky_trace",
]  # fmt: skip
IGNORE = -100  # a target id that no loss counts; for targets that are numbers NaN says the same


class Batch(NamedTuple):
    """B sequences of L tokens, one domain each."""

    x: Tensor  # ids [B, L] int64, or features [B, L, D] float32
    y: Tensor  # ids [B, L] int64, IGNORE where nothing is asked; or numbers [B, L, O], NaN where nothing is asked
    domain_B: Tensor  # int64


class Corpus(Protocol):
    """Anything that a Batch can be drawn from."""

    num_domains: int

    def batch(self, rng: np.random.Generator, num_sequences: int, *, domain: int | None = None) -> Batch:
        """domain: all sequences from this one; None: from the mixture."""
        ...


def batches(corpus: Corpus, num_sequences: int, *, seed: int, domain: int | None = None) -> Iterator[Batch]:
    """An endless stream of batches, the same for the same seed."""
    rng = np.random.default_rng(seed)
    while True:
        yield corpus.batch(rng, num_sequences, domain=domain)


def draw_domains(
    rng: np.random.Generator, num_sequences: int, num_domains: int, mixture: Sequence[float] | None, domain: int | None
) -> np.ndarray:
    """The domain of each sequence [B]: `domain`, or drawn by the shares of `mixture` (None: all alike)."""
    if domain is not None:
        if not 0 <= domain < num_domains:
            raise ConfigError("domain", got=domain, expected=f"0 to {num_domains - 1}")
        return np.full(num_sequences, domain)
    if mixture is None:
        return rng.integers(num_domains, size=num_sequences)
    share = np.asarray(mixture, dtype=float)
    if len(share) != num_domains or not (share >= 0).all() or not share.sum() > 0:
        raise ConfigError("mixture", got=list(mixture), expected=f"{num_domains} shares of 0 and more, not all 0")
    return rng.choice(num_domains, size=num_sequences, p=share / share.sum())


class Regress:
    """A linear map for each domain: x = centre of the domain + noise, y = A_domain x; one domain a sequence.

    domains: how many. dim: D of x. out: O of y, None for D. length: tokens of a sequence. spread: length scale of the
    centres against noise of std `noise`. mixture: share of each domain. A guess of the mean of y has a loss near 1.
    """

    def __init__(
        self, domains: int = 4, dim: int = 16, *, out: int | None = None, length: int = 32, spread: float = 1.0,
        noise: float = 1.0, mixture: Sequence[float] | None = None, seed: int = 0,
    ):  # fmt: skip
        if domains < 1 or dim < 1 or length < 1:
            raise ConfigError("domains, dim, length", got=(domains, dim, length), expected="1 and more each")
        rng = np.random.default_rng(seed)
        self.num_domains, self.dim, self.out, self.length = domains, dim, out or dim, length
        self.noise, self.mixture = noise, mixture
        self.centre_CD = (spread * rng.normal(size=(domains, dim))).astype(np.float32)  # C domains
        scale = 1.0 / np.sqrt(dim * (spread**2 + noise**2))
        self.map_COD = (scale * rng.normal(size=(domains, self.out, dim))).astype(np.float32)

    def batch(self, rng: np.random.Generator, num_sequences: int, *, domain: int | None = None) -> Batch:
        domain_B = draw_domains(rng, num_sequences, self.num_domains, self.mixture, domain)
        x_BLD = rng.standard_normal((num_sequences, self.length, self.dim), dtype=np.float32) * np.float32(self.noise)
        x_BLD += self.centre_CD[domain_B, None]
        y_BLO = x_BLD @ self.map_COD[domain_B].transpose(0, 2, 1)
        return Batch(torch.from_numpy(x_BLD), torch.from_numpy(y_BLO), torch.from_numpy(domain_B))


class TwoHop:
    """Two look-ups, one after the other: (map i, map j, value v) asks for map_j[map_i[v]].

    maps: how many permutations of `values` there are. problems: in a sequence. As tokens (values first, then maps:
    `vocab`) a problem takes three, asked at the third. packed: one token a problem, x = three one-hot vectors
    (`width`), so that a feed-forward part can solve it without attention. One domain.
    """

    num_domains = 1

    def __init__(self, maps: int = 16, values: int = 16, *, problems: int = 10, packed: bool = False, seed: int = 0):
        if maps < 1 or values < 2 or problems < 1:
            raise ConfigError("maps, values, problems", got=(maps, values, problems), expected="at least 1, 2, 1")
        rng = np.random.default_rng(seed)
        self.maps, self.values, self.problems, self.packed = maps, values, problems, packed
        self.vocab, self.width, self.length = maps + values, 2 * maps + values, problems * (1 if packed else 3)
        self.map_MV = np.stack([rng.permutation(values) for _ in range(maps)])  # M maps, V values

    def batch(self, rng: np.random.Generator, num_sequences: int, *, domain: int | None = None) -> Batch:
        shape = (num_sequences, self.problems)
        first, second = rng.integers(self.maps, size=(2, *shape))
        value = rng.integers(self.values, size=shape)
        answer = self.map_MV[second, self.map_MV[first, value]]
        domain_B = torch.zeros(num_sequences, dtype=torch.int64)
        if self.packed:
            x = np.zeros((*shape, self.width), dtype=np.float32)
            for index, start in ((first, 0), (second, self.maps), (value, 2 * self.maps)):
                np.put_along_axis(x, (start + index)[..., None], 1.0, axis=2)
            return Batch(torch.from_numpy(x), torch.from_numpy(answer), domain_B)
        x = np.stack([first + self.values, second + self.values, value], axis=-1).reshape(num_sequences, -1)
        y = np.full_like(x, IGNORE)
        y[:, 2::3] = answer
        return Batch(torch.from_numpy(x), torch.from_numpy(y), domain_B)


class Memory:
    """Random pairs that can only be learned by heart: a key [D] of unit length asks for one of `values` classes.

    `everything()` is all pairs as one batch: its accuracy is the share that is remembered. One domain.
    """

    num_domains = 1

    def __init__(self, pairs: int = 20_000, dim: int = 32, *, values: int = 256, length: int = 32, seed: int = 0):
        if pairs < 1 or dim < 1 or values < 2:
            raise ConfigError("pairs, dim, values", got=(pairs, dim, values), expected="at least 1, 1, 2")
        rng = np.random.default_rng(seed)
        key_PD = rng.standard_normal((pairs, dim), dtype=np.float32)
        self.key_PD = key_PD / np.linalg.norm(key_PD, axis=1, keepdims=True)
        self.value_P = rng.integers(values, size=pairs)
        self.dim, self.values, self.length = dim, values, length

    def batch(self, rng: np.random.Generator, num_sequences: int, *, domain: int | None = None) -> Batch:
        return self._rows(rng.integers(len(self.value_P), size=(num_sequences, self.length)))

    def everything(self) -> Batch:
        """All pairs, as one sequence."""
        return self._rows(np.arange(len(self.value_P))[None])

    def _rows(self, pair_BL: np.ndarray) -> Batch:
        x, y = torch.from_numpy(self.key_PD[pair_BL]), torch.from_numpy(self.value_P[pair_BL])
        return Batch(x, y, torch.zeros(len(pair_BL), dtype=torch.int64))


def constant_trace(num_tokens: int, num_experts: int, k: int) -> np.ndarray:
    """Every token goes to the first k experts: index [T, K] int64."""
    _require_k(k, num_experts)
    return np.tile(np.arange(k), (num_tokens, 1))


def iid_trace(num_tokens: int, num_experts: int, k: int, *, rng: np.random.Generator) -> np.ndarray:
    """k experts of each token drawn anew: index [T, K]. Each expert is a coin with rate q = k / num_experts."""
    _require_k(k, num_experts)
    return rng.random((num_tokens, num_experts)).argpartition(k - 1, axis=1)[:, :k]


def sticky_trace(num_tokens: int, num_experts: int, k: int, *, stay: float, rng: np.random.Generator) -> np.ndarray:
    """A Markov chain: a token keeps the last one's experts with probability `stay`, else draws anew; index [T, K]."""
    if not 0.0 <= stay <= 1.0:
        raise ConfigError("stay", got=stay, expected="a probability")
    fresh = iid_trace(num_tokens, num_experts, k, rng=rng)
    moves = rng.random(num_tokens) >= stay
    moves[:1] = True
    return fresh[np.maximum.accumulate(np.where(moves, np.arange(num_tokens), 0))]


def _require_k(k: int, num_experts: int) -> None:
    if not 1 <= k <= num_experts:
        raise ConfigError("k", got=k, expected=f"1 to {num_experts}, the number of experts")
