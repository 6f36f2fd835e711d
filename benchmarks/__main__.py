"""``python -m benchmarks``: run, report, compare, fill the README.

python -m benchmarks [options]           run, then report
python -m benchmarks report RESULTS.json regenerate the table and the charts
python -m benchmarks compare OLD NEW     what changed beyond noise
python -m benchmarks readme [--check]    fill README.md from benchmarks/results
python -m benchmarks fit ...             fit the planner's factors, judge its choices
"""

from __future__ import annotations

import argparse
import multiprocessing
import secrets
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import torch

from torch_corr.algorithms import MAPS

from . import compare, fit, readme, report
from .cases import CUDA_CASES, WORKS, Case, Work, select
from .contenders import Contender, our_contenders, torch_contenders
from .machine import describe, measure_peaks, slug, usable_cores
from .measure import Settings, measure
from .peers import peers, set_peer_threads
from .progress import Progress
from .results import Results, Row

HERE = Path(__file__).parent


def main(arguments: list[str] | None = None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    commands = {
        "report": report.main,
        "compare": compare.main,
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
    works = options.maps or list(WORKS)
    pieces = _pieces(options, device, works)
    if not pieces:
        raise SystemExit("no case matches; python -m benchmarks --list shows them all")
    if options.list:
        for case in dict.fromkeys(case for case, _ in pieces):
            print(f"{case.name:<26} {case.dtype:<10} {case.problem!s:<50} {case.source}")
        return 0
    results = _measure_all(options, settings, contenders, pieces)
    out = options.out / slug(results.machine, settings.threads)
    results.save(out / "results.json")
    report.write(out / "results.json", charts=not options.no_charts)
    print(report.summary(results))
    print(f"\nwritten: {out}/results.json, report.md and charts")
    wrong = [
        row
        for row in results.rows
        if row.verdict == "wrong" and results.kind(row.contender) == "ours"
    ]
    for row in wrong:
        print(f"WRONG: {row.contender}, {row.case}, {row.work}: {row.note}", file=sys.stderr)
    return 1 if wrong else 0


def _measure_all(
    options: argparse.Namespace,
    settings: Settings,
    contenders: list[Contender],
    pieces: list[tuple[Case, Work]],
) -> Results:
    machine = describe(settings.device)
    _print_conditions(machine, settings, contenders)
    dtypes = list(dict.fromkeys([torch.float32, *(case.torch_dtype for case, _ in pieces)]))
    cases = list(dict.fromkeys(case for case, _ in pieces))
    progress = Progress(len(pieces))
    started = time.time()
    progress.say("measuring the machine's matrix product and copy")
    peaks = measure_peaks(settings.device, dtypes, settings.threads)
    rows: list[Row] = []
    try:
        for case, work in pieces:
            rows += measure(case, work, contenders, settings, progress)
    except KeyboardInterrupt:
        progress.say("interrupted: reporting what there is")
    progress.close()
    machine["load_average_after"] = describe(settings.device)["load_average"]
    return Results(
        machine=machine,
        settings={
            "command": shlex.join(["python", "-m", "benchmarks", *_said(options)]),
            "started": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(started)),
            "seconds": round(time.time() - started),
            "device": settings.device.type,
            "threads": settings.threads,
            "quick": options.quick,
            "budget": settings.budget,
            "tf32": settings.tf32,
            "flush_denormal": True,
            "seed": settings.seed,
        },
        peaks=peaks,
        cases=[
            {
                "name": case.name,
                "problem": str(case.problem),
                "group": case.group,
                "dtype": case.dtype,
                "source": case.source,
            }
            for case in cases
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
        rows=rows,
    )


def _print_conditions(
    machine: dict[str, Any], settings: Settings, contenders: list[Contender]
) -> None:
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
    print("\n".join(said), file=sys.stderr)


def _said(options: argparse.Namespace) -> list[str]:
    words: list[str] = options.words
    return words


def _pieces(
    options: argparse.Namespace, device: torch.device, works: list[Work]
) -> list[tuple[Case, Work]]:
    cases = select(options.cases or [], options.quick)
    if device.type == "cuda" and not options.quick:
        cases += [
            case
            for case in CUDA_CASES
            if not options.cases or any(case.matches(each) for each in options.cases)
        ]
    return [
        (case, work)
        for case in cases
        for work in (case.quick if options.quick else case.works)
        if work in works
    ]


def _contenders(options: argparse.Namespace, device: torch.device) -> list[Contender]:
    chosen = None if options.peers in (None, "all") else _names(options.peers)
    found = our_contenders(_names(options.algorithms) if options.algorithms else None)
    found += torch_contenders(device)
    return found + (peers(chosen) if options.peers != "none" else [])


def _settings(options: argparse.Namespace, device: torch.device) -> Settings:
    quick = options.quick
    return Settings(
        device=device,
        threads=options.threads or usable_cores(),
        budget=options.budget or (0.06 if quick else 0.5),
        sample=0.002 if quick else 0.005,
        most=12 if quick else 40,
        patience=1.5 if quick else 10.0,
        memory=not options.no_memory and "forkserver" in multiprocessing.get_all_start_methods(),
        tf32=options.tf32,
        seed=secrets.randbits(32) if options.seed is None else options.seed,
    )


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _works(text: str) -> list[Work]:
    known = {str(work): work for work in WORKS}
    names = [str(map) for map in MAPS] if text == "maps" else _names(text)
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
    return [known[name] for name in names]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure torch_corr against PyTorch and peers: correct first, then timed.",
        epilog="Other commands: report RESULTS.json; compare OLD NEW; readme [--check].",
    )
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add(
        "--cases",
        metavar="PATTERN",
        action="append",
        help="glob, or part of a name, group, dtype or spelling; may be repeated",
    )
    add("--maps", type=_works, help=f"comma-separated, of {', '.join(WORKS)}; 'maps' is three")
    add("--algorithms", metavar="NAMES", help="comma-separated; default: auto and all there are")
    add("--peers", metavar="NAMES", help="comma-separated, or all (default), or none")
    add("--quick", action="store_true", help="a dozen cases, under 2 minutes on two cores")
    add(
        "--out",
        type=Path,
        default=Path("benchmark-results"),
        metavar="DIR",
        help="a folder per machine is made in it (default: benchmark-results)",
    )
    add("--threads", type=int, help="default: all usable cores")
    add("--budget", type=float, metavar="SECONDS", help="of samples per contender and work")
    add("--tf32", action="store_true", help="let float32 use TF32 on CUDA, for all")
    add("--seed", type=int, help="of operands; default: fresh")
    add("--no-memory", action="store_true", help="no trial process, no peak memory")
    add("--no-charts", action="store_true", help="no charts (they need matplotlib)")
    add("--list", action="store_true", help="print the cases and stop")
    parser.set_defaults(words=[])
    return parser


if __name__ == "__main__":
    sys.exit(main())
