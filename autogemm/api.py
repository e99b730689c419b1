"""``gemm``, ``gemm_`` and ``explain``: check the call, find its plan, run it.

The path of one call: ``gemm`` looks its facts up in a dictionary of warm calls; on a miss
``_cold`` checks the operands (``problem``), reads the level (``precision``), asks ``dispatch``
for a plan and binds it; the bound function runs. Calls that autograd watches go through
``autograd``, traced ones through ``operator``; both come back here for every product.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Hashable
from typing import Any

import torch
from torch.overrides import has_torch_function

from autogemm import arguments, autocasting, batching, dispatch, routing
from autogemm import operator as operators
from autogemm import precision as precisions
from autogemm import problem as problems
from autogemm.aliasing import bytes_spanned, same_view, touches
from autogemm.autograd import differentiable
from autogemm.corners import TINY, check_scale, corner, in_wider_type, is_below_range, scale
from autogemm.database.lookup import evidence_for, forget_evidence
from autogemm.device import device_of
from autogemm.dispatch import Audit, Plan
from autogemm.explanation import Explanation
from autogemm.problem import DTYPE_NAMES
from autogemm.strategies import Run

Scalar = complex | float | torch.Tensor

_MAX_WARM_CALLS = 4096
_warm: dict[Hashable, tuple[Run, tuple[int, int, int, int]]] = {}
_audit: Audit | None = None

_is_compiling = torch.compiler.is_compiling
_function_mode_is_on = torch._C._is_torch_function_mode_enabled
_dispatch_modes = torch._C._len_torch_dispatch_stack
_is_watched = problems.is_watched
_grad_is_on = torch.is_grad_enabled
_plain_classes = (torch.Tensor, torch.nn.Parameter)
_plain_dispatch = torch._C._disabled_torch_dispatch_impl
_autocast_is_on = autocasting.is_on
_cpu_state = functools.partial(precisions.fp32_setting, "mkldnn", "matmul")
_cuda_is_built = torch.backends.cuda.is_built()
_numbers = (float, complex)


def gemm(
    alpha: Scalar,
    A: torch.Tensor,
    B: torch.Tensor,
    beta: Scalar = 0.0,
    C: torch.Tensor | None = None,
    *,
    precision: str | float | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return α·A·B + β·C, computed the fastest way known here that keeps the accuracy asked for.

    Args:
        alpha: a number, or a 0-d CPU tensor; complex only with complex operands. Where it is
            0, A and B are not read.
        A: (m, k), of float16, bfloat16, float32, float64, complex64 or complex128, any strides;
            or a batch of such matrices, (..., m, k).
        B: (k, n), of A's dtype and device; or a batch, (..., k, n). Leading dimensions are those
            of A, or one of both has none and serves every matrix of the other.
        beta: like ``alpha``. Where it is 0, C is not read (a NaN in it does not spread).
        C: (..., m, n), of A's dtype and device; may be None where β = 0, and may be expanded, as
            a bias is.
        precision: ``"highest"``, ``"high"`` or ``"medium"``; or a number ε, an error budget:
            every element's error is at most ε·(|α||A||B| + |β||C|); or None, to follow what
            torch was told (``torch.backends.cuda.matmul.fp32_precision`` and its like, and
            ``torch.autocast``, which casts the operands unless ``out`` is given).
        out: (..., m, n), receives the result; may be C itself, and must not otherwise share
            memory with an operand. Not where an operand requires grad.

    Returns:
        A new row-major (..., m, n) tensor, or ``out``. Differentiable in A, B and C, to any
        order, by products of the same precision; α and β are constants.

    Raises:
        InvalidProblem: the operands do not form a product; raised before anything runs.
        NoStrategy: no strategy can promise so tight a budget.

    The accuracy promised is derived in ``docs/accuracy.md``. BLAS level 3 (xGEMM) is the
    source of the corner cases: k = 0 gives β·C, m = 0 or n = 0 an empty result.
    """
    if _is_compiling():
        return operators.traced(alpha, A, B, beta, C, precision, out)
    if _function_mode_is_on():
        return _unseen_by_function_modes(alpha, A, B, beta, C, precision, out)
    key: Hashable = None
    try:
        if alpha.__class__ is int:
            alpha = float(alpha)  # torch takes no integer beyond 64 bits
        if beta.__class__ is int:
            beta = float(beta)
        dtype = A.dtype
        # The whole cost of a warm call beyond torch's own is this tuple and one look-up.
        key = (
            A.shape, A.stride(), dtype, A.is_cpu, A.__class__,
            B.shape, B.stride(), B.dtype is dtype, B.is_cpu, B.__class__,
            alpha.__class__, beta.__class__,
            abs(alpha) < TINY and (alpha == 0 or None), abs(beta) < TINY and (beta == 0 or None),
            alpha == alpha,
            precision, precision.__class__,
            None if C is None else (
                C.shape, C.stride(), C.dtype is dtype, C.is_cpu, C.__class__
            ),
            None if out is None else (
                C is out, out.shape, out.stride(), out.dtype is dtype, out.is_cpu,
                out.__class__, out.requires_grad and _grad_is_on(),
            ),
            _is_watched(A, B, C),
            _dispatch_modes(),
            _autocast_is_on() and autocasting.state(),
            _settings(A, B, C, out) if _cuda_is_built else _cpu_state(),
        )  # fmt: skip
        run, spans = _warm[key]
    except (KeyError, AttributeError, TypeError, ValueError, RuntimeError, OverflowError):
        return _cold(alpha, A, B, beta, C, precision, out, key)
    if out is not None and touches(out, A, B, C, spans):
        arguments.check_out(out, A, B, C)
        if C is not None and C is not out and same_view(out, C):
            return gemm(alpha, A, B, beta, out, precision=precision, out=out)
    try:
        return run(alpha, A, B, beta, C, out)  # type: ignore[arg-type]  # numbers, says the key
    except (RuntimeError, OverflowError):
        # The key leaves out what torch checks before it writes; our words say more.
        _check(alpha, A, B, beta, C, precision, out)
        raise


