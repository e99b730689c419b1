"""Problem → Plan: a table's entry, a prediction from its neighbours, or the safe default.

Nothing here launches work, knows a shape threshold or a capability: what is chosen comes
from measurements, and every choice must pass its strategy's ``reasons_not`` and bound.
"""

from __future__ import annotations

import decimal
from collections.abc import Callable
from dataclasses import dataclass, replace

from autogemm.database.lookup import Evidence, Suggestion
from autogemm.device import Device
from autogemm.errors import NoStrategy
from autogemm.precision import LEVELS, Tolerance, budget_of, is_alone
from autogemm.problem import Problem
from autogemm.strategies import BY_NAME, STRATEGIES, Candidate, Run, baseline, origin_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What will run, where the choice came from, and what to expect of it. Immutable."""

    problem: Problem
    tolerance: Tolerance
    mode: str
    """``eager`` or ``graph``: launched call by call, or captured and replayed."""
    candidate: Candidate
    source: str
    """``exact``, ``near``, ``model`` or ``default``."""
    detail: str
    expected_us: float | None = None
    expected_ratio: float | None = None
    expected_error: float | None = None
    passed_over: tuple[tuple[Candidate, str], ...] = ()
    """Better-placed candidates that could not serve, each with the reason."""
    among_threads: Candidate | None = None
    """What runs instead while the process has other threads, which would see the candidate lower
    a setting of torch's; None where it lowers none."""

    def bind(self, device: Device, audit: Audit | None = None) -> Run:
        """The function that runs the plan; ``audit`` wraps what a candidate runs."""
        alone = self._bound(self.candidate, device, audit)
        if self.among_threads is None:
            return alone
        among_threads = self._bound(self.among_threads, device, audit)
        # Asked at every call: a thread may have been started since the last one.
        return lambda *call: (alone if is_alone() else among_threads)(*call)

    def _bound(self, candidate: Candidate, device: Device, audit: Audit | None) -> Run:
        run = BY_NAME[candidate.strategy].bind(self.problem, device, candidate.kwargs)
        if audit is None:
            return run
        return audit(run, replace(self, candidate=candidate, among_threads=None))


Audit = Callable[[Run, Plan], Run]
"""What an audit makes of a function that runs a plan: one that also checks some results."""


def plan(
    problem: Problem, tolerance: Tolerance, device: Device, mode: str, evidence: Evidence
) -> Plan:
    """Choose. Raises ``NoStrategy``, with every reason, if nothing can keep the promise."""
    found = _chosen(problem, tolerance, device, mode, evidence)
    if not _lowers(found.candidate, problem):
        return found
    # Full accuracy may stand in for anything: what lowers a setting has the looser bound.
    for candidate in evidence.measured_faster(problem, tolerance, mode):
        reason = reason_against(candidate, problem, tolerance, device)
        if reason is None and not _lowers(candidate, problem):
            return replace(found, among_threads=candidate)
    return replace(found, among_threads=baseline(problem, "highest"))


def _lowers(candidate: Candidate, problem: Problem) -> bool:
    return BY_NAME[candidate.strategy].lowers(problem, candidate.kwargs)


def _chosen(
    problem: Problem, tolerance: Tolerance, device: Device, mode: str, evidence: Evidence
) -> Plan:
    passed_over: list[tuple[Candidate, str]] = []
    for suggestion in evidence.suggestions(problem, tolerance, mode):
        suggestion = _fitted(suggestion, problem, device)
        reason = reason_against(suggestion.candidate, problem, tolerance, device)
        if reason is None:
            return _from_suggestion(suggestion, problem, tolerance, mode, passed_over)
        passed_over.append((suggestion.candidate, reason))
    for candidate in defaults(problem, tolerance):
        reason = reason_against(candidate, problem, tolerance, device)
        if reason is None:
            return Plan(
                problem=problem,
                tolerance=tolerance,
                mode=mode,
                candidate=candidate,
                source="default",
                detail=evidence.why_nothing(problem),
                passed_over=tuple(passed_over),
            )
        passed_over.append((candidate, reason))
    raise NoStrategy(_nothing_serves(problem, tolerance, device))


def _fitted(suggestion: Suggestion, problem: Problem, device: Device) -> Suggestion:
    """What was not measured on the problem itself, as its strategy would have it here."""
    strategy = BY_NAME.get(suggestion.candidate.strategy)
    if suggestion.source == "exact" or strategy is None:
        return suggestion
    return replace(suggestion, candidate=strategy.fitted(suggestion.candidate, problem, device))


