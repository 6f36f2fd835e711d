"""The one command for a GPU: what it would run, and how it bears a step that fails or hangs."""

from __future__ import annotations

import json
import re
import signal
import sys
import tarfile
import threading
import time
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import __main__ as benchmark
from benchmarks import cubins, gpu, measure, report
from benchmarks.ahead import sample_ahead
from benchmarks.cases import CASES, CUDA_CASES, SWEEPS, Work
from benchmarks.contenders import Prepared, PyTorch
from benchmarks.memory import random_operands
from benchmarks.results import Results, Row
from support.spies import Sees
from torch_corr import MAPS, Problem


def test_dry_run_names_every_step_and_runs_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--dry-run"]) == 0
    printed = capsys.readouterr().out
    for word in ("every configuration", "racecheck", "--tf32", "algorithm=fft", "-k 'cuda and not"):
        assert word in printed


def test_no_minute_of_a_device_goes_into_compiling_for_others(tmp_path: Path) -> None:
    """Tests that do are left out, by a part of each one's name."""
    (step,) = (each for each in gpu.steps(tmp_path) if each.name == "triton tests")
    left_out = re.findall(r"not (\w+)", step.command[-1])
    text = (Path(__file__).parent / "algorithms" / "test_triton.py").read_text()
    tests = re.findall(r"^def (test_\w+)(.*?)(?=^def|^@|\Z)", text, re.MULTILINE | re.DOTALL)
    compiling = [name for name, body in tests if "import compile_launch" in body]
    assert len(compiling) >= 3
    assert all(any(word in name for word in left_out) for name in compiling)


def test_what_must_not_be_missed_fits_into_half_an_hour(tmp_path: Path) -> None:
    """Every step up to the kit under auto, even where each is stopped at its limit."""
    every = gpu.steps(tmp_path)
    first = every[: [step.name for step in every].index("kit auto") + 1]
    assert sum(step.minutes for step in first) <= 30
    names = {step.name for step in first}
    assert {"configurations tf32", "cases", "cases tf32", "sanitizer memcheck", "suite"} <= names


def test_what_is_timed_fits_into_200_seconds_and_has_the_machine_to_itself(tmp_path: Path) -> None:
    timed = [step for step in gpu.steps(tmp_path) if step.name in ("cases", "cases tf32")]
    assert sum(step.minutes for step in timed) * 60 <= 200
    assert all(step.timed for step in gpu.steps(tmp_path) if "benchmarks" in step.command)


def test_the_cases_that_were_aimed_at_are_run() -> None:
    """With TF32 those that it changes; without it every case but the sweeps."""
    picked = {
        case.name
        for case in (*CASES, *CUDA_CASES)
        if any(case.matches(pattern) for pattern in gpu.AIMED)
    }
    assert {target.case for target in cubins.TARGETS} <= picked
    assert {case.name for case in CASES if case.group == "dense"} <= picked


def test_benchmarks_understand_what_the_steps_say(tmp_path: Path) -> None:
    """Their words, without a device: what would be measured, and by whom."""
    for step in gpu.steps(tmp_path):
        if "benchmarks" not in step.command:
            continue
        options = benchmark._parser().parse_args(step.command[3:])
        pieces = benchmark._pieces(options, torch.device("cuda"))
        names = {case.name for case, _ in pieces}
        assert ("one plane k3" in names) == step.name.startswith("all")
        assert "convnext dw 7x7 batch" in names
        assert benchmark._settings(options, torch.device("cuda")).tf32 == ("tf32" in step.name)
        if step.name == "cases tf32":
            assert {case.dtype for case, _ in pieces} == {"float32"}


def test_steps_are_chosen_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert "warm: " not in _said(capsys, "--dry-run", "--warmed")
    assert gpu.main(["--dry-run", "--steps", "suite, kit fft"]) == 0
    printed = capsys.readouterr().out
    assert "suite: " in printed
    assert "timings" not in printed
    with pytest.raises(SystemExit, match="no step 'suit'; there are warm, cases"):
        gpu.main(["--dry-run", "--steps", "suit"])


def _said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert gpu.main(words) == 0
    return capsys.readouterr().out


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
    found = json.loads((tmp_path / "summary.json").read_text())["steps"]
    outcomes = [step["outcome"] for step in found]
    assert [step["name"] for step in found] == ["bad", "stuck", "gone", "good"]
    assert outcomes == ["exit 3", "stopped: out of time", "skipped: no no-such-tool here", "exit 0"]
    assert (tmp_path / "bad.log").read_text() == "why\n"
    assert gpu.run(chosen[3:], tmp_path, {}, 0.1) == 0  # no time left: skipped


