"""What each guard finds, what it flags by mistake, and what it costs.

    python -m benches.bench_guards                          needs the public tables (POLYROUTE_DATA)

Personal data: values made here with valid checksums, put into sentences; near misses have a wrong digit or form. The
real prompts hold next to none, so what is flagged among them counts as false (a few may be right). Injection: texts of
templates that the classifier was not fitted on (it is fitted again on the other half), beside the shipped file's marks;
and real prompts of the valid split. Language: English prompts, Chinese exam questions, valid split. Novelty: time only,
its score is `polyroute prove 81`. First row of the times: a length, the floor. `cpu` is the thread's own time.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benches.machine import machine, ticks
from polyroute.data.outcomes import load_outcomes
from polyroute.offline.split import part
from polyroute.policies.rules import Is, Rule, Rules
from polyroute.proofs.guarded import OWN, texts_of
from polyroute.proofs.tables import data_folder
from polyroute.recipes.guarded import GuardedRouter
from polyroute.recipes.injection_texts import ATTACKS, PLAIN, fit, made, real, split_templates, windows
from polyroute.signals import featuriser
from polyroute.signals.injection import Weights, injection
from polyroute.signals.language import language_of
from polyroute.signals.pii import IBAN_LENGTH, find_pii, iban_fits, luhn
from polyroute.types import Query

SEED, COUNT = 0, 300
LEADS = ("Please use {} for this.", "my details: {}", "{}", "Contact: {}, thanks!", "It is {} as I said.")


def digits(rng: random.Random, count: int) -> str:
    return "".join(rng.choice("0123456789") for _ in range(count))


def card(rng: random.Random) -> str:
    body = rng.choice(["4", "51", "2221", "6011"])
    body += digits(rng, 15 - len(body))
    number = next(body + d for d in "0123456789" if luhn(body + d))
    return rng.choice([number, " ".join(number[i : i + 4] for i in range(0, 16, 4))])


def iban(rng: random.Random) -> str:
    country = rng.choice(sorted(IBAN_LENGTH))
    body = digits(rng, IBAN_LENGTH[country] - 4)
    check = 98 - int("".join(str(int(c, 36)) for c in body + country + "00")) % 97
    plain = f"{country}{check:02d}{body}"
    return rng.choice([plain, " ".join(plain[i : i + 4] for i in range(0, len(plain), 4))])


def email(rng: random.Random) -> str:
    return (
        f"{rng.choice(['jo', 'a.b', 'info+x', 'Max_9'])}{digits(rng, 2)}@{rng.choice(['mail.example.org', 'x.co.uk'])}"
    )


def phone(rng: random.Random) -> str:
    forms = [
        "+49 30 ######",
        "+1 (4##) ###-####",
        "(4##) ###-####",
        "+4479########",
        "555-###-####",
        "phone 030 #### ###",
    ]
    return "".join(str(rng.randrange(10)) if c == "#" else c for c in rng.choice(forms))


def key(rng: random.Random) -> str:
    letters = "abcdefghijkLMNOPQRSTUV0123456789"
    word = "".join(rng.choice(letters) for _ in range(36))
    return rng.choice(
        ["sk-proj-" + word, "ghp_" + word, "AKIA" + word[:16].upper(), "hf_" + word, "glpat-" + word[:20]]
    )


MAKERS: dict[str, Callable[[random.Random], str]] = {
    "card": card, "iban": iban, "email": email, "phone": phone, "key": key,
    "ssn": lambda rng: f"{rng.randrange(100, 600)}-{rng.randrange(10, 99)}-{rng.randrange(1000, 9999)}",
    "ip": lambda rng: f"{rng.choice([8, 52, 91])}.{rng.randrange(256)}.{rng.randrange(256)}.{rng.randrange(1, 255)}",
}  # fmt: skip


def spoiled(kind: str, value: str, rng: random.Random) -> str:
    """A near miss: one digit changed where there is a checksum, else a form that is not one."""
    if kind in ("card", "iban"):
        while True:
            at = rng.choice([i for i, c in enumerate(value) if c.isdigit() and i > 3])
            changed = value[:at] + str((int(value[at]) + rng.randrange(1, 10)) % 10) + value[at + 1 :]
            if not (luhn(changed.replace(" ", "")) if kind == "card" else iban_fits(changed)):
                return changed
    plain = {"email": value.replace("@", " at "), "ssn": "000" + value[3:], "ip": "v" + value, "key": value[:12]}
    return plain.get(kind, digits(rng, 6))


def pii_rows() -> list[dict[str, Any]]:
    """Recall on values and the share of near misses found, a kind."""
    rng, rows = random.Random(SEED), []
    for kind, make in MAKERS.items():
        values = [make(rng) for _ in range(COUNT)]
        texts = [rng.choice(LEADS).format(value) for value in values]
        misses = [rng.choice(LEADS).format(spoiled(kind, value, rng)) for value in values]
        hits = [any(f.kind == kind for f in find_pii(text)) for text in texts]
        false = [any(f.kind == kind for f in find_pii(text)) for text in misses]
        found, wrong = sum(hits), sum(false)
        rows.append(
            {"guard": f"pii {kind}", "recall": found / COUNT, "precision": found / max(found + wrong, 1), "n": COUNT}
        )
    return rows


def injection_rows(prompts: Sequence[str]) -> list[dict[str, Any]]:
    """Unseen templates against real prompts: the classifier alone, marks alone, both as shipped but fitted on half."""
    rng = np.random.default_rng(SEED)
    (attack, unseen), (plain, other) = split_templates(ATTACKS, SEED), split_templates(PLAIN, SEED)
    train = made(attack, 6000, rng) + made(plain, 6000, rng)
    train += windows(real(data_folder(), "train"), 6, rng)
    weights = Weights(fit(train, np.arange(len(train)) < 6000))
    bad, good = made(unseen, 1000, rng), [*prompts, *made(other, 1000, rng)]
    rows = []
    for threshold in (0.5, 0.7):
        for name, score in (
            ("classifier", lambda text: injection(text, weights).learned),
            ("marks", lambda text: float(bool(injection(text, Weights({"": -50.0})).score >= 0.5))),
            ("both", lambda text: injection(text, weights).score),
        ):
            hits = sum(score(text) >= threshold for text in bad)
            real_false = sum(score(text) >= threshold for text in prompts)
            false = sum(score(text) >= threshold for text in good)
            rows.append({
                "guard": f"injection {name} at {threshold}", "recall": hits / len(bad),
                "precision": hits / max(hits + false, 1), "real flagged": real_false / len(prompts), "n": len(bad),
            })  # fmt: skip
    return rows


def language_rows(prompts: Sequence[str]) -> list[dict[str, Any]]:
    table = part(load_outcomes(data_folder() / "outcomes" / "routerdc7.parquet"), "valid")
    chinese = [q.text for q, d in zip(table.queries, table.labels["dataset"], strict=True) if d in ("ceval", "cmmlu")]
    rows = []
    for code, texts in (("en", list(prompts)), ("zh", chinese)):
        found = [language_of(text).code for text in texts]
        other = [language_of(text).code for text in (chinese if code == "en" else prompts)]
        right, wrong = found.count(code), other.count(code)
        rows.append({
            "guard": f"language {code}", "recall": right / len(texts), "precision": right / max(right + wrong, 1),
            "undetermined": found.count("und") / len(texts), "n": len(texts),
        })  # fmt: skip
    return rows


def timed(call: Callable[[Any], object], inputs: Sequence[Any]) -> dict[str, float]:
    """Microseconds a call: median by the wall clock, best of five rounds; mean of the thread's own time."""
    for given in inputs[:30]:
        call(given)
    rounds = []
    for _ in range(5):
        wall, own = [], time.thread_time_ns()
        for given in inputs:
            start = time.perf_counter_ns()
            call(given)
            wall.append((time.perf_counter_ns() - start) / 1e3)
        rounds.append((float(np.median(wall)), (time.thread_time_ns() - own) / 1e3 / len(inputs)))
    p50, cpu = min(rounds)
    return {"p50_us": round(p50, 1), "cpu_us": round(cpu, 1)}


