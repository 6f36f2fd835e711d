"""Triton: kernels for CUDA, compiled when first used; sums over taps, or implicit matrix products.

Three ways for each map, by the number of channels that meet in a group:

    few    one lane to one pixel; rows of sums stay in registers, so that a pixel which is
           loaded meets every tap of a column of the kernel (``correlate_taps``, ``weight_taps``)
    many   a matrix product whose operand is gathered from the image as it goes: no columns in
           memory (``correlate_dot``, ``weight_dot``)
    one    with a kernel nearly as wide as the image: the same product, of columns instead of
           channels, by a banded matrix for each row of the kernel (``spread_taps``, ``sum_bands``)

``grad_input`` is ``forward`` read backwards: source and dest change places, taps go the other
way, and a stride becomes classes of pixels (:class:`~.axes.Axis`).  ``grad_weight`` sums
pixels in two stages, splits and then their sum: no atomics, so that results repeat to the bit.

Half-precision products are summed in float32.  float32 is float32, unless PyTorch's
``torch.backends.cudnn.conv.fp32_precision`` (``allow_tf32``) lets cuDNN use TF32; then matrix
products do.  Nothing waits for the device; as with every Triton kernel, run once before you
capture a CUDA graph, since compiling is no part of one.

All of a map but its tensors' addresses follows from sizes, strides and dtype: its *form*
(:func:`form_of`).  So forms and the kernels compiled for them are kept, since to make one anew
takes the host longer than small problems take the device; no tensor is.  And the same launches
can be compiled without a device: ``docs/gpu.md`` tells what came of it.

Where a transform has computed a map, this algorithm computes it again if a number on the device
says so (:meth:`Triton.where_needed`): it is launched in any case, and does nothing otherwise.

A map's configuration is chosen (:mod:`.choice`, of :mod:`.configs`, by
:mod:`.costs`), its launches are drafted (:mod:`.correlate`,
:mod:`.weight`), and the form of them (:mod:`.form`) is run; the kernels are in
:mod:`.kernels`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import import_module
from math import prod
from subprocess import CalledProcessError
from typing import ClassVar

import torch
from torch import Tensor

from ...problem import Problem
from ...request import SLOTS, MapName, Request, shape_of
from ...suggest import did_you_mean
from ..base import (
    FLOATS,
    Algorithm,
    Cost,
    accumulation_dtype,
    definition_flops,
    dtype_refusal,
    may_use_tf32,
    operand_bytes,
)
from .axes import axes, band_shape, dest_shape
from .choice import choose_correlate, choose_weight
from .configs import CONFIGS, Band, Config, Dot, Product, by_name, unsuited
from .correlate import correlate_form
from .costs import work
from .draft import MOST, Draft
from .form import Form, first_line, interpreted, missing
from .weight import PROGRAMS, splits_of, weight_form


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
    has_cuda_cost_model: ClassVar[bool] = True

    @property
    def spelling(self) -> str:
        """``triton dot-64x32``: the name, and the configurations that are not by rule."""
        return " ".join(filter(None, (self.name, self.correlate, self.weight)))

    def refusals(self, request: Request) -> tuple[str, ...]:
        """No such dtype; no Triton, C compiler or CUDA device, or one too old; no such config."""
        problem, dtype = request.problem, request.dtype
        if reasons := dtype_refusal(dtype, FLOATS) or _where_refusals(request.device):
            return reasons
        if reasons := tuple(self._config_refusals(problem, dtype)):
            return reasons
        most = _most_programs(problem)
        if most > MOST:
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
        if problem.is_empty:
            return input.new_zeros(problem.weight_shape)
        return self._run("grad_weight", problem, input, output)

    def where_needed(
        self,
        problem: Problem,
        map: MapName,
        first: Tensor,
        second: Tensor,
        result: Tensor,
        redo: Tensor,
    ) -> Tensor:
        """A map's result, computed again by this algorithm if a number on the device is not 0.

        The host does not read the number: where it is 0 the kernels return at once.

        Args:
            problem: the geometry.
            map: which map.
            first, second: the operands of the map.
            result: of another algorithm, contiguous; written to.
            redo: one integer, an int32 tensor of one element.
        """
        if problem.is_empty:
            return result
        again = self._run(map, problem, first, second, redo)
        return torch.where(redo != 0, again, result, out=result)

    def workspace(self, request: Request) -> int:
        """Packed weights, operands with their channels moved together, and partial sums.

        Of operands in NCHW: what ``grad_weight`` copies of few channels in channels_last is not
        counted, since sizes do not tell it.
        """
        problem, map, dtype = request.problem, request.map, request.dtype
        if problem.is_empty:
            return 0
        config = self._config(map, problem, dtype)
        taps = prod(problem.weight_shape)
        moves = isinstance(config, Product)
        band = prod(band_shape(problem)) if isinstance(config, Band) else 0
        if map == "grad_weight":
            splits = splits_of(problem, config)[0]
            sums = (splits * (band or taps) + taps) * accumulation_dtype(dtype).itemsize
            moved = prod(problem.input_shape) + prod(problem.output_shape)
            return sums + (moved * dtype.itemsize if moves else 0)
        source = problem.input_shape if map == "forward" else problem.output_shape
        return (taps + band + (prod(source) if moves else 0)) * dtype.itemsize

    def cost(self, request: Request) -> Cost:
        """Products that empty parts of tiles do included; copies are written and read again.

        What it costs beside a large matrix product is told by what was timed on an H200.
        """
        problem, map, dtype = request.problem, request.map, request.dtype
        if problem.is_empty:
            return Cost(calls=1)
        config = self._config(map, problem, dtype)
        flops = definition_flops(problem, dtype)
        flops *= work(config, map, problem, dtype)
        moved = operand_bytes(problem, dtype) + 2 * self.workspace(request)
        # Packing or moving the operands, the kernel, and the mending or the sum of the splits.
        return Cost(matmul_flops=flops, bytes=moved, calls=2 if map == "forward" else 3)

    def variants(self, request: Request) -> tuple[Algorithm, ...]:
        """One for each configuration of the rule's kind, but the rule's own; none if one is named.

        Matrix products of channels are a kind, and sums and bands the other, which is far behind:
        its tiles would be empty, or its channels one by one.
        """
        problem, map, dtype = request.problem, request.map, request.dtype
        if self.correlate or self.weight or problem.is_empty:
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
        return tuple(each for each in CONFIGS if not unsuited(each, problem, map, dtype))

    def _correlate(self, map: MapName, problem: Problem, source: Tensor, weight: Tensor) -> Tensor:
        if problem.is_empty:
            return source.new_zeros(dest_shape(map, problem))
        return self._run(map, problem, source, weight)

    def _run(self, map: MapName, problem: Problem, first: Tensor, *others: Tensor) -> Tensor:
        """The map of two operands; in earnest where a number, if one follows them, is not 0."""
        first, second, *doubt = (each.resolve_neg() for each in (first, *others))
        name, dtype = self._named(map), first.dtype
        settings = may_use_tf32(dtype), interpreted(), bool(doubt)
        form = _kept_form(map, problem, name, dtype, first.stride(), second.stride(), settings)
        result = form.run(first, second, *doubt)
        if map == "grad_weight":
            # The second stage: of what a band has filled there is nothing to add.
            if not isinstance(form.config, Band):
                result = result[0] if len(result) == 1 else result.sum(0)
            if isinstance(form.config, Dot):
                result = result.permute(0, 3, 1, 2)
            return _in(dtype, result).contiguous()
        return _in(dtype, result)

    def _named(self, map: MapName) -> str:
        return self.weight if map == "grad_weight" else self.correlate

    def _config(self, map: MapName, problem: Problem, dtype: torch.dtype) -> Config:
        return _config_of(self._named(map), map, problem, dtype)

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
            elif name and not problem.is_empty:
                config = by_name(name)
                found = (unsuited(config, problem, map, dtype) for map in of)
                reasons += dict.fromkeys(each for each in found if each)
        return reasons


# -- the forms ---------------------------------------------------------------------------------


_DOUBT = torch.empty(1, dtype=torch.int32, device="meta")
"""Stands for the number that launches depend on."""


def _config_of(name: str, map: MapName, problem: Problem, dtype: torch.dtype) -> Config:
    """The configuration of this name, or where there is none that of the rule."""
    if name:
        return by_name(name)
    choose = choose_weight if map == "grad_weight" else choose_correlate
    return choose(map, problem, dtype)


@lru_cache(maxsize=1024)
def _kept_form(
    map: MapName,
    problem: Problem,
    name: str,
    dtype: torch.dtype,
    first: tuple[int, ...],
    second: tuple[int, ...],
    settings: tuple[bool, bool, bool],
) -> Form:
    """The form of operands with these strides, in the configuration named or that of the rule.

    ``settings``, of TF32 and of the interpreter, are there to be told apart: they are read where
    they matter.  The last one is whether a number follows the operands, on which all depends.
    """
    first_tensor, second_tensor = (
        torch.empty_strided(shape_of(problem, slot), strides, dtype=dtype, device="meta")
        for slot, strides in zip(SLOTS[map], (first, second))
    )
    config = _config_of(name, map, problem, dtype)
    doubt = _DOUBT if settings[-1] else None
    return form_of(map, problem, first_tensor, second_tensor, config, doubt)


def form_of(
    map: MapName,
    problem: Problem,
    first: Tensor,
    second: Tensor,
    config: Config,
    doubt: Tensor | None = None,
) -> Form:
    """The form of a map in a configuration.

    Args:
        first, second: stand-ins for the operands, on ``meta``: sizes and strides are asked for.
        doubt: one for the number that tells whether to compute at all.
    """
    draft = Draft(config, first, second, doubt=doubt)
    if map == "grad_weight":
        return weight_form(draft, problem, first, second)
    return correlate_form(draft, map, problem, first, second)


def _in(dtype: torch.dtype, tensor: Tensor) -> Tensor:
    # To ask whether anything is to do takes a tenth of having PyTorch find it out.
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


# -- what is refused ---------------------------------------------------------------------------


def _most_programs(problem: Problem) -> int:
    """More than any map takes, in any configuration, but for splits."""
    pixels = max(prod(problem.input_shape), prod(problem.output_shape))
    rows, columns = axes("grad_input", problem)
    channels = problem.in_channels + problem.out_channels
    classes = rows.classes * columns.classes
    return pixels // 16 + 2 * channels * classes + PROGRAMS + 2 * prod(problem.weight_shape)


@lru_cache(maxsize=64)
def _where_refusals(device: torch.device) -> tuple[str, ...]:
    if reason := missing():
        return (reason,)
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
    except (RuntimeError, OSError, ImportError, AssertionError, CalledProcessError) as error:
        return (
            f"Triton cannot build its launcher here ({first_line(error)}); it wants a C compiler, "
            "gcc or clang or what CC names, Python's headers, and a TRITON_CACHE_DIR that may be "
            "executed",
        )
    return ()
