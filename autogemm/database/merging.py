"""New entries into a table that others may be tuning into at the same time."""

from __future__ import annotations

import dataclasses
import filecmp
import os
import shutil
import warnings
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

import filelock

from autogemm.database.entries import Entry, Environment, Table, by_key
from autogemm.database.reading import read_table
from autogemm.database.writing import write_table
from autogemm.device import Device
from autogemm.errors import DatabaseError, DatabaseWarning

LOCK_SECONDS = 60.0
"""How long to wait for another process's merge, which takes less than a second."""


def merge_table(
    path: Path,
    device: Device,
    environment: Environment,
    entries: Iterable[Entry],
    known_strategies: Collection[str] | None = None,
    beside: Callable[[Entry, Table], Entry] | None = None,
) -> Table:
    """Put ``entries``, measured in ``environment``, into the table at ``path``; return the result.

    Each replaces the entry of its key, the others stay, and environments without entries go.
    ``beside``, given, makes of an entry and the table that is there what replaces it.
    The file is read and written under a lock (``NAME.yaml.lock``), so of several processes that
    merge at once none loses anything. Where the old file, or an entry of it, cannot be read
    (``read_table`` says when, and what ``known_strategies`` does), the old file is first copied
    to ``NAME.yaml.kept-1`` (``-2``, …) and a ``DatabaseWarning`` names the copy once the new file
    is in place.

    Raises ``DatabaseError`` if the file belongs to another device, if an entry could not be read
    back, or if the lock is not had within a minute; ``OSError`` where the directory cannot be
    written. The file is then as it was.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(f"{path}.lock", timeout=LOCK_SECONDS)
    try:
        with lock:
            old, trouble = _old_table(path, device, known_strategies)
            new = [beside(entry, old) for entry in entries] if beside else entries
            merged = by_key((*old.entries.values(), *new))
            used = {entry.environment for entry in merged.values()}
            known = {**old.environments, environment.id: environment}
            table = Table(
                device=device,
                environments={id: known[id] for id in known if id in used},
                entries=merged,
                path=path,
            )
            if trouble:
                trouble += f" The old file is kept as {_keep(path)}."
            write_table(path, table)
    except filelock.Timeout:
        raise DatabaseError(
            f"{path}: another process has held {lock.lock_file} for {LOCK_SECONDS:.0f} s; expected "
            "a merge to end within a second. End that process and try again."
        ) from None
    if trouble:
        warnings.warn(trouble, DatabaseWarning, stacklevel=2)
    return table


def _old_table(
    path: Path, device: Device, known_strategies: Collection[str] | None
) -> tuple[Table, str]:
    """What can be read of the old file, and a sentence about what cannot."""
    if not path.exists():
        return Table(device=device), ""
    try:
        table, problems = read_table(path, known_strategies)
    except DatabaseError as error:
        return Table(device=device), str(error)
    if table.device != device:
        raise DatabaseError(
            f"{path}: holds the results of another device: {_difference(table.device, device)}. "
            "Write to another directory, or move the file away."
        )
    others = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return table, f"{problems[0]}{others}." if problems else ""


def _difference(there: Device, here: Device) -> str:
    fields = [
        f"{field.name} {getattr(there, field.name)!r} there, {getattr(here, field.name)!r} here"
        for field in dataclasses.fields(Device)
        if field.compare and getattr(there, field.name) != getattr(here, field.name)
    ]
    return f"{there} there and {here} here ({'; '.join(fields)})"


def _keep(path: Path) -> Path:
    """A copy of the file beside it; an earlier one serves if it holds the same."""
    number = 1
    while (copy := path.with_name(f"{path.name}.kept-{number}")).exists():
        if filecmp.cmp(path, copy, shallow=False):
            return copy
        number += 1
    shutil.copy2(path, copy)
    return copy
