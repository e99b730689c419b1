"""The kernel behind ``triton_gemm``, and what the strategy declares.

It runs on a GPU as it is, elsewhere in Triton's interpreter, as ``test_kernels.py`` has it.
"""

from __future__ import annotations

import importlib
import itertools
from dataclasses import replace

import pytest
import torch
from invented import GPU
from test_kernels import LAYOUTS, ON_GPU, PLACE, normal, serve

from autogemm.grading.oracle import Truth
from autogemm.precision import Tolerance
from autogemm.problem import Problem, contiguous_problem
from autogemm.strategies import BY_NAME, Candidate
from autogemm.strategies.base import ParamValue
from autogemm.workloads import preset

half_products = importlib.import_module("autogemm.kernels.half_product")
staging = importlib.import_module("autogemm.kernels.staging")
Tiling = importlib.import_module("autogemm.kernels.split_product").Tiling

pytestmark = pytest.mark.filterwarnings("ignore:::triton.runtime.interpreter")

STRATEGY = BY_NAME["triton_gemm"]
HALVES = (torch.float16, torch.bfloat16)
PARAMS: dict[str, ParamValue] = {
    "bm": 64, "bn": 64, "bk": 32, "warps": 4, "stages": 2, "slices": 1, "group": 8,
    "persistent": False,
}  # fmt: skip
TILES = ((64, 64), (128, 256), (64, 16), (16, 64))


def candidate(**changed: ParamValue) -> Candidate:
    return Candidate.of("triton_gemm", **{**PARAMS, **changed})


def product(
    alpha: float, A: torch.Tensor, B: torch.Tensor, beta: float, C: torch.Tensor | None,
    out: torch.Tensor, *, bm: int = 64, bn: int = 64, slices: int = 1, programs: int | None = None,
) -> torch.Tensor:  # fmt: skip
    half_products.half_product(
        alpha, A, B, beta, C, out, tiling=Tiling(bm, bn, 32, 4, 2), slices=slices,
        programs=programs,
    )  # fmt: skip
    return out


