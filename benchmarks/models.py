"""Whole networks with nn.Conv2d and converted, each in both layouts.

    python -m benchmarks.models                            # training steps, float32
    python -m benchmarks.models --inference --runtimes     # beside ONNX Runtime and OpenVINO
    python -m benchmarks.models --networks U-Net EDSR --halves --tune
    python -m benchmarks.models --out benchmarks/results   # adds to networks.json there

A step is forward, backward and SGD, or with ``--inference`` a forward.  The contenders take one
step each, in rounds with a rotating order, so that other load on the machine affects all of them.
The program prints medians, and the time of the better layout with nn.Conv2d over that of the better
layout converted.  It compares only the first outputs; ``tests/test_models.py`` checks results.

Each network runs in a process of its own, because PyTorch's channels_last kernels may overwrite
memory and end the process.  The network then runs again without that contender.
"""

from __future__ import annotations

import argparse
import copy
import gc
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torch_corr import convert, tune

from . import machine, network_report
from .network_report import RUNTIMES, Mode, names_of
from .networks import NETWORKS, build

_LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
THEIRS, OURS = (tuple(names_of(kind)) for kind in (network_report.THEIRS, network_report.OURS))


@dataclass
class Contender:
    """One way to run a network, and the seconds and losses of its steps.

    Attributes:
        name: one of ``THEIRS``, ``OURS`` and ``RUNTIMES``.
        run: from images to the network's output.
        model: the network, if it can be trained.
    """

    name: str
    run: Callable[[Tensor], Any]
    model: nn.Module | None = None
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def step(self, images: Tensor, mode: Mode) -> None:
        images = images.contiguous(memory_format=self.layout)
        start = time.perf_counter()
        with torch.set_grad_enabled(not mode.inference):
            with torch.autocast("cpu", torch.bfloat16, enabled=mode.halves):
                output = self.run(images)
                loss = getattr(output, "logits", output).square().mean()
            if not mode.inference:
                self.learn(loss)
        self.losses.append(loss.item())
        self.seconds.append(time.perf_counter() - start)

    def learn(self, loss: Tensor) -> None:
        assert self.model is not None
        loss.backward()
        with torch.no_grad():
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter -= 1e-3 * parameter.grad
        self.model.zero_grad()

    @property
    def layout(self) -> torch.memory_format:
        return _LAYOUTS.get(self.name[-4:], torch.contiguous_format)

    @property
    def median(self) -> float:
        """Seconds of a step, without the first."""
        return statistics.median(self.seconds[1:])


def main(words: Sequence[str] | None = None) -> int:
    options = parse(words)
    mode = Mode(options.inference, options.halves, options.compile, options.tune)
    names = [*THEIRS, *OURS, *(RUNTIMES if options.runtimes and mode.inference else ())]
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads; {mode}; median ms")
    for network in options.networks:
        row = isolated(network, mode, names, options.rounds)
        print(f"{network:<24} {network_report.sentence(row)}", flush=True)
        if options.out:
            threads = torch.get_num_threads()
            described = {**machine.describe(torch.device("cpu")), "threads": threads}
            folder = options.out / machine.slug(described, threads)
            network_report.add(folder, described, row)
    return 0


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.models", description="Times of whole networks."
    )
    add = parser.add_argument
    add("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="default: all")
    add("--rounds", type=int, default=7, help="timed steps")
    add("--halves", action="store_true", help="under autocast to bfloat16")
    add("--inference", action="store_true", help="forward alone, without gradients")
    add("--compile", action="store_true", help="compile with inductor; minutes for each network")
    add("--tune", action="store_true", help="tune the converted networks first")
    add("--runtimes", action="store_true", help="with --inference: other runtimes, if installed")
    add("--out", type=Path, help="folder of results to add to")
    return parser.parse_args(words)


def isolated(network: str, mode: Mode, names: Sequence[str], rounds: int) -> dict[str, Any]:
    """The result of :func:`measure` in a process of its own; contenders that end it are noted."""
    crashed = {}
    context = multiprocessing.get_context("spawn")
    left = list(names)
    while True:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_report, args=(sender, network, mode, left, rounds))
        process.start()
        sender.close()
        current, row = "", None
        try:
            while row is None:
                message = receiver.recv()
                current, row = (message, None) if isinstance(message, str) else ("", message)
        except EOFError:
            row = None
        process.join()
        if row is not None and process.exitcode == 0:
            return {**row, "failed": {**row["failed"], **crashed}}
        # The heap may be damaged long before the process ends, so PyTorch's layout that is known
        # for it is left out first.
        guilty = THEIRS[1] if THEIRS[1] in left else current
        if guilty not in left:
            raise RuntimeError(f"{network} ends its process with exit code {process.exitcode}")
        crashed[guilty] = f"the process died with exit code {process.exitcode}"
        left.remove(guilty)


