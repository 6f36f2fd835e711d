"""Fit the planner's factors to measured times, and judge its choices.

python -m benchmarks fit measure FILE [--seconds S]   time every algorithm on the corpus; resumes
python -m benchmarks fit write FILE...                fit, write algorithms/cost_factors.py;
                                                      factors without times in the files stay
python -m benchmarks fit judge FILE... [--record]     compare the planner's choices with the times

The corpus is 405 random problems of nine families in five dtypes, the same for the same seed, and
with ``--channels-last`` its depthwise problems of 16 channels and more, in that layout.
Factors are fractions of the rates that ``python -m torch_corr calibrate`` measured, best on the
same day, or of the shipped rates.  *judge* needs times of another seed (``measure --seed 1``), on
which the factors were not fitted; ``--record`` writes its verdict into cost_factors.py.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import textwrap
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from math import prod
from pathlib import Path
from statistics import geometric_mean, median

import torch

from torch_corr import ALGORITHMS, FFT, Problem
from torch_corr.algorithms import Algorithm, Cost, MapName, dtype_name
from torch_corr.algorithms.cost import Factors, Fitted, factors_key, kind_of
from torch_corr.algorithms.cost_factors import FACTORS
from torch_corr.algorithms.fft.checked import CheckedFFT
from torch_corr.planning.auto import Auto
from torch_corr.planning.machine import current_machine, device_name, machine_of
from torch_corr.planning.timing import time_algorithms
from torch_corr.request import Request

CPU = torch.device("cpu")
DTYPES = {"float32": 12, "float64": 4, "bfloat16": 2, "float16": 2, "complex64": 1}
"""Dtypes of the corpus, with their weights."""

FEW_TAPS = 25
"""Taps below which no transform is ever chosen; its times there are left out of the fit."""

_VERDICT = "Judged on problems of another seed,"

TARGET = Path(__file__).parent.parent / "torch_corr" / "algorithms" / "cost_factors.py"


@dataclass(frozen=True)
class Timing:
    """The times of a request, in seconds by algorithm."""

    request: Request
    seconds: dict[str, float]


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks fit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("what", choices=("measure", "write", "judge"))
    add("file", type=Path, nargs="+")
    add("--seconds", type=float, default=math.inf, help="the longest time to measure")
    add("--seed", type=int, default=0, help="of the corpus (default: %(default)s)")
    add("--channels-last", action="store_true", help="measure depthwise problems in that layout")
    add("--record", action="store_true", help="write the verdict into cost_factors.py")
    options = parser.parse_args(words)
    if options.what == "measure":
        if len(options.file) > 1:
            parser.error(f"measure writes one file, got {len(options.file)}")
        requests = corpus(options.seed, options.channels_last)
        return measure(options.file[0], requests, options.seconds)
    timings = [timing for path in options.file for timing in load(path)]
    if options.what == "write":
        TARGET.write_text(source_of(fit(timings), len(timings)))
        print(f"written: {TARGET}; judge it in a new process")
        return 0
    verdict, details = judge(timings)
    print("\n".join([verdict, *details]))
    if options.record:
        record(verdict)
    return 0


@dataclass(frozen=True)
class Family:
    """Random problems of one kind; each number is chosen from a tuple, where some occur repeatedly.

    Attributes:
        count: of problems in the corpus.
        batch: numbers of images.
        kernel, stride, dilation: the same along both axes.
        groups: numbers of groups; empty: one group.
        inputs, outputs: numbers of channels in a group; empty: one.
        size: the least and largest image size; drawn evenly over orders of magnitude.
        sides: sizes of square images instead, as in networks for phones, which have more channels
            on smaller images.  The groups are then multiples of 1792 over the side.
    """

    count: int
    batch: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...] = (1,)
    dilation: tuple[int, ...] = (1,)
    groups: tuple[int, ...] = ()
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    size: tuple[int, int] = (1, 1)
    sides: tuple[int, ...] = ()

    def draw(self, rng: random.Random) -> Problem:
        """A problem.

        Raises:
            RuntimeError: the kernel is larger than the image.
        """

        def one_of(numbers: tuple[int, ...]) -> int:
            return rng.choice(numbers) if numbers else 1

        if self.sides:
            side = rng.choice(self.sides)
            size, groups = (side, side), min(960, 1792 // side * one_of(self.groups))
        else:
            low, high = map(math.log, self.size)
            rows, columns = (round(math.exp(rng.uniform(low, high))) for _ in range(2))
            size, groups = (rows, columns), one_of(self.groups)
        inputs, outputs = groups * one_of(self.inputs), groups * one_of(self.outputs)
        kernel, stride = rng.choice(self.kernel), rng.choice(self.stride)
        dilation = rng.choice(self.dilation)
        padding = rng.choice([dilation * (kernel - 1) // 2, 0])
        return Problem(
            rng.choice(self.batch),
            inputs,
            size,
            outputs,
            (kernel, kernel),
            (stride, stride),
            ((padding, padding), (padding, padding)),
            (dilation, dilation),
            groups,
        )


_WIDTHS = (3, 8, 16, 32, 64, 96, 128, 192, 256, 512)

FAMILIES = {
    "dense layers": Family(
        70,
        batch=(1, 1, 2, 4, 8),
        kernel=(1, 1, 3, 3, 3, 5, 7, 11),
        stride=(1, 1, 1, 2),
        dilation=(1, 1, 1, 2, 4),
        inputs=_WIDTHS,
        outputs=_WIDTHS,
        size=(7, 160),
    ),
    "depthwise layers": Family(
        70,
        batch=(1, 1, 2, 4, 8),
        kernel=(3, 3, 5, 7, 9, 13, 21, 31),
        stride=(1, 1, 1, 2),
        dilation=(1, 1, 1, 2),
        groups=(16, 32, 64, 96, 144, 256, 512, 2048),
        outputs=(1, 1, 1, 2),
        size=(7, 128),
    ),
    "groups": Family(
        30,
        batch=(1, 2, 4, 8),
        kernel=(1, 3, 3, 5, 7),
        stride=(1, 1, 2),
        dilation=(1, 1, 2),
        groups=(2, 4, 8, 16, 32),
        inputs=(2, 4, 8, 16, 32),
        outputs=(2, 4, 8, 16, 32),
        size=(7, 96),
    ),
    "images with few channels": Family(
        80,
        batch=(1, 1, 1, 4, 16, 64),
        kernel=(2, 3, 3, 5, 5, 7, 9, 11, 15, 21, 31, 51),
        stride=(1, 1, 1, 1, 2),
        dilation=(1, 1, 1, 1, 2),
        inputs=(1, 1, 1, 2, 3, 4),
        outputs=(1, 1, 1, 2, 3, 4, 8, 16, 32, 64),
        size=(12, 2048),
    ),
    "first layers": Family(
        20,
        batch=(1, 8, 32, 64),
        kernel=(3, 4, 5, 7, 11),
        stride=(1, 2, 2, 4),
        inputs=(1, 3),
        outputs=(16, 32, 64, 96),
        size=(24, 256),
    ),
    "large kernels": Family(
        15,
        batch=(1, 2, 4),
        kernel=(9, 13, 15, 21, 31),
        inputs=(8, 16, 32, 64),
        outputs=(8, 16, 32, 64),
        size=(32, 192),
    ),
    "channels filtered separately": Family(
        40,
        batch=(1, 1, 1, 4, 16),
        kernel=(3, 3, 5, 5, 7, 9, 13, 19, 31),
        stride=(1, 1, 1, 1, 2),
        dilation=(1, 1, 1, 1, 2),
        groups=(2, 3, 3, 3, 4, 6, 8, 12, 20, 24, 40),
        outputs=(1, 1, 1, 2),
        size=(24, 1024),
    ),
    "networks for phones": Family(
        60,
        batch=(1, 1, 4, 8, 16),
        kernel=(3, 3, 3, 5),
        stride=(1, 1, 2),
        groups=(1, 2, 3, 4, 6),
        sides=(112, 56, 56, 28, 28, 14, 14, 7, 7, 4),
    ),
    "large images with large kernels": Family(
        20,
        batch=(1,),
        kernel=(11, 15, 21, 31, 41, 51, 63),
        groups=(1, 1, 1, 3),
        outputs=(1,),
        size=(200, 1200),
    ),
}


def corpus(seed: int, channels_last: bool) -> Iterator[Request]:
    """The maps of problems of 20 thousand to 1.5 billion multiplications, the same for the same
    seed."""
    for problem, dtype in _problems(seed):
        if not channels_last or (problem.group_in == 1 and problem.groups >= 16):
            yield from Request.of_each_map(problem, CPU, dtype, channels_last)


def _problems(seed: int) -> Iterator[tuple[Problem, torch.dtype]]:
    rng = random.Random(seed)
    for family in FAMILIES.values():
        found = 0
        while found < family.count:
            try:
                problem = family.draw(rng)
            except RuntimeError:
                continue  # the kernel is larger than the image
            most = max(prod(problem.input_shape), prod(problem.output_shape))
            if most > 3e7 or not 2e4 <= problem.multiplications <= 1.5e9:
                continue
            name = rng.choices(list(DTYPES), list(DTYPES.values()))[0]
            yield problem, getattr(torch, name)
            found += 1


def measure(path: Path, requests: Iterable[Request], seconds: float) -> int:
    """Append times to a file of JSON lines until the requests or the time end."""
    torch.set_flush_denormal(True)
    known = {timing.request for timing in load(path)} if path.exists() else set()
    end = time.monotonic() + seconds
    with path.open("a") as file:
        for request in requests:
            if request in known:
                continue
            if time.monotonic() > end:
                print("not finished: run the same command again")
                return 3
            line = {
                "problem": str(request.problem),
                "dtype": dtype_name(request.dtype),
                "map": request.map,
                "channels_last": request.channels_last,
                "seconds": time_algorithms(_worth_timing(request), request),
            }
            file.write(json.dumps(line) + "\n")
            file.flush()
    print("done")
    return 0


def _worth_timing(request: Request) -> list[Algorithm]:
    """The algorithms that do not refuse, without the reference if it takes 1,000 steps or more; in
    channels_last those with kernels for it."""
    return [
        each
        for each in ALGORITHMS
        if not each.refusals(request)
        and (isinstance(each, Fitted) or prod(request.problem.output_size) < 1000)
        and (not request.channels_last or each.keeps_channels_last(request))
    ]


def load(path: Path) -> list[Timing]:
    """The timings in a file."""
    timings = []
    for line in path.read_text().splitlines():
        fields = json.loads(line)
        problem, dtype = Problem.parse(fields["problem"]), getattr(torch, fields["dtype"])
        request = Request(problem, fields["map"], CPU, dtype, fields.get("channels_last", False))
        timings.append(Timing(request, fields["seconds"]))
    return timings


def fit(timings: Sequence[Timing]) -> dict[str, tuple[float, ...]]:
    """Factors of each regime, by robust least squares of the logarithms.

    A ridge term pulls the factors of a dtype with few times to those of float32.
    """
    samples: dict[tuple[str, str, MapName], dict[str, list[tuple[list[float], float]]]]
    samples = defaultdict(lambda: defaultdict(list))
    for timing in timings:
        request = timing.request
        for algorithm in ALGORITHMS:
            if algorithm.name in timing.seconds and isinstance(algorithm, Fitted):
                if isinstance(algorithm, FFT) and prod(request.problem.kernel) < FEW_TAPS:
                    continue
                regime, ideal = algorithm.work(request)
                rates = current_machine().rates(request.dtype)
                ideal_seconds = Cost(*(amount / rate for amount, rate in zip(ideal, rates)))
                parts = list(Factors.sums(ideal_seconds))
                kinds = samples[algorithm.name, regime, request.map]
                kinds[kind_of(request.dtype)].append((parts, timing.seconds[algorithm.name]))
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
    """The module with these factors, from this number of times, and the present ones of others."""
    kept = {key: value for key, value in FACTORS.items() if key not in factors}
    source = (
        f"{len(factors)} regimes from {number} timings on {device_name(CPU)}, "
        f"{torch.get_num_threads()} threads, PyTorch {torch.__version__}, "
        f"{date.today().isoformat()}."
    )
    earlier = TARGET.read_text().partition("do not edit.\n\n")[2].partition(_VERDICT)[0]
    if kept:
        source = f"{earlier}\n{source}"
    rows = "".join(f'    "{key}": {value},\n' for key, value in sorted({**kept, **factors}.items()))
    return (
        '"""Fitted factors of the algorithms\' costs; see ``cost``.\n\n'
        "Written by ``python -m benchmarks fit write``; do not edit.\n\n"
        f'{source.strip()}\n\n{_VERDICT} not yet.\n"""\n\n'
        "from __future__ import annotations\n\n"
        f"FACTORS: dict[str, tuple[float, float, float, float]] = {{\n{rows}}}\n"
        '"""Factors of multiplications (matmul_flops, vector_flops or conv_flops), fft_flops, '
        'bytes (or\ncached_bytes) and calls."""\n'
    )


