"""What an answer looks like, and whether two answers say the same: numbers for a verifier.

Nothing is executed. An answer has one of `KINDS`; a pick or a number has a `final` answer that another can equal. Code
is parsed, never run; sums that an answer states are worked out again; the numbers of the query should turn up.
"""

from __future__ import annotations

import ast
import math
import re
import warnings
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from polyroute.types import Array

KINDS: tuple[str, ...] = ("pick_of_two", "pick", "code", "number", "prose")  # one of the first features is 1
NAMES: tuple[str, ...] = (
    *KINDS, "length_code", "length_number", "length_prose", "empty", "cut_short", "refusal",
    "letter_a", "letter_b", "letter_c", "letter_d",
    "code_parses", "code_blocks", "code_lines", "code_imports", "code_loops",
    "sums_right", "sums_wrong", "any_sum_wrong", "sums", "no_sums", "ends_in_last_sum",
    "query_numbers", "query_numbers_used", "query_numbers_unused", "any_unused", "numbers_from_nowhere", "any_nowhere",
    "repeats_query_number", "negative", "fraction", "magnitude", "digits", "marked_final", "answer_numbers", "lines",
    "hedges", "query_words", "query_relations", "query_percent", "query_fraction", "overlap",
    "has_logprobs", "mean_logprob", "min_logprob",
)  # fmt: skip
DIM: int = len(NAMES)
CAP = 20_000  # characters of an answer or query that are read

PICK = re.compile(r"\W*(?:answer\W*(?:is\W*)?)?([A-J])\W*", re.IGNORECASE)
OPTION = re.compile(r"^\W{0,3}([A-J])[).:]", re.MULTILINE)
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
FENCE = re.compile(r"```[a-zA-Z]*[ \t]*\r?\n(.*?)```", re.DOTALL)
WORKED = re.compile(r"<<([^<>=]{1,80})=([^<>]{1,40})>>")  # a sum as calculators annotate it
SUM = re.compile(r"([\d.,$ +*/()x×-]{3,60})=\s*\$?(-?\d[\d,]*(?:\.\d+)?)")
PLAIN_SUM = re.compile(r"[\d.+\-*/() ]+")
REFUSAL = re.compile(r"\b(?:i can ?not|i can'?t|i'm sorry|i am sorry|i apologi[sz]e|unable to|as an ai|i do)\b", re.I)
HEDGE = re.compile(r"\b(?:however|but|wait|actually|should|cannot|assum\w*|not|only|least|if)\b", re.I)
RELATION = re.compile(r"\b(?:more|less|fewer|twice|half|times|each|per|remaining|average|total|percent|ratio)\b", re.I)
SIGNS = str.maketrans("×x", "**", "$,\\")
TOKEN = re.compile(r"\w+|[^\w\s]")
FREE_NUMBERS = {"1", "2", "7", "10", "12", "24", "30", "60", "100"}  # units of time, dozens, percent


def options(query: str) -> int:
    """How many listed options (A to J) a query ends on; 0 where it lists none."""
    return len(set(OPTION.findall(query[-CAP:])))


def code_of(answer: str) -> str:
    """The first fenced block, or the whole answer where it defines something without a fence; else empty."""
    block = FENCE.search(answer)
    if block:
        return block[1]
    return answer if re.search(r"^\s*(?:def|class) \w", answer, re.MULTILINE) else ""


def final(answer: str) -> str | None:
    """What an answer comes down to, `C` or `12.5`; None for code and prose, which have no such thing."""
    text = answer[-CAP:].strip()
    if pick := PICK.fullmatch(text):
        return pick[1].upper()
    if not text or code_of(text):
        return None
    numbers = NUMBER.findall(text.rsplit("####", 1)[-1]) or NUMBER.findall(text)
    if not numbers or len(text) > 3000:  # a long text that happens to hold numbers is prose
        return None
    return plain(numbers[-1])


def plain(number: str) -> str:
    """`1,200.50` as `1200.5`."""
    return f"{float(number.replace(',', '')):.10g}"


