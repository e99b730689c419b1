"""What is worth trying of ``emulated_fp32``: tiles, lengths of chunks, numbers of slices."""

from __future__ import annotations

from collections.abc import Iterator

from autogemm.device import Device
from autogemm.problem import Problem
from autogemm.strategies.base import Params, ParamValue, filling_slices, tile_of, tiles_of
from autogemm.strategies.hopper import reasons_without_gluon

SPLIT_FORMS = ("split", "continuous")
"""Both operands are split beforehand."""
IN_PAIRS = ("streamed", "tandem")
"""Blocks of k are brought and split two at a time."""
BATCHED = ("fused", "continuous")
"""Of these there are kernels for batches."""
_METHODS = ("fp16x3", "fp16")
_SPLIT_TILES = {
    ("split", "fp16x3"): (
        (128, 128, 64, 8, 3),
        (64, 128, 64, 4, 2),
        (128, 64, 64, 4, 2),
        (64, 64, 64, 4, 3),
    ),
    ("split", "fp16"): (
        (128, 256, 64, 8, 3),
        (128, 128, 64, 8, 4),
        (64, 128, 64, 4, 3),
        (128, 64, 64, 4, 3),
    ),
    ("continuous", "fp16x3"): (
        (128, 128, 64, 8, 3),
        (64, 128, 64, 4, 2),
        (64, 128, 32, 4, 4),
        (128, 64, 64, 4, 2),
        (64, 64, 64, 4, 3),
    ),
    ("continuous", "fp16"): (
        (128, 256, 64, 8, 3),
        (128, 128, 64, 8, 4),
        (64, 128, 64, 4, 4),
        (128, 64, 64, 4, 4),
        (64, 64, 64, 4, 4),
    ),
}
BRIEF_TILES = {
    "fp16x3": {(64, 128, 32, 4, 3): 168},
    "fp16": {(64, 128, 64, 4, 2): 128, (64, 128, 64, 4, 3): 168},
}
"""Further tiles of form ``continuous`` where k is at most ``_BRIEF_K``, and a thread's registers
where one chunk covers k: three programs (four, with 128) then share a multiprocessor. Where k is 64
or 128 and much is written, that takes 8 to 23 % less time (H200)."""
_BRIEF_K = 128
TILES: dict[str, tuple[tuple[int, int, int, int, int], ...]] = {
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
    # It gains where slices are long (H200).
    "tandem": ((128, 128, 32, 8, 2), (128, 64, 32, 8, 3), (64, 64, 32, 4, 2)),
}
"""(bm, bn, bk, warps, stages), in form ``tandem`` stages of two blocks of k; below 64 rows the
product is computed transposed."""
_STREAMED_TILES = (
    (128, 128, 32, 8, 3),
    (64, 128, 32, 4, 2),
    (64, 64, 32, 4, 3),
    (64, 64, 32, 4, 2),
    (64, 32, 32, 4, 3),
    (64, 16, 32, 4, 3),
)
"""(rows of the larger operand, columns of the other, bk, warps, stages of two blocks of k)."""
_MUCH_LARGER = 8
"""How many times longer than the other operand one is that form ``streamed`` is tried on; below
it was slower than ``split`` (H200)."""
STREAMED_REGISTERS = {
    (64, 64, 32, 4, 2, 1): 168,
    (64, 64, 32, 4, 2, 2): 168,
    (64, 16, 32, 4, 3, 2): 168,
}
"""Of a thread, by tile of form ``streamed`` and terms: three programs then share a multiprocessor,
which is faster with 64 x 64 where k is short (H200)."""
_CHUNKS = {
    ("split", "fp16x3"): (128, 256, 512, 1024, 2048),
    ("split", "fp16"): (512, 2048),
    ("fused", "fp16x3"): (64, 128, 256, 512),
    ("fused", "fp16"): (512, 2048),
    ("tandem", "fp16x3"): (128, 256, 512),
    ("tandem", "fp16"): (512, 2048),
    ("streamed", "fp16x3"): (256, 512),
    ("streamed", "fp16"): (512, 2048),
}
_BRIEF = (64, 128, 256)
"""Chunks of operands that are split beforehand, where one of them covers k."""
_SHORTER_CHUNKS = {64: 512, 128: 1024}
"""Chunks that form ``streamed`` tries besides, and below which k: with longer ones such sums break
the bound of ``highest``, or nearly do."""
_SHORT = 150
"""Up to here the bound of form ``fused`` serves ``highest`` with one block of k to a chunk alone
(docs/accuracy.md)."""
_ADMITTED = ((292, 64), (573, 128), (1136, 256))
"""The longest chunks that the bound of ``highest`` admits below these k, where all three products
share an accumulator (docs/accuracy.md)."""
_MOST_EVENING, _WORTH_SLICING = 6, 0.85
"""Slices of form ``split``, whose parts are added through memory: how many at most, and how much
of the time they must leave, counted in waves of tiles."""
_WAVES, _USUAL = (1, 2, 4), 2
"""Programs a multiprocessor that slices of k aim at, and what was best most often (H200)."""


