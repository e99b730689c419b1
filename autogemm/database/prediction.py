"""What measured problems say about one that was not measured.

Device time: every candidate's ratio to the baseline, averaged over the nearest measured
problems. Doubt counts against a candidate: the spread among its neighbours, and the distance
to the nearest. Eager time: the larger of device time and the candidate's host cost, which
hardly depends on the problem and is read off the small ones (on the H200 table the larger of
the two is within 7 % of the measured eager time for every candidate's median).

The constants were chosen by leave-one-out over the committed H200 table, for no left-out
problem slower than the baseline first and least regret second; ``scripts/benchmark.py
--regret`` repeats the score.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from autogemm.database.entries import Entry, Measured
from autogemm.precision import Tolerance
from autogemm.problem import Problem
from autogemm.strategies import BY_NAME, Candidate, baseline

NEAR = 1.0
"""Up to this distance (a factor of two in one dimension) a prediction counts as near."""
REACH = 4.0
"""Beyond this distance a problem says nothing."""
NEIGHBOURS = 5
COVERAGE = 0.6
"""The share of the neighbours' weight that must have measured a candidate."""
DOUBT_PER_SPREAD = 1.0
DOUBT_PER_DISTANCE = 0.17
HOST_DOUBT = 1.7
"""How much dearer a candidate's host cost is taken to be than its median. At 1.35, before, six of
574 left-out eager choices were slower than the baseline, down to 0.65 x; from 1.6 on none is."""
MARGIN = 1.03
"""A predicted win below this is left to the baseline."""
HOST_BOUND = 1.1
"""Eager time over graph time above which a candidate waits for the host."""
HOST_US = 90.0
"""What launching one call takes a slow host, by estimate: 130 µs was measured before launches
came to cost 0.7 of what they did."""
HOST_MARGIN = 1.25
"""What a candidate must win by that waits for the host, as the baseline does: another host may
be slower."""
SLOW_HOST_MARGIN = 2.0
"""The same where the baseline does not: a slower host slows the candidate alone. The hosts of two
H200s took 60 and 130 µs for the same call of ``emulated_fp32``."""
HOST_LEAST = 1.1
"""What the low end of its confidence interval must be, too: how long hosts take scatters. Set after
a choice with 1.38 [1.02, 1.49] took 1.23 times as long as the baseline six days later (H200)."""
UNSTEADY_MARGIN = 1.2
"""What a candidate whose speed depends on the data must win by over one whose does not. On an
H200 GPT-2's gradients took ``emulated_fp32``'s fused form several times as long as normal data."""

# Steps between problems that differ in more than size, in the unit of one doubling.
_STEP_DTYPE = 2.5
_STEP_UPDATE = 2.0
_STEP_ORDER = 0.5
_STEP_ALIGNMENT = 0.7
_STEP_ANY_ALIGNMENT = 3.0
NORM_SLACK = 1.01
"""At ``highest`` a candidate's error norm may exceed the baseline's by this: the noise between
two algorithms of equal accuracy on a few thousand elements."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """A candidate that is expected to beat the baseline, with what to expect."""

    candidate: Candidate
    us: float
    ratio: float
    """Baseline time over its own, before doubt."""
    neighbours: int
    nearest: Problem
    distance: float


def distance(x: Problem, y: Problem) -> float:
    """How far apart two problems are; infinite between types that share no kernels.

    Infinite, too, between a batch and a single product. Euclidean over log₂ of m, n, k and the
    batch, each on its own (so that 1×1×4096 is far from 16×16×16), with fixed steps for another
    layout, alignment, use of C or 16-bit type.
    """
    if x.device_type != y.device_type or (x.batch > 1) != (y.batch > 1):
        return math.inf
    sizes = ((x.m, y.m), (x.n, y.n), (x.k, y.k), (x.batch, y.batch))
    square = sum(math.log2(max(p, 1) / max(q, 1)) ** 2 for p, q in sizes)
    if x.dtype is not y.dtype:
        if not (x.is_half and y.is_half):
            return math.inf
        square += _STEP_DTYPE**2
    if x.update != y.update:
        square += _STEP_UPDATE**2
    pairs = ((x.a, y.a), (x.b, y.b), (x.out, y.out))
    square += _STEP_ORDER**2 * sum(_order(p) != _order(q) for p, q in pairs)
    square += _STEP_ALIGNMENT**2 * sum(_unaligned(p) != _unaligned(q) for p, q in pairs)
    if any(_unaligned(p) for p, _ in pairs) != any(_unaligned(q) for _, q in pairs):
        square += _STEP_ANY_ALIGNMENT**2
    return math.sqrt(square)


def device_us(row: Measured) -> float | None:
    """A row's time on the device: by graph, or eager where there are no graphs (a CPU)."""
    return row.eager_us if row.graph_us is None else row.graph_us