def gemm_(
    alpha: Scalar,
    A: torch.Tensor,
    B: torch.Tensor,
    beta: Scalar,
    C: torch.Tensor,
    *,
    precision: str | float | None = None,
) -> torch.Tensor:
    """Update C in place to α·A·B + β·C and return it: ``gemm(..., out=C)``, BLAS's own form."""
    return gemm(alpha, A, B, beta, C, precision=precision, out=C)


def explain(
    alpha: Scalar,
    A: torch.Tensor,
    B: torch.Tensor,
    beta: Scalar = 0.0,
    C: torch.Tensor | None = None,
    *,
    precision: str | float | None = None,
    out: torch.Tensor | None = None,
) -> Explanation:
    """Say what ``gemm`` with these arguments would run and why; runs and writes nothing.

    Takes ``gemm``'s arguments and raises its errors. ``print`` the result, or read its
    ``strategy``, ``parameters``, ``source`` and ``plan``.
    """
    if precision is None and out is None:
        A, B, C = autocasting.cast_all(A, B, C)
    alpha, beta = _check(alpha, A, B, beta, C, precision, out)
    device = device_of(A.device)
    evidence = evidence_for(device)
    nothing = corner(alpha, A, B)
    if nothing is not None:
        check_scale(beta, A.dtype, _tolerance(precision, A))
        return Explanation(None, nothing, str(device), evidence.sources, ())
    plan = plan_for(A, B, beta, C, precision, out)
    others = dispatch.rejected(plan.problem, plan.tolerance, device, plan.candidate)
    others += evidence.losers(plan.problem, plan.tolerance, plan.mode, plan.candidate)
    return Explanation(plan, None, str(device), evidence.sources, tuple(others))


def plan_for(
    A: torch.Tensor,
    B: torch.Tensor,
    beta: complex | float,
    C: torch.Tensor | None,
    precision: Any,
    out: torch.Tensor | None,
) -> Plan:
    """The plan of a call whose arguments are checked and whose α is not 0."""
    device = device_of(A.device)
    tolerance = _tolerance(precision, A)
    # What is not read has no say in how a batch is laid out: a run does without it, too.
    A, B, C, out = batching.reduced(A, B, None if beta == 0 else C, out)
    problem = problems.problem_of(A, B, C, out, beta == 0)
    captured = A.is_cuda and torch.cuda.is_current_stream_capturing()
    mode = "graph" if captured else "eager"
    # Strategies may ask a library what it has for the current GPU.
    with torch.cuda.device(A.device) if A.is_cuda else contextlib.nullcontext():
        return dispatch.plan(problem, tolerance, device, mode, evidence_for(device))


