"""Changes between two runs that exceed the noise.

A contender is compared by its speed-up over PyTorch in the same run, because the speed of a machine
drifts.  ``--absolute`` compares seconds.  Seconds are also compared, and marked, if PyTorch was not
timed in one of the runs.  The change of a row is the logarithm of new over old.  Its noise is the
standard error of the four medians together, each estimated as

    1.2533 * sigma / sqrt(n),    sigma = interquartile range / (1.349 * (1 - 1.2 / n))

(for normal samples; 1.2 / n corrects the quartiles of few samples).  A change is reported if it
exceeds three standard errors (more, by Student's distribution, with few samples) and the threshold.
The threshold is needed because samples of one run vary less than runs do.  Of simulated rows
without a change, of 3 to 15 normal samples each, fewer than 3 in 1,000 exceed the limit; with
a factor of three alone it is 46 in 1,000 of those with 3 samples.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass
from math import exp, inf, log, log1p, sqrt
from pathlib import Path

from .analysis import Line, clock, lines
from .results import Results, Row

SIGMAS = 3.0
THRESHOLD = 0.10


@dataclass(frozen=True)
class Change:
    """One row in both runs.

    Attributes:
        case, work, contender: identify the row.
        ratio: new time over old; above 1 is slower.
        noise: the largest logarithm of the ratio that noise explains.
        before, after: as text.
        broken: it was timed before, and is not now.
        in_seconds: the ratio compares seconds, not speed-ups.
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

    @property
    def beyond_noise(self) -> bool:
        return self.broken or abs(log(self.ratio)) > max(log1p(THRESHOLD), self.noise)

    @property
    def worse(self) -> bool:
        return self.broken or self.ratio > 1


def changes(old: Results, new: Results, absolute: bool = False) -> list[Change]:
    """Every row of ours that was timed in the old run and attempted in the new one."""
    found = []
    before = {_key(line): line for line in lines(old)}
    for line in lines(new):
        earlier = before.get(_key(line))
        if earlier is None:
            continue
        for name, row in line.rows.items():
            was = earlier.rows.get(name)
            if was is None or not was.timed or new.kind(name) != "ours":
                continue
            place = line.case["name"], line.work, name
            if not row.timed:
                text = f"{row.verdict}: {row.note}"
                found.append(Change(*place, 1.0, 0.0, clock(was.seconds), text, broken=True))
                continue
            pairs = [(was, row)]
            if not absolute and earlier.torch is not None and line.torch is not None:
                pairs.append((line.torch, earlier.torch))
            ratio = exp(sum(log(b.seconds / a.seconds) for a, b in pairs))
            noise = _noise([_uncertainty(each) for pair in pairs for each in pair])
            clocks = clock(was.seconds), clock(row.seconds)
            found.append(Change(*place, ratio, noise, *clocks, in_seconds=len(pairs) == 1))
    return found


def differences(old: Results, new: Results) -> list[str]:
    """Differences in machine and settings, a sentence each."""
    found = []
    for name, part, key in (
        ("the CPU", "machine", "cpu"),
        ("the GPU", "machine", "gpu"),
        ("PyTorch", "machine", "torch"),
        ("the device", "settings", "device"),
        ("the number of threads", "settings", "threads"),
        ("TF32", "settings", "tf32"),
        ("--quick", "settings", "quick"),
    ):
        before, after = (getattr(run, part).get(key) for run in (old, new))
        if before != after:
            found.append(f"{name} was {before}, and is {after}")
    return found


def missing(old: Results, new: Results) -> list[str]:
    """Phrases about rows of ours that were timed in the old run and not attempted in the new."""
    attempted = {(*_key(line), name) for line in lines(new) for name in line.rows}
    absent = Counter(
        name
        for line in lines(old)
        for name, row in line.rows.items()
        if row.timed and old.kind(name) == "ours" and (*_key(line), name) not in attempted
    )
    return [f"{name} at {count} pieces of work" for name, count in absent.items()]


def _key(line: Line) -> tuple[str, str, str]:
    return line.case["problem"], line.case["dtype"], line.work


def _uncertainty(row: Row) -> tuple[float, int]:
    """The relative standard error of a median, and its degrees of freedom."""
    if row.count < 2:
        return inf, 1
    low, high = row.quartiles
    sigma = (high - low) / (1.349 * (1 - 1.2 / row.count))
    return 1.2533 * sigma / sqrt(row.count) / row.seconds, row.count - 1


def _noise(medians: list[tuple[float, int]]) -> float:
    """``SIGMAS`` standard errors of the sum; more if they are estimated from few samples.

    Degrees of freedom by Welch and Satterthwaite; Student's quantile by the expansion of Cornish
    and Fisher.
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


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks compare",
        description="Exit code 1 if an algorithm of ours got slower beyond noise, or broke.",
    )
    parser.add_argument("old", type=Path, metavar="OLD")
    parser.add_argument("new", type=Path, metavar="NEW")
    parser.add_argument(
        "--absolute", action="store_true", help="compare seconds, not speed-ups over PyTorch"
    )
    options = parser.parse_args(words)
    old, new = (Results.load(path) for path in (options.old, options.new))
    notes = differences(old, new)
    notes += [
        f"{path} is unfinished, {run.settings['unfinished']}"
        for run, path in ((old, options.old), (new, options.new))
        if "unfinished" in run.settings
    ]
    notes += [f"not in {options.new}: {each}" for each in missing(old, new)]
    for note in notes:
        print(f"note: {note}")
    every = changes(old, new, options.absolute)
    if not every:
        raise SystemExit(f"nothing was timed in {options.old} and attempted in {options.new}")
    large = [change for change in every if change.beyond_noise]
    large.sort(key=lambda each: abs(log(each.ratio)), reverse=True)
    worse = [change for change in large if change.worse]
    better = [change for change in large if not change.worse]
    for change in (*worse, *better):
        title = "slower or broken" if change.worse else "faster"
        size = "broken" if change.broken else f"{change.ratio:.2f} × the time"
        if change.in_seconds and not options.absolute:
            size += ", in seconds, as PyTorch was not timed in both"
        print(
            f"{title}: {change.contender}, {change.case}, {change.work}: {size} "
            f"({change.before} -> {change.after})"
        )
    print(f"{len(every)} compared, {len(worse)} worse, {len(better)} better")
    return 1 if worse else 0
