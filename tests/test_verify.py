"""Verification of a table: what is confirmed, what is flagged, what the script makes of it."""

from __future__ import annotations

import math
import runpy
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from invented import (
    AXPBY,
    CPU,
    FULL,
    GPU,
    TF32,
    choice,
    entry,
    environment,
    table,
    write_for_this_cpu,
)

import autogemm
from autogemm import supervisor, verification
from autogemm.database import Entry, Table, read_table
from autogemm.device import device_of
from autogemm.errors import DatabaseError
from autogemm.grading import grader
from autogemm.measure import Workbench
from autogemm.problem import contiguous_problem
from autogemm.strategies import Candidate
from autogemm.strategies.matmul_axpby import MatmulAxpby
from autogemm.tuner import Order, Outcome
from autogemm.verification import Row, Verification, order_for, verify_entry, verify_table

SCRIPT = Path(autogemm.__file__).parents[1] / "scripts" / "verify.py"
HERE = device_of(CPU)


def problem(m: int = 24):  # type: ignore[no-untyped-def]
    return contiguous_problem(m, 20, 32, torch.float32, device_type="cpu")


def claims(ratio: float, candidate: Candidate = AXPBY, m: int = 24, **facts: object) -> Entry:
    """An entry of this CPU whose choice is said to be ``ratio`` times as fast as the baseline."""
    return entry(problem(m), {"highest": choice(candidate, ratio)}, **facts)  # type: ignore[arg-type]


def of_this_cpu(*entries: Entry, **facts: object) -> Table:
    return table(*entries, device=HERE, **facts)  # type: ignore[arg-type]


@pytest.fixture
def _twice_as_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timings that make everything but the baseline run at twice its speed, give or take 1 %."""

    def compare(
        bench: Workbench, candidates: Sequence[Candidate], mode: str, rounds: int
    ) -> dict[Candidate, list[float]]:
        noise = [1 + 0.01 * (i % 3 - 1) for i in range(rounds)]
        return {c: [(100.0 if c == FULL else 50.0) * x for x in noise] for c in candidates}

    monkeypatch.setattr(Workbench, "compare", compare)


@pytest.fixture
def _one_thread() -> Iterator[None]:
    """To wake another one for a small product may take longer than many smaller products."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def only_row(claimed: Entry, **facts: object) -> Row:
    (row,) = verify_entry(claimed, of_this_cpu(claimed, **facts), HERE, CPU)
    return row


# -------------------------------------------------------------------------------- the verdicts


@pytest.mark.usefixtures("_twice_as_fast")
def test_a_gain_that_is_met_again_is_confirmed() -> None:
    row = only_row(claims(2.01))
    assert row.now is not None
    assert row.now.median == pytest.approx(2.0)
    assert row.confirmed
    assert row.flags == ()
    assert row.error is not None
    assert row.error < 36


@pytest.mark.usefixtures("_twice_as_fast")
@pytest.mark.parametrize("stored", [1.5, 3.0])
def test_another_gain_is_not_confirmed_and_not_stale(stored: float) -> None:
    row = only_row(claims(stored))
    assert not row.confirmed
    assert row.flags == ()


@pytest.mark.parametrize(
    ("stored", "now", "stale"),
    [
        (2.0, (0.8, 0.9, 0.95), True),
        (2.0, (0.98, 1.0, 1.03), True),
        (2.0, (1.01, 1.05, 1.1), False),
        (1.03, (0.99, 1.02, 1.05), False),
        (1.03, (0.97, 0.99, 1.01), True),
    ],
)
def test_a_gain_is_gone_where_its_interval_reaches_below_one_and_missed_the_stored_one(
    stored: float, now: tuple[float, float, float], stale: bool
) -> None:
    low, median, high = now
    ratio = verification.Ratio(median, low, high)
    assert verification._is_gone(choice(AXPBY, stored), ratio) == stale


