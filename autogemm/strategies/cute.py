"""16-bit products by the CuTe DSL kernels of the package ``quack-kernels``: TMA, WGMMA, clusters.

On an H200 they are as fast as cuBLAS on large products, and faster where cuBLAS picks badly:
270 µs against 360 at 2048x50304x768 (2026-11-22). C is read by the epilogue and never copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from autogemm import precision
from autogemm.aliasing import written
from autogemm.device import Device, software_versions
from autogemm.precision import ErrorBound
from autogemm.problem import Problem
from autogemm.strategies.base import Params, ParamValue, Run, Strategy, at_least, one_of
from autogemm.strategies.triton_gemm import TritonGemm

_SHARED = TritonGemm()
_STEP_K = 64
"""Elements of k between two loads, in the kernels for 16-bit types."""
_ALIGNED = 8
"""16-bit elements in the 16 bytes that TMA's strides are multiples of."""

_LARGE = (
    # tile_m, tile_n, pingpong, cluster_m, cluster_n, swap
    (128, 128, True, 2, 1, False),
    (128, 256, False, 2, 1, False),
    (128, 224, False, 2, 1, False),
    (128, 224, False, 2, 1, True),
    (256, 192, False, 2, 1, False),
    (192, 128, True, 1, 2, False),
    (256, 128, False, 1, 2, False),
    (256, 208, False, 1, 2, True),
    (128, 128, True, 1, 1, False),
    (192, 128, True, 2, 1, True),
    (128, 192, True, 2, 1, False),
    (256, 128, False, 2, 1, False),
    (128, 208, True, 2, 1, True),
)
"""Forms of products that are large both ways, most useful first. The first nine were picked as
within 0.4 % of the best of sixty on each of sixteen products of language models, in one run on an
H200 that timed one form after another (2026-11-29); the others are for other products."""

_OF_BATCHES = (
    # tile_m, tile_n, pingpong, cluster_m
    (128, 128, True, 1),
    (128, 192, True, 1),
    (128, 256, False, 1),
    (256, 128, False, 1),
    (128, 128, True, 2),
    (128, 192, True, 2),
    (128, 256, False, 2),
    (256, 128, False, 2),
    (192, 128, True, 1),
    (64, 128, True, 1),
    (64, 64, True, 1),
    (64, 128, False, 1),
)
"""Forms of batches, those of attention first."""


