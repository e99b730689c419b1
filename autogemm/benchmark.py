"""Re-times what the tables choose against ``torch.addmm``, and scores predictions.

Everything is measured in turns within one run, beside an A/A pair (the baseline against
itself) that shows how much of a difference is noise.
"""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from autogemm import api
from autogemm.database import Entry
from autogemm.database.lookup import SWITCH_MARGIN, may_lose_elsewhere
from autogemm.database.prediction import NEAR, Model, admits, device_us
from autogemm.device import Device
from autogemm.measure import Workbench, in_turns, ratio
from autogemm.precision import Tolerance, fp32_compute
from autogemm.problem import DTYPE_NAMES, Problem
from autogemm.report import geomean
from autogemm.strategies import BY_NAME, Candidate, Run, baseline, reasons_not
from autogemm.strategies.addmm import torchs_own

_ROUNDS = 25
_AGAIN = Candidate.of("baseline again")
"""The second half of the A/A pair."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One problem at one level in one mode, re-timed. Times in µs, rates per second."""

    problem: Problem
    level: str
    mode: str
    candidate: Candidate
    us: float
    baseline_us: float
    ratio: float
    low: float
    high: float
    aa: float
    """The baseline's ratio to itself."""
    tflops: float
    gbytes: float
    """GB/s of the traffic that cannot be avoided."""
    roofline: float | None
    """Fraction of the time the device's measured ceilings allow; None without ceilings."""
    error: float | None

    def as_json(self) -> dict[str, object]:
        """The result with words for its problem and candidate."""
        facts = asdict(self)
        facts["problem"] = {
            "m": self.problem.m, "n": self.problem.n, "k": self.problem.k,
            "dtype": DTYPE_NAMES[self.problem.dtype], "a": self.problem.a, "b": self.problem.b,
            "out": self.problem.out, "update": self.problem.update, "batch": self.problem.batch,
        }  # fmt: skip
        facts["candidate"] = str(self.candidate)
        return facts


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What this device reaches: FLOP/s by dtype name, and bytes/s of a large copy."""

    flops: dict[str, float]
    bytes: float

    def seconds(self, problem: Problem) -> float:
        """The least time a problem can take."""
        flops = self.flops.get(DTYPE_NAMES[problem.dtype])
        compute = problem.flops / flops if flops else 0.0
        return max(compute, problem.min_bytes / self.bytes)


def measure_ceilings(device: Device, where: torch.device) -> Ceilings:
    """Time large square products and a large copy; the best rates seen are the ceilings.

    float32's ceiling is IEEE float32's own: TF32 and 16-bit passes can exceed it.
    """
    size = 8192 if device.has_cuda else 1024
    flops = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        x, y = (torch.randn(size, size, device=where).to(dtype) for _ in range(2))
        run = BY_NAME["addmm"].bind(
            Problem(m=size, n=size, k=size, dtype=dtype, update="none", device_type=where.type),
            device,
            {"reduction": "full"},
        )
        seconds = _best_seconds(functools.partial(run, 1.0, x, y, 0.0, None, None), where)
        flops[DTYPE_NAMES[dtype]] = 2.0 * size**3 / seconds
    block = torch.empty((2**30 if device.has_cuda else 2**27), dtype=torch.uint8, device=where)
    target = torch.empty_like(block)
    seconds = _best_seconds(lambda: target.copy_(block), where)
    return Ceilings(flops, 2.0 * block.numel() / seconds)


def _best_seconds(call: Callable[[], object], where: torch.device) -> float:
    def wait() -> None:
        if where.type == "cuda":
            torch.cuda.synchronize()

    call()
    times = []
    for _ in range(7):
        wait()
        start = time.perf_counter()
        call()
        wait()
        times.append(time.perf_counter() - start)
    return min(times)


def retime(
    entry: Entry, device: Device, where: torch.device, ceilings: Ceilings | None, *,
    level: str | None = None, mode: str | None = None,
) -> Iterator[Result]:  # fmt: skip
    """Re-time every level of an entry against its baseline, in each mode the device has.

    ``graph`` and ``eager`` compare what the table chose between: bound strategies. ``call``
    compares what a user writes, ``autogemm.gemm`` and plain ``torch.addmm``, host included.
    Left out is what ``unable`` names, and what is not of the ``level`` or ``mode`` asked for.
    """
    problem, left_out = entry.problem, unable(entry, device)
    rows = {row.candidate: row for row in entry.measured}
    here = MODES if device.has_cuda else MODES[1:]
    modes = [each for each in here if mode in (None, each)]
    chosen = {each: of for each, of in entry.choices.items() if level in (None, each)}
    with Workbench.open(problem, device, where, check=False) as bench:
        for mode in modes:
            runs: dict[Candidate, Run] = {}
            contests: dict[str, tuple[Candidate, Candidate, Candidate]] = {}
            for level, choices in chosen.items():
                if not choices or level in left_out:
                    continue
                made = choices.get(mode) or list(choices.values())[-1]
                base, choice = baseline(problem, level), made.candidate
                as_called = "eager" if mode == "call" else mode
                if base in rows and may_lose_elsewhere(
                    made, rows.get(choice), rows[base], as_called
                ):
                    choice = base  # what a call runs, too
                name = choice
                if mode == "call":
                    base, name = Candidate.of("torch.addmm"), Candidate.of(f"gemm {level}")
                    runs[base], runs[name] = plain_addmm, _as_user(level)
                else:
                    runs[base], runs[name] = bench.bind(base), bench.bind(name)
                contests[level] = (base, name, choice)
                if mode == "graph" and level == "high" and problem.dtype is torch.float32:
                    runs[_TF32] = _tf32_addmm
                    contests[AGAINST_TF32] = (_TF32, name, choice)
            if not contests:
                continue
            timers = {candidate: bench.timer(run, mode) for candidate, run in runs.items()}
            first = next(iter(contests.values()))[0]
            timers[_AGAIN] = bench.timer(runs[first], mode)
            times = in_turns(timers, _ROUNDS)
            aa = ratio(times[first], times[_AGAIN]).median
            for level, (base, name, choice) in contests.items():
                result = ratio(times[base], times[name])
                us = statistics.median(times[name])
                yield Result(
                    problem=problem, level=level, mode=mode, candidate=choice, us=us,
                    baseline_us=statistics.median(times[base]), ratio=result.median,
                    low=result.low, high=result.high, aa=aa, tflops=problem.flops / us * 1e-6,
                    gbytes=problem.min_bytes / us * 1e-3,
                    roofline=None if ceilings is None else ceilings.seconds(problem) * 1e6 / us,
                    error=None if choice not in rows else rows[choice].error,
                )  # fmt: skip


MODES = ("graph", "eager", "call")
"""In which ways a product is timed; graphs are of GPUs."""


def unable(entry: Entry, device: Device) -> dict[str, str]:
    """The levels of which a choice cannot run here, with the first reason why."""
    found: dict[str, str] = {}
    for level, choices in entry.choices.items():
        for choice in choices.values():
            for reason in reasons_not(choice.candidate, entry.problem, device):
                found.setdefault(level, f"{choice.candidate.strategy} {reason}")
    return found


_TF32 = Candidate.of("torch.addmm in TF32")
AGAINST_TF32 = "high/tf32"
"""The level under which a choice for ``high`` is compared with cuBLAS's own, unguarded TF32."""

