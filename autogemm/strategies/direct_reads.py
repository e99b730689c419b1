"""``triton_gemm`` with ``reads: direct``: one unaligned operand is read where it lies.

It has to be contiguous along k. Two kernels do it: where the result is contiguous across that
operand's rows (columns, of B) ``interleaved_product``, which brings them as tiles, else
``words_product``, which brings words and shifts them into place.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from torch import Tensor

from autogemm.problem import Problem
from autogemm.strategies.base import Params, Run, into_new, tile_of
from autogemm.strategies.guarded import aligned_extent

_SHORTEST = 9
"""Elements of k, of which up to eight precede what is brought as tiles; and as many rows."""
_INTERLEAVED = 8
"""Tiles that rows next to each other belong to, at most."""
_READS = 2
"""How often tiles read the operand at most; sparing its copy pays for about as many readings."""
_BY_TILES = (
    (128, 128, 64, 8, 3),
    (128, 128, 64, 4, 3),
    (64, 256, 64, 4, 2),
    (64, 128, 64, 4, 2),
    (128, 64, 64, 4, 3),
    (64, 64, 64, 4, 4),
    (128, 32, 64, 4, 4),
    (128, 16, 64, 4, 4),
)
_BY_WORDS = (
    (64, 128, 64, 4, 3),
    (64, 128, 32, 4, 3),
    (64, 256, 64, 8, 3),
    (64, 64, 64, 4, 3),
)
"""(rows of the operand, of the result's other extent, bk, warps, stages)"""


def direct_operand(problem: Problem) -> Literal["A", "B"] | None:
    """The larger one of the unaligned operands that are contiguous along k, if there is any."""
    a, b = problem.a == "row-unaligned", problem.b == "col-unaligned"
    if a and (problem.m >= problem.n or not b):
        return "A"
    return "B" if b else None


def reasons_not_direct(problem: Problem, params: Params) -> list[str]:
    """Why no operand of a problem is read where it lies by such tiles; empty means one is."""
    direct = direct_operand(problem)
    if direct is None:
        return [
            "reads=direct is for an unaligned operand that is contiguous along k: A by rows or B "
            f"by columns, not for {problem.a} x {problem.b}"
        ]
    extent = problem.m if direct == "A" else problem.n
    if min(extent, problem.k) < _SHORTEST:
        return [
            f"reads=direct is for {_SHORTEST} rows of {_SHORTEST} elements or more, not for "
            f"{extent} of {problem.k}"
        ]
    rows, _ = _tile_of(problem, params)
    if rows < 64:
        side = "columns" if _is_transposed(problem, direct) else "rows"
        return [f"reads=direct takes tiles of at least 64 {side} here, not of {rows}"]
    return []


def tiles_for(problem: Problem) -> Iterator[tuple[int, int, int, int, int]]:
    """(bm, bn, bk, warps, stages) that may gain by it: the operand is long and seldom read."""
    direct = direct_operand(problem)
    if direct is None:
        return
    m, n = problem.m, problem.n
    extent, across = (m, n) if direct == "A" else (n, m)
    by_tiles = _comes_by_tiles(problem, direct)
    for rows, cols, bk, warps, stages in _BY_TILES if by_tiles else _BY_WORDS:
        if _INTERLEAVED * rows <= extent and cols // 2 < across <= _READS * cols:
            bm, bn = (rows, cols) if direct == "A" else (cols, rows)
            yield bm, bn, bk, warps, stages


def copied(problem: Problem) -> int:
    """Elements of the other operand's copy, if it may need one."""
    direct = direct_operand(problem)
    assert direct is not None
    other, across = (problem.b, problem.n) if direct == "A" else (problem.a, problem.m)
    if other == ("row" if direct == "A" else "col"):
        return 0
    if other in ("row", "col") and not _comes_by_tiles(problem, direct):
        return 0
    return aligned_extent(across, problem.itemsize) * aligned_extent(problem.k, problem.itemsize)


def bind_direct(problem: Problem, params: Params) -> Run:
    """What computes the product."""
    from autogemm.kernels.half_product import is_ready, is_row_major
    from autogemm.kernels.interleaved_product import interleaved_product, is_interleaved
    from autogemm.kernels.split_product import Tiling
    from autogemm.kernels.staging import stage
    from autogemm.kernels.words_product import has_words, words_product

    direct = direct_operand(problem)
    assert direct is not None
    by_tiles, transposed = _comes_by_tiles(problem, direct), _is_transposed(problem, direct)
    bm, bn = _tile_of(problem, params)
    tiling = Tiling(
        bm, bn, int(params["bk"]), int(params["warps"]), int(params["stages"]),
        int(params["group"]),
    )  # fmt: skip

    def aligned(x: Tensor) -> Tensor:
        rows, cols = (aligned_extent(extent, problem.itemsize) for extent in x.shape)
        return stage(x, rows=rows, cols=cols, dtype=x.dtype)

    def by_rows(x: Tensor) -> Tensor:
        rows, cols = x.shape
        made = x.new_empty(rows, aligned_extent(cols, problem.itemsize))[:, :cols]
        return made.copy_(x)

    def write(
        alpha: float, A: Tensor, B: Tensor, beta: float, C: Tensor | None, out: Tensor
    ) -> None:
        if transposed:
            A, B, out = B.t(), A.t(), out.t()
            C = None if C is None else C.t()
        # Layouts promise what is asked for here, but for addresses beyond what memory begins with.
        if by_tiles:
            A = A if is_interleaved(A) else aligned(A)
            B = B if is_row_major(B) and is_ready(B) else by_rows(B)
            interleaved_product(alpha, A, B, beta, C, out, tiling=tiling)
        else:
            A = A if is_ready(A) else aligned(A)
            B = B if has_words(B) else aligned(B)
            words_product(alpha, A, B, beta, C, out, tiling=tiling)

    return into_new(write)


def _comes_by_tiles(problem: Problem, direct: str) -> bool:
    """Whether the result's contiguous extent is the other operand's."""
    return problem.out.startswith("col") == (direct == "B")


def _is_transposed(problem: Problem, direct: str) -> bool:
    """Whether the transposed product is computed: tiles are of A, words of B."""
    return _comes_by_tiles(problem, direct) == (direct == "B")


def _tile_of(problem: Problem, params: Params) -> tuple[int, int]:
    """The tile of the product that is computed."""
    direct = direct_operand(problem)
    assert direct is not None
    bm, bn = tile_of(params)
    return (bn, bm) if _is_transposed(problem, direct) else (bm, bn)
