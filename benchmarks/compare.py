"""What changed between two runs, beyond noise.

Machines drift, so a contender is compared by its speed beside PyTorch in the same run
(``--absolute`` compares seconds; that is done, and said, where PyTorch has no time in one of the
runs).  The change of a row is the logarithm of new over old.  Its noise is the standard error of
the four medians together, each taken as

    1.2533 * sigma / sqrt(n),    sigma = interquartile range / (1.349 * (1 - 1.2 / n))

(for normal samples; 1.2 / n is what the quartiles of few samples fall short by).  A change is
reported when it exceeds three of these (more by Student's distribution where samples are few) and
the threshold besides, because samples of one run share what other processes did meanwhile and vary
less than runs do.  Of simulated rows without a change, of 3 to 15 normal samples each, fewer than 3
in 1,000 exceed this; a plain three would be exceeded by 46 in 1,000 of those with 3 samples.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass
from math import exp, inf, log, log1p, sqrt
from pathlib import Path
from typing import NamedTuple

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
        noise: what the ratio's logarithm may come to without any change.
        before, after: what to print.
        broken: it was timed before, and now is not.
        in_seconds: the ratio is of seconds, not of speeds beside PyTorch.
    """

    case: str
    work: str
    contender: str
    ratio: float
    noise: float
    before: str
    after: str
    broken: bool = False
    in_seconds: bool = False

    def beyond_noise(self, threshold: float) -> bool:
        return self.broken or abs(log(self.ratio)) > max(log1p(threshold), self.noise)

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
            noise = _noise([_uncertainty(each) for pair in pairs for each in pair])
            told = clock(was.seconds), clock(row.seconds)
            found.append(Change(*place, ratio, noise, *told, in_seconds=len(pairs) == 1))
    return found


def differences(old: Results, new: Results) -> list[str]:
    """In what the two runs were made differently, a sentence each."""
    found = []
    for what, of, key in (
        ("the CPU", "machine", "cpu"),
        ("the GPU", "machine", "gpu"),
        ("PyTorch", "machine", "torch"),
        ("the device", "settings", "device"),
        ("the number of threads", "settings", "threads"),
        ("TF32", "settings", "tf32"),
        ("--quick", "settings", "quick"),
    ):
        before, after = (getattr(run, of).get(key) for run in (old, new))
        if before != after:
            found.append(f"{what} was {before}, and is {after}")
    return found


def missing(old: Results, new: Results, only: str | None = None) -> list[str]:
    """What was timed of ours in the old run and not tried in the new one, a phrase for each."""
    tried = {
        (line.case["problem"], line.case["dtype"], line.work, name)
        for line in lines(new)
        for name in line.rows
    }
    absent = Counter(
        name
        for line in lines(old)
        for name, row in line.rows.items()
        if row.samples
        and old.kind(name) == "ours"
        and only in (None, name)
        and (line.case["problem"], line.case["dtype"], line.work, name) not in tried
    )
    return [f"{name} at {count} pieces of work" for name, count in absent.items()]


class Uncertainty(NamedTuple):
    """Of a median: its relative standard error, and how many samples back that, less one."""

    error: float
    freedom: int


def _uncertainty(row: Row) -> Uncertainty:
    low, high = row.quartiles
    count = len(row.samples)
    if count < 2:
        return Uncertainty(inf, 1)
    sigma = (high - low) / (1.349 * (1 - 1.2 / count))
    return Uncertainty(1.2533 * sigma / sqrt(count) / row.seconds, count - 1)


def _noise(medians: list[Uncertainty]) -> float:
    """``SIGMAS`` standard errors of the sum; more where it is little that they are known from.

    Welch and Satterthwaite's degrees of freedom; Student's quantile by Cornish and Fisher's
    expansion.
    """
    variance = sum(error**2 for error, _ in medians)
    if variance in (0.0, inf):
        return variance
    f = variance**2 / sum(error**4 / freedom for error, freedom in medians)
    z = SIGMAS
    quantile = (
        z
        + (z**3 + z) / (4 * f)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * f**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * f**3)
    )
    return quantile * sqrt(variance)


def _threshold(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no such number from 0 up; 0.1 is a tenth")
    return number


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks compare",
        description="Exit code 1 when something of ours got slower beyond noise, or broke.",
    )
    parser.add_argument("old", type=Path, metavar="OLD")
    parser.add_argument("new", type=Path, metavar="NEW")
    parser.add_argument(
        "--threshold",
        type=_threshold,
        default=THRESHOLD,
        help="least relative change to report (default: %(default)s)",
    )
    parser.add_argument(
        "--absolute", action="store_true", help="compare seconds, not speed beside PyTorch"
    )
    parser.add_argument("--only", metavar="CONTENDER", help=f"for example {HEADLINE}")
    options = parser.parse_args(words)
    old, new = (Results.load(path) for path in (options.old, options.new))
    for difference in differences(old, new):
        print(f"note: {difference}")
    for run, path in ((old, options.old), (new, options.new)):
        if "unfinished" in run.settings:
            print(f"note: {path} is unfinished, {run.settings['unfinished']}")
    for phrase in missing(old, new, options.only):
        print(f"note: not in {options.new}: {phrase}")
    every = [
        change
        for change in changes(old, new, options.absolute)
        if options.only in (None, change.contender)
    ]
    if not every:
        of = f" of {options.only!r}" if options.only else ""
        raise SystemExit(f"nothing{of} was timed in {options.old} and tried in {options.new}")
    told = [change for change in every if change.beyond_noise(options.threshold)]
    worse = [change for change in told if change.worse]
    for title, group in (
        ("slower or broken", worse),
        ("faster", [change for change in told if not change.worse]),
    ):
        for change in sorted(group, key=lambda each: abs(log(each.ratio)), reverse=True):
            size = "broken" if change.broken else f"{change.ratio:.2f} × the time"
            if change.in_seconds and not options.absolute:
                size += ", in seconds, as PyTorch was not timed in both"
            print(
                f"{title}: {change.contender}, {change.case}, {change.work}: {size} "
                f"({change.before} -> {change.after})"
            )
    print(f"{len(every)} compared, {len(worse)} worse, {len(told) - len(worse)} better")
    return 1 if worse else 0
