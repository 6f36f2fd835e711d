"""Derivatives of every order and mode, for every algorithm."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._vmap_internals import _vmap
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, functionalize, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from support.laws import each_algorithm, each_choice
from support.needs import KERNELS, needs
from support.spies import saved_by
from torch_corr import Corr2d, Problem, corr2d
from torch_corr.autograd import trilinear
from torch_corr.planning.plan import make_plan
from torch_corr.testing import operands, problems

PROBLEM = Problem.parse("n2c4-x5x4-o4-k3x2-s2x1-p1,2x0,1-d1x2-g2")
each_field = pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)


def correlate(problem, algorithm):
    p = problem
    arguments = {"stride": p.stride, "padding": p.padding, "dilation": p.dilation}
    return partial(corr2d, **arguments, groups=p.groups, algorithm=algorithm)


def conv2d(problem):
    (top, bottom), (left, right) = problem.padding

    def function(x, w):
        padded = F.pad(x, (left, right, top, bottom))
        return F.conv2d(padded, w, None, problem.stride, 0, problem.dilation, problem.groups)

    return function


def some(problem, dtype, device):
    generator = torch.Generator().manual_seed(0)
    x, w = (
        torch.randn(shape, dtype=dtype, generator=generator).to(device).requires_grad_()
        for shape in (problem.input_shape, problem.weight_shape)
    )
    return x, w


def assert_equal_conv2d(results, algorithm):
    """``results(function)`` yields the same for corr2d and conv2d."""
    ours, theirs = (
        list(results(each)) for each in (correlate(PROBLEM, algorithm), conv2d(PROBLEM))
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@each_choice
@each_field
def test_gradcheck_in_every_mode(algorithm, dtype, device):
    """Reverse and forward mode, plain and batched, against finite differences."""
    assert gradcheck(
        correlate(PROBLEM, algorithm),
        some(PROBLEM, dtype, device),
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
        check_undefined_grad=True,
    )


@each_choice
@each_field
def test_second_order_in_every_mode(algorithm, dtype, device):
    """Reverse over reverse and forward over reverse."""
    assert gradgradcheck(
        correlate(PROBLEM, algorithm),
        some(PROBLEM, dtype, device),
        check_fwd_over_rev=True,
        check_rev_over_rev=True,
        check_batched_grad=True,
        fast_mode=dtype.is_complex,
    )


@each_choice
@each_field
def test_third_order(algorithm, dtype, device):
    """Of a cubic function of the output, so that no third derivative is zero."""
    x, w = some(PROBLEM, dtype, device)

    def third(function):
        loss = (function(x, w).abs() ** 3).sum()
        for _ in range(2):
            gradients = torch.autograd.grad(loss, (x, w), create_graph=True)
            loss = sum((each.abs() ** 2).sum() for each in gradients)
        return torch.autograd.grad(loss, (x, w))

    assert_equal_conv2d(third, algorithm)


@each_choice
@each_field
def test_torch_func_transforms_equal_conv2d(algorithm, dtype, device):
    x, w = (value.detach() for value in some(PROBLEM, dtype, device))
    dx, dw = torch.randn_like(x), torch.randn_like(w)

    def results(function):
        def loss(x, w):
            return (function(x, w).abs() ** 3).sum()

        yield jvp(function, (x, w), (dx, dw))
        yield jvp(function, (x, w), (dx, torch.zeros_like(dw)))
        y, pullback = vjp(function, x, w)
        yield y, pullback(torch.ones_like(y))
        if not dtype.is_complex:
            yield grad(loss, (0, 1))(x, w)
            yield jacrev(function, (0, 1))(x, w)
            yield jacfwd(function, (0, 1))(x, w)
            yield hessian(loss, 1)(x, w)
            yield jacrev(jacrev(loss, 0), 1)(x, w)
            yield jacrev(jacfwd(grad(loss, 1), 1), 1)(x, w)
            functional = torch.autograd.functional
            yield functional.jacobian(function, (x, w))
            yield functional.jacobian(function, (x, w), vectorize=True, strategy="forward-mode")
            yield functional.hessian(loss, (x, w), vectorize=True)
            yield functional.hvp(loss, (x, w), (x, w))
            yield functional.vhp(loss, (x, w), (x, w))

    assert_equal_conv2d(results, algorithm)


@each_choice
@pytest.mark.parametrize("in_dims", [(0, None), (None, 0), (0, 0), (2, 1), (None, 4)])
@given(data=st.data(), problem=problems(max_size=6, max_batch=2, max_channels=2, max_groups=2))
@settings(max_examples=15)
def test_vmap_equals_loop(data, problem, in_dims, algorithm, device):
    """Over the input, the weight or both, along any axis, with gradients."""
    x, w, _ = data.draw(operands(problem, torch.float64, device))
    times = 3
    x, w = (
        value.clone().requires_grad_()
        if dim is None
        else torch.stack([value, value + 1, value * 2], dim).detach().requires_grad_()
        for value, dim in zip((x, w), in_dims)
    )
    function = correlate(problem, algorithm)
    together = vmap(function, in_dims)(x, w)
    one_by_one = torch.stack(
        [
            function(*(v if dim is None else v.select(dim, n) for v, dim in zip((x, w), in_dims)))
            for n in range(times)
        ]
    )
    torch.testing.assert_close(together, one_by_one, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(y.square().sum(), (x, w)) for y in (together, one_by_one)]
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-11)


@each_choice
def test_vmap_nested_chunked_and_empty(algorithm, device):
    function = correlate(PROBLEM, algorithm)
    x, w = (value.detach() for value in some(PROBLEM, torch.float64, device))
    xs, ws = torch.stack([x, 2 * x, x + 1]), torch.stack([w, w - 1])
    all_pairs = vmap(vmap(function, (None, 0)), (0, None))(xs, ws)
    expected = torch.stack([torch.stack([function(a, b) for b in ws]) for a in xs])
    torch.testing.assert_close(all_pairs, expected)
    nothing = vmap(function, (0, None))(xs[:0], w)
    assert nothing.shape == (0, *function(x, w).shape)
    chunked = vmap(function, (0, None), chunk_size=2)(xs, w)
    torch.testing.assert_close(chunked, torch.stack([function(a, w) for a in xs]))


@each_choice
def test_per_sample_gradients(algorithm, device):
    """The gradient of each sample's own loss, in one call."""
    layer = Corr2d(4, 6, 3, padding=1, groups=2, algorithm=algorithm, dtype=torch.float64)
    layer.to(device)
    x = torch.randn(3, 4, 5, 5, dtype=torch.float64, device=device)
    parameters = {name: value.detach() for name, value in layer.named_parameters()}

    def loss(parameters, sample):
        return functional_call(layer, parameters, (sample,)).square().sum()

    each = vmap(grad(loss), (None, 0))(parameters, x)
    for n, sample in enumerate(x):
        for name, gradient in grad(loss)(parameters, sample).items():
            torch.testing.assert_close(each[name][n], gradient)