def record(verdict: str) -> None:
    """Write a verdict into the docstring of the module with the factors."""
    before, _, rest = TARGET.read_text().partition(_VERDICT)
    _, end, after = rest.partition('\n"""\n')
    paragraph = textwrap.fill(f"{_VERDICT} {date.today().isoformat()}: {verdict}", width=98)
    TARGET.write_text(before + paragraph + end + after)


def judge(timings: Sequence[Timing]) -> tuple[str, list[str]]:
    """The verdict on the choices of ``auto`` and on the predicted times, and details."""
    losses, slower, errors = [], [], defaultdict(list)
    for timing in timings:
        request, seconds = timing.request, timing.seconds
        chosen = Auto().choose(request)
        assert chosen is not None
        # Of a checked transform only the transform itself was timed.
        name = chosen.fast.name if isinstance(chosen, CheckedFFT) else chosen.name
        if name not in seconds:
            continue
        for algorithm in ALGORITHMS:
            if isinstance(algorithm, Fitted) and algorithm.name in seconds:
                cost = algorithm.cost(request)
                predicted = machine_of(CPU, request.dtype).seconds(cost, request.dtype)
                errors[algorithm.name].append(abs(math.log(predicted / seconds[algorithm.name])))
        best = min(seconds, key=seconds.__getitem__)
        shown = ", ".join(f"{each} {seconds[each] * 1e3:.3g} ms" for each in (name, best, "aten"))
        dtype = dtype_name(request.dtype)
        label = f"{request.map:<11} {dtype:<9} {request.problem}: {shown}"
        losses.append((seconds[name] / seconds[best], label))
        slower.append((seconds[name] / seconds["aten"], label))
    losses.sort(reverse=True)
    slower.sort(reverse=True)
    within = sum(loss <= 1.05 for loss, _ in losses) / len(losses)
    behind = [each for each in slower if each[0] > 1.05]
    verdict = (
        f"Of {len(losses)} maps the fastest algorithm, or one within 5 % of it, is chosen in "
        f"{within:.0%}; the time is {geometric_mean(loss for loss, _ in losses):.3f} times that of "
        f"the fastest in the geometric mean, {losses[0][0]:.1f} times at worst. The speed-up over "
        f"PyTorch is {geometric_mean(1 / ratio for ratio, _ in slower):.2f}, "
        f"{1 / slower[0][0]:.2f} at worst, more than 5 % slower in {len(behind)}."
    )
    return verdict, [
        "slowest relative to PyTorch:",
        *(f"  {ratio:.2f}  {label}" for ratio, label in behind[:20]),
        "slowest relative to the fastest:",
        *(f"  {ratio:.2f}  {label}" for ratio, label in losses[:20]),
        "predicted over measured, |log|, median and 90th percentile:",
        *(
            f"  {name:<8} {median(each):.2f} {sorted(each)[int(0.9 * len(each))]:.2f}"
            for name, each in errors.items()
        ),
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
