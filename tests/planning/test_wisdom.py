"""Wisdom: measurements that are saved, loaded and respected."""

from __future__ import annotations

import json

import pytest
import torch

from support.maps import request
from torch_corr import MAPS, Aten, Auto, Problem, Unfold
from torch_corr.planning import auto as auto_module
from torch_corr.planning import wisdom
from torch_corr.planning.plan import clear_plans, make_plan
from torch_corr.planning.wisdom import WISDOM, Key

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SMALL = Problem.parse("n1c2-x9-o2-k3")


def test_wisdom_round_trips_through_file(tmp_path):
    make_plan(SMALL, CPU, torch.float32, Auto(measure=True))
    key = Key.of(request(SMALL))
    times = dict(WISDOM.seconds(key))
    assert min(times.values()) > 0
    assert wisdom.save(tmp_path / "wisdom.json") == len(MAPS)
    wisdom.forget()
    assert WISDOM.seconds(key) == {}
    assert wisdom.load(tmp_path / "wisdom.json") == len(MAPS)
    assert WISDOM.seconds(key) == times


def test_loaded_wisdom_replaces_cached_plans(tmp_path, monkeypatch):
    monkeypatch.setattr(auto_module, "PLANNING_THRESHOLD", 0)
    clear_plans()
    before = make_plan(SMALL, CPU, torch.float32, "auto").forward
    chosen = Unfold() if before != Unfold() else Aten()
    WISDOM.remember(Key.of(request(SMALL)), {chosen.name: 1e-9})
    wisdom.save(tmp_path / "wisdom.json")
    wisdom.load(tmp_path / "wisdom.json")
    assert make_plan(SMALL, CPU, torch.float32, "auto").forward == chosen
    # Wisdom holds for one number of threads.
    torch.set_num_threads(2)
    assert make_plan(SMALL, CPU, torch.float32, "auto").forward == before
    torch.set_num_threads(1)
    assert make_plan(SMALL, CPU, torch.float32, "auto").forward == chosen


@pytest.mark.parametrize(
    "content",
    [
        "no JSON",
        "[]",
        "{}",
        '{"format": 99, "entries": []}',
        '{"format": 1, "entries": [{"problem": "n1"}]}',
        '{"format": 1, "entries": 7}',
    ],
)
def test_file_without_wisdom_is_refused(tmp_path, content):
    path = tmp_path / "wisdom.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"holds no wisdom .* torch_corr\.wisdom\.save"):
        wisdom.load(path)
    assert len(WISDOM) == 0


def test_bad_entry_rejects_whole_file(tmp_path):
    make_plan(SMALL, CPU, torch.float32, Auto(measure=True))
    path = tmp_path / "wisdom.json"
    wisdom.save(path)
    content = json.loads(path.read_text())
    content["entries"][-1]["seconds"] = {"aten": -1.0}
    path.write_text(json.dumps(content))
    wisdom.forget()
    with pytest.raises(ValueError, match="not all positive"):
        wisdom.load(path)
    assert len(WISDOM) == 0


def test_key_distinguishes_tf32(pretend_device):
    def dtype_of(dtype, device=CUDA):
        return Key.of(request(SMALL, device=device, dtype=dtype)).dtype

    pretend_device("H100")
    torch.backends.cudnn.allow_tf32 = True
    assert dtype_of(torch.float32) == "tf32"
    assert dtype_of(torch.float16) == "float16"
    assert dtype_of(torch.float32, CPU) == "float32"
    assert dtype_of(torch.complex64) == "complex64, convolutions in tf32"
    assert dtype_of(torch.complex128) == "complex128"
    torch.backends.cudnn.allow_tf32 = False
    assert dtype_of(torch.float32) == "float32"
    torch.backends.cuda.matmul.allow_tf32 = True
    assert dtype_of(torch.float32) == "float32, products in tf32"
    assert dtype_of(torch.float16) == "float16"
