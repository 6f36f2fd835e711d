"""Search for problems that PyTorch's convolution on the CPU computes wrongly, or crashes on.

    python -m benchmarks.scan --count 20000
    python -m benchmarks.scan --count 20000 --isa AVX2
    python -m benchmarks.scan --count 20000 --algorithm aten
    python -m benchmarks.scan --count 20000 --guard writes

Each case is one map of a small random problem, in a random dtype and memory layout.  Operands are
small integers, so nearly every sum is exact and a wrong term shows.  NaN surrounds the operands and
fills freed memory, so reads beyond the operands show too.  Results are compared with the definition
in float64; a difference counts if it exceeds the bound of ``torch_corr.testing``.

The cases run in a separate process.  If it dies, its current case is a finding, and another process
continues with the next case.  A case depends only on the seed and its number.  Each finding is
printed as a string that runs it again::

    python -m benchmarks.scan --case 'CASE'

With ``--guard`` every block of memory ends at a page that kills the process when it is written to,
or also when it is read (``guard.c``; Linux, with a C compiler).  So accesses beyond a block kill
the process every time, and not by chance.

The summary counts the findings by map, dtype and the implementation that oneDNN used.  The exit
code is 1 if there was a finding.
"""

from __future__ import annotations

import argparse
import atexit
import ctypes
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_corr import Direct, Plan, Problem, corr2d, plan
from torch_corr.request import Request
from torch_corr.testing import Componentwise, declared, litter, oracle, poisoned
from torch_corr.testing.bounds import rounded

COMMAND = (sys.executable, "-m", "benchmarks.scan")
ISAS = ("AVX512_CORE_AMX", "AVX512_CORE_BF16", "AVX512_CORE", "AVX2", "SSE41")
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.complex64)
}
MAPS = ("forward", "grad_input", "grad_weight", "gradients")
READS = {
    "forward": ("input", "weight"),
    "grad_input": ("weight", "output"),
    "grad_weight": ("input", "output"),
    "gradients": ("input", "weight", "output"),
}
ELEMENTS, PRODUCTS = 30_000, 400_000
"""The largest operand, in elements, and the largest number of multiplications of a case."""

PATIENCE = 4.0
"""Seconds of processor time after which a case counts as hung."""

GUARD = 256
"""Elements of NaN before and after each operand."""

GUARDS = ("writes", "reads")
"""Kinds of accesses beyond a block of memory that may kill the process."""

NO_MAPPINGS = 77
"""Exit code of a process that reached Linux's limit of mappings; the same as in ``guard.c``."""

READ_ONCE = ("ONEDNN_MAX_CPU_ISA", "LD_PRELOAD")
"""Environment variables that are read only when a process starts."""

Strides = tuple[int, int, int, int]


@dataclass(frozen=True)
class Case:
    """One map of one problem on operands of given dtype, strides and values.

    Attributes:
        problem: the geometry.
        map: ``forward``, ``grad_input``, ``grad_weight``, or ``gradients`` for both by one call.
        dtype: of all operands.
        bias: whether the forward has one.
        values: ``ones``, or a number for random integers; after ``<`` or ``>`` only the left or
            right half of the input and the output differs from zero.
        strides: of input, weight and output.
    """

    problem: Problem
    map: str
    dtype: str
    bias: bool
    values: str
    strides: tuple[Strides, Strides, Strides]

    def __str__(self) -> str:
        strides = " ".join(",".join(map(str, each)) for each in self.strides)
        bias = "bias" if self.bias else "plain"
        return f"{self.problem} {self.map} {self.dtype} {bias} {self.values} {strides}"

    @classmethod
    def parse(cls, text: str) -> Case:
        problem, map, dtype, bias, values, *strides = text.split()
        first, second, third = (_strides(each) for each in strides)
        return cls(
            Problem.parse(problem), map, dtype, bias == "bias", values, (first, second, third)
        )

    @property
    def operands(self) -> dict[str, Tensor]:
        """The operands that the map reads, each surrounded by NaN."""
        number = int(re.sub(r"\D", "", self.values) or 0)
        generator = torch.Generator().manual_seed(number)
        p, found = self.problem, {}
        for name, shape, strides in zip(
            ("input", "weight", "output"),
            (p.input_shape, p.weight_shape, p.output_shape),
            self.strides,
        ):
            if name not in READS[self.map]:
                continue
            size = [1 if stride == 0 else length for length, stride in zip(shape, strides)]
            value = torch.ones(size)
            if "ones" not in self.values:
                value = torch.randint(-2, 4, size, generator=generator).float()
            if name != "weight" and strides[3]:
                half = (shape[3] + 1) // 2
                if self.values[0] == "<":
                    value[..., half:] = 0
                elif self.values[0] == ">":
                    value[..., :-half] = 0
            found[name] = _surrounded_by_nan(value.to(DTYPES[self.dtype]).expand(shape), strides)
        return found


