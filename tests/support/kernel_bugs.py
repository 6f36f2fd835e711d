"""Bugs to plant in the Triton kernels and launches, each with the test that must catch it.

    TRITON_INTERPRET=1 python tests/support/kernel_bugs.py          every bug
    TRITON_INTERPRET=1 python tests/support/kernel_bugs.py period   bugs with the word in their name

A bug is one change to the text of a module.  A new process imports the changed text instead of the
module and runs the test; no file of the package is changed.  Exit code 1: a bug was missed.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
TRITON = TESTS.parent / "torch_corr" / "algorithms" / "triton"
KERNELS = "kernels"


@dataclass(frozen=True)
class Bug:
    """One change.

    Attributes:
        name: what is wrong.
        old: text of the module that occurs once.
        new: the text that replaces it.
        test: pytest's -k for the test that must fail.
        module: of ``torch_corr.algorithms.triton``.
    """

    name: str
    old: str
    new: str
    test: str
    module: str = KERNELS


NONFINITE, SPLIT = "test_nonfinite_value and nan and", "test_grad_weight_for_any and"
CONFIG = "test_every_config and float32"
TAPS, SUMS = f"{CONFIG}-forward-taps", f"{CONFIG}-grad_weight-sums"
DOT = f"{CONFIG}-forward-dot-64x16"
BAND = f"{CONFIG}-forward-band"
SKIPPED = "test_outside_rows and n3c2 and forward"
CACHE_KEY = "test_plan_depends_on"

BUGS = (
    Bug(
        "kernels compute although the flag is 0",
        "skip = tl.load(recompute_flag) == 0",
        "skip = tl.load(recompute_flag) == 2",
        "test_kernels_store_nothing and forward-taps-4",
    ),
    Bug(
        "row sums ignore the flag",
        """    if _must_skip(recompute_flag):
        return
    pid = _program_id(USE_INT64)
    block = pid % blocks
    rest""",
        """    pid = _program_id(USE_INT64)
    block = pid % blocks
    rest""",
        "test_kernels_store_nothing and forward-taps-4",
    ),
    Bug(
        "the period of taps is the stride",
        "taps, stride // gcd(stride, step))",
        "taps, stride)",
        "test_edge_cases and c17",
        "axes",
    ),
    Bug(
        "the last tap of a residue class is not counted",
        "taps = (axis.taps - u + axis.period - 1) // axis.period",
        "taps = (axis.taps - u) // axis.period",
        "test_edge_cases and s2x3",
    ),
    Bug(
        "the first row is outside",
        "return position.to(tl.uint32, bitcast=True) < size",
        "return (position - 1).to(tl.uint32, bitcast=True) < size",
        "test_edge_cases and n1c1-x1x1",
    ),
    Bug(
        "one row too many is inside",
        "return position.to(tl.uint32, bitcast=True) < size",
        "return position.to(tl.uint32, bitcast=True) <= size",
        TAPS,
    ),
    Bug(
        "rows before the first are inside",
        "return position.to(tl.uint32, bitcast=True) < size",
        "return position < size",
        TAPS,
    ),
    Bug(
        "the row stride is 1",
        "            sums = added\n        source += row_stride\n",
        "            sums = added\n        source += 1\n",
        TAPS,
    ),
    Bug(
        "all chunks of taps read the first rows",
        "at += CHUNK * TAP_STEP * source_strides[2]",
        "at += 0 * source_strides[2]",
        TAPS,
    ),
    Bug(
        "the last row inside is skipped",
        "_is_index(FIRST_ROW + r + LOW, SOURCE_ROWS)",
        "_is_index(FIRST_ROW + r + LOW, SOURCE_ROWS - 1)",
        SKIPPED,
    ),
    Bug(
        "rows are skipped as if the first were at the edge",
        '"FIRST_ROW": rows.base if skips_rows else 0',
        '"FIRST_ROW": 0',
        SKIPPED,
        "plan_correlate",
    ),
    Bug(
        "with skipped rows the taps of a column are adjacent",
        '"TAP_STRIDE": step[3]',
        '"TAP_STRIDE": step[4]',
        SKIPPED,
        "plan_correlate",
    ),
    Bug(
        "with skipped rows a single row has its own stride",
        '"ROW_STRIDE": strides[0][2]',
        '"ROW_STRIDE": self.source.stride(2)',
        "test_outside_rows and x1x6 and forward",
        "plan_correlate",
    ),
    Bug(
        "masked sums multiply before they mask",
        "        total = tl.where(valid, total + x * tap, total)\n        # Advance",
        "        total = total + x * tap\n        # Advance",
        f"{NONFINITE} taps-1",
    ),
    Bug(
        "nothing is recomputed",
        "return self.builder.build(self.result, launch, self._recompute_launch(edges=True))",
        "return self.builder.build(self.result, launch)",
        f"{NONFINITE} taps-4",
        "plan_correlate",
    ),
    Bug(
        "pixels at edge columns are not recomputed",
        "_reaches_out(row, rows) | _reaches_out(column, columns)",
        "_reaches_out(row, rows)",
        f"{NONFINITE} taps-4",
    ),
    Bug(
        "pixels whose last tap is outside are not recomputed",
        "return ~(_inside(first, end) & _inside(last, end))",
        "return ~_inside(first, end)",
        f"{NONFINITE} taps-4",
    ),
    Bug(
        "pixels whose first tap is outside are not recomputed",
        "return ~(_inside(first, end) & _inside(last, end))",
        "return ~_inside(last, end)",
        f"{NONFINITE} taps-4",
    ),
    Bug(
        "pixels at edge rows are not recomputed",
        "_reaches_out(row, rows) | _reaches_out(column, columns)",
        "_reaches_out(column, columns)",
        f"{NONFINITE} taps-4",
    ),
    Bug(
        "the first row is outside in a matrix product",
        "return (position >= 0) & (position < size)",
        "return (position > 0) & (position < size)",
        DOT,
    ),
    Bug(
        "one row too many is inside in a matrix product",
        "return (position >= 0) & (position < size)",
        "return (position >= 0) & (position <= size)",
        DOT,
    ),
    Bug(
        "with 64 bits one row too many is inside",
        "return position.to(tl.uint64, bitcast=True) < size",
        "return position.to(tl.uint64, bitcast=True) <= size",
        "test_int64_positions",
    ),
    Bug("the taps after the last full chunk are ignored", "if REST > 0:", "if REST > 9:", TAPS),
    Bug(
        "later chunks of taps ignore the dilation",
        "row + chunk * CHUNK * TAP_STEP, rows",
        "row + chunk * CHUNK, rows",
        "test_row_sums_of_several_chunks",
    ),
    Bug(
        "row sums ignore the stride",
        "_has_tap(r + LOW - i * MULT, TAP_STEP, TAPS):\n"
        "                    added = added + (sums[i] + x * taps[(r + LOW - i * MULT) //",
        "_has_tap(r + LOW - i, TAP_STEP, TAPS):\n"
        "                    added = added + (sums[i] + x * taps[(r + LOW - i) //",
        "test_row_sums_with_stride and taps-4",
    ),
    Bug(
        "channels of a group are counted from the first group",
        "(channel % group_dest) * weight_strides[1]",
        "channel * weight_strides[1]",
        f"{CONFIG}-grad_input-taps",
    ),
    Bug(
        "groups of the source have the size of groups of the dest",
        "image * source_strides[0] + group * group_source * source_strides[1]\n    weight",
        "image * source_strides[0] + group * group_dest * source_strides[1]\n    weight",
        TAPS,
    ),
    Bug(
        "matrix products ignore the period of taps",
        "tap = (first_row + u * rows.period) * columns.taps + first_column + v * columns.period",
        "tap = (first_row + u) * columns.taps + first_column + v",
        "test_edge_cases and o5-k3x2",
    ),
    Bug(
        "values past the channels of a group are multiplied by zero",
        "mask=valid & valid_k[None, :]",
        "mask=valid",
        f"{NONFINITE} c40",
    ),
    Bug(
        "weights past the channels of a group are read",
        "mask=valid_k[:, None] & (n < group_dest)[None, :]",
        "mask=(n < group_dest)[None, :]",
        f"{NONFINITE} c40",
    ),
    Bug(
        "images of a contiguous result overlap",
        "at = m // (plane * PLANE_PART) * result_strides[0] + m % (plane * PLANE_PART)",
        "at = m % (plane * PLANE_PART)",
        DOT,
    ),
    Bug(
        "tiles of pixels are counted as tiles of channels",
        "m = pid % tiles_m * M + tl.arange(0, M)\n    pid = pid // tiles_m\n"
        "    group = pid % groups\n    row",
        "m = pid % tiles_n * M + tl.arange(0, M)\n    pid = pid // tiles_m\n"
        "    group = pid % groups\n    row",
        f"{CONFIG}-forward-dot-64x32",
    ),
    Bug(
        "rows below the output are multiplied",
        "valid = live & (output_row + i < rows.dest)",
        "valid = live",
        SUMS,
    ),
    Bug(
        "a block of rows with NaN is not summed again",
        "if tl.max((difference != 0).to(tl.int32), 0) > 0:",
        "if tl.max((difference != 0).to(tl.int32), 0) > 1:",
        f"{NONFINITE} sums-4x4x4",
    ),
    Bug(
        "rows summed again one by one include those below the output",
        "if AT_ONCE < HEIGHT:",
        "if AT_ONCE > HEIGHT:",
        f"{NONFINITE} sums-4x4x4",
    ),
    Bug(
        "every split of lanes is stored as the first",
        "partial += ((split * out_channels + o) * group_in + c)",
        "partial += (o * group_in + c)",
        f"{SPLIT} sums-4x4x4",
    ),
    Bug(
        "a split of pixels ends at the last pixel",
        "end = tl.minimum(begin + per_split, pixels)",
        "end = pixels",
        f"{SPLIT} dot-64x16",
    ),
    Bug(
        "the last split of pixels ends beyond the last pixel",
        "end = tl.minimum(begin + per_split, pixels)",
        "end = begin + per_split",
        f"{SPLIT} dot-64x16",
    ),
    Bug(
        "bands have taps where the division has a remainder",
        "is_tap = (v * columns.tap_step == distance) & _inside(v, columns.taps)",
        "is_tap = _inside(v, columns.taps)",
        "test_bands_match and s2x3",
    ),
    Bug(
        "all groups write the band of the first",
        "band += row // row_taps * group_stride + row % row_taps * row_stride",
        "band += row % row_taps * row_stride",
        BAND,
    ),
    Bug(
        "bands recompute only pixels near the edges",
        "return build, product, self._recompute_launch(edges=False)",
        "return build, product, self._recompute_launch(edges=True)",
        f"{NONFINITE} band-64x32",
        "plan_correlate",
    ),
    Bug(
        "recomputing reads the first image only",
        "plane = source + rest * source_strides[0] + group",
        "plane = source + group",
        "test_recompute_nonfinite and taps-4",
    ),
    Bug(
        "recomputing assumes NCHW in channels_last",
        """                "CHANNELS_LAST": is_channels_last(result),
                "EDGES": edges,""",
        """                "CHANNELS_LAST": False,
                "EDGES": edges,""",
        "test_recompute_nonfinite and taps-4",
        "plan_correlate",
    ),
    Bug(
        "bands recompute nothing",
        "return build, product, self._recompute_launch(edges=False)",
        "return build, product",
        f"{NONFINITE} band-64x32",
        "plan_correlate",
    ),
    Bug(
        "every split of bands is read from the first",
        "first = (split * groups + group) * columns.dest",
        "first = group * columns.dest",
        f"{SPLIT} band-64x32",
    ),
    Bug(
        "diagonals of a band continue outside the image",
        "valid = (v < columns.taps) & _inside(column, columns.source)",
        "valid = v < columns.taps",
        f"{CONFIG}-grad_weight-band",
    ),
    Bug(
        "only one split is summed",
        "result = result[0] if len(result) == 1 else result.sum(0)",
        "result = result[0]",
        f"{SPLIT} sums-4x4x4",
        "algorithm",
    ),
    Bug(
        "halves are summed in halves",
        "return language.float64 if dtype == torch.float64 else language.float32",
        "return {2: language.float16, 4: language.float32, 8: language.float64}[dtype.itemsize]",
        "test_every_config and float16",
        "launch_plan_builder",
    ),
    Bug(
        "float64 is summed in float32",
        "return language.float64 if dtype == torch.float64 else language.float32",
        "return language.float32",
        "test_every_config and float64",
        "launch_plan_builder",
    ),
    Bug(
        "channels_last is treated as contiguous",
        "for size, step in zip(tensor.shape, tensor.stride())",
        "for size, step in zip(tensor.shape, tensor.contiguous().stride())",
        "test_forward_keeps_layout",
        "launch_plan_builder",
    ),
    Bug(
        "a negated view is read without its sign",
        "(operand.resolve_neg() for operand in (first, *others))",
        "(first, *others)",
        "test_negated_views",
        "algorithm",
    ),
    Bug(
        "a kernel for aligned memory is launched on any",
        "*(pointer % 16 == 0 for pointer in pointers),",
        "",
        CACHE_KEY,
        "launch_plan",
    ),
    Bug(
        "the kernel of one device is launched on another",
        "tensors[0].get_device(),\n",
        "0,\n",
        "test_compiled_kernels_belong",
        "launch_plan",
    ),
    Bug(
        "a plan without TF32 is used with TF32",
        "settings = may_use_tf32(dtype), is_interpreted()",
        "settings = False, is_interpreted()",
        CACHE_KEY,
        "algorithm",
    ),
    Bug(
        "a plan is used for other strides of an operand",
        "first.stride(), second.stride(), settings)\n        result",
        "torch.empty(first.shape).stride(), second.stride(), settings)\n        result",
        CACHE_KEY,
        "algorithm",
    ),
    Bug(
        "a later launch passes the constants in another order",
        "(*arguments[count:], *constants)",
        "(*arguments[count:], *reversed([*constants]))",
        "test_repeated_call",
        "launch_plan",
    ),
    Bug(
        "a later launch uses the addresses of the first",
        "(*arguments[count:], *constants)\n",
        "(*arguments[count:], *constants)\n"
        "            kept, start = pointers, self.compiled[key][0]\n"
        "            late = lambda *v: start(*kept, *v[count:])\n"
        "            self.compiled[key] = late, self.compiled[key][1]\n",
        "test_repeated_call",
        "launch_plan",
    ),
)


def changed(bug: Bug) -> str:
    """The module's text with the bug in it.

    Raises:
        ValueError: the text that the bug changes does not occur exactly once.
    """
    text = (TRITON / f"{bug.module}.py").read_text()
    if text.count(bug.old) != 1:
        raise ValueError(f"{bug.name!r}: its text occurs {text.count(bug.old)} times, not once")
    return text.replace(bug.old, bug.new)


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
