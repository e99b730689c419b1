"""The product cut along k: parallelism where m·n is small, accuracy where k is long."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch

from autogemm import precision
from autogemm.device import Device
from autogemm.precision import ErrorBound
from autogemm.problem import DTYPE_NAMES, Problem
from autogemm.strategies.base import Params, ParamValue, Run, Strategy, at_least, one_of
from autogemm.strategies.combine import accumulator_dtype, combine, fuses_combine
from autogemm.strategies.matmul_axpby import wide_product

_ALIGNMENT = 16
"""Chunk lengths are multiples of this many elements, so that every chunk stays aligned."""


class KSplit(Strategy):
    """Sums the products of ``chunks`` slices of A's columns and B's rows.

    ``batched`` computes all of them at once into partial sums that are added up in the
    accumulator's type; ``sequential`` adds one after the other into the result. ``chunks``
    need not divide k: the last one is shorter.
    """

    name = "ksplit"
    dtypes = frozenset(DTYPE_NAMES)
    depends_on = ("torch", "cuda", "cublas", "triton")
    batched = True

    def parameters(self) -> Mapping[str, Callable[[ParamValue], bool]]:
        return {"form": one_of("batched", "sequential"), "chunks": at_least(2)}

    def _reasons_not(self, problem: Problem, device: Device, params: Params) -> list[str]:
        if problem.k < int(params["chunks"]):
            return [f"k = {problem.k} cannot be cut into {params['chunks']} chunks"]
        if problem.batch > 1 and params["form"] == "batched":
            return ["the chunks of one product make a batch, those of a batch would not"]
        return []

    def space(self, problem: Problem, device: Device) -> Iterable[dict[str, ParamValue]]:
        m, n, k = problem.m, problem.n, problem.k
        for chunks in (2, 4, 8, 16, 32, 64, 128):
            if k < 128 * chunks:
                return
            # More partial sums than operands costs more traffic than a split can win back.
            if chunks * m * n <= 2 * (m * k + k * n):
                yield {"form": "batched", "chunks": chunks}
            if chunks <= 4:
                yield {"form": "sequential", "chunks": chunks}

    def bound(self, problem: Problem, params: Params) -> ErrorBound:
        length = chunk_length(problem.k, int(params["chunks"]))
        terms = length + -(-problem.k // length)
        return ErrorBound(5.0, precision.growth(problem.dtype, min(terms, problem.k)))

    def bind(self, problem: Problem, device: Device, params: Params) -> Run:
        length = chunk_length(problem.k, int(params["chunks"]))
        if params["form"] == "batched":
            return _batched(problem, device, length)
        return _sequential(problem, device, length)

    def workspace_bytes(self, problem: Problem, params: Params) -> int:
        result = problem.batch * problem.m * problem.n * accumulator_dtype(problem).itemsize
        return result * (int(params["chunks"]) if params["form"] == "batched" else 2)


def chunk_length(k: int, chunks: int) -> int:
    """Columns of A a chunk takes: the even share, rounded up to an aligned length if long."""
    length = -(-k // chunks)
    return length if length < 4 * _ALIGNMENT else -(-length // _ALIGNMENT) * _ALIGNMENT


def _batched(problem: Problem, device: Device, length: int) -> Run:
    product = wide_product(problem, device)
    fused = fuses_combine(problem, device)
    full, tail = divmod(problem.k, length)

    def run(
        alpha: complex | float,
        A: torch.Tensor,
        B: torch.Tensor,
        beta: complex | float,
        C: torch.Tensor | None,
        out: torch.Tensor | None,
    ) -> torch.Tensor:
        (m, _), n = A.shape, B.shape[1]
        body = full * length
        left = A[:, :body].unflatten(1, (full, length)).transpose(0, 1)
        right = B[:body].unflatten(0, (full, length))
        P = product(left, right, None).sum(0) if full > 1 else product(left[0], right[0], None)
        if tail:
            P += product(A[:, body:], B[body:], None)
        assert P.shape == (m, n)
        return combine(alpha, P, beta, C, out, A.dtype, fused=fused)

    return run


def _sequential(problem: Problem, device: Device, length: int) -> Run:
    product = wide_product(problem, device)
    fused = fuses_combine(problem, device)

    def run(
        alpha: complex | float,
        A: torch.Tensor,
        B: torch.Tensor,
        beta: complex | float,
        C: torch.Tensor | None,
        out: torch.Tensor | None,
    ) -> torch.Tensor:
        P = product(A[..., :length], B[..., :length, :], None)
        for start in range(length, A.shape[-1], length):
            # Not addmm into P: for a single row that may accumulate term by term onto P, and
            # the error would grow with k instead of with the chunk.
            stop = start + length
            P += product(A[..., start:stop], B[..., start:stop, :], None)
        return combine(alpha, P, beta, C, out, A.dtype, fused=fused)

    return run