_IN_TF32 = fp32_compute("cuda", "tf32")


def _tf32_addmm(*call: Any) -> torch.Tensor:
    with _IN_TF32:
        return plain_addmm(*call)


def plain_addmm(
    alpha: complex | float,
    A: torch.Tensor,
    B: torch.Tensor,
    beta: complex | float,
    C: torch.Tensor | None,
    out: torch.Tensor | None,
) -> torch.Tensor:
    """What a user writes without this library."""
    return (_plain if A.ndim == 2 else _plain_batch)(alpha, A, B, beta, C, out)


_plain = torchs_own(torch.mm, torch.addmm)
_plain_batch = torchs_own(torch.bmm, torch.baddbmm)


def _as_user(level: str) -> Run:
    def run(
        alpha: complex | float,
        A: torch.Tensor,
        B: torch.Tensor,
        beta: complex | float,
        C: torch.Tensor | None,
        out: torch.Tensor | None,
    ) -> torch.Tensor:
        return api.gemm(alpha, A, B, beta, C, precision=level, out=out)

    return run


# --------------------------------------------------------------------------------- regret


@dataclass(frozen=True, slots=True, kw_only=True)
class Regret:
    """What a prediction would have cost on a problem it had not seen."""

    problem: Problem
    level: str
    mode: str
    predicted: Candidate
    best: Candidate
    regret: float
    """Time of the predicted candidate over the best one's: 1 is perfect."""
    speed: float
    """Time of the baseline over the predicted candidate's: below 1 is a loss."""
    source: str


