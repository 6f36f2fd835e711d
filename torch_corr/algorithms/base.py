"""The interface of an algorithm: three maps of one trilinear form, their limits and their costs.

``T(x, w, y) = sum(y * corr(x, w))`` is linear in the input ``x``, the weight ``w`` and the output
``y``.  Each map computes one of them from the other two: the derivative of T by it.

    forward      (x, w) -> y    y[n,o,i,j] = sum_{c,u,v} x[n,c, i*s+u*d-p, j*s+v*d-p] * w[o,c,u,v]
    grad_input   (y, w) -> x    x[n,c,h,l] = sum of y[n,o,i,j] * w[o,c,u,v] over all o, i, j, u, v
                                with i*s+u*d-p = h and j*s+v*d-p = l
    grad_weight  (x, y) -> w    w[o,c,u,v] = sum_{n,i,j} y[n,o,i,j] * x[n,c, i*s+u*d-p, j*s+v*d-p]

Pixels outside the image are zero.  Strides, dilations and padding (``s``, ``d``, ``p``) may differ
between the two axes.  No map conjugates its operands; ``autograd`` does that when it
differentiates.
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
from ..request import MapName, Request, dtype_name
from ..value import Value

ErrorClass: TypeAlias = Literal["componentwise", "normwise"]

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
COMPLEX = (torch.complex64, torch.complex128)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)

FEW_CHANNEL_PAIRS = 16
"""Up to this many pairs of input and output channels in a group, a matrix unit is mostly idle: it
takes at least 16 channels."""

DEFAULT_WORKSPACE = 256 * 2**20
"""Bytes that an algorithm may use beyond input, weight and output."""


class Cost(NamedTuple):
    """The work of a map, in the quantities that each machine has a rate for.

    Multiplications and additions count in units of those that the named code does in the same
    time: work at half that rate counts twice.

    Attributes:
        matmul_flops: of a large matrix product.
        fft_flops: 5 L log2 L for each complex transform of L samples, half of it for a real
            one: the count that FFT benchmarks use, whatever the library really does.
        bytes: read and written by copies and elementwise operations.
        calls: of PyTorch operators or compiled kernels.
        vector_flops: of the compiled kernels of ``direct``, and of depthwise layers of oneDNN.
        conv_flops: of dense layers of oneDNN.
        cached_bytes: read and written while they are in the caches.
    """

    matmul_flops: float = 0.0
    fft_flops: float = 0.0
    bytes: float = 0.0
    calls: float = 0.0
    vector_flops: float = 0.0
    conv_flops: float = 0.0
    cached_bytes: float = 0.0


@dataclass(frozen=True)
class Algorithm(Value):
    """A way to compute the three maps: an immutable value whose fields are its options.

    A subclass has a name, implements the three maps and lists what it cannot do. Every map returns
    a new tensor with the dtype and device of its operands, and sums half-precision products in
    :func:`accumulation_dtype`.
    """

    name: ClassVar[str]
    """The name for users and messages, e.g. ``"unfold"``."""

    error_class: ClassVar[ErrorClass] = "componentwise"
    """``componentwise``: each output's error is at most c * eps * sum |x||w| over its own window.
    ``normwise``: relative to the largest such sum in the image."""

    is_reference: ClassVar[bool] = False
    """Whether it favours clarity over speed. The planner uses it only where no other algorithm
    works."""

    is_pytorch: ClassVar[bool] = False
    """Whether it runs PyTorch's own convolution. The planner prefers it to algorithms that are only
    slightly faster, since its calls cost less and compilers optimize its operators."""

    needs_check: ClassVar[bool] = False
    """Whether ``auto`` runs it only as :meth:`checked`."""

    has_cuda_cost_model: ClassVar[bool] = False
    """Whether :meth:`cost` predicts times on CUDA well enough to choose by them."""

    @property
    def spelling(self) -> str:
        """The key for wisdom and tables: the name, plus the variant if there are several."""
        return self.name

    @abstractmethod
    def refusals(self, request: Request) -> tuple[str, ...]:
        """The reasons why this algorithm cannot compute the map, one sentence each; empty if it
        can.

        The reasons may depend on the map.  A caller that names an algorithm needs all three maps,
        so a named algorithm must be able to compute them all.
        """

    @abstractmethod
    def forward(self, problem: Problem, input: Tensor, weight: Tensor) -> Tensor:
        """(x, w) -> y: the correlation itself, of ``problem.output_shape``."""

    def forward_with_bias(
        self, problem: Problem, input: Tensor, weight: Tensor, bias: Tensor
    ) -> Tensor:
        """``forward`` plus a bias of each output channel, of shape (O,).

        By default a second pass over the output adds it.  In half precision that rounds twice.
        """
        return self.forward(problem, input, weight).add_(bias[:, None, None])

    @abstractmethod
    def grad_input(self, problem: Problem, output: Tensor, weight: Tensor) -> Tensor:
        """(y, w) -> x: the adjoint of ``forward`` in its input, of ``problem.input_shape``."""

    @abstractmethod
    def grad_weight(self, problem: Problem, input: Tensor, output: Tensor) -> Tensor:
        """(x, y) -> w: the adjoint of ``forward`` in its weight, of ``problem.weight_shape``."""

    @abstractmethod
    def workspace(self, request: Request) -> int:
        """Peak bytes that the map uses beyond its operands and its result."""

    def variants(self, request: Request) -> tuple[Algorithm, ...]:
        """Other configurations of this algorithm, with different spellings, for the planner to
        time. Only called if there are no refusals."""
        return ()

    @property
    def verdict(self) -> str:
        """The description of its accuracy in a printed plan."""
        return self.error_class

    def limited(self, workspace_limit: int) -> Algorithm:
        """A copy with this limit on its workspace in bytes, if it has such an option."""
        option: dict[str, Any] = {"workspace_limit": workspace_limit}
        return replace(self, **option) if hasattr(self, "workspace_limit") else self

    def checked(self, device: torch.device, fallback: Algorithm) -> Algorithm:
        """A version whose results are checked, and recomputed where the check fails.

        Args:
            device: where it runs.
            fallback: the fastest algorithm of componentwise error, to recompute with. An algorithm
                may use a different one.
        """
        raise NotImplementedError(f"{self.name} does not need a check")

    def is_worth_planning(self, request: Request) -> bool:
        """Whether it may save more time than planning it takes."""
        return True

    def uses_matrix_products(self, request: Request) -> bool:
        """Whether it calls PyTorch's matrix products for this request, so that their settings
        apply."""
        return False

    def call_seconds(self, request: Request, cost: Cost) -> tuple[float, float]:
        """Two times in seconds: the overhead to add to the predicted time, and a lower bound set by
        the host."""
        return CALL_OVERHEAD.get(request.device.type, 0.0), 0.0

    def keeps_channels_last(self, request: Request) -> bool:
        """Whether it computes images in channels_last at full speed, without a conversion, and
        returns that layout."""
        return False

    def runs_as_conv2d(self, request: Request) -> bool:
        """Whether ``torch.conv2d`` and its derivatives compute exactly the same as the three
        maps."""
        return False

    def has_both_gradients(self, request: Request) -> bool:
        """Whether :meth:`gradients` computes both gradients in one call."""
        return False

    def gradients(
        self, problem: Problem, input: Tensor, weight: Tensor, output: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The gradients of input and weight in one call; only if :meth:`has_both_gradients`."""
        raise NotImplementedError(f"{self.name} computes one gradient at a time")

    def needs_sizes(self, request: Request) -> bool:
        """Whether the maps need concrete values of sizes that are still symbolic."""
        return False

    def rates_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype it computes in, whose rates turn :meth:`cost` into seconds: the operands' own,
        unless it uses a wider one."""
        return dtype

    def cost(self, request: Request) -> Cost:
        """The work of the map, from which the planner predicts a time. Only called if there are no
        refusals.

        By default: the definition's multiplications and additions, and one pass over the operands
        and the result.
        """
        problem, dtype = request.problem, request.dtype
        return Cost(definition_flops(problem, dtype), 0.0, operand_bytes(problem, dtype), 1)


class UniformMaps(Algorithm):
    """An algorithm whose maps share one implementation, :meth:`run_map`."""

    @abstractmethod
    def run_map(self, problem: Problem, map: MapName, first: Tensor, second: Tensor) -> Tensor:
        """Compute a map from its two operands, in the order of its request's slots."""

    def forward(self, problem: Problem, input: Tensor, weight: Tensor) -> Tensor:
        return self.run_map(problem, "forward", input, weight)

    def grad_input(self, problem: Problem, output: Tensor, weight: Tensor) -> Tensor:
        return self.run_map(problem, "grad_input", output, weight)

    def grad_weight(self, problem: Problem, input: Tensor, output: Tensor) -> Tensor:
        return self.run_map(problem, "grad_weight", input, output)


