"""Tuning tables: what they hold, how they are read and written, and where they lie."""

from autogemm.database.entries import (
    MODES,
    STATUSES,
    Choice,
    Entry,
    Environment,
    Key,
    Measured,
    Table,
    by_key,
    key_of,
)
from autogemm.database.locations import (
    find_table,
    search_path,
    table_files,
    table_path,
    write_directory,
)
from autogemm.database.merging import merge_table
from autogemm.database.reading import read_table
from autogemm.database.writing import dump_table, write_table

__all__ = [
    "MODES",
    "STATUSES",
    "Choice",
    "Entry",
    "Environment",
    "Key",
    "Measured",
    "Table",
    "by_key",
    "dump_table",
    "find_table",
    "key_of",
    "merge_table",
    "read_table",
    "search_path",
    "table_files",
    "table_path",
    "write_directory",
    "write_table",
]
