"""The Triton kernels: interpreted on the CPU, compiled for absent devices, and run on CUDA.

pip install -c constraints.txt -e ".[test,triton]"
TRITON_INTERPRET=1 pytest tests/algorithms/test_triton.py     # every configuration, on the CPU
pytest tests/algorithms/test_triton.py                        # compiled for sm_80 and sm_90
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from support.kernel_bugs import BUGS, changed
from support.laws import FLOATS, assert_right
from support.maps import OPERANDS, request
from support.needs import CUDA as ANY_CUDA
from support.needs import (
    FAST_TRITON,
    TRITON,
    TRITON_COMPILES,
    TRITON_RUNS,
    needs,
    only,
)
from torch_corr import FFT, MAPS, Auto, Problem, Triton, corr2d
from torch_corr.algorithms import CheckedFFT
from torch_corr.algorithms.base import FEW_CHANNEL_PAIRS
from torch_corr.algorithms.triton import algorithm as algorithm_module
from torch_corr.algorithms.triton import configs, launch_plan, launch_plan_builder, plan_weight
from torch_corr.algorithms.triton import runtime as triton_runtime
from torch_corr.algorithms.triton.algorithm import make_launch_plan
from torch_corr.algorithms.triton.axes import axes
from torch_corr.algorithms.triton.configs import CONFIGS, Band, Config, Dot, Sums, Taps, by_name
from torch_corr.planning import auto as auto_module
from torch_corr.planning import wisdom
from torch_corr.planning.plan import make_plan
from torch_corr.testing import LAYOUTS, make_operands, oracle, problems

HAS_TRITON = find_spec("triton") is not None
INTERPRETED = triton_runtime.is_interpreted()
CUDA = torch.cuda.is_available() and HAS_TRITON and not INTERPRETED
DEVICE = torch.device("cuda" if CUDA else "cpu")

# NumPy, which the interpreter uses, warns of NaN and overflow.
pytestmark = [
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
]

runs = needs(TRITON, TRITON_RUNS)
compiles = needs(TRITON, TRITON_COMPILES)
on_cuda = needs(ANY_CUDA, TRITON, TRITON_COMPILES)
has_triton = needs(TRITON)

each_map = pytest.mark.parametrize("map", MAPS)
each_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)


@pytest.fixture(autouse=True)
def _own_plans() -> Iterator[None]:
    """Without TF32, so that float32's error bound applies, and without plans of other tests."""
    torch.backends.cudnn.allow_tf32 = False
    algorithm_module._cached_plan.cache_clear()
    yield
    algorithm_module._cached_plan.cache_clear()


def patch(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, value: Any) -> None:
    """Patch a value that launch plans depend on, and discard the cached plans."""
    monkeypatch.setattr(module, name, value)
    algorithm_module._cached_plan.cache_clear()


def random_operands(
    problem: Problem, map: str, dtype: torch.dtype = torch.float32, seed: int = 0, **how: Any
) -> dict[str, Tensor]:
    every = make_operands(problem, dtype, DEVICE, seed=seed, **how)
    return {name: getattr(every, name) for name in OPERANDS[map]}


def to_channels_last(operands: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: each.contiguous(memory_format=torch.channels_last) for name, each in operands.items()
    }


def check_map(algorithm: Triton, problem: Problem, map: str, operands: dict[str, Tensor]) -> Tensor:
    """Compare a map with the oracle; return its result."""
    result: Tensor = getattr(algorithm, map)(problem, *operands.values())
    assert_right(result, problem, **operands, algorithm=algorithm)
    return result


def check_both_layouts(
    algorithm: Triton, problem: Problem, map: str, operands: dict[str, Tensor]
) -> None:
    """Compare a map with the oracle in both layouts, and the results with each other bitwise."""
    contiguous = check_map(algorithm, problem, map, operands)
    last = check_map(algorithm, problem, map, to_channels_last(operands))
    assert torch.equal(contiguous, last)


def triton_with(config: Config, map: str) -> Triton:
    return Triton(weight=config.name) if map == "grad_weight" else Triton(correlate=config.name)


def main_map(config: Config) -> Any:
    return "grad_weight" if isinstance(config, Sums) else "forward"


# Rows past a block of sums, columns past a chunk of taps, with gaps between taps; channels past
# a tile's K, pixels past its M, images past the first.
FEW_CHANNELS = "n2c4-x22x5-o2-k9x5-p3,2x1,2-d2x1-g2"
MANY_CHANNELS = "n2c19-x9x6-o17-k2x3-p1-d1x2"
# One channel to one; columns past a tile's K, and taps that meet no column.
ONE_CHANNEL = "n2c2-x9x37-o2-k2x4-s1x2-p1,2x3,1-d2x3-g2"


def problem_for(config: Config) -> Problem:
    """A problem with incomplete tiles in every dimension of a configuration."""
    if isinstance(config, Dot):
        return Problem.parse(MANY_CHANNELS)
    return Problem.parse(ONE_CHANNEL if isinstance(config, Band) else FEW_CHANNELS)


def is_able(config: Config, map: Any, dtype: torch.dtype = torch.float32) -> bool:
    """Whether a configuration can run its problem without TF32."""
    with torch.backends.cudnn.flags(allow_tf32=False):
        return config in Triton().configs(problem_for(config), map, dtype)


def is_fast_interpreted(config: Config, dtype: torch.dtype) -> bool:
    return dtype == torch.float32 or is_one_of_each_kind(config)


def is_one_of_each_kind(config: Config) -> bool:
    return config.name in ("taps-4", "sums-4x4x4", "dot-64x16", "dot-64x16-k16", "band-64x32")


