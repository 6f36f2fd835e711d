"""From a results file to a table that a stranger can read, losses beside wins.

Speed-up of a row is PyTorch's median over ours, in one run.  Where PyTorch has several rows
(cuDNN's search on and off) the faster one counts.  Geometric means are over the pieces of work
(a case and a map) that both did; the sweeps, which exist for the charts, are left out.

Share of the roof: the least time that the machine's measured peaks allow for the definition,
max(operations / matrix-product rate, bytes of operands and result / copy rate), over the time
taken.  Transforms do fewer operations than the definition, so they may pass 100%.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import exp, log, prod
from pathlib import Path
from typing import Any

import torch

from torch_corr import MAPS, Problem

from . import INSTALL
from .cases import GROUPS, SWEEPS
from .machine import flops_per_product
from .results import Results, Row, results_file

HEADLINE = "auto"
CHARTS = {
    "speedup": "Speed-up over PyTorch, case by case",
    "kernel-size": "Cost against kernel size",
    "image-size": "Cost per pixel against image size",
    "memory": "Peak memory, case by case",
}
"""Names of the chart files and what they show, in the order of the report."""

TORCH, SEARCHED = "torch", "torch, cudnn.benchmark"
"""PyTorch as a contender, and with cuDNN's search."""

WEAK = 20e9
"""FLOP/s under which PyTorch is called weak on a piece of work."""


@dataclass(frozen=True)
class Line:
    """One piece of work, seen from the headline contender.

    Attributes:
        case: the case's entry in the results.
        work: the map or call.
        torch: PyTorch's right row, in the settings of ours.
        searched: the same where cuDNN searches (``torch.backends.cudnn.benchmark``).
        ours: the headline's row.
        best: the fastest right row of our algorithms.
        peer: the fastest right row of the peers.
        rows: all rows.
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
        """PyTorch's time over ours; above 1 is a win."""
        if self.torch is None or self.ours is None:
            return None
        return self.torch.seconds / self.ours.seconds

    @property
    def searched_speedup(self) -> float | None:
        """The same where cuDNN searches, for PyTorch and for ours where it stays with PyTorch.

        There ours gains what PyTorch does, and loses what it loses without.
        """
        if self.searched is None or self.ours is None or self.work not in MAPS:
            return None
        if self.ours.note == "aten":
            return None if self.speedup is None else min(1.0, self.speedup)
        return self.searched.seconds / self.ours.seconds

    @property
    def flops(self) -> int:
        return work_flops(self.case, self.work)

    @property
    def sweep(self) -> bool:
        return self.case["group"] in SWEEPS

    @property
    def channels_last(self) -> bool:
        """A map of another case's problem, in this layout besides."""
        return str(self.case["name"]).endswith("channels_last")


def lines(results: Results, headline: str = HEADLINE) -> list[Line]:
    """A line for each piece of work, in the order of the run."""
    found = []
    for case, work, rows in results.pieces():
        timed = [row for row in rows.values() if row.samples]
        found.append(
            Line(
                case,
                work,
                torch=_fastest(row for row in timed if row.contender == TORCH),
                searched=_fastest(row for row in timed if row.contender == SEARCHED),
                ours=_fastest(row for row in timed if row.contender == headline),
                best=_fastest(
                    row
                    for row in timed
                    if results.kind(row.contender) == "ours"
                    and not row.contender.startswith("auto")
                ),
                peer=_fastest(row for row in timed if results.kind(row.contender) == "peer"),
                rows=rows,
            )
        )
    return found


def work_flops(case: dict[str, Any], work: str) -> int:
    """Operations of the definition; a backward has two maps."""
    dtype = getattr(torch, case["dtype"])
    maps = 3 if work == "call+grad" else 1
    return maps * flops_per_product(dtype) * Problem.parse(case["problem"]).multiplications


def work_bytes(case: dict[str, Any], work: str) -> int:
    """Bytes of operands and result, each touched once."""
    problem, dtype = Problem.parse(case["problem"]), getattr(torch, case["dtype"])
    shapes = problem.input_shape, problem.weight_shape, problem.output_shape
    maps = 3 if work == "call+grad" else 1
    return maps * sum(prod(shape) for shape in shapes) * int(dtype.itemsize)


def roof_seconds(results: Results, case: dict[str, Any], work: str) -> tuple[float, str] | None:
    """The least time by the measured peaks, and which peak sets it."""
    rate = results.peaks.get(f"matmul {case['dtype']}")
    if rate and case["dtype"] in ("float16", "bfloat16"):
        # Where halves have no fast product, the way to compute is in float32.
        rate = max(rate, results.peaks.get("matmul float32", 0.0))
    copy = results.peaks.get("copy")
    if not rate or not copy:
        return None
    compute, traffic = work_flops(case, work) / rate, work_bytes(case, work) / copy
    return (compute, "compute") if compute >= traffic else (traffic, "copy")


