"""Tests of the compiled kernels beyond the laws: every instruction set, long rows, threads, the
checks of the entry points."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from support.laws import FLOATS, assert_right
from support.maps import OPERANDS, request
from support.needs import KERNELS, needs
from torch_corr import MAPS, Direct, Problem, native
from torch_corr.algorithms import MapName
from torch_corr.testing import oracle

compiled = native.compiled
pytestmark = needs(KERNELS)
ISAS = compiled.isas() if compiled else []
each_isa = pytest.mark.parametrize("isa", ISAS)
each_map = pytest.mark.parametrize("map", MAPS)
each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=str)


CONTIGUOUS, LAST = torch.contiguous_format, torch.channels_last
each_layout = pytest.mark.parametrize("layout", [CONTIGUOUS, LAST], ids=str)


def some(
    problem: Problem,
    map: str,
    dtype: torch.dtype,
    seed: int = 0,
    layout: torch.memory_format = CONTIGUOUS,
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: getattr(problem, f"{name}_shape") for name in OPERANDS[map]}
    return {
        name: torch.randn(shape, generator=generator).to(dtype).contiguous(memory_format=layout)
        for name, shape in shapes.items()
    }


def check(
    problem: Problem,
    map: str,
    dtype: torch.dtype,
    isa: str,
    seed: int = 0,
    layout: torch.memory_format = CONTIGUOUS,
) -> None:
    operands = some(problem, map, dtype, seed, layout)
    result = getattr(Direct(isa=isa), map)(problem, *operands.values())
    assert_right(result, problem, **operands, algorithm=Direct(isa=isa))
    if map != "grad_weight" and not next(iter(operands.values())).is_contiguous():
        assert result.is_contiguous(memory_format=layout)


def depthwise(problem: Problem, channels: int, filters: int = 1) -> Problem:
    """The same axes for so many channels, each with so many filters of its own."""
    return replace(problem, in_channels=channels, out_channels=channels * filters, groups=channels)


@st.composite
def long_axes(draw: st.DrawFn) -> Problem:
    """Rows past several vectors, padding past the kernel, dilation past the image."""
    axes = []
    for _ in range(2):
        size = draw(st.one_of(st.integers(1, 40), st.sampled_from([64, 65, 130])))
        kernel = draw(st.one_of(st.integers(1, 4), st.integers(1, 12)))
        dilation = draw(st.sampled_from([1, 1, 1, 2, 3, 4, 70]))
        stride = draw(st.sampled_from([1, 1, 1, 2, 3, 4, 6]))
        before, after = draw(st.integers(0, 30)), draw(st.integers(0, 30))
        before += max(0, dilation * (kernel - 1) + 1 - (size + before + after))
        axes.append((size, kernel, stride, (before, after), dilation))
    size, kernel, stride, padding, dilation = zip(*axes)
    groups = draw(st.sampled_from([1, 2, 3]))
    return Problem(
        draw(st.integers(1, 2)),
        groups * draw(st.integers(1, 3)),
        size,
        groups * draw(st.sampled_from([1, 2, 5])),
        kernel,
        stride,
        padding,
        dilation,
        groups,
    )


@each_isa
@each_map
@each_dtype
@settings(max_examples=15)
@given(problem=long_axes(), seed=st.integers(0, 9))
def test_every_instruction_set(
    problem: Problem, seed: int, map: str, dtype: torch.dtype, isa: str
) -> None:
    check(problem, map, dtype, isa, seed)


@each_isa
@each_map
@each_dtype
@settings(max_examples=15)
@given(
    problem=long_axes(),
    channels=st.sampled_from([16, 17, 31, 32, 50]),
    filters=st.sampled_from([1, 1, 1, 2, 3]),
    seed=st.integers(0, 9),
)
def test_every_instruction_set_in_channels_last(
    problem: Problem, channels: int, filters: int, seed: int, map: str, dtype: torch.dtype, isa: str
) -> None:
    check(depthwise(problem, channels, filters), map, dtype, isa, seed, LAST)


EDGES = [
    "n1c1-x1x1-o1-k1",
    "n1c1-x1x1-o1-k1-p1",
    "n1c1-x7x9-o1-k7x9",
    "n2c3-x17x33-o3-k5-s7-p2-g3",
    "n1c2-x5x5-o2-k3-p30-g2",
    "n1c1-x9x9-o1-k3-p20-d12",
    "n1c1-x3x3-o1-k2-p200-d200",
    "n1c1-x40x40-o1-k3x4-s2x3-p3,0x1,6-d2x3",
    "n1c1-x60x60-o1-k51-p25",
    "n1c1-x9x9-o1-k3-s4",
    "n1c1-x64x64-o1-k4-s6x4-p3-d4x6",
    "n2c6-x30x31-o12-k3-p1-g3",
    "n1c1-x60x70-o32-k7-p3",
    "n2c16-x30x30-o1-k3",
    "n1c70-x6x6-o5-k3-p1",
    "n1c8-x20x20-o8-k1",
    "n1c1-x120x40-o1-k100x3-p50x1",
    "n1c1-x10x300-o1-k2x150-p0x150-d1x2",
    "n1c4-x21x20-o8-k16-s16-p6",
    "n1c1-x37x41-o1-k30-s2-p44-d3",
    "n0c4-x8x8-o4-k3",
    "n2c0-x8x8-o3-k3",
]


@pytest.mark.parametrize("case", EDGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_edges(case: str, dtype: torch.dtype) -> None:
    for isa in ISAS:
        for map in MAPS:
            check(Problem.parse(case), map, dtype, isa)


EDGES_IN_CHANNELS_LAST = [
    "n1c16-x1x1-o16-k1-g16",
    "n1c16-x1x1-o16-k3-p5-g16",
    "n2c17-x7x9-o17-k7x9-g17",
    "n1c32-x5x5-o32-k3-p30-g32",
    "n1c16-x9x9-o16-k3-p20-d12-g16",
    "n1c16-x3x3-o16-k2-p200-d200-g16",
    "n2c24-x17x33-o72-k5-s7-p2-g24",
    "n1c16-x40x40-o32-k3x4-s2x3-p3,0x1,6-d2x3-g16",
    "n1c17-x30x34-o17-k27-p13-g17",
    "n1c16-x70x10-o16-k60x3-p30x1-g16",
    "n1c16-x10x300-o16-k2x150-p0x150-d1x2-g16",
    "n1c16-x4x1100-o16-k2x1024-g16",
    "n1c16-x4x1100-o16-k2x1025-g16",
    "n1c16-x2x9124-o16-k2x1024-s1x900-g16",
    "n1c16-x270x8-o16-k258x1-g16",
    "n1c18-x33x70-o18-k30-s2-p44-d3-g18",
    "n0c16-x8x8-o16-k3-g16",
    "n1c16-x8x8-o0-k3-g16",
    "n1c16-x20x20-o16-k4-s6x4-p3-d4x6-g16",
    "n1c15-x9x9-o15-k3-g15",
    "n1c32-x9x9-o32-k3-g16",
]


@pytest.mark.parametrize("case", EDGES_IN_CHANNELS_LAST)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_edges_in_channels_last(case: str, dtype: torch.dtype) -> None:
    """The last ones have no kernels for that layout; the result may be contiguous then."""
    problem = Problem.parse(case)
    for isa in ISAS:
        for map in MAPS:
            operands = some(problem, map, dtype, layout=LAST)
            result = getattr(Direct(isa=isa), map)(problem, *operands.values())
            assert_right(result, problem, **operands, algorithm=Direct(isa=isa))


@each_layout
@each_isa
@each_map
def test_common_multiple_of_stride_and_dilation_past_64_bits(
    map: MapName, isa: str, layout: torch.memory_format
) -> None:
    """Two rows of windows meet the image, and they meet the same pixels as windows nearby."""
    step = 2**32
    far = Problem.parse(
        f"n1c16-x9x9-o16-k2x3-s{step}x1-p{4 * step - 1},{4 * step}x0,0-d{step - 1}x1-g16"
    )
    near = Problem.parse("n1c16-x9x9-o16-k2x3-s20x1-p19,12x0,0-d19x1-g16")
    operands = some(far, map, torch.float32, layout=layout)
    result = getattr(Direct(isa=isa), map)(far, *operands.values())
    met = {
        name: value[:, :, 3:5].contiguous(memory_format=layout) if name == "output" else value
        for name, value in operands.items()
    }
    if map == "forward":
        assert not result[:, :, :3].any()
        assert not result[:, :, 5:].any()
        result = result[:, :, 3:5]
    assert_right(result, near, **met, algorithm=Direct(isa=isa))


@each_layout
@each_map
def test_results_are_on_the_device_of_the_operands(
    map: MapName, layout: torch.memory_format
) -> None:
    problem = Problem.parse("n1c16-x5x5-o32-k3-g16")
    operands = some(problem, map, torch.float32, layout=layout).values()
    expected = getattr(Direct(), map)(problem, *operands)
    with torch.device("meta"):  # the default device
        result = getattr(Direct(), map)(problem, *operands)
    assert torch.equal(result, expected)


@each_map
def test_mixed_layouts(map: MapName) -> None:
    """Operands of different layouts, and every second pixel of a larger image."""
    problem = Problem.parse("n2c18-x9x11-o36-k3-p1-g18")
    first, second = some(problem, map, torch.float32, layout=LAST).values()
    expected = getattr(Direct(), map)(problem, first, second)
    apart = first.new_zeros(*first.shape[:2], *(2 * size for size in first.shape[2:]))
    apart[..., ::2, ::2] = first
    for one, other in ((first, second.contiguous()), (first.contiguous(), second)):
        torch.testing.assert_close(getattr(Direct(), map)(problem, one, other), expected)
    torch.testing.assert_close(
        getattr(Direct(), map)(problem, apart[..., ::2, ::2], second), expected
    )


@each_layout
@each_isa
@each_map
@settings(max_examples=20)
@given(problem=long_axes(), seed=st.integers(0, 99), value=st.sampled_from(["inf", "nan"]))
def test_one_non_finite_number_reaches_only_its_windows(
    problem: Problem, seed: int, value: str, map: str, isa: str, layout: torch.memory_format
) -> None:
    """All other results stay the same to the bit."""
    if layout == LAST:
        problem = depthwise(problem, 16 + seed % 3, 1 + seed % 2)
    (first_name, first), (second_name, second) = some(
        problem, map, torch.float32, seed, layout
    ).items()
    at = torch.unravel_index(torch.tensor(seed * 7919 % first.numel()), first.shape)
    mark = torch.zeros_like(first)
    mark[at] = 1
    marked = {first_name: mark, second_name: torch.ones_like(second)}
    reached = oracle(problem, **marked).value > 0
    run = getattr(Direct(isa=isa), map)
    clean = run(problem, first, second)
    first[at] = float(value)
    dirty = run(problem, first, second)
    assert torch.equal(clean[~reached], dirty[~reached])
    assert not torch.isfinite(dirty[reached]).any()


@each_isa
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_half_precision_number_survives(dtype: torch.dtype, isa: str) -> None:
    """All 65536 numbers, with subnormals and infinities, times a kernel of one tap that is 1."""
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).view(1, 1, 256, 256)
    w = torch.ones(1, 1, 1, 1, dtype=dtype)
    last = x.view(1, 4096, 16, 1).permute(0, 2, 1, 3)  # 16 channels in channels_last
    for image, groups in ((x, 1), (last, 16)):
        filters = w.expand(groups, 1, 1, 1)
        problem = Problem.of(image.shape, filters.shape, groups=groups)
        y = Direct(isa=isa).forward(problem, image, filters)
        assert torch.equal(y.isnan(), image.isnan())
        assert torch.equal(y[~image.isnan()], image[~image.isnan()])


@each_isa
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_rounding_is_to_nearest_even(dtype: torch.dtype, isa: str) -> None:
    scales = torch.tensor([1e-8, 1e-6, 1e-4, 1, 1e3, 3e4, 7e4])[:, None]
    x = (torch.randn(7, 4096) * scales).to(dtype)[None, None]
    w = torch.full((1, 1, 1, 1), 1.37).to(dtype)
    last = x.view(1, 1792, 16, 1).permute(0, 2, 1, 3)
    for image, groups in ((x, 1), (last, 16)):
        filters = w.expand(groups, 1, 1, 1)
        problem = Problem.of(image.shape, filters.shape, groups=groups)
        y = Direct(isa=isa).forward(problem, image, filters)
        assert torch.equal(y, (image.float() * w.float()).to(dtype))


@pytest.mark.parametrize(
    "case", ["n3c2-x60x61-o4-k5-p2-g2", "n1c1-x200x300-o1-k7", "n8c16-x14x14-o16-k3-p1-g16"]
)
@each_layout
def test_same_bits_for_any_number_of_threads(case: str, layout: torch.memory_format) -> None:
    problem = Problem.parse(case)
    for map in MAPS:
        operands = some(problem, map, torch.float32, layout=layout)
        results = []
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            results.append(getattr(Direct(), map)(problem, *operands.values()))
        assert all(torch.equal(results[0], each) for each in results)


@each_isa
def test_sums_over_many_pixels_in_channels_last_are_added_by_blocks(isa: str) -> None:
    """One sum after the other has a relative error of 1e-3 here."""
    problem = Problem.parse("n4c16-x256x256-o16-k1-g16")
    x = torch.full(problem.input_shape, 0.1).contiguous(memory_format=LAST)
    y = torch.ones(problem.output_shape).contiguous(memory_format=LAST)
    result = Direct(isa=isa).grad_weight(problem, x, y)
    exact = x[:, 0].double().sum()
    blocks = y[:, 0].numel() // 2048
    assert ((result - exact) / exact).abs().max() < (2048 + blocks) * torch.finfo().eps / 2


def entry_point_arguments() -> tuple[Tensor, list[object]]:
    """Valid arguments of ``forward``, 8x8 by 3x3, and the memory that they point to."""
    x = torch.zeros(64)
    sizes = [1, 1, 8, 8, 1, 3, 3, 1, 1, 0, 0, 0, 0, 1, 1, 1]
    address = x.data_ptr()
    return x, [address, 64, address, 9, address, 36, 0, 0, sizes, 0, False, 1, ""]


REFUSED_SIZES: list[tuple[int, int]] = [
    *((0, -1), (0, 2**62), (2, 2), (3, 2**60), (5, 0), (7, 0)),
    *((9, -1), (9, 2**62), (13, 2**61), (13, 0), (15, 0), (15, 2)),
]
# A bias needs an address, and one channel is no vector.
REFUSED_ARGUMENTS: list[tuple[int, object]] = [
    *((1, 63), (3, 10), (5, 35), (0, 0), (0, "unaligned"), (7, 1), (7, 2)),
    *((9, 4), (9, -1), (10, True), (11, 0), (12, "mmx")),
]


def is_refused(arguments: list[object]) -> bool:
    """Every number is checked before the kernels use a pointer."""
    try:
        compiled.forward(*arguments)
    except ValueError:
        return True
    return False


@pytest.mark.parametrize(("at", "size"), REFUSED_SIZES)
def test_entry_points_check_the_sizes(at: int, size: int) -> None:
    memory, arguments = entry_point_arguments()
    assert not is_refused(arguments)
    sizes = list(arguments[8])  # type: ignore[call-overload]
    sizes[at] = size
    arguments[8] = sizes
    assert is_refused(arguments)
    assert (memory == 0).all()


@pytest.mark.parametrize(("at", "value"), REFUSED_ARGUMENTS)
def test_entry_points_check_their_arguments(at: int, value: object) -> None:
    memory, arguments = entry_point_arguments()
    arguments[at] = memory.data_ptr() + 1 if value == "unaligned" else value
    assert is_refused(arguments)
    assert (memory == 0).all()


def test_refusals() -> None:
    problem = Problem.parse("n1c1-x8x8-o1-k3")
    assert Direct().refusals(request(problem)) == ()
    (sentence,) = Direct().refusals(request(problem, device="meta"))
    assert "no kernels for meta" in sentence
    (sentence,) = Direct(isa="mmx").refusals(request(problem))
    assert "no instruction set 'mmx' on this machine; it has" in sentence
    (sentence,) = Direct().refusals(request(replace(problem, stride=2**50)))
    assert "2**48" in sentence


def test_refusal_says_that_the_kernels_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "compiled", None)
    monkeypatch.setattr(native, "why_missing", "No module named '_compiled'")
    problem = Problem.parse("n1c1-x8x8-o1-k3")
    (sentence,) = Direct().refusals(request(problem))
    assert "were not compiled when torch_corr was installed" in sentence
    assert "reinstall with a C++17 compiler" in sentence


FAR_TAPS = [
    ("n1c1-x1x5-o3-k2x300-p4x29948-d7x200", torch.float64),
    ("n1c1-x40x3000-o4-k1x5-p0x6000-d1x3000", torch.float32),
    ("n1c1-x1x5-o4-k1x1023-p0x66000-d1x129", torch.float32),
    ("n1c1-x1x5-o4-k1x8192-p0x530000-d1x129", torch.float32),
    ("n1c1-x1x5-o4-k8x127-p7x13000-d1x200", torch.float32),
    ("n1c3-x1x1-o2-k2x8193-s2x3-p1,1x1638787,0-d1x200", torch.bfloat16),
]


@each_isa
@each_map
@settings(max_examples=40)
@example(Problem.parse(FAR_TAPS[0][0]), FAR_TAPS[0][1])
@given(problem=long_axes(), dtype=st.sampled_from(FLOATS))
def test_scratch_is_within_workspace(
    isa: str, map: MapName, problem: Problem, dtype: torch.dtype
) -> None:
    """The kernels measure ``last_scratch``; ``workspace`` predicts it from copied constants."""
    assert_scratch_is_stated(isa, map, problem, dtype, CONTIGUOUS)
    assert_scratch_is_stated(isa, map, depthwise(problem, 40), dtype, LAST)


def assert_scratch_is_stated(
    isa: str, map: MapName, problem: Problem, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    getattr(Direct(isa=isa), map)(problem, *some(problem, map, dtype, layout=layout).values())
    # The workspace grows by this with each thread; the copies of the weight do not.
    where = replace(request(problem, map, dtype=dtype), channels_last=layout == LAST)
    before, stated = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            stated.append(Direct(isa=isa).workspace(where))
    finally:
        torch.set_num_threads(before)
    assert compiled.last_scratch() <= stated[1] - stated[0]


@pytest.mark.parametrize(
    ("text", "dtype"),
    [
        *((text, torch.float64) for text in (
            "n1c1-x200x2100-o4-k3", "n1c1-x200x2100-o4-k64x1", "n1c5-x40x2100-o6-k31x31"
        )),
        *FAR_TAPS,
    ],
)  # fmt: skip
def test_scratch_of_wide_rows_is_within_workspace(text: str, dtype: torch.dtype) -> None:
    """Wide packed rows, and taps that are many or far apart, need the most scratch memory."""
    for map in ("grad_weight",) if "x2100" in text else MAPS:
        assert_scratch_is_stated("", map, Problem.parse(text), dtype, CONTIGUOUS)


@pytest.mark.parametrize(
    "text",
    [
        "n1c9000-x4x4-o9000-k3-p1-g9000",
        "n1c16-x3x1100-o16-k1x512-d1x2-g16",
        "n1c64-x300-o64-k31-g64",
    ],
)
def test_scratch_of_many_channels_and_wide_kernels_is_within_workspace(text: str) -> None:
    for map in MAPS:
        assert_scratch_is_stated("", map, Problem.parse(text), torch.float32, LAST)


def test_a_map_without_work_takes_no_scratch() -> None:
    check(Problem.parse("n1c1-x8x8-o1-k3"), "forward", torch.float32, "")
    assert compiled.last_scratch() > 0
    check(Problem.parse("n0c1-x8x8-o1-k3"), "forward", torch.float32, "")
    assert compiled.last_scratch() == 0


@each_map
@each_dtype
@each_layout
def test_operands_that_are_not_aligned(
    map: MapName, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    """As from ``torch.frombuffer``, or a file mapped into memory."""
    problem = Problem.parse("n1c16-x9x12-o16-k3-g16")
    operands = list(some(problem, map, dtype, layout=layout).values())
    run = getattr(Direct(), map)
    expected = run(problem, *operands)
    apart = []
    for each in operands:
        memory = bytearray(each.numel() * each.element_size() + 8)
        flat = torch.frombuffer(memory, dtype=dtype, offset=1, count=each.numel())
        apart.append(flat.as_strided(each.shape, each.stride()).copy_(each))
    assert apart[0].data_ptr() % apart[0].element_size()
    assert torch.equal(run(problem, *apart), expected)
