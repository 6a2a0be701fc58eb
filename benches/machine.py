"""The facts without which a number from this machine means nothing: for the last JSON line of every bench."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any, NamedTuple


class Ticks(NamedTuple):
    """Processor time since boot, all cores together, in clock ticks."""

    stolen: int  # given to other machines on the same host while we wanted it
    total: int


def ticks(stat: Path = Path("/proc/stat")) -> Ticks | None:
    """The counters now; None where the system has none."""
    try:
        line = stat.read_text(encoding="ascii").splitlines()[0]
    except OSError:
        return None
    counts = [int(count) for count in line.split()[1:9]]  # user nice system idle iowait irq softirq steal
    return Ticks(counts[7], sum(counts))


def steal(before: Ticks | None) -> float | None:
    """Per cent of processor time stolen since `before`; above a few, the row is not worth keeping."""
    now = ticks()
    if before is None or now is None or now.total <= before.total:
        return None
    return round(100 * (now.stolen - before.stolen) / (now.total - before.total), 2)


def cpu_name(info: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's own name, as far as the system tells."""
    try:
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def machine(before: Ticks | None = None) -> dict[str, Any]:
    """python, numpy, polyroute, cpu, cores, load and, given `ticks()` from the start of the run, steal in per cent."""
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "compiler": platform.python_compiler(),
        "numpy": importlib.metadata.version("numpy"),
        "polyroute": importlib.metadata.version("polyroute"),
        "system": sys.platform,
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,  # runnable tasks, last minute
        "steal": steal(before),
    }