def space(problem: Problem, device: Device) -> Iterator[dict[str, ParamValue]]:
    """The parameters that the tuner chooses from."""
    if problem.batch > 1:
        yield from _space_of_batches(problem, device)
        return
    # They compute the same, and ``continuous`` faster: by up to a quarter where k is short (H200).
    has_gluon = not reasons_without_gluon(device, "continuous")
    split = "continuous" if has_gluon else "split"
    for method in _METHODS:
        for bm, bn, bk, warps, stages in _tiles_of_terms(problem, split, method):
            tiles_here = tiles_of(problem, bm, bn)
            for chunk in _chunks(split, method, problem.k):
                even = _evening(tiles_here, device, -(-problem.k // chunk))
                for slices in sorted({1, even}):
                    for group in (8, 16) if tiles_here > 2 * device.units else (8,):
                        yield _params(
                            split, method, bm, bn, bk, warps, stages, chunk, slices, group
                        )
    for form, method in _CHUNKS:
        for bm, bn, bk, warps, stages in TILES.get(form, ()):
            if not (_fits(bm, problem.m) and _fits(bn, problem.n)):
                continue
            if form == "tandem" and not _suits_tandem(problem, device, method, bm, bn):
                continue
            unit = 2 * bk if form in IN_PAIRS else bk
            wanted = _slices(problem, device, bm, bn, bk)
            for slices in sorted({_of_whole(unit, problem.k, number) for number in wanted}):
                for chunk in _chunks(form, method, -(-problem.k // slices)):
                    yield _params(form, method, bm, bn, bk, warps, stages, chunk, slices, 8)
    yield from _space_of_streamed(problem, device)


def fitted(params: Params, problem: Problem, device: Device) -> dict[str, ParamValue]:
    """A tile no larger than the result, slices that fill the device, a chunk that suits k."""
    params = dict(params)
    if params["form"] in SPLIT_FORMS:
        form, method, chunk = str(params["form"]), str(params["method"]), int(params["chunk"])
        offered = _chunks(form, method, problem.k)
        params["chunk"] = min(offered, key=lambda length: abs(length - chunk))
        cut = (*tile_of(params), *(int(params[name]) for name in ("bk", "warps", "stages")))
        if cut in BRIEF_TILES[method] and problem.k > _BRIEF_K:
            usual = (stages for *same, stages in _SPLIT_TILES[form, method] if cut[:4] == (*same,))
            params["stages"] = next(usual, params["stages"])
        if problem.batch > 1:
            params["slices"] = 1
        elif params["slices"] != 1:
            tiles = tiles_of(problem, *tile_of(params))
            chunks = -(-problem.k // int(params["chunk"]))
            params["slices"] = _evening(tiles, device, chunks)
        return params
    if params["form"] == "streamed":
        return _fitted_streamed(params, problem, device)
    snug = tuple(map(_no_larger, tile_of(params), (problem.m, problem.n)))
    if snug != tile_of(params):
        own = str(params["form"]) if params["method"] == "fp16" else "fused"  # as ``_suits_tandem``
        known = ((form, t) for form in (own, "fused") for t in TILES[form] if t[:2] == snug)
        params["form"], tile = next(known, (params["form"], None))
        if tile is not None:
            params.update(zip(("bm", "bn", "bk", "warps", "stages"), tile, strict=True))
    bm, bn, bk = *tile_of(params), int(params["bk"])
    if problem.batch > 1:
        params["form"], params["slices"] = "fused", 1
        is_short = params["method"] == "fp16x3" and problem.k <= _SHORT
        params["chunk"] = bk if is_short else _admitted(params, problem.k)
    else:
        params["slices"] = filling_slices(problem, device, bm, bn, bk, _USUAL)
    return params


def streamed_tile(params: Params, transposed: bool) -> tuple[int, int]:
    """Rows of the operand that streams, columns of the other."""
    bm, bn = tile_of(params)
    return (bn, bm) if transposed else (bm, bn)


def _tiles_of_terms(
    problem: Problem, form: str, method: str
) -> Iterator[tuple[int, int, int, int, int]]:
    """The tiles worth trying where both operands are split beforehand."""
    is_brief = form == "continuous" and problem.k <= _BRIEF_K
    for tile in (*_SPLIT_TILES[form, method], *(BRIEF_TILES[method] if is_brief else ())):
        if _fits(tile[0], problem.m) and _fits(tile[1], problem.n):
            yield tile


def _space_of_batches(problem: Problem, device: Device) -> Iterator[dict[str, ParamValue]]:
    has_gluon = not reasons_without_gluon(device, "continuous")
    for method in _METHODS:
        terms = _tiles_of_terms(problem, "continuous", method) if has_gluon else ()
        for bm, bn, bk, warps, stages in terms:
            for chunk in _chunks("continuous", method, problem.k):
                yield _params("continuous", method, bm, bn, bk, warps, stages, chunk, 1, 8)
        for bm, bn, bk, warps, stages in TILES["fused"]:
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
        for method in _METHODS:
            cut = dict.fromkeys(
                (chunk, _of_whole(chunk, problem.k, wanted))
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


def _admitted(params: Params, k: int) -> int:
    """The chunk, or the nearest that sums of k elements in one accumulator are admitted with."""
    chunk = max(64, int(params["chunk"]))
    if params["method"] == "fp16":
        return chunk
    return min([chunk, *(longest for below, longest in _ADMITTED if k < below)])


def _of_whole(unit: int, k: int, slices: int) -> int:
    """How many slices of whole units there are where so many are wanted."""
    units = -(-k // unit)
    return -(-units // -(-units // slices))


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
    params["chunk"] = max(_admitted(params, problem.k), 2 * int(params["bk"]))
    tiles, wanted = tiles_of(problem, *tile_of(params)), 1
    if tiles < device.units:
        wanted = filling_slices(problem, device, *tile_of(params), int(params["bk"]), _USUAL)
    params["slices"] = _of_whole(int(params["chunk"]), problem.k, wanted)
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


def _suits_tandem(problem: Problem, device: Device, method: str, bm: int, bn: int) -> bool:
    """Two terms read too much in smaller tiles; one is split beforehand where tiles are many."""
    if method == "fp16x3":
        return min(bm, bn) == 128
    return 2 * tiles_of(problem, bm, bn) <= device.units


def _chunks(form: str, method: str, k: int) -> Iterator[int]:
    """The chunk lengths worth trying: up to the first that covers k."""
    covered = False
    lengths = _CHUNKS["split" if form in SPLIT_FORMS else form, method]
    if form in SPLIT_FORMS:  # a stretch is split in full, whatever of it lies behind k
        lengths = (*(chunk for chunk in _BRIEF if k <= chunk < lengths[0]), *lengths)
    for chunk in lengths:
        if not covered:
            yield chunk
        covered = chunk >= k


def _slices(problem: Problem, device: Device, bm: int, bn: int, bk: int) -> list[int]:
    """Numbers of slices that fill the device, none where tiles alone do; slices are not short."""
    return sorted({filling_slices(problem, device, bm, bn, bk, waves) for waves in _WAVES})


def _evening(tiles: int, device: Device, chunks: int) -> int:
    """How many slices make the last wave of tiles worth its time, 1 where they hardly would."""

    def waves(slices: int) -> float:
        """Of whole tiles, in time."""
        return -(-tiles * slices // device.units) * -(-chunks // slices) / chunks

    # As many as there are: slices are of whole chunks.
    numbers = {-(-chunks // -(-chunks // wanted)) for wanted in range(1, _MOST_EVENING + 1)}
    best = min(sorted(numbers), key=waves)
    return best if waves(best) < _WORTH_SLICING * waves(1) else 1
