"""``python -m torch_corr explain``, ``measure`` and ``calibrate``."""

from __future__ import annotations

import os

import pytest

from torch_corr import ALGORITHMS, MAPS, commands
from torch_corr.__main__ import main
from torch_corr.planning import machine, wisdom
from torch_corr.planning.machine import SHIPPED, Machine


def test_explain_lists_every_algorithm_and_map(capsys):
    assert main(["explain", "n1c1-x64-o1-k5", "--dtype", "bfloat16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(" on cpu/bfloat16, algorithm=auto")
    for name in (*MAPS, *(f"    {each.name}" for each in ALGORITHMS if each.name == "fft")):
        assert any(line.startswith(name) for line in lines)
    assert sum(line.startswith("  > ") for line in lines) == len(MAPS)
    assert "calibrate" in lines[-1]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["n1c1"], "does not spell a problem"),
        (["n1c1-x4-o1-k9"], "kernel does not fit"),
        (["n1c1-x4-o1-k3", "--dtype", "float23"], "unknown dtype 'float23'"),
        (["n1c1-x4-o1-k3", "--device", "gpu7"], "gpu7"),
        (["n1c1-x4-o1-k3", "--algorithm", "dirct"], "did you mean 'direct'"),
        (["n1c1-x4-o1-k3", "--algorithm", "fft", "--dtype", "int8"], "cannot run"),
    ],
)
def test_wrong_request_prints_sentence_and_exits_2(words, sentence, capsys):
    assert main(["explain", *words]) == 2
    output = capsys.readouterr()
    assert sentence in output.err
    assert not output.out


def test_measure_saves_wisdom(tmp_path, capsys):
    kept = tmp_path / "kept.json"
    try:
        assert main(["measure", "n1c1-x12-o1-k3", "--save", str(kept)]) == 0
    finally:
        wisdom.forget()
    output = capsys.readouterr().out
    assert "measured" in output
    assert "measurements saved" in output
    assert wisdom.load(kept) >= len(MAPS)
    wisdom.forget()


def test_calibrate_saves_rates(tmp_path, monkeypatch, capsys):
    path = tmp_path / "new" / "machine.json"
    monkeypatch.setenv("TORCH_CORR_MACHINE", str(path))
    monkeypatch.setattr(machine, "_seconds", lambda work, times=1: (work(), 0.5)[1])
    assert main(["calibrate"]) == 0
    output = capsys.readouterr().out
    assert f"saved as {path}" in output
    measured = Machine.load(path)
    assert measured.float32.calls == measured.float64.calls == 2
    assert measured.float32.matmul_flops == 2 * 1024**3 / 0.5


@pytest.mark.parametrize("load", [0.4, 3.0, None])
def test_calibrate_warns_on_busy_machine(load, tmp_path, monkeypatch, capsys):
    """Beside another process, calibration measured an eighth of the real rate."""

    def loads():
        if load is None:
            raise OSError("unobtainable")
        return load, 0.0, 0.0

    monkeypatch.setenv("TORCH_CORR_MACHINE", str(tmp_path / "machine.json"))
    monkeypatch.setattr(commands, "calibrate", lambda: SHIPPED[0])
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(os, "getloadavg", loads)
    assert main(["calibrate"]) == 0
    assert ("load of 3.0 on 2 cores" in capsys.readouterr().err) == (load == 3.0)


def test_calibrate_reports_unwritable_path(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TORCH_CORR_MACHINE", str(tmp_path / "file" / "machine.json"))
    monkeypatch.setattr(commands, "calibrate", lambda: SHIPPED[0])
    assert main(["calibrate"]) == 1
    assert "cannot write" in capsys.readouterr().err
