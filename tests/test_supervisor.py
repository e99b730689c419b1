"""Tuning as a user runs it: real processes that are killed, interrupted, crashed and hung."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from calling import python_path

import autogemm
from autogemm import supervisor
from autogemm.compile_ahead import CompileAhead
from autogemm.database import Table, read_table
from autogemm.shapes import read_shapes
from autogemm.supervisor import Alive, Restarted, TuningFailed, supervise
from autogemm.tuner import Order, Outcome

ROOT = Path(autogemm.__file__).parents[1]
PATIENCE_S = 60.0

# The shapes are tiny; it is their number that gives an interruption something to interrupt.
SHAPES = "".join(f"- {{m: {m}, n: 8, k: 16, dtype: float32}}\n" for m in range(1, 9))
FEW = "- {m: 4, n: 8, k: 16, dtype: float64}\n- {m: 5, n: 8, k: 300, dtype: float32}\n"


class Machine:
    """One directory with shapes, trials and a table; runs ``scripts/tune.py`` on them."""

    def __init__(self, folder: Path, shapes: str) -> None:
        self.folder = folder
        self.journal = folder / "trials.journal"
        (folder / "shapes.yaml").write_text(shapes)

    def start(self, *options: str, **environment: str) -> subprocess.Popen[str]:
        command = [
            sys.executable, str(ROOT / "scripts" / "tune.py"), "--device", "cpu",
            "--shapes", str(self.folder / "shapes.yaml"), "--db", str(self.folder / "tables"),
            "--storage", str(self.journal), *options,
        ]  # fmt: skip
        # One thread: two would wait for each other wherever something else runs too.
        settings = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        return subprocess.Popen(
            command, env=settings, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            # A shell has what it starts in the background ignore Ctrl-C, and children inherit it.
            preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip

    def run(self, *options: str, **environment: str) -> tuple[int, str, str]:
        """Run to the end; while a killed run's worker still holds the trials, try again."""
        patience = time.monotonic() + PATIENCE_S
        while True:
            process = self.start(*options, **environment)
            out, err = process.communicate(timeout=PATIENCE_S)
            if "another tuner is running" not in err or time.monotonic() > patience:
                return process.returncode, out, err
            time.sleep(0.1)

    def rows(self) -> list[str]:
        """Problem and candidate of every measurement in the journal."""
        studies: list[str] = []
        trials: list[int] = []
        names: dict[int, str] = {}
        done = []
        lines = self.journal.read_text().splitlines(keepends=True) if self.journal.exists() else []
        for line in lines:
            if not line.endswith("\n"):
                break
            entry = json.loads(line)
            if "study_name" in entry and entry["study_name"] not in studies:
                studies.append(entry["study_name"])
            if "datetime_start" in entry and "study_id" in entry:
                trials.append(entry["study_id"])
            if "candidate" in entry.get("user_attr", {}):
                names[entry["trial_id"]] = entry["user_attr"]["candidate"]
            if "row" in entry.get("user_attr", {}):
                trial = entry["trial_id"]
                done.append(f"{studies[trials[trial]]} | {names[trial]}")
        return done

    def wait_for_rows(self, count: int, process: subprocess.Popen[str]) -> None:
        patience = time.monotonic() + PATIENCE_S
        while len(self.rows()) < count:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < patience, "nothing was measured"
            time.sleep(0.01)

    def table(self) -> Table:
        (path,) = (self.folder / "tables").glob("*.yaml")
        table, problems = read_table(path)
        assert problems == []
        return table


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path, SHAPES)


