"""Where tables lie: the one place that knows the search order."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from autogemm.device import Device

VARIABLE = "AUTOGEMM_TUNING_DB"
"""Directories, or single ``.yaml`` files, with ``os.pathsep`` between them."""

_PACKAGE = Path(__file__).resolve().parents[1]


def search_path() -> list[Path]:
    """Where tables are looked for, the most particular place first; not all need exist.

    The places that ``AUTOGEMM_TUNING_DB`` names, the user's data directory, and the tables that
    came with autogemm.
    """
    return list(dict.fromkeys([*_chosen(), _user_directory(), _shipped_directory()]))


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


def _chosen() -> list[Path]:
    places = os.environ.get(VARIABLE, "").split(os.pathsep)
    return [Path(place).expanduser().absolute() for place in places if place.strip()]


def _user_directory() -> Path:
    return platformdirs.user_data_path("autogemm", appauthor=False) / "tuning_db"


def _shipped_directory() -> Path:
    return (_checkout() or _PACKAGE) / "tuning_db"


def _checkout() -> Path | None:
    root = _PACKAGE.parent
    tables = root / "tuning_db"
    return root if (root / "pyproject.toml").is_file() and tables.is_dir() else None
