"""Grading by several processes: the oracle computes on the CPU, and takes most of the time."""

from __future__ import annotations

import functools
import itertools
import math
import signal
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import active_children, get_context
from typing import Any

import torch

from autogemm.grading.grader import Grades, Score, Worst, grade, ranked
from autogemm.grading.oracle import has_oracle
from autogemm.problem import DTYPE_NAMES, DTYPES


def grade_side_by_side(
    where: torch.device,
    extent: str,
    *,
    jobs: int,
    dtypes: Iterable[torch.dtype] = tuple(DTYPES.values()),
    deadline: float = math.inf,
    report: Callable[[str], None] = lambda step: None,
) -> Grades:
    """``grade`` by ``jobs`` processes, which take shares of the trials of a type in turn.

    Where the time does not suffice, all types have been graded alike. Raises what ``grade`` raises,
    and ``BrokenProcessPool`` where a process is killed. Whatever is raised, KeyboardInterrupt too,
    ends the processes at once.
    """
    started, types = time.time(), [dtype for dtype in dtypes if has_oracle(dtype)]
    if not types:
        return grade(where, extent, dtypes=(), deadline=deadline)
    shares = jobs
    work = functools.partial(_part, where, extent, deadline=deadline, shares=shares)
    others = active_children()
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        try:
            futures = {
                pool.submit(work, dtypes=(dtype,), share=share): DTYPE_NAMES[dtype]
                for share in range(shares)
                for dtype in types
            }
            parts = []
            for future in as_completed(futures):
                parts.append(future.result())
                report(f"{futures[future]}: one of {shares} parts")
        except BaseException:  # the pool would wait for all that was submitted
            for worker in set(active_children()) - set(others):
                worker.terminate()
            raise
    scores: dict[tuple[str, torch.dtype, str], Score] = {}
    for score in itertools.chain.from_iterable(part.scores for part in parts):
        key = (score.strategy, score.dtype, score.level)
        scores[key] = _together(scores[key], score) if key in scores else score
    unfinished = any(part.unfinished for part in parts)
    return Grades(
        parts[0].device, extent, ranked(scores.values()), time.time() - started, unfinished
    )


def _part(where: torch.device, extent: str, **options: Any) -> Grades:
    """``grade`` in a process of its own, which Ctrl-C reaches through the one that waits for it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if where.type == "cuda" and where.index is not None:
        torch.cuda.set_device(where)
    return grade(where, extent, **options)


def _together(one: Score, other: Score) -> Score:
    families = dict(one.families)
    for name, worst in other.families.items():
        if worst.share >= families.get(name, Worst()).share:
            families[name] = worst
    lengths = sorted(one.growth.keys() | other.growth.keys())
    return Score(
        one.strategy, one.dtype, one.level, one.results + other.results,
        one.candidates | other.candidates, families, max(one.netlib, other.netlib),
        {k: max(one.growth.get(k, 0.0), other.growth.get(k, 0.0)) for k in lengths},
        one.breaches + other.breaches, one.known + other.known,
    )  # fmt: skip
