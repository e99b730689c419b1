"""``emulated_fp32`` in form ``streamed``: on a Hopper GPU, else by ``interpreted_gluon``."""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import pytest
import torch
from gluon_stand_in import UNEVEN, check, fixture_for, marks_for
from test_kernels import LAYOUTS, ON_GPU, PLACE, here, normal, serve

from autogemm.grading.hostile import HOSTILE, names_for, seeded
from autogemm.grading.oracle import Truth
from autogemm.problem import contiguous_problem
from autogemm.strategies import BY_NAME, Candidate
from autogemm.strategies.base import ParamValue

STRATEGY = BY_NAME["emulated_fp32"]
TILES = ((128, 128, 32, 8, 3), (64, 64, 32, 4, 2), (64, 16, 64, 4, 2))
SIZES = ((4, 4, 4), (68, 20, 132), *(((1000, 136, 1000),) if ON_GPU else ()))


def streamed(
    rows: int = 64, cols: int = 64, bk: int = 32, warps: int = 4, stages: int = 2,
    **changed: ParamValue,
) -> Candidate:  # fmt: skip
    """For products with more rows than columns: A streams."""
    params: dict[str, ParamValue] = {
        "form": "streamed", "method": "fp16x3", "bm": rows, "bn": cols, "bk": bk, "warps": warps,
        "stages": stages, "chunk": 64, "slices": 1, "group": 8,
    }  # fmt: skip
    return Candidate.of("emulated_fp32", **(params | changed))


def turned(candidate: Candidate) -> Candidate:
    """For the transposed product: B streams."""
    params = candidate.kwargs
    params["bm"], params["bn"] = params["bn"], params["bm"]
    return Candidate.of("emulated_fp32", **params)


pytestmark = marks_for(streamed())


kernel = fixture_for("streamed_product")


def check_either(candidate: Candidate, A: torch.Tensor, B: torch.Tensor, turn: bool) -> None:
    """A·B, in which A streams, or its transpose, in which B does."""
    if turn:
        check(turned(candidate), B.t().contiguous(), A.t().contiguous())
    else:
        check(candidate, A, B)


@pytest.mark.parametrize("layout", ["nn", "tn", "nt", "tt"])
@pytest.mark.parametrize("tile", TILES, ids=str)
def test_every_layout_and_tile_keeps_the_bound(
    tile: tuple[int, int, int, int, int], layout: str
) -> None:
    chunk = 2 * tile[2]
    for m, n, k in SIZES:
        A = normal(k, m).t() if layout[0] == "t" else normal(m, k)
        B = normal(n, k).t() if layout[1] == "t" else normal(k, n)
        check(streamed(*tile, slices=1 + (layout[0] == "t"), chunk=chunk), A, B, "row")
        if m > n and layout in ("nn", "tt"):
            other = streamed(*tile, slices=1 + (layout[1] == "t"), method="fp16", chunk=512)
            check(turned(other), B.t(), A.t(), "row")


@pytest.mark.parametrize("k", [1, 2, 31, 33, 64, 65, 127, 191])
def test_sums_of_every_length_keep_the_bound(k: int) -> None:
    """Those shorter than a pair of blocks, and such as end within a block or between pairs."""
    A, B = normal(k, 36).t(), normal(k, 20)
    run = importlib.import_module("autogemm.kernels.streamed_product").streamed_product
    tiling = importlib.import_module("autogemm.kernels.split_product").Tiling
    for stages, slices in ((2, 1), (4, 1), (3, 3)):
        out = torch.full((36, 20), math.nan, device=PLACE)
        run(1.0, A, B, 0.0, None, out, terms=2, chunk=64, slices=slices,
            tiling=tiling(64, 32, 32, 4, stages), gain=0.0)  # fmt: skip
        exact, weight = A.double() @ B.double(), A.double().abs() @ B.double().abs()
        assert ((out.double() - exact).abs() <= 2.0**-24 * (32 + 3 * k) * weight).all()


def test_a_column_streams_whatever_its_stride_along_k_says() -> None:
    """Which a transposed vector and a freshly allocated one do not agree about."""
    A, x = normal(8, 1), normal(68, 1)
    candidate = turned(streamed(chunk=512, method="fp16"))
    for B in (x.t(), x.t().contiguous(), x.as_strided((1, 68), (72, 1))):
        check(candidate, A, B, "row")


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_does_not_stream_lies_as_it_likes(name: str) -> None:
    A, B, C = normal(68, 36), LAYOUTS[name](normal(36, 37)), LAYOUTS[name](normal(68, 37))
    truth = Truth(-0.5, A.cpu(), B.cpu(), 1.5, C.cpu())
    for out in ("C", "row", "col", "block"):
        assert serve(streamed(), -0.5, A, B, 1.5, C, out, truth)
    A, B, C = normal(36, 68), LAYOUTS[name](normal(21, 36)), LAYOUTS[name](normal(21, 68))
    truth = Truth(-0.5, B.cpu(), A.cpu(), 1.5, C.cpu())
    for out in ("new", "C", "col"):
        assert serve(turned(streamed()), -0.5, B, A, 1.5, C, out, truth)
    truth = Truth(1.0, B.cpu(), A.cpu(), 0.0, None)
    assert serve(turned(streamed(slices=2)), 1.0, B, A, 0.0, None, "block", truth)