class Model:
    """The measured problems of one device, and what was fitted to them."""

    def __init__(self, entries: Iterable[tuple[Entry, float]]) -> None:
        """``entries`` come with the margin each demands of a win that rests on it."""
        self._entries = [
            (entry, margin, {row.candidate: row for row in entry.measured if _is_timed(row)})
            for entry, margin in entries
        ]
        self._hosts = self._fit_hosts()
        self._quickest = self._fit_quickest()
        self._ceilings = self._fit_ceilings()

    def predict(self, problem: Problem, tolerance: Tolerance, mode: str) -> list[Prediction]:
        """The candidates expected to beat the baseline, best first; may be empty."""
        near = self._neighbours(problem)
        base = baseline(problem, tolerance.level)
        base_logs: list[tuple[float, float]] = []
        ratio_logs: dict[Candidate, list[tuple[float, float, float]]] = defaultdict(list)
        best: dict[Candidate, Candidate] = {}
        for away, entry, _, rows in near:
            weight = 1 / (0.25 + away) ** 2
            base_row = rows.get(baseline(entry.problem, tolerance.level))
            base_us = None if base_row is None else device_us(base_row)
            if base_us is None:
                continue
            work = self._least_us(problem) / self._least_us(entry.problem)
            base_logs.append((weight, math.log(base_us * work)))
            for kin, row in self._best_kin(rows, problem, tolerance).items():
                us = device_us(row)
                assert us is not None
                ratio_logs[kin].append((weight, math.log(base_us / us), away))
                best.setdefault(kin, row.candidate)  # the nearest neighbour's
        if not base_logs:
            return []
        total = sum(weight for weight, _ in base_logs)
        base_us = math.exp(sum(weight * value for weight, value in base_logs) / total)
        margin = max(MARGIN, *(margin for _, _, margin, _ in near))
        scored = []
        for kin, points in ratio_logs.items():
            candidate = best[kin]
            if candidate == base or sum(w for w, _, _ in points) < COVERAGE * total:
                continue
            mean, doubt = _mean_and_doubt(points)
            floor = self._floor_us(candidate, problem)
            us, doubted = (max(base_us / math.exp(log), floor) for log in (mean, mean - doubt))
            before, needed = base_us, margin
            if mode == "eager":
                before = max(base_us, self._host_us(base, problem))
                host = HOST_DOUBT * self._host_us(candidate, problem)
                us, doubted = max(us, host), max(doubted, host)
                waits_too = before > HOST_BOUND * base_us
                needed = max(margin, host_margin(waits_too)) if us == host else margin
            score = before / doubted
            score = sure_gain(candidate, score)
            if score > needed:
                scored.append((score, -BY_NAME[candidate.strategy].rank, candidate, us, before))
        scored.sort(key=lambda item: item[:2], reverse=True)
        return [
            Prediction(
                candidate=candidate,
                us=us,
                ratio=before / us,
                neighbours=len(near),
                nearest=near[0][1].problem,
                distance=near[0][0],
            )
            for _, _, candidate, us, before in scored
        ]

    def _best_kin(
        self, rows: Mapping[Candidate, Measured], problem: Problem, tolerance: Tolerance
    ) -> dict[Candidate, Measured]:
        """The fastest row that may serve a problem out of each family of like candidates.

        Where a strategy has many parameters no two problems are searched at the same points.
        """
        found: dict[Candidate, Measured] = {}
        for candidate, row in rows.items():
            if not admits(candidate, problem, tolerance):
                continue
            if tolerance.budget is None and is_noisier(
                problem, tolerance.level, row, rows.values()
            ):
                continue
            kin = BY_NAME[candidate.strategy].kin(candidate)
            us, rival = device_us(row), found.get(kin)
            rival_us = None if rival is None else device_us(rival)
            if us is not None and (rival_us is None or us < rival_us):
                found[kin] = row
        return found

    def eager_us(self, row: Measured, problem: Problem) -> float | None:
        """A row's eager time: as measured, or what its device time and host cost make it."""
        if row.eager_us is not None or row.graph_us is None:
            return row.eager_us
        return max(row.graph_us, self._host_us(row.candidate, problem))

    def _neighbours(
        self, problem: Problem
    ) -> list[tuple[float, Entry, float, dict[Candidate, Measured]]]:
        found = [
            (away, entry, margin, rows)
            for entry, margin, rows in self._entries
            if (away := distance(problem, entry.problem)) <= REACH
        ]
        return sorted(found, key=lambda item: item[0])[:NEIGHBOURS]

    # ------------------------------------------------------------------------- fitting

    def _fit_hosts(self) -> dict[object, float]:
        """The host cost a launch of each candidate and strategy, from host-bound rows."""
        samples: dict[object, list[float]] = defaultdict(list)
        for entry, _, rows in self._entries:
            for candidate, row in rows.items():
                if row.graph_us is None or row.eager_us is None:
                    continue
                if row.graph_us < 0.5 * row.eager_us:
                    each = row.eager_us / _launches(candidate, entry.problem)
                    for key in _host_keys(candidate, entry.problem.dtype):
                        samples[key].append(each)
        return {key: statistics.median(values) for key, values in samples.items()}

    def _host_us(self, candidate: Candidate, problem: Problem) -> float:
        keys = _host_keys(candidate, problem.dtype)
        each = next((self._hosts[key] for key in keys if key in self._hosts), 0.0)
        return each * _launches(candidate, problem)

    def _fit_quickest(self) -> dict[str, float]:
        """The least device time a launch that was measured of each strategy."""
        found: dict[str, float] = {}
        for entry, _, rows in self._entries:
            for candidate, row in rows.items():
                if (us := device_us(row)) is not None:
                    each = us / _launches(candidate, entry.problem)
                    name = candidate.strategy
                    found[name] = min(each, found.get(name, each))
        return found

    def _floor_us(self, candidate: Candidate, problem: Problem) -> float:
        """What many launches take at least: products do not get quicker for ever."""
        many = _launches(candidate, problem)
        return many * self._quickest.get(candidate.strategy, 0.0) if many > 1 else 0.0

    def _fit_ceilings(self) -> dict[torch.dtype, tuple[float, float]]:
        """The best FLOP/µs and bytes/µs any measured baseline reached, by dtype."""
        best: dict[torch.dtype, tuple[float, float]] = {}
        for entry, _, rows in self._entries:
            problem = entry.problem
            row = rows.get(baseline(problem, "highest"))
            us = None if row is None else device_us(row)
            if us:
                flops, moved = best.get(problem.dtype, (0.0, 0.0))
                best[problem.dtype] = (
                    max(flops, problem.flops / us),
                    max(moved, problem.min_bytes / us),
                )
        return best

    def _least_us(self, problem: Problem) -> float:
        flops, moved = self._ceilings.get(problem.dtype, (1.0, 1.0))
        return max(problem.flops / flops, problem.min_bytes / moved)


