"""``override``: torch's own products, as a program calls them, through ``gemm`` where it wins."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from autogemm.functional import in_shape, product, routed_linear
from autogemm.nn.attention import attend, rebound
from autogemm.routing import PLAIN, Operands

_NUMBERS = (int, float)


class override(TorchFunctionMode, contextlib.ContextDecorator):
    """Within it, matrix products that Python code asks torch for are computed by autogemm.

    A context manager and a decorator, for the calling thread. It covers ``mm``, ``addmm``,
    ``matmul``, ``bmm`` and ``baddbmm`` as functions, methods and operators, their in-place and
    ``out=`` forms, ``torch.nn.functional.linear`` and ``multi_head_attention_forward``. A call
    for which tuning found nothing faster, at the accuracy torch's settings ask for, stays
    torch's own, bit for bit; and so does every call that ``gemm`` would not serve just as torch
    does. Products inside ``torch.compile`` stay the compiler's, those of our layers aside.

    Example::

        with autogemm.override():
            loss = model(batch).loss
            loss.backward()
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_compiling():
            return func(*args, **kwargs)
        if PLAIN.issuperset(types):
            if func in _BACKWARDS:
                with self:  # a backward pass runs Python, too: what checkpointing repeats
                    return _BACKWARDS[func](*args, **kwargs)
            route = _ROUTES.get(func)
            result = None if route is None else route(*args, **kwargs)
            if result is not None:
                return result
        return func(*args, **kwargs)


def _unasked(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of torch without its question to modes, which would only lead here again."""
    return rebound(function, has_torch_function=lambda tensors: False)


def _tensor_backward(
    tensor: torch.Tensor,
    gradient: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    inputs: Any = None,
) -> None:
    _BACKWARDS[torch.autograd.backward](
        tensor, gradient, retain_graph, create_graph, inputs=inputs
    )


_BACKWARDS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.autograd.backward: _unasked(torch.autograd.backward),
    torch.autograd.grad: _unasked(torch.autograd.grad),
    torch.Tensor.backward: _tensor_backward,
}


# ------------------------------------------------------- gemm's operands in those of each call


def _mm_form(x: torch.Tensor, y: torch.Tensor, z: None) -> Operands | None:
    return (x, y, None) if x.ndim == y.ndim == 2 else None


def _addmm_form(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> Operands | None:
    if not x.ndim == y.ndim == 2 or z.ndim not in (1, 2):
        return None
    return x, y, z.expand(x.shape[0], y.shape[1])


def _matmul_form(x: torch.Tensor, y: torch.Tensor, z: None) -> Operands | None:
    if y.ndim == 2 and x.ndim >= 2:
        return (x if x.ndim == 2 else x.view(-1, x.shape[-1])), y, None
    if x.ndim == y.ndim >= 3 and x.shape[:-2] == y.shape[:-2]:
        return x.view(-1, *x.shape[-2:]), y.view(-1, *y.shape[-2:]), None
    return None


def _bmm_form(x: torch.Tensor, y: torch.Tensor, z: None) -> Operands | None:
    return (x, y, None) if x.ndim == y.ndim == 3 else None


def _baddbmm_form(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> Operands | None:
    if not x.ndim == y.ndim == 3 or z.ndim > 3:
        return None
    return x, y, z.expand(x.shape[0], x.shape[1], y.shape[2])


# -------------------------------------------------------------- the calls, by torch's signatures
# Each takes any arguments torch might be given, and returns None for those torch should judge.


def _multiplied(form: Callable[..., Operands | None]) -> Callable[..., Any]:
    """``mm`` and ``bmm``."""

    def multiplied(
        input: Any = None, mat2: Any = None, *more: Any, out: Any = None, **other: Any
    ) -> Any:
        return None if more or other else product(form, 1.0, input, mat2, 0.0, None, out)

    return multiplied


def _matmul(input: Any = None, other: Any = None, *more: Any, out: Any = None, **rest: Any) -> Any:
    if more or rest:
        return None
    result = product(_matmul_form, 1.0, input, other, 0.0, None, out)
    if result is None or out is not None:
        return result
    return in_shape(result, (*input.shape[:-1], other.shape[-1]), as_view=False)


def _linear(
    input: Any = None, weight: Any = None, bias: Any = None, *more: Any, **other: Any
) -> Any:
    return None if more or other else routed_linear(input, weight, bias)


def _added(form: Callable[..., Operands | None], in_place: bool = False) -> Callable[..., Any]:
    """``addmm`` and ``baddbmm``; calls that name their operands stay torch's."""

    def added(
        input: Any = None,
        x: Any = None,
        y: Any = None,
        *more: Any,
        beta: Any = 1,
        alpha: Any = 1,
        out: Any = None,
        **other: Any,
    ) -> Any:
        if more or other or alpha.__class__ not in _NUMBERS or beta.__class__ not in _NUMBERS:
            return None
        if alpha == 0 or input is None:
            return None
        if in_place:
            out = input
        return product(form, alpha, x, y, beta, input, out)

    return added


_mm, _bmm = _multiplied(_mm_form), _multiplied(_bmm_form)
_addmm, _addmm_ = _added(_addmm_form), _added(_addmm_form, in_place=True)
_baddbmm, _baddbmm_ = _added(_baddbmm_form), _added(_baddbmm_form, in_place=True)

_ROUTES: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.mm: _mm,
    torch.Tensor.mm: _mm,
    torch.matmul: _matmul,
    torch.linalg.matmul: _matmul,
    torch.Tensor.matmul: _matmul,
    torch.Tensor.__matmul__: _matmul,
    torch.bmm: _bmm,
    torch.Tensor.bmm: _bmm,
    torch.addmm: _addmm,
    torch.Tensor.addmm: _addmm,
    torch.Tensor.addmm_: _addmm_,
    torch.baddbmm: _baddbmm,
    torch.Tensor.baddbmm: _baddbmm,
    torch.Tensor.baddbmm_: _baddbmm_,
    F.linear: _linear,
    F.multi_head_attention_forward: attend,
}