@pytest.mark.parametrize("order", ["row", "col"])
def test_a_result_in_place_keeps_the_bound_where_its_tile_is_computed_again(order: str) -> None:
    A, B, C = normal(68, 100), normal(100, 36), LAYOUTS[order](normal(68, 36))
    C[3] *= 2.0**30
    truth = Truth(-0.5, A.cpu(), B.cpu(), 1.5, C.cpu())
    for slices in (1, 2):
        assert serve(streamed(slices=slices), -0.5, A, B, 1.5, C, "C", truth)
    A[5, 70] = math.inf  # C must still be there then
    A[67, 3], B[:, 7], B[3, 7] = 2.0**-40, 0, 2.0**-40
    truth = Truth(-0.5, A.cpu(), B.cpu(), 1.5, C.cpu())
    assert serve(streamed(), -0.5, A, B, 1.5, C, "C", truth)


@pytest.mark.skipif(ON_GPU, reason="a GPU may be in time by chance")
def test_one_stage_would_be_waited_for_in_vain() -> None:
    """That is why the strategy asks for two."""
    A, B, out = normal(64, 260), normal(260, 32), torch.empty(64, 32)
    run = importlib.import_module("autogemm.kernels.streamed_product").streamed_product
    tiling = importlib.import_module("autogemm.kernels.split_product").Tiling
    errors = importlib.import_module("triton.runtime.errors").InterpreterError
    with pytest.raises(errors, match="it would wait forever"):
        run(1.0, A, B, 0.0, None, out, terms=2, chunk=256, slices=1,
            tiling=tiling(64, 32, 32, 4, 1), gain=0.0)  # fmt: skip


WAITS = {
    "a stage less to bring ahead": ("pair + STAGES - 1\n", "pair + STAGES\n"),
    "no meeting before a stage is written": (
        "acc = warpgroup_mma_init(part)\n                barrier()\n",
        "acc = warpgroup_mma_init(part)\n",
    ),
    "no wait for the products of the last pair": (
        "3 if TERMS == 2 else 1, deps=[acc, odd_hi",
        "6 if TERMS == 2 else 1, deps=[acc, odd_hi",
    ),
    "no wait for what comes": ("                arrive(bars, coming, STAGES)\n", ""),
    "no meeting between pairs that are read once more": (
        "for pair in range(zero, pairs):\n                barrier()\n",
        "for pair in range(zero, pairs):\n",
    ),
}


@pytest.mark.skipif(ON_GPU, reason="a GPU may be in time by chance")
@pytest.mark.parametrize("name", WAITS)
def test_every_wait_is_needed(name: str, tmp_path: Path) -> None:
    gluon = importlib.import_module("interpreted_gluon")
    errors = importlib.import_module("triton.runtime.errors").InterpreterError
    tiling = importlib.import_module("autogemm.kernels.split_product").Tiling
    module = gluon.interpreted("streamed_product", tmp_path, WAITS[name])
    A, B, out = normal(36, 256), normal(256, 20), torch.empty(36, 20)
    A[3:8, 200] = 2.0**40  # more than a line, which would be computed by itself
    with pytest.raises(errors, match="Assertion"):
        module.streamed_product(
            1.0, A, B, 0.0, None, out, terms=2, chunk=128, slices=1,
            tiling=tiling(64, 32, 32, 4, 2), gain=0.0,
        )  # fmt: skip


