"""The machine of a run: its description and its measured peaks.

The peaks are the rate of a large matrix product in each dtype and the rate of a large copy.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch
from torch.utils.benchmark import Timer

import torch_corr
from torch_corr.algorithms import dtype_name
from torch_corr.planning.machine import cpuinfo

from .device_time import time_on_device

_ISA = re.compile(r"^(sse4_2|avx\w*|fma|f16c|amx\w*|neon|asimd\w*|sve\w*|bf16|i8mm)$")
_COPY_BYTES = 2**28
_SMALL_COPY_BYTES = 2**24
_MATRIX = {"cpu": (256, 2048), "cuda": (2048, 8192)}


def describe(device: torch.device) -> dict[str, Any]:
    """Names, counts and versions; None for those that cannot be read."""
    cpu = cpuinfo()
    found: dict[str, Any] = {
        "cpu": cpu.get("model name") or platform.processor() or platform.machine(),
        "cpu_detail": ", ".join(
            f"{key} {cpu[key]}" for key in ("vendor_id", "cpu family", "model") if key in cpu
        ),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "cores_usable": usable_cores(),
        "isa": [
            flag
            for flag in (cpu.get("flags") or cpu.get("Features", "")).split()
            if _ISA.match(flag)
        ],
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "memory_gib": _memory_gib(),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "load_average": _load_average(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torch_corr": torch_corr.__version__,
        "commit": _commit(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": properties.name,
            "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
            "gpu_capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        }
    return found


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def slug(machine: dict[str, Any], threads: int) -> str:
    """The name of the folder for results of this machine."""
    name = machine.get("gpu") or f"{machine['cpu']} {machine['torch_cpu_capability']} {threads}t"
    return re.sub(r"[^a-z0-9]+", "-", str(name).lower()).strip("-")


def measure_peaks(
    device: torch.device, dtypes: list[torch.dtype], threads: int
) -> dict[str, float]:
    """FLOP/s of a square matrix product in each dtype, and bytes/s of a copy (both ways).

    Each is the best of several runs.  A complex product counts as 8 operations.
    """
    peaks = {}
    for dtype in dtypes:
        side, most = _MATRIX.get(device.type, _MATRIX["cpu"])
        best = _product_seconds(side, dtype, device, threads)
        # A dtype without a fast product would take minutes at the full size.
        while side < most and best < 0.05:
            side *= 2
            best = _product_seconds(side, dtype, device, threads)
        peaks[f"matmul {dtype_name(dtype)}"] = (8 if dtype.is_complex else 2) * side**3 / best
    a = torch.ones(_COPY_BYTES // 4, device=device)
    best = _best("b.copy_(a)", {"a": a, "b": torch.empty_like(a)}, threads)
    peaks["copy"] = 2 * _COPY_BYTES / best
    if device.type == "cuda":
        small = torch.ones(_SMALL_COPY_BYTES // 4, device=device)
        into = torch.empty_like(small)
        found = [time_on_device(lambda: into.copy_(small), 20, 1e-5) for _ in range(10)]
        seconds = sorted(each.device for each in found)[len(found) // 2]
        peaks["copy of 33.5 MB"] = 2 * _SMALL_COPY_BYTES / seconds
    return peaks


def _product_seconds(side: int, dtype: torch.dtype, device: torch.device, threads: int) -> float:
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return _best("torch.mm(a, b)", {"a": a, "b": b, "torch": torch}, threads)


def _best(statement: str, names: dict[str, Any], threads: int) -> float:
    timer = Timer(statement, globals=names, num_threads=threads)
    return min(timer.blocked_autorange(min_run_time=0.2).times)


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _load_average() -> float | None:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _commit() -> str | None:
    """The checkout's commit, with ``-dirty`` if files differ from it; None outside a checkout."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None  # a copy, perhaps inside the checkout of another project
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
