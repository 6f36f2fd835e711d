"""What the laws do not ask of fft: both engines at any tiling, its bound on large images, its
workspace."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from support.laws import assert_right
from support.maps import OPERANDS, reference, request, some
from support.memory import Peak
from torch_corr import FFT, MAPS, Naive, Problem, corr2d
from torch_corr.algorithms.fft import algorithm as fft
from torch_corr.algorithms.fft import engine_batched, plans, search
from torch_corr.algorithms.fft.tiling import (
    GradInputAxis,
    aligned_length,
    fast_length,
    grad_input_as_forward,
)
from torch_corr.request import MapName, Request
from torch_corr.testing import declared, error_bound

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class OnCuda(FFT):
    """Runs CUDA's plans, wherever its operands lie."""

    def _plan(self, request: Request) -> plans.TransformPlan:
        return super()._plan(replace(request, device=CUDA))


plans.RATES_OF["batched alone"] = replace(plans.CUDA, engines=("batched",))


class Batched(FFT):
    """Plans of the engine for devices alone."""

    def _plan(self, request: Request) -> plans.TransformPlan:
        dtype = request.dtype
        sizes = self.rates_dtype(dtype).itemsize, dtype.itemsize
        options = self.tile, self.workspace_limit, "batched alone"
        return search.plan(request.problem, request.map, *sizes, dtype.is_complex, *options)


ENGINE_DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)

# In the dtype of the operands, and in double precision.
KINDS = [each(double=double) for double in (False, True) for each in (FFT, OnCuda, Batched)]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=repr)


def some_problem(choose: random.Random) -> Problem:
    while True:
        groups = choose.choice([1, 1, 2, 3])
        try:
            return Problem(
                batch=choose.choice([1, 2, 3]),
                in_channels=groups * choose.randint(1, 3),
                size=(choose.randint(1, 30), choose.randint(1, 30)),
                out_channels=groups * choose.randint(1, 3),
                kernel=(choose.randint(1, 7), choose.randint(1, 7)),
                stride=(choose.randint(1, 4), choose.randint(1, 3)),
                padding=(
                    (choose.randint(0, 9), choose.randint(0, 4)),
                    (choose.randint(0, 3), choose.randint(0, 9)),
                ),
                dilation=(choose.randint(1, 3), choose.randint(1, 3)),
                groups=groups,
            )
        except RuntimeError:
            continue


@pytest.mark.parametrize("seed", range(40))
def test_every_engine_computes_the_three_maps_at_any_tiling(seed: int) -> None:
    """Relative to the operands' norms, with eight terms more for each sample of a transform."""
    choose = random.Random(seed)
    torch.manual_seed(seed)
    problem, dtype = some_problem(choose), choose.choice(ENGINE_DTYPES)
    tile, limit = choose.choice([None, 8, 16, 33]), choose.choice([2**28, 3 * 10**5])
    axes = choose.choice(search.tilings(problem, tile, fast_length))
    for map in MAPS:
        operands = some(problem, map, dtype)
        expected = reference(problem, map, operands)
        lengths = axes[0].length + axes[1].length
        norms = float(operands[0].norm()) * float(operands[1].norm())
        spread = torch.full_like(expected.magnitude, norms)
        allowed = expected._replace(magnitude=spread, terms=expected.terms + 8 * lengths)
        bound = error_bound(allowed, dtype)
        for engine, run in fft._RUNS.items():
            machine = plans.CUDA if engine == "batched" else plans.CPU
            make = search._PLANNERS[engine]
            task = plans.Task(problem, map, *2 * (dtype.itemsize,), dtype.is_complex, axes)
            plan = make(task, limit, machine)
            assert plan is not None
            if engine == "batched" and map == "grad_input" and choose.random() < 0.5:
                plan = Batched(tile, limit)._plan(request(problem, map, CUDA, dtype))
            result = operands[0].new_full(expected.value.shape, float("nan"))
            if map == "grad_input":
                result.zero_()
            run(plan, *operands, result, result.new_empty(0))
            error = (result - expected.value).abs()
            assert (error <= bound).all(), (str(problem), map, plan)


