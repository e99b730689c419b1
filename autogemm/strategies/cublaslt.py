"""cuBLASLt's own α·A·B + β·C, by the algorithm that was measured to be fastest.

``torch.addmm`` copies C into a new result first, and takes the first algorithm that cuBLAS
proposes. Here C is read where it lies, and the table names the algorithm.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch

from autogemm import precision
from autogemm.aliasing import written
from autogemm.cublas.algorithm import COMPUTE_TYPE, FIELDS, NO_SPLIT, against, algorithm
from autogemm.cublas.library import handle, library, raw_stream, why_not
from autogemm.cublas.offers import first_proposal, worth_measuring
from autogemm.cublas.product import Product, forms, operands, scalars
from autogemm.device import Device
from autogemm.precision import ErrorBound
from autogemm.problem import ALIGNMENT_BYTES, DTYPE_NAMES, Problem
from autogemm.strategies.addmm import Addmm, kept_wide
from autogemm.strategies.baddbmm import Baddbmm
from autogemm.strategies.base import Candidate, Params, ParamValue, Run, Strategy

_LIMITS = {"inner": 2**16, "cluster": 2**16}
_MOST_MATRICES = 2**16 - 1
_NOTHING_OFFERED: dict[str, ParamValue] = {**dict.fromkeys(FIELDS, 0), "split_k": 1}
"""What stands in the space where cuBLAS offers nothing: it carries the reason."""


class CublasLt(Strategy):
    """One call of ``cublasLtMatmul``, of a batch too; the parameters are the algorithm's fields.

    They are cuBLAS's numbers (``cublasLtMatmulAlgoConfigAttributes_t``). An algorithm that this
    cuBLAS does not have, or not for this problem, is refused with a reason.
    """

    name = "cublaslt"
    dtypes = frozenset(DTYPE_NAMES)
    device_types = frozenset({"cuda"})
    packages = ("nvmath",)
    depends_on = ("torch", "cuda", "cublas", "nvmath")
    batched = True

    def parameters(self) -> Mapping[str, Callable[[ParamValue], bool]]:
        return {name: _below(_LIMITS.get(name, 2**31)) for name in FIELDS}

    def _reasons_not(self, problem: Problem, device: Device, params: Params) -> list[str]:
        if reason := _cannot_be_asked(problem, device):
            return [reason]
        if problem.is_half and params["reduction"] not in (NO_SPLIT, COMPUTE_TYPE):
            return ["partial sums of a split k would be rounded to 16 bits"]
        for form in forms(problem):
            found = algorithm(form, _fields(params))
            if found is None:
                return ["this cuBLAS does not offer the algorithm for this problem"]
            if reason := against(form, found):
                return [reason]
        return []

    def space(self, problem: Problem, device: Device) -> Iterable[dict[str, ParamValue]]:
        if not device.has_package("nvmath") or _cannot_be_asked(problem, device):
            return [_NOTHING_OFFERED]
        found = worth_measuring(problem, device)
        return [dict(x) for x in found] or [_NOTHING_OFFERED]

    def kin(self, candidate: Candidate) -> Candidate:
        """All of them: which algorithm is best changes from problem to problem."""
        return Candidate.of(self.name)

    def fitted(self, candidate: Candidate, problem: Problem, device: Device) -> Candidate:
        """What cuBLAS proposes first for the problem."""
        if not device.has_package("nvmath") or _cannot_be_asked(problem, device):
            return candidate
        first = first_proposal(problem)
        return candidate if first is None else Candidate.of(self.name, **first)

    def bound(self, problem: Problem, params: Params) -> ErrorBound:
        return ErrorBound(4.0, precision.growth(problem.dtype, problem.k))

    def workspace_bytes(self, problem: Problem, params: Params) -> int:
        if why_not() is not None:
            return 0
        found = algorithm(forms(problem)[0], _fields(params))
        return 0 if found is None else found.workspace_bytes

    def bind(self, problem: Problem, device: Device, params: Params) -> Run:
        torchs_own = Baddbmm() if problem.batch > 1 else Addmm()
        run = _bound(problem, torchs_own.bind(problem, device, {"reduction": "full"}), params)
        return _resolved(run, problem.update == "inplace") if problem.dtype.is_complex else run


def _below(limit: int) -> Callable[[ParamValue], bool]:
    return lambda value: type(value) is int and 0 <= value < limit


def _fields(params: Params) -> dict[str, int]:
    return {name: int(params[name]) for name in FIELDS}


def _cannot_be_asked(problem: Problem, device: Device) -> str | None:
    if "rocm" in device.features or not device.has_cuda or problem.device_type != "cuda":
        return "cuBLAS runs on NVIDIA GPUs only"
    if problem.batch > _MOST_MATRICES:  # a grid may have a layer for each, and has no more
        return f"computes at most {_MOST_MATRICES} matrices at once"
    if "strided" in (problem.a, problem.b, problem.out):
        return "cuBLAS needs matrices whose rows or columns are contiguous"
    return why_not()


# -------------------------------------------------------------------------------- one call

_current_device: Callable[[], int] = getattr(torch._C, "_cuda_getDevice", lambda: -1)
_MOST_CALLS = 64


class _Call(NamedTuple):
    """What ``cublasLtMatmul`` is told of operands with certain strides."""

    kept: tuple[Any, ...]
    """What the addresses below belong to."""
    descriptor: int
    algorithm: int
    workspace_bytes: int
    first: int
    second: int
    c: int
    d: int
    reads_c: bool
    """Whether C can be read where it lies."""


class _OwnRow(threading.local):
    """The product that adds a row, one for each thread: the row's address is part of it."""

    def __init__(self, problem: Problem) -> None:
        self.product = forms(problem)[1]


