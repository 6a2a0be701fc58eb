"""Mixture-of-experts layers: milliseconds forward and forward + backward, against transformers and the dense limit.

    python -m benches.bench_moe                      # all cells, about 15 minutes on two cores
    python -m benches.bench_moe --quick              # a third of the cells
    python -m benches.bench_moe --page docs/results/expert.md

Every contestant of a cell gets the same tokens, experts and gates, and is first checked to give the same outputs and
gradients. They take turns within a run; a cell's time is the least of its repeats, and every figure is a ratio.

    limit        one dense SwiGLU layer of the same active FLOPs: what no sparse layer can beat by much
    polyroute    Experts, executor "auto"
    grouped_mm   transformers' experts with its grouped_mm backend
    eager        transformers' experts as they come
    naive        a loop over a one-hot mask, as in most papers' code
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benches.machine import machine, ticks
from benches.moe_page import LIMITS, page, targets, verdict
from polyroute.nn.activations import activation
from polyroute.nn.experts import Experts
from polyroute.nn.moe import MoE
from polyroute.nn.normalise import ProductLogSoftmax
from polyroute.nn.routing import Pairs, Routing, TokenContext, count_pairs
from polyroute.nn.scorers import ProductKeys
from polyroute.nn.selection import ProductTopK, TopK

SEED = 0
WIDTH = {8: 2.0, 16: 2.0, 32: 1.0, 64: 0.5}  # F as a multiple of D
TRANSFORMERS = ("grouped_mm", "eager")
NAMES = ("limit", "polyroute", *TRANSFORMERS, "naive")


class Cell(NamedTuple):
    tokens: int
    dim: int
    width: int
    experts: int
    k: int


class Inputs(NamedTuple):
    """What all contestants of a cell share."""

    x_TD: Tensor
    index_TK: Tensor
    gate_TK: Tensor
    experts: Experts
    routing: Routing
    grad_TD: Tensor


def cells(quick: bool) -> list[Cell]:
    """The cells of the table; the dearest last."""
    sizes = itertools.product((2048, 8192), (256, 512), (8, 16, 32, 64), (2, 4, 8))
    found = [Cell(t, d, int(d * WIDTH[e]), e, k) for t, d, e, k in sizes]
    if quick:
        found = [c for c in found if c.dim == 256 and c.k in (2, 8) and c.experts != 16]
    return sorted(found, key=lambda c: c.tokens * c.k * c.dim * c.width)


def inputs(cell: Cell) -> Inputs:
    torch.manual_seed(SEED)
    x_TD = torch.randn(cell.tokens, cell.dim, requires_grad=True)
    probs_TE = torch.randn(cell.tokens, cell.experts).softmax(-1)
    top = probs_TE.topk(cell.k)
    gate_TK = (top.values / top.values.sum(-1, keepdim=True)).requires_grad_()
    pairs = Pairs.of_index(top.indices)
    count_E = count_pairs(pairs.exp_N, cell.experts)
    routing = Routing(pairs.tok_N, pairs.exp_N, gate_TK.reshape(-1), cell.k, cell.tokens, cell.experts, probs_TE,
                      probs_TE, count_E, (1, cell.tokens))  # fmt: skip
    experts = Experts(cell.dim, cell.width, cell.experts)
    return Inputs(x_TD, top.indices, gate_TK, experts, routing, torch.randn(cell.tokens, cell.dim))


def transformers_experts(cell: Cell, experts: Experts, backend: str) -> torch.nn.Module:
    """Mixtral's experts with the same weights, run by one of transformers' backends."""
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts

    config = MixtralConfig(
        hidden_size=cell.dim, intermediate_size=cell.width, num_local_experts=cell.experts, num_experts_per_tok=cell.k
    )
    config._experts_implementation = backend
    made = MixtralExperts(config)
    with torch.no_grad():
        made.gate_up_proj.copy_(experts.w1_EGD)
        made.down_proj.copy_(experts.w2_EFO.transpose(1, 2))
    return made


class Contestant(NamedTuple):
    call: Callable[[], Tensor]
    leaves: list[Tensor]  # whose gradients a step makes


def contestants(cell: Cell, shared: Inputs) -> dict[str, Contestant]:
    x, gate, experts = shared.x_TD, shared.gate_TK, shared.experts
    w1, w2 = (p.detach().clone().requires_grad_() for p in (experts.w1_EGD, experts.w2_EFO))
    wide1 = torch.randn(2 * cell.width * cell.k, cell.dim).mul_(cell.dim**-0.5).requires_grad_()
    wide2 = torch.randn(cell.width * cell.k, cell.dim).mul_(cell.dim**-0.5).requires_grad_()
    act = activation("swiglu")

    def ours() -> Tensor:
        shared.routing.gate_N = gate.reshape(-1)
        return experts(x, shared.routing)

    found = {
        "limit": Contestant(lambda: act.forward(x @ wide1.T) @ wide2, [x, wide1, wide2]),
        "polyroute": Contestant(ours, [x, gate, experts.w1_EGD, experts.w2_EFO]),
        "naive": Contestant(lambda: naive(x, shared.index_TK, gate, w1, w2), [x, gate, w1, w2]),
    }
    for backend in TRANSFORMERS:
        theirs = transformers_experts(cell, experts, backend)
        leaves = [x, gate, theirs.gate_up_proj, theirs.down_proj]
        found[backend] = Contestant(lambda m=theirs: m(x, shared.index_TK, gate), leaves)
    return {name: found[name] for name in NAMES}


def naive(x_TD: Tensor, index_TK: Tensor, gate_TK: Tensor, w1_EGD: Tensor, w2_EFD: Tensor) -> Tensor:
    y_TD = torch.zeros_like(x_TD)
    mask_EKT = F.one_hot(index_TK, len(w1_EGD)).permute(2, 1, 0)
    for e in range(len(w1_EGD)):
        place, token = torch.where(mask_EKT[e])
        gate, up = (x_TD[token] @ w1_EGD[e].T).chunk(2, dim=-1)
        y_TD.index_add_(0, token, (F.silu(gate) * up) @ w2_EFD[e] * gate_TK[token, place, None])
    return y_TD


def check(found: dict[str, Contestant], shared: Inputs) -> None:
    """Raise unless all but the limit give the same outputs and gradients."""
    seen = {}
    for name, one in found.items():
        if name == "limit":
            continue
        y = one.call()
        grads = list(torch.autograd.grad(y, one.leaves, shared.grad_TD))
        if name in TRANSFORMERS:
            grads[3] = grads[3].transpose(1, 2)
        seen[name] = [y.detach(), *grads]
    for name, tensors in seen.items():
        for got, expected in zip(tensors, seen["naive"], strict=True):
            torch.testing.assert_close(
                got, expected, atol=1e-4 * float(expected.abs().max()), rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
            )


def race(found: dict[str, Contestant], grad_TD: Tensor, repeats: int, patience: float = 3.0) -> dict[str, list[float]]:
    """Least milliseconds (forward, both) of each contestant, turn by turn; who is far behind stops after two turns."""
    best = {name: [math.inf, math.inf] for name in found}
    for turn in range(repeats):
        lead = min(both for _, both in best.values())
        for name, one in found.items():
            if turn >= 2 and best[name][1] > patience * lead:
                continue
            for leaf in one.leaves:
                leaf.grad = None
            start = time.perf_counter()
            y = one.call()
            middle = time.perf_counter()
            y.backward(grad_TD)
            end = time.perf_counter()
            best[name] = [min(best[name][0], 1e3 * (middle - start)), min(best[name][1], 1e3 * (end - start))]
    return best


def router_share(cell: Cell, repeats: int) -> float:
    """The router's part of a whole layer's forward + backward time."""
    torch.manual_seed(SEED)
    layer = MoE(cell.dim, cell.width, cell.experts, select=TopK(cell.k))
    x = torch.randn(1, cell.tokens, cell.dim, requires_grad=True)
    grad = torch.randn(1, cell.tokens, cell.dim)

    def whole() -> None:
        layer(x).backward(grad)

    def router() -> None:
        routing = layer.router(TokenContext(x.reshape(cell.tokens, cell.dim), (1, cell.tokens), training=True))
        routing.gate_N.backward(torch.ones_like(routing.gate_N))

    times = {whole: math.inf, router: math.inf}
    for call in [whole, router] * repeats:
        layer.zero_grad()
        start = time.perf_counter()
        call()
        times[call] = min(times[call], time.perf_counter() - start)
    return times[router] / times[whole]


def product_key_slope(repeats: int, sides: Sequence[int] = (16, 32, 64, 128, 256), tokens: int = 512) -> dict[str, Any]:
    """Milliseconds of a product-key router by the number of experts, and the slope of log time over log E."""
    found = {}
    for side in sides:
        torch.manual_seed(SEED)
        experts = side * side
        scorer = ProductKeys(side, side).build(256, experts)
        norm, select = ProductLogSoftmax(), ProductTopK(8)
        x = torch.randn(tokens, 256)
        ctx = TokenContext(x, (1, tokens))
        best = math.inf
        with torch.no_grad():
            for _ in range(3 * repeats):
                start = time.perf_counter()
                select(norm(scorer(x), ctx), ctx)
                best = min(best, time.perf_counter() - start)
        found[experts] = round(1e3 * best, 3)
    logs = [(math.log(e), math.log(ms)) for e, ms in found.items()]
    x0, y0 = (sum(axis) / len(logs) for axis in zip(*logs, strict=True))
    slope = sum((x - x0) * (y - y0) for x, y in logs) / sum((x - x0) ** 2 for x, _ in logs)
    return {"ms": found, "slope": round(slope, 3)}


def peak_mb(cell: Cell, name: str) -> float:
    """Most memory in tensors during one forward + backward, above what stood before, weight gradients left out.

    Counted from the allocator's own events and not from the size of the process, which knows only new records. On one
    thread, since events of the layer's own threads are not seen; a second one adds the rows of one more expert.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        shared = inputs(cell)
        one = contestants(cell, shared)[name]
        for leaf in one.leaves:
            leaf.grad = torch.zeros_like(leaf)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            one.call().backward(shared.grad_TD)
    finally:
        torch.set_num_threads(threads)
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    sizes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    weights = sum(leaf.numel() * leaf.element_size() for leaf in one.leaves[-2:])  # gradients before they are added
    return (max(itertools.accumulate(sizes)) - weights) / 2**20


