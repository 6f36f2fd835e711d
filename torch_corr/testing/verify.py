"""The command ``verify``: test any importable callable against the laws.

    python -m torch_corr verify torch.nn.functional:conv2d --dtype bfloat16 --budget 60s

Exit codes: 0 all laws hold, 1 a law fails or no case was decided, 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from ..progress import clear_progress, show_progress
from ..suggest import did_you_mean
from .check import ERROR_MODELS, callers_limits, check_corr2d, require_usable
from .laws import CLAIMS, LAWS
from .strategies import problems

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def main(argv: Sequence[str] | None = None, prog: str = "python -m torch_corr verify") -> int:
    """Run the command and return the exit code."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Test a convolution against every law of 2-D cross-correlation.",
        epilog="laws:\n" + "\n".join(f"  {law.name:<23} {law.statement}" for law in LAWS),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_arguments(parser)
    return _run(parser.parse_args(argv))


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("target", type=_target, metavar="MODULE:NAME", help="the callable to import")
    add(
        "--with",
        dest="keywords",
        action="append",
        default=[],
        type=_keyword,
        metavar="KEY=VALUE",
        help="a keyword argument of every call, e.g. algorithm=unfold",
    )
    add("--device", type=_device, default="cpu", help="the device of the operands (default: cpu)")
    add(
        "--dtype",
        dest="dtypes",
        type=_dtypes,
        default=[torch.float32],
        metavar="NAME[,NAME...]",
        help="the dtypes of the operands (default: float32)",
    )
    add(
        "--errors",
        choices=sorted(ERROR_MODELS),
        default="componentwise",
        help="the bound of rounding errors (default: componentwise)",
    )
    names, claims = [law.name for law in LAWS], list(CLAIMS)
    for option, choices, said in (
        ("--laws", names, "test only these laws"),
        ("--without", names, "leave these laws out"),
        ("--claim", claims, "test these optional laws too"),
    ):
        add(option, type=_names(choices), default=[], metavar="LAW[,LAW...]", help=said)
    add(
        "--limit",
        action="append",
        default=[],
        type=_limit,
        metavar="KEY=N",
        help="limit the problems: " + ", ".join(sorted(callers_limits())),
    )
    add(
        "--examples",
        type=_count,
        help="cases for each law and dtype (default: 100, or with --budget as many as fit)",
    )
    add("--budget", type=_seconds, metavar="TIME", help="time limit, e.g. 60s or 5m")
    add("--seed", type=int, default=0, help="the seed of the random cases (default: 0)")
    add(
        "--trace",
        type=_writable,
        metavar="PATH",
        help="write each case to this file before it runs, to find the case of a crash",
    )
    add("--json", type=_writable, metavar="PATH", help="also write the report as JSON to this file")


def _run(arguments: argparse.Namespace) -> int:
    """Test the callable, print the report, and return the exit code."""
    call, name = arguments.target
    if arguments.keywords:
        keywords = dict(arguments.keywords)
        call = functools.partial(call, **keywords)
        name += "(" + ", ".join(f"{key}={value}" for key, value in keywords.items()) + ")"
    budget, examples = arguments.budget, arguments.examples
    if examples is None:
        examples = 100 if budget is None else 10**6
    report = check_corr2d(
        call,
        device=arguments.device,
        dtypes=arguments.dtypes,
        laws=arguments.laws or None,
        without=arguments.without,
        claims=arguments.claim,
        errors=arguments.errors,
        problems=problems(**{**callers_limits(), **dict(arguments.limit)}),
        examples=examples,
        budget=budget,
        seed=arguments.seed,
        name=name,
        trace=arguments.trace,
        progress=ProgressBar() if sys.stderr.isatty() else None,
    )
    print(report)
    if arguments.json:
        arguments.json.write_text(report.to_json() + "\n")
    return 0 if report.passed else 1


class ProgressBar:
    """A progress bar in the terminal, with the time and the current law."""

    def __init__(self) -> None:
        self.began = monotonic()

    def __call__(self, done: int, total: int, doing: str) -> None:
        seconds = monotonic() - self.began
        show_progress(done, total, f"{done}/{total} {seconds:4.0f} s  {doing}")
        if done == total:
            clear_progress()


def _target(text: str) -> tuple[Callable[..., Any], str]:
    module, _, name = text.partition(":")
    if not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not MODULE:NAME, e.g. my_kernels:conv2d")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:  # a module may raise anything
        said = f"{type(error).__name__}: {error}"
        raise argparse.ArgumentTypeError(f"cannot import {text!r}: {said}") from None
    if not callable(found):
        raise argparse.ArgumentTypeError(f"{text!r} is not callable")
    return found, f"{module}.{name}"


def _keyword(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not (equals and key.isidentifier()):
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, int(value) if re.fullmatch(r"-?\d+", value) else value


def _limit(text: str) -> tuple[str, Any]:
    key, value = _keyword(text)
    known = callers_limits()
    if key not in known:
        raise argparse.ArgumentTypeError(
            f"no limit {key!r}{did_you_mean(key, tuple(known))}; use one of {', '.join(known)}"
        )
    if isinstance(known[key], bool):
        if value not in ("true", "false"):
            raise argparse.ArgumentTypeError(f"{key} is true or false, not {value!r}")
        return key, value == "true"
    least = 0 if key in ("max_padding", "max_one") else 1
    if not isinstance(value, int) or value < least:
        raise argparse.ArgumentTypeError(f"{key} is a number of at least {least}, not {value!r}")
    return key, value


def _device(text: str) -> str:
    try:
        require_usable(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def _writable(text: str) -> Path:
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(
            f"cannot write {text!r}: it is a folder, or its folder does not exist"
        )
    return path


def _dtypes(text: str) -> list[torch.dtype]:
    dtypes = [getattr(torch, name, None) for name in text.split(",")]
    for name, dtype in zip(text.split(","), dtypes):
        if not isinstance(dtype, torch.dtype):
            raise argparse.ArgumentTypeError(f"no dtype {name!r}; e.g. float32,bfloat16")
    return [dtype for dtype in dtypes if isinstance(dtype, torch.dtype)]


def _names(choices: list[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        for name in text.split(","):
            if name not in choices:
                raise argparse.ArgumentTypeError(
                    f"no {name!r}{did_you_mean(name, tuple(choices))}; use {', '.join(choices)}"
                )
        return text.split(",")

    return parse


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write 60s, 5m or 1h")
    return float(match[1]) * _UNITS[match[2]]


if __name__ == "__main__":
    sys.exit(main())