# -- values -----------------------------------------------------------------------------------


@runs
@needs(FAST_TRITON, unless=is_fast_interpreted)
@only(is_able)
@each_config
@each_map
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_config_matches_oracle(config: Config, map: Any, dtype: torch.dtype) -> None:
    problem = problem_for(config)
    check_map(triton_with(config, map), problem, map, random_operands(problem, map, dtype))


ROW_SUMS = "taps-4", "taps-8", "taps-16", "sums-4x4x4", "sums-8x8x4"
SPECIAL_CASES = [
    # The rows of a block are a stride apart, the taps a dilation.
    *((name, "n2c2-x21x6-o4-k6x2-s2x1-p2,1x0,1-d3x1-g2") for name in ROW_SUMS),
    # The second chunk of four taps reaches outside the image.
    ("taps-4", "n2c2-x12x4-o2-k8x2-p7x0-d2x1-g2"),
    # Strides, gaps, taps and pixels that meet nothing; more rows and columns than a tile has.
    ("band-64x32", "n1c1-x1x1-o1-k1"),
    ("band-64x32", "n2c2-x7x9-o2-k3x4-s2x3-p1,2x0,1-d1x2-g2"),
    ("band-64x32", "n1c1-x5x12-o1-k3-p1-d1x5"),
    ("band-64x32", "n5c1-x17x35-o1-k2x3-p1"),
    ("band-64x32", "n1c2-x4x5-o2-k3x2-s5x4-p3-g2"),
]


def can_run(name: str, case: str, map: Any) -> bool:
    with torch.backends.cudnn.flags(allow_tf32=False):
        return by_name(name) in Triton().configs(Problem.parse(case), map, torch.float32)


@runs
@only(can_run)
@each_map
@pytest.mark.parametrize(("name", "case"), SPECIAL_CASES)
def test_special_cases_match_oracle(name: str, case: str, map: Any) -> None:
    problem = Problem.parse(case)
    algorithm = triton_with(by_name(name), map)
    check_both_layouts(algorithm, problem, map, random_operands(problem, map))


def shares_rows(map: str, case: str) -> bool:
    """In ``grad_input`` with a stride, rows share nothing."""
    return map == "forward" or Problem.parse(case).stride[0] == 1


