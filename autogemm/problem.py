"""One call, reduced to the hashable facts that a choice may depend on.

``Problem`` is what tuning tables are keyed by and what strategies judge.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch.autograd import forward_ad

from autogemm.aliasing import same_view

Update = Literal["none", "add", "bias", "inplace"]

DTYPES: dict[str, torch.dtype] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
    "complex64": torch.complex64,
    "complex128": torch.complex128,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
LAYOUTS = ("row", "col", "row-unaligned", "col-unaligned", "strided")
UPDATES: tuple[Update, ...] = ("none", "add", "bias", "inplace")

ALIGNMENT_BYTES = 16
"""Vector loads, TMA and cuBLAS's fast kernels need 16-byte pointers, strides and extents."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """The facts of α·A·B + β·C that a choice may depend on.

    ``batch`` matrices of these extents are multiplied pairwise; 1 is a single product.
    ``a``, ``b`` and ``out`` are layouts: ``row`` or ``col`` (major), with the suffix
    ``-unaligned`` where a pointer, leading dimension or contiguous extent is not a
    multiple of 16 bytes (GPU only), or ``strided``. ``update`` says what becomes of C:
    ``none`` (β = 0), ``add`` (a new tensor), ``bias`` (``add`` of one expanded row) or
    ``inplace`` (the result replaces C).
    In a batch the layouts are those of each matrix, and ``bias`` is one row for all of them.
    """

    m: int
    n: int
    k: int
    dtype: torch.dtype
    a: str = "row"
    b: str = "row"
    out: str = "row"
    update: Update = "add"
    device_type: str = "cuda"
    batch: int = 1

    @property
    def flops(self) -> float:
        """Floating-point operations of all products: 2·m·n·k each, four times that if complex."""
        return 2.0 * self.batch * self.m * self.n * self.k * (4 if self.dtype.is_complex else 1)

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return self.dtype.itemsize

    @property
    def min_bytes(self) -> float:
        """Bytes that must move at least: A, B and the result once, C once unless β = 0."""
        result = self.batch * self.m * self.n
        c_elements = {"none": 0, "bias": self.n}.get(self.update, result)
        elements = self.batch * (self.m * self.k + self.k * self.n) + result + c_elements
        return float(elements * self.itemsize)

    @property
    def is_half(self) -> bool:
        """Whether the elements have 16 bits."""
        return self.dtype in (torch.float16, torch.bfloat16)

    def __str__(self) -> str:
        layouts = f"{self.a} x {self.b} -> {self.out}"
        times = f"{self.batch}x " if self.batch > 1 else ""
        size = f"{times}{self.m}x{self.n}x{self.k}"
        return f"{DTYPE_NAMES[self.dtype]} {size} ({layouts}, {self.update})"


def contiguous_problem(
    m: int,
    n: int,
    k: int,
    dtype: torch.dtype,
    *,
    a: str = "row",
    b: str = "row",
    update: Update = "add",
    device_type: str = "cuda",
    batch: int = 1,
) -> Problem:
    """The problem that freshly allocated operands form; ``a`` and ``b`` are ``row`` or ``col``."""

    def layout(order: str, rows: int, cols: int) -> str:
        # Rows that are multiples of 16 bytes make the matrices of a batch such, too.
        strides = (max(cols, 1), 1) if order == "row" else (1, max(rows, 1))
        return _layout((rows, cols), strides, 0, dtype.itemsize, device_type)

    return Problem(
        m=m,
        n=n,
        k=k,
        dtype=dtype,
        a=layout(a, m, k),
        b=layout(b, k, n),
        out=layout("row", m, n),
        update=update,
        device_type=device_type,
        batch=batch,
    )


def problem_of(
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor | None,
    out: torch.Tensor | None,
    beta_is_zero: bool,
) -> Problem:
    """The problem that checked operands form.

    They are matrices; or, all of them, batches of more than one matrix with one leading
    dimension, (batch, m, k) and so on, which may be expanded.
    """
    assert A.ndim == 2 or (A.ndim == B.ndim == 3 and A.shape[0] > 1), (A.shape, B.shape)
    device_type = A.device.type
    (*batch, m, k), n = A.shape, B.shape[-1]
    update: Update
    if beta_is_zero or C is None:
        update = "none"
    elif out is not None and same_view(out, C):
        update = "inplace"
    elif m > 1 and not any(C.stride()[:-1]):
        update = "bias"
    else:
        update = "add"
    base = contiguous_problem(
        m, n, k, A.dtype, update=update, device_type=device_type, batch=math.prod(batch)
    )
    return replace(
        base,
        a=layout_of(A),
        b=layout_of(B),
        out=base.out if out is None else layout_of(out),
    )


def result_shape(A: torch.Tensor, B: torch.Tensor) -> tuple[int, ...]:
    """The shape of A·B: (m, n), after the leading dimensions of A or, if it has none, of B."""
    return (*(A.shape[:-2] or B.shape[:-2]), A.shape[-2], B.shape[-1])


_transform_level = torch._C._functorch.maybe_current_level
_forward_mode_is_on = torch._C._is_fwd_grad_enabled
_grad_is_on = torch.is_grad_enabled


def is_watched(A: torch.Tensor, B: torch.Tensor, C: torch.Tensor | None) -> bool:
    """Whether autograd, forward mode or a ``torch.func`` transform follows a call on these."""
    return (
        _transform_level() is not None
        or (forward_ad._current_level >= 0 and _forward_mode_is_on())
        or (
            (A.requires_grad or B.requires_grad or (C is not None and C.requires_grad))
            and _grad_is_on()
        )
    )


def transforms_are_active() -> bool:
    """Whether forward mode or a ``torch.func`` transform is at work."""
    return _transform_level() is not None or (
        forward_ad._current_level >= 0 and _forward_mode_is_on()
    )


def layout_of(x: torch.Tensor) -> str:
    """The layout word of a matrix, or of each matrix of a batch, as ``Problem`` uses it."""
    try:
        pointer = x.data_ptr() if x.device.type == "cuda" else 0
    except RuntimeError:  # a tensor inside torch.func's transforms has none
        pointer = 0
    return _layout(tuple(x.shape), x.stride(), pointer, x.element_size(), x.device.type)


def _layout(
    shape: tuple[int, ...], strides: tuple[int, ...], pointer: int, itemsize: int, device_type: str
) -> str:
    *_, rows, cols = shape
    *batch_strides, row_stride, col_stride = strides
    for stride in batch_strides:
        pointer |= stride * itemsize  # the matrices begin at multiples of it
    if cols == 1 and (row_stride >= 1 or rows == 1):
        col_stride = 1  # a stride over a single element means nothing
    if rows == 1 and (col_stride >= 1 or cols == 1):
        row_stride = max(row_stride, cols)
    if col_stride == 1 and (row_stride >= cols or rows == 1):
        order, leading, extent = "row", row_stride, cols
    elif row_stride == 1 and (col_stride >= rows or cols == 1):
        order, leading, extent = "col", col_stride, rows
    else:
        return "strided"
    if device_type != "cuda":
        return order
    unaligned = (pointer | (leading * itemsize) | (extent * itemsize)) % ALIGNMENT_BYTES
    return f"{order}-unaligned" if unaligned else order
