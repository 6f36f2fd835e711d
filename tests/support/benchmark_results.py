"""Small cases, short settings and invented results for the tests of the benchmark suite."""

from __future__ import annotations

import random
from typing import Any

import torch

from benchmarks.cases import CASES, Case
from benchmarks.machine import describe
from benchmarks.measure import Settings
from benchmarks.results import Results, Row

CPU = torch.device("cpu")
SMALL = Case("small", "n2c4-x9x11-o6-k3x2-p1-g2", "test", group="tiny")
LARGE = Case("large", "n2c4-x20x22-o4-k7-p3", "test", group="dense")
BRIEF = Settings(budget=0.002, sample=0.0005, most=3, memory=False, seed=7)


def timed(case: str, work: str, contender: str, *samples: float, **fields: Any) -> Row:
    """A row with samples; a single number stands for three equal ones."""
    row = Row(case, work, contender, number=1, **fields)
    row.set_samples(samples if len(samples) > 1 else samples * 3)
    return row


def results_of(rows: list[Row], **settings: Any) -> Results:
    """Results with these rows, on this machine."""
    cases = {case.name: case for case in (*CASES, SMALL, LARGE)}
    kinds = {"torch": "torch", "torch, cudnn.benchmark": "torch", "opencv filter2D": "peer"}
    return Results(
        machine=describe(CPU),
        settings={
            "command": "python -m benchmarks",
            "started": "2020-01-01 00:00 UTC",
            "seconds": 60,
            "threads": 2,
            "quick": False,
            "tf32": False,
            **settings,
        },
        peaks={"matmul float32": 1e11, "copy": 1e10},
        cases=[cases[name].entry for name in dict.fromkeys(row.case for row in rows)],
        contenders=[
            {"name": name, "kind": kinds.get(name, "ours"), "version": "1", "absent": None}
            for name in dict.fromkeys(row.contender for row in rows)
        ],
        rows=rows,
    )


def noisy_run(
    seed: int, slower: float = 1.0, drift: float = 1.0, count: int = 15, noise: float = 0.04
) -> Results:
    """Invented samples with noise; ``auto`` is slower on one case, the machine on all."""
    rng = random.Random(seed)
    rows = []
    for case in CASES:
        if case.group not in ("dense", "image filters", "kernel sweep", "image sweep"):
            continue
        for work in case.works:
            base = 1e-9 * case.problem.multiplications**0.9 * drift
            for name, factor in (
                ("torch", 1.0),
                ("auto", 0.3 * (slower if case.name == "photo 9x9" else 1)),
                ("fft", 3 / case.problem.kernel[0]),
                ("unfold", 0.3),
                ("opencv filter2D", 0.5),
            ):
                samples = [base * factor * rng.lognormvariate(0, noise) for _ in range(count)]
                rows.append(timed(case.name, work, name, *samples, memory=2**24))
    return results_of(rows)
