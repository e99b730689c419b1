"""Files of shapes: the problems of a program, written by hand or by ``autogemm.record``."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autogemm.database.fields import Invalid, found
from autogemm.database.plain import parse
from autogemm.errors import InvalidProblem
from autogemm.precision import LEVELS
from autogemm.problem import DTYPES, LAYOUTS, UPDATES, contiguous_problem
from autogemm.workloads import Workload, together

_ORDER = {"n": "row", "t": "col"}


@dataclass(frozen=True, slots=True)
class Program:
    """What a file of shapes says about one program."""

    workloads: tuple[Workload, ...]
    seconds: float | None
    """What the whole program took; None where nobody knows."""
    left_out: tuple[str, ...]
    """Rows that cannot be tuned here: how many, and why."""


_MAX_CHARACTERS = 2**24
_COLUMNS = ("m", "n", "k", "dtype", "layout", "update", "count", "batch", "a", "b", "out")
_RECORDED = ("ms", "level", "device", "mode", "by", "ratio")
"""What ``autogemm.record`` adds to a row."""


def read_shapes(path: Path, device_type: str) -> Program:
    """Read problems from YAML (a list of mappings, or a recording) or CSV (a header row).

    Columns: ``m``, ``n``, ``k``; optional ``dtype`` (float32), ``layout`` (``nn``, ``nt``,
    ``tn``, ``tt``: BLAS's letters for A and B; nn), ``a``, ``b`` and ``out`` (a layout's word,
    where the letters do not say it), ``update`` (none, add, bias, inplace; add), ``batch`` (1:
    a single product), ``count`` (1), and what a recording knows besides: ``ms`` (of all
    calls), ``level``, ``device``, ``mode``, ``by``, ``ratio``. Rows of other devices are left
    out. Raises ``InvalidProblem`` naming the file, the row and the value.
    """
    rows, facts = _rows(path)
    if not isinstance(rows, list) or not rows:
        raise InvalidProblem(
            f"{path}: expected a list of problems, each with m, n and k, found "
            f"{found(rows) if rows else 'nothing'}."
        )
    loads: dict[Workload, Workload] = {}
    left_out: dict[str, int] = {}
    for i, row in enumerate(rows):
        workload, reason = _workload(row, f"{path}: problem {i + 1}", device_type)
        if reason:
            left_out[reason] = left_out.get(reason, 0) + 1
            continue
        key = replace(workload, count=0, seconds=None)
        loads[key] = workload if key not in loads else together(loads[key], workload)
    if not loads:
        raise InvalidProblem(
            f"{path}: nothing in it can be tuned on {device_type}: {', '.join(left_out)}. Choose "
            "the device with --device, or record the program on this one."
        )
    seconds = _seconds(facts, f"{path}: program", "seconds", 1.0)
    reasons = tuple(f"{count} left out: {reason}" for reason, count in left_out.items())
    return Program(tuple(loads.values()), seconds, reasons)


def _rows(path: Path) -> tuple[Any, Mapping[str, Any]]:
    """What stands in a file of shapes, and what it says about the program."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(_MAX_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise InvalidProblem(
            f"{path}: cannot be read ({why}); expected a file of shapes, YAML or CSV."
        ) from None
    if len(text) > _MAX_CHARACTERS:
        raise InvalidProblem(
            f"{path}: expected at most {_MAX_CHARACTERS} characters, found a larger file."
        )
    try:
        if path.suffix.lower() == ".csv":
            return list(csv.DictReader(io.StringIO(text), skipinitialspace=True)), {}
        # The subset of YAML that tables are written in: a full loader runs out of stack on
        # "[[[[…", and an error that shows what a few nested aliases stand for never ends.
        rows: Any = parse(text, ended=False)
    except (Invalid, csv.Error) as error:
        kind = "CSV" if path.suffix.lower() == ".csv" else "YAML"
        raise InvalidProblem(f"{path}: is not {kind}: {error}") from None
    if not isinstance(rows, Mapping) or "products" not in rows:
        return rows, {}
    facts = rows.get("program") or {}
    if not isinstance(facts, Mapping):
        raise InvalidProblem(
            f"{path}: program must be a mapping with seconds, found {found(facts)}."
        )
    return rows["products"], facts


def _workload(row: Any, where: str, device_type: str) -> tuple[Workload, str]:
    """A row, and why it cannot be tuned on this device, if it cannot."""
    if not isinstance(row, Mapping):
        raise InvalidProblem(f"{where}: expected a mapping with m, n and k, found {found(row)}.")
    given = {key: value for key, value in row.items() if value not in (None, "")}
    if None in given:  # csv's name for cells beyond the header
        more = ", ".join(map(found, given[None][:4]))
        raise InvalidProblem(f"{where}: more cells than the header has columns: {more}.")
    unknown = ", ".join(sorted(key for key in given if key not in (*_COLUMNS, *_RECORDED)))
    if unknown:
        raise InvalidProblem(
            f"{where}: unknown column {unknown[:200]}; expected "
            f"{', '.join((*_COLUMNS, *_RECORDED))}."
        )
    m, n, k = (_integer(given, key, where) for key in ("m", "n", "k"))
    dtype = _word(given, "dtype", "float32", DTYPES, where)
    letters = _word(given, "layout", "nn", ("nn", "nt", "tn", "tt"), where)
    update = _word(given, "update", "add", UPDATES, where)
    problem = contiguous_problem(
        m,
        n,
        k,
        DTYPES[dtype],
        a=_ORDER[letters[0]],
        b=_ORDER[letters[1]],
        update=update,  # type: ignore[arg-type]
        device_type=device_type,
        batch=_integer(given, "batch", where) if "batch" in given else 1,
    )
    problem = replace(
        problem,
        a=_word(given, "a", problem.a, LAYOUTS, where),
        b=_word(given, "b", problem.b, LAYOUTS, where),
        out=_word(given, "out", problem.out, LAYOUTS, where),
    )
    workload = Workload(
        problem,
        _integer(given, "count", where) if "count" in given else 1,
        _seconds(given, where, "ms", 1e-3),
        _word(given, "level", "highest", LEVELS, where),
        _word(given, "mode", "eager", ("eager", "graph"), where),
        _word(given, "by", "torch", ("torch", "autogemm"), where),
        _seconds(given, where, "ratio", 1.0) or 1.0,
    )
    device = _word(given, "device", device_type, ("cpu", "cuda"), where)
    return workload, "" if device == device_type else f"recorded on {device}"


def _seconds(given: Mapping[str, Any], where: str, key: str, unit: float) -> float | None:
    """A positive number times ``unit``, None where the key is left out."""
    value = given.get(key)
    if value is None:
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < math.inf:
        raise InvalidProblem(f"{where}: {key} must be a positive number, found {found(value)}.")
    return number * unit


def _integer(given: Mapping[str, Any], key: str, where: str) -> int:
    value = given.get(key)
    if isinstance(value, str) and value.strip().isdecimal() and len(value) < 20:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
        shown = "nothing" if value is None else found(value)
        raise InvalidProblem(
            f"{where}: {key} must be a positive integer below 2147483648, found {shown}."
        )
    return value


def _word(
    given: Mapping[str, Any], key: str, default: str, legal: Iterable[str], where: str
) -> str:
    value = given.get(key, default)
    value = value.strip() if isinstance(value, str) else value
    if value not in tuple(legal):
        raise InvalidProblem(
            f"{where}: {key} must be one of {', '.join(legal)}, found {found(value)}."
        )
    return str(value)
