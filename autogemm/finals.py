"""The last round of tuning: the best candidates against the baseline, in turns, and the choice.

``tuner`` says what was measured, this file what is made of it; neither times anything itself.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from autogemm.database import Choice, Measured
from autogemm.database.lookup import SWITCH_MARGIN, time_of
from autogemm.database.prediction import (
    HOST_LEAST,
    host_margin,
    is_noisier,
    sure_gain,
    waits_for_host,
)
from autogemm.measure import EAGER_EQUALS_GRAPH_US, ratio
from autogemm.precision import ErrorBound, Tolerance
from autogemm.problem import Problem
from autogemm.strategies import BY_NAME, Candidate, baseline

ROUNDS = 20
"""Interleaved rounds of the finals: the interval of a median needs about this many."""
FINALISTS = 3
"""Candidates a level and mode send to the finals, besides the baseline and the old choice."""
SEMIFINALISTS = 16
"""Candidates of a level and mode that are timed in turns to find these."""
SEMIFINAL_ROUNDS = 5
NEAR = 1.15
"""How far behind the best a semifinalist may be. Timed alone, for milliseconds, candidates run at
clocks that an H200 does not keep: in turns they take 0.96 to 1.21 times as long."""
CPU_MARGIN = 1.05
"""What a candidate must win by on a CPU: one in twenty A/A pairs differs by 2.6 % there."""
TIE = 1.01
"""Candidates within this ratio of the best are tied; the simplest strategy takes it."""


class Bench(Protocol):
    """What measures candidates on one problem: ``measure.Workbench``, or a recording in tests."""

    def prepare(self, candidates: Sequence[Candidate]) -> None:
        """Do what these candidates' first calls need and can be done side by side."""
        ...

    def judge(
        self, candidate: Candidate, bound: ErrorBound, screen: Callable[[float], bool]
    ) -> Measured:
        """Measure one candidate; ``screen(us)`` says whether to stop after a rough timing."""
        ...

    def compare(
        self, candidates: Sequence[Candidate], mode: str, rounds: int
    ) -> dict[Candidate, list[float]]:
        """Time candidates in turns."""
        ...


