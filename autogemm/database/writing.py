"""A ``Table`` to YAML that people can read and diff, and onto the disk in one step.

The text depends on the content alone, down to the byte: a commit shows what was measured
anew and nothing else.
"""

from __future__ import annotations

import math
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from autogemm.database.entries import MODES, Choice, Entry, Measured, Table
from autogemm.database.reading import SCHEMA, table_from_text
from autogemm.device import Device
from autogemm.errors import DatabaseError
from autogemm.precision import LEVELS
from autogemm.problem import DTYPES, UPDATES
from autogemm.strategies.base import Candidate, ParamValue

_HEADER = """\
# How fast each way to compute a matrix product is on one device: measured and written by
# scripts/tune.py. Do not edit by hand; tune again. docs/table-format.md explains every field.
"""


def dump_table(table: Table) -> str:
    """The YAML of a table; equal content gives equal bytes, whatever the order it came in.

    Times keep four significant digits, ratios three decimals, errors three significant digits;
    what was read back is written the same again. The error of a candidate whose result was not
    finite is left out: its status says ``inaccurate``.
    """
    return "\n".join(_lines(table)) + "\n"


def write_table(path: Path, table: Table) -> None:
    """Write a table to ``path`` so that a reader, or a crash, meets the old file or the new one.

    Directories are made as needed, an existing file's mode is kept and a symbolic link is
    followed. Raises ``DatabaseError``, and leaves the file alone, if what would be written could
    not be read back in full; ``OSError`` where the directory cannot be written. It takes no
    lock: ``merge_table`` does.
    """
    path = Path(os.path.realpath(path))
    text = dump_table(table)
    _, problems = table_from_text(text, path)
    if problems:
        raise DatabaseError(f"not written, for it could not be read again: {problems[0]}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader, or a crash, meets the old one or the new one.

    An existing file's mode is kept and a symbolic link is followed. Raises ``OSError``.
    """
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileNotFoundError):
            temporary.chmod(path.stat().st_mode & 0o7777)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    with suppress(OSError):  # Windows opens no directories; the file itself is safe already
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


# ------------------------------------------------------------------------------ structure


def _lines(table: Table) -> Iterator[str]:
    yield _HEADER + f"schema: {SCHEMA}"
    yield from _device(table.device)
    yield "environments:" if table.environments else "environments: {}"
    for id, environment in sorted(table.environments.items()):
        yield f"  {_text(id)}:"
        versions = {_text(k): _text(v) for k, v in sorted(environment.versions.items())}
        clocks = {_text(k): str(v) for k, v in sorted(environment.clocks.items())}
        yield f"    versions: {_flow(versions)}"
        yield f"    clocks: {_flow(clocks)}"
    yield "entries:" if table.entries else "entries: []"
    for entry in sorted(table.entries.values(), key=_order):
        yield from _entry(entry, table.device)
    yield "..."


def _device(device: Device) -> Iterator[str]:
    yield "device:"
    yield f"  type: {_text(device.type)}"
    yield f"  name: {_text(device.name)}"
    yield f"  capability: [{', '.join(map(str, device.capability))}]"
    yield f"  units: {device.units}"
    yield f"  cache_bytes: {device.cache_bytes}"
    yield f"  memory_bytes: {device.memory_bytes}"
    yield f"  features: [{', '.join(map(_text, device.features))}]"


def _order(entry: Entry) -> tuple[int, int, str, str, str, int, int, int, int]:
    m, n, k, dtype, a, b, out, update, batch = entry.key
    return (tuple(DTYPES).index(dtype), _place(UPDATES)(update), a, b, out, batch, m, n, k)


def _entry(entry: Entry, device: Device) -> Iterator[str]:
    if entry.problem.device_type != device.type:
        raise DatabaseError(
            f"an entry for {entry.problem} on {entry.problem.device_type} does not belong into "
            f"the table of {device}; write it to the table of its own device."
        )
    m, n, k, dtype, a, b, out, update, batch = entry.key
    problem = {"m": m, "n": n, "k": k, "dtype": dtype, "a": a, "b": b, "out": out, "update": update}
    if batch > 1:
        problem = {"batch": batch, **problem}
    yield ""
    yield f"- problem: {_flow({key: str(value) for key, value in problem.items()})}"
    yield f"  environment: {_text(entry.environment)}"
    yield f"  date: {entry.date}"
    yield f"  space: {_text(entry.space)}"
    yield "  choices:" if entry.choices else "  choices: {}"
    for level in sorted(entry.choices, key=_place(LEVELS)):
        modes = entry.choices[level]
        yield f"    {level}:" if modes else f"    {level}: {{}}"
        for mode in sorted(modes, key=_place(MODES)):
            yield f"      {mode}: {_choice(modes[mode])}"
    if entry.measured:
        yield "  measured:"
        for row in sorted(entry.measured, key=lambda row: str(row.candidate)):
            yield f"  - {_measured(row)}"


def _choice(choice: Choice) -> str:
    fields = {
        **_candidate(choice.candidate),
        "us": _significant(choice.us, 4),
        "baseline_us": _significant(choice.baseline_us, 4),
        "ratio": _ratio(choice.ratio),
        "low": _ratio(choice.low),
        "high": _ratio(choice.high),
        "rounds": str(choice.rounds),
    }
    if choice.runner_up is not None:
        runner_up = _candidate(choice.runner_up)
        if choice.runner_up_ratio is not None:
            runner_up["ratio"] = _ratio(choice.runner_up_ratio)
        fields["runner_up"] = _flow(runner_up)
    return _flow(fields)


def _measured(row: Measured) -> str:
    fields = _candidate(row.candidate)
    if row.status != "ok":
        fields["status"] = _text(row.status)
    if row.graph_us is not None:
        fields["graph_us"] = _significant(row.graph_us, 4)
    if row.eager_us is not None:
        fields["eager_us"] = _significant(row.eager_us, 4)
    if row.error is not None and math.isfinite(row.error):
        fields["error"] = _significant(row.error, 3)
    if row.error_norm is not None and math.isfinite(row.error_norm):
        fields["error_norm"] = _significant(row.error_norm, 3)
    if row.workspace_bytes:
        fields["workspace_bytes"] = str(row.workspace_bytes)
    if row.note:
        fields["note"] = _text(row.note)
    return _flow(fields)


def _candidate(candidate: Candidate) -> dict[str, str]:
    fields = {"strategy": _text(candidate.strategy)}
    if candidate.params:
        params = sorted(candidate.params)
        fields["with"] = _flow({_text(key): _parameter(value) for key, value in params})
    return fields


def _place(order: tuple[str, ...]) -> Callable[[str], int]:
    return lambda word: order.index(word) if word in order else len(order)


# -------------------------------------------------------------------------------- scalars

# Left bare: words that no version of YAML takes for a number or a truth value.
_BARE = re.compile(r"[A-Za-z][\w.+/()-]*(?: [\w.+/()-]+)*|[0-9][0-9a-f]*[acdf][0-9a-f]*", re.A)
_NOT_BARE = frozenset(("true", "false", "null", "yes", "no", "on", "off", "y", "n"))


def _flow(fields: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{key}: {value}" for key, value in fields.items()) + "}"


def _text(text: str) -> str:
    if _BARE.fullmatch(text) and text.lower() not in _NOT_BARE:
        return text
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    if character.isprintable():
        return character
    code = ord(character)
    if 0xD800 <= code < 0xE000:  # half a surrogate pair, which UTF-8 has no bytes for
        return "\N{REPLACEMENT CHARACTER}"
    return f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"


def _parameter(value: ParamValue) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _text(value)
    return str(value) if isinstance(value, int) else _float(value)


def _ratio(value: float) -> str:
    """Three decimals, or three significant digits where those say more."""
    rounded = round(value, 3) if value >= 1 else float(f"{value:.2e}")
    return f"{rounded:.3f}" if 0.1 <= rounded < math.inf else _float(rounded)


def _significant(value: float, digits: int) -> str:
    return _float(float(f"{value:.{digits - 1}e}")).removesuffix(".0")


def _float(value: float) -> str:
    """A float that every version of YAML reads as one: an exponent goes with a point."""
    if not math.isfinite(value):
        return ".nan" if math.isnan(value) else f"{'-' if value < 0 else ''}.inf"
    mantissa, e, exponent = repr(float(value)).partition("e")
    return mantissa + (".0" if e and "." not in mantissa else "") + e + exponent
