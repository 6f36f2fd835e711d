"""Run everything that needs a GPU, in one command.

python -m benchmarks.gpu                        all steps
python -m benchmarks.gpu --dry-run              print the steps
python -m benchmarks.gpu --steps suite,memcheck
python -m benchmarks.gpu configurations         compare every configuration of the kernels with
                                                the oracle

Each step is a process with a time limit, so a hang or crash affects only that step.  Logs and a
summary are written to ``OUT/<device>/``.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch

from torch_corr import MAPS, Problem
from torch_corr.algorithms import MapName
from torch_corr.algorithms.triton.algorithm import Triton
from torch_corr.algorithms.triton.configs import Config, Dot, Product
from torch_corr.request import SLOTS
from torch_corr.testing import TF32_READING, Componentwise, make_operands, require_right

from .cases import Layout
from .machine import describe, slug

FLOATS = "float32,float64,float16,bfloat16"

_FLOAT32 = (
    "import sys, torch; "
    "torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False; "
    "from torch_corr.__main__ import main; sys.exit(main())"
)
"""``python -m torch_corr`` without TF32, which is cuDNN's default."""

CHECKED = (
    "n3c6-x37x41-o6-k7x5-p3,2x1,4-g6",
    "n2c48-x17x19-o40-k3x2-p1-d1x2",
    "n2c9-x20x23-o30-k3-s2-p1-g3",
)
"""Problems on which every configuration is checked: sizes that no tile divides."""


@dataclass(frozen=True)
class Step:
    """One process.

    Attributes:
        name: for the command line and the log.
        command: the command line.
        minutes: its time limit.
        needs: a program that must be installed.
    """

    name: str
    command: tuple[str, ...]
    minutes: float
    needs: str = ""


def steps(out: Path) -> list[Step]:
    """All steps; results of the benchmarks are written to folders in ``out``."""
    python = sys.executable
    verify = (python, "-c", _FLOAT32, "verify")
    check = (python, "-m", "benchmarks.gpu", "configurations")
    # Freed memory is returned at once, so that reads beyond a tensor are detected.
    sanitizer = ("env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1", "compute-sanitizer", "--tool")
    bench = (python, "-m", "benchmarks", "--device", "cuda", "--peers", "none", "--out", str(out))
    kits = {
        "triton": ("--dtype", FLOATS),
        "auto": ("--dtype", FLOATS),
        "fft": (*("--dtype", "float32,float64", "--errors", "normwise"), "--without", "non_finite"),
        "unfold": ("--dtype", FLOATS),
    }

    def kit(name: str, *words: str) -> Step:
        return Step(f"kit {name}", (*verify, *words, "--device", "cuda", "--budget", "1m"), 5)

    return [
        Step("suite", (python, "-m", "pytest", "-q", "-n", "4", "-k", "cuda or triton"), 60),
        *(
            kit(name, "torch_corr:corr2d", "--with", f"algorithm={name}", *words)
            for name, words in kits.items()
        ),
        kit("conv2d", "torch.nn.functional:conv2d", "--dtype", FLOATS, "--errors", "any"),
        Step("configurations", check, 30),
        Step("configurations tf32", (*check, "--tf32"), 10),
        *(
            Step(tool, (*sanitizer, tool, *check, "--once"), 10, "compute-sanitizer")
            for tool in ("memcheck", "racecheck", "initcheck")
        ),
        Step("benchmarks", bench, 90),
        Step("benchmarks tf32", (*bench, "--tf32"), 90),
    ]


def main(words: Sequence[str] | None = None) -> int:
    """Run the steps, or check the configurations; returns the exit code."""
    options = _parser().parse_args(words)
    if options.work == "configurations":
        return check_configurations(options)
    every = steps(options.out)
    known = [step.name for step in every]
    names = [name.strip() for name in options.steps.split(",")] if options.steps else known
    for name in names:
        if name not in known:
            raise SystemExit(f"no step {name!r}; there are {', '.join(known)}")
    chosen = [step for step in every if step.name in names]
    if options.dry_run:
        for step in chosen:
            print(f"{step.name} (at most {step.minutes:g} minutes)\n    {shlex.join(step.command)}")
        return 0
    if not torch.cuda.is_available():
        raise SystemExit("PyTorch finds no CUDA device here; --dry-run prints the steps")
    machine = describe(torch.device("cuda"))
    return run(chosen, options.out / slug(machine, 0), machine)


