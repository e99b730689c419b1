"""float32 products of a few rows or columns, by kernels of our own in IEEE arithmetic.

With up to sixteen rows a float32 product need not take longer than reading the large operand, if
that is read once and by all multiprocessors. 16 x 4096 x 4096 takes 21 µs so, 26 by
``emulated_fp32``, which has terms to make and to check, and 82 by cuBLAS (H200).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from autogemm import precision
from autogemm.device import Device
from autogemm.precision import ErrorBound
from autogemm.problem import Problem
from autogemm.strategies.base import (
    Candidate,
    Params,
    ParamValue,
    Run,
    Strategy,
    at_least,
    filling_slices,
    one_of,
)
from autogemm.strategies.hopper import reasons_without_gluon

_MOST = 16
"""Rows or columns; with more, arithmetic takes longer than memory."""
_CHUNK = 128
"""Elements of k whose sum is added to a total (``kernels/skinny_product.py``)."""
_PARTS = 32
"""Parts of k that the threads of form ``lanes`` have at least, and seven halvings at most that
their sums take."""
_MEMORY = 227 * 1024
"""Bytes of shared memory that a program can have (compute capability 9.0 and 10.0)."""
_LANES_TILES = (
    (32, 256, 4, 3),
    (32, 256, 4, 4),
    (32, 128, 4, 4),
    (32, 128, 4, 6),
    (32, 256, 8, 3),
    (32, 256, 4, 2),
    (16, 256, 2, 3),
    (16, 256, 4, 3),
    (16, 128, 2, 4),
    (64, 128, 8, 4),
    (64, 256, 8, 2),
)
"""(bn, bk, warps, stages) of form ``lanes``."""
_TILES = (
    (4, 256, 32, 2, 4),
    (4, 256, 64, 4, 3),
    (8, 256, 32, 4, 4),
    (8, 128, 32, 2, 4),
    (16, 128, 32, 4, 4),
    (16, 128, 32, 4, 6),
    (16, 128, 32, 2, 4),
    (16, 64, 64, 2, 4),
    (16, 256, 32, 8, 4),
)
"""(rows, bn, bk, warps, stages): a thread has 16 or 32 sums, so that it loads little for them."""
_LONGEST = 2**26
"""Elements of k, up to which errors of errors stay within the bound's slack."""
_MOST_COLUMNS = 2**30
"""Places are 32-bit."""
_WAVES = (1, 2, 3, 4)
"""Programs a multiprocessor that slices of k aim at, in form ``lanes`` the first two: of most
tiles one program has more than half of its memory."""


