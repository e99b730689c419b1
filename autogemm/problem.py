"""One call, reduced to the hashable facts that a choice may depend on.

``Problem`` is what tuning tables are keyed by and what strategies judge. All
checks of a caller's arguments live here too, so that nothing runs before they pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch.autograd import forward_ad

from autogemm.errors import InvalidProblem

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


# --------------------------------------------------------------------------- argument checks


def as_scalar(name: str, value: object, dtype: torch.dtype) -> complex | float | int:
    """Return α or β as a Python number, or raise ``InvalidProblem``.

    A 0-d CPU tensor is read. A CUDA scalar is refused, for reading it would synchronise.
    """
    if isinstance(value, torch.Tensor):
        if value.ndim != 0:
            raise InvalidProblem(
                f"{name} is a tensor of shape {tuple(value.shape)}; expected a Python number or a "
                f"0-d CPU tensor. Pass {name} as a number."
            )
        if value.device.type != "cpu":
            raise InvalidProblem(
                f"{name} is a tensor on {value.device}; expected a Python number or a 0-d CPU "
                f"tensor, because reading it from the GPU would synchronise. Pass {name}.item() "
                "at a point where waiting is harmless, or scale an operand with it instead."
            )
        if (value.requires_grad and torch.is_grad_enabled()) or _has_tangent(value):
            raise InvalidProblem(
                f"{name} is a tensor that requires grad; gemm treats {name} as a constant. "
                f"Pass {name}.item(), or multiply the result by {name} yourself."
            )
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float, complex)):
        number = getattr(value, "item", None)  # numpy scalars
        if number is None or getattr(value, "ndim", 0) != 0:
            raise InvalidProblem(
                f"{name} is a {type(value).__name__}; expected a Python number. "
                f"Pass {name} as a float."
            )
        value = number()
        if isinstance(value, bool) or not isinstance(value, (int, float, complex)):
            raise InvalidProblem(
                f"{name} is a {type(value).__name__}; expected a Python number. "
                f"Pass {name} as a float."
            )
    if isinstance(value, complex) and not dtype.is_complex:
        raise InvalidProblem(
            f"{name} is complex ({value}) but the operands are {DTYPE_NAMES[dtype]}; expected a "
            f"real number. Use complex operands or a real {name}."
        )
    if isinstance(value, int):
        try:
            value = float(value)
        except OverflowError:
            raise InvalidProblem(
                f"{name} is an integer too large for a float; expected a number up to "
                f"{torch.finfo(torch.float64).max:g}."
            ) from None
    if torch.compiler.is_compiling():
        return value  # may be a symbol; the range is checked when the operator runs
    wide = dtype in (torch.float64, torch.complex128)
    largest = torch.finfo(torch.float64 if wide else torch.float32).max
    if any(largest < abs(part) < math.inf for part in (value.real, value.imag)):
        raise InvalidProblem(
            f"{name} is {value}, beyond what {DTYPE_NAMES[dtype]} operands are multiplied with; "
            f"expected at most {largest:.7g}. Scale an operand, or use float64."
        )
    if value.__class__ in (float, complex):
        return value
    return complex(value) if isinstance(value, complex) else float(value)  # numpy has subclasses


def _has_tangent(value: torch.Tensor) -> bool:
    """Whether forward-mode AD follows a tensor."""
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(value).tangent is not None


def check_operands(
    A: object, B: object, C: object, out: object, *, beta_is_zero: bool
) -> None:
    """Raise ``InvalidProblem`` unless the operands form a product.

    A is (*batch, m, k) and B (*batch, k, n) with equal leading dimensions, or one of them has
    none and is shared by all matrices of the other; C and ``out`` are (*batch, m, n).
    """
    a = _matrix("A", A, "(m, k)")
    b = _matrix("B", B, "(k, n)")
    if a.dtype not in DTYPE_NAMES:
        raise InvalidProblem(
            f"A has dtype {a.dtype}; expected one of {', '.join(DTYPES)}. Convert A, for example "
            "with A.float()."
        )
    _same_kind("B", b, a)
    _check_inner_sizes(a, b)
    _check_batches(a, b)
    expected = result_shape(a, b)
    if C is None:
        if not beta_is_zero:
            raise InvalidProblem(
                "C is missing but beta is not 0; expected a C of shape "
                f"{expected}. Pass C, or beta=0."
            )
    else:
        c = _matrix("C", C, "(m, n)")
        _same_kind("C", c, a)
        if tuple(c.shape) != expected:
            hint = ""
            if _expands_to(tuple(c.shape), expected):
                hint = f" C is not broadcast: pass C.expand{expected}."
            raise InvalidProblem(
                f"C is {tuple(c.shape)}; expected {expected}, the shape of A·B.{hint}"
            )
    if out is not None:
        o = _check_form(out, a, expected)
        check_out(o, a, b, C if isinstance(C, torch.Tensor) else None)


def check_traced_out(
    out: object, A: torch.Tensor, B: torch.Tensor, C: torch.Tensor | None
) -> None:
    """Raise ``InvalidProblem`` for what is wrong with ``out`` where nothing has an address yet."""
    o = _check_form(out, A, result_shape(A, B))
    refuse_grad(o, A, B, C)


def _check_form(out: object, A: torch.Tensor, expected: tuple[int, ...]) -> torch.Tensor:
    o = _matrix("out", out, "(m, n)")
    _same_kind("out", o, A)
    if tuple(o.shape) != expected:
        raise InvalidProblem(
            f"out is {tuple(o.shape)}; expected {expected}, the shape of A·B. "
            "Allocate out with that shape, or leave it away."
        )
    return o


def refuse_grad(*operands: torch.Tensor | None) -> None:
    """Raise ``InvalidProblem`` where autograd would have to follow a write into ``out``."""
    if torch.is_grad_enabled() and any(x.requires_grad for x in operands if x is not None):
        raise InvalidProblem(
            "out is given while an operand requires grad; autograd cannot follow a write into "
            "out. Leave out away, or call under torch.no_grad()."
        )


def result_shape(A: torch.Tensor, B: torch.Tensor) -> tuple[int, ...]:
    """The shape of A·B: (m, n), after the leading dimensions of A or, if it has none, of B."""
    return (*(A.shape[:-2] or B.shape[:-2]), A.shape[-2], B.shape[-1])


def _check_inner_sizes(a: torch.Tensor, b: torch.Tensor) -> None:
    (m, k), (rows, n) = a.shape[-2:], b.shape[-2:]
    if k == rows:
        return
    hint = ""
    if k == n:
        hint = f" Did you mean B.{'t()' if b.ndim == 2 else 'mT'}?"
    elif m == rows:
        hint = f" Did you mean A.{'t()' if a.ndim == 2 else 'mT'}?"
    raise InvalidProblem(
        f"A is {tuple(a.shape)} and B is {tuple(b.shape)}: A's columns ({k}) must "
        f"equal B's rows ({rows}).{hint}"
    )


def _check_batches(a: torch.Tensor, b: torch.Tensor) -> None:
    first, second = tuple(a.shape[:-2]), tuple(b.shape[:-2])
    if first == second or not first or not second:
        return
    hint = ""
    try:
        common = tuple(torch.broadcast_shapes(first, second))
    except RuntimeError:
        pass
    else:
        remedies = [
            f"{name}.expand{(*common, *x.shape[-2:])}"
            for name, x in (("A", a), ("B", b))
            if tuple(x.shape[:-2]) != common
        ]
        hint = f" They are not broadcast: pass {' and '.join(remedies)}."
    raise InvalidProblem(
        f"A is {tuple(a.shape)} and B is {tuple(b.shape)}: A's leading dimensions {first} must "
        f"equal B's {second}, or one of A and B must be 2-D.{hint}"
    )


def _expands_to(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether ``Tensor.expand`` makes one shape of the other."""
    pairs = zip(shape[::-1], wanted[::-1], strict=False)
    return len(shape) <= len(wanted) and all(have in (1, want) for have, want in pairs)


