"""Scores of predictions, summaries of timings, and the scripts that print them."""

from __future__ import annotations

import json
import math
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fresh import run_script
from invented import (
    AXPBY,
    CPU,
    FULL,
    GPU,
    TF32,
    choice,
    entry,
    row,
    table,
    write_for_this_cpu,
)

import autogemm
from autogemm import benchmark
from autogemm.benchmark import Ceilings, Regret, Result, leave_one_out, retime, summary
from autogemm.database import Entry, Table, write_table
from autogemm.device import device_of
from autogemm.overhead import launch_costs, overhead
from autogemm.problem import contiguous_problem
from autogemm.report import tuning_table
from autogemm.strategies import BY_NAME, Candidate

SCRIPT = Path(autogemm.__file__).parents[1] / "scripts" / "benchmark.py"


def cube(size: int, axpby_us: float = 50.0, dtype: torch.dtype = torch.float32) -> Entry:
    """A measured cube: the baseline takes 100 µs, TF32 20."""
    problem = contiguous_problem(size, size, size, dtype)
    rows = [row(FULL, 100.0), row(AXPBY, axpby_us)]
    if dtype is torch.float32:
        rows.append(row(TF32, 20.0))
    return entry(problem, {"highest": choice(AXPBY, 100.0 / axpby_us, axpby_us)}, rows)


CUBES = [cube(size) for size in (2048, 2560, 3072, 3584, 4096)]


# ------------------------------------------------------------------------------------ regret


def graph_regrets(entries: list[Entry]) -> list[Regret]:
    return [r for r in leave_one_out(entries) if r.mode == "graph"]


def test_what_won_everywhere_is_predicted_for_the_one_left_out() -> None:
    results = graph_regrets(CUBES)
    assert [r.problem for r in results] == [e.problem for e in CUBES]
    for r in results:
        assert (r.predicted, r.best, r.level) == (AXPBY, AXPBY, "highest")
        assert r.source in ("near", "model")
        assert r.regret == pytest.approx(1.0)
        assert r.speed == pytest.approx(2.0)


def test_an_entry_is_never_predicted_from_itself() -> None:
    alone = cube(64, 20.0, torch.float64)
    (result,) = graph_regrets([alone])
    assert (result.predicted, result.source) == (FULL, "default")
    assert result.best == AXPBY
    assert result.regret == pytest.approx(5.0)
    assert result.speed == pytest.approx(1.0)
    assert graph_regrets([alone, *CUBES])[0] == result


def test_the_table_for_people_tells_what_runs_and_not_what_a_slower_host_would_undo() -> None:
    problem = contiguous_problem(512, 512, 512, torch.float32)
    rows = [row(FULL, 50.0, graph_us=45.0), row(AXPBY, 40.0, graph_us=20.0)]
    close = replace(choice(AXPBY, ratio=1.3, us=40.0), low=1.02)
    graph, eager = tuning_table([entry(problem, {"highest": close}, rows)]).splitlines()[1:]
    assert "matmul_axpby" in graph.split("graph")[1]
    assert graph.split()[-3:-1] == ["40.0", "1.30"]
    assert f"{FULL} (matmul_axpby may lose on a slower host)" in eager
    assert eager.split()[-3:-1] == ["52.0", "1.00"]
    plain = tuning_table([entry(problem, {"highest": choice(FULL, ratio=1.0)}, rows)])
    assert "may lose" not in plain


def test_a_wrong_prediction_shows_as_a_loss() -> None:
    odd_one = cube(3328, axpby_us=400.0)
    result = graph_regrets([*CUBES, odd_one])[-1]
    assert (result.predicted, result.best) == (AXPBY, FULL)
    assert result.regret == pytest.approx(4.0)
    assert result.speed == pytest.approx(0.25)


def test_only_what_the_level_admits_counts_as_best() -> None:
    """TF32 is the fastest row everywhere, and no candidate at the highest level."""
    chosen = {"highest": choice(AXPBY), "high": choice(TF32, 5.0, 20.0)}
    entries = [replace(e, choices=entry(e.problem, chosen).choices) for e in CUBES]
    best = {(r.level, r.best) for r in graph_regrets(entries)}
    assert best == {("highest", AXPBY), ("high", TF32)}


