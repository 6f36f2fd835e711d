"""``python -m benchmarks``: runs, interrupted runs, and mistaken commands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import benchmarks
from benchmarks import report
from benchmarks.__main__ import main
from benchmarks.cases import Case, Work
from benchmarks.machine import slug
from benchmarks.results import Results, Row
from support.benchmark_results import timed

SHORT = ["--maps", "forward", "--peers", "none", "--algorithms", "auto,triton", "--threads", "1"]
SHORT += ["--cases", "photo 3x3", "--cases", "photo 5x5"]


def test_import_without_hypothesis_says_how_to_install_it():
    code = "import sys; sys.modules['hypothesis'] = None; import benchmarks"
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    assert "pip install hypothesis" in run.stderr
    assert "Traceback" not in run.stderr


def raise_at_second_piece(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Measuring takes no time, and raises in the second piece of work."""
    calls = []

    def measured(case: Case, work: Work, *_: Any) -> list[Row]:
        calls.append(case)
        if len(calls) == 2:
            raise error
        return [timed(case.name, work, name, 1.0) for name in ("auto", "torch")]

    monkeypatch.setattr("benchmarks.__main__.measure", measured)
    monkeypatch.setattr("benchmarks.__main__.measure_peaks", lambda *_: {})
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # charts take long
    monkeypatch.delitem(sys.modules, "benchmarks.charts", raising=False)
    monkeypatch.delattr(benchmarks, "charts", raising=False)


def test_interrupted_run_reports_finished_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    raise_at_second_piece(monkeypatch, KeyboardInterrupt())
    assert main([*SHORT, "--out", str(tmp_path)]) == 0
    (folder,) = tmp_path.iterdir()
    assert {path.name for path in folder.iterdir()} == {"results.json", "report.md"}
    assert {row.case for row in Results.load(folder).rows} == {"photo 3x3"}
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "**The run did not finish: 1 of 2 pieces of work were measured.**" in text
    assert "refuses all: triton: " in capsys.readouterr().err


def test_run_that_is_cut_off_keeps_finished_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    raise_at_second_piece(monkeypatch, RuntimeError("the machine is going down"))
    with pytest.raises(RuntimeError, match="going down"):
        main([*SHORT, "--out", str(tmp_path)])
    (path,) = tmp_path.glob("*/*")
    assert path.name == "results.json"
    assert report.main([str(path)]) == 0
    assert "1 of 2 pieces" in path.with_name("report.md").read_text(encoding="utf-8")


def test_unwritable_folder_is_an_error_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    raise_at_second_piece(monkeypatch, AssertionError("it ran"))
    monkeypatch.setattr("benchmarks.__main__.measure_peaks", lambda *_: pytest.fail("it ran"))
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(SystemExit, match="--out: cannot write in"):
        main([*SHORT, "--out", str(tmp_path / "file")])


def test_run_writes_results_report_and_charts(tmp_path: Path, capsys: Any):
    words = ["--cases", "textbook", "--cases", "5x5 on 256", "--cases", "5x5 on 512"]
    words += ["--maps", "forward", "--peers", "none", "--algorithms", "auto,unfold"]
    words += ["--out", str(tmp_path), "--threads", "1", "--no-memory", "--budget", "0.01"]
    assert main(words) == 0
    (folder,) = tmp_path.iterdir()
    results = Results.load(folder / "results.json")
    assert folder.name == slug(results.machine, 1)
    assert {row.verdict for row in results.rows} == {"right"}
    assert {"auto", "unfold", "torch"} == {row.contender for row in results.rows}
    text = (folder / "report.md").read_text(encoding="utf-8")
    for chart in ("speedup", "image-size"):
        assert f"({chart}.svg)" in text
        assert (folder / f"{chart}.svg").stat().st_size > 5000
        assert (folder / f"{chart}.png").stat().st_size > 5000
    assert "geometric mean" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device", "cuda"], "finds no CUDA device"),
        (["--algorithms", "foo"], "unknown algorithm 'foo'; there are auto"),
        (["--cases", "no such case"], "no case matches"),
        (["--cases", "tiny", "--cases", "resnett"], "no case matches 'resnett'"),
        (["--cases", "gabor", "--quick"], "nothing to measure.*leave --quick out"),
        (["--cases", "gabor", "--maps", "call"], "nothing to measure.*tiny cases alone"),
        (["--peers", "opencv"], "unknown peer 'opencv'; there are opencv filter2D"),
    ],
)
def test_impossible_run_is_an_error(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=message):
        main(words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--maps", "sideways"], "none of forward"),
        (["--maps", ","], "',' contains no name"),
        (["--algorithms", ""], "'' contains no name"),
        (["--peers", ","], "',' contains no name"),
        (["--threads", "0"], "'0' is not a positive number"),
        (["--threads", "two"], "'two' is not a positive number"),
        (["--budget", "nan"], "'nan' is not a positive number"),
    ],
)
def test_invalid_argument_is_explained(words: list[str], message: str, capsys: Any):
    with pytest.raises(SystemExit):
        main(words)
    assert message in capsys.readouterr().err


def test_list_shows_the_chosen_cases(capsys: Any):
    assert main(["--cases", "tiny 3x3", "--maps", "forward,call", "--list"]) == 0
    assert "tiny 3x3" in capsys.readouterr().out