def check_out(
    out: torch.Tensor, A: torch.Tensor, B: torch.Tensor, C: torch.Tensor | None
) -> None:
    """Raise ``InvalidProblem`` where writing ``out`` would touch an operand or itself."""
    refuse_grad(out, A, B, C)
    if _transform_level() is not None or (
        forward_ad._current_level >= 0 and _forward_mode_is_on()
    ):
        raise InvalidProblem(
            "out is given inside a torch.func transform or a forward_ad level, which cannot "
            "follow a write into out. Leave out away."
        )
    if torch.is_inference(out) and not torch.is_inference_mode_enabled():
        raise InvalidProblem(
            "out is an inference tensor; it can only be written inside torch.inference_mode(). "
            "Use out.clone(), or call inside inference_mode."
        )
    if _overlaps_itself(tuple(out.shape), out.stride()):
        raise InvalidProblem(
            f"out has shape {tuple(out.shape)} and strides {out.stride()}: several elements "
            "share one address, so it cannot hold a result. Pass out=C.clone() or leave it "
            "away."
        )
    for name, operand in (("A", A), ("B", B), ("C", C)):
        if operand is None or (name == "C" and same_view(out, operand)):
            continue
        if overlap(out, operand):
            remedy = (
                "Pass exactly C to update it in place, or a tensor of its own."
                if name == "C"
                else "Pass a tensor of its own, or leave out away."
            )
            raise InvalidProblem(
                f"out shares memory with {name}, which would be read while it is overwritten; "
                f"expected a separate tensor. {remedy}"
            )


def same_view(x: torch.Tensor, y: torch.Tensor) -> bool:
    """Whether two tensors are the same elements in the same order."""
    return x is y or (
        x.data_ptr() == y.data_ptr()
        and x.shape == y.shape
        and x.stride() == y.stride()
        and x.dtype == y.dtype
        and x.device == y.device
        and x.is_conj() == y.is_conj()
        and x.is_neg() == y.is_neg()
    )