def _bound(problem: Problem, otherwise: Run, params: Params) -> Run:
    """``otherwise`` runs what the algorithm does not take: strides or addresses out of the common.

    A problem says of them only what its layouts say.
    """
    a, b, d = operands(problem)
    a_mask, b_mask, d_mask = (x.alignment - 1 for x in (a, b, d))
    batch = () if problem.batch == 1 else (problem.batch,)
    shape, dtype, fields = (*batch, problem.m, problem.n), problem.dtype, _fields(params)
    in_place = problem.update == "inplace"
    # Split sums are rounded before the epilogue adds a row (H200, cuBLAS 13.1).
    takes_rows = len(forms(problem)) > 1 and fields["split_k"] == 1
    row = _OwnRow(problem) if takes_rows else None
    matmul = library().matmul
    unseen: Any = object()
    calls: dict[object, _Call | None] = {}

    def prepared(
        A: torch.Tensor, B: torch.Tensor, C: torch.Tensor | None, D: torch.Tensor
    ) -> _Call | None:
        if not (a.keeps_aligned(A) and b.keeps_aligned(B) and d.keeps_aligned(D)):
            return None
        new = d.strides_of(D)
        own = d.strides_of(C) if C is not None and problem.update == "add" and d.fits(C) else None
        for c in (new,) if own is None else (own, new):  # as it lies, then as its copy
            product = Product(problem, (a.strides_of(A), b.strides_of(B), c, new))
            found = algorithm(product, fields)
            if found is not None:
                return _Call(
                    (product, found), product.descriptor, found.address, found.workspace_bytes,
                    *product.layouts, reads_c=c == own,
                )  # fmt: skip
        return None

    def run(
        alpha: complex | float,
        A: torch.Tensor,
        B: torch.Tensor,
        beta: complex | float,
        C: torch.Tensor | None,
        out: torch.Tensor | None,
    ) -> torch.Tensor:
        index = A.get_device()
        if index >= 0 and index != _current_device():
            with torch.cuda.device(index):
                return run(alpha, A, B, beta, C, out)
        D = A.new_empty(shape) if out is None else out
        key = (A.stride(), B.stride(), D.stride(), None if C is None else C.stride())
        call = calls.get(key, unseen)
        if call is unseen:
            if len(calls) >= _MOST_CALLS:
                calls.clear()
            call = calls[key] = prepared(A, B, C, D)
        at_a, at_b, at_d = A.data_ptr(), B.data_ptr(), D.data_ptr()
        if call is None or at_a & a_mask or at_b & b_mask or at_d & d_mask:
            return otherwise(alpha, A, B, beta, C, out)
        _, descriptor, chosen, size, first, second, c, d_layout, reads_c = call
        at_c = at_d
        scale = kept_wide(beta) if problem.is_half else beta
        if C is None or in_place:
            c = d_layout
        elif reads_c and not C.data_ptr() & d_mask:
            at_c = C.data_ptr()
        elif row is not None and beta == 1 and _is_aligned_row(C):
            row.product.add_row(C.data_ptr())
            descriptor, c, scale = row.product.descriptor, d_layout, 0.0
        else:
            c = d_layout
            D.copy_(C)
        at_first, at_second = (at_b, at_a) if d.by_rows else (at_a, at_b)
        memory, at_alpha, at_beta = scalars(dtype, alpha, scale)
        workspace = A.new_empty(size, dtype=torch.uint8) if size else None
        matmul(
            handle(index), descriptor, at_alpha, at_first, first, at_second, second, at_beta,
            at_c, c, at_d, d_layout, chosen,
            0 if workspace is None else workspace.data_ptr(), size, raw_stream(index),
        )  # fmt: skip
        del memory  # it was to live until here
        if out is not None:
            written(out)
        return D

    return run


def _is_aligned_row(C: torch.Tensor) -> bool:
    return C.stride(1) == 1 and C.data_ptr() % ALIGNMENT_BYTES == 0


def _resolved(run: Run, in_place: bool) -> Run:
    """``run`` for conjugated views too: cuBLAS reads what is stored, not what it stands for."""

    def run_resolved(
        alpha: complex | float,
        A: torch.Tensor,
        B: torch.Tensor,
        beta: complex | float,
        C: torch.Tensor | None,
        out: torch.Tensor | None,
    ) -> torch.Tensor:
        A, B = A.resolve_conj(), B.resolve_conj()
        if out is not None and out.is_conj():
            stored = out.resolve_conj()
            if C is not None:
                C = stored if in_place else C.resolve_conj()
            return out.copy_(run(alpha, A, B, beta, C, stored))
        return run(alpha, A, B, beta, C if C is None else C.resolve_conj(), out)

    return run_resolved

