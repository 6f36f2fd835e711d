"""Bugs planted in the Triton kernels, each with the test that must catch it.

    TRITON_INTERPRET=1 python tests/support/kernel_bugs.py          every bug
    TRITON_INTERPRET=1 python tests/support/kernel_bugs.py period   bugs with the word in their name

A bug is one change to the text of a module.  The changed text is imported in the module's place by
a process of its own, which runs the test; no file of the package is touched.
Exit code 1: a bug was missed.
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
        new: what stands there instead.
        test: pytest's -k for the test that must fail.
        module: of ``torch_corr.algorithms.triton``.
    """

    name: str
    old: str
    new: str
    test: str
    module: str = KERNELS


NON_FINITE, SPLIT = "test_one_non_finite and nan and", "test_pixels_are_split_anyhow and"
CONFIGURATION = "test_every_configuration and float32"
TAPS, SUMS = f"{CONFIGURATION}-forward-taps", f"{CONFIGURATION}-grad_weight-sums"
DOT = f"{CONFIGURATION}-forward-dot-64x16"
BAND = f"{CONFIGURATION}-forward-band"
LEFT_OUT = "test_rows_outside and n3c2 and forward"

BUGS = (
    Bug(
        "rows of sums are computed whether in doubt or not",
        """        if tl.load(doubt) == 0:
            return
    pid = _number(WIDE)
    block = pid % blocks
    rest""",
        """        if tl.load(doubt) == 2:
            return
    pid = _number(WIDE)
    block = pid % blocks
    rest""",
        "test_kernels_store_nothing and forward-taps-4",
    ),
    Bug(
        "the period of taps is the stride",
        "taps, stride // gcd(stride, tap))",
        "taps, stride)",
        "test_edges and c17",
        "axes",
    ),
    Bug(
        "the last tap of a class is not counted",
        "found = (axis.taps - u + axis.period - 1) // axis.period",
        "found = (axis.taps - u) // axis.period",
        "test_edges and s2x3",
    ),
    Bug(
        "the first row is outside",
        "return at.to(tl.uint32, bitcast=True) < size",
        "return (at - 1).to(tl.uint32, bitcast=True) < size",
        "test_edges and n1c1-x1x1",
    ),
    Bug(
        "a row too many is inside",
        "return at.to(tl.uint32, bitcast=True) < size",
        "return at.to(tl.uint32, bitcast=True) <= size",
        TAPS,
    ),
    Bug(
        "rows before the first are inside",
        "return at.to(tl.uint32, bitcast=True) < size",
        "return at < size",
        TAPS,
    ),
    Bug(
        "rows follow each other without a stride between them",
        "        sums = added\n        source += row_stride\n",
        "        sums = added\n        source += 1\n",
        TAPS,
    ),
    Bug(
        "chunks of taps all read the first rows",
        "at += CHUNK * TAP * source_strides[2]",
        "at += 0 * source_strides[2]",
        TAPS,
    ),
    Bug(
        "of the rows inside the last is left out",
        "_within(FIRST + r + LOW, INSIDE)",
        "_within(FIRST + r + LOW, INSIDE - 1)",
        LEFT_OUT,
    ),
    Bug(
        "rows are left out as if the first lay at the edge",
        '"FIRST": rows.base if left_out else 0',
        '"FIRST": 0',
        LEFT_OUT,
        "correlate",
    ),
    Bug(
        "where rows are left out, taps of a column lie side by side",
        '"TAP_STRIDE": weight_strides[3]',
        '"TAP_STRIDE": weight_strides[4]',
        LEFT_OUT,
        "correlate",
    ),
    Bug(
        "where rows are left out, a single row lies a stride of its own from the next",
        '"ROW_STRIDE": strides[0][2]',
        '"ROW_STRIDE": source.stride(2)',
        "test_rows_outside and x1x6 and forward",
        "correlate",
    ),
    Bug(
        "masked sums multiply first",
        "acc = tl.where(meets, acc + x * tap, acc)",
        "acc = acc + x * tap",
        f"{NON_FINITE} taps-1",
    ),
    Bug(
        "nothing is mended",
        "return draft.form(result, launch, mend)",
        "return draft.form(result, launch)",
        f"{NON_FINITE} taps-4",
        "correlate",
    ),
    Bug(
        "mending forgets columns at the edges",
        "_reaches_out(row, rows) | _reaches_out(column, columns)",
        "_reaches_out(row, rows)",
        f"{NON_FINITE} taps-4",
    ),
    Bug(
        "mending forgets the edge of the last tap",
        "return ~(_inside(first, beyond) & _inside(last, beyond))",
        "return ~_inside(first, beyond)",
        f"{NON_FINITE} taps-4",
    ),
    Bug(
        "mending forgets the edge of the first tap",
        "return ~(_inside(first, beyond) & _inside(last, beyond))",
        "return ~_inside(last, beyond)",
        f"{NON_FINITE} taps-4",
    ),
    Bug(
        "mending forgets rows at the edges",
        "_reaches_out(row, rows) | _reaches_out(column, columns)",
        "_reaches_out(column, columns)",
        f"{NON_FINITE} taps-4",
    ),
    Bug(
        "the first row is outside of a matrix product",
        "return (at >= 0) & (at < size)",
        "return (at > 0) & (at < size)",
        DOT,
    ),
    Bug(
        "a row too many is inside of a matrix product",
        "return (at >= 0) & (at < size)",
        "return (at >= 0) & (at <= size)",
        DOT,
    ),
    Bug(
        "in 64 bits a row too many is inside",
        "return at.to(tl.uint64, bitcast=True) < size",
        "return at.to(tl.uint64, bitcast=True) <= size",
        "test_positions_in_64_bits",
    ),
    Bug("the rest of a column of taps is left", "if REST > 0:", "if REST > 9:", TAPS),
    Bug(
        "later taps of a column lie as without dilation",
        "row + chunk * CHUNK * TAP, rows",
        "row + chunk * CHUNK, rows",
        TAPS,
    ),
    Bug(
        "rows of sums lie as without a stride",
        "i * STEP) % TAP == 0 and _within((r + LOW - i * STEP) // TAP, TAPS)",
        "i) % TAP == 0 and _within((r + LOW - i) // TAP, TAPS)",
        "test_rows_of_sums_under_a_stride and taps-4",
    ),
    Bug(
        "channels of a group are counted from the first group",
        "(channel % group_dest) * weight_strides[1]",
        "channel * weight_strides[1]",
        f"{CONFIGURATION}-grad_input-taps",
    ),
    Bug(
        "groups of the source are as large as those of the dest",
        "image * source_strides[0] + group * group_source * source_strides[1]\n    weight",
        "image * source_strides[0] + group * group_dest * source_strides[1]\n    weight",
        TAPS,
    ),
    Bug(
        "the period is left out where taps are flat",
        "tap = (first_down + u * rows.period) * columns.taps + first_across + v * columns.period\n"
        "            at = (tap * group_source + c) * weight_strides[0]\n"
        "            y = tl.load(\n"
        "                weight + at[:, None] + (n * weight_strides[1])[None, :],\n"
        "                mask=(k < length)",
        "tap = (first_down + u) * columns.taps + first_across + v\n"
        "            at = (tap * group_source + c) * weight_strides[0]\n"
        "            y = tl.load(\n"
        "                weight + at[:, None] + (n * weight_strides[1])[None, :],\n"
        "                mask=(k < length)",
        "test_edges and o5-k3x2",
    ),
    Bug(
        "channels past a group are multiplied by zero",
        "mask=meets[:, None] & (c < group_source)[None, :]",
        "mask=meets[:, None]",
        f"{NON_FINITE} c40",
    ),
    Bug(
        "weights past the channels are read",
        "mask=(c < group_source)[:, None] & (n < group_dest)[None, :]",
        "mask=(n < group_dest)[None, :]",
        f"{NON_FINITE} c40",
    ),
    Bug(
        "images of a dense result overlap",
        "at = m // (plane * PLANE_PART) * result_strides[0] + m % (plane * PLANE_PART)",
        "at = m % (plane * PLANE_PART)",
        DOT,
    ),
    Bug(
        "tiles of pixels are counted as tiles of channels",
        "m = pid % tiles_m * M + tl.arange(0, M)\n    pid = pid // tiles_m\n"
        "    group = pid % groups\n    pid",
        "m = pid % tiles_n * M + tl.arange(0, M)\n    pid = pid // tiles_m\n"
        "    group = pid % groups\n    pid",
        f"{CONFIGURATION}-forward-dot-64x32",
    ),
    Bug(
        "rows past the output are paired",
        "alive = live & (output_row + i < rows.dest)",
        "alive = live",
        SUMS,
    ),
    Bug(
        "a spoilt block of rows is left",
        "if tl.max((spoilt != 0).to(tl.int32), 0) > 0:",
        "if tl.max((spoilt != 0).to(tl.int32), 0) > 1:",
        f"{NON_FINITE} sums-4x4x4",
    ),
    Bug(
        "every split of lanes is the first",
        "partial += ((split * out_channels + o) * group_in + c)",
        "partial += (o * group_in + c)",
        f"{SPLIT} sums-4x4x4",
    ),
    Bug(
        "a split of pixels goes on to the last",
        "end = tl.minimum(begin + per_split, pixels)",
        "end = pixels",
        f"{SPLIT} dot-64x16",
    ),
    Bug(
        "the last split of pixels goes beyond them",
        "end = tl.minimum(begin + per_split, pixels)",
        "end = begin + per_split",
        f"{SPLIT} dot-64x16",
    ),
    Bug(
        "bands have taps where none comes out",
        "meets = (v * columns.tap == distance) & _inside(v, columns.taps)",
        "meets = _inside(v, columns.taps)",
        "test_bands and s2x3",
    ),
    Bug(
        "the bands of a group are those of the first",
        "band += row // taps_down * group_stride + row % taps_down * row_stride",
        "band += row % taps_down * row_stride",
        BAND,
    ),
    Bug(
        "what a band's zeros spoil is mended near the edges alone",
        "source, grouped, result, edges=False)",
        "source, grouped, result, edges=True)",
        f"{NON_FINITE} band-64x32",
        "correlate",
    ),
    Bug(
        "mending takes all for the first image",
        "plane = source + rest * source_strides[0] + group",
        "plane = source + group",
        "test_mending_finds_its_pixels and taps-4",
    ),
    Bug(
        "in channels_last too what is mended is taken to lie in NCHW",
        """            "CHANNELS_FIRST": is_channels_last(result),
            "EDGES": edges,""",
        """            "CHANNELS_FIRST": False,
            "EDGES": edges,""",
        "test_mending_finds_its_pixels and taps-4",
        "correlate",
    ),
    Bug(
        "what a band's zeros spoil is left",
        "return spread, product, mend",
        "return spread, product",
        f"{NON_FINITE} band-64x32",
        "correlate",
    ),
    Bug(
        "of the splits of bands the first is summed alone",
        "first = (split * groups + group) * columns.dest",
        "first = group * columns.dest",
        f"{SPLIT} band-64x32",
    ),
    Bug(
        "diagonals of a band go on beyond the image",
        "meets = (v < columns.taps) & _inside(column, columns.source)",
        "meets = v < columns.taps",
        f"{CONFIGURATION}-grad_weight-band",
    ),
    Bug(
        "only one split is summed",
        "result = result[0] if len(result) == 1 else result.sum(0)",
        "result = result[0]",
        f"{SPLIT} sums-4x4x4",
        "algorithm",
    ),
    Bug(
        "halves are summed as halves",
        "return language.float64 if dtype == torch.float64 else language.float32",
        "return {2: language.float16, 4: language.float32, 8: language.float64}[dtype.itemsize]",
        "test_every_configuration and float16",
        "draft",
    ),
    Bug(
        "float64 is summed in float32",
        "return language.float64 if dtype == torch.float64 else language.float32",
        "return language.float32",
        "test_every_configuration and float64",
        "draft",
    ),
    Bug(
        "channels_last is taken for contiguous",
        "for size, step in zip(tensor.shape, tensor.stride())",
        "for size, step in zip(tensor.shape, tensor.contiguous().stride())",
        "test_layout_of_the_input_is_kept",
        "draft",
    ),
    Bug(
        "a negated view is read as it lies",
        "(each.resolve_neg() for each in (first, *others))",
        "(first, *others)",
        "test_views_that_are_negated",
        "algorithm",
    ),
    Bug(
        "a kernel for aligned memory is launched on any",
        "*(pointer % 16 == 0 for pointer in pointers),",
        "",
        "test_what_changes_between_calls",
        "form",
    ),
    Bug(
        "the kernel of one device is launched on another",
        "tensors[0].get_device(),\n",
        "0,\n",
        "test_kernels_belong_to_a_device",
        "form",
    ),
    Bug(
        "what was found without TF32 is kept with it",
        "settings = may_use_tf32(dtype), interpreted()",
        "settings = False, interpreted()",
        "test_what_changes_between_calls",
        "algorithm",
    ),
    Bug(
        "any operand is taken to lie as the first that came",
        "first.stride(), second.stride(), settings)\n        result",
        "torch.empty(first.shape).stride(), second.stride(), settings)\n        result",
        "test_what_changes_between_calls",
        "algorithm",
    ),
    Bug(
        "a later launch has the constants in another order",
        "(*arguments[count:], *constants)",
        "(*arguments[count:], *reversed([*constants]))",
        "test_a_call_like_an_earlier_one",
        "form",
    ),
    Bug(
        "a later launch is at the addresses of the first",
        "(*arguments[count:], *constants)\n",
        "(*arguments[count:], *constants)\n"
        "            kept, start = pointers, self.compiled[key][0]\n"
        "            late = lambda *v: start(*kept, *v[count:])\n"
        "            self.compiled[key] = late, self.compiled[key][1]\n",
        "test_a_call_like_an_earlier_one",
        "form",
    ),
)


def changed(bug: Bug) -> str:
    """The module's text with the bug in it.

    Raises:
        ValueError: the text that the bug changes is not there, or not once.
    """
    text = (TRITON / f"{bug.module}.py").read_text()
    if text.count(bug.old) != 1:
        raise ValueError(f"{bug.name!r}: its text occurs {text.count(bug.old)} times, not once")
    return text.replace(bug.old, bug.new)


class Planted(importlib.abc.MetaPathFinder):
    """Finds one module in a file of our own."""

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
        # 1: tests failed.  Anything else is no verdict, such as 5, that no test has the name.
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
