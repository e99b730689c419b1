"""float32 products from fp16 tensor cores: hi·hi + hi·lo + lo·hi of operands split in two.

Split operands keep 23 of 24 bits and their products are exact in float32; sums are promoted
to IEEE float32 every ``chunk`` elements of k. Elements too small for their terms, inf and NaN
are dealt with on the device (``kernels/split_product.py``, ``kernels/fused_product.py``,
``kernels/overlapped_product.py``, ``kernels/streamed_product.py``), so that the bound holds for
every input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor

from autogemm.device import Device, software_versions
from autogemm.precision import ErrorBound
from autogemm.problem import Problem
from autogemm.strategies.base import (
    Candidate,
    Params,
    ParamValue,
    Run,
    Strategy,
    at_least,
    into_new,
    one_of,
    tile_of,
    tiles_of,
)

_STEP = 16
"""Elements of k that one tensor-core instruction adds."""

# What truncation in the tensor cores takes from a sum on the way, in units of 2^-24 of it for
# every step of k, on average over random signs; by compute capability, one accumulator for
# hi·hi alone and one for all three products. Measured on an H200 (Triton 3.6); 0 elsewhere.
_TRUNCATION = {(9, 0): (0.28, 0.76)}

_LONGEST = 2**25
"""Rows of terms are no longer: offsets within a block of 64 of them fit 32 bits."""

_SPLIT_TILES = {
    "fp16x3": ((128, 128, 64, 8, 3), (64, 128, 64, 4, 2), (128, 64, 64, 4, 2), (64, 64, 64, 4, 3)),
    "fp16": ((128, 256, 64, 8, 3), (128, 128, 64, 8, 4), (64, 128, 64, 4, 3), (128, 64, 64, 4, 3)),
}
_TILES: dict[str, tuple[tuple[int, int, int, int, int], ...]] = {
    "fused": (
        (128, 128, 32, 8, 3),
        (128, 64, 32, 4, 3),
        (64, 128, 32, 4, 3),
        (64, 64, 32, 4, 4),
        (64, 64, 64, 4, 2),
        (128, 32, 64, 4, 3),
        (32, 128, 64, 4, 3),
        (128, 16, 64, 4, 3),
        (16, 128, 64, 4, 3),
        (64, 16, 64, 4, 3),
        (16, 64, 64, 4, 3),
    ),
    # It gains where slices are long (H200); with the other tiles it was no faster.
    "overlapped": ((128, 128, 32, 8, 3),),
}
"""(bm, bn, bk, warps, stages); below 64 rows the product is computed transposed."""
_STREAMED_TILES = (
    (128, 128, 32, 8, 3),
    (64, 128, 32, 4, 2),
    (64, 64, 32, 4, 3),
    (64, 64, 32, 4, 2),
    (64, 32, 32, 4, 3),
    (64, 16, 32, 4, 3),
)
"""(rows of the larger operand, columns of the other, bk, warps, stages of two blocks of k)."""
_REGISTERS = {(64, 64, 32, 4, 2): 168}
"""Of a thread, by tile of form ``streamed``: three programs then share a multiprocessor, which is
faster where k is short (H200)."""
_MUCH_LARGER = 8
"""How many times longer than the other operand one is that form ``streamed`` is tried on; below
it was slower than ``split`` (H200)."""
_GLUON = "3.6"
"""Gluon is an experimental part of Triton: what is written in it runs in the version it knows."""

_CHUNKS = {
    ("split", "fp16x3"): (128, 256, 512, 1024, 2048),
    ("split", "fp16"): (512, 2048),
    ("fused", "fp16x3"): (64, 128, 256, 512),
    ("fused", "fp16"): (512, 2048),
    ("overlapped", "fp16x3"): (128, 256, 512),
    ("streamed", "fp16x3"): (256, 512),
    ("streamed", "fp16"): (512, 2048),
}
_SHORTER_CHUNKS = {64: 512, 128: 1024}
"""Chunks that form ``streamed`` tries besides, and below which k: with longer ones such sums break
the bound of ``highest``, or nearly do."""
_SHORT = 150
"""Up to here the bound of form ``fused`` serves ``highest`` with one block of k to a chunk alone
(docs/accuracy.md)."""
_MORE_SLICES = 4
"""Times as many slices that a Gram matrix may take: it has fewer tiles to fill a device with."""
_MOST_EVENING, _WORTH_SLICING = 6, 0.85
"""Slices of form ``split``, whose parts are added through memory: how many at most, and how much
of the time they must leave, counted in waves of tiles."""
_WAVES, _USUAL = (1, 2, 4), 2
"""Programs a multiprocessor that slices of k aim at, and what was best most often (H200)."""


class EmulatedFP32(Strategy):
    """``form`` ``split`` writes split operands first, ``fused`` splits on the way (aligned only),
    ``overlapped`` too, one block of k while another is multiplied (Hopper only); ``streamed``
    splits the smaller operand first and the larger one, aligned, on the way (Hopper only).

    ``method`` ``fp16x3`` keeps float32's accuracy, ``fp16`` (one product of hi) that of
    ``high``. ``bm`` x ``bn`` is the tile, ``bk`` its step along k, ``chunk`` the elements of
    k between promotions, ``slices`` the parts of k computed apart, ``group`` the rows of
    tiles that share columns in time. Batches are for form ``fused``, with k whole.
    """

    name = "emulated_fp32"
    emulates = True
    dtypes = frozenset({torch.float32})
    device_types = frozenset({"cuda"})
    packages = ("triton",)
    depends_on = ("torch", "triton")
    min_capability = (9, 0)  # earlier tensor cores truncate more than the bound allows for
    batched = True

    def parameters(self) -> Mapping[str, Callable[[ParamValue], bool]]:
        extent = one_of(16, 32, 64, 128, 256)
        return {
            "form": one_of("split", "fused", "overlapped", "streamed"),
            "method": one_of("fp16x3", "fp16"),
            "bm": extent,
            "bn": extent,
            "bk": one_of(32, 64),
            "warps": one_of(4, 8),
            "stages": one_of(1, 2, 3, 4),
            "chunk": one_of(32, 64, 128, 256, 512, 1024, 2048),
            "slices": at_least(1),
            "group": at_least(1),
        }

    def wrong_parameters(self, params: Params) -> list[str]:
        wrong = super().wrong_parameters(params)
        if wrong:
            return wrong
        if params["form"] == "split" and min(tile_of(params)) < 64:
            return ["form 'split' takes tiles of at least 64 x 64"]
        if max(tile_of(params)) < 64:
            return ["a tile needs 64 rows or columns"]
        if params["form"] == "overlapped" and int(params["stages"]) < 3:
            return ["form 'overlapped' takes 3 stages or more: two are read while one is written"]
        if params["form"] == "streamed" and int(params["stages"]) < 2:
            return ["form 'streamed' takes 2 stages or more: one is read while one is written"]
        if params["form"] == "streamed" and int(params["chunk"]) % (2 * int(params["bk"])):
            return ["chunks of form 'streamed' are of whole pairs of blocks of k"]
        if int(params["chunk"]) < (int(params["bk"]) if params["form"] == "fused" else 64):
            return ["chunks of 32 are for form 'fused' with blocks of k as short"]
        return []

    def _reasons_not(self, problem: Problem, device: Device, params: Params) -> list[str]:
        if "rocm" in device.features:
            return ["the arithmetic of its tensor cores was studied on NVIDIA GPUs only"]
        if min(problem.m, problem.n) == 1:
            return ["a vector times a matrix is bound by memory; splitting it gains nothing"]
        if problem.k >= _LONGEST:
            return [f"k = {problem.k}; offsets are 32-bit below k = {_LONGEST}"]
        if problem.batch > 1 and params["form"] != "fused":
            return [f"form {params['form']!r} computes single products, batches are for 'fused'"]
        if problem.batch > 1 and params["slices"] != 1:
            return ["k is whole in batches: their matrices fill a device"]
        if params["form"] == "streamed":
            return _reasons_not_streamed(problem, params) or _reasons_without_gluon(device, params)
        if params["form"] != "split" and not {problem.a, problem.b} <= {"row", "col"}:
            return ["operands are not 16-byte aligned with one contiguous extent"]
        if params["form"] == "overlapped":
            return _reasons_without_gluon(device, params)
        return []

    def space(self, problem: Problem, device: Device) -> Iterable[dict[str, ParamValue]]:
        if problem.batch > 1:
            yield from _space_of_batches(problem)
            return
        for method, tiles in _SPLIT_TILES.items():
            for bm, bn, bk, warps, stages in tiles:
                if not (_fits(bm, problem.m) and _fits(bn, problem.n)):
                    continue
                tiles_here = tiles_of(problem, bm, bn)
                for chunk in _chunks("split", method, problem.k):
                    even = _evening(tiles_here, device, -(-problem.k // chunk))
                    for slices in sorted({1, even}):
                        for group in (8, 16) if tiles_here > 2 * device.units else (8,):
                            yield _params(
                                "split", method, bm, bn, bk, warps, stages, chunk, slices, group
                            )
        for form, method in _CHUNKS:
            for bm, bn, bk, warps, stages in _TILES.get(form, ()):
                if not (_fits(bm, problem.m) and _fits(bn, problem.n)):
                    continue
                for slices in _slices(problem, device, bm, bn, bk):
                    for chunk in _chunks(form, method, -(-problem.k // slices)):
                        yield _params(form, method, bm, bn, bk, warps, stages, chunk, slices, 8)
        yield from _space_of_streamed(problem, device)

    def is_steady(self, params: Params) -> bool:
        """Where rows grow along k, forms that scale by the first block compute tiles twice."""
        return params.get("form") == "split"

    def kin(self, candidate: Candidate) -> Candidate:
        """Same form, method and tile: chunks, slices and groups are then matters of degree."""
        params = candidate.kwargs
        shared = {key: params[key] for key in ("form", "method", "bm", "bn") if key in params}
        return Candidate.of(self.name, **shared)

    def fitted(self, candidate: Candidate, problem: Problem, device: Device) -> Candidate:
        """A tile no larger than the result, and slices that fill the device with such tiles."""
        params = candidate.kwargs
        if params["form"] == "split":
            if params["slices"] != 1:
                tiles = tiles_of(problem, *tile_of(params))
                chunks = -(-problem.k // int(params["chunk"]))
                params["slices"] = _evening(tiles, device, chunks)
            return Candidate.of(self.name, **params)
        if params["form"] == "streamed":
            return Candidate.of(self.name, **_fitted_streamed(params, problem, device))
        snug = tuple(map(_no_larger, tile_of(params), (problem.m, problem.n)))
        if snug != tile_of(params):
            tile = next((t for t in _TILES["fused"] if t[:2] == snug), None)
            if tile is not None:
                params["form"] = "fused"
                params.update(zip(("bm", "bn", "bk", "warps", "stages"), tile, strict=True))
        bm, bn, bk = *tile_of(params), int(params["bk"])
        if problem.batch > 1:
            is_short = params["method"] == "fp16x3" and problem.k <= _SHORT
            params["chunk"] = bk if is_short else max(64, int(params["chunk"]))
        else:
            params["slices"] = _filling(problem, device, bm, bn, bk, _USUAL)
        return Candidate.of(self.name, **params)

    def bound(self, problem: Problem, params: Params) -> ErrorBound:
        # docs/accuracy.md, "emulated_fp32", derives every term.
        k, slices, bk = problem.k, int(params["slices"]), int(params["bk"])
        # Slices are of whole chunks in forms ``split`` and ``streamed``, else of whole blocks; the
        # zeros that fill the last one cost nothing.
        streamed = params["form"] == "streamed"
        unit = int(params["chunk"]) if params["form"] == "split" or streamed else bk
        fair = -(-k // slices)
        part = min(k, -(-fair // unit) * unit)
        chunk = min(part, int(params["chunk"]))
        terms = 1 if params["method"] == "fp16" else 2
        in_one = 3 if _share_an_accumulator(params) else 1
        steps = in_one * -(-chunk // _STEP)
        truncation = 1.001 * ((in_one * chunk - 1) / 2 + 2 * steps)
        if terms == 2 and in_one == 1:
            truncation += 0.002 * chunk
            if params["form"] != "split":  # hi·hi is added to what the cross products left
                truncation += 0.51
        correction = max(one[in_one == 3] for one in _TRUNCATION.values())
        at_once = 2 * bk if streamed else bk
        correction *= -(-chunk // at_once) * at_once / _STEP
        may_be_gram = problem.m == problem.n and params["form"] in ("fused", "overlapped")
        most = slices * _MORE_SLICES if slices > 1 and may_be_gram else slices
        promotions = -(-part // chunk) + most
        lost = k / 16 if params["form"] == "split" else k / 8
        if streamed and terms == 1:
            lost = 3 * k / 16
        growth = truncation + correction + promotions + lost + 5
        return ErrorBound(8.0 if terms == 2 else 2.0**14, growth)

    def bind(
        self, problem: Problem, device: Device, params: Params, *, guard: bool = True
    ) -> Run:
        """``guard`` is left out by the benchmark that measures what it costs, and nowhere else."""
        if problem.batch > 1:
            return _bind_batch(device, params, guard)
        if params["form"] == "streamed":
            return _bind_streamed(device, params, guard, transposed=problem.n > problem.m)
        bind = _bind_split if params["form"] == "split" else _bind_in_one_launch
        return bind(device, params, guard)

    def workspace_bytes(self, problem: Problem, params: Params) -> int:
        m, n, k = problem.m, problem.n, problem.k
        slices = int(params["slices"])
        if params["form"] in ("split", "streamed"):
            terms = 1 if params["method"] == "fp16" else 2
            chunks = -(-k // int(params["chunk"]))
            results = 4 * slices * m * n if slices > 1 else 0
            rows = m + n if params["form"] == "split" else min(m, n)
            return rows * (2 * terms * (-(-k // 8) * 8) + 4 * chunks) + results
        if slices > 1 and m == n:  # it may be a Gram matrix, which the problem does not tell
            slices = max(slices, min(_MORE_SLICES * slices, k // (4 * int(params["bk"]))))
        return 4 * slices * m * n if slices > 1 else 0


def _bind_split(device: Device, params: Params, guard: bool) -> Run:
    from autogemm.kernels.split import split_both
    from autogemm.kernels.split_product import Tiling, split_product

    terms = 1 if params["method"] == "fp16" else 2
    chunk, bk, slices = (int(params[name]) for name in ("chunk", "bk", "slices"))
    tiling = Tiling(
        *tile_of(params), bk, int(params["warps"]), int(params["stages"]), int(params["group"])
    )
    gain = _gain(device, bk, one_accumulator=False)

    def write(
        alpha: float, A: Tensor, B: Tensor, beta: float, C: Tensor | None, out: Tensor
    ) -> None:
        split = split_both(A, B, terms=terms, chunk=chunk)
        split_product(
            alpha, A, B, beta, C, out, split, terms=terms, chunk=chunk, slices=slices,
            tiling=tiling, gain=gain, guard=guard,
        )  # fmt: skip

    return into_new(write)


def _bind_in_one_launch(device: Device, params: Params, guard: bool) -> Run:
    from autogemm.kernels.raster import is_gram, tile_count
    from autogemm.kernels.split_product import Tiling

    terms = 1 if params["method"] == "fp16" else 2
    bm, bn = tile_of(params)
    transposed = bm < 64
    if transposed:  # tensor cores take 64 rows at a time, and as few as 8 columns
        bm, bn = bn, bm
    bk, warps = int(params["bk"]), int(params["warps"])
    tiling = Tiling(bm, bn, bk, warps, int(params["stages"]), int(params["group"]))
    chunk, slices = int(params["chunk"]), int(params["slices"])
    gain = _gain(device, bk, one_accumulator=_share_an_accumulator(params))
    side = max(bm, bn)
    square = next((t for t in _TILES[str(params["form"])] if t[:3] == (side, side, bk)), None)
    product = _product_in_one_launch(str(params["form"]))

    def gram_of(m: int, k: int) -> tuple[Tiling, int]:
        """Square tiles for a Gram matrix, of which half are computed, and slices to match."""
        assert square is not None
        tiles = tile_count(m, m, side, side, gram=True)
        wanted = min(2 * device.units // tiles, k // (4 * bk), _MORE_SLICES * slices)
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
    from autogemm.kernels.split_product import Tiling
    from autogemm.kernels.streamed_product import streamed_product

    terms = 1 if params["method"] == "fp16" else 2
    rows, cols = _streamed_tile(params, transposed)
    chunk, bk, slices = (int(params[name]) for name in ("chunk", "bk", "slices"))
    warps, stages, group = (int(params[name]) for name in ("warps", "stages", "group"))
    tiling = Tiling(rows, cols, bk, warps, stages, group)
    registers = _REGISTERS.get((rows, cols, bk, warps, stages))
    gain = _gain(device, bk, one_accumulator=_share_an_accumulator(params))

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
    from autogemm.kernels.fused_product import fused_batch
    from autogemm.kernels.split_product import Tiling

    terms = 1 if params["method"] == "fp16" else 2
    bm, bn = tile_of(params)
    transposed = bm < 64
    if transposed:
        bm, bn = bn, bm
    bk, chunk = int(params["bk"]), int(params["chunk"])
    warps, stages, group = (int(params[name]) for name in ("warps", "stages", "group"))
    tiling = Tiling(bm, bn, bk, warps, stages, group)
    gain = _gain(device, bk, one_accumulator=_share_an_accumulator(params))

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


def _product_in_one_launch(form: str) -> Callable[..., None]:
    if form == "overlapped":
        from autogemm.kernels.overlapped_product import overlapped_product

        return overlapped_product
    from autogemm.kernels.fused_product import fused_product

    return fused_product


def _reasons_not_streamed(problem: Problem, params: Params) -> list[str]:
    transposed = problem.n > problem.m
    larger = problem.b if transposed else problem.a
    if larger not in ("row", "col"):
        return ["the larger operand is not 16-byte aligned with one contiguous extent"]
    rows, _ = _streamed_tile(params, transposed)
    if rows < 64:
        side, which = ("bn", "columns of B") if transposed else ("bm", "rows of A")
        return [f"a tile needs 64 {which}, which stream here, not {side}={rows}"]
    if rows < 16 * int(params["warps"]):
        return [f"{params['warps']} warps compute {16 * int(params['warps'])} rows, not {rows}"]
    return []


def _reasons_without_gluon(device: Device, params: Params) -> list[str]:
    form = params["form"]
    if device.capability != (9, 0):
        return [f"form {form!r} is written for the warpgroups of compute capability 9.0"]
    version = software_versions(device.type).get("triton", "none")
    if not f"{version}.".startswith(f"{_GLUON}."):
        return [f"form {form!r} is written in Gluon of Triton {_GLUON}; here is {version}"]
    return []


def _streamed_tile(params: Params, transposed: bool) -> tuple[int, int]:
    """Rows of the operand that streams, columns of the other."""
    bm, bn = tile_of(params)
    return (bn, bm) if transposed else (bm, bn)


def _share_an_accumulator(params: Params) -> bool:
    """Whether cross products are added to sums of hi·hi.

    Not in form ``split``; nor in form ``fused`` where a chunk is one block of k, in which they
    come first.
    """
    if params["method"] == "fp16" or params["form"] == "split":
        return False
    return params["form"] != "fused" or int(params["chunk"]) > int(params["bk"])


def _gain(device: Device, bk: int, *, one_accumulator: bool) -> float:
    """What truncation takes from a sum, on average, over a block of ``bk`` elements of k."""
    apart, together = _TRUNCATION.get(device.capability, (0.0, 0.0))
    return (together if one_accumulator else apart) * (bk / _STEP) * 2.0**-24


def _space_of_batches(problem: Problem) -> Iterator[dict[str, ParamValue]]:
    for method in ("fp16x3", "fp16"):
        for bm, bn, bk, warps, stages in _TILES["fused"]:
            if _fits(bm, problem.m) and _fits(bn, problem.n):
                is_short = method == "fp16x3" and problem.k <= _SHORT
                for chunk in (bk,) if is_short else _chunks("fused", method, problem.k):
                    yield _params("fused", method, bm, bn, bk, warps, stages, chunk, 1, 8)


def _space_of_streamed(problem: Problem, device: Device) -> Iterator[dict[str, ParamValue]]:
    """No number of slices twice: as they are of whole chunks, several may come to the same."""
    rows, cols = max(problem.m, problem.n), min(problem.m, problem.n)
    if rows < _MUCH_LARGER * cols:
        return
    for bm, bn, bk, warps, stages in _STREAMED_TILES:
        if not (_fits(bm, rows) and _fits(bn, cols)):
            continue
        tile = (bm, bn) if problem.m >= problem.n else (bn, bm)
        fills = tiles_of(problem, *tile) >= device.units
        numbers = [1] if fills else _slices(problem, device, *tile, bk)[:2]
        for method in ("fp16x3", "fp16"):
            cut = dict.fromkeys(
                (chunk, _of_whole_chunks(wanted, problem.k, chunk))
                for wanted in numbers
                for chunk in _streamed_chunks(method, problem.k, -(-problem.k // wanted))
            )
            for chunk, slices in cut:
                yield _params("streamed", method, *tile, bk, warps, stages, chunk, slices, 8)


def _streamed_chunks(method: str, k: int, part: int) -> Iterator[int]:
    """``_chunks`` for parts of k, and shorter ones where k is short."""
    covered = False
    if method == "fp16x3":
        for chunk, below in _SHORTER_CHUNKS.items():
            if k < below and not covered:
                yield chunk
                covered = chunk >= part
    if not covered:
        yield from _chunks("streamed", method, part)


def _of_whole_chunks(slices: int, k: int, chunk: int) -> int:
    """How many slices there are where so many are wanted."""
    chunks = -(-k // chunk)
    return -(-chunks // -(-chunks // slices))


def _fitted_streamed(
    params: dict[str, ParamValue], problem: Problem, device: Device
) -> dict[str, ParamValue]:
    """The tile turned as the operands are and no wider than the smaller one, and slices."""
    transposed = problem.n > problem.m
    one, other = tile_of(params)
    turned = (one, other) not in {tile[:2] for tile in _STREAMED_TILES}
    rows, cols = (other, one) if turned else (one, other)
    smaller = _no_larger(cols, min(problem.m, problem.n))
    if smaller != cols or rows < 64:
        fits = [tile for tile in _STREAMED_TILES if tile[1] == smaller]
        rows, cols, *rest = next((tile for tile in fits if tile[0] == rows), fits[0])
        params.update(zip(("bk", "warps", "stages"), rest, strict=True))
    params["bm"], params["bn"] = (cols, rows) if transposed else (rows, cols)
    tiles, wanted = tiles_of(problem, *tile_of(params)), 1
    if tiles < device.units:
        wanted = _filling(problem, device, *tile_of(params), int(params["bk"]), _USUAL)
    params["slices"] = _of_whole_chunks(wanted, problem.k, int(params["chunk"]))
    return params


def _params(
    form: str, method: str, bm: int, bn: int, bk: int, warps: int, stages: int, chunk: int,
    slices: int, group: int,
) -> dict[str, ParamValue]:  # fmt: skip
    return {
        "form": form, "method": method, "bm": bm, "bn": bn, "bk": bk, "warps": warps,
        "stages": stages, "chunk": chunk, "slices": slices, "group": group,
    }  # fmt: skip


def _fits(block: int, extent: int) -> bool:
    """Whether a tile's extent suits the problem's: not half empty, not needlessly small."""
    if block < 64:
        return extent <= 2 * block
    return block == 64 or extent > block // 2


def _no_larger(block: int, extent: int) -> int:
    """The block, or the power of two that covers the extent where that is smaller."""
    return min(block, max(16, 1 << (extent - 1).bit_length()))


def _chunks(form: str, method: str, k: int) -> Iterator[int]:
    """The chunk lengths worth trying: up to the first that covers k."""
    covered = False
    for chunk in _CHUNKS[form, method]:
        if not covered:
            yield chunk
        covered = chunk >= k


def _slices(problem: Problem, device: Device, bm: int, bn: int, bk: int) -> list[int]:
    """Numbers of slices that fill the device, none where tiles alone do; slices are not short."""
    return sorted({_filling(problem, device, bm, bn, bk, waves) for waves in _WAVES})


def _evening(tiles: int, device: Device, chunks: int) -> int:
    """How many slices make the last wave of tiles worth its time, 1 where they hardly would."""

    def waves(slices: int) -> float:
        """Of whole tiles, in time."""
        return -(-tiles * slices // device.units) * -(-chunks // slices) / chunks

    # As many as there are: slices are of whole chunks.
    numbers = {-(-chunks // -(-chunks // wanted)) for wanted in range(1, _MOST_EVENING + 1)}
    best = min(sorted(numbers), key=waves)
    return best if waves(best) < _WORTH_SLICING * waves(1) else 1


def _filling(problem: Problem, device: Device, bm: int, bn: int, bk: int, waves: int) -> int:
    most = max(1, problem.k // (4 * bk))
    return min(most, max(1, waves * device.units // tiles_of(problem, bm, bn)))
