"""Speed-ups, means and other figures that report, charts and comparison derive from results.

The speed-up of a row is PyTorch's median time divided by ours, in one run.  Geometric means are
over the pieces of work (a case and a map) that both did, without the sweeps over sizes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import geometric_mean
from typing import Any, NamedTuple

import torch

from torch_corr import MAPS, Problem
from torch_corr.algorithms.base import definition_flops, operand_bytes

from .cases import GROUPS, SWEEPS
from .results import Results, Row

HEADLINE = "auto"
TORCH, SEARCHED = "torch", "torch, cudnn.benchmark"
"""PyTorch as a contender, without and with cuDNN's search."""

LOSS = 1 / 1.05
"""Speed-ups below this are losses."""

WEAK = 20e9
"""FLOP/s below which PyTorch is called weak at a piece of work."""


@dataclass(frozen=True)
class Line:
    """One piece of work, with the rows that are compared.

    Attributes:
        case: the case's entry in the results.
        work: the map or call.
        torch: PyTorch's row, in the same settings as ours.
        searched: PyTorch's row with ``torch.backends.cudnn.benchmark``.
        ours: the row of ``auto``.
        best: the fastest row of a single algorithm of ours.
        peer: the fastest row of a peer.
        rows: all rows, by contender.
    """

    case: dict[str, Any]
    work: str
    torch: Row | None
    searched: Row | None
    ours: Row | None
    best: Row | None
    peer: Row | None
    rows: dict[str, Row]

    @property
    def speedup(self) -> float | None:
        """PyTorch's time over ours; above 1 is faster than PyTorch."""
        if self.torch is None or self.ours is None:
            return None
        return self.torch.seconds / self.ours.seconds

    @property
    def searched_speedup(self) -> float | None:
        """The speed-up with cuDNN's search.

        If ``auto`` chose ``aten``, it also gains from the search, and keeps a loss that it has
        without.
        """
        if self.searched is None or self.ours is None or self.work not in MAPS:
            return None
        if self.ours.note == "aten":
            return None if self.speedup is None else min(1.0, self.speedup)
        return self.searched.seconds / self.ours.seconds

    @property
    def problem(self) -> Problem:
        return Problem.parse(self.case["problem"])

    @property
    def flops(self) -> float:
        """Operations of the definition."""
        return self._maps * definition_flops(self.problem, getattr(torch, self.case["dtype"]))

    @property
    def bytes(self) -> float:
        """Bytes of operands and result, each moved once."""
        return self._maps * operand_bytes(self.problem, getattr(torch, self.case["dtype"]))

    @property
    def _maps(self) -> int:
        return 3 if self.work == "call+grad" else 1

    @property
    def sweep(self) -> bool:
        return self.case["group"] in SWEEPS

    @property
    def channels_last(self) -> bool:
        """Whether it repeats another case in this layout."""
        return str(self.case["name"]).endswith("channels_last")


def lines(results: Results) -> list[Line]:
    """A line for each piece of work, in the order of the run."""
    found = []
    for case, work, rows in results.pieces():
        timed = {name: row for name, row in rows.items() if row.timed}
        ours = [row for name, row in timed.items() if results.kind(name) == "ours"]
        peers = [row for name, row in timed.items() if results.kind(name) == "peer"]
        found.append(
            Line(
                case,
                work,
                torch=timed.get(TORCH),
                searched=timed.get(SEARCHED),
                ours=timed.get(HEADLINE),
                best=_fastest(row for row in ours if not row.contender.startswith(HEADLINE)),
                peer=_fastest(peers),
                rows=rows,
            )
        )
    return found


def roof_seconds(results: Results, line: Line) -> tuple[float, str] | None:
    """The least time for the definition by the measured peaks, and the peak that limits it."""
    dtype = line.case["dtype"]
    rate = results.peaks.get(f"matmul {dtype}")
    if rate and dtype in ("float16", "bfloat16"):
        # Without a fast product in half precision, computing in float32 is faster.
        rate = max(rate, results.peaks.get("matmul float32", 0.0))
    copy = results.peaks.get("copy")
    if not rate or not copy:
        return None
    return max((line.flops / rate, "compute"), (line.bytes / copy, "copy"))


class Mean(NamedTuple):
    """The speed-ups of a group of pieces of work."""

    group: str
    pieces: int
    mean: float
    least: float
    most: float
    losses: int


def means(results: Results, searched: bool = False) -> list[Mean]:
    """The mean of each group, of all, and of the pieces of work where PyTorch is weak.

    Args:
        searched: compare with PyTorch with cuDNN's search.
    """
    counted = [
        (line, ratio)
        for line in lines(results)
        if (ratio := line.searched_speedup if searched else line.speedup) is not None
        and not line.sweep
        and not line.channels_last
    ]

    def is_weak(line: Line) -> bool:
        return line.torch is not None and line.flops / line.torch.seconds < WEAK

    members = {
        **{group: [each for each in counted if each[0].case["group"] == group] for group in GROUPS},
        "all": counted,
        f"where PyTorch is under {WEAK / 1e9:.0f} GFLOP/s": [
            each for each in counted if is_weak(each[0])
        ],
    }
    found = []
    for group, pairs in members.items():
        ratios = [ratio for _, ratio in pairs]
        if ratios:
            mean, losses = geometric_mean(ratios), sum(ratio < LOSS for ratio in ratios)
            found.append(Mean(group, len(ratios), mean, min(ratios), max(ratios), losses))
    return found


def times(ratio: float) -> str:
    """``12×``, ``1.53×``: two or three digits."""
    return f"{ratio:.0f}×" if ratio >= 99.5 else f"{ratio:.3g}×"


def clock(seconds: float) -> str:
    """``1.5 ms``: three digits and a unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def _fastest(rows: Iterable[Row]) -> Row | None:
    return min(rows, key=lambda row: row.seconds, default=None)