def integers(rows: int, cols: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    """Whole numbers from -8 to 8: their products and sums are exact in float32."""
    return (normal(rows, cols) * 3).round().clamp(-8, 8).to(dtype)


# -------------------------------------------------------------------------------- the kernel


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("a", ["row", "col"])
@pytest.mark.parametrize("b", ["row", "col"])
def test_a_tile_is_rounded_once(tile: tuple[int, int], a: str, b: str) -> None:
    m, n, k = 72, 88, 104  # more than one tile, of none a multiple
    A, B, C = integers(m, k), integers(k, n), integers(m, n)
    exact = 0.75 * (A.double() @ B.double()) + 0.5 * C.double()
    out = torch.full_like(C, torch.nan)
    product(0.75, LAYOUTS[a](A), LAYOUTS[b](B), 0.5, C, out, bm=max(tile), bn=min(tile))
    assert torch.equal(out, exact.half())


@pytest.mark.parametrize("slices", [2, 3, 7, 100])
@pytest.mark.parametrize("layout", ["row", "col", "block", "strided"])
def test_slices_of_k_add_up_in_float32(slices: int, layout: str) -> None:
    m, n, k = 40, 72, 136
    A, B, C = integers(m, k), integers(k, n), integers(m, n)
    exact = 0.75 * (A.double() @ B.double()) + 0.5 * C.double()
    out = LAYOUTS[layout](torch.full_like(C, torch.nan))
    assert torch.equal(product(0.75, A, B, 0.5, C, out, slices=slices), exact.half())


@pytest.mark.parametrize("programs", [1, 2, 3, 50])
def test_few_programs_compute_all_tiles(programs: int) -> None:
    m, n, k = 200, 136, 72
    A, B, C = integers(m, k), integers(k, n), integers(m, n)
    exact = A.double() @ B.double() - 2 * C.double()
    out = torch.full_like(C, torch.nan)
    assert torch.equal(product(1.0, A, B, -2.0, C, out, programs=programs), exact.half())


@pytest.mark.parametrize("slices", [1, 3])
@pytest.mark.parametrize("out", LAYOUTS)
@pytest.mark.parametrize("c", ["none", "full", "col", "strided", "row", "column", "itself"])
def test_c_and_the_result_lie_anyhow(c: str, out: str, slices: int) -> None:
    m, n, k = 70, 33, 96
    A, B, values = integers(m, k), LAYOUTS["col"](integers(k, n)), integers(m, n)
    target = LAYOUTS[out](values if c == "itself" else torch.full_like(values, torch.nan))
    around = 0 if target._base is None else int(target._base.isnan().sum())
    C = {
        "none": None, "full": values, "col": LAYOUTS["col"](values),
        "strided": LAYOUTS["strided"](values), "row": values[:1].expand(m, n),
        "column": values[:, :1].expand(m, n), "itself": target,
    }[c]  # fmt: skip
    exact = 1.5 * (A.double() @ B.double()) + (0 if C is None else 0.5 * C.double())
    product(1.5, A, B, 0.5, C, target, slices=slices)
    assert torch.equal(target, exact.half())
    if target._base is not None and target._base.shape != target.shape:
        written = 0 if c == "itself" else m * n
        assert int(target._base.isnan().sum()) == around - written


@pytest.mark.parametrize("slices", [1, 2])
def test_a_sum_beyond_float16_is_no_overflow_where_alpha_brings_it_back(slices: int) -> None:
    A = torch.full((8, 64), 256.0, dtype=torch.float16, device=PLACE)
    B = torch.full((64, 8), 256.0, dtype=torch.float16, device=PLACE)
    out = torch.empty(8, 8, dtype=torch.float16, device=PLACE)
    assert (product(2.0**-10, A, B, 0.0, None, out, slices=slices) == 4096.0).all()
    assert (product(1.0, A, B, 0.0, None, out, slices=slices) == torch.inf).all()


@pytest.mark.parametrize("slices", [1, 2])
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_infinities_and_nan_reach_their_row_and_column_alone(value: float, slices: int) -> None:
    A, B = integers(20, 72), integers(72, 24).abs() + 1
    A[3, 70] = value
    B[5, 7] = torch.nan
    out = torch.zeros(20, 24, dtype=torch.float16, device=PLACE)
    product(1.0, A, B, 0.0, None, out, slices=slices)
    others = [j for j in range(24) if j != 7]
    assert out[:, 7].isnan().all()
    assert (out[3, others].isnan() if value != value else out[3, others] == value).all()
    assert out[[i for i in range(20) if i != 3]][:, others].isfinite().all()


def test_without_c_none_is_read() -> None:
    A, B = integers(9, 16), integers(16, 8)
    for slices in (1, 2):
        out = torch.full((9, 8), torch.nan, dtype=torch.float16, device=PLACE)
        product(1.0, A, B, 0.0, None, out, slices=slices)
        assert torch.equal(out, (A.double() @ B.double()).half())


def test_operands_may_be_larger_than_the_result_by_zeros() -> None:
    A, B = torch.zeros(16, 24, dtype=torch.float16), torch.zeros(24, 16, dtype=torch.float16)
    A, B = A.to(PLACE), B.to(PLACE)
    A[:9, :17], B[:17, :13] = integers(9, 17), integers(17, 13)
    out = torch.empty(9, 13, dtype=torch.float16, device=PLACE)
    product(1.0, A, B, 0.0, None, out)
    assert torch.equal(out, (A.double() @ B.double())[:9, :13].half())


LYING = {  # shape, strides, place of the first element; whether it can be read so
    "rows": ((5, 16), (16, 1), 0, True),
    "columns": ((16, 5), (1, 16), 0, True),
    "odd extents, rows 16 bytes apart all the same": ((5, 13), (16, 1), 0, True),
    "odd rows": ((5, 13), (13, 1), 0, False),
    "odd columns": ((13, 5), (1, 13), 0, False),
    "an odd address": ((5, 16), (24, 1), 1, False),
    "one row": ((1, 13), (13, 1), 0, True),
    "one row that was a column": ((1, 13), (1, 1), 0, True),
    "one column": ((13, 1), (1, 1), 0, True),
    "one column of many": ((5, 1), (16, 1), 0, True),
    "one column of an odd number": ((5, 1), (13, 1), 0, False),
    "every other column": ((5, 16), (32, 2), 0, False),
    "one row again and again": ((5, 16), (0, 1), 0, False),
    "one column again and again": ((16, 5), (1, 0), 0, False),
    "a number": ((1, 1), (3, 7), 0, True),
}


@pytest.mark.parametrize("name", LYING)
def test_what_can_be_read_as_it_lies_has_aligned_rows_or_columns(name: str) -> None:
    shape, strides, first, ready = LYING[name]
    A = integers(1, 1024).view(-1).as_strided(shape, strides, first)
    assert half_products.is_ready(A) == ready
    if ready:
        B = integers(shape[1], 8)
        out = torch.empty(shape[0], 8, dtype=torch.float16, device=PLACE)
        product(1.0, A, B, 0.0, None, out)
        assert torch.equal(out, (A.double() @ B.double()).half())
        out = torch.empty(8, shape[0], dtype=torch.float16, device=PLACE)
        product(1.0, B.t(), A.t(), 0.0, None, out)
        assert torch.equal(out, (B.t().double() @ A.t().double()).half())


# ------------------------------------------------------------------------------ the strategy


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(("bm", "bn"), [*TILES, (64, 128), (128, 16)])
def test_every_layout_of_operands_is_served(bm: int, bn: int, dtype: torch.dtype) -> None:
    sizes = itertools.cycle(((9, 13, 50), (70, 16, 33), (1, 75, 64), (3, 1, 1)))
    outs = itertools.cycle(("new", "C", "row", "col", "block"))
    for a, b in itertools.product(LAYOUTS, LAYOUTS):
        (m, n, k), out = next(sizes), next(outs)
        A, B, C = (normal(*shape, dtype=dtype) for shape in ((m, k), (k, n), (m, n)))
        truth = Truth(-1.5, A.cpu(), B.cpu(), 0.5, C.cpu())
        given = LAYOUTS[a](A), LAYOUTS[b](B)
        assert serve(candidate(bm=bm, bn=bn), -1.5, *given, 0.5, C, out, truth)


def test_an_operand_that_can_be_read_as_it_lies_is_not_copied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copied: list[tuple[int, ...]] = []
    real = staging.stage

    def stage(x: torch.Tensor, **options: object) -> torch.Tensor:
        copied.append(tuple(x.shape))
        return real(x, **options)

    monkeypatch.setattr(staging, "stage", stage)
    wide, odd = integers(12, 24)[:, :21], integers(21, 13)
    problem = replace(
        contiguous_problem(12, 13, 21, torch.float16), a="row-unaligned", b="row-unaligned"
    )
    run = STRATEGY.bind(problem, GPU, PARAMS)
    result = run(1.0, wide, odd, 0.0, None, None)
    assert torch.equal(result, (wide.double() @ odd.double()).half())
    assert copied == [(21, 13)]


def test_equal_operands_of_any_kind_may_be_one_row_or_column() -> None:
    for A, B in (
        (integers(1, 40).expand(9, 40), integers(40, 8)),
        (integers(9, 1).expand(9, 40), integers(40, 1).expand(40, 8)),
    ):
        truth = Truth(1.0, A.cpu(), B.cpu(), 0.0, None)
        assert serve(candidate(), 1.0, A, B, 0.0, None, "new", truth)


def problem(m: int = 4096, n: int = 4096, k: int = 4096, **facts: object) -> Problem:
    return replace(contiguous_problem(m, n, k, torch.bfloat16), **facts)


def test_it_serves_the_highest_level_at_every_length() -> None:
    for k in (1, 2, 15, 16, 17, 100, 4096, 2**20):
        assert Tolerance("highest").admits(STRATEGY.bound(problem(k=k), PARAMS), torch.bfloat16, k)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"bm": 16, "bn": 32}, "64 rows or columns"),
        ({"bm": 256, "bn": 256}, "at most 32768"),
        ({"persistent": True, "slices": 2}, "no slices"),
        ({"bk": 16}, "does not take bk=16"),
        ({"slices": 0}, "does not take slices=0"),
    ],
)
def test_parameters_it_cannot_run_are_refused(
    changed: dict[str, ParamValue], reason: str
) -> None:
    (said,) = STRATEGY.reasons_not(problem(), GPU, {**PARAMS, **changed})
    assert reason in said


