"""``gpu``: the steps of the command for a machine with a GPU, and steps that fail or hang."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import __main__ as benchmark
from benchmarks import gpu
from torch_corr.algorithms.triton.configs import Config


def python_step(name: str, code: str, minutes: float = 1, needs: str = "") -> gpu.Step:
    return gpu.Step(name, (sys.executable, "-c", code), minutes, needs)


def test_dry_run_prints_the_chosen_steps(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--dry-run"]) == 0
    output = capsys.readouterr().out
    for word in ("configurations", "racecheck", "--tf32", "algorithm=fft", "-k 'cuda or triton'"):
        assert word in output
    assert gpu.main(["--dry-run", "--steps", "suite, kit fft"]) == 0
    output = capsys.readouterr().out
    assert "suite (" in output
    assert "sanitizer" not in output
    with pytest.raises(SystemExit, match="no step 'suit'; there are suite, kit triton"):
        gpu.main(["--dry-run", "--steps", "suit"])


def test_benchmarks_accept_the_commands_of_the_steps(tmp_path: Path) -> None:
    for step in gpu.steps(tmp_path):
        if "benchmarks" in step.command:
            options = benchmark.parser().parse_args(step.command[3:])
            assert "convnext dw 7x7 batch" in {case.name for case, _ in benchmark.pieces(options)}
            assert benchmark.contenders_of(options)
            assert benchmark.settings_of(options).tf32 == ("tf32" in step.name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_without_a_device_is_an_error() -> None:
    with pytest.raises(SystemExit, match="finds no CUDA device here; --dry-run prints"):
        gpu.main([])


def test_failing_hanging_or_impossible_step_does_not_stop_the_others(tmp_path: Path) -> None:
    chosen = [
        python_step("bad", "print('why'); raise SystemExit(3)"),
        python_step("stuck", "import time; time.sleep(60)", minutes=0.01),
        python_step("gone", "", needs="no-such-tool"),
        python_step("good", "print('done')"),
    ]
    assert gpu.run(chosen, tmp_path, {"gpu": "none"}) == 1
    found = json.loads((tmp_path / "summary.json").read_text())["steps"]
    outcomes = [step["outcome"] for step in found]
    assert [step["name"] for step in found] == ["bad", "stuck", "gone", "good"]
    assert outcomes == ["exit 3", "stopped: out of time", "skipped: no no-such-tool here", "exit 0"]
    assert (tmp_path / "bad.log").read_text() == "why\n"
    assert gpu.run(chosen[2:], tmp_path, {}) == 0


def test_processes_that_a_step_started_end_with_it(tmp_path: Path) -> None:
    """The program under a sanitizer would otherwise continue and hold the device."""
    late = f"import time; time.sleep(1); open({str(tmp_path / 'late')!r}, 'w')"
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {late!r}])"
    assert gpu.run([python_step("leaves", code)], tmp_path, {}) == 0
    time.sleep(1.5)
    assert not (tmp_path / "late").exists()


class OutOfResourcesError(Exception):
    """As Triton's, which is not a RuntimeError."""


def test_configuration_that_does_not_compile_does_not_stop_the_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def check(problem: Any, map: Any, dtype: Any, config: Config, layout: Any) -> None:
        if config.name == "taps-4":
            raise OutOfResourcesError("shared memory")

    monkeypatch.setattr(gpu, "_check", check)
    assert gpu.main(["configurations", "--once"]) == 1
    output = capsys.readouterr().out
    assert "WRONG: taps-4 forward float32" in output
    assert "OutOfResourcesError: shared memory" in output
    assert output.index("WRONG: taps-4 grad_input") < output.index("right: sums-1x4x4")
