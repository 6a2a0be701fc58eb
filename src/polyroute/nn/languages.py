"""Languages without a word in common that say the same: sums, and plain text of one Markov chain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from polyroute.errors import ConfigError
from polyroute.nn.corpora import IGNORE, Batch, draw_domains

TASK, GENERAL = 0, 1
Rng = np.random.Generator


class Languages:
    """The same sums modulo a number, and the same plain text, in several languages of disjoint vocabularies.

    modulus: M; a language has M words for numbers, one for "=", and `words` for plain text. A sum takes four tokens,
    a b = c, and c is asked at "=". In plain text each next word is asked; it follows the last by one chain for all
    languages. Domain 2 i is the sums of language i, domain 2 i + 1 its text. shares: of each language in a mixture,
    None: all alike. `parallel` gives the same content in every language. seed: of the chain.
    """

    def __init__(
        self, num_languages: int = 2, *, modulus: int = 7, words: int = 16, problems: int = 8,
        shares: Sequence[float] | None = None, seed: int = 0,
    ):  # fmt: skip
        if num_languages < 1 or modulus < 2 or words < 2 or problems < 1:
            got = (num_languages, modulus, words, problems)
            raise ConfigError("num_languages, modulus, words, problems", got=got, expected="at least 1, 2, 2, 1")
        if shares is not None and len(shares) != num_languages:
            raise ConfigError("shares", got=list(shares), expected=f"one for each of {num_languages} languages")
        self.num_languages, self.modulus, self.words, self.problems = num_languages, modulus, words, problems
        self.own = modulus + 1 + words  # words of one language
        self.vocab, self.length, self.num_domains = num_languages * self.own, 4 * problems, 2 * num_languages
        self.mixture = None if shares is None else np.repeat(np.asarray(shares, dtype=float), 2)
        follows = np.random.default_rng(seed).exponential(size=(words, words)) ** 3
        self.follows_WW = follows / follows.sum(1, keepdims=True)

    def batch(self, rng: Rng, num_sequences: int, *, domain: int | None = None) -> Batch:
        domain_B = draw_domains(rng, num_sequences, self.num_domains, self.mixture, domain)
        sums, text = self._content(rng, num_sequences, TASK), self._content(rng, num_sequences, GENERAL)
        general = torch.from_numpy(domain_B % 2 == GENERAL)[:, None]
        x, y = (torch.where(general, b, a) for a, b in zip(sums, text, strict=True))
        return self._said(x, y, torch.from_numpy(domain_B))

    def parallel(self, rng: Rng, num_sequences: int, *, kind: int = TASK) -> list[Batch]:
        """The same sequences in each language, TASK or GENERAL."""
        if kind not in (TASK, GENERAL):
            raise ConfigError("kind", got=kind, expected=f"TASK = {TASK} or GENERAL = {GENERAL}")
        x, y = self._content(rng, num_sequences, kind)
        domains = (torch.full((num_sequences,), 2 * i + kind) for i in range(self.num_languages))
        return [self._said(x, y, domain_B) for domain_B in domains]

    def _content(self, rng: Rng, num: int, kind: int) -> tuple[Tensor, Tensor]:
        """Sequences in words of the first language [num, L], and what is asked."""
        if kind == TASK:
            a, b = rng.integers(self.modulus, size=(2, num, self.problems))
            answer = (a + b) % self.modulus
            x = np.stack([a, b, np.full_like(a, self.modulus), answer], -1).reshape(num, self.length)
            y = np.full_like(x, IGNORE)
            y[:, 2::4] = answer
            return torch.from_numpy(x), torch.from_numpy(y)
        word = np.empty((num, self.length + 1), dtype=np.int64)
        word[:, 0] = rng.integers(self.words, size=num)
        until_WW = self.follows_WW.cumsum(1)
        for i in range(self.length):
            drawn = (rng.random(num)[:, None] > until_WW[word[:, i]]).sum(1)
            word[:, i + 1] = drawn.clip(max=self.words - 1)
        word += self.modulus + 1
        return torch.from_numpy(word[:, :-1].copy()), torch.from_numpy(word[:, 1:].copy())

    def _said(self, x: Tensor, y: Tensor, domain_B: Tensor) -> Batch:
        """Content in the languages of its domains."""
        first_B1 = (domain_B // 2 * self.own)[:, None]
        return Batch(x + first_B1, torch.where(y == IGNORE, y, y + first_B1), domain_B)
