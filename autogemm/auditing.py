"""``audit``: real calls, drawn at random, checked against float64 while a program runs.

While no audit is on, calls do not know of it: an audit has every call bound anew, around what
runs, and again without itself when it ends. On a GPU a check is work on the caller's stream
and its outcome is read once an event says that it is there; nothing waits.
"""

from __future__ import annotations

import math
import random
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from autogemm import api, dispatch, precision
from autogemm.accuracy import ratios
from autogemm.dispatch import Plan
from autogemm.errors import AutogemmError, InvalidProblem
from autogemm.problem import Problem
from autogemm.report import text_table
from autogemm.strategies import BY_NAME, Candidate, Run

_MOST_OF_B = 2**22
"""Elements of B that a check reads; of more, evenly spread columns are drawn."""
_MOST_PENDING = 256
"""Checks that a GPU may have before it; while there are more, calls are not sampled."""


@dataclass(slots=True)
class Tally:
    """What an audit knows of one candidate on one problem."""

    problem: Problem
    candidate: Candidate
    allowed: float
    """The largest R it may have: its declared bound, in units of u·G."""
    calls: int = 0
    sampled: int = 0
    """Calls that were checked."""
    error: float = 0.0
    """The largest R seen."""
    demoted: bool = False

    @property
    def broke(self) -> bool:
        """Whether a result broke the bound."""
        return not self.error <= self.allowed

    @property
    def reason(self) -> str:
        """What speaks against the candidate, for ``explain``."""
        return f"failed an audit: R = {self.error:.4g} exceeds {self.allowed:.4g}, its bound"


