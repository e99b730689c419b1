"""The steps of ``kernels/tandem_product.py``: blocks brought, split and multiplied (Gluon).

There are two kinds of blocks, even and odd, with memory of their own: (A's float32 blocks, B's, the
barriers of both, B's hi, B's lo).
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)

from autogemm.kernels.warpgroups import absolute, arrive, barrier, bring, terms_of

BLOCK = gl.constexpr(32)
"""Elements of k in a block: eight to each of the four threads that share a row of A."""


@gluon.constexpr_function
def by_eights(rows, warps):
    """A's block so that a thread reads eight neighbours of a row, as wide as can be."""
    registers = [[0, 1], [0, 2], [0, 4], [8, 0]]
    lanes = [[0, 8], [0, 16], [1, 0], [2, 0], [4, 0]]
    across = [[16 << i, 0] for i in range(warps.bit_length() - 1)]
    return gl.DistributedLinearLayout(registers, lanes, across, [], [rows, 32])


@gluon.jit
def _shuffled(x, ROWS: gl.constexpr, K_FIRST: gl.constexpr):
    """A block with k in the order in which tensor cores take the eights of ``by_eights``.

    A thread of theirs multiplies pairs of neighbours along k that lie eight apart. Sums do not
    mind which elements these are, as long as A's and B's are the same.
    """
    if K_FIRST:
        x = x.reshape([4, 2, 2, 2, ROWS]).permute([1, 2, 0, 3, 4]).reshape([BLOCK, ROWS])
    else:
        x = x.reshape([ROWS, 4, 2, 2, 2]).permute([0, 2, 3, 1, 4]).reshape([ROWS, BLOCK])
    return x


@gluon.jit
def fetch(
    a, b, kind, i0, j0, at, number, wanted, A_T: gl.constexpr, B_T: gl.constexpr,
    BM: gl.constexpr, BN: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Start to bring the blocks at ``at`` of k to where number ``number`` of their kind goes.

    Each has memory of its own, and each operand a barrier: where two uses cannot meet, the compiler
    has no threads wait for one another.
    """
    a_s, b_s, a_bars, b_bars, _b_hi, _b_lo = kind
    stage = number % STAGES
    a_bar = a_bars.index(stage)
    b_bar = b_bars.index(stage)
    mbarrier.expect(a_bar, BM * BLOCK * 4, pred=wanted)
    mbarrier.expect(b_bar, BN * BLOCK * 4, pred=wanted)
    bring(a, i0, at, a_bar, a_s.index(stage), wanted, A_T)
    bring(b, j0, at, b_bar, b_s.index(stage), wanted, not B_T)


@gluon.jit
def fetch_pair(
    a, b, even, odd, i0, j0, at, number, wanted, A_T: gl.constexpr, B_T: gl.constexpr,
    BM: gl.constexpr, BN: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """``fetch`` an even block and the odd one behind it."""
    fetch(a, b, even, i0, j0, at, number, wanted, A_T, B_T, BM, BN, STAGES)
    fetch(a, b, odd, i0, j0, at + BLOCK, number, wanted, A_T, B_T, BM, BN, STAGES)


@gluon.jit
def _arrived(bars, x_s, number, STAGES: gl.constexpr):
    """Block ``number`` of its kind, once it is there."""
    arrive(bars, number, STAGES)
    return x_s.index(number % STAGES)


@gluon.jit
def blocks(
    kind, number, A_T: gl.constexpr, B_T: gl.constexpr, BM: gl.constexpr, STAGES: gl.constexpr,
    LA: gl.constexpr, LB: gl.constexpr, W: gl.constexpr,
):  # fmt: skip
    """Float32 blocks: A's where the tensor cores will want its terms, and B's."""
    a_s, b_s, a_bars, b_bars, _b_hi, _b_lo = kind
    at = _arrived(b_bars, b_s, number, STAGES)
    if B_T:
        y = at.permute((1, 0)).load(LB)
    else:
        y = at.load(LB)
    at = _arrived(a_bars, a_s, number, STAGES)
    if A_T:
        x = at.permute((1, 0)).load(LA)
    else:
        x = gl.convert_layout(_shuffled(at.load(by_eights(BM, W)), BM, False), LA)
    return x, y


@gluon.jit
def _put(y, to, A_T: gl.constexpr, BN: gl.constexpr):
    """Write a block of B's to shared memory, along k as A's lies in registers."""
    if A_T:
        to.store(y)
    else:
        to.store(_shuffled(y, BN, True))


@gluon.jit
def put_terms(
    y, down, kind, buffer, A_T: gl.constexpr, BN: gl.constexpr, TERMS: gl.constexpr
):  # fmt: skip
    """Split a block of B's, and write its terms to shared memory."""
    _a_s, _b_s, _a_bars, _b_bars, b_hi, b_lo = kind
    hi, lo = terms_of(y, down[None, :])
    _put(hi, b_hi.index(buffer), A_T, BN)
    if TERMS == 2:
        _put(lo, b_lo.index(buffer), A_T, BN)


@gluon.jit
def start_products(hi, kind, buffer, acc, use_acc, TERMS: gl.constexpr):
    """Start adding the first product of a block to ``acc``: hi·lo, or hi·hi where it is alone."""
    _a_s, _b_s, _a_bars, _b_bars, b_hi, b_lo = kind
    term = b_lo if TERMS == 2 else b_hi
    return warpgroup_mma(hi, term.index(buffer), acc, use_acc=use_acc, is_async=True)


@gluon.jit
def split_meanwhile(
    hi, lo, kind, buffer, acc, other_hi, other_lo, other_kind, number, other_buffer, a_down, b_down,
    A_T: gl.constexpr, B_T: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr,
    STAGES: gl.constexpr, LA: gl.constexpr, LB: gl.constexpr, W: gl.constexpr,
    TERMS: gl.constexpr,
):  # fmt: skip
    """Add a block's other products; split number ``number`` of the other kind, which comes next.

    A's terms take the registers of those of the block before. Starting a product keeps a thread
    busy until the tensor cores take it, so the work in between is spread over all three.
    """
    _a_s, _b_s, _a_bars, _b_bars, b_hi, _b_lo = kind
    x, y = blocks(other_kind, number, A_T, B_T, BM, STAGES, LA, LB, W)
    if TERMS == 2:
        acc = warpgroup_mma(lo, b_hi.index(buffer), acc, is_async=True)
    put_terms(y, b_down, other_kind, other_buffer, A_T, BN, TERMS)
    if TERMS == 2:
        acc = warpgroup_mma(hi, b_hi.index(buffer), acc, is_async=True)
    part, other_hi, other_lo = warpgroup_mma_wait(
        3 if TERMS == 2 else 1, deps=[acc, other_hi, other_lo]
    )
    other_hi, other_lo = terms_of(x, a_down[:, None])
    fence_async_shared()
    barrier()
    return warpgroup_mma_init(part), other_hi, other_lo


@gluon.jit
def weigh(
    x, y, a_down, b_down, to, A_T: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr,
    L: gl.constexpr,
):  # fmt: skip
    """The sum of |hi·hi| over a block of k."""
    _put(absolute(y, b_down[None, :]), to, A_T, BN)
    fence_async_shared()
    barrier()
    weight = gl.zeros([BM, BN], gl.float32, L)
    return warpgroup_mma(absolute(x, a_down[:, None]), to, weight, is_async=False)
