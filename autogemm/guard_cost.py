"""What the guard of emulated float32 products costs, and what one bad element does."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from autogemm.database import Entry
from autogemm.device import Device
from autogemm.measure import Workbench, in_turns
from autogemm.problem import Problem
from autogemm.strategies import BY_NAME, Candidate
from autogemm.strategies.emulated_fp32 import EmulatedFP32

_ROUNDS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarded:
    """Device time of an emulated product on ordinary operands, and what changes it."""

    problem: Problem
    candidate: Candidate
    us: float
    share: float
    """What the checks add: the median over rounds of its time over that without them, less 1."""
    bad: Mapping[str, float]
    """What a single element adds that is replaced, likewise, by what it is and where."""


BAD_ELEMENTS = {
    "inf": ("A", math.inf), "NaN": ("A", math.nan), "256": ("A", 256.0), "1e30": ("A", 1e30),
    "1e-30": ("A", 1e-30), "1e-42": ("A", 1e-42), "NaN in B": ("B", math.nan),
    "1e30 in B": ("B", 1e30),
}  # fmt: skip
"""In A unless it says so. 256 is what heavy tails hold beside numbers of about 1."""


def guard_cost(entry: Entry, device: Device, where: torch.device) -> Guarded | None:
    """Time an entry's choice for ``highest`` with and without its guard, and with bad elements.

    None where the choice is not an emulated product.
    """
    choice = entry.choices.get("highest", {}).get("graph")
    strategy = BY_NAME["emulated_fp32"]
    if choice is None or choice.candidate.strategy != strategy.name:
        return None
    assert isinstance(strategy, EmulatedFP32)
    problem, params = entry.problem, choice.candidate.kwargs
    run = strategy.bind(problem, device, params)
    bare = strategy.bind(problem, device, params, guard=False)
    with Workbench.open(problem, device, where, check=False) as bench:
        timer = bench.graph(run)
        timers = {"": timer, "unguarded": bench.graph(bare)}
        for name, (operand, value) in BAD_ELEMENTS.items():
            timers[name] = _with_one(bench, timer, operand, value)
        times = in_turns({Candidate.of(name): each for name, each in timers.items()}, _ROUNDS)
    rounds = {candidate.strategy: samples for candidate, samples in times.items()}
    return Guarded(
        problem=problem, candidate=choice.candidate, us=statistics.median(rounds[""]),
        share=_more(rounds[""], rounds["unguarded"]),
        bad={name: _more(rounds[name], rounds[""]) for name in BAD_ELEMENTS},
    )  # fmt: skip


def _more(times: list[float], others: list[float]) -> float:
    return statistics.median(x / y for x, y in zip(times, others, strict=True)) - 1


def _with_one(
    bench: Workbench, timer: Callable[[], float], operand: str, value: float
) -> Callable[[], float]:
    def timed() -> float:
        with _replaced(bench, operand, value):
            return timer()

    return timed


@contextmanager
def _replaced(bench: Workbench, operand: str, value: float) -> Iterator[None]:
    """One element of an operand is ``value``, of a batch's first matrix."""
    problem, operands = bench.problem, bench.operands
    first = () if problem.batch == 1 else (0,)
    at = (problem.m // 2, problem.k // 3)
    if operand == "B":
        at = (problem.k // 3, problem.n // 2)
    changed = [x.A[first + at] if operand == "A" else x.B[first + at] for x in operands]
    changed += [x.C for x in operands if x.C is not None and x.in_place]  # they spread
    kept = [x.clone() for x in changed]
    for x in changed[: len(operands)]:
        x.fill_(value)
    try:
        yield
    finally:
        for x, good in zip(changed, kept, strict=True):
            x.copy_(good)
