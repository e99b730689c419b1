"""What calls cost the host: looking a warm call up, and launching what each strategy runs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from autogemm import api
from autogemm.device import Device
from autogemm.measure import ALPHA, BETA, in_turns
from autogemm.operands import make_operands, normal
from autogemm.problem import Problem, contiguous_problem
from autogemm.strategies import BY_NAME, STRATEGIES, Candidate


@dataclass(frozen=True, slots=True)
class Overhead:
    """Host cost of one warm call on 8x8 CPU tensors, in µs."""

    gemm_us: float
    addmm_us: float
    strategy: str

    @property
    def ratio(self) -> float:
        """How many times ``torch.addmm``'s cost."""
        return self.gemm_us / self.addmm_us


def overhead(rounds: int = 200, calls: int = 500) -> Overhead:
    """Time warm ``gemm`` and ``torch.addmm`` on the same 8x8 tensors in turns; medians."""
    A, B, C = (torch.randn(8, 8) for _ in range(3))
    strategy = api.explain(1.5, A, B, 0.5, C).strategy

    def time_gemm() -> float:
        start = time.perf_counter()
        for _ in range(calls):
            api.gemm(1.5, A, B, 0.5, C)
        return (time.perf_counter() - start) * 1e6 / calls

    def time_addmm() -> float:
        start = time.perf_counter()
        for _ in range(calls):
            torch.addmm(C, A, B, beta=0.5, alpha=1.5)
        return (time.perf_counter() - start) * 1e6 / calls

    times = in_turns({Candidate.of("gemm"): time_gemm, Candidate.of("addmm"): time_addmm}, rounds)
    gemm_us, addmm_us = (statistics.median(samples) for samples in times.values())
    return Overhead(gemm_us, addmm_us, strategy)


@dataclass(frozen=True, slots=True)
class LaunchCost:
    """Host time of one call of a candidate, in µs, while nothing waits for the device."""

    problem: Problem
    candidate: Candidate
    us: float


def launch_costs(
    device: Device, torch_device: torch.device, rounds: int = 20, calls: int = 50
) -> list[LaunchCost]:
    """The host's share of a call of every strategy (every ``form`` of it) that can run; medians.

    On a CPU that is the whole call: the host computes. Operands are small, so that a GPU keeps up.
    """
    costs = []
    for problem, candidate in _samples(device):
        run = BY_NAME[candidate.strategy].bind(problem, device, candidate.kwargs)
        x = make_operands(problem, torch_device, normal)
        assert x.C is not None
        times = []
        for _ in range(rounds):
            start = time.perf_counter()
            for _ in range(calls):
                run(ALPHA, x.A, x.B, BETA, x.C, None)
            times.append((time.perf_counter() - start) * 1e6 / calls)
            if device.has_cuda:
                torch.cuda.synchronize(torch_device)  # the queue holds some thousand launches
        costs.append(LaunchCost(problem, candidate, statistics.median(times[1:])))
    return costs


def _samples(device: Device) -> Iterator[tuple[Problem, Candidate]]:
    """One candidate of each form of each strategy, on the first problem that it serves."""
    problems = [
        contiguous_problem(m, n, k, dtype, device_type=device.type, batch=batch)
        for m, n, k, dtype, batch in (
            (256, 256, 512, torch.float32, 1),
            (255, 255, 511, torch.bfloat16, 1),
            (64, 64, 64, torch.float32, 4),
        )
    ]
    for strategy in STRATEGIES:
        seen: set[object] = set()
        for problem in problems:
            for candidate in strategy.candidates(problem, device):
                form = candidate.kwargs.get("form")
                if form not in seen:
                    seen.add(form)
                    yield problem, candidate
