"""Times autogemm beside what a user would pick instead, in turns, and checks everybody's answer.

A peer is used as its documentation has a user use it, its own tuning included. One that cannot
compute a problem says why, and the others go on.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from autogemm.benchmark import plain_addmm
from autogemm.database.lookup import Evidence
from autogemm.device import Device
from autogemm.dispatch import Plan, plan
from autogemm.measure import Workbench, context_is_lost, in_turns, ratio, scalars
from autogemm.operands import Operands
from autogemm.precision import ErrorBound, Tolerance, allowance, growth
from autogemm.problem import Problem
from autogemm.report import geomean, text_table
from autogemm.strategies import Candidate, Run

OURS = "autogemm"
BUDGET_OVER = "the budget was over"
_ROUNDS = 25
_AGAIN = Candidate.of("autogemm again")
"""The second half of the A/A pair."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Another way to a product: ``prepare`` tunes it for operands and returns what runs it."""

    name: str
    prepare: Callable[[Operands, float, float], Run]
    """Called with operands of the problem, α and β; what it raises is why it cannot run."""
    reasons_not: Callable[[Problem, Device], list[str]] = lambda problem, device: []


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How one contestant did on one problem."""

    us: float
    ratio: float
    """Its time over autogemm's, the median of the rounds: above 1 autogemm is faster."""
    error: float
    """R, in units of u·G."""
    outside: str
    """How its answer leaves the level's contract; "" where it keeps it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One problem: who computed it and how fast, and who could not."""

    problem: Problem
    level: str
    mode: str
    choice: Candidate
    """What autogemm runs."""
    standings: dict[str, Standing]
    unable: dict[str, str]
    aa: float
    """autogemm's ratio to itself."""

    @property
    def winner(self) -> str:
        """The fastest of those that keep the contract; of all, where nobody does."""
        kept = {n: s for n, s in self.standings.items() if not s.outside} or self.standings
        return min(kept, key=lambda name: kept[name].us)

    def as_json(self) -> dict[str, object]:
        """The comparison with words for its problem and choice."""
        return {
            "problem": str(self.problem), "factors": list(factors(self.problem)),
            "level": self.level, "mode": self.mode,
            "choice": str(self.choice), "winner": self.winner, "aa": self.aa,
            "standings": {name: asdict(s) for name, s in self.standings.items()},
            "unable": self.unable,
        }  # fmt: skip


class DeviceLost(RuntimeError):
    """The device is of no more use to this process."""


def factors(problem: Problem) -> tuple[float, float]:
    """α and β of a comparison: those of tuning, but α = 1 where there is no C.

    One writes A @ B there; for another α torch and Inductor may pass over the result once more.
    """
    return (1.0, 0.0) if problem.update == "none" else scalars(problem)


def compare(
    problem: Problem, evidence: Evidence, device: Device, where: torch.device,
    peers: Sequence[Peer] | None = None, *, level: str = "highest", deadline: float = math.inf,
) -> Comparison:  # fmt: skip
    """Check and time every peer on a problem: device time by graphs, on a CPU launched calls.

    After ``deadline`` (``time.time()``) no further peer is prepared. Raises what ``autogemm``
    itself cannot do, and ``DeviceLost``.
    """
    begun: list[str] = []
    try:
        return _compare(
            problem, evidence, device, where, PEERS if peers is None else peers, level, deadline,
            begun,
        )  # fmt: skip
    except Exception as problem_met:
        if not context_is_lost(problem_met):
            raise
        raise DeviceLost(
            f"{problem}: the device was lost ({_in_short(problem_met)}), by the time of "
            f"{begun[-1] if begun else 'allocating operands'}."
        ) from problem_met


def _compare(
    problem: Problem, evidence: Evidence, device: Device, where: torch.device,
    peers: Sequence[Peer], level: str, deadline: float, begun: list[str],
) -> Comparison:  # fmt: skip
    """``compare``; ``begun`` tells who has begun, should that be the end of it."""
    chosen = planned(problem, level, device, evidence)
    mode = chosen.mode
    bound = ErrorBound(allowance(level, problem.dtype), growth(problem.dtype, problem.k))
    judged: dict[str, tuple[float, str]] = {}
    unable: dict[str, str] = {}
    timers: dict[Candidate, Callable[[], float]] = {}
    with Workbench.open(problem, device, where, factors=factors(problem)) as bench:
        begun.append(OURS)
        timer = bench.graph if mode == "graph" else bench.eager
        ours = chosen.bind(device)
        judged[OURS] = bench.error(ours, bound)
        timers[Candidate.of(OURS)], timers[_AGAIN] = timer(ours), timer(ours)
        for peer in peers:
            reasons = peer.reasons_not(problem, device)
            if not reasons and time.time() > deadline:
                reasons = [BUDGET_OVER]
            if reasons:
                unable[peer.name] = "; ".join(reasons)
                continue
            begun.append(peer.name)
            try:
                run = peer.prepare(bench.operands[0], *bench.factors)
                judged[peer.name] = bench.error(run, bound)
                timers[Candidate.of(peer.name)] = timer(run)
            except Exception as problem_met:
                if context_is_lost(problem_met):
                    raise
                judged.pop(peer.name, None)
                unable[peer.name] = _in_short(problem_met)
        times = in_turns(timers, _ROUNDS)
    own = times[Candidate.of(OURS)]
    return Comparison(
        problem=problem, level=level, mode=mode, choice=chosen.candidate, unable=unable,
        aa=ratio(own, times[_AGAIN]).median,
        standings={
            name: Standing(
                us=statistics.median(times[Candidate.of(name)]),
                ratio=ratio(times[Candidate.of(name)], own).median, error=error, outside=outside,
            )
            for name, (error, outside) in judged.items()
        },
    )  # fmt: skip


