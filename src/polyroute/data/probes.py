"""Self-generated, self-checking questions: they measure a new model without any data set and without a judge.

Seven families, each with five levels: arithmetic and word problems (skill math), letters of words (symbols), program
output (code), orderings (logic), reading a short invented text (commonsense: nothing has to be known), and everyday
questions any usable model answers, which anchor the easy end. All but the last are drawn from `rng` from so many
possibilities that a model cannot have seen them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from polyroute.types import Rng

NAMES = ("Ana", "Bo", "Chen", "Dara", "Eli", "Fay", "Gus", "Hana", "Ivo", "Jun", "Kim", "Lea")
THINGS = ("apples", "stamps", "marbles", "tickets", "books", "coins", "shells", "pens")
PLACES = ("harbour", "library", "museum", "station", "market", "bakery", "garden", "school")
COLOURS = ("red", "blue", "green", "white", "black", "yellow", "brown", "grey")
WORDS = ("planet", "window", "bridge", "carpet", "silver", "monkey", "guitar", "pepper", "rocket", "tunnel", "basket")
CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Germany": "Berlin", "Russia": "Moscow",
    "Egypt": "Cairo", "Greece": "Athens", "England": "London", "China": "Beijing", "Portugal": "Lisbon",
    "Cuba": "Havana", "Kenya": "Nairobi", "Norway": "Oslo", "Peru": "Lima", "Mongolia": "Ulaanbaatar",
}  # fmt: skip
OPPOSITES = {
    "hot": "cold", "up": "down", "day": "night", "big": "small", "fast": "slow", "open": "closed", "wet": "dry",
    "early": "late", "full": "empty", "old": "young", "light": "dark", "happy": "sad",
}  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
LEVELS = 5


@dataclass(frozen=True, slots=True)
class Probe:
    """One question with its answer. kind: number or word, which decides how a reply is read."""

    id: str
    skill: str
    level: int  # 1 (easy) to 5
    prompt: str
    answer: str
    kind: str

    def score(self, reply: str) -> float:
        """1.0 when the reply gives the answer, else 0.0. The last number, or the word after `Answer:`, counts."""
        return float(read_answer(reply, self.kind) == self.answer.lower())


def read_answer(reply: str, kind: str) -> str:
    """The answer a reply gives: its last number without separators, or its last word, in lower case."""
    if kind == "number":
        numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", reply)
        if not numbers:
            return ""
        text: str = numbers[-1].replace(",", "")
        return str(text.rstrip("0").rstrip(".")) if "." in text else text
    words: list[str] = re.findall(r"\w+", reply.rsplit("nswer:", 1)[-1].lower())
    if not words:
        return ""
    return words[0] if "nswer:" in reply else words[-1]


def arithmetic(rng: Rng, level: int) -> tuple[str, str, str]:
    high = 10 ** min(level, 4)
    terms = [int(rng.integers(1, high)) for _ in range(2 if level < 3 else level)]
    signs = [str(rng.choice(["+", "-", "*"] if level > 1 else ["+"])) for _ in terms[1:]]
    if level >= 3:
        terms = [int(rng.integers(2, 10 ** (level - 1))) for _ in terms]
    text = str(terms[0]) + "".join(f" {sign} {term}" for sign, term in zip(signs, terms[1:], strict=True))
    value = evaluate(terms, signs)
    return f"What is {text}? Reply with the number only.", str(value), "number"


def evaluate(terms: Sequence[int], signs: Sequence[str]) -> int:
    """Products before sums."""
    sums, product = 0, terms[0]
    sign = 1
    for mark, term in zip(signs, terms[1:], strict=True):
        if mark == "*":
            product *= term
        else:
            sums += sign * product
            sign, product = (1 if mark == "+" else -1), term
    return sums + sign * product


def word_problem(rng: Rng, level: int) -> tuple[str, str, str]:
    who, other = (str(n) for n in rng.choice(NAMES, 2, replace=False))
    thing = str(rng.choice(THINGS))
    count = int(rng.integers(3, 12 * level))
    lines = [f"{who} has {count} {thing}."]
    for _ in range(level):
        kind, k = int(rng.integers(4)), int(rng.integers(2, 9))
        if kind == 0:
            lines.append(f"{other} gives {who} {k} more.")
            count += k
        elif kind == 1 and count > k:
            lines.append(f"{who} loses {k} of them.")
            count -= k
        elif kind == 2:
            lines.append(f"Then the number {who} has is multiplied by {k}.")
            count *= k
        else:
            extra = int(rng.integers(2, 6))
            lines.append(f"{who} buys {extra} boxes with {k} {thing} each.")
            count += extra * k
    lines.append(f"How many {thing} does {who} have now? End with the number.")
    return " ".join(lines), str(count), "number"


def strings(rng: Rng, level: int) -> tuple[str, str, str]:
    word = str(rng.choice(WORDS))
    if level == 1:
        return f'What is the first letter of "{word}"? Reply with the letter only.', word[0], "word"
    if level == 2:
        at = int(rng.integers(1, len(word) + 1))
        ending = {1: "st", 2: "nd", 3: "rd"}.get(at, "th")
        return f'What is the {at}{ending} letter of "{word}"? Reply with the letter only.', word[at - 1], "word"
    if level == 3:
        return f'How many letters does "{word}" have? Reply with the number only.', str(len(word)), "number"
    if level == 4:
        return f'Write "{word}" backwards. Reply with the result only.', word[::-1], "word"
    longer = "".join(str(w) for w in rng.choice(WORDS, 2))
    letter = str(rng.choice(list(longer)))
    question = f'How often does the letter "{letter}" occur in "{longer}"? Reply with the number only.'
    return question, str(longer.count(letter)), "number"


def program(rng: Rng, level: int) -> tuple[str, str, str]:
    a, b, n = int(rng.integers(2, 9)), int(rng.integers(1, 9)), int(rng.integers(3, 4 + level))
    if level == 1:
        code, value = f"x = {a}\ny = x + {b}\nprint(y)", a + b
    elif level == 2:
        code, value = f"x = [{a}, {b}, {n}]\nprint(x[1] + len(x))", b + 3
    elif level == 3:
        code, value = f"t = 0\nfor i in range({n}):\n    t += i * {a}\nprint(t)", sum(i * a for i in range(n))
    elif level == 4:
        code = f"t = {b}\nfor i in range({n}):\n    if i % 2:\n        t *= 2\n    else:\n        t += {a}\nprint(t)"
        value = b
        for i in range(n):
            value = value * 2 if i % 2 else value + a
    else:
        code = f"def f(k):\n    return k if k < 2 else f(k - 1) + {a} * f(k - 2)\nprint(f({n}))"
        row = [0, 1]
        while len(row) <= n:
            row.append(row[-1] + a * row[-2])
        value = row[n]
    question = f"What does this Python program print?\n```python\n{code}\n```\nReply with the number only."
    return question, str(value), "number"


def ordering(rng: Rng, level: int) -> tuple[str, str, str]:
    people = [str(n) for n in rng.choice(NAMES, level + 2, replace=False)]
    facts = [f"{taller} is taller than {shorter}." for taller, shorter in pairwise(people)]
    rng.shuffle(facts)
    end = "tallest" if rng.random() < 0.5 else "shortest"
    answer = people[0] if end == "tallest" else people[-1]
    return " ".join(facts) + f" Who is the {end}? Reply with the name only.", answer, "word"


def reading(rng: Rng, level: int) -> tuple[str, str, str]:
    people = [str(n) for n in rng.choice(NAMES, level + 1, replace=False)]
    places = [str(p) for p in rng.choice(PLACES, level + 1, replace=False)]
    colours = [str(c) for c in rng.choice(COLOURS, level + 1, replace=False)]
    lines = [
        f"{who} went to the {place} and wore a {colour} coat."
        for who, place, colour in zip(people, places, colours, strict=True)
    ]
    asked = int(rng.integers(len(people)))
    if level < 3:
        question, answer = f"Where did {people[asked]} go?", places[asked]
    else:
        question, answer = f"What colour was the coat of the person at the {places[asked]}?", colours[asked]
    rng.shuffle(lines)
    return " ".join(lines) + f" {question} Reply with one word.", answer, "word"


def everyday(rng: Rng, level: int) -> tuple[str, str, str]:
    ask = str(rng.choice(["Answer in one word.", "One word, please.", "Reply with one word."]))
    if level == 1:
        word = str(rng.choice(WORDS))
        return str(rng.choice([f"Say {word}.", f'Please repeat this word: "{word}"'])), word, "word"
    if level == 2:
        a, b = (int(v) for v in rng.integers(1, 6, size=2))
        question = rng.choice([f"What is {a}+{b}?", f"how much is {a} plus {b}", f"{a} + {b} = ?"])
        return str(question), str(a + b), "number"
    if level == 3:
        word = str(rng.choice(list(OPPOSITES)))
        return f'What is the opposite of "{word}"? {ask}', OPPOSITES[word], "word"
    if level == 4:
        at = int(rng.integers(7))
        return f"Which day comes after {DAYS[at]}? {ask}", DAYS[(at + 1) % 7], "word"
    country = str(rng.choice(list(CAPITALS)))
    return f"What is the capital of {country}? {ask}", CAPITALS[country], "word"


FAMILIES: dict[str, tuple[str, Callable[[Rng, int], tuple[str, str, str]]]] = {
    "arithmetic": ("math", arithmetic),
    "word-problem": ("math", word_problem),
    "string": ("symbols", strings),
    "program": ("code", program),
    "ordering": ("logic", ordering),
    "reading": ("commonsense", reading),
    "everyday": ("everyday", everyday),
}


def probes(per_level: int, rng: Rng, families: Sequence[str] = tuple(FAMILIES)) -> Iterator[Probe]:
    """`per_level` probes of each family and level, level by level so that an early stop is still balanced."""
    for i in range(per_level):
        for level in range(1, LEVELS + 1):
            for family in families:
                skill, make = FAMILIES[family]
                prompt, answer, kind = make(rng, level)
                yield Probe(f"{family}-{level}-{i}", skill, level, prompt, answer, kind)
