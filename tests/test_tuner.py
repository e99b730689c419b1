"""The tuner's decisions on recorded measurements, its memory, and the real bench on a CPU."""

from __future__ import annotations

import itertools
import json
import math
import random
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from invented import AXPBY, BF16, CPU, FULL, GPU, TF32, choice, entry, row

from autogemm import finals, search, strategies, tuner
from autogemm.accuracy import error_norm, sample_references, worst_ratio
from autogemm.database import Choice, Entry, Measured, read_table, table_path
from autogemm.database.prediction import Model
from autogemm.device import Device, device_of
from autogemm.errors import DatabaseError, DatabaseWarning, PluginWarning
from autogemm.finals import choose
from autogemm.journal import open_storage
from autogemm.measure import (
    ALPHA,
    BETA,
    Workbench,
    in_turns,
    ratio,
    screening_saved_us,
    without_directories,
)
from autogemm.operands import make_operands, normal
from autogemm.precision import ErrorBound, Tolerance, growth
from autogemm.problem import LAYOUTS, UPDATES, Problem, Update, _layout, contiguous_problem
from autogemm.search import STARTS, TRIALS, Search, chosen_in, seeds_for
from autogemm.strategies import BY_NAME, STRATEGIES, Candidate, Params, ParamValue, Run, Strategy
from autogemm.strategies.addmm import Addmm
from autogemm.strategies.base import one_of
from autogemm.strategies.ksplit import KSplit
from autogemm.strategies.matmul_axpby import MatmulAxpby
from autogemm.tuner import Order, Outcome, Progress, candidates_for, tune
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


@pytest.fixture(autouse=True)
def _no_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuner, "clocks_of", lambda device: {})


@pytest.fixture(autouse=True)
def _few_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuner, "STRATEGIES", FEW)


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


# --------------------------------------------------------------------------- what is chosen


def test_the_fastest_admissible_candidate_wins_each_level(tmp_path: Path) -> None:
    facts = {FULL: 100.0, AXPBY: 90.0, SPLIT: 80.0, TF32: 40.0, BF16: 20.0}
    outcome, bench = run(tmp_path, facts)
    entry = only(outcome)
    assert chosen(entry, "highest") == SPLIT
    assert chosen(entry, "high") == TF32
    assert chosen(entry, "medium") == BF16
    choice = entry.choices["high"]["graph"]
    assert choice.ratio == pytest.approx(2.5)
    assert choice.low <= choice.ratio <= choice.high
    assert choice.baseline_us / choice.us == pytest.approx(2.5)
    assert choice.rounds == finals.ROUNDS
    assert choice.runner_up == SPLIT
    assert choice.runner_up_ratio == pytest.approx(1.25)
    assert set(bench.judged) == set(candidates_for(CUBE, GPU, LEVELS))
    assert statuses(entry).keys() == set(bench.judged)


def test_graph_and_eager_times_choose_each_for_itself(tmp_path: Path) -> None:
    class Launchy(Recording):
        def compare(
            self, candidates: Sequence[Candidate], mode: str, rounds: int, **how: bool
        ) -> dict[Candidate, list[float]]:
            device = {c: self.us(c) for c in candidates}
            host = 50.0 if mode == "eager" else 0.0
            self.facts = {c: max(us, host) for c, us in device.items()}
            times = super().compare(candidates, mode, rounds, **how)
            self.facts = device
            return times

    entry = only(run(tmp_path, Launchy({FULL: 110.0, AXPBY: 40.0, TF32: 20.0}))[0])
    assert chosen(entry, "highest", "graph") == AXPBY
    assert chosen(entry, "high", "graph") == TF32
    assert chosen(entry, "high", "eager") == AXPBY  # as fast as TF32 there, and simpler
    assert entry.choices["high"]["eager"].us == pytest.approx(50.0, rel=0.03)
    assert entry.choices["high"]["graph"].us == pytest.approx(20.0, rel=0.03)


def test_where_calls_are_long_eager_time_is_graph_time_and_not_measured(tmp_path: Path) -> None:
    outcome, bench = run(tmp_path, Recording({FULL: 3000.0, AXPBY: 2900.0}, default=5000.0))
    assert [mode for mode, _ in bench.finals] == ["graph"]
    assert list(only(outcome).choices["highest"]) == ["graph"]


@pytest.mark.parametrize(
    ("us", "wins"), [(97.0, True), (98.5, False), (100.0, False), (101.0, False), (150.0, False)]
)
def test_the_baseline_stays_unless_it_loses_by_two_percent(
    tmp_path: Path, us: float, wins: bool
) -> None:
    entry = only(run(tmp_path, {FULL: 100.0, AXPBY: us})[0])
    assert chosen(entry) == (AXPBY if wins else FULL)
    if not wins:
        assert entry.choices["highest"]["graph"].ratio == pytest.approx(1.0)


def test_the_baseline_stays_where_the_interval_reaches_one() -> None:
    draw = random.Random(5)
    base = [100.0] * 20
    noisy = [100.0 / draw.choice([0.8, 1.3]) for _ in range(20)]
    noisy[:11] = [100.0 / 1.3] * 11  # the median says 1.3, seven rounds say 0.8
    noisy[11:18] = [100.0 / 0.8] * 7
    result = ratio(base, noisy)
    assert result.median > 1.2
    assert result.low < 1 < result.high
    choice = choose({FULL: base, AXPBY: noisy}, FULL)
    assert choice is not None
    assert choice.candidate == FULL
    assert choice.runner_up == AXPBY


def test_what_waits_for_the_host_wins_clear_of_its_scatter() -> None:
    base = [100.0] * 20
    scattered = [100.0 / 1.5] * 13 + [100.0 / 1.05] * 7  # the interval reaches down to 1.05
    assert ratio(base, scattered).low == pytest.approx(1.05)
    for host_bound, winner in (((), AXPBY), ((FULL, AXPBY), FULL)):
        found = choose({FULL: base, AXPBY: scattered}, FULL, host_bound)
        assert found is not None
        assert found.candidate == winner


def test_ties_go_to_the_simplest_strategy(tmp_path: Path) -> None:
    entry = only(run(tmp_path, {FULL: 100.0, TF32: 50.0, HALF: 49.8, SPLIT: 50.2})[0])
    assert chosen(entry, "high") == SPLIT
    entry = only(run(tmp_path / "2", {FULL: 100.0, TF32: 50.0, HALF: 49.8, SPLIT: 52.0})[0])
    assert chosen(entry, "high") == TF32
    entry = only(run(tmp_path / "3", {FULL: 100.0, TF32: 50.0, HALF: 48.0})[0])
    assert chosen(entry, "high") == HALF


class Throttled(Recording):
    """A device whose clocks fall where it works for long: candidates in turns take other times."""

    def __init__(self, alone: Facts, in_turns: Facts) -> None:
        super().__init__(alone)
        self.in_turns = in_turns

    def compare(
        self, candidates: Sequence[Candidate], mode: str, rounds: int, *, brief: bool = False
    ) -> dict[Candidate, list[float]]:
        alone, self.facts = self.facts, self.in_turns
        try:
            return super().compare(candidates, mode, rounds, brief=brief)
        finally:
            self.facts = alone


DEEP = replace(CUBE, k=2**20)


def parts_of_k() -> list[Candidate]:
    """Candidates that serve every level of a deep product."""
    found = [c for c in candidates_for(DEEP, GPU, LEVELS) if c.strategy == "ksplit"]
    assert len(found) >= 9
    return found


def test_what_is_fastest_in_turns_is_found_though_others_are_ahead_alone(tmp_path: Path) -> None:
    *ahead, behind = others = parts_of_k()[:9]
    alone = {FULL: 120.0, behind: 91.0} | {c: 80.0 + i / 10 for i, c in enumerate(ahead)}
    bench = Throttled(alone, {FULL: 110.0, behind: 90.0} | dict.fromkeys(ahead, 99.0))
    outcome, _ = run(tmp_path, bench, DEEP)
    assert chosen(only(outcome)) == behind
    assert {mode for mode, _ in bench.semifinals} == {"graph", "eager"}
    for _, entrants in bench.semifinals:
        assert set(others) | {FULL} <= set(entrants), "the baseline tells how clocks differ"
        assert all(alone.get(c, 200.0) <= 1.15 * 80.0 or c.strategy == "addmm" for c in entrants)
    assert all(set(ahead) - set(entrants) for _, entrants in bench.finals)


def test_rows_have_times_that_can_be_compared(tmp_path: Path) -> None:
    """Alone the clocks are a quarter faster than in turns, and a row may stay at one of both."""
    *near, far = parts_of_k()[:6]
    alone = {FULL: 120.0, far: 100.0} | dict.fromkeys(near, 80.0)
    in_turns = {FULL: 150.0} | {c: 90.0 + i for i, c in enumerate(near)}
    outcome, bench = run(tmp_path, Throttled(alone, in_turns), DEEP)
    rows = {row.candidate: row for row in only(outcome).measured}
    noise = statistics.median(random.Random(i).uniform(1.0, 1.02) for i in range(20))
    for i, candidate in enumerate(near):
        for us in (rows[candidate].graph_us, rows[candidate].eager_us):
            assert us == pytest.approx((90.0 + i) * noise, rel=0.015)
    assert rows[FULL].graph_us == pytest.approx(150.0 * noise, rel=0.015)
    assert rows[far].graph_us == pytest.approx(100.0 * 150.0 / 120.0 * noise, rel=0.015)
    assert not any(far in entrants for _, entrants in bench.finals)


def test_what_was_far_behind_alone_does_not_pass_those_timed_in_turns(tmp_path: Path) -> None:
    *near, far = parts_of_k()[:6]
    alone = {FULL: 150.0, far: 93.0} | dict.fromkeys(near, 80.0)
    bench = Throttled(alone, {FULL: 180.0, far: 100.0} | dict.fromkeys(near, 96.0))
    outcome, _ = run(tmp_path, bench, DEEP)
    assert chosen(only(outcome)) in near
    assert bench.semifinals != []
    assert not any(far in entrants for _, entrants in bench.finals + bench.semifinals)


def test_so_many_are_timed_in_turns_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finals, "SEMIFINALISTS", 5)
    bench = Recording(dict.fromkeys(parts_of_k(), 80.0) | {FULL: 100.0}, default=90.0)
    run(tmp_path, bench, DEEP, levels=("highest",))
    assert {len(entrants) for _, entrants in bench.semifinals} == {6}, "five and the baseline"


def test_a_level_has_semifinalists_of_its_own(tmp_path: Path) -> None:
    """What is near the best at one level does not pass what is faster at another."""
    deep = parts_of_k()
    facts: dict[Candidate, float | str] = {FULL: 120.0, TF32: 50.0, HALF: 58.0}
    facts |= {c: 98.0 + i / 10 for i, c in enumerate(deep)}
    _, bench = run(tmp_path, Recording(facts, default=130.0), DEEP)
    assert bench.semifinals != []
    assert all({TF32, HALF} <= set(entrants) for _, entrants in bench.finals)


