"""Time and error of candidates on one problem: measures and judges, chooses nothing.

Times are medians in microseconds per call. Graph time replays a CUDA graph of many calls
over rotating operands, larger together than twice the L2 cache; eager time launches call by
call and includes the host. What is compared is measured in turns, in one run.
"""

from __future__ import annotations

import functools
import random
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from autogemm.accuracy import Sample, error_norm, sample_references, worst_ratio
from autogemm.database.entries import Measured
from autogemm.device import Device
from autogemm.operands import Operands, make_operands, normal
from autogemm.precision import ErrorBound
from autogemm.problem import Problem
from autogemm.strategies import BY_NAME, Candidate, Run

ALPHA, BETA = 1.5, 0.5
"""Scalars measurements use: neither is a special case of any library."""


def scalars(problem: Problem) -> tuple[float, float]:
    """α and β for measurements of a problem.

    A bias is added as it is: linear layers do, and torch has a faster form for it.
    """
    if problem.update == "bias":
        return 1.0, 1.0
    return ALPHA, 0.0 if problem.update == "none" else BETA

_GRAPH_US = 1500.0
"""Length of one replay, long against the event timer's half microsecond."""
_EAGER_US = 1500.0
_COMPARED_EAGER_US = 6000.0
"""Length of one eager run where candidates are compared: that the first call is on its way
to an idle GPU, and that the host learns of the last one's end, took 0.2 to 0.4 ms on the host of an
H200, which is added to all candidates' runs alike."""
_WARM_UP_US = 2000.0
_MAX_CALLS = 200
_TIMINGS = 5
"""How often a candidate that is not too slow is timed; the median counts."""

EAGER_EQUALS_GRAPH_US = 2000.0
"""Above this time the host runs ahead of the device, and eager calls take graph time."""