@pytest.mark.parametrize("text", ["n1c1-x100x90-o1-k21-p10", "n2c16-x40x40-o16-k7-p3-g2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.float64], ids=str)
@pytest.mark.parametrize("huge", [1.0, 1e12])
@each_kind
def test_the_error_keeps_within_its_bound(
    kind: FFT, text: str, dtype: torch.dtype, huge: float
) -> None:
    """A huge pixel as well, whose norm the bound is relative to."""
    problem = Problem.parse(text)
    for map in MAPS:
        operands = some(problem, map, dtype)
        operands[0][0, 0, 0, 0] = huge
        result = getattr(kind, map)(problem, *operands)
        assert_right(result, problem, **dict(zip(OPERANDS[map], operands)), algorithm=kind)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize("limit", [2**28, 2**20, 5 * 10**5])
@pytest.mark.parametrize("text", ["n2c3-x60x50-o4-k9-p4", "n1c4-x90x40-o4-k5x7-s2x1-g2"])
@pytest.mark.parametrize("map", MAPS)
@pytest.mark.parametrize("kind", KINDS[3:], ids=repr)
def test_in_double_precision_a_result_is_rounded_once(
    kind: FFT, map: MapName, text: str, limit: int, dtype: torch.dtype
) -> None:
    """In one piece and in many; some of these add to the same pixels."""
    problem, algorithm = Problem.parse(text), replace(kind, workspace_limit=limit)
    operands = some(problem, map, dtype)
    result = getattr(algorithm, map)(problem, *operands)
    assert result.dtype == dtype
    wide = [each.to(algorithm.rates_dtype(dtype)) for each in operands]
    exact = getattr(Naive(), map)(problem, *wide)
    before = algorithm.error_before_rounding(request(problem, map, dtype=dtype))
    before *= float(wide[0].norm()) * float(wide[1].norm())
    assert before < 1e-8
    parts = ((each.real, each.imag) if dtype.is_complex else (each,) for each in (result, exact))
    for ours, theirs in zip(*parts):
        # Real and imaginary parts are rounded each by itself.
        rounding = theirs.abs() * torch.finfo(torch.float32).eps / 2
        assert ((ours - theirs).abs() <= rounding + before).all()


def test_pieces_that_add_up_are_tried() -> None:
    """By the test above: an input's gradient from several rows of tiles, or outputs."""
    plans = [
        replace(kind, workspace_limit=limit)._plan(request(Problem.parse(text), "grad_input"))
        for kind in KINDS[3:]
        for text in ("n2c3-x60x50-o4-k9-p4", "n1c4-x90x40-o4-k5x7-s2x1-g2")
        for limit in (2**28, 2**20, 5 * 10**5)
    ]
    seen = {(plan.engine, plan.accumulates) for plan in plans}
    assert {(engine, True) for engine in fft._RUNS} <= seen
    assert {("fft", False), ("batched", False)} <= seen


def test_the_bound_is_not_vacuous() -> None:
    """It is far below the result, and a result off by a thousandth fails."""
    problem = Problem.parse("n1c1-x64x64-o1-k9")
    x, w = some(problem, "forward", torch.float32)
    expected = reference(problem, "forward", [x, w])
    bound = declared(FFT()).bound(problem, expected, (x, w, None), torch.float32)
    assert bound.max() < 1e-2 * expected.value.abs().max()
    with pytest.raises(AssertionError):
        assert_right(
            1.01 * FFT().forward(problem, x, w), problem, input=x, weight=w, algorithm=FFT()
        )


def test_a_huge_pixel_blurs_its_own_tile_only() -> None:
    problem = Problem.parse("n1c1-x300x300-o1-k5")
    x, w = some(problem, "forward", torch.float32)
    clean = FFT(tile=64).forward(problem, x, w)[..., 64:, 64:]
    x[0, 0, 0, 0] = 1e30
    assert torch.equal(FFT(tile=64).forward(problem, x, w)[..., 64:, 64:], clean)


@pytest.mark.parametrize("limit", [2**28, 2**23])
@pytest.mark.parametrize(
    "text",
    [
        "n4c8-x60x60-o16-k9",
        "n2c32-x56x56-o32-k15-p7-g32",
        "n1c1-x300x300-o4-k41-p20",
        "n2c3-x100x100-o16-k7-s2-p3",
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128], ids=str)
@each_kind
def test_stays_within_the_workspace_that_it_states(
    kind: FFT, text: str, limit: int, dtype: torch.dtype
) -> None:
    problem, algorithm = Problem.parse(text), replace(kind, workspace_limit=limit)
    if algorithm.refusals(request(problem, dtype=dtype)):
        assert limit == 2**23
        return
    for map in MAPS:
        operands = some(problem, map, dtype)
        stated = algorithm.workspace(request(problem, map, dtype=dtype))
        assert stated <= limit
        with Peak() as peak:
            result = getattr(algorithm, map)(problem, *operands)
        assert peak.most - result.numel() * result.element_size() <= stated


@pytest.mark.parametrize(
    "text", ["n1c1-x3x17-o1-k1x9-s1x2-p1,1x0,0", "n1c1-x67x754-o1-k2x148-s2x3", "n1c1-x9x3-o1-k7x1"]
)
def test_a_kernel_longer_than_the_image_is_wide_has_a_plan(text: str) -> None:
    """Although no tile of it is near to square."""
    problem = Problem.parse(text)
    assert FFT().refusals(request(problem)) == ()
    x, w = torch.randn(problem.input_shape), torch.randn(problem.weight_shape)
    assert_right(FFT().forward(problem, x, w), problem, input=x, weight=w, algorithm=FFT())
    assert torch.isfinite(corr2d(x, w, stride=problem.stride)).all()


def test_refusals_are_sentences() -> None:
    problem = Problem.parse("n1c1-x9x9-o1-k3")
    assert FFT().refusals(request(problem)) == ()
    for dtype in (torch.int32, torch.bool):
        (refusal,) = FFT().refusals(request(problem, dtype=dtype))
        assert str(dtype).removeprefix("torch.") in refusal
    (refusal,) = FFT(workspace_limit=100).refusals(request(problem))
    assert "workspace_limit" in refusal


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64], ids=str)
@pytest.mark.parametrize(
    "spelling",
    [
        "n1c1-x1x3-o1-k3x3-s2x1-p3,0x0,0",
        "n1c1-x3x1-o1-k3x3-s1x2-p0,0x3,0",
        "n2c2-x2x2-o2-k2x2-s5x5-p9,9x9,9",
    ],
)
@each_kind
def test_windows_on_nothing_but_padding(kind: FFT, spelling: str, dtype: torch.dtype) -> None:
    """No row of the image, or no column, lies under them: there is nothing to transform."""
    problem = Problem.parse(spelling)
    for map in MAPS:
        operands = some(problem, map, dtype)
        ours, theirs = (getattr(each, map)(problem, *operands) for each in (kind, Naive()))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