@pytest.mark.skipif(ON_GPU, reason="the interpreter's kernel alone can be watched")
@pytest.mark.parametrize(("m", "n"), [(64, 32), (36, 32), (64, 20), (36, 20), (65, 33)])
def test_ordinary_operands_are_weighed_but_once(
    m: int, n: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither are zeros that fill a tile up; and once more what a row of zeros is among."""
    module = importlib.import_module("interpreted_gluon").interpreted("streamed_product", tmp_path)
    tiling = importlib.import_module("autogemm.kernels.split_product").Tiling
    looks: list[int] = []
    names = module.settle.__wrapped__.__globals__
    weigh = names["weight_of"]
    monkeypatch.setitem(names, "weight_of", lambda *x: (looks.append(1), weigh(*x))[1])

    def product(A: torch.Tensor) -> torch.Tensor:
        out = torch.empty(m, n)
        module.streamed_product(
            1.0, A, B, 0.0, None, out, terms=2, chunk=64, slices=1,
            tiling=tiling(64, 32, 32, 4, 2), gain=0.0,
        )  # fmt: skip
        return out

    A, B = normal(m, 128), normal(128, n)
    product(A)
    assert looks == []
    A[3] = 0
    assert (product(A)[3] == 0).all()
    assert looks != []


@pytest.mark.parametrize("which", ["row", "column"])
def test_the_last_row_and_the_last_column_are_weighed(which: str) -> None:
    """One element makes the scale of its line alone so coarse that nothing is left of others."""
    A, B = normal(36, 128), normal(128, 20)
    if which == "row":
        A[-1, 3], B[3] = 2.0**60, 0
    else:
        A[:, 3], B[3, -1] = 0, 2.0**60
    check(streamed(chunk=64), A, B)


CERTIFICATES = {
    "the first block's": ("least < (CERTIFIED + 1.0) * ROOM", "least < 0.0"),
    "the first block's, where scales grow": ("(highest > first_unit * ROOM)", "(highest < 0.0)"),
    "the first block's, where many scales grow": ("(unit > first_unit * ROOM)", "(unit < 0.0)"),
    "the first block's, at a second attempt": ("doubt += 1.0", "doubt += 0.0"),
    "the first block's, looked at once more": (
        "(weight < (CERTIFIED + 1.0) * ROOM)", "(weight < 0.0)"
    ),
    "one column's, whose scales grow": ("grown = unit > of_first * ROOM", "grown = unit < 0.0"),
    "the whole slice's, where scales differ": (
        "(a_most), inverse(above_zero(unit)), i0", "(a_most), inverse(above_zero(of_first)), i0"
    ),
}  # fmt: skip


@pytest.mark.skipif(ON_GPU, reason="the interpreter's kernel alone can be changed")
@pytest.mark.parametrize("name", CERTIFICATES)
def test_every_certificate_is_needed(name: str, tmp_path: Path) -> None:
    """One element makes the scale of others so coarse that nothing is left of them."""
    gluon = importlib.import_module("interpreted_gluon")
    tiling = importlib.import_module("autogemm.kernels.split_product").Tiling
    k = 640 if "many" in name else 128
    A, B = normal(36, k), normal(k, 20)
    if "column" in name:  # its second stretch
        A[:, 100], B[100, 3] = 0, 2.0**60
    elif "once more" in name:
        A[5, 3], B[3] = 2.0**60, 0
    elif "scales" in name:  # B's second stretch
        A[:, 100], B[100] = 0, 2.0**60
    elif "second" in name:
        A[:, 100], B[100] = 2.0**60, 0
    else:
        A[:, 3], B[3] = 2.0**60, 0
    exact, weight = A.double() @ B.double(), A.double().abs() @ B.double().abs()
    broken = []
    for change in (("", ""), CERTIFICATES[name]):
        out = torch.empty(36, 20)
        gluon.interpreted("streamed_product", tmp_path, change).streamed_product(
            1.0, A, B, 0.0, None, out, terms=2, chunk=64, slices=1,
            tiling=tiling(64, 32, 32, 4, 2), gain=0.0,
        )  # fmt: skip
        broken.append(bool(((out - exact).abs() > 2.0**-24 * k * weight).any()))
    assert broken == [False, True]


@pytest.mark.parametrize("met", ["numbers", "zeros"])
@pytest.mark.parametrize("name", UNEVEN)
def test_what_outgrows_its_scales_is_computed_again(name: str, met: str) -> None:
    A, B = UNEVEN[name](192), normal(192, 20)
    if met == "zeros":  # the result is made of what the lowered scales hold worst
        B[A.abs().amax(0) > 2.0**30] = 0
    check_either(streamed(64, 32, slices=1 + (met == "numbers")), A, B, met == "zeros")


STRETCHES: dict[str, tuple[int, ...]] = {
    "grow": (-60, 0, 60),
    "shrink": (60, 0, -60),
    "one is large": (0, 60, 0),
    "one is small": (0, -60, 0),
    "grow a little more than a certificate allows for": (0, 5, 5),
    "are all tiny": (-100, -100, -100),
}


@pytest.mark.parametrize("met", ["alike", "opposed", "zeros"])
@pytest.mark.parametrize("name", STRETCHES)
def test_stretches_of_very_different_size_keep_the_bound(name: str, met: str) -> None:
    """B's scale changes from chunk to chunk; what A holds may make up for it."""
    exponents = torch.tensor(STRETCHES[name], device=PLACE).repeat_interleave(64)[:, None]
    A, B = normal(36, 192), torch.ldexp(normal(192, 20), exponents)
    if met == "opposed":
        A = torch.ldexp(A, -exponents.t())
    elif met == "zeros":  # the large stretches meet nothing
        A[:, exponents[:, 0] == exponents.max()] = 0
        A[:, 5] = 2.0**-30
    check_either(streamed(64, 32), A, B, met == "opposed")
    if met == "zeros":
        check(streamed(64, 32, method="fp16"), A, B)


def test_sums_far_below_their_column_s_scale_are_not_taken_for_zeros() -> None:
    """Weighed by it, they would vanish: the large stretches of B meet zeros alone."""
    exponents = torch.tensor((110, 110, -110), device=PLACE).repeat_interleave(64)[:, None]
    A, B = normal(36, 192), torch.ldexp(normal(192, 20), exponents)
    A[:, :128] = 0
    check(streamed(64, 32), A, B)


@pytest.mark.parametrize("low", [-40, -126, -149])
def test_small_elements_among_zeros_keep_the_bound(low: int) -> None:
    A, B = normal(36, 132), normal(132, 20)
    A[2], A[:, 7], B[:, 9] = 0, 0, 0
    A[4, :100] = 0
    A[3] = 0
    A[3, 100] = 2.0**low
    B[:, 11] = 0
    B[120, 11] = -(2.0**low)
    check_either(streamed(64, 32), A, B, low == -126)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("where", [0, 40, 127])
@pytest.mark.parametrize("side", ["A", "B"])
def test_a_special_element_comes_out_as_native_arithmetic_has_it(
    side: str, where: int, value: float
) -> None:
    A, B = normal(36, 128), normal(128, 20)
    if side == "A":
        A[3, where], B[where, 7] = value, 0
    else:
        B[where, 7], A[3, where] = value, 0
        A[4, where], A[5, where] = 2.0**-140, -(2.0**-140)
    expected = A @ B
    candidate = streamed(64, 32) if where != 40 else streamed(64, 32, method="fp16", chunk=512)
    found = STRATEGY.bind(
        contiguous_problem(36, 20, 128, torch.float32, device_type="cuda"),
        here(), candidate.kwargs,
    )(1.0, A, B, 0.0, None, None)  # fmt: skip
    special = ~expected.isfinite()
    assert special.any()
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found[special].nan_to_num(7.0), expected[special].nan_to_num(7.0))