def leave_one_out(entries: Sequence[Entry], device: Device | None = None) -> list[Regret]:
    """Predict every entry's choices from all the others, and look up what they would cost.

    With a ``device``, predictions that could not run there are passed over, as in a call.
    """
    results: list[Regret] = []
    for entry in entries:
        others = Model((other, SWITCH_MARGIN) for other in entries if other is not entry)
        for level, choices in entry.choices.items():
            for mode in choices:
                results += _regret(entry, others, level, mode, device)
    return results


def _regret(
    entry: Entry, others: Model, level: str, mode: str, device: Device | None
) -> Iterator[Regret]:
    problem = entry.problem
    tolerance = Tolerance(level)
    base = baseline(problem, level)
    times: dict[Candidate, float] = {}
    for row in entry.measured:
        us = others.eager_us(row, problem) if mode == "eager" else device_us(row)
        if us is None or row.status not in ("ok", "slow"):
            continue
        if admits(row.candidate, problem, tolerance):
            times[row.candidate] = us
    if base not in times:
        return
    predicted, source = base, "default"
    for prediction in others.predict(problem, tolerance, mode):
        strategy, candidate = BY_NAME[prediction.candidate.strategy], prediction.candidate
        if device is not None:
            candidate = strategy.fitted(candidate, problem, device)
            if strategy.reasons_not(problem, device, candidate.kwargs):
                continue
        stand_in = _measured_kin(candidate, times)
        if stand_in is not None:
            predicted = stand_in
            source = "near" if prediction.distance <= NEAR else "model"
            break
    best = min(times, key=lambda candidate: times[candidate])
    yield Regret(
        problem=problem, level=level, mode=mode, predicted=predicted, best=best,
        regret=times[predicted] / times[best], speed=times[base] / times[predicted],
        source=source,
    )  # fmt: skip


def _measured_kin(candidate: Candidate, times: Mapping[Candidate, float]) -> Candidate | None:
    """The candidate, or the measured one of its kin that shares most parameters with it."""
    if candidate in times:
        return candidate
    kin_of = BY_NAME[candidate.strategy].kin
    kin = kin_of(candidate)
    alike = [c for c in times if c.strategy == candidate.strategy and kin_of(c) == kin]
    return max(alike, key=lambda c: len(set(c.params) & set(candidate.params)), default=None)


def summary(results: Sequence[Result]) -> list[str]:
    """Geometric means by dtype, level and mode, the worst ratio, and the A/A spread."""
    lines = []
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        key = (DTYPE_NAMES[result.problem.dtype], result.level, result.mode)
        groups.setdefault(key, []).append(result)
    for (dtype, level, mode), group in groups.items():
        large = [r.ratio for r in group if r.problem.flops > 1e8]
        above = f" ({geomean(large):.3f} over the {len(large)} above 1e8 flop)" if large else ""
        lines.append(
            f"{dtype:9} {level:9} {mode:6} {len(group):4} problems: geomean "
            f"{geomean(r.ratio for r in group):.3f} x addmm{above}, "
            f"worst {min(r.ratio for r in group):.3f}"
        )
    noise = sorted(abs(r.aa - 1) for r in results)
    tuned = [r for r in results if r.mode != "call" and r.level != AGAINST_TF32]
    losers = [r for r in tuned if r.ratio < 0.98]
    for r in sorted(losers, key=lambda r: r.ratio):
        lines.append(
            f"below 0.98: {r.problem} {r.level} {r.mode} {r.candidate}: {r.ratio:.3f} "
            f"[{r.low:.3f}, {r.high:.3f}], A/A {r.aa:.3f}"
        )
    if noise:
        lines.append(
            f"A/A (the baseline against itself): median {statistics.median(noise):.2%} apart, "
            f"95th percentile {noise[math.ceil(0.95 * (len(noise) - 1))]:.2%}, most {noise[-1]:.2%}"
        )
    return lines