def overlap(x: torch.Tensor, y: torch.Tensor) -> bool:
    """Whether two tensors of one dtype may share an element.

    Exact for views of one buffer with the same strides, in whatever order, each of which steps
    over all that the shorter ones span (blocks of one matrix or of a batch of them, also
    transposed); otherwise it answers yes as soon as the address ranges meet.
    """
    if x.device != y.device or x.numel() == 0 or y.numel() == 0:
        return False
    size = x.element_size()
    x0, y0 = x.data_ptr(), y.data_ptr()
    if x0 >= y0 + _span(y) * size or y0 >= x0 + _span(x) * size:
        return False
    # Longest stride first: L·Lᵀ updates a block of the matrix that holds L.
    dims = [sorted(zip(t.stride(), t.shape, strict=True), reverse=True) for t in (x, y)]
    if [stride for stride, _ in dims[0]] != [stride for stride, _ in dims[1]] or (y0 - x0) % size:
        return True
    both = [
        (stride, p, q) for (stride, p), (_, q) in zip(*dims, strict=True) if max(p, q) > 1
    ]
    if not _are_nested([(stride, max(p, q)) for stride, p, q in both]):
        return True
    return _meet((y0 - x0) // size, both)


def _meet(distance: int, dims: list[tuple[int, int, int]]) -> bool:
    """Whether steps between an element of x and one of y add up to the distance of their corners.

    ``dims`` are (stride, extent of x, extent of y), nested, the longest stride first. What the
    shorter strides reach stays below a longer one, so that two numbers of its steps can fit.
    """
    if not dims:
        return distance == 0
    (stride, p, q), *inner = dims
    nearest = distance // stride
    return any(
        -q < steps < p and _meet(distance - steps * stride, inner)
        for steps in (nearest, nearest + 1)
    )


def _are_nested(dims: list[tuple[int, int]]) -> bool:
    """Whether each (stride, extent), longest stride first, steps over all that follow."""
    return all(stride > _reach(dims[i + 1 :]) for i, (stride, _) in enumerate(dims))


def _reach(dims: list[tuple[int, int]]) -> int:
    return sum((extent - 1) * stride for stride, extent in dims)


def _overlaps_itself(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether two elements share an address.

    Exact but for three and more interleaved dimensions, which only ``as_strided`` makes: yes.
    """
    if 0 in shape:
        return False
    dims = [(stride, extent) for stride, extent in zip(strides, shape, strict=True) if extent > 1]
    dims.sort(reverse=True)
    while len(dims) > 2 and dims[0][0] > _reach(dims[1:]):
        dims.pop(0)
    if len(dims) != 2:
        return len(dims) > 2 or any(stride == 0 for stride, _ in dims)
    (row_stride, rows), (col_stride, cols) = dims
    step = math.gcd(row_stride, col_stride)
    if step == 0:  # both strides are 0
        return True
    # i rows down may be as far as j columns along.
    return col_stride // step < rows and row_stride // step < cols


def _span(x: torch.Tensor) -> int:
    return 1 + _reach(list(zip(x.stride(), x.shape, strict=True)))


def _matrix(name: str, value: object, expected: str) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        raise InvalidProblem(
            f"{name} is a {type(value).__name__}; expected a 2-D torch.Tensor of shape {expected}, "
            f"or a batch of such. Convert it with torch.as_tensor({name})."
        )
    if value.layout != torch.strided:
        raise InvalidProblem(
            f"{name} has layout {value.layout}; expected a dense (strided) tensor. "
            f"Use {name}.to_dense()."
        )
    if value.ndim < 2:
        remedy = (
            f"Use {name}.unsqueeze(0) for a row or {name}.unsqueeze(1) for a column."
            if value.ndim == 1
            else "Reshape it to two dimensions."
        )
        raise InvalidProblem(
            f"{name} has {value.ndim} dimensions, shape {tuple(value.shape)}; expected 2, "
            f"{expected}, or more for a batch. {remedy}"
        )
    if value.device.type not in ("cpu", "cuda"):
        raise InvalidProblem(
            f"{name} is on {value.device}; expected a CPU or CUDA tensor. Move it with "
            f"{name}.cpu() or {name}.cuda()."
        )
    return value


def _same_kind(name: str, value: torch.Tensor, a: torch.Tensor) -> None:
    if value.dtype != a.dtype:
        raise InvalidProblem(
            f"{name} has dtype {value.dtype} but A has {a.dtype}; expected one dtype for all. "
            f"Convert with {name}.to(A.dtype)."
        )
    if value.device != a.device:
        raise InvalidProblem(
            f"{name} is on {value.device} but A is on {a.device}; expected one device for all. "
            f"Move it with {name}.to(A.device)."
        )
