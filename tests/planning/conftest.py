"""Fixtures of the planner's tests."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from support.devices import DEVICES
from torch_corr.algorithms.triton import algorithm as triton_module
from torch_corr.algorithms.triton import runtime as triton_runtime
from torch_corr.planning import auto as auto_module
from torch_corr.planning import machine as machine_module
from torch_corr.planning import wisdom
from torch_corr.planning.plan import clear_plans


@pytest.fixture(autouse=True)
def _no_wisdom():
    """No wisdom, and one thread, because two wait for each other on a busy machine."""
    torch.set_num_threads(1)
    wisdom.forget()
    clear_plans()
    yield
    wisdom.forget()
    clear_plans()


@pytest.fixture
def pretend_device(monkeypatch):
    """Pretend that a CUDA device with these properties exists."""
    forget_refusals = triton_runtime.device_refusals.cache_clear

    def there(name):
        keys = "major", "minor", "multi_processor_count", "clock_rate", "memory_clock_rate"
        values = DEVICES[name][0]
        found = SimpleNamespace(name=name, **dict(zip((*keys, "memory_bus_width"), values)))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: found)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
        monkeypatch.setattr(torch.version, "hip", None)
        monkeypatch.setattr(triton_runtime, "launcher_refusals", lambda: ())
        forget_refusals()
        machine_module._device_machine.cache_clear()
        machine_module.device_name.cache_clear()

    torch.backends.cudnn.allow_tf32 = False
    yield there
    forget_refusals()
    machine_module._device_machine.cache_clear()
    machine_module.device_name.cache_clear()


@pytest.fixture
def with_triton(pretend_device, monkeypatch):
    """Pretend that there is an H100 with Triton, the fastest; lists what is timed."""
    pretend_device("H100")
    timed: list[str] = []

    def times(algorithms, *_):
        timed.extend(each.spelling for each in algorithms)
        return {each.spelling: 2.0 - (each.name == "triton") for each in algorithms}

    monkeypatch.setattr(triton_module, "device_refusals", lambda _: ())
    monkeypatch.setattr(auto_module, "time_algorithms", times)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return timed
