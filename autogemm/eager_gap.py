"""What eager calls take beyond CUDA graphs: choices and the baseline, timed in turns."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import torch

from autogemm.database import Entry
from autogemm.device import Device
from autogemm.measure import Workbench, in_turns
from autogemm.problem import Problem
from autogemm.strategies import Candidate, baseline, reasons_not

_ROUNDS = 15
_EAGER_US = 24000.0
"""Length of an eager run, of which its ends, an idle GPU and a host that waits, are 1 or 2 %."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Times of a call at ``highest``, in µs: medians of rounds in which all four were timed."""

    problem: Problem
    graph: Candidate
    eager: Candidate
    """What is chosen for graphs, and for eager calls."""
    graph_us: float
    eager_us: float
    baseline_graph_us: float
    baseline_eager_us: float

    def row(self) -> tuple[str, ...]:
        """The cells below ``HEAD``; * where eager calls choose differently."""
        base_graph, base_eager = self.baseline_graph_us, self.baseline_eager_us
        return (
            str(self.problem), f"{self.graph_us:.1f}", f"{self.eager_us:.1f}",
            f"{self.eager_us / self.graph_us - 1:+.1%}", "" if self.eager == self.graph else "*",
            f"{base_graph:.1f}", f"{base_eager:.1f}", f"{base_eager / base_graph - 1:+.1%}",
            f"{base_eager / self.eager_us:.2f}",
        )  # fmt: skip


HEAD = ("problem", "graph us", "eager us", "gap", "", "addmm graph", "eager", "gap", "x addmm")


def eager_gap(entry: Entry, device: Device, where: torch.device) -> Gap | None:
    """Time an entry's choices for graphs and for eager calls; None where one cannot run here."""
    choices, problem = entry.choices.get("highest", {}), entry.problem
    if "graph" not in choices:
        return None
    graph = choices["graph"].candidate
    eager = choices.get("eager", choices["graph"]).candidate
    base = baseline(problem, "highest")
    if any(reasons_not(candidate, problem, device) for candidate in (graph, eager, base)):
        return None
    with Workbench.open(problem, device, where, check=False) as bench:
        runs = {candidate: bench.bind(candidate) for candidate in (graph, eager, base)}
        timers = {
            "graph": bench.graph(runs[graph]), "eager": bench.eager(runs[eager], _EAGER_US),
            "base graph": bench.graph(runs[base]), "base eager": bench.eager(runs[base], _EAGER_US),
        }  # fmt: skip
        times = in_turns({Candidate.of(name): timer for name, timer in timers.items()}, _ROUNDS)
    us = {candidate.strategy: statistics.median(samples) for candidate, samples in times.items()}
    return Gap(
        problem=problem, graph=graph, eager=eager, graph_us=us["graph"], eager_us=us["eager"],
        baseline_graph_us=us["base graph"], baseline_eager_us=us["base eager"],
    )  # fmt: skip
