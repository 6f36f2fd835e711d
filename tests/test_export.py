"""A program written down for others to run holds PyTorch's convolution, whatever the algorithm."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from support.laws import algorithm_id
from torch_corr import Algorithm, Corr2d, Naive, Problem, Unfold, convolve2d, corr2d
from torch_corr.planning.plan import able_algorithms

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),
]

# Padding, stride and padding mode of the first layer; what nn.Conv2d cannot do among them.
GEOMETRIES = [
    (1, 2, "zeros"),
    ("same", 1, "zeros"),
    ("full", 1, "zeros"),
    (((1, 0), (2, 3)), 1, "zeros"),
    (((1, 0), (2, 3)), 1, "reflect"),
    ("same", 1, "circular"),
    (((1, 0), (13, 14)), 1, "circular"),
]
ABLE = able_algorithms(Problem.parse("n1c1-x1-o1-k1"), torch.device("cpu"), torch.float32)
each_choice = pytest.mark.parametrize(
    "algorithm", ["auto", *ABLE, Unfold(workspace_limit=50_000)], ids=algorithm_id
)
each_geometry = pytest.mark.parametrize(("padding", "stride", "mode"), GEOMETRIES, ids=str)


def network(padding: Any, stride: int = 1, mode: str = "zeros") -> nn.Module:
    """Two layers of named algorithms, one of which exists nowhere else."""
    torch.manual_seed(0)
    return nn.Sequential(
        Corr2d(
            4, 6, 3, stride=stride, padding=padding, padding_mode=mode, groups=2, algorithm="fft"
        ),
        nn.ReLU(),
        Corr2d(6, 2, 3, algorithm=Naive()),
    ).eval()


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def targets(program: torch.export.ExportedProgram) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


@each_geometry
@pytest.mark.parametrize("strict", [False, True], ids=["nonstrict", "strict"])
def test_export_for_any_size(strict: bool, padding: Any, stride: int, mode: str) -> None:
    net = network(padding, stride, mode)
    sizes = {0: Dim("n", max=99), 2: Dim("h", min=8, max=99), 3: Dim("w", min=8, max=99)}
    program = torch.export.export(
        net, (torch.randn(2, 4, 10, 11),), strict=strict, dynamic_shapes=(sizes,)
    )
    for shape in ((3, 4, 9, 13), (2, 4, 12, 8)):
        x = torch.randn(shape)
        close(program.module()(x), net(x))
    names = targets(program)
    assert sum(name.startswith("aten.conv2d") for name in names) == 2
    assert not any("torch_corr" in name for name in names)


@each_choice
def test_whatever_is_named_is_written_as_conv2d(algorithm: Algorithm | str) -> None:
    """Exported and traced: PyTorch's convolution once, and nothing of ours."""
    layer = Corr2d(4, 6, 3, stride=2, padding=1, groups=2, algorithm=algorithm)
    x = torch.randn(2, 4, 10, 11)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: Dim("n", max=99)},))
    traced = torch.jit.trace(layer, x)
    larger = torch.randn(3, 4, 10, 11)
    for written in (program.module(), traced):
        close(written(larger), layer(larger))
    assert targets(program) == ["aten.conv2d.default"]
    kinds = [node.kind() for node in traced.inlined_graph.nodes()]
    assert kinds.count("aten::_convolution") == 1
    assert not any("torch_corr" in kind or "Python" in kind for kind in kinds)


@pytest.mark.parametrize("strict", [False, True], ids=["nonstrict", "strict"])
def test_export_keeps_the_formula_of_same_with_a_stride(strict: bool) -> None:
    """Odd and even sizes pad differently, in one program."""
    net = network("same", 2)
    program = torch.export.export(
        net,
        (torch.randn(2, 4, 10, 11),),
        strict=strict,
        dynamic_shapes=({2: Dim.AUTO, 3: Dim.AUTO},),
    )
    for size in range(8, 12):
        x = torch.randn(2, 4, size, 19 - size)
        close(program.module()(x), net(x))


