"""Does the gateway's memory stay flat over many requests? Slices of explicit, `auto` and streamed ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benches.gateway import configs, machine
from benches.gateway.measure import MARK, Bench, Lane, write_bodies
from benches.gateway.native import run_load
from benches.gateway.peers import Peer

SHARES = (
    ("explicit", configs.EXPLICIT, "json", 0.5),
    ("auto", configs.AUTO, "json", 0.4),
    ("streams", configs.AUTO, "burst", 0.1),
)
NUM_SLICES = 20


def change_percent(base: float, samples: Sequence[float]) -> float:
    """The largest move away from the base, either way, in percent of the base."""
    return max((abs(sample - base) for sample in samples), default=0.0) / base * 100


def soak(bench: Bench, peer: Peer, num_requests: int, say: Callable[[str], None]) -> dict[str, object]:
    """Memory after each slice against memory after a first tenth of a slice mix, which is not counted."""

    def send(count: int) -> tuple[int, int]:
        sent = errors = 0
        for name, model, mode, share in SHARES:
            bodies = write_bodies(bench.folder, Lane(name=f"soak {name}", peer=peer, model=model), mode)
            done = run_load(bench.load_core, [
                "--url", f"http://127.0.0.1:{peer.port}/v1/chat/completions", "--concurrency", "16",
                "--requests", str(max(1, round(count * share))), "--bodies", str(bodies), "--mark", MARK,
            ])  # fmt: skip
            sent, errors = sent + int(str(done["issued"])), errors + int(str(done["errors"]))
        return sent, errors

    warm, errors = send(num_requests // 10)
    machine.wait_until_quiet(peer.pids())
    base = machine.rss_mb(peer.pids())
    samples, total = [[0, round(base, 2)]], 0
    for i in range(NUM_SLICES):
        sent, failed = send(num_requests // NUM_SLICES)
        total, errors = total + sent, errors + failed
        samples.append([total, round(machine.rss_mb(peer.pids()), 2)])
        say(f"soak {i + 1}/{NUM_SLICES}: {total:,} requests, {samples[-1][1]} MB resident, {errors} errors")
    memory = [float(sample[1]) for sample in samples]
    return {
        "requests": total, "warm_requests": warm, "errors": errors, "base_mb": round(base, 2), "least_mb": min(memory),
        "most_mb": max(memory), "change_percent": round(change_percent(base, memory), 2), "samples": samples,
    }  # fmt: skip