def test_a_run_fills_the_table_and_another_one_finds_nothing_to_do(tmp_path: Path) -> None:
    machine = Machine(tmp_path, FEW)
    code, out, err = machine.run()
    assert code == 0, err
    assert "tuning" in out
    assert "2 problems (0 tuned before)" in out
    assert "x addmm" in out
    table = machine.table()
    assert {e.problem.m: set(e.choices) for e in table.entries.values()} == {
        4: {"highest"},
        5: {"highest", "high", "medium"},
    }
    assert table.device.units == 1
    assert len(machine.rows()) == sum(len(e.measured) for e in table.entries.values())
    before, measured = table.path.read_bytes(), machine.rows()  # type: ignore[union-attr]
    code, out, err = machine.run()
    assert code == 0, err
    assert "2 problems (2 tuned before), 0 candidates timed" in out
    assert table.path.read_bytes() == before  # type: ignore[union-attr]
    assert machine.rows() == measured


def test_kill_9_in_the_middle_loses_nothing_that_was_measured(machine: Machine) -> None:
    process = machine.start()
    machine.wait_for_rows(7, process)
    process.kill()
    process.wait()
    code, out, err = machine.run()
    assert code == 0, err
    table = machine.table()
    assert len(table.entries) == 8
    counts = Counter(machine.rows())
    assert set(counts.values()) == {1}, "something was measured twice"
    assert len(counts) == sum(len(e.measured) for e in table.entries.values())
    assert "candidates timed" in out
    process.communicate()


def parent_of(process: Path) -> int | None:
    try:
        status = (process / "stat").read_text()
    except OSError:  # it has ended meanwhile
        return None
    return int(status.rpartition(")")[2].split()[1])


def test_a_killed_worker_is_replaced_and_the_run_goes_on(machine: Machine) -> None:
    process = machine.start()
    machine.wait_for_rows(3, process)
    workers = [
        int(command.parent.name)
        for command in Path("/proc").glob("[0-9]*/cmdline")
        if parent_of(command.parent) == process.pid and b"spawn_main" in command.read_bytes()
    ]
    if not workers:
        process.kill()
        process.communicate()
        pytest.skip("this system does not list a process's children")
    os.kill(workers[0], signal.SIGKILL)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    assert "the tuning process died with exit code -9; going on in a new one" in out + err
    assert len(machine.table().entries) == 8
    assert max(Counter(machine.rows()).values()) == 1


def interrupt(process: subprocess.Popen[str]) -> str:
    """Ctrl-C as a terminal sends it, to the whole group; what the run then says."""
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode in (0, 130), err
    assert "Traceback" not in err, err
    assert "run the same command again to go on" in out + err
    return out + err


def test_ctrl_c_ends_a_run_in_order_and_the_next_one_goes_on(machine: Machine) -> None:
    process = machine.start()
    machine.wait_for_rows(5, process)
    interrupt(process)
    before = machine.rows()
    code, _, err = machine.run()
    assert code == 0, err
    assert len(machine.table().entries) == 8
    after = machine.rows()
    assert after[: len(before)] == before
    assert len(after) > len(before)
    assert max(Counter(after).values()) == 1


@pytest.mark.parametrize("delay_s", [0.0, 0.4])
def test_ctrl_c_while_the_worker_starts_is_not_lost(machine: Machine, delay_s: float) -> None:
    process = machine.start()
    assert process.stdout is not None
    process.stdout.readline()  # "tuning …", flushed as the worker is started
    time.sleep(delay_s)
    interrupt(process)
    assert len(set(machine.rows())) < 8 * 3


