"""From raw rows to what is printed: medians over runs, two tables, ratios, targets. Nothing here measures."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

Row = Mapping[str, Any]
Summary = dict[tuple[str, str, int], dict[str, Any]]  # (lane, mode, concurrency) -> medians

STEAL_LIMIT, OTHERS_LIMIT = 0.10, 0.15  # of a core's time; rows above are flagged and left out where clean ones exist
PLACE = ("lane", "mode", "concurrency", "run")


def percentile(values: Iterable[float], q: float) -> float:
    """The value of rank round(q (n - 1)), as the load generator takes it. q: 0..1."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("percentile: expected at least one value, got none")
    return ordered[int(q * (len(ordered) - 1) + 0.5)]


def flag(row: Row) -> str:
    """Why a row should not be trusted: s stolen time, o other programs on the proxy's core, e errors, c answers
    that the upstream never saw."""
    marks = "s" if row["steal"] > STEAL_LIMIT else ""
    marks += "o" if row["core_others"] > OTHERS_LIMIT else ""
    marks += "e" if row["errors"] else ""
    return marks + ("c" if row["upstream_requests"] < row["issued"] - row["errors"] else "")


def summarise(rows: Sequence[Row]) -> Summary:
    """Medians over runs. Flagged runs count only where no clean run exists, and the flags are kept then."""
    groups: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["lane"], row["mode"], row["concurrency"]), []).append(row)
    summary: Summary = {}
    for place, group in groups.items():
        clean = [row for row in group if not flag(row)]
        used = clean or group
        medians: dict[str, Any] = {}
        for name in used[0]:
            found = [row[name] for row in used if isinstance(row[name], int | float) and name not in PLACE]
            if found:
                medians[name] = statistics.median(found)
        flags = "" if clean else "".join(sorted({mark for row in group for mark in flag(row)}))
        summary[place] = medians | {"runs": len(used), "of_runs": len(group), "flags": flags}
    return summary


def brief(row: Row) -> str:
    """One row while it runs."""
    unit, rate = ("requests", row["requests_per_s"]) if row["mode"] == "json" else ("events", row["events_per_s"])
    return f"{row['lane']:<14} {row['mode']:<5} c={row['concurrency']:<3} {rate:>10,.0f} {unit}/s  {flag(row)}"


def trust(rows: Sequence[Row]) -> str:
    """One line: how undisturbed the run was."""
    flagged = sum(bool(flag(row)) for row in rows)
    steal = [row["steal"] for row in rows] or [0.0]
    advice = ". Run again on a quieter machine before quoting anything." if flagged > len(rows) / 4 else ""
    stolen = f"stolen time {statistics.mean(steal):.1%} on average, {max(steal):.1%} at most"
    return f"{len(rows)} rows, {flagged} flagged; {stolen}{advice}"


