"""Everything that a GPU is needed for, in one command, so that a lent minute is fully used.

python -m benchmarks.gpu                  all steps, one after the other
python -m benchmarks.gpu --dry-run        say what would be run
python -m benchmarks.gpu --steps configurations,suite --minutes 5

Each step is a process of its own with a time limit: one that hangs or crashes costs itself alone.
Its output and a summary lie in ``OUT/<device>/``.  Steps are ordered by what would be missed most.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from torch_corr import MAPS, Problem
from torch_corr.algorithms import MapName, dtype_name
from torch_corr.algorithms import triton as host
from torch_corr.algorithms.triton import Config, Triton
from torch_corr.testing import Violation, make_operands, require_right

from .cases import CASES, CUDA_CASES
from .cubins import OPERANDS
from .machine import describe, slug

FLOATS = "float32,float64,float16,bfloat16"

HELD = (
    "n3c6-x37x41-o6-k7x5-p3,2x1,4-g6",
    "n2c48-x17x19-o40-k3x2-p1-d1x2",
    "n2c9-x20x23-o30-k3-s2-p1-g3",
)
"""Problems that every configuration is held to: tails everywhere, a few programs each."""

TIMED = (
    *CUDA_CASES,
    *(
        case
        for case in CASES
        if case.name
        in ("photo 3x3", "photo 5x5", "resnet 3x3 64", "resnet 3x3 64 float16", "vgg 3x3 128")
    ),
)
"""Cases that each configuration is timed on, to see whether the rules choose well."""


@dataclass(frozen=True)
class Step:
    """One process.

    Attributes:
        name: of its log, and on the command line.
        what: it finds out.
        command: without the interpreter.
        minutes: after which it is stopped.
        needs: a program that must be there.
    """

    name: str
    what: str
    command: tuple[str, ...]
    minutes: float
    needs: str = ""


def steps(out: Path) -> tuple[Step, ...]:
    """All steps, the ones that would be missed most first."""
    python = sys.executable
    me = (python, "-m", "benchmarks.gpu")
    bench = (python, "-m", "benchmarks", "--device", "cuda", "--no-charts", "--peers", "none")
    verify = (python, "-m", "torch_corr", "verify", "torch_corr:corr2d", "--device", "cuda")
    return (
        Step(
            "configurations", "every configuration against the oracle", (*me, "configurations"), 6
        ),
        Step("timings", "every configuration timed by CUDA events", (*me, "timings"), 6),
        Step(
            "triton tests",
            "repeatability, graphs, streams, more than 2**31 pixels",
            (python, "-m", "pytest", "-q", "tests/test_triton.py"),
            8,
        ),
        Step(
            "cases",
            "the suite's CUDA cases, TF32 off, cudnn.benchmark off and on",
            (*bench, "--out", str(out / "float32"), "--cases", "batch"),
            8,
        ),
        Step(
            "cases tf32",
            "the same with TF32",
            (*bench, "--tf32", "--out", str(out / "tf32"), "--cases", "batch"),
            8,
        ),
        *(
            Step(
                f"kit {name}",
                f"the conformance kit on {name}, every dtype",
                (*verify, "--with", f"algorithm={name}", "--dtype", dtypes, "--budget", "2m"),
                4,
            )
            for name, dtypes in (("triton", FLOATS), ("auto", FLOATS), ("unfold", FLOATS))
        ),
        Step(
            "kit fft",
            "the conformance kit on fft",
            (
                *(*verify, "--with", "algorithm=fft", "--dtype", "float32,float64"),
                *("--errors", "normwise", "--without", "non_finite", "--budget", "2m"),
            ),
            4,
        ),
        Step(
            "suite",
            "the whole test suite, its CUDA half",
            (python, "-m", "pytest", "-q", "-n", "4", "-k", "cuda"),
            10,
        ),
        *(
            Step(
                f"sanitizer {tool}",
                f"compute-sanitizer's {tool} on every configuration",
                ("compute-sanitizer", "--tool", tool, *me, "configurations", "--once"),
                10,
                needs="compute-sanitizer",
            )
            for tool in ("memcheck", "racecheck", "initcheck")
        ),
        Step("all cases", "the whole benchmark suite, TF32 off", (*bench, "--out", str(out)), 60),
        Step(
            "all cases tf32",
            "the whole benchmark suite with TF32",
            (*bench, "--tf32", "--out", str(out / "tf32")),
            60,
        ),
    )


def main(words: Sequence[str] | None = None) -> int:
    """Run the steps, or one of the two that are done here; returns the exit code."""
    options = _parser().parse_args(words)
    if options.work == "configurations":
        return hold_configurations(torch.device(options.device), once=options.once)
    if options.work == "timings":
        return time_configurations(torch.device(options.device))
    if options.dry_run:
        for step in _chosen(options, options.out / "DEVICE"):
            print(f"{step.name}: {step.what} (at most {step.minutes:g} minutes)")
            print(f"    {shlex.join(step.command)}")
        return 0
    if not torch.cuda.is_available():
        raise SystemExit("PyTorch finds no CUDA device here; --dry-run says what would be run")
    machine = describe(torch.device("cuda"))
    out: Path = options.out / slug(machine, 0)
    out.mkdir(parents=True, exist_ok=True)
    return run(_chosen(options, out), out, machine, options.minutes)


def run(chosen: Sequence[Step], out: Path, machine: dict[str, Any], minutes: float) -> int:
    """Run steps until the minutes are spent; ``out`` holds a log for each, and ``summary.json``."""
    ends = time.monotonic() + 60 * minutes
    summary: list[dict[str, Any]] = []
    for step in chosen:
        left = ends - time.monotonic()
        found = {**asdict(step), "outcome": "", "seconds": 0.0}
        if step.needs and shutil.which(step.needs) is None:
            found["outcome"] = f"skipped: no {step.needs} here"
        elif left < 10:
            found["outcome"] = "skipped: no time left"
        else:
            started = time.monotonic()
            with (out / f"{step.name.replace(' ', '-')}.log").open("w") as log:
                try:
                    done = subprocess.run(
                        step.command,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        timeout=min(60 * step.minutes, left),
                        check=False,
                    )
                    found["outcome"] = f"exit {done.returncode}"
                except subprocess.TimeoutExpired:
                    found["outcome"] = "stopped: out of time"
            found["seconds"] = round(time.monotonic() - started, 1)
        summary.append(found)
        text = json.dumps({"machine": machine, "steps": summary}, indent=1)
        (out / "summary.json").write_text(text + "\n")
        print(f"{step.name}: {found['outcome']} after {found['seconds']} s", flush=True)
    fine = [
        each["outcome"] == "exit 0" or each["outcome"].startswith("skipped") for each in summary
    ]
    return 0 if all(fine) else 1


def hold_configurations(device: torch.device, once: bool = False) -> int:
    """Every configuration, map and dtype against the oracle; prints what is wrong, and a count.

    Args:
        once: float32 alone, for a sanitizer.
    """
    torch.backends.cudnn.allow_tf32 = False
    wrong = right = 0
    dtypes = ("float32",) if once else FLOATS.split(",")
    for spelling in HELD:
        problem = Problem.parse(spelling)
        for dtype in (getattr(torch, name) for name in dtypes):
            for map in MAPS:
                for config in Triton().configs(problem, map, dtype):
                    for layout in ("contiguous", "channels_last"):
                        try:
                            _hold(problem, map, dtype, config, layout, device)
                            right += 1
                        except (Violation, RuntimeError) as error:
                            wrong += 1
                            where = f"{config.name} {map} {dtype} {layout} {spelling}"
                            print(f"WRONG: {where}: {error}")
    print(f"{right} right, {wrong} wrong", flush=True)
    return 1 if wrong else 0


def _hold(
    problem: Problem,
    map: MapName,
    dtype: torch.dtype,
    config: Config,
    layout: str,
    device: torch.device,
) -> None:
    every = make_operands(problem, dtype, device, layouts=(layout,) * 3)
    operands = {name: getattr(every, name) for name in OPERANDS[map]}
    result = getattr(_fixed(config, map), map)(problem, *operands.values())
    slots = operands.get("input"), operands.get("weight"), operands.get("output")
    require_right("result", result, problem, slots)


def _fixed(config: Config, map: MapName) -> Triton:
    return Triton(weight=config.name) if map == "grad_weight" else Triton(correlate=config.name)


def time_configurations(device: torch.device) -> int:
    """Microseconds of each configuration, the rule's own marked, for each case and map."""
    torch.backends.cudnn.allow_tf32 = False
    for case in TIMED:
        problem, dtype = case.problem, case.torch_dtype
        for map in MAPS:
            operands = [
                torch.randn(getattr(problem, f"{slot}_shape"), device=device).to(dtype)
                for slot in OPERANDS[map]
            ]
            chosen = Triton()._config(map, problem, dtype)
            found = {}
            for config in Triton().configs(problem, map, dtype):
                if isinstance(config, host.Dot) != isinstance(chosen, host.Dot):
                    continue  # the other way: the tile would be empty, or the channels too many
                run = getattr(_fixed(config, map), map)
                found[config.name] = 1e6 * seconds(lambda: run(problem, *operands))  # noqa: B023
            best = min(found, key=lambda name: found[name])
            shown = ", ".join(f"{name} {value:.1f}" for name, value in found.items())
            print(
                f"{case.name} {dtype_name(dtype)} {map}: chosen {chosen.name}, best {best} "
                f"({found[chosen.name] / found[best]:.2f} times); {shown}",
                flush=True,
            )
    return 0


