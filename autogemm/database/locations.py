"""Where tables lie: the one place that knows the search order."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import platformdirs

from autogemm.device import Device
from autogemm.errors import DatabaseError, DatabaseWarning

VARIABLE = "AUTOGEMM_TUNING_DB"
"""Directories, or single ``.yaml`` files, with ``os.pathsep`` between them."""

_PACKAGE = Path(__file__).resolve().parents[1]


def search_path() -> list[Path]:
    """Where tables are looked for, the most particular place first; not all need exist.

    The places that ``AUTOGEMM_TUNING_DB`` names, the user's data directory, and the tables that
    came with autogemm.
    """
    places = [*_chosen(), _user_directory(), _shipped_directory()]
    return [place for place in dict.fromkeys(places) if _can_be_looked_at(place)]


def write_directory() -> Path:
    """Where the tuner writes unless told otherwise; it need not exist yet.

    The first place that ``AUTOGEMM_TUNING_DB`` names, which may be a single file; else a source
    checkout's ``tuning_db`` if it can be written; else the user's data directory.
    """
    if chosen := _chosen():
        return chosen[0]
    if (root := _checkout()) is not None and os.access(root / "tuning_db", os.W_OK):
        return root / "tuning_db"
    return _user_directory()


def table_files(directory: Path) -> list[Path]:
    """The tables in a place out of ``search_path``, by name; none where there is no such place."""
    if directory.is_file():
        return [directory]
    return sorted(
        path for path in directory.glob("*.yaml") if path.is_file() and path.name[0] != "."
    )


def table_path(directory: Path, device: Device) -> Path:
    """A device's table in ``directory``; a place that is a single file is that table."""
    if directory.suffix == ".yaml" and not directory.is_dir():
        return directory
    return directory / f"{device.slug}.yaml"


def find_table(device: Device, place: Path | None = None) -> Path:
    """A device's own table: in ``place`` (a directory or the file), else where calls look for it.

    Raises ``DatabaseError`` where there is none.
    """
    places = search_path() if place is None else [place]
    for directory in places:
        path = table_path(directory, device)
        if path.exists():
            return path
    looked = ", ".join(map(str, places))
    raise DatabaseError(f"no table for {device} in {looked}; run scripts/tune.py first.")


def _chosen() -> list[Path]:
    chosen = []
    for place in os.environ.get(VARIABLE, "").split(os.pathsep):
        if not place.strip():
            continue
        try:
            chosen.append(Path(place).expanduser().absolute())
        except (OSError, RuntimeError) as error:  # a home directory that nobody has
            _warn(place, error)
    return chosen


def _can_be_looked_at(place: Path) -> bool:
    try:
        place.stat()
    except FileNotFoundError:
        return True
    except OSError as error:
        _warn(str(place), error)
        return False
    return True


def _warn(place: str, error: Exception) -> None:
    shown = place if len(place) < 200 else place[:200] + "..."
    warnings.warn(
        f"{shown}: tables are not looked for there ({type(error).__name__}: "
        f"{getattr(error, 'strerror', None) or error}); check {VARIABLE}.",
        DatabaseWarning,
        stacklevel=2,
    )


def _user_directory() -> Path:
    return platformdirs.user_data_path("autogemm", appauthor=False) / "tuning_db"


def _shipped_directory() -> Path:
    return (_checkout() or _PACKAGE) / "tuning_db"


def _checkout() -> Path | None:
    root = _PACKAGE.parent
    tables = root / "tuning_db"
    return root if (root / "pyproject.toml").is_file() and tables.is_dir() else None
