"""One item of a table's ``entries`` to an ``Entry``; every complaint is an ``Invalid``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, cast

from autogemm.database.entries import MODES, STATUSES, Choice, Entry, Measured
from autogemm.database.fields import (
    MISSING,
    Fields,
    Invalid,
    date,
    each,
    each_value,
    found,
    integer,
    mapping,
    nested,
    not_negative,
    one_of,
    optional,
    parameter,
    positive,
    text,
    those_given,
    unexpected,
)
from autogemm.precision import LEVELS
from autogemm.problem import DTYPES, LAYOUTS, UPDATES, Problem, Update
from autogemm.strategies.base import Candidate

_EXTENT, _DTYPE, _LAYOUT, _UPDATE = integer(1), one_of(DTYPES), one_of(LAYOUTS), one_of(UPDATES)
_COUNT = integer(0)
_FACTS: Mapping[str, Callable[[object], Any]] = {
    "status": one_of(STATUSES),
    "graph_us": positive,
    "eager_us": positive,
    "error": not_negative,
    "error_norm": not_negative,
    "workspace_bytes": _COUNT,
    "note": text,
}
"""What a measured row may say of its candidate; named as in ``Measured``."""
_ROW = ("with", *_FACTS)


class EntryReader:
    """Reads one item of ``entries``, given what the rest of the file says."""

    def __init__(
        self,
        device_type: str,
        environments: Collection[str],
        known_strategies: Collection[str] | None,
    ) -> None:
        self.device_type = device_type
        self.environments = environments
        self.known = known_strategies
        self._candidates: dict[tuple[str, int], tuple[object, Candidate]] = {}

    def __call__(self, value: object) -> Entry:
        """The entry that ``value`` spells; raises ``Invalid`` with the path to what is wrong."""
        fields = mapping(
            value, ("problem", "environment", "date", "space", "choices"), ("measured",)
        )
        return Entry(
            problem=nested(fields, "problem", self._problem),
            environment=nested(fields, "environment", self._environment),
            date=nested(fields, "date", date),
            choices=nested(fields, "choices", self._levels),
            measured=self._measured(fields),
            space=nested(fields, "space", text),
        )

    def _problem(self, value: object) -> Problem:
        fields = mapping(value, ("m", "n", "k", "dtype", "a", "b", "out", "update"), ("batch",))
        return Problem(
            m=nested(fields, "m", _EXTENT),
            n=nested(fields, "n", _EXTENT),
            k=nested(fields, "k", _EXTENT),
            dtype=DTYPES[nested(fields, "dtype", _DTYPE)],
            a=nested(fields, "a", _LAYOUT),
            b=nested(fields, "b", _LAYOUT),
            out=nested(fields, "out", _LAYOUT),
            update=cast(Update, nested(fields, "update", _UPDATE)),
            device_type=self.device_type,
            batch=optional(fields, "batch", _EXTENT, 1),
        )

    def _environment(self, value: object) -> str:
        if (id := text(value)) not in self.environments:
            raise unexpected("an id out of the file's environments", id)
        return id

    def _levels(self, value: object) -> dict[str, dict[str, Choice]]:
        return each_value(mapping(value, (), LEVELS), self._modes)

    def _modes(self, value: object) -> dict[str, Choice]:
        return each_value(mapping(value, (), MODES), self._choice)

    def _choice(self, value: object) -> Choice:
        fields = mapping(
            value,
            ("strategy", "us", "baseline_us", "ratio", "low", "high", "rounds"),
            ("with", "runner_up"),
        )
        candidate = self._candidate(fields)
        if not self._knows(candidate):
            raise Invalid(
                f"unknown strategy {found(candidate.strategy)}; "
                f"known: {', '.join(sorted(self.known or ()))}",
                "strategy",
            )
        low, high = nested(fields, "low", positive), nested(fields, "high", positive)
        if low > high:
            raise Invalid(f"expected low up to high, found {low:g} above {high:g}", "low")
        runner_up, runner_up_ratio = None, None
        if "runner_up" in fields:
            runner_up, runner_up_ratio = nested(fields, "runner_up", self._runner_up)
        return Choice(
            candidate=candidate,
            us=nested(fields, "us", positive),
            baseline_us=nested(fields, "baseline_us", positive),
            ratio=nested(fields, "ratio", positive),
            low=low,
            high=high,
            rounds=nested(fields, "rounds", _COUNT),
            runner_up=runner_up,
            runner_up_ratio=runner_up_ratio,
        )

    def _runner_up(self, value: object) -> tuple[Candidate | None, float | None]:
        fields = mapping(value, ("strategy",), ("with", "ratio"))
        candidate = self._candidate(fields)
        ratio = optional(fields, "ratio", positive, None)
        return (candidate, ratio) if self._knows(candidate) else (None, None)

    def _measured(self, fields: Fields) -> tuple[Measured, ...]:
        if "measured" not in fields:
            return ()
        rows = nested(fields, "measured", lambda items: each(items, self._row))
        return tuple(row for row in rows if self._knows(row.candidate))

    def _row(self, value: object) -> Measured:
        fields = mapping(value, ("strategy",), _ROW)
        facts = {"status": "ok", **those_given(fields, _FACTS)}
        return Measured(candidate=self._candidate(fields), **facts)

    def _candidate(self, fields: Fields) -> Candidate:
        # The same few parameters stand in many rows, where ``parse`` makes one object of them. Kept
        # here it lives, so that its identity stays its own.
        params = fields.get("with", MISSING)
        key = nested(fields, "strategy", text), id(params)
        if key not in self._candidates:
            read = optional(fields, "with", lambda value: each_value(value, parameter), {})
            self._candidates[key] = params, Candidate.of(key[0], **read)
        return self._candidates[key][1]

    def _knows(self, candidate: Candidate) -> bool:
        return self.known is None or candidate.strategy in self.known
