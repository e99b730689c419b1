"""An invented GPU and invented measurements: evidence for tests of what is chosen and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from autogemm.database import (
    Choice,
    Entry,
    Environment,
    Measured,
    Table,
    by_key,
    table_path,
    write_table,
)
from autogemm.database.lookup import Evidence, Source
from autogemm.device import Device, device_of, software_versions
from autogemm.problem import Problem
from autogemm.strategies import Candidate, baseline

GPU = Device(
    type="cuda",
    name="Example GPU",
    capability=(9, 0),
    units=100,
    cache_bytes=2**25,
    memory_bytes=2**35,
    packages=frozenset({"triton"}),
)
CPU = torch.device("cpu")

FULL = Candidate.of("addmm", reduction="full")
AXPBY = Candidate.of("matmul_axpby")
TF32 = Candidate.of("tf32", pad=False)
BF16 = Candidate.of("half", dtype="bfloat16")


def environment(device_type: str = "cuda", **versions: str) -> Environment:
    """The software here, with some versions replaced."""
    return Environment(versions={**software_versions(device_type), **versions}, clocks={})


def row(candidate: Candidate, us: float | None, **facts: object) -> Measured:
    """A measured row; ``us`` is device and eager time alike unless ``facts`` say otherwise."""
    given = {"status": "ok", "graph_us": us, "eager_us": us, "error": 1.0, **facts}
    return Measured(candidate=candidate, **given)  # type: ignore[arg-type]


def choice(candidate: Candidate, ratio: float = 2.0, us: float = 50.0) -> Choice:
    """A choice that beats the baseline by ``ratio``."""
    return Choice(
        candidate=candidate,
        us=us,
        baseline_us=us * ratio,
        ratio=ratio,
        low=0.99 * ratio,
        high=1.01 * ratio,
        rounds=20,
        runner_up=None,
        runner_up_ratio=None,
    )


def entry(
    problem: Problem,
    choices: Mapping[str, Choice],
    rows: Iterable[Measured] | None = None,
    where: Environment | None = None,
) -> Entry:
    """An entry with one choice a level, the same in each mode; the rows follow from them."""
    modes = ("graph", "eager") if problem.device_type == "cuda" else ("eager",)
    where = where or environment(problem.device_type)
    if rows is None:
        made = {baseline(problem, level): row(baseline(problem, level), 100.0) for level in choices}
        for c in choices.values():
            made.setdefault(c.candidate, row(c.candidate, 100.0 / c.ratio))
        rows = made.values()
    return Entry(
        problem=problem,
        environment=where.id,
        date="2026-11-22",
        choices={level: dict.fromkeys(modes, c) for level, c in choices.items()},
        measured=tuple(rows),
        space="0123abcd",
    )


def table(
    *entries: Entry,
    device: Device = GPU,
    where: Environment | None = None,
    path: Path | None = None,
) -> Table:
    """A table whose entries were all measured in ``where``."""
    where = where or environment(device.type)
    return Table(
        device=device, environments={where.id: where}, entries=by_key(entries), path=path
    )


def evidence(*entries: Entry, where: Environment | None = None, foreign: bool = False) -> Evidence:
    """What entries of one table say about the invented GPU."""
    source = Source(table(*entries, where=where, path=Path("example.yaml")), foreign)
    return Evidence(GPU, [source] if entries else [])


def write_for_this_cpu(directory: Path, *entries: Entry, where: Environment | None = None) -> Path:
    """Write a table for the CPU the tests run on; calls follow it after ``reload_tables``."""
    device = device_of(CPU)
    path = table_path(directory, device)
    write_table(path, table(*entries, device=device, where=where))
    return path


def always(candidate: Candidate, problem: Problem) -> Entry:
    """An entry that has ``candidate`` serve the problem at the level its bound allows."""
    level = {"half": "medium", "tf32": "high"}.get(candidate.strategy, "highest")
    return entry(problem, {level: choice(candidate)})
