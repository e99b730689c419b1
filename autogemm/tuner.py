"""A tuning run: problem after problem is measured, chosen for, and recorded.

What is measured of a problem is up to ``search``, what is made of it up to ``finals``. The bench
measures and judges (``measure``), the table records (``database``); nothing here times or
writes anything itself.
"""

from __future__ import annotations

import functools
import hashlib
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import optuna
import torch

from autogemm.database import Entry, Environment, Measured, Table, by_key, key_of, table_path
from autogemm.database.extending import Writer, check_writable, table_to_extend
from autogemm.device import Device, clocks, software_versions
from autogemm.errors import PluginWarning
from autogemm.finals import Bench, finals
from autogemm.journal import begun, ended, open_storage, settled, study_name
from autogemm.measure import screening_saved_us
from autogemm.precision import LEVELS, ErrorBound, Tolerance
from autogemm.problem import Problem
from autogemm.renewal import renewed, searched_levels
from autogemm.search import Search, chosen_in
from autogemm.strategies import STRATEGIES, Candidate, origin_of
from autogemm.workloads import Workload, levels_of

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
    """Measure anew what the table already holds; an order that was interrupted goes on."""
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
    """How many candidates of this problem are measured, in this run or before it."""
    offered: int = 0
    """How many it has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a tuning run."""

    entries: tuple[Entry, ...]
    measured: int
    """Candidates measured in this run."""
    screened: int
    """Those of them that were stopped early."""
    saved_s: float
    """About how many seconds of timing that spared."""
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
    ahead: Callable[[Iterator[Problem]], None] = lambda problems: None,
) -> Outcome:
    """Tune every problem of ``order`` that the table lacks; return the entries.

    Finished problems are merged into the table every few seconds. ``ahead`` is told, before a
    problem is measured, of it and of those that will follow. Raises ``DatabaseError`` where the
    table cannot be written.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    run = _Run(order, device, open_bench, report, stop)
    with open_storage(order.storage, device) as storage, run.again(storage), run.writer:
        problems = [workload.problem for workload in order.workloads]
        for i, problem in enumerate(problems):
            if run.reuse(problem):
                continue
            if not run.over():
                ahead(p for p in problems[i:] if run.tuned(p) is None)
            if not run.tune(problem):
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
        self.over = lambda: stop() or time.time() > order.deadline
        versions = software_versions(device.type)
        self._environment = Environment(versions=versions, clocks=clocks_of(device))
        path = table_path(order.directory, device)
        check_writable(path)
        table = table_to_extend(path, device)
        self._table = table
        self.writer = Writer(path, device, self._environment, self._beside)
        self._storage: optuna.storages.BaseStorage
        self._since = order.since
        self._entries: list[Entry] = []
        self._measured = self._screened = self._reused = self._done = 0
        self._saved_us = 0.0

    @contextmanager
    def again(self, storage: optuna.storages.BaseStorage) -> Iterator[None]:
        """Tune with trials kept there; what is to be measured again is so once, in however many
        runs of the same order that takes.
        """
        self._storage = storage
        if not self._order.again:
            yield
            return
        wanted = [str(load.problem) for load in self._order.workloads] + list(self._order.levels)
        digest = hashlib.sha256("\n".join(wanted).encode()).hexdigest()[:8]
        name = f"{self._device.slug} | again | {self._environment.id} | {digest}"
        self._since = begun(storage, name, self._order.since)
        yield
        if self._done == len(self._order.workloads):
            ended(storage, name)

    def reuse(self, problem: Problem) -> bool:
        """Take the entry that the table has, if nothing it depends on has changed."""
        entry = self.tuned(problem)
        if entry is None:
            return False
        self._reused += 1
        self._finish(problem, entry, reused=True)
        return True

    def tuned(self, problem: Problem) -> Entry | None:
        """The entry that the table has, unless something it depends on has changed."""
        entry = self._table.entries.get(key_of(problem))
        if entry is None or entry.environment != self._environment.id:
            return None
        levels, space = _levels(problem, self._order.levels), space_digest(problem, self._device)
        if not set(levels) <= searched_levels(entry, space):
            return None
        if self._order.again:
            name = study_name(self._device, problem, self._environment.id, space, levels)
            if settled(self._storage, name) < self._since:
                return None
        return entry

    def tune(self, problem: Problem) -> bool:
        """Measure a problem's candidates and choose; False where time ran out first."""
        levels = _levels(problem, self._order.levels)
        candidates = candidates_for(problem, self._device, levels)
        space = space_digest(problem, self._device)
        environment = self._environment.id
        known = {**self._table.entries, **by_key(self._entries)}.values()
        search = Search(
            problem, self._device, levels, candidates, self._storage, environment, space, known
        )
        if self._order.again:
            search.forget(before=self._since)
        previous = self._table.entries.get(key_of(problem))
        old_choices = [] if previous is None else chosen_in(previous)
        try:
            with self._open_bench(problem) as bench:
                tell = functools.partial(self._tell, problem, search)
                rows = search.measure_all(bench, tell, self.over)
                if rows is None or self.over():
                    return False
                choices, rows = finals(
                    problem, levels, rows, bench, old_choices, self._device.has_cuda
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
            choices=choices,
            measured=tuple(rows),
            space=space,
        )
        self.writer.add(entry, search.settle)
        self._finish(problem, self._beside(entry, self._table), search=search)
        return True

    def _beside(self, entry: Entry, table: Table) -> Entry:
        """``entry`` with what stays of that in ``table``: others may have tuned another level."""
        problem, device = entry.problem, self._device
        previous = table.entries.get(key_of(problem))
        then = None if previous is None else table.environments.get(previous.environment)
        levels = _levels(problem, self._order.levels)
        return renewed(
            entry,
            previous,
            offered=candidates_for(problem, device, levels_of(problem)),
            stale=candidates_for(problem, device, levels) if self._order.again else (),
            # Measured under today's software, or a part of it.
            comparable=then is not None and self._environment.extends(then),
        )

    def outcome(self) -> Outcome:
        """What has come of the run."""
        return Outcome(
            entries=tuple(self._entries),
            measured=self._measured,
            screened=self._screened,
            saved_s=self._saved_us * 1e-6,
            reused=self._reused,
            unfinished=len(self._order.workloads) - self._done,
        )

    def _tell(self, problem: Problem, search: Search, row: Measured) -> None:
        self._measured += 1
        self._screened += row.status == "slow"
        self._saved_us += screening_saved_us(row)
        self._report(
            Progress(
                problem=problem,
                done=self._done,
                total=len(self._order.workloads),
                measured=row,
                candidates=search.planned,
                offered=search.offered,
            )
        )

    def _finish(
        self,
        problem: Problem,
        entry: Entry | None,
        *,
        search: Search | None = None,
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
                candidates=search.planned if search else 0,
                offered=search.offered if search else 0,
            )
        )


