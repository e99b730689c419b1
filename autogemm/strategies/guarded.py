"""A fast float32 product that holds its bound for every input: stage, multiply, finish.

Both operands pass once through a kernel that converts, pads and flags them; the library
multiplies; flagged tiles are recomputed in IEEE arithmetic on the same stream. The bound is
then unconditional although TF32 and bf16 lose subnormals and overflow near the top of the range.
"""

from __future__ import annotations

from abc import abstractmethod

import torch

from autogemm.device import Device
from autogemm.problem import ALIGNMENT_BYTES, Problem
from autogemm.strategies.base import Params, Run, Strategy


def aligned_extent(extent: int, itemsize: int) -> int:
    """The next extent whose rows are multiples of 16 bytes."""
    step = ALIGNMENT_BYTES // itemsize
    return -(-extent // step) * step


class GuardedPass(Strategy):
    """The common sequence; subclasses say what operands become and how they are multiplied."""

    dtypes = frozenset({torch.float32})
    depends_on = ("torch", "cuda", "cublas", "triton")

    @abstractmethod
    def staged_dtype(self, params: Params) -> torch.dtype:
        """The type operands are multiplied in (float32 where hardware rounds them itself)."""

    @abstractmethod
    def limits(self, params: Params) -> tuple[float, float]:
        """The smallest and largest magnitude that is rounded within the declared bound."""

    @abstractmethod
    def multiply(self, A: torch.Tensor, B: torch.Tensor, P: torch.Tensor) -> None:
        """Write A·B into the float32 matrix P."""

    def copies(self, params: Params) -> bool:
        """Whether operands are written out in aligned form (otherwise they are only checked)."""
        return True

    def workspace_bytes(self, problem: Problem, params: Params) -> int:
        if not self.copies(params):
            return 0
        elements = problem.m * problem.k + problem.k * problem.n
        return elements * self.staged_dtype(params).itemsize + 4 * problem.m * problem.n

    def bind(self, problem: Problem, device: Device, params: Params) -> Run:
        from autogemm.kernels.finish import finish
        from autogemm.kernels.staging import FLAG_BLOCK, Range, stage_both

        m, n, k = problem.m, problem.n, problem.k
        dtype, copies = self.staged_dtype(params), self.copies(params)
        limits = Range(*self.limits(params))
        m_blocks, n_blocks = -(-m // FLAG_BLOCK), -(-n // FLAG_BLOCK)
        # k and n are always the contiguous extent of an operand or of the result; m only where
        # A is column-major.
        size = dtype.itemsize
        k_staged = aligned_extent(k, size) if copies else k
        m_staged = aligned_extent(m, size) if copies and problem.a.startswith("col") else m
        n_staged = aligned_extent(n, size) if copies else n
        in_place = problem.update == "inplace"
        exact_shape = (m_staged, n_staged) == (m, n)

        def run(
            alpha: complex | float,
            A: torch.Tensor,
            B: torch.Tensor,
            beta: complex | float,
            C: torch.Tensor | None,
            out: torch.Tensor | None,
        ) -> torch.Tensor:
            flags = torch.zeros(m_blocks + n_blocks, dtype=torch.int32, device=A.device)
            a, b = stage_both(
                A, B, m=m_staged, n=n_staged, k=k_staged, dtype=dtype, flags=flags, limits=limits,
                store=copies,
            )  # fmt: skip
            if out is None:
                out = torch.empty(m, n, dtype=torch.float32, device=A.device)
            if exact_shape and not in_place:
                P = product = out
            else:
                P = torch.empty(m_staged, n_staged, dtype=torch.float32, device=A.device)
                product = P if exact_shape else P[:m, :n]
            self.multiply(a, b, P)
            finish(alpha, A, B, product, beta, C, out, flags)
            return out

        return run
