"""Times autogemm beside what a user would pick instead, in turns, and checks everybody's answer.

Whom, ``contestants`` says. One that cannot compute a problem says why, and the others go on.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch

from autogemm.contestants import PEERS as PEERS
from autogemm.contestants import Peer as Peer
from autogemm.database.lookup import Evidence
from autogemm.device import Device
from autogemm.dispatch import Plan, plan
from autogemm.long_runs import in_short
from autogemm.measure import Workbench, context_is_lost, in_turns, ratio, scalars
from autogemm.precision import ErrorBound, Tolerance, allowance, growth
from autogemm.problem import Problem
from autogemm.report import geomean, text_table
from autogemm.strategies import Candidate

OURS = "autogemm"
BUDGET_OVER = "the budget was over"
_ROUNDS = 25
_AGAIN = Candidate.of("autogemm again")
"""The second half of the A/A pair."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How one contestant did on one problem."""

    us: float
    ratio: float
    """Its time over autogemm's, the median of the rounds: above 1 autogemm is faster."""
    error: float
    """R, in units of u·G."""
    outside: str
    """How its answer leaves the level's contract; "" where it keeps it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One problem: who computed it and how fast, and who could not."""

    problem: Problem
    level: str
    mode: str
    choice: Candidate
    """What autogemm runs."""
    standings: dict[str, Standing]
    unable: dict[str, str]
    aa: float
    """autogemm's ratio to itself."""

    @property
    def winner(self) -> str:
        """The fastest of those that keep the contract; of all, where nobody does."""
        kept = {n: s for n, s in self.standings.items() if not s.outside} or self.standings
        return min(kept, key=lambda name: kept[name].us)

    def as_json(self) -> dict[str, object]:
        """The comparison with words for its problem and choice."""
        return {
            "problem": str(self.problem), "factors": list(factors(self.problem)),
            "level": self.level, "mode": self.mode,
            "choice": str(self.choice), "winner": self.winner, "aa": self.aa,
            "standings": {name: asdict(s) for name, s in self.standings.items()},
            "unable": self.unable,
        }  # fmt: skip


class DeviceLost(RuntimeError):
    """The device is of no more use to this process."""


def factors(problem: Problem) -> tuple[float, float]:
    """α and β of a comparison: those of tuning, but α = 1 where there is no C.

    One writes A @ B there; for another α torch and Inductor may pass over the result once more.
    """
    return (1.0, 0.0) if problem.update == "none" else scalars(problem)


def compare(
    problem: Problem, evidence: Evidence, device: Device, where: torch.device,
    peers: Sequence[Peer] | None = None, *, level: str = "highest", deadline: float = math.inf,
) -> Comparison:  # fmt: skip
    """Check and time every peer on a problem: device time by graphs, on a CPU launched calls.

    After ``deadline`` (``time.time()``) no further peer is prepared. Raises what ``autogemm``
    itself cannot do, and ``DeviceLost``.
    """
    begun: list[str] = []
    try:
        return _compare(
            problem, evidence, device, where, PEERS if peers is None else peers, level, deadline,
            begun,
        )  # fmt: skip
    except Exception as problem_met:
        if not context_is_lost(problem_met):
            raise
        raise DeviceLost(
            f"{problem}: the device was lost ({in_short(problem_met)}), after "
            f"{begun[-1] if begun else 'nobody'} had begun."
        ) from problem_met


def _compare(
    problem: Problem, evidence: Evidence, device: Device, where: torch.device,
    peers: Sequence[Peer], level: str, deadline: float, begun: list[str],
) -> Comparison:  # fmt: skip
    """``compare``; ``begun`` tells who has begun, should that be the end of it."""
    chosen = planned(problem, level, device, evidence)
    mode = chosen.mode
    bound = ErrorBound(allowance(level, problem.dtype), growth(problem.dtype, problem.k))
    judged: dict[str, tuple[float, str]] = {}
    unable: dict[str, str] = {}
    timers: dict[Candidate, Callable[[], float]] = {}
    with Workbench.open(problem, device, where, factors=factors(problem)) as bench:
        begun.append(OURS)
        timer = bench.graph if mode == "graph" else bench.eager
        ours = chosen.bind(device)
        judged[OURS] = bench.error(ours, bound)
        timers[Candidate.of(OURS)], timers[_AGAIN] = timer(ours), timer(ours)
        for peer in peers:
            reasons = peer.reasons_not(problem, device)
            if not reasons and time.time() > deadline:
                reasons = [BUDGET_OVER]
            if reasons:
                unable[peer.name] = "; ".join(reasons)
                continue
            begun.append(peer.name)
            try:
                run = peer.prepare(bench.operands[0], *bench.factors)
                judged[peer.name] = bench.error(run, bound)
                timers[Candidate.of(peer.name)] = timer(run)
            except Exception as problem_met:
                if context_is_lost(problem_met):
                    raise
                judged.pop(peer.name, None)
                unable[peer.name] = in_short(problem_met)
        times = in_turns(timers, _ROUNDS)
    own = times[Candidate.of(OURS)]
    return Comparison(
        problem=problem, level=level, mode=mode, choice=chosen.candidate, unable=unable,
        aa=ratio(own, times[_AGAIN]).median,
        standings={
            name: Standing(
                us=statistics.median(times[Candidate.of(name)]),
                ratio=ratio(times[Candidate.of(name)], own).median, error=error, outside=outside,
            )
            for name, (error, outside) in judged.items()
        },
    )  # fmt: skip


