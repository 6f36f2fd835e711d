"""``results``, ``analysis``, ``report``, ``charts`` and ``readme``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import benchmarks
from benchmarks import readme, report
from benchmarks.analysis import lines, means, roof_seconds
from benchmarks.cases import CASES, SWEEPS
from benchmarks.results import Results, Row
from support.benchmark_results import noisy_run, results_of, timed


@pytest.fixture(scope="module")
def results() -> Results:
    return noisy_run(1)


def test_set_samples_stores_median_quartiles_and_count():
    row = timed("photo 3x3", "forward", "auto", 4.0, 1.0, 2.0, 3.0, 5.0)
    assert (row.seconds, row.quartiles, row.count, row.timed) == (3.0, (2.0, 4.0), 5, True)
    row.set_samples([7.0])
    assert (row.seconds, row.quartiles, row.count) == (7.0, (7.0, 7.0), 1)
    row.set_samples([])
    assert not row.timed
    assert row.seconds != row.seconds


def test_results_are_loaded_as_saved(results: Results, tmp_path: Path):
    path, again = tmp_path / "results.json", tmp_path / "again.json"
    results.save(path)
    loaded = Results.load(path)
    loaded.save(again)
    text = path.read_text(encoding="utf-8")
    assert again.read_text(encoding="utf-8") == text
    assert len(json.loads(text)["rows"]) == len(loaded.rows) == len(results.rows)
    for row, before in zip(loaded.rows, results.rows):
        assert (row.case, row.work, row.contender, row.count) == (
            *(before.case, before.work, before.contender, before.count),
        )
        assert row.seconds == pytest.approx(before.seconds, rel=1e-5)
        assert row.quartiles == pytest.approx(before.quartiles, rel=1e-5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read"),
        ("{}", "is not a results file"),
        ('{"format": 99}', "has format 99, this version reads 2"),
    ],
)
def test_other_files_are_refused(text: str | None, message: str, tmp_path: Path):
    if text is not None:
        (tmp_path / "results.json").write_text(text, encoding="utf-8")
    for path in (tmp_path, tmp_path / "results.json"):  # a folder or a file
        with pytest.raises(SystemExit, match=message):
            Results.load(path)


def test_report_shows_cases_and_means_without_sweeps(results: Results):
    text = report.markdown(results)
    assert "photo 9x9" in text
    assert "geometric mean" in text
    every = next(each for each in means(results) if each.group == "all")
    assert 3.2 < every.mean < 3.5
    sweeps = {case.name for case in CASES if case.group in SWEEPS}
    pieces = {(row.case, row.work) for row in results.rows if row.case not in sweeps}
    assert every.pieces == len(pieces)


def test_roof_is_the_larger_of_compute_and_copy_time():
    rows = [Row("photo 3x3", "forward", "auto"), Row("photo 31x31", "forward", "auto")]
    results = results_of(rows)
    few, many = (roof_seconds(results, line) for line in lines(results))
    assert few == (pytest.approx(4 * (2048**2 + 9 + 2046**2) / 1e10), "copy")
    assert many == (pytest.approx(2 * 1024**2 * 961 / 1e11), "compute")


def test_speedup_compares_pytorch_in_the_same_settings():
    """``cudnn.benchmark`` also helps ``auto`` if it chose PyTorch."""
    seconds = {"torch": 4.0, "torch, cudnn.benchmark": 2.0, "auto": 2.5}
    rows = [timed("photo 3x3", "forward", name, each) for name, each in seconds.items()]
    results = results_of(rows, device="cuda")
    (line,) = lines(results)
    assert line.speedup == 1.6
    assert line.searched_speedup == 0.8
    assert "| 4 s | 2 s ▽ | 2.5 s |" in report.markdown(results)
    assert "With cuDNN's search" in report.markdown(results)
    rows[-1].note = "aten"
    rows[-1].set_samples([5.0] * 3)
    (line,) = lines(results)
    assert line.searched_speedup == 0.8
    rows[-1].set_samples([2.5] * 3)
    (line,) = lines(results)
    assert line.searched_speedup == 1
    assert "▽ |" not in report.markdown(results)
    assert "With cuDNN's search" not in report.markdown(results_of(rows[::2]))


def test_contender_that_refused_everything_is_listed_with_the_reason():
    rows = [
        Row("photo 3x3", "forward", "triton", "refused", "no kernels for cpu"),
        Row("photo 3x3", "forward", "fft", "refused", "too few taps"),
        timed("photo 31x31", "forward", "fft", 1.0),
    ]
    items = report.markdown(results_of(rows)).partition("## Not timed")[2]
    assert "- **refused everything**: triton, no kernels for cpu" in items
    assert "fft" not in items


def test_cases_that_were_not_reached_are_listed(results: Results):
    few = results_of([row for row in results.rows if row.case != "vgg 3x3 128"])
    few.cases = results.cases
    assert "- **not reached**: vgg 3x3 128" in report.markdown(few).splitlines()
    assert "not reached" not in report.markdown(results)


def test_repeated_pieces_of_work_are_named(results: Results):
    """Committed results contain some."""
    again = {"command": "python -m benchmarks --maps forward", "commit": None, "pieces": 7}
    again["started"] = "2020-01-02 00:00 UTC"
    repeated = results_of(results.rows, again=[again])
    assert "Pieces of work measured again: 7, by `python -m" in report.conditions(repeated)
    line = readme.settings(repeated)
    assert "parts measured again, last 2020-01-02 00:00 UTC" in line
    assert "--maps forward" not in line


def test_report_of_a_gpu_shows_both_clocks(tmp_path: Path) -> None:
    """Also from a file, in which a CPU's rows have no such fields."""
    rows = [
        timed("tiny 3x3", "forward", "auto", 5e-6, host=2e-5, stream=2.1e-5, ahead=False),
        timed("tiny 3x3", "call", "torch", 3e-5, host=2.9e-5),
        timed("tiny 3x3", "call", "auto", 4e-5),
    ]
    results = results_of(rows, device="cuda")
    results.peaks = {"copy of 33.5 MB": 4e12}
    results.save(tmp_path / "results.json")
    assert (tmp_path / "results.json").read_text().count('"host"') == 2
    text = report.markdown(Results.load(tmp_path))
    assert "| tiny 3x3 | forward | auto | 20.0 | 5.0 | 21.0 |" in text
    assert "| tiny 3x3 | call | torch | 29.0 | \N{EN DASH} | 30.0 |" in text
    assert "copy of 33.5 MB 4000.0 GB/s" in text
    assert "5 µs‡" in text
    assert "*On a GPU*" in text
    results.settings["device"] = "cpu"
    assert "*On a GPU*" not in report.markdown(results)