@each_algorithm
def test_internal_vmap_works_in_other_threads(algorithm, device):
    """Backward runs in other threads on CUDA; there only the operands know their vmap level."""
    _, w = some(PROBLEM, torch.float64, device)
    gs = torch.randn(3, *PROBLEM.output_shape, dtype=torch.float64, device=device)
    plan = make_plan(PROBLEM, device, torch.float64, algorithm)

    def elsewhere(g):
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(trilinear, plan, None, w.detach(), g).result()

    together = _vmap(elsewhere)(gs)
    torch.testing.assert_close(together, torch.stack([elsewhere(g) for g in gs]))
    twice = _vmap(lambda g: _vmap(elsewhere)(torch.stack((g, 2 * g))))(gs)
    torch.testing.assert_close(twice, torch.stack((together, 2 * together), 1))


@each_choice
def test_reverse_over_forward(algorithm, device):
    x, w = some(PROBLEM, torch.float64, device)
    dx = torch.randn_like(x, requires_grad=True)
    results = []
    for function in (correlate(PROBLEM, algorithm), conv2d(PROBLEM)):
        with forward_ad.dual_level():
            y = function(forward_ad.make_dual(x, dx), w)
            tangent = forward_ad.unpack_dual(y).tangent
            results.append(torch.autograd.grad(tangent.square().sum(), (w, dx)))
    torch.testing.assert_close(*results)


@each_algorithm
@pytest.mark.parametrize("trained", [0, 1], ids=["input", "weight"])
def test_frozen_operand_costs_nothing(trained, algorithm, device):
    """A frozen weight needs no grad_weight and saves no input; and vice versa."""
    calls = []

    class Counting(type(algorithm)):
        def grad_input(self, *args):
            calls.append(0)
            return super().grad_input(*args)

        def grad_weight(self, *args):
            calls.append(1)
            return super().grad_weight(*args)

    operands = [value.detach() for value in some(PROBLEM, torch.float64, device)]
    operands[trained].requires_grad_()
    y, (kept,) = saved_by(lambda: correlate(PROBLEM, Counting())(*operands))
    assert kept.data_ptr() == operands[1 - trained].data_ptr()
    y.sum().backward()
    assert calls == [trained]


@pytest.mark.parametrize("leaf", [True, False], ids=["leaf", "computed"])
def test_auto_saves_only_needed_operands(leaf):
    """conv2d saves both operands, so ``auto`` calls it only if the trained operand is a leaf,
    which the graph holds anyway.
    """
    for trained, bias in ((0, None), (1, None), (0, torch.ones(4, dtype=torch.float64))):
        operands = [value.detach() for value in some(PROBLEM, torch.float64, torch.device("cpu"))]
        operands[trained].requires_grad_()
        if not leaf:
            operands[trained] = operands[trained] * 1
        y, saved = saved_by(partial(corr2d, *operands, bias, 2, 1, 1, 2))
        expected = operands if leaf else [operands[1 - trained]]
        assert [kept.data_ptr() for kept in saved] == [value.data_ptr() for value in expected]
        assert (y.grad_fn.name() == "ConvolutionBackward0") == leaf


