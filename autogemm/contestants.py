"""Whom autogemm is compared with, each as its documentation has a user use it.

Its own tuning included. One that cannot compute a problem says why.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from autogemm.benchmark import plain_addmm
from autogemm.device import Device
from autogemm.operands import Operands
from autogemm.problem import Problem
from autogemm.strategies import Run


@dataclass(frozen=True, slots=True)
class Peer:
    """Another way to a product: ``prepare`` tunes it for operands and returns what runs it."""

    name: str
    prepare: Callable[[Operands, float, float], Run]
    """Called with operands of the problem, α and β; what it raises is why it cannot run."""
    reasons_not: Callable[[Problem, Device], list[str]] = lambda problem, device: []


def _inductor(operands: Operands, alpha: float, beta: float) -> Run:
    """``torch.compile`` of the same line, with max-autotune."""
    torch._dynamo.reset()  # its limit of recompilations counts this function, not this problem
    if operands.C is None:
        plain = torch.compile(
            lambda A, B: A @ B if alpha == 1 else alpha * (A @ B),
            fullgraph=True, dynamic=False, mode=_MAX_AUTOTUNE,
        )  # fmt: skip
        return lambda alpha, A, B, beta, C, out: plain(A, B)
    update = torch.baddbmm if operands.A.ndim == 3 else torch.addmm
    if not operands.in_place:
        added = torch.compile(
            lambda A, B, C: update(C, A, B, beta=beta, alpha=alpha),
            fullgraph=True, dynamic=False, mode=_MAX_AUTOTUNE,
        )  # fmt: skip
        return lambda alpha, A, B, beta, C, out: added(A, B, C)
    written = torch.compile(
        lambda A, B, C: C.copy_(update(C, A, B, beta=beta, alpha=alpha)),
        fullgraph=True, dynamic=False, mode=_MAX_AUTOTUNE,
    )  # fmt: skip

    def run(alpha: Any, A: Any, B: Any, beta: Any, C: Any, out: Any) -> torch.Tensor:
        written(A, B, C)
        return C  # type: ignore[no-any-return]

    return run


_MAX_AUTOTUNE = "max-autotune-no-cudagraphs"


def _tunableop(operands: Operands, alpha: float, beta: float) -> Run:
    """torch's own operators while TunableOp is on; it tunes at the first call."""
    tunable = torch.cuda.tunable

    def run(*call: Any) -> torch.Tensor:
        tunable.enable(True)
        try:
            return plain_addmm(*call)
        finally:
            tunable.enable(False)

    return run


def _no_tunableop(problem: Problem, device: Device) -> list[str]:
    if not device.has_cuda:
        return [f"runs on cuda, not on {device.type}"]
    if "rocm" not in device.features:
        # aten/src/ATen/cuda/tunable/TunableGemm.h registers the others under USE_ROCM.
        return ["on CUDA builds torch gives TunableOp nothing but its own product to choose from"]
    return []


def _nvmath(operands: Operands, alpha: float, beta: float) -> Run:
    """cuBLASLt through nvmath-python, its candidates timed by its own ``autotune``."""
    from nvmath.linalg.advanced import Matmul

    in_place = operands.in_place
    product = Matmul(
        operands.A, operands.B, c=operands.C, alpha=alpha,
        beta=None if operands.C is None else beta, options={"inplace": in_place},
        stream=torch.cuda.current_stream(),
    )  # fmt: skip
    kept = operands.C.clone() if operands.C is not None and in_place else None
    product.plan(stream=torch.cuda.current_stream())
    product.autotune(stream=torch.cuda.current_stream())
    if kept is not None and operands.C is not None:
        operands.C.copy_(kept)  # it was updated over and over

    def run(alpha: Any, A: Any, B: Any, beta: Any, C: Any, out: Any) -> torch.Tensor:
        stream = torch.cuda.current_stream()
        product.reset_operands_unchecked(a=A, b=B, c=C, stream=stream)
        # A workspace kept from another stream would be waited for, which no capture allows.
        return product.execute(release_workspace=True, stream=stream)  # type: ignore[no-any-return]

    return run


def _quack(operands: Operands, alpha: float, beta: float) -> Run:
    """quack's own entry points, which time all their configurations at the first call."""
    from quack.gemm_interface import gemm, gemm_add, gemm_add_inplace

    def run(alpha: Any, A: Any, B: Any, beta: Any, C: Any, out: Any) -> torch.Tensor:
        if C is None:
            return gemm(A, B, alpha=float(alpha))  # type: ignore[no-any-return]
        if not operands.in_place:
            return gemm_add(A, B, C, alpha=float(alpha), beta=float(beta))  # type: ignore[no-any-return]
        gemm_add_inplace(A, B, C, alpha=float(alpha), beta=float(beta))
        return C  # type: ignore[no-any-return]

    return run


def _needs(package: str) -> Callable[[Problem, Device], list[str]]:
    """Reasons of a peer that is a package for GPUs."""

    def reasons(problem: Problem, device: Device) -> list[str]:
        if not device.has_cuda:
            return [f"runs on cuda, not on {device.type}"]
        if not device.has_package(package):
            return [f"needs the package {package!r}, which is not installed"]
        return []

    return reasons


def _no_nvmath(problem: Problem, device: Device) -> list[str]:
    reasons = _needs("nvmath")(problem, device)
    if not reasons and problem.update == "bias":  # it reads memory behind one
        reasons = ["takes no bias for a C: it would read a whole matrix"]
    return reasons


def _no_quack(problem: Problem, device: Device) -> list[str]:
    reasons = _needs("quack")(problem, device)
    if not reasons and not problem.is_half:
        reasons = ["computes 16-bit types"]
    return reasons


def _torch(operands: Operands, alpha: float, beta: float) -> Run:
    """What a user writes: ``torch.addmm``, with torch's settings as they are."""
    return plain_addmm


PEERS: tuple[Peer, ...] = (
    Peer("torch", _torch),
    Peer("inductor", _inductor),
    Peer("tunableop", _tunableop, _no_tunableop),
    Peer("nvmath", _nvmath, _no_nvmath),
    Peer("quack", _quack, _no_quack),
)
