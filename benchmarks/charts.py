"""Four pictures of a results file, as SVG and PNG.

speedup      each case's speed beside PyTorch, per map, on a logarithmic scale
kernel-size  cost against kernel size, with the crossovers between our algorithms
image-size   cost per output pixel against image size
memory       peak memory beyond operands and result

The SVG holds a digest of the results, for ``readme --check``.
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

from torch_corr import Problem
from torch_corr.algorithms import DEFAULT_WORKSPACE

from .cases import GROUPS
from .report import CHARTS, HEADLINE, Line, clock, lines, times
from .results import Results, Row, digest

# Okabe and Ito's colours, which colour-blind readers can tell apart.
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
_MAP_MARKS = {
    "forward": ("o", "#0072B2"),
    "grad_input": ("^", "#009E73"),
    "grad_weight": ("s", "#E69F00"),
    "call": ("D", "#CC79A7"),
    "call+grad": ("P", "#CC79A7"),
}
_STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "svg.hashsalt": "torch_corr",
    "figure.facecolor": "white",
}


def draw(results: Results, source: Path) -> Iterator[Path]:
    """Write beside their file every chart that the results have data for; yields what it wrote."""
    folder, mark = source.parent, digest(source)
    makers: dict[str, Callable[[Results, list[Line]], Figure | None]] = {
        "speedup": _speedup,
        "kernel-size": _kernel_size,
        "image-size": _image_size,
        "memory": _memory,
    }
    every = lines(results)
    with mpl.rc_context(_STYLE):
        for name, make in makers.items():
            figure = make(results, every)
            for suffix in ("svg", "png"):
                path = folder / f"{name}.{suffix}"
                if figure is None:
                    path.unlink(missing_ok=True)
                    continue
                extra: dict[str, Any] = {"dpi": 110} if suffix == "png" else {}
                if suffix == "svg":
                    extra["metadata"] = {"Date": None, "Description": mark}
                figure.savefig(path, **extra)
                yield path


def _speedup(results: Results, every: list[Line]) -> Figure | None:
    counted = [line for line in every if line.speedup is not None and not line.sweep]
    if not counted:
        return None
    rows = _rows_by_case(counted)
    works = list(dict.fromkeys(line.work for line in counted))
    figure = Figure(figsize=(9, 1.9 + 0.3 * len(rows)), layout="constrained")
    axes = figure.subplots()
    ratios = [_ratio(line) for line in counted]
    theirs = [ratio for line in counted if (ratio := _peer_ratio(line)) is not None]
    # Peers that are far behind must not shrink the rest: they stand at the edge.
    low, high = min(0.5, *ratios) / 1.5, max(2.0, *ratios, *theirs) * 1.4
    axes.axvspan(low, 1, color="#F7E3DC", zorder=0, lw=0)
    for y, (title, members) in enumerate(rows):
        _row_title(axes, y, title, header=not members)
        for nth, line in enumerate(members):
            lane = y + 0.72 * ((nth + 0.5) / len(members) - 0.5)
            marker, colour = _MAP_MARKS[line.work]
            axes.plot([1, _ratio(line)], [lane, lane], color="#C8C8C8", lw=0.8, zorder=1)
            axes.plot(
                _ratio(line), lane, marker, color=colour, ms=6, mec="white", mew=0.5, zorder=3
            )
            if (ratio := _peer_ratio(line)) is not None:
                beyond = ratio < low
                axes.plot(
                    low * 1.03 if beyond else ratio,
                    y,
                    "<" if beyond else "x",
                    color=_PEER_COLOUR,
                    ms=4 if beyond else 5,
                    zorder=2,
                )
    axes.axvline(1, color="black", lw=1, zorder=2)
    _case_axis(axes, len(rows))
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    if high / low < 100:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: times(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="x", which="major", color="#E3E3E3")
    axes.set_xlabel("times as fast as PyTorch in the same run (logarithmic; right of 1× is faster)")
    for work in works:
        marker, colour = _MAP_MARKS[work]
        axes.plot([], [], marker, color=colour, label=f"torch_corr {HEADLINE}, {work}")
    if theirs:
        axes.plot([], [], "x", color=_PEER_COLOUR, label="best peer package, forward")
    if any(ratio < low for ratio in theirs):
        axes.plot([], [], "<", color=_PEER_COLOUR, label="peer further left")
    _title(figure, results, CHARTS["speedup"])
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def _kernel_size(results: Results, every: list[Line]) -> Figure | None:
    sweep = [line for line in every if line.case["group"] == "kernel sweep"]
    families = list(dict.fromkeys(line.case["name"].rsplit(" k", 1)[0] for line in sweep))
    works = list(dict.fromkeys(line.work for line in sweep))
    panels = {
        (family, work): [
            line
            for line in sweep
            if line.work == work and line.case["name"].rsplit(" k", 1)[0] == family
        ]
        for family in families
        for work in works
    }
    if not any(len(members) > 1 for members in panels.values()):
        return None
    figure = Figure(
        figsize=(3.4 + 4.2 * len(families), 1.5 + 3.4 * len(works)), layout="constrained"
    )
    grid = figure.subplots(len(works), len(families), squeeze=False, sharex="col")
    for (family, work), members in panels.items():
        axes = grid[works.index(work)][families.index(family)]
        _curves(axes, results, members, _kernel, lambda line, row: row.seconds)
        _crossovers(axes, members)
        # Above two lines of crossovers.
        axes.set_title(f"{family}, {work}\n\n", fontsize=10, loc="left", weight="bold")
        if members:
            _plain_ticks(axes, sorted({_kernel(line) for line in members}))
    for axes in grid[-1]:
        axes.set_xlabel("kernel size k (k×k taps)")
    for row in grid:
        row[0].set_ylabel("time per call")
    _title(figure, results, CHARTS["kernel-size"], f"dotted: our fastest changes; {_PEERS}")
    _contender_legend(figure, results, grid)
    return figure


def _image_size(results: Results, every: list[Line]) -> Figure | None:
    sweep = [line for line in every if line.case["group"] == "image sweep"]
    works = list(dict.fromkeys(line.work for line in sweep))
    if len({_side(line) for line in sweep}) < 2:
        return None
    figure = Figure(figsize=(3.4 + 4.2 * len(works), 5), layout="constrained")
    grid = figure.subplots(1, len(works), squeeze=False, sharey=True)
    for axes, work in zip(grid[0], works):
        members = [line for line in sweep if line.work == work]
        _curves(axes, results, members, _side, lambda line, row: row.seconds / _pixels(line))
        _plain_ticks(axes, sorted({_side(line) for line in members}))
        axes.set_title(work, fontsize=10, loc="left", weight="bold")
        axes.set_xlabel("image side N (N×N pixels, 5×5 kernel)")
    grid[0][0].set_ylabel("time per output pixel")
    _title(figure, results, CHARTS["image-size"], f"flat: cost grows in proportion; {_PEERS}")
    _contender_legend(figure, results, grid)
    return figure


def _memory(results: Results, every: list[Line]) -> Figure | None:
    measured = [
        line
        for line in every
        if not line.sweep
        and any(row.memory is not None and row.samples for row in line.rows.values())
    ]
    if not measured:
        return None
    rows = _rows_by_case(measured)
    figure = Figure(figsize=(9, 1.9 + 0.24 * len(rows)), layout="constrained")
    axes = figure.subplots()
    shown: dict[str, str] = {}
    for y, (title, members) in enumerate(rows):
        _row_title(axes, y, title, header=not members)
        peaks: dict[str, float] = {}
        for line in members:
            for name, row in line.rows.items():
                if row.memory is not None and row.samples and name != "auto-measured":
                    peaks[name] = max(peaks.get(name, 0.0), row.memory / 2**20)
        for name, peak in peaks.items():
            peer = results.kind(name) == "peer"
            colour, key = (_PEER_COLOUR, "peers") if peer else (_colour(name), name)
            marker = "x" if peer else ("|" if name == "torch" else "o")
            axes.plot(
                max(peak, 0.5),
                y,
                marker,
                color=colour,
                ms=5 if peer else (11 if name == "torch" else 6.5),
                mew=2 if name == "torch" else 1,
                mfc="none" if name == HEADLINE else colour,
                zorder=2 if peer else 4 if name == HEADLINE else 3,
                label="_" if key in shown else key,
            )
            shown[key] = colour
    limit = DEFAULT_WORKSPACE / 2**20
    axes.axvline(limit, color="black", ls=":", lw=1)
    axes.text(limit, -1.2, f" our limit, {limit:.0f} MiB", fontsize=8, va="center")
    _case_axis(axes, len(rows))
    axes.set_xscale("log")
    axes.set_xlim(left=0.4)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(axis="x", color="#E3E3E3")
    axes.set_xlabel(
        "MiB at the peak beyond operands and result, worst map (left edge: 0.5 or less)"
    )
    _title(figure, results, CHARTS["memory"])
    figure.legend(loc="outside lower center", ncols=5, frameon=False)
    return figure


def _curves(
    axes: Axes,
    results: Results,
    members: list[Line],
    x: Callable[[Line], float],
    y: Callable[[Line, Row], float],
) -> None:
    """A curve for each contender: ours in colour, PyTorch dashed, peers thin and grey.

    Of the peers, those that are the fastest peer at some point.
    """
    series: dict[str, list[tuple[float, float]]] = {}
    peers = {line.peer.contender for line in members if line.peer is not None}
    for line in members:
        for name, row in line.rows.items():
            if row.samples and (name in peers or results.kind(name) != "peer"):
                series.setdefault(name, []).append((x(line), y(line, row)))
    known = [each["name"] for each in results.contenders if each["kind"] == "peer"]
    marks = dict(zip(known, cycle(_PEER_MARKS)))
    for name, points in series.items():
        points.sort()
        peer = name in peers
        # auto lies on top of the algorithm it chose: broad and pale beneath.
        broad = name == HEADLINE
        axes.plot(
            *zip(*points),
            color=_PEER_COLOUR if peer else _colour(name),
            marker=marks[name] if peer else "o",
            ms=3.5,
            lw=7 if broad else 0.8 if peer else 1.8,
            alpha=0.35 if broad else 1,
            ls="--" if name.startswith("torch") else "-",
            zorder=1 if broad else 2 if peer else 4 if name.startswith("torch") else 3,
            label=name,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: clock(value)))
    axes.grid(color="#E9E9E9")


_PEER_MARKS = "xv<>^sDp*h"
_PEERS = "grey and thin: peers that are the fastest peer somewhere"


def _crossovers(axes: Axes, members: list[Line]) -> None:
    """Where the fastest of our algorithms changes, by straight lines between measurements."""
    ordered = sorted(members, key=_kernel)
    last, level = 0.0, 0
    for before, after in pairwise(ordered):
        if before.best is None or after.best is None:
            continue
        old, new = before.best.contender, after.best.contender
        if old == new or not (old in after.rows and new in before.rows):
            continue
        gaps = []
        for line in (before, after):
            if not (line.rows[old].samples and line.rows[new].samples):
                break
            gaps.append(math.log(line.rows[new].seconds / line.rows[old].seconds))
        if len(gaps) < 2:
            continue
        share = gaps[0] / (gaps[0] - gaps[1])
        low, high = math.log(_kernel(before)), math.log(_kernel(after))
        at = math.exp(low + share * (high - low))
        # Labels of neighbours stand one above the other.
        level = 1 - level if at < 1.8 * last else 0
        last = at
        axes.axvline(at, color="#555555", ls=":", lw=1)
        axes.text(
            at,
            1.01 + 0.06 * level,
            f"{old} → {new}",
            transform=axes.get_xaxis_transform(),
            fontsize=8,
            ha="center",
            va="bottom",
        )


def _rows_by_case(counted: list[Line]) -> list[tuple[str, list[Line]]]:
    """(title, lines) from the top down: each group's name without lines, then its cases."""
    rows: list[tuple[str, list[Line]]] = []
    for group in GROUPS:
        members = [line for line in counted if line.case["group"] == group]
        if members:
            rows.append((group, []))
        for name in dict.fromkeys(line.case["name"] for line in members):
            rows.append((name, [line for line in members if line.case["name"] == name]))
    return rows


