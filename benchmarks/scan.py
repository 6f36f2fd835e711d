"""Search for problems that PyTorch's convolution on the CPU computes wrongly, or crashes on.

    python -m benchmarks.scan --count 20000
    python -m benchmarks.scan --help

benchmarks/README.md describes the search.  Operands are small integers, so nearly every sum is
exact and a wrong term shows.  A difference from the definition counts if it exceeds the bound of
``torch_corr.testing``.  A case depends only on the seed and its number.
"""

from __future__ import annotations

import argparse
import atexit
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_corr import Direct, Plan, Problem, corr2d, plan
from torch_corr.request import SLOTS, Request
from torch_corr.testing import Componentwise, declared, litter, oracle, poisoned
from torch_corr.testing.bounds import rounded

from .scan_cases import DTYPES, MAPS, READS, Case, draw

COMMAND = (sys.executable, "-m", "benchmarks.scan")
ISAS = ("AVX512_CORE_AMX", "AVX512_CORE_BF16", "AVX512_CORE", "AVX2", "SSE41")
PATIENCE = 4.0
"""Seconds of processor time after which a case counts as hung."""

GUARDS = ("writes", "reads")
"""Kinds of accesses beyond a block of memory that may kill the process."""

NO_MAPPINGS = 77
"""Exit code of a process that reached Linux's limit of mappings; the same as in ``guard.c``."""


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


def find_algorithm(name: str) -> Any:
    """The argument for ``corr2d``: a name, or the object at ``module:name``."""
    module, colon, attribute = name.partition(":")
    return getattr(import_module(module), attribute) if colon else name


def _complete(case: Case, value: float) -> tuple[Tensor, Tensor, Tensor | None]:
    """Input, weight and output; an input or weight that the map does not read has equal values."""
    operands, p = case.operands, case.problem
    for name, shape in (("input", p.input_shape), ("weight", p.weight_shape)):
        if name not in operands:
            operands[name] = torch.full(shape, value, dtype=DTYPES[case.dtype])
    return operands["input"], operands["weight"], operands.get("output")


def compute(case: Case, algorithm: str) -> list[Tensor]:
    """The results of the map: one tensor, or two for ``gradients``."""
    p = case.problem
    padding = p.padding[0][0], p.padding[1][0]
    bias = torch.ones(p.out_channels, dtype=DTYPES[case.dtype]) if case.bias else None
    wanted = [case.map in (f"grad_{name}", "gradients") for name in ("input", "weight")]
    if algorithm == "pytorch":
        x, w, y = _complete(case, float("nan"))
        if case.map == "forward":
            return [torch.conv2d(x, w, bias, p.stride, padding, p.dilation, p.groups)]
        found = torch.ops.aten.convolution_backward(
            *(y, x, w, None, p.stride, padding, p.dilation, False, (0, 0), p.groups),
            (*wanted, False),
        )
        return [value for value, is_wanted in zip(found, wanted) if is_wanted]
    x, w, y = _complete(case, 1)
    leaves = [each.requires_grad_() for each, is_wanted in zip((x, w), wanted) if is_wanted]
    result = corr2d(
        *(x, w, bias, p.stride, padding, p.dilation, p.groups),
        algorithm=find_algorithm(algorithm),
    )
    return list(torch.autograd.grad(result, leaves, y)) if leaves else [result]


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


def _definition(problem: Problem, map: Any, operands: dict[Any, Tensor]) -> Tensor:
    """The exact result; by ``direct`` if possible, which is faster than the oracle."""
    first, second = (operands[slot].contiguous() for slot in SLOTS[map][:2])
    request = Request(problem, "forward", torch.device("cpu"), torch.float64)
    if first.is_complex() or Direct().refusals(request):
        slots: Any = operands
        return oracle(problem, **slots).value
    result: Tensor = getattr(Direct(), map)(problem, first, second)
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
    p = case.problem
    x, w, _ = _complete(case, 1)
    geometry = p.stride, p.padding, p.dilation, p.groups
    return plan(x, w, *geometry, algorithm=find_algorithm(algorithm))


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


def work(options: argparse.Namespace) -> int:
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
    return 0


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
            command = [*COMMAND, *options.words, *own]
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


@lru_cache
def _guard() -> str:
    """Compiles ``guard.c``; returns the path of the library."""
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
    command = [*COMMAND, *options.words, "--worker", "--case", str(case)]
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
        description="Search for problems that a convolution on the CPU computes wrongly.",
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
    words = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(words)
    options.words = words
    if options.worker:
        return run_case(options) if options.case else work(options)
    if options.case:
        command = [*COMMAND, *words, "--worker"]
        code = subprocess.run(command, env=_environment(options), check=False).returncode
        if code < 0:
            os.kill(os.getpid(), -code)  # die of the same signal
        return code
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