CALL_OVERHEAD = {"cpu": 33e-6, "cuda": 100e-6}
"""Seconds that a call through the Function of ``autograd`` takes on top of PyTorch's own.

On a CPU: a third of the extra time of each of MobileNetV2's 52 layers in a training step, 90 to 105
us on two Zen 4 cores (55 in a loop over one layer).  On CUDA, with ``triton``'s launches: the host
of an H200 took 130 to 170 us more per map in a small layer's forward and backward, rounded down
here.

So PyTorch keeps some maps that other algorithms would compute faster in isolation: over 1,215 maps
the time is 1.09 times the fastest's, with 8 us it is 1.065.  But a converted MobileNetV2 runs at
0.95 of the speed of ``nn.Conv2d``; with 20 us, at 0.92.
"""


def check_workspace_limit(limit: int) -> None:
    """Check that a limit is a number of bytes.

    Raises:
        TypeError: it is not an integer.
        ValueError: it is negative.
    """
    if as_int("workspace_limit", limit) < 0:
        raise ValueError(
            f"workspace_limit={limit} is negative; it counts bytes, and 0 allows none at all"
        )


def may_use_tf32(dtype: torch.dtype) -> bool:
    """Whether PyTorch's settings let CUDA convolutions round float32 operands to TF32."""
    # Equals torch.backends.cudnn.conv.fp32_precision, which takes 2 us; this runs on every call.
    precision = fp32_precision("cuda", "conv")
    return dtype == torch.float32 and precision == "tf32"


