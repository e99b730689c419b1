"""What the tables say about a problem: an exact entry, or a prediction from its neighbours."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autogemm.database.entries import Choice, Entry, Key, Measured, Table, key_of
from autogemm.database.locations import search_path, table_files, table_path
from autogemm.database.prediction import (
    HOST_LEAST,
    NEAR,
    Model,
    admits,
    host_margin,
    is_noisier,
    sure_gain,
    waits_for_host,
)
from autogemm.database.reading import read_table
from autogemm.device import Device, software_versions
from autogemm.errors import DatabaseError, DatabaseWarning
from autogemm.precision import LEVELS, Tolerance
from autogemm.problem import Problem
from autogemm.strategies import BY_NAME, STRATEGIES, Candidate, baseline

SWITCH_MARGIN = 1.02
"""A candidate must win by this much before it replaces the baseline."""
STAND_IN_MARGIN = 1.1
"""What the next best must have won by where the choice itself cannot run."""
FOREIGN_MARGIN = 1.2
"""The same for results of other software versions or of a sibling device: a large win stays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """A candidate that evidence speaks for, with what to expect of it."""

    candidate: Candidate
    source: str
    detail: str
    us: float | None
    ratio: float | None
    error: float | None


@dataclass(frozen=True, slots=True)
class Source:
    """One table in use; ``foreign`` where it belongs to a sibling of this device."""

    table: Table
    foreign: bool


