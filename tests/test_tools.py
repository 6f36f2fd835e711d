"""Tools that look at the exact class of a layer treat a converted model as they did before.

Each gets the same network twice, converted and not.  Tools that run the network run the algorithm.
"""

from __future__ import annotations

import copy
import io
import logging
import pickle
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization
from torch.ao.quantization.quantize_fx import convert_fx, fuse_fx, prepare_fx, prepare_qat_fx
from torch.func import functional_call, grad, vmap
from torch.fx.experimental.optimization import fuse
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.flop_counter import FlopCounterMode

from support.layers import close
from torch_corr import Aten, Corr2d, Problem, Unfold, convert

BLOCKS = [["dense.0", "dense.1", "dense.2"], ["depthwise.0", "depthwise.1", "depthwise.2"]]
CONVOLUTIONS = 3


class Network(nn.Module):
    """Conv-bn-relu blocks, one depthwise; a strided layer with a bias; stubs for quantization."""

    def __init__(self, layer: Callable[..., nn.Conv2d] = nn.Conv2d) -> None:
        super().__init__()
        self.quant, self.dequant = quantization.QuantStub(), quantization.DeQuantStub()
        self.dense = nn.Sequential(
            layer(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        )
        self.depthwise = nn.Sequential(
            layer(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU()
        )
        self.strided = layer(8, 4, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.dequant(self.strided(self.depthwise(self.dense(self.quant(x)))))


def network(
    layer: Callable[..., nn.Conv2d] = nn.Conv2d, dtype: torch.dtype = torch.float64
) -> Network:
    """A network in evaluation mode, with the same weights and statistics every time."""
    torch.manual_seed(0)
    model = Network(layer)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    return model.eval().to(dtype)


def pair(algorithm: str = "unfold", dtype: torch.dtype = torch.float64) -> tuple[Network, Network]:
    """A converted network, and the same one unconverted."""
    ours = network(dtype=dtype)
    assert len(convert(ours, algorithm).replaced) == CONVOLUTIONS
    return ours, network(dtype=dtype)


def images(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2, 3, 12, 11, dtype=dtype, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The maps that ``unfold`` and ``aten`` compute, also in copies and pickles of them."""
    seen: list[str] = []

    def watch(algorithm: type, name: str) -> None:
        compute = getattr(algorithm, name)

        def recorded(self: Any, problem: Problem, *operands: Tensor) -> Tensor:
            seen.append(name)
            return compute(self, problem, *operands)

        monkeypatch.setattr(algorithm, name, recorded)

    for name in ("forward", "grad_input", "grad_weight"):
        watch(Unfold, name)
    watch(Aten, "forward")
    return seen


FUSIONS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "torch.fx": fuse,
    "torch.ao": lambda model: quantization.fuse_modules(model, BLOCKS),
    "torch.ao, FX mode": fuse_fx,
}


@pytest.mark.parametrize("name", FUSIONS)
def test_fusion_removes_batch_norms_and_keeps_the_algorithm(name: str, ran: list[str]) -> None:
    results = []
    for model in pair():
        fused = FUSIONS[name](model)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
        results.append(fused(images()))
        assert ran == ["forward"] * CONVOLUTIONS
    close(*results)
    close(results[0], network()(images()))


ENGINES = [each for each in torch.backends.quantized.supported_engines if each != "none"]


@pytest.fixture
def _engine() -> Iterator[None]:
    """An engine that every CPU has, without PyTorch's deprecation warnings."""
    if not ENGINES:
        pytest.skip("this PyTorch has no engine for quantized layers")
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "onednn" if "onednn" in ENGINES else ENGINES[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.backends.quantized.engine = before


def exact_numbers(value: Tensor) -> Tensor:
    return value.detach().mul(8).round().clamp(-1, 1)


def with_exact_numbers(model: nn.Module) -> nn.Module:
    """Weights -1, 0 and 1, and scales that are powers of two: all sums are exact, in any order.

    So observers see the same numbers with every algorithm.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-30  # 1 + eps is 1
            module.running_mean.round_()
            module.running_var.fill_(1)
            module.weight.data = 2.0 ** (torch.arange(8) % 3 - 1)
        elif isinstance(module, nn.Conv2d):
            for parameter in module.parameters():
                parameter.data = exact_numbers(parameter)
    return model


def quantized_after_training(model: nn.Module, x: Tensor) -> nn.Module:
    model = quantization.fuse_modules(model, BLOCKS)
    model.qconfig = quantization.get_default_qconfig("x86")
    prepared = quantization.prepare(model)
    prepared(x)
    return quantization.convert(prepared)


def quantized_in_training(model: nn.Module, x: Tensor) -> nn.Module:
    model(x)  # its convolutions are replaced below
    model = quantization.fuse_modules_qat(model.train(), BLOCKS)
    model.qconfig = quantization.get_default_qat_qconfig("x86")
    prepared = quantization.prepare_qat(model)
    prepared(x).square().sum().backward()
    return quantization.convert(prepared.eval())


def quantized_by_fx(model: nn.Module, x: Tensor) -> nn.Module:
    prepared = prepare_fx(model, quantization.get_default_qconfig_mapping("x86"), (x,))
    prepared(x)
    return convert_fx(prepared)


def quantized_by_fx_in_training(model: nn.Module, x: Tensor) -> nn.Module:
    model(x)  # its convolutions are replaced below
    mapping = quantization.get_default_qat_qconfig_mapping("x86")
    prepared = prepare_qat_fx(model.train(), mapping, (x,))
    prepared(x).square().sum().backward()
    return convert_fx(prepared.eval())


@pytest.mark.usefixtures("_engine")
@pytest.mark.parametrize(
    "quantize",
    [
        quantized_after_training,
        quantized_in_training,
        quantized_by_fx,
        quantized_by_fx_in_training,
    ],
)
def test_quantization_gives_the_same_integers(
    quantize: Callable[[nn.Module, Tensor], nn.Module], ran: list[str]
) -> None:
    """In every layer."""
    x, results = exact_numbers(images(torch.float32)), []
    for model in map(with_exact_numbers, pair(dtype=torch.float32)):
        quantized = quantize(model, x)
        layers = [
            each for each in quantized.modules() if "quantized" in type(each).__module__.split(".")
        ]
        assert sum("Conv" in type(each).__name__ for each in layers) == CONVOLUTIONS
        results.append(quantized(x))
        assert ran == ["forward"] * CONVOLUTIONS  # those of the floating-point network
    assert torch.equal(*results)
    assert results[0].unique().numel() > 10


@pytest.mark.usefixtures("_engine")
def test_layer_converted_after_prepare_is_quantized(ran: list[str]) -> None:
    """A layer that already has a qconfig is calibrated with the algorithm, and then quantized."""
    model = quantization.fuse_modules(network(dtype=torch.float32), BLOCKS)
    model.qconfig = quantization.get_default_qconfig("x86")
    prepared = quantization.prepare(model)
    assert convert(prepared, "unfold").skipped == {}
    prepared(images(torch.float32))
    assert ran == ["forward"] * CONVOLUTIONS
    assert "quantized" in type(quantization.convert(prepared).strided).__module__


class Subclass(nn.Conv2d):
    """Computes as nn.Conv2d, but only PyTorch's own layers are leaves for FX."""


@pytest.mark.usefixtures("_engine")
def test_fx_quantizes_converted_layers_of_a_subclass() -> None:
    x, results = exact_numbers(images(torch.float32)), []
    for converted in (True, False):
        model = with_exact_numbers(network(Subclass, torch.float32))
        if converted:
            convert(model, "unfold")
        quantized = quantized_by_fx(model, x)
        assert "quantized.conv2d" in quantized.code
        results.append(quantized(x))
    assert torch.equal(*results)


def counted_by_thop(model: nn.Module, x: Tensor, **options: Any) -> Any:
    thop = pytest.importorskip("thop", reason="thop is in the extra 'tools'")
    return thop.profile(model, (x,), verbose=False, **options)


def counted_by_ptflops(model: nn.Module, x: Tensor, **options: Any) -> Any:
    ptflops = pytest.importorskip("ptflops", reason="ptflops is in the extra 'tools'")
    return ptflops.get_model_complexity_info(
        model.float(),
        tuple(x.shape[1:]),
        as_strings=False,
        print_per_layer_stat=False,
        **{"backend": "pytorch", **options},
    )


def counted_by_fvcore(model: nn.Module, x: Tensor) -> Any:
    nn_of_fvcore = pytest.importorskip("fvcore.nn", reason="fvcore is in the extra 'tools'")
    logging.getLogger("fvcore").setLevel(logging.ERROR)
    return nn_of_fvcore.FlopCountAnalysis(model, x).by_operator()


def counted_by_torchinfo(model: nn.Module, x: Tensor) -> Any:
    torchinfo = pytest.importorskip("torchinfo", reason="torchinfo is in the extra 'tools'")
    return torchinfo.summary(model, input_data=x, verbose=0).total_mult_adds


def counted_by_pytorch(model: nn.Module, x: Tensor) -> Any:
    """Only the forward; it ignores groups when it counts the weight's gradient."""
    with FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    "count",
    [
        counted_by_thop,
        counted_by_ptflops,
        counted_by_fvcore,
        counted_by_torchinfo,
        counted_by_pytorch,
    ],
)
def test_counters_give_the_same_number(count: Callable[[nn.Module, Tensor], Any]) -> None:
    ours, theirs = (count(model, images()) for model in pair())
    assert ours == theirs


def gradients_of_each_image(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The definition: one backward pass for each image."""
    rows = []
    for image in x:
        loss = model(image[None]).square().sum()
        rows.append(torch.autograd.grad(loss, list(model.parameters())))
    return [torch.stack(each) for each in zip(*rows)]


def by_expanded_weights(model: nn.Module, x: Tensor) -> list[Tensor]:
    call_for_per_sample_grads(model)(x).square().sum().backward()
    return [each.grad_sample for each in model.parameters()]


def by_opacus(model: nn.Module, x: Tensor) -> list[Tensor]:
    opacus = pytest.importorskip("opacus", reason="opacus is in the extra 'tools'")
    wrapped = opacus.GradSampleModule(model.train(), loss_reduction="sum")
    wrapped(x).square().sum().backward()
    return [each.grad_sample for each in model.parameters()]


def by_functions(model: nn.Module, x: Tensor) -> list[Tensor]:
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        return functional_call(model, parameters, (image[None],)).square().sum()

    return list(vmap(grad(loss), (None, 0))(parameters, x).values())


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
@pytest.mark.parametrize("compute", [by_expanded_weights, by_opacus, by_functions])
def test_per_sample_gradients(
    compute: Callable[[nn.Module, Tensor], list[Tensor]], ran: list[str]
) -> None:
    """Expanded weights support only conv2d, which the converted layers call for them."""
    model, layers = network(), ("dense", "depthwise", "strided")
    model = nn.Sequential(*(getattr(model, name) for name in layers))
    model[0][1] = model[1][1] = nn.Identity()  # batch norms mix the images
    expected = gradients_of_each_image(model, images())
    convert(model, "unfold")
    close(compute(model, images()), expected)
    assert ("forward" in ran) == (compute is not by_expanded_weights)
    ran.clear()
    close(model(images()), model(images()))
    assert ran == ["forward"] * 2 * CONVOLUTIONS


class OnlyConv2d(Tensor):
    """A tensor like those of quantization libraries: it supports ``conv2d``, not ``corr2d``."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ == "corr2d":
            raise TypeError("what is corr2d?")
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize("which", ["weight", "bias"])
@pytest.mark.parametrize("backend", [None, "eager"])
def test_parameters_that_support_only_conv2d_use_conv2d(which: str, backend: str | None) -> None:
    layer, x = nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), torch.randn(1, 2, 5, 5)
    expected = layer(x)
    convert(layer, "unfold")
    value = getattr(layer, which).detach().as_subclass(OnlyConv2d)

    def call(x: Tensor) -> Tensor:
        return functional_call(layer, {which: value}, (x,))

    torch.compiler.reset()
    captured = torch.compile(call, fullgraph=True, backend=backend) if backend else call
    torch.testing.assert_close(captured(x).as_subclass(Tensor), expected)


def saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def compiled(model: nn.Module) -> nn.Module:
    torch.compiler.reset()
    return torch.compile(model, fullgraph=True, backend="aot_eager")


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "saved": saved,
    "pickled": lambda model: pickle.loads(pickle.dumps(model)),
    "copied": copy.deepcopy,
    "compiled": compiled,
    "torch.fx": torch.fx.symbolic_trace,
}


@pytest.mark.parametrize("name", COPIES)
def test_copies_run_the_algorithm(name: str, ran: list[str]) -> None:
    """In forward and in backward."""
    model, theirs = pair()
    twin = COPIES[name](model)
    results = []
    for each in (twin, theirs):
        x = images().requires_grad_()
        y = each(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, *each.parameters()])])
    close(*results)
    assert [ran.count(map) for map in ("forward", "grad_input", "grad_weight")] == [3, 3, 3]


