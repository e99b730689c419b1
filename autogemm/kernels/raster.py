"""Which tile a program computes: neighbours in time share operands in the L2 cache."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile_origin(program, m, n, group, BM: tl.constexpr, BN: tl.constexpr):
    """The tile's first row and column: ``group`` rows of tiles are walked column by column."""
    down = tl.cdiv(m, BM)
    across = tl.cdiv(n, BN)
    width = group * across
    first = program // width * group
    rows = tl.minimum(down - first, group)
    within = program % width
    return (first + within % rows) * BM, within // rows * BN
