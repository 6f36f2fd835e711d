"""Microseconds of a call on tiny problems: what the library takes beyond PyTorch and its kernels.

python -m benchmarks.calls
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from torch_corr import convert, corr2d, intercept, plan


def main(rounds: int = 12, number: int = 1000) -> None:
    """Print the median time of each kind of call, taking turns."""
    seconds: dict[str, list[float]] = {}
    calls = {**dense_calls(), **depthwise_calls()}
    for _ in range(rounds):
        for name, (around, call) in calls.items():
            with around:
                start = time.perf_counter()
                for _ in range(number):
                    call()
                seconds.setdefault(name, []).append((time.perf_counter() - start) / number)
    for name, values in seconds.items():
        print(f"{name:<44} {statistics.median(values) * 1e6:6.2f} us")


Calls = dict[str, tuple[AbstractContextManager[object], Callable[[], object]]]


def dense_calls() -> Calls:
    """A layer that ``auto`` leaves to PyTorch, inside and outside of ``intercept()``."""
    x, w, y = torch.randn(1, 4, 5, 5), torch.randn(4, 4, 3, 3), torch.ones(1, 4, 3, 3)
    layer, converted = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
    convert(converted)
    block = intercept()
    return {
        "F.conv2d": (nullcontext(), lambda: conv2d(x, w)),
        "F.conv2d, intercepted": (block, lambda: conv2d(x, w)),
        "corr2d": (nullcontext(), lambda: corr2d(x, w)),
        "nn.Conv2d": (torch.no_grad(), lambda: layer(x)),
        "nn.Conv2d, intercepted": (block, lambda: layer(x)),
        "nn.Conv2d, converted": (torch.no_grad(), lambda: converted(x)),
        "nn.Conv2d, step": (nullcontext(), lambda: step(layer, x, y)),
        "nn.Conv2d, converted, step": (nullcontext(), lambda: step(converted, x, y)),
        "torch.relu": (nullcontext(), lambda: torch.relu(x)),
        "torch.relu, in the block": (block, lambda: torch.relu(x)),
    }


def depthwise_calls() -> Calls:
    """A layer that leaves PyTorch, and its maps alone: the difference is the cost of the call."""
    x, y = torch.randn(1, 32, 8, 8), torch.ones(1, 32, 8, 8)
    layer = nn.Conv2d(32, 32, 7, padding=3, groups=32)
    convert(layer)
    w, b = layer.weight.detach(), layer.bias.detach()  # type: ignore[union-attr]
    chosen = plan(x, w, padding=3, groups=32)
    problem = chosen.problem

    def maps() -> None:
        chosen.forward.forward_with_bias(problem, x, w, b)
        chosen.grad_input.grad_input(problem, y, w)
        chosen.grad_weight.grad_weight(problem, x, y)
        y.sum((0, 2, 3))

    return {
        "depthwise, converted": (torch.no_grad(), lambda: layer(x)),
        "depthwise, forward alone": (
            nullcontext(),
            lambda: chosen.forward.forward_with_bias(problem, x, w, b),
        ),
        "depthwise, converted, step": (nullcontext(), lambda: step(layer, x, y)),
        "depthwise, three maps alone": (nullcontext(), maps),
    }


def step(layer: nn.Conv2d, x: Tensor, y: Tensor) -> None:
    """Forward and all gradients."""
    image = x.detach().requires_grad_()
    torch.autograd.grad(layer(image), (image, *layer.parameters()), y)


if __name__ == "__main__":
    main()
