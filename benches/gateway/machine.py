"""What the kernel says about processes and cores: CPU time, memory, stolen time, pinning."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

PROXY_CORE, LOAD_CORE = 0, 1  # the proxy alone on the first; mock upstream and load generator share the second
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class CoreTimes(NamedTuple):
    """Seconds of one core since boot. `nice` is work that yields to everything else, the keep-awake loop included."""

    busy: float
    nice: float
    idle: float
    interrupts: float
    steal: float

    @property
    def total(self) -> float:
        return sum(self)


def parse_core_times(text: str) -> dict[int, CoreTimes]:
    """Core number -> times, from the text of /proc/stat."""
    cores = {}
    for line in text.splitlines():
        name, *fields = line.split() or [""]
        if name.startswith("cpu") and name != "cpu":
            user, nice, system, idle, wait, irq, softirq, steal = (int(f) / TICKS_PER_S for f in fields[:8])
            cores[int(name[3:])] = CoreTimes(user + system, nice, idle + wait, irq + softirq, steal)
    return cores


def core_times() -> dict[int, CoreTimes]:
    return parse_core_times(Path("/proc/stat").read_text())


def steal_share(before: dict[int, CoreTimes], after: dict[int, CoreTimes], cores: Sequence[int]) -> float:
    """Largest share of one core's time that the hypervisor gave to someone else, 0..1."""
    shares = [
        (after[c].steal - before[c].steal) / max(after[c].total - before[c].total, 1e-9) for c in cores if c in after
    ]
    return max(shares, default=0.0)


def parse_cpu_seconds(stat: str) -> float:
    """User and system seconds of one process, from the text of /proc/PID/stat. Its name may hold spaces."""
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def process_tree(pid: int) -> list[int]:
    """A process and its living descendants."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += [int(child) for child in task.read_text().split()]
    return found


def cpu_seconds(pids: Sequence[int]) -> float:
    total = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):
            total += parse_cpu_seconds(Path(f"/proc/{pid}/stat").read_text())
    return total


def rss_mb(pids: Sequence[int]) -> float:
    """Resident memory in MB, summed over processes (pages they share are counted in each)."""
    kilobytes = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    kilobytes += int(line.split()[1])
    return kilobytes / 1024


def cores() -> tuple[int, int]:
    """The proxy's core and the load's. One core only: both on it, and the header says so."""
    usable = sorted(os.sched_getaffinity(0))
    return (usable[0], usable[1]) if len(usable) > 1 else (usable[0], usable[0])


def wait_until_quiet(pids: Sequence[int], *, limit_s: float = 20.0) -> None:
    """Until these processes use under a tenth of a core: work left over from the last row must not be counted."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        before = cpu_seconds(pids)
        time.sleep(0.1)
        if cpu_seconds(pids) - before <= 0.011:
            return


@contextlib.contextmanager
def kept_awake(*, on: bool) -> Iterator[None]:
    """Busy loops of the lowest priority on both cores: a halted virtual core wakes late and spoils short waits."""
    loops = []
    code = "import ctypes,signal\nctypes.CDLL(None).prctl(1, signal.SIGKILL)\nwhile True: pass"  # 1: PR_SET_PDEATHSIG
    for core in set(cores()) if on else ():
        loop = subprocess.Popen([sys.executable, "-c", code])
        os.setpriority(os.PRIO_PROCESS, loop.pid, 19)
        os.sched_setscheduler(loop.pid, os.SCHED_IDLE, os.sched_param(0))
        os.sched_setaffinity(loop.pid, {core})
        loops.append(loop)
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def signal_all(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def describe() -> dict[str, object]:
    """The machine, for the last line of a bench."""
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "processor": model[0].partition(":")[2].strip() if model else platform.machine(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "interpreter": f"{platform.python_implementation()} {platform.python_compiler()}",
        "date": time.strftime("%Y-%m-%d"),
    }


def versions(names: Sequence[str]) -> dict[str, str]:
    """Installed versions of Python packages; absent ones are left out."""
    found = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
