"""What a call would run and why, as ``explain`` returns it; prints as a report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from autogemm.dispatch import Plan
from autogemm.strategies import Candidate


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a call would run and why; prints as a report."""

    plan: Plan | None
    corner: str | None
    device: str
    tables: tuple[str, ...]
    rejected: tuple[tuple[Candidate, str], ...]

    @property
    def strategy(self) -> str:
        """The strategy's name; ``scale`` where nothing is multiplied (α = 0, k = 0, empty)."""
        return "scale" if self.plan is None else self.plan.candidate.strategy

    @property
    def parameters(self) -> dict[str, Any]:
        """The strategy's parameters."""
        return {} if self.plan is None else self.plan.candidate.kwargs

    @property
    def source(self) -> str:
        """``exact``, ``near``, ``model``, ``default``, or ``corner``: nothing is multiplied."""
        return "corner" if self.plan is None else self.plan.source

    def __str__(self) -> str:
        plan = self.plan
        if plan is None:
            return f"autogemm: nothing to multiply: {self.corner}"
        lines = [
            f"problem   {plan.problem}",
            f"device    {self.device}",
            f"precision {plan.tolerance} (from {plan.tolerance.source})",
            f"runs      {plan.candidate}, {plan.mode}",
            f"chosen by {plan.source}: {plan.detail}",
        ]
        if plan.among_threads is not None:
            lines.append(
                f"threads   {plan.among_threads} while other threads run: they would see torch's "
                "settings lowered"
            )
        if plan.expected_us is not None:
            ratio = f", {plan.expected_ratio:.2f}x addmm" if plan.expected_ratio else ""
            lines.append(f"expect    {plan.expected_us:.4g} us{ratio}")
        if plan.expected_error is not None:
            lines.append(f"error     R = {plan.expected_error:.3g} measured, in units of u*G")
        lines += [f"tables    {', '.join(self.tables) or 'none'}"]
        if plan.passed_over or self.rejected:
            lines.append("rejected")
            lines += _in_short(dict.fromkeys((*plan.passed_over, *self.rejected)))
        return "\n".join(lines)


_LINES_EACH = 5
"""What one strategy may take up in a printed explanation; a large space would fill pages."""


def _in_short(rejected: Iterable[tuple[Candidate, str]]) -> list[str]:
    """A line a candidate, or one for all candidates of a strategy that share a reason."""
    reasons: dict[str, dict[str, list[Candidate]]] = {}
    for candidate, reason in rejected:
        reasons.setdefault(candidate.strategy, {}).setdefault(reason, []).append(candidate)
    lines = []
    for strategy, groups in reasons.items():
        for reason, candidates in list(groups.items())[:_LINES_EACH]:
            many = len(candidates) > 1
            name = f"{strategy} ({len(candidates)} candidates)" if many else candidates[0]
            lines.append(f"  {name}: {reason}")
        left = sum(map(len, list(groups.values())[_LINES_EACH:]))
        if left:
            lines.append(f"  {strategy}: {left} more")
    return lines
