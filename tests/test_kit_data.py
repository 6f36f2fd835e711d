"""What the kit draws: every kind of problem, of numbers and of memory, and each often enough."""

from __future__ import annotations

import ctypes
import platform
from collections import Counter
from collections.abc import Iterator
from math import prod

import pytest
import torch
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st

from torch_corr import Problem
from torch_corr.testing import (
    DATA,
    LAYOUTS,
    Case,
    in_layout,
    litter,
    make_operands,
    poisoned,
    problems,
    tensors_for,
)
from torch_corr.testing.check import callers_problems, draw, rounds
from torch_corr.testing.laws import find_law
from torch_corr.testing.laws.gradients import cut

PROBLEM = Problem.parse("n2c4-x6x7-o6-k3x2-p1-g2")
drawn = settings(
    max_examples=300,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def test_every_kind_of_data_and_layout_is_drawn() -> None:
    """At least a third of its even share in the half of the triples that are drawn freely."""
    examples = 900
    kinds: Counter[str] = Counter()
    values, formats = find_law("values"), find_law("memory_formats")

    @settings(drawn, max_examples=examples)
    @given(
        of_values=values.cases(st.just(PROBLEM), torch.float32, "cpu"),
        of_formats=formats.cases(st.just(PROBLEM), torch.float32, "cpu"),
    )
    def count(of_values: Case, of_formats: Case) -> None:
        kinds[of_values.data] += 1
        kinds.update(f"{slot} {each}" for slot, each in zip("xwy", of_formats.layouts))

    count()
    assert set(values.data) == set(DATA) - {"special"}
    assert find_law("non_finite").data == ("integers", "special")
    for data in values.data:
        assert kinds[data] >= examples / len(values.data) / 3, (data, kinds)
    third = examples / 2 / len(LAYOUTS) / 3
    for layout in LAYOUTS:
        for slot in "xwy":
            assert kinds[f"{slot} {layout}"] >= third, (slot, layout, kinds)
        assert kinds[f"{slot} channels_last"] >= examples / 4, (slot, kinds)


def kinds(p: Problem) -> Iterator[str]:
    """What special code is written for, and what it forgets."""
    dense, padded = p.stride == p.dilation == (1, 1), p.padding != ((0, 0), (0, 0))
    depthwise = p.group_in == 1 < p.groups
    for name, so in (
        ("3x3, dense", p.kernel == (3, 3) and dense),
        ("1x1", p.kernel == (1, 1)),
        ("a side of more than 8 taps", max(p.kernel) > 8),
        ("oblong kernel", p.kernel[0] != p.kernel[1]),
        ("stride alone", p.stride != (1, 1) == p.dilation),
        ("dilation alone", p.dilation != (1, 1) == p.stride),
        ("stride and dilation", p.stride != (1, 1) != p.dilation),
        ("no padding", not padded),
        ("padding, dense", padded and dense),
        ("asymmetric padding", any(first != last for first, last in p.padding)),
        ("depthwise", depthwise and p.group_out == 1),
        ("depthwise, several filters a channel", depthwise and p.group_out > 1),
        ("depthwise, many channels", depthwise and p.groups > 16),
        ("groups", p.groups > 1 < p.group_in),
        ("one image", p.batch == 1),
        ("many images", p.batch > 16),
        ("one channel", p.in_channels == 1),
        ("many input channels", p.group_in > 16),
        ("more than 128 input channels", p.group_in > 128),
        ("many output channels", p.group_out > 16),
        ("more than 64 output channels", p.group_out > 64),
        ("tall", p.output_size[0] > 64),
        ("wide", p.output_size[1] > 64),
        ("one output pixel", p.output_size == (1, 1)),
        ("one output pixel of a larger image", p.output_size == (1, 1) != p.size),
        ("one input pixel", p.size == (1, 1)),
        ("one column", p.size[1] == 1 < p.size[0]),
        ("pixels behind the last window", _unseen(p)),
        ("nothing", 0 in p.input_shape),
        ("a wide row in two steps, stride, dilation, half a window of padding", _in_steps(p, 1)),
        ("the same along rows", _in_steps(p, 0)),
        ("padding longer than the window, wide", p.output_size[1] >= 20 and _beyond(p, 1)),
        ("padding longer than the window, tall", p.output_size[0] >= 20 and _beyond(p, 0)),
        ("wide rows of groups under a dilation", _dilated_rows(p)),
        ("one column of several rows", p.output_size[1] == 1 < p.output_size[0]),
        ("one row of several columns", p.output_size[0] == 1 < p.output_size[1]),
        ("one column of a gray image, stride across alone", _gray_column(p)),
    ):
        if so:
            yield name


def _in_steps(p: Problem, axis: int) -> bool:
    sparse = min(p.stride[axis], p.dilation[axis]) > 1
    return sparse and 28 < p.output_size[axis] < 57 and p.padding[axis][0] >= p.span[axis] // 2


def _beyond(p: Problem, axis: int) -> bool:
    return p.padding[axis][0] >= p.span[axis] > 1


def _dilated_rows(p: Problem) -> bool:
    return p.groups > 1 and p.output_size[1] > 28 and p.dilation[0] > 1 and p.stride[0] == 1


def _gray_column(p: Problem) -> bool:
    alone = p.stride[0] == 1 < p.stride[1]
    return alone and p.in_channels == 1 < p.batch and p.output_size[1] == 1 < p.output_size[0]


def _unseen(p: Problem) -> bool:
    """Whether the last windows end before the padded image does."""
    return any((n - span) % step for n, span, step in zip(p.padded_size, p.span, p.stride))


@pytest.mark.parametrize("seed", range(3))
def test_every_kind_of_problem_is_drawn(seed: int) -> None:
    """Of 300, the examples of ``values``, at least 3 each, so that no kind gets lost.

    Callers' problems lack what ``F.conv2d`` refuses or another law tries.
    """
    seen = _drawn_kinds(callers_problems(), 300, seed)
    beyond = {"asymmetric padding", "nothing"}
    assert not beyond & set(seen)
    rare = {name: count for name, count in seen.items() if count < 3}
    assert len(seen) == ALL_KINDS - len(beyond), seen
    assert not rare, seen
    seen = _drawn_kinds(problems(), 200, seed)
    for name in beyond:
        assert seen[name] >= 10, seen


ALL_KINDS = 37


def _drawn_kinds(strategy: st.SearchStrategy[Problem], examples: int, seed: int) -> Counter[str]:
    """How often each kind is among so many different problems, drawn as the kit draws them."""
    seen: set[Problem] = set()
    for number, size in enumerate(rounds(examples)):
        draw(lambda data: seen.add(data.draw(strategy)), size, (seed, number))()
    assert len(seen) > 0.95 * examples
    return Counter(kind for problem in seen for kind in kinds(problem))


@given(problem=callers_problems())
def test_what_gradcheck_gets_is_small(problem: Problem) -> None:
    """A Jacobian of a whole image takes minutes."""
    small = cut(problem)
    assert max(small.output_size) <= 24  # a window of 40 pixels over its padding, in steps of 2
    assert prod(small.input_shape) * prod(small.output_shape) < 3 * 10**6
    assert (small.kernel, small.stride) == (problem.kernel, problem.stride)
    for side, before, span in zip(small.padding, problem.padding, problem.span):
        assert min(side[0], span - 1) == min(before[0], span - 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.complex64, torch.float64])
