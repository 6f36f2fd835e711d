"""Timing algorithms on a problem, in turns, so that what disturbs one disturbs all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median

import torch
from torch import Tensor

from ..algorithms import Algorithm
from ..algorithms.cost import MMAP_THRESHOLD
from ..request import Request

_SECONDS_PER_ALGORITHM = 0.05
"""Seconds of runs after which an algorithm has been timed well enough."""

_TOO_SLOW = 4.0
"""Times the quickest run from which an algorithm is not run again."""

_LONG_RUN = 1.0
"""Seconds of a first run beside which what it sets up is nothing: it counts as a timed one."""


def time_algorithms(algorithms: Sequence[Algorithm], request: Request) -> dict[str, float]:
    """Median seconds of each algorithm on one map, by spelling.

    Each runs once untimed, since a first run sets up what lasts, and twice to sort out those
    that are hopeless, for which that is enough; the others take turns.  A long first run is timed
    itself, else an image that takes seconds would be measured for minutes.  The operands are made
    here, without touching the random generators: no algorithm's speed depends on its data.
    """
    problem, map, device = request.problem, request.map, request.device
    if device.type == "cpu":
        raise_mmap_threshold()
    left, right = (
        torch.full(shape, 0.5, dtype=request.dtype, device=device) for shape in request.shapes[:2]
    )

    def run(algorithm: Algorithm) -> float:
        return _timed(device, lambda: getattr(algorithm, map)(problem, left, right))

    firsts = {algorithm: run(algorithm) for algorithm in algorithms}
    samples = {
        algorithm: [first] if first > _LONG_RUN else [run(algorithm), run(algorithm)]
        for algorithm, first in firsts.items()
    }
    limit = _TOO_SLOW * min((min(times) for times in samples.values()), default=0.0)
    hopeful = [each for each in algorithms if min(samples[each]) <= max(limit, 1e-3)]
    for turn in _rounds(_SECONDS_PER_ALGORITHM * len(hopeful)):
        for algorithm in hopeful[turn % len(hopeful) :] + hopeful[: turn % len(hopeful)]:
            samples[algorithm].append(run(algorithm))
    return {algorithm.spelling: median(values) for algorithm, values in samples.items()}


def raise_mmap_threshold() -> None:
    """Have the allocator keep what is freed, as it does once a large tensor has been freed.

    In a young process glibc gives every result of some MB back to the system, and takes it page by
    page again: ``F.conv2d`` of 64x1x28x28 with 32 kernels of 5x5 takes 3.5 ms there and 0.4 ms in a
    process that has freed one tensor of 8 MB, two Zen 4 cores.  It is the latter that works on.
    """
    torch.empty(MMAP_THRESHOLD - 2**16, dtype=torch.uint8)


def _rounds(seconds: float) -> Iterator[int]:
    """Numbers of turns until the time is up: from 1 to 100 of them."""
    end = time.perf_counter() + seconds
    for turn in range(100):
        yield turn
        if time.perf_counter() > end:
            return


def _timed(device: torch.device, work: Callable[[], Tensor]) -> float:
    if device.type != "cuda":
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        return time.perf_counter() - start
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    with torch.cuda.device(device):
        before.record()
        work()
        after.record()
    after.synchronize()
    return float(before.elapsed_time(after)) / 1e3


def _wait(device: torch.device) -> None:
    """Until a device has done what it was told to do; a CPU has by then."""
    if device.type not in ("cpu", "meta"):
        torch.accelerator.synchronize(device)
