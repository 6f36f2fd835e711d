"""Put pieces of work that were measured again into the results of an earlier run.

Whole pieces only (a case and a map, with all who took part), so that a ratio still belongs to one
run.  Both runs must be of one machine and made alike; the results tell, and so does the report,
what was measured again, when, and of which commit.
"""

from __future__ import annotations

import argparse
from itertools import product
from math import inf
from pathlib import Path

from .cases import CASES, CUDA_CASES, WORKS
from .compare import differences
from .results import Results, Row, results_file


def merged(old: Results, new: Results) -> Results:
    """The old run with the pieces of the new one in place of its own.

    Raises:
        SystemExit: the runs were made differently.
    """
    spelt = {case["name"]: (case["problem"], case["dtype"]) for case in old.cases}
    found = differences(old, new) + [
        f"{case['name']!r} is another case now"
        for case in new.cases
        if case["name"] in spelt and spelt[case["name"]] != (case["problem"], case["dtype"])
    ]
    if found:
        raise SystemExit(f"these runs do not belong in one table: {'; '.join(found)}")
    pieces: dict[tuple[str, str], list[Row]] = {}
    for run in (old, new):
        of_run: dict[tuple[str, str], list[Row]] = {}
        for row in run.rows:
            of_run.setdefault((row.case, row.work), []).append(row)
        pieces |= of_run
    cases = {case["name"]: case for case in (*old.cases, *new.cases)}
    order = _order()
    contenders = {each["name"]: each for each in (*old.contenders, *new.contenders)}
    again = {
        "command": new.settings["command"],
        "started": new.settings["started"],
        "commit": new.machine.get("commit"),
        "pieces": len({(row.case, row.work) for row in new.rows}),
    }
    return Results(
        machine=old.machine,
        settings={**old.settings, "again": [*old.settings.get("again", []), again]},
        peaks=old.peaks,
        cases=sorted(cases.values(), key=lambda case: order.get((case["name"], WORKS[0]), inf)),
        contenders=list(contenders.values()),
        rows=[
            row
            for piece in sorted(pieces, key=lambda piece: order.get(piece, inf))
            for row in pieces[piece]
        ],
    )


def _order() -> dict[tuple[str, str], int]:
    """The place of each piece of work in a whole run."""
    pieces = product((case.name for case in (*CASES, *CUDA_CASES)), WORKS)
    return {piece: place for place, piece in enumerate(pieces)}


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks merge", description=__doc__)
    parser.add_argument("old", type=Path, metavar="OLD", help="results to be changed")
    parser.add_argument("new", type=Path, metavar="NEW", help="results of what was run again")
    options = parser.parse_args(words)
    result = merged(Results.load(options.old), Results.load(options.new))
    path = results_file(options.old)
    result.save(path)
    print(f"{result.settings['again'][-1]['pieces']} pieces of work went into {path}; now run")
    print(f"python -m benchmarks report {path}")
    return 0
