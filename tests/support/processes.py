"""Python in another process and directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch_corr

REPOSITORY = Path(torch_corr.__file__).parent.parent


def run_python(*arguments: Any, cwd: Path | None = None, ahead: Path | None = None) -> Any:
    """``python *arguments``, finished; packages in ``ahead`` hide installed ones."""
    path = [ahead, REPOSITORY, os.environ.get("PYTHONPATH")]
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        # One thread: two wait for each other on a busy machine.
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(str(each) for each in path if each),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