def test_where_memory_is_short_for_semifinals_the_finals_take_place(tmp_path: Path) -> None:
    class Tight(Recording):
        def compare(self, candidates: Sequence[Candidate], *rest: Any, **how: bool) -> Any:
            if len(candidates) > 8:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().compare(candidates, *rest, **how)

    best, *others = parts_of_k()[:9]
    bench = Tight({FULL: 100.0, best: 80.0} | dict.fromkeys(others, 85.0))
    outcome, _ = run(tmp_path, bench, DEEP)
    assert chosen(only(outcome)) == best


@pytest.mark.parametrize(("seconds", "rounds"), [(1e-3, 20), (1.0, 20), (4.0, 10), (60.0, 6)])
def test_products_that_take_seconds_have_fewer_rounds(
    seconds: float, rounds: int, tmp_path: Path
) -> None:
    class Patient(Recording):
        def compare(
            self, candidates: Sequence[Candidate], mode: str, rounds: int, **how: bool
        ) -> Any:
            asked.append((len(candidates), rounds))
            return super().compare(candidates, mode, rounds, **how)

    asked: list[tuple[int, int]] = []
    bench = Patient({FULL: 1e6 * seconds}, default=1e6 * seconds)
    outcome, _ = run(tmp_path, bench, replace(CUBE, dtype=torch.float64))
    entrants, taken = asked[-1]
    expected = {20: 20, 10: int(120 / (entrants * seconds)), 6: 6}[rounds]
    assert taken == expected
    assert only(outcome).choices["highest"]["graph"].rounds == taken


def test_a_bench_ticks_between_calls() -> None:
    ticks: list[int] = []
    with Workbench.open(
        replace(CUBE, m=8, n=8, k=8, device_type="cpu"), device_of(CPU), CPU,
        tick=lambda: ticks.append(0),
    ) as bench:  # fmt: skip
        bench.judge(FULL, ErrorBound(8.0, 8.0), lambda us: False)
        before = len(ticks)
        assert before > 5
        bench.compare([FULL], "eager", 7)
        assert len(ticks) >= before + 7


def test_what_is_only_ranked_runs_shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def eager(bench: Workbench, run: object, length: float = 1500.0) -> Callable[[], float]:
        asked.append(length)
        return lambda: 1.0

    monkeypatch.setattr(Workbench, "eager", eager)
    with Workbench.open(replace(CUBE, m=8, n=8, k=8, device_type="cpu"), device_of(CPU), CPU) as b:
        b.compare([FULL], "eager", 1, brief=True)
        b.compare([FULL], "eager", 1)
    assert asked[0] < asked[1]


def test_a_cpu_keeps_its_clocks_and_has_no_semifinals(tmp_path: Path) -> None:
    problem, here = replace(DEEP, device_type="cpu"), device_of(CPU)
    everything = candidates_for(problem, here, LEVELS)
    assert len(everything) > 9
    bench = Recording(dict.fromkeys(everything, 80.0))
    tune(order(tmp_path, problem), here, bench.open)
    assert bench.semifinals == []
    assert bench.finals != []


def test_a_few_that_are_near_go_to_the_finals_at_once(tmp_path: Path) -> None:
    _, bench = run(tmp_path, {FULL: 100.0, SPLIT: 99.0, IN_TURN: 98.0})
    assert bench.semifinals == []
    assert bench.finals != []


@pytest.mark.parametrize("status", ["inaccurate", "failed", "unsupported"])
def test_what_was_not_measured_well_is_recorded_and_never_chosen(
    tmp_path: Path, status: str
) -> None:
    outcome, bench = run(tmp_path, {FULL: 100.0, AXPBY: 70.0, TF32: status, SPLIT: status})
    entry = only(outcome)
    for level in LEVELS:
        assert chosen(entry, level) == AXPBY
    assert statuses(entry)[TF32] == statuses(entry)[SPLIT] == status
    assert all(TF32 not in entrants for _, entrants in bench.finals)
    path = table_path(tmp_path / "tables", GPU)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table, problems = read_table(path)
    assert problems == []
    rows = {row.candidate: row for row in next(iter(table.entries.values())).measured}
    assert rows[TF32].status == status
    assert rows[TF32].note == "as recorded"


def test_a_baseline_that_fails_leaves_no_choice_and_ends_no_run(tmp_path: Path) -> None:
    other = replace(CUBE, m=256)
    bench = Recording({FULL: "failed", AXPBY: 50.0})
    outcome, _ = run(tmp_path, bench, CUBE, other)
    assert len(outcome.entries) == 2
    assert outcome.entries[0].choices == {}
    assert all(FULL not in entrants for _, entrants in bench.finals)


def test_a_problem_too_large_for_the_memory_ends_no_run(tmp_path: Path) -> None:
    huge = replace(CUBE, m=2**30)

    class Small(Recording):
        @contextmanager
        def open(self, problem: Problem) -> Iterator[Recording]:
            if problem == huge:
                raise torch.OutOfMemoryError("CUDA out of memory")
            yield self

    outcome, _ = run(tmp_path, Small({FULL: 100.0}), huge, CUBE)
    assert [entry.problem for entry in outcome.entries] == [CUBE]
    assert outcome.unfinished == 0, "to run the command again would change nothing"


class Noisy(Recording):
    """A bench that measures error norms too: ``norms``, and 1e-7 for whatever is not in there."""

    def __init__(self, facts: Facts, norms: Mapping[Candidate, float | None]) -> None:
        super().__init__(facts)
        self.norms = norms

    def judge(self, *args: object) -> Measured:
        measured = super().judge(*args)  # type: ignore[arg-type]
        return replace(measured, error_norm=self.norms.get(measured.candidate, 1e-7))


