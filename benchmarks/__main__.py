"""``python -m benchmarks``: run, report, compare, fill the README.

python -m benchmarks [options]           run, then report
python -m benchmarks report RESULTS.json regenerate the table and the charts
python -m benchmarks compare OLD NEW     what changed beyond noise
python -m benchmarks merge OLD NEW       put what was run again into earlier results
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
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from torch_corr.algorithms import MAPS

from . import compare, fit, merge, readme, report
from .cases import CALLS, CASES, CUDA_CASES, SWEEPS, WORKS, Case, Work, select
from .contenders import Contender, our_contenders, torch_contenders
from .machine import describe, measure_peaks, slug, usable_cores
from .measure import LEAST, Settings, measure
from .peers import peers, set_peer_threads
from .progress import Progress
from .results import Results


def main(arguments: list[str] | None = None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    commands = {
        "report": report.main,
        "compare": compare.main,
        "merge": merge.main,
        "readme": readme.main,
        "fit": fit.main,
    }
    if words and words[0] in commands:
        return commands[words[0]](words[1:])
    return run(words)


def run(words: list[str]) -> int:
    options = _parser().parse_args(words)
    options.words = words
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: PyTorch finds no CUDA device here")
    settings = _settings(options, device)
    settings.apply()
    set_peer_threads(settings.threads)
    contenders = _contenders(options, device)
    pieces = _pieces(options, device)
    if options.list:
        for case in dict.fromkeys(case for case, _ in pieces):
            print(f"{case.name:<26} {case.dtype:<10} {case.problem!s:<50} {case.source}")
        return 0
    machine = describe(settings.device)
    # TF32 makes another machine of it: whoever reads a report knows which.
    name = slug(machine, settings.threads) + ("-tf32" if options.tf32 else "")
    folder: Path = options.out / name
    _require_writable(folder)
    _print_conditions(machine, settings, contenders, pieces)
    results = _blank(options, settings, machine, contenders, pieces)
    _measure_all(results, settings, contenders, pieces, folder / "unfinished.json")
    results.save(folder / "results.json")
    (folder / "unfinished.json").unlink(missing_ok=True)
    written = report.write(folder / "results.json", charts=not options.no_charts)
    print(report.summary(results))
    print("\nwritten:", *(folder / "results.json", *written), sep="\n  ")
    wrong = [
        row
        for row in results.rows
        if row.verdict == "wrong" and results.kind(row.contender) == "ours"
    ]
    for row in wrong:
        print(f"WRONG: {row.contender}, {row.case}, {row.work}: {row.note}", file=sys.stderr)
    return 1 if wrong else 0


def _blank(
    options: argparse.Namespace,
    settings: Settings,
    machine: dict[str, Any],
    contenders: list[Contender],
    pieces: list[tuple[Case, Work]],
) -> Results:
    """The results of a run that is still to be made."""
    return Results(
        machine=machine,
        settings={
            "command": shlex.join(["python", "-m", "benchmarks", *_said(options)]),
            "started": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            "seconds": 0,
            "device": settings.device.type,
            "threads": settings.threads,
            "quick": options.quick,
            "budget": settings.budget,
            "tf32": settings.tf32,
            "flush_denormal": True,
            "seed": settings.seed,
        },
        peaks={},
        cases=[
            {
                "name": case.name,
                "problem": str(case.problem),
                "group": case.group,
                "dtype": case.dtype,
                "source": case.source,
                **({} if case.layout == "contiguous" else {"layout": case.layout}),
            }
            for case in dict.fromkeys(case for case, _ in pieces)
        ],
        contenders=[
            {
                "name": each.name,
                "kind": each.kind,
                "version": each.version() if each.absent() is None else None,
                "absent": each.absent(),
            }
            for each in contenders
        ],
        rows=[],
    )


def _measure_all(
    results: Results,
    settings: Settings,
    contenders: list[Contender],
    pieces: list[tuple[Case, Work]],
    draft: Path,
) -> None:
    """Fill the results; what there is so far is kept in ``draft``, should the run be cut off."""
    dtypes = list(dict.fromkeys([torch.float32, *(case.torch_dtype for case, _ in pieces)]))
    progress = Progress(len(pieces))
    started = time.monotonic()

    def tell(done: int) -> None:
        results.settings["seconds"] = round(time.monotonic() - started)
        results.settings["unfinished"] = f"{done} of {len(pieces)} pieces of work were measured"

    tell(0)
    try:
        progress.say("measuring the machine's matrix product and copy")
        results.peaks = measure_peaks(settings.device, dtypes, settings.threads)
        for done, (case, work) in enumerate(pieces):
            results.rows += measure(case, work, contenders, settings, progress)
            tell(done + 1)
            results.save(draft)
    except KeyboardInterrupt:
        progress.say("interrupted: reporting what there is")
    else:
        del results.settings["unfinished"]
    progress.close()
    results.machine["load_average_after"] = describe(settings.device)["load_average"]


def _require_writable(folder: Path) -> None:
    """Fail before an hour of measuring, not after it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SystemExit(f"--out: cannot write in {folder}: {error.strerror}") from None


def _print_conditions(
    machine: dict[str, Any],
    settings: Settings,
    contenders: list[Contender],
    pieces: list[tuple[Case, Work]],
) -> None:
    """The machine, what is the same for all, and who cannot take part, with the reason."""
    said = [
        f"{machine.get('gpu') or machine['cpu']}, {machine['torch_cpu_capability']}, "
        f"{machine['cores_usable']} cores usable, load {machine['load_average']}",
        f"torch {machine['torch']}, {settings.threads} threads for all, TF32 "
        f"{'on' if settings.tf32 else 'off'} for all, subnormals flushed to zero, "
        f"seed {settings.seed}",
    ]
    for each in contenders:
        if (why := each.absent()) is not None:
            said.append(f"absent: {each.name}: {why}")
        elif (why := _refuses_all(each, settings.device, pieces)) is not None:
            said.append(f"takes no part: {each.name}: {why}")
    print("\n".join(said), file=sys.stderr)


