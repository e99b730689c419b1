"""Which tensors share elements: what may be written while something else is read."""

from __future__ import annotations

import math

import torch


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


def written(out: torch.Tensor) -> None:
    """Tell autograd that a kernel of ours has changed ``out``, as torch's own operators do."""
    if not out.is_inference():
        torch.autograd.graph.increment_version(out)


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


def overlaps_itself(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
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


def bytes_spanned(x: torch.Tensor | None) -> int:
    """Bytes from a tensor's first element to behind its last."""
    if x is None or x.numel() == 0:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return (last + 1) * x.element_size()


def touches(
    out: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor | None,
    spans: tuple[int, int, int, int],
) -> bool:
    """Whether the address range of ``out`` meets an operand's (``out`` being C does not count)."""
    a_span, b_span, c_span, out_span = spans
    start = out.data_ptr()
    end = start + out_span
    a, b = A.data_ptr(), B.data_ptr()
    if (a < end and start < a + a_span) or (b < end and start < b + b_span):
        return True
    if C is None or C is out:
        return False
    c = C.data_ptr()
    return c < end and start < c + c_span
