"""Times what a table chooses by another version of this package, in turns with this one.

So that a change to a kernel is measured against the code before it while clocks, neighbours and
operands are the same for both.
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import re
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from autogemm.database import Entry
from autogemm.device import Device
from autogemm.errors import AutogemmError
from autogemm.measure import Workbench, in_turns, ratio
from autogemm.problem import Problem
from autogemm.strategies import BY_NAME, Candidate, Run, reasons_not
from autogemm.strategies.emulated_fp32 import EmulatedFP32

_numbers = itertools.count(1)
"""Of what was imported: a name stays with torch's operators for good."""
_OTHER = Candidate.of("the other version")
_AGAIN = Candidate.of("this version again")
_UNGUARDED = (Candidate.of("this version, unguarded"), Candidate.of("the other one, unguarded"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One choice, timed by both versions; times are medians, in µs."""

    problem: Problem
    level: str
    candidate: Candidate
    us: float
    other_us: float
    ratio: float
    """How many times faster this version is: the median of the rounds' ratios."""
    low: float
    high: float
    aa: float
    """This version's ratio to itself."""
    guard: tuple[float, float] | None
    """What the checks of an emulated product add, here and there, as a share; else None."""
    is_equal: bool
    """Whether both results have the same bits."""


@contextmanager
def version_at(checkout: Path) -> Iterator[str]:
    """Import the package of another checkout; yields the name under which it can be imported.

    It is copied and renamed, wherever its sources name it: two of one name cannot be loaded, nor
    can torch's registered operators have one name twice. Raises ``AutogemmError`` if there is none.
    """
    source, name = checkout / "autogemm", f"autogemm_version_{next(_numbers)}"
    if not (source / "__init__.py").is_file():
        raise AutogemmError(f"{checkout}: no package autogemm there; expected a checkout of it.")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / name
        shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        for path in copy.rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            path.write_text(re.sub(r"\bautogemm\b", name, text), encoding="utf-8")
        sys.path.insert(0, folder)
        importlib.invalidate_caches()
        try:
            importlib.import_module(f"{name}.strategies")
            yield name
        finally:
            sys.path.remove(folder)
            for module in [each for each in sys.modules if each.split(".")[0] == name]:
                del sys.modules[module]


def compare(
    entry: Entry, device: Device, where: torch.device, name: str, *, level: str, mode: str,
    strategy: str | None = None, form: str | None = None, rounds: int = 15,
) -> Iterator[Compared]:  # fmt: skip
    """Time an entry's choice at a level by this version and by that imported as ``name``.

    Nothing is yielded where there is no such choice, where it cannot run here, or where it is not
    of the ``strategy`` or the ``form`` asked for.
    """
    problem, choice = entry.problem, entry.choices.get(level, {}).get(mode)
    if choice is None or reasons_not(choice.candidate, problem, device):
        return
    candidate = choice.candidate
    params = candidate.kwargs
    if strategy not in (None, candidate.strategy) or form not in (None, params.get("form")):
        return
    here, there = BY_NAME[candidate.strategy], _strategy_of(name, candidate.strategy)
    other = _same(problem, name), _device_of(name, where)
    with Workbench.open(problem, device, where, check=False) as bench:
        runs: dict[Candidate, Run] = {
            candidate: here.bind(problem, device, params),
            _OTHER: there.bind(*other, params),
            _AGAIN: here.bind(problem, device, params),
        }
        is_equal = _are_equal(bench, runs[candidate], runs[_OTHER])
        has_guard = isinstance(here, EmulatedFP32)
        if isinstance(here, EmulatedFP32):
            runs[_UNGUARDED[0]] = here.bind(problem, device, params, guard=False)
            runs[_UNGUARDED[1]] = there.bind(*other, params, guard=False)
        timers = {each: bench.timer(run, mode) for each, run in runs.items()}
        times = in_turns(timers, rounds)
    found, guard = ratio(times[_OTHER], times[candidate]), None
    if has_guard:
        guard = (
            ratio(times[candidate], times[_UNGUARDED[0]]).median - 1,
            ratio(times[_OTHER], times[_UNGUARDED[1]]).median - 1,
        )
    yield Compared(
        problem=problem, level=level, candidate=candidate, ratio=found.median, low=found.low,
        high=found.high, us=statistics.median(times[candidate]),
        other_us=statistics.median(times[_OTHER]), guard=guard, is_equal=is_equal,
        aa=ratio(times[candidate], times[_AGAIN]).median,
    )  # fmt: skip


def _strategy_of(name: str, strategy: str) -> Any:
    strategies = importlib.import_module(f"{name}.strategies").BY_NAME
    if strategy not in strategies:
        raise RuntimeError(f"the other version has no strategy {strategy}")
    return strategies[strategy]


def _same(problem: Problem, name: str) -> Any:
    """The problem as the other version has it."""
    made = importlib.import_module(f"{name}.problem").Problem
    return made(**{f.name: getattr(problem, f.name) for f in dataclasses.fields(problem)})


def _device_of(name: str, where: torch.device) -> Any:
    return importlib.import_module(f"{name}.device").device_of(where)


def _are_equal(bench: Workbench, run: Run, other: Run) -> bool:
    operands = bench.operands[0]
    kept = operands.out.clone() if operands.out is not None and operands.in_place else None
    results = []
    for each in (run, other):
        results.append(bench.call(each, operands).clone().contiguous().view(torch.uint8))
        if operands.out is not None and kept is not None:
            operands.out.copy_(kept)
    return torch.equal(*results)