@each_choice
def test_bias_trained_alone_saves_no_operands(algorithm, device):
    """conv2d saves both operands, also when ``auto`` calls it."""
    x, w = (value.detach() for value in some(PROBLEM, torch.float64, device))
    b = torch.ones(4, dtype=torch.float64, device=device, requires_grad=True)
    kept: list[int] = []
    for function in (partial(corr2d, algorithm=algorithm), F.conv2d):
        y, saved = saved_by(partial(function, x, w, b, 2, 1, 1, 2))
        (gradient,) = torch.autograd.grad(y.sum(), b)
        assert (gradient == y[:, 0].numel()).all()
        kept.append(len(saved))
    assert kept == [2 if algorithm == "auto" else 0, 2]


@needs(KERNELS)
@pytest.mark.parametrize("trained", [*product((False, True), repeat=3)], ids=str)
@pytest.mark.parametrize("algorithm", ["direct", "aten", "unfold"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_bias_that_the_algorithm_adds(layout, algorithm, trained):
    """Values and derivatives of both orders, whatever is trained."""
    shapes = (2, 16, 6, 7), (32, 1, 3, 3)
    operands = [torch.randn(each).double().contiguous(memory_format=layout) for each in shapes]
    operands.append(torch.randn(32).double())
    for operand, wanted in zip(operands, trained):
        operand.requires_grad_(wanted)

    def layer(x, w, b):
        return corr2d(x, w, b, 1, 1, 1, 16, algorithm=algorithm)

    y = layer(*operands)
    torch.testing.assert_close(y, F.conv2d(*operands, 1, 1, 1, 16))
    if any(trained):
        assert y.grad_fn.name() == "CorrelationWithBiasBackward"
        assert gradcheck(layer, operands, fast_mode=True)
        assert gradgradcheck(layer, operands, fast_mode=True)


@needs(KERNELS)
@pytest.mark.parametrize("algorithm", ["direct", "aten"])
def test_bias_is_added_before_rounding(algorithm):
    """In bfloat16 257 is no number: rounded to 256 first, the sum with 1 would be 256 again."""
    x, w, b = torch.tensor([[256.0, 1.0]]), torch.ones(1, 2), torch.ones(1)
    x, w, b = x[None].bfloat16(), w[None, None].bfloat16(), b.bfloat16()
    assert corr2d(x, w, b, algorithm=algorithm).item() == 258


def test_nothing_is_saved_without_gradients():
    x = torch.randn(1, 1, 5, 5)
    alive = weakref.ref(x)
    y = corr2d(x, torch.ones(1, 1, 2, 2), algorithm="unfold")
    assert y.grad_fn is None
    del x
    gc.collect()
    assert alive() is None


@each_choice
@pytest.mark.parametrize("dual", [False, True], ids=["reverse", "dual"])
def test_inplace_write_to_saved_operand_raises(algorithm, dual, device):
    """As with conv2d, also in forward mode."""
    x, w = some(PROBLEM, torch.float64, device)
    x = x.clone()
    with forward_ad.dual_level():
        weight = forward_ad.make_dual(w, torch.ones_like(w)) if dual else w
        y = correlate(PROBLEM, algorithm)(x, weight)
        loss = forward_ad.unpack_dual(y).primal.sum()
        x.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@each_choice
def test_efficient_zero_tensor_as_gradient(algorithm, device):
    """Such a tensor has no memory that a kernel could read."""
    x, w = (value.requires_grad_() for value in some(PROBLEM, torch.float64, device))
    y = correlate(PROBLEM, algorithm)(x, w)
    zero = torch._efficientzerotensor(y.shape, dtype=y.dtype, device=device)
    for gradient, value in zip(torch.autograd.grad(y, (x, w), zero), (x, w)):
        assert torch.equal(gradient, torch.zeros_like(value))


@each_choice
def test_functionalize(algorithm, device):
    """In-place writes around a correlation become copies, also under grad, vmap and jvp."""
    x, w = (value.detach() for value in some(PROBLEM, torch.float64, device))

    def results(function):
        def written(x):
            y = function(x.clone().mul_(2), w)
            y.view(-1).add_(1)
            return y.sin()

        plain = functionalize(written)
        yield plain(x)
        yield functionalize(written, remove="mutations_and_views")(x)
        yield grad(lambda x: plain(x).sum())(x)
        yield jvp(plain, (x,), (x + 1,))
        yield vmap(plain)(torch.stack([x, x - 1]))
        yield functionalize(vmap(written))(torch.stack([x, x - 1]))
        graph = make_fx(plain)(x)
        assert not [node for node in graph.graph.nodes if str(node.target).endswith("_.default")]
        yield graph(x)

    assert_equal_conv2d(results, algorithm)