SQUARES = ["n4c64-x128-o64-k16", "n2c128-x256-o128-k16", "n1c128-x256-o128-k32"]


@pytest.mark.parametrize("text", SQUARES)
@pytest.mark.parametrize("map", MAPS)
def test_a_device_is_given_few_large_products(text: str, map: MapName) -> None:
    """Each operator waits for the host: a plan of a host's blocks has hundreds."""
    chosen = FFT()._plan(request(Problem.parse(text), map, CUDA))
    assert chosen.engine == "batched"
    assert chosen.workspace <= FFT().workspace_limit
    assert chosen.cost.calls < 150
    assert FFT()._plan(request(Problem.parse(text), map)).engine == "matrix"


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize("map", MAPS)
def test_a_device_goes_through_slabs_and_blocks(map: MapName, dtype: torch.dtype) -> None:
    """In pieces of images, rows of tiles and frequencies; the weight's spectrum is kept or not."""
    problem = Problem.parse("n3c6-x40x33-o9-k5x3-s1x2-p2,1x1,3-d1x2-g3")
    operands = some(problem, map, dtype)
    expected, seen = reference(problem, map, operands), set()
    (axes,) = search.tilings(problem, 16, aligned_length)
    tilings = [axes]
    if map == "grad_input":
        problem = replace(problem, stride=(1, 1))
        operands = some(problem, map, dtype)
        expected = reference(problem, map, operands)
        (axes,) = search.tilings(problem, 16, aligned_length)
        other = grad_input_as_forward(problem)
        assert other is not None
        ((down, across),) = search.tilings(other, 16, aligned_length)
        tilings = [axes, (GradInputAxis.of(down), GradInputAxis.of(across))]
    for axes in tilings:
        for limit in (10**5, 2 * 10**5, 3 * 10**5, 4 * 10**5, 10**6, 10**7):
            task = plans.Task(problem, map, *2 * (dtype.itemsize,), dtype.is_complex, axes)
            made = engine_batched.make_plan(task, limit, plans.CUDA)
            assert made is not None
            many = made.per_slab[0] < 3, made.per_slab[1] < axes[0].tiles
            for hold in (False, True) if map != "grad_weight" and any(many) else (False,):
                for block in {1, made.block, axes[1].length}:
                    result = expected.value.new_full(expected.value.shape, float("nan")).to(dtype)
                    if map == "grad_input":
                        result.zero_()
                    plan = replace(made, block=block, hold=hold)
                    engine_batched.run(plan, *operands, result, result.new_empty(0))
                    torch.testing.assert_close(
                        result.to(expected.value.dtype), expected.value, rtol=1e-4, atol=1e-3
                    )
                    seen.add((*many, hold))
    assert (False, False, False) in seen
    assert (True, True, False) in seen
    assert map == "grad_weight" or (True, True, True) in seen


