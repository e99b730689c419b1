"""Derivatives of α·A·B + β·C: each product in them is a product of this library again.

Knows the formulas, not how a product is computed: what multiplies is handed in, for eager calls
by ``api.py`` and for traced ones by ``operator.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_unwrap = torch._C._functorch.unwrap_if_dead
"""What a tensor was inside a transform that has ended, as ``torch.autograd.Function`` has it."""

Product = Callable[..., torch.Tensor]
"""``product(alpha, A, B, beta=0.0, C=None, *, precision)``, as ``gemm`` takes them."""


def gradients(
    product: Product,
    needed: tuple[bool, bool, bool],
    G: torch.Tensor,
    alpha: complex | float,
    A: torch.Tensor | None,
    B: torch.Tensor | None,
    beta: complex | float,
    ranks: tuple[int, int],
    by_columns: tuple[bool, bool],
    precision: str | float | None,
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """What reaches A, B and C of the gradient ``G`` (..., m, n) of the result.

    ᾱ·G·Bᴴ, ᾱ·Aᴴ·G and β̄·G. ``ranks`` are the numbers of dimensions of A and B: an operand
    that all matrices of a batch share gets the sum over the batch, as one product with a longer
    k. The gradient of an operand that lies ``by_columns`` lies so, too: a weight's gradient as
    the weight does, by the product that torch would compute. A may be None where B's gradient
    is not needed, and B where A's is not.
    """
    alpha = alpha.conjugate()
    for_A = for_B = for_C = None
    if needed[0]:
        assert B is not None
        left, right = (_side_by_side(G), _side_by_side(B)) if ranks[0] < G.ndim else (G, B)
        if by_columns[0]:
            for_A = product(alpha, right.conj(), left.mT, precision=precision).mT
        else:
            for_A = product(alpha, left, right.mH, precision=precision)
    if needed[1]:
        assert A is not None
        left, right = (_stacked(A), _stacked(G)) if ranks[1] < G.ndim else (A, G)
        if by_columns[1]:
            for_B = product(alpha, right.mT, left.conj(), precision=precision).mT
        else:
            for_B = product(alpha, left.mH, right, precision=precision)
    if needed[2]:
        for_C = G if _is(beta, 1) else torch.zeros_like(G) if _is(beta, 0) else G * beta.conjugate()
    return for_A, for_B, for_C


def _is_by_columns(x: torch.Tensor) -> bool:
    """Whether a single matrix is stored column after column, as torch's own derivatives ask.

    Of a compiler's symbols nothing is asked that it does not know: it would be a guard.
    """
    if x.ndim != 2 or not isinstance(x.stride(0), int) or x.stride(0) != 1:
        return False
    follow: bool | torch.SymBool = x.stride(1) == x.shape[0]
    if isinstance(follow, bool):
        return follow
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(follow)


def _is(beta: complex | float, value: int) -> bool:
    """Whether β is known to be a value; a compiler's symbol is not."""
    return isinstance(beta, (int, float, complex)) and beta == value


def _side_by_side(x: torch.Tensor) -> torch.Tensor:
    """(..., r, c) as (r, ...·c): the matrices of a batch beside each other."""
    return x.movedim(-2, 0).reshape(x.shape[-2], -1)


def _stacked(x: torch.Tensor) -> torch.Tensor:
    """(..., r, c) as (...·r, c): the matrices of a batch below each other."""
    return x.reshape(-1, x.shape[-1])


