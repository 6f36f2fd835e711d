"""The rates of CPUs and GPUs: calibrated, read from a device's properties, and used."""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from support.devices import DEVICES
from support.maps import request
from support.needs import KERNELS, needs
from torch_corr import Aten, Problem, Triton, Unfold, native
from torch_corr.algorithms import Cost
from torch_corr.planning import machine as machine_module
from torch_corr.planning.auto import (
    SWITCH_RATIO,
    UNFITTED_SWITCH_RATIO,
    Candidate,
    _fastest,
)
from torch_corr.planning.machine import (
    SHIPPED,
    Machine,
    Rates,
    calibration_path,
    current_machine,
    machine_of,
    most_similar,
    processor_id,
)
from torch_corr.planning.plan import clear_plans, make_plan

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_calibration_is_read_from_its_path(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCH_CORR_MACHINE")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert calibration_path() == tmp_path / "torch_corr" / "machine.json"
    mine = replace(SHIPPED[0], name="mine", float64=Rates(*(n * 1e9 for n in range(1, 8))))
    current_machine.cache_clear()
    try:
        assert current_machine().name == SHIPPED[0].name
        current_machine.cache_clear()
        mine.save(calibration_path())
        assert current_machine() == mine
        current_machine.cache_clear()
        replace(mine, processor="another").save(calibration_path())
        assert not current_machine().is_fitted
    finally:
        current_machine.cache_clear()


@pytest.mark.parametrize("name", DEVICES)
def test_gpu_rates_match_data_sheets(name, pretend_device):
    """Within 1%."""
    pretend_device(name)
    stated = DEVICES[name][1]
    dtypes = (torch.float32, torch.float32, torch.bfloat16, torch.float64)
    for tf32, dtype, flops in zip((False, True, True, True), dtypes, stated[1:]):
        torch.backends.cudnn.allow_tf32 = tf32
        rates = machine_of(CUDA, dtype).rates(dtype)
        assert rates.matmul_flops == pytest.approx(flops, rel=0.01)
        assert rates.bytes == pytest.approx(stated[0], rel=0.01)


def test_assumed_rates_are_explained(pretend_device, monkeypatch):
    pretend_device("GB10")
    problem = Problem.parse("n1c1-x64-o1-k3")
    printed = str(make_plan(problem, CUDA, torch.float32, "auto"))
    assert "predicted for GB10 (no memory clock stated: 200 GB/s assumed)" in printed
    monkeypatch.setitem(DEVICES, "GB10", ((12, 1, 48, 0, 0, 0), DEVICES["GB10"][1]))
    pretend_device("GB10")
    clear_plans()
    printed = str(make_plan(problem, CUDA, torch.float32, "auto"))
    assert "assumed) (no clock stated: 1.5 GHz assumed) from its clock" in printed


@pytest.mark.skipif(
    torch.__version__ < "2.11", reason="PyTorch 2.10 counts two transfers per cycle twice"
)
def test_gpu_rates_match_pytorchs_device_limits(pretend_device):
    """``torch.cuda._device_limits`` knows some devices."""
    limits = pytest.importorskip("torch.cuda._device_limits")
    torch.backends.cudnn.allow_tf32 = True
    for name in ("A100", "H100"):
        pretend_device(name)
        theirs = limits.GPULimits(CUDA)
        for dtype in (torch.float32, torch.float16, torch.float64):
            rates = machine_of(CUDA, dtype).rates(dtype)
            assert rates.matmul_flops == pytest.approx(1e12 * theirs.get_tflops_per_second(dtype))
            assert rates.bytes == theirs.get_memory_bandwidth_Bps()


@pytest.mark.parametrize("way", [Aten(), Triton()], ids=lambda each: each.name)
def test_depthwise_cost_is_independent_of_matrix_units(way, pretend_device):
    """A layer of ConvNeXt: the cost counts matrix products, which are faster in halves and TF32."""
    pretend_device("H100")
    problem = Problem.parse("n128c96-x56-o96-k7-p3-g96")

    def seconds(dtype, tf32):
        torch.backends.cudnn.allow_tf32 = tf32
        cost = way.cost(request(problem, device=CUDA, dtype=dtype))._replace(bytes=0)
        return machine_of(CUDA, dtype).seconds(cost, dtype)

    whole = seconds(torch.float32, False)
    assert seconds(torch.float16, False) == pytest.approx(whole, rel=0.1)
    assert seconds(torch.float32, True) == pytest.approx(whole, rel=0.1)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "name": 1}'])