@pytest.mark.parametrize("name", names_for(torch.float32))
def test_the_bound_holds_on_hostile_operands(name: str) -> None:
    A, B, C = (
        x.to(PLACE) for x in HOSTILE[name](36, 20, 100, torch.float32, seeded("streamed", name))
    )
    if names_for(torch.float32).index(name) % 2:
        truth = Truth(1.5, A.cpu(), B.cpu(), 0.5, C.cpu())
        assert serve(streamed(64, 32, slices=2), 1.5, A, B, 0.5, C, "new", truth)
    else:
        truth = Truth(1.5, B.t().cpu(), A.t().cpu(), 0.5, C.t().cpu())
        B, A = (x.t().contiguous() for x in (A, B))
        assert serve(turned(streamed(64, 32)), 1.5, A, B, 0.5, C.t(), "new", truth)


@pytest.mark.parametrize("terms", [1, 2])
def test_the_terms_of_columns_are_multiples_of_their_scale(terms: int) -> None:
    split_columns = importlib.import_module("autogemm.kernels.split").split_columns
    B = torch.ldexp(normal(200, 12), torch.arange(-90, 110, device=PLACE)[:, None] // 2)
    B[3, 4], B[:, 5] = 0, 0
    made = split_columns(B, terms=terms, chunk=64)
    assert made.terms.shape == (12 * terms, 200)
    scales = made.scales.view(4, 12).abs().double().repeat_interleave(64, 0)[:200]
    held = sum(part.double().t() for part in made.terms.split(12)) * scales
    relative, absolute = (2.0**-11, 2.0**-24) if terms == 1 else (2.0**-23, 2.0**-25)
    limit = torch.maximum(relative * B.double().abs(), absolute * scales)
    assert ((held - B.double()).abs() <= limit).all()
    largest = B.double().abs().split(64)
    for x, scale in zip(largest, made.scales.view(4, 12).abs().double(), strict=True):
        ratio = x.amax(0)[scale > 0] / scale[scale > 0]
        assert ((ratio >= 2.0**14) & (ratio < 2.0**15)).all()
        assert not x.amax(0)[scale == 0].any()