def reload_tables() -> None:
    """Read the tuning tables anew: for a process that runs on while a tuner writes them."""
    forget_evidence()
    _warm.clear()
    routing.forget()


def bind_anew(audit: Audit | None) -> None:
    """Forget the warm calls; what is bound from now on runs as ``audit`` wraps it, if given."""
    global _audit
    _audit = audit
    _warm.clear()
    routing.forget()  # what an audit demoted may have been why a product was handed to gemm


# ----------------------------------------------------------------------------- cold calls


def _check(
    alpha: Any, A: Any, B: Any, beta: Any, C: Any, precision: Any, out: Any
) -> tuple[complex | float, complex | float]:
    dtype = getattr(A, "dtype", torch.float32)
    known = dtype if dtype in DTYPE_NAMES else torch.complex128
    alpha = arguments.as_scalar("alpha", alpha, known)
    beta = arguments.as_scalar("beta", beta, known)
    observed = _is_observed(A, B, C, out)  # what has no memory of its own has no address either
    arguments.check_operands(A, B, C, None if observed else out, beta_is_zero=beta == 0)
    if observed and out is not None:
        arguments.check_traced_out(out, A, B, C)
    if precision is not None:
        precisions.stated(precision)
    return alpha, beta


def _cold(
    alpha: Any, A: Any, B: Any, beta: Any, C: Any, precision: Any, out: Any, key: Hashable
) -> torch.Tensor:
    """The first call of its kind: check everything, bind, remember, run."""
    by_number = alpha.__class__ in _numbers and beta.__class__ in _numbers
    if precision is None and out is None and _autocast_is_on():
        cast = autocasting.cast_all(A, B, C)
        if any(x is not y for x, y in zip(cast, (A, B, C), strict=True)):
            result = gemm(alpha, cast[0], cast[1], beta, cast[2])
            if by_number and key is not None:
                _remember(key, _cast_first, A, B, C, out)
            return result
    alpha, beta = _check(alpha, A, B, beta, C, precision, out)
    if torch._C._get_tracing_state() is not None:  # torch.jit.trace
        return operators.call(alpha, A, B, beta, C, out, precision=precision)
    if not by_number:  # a number is as good, and has a place among the warm calls
        return gemm(alpha, A, B, beta, C, precision=precision, out=out)
    if alpha != alpha:
        # MKL takes a NaN for 0 in small products, and may leave them unwritten (torch 2.13).
        return gemm(1.0, A * alpha, B, beta, C, precision=precision, out=out)
    if is_below_range(alpha, A.dtype) or is_below_range(beta, A.dtype):
        result = in_wider_type(gemm, alpha, A, B, beta, C, precision)
        return result if out is None else out.copy_(result)
    if _is_observed(A, B, C, out) and not _is_watched(A, B, C):
        return operators.call(alpha, A, B, beta, C, out, precision=precision)
    if any(x is not None and x.is_cuda and x.is_neg() for x in (A, B, C, out)):
        # Kernels of our own would read the stored elements, not their negatives.
        result = gemm(
            alpha, A.resolve_neg(), B.resolve_neg(), beta, None if C is None else C.resolve_neg(),
            precision=precision,
        )  # fmt: skip
        return result if out is None else out.copy_(result)
    if out is not None and C is not None and C is not out and same_view(out, C):
        return gemm(alpha, A, B, beta, out, precision=precision, out=out)
    if not _is_watched(A, B, C) and corner(alpha, A, B) is not None:
        check_scale(beta, A.dtype, _tolerance(precision, A))
        return scale(alpha, A, B, beta, C, out)
    with precisions.settled():
        run = _bound(A, B, beta, C, precision, out)
        # A key taken while another thread held a switch names settings nobody asked for.
        if key is not None and key[-1] == _settings(A, B, C, out):  # type: ignore[index]
            _remember(key, run, A, B, C, out)
    return run(alpha, A, B, beta, C, out)