def kind_of(query: str, answer: str) -> int:
    """The place in KINDS."""
    found = final(answer)
    if found is not None and found.isalpha():
        return 0 if options(query) == 2 else 1
    if code_of(answer):
        return 2
    return 4 if found is None else 3


def answer_features(query: str, answer: str, logprobs: Sequence[float] | None = None) -> Array:
    """[DIM] float64, one for each of NAMES. logprobs: of the answer's tokens, where the backend gives them.

    Takes about 0.1 ms for a short answer and 1 ms for a page. Never fails, whatever the text.
    """
    query, answer = query[-CAP:], answer[-CAP:]
    kind, text, code = kind_of(query, answer), answer.strip(), code_of(answer)
    length, letter = math.log1p(len(text)), final(answer) if kind < 2 else None
    values = dict.fromkeys(NAMES, 0.0) | {KINDS[kind]: 1.0}
    values |= {f"length_{name}": length for name, place in (("code", 2), ("number", 3), ("prose", 4)) if kind == place}
    values |= {f"letter_{c.lower()}": float(letter == c) for c in "ABCD"}
    values |= {
        "empty": float(not text), "cut_short": float(0 < len(text) < 6 and kind == 4),
        "refusal": float(bool(REFUSAL.search(text))), "overlap": overlap(query, text) if kind > 1 else 0.0,
    }  # fmt: skip
    if kind == 2:
        values |= code_features(answer, code)
    if kind == 3:
        values |= number_features(query, text)
    if logprobs is not None and len(logprobs):
        mean, low = float(np.mean(logprobs)), float(np.min(logprobs))
        values |= {"has_logprobs": 1.0, "mean_logprob": max(mean, -20.0), "min_logprob": max(low, -20.0)}
    return np.array([values[name] for name in NAMES])


def code_features(answer: str, code: str) -> dict[str, float]:
    """Does it parse, and how much of it is there. Counts are scaled to a few units at most."""
    return {
        "code_parses": float(parses(code)), "code_blocks": min(0.3 * len(FENCE.findall(answer)), 3.0),
        "code_lines": min(0.1 * code.count("\n"), 10.0), "code_imports": min(float(code.count("import ")), 5.0),
        "code_loops": min(0.3 * (code.count("for ") + code.count("while ")), 3.0),
    }  # fmt: skip