def test_what_is_missing_is_named() -> None:
    old = replace(GPU, capability=(8, 0))
    assert "capability 9.0" in STRATEGY.reasons_not(problem(), old, PARAMS)[0]
    bare = replace(GPU, packages=frozenset())
    assert "'triton'" in STRATEGY.reasons_not(problem(), bare, PARAMS)[0]
    assert "NVIDIA" in STRATEGY.reasons_not(problem(), replace(GPU, features=("rocm",)), PARAMS)[0]
    for extent in ("m", "n", "k"):
        long = replace(problem(), **{extent: 2**30 + 8})
        assert "1073741824 at most" in STRATEGY.reasons_not(long, GPU, PARAMS)[0]
        assert STRATEGY.reasons_not(replace(problem(), **{extent: 2**30}), GPU, PARAMS) == []


def test_the_space_is_legal_small_and_seldom_empty() -> None:
    problems = [w.problem for w in preset("full", "cuda") if w.problem.is_half]
    assert len(problems) > 50
    for where in problems:
        if where.batch > 1:
            continue
        offered = list(STRATEGY.space(where, replace(GPU, units=132)))
        assert len(STRATEGY.candidates(where, GPU)) == len(list(STRATEGY.space(where, GPU)))
        assert 1 <= len(offered) <= 20, str(where)
        assert len({str(params) for params in offered}) == len(offered)


