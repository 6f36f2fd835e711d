"""The operands that the kit makes: every kind of data and of layout."""

from __future__ import annotations

import ctypes
import platform
from collections import Counter

import pytest
import torch
from hypothesis import strategies as st

from torch_corr import Problem
from torch_corr.testing import DATA, LAYOUTS, in_layout, litter, make_operands, poisoned
from torch_corr.testing.check import draw, rounds
from torch_corr.testing.laws import find_law

PROBLEM = Problem.parse("n2c4-x6x7-o6-k3x2-p1-g2")


def test_every_kind_of_data_and_layout_is_drawn():
    """At least a third of its even share."""
    kinds: Counter[str] = Counter()
    values, formats = find_law("values"), find_law("memory_formats")

    def count(data):
        problem = st.just(PROBLEM)
        kinds[data.draw(values.cases(problem, torch.float32, "cpu")).data] += 1
        layouts = data.draw(formats.cases(problem, torch.float32, "cpu")).layouts
        kinds.update(f"{slot} {each}" for slot, each in zip("xwy", layouts))

    for number, size in enumerate(rounds(900)):
        draw(count, size, (0, number))()
    assert set(values.data) == set(DATA) - {"special"}
    assert find_law("non_finite").data == ("integers", "special")
    for data in values.data:
        assert kinds[data] >= 900 / len(values.data) / 3, (data, kinds)
    for layout in LAYOUTS:
        for slot in "xwy":
            assert kinds[f"{slot} {layout}"] >= 900 / 2 / len(LAYOUTS) / 3, (slot, layout, kinds)
        assert kinds[f"{slot} channels_last"] >= 900 / 4, (slot, kinds)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.complex64, torch.float64])
def test_kinds_of_data(dtype):
    tiny = torch.finfo(dtype).tiny
    of = {data: make_operands(PROBLEM, dtype, data=data, seed=3) for data in DATA}

    def parts(data, slot=0):
        value = of[data][slot]
        return torch.view_as_real(value) if value.is_complex() else value

    assert (parts("integers") == parts("integers").round()).all()
    exponents = parts("wide").abs().double().log2()
    assert exponents.max() - exponents.min() > (8 if dtype == torch.float16 else 60)
    x, w = (of["cancelling"][slot].to(torch.complex128) for slot in (0, 1))
    assert x[0, 0, 0].sum().abs() > 6 * 60
    assert w[0, 0, 0].sum().abs() < 0.2 * w[0, 0, 0].abs().sum()
    assert 0 < parts("subnormal").abs().max() < tiny
    special = torch.cat(
        [make_operands(PROBLEM, dtype, data="special", seed=seed)[0].flatten() for seed in range(9)]
    )
    special = torch.view_as_real(special) if special.is_complex() else special
    assert special.isnan().any()
    assert special.isposinf().any()
    assert special.isneginf().any()
    assert (special.abs() == tiny).any()
    zeros = special[special == 0]
    assert zeros.signbit().any()
    assert not zeros.signbit().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8, torch.complex128], ids=str)
def test_layouts(dtype):
    value = make_operands(PROBLEM, dtype, data="integers")[0]
    lying = {layout: in_layout(value, layout) for layout in LAYOUTS}
    for layout, other in lying.items():
        assert other.shape == value.shape
        assert torch.equal(other, value) != (layout in ("repeated", "expanded")), layout
        flat = ("contiguous", "offset", "singleton_strides")
        assert other.is_contiguous() == (layout in flat), layout
    assert lying["channels_last"].is_contiguous(memory_format=torch.channels_last)
    assert lying["channel_slice"].stride() == (42 * 9, 2, 7 * 9, 9)
    assert set(lying["expanded"].stride()) == {0}
    assert lying["repeated"].stride()[0] == lying["repeated"].stride()[2] == 0
    assert lying["offset"].storage_offset() == 3
    assert lying["cropped"].storage_offset() > 0
    around = lying["cropped"].as_strided((), (), 0)
    assert around.isnan() if dtype != torch.int8 else around == 127


def test_layouts_of_one_channel_or_pixel():
    """``contiguous(memory_format=...)`` returns such tensors unchanged."""
    gray, pixel = torch.ones(2, 1, 3, 4), torch.ones(2, 5, 1, 1)
    assert in_layout(gray, "channels_last").stride() == (12, 1, 4, 1)
    assert in_layout(pixel, "channels_last").stride() == (5, 1, 5, 5)
    assert in_layout(gray, "singleton_strides").stride() == (12, 0, 4, 1)
    assert in_layout(pixel, "singleton_strides").stride() == (5, 1, 0, 0)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc to fill memory")
@pytest.mark.parametrize("size", [4, 60, 1000, 2**16, 2**20])
def test_malloc_memory_is_poisoned(size):
    """Kernels use it for their scratch."""

    def fresh(size):
        storage = torch.UntypedStorage(4 * size)
        return torch.tensor([]).set_(storage).resize_(size)

    with poisoned():
        litter()
        assert all(each.isnan().all() for each in [fresh(size) for _ in range(20)])
    # Fresh memory of the system is zero unless it is filled.  Freed blocks may join to a large one;
    # trimming returns them to the system, except for their edges.
    ctypes.CDLL(None).malloc_trim(0)
    assert not fresh(2**24)[2**23 :][:1000].any()


def test_unknown_kinds_are_refused():
    with pytest.raises(ValueError, match="unknown data 'nromal'; use one of normal, integers"):
        make_operands(PROBLEM, torch.float32, data="nromal")
    with pytest.raises(ValueError, match="unknown layout 'rows'; use one of contiguous"):
        in_layout(torch.ones(1, 1, 1, 1), "rows")
