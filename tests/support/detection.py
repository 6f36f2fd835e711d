"""Fill the tables of docs/conformance.md: ``PYTHONPATH=tests python -m support.detection [SEEDS]``.

The tables list the laws, and whether each planted bug is caught by the law that names it, with
several seeds.  Prints the rows; the exit code is 1 if a bug was missed.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch

from torch_corr.testing import LAWS, Law, Verdict, check_corr2d

from .planted import BUGS, Bug

PAGE = Path(__file__).parents[2] / "docs" / "conformance.md"
_TABLE = r"(?<=<!-- {name}: PYTHONPATH=tests python -m support.detection -->\n).*?(?=<!-- end -->)"


def main(seeds: int) -> int:
    """Try every planted bug with several seeds; returns how many were missed."""
    torch.set_num_threads(1)
    rows = ["| planted bug | what is wrong | dtype | its law | caught | smallest case |", _rule(6)]
    missed = 0
    for bug in BUGS:
        verdicts = [_verdict(bug, seed) for seed in range(seeds)]
        caught = [each for each in verdicts if each.outcome == "failed"]
        missed += len(verdicts) - len(caught)
        examples = [each.counterexample.case for each in caught if each.counterexample]
        smallest = min(examples, key=lambda case: case.size, default=None)
        found = f"`{smallest.problem}`" if smallest else ""
        rows.append(row(*described(bug), f"{len(caught)} of {seeds}", found))
        print(rows[-1], flush=True)
    total = len(BUGS) * seeds
    summary = f"{len(BUGS)} bugs, {seeds} seeds: missed {missed} of {total}."
    print(summary)
    laws = ["| law | dtypes | it says |", _rule(3), *(row(*spoken(law)) for law in LAWS)]
    page = PAGE.read_text()
    for name, lines in (("laws", laws), ("bugs", [*rows, "", summary])):
        text = "\n".join(["", *lines, "", ""])
        page = re.sub(
            _TABLE.format(name=name), lambda _, text=text: text, page, count=1, flags=re.DOTALL
        )
    PAGE.write_text(page)
    return missed


def described(bug: Bug) -> tuple[str, str, str, str]:
    """A bug's cells that do not depend on a run."""
    dtype = str(bug.dtype).removeprefix("torch.")
    return bug.name.replace("_", " "), bug.what, dtype, f"`{bug.law}`"


def spoken(law: Law) -> tuple[str, str, str]:
    """A law's cells."""
    dtypes = {"any": "all", "differentiable": "not integers", "double": "float64, complex128"}
    claim = ", if claimed" if law.claim else ""
    return f"`{law.name}`", dtypes[law.dtypes] + claim, law.statement.replace("|", "&#124;")


def _verdict(bug: Bug, seed: int) -> Verdict:
    report = check_corr2d(bug.fn, dtypes=bug.dtype, laws=[bug.law], errors=bug.errors, seed=seed)
    return report.verdicts[0]


def row(*cells: str) -> str:
    """A line of a table."""
    return f"| {' | '.join(cells)} |"


def _rule(columns: int) -> str:
    return row(*["---"] * columns)


if __name__ == "__main__":
    sys.exit(bool(main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)))
