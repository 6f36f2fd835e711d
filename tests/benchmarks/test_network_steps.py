"""``models``: networks with nn.Conv2d and converted, in both layouts."""

from __future__ import annotations

import copy

import pytest
from torch import nn

from benchmarks import models
from support.networks import network


@pytest.mark.parametrize("inference", [False, True])
def test_contenders_have_the_same_weights_in_both_layouts(inference: bool) -> None:
    pytest.importorskip("transformers", reason="its networks need the extra 'models'")
    model, images = network("resnet")
    contenders = models.make_contenders(copy.deepcopy(model).train(not inference))
    models.take_steps(contenders, images, halves=False, inference=inference, rounds=1)
    assert [len(each.seconds) for each in contenders] == [2] * 4
    layers = [[m for m in c.model.modules() if isinstance(m, nn.Conv2d)] for c in contenders]
    converted = [{"_conv_forward" in vars(layer) for layer in each} for each in layers]
    assert converted == [{False}, {True}, {False}, {True}]
    lasts = [each[0].weight.is_contiguous() for each in layers]
    assert lasts == [True, True, False, False]
    assert models.first_difference(contenders) < 1e-5
    changed = [each.losses[0] != each.losses[1] for each in contenders]
    assert changed == [not inference] * 4


def test_calls_are_timed_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    models.time_calls(rounds=1, number=1)
    assert "nn.Conv2d, intercepted" in capsys.readouterr().out
