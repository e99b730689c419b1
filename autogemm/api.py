"""``gemm``, ``gemm_`` and ``explain``: check the call, find its plan, run it.

The path of one call: ``gemm`` looks its facts up in a dictionary of warm calls; on a miss
``_plan_call`` checks the operands (``problem``), reads the level (``precision``), asks
``dispatch`` for a plan and binds it; the bound function runs.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from autogemm import dispatch, routing
from autogemm import precision as precisions
from autogemm import problem as problems
from autogemm.database.lookup import evidence_for, forget_evidence
from autogemm.device import device_of
from autogemm.dispatch import Plan
from autogemm.errors import InvalidProblem
from autogemm.problem import DTYPE_NAMES
from autogemm.strategies import BY_NAME, Candidate, Run

Scalar = complex | float | torch.Tensor

_MAX_WARM_CALLS = 4096
_warm: dict[Hashable, tuple[Run, tuple[int, int, int, int], bool]] = {}

_is_compiling = torch.compiler.is_compiling
_grad_enabled = torch.is_grad_enabled
_modes_are_on = torch._C._is_torch_function_mode_enabled
_autocast_is_on = getattr(torch._C, "_is_any_autocast_enabled", torch.is_autocast_enabled)
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
        A: (m, k), of float16, bfloat16, float32, float64, complex64 or complex128, any strides.
        B: (k, n), of A's dtype and device.
        beta: like ``alpha``. Where it is 0, C is not read (a NaN in it does not spread).
        C: (m, n), of A's dtype and device; may be None where β = 0, and may be an expanded row
            or column, as a bias is.
        precision: ``"highest"``, ``"high"`` or ``"medium"``; or a number ε, an error budget:
            every element's error is at most ε·(|α||A||B| + |β||C|); or None, to follow what
            torch was told (``torch.backends.cuda.matmul.fp32_precision`` and its like).
        out: (m, n), receives the result; may be C itself, and must not otherwise share memory
            with an operand.

    Returns:
        A new row-major (m, n) tensor, or ``out``.

    Raises:
        InvalidProblem: the operands do not form a product; raised before anything runs.
        NoStrategy: no strategy can promise so tight a budget.

    The accuracy promised is derived in ``docs/accuracy.md``. BLAS level 3 (xGEMM) is the
    source of the corner cases: k = 0 gives β·C, m = 0 or n = 0 an empty result.
    """
    if _is_compiling():
        return _composed(alpha, A, B, beta, C, precision, out)
    if _modes_are_on():  # torch.overrides' modes, ours among them, are not meant for our products
        with torch._C.DisableTorchFunction():
            return gemm(alpha, A, B, beta, C, precision=precision, out=out)
    key: Hashable = None
    try:
        if alpha.__class__ is int:
            alpha = float(alpha)  # torch takes no integer beyond 64 bits
        if beta.__class__ is int:
            beta = float(beta)
        # The whole cost of a warm call beyond torch's own is this tuple and one look-up.
        key = (
            A.shape, A.stride(), A.dtype, A.is_cpu, B.shape, B.stride(), B.dtype, B.is_cpu,
            alpha.__class__, beta.__class__, alpha == 0, beta == 0, precision, precision.__class__,
            None if C is None else (C.shape, C.stride(), C.dtype, C.is_cpu),
            None if out is None else (
                C is out, out.shape, out.stride(), out.dtype, out.is_cpu, out.requires_grad,
                problems.is_watched(A, B, C),
            ),
            _autocast_is_on(),
            _settings(A, B, C, out) if _cuda_is_built else _cpu_state(),
        )  # fmt: skip
        run, spans, is_torchs_own = _warm[key]
        if not is_torchs_own and problems.is_watched(A, B, C):
            run, spans, is_torchs_own = _warm[(key, "watched")]
    except (KeyError, AttributeError, TypeError, RuntimeError, OverflowError):
        return _cold(alpha, A, B, beta, C, precision, out, key)
    if out is not None and _touches(out, A, B, C, spans):
        problems.check_out(out, A, B, C)
        if C is not None and C is not out and problems.same_view(out, C):
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


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a call would run and why; prints as a report."""

    plan: Plan | None
    corner: str | None
    device: str
    tables: tuple[str, ...]
    rejected: tuple[tuple[Candidate, str], ...]

    @property
    def strategy(self) -> str:
        """The strategy's name; ``scale`` where nothing is multiplied (α = 0, k = 0, empty)."""
        return "scale" if self.plan is None else self.plan.candidate.strategy

    @property
    def parameters(self) -> dict[str, Any]:
        """The strategy's parameters."""
        return {} if self.plan is None else self.plan.candidate.kwargs

    @property
    def source(self) -> str:
        """``exact``, ``near``, ``model``, ``default``, or ``corner``: nothing is multiplied."""
        return "corner" if self.plan is None else self.plan.source

    def __str__(self) -> str:
        plan = self.plan
        if plan is None:
            return f"autogemm: nothing to multiply: {self.corner}"
        lines = [
            f"problem   {plan.problem}",
            f"device    {self.device}",
            f"precision {plan.tolerance} (from {plan.tolerance.source})",
            f"runs      {plan.candidate}, {plan.mode}",
            f"chosen by {plan.source}: {plan.detail}",
        ]
        if plan.expected_us is not None:
            ratio = f", {plan.expected_ratio:.2f}x addmm" if plan.expected_ratio else ""
            lines.append(f"expect    {plan.expected_us:.4g} us{ratio}")
        if plan.expected_error is not None:
            lines.append(f"error     R = {plan.expected_error:.3g} measured, in units of u*G")
        lines += [f"tables    {', '.join(self.tables) or 'none'}"]
        if plan.passed_over or self.rejected:
            lines.append("rejected")
            lines += _in_short(dict.fromkeys((*plan.passed_over, *self.rejected)))
        return "\n".join(lines)