class Evidence:
    """All tables that speak for one device, the user's own before the shipped ones."""

    def __init__(self, device: Device, sources: Sequence[Source]) -> None:
        self._device = device
        self._sources = tuple(sources)
        self._exact: dict[Key, tuple[Entry, Source]] = {}
        for source in self._sources:
            for key, entry in source.table.entries.items():
                self._exact.setdefault(key, (entry, source))

    @functools.cached_property
    def _model(self) -> Model:
        return Model(
            (entry, self._margin_of(entry, source)) for entry, source in self._exact.values()
        )

    @property
    def sources(self) -> tuple[str, ...]:
        """The tables in use, by path, first come first served."""
        return tuple(str(source.table.path) for source in self._sources)

    def suggestions(
        self, problem: Problem, tolerance: Tolerance, mode: str
    ) -> list[Suggestion]:
        """Candidates for a problem, best first; an empty list leaves the safe default."""
        found = self._exact.get(key_of(problem))
        if found is not None:
            entry, source = found
            exact = self._from_entry(entry, source, tolerance, mode)
            if exact is not None:
                return exact
        return [
            Suggestion(
                candidate=p.candidate,
                source="near" if p.distance <= NEAR else "model",
                detail=f"{p.neighbours} tuned neighbours, the nearest at log-distance "
                f"{p.distance:.2f}: {p.nearest}",
                us=p.us,
                ratio=p.ratio,
                error=None,
            )
            for p in self._model.predict(problem, tolerance, mode)
        ]

    def measured_faster(
        self, problem: Problem, tolerance: Tolerance, mode: str
    ) -> list[Candidate]:
        """All candidates known or expected to beat the baseline, best first.

        Without finals between them, a measured one must have won by ``FOREIGN_MARGIN``.
        """
        found = self._exact.get(key_of(problem))
        if found is None:
            return [s.candidate for s in self.suggestions(problem, tolerance, mode)]
        ranked = _ranked(found[0], tolerance, mode, FOREIGN_MARGIN)
        return [candidate for candidate, ratio in ranked if ratio >= FOREIGN_MARGIN]

    def why_nothing(self, problem: Problem) -> str:
        """Why a problem is left to the safe default, for ``explain``."""
        if not self._sources:
            return f"no tuning table for {self._device}; run scripts/tune.py once on this machine"
        if key_of(problem) in self._exact:
            return "the tables have nothing better for this precision"
        return "no tuned problem is near enough to promise a gain"

    def losers(
        self, problem: Problem, tolerance: Tolerance, mode: str, chosen: Candidate
    ) -> list[tuple[Candidate, str]]:
        """The other candidates of an exact entry, each with what was measured against it."""
        found = self._exact.get(key_of(problem))
        if found is None:
            return []
        times = {row.candidate: time_of(row, mode) for row in found[0].measured}
        best = times.get(chosen)
        result = []
        for row in found[0].measured:
            if row.candidate == chosen:
                continue
            if row.status in ("unsupported", "inaccurate", "failed"):
                result.append((row.candidate, f"{row.status} when measured: {row.note}"))
                continue
            if not admits(row.candidate, problem, tolerance):
                continue  # dispatch names the bound it exceeds
            us = times[row.candidate]
            if us is not None and best:
                result.append((row.candidate, f"measured {us:.4g} us, {us / best:.2f}x the choice"))
        return result

    def _from_entry(
        self, entry: Entry, source: Source, tolerance: Tolerance, mode: str
    ) -> list[Suggestion] | None:
        """What an exact entry suggests, or None where it is too old to decide."""
        rows = {row.candidate: row for row in entry.measured}
        file = source.table.path.name if source.table.path else "a table"
        where = f"measured {entry.date} ({file})"

        def measured(candidate: Candidate, ratio: float, why: str) -> Suggestion:
            row = rows[candidate]
            return Suggestion(
                candidate=candidate, source="exact", detail=f"{why}, {where}",
                us=time_of(row, mode), ratio=ratio, error=row.error,
            )  # fmt: skip

        if tolerance.budget is not None:
            margin = self._margin_of(entry, source)
            ranked = _ranked(entry, tolerance, mode, margin)
            decided = _decided(entry, tolerance, mode, margin)
            if decided is not None:  # what was not in its finals has to be clear of it
                least = STAND_IN_MARGIN * sure_gain(*decided)
                ranked = [item for item in ranked if item[0] != decided[0]]
                clear = sum(sure_gain(*item) >= least for item in ranked)
                ranked.insert(clear, decided)
            return [
                measured(candidate, ratio, "fastest within the budget")
                for candidate, ratio in ranked
            ]
        by_mode = choices_at(entry, tolerance.level)
        if not by_mode:
            return None
        choice = by_mode.get(mode) or next(iter(by_mode.values()))
        drift = self._drift(entry, source, choice.candidate)
        old = bool(drift) or source.foreign
        untuned = choice.candidate == baseline(entry.problem, tolerance.level)
        if old and choice.ratio < FOREIGN_MARGIN and not untuned:
            return None  # small enough a win for drift to have eaten it
        row = rows.get(choice.candidate)
        chosen = Suggestion(
            candidate=choice.candidate,
            source="exact",
            detail=where + (f", under other versions: {drift}" if drift else ""),
            us=choice.us,
            ratio=choice.ratio,
            error=None if row is None else row.error,
        )
        if untuned:
            return [chosen]
        base = rows.get(baseline(entry.problem, tolerance.level))
        on_slow_hosts = host_margin(base is not None and waits_for_host(base))

        def waits(row: Measured | None) -> bool:
            return mode == "eager" and row is not None and waits_for_host(row, base)

        if base is not None and may_lose_elsewhere(choice, row, base, mode):
            interval = f"{choice.ratio:.3g}x [{choice.low:.3g}, {choice.high:.3g}]"
            why = f"{choice.candidate.strategy}, {interval}, may lose on a slower host"
            return [measured(base.candidate, 1.0, why)]
        margin = max(STAND_IN_MARGIN, self._margin_of(entry, source))
        return [chosen] + [
            measured(candidate, ratio, "the best of what runs here")
            for candidate, ratio in _ranked(entry, tolerance, mode, margin)
            if candidate != choice.candidate
            and ratio >= (on_slow_hosts if waits(rows[candidate]) else margin)
            and not is_noisier(entry.problem, tolerance.level, rows[candidate], rows.values())
        ]

    def _margin_of(self, entry: Entry, source: Source) -> float:
        old = source.foreign or self._drift(entry, source, None)
        return FOREIGN_MARGIN if old else SWITCH_MARGIN

    def _drift(self, entry: Entry, source: Source, candidate: Candidate | None) -> str:
        """How the software a choice depends on differs from what it was measured under."""
        environment = source.table.environments.get(entry.environment)
        if environment is None:
            return ""
        return version_drift(environment.versions, self._device.type, candidate)


def may_lose_elsewhere(choice: Choice, row: Measured | None, base: Measured, mode: str) -> bool:
    """Whether a choice, measured in ``row``, is left to the baseline: on a slower host it may lose.

    Or within the scatter of this one. Tables that are older than the rule have such choices.
    """
    if mode != "eager" or row is None or choice.candidate == base.candidate:
        return False
    if not waits_for_host(row, base):
        return False
    return choice.ratio < host_margin(waits_for_host(base)) or choice.low <= HOST_LEAST


def version_drift(
    measured: Mapping[str, str], device_type: str, candidate: Candidate | None
) -> str:
    """How the software here differs from what a candidate was ``measured`` under; "" if not.

    Of what its strategy depends on; without a candidate, of everything but the driver.
    """
    now = software_versions(device_type)
    strategy = None if candidate is None else BY_NAME.get(candidate.strategy)
    names = now.keys() - {"driver"} if strategy is None else set(strategy.depends_on)
    changed = [
        f"{name} {measured[name]} then, {now[name]} now"
        for name in sorted(names & now.keys() & measured.keys())
        if measured[name] != now[name]
    ]
    return ", ".join(changed)


