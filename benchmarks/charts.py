"""Four charts of a results file, as SVG and PNG.

speedup      speed-up over PyTorch of each case and map, on a logarithmic scale
kernel-size  time against kernel size, with the crossovers between our algorithms
image-size   time per output pixel against image size
memory       peak memory beyond operands and result

The SVG contains a digest of the results, for ``readme --check``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from torch_corr.algorithms import DEFAULT_WORKSPACE

from .analysis import HEADLINE, Line, clock, lines, times
from .cases import GROUPS
from .results import Results, Row, digest

# The palette of Okabe and Ito, which colour-blind readers can distinguish.
_COLOURS = {
    "auto": "#D55E00",
    "direct": "#0072B2",
    "fft": "#009E73",
    "unfold": "#E69F00",
    "aten": "#56B4E9",
    "triton": "#CC79A7",
    "naive": "#999999",
    "torch": "#000000",
}
_PEER_COLOUR = "#8A8A8A"
_PEER_MARKS = "xv<>^sDp*h"
_MAP_MARKS = {
    "forward": ("o", "#0072B2"),
    "grad_input": ("^", "#009E73"),
    "grad_weight": ("s", "#E69F00"),
    "call": ("D", "#CC79A7"),
    "call+grad": ("P", "#CC79A7"),
}
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "svg.hashsalt": "torch_corr",
    "figure.facecolor": "white",
}


def draw(results: Results, source: Path, titles: dict[str, str]) -> Iterator[Path]:
    """Write every chart that the results have data for, beside their file; yields the paths.

    Args:
        titles: by the name of the chart.
    """
    mark, every = digest(source), lines(results)
    makers: dict[str, Callable[[Results, list[Line]], tuple[Figure, str] | None]] = {
        "speedup": _speedup,
        "kernel-size": _kernel_size,
        "image-size": _image_size,
        "memory": _memory,
    }
    with mpl.rc_context(STYLE):
        for name, make in makers.items():
            svg, png = (source.with_name(f"{name}.{suffix}") for suffix in ("svg", "png"))
            made = make(results, every)
            if made is None:
                svg.unlink(missing_ok=True)
                png.unlink(missing_ok=True)
                continue
            figure, hint = made
            _title(figure, results, titles[name], hint)
            figure.savefig(svg, metadata={"Date": None, "Description": mark})
            figure.savefig(png, dpi=110)
            yield from (svg, png)


def _speedup(results: Results, every: list[Line]) -> tuple[Figure, str] | None:
    counted = [line for line in every if line.speedup is not None and not line.sweep]
    if not counted:
        return None
    rows = _rows_by_case(counted)
    figure, axes = _case_figure(rows, 0.3)
    ratios = [_ratio(line) for line in counted]
    peers = [ratio for line in counted if (ratio := _peer_ratio(line)) is not None]
    # Peers that are far behind are drawn at the edge, so that the others stay readable.
    low, high = min(0.5, *ratios) / 1.5, max(2.0, *ratios, *peers) * 1.4
    axes.axvspan(low, 1, color="#F7E3DC", zorder=0, lw=0)
    for y, (_, members) in enumerate(rows):
        for nth, line in enumerate(members):
            lane = y + 0.72 * ((nth + 0.5) / len(members) - 0.5)
            ratio, (marker, colour) = _ratio(line), _MAP_MARKS[line.work]
            axes.plot([1, ratio], [lane, lane], color="#C8C8C8", lw=0.8, zorder=1)
            axes.plot(ratio, lane, marker, color=colour, ms=6, mec="white", mew=0.5, zorder=3)
            if (peer := _peer_ratio(line)) is not None:
                axes.plot(max(peer, 1.03 * low), y, "x", color=_PEER_COLOUR, ms=5, zorder=2)
    axes.axvline(1, color="black", lw=1, zorder=2)
    axes.set_xlim(low, high)
    if high / low < 100:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: times(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("times as fast as PyTorch in the same run (logarithmic; right of 1× is faster)")
    for work in dict.fromkeys(line.work for line in counted):
        marker, colour = _MAP_MARKS[work]
        axes.plot([], [], marker, color=colour, label=f"torch_corr {HEADLINE}, {work}")
    if peers:
        label = "best peer package, forward (left edge: this speed or less)"
        axes.plot([], [], "x", color=_PEER_COLOUR, label=label)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure, ""


def _kernel_size(results: Results, every: list[Line]) -> tuple[Figure, str] | None:
    panels: dict[tuple[str, str], list[Line]] = {}
    for line in every:
        if line.case["group"] == "kernel sweep":
            family = line.case["name"].rsplit(" k", 1)[0]
            panels.setdefault((line.work, family), []).append(line)
    if not any(len(members) > 1 for members in panels.values()):
        return None
    figure, grid = _grid(results, panels, _kernel, lambda line, row: row.seconds)
    for (work, family), axes in grid.items():
        _crossovers(axes, panels[work, family])
        # Two empty lines, for the labels of crossovers.
        axes.set_title(f"{family}, {work}\n\n", fontsize=10, loc="left", weight="bold")
    figure.supxlabel("kernel size k (k×k taps)", fontsize=10)
    figure.supylabel("time per call", fontsize=10)
    return figure, f"dotted: our fastest algorithm changes; {_PEERS}"


def _image_size(results: Results, every: list[Line]) -> tuple[Figure, str] | None:
    panels: dict[tuple[str, str], list[Line]] = {}
    for line in every:
        if line.case["group"] == "image sweep":
            panels.setdefault(("", line.work), []).append(line)
    if len({_side(line) for members in panels.values() for line in members}) < 2:
        return None

    def per_pixel(line: Line, row: Row) -> float:
        return row.seconds / math.prod(line.problem.output_size)

    figure, grid = _grid(results, panels, _side, per_pixel)
    for (_, work), axes in grid.items():
        axes.set_title(work, fontsize=10, loc="left", weight="bold")
    figure.supxlabel("image side N (N×N pixels, 5×5 kernel)", fontsize=10)
    figure.supylabel("time per output pixel", fontsize=10)
    return figure, f"flat: cost grows in proportion; {_PEERS}"


_PEERS = "grey and thin: peers that are the fastest peer somewhere"


def _memory(results: Results, every: list[Line]) -> tuple[Figure, str] | None:
    peaks: dict[str, dict[str, float]] = {}  # by case and contender, over the maps
    for line in every:
        for name, row in line.rows.items():
            if row.memory is not None and row.timed and name != "auto-measured" and not line.sweep:
                of_case = peaks.setdefault(line.case["name"], {})
                of_case[name] = max(of_case.get(name, 0.5), row.memory / 2**20)
    if not peaks:
        return None
    rows = _rows_by_case([line for line in every if line.case["name"] in peaks])
    figure, axes = _case_figure(rows, 0.24)
    shown: set[str] = set()
    for y, (title, _) in enumerate(rows):
        for name, peak in peaks.get(title, {}).items():
            key = "peers" if results.kind(name) == "peer" else name
            mark: dict[str, Any] = {"marker": "o", "ms": 6.5, "zorder": 3, "color": _colour(key)}
            mark |= _MEMORY_MARKS.get(key, {})
            axes.plot(peak, y, ls="", label="_" if key in shown else key, **mark)
            shown.add(key)
    limit = DEFAULT_WORKSPACE / 2**20
    axes.axvline(limit, color="black", ls=":", lw=1)
    axes.text(limit, -1.2, f" our limit, {limit:.0f} MiB", fontsize=8, va="center")
    axes.set_xlim(left=0.4)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel(
        "MiB at the peak beyond operands and result, worst map (left edge: 0.5 or less)"
    )
    figure.legend(loc="outside lower center", ncols=5, frameon=False)
    return figure, ""


_MEMORY_MARKS: dict[str, dict[str, Any]] = {
    "peers": {"marker": "x", "color": _PEER_COLOUR, "ms": 5, "zorder": 2},
    "torch": {"marker": "|", "ms": 11, "mew": 2},
    HEADLINE: {"mfc": "none", "zorder": 4},
}
"""How PyTorch, ``auto`` and the peers differ from our algorithms in the chart of memory."""


def _grid(
    results: Results,
    panels: dict[tuple[str, str], list[Line]],
    x: Callable[[Line], int],
    y: Callable[[Line, Row], float],
) -> tuple[Figure, dict[tuple[str, str], Axes]]:
    """Curves in a grid of panels, which are named by row and column, with one legend."""
    names = [list(dict.fromkeys(each)) for each in zip(*panels)]
    height, width = map(len, names)
    size = (3.4 + 4.2 * width, 1.6 + 3.4 * height)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(height, width, squeeze=False, sharex="col")
    found = {(r, c): grid[names[0].index(r)][names[1].index(c)] for r, c in panels}
    handles: dict[str, Any] = {}
    for panel, axes in found.items():
        _curves(axes, results, panels[panel], x, y)
        handles.update({label: h for h, label in zip(*axes.get_legend_handles_labels())})
    known = [each["name"] for each in results.contenders if each["name"] in handles]
    figure.legend(
        [handles[name] for name in known],
        known,
        loc="outside right center",
        frameon=False,
        fontsize=9,
    )
    return figure, found


def _curves(
    axes: Axes,
    results: Results,
    members: list[Line],
    x: Callable[[Line], int],
    y: Callable[[Line, Row], float],
) -> None:
    """A curve for each contender: ours in colour, PyTorch dashed, peers thin and grey.

    Only peers that are the fastest peer at some point are drawn.
    """
    series: dict[str, list[tuple[float, float]]] = {}
    peers = {line.peer.contender for line in members if line.peer is not None}
    for line in members:
        for name, row in line.rows.items():
            if row.timed and (name in peers or results.kind(name) != "peer"):
                series.setdefault(name, []).append((x(line), y(line, row)))
    known = [each["name"] for each in results.contenders if each["kind"] == "peer"]
    marks = dict(zip(known, cycle(_PEER_MARKS)))
    for name, points in series.items():
        style: dict[str, Any] = {"color": _colour(name), "marker": "o", "lw": 1.8, "zorder": 3}
        if name in peers:
            style |= {"color": _PEER_COLOUR, "marker": marks[name], "lw": 0.8, "zorder": 2}
        elif name == HEADLINE:
            # As fast as the algorithm that it chose: broad and pale, below its curve.
            style |= {"lw": 7, "alpha": 0.35, "zorder": 1}
        elif name.startswith("torch"):
            style |= {"ls": "--", "zorder": 4}
        axes.plot(*zip(*sorted(points)), ms=3.5, label=name, **style)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: clock(value)))
    axes.grid(color="#E9E9E9")
    values = sorted({x(line) for line in members})
    axes.set_xticks(values, [str(value) for value in values], fontsize=8)
    axes.xaxis.set_minor_locator(NullLocator())


def _crossovers(axes: Axes, members: list[Line]) -> None:
    """Mark where our fastest algorithm changes, by linear interpolation between measurements."""
    last, level = 0.0, 0
    for before, after in pairwise(sorted(members, key=_kernel)):
        if before.best is None or after.best is None:
            continue
        old, new = before.best.contender, after.best.contender
        pairs = [(line.rows.get(old), line.rows.get(new)) for line in (before, after)]
        gaps = [
            math.log(b.seconds / a.seconds) for a, b in pairs if a and b and a.timed and b.timed
        ]
        if old == new or len(gaps) < 2:
            continue
        share = gaps[0] / (gaps[0] - gaps[1])
        low, high = math.log(_kernel(before)), math.log(_kernel(after))
        at = math.exp(low + share * (high - low))
        # Labels of neighbours are at different heights.
        level = 1 - level if at < 1.8 * last else 0
        last = at
        axes.axvline(at, color="#555555", ls=":", lw=1)
        axes.text(
            *(at, 1.01 + 0.06 * level, f"{old} → {new}"),
            transform=axes.get_xaxis_transform(),
            fontsize=8,
            ha="center",
            va="bottom",
        )


def _rows_by_case(counted: list[Line]) -> list[tuple[str, list[Line]]]:
    """(title, lines) from top to bottom: the name of a group without lines, then its cases."""
    rows: list[tuple[str, list[Line]]] = []
    for group in GROUPS:
        members = [line for line in counted if line.case["group"] == group]
        if members:
            rows.append((group, []))
        for name in dict.fromkeys(line.case["name"] for line in members):
            rows.append((name, [line for line in members if line.case["name"] == name]))
    return rows


def _case_figure(rows: list[tuple[str, list[Line]]], height: float) -> tuple[Figure, Axes]:
    """Axes with a labelled row for each group and case, and a logarithmic horizontal scale."""
    figure = Figure(figsize=(9, 1.9 + height * len(rows)), layout="constrained")
    axes = figure.subplots()
    for y, (title, members) in enumerate(rows):
        axes.text(
            -0.01,
            y,
            title if members else title.upper(),
            transform=axes.get_yaxis_transform(),
            ha="right",
            va="center",
            fontsize=9 if members else 8,
            weight="normal" if members else "bold",
            color="black" if members else "#555555",
        )
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.yaxis.set_major_locator(NullLocator())
    axes.spines["left"].set_visible(False)
    axes.set_xscale("log")
    axes.grid(axis="x", which="major", color="#E3E3E3")
    return figure, axes


def _title(figure: Figure, results: Results, title: str, hint: str = "") -> None:
    settings = results.settings
    figure.suptitle(f"{title}\n", fontsize=13, weight="bold", x=0.01, ha="left", linespacing=1.8)
    figure.text(
        0.01,
        1 - 0.42 / figure.get_size_inches()[1],
        f"{results.name}, {settings['threads']} threads, torch {results.machine['torch']}, "
        f"{settings['started'][:10]}{', quick run' if settings['quick'] else ''}"
        f"{'; ' + hint if hint else ''}",
        fontsize=8.5,
        color="#555555",
        va="top",
    )


def _colour(name: str) -> str:
    return _COLOURS.get(name) or _COLOURS["auto" if name.startswith("auto") else "torch"]


def _ratio(line: Line) -> float:
    assert line.speedup is not None
    return line.speedup


def _peer_ratio(line: Line) -> float | None:
    """The speed-up of the best peer over PyTorch, in the only map that most peers have."""
    if line.peer is None or line.torch is None or line.work != "forward":
        return None
    return line.torch.seconds / line.peer.seconds


def _kernel(line: Line) -> int:
    return line.problem.kernel[0]


def _side(line: Line) -> int:
    return line.problem.size[0]
