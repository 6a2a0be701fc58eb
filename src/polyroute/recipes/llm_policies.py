"""Systems 2, 30, 86 and 101 with a real language model as the policy, on questions that check themselves.

`polyroute serve --port 8080` (two local models), then
`python -m polyroute.recipes.llm_policies --url http://127.0.0.1:8080/v1`. Greedy decoding, so a run can be repeated.
Parts: flows/steps, flows/allocated, flows/traces, routers/prompted, recipes/router_r1, data/probes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import numpy as np

from polyroute.data.probes import Probe, probes
from polyroute.errors import ReplyError
from polyroute.flows.allocated import allocated
from polyroute.flows.cascade import run
from polyroute.flows.traces import parse_steps, read_mode
from polyroute.recipes.a2fm import MODES
from polyroute.recipes.router_r1 import AgenticRouter
from polyroute.routers.prompted import parse_agent_ids, write_prompt
from polyroute.types import Candidate, Decision, Outcome, Query

ROUTER = Candidate("router")
AGENTS = {
    "arithmetic": "calculates sums, differences and products of numbers",
    "word-problem": "solves short stories that ask how many or how much",
    "string": "counts, reverses and picks letters of words",
    "program": "says what a short Python program prints",
    "reading": "reads a short text and finds a fact in it",
    "everyday": "capitals of countries, opposites of words, days of the week",
}
SPLIT = (
    "Split this problem into 2 or 3 short steps, numbered 1. 2. 3., one a line. Do not solve it.\nProblem: {problem}"
)
MODE = """Begin your reply with one tag: <instant> if you can answer at once, <reasoning> if you have to think first,
<agentic> if you need a tool such as a search. Then answer. {problem}"""


class Server:
    """Any OpenAI-compatible server on this machine. Counts what it was asked and what it wrote."""

    def __init__(self, url: str, router: str, timeout_s: float = 120.0):
        self.url, self.router, self.timeout_s = url, router, timeout_s
        self.calls, self.tokens = 0, 0

    def __call__(self, model: str, prompt: str, limit: int = 96, stop: list[str] | None = None) -> tuple[str, int]:
        """Text and completion tokens of one greedy answer."""
        body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": prompt}], "temperature": 0,
                                "max_tokens": limit}  # fmt: skip
        if stop:
            body["stop"] = stop
        request = urllib.request.Request(
            f"{self.url}/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=self.timeout_s) as reply:
            answer = json.load(reply)
        used = int(answer["usage"]["completion_tokens"])
        self.calls, self.tokens = self.calls + 1, self.tokens + used
        return str(answer["choices"][0]["message"]["content"] or ""), used

    def backend(self, decision: Decision) -> Outcome:
        """Carry out one decision. A router's reply is stopped at the end of its act, whose closing tag is put back."""
        (name,) = decision.candidate_ids
        routes = name == ROUTER.id
        stop = ["</search>", "</answer>"] if routes else None
        text, used = self(self.router if routes else name, decision.prompt, 128 if routes else 96, stop)
        for tag in ("search", "answer"):
            if routes and text.count(f"<{tag}>") == text.count(f"</{tag}>") + 1:
                text += f"</{tag}>"
        return Outcome(decision, {"output_tokens": float(used)}, text)


def ask_around(server: Server, items: list[Probe], pool: list[Candidate]) -> dict[str, float]:
    """System 2: think, search a model by name, answer. A broken form is counted; the last of the pool is fallback."""
    agentic = AgenticRouter(ROUTER, pool, max_turns=2, fallback=pool[-1],
                            descriptors={c.id: c.id.rsplit("-", 1)[-1] + " parameters" for c in pool})  # fmt: skip
    right, fault, turns, unusable, alone = 0.0, 0, 0.0, 0.0, 0.0
    for probe in items:
        trace = agentic.run(Query(probe.id, probe.prompt), server.backend)
        right += probe.score(trace.answer)
        fault += trace.fault is not None
        turns += trace.outcome.metrics["turns"]
        unusable += 1 - trace.outcome.metrics["format"]
        alone += probe.score(server(server.router, probe.prompt)[0])
    return {"right": right, "right, router asked alone": alone, "form broken": float(fault), "searches": turns,
            "fallback": unusable}  # fmt: skip


