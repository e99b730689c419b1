"""``skinny``: a few rows in IEEE arithmetic.

Its kernel runs on a GPU as it is, elsewhere in Triton's interpreter, as ``test_kernels.py`` has it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from invented import GPU
from test_kernels import LAYOUTS, PLACE, normal, serve

from autogemm.grading.hostile import HOSTILE, names_for, seeded
from autogemm.grading.oracle import Truth
from autogemm.precision import Tolerance
from autogemm.problem import contiguous_problem
from autogemm.strategies import BY_NAME, Candidate
from autogemm.strategies.base import Params, ParamValue

skinny_products = importlib.import_module("autogemm.kernels.skinny_product")
Tiling = importlib.import_module("autogemm.kernels.split_product").Tiling

pytestmark = pytest.mark.filterwarnings("ignore:::triton.runtime.interpreter")

STRATEGY = BY_NAME["skinny"]
PARAMS: dict[str, ParamValue] = {"bn": 64, "bk": 32, "warps": 4, "stages": 2, "slices": 1}


def candidate(**changed: ParamValue) -> Candidate:
    return Candidate.of("skinny", **{**PARAMS, **changed})


def product(
    alpha: float, A: torch.Tensor, B: torch.Tensor, beta: float, C: torch.Tensor | None,
    out: torch.Tensor, *, bm: int = 16, slices: int = 1,
) -> torch.Tensor:  # fmt: skip
    skinny_products.skinny_product(
        alpha, A, B, beta, C, out, slices=slices, tiling=Tiling(bm, 64, 32, 4, 2)
    )
    return out


def integers(rows: int, cols: int) -> torch.Tensor:
    """Whole numbers from -8 to 8: their products and sums are exact in float32."""
    return (normal(rows, cols) * 3).round().clamp(-8, 8)


@pytest.mark.parametrize("rows", [1, 3, 4, 7, 8, 13, 16])
@pytest.mark.parametrize("slices", [1, 2, 5, 100])
def test_all_rows_and_slices_are_added(rows: int, slices: int) -> None:
    n, k = 136, 164  # of no tile a multiple
    A, B, C = integers(rows, k), integers(k, n), integers(rows, n)
    exact = 0.75 * (A.double() @ B.double()) + 0.5 * C.double()
    out = torch.full_like(C, torch.nan)
    bm = max(4, 1 << (rows - 1).bit_length())
    assert torch.equal(product(0.75, A, B, 0.5, C, out, bm=bm, slices=slices), exact.float())


@pytest.mark.parametrize("out", ["row", "col", "block", "strided"])
@pytest.mark.parametrize("a", ["row", "col"])
@pytest.mark.parametrize("slices", [1, 3])
def test_few_rows_and_results_lie_as_they_like(a: str, out: str, slices: int) -> None:
    m, n, k = 12, 72, 104
    A, B, C = integers(m, k), integers(k, n), integers(m, n)
    exact = -1.5 * (A.double() @ B.double()) + 2 * C.double()
    here = LAYOUTS[out](C.clone())
    found = product(-1.5, LAYOUTS[a](A), B, 2.0, here, here, slices=slices)
    assert torch.equal(found, exact.float())


def test_a_long_sum_is_added_in_chunks() -> None:
    """One after another, ones are lost beside 2²⁴; the sum of a chunk's is not."""
    chunk, bk = skinny_products.CHUNK, 32
    ones = chunk // bk  # one a block, which the interpreter adds at once
    for before in (1, 2):  # chunks, of which the last begins with what is large
        A = torch.zeros(4, (before + 2) * chunk, device=PLACE)
        A[:, (before - 1) * chunk] = 2.0**24
        A[:, before * chunk :: bk] = 1.0
        B = torch.ones(A.shape[1], 64, device=PLACE)
        out = torch.full((4, 64), torch.nan, device=PLACE)
        product(1.0, A, B, 0.0, None, out, bm=4)
        assert (out == 2.0**24 + 2 * ones).all()
    A = torch.zeros(4, chunk, device=PLACE)  # within a chunk they are lost, one by one
    A[:, 0], A[:, bk::bk] = 2.0**24, 1.0
    product(1.0, A, torch.ones(chunk, 64, device=PLACE), 0.0, None, out, bm=4)
    assert (out == 2.0**24).all()


@pytest.mark.parametrize("name", names_for(torch.float32))
@pytest.mark.parametrize("transposed", [False, True])
def test_the_bound_is_kept_on_hostile_operands(name: str, transposed: bool) -> None:
    m, n = (68, 12) if transposed else (12, 68)
    A, B, C = HOSTILE[name](m, n, 72, torch.float32, seeded("skinny", name))
    truth = Truth(1.5, A, B, 0.5, C)
    A, B, C = (x.to(PLACE) for x in (A, B, C))
    if transposed:
        A = LAYOUTS["col"](A)
    for slices in (1, 2):
        assert serve(candidate(slices=slices), 1.5, A, B, 0.5, C.clone(), "C", truth)


