"""``models``: networks with nn.Conv2d and converted, in both layouts, and their report."""

from __future__ import annotations

import json
import os

import pytest
import torch
from torch import nn

from benchmarks import calls, models, network_report, networks


class Small(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 8, 3), nn.Dropout(0.5), nn.Conv2d(8, 8, 3, groups=8))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(networks.NETWORKS, "small", networks.Network(Small, (2, 3, 24, 24)))
    return "small"


NAMES = [*models.THEIRS, *models.OURS]


@pytest.mark.parametrize("inference", [False, True])
def test_contenders_have_the_same_weights_in_both_layouts(inference: bool, small: str) -> None:
    mode = models.Mode(inference=inference)
    images = torch.randn(2, 3, 24, 24)
    model = networks.build(small).train(not inference)
    contenders = [models.make_contender(name, model, images, mode) for name in NAMES]
    for each in [*contenders, *contenders]:
        each.step(images, mode)
    layers = [[m for m in c.model.modules() if isinstance(m, nn.Conv2d)] for c in contenders]
    converted = [{"_conv_forward" in vars(layer) for layer in each} for each in layers]
    assert converted == [{False}, {False}, {True}, {True}]
    lasts = [each[0].weight.is_contiguous() for each in layers]
    assert lasts == [True, False, True, False]
    assert models.first_difference(contenders) < 1e-5
    changed = [each.losses[0] != each.losses[1] for each in contenders]
    assert changed == [not inference] * 4


def test_row_has_times_differences_and_failures(small: str) -> None:
    noted: list[str] = []
    mode = models.Mode(inference=True, halves=True, tuned=True)
    row = models.measure(small, mode, [*NAMES, "ONNX Runtime"], 1, noted.append)
    assert set(row["ms"]) == set(NAMES)
    assert set(row["failed"]) == {"ONNX Runtime"}  # it computes no bfloat16
    assert row["difference"] < 1e-2
    assert noted[0] == NAMES[0]
    assert "times as fast" in network_report.sentence(row)


def test_network_that_ends_its_process_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second contender ends it; the others are timed without it."""

    class Ends:
        exitcode = -11

        def __init__(self, target, args):
            self.sender, _, _, self.names, _ = args

        def start(self) -> None:
            if models.THEIRS[1] not in self.names:
                self.exitcode = 0
                self.sender.send({"ms": dict.fromkeys(self.names, 1.0), "failed": {}})

        def join(self) -> None:
            pass

    context = models.multiprocessing.get_context("spawn")
    monkeypatch.setattr(type(context), "Process", Ends)
    row = models.isolated("U-Net", models.Mode(), NAMES, 1)
    assert row["failed"] == {models.THEIRS[1]: "the process died with exit code -11"}
    assert set(row["ms"]) == set(NAMES) - {models.THEIRS[1]}


def test_report_replaces_older_rows_and_shows_crashes(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    machine = {"cpu": "a machine", "torch": "2.13.0", "commit": None, "threads": 2}
    mode = dict.fromkeys(network_report.MODE, False)
    row = {"network": "U-Net", **mode, "difference": 0.0}
    failed = {models.THEIRS[1]: "the process died with exit code -11"}
    for ms in (4.0, 2.0):
        times = {models.THEIRS[0]: 3.0, models.OURS[0]: ms, models.OURS[1]: 9.0}
        network_report.add(tmp_path, machine, {**row, "ms": times, "failed": failed})
    assert len(json.loads((tmp_path / "networks.json").read_text())["rows"]) == 1
    text = (tmp_path / "networks.md").read_text()
    assert "| U-Net | 3.0 | crashes | 2.0 | 9.0 | 1.50 |" in text
    assert os.path.getsize(tmp_path / "networks.svg") > 1000


def test_written_networks_have_the_shapes_of_their_papers() -> None:
    with torch.device("meta"):
        assert networks.UNet()(torch.empty(1, 3, 64, 64)).shape == (1, 2, 64, 64)
        assert networks.EDSR()(torch.empty(1, 3, 24, 24)).shape == (1, 3, 48, 48)
        assert networks.vgg()(torch.empty(1, 3, 64, 64)).shape == (1, 1000)
        assert sum(each.numel() for each in networks.EDSR().parameters()) == 1_369_859


def test_calls_are_timed_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    calls.main(rounds=1, number=1)
    assert "nn.Conv2d, intercepted" in capsys.readouterr().out