@pytest.mark.parametrize("strict", [False, True], ids=["nonstrict", "strict"])
@pytest.mark.parametrize("part", ["rows", "images"])
def test_export_with_sizes_that_depend_on_data(part: str, strict: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = network(((1, 0), (2, 3)))

        def forward(self, x: Tensor, which: Tensor) -> Tensor:
            return self.layers(x[:, :, : which.sum().item()] if part == "rows" else x[which])

    net, x = Net(), torch.randn(3, 4, 10, 11)
    rows = part == "rows"
    some = torch.arange(10) < 9 if rows else torch.tensor([True, False, True])
    others = torch.arange(10) < 6 if rows else torch.tensor([False, False, True])
    program = torch.export.export(net, (x, some), strict=strict)
    close(program.module()(x, others), net(x, others))
    assert sum(name.startswith("aten.conv2d") for name in targets(program)) == 2


def test_export_of_many_strided_layers_padded_to_same() -> None:
    """As in networks that come from TensorFlow; each layer's size is a formula in the last's."""
    net = nn.Sequential(*(Corr2d(1, 1, 3, stride=2, padding="same") for _ in range(6)))
    sizes = {2: Dim("h", min=65, max=999), 3: Dim("w", min=65, max=999)}
    program = torch.export.export(net, (torch.randn(1, 1, 99, 101),), dynamic_shapes=(sizes,))
    for size in (128, 129, 200):
        x = torch.randn(1, 1, size, 300 - size)
        close(program.module()(x), net(x))


@each_geometry
def test_trace(padding: Any, stride: int, mode: str) -> None:
    """Good for any size, saved and loaded; no Python is left in it, and no warning."""
    net = network(padding, stride, mode)
    traced = torch.jit.trace(net, torch.randn(2, 4, 10, 11))
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    x = torch.randn(3, 4, 9, 12)
    close(torch.jit.load(file)(x), net(x))
    assert "PythonOp" not in str(traced.inlined_graph)


def test_trace_warns_where_it_holds_for_one_size() -> None:
    with pytest.warns(torch.jit.TracerWarning, match="stores the padding for 10x11 pixels"):
        torch.jit.trace(network("same", 2), torch.randn(2, 4, 10, 11))


@each_geometry
def test_script(padding: Any, stride: int, mode: str) -> None:
    net = network(padding, stride, mode)
    scripted = torch.jit.script(net)
    x = torch.randn(3, 4, 9, 12)
    close(scripted(x), net(x))
    close(scripted(x[0]), net(x[0]))
    assert [p.data_ptr() for p in scripted.parameters()] == [p.data_ptr() for p in net.parameters()]
    assert type(net[0]) is Corr2d


def test_script_says_what_it_cannot_take() -> None:
    scripted = torch.jit.script(network("same", 2))
    with pytest.raises(torch.jit.Error, match="padding='same' with a stride depends on the input"):
        scripted(torch.randn(2, 4, 10, 11))

    def caller(x: Tensor, w: Tensor) -> Tensor:
        return corr2d(x, w)

    with pytest.raises(Exception, match=r"can't .* use keyword-only arguments with defaults"):
        torch.jit.script(caller)


def test_symbolic_trace_sees_one_leaf() -> None:
    net = network(((1, 0), (2, 3)))
    traced = torch.fx.symbolic_trace(net)
    calls = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert calls == [corr2d, corr2d]
    x = torch.randn(2, 4, 9, 8)
    assert torch.equal(traced(x), net(x))


def test_symbolic_trace_keeps_convolve2d() -> None:
    """With its kernel flipped: a weight that is an argument is no tensor while tracing."""
    traced = torch.fx.symbolic_trace(lambda x, w: convolve2d(x, w, padding="same"))
    x, w = torch.randn(2, 4, 9, 8), torch.randn(3, 4, 2, 3)
    assert torch.equal(traced(x, w), convolve2d(x, w, padding="same"))
    assert not torch.allclose(traced(x, w), corr2d(x, w, padding="same"))


@pytest.mark.filterwarnings("ignore")  # of the exporter's own, which are many
@pytest.mark.parametrize(
    ("padding", "stride", "convolutions"),
    [(1, 2, ["Conv", "Relu", "Conv"]), (((1, 0), (2, 3)), 1, ["Conv", "Relu", "Conv"])],
    ids=str,
)
def test_onnx(padding: Any, stride: int, convolutions: list[str]) -> None:
    """Conv nodes, asymmetric padding included, that onnxruntime runs to the same values."""
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    net = network(padding, stride)
    file = io.BytesIO()
    torch.onnx.export(
        net,
        (torch.randn(2, 4, 10, 11),),
        dynamo=True,
        verbose=False,
        dynamic_shapes=({0: Dim("n", max=99)},),
    ).save(file)
    nodes = onnx.load_from_string(file.getvalue()).graph.node
    assert [node.op_type for node in nodes] == convolutions
    session = onnxruntime.InferenceSession(file.getvalue())
    x = torch.randn(3, 4, 10, 11)
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    close(torch.from_numpy(y), net(x))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("padding", "stride", "mode"),
    [("same", 2, "zeros"), (((1, 0), (13, 14)), 1, "circular")],
    ids=str,
)
def test_onnx_keeps_formulas_of_the_size(padding: Any, stride: int, mode: str) -> None:
    """Of "same" with a stride, and of an image that is repeated as often as it takes."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    net = network(padding, stride, mode)
    file = io.BytesIO()
    sizes = {2: Dim("h", min=8, max=99), 3: Dim("w", min=8, max=99)}
    torch.onnx.export(
        net, (torch.randn(2, 4, 10, 11),), dynamo=True, verbose=False, dynamic_shapes=(sizes,)
    ).save(file)
    session = onnxruntime.InferenceSession(file.getvalue())
    for size in range(8, 12):
        x = torch.randn(2, 4, size, 19 - size)
        (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        close(torch.from_numpy(y), net(x))


@pytest.mark.filterwarnings("ignore")
def test_aot_inductor_package(tmp_path: Path) -> None:
    """Compiled ahead of time for any batch, loaded and run without Python's convolution."""
    net = network(((1, 0), (2, 3)))
    program = torch.export.export(
        net, (torch.randn(2, 4, 10, 11),), dynamic_shapes=({0: Dim("n", max=99)},)
    )
    package = torch._inductor.aoti_compile_and_package(
        program,
        package_path=str(tmp_path / "net.pt2"),
        inductor_configs={"aot_inductor.compile_wrapper_opt_level": "O0"},  # half the time
    )
    x = torch.randn(3, 4, 10, 11)
    close(torch._inductor.aoti_load_package(package)(x), net(x))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_no_filters_give_no_channels_there_too() -> None:
    layer, x = Corr2d(4, 0, 3), torch.randn(2, 4, 5, 6)
    assert torch.export.export(layer, (x,)).module()(x).shape == (2, 0, 3, 4)
    assert torch.jit.trace(layer, x)(x).shape == (2, 0, 3, 4)


def test_no_channels_are_zeros_there_too() -> None:
    """As eager: a correlation over no channel is the bias."""

    class Net(nn.Module):
        def forward(self, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
            return corr2d(x, w, b, algorithm="unfold")

    operands = torch.randn(2, 0, 5, 5), torch.randn(3, 0, 2, 2), torch.ones(3)
    y = torch.export.export(Net(), operands).module()(*operands)
    assert torch.equal(y, torch.ones(2, 3, 4, 4))
    assert F.conv2d(*operands[:2]).shape != y.shape
