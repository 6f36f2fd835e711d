"""What it costs that ``aten`` rewrites problems, beside PyTorch's convolution on them as they are.

    python -m benchmarks.rewritten

Each line is one map of one problem that ``aten`` rewrites because PyTorch may compute it wrongly,
and after it the median seconds of both and their ratio.  PyTorch's results may be wrong here; in
the layouts that are timed no process was seen to die.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from torch_corr import Aten, Problem
from torch_corr.algorithms import MapName
from torch_corr.planning.timing import settle_memory

CASES: tuple[tuple[str, str, MapName, torch.dtype], ...] = (
    ("one column of output", "n64c3-x16x16-o768-k16-s16", "forward", torch.float32),
    ("one column of output", "n64c256-x14x3-o256-k3-s1x2", "forward", torch.float32),
    ("one column of output", "n64c256-x14x3-o256-k3-s1x2", "grad_input", torch.float32),
    ("one column of output", "n64c256-x14x3-o256-k3-s1x2", "grad_weight", torch.float32),
    ("1x1 with padding", "n8c64-x56-o64-k1-p1", "forward", torch.float32),
    ("1x1 with padding", "n8c64-x56-o64-k1-p1", "forward", torch.bfloat16),
    ("padding beyond the reach", "n8c64-x28-o64-k3-p3", "forward", torch.float32),
    ("wide padding with stride", "n8c64-x64-o64-k3-s2-p16-d16", "grad_weight", torch.float32),
    ("wide padding with stride", "n8c3-x128-o64-k31-s2-p15", "grad_weight", torch.float32),
    ("dilated rows, depthwise", "n8c96-x56-o96-k3-p2-d2-g96", "grad_weight", torch.bfloat16),
    ("dilated rows, few channels", "n8c24-x56-o24-k3-p2-d2", "grad_weight", torch.bfloat16),
)


def plain(problem: Problem, map: MapName, first: Tensor, second: Tensor) -> Tensor:
    """The map by PyTorch, of a problem as it is."""
    p, padding = problem, (problem.padding[0][0], problem.padding[1][0])
    if map == "forward":
        return torch.conv2d(first, second, None, p.stride, padding, p.dilation, p.groups)
    blank = first.new_empty(p.input_shape if map == "grad_input" else p.weight_shape)
    output, input, weight = (
        (first, blank, second) if map == "grad_input" else (second, first, blank)
    )
    wanted = [map == "grad_input", map == "grad_weight", False]
    found: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
        output,
        input,
        weight,
        None,
        p.stride,
        padding,
        p.dilation,
        False,
        (0, 0),
        p.groups,
        wanted,
    )
    return found[0 if map == "grad_input" else 1]


def seconds(*works: Callable[[], Tensor]) -> list[float]:
    """Median seconds of each, in turns, after one untimed run."""
    samples: list[list[float]] = [[] for _ in works]
    end = time.perf_counter() + 0.5 * len(works)
    for turn in range(200):
        for work, times in zip(works, samples):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        if turn >= 5 and time.perf_counter() > end:
            break
    return [median(times[1:]) for times in samples]


def main() -> None:
    settle_memory()
    for what, text, map, dtype in CASES:
        problem = Problem.parse(text)
        for layout in (torch.contiguous_format, torch.channels_last):
            slots = {
                "input": torch.randn(problem.input_shape).to(dtype),
                "weight": torch.randn(problem.weight_shape).to(dtype),
                "output": torch.randn(problem.output_shape).to(dtype),
            }
            first, second = (
                slots[name].contiguous(memory_format=layout)
                for name in {
                    "forward": ("input", "weight"),
                    "grad_input": ("output", "weight"),
                    "grad_weight": ("input", "output"),
                }[map]
            )
            ours, theirs = seconds(
                lambda: getattr(Aten(), map)(problem, first, second),  # noqa: B023
                lambda: plain(problem, map, first, second),  # noqa: B023
            )
            last = "channels_last" if layout == torch.channels_last else "contiguous"
            print(
                f"{what:28}{text:36}{map:12}{str(dtype)[6:]:9}{last:14}"
                f"{1e3 * ours:9.3f} ms {1e3 * theirs:9.3f} ms {ours / theirs:6.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