@pytest.mark.parametrize("map", MAPS)
def test_a_device_is_not_waited_for(map: MapName) -> None:
    """On meta, a tensor that is asked for a value raises."""
    problem = Problem.parse(SQUARES[1])
    first, second = (
        torch.empty(getattr(problem, f"{slot}_shape"), device="meta") for slot in OPERANDS[map]
    )
    shape = getattr(problem, f"{plans.SLOTS[map][2]}_shape")
    assert getattr(OnCuda(), map)(problem, first, second).shape == shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.float64], ids=str)
def test_products_in_tf32_are_allowed_for(dtype: torch.dtype) -> None:
    """On a device alone, and where products transform and sum."""
    problem = Problem.parse(SQUARES[0])

    def constants() -> list[float]:
        requests = (request(problem, map, device, dtype) for map in MAPS for device in (CPU, CUDA))
        return [*map(FFT().error_constant, requests)]

    torch.backends.cuda.matmul.allow_tf32 = False
    exact = constants()
    torch.backends.cuda.matmul.allow_tf32 = True
    allowed = constants()
    assert allowed[::2] == exact[::2]
    factor = 1 if dtype == torch.float64 else 2**13
    assert allowed[1::2] == [factor * constant for constant in exact[1::2]]


@pytest.mark.parametrize("map", MAPS)
def test_no_batch_of_products_is_larger_than_a_launch(map: MapName) -> None:
    """Of a signal so long that it has more tiles than a batch may have products."""
    for width in (1_000_000, 2_000_000):
        problem = Problem.parse(f"n1c1-x1x{width}-o1-k1x16")
        (axes,) = search.tilings(problem, 32, aligned_length)
        made = engine_batched.make_plan(
            plans.Task(problem, map, 4, 4, False, axes), 2**40, plans.CUDA
        )
        assert (made is None) == (axes[1].tiles >= 2**16) == (width == 2_000_000)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_no_channels_are_planned_for(device: str) -> None:
    """Turned about, as ``grad_input`` on CUDA is, such a problem would have no outputs."""
    problem = Problem.of((2, 0, 4, 4), (3, 0, 2, 2))
    assert FFT().refusals(request(problem, device=device)) == ()
