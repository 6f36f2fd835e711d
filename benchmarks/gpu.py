"""Everything that a GPU is needed for, in one command, so that a lent minute is fully used.

python -m benchmarks.gpu                  all steps
python -m benchmarks.gpu --dry-run        say what would be run
python -m benchmarks.gpu --steps cases,suite --minutes 5
python -m benchmarks.gpu --after "cases tf32" --minutes 9     where commands may not run for long
python -m benchmarks.gpu --warmed --pack FILE                 with kernels compiled beforehand,
python -m benchmarks.gpu warm --architecture 90               as this does, without a GPU

Each step is a process of its own with a time limit: one that hangs or crashes costs itself alone.
One whose time is up is interrupted, so that it reports what it has, and killed 20 seconds later.
Steps that are timed have the machine to themselves; the others run side by side, as many as there
are cores for.  Output and a summary lie in ``OUT/<device>/``; the summary keeps what earlier runs
found.  Steps are ordered by what would be missed most.  PyTorch for CUDA, pytest and hypothesis are
enough; what else is missing costs the tests that want it.
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
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec
from math import prod
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from torch_corr import MAPS, Problem
from torch_corr.algorithms import MapName, dtype_name
from torch_corr.algorithms.base import FEW, definition_flops, operand_bytes
from torch_corr.algorithms.fft.algorithm import FEW_TAPS
from torch_corr.algorithms.triton.algorithm import Triton
from torch_corr.algorithms.triton.configs import Config, Dot, Product
from torch_corr.planning.machine import machine_of
from torch_corr.request import Request
from torch_corr.testing import TF32_READING, Componentwise, make_operands, require_right

from .ahead import sample_ahead
from .cases import CASES, CUDA_CASES, FORMATS, SWEEPS, Case
from .cubins import OPERANDS, compiled_by_triton, doubted_launches_of, launches_of
from .machine import describe, slug, usable_cores

FLOATS = "float32,float64,float16,bfloat16"

GRACE = 20.0
"""Seconds that an interrupted step has to report."""

_FLOAT32 = (
    "import sys, torch; "
    "torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False; "
    "from torch_corr.__main__ import main; sys.exit(main())"
)
"""``python -m torch_corr``, with float32 as it is on a CPU: cuDNN's default is TF32."""

HELD = (
    "n3c6-x37x41-o6-k7x5-p3,2x1,4-g6",
    "n2c48-x17x19-o40-k3x2-p1-d1x2",
    "n2c9-x20x23-o30-k3-s2-p1-g3",
)
"""Problems that every configuration is held to: tails everywhere, a few programs each."""

AIMED = ("batch", "photo 3x3", "photo 5x5", "dense", "square")
"""What picks, of cases in float32, those that docs/gpu.md predicts with TF32, and dense layers."""

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
    """One process, and what it starts.

    Attributes:
        name: of its log, and on the command line.
        what: it finds out.
        command: without the interpreter.
        minutes: after which it is stopped.
        needs: a program that must be there.
        timed: whether it must have the machine to itself.
        cores: that it keeps busy, where it does not.
    """

    name: str
    what: str
    command: tuple[str, ...]
    minutes: float
    needs: str = ""
    timed: bool = False
    cores: int = 1


