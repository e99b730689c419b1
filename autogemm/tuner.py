"""Chooses what to measure next and what to keep: the only importer of optuna.

One Optuna study a problem. Its trials are the candidates; a study that was cut off is gone
on with, and a trial that was running then is tried once more. The bench measures and judges
(``measure``), the table records (``database``); nothing here times or writes anything itself.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.trial import TrialState

from autogemm.database import (
    Choice,
    Entry,
    Environment,
    Measured,
    key_of,
    merge_table,
    read_table,
    table_path,
)
from autogemm.database.lookup import time_of
from autogemm.device import Device, clocks, software_versions
from autogemm.errors import DatabaseError
from autogemm.finals import Bench, finals
from autogemm.journal import open_storage
from autogemm.precision import LEVELS, ErrorBound, Tolerance
from autogemm.problem import Problem
from autogemm.strategies import BY_NAME, STRATEGIES, Candidate
from autogemm.workloads import Workload, levels_of

SCREEN_RATIO = 1.3
"""A candidate this much slower than one at least as accurate is timed no further."""


OpenBench = Callable[[Problem], AbstractContextManager[Bench]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be tuned, where results go, and when to stop."""

    workloads: tuple[Workload, ...]
    directory: Path
    """Where the table lies."""
    storage: str | None = None
    """An Optuna storage URL or the path of a journal file; None keeps one for this device."""
    levels: tuple[str, ...] = ("highest", "high", "medium")
    deadline: float = math.inf
    """``time.time()`` after which nothing new is started."""
    again: bool = False
    """Measure anew what the table already holds."""
    since: float = field(default_factory=time.time)
    """``time.time()`` of the order: with ``again``, trials begun before it do not count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One step of a tuning run, as reported while it goes on."""

    problem: Problem
    done: int
    """Problems finished, of ``total``."""
    total: int
    measured: Measured | None = None
    """The candidate just measured."""
    entry: Entry | None = None
    """The entry just written; with ``reused`` it was in the table already."""
    reused: bool = False
    skipped: str = ""
    """Why the problem was passed over, if it was."""
    candidates: int = 0
    """How many candidates this problem has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a tuning run."""

    entries: tuple[Entry, ...]
    measured: int
    """Candidates measured in this run."""
    screened: int
    """Those of them that were stopped early."""
    reused: int
    """Problems found tuned already."""
    unfinished: int
    """Problems left when time or the user's patience was over."""


def tune(
    order: Order,
    device: Device,
    open_bench: OpenBench,
    report: Callable[[Progress], None] = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Tune every problem of ``order`` that the table lacks; return the entries.

    Finished problems are merged into the table every few seconds. Raises ``DatabaseError`` where
    the table cannot be written.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    run = _Run(order, device, open_bench, report, stop)
    with open_storage(order.storage, device) as storage, run.writer:
        for workload in order.workloads:
            if not run.reuse(workload.problem) and not run.tune(workload.problem, storage):
                break
    return run.outcome()


class _Run:
    """One tuning run: what is known already, what has come of it so far."""

    def __init__(
        self,
        order: Order,
        device: Device,
        open_bench: OpenBench,
        report: Callable[[Progress], None],
        stop: Callable[[], bool],
    ) -> None:
        self._order, self._device, self._open_bench = order, device, open_bench
        self._report = report
        self._over = lambda: stop() or time.time() > order.deadline
        versions = software_versions(device.type)
        self._environment = Environment(versions=versions, clocks=clocks_of(device))
        path = table_path(order.directory, device)
        _check_writable(path)
        self._old = _entries(path, device)
        self.writer = _Writer(path, device, self._environment)
        self._entries: list[Entry] = []
        self._measured = self._screened = self._reused = self._done = 0

    def reuse(self, problem: Problem) -> bool:
        """Take the entry that the table has, if nothing it depends on has changed."""
        entry = self._old.get(key_of(problem))
        if (
            entry is None
            or self._order.again
            or entry.environment != self._environment.id
            or entry.space != space_digest(problem, self._device)
            or not set(_levels(problem, self._order.levels)) <= set(entry.choices)
        ):
            return False
        self._reused += 1
        self._finish(problem, entry, reused=True)
        return True

    def tune(self, problem: Problem, storage: optuna.storages.BaseStorage) -> bool:
        """Measure a problem's candidates and choose; False where time ran out first."""
        levels = _levels(problem, self._order.levels)
        candidates = candidates_for(problem, self._device, levels)
        space = space_digest(problem, self._device)
        environment = self._environment.id
        search = _Search(problem, self._device, levels, candidates, storage, environment, space)
        if self._order.again:
            search.forget(before=self._order.since)
        previous = self._old.get(key_of(problem))
        try:
            with self._open_bench(problem) as bench:
                tell = functools.partial(self._tell, problem, len(candidates))
                rows = search.measure_all(bench, tell, self._over)
                if rows is None or self._over():
                    return False
                choices, rows = finals(
                    problem, levels, rows, bench, _choices_of(previous), self._device.has_cuda
                )
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            self._finish(problem, None, skipped="does not fit into this device's memory")
            return True
        entry = Entry(
            problem=problem,
            environment=environment,
            date=date.today().isoformat(),
            choices=_with_old_levels(previous, environment, choices),
            measured=_with_old_rows(previous, environment, space, rows),
            space=space,
        )
        self.writer.add(entry)
        self._finish(problem, entry, candidates=len(candidates))
        return True

    def outcome(self) -> Outcome:
        """What has come of the run."""
        return Outcome(
            entries=tuple(self._entries),
            measured=self._measured,
            screened=self._screened,
            reused=self._reused,
            unfinished=len(self._order.workloads) - len(self._entries),
        )

    def _tell(self, problem: Problem, candidates: int, row: Measured) -> None:
        self._measured += 1
        self._screened += row.status == "slow"
        self._report(
            Progress(
                problem=problem,
                done=self._done,
                total=len(self._order.workloads),
                measured=row,
                candidates=candidates,
            )
        )

    def _finish(
        self,
        problem: Problem,
        entry: Entry | None,
        *,
        candidates: int = 0,
        reused: bool = False,
        skipped: str = "",
    ) -> None:
        self._done += 1
        if entry is not None:
            self._entries.append(entry)
        self._report(
            Progress(
                problem=problem,
                done=self._done,
                total=len(self._order.workloads),
                entry=entry,
                reused=reused,
                skipped=skipped,
                candidates=candidates,
            )
        )


def candidates_for(problem: Problem, device: Device, levels: Sequence[str]) -> list[Candidate]:
    """Every legal candidate whose declared bound serves at least one of the levels."""
    found = []
    for strategy in STRATEGIES:
        for candidate in strategy.candidates(problem, device):
            bound = strategy.bound(problem, candidate.kwargs)
            if any(Tolerance(level).admits(bound, problem.dtype, problem.k) for level in levels):
                found.append(candidate)
    return found


def space_digest(problem: Problem, device: Device) -> str:
    """A short digest of all candidates: a change means that tuning again may find more."""
    names = sorted(str(c) for c in candidates_for(problem, device, levels_of(problem)))
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:8]


