"""``skinny`` in form ``lanes``: on a Hopper GPU, else by ``interpreted_gluon``."""

from __future__ import annotations

import importlib
import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from gluon_stand_in import fixture_for
from invented import GPU
from test_kernels import LAYOUTS, PLACE, here, normal, serve

from autogemm.grading.hostile import HOSTILE, names_for, seeded
from autogemm.grading.oracle import Truth
from autogemm.precision import Tolerance
from autogemm.problem import contiguous_problem
from autogemm.strategies import BY_NAME, Candidate, gluon
from autogemm.strategies.base import ParamValue

STRATEGY = BY_NAME["skinny"]
Tiling = importlib.import_module("autogemm.kernels.split_product").Tiling
PARAMS: dict[str, ParamValue] = {
    "form": "lanes", "bn": 32, "bk": 128, "warps": 4, "stages": 3, "slices": 1,
}  # fmt: skip
TILES = ((32, 128, 4, 3), (32, 256, 8, 2), (16, 128, 2, 4), (16, 256, 4, 2), (64, 128, 8, 2))
"""(bn, bk, warps, stages)"""
SHAPES = ((16, 72, 520), (13, 132, 100), (8, 36, 260), (4, 64, 8), (1, 40, 132))


def _reasons() -> list[str]:
    problem = contiguous_problem(16, 64, 64, torch.float32, device_type="cuda")
    return STRATEGY.reasons_not(problem, here(), PARAMS)


pytestmark = [
    pytest.mark.skipif(bool(_reasons()), reason="; ".join(_reasons())),
    pytest.mark.filterwarnings("ignore:::triton.runtime.interpreter"),
]
compiled = importlib.import_module("autogemm.kernels.lanes_product")
"""Whose layouts are Gluon's own."""
kernel = fixture_for("lanes_product")


def candidate(**changed: ParamValue) -> Candidate:
    return Candidate.of("skinny", **{**PARAMS, **changed})


def product(
    alpha: float, A: torch.Tensor, B: torch.Tensor, beta: float, C: torch.Tensor | None,
    out: torch.Tensor, *, slices: int = 1, tile: tuple[int, int, int, int] = TILES[0],
) -> torch.Tensor:  # fmt: skip
    rows = 8 if A.shape[0] <= 8 else 16
    importlib.import_module("autogemm.kernels.lanes_product").lanes_product(
        alpha, A, B, beta, C, out, slices=slices, tiling=Tiling(rows, *tile)
    )
    return out


