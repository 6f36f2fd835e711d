"""Triton kernels for CUDA, compiled at first use: row sums, matrix products, or bands.

Each map has three kinds of kernels, chosen by the channels of a group:

    row sums         few channels: a lane holds several rows of sums in registers, so that each
                     loaded pixel is multiplied by a whole column of taps
                     (``correlate_taps``, ``weight_taps``)
    matrix products  many channels: one operand is gathered from the image, without im2col in
                     memory (``correlate_dot``, ``weight_dot``)
    bands            one channel and a kernel nearly as wide as the image: a matrix product of
                     columns instead of channels, by a banded matrix for each row of the kernel
                     (``build_bands``, ``correlate_dot``, ``weight_dot``, ``sum_bands``)

``grad_input`` uses the kernels of ``forward``: source and dest swap places, the taps run in the
opposite direction, and a stride splits the pixels into residue classes (:class:`~.axes.Axis`).
``grad_weight`` sums splits of the pixels and then adds the splits, without atomics, so results
repeat to the bit.

Half-precision products are summed in float32.  float32 is float32, unless PyTorch's
``torch.backends.cudnn.conv.fp32_precision`` (``allow_tf32``) lets cuDNN use TF32; then matrix
products use it too.  Nothing waits for the device.  As with every Triton kernel, run once before
you capture a CUDA graph, because compilation cannot be captured.

A :class:`~.launch_plan.LaunchPlan` holds everything about a map except the addresses of its
tensors.  It follows from sizes, strides and dtype, so plans and their compiled kernels are cached:
without the cache the host takes longer than small problems take on the device.  No tensor is
cached.  The same launches can be compiled without a device; docs/gpu.md shows the result.

:meth:`Triton.where_needed` recomputes the result of another algorithm if a flag on the device says
so.  The kernels are always launched, and return at once otherwise.

The way of a call: :mod:`.choice` chooses one of :mod:`.configs` by :mod:`.costs`;
:mod:`.plan_correlate` or :mod:`.plan_weight` builds the plan; :mod:`.launch_plan` runs the
:mod:`.kernels`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from ...problem import Problem
from ...request import SLOTS, MapName, Request, accumulation_dtype, shape_of
from ...suggest import did_you_mean
from ..base import (
    FLOATS,
    Algorithm,
    Cost,
    UniformMaps,
    definition_flops,
    dtype_refusal,
    may_use_tf32,
    operand_bytes,
)
from .axes import axes, band_shape
from .choice import choose_correlate, choose_weight
from .configs import CONFIGS, Band, Config, Dot, Product, by_name, config_refusal
from .costs import relative_cost
from .launch_plan import LaunchPlan
from .launch_plan_builder import INT32_MAX, LaunchPlanBuilder
from .plan_correlate import plan_correlate
from .plan_weight import MIN_PROGRAMS, plan_weight, splits_of
from .runtime import device_refusals, is_interpreted


@dataclass(frozen=True)
class Triton(UniformMaps):
    """Triton kernels on CUDA.

    Attributes:
        correlate: the name of a configuration in ``CONFIGS`` for ``forward`` and ``grad_input``;
            by default :func:`choose_correlate` chooses.
        weight: the same for ``grad_weight``; by default :func:`choose_weight` chooses.
    """

    correlate: str = ""
    weight: str = ""

    name: ClassVar[str] = "triton"
    has_cuda_cost_model: ClassVar[bool] = True

    @property
    def spelling(self) -> str:
        """The name, and the configurations if they are named: ``triton dot-64x32``."""
        return " ".join(filter(None, (self.name, self.correlate, self.weight)))

    def refusals(self, request: Request) -> tuple[str, ...]:
        """Checks the dtype, Triton and the device, then named configurations and the grid size."""
        problem, dtype = request.problem, request.dtype
        if reasons := dtype_refusal(dtype, FLOATS) or device_refusals(request.device):
            return reasons
        if reasons := tuple(self._config_refusals(problem, dtype)):
            return reasons
        programs = _max_programs(problem)
        if programs > INT32_MAX:
            return (f"up to {programs} programs, more than the 2**31 - 1 of a CUDA grid",)
        return ()

    def run_map(self, problem: Problem, map: MapName, first: Tensor, second: Tensor) -> Tensor:
        """Images have the layout of the first operand; a weight is contiguous."""
        if problem.is_empty:
            return first.new_zeros(shape_of(problem, SLOTS[map][2]))
        return self._run(map, problem, first, second)

    def where_needed(
        self,
        problem: Problem,
        map: MapName,
        first: Tensor,
        second: Tensor,
        result: Tensor,
        redo: Tensor,
    ) -> Tensor:
        """Recompute the result of another algorithm if a flag on the device is not 0.

        The host does not read the flag: if it is 0 the kernels return at once.

        Args:
            problem: the geometry.
            map: which map.
            first, second: the operands of the map.
            result: the other algorithm's result, contiguous; overwritten and returned.
            redo: the flag, an int32 tensor of one element.
        """
        if problem.is_empty:
            return result
        recomputed = self._run(map, problem, first, second, redo)
        return torch.where(redo != 0, recomputed, result, out=result)

    def workspace(self, request: Request) -> int:
        """Reordered weights, operands copied to channels_last, bands and partial sums.

        For operands in NCHW.  For few channels ``grad_weight`` also copies operands in
        channels_last; that is not counted, because it depends on their layout.
        """
        problem, map, dtype = request.problem, request.map, request.dtype
        if problem.is_empty:
            return 0
        config = self._config(map, problem, dtype)
        taps = prod(problem.weight_shape)
        copies = isinstance(config, Product)
        band = prod(band_shape(problem)) if isinstance(config, Band) else 0
        if map == "grad_weight":
            splits = splits_of(problem, config).number
            sums = (splits * (band or taps) + taps) * accumulation_dtype(dtype).itemsize
            copied = prod(problem.input_shape) + prod(problem.output_shape)
            return sums + (copied * dtype.itemsize if copies else 0)
        source = problem.input_shape if map == "forward" else problem.output_shape
        return (taps + band + (prod(source) if copies else 0)) * dtype.itemsize

    def cost(self, request: Request) -> Cost:
        """Products, with the padding of tiles; bytes of operands and copies; launches.

        :func:`relative_cost` converts products to those of a large matrix product.
        """
        problem, map, dtype = request.problem, request.map, request.dtype
        if problem.is_empty:
            return Cost(calls=1)
        config = self._config(map, problem, dtype)
        flops = definition_flops(problem, dtype)
        flops *= relative_cost(config, map, problem, dtype)
        # Copies are written and read.
        moved = operand_bytes(problem, dtype) + 2 * self.workspace(request)
        # A copy, the kernel, and recompute_nonfinite or the sum of the splits.
        return Cost(matmul_flops=flops, bytes=moved, calls=2 if map == "forward" else 3)

    def variants(self, request: Request) -> tuple[Algorithm, ...]:
        """One for each other configuration of the kind that the rule chooses.

        One kind is matrix products of channels; the other is row sums and bands.  The kind that
        the rule does not choose is far slower: it would fill tiles with padding, or sum many
        channels one by one.  Empty if a configuration is named.
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
        """The configurations that can run a map."""
        return tuple(
            config for config in CONFIGS if not config_refusal(config, problem, map, dtype)
        )

    def _run(self, map: MapName, problem: Problem, first: Tensor, *others: Tensor) -> Tensor:
        """The map of two operands; with a third, a flag, kernels return at once if it is 0."""
        first, second, *flag = (operand.resolve_neg() for operand in (first, *others))
        name, dtype = self._config_name(map), first.dtype
        settings = may_use_tf32(dtype), is_interpreted(), bool(flag)
        plan = _cached_plan(map, problem, name, dtype, first.stride(), second.stride(), settings)
        result = plan.run(first, second, *flag)
        if map == "grad_weight":
            # The second stage; bands have done it.
            if not isinstance(plan.config, Band):
                result = result[0] if len(result) == 1 else result.sum(0)
            if isinstance(plan.config, Dot):
                result = result.permute(0, 3, 1, 2)
            return _to_dtype(result, dtype).contiguous()
        return _to_dtype(result, dtype)

    def _config_name(self, map: MapName) -> str:
        return self.weight if map == "grad_weight" else self.correlate

    def _config(self, map: MapName, problem: Problem, dtype: torch.dtype) -> Config:
        return _config_of(self._config_name(map), map, problem, dtype)

    def _config_refusals(self, problem: Problem, dtype: torch.dtype) -> list[str]:
        reasons = []
        names = [each.name for each in CONFIGS]
        maps: tuple[tuple[str, tuple[MapName, ...]], ...] = (
            (self.correlate, ("forward", "grad_input")),
            (self.weight, ("grad_weight",)),
        )
        for name, its_maps in maps:
            if name and name not in names:
                reasons.append(
                    f"no configuration {name!r}{did_you_mean(name, names)} "
                    f"(it has {', '.join(names)})"
                )
            elif name and not problem.is_empty:
                config = by_name(name)
                found = (config_refusal(config, problem, map, dtype) for map in its_maps)
                reasons += dict.fromkeys(filter(None, found))
        return reasons


