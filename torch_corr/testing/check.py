"""Hold a callable against every law: draw cases, shrink failures, report.

Hypothesis draws and shrinks; what is kept of a failure is the smallest :class:`Case` that
broke the law, a value that needs no Hypothesis to be tried again.
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
from .report import Counterexample, Report, Verdict
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
_ROUND = 5

Able = Callable[[Problem, torch.device, torch.dtype], bool]
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Trial:
    """How to try a law: on which cases, how many, how long.

    Attributes:
        problems: strategy for problems.
        device: where operands lie.
        examples: how many cases a law with a share of 1 gets.
        seconds: after which no further case is begun; None for no limit.
        seed: of the cases.
        able: what the callable claims to be able to do; other cases are not tried.
        trace: a file that holds the law and case being tried, for when the process dies.
    """

    problems: st.SearchStrategy[Problem]
    device: str = "cpu"
    examples: int = 100
    seconds: float | None = None
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
    """Whether a callable is a 2-D cross-correlation: values, gradients and manners.

    Args:
        fn: callable with the arguments of ``torch.nn.functional.conv2d``; those that have
            their default are left out, the others but input and weight given by name.
        device: where to try it.
        dtypes: of the operands, one or several.
        laws: names of the laws to try; None for all that need no claim.
        without: names of laws to leave out, which the report says.
        claims: names of laws that bind only who claims them, to try besides:
            ``forward_mode``, ``batch_invariance``, ``spellings``.
        errors: what the callable promises about rounding: ``"componentwise"`` (sums of
            products), ``"tf32"`` (of operands cut to 11 digits), ``"normwise"`` (Fourier
            transforms), ``"winograd"`` (tiles of 4), ``"any"`` of these but TF32, or an
            :class:`ErrorModel` of your own numbers: ``Winograd(tile=2)``, ``Normwise(constant)``.
        problems: which problems it is for, e.g. ``problems(max_groups=1)``; None for all
            that ``F.conv2d`` takes.
        able: says of a problem, device and dtype whether the callable is for it.
        examples: cases for each law and dtype; some dear laws take a share of it.
        budget: seconds that all of it may take, roughly, since each law is tried on one case
            at least; None for no limit.
        seed: another one draws other cases.
        name: what the report calls it.
        progress: called before each law with the number done, their total, and a name.
        trace: a file to write each case to before it is tried: if the callable takes the
            process down, its last words.

    Returns:
        A :class:`Report`; ``print`` it, ``raise_if_failed()``, ``to_json()``.

    Raises:
        TypeError: ``fn`` cannot be called.
        ValueError: no such law, promise or device; no example, no dtype.
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
    """What ``F.conv2d`` takes: no sizes of zero (they have a law of their own), one padding
    for both sides of an axis, every regime, and in half of the ordinary problems one axis long
    enough for a tail."""
    return any_problem(**callers_limits())


def callers_limits() -> dict[str, Any]:
    """The limits of :func:`callers_problems`, by their names in :func:`problems`."""
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
    """Try a law on one case.

    Args:
        law: its name.
        fn: as for :func:`check_corr2d`; so is ``errors``.
        case: what to try it on.

    Raises:
        Violation: the law fails.
        Refusal: the callable raises, and the law does not mind.
    """
    find_law(law).check(Subject(fn, error_model(errors)), case)


def error_model(errors: str | ErrorModel) -> ErrorModel:
    """The promise of a name.  Raises ValueError for one that is none."""
    if not isinstance(errors, str):
        return errors
    if errors not in ERROR_MODELS:
        raise ValueError(
            f"no promise {errors!r} about rounding; use one of {', '.join(ERROR_MODELS)}, or an "
            f"ErrorModel such as Normwise(constant)"
        )
    return ERROR_MODELS[errors]


def require_usable(device: torch.device | str) -> None:
    """That numbers can be sent to the device and fetched back."""
    try:
        torch.zeros(1, device=device).cpu()
    except Exception as error:  # each backend has its own
        raise ValueError(
            f"device {str(device)!r} cannot compute here: {str(error).splitlines()[0]}"
        ) from error


