"""What the tuner chooses, and what it leaves out, on recorded measurements."""

from __future__ import annotations

import math
import random
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from invented import AXPBY, BF16, CPU, FULL, GPU, TF32
from recorded_tuning import (
    CUBE,
    HALF,
    IN_TURN,
    LEVELS,
    SPLIT,
    Facts,
    Recording,
    chosen,
    only,
    order,
    run,
    statuses,
)

from autogemm import finals, search
from autogemm.database import Measured, read_table, table_path
from autogemm.device import device_of
from autogemm.finals import choose
from autogemm.measure import (
    Workbench,
    ratio,
    screening_saved_us,
)
from autogemm.precision import ErrorBound
from autogemm.problem import Problem, contiguous_problem
from autogemm.strategies import BY_NAME, Candidate
from autogemm.strategies.ksplit import KSplit
from autogemm.strategies.matmul_axpby import MatmulAxpby
from autogemm.tuner import candidates_for, tune

pytestmark = pytest.mark.usefixtures("recorded_surroundings")


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
