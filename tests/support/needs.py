"""What tests need that some machines lack; pytest does not collect a test that lacks it.

    @needs(TRITON)                           always
    @needs(COMPILERS, unless=is_usual)       where is_usual(**parameters) is false
    @only(is_able)                           no test at all where is_able(**parameters) is false

``conftest.py`` calls ``lacks`` for every test and prints how many it left out, and what they need.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from inspect import signature
from typing import Any

import pytest
import torch

from torch_corr import Algorithm, Problem, native
from torch_corr.algorithms.triton.runtime import is_interpreted
from torch_corr.request import Request

CUDA = "CUDA"
TRITON = 'Triton (pip install "torch_corr[triton]")'
TRITON_RUNS = "CUDA or Triton's interpreter (TRITON_INTERPRET=1)"
TRITON_COMPILES = "Triton's compiler (no TRITON_INTERPRET)"
KERNELS = "the compiled kernels"
ONEDNN = "PyTorch with oneDNN"
FAST_TRITON = "CUDA (Triton's interpreter is too slow)"
NOTHING_TO_TEST = "parameters that belong together"
COMPILERS = "an hour (--compilers)"

_triton = find_spec("triton") is not None
_cuda = torch.cuda.is_available()

# Whether each is available.  A test that lacks several is counted under the first.  conftest.py
# sets COMPILERS from the command line.
HERE = {
    NOTHING_TO_TEST: False,
    CUDA: _cuda,
    TRITON: _triton,
    TRITON_RUNS: _triton and (_cuda or is_interpreted()),
    TRITON_COMPILES: _triton and not is_interpreted(),
    FAST_TRITON: _triton and _cuda and not is_interpreted(),
    KERNELS: native.compiled is not None,
    ONEDNN: torch.backends.mkldnn.is_available(),
    COMPILERS: False,
}

_ALGORITHM_NEEDS = {"triton": TRITON, "direct": KERNELS}
_SMALLEST = Problem.parse("n1c1-x1-o1-k1")


def needs(*what: str, unless: Callable[..., bool] | None = None) -> pytest.MarkDecorator:
    """Collect a test only where all of ``what`` is available, or ``unless(**parameters)``."""
    return pytest.mark.needs(*what, unless=unless)


def only(makes_sense: Callable[..., bool]) -> pytest.MarkDecorator:
    """Collect a test only with parameters for which ``makes_sense(**parameters)``."""
    return pytest.mark.needs(NOTHING_TO_TEST, unless=makes_sense)


def lacks(item: pytest.Item) -> str | None:
    """The first thing that the test needs and this machine lacks; None if it can run."""
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    lacking: set[str] = set()
    for mark in item.iter_markers("needs"):
        unless = mark.kwargs["unless"]
        if unless is None or not _call(unless, parameters):
            lacking.update(what for what in mark.args if not HERE[what])
    if lacking:
        return next(what for what in HERE if what in lacking)
    algorithm = parameters.get("algorithm")
    if isinstance(algorithm, Algorithm):
        device, dtype = parameters.get("device", "cpu"), parameters.get("dtype", torch.float32)
        return _lacks(algorithm, torch.device(device), dtype)
    return None


def _lacks(algorithm: Algorithm, device: torch.device, dtype: torch.dtype) -> str | None:
    reasons = algorithm.refusals(Request(_SMALLEST, "forward", device, dtype))
    if not reasons:
        return None
    what = _ALGORITHM_NEEDS.get(algorithm.name)
    if what and not HERE[what]:
        return what
    return f"{algorithm.name} on {device.type} ({reasons[0]})"


def _call(predicate: Callable[..., bool], parameters: dict[str, Any]) -> bool:
    """A parameter that the test does not have keeps its default."""
    names = signature(predicate).parameters.keys() & parameters.keys()
    return predicate(**{name: parameters[name] for name in names})
