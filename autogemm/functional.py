"""``linear``: what torch.nn.functional.linear computes, through ``gemm`` where that wins."""

from __future__ import annotations

import functools
import math

import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import _disable_current_modes

from autogemm import autocasting, operator, routing
from autogemm.api import gemm
from autogemm.errors import InvalidProblem
from autogemm.routing import Form, Operands

_modes_are_on = torch._C._is_torch_function_mode_enabled


def linear(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    precision: str | float | None = None,
) -> torch.Tensor:
    """Return input·weightᵀ + bias, as ``torch.nn.functional.linear`` does.

    Args:
        input: (..., in_features).
        weight: (out_features, in_features).
        bias: (out_features,) or None.
        precision: None leaves torch's own call in place, bit for bit, wherever tuning found
            nothing faster at the accuracy torch's settings ask for, and for all that ``gemm``
            does not serve. Anything else is ``gemm``'s ``precision`` and always goes there;
            ``torch.autocast`` then narrows nothing.

    Returns:
        A tensor of shape (..., out_features). Under ``torch.autocast`` input, weight and bias
        are cast first, as torch casts them.

    Raises:
        InvalidProblem: ``precision`` is given and ``gemm`` cannot serve the operands.
        RuntimeError: torch's own, for operands that do not fit.
    """
    if precision is not None:
        return _linear_at(precision, input, weight, bias)
    result = routed_linear(input, weight, bias)
    return F.linear(input, weight, bias) if result is None else result


def routed_linear(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor | None:
    """``linear`` by ``gemm``, or None where torch's own call should run."""
    if torch.compiler.is_compiling():
        if operator.traces_transforms():
            return None  # an operator has no forward mode
        traced: torch.Tensor = torch.ops.autogemm.linear(input, weight, bias)
        return traced
    if _modes_are_on():  # they are asked for every tensor's shape and strides, too
        with torch._C.DisableTorchFunction():
            return routed_linear(input, weight, bias)
    result = product(_linear_form, 1.0, input, weight, 1.0, bias)
    if result is None:
        return None
    shape = (*input.shape[:-1], weight.shape[0])
    return in_shape(result, shape, as_view=bias is not None and _biased_is_view())


@functools.lru_cache(maxsize=1)
def _biased_is_view() -> bool:
    """Whether torch's own result for 3-D input and a bias is a view: so until 2.14, not since."""
    with _disable_current_modes():  # a recording is not to see this
        samples = (torch.zeros(shape, device="cpu") for shape in ((1, 1, 1), (1, 1), (1,)))
        return F.linear(*samples)._is_view()


torch.library.define("autogemm::linear", "(Tensor input, Tensor weight, Tensor? bias) -> Tensor")


@torch.library.impl("autogemm::linear", "CompositeImplicitAutograd")
def _traced_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """What a compiled ``linear`` becomes: torch's own, which compilers fuse, or our operator."""
    if not routing.wins_traced(x, weight, bias, autocasting.dtype_for(x) or x.dtype):
        return F.linear(x, weight, bias)
    x, weight, bias = autocasting.cast_all(x, weight, bias)
    C = None if bias is None else bias.expand(*x.shape[:-1], weight.shape[0])
    return operator.call(1.0, x, weight.t(), 0.0 if bias is None else 1.0, C)


def _linear_form(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> Operands | None:
    """F.linear's operands as A, B and C."""
    if weight.ndim != 2 or x.ndim < 2 or (bias is not None and bias.shape != weight.shape[:1]):
        return None
    A = x if x.ndim == 2 else x.view(-1, x.shape[-1])
    return A, weight.t(), None if bias is None else bias.expand(A.shape[0], weight.shape[0])


def product(
    form: Form,
    alpha: float,
    x: torch.Tensor,
    y: torch.Tensor,
    beta: float,
    z: torch.Tensor | None,
    out: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """α·A·B + β·C of ``form(x, y, z)`` by ``gemm``, or None where torch's own call should run."""
    if not routing.wins(form, x, y, z, out, beta == 0):
        return None
    operands = form(*autocasting.cast_all(x, y, z))
    assert operands is not None  # or it would not win
    A, B, C = operands
    try:
        return gemm(alpha, A, B, 0.0 if C is None else beta, C, out=out)
    except InvalidProblem:  # raised before anything runs: torch has its own words for it
        return None


def in_shape(result: torch.Tensor, shape: tuple[int, ...], as_view: bool) -> torch.Tensor:
    """The result with its leading dimensions back; a view exactly where torch's is one."""
    if result.shape == shape:
        return result
    if as_view:
        return result.view(shape)
    unsafe: torch.Tensor = torch.ops.aten._unsafe_view.default(result, shape)
    return unsafe


def _linear_at(
    precision: str | float,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    if autocasting.dtype_for(x) is not None:
        # A stated precision is a promise: the activations that autocast made narrow are widened,
        # the weights never narrowed.
        wide = torch.promote_types(x.dtype, weight.dtype)
        x, weight = x.to(wide), weight.to(wide)
        bias = None if bias is None else bias.to(wide)
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    C = None if bias is None else bias.expand(rows.shape[0], weight.shape[0])
    beta = 0.0 if bias is None else 1.0
    result = gemm(1.0, rows, weight.t(), beta, C, precision=precision)
    return result.view(*x.shape[:-1], weight.shape[0])
