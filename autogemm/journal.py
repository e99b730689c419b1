"""Where tuning trials are kept between runs: a journal file, or any Optuna storage URL.

A journal survives a kill at any moment: its lock is one the operating system releases with
the process, and a torn last line is cut off before the next run reads it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import filelock
import optuna
import platformdirs
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock

from autogemm.device import Device
from autogemm.errors import DatabaseError
from autogemm.problem import Problem

_PATIENCE_S = 5.0


@contextmanager
def open_storage(storage: str | None, device: Device) -> Iterator[BaseStorage]:
    """Open the trials of earlier runs, for this tuner alone.

    ``storage`` is a URL with a scheme (``sqlite:///trials.db``), the path of a journal file, or
    None for one in the user's state directory. Raises ``DatabaseError`` where it cannot be
    opened or another tuner holds it.
    """
    if storage is not None and "://" in storage:
        yield _opened(storage, lambda: RDBStorage(storage))
        return
    if storage is None:
        path = Path(platformdirs.user_state_dir("autogemm")) / f"{device.slug}.journal"
    else:
        path = Path(storage).expanduser()
    path = path.absolute()  # Optuna's journal hangs on a relative path after a kill
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Patience for a worker whose supervisor was killed: it notices within a second.
        lock = filelock.FileLock(f"{path}.tuner.lock", timeout=_PATIENCE_S)
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
        _check_journal(path)
        _cut_torn_line(path)
        backend = JournalFileBackend(str(path), lock_obj=_Lock(path))
        yield _opened(str(path), lambda: JournalStorage(backend))
    finally:
        lock.release()


def study_name(
    device: Device, problem: Problem, environment: str, space: str, levels: Sequence[str]
) -> str:
    """What a problem's study is called."""
    return f"{device.slug} | {problem} | {environment} | {space} | {'+'.join(levels)}"


def settled(storage: BaseStorage, name: str) -> float:
    """When a study's problem was last put into the table; 0 if it never was."""
    try:
        study = optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        return 0.0
    return float(study.user_attrs.get("settled", 0.0))


def begun(storage: BaseStorage, name: str, now: float) -> float:
    """When the run called so began that has not ended yet; if there is none, it begins ``now``."""
    study = optuna.create_study(study_name=name, storage=storage, load_if_exists=True)
    if "begun" not in study.user_attrs:
        study.set_user_attr("begun", now)
    return float(study.user_attrs["begun"])


def ended(storage: BaseStorage, name: str) -> None:
    """Let the next run called so begin anew."""
    optuna.delete_study(study_name=name, storage=storage)


@contextmanager
def device_turn(device: Device, waiting: Callable[[], None]) -> Iterator[None]:
    """Wait until no other tuner of this user measures on a device: they would time each other.

    ``waiting`` is called once if there is one. Without a writable state directory nobody waits.
    """
    path = Path(platformdirs.user_state_dir("autogemm")) / f"{device.slug}.turn.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(str(path))
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            waiting()
            lock.acquire()
    except OSError:
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _opened(name: str, open_: Callable[[], BaseStorage]) -> BaseStorage:
    try:
        return open_()
    except Exception as error:  # Optuna and SQLAlchemy raise many kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DatabaseError(
            f"{name}: cannot keep trials there ({reason}); expected an Optuna storage URL, such "
            "as sqlite:///trials.db, or the path of a journal file, with --storage."
        ) from error


def _check_journal(path: Path) -> None:
    """Refuse a file that is no journal before anything is cut off it."""
    try:
        with path.open("rb") as file:
            first = file.readline(2**16)
    except FileNotFoundError:
        return
    except OSError as error:
        raise DatabaseError(
            f"{path}: cannot be read ({error.strerror}); name a journal file with --storage."
        ) from None
    if first.endswith(b"\n") and not first.startswith(b'{"op_code"'):
        raise DatabaseError(
            f"{path}: is not a journal of trials; name a new or an old journal with --storage."
        )
    if first and not first.endswith(b"\n") and not first.startswith(b"{"):
        raise DatabaseError(
            f"{path}: is not a journal of trials; name a new or an old journal with --storage."
        )


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
    """Drop what a killed process, or a machine that lost power, left behind the last whole line."""
    if not path.exists():
        return
    with path.open("r+b") as journal:
        content = journal.read()
        end = content.rfind(b"\n") + 1
        while end:
            start = content.rfind(b"\n", 0, end - 1) + 1
            if _is_whole(content[start:end]):
                break
            end = start
        if end != len(content):
            journal.truncate(end)


def _is_whole(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