def integers(rows: int, cols: int, by: str = "n") -> torch.Tensor:
    """Whole numbers from -8 to 8: their products and sums are exact in float32."""
    found = (normal(rows, cols) * 3).round().clamp(-8, 8)
    return found.t().contiguous().t() if by == "t" else found


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("layout", ["nn", "nt", "tn", "tt"])
def test_all_rows_columns_and_parts_are_added(
    layout: str, tile: tuple[int, int, int, int]
) -> None:
    for (m, n, k), slices in itertools.product(SHAPES, (1, 3)):
        A, B, C = integers(m, k, layout[0]), integers(k, n, layout[1]), integers(m, n)
        if A.stride(1) != 1:  # columns at multiples of 16 bytes, maybe without a gap
            A = integers(k, -(-m // 4) * 4)[:, :m].t()
        exact = 0.75 * (A.double() @ B.double()) + 0.5 * C.double()
        out = torch.full_like(C, torch.nan)
        product(0.75, A, B, 0.5, C, out, slices=slices, tile=tile)
        assert torch.equal(out, exact.float())


@pytest.mark.parametrize("rows", [8, 16])
@pytest.mark.parametrize("gap", [0, 4])
@pytest.mark.parametrize("k", [520, 524, 515])
def test_columns_that_follow_without_a_gap_are_brought_several_at_a_time(
    k: int, gap: int, rows: int
) -> None:
    memory = integers(k + 1, rows + gap)
    memory[k:] = torch.nan  # what follows A
    A = memory[:k, :rows].t()
    for B in (integers(k, 72), integers(72, k + -k % 4)[:, :k].t()):
        for tile in (TILES[0], TILES[2]):
            out = torch.full((rows, 72), torch.nan, device=PLACE)
            product(1.0, A, B, 0.0, None, out, tile=tile)
            assert torch.equal(out, (A.double() @ B.double()).float())


@pytest.mark.parametrize("out", ["row", "col", "block", "strided"])
@pytest.mark.parametrize("slices", [1, 3])
def test_results_lie_as_they_like(out: str, slices: int) -> None:
    m, n, k = 12, 72, 524
    A, B, C = integers(m, k), integers(k, n, "t"), integers(m, n)
    exact = -1.5 * (A.double() @ B.double()) + 2 * C.double()
    where = LAYOUTS[out](C.clone())
    assert torch.equal(product(-1.5, A, B, 2.0, where, where, slices=slices), exact.float())


@pytest.mark.parametrize("name", names_for(torch.float32))
@pytest.mark.parametrize("layout", ["nn", "nt", "tn", "tt"])
def test_the_bound_is_kept_on_hostile_operands(name: str, layout: str) -> None:
    for m, n in ((12, 68), (68, 12)):
        A, B, C = HOSTILE[name](m, n, 140, torch.float32, seeded("lanes", name))
        truth = Truth(1.5, A, B, 0.5, C)
        A, B, C = (x.to(PLACE) for x in (A, B, C))
        A = LAYOUTS["col"](A) if layout[0] == "t" else A
        B = LAYOUTS["col"](B) if layout[1] == "t" else B
        for slices in (1, 2):
            assert serve(candidate(slices=slices), 1.5, A, B, 0.5, C.clone(), "C", truth)


@pytest.mark.parametrize("value", [torch.inf, torch.nan, 3e38])
def test_a_bad_element_reaches_its_row_and_no_other(value: float) -> None:
    m, n, k = 12, 72, 260
    for at in ((0, 0), (5, k - 1), (m - 1, 133)):
        A, B = normal(m, k), normal(n, k).t()
        good = product(1.0, A, B, 0.0, None, normal(m, n), slices=2)
        A[at] = value
        B[at[1], 3] = 0.0
        bad = product(1.0, A, B, 0.0, None, normal(m, n), slices=2)
        others = torch.arange(m) != at[0]
        same = torch.arange(n, device=PLACE) != 3
        assert torch.equal(bad[others][:, same], good[others][:, same])
        truth = Truth(1.0, A.cpu(), B.cpu(), 0.0, None)
        truth.check(bad.cpu(), STRATEGY.bound(contiguous_problem(m, n, k, torch.float32), PARAMS))


def test_a_lane_adds_its_own_elements_alone() -> None:
    """One after another, ones are lost beside 2²⁴; those of other parts are not."""
    k, parts = 512, 32
    A = torch.zeros(4, k, device=PLACE)
    A[:, 0], A[:, parts::parts] = 2.0**24, 1.0  # a block's step at a time, in one part
    out = torch.full((4, 32), torch.nan, device=PLACE)
    product(1.0, A, torch.ones(32, k, device=PLACE).t(), 0.0, None, out)
    assert (out == 2.0**24).all()
    A = torch.zeros(4, k, device=PLACE)
    A[:, 0], A[:, 2::parts] = 2.0**24, 1.0
    product(1.0, A, torch.ones(32, k, device=PLACE).t(), 0.0, None, out)
    assert (out == 2.0**24 + k // parts).all()


# ----------------------------------------------------------------------------- layouts


def _bits(layout: Any) -> list[list[int]]:
    return [*layout.reg_bases, *layout.lane_bases, *layout.warp_bases]


@pytest.mark.parametrize("b_t", [False, True])
@pytest.mark.parametrize("bm", [8, 16])
@pytest.mark.parametrize(("bn", "warps"), [(16, 2), (16, 8), (32, 4), (32, 8), (64, 8)])
def test_a_halving_gives_a_lane_one_bit_for_another(
    bn: int, warps: int, bm: int, b_t: bool
) -> None:
    parts = compiled._parts(bn, b_t, warps)
    assert parts * bm * bn == 32 * warps * bm * 8
    before = None
    for step in range(compiled._halvings(bn, b_t, warps)):
        layout = compiled._halved(step, bm, bn, b_t, warps)
        bits = _bits(layout)
        extents = [bm, bn, parts >> step]
        for axis, extent in enumerate(extents):
            assert sorted(b[axis] for b in bits if b[axis]) == [
                1 << i for i in range(extent.bit_length() - 1)
            ]
        assert all(sum(map(bool, b)) == 1 for b in bits)
        assert layout.shape == extents
        assert layout.reg_bases[0] == [0, 0, 1]  # the two that are added are a thread's own
        if before is not None:  # the lowest bit of a part's number is gone since
            old = [[i, j, p >> 1] for i, j, p in before.lane_bases]
            assert sum(x != y for x, y in zip(old, layout.lane_bases, strict=True)) == 1
            assert [[i, j, p >> 1] for i, j, p in before.warp_bases] == layout.warp_bases
        before = layout


@pytest.mark.parametrize("b_t", [False, True])
@pytest.mark.parametrize("bm", [8, 16])
def test_lines_of_several_columns_are_where_their_elements_are_needed(bm: int, b_t: bool) -> None:
    for bn, warps in ((32, 4), (16, 4), (64, 8)):
        layout = compiled._packed(bm, bn, b_t, warps)
        lane_n, lane_k, warp_n, warp_k = compiled._bits_of(bn, b_t, warps)
        wanted = [0] * lane_n + [1 << i for i in range(lane_k)]
        places = [(line * 32 + at) // bm for line, at in layout.lane_bases]
        assert places == wanted
        wanted = [0] * warp_n + [1 << (lane_k + i) for i in range(warp_k)]
        assert [(line * 32 + at) // bm for line, at in layout.warp_bases] == wanted
        assert layout.reg_bases == [[0, 1 << i] for i in range(bm.bit_length() - 1)]


# ----------------------------------------------------------------------------- the strategy


@pytest.fixture
def with_gluon(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.13.0", "triton": "3.6.0"}
    monkeypatch.setattr(gluon, "software_versions", lambda device_type: versions)


@pytest.mark.usefixtures("with_gluon")
def test_it_says_what_it_takes() -> None:
    problem = contiguous_problem(16, 4096, 4096, torch.float32, b="col", device_type="cuda")

    def why(**changed: ParamValue) -> str:
        return "; ".join(STRATEGY.reasons_not(problem, GPU, {**PARAMS, **changed}))

    hopper = replace(GPU, capability=(9, 0))
    assert STRATEGY.reasons_not(problem, hopper, PARAMS) == []
    newer = replace(GPU, capability=(10, 0))
    assert "capability 9.0" in STRATEGY.reasons_not(problem, newer, PARAMS)[0]
    assert "bn up to 64" in why(bn=128)
    assert "not bn=32, bk=64, warps=4" in why(bk=64)
    assert "a warp to 8 columns" in why(bn=64, warps=4)
    assert "does not take form='rows'" in why(form="rows")
    assert why(bn=16, bk=128, warps=8) == ""
    plain = {key: value for key, value in PARAMS.items() if key != "form"}
    assert "without form=lanes bn is 64 at least" in STRATEGY.reasons_not(problem, GPU, plain)[0]
    plain |= {"bn": 64, "bk": 32}
    assert "lies along k; without form=lanes" in STRATEGY.reasons_not(problem, GPU, plain)[0]


@pytest.mark.usefixtures("with_gluon")
@pytest.mark.parametrize("b", ["row", "col"])
@pytest.mark.parametrize("shape", [(16, 4096, 4096), (5, 512, 100000), (300, 16, 10**6), (1, 8, 8)])
def test_what_is_offered_can_run(shape: tuple[int, int, int], b: str) -> None:
    problem = contiguous_problem(*shape, torch.float32, a="row", b=b, device_type="cuda")
    offered = [params for params in STRATEGY.space(problem, GPU) if "form" in params]
    assert offered
    assert len({tuple(params.items()) for params in offered}) == len(offered)
    for params in offered:
        assert STRATEGY.reasons_not(problem, GPU, params) == []
        bound = STRATEGY.bound(problem, params)
        assert Tolerance("highest").admits(bound, problem.dtype, problem.k)
        fitted = STRATEGY.fitted(Candidate.of("skinny", **params), problem, GPU)
        assert STRATEGY.reasons_not(problem, GPU, fitted.kwargs) == []
        assert STRATEGY.kin(fitted) == STRATEGY.kin(Candidate.of("skinny", **params))
        tiles = -(-max(shape[:2]) // int(params["bn"]))
        assert int(fitted.kwargs["slices"]) * tiles <= max(GPU.units, tiles)
        memory = (16 + int(params["bn"])) * int(params["bk"]) * 4 * int(params["stages"])
        assert memory < 227 * 1024
    assert any(params["slices"] == fitted.kwargs["slices"] for params in offered)


def test_the_bound_counts_a_lane_s_terms() -> None:
    problem = contiguous_problem(16, 64, 10**6, torch.float32, device_type="cuda")
    for slices in (1, 10, 1000):
        growth = STRATEGY.bound(problem, {**PARAMS, "slices": slices}).growth
        part = -(-problem.k // slices)
        assert part / 32 + 5 + slices - 1 <= growth <= (part + 128) / 32 + 10 + slices
    short = contiguous_problem(16, 64, 8, torch.float32, device_type="cuda")
    assert STRATEGY.bound(short, PARAMS).growth == 8
