"""The callable under test, a case to test it on, and comparisons of results."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .._torch_compat import OpOverload, OpOverloadPacket
from ..problem import Problem
from ..request import dtype_name
from .bounds import Componentwise, ErrorModel, Slots
from .data import Operands, make_operands
from .oracle import oracle

Results: TypeAlias = dict[str, Tensor]
"""The results of a call by name: output, grad_input, grad_weight."""


class Violation(AssertionError):  # noqa: N818
    """A law does not hold; the message has the actual and the expected result."""


class Refusal(Exception):  # noqa: N818
    """The callable raises on a valid problem, or another law already fails on the case."""


class Silence(Exception):  # noqa: N818
    """A law does not apply to this callable."""


@dataclass(frozen=True)
class Case:
    """A problem and its operands, as a value.  Its ``repr`` is Python code that makes it.

    Attributes:
        problem: a :class:`Problem` or its string.
        dtype: of the operands, or its name.
        device: of the operands.
        data: the kind of numbers, one of ``DATA``.
        layouts: the memory layouts of input, weight and output, from ``LAYOUTS``.
        seed: of the random numbers.
        conj: whether the operands are lazily conjugated views (complex dtypes).

    Example:
        >>> Case("n1c2-x4-o2-k3", "float32", seed=7)
        Case('n1c2-x4x4-o2-k3x3-s1x1-p0,0x0,0-d1x1-g1', 'float32', seed=7)
    """

    problem: Problem
    dtype: torch.dtype
    device: str = "cpu"
    data: str = "normal"
    layouts: tuple[str, str, str] = ("contiguous",) * 3
    seed: int = 0
    conj: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.problem, str):
            object.__setattr__(self, "problem", Problem.parse(self.problem))
        if isinstance(self.dtype, str):
            object.__setattr__(self, "dtype", getattr(torch, self.dtype))

    def __repr__(self) -> str:
        given = [f"{str(self.problem)!r}, {dtype_name(self.dtype)!r}"]
        for name in ("device", "data", "layouts", "seed", "conj"):
            if getattr(self, name) != getattr(Case, name):
                given.append(f"{name}={getattr(self, name)!r}")
        return f"Case({', '.join(given)})"

    def operands(self) -> Operands:
        """Input, weight and output: new tensors at every call, with the same values."""
        values = make_operands(
            self.problem, self.dtype, self.device, self.data, self.layouts, self.seed
        )
        return Operands(*(each.conj() for each in values)) if self.conj else values

    def bias(self) -> Tensor:
        """A bias (O,) in the operands' dtype, with different values."""
        bias = torch.arange(self.problem.out_channels, device=self.device) % 7 - 3
        return bias.to(self.dtype) + (1j if self.dtype.is_complex else 0)

    def describe(self) -> str:
        """The call with PyTorch's argument names, for a comment."""
        p = self.problem
        keywords = "".join(f", {name}={value}" for name, value in arguments(p).items())
        return f"fn(input {p.input_shape}, weight {p.weight_shape}{keywords})"

    def another(self, number: int = 1, **changes: Any) -> Case:
        """The case with another seed, and with the given changes."""
        return replace(self, seed=self.seed + number, **changes)

    @property
    def size(self) -> tuple[int, ...]:
        """A measure of complexity; of two counterexamples, the smaller one is better."""
        p, is_real = self.problem, self.data != "integers"
        elements = sum(map(prod, (p.input_shape, p.weight_shape, p.output_shape)))
        geometry = sum((*p.stride, *p.dilation, *p.padding[0], *p.padding[1], p.groups, *p.kernel))
        layouts = sum(each != "contiguous" for each in self.layouts)
        return elements + 4 * geometry + 8 * layouts + 4 * is_real, self.seed


