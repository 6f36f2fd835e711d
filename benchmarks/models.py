"""Training steps of whole networks: with nn.Conv2d, converted, and intercepted; and call overhead.

    python -m benchmarks.models
    python -m benchmarks.models --networks convnext mobilenet --image 224 --halves
    python -m benchmarks.models --compile

The networks are those of ``transformers`` (extra ``models``), by default in their published sizes,
and the one with 31x31 kernels of ``examples/replknet_step.py``, all with random weights.  A step is
forward, backward and SGD.  The contenders take one step each, in rounds with a rotating order, so
that other load on the machine affects all of them.  The program prints medians, and the speed-up
over ``nn.Conv2d``.  It compares only the first losses; ``tests/test_models.py`` checks results.

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
    around: Callable[[], AbstractContextManager[object]]
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def step(self, images: Tensor, halves: bool) -> None:
        start = time.perf_counter()
        with self.around(), torch.autocast(images.device.type, torch.bfloat16, enabled=halves):
            output = self.model(images)
            loss = getattr(output, "logits", output).square().mean()
        loss.backward()
        with torch.no_grad():
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter -= 1e-3 * parameter.grad
        self.model.zero_grad()
        self.losses.append(loss.item())
        self.seconds.append(time.perf_counter() - start)


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
        f"{options.batch} images of {options.image} x {options.image}; ms a step, median of "
        f"{options.rounds}"
    )
    for name in options.networks:
        backend = "inductor" if options.compile else None
        contenders = time_steps(network(name), images, options.halves, options.rounds, backend)
        theirs, *ours = (statistics.median(each.seconds[1:]) for each in contenders)
        print(
            f"{name:<10} nn.Conv2d {theirs * 1e3:7.1f}"
            + "".join(
                f"   {each.name} {seconds * 1e3:7.1f} ({theirs / seconds:.2f} times as fast)"
                for each, seconds in zip(contenders[1:], ours)
            )
            + f"   first losses within {first_difference(contenders):.0e}",
            flush=True,
        )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.models", description="Training steps of whole networks."
    )
    add = parser.add_argument
    add("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="default: all")
    add("--image", type=int, default=112, help="rows and columns")
    add("--batch", type=int, default=4, help="images in a step")
    add("--rounds", type=int, default=5, help="timed steps")
    add("--halves", action="store_true", help="under autocast to bfloat16")
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


def time_steps(
    model: nn.Module, images: Tensor, halves: bool, rounds: int, backend: str | None = None
) -> list[Contender]:
    """``rounds`` steps of each contender in turns, after one untimed step.

    Args:
        backend: of ``torch.compile``; None: not compiled.
    """
    converted = copy.deepcopy(model)
    convert(converted)
    contenders = [
        Contender("nn.Conv2d", copy.deepcopy(model), nullcontext),
        Contender("converted", converted, nullcontext),
        Contender("intercepted", model, intercept),
    ]
    for each in contenders if backend else ():
        each.model.compile(backend=backend)
    for turn in range(rounds + 1):
        for place in range(len(contenders)):
            contenders[(place + turn) % len(contenders)].step(images, halves)
    return contenders


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