@runs
@only(shares_rows)
@pytest.mark.parametrize("map", ["forward", "grad_input"])
@pytest.mark.parametrize(
    "case",
    [
        "n3c2-x6x5-o2-k5x3-p2x1-g2",
        "n2c2-x7x5-o4-k3x2-s2x1-p2,1x0,1-d2x1-g2",
        "n1c3-x4x6-o2-k9x2-p5,3x1",
        "n2c2-x3x4-o2-k3x2-p3x0-g2",
        "n2c2-x9x4-o2-k5x2-p2x1-g2",
        "n2c2-x1x6-o2-k3x2-p2x1-g2",
        "n2c2-x3x6-o2-k5x2-p1x0-g2",
        "n2c2-x5x9-o2-k5x3-s1x2-p2x1-g2",
    ],
)
def test_outside_rows_are_skipped(map: Any, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cases have strides, gaps, several channels, taps that meet no row, and a single row.

    Rows are skipped only if they are all in one block.
    """
    patch(monkeypatch, configs, "MIN_SPECIALIZED_PRODUCTS", 0)
    problem, config = Problem.parse(case), by_name("taps-8")
    operands = random_operands(problem, map)
    launch = make_launch_plan(map, problem, *operands.values(), config).launches[0]
    rows, _ = axes(map, problem)
    skips = 1 < rows.dest <= 8 and rows.outside_share > 0
    assert launch.constants["SOURCE_ROWS"] == (rows.source if skips else 0)
    check_both_layouts(triton_with(config, map), problem, map, operands)


@runs
@pytest.mark.parametrize("programs", [1, 12, 1056])
@pytest.mark.parametrize(
    "name", ["sums-1x4x4", "sums-4x4x4", "dot-64x16", "dot-64x16-k16", "band-64x32"]
)
def test_grad_weight_for_any_number_of_splits(
    name: str, programs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One split of all blocks, a few of several, one a block; the last block is incomplete."""
    patch(monkeypatch, plan_weight, "MIN_PROGRAMS", programs)
    cases = {
        "sums": "n3c1-x20x17-o2-k2x3-p1",
        "dot": "n3c9-x6x7-o18-k2x1-p1,0x0,0",
        "band": "n5c1-x17x6-o1-k2x3-p1",
    }
    problem = Problem.parse(cases[name.partition("-")[0]])
    splits = plan_weight.splits_of(problem, by_name(name)).number
    assert splits > 1 if programs > 1 else splits == 1
    operands = random_operands(problem, "grad_weight")
    check_map(Triton(weight=name), problem, "grad_weight", operands)


EDGES = [
    "n1c1-x1x1-o1-k1",
    "n1c1-x4x5-o1-k4x5",
    "n1c2-x5x5-o2-k3-p9-g2",
    "n1c1-x7x8-o2-k3x2-s2x3-p1,2x0,1-d1x2",
    "n1c2-x6x7-o2-k5-s4x6-p3-d2x3-g2",
    "n1c1-x5x5-o1-k3-p20-d12",
    "n2c2-x8x8-o2-k4-s4",
    "n1c17-x5x6-o18-k3x2-s2-p1-d1x2",
    "n1c6-x5x6-o5-k3x2-s2-p1",
    "n1c34-x3x3-o2-k3-p1",
    "n1c4-x4x5-o40-k1-g2",
    "n1c1-x3x3-o1-k2-s1073741824x4611686018427387904",
    "n1c1-x3x3-o1-k1x2-p0-d4294967297x2",
    "n0c4-x8x8-o4-k3",
    "n2c0-x8x8-o3-k3",
]


@runs
@pytest.mark.parametrize("case", EDGES)
def test_edge_cases_match_oracle(case: str) -> None:
    problem = Problem.parse(case)
    for map in MAPS:
        check_map(Triton(), problem, map, random_operands(problem, map))


@runs
@each_map
@settings(max_examples=500 if CUDA else 12)
@given(data=st.data(), problem=problems(max_batch=2, max_size=9, max_kernel=4))
def test_random_problems_match_oracle(data: st.DataObject, problem: Problem, map: Any) -> None:
    """Any layout, any data, any configuration that can run the problem."""
    dtype = data.draw(st.sampled_from(FLOATS))
    config = data.draw(st.sampled_from(Triton().configs(problem, map, dtype)))
    layouts = tuple(data.draw(st.sampled_from(LAYOUTS)) for _ in range(3))
    kind = data.draw(st.sampled_from(("normal", "integers", "wide")))
    seed = data.draw(st.integers(0, 99))
    operands = random_operands(problem, map, dtype, seed, data=kind, layouts=layouts)
    check_map(triton_with(config, map), problem, map, operands)


def is_fast_over_channels(name: str, case: str) -> bool:
    """Forty channels one by one take half a minute in the interpreter."""
    return Problem.parse(case).group_in <= 8 or name.startswith("dot")


@runs
@needs(FAST_TRITON, unless=is_fast_over_channels)
@pytest.mark.parametrize(
    "name", ["taps-1", "taps-4", "taps-8", "dot-64x16", "sums-1x4x4", "sums-4x4x4", "band-64x32"]
)
# Slow in the interpreter, where zero times infinity is NaN too.
@pytest.mark.parametrize("value", ["inf", "nan"] if CUDA else ["nan"])
@pytest.mark.parametrize(
    "case",
    # Less padding than k - 1 on a side, so that pixels of grad_input miss taps.
    [
        "n1c2-x5x6-o2-k3x2-p2,1x1,0-g2",
        "n1c2-x5x6-o2-k3x2-p1,2x0,1-g2",
        "n1c2-x6x7-o3-k3-s2-p1",
        "n1c40-x3x2-o2-k2-p1,0x0,1",
    ],
)
def test_nonfinite_value_reaches_only_its_windows(
    name: str, value: str, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pixel of the image never meets a tap beyond an edge; elsewhere nothing changes."""
    if name == "taps-8":  # skips rows outside the image, taps-4 does not
        patch(monkeypatch, configs, "MIN_SPECIALIZED_PRODUCTS", 0)
    problem, config = Problem.parse(case), by_name(name)
    for map in MAPS:
        if config not in Triton().configs(problem, map, torch.float32):
            continue
        run = getattr(triton_with(config, map), map)
        operands = random_operands(problem, map)
        clean = run(problem, *operands.values())
        # The first and last elements are corners of images and meet edges first; the middle one
        # follows another channel's last.
        for marked, part in product(OPERANDS[map], (0.0, 0.5, 1.0)):
            mark = torch.zeros_like(operands[marked])
            mark.view(-1)[int(part * (mark.numel() - 1) + 0.5)] = 1
            ones = {each: torch.ones_like(v) for each, v in operands.items()} | {marked: mark}
            reached = (oracle(problem, **ones).value > 0).to(DEVICE)
            nonfinite = operands[marked].masked_fill(mark > 0, float(value))
            dirty = run(problem, *(operands | {marked: nonfinite}).values())
            assert not torch.isfinite(dirty[reached]).any()
            if marked != "input" and map != "grad_input":
                # For padding of the image the definition allows both results.
                padded = replace(problem, size=problem.padded_size, padding=((0, 0), (0, 0)))
                pixels = torch.ones(padded.input_shape)
                reached = (oracle(padded, **(ones | {"input": pixels})).value > 0).to(DEVICE)
            torch.testing.assert_close(clean[~reached], dirty[~reached])


# -- positions beyond 32 bits -----------------------------------------------------------------


STRIDED = "n2c2-x7x8-o2-k3x2-s2x1-p1-g2"


@runs
@each_map
@pytest.mark.parametrize(
    ("algorithm", "case"),
    [
        (Triton(), STRIDED),
        (Triton(), MANY_CHANNELS),
        (Triton(correlate="band-64x32", weight="band-64x32"), STRIDED),
    ],
    ids=["few", "many", "band"],
)
def test_int64_positions_give_same_result(
    map: Any, algorithm: Triton, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = Problem.parse(case)
    operands = random_operands(problem, map)
    with_int32 = check_map(algorithm, problem, map, operands)
    patch(monkeypatch, launch_plan_builder, "INT32_MAX", 0)
    assert torch.equal(with_int32, check_map(algorithm, problem, map, operands))


@on_cuda
def test_channel_positions_beyond_int32() -> None:
    """The third channel is at position 2**31, though the stride of channels fits into 32 bits.

    Not interpreted: that takes 14 seconds, and crashes if a channel is multiplied by its stride.
    """
    problem = Problem.parse("n1c3-x2-o1-k2-p1")
    operands, stride = random_operands(problem, "forward", torch.float16), 2**30
    memory = torch.empty(2 * stride + 4, dtype=torch.float16, device=DEVICE)
    x = memory.as_strided(problem.input_shape, (2 * stride + 4, stride, 2, 1))
    operands["input"] = x.copy_(operands["input"])
    for name in ("taps-1", "taps-4"):
        check_map(Triton(correlate=name), problem, "forward", operands)


@has_triton
def test_needs_int64_for_end_of_last_split() -> None:
    """Every pixel has a 32-bit position, but the last split ends beyond the last pixel.

    In 32 bits its lanes would get negative positions and count as pixels.
    """
    problem = Problem.parse("n134217216c1-x4-o1-k1")
    x = torch.empty(problem.input_shape, device="meta")
    assert not launch_plan_builder.needs_int64(axes("grad_weight", problem), x)
    (launch,) = make_launch_plan("grad_weight", problem, x, x, by_name("sums-1x4x4")).launches
    assert launch.constants["USE_INT64"]


@on_cuda
def test_forward_on_more_than_2_31_pixels() -> None:
    problem = Problem.parse("n2c1-x32768-o1-k3-p1")
    x = torch.zeros(problem.input_shape, dtype=torch.float16, device=DEVICE)
    x[1, 0, -2:, -2:] = 1
    w = torch.ones(problem.weight_shape, dtype=torch.float16, device=DEVICE)
    y = Triton().forward(problem, x, w)
    assert y[1, 0, -3:, -3:].tolist() == [[1, 2, 2], [2, 4, 4], [2, 4, 4]]
    assert y.sum(dtype=torch.float32) == 25


# -- layouts, views, derivatives --------------------------------------------------------------


@runs
@pytest.mark.parametrize("case", ["n2c4-x5x6-o4-k3-p1-g4", "n2c18-x4x5-o5-k2"])
def test_forward_keeps_layout_of_input(case: str) -> None:
    problem = Problem.parse(case)
    x, w = random_operands(problem, "forward").values()
    contiguous = Triton().forward(problem, x, w)
    last = Triton().forward(problem, x.contiguous(memory_format=torch.channels_last), w)
    assert contiguous.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(contiguous, last)


@runs
@pytest.mark.parametrize("use_int64", [False, True])
@pytest.mark.parametrize("name", ["taps-4", "dot-64x16", "band-64x32"])
def test_recompute_nonfinite_in_channels_last(
    name: str, use_int64: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A NaN tap in one of several channels makes the same pixels NaN as in NCHW."""
    if use_int64:
        patch(monkeypatch, launch_plan_builder, "INT32_MAX", 0)
    problem = Problem.parse("n2c3-x5x6-o3-k3x2-p1x0,1-g3")
    algorithm = Triton(correlate=name)
    y, w = random_operands(problem, "grad_input").values()
    clean = algorithm.grad_input(problem, y, w)
    w.view(-1)[7] = torch.nan  # the first column's second tap of the second channel
    contiguous = algorithm.grad_input(problem, y, w)
    is_nan = contiguous.isnan()
    torch.testing.assert_close(contiguous[~is_nan], clean[~is_nan])
    last = algorithm.grad_input(problem, y.contiguous(memory_format=torch.channels_last), w)
    assert 0 < is_nan.sum() < contiguous[:, 1].numel()
    torch.testing.assert_close(contiguous, last, equal_nan=True)


@runs
@each_map
@pytest.mark.parametrize("case", ["n1c2-x5x4-o2-k3x2-p1-g2", "n1c5-x4x3-o4-k2"])
def test_negated_views_are_resolved(map: Any, case: str) -> None:
    """The imaginary part of a conjugate has a sign flag that is not applied in memory."""
    problem = Problem.parse(case)
    operands = {
        name: torch.complex(torch.zeros_like(each), each).conj().imag
        for name, each in random_operands(problem, map).items()
    }
    assert all(each.is_neg() for each in operands.values())
    check_map(Triton(), problem, map, operands)


@runs
def test_second_derivatives_are_correct() -> None:
    x = torch.randn(1, 2, 4, 5, dtype=torch.float64, device=DEVICE, requires_grad=True)
    w = torch.randn(2, 1, 2, 3, dtype=torch.float64, device=DEVICE, requires_grad=True)

    def call(x: Tensor, w: Tensor) -> Tensor:
        return corr2d(x, w, None, (2, 1), ((1, 0), (1, 1)), 1, 2, algorithm="triton")

    check = torch.autograd.gradgradcheck if CUDA else torch.autograd.gradcheck
    assert check(call, (x, w), fast_mode=True)


@runs
def test_measuring_auto_takes_fastest_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wisdom keeps each variant under its own spelling."""
    timed: list[str] = []

    def pretend(algorithms: Any, *_: Any) -> dict[str, float]:
        timed.extend(each.spelling for each in algorithms)
        return {each.spelling: 2.0 - (each.spelling == fastest) for each in algorithms}

    monkeypatch.setattr(auto_module, "time_algorithms", pretend)
    problem = Problem.parse("n1c2-x9x8-o2-k5x3-p1-g2")
    try:
        for map in MAPS:
            variants = Triton().variants(request(problem, map))
            others = [each.spelling for each in variants]
            assert len(others) > 1
            fastest = "triton" if map == "grad_weight" else others[0]
            wisdom.forget()
            timed.clear()
            plan = make_plan(problem, DEVICE, torch.float32, Auto(measure=True))
            chosen = getattr(plan, map)
            assert chosen.spelling == fastest
            assert {"triton", *others} <= {*timed}
            assert f"  > {fastest}" in str(plan)
            check_map(chosen, problem, map, random_operands(problem, map))
            # A later plan uses the measurements of this process.
            later = make_plan(problem, DEVICE, torch.float32, Auto(measure=True))
            assert getattr(later, map) == chosen
    finally:
        wisdom.forget()


# -- cached launch plans and compiled kernels -------------------------------------------------


class FakeKernels:
    """Replaces the module of the kernels; records compilations, launches and their arguments."""

    def __init__(self) -> None:
        self.compiled: list[tuple[str, dict[str, Any]]] = []
        self.launched: list[tuple[str, int, dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        kernel = getattr(import_module("torch_corr.algorithms.triton.kernels"), name)
        names = list(signature(kernel.fn).parameters)

        def compiled(grid: Any) -> Any:
            assert grid[1:] == (1, 1)
            return lambda *values: self.launched.append((name, grid[0], dict(zip(names, values))))

        def specialize(grid: Any) -> Any:
            def run(
                *arguments: Any,
                num_warps: int,
                num_stages: int,
                enable_fp_fusion: bool,
                **constants: Any,
            ) -> Any:
                assert enable_fp_fusion  # Triton's default depends on its version
                given = dict(zip(names, arguments)) | constants
                assert sorted(given) == sorted(names)
                self.compiled.append((name, constants))
                addresses = {
                    n: v.data_ptr() if isinstance(v, Tensor) else v for n, v in given.items()
                }
                self.launched.append((name, grid[0], addresses))
                return Indexable(compiled)

            return run

        return Indexable(specialize, arg_names=names)


class Indexable(SimpleNamespace):
    """``self[key]`` calls a function with the key."""

    def __init__(self, make: Callable[[Any], Any], **attributes: Any) -> None:
        super().__init__(make=make, **attributes)

    def __getitem__(self, key: Any) -> Any:
        return self.make(key)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> FakeKernels:
    fake = FakeKernels()
    monkeypatch.setattr(triton_runtime, "kernels", lambda: fake)
    return fake


def without_addresses(launches: list[tuple[str, int, dict[str, Any]]]) -> list[Any]:
    """Launches without the addresses of their tensors, which differ from call to call."""
    tensors = {"source", "weight", "result", "input", "output", "partial", "band"}
    return [(n, g, {k: v for k, v in e.items() if k not in tensors}) for n, g, e in launches]


@has_triton
@only(is_able)
@each_config
@each_map
def test_repeated_call_compiles_nothing(config: Config, map: Any, kernels: FakeKernels) -> None:
    """It launches the same kernels with the same numbers, and the addresses of its operands."""
    problem = problem_for(config)
    launches = []
    for seed in range(3):
        operands = random_operands(problem, map, seed=seed)
        getattr(triton_with(config, map), map)(problem, *operands.values())
        launches.append(kernels.launched[:])
        kernels.launched.clear()
    assert len(kernels.compiled) == len(launches[0])
    first, *later = (without_addresses(each) for each in launches)
    assert all(each == first for each in later)
    if isinstance(config, (Taps, Sums)):  # the others read copies
        _, _, arguments = launches[2][0]
        source = {"input": "source", "output": "source"} if map != "grad_weight" else {}
        for name, value in operands.items():
            assert arguments[source.get(name, name)] == value.data_ptr()


@has_triton
@each_map
@pytest.mark.parametrize("case", ["n2c2-x6x8-o2-k3-p1-g2", "n1c20-x6x8-o17-k3"])
def test_plan_depends_on_layout_dtype_and_settings(
    map: Any, case: str, kernels: FakeKernels
) -> None:
    """Strides, alignment, dtype, TF32 and Triton's settings; earlier plans stay valid."""
    problem = Problem.parse(case)
    first, second = random_operands(problem, map).values()
    many = problem.group_in * problem.group_out > FEW_CHANNEL_PAIRS

    def call(*operands: Tensor) -> tuple[int, list[Any]]:
        """How many kernels a call compiles and what it launches; a second call compiles none."""
        before = len(kernels.compiled)
        for _ in range(2):
            kernels.launched.clear()
            getattr(Triton(), map)(problem, *operands)
            once = len(kernels.compiled) - before
        assert len(kernels.compiled) == before + once
        return once, without_addresses(kernels.launched)

    count, plain = call(first, second)
    assert count == len(plain)
    last = first.contiguous(memory_format=torch.channels_last)
    count, launches = call(last, second)
    assert count == len(plain)
    if not many:
        # In grad_weight lanes are pixels, so operands are copied to NCHW first.
        assert (launches != plain) == (map != "grad_weight")
    shifted = torch.empty(first.numel() + 1)[1:].view(first.shape).copy_(first)
    count, launches = call(shifted, second)
    # Copies to channels_last are aligned.
    assert count == (0 if many else len(plain))
    assert launches == plain
    count, launches = call(first.double(), second.double())
    assert count == len(launches)
    assert launches != plain
    torch.backends.cudnn.allow_tf32 = True
    count, launches = call(first, second)
    assert count == len(plain)
    assert any(each.get("PRECISION") == "tf32" for _, _, each in launches) == many
    torch.backends.cudnn.allow_tf32 = False
    knobs = import_module("triton").knobs
    try:
        knobs.runtime.debug = True
        assert call(first, second) == (len(plain), plain)
    finally:
        knobs.runtime.debug = False
    assert call(first, second) == (0, plain)


@has_triton
def test_compiled_kernels_belong_to_one_device(kernels: FakeKernels) -> None:
    """They are compiled once for each device and alignment."""

    def tensor(device: int, address: int) -> Any:
        return SimpleNamespace(get_device=lambda: device, data_ptr=lambda: address)

    problem = Problem.parse("n1c1-x64-o1-k3")
    x, w = torch.empty(problem.input_shape), torch.empty(problem.weight_shape)
    config = Triton()._config("forward", problem, torch.float32)
    (launch,) = make_launch_plan("forward", problem, x, w, config).launches
    for device, count in ((0, 1), (1, 2), (0, 2), (1, 2)):
        launch.run([tensor(device, 32) for _ in range(3)])
        assert len(kernels.compiled) == count
    launch.run([tensor(0, 32), tensor(0, 40), tensor(0, 32)])
    launch.run([tensor(0, 40), tensor(0, 32), tensor(0, 32)])
    assert len(kernels.compiled) == 4


@on_cuda
@each_map
@pytest.mark.parametrize("case", ["n8c32-x30-o32-k7-p3-g32", "n4c64-x20-o64-k3-p1"])
def test_results_are_bitwise_repeatable(map: Any, case: str) -> None:
    problem = Problem.parse(case)
    operands = random_operands(problem, map)
    torch.use_deterministic_algorithms(True)
    first, *others = (getattr(Triton(), map)(problem, *operands.values()) for _ in range(5))
    assert all(torch.equal(first, each) for each in others)


@on_cuda
@each_map
@pytest.mark.parametrize("case", ["n4c32-x30-o32-k7-s2-p3-g32", "n2c64-x20-o64-k3-p1"])
def test_cuda_graphs_and_streams(map: Any, case: str) -> None:
    """Two streams at once; a graph captured and replayed with other numbers; no host sync."""
    problem = Problem.parse(case)
    run = getattr(Triton(), map)
    operands = random_operands(problem, map)
    other = random_operands(problem, map, seed=1)
    expected = [run(problem, *each.values()) for each in (operands, other)]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        streams = [torch.cuda.Stream() for _ in range(2)]
        results = []
        for stream, each in zip(streams, (operands, other)):
            with torch.cuda.stream(stream):
                results.append([run(problem, *each.values()) for _ in range(10)])
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = run(problem, *operands.values())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert all(torch.equal(e, each) for e, many in zip(expected, results) for each in many)
    for name, value in other.items():
        operands[name].copy_(value)
    graph.replay()
    assert torch.equal(captured, expected[1])


@compiles
@each_map
@pytest.mark.parametrize(
    "case",
    [
        "n2c4-x20x18-o4-k7x5-s2-p3,2x1,2-g2",
        "n2c20-x9-o24-k3-p1",
        "n64c384-x32-o384-k31-p15-g384",  # bands
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_launching_reads_no_tensor_value(
    map: Any, case: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading one raises on ``meta``, and on CUDA would wait for the device."""
    launched: list[str] = []
    monkeypatch.setattr(launch_plan.Launch, "run", lambda self, _: launched.append(self.kernel))
    problem = Problem.parse(case)
    shapes = [getattr(problem, f"{slot}_shape") for slot in OPERANDS[map]]
    result = getattr(Triton(), map)(
        problem, *(torch.empty(shape, dtype=dtype, device="meta") for shape in shapes)
    )
    slot = {"forward": "output", "grad_input": "input", "grad_weight": "weight"}[map]
    assert result.shape == getattr(problem, f"{slot}_shape")
    assert result.dtype == dtype
    assert launched


# -- compiled code, without a device ----------------------------------------------------------


def compiled_cases() -> list[Any]:
    """Each configuration in the dtype that needs most registers, for each map."""
    from benchmarks.cubins import problem_of

    found = []
    for config, map in product(CONFIGS, MAPS):
        dtype = torch.float16
        if isinstance(config, (Dot, Band)):
            dtype = torch.float64 if config.k == 16 else torch.float16
            if map == "grad_input":
                continue  # the same kernel as forward
        if config in Triton().configs(problem_of(config), map, dtype):
            found.append(pytest.param(config, map, dtype, id=f"{config.name}-{map}"))
    return found


STACK = {
    "3.8": {"sums-4x4x4 grad_weight": 8, "band-64x64 forward": 8, "band-64x64 grad_weight": 8},
    "3.9": {
        "dot-64x16-k16 forward": 8,
        "band-32x128 grad_weight": 16,
        "band-64x32 torch.float64 with flag": 16,
    },
}
"""Bytes of stack, spilled registers included, with the compilers of some versions of Triton."""


def stack_of(kernel: str) -> int:
    """Bytes that a kernel may take of the stack: none, except for those in :data:`STACK`."""
    import triton

    version = ".".join(triton.__version__.split(".")[:2])
    return STACK.get(version, {}).get(kernel, 0)


@compiles
@pytest.mark.parametrize(("config", "map", "dtype"), compiled_cases())
def test_compiled_kernels_fit_device_without_spills(
    config: Config, map: Any, dtype: torch.dtype
) -> None:
    """Also shared memory and kinds of instructions."""
    from benchmarks.cubins import compile_launch, launches_of, problem_of

    # The largest takes long to compile.
    for architecture in (90,) if config.name == "sums-8x8x4" else (80, 90):
        for launch in launches_of(problem_of(config), map, dtype, config):
            made = compile_launch(launch, architecture)
            assert max(made.stack, made.spills) <= stack_of(f"{config.name} {map}")
            if launch.kernel in ("build_bands", "sum_bands"):
                assert made.registers <= 64
            elif isinstance(launch.config, (Dot, Band)):
                assert made.shared <= 96 * 1024
                assert made.registers <= 255
                assert made.matrix_units
                assert made.wide_loads
            else:
                assert made.shared <= 1024
                # The largest have half the warps and twice the registers: faster on an H200.
                assert made.registers * launch.config.warps <= 128 * 4
                assert made.count("FFMA")


@compiles
@pytest.mark.parametrize("map", ["forward", "grad_input"])
def test_compiled_kernel_skips_outside_rows(map: Any) -> None:
    """RepLKNet's 31x31 on 32 rows: 752 of 992 products for a column of the kernel.

    One instruction for each product, and fewer than 752 others.
    """
    from benchmarks.cubins import BANDS, compile_launch, launches_of

    problem, config = Problem.parse(BANDS), by_name("taps-32")
    pairs = sum(0 <= row + tap - 15 < 32 for row in range(32) for tap in range(31))
    made = compile_launch(launches_of(problem, map, torch.float32, config)[0], 90)
    assert made.count("FFMA") == pairs == 752
    assert sum(made.instructions.values()) < 2 * pairs
    assert made.count("LDG") == 32 + 31
    assert made.stack == made.spills == 0
    assert made.registers <= 128


@compiles
@pytest.mark.parametrize("tf32", [False, True])
def test_compiled_dot_uses_tf32_only_if_allowed(tf32: bool) -> None:
    from benchmarks.cubins import compile_launch, launches_of, problem_of

    torch.backends.cudnn.allow_tf32 = tf32
    config = by_name("dot-64x64")
    problem = problem_of(config)
    (launch,) = launches_of(problem, "forward", torch.float32, config, channels_last=True)
    made = compile_launch(launch, 90)
    assert bool(made.matrix_units) == tf32
    assert bool(made.count("FFMA") > 100) != tf32


def is_able_with_flag(name: str, dtype: torch.dtype) -> bool:
    from benchmarks.cubins import problem_of

    config = by_name(name)
    with torch.backends.cudnn.flags(allow_tf32=False):
        return config in Triton().configs(problem_of(config), main_map(config), dtype)


@compiles
@only(is_able_with_flag)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["taps-4", "taps-28", "sums-4x4x4", "dot-64x32-k16", "band-64x32"])
def test_compiled_kernels_with_flag_do_not_spill(name: str, dtype: torch.dtype) -> None:
    """They use matrix units if the kernels without a flag do."""
    from benchmarks.cubins import compile_launch, flagged_launches_of, launches_of, problem_of

    config = by_name(name)
    arguments = problem_of(config), main_map(config), dtype, config
    for plain, flagged in zip(launches_of(*arguments), flagged_launches_of(*arguments)):
        without, made = compile_launch(plain, 90), compile_launch(flagged, 90)
        assert max(made.stack, made.spills) <= stack_of(f"{name} {dtype} with flag")
        assert made.registers * config.warps <= 255 * 4
        assert made.matrix_units == without.matrix_units
        assert made.count("EXIT") > without.count("EXIT")


@compiles
@pytest.mark.parametrize("tf32", [False, True])
def test_digest_in_docs_is_current(tf32: bool) -> None:
    """Compares digests of kernels and launches, and compiles nothing."""
    from benchmarks.cubins import DOCUMENT, digest, tabled

    document = DOCUMENT.read_text()
    version = import_module("triton").__version__
    if f"(Triton {version})" not in document:
        pytest.skip(f"the tables are of another version of Triton than {version}")
    name = "resources of tf32" if tf32 else "resources"
    _, _, rest = document.partition(f"<!-- {name} -->")
    block, _, _ = rest.partition(f"<!-- /{name} -->")
    assert f"<!-- made of {digest(tf32)} -->" in block, "python -m benchmarks.cubins --write"
    rows = [line for line in block.splitlines() if line.startswith(("| forward", "| grad_"))]
    assert len(rows) == len(list(tabled(tf32)))


# -- choice of a configuration ----------------------------------------------------------------


@pytest.mark.parametrize("tf32", [False, True])
def test_rules_choose_able_configs(tf32: bool) -> None:
    torch.backends.cudnn.allow_tf32 = tf32
    large = ("n64c384-x32-o384-k31-p15-g384", "n8c3-x224-o64-k7-s2-p3", "n64c256-x56-o4096-k3")
    for case in (*EDGES, FEW_CHANNELS, MANY_CHANNELS, *large):
        problem = Problem.parse(case)
        if 0 in problem.input_shape:
            continue
        for map, dtype in product(MAPS, FLOATS):
            chosen = Triton()._config(map, problem, dtype)
            assert chosen in Triton().configs(problem, map, dtype)


def test_rules_choose_bands_if_predicted_faster() -> None:
    """For wide kernels and rows of 16-byte loads, but not for narrow bands or little work.

    Not for images in float32 without TF32, because matrix units have no float32.
    """
    large, layer = "n64c384-x32-o384-k31-p15-g384", "n128c96-x56-o96-k7-p3-g96"
    for case, dtypes in (
        (large, FLOATS),
        (layer, ()),
        ("n64c384-x28-o384-k29-p14-g384", ()),
        ("n1c1-x1024-o1-k31-p15", ()),
        ("n1c8-x32-o8-k31-p15-g8", ()),
    ):
        problem = Problem.parse(case)
        for map, dtype in product(MAPS, FLOATS):
            chosen = Triton()._config(map, problem, dtype)
            if dtype in dtypes and (map == "grad_weight" or dtype != torch.float32):
                assert isinstance(chosen, Band)
            else:
                assert isinstance(chosen, Sums if map == "grad_weight" else Taps)


# -- refusals ---------------------------------------------------------------------------------


def test_refusals_name_the_reason() -> None:
    problem = Problem.parse("n1c1-x8x8-o1-k3")
    (sentence,) = Triton().refusals(request(problem, device="meta"))
    if not HAS_TRITON:
        assert "Triton is not installed" in sentence
    elif INTERPRETED:
        assert Triton().refusals(request(problem)) == ()
        assert "interpreter runs on the cpu" in sentence
        (unknown,) = Triton(correlate="dot-64x46").refusals(request(problem))
        assert "no configuration 'dot-64x46'; did you mean 'dot-64x64'? (it has" in unknown
        strided = Problem.parse("n1c1-x8x8-o1-k3-s2")
        (shared,) = Triton(correlate="taps-8").refusals(request(strided))
        assert "taps-8 shares rows, which grad_input with a stride does not" in shared
        (several,) = Triton(weight="band-64x64").refusals(request(Problem.parse("n1c2-x8x8-o1-k3")))
        assert several == "band-64x64 is for one channel to one, as in depthwise layers"
        (thin,) = Triton(weight="band-64x64").refusals(request(Problem.parse("n1c1-x64-o1-k3")))
        assert "rows of 64 pixels are more than 16 times as wide as the kernel" in thin
        assert "no int8 here" in Triton().refusals(request(problem, dtype=torch.int8))[0]
    else:
        assert "no kernels for meta; it runs on CUDA" in sentence
        if not torch.cuda.is_available():
            (sentence,) = Triton().refusals(request(problem, device="cuda"))
            assert sentence == "PyTorch finds no CUDA device here"


@dataclass(frozen=True)
class FakeDriver:
    """A Triton driver that builds its launcher with the given function."""

    build: Callable[[], Any]

    @property
    def utils(self) -> Any:
        return self.build()


@compiles
@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (RuntimeError, "Failed to find C compiler."),
        # A file system for Triton's cache on which nothing can be executed.
        (ImportError, "cuda_utils.so: failed to map segment from shared object"),
    ],
)
def test_refusal_without_c_compiler(
    kind: type[Exception], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton compiles its launcher in C when it first uses a device."""
    module = import_module("triton.runtime")

    def fails() -> Any:
        raise kind(why + "\nMore")

    monkeypatch.setattr(module, "driver", SimpleNamespace(active=FakeDriver(fails)))
    (sentence,) = triton_runtime.launcher_refusals()
    assert f"cannot build its launcher here ({why}); it wants a C compiler" in sentence
    monkeypatch.setattr(module, "driver", SimpleNamespace(active=FakeDriver(lambda: None)))
    assert triton_runtime.launcher_refusals() == ()


# -- recomputing the result of fft ------------------------------------------------------------


# Dilated, strided and grouped; one channel to one, for bands.
CHECKED = ("n2c3-x9x12-o2-k4x5-p2", "n1c2-x14-o2-k5-s2-p4-d2-g2", ONE_CHANNEL)


@runs
@needs(FAST_TRITON, unless=lambda case, dtype: dtype == torch.float32 or case == CHECKED[1])
@each_map
@pytest.mark.parametrize("case", CHECKED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_checked_fft_recomputes_on_device(map: Any, case: str, dtype: torch.dtype) -> None:
    """If the check fails the result is Triton's, bitwise; else fft's, with exact zeros."""
    problem, fallback = Problem.parse(case), Triton()
    checked = CheckedFFT(FFT(double=True), fallback)
    first, second = random_operands(problem, map, dtype).values()
    result = getattr(checked, map)(problem, first.abs(), second.abs())
    expected = getattr(fallback, map)(problem, first.abs(), second.abs())
    torch.testing.assert_close(result, expected)
    # In float64, fft leaves strided gradients, which are sums of few products, to the fallback.
    assert dtype == torch.float64 or not torch.equal(result, expected)
    zero = torch.zeros_like(first)
    assert (getattr(checked, map)(problem, zero, second) == 0).all()
    for value in (float("nan"), float("inf"), 1e30) if CUDA else (float("nan"), 1e30):
        extreme = first.clone()
        extreme[(-1,) * 4] = value
        result = getattr(checked, map)(problem, extreme, second)
        expected = getattr(fallback, map)(problem, extreme, second)
        torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)


@runs
@needs(FAST_TRITON, unless=is_one_of_each_kind)
@only(is_able)
@each_config
@each_map
def test_kernels_store_nothing_if_flag_is_zero(
    config: Config, map: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every launch of every configuration; with another flag the result is the usual one."""
    problem = problem_for(config)
    filled: list[Tensor] = []

    def fill(self: launch_plan.Allocation, tensors: list[Tensor]) -> Tensor:
        made = tensors[0].new_empty_strided(self.shape, self.strides, dtype=self.dtype).fill_(7)
        filled.append(made)
        return made

    monkeypatch.setattr(launch_plan.Allocation, "make", fill)
    first, second = random_operands(problem, map).values()
    algorithm = triton_with(config, map)
    flag = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    algorithm._run(map, problem, first, second, flag)
    assert filled
    assert all((each == 7).all() for each in filled)
    result = algorithm._run(map, problem, first, second, flag + 1)
    assert torch.equal(result, getattr(algorithm, map)(problem, first, second))


# -- planted bugs -----------------------------------------------------------------------------


def test_planted_bugs_change_text_that_occurs_once() -> None:
    """``support/kernel_bugs.py`` as a script tests that each bug is caught."""
    for bug in BUGS:
        changed(bug)
    assert len({bug.name for bug in BUGS}) == len(BUGS)
