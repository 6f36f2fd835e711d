"""The results of :mod:`.models`: a JSON file, a table and a chart."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import geometric_mean
from typing import TYPE_CHECKING, Any

from .results import digest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

THEIRS, OURS, RUNTIMES = "nn.Conv2d", "converted", ("ONNX Runtime", "OpenVINO")
LAYOUTS = ("NCHW", "NHWC")


@dataclass(frozen=True)
class Mode:
    """What a step is: a forward alone or training; in float32 or under autocast to bfloat16."""

    inference: bool = False
    halves: bool = False
    compiled: bool = False
    tuned: bool = False

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Mode:
        """The mode of a row, which has the same fields."""
        return cls(*(row[key] for key in MODE))

    def __str__(self) -> str:
        words = ["inference" if self.inference else "training"]
        words.append("bfloat16 autocast" if self.halves else "float32")
        return ", ".join([*words, *(name for name in ("compiled", "tuned") if getattr(self, name))])


MODE = tuple(each.name for each in fields(Mode))
"""The fields of a row that hold its mode.  No two rows have the same mode and network."""


def names_of(kind: str) -> list[str]:
    """The contenders of one kind, one for each layout."""
    return [f"{kind} {layout}" for layout in LAYOUTS]


def best(row: Mapping[str, Any], kind: str) -> float:
    """Milliseconds in the better layout; infinite if neither ran."""
    times = [ms for name, ms in row["ms"].items() if name.startswith(kind)]
    return min(times, default=math.inf)


def speed(row: Mapping[str, Any]) -> float:
    """PyTorch's time in its better layout over ours in ours."""
    return best(row, THEIRS) / best(row, OURS)


def sentence(row: Mapping[str, Any]) -> str:
    """One line for the terminal."""
    times = "  ".join(f"{name} {ms:.1f}" for name, ms in row["ms"].items())
    failed = "".join(f"; {name}: {why}" for name, why in row["failed"].items())
    return f"{times}  {speed(row):.2f} times as fast; within {row['difference']:.0e}{failed}"


def add(folder: Path, machine: Mapping[str, Any], row: dict[str, Any]) -> None:
    """Add a row to ``networks.json`` in a folder, replacing an older one, and write the report."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "networks.json"
    rows = json.loads(file.read_text())["rows"] if file.exists() else []
    same = [row[key] for key in ("network", *MODE)]
    rows = [each for each in rows if [each[key] for key in ("network", *MODE)] != same]
    rows.append({**row, "commit": machine["commit"], "torch": machine["torch"]})
    text = ",\n".join(json.dumps(each) for each in rows)
    name = json.dumps(f"{machine['cpu']}, {machine['threads']} threads")
    file.write_text(f'{{"machine": {name}, "rows": [\n{text}\n]}}\n')
    write(folder)


def write(folder: Path) -> None:
    """Write ``networks.md`` and ``networks.svg`` beside ``networks.json``."""
    file = folder / "networks.json"
    content = json.loads(file.read_text())
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(content["rows"], key=lambda row: [row[key] for key in MODE]):
        groups.setdefault(str(Mode.of(row)), []).append(row)
    versions = ", ".join(sorted({row["torch"] for row in content["rows"]}))
    lines = [
        "# Whole networks",
        "",
        f"{content['machine']}, PyTorch {versions}: `python -m benchmarks.models`. "
        'Median milliseconds of a step. "Speed" is PyTorch\'s time in its better layout over the '
        "time of the converted network in its better layout.",
        "",
        "![Speed of converted networks](networks.svg)",
    ]
    for name, rows in groups.items():
        lines += ["", f"## {name[0].upper()}{name[1:]}", "", *_table(rows)]
    (folder / "networks.md").write_text("\n".join(lines) + "\n")
    _draw(groups, folder / "networks.svg", digest(file))


def _table(rows: list[dict[str, Any]]) -> Iterable[str]:
    names = [*names_of(THEIRS), *names_of(OURS)]
    names += [name for name in RUNTIMES if any(name in row["ms"] for row in rows)]
    yield f"| network | {' | '.join(names)} | speed |"
    yield "|---|" + "--:|" * (len(names) + 1)
    for row in rows:
        cells = [
            f"{row['ms'][name]:.1f}" if name in row["ms"] else _failure(row, name) for name in names
        ]
        yield f"| {row['network']} | {' | '.join(cells)} | {speed(row):.2f} |"
    mean = geometric_mean(map(speed, rows))
    yield f"| geometric mean of {len(rows)} | {' | '.join([''] * len(names))} | {mean:.2f} |"


def _failure(row: Mapping[str, Any], name: str) -> str:
    why = row["failed"].get(name, "")
    return "crashes" if "process died" in why else "fails" if why else ""


def _draw(groups: Mapping[str, list[dict[str, Any]]], svg: Path, mark: str) -> None:
    """Draw a bar for each network and mode, which begins at 1."""
    import matplotlib as mpl

    from .charts import STYLE

    with mpl.rc_context(STYLE):
        _chart(groups).savefig(svg, metadata={"Date": None, "Description": mark})


def _chart(groups: Mapping[str, list[dict[str, Any]]]) -> Figure:
    from matplotlib.figure import Figure

    shown = {name: rows for name, rows in groups.items() if "compiled" not in name}
    networks = list(dict.fromkeys(row["network"] for rows in shown.values() for row in rows))
    figure = Figure(figsize=(9, 1.2 + 0.42 * len(networks)), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / max(len(shown), 1)
    for number, (name, rows) in enumerate(shown.items()):
        at = [networks.index(row["network"]) + (number + 0.5) * height - 0.4 for row in rows]
        axes.barh(at, [speed(row) - 1 for row in rows], height, left=1, label=name)
    axes.set_yticks(range(len(networks)), networks)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xticks([0.8, 0.9, 1, 1.2, 1.5, 2, 3], ["0.8", "0.9", "1", "1.2", "1.5", "2", "3"])
    axes.minorticks_off()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("speed of the converted network relative to PyTorch in its better layout")
    axes.grid(axis="x", color="#E3E3E3")
    axes.legend(loc="upper right", fontsize=8)
    return figure
