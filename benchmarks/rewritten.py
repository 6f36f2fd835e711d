"""The cost of the rewriting in ``aten``, relative to PyTorch's convolution of the original problem.

    python -m benchmarks.rewritten

Each line is one map of a problem that ``aten`` rewrites because PyTorch may compute it wrongly: the
median times of both, and their ratio.  PyTorch's results may be wrong here.  In the layouts that
are timed no process was seen to crash.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from torch_corr import Aten
from torch_corr.algorithms import MapName
from torch_corr.planning.timing import settle_memory

from .cases import FORMATS, Case
from .contenders import Ours, PyTorch
from .memory import random_operands

PROBLEMS: tuple[tuple[str, str, MapName, str], ...] = (
    ("one column of output", "n64c3-x16x16-o768-k16-s16", "forward", "float32"),
    ("one column of output", "n64c256-x14x3-o256-k3-s1x2", "forward", "float32"),
    ("one column of output", "n64c256-x14x3-o256-k3-s1x2", "grad_input", "float32"),
    ("one column of output", "n64c256-x14x3-o256-k3-s1x2", "grad_weight", "float32"),
    ("1x1 with padding", "n8c64-x56-o64-k1-p1", "forward", "float32"),
    ("1x1 with padding", "n8c64-x56-o64-k1-p1", "forward", "bfloat16"),
    ("padding beyond the kernel", "n8c64-x28-o64-k3-p3", "forward", "float32"),
    ("wide padding with stride", "n8c64-x64-o64-k3-s2-p16-d16", "grad_weight", "float32"),
    ("wide padding with stride", "n8c3-x128-o64-k31-s2-p15", "grad_weight", "float32"),
    ("dilated rows, depthwise", "n8c96-x56-o96-k3-p2-d2-g96", "grad_weight", "bfloat16"),
    ("dilated rows, few channels", "n8c24-x56-o24-k3-p2-d2", "grad_weight", "bfloat16"),
)


def median_seconds(calls: list[Callable[[], Any]]) -> list[float]:
    """Median seconds of each call, in turns, after one untimed call."""
    samples: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + 0.5 * len(calls)
    for turn in range(200):
        for call, times in zip(calls, samples):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        if turn >= 5 and time.perf_counter() > end:
            break
    return [median(times[1:]) for times in samples]


def main() -> None:
    settle_memory()
    contenders = Ours("aten", "ours", requested=Aten()), PyTorch("torch", "torch")
    for reason, spelling, map, name in PROBLEMS:
        case = Case(reason, spelling, "", "", name)
        for layout in FORMATS:
            operands = random_operands(
                case.problem, map, case.torch_dtype, torch.Generator(), layout
            )
            calls = [each.prepare(case.problem, map, operands).run for each in contenders]
            ours, theirs = median_seconds(calls)
            print(
                f"{reason:28}{spelling:36}{map:12}{name:9}{layout:14}"
                f"{1e3 * ours:9.3f} ms {1e3 * theirs:9.3f} ms {ours / theirs:6.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
