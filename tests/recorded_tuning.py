"""Tuning that replays recorded times, for tests of what the tuner makes of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from invented import GPU

from autogemm.database import Entry, Measured
from autogemm.precision import ErrorBound
from autogemm.problem import Problem, contiguous_problem
from autogemm.strategies import STRATEGIES, Candidate
from autogemm.tuner import Order, Outcome, Progress, tune
from autogemm.workloads import Workload

CUBE = contiguous_problem(512, 512, 512, torch.float32)
SPLIT = Candidate.of("ksplit", form="batched", chunks=2)
IN_TURN = Candidate.of("ksplit", form="sequential", chunks=2)
HALF = Candidate.of("half", dtype="float16")
LEVELS = ("highest", "high", "medium")
FEW = tuple(s for s in STRATEGIES if s.name != "emulated_fp32")
"""Strategies whose candidates are all tried."""

Facts = Mapping[Candidate, float | str]


class Recording:
    """A bench that replays: a time in µs for each candidate, or what became of it.

    Rounds carry a little noise, the same for all candidates of a round, as clocks do.
    """

    def __init__(self, facts: Facts, default: float = 200.0) -> None:
        self.facts = facts
        self.default = default
        self.judged: list[Candidate] = []
        self.screens: dict[Candidate, bool] = {}
        self.finals: list[tuple[str, tuple[Candidate, ...]]] = []
        self.semifinals: list[tuple[str, tuple[Candidate, ...]]] = []
        self.opened: list[Problem] = []
        self.deadly: set[Candidate] = set()

    @contextmanager
    def open(self, problem: Problem) -> Iterator[Recording]:
        self.opened.append(problem)
        yield self

    def us(self, candidate: Candidate) -> float:
        fact = self.facts.get(candidate, self.default)
        return self.default if isinstance(fact, str) else fact

    def prepare(self, candidates: Sequence[Candidate]) -> None:
        pass

    def judge(
        self, candidate: Candidate, bound: ErrorBound, screen: Callable[[float], bool]
    ) -> Measured:
        self.judged.append(candidate)
        if candidate in self.deadly:
            raise SystemExit("a crash")  # passes by every handler of errors, as a crash would
        fact = self.facts.get(candidate, self.default)
        if isinstance(fact, str):
            error = 1e9 if fact == "inaccurate" else None
            return Measured(candidate=candidate, status=fact, error=error, note="as recorded")
        slow = self.screens[candidate] = screen(fact)
        return Measured(
            candidate=candidate,
            status="slow" if slow else "ok",
            graph_us=fact,
            eager_us=None if slow else fact,
            error=0.5 * bound.total,
        )

    def compare(
        self, candidates: Sequence[Candidate], mode: str, rounds: int, *, brief: bool = False
    ) -> dict[Candidate, list[float]]:
        calls = self.semifinals if brief else self.finals
        calls.append((mode, tuple(candidates)))
        noise = [random.Random(i).uniform(1.0, 1.02) for i in range(rounds)]
        return {c: [self.us(c) * x for x in noise] for c in candidates}


def order(tmp_path: Path, *problems: Problem, **facts: object) -> Order:
    given = {"directory": tmp_path / "tables", "storage": str(tmp_path / "trials.journal")}
    workloads = tuple(Workload(problem) for problem in problems or (CUBE,))
    return Order(workloads=workloads, **{**given, **facts})  # type: ignore[arg-type]


def run(
    tmp_path: Path,
    facts: Facts | Recording,
    *problems: Problem,
    stop: Callable[[], bool] = lambda: False,
    report: Callable[[Progress], None] = lambda progress: None,
    **options: object,
) -> tuple[Outcome, Recording]:
    bench = facts if isinstance(facts, Recording) else Recording(facts)
    return tune(order(tmp_path, *problems, **options), GPU, bench.open, report, stop), bench


def only(outcome: Outcome) -> Entry:
    (entry,) = outcome.entries
    return entry


def chosen(entry: Entry, level: str = "highest", mode: str = "graph") -> Candidate:
    return entry.choices[level][mode].candidate


def statuses(entry: Entry) -> dict[Candidate, str]:
    return {row.candidate: row.status for row in entry.measured}


def stopper(count: int) -> tuple[Callable[[Progress], None], Callable[[], bool]]:
    """A report and a stop that end a run after ``count`` candidates."""
    seen: list[Progress] = []

    def report(progress: Progress) -> None:
        if progress.measured is not None:
            seen.append(progress)

    return report, lambda: len(seen) >= count