def differentiable(product: Product, unwatched: Product | None = None) -> Product:
    """``apply(alpha, A, B, beta, C, precision)``: ``product`` with derivatives of any order.

    Forward mode and ``torch.func`` transforms included; ``vmap`` becomes a batched product.
    ``product`` may itself end in ``apply`` where autograd watches. ``unwatched``, if that is
    another function, computes the result where it does not.
    """
    forward_product = unwatched or product

    class GEMM(torch.autograd.Function):
        """Named in a graph's ``grad_fn``."""

        @staticmethod
        def forward(
            alpha: complex | float,
            A: torch.Tensor,
            B: torch.Tensor,
            beta: complex | float,
            C: torch.Tensor | None,
            precision: str | float,
        ) -> torch.Tensor:
            return forward_product(alpha, A, B, beta, C, precision=precision)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
            alpha, A, B, beta, _, precision = inputs
            _, needs_A, needs_B, *_ = ctx.needs_input_grad
            ctx.save_for_backward(A if needs_B else None, B if needs_A else None)
            ctx.save_for_forward(A, B)
            by_columns = _is_by_columns(A), _is_by_columns(B)
            ctx.facts = alpha, beta, (A.ndim, B.ndim), by_columns, precision

        @staticmethod
        def backward(ctx: Any, *G: torch.Tensor) -> Any:
            A, B = ctx.saved_tensors
            alpha, beta, ranks, by_columns, precision = ctx.facts
            _, needs_A, needs_B, _, needs_C, _ = ctx.needs_input_grad
            found = gradients(
                product, (needs_A, needs_B, needs_C), G[0], alpha, A, B, beta, ranks, by_columns,
                precision,
            )  # fmt: skip
            return None, found[0], found[1], None, found[2], None

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Any:
            A, B = ctx.saved_tensors
            alpha, beta, *_, precision = ctx.facts
            _, dA, dB, _, dC, _ = tangents
            if beta == 0:
                dC = None
            if dA is None and dB is None:
                return None if dC is None else dC * beta
            terms = [(x, y) for x, y in ((dA, B), (A, dB)) if x is not None and y is not None]
            last = (beta, dC) if dC is not None else (0.0, None)
            found = product(alpha, *terms[0], *last, precision=precision)
            if len(terms) == 2:
                found = product(alpha, *terms[1], 1.0, found, precision=precision)
            return found

        @staticmethod
        def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[torch.Tensor, int]:
            return batched(apply, info.batch_size, in_dims, inputs), 0

    def apply(
        alpha: complex | float,
        A: torch.Tensor,
        B: torch.Tensor,
        beta: complex | float,
        C: torch.Tensor | None,
        precision: str | float,
    ) -> torch.Tensor:
        if torch._C._are_functorch_transforms_active():
            result: torch.Tensor = GEMM.apply(alpha, A, B, beta, C, precision)
        else:
            A, B, C = _unwrap(A), _unwrap(B), None if C is None else _unwrap(C)
            result = apply_now(alpha, A, B, beta, C, precision)
        return result

    # What GEMM.apply ends in without transforms, past 15 us of binding arguments by inspection.
    apply_now: Any = super(torch.autograd.Function, GEMM).apply
    return apply


def batched(
    product: Product, size: int, in_dims: tuple[int | None, ...], inputs: tuple[Any, ...]
) -> torch.Tensor:
    """``product(alpha, A, B, beta, C, ...)`` mapped over one more dimension, which comes first.

    ``in_dims`` says where that dimension is in A, B and C, None where an operand lacks it.
    """
    alpha, A, B, beta, C, *rest = inputs
    _, dim_A, dim_B, _, dim_C, *_ = in_dims

    def with_batch(x: torch.Tensor, dim: int | None) -> torch.Tensor:
        return x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)

    rank_A, rank_B = A.ndim - (dim_A is not None), B.ndim - (dim_B is not None)
    # What is 2-D and not mapped stays shared by all; one of A and B has to carry the batch.
    if dim_A is not None or rank_A > 2 or (dim_B is None and rank_B == 2):
        A = with_batch(A, dim_A)
    if dim_B is not None or rank_B > 2:
        B = with_batch(B, dim_B)
    # What one operand had of dimensions before is shared by the other's matrices no longer.
    if A.ndim == 3 and rank_B > 2:
        A = A.unflatten(0, (size, *[1] * (rank_B - 2))).expand(*B.shape[:-2], *A.shape[1:])
    if B.ndim == 3 and rank_A > 2:
        B = B.unflatten(0, (size, *[1] * (rank_A - 2))).expand(*A.shape[:-2], *B.shape[1:])
    if C is not None:
        C = with_batch(C, dim_C)
    return product(alpha, A, B, beta, C, *rest)
