"""What a law is: a sentence that holds for every right correlation, and how to try it."""

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
    """A law with a name.

    Attributes:
        check: raises :class:`Violation` when the law fails on a case.  The first line of its
            docstring states the law.
        data: the kinds of operands to try it on.
        layouts: how they may lie in memory.
        dtypes: which dtypes it speaks of.
        share: examples it gets of every example asked for; a dear law gets fewer.
        claim: whether it binds only those who claim it.
    """

    check: Callable[[Subject, Case], None]
    data: tuple[str, ...] = ("normal", "integers")
    layouts: tuple[str, ...] = CONTIGUOUS
    dtypes: Dtypes = "any"
    share: float = 1.0
    claim: bool = False

    @property
    def name(self) -> str:
        return self.check.__name__

    @property
    def statement(self) -> str:
        return (self.check.__doc__ or "").strip().splitlines()[0]

    def speaks_of(self, dtype: torch.dtype) -> bool:
        """Whether the law means anything for operands of a dtype."""
        if self.dtypes == "double":
            return dtype in (torch.float64, torch.complex128)
        return self.dtypes == "any" or is_differentiable(dtype)

    def cases(
        self, problems: st.SearchStrategy[Problem], dtype: torch.dtype, device: str
    ) -> st.SearchStrategy[Case]:
        """Cases to try it on."""
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
    """Whether autograd knows the dtype."""
    return dtype.is_floating_point or dtype.is_complex


def leaves(*values: Tensor) -> tuple[Tensor, ...]:
    """The values as they lie in memory, asking for gradients."""
    return tuple(value.detach().requires_grad_() for value in values)


@contextmanager
def moot(why: str) -> Iterator[None]:
    """A violation in here is another law's to report; this one then decides nothing."""
    try:
        yield
    except Violation as violation:
        raise Refusal(f"moot: {why}") from violation


FINITE_DATA = tuple(each for each in DATA if each != "special")
