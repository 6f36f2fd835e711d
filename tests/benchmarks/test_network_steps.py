"""``models``: training steps of networks with nn.Conv2d, converted and intercepted."""

from __future__ import annotations

import copy

import pytest
from torch import nn

from benchmarks import models
from support.networks import network


@pytest.mark.parametrize("backend", [None, "eager"])
def test_steps_use_the_same_weights_for_three_contenders(backend: str | None) -> None:
    pytest.importorskip("transformers", reason="its networks need the extra 'models'")
    model, images = network("resnet")
    contenders = models.time_steps(
        copy.deepcopy(model).train(), images, halves=False, rounds=1, backend=backend
    )
    compiled = [each.model._compiled_call_impl is not None for each in contenders]
    assert compiled == [backend is not None] * 3
    assert [len(each.seconds) for each in contenders] == [2, 2, 2]
    layers = [[m for m in c.model.modules() if isinstance(m, nn.Conv2d)] for c in contenders]
    converted = [{"_conv_forward" in vars(layer) for layer in each} for each in layers]
    assert converted == [{False}, {True}, {False}]
    assert models.first_difference(contenders) < 1e-5


def test_calls_are_timed_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    models.time_calls(rounds=1, number=1)
    assert "nn.Conv2d, intercepted" in capsys.readouterr().out
