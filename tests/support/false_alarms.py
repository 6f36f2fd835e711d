"""Count false alarms for docs/conformance.md.

    PYTHONPATH=tests python -m support.false_alarms [EXAMPLES [WORD]]

Correct correlations are checked against every law that applies.  Each failure is a false alarm,
unless it is a finding of docs/what-the-kit-finds.md, whose laws are left out here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_corr import corr2d
from torch_corr.testing import ErrorModel, check_corr2d, declared, problems
from torch_corr.testing.check import Able, callers_limits

from . import peers
from .laws import ABLE, conv2d_is_sound


@dataclass(frozen=True)
class Right:
    """A correct correlation, except for some laws and outside of ``able``."""

    name: str
    fn: Callable[..., Tensor]
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64)
    without: tuple[str, ...] = ()
    claims: tuple[str, ...] = ()
    errors: str | ErrorModel = "componentwise"
    limits: dict[str, Any] = field(default_factory=dict)
    able: Able | None = None


def rights() -> Iterator[Right]:
    """F.conv2d, the library's algorithms, and the installed peers."""
    both = ("forward_mode", "spellings")
    yield Right(
        "F.conv2d",
        F.conv2d,
        without=("zero_sizes", "non_finite"),
        claims=both,
        able=conv2d_is_sound,
    )
    # It calls PyTorch where that is faster, and so spreads NaN as PyTorch does.
    yield Right("corr2d, auto", corr2d, without=("non_finite",), claims=both, able=conv2d_is_sound)
    for algorithm in ABLE:
        fourier, torchs = algorithm.error_class == "normwise", algorithm.name == "aten"
        yield Right(
            f"corr2d, {algorithm.name}",
            partial(corr2d, algorithm=algorithm.name),
            without=("non_finite",) if fourier or torchs else (),
            claims=both,
            errors=declared(algorithm),
            able=conv2d_is_sound if torchs else None,
        )
    if hasattr(peers, "kornia_filter2d"):
        plain = ("groups", "channels", "stride", "dilation")
        yield Right(
            "kornia filter2d",
            peers.kornia_filter2d,
            without=("bias", "second_order_bias", "zero_sizes", "invalid_arguments"),
            limits={f"max_{each}": 1 for each in plain} | {"max_padding": 0, "max_one": 0},
            able=conv2d_is_sound,
        )
    if hasattr(peers, "einconv"):
        without = ("non_finite", "invalid_arguments")
        yield Right("einconv", peers.einconv, without=without)
    if hasattr(peers, "fft_conv_pytorch"):
        yield Right(
            "fft-conv-pytorch",
            peers.fft_conv_pytorch,
            dtypes=(torch.float32,),
            without=(
                "memory_formats",
                "gradient_memory_formats",
                "zero_sizes",
                "large_numbers",
                "non_finite",
                "invalid_arguments",
                "purity",
            ),
            errors="normwise",
        )


def main(examples: int, word: str) -> int:
    """Print a row for each callable and dtype; returns how many laws failed."""
    torch.set_num_threads(1)
    print("| callable | dtype | left out | cases of `values` | cases in all | false alarms |")
    print("| --- | --- | --- | --- | --- | --- |")
    failures = 0
    for right in rights():
        for dtype in right.dtypes if word in right.name else ():
            report = check_corr2d(
                right.fn,
                dtypes=dtype,
                without=right.without,
                claims=right.claims,
                errors=right.errors,
                problems=problems(**{**callers_limits(), **right.limits}),
                able=right.able,
                examples=examples,
            )
            failures += len(report.failures)
            cases = {each.law: each.cases for each in report.verdicts}
            row = [
                right.name,
                str(dtype).removeprefix("torch."),
                ", ".join(right.without),
                str(cases["values"]),
                str(sum(cases.values())),
                ", ".join(report.failed_laws()) or "0",
            ]
            print(f"| {' | '.join(row)} |", flush=True)
            if not report.passed:
                print(report, file=sys.stderr, flush=True)
    return failures


if __name__ == "__main__":
    given = sys.argv[1:]
    sys.exit(bool(main(int(given[0]) if given else 1000, given[1] if len(given) > 1 else "")))
