"""What an algorithm is: three maps of one trilinear form, and the truth about itself.

``T(x, w, y) = sum(y * corr(x, w))`` is linear in the input ``x``, the weight ``w`` and
the output ``y``.  Fill two slots and the third is a map:

    forward      (x, w) -> y    y[n,o,i,j] = sum_{c,u,v} x[n,c, i*s+u*d-p, j*s+v*d-p] * w[o,c,u,v]
    grad_input   (y, w) -> x    x[n,c,h,l] = sum of y[n,o,i,j] * w[o,c,u,v] over i*s+u*d-p = h, ...
    grad_weight  (x, y) -> w    w[o,c,u,v] = sum_{n,i,j} y[n,o,i,j] * x[n,c, i*s+u*d-p, ...]

No map conjugates: conjugation belongs to differentiation, hence to ``autograd``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from .._torch_compat import fp32_precision, is_channels_last_or_false, is_contiguous_or_false
from ..problem import Problem, as_int, is_data_dependent
from ..request import Request, dtype_name
from ..value import Value

ErrorClass: TypeAlias = Literal["componentwise", "normwise"]

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
COMPLEX = (torch.complex64, torch.complex128)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)

FEW = 16
"""Pairs of channels in a group up to which a matrix unit, which takes 16 channels at least, would
be mostly empty."""

DEFAULT_WORKSPACE = 256 * 2**20
"""Bytes an algorithm may take beyond input, weight and output."""


class Cost(NamedTuple):
    """What a map does, in the four quantities that a machine has measured rates for.

    Attributes:
        matmul_flops: multiplications and additions, in units of those that a large matrix
            product does in the same time: work at half that rate counts twice.
        fft_flops: 5 L log2 L for each complex transform of L samples, half of it for a real
            one; the count that FFT benchmarks use, whatever the library really does.
        bytes: read and written by copies and elementwise operations.
        calls: of PyTorch operators or compiled kernels.
    """

    matmul_flops: float = 0.0
    fft_flops: float = 0.0
    bytes: float = 0.0
    calls: float = 0.0


@dataclass(frozen=True)
class Algorithm(Value):
    """A way to compute the three maps; a value, whose options are its fields.

    A subclass names itself, implements the three maps and says what it cannot do.
    Every map returns a fresh tensor of its operands' dtype on their device, and
    sums half-precision products in :func:`accumulation_dtype`.
    """

    name: ClassVar[str]
    """How callers and messages call it, e.g. ``"unfold"``."""

    error_class: ClassVar[ErrorClass] = "componentwise"
    """``componentwise``: each output's error is at most c * eps * sum |x||w| over its own
    window.  ``normwise``: relative to the largest such sum in the image."""

    is_reference: ClassVar[bool] = False
    """Whether it is written to be read. The planner uses it only where nothing else is able."""

    is_pytorch: ClassVar[bool] = False
    """Whether it runs PyTorch's own convolution. The planner prefers it to one that is hardly
    faster, since its calls cost less and compilers optimize its operators."""

    needs_check: ClassVar[bool] = False
    """Whether ``auto`` runs it only as :meth:`checked`."""

    has_cuda_cost_model: ClassVar[bool] = False
    """Whether :meth:`cost` predicts times on CUDA well enough to choose by them."""

    @property
    def spelling(self) -> str:
        """How wisdom and tables call it: its name, and which variant where it is one of several."""
        return self.name

    @abstractmethod
    def refusals(self, request: Request) -> tuple[str, ...]:
        """Why this algorithm cannot compute the map, a sentence each; empty if it can.

        The reasons may depend on the map.  A caller that names an algorithm needs all three maps,
        so a named algorithm must be able to compute them all.
        """

    @abstractmethod
    def forward(self, problem: Problem, input: Tensor, weight: Tensor) -> Tensor:
        """(x, w) -> y: the correlation itself, of ``problem.output_shape``."""

    @abstractmethod
    def grad_input(self, problem: Problem, output: Tensor, weight: Tensor) -> Tensor:
        """(y, w) -> x: the adjoint of ``forward`` in its input, of ``problem.input_shape``."""

    @abstractmethod
    def grad_weight(self, problem: Problem, input: Tensor, output: Tensor) -> Tensor:
        """(x, y) -> w: the adjoint of ``forward`` in its weight, of ``problem.weight_shape``."""

    @abstractmethod
    def workspace(self, request: Request) -> int:
        """Bytes that the map takes there at its peak beyond its operands and its result."""

    def variants(self, request: Request) -> tuple[Algorithm, ...]:
        """Other ways to run the map that this algorithm has, each of another spelling, for the
        planner to time beside it; asked only where nothing refuses."""
        return ()

    @property
    def verdict(self) -> str:
        """What an explanation says of its results."""
        return self.error_class

    def limited(self, workspace_limit: int) -> Algorithm:
        """The same algorithm with a limit on its workspace in bytes, if it has such an option."""
        option: dict[str, Any] = {"workspace_limit": workspace_limit}
        return replace(self, **option) if hasattr(self, "workspace_limit") else self

    def checked(self, device: torch.device, fallback: Algorithm) -> Algorithm:
        """The same algorithm, with its results checked and rejected ones recomputed.

        Args:
            device: where it runs.
            fallback: the fastest algorithm of componentwise error, to recompute with. The algorithm
                may take another.
        """
        raise NotImplementedError(f"{self.name} does not need a check")

    def is_worth_planning(self, request: Request) -> bool:
        """Whether it can be faster than others by more than it takes to plan it."""
        return True

    def uses_matrix_products(self, request: Request) -> bool:
        """Whether it calls PyTorch's matrix products there, whose settings then apply."""
        return False

    def call_seconds(self, request: Request, cost: Cost) -> tuple[float, float]:
        """What calling it adds to its predicted time, and the least time that the host takes."""
        return OWN_CALL.get(request.device.type, 0.0), 0.0

    def keeps_channels_last(self, request: Request) -> bool:
        """Whether it is the one to take for images in channels_last, whose layout it returns."""
        return False

    def runs_as_conv2d(self, request: Request) -> bool:
        """Whether ``torch.conv2d`` and its own derivatives do exactly what the three maps do."""
        return False

    def has_both_gradients(self, request: Request) -> bool:
        """Whether :meth:`gradients` computes both gradients by one call."""
        return False

    def gradients(
        self, problem: Problem, input: Tensor, weight: Tensor, output: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The gradients of input and weight by one call; only where it has both."""
        raise NotImplementedError(f"{self.name} computes one gradient at a time")

    def needs_sizes(self, request: Request) -> bool:
        """Whether the maps depend on sizes that are still symbols."""
        return False

    def rates_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype whose rates price :meth:`cost`: the operands' own, unless a wider is used."""
        return dtype

    def cost(self, request: Request) -> Cost:
        """What the map does, for the planner to price; asked only where nothing refuses.

        Unless an algorithm knows better: the definition's multiplications and additions, and
        every operand and the result passing through memory once.
        """
        problem, dtype = request.problem, request.dtype
        return Cost(definition_flops(problem, dtype), 0.0, operand_bytes(problem, dtype), 1)


OWN_CALL = {"cpu": 33e-6, "cuda": 100e-6}
"""Seconds that a call through the Function of ``autograd`` takes on top of PyTorch's own.

On a CPU a third of what each of MobileNetV2's 52 layers took more in a training step through it, 90
to 105 us on two Zen 4 cores (55 in a loop over one layer).  On CUDA, with ``triton``'s launches,
rounded down from the 130 to 170 us a map that a small layer's forward and backward took more on the
host of an H200.

So PyTorch keeps some maps that others would do quicker if called alone: of 1,215 the time is 1.09
times the quickest's, with 8 us 1.065.  But MobileNetV2 converted has 0.95 of the speed of
``nn.Conv2d``; with 20, 0.92."""


def check_workspace_limit(limit: int) -> None:
    """That it is a number of bytes.

    Raises:
        TypeError: no integer.
        ValueError: negative.
    """
    if as_int("workspace_limit", limit) < 0:
        raise ValueError(
            f"workspace_limit={limit} is negative; it counts bytes, and 0 allows none at all"
        )


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype to sum products in: float32 for the halves, the dtype itself otherwise."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def may_use_tf32(dtype: torch.dtype) -> bool:
    """Whether CUDA's convolutions may round float32 operands to TF32: PyTorch's setting."""
    # As torch.backends.cudnn.conv.fp32_precision, which takes 2 us: every call asks.
    precision = fp32_precision("cuda", "conv")
    return dtype == torch.float32 and precision == "tf32"


def matrix_speed(dtype: torch.dtype) -> float:
    """Times the rate of float32, one by one, that an H100 states for matrix products in a dtype."""
    if dtype in (torch.float16, torch.bfloat16):
        return 15.0
    return 8.0 if may_use_tf32(dtype) else 1.0


def products_may_use_tf32(dtype: torch.dtype) -> bool:
    """The same of CUDA's matrix products, whose setting is another; complex ones too."""
    precision = fp32_precision("cuda", "matmul")
    return dtype in (torch.float32, torch.complex64) and precision == "tf32"


def is_channels_last(tensor: Tensor) -> bool:
    """Whether its channels lie next to each other, and not its pixels."""
    symbolic = tensor._has_symbolic_sizes_strides
    if symbolic and is_data_dependent((*tensor.shape, *tensor.stride())):
        # False where that depends on sizes that are not known yet.
        last = is_channels_last_or_false(tensor)
        return last and not is_contiguous_or_false(tensor)
    return not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


def definition_flops(problem: Problem, dtype: torch.dtype) -> float:
    """Real multiplications and additions in the definition; four of each make a complex one."""
    return (8.0 if dtype.is_complex else 2.0) * problem.multiplications


def operand_bytes(problem: Problem, dtype: torch.dtype) -> float:
    """Bytes of input, weight and output together."""
    shapes = problem.input_shape, problem.weight_shape, problem.output_shape
    return float(dtype.itemsize * sum(prod(shape) for shape in shapes))


def complex_from_real(
    real_map: Callable[[Problem, Tensor, Tensor], Tensor], problem: Problem, a: Tensor, b: Tensor
) -> Tensor:
    """A map of complex operands by four maps of real ones, for kernels that know no other."""
    a_real, a_imag, b_real, b_imag = (
        part.contiguous() for operand in (a, b) for part in (operand.real, operand.imag)
    )
    real = real_map(problem, a_real, b_real) - real_map(problem, a_imag, b_imag)
    imag = real_map(problem, a_real, b_imag) + real_map(problem, a_imag, b_real)
    return torch.complex(real, imag)


def dtype_refusal(dtype: torch.dtype, able: tuple[torch.dtype, ...]) -> tuple[str, ...]:
    """A sentence when ``dtype`` is not among those that an algorithm is able to do."""
    if dtype in able:
        return ()
    return (f"no {dtype_name(dtype)} here; it does {', '.join(map(dtype_name, able))}",)
