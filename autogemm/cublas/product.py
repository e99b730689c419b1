"""What is multiplied, as cuBLASLt is told of it: how matrices are stored, and in which type.

cuBLASLt stores matrices column by column. A row-major result is computed transposed, Dᵀ = BᵀAᵀ,
which changes nothing but the order of the operands. Compute types are named for every product,
so none of torch's settings is read or changed. A batch is one product with a count and a step from
matrix to matrix of each operand.
"""

from __future__ import annotations

import ctypes
import functools
import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from autogemm.cublas.library import library
from autogemm.problem import ALIGNMENT_BYTES, Problem

# Values of cublasLt.h and library_types.h: (data type, compute type, type of alpha and beta).
TYPES = {
    torch.float16: (2, 68, 0),
    torch.bfloat16: (14, 68, 0),
    torch.float32: (0, 68, 0),
    torch.float64: (1, 70, 1),
    torch.complex64: (4, 68, 4),
    torch.complex128: (5, 70, 5),
}
_BIAS_EPILOGUE = 4
_BATCH_COUNT, _STRIDED_BATCH_OFFSET = 5, 6
"""Attributes of a layout (``cublasLtMatrixLayoutAttribute_t``)."""
_SOME_ADDRESS = ALIGNMENT_BYTES
"""What stands for the row where only its alignment counts."""


@dataclass(frozen=True, slots=True)
class Operand:
    """How a matrix of a problem is stored, or each matrix of a batch."""

    by_rows: bool
    rows: int
    cols: int
    lead: int
    """The leading dimension that is to be expected."""
    alignment: int
    """Bytes, up to 16, that the leading dimension and every address are multiples of.

    Steps between matrices that follow each other are then, too.
    """

    @property
    def stored_extents(self) -> tuple[int, int]:
        """Rows and columns of what lies in memory, column by column."""
        return (self.cols, self.rows) if self.by_rows else (self.rows, self.cols)

    @property
    def strides(self) -> tuple[int, int]:
        """The leading dimension and the step between matrices that are to be expected."""
        return self.lead, self.lead * self.stored_extents[1]

    def strides_of(self, x: torch.Tensor) -> tuple[int, int]:
        """Those of operands with this layout; the step is 0 where one matrix serves a batch."""
        step = x.stride(0) if x.ndim == 3 else 0
        if (self.rows if self.by_rows else self.cols) == 1:
            return self.lead, step  # the stride over a single row or column means nothing
        return x.stride(-2 if self.by_rows else -1), step

    def fits(self, x: torch.Tensor) -> bool:
        """Whether matrices are stored like this, but for their leading dimension."""
        extent, unit = (self.cols, -1) if self.by_rows else (self.rows, -2)
        return x.stride(unit) == 1 and self.strides_of(x)[0] >= extent and self.keeps_aligned(x)

    def keeps_aligned(self, x: torch.Tensor) -> bool:
        """Whether all rows (columns), and all matrices of a batch, are aligned if the first is."""
        return all(step * x.element_size() % self.alignment == 0 for step in self.strides_of(x))


def operands(problem: Problem) -> tuple[Operand, Operand, Operand]:
    """How A, B and the result are stored. None of them may be ``strided``."""
    m, n, k = problem.m, problem.n, problem.k
    shapes = ((problem.a, m, k), (problem.b, k, n), (problem.out, m, n))
    a, b, d = (_operand(layout, rows, cols, problem.itemsize) for layout, rows, cols in shapes)
    return a, b, d


def _operand(layout: str, rows: int, cols: int, itemsize: int) -> Operand:
    by_rows = layout.startswith("row")
    lead = cols if by_rows else rows
    if layout.endswith("-unaligned") and lead * itemsize % ALIGNMENT_BYTES == 0:
        lead += 1  # the extent is aligned, so the stride or the address is not
    alignment = math.gcd(lead * itemsize, ALIGNMENT_BYTES)
    return Operand(by_rows, rows, cols, lead, alignment)