def geometric_mean(values: Iterable[float]) -> float | None:
    logs = [log(value) for value in values]
    return exp(sum(logs) / len(logs)) if logs else None


def means(
    results: Results, searched: bool = False
) -> list[tuple[str, int, float, float, float, int]]:
    """(group, pieces, geometric mean, least, most, losses) per group, then overall.

    Args:
        searched: beside PyTorch where cuDNN searches.
    """

    def ratio(line: Line) -> float | None:
        return line.searched_speedup if searched else line.speedup

    found = []
    counted = [
        line
        for line in lines(results)
        if ratio(line) is not None and not line.sweep and not line.channels_last
    ]
    weak = [
        line
        for line in counted
        if line.torch is not None and line.flops / line.torch.seconds < WEAK
    ]
    groups = [
        (group, [line for line in counted if line.case["group"] == group]) for group in GROUPS
    ]
    groups.append(("all", counted))
    groups.append((f"where PyTorch is under {WEAK / 1e9:.0f} GFLOP/s", weak))
    for group, members in groups:
        ratios = [each for line in members if (each := ratio(line)) is not None]
        mean = geometric_mean(ratios)
        if mean is not None:
            losses = sum(ratio < 1 / 1.05 for ratio in ratios)
            found.append((group, len(ratios), mean, min(ratios), max(ratios), losses))
    return found


