"""Whole networks with nn.Conv2d and converted, each in both layouts; and the overhead of calls.

    python -m benchmarks.models
    python -m benchmarks.models --networks convnext mobilenet --image 224 --halves --inference
    python -m benchmarks.models --compile

The networks are those of ``transformers`` (extra ``models``), by default in their published sizes,
and the one with 31x31 kernels of ``examples/replknet_step.py``, all with random weights.  A step is
forward, backward and SGD, or with ``--inference`` a forward.  The contenders take one step each, in
rounds with a rotating order, so that other load on the machine affects all of them.  The program
prints medians, and PyTorch's time in its better layout over ours in ours.  It compares only the
first outputs; ``tests/test_models.py`` checks results.

With ``--compile`` inductor compiles every contender, which takes minutes the first time.
With ``--calls`` it measures microseconds per call on a tiny problem instead.
"""

from __future__ import annotations

import argparse
import copy
import runpy
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from torch_corr import convert, corr2d, intercept

NETWORKS = {
    "resnet": "ResNet",
    "convnext": "ConvNext",
    "mobilenet": "MobileNetV2",
    "segformer": "Segformer",
    "replknet": "",
}
"""Their names in ``transformers``; the last one is that of the example."""

EXAMPLE = Path(__file__).parent.parent / "examples" / "replknet_step.py"


@dataclass
class Contender:
    """One way to run a network, and the seconds and losses of its steps."""

    name: str
    model: nn.Module
    layout: torch.memory_format
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def step(self, images: Tensor, halves: bool, inference: bool) -> None:
        images = images.contiguous(memory_format=self.layout)
        start = time.perf_counter()
        with torch.set_grad_enabled(not inference):
            with torch.autocast(images.device.type, torch.bfloat16, enabled=halves):
                output = self.model(images)
                loss = getattr(output, "logits", output).square().mean()
            if not inference:
                self.learn(loss)
        self.losses.append(loss.item())
        self.seconds.append(time.perf_counter() - start)

    def learn(self, loss: Tensor) -> None:
        loss.backward()
        with torch.no_grad():
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter -= 1e-3 * parameter.grad
        self.model.zero_grad()

    @property
    def median(self) -> float:
        """Seconds of a step, without the first."""
        return statistics.median(self.seconds[1:])


def main() -> None:
    options = parse()
    if options.calls:
        time_calls()
        return
    images = torch.randn(options.batch, 3, options.image, options.image)
    dtype = "bfloat16 autocast" if options.halves else "float32"
    dtype += ", compiled by inductor" if options.compile else ""
    print(
        f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads, {dtype}, "
        f"{options.batch} images of {options.image} x {options.image}; ms of a "
        f"{'forward' if options.inference else 'training step'}, median of {options.rounds}"
    )
    for name in options.networks:
        model = network(name)
        contenders = make_contenders(model.eval() if options.inference else model)
        for each in contenders if options.compile else ():
            each.model.compile(backend="inductor")
        take_steps(contenders, images, options.halves, options.inference, options.rounds)
        theirs, ours = (min(each.median for each in contenders[start::2]) for start in (0, 1))
        print(
            f"{name:<10}"
            + "".join(f"  {each.name} {each.median * 1e3:.1f}" for each in contenders)
            + f"  {theirs / ours:.2f} times as fast; "
            f"first losses within {first_difference(contenders):.0e}",
            flush=True,
        )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.models", description="Times of whole networks."
    )
    add = parser.add_argument
    add("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="default: all")
    add("--image", type=int, default=112, help="rows and columns")
    add("--batch", type=int, default=4, help="images in a step")
    add("--rounds", type=int, default=5, help="timed steps")
    add("--halves", action="store_true", help="under autocast to bfloat16")
    add("--inference", action="store_true", help="forward alone, without gradients")
    add("--compile", action="store_true", help="compile all contenders with inductor")
    add("--calls", action="store_true", help="time calls on a tiny problem")
    return parser.parse_args()


def network(name: str) -> nn.Module:
    """A network in its default size, from a fixed seed."""
    torch.manual_seed(0)
    if name == "replknet":
        example = runpy.run_path(str(EXAMPLE))
        large: nn.Module = example["replknet"](64, example["KERNELS"])
        return large.train()
    import transformers

    task = "SemanticSegmentation" if name == "segformer" else "ImageClassification"
    config = getattr(transformers, f"{NETWORKS[name]}Config")()
    model: nn.Module = getattr(transformers, f"{NETWORKS[name]}For{task}")(config)
    for module in model.modules():
        for rate in ("p", "drop_prob"):
            if hasattr(module, rate):
                setattr(module, rate, 0.0)  # so that losses can be compared
    return model.train()


def make_contenders(model: nn.Module) -> list[Contender]:
    """PyTorch and ours, in NCHW and then in channels_last."""
    contenders = []
    for name, layout in (("NCHW", torch.contiguous_format), ("NHWC", torch.channels_last)):
        theirs: nn.Module = copy.deepcopy(model).to(memory_format=layout)
        ours = copy.deepcopy(theirs)
        convert(ours)
        contenders.append(Contender(f"nn.Conv2d {name}", theirs, layout))
        contenders.append(Contender(f"converted {name}", ours, layout))
    return contenders


def take_steps(
    contenders: list[Contender], images: Tensor, halves: bool, inference: bool, rounds: int
) -> None:
    """``rounds`` steps of each contender in turns, after one untimed step."""
    for turn in range(rounds + 1):
        for place in range(len(contenders)):
            contenders[(place + turn) % len(contenders)].step(images, halves, inference)


def first_difference(contenders: list[Contender]) -> float:
    """The largest relative difference of a first loss from that of nn.Conv2d.

    Later losses differ more: under batch normalisation a rounding error grows a hundredfold
    per step.
    """
    theirs = contenders[0].losses[0]
    return max(abs(each.losses[0] - theirs) / abs(theirs) for each in contenders)


def time_calls(rounds: int = 12, number: int = 1000) -> None:
    """Print microseconds per call on a 1x4x5x5 input, inside and outside of ``intercept()``."""
    x, w = torch.randn(1, 4, 5, 5), torch.randn(4, 4, 3, 3)
    layer, converted = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
    convert(converted)
    block = intercept()
    calls: dict[str, tuple[AbstractContextManager[object], Callable[[], object]]] = {
        "F.conv2d": (nullcontext(), lambda: nn.functional.conv2d(x, w)),
        "F.conv2d, intercepted": (block, lambda: nn.functional.conv2d(x, w)),
        "corr2d": (nullcontext(), lambda: corr2d(x, w)),
        "nn.Conv2d": (nullcontext(), lambda: layer(x)),
        "nn.Conv2d, intercepted": (block, lambda: layer(x)),
        "nn.Conv2d, converted": (nullcontext(), lambda: converted(x)),
        "torch.relu": (nullcontext(), lambda: torch.relu(x)),
        "torch.relu, in the block": (block, lambda: torch.relu(x)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    with torch.no_grad():
        for _ in range(rounds):
            for name, (around, call) in calls.items():
                with around:
                    start = time.perf_counter()
                    for _ in range(number):
                        call()
                    seconds[name].append((time.perf_counter() - start) / number)
    for name, values in seconds.items():
        print(f"{name:<26} {statistics.median(values) * 1e6:5.2f} us")


if __name__ == "__main__":
    main()
