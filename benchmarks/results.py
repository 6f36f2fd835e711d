"""The results of a run, as a JSON file: machine, settings, cases, contenders and rows.

A row holds the median, the quartiles and the number of its samples.  The file has one row per
line, so that two versions of it can be compared line by line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from math import nan
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Literal, TypeAlias

FORMAT = 2

Kind: TypeAlias = Literal["ours", "torch", "peer"]
Verdict: TypeAlias = Literal["right", "rough", "wrong", "refused", "too slow", "failed"]
"""``rough``: rounding errors beyond the bound for our algorithms (only PyTorch and peers; they are
timed).  Only ``right`` and ``rough`` rows have times."""


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
        seconds: median of the samples, per call; NaN if it was not timed.
        quartiles: lower and upper quartile of the samples.
        count: number of samples.
        number: calls in a row per sample.
        memory: bytes at the peak beyond operands and result; None if not measured.
        host: on CUDA, seconds that a call takes the host.
        stream: on CUDA, seconds of a map in a stream, without a sleeping device.
        ahead: on CUDA, whether the host was ahead, so that ``seconds`` is the device's time alone.
    """

    case: str
    work: str
    contender: str
    verdict: Verdict = "right"
    note: str = ""
    error: float | None = None
    seconds: float = nan
    quartiles: tuple[float, float] = (nan, nan)
    count: int = 0
    number: int = 0
    memory: int | None = None
    host: float | None = None
    stream: float | None = None
    ahead: bool | None = None

    @property
    def timed(self) -> bool:
        return self.count > 0

    def set_samples(self, samples: Sequence[float]) -> None:
        """Store the median, the quartiles and the number of samples."""
        self.count = len(samples)
        self.seconds = median(samples) if samples else nan
        self.quartiles = self.seconds, self.seconds
        if self.count > 1:
            low, _, high = quantiles(samples, n=4, method="inclusive")
            self.quartiles = low, high


@dataclass
class Results:
    """A run: machine, settings, contenders and rows."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    peaks: dict[str, float]
    """``matmul <dtype>`` in FLOP/s; ``copy`` in bytes/s, reads plus writes (on CUDA also
    ``copy of 33.5 MB``, which is partly served by the cache)."""
    cases: list[dict[str, Any]]
    """name, problem (as a string), group, dtype, source."""
    contenders: list[dict[str, Any]]
    """name, kind, version, and absent: why it cannot run here, or null."""
    rows: list[Row]

    def pieces(self) -> Iterable[tuple[dict[str, Any], str, dict[str, Row]]]:
        """(case, work, rows by contender) of each piece of work that was run, in order."""
        index: dict[tuple[str, str], dict[str, Row]] = {}
        for row in self.rows:
            index.setdefault((row.case, row.work), {})[row.contender] = row
        cases = {case["name"]: case for case in self.cases}
        for (case, work), rows in index.items():
            yield cases[case], work, rows

    @property
    def name(self) -> str:
        """The device, and TF32 if it was on."""
        machine = self.machine
        name = machine.get("gpu") or f"{machine['cpu']} ({machine['torch_cpu_capability']})"
        return f"{name}, TF32 on" if self.settings["tf32"] else str(name)

    def kind(self, contender: str) -> Kind:
        kinds: dict[str, Kind] = {each["name"]: each["kind"] for each in self.contenders}
        return kinds[contender]

    def save(self, path: Path) -> None:
        """Write the file completely or not at all."""
        data = {"format": FORMAT, **{each.name: getattr(self, each.name) for each in fields(self)}}
        data["rows"] = [_entry(row) for row in self.rows]
        parts = []
        for key, value in data.items():
            text = json.dumps(value)
            if isinstance(value, list):
                text = "[\n" + ",\n".join("    " + json.dumps(item) for item in value) + "\n  ]"
            parts.append(f"  {json.dumps(key)}: {text}")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".part")
        temporary.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read a file that :meth:`save` wrote, or the ``results.json`` of a folder.

        Raises:
            SystemExit: the file does not exist, or has another format.
        """
        path = results_file(path)
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if (version := data.pop("format")) != FORMAT:
                raise SystemExit(
                    f"{path} has format {version}, this version reads {FORMAT}; "
                    f"run the benchmarks again"
                )
            results = cls(**data)
            results.rows = [Row(**entry) for entry in data["rows"]]
        except OSError as error:
            raise SystemExit(f"cannot read {path}: {error.strerror}") from None
        except (KeyError, TypeError, ValueError) as error:
            raise SystemExit(
                f"{path} is not a results file of python -m benchmarks ({error!r})"
            ) from None
        for row in results.rows:
            row.quartiles = row.quartiles[0], row.quartiles[1]
        return results


def results_file(path: Path) -> Path:
    """The path of a results file; for a folder, of the one in it."""
    return path / "results.json" if path.is_dir() else path


def digest(path: Path) -> str:
    """The mark by which a chart names the results that it shows."""
    return "results " + hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _entry(row: Row) -> dict[str, Any]:
    """The fields of a row, rounded; without those that have their default, except the verdict."""
    entry = {field.name: (getattr(row, field.name), field.default) for field in fields(row)}
    return {
        name: _rounded(value)
        for name, (value, default) in entry.items()
        if name == "verdict" or repr(value) != repr(default)
    }


def _rounded(value: Any) -> Any:
    """Floats with six digits."""
    if isinstance(value, tuple):
        return [_rounded(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