def check_bad_elements(
    product: Callable[..., torch.Tensor], value: float, k: int, b: str, params: Params
) -> None:
    """One reaches its row and no other, of sums in two slices."""
    m, n = 12, 72
    bound = STRATEGY.bound(contiguous_problem(m, n, k, torch.float32), params)
    for at in ((0, 0), (5, k - 1), (m - 1, k // 3)):
        A, B = normal(m, k), LAYOUTS[b](normal(k, n))
        good = product(1.0, A, B, 0.0, None, normal(m, n), slices=2)
        A[at] = value
        B[at[1], 3] = 0.0
        bad = product(1.0, A, B, 0.0, None, normal(m, n), slices=2)
        others = torch.arange(m) != at[0]
        same = torch.arange(n, device=PLACE) != 3
        assert torch.equal(bad[others][:, same], good[others][:, same])
        Truth(1.0, A.cpu(), B.cpu(), 0.0, None).check(bad.cpu(), bound)


@pytest.mark.parametrize("value", [torch.inf, torch.nan, 3e38])
def test_a_bad_element_reaches_its_row_and_no_other(value: float) -> None:
    check_bad_elements(product, value, 100, "row", PARAMS)


# ----------------------------------------------------------------------------- the strategy


def test_it_takes_a_few_aligned_rows_or_columns() -> None:
    def why(m: int, n: int, k: int, **layout: str) -> str:
        problem = contiguous_problem(m, n, k, torch.float32, device_type="cuda", **layout)
        return "; ".join(STRATEGY.reasons_not(problem, GPU, PARAMS))

    assert why(16, 4096, 4096) == why(16, 4096, 64, a="col") == why(1, 4096, 4096) == ""
    assert why(4096, 16, 64, a="col") == why(4096, 16, 64, a="col", b="col") == ""
    assert "lies along k" in why(16, 4096, 4096, b="col")
    assert "lies along k" in why(4096, 16, 4096)
    assert "16 rows or columns at most, not 17 x 4096" in why(17, 4096, 4096)
    assert "not 16-byte aligned" in why(16, 4095, 4096)
    half = contiguous_problem(16, 64, 64, torch.float16, device_type="cuda")
    assert "computes float32" in STRATEGY.reasons_not(half, GPU, PARAMS)[0]
    single = contiguous_problem(16, 64, 64, torch.float32, device_type="cuda")
    strided = replace(single, b="strided")
    assert "not 16-byte aligned" in STRATEGY.reasons_not(strided, GPU, PARAMS)[0]
    assert why(16, 16, 64) == ""
    assert "lies along k" in why(16, 16, 64, b="col")
    assert why(16, 64, 2**26) == why(16, 2**30, 64) == ""
    assert "67108864 at most" in why(16, 64, 2**26 + 4)
    assert "1073741824, not" in why(16, 2**30 + 4, 64)
    amd = replace(GPU, features=("rocm",))
    assert "NVIDIA" in STRATEGY.reasons_not(single, amd, PARAMS)[0]
    older = replace(GPU, capability=(8, 0))
    assert "capability 9.0" in STRATEGY.reasons_not(single, older, PARAMS)[0]
    assert STRATEGY.reasons_not(single, GPU, {**PARAMS, "bn": 100}) == ["does not take bn=100"]


@pytest.mark.parametrize("shape", [(16, 4096, 4096), (5, 512, 100000), (300, 16, 10**6), (1, 8, 8)])
def test_slices_fill_the_device_and_what_is_offered_can_run(shape: tuple[int, int, int]) -> None:
    a = "row" if shape[0] < shape[1] else "col"
    problem = contiguous_problem(*shape, torch.float32, a=a, device_type="cuda")
    offered = list(STRATEGY.space(problem, GPU))
    assert offered
    assert len({tuple(params.items()) for params in offered}) == len(offered)
    for params in offered:
        assert params["slices"] == 1 or problem.k // int(params["slices"]) >= 4 * int(params["bk"])
        assert STRATEGY.reasons_not(problem, GPU, params) == []
        assert Tolerance("highest").admits(
            STRATEGY.bound(problem, params), problem.dtype, problem.k
        )
        fitted = STRATEGY.fitted(Candidate.of("skinny", **params), problem, GPU)
        assert STRATEGY.wrong_parameters(fitted.kwargs) == []
        assert STRATEGY.kin(fitted) == STRATEGY.kin(Candidate.of("skinny", **params))
        programs = int(fitted.kwargs["slices"]) * -(-max(shape[:2]) // int(params["bn"]))
        assert programs <= max(2 * GPU.units, -(-max(shape[:2]) // int(params["bn"])))
    most = problem.k // 128
    largest = max(int(p["slices"]) * -(-max(shape[:2]) // int(p["bn"])) for p in offered)
    assert largest >= min(3 * GPU.units, most)


def test_the_bound_counts_chunks_and_slices() -> None:
    assert importlib.import_module("autogemm.strategies.skinny")._CHUNK == skinny_products.CHUNK
    problem = contiguous_problem(16, 64, 10**6, torch.float32, device_type="cuda")
    chunk = skinny_products.CHUNK
    for slices in (1, 10, 1000):
        bound = STRATEGY.bound(problem, {**PARAMS, "slices": slices})
        part = -(-problem.k // slices)
        assert bound.rho >= 3
        assert bound.growth >= chunk + -(-part // chunk) + slices - 2
        assert bound.growth <= chunk + -(-part // chunk) + slices + 1
    short = contiguous_problem(16, 64, 8, torch.float32, device_type="cuda")
    assert STRATEGY.bound(short, PARAMS).growth == 8


def test_workspace_is_a_matrix_a_slice() -> None:
    problem = contiguous_problem(16, 64, 4096, torch.float32, device_type="cuda")
    assert STRATEGY.workspace_bytes(problem, PARAMS) == 0
    assert STRATEGY.workspace_bytes(problem, {**PARAMS, "slices": 4}) == 4 * 4 * 16 * 64
