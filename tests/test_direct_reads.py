"""``triton_gemm`` with ``reads: direct``, and the kernel behind it.

It runs on a GPU as it is, elsewhere in Triton's interpreter, as ``test_kernels.py`` has it.
"""

from __future__ import annotations

import importlib
import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from invented import GPU
from test_half_product import integers, problem
from test_kernels import LAYOUTS, ON_GPU, PLACE, normal, serve

from autogemm.grading.oracle import Truth
from autogemm.precision import Tolerance
from autogemm.strategies import BY_NAME, Candidate
from autogemm.strategies.base import ParamValue

interleaved = importlib.import_module("autogemm.kernels.interleaved_product")
half_products = importlib.import_module("autogemm.kernels.half_product")
staging = importlib.import_module("autogemm.kernels.staging")
Tiling = importlib.import_module("autogemm.kernels.split_product").Tiling

pytestmark = pytest.mark.filterwarnings("ignore:::triton.runtime.interpreter")

STRATEGY = BY_NAME["triton_gemm"]
PARAMS: dict[str, ParamValue] = {
    "bm": 64, "bn": 64, "bk": 32, "warps": 4, "stages": 2, "slices": 1, "group": 8,
    "persistent": False, "reads": "direct",
}  # fmt: skip


def candidate(**changed: ParamValue) -> Candidate:
    return Candidate.of("triton_gemm", **{**PARAMS, **changed})


def lay(values: torch.Tensor, pitch: int, first: int = 0) -> torch.Tensor:
    """Rows so many elements apart from place ``first`` on, and NaN between and around them."""
    rows, cols = values.shape
    buffer = torch.full((first + rows * pitch + 64,), torch.nan, dtype=values.dtype, device=PLACE)
    return buffer.as_strided((rows, cols), (pitch, 1), first).copy_(values)


def product(
    alpha: float, rows: torch.Tensor, other: torch.Tensor, beta: float,
    C: torch.Tensor | None, out: torch.Tensor, *, bm: int = 64, bn: int = 64,
) -> torch.Tensor:  # fmt: skip
    tiling = Tiling(bm, bn, 32, 4, 2, 8)
    assert interleaved.is_interleaved(rows)
    interleaved.interleaved_product(alpha, rows, other, beta, C, out, tiling=tiling)
    return out


def exact(
    alpha: float, rows: torch.Tensor, other: torch.Tensor, beta: float, C: torch.Tensor | None
) -> torch.Tensor:
    found = alpha * (rows.double() @ other.double())
    return (found if C is None else found + beta * C.double()).half()


