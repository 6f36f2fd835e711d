"""What changed between two runs, beyond noise.

Machines drift, so a contender is compared by its speed beside PyTorch in the same run
(``--absolute`` compares seconds).  The change of a row is the logarithm of new over old.
Its noise is the standard error of the four medians together, each taken as
1.2533 * sigma / sqrt(n) with sigma = interquartile range / 1.349 (both exact for normal samples).
A change is reported when it exceeds three of these and the threshold besides, because samples
of one run share what other processes did meanwhile and vary less than runs do.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from math import exp, log, log1p, sqrt
from pathlib import Path

from .report import HEADLINE, clock, lines
from .results import Results, Row

SIGMAS = 3.0
THRESHOLD = 0.10


@dataclass(frozen=True)
class Change:
    """One row in both runs.

    Attributes:
        case, work, contender: which row.
        ratio: new time over old; above 1 is slower.
        noise: relative standard error of the ratio.
        before, after: what to print.
        broken: it was timed before, and now is not.
    """

    case: str
    work: str
    contender: str
    ratio: float
    noise: float
    before: str
    after: str
    broken: bool = False

    def beyond_noise(self, threshold: float) -> bool:
        return self.broken or abs(log(self.ratio)) > max(log1p(threshold), SIGMAS * self.noise)

    @property
    def worse(self) -> bool:
        return self.broken or self.ratio > 1


def changes(old: Results, new: Results, absolute: bool = False) -> list[Change]:
    """Every row of ours that was timed in the old run and tried in the new one."""
    found = []
    before = {(line.case["problem"], line.case["dtype"], line.work): line for line in lines(old)}
    for line in lines(new):
        earlier = before.get((line.case["problem"], line.case["dtype"], line.work))
        if earlier is None:
            continue
        for name, row in line.rows.items():
            was = earlier.rows.get(name)
            if was is None or not was.samples or new.kind(name) != "ours":
                continue
            place = line.case["name"], line.work, name
            if not row.samples:
                text = f"{row.verdict}: {row.note}"
                found.append(Change(*place, 1.0, 0.0, clock(was.seconds), text, broken=True))
                continue
            pairs = [(was, row)]
            if not absolute and earlier.torch is not None and line.torch is not None:
                pairs.append((line.torch, earlier.torch))
            ratio = exp(sum(log(b.seconds / a.seconds) for a, b in pairs))
            noise = sqrt(sum(_relative_error(each) ** 2 for pair in pairs for each in pair))
            found.append(Change(*place, ratio, noise, clock(was.seconds), clock(row.seconds)))
    return found


def _relative_error(row: Row) -> float:
    """Standard error of the median over the median."""
    low, high = row.quartiles
    return 1.2533 * (high - low) / 1.349 / sqrt(len(row.samples)) / row.seconds


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks compare",
        description="Exit code 1 when something of ours got slower beyond noise, or broke.",
    )
    parser.add_argument("old", type=Path, metavar="OLD")
    parser.add_argument("new", type=Path, metavar="NEW")
    parser.add_argument(
        "--threshold",
        type=float,
        default=THRESHOLD,
        help="least relative change to report (default: %(default)s)",
    )
    parser.add_argument(
        "--absolute", action="store_true", help="compare seconds, not speed beside PyTorch"
    )
    parser.add_argument("--only", metavar="CONTENDER", help=f"for example {HEADLINE}")
    options = parser.parse_args(words)
    old, new = (Results.load(_file(path)) for path in (options.old, options.new))
    if (
        old.machine["cpu"] != new.machine["cpu"]
        or old.settings["threads"] != new.settings["threads"]
    ):
        print("note: the runs are of different machines or thread counts")
    every = [
        change
        for change in changes(old, new, options.absolute)
        if options.only in (None, change.contender)
    ]
    told = [change for change in every if change.beyond_noise(options.threshold)]
    worse = [change for change in told if change.worse]
    for title, group in (
        ("slower or broken", worse),
        ("faster", [change for change in told if not change.worse]),
    ):
        for change in sorted(group, key=lambda each: abs(log(each.ratio)), reverse=True):
            size = "broken" if change.broken else f"{change.ratio:.2f} × the time"
            print(
                f"{title}: {change.contender}, {change.case}, {change.work}: {size} "
                f"({change.before} -> {change.after})"
            )
    print(f"{len(every)} compared, {len(worse)} worse, {len(told) - len(worse)} better")
    return 1 if worse else 0


def _file(path: Path) -> Path:
    return path / "results.json" if path.is_dir() else path
