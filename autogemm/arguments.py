"""The checks of a caller's arguments: what is wrong is said before anything runs."""

from __future__ import annotations

import math

import torch
from torch.autograd import forward_ad

from autogemm.aliasing import overlap, overlaps_itself, same_view
from autogemm.errors import InvalidProblem
from autogemm.problem import DTYPE_NAMES, DTYPES, result_shape, transforms_are_active


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
    if transforms_are_active():
        raise InvalidProblem(
            "out is given inside a torch.func transform or a forward_ad level, which cannot "
            "follow a write into out. Leave out away."
        )
    if torch.is_inference(out) and not torch.is_inference_mode_enabled():
        raise InvalidProblem(
            "out is an inference tensor; it can only be written inside torch.inference_mode(). "
            "Use out.clone(), or call inside inference_mode."
        )
    if overlaps_itself(tuple(out.shape), out.stride()):
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