@dataclass(slots=True)
class Workbench:
    """Operands of one problem on one device, and timers for candidates on them."""

    problem: Problem
    device: Device
    torch_device: torch.device
    operands: list[Operands] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    tick: Callable[[], None] = lambda: None
    """Called between calls: who measures for long is alive all the same."""
    factors: tuple[float, float] = (1.0, 0.0)
    """α and β of the calls."""

    @classmethod
    @contextmanager
    def open(
        cls, problem: Problem, device: Device, torch_device: torch.device, *, check: bool = True,
        tick: Callable[[], None] = lambda: None, factors: tuple[float, float] | None = None,
    ) -> Iterator[Workbench]:  # fmt: skip
        """Allocate operands; free them on leaving. ``check`` prepares error references too.

        ``factors`` are α and β, where not those of ``scalars``.
        """
        factors = scalars(problem) if factors is None else factors
        bench = cls(problem, device, torch_device, tick=tick, factors=factors)
        seed = (problem.m * 1_000_003 + problem.n) * 1_000_003 + problem.k
        torch.manual_seed(seed % 2**31)
        first = make_operands(problem, torch_device, normal)
        count = 2
        if device.has_cuda:
            # Inputs of successive calls must not be found in the cache.
            count = min(_MAX_CALLS, max(2, -(-2 * device.cache_bytes // max(first.bytes, 1)) + 1))
        bench.operands = [first] + [
            make_operands(problem, torch_device, normal) for _ in range(count - 1)
        ]
        if check:
            bench.samples = sample_references(problem, torch_device, *factors)
        try:
            yield bench
        finally:
            bench.operands.clear()
            bench.samples.clear()
            if device.has_cuda:
                torch.cuda.synchronize()
                torch.cuda.empty_cache()

    # ------------------------------------------------------------------ one candidate

    def bind(self, candidate: Candidate) -> Run:
        """The candidate's function for this problem."""
        strategy = BY_NAME[candidate.strategy]
        return strategy.bind(self.problem, self.device, candidate.kwargs)

    def call(self, run: Run, operands: Operands) -> torch.Tensor:
        """One call as a user makes it."""
        alpha, beta = self.factors
        return run(alpha, operands.A, operands.B, beta, operands.C, operands.out)

    def prepare(self, candidates: Sequence[Candidate]) -> None:
        """Compile the candidates' kernels side by side, rather than each when it is measured."""
        if self.device.has_cuda and self.device.has_package("triton"):
            from autogemm.kernels.launch import compile_ahead

            out = self.operands[0].out
            kept = None if out is None else out.clone()
            compile_ahead(
                functools.partial(self._try, candidate)
                for candidate in candidates
                if "triton" in BY_NAME[candidate.strategy].depends_on
            )
            if out is not None and kept is not None:
                out.copy_(kept)  # torch's part of a call multiplied what no kernel had written

    def _try(self, candidate: Candidate) -> None:
        try:
            self.call(self.bind(candidate), self.operands[0])
        except Exception as problem:  # ``judge`` will say so
            if context_is_lost(problem):
                raise

    def error(self, run: Run, bound: ErrorBound) -> tuple[float, str]:
        """R on random and hostile data, and what it exceeds (``accuracy.worst_ratio``)."""
        return worst_ratio(self.samples, run, self.problem, *self.factors, bound=bound)

    def judge(
        self, candidate: Candidate, bound: ErrorBound, screen: Callable[[float], bool]
    ) -> Measured:
        """Measure one candidate: error first, then time, stopping early if ``screen`` says so.

        ``screen(us)`` is asked after a first rough timing whether to stop. Never raises for
        what the candidate does wrong: the status and note say what happened.
        """
        strategy, workspace = BY_NAME[candidate.strategy], 0
        try:
            workspace = strategy.workspace_bytes(self.problem, candidate.kwargs)
            run = self.bind(candidate)
            error, complaint = self.error(run, bound)
            if complaint:
                return Measured(
                    candidate=candidate, status="inaccurate", error=error,
                    note=complaint,
                    workspace_bytes=workspace,
                )  # fmt: skip
            norm = error_norm(self.samples, run, *self.factors)
            graph = self.graph(run) if self.device.has_cuda else None
            rough = (graph or self.eager(run))()
            slow = screen(rough)
            if slow:
                graph_us, eager_us = (rough, None) if graph else (None, rough)
            else:
                graph_us = statistics.median(graph() for _ in range(_TIMINGS)) if graph else None
                eager_us = self._eager_median(run, graph_us)
            return Measured(
                candidate=candidate, status="slow" if slow else "ok", graph_us=graph_us,
                eager_us=eager_us, error=error, error_norm=norm, workspace_bytes=workspace,
            )  # fmt: skip
        except Exception as problem:  # compilers have kinds of their own, and memory runs out
            if context_is_lost(problem):
                raise
            status = "unsupported" if isinstance(problem, NotImplementedError) else "failed"
            note = without_directories(f"{type(problem).__name__}: {problem}".split("\n")[0])[:200]
            return Measured(
                candidate=candidate, status=status, note=note, workspace_bytes=workspace
            )

    def _eager_median(self, run: Run, graph_us: float | None) -> float | None:
        if graph_us is not None and graph_us > EAGER_EQUALS_GRAPH_US:
            return None
        timer = self.eager(run)
        timer()
        return statistics.median(timer() for _ in range(_TIMINGS))

    def compare(
        self, candidates: Sequence[Candidate], mode: str, rounds: int, *, brief: bool = False
    ) -> dict[Candidate, list[float]]:
        """Time candidates in turns, in µs per call; ``mode`` is ``graph`` or ``eager``.

        ``brief``: in eager runs a quarter as long, to rank them by.
        """
        if brief and mode != "graph":
            timers = {c: self.eager(self.bind(c)) for c in candidates}
        else:
            timers = {c: self.timer(self.bind(c), mode) for c in candidates}
        return in_turns(timers, rounds)

    def timer(self, run: Run, mode: str) -> Callable[[], float]:
        """What times calls where candidates are compared; any ``mode`` but graph is eager."""
        return self.graph(run) if mode == "graph" else self.eager(run, _COMPARED_EAGER_US)

    # ------------------------------------------------------------------------- timers

    def graph(self, run: Run) -> Callable[[], float]:
        """Capture calls into a CUDA graph; the result replays it and returns µs per call."""
        us = self._rough_us(run)
        calls = max(1, min(_MAX_CALLS, round(_GRAPH_US / us)))
        # Every operand set takes its turn, unless one call alone flushes the cache.
        calls = max(calls, len(self.operands) if us < _GRAPH_US else 1)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for i in range(calls):
                self.call(run, self.operands[i % len(self.operands)])
        graph.replay()
        torch.cuda.synchronize()

        def replay() -> float:
            self.tick()
            start = torch.cuda.Event(enable_timing=True)
            end = torch.cuda.Event(enable_timing=True)
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            return float(start.elapsed_time(end)) * 1e3 / calls

        return replay

    def eager(self, run: Run, length: float = _EAGER_US) -> Callable[[], float]:
        """A timer of ``length`` µs of launched calls; it returns µs per call, host included."""
        us = self._rough_us(run)
        calls = max(3, min(_MAX_CALLS, round(length / us)))
        if not self.device.has_cuda:
            calls = max(1, min(_MAX_CALLS, round(length / us)))

        def loop() -> float:
            self.tick()
            self._wait()
            start = time.perf_counter()
            for i in range(calls):
                self.call(run, self.operands[i % len(self.operands)])
            self._wait()
            return (time.perf_counter() - start) * 1e6 / calls

        return loop

    def _rough_us(self, run: Run) -> float:
        """Warm up by time and return a rough µs per call."""
        self.call(run, self.operands[0])
        self._wait()
        done, start = 0, time.perf_counter()
        while True:
            self.tick()
            self.call(run, self.operands[done % len(self.operands)])
            done += 1
            self._wait()
            elapsed = (time.perf_counter() - start) * 1e6
            if elapsed > _WARM_UP_US or done >= 20:
                return max(elapsed / done, 0.1)

    def _wait(self) -> None:
        if self.device.has_cuda:
            torch.cuda.synchronize()


def screening_saved_us(row: Measured) -> float:
    """About how long the timings would have taken that a candidate was spared as ``slow``."""
    us = row.graph_us or row.eager_us
    if row.status != "slow" or us is None:
        return 0.0
    eager = max(_WARM_UP_US, 2 * us) + (1 + _TIMINGS) * max(_EAGER_US, us)
    if row.graph_us is None:
        return eager
    return _TIMINGS * max(_GRAPH_US, us) + (eager if us <= EAGER_EQUALS_GRAPH_US else 0.0)


# ------------------------------------------------------------------------ comparisons


def in_turns(
    timers: Mapping[Candidate, Callable[[], float]], rounds: int, seed: int = 0
) -> dict[Candidate, list[float]]:
    """Run every timer once a round, in an order shuffled anew, for ``rounds`` rounds."""
    order = list(timers)
    shuffle = random.Random(seed)
    times: dict[Candidate, list[float]] = {candidate: [] for candidate in order}
    for _ in range(rounds):
        shuffle.shuffle(order)
        for candidate in order:
            times[candidate].append(timers[candidate]())
    return times


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times faster than the baseline, with a 95 % confidence interval."""

    median: float
    low: float
    high: float


def ratio(baseline: Sequence[float], other: Sequence[float]) -> Ratio:
    """The per-round ratio of two timings taken in turns; the interval is by order statistics."""
    ratios = sorted(b / o for b, o in zip(baseline, other, strict=True))
    n = len(ratios)
    # Ranks of a 95 % interval for the median: n/2 -/+ 1.96*sqrt(n)/2 (normal approximation).
    half = 0.98 * n**0.5
    low = max(0, int(n / 2 - half))
    high = min(n - 1, round(n / 2 + half))
    return Ratio(statistics.median(ratios), ratios[low], ratios[high])


def without_directories(text: str) -> str:
    """A message without the directories of its paths: tables are shared, and say whose they are."""
    return re.sub(r"(?<![\w.])(?:/[^\s/:'\",;]+)+/", "", text)


def context_is_lost(error: BaseException) -> bool:
    """Whether the CUDA context is beyond use, so that only a new process can go on."""
    text = str(error).lower()
    return any(
        word in text
        for word in (
            "illegal memory access", "illegal instruction", "misaligned address",
            "device-side assert", "unspecified launch failure", "launch timed out",
            "uncorrectable", "invalid program counter",
        )
    )  # fmt: skip
