"""Commands that take minutes: what they found is told, and replaces nothing else."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from autogemm.database import Entry
from autogemm.measure import context_is_lost

T = TypeVar("T")


def terminate(number: int, frame: object) -> None:
    """SIGTERM as Ctrl-C: what was timed until then took minutes and is told."""
    raise KeyboardInterrupt(number)


def status_of(interrupt: KeyboardInterrupt) -> int:
    """What a shell gives a command that the signal ended."""
    return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)


def told(command: Callable[[], int]) -> int:
    """Run a script's command; its exit status, also where Ctrl-C or a closed pipe ended it."""
    try:
        code = command()
        sys.stdout.flush()
        return code
    except KeyboardInterrupt as interrupt:
        print("stopped", file=sys.stderr)
        return status_of(interrupt)
    except BrokenPipeError:  # whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def collected(
    step: Callable[[Entry], Iterable[T]], entries: Iterable[Entry], budget: float | None
) -> tuple[list[T], int]:
    """What ``step`` finds for each entry, until the budget, Ctrl-C or a lost device ends it.

    And the exit status: what was timed until then took minutes, and is shown. What cannot be
    timed, for want of memory say, is left out and told.
    """
    found: list[T] = []
    started = time.monotonic()
    try:
        for entry in entries:
            if budget is not None and time.monotonic() - started > budget:
                print("the budget is over; the rest was not timed", file=sys.stderr)
                break
            try:
                found += step(entry)
            except (RuntimeError, MemoryError) as error:  # no memory for its operands, say
                print(f"{entry.problem} was left out: {in_short(error)}", file=sys.stderr)
                if context_is_lost(error):
                    print("the device was lost; the rest was not timed", file=sys.stderr)
                    return found, 1
    except KeyboardInterrupt as interrupt:
        print("stopped; the rest was not timed", file=sys.stderr)
        return found, status_of(interrupt)
    return found, 0


def in_short(problem: BaseException) -> str:
    """An error's kind and its first line."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return f"{type(problem).__name__}: {lines[0] if lines else 'without a word'}"[:160]


def may_be_replaced(path: Path) -> bool:
    """Whether nothing is in a file but what an earlier run wrote; raises ``OSError``."""
    if not path.is_file() or not (text := path.read_text(errors="replace")).strip():
        return True
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(facts, dict) and "results" in facts and "ceilings" in facts
