"""``skinny`` in form ``lanes``: on a Hopper GPU, else by ``interpreted_gluon``."""

from __future__ import annotations

import importlib
import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from gluon_stand_in import fixture_for
from invented import GPU
from test_kernels import LAYOUTS, ON_GPU, PLACE, gpu_problem, here, normal, serve
from test_skinny import check_bad_elements, integers

from autogemm.grading.hostile import HOSTILE, names_for, seeded
from autogemm.grading.oracle import Truth
from autogemm.precision import Tolerance
from autogemm.problem import contiguous_problem
from autogemm.strategies import BY_NAME, Candidate, hopper
from autogemm.strategies.base import ParamValue

STRATEGY = BY_NAME["skinny"]
Tiling = importlib.import_module("autogemm.kernels.split_product").Tiling
PARAMS: dict[str, ParamValue] = {
    "form": "lanes", "bn": 32, "bk": 128, "warps": 4, "stages": 3, "slices": 1,
}  # fmt: skip
TILES = ((32, 128, 4, 3), (32, 256, 8, 2), (16, 128, 2, 4), (16, 256, 4, 2), (64, 128, 8, 2))
"""(bn, bk, warps, stages)"""
SHAPES = ((16, 72, 520), (16, 64, 520), (13, 132, 100), (8, 36, 260), (4, 64, 8), (1, 40, 132))


