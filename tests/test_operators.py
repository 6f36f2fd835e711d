"""The operators of torch_corr satisfy opcheck, and PyTorch's tools see them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import gradcheck
from torch.func import grad, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from support.laws import algorithm_id
from support.maps import all_operands
from torch_corr import Aten, Naive, Problem, corr2d
from torch_corr.operators import decode_algorithm, encode_algorithm
from torch_corr.planning.plan import able_algorithms

PROBLEM = Problem.parse("n2c4-x5x4-o4-k3x2-s2x1-p1,2x0,1-d1x2-g2")
GROUPS, *GEOMETRY = 2, [2, 1], [1, 2, 0, 1], [1, 2], False, "unfold"
ABLE = able_algorithms(PROBLEM, torch.device("cpu"), torch.float64)
OTHERS = [each for each in ABLE if each != Aten()]
each_other = pytest.mark.parametrize("algorithm", OTHERS, ids=algorithm_id)


def operands(requires_grad=False):
    generator = torch.Generator().manual_seed(0)
    return all_operands(PROBLEM, torch.float64, generator=generator, requires_grad=requires_grad)


def calls(requires_grad=False):
    x, w, y = operands(requires_grad)
    return {
        "forward": (x, w, GROUPS, *GEOMETRY),
        "grad_input": (y, w, GROUPS, [5, 4], *GEOMETRY),
        "grad_weight": (x, y, GROUPS, [3, 2], *GEOMETRY),
    }


each_map = pytest.mark.parametrize("map", ["forward", "grad_input", "grad_weight"])


@each_map
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(map, requires_grad):
    torch.library.opcheck(getattr(torch.ops.torch_corr, map).default, calls(requires_grad)[map])


def test_registered_operators():
    names = torch._C._dispatch_get_all_op_names()
    ours = {name for name in names if name.startswith("torch_corr::")}
    assert ours == {f"torch_corr::{map}" for map in calls()}


@each_map
def test_derivatives_of_operators(map):
    """A captured graph can be differentiated again."""
    first, second, *others = calls(True)[map]
    assert gradcheck(
        lambda a, b: getattr(torch.ops.torch_corr, map)(a, b, *others),
        (first, second),
        check_forward_ad=True,
        check_batched_grad=True,
        fast_mode=True,
    )


@each_map
def test_vmap_of_operators(map):
    """They refuse the derivatives of torch.func."""
    first, second, *others = calls()[map]

    def function(a, b):
        return getattr(torch.ops.torch_corr, map)(a, b, *others)

    firsts = torch.stack([first, 2 * first, first - 1])
    each = vmap(function, (0, None))(firsts, second)
    torch.testing.assert_close(each, torch.stack([function(a, second) for a in firsts]))
    both = vmap(function, (1, 0))(firsts.movedim(0, 1), torch.stack([second] * 3))
    torch.testing.assert_close(both, each)
    for transform in (
        lambda: jvp(function, (first, second), (first, second)),
        lambda: vmap(grad(lambda a: function(a, second).sum()))(firsts),
    ):
        with pytest.raises(NotImplementedError, match=r"call torch_corr\.corr2d, which can"):
            transform()


def test_mismatched_operands_are_refused():
    x, w, y = operands()
    with pytest.raises(RuntimeError, match=r"do not belong together.*output should be"):
        torch.ops.torch_corr.grad_weight(x, y[..., :1], GROUPS, [3, 2], *GEOMETRY)
    with pytest.raises(ValueError, match=r"unknown algorithm 'unfld'.*'unfold'"):
        torch.ops.torch_corr.forward(x, w, GROUPS, *GEOMETRY[:-1], "unfld")


def test_encode_distinguishes_algorithms_with_equal_repr():
    class Odd(Naive):
        name = "odd"

        def __init__(self, secret):
            object.__setattr__(self, "secret", secret)

        def __eq__(self, other):
            return isinstance(other, Odd) and other.secret == self.secret

        def __hash__(self):
            return 0

    one, two = Odd(1), Odd(2)
    assert repr(one) == repr(two)
    for algorithm in (one, two, Odd(2)):
        assert decode_algorithm(encode_algorithm(algorithm)) == algorithm
    assert encode_algorithm(Odd(2)) == encode_algorithm(two) != encode_algorithm(one)


def layer(algorithm, *values):
    return corr2d(*values, None, (2, 1), ((1, 2), (0, 1)), (1, 2), 2, algorithm=algorithm)


@each_other
def test_flop_counter_counts_two_for_each_product(algorithm):
    x, w, _ = operands(True)
    with FlopCounterMode(display=False) as counter:
        y = layer(algorithm, x, w)
        forward = counter.get_total_flops()
        y.sum().backward()
    assert forward == 2 * PROBLEM.multiplications
    assert counter.get_total_flops() == 3 * forward


@pytest.mark.parametrize("algorithm", ["auto", "aten"])
def test_flops_of_aten_equal_conv2d(algorithm):
    counts = []
    for function in (lambda *a: corr2d(*a, algorithm=algorithm), F.conv2d):
        with FlopCounterMode(display=False) as counter:
            function(torch.ones(2, 4, 6, 6), torch.ones(3, 4, 2, 2))
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@each_other
def test_profiler_names_maps(algorithm):
    x, w, _ = operands(True)
    cpu = [torch.profiler.ProfilerActivity.CPU]
    # Without acc_events PyTorch before 2.13 warns about cycles.
    with torch.profiler.profile(activities=cpu, acc_events=True) as profile:
        layer(algorithm, x, w).sum().backward()
    names = {event.key for event in profile.key_averages()}
    maps = ("forward", "grad_input", "grad_weight")
    assert {f"torch_corr::{algorithm.name}.{map}" for map in maps} <= names
    assert {"Correlation", "CorrelationBackward"} <= names


@pytest.mark.parametrize("algorithm", ["auto", *OTHERS], ids=algorithm_id)
def test_fake_tensors(algorithm):
    """Inside and outside the mode."""
    x, w, _ = operands(True)
    real = layer(algorithm, x, w)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(value) for value in (x, w)]
        y = layer(algorithm, *fakes)
        gradients = torch.autograd.grad(y.sum(), fakes)
    later = layer(algorithm, *(value.detach() for value in fakes))
    for fake in (y, later):
        assert isinstance(fake, FakeTensor)
        assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)
        assert fake.device == real.device
    assert [value.shape for value in gradients] == [x.shape, w.shape]


@pytest.mark.parametrize("algorithm", ["auto", *OTHERS], ids=algorithm_id)
def test_meta_tensors(algorithm):
    leaves = [value.detach().to("meta").requires_grad_() for value in operands()[:2]]
    y = layer(algorithm, *leaves)
    gradients = torch.autograd.grad(y.sum(), leaves)
    assert (y.shape, y.device.type) == (PROBLEM.output_shape, "meta")
    assert [value.shape for value in gradients] == [value.shape for value in leaves]


@each_other
def test_make_fx_graph_is_differentiable(algorithm):
    x, w, _ = operands()
    graph = make_fx(lambda x, w: layer(algorithm, x, w))(x, w)
    assert "torch_corr.forward" in graph.code
    leaves = [value.clone().requires_grad_() for value in (x, w)]
    for ours, theirs in zip(
        torch.autograd.grad(graph(*leaves).pow(2).sum(), leaves),
        torch.autograd.grad(layer("aten", *leaves).pow(2).sum(), leaves),
    ):
        torch.testing.assert_close(ours, theirs)
