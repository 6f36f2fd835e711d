"""Fill the benchmark sections of README.md and docs/speed.md from ``benchmarks/results``.

Each section is between two marker lines.  README.md gets one table and one chart, of one machine;
docs/speed.md gets those of all machines.  Each chart contains a digest of its results, so
``--check`` finds a stale chart without drawing one.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from . import report
from .analysis import means, times
from .results import Results, digest

START, END = "<!-- benchmarks:start -->", "<!-- benchmarks:end -->"
ROOT = Path(__file__).parent.parent
COMMAND = "python -m benchmarks readme"
NONE = "No results are committed yet; `python -m benchmarks` makes them."


def short_section(folder: Path, page: Path) -> str:
    """Settings, means and one chart of the machine whose run is complete, for README.md."""
    found = {path: Results.load(path) for path in result_files(folder)}
    if not found:
        return NONE
    path = min(found, key=lambda path: "unfinished" in found[path].settings)
    parts = _machine(path, found.pop(path), page, ("speedup",))
    if found:
        others = ", ".join(_mean(path, results, page) for path, results in found.items())
        parts.append(f"Other machines: {others}.")
    return "\n\n".join(parts)


def full_section(folder: Path, page: Path) -> str:
    """Settings, means and charts of every machine, for docs/speed.md."""
    parts = []
    for path in result_files(folder):
        results = Results.load(path)
        parts.append(f"### {results.name}")
        parts += _machine(path, results, page, ("speedup", "kernel-size"))
    return "\n\n".join(parts) or NONE


PAGES: dict[str, Callable[[Path, Path], str]] = {
    "README.md": short_section,
    "docs/speed.md": full_section,
}
"""The pages with a benchmark section, and the functions that write it."""


def settings(results: Results) -> str:
    """Machine, date and command in one line."""
    machine, run = results.machine, results.settings
    again = run.get("again", [])
    later = f" (parts measured again, last {again[-1]['started']})" if again else ""
    unfinished = f" **The run did not finish: {run['unfinished']}.**" if "unfinished" in run else ""
    return (
        f"{results.name}, {run['threads']} threads, PyTorch {machine['torch']}, "
        f"{run['started']}{later}: `{run['command']}`.{unfinished}"
    )


def _machine(path: Path, results: Results, page: Path, charts: tuple[str, ...]) -> list[str]:
    return [
        settings(results),
        report.summary(results),
        *(
            f"![{report.CHARTS[name]}]({_link(path, f'{name}.svg', page)})"
            for name in charts
            if path.with_name(f"{name}.svg").exists()
        ),
        f"[Every case, losses included]({_link(path, 'report.md', page)}).",
    ]


def _mean(path: Path, results: Results, page: Path) -> str:
    """A link to a report, and the mean over its pieces of work."""
    link = f"[{results.name}]({_link(path, 'report.md', page)})"
    for each in means(results):
        if each.group == "all":
            return f"{link} {times(each.mean)} over {each.pieces} pieces of work"
    return link


def _link(results: Path, name: str, page: Path) -> str:
    """The path from a page to a file beside the results."""
    return Path(os.path.relpath(results.with_name(name), page.parent)).as_posix()


def filled(page: str, inside: str) -> str:
    """The page with another section.

    Raises:
        SystemExit: the markers are missing or out of order.
    """
    before, start, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise SystemExit(
            f"the page has no benchmark section; put the lines\n{START}\n{END}\nwhere it belongs"
        )
    return f"{before}{START}\n{inside}\n{END}{after}"


def stale(folder: Path) -> list[str]:
    """Sentences about reports and charts that do not match their results."""
    found = []
    for path in result_files(folder):
        for chart in sorted(path.parent.glob("*.svg")):
            source = path.with_name("networks.json") if chart.stem == "networks" else path
            if digest(source) not in chart.read_text(encoding="utf-8"):
                found.append(f"{chart} was drawn from other results")
        text = report.markdown(Results.load(path), report.charts_beside(path))
        written = path.with_name("report.md")
        if not written.exists() or written.read_text(encoding="utf-8") != text:
            found.append(f"{written} does not match {path.name}")
    return found


def result_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/results.json"))


def main(words: list[str], root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if outdated")
    options = parser.parse_args(words)
    folder = root / "benchmarks" / "results"
    problems = stale(folder) if options.check else []
    if problems:
        problems.append("run: python -m benchmarks report RESULTS.json")
    for name, section in PAGES.items():
        page = root / name
        if not page.exists():
            raise SystemExit(f"no {name} in {root}")
        text = page.read_text(encoding="utf-8")
        wanted = filled(text, section(folder, page))
        if not options.check:
            page.write_text(wanted, encoding="utf-8")
        elif wanted != text:
            problems.append(f"{name} does not match benchmarks/results; run: {COMMAND}")
    for line in problems:
        print(line, file=sys.stderr)
    return 1 if problems else 0