REASONS = hopper.reasons_without_gluon(here(), "lanes")
pytestmark = [
    pytest.mark.skipif(bool(REASONS), reason="; ".join(REASONS)),
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


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("layout", ["nn", "nt", "tn", "tt"])
def test_all_rows_columns_and_parts_are_added(layout: str, tile: tuple[int, int, int, int]) -> None:
    for (m, n, k), slices in itertools.product(SHAPES, (1, 3)):
        A, B, C = integers(m, k), integers(k, n), integers(m, n)
        if layout[0] == "t":  # columns at multiples of 16 bytes, maybe without a gap
            A = integers(k, -(-m // 4) * 4)[:, :m].t()
        if layout[1] == "t":
            B = integers(n, k).t()
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
    A, B, C = integers(m, k), integers(n, k).t(), integers(m, n)
    exact = -1.5 * (A.double() @ B.double()) + 2 * C.double()
    where = LAYOUTS[out](C.clone())
    assert torch.equal(product(-1.5, A, B, 2.0, where, where, slices=slices), exact.float())


@pytest.mark.parametrize("out", ["row", "col", "block", "strided"])
@pytest.mark.parametrize("c", ["row", "col", "block", "strided", "a row", "a column"])
def test_c_lies_as_it_likes_and_otherwise(c: str, out: str) -> None:
    m, n, k = 12, 72, 132
    A, B, C = integers(m, k), integers(k, n), integers(m, n)
    expanded = {"a row": C[:1].expand(m, n), "a column": C[:, :1].expand(m, n)}
    C = expanded[c] if c in expanded else LAYOUTS[c](C)
    where = LAYOUTS[out](torch.full((m, n), torch.nan, device=PLACE))
    exact = A.double() @ B.double() + 0.5 * C.double()
    assert torch.equal(product(1.0, A, B, 0.5, C, where), exact.float())


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, dict[str, Any]]]:
    """How many programs were asked for, and with which constants; none runs."""
    found: list[tuple[int, dict[str, Any]]] = []
    module = importlib.import_module("autogemm.kernels.lanes_product")
    monkeypatch.setattr(module, "launch", lambda *x, **_: found.append((x[1], x[5])))
    return found


@pytest.mark.parametrize(("m", "bm"), [(1, 8), (4, 8), (8, 8), (9, 16), (16, 16)])
def test_a_tile_has_eight_rows_or_sixteen(
    m: int, bm: int, launched: list[tuple[int, dict[str, Any]]]
) -> None:
    A, B = normal(m, 132), normal(132, 72)
    run = STRATEGY.bind(gpu_problem(A, B, None, None, 0.0), here(), PARAMS)
    run(1.0, A, B, 0.0, None, torch.empty(m, 72, device=PLACE))
    assert launched[0][1]["BM"] == bm


@pytest.mark.parametrize(
    ("m", "pitch", "k", "at_once"),
    [
        (8, 8, 512, 4), (16, 16, 512, 2), (16, 16, 514, 2), (16, 20, 512, 1), (12, 16, 512, 1),
        (4, 8, 512, 1), (8, 8, 514, 1), (16, 16, 515, 1),
    ],
)  # fmt: skip
def test_columns_are_brought_together_if_nothing_lies_between_or_behind(
    m: int, pitch: int, k: int, at_once: int, launched: list[tuple[int, dict[str, Any]]]
) -> None:
    A = normal(k, pitch)[:, :m].t()
    product(1.0, A, normal(k, 72), 0.0, None, torch.empty(m, 72, device=PLACE))
    assert launched[0][1]["AT_ONCE"] == at_once


def test_no_slice_is_empty(launched: list[tuple[int, dict[str, Any]]]) -> None:
    out = torch.empty(16, 72, device=PLACE)
    product(1.0, normal(16, 8), normal(8, 72), 0.0, None, out, slices=3)
    assert launched[0][0] == 3  # tiles, of one slice


@pytest.mark.parametrize("name", names_for(torch.float32))
@pytest.mark.parametrize("layout", ["nn", "nt", "tn", "tt"])
def test_the_bound_is_kept_on_hostile_operands(name: str, layout: str) -> None:
    for turn, (m, n) in enumerate(((12, 68), (68, 12)), layout in ("nt", "tn")):
        A, B, C = HOSTILE[name](m, n, 140, torch.float32, seeded("lanes", name))
        truth = Truth(1.5, A, B, 0.5, C)
        A, B, C = (x.to(PLACE) for x in (A, B, C))
        A = LAYOUTS["col"](A) if layout[0] == "t" else A
        B = LAYOUTS["col"](B) if layout[1] == "t" else B
        for slices in (1, 2) if ON_GPU else (1 + turn % 2,):
            assert serve(candidate(slices=slices), 1.5, A, B, 0.5, C.clone(), "C", truth)


@pytest.mark.parametrize("value", [torch.inf, torch.nan, 3e38])
def test_a_bad_element_reaches_its_row_and_no_other(value: float) -> None:
    check_bad_elements(product, value, 260, "col", PARAMS)


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


Bases = list[list[int]]


def _bits(layout: Any) -> tuple[Bases, Bases, Bases]:
    """A thread's, a lane's and a warp's bases of a blocked layout of just its own size."""
    sizes = (layout.size_per_thread, layout.threads_per_warp, layout.warps_per_cta)
    bases: tuple[Bases, Bases, Bases] = ([], [], [])
    for level, (found, size) in enumerate(zip(bases, sizes, strict=True)):
        for axis in layout.order:
            inner = math.prod(lower[axis] for lower in sizes[:level])
            for bit in range(size[axis].bit_length() - 1):
                found.append([inner << bit if a == axis else 0 for a in range(3)])
    return bases


@pytest.mark.parametrize("b_t", [False, True])
@pytest.mark.parametrize("bm", [8, 16])
@pytest.mark.parametrize(("bn", "warps"), [(16, 2), (16, 4), (16, 8), (32, 4), (32, 8), (64, 8)])
def test_a_halving_gives_a_lane_one_bit_for_another(
    bn: int, warps: int, bm: int, b_t: bool
) -> None:
    parts = compiled._parts(bn, b_t, warps)
    assert parts * bn == 32 * warps * 8
    own, lanes, of_warps = _bits(compiled._sums(bm, bn, b_t, warps))
    assert len(own) == 3 + bm.bit_length() - 1
    halvings = compiled._halvings(bn, b_t, warps)
    for step in range(halvings):
        layout = compiled._halved(step, bm, bn, b_t, warps)
        assert layout.reg_bases[0] == [0, 0, 1]  # the two that are added are a thread's own
        assert len(layout.reg_bases) == len(own) - step
        assert sum(x != y for x, y in zip(lanes, layout.lane_bases, strict=True)) == 1
        assert layout.warp_bases == of_warps  # so that nothing leaves a warp
        assert layout.shape == [bm, bn, parts >> step]
        bits = [*layout.reg_bases, *layout.lane_bases, *layout.warp_bases]
        for axis, extent in enumerate(layout.shape):
            assert sorted(bit[axis] for bit in bits if bit[axis]) == [
                1 << i for i in range(extent.bit_length() - 1)
            ]
        assert all(sum(map(bool, bit)) == 1 for bit in bits)
        # Once added, the lowest bit of a part's number is gone.
        lanes = [[i, j, part >> 1] for i, j, part in layout.lane_bases]
        of_warps = [[i, j, part >> 1] for i, j, part in layout.warp_bases]
    assert not any(part for _, _, part in lanes)


@pytest.mark.parametrize("b_t", [False, True])
@pytest.mark.parametrize("bm", [8, 16])
@pytest.mark.parametrize(("bn", "warps"), [(16, 2), (16, 4), (16, 8), (32, 4), (32, 8), (64, 8)])
def test_lines_of_several_columns_are_where_their_elements_are_needed(
    bn: int, warps: int, bm: int, b_t: bool
) -> None:
    layout = compiled._packed(bm, bn, b_t, warps)
    own, lanes, of_warps = _bits(compiled._sums(bm, bn, b_t, warps))
    for found, wanted in ((layout.lane_bases, lanes), (layout.warp_bases, of_warps)):
        assert [(32 * line + at) // bm for line, at in found] == [part for _, _, part in wanted]
    assert layout.reg_bases == [[0, row] for row, _, _ in own if row]
    for line, at in (*layout.reg_bases, *layout.lane_bases, *layout.warp_bases):
        assert 0 <= at < 32
        assert 0 <= line < layout.shape[0]


# ----------------------------------------------------------------------------- the strategy


@pytest.fixture
def with_gluon(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.13.0", "triton": "3.6.0"}
    monkeypatch.setattr(hopper, "software_versions", lambda device_type: versions)


@pytest.mark.usefixtures("with_gluon")
def test_it_says_what_it_takes() -> None:
    problem = contiguous_problem(16, 4096, 4096, torch.float32, b="col", device_type="cuda")

    def why(**changed: ParamValue) -> str:
        return "; ".join(STRATEGY.reasons_not(problem, GPU, {**PARAMS, **changed}))

    hopper = replace(GPU, capability=(9, 0))
    assert STRATEGY.reasons_not(problem, hopper, PARAMS) == []
    newer = replace(GPU, capability=(10, 0))
    assert "capability 9.0" in STRATEGY.reasons_not(problem, newer, PARAMS)[0]
    assert "takes bk from 128, a warp for 8 columns or fewer, and 2 stages or more" in why(bk=64)
    assert "not bk=128, warps=4 for bn=64, stages=3" in why(bn=64)
    assert "warps=8 for bn=128" in why(bn=128, warps=8)
    assert "stages=1" in why(stages=1)
    assert why(bn=64, bk=256, warps=8, stages=2) == why(bn=64, warps=8) == ""
    assert "232448 bytes of shared memory at most, not 245760" in why(bk=256, stages=5)
    assert "does not take bn=8" in why(bn=8)
    assert "does not take form='rows'" in why(form="rows")
    assert why(bn=16, bk=128, warps=8) == ""
    plain = {key: value for key, value in PARAMS.items() if key != "form"}
    assert "without form=lanes bn is 64 at least" in STRATEGY.reasons_not(problem, GPU, plain)[0]
    plain |= {"bn": 64, "bk": 128}
    assert "bk at most, not bn=64, bk=128" in STRATEGY.reasons_not(problem, GPU, plain)[0]
    by_rows = replace(problem, b="row")
    assert STRATEGY.reasons_not(by_rows, GPU, plain | {"bk": 64}) == []
    too_large = plain | {"bn": 256, "bk": 64, "stages": 4}
    assert "shared memory" in STRATEGY.reasons_not(by_rows, GPU, too_large)[0]
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
    assert any(params["slices"] == fitted.kwargs["slices"] for params in offered)


@pytest.mark.usefixtures("with_gluon")
def test_slices_fill_a_device_once_or_twice_and_kinds_are_tiles() -> None:
    problem = contiguous_problem(16, 512, 100000, torch.float32, b="col", device_type="cuda")
    offered = list(STRATEGY.space(problem, GPU))
    assert {q["slices"] for q in offered if (q["bn"], q["bk"]) == (32, 256)} == {6, 12}
    assert all("form" in params for params in offered)
    assert list(STRATEGY.space(problem, replace(GPU, capability=(10, 0)))) == []

    def fitted(**params: ParamValue) -> ParamValue:
        return STRATEGY.fitted(Candidate.of("skinny", **params), problem, GPU).kwargs["slices"]

    assert fitted(**PARAMS) == 6
    assert fitted(bn=128, bk=32, warps=4, stages=4, slices=1) == 50

    def kin(**changed: ParamValue) -> Candidate:
        return STRATEGY.kin(candidate(**changed))

    assert kin() == kin(stages=6, slices=9)
    assert len({kin(), kin(bn=16), kin(bk=256), kin(warps=8)}) == 4
    assert "form" in kin().kwargs


def test_the_bound_covers_slices_that_are_rounded_up() -> None:
    problem = contiguous_problem(16, 64, 514, torch.float32, device_type="cuda")
    bound = STRATEGY.bound(problem, {**PARAMS, "bk": 256, "slices": 2})
    assert bound.total >= 512 / 32 + 5 + 1 + 3  # 257 elements, of blocks of 256


def test_the_bound_counts_a_lane_s_terms() -> None:
    problem = contiguous_problem(16, 64, 10**6, torch.float32, device_type="cuda")
    for slices in (1, 10, 1000):
        growth = STRATEGY.bound(problem, {**PARAMS, "slices": slices}).growth
        part = -(-problem.k // slices)
        assert part / 32 + 5 + slices - 1 <= growth <= (part + 128) / 32 + 10 + slices
    short = contiguous_problem(16, 64, 8, torch.float32, device_type="cuda")
    assert STRATEGY.bound(short, PARAMS).growth == 8
