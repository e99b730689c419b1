"""Puts every strategy that can run here to every trial, and keeps score.

A strategy is held to the bound it declares, ``gemm`` itself to the level it is asked for. The
oracle judges each element of each result, so that a breach names the element.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch

from autogemm import api
from autogemm.device import Device, device_of
from autogemm.grading.known_faults import errors_cancel, known_fault
from autogemm.grading.oracle import Truth, has_oracle
from autogemm.grading.trials import EXTENTS, Extent, Trial, laid_out, trials
from autogemm.measure import context_is_lost
from autogemm.precision import (
    LEVELS,
    ErrorBound,
    Tolerance,
    accumulation_roundoff,
    allowance,
    growth,
)
from autogemm.problem import DTYPE_NAMES, DTYPES, Problem, contiguous_problem, problem_of
from autogemm.strategies import STRATEGIES, Candidate, Run, Strategy
from autogemm.workloads import levels_of

NETLIB_THRESHOLD = 16.0
"""What the ratio of Netlib's test must stay below (``sblat3.in``)."""

GEMM = "gemm"
"""The name under which the call itself is graded, corners and choices of the tables included."""

_BATCH = 2
_SPACES = ((17, 33, 1000), (256, 256, 4096), (3, 2, 5))
"""(m, n, k) whose search spaces are pooled: some parameters are offered for long sums only."""


@dataclass(frozen=True, slots=True)
class Breach:
    """One result that broke its bound; ``known`` says what of torch's own faults it inherits."""

    candidate: Candidate
    dtype: torch.dtype
    trial: str
    complaint: str
    known: str = ""

    def __str__(self) -> str:
        return f"{self.candidate} on {DTYPE_NAMES[self.dtype]}: {self.trial}: {self.complaint}"


@dataclass(frozen=True, slots=True)
class Worst:
    """The result that came nearest to its bound (or went farthest beyond it)."""

    error: float = 0.0
    """R, in units of u·G."""
    bound: float = math.inf
    where: str = ""

    @property
    def share(self) -> float:
        """R as a fraction of the bound."""
        return self.error / self.bound


@dataclass(slots=True)
class Score:
    """What came of one strategy (or ``gemm``) for one type at one level."""

    strategy: str
    dtype: torch.dtype
    level: str
    results: int = 0
    candidates: set[Candidate] = field(default_factory=set)
    families: dict[str, Worst] = field(default_factory=dict)
    netlib: float = 0.0
    """The largest ratio of Netlib's test."""
    growth: dict[int, float] = field(default_factory=dict)
    """k → the largest R on random data."""
    breaches: list[Breach] = field(default_factory=list)
    known: list[Breach] = field(default_factory=list)

    @property
    def worst(self) -> Worst:
        """Over all families."""
        return max(self.families.values(), key=lambda worst: worst.share, default=Worst())

    @property
    def slope(self) -> float | None:
        """b of R ~ k^b, fitted to ``growth``; at most 1 for grade A, about 0.5 if errors cancel."""
        points = [(math.log(k), math.log(R)) for k, R in self.growth.items() if 0 < R < math.inf]
        if len(points) < 3:
            return None
        x, y = (sum(values) / len(points) for values in zip(*points, strict=True))
        spread = sum((p - x) ** 2 for p, _ in points)
        slope: float = sum((p - x) * (q - y) for p, q in points) / spread
        return slope


@dataclass(frozen=True, slots=True)
class Grades:
    """The outcome of a grading."""

    device: Device
    extent: str
    scores: tuple[Score, ...]
    seconds: float
    unfinished: bool = False

    @property
    def breaches(self) -> list[Breach]:
        """All that torch's own faults do not explain."""
        return [breach for score in self.scores for breach in score.breaches]

    @property
    def known(self) -> list[Breach]:
        """Those that torch's own faults explain."""
        return [breach for score in self.scores for breach in score.known]