def aligned(values: torch.Tensor) -> torch.Tensor:
    return lay(values, -(-values.shape[1] // 8) * 8)


# ------------------------------------------------------------------------------- the kernels


@pytest.mark.parametrize("first", [0, 1, 2, 3, 5, 8, 15])
@pytest.mark.parametrize("gap", [0, 1, 2, 3, 4, 7])
def test_rows_of_any_pitch_and_place_are_read_as_they_lie(gap: int, first: int) -> None:
    for m, n, k in ((9, 3, 9), (75, 40, 33), (130, 17, 72)):
        A, B = integers(m, k), aligned(integers(k, n))
        C = integers(m, n)
        out = torch.full_like(C, torch.nan)
        rows = lay(A, k + gap, first)
        wanted = exact(0.75, A, B, 0.5, C)
        assert torch.equal(product(0.75, rows, B, 0.5, C, out), wanted)


@pytest.mark.parametrize("tile", [(64, 64), (128, 64), (64, 128), (128, 16), (64, 256)], ids=str)
def test_a_tile_of_any_size_is_rounded_once(tile: tuple[int, int]) -> None:
    m, n, k = 1100, 72, 41  # more than one tile of each interleaved matrix
    A, B = integers(m, k), aligned(integers(k, n))
    shape = (m, n)
    for out in (torch.empty(shape), torch.empty(shape[::-1]).t()):
        result = torch.full_like(out.half().to(PLACE), torch.nan)
        product(1.0, lay(A, k), B, 0.0, None, result, bm=tile[0], bn=tile[1])
        assert torch.equal(result, exact(1.0, A, B, 0.0, None))


@pytest.mark.parametrize("k", [9, 15, 16, 17, 31, 32, 33, 40, 41, 48, 63, 64, 65, 73, 104])
def test_k_may_end_anywhere(k: int) -> None:
    A, B = integers(20, k), aligned(integers(k, 24))
    shape = (20, 24)
    for pitch in (k, k + 1):
        out = torch.full(shape, torch.nan, dtype=torch.float16, device=PLACE)
        product(1.0, lay(A, pitch, 3), B, 0.0, None, out)
        assert torch.equal(out, exact(1.0, A, B, 0.0, None))


@pytest.mark.parametrize("out", LAYOUTS)
@pytest.mark.parametrize("c", ["none", "full", "col", "strided", "row", "column", "itself"])
@pytest.mark.parametrize("n", [33, 40])
def test_c_and_the_result_lie_anyhow(c: str, out: str, n: int) -> None:
    m, k = (70, 51) if n == 33 else (72, 51)
    A, B = integers(m, k), aligned(integers(k, n))
    values = integers(m, n)
    target = LAYOUTS[out](values if c == "itself" else torch.full_like(values, torch.nan))
    around = 0 if target._base is None else int(target._base.isnan().sum())
    C = {
        "none": None, "full": values, "col": LAYOUTS["col"](values),
        "strided": LAYOUTS["strided"](values), "row": values[:1].expand(values.shape),
        "column": values[:, :1].expand(values.shape), "itself": target,
    }[c]  # fmt: skip
    wanted = exact(1.5, A, B, 0.5, C)
    product(1.5, lay(A, k), B, 0.5, C, target)
    assert torch.equal(target, wanted)
    if target._base is not None and target._base.shape != target.shape:
        written = 0 if c == "itself" else m * n
        assert int(target._base.isnan().sum()) == around - written


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("place", [0, 4, 7, 8, 40, 70])
def test_infinities_and_nan_reach_their_row_and_column_alone(value: float, place: int) -> None:
    A, B = integers(20, 71), integers(71, 24).abs() + 1
    A[3, place] = value
    B[(place + 7) % 71, 7] = torch.nan
    out = torch.zeros(20, 24, dtype=torch.float16, device=PLACE)
    product(1.0, lay(A, 71), aligned(B), 0.0, None, out)
    others = [j for j in range(24) if j != 7]
    assert out[:, 7].isnan().all()
    assert (out[3, others].isnan() if value != value else out[3, others] == value).all()
    assert out[[i for i in range(20) if i != 3]][:, others].isfinite().all()


def test_operands_may_be_larger_than_the_result_by_zeros() -> None:
    A, B = integers(21, 17), integers(17, 13)
    wide = torch.zeros(24, 24, dtype=torch.float16, device=PLACE)
    wide[:21, :17] = A
    out = torch.empty(21, 13, dtype=torch.float16, device=PLACE)
    product(1.0, wide, aligned(B), 0.0, None, out)
    assert torch.equal(out, exact(1.0, A, B, 0.0, None))


def addresses(*operands: torch.Tensor) -> set[int]:
    """Those of all elements."""
    found: set[int] = set()
    for x in operands:
        places = np.zeros((), dtype=np.int64)
        for extent, stride in zip(x.shape, x.stride(), strict=True):
            places = places[..., None] + np.arange(extent) * stride
        found |= set((x.data_ptr() + x.element_size() * places).ravel().tolist())
    return found


@pytest.mark.parametrize("first", [0, 1, 2, 5, 7])
@pytest.mark.parametrize("gap", [0, 1, 2, 4, 7])
def test_nothing_is_read_that_holds_no_element(gap: int, first: int, reads: set[int]) -> None:
    """Not beyond the ends of operands, nor between their rows."""
    for m, n, k in ((9, 13, 9), (77, 8, 39)):
        reads.clear()
        A, B = lay(integers(m, k), k + gap, first), aligned(integers(k, n))
        C = integers(m, n)
        product(1.0, A, B, 1.0, C, torch.empty_like(C))
        assert reads == addresses(A, B, C)


FAR = {  # strides of the result or of C: beyond what 32 bits hold eight, or 32, times
    "rows": ((9, 8), (2**28 + 1, 1), 64),
    "columns": ((9, 33), (2, 2**26), 64),
}


@pytest.mark.skipif(ON_GPU, reason="gigabytes, of which the interpreter touches a few pages")
@pytest.mark.parametrize("which", ["C", "out"])
@pytest.mark.parametrize("name", FAR)
@pytest.mark.parametrize("kernel", ["interleaved", "half"])
def test_results_and_c_may_lie_far_apart(kernel: str, name: str, which: str) -> None:
    shape, strides, bn = FAR[name]
    last = sum((extent - 1) * stride for extent, stride in zip(shape, strides, strict=True))
    try:
        far = torch.empty(last + 1, dtype=torch.float16).as_strided(shape, strides)
    except RuntimeError as error:
        pytest.skip(str(error).splitlines()[0])
    A, B, C = integers(9, 16), aligned(integers(16, shape[1])), integers(*shape)
    out = torch.empty(shape, dtype=torch.float16)
    far.copy_(C)
    if which == "C":
        C = far
    else:
        out = far
    wanted = exact(1.0, A, B, 0.5, C)
    tiling = Tiling(64, bn, 16, 4, 2, 8)
    if kernel == "interleaved":
        interleaved.interleaved_product(1.0, lay(A, 17), B, 0.5, C, out, tiling=tiling)
    else:
        half_products.half_product(1.0, A, B, 0.5, C, out, tiling=tiling, slices=1)
    assert torch.equal(out, wanted)


SHAPES = {  # shape, strides, place of the first element; whether tiles can be read so
    "rows": ((9, 16), (16, 1), 0, True),
    "odd rows": ((9, 13), (13, 1), 0, True),
    "odd rows at an odd place": ((9, 13), (15, 1), 1, True),
    "columns": ((9, 16), (1, 9), 0, False),
    "every other column": ((9, 16), (32, 2), 0, False),
    "few rows": ((7, 13), (13, 1), 0, False),
    "short rows": ((9, 8), (13, 1), 0, False),
    "one row again and again": ((9, 16), (0, 1), 0, False),
    "rows that overlap": ((9, 16), (3, 1), 0, False),
}


@pytest.mark.parametrize("name", SHAPES)
def test_what_is_read_by_tiles_has_contiguous_rows(name: str) -> None:
    shape, strides, first, ready = SHAPES[name]
    A = integers(1, 1024).view(-1).as_strided(shape, strides, first)
    assert interleaved.is_interleaved(A) == ready


# ------------------------------------------------------------------------------ the strategy


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("bm", "bn"), [(64, 64), (128, 64), (64, 128)])
def test_every_layout_of_the_other_operand_is_served(bm: int, bn: int, dtype: torch.dtype) -> None:
    outs = itertools.cycle(("new", "C", "row", "block"))
    columns = itertools.cycle(("C", "col"))
    places = itertools.cycle((0, 1, 4, 6))
    pairs = list(itertools.product(LAYOUTS, ((70, 12, 33), (12, 75, 51))))
    if not ON_GPU:  # one shape for a layout, the other one for its other type
        pairs = [x for i, x in enumerate(pairs) if (i // 2 + i + (dtype is torch.float16)) % 2]
    for layout, (m, n, k) in pairs:
        for direct in ("A", "B"):
            A, B, C = (normal(*s, dtype=dtype) for s in ((m, k), (k, n), (m, n)))
            truth = Truth(-1.5, A.cpu(), B.cpu(), 0.5, C.cpu())
            if direct == "A":
                A, B = lay(A, k, next(places)), LAYOUTS[layout](B)
            else:
                A, B = LAYOUTS[layout](A), lay(B.t(), k, next(places)).t()
                C = C.t().contiguous().t()
            out = next(outs) if direct == "A" else next(columns)
            assert serve(candidate(bm=bm, bn=bn), -1.5, A, B, 0.5, C, out, truth)


@pytest.mark.parametrize("update", ["none", "add", "bias", "inplace"])
@pytest.mark.parametrize("direct", ["A", "B"])
def test_every_update_is_served(direct: str, update: str) -> None:
    m, n, k = (150, 24, 57) if direct == "A" else (24, 150, 57)
    A, B, C = (normal(*s, dtype=torch.float16) for s in ((m, k), (k, n), (m, n)))
    beta, addend = (0.0, None) if update == "none" else (0.5, C)
    if update == "bias":
        addend = C[:1].expand(m, n)
    truth = Truth(1.5, A.cpu(), B.cpu(), beta, None if addend is None else addend.cpu())
    if direct == "A":
        A, B, new = lay(A, k), aligned(B), "new"
    else:
        A, B, C, new = aligned(A), lay(B.t(), k).t(), C.t().contiguous().t(), "col"
    if update in ("add", "inplace"):
        addend = C
    out = "C" if update == "inplace" else new
    assert serve(candidate(), 1.5, A, B, beta, addend, out, truth)


@pytest.mark.parametrize(("direct", "out"), [("A", "row"), ("B", "col")])
def test_the_operand_is_not_copied(direct: str, out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def stage(x: torch.Tensor, **options: object) -> torch.Tensor:
        raise AssertionError(f"{tuple(x.shape)} was copied")

    monkeypatch.setattr(staging, "stage", stage)
    m, n, k = (40, 16, 57) if direct == "A" else (16, 40, 57)
    A, B = normal(m, k, dtype=torch.float16), normal(k, n, dtype=torch.float16)
    truth = Truth(1.0, A.cpu(), B.cpu(), 0.0, None)
    if direct == "A":
        A, B = lay(A, 57), aligned(B)
    else:
        A, B = aligned(A.t()).t(), lay(B.t(), 57).t()
    assert serve(candidate(), 1.0, A, B, 0.0, None, out, truth)


def test_an_operand_that_is_not_what_its_layout_says_is_copied() -> None:
    """A layout does not tell how an operand overlaps itself, say: such are only not worth it."""
    where = problem(40, 16, 57, a="row-unaligned", b="row")
    run = STRATEGY.bind(where, GPU, PARAMS)
    overlapping = integers(1, 1000).view(-1).as_strided((40, 57), (3, 1))
    odd = integers(57, 13)
    result = run(1.0, overlapping, odd, 0.0, None, None)
    assert torch.equal(result, (overlapping.double() @ odd.double()).half())


@pytest.mark.parametrize(
    ("facts", "changed", "reason"),
    [
        ({"a": "row"}, {}, "for an unaligned operand"),
        ({"a": "col-unaligned"}, {}, "for an unaligned operand"),
        ({"b": "row-unaligned", "a": "col"}, {}, "not for col x row-unaligned"),
        ({"k": 8}, {}, "not for 4096 of 8"),
        ({"m": 7}, {}, "not for 7 of 57"),
        ({"out": "col"}, {}, "not for row-unaligned x row -> col"),
        ({"a": "row", "b": "col-unaligned"}, {}, "not for row x col-unaligned -> row"),
        ({}, {"bm": 32}, "at least 64 rows here"),
        (
            {"a": "row", "b": "col-unaligned", "out": "col"}, {"bn": 32},
            "at least 64 columns here",
        ),
        ({}, {"slices": 2}, "neither slices"),
        ({}, {"persistent": True}, "nor persistent"),
        ({}, {"reads": "words"}, "does not take reads='words'"),
    ],
)
def test_what_it_cannot_serve_is_refused(
    facts: dict[str, Any], changed: dict[str, ParamValue], reason: str
) -> None:
    where = replace(problem(4096, 256, 57, a="row-unaligned", b="row", out="row"), **facts)
    (said,) = STRATEGY.reasons_not(where, GPU, {**PARAMS, **changed})
    assert reason in said


def test_parameters_of_older_tables_are_complete() -> None:
    old = {key: value for key, value in PARAMS.items() if key != "reads"}
    assert STRATEGY.wrong_parameters(old) == []
    assert STRATEGY.wrong_parameters(PARAMS) == []


def test_it_is_tried_where_the_operand_is_long_and_seldom_read() -> None:
    def offered(m: int, n: int, k: int = 257, **facts: object) -> int:
        where = problem(m, n, k, **facts)
        return sum("reads" in params for params in STRATEGY.space(where, GPU))

    for n in (16, 32, 64, 128, 256, 512, 1024):
        assert 1 <= offered(65536, n, a="row-unaligned") <= 8
        assert 1 <= offered(n, 65536, b="col-unaligned", out="col") <= 8
        assert offered(65536, n, 264) == offered(65536, n, 8, a="row-unaligned") == 0
        assert offered(n, 65536, b="col-unaligned") == 0
        assert offered(65536, n, a="row-unaligned", out="col") == 0
    assert offered(65536, 2048, a="row-unaligned") == 0
    assert offered(300, 256, a="row-unaligned") == 0
    assert offered(65536, 256, a="col-unaligned") == 0


def test_its_workspace_is_the_other_operands_copy() -> None:
    where = problem(4096, 250, 57, a="row-unaligned", b="row")
    assert STRATEGY.workspace_bytes(where, PARAMS) == 0
    for b in ("row-unaligned", "col", "col-unaligned", "strided"):
        assert STRATEGY.workspace_bytes(replace(where, b=b), PARAMS) == 2 * 64 * 256


def test_it_is_not_fitted_to_problems_whose_tiles_read_the_operand_often() -> None:
    few, often = (problem(8192, n, 1001, a="row-unaligned") for n in (1024, 2048))
    wide = candidate(bm=128, bn=256)
    assert STRATEGY.fitted(wide, few, GPU) == wide
    fitted = STRATEGY.fitted(wide, often, GPU)
    assert "reads" not in fitted.kwargs
    assert STRATEGY.reasons_not(often, GPU, fitted.kwargs) == []
    other = problem(8192, 1024, 1001, a="row-unaligned", out="col")
    assert "reads" not in STRATEGY.fitted(wide, other, GPU).kwargs


def test_its_kin_are_read_alike() -> None:
    direct = candidate()
    assert STRATEGY.kin(direct) == STRATEGY.kin(candidate(bk=64, stages=3))
    staged = Candidate.of("triton_gemm", **{k: v for k, v in PARAMS.items() if k != "reads"})
    assert STRATEGY.kin(direct) != STRATEGY.kin(staged)


def test_it_serves_the_highest_level_at_every_length() -> None:
    for k in (9, 10, 16, 17, 257, 2**20):
        where = problem(4096, 256, k, a="row-unaligned")
        bound = STRATEGY.bound(where, PARAMS)
        assert Tolerance("highest").admits(bound, torch.bfloat16, k)


@pytest.mark.skipif(not ON_GPU, reason="the interpreter does not compile")
def test_a_compiled_kernel_serves_all_sizes() -> None:
    compiled = interleaved._interleaved_kernel
    for m in (100, 101, 117, 128):
        out = torch.empty(m, 40, dtype=torch.float16, device=PLACE)
        product(1.0, lay(integers(m, 63), 63), aligned(integers(63, 40)), 0.0, None, out)
    (cache, *_) = compiled.device_caches[torch.cuda.current_device()]
    before = len(cache)
    out = torch.empty(557, 48, dtype=torch.float16, device=PLACE)
    product(1.0, lay(integers(557, 333), 333), aligned(integers(333, 48)), 0.0, None, out)
    assert len(cache) == before