def summary(results: Results, searched: bool = False) -> str:
    """Geometric means per group, as a markdown table; ``searched``: see :func:`means`."""
    table = [
        "| group | pieces of work | speed-up over PyTorch (geometric mean) | least | most "
        "| slower by over 5% |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for group, count, mean, least, most, losses in means(results, searched):
        name = f"**{group}**" if group not in GROUPS else group
        table.append(
            f"| {name} | {count} | {times(mean)} | {times(least)} | {times(most)} | {losses} |"
        )
    if len(table) == 2:
        return "No piece of work was timed for both PyTorch and torch_corr."
    return "\n".join(table)


def conditions(results: Results) -> str:
    """The machine and the settings, in a paragraph."""
    machine, settings = results.machine, results.settings
    name = machine.get("gpu") or machine["cpu"]
    detail = f" ({machine['cpu_detail']})" if machine.get("cpu_detail") else ""
    peaks = ", ".join(
        f"{key} {value / 1e9:.1f} {'GB/s' if key.startswith('copy') else 'GFLOP/s'}"
        for key, value in results.peaks.items()
    )
    made = " This was a `--quick` run: few samples, few cases." if settings["quick"] else ""
    if "unfinished" in settings:
        made += f" **The run did not finish: {settings['unfinished']}.**"
    made += "".join(
        f" Pieces of work measured again: {each['pieces']}, by `{each['command']}`, "
        f"{each['started']}, at {each['commit'] or 'an unknown commit'}."
        for each in settings.get("again", [])
    )
    return (
        f"{name}{detail}, {machine['torch_cpu_capability']}, {machine['cores']} cores, "
        f"governor {machine['governor'] or 'not readable'}, load {machine['load_average']} before "
        f"and {machine.get('load_average_after')} after; torch {machine['torch']}, torch_corr "
        f"{machine['torch_corr']} at {machine['commit'] or 'an unknown commit'}, Python "
        f"{machine['python']}. {settings['threads']} threads, TF32 "
        f"{'on' if settings['tf32'] else 'off'}, subnormals flushed to zero, the same for all. "
        f"Measured peaks: {peaks or 'none'}. `{settings['command']}`, {settings['started']}, "
        f"{settings['seconds'] / 60:.0f} min.{made}"
    )


_READING = """\
A *case* is a layer or a task: its name, and the problem spelt out (n images, c channels, x pixels,
o output channels, k kernel, s stride, p padding, d dilation, g groups). Its *maps* are timed apart:
`forward` makes the output, `grad_input` and `grad_weight` are the two halves of backward; `call`
is `corr2d` beside `F.conv2d` as a user calls them, `call+grad` the same with backward. *PyTorch* is
`F.conv2d` and `aten::convolution_backward` in the same settings,
*torch_corr* is `algorithm="auto"`, *by* is the algorithm that it chose, and *speed-up* is PyTorch's
time over torch_corr's. (`fft, checked` is `fft` in double precision with a proof for each result,
or another algorithm where the proof fails.) *Best of ours* is the
fastest algorithm that can be named: where that is far ahead, `auto` chose badly.

Times are medians of one run in which all took turns, with the interquartile range in brackets
where it is above 5%. ▼ marks a loss of more than 5%. † marks a result that is right but for
rounding beyond the bound that torch_corr's own are held to. Every time belongs to a result that was
checked against the float64 definition before and after it was taken.

*GFLOP/s* and *share of roof* are torch_corr's: the definition's operations over the time, and the
least time that this machine's measured rates of matrix products (compute) and of copying (copy)
allow them, over the time. More than 100% is no mistake: transforms do fewer operations than the
definition, caches are faster than memory, and a product of another shape can be faster than the
square one that was measured."""


_CLOCKS = """\
*On a GPU* maps are compared by the device's own time: it sleeps until all calls of a sample are
queued, so it never waits for the host (‡ marks what waits for the device by itself, so that the
host was not ahead). A call in a stream that keeps up takes the later of device and host, and one
layer after the other is launched while the device works; so the device's time is that of large
layers, and the host's that of small ones. `call` and `call+grad` are compared by the stream's time.
Samples repeat one call on the same operands, which stay in the device's cache where they fit.

*Searched* is PyTorch with `torch.backends.cudnn.benchmark`, where cuDNN tries what it has. With
that setting `auto` takes as long where it stays with PyTorch; ▽ marks where it does not and is
slower by more than 5%."""


def markdown(results: Results, charts: Iterable[str] = ()) -> str:
    """The whole report."""
    parts = [
        "# Benchmark report",
        conditions(results),
        _READING + (f"\n\n{_CLOCKS}" if results.settings.get("device") == "cuda" else ""),
        "## Means",
        "Over the pieces of work (a case and a map) that both did; the sweeps over kernel and "
        "image sizes are left out, and so are maps that were timed in channels_last besides.",
        summary(results),
    ]
    if any(line.searched_speedup is not None for line in lines(results)):
        parts += ["Where cuDNN searches, over the maps alone:", summary(results, searched=True)]
    for name in charts:
        parts.append(f"![{CHARTS[name]}]({name}.svg)")
    for group, meaning in GROUPS.items():
        members = [line for line in lines(results) if line.case["group"] == group]
        if members:
            parts += [
                f"## {group.capitalize()}",
                f"{meaning.capitalize()}.",
                _table(results, members),
            ]
    if any(row.host is not None for row in results.rows):
        parts += ["## What calls cost the host", _host(results)]
    parts += ["## All contenders", _everyone(results)]
    parts += ["## Not timed", _not_timed(results)]
    return "\n\n".join(parts) + "\n"


def _table(results: Results, members: list[Line]) -> str:
    cuda = results.settings.get("device") == "cuda"
    column, rule = (" searched |", "--:|") if cuda else ("", "")
    table = [
        f"| case | map | PyTorch |{column} torch_corr | by | speed-up | best of ours | best peer "
        "| GFLOP/s | share of roof |",
        f"|---|---|--:|{rule}--:|---|--:|---|---|--:|--:|",
    ]
    shown = None
    for line in members:
        name = (
            "" if line.case["name"] == shown else f"{line.case['name']}<br>`{line.case['problem']}`"
        )
        shown = line.case["name"]
        ratio = line.speedup
        mark = " ▼" if ratio is not None and ratio < 1 / 1.05 else ""
        searched = line.searched_speedup
        behind = " ▽" if searched is not None and searched < 1 / 1.05 else ""
        cells = [
            name,
            line.work,
            timing(line.torch),
            *([timing(line.searched) + behind] if cuda else []),
            timing(line.ours),
            line.ours.note if line.ours else "",
            f"**{times(ratio)}**{mark}" if ratio is not None else "–",
            _named(line.best),
            _named(line.peer),
            f"{line.flops / line.ours.seconds / 1e9:.3g}" if line.ours else "–",
            _share(results, line, line.ours),
        ]
        table.append("| " + " | ".join(cells) + " |")
    return "\n".join(table)


def _host(results: Results) -> str:
    """A line per small piece of work and contender: host, device, and both in a stream."""
    table = [
        "Of the smallest cases, where it is what counts; `results.json` has it of all.",
        "",
        "| case | work | contender | host, µs | device, µs | in a stream, µs |",
        "|---|---|---|--:|--:|--:|",
    ]
    for case, work, rows in results.pieces():
        for row in rows.values() if case["group"] == "tiny" else ():
            if row.host is None or not row.samples:
                continue
            device, stream = (row.seconds, row.stream) if row.stream else (None, row.seconds)
            cells = (
                "–" if each is None else f"{1e6 * each:.1f}" for each in (row.host, device, stream)
            )
            table.append(f"| {case['name']} | {work} | {row.contender} | {' | '.join(cells)} |")
    return "\n".join(table)


def _everyone(results: Results) -> str:
    """A line per contender: version, how often right, geometric mean beside PyTorch."""
    table = [
        "| contender | version | timed | wrong | rough | failed or too slow | refused "
        "| speed beside PyTorch (geometric mean) |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    by_name: dict[str, list[tuple[Row, Line]]] = {}
    for line in lines(results):
        for row in line.rows.values():
            by_name.setdefault(row.contender, []).append((row, line))
    for each in results.contenders:
        if each["absent"]:
            table.append(f"| {each['name']} | absent: {each['absent']} | | | | | | |")
            continue
        rows = by_name.get(each["name"], [])
        verdicts = [row.verdict for row, _ in rows]
        mean = geometric_mean(
            line.torch.seconds / row.seconds
            for row, line in rows
            if row.samples and line.torch is not None
        )
        counts = (
            sum(bool(row.samples) for row, _ in rows),
            verdicts.count("wrong"),
            verdicts.count("rough"),
            verdicts.count("failed") + verdicts.count("too slow"),
            verdicts.count("refused"),
        )
        table.append(
            f"| {each['name']} | {each['version']} | "
            + " | ".join(map(str, counts))
            + f" | {times(mean) if mean is not None else '–'} |"
        )
    return "\n".join(table)


def _not_timed(results: Results) -> str:
    """Wrong, failed and too slow, each with its reason and where; who refused everything; and
    cases that the run did not come to."""
    where: dict[tuple[str, str, str], list[str]] = {}
    for row in results.rows:
        if row.verdict in ("wrong", "failed", "too slow"):
            reason = row.verdict, row.contender, row.note
            where.setdefault(reason, []).append(f"{row.case} ({row.work})")
    told = [
        f"- **{verdict}**: {contender}, {note}: {', '.join(places)}"
        for (verdict, contender, note), places in sorted(where.items())
    ]
    verdicts: dict[str, set[str]] = {}
    for row in results.rows:
        verdicts.setdefault(row.contender, set()).add(row.verdict)
    told += [
        f"- **refused everything**: {row.contender}, {row.note}"
        for row in {row.contender: row for row in results.rows}.values()
        if verdicts[row.contender] == {"refused"}
    ]
    tried = {row.case for row in results.rows}
    if left := [case["name"] for case in results.cases if case["name"] not in tried]:
        told.append(f"- **not reached**: {', '.join(left)}")
    return "\n".join(told) or "Nothing was wrong, failed, or was too slow."


def times(ratio: float) -> str:
    """``12×``, ``1.53×``: two or three figures."""
    return f"{ratio:.0f}×" if ratio >= 99.5 else f"{ratio:.3g}×"


def clock(seconds: float) -> str:
    """``1.5 ms``: three figures and a unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def timing(row: Row | None) -> str:
    """Median, spread where it matters, and the mark of rough results."""
    if row is None:
        return "–"
    low, high = row.quartiles
    spread = (high - low) / row.seconds
    return (
        clock(row.seconds)
        + (f" [{spread:.0%}]" if spread > 0.05 else "")
        + ("†" if row.verdict == "rough" else "")
        + ("‡" if row.ahead is False else "")
    )


def _named(row: Row | None) -> str:
    return "–" if row is None else f"{row.contender} {timing(row)}"


def _share(results: Results, line: Line, row: Row | None) -> str:
    roof = roof_seconds(results, line.case, line.work)
    if row is None or roof is None:
        return "–"
    return f"{roof[0] / row.seconds:.0%} {roof[1]}"


def _fastest(rows: Iterable[Row]) -> Row | None:
    return min(rows, key=lambda row: row.seconds, default=None)


def write(path: Path, charts: bool = True) -> list[Path]:
    """report.md and the charts beside a results file, or in its folder."""
    path = results_file(path)
    results = Results.load(path)
    written = list(_draw(results, path)) if charts else []
    drawn = {each.stem for each in written}
    names = [name for name in CHARTS if name in drawn]
    report = path.parent / "report.md"
    report.write_text(markdown(results, names), encoding="utf-8")
    return [report, *written]


def _draw(results: Results, path: Path) -> Iterator[Path]:
    try:
        from . import charts
    except ImportError as error:
        print(f"no charts: {error}; in the checkout: {INSTALL}", file=sys.stderr)
        return
    yield from charts.draw(results, path)


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks report", description=__doc__)
    parser.add_argument("results", type=Path, metavar="RESULTS.json")
    parser.add_argument("--no-charts", action="store_true")
    options = parser.parse_args(words)
    for path in write(options.results, charts=not options.no_charts):
        print(path)
    return 0
