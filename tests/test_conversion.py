"""convert changes the algorithm, keeps classes, parameters and hooks, and can be reverted."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from support.spies import Spy
from torch_corr import Corr2d, LazyCorr2d, Unfold, convert


class Pointwise(nn.Conv2d):
    """A subclass that computes as nn.Conv2d does."""

    def __init__(self, channels):
        super().__init__(channels, channels, 1)
        self.scale = 2

    def extra_repr(self):
        return f"scale={self.scale}"


class Flipped(nn.Conv2d):
    def forward(self, input):
        return super().forward(input.flip(-1))


class Padded(nn.Conv2d):
    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(nn.functional.pad(input, (1, 1)), weight, bias)


class Twice(nn.Module):
    def forward(self, weight):
        return 2 * weight


def small_model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"),
        nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4, bias=False)),
        Pointwise(4),
        nn.Conv2d(4, 2, (3, 2), stride=2, padding="valid", dilation=(1, 2)),
    ).double()


def algorithm_of(layer):
    """The algorithm of a converted layer; None of any other."""
    return getattr(vars(layer).get("_conv_forward"), "algorithm", None)


def outcome(model, x):
    """The output and every gradient."""
    model.zero_grad()
    y = model(x)
    y.square().sum().backward()
    return [y.detach(), *(parameter.grad.clone() for parameter in model.parameters())]


@pytest.mark.parametrize("algorithm", ["auto", "unfold", Unfold(workspace_limit=40_000)], ids=str)
def test_converted_model_computes_the_same(algorithm):
    """Values, gradients, parameters and state: converted and reverted."""
    model, x = small_model(), torch.randn(2, 3, 9, 9, dtype=torch.float64)
    expected, before = outcome(model, x), dict(model.named_parameters())
    unchanged = repr(model), list(model.state_dict())
    report = convert(model, algorithm)
    assert list(report.replaced) == ["0", "1.2", "2", "3"]
    assert report.skipped == {}
    for name, layer in report.replaced.items():
        assert layer is model.get_submodule(name)
        assert algorithm_of(layer) == algorithm
    assert (repr(model), list(model.state_dict())) == unchanged
    assert [type(model[place]) for place in (0, 2, 3)] == [nn.Conv2d, Pointwise, nn.Conv2d]
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    torch.testing.assert_close(outcome(model, x), expected, rtol=1e-12, atol=1e-12)
    report.revert()
    assert not any(map(algorithm_of, report.replaced.values()))
    assert not any("_conv_forward" in vars(module) for module in model.modules())
    for mine, other in zip(outcome(model, x), expected):
        assert torch.equal(mine, other)


def test_model_that_is_one_convolution():
    layer = nn.Conv2d(1, 1, 3)
    report = convert(layer)
    assert algorithm_of(layer) == "auto"
    assert repr(layer._conv_forward) == "corr2d(..., algorithm='auto')"
    assert list(report.replaced) == [""]
    assert "the model: Conv2d(1, 1," in str(report)
    report.revert()
    report.revert()
    assert algorithm_of(layer) is None


def test_convert_keeps_hooks_training_flag_and_optimizer():
    model, seen = nn.Sequential(nn.Conv2d(1, 1, 3, bias=False)), []
    layer = model[0].eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    layer.register_forward_hook(lambda *_: seen.append("forward"))
    layer.register_full_backward_hook(lambda *_: seen.append("backward"))
    layer.weight.register_hook(lambda _: seen.append("weight"))
    convert(model)
    assert not layer.training
    assert model.training
    before = layer.weight.detach().clone()
    model(torch.ones(1, 1, 3, 3, requires_grad=True)).sum().backward()
    optimizer.step()
    assert sorted(seen) == ["backward", "forward", "weight"]
    torch.testing.assert_close(layer.weight, before - 1)


def test_shared_module_is_converted_once():
    layer = nn.Conv2d(2, 2, 1)
    report = convert(nn.Sequential(layer, nn.ReLU(), layer))
    assert list(report.replaced) == ["0"]


@pytest.mark.parametrize("make", [partial(nn.Conv2d, 3, 3, 1), partial(Pointwise, 3)])
def test_copies_and_pickles_of_converted_layers(make):
    """Each has its own weights and geometry."""
    layer = make()
    convert(layer, "unfold")
    x = torch.randn(1, 3, 4, 4)
    file = io.BytesIO()
    torch.save(nn.Sequential(layer), file)
    file.seek(0)
    twins = (
        copy.deepcopy(layer),
        copy.deepcopy(nn.Sequential(layer))[0],
        pickle.loads(pickle.dumps(layer)),
        torch.load(file, weights_only=False)[0],
    )
    for twin in twins:
        assert type(twin) is type(layer)
        assert algorithm_of(twin) == "unfold"
        assert torch.equal(twin(x), layer(x))
        layer.stride = (3, 3)
        assert twin(x).shape == (1, 3, 4, 4)
        layer.stride = (1, 1)
        twin.stride = (2, 2)
        assert twin(x).shape == (1, 3, 2, 2)
        assert layer(x).shape == (1, 3, 4, 4)


def test_shallow_copy_of_converted_layer():
    """It uses the original, raises once that is deleted, and can be converted itself."""
    layer, x = nn.Conv2d(2, 2, 3), torch.randn(1, 2, 5, 5)
    convert(layer, "unfold")
    expected = layer(x)
    twin = copy.copy(layer)
    assert torch.equal(twin(x), expected)
    del layer
    with pytest.raises(RuntimeError, match=r"shallow copy .* was deleted"):
        twin(x)
    assert convert(twin, "naive").skipped == {}
    torch.testing.assert_close(twin(x), expected)
    assert algorithm_of(twin) == "naive"


def test_deleted_model_frees_its_memory_at_once():
    """A strong reference to the layer would wait for the garbage collector."""
    layer = nn.Conv2d(2, 2, 3)
    report = convert(layer, "unfold")
    layer(torch.randn(1, 2, 5, 5))
    weight = weakref.ref(layer.weight)
    gc.disable()
    try:
        del layer, report
        assert weight() is None
    finally:
        gc.enable()


def test_converted_layer_uses_its_current_geometry():
    """Some libraries replace stride by dilation."""
    layer, x = nn.Conv2d(2, 2, 3, stride=2), torch.randn(1, 2, 9, 9)
    convert(layer, "unfold")
    layer.stride, layer.dilation, layer.padding = (1, 1), (2, 2), (1, 2)
    expected = nn.functional.conv2d(x, layer.weight, layer.bias, 1, (1, 2), 2)
    torch.testing.assert_close(layer(x), expected)


def test_converted_twice_keeps_the_first_algorithm():
    """So a single layer can get another algorithm: it is converted first."""
    model = small_model()
    first, second = convert(model[0], "unfold"), convert(model, "naive")
    assert second.skipped["0"] == (
        "Conv2d is converted already, to algorithm='unfold'; call revert() on the report of that "
        "conversion to choose another"
    )
    assert algorithm_of(model[0]) == "unfold"
    assert algorithm_of(model[2]) == "naive"
    second.revert()
    assert algorithm_of(model[0]) == "unfold"
    first.revert()
    assert list(convert(model).replaced) == ["0", "1.2", "2", "3"]


def test_revert_after_layers_were_replaced():
    """Or got their own forward, or were copied."""
    model = small_model()
    report = convert(model, "unfold")
    twin = copy.deepcopy(model)
    model[2] = nn.Identity()
    model[3]._conv_forward = own = lambda x, weight, bias: x
    report.revert()
    assert algorithm_of(model[0]) is algorithm_of(model[1][2]) is None
    assert model[3]._conv_forward is own
    assert algorithm_of(twin[0]) == "unfold"


def test_convert_keeps_parametrizations_and_ignores_copies():
    layer = nn.Conv2d(2, 2, 3)
    parametrize.register_parametrization(layer, "weight", Twice())
    twin, x, kind = copy.deepcopy(layer), torch.randn(1, 2, 5, 5), type(layer)
    expected = layer(x)
    report = convert(layer, "unfold")
    assert type(layer) is kind
    assert algorithm_of(layer) == "unfold"
    assert algorithm_of(twin) is None
    torch.testing.assert_close(layer(x), expected)
    parametrize.register_parametrization(layer, "bias", Twice())
    twin = copy.deepcopy(layer)
    assert algorithm_of(twin) == "unfold"
    torch.testing.assert_close(twin(x), layer(x))
    report.revert()
    assert algorithm_of(layer) is None
    assert set(layer.parametrizations) == {"weight", "bias"}
    parametrize.remove_parametrizations(layer, "weight")
    parametrize.remove_parametrizations(layer, "bias")
    assert type(layer) is nn.Conv2d


def test_parametrization_changed_after_conversion():
    removed, added = Pointwise(2), nn.Conv2d(2, 2, 1)
    parametrizations.weight_norm(removed)
    reports = convert(removed), convert(added)
    parametrize.remove_parametrizations(removed, "weight")
    parametrizations.spectral_norm(added)
    assert algorithm_of(removed) == algorithm_of(added) == "auto"
    for report in reports:
        report.revert()
    assert algorithm_of(removed) is algorithm_of(added) is None
    assert type(removed) is Pointwise
    assert type(added).__bases__ == (nn.Conv2d,)


def test_convert_does_not_run_parametrizations():
    """In training spectral_norm updates its state each time the weight is read."""
    layer = parametrizations.spectral_norm(nn.Conv2d(4, 4, 3))
    before = layer.parametrizations.weight[0]._u.clone()
    convert(layer)
    assert torch.equal(layer.parametrizations.weight[0]._u, before)


def test_convert_keeps_norms_and_pruning_hooks():
    x = torch.randn(1, 3, 5, 5)
    for change in (
        lambda layer: prune.l1_unstructured(layer, "weight", amount=0.5),
        lambda layer: nn.utils.spectral_norm(layer).eval(),
    ):
        layer = change(nn.Conv2d(3, 3, 3))
        expected = layer(x)
        convert(layer, "unfold")
        torch.testing.assert_close(layer(x), expected)


def qat_convolution():
    from torch.ao.nn.qat import Conv2d
    from torch.ao.quantization import get_default_qat_qconfig

    return Conv2d(2, 2, 3, qconfig=get_default_qat_qconfig())


def with_a_patched_forward():
    layer = nn.Conv2d(2, 2, 3)
    layer.forward = lambda x: nn.functional.conv2d(x, layer.weight)
    return layer


class Packed(Tensor):
    @classmethod
    def __torch_function__(cls, *arguments, **keywords):
        return super().__torch_function__(*arguments, **keywords)


def with_a_weight_of_another_kind():
    layer = nn.Conv2d(2, 2, 3)
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Packed))
    return layer


def with_its_padding_set_later():
    layer = nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular")
    layer.padding = (2, 2)  # it still pads by 1
    return layer


def quantized():
    from torch.ao.nn.quantized import Conv2d

    return Conv2d(2, 2, 3)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: nn.LazyConv2d(2, 3), "LazyConv2d has no weight yet; call the model once"),
        (lambda: LazyCorr2d(2, 3), "LazyCorr2d is a Corr2d already"),
        (lambda: Corr2d(2, 2, 3, algorithm="fft"), "its attribute algorithm is 'fft'"),
        (lambda: Flipped(2, 2, 3), "Flipped has its own forward; torch_corr.intercept"),
        (lambda: Padded(2, 2, 3), "Padded has its own _conv_forward"),
        (with_a_patched_forward, "Conv2d has its own forward"),
        (quantized, "Conv2d is quantized"),
        (qat_convolution, "Conv2d has its own forward"),
        (
            with_its_padding_set_later,
            "still pads by [1, 1, 1, 1], although its padding is now (2, 2)",
        ),
        (with_a_weight_of_another_kind, "Conv2d has a weight of type Packed"),
        (lambda: torch.jit.script(nn.Conv2d(2, 2, 3)), "Conv2d is scripted"),
    ],
)
def test_skipped_layers_have_a_reason(make, sentence):
    model = nn.Sequential(make(), nn.Conv2d(2, 2, 1))
    skipped = model[0]
    kind, own = type(skipped), getattr(skipped, "algorithm", None)
    report = convert(model, "unfold")
    assert type(skipped) is kind
    assert getattr(skipped, "algorithm", None) == own
    assert sentence in report.skipped["0"]
    assert f"0 left alone: {report.skipped['0']}" in str(report)
    assert list(report.replaced) == ["1"]
    report.revert()
    assert type(skipped) is kind


def test_report_ignores_other_layers():
    model = nn.Sequential(nn.Conv1d(1, 1, 1), nn.ConvTranspose2d(1, 1, 1), nn.Linear(1, 1))
    report = convert(model)
    assert not report.replaced
    assert not report.skipped
    assert str(report) == "0 of 0 convolutions run algorithm='auto'"


@pytest.mark.parametrize(
    ("model", "algorithm", "error", "sentence"),
    [
        (torch.conv2d, "auto", TypeError, "got builtin_function_or_method; for functions"),
        (nn.Conv2d(1, 1, 1), "dirct", ValueError, "did you mean 'direct'"),
        (nn.Conv2d(1, 1, 1), Unfold, TypeError, "must be a name, an Auto or an Algorithm"),
    ],
)
def test_convert_refuses_wrong_arguments(model, algorithm, error, sentence):
    with pytest.raises(error, match=sentence):
        convert(model, algorithm)
    assert "_conv_forward" not in getattr(model, "__dict__", {})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif(
    torch.__version__ < "2.12", reason="PyTorch before 2.12 compiles no algorithm with identity"
)
def test_compiled_model_follows_convert_and_revert():
    model, spies = nn.Sequential(nn.Conv2d(2, 2, 3)), (Spy(), Spy())
    captured, x = torch.compile(model, fullgraph=True, backend="eager"), torch.randn(1, 2, 5, 5)
    expected = captured(x)
    for spy in spies:
        report = convert(captured, spy)
        torch.testing.assert_close(captured(x), expected)
        assert spy.requested == ["forward"]
        report.revert()
        assert torch.equal(captured(x), expected)
        assert spy.requested == ["forward"]
