"""``cases``: the workloads include the speed goals, and patterns select them."""

from __future__ import annotations

import pytest

from benchmarks.cases import CASES, GROUPS, Case, select
from torch_corr import Problem
from torch_corr.algorithms import MAPS

GOALS = """
n8c64-x56-o64-k3-p1 float32 | n4c64-x56-o64-k3-p1 float64 | n8c64-x56-o64-k3-p1 bfloat16
n8c64-x56-o64-k3-p1 float16 | n8c3-x224-o64-k7-s2-p3 float32 | n8c256-x56-o64-k1 float32
n4c512-x14-o512-k3-p1 float32 | n2c256-x64-o256-k3-p4-d4 float32
n8c144-x56-o144-k3-p1-g144 float32 | n8c144-x56-o144-k3-p1-g144 bfloat16
n8c144-x56-o144-k3-p1-g144 float16 | n8c144-x56-o144-k5-s2-p2-g144 float32
n8c96-x56-o96-k7-p3-g96 float32 | n8c96-x56-o96-k7-p3-g96 float64
n4c128-x28-o128-k13-p6-g128 float32 | n1c128-x56-o128-k31-p15-g128 float32
n4c128-x56-o128-k3-p1-g32 float32 | n1c1-x1024-o2-k3-p1 float32 | n16c1-x256-o2-k3-p1 float32
n1c3-x1024-o3-k5-p2-g3 float32 | n1c1-x512-o32-k15-p7 float32 | n1c1-x2048-o1-k3 float32
n1c1-x2048-o1-k5 float32 | n1c1-x2048-o1-k9 float32 | n1c1-x1024-o1-k15 float32
n1c1-x1024-o1-k31-p15 float32 | n1c1-x512-o1-k101-p50 float32 | n64c1-x28-o32-k5 float32
n1c2048-x22-o8-k6-g8 float32 | n1c2048-x29-o2048-k5-g2048 float32
n1c2-x256-o2-k51-p25 float64 | n2c16-x56-o16-k3-p1 complex64 | n1c4-x8-o4-k3-p1 float32
n4c64-x128-o64-k8 float32 | n4c64-x128-o64-k16 float32 | n2c128-x256-o128-k16 float32
n1c128-x256-o128-k32 float32
"""
"""The cases for which there are speed goals."""


@pytest.mark.parametrize("goal", GOALS.replace("\n", "|").strip("|").split("|"), ids=str.strip)
def test_every_speed_goal_is_a_case(goal: str):
    here = {(str(case.problem), case.dtype) for case in CASES if set(MAPS) <= set(case.works)}
    spelling, dtype = goal.split()
    assert (str(Problem.parse(spelling)), dtype) in here


def test_image_sweep_covers_small_and_large_images():
    sides = {case.problem.size[0] for case in CASES if case.group == "image sweep"}
    assert {256, 8192} <= sides


def test_case_names_are_unique():
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case_has_group_source_and_dtype(case: Case):
    assert case.group in GROUPS
    assert case.source
    assert set(case.quick) <= set(case.works)
    assert case.torch_dtype.is_floating_point or case.torch_dtype.is_complex


def test_select_matches_name_glob_dtype_or_problem():
    assert [case.name for case in select(CASES, ["gabor"])] == ["gabor bank 15x15"]
    assert {case.dtype for case in select(CASES, ["*float16"])} == {"float16", "bfloat16"}
    assert select(CASES, ["n1c1-x3x3"])[0].name == "textbook 2x2"
    assert select(CASES, []) == [*CASES]
    assert 5 < sum(bool(case.quick) for case in CASES) < len(CASES)