_LINES_EACH = 5
"""What one strategy may take up in a printed explanation; a large space would fill pages."""


def _in_short(rejected: Iterable[tuple[Candidate, str]]) -> list[str]:
    """A line a candidate, or one for all candidates of a strategy that share a reason."""
    reasons: dict[str, dict[str, list[Candidate]]] = {}
    for candidate, reason in rejected:
        reasons.setdefault(candidate.strategy, {}).setdefault(reason, []).append(candidate)
    lines = []
    for strategy, groups in reasons.items():
        for reason, candidates in list(groups.items())[:_LINES_EACH]:
            many = len(candidates) > 1
            name = f"{strategy} ({len(candidates)} candidates)" if many else candidates[0]
            lines.append(f"  {name}: {reason}")
        left = sum(map(len, list(groups.values())[_LINES_EACH:]))
        if left:
            lines.append(f"  {strategy}: {left} more")
    return lines


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
    alpha, beta = _check(alpha, A, B, beta, C, precision, out)
    device = device_of(A.device)
    evidence = evidence_for(device)
    corner = _corner(alpha, A, B)
    if corner is not None:
        return Explanation(None, corner, str(device), evidence.sources, ())
    plan = _plan(A, B, beta, C, precision, out, problems.is_watched(A, B, C))
    others = dispatch.rejected(plan.problem, plan.tolerance, device, plan.candidate)
    others += evidence.losers(plan.problem, plan.tolerance, plan.mode, plan.candidate)
    return Explanation(plan, None, str(device), evidence.sources, tuple(others))


def reload_tables() -> None:
    """Read the tuning tables anew: for a process that runs on while a tuner writes them."""
    forget_evidence()
    _warm.clear()
    routing.forget()


# ----------------------------------------------------------------------------- cold calls


def _check(
    alpha: Any, A: Any, B: Any, beta: Any, C: Any, precision: Any, out: Any
) -> tuple[complex | float, complex | float]:
    dtype = getattr(A, "dtype", torch.float32)
    known = dtype if dtype in DTYPE_NAMES else torch.complex128
    alpha = problems.as_scalar("alpha", alpha, known)
    beta = problems.as_scalar("beta", beta, known)
    problems.check_operands(A, B, C, out, beta_is_zero=beta == 0)
    precisions.resolve(precision, A.dtype, precisions.current_state(A.dtype, A.device.type))
    return alpha, beta


def _cold(
    alpha: Any, A: Any, B: Any, beta: Any, C: Any, precision: Any, out: Any, key: Hashable
) -> torch.Tensor:
    """The first call of its kind: check everything, plan, bind, remember, run."""
    by_number = alpha.__class__ in _numbers and beta.__class__ in _numbers
    alpha, beta = _check(alpha, A, B, beta, C, precision, out)
    if any(x is not None and x.is_cuda and x.is_neg() for x in (A, B, C, out)):
        # Kernels of our own would read the stored elements, not their negatives.
        result = gemm(
            alpha, A.resolve_neg(), B.resolve_neg(), beta, None if C is None else C.resolve_neg(),
            precision=precision,
        )  # fmt: skip
        return result if out is None else out.copy_(result)
    if out is not None and C is not None and C is not out and problems.same_view(out, C):
        return gemm(alpha, A, B, beta, out, precision=precision, out=out)
    if _corner(alpha, A, B) is not None:
        return _scale(alpha, A, B, beta, C, out)
    with precisions.settled():
        # A key taken while another thread held a switch names settings nobody asked for.
        if not by_number or key is None or key[-1] != _settings(A, B, C, out):  # type: ignore[index]
            key = None
        run = _remember(key, A, B, beta, C, precision, out, watched=False)
        if problems.is_watched(A, B, C):
            run = _remember((key, "watched"), A, B, beta, C, precision, out, watched=True)
    return run(alpha, A, B, beta, C, out)


