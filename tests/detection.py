"""Print the detection table of docs/conformance.md: ``python tests/detection.py [SEEDS]``."""

from __future__ import annotations

import sys

import torch
from planted import BUGS, Bug

from torch_corr.testing import Verdict, check_corr2d


def main(seeds: int) -> int:
    """Try every planted bug with several seeds; returns how many were missed."""
    torch.set_num_threads(1)
    print(f"| planted bug | what is wrong | dtype | its law | caught, of {seeds} | smallest case |")
    print("| --- | --- | --- | --- | --- | --- |")
    missed = 0
    for bug in BUGS:
        verdicts = [_verdict(bug, seed) for seed in range(seeds)]
        caught = [each for each in verdicts if each.outcome == "failed"]
        missed += len(verdicts) - len(caught)
        print(f"| {' | '.join(_row(bug, caught))} |", flush=True)
    print(f"\n{len(BUGS)} bugs, {seeds} seeds, missed {missed} of {len(BUGS) * seeds}.")
    return missed


def _verdict(bug: Bug, seed: int) -> Verdict:
    report = check_corr2d(bug.fn, dtypes=[bug.dtype], laws=[bug.law], errors=bug.errors, seed=seed)
    return report.verdicts[0]


def _row(bug: Bug, caught: list[Verdict]) -> list[str]:
    examples = [each.counterexample for each in caught if each.counterexample]
    smallest = min(examples, key=lambda each: each.case.size, default=None)
    return [
        bug.name.replace("_", " "),
        bug.what,
        str(bug.dtype).removeprefix("torch."),
        bug.law,
        str(len(caught)),
        f"`{smallest.case.problem}`" if smallest else "",
    ]


if __name__ == "__main__":
    sys.exit(bool(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)))