def test_rows_without_a_time_or_unknown_today_are_left_out_of_the_score() -> None:
    extra = [
        row(Candidate.of("ksplit", form="batched", chunks=2), None, status="failed"),
        row(Candidate.of("ksplit", form="batched"), 1.0),
        row(Candidate.of("magic"), 1.0),
    ]
    entries = [replace(e, measured=(*e.measured, *extra)) for e in CUBES]
    assert graph_regrets(entries) == graph_regrets(CUBES)
    without = replace(CUBES[0], measured=CUBES[0].measured[1:])  # its baseline is not known
    assert len(graph_regrets([without, *CUBES[1:]])) == len(CUBES) - 1


# ----------------------------------------------------------------------------------- summary


def result(**facts: object) -> Result:
    given = {
        "problem": contiguous_problem(4096, 4096, 4096, torch.float32), "level": "highest",
        "mode": "graph", "candidate": AXPBY, "us": 50.0, "baseline_us": 100.0, "ratio": 2.0,
        "low": 1.9, "high": 2.1, "aa": 1.01, "tflops": 1.0, "gbytes": 1.0, "roofline": None,
        "error": None, **facts,
    }  # fmt: skip
    return Result(**given)  # type: ignore[arg-type]


def test_the_summary_tells_means_worst_and_noise() -> None:
    small = contiguous_problem(8, 8, 8, torch.float32)
    lines = summary(
        [
            result(ratio=2.0, aa=1.01),
            result(ratio=8.0, aa=0.97),
            result(ratio=0.5, problem=small, low=0.4, high=0.6, aa=1.0),
            result(ratio=3.0, level="high", mode="eager"),
        ]
    )
    assert "float32   highest   graph     3 problems: geomean 2.000 x addmm" in lines[0]
    assert "4.000 over the 2 above 1e8 flop" in lines[0]
    assert lines[0].endswith("worst 0.500")
    assert "high      eager     1 problems: geomean 3.000" in lines[1]
    losers = [line for line in lines if line.startswith("below 0.98")]
    assert len(losers) == 1
    assert "float32 8x8x8" in losers[0]
    assert "0.500 [0.400, 0.600]" in losers[0]
    assert "A/A" in lines[-1]
    assert "most 3.00%" in lines[-1]


def test_the_summary_of_nothing_is_empty() -> None:
    assert summary([]) == []


def test_a_result_can_be_written_as_json() -> None:
    facts = json.loads(json.dumps(result().as_json()))
    assert facts["candidate"] == "matmul_axpby"
    assert facts["problem"]["m"] == 4096
    assert facts["problem"]["dtype"] == "float32"
    assert facts["ratio"] == 2.0


# ---------------------------------------------------------------------------------- timings


def cpu_entry(**facts: object) -> Entry:
    problem = contiguous_problem(16, 12, 20, torch.float32, device_type="cpu")
    return replace(entry(problem, {"highest": choice(AXPBY), "high": choice(FULL, 1.0)}), **facts)


@pytest.mark.parametrize("update", ["none", "add", "bias", "inplace"])
def test_a_tuned_problem_is_timed_again_at_each_level_as_bound_and_as_called(
    update: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "_ROUNDS", 3)
    made = cpu_entry()
    made = replace(made, problem=replace(made.problem, update=update))
    ceilings = Ceilings({"float32": 1e9}, 1e9)
    with torch.no_grad():
        results = list(retime(made, device_of(CPU), CPU, ceilings))
    assert {(r.level, r.mode) for r in results} == {
        (level, mode) for level in ("highest", "high") for mode in ("eager", "call")
    }
    for r in results:
        assert r.us > 0
        assert r.baseline_us > 0
        assert r.low <= r.ratio <= r.high
        assert r.aa > 0
        assert r.roofline is not None
        assert r.candidate == (AXPBY if r.level == "highest" else FULL)


