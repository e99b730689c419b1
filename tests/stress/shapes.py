"""A program that meets a new shape at every call: what stays in memory is bounded."""

from __future__ import annotations

import gc
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from invented import AXPBY, always, write_for_this_cpu

from autogemm import api, gemm, reload_tables
from autogemm.problem import contiguous_problem
from stress import Figures, GoingOn

GROWTH_BYTES = 64 * 2**20
FILLED = 2 * api._MAX_WARM_CALLS
"""Calls after which every bounded cache has been full once."""


def distinct_shapes() -> Iterator[tuple[int, int, int]]:
    """(m, n, k), each once, small ones first."""
    for total in itertools.count(3):
        for m in range(1, total - 1):
            for n in range(1, total - m):
                yield m, n, total - m - n


def resident_bytes() -> int:
    """Memory of this process, as the system counts it."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def meet_shapes(going_on: GoingOn, folder: Path) -> Figures:
    """Multiply matrices of ever new shapes, with predictions from a table; count what stays."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the products are tiny
    try:
        problem = contiguous_problem(16, 16, 16, torch.float32, device_type="cpu")
        write_for_this_cpu(folder, always(AXPBY, problem))
        reload_tables()
        return _meet(going_on)
    finally:
        torch.set_num_threads(threads)
        reload_tables()


def _meet(going_on: GoingOn) -> Figures:
    pool, wide = torch.randn(400, 400), torch.randn(400, 400, dtype=torch.float64)
    before = peak = done = 0
    for m, n, k in distinct_shapes():
        source = wide if k % 5 == 0 else pool
        C = source[:m, :n] if n % 2 else None
        gemm(1.0, source[:m, :k], source[:k, :n], 0.5 if n % 2 else 0.0, C)
        done += 1
        if done == FILLED:
            gc.collect()
            before = resident_bytes()
        if done > FILLED and done % 1000 == 0:
            peak = max(peak, resident_bytes())
            growth = peak - before
            assert growth <= GROWTH_BYTES, f"{growth / 2**20:.0f} MiB more after {done} shapes"
        if not going_on(done):
            break
    assert len(api._warm) <= api._MAX_WARM_CALLS
    return {"shapes": done, "growth MiB": round(max(0, peak - before) / 2**20, 1)}