EXPORTS: dict[str, Callable[[nn.Module], Callable[[Tensor], Tensor]]] = {
    "export": lambda model: torch.export.export(model, (images(),)).module(),
    "export, strict": lambda model: torch.export.export(model, (images(),), strict=True).module(),
    "trace": lambda model: torch.jit.trace(model, images()),
    "script": torch.jit.script,
}


@pytest.mark.filterwarnings("ignore:`torch.jit.:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning")
@pytest.mark.parametrize("name", EXPORTS)
def test_exported_programs_contain_pytorchs_convolution(name: str, ran: list[str]) -> None:
    model, theirs = pair()
    program = EXPORTS[name](model)
    ran.clear()
    close(program(images()), theirs(images()))
    assert ran == []
    close(model(images()), theirs(images()))
    assert ran == ["forward"] * CONVOLUTIONS


# Corr2d is another class than nn.Conv2d; see docs/tools.md.


def test_thop_counts_corr2d_with_its_hook_for_conv2d() -> None:
    expected = counted_by_thop(network(), images())
    from thop.vision.basic_hooks import count_convNd

    options = {"custom_ops": {Corr2d: count_convNd}}
    assert counted_by_thop(network(Corr2d), images(), **options) == expected


def test_ptflops_counts_corr2d_with_its_hook_for_conv2d() -> None:
    expected = counted_by_ptflops(network(), images())
    from ptflops.pytorch_ops import conv_flops_counter_hook

    options = {"custom_modules_hooks": {Corr2d: conv_flops_counter_hook}}
    assert counted_by_ptflops(network(Corr2d), images(), **options) == expected