def planned(problem: Problem, level: str, device: Device, evidence: Evidence) -> Plan:
    """What autogemm runs where it is compared."""
    mode = "graph" if device.has_cuda else "eager"
    return plan(problem, Tolerance(level), device, mode, evidence)


def _in_short(problem: BaseException) -> str:
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return f"{type(problem).__name__}: {lines[0] if lines else 'without a word'}"[:160]


# -------------------------------------------------------------------------------- the report


def as_text(comparisons: Sequence[Comparison], peers: Sequence[Peer] | None = None) -> str:
    """A row a problem: µs of each, * for the winner, ! for an answer outside the contract.

    Below it the geometric means of each peer's time over autogemm's, over the problems that it
    could compute, and over those whose answers keep the contract; where it was ahead; and once for
    each reason what it could not compute.
    """
    names = [OURS, *(peer.name for peer in (PEERS if peers is None else peers))]
    rows = [
        (str(c.problem), str(c.choice), *(_cell(c, name) for name in names), f"{c.aa:.3f}")
        for c in comparisons
    ]
    lines = [text_table(("problem", "autogemm runs", *names, "A/A"), rows)]
    lines.append("µs; * the fastest whose answer keeps the level's bound, ! one that leaves it")
    for name in names:
        met = [c for c in comparisons if name in c.standings]
        outside = [c for c in met if c.standings[name].outside]
        if name != OURS and met:
            kept = [c.standings[name].ratio for c in met if not c.standings[name].outside]
            lines.append(
                f"{name}: {geomean(c.standings[name].ratio for c in met):.3f} x autogemm's time, "
                f"the geometric mean of {len(met)} of {len(comparisons)} problems; fastest on "
                f"{sum(c.winner == name for c in met)}"
            )
            if outside and kept:
                lines.append(f"  within the bound: {geomean(kept):.3f} x, of {len(kept)}")
            lines += [
                f"  ahead of autogemm by 1 % or more: {c.problem}: {c.standings[name].ratio:.3f} x "
                "(the median of the rounds)"
                for c in met
                if c.standings[name].ratio <= 0.99 and not c.standings[name].outside
            ]
        lines += [
            f"  outside {c.level!r}: {c.problem}: {c.standings[name].outside}" for c in outside[:3]
        ]
        if len(outside) > 3:
            lines.append(f"  and on {len(outside) - 3} more")
        reasons: dict[str, int] = {}
        for c in comparisons:
            if name in c.unable:
                reasons[c.unable[name]] = reasons.get(c.unable[name], 0) + 1
        lines += [f"{name} could not run {n} of them: {why}" for why, n in reasons.items()]
    return "\n".join(lines)


def _cell(comparison: Comparison, name: str) -> str:
    standing = comparison.standings.get(name)
    if standing is None:
        return "-"
    mark = "!" if standing.outside else "*" if comparison.winner == name else " "
    return f"{standing.us:.1f}{mark}"


# --------------------------------------------------------------------------------- the peers


def _inductor(operands: Operands, alpha: float, beta: float) -> Run:
    """``torch.compile`` of the same line, with max-autotune."""
    torch._dynamo.reset()  # its limit of recompilations counts this function, not this problem
    if operands.C is None:
        plain = torch.compile(
            lambda A, B: A @ B if alpha == 1 else alpha * (A @ B),
            fullgraph=True, dynamic=False, mode=_MAX_AUTOTUNE,
        )  # fmt: skip
        return lambda alpha, A, B, beta, C, out: plain(A, B)
    update = torch.baddbmm if operands.A.ndim == 3 else torch.addmm
    if not operands.in_place:
        added = torch.compile(
            lambda A, B, C: update(C, A, B, beta=beta, alpha=alpha),
            fullgraph=True, dynamic=False, mode=_MAX_AUTOTUNE,
        )  # fmt: skip
        return lambda alpha, A, B, beta, C, out: added(A, B, C)
    written = torch.compile(
        lambda A, B, C: C.copy_(update(C, A, B, beta=beta, alpha=alpha)),
        fullgraph=True, dynamic=False, mode=_MAX_AUTOTUNE,
    )  # fmt: skip

    def run(alpha: Any, A: Any, B: Any, beta: Any, C: Any, out: Any) -> torch.Tensor:
        written(A, B, C)
        return C  # type: ignore[no-any-return]

    return run


