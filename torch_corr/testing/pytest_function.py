"""``conformance_tests``: the conformance kit as a parametrized pytest function."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from ..request import dtype_name
from .check import check_corr2d, select_laws
from .laws import LAWS


def conformance_tests(
    fn: Callable[..., Tensor],
    *,
    dtypes: torch.dtype | Sequence[torch.dtype] = (torch.float32,),
    laws: Collection[str] | None = None,
    without: Collection[str] = (),
    claims: Collection[str] = (),
    **options: Any,
) -> Callable[..., None]:
    """A pytest function with one test for each law and dtype.  Assign it to a name in a test file:

        from torch_corr.testing import conformance_tests
        from my_kernels import conv2d
        test_conv2d = conformance_tests(conv2d, device="cuda", dtypes=[torch.float16])

    The arguments are those of :func:`check_corr2d`.
    """
    import pytest

    dtypes = (dtypes,) if isinstance(dtypes, torch.dtype) else tuple(dtypes)
    chosen = [law for law in select_laws(laws, claims) if law.name not in without]

    @pytest.mark.parametrize(
        ("law", "dtype"),
        [
            pytest.param(law.name, dtype, id=f"{law.name}-{dtype_name(dtype)}")
            for dtype in dtypes
            for law in chosen
            if law.applies_to(dtype)
        ],
    )
    def test(law: str, dtype: torch.dtype) -> None:
        report = check_corr2d(fn, dtypes=(dtype,), laws=(law,), **options)
        (verdict,) = report.verdicts
        if verdict.outcome in ("refused", "silent"):
            pytest.skip(verdict.reason)
        report.raise_if_failed()

    test.__doc__ = "\n".join(f"{law.name}: {law.statement}" for law in LAWS)
    return test
