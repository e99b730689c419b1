"""``emulated_fp32`` in form ``continuous``: on a Hopper GPU, else by ``interpreted_gluon``.

It computes what form ``split`` does in the same order: the interpreter's results are the same bits.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gluon_stand_in import fixture_for, marks_for
from test_emulated import (
    ENDS,
    GUARDED,
    METHODS,
    TINY,
    Make,
    Repairs,
    ordinary,
    pair,
    that_cancel,
    uncertified,
    where_infinities_meet,
)
from test_kernels import LAYOUTS, ON_GPU, PLACE, gpu_problem, here, normal, serve

from autogemm.grading.hostile import HOSTILE, names_for, seeded
from autogemm.grading.oracle import Truth
from autogemm.problem import contiguous_problem
from autogemm.strategies import BY_NAME, Candidate
from autogemm.strategies.base import ParamValue

splitting = importlib.import_module("autogemm.kernels.split")
from_split = importlib.import_module("autogemm.kernels.split_product")

STRATEGY = BY_NAME["emulated_fp32"]
Tile = tuple[int, int, int, int, int]
SMALL: Tile = (64, 64, 32, 4, 3)
"""(bm, bn, bk, warps, stages)"""
TILES: tuple[Tile, ...] = (SMALL, (64, 128, 64, 4, 2), (128, 64, 32, 4, 4), (128, 128, 64, 8, 3))


def continuous(tile: Tile = SMALL, **changed: ParamValue) -> Candidate:
    params: dict[str, ParamValue] = {
        "form": "continuous", "method": "fp16x3", "chunk": 64, "slices": 1, "group": 8,
    }  # fmt: skip
    params |= dict(zip(("bm", "bn", "bk", "warps", "stages"), tile, strict=True))
    return Candidate.of("emulated_fp32", **(params | changed))


pytestmark = marks_for(continuous())
kernel = fixture_for("continuous_product")


def module() -> Any:
    return importlib.import_module("autogemm.kernels.continuous_product")


class Case:
    """Operands that are split once; ``run`` multiplies them, any number of times."""

    def __init__(self, A: torch.Tensor, B: torch.Tensor, terms: int = 2, chunk: int = 64) -> None:
        self.A, self.B, self.terms, self.chunk = A.to(PLACE), B.to(PLACE), terms, chunk
        if B.data_ptr() == A.data_ptr():
            self.B = self.A.t()  # a Gram matrix is made of the same memory
        self.split = splitting.split_both(self.A, self.B, terms=terms, chunk=chunk)
        self.values = normal(A.shape[0], B.shape[1]) * 3

    def run(
        self, tile: Tile = SMALL, slices: int = 1, alpha: float = 1.0, beta: float = 0.0,
        c: str | None = None, out: str = "row", gain: float = 0.0, *, guard: bool = True,
        judged: bool = True, compared: bool = False, once: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        """α·A·B + β·C, ``c`` and ``out`` being layouts, or ``out`` C: within the declared bound,
        with nothing written around it. Where a slice is one chunk, by the kernel for that, too,
        but for ``once``; ``compared``: in the interpreter, by ``split_product`` too.
        """
        A, B, terms, chunk = self.A, self.B, self.terms, self.chunk
        found = []
        products = [module().continuous_product]
        if -(-A.shape[1] // slices) <= chunk and not once:
            products.append(functools.partial(module().continuous_product, registers=168))
        if compared and not ON_GPU:
            products.append(from_split.split_product)
        for product in products:
            C = None if c is None else LAYOUTS[c](self.values)
            target = LAYOUTS[out](torch.full_like(self.values, math.nan)) if out != "C" else C
            version = target._version
            product(
                alpha, A, B, beta, C, target, self.split, terms=terms, chunk=chunk, slices=slices,
                tiling=from_split.Tiling(*tile), gain=gain, guard=guard,
            )  # fmt: skip
            assert target._version > version, "autograd is told"
            whole = target if target._base is None else target._base
            around = int(whole.isnan().sum()) - int(target.isnan().sum())
            assert around == whole.numel() - target.numel(), "memory around the result changed"
            if C is not None and out != "C":
                assert torch.equal(C, self.values), "C was written"
            found.append(target)
            if judged and len(found) == 1:
                self.judge(target, tile, slices, alpha, beta, c)
        assert all(torch.equal(_bits(found[0]), _bits(x)) for x in found), "not the bits of split"
        return found[0]

    def judge(
        self, result: torch.Tensor, tile: Tile, slices: int, alpha: float, beta: float,
        c: str | None,
    ) -> None:  # fmt: skip
        C = None if c is None else self.values.cpu()
        (m, k), n = self.A.shape, self.B.shape[1]
        params = continuous(tile, method=METHODS[self.terms], slices=slices, chunk=self.chunk)
        bound = STRATEGY.bound(contiguous_problem(m, n, k, torch.float32), params.kwargs)
        Truth(alpha, self.A.cpu(), self.B.cpu(), beta, C).check(result.cpu(), bound)


def _bits(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(torch.int32).masked_fill(x.isnan(), 0)


# ------------------------------------------------------------------ layouts, tiles, sums' lengths


@pytest.mark.parametrize("layout", ["nn", "tn", "nt", "tt"])
@pytest.mark.parametrize("tile", TILES, ids=str)
def test_every_layout_and_tile_keeps_the_bound(tile: Tile, layout: str) -> None:
    sizes = ((68, 20, 100), *(((1000, 136, 1000), (130, 260, 3)) if ON_GPU else ()))
    for m, n, k in sizes:
        A = normal(k, m).t() if layout[0] == "t" else normal(m, k)
        B = normal(n, k).t() if layout[1] == "t" else normal(k, n)
        C = normal(m, n)
        truth = Truth(1.5, A.cpu(), B.cpu(), 0.5, C.cpu())
        method = "fp16x3" if layout[0] == "n" else "fp16"
        candidate = continuous(tile, method=method, slices=1 + (layout[1] == "t"))
        for out in ("new", "C", "col") if ON_GPU else (("new", "C")[tile[0] > 64],):
            assert serve(candidate, 1.5, A, B, 0.5, C, out, truth), "it was not served"


@pytest.mark.parametrize(
    ("m", "n", "tile", "group"),
    [(2, 130, SMALL, 8), (193, 65, SMALL, 2), (130, 3, (64, 128, 32, 4, 2), 8),
     (129, 129, (128, 128, 32, 8, 2), 8)],
)  # fmt: skip
def test_every_tile_of_a_ragged_result_is_computed(
    m: int, n: int, tile: Tile, group: int
) -> None:
    case = Case(normal(m, 40), normal(40, n))
    case.run(tile, 1, -2.0, 0.5, "row", "C", compared=True)
    if group != 8:
        A, B = case.A, case.B
        truth = Truth(1.0, A.cpu(), B.cpu(), 0.0, None)
        assert serve(continuous(tile, group=group), 1.0, A, B, 0.0, None, "new", truth)


@pytest.mark.parametrize("k", [1, 31, 32, 33, 64, 65, 127, 129, 193])
def test_sums_of_every_length_keep_the_bound(k: int) -> None:
    """Around the ends of blocks, chunks and slices; the correction shows how k was cut."""
    case = Case(normal(k, 20).t(), normal(k, 24), terms=1 + k % 2)
    for stages, slices, bk in ((2, 1, 32), (4, 1, 64), (3, 2, 32), (4, 3, 32)):
        case.run((64, 64, bk, 4, stages), slices, compared=slices == 3)
    case.run(SMALL, 2, gain=2.0**-5, judged=False, compared=True)


@pytest.mark.parametrize("chunk", [128, 256, 2048])
def test_long_chunks_keep_the_bound(chunk: int) -> None:
    case = Case(normal(20, 300), normal(300, 24), chunk=chunk)
    for slices, stages in ((1, 2), (2, 4)):
        case.run((64, 64, 64, 4, stages), slices, compared=True)


# ------------------------------------------------------------------------------- C and the result


@pytest.mark.parametrize("shape", [(20, 24), (21, 23), (68, 37)], ids=str)
def test_c_and_the_result_lie_as_they_like(shape: tuple[int, int]) -> None:
    m, n = shape
    case = Case(normal(m, 33), normal(33, n))
    for c in ("row", "col", "block", "col block", "strided"):
        outs = ("C", "row", "col", "block", "col block", "strided")
        for out in outs if shape == (20, 24) else ("C", "col" if c == "row" else "col block"):
            case.run(SMALL, 1, -0.5, 1.5, c, out, compared=out == "C")
    for out in ("col", "col block", "strided") if shape != (68, 37) else ():
        case.run(out=out)
    for c, out in (("col", "C"), ("block", "col")):
        case.run(SMALL, 2, 1.5, 0.5, c, out)


@pytest.mark.parametrize("out", ["C", "new"])
def test_a_row_of_c_may_serve_all_rows(out: str) -> None:
    A, B, bias = normal(20, 40), normal(40, 24), normal(1, 24)
    C = bias.expand(20, 24)
    truth = Truth(1.0, A.cpu(), B.cpu(), 1.0, C.cpu())
    assert serve(continuous(), 1.0, A, B, 1.0, C if out == "new" else C.clone(), out, truth)


def test_far_columns_of_c_and_the_result_are_found() -> None:
    """Offsets within a tile exceed 32 bits: neither is taken for contiguous."""
    case = Case(normal(3, 40), normal(40, 4))
    buffer = torch.empty(2**23 * 4, device=PLACE)
    for strides in ((2**23, 1), (1, 2**23)):
        out = buffer.as_strided((3, 4), strides)
        module().continuous_product(
            1.0, case.A, case.B, 0.0, None, out, case.split, terms=2, chunk=64, slices=1,
            tiling=from_split.Tiling(*SMALL), gain=0.0,
        )  # fmt: skip
        case.judge(out, SMALL, 1, 1.0, 0.0, None)


def gram(rows: int) -> torch.Tensor:
    """Two of its rows make tiles, and their mirror images, be computed again."""
    X = normal(rows, 72)
    X[3, 7] *= 2.0**-60
    X[rows - 1] = 0.0
    X[rows - 1, 5] = 2.0**-140
    return X


@pytest.mark.parametrize(
    ("rows", "c"), [(67, None), (68, None), (67, "col"), (68, "row"), (67, "strided")]
)
def test_a_gram_matrix_keeps_the_bound_and_mirrors_its_tiles(rows: int, c: str | None) -> None:
    X = gram(rows)
    for A, B in ((X, X.t()), (X.t().contiguous().t(), None)):
        case = Case(A, A.t() if B is None else B, terms=2 if B is None else 1)
        outs = ["row", "col block"] if c is None else ["C", "row" if c == "col" else "col"]
        for out in outs if rows == 68 else outs[B is None :][:1]:
            slices = 1 + (B is None and out == outs[1])
            result = case.run(SMALL, slices, 1.5, 0.0 if c is None else 0.5, c, out)
            if c is None:
                assert torch.equal(result[64:, :64], result[:64, 64:].t())


def test_a_gram_matrix_of_many_tiles_is_mirrored_tile_by_tile() -> None:
    X = normal(132, 33)
    case = Case(X, X.t())
    result = case.run()
    for i in (64, 128):
        assert torch.equal(result[i:, :i], result[:i, i:].t())
    case.run((128, 128, 32, 8, 2), out="col")
    case.run((64, 128, 32, 4, 2), compared=True)  # oblong tiles: all are computed


# ---------------------------------------------------------------------------------- the guard


@pytest.fixture
def repairs(monkeypatch: pytest.MonkeyPatch) -> Repairs | None:
    """Counts what the kernel does; None on a GPU, whose kernels cannot be watched."""
    if ON_GPU:
        return None
    counts = Repairs()

    def counted(real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            setattr(counts, name, getattr(counts, name) + 1)
            return real(*args)

        return call

    made = module()
    shared = made.settle.__wrapped__.__globals__  # where it looks names up
    for name, kind in (("_any_light", "weighed"), ("write_again", "again")):
        monkeypatch.setitem(shared, name, counted(shared[name], kind))
    return counts


def late_in_a_slice() -> tuple[torch.Tensor, torch.Tensor]:
    """Of two slices of two chunks the last chunk alone is flagged, and not certified."""
    A, B = ordinary(20, 24, 256)
    A[3, 129:] *= TINY
    A[3, 128], B[128] = 0, 0
    A[3, 192], B[192] = 1, 0
    return A, B


TABLE = [
    (name, terms, make, expected, needed)
    for form, name, only, make, expected, needed in GUARDED
    for terms in (METHODS if only is None else (only,))
    if form == "split"
]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("terms", "make"),
    [(terms, make) for _, terms, make, *_ in TABLE],
    ids=[f"{METHODS[terms]}-{name}" for name, terms, *_ in TABLE],
)
def test_one_chunk_is_certified_or_computed_again_alike(
    terms: int, make: Make, turned: bool, repairs: Repairs | None
) -> None:
    A, B = make()
    Case(*((B.t(), A.t()) if turned else (A, B)), terms=terms, chunk=2048).run()
    assert repairs is None or all(count % 2 == 0 for count in repairs.both), "by one of two kernels"


@pytest.mark.parametrize(
    ("name", "terms", "make", "expected", "needed"),
    TABLE,
    ids=[f"{METHODS[terms]}-{name}" for name, terms, *_ in TABLE],
)
def test_a_tile_is_certified_or_computed_again(
    name: str, terms: int, make: Make, expected: tuple[int, int], needed: bool,
    repairs: Repairs | None,
) -> None:  # fmt: skip
    case = Case(*make(), terms=terms)
    case.run()
    assert repairs is None or repairs.both == expected
    if expected[1] and terms == 2:  # C must still be there then
        case.run((64, 64, 64, 4, 2), 1, -0.5, 0.5, "col", "C")
        assert repairs is None or repairs.both == (2 * expected[0], 2)
        expected = (2 * expected[0], 2)
    if needed:
        result = case.run(guard=False, judged=False)
        assert repairs is None or repairs.both == expected
        with pytest.raises(AssertionError, match="element"):
            case.judge(result, SMALL, 1, 1.0, 0.0, None)


@pytest.mark.parametrize("out", ["row", "C"])
def test_only_the_tiles_that_need_it_are_computed_again(out: str, repairs: Repairs | None) -> None:
    A, B = ordinary(132, 68, 40)
    A[70, 1:] *= TINY  # in the second of three rows of tiles
    B[0] = 0
    case = Case(A, B)
    case.run(SMALL, 1, 1.0, 0.5, "row", out, once=True)
    assert repairs is None or repairs.both == (2, 2)


@pytest.mark.parametrize("terms", METHODS)
@pytest.mark.parametrize("stages", [2, 4])
def test_only_the_slice_that_needs_it_is_computed_again(
    stages: int, terms: int, repairs: Repairs | None
) -> None:
    A, B = ordinary(20, 24, 192)
    A[3, 129:] *= TINY
    B[128] = 0
    case = Case(A, B, terms)
    case.run((64, 64, 32, 4, stages), 3, compared=True, once=True)
    assert repairs is None or repairs.both == (1, 1)
    case.run((64, 64, 32, 4, stages), 2)
    assert repairs is None or repairs.both == (2, 2)
    case.run((64, 64, 64, 4, stages), 1)  # what is large elsewhere certifies it
    assert repairs is None or repairs.both == (2, 2)


def test_a_flag_in_the_last_chunk_of_the_last_slice_is_seen(repairs: Repairs | None) -> None:
    case = Case(*late_in_a_slice())
    case.run(SMALL, 2)
    assert repairs is None or repairs.both == (1, 1)


def test_sums_far_below_their_column_s_scale_are_not_taken_for_zeros(
    repairs: Repairs | None,
) -> None:
    """Weighed by it, they would vanish: the large stretches of B meet zeros alone."""
    A, B = ordinary(20, 24, 192)
    A[:, :128] = 0
    B[:128] *= 2.0**110
    B[128:] *= 2.0**-110
    A[3, 129:] *= TINY  # what is flagged
    B[128] = 0
    Case(A, B).run(compared=True)
    assert repairs is None or repairs.both == (1, 1)


@pytest.mark.parametrize(("larger", "again"), [(1025.0, 1), (1028.0, 0)])
def test_a_weight_must_exceed_what_underflow_may_have_added(
    larger: float, again: int, repairs: Repairs | None
) -> None:
    """Two products weigh 256.25 or 257, in units of the scales: 256.5 is enough for 128 of k."""
    A, B = torch.zeros(4, 104), torch.zeros(104, 4)
    A[0, :4] = torch.tensor([1.0, TINY, 2.0**-17, -(2.0**-17)])
    B[2:5, 0] = torch.tensor([larger * 2.0**-14, larger * 2.0**-14, 1.0])
    Case(A, B).run(compared=True)
    assert repairs is None or repairs.both == (1, again)


@pytest.mark.parametrize("tile", [SMALL, TILES[-1]], ids=str)
def test_what_lies_beyond_the_operands_is_neither_weighed_nor_repaired(
    tile: Tile, repairs: Repairs | None
) -> None:
    """Neighbours in memory, rows of the other operand's terms, the next chunk's scales."""
    for terms in METHODS:
        A, B = that_cancel()
        B[4, 7] = TINY
        A[4], A[4, 0] = 0, 1 + 2.0**-20
        Case(LAYOUTS["block"](A) if terms == 1 else A, B, terms).run(tile)
    assert repairs is None or repairs.both == (2, 0)
    A, B = ordinary(4, 4, 72)
    Case(LAYOUTS["block"](A), LAYOUTS["strided"](B)).run(tile, 2, 1.0, 1.0, "block", "C")
    assert repairs is None or repairs.both == (2, 0)


@pytest.mark.parametrize("terms", METHODS)
@pytest.mark.parametrize("name", ENDS)
def test_a_certificate_neither_overflows_nor_underflows(name: str, terms: int) -> None:
    edge = 4 if terms == 2 else 64
    case = Case(*pair(edge, 132, *ENDS[name]), terms=terms)
    out = case.run((64, 64, 64, 4, 2), judged=False)
    A, B = case.A, case.B
    exact = A[0].double() @ B[:, 0].double()
    weight = A[0].double().abs() @ B[:, 0].double().abs()
    rho = {2: 8.0, 1: 2.0**14}[terms]
    bound = 2.0**-24 * (exact.abs() + (rho + 132) * weight) + 134 * 2.0**-149
    assert (out[0, 0].double() - exact).abs() <= bound


# ------------------------------------------------------------------------- inf, NaN, -0, hostile


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, -0.0])
@pytest.mark.parametrize("where", [0, 63, 100])
def test_a_special_element_comes_out_as_native_arithmetic_has_it(
    where: int, value: float
) -> None:
    partners = torch.tensor([1.0, -1.0, 0.0, -0.0, 2.0**-70, -(2.0**-70), 2.0**-149, -(2.0**-149)])
    for terms in METHODS if where == 63 else (2,):
        outer, inner = normal(20, 104).cpu(), normal(104, 24).cpu()
        outer[5, where] = value
        inner[where, : len(partners)] = partners
        A, B = (outer, inner) if where != 100 else (inner.t().contiguous(), outer.t().contiguous())
        expected = A @ B
        found = Case(A, B, terms).run(SMALL, 1 + (where == 63), judged=value == 0).cpu()
        special = ~expected.isfinite()
        assert special.any() == (not math.isfinite(value))
        assert torch.equal(found.isnan(), expected.isnan())
        assert torch.equal(found[special].nan_to_num(7.0), expected[special].nan_to_num(7.0))
        assert found[~special].isfinite().all()


def test_rows_of_negative_zeros_give_zeros() -> None:
    A, B = normal(20, 72), normal(72, 24)
    A[4], B[:, 7] = -0.0, -0.0
    out = Case(A, B).run()
    assert not out[4].any()
    assert not out[:, 7].any()
    assert out.cpu()[5, 6] != 0


@pytest.mark.parametrize("name", names_for(torch.float32))
def test_the_bound_holds_on_hostile_operands(name: str) -> None:
    """In place, in slices, of one term or two, by turns."""
    A, B, C = (
        x.to(PLACE) for x in HOSTILE[name](20, 28, 72, torch.float32, seeded("continuous", name))
    )
    turn = names_for(torch.float32).index(name)
    truth = Truth(1.5, A.cpu(), B.cpu(), 0.5, C.cpu())
    turns = range(4) if ON_GPU else (turn % 4,)
    for at in turns:
        candidate = continuous(slices=1 + at % 2, method="fp16" if at == 3 else "fp16x3")
        out = ("C", "new", "col", "C")[at]
        assert serve(candidate, 1.5, A, B, 0.5, C, out, truth)


# -------------------------------------------------------------------------------------- waits


def run_changed(
    change: tuple[str, str], folder: Path, stages: int = 2, terms: int = 2, made: Make = uncertified
) -> None:
    """Two tiles, of which the first is computed again."""
    gluon = importlib.import_module("interpreted_gluon")
    changed = gluon.interpreted("continuous_product", folder, change)
    A, B = made()
    A = torch.cat([A, ordinary(60, 24, A.shape[1])[0]])
    split = splitting.split_both(A, B, terms=terms, chunk=64)
    changed.continuous_product(
        1.0, A, B, 0.0, None, torch.empty(80, 24), split, terms=terms, chunk=64, slices=1,
        tiling=from_split.Tiling(64, 64, 32, 4, stages), gain=0.0,
    )  # fmt: skip


def errors() -> Any:
    return importlib.import_module("triton.runtime.errors").InterpreterError


@pytest.mark.parametrize(
    ("method", "tile", "limit"),
    [
        ("fp16x3", (64, 128, 32, 4, 3), 168), ("fp16", (64, 128, 64, 4, 2), 128),
        ("fp16", (64, 128, 64, 4, 3), 168), ("fp16x3", (64, 128, 32, 4, 4), None),
        ("fp16", (64, 128, 32, 4, 3), None), ("fp16x3", (64, 128, 64, 4, 3), None),
        ("fp16x3", (128, 128, 64, 8, 3), None),
    ],
)  # fmt: skip
def test_registers_are_limited_where_one_chunk_covers_k_and_a_total_kept_with_many_warps(
    method: str, tile: Tile, limit: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int | None, bool]] = []
    monkeypatch.setattr(
        module(), "launch", lambda *x, registers, **_: seen.append((registers, x[5]["ONE"]))
    )
    A, B = ordinary(64, 128, 128)
    for k, slices in ((64, 1), (128, 1), (128, 2)):
        a, b = A[:, :k].to(PLACE), B[:k].to(PLACE)
        params = continuous(tile, method=method, slices=slices).kwargs
        run = STRATEGY.bind(gpu_problem(a, b, None, None, 0.0), here(), params)
        run(1.0, a, b, 0.0, None, torch.empty(64, 128, device=PLACE))
    alone = (limit, tile[3] <= 4)
    assert seen == [alone, (None, False), alone]


@pytest.mark.skipif(ON_GPU, reason="a GPU may be in time by chance")
def test_one_stage_would_be_waited_for_in_vain(tmp_path: Path) -> None:
    """That is why the strategy asks for two."""
    run_changed(("", ""), tmp_path, 2)
    with pytest.raises(errors(), match="it would wait forever"):
        run_changed(("", ""), tmp_path, 1)


WAITS = {
    "a stage too far ahead": ("ahead = block + STAGES - 1", "ahead = block + STAGES"),
    "no meeting before a stage is written": (
        "        barrier()\n        ahead", "        ahead"
    ),
    "no wait for the products of the last block": ("_wait(3, deps", "_wait(6, deps"),
    "no wait for the one product of the last block": ("_wait(1, deps=[high])", "_wait(2, [high])"),
    "no wait for a block": ("        arrive(bars, block, STAGES)\n", ""),
    "the other phase is waited for": ("(bars, block, STAGES)", "(bars, block + STAGES, STAGES)"),
    "fewer bytes are expected": ("2 * BK * TERMS * (BM + BN)", "2 * BK * TERMS * BM"),
    "barriers that the accelerator does not know": ("    fence_async_shared()\n", ""),
    "barriers that other threads do not know": (
        "    fence_async_shared()\n    barrier()\n", "    fence_async_shared()\n"
    ),
    "blocks behind the last are brought": ("ahead < blocks,", "True,"),
    "no meeting between blocks that are read once more": (
        "    for block in range(first * 0, blocks):\n        barrier()\n",
        "    for block in range(first * 0, blocks):\n",
    ),
    "no wait for a block that is read once more": ("arrive(bars, block, 1)\n", "pass\n"),
    "barriers freed while somebody may wait at them": (
        "    barrier()\n    for s in gl.static_range(STAGES):\n        mbarrier.invalidate",
        "    for s in gl.static_range(STAGES):\n        mbarrier.invalidate",
    ),
    "a tile is stored again while it is stored": ("    barrier()  # as in", "    # as in"),
    "more blocks than there are to begin with": ("s < blocks, BYTES", "True, BYTES"),
}  # fmt: skip


OTHERWISE: dict[str, dict[str, Any]] = {
    "no wait for the one product of the last block": {"terms": 1},
    "a tile is stored again while it is stored": {"made": where_infinities_meet},  # none is weighed
    "more blocks than there are to begin with": {"stages": 4, "made": lambda: ordinary(20, 24, 32)},
    "blocks behind the last are brought": {"made": ordinary},
}


@pytest.mark.skipif(ON_GPU, reason="a GPU may be in time by chance")
@pytest.mark.parametrize("name", WAITS)
def test_every_wait_is_needed(name: str, tmp_path: Path) -> None:
    with pytest.raises(errors(), match="Assertion"):
        run_changed(WAITS[name], tmp_path, **OTHERWISE.get(name, {}))
