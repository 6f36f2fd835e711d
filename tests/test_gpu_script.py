"""The one command for a GPU: what it would run, and how it bears a step that fails or hangs."""

from __future__ import annotations

import json
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import cubins, gpu
from benchmarks.cases import CASES, CUDA_CASES
from torch_corr import Problem


def test_dry_run_names_every_step_and_runs_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--dry-run"]) == 0
    printed = capsys.readouterr().out
    for word in ("every configuration", "racecheck", "--tf32", "algorithm=fft", "-k cuda"):
        assert word in printed


def test_what_must_not_be_missed_fits_into_half_an_hour(tmp_path: Path) -> None:
    """Every step up to the kit under auto, even where each is stopped at its limit."""
    every = gpu.steps(tmp_path)
    first = every[: [step.name for step in every].index("kit auto") + 1]
    assert sum(step.minutes for step in first) <= 30
    names = {step.name for step in first}
    assert {"configurations", "cases", "cases tf32", "sanitizer memcheck", "suite"} <= names


def test_the_cases_that_were_aimed_at_are_run() -> None:
    """And no other: the benchmark's patterns pick what docs/gpu.md predicts."""
    picked = {
        case.name
        for case in (*CASES, *CUDA_CASES)
        if any(case.matches(pattern) for pattern in gpu.AIMED)
    }
    aimed = {target.case for target in cubins.TARGETS}
    assert aimed <= picked
    assert len(picked) <= len(aimed) + 2


def test_steps_are_chosen_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--dry-run", "--steps", "suite, kit fft"]) == 0
    printed = capsys.readouterr().out
    assert "suite: " in printed
    assert "timings" not in printed
    with pytest.raises(SystemExit, match="no step 'suit'; there are configurations, cases"):
        gpu.main(["--dry-run", "--steps", "suit"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_without_a_device_it_says_so() -> None:
    with pytest.raises(SystemExit, match="finds no CUDA device here; --dry-run says"):
        gpu.main([])


def test_a_step_that_fails_hangs_or_lacks_its_tool_costs_itself_alone(tmp_path: Path) -> None:
    python = sys.executable
    chosen = [
        gpu.Step("bad", "", (python, "-c", "print('why'); raise SystemExit(3)"), 1),
        gpu.Step("stuck", "", (python, "-c", "import time; time.sleep(60)"), 0.01),
        gpu.Step("gone", "", ("no-such-tool",), 1, needs="no-such-tool"),
        gpu.Step("good", "", (python, "-c", "print('done')"), 1),
    ]
    assert gpu.run(chosen, tmp_path, {"gpu": "none"}, 10) == 1
    outcomes = [
        step["outcome"] for step in json.loads((tmp_path / "summary.json").read_text())["steps"]
    ]
    assert outcomes == ["exit 3", "stopped: out of time", "skipped: no no-such-tool here", "exit 0"]
    assert (tmp_path / "bad.log").read_text() == "why\n"
    assert gpu.run(chosen[3:], tmp_path, {}, 0.1) == 0  # no time left: skipped


def test_a_step_whose_time_is_up_may_still_report(tmp_path: Path) -> None:
    """It is interrupted; and what an earlier run found stays in the summary."""
    code = "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('what there is')"
    slow = gpu.Step("slow", "", (sys.executable, "-c", code), 0.05)
    assert gpu.run([slow], tmp_path, {}, 10) == 1
    assert (tmp_path / "slow.log").read_text() == "what there is\n"
    good = gpu.Step("good", "", (sys.executable, "-c", ""), 1)
    assert gpu.run([good], tmp_path, {}, 10) == 0
    steps = json.loads((tmp_path / "summary.json").read_text())["steps"]
    assert [(step["name"], step["outcome"]) for step in steps] == [
        ("slow", "stopped: out of time"),
        ("good", "exit 0"),
    ]


def test_what_a_step_has_started_ends_with_it(tmp_path: Path) -> None:
    """A sanitizer is stopped, and what it watches would go on and hold the device."""
    late = f"import time; time.sleep(1); open({str(tmp_path / 'late')!r}, 'w')"
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {late!r}])"
    assert gpu.run([gpu.Step("leaves", "", (sys.executable, "-c", code), 1)], tmp_path, {}, 10) == 0
    time.sleep(1.5)
    assert not (tmp_path / "late").exists()


def test_a_configuration_that_does_not_compile_costs_itself_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Held or timed: what Triton raises is no RuntimeError."""

    class OutOfResourcesError(Exception):
        pass

    def only_others(_: Problem, map: str, dtype: torch.dtype, config: Any, *__: Any) -> None:
        if config.name == "taps-4":
            raise OutOfResourcesError("shared memory")

    monkeypatch.setattr(gpu, "_hold", only_others)
    assert gpu.hold_configurations(torch.device("cpu"), once=True) == 1
    printed = capsys.readouterr().out
    assert "WRONG: taps-4 forward float32" in printed
    assert "OutOfResourcesError: shared memory" in printed
    assert printed.index("WRONG: taps-4 grad_input") < printed.index("right: sums-1x4x4")

    taken = count()

    def every_other(_: Any) -> float:
        if next(taken) % 2:
            raise OutOfResourcesError("registers")
        return 1.0

    monkeypatch.setattr(gpu, "seconds", every_other)
    monkeypatch.setattr(gpu, "TIMED", [case for case in CASES if case.name == "resnet 3x3 64"])
    assert gpu.time_configurations(torch.device("cpu")) == 1
    printed = capsys.readouterr().out
    assert "NOT TIMED: resnet 3x3 64 forward" in printed
    assert "resnet 3x3 64 float32 forward: floor" in printed


def test_a_later_run_goes_on_after_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--dry-run", "--after", "sanitizer memcheck"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("suite: ")
    assert "timings" not in printed


def test_floors_are_bytes_or_operations_whichever_takes_longer() -> None:
    row = next(line for line in cubins.floors().splitlines() if "photo 3x3" in line)
    problem = Problem.parse("n1c1-x2048-o1-k3")
    moved = 4 * (2048**2 + 9 + 2046**2)
    assert f"| {moved / 1e6:.1f} | {2 * problem.multiplications / 1e9:.2f} |" in row
    assert f"{1e6 * moved / 4.8e12:.0f} (bytes)" in row


def test_floors_in_the_docs_are_of_this_code() -> None:
    text = cubins.DOCUMENT.read_text()
    assert cubins.floors() in text, "python -m benchmarks.cubins --floors --write"
    assert cubins.predictions() in text, "python -m benchmarks.cubins --floors --write"


def test_occupancy_is_what_registers_and_shared_memory_leave() -> None:
    device = cubins.Multiprocessor(shared=228 * 1024)
    assert device.occupancy(registers=32, shared=0, warps=4) == 1
    assert device.occupancy(registers=255, shared=0, warps=4) == 8 / 64
    assert device.occupancy(registers=32, shared=113 * 1024, warps=4) == 8 / 64


def test_a_block_is_put_between_its_comments() -> None:
    text = "a\n<!-- x -->\nold\n<!-- /x -->\nb\n"
    assert cubins.put(text, "x", "new") == "a\n<!-- x -->\nnew\n<!-- /x -->\nb\n"
    with pytest.raises(ValueError, match="has no place for 'y'"):
        cubins.put(text, "y", "new")