def steps(out: Path, cores: int | None = None) -> tuple[Step, ...]:
    """All steps, the ones that would be missed most first; ``cores``: of the machine."""
    cores = usable_cores() if cores is None else cores
    python = sys.executable
    me = (python, "-m", "benchmarks.gpu")
    verify = (python, "-c", _FLOAT32, "verify")
    # A module that wants what is not installed would else end the whole run; and where
    # pytest-benchmark is, it warns of xdist.
    pytest = (python, "-m", "pytest", "-q", "--continue-on-collection-errors", "-p", "no:benchmark")
    # Freed memory goes back at once, so that reading beyond a tensor is seen.
    sanitizer = ("env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1", "compute-sanitizer", "--tool")
    aimed = tuple(word for pattern in AIMED for word in ("--cases", pattern))
    few = ("--no-sweeps", "--algorithms", "auto,triton,fft", "--budget", "0.015")

    def bench(name: str, what: str, minutes: float, *words: str) -> Step:
        command = (python, "-m", "benchmarks", "--device", "cuda", "--no-charts", "--no-memory")
        command += ("--peers", "none", "--out", str(out.parent), *words)
        return Step(name, what, command, minutes, timed=True)

    def tests(name: str, what: str, workers: int, *words: str) -> Step:
        workers = workers if find_spec("xdist") else 1
        many = ("-n", str(workers)) if workers > 1 else ()
        return Step(name, what, (*pytest, *many, *words), 3, cores=workers)

    def kit(name: str, *words: str) -> Step:
        if name != "conv2d":
            words = ("torch_corr:corr2d", "--with", f"algorithm={name}", *words)
        command = (*verify, *words, "--device", "cuda", "--budget", "1m")
        return Step(f"kit {name}", f"the conformance kit on {name}, every dtype", command, 2)

    def held(name: str, *words: str) -> Step:
        return Step(
            f"configurations {name}",
            f"every configuration against the oracle, {name}",
            (*me, "configurations", *words),
            2.5,
        )

    def sanitized(tool: str) -> Step:
        return Step(
            f"sanitizer {tool}",
            f"compute-sanitizer's {tool} on every configuration",
            (*sanitizer, tool, *me, "configurations", "--once"),
            2.5,
            needs="compute-sanitizer",
        )

    return (
        Step("warm", "kernels are compiled, on every core", (*me, "warm"), 6, timed=True),
        bench("cases", "the cases, TF32 off, cudnn.benchmark off and on", 2.65, *few),
        bench(
            "cases tf32",
            "those that were aimed at and dense ones, with TF32",
            0.65,
            *("--tf32", "--dtypes", "float32", *few, *aimed),
        ),
        tests(
            "suite",
            "the test suite's CUDA half, but for the laws of triton",
            max(1, min(8, cores - 8)),
            *("-k", "cuda and not triton"),
        ),
        tests(
            "triton tests",
            "repeatability, graphs, streams, more than 2**31 pixels",
            max(1, min(3, cores // 4)),
            # Others compile for devices that are not there.
            *(
                "tests/algorithms/test_triton.py",
                "-k",
                "not compile and not tables and not float32_is",
            ),
        ),
        kit("triton", "--dtype", FLOATS),
        held("float32", "--dtypes", "float32"),
        held("float16", "--dtypes", "float16"),
        sanitized("memcheck"),
        held("tf32", "--dtypes", "float32", "--tf32"),
        kit("auto", "--dtype", FLOATS),
        held("bfloat16", "--dtypes", "bfloat16"),
        held("float64", "--dtypes", "float64"),
        kit(
            "fft",
            *("--dtype", "float32,float64", "--errors", "normwise", "--without", "non_finite"),
        ),
        kit("unfold", "--dtype", FLOATS),
        kit("conv2d", "torch.nn.functional:conv2d", "--dtype", FLOATS, "--errors", "any"),
        sanitized("racecheck"),
        # Hundreds of small problems, each with kernels of its own to compile.
        tests(
            "triton laws",
            "the laws of the test suite on triton",
            max(1, min(6, cores - 8)),
            *("-k", "cuda and triton", "--ignore", "tests/algorithms/test_triton.py"),
        ),
        # What follows is for time that is left, or for a second half hour.
        Step(
            "timings",
            "every configuration timed by CUDA events",
            (*me, "timings"),
            4,
            timed=True,
        ),
        sanitized("initcheck"),
        bench("all cases", "the whole benchmark suite, TF32 off", 60),
        bench("all cases tf32", "the whole benchmark suite with TF32", 60, "--tf32"),
    )


def main(words: Sequence[str] | None = None) -> int:
    """Run the steps, or one of those that are done here; returns the exit code."""
    options = _parser().parse_args(words)
    if options.work == "warm":
        return warm(options)
    if options.work == "configurations":
        return hold_configurations(torch.device(options.device), options)
    if options.work == "timings":
        return time_configurations(torch.device(options.device))
    if options.dry_run:
        for step in _chosen(options, options.out / "DEVICE"):
            alone = "alone" if step.timed else f"beside others, {step.cores} cores"
            print(f"{step.name}: {step.what} (at most {step.minutes:g} minutes, {alone})")
            print(f"    {shlex.join(step.command)}")
        return 0
    if not torch.cuda.is_available():
        raise SystemExit("PyTorch finds no CUDA device here; --dry-run says what would be run")
    machine = describe(torch.device("cuda"))
    out: Path = options.out / slug(machine, 0)
    out.mkdir(parents=True, exist_ok=True)
    return run(_chosen(options, out), out, machine, options.minutes, pack=options.pack)


def run(
    chosen: Sequence[Step],
    out: Path,
    machine: dict[str, Any],
    minutes: float,
    cores: int | None = None,
    pack: Path | None = None,
) -> int:
    """Run steps until the minutes are spent; ``out`` holds a log for each, and ``summary.json``.

    Args:
        cores: that steps side by side may keep busy; None: those of this machine.
        pack: where an archive of ``out`` and of the benchmarks' results is put, after each step.
    """
    ends = time.monotonic() + 60 * minutes
    cores = usable_cores() if cores is None else cores
    file = out / "summary.json"
    before = json.loads(file.read_text())["steps"] if file.exists() else []
    done: dict[str, dict[str, Any]] = {}
    waiting, running = list(chosen), list[_Running]()

    def tell(step: Step, outcome: str, seconds: float = 0.0) -> None:
        done[step.name] = {**asdict(step), "outcome": outcome, "seconds": round(seconds, 1)}
        names = [each.name for each in chosen]
        kept = [each for each in before if each["name"] not in names]
        found = [done[name] for name in names if name in done]
        file.write_text(json.dumps({"machine": machine, "steps": kept + found}, indent=1) + "\n")
        print(f"{step.name}: {outcome} after {seconds:.1f} s", flush=True)
        if pack is not None:
            _pack(out, pack)

    try:
        while waiting or running:
            for each in running:
                if (outcome := each.outcome()) is not None:
                    running = [other for other in running if other is not each]
                    tell(each.step, outcome, time.monotonic() - each.started)
            for step in _startable(waiting, [each.step for each in running], cores):
                waiting.remove(step)
                left = ends - time.monotonic()
                if step.needs and shutil.which(step.needs, path=_path()) is None:
                    tell(step, f"skipped: no {step.needs} here")
                elif left < min(10, 60 * step.minutes):
                    tell(step, "skipped: no time left")
                else:
                    log = out / f"{step.name.replace(' ', '-')}.log"
                    running.append(_Running(step, log, min(60 * step.minutes, left)))
            time.sleep(0.05)
    finally:
        for each in running:
            each.end()
    fine = [
        each["outcome"] == "exit 0" or each["outcome"].startswith("skipped")
        for each in done.values()
    ]
    return 0 if all(fine) else 1


def _startable(waiting: Sequence[Step], running: Sequence[Step], cores: int) -> list[Step]:
    """What may start now: the next if it is timed and nothing runs; else what there is room for.

    No step overtakes one that is timed; others overtake those that there is no room for.
    """
    if waiting and waiting[0].timed:
        return [] if running else [waiting[0]]
    found: list[Step] = []
    if any(step.timed for step in running):
        return found
    for step in waiting:
        if step.timed:
            break
        busy = sum(each.cores for each in (*running, *found))
        if not busy or busy + step.cores <= cores:
            found.append(step)
    return found


def _may_be_interrupted() -> None:
    """What a shell starts in the background ignores interrupts, and all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class _Running:
    """A step's process, in a group of processes that ends with it."""

    def __init__(self, step: Step, log: Path, seconds: float) -> None:
        self.step, self.started = step, time.monotonic()
        self.stops = self.started + seconds
        self.interrupted = False
        environment = {**os.environ, "PATH": _path()}
        if not step.timed:
            # Each of its processes; all cores for each would be slower than one.
            environment["OMP_NUM_THREADS"] = "1"
        with log.open("w") as file:
            self.process = subprocess.Popen(
                step.command,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment,
                preexec_fn=_may_be_interrupted,
            )

    def outcome(self) -> str | None:
        """How it went, in words; None while it goes on.  It is interrupted when its time is up."""
        code, now = self.process.poll(), time.monotonic()
        if code is None and not self.interrupted and now > self.stops:
            self.process.send_signal(signal.SIGINT)
            self.interrupted = True
        if code is None and now < self.stops + GRACE:
            return None
        self.end()
        return "stopped: out of time" if self.interrupted else f"exit {code}"

    def end(self) -> None:
        """What it has started, and itself: they would hold the device in the next step's way."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def _pack(out: Path, archive: Path) -> None:
    """Logs, the summary and the benchmarks' results of this device, in one file."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive.with_name(archive.name + ".part"), "w:gz") as file:
        for folder in (out, out.with_name(out.name + "-tf32")):
            if folder.exists():
                file.add(folder, folder.name)
    archive.with_name(archive.name + ".part").replace(archive)


def _path() -> str:
    """Where programs are looked for: CUDA's own tools are often not on the path."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/cuda/bin"])


class Kind(NamedTuple):
    """A form to compile: a problem's spelling, and what its launches are for."""

    spelling: str
    map: MapName
    dtype: str
    config: Config
    last: bool = False
    """Whether operands are channels_last."""
    tf32: bool = False
    behind: bool = False
    """Whether it is behind a transform."""


def warm(options: argparse.Namespace) -> int:
    """Compile, into Triton's cache, all that the other steps are known to need; prints a count.

    Without a GPU, for the ``--architecture`` named; the cache is of use at the same path alone,
    with the same Python and Triton.  The launchers that a C compiler makes come with it where there
    is a libcuda to link with.
    """
    architecture = options.architecture
    if architecture is None:
        major, minor = torch.cuda.get_device_capability(options.device)
        architecture = 10 * major + minor
    started, kinds = time.monotonic(), list(dict.fromkeys(needed()))
    print(f"{len(kinds)} forms of problems, for sm_{architecture}", flush=True)
    failures = kernels = done = 0
    # CUDA does not bear a fork.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs or usable_cores(), mp_context=spawn) as pool:
        try:
            work = [(kind, architecture) for kind in kinds]
            for done, (count, failure) in enumerate(pool.map(_compile, work, chunksize=2), 1):
                kernels += count
                failures += bool(failure)
                if failure:
                    print(f"NOT COMPILED: {failure}", flush=True)
                if done % 50 == 0:
                    print(f"{done} after {time.monotonic() - started:.0f} s", flush=True)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            print("interrupted: what is compiled is kept")
    print(f"{kernels} launches of {done} forms in {time.monotonic() - started:.0f} s", flush=True)
    return 1 if failures else 0


def needed() -> Iterator[Kind]:
    """What the steps launch, as far as it is known, what is timed first."""
    for tf32 in (False, True):
        for case in (*CUDA_CASES, *CASES):
            few = tf32 and (
                case.dtype != "float32" or not any(case.matches(pattern) for pattern in AIMED)
            )
            if few or case.group in SWEEPS or getattr(torch, case.dtype).is_complex:
                continue
            with _tf32(tf32):
                for map in MAPS:
                    config = Triton()._config(map, case.problem, case.torch_dtype)
                    last = case.layout == "channels_last"
                    yield Kind(str(case.problem), map, case.dtype, config, last, tf32)
                    if not tf32 and _may_be_behind(case):
                        yield Kind(str(case.problem), map, case.dtype, config, behind=True)
    yield from _held(["float32", "float16"], tf32=False)
    yield from _held(["float32"], tf32=True)
    yield from _held(["bfloat16", "float64"], tf32=False)
    with _tf32(False):
        for case, map, ways in _ways():
            for way in ways:
                config = way._config(map, case.problem, case.torch_dtype)
                yield Kind(str(case.problem), map, case.dtype, config, case.layout != "contiguous")


def _may_be_behind(case: Case) -> bool:
    """Whether ``auto`` may take a transform, as it does of dense layers under large kernels."""
    problem = case.problem
    dense = problem.group_in * problem.group_out > FEW
    large = prod(problem.kernel) >= FEW_TAPS
    return dense and large and case.dtype in ("float32", "float64")


def _compile(work: tuple[Kind, int]) -> tuple[int, str]:
    """How many launches a form has, and what was said where it could not be compiled."""
    kind, architecture = work
    count = 0
    try:
        problem, dtype = Problem.parse(kind.spelling), getattr(torch, kind.dtype)
        with _tf32(kind.tf32):
            launches = (
                doubted_launches_of(problem, kind.map, dtype, kind.config)
                if kind.behind
                else launches_of(problem, kind.map, dtype, kind.config, kind.last)
            )
            for launch in launches:
                made = compiled_by_triton(launch, architecture)
                _make_launcher(made)
                count += 1
    except Exception as error:  # it will be met again, and told with its case, where it is run
        return count, f"{kind.config.name} {kind.map} {kind.dtype} {kind.spelling}: {error}"
    return count, ""


def _make_launcher(made: Any) -> None:
    """What calls the driver, compiled from C; left to the first launch where there is no driver."""
    driver: Any = import_module("triton.backends.nvidia.driver")
    with suppress(AssertionError, ImportError, subprocess.CalledProcessError):
        driver.CudaLauncher(made.src, made.metadata)


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """As it is set where a form is made, so is its precision."""
    cudnn = torch.backends.cudnn
    before, cudnn.allow_tf32 = cudnn.allow_tf32, allowed
    try:
        yield
    finally:
        cudnn.allow_tf32 = before


def _held(dtypes: Sequence[str], tf32: bool, once: bool = False) -> Iterator[Kind]:
    """What configurations are held to; ``once``: in one layout, and each its own way.

    A sanitizer makes every launch slow.
    """
    for spelling in HELD[:2] if once else HELD:
        problem = Problem.parse(spelling)
        for dtype in dtypes:
            for map in MAPS:
                with _tf32(tf32):
                    configs = Triton().configs(problem, map, getattr(torch, dtype))
                for config in configs:
                    if once and isinstance(config, Dot) != (spelling == HELD[1]):
                        continue
                    # Sums one by one know no TF32.
                    if tf32 and not isinstance(config, Product):
                        continue
                    for last in (False,) if once else (False, True):
                        yield Kind(spelling, map, dtype, config, last, tf32)


def hold_configurations(device: torch.device, options: argparse.Namespace) -> int:
    """Every configuration and map against the oracle; prints what is wrong, and a count."""
    dtypes = options.dtypes.split(",") if options.dtypes else FLOATS.split(",")
    kinds = list(_held(["float32"] if options.once else dtypes, options.tf32, options.once))
    torch.backends.cudnn.allow_tf32 = options.tf32
    wrong = right = 0
    try:
        for kind in kinds:
            layout = "channels_last" if kind.last else "contiguous"
            where = f"{kind.config.name} {kind.map} {kind.dtype} {layout} {kind.spelling}"
            try:
                _hold(kind, device)
                right += 1
                print(f"right: {where}", flush=True)
            except Exception as error:  # Triton's own derive from nothing narrower; the next is due
                wrong += 1
                print(f"WRONG: {where}: {type(error).__name__}: {error}", flush=True)
    finally:
        print(f"{right} right, {wrong} wrong, of {len(kinds)}", flush=True)
    return 1 if wrong else 0


def _hold(kind: Kind, device: torch.device) -> None:
    problem, map = Problem.parse(kind.spelling), kind.map
    layout = "channels_last" if kind.last else "contiguous"
    every = make_operands(problem, getattr(torch, kind.dtype), device, layouts=(layout,) * 3)
    operands = {name: getattr(every, name) for name in OPERANDS[map]}
    result = getattr(_fixed(kind.config, map), map)(problem, *operands.values())
    slots = operands.get("input"), operands.get("weight"), operands.get("output")
    errors = Componentwise(operands=TF32_READING) if kind.tf32 else None
    require_right("result", result, problem, slots, errors)


def _fixed(config: Config, map: MapName) -> Triton:
    return Triton(weight=config.name) if map == "grad_weight" else Triton(correlate=config.name)


def time_configurations(device: torch.device) -> int:
    """Microseconds of each configuration, the rule's own marked, for each case and map."""
    torch.backends.cudnn.allow_tf32 = False
    failed = False
    for case, map, ways in _ways():
        problem, dtype = case.problem, case.torch_dtype
        operands = [
            torch.randn(getattr(problem, f"{slot}_shape"), device=device)
            .to(dtype)
            .contiguous(memory_format=FORMATS[case.layout])
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


def _ways() -> Iterator[tuple[Case, MapName, tuple[Triton, ...]]]:
    """What configurations are timed on: the rule's own first, then the others of its kind."""
    for case in TIMED:
        for map in MAPS:
            rule = Triton()
            request = Request(case.problem, map, torch.device("cuda"), case.torch_dtype)
            others = rule.variants(request)
            yield case, map, (rule, *(each for each in others if isinstance(each, Triton)))


def _floor(case: Case, device: torch.device) -> float:
    """Microseconds that the bytes or the operations take at least, by the device's own figures."""
    rates = machine_of(device, case.torch_dtype).rates(case.torch_dtype)
    moved = operand_bytes(case.problem, case.torch_dtype) / rates.bytes
    flops = definition_flops(case.problem, case.torch_dtype) / rates.matmul_flops
    return 1e6 * max(moved, flops)


def seconds(run: Callable[[], Any], samples: int = 5) -> float:
    """Median seconds of a call on the device, the host ahead of it."""
    run()
    once = sample_ahead(run, 1, host=1e-3)
    number = max(1, min(20, int(3e-3 / once.device)))
    return median(sample_ahead(run, number, once.host).device for _ in range(samples))


def _chosen(options: argparse.Namespace, out: Path) -> list[Step]:
    every = steps(out)
    known = [step.name for step in every]
    names = [name.strip() for name in options.steps.split(",")] if options.steps else known
    for name in (*names, *([options.after] if options.after else [])):
        if name not in known:
            raise SystemExit(f"no step {name!r}; there are {', '.join(known)}")
    first = known.index(options.after) + 1 if options.after else 0
    gone = {"warm"} if options.warmed else set()
    return [step for step in every[first:] if step.name in names and step.name not in gone]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description="Everything that a GPU is needed for, in one command.",
    )
    add = parser.add_argument
    add("work", nargs="?", choices=("all", "configurations", "timings", "warm"), default="all")
    add("--dry-run", action="store_true", help="say what would be run, and stop")
    add("--steps", metavar="NAMES", help="comma-separated; default: all")
    add("--after", metavar="STEP", help="only the steps after this one")
    add("--minutes", type=float, default=30, help="for all steps together (default: 30)")
    add("--out", type=Path, default=Path("benchmarks/results"), metavar="DIR")
    add("--warmed", action="store_true", help="kernels are in Triton's cache: leave out 'warm'")
    add("--pack", type=Path, metavar="FILE", help="an archive of all that was found (.tar.gz)")
    add("--device", default="cuda", help="of the other works (default: cuda)")
    add("--dtypes", metavar="NAMES", help="configurations: comma-separated; default: the floats")
    add("--tf32", action="store_true", help="configurations: products with TF32")
    add("--once", action="store_true", help="configurations: in float32 and one layout alone")
    add("--architecture", type=int, metavar="90", help="warm: for which (default: the device's)")
    add("-j", "--jobs", type=int, metavar="N", help="warm: processes (default: all cores)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
