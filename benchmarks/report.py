"""Write report.md, with every case, and the charts of a results file.

Share of roof: the least time that the measured peaks allow for the definition, max(operations /
matrix-product rate, bytes of operands and result / copy rate), over the measured time.  Transforms
need fewer operations than the definition, so they may exceed 100%.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from statistics import geometric_mean

from . import INSTALL
from .analysis import LOSS, Line, clock, lines, means, roof_seconds, times
from .cases import GROUPS
from .results import Results, Row, results_file

CHARTS = {
    "speedup": "Speed-up over PyTorch, case by case",
    "kernel-size": "Cost against kernel size",
    "image-size": "Cost per pixel against image size",
    "memory": "Peak memory, case by case",
}
"""Names of the chart files and their titles, in the order of the report."""

_READING = """\
A *case* is a layer or a task: its name, and its problem (n images, c channels, x pixels, o output
channels, k kernel, s stride, p padding, d dilation, g groups). Its *maps* are timed separately:
`forward` computes the output, `grad_input` and `grad_weight` are the two halves of backward. `call`
compares `corr2d` and `F.conv2d` as a user calls them, `call+grad` the same with backward. *PyTorch*
is `F.conv2d` and `aten::convolution_backward` in the same settings, *torch_corr* is
`algorithm="auto"`, *by* is the algorithm that it chose, and *speed-up* is PyTorch's time divided by
torch_corr's. (`fft, checked` is `fft` in double precision that checks each result, or another
algorithm if the check fails.) *Best of ours* is the fastest single algorithm. If it is much
faster than `auto`, then `auto` chose badly.

Times are medians of one run in which all contenders took turns. The interquartile range follows in
brackets if it is above 5%. ▼ marks a loss of more than 5%. † marks a result whose rounding errors
exceed the bound for torch_corr's own algorithms. Every timed result was compared with the float64
definition before and after it was timed.

*GFLOP/s* is the number of the definition's operations divided by torch_corr's time. *Share of roof*
is the least time that they need at this machine's measured rates of matrix products (compute) and
of copying (copy), divided by torch_corr's time. It can exceed 100%, because transforms need fewer
operations than the definition, caches are faster than memory, and a product of another shape can be
faster than the square one that was measured."""

_CLOCKS = """\
*On a GPU* maps are compared by the device's own time. The device sleeps until all calls of a sample
are queued, so it does not wait for the host (‡ marks calls that wait for the device, so that the
host was not ahead). A call in a stream takes the later of device and host. So the device's time
matters for large layers, and the host's for small ones. `call` and `call+grad` are compared by
the time in a stream. A sample repeats one call on the same operands, which stay in the device's
cache if they fit.