def run(chosen: Sequence[Step], out: Path, machine: dict[str, Any]) -> int:
    """Run steps; ``out`` gets a log of each, and ``summary.json``."""
    out.mkdir(parents=True, exist_ok=True)
    done: list[dict[str, Any]] = []
    for step in chosen:
        started = time.monotonic()
        outcome = _outcome(step, out / f"{step.name.replace(' ', '-')}.log")
        seconds = round(time.monotonic() - started, 1)
        done.append({**asdict(step), "outcome": outcome, "seconds": seconds})
        summary = json.dumps({"machine": machine, "steps": done}, indent=1)
        (out / "summary.json").write_text(summary + "\n")
        print(f"{step.name}: {outcome} after {seconds:.1f} s", flush=True)
    failed = [each for each in done if not each["outcome"].startswith(("exit 0", "skipped"))]
    return 1 if failed else 0


def _outcome(step: Step, log: Path) -> str:
    """Run a step.  Processes that it leaves behind are killed, because they hold the device."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/cuda/bin"])
    if step.needs and shutil.which(step.needs, path=path) is None:
        return f"skipped: no {step.needs} here"
    with log.open("w") as file:
        process = subprocess.Popen(
            step.command,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "PATH": path},
        )
    try:
        return f"exit {process.wait(60 * step.minutes)}"
    except subprocess.TimeoutExpired:
        return "stopped: out of time"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def check_configurations(options: argparse.Namespace) -> int:
    """Compare every configuration and map with the oracle; prints errors and a count.

    With ``--once`` each runs on one problem in float32 and one layout, because sanitizers are slow.
    """
    torch.backends.cudnn.allow_tf32 = options.tf32
    dtypes = ["float32"] if options.once or options.tf32 else FLOATS.split(",")
    layouts: tuple[Layout, ...] = ("contiguous", "channels_last")
    wrong = right = 0
    for spelling, dtype, map, layout in product(CHECKED, dtypes, MAPS, layouts):
        problem = Problem.parse(spelling)
        for config in Triton().configs(problem, map, getattr(torch, dtype)):
            if options.tf32 and not isinstance(config, Product):
                continue  # only matrix products use TF32
            its_problem = CHECKED[1] if isinstance(config, Dot) else CHECKED[0]
            if options.once and (spelling, layout) != (its_problem, "contiguous"):
                continue
            label = f"{config.name} {map} {dtype} {layout} {spelling}"
            try:
                _check(problem, map, getattr(torch, dtype), config, layout)
                right += 1
                print(f"right: {label}", flush=True)
            except Exception as error:  # Triton's own errors have no common base class
                wrong += 1
                print(f"WRONG: {label}: {type(error).__name__}: {error}", flush=True)
    print(f"{right} right, {wrong} wrong")
    return 1 if wrong else 0


def _check(
    problem: Problem, map: MapName, dtype: torch.dtype, config: Config, layout: Layout
) -> None:
    every = make_operands(problem, dtype, torch.device("cuda"), layouts=(layout,) * 3)
    operands = {slot: getattr(every, slot) for slot in SLOTS[map][:2]}
    name = config.name
    algorithm = Triton(weight=name) if map == "grad_weight" else Triton(correlate=name)
    result = getattr(algorithm, map)(problem, *operands.values())
    slots = operands.get("input"), operands.get("weight"), operands.get("output")
    tf32 = torch.backends.cudnn.allow_tf32 and dtype == torch.float32
    errors = Componentwise(operands=TF32_READING) if tf32 else None
    require_right("result", result, problem, slots, errors)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description="Run everything that needs a GPU, in one command.",
    )
    add = parser.add_argument
    add("work", nargs="?", choices=("all", "configurations"), default="all")
    add("--dry-run", action="store_true", help="print the steps and stop")
    add("--steps", metavar="NAMES", help="comma-separated; default: all")
    add("--out", type=Path, default=Path("benchmarks/results"), metavar="DIR")
    add("--tf32", action="store_true", help="configurations: only products with TF32")
    add("--once", action="store_true", help="configurations: only float32 in one layout")
    return parser


if __name__ == "__main__":
    sys.exit(main())
