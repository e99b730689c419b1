"""How the forms of ``emulated_fp32`` run: parameters made into calls of their kernels."""

from __future__ import annotations

import functools
from collections.abc import Callable

from torch import Tensor

from autogemm.device import Device
from autogemm.problem import Problem
from autogemm.strategies.base import Params, Run, tile_of
from autogemm.strategies.emulated_space import (
    BRIEF_TILES,
    SPLIT_FORMS,
    STREAMED_REGISTERS,
    TILES,
    streamed_tile,
)

# What truncation in the tensor cores takes from a sum on the way, in units of 2^-24 of it for
# every step of k, on average over random signs; by compute capability, one accumulator for
# hi·hi alone and one for all three products. Measured on an H200 (Triton 3.6); 0 elsewhere.
TRUNCATION = {(9, 0): (0.28, 0.76)}
STEP = 16
"""Elements of k that one tensor-core instruction adds."""
MORE_SLICES = 4
"""Times as many slices that a Gram matrix may take: it has fewer tiles to fill a device with."""


def bind(problem: Problem, device: Device, params: Params, guard: bool) -> Run:
    """What runs the form that ``params`` name; ``guard`` as in ``EmulatedFP32.bind``."""
    if params["form"] in SPLIT_FORMS:
        return _bind_split(device, params, guard, batched=problem.batch > 1)
    if problem.batch > 1:
        return _bind_batch(device, params, guard)
    if params["form"] == "streamed":
        return _bind_streamed(device, params, guard, transposed=problem.n > problem.m)
    return _bind_in_one_launch(device, params, guard)


def _bind_split(device: Device, params: Params, guard: bool, *, batched: bool) -> Run:
    from autogemm.kernels.replay import into_new
    from autogemm.kernels.split import split_both
    from autogemm.kernels.split_product import Tiling

    terms = 1 if params["method"] == "fp16" else 2
    chunk, bk, slices = (int(params[name]) for name in ("chunk", "bk", "slices"))
    warps, stages, group = (int(params[name]) for name in ("warps", "stages", "group"))
    tiling = Tiling(*tile_of(params), bk, warps, stages, group)
    registers = BRIEF_TILES[str(params["method"])].get((*tile_of(params), bk, warps, stages))
    product = _product_of_terms(str(params["form"]), registers)
    gain = _gain(device, bk, one_accumulator=False)

    def write(
        alpha: float, A: Tensor, B: Tensor, beta: float, C: Tensor | None, out: Tensor
    ) -> None:
        split = split_both(A, B, terms=terms, chunk=chunk)
        product(
            alpha, A, B, beta, C, out, split, terms=terms, chunk=chunk, slices=slices,
            tiling=tiling, gain=gain, guard=guard,
        )  # fmt: skip

    return into_new(write, batched=batched)


