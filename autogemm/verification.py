"""Whether a tuning table still tells the truth about this machine.

Every row is timed against the baseline once more, in turns as the finals do it, and its error is
measured again. What no longer holds is flagged, and can be tuned anew by itself.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch

from autogemm.database import Choice, Entry, Table
from autogemm.database.lookup import version_drift
from autogemm.device import Device
from autogemm.errors import DatabaseError
from autogemm.finals import ROUNDS
from autogemm.measure import Ratio, Workbench, ratio
from autogemm.precision import LEVELS
from autogemm.problem import Problem
from autogemm.strategies import BY_NAME, Candidate, baseline, reasons_not
from autogemm.tuner import Order
from autogemm.workloads import Workload

CONFIRMED = 0.03
"""A row is confirmed where its ratio now is within this fraction of the stored one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One choice of a table, held against this machine."""

    problem: Problem
    level: str
    mode: str
    choice: Choice
    now: Ratio | None = None
    """The ratio to the baseline as timed now; None for the baseline itself, or where it failed."""
    error: float | None = None
    """R as measured now."""
    flags: tuple[str, ...] = ()
    """What no longer holds, in words."""

    @property
    def confirmed(self) -> bool:
        """Whether the stored ratio was met again, within ``CONFIRMED``."""
        return self.now is not None and abs(self.now.median / self.choice.ratio - 1) <= CONFIRMED


@dataclass(frozen=True, slots=True)
class Verification:
    """The rows of a table that were looked at, and how many entries were not."""

    table: Table
    rows: tuple[Row, ...]
    left: int

    @property
    def timed(self) -> list[Row]:
        """The rows with a ratio of now: all but choices of the baseline itself."""
        return [row for row in self.rows if row.now is not None]

    @property
    def flagged(self) -> list[Row]:
        """The rows of which something no longer holds."""
        return [row for row in self.rows if row.flags]

    @property
    def confirmed(self) -> float:
        """The share of timed rows that were confirmed; NaN where none was timed."""
        timed = self.timed
        return sum(row.confirmed for row in timed) / len(timed) if timed else math.nan


def verify_table(
    table: Table,
    device: Device,
    where: torch.device,
    *,
    sample: int | None = None,
    deadline: float = math.inf,
    report: Callable[[Entry], None] = lambda entry: None,
) -> Verification:
    """Check ``sample`` entries drawn at random, or all of them, until ``deadline``.

    Raises ``DatabaseError`` for a table of another device: its times cannot be confirmed here.
    """
    if table.device != device:
        raise DatabaseError(
            f"{table.path}: holds the results of {table.device}; expected those of {device}, for "
            "only the machine itself can confirm them."
        )
    entries = list(table.entries.values())
    random.Random(0).shuffle(entries)
    entries = entries[:sample]
    rows: list[Row] = []
    done = 0
    with torch.no_grad():
        for entry in entries:
            if time.time() > deadline:
                break
            rows += verify_entry(entry, table, device, where)
            done += 1
            report(entry)
    return Verification(table, tuple(rows), len(entries) - done)


def verify_entry(
    entry: Entry, table: Table, device: Device, where: torch.device
) -> Iterator[Row]:
    """Time and measure every choice of an entry; one row each."""
    problem = entry.problem
    choices = [
        (level, mode, choice)
        for level, by_mode in entry.choices.items()
        for mode, choice in by_mode.items()
    ]
    try:
        with Workbench.open(problem, device, where) as bench:
            errors = {c.candidate: _error(bench, c.candidate) for _, _, c in choices}
            times: dict[str, dict[Candidate, list[float]]] = {}
            for mode in dict.fromkeys(mode for _, mode, _ in choices):
                there = [(level, c.candidate) for level, m, c in choices if m == mode]
                entrants = {
                    c: None
                    for level, candidate in there
                    for c in (baseline(problem, level), candidate)
                    if candidate != baseline(problem, level) and not reasons_not(c, problem, device)
                }
                times[mode] = bench.compare(list(entrants), mode, ROUNDS) if entrants else {}
    except (RuntimeError, MemoryError) as problem_met:
        why = f"cannot be measured: {type(problem_met).__name__}: {problem_met}".split("\n")[0]
        for level, mode, choice in choices:
            yield Row(problem=problem, level=level, mode=mode, choice=choice, flags=(why,))
        return
    for level, mode, choice in choices:
        base, candidate = baseline(problem, level), choice.candidate
        error, complaint = errors[candidate]
        now = None
        if candidate != base and candidate in times[mode]:
            now = ratio(times[mode][base], times[mode][candidate])
        flags = [f"cannot run here: {reason}" for reason in reasons_not(candidate, problem, device)]
        if complaint:
            flags.append(complaint)
        if now is not None and _is_gone(choice, now):
            flags.append(f"its gain is gone: {now.low:.2f} to {now.high:.2f} of the baseline now")
        environment = table.environments.get(entry.environment)
        if environment is not None:
            drift = version_drift(environment.versions, device.type, candidate)
            flags += [f"other versions: {drift}"] if drift else []
        yield Row(
            problem=problem, level=level, mode=mode, choice=choice, now=now, error=error,
            flags=tuple(flags),
        )  # fmt: skip


def busy() -> str:
    """In words, that other work shares this machine's processors now; "" where none does."""
    cores = os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load <= cores + 0.5:
        return ""
    return f"the load is {load:.1f} on {cores} processors: times mean little on a busy machine"


def order_for(rows: Iterable[Row], table: Table, deadline: float = math.inf) -> Order:
    """What to tune anew: the problems of the rows, at their levels, into the same table."""
    rows = list(rows)
    assert table.path is not None
    return Order(
        workloads=tuple(Workload(problem) for problem in dict.fromkeys(r.problem for r in rows)),
        directory=table.path,
        levels=tuple(level for level in LEVELS if level in {row.level for row in rows}),
        deadline=deadline,
        again=True,
    )


def _is_gone(choice: Choice, now: Ratio) -> bool:
    """Whether the interval reaches below the baseline and lies below the stored one."""
    return now.low < 1.0 and now.high < choice.low


def _error(bench: Workbench, candidate: Candidate) -> tuple[float | None, str]:
    """R and what it exceeds; None where the candidate cannot run."""
    if reasons_not(candidate, bench.problem, bench.device):
        return None, ""
    bound = BY_NAME[candidate.strategy].bound(bench.problem, candidate.kwargs)
    return bench.error(bench.bind(candidate), bound)
