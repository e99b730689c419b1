"""Which candidates of a problem are measured, in what order, and what came of them.

The candidates of one strategy that the same levels admit form a pool: within it the fastest
is wanted, whichever of these levels asks. A pool of at most ``TRIALS`` candidates is tried
whole. A larger one is searched: first what did well on neighbouring problems, then a few at
random, then what Optuna's TPE suggests, moved to the nearest candidate not tried yet.

One Optuna study a problem keeps what was measured. What comes next follows from that alone, so
a search that was cut off goes on as if it had not been.
"""

from __future__ import annotations

import functools
import json
import math
import os
import random
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Protocol

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from autogemm.database import Entry, Measured
from autogemm.database.lookup import time_of
from autogemm.database.prediction import REACH, distance, is_noisier
from autogemm.device import Device
from autogemm.finals import Bench
from autogemm.journal import study_name
from autogemm.precision import Tolerance
from autogemm.problem import Problem
from autogemm.strategies import BY_NAME, Candidate
from autogemm.strategies.base import ParamValue

TRIALS = 40
"""Candidates of a pool that are measured, or all where there are no more.

In recorded spaces cut down to some 150 candidates (AutoTuningAssociation/benchmark_hub: CLBlast's
gemm on two GPUs, a convolution on a third) 40 trials came within 2, 1 and 6 % of the optimum, as
a geometric mean over 60 cuts; 40 trials at random within 7, 6 and 14 %.
"""
STARTS = 6
"""Random candidates that TPE has to go by at first; 4 to 10 did equally well there."""
SEEDS = 6
"""What tuned problems may bring into a pool: as many as one problem has choices at most."""
SEEDS_EACH = 2
"""What one of them brings, or more if more of the pool were chosen there."""
SCREEN_RATIO = 1.3
"""A candidate this much slower than one at least as accurate is timed no further."""
AHEAD = 4 * (os.cpu_count() or 1)
"""Candidates that are compiled between two looks at the clock: a few seconds' worth."""

_BASELINES = ("addmm", "baddbmm")

Rows = Mapping[Candidate, Measured]
"""What was measured, in the order of measuring."""