@pytest.mark.usefixtures("_one_thread")
def test_a_gain_that_never_was_is_flagged_by_real_timings() -> None:
    slow = Candidate.of("ksplit", form="sequential", chunks=16)
    row = only_row(claims(50.0, slow))
    assert row.now is not None
    assert row.now.median < 5
    assert any(flag.startswith("its gain is gone: ") for flag in row.flags)


@pytest.mark.usefixtures("_twice_as_fast")
def test_other_versions_are_flagged() -> None:
    old = environment("cpu", torch="1.0.0")
    row = only_row(claims(2.0, where=old), where=old)
    assert any("other versions: torch 1.0.0 then, " in flag for flag in row.flags)
    assert row.confirmed


@pytest.mark.usefixtures("_twice_as_fast")
def test_an_error_beyond_the_bound_is_flagged(monkeypatch: pytest.MonkeyPatch) -> None:
    bind = MatmulAxpby.bind

    def bind_wrong(*facts: object):  # type: ignore[no-untyped-def]
        run = bind(*facts)  # type: ignore[arg-type]
        return lambda *call: run(*call) * (1 + 2.0**-12)

    monkeypatch.setattr(MatmulAxpby, "bind", bind_wrong)
    row = only_row(claims(2.0))
    assert any("on normal data exceeds" in flag for flag in row.flags)
    assert row.error is not None
    assert row.error > 36


def test_what_cannot_run_here_is_flagged_and_not_timed() -> None:
    row = only_row(claims(2.0, TF32))
    assert row.now is None
    assert row.flags == ("cannot run here: runs on cuda, not on cpu",)


def test_a_choice_of_the_baseline_has_nothing_to_be_timed_against() -> None:
    row = only_row(claims(1.0, FULL))
    assert row.now is None
    assert not row.confirmed
    assert row.flags == ()