class Audit:
    """A running or finished audit; prints as a report. Made by ``audit``."""

    def __init__(self, fraction: float, rows: int, seed: int) -> None:
        if not 0 < fraction <= 1:
            raise InvalidProblem(f"fraction is {fraction!r}; expected a number above 0, at most 1.")
        if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
            raise InvalidProblem(f"rows is {rows!r}; expected a positive integer.")
        self._fraction, self._rows = fraction, rows
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._on = False
        self._tallies: dict[tuple[Problem, Candidate], Tally] = {}
        self._mailbox = Mailbox(_MOST_PENDING)

    def start(self) -> Audit:
        """Have calls audited from now on, in all threads. Raises ``AutogemmError`` if some are."""
        with _switching:
            if api._audit is not None:
                raise AutogemmError("an audit is on already; expected none. Stop that one first.")
            self._on = True
            api.bind_anew(self._wrapped)
        return self

    def stop(self) -> Audit:
        """Audit no more; waits for the checks that a GPU has still before it."""
        with _switching:
            if self._on:
                self._on = False
                api.bind_anew(None)
        self._collect(wait=True)
        return self

    def __enter__(self) -> Audit:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def tallies(self) -> tuple[Tally, ...]:
        """Per problem and candidate, as far as outcomes are known now."""
        self._collect(wait=False)
        return tuple(self._tallies.values())

    @property
    def breaches(self) -> tuple[Tally, ...]:
        """Those whose results broke their bound."""
        return tuple(tally for tally in self.tallies if tally.broke)

    def __str__(self) -> str:
        by_strategy: dict[str, list[Tally]] = {}
        for tally in self.tallies:
            by_strategy.setdefault(tally.candidate.strategy, []).append(tally)
        rows = []
        for strategy, tallies in by_strategy.items():
            worst = max(tallies, key=lambda t: t.error / t.allowed)
            rows.append(
                (
                    strategy, str(sum(t.calls for t in tallies)),
                    str(sum(t.sampled for t in tallies)), f"{worst.error:.3g}",
                    f"{worst.allowed:.4g}",
                )
            )  # fmt: skip
        lines = [text_table(("strategy", "calls", "sampled", "R", "bound"), rows)]
        for tally in self.breaches:
            fate = "demoted" if tally.demoted else "kept: it is the baseline"
            lines.append(f"{tally.candidate} on {tally.problem} {tally.reason}; {fate}")
        return "\n".join(lines)

    # ------------------------------------------------------------------ one bound call

    def _wrapped(self, run: Run, plan: Plan) -> Run:
        """``run`` under audit; itself where it is being captured, for a replay has no host."""
        if plan.mode == "graph":
            return run
        key = (plan.problem, plan.candidate)
        with self._lock:
            tally = self._tallies.get(key)
            if tally is None:
                tally = self._tallies[key] = Tally(*key, allowed=_allowed(*key))

        def audited(
            alpha: complex | float,
            A: torch.Tensor,
            B: torch.Tensor,
            beta: complex | float,
            C: torch.Tensor | None,
            out: torch.Tensor | None,
        ) -> torch.Tensor:
            if not self._draws(tally):
                return run(alpha, A, B, beta, C, out)
            check: _Check | None = None
            try:
                with torch.no_grad():
                    check = self._check(A, B, C)
            except RuntimeError:  # no memory for it; the call itself comes first
                pass
            result = run(alpha, A, B, beta, C, out)
            if check is not None:
                try:
                    with torch.no_grad():
                        self._judge(tally, check.worst(alpha, beta, result))
                except RuntimeError:
                    pass
            return result

        return audited

    def _draws(self, tally: Tally) -> bool:
        if not self._on:  # bound while the audit ended
            return False
        with self._lock:
            tally.calls += 1
            drawn = self._random.random() < self._fraction
        self._collect(wait=False)
        return drawn and not self._mailbox.full

    def _check(self, A: torch.Tensor, B: torch.Tensor, C: torch.Tensor | None) -> _Check:
        """Choose what is checked and keep what the call may overwrite.

        By integers and slices alone: an index that is a tensor would have to reach the GPU.
        """
        with self._lock:
            matrix = self._random.randrange(A.shape[0]) if A.ndim == 3 else None
            (m, k), n = A.shape[-2:], B.shape[-1]
            rows = self._random.sample(range(m), min(self._rows, m))
            step = min(n, -(-k * n // _MOST_OF_B))
            columns = slice(self._random.randrange(step), None, step)
        if matrix is not None:
            A, B, C = A[matrix], B[matrix], None if C is None else C[matrix]
        kept = None if C is None else torch.stack([C[i] for i in rows])[:, columns]
        return _Check(
            torch.stack([A[i] for i in rows]), B[:, columns], kept, matrix, rows, columns
        )

    def _judge(self, tally: Tally, worst: torch.Tensor) -> None:
        if worst.is_cuda:
            with self._lock:
                self._mailbox.post(worst, tally)
        else:
            self._note(tally, float(worst))

    def _collect(self, *, wait: bool) -> None:
        with self._lock:
            arrived = self._mailbox.collect(wait=wait)
        for tally, worst in arrived:
            self._note(tally, worst)

    def _note(self, tally: Tally, worst: float) -> None:
        with self._lock:
            tally.sampled += 1
            tally.error = max(tally.error, worst)
            fails = tally.broke and not tally.demoted
            if fails:
                tally.demoted = dispatch.demote(tally.problem, tally.candidate, tally.reason)
        if fails and tally.demoted:
            with _switching:
                api.bind_anew(self._wrapped if self._on else api._audit)


_switching = threading.Lock()


def audit(fraction: float = 0.01, rows: int = 4, seed: int = 0) -> Audit:
    """Check real calls of ``gemm`` against float64 while a program runs.

    Of a ``fraction`` of all calls, drawn at random, ``rows`` random rows are computed again in
    float64 and held to the bound that the strategy declared. A strategy that breaks it is
    reported and serves that problem no more in this process; results are never changed. Use it
    as a context, or ``start`` and ``stop`` it::

        with autogemm.audit(fraction=0.05) as report:
            ...
        print(report)

    Not audited: calls that a CUDA graph captures, elements that are not finite or whose sums may
    overflow. float64 and complex128 are checked in their own precision, within twice the growth.
    Raises ``InvalidProblem`` for a fraction outside (0, 1] or rows below 1.
    """
    return Audit(fraction, rows, seed)


def _allowed(problem: Problem, candidate: Candidate) -> float:
    bound = BY_NAME[candidate.strategy].bound(problem, candidate.kwargs)
    exact = problem.dtype not in (torch.float64, torch.complex128)
    return bound.total + (0.0 if exact else precision.growth(problem.dtype, problem.k))


class _Check(NamedTuple):
    """The rows of A and C, the columns of B, and where they are of the result."""

    A: torch.Tensor
    B: torch.Tensor
    C: torch.Tensor | None
    matrix: int | None
    rows: list[int]
    columns: slice

    def worst(
        self, alpha: complex | float, beta: complex | float, result: torch.Tensor
    ) -> torch.Tensor:
        """The largest R, on the device; inf for NaN or inf where a number is due."""
        dtype, k = self.A.dtype, self.A.shape[1]
        wide = torch.complex128 if dtype.is_complex else torch.float64
        a, b = self.A.to(wide), self.B.to(wide)
        reference, moduli = alpha * (a @ b), a.abs() @ b.abs()
        scale, most = abs(alpha) * moduli, max(1.0, abs(alpha)) * moduli
        if self.C is not None:
            c = self.C.to(wide)
            reference += beta * c
            scale += abs(beta) * c.abs()
            most += abs(beta) * c.abs()
        if self.matrix is not None:
            result = result[self.matrix]
        values = torch.stack([result[i] for i in self.rows])[:, self.columns]
        found = ratios(values, reference, scale, dtype, k, alpha)
        half = dtype in (torch.float16, torch.bfloat16)
        largest = torch.finfo(torch.float32 if half else dtype).max
        found = found.masked_fill(~(most < largest / 2), 0.0)  # NaN compares as false
        return torch.where(found.isnan(), math.inf, found).amax()


class Mailbox:
    """Outcomes on their way from a GPU to pinned memory, each with an event that tells of it."""

    def __init__(
        self, size: int, send: Callable[[torch.Tensor, torch.Tensor], Any] | None = None
    ) -> None:
        self._size = size
        self._send = send or _send
        self._slots: torch.Tensor | None = None
        self._free = list(range(size))
        self._waiting: deque[tuple[int, Any, Tally]] = deque()

    @property
    def full(self) -> bool:
        """Whether no more can be taken for now."""
        return not self._free

    def post(self, worst: torch.Tensor, tally: Tally) -> None:
        """Send a number on its way; the caller does not wait."""
        if not self._free:
            return
        if self._slots is None:
            self._slots = torch.zeros(
                self._size, dtype=torch.float64, pin_memory=torch.cuda.is_available()
            )
        slot = self._free.pop()
        self._waiting.append((slot, self._send(worst, self._slots[slot]), tally))

    def collect(self, *, wait: bool) -> list[tuple[Tally, float]]:
        """What has arrived, in order; with ``wait``, all of it."""
        arrived = []
        while self._waiting:
            slot, event, tally = self._waiting[0]
            if wait:
                event.synchronize()
            elif not event.query():
                break
            self._waiting.popleft()
            self._free.append(slot)
            assert self._slots is not None
            arrived.append((tally, float(self._slots[slot])))
        return arrived


def _send(worst: torch.Tensor, slot: torch.Tensor) -> torch.cuda.Event:
    slot.copy_(worst, non_blocking=True)
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(worst.device))
    return event