def grade(
    where: torch.device,
    extent: str = "quick",
    *,
    strategies: Sequence[Strategy] = STRATEGIES,
    dtypes: Iterable[torch.dtype] = tuple(DTYPES.values()),
    deadline: float = math.inf,
    report: Callable[[str], None] = lambda step: None,
    share: int = 0,
    shares: int = 1,
) -> Grades:
    """Grade ``strategies``, and ``gemm`` itself, on a torch device.

    ``extent`` is a key of ``EXTENTS``; nothing is begun after ``deadline`` (``time.time()``). Types
    that numpy here has no wider arithmetic for are left out. ``share`` of ``shares`` is graded.
    """
    started, device = time.time(), device_of(where)
    scores: dict[tuple[str, torch.dtype, str], Score] = {}
    for dtype in filter(has_oracle, dtypes):
        subjects = _subjects(strategies, dtype, device, EXTENTS[extent])
        # Processes side by side begin with different ones: none compiles what another does.
        first = len(subjects) * share // shares
        subjects = subjects[first:] + subjects[:first]
        for trial in trials(dtype, EXTENTS[extent], share=share, shares=shares):
            if time.time() > deadline:
                break
            report(f"{DTYPE_NAMES[dtype]} {trial.family} {trial.name}")
            truth = Truth(trial.alpha, trial.A, trial.B, trial.beta, trial.C)
            placed = {
                batched: _placed(trial, where, batched)
                for batched in {subject.batched for subject in subjects}
            }
            for subject in subjects:
                if trial.family == "netlib" and not subject.is_at_turn(trial.turn):
                    continue
                attempt = placed[subject.batched]
                held = subject.held_to(attempt.problem, device, trial)
                if held is not None:
                    key = (subject.strategy_name, dtype, held.level)
                    score = scores.setdefault(key, Score(*key))
                    _judge(score, subject, held, attempt, truth, trial)
    unfinished = time.time() > deadline
    return Grades(device, extent, ranked(scores.values()), time.time() - started, unfinished)


def ranked(scores: Iterable[Score]) -> tuple[Score, ...]:
    """As strategies are listed; a strategy's types in their order, then its levels."""
    order, types = {strategy.name: strategy.rank for strategy in STRATEGIES}, list(DTYPE_NAMES)

    def place(score: Score) -> tuple[int, str, int, int]:
        rank = order.get(score.strategy, len(order))
        return rank, score.strategy, LEVELS.index(score.level), types.index(score.dtype)

    return tuple(sorted(scores, key=place))


@dataclass(frozen=True, slots=True)
class _Held:
    """What a subject is held to on one problem, and what computes it."""

    level: str
    limit: Tolerance | ErrorBound
    bound: float
    run: Callable[[], Run]


@dataclass(frozen=True, slots=True)
class _Subject:
    """A strategy with parameters, or ``gemm`` (no strategy) at a level."""

    candidate: Candidate
    strategy: Strategy | None
    batched: bool
    asked: str = ""
    place: int = 0
    of: int = 1
    """Which of how many parameter sets of its strategy it is."""

    @property
    def strategy_name(self) -> str:
        return self.candidate.strategy

    def is_at_turn(self, turn: int) -> bool:
        """Whether this one of a strategy's parameter sets is tried: they share the long sweep."""
        return turn % self.of == self.place

    def held_to(self, problem: Problem, device: Device, trial: Trial) -> _Held | None:
        """None where it has nothing to compute, or no level admits what it would."""
        k, dtype = problem.k, problem.dtype
        if self.strategy is None:
            bound = ErrorBound(allowance(self.asked, dtype), growth(dtype, k))
            return _Held(self.asked, Tolerance(self.asked), bound.total, lambda: _gemm(self.asked))
        params = self.candidate.kwargs
        empty = min(problem.m, problem.n, k) == 0 or trial.alpha == 0
        if empty or self.strategy.reasons_not(problem, device, params):
            return None  # gemm's own corners, or the strategy's
        bound = self.strategy.bound(problem, params)
        level = next((x for x in LEVELS if Tolerance(x).admits(bound, dtype, k)), None)
        if level is None:
            return None
        bind = self.strategy.bind
        return _Held(level, bound, bound.total, lambda: bind(problem, device, params))


def _gemm(level: str) -> Run:
    return lambda alpha, A, B, beta, C, out: api.gemm(
        alpha, A, B, beta, C, precision=level, out=out
    )


def _subjects(
    strategies: Sequence[Strategy], dtype: torch.dtype, device: Device, extent: Extent
) -> list[_Subject]:
    subjects = []
    for strategy in strategies:
        candidates = _sampled(_candidates(strategy, dtype, device), extent.parameter_sets)
        for batched in (False, True):
            if strategy.batched if batched else strategy.single:
                subjects += [
                    _Subject(c, strategy, batched, place=i, of=len(candidates))
                    for i, c in enumerate(candidates)
                ]
    for level in levels_of(Problem(m=1, n=1, k=1, dtype=dtype, device_type=device.type)):
        subjects.append(_Subject(Candidate.of(GEMM, precision=level), None, False, level))
    return subjects


def _candidates(strategy: Strategy, dtype: torch.dtype, device: Device) -> list[Candidate]:
    """All that a strategy offers for a few sizes and layouts, legal here or on other sizes."""
    found: dict[Candidate, None] = {}
    for m, n, k in _SPACES:
        for batch in (1, _BATCH):
            problem = contiguous_problem(m, n, k, dtype, device_type=device.type, batch=batch)
            found.update(dict.fromkeys(strategy.candidates(problem, device)))
    return list(found)


