"""``python -m benchmarks``: measure, report, compare, and fill the README.

python -m benchmarks [options]           measure, then report
python -m benchmarks report RESULTS.json write the report and the charts again
python -m benchmarks compare OLD NEW     print changes beyond noise
python -m benchmarks readme [--check]    fill README.md from benchmarks/results
python -m benchmarks fit ...             fit the planner's factors, judge its choices
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import secrets
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch

from . import compare, fit, readme, report
from .cases import CALLS, CASES, CUDA_CASES, WORKS, Case, Task, Work, select
from .contenders import Contender, our_contenders, torch_contenders
from .machine import describe, measure_peaks, slug, usable_cores
from .measure import LEAST, Settings, measure
from .peers import peers, set_peer_threads
from .results import Results

Piece: TypeAlias = tuple[Case, Work]

COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "report": report.main,
    "compare": compare.main,
    "readme": readme.main,
    "fit": fit.main,
}


def main(arguments: list[str] | None = None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    if words and words[0] in COMMANDS:
        return COMMANDS[words[0]](words[1:])
    return run(words)


def run(words: list[str]) -> int:
    """Measure, save and report; returns 1 if a result of ours was wrong."""
    options = parser().parse_args(words)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: PyTorch finds no CUDA device here")
    settings = settings_of(options)
    settings.apply()
    set_peer_threads(settings.threads)
    contenders = contenders_of(options)
    work = pieces(options)
    cases = list(dict.fromkeys(case for case, _ in work))
    if options.list:
        for case in cases:
            print(f"{case.name:<26} {case.dtype:<10} {case.problem!s:<50} {case.source}")
        return 0
    machine = describe(device)
    folder = options.out / (slug(machine, settings.threads) + ("-tf32" if options.tf32 else ""))
    results = Results(
        machine=machine,
        settings={
            "command": shlex.join(["python", "-m", "benchmarks", *words]),
            "started": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            "seconds": 0,
            "device": device.type,
            "threads": settings.threads,
            "quick": options.quick,
            "budget": settings.budget,
            "tf32": settings.tf32,
            "flush_denormal": True,
            "seed": settings.seed,
        },
        peaks={},
        cases=[case.entry for case in cases],
        contenders=[each.entry for each in contenders],
        rows=[],
    )
    print(report.conditions(results), file=sys.stderr)
    _print_absent(contenders, work, device)
    path = folder / "results.json"
    _measure_all(results, settings, contenders, work, path)
    written = report.write(path)
    print(report.summary(results))
    print("\nwritten:", path, *written, sep="\n  ")
    wrong = [
        row
        for row in results.rows
        if row.verdict == "wrong" and results.kind(row.contender) == "ours"
    ]
    for row in wrong:
        print(f"WRONG: {row.contender}, {row.case}, {row.work}: {row.note}", file=sys.stderr)
    return 1 if wrong else 0


def _measure_all(
    results: Results,
    settings: Settings,
    contenders: Sequence[Contender],
    work: Sequence[Piece],
    path: Path,
) -> None:
    """Add the rows of all pieces, and save the results after each."""
    dtypes = list(dict.fromkeys([torch.float32, *(case.torch_dtype for case, _ in work)]))
    started = time.monotonic()

    def save(done: int) -> None:
        results.settings["seconds"] = round(time.monotonic() - started)
        results.settings["unfinished"] = f"{done} of {len(work)} pieces of work were measured"
        results.save(path)

    try:
        save(0)
    except OSError as error:
        raise SystemExit(f"--out: cannot write in {path.parent}: {error.strerror}") from None
    try:
        results.peaks = measure_peaks(settings.device, dtypes, settings.threads)
        for done, (case, piece) in enumerate(work):
            elapsed = (time.monotonic() - started) / 60
            left = f"{elapsed / done * (len(work) - done):.0f}" if done else "?"
            progress = f"{done} of {len(work)}, {elapsed:.0f} min elapsed, {left} left"
            print(f"{progress}: {case.name}, {piece}", file=sys.stderr, flush=True)
            results.rows += measure(case, piece, contenders, settings)
            save(done + 1)
        del results.settings["unfinished"]
    except KeyboardInterrupt:
        print("\ninterrupted: reporting the pieces measured so far", file=sys.stderr)
    results.machine["load_average_after"] = describe(settings.device)["load_average"]
    results.save(path)


def _print_absent(
    contenders: Sequence[Contender], work: Sequence[Piece], device: torch.device
) -> None:
    """The contenders that cannot run, with the reason."""
    for each in contenders:
        if (reason := each.absent()) is not None:
            print(f"absent: {each.name}: {reason}", file=sys.stderr)
            continue
        reasons = [
            each.refusals(Task(case.problem, piece, case.torch_dtype, device))
            for case, piece in work
        ]
        if all(reasons):
            print(f"refuses all: {each.name}: {'; '.join(reasons[-1])}", file=sys.stderr)


def pieces(options: argparse.Namespace) -> list[Piece]:
    """The pieces of work to measure.

    Raises:
        SystemExit: a pattern matches no case, or nothing is left.
    """
    patterns: list[str] = options.cases or []
    known = (*CASES, *CUDA_CASES) if options.device == "cuda" else CASES
    for pattern in patterns:
        if not any(case.matches(pattern) for case in known):
            raise SystemExit(
                f"no case matches {pattern!r}; python -m benchmarks --list shows them all"
            )
    found = [
        (case, work)
        for case in select(known, patterns)
        for work in (case.quick if options.quick else case.works)
        if options.maps is None or work in options.maps
    ]
    if not found:
        calls = " and ".join(CALLS)
        way = "leave --quick out" if options.quick else f"{calls} are timed on tiny cases alone"
        raise SystemExit(f"nothing to measure: these cases are not timed in these maps; {way}")
    return found


def contenders_of(options: argparse.Namespace) -> list[Contender]:
    device = torch.device(options.device)
    found = our_contenders(options.algorithms) + torch_contenders(device)
    if options.peers != ["none"]:
        found += peers(None if options.peers == ["all"] else options.peers)
    return found


def settings_of(options: argparse.Namespace) -> Settings:
    """The settings of a run with these options."""
    quick, on_cuda = options.quick, options.device == "cuda"
    budget = options.budget or (0.06 if quick else 0.5)
    sample = 0.002 if quick else 0.005
    return Settings(
        device=torch.device(options.device),
        threads=options.threads or usable_cores(),
        budget=budget,
        # The device's own time varies less, and events resolve half a microsecond.
        sample=min(sample, budget / 6) if on_cuda else sample,
        least=5 if on_cuda else LEAST,
        most=12 if quick or on_cuda else 40,
        patience=1.5 if quick else 10.0,
        memory=not options.no_memory and "forkserver" in multiprocessing.get_all_start_methods(),
        tf32=options.tf32,
        seed=secrets.randbits(32) if options.seed is None else options.seed,
    )


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError(f"{text!r} contains no name")
    return names


def _works(text: str) -> list[str]:
    names = _names(text)
    for name in names:
        if name not in WORKS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(WORKS)}")
    return names


def _above_zero(kind: Callable[[str], float]) -> Callable[[str], Any]:
    """Parses a positive number of this kind."""

    def read(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            number = 0
        if not 0 < number < math.inf:
            raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
        return number

    return read


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure torch_corr against PyTorch and peers; every result is checked.",
        epilog="Other commands: report RESULTS.json; compare OLD NEW; readme [--check]; fit.",
    )
    add = found.add_argument
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add(
        "--cases",
        metavar="PATTERN",
        action="append",
        help="glob, or part of a name, group, dtype or problem; may be repeated",
    )
    add("--maps", type=_works, help=f"comma-separated, of {', '.join(WORKS)}")
    add("--algorithms", type=_names, metavar="NAMES", help="comma-separated; default: auto and all")
    add(
        "--peers",
        type=_names,
        default=["all"],
        metavar="NAMES",
        help="comma-separated, or all (default), or none",
    )
    add("--quick", action="store_true", help="a dozen cases, under 2 minutes on two cores")
    add(
        "--out",
        type=Path,
        default=Path("benchmark-results"),
        metavar="DIR",
        help="will contain a folder per machine (default: benchmark-results)",
    )
    add("--threads", type=_above_zero(int), help="default: all usable cores")
    add(
        "--budget",
        type=_above_zero(float),
        metavar="SECONDS",
        help="of samples per contender and piece of work",
    )
    add("--tf32", action="store_true", help="let float32 use TF32 on CUDA, for all")
    add("--seed", type=int, help="of operands; default: random")
    add("--no-memory", action="store_true", help="no first run in a process, no peak memory")
    add("--list", action="store_true", help="print the cases and stop")
    return found


if __name__ == "__main__":
    sys.exit(main())
