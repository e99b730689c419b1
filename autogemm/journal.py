"""Where tuning trials are kept between runs: a journal file, or any Optuna storage URL.

A journal survives a kill at any moment: its lock is one the operating system releases with
the process, and a torn last line is cut off before the next run reads it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock
import platformdirs
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock

from autogemm.device import Device
from autogemm.errors import DatabaseError


@contextmanager
def open_storage(storage: str | None, device: Device) -> Iterator[BaseStorage]:
    """Open the trials of earlier runs, alone: two tuners on one GPU would time each other.

    ``storage`` is a URL with a scheme (``sqlite:///trials.db``), the path of a journal file, or
    None for one in the user's state directory. Raises ``DatabaseError`` where it cannot be
    opened or another tuner holds it.
    """
    if storage is not None and "://" in storage:
        yield RDBStorage(storage)
        return
    if storage is None:
        path = Path(platformdirs.user_state_dir("autogemm")) / f"{device.slug}.journal"
    else:
        path = Path(storage).expanduser()
    path = path.absolute()  # Optuna's journal hangs on a relative path after a kill
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(f"{path}.tuner.lock", timeout=0)
        lock.acquire()
    except filelock.Timeout:
        raise DatabaseError(
            f"{path}: another tuner is running on these trials; wait for it to end, or give "
            "this one a journal of its own with --storage PATH."
        ) from None
    except OSError as error:
        raise DatabaseError(
            f"{path}: cannot keep trials there ({error}); name a writable file with --storage."
        ) from None
    try:
        _cut_torn_line(path)
        yield JournalStorage(JournalFileBackend(str(path), lock_obj=_Lock(path)))
    finally:
        lock.release()


class _Lock(BaseJournalFileLock):
    """A journal lock that dies with its process, unlike the link or file Optuna would leave."""

    def __init__(self, path: Path) -> None:
        self._lock = filelock.FileLock(f"{path}.lock")

    def acquire(self) -> bool:
        """Wait for the lock."""
        self._lock.acquire()
        return True

    def release(self) -> None:
        """Give the lock back."""
        self._lock.release()


def _cut_torn_line(path: Path) -> None:
    """Drop what a killed process left behind the last complete line."""
    if not path.exists():
        return
    with path.open("r+b") as journal:
        content = journal.read()
        end = content.rfind(b"\n") + 1
        if end != len(content):
            journal.truncate(end)
