"""Gram matrices, X·Xᵀ and XᵀX: half of the tiles are computed, the others mirrored."""

from __future__ import annotations

import importlib

import pytest
import torch
from test_kernels import PLACE, gpu_problem, here, normal

from autogemm.strategies import BY_NAME

# Only now: ``test_kernels`` tells Triton to interpret where there is no GPU.
triton = importlib.import_module("triton")
tl = importlib.import_module("triton.language")
raster = importlib.import_module("autogemm.kernels.raster")
triangle_origin = raster.triangle_origin

pytestmark = pytest.mark.filterwarnings("ignore:::triton.runtime.interpreter")

STRATEGY = BY_NAME["emulated_fp32"]
COMMON = {"warps": 4, "stages": 2, "chunk": 64, "group": 8}
CANDIDATES = {
    "split": {"form": "split", "method": "fp16x3", "bm": 64, "bn": 64, "bk": 64, "slices": 1},
    "slices": {"form": "split", "method": "fp16x3", "bm": 64, "bn": 64, "bk": 32, "slices": 2},
    "fused": {"form": "fused", "method": "fp16x3", "bm": 64, "bn": 64, "bk": 32, "slices": 1},
    "sliced": {"form": "fused", "method": "fp16x3", "bm": 64, "bn": 64, "bk": 32, "slices": 2},
    "oblong": {"form": "fused", "method": "fp16x3", "bm": 64, "bn": 128, "bk": 32, "slices": 3},
    "one term": {"form": "fused", "method": "fp16", "bm": 64, "bn": 64, "bk": 32, "slices": 2},
}


@pytest.mark.parametrize("update", ["none", "inplace"])
@pytest.mark.parametrize("rows", [132, 67])
@pytest.mark.parametrize("name", CANDIDATES)
def test_a_gram_matrix_keeps_the_bound_and_mirrors_its_tiles(
    name: str, rows: int, update: str
) -> None:
    X = normal(rows, 136)
    X[3, 7] *= 2.0**-60
    X[rows - 1] = 0.0
    X[rows - 1, 5] = 2.0**-140  # its tiles are computed again, and so are their mirror images
    for A, B in ((X, X.t()), (X.t().contiguous().t(), None)):
        B = A.t() if B is None else B
        C = None if update == "none" else normal(rows, rows)
        out = C.clone() if C is not None and update == "inplace" else None
        problem = gpu_problem(A, B, C if out is None else out, out, 0.0 if C is None else 0.5)
        params = CANDIDATES[name] | COMMON
        if reasons := STRATEGY.reasons_not(problem, here(), params):
            assert rows == 67
            assert "aligned" in reasons[0]
            continue
        alpha, beta = 1.5, 0.0 if C is None else 0.5
        run = STRATEGY.bind(problem, here(), params)
        result = run(alpha, A, B, beta, C if out is None else out, out)
        exact = alpha * (A.double() @ B.double())
        weight = alpha * (A.double().abs() @ B.double().abs())
        if C is None:
            side = max(params["bm"], params["bn"])
            assert torch.equal(result[side:, :side], result[:side, side:].t())
        else:
            exact += beta * C.double()
            weight += beta * C.double().abs()
        bound = STRATEGY.bound(problem, params).total
        limit = 2.0**-24 * (exact.abs() + bound * weight) + 140 * 2.0**-149
        assert ((result.double() - exact).abs() <= limit).all()


def test_only_the_same_memory_transposed_is_taken_for_a_gram_matrix() -> None:
    A = normal(300, 64)
    assert raster.is_gram(A, A.t())
    assert raster.is_gram(A.t(), A)
    assert not raster.is_gram(A, A.clone().t())
    assert not raster.is_gram(A[:200], A.t())
    assert not raster.is_gram(A[:64], A[:64])  # A·A, not A·Aᵀ
    assert raster.tile_count(300, 300, 64, 64, gram=True) == 15


@triton.jit
def _origins(out, first, BLOCK: tl.constexpr):
    program = tl.program_id(0)
    i0, j0 = triangle_origin(first + program, BLOCK)
    tl.store(out + 2 * program, i0)
    tl.store(out + 2 * program + 1, j0)


@pytest.mark.parametrize("row", [0, 1, 2, 3, 1447, 5792, 11584])
def test_tiles_on_and_below_the_diagonal_are_counted_row_by_row(row: int) -> None:
    first = row * (row + 1) // 2
    out = torch.zeros(row + 2, 2, dtype=torch.int32, device=PLACE)
    count = min(row + 2, 8)
    ends = [(first, 0, min(count, row + 1)), (first + row, row, 2)]
    for start, column, programs in ends:
        _origins[(programs,)](out, start, BLOCK=16)
        wanted = [(row, column + i) if column + i <= row else (row + 1, 0) for i in range(programs)]
        assert [tuple(pair) for pair in (out[:programs] // 16).tolist()] == wanted


@pytest.mark.parametrize("rows", [64, 128, 260])
def test_a_gram_matrix_is_cut_into_no_fewer_slices_than_the_bound_supposes(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused = importlib.import_module("autogemm.kernels.fused_product")
    seen: list[int] = []
    monkeypatch.setattr(fused, "fused_product", lambda *args, slices, **rest: seen.append(slices))
    X = normal(rows, 2048)
    problem = gpu_problem(X, X.t(), None, None, 0.0)
    for slices in (1, 2, 5, 16):
        params = CANDIDATES["fused"] | COMMON | {"slices": slices}
        STRATEGY.bind(problem, here(), params)(1.0, X, X.t(), 0.0, None, None)
        found = seen.pop()
        assert slices <= found <= 4 * slices
        assert found == 1 or slices > 1
        taken = 4 * found * rows**2 if found > 1 else 0
        assert taken <= STRATEGY.workspace_bytes(problem, params)
