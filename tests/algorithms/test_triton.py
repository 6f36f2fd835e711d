"""The Triton kernels: under Triton's interpreter, compiled for devices that are not there, and on
CUDA where it is.

    pip install -c constraints.txt -e ".[test,triton]"
    TRITON_INTERPRET=1 pytest tests/algorithms/test_triton.py     # every configuration, on the CPU
    pytest tests/algorithms/test_triton.py                        # compiled for sm_80 and sm_90
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from itertools import product
from pathlib import Path
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
from support.needs import FAST_TRITON, TRITON, TRITON_COMPILES, TRITON_RUNS, needs, only
from torch_corr import FFT, MAPS, Auto, Problem, Triton, corr2d
from torch_corr.algorithms import CheckedFFT
from torch_corr.algorithms.base import FEW_CHANNEL_PAIRS
from torch_corr.algorithms.triton import algorithm as host
from torch_corr.algorithms.triton import configs as triton_configs
from torch_corr.algorithms.triton import draft as triton_draft
from torch_corr.algorithms.triton import form as triton_form
from torch_corr.algorithms.triton import weight as triton_weight
from torch_corr.algorithms.triton.axes import axes
from torch_corr.algorithms.triton.configs import CONFIGS, Band, Config, Dot, Sums, Taps
from torch_corr.planning import auto as auto_module
from torch_corr.planning import wisdom
from torch_corr.planning.plan import make_plan
from torch_corr.testing import LAYOUTS, make_operands, oracle, problems

HAVE = find_spec("triton") is not None
INTERPRETED = triton_form.interpreted()
CUDA = torch.cuda.is_available() and HAVE and not INTERPRETED
DEVICE = torch.device("cuda" if CUDA else "cpu")
HALVES = (torch.float16, torch.bfloat16)

# The interpreter's NumPy warns of what the kernels are asked for.
pytestmark = [
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
]

runs = needs(TRITON, TRITON_RUNS)
compiles = needs(TRITON, TRITON_COMPILES)
on_cuda = needs(ANY_CUDA, TRITON, TRITON_COMPILES)
have = needs(TRITON)

each_map = pytest.mark.parametrize("map", MAPS)
each_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)


@pytest.fixture(autouse=True)
def _true_float32() -> Any:
    """TF32 off, so that float32 is held to float32's bound."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(autouse=True)
def _own_forms() -> Iterator[None]:
    """None that another test's changes to the module went into, nor for another test."""
    host._kept_form.cache_clear()
    yield
    host._kept_form.cache_clear()


def change(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, value: Any) -> None:
    """Change what a module makes forms by: those that were kept know nothing of it."""
    monkeypatch.setattr(module, name, value)
    host._kept_form.cache_clear()


def some(problem: Problem, map: str, dtype: torch.dtype, seed: int = 0, **how: Any) -> Any:
    every = make_operands(problem, dtype, DEVICE, seed=seed, **how)
    return {name: getattr(every, name) for name in OPERANDS[map]}


def check(algorithm: Triton, problem: Problem, map: str, operands: dict[str, Tensor]) -> Tensor:
    result: Tensor = getattr(algorithm, map)(problem, *operands.values())
    assert_right(result, problem, **operands, algorithm=algorithm)
    return result


def of(config: Config, map: str) -> Triton:
    return Triton(weight=config.name) if map == "grad_weight" else Triton(correlate=config.name)


# Rows past a block of sums, columns past a chunk of taps, with gaps between taps; channels past
# a tile's K, pixels past its M, images past the first.
FEW = "n2c4-x22x5-o2-k9x5-p3,2x1,2-d2x1-g2"
MANY = "n2c19-x9x6-o17-k2x3-p1-d1x2"
# One channel to one; columns past a tile's K, and taps that meet no column.
ONE = "n2c2-x9x37-o2-k2x4-s1x2-p1,2x3,1-d2x3-g2"
EACH = {Dot: MANY, Band: ONE}


def problem_for(config: Config) -> Problem:
    """A problem that is large enough for tails in every tile of a configuration."""
    return Problem.parse(EACH.get(type(config), FEW))


def is_able(config: Config, map: Any, dtype: torch.dtype = torch.float32) -> bool:
    """Whether a configuration is for its problem, as in the tests without TF32."""
    with torch.backends.cudnn.flags(allow_tf32=False):
        return config in Triton().configs(problem_for(config), map, dtype)


def is_quick_interpreted(config: Config, dtype: torch.dtype) -> bool:
    """float32, or one configuration of a kind."""
    some_of_each = ("taps-4", "sums-4x4x4", "dot-64x16", "dot-64x16-k16", "band-64x32")
    return dtype == torch.float32 or config.name in some_of_each


@runs
@needs(FAST_TRITON, unless=is_quick_interpreted)
@only(is_able)
@each_config
@each_map
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_configuration(config: Config, map: Any, dtype: torch.dtype) -> None:
    """Against the oracle; in the interpreter each in float32, one of a kind in the others."""
    problem = problem_for(config)
    check(of(config, map), problem, map, some(problem, map, dtype))