# ------------------------------------------------------------------------------ one search


class _Search:
    """The study of one problem: which candidates are measured, and what came of them."""

    def __init__(
        self,
        problem: Problem,
        device: Device,
        levels: Sequence[str],
        candidates: Sequence[Candidate],
        storage: optuna.storages.BaseStorage,
        environment: str,
        space: str,
    ) -> None:
        self._problem = problem
        self._candidates = {str(candidate): candidate for candidate in candidates}
        self._storage = storage
        self._name = f"{device.slug} | {problem} | {environment} | {space} | {'+'.join(levels)}"
        self._study = self._open()

    def _open(self) -> optuna.Study:
        return optuna.create_study(
            study_name=self._name, storage=self._storage, load_if_exists=True
        )

    def forget(self, before: float) -> None:
        """Start over, unless that was done since ``before``: a run may go on in a new process."""
        begun = [trial.datetime_start for trial in self._study.get_trials(deepcopy=False)]
        if any(start is not None and start.timestamp() < before for start in begun):
            optuna.delete_study(study_name=self._name, storage=self._storage)
            self._study = self._open()

    def measure_all(
        self, bench: Bench, tell: Callable[[Measured], None], over: Callable[[], bool]
    ) -> list[Measured] | None:
        """Measure what is not measured yet; None where time ran out first."""
        rows = self._recorded()
        todo = [name for name in self._candidates if name not in rows]
        random.Random(self._name).shuffle(todo)
        # The baseline first: it is what the others are screened against.
        todo.sort(key=lambda name: not name.startswith("addmm"))
        for name in todo:
            if over():
                return None
            rows[name] = self._measure(name, bench, rows)
            tell(rows[name])
        return [rows[name] for name in self._candidates]

    def _measure(self, name: str, bench: Bench, rows: dict[str, Measured]) -> Measured:
        candidate = self._candidates[name]
        bound = self._bound(candidate)
        incumbent = min(
            (
                us
                for row in rows.values()
                if row.status == "ok" and self._bound(row.candidate).total <= bound.total
                for us in [time_of(row, "graph")]
                if us is not None
            ),
            default=math.inf,
        )
        trial = self._ask_for(name)
        # If the process dies here the trial stays RUNNING, which the next run notices.
        row = bench.judge(candidate, bound, lambda us: us > SCREEN_RATIO * incumbent)
        trial.set_user_attr("row", _to_json(row))
        trial.set_constraint("accuracy", 1.0 if row.status == "inaccurate" else 0.0)
        us = time_of(row, "graph")
        if row.status == "ok" and us is not None:
            self._study.tell(trial, math.log(us))
        else:
            state = TrialState.FAIL if row.status == "failed" else TrialState.PRUNED
            self._study.tell(trial, state=state)
        return row

    def _ask_for(self, name: str) -> optuna.Trial:
        """A running trial of this candidate."""
        self._study.enqueue_trial({"candidate": name})
        while True:
            trial = self._study.ask()
            if trial.suggest_categorical("candidate", sorted(self._candidates)) == name:
                return trial
            # A run that was killed between the two steps above left its trial in the queue.
            self._study.tell(trial, state=TrialState.PRUNED)

    def _recorded(self) -> dict[str, Measured]:
        """What earlier runs measured; a candidate that twice took its process along has failed."""
        rows: dict[str, Measured] = {}
        deaths: dict[str, int] = {}
        for trial in self._study.get_trials(deepcopy=False):
            name = trial.params.get("candidate")
            if name not in self._candidates:
                continue
            if "row" in trial.user_attrs:
                rows[name] = _from_json(trial.user_attrs["row"], self._candidates[name])
            elif trial.state in (TrialState.RUNNING, TrialState.FAIL):
                deaths[name] = deaths.get(name, 0) + 1
            if trial.state == TrialState.RUNNING:
                self._study.tell(trial.number, state=TrialState.FAIL)
        for name, count in deaths.items():
            if count >= 2 and name not in rows:
                rows[name] = Measured(
                    candidate=self._candidates[name],
                    status="failed",
                    note="its process died or hung twice while it was measured",
                )
        return rows

    def _bound(self, candidate: Candidate) -> ErrorBound:
        return BY_NAME[candidate.strategy].bound(self._problem, candidate.kwargs)