def number(value: float | None, scale: float = 1.0) -> str:
    """Three significant digits, thousands separated; a dash for what was not measured."""
    if value is None:
        return "-"
    value *= scale
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def grid(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A plain table: first column to the left, the others to the right."""
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]

    def show(line: Sequence[str]) -> str:
        cells = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        return "  ".join([line[0].ljust(widths[0]), *cells[1:]]).rstrip()

    return "\n".join([show(head), "  ".join("-" * width for width in widths), *map(show, lines)])


def lanes(summary: Summary) -> list[str]:
    return list(dict.fromkeys(lane for lane, _, _ in summary))


def value(summary: Summary, lane: str, mode: str, concurrency: int, name: str) -> float | None:
    found = summary.get((lane, mode, concurrency), {}).get(name)
    return None if found is None else float(found)


def added(summary: Summary, lane: str, mode: str, concurrency: int, name: str, of: str | None = None) -> float | None:
    """A lane's time less the direct time of the same load, microseconds. `of`: which direct time, `name` by default."""
    here = value(summary, lane, mode, concurrency, name)
    direct = value(summary, "direct", mode, concurrency, of or name)
    return None if here is None or direct is None else here - direct


def best(summary: Summary, lane: str, mode: str, name: str) -> float | None:
    """The largest value over concurrencies."""
    found = [v[name] for (a, b, _), v in summary.items() if (a, b) == (lane, mode) and v.get(name) is not None]
    return max(found, default=None)


def ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or not below else above / below


def levels(summary: Summary, mode: str) -> list[int]:
    return sorted({c for _, m, c in summary if m == mode})


def flags_of(summary: Summary, lane: str, modes: Sequence[str]) -> str:
    """All flags of a lane's rows in some modes."""
    found = (v["flags"] for (name, mode, _), v in summary.items() if name == lane and mode in modes)
    return "".join(sorted(set("".join(found))))


def json_table(summary: Summary, missing: Mapping[str, str]) -> str:
    """Requests/s, latency, added latency, CPU and memory of every lane; the absent ones with their reasons."""
    at = levels(summary, "json")
    middle = at[len(at) // 2] if at else 0

    def cell(lane: str, c: int, name: str, scale: float = 1.0) -> str:
        return number(value(summary, lane, "json", c, name), scale)

    head = ["JSON, in front of the mock", *(f"req/s c={c}" for c in at), *(f"p50 / p99 ms c={c}" for c in at)]
    head += ["added p50 ms c=1", f"CPU us/request c={middle}", "RSS MB", "flags"]
    lines = []
    for lane in lanes(summary):
        line = [lane, *(cell(lane, c, "requests_per_s") for c in at)]
        line += [f"{cell(lane, c, 'p50_us', 1e-3)} / {cell(lane, c, 'p99_us', 1e-3)}" for c in at]
        line += ["-" if lane == "direct" else number(added(summary, lane, "json", 1, "p50_us"), 1e-3)]
        memory = max(v["rss_mb"] for (name, _, _), v in summary.items() if name == lane)
        lines.append(
            [*line, cell(lane, middle, "cpu_us_per_request"), number(memory), flags_of(summary, lane, ["json"])]
        )
    return grid(head, lines) + "".join(f"\n{name}: not available: {reason}" for name, reason in missing.items())


def stream_table(summary: Summary) -> str:
    """Time to the first chunk, gaps and CPU per event, at one event per 5 ms and back to back."""
    at, burst = levels(summary, "paced"), levels(summary, "burst")
    last = at[-1] if at else 0

    def cell(lane: str, mode: str, c: int, name: str, scale: float = 1.0) -> str:
        return number(value(summary, lane, mode, c, name), scale)

    head = ["SSE, 100 events, one per 5 ms", *(f"first p50 / p99 ms c={c}" for c in at)]
    head += [f"events/s c={last}", f"gap p99 ms c={last}", f"CPU us/event c={last}", "core used"]
    head += [f"burst {what} c={c}" for c in burst for what in ("events/s", "CPU us/event")] + ["flags"]
    lines = []
    for lane in lanes(summary):
        line = [lane]
        for c in at:
            low, high = (cell(lane, "paced", c, f"first_{rank}_us", 1e-3) for rank in ("p50", "p99"))
            line.append(f"{low} / {high}")
        line += [cell(lane, "paced", last, "events_per_s"), cell(lane, "paced", last, "gap_p99_us", 1e-3)]
        line += [cell(lane, "paced", last, name) for name in ("cpu_us_per_event", "core_used")]
        line += [cell(lane, "burst", c, name) for c in burst for name in ("events_per_s", "cpu_us_per_event")]
        lines.append([*line, flags_of(summary, lane, ["paced", "burst"])])
    return grid(head, lines)


def ratio_table(summary: Summary, ours: str = "polyroute") -> str:
    """The gateway against each peer of the same run; above 1 means the gateway is ahead."""
    at, paced = levels(summary, "json"), levels(summary, "paced")
    middle, last = at[len(at) // 2] if at else 0, paced[-1] if paced else 0
    head = [f"{ours} against", *(f"req/s c={c}" for c in at)]
    head += ["added p50 c=1", "CPU/request", f"first chunk added c={last}", "CPU/event", "RSS"]
    lines = []
    for peer in lanes(summary):
        if peer == "direct" or peer.startswith(ours):
            continue

        def pair(get: Callable[..., float | None], *place: object, peer: str = peer) -> float | None:
            return ratio(get(summary, peer, *place), get(summary, ours, *place))

        found = [ratio(1.0, pair(value, "json", c, "requests_per_s")) for c in at]
        found += [pair(added, "json", 1, "p50_us"), pair(value, "json", middle, "cpu_us_per_request")]
        found += [pair(added, "paced", last, "first_p50_us"), pair(value, "paced", last, "cpu_us_per_event")]
        found += [pair(best, "json", "rss_mb")]
        lines.append([peer, *("-" if r is None else f"{number(r)}x" for r in found)])
    return grid(head, lines)


class Target(NamedTuple):
    """A promise and what this run measured. met None: this run did not measure it."""

    name: str
    limit: str
    measured: float | None
    met: bool | None


def target(name: str, limit: float, unit: str, measured: float | None, *, least: bool = False) -> Target:
    met = None if measured is None else measured >= limit if least else measured <= limit
    shown = None if measured is None else float(f"{measured:.4g}")
    return Target(name, f"{'>=' if least else '<='} {limit:,g} {unit}".rstrip(), shown, met)


def scaled(measured: float | None, scale: float = 1e-3) -> float | None:
    return None if measured is None else measured * scale


def targets(summary: Summary, soak: Mapping[str, Any] | None, decide_p50_us: float | None) -> list[Target]:
    """Every promise of the bench beside what was measured."""
    ours, auto, peer = "polyroute", "polyroute auto", "litellm"
    firsts = [added(summary, ours, "paced", c, "first_p50_us") for c in levels(summary, "paced")]
    known = [f for f in firsts if f is not None]
    our_added, peer_added = (added(summary, lane, "json", 1, "p50_us") for lane in (ours, peer))
    auto_p99 = added(summary, auto, "json", 1, "p99_us", of="p50_us")
    our_rate, peer_rate = (best(summary, lane, "json", "requests_per_s") for lane in (ours, peer))
    memory = [v["rss_mb"] for (lane, _, _), v in summary.items() if lane in (ours, auto)]
    return [
        target("explicit model, added p50 at c=1", 0.35, "ms", scaled(our_added)),
        target("explicit model, requests/s on one core", 4000, "", our_rate, least=True),
        target("auto, added p50 at c=1", 1.0, "ms", scaled(added(summary, auto, "json", 1, "p50_us"))),
        target("auto, p99 at c=1 less the direct p50", 4.0, "ms", scaled(auto_p99)),
        target("auto, requests/s on one core", 1500, "", best(summary, auto, "json", "requests_per_s"), least=True),
        target("explicit model, throughput over LiteLLM's", 50, "x", ratio(our_rate, peer_rate), least=True),
        target("LiteLLM's added p50 over ours at c=1", 20, "x", ratio(peer_added, our_added), least=True),
        target("first streamed chunk, added p50, worst concurrency", 1.0, "ms", scaled(max(known, default=None))),
        target("resident memory, largest row", 150, "MB", max(memory, default=None)),
        target("resident memory over the soak, change either way", 5, "%", soak["change_percent"] if soak else None),
        target("decide() on 12 candidates from a ready embedding, p50", 150, "us", decide_p50_us),
    ]  # fmt: skip


def target_table(found: Sequence[Target]) -> str:
    words = {True: "met", False: "MISSED", None: "not measured"}
    lines = [[t.name, t.limit, number(t.measured), words[t.met]] for t in found]
    return grid(["target", "limit", "measured", ""], lines)
