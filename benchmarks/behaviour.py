"""Record the behaviour of the library, and compare two recordings, for changes that must keep it.

python -m benchmarks.behaviour record FILE        the behaviour of this version on this machine
python -m benchmarks.behaviour compare OLD NEW    every difference; exit code 1 if there is one

A recording holds, for every benchmark case and 2,000 random problems, the algorithm that ``auto``
chooses for each map with the shipped rates, and the workspace of each algorithm that does not
refuse.  For the random problems it also holds hashes of the bits that each algorithm computes
(output and both gradients), and for bad arguments the types of the exceptions.

Both recordings must come from the same machine and number of threads, because the choice and the
bits depend on the processor.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torch_corr import ALGORITHMS, MAPS, Corr2d, Problem, Request, corr2d, plan

from .cases import CASES, FORMATS

COUNT = 2000
DTYPES = ("float32", "float32", "float64", "bfloat16", "float16", "complex64", "int32")


def recorded() -> dict[str, Any]:
    """The recording, as JSON."""
    torch.set_num_threads(2)
    cases = {case.name: _choices(case.problem, case.dtype, case.layout) for case in CASES}
    draw = random.Random(0)
    problems: dict[str, Any] = {}
    while len(problems) < COUNT:
        problem, dtype = _random_problem(draw), draw.choice(DTYPES)
        layout = draw.choice(("contiguous", "contiguous", "channels_last"))
        key = f"{problem} {dtype} {layout}"
        choices = _choices(problem, dtype, layout)
        problems[key] = {**choices, "bits": _bits(problem, dtype, layout, choices)}
    errors = {name: _exception(call) for name, call in _bad_calls()}
    return {"cases": cases, "problems": problems, "errors": errors}


def _random_problem(draw: random.Random) -> Problem:
    while True:
        groups = draw.choice([1, 1, 2, 4])
        try:
            return Problem(
                batch=draw.choice([1, 2, 3]),
                in_channels=groups * draw.choice([1, 1, 2, 5]),
                size=(draw.randint(1, 40), draw.randint(1, 40)),
                out_channels=groups * draw.choice([1, 1, 2, 5]),
                kernel=(draw.choice([1, 2, 3, 5, 7, 12]), draw.choice([1, 2, 3, 5, 7, 12])),
                stride=(draw.choice([1, 1, 2, 3]), draw.choice([1, 1, 2, 3])),
                padding=(
                    (draw.choice([0, 0, 1, 2, 6]), draw.choice([0, 0, 1, 2, 6])),
                    (draw.choice([0, 0, 1, 2, 6]), draw.choice([0, 0, 1, 2, 6])),
                ),
                dilation=(draw.choice([1, 1, 2, 3]), draw.choice([1, 1, 2, 3])),
                groups=groups,
            )
        except RuntimeError:
            continue


def _choices(problem: Problem, dtype: str, layout: str) -> dict[str, Any]:
    """For each map the chosen algorithm, and the workspaces of those that do not refuse."""
    kind, device = getattr(torch, dtype), torch.device("cpu")
    # Uninitialised operands take no time and no memory.
    x = torch.empty(problem.input_shape, dtype=kind, memory_format=FORMATS[layout])  # type: ignore[index]
    w = torch.empty(problem.weight_shape, dtype=kind)
    try:
        chosen = plan(x, w, problem.stride, problem.padding, problem.dilation, problem.groups)
    except Exception as error:
        return {"raises": type(error).__name__}
    maps: dict[str, Any] = {}
    for map in MAPS:
        request = Request(problem, map, device, kind)
        able = [each for each in ALGORITHMS if not each.refusals(request)]
        workspaces = {each.name: each.workspace(request) for each in able}
        maps[map] = {"chosen": getattr(chosen, map).name, "workspaces": workspaces}
    return maps


def _bits(problem: Problem, dtype: str, layout: str, choices: dict[str, Any]) -> dict[str, str]:
    """For each algorithm a hash of its output and gradients, or the exception that it raises."""
    if "raises" in choices:
        return {}
    torch.manual_seed(0)
    kind, shapes = getattr(torch, dtype), (problem.input_shape, problem.weight_shape)
    if kind.is_floating_point or kind.is_complex:
        x, w = (torch.randn(each, dtype=kind) for each in shapes)
    else:
        x, w = (torch.randint(-9, 9, each, dtype=kind) for each in shapes)
    x = x.contiguous(memory_format=FORMATS[layout])  # type: ignore[index]
    return {
        name: _hash_of(problem, x, w, name)
        for name in ("auto", "aten", "direct", "fft", "unfold", "naive")
        if name != "naive" or problem.multiplications < 10**5
    }


def _hash_of(problem: Problem, x: Tensor, w: Tensor, algorithm: str) -> str:
    trains = x.is_floating_point() or x.is_complex()
    x, w = (each.detach().requires_grad_(trains) for each in (x, w))
    geometry = problem.stride, problem.padding, problem.dilation, problem.groups
    try:
        y = corr2d(x, w, None, *geometry, algorithm=algorithm)
        results = [y.detach()]
        if trains:
            torch.manual_seed(1)
            results += torch.autograd.grad(y, (x, w), torch.randn_like(y))
    except Exception as error:
        return type(error).__name__
    digest = hashlib.sha256()
    for each in results:
        digest.update(f"{tuple(each.shape)} {each.stride()}".encode())
        flat = each.resolve_conj().reshape(-1).clone(memory_format=torch.contiguous_format)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def _bad_calls() -> Iterator[tuple[str, Callable[[], object]]]:
    x, w, b = torch.ones(1, 2, 5, 5), torch.ones(2, 2, 3, 3), torch.ones(2)
    yield "input is a list", lambda: corr2d([1.0], w)  # type: ignore[arg-type]
    yield "weight is None", lambda: corr2d(x, None)  # type: ignore[arg-type]
    yield "bias is a number", lambda: corr2d(x, w, 1.0)  # type: ignore[arg-type]
    yield "rank 5", lambda: corr2d(x[None], w)
    yield "rank 1 weight", lambda: corr2d(x, b)
    yield "channels disagree", lambda: corr2d(x[:, :1], w)
    yield "bias of another length", lambda: corr2d(x, w, torch.ones(3))
    yield "dtypes disagree", lambda: corr2d(x, w.double())
    yield "devices disagree", lambda: corr2d(x, w.to("meta"))
    yield "kernel larger than image", lambda: corr2d(x[..., :2], w)
    yield "sparse input", lambda: corr2d(x.to_sparse(), w)
    yield "bool input", lambda: corr2d(x.bool(), w.bool())
    for name, value in (
        ("stride", 0), ("stride", -1), ("stride", 1.5), ("stride", (1, 2, 3)), ("stride", "1"),
        ("dilation", 0), ("dilation", 2**70), ("padding", -1), ("padding", "sam"),
        ("padding", (1, 2, 3)), ("padding", ((1, 2), 3)), ("padding", 0.5), ("groups", 0),
        ("groups", 3), ("groups", 1.0), ("padding_mode", "zero"), ("padding_mode", None),
        ("algorithm", "ftt"), ("algorithm", 3), ("algorithm", "triton"),
    ):  # fmt: skip
        yield f"{name}={value!r}", lambda name=name, value=value: corr2d(x, w, **{name: value})
    yield "reflect too far", lambda: corr2d(x, w, padding=5, padding_mode="reflect")
    yield "fft of bfloat16", lambda: corr2d(x.bfloat16(), w.bfloat16(), algorithm="fft")
    yield "no kernel size", lambda: Corr2d(2, 2)  # type: ignore[call-arg]
    yield "channels not divisible", lambda: Corr2d(3, 2, 3, groups=2)
    yield "layer's padding", lambda: Corr2d(2, 2, 3, padding="sam")
    yield "layer's algorithm", lambda: Corr2d(2, 2, 3, algorithm="ftt")
    yield "problem of no kernel", lambda: Problem.of((1, 1, 4, 4), (1, 1, 0, 3))
    yield "spelling", lambda: Problem.parse("n1c1-x4-o1")


def _exception(call: Callable[[], object]) -> str:
    try:
        call()
    except Exception as error:
        return type(error).__name__
    return "none"


def differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """Each leaf that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from differences(old.get(key), new.get(key), f"{path} / {key}" if path else key)
    elif old != new:
        yield f"{path}: {old} -> {new}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.behaviour")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("record").add_argument("file", type=Path)
    compare = commands.add_parser("compare")
    compare.add_argument("old", type=Path)
    compare.add_argument("new", type=Path)
    options = parser.parse_args()
    if options.command == "record":
        options.file.write_text(json.dumps(recorded(), indent=1, sort_keys=True))
        return 0
    old, new = (json.loads(path.read_text()) for path in (options.old, options.new))
    found = list(differences(old, new))
    print("\n".join([*found, f"{len(found)} differences"]))
    return min(1, len(found))


if __name__ == "__main__":
    sys.exit(main())