def candidates_for(problem: Problem, device: Device, levels: Sequence[str]) -> list[Candidate]:
    """Every legal candidate whose declared bound serves at least one of the levels.

    A plug-in that raises has none for this problem; a ``PluginWarning`` says so.
    """
    found: list[Candidate] = []
    for strategy in STRATEGIES:
        try:
            found += [
                candidate
                for candidate in strategy.candidates(problem, device)
                if _serves(strategy.bound(problem, candidate.kwargs), problem, levels)
            ]
        except Exception as error:
            if not (origin := origin_of(strategy.name)):
                raise
            warnings.warn(
                f"the strategy {strategy.name!r} of {origin} is passed over for {problem}: "
                f"{type(error).__name__}: {error}",
                PluginWarning,
                stacklevel=2,
            )
    return found


def _serves(bound: ErrorBound, problem: Problem, levels: Sequence[str]) -> bool:
    return any(Tolerance(level).admits(bound, problem.dtype, problem.k) for level in levels)


def space_digest(problem: Problem, device: Device) -> str:
    """A short digest of all candidates: a change means that tuning again may find more.

    A plug-in's counts with its version, which no environment records.
    """
    candidates = candidates_for(problem, device, levels_of(problem))
    names = sorted(f"{c} {origin_of(c.strategy)}".rstrip() for c in candidates)
    if problem.update == "bias":
        names.append("alpha = beta = 1")  # once they were measured as all others are
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:8]


# ------------------------------------------------------------------------------ small parts


def clocks_of(device: Device) -> dict[str, int]:
    """Clocks seen at the start of a run, none on a CPU."""
    return clocks() if device.has_cuda else {}


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(
        words in str(error) for words in ("can't allocate memory", "not enough memory")
    )


def _levels(problem: Problem, wanted: Sequence[str]) -> tuple[str, ...]:
    """The problem's own levels that serve the wanted ones: a type may not tell some apart."""
    own = levels_of(problem)
    served = {
        max((level for level in own if LEVELS.index(level) <= LEVELS.index(word)), key=LEVELS.index)
        for word in wanted
    }
    return tuple(level for level in own if level in served)
