"""Fit the planner's factors, and tell how good its predictions are.

python -m benchmarks fit measure FILE [--seconds S]   time every algorithm on the corpus; resumes
python -m benchmarks fit write FILE...                fit, write algorithms/cost_factors.py
python -m benchmarks fit write FILE... --only WORD    of regimes with the word in their name alone
python -m benchmarks fit judge FILE... [--record]     hold the planner's choices against the times

The corpus is 405 problems drawn at random, from a fixed seed, in nine families: dense layers,
depthwise layers, groups, images with few channels, first layers, large kernels, channels filtered
each by itself, depthwise layers of networks for phones, large images; in five dtypes.
Factors are fractions of the rates that ``python -m torch_corr calibrate`` has measured, best on the
day of the timings, or of those that ship.  *Judge* wants a file of another seed
(``measure --seed 1``), which the factors have not seen; ``--record`` keeps its verdict beside them.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import random
import re
import sys
import textwrap
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from math import prod
from pathlib import Path
from statistics import median

import torch

from torch_corr import ALGORITHMS, FFT, MAPS, Problem
from torch_corr.algorithms import Algorithm, MapName
from torch_corr.algorithms.cost import Fitted, factors_key, kind_of
from torch_corr.planning.auto import Auto
from torch_corr.planning.machine import current_machine, device_name
from torch_corr.planning.timing import time_algorithms
from torch_corr.request import Request

CPU = torch.device("cpu")
DTYPES = {"float32": 12, "float64": 4, "bfloat16": 2, "float16": 2, "complex64": 1}
"""Dtypes of the corpus, with their weights in the draw."""

FEW_TAPS = 25
"""Taps below which no transform is ever taken: such timings would only bend the fit of others."""

_VERDICT = "Judged on problems of another seed,"

TARGET = Path(__file__).parent.parent / "torch_corr" / "algorithms" / "cost_factors.py"


@dataclass(frozen=True)
class Timing:
    """One map of one problem: seconds by algorithm."""

    problem: Problem
    dtype: torch.dtype
    map: MapName
    seconds: dict[str, float]


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks fit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=("measure", "write", "judge"))
    parser.add_argument("file", type=Path, nargs="+")
    parser.add_argument("--seconds", type=float, default=math.inf, help="measure so long at most")
    parser.add_argument("--seed", type=int, default=0, help="of the corpus (default: %(default)s)")
    parser.add_argument("--only", default="", help="regimes to write; the others stay")
    parser.add_argument("--record", action="store_true", help="keep the verdict in _factors.py")
    options = parser.parse_args(words)
    if options.what == "measure":
        if len(options.file) > 1:
            parser.error(f"measure writes one file, got {len(options.file)}")
        return measure(options.file[0], options.seed, options.seconds)
    timings = [timing for path in options.file for timing in load(path)]
    if options.what == "write":
        found = fit(timings)
        if options.only:
            found = {key: value for key, value in found.items() if options.only in key}
            TARGET.write_text(renewed(TARGET.read_text(), found, options.only, len(timings)))
        else:
            TARGET.write_text(source_of(found, len(timings)))
        print(f"written: {TARGET}; start anew to judge it")
        return 0
    verdict, details = judge(timings)
    print("\n".join([verdict, *details]))
    if options.record:
        record(verdict)
    return 0


# -- measuring ----------------------------------------------------------------------------------


def corpus(seed: int) -> Iterator[tuple[Problem, torch.dtype]]:
    """Problems of 20 thousand to 1.5 billion multiplications, the same for the same seed."""
    draw = random.Random(seed)
    families = (
        (_dense, 70),
        (_depthwise, 70),
        (_groups, 30),
        (_images, 80),
        (_first, 20),
        (_large, 15),
        (_each, 40),
        (_mobile, 60),
        (_plane, 20),
    )
    for family, number in families:
        found = 0
        while found < number:
            try:
                problem = family(draw)
            except RuntimeError:
                continue  # a kernel larger than its image
            most = max(prod(problem.input_shape), prod(problem.output_shape))
            if most > 3e7 or not 2e4 <= problem.multiplications <= 1.5e9:
                continue
            name = draw.choices(list(DTYPES), list(DTYPES.values()))[0]
            yield problem, getattr(torch, name)
            found += 1


def _problem(
    draw: random.Random,
    batch: int,
    channels: tuple[int, int],
    size: tuple[int, int],
    kernel: int,
    stride: int,
    dilation: int,
    groups: int,
) -> Problem:
    padding = draw.choice([dilation * (kernel - 1) // 2, 0])
    return Problem(
        batch,
        channels[0],
        size,
        channels[1],
        (kernel, kernel),
        (stride, stride),
        ((padding, padding), (padding, padding)),
        (dilation, dilation),
        groups,
    )


def _between(draw: random.Random, least: int, most: int) -> tuple[int, int]:
    """Two sizes, evenly spread over orders of magnitude."""
    low, high = math.log(least), math.log(most)
    return round(math.exp(draw.uniform(low, high))), round(math.exp(draw.uniform(low, high)))


def _dense(draw: random.Random) -> Problem:
    widths = [3, 8, 16, 32, 64, 96, 128, 192, 256, 512]
    return _problem(
        draw,
        draw.choice([1, 1, 2, 4, 8]),
        (draw.choice(widths), draw.choice(widths)),
        _between(draw, 7, 160),
        draw.choice([1, 1, 3, 3, 3, 5, 7, 11]),
        draw.choice([1, 1, 1, 2]),
        draw.choice([1, 1, 1, 2, 4]),
        1,
    )


def _depthwise(draw: random.Random) -> Problem:
    channels = draw.choice([16, 32, 64, 96, 144, 256, 512, 2048])
    return _problem(
        draw,
        draw.choice([1, 1, 2, 4, 8]),
        (channels, channels * draw.choice([1, 1, 1, 2])),
        _between(draw, 7, 128),
        draw.choice([3, 3, 5, 7, 9, 13, 21, 31]),
        draw.choice([1, 1, 1, 2]),
        draw.choice([1, 1, 1, 2]),
        channels,
    )


def _groups(draw: random.Random) -> Problem:
    groups, each = draw.choice([2, 4, 8, 16, 32]), [2, 4, 8, 16, 32]
    return _problem(
        draw,
        draw.choice([1, 2, 4, 8]),
        (groups * draw.choice(each), groups * draw.choice(each)),
        _between(draw, 7, 96),
        draw.choice([1, 3, 3, 5, 7]),
        draw.choice([1, 1, 2]),
        draw.choice([1, 1, 2]),
        groups,
    )


def _images(draw: random.Random) -> Problem:
    return _problem(
        draw,
        draw.choice([1, 1, 1, 4, 16, 64]),
        (draw.choice([1, 1, 1, 2, 3, 4]), draw.choice([1, 1, 1, 2, 3, 4, 8, 16, 32, 64])),
        _between(draw, 12, 2048),
        draw.choice([2, 3, 3, 5, 5, 7, 9, 11, 15, 21, 31, 51]),
        draw.choice([1, 1, 1, 1, 2]),
        draw.choice([1, 1, 1, 1, 2]),
        1,
    )


def _first(draw: random.Random) -> Problem:
    """First layers of networks: images of few channels, many filters."""
    kernel = draw.choice([3, 4, 5, 7, 11])
    return _problem(
        draw,
        draw.choice([1, 8, 32, 64]),
        (draw.choice([1, 3]), draw.choice([16, 32, 64, 96])),
        _between(draw, 24, 256),
        kernel,
        draw.choice([1, 2, 2, 4]),
        1,
        1,
    )


def _large(draw: random.Random) -> Problem:
    """Large kernels between a few channels, as Fourier's way is made for."""
    widths = [8, 16, 32, 64]
    return _problem(
        draw,
        draw.choice([1, 2, 4]),
        (draw.choice(widths), draw.choice(widths)),
        _between(draw, 32, 192),
        draw.choice([9, 13, 15, 21, 31]),
        1,
        1,
        1,
    )


