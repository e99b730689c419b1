"""What the guard of emulated float32 products costs, and what one bad element does."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from autogemm.database import Entry
from autogemm.device import Device
from autogemm.measure import Workbench, in_turns
from autogemm.problem import Problem
from autogemm.strategies import BY_NAME, Candidate
from autogemm.strategies.emulated_fp32 import EmulatedFP32

_ROUNDS = 25


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarded:
    """Device time of an emulated product on ordinary operands, and what changes it."""

    problem: Problem
    candidate: Candidate
    us: float
    share: float
    """What the checks add: the median over rounds of its time over that without them, less 1."""
    bad_us: Mapping[str, float]
    """With a single element replaced, by what it is and where."""


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
        timers = {"": bench.graph(run), "unguarded": bench.graph(bare)}
        rounds = _rounds(timers)
        pairs = zip(rounds[""], rounds["unguarded"], strict=True)
        share = statistics.median(guarded / without for guarded, without in pairs) - 1
        bad: dict[str, float] = {}
        operands = bench.operands
        first = () if problem.batch == 1 else (0,)  # of a batch's matrices
        for name, (operand, value) in BAD_ELEMENTS.items():
            at = (problem.m // 2, problem.k // 3)
            if operand == "B":
                at = (problem.k // 3, problem.n // 2)
            changed = [x.A[first + at] if operand == "A" else x.B[first + at] for x in operands]
            changed += [x.C for x in operands if x.C is not None and x.in_place]  # they spread
            kept = [x.clone() for x in changed]
            for x in changed[: len(operands)]:
                x.fill_(value)
            bad[name] = statistics.median(_rounds({name: timers[""]})[name])
            for x, good in zip(changed, kept, strict=True):
                x.copy_(good)
        again = _rounds({"": timers[""]})[""]
    return Guarded(
        problem=problem, candidate=choice.candidate, share=share, bad_us=bad,
        us=(statistics.median(rounds[""]) + statistics.median(again)) / 2,
    )  # fmt: skip


def _rounds(timers: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    times = in_turns({Candidate.of(name): timer for name, timer in timers.items()}, _ROUNDS)
    return {c.strategy: samples for c, samples in times.items()}