def test_a_candidate_that_crashes_or_hangs_its_process_is_recorded_and_the_run_ends(
    tmp_path: Path,
) -> None:
    machine = Machine(tmp_path, "- {m: 4, n: 8, k: 16, dtype: float64}\n")
    # Runs at the start of every Python process whose path holds it.
    (tmp_path / "sitecustomize.py").write_text(
        textwrap.dedent("""
            import os, sys
            if "--multiprocessing-fork" in sys.argv or "spawn_main" in " ".join(sys.orig_argv):
                import autogemm.measure as measure
                judge = measure.Workbench.judge
                def fatal(self, candidate, *rest):
                    if candidate.strategy == "matmul_axpby":
                        os._exit(9)
                    return judge(self, candidate, *rest)
                measure.Workbench.judge = fatal
        """)
    )
    code, out, err = machine.run("--again", PYTHONPATH=python_path(tmp_path, ROOT))
    assert code == 0, err
    assert (out + err).count("died with exit code 9") == 2
    (entry,) = machine.table().entries.values()
    rows = {row.candidate.strategy: row for row in entry.measured}
    assert rows["matmul_axpby"].status == "failed"
    assert "died or hung twice" in rows["matmul_axpby"].note
    assert rows["addmm"].status == "ok"
    assert entry.choices["highest"]["eager"].candidate.strategy == "addmm"


# ---------------------------------------------------------------- the supervisor's decisions

ORDER = Order(workloads=(), directory=Path("nowhere"))


class Worker:
    """A worker process that does nothing by itself."""

    exitcode = 3

    def __init__(self) -> None:
        self.done: list[str] = []

    def kill(self) -> None:
        self.done.append("kill")

    def join(self, timeout: float | None = None) -> None:
        self.done.append("join")


def test_a_worker_that_falls_silent_is_killed() -> None:
    ours, theirs = multiprocessing.Pipe()
    worker, heard = Worker(), []
    theirs.send("news")
    told = supervisor._listen(ours, worker, threading.Event(), heard.append, silence_s=0.3)
    assert told == ("said nothing for 0 s and was killed", 1)
    assert heard == ["news"]
    assert worker.done == ["kill", "join"]


def test_a_worker_that_measures_for_long_is_not_silent() -> None:
    ours, theirs = multiprocessing.Pipe()
    worker, heard = Worker(), []
    done = threading.Event()

    def beat() -> None:
        for _ in range(8):
            theirs.send(Alive())
            time.sleep(0.1)
        done.set()

    threading.Thread(target=beat).start()
    told = supervisor._listen(ours, worker, threading.Event(), heard.append, silence_s=0.5)
    assert done.is_set()
    assert told == ("said nothing for 0 s and was killed", 0), "and being alive is no progress"
    assert heard == []


def test_a_worker_says_now_and_then_that_it_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(supervisor, "time", SimpleNamespace(monotonic=lambda: now[0]))
    ours, theirs = multiprocessing.Pipe()
    tick = supervisor._Tick(theirs)
    for after in (1.0, 3.0, 2.0, 0.1, 6.0):
        now[0] += after
        tick()
    said = 0
    while ours.poll():
        assert isinstance(ours.recv(), Alive)
        said += 1
    assert said == 2
    ours.close()
    now[0] += 10.0
    tick()  # nobody is there any more


def test_a_worker_that_died_is_told_apart_from_one_that_failed_and_one_that_finished() -> None:
    outcome = Outcome(entries=(), measured=1, screened=0, saved_s=0.0, reused=0, unfinished=0)
    for message in (outcome, RuntimeError("no table")):
        ours, theirs = multiprocessing.Pipe()
        theirs.send(message)
        told, heard = supervisor._listen(ours, Worker(), threading.Event(), print, 60.0)
        assert str(told) == str(message)
        assert heard == 0
    ours, theirs = multiprocessing.Pipe()
    theirs.close()
    told, _ = supervisor._listen(ours, Worker(), threading.Event(), print, 60.0)
    assert told == "died with exit code 3"


def play(monkeypatch: pytest.MonkeyPatch, *results: object) -> list[str]:
    """Run ``supervise`` with workers that end as told; return the restarts it reports."""
    left = iter(results)
    told: list[str] = []
    monkeypatch.setattr(supervisor, "_start", lambda worker: None)
    monkeypatch.setattr(supervisor, "_listen", lambda *args: next(left))

    def report(news: object) -> None:
        assert isinstance(news, Restarted)
        told.append(news.reason)

    supervise(ORDER, "cpu", report)
    return told