class Skinny(Strategy):
    """A program computes all rows of ``bn`` columns, ``bk`` elements of k at a time, over one of
    ``slices`` parts of k; of a result with few columns the transpose.

    In form ``lanes`` each of its threads has its own part of k, so that the large operand may lie
    along k as well; else each has its own elements of the result.
    """

    name = "skinny"
    dtypes = frozenset({torch.float32})
    device_types = frozenset({"cuda"})
    packages = ("triton",)
    depends_on = ("torch", "triton")
    min_capability = (9, 0)  # tensor descriptors
    optional = frozenset({"form"})

    def parameters(self) -> Mapping[str, Callable[[ParamValue], bool]]:
        return {
            "form": one_of("lanes"),
            "bn": one_of(16, 32, 64, 128, 256),
            "bk": one_of(32, 64, 128, 256),
            "warps": one_of(2, 4, 8),
            "stages": one_of(1, 2, 3, 4, 5, 6),
            "slices": at_least(1),
        }

    def _reasons_not(self, problem: Problem, device: Device, params: Params) -> list[str]:
        if "rocm" in device.features:
            return ["the arithmetic of its products was studied on NVIDIA GPUs only"]
        if problem.k > _LONGEST or max(problem.m, problem.n) > _MOST_COLUMNS:
            return [f"k is {_LONGEST} at most and others {_MOST_COLUMNS}, not {problem}"]
        if min(problem.m, problem.n) > _MOST:
            return [
                f"computes {_MOST} rows or columns at most, not {problem.m} x {problem.n}; "
                "with more, arithmetic takes longer than memory"
            ]
        if not {problem.a, problem.b} <= {"row", "col"}:
            return ["operands are not 16-byte aligned with one contiguous extent"]
        rows = _rows(problem, params)
        memory = 4 * (rows + int(params["bn"])) * int(params["bk"]) * int(params["stages"])
        if memory > _MEMORY:
            return [f"a program has {_MEMORY} bytes of shared memory at most, not {memory}"]
        if "form" in params:
            return _reasons_not_lanes(device, params)
        bn, bk = int(params["bn"]), int(params["bk"])
        if not bn >= 64 >= bk:
            return [f"without form=lanes bn is 64 at least and bk at most, not bn={bn}, bk={bk}"]
        if _lies_along_k(problem):
            # 16 x 4096 x 4096 takes 65 µs so, and 21 in form lanes (H200).
            return [
                "the large operand lies along k; without form=lanes multiprocessors are slow to "
                "read it so"
            ]
        return []

    def space(self, problem: Problem, device: Device) -> Iterable[dict[str, ParamValue]]:
        has_gluon = not reasons_without_gluon(device, "lanes")
        for bn, bk, warps, stages in _LANES_TILES if has_gluon else ():
            for slices in sorted({_slices(problem, device, bn, bk, w) for w in _WAVES[:2]}):
                yield {
                    "form": "lanes", "bn": bn, "bk": bk, "warps": warps, "stages": stages,
                    "slices": slices,
                }  # fmt: skip
        for rows, bn, bk, warps, stages in () if _lies_along_k(problem) else _TILES:
            if rows != _rows(problem, {}):
                continue
            for slices in sorted({_slices(problem, device, bn, bk, waves) for waves in _WAVES}):
                yield {"bn": bn, "bk": bk, "warps": warps, "stages": stages, "slices": slices}

    def kin(self, candidate: Candidate) -> Candidate:
        """Slices and stages are a matter of degree."""
        degrees = ("slices", "stages")
        kept = {key: value for key, value in candidate.kwargs.items() if key not in degrees}
        return Candidate.of(self.name, **kept)

    def fitted(self, candidate: Candidate, problem: Problem, device: Device) -> Candidate:
        """As many slices as fill the device twice, in form ``lanes`` once."""
        params = dict(candidate.kwargs)
        waves = 1 if "form" in params else 2
        params["slices"] = _slices(problem, device, int(params["bn"]), int(params["bk"]), waves)
        return Candidate.of(self.name, **params)

    def bound(self, problem: Problem, params: Params) -> ErrorBound:
        # One error a term of a chunk, a chunk of a slice, and a slice; α, β and both their sums.
        slices = int(params["slices"])
        part = -(-problem.k // slices) + int(params["bk"])
        if "form" in params:  # a thread's terms, and halvings
            terms = -(-part // _PARTS) + 8 + slices
        else:
            terms = _CHUNK + -(-part // _CHUNK) + slices
        return ErrorBound(5.0, precision.growth(problem.dtype, min(terms, problem.k)))

    def bind(self, problem: Problem, device: Device, params: Params) -> Run:
        from autogemm.kernels.replay import into_new
        from autogemm.kernels.split_product import Tiling

        if "form" in params:
            from autogemm.kernels.lanes_product import lanes_product as product
        else:
            from autogemm.kernels.skinny_product import skinny_product as product

        transposed = _is_transposed(problem)
        bn, bk, warps, stages = (int(params[name]) for name in ("bn", "bk", "warps", "stages"))
        tiling = Tiling(_rows(problem, params), bn, bk, warps, stages)
        slices = int(params["slices"])

        def write(
            alpha: float, A: Tensor, B: Tensor, beta: float, C: Tensor | None, out: Tensor
        ) -> None:
            if transposed:
                A, B, out = B.t(), A.t(), out.t()
                C = None if C is None else C.t()
            product(alpha, A, B, beta, C, out, slices=slices, tiling=tiling)

        return into_new(write)

    def workspace_bytes(self, problem: Problem, params: Params) -> int:
        slices = int(params["slices"])
        return 4 * slices * problem.m * problem.n if slices > 1 else 0


def _reasons_not_lanes(device: Device, params: Params) -> list[str]:
    bn, bk, warps, stages = (int(params[name]) for name in ("bn", "bk", "warps", "stages"))
    if bk < 128 or 8 * warps < bn or stages < 2:
        return [
            "form=lanes takes bk from 128, a warp for 8 columns or fewer, and 2 stages or more, "
            f"not bk={bk}, warps={warps} for bn={bn}, stages={stages}"
        ]
    return reasons_without_gluon(device, "lanes")


def _lies_along_k(problem: Problem) -> bool:
    """Whether the large operand does."""
    return problem.a == "row" if _is_transposed(problem) else problem.b == "col"


def _is_transposed(problem: Problem) -> bool:
    """Whether it is the result's columns that are few."""
    return problem.n < problem.m


def _rows(problem: Problem, params: Params) -> int:
    """Of a tile that has all of the few."""
    return max(8 if "form" in params else 4, 1 << (min(problem.m, problem.n) - 1).bit_length())


def _slices(problem: Problem, device: Device, bn: int, bk: int, waves: int) -> int:
    rows = _rows(problem, {})
    tile = (bn, rows) if _is_transposed(problem) else (rows, bn)
    return filling_slices(problem, device, *tile, bk, waves)