@pytest.fixture
def emulations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two strategies that are taken to multiply in a narrower type."""
    monkeypatch.setattr(MatmulAxpby, "emulates", True)
    monkeypatch.setattr(KSplit, "emulates", True)


def test_float32_itself_may_sum_in_another_order(tmp_path: Path) -> None:
    outcome, _ = run(tmp_path, Noisy({FULL: 100.0, AXPBY: 50.0}, {AXPBY: 2e-7}))
    assert chosen(only(outcome), "highest") == AXPBY


@pytest.mark.usefixtures("emulations")
def test_a_faster_emulation_that_is_noisier_is_chosen_below_the_highest_level_alone(
    tmp_path: Path,
) -> None:
    facts = {FULL: 100.0, AXPBY: 50.0, SPLIT: 80.0}
    outcome, bench = run(tmp_path, Noisy(facts, {AXPBY: 2e-7, SPLIT: 0.5e-7}))
    entry = only(outcome)
    assert chosen(entry, "highest") == SPLIT
    assert chosen(entry, "high") == chosen(entry, "medium") == AXPBY
    assert entry.choices["highest"]["graph"].runner_up != AXPBY
    assert statuses(entry)[AXPBY] == "ok"
    assert {r.candidate: r.error_norm for r in entry.measured}[AXPBY] == 2e-7
    assert any(AXPBY in entrants for _, entrants in bench.finals)
    only_highest = Noisy(facts, {AXPBY: 2e-7})
    run(tmp_path / "2", only_highest, levels=("highest",))
    assert not any(AXPBY in entrants for _, entrants in only_highest.finals)
    table, problems = read_table(table_path(tmp_path / "tables", GPU))
    assert problems == []
    (kept,) = table.entries.values()
    assert {r.candidate: r.error_norm for r in kept.measured}[SPLIT] == 0.5e-7


@pytest.mark.usefixtures("emulations")
@pytest.mark.parametrize(
    ("base", "norm", "wins"),
    [(1e-7, 1.009e-7, True), (1e-7, 1.011e-7, False), (1e-7, 0.0, True), (0.0, 1e-9, False),
     (None, 1.0, True), (1e-7, None, True)],
)  # fmt: skip
def test_noise_within_a_hundredth_of_the_baselines_is_no_reason(
    tmp_path: Path, base: float | None, norm: float | None, wins: bool
) -> None:
    """Nor is there one where either was not measured."""
    bench = Noisy({FULL: 100.0, AXPBY: 50.0}, {FULL: base, AXPBY: norm})
    entry = only(run(tmp_path, bench)[0])
    assert chosen(entry, "highest") == (AXPBY if wins else FULL)
    assert chosen(entry, "high") == AXPBY


@pytest.mark.usefixtures("emulations")
def test_what_is_too_noisy_to_be_chosen_does_not_cut_short_what_is_not(tmp_path: Path) -> None:
    """In whatever order they come, although its bound is the smaller one."""
    first = set()
    for i in range(6):
        bench = Noisy({FULL: 100.0, SPLIT: 50.0, AXPBY: 80.0}, {SPLIT: 2e-7})
        entry = only(run(tmp_path / str(i), bench, replace(CUBE, m=256 + 64 * i))[0])
        assert chosen(entry, "highest") == AXPBY
        assert chosen(entry, "high") == SPLIT
        first.add(min(SPLIT, AXPBY, key=bench.judged.index))
    assert first == {SPLIT, AXPBY}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.complex64])
def test_noise_is_judged_in_float32_alone(tmp_path: Path, dtype: torch.dtype) -> None:
    bench = Noisy({FULL: 100.0, AXPBY: 50.0}, {AXPBY: 1e-3})
    entry = only(run(tmp_path, bench, contiguous_problem(512, 512, 512, dtype))[0])
    assert chosen(entry, "highest") == AXPBY


# --------------------------------------------------------------------------------- screening


def test_screening_is_against_candidates_at_least_as_accurate(tmp_path: Path) -> None:
    """A slow accurate candidate is timed in full although a fast sloppy one is known."""

    bench = Recording({FULL: 100.0, AXPBY: 120.0, IN_TURN: 125.0, TF32: 20.0, BF16: 60.0})
    entry = only(run(tmp_path, bench)[0])
    bounds = {c: BY_NAME[c.strategy].bound(CUBE, c.kwargs).total for c in bench.judged}
    for i, candidate in enumerate(bench.judged):
        us = bench.us(candidate)
        rivals = [
            bench.us(c)
            for c in bench.judged[:i]
            if bounds[c] <= bounds[candidate] and not bench.screens[c]
        ]
        expected = us > search.SCREEN_RATIO * min(rivals, default=math.inf)
        assert bench.screens[candidate] == expected, str(candidate)
    assert statuses(entry)[AXPBY] == "ok"  # not 6 times slower than TF32, which is no rival
    assert bench.judged[0] == FULL
    slow = {c for c, status in statuses(entry).items() if status == "slow"}
    assert slow
    assert all(c not in entrants for c in slow for _, entrants in bench.finals)


def test_the_first_candidate_is_never_screened(tmp_path: Path) -> None:
    bench = run(tmp_path, {FULL: 1e6})[1]
    assert bench.screens[FULL] is False


def test_what_screening_saved_is_told_for_what_was_screened_alone() -> None:
    spared = screening_saved_us(Measured(candidate=AXPBY, status="slow", graph_us=500.0))
    assert spared > screening_saved_us(Measured(candidate=AXPBY, status="slow", eager_us=500.0))
    assert screening_saved_us(Measured(candidate=AXPBY, status="slow", graph_us=1e6)) >= 4e6
    assert screening_saved_us(Measured(candidate=AXPBY, status="ok", graph_us=500.0)) == 0
    assert screening_saved_us(Measured(candidate=AXPBY, status="failed")) == 0


# ------------------------------------------------------------------- stopping and going on


def stopper(count: int) -> tuple[Callable[[Progress], None], Callable[[], bool]]:
    """A report and a stop that end a run after ``count`` candidates."""
    seen: list[Progress] = []

    def report(progress: Progress) -> None:
        if progress.measured is not None:
            seen.append(progress)

    return report, lambda: len(seen) >= count


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path, count: int) -> None:
    facts = {FULL: 100.0, AXPBY: 90.0, TF32: 30.0}
    report, stop = stopper(count)
    first, before = run(tmp_path, facts, report=report, stop=stop)
    assert (len(before.judged), first.measured) == (count, count)
    assert (first.entries, first.unfinished) == ((), 1)
    assert not table_path(tmp_path / "tables", GPU).exists()
    second, after = run(tmp_path, facts)
    everything = candidates_for(CUBE, GPU, LEVELS)
    assert len(before.judged) + len(after.judged) == len(everything)
    assert set(before.judged) | set(after.judged) == set(everything)
    assert second.unfinished == 0
    straight, _ = run(tmp_path / "straight", facts)
    assert only(second).choices == only(straight).choices
    assert set(only(second).measured) == set(only(straight).measured)


def test_a_second_run_measures_nothing_and_changes_no_byte(tmp_path: Path) -> None:
    problems = (CUBE, replace(CUBE, m=256), contiguous_problem(64, 64, 64, torch.float64))
    first, _ = run(tmp_path, {FULL: 100.0, TF32: 30.0}, *problems)
    path = table_path(tmp_path / "tables", GPU)
    before = path.read_bytes()
    seen: list[Progress] = []
    second, bench = run(tmp_path, {}, *problems, report=seen.append)
    assert (bench.judged, bench.finals, bench.opened) == ([], [], [])
    assert (second.reused, second.measured, second.unfinished) == (3, 0, 0)
    assert path.read_bytes() == before
    assert [p.done for p in seen] == [1, 2, 3]
    assert all(p.reused and p.entry is not None for p in seen)
    assert [e.key for e in second.entries] == [e.key for e in first.entries]


def test_again_measures_anew(tmp_path: Path) -> None:
    run(tmp_path, {FULL: 100.0, AXPBY: 50.0})
    outcome, bench = run(tmp_path, {FULL: 100.0, AXPBY: 200.0, TF32: 10.0}, again=True)
    assert set(bench.judged) == set(candidates_for(CUBE, GPU, LEVELS))
    assert outcome.reused == 0
    assert chosen(only(outcome)) == FULL
    assert chosen(only(outcome), "high") == TF32
    table, _ = read_table(table_path(tmp_path / "tables", GPU))
    assert chosen(next(iter(table.entries.values()))) == FULL


def test_measuring_again_that_was_interrupted_goes_on_where_it_was(tmp_path: Path) -> None:
    first, second, third = CUBE, replace(CUBE, m=256), replace(CUBE, n=256)
    facts = {FULL: 100.0, AXPBY: 50.0}
    run(tmp_path, facts, first, second, third)
    whole = len(candidates_for(CUBE, GPU, LEVELS))
    bench = Recording({FULL: 100.0, AXPBY: 200.0})
    stop_at = whole + 3
    outcome, _ = run(
        tmp_path, bench, first, second, third, again=True, stop=lambda: len(bench.judged) >= stop_at
    )
    assert (outcome.unfinished, len(bench.judged)) == (2, stop_at)
    later = Recording({FULL: 100.0, AXPBY: 200.0})
    outcome, _ = run(tmp_path, later, first, second, third, again=True)  # the same command
    assert (outcome.unfinished, outcome.reused) == (0, 1)
    assert later.opened == [second, third]
    assert len(later.judged) == 2 * whole - 3
    assert {chosen(entry) for entry in outcome.entries} == {FULL}
    anew = Recording(facts)
    outcome, _ = run(tmp_path, anew, first, second, third, again=True)  # that one had ended
    assert (outcome.reused, len(anew.judged)) == (0, 3 * whole)
    assert {chosen(entry) for entry in outcome.entries} == {AXPBY}
    other = Recording(facts)
    assert run(tmp_path, other, second, again=True)[0].reused == 0, "another order begins anew"


def test_what_is_killed_before_it_is_written_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table is written every few seconds: a finished problem may not be in it yet."""
    run(tmp_path, {FULL: 100.0, AXPBY: 50.0})
    other = replace(CUBE, m=256)

    class Mortal(Recording):
        def judge(self, candidate: Candidate, *rest: Any) -> Measured:
            if self.opened[-1] == other:
                raise SystemExit("a crash")
            return super().judge(candidate, *rest)

    monkeypatch.setattr(tuner.Writer, "__exit__", lambda *_: None)  # kill -9 flushes nothing
    with pytest.raises(SystemExit):
        run(tmp_path, Mortal({FULL: 100.0, AXPBY: 200.0}), CUBE, other, again=True)
    monkeypatch.undo()
    monkeypatch.setattr(tuner, "clocks_of", lambda device: {})
    monkeypatch.setattr(tuner, "STRATEGIES", FEW)
    outcome, _ = run(tmp_path, {FULL: 100.0, AXPBY: 200.0}, CUBE, other, again=True)
    assert outcome.reused == 0
    assert {chosen(entry) for entry in outcome.entries} == {FULL}


def test_measuring_again_ends_though_a_problem_does_not_fit_into_memory(tmp_path: Path) -> None:
    class Small(Recording):
        @contextmanager
        def open(self, problem: Problem) -> Iterator[Recording]:
            if problem.m == 256:
                raise torch.OutOfMemoryError("CUDA out of memory")
            with super().open(problem):
                yield self

    for _ in range(2):
        bench = Small({FULL: 100.0})
        outcome, _ = run(tmp_path, bench, CUBE, replace(CUBE, m=256), again=True)
        assert outcome.reused == 0
        assert bench.opened == [CUBE]


def test_the_old_choice_takes_part_in_the_finals_again(tmp_path: Path) -> None:
    run(tmp_path, {FULL: 100.0, IN_TURN: 50.0})
    facts = {FULL: 100.0, AXPBY: 101.0, SPLIT: 102.0, IN_TURN: 110.0}
    bench = run(tmp_path, Recording(facts, default=103.0), again=True)[1]
    for _, entrants in bench.finals:
        assert IN_TURN in entrants
        assert FULL in entrants


def test_a_run_told_to_measure_again_that_dies_goes_on_and_does_not_start_over(
    tmp_path: Path,
) -> None:
    """Its replacement has the same order; a candidate that always crashes must not loop."""
    run(tmp_path, {FULL: 100.0})
    again = order(tmp_path, again=True)
    bench = Recording({FULL: 100.0, AXPBY: 50.0})
    bench.deadly = {TF32}
    for _ in range(2):
        with pytest.raises(SystemExit):
            tune(again, GPU, bench.open)
    entry = only(tune(again, GPU, bench.open))
    assert statuses(entry)[TF32] == "failed"
    counts = {c: bench.judged.count(c) for c in bench.judged}
    assert counts.pop(TF32) == 2
    assert set(counts.values()) == {1}


def test_a_new_kind_of_candidate_is_reason_to_measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = tuple(s for s in FEW if s.name != "ksplit")
    monkeypatch.setattr(tuner, "STRATEGIES", without)
    assert not any(c.strategy == "ksplit" for c in run(tmp_path, {FULL: 100.0})[1].judged)
    monkeypatch.setattr(tuner, "STRATEGIES", FEW)
    outcome, bench = run(tmp_path, {FULL: 100.0, SPLIT: 50.0})
    assert outcome.reused == 0
    assert set(bench.judged) == set(candidates_for(CUBE, GPU, LEVELS))
    assert chosen(only(outcome)) == SPLIT


def test_other_software_is_reason_to_measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = only(run(tmp_path, {FULL: 100.0, AXPBY: 50.0})[0])
    versions = {**tuner.software_versions("cuda"), "torch": "99.0"}
    monkeypatch.setattr(tuner, "software_versions", lambda device_type: versions)
    outcome, bench = run(tmp_path, {FULL: 100.0, AXPBY: 200.0})
    assert set(bench.judged) == set(candidates_for(CUBE, GPU, LEVELS))
    new = only(outcome)
    assert new.environment != old.environment
    assert chosen(new) == FULL
    table, problems = read_table(table_path(tmp_path / "tables", GPU))
    assert problems == []
    assert list(table.environments) == [new.environment]


def test_a_candidate_that_takes_its_process_along_is_tried_twice_and_then_has_failed(
    tmp_path: Path,
) -> None:
    bench = Recording({FULL: 100.0, AXPBY: 50.0})
    bench.deadly = {TF32}
    for deaths in (1, 2):
        with pytest.raises(SystemExit):
            run(tmp_path, bench)
        assert bench.judged.count(TF32) == deaths
    outcome, _ = run(tmp_path, bench)
    assert bench.judged.count(TF32) == 2
    entry = only(outcome)
    row = next(r for r in entry.measured if r.candidate == TF32)
    assert row.status == "failed"
    assert "died or hung twice" in row.note
    assert chosen(entry, "high") == AXPBY
    others = [c for c in bench.judged if c != TF32]
    assert len(others) == len(set(others)), "something was measured twice"


def test_a_candidate_that_dies_once_and_then_runs_is_judged_by_that(tmp_path: Path) -> None:
    bench = Recording({FULL: 100.0, TF32: 20.0})
    bench.deadly = {TF32}
    with pytest.raises(SystemExit):
        run(tmp_path, bench)
    bench.deadly = set()
    assert chosen(only(run(tmp_path, bench)[0]), "high") == TF32


