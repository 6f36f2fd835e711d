"""tune: what it times, what it keeps, and what it leaves unchanged."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torch_corr
from support.needs import KERNELS, needs
from torch_corr import Auto, Corr2d, convert, corr2d, plan, tune, wisdom
from torch_corr import tuning as module


@pytest.fixture(autouse=True)
def _no_wisdom():
    wisdom.forget()
    yield
    wisdom.forget()


@pytest.fixture
def layer_times(monkeypatch):
    """Sets the times of whole layers, PyTorch's and ours; returns a function for that."""

    def pretend(before, after):
        monkeypatch.setattr(module, "time_in_turns", lambda *_: {"before": before, "after": after})

    return pretend


def network():
    """Two layers that are worth timing, one that is too small, and one that is never called."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.Dropout(0.5),
        nn.Conv2d(4, 4, 5, groups=4, padding_mode="circular", padding=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Conv2d(4, 2, 1),
    )
    model[0].unused = nn.Conv2d(1, 1, 1)
    return model


def images(**options):
    return torch.ones(2, 2, 24, 24, **options)


def test_report_has_each_call_of_a_layer_and_reasons_for_the_others():
    model = network()
    convert(model)
    report = tune(model, images())
    first, second = report.calls
    assert (first.layer, second.layer) == ("0", "3")
    assert first.problem == "n2c2-x24x24-o4-k3x3-s1x1-p1,1x1,1-d1x1-g1 on cpu/float32"
    assert "x28x28" in second.problem  # the image with its border
    assert len(first.maps) == len(second.maps) == 3
    assert report.before == first.before + second.before > 0 < report.after
    assert set(report.skipped) == {"5", "0.unused"}
    text = str(report)
    assert "all 2 calls" in text
    assert "5 not timed: it has fewer" in text


def test_auto_uses_the_times_afterwards():
    model = network()
    convert(model)
    before = str(plan(images(), model[0].weight, padding=1))
    tune(model, images())
    after = str(plan(images(), model[0].weight, padding=1))
    assert " measured  " in after
    assert " measured  " not in before


def test_without_gradients_only_the_forward_is_timed():
    model = network()
    convert(model)
    with torch.no_grad():
        report = tune(model, images())
    assert [len(each.maps) for each in report.calls] == [1, 1]
    assert {key.map for key in wisdom.WISDOM._seconds} == {"forward"}


def test_layer_that_is_not_faster_keeps_pytorch(layer_times):
    layer_times(1.0, 0.98)
    layer = Corr2d(32, 32, 7, groups=32)
    report = tune(layer, torch.ones(1, 32, 24, 24))
    assert report.calls[0].maps == ("aten",) * 3
    assert all(list(each) == ["aten"] for each in wisdom.WISDOM._seconds.values())
    chosen = plan(torch.ones(1, 32, 24, 24), layer.weight, groups=32)
    assert {chosen.forward.name, chosen.grad_input.name, chosen.grad_weight.name} == {"aten"}


@needs(KERNELS)
def test_layer_that_is_faster_keeps_all_times(layer_times):
    layer_times(1.0, 0.9)
    report = tune(Corr2d(32, 32, 7, groups=32), torch.ones(1, 32, 24, 24))
    assert report.calls[0].maps != ("aten",) * 3
    assert all(len(each) > 1 for each in wisdom.WISDOM._seconds.values())


def test_one_problem_is_timed_once_and_counted_each_time(layer_times):
    layer_times(1.0, 0.5)
    layer = Corr2d(2, 2, 5, padding=2, groups=2)
    report = tune(nn.Sequential(layer, nn.ReLU(), layer), torch.ones(2, 2, 24, 24))
    # The image needs a gradient in the second call only.
    assert [each.layer for each in report.calls] == ["0", "0"]
    assert (report.before, report.after) == (2.0, 1.0)
    again = tune(nn.Sequential(layer, layer), images(requires_grad=True))
    assert "0 and 1 more" in str(again)


def test_model_and_random_numbers_do_not_change():
    model = network()
    convert(model)
    expected = torch.random.get_rng_state()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    tune(model, images())
    assert torch.equal(torch.random.get_rng_state(), expected)
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert model.training
    assert all(each.grad is None for each in model.parameters())
    assert not any(each._forward_pre_hooks or each._forward_hooks for each in model.modules())


def test_autocast_and_layout_of_the_caller_apply():
    model = Corr2d(32, 32, 3, groups=32, padding=1)
    image = torch.ones(1, 32, 16, 16).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        (call,) = tune(model, image).calls
    assert "cpu/bfloat16 in channels_last" in call.problem


def test_calls_outside_layers_and_named_algorithms():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.named = Corr2d(2, 2, 3, algorithm="unfold")

        def forward(self, x):
            return corr2d(x, torch.ones(4, 2, 3, 3), algorithm=Auto(error="componentwise")), (
                self.named(x)
            )

    report = tune(Model(), images())
    assert [each.layer for each in report.calls] == ["a call of corr2d"]
    assert report.skipped["named"] == "its algorithm is 'unfold'"


def test_compiled_model_is_tuned_in_eager_mode():
    layer = Corr2d(2, 4, 3)
    report = tune(torch.compile(nn.Sequential(layer), backend="eager"), images())
    assert len(report.calls) == 1


def test_operands_that_cannot_be_timed_are_skipped():
    report = tune(Corr2d(2, 2, 5, device="meta"), images(device="meta"))
    assert "in memory" in report.skipped["the model"]

    class Tagged(torch.Tensor):
        pass

    report = tune(Corr2d(2, 2, 5), images().as_subclass(Tagged))
    assert "Tagged" in report.skipped["the model"]


def test_errors_leave_nothing_behind():
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        tune(corr2d, images())
    model = network()
    with pytest.raises(RuntimeError):
        convert(model, tune=torch.ones(2, 5, 24, 24))
    assert not any("_conv_forward" in vars(each) for each in model.modules())
    assert not any(each._forward_pre_hooks for each in model.modules())
    with pytest.raises(ValueError, match="leave out tune"):
        convert(model, "unfold", tune=images())


@pytest.mark.parametrize("form", [lambda x: x, lambda x: (x,), lambda x: {"input": x}])
def test_convert_tunes_with_each_form_of_inputs(form):
    report = convert(network(), tune=form(images()))
    assert len(report.tuning.calls) == 2
    assert "all 2 calls" in str(report)


def test_progress_goes_to_stderr_if_wanted(capsys):
    layer = Corr2d(2, 4, 3)
    tune(layer, images(), progress=True)
    assert "1 calls" in capsys.readouterr().err
    tune(layer, images())
    assert capsys.readouterr() == ("", "")


def test_empty_report():
    assert str(torch_corr.Tuning()).splitlines()[-1].startswith("all 0 calls")
