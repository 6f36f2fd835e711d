"""corr2d is F.conv2d, and its derivatives are conv2d's, wherever conv2d can go.

Both are held to the oracle's bound elsewhere, so here they may differ by two bounds.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from support.laws import (
    FLOATS,
    UNDER_TEST,
    algorithm_id,
    assert_close,
    each_algorithm,
    promise,
)
from support.maps import request
from support.needs import ONEDNN, needs
from torch_corr import (
    FFT,
    Algorithm,
    Aten,
    Auto,
    Corr2d,
    LazyCorr2d,
    Problem,
    convert,
    convolve2d,
    corr2d,
    plan,
)
from torch_corr.testing import error_bound, operands, oracle, problems

# aten is conv2d itself.
others = pytest.mark.parametrize(
    "algorithm", ["auto", *(each for each in UNDER_TEST if each != Aten())], ids=algorithm_id
)


def conv2d(problem: Problem, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    (top, bottom), (left, right) = problem.padding
    # F.conv2d is wrong where one channel has the strides of channels_last, which ``contiguous``
    # leaves as they are; see docs/what-the-kit-finds.md.
    x, w = (value.clone(memory_format=torch.contiguous_format) for value in (x, w))
    padded = F.pad(x, (left, right, top, bottom))
    return F.conv2d(padded, w, b, problem.stride, 0, problem.dilation, problem.groups)


@others
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.complex128], ids=str)
@given(data=st.data(), problem=problems())
def test_values_and_gradients_are_conv2ds(
    data: st.DataObject,
    problem: Problem,
    algorithm: Algorithm,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    if 0 in (problem.in_channels, problem.out_channels, *problem.size):
        return  # conv2d has no channels in its output there, or refuses
    if algorithm == "auto" and data.draw(st.booleans()):
        # Symmetric padding is what leads to torch.conv2d itself.
        (top, _), (left, _) = problem.padding
        larger = problem.size[0] + problem.padding[0][1], problem.size[1] + problem.padding[1][1]
        problem = replace(problem, size=larger, padding=((top, top), (left, left)))
    padding = problem.padding
    if padding[0][0] == padding[0][1] and padding[1][0] == padding[1][1]:
        padding = padding[0][0], padding[1][0]
    x, w, g = (value.requires_grad_() for value in data.draw(operands(problem, dtype, device)))
    b = torch.ones(problem.out_channels, dtype=dtype, device=device, requires_grad=True)
    y = corr2d(
        x,
        w,
        b,
        problem.stride,
        padding,
        problem.dilation,
        problem.groups,
        algorithm=algorithm,
    )
    expected = conv2d(problem, x, w, b)
    forward = oracle(problem, input=x, weight=w)
    errors = promise(algorithm)
    bound = errors.bound(problem, forward, (x, w, None), dtype) + error_bound(forward, dtype)
    added = torch.finfo(dtype).eps * (forward.value.abs() + 2)
    assert_close(y, expected.detach().cpu(), bound + 2 * added)

    gradients = torch.autograd.grad(y, (x, w, b), g)
    theirs = torch.autograd.grad(expected, (x, w, b), g)
    for got, want, slots in zip(gradients, theirs, ((None, w.conj(), g), (x.conj(), None, g))):
        reference = oracle(problem, *slots)
        bound = errors.bound(problem, reference, slots, dtype) + error_bound(reference, dtype)
        assert_close(got, want.cpu(), bound)
    pixels = g.detach().cpu().abs().sum((0, 2, 3))
    terms = g.numel() // max(1, problem.out_channels)
    bound = 2 * (terms + 4) * torch.finfo(dtype).eps * pixels
    assert_close(gradients[2], theirs[2].cpu(), bound)


@each_algorithm
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_ranks(algorithm: Algorithm, dtype: torch.dtype, device: torch.device) -> None:
    """Without a batch, and as the textbook writes it, two matrices."""
    if dtype not in (torch.float64, torch.float32) and algorithm == FFT():
        return
    x = torch.randn(3, 7, 8, dtype=dtype, device=device)
    w = torch.randn(5, 3, 3, 2, dtype=dtype, device=device)
    b = torch.randn(5, dtype=dtype, device=device)
    alone = corr2d(x, w, b, 2, 1, algorithm=algorithm)
    assert torch.equal(alone, corr2d(x[None], w, b, 2, 1, algorithm=algorithm)[0])
    flat = corr2d(x[0], w[0, 0], b[:1], algorithm=algorithm)
    assert flat.shape == (5, 7)
    assert torch.equal(flat, corr2d(x[None, :1], w[:1, :1], b[:1], algorithm=algorithm)[0, 0])


@settings(max_examples=30)
@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
)
def test_convolution_is_scipys_definition(size: tuple[int, int], kernel: tuple[int, int]) -> None:
    """Full convolution: the sum over all ways to split an index; and it commutes."""
    a = torch.randint(-9, 10, size).double()
    k = torch.randint(-9, 10, kernel).double()
    whole = convolve2d(a, k, padding="full")
    expected = torch.zeros(size[0] + kernel[0] - 1, size[1] + kernel[1] - 1, dtype=torch.float64)
    for u in range(kernel[0]):
        for v in range(kernel[1]):
            expected[u : u + size[0], v : v + size[1]] += k[u, v] * a
    assert torch.equal(whole, expected)
    if size[0] <= kernel[0] and size[1] <= kernel[1]:
        assert torch.equal(convolve2d(k, a, padding="full"), expected)


sizes = st.integers(1, 9)


@given(
    shape=st.tuples(sizes, sizes),
    kernel=st.tuples(sizes, sizes),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    mode=st.sampled_from(["valid", "same", "full"]),
)
def test_convolve2d_pads_as_scipy_does(
    shape: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    mode: str,
) -> None:
    """Kernels larger than the image too, wrapped around more than once where that is asked for.

    A stride samples scipy's result, dilation spreads taps.
    """
    signal = pytest.importorskip("scipy.signal")
    x = torch.randint(-9, 10, shape).double()
    w = torch.randint(-9, 10, kernel).double()
    spread = torch.zeros([d * (k - 1) + 1 for k, d in zip(kernel, dilation)], dtype=torch.float64)
    spread[:: dilation[0], :: dilation[1]] = w
    if mode == "valid" and any(k > n for k, n in zip(spread.shape, shape)):
        return  # scipy then swaps image and kernel, or refuses
    for border, ours in (("fill", "zeros"), ("wrap", "circular")):
        expected = signal.convolve2d(x.numpy(), spread.numpy(), mode, border)
        y = convolve2d(x, w, None, stride, mode, dilation, padding_mode=ours)
        assert y.tolist() == expected[:: stride[0], :: stride[1]].tolist()


@given(shape=st.tuples(sizes, sizes), kernel=st.tuples(sizes, sizes))
def test_corr2d_pads_as_scipys_correlate2d_does(
    shape: tuple[int, int], kernel: tuple[int, int]
) -> None:
    signal = pytest.importorskip("scipy.signal")
    x, w = torch.randint(-9, 10, shape).double(), torch.randint(-9, 10, kernel).double()
    for mode in ("same", "full"):
        expected = signal.correlate2d(x.numpy(), w.numpy(), mode)
        assert corr2d(x, w, padding=mode).tolist() == expected.tolist()


def test_odd_pixel_of_same_padding() -> None:
    """At the start in convolve2d, as in scipy; at the end in corr2d, as in conv2d."""
    x, w = torch.tensor([[1.0, 2, 3, 4]]), torch.tensor([[1.0, 10]])
    assert convolve2d(x, w, padding="same").tolist() == [[1, 12, 23, 34]]
    assert convolve2d(x, w, stride=(1, 2), padding="same").tolist() == [[1, 23]]
    assert corr2d(x, w.flip(-1), padding="same").tolist() == [[12, 23, 34, 40]]
    # With a stride the padding before depends on the size in corr2d alone.
    ones = torch.ones(1, 3)
    assert convolve2d(x, ones, stride=(1, 2), padding="same").tolist() == [[3, 9]]
    assert corr2d(x, ones, stride=(1, 2), padding="same").tolist() == [[6, 7]]


def test_no_channels_sum_to_zero_plus_bias(device: torch.device) -> None:
    """The definition's empty sum, where conv2d forgets the output's channels."""
    x, w = torch.ones(2, 0, 4, 4, device=device), torch.ones(3, 0, 2, 2, device=device)
    b = torch.tensor([1.0, 2.0, 3.0], device=device)
    problem = Problem.of(x.shape, w.shape)
    here = request(problem, device=device, dtype=x.dtype)
    able = [each for each in UNDER_TEST if not each.refusals(here)]
    for algorithm in ("auto", *able):
        y = corr2d(x, w, b, algorithm=algorithm)
        assert torch.equal(y, b[:, None, None].expand(2, 3, 3, 3))


@pytest.mark.parametrize("groups", [1, 2])
def test_no_filters_give_no_channels(groups: int, device: torch.device) -> None:
    """As the definition says, where conv2d refuses; the input's gradient is zero."""
    shapes = (2, 4, 7, 8), (0, 4 // groups, 3, 2), (0,)
    x, w, b = (torch.ones(each, device=device, requires_grad=True) for each in shapes)
    with pytest.raises(RuntimeError, match="expected weight to be at least"):
        F.conv2d(x, w, b, groups=groups)
    problem = Problem.of(x.shape, w.shape, groups=groups)
    assert Problem.parse(str(problem)) == problem
    here = request(problem, device=device, dtype=x.dtype)
    able = [each for each in UNDER_TEST if not each.refusals(here)]
    for algorithm in ("auto", Auto(measure=True), *able):
        y = corr2d(x, w, b, (1, 2), 1, 1, groups, algorithm=algorithm)
        assert y.shape == (2, 0, 7, 5)
        gradients = torch.autograd.grad(y.sum(), (x, w, b))
        assert [each.shape for each in gradients] == [x.shape, w.shape, b.shape]
        assert not gradients[0].any()
        mapped = torch.func.vmap(lambda w, a=algorithm: corr2d(x, w, groups=groups, algorithm=a))
        assert mapped(torch.ones(3, *w.shape, device=device)).shape == (3, 2, 0, 5, 7)
    assert "> aten" in str(plan(x, w, groups=groups)) or device.type != "cpu"


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_layers_without_filters() -> None:
    """nn.Conv2d makes one, with a warning as here, and refuses to run it."""
    theirs, x = torch.nn.Conv2d(4, 0, 3), torch.ones(2, 4, 7, 8)
    with pytest.raises(RuntimeError, match="expected weight to be at least"):
        theirs(x)
    convert(theirs)
    for layer in (Corr2d(4, 0, 3), LazyCorr2d(0, 3), theirs):
        assert layer(x).shape == (2, 0, 5, 6)
        assert layer(x[0]).shape == (0, 5, 6)
        assert layer.weight.shape == (0, 4, 3, 3)
    with pytest.warns(UserWarning, match="Initializing zero-element tensors"):
        Corr2d(4, 0, 3)


@each_algorithm
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@settings(max_examples=25)
@given(data=st.data())
def test_padding_modes(
    data: st.DataObject, mode: str, algorithm: Algorithm, device: torch.device
) -> None:
    """Asymmetric padding in each mode is F.pad in that mode, then no padding."""
    sides = tuple((data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))) for _ in range(2))
    x = torch.randn(2, 2, 5, 6, dtype=torch.float64, device=device, requires_grad=True)
    w = torch.randn(4, 1, 3, 2, dtype=torch.float64, device=device, requires_grad=True)
    (top, bottom), (left, right) = sides
    padded = F.pad(x, (left, right, top, bottom), "constant" if mode == "zeros" else mode)
    expected = F.conv2d(padded, w, None, 2, 0, 1, 2)
    y = corr2d(x, w, None, 2, sides, 1, 2, padding_mode=mode, algorithm=algorithm)
    torch.testing.assert_close(y, expected, rtol=1e-13, atol=1e-13)
    ours, theirs = (torch.autograd.grad(each.square().sum(), (x, w)) for each in (y, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def tiled(x: Tensor, sides: tuple[tuple[int, int], tuple[int, int]]) -> Tensor:
    """Circular padding by hand: the image many times over, cut out."""
    times = [(max(side) - 1) // n + 1 for side, n in zip(sides, x.shape[-2:])]
    many = x.repeat(1, 1, *(2 * t + 1 for t in times))
    cut = [
        slice(t * n - before, (t + 1) * n + after)
        for t, n, (before, after) in zip(times, x.shape[-2:], sides)
    ]
    return many[..., cut[0], cut[1]]


@each_algorithm
@settings(max_examples=15)
@given(data=st.data())
def test_circular_padding_wraps_more_than_once(
    algorithm: Algorithm, device: torch.device, data: st.DataObject
) -> None:
    """Beyond ``pad``, which repeats the image once; gradients too."""
    sides = tuple((data.draw(st.integers(0, 9)), data.draw(st.integers(0, 9))) for _ in range(2))
    x, w = (
        torch.randn(shape, dtype=torch.float64, device=device, requires_grad=True)
        for shape in ((2, 2, data.draw(st.integers(1, 3)), 2), (4, 1, 1, 2))
    )
    expected = F.conv2d(tiled(x, sides), w, None, (1, 2), 0, 1, 2)
    y = corr2d(x, w, None, (1, 2), sides, 1, 2, padding_mode="circular", algorithm=algorithm)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    ours, theirs = (torch.autograd.grad(each.square().sum(), (x, w)) for each in (y, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_derivatives_through_many_wraps() -> None:
    """Of the second order, forward mode, and under vmap."""
    x, w = torch.randn(1, 1, 2, 1).double(), torch.randn(1, 1, 2, 3).double()

    def function(x: Tensor, w: Tensor) -> Tensor:
        return corr2d(x, w, padding=((5, 2), (3, 4)), padding_mode="circular", algorithm="naive")

    x.requires_grad_(), w.requires_grad_()
    assert torch.autograd.gradcheck(function, (x, w), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, (x, w))
    xs = torch.randn(3, 1, 1, 2, 1).double()
    expected = torch.stack([function(each, w) for each in xs])
    torch.testing.assert_close(torch.func.vmap(function, (0, None))(xs, w), expected)


def test_layers_wrap_more_than_once() -> None:
    """nn.Conv2d refuses; converted it does not."""
    arguments = {"padding": (3, 7), "padding_mode": "circular"}
    theirs = torch.nn.Conv2d(2, 3, (2, 4), **arguments)
    x = torch.randn(2, 2, 2, 3)
    with pytest.raises(RuntimeError, match="wrapping around more than once"):
        theirs(x)
    expected = F.conv2d(tiled(x, ((3, 3), (7, 7))), theirs.weight, theirs.bias)
    ours, lazy = Corr2d(2, 3, (2, 4), **arguments), LazyCorr2d(3, (2, 4), **arguments)
    lazy(x)
    for layer in (ours, lazy):
        layer.load_state_dict(theirs.state_dict())
    convert(theirs)
    for layer in (ours, lazy, theirs):
        torch.testing.assert_close(layer(x), expected)
        torch.testing.assert_close(layer(x[0]), expected[0])


@pytest.mark.parametrize("padding", ["same", "valid", "full"])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_named_padding_in_every_mode(padding: str, mode: str) -> None:
    x, w = torch.randn(1, 1, 7, 8), torch.randn(1, 1, 3, 4)
    sides = Problem.of(x.shape, w.shape, 2, padding).padding
    named = corr2d(x, w, None, 2, padding, padding_mode=mode)
    assert torch.equal(named, corr2d(x, w, None, 2, sides, padding_mode=mode))


@each_algorithm
def test_output_may_be_written_to(algorithm: Algorithm, device: torch.device) -> None:
    """As after conv2d, ``relu_`` on the output keeps the gradients right."""
    x = torch.randn(2, 4, 7, 8, dtype=torch.float64, device=device, requires_grad=True)
    w = torch.randn(6, 2, 3, 2, dtype=torch.float64, device=device, requires_grad=True)
    kwargs = {"stride": 2, "padding": ((1, 0), (2, 1)), "groups": 2, "algorithm": algorithm}
    ours = torch.autograd.grad(corr2d(x, w, **kwargs).relu_().sum(), (x, w))
    theirs = torch.autograd.grad(corr2d(x, w, **kwargs).relu().sum(), (x, w))
    assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("stride", [2**30, 2**62])
def test_a_stride_that_is_never_taken(stride: int) -> None:
    """One output is one output, whatever the step to the next would be."""
    x, w = torch.ones(1, 1, 3, 3, requires_grad=True), torch.ones(1, 1, 2, 2)
    ours = ("unfold", "naive")
    for algorithm in ours if stride > 2**40 else ("auto", "aten", *ours):
        y = corr2d(x, w, stride=stride, algorithm=algorithm)
        assert y.tolist() == [[[[4.0]]]]
        (gradient,) = torch.autograd.grad(y, x)
        assert gradient.sum() == 4


@needs(ONEDNN)
@pytest.mark.parametrize("algorithm", ["auto", "aten", Auto(), Aten()], ids=repr)
def test_images_in_onednns_layout_go_to_conv2d(algorithm: Algorithm | Auto | str) -> None:
    """Opaque to everybody but PyTorch; a layer and the function, weights in either layout."""
    layer = Corr2d(4, 6, 3, padding=1, algorithm=algorithm)
    opaque = torch.randn(2, 4, 40, 41).to_mkldnn()
    with torch.no_grad():
        expected = F.conv2d(opaque, layer.weight, layer.bias, padding=1).to_dense()
        weights = layer.weight, layer.weight.to_mkldnn()
        results = [corr2d(opaque, w, layer.bias, padding=1, algorithm=algorithm) for w in weights]
        for result in (layer(opaque), *results):
            assert result.is_mkldnn
            assert torch.equal(result.to_dense(), expected)


@pytest.mark.parametrize("autocast", [False, True])
def test_float16_is_summed_in_float32_under_auto(autocast: bool) -> None:
    """Gradients too; also where it is autocast that makes it float16.

    PyTorch adds each image's 841 in float16 to those before, and rounds each time.
    """
    dtype = torch.float32 if autocast else torch.float16
    x = torch.ones(16, 1, 29, 29, dtype=dtype)
    w = torch.ones(1, 1, 1, 1, dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", torch.float16, enabled=autocast):
        y = corr2d(x, w)
    (gradient,) = torch.autograd.grad(y.sum(), w)
    assert y.dtype == torch.float16
    assert gradient.item() == 16 * 29 * 29 == 13456


def test_integers_have_no_gradient_but_values(device: torch.device) -> None:
    x, w = torch.ones(1, 1, 3, 3, dtype=torch.int32), torch.ones(1, 1, 2, 2, dtype=torch.int32)
    problem = Problem.of(x.shape, w.shape)
    here = request(problem, device=device, dtype=x.dtype)
    able = [each for each in UNDER_TEST if not each.refusals(here)]
    for algorithm in ("auto", *able):
        y = corr2d(x, w, torch.tensor([5], dtype=torch.int32), algorithm=algorithm)
        assert y.dtype == torch.int32
        assert (y == 9).all()
        assert not y.requires_grad
