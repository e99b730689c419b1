"""Compiles quack's kernels side by side, in processes that see no GPU.

A kernel takes its compiler two seconds, most of them in Python, so that threads do not help.
quack has a pool of processes for its own tuner: inside it a call whose kernel is missing hands
the kernel to a process and gives up. What comes of it is quack's cache on disk.
"""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context, parent_process

import torch

from autogemm.device import Device
from autogemm.measure import context_is_lost
from autogemm.operands import make_operands, normal
from autogemm.problem import Problem
from autogemm.strategies import BY_NAME, Candidate
from autogemm.strategies.cute import compile_for

_PROCESSES = min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
"""Each needs some 350 MB."""
_AT_ONCE = 4 * _PROCESSES
"""Kernels compiled before measuring goes on; processes take some seconds to start."""
_LIMIT_S = 90.0
"""Longer than these take; what is not there by then is compiled where it is needed."""


class CompileAhead:
    """Compiles what the problems of a tuning run need, for some of them at a time."""

    def __init__(
        self, device: Device, where: torch.device, stop: Callable[[], bool] = lambda: False
    ) -> None:
        """``stop`` says whether to wait no longer for what is being compiled."""
        self._device, self._where, self._stop = device, where, stop
        self._asked: set[Hashable] = set()

    def __call__(self, problems: Iterable[Problem]) -> None:
        """Compile for the first problem, and on the way for those that follow it.

        What fails is left to fail where it is measured.
        """
        calls: list[Callable[[], object]] = []
        for problem in problems:
            for candidate in BY_NAME["cute"].candidates(problem, self._device):
                kernel = _stand_in(problem, candidate), candidate
                if kernel not in self._asked:
                    self._asked.add(kernel)
                    calls.append(functools.partial(self._call, problem, candidate))
            if not calls or len(calls) >= _AT_ONCE:  # the first problem has all, or enough do
                break
        if calls:
            _compile_ahead(calls, self._stop)

    def _call(self, problem: Problem, candidate: Candidate) -> None:
        small = _stand_in(problem, candidate)
        given = make_operands(small, self._where, normal)
        compile_for(small, candidate.kwargs, given.A, given.B, given.C)


def _stand_in(problem: Problem, candidate: Candidate) -> Problem:
    """A small problem whose kernel is the problem's: extents are no part of a kernel."""
    update = "add" if problem.update == "inplace" else problem.update
    k = 64 * max(4, int(candidate.kwargs["split"]))
    return replace(problem, m=512, n=512, k=k, update=update, batch=min(2, problem.batch))


def _compile_ahead(calls: Iterable[Callable[[], object]], stop: Callable[[], bool]) -> None:
    """Make the calls, and compile side by side the kernels that they lack."""
    try:
        from quack.cache import async_compile as quack

        context = get_context("forkserver")
        context.set_forkserver_preload(["quack.cache._pool_preload", __name__])
        processes = ProcessPoolExecutor(  # they start when the first kernel is missing
            _PROCESSES, context, initializer=_begin, initargs=quack._detect_arch_env()
        )
        pool, before = quack.CompilePool(executor=processes), quack._active_pool
        pending: type[BaseException] = quack.CompilePending
    except Exception:  # it cannot be imported, or has changed: measuring will tell
        return
    end = time.monotonic() + _LIMIT_S
    missing: set[str] = set()
    try:
        quack._active_pool = pool
        for call in calls:
            if stop() or time.monotonic() > end:
                break
            missing |= _lacking(call, pending)
        while not stop() and time.monotonic() < end:
            if all(pool.poll(kernel)[0] != "pending" for kernel in missing):
                break
            time.sleep(0.02)
    finally:
        quack._active_pool = before
        running = list((getattr(processes, "_processes", None) or {}).values())
        processes.shutdown(wait=False, cancel_futures=True)
        for process in running:  # Python would wait for what they compile when it ends
            process.kill()


def _lacking(call: Callable[[], object], pending: type[BaseException]) -> set[str]:
    """Make a call; the name of the kernel that it lacked, if it did."""
    try:
        call()
    except pending as kernel:
        return {str(kernel.sha)}  # type: ignore[attr-defined]
    except Exception as problem:
        if context_is_lost(problem):
            raise
    return set()


def _begin(quack_arch: str | None, cute_dsl_arch: str | None) -> None:
    """Prepare a process, which ends with the one that it works for."""
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    from quack.cache.async_compile import _pool_initializer

    _pool_initializer(quack_arch, cute_dsl_arch)


def _end_with_the_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
