"""The examples do what their docstrings promise."""

from __future__ import annotations

import re
import runpy
import sys
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from support.processes import run_python

EXAMPLES = Path(__file__).parent.parent / "examples"
TRAIN_DIGITS = EXAMPLES / "train_digits.py"
REPLKNET_STEP = EXAMPLES / "replknet_step.py"


train_digits = partial(run_python, TRAIN_DIGITS)


def largest_difference(text):
    found = re.search(r"Largest difference of the two losses at any step: (\S+)", text)
    assert found is not None, text
    return float(found[1])


def check_plot(path):
    with Image.open(path) as plot:
        assert plot.format == "PNG"
        assert plot.width >= 1000
        assert len(plot.convert("RGB").getcolors(1 << 24) or ()) > 100


def test_train_digits_reaches_its_goal(tmp_path):
    done = train_digits("--compare", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    accuracy = re.search(r"Corr2d: ([\d.]+)% of 360 test digits right", done.stdout)
    assert accuracy is not None
    assert float(accuracy[1]) >= 97
    assert largest_difference(done.stdout) < 1e-5
    assert re.search(r"Corr2d +\[#{30}\] step (\d+)/\1  loss", done.stderr)
    check_plot(tmp_path / "train_digits.png")


def test_train_digits_with_unfold(tmp_path):
    """In so few steps it may miss its goal."""
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


def test_replknet_step_has_equal_losses(tmp_path):
    """A narrow network on small images, where conversion saves no time."""
    done = run_python(REPLKNET_STEP, "--width", "4", "--image", "64", "--steps", "1", cwd=tmp_path)
    assert done.returncode in (0, 1), done.stderr
    assert (done.returncode == 1) == ("The goal is 3 times as fast" in done.stderr)
    assert "34 layers converted, algorithm='auto'" in done.stdout
    found = re.search(r"times as fast.  Largest difference of the losses: (\S+)", done.stdout)
    assert found is not None, done.stdout
    assert float(found[1]) < 1e-4


@pytest.mark.parametrize(
    ("example", "arguments", "sentence"),
    [
        (TRAIN_DIGITS, ["--algorithm", "unfolded"], "unknown algorithm 'unfolded'"),
        (TRAIN_DIGITS, ["--epochs", "0"], "--epochs must be at least 1, got 0"),
        (TRAIN_DIGITS, ["--output", "absent/plot.png"], "must be a .png in a directory that"),
        (REPLKNET_STEP, ["--algorithm", "unfolded"], "unknown algorithm 'unfolded'"),
        (REPLKNET_STEP, ["--batch", "1"], "--batch must be at least 2, got 1"),
    ],
    ids=["algorithm", "epochs", "output", "replknet algorithm", "replknet batch"],
)
def test_wrong_arguments_exit_2(monkeypatch, capsys, example, arguments, sentence):
    monkeypatch.setattr(sys, "argv", [str(example), *arguments])
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(str(example), run_name="__main__")
    assert exit.value.code == 2
    assert sentence in capsys.readouterr().err
