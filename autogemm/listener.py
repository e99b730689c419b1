"""Finds the matrix products among all that torch dispatches, and says what each one is.

A dispatch mode sees what is left after autograd and autocast: products in the type they are
computed in, backward ones included, for autograd's threads take the caller's modes along.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass_type

from autogemm import precision
from autogemm.aliasing import same_view
from autogemm.batching import reduced
from autogemm.problem import DTYPE_NAMES, Problem, problem_of, result_shape


class Facts(NamedTuple):
    """What tells one kind of product from another; ``Product`` explains each."""

    problem: Problem
    level: str
    mode: str
    by: str


Run = Callable[[Callable[[], Any], Callable[[str], Facts], torch.device], Any]

_OPERANDS = {
    "aten::mm": ("self", "mat2", None),
    "aten::bmm": ("self", "mat2", None),
    "aten::addmm": ("mat1", "mat2", "self"),
    "aten::addmm_": ("mat1", "mat2", "self"),
    "aten::_addmm_activation": ("mat1", "mat2", "self"),
    "aten::baddbmm": ("batch1", "batch2", "self"),
    "aten::baddbmm_": ("batch1", "batch2", "self"),
    "autogemm::gemm": ("A", "B", "C"),
    "autogemm::gemm_out": ("A", "B", "C"),
}
"""Operators that compute a product, and what their schemas call A, B and C."""


class Listener(TorchDispatchMode):
    """Passes every operator on, products through ``run(call, facts, device)``.

    ``call()`` computes the product. ``facts(mode)``, asked once that has succeeded, says what
    it was.
    """

    takes_any_product = True  # autogemm's own, where routing may choose between it and torch's
    supports_higher_order_operators = True  # they run as ever; torch refuses them otherwise

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run
        self._known: dict[Hashable, Facts] = {}

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Have compiled functions run compiled; what they call of torch's products is seen."""
        return True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if types:
            # A wrapper takes itself apart, and its parts come by here; others know no such way.
            wrapped = all(map(is_traceable_wrapper_subclass_type, types))
            return NotImplemented if wrapped else func(*args, **kwargs)
        names = _names_of(func)
        if names is None:
            if _is_composed(func):  # seen whole in inference mode, where autograd takes none apart
                with self:
                    return func._op_dk(_COMPOSED, *args, **kwargs)
            return func(*args, **kwargs)
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        a, b, c = _OPERANDS[func._schema.name]
        A, B, C = given[a], given[b], None if c is None else given.get(c)
        if not _is_recorded(A, B) or "out_dtype" in given:
            return func(*args, **kwargs)
        out = C if func._schema.name.endswith("_") else given.get("out")
        if func._schema.name == "autogemm::gemm_out" and C is None and given["beta"] != 0:
            C = out  # the operator's words for an update in place
        return self._run(
            lambda: func(*args, **kwargs),
            lambda mode: self._facts(func, A, B, C, out, given, mode),
            A.device,
        )

    def _facts(
        self,
        func: Any,
        A: torch.Tensor,
        B: torch.Tensor,
        C: torch.Tensor | None,
        out: torch.Tensor | None,
        given: Mapping[str, Any],
        mode: str,
    ) -> Facts:
        """The facts, looked up where all they follow from was seen before: a tenth of the time."""
        inplace = out is not None and C is not None and same_view(out, C)
        key = (
            func, mode, given.get("beta", 1) == 0, given.get("level"), given.get("budget"), inplace,
            A.dtype, A.device.type, *(_seen(x) for x in (A, B, C, out)),
            precision.raw_cuda_state(A.dtype) if A.is_cuda else _cpu_setting(),
        )  # fmt: skip
        facts = self._known.get(key)
        if facts is None:
            if len(self._known) >= _MANY:
                self._known.clear()
            facts = self._known[key] = _facts_of(A, B, C, out, given, mode, func.namespace)
        return facts


_MANY = 4096
_cpu_setting = functools.partial(precision.fp32_setting, "mkldnn", "matmul")


def _seen(x: torch.Tensor | None) -> Hashable:
    """What a layout follows from."""
    return None if x is None else (x.shape, x.stride(), x.data_ptr() & 15 if x.is_cuda else 0)


@functools.lru_cache(maxsize=4096)
def _names_of(func: Any) -> tuple[str, ...] | None:
    """The names of a product's arguments, None of another operator."""
    if not isinstance(func, torch._ops.OpOverload) or func._schema.name not in _OPERANDS:
        return None
    return tuple(argument.name for argument in func._schema.arguments)


_COMPOSED = torch._C.DispatchKey.CompositeImplicitAutograd


@functools.lru_cache(maxsize=4096)
def _is_composed(func: Any) -> bool:
    """Whether an operator is made of others on the devices recorded."""
    if not isinstance(func, torch._ops.OpOverload):
        return False
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    name = func.name()
    return has(name, _COMPOSED) and not (has(name, "CPU") or has(name, "CUDA"))


def _is_recorded(A: torch.Tensor, B: torch.Tensor) -> bool:
    """Whether a table could have an entry for this product."""
    return (
        A.device.type in ("cpu", "cuda")
        and A.dtype in DTYPE_NAMES
        and B.dtype == A.dtype
        and A.layout is B.layout is torch.strided
        and not (A.is_nested or B.is_nested)
        and A.numel() > 0
        and B.numel() > 0
    )


def _facts_of(
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor | None,
    out: torch.Tensor | None,
    given: Mapping[str, Any],
    mode: str,
    namespace: str,
) -> Facts:
    if C is not None:
        C = C.expand(result_shape(A, B))
    beta = given.get("beta", 1)
    problem = problem_of(*reduced(A, B, C, out), bool(beta == 0))
    asked = given.get("level") or given.get("budget")
    state = precision.current_state(A.dtype, A.device.type)
    level = precision.resolve(asked, A.dtype, state).level
    by = "autogemm" if namespace == "autogemm" else "torch"
    return Facts(problem, level, mode, by)
