"""The README's benchmark section is made from ``benchmarks/results``, never by hand.

It stands between two marker lines.  The charts it shows carry a digest of the results that
they were drawn from, so that ``--check`` finds a stale chart without drawing one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from . import report
from .results import Results, digest

START, END = "<!-- benchmarks:start -->", "<!-- benchmarks:end -->"
ROOT = Path(__file__).parent.parent
COMMAND = "python -m benchmarks readme"
SHOWN = ("speedup", "kernel-size")
"""Charts in the README; the others are in the report."""


def section(folder: Path, root: Path) -> str:
    """What stands between the markers: means and charts of each machine."""
    parts = []
    for path in result_files(folder):
        results = Results.load(path)
        place = path.parent.relative_to(root).as_posix()
        parts.append(report.conditions(results, brief=True))
        parts.append(report.summary(results))
        parts += [
            f"![{report.CHARTS[name]}]({place}/{name}.svg)"
            for name in SHOWN
            if (path.parent / f"{name}.svg").exists()
        ]
        parts.append(f"[Every case, losses included]({place}/report.md).")
    if not parts:
        parts.append("No results are committed yet; `python -m benchmarks` makes them.")
    return "\n\n".join(parts)


def filled(readme: str, inside: str) -> str:
    """The README with its section replaced.

    Raises:
        SystemExit: the markers are missing or out of order.
    """
    before, start, rest = readme.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise SystemExit(
            f"README.md has no benchmark section; put the lines\n{START}\n{END}\nwhere it belongs"
        )
    return f"{before}{START}\n{inside}\n{END}{after}"


def stale(folder: Path) -> list[str]:
    """Reports and charts that do not belong to their results."""
    found = []
    for path in result_files(folder):
        mark = digest(path)
        charts = sorted(path.parent.glob("*.svg"))
        for chart in charts:
            if mark not in chart.read_text(encoding="utf-8"):
                found.append(f"{chart} was drawn from other results")
        text = report.markdown(Results.load(path), _chart_names(path))
        written = path.parent / "report.md"
        if not written.exists() or written.read_text(encoding="utf-8") != text:
            found.append(f"{written} is not what {path.name} gives")
    return found


def result_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/results.json"))


def _chart_names(path: Path) -> list[str]:
    return [name for name in report.CHARTS if (path.parent / f"{name}.svg").exists()]


def main(words: list[str], root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if out of step")
    options = parser.parse_args(words)
    folder, readme = root / "benchmarks" / "results", root / "README.md"
    if not readme.exists():
        raise SystemExit(f"no README.md in {root}")
    text = readme.read_text(encoding="utf-8")
    wanted = filled(text, section(folder, root))
    if not options.check:
        readme.write_text(wanted, encoding="utf-8")
        return 0
    problems = stale(folder)
    if problems:
        problems.append("run: python -m benchmarks report RESULTS.json")
    if wanted != text:
        problems.append(f"README.md is out of step with benchmarks/results; run: {COMMAND}")
    for line in problems:
        print(line, file=sys.stderr)
    return 1 if problems else 0