def _marking(name: str, where: Path, seconds: float = 0.3, **words: Any) -> gpu.Step:
    """A step that leaves when it began and ended."""
    code = (
        f"import time; begin = time.time(); time.sleep({seconds}); "
        f"open({str(where / name)!r}, 'w').write(f'{{begin}} {{time.time()}}')"
    )
    return gpu.Step(name, "", (sys.executable, "-c", code), 1, **words)


def test_steps_run_side_by_side_where_nothing_is_timed(tmp_path: Path) -> None:
    """As many as there are cores for; and nothing beside a step that is timed."""
    chosen = [
        _marking("first", tmp_path, timed=True),
        _marking("wide", tmp_path, 1, cores=3),
        _marking("narrow", tmp_path, 1),
        _marking("later", tmp_path, 0.1, cores=2),
        _marking("last", tmp_path, timed=True),
    ]
    assert gpu.run(chosen, tmp_path, {}, 10, cores=4) == 0
    spans = {}
    for step in chosen:
        begin, end = map(float, (tmp_path / step.name).read_text().split())
        spans[step.name] = begin, end
    assert spans["first"][1] < min(spans["wide"][0], spans["narrow"][0])
    assert max(spans["wide"][0], spans["narrow"][0]) < min(spans["wide"][1], spans["narrow"][1])
    assert spans["later"][0] > min(spans["wide"][1], spans["narrow"][1])  # 3 + 1 + 2 are too many
    assert spans["last"][0] > max(end for name, (_, end) in spans.items() if name != "last")


def test_all_that_was_found_fits_into_one_file(tmp_path: Path) -> None:
    """Logs, the summary, and what the benchmarks wrote beside, with TF32 too."""
    out, archive = tmp_path / "results" / "device", tmp_path / "back" / "all.tar.gz"
    code = f"print('hello'); open({str(out.parent / 'device-tf32' / 'results.json')!r}, 'w')"
    out.mkdir(parents=True)
    (out.parent / "device-tf32").mkdir()
    step = gpu.Step("says", "", (sys.executable, "-c", code), 1)
    assert gpu.run([step], out, {}, 10, pack=archive) == 0
    with tarfile.open(archive) as file:
        names = set(file.getnames())
    assert {"device/says.log", "device/summary.json", "device-tf32/results.json"} <= names


def test_a_step_whose_time_is_up_may_still_report(tmp_path: Path) -> None:
    """It is interrupted, also where the script itself is not, as what a shell starts in the
    background; and what an earlier run found stays in the summary."""
    code = "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('what there is')"
    slow = gpu.Step("slow", "", (sys.executable, "-c", code), 0.05)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert gpu.run([slow], tmp_path, {}, 10) == 1
    finally:
        signal.signal(signal.SIGINT, before)
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

    def only_others(kind: gpu.Kind, _: torch.device) -> None:
        if kind.config.name == "taps-4":
            raise OutOfResourcesError("shared memory")

    monkeypatch.setattr(gpu, "_hold", only_others)
    assert gpu.main(["configurations", "--once", "--device", "cpu"]) == 1
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


def test_what_is_compiled_ahead_is_what_the_steps_launch() -> None:
    """Every configuration that is held, and every case in its layout, with TF32 and without."""
    before = torch.backends.cudnn.allow_tf32
    found = set(gpu.needed())
    assert torch.backends.cudnn.allow_tf32 == before
    for words in (["float32", "float16"], False), (["float32"], True), (["float64"], False):
        assert set(gpu._held(*words)) <= found
    assert set(gpu._held(["float32"], False, once=True)) <= found
    for case in (*CASES, *CUDA_CASES):
        seen = {
            kind.last
            for kind in found
            if (kind.spelling, kind.dtype) == (str(case.problem), case.dtype)
        }
        if case.group not in SWEEPS and not case.torch_dtype.is_complex:
            assert (case.layout == "channels_last") in seen
    precise = {kind.tf32 for kind in found if kind.dtype == "float32"}
    assert precise == {False, True}
    assert {kind.map for kind in found if kind.behind and "k16x16" in kind.spelling} == {*MAPS}


def test_a_later_run_goes_on_after_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--dry-run", "--after", "cases tf32"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("suite: ")
    assert "cases, TF32 off" not in printed


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


