"""Run everything that needs a GPU, in one command, for machines that are borrowed for a short time.

python -m benchmarks.gpu                  all steps
python -m benchmarks.gpu --dry-run        print the steps
python -m benchmarks.gpu --steps cases,suite --minutes 5
python -m benchmarks.gpu --after "cases tf32" --minutes 9     if commands may not run for long
python -m benchmarks.gpu --warmed                             with kernels compiled in advance,
python -m benchmarks.gpu warm --architecture 90               by this command, without a GPU

Each step is a process with a time limit, so a hang or crash affects only that step.  A step that
reaches its limit is interrupted, so that it reports its results, and killed 20 seconds later.
Logs and a summary are written to ``OUT/<device>/``; the summary keeps the steps of earlier runs.
The most important steps come first.  They need PyTorch for CUDA, pytest and hypothesis.  Tests that
need other packages are skipped without them.
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
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch

from torch_corr import MAPS, Problem
from torch_corr.algorithms import MapName
from torch_corr.algorithms.base import FEW_CHANNEL_PAIRS
from torch_corr.algorithms.fft.algorithm import FEW_TAPS
from torch_corr.algorithms.triton.algorithm import Triton
from torch_corr.algorithms.triton.configs import Config, Dot, Product
from torch_corr.request import SLOTS
from torch_corr.testing import TF32_READING, Componentwise, make_operands, require_right

from .cases import CASES, CUDA_CASES, SWEEPS, Case, Layout
from .cubins import compiled_by_triton, flagged_launches_of, launches_of
from .machine import describe, slug, usable_cores

ROOT = Path(__file__).parent.parent
FLOATS = "float32,float64,float16,bfloat16"

GRACE = 20.0
"""Seconds that an interrupted step has to report."""

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

TARGETED = ("batch", "photo 3x3", "photo 5x5", "dense", "square")
"""Patterns of the cases that are measured with TF32: dense layers, and those that docs/gpu.md
predicts."""

TIMED = ("* batch*", "* channels_last", "photo 3x3", "photo 5x5", "resnet 3x3 64*", "vgg 3x3 128")
"""Patterns of the cases on which every configuration is timed."""


@dataclass(frozen=True)
class Step:
    """One process.

    Attributes:
        name: for the command line and the log.
        what: it finds out.
        command: the command line.
        minutes: its time limit.
        needs: a program that must be installed.
    """

    name: str
    what: str
    command: tuple[str, ...]
    minutes: float
    needs: str = ""


def steps(out: Path) -> tuple[Step, ...]:
    """All steps, the most important first."""
    python = sys.executable
    me = (python, "-m", "benchmarks.gpu")
    verify = (python, "-c", _FLOAT32, "verify")
    workers = ("-n", str(max(1, min(8, usable_cores() - 1)))) if find_spec("xdist") else ()
    # An error at import must not end the whole run; pytest-benchmark warns of xdist.
    safe = ("--continue-on-collection-errors", "-p", "no:benchmark")
    pytest = (python, "-m", "pytest", "-q", *safe, *workers)
    # Freed memory is returned at once, so that reads beyond a tensor are detected.
    sanitizer = ("env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1", "compute-sanitizer", "--tool")
    triton_tests = next((ROOT / "tests").rglob("test_triton.py")).relative_to(ROOT).as_posix()
    few = ("--no-sweeps", "--algorithms", "auto,triton,fft", "--budget", "0.015")
    targeted = [word for pattern in TARGETED for word in ("--cases", pattern)]

    def bench(name: str, what: str, minutes: float, *words: str) -> Step:
        common = ("--device", "cuda", "--no-charts", "--no-memory", "--peers", "none")
        command = (python, "-m", "benchmarks", *common, "--out", str(out.parent), *words)
        return Step(name, what, command, minutes)

    def kit(name: str, *words: str) -> Step:
        if name != "conv2d":
            words = ("torch_corr:corr2d", "--with", f"algorithm={name}", *words)
        command = (*verify, *words, "--device", "cuda", "--budget", "1m")
        return Step(f"kit {name}", f"the conformance kit on {name}, every dtype", command, 2)

    def checked(name: str, *words: str) -> Step:
        what = f"every configuration compared with the oracle, {name}"
        return Step(f"configurations {name}", what, (*me, "configurations", *words), 2.5)

    def sanitized(tool: str) -> Step:
        what = f"compute-sanitizer's {tool} on every configuration"
        command = (*sanitizer, tool, *me, "configurations", "--once")
        return Step(f"sanitizer {tool}", what, command, 2.5, "compute-sanitizer")

    return (
        Step("warm", "compile kernels, on every core", (*me, "warm"), 6),
        bench("cases", "the cases, TF32 off, cudnn.benchmark off and on", 2.65, *few),
        bench(
            "cases tf32",
            "dense and predicted cases, with TF32",
            0.65,
            *("--tf32", "--dtypes", "float32", *few, *targeted),
        ),
        Step(
            "suite",
            "the tests on CUDA, without the laws of triton",
            (*pytest, "-k", "cuda and not triton"),
            3,
        ),
        Step(
            "triton tests",
            "repeatability, graphs, streams, more than 2**31 pixels",
            # The tests left out compile for other devices.
            (*pytest, triton_tests, "-k", "not compile and not tables and not float32_is"),
            3,
        ),
        kit("triton", "--dtype", FLOATS),
        checked("float32", "--dtypes", "float32"),
        checked("float16", "--dtypes", "float16"),
        sanitized("memcheck"),
        checked("tf32", "--dtypes", "float32", "--tf32"),
        kit("auto", "--dtype", FLOATS),
        checked("bfloat16", "--dtypes", "bfloat16"),
        checked("float64", "--dtypes", "float64"),
        kit(
            "fft",
            *("--dtype", "float32,float64", "--errors", "normwise", "--without", "non_finite"),
        ),
        kit("unfold", "--dtype", FLOATS),
        kit("conv2d", "torch.nn.functional:conv2d", "--dtype", FLOATS, "--errors", "any"),
        sanitized("racecheck"),
        Step(
            "triton laws",
            "the laws of the tests on triton",
            (*pytest, "-k", "cuda and triton", "--ignore", triton_tests),
            3,
        ),
        bench(
            "configurations timed",
            "the configuration that the rules choose, and the fastest of all, TF32 off",
            4,
            *("--algorithms", "triton,auto-measured", "--maps", "maps", "--budget", "0.015"),
            *("--out", str(out / "configurations")),
            *(word for pattern in TIMED for word in ("--cases", pattern)),
        ),
        sanitized("initcheck"),
        bench("all cases", "the whole benchmark suite, TF32 off", 60),
        bench("all cases tf32", "the whole benchmark suite with TF32", 60, "--tf32"),
    )


def main(words: Sequence[str] | None = None) -> int:
    """Run the steps, or the work of one of them; returns the exit code."""
    options = _parser().parse_args(words)
    if options.work == "warm":
        return warm(options.architecture)
    if options.work == "configurations":
        return check_configurations(options)
    if options.dry_run:
        for step in _chosen(options, options.out / "DEVICE"):
            print(f"{step.name}: {step.what} (at most {step.minutes:g} minutes)")
            print(f"    {shlex.join(step.command)}")
        return 0
    if not torch.cuda.is_available():
        raise SystemExit("PyTorch finds no CUDA device here; --dry-run prints the steps")
    machine = describe(torch.device("cuda"))
    out: Path = options.out / slug(machine, 0)
    return run(_chosen(options, out), out, machine, options.minutes)


def run(chosen: Sequence[Step], out: Path, machine: dict[str, Any], minutes: float) -> int:
    """Run steps until the time is over; ``out`` gets a log of each, and ``summary.json``."""
    ends = time.monotonic() + 60 * minutes
    out.mkdir(parents=True, exist_ok=True)
    file = out / "summary.json"
    before = json.loads(file.read_text())["steps"] if file.exists() else []
    done = {each["name"]: each for each in before}
    fine = True
    for step in chosen:
        started, left = time.monotonic(), ends - time.monotonic()
        if step.needs and shutil.which(step.needs, path=_path()) is None:
            outcome = f"skipped: no {step.needs} here"
        elif left < min(10, 60 * step.minutes):
            outcome = "skipped: no time left"
        else:
            log = out / f"{step.name.replace(' ', '-')}.log"
            outcome = _outcome(step, log, min(60 * step.minutes, left))
        seconds = round(time.monotonic() - started, 1)
        done[step.name] = {**asdict(step), "outcome": outcome, "seconds": seconds}
        summary = {"machine": machine, "steps": list(done.values())}
        file.write_text(json.dumps(summary, indent=1) + "\n")
        print(f"{step.name}: {outcome} after {seconds:.1f} s", flush=True)
        fine &= outcome == "exit 0" or outcome.startswith("skipped")
    return 0 if fine else 1


def _accept_interrupts() -> None:
    """A shell's background jobs, and all that they start, ignore interrupts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _outcome(step: Step, log: Path, seconds: float) -> str:
    """Run a step.  Processes that it leaves behind are killed, because they hold the device."""
    with log.open("w") as file:
        process = subprocess.Popen(
            step.command,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "PATH": _path()},
            preexec_fn=_accept_interrupts,
        )
    try:
        return f"exit {process.wait(seconds)}"
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
        return "stopped: out of time"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _path() -> str:
    """The search path for programs, with that of CUDA's tools."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/cuda/bin"])


class Launched(NamedTuple):
    """A configuration with a problem that the steps run it on."""

    problem: str
    map: MapName
    dtype: str
    config: Config
    layout: Layout = "contiguous"
    tf32: bool = False
    fallback: bool = False
    """Whether it runs only if the check of a transform fails."""

    def __str__(self) -> str:
        return f"{self.config.name} {self.map} {self.dtype} {self.layout} {self.problem}"


def warm(architecture: int | None) -> int:
    """Compile, into Triton's cache, the kernels that the steps launch; prints their number.

    It needs no GPU if ``architecture`` is given.  Triton uses the cache only at the same path, with
    the same versions of Python and Triton.  Launchers are compiled too if there is a libcuda.
    """
    if architecture is None:
        major, minor = torch.cuda.get_device_capability()
        architecture = 10 * major + minor
    started, work = time.monotonic(), [(each, architecture) for each in dict.fromkeys(launched())]
    print(f"{len(work)} combinations, for sm_{architecture}", flush=True)
    failures = kernels = done = 0
    spawn = multiprocessing.get_context("spawn")  # CUDA cannot be forked
    with ProcessPoolExecutor(usable_cores(), mp_context=spawn) as pool:
        try:
            for done, (count, failure) in enumerate(pool.map(_compile, work, chunksize=2), 1):
                kernels += count
                failures += bool(failure)
                if failure:
                    print(f"NOT COMPILED: {failure}", flush=True)
                if done % 50 == 0:
                    print(f"{done} after {time.monotonic() - started:.0f} s", flush=True)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            print("interrupted: the compiled kernels are kept")
    seconds = time.monotonic() - started
    print(f"{kernels} launches of {done} combinations in {seconds:.0f} s", flush=True)
    return 1 if failures else 0


def launched() -> Iterator[Launched]:
    """The known launches of the steps, timed ones first."""
    for tf32 in (False, True):
        for case in (*CUDA_CASES, *CASES):
            targeted = case.dtype == "float32" and any(map(case.matches, TARGETED))
            left_out = case.group in SWEEPS or case.torch_dtype.is_complex
            if left_out or (tf32 and not targeted):
                continue
            with _tf32(tf32):
                for map_name in MAPS:
                    config = Triton()._config(map_name, case.problem, case.torch_dtype)
                    each = Launched(str(case.problem), map_name, case.dtype, config)
                    yield each._replace(layout=case.layout, tf32=tf32)
                    if not tf32 and _may_be_fallback(case):
                        yield each._replace(fallback=True)
    for dtypes, tf32 in ((["float32", "float16"], False), (["float32"], True)):
        yield from checked_launches(dtypes, tf32)
    yield from checked_launches(["bfloat16", "float64"], tf32=False)


def _may_be_fallback(case: Case) -> bool:
    """Whether ``auto`` may choose a transform: for dense layers with large kernels."""
    problem = case.problem
    dense = problem.group_in * problem.group_out > FEW_CHANNEL_PAIRS
    large = prod(problem.kernel) >= FEW_TAPS
    return dense and large and case.dtype in ("float32", "float64")


def _compile(work: tuple[Launched, int]) -> tuple[int, str]:
    """The number of launches that were compiled, and the error if there was one."""
    each, architecture = work
    problem, dtype = Problem.parse(each.problem), getattr(torch, each.dtype)
    driver: Any = import_module("triton.backends.nvidia.driver")
    count = 0
    try:
        with _tf32(each.tf32):
            launches = (
                flagged_launches_of(problem, each.map, dtype, each.config)
                if each.fallback
                else launches_of(
                    problem, each.map, dtype, each.config, each.layout == "channels_last"
                )
            )
            for launch in launches:
                made = compiled_by_triton(launch, architecture)
                # The launcher in C is compiled at the first launch if it cannot be compiled here.
                with suppress(AssertionError, ImportError, subprocess.CalledProcessError):
                    driver.CudaLauncher(made.src, made.metadata)
                count += 1
    except Exception as error:  # the step that launches it reports it too
        return count, f"{each}: {error}"
    return count, ""


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """Allow TF32 or not; launches depend on it."""
    cudnn = torch.backends.cudnn
    before, cudnn.allow_tf32 = cudnn.allow_tf32, allowed
    try:
        yield
    finally:
        cudnn.allow_tf32 = before


def checked_launches(dtypes: Sequence[str], tf32: bool, once: bool = False) -> Iterator[Launched]:
    """The launches that are compared with the oracle.

    Args:
        once: each configuration on one problem in one layout, for sanitizers, which are slow.
    """
    layouts: tuple[Layout, ...] = ("contiguous",) if once else ("contiguous", "channels_last")
    for spelling in CHECKED[:2] if once else CHECKED:
        problem = Problem.parse(spelling)
        for dtype in dtypes:
            for map_name in MAPS:
                with _tf32(tf32):
                    configs = Triton().configs(problem, map_name, getattr(torch, dtype))
                for config in configs:
                    if once and isinstance(config, Dot) != (spelling == CHECKED[1]):
                        continue
                    if tf32 and not isinstance(config, Product):
                        continue  # only matrix products use TF32
                    for layout in layouts:
                        yield Launched(spelling, map_name, dtype, config, layout, tf32)


def check_configurations(options: argparse.Namespace) -> int:
    """Compare every configuration and map with the oracle; prints errors and a count."""
    dtypes = ["float32"] if options.once else (options.dtypes or FLOATS).split(",")
    launches = list(checked_launches(dtypes, options.tf32, options.once))
    wrong = right = 0
    try:
        with _tf32(options.tf32):
            for each in launches:
                try:
                    _check(each, torch.device(options.device))
                    right += 1
                    print(f"right: {each}", flush=True)
                except Exception as error:  # Triton's own errors have no common base class
                    wrong += 1
                    print(f"WRONG: {each}: {type(error).__name__}: {error}", flush=True)
    finally:
        print(f"{right} right, {wrong} wrong, of {len(launches)}", flush=True)
    return 1 if wrong else 0


def _check(launch: Launched, device: torch.device) -> None:
    problem, name = Problem.parse(launch.problem), launch.config.name
    dtype = getattr(torch, launch.dtype)
    every = make_operands(problem, dtype, device, layouts=(launch.layout,) * 3)
    operands = {slot: getattr(every, slot) for slot in SLOTS[launch.map][:2]}
    fixed = Triton(weight=name) if launch.map == "grad_weight" else Triton(correlate=name)
    result = getattr(fixed, launch.map)(problem, *operands.values())
    slots = operands.get("input"), operands.get("weight"), operands.get("output")
    errors = Componentwise(operands=TF32_READING) if launch.tf32 else None
    require_right("result", result, problem, slots, errors)


def _chosen(options: argparse.Namespace, out: Path) -> list[Step]:
    every = steps(out)
    known = [step.name for step in every]
    names = [name.strip() for name in options.steps.split(",")] if options.steps else known
    for name in (*names, *([options.after] if options.after else [])):
        if name not in known:
            raise SystemExit(f"no step {name!r}; there are {', '.join(known)}")
    first = known.index(options.after) + 1 if options.after else 0
    left_out = {"warm"} if options.warmed else set()
    return [step for step in every[first:] if step.name in names and step.name not in left_out]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description="Run everything that needs a GPU, in one command.",
    )
    add = parser.add_argument
    add("work", nargs="?", choices=("all", "configurations", "warm"), default="all")
    add("--dry-run", action="store_true", help="print the steps and stop")
    add("--steps", metavar="NAMES", help="comma-separated; default: all")
    add("--after", metavar="STEP", help="only the steps after this one")
    add("--minutes", type=float, default=30, help="for all steps together (default: 30)")
    add("--out", type=Path, default=Path("benchmarks/results"), metavar="DIR")
    add("--warmed", action="store_true", help="kernels are in Triton's cache: leave out 'warm'")
    add("--device", default="cuda", help="configurations: the device (default: cuda)")
    add("--dtypes", metavar="NAMES", help="configurations: comma-separated; default: all floats")
    add("--tf32", action="store_true", help="configurations: products with TF32")
    add("--once", action="store_true", help="configurations: only float32 in one layout")
    add("--architecture", type=int, metavar="90", help="warm: default: the device's")
    return parser


if __name__ == "__main__":
    sys.exit(main())