def _remember(
    key: Hashable, A: Any, B: Any, beta: Any, C: Any, precision: Any, out: Any, *, watched: bool
) -> Run:
    """Plan and bind a call; keep the result for warm calls unless ``key`` is None."""
    plan = _plan(A, B, beta, C, precision, out, watched)
    run = plan.bind(device_of(A.device))
    if C is not None and beta == 0:
        run = _without_c(run)
    if _autocast_is_on() and torch.is_autocast_enabled(A.device.type):
        run = _without_autocast(run, A.device.type)
    if key is not None and key != (None, "watched"):
        if len(_warm) >= _MAX_WARM_CALLS:
            _warm.clear()  # rare, cheap to refill, and no bookkeeping on every call
        # torch's own operator serves alike whether autograd watches or not.
        is_torchs_own = BY_NAME[plan.candidate.strategy].differentiable
        _warm[key] = (run, (_span(A), _span(B), _span(C), _span(out)), is_torchs_own)
    return run


def _plan(
    A: torch.Tensor,
    B: torch.Tensor,
    beta: complex | float,
    C: torch.Tensor | None,
    precision: Any,
    out: torch.Tensor | None,
    watched: bool,
) -> Plan:
    device_type = A.device.type
    state = precisions.current_state(A.dtype, device_type)
    tolerance = precisions.resolve(precision, A.dtype, state)
    problem = problems.problem_of(A, B, C, out, beta == 0)
    problem = dataclasses.replace(problem, needs_grad=watched)
    captured = device_type == "cuda" and torch.cuda.is_current_stream_capturing()
    device = device_of(A.device)
    mode = "graph" if captured else "eager"
    return dispatch.plan(problem, tolerance, device, mode, evidence_for(device))


def _corner(alpha: complex | float, A: torch.Tensor, B: torch.Tensor) -> str | None:
    """Why nothing is multiplied, or None."""
    (m, k), n = A.shape, B.shape[1]
    if m == 0 or n == 0:
        return f"the result is empty ({m} x {n})"
    if k == 0:
        return "k = 0, so the result is beta*C"
    if alpha == 0:
        return "alpha = 0, so the result is beta*C and A and B are not read"
    return None


def _scale(
    alpha: complex | float,
    A: torch.Tensor,
    B: torch.Tensor,
    beta: complex | float,
    C: torch.Tensor | None,
    out: torch.Tensor | None,
) -> torch.Tensor:
    """β·C, where there is nothing to multiply."""
    if out is None and _grad_enabled() and (A.requires_grad or B.requires_grad):
        nothing = torch.mm(A[:, :0], B[:0])  # zeros that reach A and B by autograd, unread
        return nothing if beta == 0 or C is None else torch.add(nothing, C, alpha=beta)
    if beta == 0 or C is None:
        return A.new_zeros(A.shape[0], B.shape[1]) if out is None else out.zero_()
    if out is None:
        return (C * beta).contiguous()
    return torch.mul(C, beta, out=out)


def _without_c(run: Run) -> Run:
    return lambda alpha, A, B, beta, C, out: run(alpha, A, B, 0.0, None, out)


def _without_autocast(run: Run, device_type: str) -> Run:
    """The operands' type decides, not autocast's: the accuracy asked for is a promise."""

    def uncast(
        alpha: complex | float,
        A: torch.Tensor,
        B: torch.Tensor,
        beta: complex | float,
        C: torch.Tensor | None,
        out: torch.Tensor | None,
    ) -> torch.Tensor:
        with torch.autocast(device_type, enabled=False):
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


def _span(x: torch.Tensor | None) -> int:
    """Bytes from a tensor's first element to behind its last."""
    if x is None or x.numel() == 0:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return (last + 1) * x.element_size()


def _touches(
    out: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor | None,
    spans: tuple[int, int, int, int],
) -> bool:
    """Whether the address range of ``out`` meets an operand's (``out`` being C does not count)."""
    a_span, b_span, c_span, out_span = spans
    start = out.data_ptr()
    end = start + out_span
    a, b = A.data_ptr(), B.data_ptr()
    if (a < end and start < a + a_span) or (b < end and start < b + b_span):
        return True
    if C is None or C is out:
        return False
    c = C.data_ptr()
    return c < end and start < c + c_span


def _composed(
    alpha: Any, A: Any, B: Any, beta: Any, C: Any, precision: Any, out: Any
) -> torch.Tensor:
    """What ``torch.compile`` traces: torch's own product, at torch's own precision setting."""
    dtype = A.dtype if isinstance(A, torch.Tensor) and A.dtype in DTYPE_NAMES else torch.float64
    alpha = problems.as_scalar("alpha", alpha, dtype)
    beta = problems.as_scalar("beta", beta, dtype)
    problems.check_operands(A, B, C, None, beta_is_zero=beta == 0)
    if precision is not None or out is not None:
        raise InvalidProblem(
            "precision= and out= cannot be used inside torch.compile; leave them away, and set "
            "torch.backends.cuda.matmul.fp32_precision for the accuracy you need."
        )
    (m, k), n = A.shape, B.shape[1]
    if m == 0 or n == 0 or k == 0 or alpha == 0:
        return _scale(alpha, A, B, beta, C, None)
    if beta == 0:
        return torch.addmm(A.new_zeros(1), A, B, beta=0, alpha=alpha)
    return torch.addmm(C, A, B, beta=beta, alpha=alpha)