def _report(
    connection: Connection, network: str, mode: Mode, names: Sequence[str], rounds: int
) -> None:
    row = measure(network, mode, names, rounds, connection.send)
    gc.collect()  # a damaged heap is noticed when memory is freed
    connection.send(row)


def measure(
    network: str,
    mode: Mode,
    names: Sequence[str],
    rounds: int,
    note: Callable[[str], object] = lambda _: None,
) -> dict[str, Any]:
    """Medians of the steps of a network.

    Args:
        network: one of :data:`NETWORKS`.
        mode: what a step is.
        names: the contenders.
        rounds: timed steps of each.
        note: told the name of each contender before its step.

    Returns:
        ``network``, the fields of ``mode``, ``ms`` by contender, ``failed``: why others have none,
        and ``difference``: the largest relative difference of a first loss from PyTorch's.
    """
    images = torch.randn(NETWORKS[network].images, generator=torch.Generator().manual_seed(1))
    model = build(network).train(not mode.inference)
    contenders, failed = [], {}
    for name in names:
        note(name)
        try:
            contender = make_contender(name, model, images, mode)
            contender.step(images, mode)
            contenders.append(contender)
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
    for turn in range(rounds):
        for place in range(len(contenders)):
            contender = contenders[(place + turn) % len(contenders)]
            note(contender.name)
            contender.step(images, mode)
    return {
        "network": network,
        **asdict(mode),
        "ms": {each.name: round(each.median * 1e3, 2) for each in contenders},
        "failed": failed,
        "difference": first_difference(contenders),
    }


def make_contender(name: str, model: nn.Module, images: Tensor, mode: Mode) -> Contender:
    """A contender with a copy of the network."""
    if name == "ONNX Runtime":
        return Contender(name, _onnx_runtime(model, images, mode))
    if name == "OpenVINO":
        return Contender(name, _openvino(model, images, mode))
    own = copy.deepcopy(model).to(memory_format=_LAYOUTS[name[-4:]])  # type: ignore[call-overload]
    contender = Contender(name, own, own)
    if name in OURS:
        convert(own)
        if mode.tuned:
            with (
                torch.set_grad_enabled(not mode.inference),
                torch.autocast("cpu", torch.bfloat16, enabled=mode.halves),
            ):
                tune(own, images.contiguous(memory_format=contender.layout), progress=False)
    if mode.compiled:
        own.compile(backend="inductor")
    return contender


def _onnx_runtime(model: nn.Module, images: Tensor, mode: Mode) -> Callable[[Tensor], Tensor]:
    import io

    import onnxruntime

    if mode.halves:
        raise ValueError("ONNX Runtime has no bfloat16 convolution on CPUs")
    file = io.BytesIO()
    program = torch.onnx.export(model, (images,), dynamo=True, verbose=False)
    assert program is not None
    program.save(file)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file.getvalue(), options)
    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0])


def _openvino(model: nn.Module, images: Tensor, mode: Mode) -> Callable[[Tensor], Tensor]:
    import openvino

    converted = openvino.convert_model(model, example_input=images)
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "bf16" if mode.halves else "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.Core().compile_model(converted, "CPU", settings)
    return lambda images: torch.from_numpy(compiled(images.numpy())[0])


def first_difference(contenders: Iterable[Contender]) -> float:
    """The largest relative difference of a first loss from that of the first contender.

    Later losses differ more: under batch normalisation a rounding error grows a hundredfold
    per step.
    """
    theirs, *others = (each.losses[0] for each in contenders)
    return max((abs(loss - theirs) / abs(theirs) for loss in others), default=0.0)


if __name__ == "__main__":
    sys.exit(main())
