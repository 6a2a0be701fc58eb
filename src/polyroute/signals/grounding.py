"""Is what an answer says in its sources: each sentence against windows of the source, its numbers and its names.

A lexical verifier: it knows no synonyms and no logic. It finds invented numbers, names and claims about things the
sources never mention; it does not find a claim that turns the source's words around.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from polyroute.errors import ConfigError

SENTENCE = re.compile(r"[^.!?\n]+(?:[.!?](?!\s|$)[^.!?\n]*)*[.!?]*")  # a point inside a number ends nothing
WORD = re.compile(r"[^\W\d_]{3,}")
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
CAPITAL = re.compile(r"[A-Z][\w'-]+")
NAME = re.compile(r"(?<=[\w,;] )[A-Z][\w'-]+")  # a capital that no sentence begins with
COMMON_WORDS = (
    "the and that with from this have has had was were are for not but its his her their they them who "
    "which will would been being into than then there these those also about over such only some more "
    "most very can could may "
)
COMMON = frozenset(COMMON_WORDS.split())
WINDOW = 3  # sentences that one claim's support may spread over


class Span(NamedTuple):
    """A sentence of the answer. start, end: characters."""

    start: int
    end: int
    support: float  # 0..1; below a threshold it is unsupported
    missing: tuple[str, ...]  # numbers and names that the best window lacks


class Window(NamedTuple):
    """Some neighbouring sentences of a source."""

    words: frozenset[str]
    numbers: frozenset[str]
    names: frozenset[str]


def sentences(text: str) -> list[tuple[int, int]]:
    """(start, end) of each sentence that holds a word or a number."""
    return [m.span() for m in SENTENCE.finditer(text) if WORD.search(m[0]) or NUMBER.search(m[0])]


def words_of(text: str) -> frozenset[str]:
    """Content words, lower case, without a plural or past ending."""
    return frozenset(re.sub(r"(?:ies|es|ed|s)$", "", w) for w in WORD.findall(text.lower()) if w not in COMMON)


def numbers_in(text: str) -> frozenset[str]:
    """Numbers, thousands separators left out."""
    return frozenset(f"{float(n.replace(',', '')):.10g}" for n in NUMBER.findall(text))


def names_in(text: str) -> frozenset[str]:
    """Capitalised words inside sentences."""
    return frozenset(NAME.findall(text))


def windows_of(sources: Sequence[str], size: int = WINDOW) -> list[Window]:
    """Every run of `size` sentences of each source; together they cover all of it."""
    found = []
    for source in sources:
        texts = [source[start:end] for start, end in sentences(source)]
        parts = [Window(words_of(t), numbers_in(t), frozenset(CAPITAL.findall(t))) for t in texts]
        for i in range(max(len(parts) - size + 1, min(len(parts), 1))):
            found.append(Window(*(frozenset().union(*sets) for sets in zip(*parts[i : i + size], strict=True))))
    return found


class GroundingVerifier:
    """Check answers against sources. Support of a sentence is that of its best window: the share of its content words
    found there, rare words counting more, times `penalty` for each number or name that the window lacks.

    threshold: support below it is unsupported. penalty: 1 ignores numbers and names. limit: characters of the sources
    that are read, the first ones; None: all. Text beyond a limit cannot support anything, so what it would have
    supported is flagged: prefer a time budget large enough to reading half.
    Source: after Fast and Faithful (a long-context token classifier with early exits); the checks here are lexical.
    """

    def __init__(self, threshold: float = 0.5, penalty: float = 0.3, window: int = WINDOW, limit: int | None = None):
        for name, value in (("threshold", threshold), ("penalty", penalty)):
            if not 0 <= value <= 1:
                raise ConfigError(name, got=value, expected="a number in 0..1")
        if window < 1:
            raise ConfigError("window", got=window, expected="a number of sentences, 1 or more")
        self.threshold, self.penalty, self.window, self.limit = threshold, penalty, window, limit

    def check(self, answer: str, sources: Sequence[str]) -> list[Span]:
        """Every sentence of the answer with its support. No sources: nothing is supported."""
        if self.limit is not None:
            sources = within(sources, self.limit)
        known = windows_of(sources, self.window)
        count = Counter(word for window in known for word in window.words)
        places: dict[str, list[int]] = {}
        for i, window in enumerate(known):
            for word in window.words:
                places.setdefault(word, []).append(i)
        return [self._judged(answer, start, end, known, count, places) for start, end in sentences(answer)]

    def _judged(
        self, answer: str, start: int, end: int, known: Sequence[Window], count: Counter[str],
        places: dict[str, list[int]],
    ) -> Span:  # fmt: skip
        text = answer[start:end]
        words, numbers, names = words_of(text), numbers_in(text), names_in(text)
        weight = {word: math.log(1 + len(known) / (count[word] or 0.5)) for word in words}
        total = sum(weight.values())
        shared: Counter[int] = Counter()
        for word in words:
            for i in places.get(word, ()):
                shared[i] += weight[word]  # type: ignore[assignment]
        best = (0.0, tuple(sorted(numbers | names)))
        for i, score in shared.most_common(20):
            missing = tuple(sorted((numbers - known[i].numbers) | (names - known[i].names)))
            support = (score / total if total else 1.0) * self.penalty ** len(missing)
            best = max(best, (support, missing), key=lambda one: one[0])
        return Span(start, end, min(best[0], 1.0), best[1])

    def unsupported(self, answer: str, sources: Sequence[str]) -> list[Span]:
        """The sentences below the threshold."""
        return [span for span in self.check(answer, sources) if span.support < self.threshold]

    def faithful(self, answer: str, sources: Sequence[str]) -> bool:
        """Whether every sentence is supported."""
        return not self.unsupported(answer, sources)


def within(sources: Sequence[str], limit: int) -> list[str]:
    """The first `limit` characters of the sources, one after the other."""
    found = []
    for source in sources:
        found.append(source[:limit])
        limit -= len(found[-1])
    return found


class Depth(NamedTuple):
    """One way to check: how long it takes and how good it is."""

    name: str
    fixed_ms: float
    ms_per_token: float
    quality: float  # for example F1 on held-out answers

    def latency(self, num_tokens: int) -> float:
        return self.fixed_ms + self.ms_per_token * num_tokens


def choose_depth(depths: Sequence[Depth], num_tokens: int, budget_ms: float) -> Depth | None:
    """The best check that a budget allows, the quicker of equals; None where none fits: the answer goes unchecked."""
    fits = [depth for depth in depths if depth.latency(num_tokens) <= budget_ms]
    return max(fits, key=lambda d: (d.quality, -d.latency(num_tokens)), default=None)