@dataclass(frozen=True)
class Subject:
    """The callable under test, with its error model.

    Attributes:
        call: ``call(input, weight, bias=..., stride=..., padding=..., dilation=...,
            groups=...)``; arguments with their default value are omitted.
        errors: the bound of its rounding errors.
        spelling: Python code that imports ``call`` as ``fn``.
    """

    call: Callable[..., Tensor]
    errors: ErrorModel = field(default_factory=Componentwise)
    spelling: str = ""

    def __post_init__(self) -> None:
        if not self.spelling:
            object.__setattr__(self, "spelling", spelling(self.call))

    def forward(
        self,
        problem: Problem,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        what: str = "output",
    ) -> Tensor:
        """Call the callable and check the type, shape, dtype and device of its result.

        Args:
            problem: the geometry.
            input: (N, C, H, W).
            weight: (O, C/groups, kH, kW).
            bias: (O,) or None.
            what: the name of the result in messages.

        Raises:
            Refusal: the callable raises.
            Violation: the result is not a tensor of the right shape, dtype, device and layout.
        """
        keywords = arguments(problem)
        if bias is not None:
            keywords["bias"] = bias
        try:
            y = self.call(input, weight, **keywords)
        except Exception as error:  # the callable may raise any type
            raise Refusal(f"{type(error).__name__}: {_first_line(error)}") from error
        require_alike(what, y, problem.output_shape, input)
        return y

    def pull(
        self, y: Tensor, leaves: tuple[Tensor, ...], output: Tensor, create_graph: bool = False
    ) -> tuple[Tensor, ...]:
        """``torch.autograd.grad(y, leaves, output)``.  Raises :class:`Refusal` if that raises."""
        try:
            return torch.autograd.grad(y, leaves, output, create_graph=create_graph)
        except Exception as error:  # as above
            raise Refusal(f"gradient: {type(error).__name__}: {_first_line(error)}") from error

    def maps(
        self,
        problem: Problem,
        input: Tensor,
        weight: Tensor,
        output: Tensor,
        before: Callable[[], None] = lambda: None,
    ) -> Results:
        """The output and, if it is differentiable, the gradients for a given output gradient.

        Args:
            problem: the geometry.
            input: (N, C, H, W).
            weight: (O, C/groups, kH, kW).
            output: the gradient of the output.
            before: called before the forward pass and before the backward pass.
        """
        differentiable = input.dtype.is_floating_point or input.dtype.is_complex
        if differentiable:
            input, weight = (value.detach().requires_grad_() for value in (input, weight))
        before()
        y = self.forward(problem, input, weight)
        results = {"output": y}
        if y.requires_grad:
            before()
            gradients = self.pull(y, (input, weight), output)
            results |= dict(zip(("grad_input", "grad_weight"), gradients))
        return results

    def expect_maps(
        self, problem: Problem, input: Tensor, weight: Tensor, output: Tensor
    ) -> ExpectedMaps:
        """The correct results of :meth:`maps` for these operands."""
        return ExpectedMaps(self, problem, input, weight, output)

    def require(
        self,
        what: str,
        got: Tensor,
        problem: Problem,
        input: Tensor | None = None,
        weight: Tensor | None = None,
        output: Tensor | None = None,
        only: Tensor | None = None,
    ) -> None:
        """:func:`require_right` with the slots by name, in the subject's error model."""
        require_right(what, got, problem, (input, weight, output), self.errors, only)


class ExpectedMaps:
    """The exact results of the three maps; the oracle computes each when it is needed."""

    def __init__(
        self, subject: Subject, problem: Problem, input: Tensor, weight: Tensor, output: Tensor
    ) -> None:
        self._subject, self._problem = subject, problem
        self._slots: dict[str, Slots] = {
            "output": (input, weight, None),
            "grad_input": (None, weight.conj(), output),
            "grad_weight": (input.conj(), None, output),
        }
        self._known: dict[str, tuple[Tensor, Tensor]] = {}

    def require(self, name: str, got: Tensor, what: str = "") -> None:
        """Raise Violation unless ``got`` is the result ``name``; messages call it ``what``."""
        slots = self._slots[name]
        operand = next(value for value in slots if value is not None)
        if name not in self._known:
            reference = oracle(self._problem, *slots)
            bound = self._subject.errors.bound(self._problem, reference, slots, operand.dtype)
            self._known[name] = reference.value, bound
        value, bound = self._known[name]
        require_alike(what or name, got, value.shape, operand)
        require_close(what or name, got, value, bound)

    def require_all(self, results: Results) -> None:
        """Raise Violation unless all results are correct."""
        for name, result in results.items():
            self.require(name, result)


def arguments(problem: Problem) -> dict[str, Any]:
    """The keyword arguments of a call, without those that have their default value."""
    (top, bottom), (left, right) = problem.padding
    symmetric = top == bottom and left == right
    padding: Any = (top, left) if symmetric else problem.padding
    every: dict[str, tuple[Any, Any]] = {
        "stride": (problem.stride, (1, 1)),
        "padding": (padding, (0, 0)),
        "dilation": (problem.dilation, (1, 1)),
        "groups": (problem.groups, 1),
    }
    return {name: value for name, (value, default) in every.items() if value != default}


