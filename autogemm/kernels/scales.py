"""Powers of two by which rows and columns are brought into the range of fp16 (Triton).

``kernels/warpgroups.py`` has the same for Gluon's kernels.
"""

from __future__ import annotations

import triton
import triton.language as tl

from autogemm.kernels.split import LOWEST_EXPONENT

_PLACE = tl.constexpr(11)
"""Where the first block's largest magnitudes come to lie: [2¹¹, 2¹²)."""

_LARGEST_HALF = tl.constexpr(65520.0)
"""What is scaled and as large as that becomes inf in fp16."""


@triton.jit
def scale_of(most):
    """The power of two that brings a stretch's largest finite magnitude to about 2^_PLACE."""
    exponent = (most.to(tl.int32, bitcast=True) >> 23) - 127
    exponent = tl.where(most > 0, tl.maximum(exponent, LOWEST_EXPONENT), 0) - _PLACE
    return ((127 - exponent) << 23).to(tl.float32, bitcast=True)


@triton.jit
def inverse(power):
    """The reciprocal of a power of two."""
    return (0x7F000000 - power.to(tl.int32, bitcast=True)).to(tl.float32, bitcast=True)


@triton.jit
def reach_of(down):
    """What no element reaches that, scaled by one of these, is finite in fp16."""
    return tl.max(inverse(down), 0) * _LARGEST_HALF


@triton.jit
def largest(x, axis: tl.constexpr):
    """The largest finite magnitudes along an axis."""
    magnitude = tl.abs(x)
    return tl.max(tl.where(magnitude < float("inf"), magnitude, 0.0), axis)
