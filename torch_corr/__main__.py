"""The command line: ``python -m torch_corr COMMAND``.

One function per command adds its arguments to the parser and sets the function to run.  Exit codes:
0 success, 1 the command failed, 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from . import demo
from ._version import __version__
from .commands import calibrate_and_save, explain, measure

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    for stream in (sys.stdout, sys.stderr):
        # Messages contain file names, and some terminals cannot encode all of them.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    parsed = _parser().parse_args(arguments)
    try:
        code: int = parsed.run(parsed)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader (``| head``) closed the pipe.  Redirect, or Python's flush at exit fails too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m torch_corr", description="2-D cross-correlation for PyTorch."
    )
    parser.add_argument("--version", action="version", version=f"torch_corr {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in COMMANDS:
        add(commands)
    return parser


def _demo(commands: Commands) -> None:
    parser = commands.add_parser(
        "demo",
        help="examples of a textbook, then edges and a blur of a photograph",
        description="Compute the examples of a textbook, filter a photograph with Corr2d and "
        "F.conv2d, and save a figure.",
    )
    parser.add_argument(
        "image",
        nargs="?",
        metavar="IMAGE",
        help="a picture in any format that Pillow reads (default: the public-domain portrait "
        "of Grace Hopper that comes with matplotlib)",
    )
    parser.add_argument(
        "--output",
        default="torch_corr_demo.png",
        metavar="PNG",
        help="where to save the figure (default: %(default)s in the current directory)",
    )
    parser.set_defaults(run=lambda given: demo.run(given.image, given.output))


def _verify(commands: Commands) -> None:
    parser = commands.add_parser(
        "verify",
        help="test any convolution against the laws of 2-D cross-correlation",
        add_help=False,
        prefix_chars="\0",  # the parser of torch_corr.testing.verify reads the options
    )
    parser.add_argument("arguments", nargs="*")

    def run(arguments: argparse.Namespace) -> int:
        try:
            from .testing.verify import main
        except ImportError as error:
            print(error, file=sys.stderr)
            return 1
        return main(arguments.arguments)

    parser.set_defaults(run=run)


def _explain(commands: Commands) -> None:
    parser = commands.add_parser(
        "explain",
        help="which algorithm each map of a problem gets, and why",
        description="Print, for each map, the predicted time, workspace and error class of every "
        "algorithm, which algorithms refuse and why, and the choice.",
    )
    _add_problem(parser)
    parser.add_argument("--algorithm", default="auto", help="a name (default: %(default)s)")
    parser.set_defaults(
        run=lambda given: explain(given.problem, given.device, given.dtype, given.algorithm)
    )


def _measure(commands: Commands) -> None:
    parser = commands.add_parser(
        "measure",
        help="time every algorithm on a problem",
        description="Time every algorithm that can run the problem, for each map, and print the "
        "times and the choice.",
    )
    _add_problem(parser)
    parser.add_argument("--save", metavar="JSON", help="save the measurements as wisdom")
    parser.set_defaults(
        run=lambda given: measure(given.problem, given.device, given.dtype, given.save)
    )


def _calibrate(commands: Commands) -> None:
    parser = commands.add_parser(
        "calibrate",
        help="measure and save this machine's rates, from which the planner predicts times",
        description="Measure this machine's rates (matrix product, FFT, copy, call) in about ten "
        "seconds and save them in $TORCH_CORR_MACHINE, or else in torch_corr/machine.json under "
        "$XDG_CONFIG_HOME or ~/.config.",
    )
    parser.set_defaults(run=lambda _: calibrate_and_save())


def _add_problem(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "problem",
        metavar="PROBLEM",
        help="e.g. n8c64-x56-o64-k3-p1: batch and channels, size, filters, kernel; optional: "
        "s(tride), p(adding), d(ilation), g(roups)",
    )
    parser.add_argument("--dtype", default="float32", help="default: %(default)s")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")


COMMANDS = (_demo, _explain, _measure, _calibrate, _verify)

if __name__ == "__main__":
    sys.exit(main())
