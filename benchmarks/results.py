"""What a run leaves behind: one JSON file with every sample and the machine it ran on.

The file holds one row a line, so that two versions of it can be read side by side.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Literal, TypeAlias

FORMAT = 1

Kind: TypeAlias = Literal["ours", "torch", "peer"]
Verdict: TypeAlias = Literal["right", "rough", "wrong", "refused", "too slow", "failed"]
"""``rough``: outside the bound that our algorithms are held to, by rounding alone (only
PyTorch and peers; timed all the same).  Only ``right`` and ``rough`` rows have samples."""


@dataclass
class Row:
    """One contender at one piece of work.

    Attributes:
        case: the case's name.
        work: the map, or the call.
        contender: its name.
        verdict: whether it was right; see ``Verdict``.
        note: why it was not timed, or which algorithm it chose.
        error: largest error over its bound, of the results before and after timing.
        samples: seconds per call; each is the mean of ``number`` calls in a row.
        number: calls per sample.
        memory: bytes at the peak beyond operands and result; None where not measured.
        host: on CUDA, seconds that a call takes the host.
        stream: on CUDA, seconds that a map takes in a stream where the host is not ahead.
        ahead: whether the samples are the device's alone, the host being ahead; else None.
    """

    case: str
    work: str
    contender: str
    verdict: Verdict = "right"
    note: str = ""
    error: float | None = None
    samples: list[float] = field(default_factory=list)
    number: int = 0
    memory: int | None = None
    host: float | None = None
    stream: float | None = None
    ahead: bool | None = None

    @property
    def seconds(self) -> float:
        """Median of the samples; NaN without any."""
        return median(self.samples) if self.samples else float("nan")

    @property
    def quartiles(self) -> tuple[float, float]:
        """Lower and upper quartile of the samples."""
        if len(self.samples) < 2:
            return self.seconds, self.seconds
        low, _, high = quantiles(self.samples, n=4, method="inclusive")
        return low, high


@dataclass
class Results:
    """A whole run: settings, machine, what took part, and the rows."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    peaks: dict[str, float]
    """``matmul <dtype>`` in FLOP/s, and ``copy`` in bytes/s, read and written both counted (on
    CUDA also ``copy of 33.5 MB``, of which much stays in the cache)."""
    cases: list[dict[str, Any]]
    """name, problem (its full spelling), group, dtype, source."""
    contenders: list[dict[str, Any]]
    """name, kind, version, and absent: why it is not there, or null."""
    rows: list[Row]

    def pieces(self) -> Iterable[tuple[dict[str, Any], str, dict[str, Row]]]:
        """(case, work, rows by contender) of each piece of work that was run, in order."""
        index: dict[tuple[str, str], dict[str, Row]] = {}
        for row in self.rows:
            index.setdefault((row.case, row.work), {})[row.contender] = row
        cases = {case["name"]: case for case in self.cases}
        for (case, work), rows in index.items():
            yield cases[case], work, rows

    def kind(self, contender: str) -> Kind:
        for each in self.contenders:
            if each["name"] == contender:
                kind: Kind = each["kind"]
                return kind
        raise KeyError(contender)

    def save(self, path: Path) -> None:
        """Write the file whole or not at all."""
        head = {
            "format": FORMAT,
            "machine": self.machine,
            "settings": self.settings,
            "peaks": self.peaks,
        }
        parts = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
        for key, items in (
            ("cases", self.cases),
            ("contenders", self.contenders),
            ("rows", [_rounded(asdict(row)) for row in self.rows]),
        ):
            lines = ",\n".join("    " + json.dumps(item) for item in items)
            parts.append(f"  {json.dumps(key)}: [\n{lines}\n  ]")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".part")
        temporary.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read a file that :meth:`save` wrote, or the ``results.json`` of a folder.

        Raises:
            SystemExit: no such file, or not one of ours; with what to do.
        """
        path = results_file(path)
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["format"] != FORMAT:
                raise SystemExit(
                    f"{path} has format {data['format']}, this version reads {FORMAT}; "
                    f"run the benchmarks again"
                )
            rows = [Row(**row) for row in data["rows"]]
            keys = ("machine", "settings", "peaks", "cases", "contenders")
            return cls(**{key: data[key] for key in keys}, rows=rows)
        except OSError as error:
            raise SystemExit(f"cannot read {path}: {error.strerror}") from None
        except (KeyError, TypeError, ValueError) as error:
            raise SystemExit(
                f"{path} is no results file of python -m benchmarks ({error!r})"
            ) from None


def digest(path: Path) -> str:
    """What a chart says it was drawn from."""
    return "results " + hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    row["samples"] = [float(f"{sample:.5g}") for sample in row["samples"]]
    for name in ("host", "stream", "ahead"):  # a CPU has none of them
        if row[name] is None:
            del row[name]
        elif name != "ahead":
            row[name] = float(f"{row[name]:.4g}")
    if row["error"] is not None:
        row["error"] = float(f"{row['error']:.3g}")
    return row


def results_file(path: Path) -> Path:
    """A file of results, where a folder of a run is named too."""
    return path / "results.json" if path.is_dir() else path