_FLAG = torch.empty(1, dtype=torch.int32, device="meta")
"""The recompute flag of plans that have one."""


def _config_of(name: str, map: MapName, problem: Problem, dtype: torch.dtype) -> Config:
    """The named configuration, or for an empty name the one that the rule chooses."""
    if name:
        return by_name(name)
    choose = choose_weight if map == "grad_weight" else choose_correlate
    return choose(map, problem, dtype)


@lru_cache(maxsize=1024)
def _cached_plan(
    map: MapName,
    problem: Problem,
    name: str,
    dtype: torch.dtype,
    first: tuple[int, ...],
    second: tuple[int, ...],
    settings: tuple[bool, bool, bool],
) -> LaunchPlan:
    """The plan for operands with these strides, in a named configuration or the rule's.

    ``settings``: whether TF32 may be used, whether kernels are interpreted, and whether there is a
    recompute flag.  The first two are only part of the cache's key.
    """
    operands = [
        torch.empty_strided(shape_of(problem, slot), strides, dtype=dtype, device="meta")
        for slot, strides in zip(SLOTS[map], (first, second))
    ]
    config = _config_of(name, map, problem, dtype)
    flag = _FLAG if settings[-1] else None
    return make_launch_plan(map, problem, operands[0], operands[1], config, flag)


def make_launch_plan(
    map: MapName,
    problem: Problem,
    first: Tensor,
    second: Tensor,
    config: Config,
    recompute_flag: Tensor | None = None,
) -> LaunchPlan:
    """The plan of a map in a configuration.

    Args:
        first, second: operands on ``meta``; their sizes, strides and dtype matter.
        recompute_flag: on ``meta``; if given, kernels return at once if that number is 0.
    """
    builder = LaunchPlanBuilder(config, first, second, recompute_flag=recompute_flag)
    if map == "grad_weight":
        return plan_weight(builder, problem, first, second)
    return plan_correlate(builder, map, problem, first, second)


def _to_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    # The comparison takes a tenth of the time of a call of Tensor.to that does nothing.
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _max_programs(problem: Problem) -> int:
    """An upper bound of the programs of every map in every configuration."""
    pixels = max(prod(problem.input_shape), prod(problem.output_shape))
    rows, columns = axes("grad_input", problem)
    channels = problem.in_channels + problem.out_channels
    classes = rows.classes * columns.classes
    return pixels // 16 + 2 * channels * classes + MIN_PROGRAMS + 2 * prod(problem.weight_shape)
