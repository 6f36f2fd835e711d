"""``fft`` under ``auto``: each result within its tolerance, exact zeros, no wrong sign."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from support.maps import OPERANDS, reference, request, some
from support.memory import Peak
from torch_corr import FFT, MAPS, Auto, Naive, Problem, Triton, Unfold, corr2d, plan
from torch_corr.algorithms import Algorithm, CheckedFFT, MapName
from torch_corr.algorithms.fft import certificate
from torch_corr.algorithms.fft import checked as checked_fft
from torch_corr.request import Request
from torch_corr.testing import Reference, error_bound

CPU = torch.device("cpu")
DOUBLE = FFT(double=True)
CHECKED = CheckedFFT(DOUBLE, Unfold())
DTYPES = (torch.float32, torch.float64, torch.complex64)
PROBLEMS = (
    "n1c1-x24x31-o1-k7x5-p3x2",
    "n2c3-x15-o2-k5",
    "n1c1-x20-o1-k6-p5",
    "n2c4-x14x13-o6-k3x4-p2-g2",
    "n1c2-x19-o2-k4-s2x3-p3-d2x1-g2",
    "n3c1-x9x40-o2-k3x11-p0x10",
)


class NoFallback(Unfold):
    """Fails where it is run."""

    def _refuse(self, *_: Any) -> Tensor:
        raise AssertionError("the fallback was run")

    forward = grad_input = grad_weight = _refuse


CERTIFIED = CheckedFFT(DOUBLE, NoFallback())


def assert_keeps_promise(
    result: Tensor, expected: Reference, operands: list[Tensor], tolerance: float
) -> None:
    """|error| <= t S and the rounding of a sum in the result's dtype, unless it overflows; 0 where
    S is 0; not negative where no product is."""
    value, size = expected.value, expected.magnitude
    finite = size <= torch.finfo(result.dtype).max / 2
    allowed = tolerance * size + error_bound(expected, result.dtype)
    error = (result.to(value.dtype) - value).abs()
    assert (error <= allowed)[finite].all(), (error / size)[finite].nan_to_num().max()
    assert (result[size == 0] == 0).all()
    assert not result[value.abs() > 2 * torch.finfo(result.dtype).max].isfinite().any()
    if not result.is_complex() and all((each >= 0).all() for each in operands):
        assert (result >= 0).all()


def plane(seed: int, kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Numbers of a kind that is hard for a transform."""
    torch.manual_seed(seed)
    noise, most = torch.randn(shape), torch.finfo(dtype).max
    where = torch.rand(shape)
    height, width = shape[2:]
    made = {
        "noise": noise,
        "positive": noise.abs(),
        "point": torch.where(where == where.amax(), 1e4, 0.0),
        "two points": torch.where(where == where.amax(), 1e4, 0.0)
        + torch.where(where == where.amin(), 1e-3, 0.0),
        "rows": noise * (torch.arange(height) % 4 == seed % 4)[:, None],
        "columns": noise * (torch.arange(width) % 2 == seed % 2),
        "faint rows": noise * torch.where(torch.arange(height) % 4 == seed % 4, 1e-9, 1)[:, None],
        "block": noise * (where < 0.3) * (torch.arange(width) < width // 2),
        "faint block": noise * torch.where(torch.arange(width) < width // 2, 1.0, 1e-8),
        "ramp": noise * 10.0 ** torch.linspace(-18, 18, width),
        "steep ramp": noise * 10.0 ** torch.linspace(-25, 12, height)[:, None],
        "sparse": noise * (where < 0.1),
        "mask": (where < 0.2).float(),
        "alternating": 1.0 - 2.0 * (torch.arange(width) % 2),
        "subnormal": noise * 1e-40,
        "faint and bright": torch.where(where < 0.5, noise * 1e-30, noise),
    }.get(kind, torch.zeros(()))
    if kind in ("huge", "larger", "half of it larger"):
        # The square of the largest is beyond float32's transform in double precision.
        made = noise.to(dtype) * most ** (0.45 if kind == "huge" else 0.95)
        return made * (torch.arange(width) < width // 2) if "half" in kind else made
    if kind == "least":
        return noise.to(dtype) * torch.finfo(dtype).smallest_normal
    return made.expand(shape).to(dtype).clone()


KINDS = (
    *("noise", "positive", "point", "two points", "rows", "columns", "faint rows", "block"),
    *("faint block", "ramp", "steep ramp", "sparse", "mask", "alternating", "subnormal"),
    *("faint and bright", "huge", "larger", "half of it larger", "least", "zeros"),
)


def planes(
    problem: Problem, map: str, kinds: tuple[str, str], dtype: torch.dtype, seed: int
) -> Any:
    """Operands of a map, each of its kind."""
    shapes = (getattr(problem, f"{slot}_shape") for slot in OPERANDS[map])
    return [plane(seed + i, *each, dtype) for i, each in enumerate(zip(kinds, shapes))]


each_hard_problem = given(
    text=st.sampled_from(PROBLEMS),
    kinds=st.tuples(st.sampled_from(KINDS), st.sampled_from(KINDS)),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**20),
)


@pytest.mark.parametrize("map", MAPS)
@settings(max_examples=150)
@each_hard_problem
def test_each_result_keeps_its_promise(
    map: MapName, text: str, kinds: tuple[str, str], dtype: torch.dtype, seed: int
) -> None:
    problem = Problem.parse(text)
    operands = planes(problem, map, kinds, dtype, seed)
    result = getattr(CHECKED, map)(problem, *operands)
    expected = reference(problem, map, operands)
    assert_keeps_promise(result, expected, operands, CHECKED.tolerance(dtype))


@pytest.mark.parametrize("map", MAPS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("text", PROBLEMS)
def test_usual_images_are_certified(map: MapName, dtype: torch.dtype, text: str) -> None:
    """Noise, non-negative images, masks and nothing at all do not need the fallback."""
    problem = Problem.parse(text)
    operands = some(problem, map, dtype)
    # Of two products that cancel in double precision more results than few have no certificate.
    algorithm = CHECKED if "-s2" in text and dtype == torch.float64 else CERTIFIED
    for first, second in (
        operands,
        [each.abs() for each in operands],
        [(each.abs() > 1).to(dtype) for each in operands],
        [torch.zeros_like(operands[0]), operands[1]],
    ):
        result = getattr(algorithm, map)(problem, first, second)
        expected = reference(problem, map, [first, second])
        assert_keeps_promise(result, expected, [first, second], CHECKED.tolerance(dtype))


@pytest.mark.parametrize("map", MAPS)
def test_few_results_are_recomputed_one_by_one(map: MapName, monkeypatch: Any) -> None:
    """A sum that cancels to nearly nothing has no certificate; the fallback is not run for it."""
    counts = []
    recompute = checked_fft.recompute

    def spy(*arguments: Any) -> Tensor:
        counts.append(len(arguments[-1]))
        return recompute(*arguments)

    monkeypatch.setattr(checked_fft, "recompute", spy)
    problem = Problem.parse("n1c1-x64-o1-k9-p4" if map != "grad_weight" else "n1c1-x64-o1-k40-p4")
    operands = some(problem, map, torch.float32)
    exact = getattr(Unfold(), map)(problem, *(each.double() for each in operands))
    at = (0, 0, exact.shape[2] // 2, exact.shape[3] // 2)
    # One number in the first operand, alone under one tap, settles this one result.
    wide = [operands[0].double(), operands[1].double()]
    place = {"forward": (0, 0, *at[2:]), "grad_input": (0, 0, *at[2:]), "grad_weight": (0, 0, 0, 0)}
    tap = {"forward": (0, 0, 4, 4), "grad_input": (0, 0, 4, 4), "grad_weight": None}[map]
    if tap is None:
        met = (0, 0, at[2] - 4 + 5, at[3] - 4 + 5)  # under output pixel (5, 5)
        wide[0][met] -= exact[at] / wide[1][0, 0, 5, 5]
    else:
        wide[0][place[map]] -= exact[at] / wide[1][tap]
    operands = [wide[0], wide[1]]
    result = getattr(CERTIFIED, map)(problem, *operands)
    assert len(counts) == 1
    assert 0 < counts[0] < 5
    expected = reference(problem, map, operands)
    assert_keeps_promise(result, expected, operands, CHECKED.tolerance(torch.float64))


@pytest.mark.parametrize("map", MAPS)
@pytest.mark.parametrize("kind", ["noise", "mask", "faint and bright"])
@pytest.mark.parametrize("text", ["n1c1-x300-o1-k31-p15", "n4c16-x40-o16-k9-g16", "n1c8-x64-o8-k9"])
def test_the_workspace_is_as_stated(map: MapName, kind: str, text: str) -> None:
    problem, dtype = Problem.parse(text), torch.float32
    first, second = planes(problem, map, (kind, kind), dtype, 0)
    with Peak() as peak:
        result = getattr(CHECKED, map)(problem, first, second)
    taken = peak.most - result.numel() * result.element_size()
    assert taken <= CHECKED.workspace(request(problem, map, dtype=dtype))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("map", MAPS)
def test_what_is_not_finite_stays_in_its_windows(map: MapName, bad: float) -> None:
    problem = Problem.parse("n1c2-x24-o2-k7-p3")
    for which in (0, 1):
        operands = some(problem, map, torch.float32)
        operands[which][0, 0, 2, 3] = bad
        expected = getattr(Unfold(), map)(problem, *operands)
        result = getattr(CHECKED, map)(problem, *operands)
        torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("map", MAPS)
@settings(max_examples=40)
@each_hard_problem
def test_a_device_finds_what_the_host_finds(
    map: MapName, text: str, kinds: tuple[str, str], dtype: torch.dtype, seed: int
) -> None:
    """The same operators without a branch: where it asks for no fallback, the promise is kept."""
    problem = Problem.parse(text)
    first, second = operands = planes(problem, map, kinds, dtype, seed)
    result = getattr(DOUBLE, map)(problem, first, second)
    constant = DOUBLE.error_before_rounding(request(problem, map, dtype=dtype))
    tolerance = CHECKED.tolerance(dtype)
    bounds = certificate.error_bounds(problem, map, first, second, constant, tolerance)
    result, redo = CHECKED._on_device(problem, map, (first, second), result, bounds)
    assert redo.dtype == torch.int32
    assert redo.shape == (1,)
    if not redo and bounds.isfinite().all():
        expected = reference(problem, map, operands)
        assert_keeps_promise(result, expected, operands, tolerance)
    elif kinds == ("noise", "mask") and dtype == torch.float32:
        raise AssertionError("the fallback was asked for")


# -- the cases of the reports, by the path that a caller takes ------------------------------------


@pytest.fixture
def transforms(monkeypatch: Any) -> list[str]:
    """``auto`` takes transforms, whatever the rates of the machine; the maps that it ran."""
    ran: list[str] = []
    run = CheckedFFT.run_map

    def spy(self: CheckedFFT, problem: Problem, map: MapName, *operands: Tensor) -> Tensor:
        ran.append(map)
        return run(self, problem, map, *operands)

    choose = Auto.choose

    def chosen(self: Auto, requests: Sequence[Request]) -> list[Algorithm]:
        direct = replace(self, error="componentwise")
        return [CheckedFFT(DOUBLE, choose(direct, each) or Naive()) for each in requests]

    monkeypatch.setattr(CheckedFFT, "run_map", spy)
    monkeypatch.setattr(Auto, "choose_each", chosen)
    return ran


def test_a_faint_point_beside_a_bright_one_is_accurate(transforms: list[str]) -> None:
    x = torch.zeros(1, 1, 512, 512)
    x[0, 0, 100, 100], x[0, 0, 103, 140] = 1e4, 1e-3
    y = corr2d(x, torch.ones(1, 1, 31, 31), padding=15)
    assert y[0, 0, 103, 140] == pytest.approx(1e-3, rel=1e-4)
    assert transforms == ["forward"]


@pytest.mark.parametrize("step", [2, 4])
def test_images_with_rows_or_pixels_left_out_are_accurate(step: int, transforms: Any) -> None:
    """Bayer planes, interlaced and zero-stuffed images: bright in some rows, faint in others."""
    torch.manual_seed(step)
    x = torch.rand(1, 1, 96, 96) * 1e-8
    x[..., ::step, :] = torch.rand(1, 1, 96 // step, 96)
    w = torch.zeros(1, 1, 15, 15)
    w[..., 1::step, :] = 1
    expected = reference(Problem.parse("n1c1-x96-o1-k15"), "forward", [x, w])
    assert_keeps_promise(corr2d(x, w), expected, [x, w], 1e-4)


def test_bounds_beyond_the_largest_number_certify_nothing(transforms: list[str]) -> None:
    """The transform's noise is beyond float32 there, and so is its bound: inf is not below inf."""
    torch.manual_seed(0)
    x = torch.zeros(1, 1, 128, 128)
    x[0, 0, 0, 0], x[0, 0, -1, -1] = 1e30, 1
    assert corr2d(x, torch.randn(1, 1, 33, 33) * 1e30)[0, 0, 60, 60] == 0
    x[..., :64] = 1e38
    assert corr2d(x, torch.full((1, 1, 33, 33), 1e38))[0, 0, 20, 20] == torch.inf
    assert transforms == ["forward", "forward"]


@pytest.mark.parametrize("units", [1, 2, 3, 4, 5, 100])
def test_results_of_the_least_numbers_are_kept(units: int, transforms: list[str]) -> None:
    """Only what the bound calls noise becomes zero."""
    x = torch.full((1, 1, 64, 64), units * 2.0**-149)
    w = torch.zeros(1, 1, 11, 11)
    w[0, 0, 5, 5] = 1
    assert torch.equal(corr2d(x, w, padding=5), x)
    assert transforms == ["forward"]


@pytest.mark.parametrize("at", [10, 200])
def test_zeros_stay_zero_where_a_thread_flushes_subnormal_numbers(at: int) -> None:
    """``torch.set_flush_denormal`` reaches one thread only: norms may be 0 of planes from which
    transforms on other threads make noise."""
    x, w = torch.zeros(1, 1, 256, 256), torch.rand(1, 1, 31, 31) * 1e30
    problem = Problem.of(x.shape, w.shape, padding=15)
    x[0, 0, at, at] = 1e-40
    CHECKED.forward(problem, x + 1, w)  # the other threads run and do not flush
    if not torch.set_flush_denormal(True):
        pytest.skip("this machine cannot flush subnormal numbers")
    y = CHECKED.forward(problem, x, w)
    torch.set_flush_denormal(False)
    assert (y >= 0).all()
    y[..., at - 15 : at + 16, at - 15 : at + 16] = 0
    assert (y == 0).all()


@pytest.mark.parametrize(
    ("text", "map"),
    [(f"n1c1-x64-o1-k31-s{2**50}", map) for map in MAPS]
    + [(f"n1c1-x4x90-o1-k1x64-d{2**50}x1", map) for map in MAPS]
    + [(f"n1c1-x4x4000-o1-k1x400-d{2**50}x1", "forward")],
)
def test_strides_and_dilations_past_the_compiled_range(text: str, map: MapName) -> None:
    problem = Problem.parse(text)
    operands = some(problem, map, torch.float32)
    expected = reference(problem, map, operands)
    result = getattr(CHECKED, map)(problem, *operands)
    assert_keeps_promise(result, expected, operands, CHECKED.tolerance(torch.float32))


def test_recomputed_results_ignore_the_default_device() -> None:
    problem = Problem.parse("n1c1-x64-o1-k9-p4")
    x, w = some(problem, "forward", torch.float64)
    y = Unfold().forward(problem, x, w)
    x[0, 0, 32, 32] -= y[0, 0, 32, 32] / w[0, 0, 4, 4]
    with torch.device("meta"):
        result = CERTIFIED.forward(problem, x, w)
    expected = reference(problem, "forward", [x, w])
    assert_keeps_promise(result, expected, [x, w], CHECKED.tolerance(torch.float64))


def test_zeros_stay_zero(transforms: list[str]) -> None:
    """A mask counts 4,900 windows; a receptive field has 961 pixels."""
    mask = torch.zeros(1, 1, 512, 512)
    mask[..., 200:240, 200:240] = 1
    w = torch.ones(1, 1, 31, 31)
    y = corr2d(mask, w, padding=15)
    assert ((y > 0).sum(), (y < 0).sum()) == (4900, 0)
    x = torch.rand(1, 1, 256, 256, requires_grad=True)
    y = corr2d(x, torch.rand(1, 1, 31, 31), padding=15)
    (field,) = torch.autograd.grad(y[0, 0, 100, 100], x)
    assert (field != 0).sum() == 961
    assert (field >= 0).all()
    assert transforms == ["forward", "forward", "grad_input"]


def test_zeros_stay_zero_in_dense_layers(transforms: list[str]) -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 8, 40, 40)
    x[..., 10:] = 0
    w = torch.rand(8, 8, 9, 9)
    y = corr2d(x, w)
    assert (y[..., 10:] == 0).all()
    assert (y >= 0).all()
    assert transforms == ["forward"]


# -- the check can fail ---------------------------------------------------------------------------


def broken_bounds(*arguments: Any) -> Tensor:
    return torch.zeros_like(certificate.error_bounds(*arguments))


def one_image_only(*arguments: Any) -> Tensor:
    bounds = certificate.error_bounds(*arguments)
    return bounds * (torch.arange(len(bounds))[:, None, None, None] == 0)


class Float32(CheckedFFT):
    """Transforms in the dtype of the operands."""

    def __post_init__(self) -> None:
        """Without the refusal."""


def wrong_products(equation: str, first: Tensor, second: Tensor) -> Tensor:
    return torch.einsum(equation, first.isfinite().double(), second.isfinite().double())


MISTAKES: dict[str, Any] = {
    "no bound": (checked_fft, "error_bounds", broken_bounds),
    "the bound of the first image alone": (checked_fft, "error_bounds", one_image_only),
    "all products are taken to be large": (certificate, "_least_of_products", wrong_products),
    "no tolerance to keep": (checked_fft, "TOLERANCES", dict.fromkeys(DTYPES, 1e30)),
    "single precision, double's bound": None,
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_check_is_found(mistake: str, monkeypatch: Any) -> None:
    """Each breaks the promise for a bright point in one of two images of faint noise."""
    problem = Problem.parse("n2c1-x40-o1-k9-p4")
    torch.manual_seed(0)
    single = MISTAKES[mistake] is None
    faint, bright = (1e-3, 1e4) if single else (1e-11, 1e6)
    x, w = faint * torch.rand(problem.input_shape), torch.rand(problem.weight_shape)
    x[1, 0, 3, 3] = bright
    expected = reference(problem, "forward", [x, w])
    assert_keeps_promise(CHECKED.forward(problem, x, w), expected, [x, w], 2.0**-14)
    algorithm = Float32(FFT(), Unfold()) if single else CHECKED
    if single:
        constant = FFT.error_before_rounding
        monkeypatch.setattr(
            FFT, "error_before_rounding", lambda self, *where: constant(DOUBLE, *where)
        )
    else:
        monkeypatch.setattr(*MISTAKES[mistake])
    with pytest.raises(AssertionError):
        assert_keeps_promise(algorithm.forward(problem, x, w), expected, [x, w], 2.0**-14)


def test_the_fallback_on_cuda_is_triton() -> None:
    problem = Problem.parse(PROBLEMS[0])
    (sentence,) = CHECKED.refusals(request(problem, device="cuda"))
    assert "the host would wait" in sentence
    for algorithm in (CHECKED, CheckedFFT(DOUBLE, Triton())):
        assert algorithm.refusals(request(problem, dtype=torch.int32))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("algorithm", [FFT(), CHECKED], ids=["fft", "checked"])
def test_half_precision_is_computed_in_float32_and_rounded_once(algorithm, dtype) -> None:
    problem = Problem.parse(PROBLEMS[0])
    for map in MAPS:
        operands = [torch.randn(each).to(dtype) for each in request(problem, map).shapes[:2]]
        run = getattr(algorithm, map)
        exact = run(problem, *(each.float() for each in operands))
        assert torch.equal(run(problem, *operands), exact.to(dtype))
        half, single = (
            algorithm.workspace(request(problem, map, dtype=each))
            for each in (dtype, torch.float32)
        )
        assert half >= single + 4 * sum(each.numel() for each in operands)


def test_auto_chooses_transforms_under_autocast() -> None:
    x, w = torch.randn(1, 1, 400, 400), torch.randn(1, 1, 91, 91)
    with torch.autocast("cpu", torch.bfloat16):
        assert isinstance(plan(x, w).forward, CheckedFFT)
        y = corr2d(x, w)
    exact = corr2d(x.bfloat16().double(), w.bfloat16().double(), algorithm="direct")
    assert y.dtype == torch.bfloat16
    assert (y - exact).abs().max() < 2**-8 * exact.abs().max()