def test_crossover_is_drawn_where_two_curves_meet():
    """One time grows with the taps and one is constant, between two measurements."""
    figures = pytest.importorskip("matplotlib.figure")
    from benchmarks import charts

    rows = [
        timed(f"one plane k{k}", "forward", name, seconds)
        for k in (9, 13)
        for name, seconds in (("direct", 1e-6 * k**2), ("fft", 1e-6 * 11**2))
    ]
    axes = figures.Figure().subplots()
    charts._crossovers(axes, lines(results_of(rows)))
    ((at, _),) = (line.get_xdata() for line in axes.lines)
    assert at == pytest.approx(11)
    assert [text.get_text() for text in axes.texts] == ["direct → fft"]


def test_every_chart_is_drawn_if_there_are_results_for_it(results: Results, tmp_path: Path):
    pytest.importorskip("matplotlib")
    results.save(tmp_path / "results.json")
    written = {path.name for path in report.write(tmp_path)}
    assert written == {"report.md"} | {
        f"{name}.{suffix}" for name in report.CHARTS for suffix in ("svg", "png")
    }


def test_report_without_matplotlib_has_no_charts(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "benchmarks.charts", raising=False)
    monkeypatch.delattr(benchmarks, "charts", raising=False)
    results.save(tmp_path / "results.json")
    assert report.write(tmp_path / "results.json") == [tmp_path / "report.md"]
    assert benchmarks.INSTALL in capsys.readouterr().err


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with the pages that have a benchmark section, empty so far."""
    (tmp_path / "docs").mkdir()
    for name in readme.PAGES:
        text = f"# Title\n{readme.START}\n{readme.END}\nrest\n"
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_readme_is_filled_and_checked(results: Results, site: Path, capsys: Any):
    pytest.importorskip("matplotlib")
    assert readme.main(["--check"], site) == 1  # not filled yet
    assert readme.main([], site) == 0
    assert readme.main(["--check"], site) == 0
    assert "No results" in (site / "README.md").read_text(encoding="utf-8")

    path = site / "benchmarks" / "results" / "machine" / "results.json"
    few = results_of([row for row in results.rows if row.case.startswith("photo")])
    few.save(path)
    assert readme.main(["--check"], site) == 1  # there are results, but no report
    report.write(path)
    assert readme.main(["--check"], site) == 1  # there is a report, but the README is old
    assert readme.main([], site) == 0
    assert readme.main(["--check"], site) == 0
    text = (site / "README.md").read_text(encoding="utf-8")
    assert text.startswith("# Title\n")
    assert text.endswith("rest\n")
    assert "(benchmarks/results/machine/speedup.svg)" in text
    speed = (site / "docs" / "speed.md").read_text(encoding="utf-8")
    assert "(../benchmarks/results/machine/speedup.svg)" in speed

    written = path.with_name("report.md")
    text = written.read_text(encoding="utf-8")
    written.write_text(text.replace("photo", "foto"), encoding="utf-8")
    assert readme.main(["--check"], site) == 1  # edited by hand
    assert "report.md does not match results.json" in capsys.readouterr().err
    written.write_text(text, encoding="utf-8")

    chart = path.parent / "speedup.svg"
    drawn = chart.read_text(encoding="utf-8")
    few.rows.pop()
    few.save(path)
    text = report.markdown(Results.load(path), report.charts_beside(path))
    written.write_text(text, encoding="utf-8")
    assert readme.main([], site) == 0
    capsys.readouterr()
    assert readme.main(["--check"], site) == 1  # charts of other results
    assert "was drawn from other results" in capsys.readouterr().err
    assert chart.read_text(encoding="utf-8") == drawn


def test_readme_without_a_section_is_refused(tmp_path: Path):
    (tmp_path / "README.md").write_text("# Title\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="benchmarks:start"):
        readme.main(["--check"], tmp_path)
