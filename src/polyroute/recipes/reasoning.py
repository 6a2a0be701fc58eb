"""System 63, efficient inference for reasoning models (a survey): (model, mode, token budget) is one candidate.

Quality over the token budget saturates: q(B) = q_end - (q_end - q_0) exp(-B / kappa). The budget worth paying is where
the curve's slope meets the price of a token. Outcomes were recorded with the embedded 0.5B model:
`python -m polyroute.recipes.reasoning --url http://127.0.0.1:8080/v1 --model qwen2.5-coder-0.5b`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from polyroute.data.probes import LEVELS, Probe, probes
from polyroute.errors import OutcomesError, ShapeError
from polyroute.types import Array, Candidate, Profile, Rng

MODES = {"answer": "", "steps": " Think step by step first, then end with the answer alone."}
BUDGETS = (16, 96, 192)  # completion tokens
FORCE = "Stop here. Reply with the final answer only."
EARLIER, SEED = 64, 65  # of the probes: the recording that plans may be fitted on, and the one they are judged on
PER_LEVEL = {"program": 16, "everyday": 8, "reading": 8, "word-problem": 6, "arithmetic": 5, "ordering": 5, "string": 5}


@dataclass(frozen=True, slots=True)
class ReasoningArm:
    """One way to use a model. As a candidate it has a name, a price and a limit of its own."""

    model: str
    mode: str
    budget: int  # completion tokens

    def candidate(self, profile: Profile = Profile()) -> Candidate:
        return Candidate(f"{self.model}/{self.mode}/{self.budget}", "model", profile)


class BudgetCurve:
    """Mean quality as a saturating function of the token budget, by least squares over a grid of kappa."""

    def fit(self, budgets: Array, scores: Array) -> BudgetCurve:
        """budgets: [b] tokens, ascending. scores: [b] mean quality at each. Raises: OutcomesError below 3 budgets."""
        x, y = np.asarray(budgets, dtype=float), np.asarray(scores, dtype=float)
        if x.shape != y.shape:
            raise ShapeError("scores", got=y.shape, expected=x.shape)
        if len(x) < 3 or not np.isfinite(y).all():
            raise OutcomesError(f"budgets: expected 3 or more with a finite score each, got {len(x)}.")
        best = (np.inf, 0.0, 0.0, 1.0)
        for kappa in np.geomspace(x[0] / 4, 4 * x[-1], 200):
            fade = np.exp(-x / kappa)
            design = np.stack([1 - fade, fade], axis=1)  # q_end, q_0
            (end, start), *_ = np.linalg.lstsq(design, y, rcond=None)
            error = float(((design @ [end, start] - y) ** 2).sum())
            if 0 <= end <= 1 and error < best[0] - 1e-15:
                best = (error, float(end), float(start), float(kappa))
        if not np.isfinite(best[0]):
            best = (0.0, float(y[-1]), float(y[0]), float(x[0]))
        _, self.end_, self.start_, self.kappa_ = best
        self.limits_ = (float(x[0]), float(x[-1]))
        return self

    def quality(self, budget: Array) -> Array:
        """Expected quality at each budget, within 0..1."""
        fade = np.exp(-np.asarray(budget, dtype=float) / self.kappa_)
        return np.clip(self.end_ - (self.end_ - self.start_) * fade, 0.0, 1.0)

    def optimal(self, token_price: float) -> float:
        """The budget where one more token yields just its price (quality per token), within the budgets seen."""
        rise = (self.end_ - self.start_) / self.kappa_
        low, high = self.limits_
        if rise <= token_price:
            return low
        return float(np.clip(self.kappa_ * np.log(rise / token_price), low, high)) if token_price > 0 else high


def items(seed: int = SEED, per_level: Mapping[str, int] = PER_LEVEL) -> list[Probe]:
    """Probes of each family and level, in their proportion wherever the list is cut; none that was asked before."""
    rng: Rng = np.random.default_rng(seed)
    asked = {probe.prompt for probe in probes(4, np.random.default_rng(EARLIER))}
    found: list[tuple[float, Probe]] = []
    for family, count in per_level.items():
        for i, probe in enumerate(probes(count, rng, [family])):
            if probe.prompt not in asked:
                asked.add(probe.prompt)
                found.append((i / (count * LEVELS), probe))
    return [probe for _, probe in sorted(found, key=lambda pair: pair[0])]


def recorded_budgets(which: str = "fresh") -> dict[str, Any]:
    """model, seed, budgets, and item id -> mode -> list of [score, tokens] for each budget. which: earlier or fresh."""
    name = {"earlier": "budget_outcomes.json", "fresh": "budget_outcomes_fresh.json"}[which]
    found: dict[str, Any] = json.loads(files("polyroute.data").joinpath(name).read_text("utf-8"))
    return found


def ask(url: str, model: str, messages: list[dict[str, str]], limit: int) -> dict[str, Any]:
    """One greedy answer with its tokens, from any OpenAI-compatible server on this machine."""
    body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": limit, "logprobs": True}
    request = urllib.request.Request(
        f"{url}/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as reply:
        answer: dict[str, Any] = json.load(reply)["choices"][0]
    return answer


def record_item(url: str, model: str, probe: Probe) -> dict[str, list[list[float]]]:
    """Score and tokens of one item in each mode at each budget; a cut answer is forced to a number."""
    rows: dict[str, list[list[float]]] = {}
    for mode, suffix in MODES.items():
        question = [{"role": "user", "content": probe.prompt + suffix}]
        answer = ask(url, model, question, BUDGETS[-1])
        tokens = [t["token"] for t in answer["logprobs"]["content"]]
        rows[mode] = []
        for budget in BUDGETS:
            text, used = "".join(tokens[:budget]), min(budget, len(tokens))
            if len(tokens) > budget or (budget == BUDGETS[-1] and answer["finish_reason"] == "length"):
                forced = [*question, {"role": "assistant", "content": text}, {"role": "user", "content": FORCE}]
                reply = ask(url, model, forced, 16)
                text, used = reply["message"]["content"], used + len(reply["logprobs"]["content"])
            rows[mode].append([probe.score(text), used])
    return rows


def main() -> int:
    p = argparse.ArgumentParser(description="record outcomes over token budgets")
    p.add_argument("--url", default="http://127.0.0.1:8080/v1")
    p.add_argument("--model", default="qwen2.5-coder-0.5b")
    p.add_argument("--seed", type=int, default=SEED, help="of the probes")
    p.add_argument("--minutes", type=float, default=25.0, help="stop after so long; what is there is kept")
    p.add_argument("--go-on", action="store_true", help="add to the output what it lacks")
    p.add_argument("-o", "--output", type=Path, default=Path("src/polyroute/data/budget_outcomes_fresh.json"))
    args = p.parse_args()
    asked = items(args.seed)
    header = {"model": args.model, "seed": args.seed, "budgets": list(BUDGETS)}
    rows: dict[str, Any] = json.loads(args.output.read_text("utf-8"))["items"] if args.go_on else {}
    end = time.monotonic() + 60 * args.minutes
    for i, probe in enumerate(asked):
        if probe.id in rows:
            continue
        if time.monotonic() > end:
            print(f"\nstopped after {args.minutes:g} minutes", end="", file=sys.stderr)
            break
        rows[probe.id] = record_item(args.url, args.model, probe)
        args.output.write_text(json.dumps(header | {"items": rows}) + "\n", encoding="utf-8")
        print(f"\r{i + 1}/{len(asked)} items", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