class Search:
    """The study of one problem."""

    def __init__(
        self,
        problem: Problem,
        device: Device,
        levels: Sequence[str],
        candidates: Sequence[Candidate],
        storage: optuna.storages.BaseStorage,
        environment: str,
        space: str,
        known: Iterable[Entry] = (),
    ) -> None:
        """``known`` are tuned problems, whose best candidates are tried early."""
        self._problem = problem
        self._candidates = {str(candidate): candidate for candidate in candidates}
        self._bounds = {c: BY_NAME[c.strategy].bound(problem, c.kwargs) for c in candidates}
        self._pools = self._pooled(levels)
        self._known = tuple(known)
        self._storage = storage
        self._name = study_name(device, problem, environment, space, levels)
        self._study = self._open()

    @property
    def offered(self) -> int:
        """How many candidates the problem has."""
        return len(self._candidates)

    @property
    def planned(self) -> int:
        """How many of them will have been measured at the end."""
        return sum(min(len(pool), TRIALS) for _, pool in self._pools)

    def forget(self, before: float) -> None:
        """Start over, unless that was done since ``before``: a run may go on in a new process."""
        begun = [trial.datetime_start for trial in self._study.get_trials(deepcopy=False)]
        if any(start is not None and start.timestamp() < before for start in begun):
            optuna.delete_study(study_name=self._name, storage=self._storage)
            self._study = self._open()

    def settle(self) -> None:
        """Note that what follows from the trials is in the table."""
        self._study.set_user_attr("settled", time.time())

    def measure_all(
        self, bench: Bench, tell: Callable[[Measured], None], over: Callable[[], bool]
    ) -> list[Measured] | None:
        """Measure what is not measured yet and return all; None where time ran out first."""
        rows = self._recorded()
        missing = [candidate for candidate in self._bounds if candidate not in rows]
        self._prepare(bench, missing, over)
        for part in self._parts():
            while (candidate := part.next(rows)) is not None:
                if over():
                    return None
                rows[candidate] = self._measure(candidate, bench, rows)
                tell(rows[candidate])
        return [rows[candidate] for candidate in self._bounds if candidate in rows]

    def _prepare(
        self, bench: Bench, candidates: Sequence[Candidate], over: Callable[[], bool]
    ) -> None:
        if not self._study.user_attrs.get("preparing"):  # or a process died of it: not again
            self._study.set_user_attr("preparing", True)
            for first in range(0, len(candidates), AHEAD):
                if over():
                    break
                bench.prepare(candidates[first : first + AHEAD])
            self._study.set_user_attr("preparing", False)

    # -------------------------------------------------------------------------- what is next

    def _pooled(self, levels: Sequence[str]) -> list[tuple[str, list[Candidate]]]:
        """The candidates by strategy and by the levels that admit them, with the strictest."""
        problem = self._problem
        pools: dict[tuple[str, ...], list[Candidate]] = {}
        for candidate, bound in self._bounds.items():
            admitting = (
                level
                for level in levels
                if Tolerance(level).admits(bound, problem.dtype, problem.k)
            )
            pools.setdefault((candidate.strategy, *admitting), []).append(candidate)
        return [(key[1] if len(key) > 1 else "", pool) for key, pool in pools.items()]

    def _parts(self) -> list[_Part]:
        few = [c for _, pool in self._pools if len(pool) <= TRIALS for c in pool]
        many = [(level, pool) for level, pool in self._pools if len(pool) > TRIALS]
        parts: list[_Part] = [_Listed(few, self._name)]
        for number, (level, pool) in enumerate(many):
            seeds = self._seeds([pool for _, pool in many])
            usable = functools.partial(self._is_usable, level)
            parts.append(_Searched(pool, seeds, f"{self._name} | {number}", usable))
        return parts

    def _is_usable(self, level: str, row: Measured, rows: Rows) -> bool:
        return not is_noisier(self._problem, level, row, rows.values())

    def _seeds(self, pools: Sequence[Collection[Candidate]]) -> list[Candidate]:
        """The seeds the study began with: it goes on with them, whatever was tuned meanwhile."""
        if "seeds" not in self._study.user_attrs:
            found = [seed for pool in pools for seed in seeds_for(self._problem, pool, self._known)]
            self._study.set_user_attr("seeds", [str(seed) for seed in found])
        return [self._candidates[name] for name in self._study.user_attrs["seeds"]]

    # ------------------------------------------------------------------------------- trials

    def _open(self) -> optuna.Study:
        return optuna.create_study(
            study_name=self._name, storage=self._storage, load_if_exists=True
        )

    def _measure(self, candidate: Candidate, bench: Bench, rows: Rows) -> Measured:
        bound = self._bounds[candidate]
        incumbent = min(
            (
                us
                for row in rows.values()
                if row.status == "ok"
                and self._bounds[row.candidate].total <= bound.total
                and not is_noisier(self._problem, "highest", row, rows.values())
                for us in [time_of(row, "graph")]
                if us is not None
            ),
            default=math.inf,
        )
        trial = self._study.ask()
        trial.set_user_attr("candidate", str(candidate))
        # If the process dies here the trial stays RUNNING, which the next run notices.
        row = bench.judge(candidate, bound, lambda us: us > SCREEN_RATIO * incumbent)
        trial.set_constraint("accuracy", 1.0 if row.status == "inaccurate" else 0.0)
        trial.set_user_attr("row", _to_json(row))
        self._tell(trial.number, row)
        return row

    def _tell(self, trial: int, row: Measured) -> None:
        loss = _loss(row)
        if loss is not None:
            self._study.tell(trial, loss)
        else:
            state = TrialState.FAIL if row.status == "failed" else TrialState.PRUNED
            self._study.tell(trial, state=state)

    def _recorded(self) -> dict[Candidate, Measured]:
        """What earlier runs measured; a candidate that twice took its process along has failed."""
        rows: dict[Candidate, Measured] = {}
        died: set[Candidate] = set()
        for trial in self._study.get_trials(deepcopy=False):
            # A kill may leave a trial that has no candidate yet: nothing was measured for it.
            candidate = self._candidates.get(trial.user_attrs.get("candidate", ""))
            row = None
            if candidate is not None and "row" in trial.user_attrs:
                row = rows[candidate] = _from_json(trial.user_attrs["row"], candidate)
            elif candidate is not None and trial.state in (TrialState.RUNNING, TrialState.FAIL):
                if candidate in died:
                    rows[candidate] = Measured(
                        candidate=candidate,
                        status="failed",
                        note="its process died or hung twice while it was measured",
                    )
                died.add(candidate)
            if trial.state == TrialState.RUNNING:
                if row is None:
                    self._study.tell(trial.number, state=TrialState.FAIL)
                else:
                    self._tell(trial.number, row)
        return rows


class _Part(Protocol):
    """Some of a problem's candidates, and the order in which they are tried."""

    def next(self, rows: Rows) -> Candidate | None:
        """What to measure next, given what was measured; None where that is enough."""
        ...


class _Listed:
    """Candidates that are all tried, in random order."""

    def __init__(self, candidates: Sequence[Candidate], name: str) -> None:
        self._order = _shuffled(candidates, name)
        # The baseline first: it is what the others are screened against.
        self._order.sort(key=lambda candidate: candidate.strategy not in _BASELINES)

    def next(self, rows: Rows) -> Candidate | None:
        return next((c for c in self._order if c not in rows), None)