class Device:
    """A stand-in for CUDA's clocks: calls are queued, and the device works them off in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free_at = 0.0

        def event(**_: Any) -> Event:
            return Event(self)

        monkeypatch.setattr(torch.cuda, "Event", event)
        monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: self.work(cycles / 2e9))
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: self.wait(self.free_at))

    def work(self, seconds: float) -> None:
        self.free_at = max(self.free_at, time.perf_counter()) + seconds

    def wait(self, until: float) -> None:
        time.sleep(max(0.0, until - time.perf_counter()))


class Event:
    def __init__(self, device: Device) -> None:
        self.device, self.at = device, 0.0

    def record(self) -> None:
        self.at = max(self.device.free_at, time.perf_counter())

    def query(self) -> bool:
        return time.perf_counter() >= self.at

    def synchronize(self) -> None:
        self.device.wait(self.at)

    def elapsed_time(self, other: Event) -> float:
        return 1e3 * (other.at - self.at)


def test_the_devices_time_is_without_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow host is not seen, unless it was not ahead; that is said then."""
    device = Device(monkeypatch)

    def call() -> None:
        time.sleep(2e-3)
        device.work(1e-4)

    found = sample_ahead(call, 3, host=4e-3)
    assert found.ahead
    assert found.device == pytest.approx(1e-4)
    assert found.host > 2e-3
    late = sample_ahead(call, 3, host=0.0)
    assert not late.ahead
    assert late.device > 1e-3


@pytest.mark.parametrize("work", ["forward", "call"])
@pytest.mark.parametrize("searches", [False, True])
def test_on_cuda_a_row_tells_device_stream_and_host(
    monkeypatch: pytest.MonkeyPatch, work: Work, searches: bool
) -> None:
    """Maps are compared by the device, calls in a stream; cuDNN's search has its own thread."""
    device = Device(monkeypatch)
    contender = PyTorch("torch", "torch", cudnn_benchmark=searches)
    on_cuda = measure.Settings(device=torch.device("cuda"), sample=0.002, budget=0.01, least=5)
    entry = measure._Entry(contender, Row("a", work, "torch"), on_cuda)
    threads = set()

    def call() -> None:
        threads.add(threading.current_thread())
        time.sleep(1e-3)
        device.work(1e-4)

    entry.prepared = Prepared(call, lambda result: (result,))
    entry.warm_up()
    while entry.wants_more:
        entry.turn()
    entry.other_clock()
    row = entry.row
    assert len(row.samples) >= measure.LEAST
    assert row.host is not None
    assert row.host > 1e-3
    if work == "call":
        assert row.seconds > 1e-3
        assert (row.stream, row.ahead) == (None, None)
    else:
        assert row.stream is not None
        assert row.stream > 1e-3
        if row.ahead:  # a busy machine can be late
            assert row.seconds == pytest.approx(1e-4)
    assert (threads == {threading.main_thread()}) == (not searches)
    assert len(threads) == 1


def test_the_report_of_a_gpu_tells_both_clocks(tmp_path: Path) -> None:
    """Also from the file, in which a CPU's rows have none of it."""
    rows = [
        Row("tiny 3x3", "forward", "auto", samples=[5e-6], host=2e-5, stream=2.1e-5, ahead=False),
        Row("tiny 3x3", "call", "torch", samples=[3e-5], host=2.9e-5),
        Row("tiny 3x3", "call", "auto", samples=[4e-5], number=1),
    ]
    (case,) = (case for case in CASES if case.name == "tiny 3x3")
    keys = {"name": case.name, "problem": str(case.problem), "dtype": case.dtype}
    results = Results(
        machine={**dict.fromkeys(("cpu", "torch_cpu_capability", "cores", "governor", "python"))}
        | dict.fromkeys(("load_average", "torch", "torch_corr", "commit")),
        settings={"device": "cuda", "threads": 1, "tf32": False, "quick": False}
        | {"command": "python", "started": "now", "seconds": 1},
        peaks={"copy of 33.5 MB": 4e12},
        cases=[{**keys, "group": case.group, "source": case.source}],
        contenders=[
            {"name": name, "kind": kind, "version": "1", "absent": None}
            for name, kind in (("auto", "ours"), ("torch", "torch"))
        ],
        rows=rows,
    )
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


@pytest.mark.parametrize("work", ["grad_input", "grad_weight"])
def test_channels_last_is_the_layout_of_all_that_pytorch_is_given(work: Work) -> None:
    """It computes in that of the image and the weight, of which a gradient has one alone."""
    problem = Problem.parse("n2c4-x9-o6-k3")
    generator = torch.Generator()
    operands = random_operands(problem, work, torch.float16, generator, "channels_last")
    assert all(each.is_contiguous(memory_format=torch.channels_last) for each in operands.values())
    with Sees() as seen:
        PyTorch("torch", "torch").prepare(problem, work, operands).run()
    assert len(seen.given) == 3
    assert all(each.is_contiguous(memory_format=torch.channels_last) for each in seen.given)
    assert not any(each.is_contiguous() for each in seen.given)
