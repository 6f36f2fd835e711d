"""Replace pieces of work in earlier results by a repeated measurement.

A piece (a case and a map) is replaced with all its contenders, so a speed-up compares times of one
run.  Both runs must have the same machine and settings.  The results and the report name each
repetition, with its date and commit.
"""

from __future__ import annotations

import argparse
from itertools import product
from math import inf
from pathlib import Path

from .cases import CASES, CUDA_CASES, WORKS
from .compare import differences
from .results import Results, results_file


def merged(old: Results, new: Results) -> Results:
    """The old results with the pieces of work of the new ones.

    Raises:
        SystemExit: the runs differ in machine, settings or the definition of a case.
    """
    before = {case["name"]: (case["problem"], case["dtype"]) for case in old.cases}
    found = differences(old, new) + [
        f"{case['name']!r} is another case now"
        for case in new.cases
        if case["name"] in before and before[case["name"]] != (case["problem"], case["dtype"])
    ]
    if found:
        raise SystemExit(f"these runs cannot be merged: {'; '.join(found)}")
    repeated = {(row.case, row.work) for row in new.rows}
    kept = [row for row in old.rows if (row.case, row.work) not in repeated]
    names = (case.name for case in (*CASES, *CUDA_CASES))
    order: dict[tuple[str, str], float] = {
        piece: place for place, piece in enumerate(product(names, WORKS))
    }
    cases = {case["name"]: case for case in (*old.cases, *new.cases)}
    contenders = {each["name"]: each for each in (*old.contenders, *new.contenders)}
    again = {
        "command": new.settings["command"],
        "started": new.settings["started"],
        "commit": new.machine.get("commit"),
        "pieces": len(repeated),
    }

    def place(case: str, work: str) -> float:
        """The place of a piece of work in a whole run."""
        return order.get((case, work), inf)

    return Results(
        machine=old.machine,
        settings={**old.settings, "again": [*old.settings.get("again", []), again]},
        peaks=old.peaks,
        cases=sorted(cases.values(), key=lambda case: place(case["name"], WORKS[0])),
        contenders=list(contenders.values()),
        rows=sorted([*kept, *new.rows], key=lambda row: place(row.case, row.work)),
    )


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks merge", description=__doc__)
    parser.add_argument("old", type=Path, metavar="OLD", help="results to change")
    parser.add_argument("new", type=Path, metavar="NEW", help="results of the repeated pieces")
    options = parser.parse_args(words)
    result = merged(Results.load(options.old), Results.load(options.new))
    path = results_file(options.old)
    result.save(path)
    pieces = result.settings["again"][-1]["pieces"]
    print(f"{pieces} pieces of work were merged into {path}; now run")
    print(f"python -m benchmarks report {path}")
    return 0
