"""Bugs to plant in the Triton kernels and launches, each with the test that must catch it.

    TRITON_INTERPRET=1 python tests/support/kernel_bugs.py          every bug
    TRITON_INTERPRET=1 python tests/support/kernel_bugs.py period   bugs with the word in their name

A bug is one change to the text of a module.  A new process imports the changed text instead of the
module and runs the test; no file of the package is changed.  Exit code 1: a bug was missed.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
TRITON = TESTS.parent / "torch_corr" / "algorithms" / "triton"
REMOVED = re.compile(r"\[-(.*?)-\]", re.DOTALL)
ADDED = re.compile(r"\{\+(.*?)\+\}", re.DOTALL)


@dataclass(frozen=True)
class Bug:
    """One change.

    Attributes:
        module: of ``torch_corr.algorithms.triton``.
        name: what is wrong.
        test: pytest's -k for the test that must fail.
        change: text of the module that occurs once, with changes as in ``git diff --word-diff``:
            ``[-removed-]`` and ``{+added+}``.
    """

    module: str
    name: str
    test: str
    change: str


NONFINITE, SPLIT = "test_nonfinite_value and nan and", "test_grad_weight_for_any and"
CONFIG = "test_every_config and float32"
TAPS, SUMS = f"{CONFIG}-forward-taps", f"{CONFIG}-grad_weight-sums"
DOT = f"{CONFIG}-forward-dot-64x16"
BAND = f"{CONFIG}-forward-band"
SKIPPED = "test_outside_rows and n3c2 and forward"
CACHE_KEY = "test_plan_depends_on"

# fmt: off
CHANGES = {
    "kernels": [
        ("kernels compute although the flag is 0", "test_kernels_store_nothing and forward-taps-4",
         "skip = tl.load(recompute_flag) == [-0-]{+2+}"),
        ("row sums ignore the flag", "test_kernels_store_nothing and forward-taps-4",
         "[-    if _must_skip(recompute_flag):\n        return\n-]"
         "    pid = _program_id(USE_INT64)\n"
         "    block = pid % blocks\n    rest"),
        ("the last tap of a residue class is not counted", "test_edge_cases and s2x3",
         "taps = (axis.taps - u[- + axis.period - 1-]) // axis.period"),
        ("the first row is outside", "test_edge_cases and n1c1-x1x1",
         "return [-position-]{+(position - 1)+}.to(tl.uint32, bitcast=True) < size"),
        ("one row too many is inside", TAPS,
         "return position.to(tl.uint32, bitcast=True) <{+=+} size"),
        ("rows before the first are inside", TAPS,
         "return position[-.to(tl.uint32, bitcast=True)-] < size"),
        ("the row stride is 1", TAPS,
         "            sums = added\n"
         "        source += [-row_stride-]{+1+}\n"),
        ("all chunks of taps read the first rows", TAPS,
         "at += [-CHUNK * TAP_STEP-]{+0+} * source_strides[2]"),
        ("the last row inside is skipped", SKIPPED,
         "_is_index(FIRST_ROW + r + LOW, SOURCE_ROWS{+ - 1+})"),
        ("masked sums multiply before they mask", f"{NONFINITE} taps-1",
         "        total = [-tl.where(valid, total + x * tap, total)-]{+total + x * tap+}\n"
         "        # Advance"),
        ("pixels at edge columns are not recomputed", f"{NONFINITE} taps-4",
         "_reaches_out(row, rows)[- | _reaches_out(column, columns)-]"),
        ("pixels whose last tap is outside are not recomputed", f"{NONFINITE} taps-4",
         "return ~[-(-]_inside(first, end)[- & _inside(last, end))-]"),
        ("pixels whose first tap is outside are not recomputed", f"{NONFINITE} taps-4",
         "return ~[-(_inside(first, end) & -]_inside(last, end)[-)-]"),
        ("pixels at edge rows are not recomputed", f"{NONFINITE} taps-4",
         "[-_reaches_out(row, rows) | -]_reaches_out(column, columns)"),
        ("the first row is outside in a matrix product", DOT,
         "return (position >[-=-] 0) & (position < size)"),
        ("one row too many is inside in a matrix product", DOT,
         "return (position >= 0) & (position <{+=+} size)"),
        ("with 64 bits one row too many is inside", "test_int64_positions",
         "return position.to(tl.uint64, bitcast=True) <{+=+} size"),
        ("the taps after the last full chunk are ignored", TAPS, "if REST > [-0-]{+9+}:"),
        ("later chunks of taps ignore the dilation", "test_special_cases and x12x4",
         "row + chunk * CHUNK[- * TAP_STEP-], rows"),
        ("row sums ignore the stride", "test_special_cases and taps-4 and x21x6",
         "_has_tap(r + LOW - i[- * MULT-], TAP_STEP, TAPS):\n"
         "                    added = added + (sums[i] + x * taps[(r + LOW - i[- * MULT-]) //"),
        ("channels of a group are counted from the first group", f"{CONFIG}-grad_input-taps",
         "[-(channel % group_dest)-]{+channel+} * weight_strides[1]"),
        ("groups of the source have the size of groups of the dest", TAPS,
         "image * source_strides[0] + group * [-group_source-]{+group_dest+} * source_strides[1]\n"
         "    weight"),
        ("matrix products ignore the period of taps", "test_edge_cases and o5-k3x2",
         "tap = (first_row + u[- * rows.period-]) * columns.taps + "
         "first_column + v[- * columns.period-]"),
        ("values past the channels of a group are multiplied by zero", f"{NONFINITE} c40",
         "mask=valid[- & valid_k[None, :]-]"),
        ("weights past the channels of a group are read", f"{NONFINITE} c40",
         "mask=[-valid_k[:, None] & -](n < group_dest)[None, :]"),
        ("images of a contiguous result overlap", DOT,
         "at = m [-// (plane * PLANE_PART) * result_strides[0] + m -]% (plane * PLANE_PART)"),
        ("tiles of pixels are counted as tiles of channels", f"{CONFIG}-forward-dot-64x32",
         "m = pid % [-tiles_m-]{+tiles_n+} * M + tl.arange(0, M)\n"
         "    pid = pid // tiles_m\n    group = pid % groups\n    row"),
        ("rows below the output are multiplied", SUMS,
         "valid = live[- & (output_row + i < rows.dest)-]"),
        ("a block of rows with NaN is not summed again", f"{NONFINITE} sums-4x4x4",
         "if tl.max((difference != 0).to(tl.int32), 0) > [-0-]{+1+}:"),
        ("rows summed again one by one include those below the output", f"{NONFINITE} sums-4x4x4",
         "if AT_ONCE [-<-]{+>+} HEIGHT:"),
        ("every split of lanes is stored as the first", f"{SPLIT} sums-4x4x4",
         "partial += ([-(split * out_channels + o)-]{+o+} * group_in + c)"),
        ("a split of pixels ends at the last pixel", f"{SPLIT} dot-64x16",
         "end = [-tl.minimum(begin + per_split, pixels)-]{+pixels+}"),
        ("the last split of pixels ends beyond the last pixel", f"{SPLIT} dot-64x16",
         "end = [-tl.minimum(begin + per_split, pixels)-]{+begin + per_split+}"),
        ("bands have taps where the division has a remainder", "test_special_cases and s2x3",
         "is_tap = [-(v * columns.tap_step == distance) & -]_inside(v, columns.taps)"),
        ("all groups write the band of the first", BAND,
         "band += row [-// row_taps * group_stride + row -]% row_taps * row_stride"),
        ("recomputing reads the first image only", "test_recompute_nonfinite and taps-4",
         "plane = source + [-rest * source_strides[0] + -]group"),
        ("every split of bands is read from the first", f"{SPLIT} band-64x32",
         "first = [-(split * groups + group)-]{+group+} * columns.dest"),
        ("diagonals of a band continue outside the image", f"{CONFIG}-grad_weight-band",
         "valid = [-(-]v < columns.taps[-) & _inside(column, columns.source)-]"),
    ],
    "axes": [
        ("the period of taps is the stride", "test_edge_cases and c17",
         "taps, stride[- // gcd(stride, step)-])"),
    ],
    "plan_correlate": [
        ("rows are skipped as if the first were at the edge", SKIPPED,
         '"FIRST_ROW": [-rows.base if skips_rows else -]0'),
        ("with skipped rows the taps of a column are adjacent", SKIPPED,
         '"TAP_STRIDE": step[[-3-]{+4+}]'),
        ("with skipped rows a single row has its own stride",
         "test_outside_rows and x1x6 and forward",
         '"ROW_STRIDE": [-strides[0][2]-]{+self.source.stride(2)+}'),
        ("nothing is recomputed", f"{NONFINITE} taps-4",
         "return self.builder.build(self.result, launch[-, self._recompute_launch(edges=True)-])"),
        ("bands recompute only pixels near the edges", f"{NONFINITE} band-64x32",
         "return build, product, self._recompute_launch(edges=[-False-]{+True+})"),
        ("recomputing assumes NCHW in channels_last", "test_recompute_nonfinite and taps-4",
         '                "CHANNELS_LAST": [-is_channels_last(result)-]{+False+},\n'
         '                "EDGES": edges,'),
        ("bands recompute nothing", f"{NONFINITE} band-64x32",
         "return build, product[-, self._recompute_launch(edges=False)-]"),
    ],
    "algorithm": [
        ("only one split is summed", f"{SPLIT} sums-4x4x4",
         "result = result[0][- if len(result) == 1 else result.sum(0)-]"),
        ("a negated view is read without its sign", "test_negated_views",
         "([-operand.resolve_neg() for operand in (first, *others)-]{+first, *others+})"),
        ("a plan without TF32 is used with TF32", CACHE_KEY,
         "settings = [-may_use_tf32(dtype)-]{+False+}, is_interpreted()"),
        ("a plan is used for other strides of an operand", CACHE_KEY,
         "[-first-]{+torch.empty(first.shape)+}.stride(), second.stride(), settings)\n"
         "        result"),
    ],
    "launch_plan_builder": [
        ("halves are summed in halves", "test_every_config and float16",
         "return [-language.float64 if dtype == torch.float64 else language.float32-]{+{2: "
         "language.float16, 4: language.float32, 8: language.float64}[dtype.itemsize]+}"),
        ("float64 is summed in float32", "test_every_config and float64",
         "return language.[-float64 if dtype == torch.float64 else language.-]float32"),
        ("channels_last is treated as contiguous", "test_forward_keeps_layout",
         "for size, step in zip(tensor.shape, tensor.{+contiguous().+}stride())"),
    ],
    "launch_plan": [
        ("a kernel for aligned memory is launched on any", CACHE_KEY,
         "[-*(pointer % 16 == 0 for pointer in pointers),-]"),
        ("the kernel of one device is launched on another", "test_compiled_kernels_belong",
         "[-tensors[0].get_device()-]{+0+},\n"),
        ("a later launch passes the constants in another order", "test_repeated_call",
         "(*arguments[count:], *[-constants-]{+reversed([*constants])+})"),
        ("a later launch uses the addresses of the first", "test_repeated_call",
         "(*arguments[count:], *constants){+\n"
         "            kept, start = pointers, self.compiled[key][0]\n"
         "            late = lambda *v: start(*kept, *v[count:])\n"
         "            self.compiled[key] = late, self.compiled[key][1]+}\n"),
    ],
}
# fmt: on
BUGS = [Bug(module, *row) for module, rows in CHANGES.items() for row in rows]


def changed(bug: Bug) -> str:
    """The module's text with the bug in it.

    Raises:
        ValueError: the text that the bug changes does not occur exactly once.
    """
    text = (TRITON / f"{bug.module}.py").read_text()
    old = REMOVED.sub(r"\1", ADDED.sub("", bug.change))
    new = ADDED.sub(r"\1", REMOVED.sub("", bug.change))
    if text.count(old) != 1:
        raise ValueError(f"{bug.name!r}: its text occurs {text.count(old)} times, not once")
    return text.replace(old, new)


class Planted(importlib.abc.MetaPathFinder):
    """Imports one module from another file."""

    def __init__(self, name: str, file: Path) -> None:
        self.name, self.file = name, file

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != self.name:
            return None
        return importlib.util.spec_from_file_location(name, self.file)


def run_planted(module: str, file: str, test: str) -> int:
    """Run the test with the module from the file; pytest's exit code."""
    import pytest

    sys.meta_path.insert(0, Planted(f"torch_corr.algorithms.triton.{module}", Path(file)))
    quiet = ("-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist")
    return int(pytest.main([*quiet, str(TESTS / "algorithms" / "test_triton.py"), "-k", test]))


def main(words: list[str]) -> int:
    """Plant each bug whose name has all words; returns how many were missed."""
    missed = 0
    for bug in BUGS:
        if not all(word in bug.name for word in words):
            continue
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"{bug.module}.py"
            file.write_text(changed(bug))
            start = time.monotonic()
            done = subprocess.run(
                [sys.executable, __file__, "--planted", bug.module, str(file), bug.test],
                capture_output=True,
                text=True,
                check=False,
            )
        # 1: a test failed.  Anything else says nothing about the bug; 5: no test has the name.
        caught = done.returncode == 1
        missed += not caught
        failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
        where = failed[0].partition("::")[2].partition(" - ")[0] if failed else ""
        verdict = f"caught by {where}" if caught else f"MISSED (exit {done.returncode})"
        print(f"{bug.name}: {verdict}, {time.monotonic() - start:.0f} s", flush=True)
    return missed


if __name__ == "__main__":
    if sys.argv[1:2] == ["--planted"]:
        sys.exit(run_planted(*sys.argv[2:5]))
    sys.exit(bool(main(sys.argv[1:])))
