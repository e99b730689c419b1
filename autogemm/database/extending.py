"""The table a tuning run writes: the one that is there, extended as problems are finished."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from autogemm.database.entries import Entry, Environment, Table
from autogemm.database.merging import merge_table
from autogemm.database.reading import read_table
from autogemm.device import Device
from autogemm.errors import DatabaseError


def check_writable(path: Path) -> None:
    """Raise ``DatabaseError`` where a table could not be written after all the measuring."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise DatabaseError(
            f"{path.parent}: tables cannot be written there ({error.strerror}); name a writable "
            "directory with --db."
        ) from None


def table_to_extend(path: Path, device: Device) -> Table:
    """The table; an empty one where it is missing or damaged (merging keeps a copy).

    Raises ``DatabaseError`` where it is another device's, before anything is measured.
    """
    if not path.exists():
        return Table(device=device)
    try:
        table = read_table(path)[0]
    except DatabaseError:
        return Table(device=device)
    if table.device != device:
        raise DatabaseError(
            f"{path}: holds the results of {table.device}, not of {device}; name another "
            "directory with --db."
        )
    return table


class Writer:
    """Merges finished entries into the table, a few seconds' worth at a time.

    What a kill takes with it is a few finals: the journal holds the measurements.
    """

    _EVERY_S = 5.0

    def __init__(
        self, path: Path, device: Device, environment: Environment,
        beside: Callable[[Entry, Table], Entry],
    ) -> None:  # fmt: skip
        self._where = (path, device, environment)
        self._beside = beside
        self._waiting: list[tuple[Entry, Callable[[], None]]] = []
        self._last = time.monotonic()

    def add(self, entry: Entry, written: Callable[[], None]) -> None:
        """Write an entry soon, and call ``written`` then."""
        self._waiting.append((entry, written))
        if time.monotonic() - self._last > self._EVERY_S:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            entries = [entry for entry, _ in self._waiting]
            merge_table(*self._where, entries, beside=self._beside)
            for _, written in self._waiting:
                written()
            self._waiting = []
        self._last = time.monotonic()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
