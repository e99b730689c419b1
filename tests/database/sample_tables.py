"""Tables for the tests of this folder, on an invented GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from autogemm.database import Choice, Entry, Environment, Measured, Table, by_key
from autogemm.device import Device
from autogemm.problem import Problem
from autogemm.strategies.base import Candidate

DEVICE = Device(
    type="cuda",
    name="Abacus 3000 PCIe",
    capability=(9, 0),
    units=132,
    cache_bytes=52428800,
    memory_bytes=85899345920,
    features=("beads",),
)
ENVIRONMENT = Environment(
    versions={"torch": "2.13.0", "cuda": "13.0", "cublas": "13.1.0.3"},
    clocks={"sm_mhz": 1980, "memory_mhz": 2619},
)
PADDED = Candidate.of("padded", form="through")
FUSED = Candidate.of("padded", form="fused")
ADDMM = Candidate.of("addmm", reduced=False)

CHOICE = Choice(
    candidate=PADDED,
    us=327.1,
    baseline_us=938.6,
    ratio=2.869,
    low=2.85,
    high=2.88,
    rounds=20,
    runner_up=FUSED,
    runner_up_ratio=2.801,
)
EAGER = replace(CHOICE, us=331.0, candidate=ADDMM, runner_up=None, runner_up_ratio=None)
MEASURED = (
    Measured(
        candidate=ADDMM, status="ok", graph_us=938.6, eager_us=941.0, error=12.3, error_norm=1.62e-7
    ),
    Measured(candidate=FUSED, status="slow", graph_us=1400.0, workspace_bytes=4096),
    Measured(candidate=PADDED, status="ok", graph_us=327.1, eager_us=331.0, error=0.0),
    Measured(candidate=Candidate.of("tf32"), status="unsupported", note="no tensor cores: a test"),
)


def problem(m: int, n: int = 512, k: int = 256, **facts: object) -> Problem:
    return replace(Problem(m=m, n=n, k=k, dtype=torch.bfloat16), **facts)


def entry(m: int = 4095, environment: Environment = ENVIRONMENT, **facts: object) -> Entry:
    made = Entry(
        problem=problem(m),
        environment=environment.id,
        date="2026-11-22",
        choices={"highest": {"graph": CHOICE, "eager": EAGER}, "high": {"graph": CHOICE}},
        measured=MEASURED,
        space="91bd02aa",
    )
    return replace(made, **facts)


def table(*entries: Entry, path: Path | None = None) -> Table:
    return Table(
        device=DEVICE,
        environments={ENVIRONMENT.id: ENVIRONMENT},
        entries=by_key(entries),
        path=path,
    )