def time_rows(prompts: Sequence[str]) -> list[dict[str, Any]]:
    embed = featuriser("static-1")
    short = [text for text in prompts if 60 <= len(text) <= 600][:200]
    long = [text for text in prompts if len(text) > 600][:100]
    own = texts_of("routerdc7", OWN)
    guard = GuardedRouter().fit(own.queries, own.domains.tolist(), own.groups.tolist())
    queries = {text: Query("q", text, embed([text])[0]) for text in (*short, *long)}
    ordinary = (Rule(name=f"r{i}", when=Is(f"s{i}"), candidates=("a",), priority=i) for i in range(9))
    rules = Rules((*ordinary, Rule(name="guard", when=Is("s9"), candidates=("b",), guard=True)), ("c",))
    readings = {f"s{i}": (i % 2 == 0, 0.5) for i in range(10)}
    calls: dict[str, Callable[[str], object]] = {
        "length": len, "pii": find_pii, "injection": injection, "language": language_of,
        "novelty, embedded": lambda text: guard.predict([queries[text]]),
        "novelty, from text": lambda text: guard.predict([Query("q", text, embed([text])[0])]),
        "ten rules, signals read": lambda text: rules.rule_on(readings),
    }  # fmt: skip
    return [
        {"guard": name, "texts": size} | timed(call, texts)
        for name, call in calls.items()
        for size, texts in (("60 to 600 characters", short), ("longer", long))
    ]


def show(rows: Sequence[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names]
    for row in rows:
        cells.append([f"{v:.4g}" if isinstance(v := row.get(name, ""), float) else str(v) for name in names])
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    for line in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    print()


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    p.add_argument("--only", choices=("found", "times"), help="one half (default: both)")
    args = p.parse_args()
    before, found, times = ticks(), [], []
    prompts = real(data_folder(), "valid")
    if args.only != "times":
        false = {
            "guard": "pii, any, real prompts",
            "real flagged": sum(bool(find_pii(t)) for t in prompts) / len(prompts),
        }
        found = [*pii_rows(), false | {"n": len(prompts)}, *injection_rows(prompts), *language_rows(prompts)]
        show(found)
    if args.only != "found":
        times = time_rows(prompts)
        show(times)
    print(json.dumps({"bench": "guards", "machine": machine(before), "seed": SEED, "found": found, "times": times}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
