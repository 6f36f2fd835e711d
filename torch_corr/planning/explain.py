"""The text that ``explain`` prints: each algorithm's time and workspace, or why it is excluded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from ..algorithms import Algorithm
from ..request import MapName
from .auto import Candidate
from .machine import machine_of


def table(map: MapName, candidates: Sequence[Candidate], chosen: Algorithm) -> Iterator[str]:
    """One map's algorithms, fastest first, ``>`` before the chosen one; then the refusals."""
    yield f"{map}:"
    width = max(9, *(len(each.algorithm.spelling) for each in candidates))
    for each in sorted(candidates, key=lambda each: (bool(each.refusals), each.seconds)):
        mark = ">" if each.algorithm == chosen else " "
        name = each.algorithm.spelling
        if not math.isfinite(each.seconds):
            yield from (f"    {name:<{width}} refuses: {sentence}" for sentence in each.refusals)
            continue
        verdict = f"ruled out: {each.refusals[0]}" if each.refusals else each.algorithm.verdict
        yield (
            f"  {mark} {name:<{width}} {duration(each.seconds):>9} {each.source:<9} "
            f"{size(each.workspace):>9}  {verdict}"
        )
    if not any(each.algorithm == chosen for each in candidates):
        yield f"  > {chosen!r}"


def provenance(device: torch.device, dtype: torch.dtype) -> str:
    """The machine whose rates the predictions use."""
    machine = machine_of(device, dtype)
    if not machine.measured:
        return (
            f"predicted for {machine.name} from its clock, multiprocessors and memory bus: lower "
            f"bounds, except for slowdowns of 'aten' and 'triton' measured on an H200"
        )
    rates = (
        f"predicted for {machine.name} with {machine.threads} threads, measured {machine.measured}"
    )
    if machine.is_fitted:
        return f"{rates}; for this machine: python -m torch_corr calibrate"
    return (
        f"{rates}; the predictions were fitted on another processor or number of threads, so auto "
        f"leaves PyTorch only for twice its speed; python -m torch_corr calibrate measures this "
        f"machine, torch_corr.tune a model"
    )


def duration(seconds: float) -> str:
    """A time with three digits and a unit, such as ``1.23 ms``."""
    if seconds >= 1:
        return f"{seconds:#.3g} s"
    unit, number = ("ms", seconds * 1e3) if seconds >= 1e-3 else ("us", seconds * 1e6)
    return f"{number:#.3g}".rstrip(".") + f" {unit}"


def size(number: int) -> str:
    """A workspace such as ``1.5 MiB``."""
    return f"{number / 2**20:.1f} MiB"
