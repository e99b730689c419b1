"""16-bit products by a kernel of our own, which asks nothing of C's or the result's alignment.

cuBLAS runs 16-bit products of odd sizes at 10-20 % of the speed of their aligned neighbours
(H200, cuBLAS 13.1). Here only an operand whose own rows are unaligned costs a pass, if that, and
α, β and the one rounding happen where the sums are. Batches, of which torch has no such product,
are computed in one launch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from autogemm import precision
from autogemm.device import Device
from autogemm.precision import ErrorBound
from autogemm.problem import Problem
from autogemm.strategies.base import (
    Candidate,
    Params,
    ParamValue,
    Run,
    Strategy,
    at_least,
    filling_slices,
    one_of,
    reasons_against_size,
    tile_of,
    tiles_of,
)
from autogemm.strategies.direct_reads import (
    bind_direct,
    copied_elements,
    pays,
    reasons_not_direct,
    tiles_for,
)
from autogemm.strategies.guarded import aligned_extent

_TILES = (
    (128, 256, 64, 8, 4),
    (256, 128, 64, 8, 4),
    (128, 128, 64, 8, 3),
    (128, 128, 64, 4, 3),
    (64, 128, 64, 4, 4),
    (128, 64, 64, 4, 4),
    (64, 64, 128, 4, 3),
    (32, 128, 64, 4, 5),
    (32, 64, 128, 4, 4),
    (32, 64, 64, 4, 3),
    (128, 32, 64, 4, 5),
    (64, 32, 128, 4, 4),
    (64, 32, 64, 4, 3),
    (16, 128, 128, 4, 3),
    (16, 64, 128, 4, 6),
    (16, 64, 64, 4, 3),
    (128, 16, 128, 4, 3),
    (64, 16, 128, 4, 6),
    (64, 16, 64, 4, 3),
)
"""(bm, bn, bk, warps, stages); below 64 rows the product is computed transposed."""

_LONGEST = 2**30
"""Rows, columns and elements of k: places behind the last one fit 32 bits, too."""
_WAVES = (1, 2, 4)
"""Programs a multiprocessor that slices of k aim at."""
_MOST_TILES = 16
"""Tiles a multiprocessor, beyond which larger ones are better."""


class TritonGemm(Strategy):
    """Unaligned operands are copied into aligned ones, both in one launch; another multiplies.
    Of batches each takes a launch of its own.

    ``bm`` x ``bn`` is the tile, ``bk`` its step along k, ``slices`` the parts of k computed
    apart, ``group`` the rows of tiles that share columns in time. With ``persistent`` a program
    computes tile after tile and loads operands of the next while it writes the last. ``reads`` is
    given as ``direct`` or not at all: one unaligned operand is not copied, then.
    """

    name = "triton_gemm"
    dtypes = frozenset({torch.float16, torch.bfloat16})
    device_types = frozenset({"cuda"})
    packages = ("triton",)
    depends_on = ("torch", "triton")
    min_capability = (9, 0)  # tensor descriptors
    optional = frozenset({"reads"})
    batched = True

    def parameters(self) -> Mapping[str, Callable[[ParamValue], bool]]:
        extent = one_of(16, 32, 64, 128, 256)
        return {
            "bm": extent,
            "bn": extent,
            "bk": one_of(32, 64, 128),
            "warps": one_of(4, 8),
            "stages": one_of(1, 2, 3, 4, 5, 6),
            "slices": at_least(1),
            "group": at_least(1),
            "persistent": one_of(True, False),
            "reads": one_of("direct"),
        }

    def wrong_parameters(self, params: Params) -> list[str]:
        wrong = super().wrong_parameters(params)
        if wrong:
            return wrong
        bm, bn = tile_of(params)
        if max(bm, bn) < 64 or bm * bn > 128 * 256:
            return ["a tile needs 64 rows or columns and has at most 32768 elements"]
        if params["persistent"] and params["slices"] != 1:
            return ["persistent programs take no slices"]
        if "reads" in params and (params["persistent"] or params["slices"] != 1):
            return ["reads=direct takes neither slices nor persistent programs"]
        return []

    def _reasons_not(self, problem: Problem, device: Device, params: Params) -> list[str]:
        if "rocm" in device.features:
            return ["the arithmetic of its tensor cores was studied on NVIDIA GPUs only"]
        if max(problem.m, problem.n, problem.k) > _LONGEST:
            return [f"places are 32-bit: extents are {_LONGEST} at most, not {problem}"]
        if problem.batch > 1:
            return _reasons_against_batch(problem, params)
        return reasons_not_direct(problem, params) if "reads" in params else []

    def space(self, problem: Problem, device: Device) -> Iterable[dict[str, ParamValue]]:
        tiles = [t for t in _TILES if _fits(t[0], problem.m) and _fits(t[1], problem.n)]
        largest = max((bm * bn for bm, bn, *_ in tiles), default=0)
        for tile in tiles:
            bm, bn, bk = tile[:3]
            count = problem.batch * tiles_of(problem, bm, bn)
            if bm * bn < min(largest, 128 * 128) and count > _MOST_TILES * device.units:
                continue
            if problem.batch > 1:
                yield _params(*tile, 1, 8, False)
                if count > _resident(bm * bn) * device.units:
                    yield _params(*tile, 1, 8, True)
                continue
            for slices in _slices(problem, device, bm, bn, bk):
                yield _params(*tile, slices, 8, False)
            if bm * bn > 128 * 128 and count > device.units:
                yield _params(*tile, 1, 16, False)
                yield _params(*tile, 1, 8, True)
        for tile in tiles_for(problem):
            direct = {**_params(*tile, 1, 8, False), "reads": "direct"}
            if not reasons_not_direct(problem, direct):
                yield direct

    def kin(self, candidate: Candidate) -> Candidate:
        """Same tile, read alike: slices and groups are then matters of degree."""
        params = candidate.kwargs
        shared = {key: params[key] for key in ("bm", "bn", "reads") if key in params}
        return Candidate.of(self.name, **shared)

    def fitted(self, candidate: Candidate, problem: Problem, device: Device) -> Candidate:
        """Not read directly where that costs more than a copy."""
        params = dict(candidate.kwargs)
        if "reads" in params and not pays(problem, params):
            del params["reads"]
        return Candidate.of(self.name, **params)

    def bound(self, problem: Problem, params: Params) -> ErrorBound:
        # docs/accuracy.md derives it below "cute".
        return ErrorBound(4.0, precision.growth(problem.dtype, problem.k))

    def bind(self, problem: Problem, device: Device, params: Params) -> Run:
        if "reads" in params:
            return bind_direct(problem, params)
        from autogemm.kernels.half_batch import half_batch
        from autogemm.kernels.half_product import half_product
        from autogemm.kernels.replay import into_new
        from autogemm.kernels.split_product import Tiling

        bm, bn = tile_of(params)
        # Tensor cores take 64 rows at a time, and as few as 8 columns; results are written
        # along their rows.
        transposed = bm < 64 or (bn >= 64 and problem.out.startswith("col"))
        if transposed:
            bm, bn = bn, bm
        tiling = Tiling(
            bm, bn, int(params["bk"]), int(params["warps"]), int(params["stages"]),
            int(params["group"]),
        )  # fmt: skip
        slices = int(params["slices"])
        programs = _resident(bm * bn) * device.units if params["persistent"] else None
        batched = problem.batch > 1
        ready = _operands(problem)

        def write(
            alpha: float, A: Tensor, B: Tensor, beta: float, C: Tensor | None, out: Tensor
        ) -> None:
            A, B = ready(A, B)
            if transposed:
                A, B, out = B.mT, A.mT, out.mT
                C = None if C is None else C.mT
            if batched:
                half_batch(alpha, A, B, beta, C, out, tiling=tiling, programs=programs)
            else:
                half_product(
                    alpha, A, B, beta, C, out, tiling=tiling, slices=slices, programs=programs
                )

        return into_new(write, batched=batched)

    def workspace_bytes(self, problem: Problem, params: Params) -> int:
        m, n, k = problem.m, problem.n, problem.k
        if "reads" in params:
            return copied_elements(problem) * problem.itemsize
        slices = int(params["slices"])
        staged = (m * k if _is_unaligned(problem.a) else 0) + (
            k * n if _is_unaligned(problem.b) else 0
        )
        staged *= problem.batch
        return staged * problem.itemsize + (4 * slices * m * n if slices > 1 else 0)


def _reasons_against_batch(problem: Problem, params: Params) -> list[str]:
    if reasons := reasons_against_size(problem, *tile_of(params)):
        return reasons
    if params["slices"] != 1 or "reads" in params:
        return ["k is whole in batches, and nothing is read in another way than by tiles"]
    if {problem.a, problem.b} - {"row", "col"} and (
        problem.batch * max(problem.m, problem.n, problem.k) > _LONGEST
    ):
        return [f"matrices that are copied have {_LONGEST} rows together at most, not {problem}"]
    return [
        f"of matrices in batches rows or columns are contiguous; {name} is strided"
        for name, layout in (("A", problem.a), ("B", problem.b))
        if layout == "strided"
    ]


def _operands(problem: Problem) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """What gives A and B as the kernel can read them: copies, if need be, of what is unaligned."""
    from autogemm.kernels.half_batch import aligned
    from autogemm.kernels.half_product import is_ready
    from autogemm.kernels.staging import stage, stage_both

    a_doubtful, b_doubtful = _is_unaligned(problem.a), _is_unaligned(problem.b)
    if not (a_doubtful or b_doubtful):
        return lambda A, B: (A, B)
    if problem.batch > 1:
        return lambda A, B: (aligned(A), aligned(B))
    dtype = problem.dtype
    # Whichever extent is contiguous must be padded; the others cost next to nothing.
    m, n, k = (aligned_extent(x, problem.itemsize) for x in (problem.m, problem.n, problem.k))

    def ready(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
        # An odd extent alone calls a layout unaligned; only an odd stride or address matters.
        a_needs = a_doubtful and not is_ready(A)
        b_needs = b_doubtful and not is_ready(B)
        if a_needs and b_needs:
            return stage_both(A, B, m=m, n=n, k=k, dtype=dtype)
        if a_needs:
            A = stage(A, rows=m, cols=k, dtype=dtype)
        if b_needs:
            B = stage(B, rows=k, cols=n, dtype=dtype)
        return A, B

    return ready


def _is_unaligned(layout: str) -> bool:
    return layout not in ("row", "col")


def _params(
    bm: int, bn: int, bk: int, warps: int, stages: int, slices: int, group: int, persistent: bool
) -> dict[str, ParamValue]:
    return {
        "bm": bm, "bn": bn, "bk": bk, "warps": warps, "stages": stages, "slices": slices,
        "group": group, "persistent": persistent,
    }  # fmt: skip


def _fits(block: int, extent: int) -> bool:
    """Whether a tile's extent suits the problem's: more than half full; a narrow one is alone."""
    return (extent > block // 2 or block == 16) and (block >= 64 or extent <= block)


def _resident(size: int) -> int:
    """Programs with tiles of that many elements that fit a multiprocessor."""
    return 1 if size > 128 * 128 else 2


def _slices(problem: Problem, device: Device, bm: int, bn: int, bk: int) -> list[int]:
    """Numbers of slices that fill the device, and 1 unless that leaves most of it idle."""
    waves = _WAVES[: 1 + _resident(bm * bn)]
    found = {filling_slices(problem, device, bm, bn, bk, n) for n in waves}
    if 4 * tiles_of(problem, bm, bn) >= device.units:
        found.add(1)
    return sorted(found)