def test_finished_problems_are_in_the_table_when_a_later_one_kills_the_run(
    tmp_path: Path,
) -> None:
    other = replace(CUBE, m=256)

    class Mortal(Recording):
        def judge(self, *args: object) -> Measured:
            if self.opened[-1] == other:
                raise SystemExit("a crash")
            return super().judge(*args)  # type: ignore[arg-type]

    with pytest.raises(SystemExit):
        run(tmp_path, Mortal({FULL: 100.0}), CUBE, other)
    table, _ = read_table(table_path(tmp_path / "tables", GPU))
    assert [entry.problem for entry in table.entries.values()] == [CUBE]


def test_a_kill_between_two_steps_of_a_trial_leaves_nothing_to_stumble_over(
    tmp_path: Path,
) -> None:
    """A trial that has no candidate yet counts for none; one that has a row is finished."""
    report, stop = stopper(1)
    run(tmp_path, {FULL: 100.0}, report=report, stop=stop)
    with open_storage(str(tmp_path / "trials.journal"), GPU) as storage:
        (name,) = optuna.get_all_study_names(storage)
        study = optuna.load_study(study_name=name, storage=storage)
        study.ask()
        measured = study.ask()
        measured.set_user_attr("candidate", str(TF32))
        measured.set_user_attr("row", json.dumps({"status": "ok", "graph_us": 7.0}))
    outcome, bench = run(tmp_path, {FULL: 100.0})
    assert TF32 not in bench.judged
    entry = only(outcome)
    assert set(statuses(entry).values()) <= {"ok", "slow"}
    assert {r.candidate for r in entry.measured} == set(candidates_for(CUBE, GPU, LEVELS))
    with open_storage(str(tmp_path / "trials.journal"), GPU) as storage:
        study = optuna.load_study(study_name=name, storage=storage)
    assert [t.state.name for t in study.trials[:3]] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert study.best_value == math.log(7.0)


@pytest.mark.parametrize("torn", [b'{"op_code": 6, "worker', b"\x00\x00\x00", b"{"])
def test_a_torn_last_line_of_the_journal_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    report, stop = stopper(3)
    before = run(tmp_path, {FULL: 100.0}, report=report, stop=stop)[1]
    journal = tmp_path / "trials.journal"
    whole = journal.read_bytes()
    journal.write_bytes(whole + torn)
    outcome, after = run(tmp_path, {FULL: 100.0})
    assert outcome.unfinished == 0
    assert not set(before.judged) & set(after.judged)
    assert journal.read_bytes().startswith(whole)
    assert all(json.loads(line) for line in journal.read_text().splitlines())


def test_a_second_tuner_on_the_same_trials_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autogemm.journal._PATIENCE_S", 0.1)
    with open_storage(str(tmp_path / "trials.journal"), GPU):
        with pytest.raises(DatabaseError, match=r"another tuner is running .*--storage PATH"):
            run(tmp_path, {FULL: 100.0})
        run(tmp_path, {FULL: 100.0}, storage=str(tmp_path / "others.journal"))
    assert run(tmp_path, {FULL: 100.0})[0].reused == 1


def test_a_journal_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DatabaseError, match=r"cannot keep trials there .*--storage"):
        run(tmp_path, {FULL: 100.0}, storage=str(tmp_path / "file" / "trials.journal"))


def test_trials_may_be_kept_under_a_url_or_a_relative_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for storage in (f"sqlite:///{tmp_path}/trials.db", "trials.journal"):
        report, stop = stopper(2)
        folder = tmp_path / storage[:3]
        before = run(folder, {FULL: 1.0}, report=report, stop=stop, storage=storage)[1]
        after = run(folder, {FULL: 1.0}, storage=storage)[1]
        assert not set(before.judged) & set(after.judged)
        assert (tmp_path / f"trials.{'db' if '://' in storage else 'journal'}").exists()


def test_the_trials_can_be_read_with_optuna(tmp_path: Path) -> None:
    run(tmp_path, {FULL: 100.0, TF32: "inaccurate", BF16: "failed", SPLIT: 300.0})
    with open_storage(str(tmp_path / "trials.journal"), GPU) as storage:
        (name,) = optuna.get_all_study_names(storage)
        study = optuna.load_study(study_name=name, storage=storage)
    assert "example-gpu" in name
    assert "float32 512x512x512" in name
    trials = {t.user_attrs["candidate"]: t for t in study.trials}
    assert len(trials) == len(study.trials) == len(candidates_for(CUBE, GPU, LEVELS))
    assert trials[str(FULL)].state.name == "COMPLETE"
    assert trials[str(SPLIT)].value == pytest.approx(math.log(300.0))  # slow, and its time known
    assert trials[str(TF32)].state.name == "PRUNED"
    assert trials[str(BF16)].state.name == "FAIL"
    assert study.best_trial.user_attrs["candidate"] == str(FULL)
    assert study.best_trial.value == pytest.approx(math.log(100.0))


# ------------------------------------------------------------------- deadlines, levels, order


def test_nothing_is_started_after_the_deadline(tmp_path: Path) -> None:
    problems = (CUBE, replace(CUBE, m=256))
    outcome, bench = run(tmp_path, {FULL: 100.0}, *problems, deadline=time.time() - 1)
    assert (bench.judged, bench.finals) == ([], [])
    assert (outcome.entries, outcome.unfinished) == ((), 2)
    run(tmp_path, {FULL: 100.0}, CUBE)
    outcome, bench = run(tmp_path, {FULL: 100.0}, *problems, deadline=time.time() - 1)
    assert (outcome.reused, outcome.unfinished, bench.judged) == (1, 1, [])


def test_a_deadline_reached_on_the_way_keeps_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(tuner.time, "time", lambda: now[0])

    class Slow(Recording):
        def judge(self, *args: object) -> Measured:
            now[0] += 10.0
            return super().judge(*args)  # type: ignore[arg-type]

    first = run(tmp_path, Slow({FULL: 100.0}), deadline=35.0)[1]
    assert len(first.judged) == 4
    outcome, rest = run(tmp_path, Slow({FULL: 100.0}))
    assert not set(first.judged) & set(rest.judged)
    assert outcome.unfinished == 0


def test_a_level_tuned_later_joins_those_tuned_before(tmp_path: Path) -> None:
    facts = {FULL: 100.0, AXPBY: 90.0, TF32: 40.0, BF16: 20.0}
    run(tmp_path, facts, levels=("high",))
    outcome, bench = run(tmp_path, facts, levels=("highest",))
    assert TF32 not in bench.judged
    entry = only(outcome)
    assert set(entry.choices) == {"highest", "high"}
    assert chosen(entry, "highest") == AXPBY
    assert chosen(entry, "high") == TF32
    assert {TF32, AXPBY, FULL} <= set(statuses(entry)), "evidence of the other level is lost"
    table, problems = read_table(table_path(tmp_path / "tables", GPU))
    assert problems == []
    assert set(next(iter(table.entries.values())).choices) == {"highest", "high"}
    again, bench = run(tmp_path, facts, levels=("high", "highest"))
    assert (again.reused, bench.judged) == (1, [])
    full, _ = run(tmp_path, facts)
    assert set(only(full).choices) == set(LEVELS)


@pytest.mark.parametrize("again", [False, True])
def test_what_another_process_tunes_meanwhile_stays(tmp_path: Path, again: bool) -> None:
    """It began with the same table and ends first, at another level of the same problem."""
    facts = {FULL: 100.0, AXPBY: 90.0, TF32: 40.0, BF16: 20.0}
    others = order(tmp_path, storage=str(tmp_path / "others.journal"), levels=("highest",))
    started: list[Progress] = []

    def report(progress: Progress) -> None:
        started.append(progress)
        if len(started) == 1:
            tune(others, GPU, Recording(facts).open)

    mine = order(tmp_path, CUBE, levels=("high",), again=again)
    outcome = tune(mine, GPU, Recording(facts).open, report)
    assert set(only(outcome).choices) == {"high"}, "as it knows"
    table, problems = read_table(table_path(tmp_path / "tables", GPU))
    assert problems == []
    (entry,) = table.entries.values()
    assert chosen(entry, "highest") == AXPBY
    assert chosen(entry, "high") == TF32
    assert {FULL, AXPBY, TF32} <= set(statuses(entry))
    rest, bench = run(tmp_path, facts, levels=("highest", "high"))
    assert (rest.reused, bench.judged) == (1, []), "both are known to be searched"


