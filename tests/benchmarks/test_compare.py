"""``compare``: two runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import compare
from benchmarks.results import Results
from support.benchmark_results import noisy_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run, one that is 25% slower on one case, and one on a busier machine."""
    made = {}
    for name, run in {
        "old": noisy_run(1),
        "slower": noisy_run(2, slower=1.25),
        "drifted": noisy_run(3, drift=1.5),
    }.items():
        made[name] = tmp_path_factory.mktemp(name) / "results.json"
        run.save(made[name])
    return made


def test_planted_regression_is_reported(runs: dict[str, Path], capsys: Any):
    assert compare.main([str(runs["old"]), str(runs["slower"])]) == 1
    flagged = [line for line in capsys.readouterr().out.splitlines() if "slower or" in line]
    assert len(flagged) == 3
    assert all("auto, photo 9x9" in line for line in flagged)


def test_slower_machine_is_reported_only_in_seconds(runs: dict[str, Path], capsys: Any):
    assert compare.main([str(runs["old"]), str(runs["drifted"])]) == 0
    assert ", 0 worse, 0 better" in capsys.readouterr().out
    assert compare.main([str(runs["old"]), str(runs["drifted"]), "--absolute"]) == 1


@pytest.mark.parametrize("count", [3, 5, 15])
def test_few_noisy_samples_cause_no_false_alarm(count: int):
    """With noise of three times the threshold; changes far beyond it are still reported."""
    old, same = (noisy_run(seed, count=count, noise=0.3) for seed in (1, 2))
    every = compare.changes(old, same)
    assert len(every) > 200
    assert sum(change.beyond_noise for change in every) <= 0.01 * len(every)
    slower = noisy_run(3, slower=300, count=count, noise=0.3)
    flagged = [each for each in compare.changes(old, slower) if each.beyond_noise]
    assert {"forward", "grad_input", "grad_weight"} <= {
        each.work for each in flagged if each.case == "photo 9x9" and each.contender == "auto"
    }


def test_single_samples_are_never_beyond_noise(runs: dict[str, Path]):
    old, new = (Results.load(runs[name]) for name in ("old", "slower"))
    for row in new.rows:
        row.set_samples([row.seconds])
    assert not any(change.beyond_noise for change in compare.changes(old, new))


def test_runs_without_common_rows_are_an_error(runs: dict[str, Path], tmp_path: Path):
    other = Results.load(runs["old"])
    other.rows = [row for row in other.rows if row.contender == "torch"]
    other.save(tmp_path / "results.json")
    with pytest.raises(SystemExit, match="nothing was timed in"):
        compare.main([str(runs["old"]), str(tmp_path)])


def test_differences_and_missing_rows_are_noted(runs: dict[str, Path], tmp_path: Path, capsys: Any):
    """Another machine, missing rows, and seconds where PyTorch was not timed."""
    new = Results.load(runs["old"])
    new.machine["cpu"] = "another CPU"
    new.settings["threads"] = 3
    new.settings["unfinished"] = "5 of 9 pieces of work were measured"
    new.rows = [
        row
        for row in new.rows
        if row.contender != "fft" and (row.case, row.contender) != ("photo 9x9", "torch")
    ]
    for row in new.rows:
        if row.case == "photo 9x9":
            row.seconds *= 3
            row.quartiles = row.quartiles[0] * 3, row.quartiles[1] * 3
    new.save(tmp_path / "results.json")
    assert compare.main([str(runs["old"]), str(tmp_path)]) == 1
    output = capsys.readouterr().out
    assert "note: the CPU was " in output
    assert ", and is another CPU" in output
    assert "note: the number of threads was 2, and is 3" in output
    assert "is unfinished, 5 of 9" in output
    assert "note: not in " in output
    assert ": fft at " in output
    assert "3.00 × the time, in seconds, as PyTorch was not timed in both" in output  # noqa: RUF001


def test_broken_algorithm_is_reported(runs: dict[str, Path], tmp_path: Path, capsys: Any):
    new = Results.load(runs["old"])
    row = next(row for row in new.rows if row.contender == "auto")
    row.verdict, row.note = "wrong", "off by one"
    row.set_samples([])
    new.save(tmp_path / "results.json")
    assert compare.main([str(runs["old"]), str(tmp_path)]) == 1
    assert "broken" in capsys.readouterr().out