def split_and_solve(server: Server, items: list[Probe], pool: list[Candidate]) -> dict[str, float]:
    """System 30: the router decomposes; all but the last step go to the small model. No steps: asked as a whole."""
    small, strong = pool[0], pool[-1]
    right, garbled, steps, direct = 0.0, 0, 0, 0.0
    for probe in items:
        query = Query(probe.id, probe.prompt)
        try:
            found = parse_steps(server(server.router, SPLIT.format(problem=probe.prompt))[0])
        except ReplyError:
            garbled, found = garbled + 1, [probe.prompt]
        steps += len(found)
        done = run(allocated(query, found, [small] * (len(found) - 1) + [strong]), server.backend)
        right += probe.score(done.text)
        direct += probe.score(server(strong.id, probe.prompt)[0])
    return {"right": right, "right, strong model asked whole": direct, "garbled": float(garbled), "steps": float(steps)}


def name_agents(server: Server, items: list[Probe], pool: list[Candidate]) -> dict[str, float]:
    """System 86: which agents does the router name; a family's own name is right."""
    agents = [Candidate(name, "agent") for name in AGENTS]
    hit, garbled, size = 0, 0, 0
    for probe in items:
        prompt = write_prompt(Query(probe.id, probe.prompt), agents, AGENTS)
        try:
            said = parse_agent_ids(server(server.router, prompt)[0], list(AGENTS))
        except ReplyError:
            garbled += 1
            continue
        size += len(said.ids)
        hit += probe.id.rsplit("-", 2)[0] in said.ids
    return {"hit": float(hit), "garbled": float(garbled), "ids named": float(size)}


def say_mode(server: Server, items: list[Probe], pool: list[Candidate]) -> dict[str, float]:
    """System 101: the mode said in the first tag, and what follows."""
    counts = dict.fromkeys((*MODES, "no tag"), 0.0)
    right = 0.0
    for probe in items:
        text, _ = server(server.router, MODE.format(problem=probe.prompt))
        counts[read_mode(text, MODES) or "no tag"] += 1
        right += probe.score(text)
    return {"right": right, **counts}


RUNS: dict[str, Callable[[Server, list[Probe], list[Candidate]], dict[str, float]]] = {
    "2 Router-R1": ask_around, "30 R2-Reasoner": split_and_solve, "86 TCAR": name_agents, "101 A2FM": say_mode,
}  # fmt: skip


def questions(count: int, seed: int = 30) -> list[Probe]:
    """Easy questions (levels 1 and 2), the families of AGENTS in turn."""
    return [p for p in probes(2, np.random.default_rng(seed), tuple(AGENTS)) if p.level <= 2][:count]


def main() -> int:
    p = argparse.ArgumentParser(description="routing policies spoken by a real model",
                                epilog="example: python -m polyroute.recipes.llm_policies --count 6")  # fmt: skip
    p.add_argument("--url", default="http://127.0.0.1:8080/v1", help="OpenAI-compatible server (default: %(default)s)")
    p.add_argument("--router", default="qwen2.5-coder-0.5b", help="the policy (default: %(default)s)")
    p.add_argument("--pool", nargs="+", default=["qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"], help="weakest first")
    p.add_argument("--count", type=int, default=12, help="questions for each system (default: %(default)s)")
    args = p.parse_args()
    items, pool = questions(args.count), [Candidate(name) for name in args.pool]
    for name, play in RUNS.items():
        server, start = Server(args.url, args.router), time.monotonic()
        found = play(server, items, pool)
        cost = {"questions": len(items), "calls": server.calls, "tokens written": server.tokens,
                "seconds": round(time.monotonic() - start, 1)}  # fmt: skip
        print(f"{name:<15}", json.dumps(found | cost), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
