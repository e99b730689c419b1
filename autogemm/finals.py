"""The last round of tuning: the best candidates against the baseline, in turns, and the choice.

``tuner`` says what was measured, this file what is made of it; neither times anything itself.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch

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
LONGEST_S = 120.0
"""How long finals may take; where products take seconds they have fewer rounds."""
FEWEST_ROUNDS = 6
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
        self, candidates: Sequence[Candidate], mode: str, rounds: int, *, brief: bool = False
    ) -> dict[Candidate, list[float]]:
        """Time candidates in turns; ``brief``: to rank them, which takes shorter runs."""
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

    Returns the choices by level and mode, and the rows with times as in the finals.
    """
    measured = {row.candidate: row for row in rows}
    bases = {level: baseline(problem, level) for level in levels}
    modes = ("graph", "eager") if has_graphs else ("eager",)
    choices: dict[str, dict[str, Choice]] = {level: {} for level in levels}
    for mode in modes:
        if mode == "eager" and has_graphs and _all_take_longer(rows, EAGER_EQUALS_GRAPH_US):
            continue
        able = {level: _ranked(able_at(problem, level, rows), mode) for level in levels}
        semifinal: dict[Candidate, float] = {}
        if has_graphs:
            near = {level: _near(able[level], mode) for level in levels}
            semifinal = _semifinal(near, bases, measured, bench, mode)
            for level in levels if semifinal else ():
                able[level].sort(key=_by_semifinal(near[level], semifinal))
        entrants: dict[Candidate, None] = {}
        for level in levels:
            entrants.update(dict.fromkeys(row.candidate for row in able[level][:FINALISTS]))
            # What will stand in where a table is used without the packages of its choice.
            found = [row.candidate for row in able[level]]
            plain = (c for c in found if not BY_NAME[c.strategy].needs_extras)
            entrants.update(dict.fromkeys(itertools.islice(plain, 1)))
            steady = (c for c in found if sure_gain(c, 1.0) == 1.0)
            entrants.update(dict.fromkeys(itertools.islice(steady, 1)))
            entrants.update({bases[level]: None})
        entrants.update({c: None for c in previous if c in measured and measured[c].status == "ok"})
        entrants = {c: None for c in entrants if c in measured and _runs(measured[c])}
        times = bench.compare(list(entrants), mode, _rounds(entrants, measured, mode))
        last = {c: sorted(samples)[len(samples) // 2] for c, samples in times.items()}
        earlier = (semifinal, _times_in(measured, mode)) if has_graphs else ()
        measured = _as_in_the_finals(measured, last, earlier, bases.values(), mode)
        for level in levels:
            able_there = {row.candidate for row in able[level]}
            base = bases[level]
            field = {c: t for c, t in times.items() if c in able_there or c == base}
            waiting = {c for c in field if waits_for_host(measured[c], measured.get(base))}
            host_bound = waiting if mode == "eager" else ()
            margin = SWITCH_MARGIN if has_graphs else CPU_MARGIN
            choice = choose(field, base, host_bound, margin)
            if choice is not None:
                choices[level][mode] = choice
    kept = {level: by_mode for level, by_mode in choices.items() if by_mode}
    return kept, [measured[row.candidate] for row in rows]


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


def _rounds(
    entrants: Iterable[Candidate], measured: Mapping[Candidate, Measured], mode: str
) -> int:
    """How often each is timed."""
    seconds = sum(time_of(measured[c], mode) or 0.0 for c in entrants) * 1e-6
    return max(FEWEST_ROUNDS, min(ROUNDS, int(LONGEST_S / max(seconds, 1e-9))))


def _ranked(able: Sequence[Measured], mode: str) -> list[Measured]:
    """The fastest first."""
    return sorted(able, key=lambda row: time_of(row, mode) or math.inf)


def _near(ranked: Sequence[Measured], mode: str) -> list[Candidate]:
    """Those that may be the fastest after all."""
    times = [(row.candidate, time_of(row, mode)) for row in ranked[:SEMIFINALISTS]]
    best = times[0][1] if times else None
    return [c for c, us in times if us is not None and best is not None and us <= NEAR * best]


def _semifinal(
    near: Mapping[str, Sequence[Candidate]], bases: Mapping[str, Candidate],
    measured: Mapping[Candidate, Measured], bench: Bench, mode: str,
) -> dict[Candidate, float]:  # fmt: skip
    """Times in turns of what is near the best of any level, and of the baselines."""
    if all(len(found) <= FINALISTS for found in near.values()):
        return {}
    field = dict.fromkeys(c for found in near.values() for c in found)
    field |= {c: None for c in bases.values() if c in measured and _runs(measured[c])}
    try:
        times = bench.compare(list(field), mode, SEMIFINAL_ROUNDS, brief=True)
    except (MemoryError, torch.OutOfMemoryError):  # results of so many graphs at a time
        return {}
    return {c: sorted(samples)[len(samples) // 2] for c, samples in times.items()}


def _by_semifinal(
    near: Sequence[Candidate], times: Mapping[Candidate, float]
) -> Callable[[Measured], tuple[int, float]]:
    """An order: first a level's own semifinalists by these times, then the others as they are."""
    places = {c: (0, times[c]) for c in near}
    return lambda row: places.get(row.candidate, (1, 0.0))


def _times_in(measured: Mapping[Candidate, Measured], mode: str) -> dict[Candidate, float]:
    """Times of this mode and no other, where there are any."""
    times = {c: r.graph_us if mode == "graph" else r.eager_us for c, r in measured.items()}
    return {c: us for c, us in times.items() if us is not None}


def _as_in_the_finals(
    measured: Mapping[Candidate, Measured], last: Mapping[Candidate, float],
    earlier: Sequence[Mapping[Candidate, float]], bases: Collection[Candidate], mode: str,
) -> dict[Candidate, Measured]:  # fmt: skip
    """Rows whose times can be compared, although clocks differ from stage to stage.

    A time that is not of the ``last`` stage is multiplied by what the baseline's grew by since.
    """
    times = dict(last)
    base = next((c for c in bases if c in last), None)
    for stage in earlier:  # the latest first
        if base is not None and base in stage:
            grown = last[base] / stage[base]
            times = {c: us * grown for c, us in stage.items()} | times

    def timed(row: Measured, us: float) -> Measured:
        return replace(row, graph_us=us) if mode == "graph" else replace(row, eager_us=us)

    return {c: timed(row, times[c]) if c in times else row for c, row in measured.items()}


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
