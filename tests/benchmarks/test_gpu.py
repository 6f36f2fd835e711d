"""``gpu``: the steps of the command for a machine with a GPU, and steps that fail or hang."""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as benchmark
from benchmarks import cubins, gpu
from benchmarks.cases import CASES, CUDA_CASES, SWEEPS
from torch_corr import MAPS


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The output of a successful dry run."""
    assert gpu.main(["--dry-run", *words]) == 0
    return capsys.readouterr().out


def python_step(name: str, code: str, minutes: float = 1, needs: str = "") -> gpu.Step:
    return gpu.Step(name, "", (sys.executable, "-c", code), minutes, needs)


def test_dry_run_prints_every_step(capsys: pytest.CaptureFixture[str]) -> None:
    output = printed(capsys)
    for word in ("every configuration", "racecheck", "--tf32", "algorithm=fft", "-k 'cuda and not"):
        assert word in output


def test_steps_are_selected_by_name_or_place(capsys: pytest.CaptureFixture[str]) -> None:
    assert "warm: " not in printed(capsys, "--warmed")
    output = printed(capsys, "--steps", "suite, kit fft")
    assert "suite: " in output
    assert "sanitizer" not in output
    output = printed(capsys, "--after", "cases tf32")
    assert output.startswith("suite: ")
    assert "cases, TF32 off" not in output
    with pytest.raises(SystemExit, match="no step 'suit'; there are warm, cases"):
        gpu.main(["--dry-run", "--steps", "suit"])


def test_step_of_triton_tests_leaves_out_tests_that_compile(tmp_path: Path) -> None:
    """They compile for other devices."""
    (step,) = (each for each in gpu.steps(tmp_path) if each.name == "triton tests")
    left_out = re.findall(r"not (\w+)", step.command[-1])
    (path,) = (word for word in step.command if word.endswith("test_triton.py"))
    text = (gpu.ROOT / path).read_text()
    tests = re.findall(r"^def (test_\w+)(.*?)(?=^def|^@|\Z)", text, re.MULTILINE | re.DOTALL)
    compiling = [name for name, body in tests if "import compile_launch" in body]
    assert len(compiling) >= 3
    assert all(any(word in name for word in left_out) for name in compiling)


def test_most_important_steps_fit_into_half_an_hour(tmp_path: Path) -> None:
    """Even if each reaches its limit."""
    every = gpu.steps(tmp_path)
    first = every[: [step.name for step in every].index("kit auto") + 1]
    assert sum(step.minutes for step in first) <= 30
    names = {step.name for step in first}
    assert {"configurations tf32", "cases", "cases tf32", "sanitizer memcheck", "suite"} <= names
    timed = [step for step in first if step.name in ("cases", "cases tf32")]
    assert sum(step.minutes for step in timed) * 60 <= 200


def test_cases_with_tf32_include_targets_and_dense_layers() -> None:
    picked = {
        case.name
        for case in (*CASES, *CUDA_CASES)
        if any(case.matches(pattern) for pattern in gpu.TARGETED)
    }
    assert {target.case for target in cubins.TARGETS} <= picked
    assert {case.name for case in CASES if case.group == "dense"} <= picked


def test_benchmarks_accept_the_commands_of_the_steps(tmp_path: Path) -> None:
    for step in gpu.steps(tmp_path):
        if "benchmarks" not in step.command:
            continue
        options = benchmark.parser().parse_args(step.command[3:])
        pieces = benchmark.pieces(options)
        names = {case.name for case, _ in pieces}
        assert benchmark.contenders_of(options)
        assert ("one plane k3" in names) == step.name.startswith("all")
        assert "convnext dw 7x7 batch" in names
        assert benchmark.settings_of(options).tf32 == ("tf32" in step.name)
        if step.name == "cases tf32":
            assert {case.dtype for case, _ in pieces} == {"float32"}


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
    assert gpu.run(chosen, tmp_path, {"gpu": "none"}, 10) == 1
    found = json.loads((tmp_path / "summary.json").read_text())["steps"]
    outcomes = [step["outcome"] for step in found]
    assert [step["name"] for step in found] == ["bad", "stuck", "gone", "good"]
    assert outcomes == ["exit 3", "stopped: out of time", "skipped: no no-such-tool here", "exit 0"]
    assert (tmp_path / "bad.log").read_text() == "why\n"
    assert gpu.run(chosen[3:], tmp_path, {}, 0.1) == 0  # no time left: skipped


def test_step_at_its_limit_can_report_and_the_summary_keeps_it(tmp_path: Path) -> None:
    """It is interrupted, also if the command itself ignores interrupts, as in the background."""
    code = "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('partial')"
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert gpu.run([python_step("slow", code, minutes=0.05)], tmp_path, {}, 10) == 1
    finally:
        signal.signal(signal.SIGINT, before)
    assert (tmp_path / "slow.log").read_text() == "partial\n"
    assert gpu.run([python_step("good", "")], tmp_path, {}, 10) == 0
    steps = json.loads((tmp_path / "summary.json").read_text())["steps"]
    assert [(step["name"], step["outcome"]) for step in steps] == [
        ("slow", "stopped: out of time"),
        ("good", "exit 0"),
    ]


def test_processes_that_a_step_started_end_with_it(tmp_path: Path) -> None:
    """The program under a sanitizer would otherwise continue and hold the device."""
    late = f"import time; time.sleep(1); open({str(tmp_path / 'late')!r}, 'w')"
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {late!r}])"
    assert gpu.run([python_step("leaves", code)], tmp_path, {}, 10) == 0
    time.sleep(1.5)
    assert not (tmp_path / "late").exists()


class OutOfResourcesError(Exception):
    """As Triton's, which is not a RuntimeError."""


def test_configuration_that_does_not_compile_does_not_stop_the_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def check(launch: gpu.Launched, _: torch.device) -> None:
        if launch.config.name == "taps-4":
            raise OutOfResourcesError("shared memory")

    monkeypatch.setattr(gpu, "_check", check)
    assert gpu.main(["configurations", "--once", "--device", "cpu"]) == 1
    output = capsys.readouterr().out
    assert "WRONG: taps-4 forward float32" in output
    assert "OutOfResourcesError: shared memory" in output
    assert output.index("WRONG: taps-4 grad_input") < output.index("right: sums-1x4x4")


def test_warm_compiles_what_the_steps_launch() -> None:
    """Every checked configuration, and every case in its layout, with TF32 and without."""
    before = torch.backends.cudnn.allow_tf32
    found = set(gpu.launched())
    assert torch.backends.cudnn.allow_tf32 == before
    for words in (["float32", "float16"], False), (["float32"], True), (["float64"], False):
        assert set(gpu.checked_launches(*words)) <= found
    assert set(gpu.checked_launches(["float32"], False, once=True)) <= found
    for case in (*CASES, *CUDA_CASES):
        layouts = {
            each.layout
            for each in found
            if (each.problem, each.dtype) == (str(case.problem), case.dtype)
        }
        if case.group not in SWEEPS and not case.torch_dtype.is_complex:
            assert case.layout in layouts
    assert {each.tf32 for each in found if each.dtype == "float32"} == {False, True}
    assert {each.map for each in found if each.fallback and "k16x16" in each.problem} == {*MAPS}
