"""The check of transforms computes the same from planes by compiled functions and by operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from support.maps import some
from support.needs import KERNELS, needs
from torch_corr import MAPS, Naive, Problem, native
from torch_corr.algorithms import MapName
from torch_corr.algorithms.fft import certificate, scans

ISAS = native.compiled.isas() if native.compiled else []
SIZES = st.tuples(
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([1, 2, 7, 64, 129]),
    st.sampled_from([1, 31, 32, 33, 130]),
)
DTYPES = (torch.float32, torch.float64, torch.complex64)
PROBLEMS = (
    "n1c1-x24x31-o1-k7x5-p3x2",
    "n2c3-x15-o2-k5",
    "n2c4-x14x13-o6-k3x4-p2-g2",
    "n1c2-x19-o2-k4-s2x3-p3-d2x1-g2",
    "n2c2-x5x9-o4-k5x2-s3-p1x4-g2",
    "n1c1-x70-o1-k31-p15",
)


def planes(size: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(size, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["operators", *ISAS])
def way(request: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "operators":
        monkeypatch.setattr(native, "compiled", None)
    else:
        monkeypatch.setattr(native, "requested_isa", lambda: request.param)


def bounds_by_naive(problem: Problem, map: MapName, operands: list[Tensor]) -> Tensor:
    """The sums of products of norms: the map itself, of planes that are one number each."""
    one = Problem(
        batch=problem.batch,
        in_channels=problem.in_channels,
        size=(1, 1),
        out_channels=problem.out_channels,
        kernel=(1, 1),
        groups=problem.groups,
    )
    norms = [each.abs().double().square().sum((2, 3), keepdim=True).sqrt() for each in operands]
    result: Tensor = getattr(Naive(), map)(one, *norms)
    return result


@pytest.mark.parametrize("map", MAPS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("text", PROBLEMS)
@pytest.mark.usefixtures("way")
def test_error_bounds_are_sums_of_products_of_norms(
    map: MapName, dtype: torch.dtype, text: str
) -> None:
    problem = Problem.parse(text)
    operands = some(problem, map, dtype)
    operands[0][0, 0, 0, 0] = 1e25  # its square is beyond float32
    operands[1][-1, -1] *= 1e-30
    expected = 1e-13 * (1 + 2.0**-20) * bounds_by_naive(problem, map, operands)
    bounds = certificate.error_bounds(problem, map, *operands, 1e-13, 2.0**-14)
    torch.testing.assert_close(bounds, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38, 1e141, 1e-131])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.usefixtures("way")
def test_error_bounds_are_infinite_where_squares_may_underflow_or_overflow(
    value: float, dtype: torch.dtype, which: int
) -> None:
    """In the planes that read such a number. In float32 1e-131 is zero."""
    value = torch.tensor(value, dtype=torch.float64).to(dtype).item()  # 1e141 may become infinite
    problem = Problem.parse("n2c1-x12x90-o3-k12x80")
    operands = some(problem, "forward", dtype)
    operands[which].clamp_(0.1, 1)
    operands[which][-1, 0, 5, 7] = value
    bounds = certificate.error_bounds(problem, "forward", *operands, 1e-13, 2.0**-14)
    met = torch.zeros(2, 3, 1, 1, dtype=torch.bool)
    met[(-1,) if which == 0 else (slice(None), -1)] = True
    if value == 0 or 1e37 < value < 1e39:
        met[:] = False
    assert torch.equal(bounds == torch.inf, met)


@settings(max_examples=60)
@given(
    size=SIZES,
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
    level=st.sampled_from([0.0, 1e-42, 1e-3, 0.1, 3.0]),
)
@pytest.mark.usefixtures("way")
def test_uncertified_by_size_finds_every_small_number(
    size: tuple[int, ...], dtype: torch.dtype, seed: int, level: float
) -> None:
    """A subnormal number too, unless its bound is zero; and NaN."""
    values, tolerance = planes(size, dtype, seed), 2.0**-14
    values[-1, -1, -1, 0] = 1e-39 if dtype.to_real() == torch.float32 else 1e-310
    values[0, 0, 0, -1] = float("nan")
    bounds = planes((*size[:2], 1, 1), torch.float64, seed + 1).abs() * level * tolerance
    bounds[0] *= seed % 2
    least = (1 + 1 / tolerance) * certificate.MARGIN * bounds
    least = least.clamp(min=torch.finfo(dtype).tiny).where(bounds > 0, 0)
    expected = (~(values.abs() >= least.to(dtype.to_real()))).flatten().nonzero()[:, 0]
    found = certificate.uncertified_by_size(values, bounds, tolerance, len(expected))
    assert found is not None
    assert found.tolist() == expected.tolist()
    assert certificate.uncertified_by_size(values, bounds, tolerance, len(expected) - 1) is None
    found = certificate.uncertified_by_size(values.nan_to_num(1.0), bounds * 0, tolerance, 0)
    assert found is not None
    assert found.shape == (0,)


@pytest.mark.parametrize("map", MAPS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("text", PROBLEMS)
@pytest.mark.usefixtures("way")
def test_recompute_gives_the_definition(map: MapName, dtype: torch.dtype, text: str) -> None:
    problem = Problem.parse(text)
    operands = some(problem, map, dtype)
    wide = [each.to(certificate.double_precision(dtype)) for each in operands]
    expected = getattr(Naive(), map)(problem, *wide).flatten()
    points = torch.randperm(len(expected))[:1000]
    sums = certificate.recompute(problem, map, *operands, points)
    torch.testing.assert_close(sums, expected[points], rtol=1e-12, atol=1e-12)
    assert certificate.recompute(problem, map, *operands, points[:0]).shape == (0,)


def unaligned(x: Tensor) -> Tensor:
    memory = bytearray(x.element_size() * x.numel() + 1)
    apart = torch.frombuffer(memory, dtype=x.dtype, offset=1, count=x.numel())
    assert apart.data_ptr() % x.element_size()
    return apart.view(x.shape).copy_(x)


PLACES: dict[str, Callable[[Tensor], Tensor]] = {
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "gaps": lambda x: torch.kron(x, torch.ones(2, 2))[..., ::2, ::2],
    "unaligned": unaligned,
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.usefixtures("way")
def test_operands_that_are_not_dense_or_not_aligned(place: str) -> None:
    problem = Problem.parse("n2c3-x40x50-o2-k5")
    image, weight = some(problem, "forward", torch.float32)
    both = PLACES[place](image), image
    assert torch.equal(*both)
    ours, theirs = (
        certificate.error_bounds(problem, "forward", x, weight, 1e-13, 1e-4) for x in both
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=0)
    bounds = torch.full((2, 3, 1, 1), 1e-6, dtype=torch.float64)
    found = [certificate.uncertified_by_size(x, bounds, 1e-4, x.numel()) for x in both]
    assert found[0] is not None
    assert found[1] is not None
    assert found[0].tolist() == found[1].tolist()
    points = torch.arange(500)
    ours, theirs = (certificate.recompute(problem, "forward", x, weight, points) for x in both)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("map", MAPS)
@pytest.mark.parametrize("text", ["n0c2-x12-o3-k3", "n2c0-x12-o3-k3", "n2c2-x12-o0-k3"])
@pytest.mark.usefixtures("way")
def test_error_bounds_of_empty_operands_are_zero(map: MapName, text: str) -> None:
    """A compiled pass over no planes once divided by zero, which ended the process."""
    problem = Problem.parse(text)
    bounds = certificate.error_bounds(problem, map, *some(problem, map, torch.float32), 1.0, 1e-4)
    assert bounds.shape == scans.result_planes(problem, map)
    assert not bounds.any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.usefixtures("way")
def test_error_bounds_are_infinite_where_subnormal_numbers_are_flushed(dtype: torch.dtype) -> None:
    """Only in the planes that have one, and in float64 without flushing too."""
    problem = Problem.parse("n3c1-x24x130-o2-k5")
    x, w = some(problem, "forward", dtype)
    x[1] = 0
    x[2, 0, 9, 120] = torch.finfo(dtype).tiny / 4

    def infinite() -> list[bool]:
        bounds = certificate.error_bounds(problem, "forward", x, w, 1e-13, 1e-4)
        return (bounds == torch.inf).flatten().tolist()

    assert infinite() == [False] * 4 + [dtype == torch.float64] * 2
    if not torch.set_flush_denormal(True):
        pytest.skip("this machine cannot flush subnormal numbers")
    assert infinite() == [False] * 4 + [True] * 2


def test_larger_operands_are_widened_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    values = planes((3, 5, 12, 11), torch.float32, 0)
    expected = certificate.of_planes(values, torch.linalg.vector_norm)
    for most in (1, 132, 300, 700):
        monkeypatch.setattr(certificate, "WIDENED", most)
        ours = certificate.of_planes(values, torch.linalg.vector_norm)
        torch.testing.assert_close(ours, expected, rtol=1e-13, atol=0)


COMPILED: dict[str, list[tuple[int, Any, str]]] = {
    "error_bounds": [
        (0, 3, "unknown map code 3"),
        (0, -1, "unknown map code -1"),
        (1, 0, "first operand has no address"),
        (2, 7, "first operand has 7 elements, the sizes imply 6"),
        (3, 2, "second operand is not aligned"),
        (5, 0, "bounds has no address"),
        (6, 2, "bounds has 2 elements, the sizes imply 1"),
        (11, (1, 1, 2, 3, 1, 3, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1), "row kernel spans 3"),
        (12, 2, "dtype code 2 is neither float32 nor float64"),
        (13, 0, "threads=0 is outside"),
        (14, "none", "no instruction set 'none'"),
    ],
    "results_at": [
        (0, 3, "unknown map code 3"),
        (4, 3, "second operand has 3 elements, the sizes imply 1"),
        (5, 0, "points has no address"),
        (6, 4, "sums is not aligned"),
        (9, 2, "dtype code 2 is neither float32 nor float64"),
        (10, 4097, "threads=4097 is outside"),
    ],
    "below": [
        (0, 0, "planes has no address"),
        (1, 7, "7 elements are not 2 planes"),
        (1, 0, "0 elements are not 2 planes"),
        (2, 0, "bounds has no address"),
        (3, 0, "6 elements are not 0 planes"),
        (7, 2, "dtype code 2 is neither float32 nor float64"),
        (8, 0, "threads=0 is outside"),
        (9, "none", "no instruction set 'none'"),
    ],
}


@needs(KERNELS)
@pytest.mark.parametrize(
    ("name", "at", "value", "message"),
    [(name, *each) for name, cases in COMPILED.items() for each in cases],
)
def test_compiled_functions_refuse_bad_arguments(
    name: str, at: int, value: Any, message: str
) -> None:
    x, w = torch.ones(1, 1, 2, 3), torch.full((1, 1, 1, 1), 2.0)
    numbers, points = torch.empty(2, dtype=torch.float64), torch.tensor([5, 0])
    sizes = native.sizes(Problem.parse("n1c1-x2x3-o1-k1"))
    map = 0, x.data_ptr(), 6, w.data_ptr(), 1
    arguments: list[Any] = {
        "error_bounds": [*map, numbers.data_ptr(), 1, 1.0, 0, 1e9, 1e9, sizes, 0, 1, ""],
        "results_at": [*map, points.data_ptr(), numbers.data_ptr(), 2, sizes, 0, 1],
        "below": [x.data_ptr(), 6, numbers.data_ptr(), 2, 1.0, 0.0, 6, 0, 1, ""],
    }[name]
    numbers.fill_(2)
    function = getattr(native.compiled, name)
    result = function(*arguments)
    if name == "below":
        assert result == [0, 1, 2, 3, 4, 5]
    else:
        assert numbers.tolist() == ([2 * 6**0.5, 2] if name == "error_bounds" else [2, 2])
    arguments[at] = value
    with pytest.raises(ValueError, match=message):
        function(*arguments)


@needs(KERNELS)
@pytest.mark.parametrize("point", [-1, 6])
def test_results_at_refuses_points_outside_the_result(point: int) -> None:
    x, sums, points = torch.ones(6), torch.empty(1, dtype=torch.float64), torch.tensor([point])
    sizes = native.sizes(Problem.parse("n1c1-x2x3-o1-k1"))
    operands = x.data_ptr(), 6, x.data_ptr(), 1
    with pytest.raises(ValueError, match=f"point {point} is not in the result"):
        native.compiled.results_at(0, *operands, points.data_ptr(), sums.data_ptr(), 1, sizes, 0, 1)
