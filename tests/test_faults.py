"""Kills, full disks, closed directories and rivals: nothing reported as done is lost."""

from __future__ import annotations

import errno
import os
import resource
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from invented import AXPBY, CPU, GPU, always, environment, write_for_this_cpu
from stress import faults, up_to

import autogemm
from autogemm import explain, gemm, tuner
from autogemm.database import merge_table, read_table, table_path
from autogemm.device import device_of
from autogemm.errors import DatabaseError, DatabaseWarning
from autogemm.grading.oracle import check
from autogemm.measure import Workbench
from autogemm.precision import Tolerance
from autogemm.problem import contiguous_problem
from autogemm.strategies import BY_NAME, Candidate

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@pytest.fixture(autouse=True)
def _tuner_as_it_was() -> Iterator[None]:
    before = tuner.clocks_of, tuner.STRATEGIES, tuner.Writer._EVERY_S
    yield
    tuner.clocks_of, tuner.STRATEGIES, tuner.Writer._EVERY_S = before


# ------------------------------------------------------------------------------------- kills


@needs_fork
def test_a_tuner_killed_at_any_moment_loses_no_measurement_and_goes_on(tmp_path: Path) -> None:
    assert faults.kill_tuning(up_to(5), tmp_path)["kills"] >= 5


@needs_fork
def test_a_writer_killed_at_any_moment_loses_no_entry(tmp_path: Path) -> None:
    assert faults.kill_writing(up_to(8), tmp_path)["kills"] >= 8


def test_a_journal_torn_anywhere_is_resumed(tmp_path: Path) -> None:
    assert faults.tear_journals(up_to(10), tmp_path)["resumed"] == 10


@needs_fork
def test_two_tuners_on_one_table_lose_nothing_of_each_other(tmp_path: Path) -> None:
    children = []
    for part in (0, 1):

        def work(pipe: Any, part: int = part) -> None:
            faults.run_tuner(
                tmp_path, problems=faults.PROBLEMS[part::2], journal=f"trials-{part}.journal"
            )

        children.append(faults._start(work))
    for child, _ in children:
        child.join(60)
        assert child.exitcode == 0
    table = faults.sound_table(tmp_path)
    assert table is not None
    assert {e.problem for e in table.entries.values()} == set(faults.PROBLEMS)


# -------------------------------------------------------------------------- candidates at fault


@pytest.mark.parametrize("kind", [MemoryError, KeyError, AssertionError, RecursionError, OSError])
def test_whatever_a_candidate_raises_is_its_own_failure(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    problem = contiguous_problem(8, 8, 8, torch.float32, device_type="cpu")
    axpby = BY_NAME["matmul_axpby"]

    def run(*call: Any) -> torch.Tensor:
        raise kind("made up")

    monkeypatch.setattr(axpby, "bind", lambda *facts: run)
    with Workbench.open(problem, device_of(CPU), CPU) as bench:
        row = bench.judge(AXPBY, axpby.bound(problem, {}), lambda us: False)
    assert row.status == "failed"
    assert row.note.startswith(f"{kind.__name__}: ")


# ---------------------------------------------------------------------- disks and directories


def full_disk(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, fail)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_table_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    first, second = faults.entries_to_write(2)
    faults.merge_one(tmp_path, first)
    path = table_path(tmp_path / "tables", GPU)
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        full_disk(patch, call)
        with pytest.raises(OSError, match="No space left"):
            faults.merge_one(tmp_path, second)
    assert path.read_bytes() == before
    assert not list(path.parent.glob("*.tmp")) + list(path.parent.glob(".*.tmp"))
    faults.merge_one(tmp_path, second)
    assert len(read_table(path)[0].entries) == 2


def test_a_file_that_the_system_lets_grow_no_further_is_written_later(tmp_path: Path) -> None:
    """A real failure in the middle of a write, unlike the simulated ones."""
    *most, last = faults.entries_to_write(12)
    path = table_path(tmp_path / "tables", GPU)
    merge_table(path, GPU, environment("cuda"), most)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            faults.merge_one(tmp_path, last)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    faults.merge_one(tmp_path, last)
    assert len(read_table(path)[0].entries) == 12


def test_tuning_on_a_disk_that_fills_up_goes_on_when_there_is_room(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            faults.run_tuner(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    before = faults.recorded(tmp_path)
    assert before
    faults.sound_table(tmp_path)
    assert faults.run_tuner(tmp_path).unfinished == 0
    after = faults.recorded(tmp_path)
    assert after[: len(before)] == before
    assert len(set(after)) == len(after)


def test_places_that_cannot_be_written_are_told_before_anything_is_measured(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("")
    below_a_file = tmp_path / "file" / "below"
    with pytest.raises(DatabaseError, match="--storage"):
        faults.run_tuner(tmp_path, journal="file/below/trials.journal")
    with pytest.raises(DatabaseError, match="tables cannot be written there"):
        tuner.check_writable(below_a_file / "table.yaml")
    if Path("/proc/self").is_dir():  # read-only even for root
        with pytest.raises(DatabaseError, match="tables cannot be written there"):
            tuner.check_writable(Path("/proc/autogemm/table.yaml"))


# ------------------------------------------------------------- tables under a running program


def test_a_table_may_be_swapped_deleted_and_damaged_under_a_running_program(tables: Path) -> None:
    A, B, C = torch.randn(24, 40), torch.randn(40, 32), torch.randn(24, 32)
    problem = contiguous_problem(24, 32, 40, torch.float32, device_type="cpu")
    split = Candidate.of("ksplit", form="sequential", chunks=2)
    path = write_for_this_cpu(tables, always(AXPBY, problem))
    axpby = path.read_bytes()
    write_for_this_cpu(tables, always(split, problem))
    sequential = path.read_bytes()

    def directory() -> None:
        path.unlink()
        path.mkdir()

    states: list[tuple[Callable[[], object], str, bool]] = [
        (lambda: path.write_bytes(axpby), "matmul_axpby", False),
        (lambda: path.write_bytes(sequential), "ksplit", False),
        (path.unlink, "addmm", False),
        (lambda: path.write_bytes(axpby[:-200]), "addmm", True),
        (lambda: path.write_bytes(b""), "addmm", True),
        (lambda: path.write_bytes(axpby), "matmul_axpby", False),
        (lambda: path.write_bytes(os.urandom(5000)), "addmm", True),
        (directory, "addmm", False),
        (path.rmdir, "addmm", False),
        (lambda: path.write_bytes(sequential), "ksplit", False),
    ]
    strategy = "ksplit"
    gemm(1.5, A, B, 0.5, C)
    for change, expected, warned in states:
        change()
        for reloaded in (False, True):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                if reloaded:
                    autogemm.reload_tables()
                    strategy = expected
                check(gemm(1.5, A, B, 0.5, C), 1.5, A, B, 0.5, C, Tolerance("highest"))
                assert explain(1.5, A, B, 0.5, C).strategy == strategy
            expected_warnings = {DatabaseWarning} if warned and reloaded else set()
            assert {w.category for w in caught} == expected_warnings
