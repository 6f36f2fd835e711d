"""The demo: its numbers, its figure and its error messages."""

from __future__ import annotations

import os
import re
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import torch_corr
from support.processes import run_python
from torch_corr import demo
from torch_corr.__main__ import main


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


run_module = partial(run_python, "-m", "torch_corr")


def picture(path, size=(40, 30)):
    """A file with a picture whose brightness rises from left to right."""
    columns = np.linspace(0, 255, size[0]).astype(np.uint8)
    Image.fromarray(np.tile(columns, (size[1], 1))).convert("RGB").save(path)
    return path


def check_figure(path):
    with Image.open(path) as figure:
        assert figure.format == "PNG"
        assert figure.width >= 1000
        assert figure.height >= 600
        assert len(figure.convert("RGB").getcolors(1 << 24) or ()) > 200


def test_demo_prints_results_and_writes_figure(tmp_path):
    """All parts, without a display, in another directory."""
    done = run_module("demo", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    text = done.stdout
    assert re.search(r"0 +1 +2 +0 +1 +19 25\n +3 +4 +5 +2 +3 +37 43", text)
    assert len(re.findall(r" 0  1  0  0  0 -1  0\n", text)) == 6
    losses = [float(loss) for loss in re.findall(r"step +\d+ +loss ([\d.]+)", text)]
    assert len(losses) == 5
    assert losses == sorted(losses, reverse=True)
    assert losses[0] == pytest.approx(5, abs=0.5)
    assert losses[-1] < 0.02
    learned = re.search(r"kernel learned is \[([-\d.]+), ([-\d.]+)\]", text)
    assert learned is not None
    assert [float(x) for x in learned.groups()] == pytest.approx([1, -1], abs=0.05)
    for name in ("Horizontal edges", "Vertical edges", "Blur"):
        row = re.search(
            rf"{name} +(\w+)(?:, checked)? +[\d.]+ ms +[\d.]+ ms +([-+.e\d]+) +\d+\n", text
        )
        assert row is not None, text
        assert row[1] in [algorithm.name for algorithm in torch_corr.ALGORITHMS]
        assert float(row[2]) < 1e-4
    assert "medians on 1 CPU thread," in text
    assert str(tmp_path / "torch_corr_demo.png") in text
    check_figure(tmp_path / "torch_corr_demo.png")


def test_demo_with_own_picture_replaces_figure(tmp_path, capsys):
    """A file name with a $, and a figure that exists already."""
    image, output = picture(tmp_path / "my $picture.png"), tmp_path / "figure.PNG"
    output.write_bytes(b"old")
    assert main(["demo", str(image), "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert f"A photograph: {image}\n40 x 30 pixels\n" in printed
    assert f"{output}, replacing the file that was there." in printed
    check_figure(output)


@pytest.mark.parametrize(
    ("missing", "name", "broken"),
    # matplotlib imports Pillow.
    [("matplotlib", "matplotlib", ["matplotlib"]), ("PIL", "Pillow", ["PIL", "matplotlib"])],
)
def test_missing_package_is_named_with_install_command(
    missing, name, broken, tmp_path, monkeypatch, capsys
):
    """The textbook part needs only torch and still runs."""
    for package in broken:
        (tmp_path / package).mkdir()
        source = f"raise ModuleNotFoundError(name={missing!r})"
        (tmp_path / package / "__init__.py").write_text(source)
        monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["demo"]) == 1
    output = capsys.readouterr()
    assert "19 25" in output.out
    assert output.err == (
        f"torch_corr demo: the photograph needs {name}, not installed here; "
        f'run: pip install "torch_corr[demo]"\n'
    )


# Wrong requests: the arguments, and part of the message.
WRONG = {
    "missing": (["absent.png"], "there is no file absent.png"),
    "not an image": (["text.jpg"], "text.jpg is no image"),
    "empty": (["empty.png"], "empty.png is no image"),
    "cut short": (["cut.jpg"], "cut.jpg cannot be read as an image"),
    "directory": (["."], ". is a directory"),
    "tiny": (["tiny.png"], "is 9 x 40 pixels; the blur needs at least 10 each way"),
    "no such folder": (["--output", "absent/x.png"], "there is no directory absent"),
    "output a folder": (["--output", "folder.png"], "is a directory; add a file name"),
    "not .png": (["--output", "figure.jpg"], "must end in .png"),
    "its own input": (["self.png", "--output", "self.png"], "is the picture itself"),
    "a name with NUL": (["a\0b"], "cannot read"),
}


@pytest.mark.parametrize(("arguments", "sentence"), WRONG.values(), ids=WRONG)
def test_wrong_request_prints_sentence_and_exits_2(
    tmp_path, monkeypatch, capsys, arguments, sentence
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "empty.png").touch()
    good = picture(tmp_path / "good.jpg", (400, 300))
    (tmp_path / "cut.jpg").write_bytes(good.read_bytes()[:1500])
    picture(tmp_path / "tiny.png", (9, 40))
    picture(tmp_path / "self.png")
    before = sorted(tmp_path.iterdir())
    assert main(["demo", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("torch_corr demo: ")
    assert sentence in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_missing_permissions_are_reported(tmp_path, monkeypatch, capsys):
    """The errors are simulated, because CI may run as root."""

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    image, output = str(picture(tmp_path / "good.png")), str(tmp_path / "figure.png")
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        assert main(["demo", image, "--output", output]) == 2
        assert f"no permission to write {output}" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", refuse)
        assert main(["demo", image, "--output", output]) == 1
        assert f"cannot write {output}: Permission denied" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        assert main(["demo", image, "--output", output]) == 2
        assert f"no permission to read {image}" in capsys.readouterr().err


def test_demo_reports_wrong_results(monkeypatch, capsys):
    """With a flipped kernel."""
    monkeypatch.setattr(demo, "corr2d", torch_corr.convolve2d)
    assert main(["demo"]) == 1
    assert "corr2d(X, K) is [[5.0, 11.0], [23.0, 29.0]] here, and [[19.0, 25.0]" in (
        capsys.readouterr().err
    )


def test_missing_command_exits_2(capsys):
    with pytest.raises(SystemExit) as exit:
        main([])
    assert exit.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "LA", "RGBA", "I;16", "I", "F"])
def test_read_picture_keeps_brightness_in_every_mode(tmp_path, mode):
    """The left half is black, the right half white."""
    values = np.zeros((20, 24))
    values[:, 12:] = 1
    depth = {"I;16": (np.uint16, 65535), "I": (np.int32, 65535), "F": (np.float32, 1)}
    if mode in depth:
        kind, white = depth[mode]
        image = Image.fromarray((values * white).astype(kind))
    else:
        image = Image.fromarray((values * 255).astype(np.uint8)).convert(mode)
    assert image.mode == mode
    image.save(tmp_path / "picture.tiff")
    colour, size = demo.read_picture(tmp_path / "picture.tiff")
    assert size == (24, 20)
    expected = torch.from_numpy(values).float().expand(1, 3, 20, 24)
    torch.testing.assert_close(colour, expected, rtol=0, atol=0.01)


def test_read_picture_applies_transparency_and_orientation(tmp_path):
    image = Image.new("RGBA", (30, 20), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 30, 5))
    image.save(tmp_path / "clear.png")
    colour, _ = demo.read_picture(tmp_path / "clear.png")
    assert colour[0, :, 0, 0].tolist() == [1, 0, 0]
    assert colour[0, :, 19, 0].tolist() == [1, 1, 1]

    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was rotated: the file's left is the picture's top
    image = Image.new("L", (30, 20))
    image.paste(255, (0, 0, 10, 20))
    image.save(tmp_path / "turned.png", exif=exif)
    colour, size = demo.read_picture(tmp_path / "turned.png")
    assert size == (20, 30)
    assert colour[0, 0, :10].min() == 1
    assert colour[0, 0, 10:].max() == 0


def test_read_picture_shrinks_large_pictures(tmp_path):
    colour, size = demo.read_picture(picture(tmp_path / "large.png", (3000, 1500)))
    assert size == (3000, 1500)
    assert colour.shape == (1, 3, 512, 1024)


def test_filters_find_edges_and_blur():
    """One vertical edge, brighter to the right."""
    colour = torch.zeros(1, 3, 24, 30)
    colour[..., 15:] = 1
    horizontal, vertical, blur = demo.apply_filters(colour)
    assert horizontal.picture.abs().max() < 1e-6
    slope = torch.zeros(30)
    slope[14:16] = 0.5
    torch.testing.assert_close(vertical.picture, slope.expand(1, 24, 30))
    # The blurred step is the integral of the Gaussian, one half at the step.
    places = (torch.arange(30) - 14.5) / demo.SIGMA / 2**0.5
    expected = (1 + torch.erf(places)) / 2
    torch.testing.assert_close(blur.picture, expected.expand(3, 24, 30), rtol=0, atol=0.01)
    torch.testing.assert_close(
        demo.apply_filters(torch.ones(1, 3, 24, 30))[2].picture, torch.ones(3, 24, 30)
    )
