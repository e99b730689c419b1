"""Whether a product that torch was asked for is worth handing to ``gemm``.

It is where the plan of the product, or of a product of its backward, is something other than
the baseline. All else stays torch's own call, bit for bit. Every layer of a model asks at every
call, so answers are remembered: a known one costs a look-up.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable
from dataclasses import replace

import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from autogemm import autocasting, dispatch
from autogemm import precision as precisions
from autogemm.batching import reduced
from autogemm.database.lookup import evidence_for
from autogemm.device import device_of
from autogemm.problem import DTYPE_NAMES, Problem, contiguous_problem, problem_of
from autogemm.strategies import baseline

Operands = tuple[torch.Tensor, torch.Tensor, "torch.Tensor | None"]
"""A, B and C as ``gemm`` takes them; C is None where the product has none."""

Form = Callable[..., "Operands | None"]
"""What turns a torch function's operands into gemm's by views alone; None where none will do."""

_MAX_VERDICTS = 4096
_verdicts: dict[Hashable, bool] = {}

PLAIN = frozenset({torch.Tensor, torch.nn.Parameter})
"""The types that do not answer torch's calls themselves, as subclasses may."""

_TURNED = {"row": "col", "col": "row"}
_cpu_state = functools.partial(precisions.fp32_setting, "mkldnn", "matmul")
_grad_enabled = torch.is_grad_enabled
_autocast_is_on = autocasting.is_on


def wins(
    form: Form,
    x: torch.Tensor,
    y: torch.Tensor,
    z: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    beta_is_zero: bool = False,
) -> bool:
    """Whether ``gemm`` on ``form(x, y, z)`` should replace torch's own call on x, y and z.

    No for all that ``gemm`` does not serve just as torch would: other types and devices, mixed
    ones, tensor subclasses, sparse and lazily conjugated tensors, operands the form refuses;
    and for calls that a ``torch.func`` transform, forward-mode AD, a tracer or a dispatch mode
    follows. Under ``torch.autocast`` the answer is that for the operands as it casts them.
    """
    try:
        if (
            x.__class__ not in PLAIN
            or y.__class__ not in PLAIN
            or (z is not None and z.__class__ not in PLAIN)
            or (out is not None and out.__class__ not in PLAIN)
        ):
            return False
        dtype = autocasting.dtype_for(x) if _autocast_is_on() else None
        # The whole cost of a call that torch goes on to serve is this tuple and one look-up.
        key = (
            form, beta_is_zero, _grad_enabled(),
            x.shape, x.stride(), x.dtype, x.device, x.requires_grad,
            y.shape, y.stride(), y.dtype, y.device, y.requires_grad,
            None if z is None else (z.shape, z.stride(), z.dtype, z.device, z.requires_grad),
            None if out is None else (
                out is z, out.shape, out.stride(), out.dtype, out.device, out.requires_grad
            ),
            dtype,
            _cuda_state(dtype or x.dtype, x, y, out) if x.is_cuda else _cpu_state(),
        )  # fmt: skip
    except RuntimeError:  # sparse and nested tensors have no strides
        return False
    verdict = _verdicts.get(key)
    if verdict is None:
        if _is_followed():
            return False
        verdict = _judge(form, x, y, z, out, beta_is_zero, dtype)
        if len(_verdicts) >= _MAX_VERDICTS:
            _verdicts.clear()  # rare, and cheap to refill
        _verdicts[key] = verdict
    return verdict and not _is_followed() and all(map(_stands_for_itself, (x, y, z, out)))


def forget() -> None:
    """Ask the tables anew from here on; ``reload_tables`` calls it."""
    _verdicts.clear()


def _cuda_state(
    dtype: torch.dtype, x: torch.Tensor, y: torch.Tensor, out: torch.Tensor | None
) -> Hashable:
    """torch's settings for products of ``dtype`` and what else a plan for a GPU depends on."""
    return (
        precisions.raw_cuda_state(dtype),
        x.data_ptr() & 15,
        y.data_ptr() & 15,
        0 if out is None else out.data_ptr() & 15,
        torch.cuda.is_current_stream_capturing(),
    )


def _is_followed() -> bool:
    """Whether something follows torch's calls that would not follow gemm's just as well."""
    return (
        torch._C._functorch.maybe_current_level() is not None
        or forward_ad._current_level >= 0
        or (torch._C._len_torch_dispatch_stack() > 0 and not _modes_take_any_product())
        or torch._C._get_tracing_state() is not None
    )


def _modes_take_any_product() -> bool:
    """Whether all dispatch modes know autogemm's products, as a recording does."""
    return all(
        getattr(mode, "takes_any_product", False) for mode in _get_current_dispatch_mode_stack()
    )