def compared(
    problems: Sequence[Problem], evidence: Evidence, device: Device, where: torch.device,
    peers: Sequence[Peer] | None = None, *, deadline: float = math.inf,
    known: Mapping[Problem, Comparison] | None = None,
    left_out: Callable[[Problem, str], None] = lambda problem, why: None,
) -> Iterator[Comparison]:  # fmt: skip
    """``compare`` problem after problem, until the deadline; what is ``known`` is not timed.

    ``left_out`` hears of what autogemm itself cannot compute here, for want of memory say, and
    why. Raises ``DeviceLost``.
    """
    for problem in problems:
        if known and problem in known:
            yield known[problem]
        elif time.time() <= deadline:
            try:
                with torch.no_grad():
                    found = compare(problem, evidence, device, where, peers, deadline=deadline)
            except DeviceLost:
                raise
            except Exception as problem_met:
                left_out(problem, in_short(problem_met))
            else:
                yield found


def planned(problem: Problem, level: str, device: Device, evidence: Evidence) -> Plan:
    """What autogemm runs where it is compared."""
    mode = "graph" if device.has_cuda else "eager"
    return plan(problem, Tolerance(level), device, mode, evidence)


# -------------------------------------------------------------------------------- the report


def as_text(comparisons: Sequence[Comparison], peers: Sequence[Peer] | None = None) -> str:
    """A row a problem: µs of each, * for the winner, ! for an answer outside the contract.

    Below it the geometric means of each peer's time over autogemm's, over the problems that it
    could compute, and over those whose answers keep the contract; where it was ahead; and once for
    each reason what it could not compute.
    """
    names = [OURS, *(peer.name for peer in (PEERS if peers is None else peers))]
    rows = [
        (str(c.problem), str(c.choice), *(_cell(c, name) for name in names), f"{c.aa:.3f}")
        for c in comparisons
    ]
    lines = [text_table(("problem", "autogemm runs", *names, "A/A"), rows)]
    lines.append("µs; * the fastest whose answer keeps the level's bound, ! one that leaves it")
    for name in names:
        met = [c for c in comparisons if name in c.standings]
        outside = [c for c in met if c.standings[name].outside]
        if name != OURS and met:
            kept = [c.standings[name].ratio for c in met if not c.standings[name].outside]
            lines.append(
                f"{name}: {geomean(c.standings[name].ratio for c in met):.3f} x autogemm's time, "
                f"the geometric mean of {len(met)} of {len(comparisons)} problems; fastest on "
                f"{sum(c.winner == name for c in met)}"
            )
            if outside and kept:
                lines.append(f"  within the bound: {geomean(kept):.3f} x, of {len(kept)}")
            lines += [
                f"  ahead of autogemm by 1 % or more: {c.problem}: {c.standings[name].ratio:.3f} x "
                "(the median of the rounds)"
                for c in met
                if c.standings[name].ratio <= 0.99 and not c.standings[name].outside
            ]
        lines += [
            f"  outside {c.level!r}: {c.problem}: {c.standings[name].outside}" for c in outside[:3]
        ]
        if len(outside) > 3:
            lines.append(f"  and on {len(outside) - 3} more")
        reasons: dict[str, int] = {}
        for c in comparisons:
            if name in c.unable:
                reasons[c.unable[name]] = reasons.get(c.unable[name], 0) + 1
        lines += [f"{name} could not run {n} of them: {why}" for why, n in reasons.items()]
    return "\n".join(lines)


def _cell(comparison: Comparison, name: str) -> str:
    standing = comparison.standings.get(name)
    if standing is None:
        return "-"
    mark = "!" if standing.outside else "*" if comparison.winner == name else " "
    return f"{standing.us:.1f}{mark}"
