"""Signals an operator writes himself: (does it match, how surely) of a text, for rules such as policies/rules.py.

    keywords(["sql", "join"])(text)          words, any of them or all
    pattern(r"\\bdef ")(text)            a regular expression
    alike(["plain examples"])(text)          character trigrams in common with an example (Jaccard)
    relevant(["a longer example"])(text)     BM25 against examples
    length(most=200)(text)                   characters in an interval
    written_in("en")(text)                   language
    holds_pii()(text), hostile()(text)       the guards' own

and of an embedding: `near(exemplars, threshold)(x)`, `harder(hard, easy, threshold)(x)`. Each gives a Reading whose
confidence is that of a match, 0..1; None as match means not known, which is how an embedding that is missing reads.
Source: the signals of vLLM Semantic Router, thresholds too (BM25 0.1, trigrams 0.4).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from polyroute.errors import ConfigError
from polyroute.signals.injection import injection
from polyroute.signals.language import UNDETERMINED, language_of
from polyroute.signals.pii import KINDS, find_pii
from polyroute.types import Array

WORD = re.compile(r"[^\W_]+")
K1, B = 1.2, 0.75  # of BM25
SATURATION = 4.0  # BM25 score at which the confidence is one half


class Reading(NamedTuple):
    """What one signal says. match: None where it is not known."""

    match: bool | None
    confidence: float


TextSignal: TypeAlias = Callable[[str], Reading]
EmbeddingSignal: TypeAlias = Callable[[Array | None], Reading]
SILENT = Reading(None, 0.5)


def keywords(words: Collection[str], how: Literal["any", "all", "none"] = "any") -> TextSignal:
    """Whole words, whatever their case. A confidence is 1 or 0: a word is there or is not."""
    if isinstance(words, str) or not words:
        raise ConfigError("words", got=words, expected="a list of words")
    wanted = {word.lower() for word in words}

    def signal(text: str) -> Reading:
        lower = text.lower()
        found = {w for w in wanted if re.search(rf"(?<!\w){re.escape(w)}(?!\w)", lower)}
        match = {"any": bool(found), "all": found == wanted, "none": not found}[how]
        return Reading(match, float(match))

    return signal


def pattern(form: str, flags: int = re.IGNORECASE) -> TextSignal:
    """A regular expression, found anywhere. Raises: ConfigError for one that is none."""
    try:
        compiled = re.compile(form, flags)
    except re.error as error:
        raise ConfigError("pattern", got=form, expected=f"a regular expression ({error})") from None

    def signal(text: str) -> Reading:
        match = compiled.search(text) is not None
        return Reading(match, float(match))

    return signal


def trigrams(text: str) -> set[str]:
    padded = f"  {' '.join(text.lower().split())} "
    return {padded[i : i + 3] for i in range(len(padded) - 2)}


def alike(examples: Sequence[str], threshold: float = 0.4) -> TextSignal:
    """Character trigrams shared with the nearest example, over those of either (Jaccard); forgives misspelling."""
    known = [trigrams(example) for example in examples]

    def signal(text: str) -> Reading:
        own = trigrams(text)
        best = max((len(own & some) / len(own | some) for some in known), default=0.0)
        return Reading(best >= threshold, best)

    return signal


def relevant(examples: Sequence[str], threshold: float = 0.1) -> TextSignal:
    """BM25 of the text's words against the examples; the best one counts."""
    documents = [Counter(WORD.findall(example.lower())) for example in examples]
    lengths = [sum(document.values()) for document in documents]
    mean = sum(lengths) / max(len(lengths), 1) or 1.0
    spread = Counter(word for document in documents for word in document)
    rarity = {w: math.log(1 + (len(documents) - n + 0.5) / (n + 0.5)) for w, n in spread.items()}

    def signal(text: str) -> Reading:
        words = [word for word in set(WORD.findall(text.lower())) if word in rarity]
        best = 0.0
        for document, length_ in zip(documents, lengths, strict=True):
            norm = K1 * (1 - B + B * length_ / mean)
            score = sum(rarity[w] * document[w] * (K1 + 1) / (document[w] + norm) for w in words if document[w])
            best = max(best, score)
        return Reading(best >= threshold, best / (best + SATURATION))

    return signal


def length(least: int = 0, most: int | None = None) -> TextSignal:
    """Characters within an interval, its ends included."""

    def signal(text: str) -> Reading:
        match = len(text) >= least and (most is None or len(text) <= most)
        return Reading(match, float(match))

    return signal


def written_in(*codes: str) -> TextSignal:
    """The text's language is one of these; not known where it is too short to tell."""

    def signal(text: str) -> Reading:
        found = language_of(text)
        if found.code == UNDETERMINED:
            return SILENT
        match = found.code in codes
        return Reading(match, found.confidence if match else 1 - found.confidence)

    return signal


def holds_pii(kinds: Collection[str] = KINDS, least: float = 0.6) -> TextSignal:
    """Personal data or secrets in the text."""

    def signal(text: str) -> Reading:
        found = find_pii(text, kinds=kinds, least=least)
        return Reading(bool(found), max((finding.confidence for finding in found), default=0.0))

    return signal


def hostile(threshold: float = 0.7) -> TextSignal:
    """An attempt to take the model over."""

    def signal(text: str) -> Reading:
        score = injection(text).score
        return Reading(score >= threshold, score)

    return signal


def nearest(exemplars: Array, x: Array) -> float:
    """Largest cosine of x [d] to a row of exemplars [k, d]."""
    rows = np.asarray(exemplars, dtype=float)
    lengths = np.linalg.norm(rows, axis=1) * max(float(np.linalg.norm(x)), 1e-12)
    return float((rows @ np.asarray(x, dtype=float) / np.maximum(lengths, 1e-12)).max(initial=-1.0))


def near(exemplars: Array, threshold: float) -> EmbeddingSignal:
    """Cosine to the nearest exemplar at the threshold or above. exemplars: [k, d]."""

    def signal(x: Array | None) -> Reading:
        if x is None:
            return SILENT
        best = nearest(exemplars, x)
        return Reading(best >= threshold, min(max((best + 1) / 2, 0.0), 1.0))

    return signal


def harder(hard: Array, easy: Array, threshold: float = 0.0) -> EmbeddingSignal:
    """Nearer to a hard exemplar than to any easy one, by more than the threshold of cosine."""

    def signal(x: Array | None) -> Reading:
        if x is None:
            return SILENT
        lead = nearest(hard, x) - nearest(easy, x)
        return Reading(lead > threshold, min(max((lead - threshold + 1) / 2, 0.0), 1.0))

    return signal
