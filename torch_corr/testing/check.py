"""``check_corr2d``: test a callable against every law and report the results.

Hypothesis draws and shrinks the cases.  The report contains the smallest :class:`Case` that failed,
which can be run again without Hypothesis.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import hypothesis
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import HypothesisException, Unsatisfiable
from torch import Tensor

from .._version import __version__
from ..problem import Problem
from .bounds import TF32_READING, Componentwise, ErrorModel
from .laws import LAWS, Law, find_law
from .normwise import Either, Fourier, Winograd
from .report import Counterexample, Outcome, Report, Verdict
from .strategies import problems as any_problem
from .subject import Case, Refusal, Silence, Subject, Violation, home

ERROR_MODELS: dict[str, ErrorModel] = {
    "componentwise": Componentwise(),
    "tf32": Componentwise(operands=TF32_READING),
    "normwise": Fourier(),
    "winograd": Winograd(),
    "any": Either((Componentwise(), Fourier(), Winograd())),
}
SHRINKING_SECONDS = 5.0
_EXAMPLES_PER_ROUND = 5

Able = Callable[[Problem, torch.device, torch.dtype], bool]
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Trial:
    """The options of a test of a law.

    Attributes:
        problems: the strategy that draws problems.
        device: the device of the operands.
        examples: the number of cases for a law with a share of 1.
        seed: of the random cases.
        able: whether the callable supports a problem, device and dtype; other cases are skipped.
        trace: a file to which each case is written before it runs, in case the process dies.
    """

    problems: st.SearchStrategy[Problem]
    device: str = "cpu"
    examples: int = 100
    seed: int = 0
    able: Able | None = None
    trace: Path | None = None


def check_corr2d(
    fn: Callable[..., Tensor],
    *,
    device: torch.device | str = "cpu",
    dtypes: torch.dtype | Sequence[torch.dtype] = (torch.float32,),
    laws: Collection[str] | None = None,
    without: Collection[str] = (),
    claims: Collection[str] = (),
    errors: str | ErrorModel = "componentwise",
    problems: st.SearchStrategy[Problem] | None = None,
    able: Able | None = None,
    examples: int = 100,
    budget: float | None = None,
    seed: int = 0,
    name: str = "",
    progress: Progress | None = None,
    trace: Path | None = None,
) -> Report:
    """Test whether a callable is a 2-D cross-correlation.

    The laws cover values, gradients up to second order, and the use of memory, threads and errors.

    Args:
        fn: a callable with the arguments of ``torch.nn.functional.conv2d``.  It is called with
            input and weight by position and the other arguments by keyword; arguments with
            their default value are omitted.
        device: the device of the operands.
        dtypes: of the operands, one or several.
        laws: names of the laws to test; None for all that need no claim.
        without: names of laws to leave out; the report lists them as excluded.
        claims: names of additional laws to test, which are optional for a callable:
            ``forward_mode``, ``batch_invariance``, ``spellings``.
        errors: the bound of the rounding errors: ``"componentwise"`` (sums of products),
            ``"tf32"`` (the same, with operands of 11 bits), ``"normwise"`` (Fourier
            transforms), ``"winograd"`` (tiles of 4), ``"any"`` (the largest of these except
            TF32), or an :class:`ErrorModel` such as ``Winograd(tile=2)``.
        problems: a strategy for problems, e.g. ``problems(max_groups=1)``; None for all
            that ``F.conv2d`` accepts.
        able: ``able(problem, device, dtype)`` says whether the callable supports a problem.
        examples: the number of cases for each law and dtype; expensive laws get fewer.
        budget: time limit in seconds; None for no limit.  One case of each law always runs.
        seed: of the random cases.
        name: of the callable, for the report.
        progress: called before each law with the number of laws done, their total, and a name.
        trace: a file to which each case is written before it runs.  If the callable kills the
            process, the file contains the case that did it.

    Returns:
        A :class:`Report`; use ``print``, ``raise_if_failed()`` or ``to_json()``.

    Raises:
        TypeError: ``fn`` is not callable.
        ValueError: a law, error model or device is unknown, or there is no example or no dtype.

    Example:
        >>> from torch.nn.functional import conv2d
        >>> report = check_corr2d(conv2d, laws=["values"], examples=5)
        >>> report.passed
        True
    """
    if not callable(fn):
        raise TypeError(f"fn must be callable, got {type(fn).__name__}")
    dtypes = (dtypes,) if isinstance(dtypes, torch.dtype) else tuple(dtypes)
    if not dtypes or examples < 1:
        raise ValueError(
            f"nothing to try: {len(dtypes)} dtypes, {examples} examples; both must be at least 1"
        )
    require_usable(device)
    subject = Subject(fn, error_model(errors))
    trial = Trial(
        problems=callers_problems() if problems is None else problems,
        device=str(device),
        examples=examples,
        seed=seed,
        able=able,
        trace=trace,
    )
    work = list(_work(dtypes, laws, without, claims))
    stop = None if budget is None else monotonic() + budget
    verdicts = []
    for done, (law, dtype, excluded) in enumerate(work):
        if progress:
            progress(done, len(work), f"{law.name} {str(dtype).removeprefix('torch.')}")
        if excluded:
            verdicts.append(Verdict(law.name, dtype, "excluded"))
            continue
        seconds = None if stop is None else max(0.0, stop - monotonic()) / (len(work) - done)
        verdicts.append(try_law(law, subject, dtype, trial, seconds))
    if progress:
        progress(len(work), len(work), "")
    return Report(name or _name(fn), str(device), _versions(device), tuple(verdicts))


def callers_problems() -> st.SearchStrategy[Problem]:
    """Problems that ``F.conv2d`` accepts, in every regime.

    Sizes are not zero, since the law ``zero_sizes`` tests these, and both sides of an axis have
    the same padding.
    """
    return any_problem(**callers_limits())


def callers_limits() -> dict[str, Any]:
    """The arguments of :func:`problems` for :func:`callers_problems`."""
    return {
        "max_batch": 3,
        "max_channels": 3,
        "max_groups": 3,
        "max_size": 12,
        "max_kernel": 17,
        "max_stride": 16,
        "max_padding": 48,
        "max_dilation": 16,
        "max_one": 140,
        "allow_empty": False,
        "asymmetric_padding": False,
    }


def recheck(
    law: str,
    fn: Callable[..., Tensor],
    case: Case,
    *,
    errors: str | ErrorModel = "componentwise",
) -> None:
    """Test one law on one case, for example the counterexample of a report.

    Args:
        law: the name of the law.
        fn: the callable, as for :func:`check_corr2d`.
        case: the problem and the operands.
        errors: as for :func:`check_corr2d`.

    Raises:
        Violation: the law fails.
        Refusal: the callable raises, and the law permits that.
        ValueError: the law or the error model is unknown.

    Example:
        >>> from torch.nn.functional import conv2d
        >>> recheck("values", conv2d, Case("n1c1-x3x3-o1-k2x2", "float32"))
    """
    find_law(law).check(Subject(fn, error_model(errors)), case)


def error_model(errors: str | ErrorModel) -> ErrorModel:
    """The error model of a name.  Raises ValueError if the name is unknown."""
    if not isinstance(errors, str):
        return errors
    if errors not in ERROR_MODELS:
        raise ValueError(
            f"unknown error model {errors!r}; use one of {', '.join(ERROR_MODELS)}, or an "
            f"ErrorModel such as Normwise(constant)"
        )
    return ERROR_MODELS[errors]


def require_usable(device: torch.device | str) -> None:
    """Raise ValueError unless tensors can be copied to the device and back."""
    try:
        torch.zeros(1, device=device).cpu()
    except Exception as error:  # backends raise different types
        raise ValueError(
            f"device {str(device)!r} cannot compute here: {str(error).splitlines()[0]}"
        ) from error


@dataclass
class _Found:
    """The results of a law so far."""

    cases: int = 0
    refusals: int = 0
    reason: str = ""
    smallest: tuple[Case, Violation] | None = None
    done: set[Case] = field(default_factory=set)

    @property
    def anything(self) -> bool:
        return bool(self.cases or self.refusals or self.smallest)


def try_law(
    law: Law, subject: Subject, dtype: torch.dtype, trial: Trial, seconds: float | None = None
) -> Verdict:
    """Draw cases for a law until one fails, then shrink it.

    A callable that fails only sometimes (a race) counts as failing.
    """
    if not law.applies_to(dtype):
        return Verdict(law.name, dtype, "silent")
    began = monotonic()
    found = _Found()
    stop = None if seconds is None else began + seconds
    shrinking = SHRINKING_SECONDS if seconds is None else min(SHRINKING_SECONDS, seconds)

    def attempt(data: st.DataObject) -> None:
        nonlocal stop
        case = data.draw(law.cases(trial.problems, dtype, trial.device))
        if stop is not None and monotonic() > stop and found.anything:
            return
        if case in found.done:
            return
        if trial.able and not trial.able(case.problem, torch.device(case.device), dtype):
            return
        if trial.trace:
            trial.trace.write_text(_counterexample(law, subject, case).snippet)
        try:
            law.check(subject, case)
        except Refusal as refusal:
            found.refusals += 1
            found.done.add(case)
            found.reason = found.reason or str(refusal)
        except Violation as violation:
            if found.smallest is None:
                stop = monotonic() + shrinking
            if found.smallest is None or case.size < found.smallest[0].size:
                found.smallest = case, violation
            raise
        else:
            found.cases += 1
            found.done.add(case)

    try:
        for number, examples in enumerate(rounds(max(1, round(trial.examples * law.share)))):
            if stop is not None and monotonic() > stop and number:
                break
            draw(attempt, examples, (trial.seed, number))()
    except Silence as silence:
        return Verdict(law.name, dtype, "silent", reason=str(silence))
    except (Violation, HypothesisException) as error:
        if found.smallest is None and not isinstance(error, Unsatisfiable):
            raise
    return _verdict(law, subject, dtype, found, monotonic() - began)


def rounds(examples: int) -> Iterator[int]:
    """Split the examples into rounds of 5.

    Hypothesis varies earlier examples, so the examples of a long round resemble each other.  With
    rounds of 25, between 1 and 16 of 200 problems had more than 128 channels; with rounds of 5,
    between 5 and 13 (8 seeds).  Each round starts with the simplest case, which counts only in the
    first round, so the other rounds have one example more.
    """
    for start in range(0, examples, _EXAMPLES_PER_ROUND):
        yield min(_EXAMPLES_PER_ROUND, examples - start) + (start > 0)


def draw(
    attempt: Callable[[st.DataObject], None], examples: int, seed: tuple[int, int]
) -> Callable[[], None]:
    """A function that calls ``attempt`` for each example and shrinks a failing one."""

    @hypothesis.seed(str(seed))
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        report_multiple_bugs=False,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def run(data: st.DataObject) -> None:
        attempt(data)

    return run


def _verdict(
    law: Law, subject: Subject, dtype: torch.dtype, found: _Found, seconds: float
) -> Verdict:
    if found.smallest is not None:
        case, violation = found.smallest
        example = _counterexample(law, subject, case, str(violation))
        counts = found.cases + 1, found.refusals
        return Verdict(law.name, dtype, "failed", *counts, seconds, found.reason, example)
    outcome: Outcome = "passed" if found.cases else "refused"
    if not found.cases and not found.refusals:
        found.reason = "no case was drawn that the callable supports"
    return Verdict(law.name, dtype, outcome, found.cases, found.refusals, seconds, found.reason)


def _counterexample(law: Law, subject: Subject, case: Case, message: str = "") -> Counterexample:
    model = subject.errors
    code = repr(model)
    if is_dataclass(model):
        # Without default arguments.
        values = ((each, getattr(model, each.name)) for each in fields(model))
        given = [f"{each.name}={value!r}" for each, value in values if value != each.default]
        code = f"{type(model).__name__}({', '.join(given)})"
    return Counterexample(law.name, message, case, subject.spelling, code)


def select_laws(
    laws: Collection[str] | None = None, claims: Collection[str] = ()
) -> tuple[Law, ...]:
    """The laws with the given names, or all that need no claim; and the claimed ones.

    Raises:
        ValueError: a name is unknown.
    """
    for each in (*(laws or ()), *claims):
        find_law(each)
    return tuple(
        law
        for law in LAWS
        if law.name in claims or (law.name in laws if laws is not None else not law.claim)
    )


def _work(
    dtypes: Sequence[torch.dtype],
    laws: Collection[str] | None,
    without: Collection[str],
    claims: Collection[str],
) -> Iterator[tuple[Law, torch.dtype, bool]]:
    for each in without:
        find_law(each)
    for dtype in dtypes:
        for law in select_laws(laws, claims):
            yield law, dtype, law.name in without


def _name(fn: Callable[..., Tensor]) -> str:
    return ".".join(filter(None, home(fn)))


def _versions(device: torch.device | str) -> dict[str, str]:
    versions = {
        "torch": torch.__version__,
        "torch_corr": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    if torch.device(device).type == "cuda":
        versions["gpu"] = torch.cuda.get_device_name(torch.device(device))
    return versions
