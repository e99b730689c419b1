"""Tuning in a process of its own: a candidate that crashes or hangs it does not end the run.

The worker tunes and reports; the supervisor passes reports on, and starts a new worker where
one died or fell silent. The journal tells the new one what was done, and which candidate was
running: it is tried once more, then recorded as failed.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from typing import Any

import torch

from autogemm.device import device_of
from autogemm.tuner import Order, Outcome, Progress, tune

_RESTARTS_WITHOUT_PROGRESS = 4


@dataclass(frozen=True, slots=True)
class Restarted:
    """A worker had to be replaced."""

    reason: str


@dataclass(frozen=True, slots=True)
class Alive:
    """A worker measures something that takes long."""


class TuningFailed(RuntimeError):
    """The tuner cannot go on; the message says why."""


def supervise(
    order: Order,
    device: str,
    report: Callable[[Progress | Restarted], None],
    *,
    silence_s: float = 180.0,
) -> Outcome:
    """Tune ``order`` on ``device`` (a torch device's name) in a worker process.

    A worker that says nothing for ``silence_s`` seconds is killed. KeyboardInterrupt lets the
    worker finish the candidate it measures, and returns. Raises ``TuningFailed``.
    """
    context = get_context("spawn")
    fruitless, first = 0, True
    while True:
        ours, theirs = context.Pipe()
        stop = context.Event()
        # Not a daemon: those may have no processes of their own, which compile kernels.
        # Kernels are compiled ahead once: that may be what a worker died of.
        worker = context.Process(target=_work, args=(order, device, theirs, stop, first))
        first = False
        try:
            _start(worker)
            theirs.close()
            result, heard = _listen(ours, worker, stop, report, silence_s)
            if isinstance(result, Outcome):
                worker.join(10)
                return result
        finally:
            if worker.is_alive():  # Python would wait for it when it ends
                worker.kill()
        if isinstance(result, BaseException):
            raise TuningFailed(str(result)) from result
        if stop.is_set():  # it was asked to end, so nothing takes its place
            raise KeyboardInterrupt
        fruitless = 0 if heard else fruitless + 1
        if fruitless >= _RESTARTS_WITHOUT_PROGRESS:
            raise TuningFailed(f"{fruitless} workers in turn got nowhere; the last one {result}")
        report(Restarted(result))


def _start(worker: Any) -> None:
    """Start a worker whole, and out of reach of the Ctrl-C that a terminal sends to all."""
    waiting: list[int] = []
    handler, mask = None, None
    if threading.current_thread() is threading.main_thread():
        handler = signal.signal(signal.SIGINT, lambda number, _: waiting.append(number))
    if hasattr(signal, "pthread_sigmask"):  # the worker inherits it
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        worker.start()
    finally:
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if handler is not None:
            signal.signal(signal.SIGINT, handler)
    if waiting:
        raise KeyboardInterrupt


def _listen(
    pipe: Connection,
    worker: Any,
    stop: Any,
    report: Callable[[Progress | Restarted], None],
    silence_s: float,
) -> tuple[Outcome | BaseException | str, int]:
    """Pass reports on until the worker ends; return its outcome, error, or how it died."""
    heard = 0
    silent_since = time.monotonic()
    while True:
        try:
            if pipe.poll(0.2):
                message = pipe.recv()
                silent_since = time.monotonic()
                if isinstance(message, Alive):
                    continue
                if isinstance(message, (Outcome, BaseException)):
                    return message, heard
                heard += 1
                report(message)
            elif time.monotonic() - silent_since > silence_s:
                worker.kill()
                worker.join()
                return f"said nothing for {silence_s:.0f} s and was killed", heard
        except (EOFError, ConnectionResetError):
            worker.join()
            return f"died with exit code {worker.exitcode}", heard
        except KeyboardInterrupt:
            if stop.is_set():  # asked twice: do not wait for the running candidate
                worker.kill()
                raise
            stop.set()


def _work(order: Order, device: str, pipe: Connection, stop: Any, ahead: bool) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor decides
    threading.Thread(target=_die_with_the_supervisor, daemon=True).start()
    from autogemm.compile_ahead import CompileAhead
    from autogemm.measure import Workbench

    try:
        where = torch.device(device)
        identity = device_of(where)
        if where.type == "cuda":
            torch.cuda.set_device(where)

        def over() -> bool:
            return stop.is_set() or time.time() > order.deadline

        tick = _Tick(pipe)

        with torch.no_grad():
            outcome = tune(
                order,
                identity,
                lambda problem: Workbench.open(problem, identity, where, tick=tick),
                pipe.send,
                stop.is_set,
                CompileAhead(identity, where, over) if ahead else lambda problems: None,
            )
        pipe.send(outcome)
    except (BrokenPipeError, ConnectionResetError):
        return  # the supervisor is gone, and so is the reason to go on
    except torch.AcceleratorError:
        raise  # the context is lost: die, and be replaced
    except Exception as error:
        if "CUDA error" in str(error):
            raise
        pipe.send(_plain(error))


class _Tick:
    """Says now and then that the worker is alive."""

    _EVERY_S = 5.0

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._last = pipe, time.monotonic()

    def __call__(self) -> None:
        if time.monotonic() - self._last > self._EVERY_S:
            self._last = time.monotonic()
            with suppress(OSError):  # the supervisor is gone, and this process about to
                self._pipe.send(Alive())


def _die_with_the_supervisor() -> None:
    """Leave at once where the supervisor was killed: the next run must not wait for this one."""
    supervisor = parent_process()
    if supervisor is not None:
        supervisor.join()
        os._exit(1)


def _plain(error: Exception) -> RuntimeError:
    """An error that survives the pipe whatever it holds."""
    return RuntimeError(f"{type(error).__name__}: {error}")
