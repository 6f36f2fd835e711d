"""The passes over planes, for the check of transforms: compiled and by operators, the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from support.needs import KERNELS, needs
from torch_corr import native
from torch_corr.algorithms.fft import scans
from torch_corr.native import ISA_VARIABLE

ISAS = native.compiled.isas() if native.compiled else []
SIZES = st.tuples(
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([1, 2, 7, 64, 129]),
    st.sampled_from([1, 31, 32, 33, 130]),
)
DTYPES = (torch.float32, torch.float64, torch.complex64)


def planes(size: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(size, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["operators", *ISAS])
def way(request: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "operators":
        monkeypatch.setattr(native, "compiled", None)
    else:
        monkeypatch.setenv(ISA_VARIABLE, request.param)


@settings(max_examples=60)
@given(size=SIZES, dtype=st.sampled_from(DTYPES), seed=st.integers(0, 99))
@pytest.mark.usefixtures("way")
def test_norms_are_those_of_double_precision(
    size: tuple[int, ...], dtype: torch.dtype, seed: int
) -> None:
    values = planes(size, dtype, seed)
    values[0, 0, 0, 0] = 1e25  # its square is beyond float32
    values[-1, -1] *= 1e-30
    expected = values.abs().to(torch.float64).square().sum((2, 3)).sqrt()
    torch.testing.assert_close(scans.norms(values), expected, rtol=1e-6, atol=0)


@settings(max_examples=60)
@given(
    size=SIZES,
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
    level=st.sampled_from([0.0, 1e-3, 0.1, 3.0]),
)
@pytest.mark.usefixtures("way")
def test_every_small_number_is_found(
    size: tuple[int, ...], dtype: torch.dtype, seed: int, level: float
) -> None:
    values = planes(size, dtype, seed)
    values[0, 0, 0, -1] = float("nan")
    least = planes((*size[:2], 1, 1), dtype, seed + 1).abs() * level
    expected = (~(values.abs() >= least)).nonzero()
    found = scans.below(values, least, len(expected))
    assert found is not None
    assert found.tolist() == expected.tolist()
    assert scans.below(values, least, len(expected) - 1) is None
    assert scans.below(values.nan_to_num(1.0), least * 0, 0).shape == (0, 4)  # type: ignore[union-attr]


@pytest.mark.usefixtures("way")
def test_planes_that_do_not_lie_densely() -> None:
    values = planes((2, 3, 40, 50), torch.float32, 0).to(memory_format=torch.channels_last)
    part = planes((2, 3, 40, 90), torch.float32, 0)[..., ::2, 5:60]
    for each in (values, part):
        dense = each.contiguous()
        torch.testing.assert_close(scans.norms(each), scans.norms(dense), rtol=1e-13, atol=0)
        least = torch.full((2, 3, 1, 1), 0.1)
        ours, theirs = (scans.below(some, least, each.numel()) for some in (each, dense))
        assert ours is not None
        assert theirs is not None
        assert ours.tolist() == theirs.tolist()


@pytest.mark.usefixtures("way")
def test_larger_operands_are_widened_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    values = planes((3, 5, 12, 11), torch.float32, 0)
    expected = scans.norms(values)
    for most in (1, 132, 300, 700):
        monkeypatch.setattr(scans, "WIDENED", most)
        torch.testing.assert_close(scans.norms(values), expected, rtol=1e-13, atol=0)


@needs(KERNELS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: 0}, "planes has no address"),
        ({0: 2}, "planes is not aligned"),
        ({1: 7}, "7 elements are not 2 planes"),
        ({1: 0}, "0 elements are not 2 planes"),
        ({3: 0}, "12 elements are not 0 planes"),
        ({2: 0}, "result has no address"),
        ({4: 2}, "planes of dtype code 2"),
        ({5: 0}, "threads=0 is outside"),
        ({6: "none"}, "no instruction set 'none'"),
    ],
)
def test_bad_arguments_of_the_compiled_part(change: dict[int, Any], message: str) -> None:
    values, result = torch.ones(2, 6), torch.empty(2, dtype=torch.float64)
    arguments: list[Any] = [values.data_ptr(), 12, result.data_ptr(), 2, 0, 1, ""]
    native.compiled.norms(*arguments)
    assert result.tolist() == [6**0.5, 6**0.5]
    for at, value in change.items():
        arguments[at] = value
    with pytest.raises(ValueError, match=message):
        native.compiled.norms(*arguments)
    if 2 in change:
        return
    arguments.insert(4, 0)
    with pytest.raises(ValueError, match=message):
        native.compiled.below(*arguments)
