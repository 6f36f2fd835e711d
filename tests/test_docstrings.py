"""The examples in docstrings run and print what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest
import torch

import torch_corr

MODULES = [
    name
    for _, name, _ in pkgutil.walk_packages(torch_corr.__path__, "torch_corr.")
    if not name.endswith("__main__")
]


@pytest.mark.parametrize("name", ["torch_corr", *MODULES])
def test_docstring_examples(name):
    if name.endswith("triton.kernels"):
        pytest.importorskip("triton", reason="the kernels are written in it")
    module = importlib.import_module(name)
    names = {**vars(torch_corr), "torch": torch}
    assert doctest.testmod(module, extraglobs=names).failed == 0


def test_there_are_examples():
    found = doctest.DocTestFinder().find(torch_corr.functional)
    assert sum(len(test.examples) for test in found) >= 3