def test_each_kind_of_data_holds_what_it_says(dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).tiny
    of = {data: make_operands(PROBLEM, dtype, data=data, seed=3) for data in DATA}

    def parts(data: str, slot: int = 0) -> torch.Tensor:
        value = of[data][slot]
        return torch.view_as_real(value) if value.is_complex() else value

    assert (parts("integers") == parts("integers").round()).all()
    exponents = parts("wide").abs().double().log2()
    assert exponents.max() - exponents.min() > (8 if dtype == torch.float16 else 60)
    x, w = (of["cancelling"][slot].to(torch.complex128) for slot in (0, 1))
    assert x[0, 0, 0].sum().abs() > 6 * 60
    assert w[0, 0, 0].sum().abs() < 0.2 * w[0, 0, 0].abs().sum()
    assert 0 < parts("subnormal").abs().max() < tiny
    special = torch.cat(
        [make_operands(PROBLEM, dtype, data="special", seed=seed)[0].flatten() for seed in range(9)]
    )
    special = torch.view_as_real(special) if special.is_complex() else special
    assert special.isnan().any()
    assert special.isposinf().any()
    assert special.isneginf().any()
    assert (special.abs() == tiny).any()
    zeros = special[special == 0]
    assert zeros.signbit().any()
    assert not zeros.signbit().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8, torch.complex128], ids=str)
