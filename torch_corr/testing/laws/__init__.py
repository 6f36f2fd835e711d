"""The laws of correlation, in the order of the report.

The failure of an early law often explains failures of later ones, so read a report from the top.
"""

from __future__ import annotations

from ..data import LAYOUTS
from .base import FINITE_DATA, Law
from .calls import determinism, invalid_arguments, opcheck, remembers_nothing, spellings, threads
from .gradients import (
    differentiable,
    finite_differences,
    forward_mode,
    frozen_operands,
    gradients,
    second_order,
    second_order_bias,
    trilinear,
)
from .memory import gradient_memory_formats, memory_formats, non_finite, purity, stale_memory
from .structure import batch, batch_invariance, groups, linearity, translation
from .values import accepts, bias, large_numbers, values, zero_sizes

_INTEGERS = ("integers",)

LAWS: tuple[Law, ...] = (
    Law(accepts),
    Law(values, data=FINITE_DATA, share=3),
    Law(bias, share=0.5),
    Law(differentiable, dtypes="differentiable", share=0.5),
    Law(gradients, data=FINITE_DATA, dtypes="differentiable", share=4),
    Law(frozen_operands, dtypes="differentiable", share=0.5),
    Law(second_order, dtypes="differentiable", share=0.5),
    Law(second_order_bias, dtypes="differentiable", share=0.2),
    Law(forward_mode, dtypes="differentiable", share=0.5, claim=True),
    Law(finite_differences, data=("normal",), dtypes="double", share=0.1),
    Law(trilinear, dtypes="differentiable", share=0.5),
    Law(linearity, data=_INTEGERS, share=0.5),
    Law(translation, share=0.5),
    Law(groups, share=0.5),
    Law(batch, share=0.5),
    Law(batch_invariance, data=("normal",), share=0.5, claim=True),
    Law(memory_formats, layouts=LAYOUTS, share=3),
    Law(gradient_memory_formats, layouts=LAYOUTS, dtypes="differentiable", share=3),
    Law(zero_sizes, share=0.5),
    Law(large_numbers, share=0.5),
    Law(non_finite, data=("integers", "special"), dtypes="differentiable", share=0.5),
    Law(determinism, data=("normal",), share=0.2),
    Law(remembers_nothing, share=0.2),
    Law(purity, layouts=LAYOUTS, share=0.2),
    Law(stale_memory, share=0.5),
    Law(invalid_arguments, data=_INTEGERS, share=0.2),
    Law(spellings, share=0.2, claim=True),
    Law(threads, share=0.2),
    Law(opcheck, data=("normal",), share=0.1),
)

CLAIMS = tuple(law.name for law in LAWS if law.claim)


def find_law(name: str) -> Law:
    """The law with a name.  Raises ValueError if there is none."""
    for law in LAWS:
        if law.name == name:
            return law
    raise ValueError(f"no law {name!r}; the laws are {', '.join(law.name for law in LAWS)}")


__all__ = ["CLAIMS", "LAWS", "Law", "find_law"]
