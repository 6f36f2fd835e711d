"""The examples do what their docstrings promise."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import torch_corr

TRAIN_DIGITS = Path(__file__).parent.parent / "examples" / "train_digits.py"


def train_digits(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = [str(Path(torch_corr.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, str(TRAIN_DIGITS), *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))},
        capture_output=True,
        text=True,
        timeout=300,
    )


def largest_difference(text: str) -> float:
    found = re.search(r"Largest difference of the two losses at any step: (\S+)", text)
    assert found is not None, text
    return float(found[1])


def check_plot(path: Path) -> None:
    with Image.open(path) as plot:
        assert plot.format == "PNG"
        assert plot.width >= 1000
        assert len(plot.convert("RGB").getcolors(1 << 24) or ()) > 100


def test_train_digits_reaches_its_goal(tmp_path: Path) -> None:
    done = train_digits("--compare", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    accuracy = re.search(r"Corr2d: ([\d.]+)% of 360 test digits right", done.stdout)
    assert accuracy is not None
    assert float(accuracy[1]) >= 97
    assert largest_difference(done.stdout) < 1e-5
    assert re.search(r"Corr2d +\[#{30}\] step (\d+)/\1  loss", done.stderr)
    check_plot(tmp_path / "train_digits.png")


def test_another_algorithm_follows_the_same_curve(tmp_path: Path) -> None:
    """Few steps of an algorithm that shares nothing with nn.Conv2d; the goal may be missed."""
    output = tmp_path / "plot.png"
    done = train_digits(
        *("--compare", "--epochs", "2", "--algorithm", "unfold", "--output", str(output)),
        cwd=tmp_path,
    )
    assert done.returncode in (0, 1), done.stderr
    assert "Traceback" not in done.stderr
    assert (done.returncode == 1) == ("The goal is 97%" in done.stderr)
    assert largest_difference(done.stdout) < 1e-5
    check_plot(output)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--algorithm", "unfolded"], "unknown algorithm 'unfolded'"),
        (["--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--output", "absent/plot.png"], "must be a .png in a directory that exists"),
    ],
    ids=["algorithm", "epochs", "output"],
)
def test_wrong_arguments(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    sentence: str,
) -> None:
    monkeypatch.setattr(sys, "argv", [str(TRAIN_DIGITS), *arguments])
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(str(TRAIN_DIGITS), run_name="__main__")
    assert exit.value.code == 2
    assert sentence in capsys.readouterr().err
