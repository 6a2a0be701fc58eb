"""What reading a request costs: microseconds a text by length, memory, and how near token counts come.

    python -m benches.bench_signals
    python -m benches.bench_signals --minilm          the transformer too
    python -m benches.bench_signals --fit-tokens      the coefficients of signals/tokens.py

Texts are all different, so that nothing is remembered but words; 3,000 others go first, as a server that has been up
for a minute has seen. Wall-clock includes whatever else the machine does; `cpu` is the thread's own time, on average.
First row: the floor, a length and an empty array. Second: the token mean without any of the short cuts, to read the
others against when the machine is busy.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benches.machine import machine, ticks
from polyroute.data.columns import read_columns
from polyroute.data.outcomes import load_outcomes
from polyroute.offline.split import part
from polyroute.signals import featuriser
from polyroute.signals.conversation import routing_text
from polyroute.signals.needs import needs_of
from polyroute.signals.surface import surface
from polyroute.signals.tokens import COUNTS, MARKS, PER_COUNT, count_tokens, counts_of
from polyroute.types import Array

SEED = 0
TABLES = ("routerbench", "llmrouter9", "routellm", "routerdc7")
LENGTHS = (60, 300, 1_000, 2_000, 4_000, 100_000)  # characters
RUNS, ROUNDS = 300, 5
LOAD = """
import json, time
def resident():
    lines = open("/proc/self/status").read().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) // 1024 for line in lines if line.startswith(("VmRSS", "RssAnon"))}
