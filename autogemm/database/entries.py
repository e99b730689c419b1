"""What a tuning table holds, as plain data: no file, no torch settings, no choice is made here.

``docs/table-format.md`` shows how each of these is spelt in YAML.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from autogemm.device import Device
from autogemm.problem import DTYPE_NAMES, Problem
from autogemm.strategies.base import Candidate

MODES = ("graph", "eager")
"""How a call is made: replayed from a CUDA graph, or launched with all its overheads."""

STATUSES = ("ok", "slow", "unsupported", "inaccurate", "failed")
"""What became of a candidate; ``slow`` was screened out early, so its times are indicative."""

Key = tuple[int, int, int, str, str, str, str, str, int]
"""(m, n, k, dtype, a, b, out, update, batch): what tells the entries of one table apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One candidate that was tried: the evidence behind a choice.

    Times are medians of one call in microseconds. ``error`` is R = max |err| / (u·G) over all
    samples, ``error_norm`` the relative error ‖err‖/‖result‖ on normal data; they and the
    times are None where they were not taken.
    """

    candidate: Candidate
    status: str
    graph_us: float | None = None
    eager_us: float | None = None
    error: float | None = None
    error_norm: float | None = None
    workspace_bytes: int = 0
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What serves a problem at one level and in one mode, and by how much it won.

    Times are medians of one call in microseconds. ``ratio`` is the baseline's time over the
    choice's, so above 1 is faster than the baseline; ``low`` and ``high`` bound it with 95 %
    confidence over ``rounds`` interleaved rounds. ``runner_up_ratio`` is the same ratio for
    the next best candidate.
    """

    candidate: Candidate
    us: float
    baseline_us: float
    ratio: float
    low: float
    high: float
    rounds: int
    runner_up: Candidate | None
    runner_up_ratio: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What is known about one problem on one device.

    ``environment`` is the ``id`` of the environment it was measured in, ``date`` the day as
    YYYY-MM-DD. ``choices`` maps a level, then a mode, to its choice. ``space`` is a digest of
    the candidates that were searched: another digest means that tuning again may find more.
    Levels behind a ``/`` are those it is true of, where choices of others are from older lists,
    some perhaps measured where less was installed.
    """

    problem: Problem
    environment: str
    date: str
    choices: Mapping[str, Mapping[str, Choice]]
    measured: tuple[Measured, ...]
    space: str

    @property
    def key(self) -> Key:
        """What this entry is filed under."""
        return key_of(self.problem)


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """The software that measurements ran under, and the clocks (MHz) seen meanwhile."""

    versions: Mapping[str, str]
    clocks: Mapping[str, int]

    @property
    def id(self) -> str:
        """Eight hex digits that equal versions share; clocks do not count."""
        canonical = json.dumps(dict(self.versions), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:8]

    def extends(self, other: Environment) -> bool:
        """Whether it has all that the other one has, in the same versions, and perhaps more."""
        return other.versions.items() <= self.versions.items()


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """All entries of one device; ``path`` is the file they came from, if any."""

    device: Device
    environments: Mapping[str, Environment] = field(default_factory=dict)
    entries: Mapping[Key, Entry] = field(default_factory=dict)
    path: Path | None = None


def key_of(problem: Problem) -> Key:
    """The key under which a table of the problem's device files it."""
    return (
        problem.m,
        problem.n,
        problem.k,
        DTYPE_NAMES[problem.dtype],
        problem.a,
        problem.b,
        problem.out,
        problem.update,
        problem.batch,
    )


def by_key(entries: Iterable[Entry]) -> dict[Key, Entry]:
    """Entries filed under their keys; of two with one key the later stays."""
    return {entry.key: entry for entry in entries}