def _remember(
    key: Hashable,
    run: Run,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor | None,
    out: torch.Tensor | None,
) -> None:
    """Keep what runs a call for all calls with its key."""
    if len(_warm) >= _MAX_WARM_CALLS:
        _warm.clear()  # rare, cheap to refill, and no bookkeeping on every call
    with contextlib.suppress(TypeError):  # a compiler's symbol in a shape has no hash
        spans = bytes_spanned(A), bytes_spanned(B), bytes_spanned(C), bytes_spanned(out)
        _warm[key] = (run, spans)


def _cast_first(
    alpha: complex | float,
    A: torch.Tensor,
    B: torch.Tensor,
    beta: complex | float,
    C: torch.Tensor | None,
    out: torch.Tensor | None,
) -> torch.Tensor:
    A, B, C = autocasting.cast_all(A, B, C)
    return gemm(alpha, A, B, beta, C)


def _bound(
    A: torch.Tensor,
    B: torch.Tensor,
    beta: complex | float,
    C: torch.Tensor | None,
    precision: Any,
    out: torch.Tensor | None,
) -> Run:
    """What runs a checked call, and every later call with the same key."""
    if problems.is_watched(A, B, C):
        # The level is settled now: the backward products keep it, whatever torch is told later.
        argument = _tolerance(precision, A).argument
        return lambda alpha, A, B, beta, C, out: _followed(alpha, A, B, beta, C, argument)
    run = plan_for(A, B, beta, C, precision, out).bind(device_of(A.device), _audit)
    if A.ndim > 2 or B.ndim > 2:
        run = batching.unreduced(run, A, B, None if beta == 0 else C, out)
    if C is not None and beta == 0:
        run = _without_c(run)
    if autocasting.dtype_for(A) is not None:
        run = _without_autocast(run)
    return run


def _is_observed(*operands: torch.Tensor | None) -> bool:
    """Whether a dispatch mode or a tensor's class has a say in what runs, or only looks on."""
    if _dispatch_modes() > 0:
        return True
    special = [x for x in operands if x is not None and x.__class__ not in _plain_classes]
    return has_torch_function(special) or any(
        getattr(x, "__torch_dispatch__", _plain_dispatch) is not _plain_dispatch for x in special
    )


def _tolerance(precision: Any, A: torch.Tensor) -> precisions.Tolerance:
    state = precisions.current_state(A.dtype, A.device.type)
    return precisions.resolve(precision, A.dtype, state)


def _unseen_by_function_modes(
    alpha: Any, A: Any, B: Any, beta: Any, C: Any, precision: Any, out: Any
) -> torch.Tensor:
    """``gemm`` where a ``TorchFunctionMode`` would see every look at an operand."""
    with torch._C.DisableTorchFunction():
        return gemm(alpha, A, B, beta, C, precision=precision, out=out)


def _without_c(run: Run) -> Run:
    return lambda alpha, A, B, beta, C, out: run(alpha, A, B, 0.0, None, out)


def _without_autocast(run: Run) -> Run:
    """The operands' type decides, not autocast's: the accuracy asked for is a promise."""

    def uncast(
        alpha: complex | float,
        A: torch.Tensor,
        B: torch.Tensor,
        beta: complex | float,
        C: torch.Tensor | None,
        out: torch.Tensor | None,
    ) -> torch.Tensor:
        with autocasting.disabled():
            return run(alpha, A, B, beta, C, out)

    return uncast


def _settings(
    A: torch.Tensor, B: torch.Tensor, C: torch.Tensor | None, out: torch.Tensor | None
) -> Hashable:
    """torch's settings and, on a GPU, all else a plan depends on that the tensors' shapes hide."""
    if not A.is_cuda:
        state: Hashable = _cpu_state()
        return state
    return (
        precisions.raw_cuda_state(A.dtype),
        A.is_neg() or B.is_neg() or (C is not None and C.is_neg()),
        out is not None and out.is_neg(),
        A.get_device(),
        B.get_device(),
        None if C is None else C.get_device(),
        None if out is None else out.get_device(),
        A.data_ptr() & 15,
        B.data_ptr() & 15,
        0 if out is None else out.data_ptr() & 15,
        torch.cuda.is_current_stream_capturing(),
    )


_followed = differentiable(gemm)
operators.implement(gemm)
