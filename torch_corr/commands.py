"""The commands ``explain``, ``measure`` and ``calibrate`` of ``python -m torch_corr``."""

from __future__ import annotations

import os
import sys

import torch

from .planning.auto import Auto
from .planning.explain import duration
from .planning.machine import SHIPPED, Machine, calibrate, calibration_path
from .planning.plan import AlgorithmLike, make_plan
from .planning.wisdom import WISDOM
from .problem import Problem
from .request import dtype_name


def explain(spelling: str, device: str, dtype: str, algorithm: AlgorithmLike) -> int:
    """Print the plan of a problem, with the predicted time of each algorithm."""
    try:
        chosen = getattr(torch, dtype, None)
        if not isinstance(chosen, torch.dtype):
            raise ValueError(f"unknown dtype {dtype!r}; use a name of torch's, as float32")
        problem, where = Problem.parse(spelling), torch.device(device)
        print(make_plan(problem, where, chosen, algorithm))
    except (RuntimeError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def measure(spelling: str, device: str, dtype: str, keep: str | None) -> int:
    """Time every algorithm that can run a problem, print the plan, and save the wisdom."""
    code = explain(spelling, device, dtype, Auto(measure=True))
    if code == 0 and keep is not None:
        print(
            f"{WISDOM.save(keep)} measurements saved; torch_corr.wisdom.load({keep!r}) reads them"
        )
    return code


def calibrate_and_save() -> int:
    """Measure the machine's rates, print them with their ratios to the shipped ones, save them."""
    if busy := _load():
        print(
            f"the machine is busy, with a load of {busy:.1f} on {os.cpu_count()} cores: the "
            "measured rates may be far too low; measure again when it is idle",
            file=sys.stderr,
        )
    machine, path = calibrate(), calibration_path()
    print(
        f"{machine.name}, {machine.threads} threads; in parentheses, the ratio to the rates of "
        f"{SHIPPED[0].name}, {SHIPPED[0].threads} threads"
    )
    dtypes = [torch.float32, torch.float64, *([torch.bfloat16] if machine.bfloat16 else [])]
    for dtype in dtypes:
        print(f"  {dtype_name(dtype)}: {_rates(machine, dtype)}")
    try:
        machine.save(path)
    except OSError as error:
        print(f"cannot write {path}: {error}", file=sys.stderr)
        return 1
    print(f"saved as {path}; processes that start from now on use it")
    return 0


def _load() -> float:
    """The load average of the last minute if above a quarter of the cores, else 0."""
    try:
        load = os.getloadavg()[0]
    except (AttributeError, OSError):  # not available on every system
        return 0.0
    return load if load > (os.cpu_count() or 1) / 4 else 0.0


def _rates(machine: Machine, dtype: torch.dtype) -> str:
    ours, theirs = machine.rates(dtype), SHIPPED[0].rates(dtype)
    words = {
        "matmul_flops": "matrix product",
        "conv_flops": "oneDNN",
        "vector_flops": "direct",
        "fft_flops": "FFT",
        "bytes": "copy",
        "cached_bytes": "copy in the caches",
    }
    parts = []
    for name, word in words.items():
        rate, other = getattr(ours, name), getattr(theirs, name)
        unit = "GB/s" if name.endswith("bytes") else "GFLOP/s"
        parts.append(f"{word} {rate / 1e9:.0f} {unit} ({rate / other:.2f})")
    return ", ".join(
        [*parts, f"a call {duration(1 / ours.calls)} ({ours.calls / theirs.calls:.2f})"]
    )