@pytest.mark.parametrize("again", [False, True])
def test_rows_of_other_levels_stay_where_there_is_more_to_search_now(
    tmp_path: Path, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = next(c for c in candidates_for(CUBE, GPU, LEVELS) if c.strategy == "ksplit")
    few = tuple(s for s in FEW if s.name != "matmul_axpby")
    monkeypatch.setattr(tuner, "STRATEGIES", few)
    run(tmp_path, {FULL: 100.0, TF32: 40.0, BF16: 20.0})
    less = tuple(s for s in FEW if s.name != "ksplit")
    monkeypatch.setattr(tuner, "STRATEGIES", less)
    entry = only(run(tmp_path, {FULL: 90.0, AXPBY: 30.0}, levels=("highest",), again=again)[0])
    assert {FULL, AXPBY, TF32, BF16} <= set(statuses(entry))
    assert gone not in statuses(entry)
    assert chosen(entry) == AXPBY
    assert chosen(entry, "high") == TF32


@pytest.mark.parametrize("more", [{"nvmath": "1.0"}, {"torch": "99.0"}], ids=["more", "other"])
def test_other_levels_stay_where_there_is_only_more_software_now(
    tmp_path: Path, more: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = {FULL: 100.0, AXPBY: 90.0, TF32: 40.0, BF16: 20.0}
    run(tmp_path, facts)
    versions = {**tuner.software_versions("cuda"), **more}
    monkeypatch.setattr(tuner, "software_versions", lambda device_type: versions)
    entry = only(run(tmp_path, {FULL: 100.0, AXPBY: 50.0}, levels=("highest",))[0])
    assert entry.choices["highest"]["graph"].us < 60.0
    if "torch" in more:  # measurements under other versions are not mixed
        assert set(entry.choices) == {"highest"}
        assert TF32 not in statuses(entry)
    else:
        assert [chosen(entry, level) for level in ("high", "medium")] == [TF32, BF16]
        assert len(entry.measured) == len(candidates_for(CUBE, GPU, LEVELS))
    table, problems = read_table(table_path(tmp_path / "tables", GPU))
    assert problems == []
    assert only(run(tmp_path, facts, levels=("highest",))[0]) == table.entries[entry.key]
    outcome, bench = run(tmp_path, facts, levels=("high",))
    assert outcome.reused == 0, "it was not tuned under this software"
    assert TF32 in bench.judged


def test_a_level_that_was_not_searched_again_is_not_taken_for_tuned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = tuple(s for s in FEW if s.name != "matmul_axpby")
    facts = {FULL: 100.0, AXPBY: 30.0, TF32: 40.0, BF16: 20.0}
    with monkeypatch.context() as then:
        then.setattr(tuner, "STRATEGIES", few)
        run(tmp_path, facts)
    for levels, reused in (
        (("highest",), 0), (("highest",), 1), (("high",), 0), (("highest", "high"), 1), (LEVELS, 0),
        (LEVELS, 1), (("medium",), 1),
    ):  # fmt: skip
        outcome = run(tmp_path, facts, levels=levels)[0]
        assert outcome.reused == reused, levels
        assert chosen(only(outcome)) == AXPBY
        assert chosen(only(outcome), "high") == (TF32 if levels == ("highest",) else AXPBY)


@pytest.mark.parametrize(
    ("dtype", "wanted", "levels"),
    [
        (torch.float64, ("high",), {"highest"}),
        (torch.complex64, LEVELS, {"highest"}),
        (torch.bfloat16, ("medium",), {"high"}),
        (torch.bfloat16, ("highest", "medium"), {"highest", "high"}),
        (torch.float32, ("high",), {"high"}),
    ],
)
def test_a_level_a_type_does_not_tell_apart_is_tuned_as_the_one_that_serves_it(
    tmp_path: Path, dtype: torch.dtype, wanted: tuple[str, ...], levels: set[str]
) -> None:
    problem = contiguous_problem(512, 512, 512, dtype)
    outcome, bench = run(tmp_path, {FULL: 100.0}, problem, levels=wanted)
    assert set(only(outcome).choices) == levels
    assert bench.judged
    assert run(tmp_path, {}, problem, levels=wanted)[0].reused == 1


def test_progress_tells_every_step(tmp_path: Path) -> None:
    seen: list[Progress] = []
    other = replace(CUBE, m=256)
    run(tmp_path, {FULL: 100.0, TF32: "failed"}, CUBE, other, report=seen.append)
    count = len(candidates_for(CUBE, GPU, LEVELS))
    first = [p for p in seen if p.problem == CUBE]
    assert [p.measured is not None for p in first] == [True] * count + [False]
    assert [p.done for p in first] == [0] * count + [1]
    assert first[-1].entry is not None
    assert {p.total for p in seen} == {2}
    assert {(p.candidates, p.offered) for p in first} == {(count, count)}
    assert seen[-1].done == 2


def test_a_damaged_table_is_kept_aside_and_tuning_goes_on(tmp_path: Path) -> None:
    path = table_path(tmp_path / "tables", GPU)
    path.parent.mkdir()
    path.write_text("no table\n")
    with pytest.warns(DatabaseWarning, match="kept-1"):
        outcome, _ = run(tmp_path, {FULL: 100.0})
    assert outcome.unfinished == 0
    assert path.with_name(path.name + ".kept-1").read_text() == "no table\n"
    assert len(read_table(path)[0].entries) == 1


# ----------------------------------------------------------------------------- large spaces


class Tiles(Strategy):
    """Offers many candidates; those with one term are for the level ``high`` and below."""

    name = "tiles"
    emulates = True
    dtypes = frozenset({torch.float32})

    def parameters(self) -> Mapping[str, Callable[[ParamValue], bool]]:
        extent = one_of(32, 64, 128, 256)
        return {
            "form": one_of("fused", "split"), "wide": one_of(False, True), "terms": one_of(1, 3),
            "bm": extent, "bn": extent, "stages": one_of(2, 3, 4),
        }  # fmt: skip

    def space(self, problem: Problem, device: object) -> Iterator[dict[str, ParamValue]]:
        extents, flags = (32, 64, 128, 256), (False, True)
        for terms, form, bm, bn in itertools.product((1, 3), ("fused", "split"), extents, extents):
            if bm * bn < 256 * 256:
                for stages, wide in itertools.product((2, 3, 4), flags if bm > 64 else (False,)):
                    yield {
                        "terms": terms, "form": form, "bm": bm, "bn": bn, "stages": stages,
                        "wide": wide,
                    }  # fmt: skip

    def bound(self, problem: Problem, params: Params) -> ErrorBound:
        rho = 4.0 if params["terms"] == 3 else 2.0**13
        return ErrorBound(rho, float(problem.k) / 2 + int(params["stages"]))

    def bind(self, problem: Problem, device: object, params: Params) -> Run:
        raise AssertionError("nothing runs on an invented GPU")


def tile_us(problem: Problem, params: Params) -> float:
    """A time with one optimum, which depends on the problem; fewer terms are faster."""
    bm, bn = math.log2(int(params["bm"])), math.log2(int(params["bn"]))
    best_m = min(max(math.log2(problem.m) - 2, 5), 8)
    best_n = min(max(math.log2(problem.n) - 3, 5), 7)
    return (
        60.0
        * (1 + 0.12 * (bm - best_m) ** 2 + 0.1 * (bn - best_n) ** 2 + 0.05 * abs(bm - bn))
        * (1 + 0.06 * abs(int(params["stages"]) - 3))
        * (1.0 if params["form"] == "split" else 1.2)
        * (1.0 if params["wide"] else 1.05)
        * (0.5 if params["terms"] == 1 else 1.0)
    )


class Hills(Recording):
    """A bench on which ``tile_us`` is the time; ``bad`` says what is inaccurate or fails.

    ``noisy`` says what has a larger error norm than the baseline.
    """

    def __init__(
        self,
        bad: Callable[[Params], str] = lambda params: "",
        noisy: Callable[[Params], bool] = lambda params: False,
    ) -> None:
        super().__init__({})
        self.bad = bad
        self.noisy = noisy

    def judge(self, *args: object) -> Measured:
        measured = super().judge(*args)  # type: ignore[arg-type]
        noisy = measured.candidate.strategy == "tiles" and self.noisy(measured.candidate.kwargs)
        return replace(measured, error_norm=2e-7 if noisy else 1e-7)

    @contextmanager
    def open(self, problem: Problem) -> Iterator[Recording]:
        self.facts = {FULL: 100.0} | {
            c: self.bad(c.kwargs) or tile_us(problem, c.kwargs) for c in tiles_of(problem)
        }
        with super().open(problem):
            yield self

    @property
    def tiles(self) -> list[Candidate]:
        return [c for c in self.judged if c.strategy == "tiles"]


def tiles_of(problem: Problem, terms: int | None = None) -> list[Candidate]:
    offered = BY_NAME["tiles"].candidates(problem, GPU)
    return [c for c in offered if terms in (None, c.kwargs["terms"])]


def explore(
    problem: Problem, bench: Recording, known: Sequence[Entry] = (), levels: Sequence[str] = LEVELS
) -> list[Measured]:
    """Search a problem to the end, under a name that is the same on every machine."""
    candidates = candidates_for(problem, GPU, levels)
    storage = optuna.storages.InMemoryStorage()
    one = Search(problem, GPU, levels, candidates, storage, "here", "all", known)
    with bench.open(problem):
        rows = one.measure_all(bench, lambda row: None, lambda: False)
    assert rows is not None
    assert len(rows) == one.planned < one.offered == len(candidates)
    return rows


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """A strategy with two pools of more than 100 candidates each, beside the others."""
    tiles = Tiles()
    monkeypatch.setattr(strategies, "STRATEGIES", (*STRATEGIES, tiles))
    monkeypatch.setattr(tuner, "STRATEGIES", (*FEW, tiles))
    monkeypatch.setitem(BY_NAME, tiles.name, tiles)
    assert min(len(tiles_of(CUBE, terms)) for terms in (1, 3)) > 100 > 2 * TRIALS


@pytest.mark.usefixtures("many")
def test_a_search_comes_near_the_optimum_of_every_pool_and_nearer_than_chance() -> None:
    found, by_chance = [], []
    for i in range(8):
        problem = replace(CUBE, m=64 * 2 ** (i % 4), n=128 * 2 ** (i // 2))
        rows = {row.candidate: row for row in explore(problem, Hills())}
        for terms in (1, 3):
            pool = tiles_of(problem, terms)
            us = {c: tile_us(problem, c.kwargs) for c in pool}
            best = min(us.values())
            found.append(min(us[c] for c in pool if c in rows) / best)
            draw = random.Random(i)
            luck = [min(us[c] for c in draw.sample(pool, TRIALS)) / best for _ in range(50)]
            by_chance.append(statistics.mean(luck))
    assert max(found) < 1.06
    assert statistics.mean(found) - 1 < 0.3 * (statistics.mean(by_chance) - 1)


@pytest.mark.usefixtures("many")
def test_a_search_tries_so_many_of_each_large_pool_and_all_of_the_small_ones(
    tmp_path: Path,
) -> None:
    seen: list[Progress] = []
    bench = Hills()
    outcome, _ = run(tmp_path, bench, report=seen.append)
    everything = candidates_for(CUBE, GPU, LEVELS)
    assert set(Counter(bench.judged).values()) == {1}, "something was measured twice"
    assert bench.judged[0] == FULL
    few = [c for c in bench.judged if c.strategy != "tiles"]
    assert few == bench.judged[: len(few)]
    assert set(few) == {c for c in everything if c.strategy != "tiles"}
    assert Counter(c.kwargs["terms"] for c in bench.tiles) == {1: TRIALS, 3: TRIALS}
    entry = only(outcome)
    assert {row.candidate for row in entry.measured} == set(bench.judged)
    assert {(p.candidates, p.offered) for p in seen} == {(len(bench.judged), len(everything))}
    assert outcome.measured == len(bench.judged)
    for level, terms in (("highest", 3), ("high", 1), ("medium", 1)):
        best = min(tile_us(CUBE, c.kwargs) for c in tiles_of(CUBE, terms))
        assert bench.us(chosen(entry, level)) < 1.1 * best
    assert chosen(entry, "highest").kwargs["terms"] == 3
    assert run(tmp_path, Hills())[1].judged == []


@pytest.mark.usefixtures("many")
def test_some_of_a_large_pool_may_leave_a_parameter_out(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Tiles.space

    def space(self: Tiles, *where: object) -> Iterator[dict[str, ParamValue]]:
        for params in real(self, *where):  # type: ignore[arg-type]
            yield {k: v for k, v in params.items() if k != "wide" or v}

    monkeypatch.setattr(Tiles, "space", space)
    monkeypatch.setattr(Tiles, "optional", frozenset({"wide"}))
    monkeypatch.setitem(globals(), "tile_us", lambda *_: 90.0)
    bench = Hills()
    explore(CUBE, bench)
    assert {"wide" in c.kwargs for c in bench.tiles} == {False, True}
    assert Counter(c.kwargs["terms"] for c in bench.tiles) == {1: TRIALS, 3: TRIALS}


@pytest.mark.usefixtures("many")
def test_only_what_serves_a_wanted_level_is_searched(tmp_path: Path) -> None:
    bench = Hills()
    entry = only(run(tmp_path, bench, levels=("highest",))[0])
    assert Counter(c.kwargs["terms"] for c in bench.tiles) == {3: TRIALS}
    # One level later, what both admit and what only the new one admits are two pools.
    later = Hills()
    full = only(run(tmp_path, later, levels=("highest", "high"))[0])
    assert Counter(c.kwargs["terms"] for c in later.tiles) == {1: TRIALS, 3: TRIALS}
    assert set(chosen_in(entry)) <= set(later.judged)
    assert set(statuses(entry)) | set(later.judged) == set(statuses(full))


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize("count", [2, 20, 35, 70])
def test_a_search_that_was_stopped_goes_on_as_if_it_had_not_been(
    tmp_path: Path, count: int
) -> None:
    straight, bench = run(tmp_path / "straight", Hills())
    report, stop = stopper(count)
    halves = Hills()
    run(tmp_path, halves, report=report, stop=stop)
    assert len(halves.judged) == count
    outcome, _ = run(tmp_path, halves)
    assert halves.judged == bench.judged
    assert only(outcome).measured == only(straight).measured
    assert only(outcome).choices == only(straight).choices


@pytest.mark.usefixtures("many")
def test_a_candidate_that_is_searched_and_kills_is_tried_twice_and_the_search_goes_on(
    tmp_path: Path,
) -> None:
    straight = run(tmp_path / "straight", Hills())[1].tiles
    bench = Hills()
    bench.deadly = {straight[STARTS + 4]}
    for _ in range(2):
        with pytest.raises(SystemExit):
            run(tmp_path, bench)
    entry = only(run(tmp_path, bench)[0])
    upto = STARTS + 5
    assert bench.tiles[: upto + 1] == [*straight[:upto], straight[upto - 1]]
    assert Counter(Counter(bench.judged).values()).keys() == {1, 2}
    assert {c for c in bench.judged if bench.judged.count(c) == 2} == bench.deadly
    assert statuses(entry)[straight[upto - 1]] == "failed"
    assert len(bench.tiles) == 2 * TRIALS + 1


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize("status", ["inaccurate", "failed", "unsupported"])
def test_a_search_turns_away_from_what_cannot_be_used(status: str) -> None:
    """The faster half of the space is of no use; the best of the rest is found all the same."""
    bench = Hills(lambda params: status if params["form"] == "split" else "")
    rows = explore(CUBE, bench)
    for terms in (1, 3):
        pool = [row for row in rows if row.candidate in tiles_of(CUBE, terms)]
        useless = [row for row in pool if row.status == status]
        assert all(row.candidate.kwargs["form"] == "split" for row in useless)
        assert 0 < len(useless) < TRIALS / 3
        usable = [c for c in tiles_of(CUBE, terms) if c.kwargs["form"] == "fused"]
        best = min(tile_us(CUBE, c.kwargs) for c in usable)
        assert min(row.graph_us for row in pool if row.graph_us is not None) < 1.06 * best


@pytest.mark.usefixtures("many")
def test_a_search_for_the_highest_level_turns_away_from_what_is_noisier() -> None:
    """One for lower levels alone does not: there the faster half may be noisy."""
    rows = explore(CUBE, Hills(noisy=lambda params: params["form"] == "split"))
    for terms, wanted in ((3, "fused"), (1, "split")):
        pool = [row for row in rows if row.candidate in tiles_of(CUBE, terms)]
        forms = Counter(row.candidate.kwargs["form"] for row in pool)
        assert sum(forms.values()) == TRIALS
        assert forms[wanted] > 2 * TRIALS / 3
        usable = [c for c in tiles_of(CUBE, terms) if c.kwargs["form"] == wanted]
        best = min(tile_us(CUBE, c.kwargs) for c in usable)
        found = [row.graph_us for row in pool if row.candidate in usable and row.graph_us]
        assert min(found) < 1.06 * best


@pytest.mark.usefixtures("many")
def test_tpe_is_told_of_noisier_candidates_as_infeasible(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, bool]] = []
    real = search.create_trial

    def create_trial(**facts: object) -> optuna.trial.FrozenTrial:
        trial = real(**facts)  # type: ignore[arg-type]
        forms = ("fused", "split")  # in the order of their places
        told.append((forms[trial.params["form"]], max(trial.constraints.values()) > 0))
        assert (trial.state.name == "PRUNED") == told[-1][1]
        return trial

    monkeypatch.setattr(search, "create_trial", create_trial)
    explore(CUBE, Hills(noisy=lambda params: params["form"] == "split"), levels=("highest",))
    assert set(told) == {("fused", False), ("split", True)}
    told.clear()
    explore(CUBE, Hills(noisy=lambda params: params["form"] == "split"), levels=("high",))
    assert set(told) == {("fused", False), ("split", False)}


@pytest.mark.usefixtures("many")
def test_a_search_that_goes_on_remembers_what_was_noisy(tmp_path: Path) -> None:
    def hills() -> Hills:
        return Hills(noisy=lambda params: params["form"] == "split")

    straight, bench = run(tmp_path / "straight", hills(), levels=("highest",))
    report, stop = stopper(30)
    halves = hills()
    run(tmp_path, halves, report=report, stop=stop, levels=("highest",))
    outcome, _ = run(tmp_path, halves, levels=("highest",))
    assert halves.judged == bench.judged
    assert only(outcome).measured == only(straight).measured
    assert {row.error_norm for row in only(outcome).measured} == {1e-7, 2e-7}
    assert all(c.kwargs.get("form") != "split" for c in chosen_in(only(outcome)))


@pytest.mark.usefixtures("many")
def test_an_inaccurate_candidate_of_a_search_is_never_chosen(tmp_path: Path) -> None:
    bench = Hills(lambda params: "inaccurate" if params["form"] == "split" else "")
    entry = only(run(tmp_path, bench)[0])
    for candidate in chosen_in(entry):
        assert candidate.kwargs["form"] == "fused"
    assert "inaccurate" in statuses(entry).values()


class Compiling(Recording):
    """Counts what is compiled ahead; its clock moves by a second for every ``prepare``."""

    def __init__(self) -> None:
        super().__init__({FULL: 100.0})
        self.compiled: list[Candidate] = []
        self.seconds = 0

    def prepare(self, candidates: Sequence[Candidate]) -> None:
        self.compiled += candidates
        self.seconds += 1


@pytest.mark.usefixtures("many")
def test_compiling_ahead_ends_with_the_budget_and_goes_on_in_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "AHEAD", 5)
    everything = candidates_for(CUBE, GPU, LEVELS)
    bench = Compiling()
    outcome, _ = run(tmp_path, bench, stop=lambda: bench.seconds >= 2)
    assert len(bench.compiled) == 10 < len(everything)
    assert (outcome.unfinished, bench.judged) == (1, [])
    bench = Compiling()
    outcome, _ = run(tmp_path, bench)
    assert bench.compiled == everything
    assert outcome.unfinished == 0


def test_what_is_to_be_measured_is_told_ahead_and_what_is_tuned_is_not(tmp_path: Path) -> None:
    first, second, third = CUBE, replace(CUBE, m=256), replace(CUBE, n=256)
    run(tmp_path, {FULL: 100.0}, second)
    told: list[list[Problem]] = []
    bench = Recording({FULL: 100.0})
    wanted = order(tmp_path, first, second, third)
    tune(wanted, GPU, bench.open, ahead=lambda problems: told.append(list(problems)))
    assert told == [[first, third], [third]]
    tune(wanted, GPU, bench.open, ahead=lambda problems: told.append(list(problems)))
    assert len(told) == 2, "nothing is left to be measured"
    wanted = order(tmp_path, first, again=True, deadline=0.0)
    tune(wanted, GPU, bench.open, ahead=lambda problems: told.append(list(problems)))
    assert len(told) == 2, "nothing is compiled after the deadline"


class Raising(Strategy):
    """A plug-in with a mistake in what it says of a problem."""

    name = "raising"
    dtypes = frozenset({torch.float32})
    place = ""

    def _answer(self, place: str, answer: Any) -> Any:
        if self.place == place:
            raise ZeroDivisionError("no tiles")
        return answer

    def space(self, problem: Problem, device: Device) -> Any:
        return (self._answer("space", params) for params in [{}])

    def _reasons_not(self, problem: Problem, device: Device, params: Params) -> list[str]:
        return self._answer("reasons_not", [])

    def bound(self, problem: Problem, params: Params) -> ErrorBound:
        return self._answer("bound", ErrorBound(4.0, growth(problem.dtype, problem.k)))

    def bind(self, problem: Problem, device: Device, params: Params) -> Run:
        raise NotImplementedError


@pytest.mark.parametrize("place", ["space", "reasons_not", "bound"])
def test_a_plug_in_that_raises_is_reported_and_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setattr(tuner, "STRATEGIES", (*FEW, Raising()))
    monkeypatch.setitem(BY_NAME, "raising", Raising())
    raising = Candidate.of("raising")
    assert raising in candidates_for(CUBE, GPU, LEVELS)
    monkeypatch.setattr(Raising, "place", place)
    with pytest.raises(ZeroDivisionError):  # a mistake of our own
        candidates_for(CUBE, GPU, LEVELS)
    monkeypatch.setattr(tuner, "origin_of", lambda name: "raising 1.0" * (name == "raising"))
    words = r"'raising' of raising 1\.0 is passed over for .*: ZeroDivisionError: no tiles"
    with pytest.warns(PluginWarning, match=words):
        outcome, bench = run(tmp_path, {AXPBY: 90.0})
    assert chosen(only(outcome)) == AXPBY
    assert raising not in bench.judged


@pytest.mark.usefixtures("many")
def test_what_won_nearby_is_tried_first_in_the_same_run_and_in_another(tmp_path: Path) -> None:
    far, near = replace(CUBE, m=64), replace(CUBE, m=256, n=1024)
    bench = Hills()
    outcome, _ = run(tmp_path, bench, far, near)
    second = bench.judged[bench.judged.index(FULL, 1) :]
    third = run(tmp_path, Hills(), CUBE)[1].judged
    for judged, nearest in ((second, outcome.entries[0]), (third, outcome.entries[1])):
        for terms in (1, 3):
            won = {c for c in chosen_in(nearest) if c.kwargs["terms"] == terms}
            pool = [c for c in judged if c.kwargs.get("terms") == terms]
            assert won
            assert set(pool[: len(won)]) == won


@pytest.mark.usefixtures("many")
def test_a_search_goes_on_with_the_seeds_it_began_with(tmp_path: Path) -> None:
    report, stop = stopper(len(candidates_for(CUBE, GPU, LEVELS)) - len(tiles_of(CUBE)) + 1)
    bench = Hills()
    run(tmp_path, bench, report=report, stop=stop)
    run(tmp_path, Hills(), replace(CUBE, m=1024))
    run(tmp_path, bench)
    assert bench.judged == run(tmp_path / "straight", Hills())[1].judged


@pytest.mark.usefixtures("many")
def test_seeds_come_from_the_nearest_problems_that_tried_the_pool() -> None:
    pool = tiles_of(CUBE, terms=3)
    a, b, c, d, e, f, g = pool[:7]
    elsewhere = tiles_of(CUBE, terms=1)[0]

    def tuned(problem: Problem, choice_: Candidate, *rows: Measured) -> Entry:
        return entry(problem, {"highest": choice(choice_)}, [row(choice_, 50.0), *rows])

    far = tuned(replace(CUBE, m=1024), a, row(b, 90.0), row(c, 60.0), row(elsewhere, 1.0))
    near = tuned(replace(CUBE, m=768), d, row(e, 30.0), row(f, 20.0, status="slow"))
    other = tuned(replace(CUBE, m=520), FULL)
    double = tuned(replace(CUBE, dtype=torch.float64), g)
    remote = tuned(replace(CUBE, m=2**14), g)
    assert seeds_for(CUBE, pool, [far, other, double, remote, near]) == [d, e, a, c]
    assert seeds_for(CUBE, pool[:3], [far, other, near]) == [a, c]
    assert seeds_for(CUBE, [elsewhere], [far, near]) == [elsewhere]
    assert seeds_for(CUBE, pool, []) == []
    crowd = [tuned(replace(CUBE, m=512 + 8 * i), pool[i]) for i in range(20)]
    assert seeds_for(CUBE, pool, crowd) == pool[: search.SEEDS]


@pytest.mark.usefixtures("many")
def test_searching_again_keeps_no_old_row_and_the_old_choice_takes_part(tmp_path: Path) -> None:
    first = only(run(tmp_path, Hills())[0])
    bench = Hills()
    bench.default = 200.0
    again = only(run(tmp_path, bench, again=True)[0])
    assert {row.candidate for row in again.measured} == set(bench.judged)
    assert set(statuses(first)) - set(bench.judged), "both runs tried the same"
    for mode, entrants in bench.finals:
        assert {chosen(first, level, mode) for level in LEVELS} <= set(entrants)


# ------------------------------------------------------------------------------- statistics


@pytest.mark.parametrize("sigma", [0.003, 0.02, 0.06, 0.2])
@pytest.mark.parametrize("drift", [0.0, 0.3])
def test_the_baseline_against_itself_rarely_finds_a_winner(sigma: float, drift: float) -> None:
    """At most 5 % of 400 problems, whatever the noise, and though clocks drift."""
    draw = random.Random(f"{sigma} {drift}")
    winners = 0
    for problem in range(400):
        calls = iter(range(10_000))

        def timer(calls: Iterator[int] = calls) -> float:
            return 100.0 * (1 + drift * next(calls) / 40) * draw.lognormvariate(0.0, sigma)

        times = in_turns({FULL: timer, AXPBY: timer}, finals.ROUNDS, seed=problem)
        choice = choose(times, FULL)
        assert choice is not None
        winners += choice.candidate != FULL
    assert winners <= 20


def test_a_real_win_is_found_in_the_same_noise() -> None:
    draw = random.Random(7)
    found = 0
    for problem in range(100):
        timers = {
            c: lambda us=us: us * draw.lognormvariate(0.0, 0.02)  # type: ignore[misc]
            for c, us in ((FULL, 100.0), (AXPBY, 90.0))
        }
        choice = choose(in_turns(timers, finals.ROUNDS, seed=problem), FULL)
        assert choice is not None
        found += choice.candidate == AXPBY
    assert found >= 99


@pytest.mark.parametrize(
    ("steady", "unsteady", "winner"),
    [(80.0, 70.0, "split"), (80.0, 60.0, "fused"), (100.0, 85.0, None), (100.0, 70.0, "fused")],
)
def test_what_depends_on_the_data_wins_by_far_or_not_at_all(
    steady: float, unsteady: float, winner: str | None
) -> None:
    params = {"method": "fp16x3", "bm": 64, "bn": 64, "bk": 32, "warps": 4, "stages": 3}
    params |= {"chunk": 128, "slices": 1, "group": 8}
    split, fused = (
        Candidate.of("emulated_fp32", form=form, **params) for form in ("split", "fused")
    )
    times = {FULL: [100.0] * 20, split: [steady] * 20, fused: [unsteady] * 20}
    choice = choose(times, FULL)
    assert choice is not None
    assert choice.candidate.kwargs.get("form") == winner
    assert choice.us == min(times[choice.candidate])
    # A neighbour is predicted by the same rule.
    measured = [row(candidate, us[0]) for candidate, us in times.items()]
    known = Model([(entry(CUBE, {"highest": choice}, measured), 1.0)])
    predicted = known.predict(replace(CUBE, k=CUBE.k + 64), Tolerance("highest"), "graph")
    assert [p.candidate.kwargs.get("form") for p in predicted][:1] == ([winner] if winner else [])


def test_the_interval_of_a_ratio_holds_the_truth_about_as_often_as_it_says() -> None:
    draw = random.Random(11)
    held = 0
    for _ in range(1000):
        base, other = ([draw.lognormvariate(0.0, 0.05) for _ in range(20)] for _ in range(2))
        result = ratio(base, other)
        assert result.low <= result.median <= result.high
        held += result.low <= 1.0 <= result.high
    assert 930 <= held <= 985


@pytest.mark.parametrize("rounds", [1, 2, 3, 5, 20, 21])
def test_a_ratio_of_few_rounds_is_wide_and_not_an_error(rounds: int) -> None:
    result = ratio([2.0 + i for i in range(rounds)], [1.0] * rounds)
    assert result.low <= result.median <= result.high
    if rounds <= 5:
        assert (result.low, result.high) == (2.0, 1.0 + rounds)


def test_turns_are_shuffled_anew_every_round_and_repeat_with_the_seed() -> None:
    def play(seed: int) -> tuple[dict[Candidate, list[float]], list[list[Candidate]]]:
        calls: list[Candidate] = []

        def timer(c: Candidate) -> Callable[[], float]:
            return lambda: calls.append(c) or float(len(calls))  # type: ignore[func-returns-value]

        names = [Candidate.of(word) for word in "abcd"]
        times = in_turns({c: timer(c) for c in names}, 30, seed)
        return times, [calls[i : i + 4] for i in range(0, 120, 4)]

    times, rounds = play(1)
    assert all(len(t) == 30 for t in times.values())
    assert all(len(set(one)) == 4 for one in rounds)
    assert len({tuple(one) for one in rounds}) > 5
    assert play(1) == (times, rounds)
    assert play(2)[1] != rounds


def test_without_the_baseline_there_is_no_choice() -> None:
    assert choose({AXPBY: [1.0] * 20}, FULL) is None
    alone = choose({FULL: [1.0] * 20}, FULL)
    assert alone is not None
    assert (alone.candidate, alone.runner_up, alone.ratio) == (FULL, None, 1.0)


# --------------------------------------------------------------------------- the real bench

SMALL = contiguous_problem(16, 12, 40, torch.float32, device_type="cpu")


@pytest.mark.parametrize("update", ["none", "add", "bias", "inplace"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.complex64])
def test_the_bench_judges_every_candidate_of_a_small_problem(
    dtype: torch.dtype, update: str
) -> None:
    device = device_of(CPU)
    problem = contiguous_problem(16, 12, 40, dtype, update=update, device_type="cpu")
    with Workbench.open(problem, device, CPU) as bench:
        for candidate in candidates_for(problem, device, LEVELS):
            bound = BY_NAME[candidate.strategy].bound(problem, candidate.kwargs)
            row = bench.judge(candidate, bound, lambda us: False)
            assert row.status == "ok", row
            assert row.graph_us is None
            assert row.eager_us is not None
            assert row.eager_us > 0
            assert row.error is not None
            assert 0 <= row.error <= bound.total
            slow = bench.judge(candidate, bound, lambda us: True)
            assert slow.status == "slow"
            assert slow.eager_us is not None
        times = bench.compare([FULL, AXPBY], "eager", 3)
        assert [len(samples) for samples in times.values()] == [3, 3]
        assert min(min(samples) for samples in times.values()) > 0
    assert bench.operands == []
    assert bench.samples == []


class Sloppy(Addmm):
    """Rounds its operands to bfloat16 and claims that nobody will notice."""

    name = "sloppy"

    def parameters(self) -> Mapping[str, Callable[[object], bool]]:
        return {}

    def space(self, problem: Problem, device: object) -> list[dict[str, object]]:
        return [{}]

    def _reasons_not(self, problem: Problem, device: object, params: Params) -> list[str]:
        return []

    def bound(self, problem: Problem, params: Params) -> ErrorBound:
        return ErrorBound(4.0, float(problem.k))

    def bind(self, problem: Problem, device: object, params: Params) -> Run:
        def run(alpha, A, B, beta, C, out):  # type: ignore[no-untyped-def]
            P = A.bfloat16().float() @ B.bfloat16().float()
            result = alpha * P if C is None else alpha * P + beta * C
            return result if out is None else out.copy_(result)

        return run


class Broken(Sloppy):
    """Refuses at run time, as a library may; how is up to the test."""

    name = "broken"
    error: BaseException = RuntimeError("no such kernel\nand a long story")

    def bind(self, problem: Problem, device: object, params: Params) -> Run:
        def run(*_: object) -> torch.Tensor:
            raise self.error

        return run


class NaN(Sloppy):
    """Leaves a NaN in the result."""

    name = "nan"

    def bind(self, problem: Problem, device: object, params: Params) -> Run:
        def run(alpha, A, B, beta, C, out):  # type: ignore[no-untyped-def]
            result = torch.addmm(C, A, B, beta=beta, alpha=alpha)
            result[-1, -1] = torch.nan
            return result

        return run


@pytest.fixture
def suspects(monkeypatch: pytest.MonkeyPatch) -> dict[str, Candidate]:
    """Three strategies nobody should use, in every list of strategies."""
    bad = (Sloppy(), Broken(), NaN())
    everyone = (*FEW, *bad)
    monkeypatch.setattr(strategies, "STRATEGIES", everyone)
    monkeypatch.setattr(tuner, "STRATEGIES", everyone)
    for strategy in bad:
        monkeypatch.setitem(BY_NAME, strategy.name, strategy)
    return {strategy.name: Candidate.of(strategy.name) for strategy in bad}


def test_the_bench_catches_a_strategy_that_is_less_accurate_than_it_says(
    suspects: dict[str, Candidate],
) -> None:
    with Workbench.open(SMALL, device_of(CPU), CPU) as bench:
        for name in ("sloppy", "nan"):
            bound = BY_NAME[name].bound(SMALL, {})
            row = bench.judge(suspects[name], bound, lambda us: False)
            assert row.status == "inaccurate"
            assert row.error is not None
            assert row.error > bound.total
            assert "on normal data exceeds" in row.note
            assert (row.graph_us, row.eager_us) == (None, None)


@pytest.mark.parametrize(
    ("error", "status", "note"),
    [
        (RuntimeError("no such kernel\nand a story"), "failed", "RuntimeError: no such kernel"),
        (NotImplementedError("not on Tuesdays"), "unsupported", "NotImplementedError: not on"),
        (ValueError("x" * 500), "failed", "ValueError: xxx"),
        (torch.OutOfMemoryError("too large"), "failed", "OutOfMemoryError: too large"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_bench_notes_what_a_candidate_raises(
    suspects: dict[str, Candidate],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    status: str,
    note: str,
) -> None:
    monkeypatch.setattr(Broken, "error", error)
    with Workbench.open(SMALL, device_of(CPU), CPU) as bench:
        row = bench.judge(suspects["broken"], ErrorBound(4.0, 40.0), lambda us: False)
    assert row.status == status
    assert row.note.startswith(note)
    assert len(row.note) <= 200
    assert "\n" not in row.note


def test_the_bench_notes_what_a_strategy_raises_before_it_runs(
    suspects: dict[str, Candidate], monkeypatch: pytest.MonkeyPatch
) -> None:
    def workspace_bytes(*_: object) -> int:
        raise ZeroDivisionError("no tiles")

    monkeypatch.setattr(Sloppy, "workspace_bytes", workspace_bytes)
    with Workbench.open(SMALL, device_of(CPU), CPU) as bench:
        row = bench.judge(suspects["sloppy"], ErrorBound(4.0, 40.0), lambda us: False)
    assert (row.status, row.note) == ("failed", "ZeroDivisionError: no tiles")


def test_compiling_ahead_leaves_an_operand_that_is_updated_in_place_as_it_was(
    suspects: dict[str, Candidate], monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = pytest.importorskip("autogemm.kernels.launch")
    calls: list[int] = []

    def compile_ahead(tries: Iterable[Callable[[], object]]) -> None:
        calls.extend(1 for each in tries if each() is None)

    monkeypatch.setattr(launch, "compile_ahead", compile_ahead)
    monkeypatch.setattr(Sloppy, "depends_on", ("torch", "triton"))
    problem = replace(SMALL, update="inplace")
    with Workbench.open(problem, device_of(CPU), CPU) as bench:
        bench.device = GPU
        before = bench.operands[0].C.clone()
        bench.prepare([suspects["sloppy"], suspects["broken"], FULL])
        bench.device = device_of(CPU)
        assert torch.equal(bench.operands[0].C, before)
    assert len(calls) == 2


@pytest.mark.parametrize("words", ["CUDA error: an illegal memory access was encountered"])
def test_a_lost_device_is_not_blamed_on_a_candidate(
    suspects: dict[str, Candidate], monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    monkeypatch.setattr(Broken, "error", RuntimeError(words))
    with Workbench.open(SMALL, device_of(CPU), CPU) as bench, pytest.raises(RuntimeError):
        bench.judge(suspects["broken"], ErrorBound(4.0, 40.0), lambda us: False)


def test_a_real_tuning_run_records_the_impostors_and_chooses_none(
    tmp_path: Path, suspects: dict[str, Candidate]
) -> None:
    device = device_of(CPU)
    with torch.no_grad():
        outcome = tune(order(tmp_path, SMALL), device, lambda p: Workbench.open(p, device, CPU))
    entry = only(outcome)
    told = statuses(entry)
    assert told[suspects["sloppy"]] == told[suspects["nan"]] == "inaccurate"
    assert told[suspects["broken"]] == "failed"
    assert set(entry.choices) == set(LEVELS)
    for level in LEVELS:
        assert list(entry.choices[level]) == ["eager"]
        choice: Choice = entry.choices[level]["eager"]
        assert choice.candidate not in suspects.values()
        assert choice.us > 0
    table, _ = read_table(table_path(tmp_path / "tables", device))
    assert table.device == device


def test_the_measured_error_of_a_right_result_is_small_and_of_a_wrong_one_large() -> None:
    """R by its definition: what is off by a thousand units of u·G shows as a thousand."""
    problem = replace(SMALL, dtype=torch.float64)
    samples = sample_references(problem, CPU, ALPHA, BETA)
    bound = ErrorBound(8.0, float(problem.k))

    def exact(alpha, A, B, beta, C, out):  # type: ignore[no-untyped-def]
        return torch.addmm(C, A, B, alpha=alpha, beta=beta)

    right, complaint = worst_ratio(samples, exact, problem, ALPHA, BETA, bound=bound)
    assert complaint == ""
    assert right < 8

    def off(alpha, A, B, beta, C, out):  # type: ignore[no-untyped-def]
        scale = abs(alpha) * (A.abs() @ B.abs()) + abs(beta) * C.abs()
        return exact(alpha, A, B, beta, C, out) + 1000 * 2.0**-53 * scale

    wrong, complaint = worst_ratio(samples, off, problem, ALPHA, BETA, bound=bound)
    assert "exceeds" in complaint
    assert wrong == pytest.approx(1000, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("update", UPDATES)
def test_a_batch_is_judged_on_its_first_middle_and_last_matrix(
    dtype: torch.dtype, update: Update
) -> None:
    problem = replace(SMALL, dtype=dtype, batch=5, update=update)
    samples = sample_references(problem, CPU, ALPHA, BETA)
    bound = ErrorBound(8.0, 3.0 * problem.k)

    def exact(alpha, A, B, beta, C, out):  # type: ignore[no-untyped-def]
        P = alpha * (A @ B)
        result = P if C is None else P + beta * C
        return result if out is None else out.copy_(result)

    right, complaint = worst_ratio(samples, exact, problem, ALPHA, BETA, bound=bound)
    assert complaint == ""
    assert right < 8 + problem.k
    for matrix in (0, 2, 4):

        def off(*call, matrix=matrix):  # type: ignore[no-untyped-def]
            result = exact(*call)
            result[matrix] *= 1.001
            return result

        assert "exceeds" in worst_ratio(samples, off, problem, ALPHA, BETA, bound=bound)[1]
        assert error_norm(samples, off, ALPHA, BETA) > 1e-4


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_operands_of_a_batch_have_the_layouts_of_the_problem(device_type: str) -> None:
    for a, b, out in itertools.product(LAYOUTS, repeat=3):
        if device_type == "cpu" and "unaligned" in a + b + out:
            continue
        problem = Problem(
            m=8, n=16, k=24, dtype=torch.float32, a=a, b=b, out=out, update="inplace",
            device_type=device_type, batch=3,
        )  # fmt: skip
        made = make_operands(problem, CPU, normal)
        for x, layout in ((made.A, a), (made.B, b), (made.out, out)):
            assert x is not None
            word = _layout(tuple(x.shape), x.stride(), 0, x.element_size(), device_type)
            assert (len(x), word) == (3, layout)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("update", ["none", "add", "bias"])
def test_a_result_that_lies_as_no_new_one_would_is_given(update: Update, batch: int) -> None:
    for out in LAYOUTS:
        problem = Problem(
            m=8, n=16, k=24, dtype=torch.float32, out=out, update=update, device_type="cuda",
            batch=batch,
        )  # fmt: skip
        made = make_operands(problem, CPU, normal)
        assert not made.in_place
        assert (made.out is None) == (out == "row")
        for x in (made.out, made.C if update == "add" else None):
            if x is not None:
                assert _layout(tuple(x.shape), x.stride(), 0, x.element_size(), "cuda") == out


def test_a_batch_is_tuned_like_any_other_problem(tmp_path: Path) -> None:
    device = device_of(CPU)
    problem = replace(SMALL, batch=3)
    outcome = tune(order(tmp_path, problem), device, lambda p: Workbench.open(p, device, CPU))
    (entry,) = outcome.entries
    assert entry.problem == problem
    tried = {row.candidate.strategy for row in entry.measured}
    assert tried >= {"baddbmm", "matmul_axpby", "loop"}
    assert "addmm" not in tried
    table, problems = read_table(table_path(tmp_path / "tables", device))
    assert list(table.entries) == [entry.key]
    assert problems == []


@pytest.mark.parametrize("update", ["none", "add", "inplace"])
def test_the_error_norm_is_the_relative_error_on_normal_data(update: str) -> None:
    problem = replace(SMALL, dtype=torch.float64, update=update)
    samples = sample_references(problem, CPU, ALPHA, BETA)
    assert samples[0].name == "normal"
    before = [x.clone() for s in samples for x in (s.operands.A, s.operands.C) if x is not None]

    def exact(alpha, A, B, beta, C, out):  # type: ignore[no-untyped-def]
        P = alpha * (A @ B)
        result = P if C is None else P + beta * C
        return result if out is None else out.copy_(result)

    def off(alpha, A, B, beta, C, out):  # type: ignore[no-untyped-def]
        result = exact(alpha, A, B, beta, C, out)
        result *= 1 + 3e-5
        result[0, 0] += 2e-4 * float(samples[0].reference.norm())
        return result

    assert error_norm(samples, exact, ALPHA, BETA) < 1e-15
    assert error_norm(samples, off, ALPHA, BETA) == pytest.approx(2.02e-4, rel=0.05)
    after = [x for s in samples for x in (s.operands.A, s.operands.C) if x is not None]
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_the_bench_measures_the_error_norm_of_what_is_accurate(
    suspects: dict[str, Candidate],
) -> None:
    with Workbench.open(SMALL, device_of(CPU), CPU) as bench:
        for candidate in (FULL, AXPBY):
            bound = BY_NAME[candidate.strategy].bound(SMALL, candidate.kwargs)
            row = bench.judge(candidate, bound, lambda us: False)
            assert row.error_norm is not None
            assert 1e-9 < row.error_norm < 1e-6
        for name in suspects:
            assert bench.judge(suspects[name], ErrorBound(4.0, 40.0), bool).error_norm is None


def test_judging_an_update_in_place_leaves_the_samples_whole() -> None:
    device = device_of(CPU)
    problem = replace(SMALL, update="inplace")
    with Workbench.open(problem, device, CPU) as bench:
        before = [sample.operands.C.clone() for sample in bench.samples]
        for _ in range(2):
            row = bench.judge(FULL, ErrorBound(3.0, 40.0), lambda us: False)
            assert row.status == "ok"
        for sample, C in zip(bench.samples, before, strict=True):
            assert torch.equal(sample.operands.C, C)


def test_a_failures_note_names_no_directories() -> None:
    told = "RuntimeError: expected one or more of /home/ann/site/dsl/_ir.cu{N}.so or '/opt/x y'."
    assert without_directories(told) == (
        "RuntimeError: expected one or more of _ir.cu{N}.so or 'x y'."
    )
    for kept in ("R = 3/4 of 12 GiB/s", "n/a", "https is no path", "out of memory"):
        assert without_directories(kept) == kept