def test_workers_that_get_nowhere_are_not_restarted_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(TuningFailed, match="4 workers in turn got nowhere; the last one died"):
        play(monkeypatch, *[("died", 0)] * 5)
    with pytest.raises(TuningFailed, match="4 workers"):
        play(monkeypatch, *[("died", 0)] * 3, ("died", 7), *[("died", 0)] * 4)


def test_kernels_are_compiled_ahead_by_the_first_worker_and_by_none_that_takes_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may have died of that; and it has to be allowed processes of its own."""
    made: list[tuple[bool, bool | None]] = []
    real = multiprocessing.get_context("spawn")

    class Context:
        Pipe, Event = staticmethod(real.Pipe), staticmethod(real.Event)

        @staticmethod
        def Process(*, target: object, args: tuple[object, ...], daemon: bool | None = None) -> Any:
            made.append((bool(args[-1]), daemon))
            return real.Process(target=target, args=args)  # which is never started

    monkeypatch.setattr(supervisor, "get_context", lambda kind: Context)
    with pytest.raises(TuningFailed):
        play(monkeypatch, *[("died", 0)] * 4)
    assert made == [(True, None), (False, None), (False, None), (False, None)]


@pytest.mark.parametrize("ahead", [True, False])
def test_a_worker_compiles_ahead_where_it_is_told_to(
    ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    monkeypatch.setattr(supervisor.signal, "signal", lambda *_: None)
    monkeypatch.setattr(supervisor, "tune", lambda *args: given.append(args[-1]))
    ours, theirs = multiprocessing.Pipe()
    supervisor._work(ORDER, "cpu", theirs, threading.Event(), ahead)
    assert ours.poll()
    assert isinstance(given[0], CompileAhead) == ahead
    given[0](iter(()))


def test_a_worker_does_not_outlive_what_it_reports_to(machine: Machine) -> None:
    def report(news: object) -> None:
        raise ZeroDivisionError

    workloads = read_shapes(machine.folder / "shapes.yaml", "cpu").workloads
    order = Order(
        workloads=workloads, directory=machine.folder, storage=str(machine.journal)
    )  # fmt: skip
    with pytest.raises(ZeroDivisionError):
        supervise(order, "cpu", report)
    for worker in multiprocessing.active_children():
        worker.join(10)
    assert multiprocessing.active_children() == []


def test_an_error_of_the_worker_ends_the_run_with_its_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(TuningFailed, match="DatabaseError: /x is not writable"):
        play(monkeypatch, ("died", 1), (RuntimeError("DatabaseError: /x is not writable"), 0))


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--shapes", "/nowhere/shapes.yaml"], 1, "/nowhere/shapes.yaml: cannot be read"),
        (["--device", "cuda:99"], 2, "--device cuda:99"),
        (["--device", "abacus"], 2, "--device abacus"),
        (["--budget", "0"], 2, "--budget is 0.0; expected a positive number"),
        (["--db", __file__], 2, "a file; expected a directory"),
        (["--preset", "everything"], 2, "invalid choice: 'everything'"),
        (["--precision", "best"], 2, "invalid choice: 'best'"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_a_wrong_command_line_is_told_and_nothing_is_started(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    code: int,
    words: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["tune.py", "--device", "cpu", *options])
    monkeypatch.setattr(sys, "path", [*sys.path])
    main = runpy.run_path(str(ROOT / "scripts" / "tune.py"))["main"]
    main.__globals__["supervise"] = None
    try:
        told = main()
    except SystemExit as end:
        told = end.code
    assert told == code
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("script", ["tune.py", "benchmark.py"])
def test_ctrl_c_while_torch_is_imported_ends_a_script_silently(script: str, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("import time\nprint('here', flush=True)\ntime.sleep(600)\n")
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / script)],
        env={**os.environ, "PYTHONPATH": python_path(tmp_path)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out, err) == (-signal.SIGINT, "", "")