@dataclass
class _Found:
    """What trying a law has come to so far."""

    cases: int = 0
    refusals: int = 0
    reason: str = ""
    worst: tuple[Case, Violation] | None = None
    settled: set[Case] = field(default_factory=set)

    @property
    def anything(self) -> bool:
        return bool(self.cases or self.refusals or self.worst)


def try_law(
    law: Law, subject: Subject, dtype: torch.dtype, trial: Trial, seconds: float | None = None
) -> Verdict:
    """Draw cases for a law until one fails, then shrink it.

    A callable that fails only now and then (a race) counts as failing.
    """
    if not law.speaks_of(dtype):
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
        if case in found.settled:
            return
        if trial.able and not trial.able(case.problem, torch.device(case.device), dtype):
            return
        if trial.trace:
            trial.trace.write_text(
                Counterexample(law.name, "", case, subject.spelling, _fake_impl(subject)).snippet
            )
        try:
            law.check(subject, case)
        except Refusal as refusal:
            found.refusals += 1
            found.settled.add(case)
            found.reason = found.reason or str(refusal)
        except Violation as violation:
            if found.worst is None:
                stop = monotonic() + shrinking
            if found.worst is None or case.size < found.worst[0].size:
                found.worst = case, violation
            raise
        else:
            found.cases += 1
            found.settled.add(case)

    try:
        for number, examples in enumerate(rounds(max(1, round(trial.examples * law.share)))):
            if stop is not None and monotonic() > stop and number:
                break
            draw(attempt, examples, (trial.seed, number))()
    except Silence as silence:
        return Verdict(law.name, dtype, "silent", reason=str(silence))
    except (Violation, HypothesisException) as error:
        if found.worst is None and not isinstance(error, Unsatisfiable):
            raise
    return _verdict(law, subject, dtype, found, monotonic() - began)


def rounds(examples: int) -> Iterator[int]:
    """So many examples in short rounds.

    Hypothesis varies what it drew before, so a long round lingers in one region: of 200
    problems in rounds of 25 between 1 and 16 had more than 128 channels, in rounds of 5 between
    5 and 13 (8 seeds).  Each round begins with the simplest case, which is tried in the first
    alone: hence one more in the others.
    """
    for start in range(0, examples, _ROUND):
        yield min(_ROUND, examples - start) + (start > 0)


def draw(
    attempt: Callable[[st.DataObject], None], examples: int, seed: tuple[int, int]
) -> Callable[[], None]:
    """``attempt`` on so many draws of Hypothesis, of which a failing one is shrunk."""

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
    if found.worst is not None:
        case, violation = found.worst
        example = Counterexample(
            law.name, str(violation), case, subject.spelling, _fake_impl(subject)
        )
        return Verdict(
            law.name,
            dtype,
            "failed",
            found.cases + 1,
            found.refusals,
            seconds,
            found.reason,
            example,
        )
    outcome = "passed" if found.cases else "refused"
    reason = found.reason if found.refusals else "no case was drawn that it is able to do"
    return Verdict(
        law.name,
        dtype,
        "passed" if outcome == "passed" else "refused",
        found.cases,
        found.refusals,
        seconds,
        reason if outcome == "refused" or found.refusals else "",
    )


def _fake_impl(subject: Subject) -> str:
    """Python that makes the promise about rounding, without what it has by default."""
    model = subject.errors
    if not is_dataclass(model):
        return repr(model)
    given = [
        f"{each.name}={getattr(model, each.name)!r}"
        for each in fields(model)
        if getattr(model, each.name) != each.default
    ]
    return f"{type(model).__name__}({', '.join(given)})"


def select_laws(
    laws: Collection[str] | None = None, claims: Collection[str] = ()
) -> tuple[Law, ...]:
    """The laws of the given names, or all that need no claim, and those claimed.

    Raises:
        ValueError: no law has such a name.
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