def _row_title(axes: Axes, y: int, title: str, header: bool) -> None:
    axes.text(
        -0.01,
        y,
        title.upper() if header else title,
        transform=axes.get_yaxis_transform(),
        ha="right",
        va="center",
        fontsize=8 if header else 9,
        weight="bold" if header else "normal",
        color="#555555" if header else "black",
    )


def _case_axis(axes: Axes, rows: int) -> None:
    axes.set_ylim(rows - 0.4, -0.6)
    axes.yaxis.set_major_locator(NullLocator())
    axes.spines["left"].set_visible(False)


def _plain_ticks(axes: Axes, values: list[int]) -> None:
    axes.set_xticks(values, [str(value) for value in values], fontsize=8)
    axes.xaxis.set_minor_locator(NullLocator())


def _contender_legend(figure: Figure, results: Results, grid: Any) -> None:
    handles: dict[str, Any] = {}
    for row in grid:
        for axes in row:
            for handle, label in zip(*axes.get_legend_handles_labels()):
                handles.setdefault(label, handle)
    names = [each["name"] for each in results.contenders if each["name"] in handles]
    figure.legend(
        [handles[name] for name in names],
        names,
        loc="outside right center",
        frameon=False,
        fontsize=9,
    )


def _title(figure: Figure, results: Results, title: str, hint: str = "") -> None:
    machine, settings = results.machine, results.settings
    name = machine.get("gpu") or f"{machine['cpu']} {machine['torch_cpu_capability']}"
    figure.suptitle(
        f"{title}\n",
        fontsize=13,
        weight="bold",
        x=0.01,
        ha="left",
        linespacing=1.8,
    )
    figure.text(
        0.01,
        1 - 0.42 / figure.get_size_inches()[1],
        f"{name}, {settings['threads']} threads, torch {machine['torch']}, "
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
    """The best peer's speed beside PyTorch, in the map that most of them have."""
    if line.peer is None or line.torch is None or line.work != "forward":
        return None
    return line.torch.seconds / line.peer.seconds


def _kernel(line: Line) -> int:
    return Problem.parse(line.case["problem"]).kernel[0]


def _side(line: Line) -> int:
    return Problem.parse(line.case["problem"]).size[0]


def _pixels(line: Line) -> int:
    return math.prod(Problem.parse(line.case["problem"]).output_size)
