"""Attempts to take a model over: told to forget its instructions, to give them away, to become someone without rules.

Two looks, both in the open. `MARKS` are forms that have hardly any other use, each with a confidence; the classifier
weighs words and pairs of words, fitted on texts made by recipes/injection_texts.py and shipped as a file one can read.
Neither proves anything: a paraphrase passes, a text about attacks is flagged. Flag and restrict; refuse with care.
"""

from __future__ import annotations

import functools
import json
import math
import re
import unicodedata
from collections.abc import Mapping
from importlib.resources import files
from itertools import pairwise
from typing import NamedTuple

from polyroute.errors import ArtefactError

READ = 6_000  # characters looked at: half from the head, half from the tail
WINDOW = 40  # words judged at a time: an attack hidden in a long text weighs as much as one alone
SHIPPED = "injection.json"
WORD = re.compile(r"[^\W_]+(?:'[a-z]+)?|<\||\|>|###|\[/?inst\]|<</?sys>>|\[system\]")
HIDDEN = re.compile(
    "[\u00ad\u200b-\u200f\u2060-\u2064\u202a-\u202e\ufeff\U000e0000-\U000e007f]"
)  # characters without width

_RULES = r"(?:instructions?|rules?|guidelines?|directions?|prompts?|commands?|restrictions?|polic(?:y|ies)|programming)"
_PRIOR = r"(?:previous|prior|earlier|above|preceding|original|initial|system|existing)"
# ruff: noqa: E501  # a form is easier to read in one line
MARKS: tuple[tuple[str, str, float], ...] = (  # name, form in lower case, confidence
    ("forget", rf"\b(?:ignore|disregard|forget|override|bypass|discard)\b[^.?!\n]{{0,30}}\b{_PRIOR}\b[^.?!\n]{{0,20}}\b{_RULES}\b", 0.9),
    ("forget", rf"\b(?:ignore|disregard|forget)\b[^.?!\n]{{0,20}}\b{_RULES}\b[^.?!\n]{{0,12}}\b(?:above|before|you (?:were|have been) given)\b", 0.85),
    ("reveal", r"\b(?:reveal|print|show|repeat|output|leak|display|dump|tell me)\b[^.?!\n]{0,30}\b(?:your|the) (?:hidden |secret |initial |original |full )*(?:system prompt|system message|developer message|hidden prompt|initial instructions)\b", 0.85),
    ("persona", r"\bdo anything now\b|\b(?:you are|act as|become|as) dan\b|\bjailbroken\b|\b(?:dan|developer|god|jailbreak) mode (?:enabled|on|activated)\b", 0.85),
    ("persona", r"\b(?:no|without(?: any)?|free of(?: all)?) (?:ethical|moral|content|safety)[\w ]{0,20}(?:guidelines?|restrictions?|filters?|polic(?:y|ies)|limits?|limitations?)\b", 0.75),
    ("role", r"<\|(?:im_start|system|start_header_id)\|>|<</?sys>>|\[/?inst\]", 0.75),
    ("role", r"(?:^|\n)\s*(?:###\s*)?(?:system(?: override| message| prompt)?|new instructions?)\s*:", 0.6),
    ("hide", r"\bdo not (?:tell|inform|mention (?:this|it) to|alert) the user\b", 0.75),
)  # fmt: skip
FORMS = [(name, re.compile(form), sure) for name, form, sure in MARKS]


class Injection(NamedTuple):
    """How much a text looks like an attempt."""

    score: float  # 0..1, the larger of marks and classifier; a judgement, not a frequency
    marks: tuple[str, ...]  # names of the forms found; `hidden` for characters without width
    learned: float  # 0..1, by the classifier alone


class Weights:
    """The classifier: words and pairs of words, weighed. values: term -> weight, "" -> offset."""

    def __init__(self, values: Mapping[str, float]):
        self.values = values

    def __call__(self, text: str) -> float:
        """0..1, of the window that looks worst."""
        words = WORD.findall(text.lower())
        worst = max((self.of(words[i : i + WINDOW]) for i in range(0, max(len(words), 1), WINDOW // 2)), default=-99.0)
        return 1 / (1 + math.exp(-max(min(worst, 50.0), -50.0)))

    def of(self, words: list[str]) -> float:
        weigh = self.values.get
        return self.values.get("", 0.0) + sum(weigh(term, 0.0) for term in terms_of(words))


def terms_of(words: list[str]) -> set[str]:
    return {*words, *(f"{a} {b}" for a, b in pairwise(words))}


def terms(text: str) -> set[str]:
    """The words of a text and its pairs of neighbouring words, in lower case."""
    return terms_of(WORD.findall(text.lower()))


@functools.cache
def shipped() -> Weights:
    """The classifier that ships, read once. Raises: ArtefactError where the file is damaged."""
    path = files("polyroute.data").joinpath(SHIPPED)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        values = {str(term): float(weight) for term, weight in content["weights"].items()}
        if content["format"] != "polyroute-injection" or content["version"] != 1:
            raise ValueError(f"format {content['format']} {content['version']}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtefactError(path, repr(error), expected="weights by polyroute.recipes.injection_texts") from error
    return Weights(values)


def injection(text: str, weights: Weights | None = None) -> Injection:
    """How much a text looks like an attempt to take the model over. Never fails on any text.

    weights: None: the classifier that ships. Letters are brought to one form first (NFKC), and characters without width
    are taken out and counted as a mark. About 50 us a short question, 1 ms for READ characters.
    """
    if len(text) > READ:
        text = f"{text[: READ // 2]}\n{text[-READ // 2 :]}"
    found, best = [], 0.0
    if not text.isascii():
        plain = HIDDEN.sub("", text)
        if len(text) - len(plain) > 3:
            found, best = ["hidden"], 0.5
        text = unicodedata.normalize("NFKC", plain)
    lower = text.lower()
    for name, form, sure in FORMS:
        if form.search(lower):
            found.append(name)
            best = max(best, sure)
    learned = (shipped() if weights is None else weights)(lower)
    return Injection(max(best, learned), tuple(dict.fromkeys(found)), learned)