def _stands_for_itself(x: torch.Tensor | None) -> bool:
    """Whether the elements are those in memory: not conjugated or negated on reading, not void."""
    return x is None or not (x.is_conj() or x.is_neg() or x._is_zerotensor())


def _judge(
    form: Form,
    x: torch.Tensor,
    y: torch.Tensor,
    z: torch.Tensor | None,
    out: torch.Tensor | None,
    beta_is_zero: bool,
    dtype: torch.dtype | None,
) -> bool:
    if dtype is not None:
        if out is not None:
            return False  # torch does not cast for out= and updates in place
        x, y, z = autocasting.cast_all(x, y, z)
    try:
        operands = form(x, y, z)
    except (RuntimeError, IndexError):  # shapes that do not fit, strides no view can have
        return False
    if operands is None:
        return False
    A, B, C = operands
    if not _can_be_served(A, B, C, out):
        return False
    with precisions.settled():
        forward = problem_of(*reduced(A, B, C, out), beta_is_zero)
        products = [forward]
        if _grad_enabled() and A.requires_grad:
            products.append(_gradient_of_a(forward))
        if _grad_enabled() and B.requires_grad:
            products.append(_gradient_of_b(forward))
        return any(_is_tuned(product, A.device) for product in products)


def wins_traced(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype
) -> bool:
    """``wins`` for a linear layer that a compiler traces, by the sizes it traces it with.

    Tensors have neither values nor addresses then, and are taken to be laid out as fresh ones.
    """
    sizes = [_size(s) for s in (*x.shape[:-1], *weight.shape)]
    if None in sizes or 0 in sizes or weight.ndim != 2 or x.ndim < 2:
        return False
    if dtype not in DTYPE_NAMES or x.device.type not in ("cpu", "cuda"):
        return False
    *rows, n, k = [int(s) for s in sizes if s is not None]
    forward = contiguous_problem(
        math.prod(rows),
        n,
        k,
        dtype,
        b="col",
        update="none" if bias is None else "bias",
        device_type=x.device.type,
    )
    followed = [_gradient_of_a(forward)] if x.requires_grad else []
    followed += [_gradient_of_b(forward)] if weight.requires_grad else []
    products = [forward, *followed] if _grad_enabled() else [forward]
    return any(_is_tuned(product, x.device) for product in products)


def _size(extent: int | torch.SymInt) -> int | None:
    """A size, or that of the example a symbol was traced with."""
    return extent if isinstance(extent, int) else extent.node.hint


def _can_be_served(
    A: torch.Tensor, B: torch.Tensor, C: torch.Tensor | None, out: torch.Tensor | None
) -> bool:
    given = [t for t in (A, B, C, out) if t is not None]
    shape = (*A.shape[:-1], B.shape[-1])
    return (
        A.dtype in DTYPE_NAMES
        and A.device.type in ("cpu", "cuda")
        and all(
            t.dtype == A.dtype and t.device == A.device and t.layout is torch.strided
            for t in given
        )
        and A.shape[-1] == B.shape[-2]
        and all(t is None or t.shape == shape for t in (C, out))
        and 0 not in (*shape, A.shape[-1])
        # torch refuses these in words of its own.
        and (out is None or not (_grad_enabled() and any(t.requires_grad for t in given)))
    )


def _gradient_of_a(forward: Problem) -> Problem:
    """The product G·Bᵀ, for a row-major gradient G of the result."""
    return _backward(forward, m=forward.m, n=forward.k, k=forward.n, b=_turned(forward.b))


def _gradient_of_b(forward: Problem) -> Problem:
    """The product Aᵀ·G."""
    return _backward(forward, m=forward.k, n=forward.n, k=forward.m, a=_turned(forward.a))


def _backward(
    forward: Problem, *, m: int, n: int, k: int, a: str | None = None, b: str | None = None
) -> Problem:
    fresh = contiguous_problem(m, n, k, forward.dtype, device_type=forward.device_type)
    return replace(
        forward, m=m, n=n, k=k, a=a or fresh.a, b=b or fresh.b, out=fresh.out, update="none"
    )


def _turned(layout: str) -> str:
    order, *rest = layout.split("-")
    return "-".join((_TURNED.get(order, order), *rest))


def _is_tuned(problem: Problem, device: torch.device) -> bool:
    state = precisions.current_state(problem.dtype, problem.device_type)
    tolerance = precisions.resolve(None, problem.dtype, state)
    captured = problem.device_type == "cuda" and torch.cuda.is_current_stream_capturing()
    here = device_of(device)
    mode = "graph" if captured else "eager"
    plan = dispatch.plan(problem, tolerance, here, mode, evidence_for(here))
    return plan.candidate != baseline(problem, tolerance.level)