def test_ptflops_counts_operators_with_a_hook() -> None:
    layer = nn.Conv2d(3, 4, 3, groups=1, bias=False)
    convert(layer, "unfold")
    counted, _ = counted_by_ptflops(
        nn.Sequential(layer),
        images(),
        backend="aten",
        custom_modules_hooks={
            torch.ops.torch_corr.forward: lambda inputs, outputs: (
                outputs[0].numel() * inputs[1][0].numel()
            )
        },
    )
    assert counted == (4 * 10 * 9) * (3 * 3 * 3)


def test_corr2d_turned_into_conv2d_can_be_converted(ran: list[str]) -> None:
    model = network(Corr2d)
    for layer in model.modules():
        if type(layer) is Corr2d:
            layer.__class__ = nn.Conv2d
    assert len(convert(model, "unfold").replaced) == CONVOLUTIONS
    close(model(images()), network()(images()))
    assert ran == ["forward"] * CONVOLUTIONS


def test_torch_ao_fuses_corr2d_with_a_fuser() -> None:
    fusers = {(Corr2d, nn.BatchNorm2d): lambda is_qat, conv, norm: fuse_conv_bn_eval(conv, norm)}
    model = network(Corr2d)
    fused = quantization.fuse_modules(
        model,
        [block[:2] for block in BLOCKS],
        fuse_custom_config_dict={"additional_fuser_method_mapping": fusers},
    )
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    close(fused(images()), model(images()))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
@pytest.mark.parametrize("compute", [by_opacus, by_functions])
def test_corr2d_per_sample_gradients(compute: Callable[..., list[Tensor]]) -> None:
    model = nn.Sequential(Corr2d(3, 4, 3, stride=2), nn.Tanh(), Corr2d(4, 2, 2)).double()
    expected = gradients_of_each_image(model, images())
    close(compute(model, images()), expected)


@pytest.mark.usefixtures("_engine")
def test_quantizing_corr2d_explains_what_to_do() -> None:
    """Eager mode passes integers to it; FX mode silently leaves it in floating point."""
    x = images(torch.float32)
    model = network(Corr2d, torch.float32)
    model.qconfig = quantization.get_default_qconfig("x86")
    prepared = quantization.prepare(model)
    prepared(x)
    with pytest.raises(NotImplementedError, match=r"input is quantized .*torch_corr\.convert"):
        quantization.convert(prepared)(x)
    with pytest.warns(UserWarning, match=r"leaves corr2d and Corr2d in floating.*torch_corr\.conv"):
        quantized_by_fx(network(Corr2d, torch.float32), x)