def _sampled(candidates: list[Candidate], limit: int) -> list[Candidate]:
    """At most ``limit`` of them, every value of every parameter among them as far as that goes."""
    if len(candidates) <= limit:
        return candidates
    shuffled = random.Random(0).sample(candidates, len(candidates))
    seen: set[tuple[str, object]] = set()
    new: list[Candidate] = []
    rest: list[Candidate] = []
    for candidate in shuffled:
        (new if not seen.issuperset(candidate.params) else rest).append(candidate)
        seen.update(candidate.params)
    return (new + rest)[:limit]


# ----------------------------------------------------------------------------- one attempt


@dataclass(frozen=True, slots=True)
class _Placed:
    """A trial's operands on the device; a batch holds the product and its rows reversed."""

    problem: Problem
    A: torch.Tensor
    B: torch.Tensor
    C: torch.Tensor | None
    out: str

    def compute(self, run: Run, trial: Trial) -> list[torch.Tensor]:
        """The results, as the trial's own truth judges them."""
        C = self.C
        out: torch.Tensor | None = None
        if C is not None and self.out == "inplace":
            C = out = C.clone()  # it serves other strategies too
        elif self.out not in ("new", "inplace"):
            shape = (*self.A.shape[:-1], self.B.shape[-1])
            out = laid_out(self.A.new_full(shape, torch.nan), self.out)
        result = run(trial.alpha, self.A, self.B, trial.beta, C, out)
        return [result] if self.A.ndim == 2 else [result[0], result[1].flip(0)]


def _placed(trial: Trial, where: torch.device, batched: bool) -> _Placed:
    def place(x: torch.Tensor, layout: str, *, reverse: bool) -> torch.Tensor:
        if batched:
            x = torch.stack([x, x.flip(0) if reverse else x])
        return laid_out(x.to(where), layout)

    A, B = place(trial.A, trial.a, reverse=True), place(trial.B, trial.b, reverse=False)
    C = None if trial.beta == 0 else place(trial.C, "row", reverse=True)
    empty = 0 in (*A.shape, *B.shape)
    # What the result looks like decides what a strategy is bound to.
    out = C
    if C is None or trial.out != "inplace":
        out = None
        if trial.out not in ("new", "inplace"):
            out = laid_out(A.new_empty((*A.shape[:-1], B.shape[-1])), trial.out)
    (m, k), n = trial.A.shape, trial.B.shape[1]
    problem = (
        Problem(m=m, n=n, k=k, dtype=A.dtype, device_type=where.type)
        if empty
        else problem_of(A, B, C, out, trial.beta == 0)
    )
    return _Placed(problem, A, B, C, trial.out)


def _judge(
    score: Score, subject: _Subject, held: _Held, placed: _Placed, truth: Truth, trial: Trial
) -> None:
    score.candidates.add(subject.candidate)
    try:
        results = [x.cpu() for x in placed.compute(held.run(), trial)]
    except Exception as problem:  # whatever a strategy raises is its breach, not the grader's end
        if context_is_lost(problem):  # whatever comes next would fail as well
            raise RuntimeError(f"{subject.candidate} in the {trial}: {problem}") from problem
        what = f"raised {type(problem).__name__}: {problem}".split("\n")[0]
        score.breaches.append(Breach(subject.candidate, truth.dtype, str(trial), what))
        return
    eps = float(torch.finfo(truth.dtype).eps)
    if truth.dtype is torch.float32 and held.level != "highest":
        eps = allowance(held.level, truth.dtype) * accumulation_roundoff(truth.dtype)
    typical = trial.typical and errors_cancel(
        truth.dtype, placed.problem.device_type, trial.name
    )
    for result in results:
        score.results += 1
        complaint = truth.complaint(result, held.limit, typical)
        if trial.family == "netlib":
            ratio = truth.netlib_ratio(result, eps)
            score.netlib = max(score.netlib, ratio)
            if not ratio < NETLIB_THRESHOLD and not complaint:
                complaint = f"Netlib's test ratio is {ratio:.4g}, expected below 16"
        if complaint:
            runs = subject.strategy_name
            if subject.strategy is None:
                runs = api.explain(
                    trial.alpha, placed.A, placed.B, trial.beta, placed.C, precision=held.level
                ).strategy
            known = known_fault(
                runs, truth.dtype, placed.problem.device_type, trial.name, trial.alpha
            )
            breach = Breach(subject.candidate, truth.dtype, str(trial), complaint, known or "")
            (score.known if known else score.breaches).append(breach)
            if known:
                continue  # its R says nothing about the strategy
        error = truth.error_ratio(result)
        worst = Worst(error, held.bound, f"{subject.candidate} in the {trial}")
        if worst.share >= score.families.get(trial.family, Worst()).share:
            score.families[trial.family] = worst
        if trial.family == "growth" and trial.typical:
            score.growth[truth.k] = max(error, score.growth.get(truth.k, 0.0))