def parses(code: str) -> bool:
    """Whether a text is Python."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ast.parse(code)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True


def number_features(query: str, answer: str) -> dict[str, float]:
    """Are the sums right, and do the numbers come from the query."""
    asked, said = numbers_of(query), numbers_of(answer)
    worked = WORKED.findall(answer)
    right, wrong = check_sums(answer)
    used, results, nowhere = set[str](), set[str](), 0
    for left, value in worked:
        inside = numbers_of(left)
        nowhere += len(inside - asked - results - FREE_NUMBERS)
        used |= inside
        results |= numbers_of(value)
    unused = len(asked - (used if worked else said))
    last, found = (numbers_of(worked[-1][1]) if worked else set()), final(answer) or "0"
    value = float(found)
    return {
        "sums_right": 0.3 * min(right, 20), "sums_wrong": float(min(wrong, 5)), "any_sum_wrong": float(wrong > 0),
        "sums": 0.3 * min(len(worked), 20), "no_sums": float(not worked), "ends_in_last_sum": float(found in last),
        "query_numbers": 0.1 * min(len(asked), 40), "query_numbers_used": len(asked & said) / max(len(asked), 1),
        "query_numbers_unused": 0.3 * min(unused, 10), "any_unused": float(unused > 0),
        "numbers_from_nowhere": 0.3 * min(nowhere, 10), "any_nowhere": float(nowhere > 0),
        "repeats_query_number": float(found in asked), "negative": float(value < 0),
        "fraction": float(value != int(value) if abs(value) < 1e15 else True),
        "magnitude": math.log1p(min(abs(value), 1e15)), "digits": 0.3 * min(len(set(found.strip("-"))), 10),
        "marked_final": float("####" in answer), "answer_numbers": 0.05 * min(len(NUMBER.findall(answer)), 60),
        "lines": 0.2 * min(answer.count("\n"), 40), "hedges": 0.3 * min(len(HEDGE.findall(answer)), 20),
        "query_words": math.log1p(len(query.split())), "query_relations": 0.3 * min(len(RELATION.findall(query)), 20),
        "query_percent": float("%" in query), "query_fraction": float("/" in query),
    }  # fmt: skip


def numbers_of(text: str) -> set[str]:
    """The distinct numbers of a text, each written one way."""
    return {plain(number.lstrip("-")) for number in NUMBER.findall(text[-CAP:])}


def check_sums(text: str) -> tuple[int, int]:
    """How many stated sums (`3 * 4 = 12`) are right, and how many wrong by more than one in a hundred."""
    right = wrong = 0
    for left, stated in (*WORKED.findall(text), *SUM.findall(WORKED.sub("", text))):
        value, said = worked_out(left), NUMBER.search(stated)
        if value is None or said is None:
            continue
        close = abs(value - float(said[0].replace(",", ""))) <= 0.011 * max(1.0, abs(value))
        right, wrong = right + close, wrong + (not close)
    return right, wrong


def worked_out(sum_text: str) -> float | None:
    """The value of `3 * (2 + 1)`; None where it is no sum of plain numbers."""
    text = sum_text.translate(SIGNS).strip()
    if not PLAIN_SUM.fullmatch(text):
        return None
    try:
        tree = ast.parse(text, mode="eval").body
        return value_of(tree) if isinstance(tree, ast.BinOp) else None
    except (SyntaxError, ValueError, ZeroDivisionError, OverflowError, RecursionError):
        return None


def value_of(node: ast.AST) -> float:
    """Arithmetic on numbers; powers are no part of it. Raises: ValueError for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return float(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -value_of(node.operand)
    if isinstance(node, ast.BinOp):
        one, other = value_of(node.left), value_of(node.right)
        if isinstance(node.op, ast.Add):
            return one + other
        if isinstance(node.op, ast.Sub):
            return one - other
        if isinstance(node.op, ast.Mult):
            return one * other
        if isinstance(node.op, ast.Div):
            return one / other
    raise ValueError(f"expected + - * / on numbers, got {type(node).__name__}")


def overlap(query: str, answer: str) -> float:
    """Share of the query's distinct longer words that the answer uses, 0..1."""
    asked = set(re.findall(r"[^\W\d_]{4,}", query.lower()))
    return len(asked & set(re.findall(r"[^\W\d_]{4,}", answer.lower()))) / max(len(asked), 1)


def pairs_of(text: str) -> frozenset[tuple[str, str]]:
    """Neighbouring tokens of an answer's code, or of its text: what two answers share if they say the same."""
    tokens = TOKEN.findall(code_of(text[-CAP:]) or text[-CAP:])
    return frozenset(pairwise(tokens))


def agreement(answers: Sequence[str]) -> Array:
    """[k, k] in 0..1, zero diagonal: 1 or 0 between final answers, shared token pairs (Jaccard) between texts.

    A final answer and a text without one do not agree.
    """
    finals = [final(answer) for answer in answers]
    pairs = [pairs_of(answer) if found is None else frozenset() for answer, found in zip(answers, finals, strict=True)]
    same = np.zeros((len(answers), len(answers)))
    for i in range(len(answers)):
        for j in range(i):
            if finals[i] is not None and finals[j] is not None:
                alike = float(finals[i] == finals[j])
            elif finals[i] is None and finals[j] is None:
                union = len(pairs[i] | pairs[j])
                alike = len(pairs[i] & pairs[j]) / union if union else float(answers[i] == answers[j])
            else:
                alike = 0.0
            same[i, j] = same[j, i] = alike
    return same