def reason_against(
    candidate: Candidate, problem: Problem, tolerance: Tolerance, device: Device
) -> str | None:
    """Why a candidate may not serve, or None if it may."""
    if (demoted := _demoted.get((problem, candidate))) is not None:
        return demoted
    strategy = BY_NAME.get(candidate.strategy)
    if strategy is None:
        return f"the strategy {candidate.strategy!r} is not known"
    reasons = strategy.reasons_not(problem, device, candidate.kwargs)
    if reasons:
        return "; ".join(reasons)
    bound = strategy.bound(problem, candidate.kwargs)
    return tolerance.shortfall(bound, problem.dtype, problem.k)


_demoted: dict[tuple[Problem, Candidate], str] = {}
"""What an audit found wanting, with the reason; for the life of the process."""


def demote(problem: Problem, candidate: Candidate, reason: str) -> bool:
    """Let a candidate serve a problem no more; False for a baseline: nothing stands behind it."""
    if any(candidate == baseline(problem, level) for level in LEVELS):
        return False
    _demoted[problem, candidate] = reason
    return True


def defaults(problem: Problem, tolerance: Tolerance) -> list[Candidate]:
    """The safe default first; behind it, for tight budgets, splits that round less often."""
    splits = sorted({2 ** (problem.k.bit_length() // 2), 2 ** ((problem.k.bit_length() + 1) // 2)})
    return [
        baseline(problem, tolerance.level),
        *(
            Candidate.of("ksplit", form="sequential", chunks=chunks)
            for chunks in splits
            if chunks >= 2 and tolerance.budget is not None
        ),
    ]


def rejected(
    problem: Problem, tolerance: Tolerance, device: Device, chosen: Candidate
) -> list[tuple[Candidate, str]]:
    """The other candidates of all strategies that could not serve here, each with the reason.

    What a plug-in raises when it is asked is a reason, too: the call may have no need of it.
    """
    result: list[tuple[Candidate, str]] = []
    for strategy in STRATEGIES:
        try:
            for params in strategy.space(problem, device):
                candidate = Candidate.of(strategy.name, **params)
                if candidate == chosen:
                    continue
                reason = reason_against(candidate, problem, tolerance, device)
                if reason is not None:
                    result.append((candidate, reason))
        except Exception as raised:
            origin = origin_of(strategy.name)
            if not origin:
                raise
            words = f"{origin} raised {type(raised).__name__}: {raised}".split("\n")[0]
            result.append((Candidate.of(strategy.name), words))
    return result


def _from_suggestion(
    suggestion: Suggestion,
    problem: Problem,
    tolerance: Tolerance,
    mode: str,
    passed_over: list[tuple[Candidate, str]],
) -> Plan:
    return Plan(
        problem=problem,
        tolerance=tolerance,
        mode=mode,
        candidate=suggestion.candidate,
        source=suggestion.source,
        detail=suggestion.detail,
        expected_us=suggestion.us,
        expected_ratio=suggestion.ratio,
        expected_error=suggestion.error,
        passed_over=tuple(passed_over),
    )


def _nothing_serves(problem: Problem, tolerance: Tolerance, device: Device) -> str:
    lines = [f"no strategy can serve {problem} at precision {tolerance} on {device}:"]
    best: float | None = None
    for candidate in [
        *defaults(problem, tolerance),
        *(
            Candidate.of(strategy.name, **params)
            for strategy in STRATEGIES
            for params in strategy.space(problem, device)
        ),
    ]:
        strategy = BY_NAME[candidate.strategy]
        if not strategy.reasons_not(problem, device, candidate.kwargs):
            promise = budget_of(strategy.bound(problem, candidate.kwargs), problem.dtype)
            best = promise if best is None else min(best, promise)
        reason = reason_against(candidate, problem, tolerance, device)
        line = f"  {candidate}: {reason}"
        if reason is not None and line not in lines:
            lines.append(line)
    if best is not None:
        lines.append(
            f"The tightest budget that {str(problem.dtype).split('.')[-1]} can promise at "
            f"k = {problem.k} is {_rounded_up(best):.2g}. Ask for that, use a level ('highest' "
            "promises float32 accuracy), or use float64."
        )
    return "\n".join(lines)


def _rounded_up(budget: float) -> float:
    """Two digits that are not below ``budget``, so that asking for them is granted."""
    context = decimal.Context(prec=2, rounding=decimal.ROUND_CEILING)
    return float(context.create_decimal_from_float(budget))