class _Searched:
    """A large pool, of which ``TRIALS`` candidates are tried."""

    def __init__(
        self,
        candidates: Sequence[Candidate],
        seeds: Sequence[Candidate],
        name: str,
        usable: Callable[[Measured, Rows], bool],
    ) -> None:
        """``usable`` says whether a measured candidate may be chosen at all."""
        self._name = name
        self._usable = usable
        self._candidates = _shuffled(candidates, name)
        # One that a candidate leaves out is the empty word there.
        keys = dict.fromkeys(key for c in candidates for key in c.kwargs)
        self._axes = {key: _Axis(c.kwargs.get(key, "") for c in candidates) for key in keys}
        self._places = {
            c: {key: axis.place(c.kwargs.get(key, "")) for key, axis in self._axes.items()}
            for c in self._candidates
        }
        self._starts = [seed for seed in seeds if seed in self._places]
        self._starts += self._candidates[:STARTS]

    def next(self, rows: Rows) -> Candidate | None:
        tried = [row for row in rows.values() if row.candidate in self._places]
        if len(tried) >= TRIALS:
            return None
        start = next((c for c in self._starts if c not in rows), None)
        if start is not None:
            return start
        wanted = self._suggestion(tried, rows)
        untried = (c for c in self._candidates if c not in rows)
        return min(untried, key=lambda c: self._distance(self._places[c], wanted))

    def _suggestion(self, tried: Sequence[Measured], rows: Rows) -> Mapping[str, int]:
        """What TPE, told of these trials and of nothing else, would like to see."""
        seed = random.Random(f"{self._name} | {len(tried)}").getrandbits(32)
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTS)
        study = optuna.create_study(sampler=sampler)
        distributions = {key: axis.distribution for key, axis in self._axes.items()}
        losses = [_loss(row) if self._usable(row, rows) else None for row in tried]
        study.add_trials(map(functools.partial(self._trial, distributions), tried, losses))
        return study.ask(distributions).params

    def _trial(
        self, distributions: dict[str, BaseDistribution], row: Measured, loss: float | None
    ) -> FrozenTrial:
        """A measured candidate as TPE takes it: without a usable time it is infeasible."""
        return create_trial(
            state=TrialState.PRUNED if loss is None else TrialState.COMPLETE,
            value=loss,
            params=self._places[row.candidate],
            distributions=distributions,
            constraints={"usable": 1.0 if loss is None else 0.0},
        )

    def _distance(self, x: Mapping[str, int], y: Mapping[str, int]) -> float:
        return sum(axis.distance(x[key], y[key]) for key, axis in self._axes.items())


class _Axis:
    """A parameter as a coordinate: the place of a value among those that occur."""

    def __init__(self, values: Iterable[ParamValue]) -> None:
        found = set(values)
        self._ordered = all(type(value) in (int, float) for value in found)
        self._values = sorted(found) if self._ordered else sorted(found, key=str)

    @property
    def distribution(self) -> BaseDistribution:
        """Of places: next to each other where the values have an order."""
        if self._ordered:
            return IntDistribution(0, len(self._values) - 1)
        return CategoricalDistribution(range(len(self._values)))

    def place(self, value: ParamValue) -> int:
        return self._values.index(value)

    def distance(self, x: int, y: int) -> float:
        return abs(x - y) / len(self._values) if self._ordered else float(x != y)


# ------------------------------------------------------------------------------ small parts


def seeds_for(
    problem: Problem, pool: Collection[Candidate], known: Iterable[Entry]
) -> list[Candidate]:
    """What of ``pool`` was chosen, or fastest, where the nearest problems were tuned."""
    near = [(away, entry) for entry in known if (away := distance(problem, entry.problem)) <= REACH]
    seeds: dict[Candidate, None] = {}
    for _, entry in sorted(near, key=lambda item: item[0]):
        picks = dict.fromkeys(c for c in chosen_in(entry) if c in pool)
        enough = max(len(picks), SEEDS_EACH)
        rows = [row for row in entry.measured if row.status == "ok" and row.candidate in pool]
        rows.sort(key=lambda row: time_of(row, "graph") or math.inf)
        picks.update(dict.fromkeys(row.candidate for row in rows))
        seeds.update(dict.fromkeys(list(picks)[:enough]))
    return list(seeds)[:SEEDS]


def chosen_in(entry: Entry) -> list[Candidate]:
    """The choices of all levels and modes."""
    return [choice.candidate for by_mode in entry.choices.values() for choice in by_mode.values()]


def _shuffled(candidates: Iterable[Candidate], name: str) -> list[Candidate]:
    order = list(candidates)
    random.Random(name).shuffle(order)
    return order


def _loss(row: Measured) -> float | None:
    """What is minimised: the logarithm of a time, be it only the rough one of a slow candidate."""
    us = time_of(row, "graph")
    return math.log(us) if us is not None and row.status in ("ok", "slow") else None


def _to_json(row: Measured) -> str:
    return json.dumps(
        {
            "status": row.status,
            "graph_us": row.graph_us,
            "eager_us": row.eager_us,
            "error": row.error,
            "error_norm": row.error_norm,
            "workspace_bytes": row.workspace_bytes,
            "note": row.note,
        }
    )


def _from_json(text: str, candidate: Candidate) -> Measured:
    return Measured(candidate=candidate, **json.loads(text))
