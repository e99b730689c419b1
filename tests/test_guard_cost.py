"""What a bad element costs is timed with one element changed, and nothing stays changed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from invented import CPU, FULL, choice, entry

from autogemm.device import device_of
from autogemm.guard_cost import BAD_ELEMENTS, guard_cost
from autogemm.measure import Workbench
from autogemm.problem import Update, contiguous_problem
from autogemm.strategies import Candidate
from autogemm.strategies.base import Run
from autogemm.strategies.emulated_fp32 import EmulatedFP32

EMULATED = Candidate.of("emulated_fp32", form="fused")
GUARDED, UNGUARDED = (lambda *call: None), (lambda *call: None)
PROBLEM = contiguous_problem(6, 9, 12, torch.float32, device_type="cpu")


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("update", ["none", "add", "inplace"])
def test_one_element_at_a_time_is_bad(
    update: Update, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd: list[tuple[int, int]] = []
    good: list[torch.Tensor] = []

    def graph(bench: Workbench, run: Run) -> Callable[[], float]:
        x = bench.operands[0]
        good[:] = [x.A.clone(), x.B.clone()]

        def timer() -> float:
            odd.append((int((good[0] != x.A).sum()), int((good[1] != x.B).sum())))
            if x.in_place and x.C is not None:
                assert x.C.isfinite().all() or any(odd[-1]), "C is as it was for the next element"
                x.C.fill_(math.nan if any(odd[-1]) else 1.0)
            return 10.0

        return timer

    monkeypatch.setattr(Workbench, "graph", graph)
    monkeypatch.setattr(EmulatedFP32, "bind", lambda *args, **options: lambda *call: None)
    problem = replace(PROBLEM, update=update, batch=batch)
    made = entry(problem, {"highest": choice(EMULATED)})
    made = replace(made, choices={"highest": {"graph": choice(EMULATED)}})
    cost = guard_cost(made, device_of(CPU), CPU)
    assert cost is not None
    assert set(cost.bad) == set(BAD_ELEMENTS)
    assert {odd.count(each) for each in ((1, 0), (0, 1))} == {15 * 6, 15 * 2}
    assert len(odd) == 15 * (2 + 8), "the others meet good elements alone"
    assert odd.count((0, 0)) == 15 * 2


def test_clocks_that_fall_are_not_the_guards_doing(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[float] = []

    def graph(bench: Workbench, run: Run) -> Callable[[], float]:
        x = bench.operands[0]

        def timer() -> float:
            is_bad = not (x.A.isfinite().all() and x.B.isfinite().all())
            calls.append(22.0 if is_bad else 11.0 if run is GUARDED else 10.0)
            return calls[-1] * (1 if len(calls) <= 60 else 3)  # ten timers, 15 rounds

        return timer

    monkeypatch.setattr(Workbench, "graph", graph)
    monkeypatch.setattr(
        EmulatedFP32, "bind", lambda *args, guard=True: GUARDED if guard else UNGUARDED
    )
    made = replace(entry(PROBLEM, {}), choices={"highest": {"graph": choice(EMULATED)}})
    cost = guard_cost(made, device_of(CPU), CPU)
    assert cost is not None
    assert cost.share == pytest.approx(0.1)
    assert cost.us == pytest.approx(33)
    special = {"inf", "NaN", "NaN in B"}
    assert cost.bad == pytest.approx({name: float(name in special) for name in BAD_ELEMENTS})


def test_what_is_not_emulated_has_no_guard() -> None:
    assert guard_cost(entry(PROBLEM, {"highest": choice(FULL)}), device_of(CPU), CPU) is None