def finals(
    problem: Problem,
    levels: Sequence[str],
    rows: Sequence[Measured],
    bench: Bench,
    previous: Sequence[Candidate],
    has_graphs: bool,
) -> tuple[dict[str, dict[str, Choice]], list[Measured]]:
    """Time the best candidates of every level against the baseline, in turns, and choose.

    Returns the choices by level and mode, and the rows with the better times of all that were
    timed in turns.
    """
    by_candidate = {row.candidate: row for row in rows}
    modes = ("graph", "eager") if has_graphs else ("eager",)
    choices: dict[str, dict[str, Choice]] = {level: {} for level in levels}

    def in_turns(candidates: Sequence[Candidate], rounds: int) -> dict[Candidate, list[float]]:
        times = bench.compare(candidates, mode, rounds)
        for candidate, samples in times.items():
            median = sorted(samples)[len(samples) // 2]
            row = by_candidate[candidate]
            by_candidate[candidate] = (
                replace(row, graph_us=median) if mode == "graph" else replace(row, eager_us=median)
            )
        return times

    for mode in modes:
        if mode == "eager" and has_graphs and _all_take_longer(rows, EAGER_EQUALS_GRAPH_US):
            continue
        near: dict[Candidate, None] = {}
        for level in levels:
            ranked = _ranked(problem, level, by_candidate, mode)
            near.update(dict.fromkeys(_near(ranked, mode)))
        if len(near) > FINALISTS:
            in_turns(list(near), SEMIFINAL_ROUNDS)
        entrants: dict[Candidate, None] = {}
        for level in levels:
            able = _ranked(problem, level, by_candidate, mode, first=near)
            entrants.update(dict.fromkeys(row.candidate for row in able[:FINALISTS]))
            # What will stand in where a table is used without the packages of its choice.
            plain = (c.candidate for c in able if not BY_NAME[c.candidate.strategy].needs_extras)
            entrants.update(dict.fromkeys(itertools.islice(plain, 1)))
            steady = (c.candidate for c in able if sure_gain(c.candidate, 1.0) == 1.0)
            entrants.update(dict.fromkeys(itertools.islice(steady, 1)))
            entrants.update({baseline(problem, level): None})
        entrants.update(
            {c: None for c in previous if c in by_candidate and by_candidate[c].status == "ok"}
        )
        entrants = {c: None for c in entrants if c in by_candidate and _runs(by_candidate[c])}
        times = in_turns(list(entrants), ROUNDS)
        for level in levels:
            able_there = {row.candidate for row in able_at(problem, level, rows)}
            base = baseline(problem, level)
            field = {c: t for c, t in times.items() if c in able_there or c == base}
            waiting = {c for c in field if waits_for_host(by_candidate[c], by_candidate.get(base))}
            host_bound = waiting if mode == "eager" else ()
            margin = SWITCH_MARGIN if has_graphs else CPU_MARGIN
            choice = choose(field, base, host_bound, margin)
            if choice is not None:
                choices[level][mode] = choice
    kept = {level: by_mode for level, by_mode in choices.items() if by_mode}
    return kept, [by_candidate[row.candidate] for row in rows]


def choose(
    times: dict[Candidate, list[float]],
    base: Candidate,
    host_bound: Collection[Candidate] = (),
    margin: float = SWITCH_MARGIN,
) -> Choice | None:
    """The winner of interleaved timings: the baseline, unless another is surely faster.

    It takes a median ratio of at least ``margin`` with its confidence interval above 1 to replace
    the baseline (``host_margin`` and ``HOST_LEAST`` for what waits for the host); ties go to the
    simplest strategy. Of one whose speed depends on the data ``sure_gain`` counts.
    """
    if base not in times:
        return None
    ratios = {candidate: ratio(times[base], samples) for candidate, samples in times.items()}
    won = {}
    for candidate, r in ratios.items():
        sure = sure_gain(candidate, r.median)
        least, low = margin, 1.0
        if candidate in host_bound:
            least, low = host_margin(base in host_bound), HOST_LEAST
        if candidate != base and sure >= least and r.low > low:
            won[candidate] = sure
    winner = base
    if won:
        best = max(won.values())
        tied = [candidate for candidate, sure in won.items() if sure * TIE >= best]
        winner = min(tied, key=lambda c: (BY_NAME[c.strategy].rank, -won[c]))
    others = [c for c in ratios if c != winner]
    runner_up = max(others, key=lambda c: ratios[c].median, default=None)
    result = ratios[winner]
    return Choice(
        candidate=winner,
        us=sorted(times[winner])[len(times[winner]) // 2],
        baseline_us=sorted(times[base])[len(times[base]) // 2],
        ratio=result.median,
        low=result.low,
        high=result.high,
        rounds=len(times[winner]),
        runner_up=runner_up,
        runner_up_ratio=None if runner_up is None else ratios[runner_up].median,
    )


def _ranked(
    problem: Problem, level: str, by_candidate: Mapping[Candidate, Measured], mode: str,
    first: Collection[Candidate] = (),
) -> list[Measured]:  # fmt: skip
    """What is able to serve a level, fastest first; before all others those named ``first``."""

    def rank(row: Measured) -> tuple[bool, float]:
        return row.candidate not in first, time_of(row, mode) or math.inf

    return sorted(able_at(problem, level, list(by_candidate.values())), key=rank)


def _near(ranked: Sequence[Measured], mode: str) -> list[Candidate]:
    """Those that may be the fastest after all."""
    times = [(row.candidate, time_of(row, mode)) for row in ranked[:SEMIFINALISTS]]
    best = times[0][1] if times else None
    return [c for c, us in times if us is not None and best is not None and us <= NEAR * best]


def _all_take_longer(rows: Sequence[Measured], us: float) -> bool:
    return min((time_of(r, "graph") or 0.0 for r in rows if r.status == "ok"), default=0.0) > us


def _runs(row: Measured) -> bool:
    return row.status not in ("failed", "unsupported")


def able_at(problem: Problem, level: str, rows: Sequence[Measured]) -> list[Measured]:
    """The rows that were measured well, and whose bound and typical error serve a level."""
    return [
        row
        for row in rows
        if row.status == "ok"
        and not is_noisier(problem, level, row, rows)
        and Tolerance(level).admits(
            BY_NAME[row.candidate.strategy].bound(problem, row.candidate.kwargs),
            problem.dtype,
            problem.k,
        )
    ]
