"""Everything that a GPU is needed for, in one command, so that a lent minute is fully used.

python -m benchmarks.gpu                  all steps, one after the other
python -m benchmarks.gpu --dry-run        say what would be run
python -m benchmarks.gpu --steps configurations,suite --minutes 5
python -m benchmarks.gpu --after "cases tf32" --minutes 9     where commands may not run for long

Each step is a process of its own with a time limit: one that hangs or crashes costs itself alone.
One whose time is up is interrupted, so that it reports what it has, and killed 20 seconds later.
Its output and a summary lie in ``OUT/<device>/``; the summary keeps what earlier runs found.
Steps are ordered by what would be missed most.  PyTorch for CUDA, pytest and hypothesis are enough;
what else is missing costs the tests that want it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from torch_corr import MAPS, Problem
from torch_corr.algorithms import MapName, dtype_name
from torch_corr.algorithms import triton as host
from torch_corr.algorithms.base import definition_flops, operand_bytes
from torch_corr.algorithms.triton import Config, Triton
from torch_corr.machine import machine_of
from torch_corr.testing import make_operands, require_right

from .cases import CASES, CUDA_CASES, Case
from .cubins import OPERANDS, compile_launch, launches_of
from .machine import describe, slug, usable_cores

FLOATS = "float32,float64,float16,bfloat16"

GRACE = 20.0
"""Seconds that an interrupted step has to report."""

HELD = (
    "n3c6-x37x41-o6-k7x5-p3,2x1,4-g6",
    "n2c48-x17x19-o40-k3x2-p1-d1x2",
    "n2c9-x20x23-o30-k3-s2-p1-g3",
)
"""Problems that every configuration is held to: tails everywhere, a few programs each."""

AIMED = ("batch", "photo 3x3", "photo 5x5", "dense 3x3 float64", "square 128 k16", "square 256*")
"""What picks the cases that docs/gpu.md predicts, a few minutes' worth."""

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
    # A module that wants what is not installed would else end the whole run.
    pytest = (python, "-m", "pytest", "-q", "--continue-on-collection-errors")
    at_once = ("-n", "4") if find_spec("xdist") else ()
    # Freed memory goes back at once, so that reading beyond a tensor is seen.
    sanitizer = ("env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1", "compute-sanitizer", "--tool")
    aimed = tuple(word for pattern in AIMED for word in ("--cases", pattern))

    def kit(name: str, *words: str) -> Step:
        command = (*verify, "--with", f"algorithm={name}", *words, "--budget", "1m")
        return Step(f"kit {name}", f"the conformance kit on {name}, every dtype", command, 1.5)

    def sanitized(tool: str) -> Step:
        return Step(
            f"sanitizer {tool}",
            f"compute-sanitizer's {tool} on every configuration",
            (*sanitizer, tool, *me, "configurations", "--once"),
            2.5,
            needs="compute-sanitizer",
        )

    return (
        Step(
            "configurations", "every configuration against the oracle", (*me, "configurations"), 5
        ),
        Step(
            "cases",
            "the cases that were aimed at, TF32 off, cudnn.benchmark off and on",
            (*bench, "--out", str(out / "float32"), *aimed),
            5,
        ),
        Step("timings", "every configuration timed by CUDA events", (*me, "timings"), 4),
        Step(
            "triton tests",
            "repeatability, graphs, streams, more than 2**31 pixels",
            (*pytest, "tests/test_triton.py", "-k", "not compiled and not tables"),
            3,
        ),
        Step(
            "cases tf32",
            "the same cases with TF32",
            (*bench, "--tf32", "--out", str(out / "tf32"), *aimed),
            3,
        ),
        kit("triton", "--dtype", FLOATS),
        sanitized("memcheck"),
        Step("suite", "the whole test suite, its CUDA half", (*pytest, *at_once, "-k", "cuda"), 4),
        kit("auto", "--dtype", FLOATS),
        # What follows is for time that is left, or for a second half hour.
        sanitized("racecheck"),
        sanitized("initcheck"),
        kit("unfold", "--dtype", FLOATS),
        kit(
            "fft",
            *("--dtype", "float32,float64", "--errors", "normwise", "--without", "non_finite"),
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
    file = out / "summary.json"
    before = json.loads(file.read_text())["steps"] if file.exists() else []
    for step in chosen:
        left = ends - time.monotonic()
        found = {**asdict(step), "outcome": "", "seconds": 0.0}
        if step.needs and shutil.which(step.needs, path=_path()) is None:
            found["outcome"] = f"skipped: no {step.needs} here"
        elif left < 10:
            found["outcome"] = "skipped: no time left"
        else:
            started = time.monotonic()
            with (out / f"{step.name.replace(' ', '-')}.log").open("w") as log:
                found["outcome"] = _outcome(step.command, log, min(60 * step.minutes, left))
            found["seconds"] = round(time.monotonic() - started, 1)
        summary.append(found)
        names = [each["name"] for each in summary]
        kept = [each for each in before if each["name"] not in names]
        text = json.dumps({"machine": machine, "steps": kept + summary}, indent=1)
        (out / "summary.json").write_text(text + "\n")
        print(f"{step.name}: {found['outcome']} after {found['seconds']} s", flush=True)
    fine = [
        each["outcome"] == "exit 0" or each["outcome"].startswith("skipped") for each in summary
    ]
    return 0 if all(fine) else 1


def _outcome(command: Sequence[str], log: Any, seconds: float) -> str:
    """Run a command, in a group of processes that ends with it; how it went, in words."""
    process = subprocess.Popen(
        command,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**os.environ, "PATH": _path()},
    )
    try:
        return f"exit {process.wait(seconds)}"
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
        return "stopped: out of time"
    finally:
        # What it has started, and itself: they would hold the device in the next step's way.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _path() -> str:
    """Where programs are looked for: CUDA's own tools are often not on the path."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/cuda/bin"])


Kind = tuple[str, MapName, str, Config, bool]
"""A problem's spelling, a map, a dtype's name, a configuration, and whether channels_last."""


def compile_ahead(kinds: Iterable[Kind], device: torch.device) -> None:
    """Compile kernels on every core, into the cache from which Triton then takes them."""
    if device.type != "cuda":
        return
    major, minor = torch.cuda.get_device_capability(device)
    started, work = time.monotonic(), [(kind, 10 * major + minor) for kind in kinds]
    # CUDA does not bear a fork.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(usable_cores(), mp_context=spawn) as pool:
        failures = [each for each in pool.map(_compile, work) if each]
    for each in failures:
        print(f"NOT COMPILED: {each}")
    print(f"compiled {len(work)} in {time.monotonic() - started:.0f} s", flush=True)


def _compile(work: tuple[Kind, int]) -> str:
    (spelling, map, dtype, config, last), architecture = work
    torch.backends.cudnn.allow_tf32 = False
    try:
        problem = Problem.parse(spelling)
        for launch in launches_of(problem, map, getattr(torch, dtype), config, last):
            compile_launch(launch, architecture)
    except Exception as error:  # it will be met again, and told with its case, where it is run
        return f"{config.name} {map} {dtype} {spelling}: {error}"
    return ""


def _held(once: bool) -> Iterator[Kind]:
    for spelling in HELD[:2] if once else HELD:
        problem = Problem.parse(spelling)
        for dtype in ("float32",) if once else FLOATS.split(","):
            for map in MAPS:
                for config in Triton().configs(problem, map, getattr(torch, dtype)):
                    # A sanitizer makes every launch slow: one layout, and each its own way.
                    if once and isinstance(config, host.Dot) != (spelling == HELD[1]):
                        continue
                    for last in (False,) if once else (False, True):
                        yield spelling, map, dtype, config, last


def hold_configurations(device: torch.device, once: bool = False) -> int:
    """Every configuration, map and dtype against the oracle; prints what is wrong, and a count.

    Args:
        once: float32 in one layout, for a sanitizer.
    """
    torch.backends.cudnn.allow_tf32 = False
    kinds = list(_held(once))
    compile_ahead(kinds, device)
    wrong = right = 0
    for spelling, map, dtype, config, last in kinds:
        layout = "channels_last" if last else "contiguous"
        where = f"{config.name} {map} {dtype} {layout} {spelling}"
        try:
            _hold(Problem.parse(spelling), map, getattr(torch, dtype), config, layout, device)
            right += 1
            print(f"right: {where}", flush=True)
        except Exception as error:  # Triton's own derive from nothing narrower; the next is due
            wrong += 1
            print(f"WRONG: {where}: {type(error).__name__}: {error}", flush=True)
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
    runs = [
        (case, map, (Triton(), *Triton().variants(case.problem, map, case.torch_dtype)))
        for case in TIMED
        for map in MAPS
    ]
    compile_ahead(
        (
            (
                str(case.problem),
                map,
                case.dtype,
                each._config(map, case.problem, case.torch_dtype),
                False,
            )
            for case, map, ways in runs
            for each in ways
        ),
        device,
    )
    failed = False
    for case, map, ways in runs:
        problem, dtype = case.problem, case.torch_dtype
        operands = [
            torch.randn(getattr(problem, f"{slot}_shape"), device=device).to(dtype)
            for slot in OPERANDS[map]
        ]
        found = {}
        for way in ways:
            run = getattr(way, map)
            name = way._config(map, problem, dtype).name
            try:
                found[name] = 1e6 * seconds(lambda: run(problem, *operands))  # noqa: B023
            except Exception as error:  # as above: one that fails costs itself alone
                failed = True
                print(f"NOT TIMED: {case.name} {map} {name}: {type(error).__name__}: {error}")
        chosen = ways[0]._config(map, problem, dtype).name
        if chosen not in found:
            continue
        best = min(found, key=lambda name: found[name])
        shown = ", ".join(f"{name} {value:.1f}" for name, value in found.items())
        print(
            f"{case.name} {dtype_name(dtype)} {map}: floor {_floor(case, device):.1f} us, chosen "
            f"{chosen}, best {best} ({found[chosen] / found[best]:.2f} times); {shown}",
            flush=True,
        )
    return 1 if failed else 0


def _floor(case: Case, device: torch.device) -> float:
    """Microseconds that the bytes or the operations take at least, by the device's own figures."""
    rates = machine_of(device, case.torch_dtype).rates(case.torch_dtype)
    moved = operand_bytes(case.problem, case.torch_dtype) / rates.bytes
    flops = definition_flops(case.problem, case.torch_dtype) / rates.matmul_flops
    return 1e6 * max(moved, flops)


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
    known = [step.name for step in every]
    names = [name.strip() for name in options.steps.split(",")] if options.steps else known
    for name in (*names, *([options.after] if options.after else [])):
        if name not in known:
            raise SystemExit(f"no step {name!r}; there are {', '.join(known)}")
    first = known.index(options.after) + 1 if options.after else 0
    return [step for step in every[first:] if step.name in names]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description="Everything that a GPU is needed for, in one command.",
    )
    add = parser.add_argument
    add("work", nargs="?", choices=("all", "configurations", "timings"), default="all")
    add("--dry-run", action="store_true", help="say what would be run, and stop")
    add("--steps", metavar="NAMES", help="comma-separated; default: all")
    add("--after", metavar="STEP", help="only the steps after this one")
    add("--minutes", type=float, default=30, help="for all steps together (default: 30)")
    add("--out", type=Path, default=Path("benchmarks/results"), metavar="DIR")
    add("--device", default="cuda", help="of the two works (default: cuda)")
    add("--once", action="store_true", help="configurations: float32 alone")
    return parser


if __name__ == "__main__":
    sys.exit(main())