def choices_at(entry: Entry, level: str) -> Mapping[str, Choice] | None:
    """The choices at a level, or at the next more accurate one that was tuned."""
    for known in reversed(LEVELS[: LEVELS.index(level) + 1]):
        if known in entry.choices:
            return entry.choices[known]
    return None


def time_of(row: Measured, mode: str) -> float | None:
    """A row's time in a mode, or in the other one where only that was taken."""
    first, second = row.graph_us, row.eager_us
    if mode == "eager":
        first, second = second, first
    return second if first is None else first


def _ranked(
    entry: Entry, tolerance: Tolerance, mode: str, margin: float
) -> list[tuple[Candidate, float]]:
    """Candidates of an exact entry, fastest first; dispatch drops those the budget forbids.

    Only those that beat the baseline, unless the baseline itself cannot meet the budget.
    """
    rows = {row.candidate: row for row in entry.measured if row.status == "ok"}
    times = {candidate: time_of(row, mode) for candidate, row in rows.items()}
    base = baseline(entry.problem, tolerance.level)
    base_us = times.get(base)
    if base_us is None:
        return []
    ratios = [
        (candidate, base_us / us)
        for candidate, us in times.items()
        if us is not None and candidate.strategy in BY_NAME
    ]
    if admits(base, entry.problem, tolerance):
        ratios = [item for item in ratios if sure_gain(*item) >= margin]
    return sorted(ratios, key=lambda item: sure_gain(*item), reverse=True)


def _decided(
    entry: Entry, tolerance: Tolerance, mode: str, margin: float
) -> tuple[Candidate, float] | None:
    """The best of what won finals, at whatever level, and may serve here."""
    rows = {row.candidate: row for row in entry.measured}
    found = []
    for level, by_mode in entry.choices.items():
        choice = by_mode.get(mode) or next(iter(by_mode.values()))
        candidate, base = choice.candidate, baseline(entry.problem, level)
        row = rows.get(candidate)
        if row is None or base not in rows or not admits(candidate, entry.problem, tolerance):
            continue
        if candidate == base:
            found.append((candidate, 1.0))
        elif choice.ratio >= margin and not may_lose_elsewhere(choice, row, rows[base], mode):
            found.append((candidate, choice.ratio))
    return max(found, key=lambda item: sure_gain(*item), default=None)


# -------------------------------------------------------------------------------- loading


@functools.lru_cache(maxsize=32)
def _evidence(device: Device, paths: tuple[Path, ...], names: frozenset[str]) -> Evidence:
    """``names`` are the strategies known: while plug-ins are imported, fewer than from then on."""
    own, relatives = [], []
    for directory in paths:
        for path in table_files(directory):
            named = path == directory or path == table_path(directory, device)
            if not named and not device.has_cuda:
                continue  # another CPU's times say nothing about this one
            table = _read(path, names)
            if table is None:
                continue
            if table.device == device:
                own.append(Source(table, foreign=False))
            elif path == table_path(directory, device) and path != directory:
                warnings.warn(
                    f"{path}: device: expected {device}, found {table.device}; the table is left "
                    "out. Move it away and run scripts/tune.py.",
                    DatabaseWarning,
                    stacklevel=2,
                )
            elif device.has_cuda and table.device.capability == device.capability:
                relatives.append(Source(table, foreign=True))
    return Evidence(device, own or relatives)


def _read(path: Path, names: frozenset[str]) -> Table | None:
    """A table, with one warning for all that is wrong with it; None where nothing is left."""
    try:
        table, problems = read_table(path, names)
    except DatabaseError as error:
        warnings.warn(f"{error} Calls use the safe default.", DatabaseWarning, stacklevel=2)
        return None
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        warnings.warn(
            f"{problems[0]}{more}; such entries are left out.", DatabaseWarning, stacklevel=2
        )
    return table


def evidence_for(device: Device) -> Evidence:
    """The evidence for a device; tables are read at the first call and kept."""
    names = frozenset(strategy.name for strategy in STRATEGIES)
    return _evidence(device, tuple(search_path()), names)


def evidence_at(path: Path, device: Device) -> Evidence:
    """The evidence of one table alone; raises ``DatabaseError`` where it cannot be read."""
    table, _ = read_table(path, BY_NAME)
    return Evidence(device, [Source(table, foreign=table.device != device)])


def forget_evidence() -> None:
    """Read the tables anew at the next call."""
    _evidence.cache_clear()
