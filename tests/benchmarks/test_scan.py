"""``scan``: wrong results, crashes and accesses beyond memory are findings."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from shutil import which

import pytest
from torch import Tensor

from benchmarks import scan
from benchmarks.scan import main, problem_with
from benchmarks.scan_cases import DTYPES, GUARD, MAPS, Case, draw

BROKEN = '''
import os
import signal
from dataclasses import dataclass

from torch_corr import Unfold


@dataclass(frozen=True)
class Broken(Unfold):
    """Kills the process for three images, is off by one for two."""

    def forward(self, problem, input, weight):
        if problem.batch == 3:
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().forward(problem, input, weight) + (problem.batch == 2)


broken = Broken()
'''


def cases(count: int) -> list[Case]:
    return [draw(0, number, MAPS, tuple(DTYPES)) for number in range(count)]


def test_case_is_parsed_from_its_string() -> None:
    for case in cases(200):
        assert Case.parse(str(case)) == case


def test_operands_have_the_strides_of_the_case_and_nan_around() -> None:
    for case in cases(200):
        for name, value in case.operands.items():
            strides = case.strides[("input", "weight", "output").index(name)]
            assert value.stride() == strides
            assert not value.isnan().any()
            memory = value.as_strided(
                (value.untyped_storage().nbytes() // value.itemsize,), (1,), 0
            )
            assert memory[:GUARD].isnan().all()
            assert memory[-GUARD:].isnan().all()


@pytest.mark.parametrize("algorithm", ["unfold", "aten", "pytorch"])
def test_right_result_is_no_finding(algorithm: str) -> None:
    for number in range(60):
        case = draw(1, number, MAPS, ("float64",))
        assert problem_with(case, algorithm, 1) is None


@pytest.mark.parametrize("map", MAPS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_single_wrong_element_is_a_finding(
    map: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = scan.compute

    def wrong(case: Case, algorithm: str) -> list[Tensor]:
        *others, last = right(case, algorithm)
        last = last.contiguous()
        last.view(-1)[-1] += 1 + last.abs().max().ceil().real / 4
        return [*others, last]

    monkeypatch.setattr(scan, "compute", wrong)
    for number in range(10):
        found = problem_with(draw(2, number, (map,), (dtype,)), "unfold", 1)
        assert found is not None
        # A long sum in half precision may have rounding errors as large as this.
        assert found[0] == "wrong" or (found[0] == "rough" and "16" in dtype)


def test_crash_is_a_finding_and_the_scan_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken_algorithm.py").write_text(BROKEN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(Path(__file__).parents[2])
    options = ["--algorithm", "broken_algorithm:broken", "--maps", "forward", "--dtypes", "float64"]
    drawn = [draw(3, number, ("forward",), ("float64",)).problem.batch for number in range(8)]
    assert {1, 2} < {*drawn}
    assert drawn.count(3) == 1
    assert drawn.index(3) < 7
    assert main(["--seed", "3", "--count", "8", *options]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("wrong: forward[0, 0, 0, 0]") for line in lines) == drawn.count(2)
    (died,) = (place for place, line in enumerate(lines) if line.startswith("died: SIGSEGV"))
    assert str(draw(3, drawn.index(3), ("forward",), ("float64",))) == lines[died + 1].strip()
    assert f"{drawn.count(2) + 1} findings in 8 cases" in lines


def test_isa_and_threads_are_set_for_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    def scanned(options: object) -> list[scan.Finding]:
        seen.update(scan._environment(options))  # type: ignore[arg-type]
        return []

    monkeypatch.setattr(scan, "scan", scanned)
    assert main(["--isa", "AVX2", "--threads", "2"]) == 0
    assert seen["ONEDNN_MAX_CPU_ISA"] == "AVX2"
    assert seen["OMP_NUM_THREADS"] == "2"


BEYOND = """
import ctypes, sys
import torch
ctypes.CDLL(None).guard_enable(int(sys.argv[2]))
block = torch.empty(1000)
if sys.argv[1] == "after free":
    at = block.data_ptr()
    del block
    ctypes.memset(at, 0, 4)
elif sys.argv[1] == "other":
    grown = torch.UntypedStorage(4096)
    grown.resize_(9000)
    print(block.zero_().sum().item(), grown.nbytes())
elif sys.argv[1] == "read":
    ctypes.string_at(block.data_ptr() + 4 * 1016, 4)
else:
    ctypes.memset(block.data_ptr() + 4 * int(sys.argv[1]), 0, 4)
"""


@pytest.mark.skipif(sys.platform != "linux" or not which("cc"), reason="needs Linux and cc")
@pytest.mark.parametrize("enabled", [1, 2])
@pytest.mark.parametrize("where", ["999", "1016", "after free", "other", "read"])
def test_guard_kills_the_process_that_accesses_memory_beyond_a_block(
    where: str, enabled: int
) -> None:
    environment = {**os.environ, "LD_PRELOAD": scan._guard()}
    command = [sys.executable, "-c", BEYOND, where, str(enabled)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if where in ("999", "other") or (where == "read" and enabled == 1):
        assert done.returncode == 0, done.stderr
    else:
        assert done.returncode == -signal.SIGSEGV


def test_unknown_algorithm_is_a_finding() -> None:
    case = draw(0, 0, ("forward",), ("float64",))
    found = problem_with(case, "unfolt", 1)
    assert found is not None
    assert found[0] == "raised"