def test_file_without_rates_is_refused(tmp_path, content):
    path = tmp_path / "machine.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"does not hold a machine's rates .* calibrate"):
        Machine.load(path)


def test_doubled_rates_halve_the_time():
    cost = Cost(1e9, 2e9, 3e9, 4, 5e9, 6e9, 7e9)
    rates = Rates(1e9, 1e9, 1e9, 1, 1e9, 1e9, 1e9)
    assert rates.seconds(cost) == 1 + 2 + 3 + 4 + 5 + 6 + 7
    assert Rates(*(2 * rate for rate in rates)).seconds(cost) == 14


def test_threads_change_all_rates_but_that_of_calls():
    one = SHIPPED[0].with_threads(1)
    assert one.threads == 1
    assert not one.is_fitted
    assert one.float32.conv_flops == SHIPPED[0].float32.conv_flops / 2
    assert one.float32.calls == SHIPPED[0].float32.calls
    assert SHIPPED[0].with_threads(2) == SHIPPED[0]
    many = SHIPPED[0].with_threads(64)
    assert many.bfloat16.vector_flops == 32 * SHIPPED[0].bfloat16.vector_flops
    assert many.float64.bytes == 2 * SHIPPED[0].float64.bytes  # memory has few buses


def test_processor_that_was_measured_gets_its_own_rates():
    assert most_similar(SHIPPED[0].processor, SHIPPED[0].isa) == SHIPPED[0]
    for processor, isa in (("GenuineIntel 6 143", "avx512"), (SHIPPED[0].processor, "avx2")):
        other = most_similar(processor, isa)
        assert not other.is_fitted
        assert other.float32 in [each.float32 for each in SHIPPED]
    assert most_similar("", "").name


def test_processor_is_identified_on_each_system(monkeypatch):
    text = "processor : 0\nvendor_id\t: A\ncpu family : 6\nmodel : 7\n\nprocessor : 1\nmodel : 8\n"
    for content, expected in (
        (text, "A 6 7"),
        ("processor : 0\nCPU implementer : 0x41\nCPU part : 0xd40\n", "0x41 0xd40"),
        ("", platform.processor() or platform.machine()),
    ):
        machine_module.cpuinfo.cache_clear()
        monkeypatch.setattr(Path, "read_text", lambda _, content=content: content)
        assert processor_id() == expected
    machine_module.cpuinfo.cache_clear()


@pytest.mark.parametrize(
    ("speed", "ratio", "chosen"),
    [
        (1.1, SWITCH_RATIO, "aten"),
        (1.7, SWITCH_RATIO, "unfold"),
        (1.7, UNFITTED_SWITCH_RATIO, "aten"),
        (2.1, UNFITTED_SWITCH_RATIO, "unfold"),
    ],
)
def test_auto_leaves_pytorch_on_other_machines_only_for_twice_the_speed(speed, ratio, chosen):
    candidates = [Candidate(Aten(), (), 0, 1.0), Candidate(Unfold(), (), 0, 1 / speed)]
    assert _fastest(candidates, ratio).name == chosen


def test_plan_of_another_machine_says_so(monkeypatch):
    monkeypatch.setattr(machine_module, "current_machine", lambda: most_similar("a", "b"))
    clear_plans()
    problem = Problem.parse("n1c1-x64-o1-k3")
    printed = str(make_plan(problem, CPU, torch.float32, "auto"))
    clear_plans()
    assert "only for twice its speed" in printed


@needs(KERNELS)
def test_other_kernels_count_as_another_processor(monkeypatch):
    monkeypatch.setenv("TORCH_CORR_MACHINE", "no such file")
    monkeypatch.setattr(machine_module, "processor_id", lambda: SHIPPED[0].processor)
    for isa, fitted in ((SHIPPED[0].isa, True), ("baseline", False)):
        monkeypatch.setattr(native, "requested_isa", lambda isa=isa: isa)
        current_machine.cache_clear()
        assert current_machine().is_fitted == fitted
    current_machine.cache_clear()
