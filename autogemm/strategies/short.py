"""float32 products of short k, by a kernel of our own in IEEE arithmetic.

Where k and one more extent are short, or all three, as in batches of small matrices, a product need
not take longer than its memory does, and what emulation and general kernels do beside that shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor

from autogemm import precision
from autogemm.device import Device
from autogemm.precision import ErrorBound
from autogemm.problem import Problem
from autogemm.strategies.base import (
    Params,
    ParamValue,
    Run,
    Strategy,
    one_of,
    reasons_against_size,
    tile_of,
)

_LONGEST = 128
"""Elements of k."""
_MOST = 2**30
"""Rows and columns: places are 32-bit."""
_BALANCE = 48
"""1/m + 1/n + 1/k is no less than its reciprocal: two extents of 96 beside a long one. At 64 and 64
float32 units and memory take about as long (H200); up to half as much again is worth measuring."""
_TILES = (
    (32, 32, 32, 2, 1),
    (32, 32, 32, 4, 1),
    (64, 32, 32, 2, 2),
    (32, 64, 32, 2, 2),
    (64, 64, 32, 4, 2),
    (64, 64, 32, 8, 2),
    (64, 64, 32, 2, 2),
    (64, 64, 64, 4, 2),
    (128, 32, 32, 4, 2),
    (128, 64, 32, 8, 2),
    (128, 64, 32, 4, 2),
    (128, 64, 64, 8, 2),
    (64, 128, 32, 8, 2),
)
"""(bm, bn, bk, warps, stages)"""
_DIRECT_TILES = ((32, 32, 32, 1, 1), (32, 32, 32, 2, 1), (32, 32, 32, 4, 1), (64, 32, 32, 2, 1))
"""Of small matrices, for which a descriptor takes longer to arrive than what it describes."""
_GROUP = 8


class Short(Strategy):
    """A program computes a tile of ``bm`` x ``bn``, ``bk`` elements of k at a time.

    With ``reads`` operands are read by plain accesses, however they lie, instead of through tensor
    descriptors, which want them aligned.
    """

    name = "short"
    dtypes = frozenset({torch.float32})
    device_types = frozenset({"cuda"})
    packages = ("triton",)
    depends_on = ("torch", "triton")
    min_capability = (9, 0)  # tensor descriptors
    batched = True
    optional = frozenset({"reads"})

    def parameters(self) -> Mapping[str, Callable[[ParamValue], bool]]:
        return {
            "bm": one_of(32, 64, 128),
            "bn": one_of(32, 64, 128),
            "bk": one_of(32, 64),
            "warps": one_of(1, 2, 4, 8),
            "stages": one_of(1, 2, 3, 4),
            "reads": one_of("direct"),
        }

    def _reasons_not(self, problem: Problem, device: Device, params: Params) -> list[str]:
        if "rocm" in device.features:
            return ["the arithmetic of its products was studied on NVIDIA GPUs only"]
        if problem.k > _LONGEST or max(problem.m, problem.n) > _MOST:
            return [f"k is {_LONGEST} at most and others {_MOST}, not {problem}"]
        if "reads" not in params and not _is_aligned(problem):
            return [
                "without reads=direct operands are to be 16-byte aligned with one contiguous "
                f"extent, not {problem}"
            ]
        return reasons_against_size(problem, *tile_of(params))

    def space(self, problem: Problem, device: Device) -> Iterable[dict[str, ParamValue]]:
        if 1 / problem.m + 1 / problem.n + 1 / problem.k < 1 / _BALANCE:
            return
        described: Iterable[tuple[int, ...]] = _TILES
        direct: Iterable[tuple[int, ...]] = _DIRECT_TILES if problem.batch > 1 else ()
        if not _is_aligned(problem):
            described, direct = (), dict.fromkeys((*direct, *_TILES))
        yield from _that_fit(problem, described)
        for params in _that_fit(problem, direct):
            yield {**params, "reads": "direct"}

    def bound(self, problem: Problem, params: Params) -> ErrorBound:
        # One error a term, and those of α, β and both their sums.
        return ErrorBound(5.0, precision.growth(problem.dtype, problem.k))

    def bind(self, problem: Problem, device: Device, params: Params) -> Run:
        from autogemm.kernels.replay import into_new
        from autogemm.kernels.short_product import short_product
        from autogemm.kernels.split_product import Tiling

        tiling = Tiling(
            *tile_of(params), int(params["bk"]), int(params["warps"]), int(params["stages"]), _GROUP
        )
        direct = "reads" in params

        def write(
            alpha: float, A: Tensor, B: Tensor, beta: float, C: Tensor | None, out: Tensor
        ) -> None:
            short_product(alpha, A, B, beta, C, out, tiling=tiling, direct=direct)

        return into_new(write, batched=problem.batch > 1)


def _is_aligned(problem: Problem) -> bool:
    """Whether descriptors can be had of both operands."""
    return {problem.a, problem.b} <= {"row", "col"}


def _that_fit(
    problem: Problem, tiles: Iterable[tuple[int, ...]]
) -> Iterator[dict[str, ParamValue]]:
    for bm, bn, bk, warps, stages in tiles:
        if _fits(bm, problem.m) and _fits(bn, problem.n) and _fits(bk, problem.k):
            yield {"bm": bm, "bn": bn, "bk": bk, "warps": warps, "stages": stages}


def _fits(block: int, extent: int) -> bool:
    """Whether a tile's extent suits the problem's: more than half full, or the smallest."""
    return extent > block // 2 or block == 32