def test_each_layout_is_what_it_says(dtype: torch.dtype) -> None:
    value = make_operands(PROBLEM, dtype, data="integers")[0]
    lying = {layout: in_layout(value, layout) for layout in LAYOUTS}
    for layout, other in lying.items():
        assert other.shape == value.shape
        assert torch.equal(other, value) != (layout in ("repeated", "expanded")), layout
        flat = ("contiguous", "offset", "singleton_strides")
        assert other.is_contiguous() == (layout in flat), layout
    assert lying["channels_last"].is_contiguous(memory_format=torch.channels_last)
    assert lying["channel_slice"].stride() == (42 * 9, 2, 7 * 9, 9)
    assert set(lying["expanded"].stride()) == {0}
    assert lying["repeated"].stride()[0] == lying["repeated"].stride()[2] == 0
    assert lying["offset"].storage_offset() == 3
    assert lying["cropped"].storage_offset() > 0
    around = lying["cropped"].as_strided((), (), 0)
    assert around.isnan() if dtype != torch.int8 else around == 127


def test_strides_say_which_layout_it_is_where_the_shape_does_not() -> None:
    """``contiguous(memory_format=...)`` returns a gray image, or a single pixel, as it is."""
    gray, pixel = torch.ones(2, 1, 3, 4), torch.ones(2, 5, 1, 1)
    assert in_layout(gray, "channels_last").stride() == (12, 1, 4, 1)
    assert in_layout(pixel, "channels_last").stride() == (5, 1, 5, 5)
    assert in_layout(gray, "singleton_strides").stride() == (12, 0, 4, 1)
    assert in_layout(pixel, "singleton_strides").stride() == (5, 1, 0, 0)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc to fill memory")
@pytest.mark.parametrize("size", [4, 60, 1000, 2**16, 2**20])
def test_memory_that_is_not_torchs_own_is_poisoned_too(size: int) -> None:
    """As kernels take it for their scratch."""

    def fresh(size: int) -> torch.Tensor:
        storage = torch.UntypedStorage(4 * size)
        return torch.tensor([]).set_(storage).resize_(size)  # type: ignore[call-overload]

    with poisoned():
        litter()
        assert all(each.isnan().all() for each in [fresh(size) for _ in range(20)])
    # The system gives zeros, unless they are filled.  Blocks that were given back, such as those
    # above, may join to one so large; trimmed, they are the system's again, but for their edges.
    ctypes.CDLL(None).malloc_trim(0)
    assert not fresh(2**24)[2**23 :][:1000].any()


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown data 'nromal'; use one of normal, integers"):
        make_operands(PROBLEM, torch.float32, data="nromal")
    with pytest.raises(ValueError, match="unknown layout 'rows'; use one of contiguous"):
        in_layout(torch.ones(1, 1, 1, 1), "rows")


@given(
    problem=problems(
        max_batch=1,
        max_channels=2,
        max_groups=1,
        max_size=6,
        max_kernel=2,
        max_stride=1,
        max_padding=0,
        max_dilation=1,
        allow_empty=False,
    )
)
def test_problems_can_be_narrowed(problem: Problem) -> None:
    p = problem
    assert (p.batch, p.groups, p.stride, p.dilation) == (1, 1, (1, 1), (1, 1))
    assert p.padding == ((0, 0), (0, 0))
    assert 1 <= p.in_channels <= 2
    assert 1 <= p.out_channels <= 2
    assert max(p.kernel) <= 2
    assert max(p.size) <= 6


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_stride": 0}, "max_stride must be an integer of at least 1, got 0"),
        ({"max_padding": -1}, "max_padding must be an integer of at least 0, got -1"),
        ({"max_batch": 0, "allow_empty": False}, "max_batch must be an integer of at least 1"),
        ({"max_kernel": 2.5}, "max_kernel must be an integer of at least 1, got 2.5"),
    ],
)
def test_limits_that_leave_nothing_are_refused(limits: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        problems(**limits)


def test_a_counterexample_prints_as_a_problem_to_paste() -> None:
    smallest = find(problems(allow_empty=False), lambda p: p.stride[0] > 1 and p.groups == 2)
    assert eval(repr(smallest)) == smallest
    assert Problem.parse(str(smallest)) == smallest

    @settings(database=None, derandomize=True, print_blob=False)
    @given(problem=problems(allow_empty=False), data=st.data())
    def law(problem: Problem, data: st.DataObject) -> None:
        x, _, _ = data.draw(tensors_for(problem, torch.float32))
        assert x.shape[1] < 2

    with pytest.raises(AssertionError) as caught:
        law()
    said = " ".join("\n".join(caught.value.__notes__).split())
    assert "problem=Problem(batch=1, in_channels=2, size=" in said
