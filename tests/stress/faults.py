"""Kills, torn files and rivals: what was reported as done is never lost.

The tuner runs in children of this process (a fork starts in milliseconds) on a bench that
makes up its times; journal, table and locks are the real ones.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from invented import AXPBY, FULL, GPU, always, environment

from autogemm import tuner
from autogemm.database import Entry, Measured, Table, merge_table, read_table, table_path
from autogemm.precision import ErrorBound
from autogemm.problem import Problem, contiguous_problem
from autogemm.strategies import STRATEGIES, Candidate
from autogemm.supervisor import Restarted, supervise
from autogemm.tuner import Order, Outcome, Progress, tune
from autogemm.workloads import Workload
from stress import Figures, GoingOn

PROBLEMS = tuple(contiguous_problem(512, n, 512, torch.float32) for n in range(64, 576, 64))
PATIENCE_S = 60.0

_fork = multiprocessing.get_context("fork") if hasattr(os, "fork") else None


class Bench:
    """Makes up a time for every candidate, the same in each process."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    @contextmanager
    def open(self, problem: Problem) -> Iterator[Bench]:
        yield self

    @staticmethod
    def us(candidate: Candidate) -> float:
        return 50 + random.Random(str(candidate)).random() * 100

    def prepare(self, candidates: Sequence[Candidate]) -> None:
        pass

    def judge(
        self, candidate: Candidate, bound: ErrorBound, screen: Callable[[float], bool]
    ) -> Measured:
        time.sleep(self.seconds)
        us = self.us(candidate)
        return Measured(
            candidate=candidate, status="ok", graph_us=us, eager_us=us, error=0.5, error_norm=1e-7
        )

    def compare(
        self, candidates: Sequence[Candidate], mode: str, rounds: int
    ) -> dict[Candidate, list[float]]:
        return {c: [self.us(c)] * rounds for c in candidates}


def run_tuner(
    folder: Path,
    report: Callable[[Progress], None] = lambda progress: None,
    *,
    problems: Sequence[Problem] = PROBLEMS,
    journal: str = "trials.journal",
    seconds: float = 0.0,
) -> Outcome:
    """One tuning run on the invented GPU; the table is written after every problem."""
    tuner.clocks_of = lambda device: {}
    tuner.STRATEGIES = tuple(s for s in STRATEGIES if s.name != "emulated_fp32")
    tuner.Writer._EVERY_S = 0.0
    order = Order(
        workloads=tuple(Workload(problem) for problem in problems),
        directory=folder / "tables",
        storage=str(folder / journal),
    )
    return tune(order, GPU, Bench(seconds).open, report)


def measured(journal: bytes) -> list[str]:
    """Study and candidate of every measurement in the whole lines of a journal."""
    studies: list[str] = []
    trials: list[int] = []
    names: dict[int, str] = {}
    done: list[str] = []
    for line in journal.splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        entry = json.loads(line)
        if "study_name" in entry and entry["study_name"] not in studies:
            studies.append(entry["study_name"])
        if "datetime_start" in entry and "study_id" in entry:
            trials.append(entry["study_id"])
        attributes = entry.get("user_attr", {})
        if "candidate" in attributes:
            names[entry["trial_id"]] = attributes["candidate"]
        if "row" in attributes:
            done.append(f"{studies[trials[entry['trial_id']]]} | {names[entry['trial_id']]}")
    return done


def recorded(folder: Path, journal: str = "trials.journal") -> list[str]:
    """``measured`` of the journal in a folder."""
    path = folder / journal
    return measured(path.read_bytes()) if path.exists() else []


def sound_table(folder: Path) -> Table | None:
    """The table, read as a call would; warnings and problems are failures."""
    path = table_path(folder / "tables", GPU)
    if not path.exists():
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table, problems = read_table(path)
    assert problems == [], problems
    return table