class Cute(Strategy):
    """One launch of quack's kernel for Hopper, two where k is split.

    ``tile_m`` x ``tile_n`` is the tile of the result; ``cluster_m`` x ``cluster_n`` blocks share
    what they load; with ``pingpong`` two warp groups take turns; with ``swap`` the transposed
    product is computed, which gives a short m the narrow side of a tile; and ``split`` parts of k
    are added in a fixed order, in float32. Batches are computed in the same launch, with k whole;
    where one matrix serves all of a batch (expanded, stride 0) ``triton_gemm`` computes it, since
    quack does not say that its loads are fine with such a stride.
    """

    name = "cute"
    dtypes = frozenset({torch.float16, torch.bfloat16})
    device_types = frozenset({"cuda"})
    packages = ("quack",)
    depends_on = ("torch", "cuda", "quack")
    min_capability = (9, 0)
    batched = True

    def parameters(self) -> Mapping[str, Callable[[ParamValue], bool]]:
        return {
            "tile_m": one_of(64, 128, 192, 256),
            "tile_n": one_of(*range(16, 257, 16)),
            "cluster_m": one_of(1, 2),
            "cluster_n": one_of(1, 2),
            "pingpong": one_of(True, False),
            "swap": one_of(True, False),
            "split": at_least(1),
        }

    def _reasons_not(self, problem: Problem, device: Device, params: Params) -> list[str]:
        if device.capability[0] != 9:
            have = ".".join(map(str, device.capability))
            return [f"its tiles are those of compute capability 9.x; {device.name} has {have}"]
        version = software_versions(problem.device_type).get("quack", "0.6")
        if version.split(".")[:2] != ["0", "6"]:
            return [f"drives version 0.6 of quack-kernels; {version} is installed"]
        if not device.has_package("cutlass"):
            return ["quack-kernels is installed, the package 'cutlass' that compiles it is not"]
        reasons = [
            f"TMA needs row- or column-major operands, aligned to 16 bytes; {name} is {layout}"
            for name, layout in (("A", problem.a), ("B", problem.b), ("the result", problem.out))
            if layout not in ("row", "col")
        ]
        if problem.m == 1:
            reasons.append("a product of one row is not computed by tiles")
        tile = int(params["tile_m"]), int(params["tile_n"])
        if not _fits(tile, bool(params["pingpong"])):
            turns = "with pingpong" if params["pingpong"] else "without pingpong"
            reasons.append(f"the kernel has no tile of {tile[0]}x{tile[1]} {turns}")
        if problem.batch > 1 and params["split"] != 1:
            reasons.append("k is whole in batches: their matrices fill a device")
        elif problem.batch > 1 and (why := _SHARED.reasons_not(problem, device, _tile(problem))):
            reasons.append(f"batches with a shared operand are for triton_gemm, which {why[0]}")
        elif int(params["split"]) > (steps := -(-problem.k // _STEP_K)):
            reasons.append(f"k = {problem.k} has {steps} steps of {_STEP_K}, too few to split")
        return reasons

    def space(self, problem: Problem, device: Device) -> Iterable[dict[str, ParamValue]]:
        if problem.batch > 1:
            return _of_a_batch(problem, device.units)
        if min(problem.m, problem.n) <= 64:
            return _narrow(problem, device.units)
        return _wide(problem, device.units)

    def bound(self, problem: Problem, params: Params) -> ErrorBound:
        growth = precision.growth(problem.dtype, problem.k)
        return _SHARED.bound(problem, params) if problem.batch > 1 else ErrorBound(3.0, growth)

    def workspace_bytes(self, problem: Problem, params: Params) -> int:
        if params["split"] == 1:
            return 0
        m, n = _seen(problem, params)
        tile_m, tile_n = int(params["tile_m"]), int(params["tile_n"])
        return -(-m // tile_m) * -(-n // tile_n) * (4 * tile_m * tile_n + 4)

    def bind(self, problem: Problem, device: Device, params: Params) -> Run:
        from quack.gemm import run_gemm_plan

        shape, dtype, batched = _shape(problem), problem.dtype, problem.batch > 1
        run_shared = _SHARED.bind(problem, device, _tile(problem)) if batched else None
        plans: dict[str, Any] = {}  # one for what becomes of C: each is a kernel of its own

        def run(
            alpha: complex | float,
            A: torch.Tensor,
            B: torch.Tensor,
            beta: complex | float,
            C: torch.Tensor | None,
            out: torch.Tensor | None,
        ) -> torch.Tensor:
            where = A.get_device()
            if where >= 0 and where != torch.cuda.current_device():
                with torch.cuda.device(where):  # kernels are launched on the current one
                    return run(alpha, A, B, beta, C, out)
            if run_shared is not None and not (A.stride(0) and B.stride(0)):
                return run_shared(alpha, A, B, beta, C, out)
            D = torch.empty(shape, dtype=dtype, device=A.device) if out is None else out
            kind, (a, b, d, c, along_n, along_m) = _seen_by_quack(problem, params, A, B, beta, C, D)
            plan = plans.get(kind)
            if plan is None:
                plan = plans[kind] = _plan(a, b, d, c, along_n, along_m, params)
            run_gemm_plan(
                plan, a, b, d, c, rowvec_bias=along_n, colvec_bias=along_m,
                alpha=float(alpha), beta=float(beta),  # type: ignore[arg-type]
            )  # fmt: skip
            if out is not None:
                written(out)
            return D

        return run


def compile_for(
    problem: Problem, params: Params, A: torch.Tensor, B: torch.Tensor, C: torch.Tensor | None
) -> None:
    """Compile the kernel for operands of a problem, and launch nothing."""
    D = torch.empty(_shape(problem), dtype=problem.dtype, device=A.device)
    if problem.out == "col":
        D = torch.empty_like(D.mT, memory_format=torch.contiguous_format).mT
    _, operands = _seen_by_quack(problem, params, A, B, 1.0, C, D)
    _plan(*operands, params)


_Operands = tuple[
    torch.Tensor, torch.Tensor, torch.Tensor,
    torch.Tensor | None, torch.Tensor | None, torch.Tensor | None,
]  # fmt: skip
"""A, B, D, C, a vector along n and one along m, in quack's order."""


def _seen_by_quack(
    problem: Problem, params: Params, A: torch.Tensor, B: torch.Tensor, beta: complex | float,
    C: torch.Tensor | None, D: torch.Tensor,
) -> tuple[str, _Operands]:  # fmt: skip
    """What becomes of C, in a word, and the operands as the kernel takes them; D is the result."""
    a, b, d, c = A, B, D, C
    along_n = along_m = None
    kind = "none"
    if C is not None and problem.update == "bias":
        # The kernel adds a row as it stands, so β is applied here. A stride of 0 is a
        # multiple of 16 bytes, whatever n is.
        row = C[(0,) * (C.ndim - 1)].float().mul_(beta)
        along_n = row.as_strided((problem.batch, problem.n), (0, 1))
        c, kind = None, "one row"
    elif C is not None and not (kind := _order(C)):
        c, kind = D.copy_(C), _order(D)
    if params["swap"]:
        a, b, d, c = b.mT, a, d.mT, None if c is None else c.mT
        along_n, along_m = None, along_n
    if int(params["split"]) > 1:  # which it knows of batches only
        a, b, d, c = a[None], b[None], d[None], None if c is None else c[None]
    return kind, (a, b, d, c, along_n, along_m)


def _plan(
    a: torch.Tensor,
    b: torch.Tensor,
    d: torch.Tensor,
    c: torch.Tensor | None,
    along_n: torch.Tensor | None,
    along_m: torch.Tensor | None,
    params: Params,
) -> Any:
    """Compile a kernel, or take it from quack's cache on disk; one second where it is new.

    It is compiled for the operands' types and orders, for any sizes and strides, and for any α
    and β: quack's own entry compiles others for α = 1 and for β = 1, which a user's first call
    would wait for after the tuner has compiled these.
    """
    from quack.gemm import _build_gemm_plan

    return _build_gemm_plan(
        a, b, d, c,
        tile_M=params["tile_m"], tile_N=params["tile_n"], tile_K=None,
        cluster_M=params["cluster_m"], cluster_N=params["cluster_n"], cluster_K=1,
        pingpong=params["pingpong"], persistent=True, is_dynamic_persistent=False,
        max_swizzle_size=8, split_k=params["split"], split_k_mode=0,  # SERIAL: in order
        alpha_mode=1, beta_mode=0 if c is None else 1, sr_seed_mode=0, rounding_mode=0,
        rowvec_bias=along_n, colvec_bias=along_m, b_kn=not params["swap"], add_to_output=False,
        tile_count_semaphore=None, cu_seqlens_m=None, cu_seqlens_k=None, A_idx=None,
        batch_idx_permute=None, use_tma_gather=False, concat_layout=(), num_warps=None,
        SFA=None, SFB=None,
    )  # fmt: skip


def _tile(problem: Problem) -> dict[str, ParamValue]:
    """A tile of ``triton_gemm`` that does well on batches, for those with a shared operand."""
    return {
        "bm": 128, "bn": 64 if problem.n <= 64 else 128, "bk": 64, "warps": 4, "stages": 3,
        "slices": 1, "group": 8, "persistent": False,
    }  # fmt: skip


def _shape(problem: Problem) -> tuple[int, ...]:
    """The result's shape."""
    batch = () if problem.batch == 1 else (problem.batch,)
    return (*batch, problem.m, problem.n)


def _order(C: torch.Tensor) -> str:
    """``row`` or ``col`` where TMA can read C as it is, else "": C's layout is no one's promise."""
    *batch, rows, cols = C.stride()
    if C.data_ptr() % (2 * _ALIGNED) or any(x == 0 or x % _ALIGNED for x in batch):
        return ""
    if cols == 1 and rows >= C.shape[-1] and rows % _ALIGNED == 0:
        return "row"
    return "col" if rows == 1 and cols >= C.shape[-2] and cols % _ALIGNED == 0 else ""


def _fits(tile: tuple[int, int], pingpong: bool) -> bool:
    """Whether the kernel takes a tile: its accumulators must fit a warp group's registers."""
    tile_m, tile_n = tile
    if pingpong:
        return tile_n <= {64: 256, 128: 208, 192: 128}.get(tile_m, 0)
    if tile_m == 192:
        return tile_n % 32 == 0
    return tile_n <= {64: 256, 128: 256, 256: 208}[tile_m]


def _seen(problem: Problem, params: Params) -> tuple[int, int]:
    """The extents of the result that the kernel computes."""
    return (problem.n, problem.m) if params["swap"] else (problem.m, problem.n)


def _wide(problem: Problem, units: int) -> list[dict[str, ParamValue]]:
    """Candidates of products that are large both ways; short ones and deep ones get more."""
    m, n = problem.m, problem.n
    found = []
    for tile_m, tile_n, pingpong, cluster_m, cluster_n, swap in _LARGE:
        rows, cols = (n, m) if swap else (m, n)
        if tile_m <= rows + 64 and tile_n <= cols + 32:  # of a larger tile much would be empty
            clusters = cluster_m if rows > tile_m else 1, cluster_n if cols > tile_n else 1
            found.append(_params(tile_m, tile_n, pingpong, clusters, swap=swap))
    if m <= 128:
        tile_n = _rounded_up(m)
        found += [_params(256, tile_n, False, swap=True), _params(192, tile_n, True, swap=True)]
    found = [p for i, p in enumerate(found) if p not in found[:i]]
    tiles = -(-m // 128) * -(-n // 128)
    if tiles <= units:  # there is work for a wave at most: smaller tiles, or parts of k
        found = [p for p in found if int(p["tile_m"]) * int(p["tile_n"]) <= 128 * 208]
        small = [_params(64, 128, True), _params(64, 64, True), _params(128, 64, True)]
        small += _splits(128, 128, units // tiles, problem.k)
        small = [p for p in small if p not in found]
        found = found[: _MOST - len(small)] + small
    return found[:_MOST]


def _narrow(problem: Problem, units: int) -> list[dict[str, ParamValue]]:
    """Candidates of products with a side of at most 64, which gets the narrow side of a tile."""
    swap = problem.m < problem.n
    short, long = sorted((problem.m, problem.n))
    tile_n = _rounded_up(short)
    found = []
    for tile_m in (64, 128):
        tiles = -(-long // tile_m)
        found += [_params(tile_m, tile_n, pingpong, swap=swap) for pingpong in (True, False)]
        found += _splits(tile_m, tile_n, units // tiles, problem.k, swap=swap)
    return found


def _of_a_batch(problem: Problem, units: int) -> list[dict[str, ParamValue]]:
    """Candidates of batches, of which no tile is wider than a matrix or mostly empty."""
    swap = problem.m < problem.n and problem.m <= 128
    rows, cols = (problem.n, problem.m) if swap else (problem.m, problem.n)
    found = []
    for tile_m, tile_n, pingpong, cluster_m in _OF_BATCHES:
        if tile_m < rows + 64:
            cluster = cluster_m if -(-rows // tile_m) % cluster_m == 0 else 1, 1
            narrow = min(tile_n, _rounded_up(cols))
            found.append(_params(tile_m, narrow, pingpong, cluster, swap=swap))
    found = [p for i, p in enumerate(found) if p not in found[:i]]
    if problem.batch * -(-rows // 128) * -(-cols // 128) <= units:  # work for a wave at most
        found.sort(key=lambda p: int(p["tile_m"]) * int(p["tile_n"]))
    return found[:_MOST_OF_A_BATCH]


def _rounded_up(extent: int) -> int:
    """The narrowest tile for an extent."""
    return -(-extent // 16) * 16


_MOST, _MOST_OF_A_BATCH = 15, 10
"""Candidates for one problem: each costs a compilation, some seconds with its measurements."""


def _splits(
    tile_m: int, tile_n: int, room: int, k: int, *, swap: bool = False
) -> list[dict[str, ParamValue]]:
    """One, two and four parts of k for each multiprocessor that has no tile."""
    parts = {min(p, -(-k // (4 * _STEP_K))) for p in (room, 2 * room, 4 * room)}
    return [
        _params(tile_m, tile_n, True, swap=swap, split=p) for p in sorted(parts) if p > 1
    ]


def _params(
    tile_m: int,
    tile_n: int,
    pingpong: bool,
    cluster: tuple[int, int] = (1, 1),
    *,
    swap: bool = False,
    split: int = 1,
) -> dict[str, ParamValue]:
    return {
        "tile_m": tile_m, "tile_n": tile_n, "cluster_m": cluster[0], "cluster_n": cluster[1],
        "pingpong": pingpong, "swap": swap, "split": split,
    }  # fmt: skip
