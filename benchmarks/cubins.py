"""Compile the Triton kernels without a GPU; tabulate registers, shared memory and instructions.

python -m benchmarks.cubins                 compile every configuration, print the tables
python -m benchmarks.cubins --write         write the tables to docs/gpu.md
python -m benchmarks.cubins --predictions   only predictions of times

Triton caches compiled kernels, so an interrupted run continues where it stopped.

A launch of ``torch_corr.algorithms.triton`` contains everything that the compiler needs, so it can
be compiled for a device that is absent.  ``cuobjdump`` reads registers, stack and shared memory,
and ``nvdisasm`` instructions; both are part of Triton's package.  Operands are on ``meta``: they
have sizes, strides and an aligned address, and no memory.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import torch

from torch_corr import FFT, MAPS, Problem, algorithms
from torch_corr.algorithms import Algorithm, MapName, dtype_name
from torch_corr.algorithms.base import FEW_CHANNEL_PAIRS, definition_flops, operand_bytes
from torch_corr.algorithms.triton.algorithm import Triton, make_launch_plan
from torch_corr.algorithms.triton.configs import CONFIGS, Band, Config, Dot, Product
from torch_corr.algorithms.triton.launch_plan import FUSION, Launch
from torch_corr.planning.machine import peak_rates
from torch_corr.request import SLOTS, Request

from .cases import CASES, CUDA_CASES, Case
from .results import Results

ARCHITECTURES = (80, 90)
DOCUMENT = Path(__file__).parent.parent / "docs" / "gpu.md"

DEPTHWISE, DENSE = "n8c96-x56-o96-k7-p3-g96", "n8c64-x56-o64-k3-p1"
BANDS = "n64c384-x32-o384-k31-p15-g384"
"""Configurations for few channels, for many and for bands are compiled for a ConvNeXt, a ResNet and
a RepLKNet layer.  Channels or columns are multiples of 16, because 16-byte loads need that."""

DTYPES = (torch.float32, torch.float16, torch.float64)
"""bfloat16 differs from float16 only in conversions."""


SHARED_KIB = {80: 164, 90: 228}
"""Shared memory of a multiprocessor, by architecture."""


def occupancy(architecture: int, registers: int, shared: int, warps: int) -> float:
    """The share of a multiprocessor's 64 warps that can be resident, in at most 32 programs."""
    # Registers are allocated to warps 256 at a time; the system takes 1 KiB of each program.
    by_registers = 2**16 // (-(-registers * 32 // 256) * 256) // warps
    by_shared = SHARED_KIB[architecture] * 1024 // (shared + 1024)
    return min(by_registers, by_shared, 32, 64 // warps) * warps / 64


@dataclass(frozen=True)
class Compiled:
    """A compiled launch.

    Attributes:
        stack: bytes of local memory, including spilled registers.
        shared: bytes of shared memory.
        instructions: the number of each instruction, by name and modifiers.
    """

    launch: Launch
    architecture: int
    registers: int
    stack: int
    shared: int
    instructions: Counter[str]

    @property
    def occupancy(self) -> float:
        warps = self.launch.config.warps
        return occupancy(self.architecture, self.registers, self.shared, warps)

    def count(self, *beginnings: str) -> int:
        """Instructions whose name has one of these beginnings."""
        return sum(n for name, n in self.instructions.items() if name.startswith(beginnings))

    @property
    def spills(self) -> int:
        return self.count("STL", "LDL")

    @property
    def wide_loads(self) -> int:
        """16-byte loads from global memory, to registers or to shared memory."""
        return sum(
            n
            for name, n in self.instructions.items()
            if name.startswith(("LDG.", "LDGSTS.")) and ".128" in name
        )

    @property
    def matrix_units(self) -> int:
        return self.count("HMMA", "HGMMA", "DMMA")


def launches_of(
    problem: Problem,
    map: MapName,
    dtype: torch.dtype,
    config: Config,
    channels_last: bool = False,
    recompute_flag: torch.Tensor | None = None,
) -> tuple[Launch, ...]:
    """The launches of a map for operands on ``meta``."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    first, second = (
        torch.empty(getattr(problem, f"{slot}_shape"), dtype=dtype, device="meta").contiguous(
            memory_format=layout
        )
        for slot in SLOTS[map][:2]
    )
    return make_launch_plan(map, problem, first, second, config, recompute_flag).launches


def flagged_launches_of(
    problem: Problem, map: MapName, dtype: torch.dtype, config: Config
) -> tuple[Launch, ...]:
    """The launches of a map that return at once unless a check has failed."""
    flag = torch.empty(1, dtype=torch.int32, device="meta")
    return launches_of(problem, map, dtype, config, recompute_flag=flag)


def main_launch(problem: Problem, map: MapName, dtype: torch.dtype, config: Config) -> Launch:
    """The launch of the kernel that multiplies."""
    others = ("build_bands", "sum_bands")
    launches = launches_of(problem, map, dtype, config)
    return next(each for each in launches if each.kernel not in others)


def compile_launch(launch: Launch, architecture: int) -> Compiled:
    """Compile a launch and inspect the machine code."""
    made = _compiled_by_triton(launch, architecture)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        usage = _read_by("cuobjdump", "-res-usage", file.name)
        listing = _read_by("nvdisasm", "-c", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    names = re.findall(r"/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9_.]*)", listing)
    return Compiled(
        launch, architecture, int(found[1]), int(found[2]), made.metadata.shared, Counter(names)
    )


def _compiled_by_triton(launch: Launch, architecture: int) -> Any:
    """Compile with the specialisation that Triton would use on such a device."""
    triton: Any = import_module("triton")
    jit: Any = import_module("triton.runtime.jit")
    compiler: Any = import_module("triton.compiler.compiler")
    target = import_module("triton.backends.compiler").GPUTarget("cuda", architecture, 32)
    kernel = getattr(import_module("torch_corr.algorithms.triton.kernels"), launch.kernel)
    backend = compiler.make_backend(target)
    bind = jit.create_function_from_signature(kernel.signature, kernel.params, backend)
    keywords = {**launch.constants, **launch.options, **FUSION}
    bound, specialization, options = bind(*launch.arguments, **keywords)
    options, signature, constants, attributes = kernel._pack_args(
        backend, keywords, bound, specialization, options
    )
    source = compiler.ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=target, options=options.__dict__)


def _read_by(tool: str, *arguments: str) -> str:
    folder = Path(str(import_module("triton").__file__)).parent / "backends" / "nvidia" / "bin"
    done = subprocess.run(
        [str(folder / tool), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout


def problem_of(config: Config) -> Problem:
    """The problem that a configuration is compiled for."""
    cases: dict[type, str] = {Dot: DENSE, Band: BANDS}
    return Problem.parse(cases.get(type(config), DEPTHWISE))


def table(tf32: bool) -> str:
    """A row for each launch: registers, shared memory, occupancy, instructions, per device."""
    rows = [
        "| map | dtype | configuration | registers | shared, KiB | occupancy | 16-byte loads | "
        "matrix units |",
        "|---|---|---|---|---|---|---|---|",
    ]
    spilled: list[str] = []
    for map, dtype, config, launch in tabled(tf32):
        both = [compile_launch(launch, architecture) for architecture in ARCHITECTURES]
        spilled += [
            f"{map} {dtype_name(dtype)} {config.name} on sm_{made.architecture}"
            for made in both
            if made.stack or made.spills
        ]
        name = "tf32" if tf32 else dtype_name(dtype)
        cells = (
            [made.registers for made in both],
            [f"{made.shared / 1024:.0f}" for made in both],
            [f"{made.occupancy:.0%}" for made in both],
            [made.wide_loads for made in both],
            [made.matrix_units for made in both],
        )
        shown = " | ".join(" / ".join(str(value) for value in cell) for cell in cells)
        rows.append(f"| {map} | {name} | {config.name} | {shown} |")
        print(rows[-1], file=sys.stderr, flush=True)
    if spilled:
        raise RuntimeError(f"registers are spilled: {'; '.join(spilled)}")
    return "\n".join([*rows, "", f"<!-- made of {digest(tf32)} -->"])


def tabled(tf32: bool) -> Iterator[tuple[MapName, torch.dtype, Config, Launch]]:
    """The rows of a table: each configuration with each map and dtype that it can run.

    The table of TF32 has only those that TF32 changes.
    """
    torch.backends.cudnn.allow_tf32 = tf32
    for dtype, map, config in product(DTYPES, MAPS, CONFIGS):
        if tf32 and (dtype != torch.float32 or not isinstance(config, Product)):
            continue
        problem = problem_of(config)
        if config in Triton().configs(problem, map, dtype):
            yield map, dtype, config, main_launch(problem, map, dtype, config)


def digest(tf32: bool) -> str:
    """A digest of the kernels without docstrings and comments, the launches and Triton's version.

    A test compares it with the digest in the docs, to detect an outdated table without compiling.
    """
    kernels = ast.parse(
        Path(algorithms.__file__).parent.joinpath("triton", "kernels.py").read_text()
    )
    for node in ast.walk(kernels):
        body = getattr(node, "body", None)
        if isinstance(body, list) and isinstance(node, (ast.Module, ast.FunctionDef)):
            node.body = body[ast.get_docstring(node) is not None :]
    parts = [import_module("triton").__version__, ast.unparse(kernels)]
    for map, dtype, config, launch in tabled(tf32):
        numbers = [
            each.dtype if isinstance(each, torch.Tensor) else each for each in launch.arguments
        ]
        parts.append(f"{map} {dtype} {config} {numbers} {launch.constants} {launch.options}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


PEAK_BYTES = 4.8e12
PEAK_FLOPS = {torch.float16: 989e12, torch.float32: 66.9e12, torch.float64: 66.9e12}
"""The vendor's dense peaks of an H200, with TF32 off."""

H200 = DOCUMENT.parent.parent / "benchmarks" / "results" / "nvidia-h200"
"""Results of the benchmark suite to compare predictions with."""

TARGETS: tuple[tuple[str, str, Algorithm, tuple[MapName, ...]], ...] = (
    ("replknet dw 31x31 batch", "10 times PyTorch", Triton(), MAPS),
    ("replknet dw 31x31 batch float16", "10 times PyTorch", Triton(), MAPS),
    ("convnext dw 7x7 batch float16", "1.5 times PyTorch", Triton(), MAPS),
    ("photo 3x3", "3 times PyTorch, 70% of copying", Triton(), ("forward",)),
    ("photo 5x5", "3 times PyTorch, 70% of copying", Triton(), ("forward",)),
    ("dense 3x3 float64", "1.5 times PyTorch", Triton(), MAPS),
    ("square 128 k16", "4 times PyTorch", FFT(), MAPS),
    ("square 256 k16", "4 times PyTorch", FFT(), MAPS),
    ("square 256 k32", "3000 µs", FFT(), MAPS),
)
"""Cases with an aim for the speed on an H200, and the algorithm that should reach it."""


def predictions() -> str:
    """Predicted and measured times of the targets on an H200, with TF32 off.

    The prediction is the planner's: an algorithm's cost at the stated peaks of the device.
    """
    rows = [
        "| case | map | aim | MB | GFLOP | floor of sums, µs | by | predicted, µs | measured, µs | "
        "PyTorch, µs | times as fast |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    cases = {case.name: case for case in (*CASES, *CUDA_CASES)}
    with torch.backends.cudnn.flags(allow_tf32=False):
        for name, aim, algorithm, maps in TARGETS:
            rows += [
                f"| {name} | {map} | {aim} | {_predicted(cases[name], map, algorithm)} | "
                f"{_measured(name, map, algorithm.name)} |"
                for map in maps
            ]
    return "\n".join(rows)


def _predicted(case: Case, map: MapName, algorithm: Algorithm) -> str:
    """Bytes, operations, the least time of a sum over taps, the algorithm and its time."""
    problem, dtype = case.problem, case.torch_dtype
    moved, flops = operand_bytes(problem, dtype), definition_flops(problem, dtype)
    by, rate = algorithm.name, PEAK_FLOPS[dtype]
    if isinstance(algorithm, Triton):
        config = algorithm._config(map, problem, dtype)
        by = f"{by} {config.name}"
        few = problem.group_in * problem.group_out <= FEW_CHANNEL_PAIRS
        if few and not isinstance(config, Band):
            rate = PEAK_FLOPS[torch.float32]  # without matrix units
    floor = max(moved / PEAK_BYTES, flops / rate)
    cost = algorithm.cost(Request(problem, map, torch.device("cuda"), dtype))
    rates = peak_rates(PEAK_FLOPS[dtype], PEAK_BYTES, 2 * max(dtype.itemsize, 4))
    return (
        f"{moved / 1e6:.1f} | {flops / 1e9:.2f} | {1e6 * floor:.0f} | {by} | "
        f"{1e6 * rates.seconds(cost):.0f}"
    )


def _measured(case: str, map: MapName, algorithm: str) -> str:
    """The measured times of an algorithm and of PyTorch, and their ratio."""
    rows = {
        row.contender: row.seconds
        for row in _h200().rows
        if (row.case, row.work) == (case, map) and row.timed
    }
    ours, theirs = rows.get(algorithm), rows.get("torch")
    shown = [f"{1e6 * each:.4g}" if each else "none" for each in (ours, theirs)]
    return " | ".join([*shown, f"{theirs / ours:.3g}" if ours and theirs else "none"])


@lru_cache(maxsize=1)
def _h200() -> Results:
    return Results.load(H200)


def put(text: str, name: str, block: str) -> str:
    """``text`` with a new block between the comments ``<!-- name -->`` and ``<!-- /name -->``."""
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"{DOCUMENT} has no place for {name!r}: {begin.strip()} ... {end}")
    return before + begin + block + "\n" + end + after


def main(words: list[str] | None = None) -> int:
    """Compile, print, and write with ``--write``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cubins", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write to docs/gpu.md")
    parser.add_argument("--predictions", action="store_true", help="compile nothing")
    options = parser.parse_args(words)
    blocks: dict[str, Callable[[], str]] = {"predictions": predictions}
    if not options.predictions:
        blocks["resources"] = partial(table, tf32=False)
        blocks["resources of tf32"] = partial(table, tf32=True)
    for name, made in blocks.items():
        block = made()
        print(block + "\n")
        if options.write:
            DOCUMENT.write_text(put(DOCUMENT.read_text(), name, block))
    return 0


if __name__ == "__main__":
    sys.exit(main())