@pytest.mark.parametrize(
    ("asked", "timed"),
    [
        ({"level": "high"}, {("high", "eager"), ("high", "call")}),
        ({"mode": "call"}, {("highest", "call"), ("high", "call")}),
        ({"level": "highest", "mode": "eager"}, {("highest", "eager")}),
        ({"level": "medium"}, set()),
        ({"mode": "graph"}, set()),
    ],
)
def test_one_level_or_mode_is_timed_alone(
    asked: dict[str, str], timed: set[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "_ROUNDS", 3)
    with torch.no_grad():
        results = list(retime(cpu_entry(), device_of(CPU), CPU, None, **asked))
    assert {(r.level, r.mode) for r in results} == timed


def test_an_entry_without_choices_has_nothing_to_time_again() -> None:
    for choices in ({}, {"highest": {}}):
        assert list(retime(cpu_entry(choices=choices), device_of(CPU), CPU, None)) == []


def test_a_choice_that_cannot_run_here_is_left_out_and_named() -> None:
    half = cpu_entry(
        choices={"highest": {"eager": choice(AXPBY)}, "high": {"eager": choice(TF32)}}
    )
    assert benchmark.unable(half, device_of(CPU)) == {"high": "tf32 runs on cuda, not on cpu"}
    with torch.no_grad():
        levels = {r.level for r in retime(half, device_of(CPU), CPU, None)}
    assert levels == {"highest"}


def test_what_a_call_leaves_to_the_baseline_is_timed_as_the_baseline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(benchmark, "_ROUNDS", 3)
    rows = (row(FULL, 100.0, graph_us=95.0), row(AXPBY, 60.0, graph_us=20.0))
    for ratio, timed in ((1.6, FULL), (2.4, AXPBY)):
        made = cpu_entry(choices={"highest": {"eager": choice(AXPBY, ratio)}}, measured=rows)
        with torch.no_grad():
            (result,) = retime(made, device_of(CPU), CPU, None, mode="eager")
        assert result.candidate == timed


def test_another_machines_table_is_not_timed_here(tmp_path: Path) -> None:
    write_table(tmp_path / "gpu.yaml", Table(device=GPU))
    for option in ([], ["--guard"]):
        done = run_script(SCRIPT, "--device", "cpu", "--db", tmp_path / "gpu.yaml", *option)
        assert done.returncode == 2
        assert f"measured on {GPU}; expected a table of" in done.stderr


def test_ceilings_bound_the_time_from_below(monkeypatch: pytest.MonkeyPatch) -> None:
    ceilings = Ceilings({"float32": 1e12}, 1e10)
    computes = contiguous_problem(4096, 4096, 4096, torch.float32)
    moves = contiguous_problem(4096, 1, 4096, torch.float32)
    assert ceilings.seconds(computes) == pytest.approx(2 * 4096**3 / 1e12)
    assert ceilings.seconds(moves) == pytest.approx(moves.min_bytes / 1e10)
    unknown = replace(computes, dtype=torch.float64)
    assert ceilings.seconds(unknown) == pytest.approx(unknown.min_bytes / 1e10)
    calls: list[Callable[[], object]] = []

    def one_second(call: Callable[[], object], where: torch.device) -> float:
        calls.append(call)
        return 1.0

    monkeypatch.setattr(benchmark, "_best_seconds", one_second)
    measured = benchmark.measure_ceilings(device_of(CPU), CPU)
    assert measured.flops["float64"] == 2.0 * 1024**3
    assert measured.bytes == 2.0 * 2**27
    assert len(calls) == 5
    calls[0]()


def test_the_overhead_of_a_warm_call_is_told_beside_addmm() -> None:
    cost = overhead(rounds=3, calls=5)
    assert cost.gemm_us > 0
    assert cost.addmm_us > 0
    assert cost.ratio == cost.gemm_us / cost.addmm_us
    assert cost.strategy in BY_NAME


# ----------------------------------------------------------------------------------- script


def script(monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    """Run the script's ``main`` in this process."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *options])
    monkeypatch.setattr(sys, "path", [*sys.path])
    code = runpy.run_path(str(SCRIPT))["main"]()
    assert isinstance(code, int)
    return code


def test_the_launches_of_every_strategy_that_runs_here_are_timed() -> None:
    here = device_of(CPU)
    costs = launch_costs(here, CPU, rounds=2, calls=1)
    assert {cost.candidate.strategy for cost in costs} >= {
        "addmm", "baddbmm", "matmul_axpby", "loop", "ksplit",
    }  # fmt: skip
    assert all(cost.us > 0 for cost in costs)
    forms = [c.candidate.kwargs["form"] for c in costs if c.candidate.strategy == "ksplit"]
    assert sorted(forms) == ["batched", "sequential"]


def test_the_script_tells_the_overhead() -> None:
    told = subprocess.run(
        [sys.executable, str(SCRIPT), "--overhead"],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    cost, *launches = told.stdout.splitlines()
    assert "warm gemm" in cost
    assert "torch.addmm" in cost
    assert cost.endswith(" x")
    assert bool(launches) == torch.cuda.is_available()


def test_the_script_scores_another_machines_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"{GPU.slug}.yaml"
    write_table(path, table(*CUBES, cube(3328, axpby_us=400.0)))
    assert script(monkeypatch, "--regret", "--db", str(path)) == 0
    out = capsys.readouterr().out
    assert "graph: 6 left-out choices" in out
    assert "geomean regret" in out
    assert "float32 3328x3328x3328" in out
    assert "4.000" in out
    assert "slowest 0.250 x addmm" in out


def test_the_script_does_not_stumble_over_what_it_does_not_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"{GPU.slug}.yaml"
    magic = replace(CUBES[0], choices={"highest": {"graph": choice(Candidate.of("magic"))}})
    rows = (*CUBES[1].measured, row(Candidate.of("magic"), 1.0))
    write_table(path, table(magic, replace(CUBES[1], measured=rows), *CUBES[2:]))
    assert script(monkeypatch, "--regret", "--db", str(path)) == 0
    assert "graph: 4 left-out choices" in capsys.readouterr().out


def test_the_script_times_this_machines_table_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "_ROUNDS", 3)
    monkeypatch.setattr(
        benchmark, "measure_ceilings", lambda device, where: Ceilings({"float32": 1e9}, 1e9)
    )
    write_for_this_cpu(tmp_path, cpu_entry())
    figures = tmp_path / "figures.json"
    code = script(
        monkeypatch, "--device", "cpu", "--db", str(tmp_path), "--json", str(figures)
    )
    assert code == 0
    out = capsys.readouterr().out
    assert "float32 16x12x20" in out
    assert "A/A (the baseline against itself)" in out
    facts = json.loads(figures.read_text())
    assert len(facts["results"]) == 4
    assert all(math.isfinite(r["ratio"]) for r in facts["results"])
    assert facts["versions"]["torch"] == torch.__version__.split("+")[0]


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        (torch.OutOfMemoryError("tried to allocate 128 GiB"), 0, 4),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), 1, 0),
    ],
)
def test_what_cannot_be_timed_again_costs_nothing_else_that_can(
    error: RuntimeError, code: int, shown: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    real = benchmark.retime

    def failing_first(entry: Entry, *args: Any, **kwargs: Any) -> Any:
        if not seen:
            seen.append(entry)
            raise error
        return real(entry, *args, **kwargs)

    seen: list[Entry] = []
    monkeypatch.setattr(benchmark, "retime", failing_first)
    monkeypatch.setattr(benchmark, "_ROUNDS", 3)
    monkeypatch.setattr(
        benchmark, "measure_ceilings", lambda device, where: Ceilings({"float32": 1e9}, 1e9)
    )
    other = replace(cpu_entry(), problem=replace(cpu_entry().problem, k=24))
    write_for_this_cpu(tmp_path, cpu_entry(), other)
    assert script(monkeypatch, "--device", "cpu", "--db", str(tmp_path)) == code
    out, err = capsys.readouterr()
    assert f"{seen[0].problem} was left out: {type(error).__name__}: {error}" in err
    assert ("the device was lost; the rest was not timed" in err) == bool(code)
    assert sum(line.startswith("float32 16x12x") for line in out.splitlines()) == shown


def test_a_reader_that_has_seen_enough_ends_the_script_in_order() -> None:
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), "--overhead", "--device", "cpu"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(60) == 0


def test_the_script_says_where_nothing_is_to_be_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        benchmark, "measure_ceilings", lambda device, where: Ceilings({"float32": 1e9}, 1e9)
    )
    write_for_this_cpu(tmp_path, cpu_entry())
    only = ("--precision", "medium", "--mode", "call")
    assert script(monkeypatch, "--device", "cpu", "--db", str(tmp_path), *only) == 1
    assert "--precision medium --mode call: there is nothing to time" in capsys.readouterr().err


def test_without_a_table_the_script_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script(monkeypatch, "--device", "cpu", "--db", str(tmp_path)) == 1
    err = capsys.readouterr().err
    assert "no table for" in err
    assert str(tmp_path) in err
    assert "scripts/tune.py" in err


def test_a_device_that_is_not_there_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script(monkeypatch, "--device", "abacus", "--db", str(tmp_path)) == 2
    assert "--device abacus" in capsys.readouterr().err
