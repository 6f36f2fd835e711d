"""The command line: ``python -m torch_corr COMMAND``.

One function per command: it adds the command's arguments to the parser and says what runs.
What a command needs is imported when it runs, so that asking for help costs nothing more.
Exit codes: 0 done, 1 could not be done here, 2 asked for wrongly.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ._version import __version__

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        # File names come back in messages, and not every terminal can spell every name.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    parsed = _parser().parse_args(arguments)
    try:
        code: int = parsed.run(parsed)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader (``| head``) has seen enough; Python's own flush at exit must not fail.
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
        help="the textbook's steps with their numbers, then edges and a blur of a photograph",
        description="The textbook's steps with their numbers, then edges and a blur of a "
        "photograph, through Corr2d and beside F.conv2d, saved as one figure.",
    )
    parser.add_argument(
        "image",
        nargs="?",
        metavar="IMAGE",
        help="a picture in any format that Pillow opens; without it, the public-domain "
        "portrait of Grace Hopper that comes with matplotlib",
    )
    parser.add_argument(
        "--output",
        default="torch_corr_demo.png",
        metavar="PNG",
        help="where to save the figure (default: %(default)s in the current directory)",
    )

    def run(arguments: argparse.Namespace) -> int:
        from .demo import run

        return run(arguments.image, arguments.output)

    parser.set_defaults(run=run)


def _verify(commands: Commands) -> None:
    parser = commands.add_parser(
        "verify",
        help="hold any convolution against the laws of 2-D cross-correlation",
        add_help=False,
        # The command's own parser, which needs hypothesis, reads all that follows.
        prefix_chars="\0",
    )
    parser.add_argument("arguments", nargs="*")

    def run(arguments: argparse.Namespace) -> int:
        from .testing.verify import main

        return main(arguments.arguments)

    parser.set_defaults(run=run)


COMMANDS = (_demo, _verify)

if __name__ == "__main__":
    sys.exit(main())