def seconds(run: Any, least: int = 5, budget: float = 0.2) -> float:
    """Median seconds between two events on the device around a call."""
    run()
    taken: list[float] = []
    while len(taken) < least or (sum(taken) < budget and len(taken) < 50):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in "be")
        begin.record()
        run()
        end.record()
        end.synchronize()
        taken.append(begin.elapsed_time(end) / 1e3)
    return sorted(taken)[len(taken) // 2]


def _chosen(options: argparse.Namespace, out: Path) -> list[Step]:
    every = steps(out)
    if not options.steps:
        return list(every)
    names = [name.strip() for name in options.steps.split(",")]
    known = [step.name for step in every]
    for name in names:
        if name not in known:
            raise SystemExit(f"no step {name!r}; there are {', '.join(known)}")
    return [step for step in every if step.name in names]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description="Everything that a GPU is needed for, in one command.",
    )
    add = parser.add_argument
    add("work", nargs="?", choices=("all", "configurations", "timings"), default="all")
    add("--dry-run", action="store_true", help="say what would be run, and stop")
    add("--steps", metavar="NAMES", help="comma-separated; default: all")
    add("--minutes", type=float, default=30, help="for all steps together (default: 30)")
    add("--out", type=Path, default=Path("benchmarks/results"), metavar="DIR")
    add("--device", default="cuda", help="of the two works (default: cuda)")
    add("--once", action="store_true", help="configurations: float32 alone")
    return parser


if __name__ == "__main__":
    sys.exit(main())
