"""``torch.ops.autogemm.gemm``: the product as torch's tracers, modes and exporters see it.

Eager calls do not pass through it, for a Python operator costs the host several times what
``gemm`` does. Its kernels are ``gemm`` itself, handed in by ``api.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from autogemm import arguments, autocasting
from autogemm import precision as precisions
from autogemm import problem as problems
from autogemm.autograd import Product, batched, differentiable
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
            A, B, C = map(_plain, (A, B, C))
            return product(alpha, A, B, beta, C, precision=_joined(level, budget))

    @torch.library.impl("autogemm::gemm_out", ("CPU", "CUDA"))
    def run_out(
        alpha: Any, A: Any, B: Any, beta: Any, C: Any, out: Any, level: Any = None,
        budget: Any = None,
    ) -> None:  # fmt: skip
        A, B, C, out = map(_plain, (A, B, C, out))
        C = out if C is None and beta != 0 else C
        with _below():
            product(alpha, A, B, beta, C, out=out, precision=_joined(level, budget))


@contextmanager
def _below() -> Iterator[None]:
    """Autograd, autocast and modes have been dealt with when a kernel is reached."""
    with torch.no_grad(), autocasting.disabled(), _disable_current_modes():
        yield


def _plain(x: torch.Tensor | None) -> torch.Tensor | None:
    """The elements themselves; what a tensor's class has to say about products has been said."""
    if x is None or x.__class__ in (torch.Tensor, torch.nn.Parameter):
        return x
    with torch._C.DisableTorchFunctionSubclass():
        return x.as_subclass(torch.Tensor)


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
    alpha = arguments.as_scalar("alpha", alpha, dtype)
    beta = arguments.as_scalar("beta", beta, dtype)
    if precision is None and out is None:
        A, B, C = autocasting.cast_all(A, B, C)
    known = isinstance(beta, (int, float, complex))  # and not a compiler's symbol
    arguments.check_operands(A, B, C, None, beta_is_zero=C is None and (not known or beta == 0))
    if precision is not None:
        precisions.stated(precision)
    if out is not None:
        arguments.check_traced_out(out, A, B, C)
    elif traces_transforms():
        return _composed(alpha, A, B, beta, C, precision)
    return call(alpha, A, B, beta, C, out, precision=precision)


def traces_transforms() -> bool:
    """Whether a ``torch.func`` transform is traced around the call."""
    return bool(torch._C._are_functorch_transforms_active())


# As torch.compiler.assume_constant_result does, which would import the compiler here.
traces_transforms._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _composed(
    alpha: Any, A: torch.Tensor, B: torch.Tensor, beta: Any, C: torch.Tensor | None, precision: Any
) -> torch.Tensor:
    """torch's own product, for traced transforms: an operator has no forward mode in torch."""
    if precision is not None:
        raise InvalidProblem(
            "precision is given inside a torch.func transform that is compiled, where torch's own "
            "product runs, at torch's own setting. Leave precision away, or do not compile it."
        )
    known = isinstance(beta, (int, float, complex))
    unread = C is None or (known and beta == 0)
    if isinstance(alpha, (int, float, complex)) and alpha == 0:
        nothing = A.new_zeros(problems.result_shape(A, B))
        return nothing if unread else nothing + beta * C
    # Not addmm: vmap of it rounds 16 bits in between, and torch 2.13 crashes in some transforms.
    dtype = A.dtype
    wide = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    result: torch.Tensor = alpha * torch.matmul(A.to(wide), B.to(wide))
    if not unread:
        result = result + beta * C.to(wide)  # type: ignore[union-attr]
    return result.to(dtype)


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


def _mapped(info: Any, in_dims: Any, *inputs: Any) -> tuple[torch.Tensor, int]:
    return batched(torch.ops.autogemm.gemm, info.batch_size, in_dims, inputs), 0


torch.library.register_fake("autogemm::gemm", _shape)
torch.library.register_fake("autogemm::gemm_out", _nothing)
torch.library.register_vmap("autogemm::gemm", _mapped)


def _below_autograd(
    alpha: Any, A: Any, B: Any, beta: Any = 0.0, C: Any = None, *, precision: Any
) -> torch.Tensor:
    with torch._C._AutoDispatchBelowAutograd():
        return _product(alpha, A, B, beta, C, precision=precision)


_followed = differentiable(_product, _below_autograd)


@torch.library.impl("autogemm::gemm", "Autograd")
def _watched(
    alpha: Any, A: Any, B: Any, beta: Any, C: Any, level: Any = None, budget: Any = None
) -> torch.Tensor:
    if problems.is_watched(A, B, C):
        return _followed(alpha, A, B, beta, C, _joined(level, budget))
    return _below_autograd(alpha, A, B, beta, C, precision=_joined(level, budget))


def _refused(keys: Any, *inputs: Any) -> None:
    _, A, B, _, C, out, *_ = inputs
    arguments.refuse_grad(out, A, B, C)
    GEMM_OUT.redispatch(keys & torch._C._after_autograd_keyset, *inputs)


def _counted(keys: Any, *inputs: Any) -> None:
    """Writes like torch's own: what autograd has kept of ``out`` is known to be stale."""
    GEMM_OUT.redispatch(keys & torch._C._after_ADInplaceOrView_keyset, *inputs)
    torch.autograd.graph.increment_version(inputs[5])


GEMM_OUT = torch.ops.autogemm.gemm_out.default
_FRAGMENT = torch.library.Library("autogemm", "FRAGMENT")
_FRAGMENT.impl("gemm_out", _refused, "Autograd", with_keyset=True)
_FRAGMENT.impl("gemm_out", _counted, "ADInplaceOrView", with_keyset=True)