def test_a_problem_that_does_not_fit_is_flagged(monkeypatch: pytest.MonkeyPatch) -> None:
    def open_(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("no memory\nat all")

    monkeypatch.setattr(Workbench, "open", open_)
    assert only_row(claims(2.0)).flags == ("cannot be measured: OutOfMemoryError: no memory",)


# ------------------------------------------------------------------------------ whole tables


@pytest.mark.usefixtures("_twice_as_fast")
def test_the_share_of_confirmed_rows_leaves_baselines_out() -> None:
    entries = [claims(2.0, m=16), claims(3.0, m=17), claims(1.0, FULL, m=18)]
    found = verify_table(of_this_cpu(*entries), HERE, CPU)
    assert len(found.rows) == 3
    assert len(found.timed) == 2
    assert found.confirmed == 0.5
    assert math.isnan(Verification(of_this_cpu(), (), 0).confirmed)


@pytest.mark.usefixtures("_twice_as_fast")
def test_a_sample_is_the_same_every_time_and_the_budget_stops_it() -> None:
    whole = of_this_cpu(*[claims(2.0, m=m) for m in range(10, 20)])
    first, again = (verify_table(whole, HERE, CPU, sample=3) for _ in range(2))
    assert len(first.rows) == 3
    assert [row.problem for row in first.rows] == [row.problem for row in again.rows]
    stopped = verify_table(whole, HERE, CPU, deadline=0.0)
    assert (stopped.rows, stopped.left) == ((), 10)


def test_a_table_of_another_device_cannot_be_confirmed() -> None:
    with pytest.raises(DatabaseError, match="holds the results of Example GPU"):
        verify_table(table(device=GPU), HERE, CPU)


@pytest.mark.usefixtures("_twice_as_fast")
def test_only_the_flagged_problems_are_tuned_anew_into_the_same_table(tmp_path: Path) -> None:
    path = write_for_this_cpu(tmp_path, claims(2.0, m=16), claims(2.0, TF32, m=17))
    found = verify_table(read_table(path)[0], HERE, CPU)
    order = order_for(found.flagged, found.table)
    assert [w.problem for w in order.workloads] == [problem(17)]
    assert order.levels == ("highest",)
    assert order.directory == path
    assert order.again


# --------------------------------------------------------------------------------- the script


@pytest.fixture
def _argv(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", [*sys.path])
    with torch.no_grad():
        yield


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["verify.py", "--device", "cpu", *words])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return int(left.value.code or 0)


@pytest.mark.usefixtures("_argv", "_twice_as_fast")
def test_the_script_ends_with_0_where_all_held_and_1_where_something_is_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_for_this_cpu(tmp_path, claims(2.0, m=16))
    assert run(monkeypatch, "--table", "--db", str(path)) == 0
    assert "1 rows, 0 flagged; 1 choose something else" in capsys.readouterr().out
    write_for_this_cpu(tmp_path, claims(2.0, m=16), claims(2.0, TF32, m=17))
    assert run(monkeypatch, "--table", "--db", str(tmp_path)) == 1
    printed = capsys.readouterr().out
    assert "cannot run here: runs on cuda, not on cpu" in printed
    assert "100% of them within 3%" in printed
    assert "1 problems are stale; --retune tunes these anew" in printed


@pytest.mark.usefixtures("_argv", "_twice_as_fast")
def test_retune_tunes_the_flagged_problems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    orders: list[Order] = []

    def supervise(order: Order, *_: object) -> Outcome:
        orders.append(order)
        return Outcome(
            entries=(claims(1.0, FULL, m=17),), measured=1, screened=0, saved_s=0.0, reused=0,
            unfinished=0,
        )  # fmt: skip

    monkeypatch.setattr(supervisor, "supervise", supervise)
    write_for_this_cpu(tmp_path, claims(2.0, m=16), claims(2.0, TF32, m=17))
    assert run(monkeypatch, "--table", "--db", str(tmp_path), "--retune") == 0
    assert [w.problem for w in orders[0].workloads] == [problem(17)]
    assert "1 of 1 stale problems tuned anew" in capsys.readouterr().out


@pytest.mark.usefixtures("_argv")
def test_the_script_grades_and_writes_the_scorecard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = grader.trials
    monkeypatch.setattr(
        grader, "trials", lambda *x, **y: (t for t in real(*x, **y) if t.family == "strassen")
    )
    page = tmp_path / "page.md"
    assert run(monkeypatch, "--accuracy", "--markdown", str(page)) == 0
    assert "every bound held" in capsys.readouterr().out
    assert "`python scripts/verify.py --accuracy --device cpu --quick`" in page.read_text("utf-8")

    monkeypatch.setattr(MatmulAxpby, "bind", lambda *_: lambda alpha, A, B, *rest: A @ B + 1)
    assert run(monkeypatch, "--accuracy") == 1
    assert "matmul_axpby on float32: strassen test 'unequal_quadrants'" in capsys.readouterr().out


@pytest.mark.usefixtures("_argv")
def test_what_could_not_be_graded_is_told_and_ends_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lost(*_: object, **__: object) -> None:
        raise RuntimeError("the device is lost")

    monkeypatch.setattr("autogemm.grading.grade", lost)
    assert run(monkeypatch, "--accuracy") == 2
    assert "the device is lost" in capsys.readouterr().err


@pytest.mark.usefixtures("_argv")
@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "name one of --accuracy and --table"),
        (("--accuracy", "--table"), "name one of --accuracy and --table"),
        (("--table", "--sample", "0"), "expected a positive number"),
        (("--table", "--budget", "-1"), "expected a positive number"),
        (("--table", "--db", "/nowhere"), "no table for"),
        (("--accuracy", "--markdown", "/nowhere/at/all.md"), "cannot be written"),
        (("--table", "--device", "cuda:97"), "--device cuda:97"),
    ],
)
def test_a_wrong_command_line_is_told_and_ends_with_2(
    words: tuple[str, ...],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, *words) == 2
    assert told in capsys.readouterr().err


def test_a_busy_machine_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(verification.os, "getloadavg", lambda: (8.0, 1.0, 1.0))
    assert "the load is 8.0 on 2 processors" in verification.busy()
    monkeypatch.setattr(verification.os, "getloadavg", lambda: (1.0, 1.0, 1.0))
    assert verification.busy() == ""