def _mean_and_doubt(points: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    total = sum(weight for weight, _, _ in points)
    mean = sum(weight * value for weight, value, _ in points) / total
    spread = math.sqrt(sum(w * (value - mean) ** 2 for w, value, _ in points) / total)
    nearest = min(away for _, _, away in points)
    return mean, DOUBT_PER_SPREAD * spread + DOUBT_PER_DISTANCE * nearest


def admits(candidate: Candidate, problem: Problem, tolerance: Tolerance) -> bool:
    """Whether this version knows the candidate of a row, and its bound keeps the promise."""
    strategy = BY_NAME.get(candidate.strategy)
    return (
        strategy is not None
        and not strategy.wrong_parameters(candidate.kwargs)
        and tolerance.admits(
            strategy.bound(problem, candidate.kwargs), problem.dtype, problem.k
        )
    )


def is_noisier(problem: Problem, level: str, row: Measured, rows: Iterable[Measured]) -> bool:
    """Whether an emulation of float32 is typically less accurate than the baseline at ``highest``.

    Its bound may promise as much and yet leave room that ordinary data do not need. Products in
    float32 itself differ by the order of their sums alone, and are all as good.
    """
    strategy = BY_NAME.get(row.candidate.strategy)
    if strategy is None or not strategy.emulates:
        return False
    if level != "highest" or problem.dtype is not torch.float32 or row.error_norm is None:
        return False
    base = baseline(problem, level)
    norms = [other.error_norm for other in rows if other.candidate == base]
    norm = norms[0] if norms else None
    return norm is not None and row.error_norm > NORM_SLACK * norm


def waits_for_host(row: Measured, base: Measured | None = None) -> bool:
    """Whether an eager call of a row's candidate takes longer on the host than on the device.

    A baseline (its row: ``base``) that does not wait shows by how much eager times exceed
    graph times for another reason, as the start of every measurement. Shorter products than
    ``HOST_US`` are not granted that: their launches may hide behind nothing.
    """
    if row.graph_us is None or row.eager_us is None:
        return False
    usual = 1.0
    if base is not None and base.graph_us and base.eager_us and row.graph_us > HOST_US:
        usual = 1.0 if waits_for_host(base) else max(1.0, base.eager_us / base.graph_us)
    return row.eager_us > HOST_BOUND * usual * row.graph_us


def host_margin(baseline_waits: bool) -> float:
    """What a candidate that waits for the host must win by."""
    return HOST_MARGIN if baseline_waits else SLOW_HOST_MARGIN


def sure_gain(candidate: Candidate, ratio: float) -> float:
    """What a measured gain counts for where it is compared with others."""
    steady = BY_NAME[candidate.strategy].is_steady(candidate.kwargs)
    return ratio if steady else ratio / UNSTEADY_MARGIN


def _is_timed(row: Measured) -> bool:
    return row.status in ("ok", "slow") and device_us(row) is not None


def _host_keys(candidate: Candidate, dtype: torch.dtype) -> tuple[object, ...]:
    return ((candidate, dtype), candidate, candidate.strategy)


def _launches(candidate: Candidate, problem: Problem) -> int:
    strategy = BY_NAME.get(candidate.strategy)  # a table may name what this version lacks
    return 1 if strategy is None else strategy.launches(problem)


def _order(layout: str) -> str:
    return layout.split("-")[0]


def _unaligned(layout: str) -> bool:
    return layout == "strided" or layout.endswith("-unaligned")