def test_small_products_are_sliced_and_large_ones_are_not() -> None:
    def slices(m: int, n: int, k: int) -> set[ParamValue]:
        return {params["slices"] for params in STRATEGY.space(problem(m, n, k), GPU)}

    assert slices(8192, 8192, 8192) == {1}
    assert max(slices(256, 256, 2**18), key=int) >= 50
    assert 1 not in slices(256, 256, 2**18)
    assert slices(2048, 2048, 64) == {1}


def test_its_workspace_counts_copies_and_slices() -> None:
    where = problem(10, 20, 30, a="row", b="row")
    assert STRATEGY.workspace_bytes(where, PARAMS) == 0
    assert STRATEGY.workspace_bytes(where, {**PARAMS, "slices": 3}) == 4 * 3 * 10 * 20
    odd = replace(where, a="row-unaligned")
    assert STRATEGY.workspace_bytes(odd, PARAMS) == 2 * 10 * 30


@pytest.mark.skipif(not ON_GPU, reason="the interpreter does not compile")
def test_a_compiled_kernel_serves_all_sizes() -> None:
    """Compiling takes a second or more: a new size must not cost one."""
    kernel = half_products._product_kernel
    for m in (100, 101, 117, 128):
        A, B = integers(m, 64), integers(64, 64)[:, :63]  # rows begin at multiples of 16 bytes
        product(1.0, A, B, 0.0, None, torch.empty(m, 63, dtype=torch.float16, device=PLACE))
    (cache, *_) = kernel.device_caches[torch.cuda.current_device()]
    before = len(cache)
    A, B = integers(555, 64), integers(64, 336)[:, :333]
    product(1.0, A, B, 0.0, None, torch.empty(555, 333, dtype=torch.float16, device=PLACE))
    assert len(cache) == before
