"""``triton_gemm`` with ``reads: direct``: one unaligned operand is read where it lies.

It has to be contiguous along k, and the result across its rows (columns, of B), which is how
``kernels/interleaved_product.py`` writes. Words of 32 bits, shifted into place, would do without
the latter; they took four times as long as a copy and ``half_product`` (H200).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from torch import Tensor

from autogemm.problem import Problem
from autogemm.strategies.base import Params, Run, tile_of
from autogemm.strategies.guarded import aligned_extent

_SHORTEST = 9
"""Elements of k, of which up to eight precede what is brought as tiles."""
_INTERLEAVED = 8
"""Tiles that rows next to each other belong to, at most."""
_READS = 4
"""How often tiles read the operand at most: four times at 8192 x 1024 x 1001 it took 37 us where
copying it first took 43, sixteen times at 4095 x 4096 x 4095 224 and 205 (H200)."""
_TILES = (
    (128, 256, 64, 8, 4),
    (128, 128, 64, 8, 3),
    (128, 128, 64, 4, 3),
    (64, 256, 64, 4, 2),
    (64, 256, 32, 4, 4),
    (64, 128, 64, 4, 2),
    (128, 64, 64, 4, 3),
    (64, 64, 64, 4, 4),
    (128, 32, 64, 4, 4),
    (128, 16, 64, 4, 4),
)
"""(rows of the operand, of the result's other extent, bk, warps, stages)"""


def direct_operand(problem: Problem) -> Literal["A", "B"] | None:
    """The unaligned operand that can be read where it lies, if there is one."""
    by_columns = problem.out.startswith("col")
    if problem.a == "row-unaligned" and not by_columns:
        return "A"
    if problem.b == "col-unaligned" and by_columns:
        return "B"
    return None


def reasons_not_direct(problem: Problem, params: Params) -> list[str]:
    """Why no operand of a problem is read where it lies by such tiles; empty means one is."""
    direct = direct_operand(problem)
    if direct is None:
        return [
            "reads=direct is for an unaligned operand that is contiguous along k: B by columns "
            "if the result lies by columns, else A by rows; not for "
            f"{problem.a} x {problem.b} -> {problem.out}"
        ]
    extent = problem.m if direct == "A" else problem.n
    if extent < _INTERLEAVED or problem.k < _SHORTEST:
        return [
            f"reads=direct is for {_INTERLEAVED} rows of {_SHORTEST} elements or more, not for "
            f"{extent} of {problem.k}"
        ]
    rows, _ = _tile_of(direct, params)
    if rows < 64:
        side = "rows" if direct == "A" else "columns"
        return [f"reads=direct takes tiles of at least 64 {side} here, not of {rows}"]
    return []


def tiles_for(problem: Problem) -> Iterator[tuple[int, int, int, int, int]]:
    """(bm, bn, bk, warps, stages) that may gain by it: the operand is long and seldom read."""
    direct = direct_operand(problem)
    if direct is None:
        return
    m, n = problem.m, problem.n
    extent, across = (m, n) if direct == "A" else (n, m)
    for rows, cols, bk, warps, stages in _TILES:
        reads = -(-across // cols)
        # Smaller tiles than need be are tried where they read it twice.
        suits = across > cols // 2 and reads <= (_READS if cols == 256 else 2)
        if suits and _INTERLEAVED * rows * reads <= extent:
            bm, bn = (rows, cols) if direct == "A" else (cols, rows)
            yield bm, bn, bk, warps, stages


def pays(problem: Problem, params: Params) -> bool:
    """Whether such tiles read the operand no more often than a copy of it would cost."""
    direct = direct_operand(problem)
    if direct is None:
        return False
    _, cols = _tile_of(direct, params)
    return -(-(problem.n if direct == "A" else problem.m) // cols) <= _READS


def copied_elements(problem: Problem) -> int:
    """Elements of the other operand's copy, if it may need one."""
    direct = direct_operand(problem)
    assert direct is not None
    other, across = (problem.b, problem.n) if direct == "A" else (problem.a, problem.m)
    if other == ("row" if direct == "A" else "col"):
        return 0
    return aligned_extent(across, problem.itemsize) * aligned_extent(problem.k, problem.itemsize)


def bind_direct(problem: Problem, params: Params) -> Run:
    """What computes the product; that of B is the transposed one."""
    from autogemm.kernels.half_product import is_ready, is_row_major
    from autogemm.kernels.interleaved_product import interleaved_product, is_interleaved
    from autogemm.kernels.replay import into_new, not_repeatable
    from autogemm.kernels.split_product import Tiling
    from autogemm.kernels.staging import stage

    direct = direct_operand(problem)
    assert direct is not None
    bm, bn = _tile_of(direct, params)
    tiling = Tiling(
        bm, bn, int(params["bk"]), int(params["warps"]), int(params["stages"]),
        int(params["group"]),
    )  # fmt: skip

    def aligned(x: Tensor) -> Tensor:
        rows, cols = (aligned_extent(extent, problem.itemsize) for extent in x.shape)
        return stage(x, rows=rows, cols=cols, dtype=x.dtype)

    def by_rows(x: Tensor) -> Tensor:
        not_repeatable()
        rows, cols = x.shape
        made = x.new_empty(rows, aligned_extent(cols, problem.itemsize))[:, :cols]
        return made.copy_(x)

    def write(
        alpha: float, A: Tensor, B: Tensor, beta: float, C: Tensor | None, out: Tensor
    ) -> None:
        if direct == "B":
            A, B, out = B.t(), A.t(), out.t()
            C = None if C is None else C.t()
        # Layouts promise what is asked for here, unless rows are too far apart to be described.
        A = A if is_interleaved(A) else aligned(A)
        B = B if is_row_major(B) and is_ready(B) else by_rows(B)
        interleaved_product(alpha, A, B, beta, C, out, tiling=tiling)

    return into_new(write)


def _tile_of(direct: str, params: Params) -> tuple[int, int]:
    """The tile of the product that is computed."""
    bm, bn = tile_of(params)
    return (bm, bn) if direct == "A" else (bn, bm)