*Searched* is PyTorch with `torch.backends.cudnn.benchmark`, where cuDNN tries all its algorithms.
With that setting `auto` takes the same time where it chose PyTorch. ▽ marks where it did not and is
slower by more than 5%."""


def summary(results: Results, searched: bool = False) -> str:
    """Geometric means per group, as a markdown table; ``searched``: see :func:`means`."""
    table = [
        "| group | pieces of work | speed-up over PyTorch (geometric mean) | least | most "
        "| slower by over 5% |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for each in means(results, searched):
        name = each.group if each.group in GROUPS else f"**{each.group}**"
        ratios = " | ".join(times(ratio) for ratio in (each.mean, each.least, each.most))
        table.append(f"| {name} | {each.pieces} | {ratios} | {each.losses} |")
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
    load = f"load {machine['load_average']} before"
    if "load_average_after" in machine:
        load += f" and {machine['load_average_after']} after"
    notes = " This was a `--quick` run: few samples, few cases." if settings["quick"] else ""
    if "unfinished" in settings:
        notes += f" **The run did not finish: {settings['unfinished']}.**"
    notes += "".join(
        f" Pieces of work measured again: {each['pieces']}, by `{each['command']}`, "
        f"{each['started']}, at {each['commit'] or 'an unknown commit'}."
        for each in settings.get("again", [])
    )
    return (
        f"{name}{detail}, {machine['torch_cpu_capability']}, {machine['cores']} cores, "
        f"governor {machine['governor'] or 'not readable'}, {load}; torch {machine['torch']}, "
        f"torch_corr {machine['torch_corr']} at {machine['commit'] or 'an unknown commit'}, Python "
        f"{machine['python']}. {settings['threads']} threads, TF32 "
        f"{'on' if settings['tf32'] else 'off'}, subnormals flushed to zero, the same for all. "
        f"Measured peaks: {peaks or 'none'}. `{settings['command']}`, {settings['started']}, "
        f"{settings['seconds'] / 60:.0f} min.{notes}"
    )


def markdown(results: Results, charts: Iterable[str] = ()) -> str:
    """The whole report."""
    every = lines(results)
    parts = [
        "# Benchmark report",
        conditions(results),
        _READING,
        *([_CLOCKS] if results.settings.get("device") == "cuda" else []),
        "## Means",
        "Over the pieces of work (a case and a map) that both did, without the sweeps over kernel "
        "and image sizes, and without cases that are repeated in channels_last.",
        summary(results),
    ]
    if any(line.searched_speedup is not None for line in every):
        parts += ["With cuDNN's search, over the maps alone:", summary(results, searched=True)]
    parts += [f"![{CHARTS[name]}]({name}.svg)" for name in charts]
    for group, meaning in GROUPS.items():
        members = [line for line in every if line.case["group"] == group]
        if members:
            table = _table(results, members)
            parts += [f"## {group.capitalize()}", f"{meaning.capitalize()}.", table]
    if any(row.host is not None for row in results.rows):
        parts += ["## Host time of calls", _host_times(results)]
    parts += ["## All contenders", _contenders(results, every)]
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
        name, ours, ratio = line.case["name"], line.ours, line.speedup
        loss = " ▼" if ratio is not None and ratio < LOSS else ""
        searched = timing(line.searched)
        if line.searched_speedup is not None and line.searched_speedup < LOSS:
            searched += " ▽"
        roof = roof_seconds(results, line)
        cells = [
            "" if name == shown else f"{name}<br>`{line.case['problem']}`",
            line.work,
            timing(line.torch),
            *([searched] if cuda else []),
            timing(ours),
            ours.note if ours else "",
            f"**{times(ratio)}**{loss}" if ratio is not None else "–",
            *(f"{row.contender} {timing(row)}" if row else "–" for row in (line.best, line.peer)),
            f"{line.flops / ours.seconds / 1e9:.3g}" if ours else "–",
            f"{roof[0] / ours.seconds:.0%} {roof[1]}" if ours and roof else "–",
        ]
        table.append("| " + " | ".join(cells) + " |")
        shown = name
    return "\n".join(table)


def _host_times(results: Results) -> str:
    """Host, device and stream times of the smallest cases."""
    table = [
        "Of the smallest cases, where it dominates; `results.json` has it for all.",
        "",
        "| case | work | contender | host, µs | device, µs | in a stream, µs |",
        "|---|---|---|--:|--:|--:|",
    ]
    for case, work, rows in results.pieces():
        for row in rows.values() if case["group"] == "tiny" else ():
            if row.host is None or not row.timed:
                continue
            device, stream = (row.seconds, row.stream) if row.stream else (None, row.seconds)
            cells = (
                "–" if each is None else f"{1e6 * each:.1f}" for each in (row.host, device, stream)
            )
            table.append(f"| {case['name']} | {work} | {row.contender} | {' | '.join(cells)} |")
    return "\n".join(table)


def _contenders(results: Results, every: list[Line]) -> str:
    """A line per contender: version, number of each verdict, mean speed-up over PyTorch."""
    table = [
        "| contender | version | timed | wrong | rough | failed or too slow | refused "
        "| speed-up over PyTorch (geometric mean) |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for each in results.contenders:
        if each["absent"]:
            table.append(f"| {each['name']} | absent: {each['absent']} | | | | | | |")
            continue
        found = [(line, line.rows[each["name"]]) for line in every if each["name"] in line.rows]
        verdicts = Counter(row.verdict for _, row in found)
        ratios = [
            line.torch.seconds / row.seconds for line, row in found if row.timed and line.torch
        ]
        cells = (
            each["name"],
            each["version"],
            sum(row.timed for _, row in found),
            verdicts["wrong"],
            verdicts["rough"],
            verdicts["failed"] + verdicts["too slow"],
            verdicts["refused"],
            times(geometric_mean(ratios)) if ratios else "–",
        )
        table.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(table)


def _not_timed(results: Results) -> str:
    """Rows that were wrong, failed or too slow, contenders that refused everything, and cases
    that the run did not reach."""
    places: dict[tuple[str, str, str], list[str]] = {}
    verdicts: dict[str, set[str]] = {}
    last = {row.contender: row for row in results.rows}
    for row in results.rows:
        verdicts.setdefault(row.contender, set()).add(row.verdict)
        if row.verdict in ("wrong", "failed", "too slow"):
            reason = row.verdict, row.contender, row.note
            places.setdefault(reason, []).append(f"{row.case} ({row.work})")
    items = [
        f"- **{verdict}**: {contender}, {note}: {', '.join(where)}"
        for (verdict, contender, note), where in sorted(places.items())
    ]
    items += [
        f"- **refused everything**: {name}, {row.note}"
        for name, row in last.items()
        if verdicts[name] == {"refused"}
    ]
    reached = {row.case for row in results.rows}
    if left := [case["name"] for case in results.cases if case["name"] not in reached]:
        items.append(f"- **not reached**: {', '.join(left)}")
    return "\n".join(items) or "No result was wrong, failed, or took too long."


def timing(row: Row | None) -> str:
    """The median, the interquartile range if it is large, and marks."""
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


def write(path: Path) -> list[Path]:
    """Write report.md and the charts next to a results file; returns their paths."""
    path = results_file(path)
    results = Results.load(path)
    try:
        from . import charts
    except ImportError as error:
        print(f"no charts: {error}; in the checkout: {INSTALL}", file=sys.stderr)
        drawn = []
    else:
        drawn = list(charts.draw(results, path, CHARTS))
    report = path.with_name("report.md")
    report.write_text(markdown(results, charts_beside(path)), encoding="utf-8")
    return [report, *drawn]


def charts_beside(path: Path) -> list[str]:
    """The names of the charts beside a results file."""
    return [name for name in CHARTS if path.with_name(f"{name}.svg").exists()]


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks report", description=__doc__)
    parser.add_argument("results", type=Path, metavar="RESULTS.json")
    options = parser.parse_args(words)
    for path in write(options.results):
        print(path)
    return 0