def measure(cell: Cell, repeats: int) -> dict[str, Any]:
    shared = inputs(cell)
    found = contestants(cell, shared)
    check(found, shared)
    times = race(found, shared.grad_TD, repeats)
    best = {part: min(times[name][part] for name in TRANSFORMERS) for part in (0, 1)}
    return {
        **cell._asdict(),
        "ms": {name: [round(t, 2) for t in pair] for name, pair in times.items()},
        "speedup": [round(best[part] / times["polyroute"][part], 3) for part in (0, 1)],
        "of_limit": [round(times["polyroute"][part] / times["limit"][part], 3) for part in (0, 1)],
        "theirs_of_limit": [round(best[part] / times["limit"][part], 3) for part in (0, 1)],
        "router_share": round(router_share(cell, max(2, repeats // 2)), 3),
    }


def geomean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def summary(rows: Sequence[dict[str, Any]], slope: dict[str, Any], memory: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Every target with what came."""
    large = [row for row in rows if row["tokens"] == 8192]
    worst = {e: max((r["of_limit"][1] for r in large if r["experts"] == e), default=None) for e in LIMITS}
    return {
        "geomean_speedup_fwd_bwd": round(geomean([row["speedup"][1] for row in rows]), 3),
        "geomean_speedup_fwd": round(geomean([row["speedup"][0] for row in rows]), 3),
        "least_speedup_fwd_bwd": min(row["speedup"][1] for row in rows),
        "worst_of_limit_fwd_bwd": worst,
        "geomean_of_limit_fwd_bwd": {
            e: round(geomean([r["of_limit"][1] for r in large if r["experts"] == e]), 3)
            for e in LIMITS
            if worst[e] is not None
        },
        "largest_router_share": max(row["router_share"] for row in rows),
        "largest_memory_ratio": max((m["ratio"] for m in memory), default=None),
        "product_key_slope": slope["slope"],
    }


def table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    times = " ".join(f"{name:>8}" for name in ("limit", "ours", "grouped", "eager", "naive"))
    yield f"{'T':>5} {'D':>4} {'F':>4} {'E':>3} {'K':>2}  {times}  of limit  speedup  router"
    for r in rows:
        ms = "".join(f" {r['ms'][name][1]:8.1f}" for name in NAMES)
        cell = f"{r['tokens']:5d} {r['dim']:4d} {r['width']:4d} {r['experts']:3d} {r['k']:2d} "
        yield f"{cell}{ms}  {r['of_limit'][1]:8.2f} {r['speedup'][1]:8.2f} {100 * r['router_share']:6.1f}%"


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--quick", action="store_true", help="a third of the cells")
    p.add_argument("--repeats", type=int, default=7)
    p.add_argument("--threads", type=int, default=0, help="of torch; 0: as many as it takes by itself")
    p.add_argument("-o", "--output", type=Path, help="write the JSON here too")
    p.add_argument("--page", type=Path, help="write the page of results here, from this run and docs/systems.toml")
    args = p.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    before, rows, todo = ticks(), [], cells(args.quick)
    slope, memory = product_key_slope(args.repeats), []
    for cell in [c for c in todo if c.tokens == 8192 and c.dim == 256]:
        ours, limit = peak_mb(cell, "polyroute"), peak_mb(cell, "limit")
        memory.append(
            {**cell._asdict(), "mb": round(ours, 1), "limit_mb": round(limit, 1), "ratio": round(ours / limit, 3)}
        )
    for i, cell in enumerate(todo):
        print(f"\r{i + 1}/{len(todo)} cells: {cell}   ", end="", file=sys.stderr, flush=True)
        rows.append(measure(cell, args.repeats))
    print(file=sys.stderr)
    facts = machine(before) | {"torch": torch.__version__, "threads": torch.get_num_threads(), "seed": SEED}
    result = summary(rows, slope, memory) | {"rows": rows, "memory": memory, "product_keys": slope, "machine": facts}
    for line in table(rows):
        print(line)
    print("forward + backward, ms")
    for target in targets(result):
        print(f"{target.name:<60}  {target.limit:>7}  {target.measured!s:>7}  {verdict(target)}")
    if args.output:
        args.output.write_text(json.dumps(result) + "\n", encoding="utf-8")
    if args.page:
        args.page.write_text(page(result), encoding="utf-8")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