_MAX_AUTOTUNE = "max-autotune-no-cudagraphs"


def _tunableop(operands: Operands, alpha: float, beta: float) -> Run:
    """torch's own operators while TunableOp is on; it tunes at the first call."""
    tunable = torch.cuda.tunable

    def run(*call: Any) -> torch.Tensor:
        tunable.enable(True)
        try:
            return plain_addmm(*call)
        finally:
            tunable.enable(False)

    return run


def _no_tunableop(problem: Problem, device: Device) -> list[str]:
    if not device.has_cuda:
        return [f"runs on cuda, not on {device.type}"]
    if "rocm" not in device.features:
        # aten/src/ATen/cuda/tunable/TunableGemm.h registers the others under USE_ROCM.
        return ["on CUDA builds torch gives TunableOp nothing but its own product to choose from"]
    return []


def _nvmath(operands: Operands, alpha: float, beta: float) -> Run:
    """cuBLASLt through nvmath-python, its candidates timed by its own ``autotune``."""
    from nvmath.linalg.advanced import Matmul

    in_place = operands.in_place
    product = Matmul(
        operands.A, operands.B, c=operands.C, alpha=alpha,
        beta=None if operands.C is None else beta, options={"inplace": in_place},
        stream=torch.cuda.current_stream(),
    )  # fmt: skip
    kept = operands.C.clone() if operands.C is not None and in_place else None
    product.plan(stream=torch.cuda.current_stream())
    product.autotune(stream=torch.cuda.current_stream())
    if kept is not None and operands.C is not None:
        operands.C.copy_(kept)  # it was updated over and over

    def run(alpha: Any, A: Any, B: Any, beta: Any, C: Any, out: Any) -> torch.Tensor:
        stream = torch.cuda.current_stream()
        product.reset_operands_unchecked(a=A, b=B, c=C, stream=stream)
        # A workspace kept from another stream would be waited for, which no capture allows.
        return product.execute(release_workspace=True, stream=stream)  # type: ignore[no-any-return]

    return run


def _quack(operands: Operands, alpha: float, beta: float) -> Run:
    """quack's own entry points, which time all their configurations at the first call."""
    from quack.gemm_interface import gemm, gemm_add, gemm_add_inplace

    def run(alpha: Any, A: Any, B: Any, beta: Any, C: Any, out: Any) -> torch.Tensor:
        if C is None:
            return gemm(A, B, alpha=float(alpha))  # type: ignore[no-any-return]
        if not operands.in_place:
            return gemm_add(A, B, C, alpha=float(alpha), beta=float(beta))  # type: ignore[no-any-return]
        gemm_add_inplace(A, B, C, alpha=float(alpha), beta=float(beta))
        return C  # type: ignore[no-any-return]

    return run


def _needs(package: str) -> Callable[[Problem, Device], list[str]]:
    """Reasons of a peer that is a package for GPUs."""

    def reasons(problem: Problem, device: Device) -> list[str]:
        if not device.has_cuda:
            return [f"runs on cuda, not on {device.type}"]
        if not device.has_package(package):
            return [f"needs the package {package!r}, which is not installed"]
        return []

    return reasons


def _no_nvmath(problem: Problem, device: Device) -> list[str]:
    reasons = _needs("nvmath")(problem, device)
    if not reasons and problem.update == "bias":  # it reads memory behind one
        reasons = ["takes no bias for a C: it would read a whole matrix"]
    return reasons


def _no_quack(problem: Problem, device: Device) -> list[str]:
    reasons = _needs("quack")(problem, device)
    if not reasons and not problem.is_half:
        reasons = ["computes 16-bit types"]
    return reasons


def _torch(operands: Operands, alpha: float, beta: float) -> Run:
    """What a user writes: ``torch.addmm``, with torch's settings as they are."""
    return plain_addmm


PEERS: tuple[Peer, ...] = (
    Peer("torch", _torch),
    Peer("inductor", _inductor),
    Peer("tunableop", _tunableop, _no_tunableop),
    Peer("nvmath", _nvmath, _no_nvmath),
    Peer("quack", _quack, _no_quack),
)


def compared(
    problems: Sequence[Problem], evidence: Evidence, device: Device, where: torch.device,
    peers: Sequence[Peer] | None = None, *, deadline: float = math.inf,
    known: Mapping[Problem, Comparison] | None = None,
    left_out: Callable[[Problem, str], None] = lambda problem, why: None,
) -> Iterator[Comparison]:  # fmt: skip
    """``compare`` problem after problem, until the deadline; what is ``known`` is not timed.

    ``left_out`` hears of what autogemm itself cannot compute here, for want of memory say, and
    why. Raises ``DeviceLost``.
    """
    for problem in problems:
        if known and problem in known:
            yield known[problem]
        elif time.time() <= deadline:
            try:
                with torch.no_grad():
                    found = compare(problem, evidence, device, where, peers, deadline=deadline)
            except DeviceLost:
                raise
            except Exception as problem_met:
                left_out(problem, _in_short(problem_met))
            else:
                yield found
