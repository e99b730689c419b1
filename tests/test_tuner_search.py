"""The tuner's search of spaces that are too large to be tried out."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from invented import AXPBY, FULL, GPU, choice, entry, row
from recorded_tuning import (
    CUBE,
    FEW,
    LEVELS,
    Recording,
    chosen,
    only,
    order,
    run,
    statuses,
    stopper,
)

from autogemm import search, strategies, tuner
from autogemm.database import Entry, Measured
from autogemm.device import Device
from autogemm.errors import PluginWarning
from autogemm.precision import ErrorBound, growth
from autogemm.problem import Problem
from autogemm.search import STARTS, TRIALS, Search, chosen_in, seeds_for
from autogemm.strategies import BY_NAME, STRATEGIES, Candidate, Params, ParamValue, Run, Strategy
from autogemm.strategies.base import one_of
from autogemm.tuner import Progress, candidates_for, tune

pytestmark = pytest.mark.usefixtures("recorded_surroundings")


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
def many(recorded_surroundings: None, monkeypatch: pytest.MonkeyPatch) -> None:
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
