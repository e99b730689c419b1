"""A table's YAML to a ``Table``: strict about every value, lenient about every entry.

A file that is damaged as a whole is an error. An entry that is damaged is dropped and told
of, so that a slip in one entry never takes the others with it.
"""

from __future__ import annotations

import stat
from collections.abc import Collection, Mapping
from pathlib import Path

from autogemm.database.entries import Entry, Environment, Key, Table
from autogemm.database.fields import (
    Invalid,
    each,
    each_value,
    integer,
    mapping,
    nested,
    one_of,
    text,
    unexpected,
)
from autogemm.database.plain import parse
from autogemm.database.reading_entries import EntryReader
from autogemm.device import Device
from autogemm.errors import DatabaseError

SCHEMA = 1
"""The version of the format that is read and written."""

MAX_BYTES = 64 * 2**20
"""A larger file is refused unread; a table of a thousand entries has about 2 MB."""

_REMEDY = "Restore the file from version control, or move it away and run scripts/tune.py."


def read_table(
    path: Path, known_strategies: Collection[str] | None = None
) -> tuple[Table, list[str]]:
    """Read the table at ``path``; return it with the problems of what had to be dropped.

    A problem reads ``FILE: entries[17].choices.highest.graph.ratio: expected a positive number,
    found 'fast'``. Where ``known_strategies`` is given, an entry that chooses another strategy is
    dropped as well; measured rows and runners-up of other strategies, being evidence only, just
    go missing. Raises ``DatabaseError`` if the file is damaged as a whole: unreadable, too large,
    truncated, not YAML, of another schema, or without a valid device.
    """
    return table_from_text(_file_text(path), path, known_strategies)


def table_from_text(
    text: str, path: Path, known_strategies: Collection[str] | None = None
) -> tuple[Table, list[str]]:
    """What ``read_table`` makes of a file at ``path`` that holds ``text``."""
    try:
        root = parse(text)
        if not isinstance(root, Mapping):
            raise unexpected("a mapping with schema, device, environments and entries", root)
        nested(root, "schema", _schema)
        device = nested(root, "device", _device)
        mapping(root, ("schema", "device", "environments", "entries"))
        environments, problems = nested(root, "environments", _environments)
        entries, more = nested(
            root, "entries", lambda rows: _entries(rows, device, environments, known_strategies)
        )
    except Invalid as error:
        raise DatabaseError(f"{path}: {error}. {_REMEDY}") from None
    table = Table(device=device, environments=environments, entries=entries, path=path)
    return table, [f"{path}: {problem}" for problem in problems + more]


def _file_text(path: Path) -> str:
    try:
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait
            kind = "a directory" if path.is_dir() else "a special file"
            raise DatabaseError(f"{path}: expected a file, found {kind}. {_REMEDY}")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise DatabaseError(
                f"{path}: expected at most {MAX_BYTES} bytes, found a larger file. {_REMEDY}"
            )
        return content.decode("utf-8-sig")
    except OSError as error:
        raise DatabaseError(f"{path}: cannot be read: {error.strerror}. {_REMEDY}") from error
    except UnicodeDecodeError as error:
        raise DatabaseError(
            f"{path}: expected UTF-8 text, found other bytes at {error.start}. {_REMEDY}"
        ) from None


def _schema(value: object) -> None:
    if type(value) is not int or value != SCHEMA:
        raise unexpected(f"{SCHEMA}, the schema this version of autogemm reads", value)


def _device(value: object) -> Device:
    facts = mapping(
        value,
        ("type", "name", "capability", "units", "cache_bytes", "memory_bytes", "features"),
    )
    capability = nested(facts, "capability", lambda pair: each(pair, integer(0)))
    if len(capability) != 2:
        raise unexpected("two integers", facts["capability"], "capability")
    return Device(
        type=nested(facts, "type", one_of(("cuda", "cpu"))),
        name=nested(facts, "name", text),
        capability=(capability[0], capability[1]),
        units=nested(facts, "units", integer(1)),
        cache_bytes=nested(facts, "cache_bytes", integer(0)),
        memory_bytes=nested(facts, "memory_bytes", integer(0)),
        features=tuple(nested(facts, "features", lambda words: each(words, text))),
    )


# -------------------------------------------------------- what is dropped if it is damaged


def _environments(value: object) -> tuple[dict[str, Environment], list[str]]:
    if not isinstance(value, Mapping):
        raise unexpected("a mapping", value)
    environments: dict[str, Environment] = {}
    problems: list[str] = []
    for id in value:
        try:
            environment = nested(value, id, _environment)
            if environment.id != id:
                raise Invalid(f"expected the id {environment.id}, which its versions have", id)
            environments[id] = environment
        except Invalid as error:
            problems.append(str(error.under("environments")))
    return environments, problems


def _environment(value: object) -> Environment:
    fields = mapping(value, ("versions", "clocks"))
    return Environment(
        versions=nested(fields, "versions", lambda names: each_value(names, text)),
        clocks=nested(fields, "clocks", lambda names: each_value(names, integer(0))),
    )


def _entries(
    value: object,
    device: Device,
    environments: Mapping[str, Environment],
    known_strategies: Collection[str] | None,
) -> tuple[dict[Key, Entry], list[str]]:
    if not isinstance(value, list):
        raise unexpected("a list", value)
    read = EntryReader(device.type, environments, known_strategies)
    entries: dict[Key, Entry] = {}
    places: dict[Key, int] = {}
    problems: list[str] = []
    for place, row in enumerate(value):
        try:
            entry = read(row)
            if (first := places.setdefault(entry.key, place)) != place:
                raise Invalid(f"repeats entries[{first}], {entry.problem}; the first is kept")
            entries[entry.key] = entry
        except Invalid as error:
            problems.append(str(error.under("entries", place)))
    return entries, problems
