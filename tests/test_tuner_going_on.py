"""A tuning that is cut off, killed, short of time or of some levels goes on where it was."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from invented import AXPBY, BF16, FULL, GPU, TF32
from recorded_tuning import (
    CUBE,
    FEW,
    IN_TURN,
    LEVELS,
    SPLIT,
    Recording,
    chosen,
    only,
    order,
    run,
    statuses,
    stopper,
)

from autogemm import tuner
from autogemm.database import Measured, read_table, table_path
from autogemm.errors import DatabaseError, DatabaseWarning
from autogemm.journal import open_storage
from autogemm.problem import Problem, contiguous_problem
from autogemm.strategies import Candidate
from autogemm.tuner import Progress, candidates_for, tune

pytestmark = pytest.mark.usefixtures("recorded_surroundings")


# ------------------------------------------------------------------- stopping and going on


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
