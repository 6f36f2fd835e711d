"""Triton: kernels for CUDA, compiled when first used; sums over taps, or implicit matrix products.

Three ways for each map, by the number of channels that meet in a group:

    few    one lane to one pixel; rows of sums stay in registers, so that a pixel which is
           loaded meets every tap of a column of the kernel (``correlate_taps``, ``weight_taps``)
    many   a matrix product whose operand is gathered from the image as it goes: no columns in
           memory (``correlate_dot``, ``weight_dot``)
    one    with a kernel nearly as wide as the image: the same product, of columns instead of
           channels, by a banded matrix for each row of the kernel (``spread_taps``, ``sum_bands``)

``grad_input`` is ``forward`` read backwards: source and dest change places, taps go the other
way, and a stride becomes classes of pixels (:class:`Axis`).  ``grad_weight`` sums pixels in two
stages, splits and then their sum: no atomics, so that results repeat to the bit.

Half-precision products are summed in float32.  float32 is float32, unless PyTorch's
``torch.backends.cudnn.conv.fp32_precision`` (``allow_tf32``) lets cuDNN use TF32; then matrix
products do.  Nothing waits for the device; as with every Triton kernel, run once before you
capture a CUDA graph, since compiling is no part of one.

All of a map but its tensors' addresses follows from sizes, strides and dtype: its *form*
(:func:`form_of`).  So forms and the kernels compiled for them are kept, since to make one anew
takes the host longer than small problems take the device; no tensor is.  And the same launches
can be compiled without a device: ``docs/gpu.md`` tells what came of it.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from math import gcd, prod
from subprocess import CalledProcessError
from typing import Any, ClassVar, NamedTuple, TypeAlias

import torch
from torch import Tensor

from ..problem import Problem
from ..suggest import did_you_mean
from .base import (
    FEW,
    FLOATS,
    Algorithm,
    Cost,
    MapName,
    accumulation_dtype,
    definition_flops,
    dtype_name,
    dtype_refusal,
    matrix_speed,
    may_use_tf32,
    operand_bytes,
)


@dataclass(frozen=True)
class Taps:
    """A configuration of ``correlate_taps``.

    Attributes:
        name: what callers, tests and tables call it.
        lanes: pixels side by side in a program.
        height: rows of sums in every lane.
        chunk: taps of a column of the kernel held in registers at one time.
        warps: of a program.
    """

    name: str
    lanes: int
    height: int
    chunk: int
    warps: int = 4


@dataclass(frozen=True)
class Sums:
    """A configuration of ``weight_taps``: ``down`` x ``across`` taps in a lane; else as Taps."""

    name: str
    lanes: int
    height: int
    down: int
    across: int
    warps: int = 4


@dataclass(frozen=True)
class Product:
    """A configuration of ``correlate_dot`` and ``weight_dot``: an (m, n) tile, k at a time.

    No more than 4 warps: a single loop over taps and channels is known to be miscompiled with 8
    (pytorch/pytorch#177823).
    """

    name: str
    m: int
    n: int
    k: int
    warps: int = 4
    stages: int = 3


class Dot(Product):
    """Pixels by channels; in ``grad_weight`` channels by taps with channels."""


class Band(Product):
    """Images' rows by columns; in ``grad_weight`` columns by columns of a kernel's rows."""


Config: TypeAlias = Taps | Sums | Dot | Band

CONFIGS: tuple[Config, ...] = (
    Taps("taps-1", lanes=256, height=1, chunk=1),
    Taps("taps-4", lanes=256, height=4, chunk=4),
    Taps("taps-8", lanes=128, height=8, chunk=8),
    Taps("taps-14", lanes=64, height=14, chunk=16, warps=2),
    Taps("taps-16", lanes=128, height=16, chunk=16),
    Taps("taps-28", lanes=64, height=28, chunk=32, warps=2),
    Taps("taps-32", lanes=64, height=32, chunk=32, warps=2),
    Sums("sums-1x4x4", lanes=128, height=1, down=4, across=4),
    Sums("sums-4x4x4", lanes=128, height=4, down=4, across=4),
    Sums("sums-8x8x4", lanes=128, height=8, down=8, across=4),
    Sums("sums-14x7x7", lanes=64, height=14, down=7, across=7, warps=2),
    Dot("dot-64x16", 64, 16, 32),
    Dot("dot-64x32", 64, 32, 32),
    Dot("dot-64x64", 64, 64, 32),
    Dot("dot-128x64", 128, 64, 32),
    Dot("dot-128x128", 128, 128, 32),
    Dot("dot-64x16-k16", 64, 16, 16, stages=2),
    Dot("dot-64x32-k16", 64, 32, 16, stages=2),
    Dot("dot-64x64-k16", 64, 64, 16, stages=2),
    Band("band-64x32", 64, 32, 32),
    Band("band-128x32", 128, 32, 32),
    Band("band-64x64", 64, 64, 32),
    Band("band-32x64", 32, 64, 32),
    Band("band-32x128", 32, 128, 32),
)
"""Every configuration there is: each is tested and compiled, whatever the rules below choose."""

BANDED = 2**28
"""Products from which bands pay for the launches that make them and mend what they spoil."""

WIDEST = 16
"""Times a kernel's width up to which an image's rows are multiplied by bands, mostly zeros."""

SPREAD = 64
"""Rows that a block of sums may span; with longer steps rows are not shared anyway."""

PROGRAMS = 1056
"""Programs to split ``grad_weight`` into at least: 8 for each multiprocessor of an H100.  A
constant, so that results do not depend on the device."""

_MOST = 2**31 - 1
"""Programs of a grid's first axis; and positions that 32 bits count."""


class Axis(NamedTuple):
    """One image axis of a map: ``source * div = dest * mult + base + tap * u``.

    Attributes:
        source: pixels of the operand that is read.
        dest: pixels of the result (of the output, in ``grad_weight``).
        mult, div: the stride and 1, or 1 and the stride.
        base: where the first tap lies for ``dest`` = 0.
        tap: from tap to tap, negative in ``grad_input``.
        taps: the kernel's size.
        period: every how many taps the division by ``div`` comes out.
    """

    source: int
    dest: int
    mult: int
    div: int
    base: int
    tap: int
    taps: int
    period: int

    @property
    def classes(self) -> int:
        """Residues of dest pixels, each with taps of its own."""
        return min(self.div, self.dest)

    @property
    def of_class(self) -> int:
        """Dest pixels of the largest class."""
        return -(-self.dest // self.div)

    @property
    def reach(self) -> int:
        """No position that is computed along the axis is larger."""
        return self.dest * self.mult + abs(self.base) + (self.taps + self.period) * abs(self.tap)


class Fresh(NamedTuple):
    """A tensor of a form that is allocated, of this shape and these strides."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    def make(self, tensors: list[Tensor]) -> Tensor:
        """On the operands' device."""
        return tensors[0].new_empty_strided(self.shape, self.strides, dtype=self.dtype)


class Packed(NamedTuple):
    """A tensor of a form that is a copy: of the one at ``place``, seen in this shape and these
    strides, in the order of ``layout``."""

    place: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    layout: torch.memory_format

    def make(self, tensors: list[Tensor]) -> Tensor:
        """From those that were made before."""
        view = tensors[self.place].as_strided(self.shape, self.strides)
        return view.contiguous(memory_format=self.layout)


@dataclass(frozen=True, eq=False)
class Launch:
    """One kernel, where it runs and with what.

    Attributes:
        kernel: its name in ``_triton_kernels``.
        config: the configuration that it runs in.
        grid: programs.
        arguments: in the kernel's order; tensors, which come first, as stand-ins on ``meta``.
        constants: what it is compiled for.
        places: where its tensors are among those of its form.
        compiled: what has been compiled, for what :meth:`run` tells apart.
    """

    kernel: str
    config: Config
    grid: int
    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    places: tuple[int, ...]
    compiled: dict[tuple[Any, ...], tuple[Any, ...]] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, int]:
        """Warps and stages, for the compiler."""
        stages = self.config.stages if isinstance(self.config, Product) else 1
        return {"num_warps": self.config.warps, "num_stages": stages}

    def run(self, tensors: list[Tensor]) -> None:
        """On the current stream of the current device, which is that of the form's tensors."""
        pointers = [tensors[place].data_ptr() for place in self.places]
        # Triton compiles for numbers, dtypes, alignment and these settings; a module belongs to
        # a device.  What of it a form does not fix is the key.
        knobs = _knobs()
        key = (
            tensors[0].get_device(),
            *(pointer % 16 == 0 for pointer in pointers),
            knobs.runtime.debug,
            knobs.compilation.instrumentation_mode,
        )
        if found := self.compiled.get(key):
            # As Triton's own launch ends, with its hooks; all before that, which finds out again
            # what to launch, takes three times as long.
            launch, numbers = found
            launch(*pointers, *numbers)
            return
        kernel = getattr(_kernels(), self.kernel)
        count = len(self.places)
        arguments = (*(tensors[place] for place in self.places), *self.arguments[count:])
        made = kernel[(self.grid,)](*arguments, **self.constants, **self.options)
        if hasattr(made, "result"):  # Under triton.AsyncCompileMode.
            made = made.result()
        if made is not None:  # The interpreter compiles nothing.
            constants = (self.constants[name] for name in kernel.arg_names[len(arguments) :])
            self.compiled[key] = made[(self.grid, 1, 1)], (*arguments[count:], *constants)


@dataclass(frozen=True, eq=False)
class Form:
    """A map of operands of given sizes, strides and dtype: all of it but the addresses.

    Attributes:
        config: the configuration that it runs in.
        made: the tensors that it takes beside the two operands, each made of those before it.
        launches: in their order.
        result: the place of the tensor that they fill, among operands and ``made``.
    """

    config: Config
    made: tuple[Fresh | Packed, ...]
    launches: tuple[Launch, ...]
    result: int

    def run(self, first: Tensor, second: Tensor) -> Tensor:
        """On the current stream of the operands' device."""
        tensors = [first, second]
        for each in self.made:
            tensors.append(each.make(tensors))
        device = first.get_device()
        # The guard takes a microsecond, and is needed where there are several devices.
        elsewhere = first.is_cuda and device != torch.cuda.current_device()
        with torch.cuda.device(device) if elsewhere else _HERE:
            for launch in self.launches:
                launch.run(tensors)
        return tensors[self.result]


_HERE = nullcontext()


@dataclass(frozen=True)
class Triton(Algorithm):
    """Triton kernels on CUDA.

    Attributes:
        correlate: the configuration of ``forward`` and ``grad_input``, by its name in
            ``CONFIGS``; by default what :func:`choose_correlate` takes.
        weight: that of ``grad_weight``; by default what :func:`choose_weight` takes.
    """

    correlate: str = ""
    weight: str = ""

    name: ClassVar[str] = "triton"

    @property
    def spelling(self) -> str:
        """``triton dot-64x32``: the name, and the configurations that are not by rule."""
        return " ".join(filter(None, (self.name, self.correlate, self.weight)))

    def refusals(
        self, problem: Problem, device: torch.device, dtype: torch.dtype
    ) -> tuple[str, ...]:
        """No such dtype; no Triton, C compiler or CUDA device, or one too old; no such config."""
        if reasons := dtype_refusal(dtype, FLOATS) or _where_refusals(device):
            return reasons
        if reasons := tuple(self._config_refusals(problem, dtype)):
            return reasons
        most = _most_programs(problem)
        if most > _MOST:
            return (f"up to {most} programs, more than the 2**31 - 1 of a CUDA grid",)
        return ()

    def forward(self, problem: Problem, input: Tensor, weight: Tensor) -> Tensor:
        """(x, w) -> y, in the layout of the input."""
        return self._correlate("forward", problem, input, weight)

    def grad_input(self, problem: Problem, output: Tensor, weight: Tensor) -> Tensor:
        """(y, w) -> x as a correlation with the taps reversed, one class of pixels at a time."""
        return self._correlate("grad_input", problem, output, weight)

    def grad_weight(self, problem: Problem, input: Tensor, output: Tensor) -> Tensor:
        """(x, y) -> w: splits of the pixels, then their sum, in an order that sizes decide."""
        if 0 in problem.input_shape:
            return input.new_zeros(problem.weight_shape)
        config, total = self._run("grad_weight", problem, input, output)
        if not isinstance(config, Band):
            total = total[0] if len(total) == 1 else total.sum(0)
        if isinstance(config, Dot):
            total = total.permute(0, 3, 1, 2)
        return _in(input.dtype, total).contiguous()

    def workspace(
        self, problem: Problem, map: MapName, device: torch.device, dtype: torch.dtype
    ) -> int:
        """Packed weights, operands with their channels moved together, and partial sums.

        Of operands in NCHW: what ``grad_weight`` copies of few channels in channels_last is not
        counted, since sizes do not tell it.
        """
        if 0 in problem.input_shape:
            return 0
        config = self._config(map, problem, dtype)
        taps = prod(problem.weight_shape)
        moves = isinstance(config, Product)
        band = prod(_band_shape(problem)) if isinstance(config, Band) else 0
        if map == "grad_weight":
            splits = _splits(problem, config)[0]
            sums = (splits * (band or taps) + taps) * accumulation_dtype(dtype).itemsize
            moved = prod(problem.input_shape) + prod(problem.output_shape)
            return sums + (moved * dtype.itemsize if moves else 0)
        source = problem.input_shape if map == "forward" else problem.output_shape
        return (taps + band + (prod(source) if moves else 0)) * dtype.itemsize

    def cost(
        self, problem: Problem, map: MapName, device: torch.device, dtype: torch.dtype
    ) -> Cost:
        """Products that empty parts of tiles do included; copies are written and read again.

        What it costs beside a large matrix product is told by what was timed on an H200.
        """
        if 0 in problem.input_shape:
            return Cost(calls=1)
        config = self._config(map, problem, dtype)
        flops = definition_flops(problem, dtype)
        flops *= _work(config, map, problem, dtype)
        moved = operand_bytes(problem, dtype) + 2 * self.workspace(problem, map, device, dtype)
        # Packing or moving the operands, the kernel, and the mending or the sum of the splits.
        return Cost(matmul_flops=flops, bytes=moved, calls=2 if map == "forward" else 3)

    def variants(self, problem: Problem, map: MapName, dtype: torch.dtype) -> tuple[Algorithm, ...]:
        """One for each configuration of the rule's kind, but the rule's own; none if one is named.

        Matrix products of channels are a kind, and sums and bands the other, which is far behind:
        its tiles would be empty, or its channels one by one.
        """
        if self.correlate or self.weight or 0 in problem.input_shape:
            return ()
        chosen = self._config(map, problem, dtype)
        option = "weight" if map == "grad_weight" else "correlate"
        return tuple(
            replace(self, **{option: config.name})
            for config in self.configs(problem, map, dtype)
            if isinstance(config, Dot) == isinstance(chosen, Dot) and config != chosen
        )

    def configs(self, problem: Problem, map: MapName, dtype: torch.dtype) -> tuple[Config, ...]:
        """The configurations that can run a map, for whoever measures them."""
        return tuple(each for each in CONFIGS if not _unsuited(each, problem, map, dtype))

    def _correlate(self, map: MapName, problem: Problem, source: Tensor, weight: Tensor) -> Tensor:
        if 0 in problem.input_shape:
            return source.new_zeros(_dest_shape(map, problem))
        return _in(source.dtype, self._run(map, problem, source, weight)[1])

    def _run(
        self, map: MapName, problem: Problem, first: Tensor, second: Tensor
    ) -> tuple[Config, Tensor]:
        """The configuration, and what its launches have filled."""
        first, second = first.resolve_neg(), second.resolve_neg()
        named = self.weight if map == "grad_weight" else self.correlate
        dtype = first.dtype
        settings = may_use_tf32(dtype), interpreted()
        form = _kept_form(map, problem, named, dtype, first.stride(), second.stride(), settings)
        return form.config, form.run(first, second)

    def _config(self, map: MapName, problem: Problem, dtype: torch.dtype) -> Config:
        if named := self.weight if map == "grad_weight" else self.correlate:
            return next(each for each in CONFIGS if each.name == named)
        choose = choose_weight if map == "grad_weight" else choose_correlate
        return choose(map, problem, dtype)

    def _config_refusals(self, problem: Problem, dtype: torch.dtype) -> list[str]:
        reasons = []
        names = [each.name for each in CONFIGS]
        maps: tuple[tuple[str, tuple[MapName, ...]], ...] = (
            (self.correlate, ("forward", "grad_input")),
            (self.weight, ("grad_weight",)),
        )
        for name, of in maps:
            if name and name not in names:
                reasons.append(
                    f"no configuration {name!r}{did_you_mean(name, names)} "
                    f"(it has {', '.join(names)})"
                )
            elif name and 0 not in problem.input_shape:
                config = next(each for each in CONFIGS if each.name == name)
                found = (_unsuited(config, problem, map, dtype) for map in of)
                reasons += dict.fromkeys(each for each in found if each)
        return reasons


# -- which configuration ----------------------------------------------------------------------


def choose_correlate(map: MapName, problem: Problem, dtype: torch.dtype) -> Config:
    """The configuration of ``forward`` or ``grad_input`` by size.

    Few pairs of channels: the rows of sums that take the fewest instructions where there are
    warps enough (:func:`_instructions`).  Many: the narrowest tile that holds the channels; a tall
    one for matrix units, where there are rows of pixels enough to fill a device.  One channel
    under a wide kernel: bands, where matrix units multiply their zeros quicker than rows of sums
    leave them out.
    """
    rows, columns = axes(map, problem)
    if band := _choose_band(map, problem, dtype):
        return band
    if _is_few(map, problem, dtype):
        return _fewest_instructions(map, problem, dtype, Taps)
    channels = problem.group_out if map == "forward" else problem.group_in
    pixels = problem.batch * rows.dest * columns.dest
    if dtype == torch.float64 and channels > 16:
        return _named("dot-64x32")
    return _dot(map, dtype, channels, pixels)


def choose_weight(map: MapName, problem: Problem, dtype: torch.dtype) -> Config:
    """The configuration of ``grad_weight`` by size: as :func:`choose_correlate`."""
    if band := _choose_band(map, problem, dtype):
        return band
    if problem.group_in * problem.group_out <= FEW:
        return _fewest_instructions(map, problem, dtype, Sums)
    across = problem.group_in * prod(problem.kernel)
    if dtype == torch.float64:
        return _named(f"dot-64x{_least(across, 16, 32)}-k16")
    return _dot(map, dtype, across, problem.group_out)


def _is_few(map: MapName, problem: Problem, dtype: torch.dtype) -> bool:
    """Whether ``forward`` or ``grad_input`` sums in lanes rather than multiplies matrices.

    Ordinary arithmetic gains little by a matrix product: one of 64 x 64 channels does 6 products a
    picosecond on an H200, rows of sums under five rows of taps and more 10 to 16, where there are
    pixels enough for the lanes.
    """
    if problem.group_in * problem.group_out <= FEW:
        return True
    enough = prod(_dest_shape(map, problem)) >= 2**15
    whole = dtype == torch.float32 and not may_use_tf32(dtype)
    return whole and problem.kernel[0] >= 5 and enough


def _fewest_instructions(
    map: MapName, problem: Problem, dtype: torch.dtype, kind: type[Taps] | type[Sums]
) -> Config:
    able = [
        each
        for each in CONFIGS
        if isinstance(each, kind) and not _unsuited(each, problem, map, dtype)
    ]
    return min(able, key=lambda each: _instructions(each, map, problem))


WARPS = 264
"""Warps below which fewer rows to a lane, and so more lanes, are worth their instructions: two for
each multiprocessor of an H100.  A constant, so that results do not depend on the device."""


def _instructions(config: Taps | Sums, map: MapName, problem: Problem) -> float:
    """Instructions for each output, counted roughly; too few warps count as if each did more.

    Of the configurations timed on an H200, 2026-11-27, times mostly follow it within a quarter as
    long as the layer is the same.
    """
    rows, columns = axes(map, problem)
    height = config.height
    # Rows in vain below the last one.
    waste = -(-rows.of_class // height) * height / rows.of_class
    if isinstance(config, Sums):
        down, across = min(config.down, rows.taps), min(config.across, columns.taps)
        chunks = -(-rows.taps // down) * -(-columns.taps // across)
        read = height + down - 1 if height > 1 else down
        return chunks * waste * (down * across + (6 * read * across + 60) / height + 5)
    if height == 1:
        return 9.0 * rows.taps * columns.taps / (rows.period * columns.period) + 130
    chunk = min(config.chunk, rows.taps)
    loads = rows.taps / chunk * (height + chunk - 1)
    each = columns.taps * (rows.taps + (5 * loads + 2 * rows.taps) / height) + 124 / height
    pixels = problem.batch * rows.dest * columns.dest
    channels = problem.out_channels if map == "forward" else problem.in_channels
    warps = waste * pixels * channels / height / 32
    return each * waste * max(1.0, WARPS / warps)


def _dot(map: MapName, dtype: torch.dtype, across: int, down: int) -> Config:
    """The tile for a product of ``down`` rows and ``across`` columns."""
    if _is_wide(dtype):
        wide = _least(across, 16, 32, 64)
        deep = wide == 64 and dtype == torch.float32
        return _named(f"dot-64x{wide}" if deep else f"dot-64x{wide}-k16")
    width = _least(across, 16, 32, 64, 128)
    # 132 tiles of 128 rows: one for each multiprocessor of an H100.
    if width < 64 or down * across < 132 * 128 * width:
        return _named(f"dot-64x{min(width, 64)}")
    most = _most_sums(32, map, dtype)
    return _named(next((f"dot-128x{n}" for n in (width, 64) if 128 * n <= most), "dot-64x64"))


def _choose_band(map: MapName, problem: Problem, dtype: torch.dtype) -> Config | None:
    """A band where it is predicted to take less than rows of sums, else None."""
    widths = problem.size[1], problem.output_size[1]
    # Only of rows in multiples of 16 does the compiler know that 16 bytes may be loaded at once.
    if problem.multiplications < BANDED or any(width % 16 for width in widths):
        return None
    if map != "grad_weight" and dtype == torch.float32 and not may_use_tf32(dtype):
        return None  # 7.3 ms where rows of sums take 1.5: RepLKNet's 31x31 on an H200
    narrow = (problem.size if map == "grad_input" else problem.output_size)[1] <= 32
    if dtype == torch.float64:
        name = "band-32x64" if narrow and map == "grad_weight" else "band-64x32"
    elif not narrow:
        name = "band-64x64"
    elif map == "grad_weight":
        name = "band-32x128"
    else:
        name = "band-64x32" if _is_wide(dtype) else "band-128x32"
    band = _named(name)
    if _unsuited(band, problem, map, dtype):
        return None
    sums = _fewest_instructions(map, problem, dtype, Sums if map == "grad_weight" else Taps)
    return band if _work(band, map, problem, dtype) < _work(sums, map, problem, dtype) else None


def _least(number: int, *sizes: int) -> int:
    return next((size for size in sizes if size >= number), sizes[-1])


def _named(name: str) -> Config:
    return next(each for each in CONFIGS if each.name == name)


def _unsuited(config: Config, problem: Problem, map: MapName, dtype: torch.dtype) -> str:
    """Why a configuration cannot run a map; empty if it can."""
    if isinstance(config, Product):
        fits = _band_fits if isinstance(config, Band) else _dot_fits
        if not fits(config, map, dtype):
            return f"{config.name}: its sums do not fit in registers in {dtype_name(dtype)}"
        return _band_refusal(config, problem) if isinstance(config, Band) else ""
    if isinstance(config, Sums) != (map == "grad_weight"):
        return f"{config.name} is not for {map}"
    if isinstance(config, Sums) and config.down * config.across > 32 and dtype == torch.float64:
        return f"{config.name}: its sums do not fit in registers in {dtype_name(dtype)}"
    rows, _ = axes(map, problem)
    taps = min(config.down if isinstance(config, Sums) else config.chunk, rows.taps)
    if config.height > 1 and rows.div > 1:
        return f"{config.name} shares rows, which {map} with a stride does not"
    if config.height > 1 and _spread(config.height, taps, rows) > SPREAD:
        return (
            f"{config.name}: {config.height} rows of sums span more than {SPREAD} pixels under "
            f"this stride and dilation"
        )
    return ""


def _band_refusal(config: Band, problem: Problem) -> str:
    if problem.group_in * problem.group_out != 1:
        return f"{config.name} is for one channel to one, as in depthwise layers"
    widest = max(problem.size[1], problem.output_size[1])
    if widest > WIDEST * problem.kernel[1]:
        return (
            f"{config.name}: rows of {widest} pixels are more than {WIDEST} times as wide as the "
            f"kernel, and bands for them mostly zeros"
        )
    return ""


def _dot_fits(config: Product, map: MapName, dtype: torch.dtype) -> bool:
    return config.m * config.n <= _most_sums(config.k, map, dtype)


def _band_fits(config: Product, map: MapName, dtype: torch.dtype) -> bool:
    """Whether no register spills, as compiled for sm_80 and sm_90; on the former two tiles do."""
    if dtype == torch.float64:
        return config.m * config.n <= 64 * 32
    if dtype != torch.float32 or map == "grad_weight":
        return True
    return config.name != ("band-64x32" if may_use_tf32(dtype) else "band-128x32")


def _most_sums(k: int, map: MapName, dtype: torch.dtype) -> int:
    """The largest m * n of which no register spills, as compiled for sm_80 and sm_90."""
    if dtype == torch.float64:
        most = 64 * 64 if k == 16 else 64 * 32
        return most // 2 if map == "grad_weight" else most
    if dtype != torch.float32:
        return 128 * 128
    if may_use_tf32(dtype):
        return 64 * 64 if map == "grad_weight" else 128 * 64
    return 64 * 32 if k == 16 and map != "grad_weight" else 64 * 64


def _work(config: Config, map: MapName, problem: Problem, dtype: torch.dtype) -> float:
    """Times the definition's products, in those of a large matrix product.

    Of layers of 64 channels a Dot did, on an H200, a third of what is stated in float64, an
    eighteenth in halves, and a fifth in float32; with TF32 a fifth of float32's time, copies
    included, for which its factor is the same.
    """
    if isinstance(config, Dot):
        return _padding(config, map, problem) * {2: 18.0, 4: 5.5, 8: 3.2}[dtype.itemsize]
    if isinstance(config, Band):
        return _padding(config, map, problem) * _around_bands(dtype)
    return _beside(config, map, problem, dtype)


def _padding(config: Product, map: MapName, problem: Problem) -> float:
    """How many times the products of the definition the tiles multiply."""
    taps = prod(problem.kernel)
    if isinstance(config, Band):
        across, out = problem.size[1], problem.output_size[1]
        tiles = {
            "forward": ((out, config.n), (across, config.k)),
            "grad_input": ((across, config.n), (out, config.k)),
            "grad_weight": ((out, config.m), (across * problem.kernel[0], config.n)),
        }[map]
        filled = prod(-(-length // tile) * tile for length, tile in tiles)
        rows = 1 if map == "grad_weight" else problem.kernel[0]
        return filled * rows / (taps * out)
    sides = {
        "forward": ((problem.group_out, config.n), (problem.group_in, config.k)),
        "grad_input": ((problem.group_in, config.n), (problem.group_out, config.k)),
        "grad_weight": ((problem.group_out, config.m), (problem.group_in * taps, config.n)),
    }[map]
    return prod(-(-length // tile) * tile / length for length, tile in sides)


def _around_bands(dtype: torch.dtype) -> float:
    """What a product of a band costs, as RepLKNet's did on an H200."""
    single = 5.5 if may_use_tf32(dtype) else 1.9
    return {2: 6.0, 4: single, 8: 1.7}[dtype.itemsize]


def _beside(config: Taps | Sums, map: MapName, problem: Problem, dtype: torch.dtype) -> float:
    """What a product costs one by one, in those of a large matrix product.

    That takes an instruction each; of ours 0.7 of what could be issued were, on an H200.  One by
    one float64 is half as quick as float32.
    """
    each = _instructions(config, map, problem) / prod(problem.kernel)
    return each / 0.7 * matrix_speed(dtype) * (2 if dtype == torch.float64 else 1)


def _spread(height: int, taps: int, rows: Axis) -> int:
    return (height - 1) * rows.mult + (taps - 1) * abs(rows.tap) + 1


def _is_wide(dtype: torch.dtype) -> bool:
    """Whether a matrix product's tile has to be small: float64, and float32 without TF32."""
    return dtype == torch.float64 or (dtype == torch.float32 and not may_use_tf32(dtype))


# -- the launches -----------------------------------------------------------------------------


def axes(map: MapName, problem: Problem) -> tuple[Axis, Axis]:
    """Rows and columns of a map; ``grad_weight`` pairs pixels as ``forward`` does."""
    rows, columns = (_axis(map, problem, dim) for dim in (0, 1))
    return rows, columns


def _axis(map: MapName, problem: Problem, dim: int) -> Axis:
    size, output, taps = problem.size[dim], problem.output_size[dim], problem.kernel[dim]
    # A step that is never taken may be any; 1 keeps positions small.
    stride = problem.stride[dim] if output > 1 else 1
    tap = problem.dilation[dim] if taps > 1 else 1
    before = problem.padding[dim][0]
    if map == "grad_input":
        return Axis(output, size, 1, stride, before, -tap, taps, stride // gcd(stride, tap))
    return Axis(size, output, stride, 1, -before, tap, taps, 1)


_SLOTS: dict[MapName, tuple[str, str]] = {
    "forward": ("input_shape", "weight_shape"),
    "grad_input": ("output_shape", "weight_shape"),
    "grad_weight": ("input_shape", "output_shape"),
}


@lru_cache(maxsize=1024)
def _kept_form(
    map: MapName,
    problem: Problem,
    named: str,
    dtype: torch.dtype,
    first: tuple[int, ...],
    second: tuple[int, ...],
    settings: tuple[bool, bool],
) -> Form:
    """The form of operands with these strides, in the named configuration or that of the rule.

    ``settings``, of TF32 and of the interpreter, are there to be told apart: they are read where
    they matter.
    """
    first_tensor, second_tensor = (
        torch.empty_strided(getattr(problem, slot), strides, dtype=dtype, device="meta")
        for slot, strides in zip(_SLOTS[map], (first, second))
    )
    way = Triton(weight=named) if map == "grad_weight" else Triton(correlate=named)
    config = way._config(map, problem, dtype)
    return form_of(map, problem, first_tensor, second_tensor, config)


def form_of(map: MapName, problem: Problem, first: Tensor, second: Tensor, config: Config) -> Form:
    """The form of a map in a configuration.

    Args:
        first, second: stand-ins for the operands, on ``meta``: sizes and strides are asked for.
    """
    draft = _Draft(config, first, second)
    if map == "grad_weight":
        return _weight_form(draft, problem, first, second)
    return _correlate_form(draft, map, problem, first, second)


class _Draft:
    """A form in the making: stand-ins for its tensors, on ``meta``, and how each is made."""

    def __init__(self, config: Config, *operands: Tensor) -> None:
        self.config = config
        self.made: list[Fresh | Packed] = []
        # By what a stand-in is, not what it holds; with the stand-in, or another might be it.
        self.places = {id(each): (place, each) for place, each in enumerate(operands)}

    def fresh(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        layout: torch.memory_format = torch.contiguous_format,
    ) -> Tensor:
        """One that is allocated."""
        made = torch.empty(shape, dtype=dtype, device="meta", memory_format=layout)
        return self._add(made, Fresh(tuple(made.shape), made.stride(), dtype))

    def packed(
        self,
        of: Tensor,
        view: Tensor,
        layout: torch.memory_format = torch.contiguous_format,
    ) -> Tensor:
        """A ``view`` of another one in the order of ``layout``: a copy, but where it lies so."""
        place = self.places[id(of)][0]
        if view.is_contiguous(memory_format=layout):
            self.places[id(view)] = place, view
            return view
        made = view.contiguous(memory_format=layout)
        return self._add(made, Packed(place, tuple(view.shape), view.stride(), layout))

    def _add(self, made: Tensor, how: Fresh | Packed) -> Tensor:
        self.made.append(how)
        self.places[id(made)] = len(self.made) + 1, made
        return made

    def launch(
        self,
        kernel: str,
        config: Config,
        grid: int,
        arguments: tuple[Any, ...],
        constants: dict[str, Any],
    ) -> Launch:
        tensors = [each for each in arguments if isinstance(each, Tensor)]
        places = tuple(self.places[id(each)][0] for each in tensors)
        return Launch(kernel, config, grid, arguments, constants, places)

    def form(self, result: Tensor, *launches: Launch) -> Form:
        return Form(self.config, tuple(self.made), launches, self.places[id(result)][0])


def _channel_axes(map: MapName) -> tuple[int, int]:
    """Of dest and source channels in (groups, O/G, C/G, kH, kW)."""
    return (1, 2) if map == "forward" else (2, 1)


def _correlate_form(
    draft: _Draft, map: MapName, problem: Problem, source: Tensor, weight: Tensor
) -> Form:
    """Of ``forward``, or of ``grad_input``, whose source is the output."""
    config = draft.config
    result = draft.fresh(
        _dest_shape(map, problem),
        # The interpreter truncates to bfloat16 where devices round.
        accumulation_dtype(source.dtype) if interpreted() else source.dtype,
        torch.channels_last if _is_channels_last(source) else torch.contiguous_format,
    )
    # (groups, O/G, C/G, kH, kW)
    shape = (problem.groups, problem.group_out, problem.group_in, *problem.kernel)
    weight = draft.packed(weight, weight)
    grouped = draft.packed(weight, weight.view(shape))
    launch: Launch
    if isinstance(config, Band):
        source = draft.packed(source, source)
        return draft.form(
            result, *_band_launches(draft, map, problem, source, grouped, result, config)
        )
    if isinstance(config, Dot):
        source = draft.packed(source, source, torch.channels_last)
        launch = _dot_launch(draft, map, problem, source, grouped, result, config)
    else:
        launch = _taps_launch(draft, map, problem, source, grouped, result, config)
    by_one = isinstance(config, Taps) and config.height == 1
    if map == "forward" or by_one or max(problem.kernel) == 1:
        return draft.form(result, launch)
    # No pixel may meet a tap beyond the edges, were it only to multiply NaN by zero.
    mend = _mend_launch(draft, map, problem, source, grouped, result, edges=True)
    return draft.form(result, launch, mend)


def _taps_launch(
    draft: _Draft,
    map: MapName,
    problem: Problem,
    source: Tensor,
    grouped: Tensor,
    result: Tensor,
    config: Config,
) -> Launch:
    assert isinstance(config, Taps)
    rows, columns = axes(map, problem)
    dest, summed = _channel_axes(map)
    # Lanes that are channels want theirs next to each other.
    lanes_are_channels = _is_channels_last(result)
    order = (summed, 3, 4, 0, dest) if lanes_are_channels else (0, dest, summed, 3, 4)
    packed = draft.packed(grouped, grouped.permute(order))
    step = dict(zip(order, packed.stride()))
    weight_strides = tuple(step[each] for each in (0, dest, summed, 3, 4))
    channels = result.shape[1]
    high = -(-rows.of_class // config.height)
    lanes = problem.batch * high * columns.of_class
    blocks = -(-lanes * (channels if lanes_are_channels else 1) // config.lanes)
    shared = config.height > 1
    chunk = min(config.chunk, rows.taps)
    constants = {
        "LANES": config.lanes,
        "HEIGHT": config.height,
        "CHUNK": chunk,
        "CHUNKS": rows.taps // chunk if shared else 0,
        "REST": rows.taps % chunk if shared else 0,
        "STEP": rows.mult if shared else 0,
        "TAP": rows.tap if shared else 0,
        "CHANNELS_FIRST": lanes_are_channels,
        "WIDE": _wide((rows, columns), source, packed, result, lanes * channels),
        "SUM": _sum_dtype(source.dtype),
    }
    numbers = (problem.batch, channels, grouped.shape[summed], grouped.shape[dest], blocks)
    strides = (_strides(source), _strides(result), weight_strides)
    return draft.launch(
        "correlate_taps",
        config,
        blocks * (1 if lanes_are_channels else channels) * rows.classes * columns.classes,
        (source, packed, result, rows, columns, *strides, *numbers),
        constants,
    )


def _mend_launch(
    draft: _Draft,
    map: MapName,
    problem: Problem,
    source: Tensor,
    grouped: Tensor,
    result: Tensor,
    edges: bool,
) -> Launch:
    """What sums again the pixels that are not finite, near an edge or all."""
    rows, columns = axes(map, problem)
    dest, summed = _channel_axes(map)
    lanes = 1024
    length = result.numel()
    strides = _strides(source), tuple(grouped.stride(each) for each in (0, dest, summed, 3, 4))
    numbers = (result.shape[1], grouped.shape[summed], grouped.shape[dest], length)
    return draft.launch(
        "mend",
        _named("taps-1"),
        -(-length // lanes),
        (source, grouped, result, rows, columns, *strides, *numbers),
        {
            "LANES": lanes,
            "CHANNELS_FIRST": _is_channels_last(result),
            "EDGES": edges,
            "WIDE": _wide((rows, columns), source, grouped.numel(), result, length),
            "SUM": _sum_dtype(source.dtype),
        },
    )


def _dot_launch(
    draft: _Draft,
    map: MapName,
    problem: Problem,
    source: Tensor,
    grouped: Tensor,
    result: Tensor,
    config: Dot,
) -> Launch:
    rows, columns = axes(map, problem)
    classes = rows.classes * columns.classes
    dest, summed = _channel_axes(map)
    group_dest, group_source = grouped.shape[dest], grouped.shape[summed]
    # 16 bytes at a time: along the channels for halves; matrix units take TF32 along the sum.
    if source.dtype == torch.float32:
        packed = draft.packed(grouped, grouped.permute(0, dest, 3, 4, summed))
        weight_strides = (1, packed.stride(1))
    else:
        packed = draft.packed(grouped, grouped.permute(0, 3, 4, summed, dest))
        weight_strides = (group_dest, 1)
    pixels = problem.batch * rows.of_class * columns.of_class
    tiles = -(-pixels // config.m) * -(-group_dest // config.n)
    part = _plane_part(result, classes)
    plane = rows.dest * columns.dest // part if part else 0
    constants = _dot_constants(config, source) | {
        "FLAT": group_source < config.k,
        "PLANE_PART": part,
        "WIDE": _wide((rows, columns), source, packed, result),
    }
    numbers = (problem.batch, problem.groups, group_source, group_dest, plane)
    strides = (_strides(source), _strides(result), weight_strides)
    group_strides = (group_source * source.stride(1), group_dest * result.stride(1))
    return draft.launch(
        "correlate_dot",
        config,
        tiles * problem.groups * classes,
        (source, packed, result, rows, columns, *strides, group_strides, *numbers),
        constants,
    )


_STILL = Axis(source=1, dest=1, mult=1, div=1, base=0, tap=1, taps=1, period=1)
"""The columns of images whose columns are channels."""


def _band_shape(problem: Problem) -> tuple[int, int, int, int]:
    """(groups, kH, input columns, output columns)"""
    return problem.groups, problem.kernel[0], problem.size[1], problem.output_size[1]


def _band_launches(
    draft: _Draft,
    map: MapName,
    problem: Problem,
    source: Tensor,
    grouped: Tensor,
    result: Tensor,
    config: Band,
) -> tuple[Launch, ...]:
    """The bands, the product, and the pixels that zeros of a band have met as NaN or infinity."""
    rows, columns = axes(map, problem)
    groups, (down, _) = problem.groups, problem.kernel
    # As in _dot_launch: along the dest for halves, along the sum for TF32.
    if source.dtype == torch.float32:
        band = draft.fresh((groups, columns.dest, down, columns.source), source.dtype)
        per_group, per_dest, per_row, per_source = band.stride()
        weight_strides = (1, per_dest)
    else:
        band = draft.fresh((groups, down, columns.source, columns.dest), source.dtype)
        per_group, per_row, per_source, per_dest = band.stride()
        weight_strides = (per_source, 1)
    wide = _wide((rows, columns), band.numel(), grouped.numel(), source, result)
    lanes = 1024
    blocks = -(-columns.source * columns.dest // lanes)
    spread = draft.launch(
        "spread_taps",
        config,
        groups * down * blocks,
        (grouped, band, columns, per_source, per_dest, per_row, per_group, down, blocks),
        {"LANES": lanes, "WIDE": wide},
    )
    pixels = problem.batch * rows.of_class
    tiles = -(-pixels // config.m) * -(-columns.dest // config.n)
    source_strides, result_strides = (
        (each.stride(0), each.stride(3), each.stride(2), 0) for each in (source, result)
    )
    product = draft.launch(
        "correlate_dot",
        config,
        tiles * groups * rows.classes,
        (
            *(source, band, result, rows, _STILL),
            *(source_strides, result_strides, weight_strides),
            (source.stride(1), result.stride(1)),
            *(problem.batch, groups, columns.source, columns.dest, 0),
        ),
        _dot_constants(config, source) | {"FLAT": False, "PLANE_PART": 0, "WIDE": wide},
    )
    mend = _mend_launch(draft, map, problem, source, grouped, result, edges=False)
    return spread, product, mend


def _weight_form(draft: _Draft, problem: Problem, input: Tensor, output: Tensor) -> Form:
    """Of ``grad_weight``.

    The launches fill the sums of the splits, (splits, O, C/G, kH, kW), or for a Dot (splits, O,
    kH, kW, C/G); those of a Band the result.
    """
    config = draft.config
    rows, columns = axes("grad_weight", problem)
    splits, per_split = _splits(problem, config)
    sum_dtype = accumulation_dtype(input.dtype)
    (down, across), channels = problem.kernel, problem.group_in
    if isinstance(config, Dot):
        input = draft.packed(input, input, torch.channels_last)
        output = draft.packed(output, output, torch.channels_last)
        partial = draft.fresh((splits, problem.out_channels, down, across, channels), sum_dtype)
        tiles = -(-problem.group_out // config.m) * -(-channels * down * across // config.n)
        numbers = (problem.batch, problem.groups, channels, problem.group_out, per_split)
        launch = draft.launch(
            "weight_dot",
            config,
            tiles * problem.groups * splits,
            (
                *(input, output, partial, rows, columns),
                *(_strides(input), _strides(output)),
                (channels * input.stride(1), problem.group_out * output.stride(1)),
                *numbers,
            ),
            _dot_constants(config, input)
            | {"WIDE": _wide((rows, columns), input, output, partial, splits * per_split)},
        )
        return draft.form(partial, launch)
    if isinstance(config, Band):
        input, output = draft.packed(input, input), draft.packed(output, output)
        launch, partial = _weight_band_launch(draft, problem, input, output, config)
        total = draft.fresh(problem.weight_shape, sum_dtype)
        return draft.form(total, launch, _band_sum(draft, problem, partial, total, config))
    assert isinstance(config, Sums)
    # Lanes are pixels, and want them next to each other.
    input, output = _in_rows(draft, input), _in_rows(draft, output)
    partial = draft.fresh((splits, problem.out_channels, channels, down, across), sum_dtype)
    chunks = -(-down // config.down), -(-across // config.across)
    launch = draft.launch(
        "weight_taps",
        config,
        prod(chunks) * channels * problem.out_channels * splits,
        (
            *(input, output, partial, rows, columns, _strides(input), _strides(output)),
            *(problem.batch, problem.out_channels, channels, problem.group_out),
            *(*chunks, per_split),
        ),
        {
            "LANES": config.lanes,
            "HEIGHT": config.height,
            "DOWN": min(config.down, down),
            "ACROSS": min(config.across, across),
            "STEP": rows.mult,
            "TAP": rows.tap,
            # The last split counts lanes on to its end, past the last pixel.
            "WIDE": _wide(
                (rows, columns), input, output, partial, splits * per_split * config.lanes
            ),
            "SUM": _sum_dtype(input.dtype),
        },
    )
    return draft.form(partial, launch)


def _in_rows(draft: _Draft, operand: Tensor) -> Tensor:
    """An operand whose channels lie next to each other, moved apart; any other as it is."""
    return draft.packed(operand, operand) if _is_channels_last(operand) else operand


def _weight_band_launch(
    draft: _Draft, problem: Problem, input: Tensor, output: Tensor, config: Band
) -> tuple[Launch, Tensor]:
    """The first stage, and (splits, O, output columns, kH, input columns), which it fills."""
    rows, columns = axes("grad_weight", problem)
    splits, per_split = _splits(problem, config)
    groups, down, across, out = _band_shape(problem)
    sum_dtype = accumulation_dtype(input.dtype)
    partial = draft.fresh((splits, groups, out, down, across), sum_dtype)
    tiles = -(-out // config.m) * -(-down * across // config.n)
    input_strides, output_strides = (
        (each.stride(0), 1, each.stride(2), 0) for each in (input, output)
    )
    wide = _wide((rows, columns), input, output, partial, splits * per_split)
    return draft.launch(
        "weight_dot",
        config,
        tiles * groups * splits,
        (
            *(input, output, partial, rows, _STILL, input_strides, output_strides),
            (input.stride(1), output.stride(1)),
            *(problem.batch, groups, across, out, per_split),
        ),
        _dot_constants(config, input) | {"WIDE": wide},
    ), partial


def _band_sum(
    draft: _Draft, problem: Problem, partial: Tensor, total: Tensor, config: Band
) -> Launch:
    """The second stage of ``grad_weight`` by bands, from (splits, O, ...) to (O, 1, kH, kW)."""
    _, columns = axes("grad_weight", problem)
    lanes = 32
    blocks = -(-columns.taps // lanes)
    return draft.launch(
        "sum_bands",
        config,
        problem.groups * problem.kernel[0] * blocks,
        (partial, total, columns, problem.groups, problem.kernel[0], partial.shape[0]),
        {
            "LANES": lanes,
            "WIDE": _wide((columns, columns), partial.numel()),
            "SUM": _sum_dtype(partial.dtype),
        },
    )


def _splits(problem: Problem, config: Config) -> tuple[int, int]:
    """How many splits of the pixels, and how much of them (in the config's unit) has each."""
    rows, columns = axes("grad_weight", problem)
    channels, (down, taps) = problem.group_in, problem.kernel
    if isinstance(config, Dot):
        pixels = problem.batch * rows.dest * columns.dest
        tiles = -(-problem.group_out // config.m) * -(-channels * down * taps // config.n)
        blocks, programs = -(-pixels // config.k), tiles * problem.groups
        unit = config.k
    elif isinstance(config, Band):
        groups, _, across, out = _band_shape(problem)
        tiles = -(-out // config.m) * -(-down * across // config.n)
        blocks, programs = -(-problem.batch * rows.dest // config.k), tiles * groups
        unit = config.k
    else:
        assert isinstance(config, Sums)
        lanes = problem.batch * -(-rows.dest // config.height) * columns.dest
        chunks = -(-down // config.down) * -(-taps // config.across)
        blocks, programs = -(-lanes // config.lanes), chunks * channels * problem.out_channels
        unit = 1
    per_split = -(-blocks // max(1, min(blocks, -(-PROGRAMS // programs))))
    return -(-blocks // per_split), per_split * unit


def _dot_constants(config: Product, source: Tensor) -> dict[str, Any]:
    return {
        "M": config.m,
        "N": config.n,
        "K": config.k,
        "SUM": _sum_dtype(source.dtype),
        "PRECISION": "tf32" if may_use_tf32(source.dtype) else "ieee",
        "UPCAST": interpreted() and source.dtype in (torch.float16, torch.bfloat16),
    }


def _sum_dtype(dtype: torch.dtype) -> Any:
    language = import_module("triton.language")
    return language.float64 if dtype == torch.float64 else language.float32


def _in(dtype: torch.dtype, tensor: Tensor) -> Tensor:
    # To ask whether anything is to do takes a tenth of having PyTorch find it out.
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _strides(tensor: Tensor) -> tuple[int, ...]:
    """Strides, 0 along axes of one element: they carry no position there."""
    return tuple(
        step if size > 1 else min(step, 1) for size, step in zip(tensor.shape, tensor.stride())
    )


def _plane_part(result: Tensor, classes: int) -> int:
    """The power of two, at most 16, that the pixels of a plane are a multiple of; 0 unless the
    pixels of a plane follow each other."""
    if classes > 1 or not result.is_contiguous() or result.shape[1] == 1:
        return 0
    plane = result.shape[2] * result.shape[3]
    return gcd(plane, 16)


def _wide(both: tuple[Axis, Axis], *tensors: Tensor | int) -> bool:
    """Whether any position may pass 32 bits."""
    reach = max(axis.reach for axis in both)
    for each in tensors:
        if isinstance(each, int):
            reach = max(reach, each)
        else:
            steps = each.stride()
            # Taps outside of an image have positions too, though nothing is read there.
            outside = sum(axis.reach * step for axis, step in zip(both, steps[2:4]))
            reach = max(reach, outside + sum(n * s for n, s in zip(each.shape, steps)))
    return reach > _MOST - 2**12


def _is_channels_last(tensor: Tensor) -> bool:
    return not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


def _dest_shape(map: MapName, problem: Problem) -> tuple[int, int, int, int]:
    return problem.output_shape if map == "forward" else problem.input_shape


def _most_programs(problem: Problem) -> int:
    """More than any map takes, in any configuration, but for splits."""
    pixels = max(prod(problem.input_shape), prod(problem.output_shape))
    rows, columns = axes("grad_input", problem)
    channels = problem.in_channels + problem.out_channels
    classes = rows.classes * columns.classes
    return pixels // 16 + 2 * channels * classes + PROGRAMS + 2 * prod(problem.weight_shape)


# -- what there is ----------------------------------------------------------------------------


def interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter, on the CPU: ``TRITON_INTERPRET=1``."""
    knobs = _knobs()
    return knobs is not None and bool(knobs.runtime.interpret)


@lru_cache(maxsize=1)
def _knobs() -> Any:
    """Triton's settings, which read the environment whenever they are asked; None without it."""
    return import_module("triton").knobs if find_spec("triton") else None


@lru_cache(maxsize=64)
def _where_refusals(device: torch.device) -> tuple[str, ...]:
    if find_spec("triton") is None:
        return (
            "Triton is not installed; PyTorch's builds for CUDA bring it, or "
            'pip install "torch_corr[triton]"',
        )
    if interpreted():
        if device.type in ("cpu", "cuda"):
            return ()
        return (f"no kernels for {device.type}; Triton's interpreter runs on the cpu",)
    if device.type != "cuda":
        return (f"no kernels for {device.type}; it runs on CUDA",)
    if torch.version.hip is not None:
        return ("its kernels are made for NVIDIA's devices, and this is ROCm",)
    if not torch.cuda.is_available():
        return ("PyTorch finds no CUDA device here",)
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        return (f"compute capability {capability[0]}.{capability[1]}; it needs 8.0 or later",)
    return _launcher_refusals()


def _launcher_refusals() -> tuple[str, ...]:
    """Triton writes what launches its kernels in C, and has it compiled once on each machine."""
    try:
        _ = import_module("triton.runtime").driver.active.utils
    except (RuntimeError, OSError, AssertionError, CalledProcessError) as error:
        # Its first line: some go on for pages.
        why = str(error).strip().partition("\n")[0]
        return (
            f"Triton cannot build its launcher here ({why}); it wants a C compiler, gcc or clang "
            "or what CC names, and Python's headers",
        )
    return ()


def _kernels() -> Any:
    return import_module("._triton_kernels", __package__)