class Finding(NamedTuple):
    case: str
    kind: str
    """``wrong``, ``not finite``, ``rough`` (as exact as sums in half precision), ``raised``,
    ``died`` or ``hung``."""
    detail: str
    implementation: str

    @property
    def region(self) -> str:
        _, map, dtype, *_ = self.case.split()
        return f"{map:<12}{dtype:<10}{self.kind:<11}{self.implementation}"


def _strides(text: str) -> Strides:
    a, b, c, d = map(int, text.split(","))
    return a, b, c, d


def _surrounded_by_nan(value: Tensor, strides: Strides) -> Tensor:
    """The values in memory with the given strides, and NaN in all other elements."""
    reach = sum((length - 1) * stride for length, stride in zip(value.shape, strides)) + 1
    memory = torch.full((reach + 2 * GUARD,), float("nan"), dtype=value.dtype)
    placed = memory.as_strided(value.shape, strides, GUARD)
    # PyTorch does not write to a tensor with a stride of zero.
    one = tuple(slice(0, 1) if stride == 0 else slice(None) for stride in strides)
    placed[one].copy_(value[one])
    return placed


def draw(seed: int, number: int, maps: Sequence[str], dtypes: Sequence[str]) -> Case:
    """The case with this number; the same in each run with this seed and these options."""
    rng = random.Random(f"{seed}/{number}")
    while True:
        problem = _draw_problem(rng)
        if problem is not None:
            break
    shapes = problem.input_shape, problem.weight_shape, problem.output_shape
    last = rng.random() < 0.5
    first, second, third = (_draw_strides(rng, shape, last) for shape in shapes)
    values = rng.choice(["ones", str(rng.randrange(1000))])
    return Case(
        problem,
        rng.choice(list(maps)),
        rng.choice(list(dtypes)),
        rng.random() < 0.5,
        rng.choice(["", "", "", "<", ">"]) + values,
        (first, second, third),
    )


CHANNELS = (1, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 8, 8, 9, 12, 13, 15, 16, 16, 17, 20, 24, 32, 33, 40)
GROUPS = (2, 2, 3, 4, 5, 8, 16, 17, 20, 32)


def _draw_problem(rng: random.Random) -> Problem | None:
    """A problem; None if the drawn sizes are invalid or too large."""
    kind = rng.choice(["dense", "dense", "dense", "grouped", "depthwise", "multiplied"])
    groups = 1 if kind == "dense" else rng.choice(GROUPS)
    ins, outs = rng.choice(CHANNELS), rng.choice(CHANNELS)
    if kind == "depthwise":
        ins = outs = 1
    elif kind == "multiplied":
        ins, outs = 1, rng.choice((2, 3, 4))
    rows, columns = _draw_axis(rng, wide=0.05), _draw_axis(rng, wide=0.3)
    try:
        problem = Problem(
            batch=rng.choice((1, 1, 2, 2, 3)),
            in_channels=groups * ins,
            size=(rows["size"], columns["size"]),
            out_channels=groups * outs,
            kernel=(rows["kernel"], columns["kernel"]),
            stride=(rows["stride"], columns["stride"]),
            padding=(rows["padding"], columns["padding"]),
            dilation=(rows["dilation"], columns["dilation"]),
            groups=groups,
        )
    except RuntimeError:
        return None
    shapes = problem.input_shape, problem.weight_shape, problem.output_shape
    small = max(map(prod, shapes)) <= ELEMENTS and problem.multiplications <= PRODUCTS
    return problem if small else None