def _each(draw: random.Random) -> Problem:
    """Images of a few channels, each filtered by itself, as with red, green and blue."""
    channels = draw.choice([2, 3, 3, 3, 4, 6, 8, 12, 20, 24, 40])
    return _problem(
        draw,
        draw.choice([1, 1, 1, 4, 16]),
        (channels, channels * draw.choice([1, 1, 1, 2])),
        _between(draw, 24, 1024),
        draw.choice([3, 3, 5, 5, 7, 9, 13, 19, 31]),
        draw.choice([1, 1, 1, 1, 2]),
        draw.choice([1, 1, 1, 1, 2]),
        channels,
    )


def _mobile(draw: random.Random) -> Problem:
    """Depthwise layers of networks for phones: small kernels on ever smaller images."""
    size = draw.choice([112, 56, 56, 28, 28, 14, 14, 7, 7, 4])
    channels = min(960, 1792 // size * draw.choice([1, 2, 3, 4, 6]))
    return _problem(
        draw,
        draw.choice([1, 1, 4, 8, 16]),
        (channels, channels),
        (size, size),
        draw.choice([3, 3, 3, 5]),
        draw.choice([1, 1, 2]),
        1,
        channels,
    )


def _plane(draw: random.Random) -> Problem:
    """One large image under one large kernel."""
    channels = draw.choice([1, 1, 1, 3])
    return _problem(
        draw,
        1,
        (channels, channels),
        _between(draw, 200, 1200),
        draw.choice([11, 15, 21, 31, 41, 51, 63]),
        1,
        1,
        channels,
    )


def measure(path: Path, seed: int, seconds: float) -> int:
    """Append timings to a file of JSON lines until the corpus or the time is at its end."""
    torch.set_flush_denormal(True)
    known = {(t.problem, t.dtype, t.map) for t in load(path)} if path.exists() else set()
    end = time.monotonic() + seconds
    with path.open("a") as file:
        for problem, dtype in corpus(seed):
            for map in MAPS:
                if (problem, dtype, map) in known:
                    continue
                if time.monotonic() > end:
                    print("not done: run the same command again")
                    return 3
                able = _worth_timing(problem, map, dtype)
                timed = time_algorithms(able, Request(problem, map, CPU, dtype))
                line = {"problem": str(problem), "dtype": str(dtype).removeprefix("torch.")}
                file.write(json.dumps({**line, "map": map, "seconds": timed}) + "\n")
                file.flush()
    print("done")
    return 0


def _worth_timing(problem: Problem, map: MapName, dtype: torch.dtype) -> list[Algorithm]:
    """All that are able, but for the reference where it takes thousands of steps."""
    return [
        each
        for each in ALGORITHMS
        if not each.refusals(Request(problem, map, CPU, dtype))
        and (isinstance(each, Fitted) or prod(problem.output_size) < 1000)
    ]


def load(path: Path) -> list[Timing]:
    """The timings in a file."""
    timings = []
    for line in path.read_text().splitlines():
        fields = json.loads(line)
        timings.append(
            Timing(
                Problem.parse(fields["problem"]),
                getattr(torch, fields["dtype"]),
                fields["map"],
                fields["seconds"],
            )
        )
    return timings


# -- fitting ------------------------------------------------------------------------------------


def fit(timings: Sequence[Timing]) -> dict[str, tuple[float, ...]]:
    """Factors of each regime, by least squares of the logarithms, robust against outliers.

    A dtype with few measurements leans on float32's factors (ridge towards them).
    """
    samples: dict[tuple[str, str, MapName], dict[str, list[tuple[list[float], float]]]]
    samples = defaultdict(lambda: defaultdict(list))
    for timing in timings:
        for algorithm in ALGORITHMS:
            if algorithm.name in timing.seconds and isinstance(algorithm, Fitted):
                if isinstance(algorithm, FFT) and prod(timing.problem.kernel) < FEW_TAPS:
                    continue
                request = Request(timing.problem, timing.map, CPU, timing.dtype)
                regime, ideal = algorithm.work(request)
                rates = current_machine().rates(timing.dtype)
                parts = [amount / rate for amount, rate in zip(ideal, rates)]
                samples[algorithm.name, regime, timing.map][kind_of(timing.dtype)].append(
                    (parts, timing.seconds[algorithm.name])
                )
    found: dict[str, tuple[float, ...]] = {}
    for (name, regime, map), kinds in sorted(samples.items()):
        everything = kinds.get("float32") or [each for some in kinds.values() for each in some]
        start = _solve(everything, (1.0, 1.0, 1.0, 1.0), pull=0.1)
        for kind, some in sorted(kinds.items()):
            factors = _solve(some, start, pull=0.5)
            key = factors_key(name, regime, map, kind)
            found[key] = tuple(float(f"{each:.3g}") for each in factors)
    return found


def _solve(
    samples: list[tuple[list[float], float]], start: Sequence[float], pull: float
) -> list[float]:
    import numpy as np
    from scipy.optimize import least_squares

    parts, seconds = np.array([s[0] for s in samples]), np.array([s[1] for s in samples])
    origin = np.log(np.array(start))

    def residuals(logarithms):  # type: ignore[no-untyped-def]
        predicted = parts @ np.exp(logarithms)
        return np.concatenate([np.log(predicted / seconds), pull * (logarithms - origin)])

    solved = least_squares(residuals, origin, loss="soft_l1", f_scale=0.25)
    return [float(each) for each in np.exp(solved.x)]


def source_of(factors: dict[str, tuple[float, ...]], number: int) -> str:
    """The module that holds the factors."""
    return (
        '"""Fitted factors of the algorithms\' costs; see ``cost``.\n\n'
        "Written by ``python -m benchmarks fit write``; not to be edited by hand.\n"
        f"From {_provenance(number)}.\n\n"
        f"{_VERDICT} not yet.\n"
        '"""\n\n'
        "from __future__ import annotations\n\n"
        "FACTORS: dict[str, tuple[float, float, float, float]] = {\n"
        f"{_rows(factors)}\n"
        "}\n"
        '"""Factors of matmul_flops, fft_flops, bytes and calls."""\n'
    )


def renewed(source: str, factors: dict[str, tuple[float, ...]], word: str, number: int) -> str:
    """The module with other factors for some regimes; it says which, and from what."""
    head, middle, tail = re.split(r"(?<= = \{\n)(.*\n)(?=\}\n)", source, flags=re.DOTALL)
    rows = {**ast.literal_eval(f"{{{middle}}}"), **factors}
    said = re.sub(rf"Regimes with '{word}' from .*?\n\n", "", head, flags=re.DOTALL)
    before, mark, rest = said.partition(_VERDICT)
    if not mark:
        raise SystemExit(f"{TARGET} has no line {_VERDICT!r}; write all factors anew")
    _, end, code = rest.partition('"""\n')
    news = textwrap.fill(f"Regimes with '{word}' from {_provenance(number)}.", width=98)
    said = f"{before}{news}\n\n{_VERDICT} not yet.\n{end}{code}"
    return f"{said}{_rows(dict(sorted(rows.items(), key=_by_regime)))}\n{tail}"


def _by_regime(row: tuple[str, object]) -> tuple[str, ...]:
    """Algorithm, regime, map and dtype, of which a regime may have commas in it."""
    name, *regime, map, kind = row[0].split(", ")
    return name, ", ".join(regime), map, kind


def _rows(factors: dict[str, tuple[float, ...]]) -> str:
    return "\n".join(f'    "{key}": {value},' for key, value in factors.items())


def _provenance(number: int) -> str:
    return (
        f"{number} timings on {device_name(CPU)}, {torch.get_num_threads()} threads, PyTorch "
        f"{torch.__version__},\n{date.today().isoformat()}"
    )


# -- judging ------------------------------------------------------------------------------------


def judge(timings: Sequence[Timing]) -> tuple[str, list[str]]:
    """How often ``auto`` takes the quickest or one within 5 % of it, and what it loses."""
    losses, slower, errors, gains = [], [], defaultdict(list), []
    for timing in timings:
        made = Auto().choose(Request(timing.problem, timing.map, CPU, timing.dtype))
        name = getattr(made, "fast", made).name
        if name not in timing.seconds:
            continue
        for algorithm in ALGORITHMS:
            if isinstance(algorithm, Fitted) and algorithm.name in timing.seconds:
                cost = algorithm.cost(Request(timing.problem, timing.map, CPU, timing.dtype))
                predicted = current_machine().seconds(cost, timing.dtype)
                errors[algorithm.name].append(
                    abs(math.log(predicted / timing.seconds[algorithm.name]))
                )
        taken, best = timing.seconds[name], min(timing.seconds.values())
        label = (
            f"{timing.map:<11} {str(timing.dtype).removeprefix('torch.'):<9} {timing.problem}: "
            f"{name} {taken * 1e3:.3g} ms, "
            f"{min(timing.seconds, key=timing.seconds.__getitem__)} {best * 1e3:.3g} ms, "
            f"aten {timing.seconds['aten'] * 1e3:.3g} ms"
        )
        losses.append((taken / best, label))
        slower.append((taken / timing.seconds["aten"], label))
        gains.append(timing.seconds["aten"] / taken)
    within = sum(loss <= 1.05 for loss, _ in losses) / len(losses)
    behind = sorted((each for each in slower if each[0] > 1.05), reverse=True)
    worst, least = max(losses)[0], min(1 / ratio for ratio, _ in slower)
    verdict = (
        f"Of {len(losses)} maps the quickest, or one within 5 % of it, is taken in {within:.0%}; "
        f"the time is {_geometric(loss for loss, _ in losses):.3f} times the quickest's in the "
        f"geometric mean, {worst:.1f} times at worst. Beside PyTorch {_geometric(gains):.2f} "
        f"times as fast, "
        f"{least:.2f} at worst, more than 5 % slower in {len(behind)}."
    )
    return verdict, [
        "furthest behind PyTorch:",
        *(f"  {ratio:.2f}  {label}" for ratio, label in behind[:20]),
        "furthest behind the quickest:",
        *(f"  {ratio:.2f}  {label}" for ratio, label in sorted(losses, reverse=True)[:20]),
        "predicted against measured, |log|, median and 90th percentile:",
        *(
            f"  {name:<8} {median(each):.2f} {sorted(each)[int(0.9 * len(each))]:.2f}"
            for name, each in errors.items()
        ),
    ]


def record(verdict: str) -> None:
    """Put a verdict in the place that :func:`source_of` left for it."""
    head, mark, rest = TARGET.read_text().partition(_VERDICT)
    if not mark:
        raise SystemExit(f"{TARGET} has no line {_VERDICT!r}; write the factors anew")
    _, end, tail = rest.partition('"""\n')
    said = textwrap.fill(f"{_VERDICT} {date.today().isoformat()}: {verdict}", width=98)
    TARGET.write_text(f"{head}{said}\n{end}{tail}")


def _geometric(values: Iterator[float] | Sequence[float]) -> float:
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
