"""Train a network with 31 x 31 kernels for a few steps, with and without ``convert``.

    python examples/replknet_step.py

The network follows RepLKNet (Ding et al., *Scaling Up Your Kernels to 31x31*, CVPR 2022).  It has
four stages of depthwise kernels of 31, 29, 27 and 13 pixels, each in parallel with a 5 x 5 kernel
and between 1 x 1 layers.  It uses only ``nn.Conv2d``; a copy is converted with
``torch_corr.convert``.  Both train on the same random images and labels.  Their steps alternate, so
that other load on the machine affects both.

On a CPU the converted network is at least 3 times as fast: 3.8 times on two cores of an AMD EPYC
with AVX-512 and PyTorch 2.13.  The remaining time is mostly that of the 1 x 1 layers, which run in
PyTorch in both networks.  The losses differ by rounding errors, less than 1e-4 at every step.

Exit code: 0; 1 if the converted network is not 3 times as fast (for example without the compiled
kernels) or the losses differ; 2 if the arguments are wrong.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_corr import convert

GOAL = 3.0
SAME_LOSS = 1e-4
CLASSES = 10
KERNELS = (31, 29, 27, 13)


def main() -> int:
    arguments = parse()
    torch.manual_seed(arguments.seed)
    theirs = replknet(arguments.width, KERNELS)
    ours = copy.deepcopy(theirs)
    report = convert(ours, arguments.algorithm)
    print(
        f"{len(report.replaced)} layers converted, algorithm={report.algorithm!r}; "
        f"{arguments.batch} images of {arguments.image} x {arguments.image}, "
        f"{sum(each.numel() for each in ours.parameters()) / 1e6:.1f} million weights, "
        f"{torch.get_num_threads()} threads"
    )
    images = torch.randn(arguments.batch, 3, arguments.image, arguments.image)
    labels = torch.randint(CLASSES, (arguments.batch,))
    runs = [Training("converted", ours), Training("nn.Conv2d", theirs)]
    for step in range(arguments.steps + 1):  # the first step is a warm-up and not counted
        for run in runs:
            run.step(images, labels)
        a, b = (run.losses[-1] for run in runs)
        print(
            f"step {step}: loss {a:.6f} and {b:.6f}, "
            f"{runs[0].seconds[-1] * 1e3:.0f} ms and {runs[1].seconds[-1] * 1e3:.0f} ms",
            flush=True,
        )
    times = [statistics.median(run.seconds[1:]) for run in runs]
    ratio = times[1] / times[0]
    difference = max(abs(a - b) for a, b in zip(runs[0].losses, runs[1].losses))
    print(
        f"Median step: {times[0] * 1e3:.0f} ms converted, {times[1] * 1e3:.0f} ms with "
        f"nn.Conv2d: {ratio:.1f} times as fast.  Largest difference of the losses: {difference:.1e}"
    )
    if difference > SAME_LOSS:
        print(f"The losses should differ by less than {SAME_LOSS:g}", file=sys.stderr)
        return 1
    if ratio < GOAL:
        print(f"The goal is {GOAL:g} times as fast", file=sys.stderr)
        return 1
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train a network with 31 x 31 kernels, with and without torch_corr.convert."
    )
    parser.add_argument("--width", type=int, default=64, help="channels of the first stage")
    parser.add_argument("--image", type=int, default=384, help="rows and columns of an image")
    parser.add_argument("--batch", type=int, default=2, help="images per step")
    parser.add_argument("--steps", type=int, default=4, help="timed steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--algorithm", default="auto", help="of the converted layers")
    arguments = parser.parse_args()
    for name, least in (("width", 1), ("image", 64), ("batch", 2), ("steps", 1)):
        if getattr(arguments, name) < least:
            parser.error(f"--{name} must be at least {least}, got {getattr(arguments, name)}")
    try:
        convert(nn.Identity(), arguments.algorithm)
    except ValueError as error:
        parser.error(str(error))
    return arguments


class Training:
    """A model with its optimizer, and the results of its steps.

    Attributes:
        losses: the mean cross-entropy before each step.
        seconds: the time of each step.
    """

    def __init__(self, name: str, model: nn.Module) -> None:
        self.name, self.model = name, model
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        self.losses: list[float] = []
        self.seconds: list[float] = []

    def step(self, images: Tensor, labels: Tensor) -> None:
        start = time.perf_counter()
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(images), labels)
        loss.backward()
        self.optimizer.step()
        self.losses.append(loss.item())
        self.seconds.append(time.perf_counter() - start)


def replknet(width: int, kernels: Sequence[int], classes: int = CLASSES) -> nn.Sequential:
    """A network from (N, 3, H, W) to scores (N, classes), with a stage for each kernel size."""
    layers: list[nn.Module] = [
        normalised(3, width, 3, stride=2),
        normalised(width, width, 3, groups=width),
        normalised(width, width, 1),
        normalised(width, width, 3, stride=2, groups=width),
    ]
    for stage, kernel in enumerate(kernels):
        if stage:
            layers += [
                normalised(width, 2 * width, 1),
                normalised(2 * width, 2 * width, 3, stride=2, groups=2 * width),
            ]
            width *= 2
        layers += [LargeKernel(width, kernel), FeedForward(width)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


class LargeKernel(nn.Module):
    """A large and a small depthwise kernel in parallel, between 1 x 1 layers."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.before = normalised(width, width, 1)
        self.large = convolution(width, width, kernel, groups=width)
        self.small = convolution(width, width, 5, groups=width)
        self.after = convolution(width, width, 1)

    def forward(self, input: Tensor) -> Tensor:
        hidden = self.before(self.norm(input))
        return input + self.after(F.gelu(self.large(hidden) + self.small(hidden)))


class FeedForward(nn.Module):
    """Two 1 x 1 layers with four times as many channels in between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.widen, self.narrow = nn.Conv2d(width, 4 * width, 1), nn.Conv2d(4 * width, width, 1)

    def forward(self, input: Tensor) -> Tensor:
        return input + self.narrow(F.gelu(self.widen(self.norm(input))))


def normalised(
    channels: int, features: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    return nn.Sequential(convolution(channels, features, kernel, stride, groups), nn.GELU())


def convolution(
    channels: int, features: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """A layer with "same" padding, and its normalisation."""
    return nn.Sequential(
        nn.Conv2d(channels, features, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(features),
    )


if __name__ == "__main__":
    sys.exit(main())