def _draw_axis(rng: random.Random, wide: float) -> dict[str, Any]:
    """Sizes along one axis.  The size of the image follows from that of the output if possible."""
    kernel = rng.choice((1, 1, 2, 3, 3, 3, 4, 5, 6, 7))
    if rng.random() < 0.08:
        kernel = rng.randrange(8, 33)
    stride = rng.choice((1, 1, 1, 2, 2, 3, 4, 5))
    dilation = rng.choice((1, 1, 1, 2, 2, 3, 4))
    if rng.random() < 0.08:
        dilation = rng.randrange(5, 17)
    reach = dilation * (kernel - 1)
    padding = rng.choice(
        (0, 0, 1, reach // 2, reach, rng.randint(0, reach + 3), rng.randint(0, reach + 3))
    )
    if rng.random() < 0.05:
        padding = rng.randint(0, 30)
    outputs = rng.choice((1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16))
    if rng.random() < wide:
        outputs = rng.randrange(20, 81)
    size = (outputs - 1) * stride + reach + 1 - 2 * padding + rng.randrange(stride)
    if size < 1:
        size = rng.choice((1, 1, 2, 3, 4))
    return {
        "kernel": kernel,
        "stride": stride,
        "dilation": dilation,
        "padding": (padding, padding),
        "size": size,
    }


def _draw_strides(rng: random.Random, shape: Sequence[int], last: bool) -> Strides:
    """Usually NCHW or NHWC; rarely another order of the axes, an expanded axis, or gaps.

    The stride of an axis of length 1 has no meaning, but PyTorch and oneDNN derive layouts from it,
    so it is often random.
    """
    order = [0, 2, 3, 1] if (last if rng.random() < 0.7 else rng.random() < 0.5) else [0, 1, 2, 3]
    if rng.random() < 0.05:
        rng.shuffle(order)
    strides, step = [0, 0, 0, 0], 2 if rng.random() < 0.03 else 1
    for axis in reversed(order):
        strides[axis] = step
        step *= shape[axis]
    if rng.random() < 0.04:
        strides[rng.randrange(4)] = 0
    if rng.random() < 0.4:
        for axis, length in enumerate(shape):
            if length == 1:
                strides[axis] = rng.choice((1, shape[1], shape[3], shape[2] * shape[3], step))
    a, b, c, d = strides
    return a, b, c, d


def find_algorithm(name: str) -> Any:
    """The argument for ``corr2d``: a name, or the object at ``module:name``."""
    module, colon, attribute = name.partition(":")
    return getattr(import_module(module), attribute) if colon else name


def compute(case: Case, algorithm: str) -> list[Tensor]:
    """The results of the map: one tensor, or two for ``gradients``."""
    p, operands = case.problem, case.operands
    numbers: tuple[Any, ...] = (p.stride, tuple(pair[0] for pair in p.padding), p.dilation)
    bias = torch.ones(p.out_channels, dtype=DTYPES[case.dtype]) if case.bias else None
    if algorithm == "pytorch":
        if case.map == "forward":
            return [torch.conv2d(operands["input"], operands["weight"], bias, *numbers, p.groups)]
        blank = torch.full((1,), float("nan"), dtype=DTYPES[case.dtype])
        for name, shape in (("input", p.input_shape), ("weight", p.weight_shape)):
            if name not in operands:
                operands[name] = blank.expand(shape).contiguous()
        wanted = case.map in ("grad_input", "gradients"), case.map in ("grad_weight", "gradients")
        found = torch.ops.aten.convolution_backward(
            operands["output"],
            operands["input"],
            operands["weight"],
            None,
            *numbers,
            False,
            (0, 0),
            p.groups,
            (*wanted, False),
        )
        return [value for value, is_wanted in zip(found, wanted) if is_wanted]
    leaves = []
    for name, shape in (("input", p.input_shape), ("weight", p.weight_shape)):
        if name not in operands:
            operands[name] = torch.ones(shape, dtype=DTYPES[case.dtype])
        if case.map in ("gradients", f"grad_{name}"):
            leaves.append(operands[name].requires_grad_())
    y = corr2d(
        operands["input"],
        operands["weight"],
        bias,
        p.stride,
        p.padding if p.padding[0][0] != p.padding[0][1] else numbers[1],
        p.dilation,
        p.groups,
        algorithm=find_algorithm(algorithm),
    )
    if case.map == "forward":
        return [y]
    return list(torch.autograd.grad(y, leaves, operands["output"]))


def _expected(case: Case) -> list[tuple[str, dict[str, Tensor]]]:
    """For each result its map and the operands of that map."""
    operands = case.operands
    maps = ("grad_input", "grad_weight") if case.map == "gradients" else (case.map,)
    if case.dtype == "complex64" and case.map != "forward":
        # Autograd conjugates the operands.
        operands = {n: v if n == "output" else v.conj() for n, v in operands.items()}
    return [(map, {name: operands[name] for name in READS[map]}) for map in maps]


def problem_with(case: Case, algorithm: str, repeats: int) -> tuple[str, str] | None:
    """The kind and the detail of a finding; None if the results are right."""
    expected = []
    for map, operands in _expected(case):
        exact = {n: v if v.is_complex() else v.double() for n, v in operands.items()}
        value = _definition(case.problem, map, exact)
        if case.bias and map == "forward":
            value = value + 1
        expected.append((map, operands, value))
    for _ in range(repeats):
        try:
            results = compute(case, algorithm)
        except Exception as error:
            if "not implemented for" in str(error):
                return None
            return "raised", f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"
        for (map, operands, value), result in zip(expected, results):
            if result.shape != value.shape:
                return "wrong", f"shape {tuple(result.shape)} instead of {tuple(value.shape)}"
            if torch.equal(result.to(value.dtype), value):
                continue
            if torch.equal(result, value.to(result.dtype)):
                continue
            if found := _beyond_bound(case, map, operands, result, algorithm):
                return found
    return None


def _definition(problem: Problem, map: str, operands: dict[str, Tensor]) -> Tensor:
    able = not Direct().refusals(Request(problem, "forward", torch.device("cpu"), torch.float64))
    first = operands["input"] if map != "grad_input" else operands["output"]
    second = operands["weight"] if map != "grad_weight" else operands["output"]
    if first.is_complex() or not able:
        slots: Any = operands
        return oracle(problem, **slots).value
    result: Tensor = getattr(Direct(), map)(problem, first.contiguous(), second.contiguous())
    return result


def _beyond_bound(
    case: Case, map: str, operands: dict[str, Tensor], result: Tensor, algorithm: str
) -> tuple[str, str] | None:
    slots: Any = operands
    reference = oracle(case.problem, **slots)
    dtype = DTYPES[case.dtype]
    if case.bias and map == "forward":
        reference = reference._replace(
            value=reference.value + 1, magnitude=reference.magnitude + 1, terms=reference.terms + 1
        )
    filled = (operands.get("input"), operands.get("weight"), operands.get("output"))
    result = result.to(reference.value.dtype)
    error = (result - reference.value).abs()

    bound = Componentwise().bound(case.problem, reference, filled, dtype)
    if algorithm != "pytorch":
        # ``auto`` may choose a transform, which has another error model.
        chosen = getattr(_plan(case, algorithm), map)
        if chosen.error_class != "componentwise":
            bound = declared(chosen).bound(case.problem, reference, filled, dtype)
        if case.bias and map == "forward":
            bound = rounded(bound, reference, dtype)  # corr2d adds the bias to a rounded result
    wrong = ~(error <= bound)
    if not wrong.any():
        return None
    at = tuple(wrong.nonzero()[0].tolist())
    kind = "wrong" if result[wrong].isfinite().all() else "not finite"
    own = torch.finfo(dtype).eps * (reference.terms + 2) * reference.magnitude
    if dtype.itemsize == 2 and (error <= own).all():
        kind = "rough"  # as if summed in the dtype itself
    got, wanted = result[at].item(), reference.value[at].item()
    share = f"{int(wrong.sum())} of {wrong.numel()}"
    return kind, f"{map}{list(at)} is {got:.7g} instead of {wanted:.7g}, {share}"


def _plan(case: Case, algorithm: str) -> Plan:
    p, operands = case.problem, case.operands
    shapes = (("input", p.input_shape), ("weight", p.weight_shape))
    for name, shape in shapes:
        operands.setdefault(name, torch.empty(shape, dtype=DTYPES[case.dtype]))
    return plan(
        operands["input"],
        operands["weight"],
        p.stride,
        p.padding,
        p.dilation,
        p.groups,
        algorithm=find_algorithm(algorithm),
    )


@contextmanager
def _captured() -> Iterator[Any]:
    """Captures the process's output, also of C code, as lines."""
    sys.stdout.flush()
    with tempfile.TemporaryFile() as file:
        kept = os.dup(1)
        os.dup2(file.fileno(), 1)
        lines: list[str] = []
        try:
            yield lines
        finally:
            os.dup2(kept, 1)
            os.close(kept)
            file.seek(0)
            lines.extend(file.read().decode(errors="replace").splitlines())


_KINDS = {
    "forward": ("forward",),
    "grad_input": ("backward_data",),
    "grad_weight": ("backward_weights",),
    "gradients": ("backward_data", "backward_weights"),
}


def implementation_of(case: Case, algorithm: str) -> str:
    """The kernels that oneDNN ran for a case, according to its log."""
    with _captured() as lines, torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
        try:
            compute(case, algorithm)
        except Exception:
            return "none"
        ctypes.CDLL(None).fflush(None)
    return _implementations(case, lines)


def _implementations(case: Case, lines: Sequence[str]) -> str:
    found = []
    for line in lines:
        _, is_convolution, rest = line.partition(",convolution,")
        name, _, kind = rest.partition(",")
        if is_convolution and kind.startswith(_KINDS[case.map]):
            found.append(name)
    return "+".join(dict.fromkeys(found)) or "PyTorch's own"


def work(options: argparse.Namespace) -> None:
    """Run cases; the number of each is written to a file before it runs."""
    current = os.open(options.current, os.O_WRONLY)
    _set_up(options)
    with poisoned():
        for number in range(options.start, options.count):
            os.pwrite(current, b"%012d" % number, 0)
            signal.setitimer(signal.ITIMER_PROF, PATIENCE)
            case = draw(options.seed, number, options.maps, options.dtypes)
            if number % 16 == 0:
                litter()
            found = problem_with(case, options.algorithm, options.repeats)
            if found is not None:
                finding = Finding(str(case), *found, implementation_of(case, options.algorithm))
                print(json.dumps(finding), flush=True)
    os.pwrite(current, b"%012d" % options.count, 0)


def _set_up(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    if options.guard:
        ctypes.CDLL(None).guard_enable(1 + GUARDS.index(options.guard))


def scan(options: argparse.Namespace) -> Iterator[Finding]:
    """Yields every finding; starts another process after each that died."""
    with tempfile.NamedTemporaryFile(prefix="scan") as current:
        start = options.start
        while start < options.count:
            os.pwrite(current.fileno(), b"%012d" % start, 0)
            own = ["--worker", "--current", current.name, "--start", str(start)]
            command = [*COMMAND, *own, *_arguments(options)]
            with subprocess.Popen(
                command, env=_environment(options), stdout=subprocess.PIPE, text=True
            ) as worker:
                assert worker.stdout is not None
                for line in worker.stdout:
                    if line.startswith("["):
                        yield Finding(*json.loads(line))
            reached = int(Path(current.name).read_text())
            if worker.returncode == 0 and reached == options.count:
                return
            if worker.returncode == NO_MAPPINGS and reached > start:
                start = reached
                continue
            if worker.returncode > 0:
                raise SystemExit(f"the worker failed with exit code {worker.returncode}")
            case = draw(options.seed, reached, options.maps, options.dtypes)
            name = signal.Signals(-worker.returncode).name
            if name == "SIGPROF":
                detail = f"{PATIENCE:g} s of processor time"
                yield Finding(str(case), "hung", detail, "unknown")
            else:
                yield Finding(str(case), "died", name, _implementation_alone(case, options))
            start = reached + 1


def _arguments(options: argparse.Namespace) -> list[str]:
    """The arguments for another process with the same options."""
    words = ["--maps", ",".join(options.maps), "--dtypes", ",".join(options.dtypes)]
    for name in ("seed", "count", "algorithm", "repeats", "threads"):
        words += [f"--{name}", str(getattr(options, name))]
    return words + (["--guard", options.guard] if options.guard else [])


@lru_cache
def _guard() -> str:
    """Compiles ``guard.c``; returns the path of the library."""
    loaded = os.environ.get("LD_PRELOAD", "")
    if loaded.endswith("guard.so"):
        return loaded
    library = Path(tempfile.mkdtemp(prefix="scan")) / "guard.so"
    source = Path(__file__).with_name("guard.c")
    command = ["cc", "-O1", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
    subprocess.run(command, check=True)
    atexit.register(shutil.rmtree, library.parent)
    return str(library)


def _environment(options: argparse.Namespace) -> dict[str, str]:
    known = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    if options.guard:
        known["LD_PRELOAD"] = _guard()
    if options.isa:
        known["ONEDNN_MAX_CPU_ISA"] = options.isa
    return known


def _implementation_alone(case: Case, options: argparse.Namespace) -> str:
    """The kernels that oneDNN created for a case that killed its process, run alone."""
    command = [*COMMAND, "--case", str(case), *_arguments(options)]
    done = subprocess.run(
        command,
        env={**_environment(options), "ONEDNN_VERBOSE": "2"},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: signal.setitimer(signal.ITIMER_PROF, PATIENCE),
    )
    again = "" if done.returncode < 0 else " (not alone)"
    return _implementations(case, done.stdout.splitlines()) + again


def run_case(options: argparse.Namespace) -> int:
    """Run one case from the command line."""
    case = Case.parse(options.case)
    _set_up(options)
    with poisoned():
        for _ in range(5):
            litter()
            found = problem_with(case, options.algorithm, options.repeats)
            if found is not None:
                print(*found, implementation_of(case, options.algorithm), sep=": ")
                return 1
    print("right:", implementation_of(case, options.algorithm))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def names(text: str) -> list[str]:
        return text.split(",")

    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=20_000, help="cases (default: %(default)s)")
    parser.add_argument("--start", type=int, default=0, help="number of the first case")
    parser.add_argument("--isa", choices=ISAS, help="the largest instruction set for oneDNN")
    parser.add_argument(
        "--algorithm",
        default="pytorch",
        help="pytorch; a name for corr2d; or module:name of an Algorithm (default: %(default)s)",
    )
    parser.add_argument("--maps", type=names, default=MAPS, help=",".join(MAPS))
    parser.add_argument("--dtypes", type=names, default=tuple(DTYPES), help=",".join(DTYPES))
    parser.add_argument("--repeats", type=int, default=2, help="runs of each case")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--case", help="run one case")
    parser.add_argument(
        "--guard", choices=GUARDS, help="accesses beyond a block of memory that kill the process"
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--current", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        work(options)
        return 0
    if options.case:
        wanted = _environment(options)
        if any(os.environ.get(name) != wanted.get(name) for name in READ_ONCE):
            code = subprocess.run([*COMMAND, *sys.argv[1:]], env=wanted, check=False).returncode
            if code < 0:
                os.kill(os.getpid(), -code)  # die of the same signal
            return code
        return run_case(options)
    regions: Counter[str] = Counter()
    for finding in scan(options):
        regions[finding.region] += 1
        print(f"{finding.kind}: {finding.detail}; {finding.implementation}")
        print(f"    {finding.case}", flush=True)
    print(f"\n{sum(regions.values())} findings in {options.count - options.start} cases")
    for region, times in sorted(regions.items()):
        print(f"{times:7}  {region}")
    return 1 if regions else 0


if __name__ == "__main__":
    raise SystemExit(main())