class Product:
    """The descriptors of one product, freed with it. Immutable but for the row's address.

    ``strides`` are the leading dimensions and steps between matrices of A, B, C and the result.
    With ``one_row`` a row is added to every row of the product (cuBLASLt's bias epilogue) besides
    β·C.
    """

    def __init__(
        self, problem: Problem, strides: Sequence[tuple[int, int]], *, one_row: bool = False
    ) -> None:
        lib = self._lib = library()
        a, b, d = operands(problem)
        self.problem = problem
        data, compute, scale = TYPES[problem.dtype]
        self.descriptor = lib.matmul_desc_create(compute, scale)
        self._layouts = [
            lib.matrix_layout_create(data, *x.stored_extents, lead)
            for x, (lead, _) in zip((a, b, d, d), strides, strict=True)
        ]
        weakref.finalize(self, _free, lib, self.descriptor, tuple(self._layouts)).atexit = False
        if problem.batch > 1:
            for layout, (_, step) in zip(self._layouts, strides, strict=True):
                _set_batch(lib, layout, problem.batch, step)
        self.swapped = d.by_rows
        for attribute, x in zip((3, 4), self.in_order(a, b), strict=True):  # transposed or not
            self._set(attribute, ctypes.c_int32(x.by_rows != d.by_rows))
        if one_row:
            self._set(7, ctypes.c_uint32(_BIAS_EPILOGUE))
            self.add_row(_SOME_ADDRESS)

    def in_order(self, a: Any, b: Any) -> tuple[Any, Any]:
        """What belongs to A and to B, in the order in which cuBLASLt multiplies them."""
        return (b, a) if self.swapped else (a, b)

    @property
    def layouts(self) -> tuple[int, int, int, int]:
        """The layouts of both factors, in that order, of C and of the result."""
        a, b, c, d = self._layouts
        return (*self.in_order(a, b), c, d)

    def add_row(self, address: int) -> None:
        """Set the address of the row: for one thread at a time."""
        self._set(8, ctypes.c_void_p(address))

    def _set(self, attribute: int, value: Any) -> None:
        self._lib.matmul_desc_set_attribute(
            self.descriptor, attribute, ctypes.addressof(value), ctypes.sizeof(value)
        )


def _set_batch(lib: Any, layout: int, count: int, step: int) -> None:
    values = {_BATCH_COUNT: ctypes.c_int32(count), _STRIDED_BATCH_OFFSET: ctypes.c_int64(step)}
    for attribute, value in values.items():
        lib.matrix_layout_set_attribute(
            layout, attribute, ctypes.addressof(value), ctypes.sizeof(value)
        )


def _free(lib: Any, descriptor: int, layouts: tuple[int, ...]) -> None:
    lib.matmul_desc_destroy(descriptor)
    for layout in layouts:
        lib.matrix_layout_destroy(layout)


def forms(problem: Problem) -> list[Product]:
    """The products that a problem comes down to, at the strides to be expected.

    The epilogue that adds a row is left out of batches.
    """
    a, b, d = operands(problem)
    strides = (a.strides, b.strides, d.strides, d.strides)
    is_bias = problem.update == "bias" and problem.batch == 1
    adds_row = is_bias and d.by_rows and not problem.dtype.is_complex
    return [Product(problem, strides)] + [Product(problem, strides, one_row=True)] * adds_row


@functools.lru_cache(maxsize=1024)
def scalars(dtype: torch.dtype, alpha: complex, beta: complex) -> tuple[Any, int, int]:
    """α and β as products of ``dtype`` read them: what keeps the memory, and both addresses."""
    real = ctypes.c_double if dtype in (torch.float64, torch.complex128) else ctypes.c_float
    parts: list[Any] = [alpha, beta]
    if dtype.is_complex:
        parts = [alpha.real, alpha.imag, beta.real, beta.imag]
    memory = (real * len(parts))(*parts)
    address = ctypes.addressof(memory)
    return memory, address, address + ctypes.sizeof(memory) // 2