def _bind_in_one_launch(device: Device, params: Params, guard: bool) -> Run:
    from autogemm.kernels.raster import is_gram, tile_count
    from autogemm.kernels.replay import into_new
    from autogemm.kernels.split_product import Tiling

    terms = 1 if params["method"] == "fp16" else 2
    bm, bn = tile_of(params)
    transposed = bm < 64
    if transposed:  # tensor cores take 64 rows at a time, and as few as 8 columns
        bm, bn = bn, bm
    bk, warps = int(params["bk"]), int(params["warps"])
    tiling = Tiling(bm, bn, bk, warps, int(params["stages"]), int(params["group"]))
    chunk, slices = int(params["chunk"]), int(params["slices"])
    gain = _gain(device, bk, one_accumulator=share_an_accumulator(params))
    side = max(bm, bn)
    square = next((t for t in TILES[str(params["form"])] if t[:3] == (side, side, bk)), None)
    product = _product_in_one_launch(str(params["form"]))

    def gram_of(m: int, k: int) -> tuple[Tiling, int]:
        """Square tiles for a Gram matrix, of which half are computed, and slices to match."""
        assert square is not None
        tiles = tile_count(m, m, side, side, gram=True)
        wanted = min(2 * device.units // tiles, k // (4 * bk), MORE_SLICES * slices)
        # Not fewer: sums longer than a slice are not in the bound.
        return Tiling(*square, tiling.group), max(slices, wanted) if slices > 1 else 1

    def write(
        alpha: float, A: Tensor, B: Tensor, beta: float, C: Tensor | None, out: Tensor
    ) -> None:
        if transposed:
            A, B, out = B.t(), A.t(), out.t()
            C = None if C is None else C.t()
        cut, parts = tiling, slices
        if square is not None and is_gram(A, B):
            cut, parts = gram_of(*A.shape)
        product(
            alpha, A, B, beta, C, out, terms=terms, chunk=chunk, slices=parts, tiling=cut,
            gain=gain, guard=guard,
        )  # fmt: skip

    return into_new(write)


def _bind_streamed(device: Device, params: Params, guard: bool, *, transposed: bool) -> Run:
    """``transposed``: B streams, as A does of the transposed product."""
    from autogemm.kernels.replay import into_new
    from autogemm.kernels.split_product import Tiling
    from autogemm.kernels.streamed_product import streamed_product

    terms = 1 if params["method"] == "fp16" else 2
    rows, cols = streamed_tile(params, transposed)
    chunk, bk, slices = (int(params[name]) for name in ("chunk", "bk", "slices"))
    warps, stages, group = (int(params[name]) for name in ("warps", "stages", "group"))
    tiling = Tiling(rows, cols, bk, warps, stages, group)
    registers = STREAMED_REGISTERS.get((rows, cols, bk, warps, stages, terms))
    gain = _gain(device, bk, one_accumulator=share_an_accumulator(params))

    def write(
        alpha: float, A: Tensor, B: Tensor, beta: float, C: Tensor | None, out: Tensor
    ) -> None:
        if transposed:
            A, B, out = B.t(), A.t(), out.t()
            C = None if C is None else C.t()
        streamed_product(
            alpha, A, B, beta, C, out, terms=terms, chunk=chunk, slices=slices, tiling=tiling,
            gain=gain, guard=guard, registers=registers,
        )  # fmt: skip

    return into_new(write)


def _bind_batch(device: Device, params: Params, guard: bool) -> Run:
    from autogemm.kernels.fused_batch import fused_batch
    from autogemm.kernels.replay import into_new
    from autogemm.kernels.split_product import Tiling

    terms = 1 if params["method"] == "fp16" else 2
    bm, bn = tile_of(params)
    transposed = bm < 64
    if transposed:
        bm, bn = bn, bm
    bk, chunk = int(params["bk"]), int(params["chunk"])
    warps, stages, group = (int(params[name]) for name in ("warps", "stages", "group"))
    tiling = Tiling(bm, bn, bk, warps, stages, group)
    gain = _gain(device, bk, one_accumulator=share_an_accumulator(params))

    def write(
        alpha: float, A: Tensor, B: Tensor, beta: float, C: Tensor | None, out: Tensor
    ) -> None:
        if transposed:
            A, B, out = B.mT, A.mT, out.mT
            C = None if C is None else C.mT
        fused_batch(
            alpha, A, B, beta, C, out, terms=terms, chunk=chunk, tiling=tiling, gain=gain,
            guard=guard,
        )  # fmt: skip

    return into_new(write, batched=True)


def _product_of_terms(form: str, registers: int | None) -> Callable[..., None]:
    if form == "continuous":
        from autogemm.kernels.continuous_product import continuous_product

        return functools.partial(continuous_product, registers=registers)
    from autogemm.kernels.split_product import split_product

    return split_product


def _product_in_one_launch(form: str) -> Callable[..., None]:
    if form == "tandem":
        from autogemm.kernels.tandem_product import tandem_product

        return tandem_product
    from autogemm.kernels.fused_product import fused_product

    return fused_product


def share_an_accumulator(params: Params) -> bool:
    """Whether cross products are added to sums of hi·hi.

    Not where both operands are split beforehand; nor in form ``fused`` where a chunk is one block
    of k, in which they come first.
    """
    if params["method"] == "fp16" or params["form"] in SPLIT_FORMS:
        return False
    return params["form"] != "fused" or int(params["chunk"]) > int(params["bk"])


def _gain(device: Device, bk: int, *, one_accumulator: bool) -> float:
    """What truncation takes from a sum, on average, over a block of ``bk`` elements of k."""
    apart, together = TRUNCATION.get(device.capability, (0.0, 0.0))
    return (together if one_accumulator else apart) * (bk / STEP) * 2.0**-24