def require_right(
    what: str,
    got: Tensor,
    problem: Problem,
    slots: Slots,
    errors: ErrorModel | None = None,
    only: Tensor | None = None,
) -> None:
    """Raise Violation unless ``got`` is the slot that is None, within the error bound.

    Args:
        what: the name of ``got`` in the message.
        got: the result to check.
        problem: the geometry.
        slots: input, weight and output; the slot of the result is None.
        errors: the error model; None for :class:`Componentwise`.
        only: a mask of the elements to check; None for all.

    Example:
        >>> x, w = torch.ones(1, 1, 3, 3), torch.ones(1, 1, 2, 2)
        >>> y = torch.nn.functional.conv2d(x, w)
        >>> require_right("output", y, Problem.parse("n1c1-x3-o1-k2"), (x, w, None))
    """
    operand = next(value for value in slots if value is not None)
    reference = oracle(problem, *slots)
    require_alike(what, got, reference.value.shape, operand)
    bound = (errors or Componentwise()).bound(problem, reference, slots, operand.dtype)
    require_close(what, got, reference.value, bound, only)


def require_alike(what: str, got: Tensor, shape: tuple[int, ...], operand: Tensor) -> None:
    """Raise Violation unless ``got`` has this shape and the operand's dtype, device and layout."""
    if not isinstance(got, Tensor):
        raise Violation(f"{what} is a {type(got).__name__}, not a tensor")
    for name, value, right in (
        ("shape", tuple(got.shape), tuple(shape)),
        ("dtype", got.dtype, operand.dtype),
        ("device", got.device, operand.device),
        ("layout", got.layout, operand.layout),
    ):
        if value != right:
            raise Violation(f"{what} has {name} {value}, not {right}")


def require_close(
    what: str, got: Tensor, expected: Tensor, bound: Tensor, only: Tensor | None = None
) -> None:
    """Raise Violation unless |got - expected| <= bound; integers must be equal modulo 2**bits."""
    got, expected = (value.detach().cpu().resolve_conj().resolve_neg() for value in (got, expected))
    if got.dtype.is_floating_point or got.dtype.is_complex:
        error = (got.to(expected.dtype) - expected).abs()
        wrong = ~(error <= bound)
    else:
        expected = expected.to(got.dtype)
        error = wrong = got != expected
    if only is not None:
        wrong = wrong & only
    if not wrong.any():
        return
    ratio = torch.where(wrong, (error / bound).nan_to_num(float("inf")), -1.0)
    flat = int(ratio.argmax())
    where = [int(each) for each in torch.unravel_index(torch.tensor(flat), got.shape)]
    raise Violation(
        f"{what}{where} is {got.flatten()[flat].item()}, not {expected.flatten()[flat].item()}"
        f" within {float(bound.flatten()[flat]):.3g} ({int(wrong.sum())} of {wrong.numel()} wrong)"
    )


def spelling(call: Callable[..., Any]) -> str:
    """Python code that imports the callable as ``fn``, or a comment if that is not possible."""
    if isinstance(call, functools.partial):
        inner = spelling(call.func)
        values = ", ".join(f"{name}={value!r}" for name, value in call.keywords.items())
        simple = all(isinstance(each, (str, int, float)) for each in call.keywords.values())
        if not call.args and simple and not inner.startswith("#"):
            return f"import functools\n{inner}\nfn = functools.partial(fn, {values})"
    if isinstance(call, (OpOverload, OpOverloadPacket)):
        return f"fn = torch.ops.{call}  # first import the module that registers it"
    module, name = home(call)
    first, _, rest = name.partition(".")
    if not module:
        return f"# fn is the callable: {name}"
    if rest:
        return f"from {module} import {first}\nfn = {name}"
    return f"from {module} import {name} as fn"


def home(call: Callable[..., Any]) -> tuple[str, str]:
    """The module from which the callable can be imported, or "", and its name there."""
    defined = getattr(call, "_init_fn", call)  # the function of an operator of torch.library
    name, path = (getattr(defined, each, "") for each in ("__name__", "__qualname__"))
    for module in ("torch.nn.functional", "torch", getattr(defined, "__module__", None)):
        for candidate in (name, path):
            found: Any = sys.modules.get(module) if module and module != "__main__" else None
            for part in candidate.split("."):
                found = getattr(found, part, None)
            if found is not None and found == call:
                return str(module), candidate
    return "", name or repr(call)


def _first_line(error: Exception) -> str:
    try:
        return (str(error).strip().splitlines() or [""])[0]
    except Exception:  # the error may not be printable
        return "its message cannot be printed"
