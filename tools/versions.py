"""Runs the tests with several versions of PyTorch and writes docs/pytorch-versions.md.

    python tools/versions.py                             # every version, every test: hours
    python tools/versions.py 2.11.0 2.15.0 --tests tests/test_operators.py tests/test_problem.py
    python tools/versions.py 2.15.0 --environments ~/torches   # kept, for the next time

Each version has an environment of its own, with PyTorch, the package and its extra ``test``;
that takes about 6 GB and is deleted after its run.  Rows of versions that are not run stay as
they are.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "docs" / "pytorch-versions.md"
VERSIONS = ("2.10.0", "2.11.0", "2.12.0", "2.13.0", "2.14.1", "2.15.0")
INTRODUCTION = """\
# Versions of PyTorch

Written by `python tools/versions.py`. Each row is one run of the tests that it names, in an
environment with that version of PyTorch. "Lines at import" counts what `import torch_corr` prints,
warnings included.

PyTorch 2.10 is the oldest version that works. In 2.9 and earlier a class cannot be registered as a
constant of `torch.compile` (`torch._library.opaque_object.register_opaque_type`), so graphs refuse
algorithms with options, and `torch.compile` fails with `aten` on sizes that depend on data.
Versions 2.8 and 2.6 also lack the settings `fp32_precision`, and 2.6 lacks
`torch.compiler.is_exporting`.

"""


class Row(NamedTuple):
    """One run."""

    version: str
    tests: str
    passed: str
    failed: str
    skipped: str
    seconds: str
    import_lines: str


HEADINGS = Row("PyTorch", "Tests", "Passed", "Failed", "Skipped", "Seconds", "Lines at import")


def make_environment(folder: Path, version: str) -> Path:
    """Returns the environment's Python; an environment that is complete is used as it is."""
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    complete = folder / "complete"  # an interrupted installation leaves none
    if complete.exists():
        return python
    venv.create(folder, with_pip=True, clear=True)
    constraint = folder / "constraint.txt"
    constraint.write_text(f"torch=={version}\n")
    install = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(constraint)]
    subprocess.run([*install, "torch"], check=True)
    subprocess.run([*install, "--editable", f"{ROOT}[test]"], check=True)
    complete.touch()
    return python


def count_import_lines(python: Path) -> int:
    """How many lines the import prints."""
    command = [str(python), "-W", "default", "-c", "import torch_corr"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return len((run.stdout + run.stderr).splitlines())


def run_tests(python: Path, tests: Sequence[str], workers: int) -> tuple[int, int, int, float]:
    """Returns how many passed, failed and were skipped, and the seconds that they took."""
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [str(python), "-m", "pytest", "-q", "-n", str(workers), f"--junitxml={report}"]
        subprocess.run([*command, *tests], cwd=ROOT, check=False)
        if not report.exists():
            raise SystemExit("pytest wrote no report")
        counts = [suite.attrib for suite in ElementTree.parse(report).getroot().iter("testsuite")]
    total, failures, errors, skipped = (
        sum(int(each[key]) for each in counts) for key in ("tests", "failures", "errors", "skipped")
    )
    failed = failures + errors
    return total - failed - skipped, failed, skipped, sum(float(each["time"]) for each in counts)


def read_rows(text: str) -> dict[str, Row]:
    """The rows of a table that this script wrote, by their versions."""
    rows = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == len(Row._fields) and re.match(r"\d", cells[0]):
            rows[cells[0]] = Row(*cells)
    return rows


def write_rows(rows: dict[str, Row]) -> str:
    """The file's text, with one row for each version."""

    def order(row: Row) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", row.version)]

    lines = [HEADINGS, tuple("---" for _ in HEADINGS), *sorted(rows.values(), key=order)]
    return INTRODUCTION + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 where no test fails and no import prints anything."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("versions", nargs="*", default=VERSIONS, metavar="VERSION")
    parser.add_argument("--tests", nargs="+", default=[], help="files of tests, instead of all")
    parser.add_argument("--workers", type=int, default=1, help="processes that run tests")
    parser.add_argument(
        "--environments", type=Path, help="folder to keep environments in, named by version"
    )
    options = parser.parse_args(arguments)
    bad = False
    for version in options.versions:
        with TemporaryDirectory() as temporary:
            python = make_environment((options.environments or Path(temporary)) / version, version)
            lines = count_import_lines(python)
            passed, failed, skipped, seconds = run_tests(python, options.tests, options.workers)
        tests = ", ".join(f"`{Path(test).name}`" for test in options.tests) or "all"
        counts = (str(count) for count in (passed, failed, skipped, round(seconds), lines))
        rows = read_rows(TABLE.read_text() if TABLE.exists() else "")
        rows[version] = Row(version, tests, *counts)
        TABLE.write_text(write_rows(rows))
        print(" ".join(rows[version]), flush=True)
        bad |= bool(failed or lines)
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