# ------------------------------------------------------------------------------ small parts


class _Writer:
    """Merges finished entries into the table, a few seconds' worth at a time.

    What a kill takes with it is a few finals: the journal holds the measurements.
    """

    _EVERY_S = 5.0

    def __init__(self, path: Path, device: Device, environment: Environment) -> None:
        self._where = (path, device, environment)
        self._waiting: list[Entry] = []
        self._last = time.monotonic()

    def add(self, entry: Entry) -> None:
        self._waiting.append(entry)
        if time.monotonic() - self._last > self._EVERY_S:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            merge_table(*self._where, self._waiting)
            self._waiting = []
        self._last = time.monotonic()

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()


def clocks_of(device: Device) -> dict[str, int]:
    """Clocks seen at the start of a run, none on a CPU."""
    return clocks() if device.has_cuda else {}


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(
        words in str(error) for words in ("can't allocate memory", "not enough memory")
    )


def _check_writable(path: Path) -> None:
    """Raise ``DatabaseError`` where a table could not be written after all the measuring."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise DatabaseError(
            f"{path.parent}: tables cannot be written there ({error.strerror}); name a writable "
            "directory with --db."
        ) from None


def _entries(path: Path, device: Device) -> dict[Any, Entry]:
    """The table's entries; none where it is missing or damaged (merging keeps a copy).

    Raises ``DatabaseError`` where it is another device's, before anything is measured.
    """
    if not path.exists():
        return {}
    try:
        table = read_table(path)[0]
    except DatabaseError:
        return {}
    if table.device != device:
        raise DatabaseError(
            f"{path}: holds the results of {table.device}, not of {device}; name another "
            "directory with --db."
        )
    return dict(table.entries)


def _choices_of(entry: Entry | None) -> list[Candidate]:
    if entry is None:
        return []
    return [choice.candidate for by_mode in entry.choices.values() for choice in by_mode.values()]


def _with_old_levels(
    previous: Entry | None, environment: str, choices: dict[str, dict[str, Choice]]
) -> dict[str, dict[str, Choice]]:
    """New choices, beside those of levels that were not tuned this time."""
    if previous is None or previous.environment != environment:
        return choices
    return {**{level: dict(modes) for level, modes in previous.choices.items()}, **choices}


def _with_old_rows(
    previous: Entry | None, environment: str, space: str, rows: Sequence[Measured]
) -> tuple[Measured, ...]:
    """New rows, beside those of candidates that only levels of earlier runs needed."""
    if previous is None or (previous.environment, previous.space) != (environment, space):
        return tuple(rows)
    new = {row.candidate for row in rows}
    return (*rows, *(row for row in previous.measured if row.candidate not in new))


def _levels(problem: Problem, wanted: Sequence[str]) -> tuple[str, ...]:
    """The problem's own levels that serve the wanted ones: a type may not tell some apart."""
    own = levels_of(problem)
    served = {
        max((level for level in own if LEVELS.index(level) <= LEVELS.index(word)), key=LEVELS.index)
        for word in wanted
    }
    return tuple(level for level in own if level in served)


def _to_json(row: Measured) -> str:
    return json.dumps(
        {
            "status": row.status,
            "graph_us": row.graph_us,
            "eager_us": row.eager_us,
            "error": row.error,
            "workspace_bytes": row.workspace_bytes,
            "note": row.note,
        }
    )


def _from_json(text: str, candidate: Candidate) -> Measured:
    return Measured(candidate=candidate, **json.loads(text))
