"""Graphs and eager calls of choices and of the baseline are timed in the same rounds."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from invented import AXPBY, CPU, FULL, GPU, choice, entry

from autogemm import eager_gap as module
from autogemm.device import device_of
from autogemm.eager_gap import _ROUNDS, Gap, eager_gap
from autogemm.measure import Workbench
from autogemm.problem import contiguous_problem
from autogemm.strategies import Candidate
from autogemm.strategies.base import Run

KSPLIT = Candidate.of("ksplit", form="batched", chunks=2)
PROBLEM = contiguous_problem(6, 9, 64, torch.float32, device_type="cpu")
HERE = device_of(CPU)
SCRIPT = runpy.run_path(str(Path(module.__file__).parents[1] / "scripts" / "benchmark.py"))


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is timed, by name; a call's time is told by its candidate and mode."""
    called: list[str] = []
    us = {FULL: 100.0, AXPBY: 40.0, KSPLIT: 20.0}
    names: dict[int, Candidate] = {}
    bind = Workbench.bind

    def named(bench: Workbench, candidate: Candidate) -> Run:
        run = bind(bench, candidate)

        def own(*call: object) -> torch.Tensor:
            return run(*call)  # type: ignore[arg-type]

        names[id(own)] = candidate
        return own

    def timer(mode: str, more: float) -> Callable[..., Callable[[], float]]:
        def made(bench: Workbench, run: Run, length: float = 0.0) -> Callable[[], float]:
            candidate = names[id(run)]

            def time() -> float:
                called.append(f"{candidate.strategy} {mode}")
                return us[candidate] + more

            return time

        return made

    monkeypatch.setattr(Workbench, "bind", named)
    monkeypatch.setattr(Workbench, "graph", timer("graph", 0.0))
    monkeypatch.setattr(Workbench, "eager", timer("eager", 5.0))
    return called


def test_all_four_are_timed_in_every_round(timed: list[str]) -> None:
    made = entry(PROBLEM, {"highest": choice(AXPBY)})
    both = {"graph": choice(KSPLIT), "eager": choice(AXPBY)}
    gap = eager_gap(replace(made, choices={"highest": both}), HERE, CPU)
    assert gap is not None
    assert (gap.graph, gap.eager) == (KSPLIT, AXPBY)
    assert (gap.graph_us, gap.eager_us) == (20.0, 45.0)
    assert (gap.baseline_graph_us, gap.baseline_eager_us) == (100.0, 105.0)
    four = {"ksplit graph", "matmul_axpby eager", "addmm graph", "addmm eager"}
    rounds = [timed[i : i + 4] for i in range(0, len(timed), 4)]
    assert len(rounds) == _ROUNDS
    assert all(set(one) == four for one in rounds)


def test_what_graphs_run_stands_in_where_eager_calls_have_no_choice_of_their_own(
    timed: list[str],
) -> None:
    made = entry(PROBLEM, {"highest": choice(AXPBY)})
    gap = eager_gap(replace(made, choices={"highest": {"graph": choice(KSPLIT)}}), HERE, CPU)
    assert gap is not None
    assert gap.graph == gap.eager == KSPLIT
    assert gap.eager_us == 25.0


def test_what_cannot_be_timed_is_left_out(timed: list[str]) -> None:
    made = entry(PROBLEM, {"highest": choice(AXPBY)})
    assert eager_gap(made, HERE, CPU) is None  # no graphs on a CPU
    absent = {"graph": choice(Candidate.of("cute")), "eager": choice(AXPBY)}
    assert eager_gap(replace(made, choices={"highest": absent}), HERE, CPU) is None
    assert timed == []


def test_the_script_shows_gaps_the_largest_product_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(made: object, device: object, where: object) -> Gap | None:
        problem = made.problem  # type: ignore[attr-defined]
        if problem.k == 65:
            return None
        return Gap(
            problem=problem, graph=KSPLIT, eager=AXPBY if problem.k == 64 else KSPLIT,
            graph_us=20.0, eager_us=25.0, baseline_graph_us=100.0, baseline_eager_us=101.0,
        )  # fmt: skip

    monkeypatch.setattr(module, "eager_gap", told)
    entries = [entry(replace(PROBLEM, k=k), {"highest": choice(AXPBY)}) for k in (64, 65, 66)]
    assert SCRIPT["show_eager_gap"](entries, GPU, CPU, None) == 0
    lines = capsys.readouterr().out.splitlines()
    first, second = (line.split(")")[1].split() for line in lines if "6x9x" in line)
    assert first == ["20.0", "25.0", "+25.0%", "100.0", "101.0", "+1.0%", "4.04"]
    assert second == ["20.0", "25.0", "+25.0%", "*", "100.0", "101.0", "+1.0%", "4.04"]
    assert SCRIPT["show_eager_gap"](entries, HERE, CPU, None) == 2
    assert "expected a GPU" in capsys.readouterr().err
