"""The report of the conformance kit: a table, JSON, and a program for each counterexample."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from ..request import dtype_name
from .subject import Case

Outcome = Literal["passed", "failed", "refused", "excluded", "silent"]
_SIGNS: dict[Outcome, str] = {
    "passed": "ok",
    "failed": "FAIL",
    "refused": "refused",
    "excluded": "excluded",
    "silent": "-",
}


class NonConformance(AssertionError):  # noqa: N818
    """A callable violates laws of correlation; the message is the report."""


@dataclass(frozen=True)
class Counterexample:
    """The smallest case found for which a law fails.

    Attributes:
        law: the name of the law.
        message: the actual and the expected result.
        case: the problem and the operands.
        spelling: Python code that imports the callable as ``fn``.
        errors: Python code for the error model.
    """

    law: str
    message: str
    case: Case
    spelling: str
    errors: str = "Componentwise()"

    @property
    def snippet(self) -> str:
        """A Python program that reproduces the failure."""
        errors = f", errors={self.errors}" if self.errors != "Componentwise()" else ""
        model = ", " + self.errors.partition("(")[0] if errors else ""
        return "\n".join(
            [
                "import torch",
                self.spelling,
                f"from torch_corr.testing import Case, recheck{model}",
                "",
                f"case = {self.case!r}",
                f"# {self.case.describe()}",
                f"recheck({self.law!r}, fn, case{errors})",
                f"# {self.message}",
            ]
        )


@dataclass(frozen=True)
class Verdict:
    """The result of one law in one dtype.

    Attributes:
        law: the name of the law.
        dtype: of the operands.
        outcome: ``passed``; ``failed``; ``refused``: no case was decided; ``excluded``: the
            caller left the law out; ``silent``: the law does not apply to the dtype or callable.
        cases: the number of decided cases.
        refusals: the number of cases that were not decided because the callable raised, or
            because another law already failed.
        seconds: the time of the tests.
        reason: the reason of the first refusal.
        counterexample: the smallest failing case, if the law failed.
    """

    law: str
    dtype: torch.dtype
    outcome: Outcome
    cases: int = 0
    refusals: int = 0
    seconds: float = 0.0
    reason: str = ""
    counterexample: Counterexample | None = None


@dataclass(frozen=True)
class Report:
    """All verdicts for one callable.

    Attributes:
        name: of the callable.
        device: of the operands.
        versions: of PyTorch, this library, Python, the machine and the GPU.
        verdicts: one for each law and dtype.
    """

    name: str
    device: str
    versions: dict[str, str]
    verdicts: tuple[Verdict, ...]

    @property
    def failures(self) -> tuple[Verdict, ...]:
        """The verdicts of the laws that failed."""
        return tuple(each for each in self.verdicts if each.outcome == "failed")

    @property
    def passed(self) -> bool:
        """Whether no law failed, and at least one case was decided."""
        return not self.failures and any(each.cases for each in self.verdicts)

    def failed_laws(self) -> tuple[str, ...]:
        """The names of the laws that failed in any dtype, in order."""
        return tuple(dict.fromkeys(each.law for each in self.failures))

    def raise_if_failed(self) -> None:
        """Raise :class:`NonConformance` with the report as its message, unless it passed."""
        if not self.passed:
            raise NonConformance(f"\n{self}")

    def __str__(self) -> str:
        """A table of laws and dtypes, followed by the counterexamples."""
        dtypes = list(dict.fromkeys(each.dtype for each in self.verdicts))
        laws = list(dict.fromkeys(each.law for each in self.verdicts))
        cells = {(each.law, each.dtype): _cell(each) for each in self.verdicts}
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        lines = [f"{self.name} on {self.device} ({versions})", ""]
        rows = [["law", *map(dtype_name, dtypes)]]
        rows += [[law, *(cells.get((law, dtype), "") for dtype in dtypes)] for law in laws]
        widths = [max(map(len, column)) for column in zip(*rows)]
        for row in rows:
            lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
        lines[3:3] = ["  ".join("-" * width for width in widths)]
        for failure in self.failures:
            assert failure.counterexample is not None
            lines += ["", f"{failure.law}, {dtype_name(failure.dtype)}:"]
            lines += [
                f"    {line}".rstrip() for line in failure.counterexample.snippet.splitlines()
            ]
        for dtype, reason in dict.fromkeys((each.dtype, each.reason) for each in self.verdicts):
            refused = [
                each.law
                for each in self.verdicts
                if each.refusals and (each.dtype, each.reason) == (dtype, reason)
            ]
            if refused:
                lines += ["", f"refused in {dtype_name(dtype)} ({', '.join(refused)}), the first:"]
                lines += [f"    {reason}"]
        decided = sum(each.cases for each in self.verdicts)
        lines += ["", f"{len(self.failures)} failures in {decided} cases"]
        if not decided:
            lines[-1] += ": nothing was tried, so this is not a pass"
        return "\n".join(lines)

    def to_json(self) -> str:
        """The report as JSON."""
        return json.dumps(
            {
                "name": self.name,
                "device": self.device,
                "versions": self.versions,
                "passed": self.passed,
                "verdicts": [_as_json(each) for each in self.verdicts],
            },
            indent=2,
        )


def _cell(verdict: Verdict) -> str:
    sign = _SIGNS[verdict.outcome]
    if verdict.outcome != "passed":
        return sign
    refused = f" ({verdict.refusals} refused)" if verdict.refusals else ""
    return f"{sign} {verdict.cases}{refused}"


def _as_json(verdict: Verdict) -> dict[str, Any]:
    found = verdict.counterexample
    entry = {name: value for name, value in vars(verdict).items() if name != "counterexample"}
    entry["dtype"] = dtype_name(verdict.dtype)
    entry["seconds"] = round(verdict.seconds, 3)
    if found is not None:
        case = asdict(found.case)
        case["problem"], case["dtype"] = str(found.case.problem), dtype_name(found.case.dtype)
        entry["counterexample"] = {
            "message": found.message,
            "case": case,
            "snippet": found.snippet,
        }
    return entry