import numpy, polyroute.signals
before, start = resident(), time.perf_counter()
embed = polyroute.signals.featuriser("NAME")
loaded = time.perf_counter() - start
embed(["a text of a few words"] + [f"word{i} " * 50 for i in range(200)])
print(json.dumps({"load_s": round(loaded, 3), "before_mb": before, "after_mb": resident()}))
"""


def measure(call: Callable[[Any], object], inputs: Sequence[Any], warmup: int = 30) -> dict[str, float]:
    """Microseconds a call: median, 90th and 99th percentile by the wall clock, mean of the thread's own time."""
    wall = []
    for given in inputs[: min(warmup, len(inputs) // 3)]:
        call(given)
    own = time.thread_time_ns()  # asked for once: it costs as much as a small call
    for given in inputs[min(warmup, len(inputs) // 3) :]:
        start = time.perf_counter_ns()
        call(given)
        wall.append((time.perf_counter_ns() - start) / 1e3)
    points = dict(zip(("p50", "p90", "p99"), np.percentile(wall, [50, 90, 99]).tolist(), strict=True))
    points["cpu"] = (time.thread_time_ns() - own) / 1e3 / len(wall)
    return {name: round(value, 1) for name, value in points.items()}


def text_rows(pools: dict[str, str], calls: dict[str, Callable[[str], object]], runs: int) -> list[dict[str, Any]]:
    """Each call on texts of each length, in each script; of ROUNDS rounds the one with the lowest median."""
    rows = []
    for script, pool in pools.items():
        for length in LENGTHS:
            count = min(runs, len(pool) // (length * ROUNDS))
            texts = [pool[i * length : (i + 1) * length] for i in range(count * ROUNDS)]
            found: dict[str, list[dict[str, float]]] = {name: [] for name in calls if count >= 3}
            for k in range(ROUNDS):  # in turn, so that a busy moment does not fall on one call alone
                for name, measured in found.items():
                    measured.append(measure(calls[name], texts[k::ROUNDS]))
            for name, measured in found.items():
                best = min(measured, key=lambda row: row["p50"])
                rows.append({"what": name, "script": script, "characters": length} | best)
    return rows


def chat_rows(texts: Sequence[str]) -> list[dict[str, Any]]:
    """The text of conversations, what they need, and their tokens: short chats, long ones, a body of a megabyte."""
    reminder = "<system-reminder>\nNever mention this.\n</system-reminder>\n"

    def chat(turns: int, size: int, i: int) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = [{"role": "system", "content": "You are a coding agent. " * 400}]
        for t in range(turns):
            text = " ".join(texts[(i * 7 + t * 3 + k) % len(texts)] for k in range(1 + size // 200))[:size]
            messages.append({"role": "assistant" if t % 2 else "user", "content": text if t % 2 else reminder + text})
        return messages

    shapes = {"1 turn of 80": (1, 80), "5 turns of 300": (5, 300), "41 turns of 2,000": (41, 2_000)}
    chats = {name: [chat(turns, size, i) for i in range(RUNS)] for name, (turns, size) in shapes.items()}
    chats["1 turn of 1,000,000"] = [chat(1, 1_000_000, i) for i in range(6)]
    rows = []
    for name, inputs in chats.items():
        wire = [json.dumps(messages).encode() for messages in inputs]
        for what, call, given in (
            ("routing_text", routing_text, inputs),
            ("needs_of", needs_of, inputs),
            ("count_tokens, JSON", count_tokens, wire),
        ):
            rows.append({"what": what, "script": name, "characters": len(wire[0])} | measure(call, given))  # type: ignore[operator]
    return rows


def recorded_tokens(folder: Path, name: str, split: str) -> tuple[list[str], Array]:
    """(texts, their recorded cl100k tokens [n]) of one table's split."""
    listed = read_columns(folder / "queries.parquet", ("query_id", "n_tokens"))
    ids = listed.text("query_id")
    known = dict(zip((ids.values[code] for code in ids.codes), listed.number("n_tokens"), strict=True))
    queries = part(load_outcomes(folder / "outcomes" / f"{name}.parquet"), split).queries
    return [query.text for query in queries], np.array([known[query.id] for query in queries])


def is_chinese(text: str) -> bool:
    return sum(c >= "\u2e80" for c in text) > 0.2 * len(text)


def token_rows(folder: Path) -> list[dict[str, Any]]:
    """Error of count_tokens against recorded cl100k counts, test split; a quarter of the characters beside it."""
    rows = []
    for name in TABLES:
        texts, truth = recorded_tokens(folder, name, "test")
        chinese = np.array([is_chinese(text) for text in texts])
        counted = np.array([count_tokens(text) for text in texts])
        quarter = np.array([len(text) / 4 for text in texts])
        for label, mask in (("", ~chinese), (", Chinese", chinese)):
            if mask.sum() > 20:
                row: dict[str, Any] = {"table": name + label, "queries": int(mask.sum())}
                for kind, values in (("counted", counted), ("characters / 4", quarter)):
                    error = np.abs(values[mask] - truth[mask]) / truth[mask]
                    row[f"{kind}: total"] = round(float(values[mask].sum() / truth[mask].sum()), 3)
                    row[f"{kind}: median error"] = round(float(np.median(error)), 3)
                    row[f"{kind}: 95 %"] = round(float(np.percentile(error, 95)), 3)
                rows.append(row)
    return rows


def fit_tokens(folder: Path) -> dict[str, float]:
    """Non-negative least squares of recorded tokens on counts, train splits; long texts weigh less than their size."""
    from scipy.optimize import nnls

    counts, truth = [], []
    for name in TABLES:
        texts, tokens = recorded_tokens(folder, name, "train")
        counts += [counts_of(text.encode("utf-8", "surrogatepass")) for text in texts]
        truth.append(tokens)
    table, y = np.array(counts, dtype=float), np.concatenate(truth)
    columns = {name: table[:, j] for j, name in enumerate(COUNTS) if name in PER_COUNT and name not in MARKS}
    columns |= {"marks": table[:, [COUNTS.index(name) for name in MARKS]].sum(axis=1), "start": np.ones(len(y))}
    columns = {name: column for name, column in columns.items() if np.count_nonzero(column) > 100}
    weight = 1 / np.sqrt(y + 5)
    found, _ = nnls(np.stack(list(columns.values()), axis=1) * weight[:, None], y * weight)
    return {name: round(float(value), 3) for name, value in zip(columns, found, strict=True)}


def stall_rows(
    calls: dict[str, Callable[[str], object]], texts: Sequence[str], seconds: float = 2.0
) -> list[dict[str, Any]]:
    """Microseconds a thread wakes late from 0.5 ms of sleep while a call runs in another thread again and again."""
    rows = []
    for name, call in {"nothing": lambda text: time.sleep(0.01), **calls}.items():
        done, late = threading.Event(), []

        def work(call: Callable[[str], object] = call, done: threading.Event = done) -> None:
            for i in range(10**9):
                if done.is_set():
                    break
                call(texts[i % len(texts)])

        worker = threading.Thread(target=work)
        worker.start()
        end = time.perf_counter() + seconds
        while (start := time.perf_counter()) < end:
            time.sleep(0.0005)
            late.append((time.perf_counter() - start - 0.0005) * 1e6)
        done.set()
        worker.join()
        p50, p90, p99 = np.percentile(late, [50, 90, 99]).round()
        rows.append({"beside": name, "late p50": p50, "late p90": p90, "late p99": p99})
    return rows


def plain_mean(static: Any, text: str) -> Array:
    """The token block as its definition says: the tokeniser on the whole text, rows converted, mean, unit length."""
    ids = static.words.tokenizer.encode(text, add_special_tokens=False).ids
    mean = static.bits.view(np.float16)[ids].astype(np.float32).mean(axis=0)
    return mean / np.linalg.norm(mean)


def memory_row(name: str) -> dict[str, Any]:
    """Seconds to load and megabytes of a fresh process, before and after."""
    ran = subprocess.run([sys.executable, "-c", LOAD.replace("NAME", name)], capture_output=True, text=True, check=True)
    row: dict[str, Any] = {"features": name} | json.loads(ran.stdout)
    return row


def show(rows: list[dict[str, Any]]) -> None:
    names = list(rows[0])
    print("  ".join(f"{name:>18}" for name in names))
    for row in rows:
        print("  ".join(f"{row[name]!s:>18}" for name in names))
    print(flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    assert __doc__ is not None
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--data", type=Path, default=Path("../shared/data"))
    p.add_argument("--fit-tokens", action="store_true", help="print the coefficients of signals/tokens.py and stop")
    p.add_argument("--minilm", action="store_true", help="measure minilm-1 too (a minute)")
    args = p.parse_args(argv)
    if args.fit_tokens:
        print(json.dumps(fit_tokens(args.data)))
        return 0
    before = ticks()
    outcomes = args.data / "outcomes"
    latin = [q.text for name in ("llmrouter9", "routellm") for q in load_outcomes(outcomes / f"{name}.parquet").queries]
    mixed = [q.text for q in load_outcomes(outcomes / "routerdc7.parquet").queries]
    chinese = "".join(text for text in mixed if sum(c >= "\u2e80" for c in text) > len(text) / 2)
    np.random.default_rng(SEED).shuffle(latin)
    pools, static = {"Latin": " ".join(latin[3_000:]), "Chinese": chinese[200_000:]}, featuriser("static-1")
    static([*latin[:3_000], *(chinese[i : i + 1_000] for i in range(0, 200_000, 1_000))])
    calls: dict[str, Callable[[str], object]] = {
        "floor": lambda text: np.empty(len(text) % 2),
        "plain token mean": lambda text: plain_mean(static, text),
        "static-1": lambda text: static([text]),
        "surface": surface,
        "count_tokens": count_tokens,
    }
    rows = {"texts": text_rows(pools, calls, RUNS), "chats": chat_rows(latin)}
    if args.minilm:
        minilm = featuriser("minilm-1")
        rows["minilm"] = text_rows(pools, {"minilm-1": lambda text: minilm([text])}, 40)
    long = [chinese[i : i + 2_000] for i in range(200_000, 300_000, 2_000)]
    rows["a thread beside, Chinese, 2,000 characters"] = stall_rows({"static-1": calls["static-1"]}, long)
    rows["memory"] = [memory_row(name) for name in ("static-1", "minilm-1")[: 1 + args.minilm]]
    rows["tokens"] = token_rows(args.data)
    for name, table in rows.items():
        print(name)
        show(table)
    print(json.dumps({"bench": "signals", "machine": machine(before), "seed": SEED, "rows": rows}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