def _said(options: argparse.Namespace) -> list[str]:
    words: list[str] = options.words
    return words


def _refuses_all(
    contender: Contender, device: torch.device, pieces: list[tuple[Case, Work]]
) -> str | None:
    """Why a contender does none of the work; None if it does some."""
    sentences: tuple[str, ...] = ()
    for case, work in pieces:
        sentences = contender.refusals(case.problem, work, device, case.torch_dtype)
        if not sentences:
            return None
    return "; ".join(sentences)


def _pieces(options: argparse.Namespace, device: torch.device) -> list[tuple[Case, Work]]:
    """What is to be measured.

    Raises:
        SystemExit: a pattern that picks no case, or nothing left of those picked.
    """
    patterns: list[str] = options.cases or []
    known = [*CASES, *(CUDA_CASES if device.type == "cuda" else ())]
    for pattern in patterns:
        if not any(case.matches(pattern) for case in known):
            raise SystemExit(
                f"no case matches {pattern!r}; python -m benchmarks --list shows them all"
            )
    cases = select(patterns, options.quick)
    if device.type == "cuda" and not options.quick:
        large = [
            case
            for case in CUDA_CASES
            if not patterns or any(case.matches(pattern) for pattern in patterns)
        ]
        # What is there for a GPU goes first and what takes long last, should the run be cut off.
        cases = large + sorted(cases, key=lambda case: case.problem.multiplications)
    cases = [
        case
        for case in cases
        if (options.dtypes is None or case.dtype in options.dtypes)
        and not (options.no_sweeps and case.group in SWEEPS)
    ]
    pieces = [
        (case, work)
        for case in cases
        for work in (case.quick if options.quick else case.works)
        if options.maps is None or work in options.maps
    ]
    if not pieces:
        calls = " and ".join(CALLS)
        way = "leave --quick out" if options.quick else f"{calls} are timed on tiny cases alone"
        raise SystemExit(f"nothing to measure: these cases are not timed in these maps; {way}")
    return pieces


def _contenders(options: argparse.Namespace, device: torch.device) -> list[Contender]:
    found = our_contenders(options.algorithms) + torch_contenders(device)
    if options.peers == ["none"]:
        return found
    return found + peers(None if options.peers == ["all"] else options.peers)


def _settings(options: argparse.Namespace, device: torch.device) -> Settings:
    quick, on_cuda = options.quick, device.type == "cuda"
    budget = options.budget or (0.06 if quick else 0.5)
    sample = 0.002 if quick else 0.005
    return Settings(
        device=device,
        threads=options.threads or usable_cores(),
        budget=budget,
        # A device's own time is steadier, and events tell it to half a microsecond.
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
        raise argparse.ArgumentTypeError(f"{text!r} names nothing")
    return names


def _pattern(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("an empty pattern; leave --cases out to have all")
    return text


def _works(text: str) -> list[Work]:
    known = {str(work): work for work in WORKS}
    names = [
        name
        for word in _names(text)
        for name in ([str(map) for map in MAPS] if word == "maps" else [word])
    ]
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}, maps")
    return [known[name] for name in names]


def _above_zero(kind: Callable[[str], float]) -> Callable[[str], Any]:
    """Reads a number of this kind."""

    def read(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            number = 0
        if not 0 < number < math.inf:
            raise argparse.ArgumentTypeError(f"{text!r} is no such number above 0")
        return number

    return read


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure torch_corr against PyTorch and peers: correct first, then timed.",
        epilog="Other commands: report RESULTS.json; compare OLD NEW; merge OLD NEW; "
        "readme [--check]; fit.",
    )
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add(
        "--cases",
        type=_pattern,
        metavar="PATTERN",
        action="append",
        help="glob, or part of a name, group, dtype or spelling; may be repeated",
    )
    add("--maps", type=_works, help=f"comma-separated, of {', '.join(WORKS)}; 'maps' is three")
    add(
        "--algorithms",
        type=_names,
        metavar="NAMES",
        help="comma-separated; default: auto and all there are",
    )
    add(
        "--peers",
        type=_names,
        default=["all"],
        metavar="NAMES",
        help="comma-separated, or all (default), or none",
    )
    add("--dtypes", type=_names, metavar="NAMES", help="comma-separated; default: all")
    add("--no-sweeps", action="store_true", help="leave out the cases of growing size")
    add("--quick", action="store_true", help="a dozen cases, under 2 minutes on two cores")
    add(
        "--out",
        type=Path,
        default=Path("benchmark-results"),
        metavar="DIR",
        help="a folder per machine is made in it (default: benchmark-results)",
    )
    add("--threads", type=_above_zero(int), help="default: all usable cores")
    add(
        "--budget",
        type=_above_zero(float),
        metavar="SECONDS",
        help="of samples per contender and work",
    )
    add("--tf32", action="store_true", help="let float32 use TF32 on CUDA, for all")
    add("--seed", type=int, help="of operands; default: fresh")
    add("--no-memory", action="store_true", help="no trial process, no peak memory")
    add("--no-charts", action="store_true", help="no charts (they need matplotlib)")
    add("--list", action="store_true", help="print the cases and stop")
    parser.set_defaults(words=[])
    return parser


if __name__ == "__main__":
    sys.exit(main())