def _child(work: Callable[[Connection], None], pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    work(pipe)
    os._exit(0)


def _start(work: Callable[[Connection], None]) -> tuple[Any, Connection]:
    assert _fork is not None
    ours, theirs = _fork.Pipe()
    child = _fork.Process(target=_child, args=(work, theirs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forks beside threads, Python 3.12
        child.start()
    theirs.close()
    return child, ours


def _killed(work: Callable[[Connection], None], after_s: float) -> tuple[list[Any], bool]:
    """What a child said until it was killed, and whether it ended before that."""
    child, pipe = _start(work)
    told, until = [], time.monotonic() + after_s
    try:
        while (left := until - time.monotonic()) > 0:
            if pipe.poll(left):
                told.append(pipe.recv())
    except EOFError:
        child.join()
        assert child.exitcode == 0, f"the child ended with exit code {child.exitcode}"
        return told, True
    child.kill()
    child.join()
    try:
        while pipe.poll(0):
            told.append(pipe.recv())
    except (EOFError, OSError):
        pass
    return told, False


# ----------------------------------------------------------------------------------- kills


def kill_tuning(going_on: GoingOn, folder: Path, seed: int = 0) -> Figures:
    """Kill -9 a tuner at random moments and start it again, until each order is finished."""
    rng, kills, lost, orders = random.Random(seed), 0, 0, 0
    while going_on(kills):
        place = folder / f"order-{orders}"
        place.mkdir(parents=True)
        reported: set[tuple[str, str]] = set()

        def work(pipe: Connection, place: Path = place) -> None:
            def report(news: Progress) -> None:
                if news.measured is not None:
                    pipe.send(("measured", f"{news.problem}", f"{news.measured.candidate}"))
                elif news.entry is not None:
                    pipe.send(("finished", f"{news.problem}", ""))

            run_tuner(place, report, seconds=0.002)

        ended = False
        while not ended:
            told, ended = _killed(work, rng.uniform(0.05, 0.6))
            kills += not ended
            reported |= {(problem, name) for kind, problem, name in told if kind == "measured"}
            rows = recorded(place)
            assert len(set(rows)) == len(rows), "something was measured twice"
            kept = {(row.split(" | ")[1], row.split(" | ")[-1]) for row in rows}
            missing = reported - kept
            lost += len(missing)
            assert not missing, f"lost after {kills} kills: {missing}"
            sound_table(place)
        table = sound_table(place)
        assert table is not None
        assert len(table.entries) == len(PROBLEMS), "tuning did not finish"
        orders += 1
    return {"kills": kills, "survived": kills, "orders finished": orders, "measurements lost": lost}


def entries_to_write(count: int) -> list[Entry]:
    """Entries of as many problems."""
    return [
        always(AXPBY if m % 2 else FULL, contiguous_problem(m, 64, 64, torch.float32))
        for m in range(1, count + 1)
    ]


def merge_one(folder: Path, entry: Entry) -> None:
    """Merge an entry into the table of the invented GPU."""
    merge_table(table_path(folder / "tables", GPU), GPU, environment("cuda"), [entry])


def kill_writing(going_on: GoingOn, folder: Path, seed: int = 0) -> Figures:
    """Kill -9 a process that merges entry after entry; none that it called written is lost."""
    rng, kills, known = random.Random(seed), 0, set()
    entries = entries_to_write(60)
    while going_on(kills):
        first = rng.randrange(len(entries))

        def work(pipe: Connection, first: int = first) -> None:
            for entry in entries[first:] + entries[:first]:
                merge_one(folder, entry)
                pipe.send(entry.problem.m)

        told, ended = _killed(work, rng.uniform(0.02, 0.3))
        known |= set(told)
        kills += not ended
        table = sound_table(folder)
        have = set() if table is None else {entry.problem.m for entry in table.entries.values()}
        assert known <= have, f"lost after {kills} kills: {known - have}"
        if len(known) == len(entries):
            table_path(folder / "tables", GPU).unlink()
            known = set()
    return {"kills": kills, "survived": kills, "entries lost": 0}


def tear_journals(going_on: GoingOn, folder: Path, seed: int = 0) -> Figures:
    """Cut a journal anywhere, or spoil its end; tuning goes on with every whole line."""
    rng, torn = random.Random(seed), 0
    run_tuner(folder, problems=PROBLEMS[:2])
    content = (folder / "trials.journal").read_bytes()
    last = content.rfind(b"\n", 0, len(content) - 300)
    offsets = list(range(last, len(content)))
    rng.shuffle(offsets)
    while going_on(torn):
        place = folder / f"torn-{torn}"
        place.mkdir()
        at = offsets[torn // 2 % len(offsets)] if torn % 2 else rng.randrange(len(content))
        # What a file system may leave behind a lost end: nothing, or zeros.
        junk = rng.choice((b"", b"", b"\x00" * rng.randint(1, 5000), b"\x00" * 40 + b"\n"))
        (place / "trials.journal").write_bytes(content[:at] + junk)
        before = measured(content[:at])
        outcome = run_tuner(place, problems=PROBLEMS[:2])
        assert outcome.unfinished == 0
        after = recorded(place)
        assert after[: len(before)] == before, f"cut at {at}: a whole line was lost"
        assert len(set(after)) == len(after)
        torn += 1
    return {"torn journals": torn, "resumed": torn}



def hang_and_crash(folder: Path) -> Figures:
    """Real workers on this CPU whose candidates segfault, hang, or run out of memory."""
    (folder / "sitecustomize.py").write_text(_FATAL)
    problem = contiguous_problem(8, 8, 300, torch.float32, device_type="cpu")
    order = Order(
        workloads=(Workload(problem),), directory=folder / "tables",
        storage=str(folder / "trials.journal"), levels=("highest",),
    )  # fmt: skip
    news: list[str] = []
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *sys.path])
    try:
        outcome = supervise(
            order, "cpu", lambda x: news.append(x.reason) if isinstance(x, Restarted) else None,
            silence_s=15.0,
        )  # fmt: skip
    finally:
        os.environ["PYTHONPATH"] = before
    (entry,) = outcome.entries
    rows = {str(row.candidate): row for row in entry.measured}
    fatal = [row for name, row in rows.items() if not name.startswith("addmm")]
    assert rows["addmm(reduction=full)"].status == "ok"
    assert all(row.status == "failed" for row in fatal), rows
    assert entry.choices["highest"]["eager"].candidate.strategy == "addmm"
    died = sum("died" in reason for reason in news)
    return {"candidates failed": len(fatal), "crashes": died, "hangs": len(news) - died}


_FATAL = """
import os, signal, sys, time
if "spawn_main" in " ".join(sys.orig_argv):
    import autogemm.measure as measure
    bind = measure.Workbench.bind
    def fatal(self, candidate):
        if candidate.strategy == "matmul_axpby":
            os.kill(os.getpid(), signal.SIGSEGV)
        if candidate.strategy == "onednn":
            time.sleep(10_000)
        if candidate.strategy == "ksplit":
            raise (MemoryError if candidate.kwargs["form"] == "batched" else KeyError)("made up")
        return bind(self, candidate)
    measure.Workbench.bind = fatal
"""