def matrix_speed(dtype: torch.dtype) -> float:
    """The H100's rated speed of matrix products in a dtype, relative to float32 without matrix
    units."""
    if dtype in (torch.float16, torch.bfloat16):
        return 15.0
    return 8.0 if may_use_tf32(dtype) else 1.0


def products_may_use_tf32(dtype: torch.dtype) -> bool:
    """Whether PyTorch's settings let CUDA matrix products, real or complex, use TF32. Convolutions
    have a separate setting: :func:`may_use_tf32`."""
    precision = fp32_precision("cuda", "matmul")
    return dtype in (torch.float32, torch.complex64) and precision == "tf32"


def is_channels_last(tensor: Tensor) -> bool:
    """Whether the channels, not the pixels, are adjacent in memory."""
    symbolic = tensor._has_symbolic_sizes_strides
    if symbolic and is_data_dependent((*tensor.shape, *tensor.stride())):
        # False where the layout depends on sizes that are not known yet.
        last = is_channels_last_or_false(tensor)
        return last and not is_contiguous_or_false(tensor)
    return not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


def definition_flops(problem: Problem, dtype: torch.dtype) -> float:
    """Real multiplications and additions of the definition; a complex multiply-add has four of
    each."""
    return (8.0 if dtype.is_complex else 2.0) * problem.multiplications


def operand_bytes(problem: Problem, dtype: torch.dtype) -> float:
    """Bytes of input, weight and output together."""
    shapes = problem.input_shape, problem.weight_shape, problem.output_shape
    return float(dtype.itemsize * sum(prod(shape) for shape in shapes))


def complex_from_real(
    real_map: Callable[[Problem, Tensor, Tensor], Tensor], problem: Problem, a: Tensor, b: Tensor
) -> Tensor:
    """Compute a map of complex operands by four real maps, for kernels without complex dtypes."""
    a_real, a_imag, b_real, b_imag = (
        part.contiguous() for operand in (a, b) for part in (operand.real, operand.imag)
    )
    real = real_map(problem, a_real, b_real) - real_map(problem, a_imag, b_imag)
    imag = real_map(problem, a_real, b_imag) + real_map(problem, a_imag, b_real)
    return torch.complex(real, imag)


def dtype_refusal(dtype: torch.dtype, able: tuple[torch.dtype, ...]) -> tuple[str, ...]:
    """A refusal if ``dtype`` is not one that the algorithm supports."""
    if dtype in able:
        return ()
    return (f"no {dtype_name(dtype)} here; it does {', '.join(map(dtype_name, able))}",)
