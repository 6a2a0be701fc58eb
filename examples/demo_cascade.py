"""Recorded GSM8K questions through a live gateway that reads answers before it pays for another.

    make demo-cascade                     # or: python examples/demo_cascade.py [QUESTIONS]

A verified cascade is fitted on the recorded answers of the train and valid splits and served unchanged in front of two
recorded models; the questions are those of the test split, 190. Whom the gateway asked, what it kept and what it spent
is held against the same cascade replayed on the table, question by question.
Needs the recorded answers of RouteLLM's GSM8K run in POLYROUTE_DATA (default: ../shared/data).
"""

import json
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, Popen

import openai
import pyarrow.parquet as parquet
from demo_replay import ANSWERS, DATA, MODEL, PRICES, spend

from polyroute.artefact import load
from polyroute.flows.cascade import run
from polyroute.flows.judging import Bench
from polyroute.gateway.choice import objective_for
from polyroute.signals import featuriser
from polyroute.signals.tokens import count_tokens
from polyroute.types import Candidate, Outcome, Profile, Query

POLICIES = {"auto:cheap": 3.0, "auto": 0.3, "auto:best": 0.0}  # trade-offs
CONFIG = '[journal]\npath = "{0}/journal.sqlite"\n[router]\nartefact = "{0}/cascade.npz"\n'


def fit(folder: Path) -> None:
    """The cascade, as anybody would fit it: rows of the test split are not read."""
    table, out = DATA / "routellm.parquet", folder / "cascade.npz"
    words = ["fit", table, "--router", "cascade", "--answers", ANSWERS, "-o", out]
    subprocess.run([sys.executable, "-m", "polyroute", *map(str, words)], check=True)


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    models = "".join(MODEL.format(name, ANSWERS, *price) for name, price in PRICES.items())
    (folder / "polyroute.toml").write_text(CONFIG.format(folder) + models)
    command = [sys.executable, "-m", "polyroute", "serve", str(folder / "polyroute.toml"), "--port", "0"]
    with Popen(command, stdout=PIPE, text=True) as gateway:
        try:
            yield gateway.stdout.readline().split()[3]  # "polyroute listens on URL ..."
        finally:
            gateway.terminate()


def live(url: str, model: str, prompts: list[str], done: int) -> tuple[list[tuple[tuple[str, ...], str]], float]:
    """(models asked, in order, and the one kept, for each prompt; USD the gateway counted)."""
    client, before, seen = openai.OpenAI(base_url=f"{url}/v1", api_key="none"), spend(url, done), []
    for prompt in prompts:
        messages = [{"role": "user", "content": prompt}]
        raw = client.chat.completions.with_raw_response.create(model=model, messages=messages)
        seen.append((raw.headers["x-polyroute-decision-id"], raw.headers["x-polyroute-selected-model"]))
    spent = spend(url, done + len(prompts)) - before
    told = []
    for decision, kept in seen:
        record = json.load(urllib.request.urlopen(f"{url}/polyroute/v1/decisions/{decision}"))
        told.append((tuple(one["model"] for one in record["outcome"]["tries"]), kept))
    return told, spent


def offline(folder: Path, trade_off: float, prompts: list[str], table: dict) -> list[tuple[tuple[str, ...], str]]:
    """The same from the table, without a gateway."""
    found = load(folder / "cascade.npz")
    pool = [Candidate(name, profile=Profile(price_in=p, price_out=q)) for name, (p, q) in PRICES.items()]
    usd = -objective_for(trade_off, pool).weights["cost"]
    bench, embed, told = Bench(found.router, pool), featuriser(found.features), []
    for prompt in prompts:
        tokens = count_tokens(json.dumps([{"role": "user", "content": prompt}], separators=(",", ":")).encode())
        asked: list[str] = []

        def backend(decision, prompt=prompt, asked=asked):
            asked.append(decision.candidate_ids[0])
            row = table[prompt, asked[-1]]
            return Outcome(decision, {"cost": row["cost_usd"], "quality": row["score"]}, row["response"])

        query = Query(prompt, prompt, embed([prompt])[0], num_tokens=tokens)
        kept = run(bench.flow(query, usd * found.router.reference_), backend)
        told.append((tuple(asked), kept.decision.candidate_ids[0]))
    return told


def main(questions: int) -> int:
    if not ANSWERS.is_file():
        print(f"No recorded answers at {ANSWERS}; set POLYROUTE_DATA to the folder that has outcomes/.")
        return 1
    costs = {(r["query_id"], r["model"]): r for r in parquet.read_table(DATA / "routellm.parquet").to_pylist()}
    held_out = [r for r in parquet.read_table(ANSWERS).to_pylist() if r["split"] == "test"]
    table = {(r["prompt"], r["model"]): costs[r["query_id"], r["model"]] | r for r in held_out}
    prompts = list(dict.fromkeys(r["prompt"] for r in held_out))[:questions]
    report = []
    with tempfile.TemporaryDirectory() as scratch:
        fit(Path(scratch))
        print(f"{'':<38} {'accuracy':>8} {'gateway USD':>12} {'table USD':>12} {'asked':>6} {'as offline':>10}")
        for name in PRICES:
            rows = [table[prompt, name] for prompt in prompts]
            accuracy, cost = sum(r["score"] for r in rows) / len(rows), sum(r["cost_usd"] for r in rows)
            print(f"{name:<38} {accuracy:>8.3f} {'':>12} {cost:>12.6f} {1:>6.2f}")
        with serving(Path(scratch)) as url:
            for i, (policy, trade_off) in enumerate(POLICIES.items()):
                told, spent = live(url, policy, prompts, i * len(prompts))
                replayed = offline(Path(scratch), trade_off, prompts, table)
                alike = sum(a == b for a, b in zip(told, replayed, strict=True))
                rows = [table[prompt, kept] for prompt, (_, kept) in zip(prompts, told, strict=True)]
                asked = [(prompt, name) for prompt, (names, _) in zip(prompts, told, strict=True) for name in names]
                accuracy, paid = sum(r["score"] for r in rows) / len(rows), sum(table[one]["cost_usd"] for one in asked)
                report.append({
                    "policy": policy, "accuracy": accuracy, "gateway": spent, "table": paid,
                    "asked": len(asked) / len(told), "alike": alike / len(told),
                })  # fmt: skip
                line = "{policy:<38} {accuracy:>8.3f} {gateway:>12.6f} {table:>12.6f} {asked:>6.2f} {alike:>10.3f}"
                print(line.format(**report[-1]))
    agreed = all(abs(row["gateway"] - row["table"]) < 0.005 and row["alike"] == 1.0 for row in report)
    print(json.dumps({"demo": "cascade", "questions": len(prompts), "agreed": agreed, "rows": report}))
    return 0 if agreed else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000))
