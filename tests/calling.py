"""Small operands, tables that have a strategy serve them, and threads, for tests of whole calls."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from invented import CPU, always, write_for_this_cpu

import autogemm
from autogemm.device import device_of
from autogemm.precision import Tolerance
from autogemm.problem import DTYPES, contiguous_problem
from autogemm.strategies import STRATEGIES, Candidate

HIGHEST = Tolerance("highest")
SPLIT = Candidate.of("ksplit", form="batched", chunks=3)
IN_TURN = Candidate.of("ksplit", form="sequential", chunks=3)
ONEDNN = Candidate.of("onednn")

EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


def operands(
    m: int, n: int, k: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed * 7919 + m * 101 + n * 11 + k)
    real = torch.float64 if dtype in (torch.float64, torch.complex128) else torch.float32
    wide = torch.complex128 if dtype.is_complex else real
    a, b, c = (
        torch.randn(*shape, dtype=wide, generator=g).to(dtype) for shape in ((m, k), (k, n), (m, n))
    )
    return a, b, c


def serve(directory: Path, candidate: Candidate, problem_dtype: torch.dtype, *shape: int) -> None:
    """Have the tables of this CPU choose a candidate for one shape, whatever becomes of C."""
    entries = []
    for update in ("none", "add", "bias", "inplace"):
        problem = contiguous_problem(*shape, problem_dtype, update=update, device_type="cpu")
        strategy = next(s for s in STRATEGIES if s.name == candidate.strategy)
        if reasons := strategy.reasons_not(problem, device_of(CPU), candidate.kwargs):
            pytest.skip("; ".join(reasons))
        entries.append(always(candidate, problem))
    write_for_this_cpu(directory, *entries)
    autogemm.reload_tables()


def has_bfloat16_passes() -> bool:
    """Whether torch multiplies float32 operands as bfloat16 on this CPU when it is told to.

    For a test that puts torch's settings back.
    """
    A, B, _ = operands(64, 48, 96)
    results = []
    for setting in ("ieee", "bf16"):
        torch.backends.mkldnn.matmul.fp32_precision = setting
        results.append(A @ B)
    return not torch.equal(*results)


def python_path(*first: Path) -> str:
    """For a process of its own: these places, then whatever this one was given."""
    given = os.environ.get("PYTHONPATH")
    return os.pathsep.join([*map(str, first), *([given] if given else [])])


def same_bits(x: torch.Tensor, y: torch.Tensor) -> bool:
    return x.dtype == y.dtype and x.shape == y.shape and torch.equal(_bits(x), _bits(y))


def _bits(x: torch.Tensor) -> torch.Tensor:
    x = x.detach().resolve_conj().contiguous()
    return (torch.view_as_real(x) if x.is_complex() else x).view(torch.uint8)


def in_threads(work: Callable[[int], None], count: int = 8) -> None:
    """work(0), work(1), … all at once, each in a thread of its own; what one raises is raised."""
    start = threading.Barrier(count)

    def begin(number: int) -> None:
        start.wait()
        work(number)

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(begin, range(count)))
