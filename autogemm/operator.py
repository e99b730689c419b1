"""``torch.ops.autogemm.gemm``: the product as torch's tracers, modes and exporters see it.

Eager calls do not pass through it, for a Python operator costs the host several times what
``gemm`` does. Its kernels are ``gemm`` itself, handed in by ``api.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from autogemm import precision as precisions
from autogemm import problem as problems
from autogemm.autograd import Product, batched, gradients
from autogemm.errors import InvalidProblem
from autogemm.problem import DTYPE_NAMES

_OPERANDS = "Scalar alpha, Tensor A, Tensor B, Scalar beta, Tensor? C"
_PRECISION = "str? level=None, float? budget=None"

# Level and budget are None where torch's settings decide, at the time the operator runs.
torch.library.define(
    "autogemm::gemm", f"({_OPERANDS}, {_PRECISION}) -> Tensor", tags=torch.Tag.pt2_compliant_tag
)
# Writes out; with β ≠ 0 and no C, out is C as well.
torch.library.define(
    "autogemm::gemm_out",
    f"({_OPERANDS}, Tensor(a!) out, {_PRECISION}) -> ()",
    tags=torch.Tag.pt2_compliant_tag,
)


def implement(product: Product) -> None:
    """Make ``product`` (``gemm``) what the operators run on every device."""

    @torch.library.impl("autogemm::gemm", ("CPU", "CUDA"))
    def run(
        alpha: Any, A: Any, B: Any, beta: Any, C: Any, level: Any = None, budget: Any = None
    ) -> torch.Tensor:
        with _below():
            return product(alpha, A, B, beta, C, precision=_joined(level, budget))

    @torch.library.impl("autogemm::gemm_out", ("CPU", "CUDA"))
    def run_out(
        alpha: Any, A: Any, B: Any, beta: Any, C: Any, out: Any, level: Any = None,
        budget: Any = None,
    ) -> None:  # fmt: skip
        C = out if C is None and beta != 0 else C
        with _below():
            product(alpha, A, B, beta, C, out=out, precision=_joined(level, budget))


@contextmanager
def _below() -> Iterator[None]:
    """Autograd and the classes of operands have been dealt with when a kernel is reached."""
    with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
        yield


def call(
    alpha: Any, A: Any, B: Any, beta: Any = 0.0, C: Any = None, out: Any = None, *,
    precision: str | float | None = None,
) -> torch.Tensor:  # fmt: skip
    """``gemm`` by the operator; the arguments are taken as checked."""
    named = isinstance(precision, str)
    level, budget = (precision, None) if named else (None, precision)
    if out is None:
        result: torch.Tensor = torch.ops.autogemm.gemm(alpha, A, B, beta, C, level, budget)
        return result
    if C is out:
        C = None
    torch.ops.autogemm.gemm_out(alpha, A, B, beta, C, out, level, budget)
    return out  # type: ignore[no-any-return]


def traced(
    alpha: Any, A: Any, B: Any, beta: Any, C: Any, precision: Any, out: Any
) -> torch.Tensor:
    """``gemm`` under ``torch.compile`` and ``torch.export``: checks, casts, one operator."""
    dtype = A.dtype if isinstance(A, torch.Tensor) and A.dtype in DTYPE_NAMES else torch.float64
    alpha = problems.as_scalar("alpha", alpha, dtype)
    beta = problems.as_scalar("beta", beta, dtype)
    if precision is None and out is None:
        A, B, C = autocast(A, B, C)
    problems.check_operands(A, B, C, None, beta_is_zero=C is None and beta == 0)
    if precision is not None:
        precisions.stated(precision)
    if out is not None:
        problems.check_traced_out(out, A, B, C)
    return call(alpha, A, B, beta, C, out, precision=precision)


def autocast(*operands: Any) -> tuple[Any, ...]:
    """The operands as ``torch.autocast``, where it is on, has ``torch.addmm`` see them."""
    device_type = operands[0].device.type if isinstance(operands[0], torch.Tensor) else None
    if device_type not in ("cpu", "cuda") or not torch.is_autocast_enabled(device_type):
        return operands
    dtype = torch.get_autocast_dtype(device_type)

    def cast(x: Any) -> Any:
        eligible = (
            isinstance(x, torch.Tensor)
            and x.device.type == device_type
            and x.is_floating_point()
            and x.dtype != torch.float64
        )
        if not eligible or x.dtype == dtype:
            return x
        if x.ndim == 2 and x.stride(0) == 0 and x.shape[0] > 1:  # a bias stays one row
            return x[:1].to(dtype).expand(x.shape)
        return x.to(dtype)

    return tuple(map(cast, operands))


def _joined(level: str | None, budget: float | None) -> str | float | None:
    if level is not None and budget is not None:
        raise InvalidProblem(
            f"level is {level!r} and budget is {budget}; expected one of them. Pass the other as "
            "None."
        )
    return budget if level is None else level


def _product(
    alpha: Any, A: Any, B: Any, beta: Any = 0.0, C: Any = None, *, precision: Any
) -> torch.Tensor:
    return call(alpha, A, B, beta, C, precision=precision)


# ------------------------------------------------------------- shapes, derivatives, vmap


def _shape(
    alpha: Any, A: Any, B: Any, beta: Any, C: Any, level: Any = None, budget: Any = None
) -> torch.Tensor:
    return A.new_empty(problems.result_shape(A, B))  # type: ignore[no-any-return]


def _nothing(
    alpha: Any, A: Any, B: Any, beta: Any, C: Any, out: Any, level: Any = None, budget: Any = None
) -> None:
    return None


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    alpha, A, B, beta, _, level, budget = inputs
    _, needs_A, needs_B, *_ = ctx.needs_input_grad
    ctx.save_for_backward(A if needs_B else None, B if needs_A else None)
    ctx.facts = alpha, beta, (A.ndim, B.ndim), _joined(level, budget)


def _backward(ctx: Any, G: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    A, B = ctx.saved_tensors
    alpha, beta, ranks, precision = ctx.facts
    _, needs_A, needs_B, _, needs_C, *_ = ctx.needs_input_grad
    found = gradients(
        _product, (needs_A, needs_B, needs_C), G, alpha, A, B, beta, ranks, precision
    )
    return None, found[0], found[1], None, found[2], None, None


def _mapped(info: Any, in_dims: Any, *inputs: Any) -> tuple[torch.Tensor, int]:
    return batched(torch.ops.autogemm.gemm, info.batch_size, in_dims, inputs), 0


torch.library.register_fake("autogemm::gemm", _shape)
torch.library.register_fake("autogemm::gemm_out", _nothing)
torch.library.register_autograd("autogemm::gemm", _backward, setup_context=_keep)
torch.library.register_vmap("autogemm::gemm", _mapped)
