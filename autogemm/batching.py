"""Batches reduced to what strategies compute: one 2-D product where views allow, else 3-D.

A stack of matrices times one shared B is one taller product, with every strategy open to it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from autogemm.problem import result_shape
from autogemm.strategies import Run

_unsafe_view = torch.ops.aten._unsafe_view.default
"""A result in another shape that does not count as a view: it may be updated in place."""


class Operands(NamedTuple):
    """A, B, C and out as a strategy takes them: all 2-D or all 3-D."""

    A: torch.Tensor
    B: torch.Tensor
    C: torch.Tensor | None
    out: torch.Tensor | None


def reduced(
    A: torch.Tensor, B: torch.Tensor, C: torch.Tensor | None, out: torch.Tensor | None
) -> Operands:
    """The operands as one 2-D product, or as a batch along one leading dimension.

    Copies only operands whose leading dimensions do not merge into one; out is always a view
    or, where it cannot be, a new tensor.
    """
    if A.ndim == B.ndim == 2:
        return Operands(A, B, C, out)
    *batch, m, n = result_shape(A, B)
    k = A.shape[-1]
    count = math.prod(batch)
    if count == 1:
        A, B = A.reshape(m, k), B.reshape(k, n)
        return Operands(A, B, *_results(C, out, (m, n)))
    if B.ndim == 2:
        try:
            o = None if out is None else out.view(-1, n)
            c = o if C is out else None if C is None else C.view(-1, n)
            return Operands(A.view(-1, k), B, c, o)
        except RuntimeError:  # rows of different matrices do not follow each other evenly
            pass
    A = A.expand(*batch, m, k).reshape(count, m, k)
    B = B.expand(*batch, k, n).reshape(count, k, n)
    return Operands(A, B, *_results(C, out, (count, m, n)))


def _results(
    C: torch.Tensor | None, out: torch.Tensor | None, shape: tuple[int, ...]
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """C and out in a shape; they stay one tensor if they were one and a view can be had."""
    if out is None:
        return (None if C is None else C.reshape(shape)), None
    try:
        written = out.view(shape)
    except RuntimeError:
        return (None if C is None else C.reshape(shape)), out.new_empty(shape)
    return (written if C is out else None if C is None else C.reshape(shape)), written


def unreduced(
    run: Run,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor | None,
    out: torch.Tensor | None,
) -> Run:
    """``run`` for reduced operands, as a function of operands with these shapes and strides."""
    shape = result_shape(A, B)
    if A.ndim == B.ndim == 3 and len(A) > 1:
        return run  # reduced as they are
    if B.ndim == 2 and math.prod(shape[:-2]) > 1 and reduced(A, B, C, out).A.ndim == 2:
        return _stacked(run, shape, A.shape[-1])

    def run_batch(
        alpha: complex | float,
        A: torch.Tensor,
        B: torch.Tensor,
        beta: complex | float,
        C: torch.Tensor | None,
        out: torch.Tensor | None,
    ) -> torch.Tensor:
        views = reduced(A, B, C, out)
        result = run(alpha, views.A, views.B, beta, views.C, views.out)
        if out is None:
            return result if result.shape == shape else _unsafe_view(result, shape)
        if result.data_ptr() != out.data_ptr():
            out.copy_(result.view(shape))
        return out

    return run_batch


def _stacked(run: Run, shape: tuple[int, ...], k: int) -> Run:
    """``run`` on matrices below each other, with nothing left to find out: layers call this."""
    n = shape[-1]

    def run_tall(
        alpha: complex | float,
        A: torch.Tensor,
        B: torch.Tensor,
        beta: complex | float,
        C: torch.Tensor | None,
        out: torch.Tensor | None,
    ) -> torch.Tensor:
        if out is None:
            c = None if C is None else C.view(-1, n)
            result: torch.Tensor = _unsafe_view(run(alpha, A.view(-1, k), B, beta, c, None), shape)
            return result
        o = out.view(-1, n)
        c = o if C is out else None if C is None else C.view(-1, n)
        run(alpha, A.view(-1, k), B, beta, c, o)
        return out

    return run_tall