@runs
@pytest.mark.parametrize("name", ["taps-4", "taps-8", "taps-16", "sums-4x4x4", "sums-8x8x4"])
def test_rows_of_sums_under_a_stride(name: str) -> None:
    """Rows that a block shares lie a stride apart, and taps a dilation."""
    problem = Problem.parse("n2c2-x21x6-o4-k6x2-s2x1-p2,1x0,1-d3x1-g2")
    config = next(each for each in CONFIGS if each.name == name)
    map: Any = "grad_weight" if isinstance(config, Sums) else "forward"
    operands = some(problem, map, torch.float32)
    run = getattr(of(config, map), map)
    result: Tensor = run(problem, *operands.values())
    assert_right(result, problem, **operands, algorithm=Triton())


def rows_may_be_shared(map: str, case: str) -> bool:
    """Rows that stride apart share nothing."""
    return map == "forward" or Problem.parse(case).stride[0] == 1


@runs
@only(rows_may_be_shared)
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
def test_rows_outside_are_left_out(map: Any, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under strides and gaps, several channels, taps that meet no row at all, of a single row, both
    layouts; not where rows are in two blocks."""
    change(monkeypatch, triton_configs, "OWN_KERNEL", 0)
    problem = Problem.parse(case)
    operands = some(problem, map, torch.float32)
    config = triton_configs.by_name("taps-8")
    launch = host.form_of(map, problem, *operands.values(), config).launches[0]
    rows, _ = axes(map, problem)
    assert launch.constants["INSIDE"] == (rows.source if 1 < rows.dest <= 8 and rows.beyond else 0)
    plain = check(of(config, map), problem, map, operands)
    last = {n: v.contiguous(memory_format=torch.channels_last) for n, v in operands.items()}
    assert torch.equal(plain, check(of(config, map), problem, map, last))


@runs
@pytest.mark.parametrize("programs", [1, 12, 1056])
@pytest.mark.parametrize(
    "name", ["sums-1x4x4", "sums-4x4x4", "dot-64x16", "dot-64x16-k16", "band-64x32"]
)
def test_pixels_are_split_anyhow(name: str, programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One split of many blocks, a few of several, one a block; the last of each not full."""
    change(monkeypatch, triton_weight, "PROGRAMS", programs)
    kind = name.partition("-")[0]
    one = "n5c1-x17x6-o1-k2x3-p1"
    each = {"sums": "n3c1-x20x17-o2-k2x3-p1", "dot": "n3c9-x6x7-o18-k2x1-p1,0x0,0", "band": one}
    problem = Problem.parse(each[kind])
    config = next(each for each in CONFIGS if each.name == name)
    splits, _ = triton_weight.splits_of(problem, config)
    assert splits > 1 if programs > 1 else splits == 1
    check(
        of(config, "grad_weight"),
        problem,
        "grad_weight",
        some(problem, "grad_weight", torch.float32),
    )


@runs
@each_map
@pytest.mark.parametrize(
    "case",
    [
        "n1c1-x1x1-o1-k1",
        "n2c2-x7x9-o2-k3x4-s2x3-p1,2x0,1-d1x2-g2",
        "n1c1-x5x12-o1-k3-p1-d1x5",
        "n5c1-x17x35-o1-k2x3-p1",
        "n1c2-x4x5-o2-k3x2-s5x4-p3-g2",
    ],
)
def test_bands(map: Any, case: str) -> None:
    """Strides, gaps, taps and pixels that meet nothing; more rows and columns than a tile has."""
    problem = Problem.parse(case)
    operands = some(problem, map, torch.float32)
    config = next(each for each in CONFIGS if isinstance(each, Band))
    plain = check(of(config, map), problem, map, operands)
    last = {n: v.contiguous(memory_format=torch.channels_last) for n, v in operands.items()}
    assert torch.equal(plain, check(of(config, map), problem, map, last))


EDGES = [
    "n1c1-x1x1-o1-k1",
    "n1c1-x4x5-o1-k4x5",
    "n1c2-x5x5-o2-k3-p9-g2",
    "n1c1-x7x8-o2-k3x2-s2x3-p1,2x0,1-d1x2",
    "n1c2-x6x7-o2-k5-s4x6-p3-d2x3-g2",
    "n1c1-x5x5-o1-k3-p20-d12",
    "n2c3-x8x8-o5-k4-s4",
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
def test_edges(case: str) -> None:
    problem = Problem.parse(case)
    for map in MAPS:
        check(Triton(), problem, map, some(problem, map, torch.float32))


@runs
@each_map
@settings(max_examples=500 if CUDA else 12)
@given(data=st.data(), problem=problems(max_batch=2, max_size=9, max_kernel=4))
def test_problems_of_every_kind(data: st.DataObject, problem: Problem, map: Any) -> None:
    """Any layout, any data, any configuration that is able."""
    dtype = data.draw(st.sampled_from(FLOATS))
    config = data.draw(st.sampled_from(Triton().configs(problem, map, dtype)))
    layouts = tuple(data.draw(st.sampled_from(LAYOUTS)) for _ in range(3))
    kind = data.draw(st.sampled_from(("normal", "integers", "wide")))
    operands = some(problem, map, dtype, data.draw(st.integers(0, 99)), data=kind, layouts=layouts)
    check(of(config, map), problem, map, operands)


def is_quick_over_channels(name: str, case: str) -> bool:
    """In the interpreter forty channels one by one take half a minute."""
    return Problem.parse(case).group_in <= 8 or name.startswith("dot")


@runs
@needs(FAST_TRITON, unless=is_quick_over_channels)
@pytest.mark.parametrize(
    "name", ["taps-1", "taps-4", "taps-8", "dot-64x16", "sums-1x4x4", "sums-4x4x4", "band-64x32"]
)
# Slow in the interpreter; there zero times an infinity is a NaN as well.
@pytest.mark.parametrize("value", ["inf", "nan"] if CUDA else ["nan"])
@pytest.mark.parametrize(
    "case",
    # Less padding than k - 1 on a side: there grad_input has pixels that miss taps.
    [
        "n1c2-x5x6-o2-k3x2-p2,1x1,0-g2",
        "n1c2-x5x6-o2-k3x2-p1,2x0,1-g2",
        "n1c2-x6x7-o3-k3-s2-p1",
        "n1c40-x3x2-o2-k2-p1,0x0,1",
    ],
)
def test_one_non_finite_number_reaches_only_its_windows(
    name: str, value: str, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pixel of the image never meets a tap beyond an edge; elsewhere nothing changes."""
    if name == "taps-8":  # leaves rows out, taps-4 does not
        change(monkeypatch, triton_configs, "OWN_KERNEL", 0)
    problem = Problem.parse(case)
    config = next(each for each in CONFIGS if each.name == name)
    for map in MAPS:
        if config not in Triton().configs(problem, map, torch.float32):
            continue
        run = getattr(of(config, map), map)
        operands = some(problem, map, torch.float32)
        clean = run(problem, *operands.values())
        # The first element and the last: corners of images, and taps that meet edges first; and
        # the middle one, which follows upon another channel's last.
        for marked, part in product(OPERANDS[map], (0.0, 0.5, 1.0)):
            mark = torch.zeros_like(operands[marked])
            mark.view(-1)[int(part * (mark.numel() - 1) + 0.5)] = 1
            ones = {each: torch.ones_like(v) for each, v in operands.items()} | {marked: mark}
            reached = (oracle(problem, **ones).value > 0).to(DEVICE)
            spoilt = operands[marked].masked_fill(mark > 0, float(value))
            dirty = run(problem, *(operands | {marked: spoilt}).values())
            assert not torch.isfinite(dirty[reached]).any()
            if marked != "input" and map != "grad_input":
                # Over the padding of the image the definition allows either.
                whole = replace(problem, size=problem.padded_size, padding=((0, 0), (0, 0)))
                pixels = torch.ones(whole.input_shape)
                reached = (oracle(whole, **(ones | {"input": pixels})).value > 0).to(DEVICE)
            torch.testing.assert_close(clean[~reached], dirty[~reached])


@runs
@each_map
@pytest.mark.parametrize("case", ["n2c2-x7x8-o2-k3x2-s2x1-p1-g2", MANY])
def test_positions_in_64_bits(map: Any, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers as in 32."""
    problem = Problem.parse(case)
    operands = some(problem, map, torch.float32)
    narrow = check(Triton(), problem, map, operands)
    change(monkeypatch, triton_draft, "MOST", 0)
    assert torch.equal(narrow, check(Triton(), problem, map, operands))


@runs
@each_map
def test_positions_in_bands_in_64_bits(map: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem.parse("n2c2-x7x8-o2-k3x2-s2x1-p1-g2")
    operands = some(problem, map, torch.float32)
    band = Triton(correlate="band-64x32", weight="band-64x32")
    narrow = check(band, problem, map, operands)
    change(monkeypatch, triton_draft, "MOST", 0)
    assert torch.equal(narrow, check(band, problem, map, operands))


@on_cuda
def test_channels_that_lie_far_apart() -> None:
    """The third is 2**31 positions on, though to each next one it is fewer than 32 bits count.

    The interpreter takes 14 seconds for it, and ends in a crash where a channel is multiplied.
    """
    problem = Problem.parse("n1c3-x2-o1-k2-p1")
    w, step = some(problem, "forward", torch.float16)["weight"], 2**30
    all_of_it = torch.empty(2 * step + 4, dtype=torch.float16, device=DEVICE)
    x = all_of_it.as_strided(problem.input_shape, (2 * step + 4, step, 2, 1))
    x.copy_(some(problem, "forward", torch.float16)["input"])
    for name in ("taps-1", "taps-4"):
        check(Triton(correlate=name), problem, "forward", {"input": x, "weight": w})


def test_64_bits_are_taken_where_they_are_needed() -> None:
    problem = Problem.parse("n3c1-x32768-o1-k3-p1")
    x = torch.empty(1, device="meta").expand(problem.input_shape)
    both = axes("forward", problem)
    assert not triton_draft.passes_32_bits(both, x)
    assert triton_draft.passes_32_bits(both, torch.empty(problem.input_shape, device="meta"))
    far = axes("forward", Problem.parse("n1c1-x3-o1-k2-p3000000000-d3000000000"))
    assert triton_draft.passes_32_bits(far, torch.empty(1, 1, 3, 3, device="meta"))


@have
def test_splits_that_end_past_32_bits_are_counted_in_64() -> None:
    """Though every pixel has a place in 32: wrapped, a lane would be live before the first."""
    problem = Problem.parse("n134217216c1-x4-o1-k1")
    x = torch.empty(problem.input_shape, device="meta")
    assert not triton_draft.passes_32_bits(axes("grad_weight", problem), x)
    config = next(each for each in CONFIGS if each.name == "sums-1x4x4")
    (launch,) = host.form_of("grad_weight", problem, x, x, config).launches
    assert launch.constants["WIDE"]


@runs
def test_layout_of_the_input_is_kept() -> None:
    for case in ("n2c4-x5x6-o4-k3-p1-g4", "n2c18-x4x5-o5-k2"):
        problem = Problem.parse(case)
        x, w = some(problem, "forward", torch.float32).values()
        plain = Triton().forward(problem, x, w)
        last = Triton().forward(problem, x.contiguous(memory_format=torch.channels_last), w)
        assert plain.is_contiguous()
        assert last.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(plain, last)


@runs
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("name", ["taps-4", "dot-64x16", "band-64x32"])
def test_mending_finds_its_pixels_in_channels_last(
    name: str, wide: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tap that is NaN, of one channel of several: the same pixels as in NCHW are spoilt."""
    if wide:
        change(monkeypatch, triton_draft, "MOST", 0)
    problem = Problem.parse("n2c3-x5x6-o3-k3x2-p1x0,1-g3")
    way = Triton(correlate=name)
    y, w = some(problem, "grad_input", torch.float32).values()
    clean = way.grad_input(problem, y, w)
    w.view(-1)[7] = torch.nan  # the first column's second tap of the second channel
    plain = way.grad_input(problem, y, w)
    torch.testing.assert_close(plain[~plain.isnan()], clean[~plain.isnan()])
    last = way.grad_input(problem, y.contiguous(memory_format=torch.channels_last), w)
    assert 0 < plain.isnan().sum() < plain[:, 1].numel()
    torch.testing.assert_close(plain, last, equal_nan=True)


@runs
@each_map
@pytest.mark.parametrize("case", ["n1c2-x5x4-o2-k3x2-p1-g2", "n1c5-x4x3-o4-k2"])
def test_views_that_are_negated(map: Any, case: str) -> None:
    """The sign of an imaginary part of a conjugate is a flag on the tensor, not yet in memory."""
    problem = Problem.parse(case)
    plain = some(problem, map, torch.float32)
    operands = {
        name: torch.complex(torch.zeros_like(each), each).conj().imag
        for name, each in plain.items()
    }
    assert all(each.is_neg() for each in operands.values())
    check(Triton(), problem, map, operands)


@runs
def test_configurations_are_measured_and_the_quickest_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each under its own spelling, for later processes to know; what is taken is right."""
    timed: list[str] = []

    def pretend(algorithms: Any, *_: Any) -> dict[str, float]:
        timed.extend(each.spelling for each in algorithms)
        return {each.spelling: 2.0 - (each.spelling == wanted) for each in algorithms}

    monkeypatch.setattr(auto_module, "time_algorithms", pretend)
    problem = Problem.parse("n1c2-x9x8-o2-k5x3-p1-g2")
    try:
        for map in MAPS:
            variants = Triton().variants(request(problem, map))
            others = [each.spelling for each in variants]
            assert len(others) > 1
            wanted = "triton" if map == "grad_weight" else others[0]
            wisdom.forget()
            timed.clear()
            plan = make_plan(problem, DEVICE, torch.float32, Auto(measure=True))
            chosen = getattr(plan, map)
            assert chosen.spelling == wanted
            assert {"triton", *others} <= {*timed}
            assert f"  > {wanted}" in str(plan)
            check(chosen, problem, map, some(problem, map, torch.float32))
            # What the process has measured, it heeds unasked where it looks at all.
            assert getattr(make_plan(problem, DEVICE, torch.float32, Auto(measure=True)), map) == (
                chosen
            )
    finally:
        wisdom.forget()


@runs
def test_gradients_of_second_order() -> None:
    x = torch.randn(1, 2, 4, 5, dtype=torch.float64, device=DEVICE, requires_grad=True)
    w = torch.randn(2, 1, 2, 3, dtype=torch.float64, device=DEVICE, requires_grad=True)

    def call(x: Tensor, w: Tensor) -> Tensor:
        return corr2d(x, w, None, (2, 1), ((1, 0), (1, 1)), 1, 2, algorithm="triton")

    small = torch.autograd.gradcheck if not CUDA else torch.autograd.gradgradcheck
    assert small(call, (x, w), fast_mode=True)


# -- what is kept between calls ---------------------------------------------------------------


class Jit:
    """In the place of the kernels' module: notes what is compiled and with what is launched."""

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
                return Subscribed(compiled)

            return run

        return Subscribed(specialize, arg_names=names)


class Subscribed(SimpleNamespace):
    """``self[key]`` is what a function makes of the key."""

    def __init__(self, make: Callable[[Any], Any], **attributes: Any) -> None:
        super().__init__(make=make, **attributes)

    def __getitem__(self, key: Any) -> Any:
        return self.make(key)


@pytest.fixture
def jit(monkeypatch: pytest.MonkeyPatch) -> Jit:
    jit = Jit()
    monkeypatch.setattr(triton_form, "_kernels", lambda: jit)
    return jit


def geometry(launches: list[tuple[str, int, dict[str, Any]]]) -> list[Any]:
    """Launches without the addresses, which come first, of memory that is another each time."""
    operands = {"source", "weight", "result", "input", "output", "partial", "band"}
    return [(n, g, {k: v for k, v in e.items() if k not in operands}) for n, g, e in launches]


@have
@only(is_able)
@each_config
@each_map
def test_a_call_like_an_earlier_one_specializes_nothing(config: Config, map: Any, jit: Jit) -> None:
    """The same launches with the same numbers, and the addresses of its own operands."""
    problem = problem_for(config)
    launches = []
    for seed in range(3):
        operands = some(problem, map, torch.float32, seed)
        getattr(of(config, map), map)(problem, *operands.values())
        launches.append(jit.launched[:])
        jit.launched.clear()
    assert len(jit.compiled) == len(launches[0])
    assert geometry(launches[0]) == geometry(launches[1]) == geometry(launches[2])
    if isinstance(config, (Taps, Sums)):  # Others read copies.
        _, _, seen = launches[2][0]
        source = {"input": "source", "output": "source"} if map != "grad_weight" else {}
        for name, value in operands.items():
            assert seen[source.get(name, name)] == value.data_ptr()


@have
@each_map
@pytest.mark.parametrize("case", ["n2c2-x6x8-o2-k3-p1-g2", "n1c20-x6x8-o17-k3"])
def test_what_changes_between_calls_is_heeded(map: Any, case: str, jit: Jit) -> None:
    """Strides, alignment, dtype, TF32 and Triton's own settings; and what was before, again."""
    problem = Problem.parse(case)
    first, second = some(problem, map, torch.float32).values()
    many = problem.group_in * problem.group_out > FEW_CHANNEL_PAIRS

    def after(*operands: Tensor) -> tuple[int, list[Any]]:
        """How many kernels a call compiles, and what it launches; a second call compiles none."""
        before = len(jit.compiled)
        for _ in range(2):
            jit.launched.clear()
            getattr(Triton(), map)(problem, *operands)
            once = len(jit.compiled) - before
        assert len(jit.compiled) == before + once
        return once, geometry(jit.launched)

    count, plain = after(first, second)
    assert count == len(plain)
    last = first.contiguous(memory_format=torch.channels_last)
    count, launches = after(last, second)
    assert count == len(plain)
    if not many:
        # But where lanes want pixels next to each other, and have them moved first.
        assert (launches != plain) == (map != "grad_weight")
    shifted = torch.empty(first.numel() + 1)[1:].view(first.shape).copy_(first)
    count, launches = after(shifted, second)
    # Copies that are made for it are aligned.
    assert count == (0 if many else len(plain))
    assert launches == plain
    count, launches = after(first.double(), second.double())
    assert count == len(launches)
    assert launches != plain
    torch.backends.cudnn.allow_tf32 = True
    count, launches = after(first, second)
    assert count == len(plain)
    assert any(each.get("PRECISION") == "tf32" for _, _, each in launches) == many
    torch.backends.cudnn.allow_tf32 = False
    knobs = import_module("triton").knobs
    try:
        knobs.runtime.debug = True
        assert after(first, second) == (len(plain), plain)
    finally:
        knobs.runtime.debug = False
    assert after(first, second) == (0, plain)


@have
def test_kernels_belong_to_a_device(jit: Jit) -> None:
    """Compiled once for each, and launched on none but theirs."""

    def at(device: int, address: int) -> Any:
        return SimpleNamespace(get_device=lambda: device, data_ptr=lambda: address)

    problem = Problem.parse("n1c1-x64-o1-k3")
    x, w = torch.empty(problem.input_shape), torch.empty(problem.weight_shape)
    config = Triton()._config("forward", problem, torch.float32)
    (launch,) = host.form_of("forward", problem, x, w, config).launches
    for device, count in ((0, 1), (1, 2), (0, 2), (1, 2)):
        launch.run([at(device, 32) for _ in range(3)])
        assert len(jit.compiled) == count
    launch.run([at(0, 32), at(0, 40), at(0, 32)])
    launch.run([at(0, 40), at(0, 32), at(0, 32)])
    assert len(jit.compiled) == 4


@on_cuda
@each_map
def test_results_repeat_to_the_bit(map: Any) -> None:
    for case in ("n8c32-x30-o32-k7-p3-g32", "n4c64-x20-o64-k3-p1"):
        problem = Problem.parse(case)
        operands = some(problem, map, torch.float32)
        torch.use_deterministic_algorithms(True)
        first, *others = (getattr(Triton(), map)(problem, *operands.values()) for _ in range(5))
        assert all(torch.equal(first, each) for each in others)


@on_cuda
@each_map
@pytest.mark.parametrize("case", ["n4c32-x30-o32-k7-s2-p3-g32", "n2c64-x20-o64-k3-p1"])
def test_graphs_and_streams(map: Any, case: str) -> None:
    """Captured and replayed with other numbers; and on two streams at once; nothing waits."""
    problem = Problem.parse(case)
    run = getattr(Triton(), map)
    operands = some(problem, map, torch.float32)
    other = some(problem, map, torch.float32, seed=1)
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


@on_cuda
def test_more_than_32_bits_of_pixels() -> None:
    """2**31 pixels and more: the last ones are right."""
    problem = Problem.parse("n2c1-x32768-o1-k3-p1")
    x = torch.zeros(problem.input_shape, dtype=torch.float16, device=DEVICE)
    x[1, 0, -2:, -2:] = 1
    w = torch.ones(problem.weight_shape, dtype=torch.float16, device=DEVICE)
    y = Triton().forward(problem, x, w)
    assert y[1, 0, -3:, -3:].tolist() == [[1, 2, 2], [2, 4, 4], [2, 4, 4]]
    assert y.sum(dtype=torch.float32) == 25


# -- without any device -----------------------------------------------------------------------


def planned() -> list[Any]:
    """Of each configuration each map, in the dtype that asks most of it."""
    from benchmarks.cubins import problem_of

    found = []
    for config in CONFIGS:
        for map in MAPS:
            dtype = torch.float16
            if isinstance(config, (Dot, Band)):
                dtype = torch.float64 if config.k == 16 else torch.float16
                if map == "grad_input":
                    continue  # the same kernel as forward
            if config in Triton().configs(problem_of(config), map, dtype):
                found.append(pytest.param(config, map, dtype, id=f"{config.name}-{map}"))
    return found


@compiles
@pytest.mark.parametrize(("config", "map", "dtype"), planned())
def test_compiled_kernels_keep_within_a_device(
    config: Config, map: Any, dtype: torch.dtype
) -> None:
    """No stack, no spills; registers, shared memory and instructions as planned."""
    from benchmarks.cubins import compile_launch, launches_of, problem_of

    # The tallest takes long to compile, here as everywhere.
    for architecture in (90,) if config.name == "sums-8x8x4" else (80, 90):
        for launch in launches_of(problem_of(config), map, dtype, config):
            made = compile_launch(launch, architecture)
            assert made.stack == 0
            assert made.spills == 0
            if launch.kernel in ("spread_taps", "sum_bands"):
                assert made.registers <= 64
            elif isinstance(launch.config, (Dot, Band)):
                assert made.shared <= 96 * 1024
                assert made.registers <= 255
                assert made.matrix_units
                assert made.wide_loads
            else:
                assert made.shared <= 1024
                # Of half the warps, which the tallest have, twice as many: ahead on an H200.
                assert made.registers * launch.config.warps <= 128 * 4
                assert made.count("FFMA")


@compiles
@pytest.mark.parametrize("map", ["forward", "grad_input"])
def test_no_instruction_multiplies_rows_outside(map: Any) -> None:
    """RepLKNet's 31x31 on 32 rows: 752 of 992 products for a column of the kernel, each its one
    instruction, and few beside them."""
    from benchmarks.cubins import BANDS, compile_launch, launches_of

    problem, config = Problem.parse(BANDS), triton_configs.by_name("taps-32")
    pairs = sum(0 <= row + tap - 15 < 32 for row in range(32) for tap in range(31))
    made = compile_launch(launches_of(problem, map, torch.float32, config)[0], 90)
    assert made.count("FFMA") == pairs == 752
    assert sum(made.instructions.values()) < 2 * pairs
    assert made.count("LDG") == 32 + 31
    assert made.stack == made.spills == 0
    assert made.registers <= 128


@compiles
@pytest.mark.parametrize("tf32", [False, True])
def test_tables_in_the_docs_are_of_this_code(tf32: bool) -> None:
    """Without compiling: kernels and launches are those they were made of, by one Triton."""
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


@compiles
@pytest.mark.parametrize("tf32", [False, True])
def test_float32_is_float32_unless_pytorch_lets_it_be_less(tf32: bool) -> None:
    from benchmarks.cubins import compile_launch, launches_of, problem_of

    torch.backends.cudnn.allow_tf32 = tf32
    config = next(each for each in CONFIGS if each.name == "dot-64x64")
    problem = problem_of(config)
    (launch,) = launches_of(problem, "forward", torch.float32, config, channels_last=True)
    made = compile_launch(launch, 90)
    assert bool(made.matrix_units) == tf32
    assert bool(made.count("FFMA") > 100) != tf32


@pytest.mark.parametrize("tf32", [False, True])
def test_rules_choose_what_is_able(tf32: bool) -> None:
    torch.backends.cudnn.allow_tf32 = tf32
    large = ("n64c384-x32-o384-k31-p15-g384", "n8c3-x224-o64-k7-s2-p3", "n64c256-x56-o4096-k3")
    for case in (*EDGES, FEW, MANY, *large):
        problem = Problem.parse(case)
        if 0 in problem.input_shape:
            continue
        for map in MAPS:
            for dtype in FLOATS:
                chosen = Triton()._config(map, problem, dtype)
                assert chosen in Triton().configs(problem, map, dtype)


def test_bands_are_chosen_where_they_are_predicted_to_be_ahead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Wide kernels, rows of 16-byte loads; never where most of a band is zeros, or for little.

    Nor for images in float32, of which no matrix unit takes more than TF32.
    """
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
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


def test_configurations_have_names_of_their_own() -> None:
    names = [each.name for each in CONFIGS]
    assert len(set(names)) == len(names)
    # More warps in one loop over taps and channels are known to be miscompiled.
    assert all(each.warps <= 4 for each in CONFIGS)
    assert {type(each) for each in CONFIGS} == {Taps, Sums, Dot, Band}


@pytest.mark.parametrize("map", ["forward", "grad_input"])
@settings(max_examples=200)
@given(problem=problems(allow_empty=False, max_stride=6))
def test_axes_pair_the_pixels_of_the_definition(map: Any, problem: Problem) -> None:
    """``source * div = dest * mult + base + tap * u`` where forward says ``i*s + u*d - p = h``."""
    for dim, axis in enumerate(axes(map, problem)):
        outputs, pixels = range(problem.output_size[dim]), range(problem.size[dim])
        stride, tap = problem.stride[dim], problem.dilation[dim]
        pairs = {
            (i, u, i * stride + u * tap - problem.padding[dim][0])
            for i in outputs
            for u in range(problem.kernel[dim])
        }
        found = set()
        for dest in range(axis.dest):
            for u in range(axis.taps):
                at, rest = divmod(dest * axis.mult + axis.base + axis.tap * u, axis.div)
                if rest == 0 and 0 <= at < axis.source:
                    found.add((dest, u, at) if map == "forward" else (at, u, dest))
        assert found == {each for each in pairs if each[2] in pixels}


def test_refusals_say_why() -> None:
    problem = Problem.parse("n1c1-x8x8-o1-k3")
    (sentence,) = Triton().refusals(request(problem, device="meta"))
    if not HAVE:
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


@compiles
@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (RuntimeError, "Failed to find C compiler."),
        # Where Triton's cache may not be executed.
        (ImportError, "cuda_utils.so: failed to map segment from shared object"),
    ],
)
def test_a_machine_without_a_compiler_is_told_so(
    kind: type[Exception], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton compiles its launcher in C when it first meets a device."""
    module = import_module("triton.runtime")

    def fails() -> Any:
        raise kind(why + "\nMore")

    monkeypatch.setattr(module, "driver", SimpleNamespace(active=Launcherless(fails)))
    (sentence,) = host._launcher_refusals()
    assert f"cannot build its launcher here ({why}); it wants a C compiler" in sentence
    monkeypatch.setattr(module, "driver", SimpleNamespace(active=Launcherless(lambda: None)))
    assert host._launcher_refusals() == ()


@dataclass(frozen=True)
class Launcherless:
    """A Triton driver whose launcher is made as told."""

    make: Callable[[], Any]

    @property
    def utils(self) -> Any:
        return self.make()


def test_grids_that_no_device_has_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_where_refusals", lambda _: ())
    problem = Problem.parse("n1000000c1000000-x1-o1000000-k1-g1000000")
    (sentence,) = Triton().refusals(request(problem, device="cuda"))
    assert "more than the 2**31 - 1 of a CUDA grid" in sentence


def test_planted_bugs_have_their_place() -> None:
    """Each changes text that is there once; whether it is caught is for the script to say."""
    for bug in BUGS:
        changed(bug)
    assert len({bug.name for bug in BUGS}) == len(BUGS)


def test_the_package_imports_without_triton() -> None:
    code = (
        "import sys; sys.modules['triton'] = None; import torch, torch_corr\n"
        "try: torch_corr.corr2d(torch.ones(3, 3), torch.ones(2, 2), algorithm='triton')\n"
        "except RuntimeError as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Triton is not installed; PyTorch's builds for CUDA bring it" in run.stdout


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("__version__ = '3.1.0'", "what is installed as Triton (3.1.0) has no triton.knobs"),
        ("raise ImportError('libtriton.so: no GLIBC')", "cannot be imported (libtriton.so: no"),
    ],
    ids=["old", "broken"],
)
def test_a_triton_that_is_of_no_use_is_refused_alone(
    content: str, sentence: str, tmp_path: Path
) -> None:
    """On a CPU too, where 'auto' asks every algorithm."""
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text(content)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import torch, torch_corr\n"
        "x, w = torch.ones(1, 1, 64, 64), torch.ones(1, 1, 5, 5)\n"
        "print(torch_corr.corr2d(x, w).mean().item())\n"
        "try: torch_corr.corr2d(x, w, algorithm='triton')\n"
        "except RuntimeError as error: print(error)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.startswith("25.0\n")
    assert sentence in run.stdout


def test_workspace_is_stated_without_triton() -> None:
    problem = Problem.parse("n2c64-x8-o64-k3-p1")
    for map in MAPS:
        assert Triton().workspace(request(problem, map, "cuda")) > 0


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
def test_launching_asks_no_tensor_for_a_value(
    map: Any, case: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device would be waited for; on meta, where there are none, it would raise."""
    launched: list[str] = []
    monkeypatch.setattr(triton_form.Launch, "run", lambda self, _: launched.append(self.kernel))
    problem = Problem.parse(case)
    shapes = [getattr(problem, f"{slot}_shape") for slot in OPERANDS[map]]
    result = getattr(Triton(), map)(
        problem, *(torch.empty(shape, dtype=dtype, device="meta") for shape in shapes)
    )
    sought = {"forward": "output", "grad_input": "input", "grad_weight": "weight"}[map]
    assert result.shape == getattr(problem, f"{sought}_shape")
    assert result.dtype == dtype
    assert launched


# -- behind a transform whose result is checked -----------------------------------------------


# Dilated, strided and grouped; columns of one channel to one for bands.
CHECKED = ("n2c3-x9x12-o2-k4x5-p2", "n1c2-x14-o2-k5-s2-p4-d2-g2", ONE)


@runs
@each_map
@pytest.mark.parametrize("case", CHECKED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_device_recomputes_what_fails_the_check(
    map: Any, case: str, dtype: torch.dtype
) -> None:
    """To the bit Triton's result; where nothing fails, the transform's, with its zeros exact."""
    problem, fallback = Problem.parse(case), Triton()
    checked = CheckedFFT(FFT(double=True), fallback)
    first, second = some(problem, map, dtype).values()
    result = getattr(checked, map)(problem, first.abs(), second.abs())
    expected = getattr(fallback, map)(problem, first.abs(), second.abs())
    torch.testing.assert_close(result, expected)
    # Double precision leaves strided gradients, sums of few products, to the fallback.
    assert dtype == torch.float64 or not torch.equal(result, expected)
    zero = torch.zeros_like(first)
    assert (getattr(checked, map)(problem, zero, second) == 0).all()
    for bright in (float("nan"), float("inf"), 1e30):
        wild = first.clone()
        wild[(-1,) * 4] = bright
        result = getattr(checked, map)(problem, wild, second)
        expected = getattr(fallback, map)(problem, wild, second)
        torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)


@runs
@only(is_able)
@each_config
@each_map
def test_kernels_store_nothing_where_there_is_no_doubt(
    config: Config, map: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every launch of every configuration; and all that it does where there is."""
    problem, dtype = problem_for(config), torch.float32
    filled: list[Tensor] = []

    def fill(self: triton_form.Fresh, tensors: list[Tensor]) -> Tensor:
        made = tensors[0].new_empty_strided(self.shape, self.strides, dtype=self.dtype).fill_(7)
        filled.append(made)
        return made

    monkeypatch.setattr(triton_form.Fresh, "make", fill)
    first, second = some(problem, map, dtype).values()
    sure, doubt = of(config, map), torch.zeros(1, dtype=torch.int32, device=DEVICE)
    sure._run(map, problem, first, second, doubt)
    assert filled
    assert all((each == 7).all() for each in filled)
    again = sure._run(map, problem, first, second, doubt + 1)
    assert torch.equal(again, getattr(sure, map)(problem, first, second))


def launched_in_doubt(name: str) -> tuple[Config, Any]:
    config = next(each for each in CONFIGS if each.name == name)
    return config, "grad_weight" if isinstance(config, Sums) else "forward"


def may_be_in_doubt(name: str, dtype: torch.dtype) -> bool:
    from benchmarks.cubins import problem_of

    config, map = launched_in_doubt(name)
    with torch.backends.cudnn.flags(allow_tf32=False):
        return config in Triton().configs(problem_of(config), map, dtype)


@compiles
@only(may_be_in_doubt)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["taps-4", "taps-28", "sums-4x4x4", "dot-64x32-k16", "band-64x32"])
def test_what_is_launched_in_doubt_compiles_as_well(name: str, dtype: torch.dtype) -> None:
    """No spills; matrix units where there are some without."""
    from benchmarks.cubins import compile_launch, launches_of, problem_of

    config, map = launched_in_doubt(name)
    problem = problem_of(config)
    doubt = torch.empty(1, dtype=torch.int32, device="meta")
    launches = (launches_of(problem, map, dtype, config, doubt=each) for each in (None, doubt))
    for plain, doubted in zip(*launches):
        without, made = compile_launch(plain, 90), compile_launch(doubted, 90)
        assert made.spills == made.stack == 0
        assert made.registers * config.warps <= 255 * 4
        assert made.matrix_units == without.matrix_units
        assert made.count("EXIT") > without.count("EXIT")
