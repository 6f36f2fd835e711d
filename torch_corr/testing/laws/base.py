"""``Law``: a property of every correct correlation, with a test of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from hypothesis import strategies as st
from torch import Tensor

from ...problem import Problem
from ..data import DATA
from ..strategies import layouts_of_three
from ..subject import Case, Refusal, Subject, Violation

Dtypes = Literal["any", "differentiable", "double"]
CONTIGUOUS = ("contiguous",)


@dataclass(frozen=True)
class Law:
    """A law and the cases on which it is tested.

    Attributes:
        check: raises :class:`Violation` if the law fails on a case.  Its name is the name of the
            law, and the first line of its docstring states the law.
        data: the kinds of numbers in the operands.
        layouts: the memory layouts of the operands.
        dtypes: the dtypes to which the law applies.
        share: the factor of the number of examples; expensive laws get fewer.
        claim: whether the law is tested only for callables that claim it.
    """

    check: Callable[[Subject, Case], None]
    data: tuple[str, ...] = ("normal", "integers")
    layouts: tuple[str, ...] = CONTIGUOUS
    dtypes: Dtypes = "any"
    share: float = 1.0
    claim: bool = False

    @property
    def name(self) -> str:
        """The name of the law."""
        return self.check.__name__

    @property
    def statement(self) -> str:
        """The law as a sentence."""
        return (self.check.__doc__ or "").strip().splitlines()[0]

    def applies_to(self, dtype: torch.dtype) -> bool:
        """Whether the law applies to operands of a dtype."""
        if self.dtypes == "double":
            return dtype in (torch.float64, torch.complex128)
        return self.dtypes == "any" or is_differentiable(dtype)

    def cases(
        self, problems: st.SearchStrategy[Problem], dtype: torch.dtype, device: str
    ) -> st.SearchStrategy[Case]:
        """A strategy for the cases of the law."""
        lazily = dtype.is_complex and len(self.layouts) > 1
        return st.builds(
            Case,
            problem=problems,
            dtype=st.just(dtype),
            device=st.just(device),
            data=st.sampled_from(self.data),
            layouts=layouts_of_three(self.layouts),
            seed=st.integers(0, 999),
            conj=st.booleans() if lazily else st.just(False),
        )


def is_differentiable(dtype: torch.dtype) -> bool:
    """Whether autograd supports the dtype."""
    return dtype.is_floating_point or dtype.is_complex


def leaves(*values: Tensor) -> tuple[Tensor, ...]:
    """The tensors, detached, with ``requires_grad`` set."""
    return tuple(value.detach().requires_grad_() for value in values)


@contextmanager
def moot(why: str) -> Iterator[None]:
    """Context for checks that belong to another law: a violation makes this law undecided."""
    try:
        yield
    except Violation as violation:
        raise Refusal(f"moot: {why}") from violation


@contextmanager
def must_not_raise(what: str) -> Iterator[None]:
    """Context in which a refusal of the callable violates the law."""
    try:
        yield
    except Refusal as refusal:
        raise Violation(f"{what} raises {refusal}") from refusal


FINITE_DATA = tuple(each for each in DATA if each != "special")
