"""What one bad element spoils, a row or a column of a tile, is computed by itself.

On a GPU as it is, elsewhere in Triton's interpreter, Gluon by ``interpreted_gluon``; there an
alarm goes off where a tile is multiplied twice, or computed again as a whole.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from gluon_stand_in import marks_for
from test_kernels import LAYOUTS, ON_GPU, PLACE, emulated, normal, serve
from test_streamed import streamed, turned
from test_tandem import tandem

from autogemm.grading.oracle import Truth
from autogemm.strategies import Candidate

fused = importlib.import_module("autogemm.kernels.fused_product")
settle = importlib.import_module("autogemm.kernels.settle")
SAFE_SCALES = fused._safe_scales
errors = importlib.import_module("triton.runtime.errors")

pytestmark = marks_for(tandem())

M, N, K = 68, 20, 244
"""Two rows of tiles and four slices (two of one form), the last of each cut short."""
SLICED = 4
FORMS = {
    "tandem": tandem(),
    "streamed": streamed(64, 32),
    "fused": emulated("fused", "fp16x3"),
    "fused, one term": emulated("fused", "fp16", 64, 32, chunk=64),
}
OTHERS = {
    "tandem, one term": tandem(64, 128, 4, 1, method="fp16", chunk=512),
    "streamed, one term": streamed(64, 16, 64, method="fp16", chunk=128),
}
"""These compute tiles again."""
BAD = {
    "inf": math.inf, "-inf": -math.inf, "NaN": math.nan, "-NaN": -math.nan, "1e6": 1e6,
    "1e30": 1e30, "1e38": 1e38,
}  # fmt: skip
"""Beside 1e6 others may not be left out."""
Operands = tuple[torch.Tensor, torch.Tensor]
PLACES = {"first block": 3, "first of a block": 64, "second slice": 110, "last": 243}
EVERYWHERE = ("NaN", "1e30")
CASES = [
    (value, where)
    for i, value in enumerate(BAD) for j, where in enumerate(PLACES)
    if ON_GPU or value in EVERYWHERE or (i + j) % 2
]  # fmt: skip
"""In the interpreter most of the bad elements lie at two of the places."""


def alarm(*given: Any) -> Any:
    raise AssertionError("alarm")


@pytest.fixture(scope="module", autouse=True)
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Those in Gluon, with what they share, where there is no GPU."""
    made: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        if not ON_GPU:
            gluon = importlib.import_module("interpreted_gluon")
            for name in ("tandem_product", "streamed_product"):
                # A name that is there, so that an alarm can take its place.
                change = ("doubt += 1.0", "doubt += settle.again()")
                module = gluon.interpreted(name, tmp_path_factory.mktemp(name), change)
                module.settle.again = lambda: 1.0
                patch.setitem(sys.modules, f"autogemm.kernels.{name}", module)
                made[name] = module
        yield made


def names_of_settle(module: Any) -> dict[str, Any]:
    """Those by which a kernel's stand-in knows what it calls where sums do not vouch for a tile."""
    names: dict[str, Any] = module.settle.__wrapped__.__globals__
    return names


def names_of_lines(module: Any) -> dict[str, Any]:
    """Those by which ``kernels/lines.py`` knows what it calls."""
    names: dict[str, Any] = names_of_settle(module)["store_line"].__wrapped__.__globals__
    return names


@pytest.fixture
def alarms(kernels: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for module in kernels.values():
        monkeypatch.setattr(module.settle, "again", alarm)
        monkeypatch.setitem(names_of_settle(module), "write_again", alarm)
    if not ON_GPU:
        monkeypatch.setattr(fused, "_safe_scales", alarm)
        monkeypatch.setattr(settle, "ieee_tile", alarm)


def of(form: str, slices: int) -> Candidate:
    chosen = (FORMS | OTHERS)[form]
    return Candidate.of("emulated_fp32", **(chosen.kwargs | {"slices": slices}))


def check(
    candidate: Candidate, A: torch.Tensor, B: torch.Tensor, C: torch.Tensor | None = None,
    out: str = "new",
) -> None:  # fmt: skip
    alpha, beta = (1.0, 0.0) if C is None else (-0.5, 1.5)
    truth = Truth(alpha, A.cpu(), B.cpu(), beta, None if C is None else C.cpu())
    assert serve(candidate, alpha, A, B, beta, C, out, truth), "it was not served"


def slicings(turn: int) -> tuple[int, ...]:
    """Both numbers of slices; in the interpreter they take turns."""
    return (1, SLICED) if ON_GPU else ((1, SLICED)[turn % 2],)


def wider(x: torch.Tensor) -> torch.Tensor:
    """The same with rows that go on."""
    rows = torch.full((x.shape[0], x.shape[1] + 12), math.nan, device=PLACE)
    rows[:, : x.shape[1]] = x
    return rows[:, : x.shape[1]]


def operands() -> Operands:
    return normal(M, K), normal(K, N)


def with_one(value: float, at: int) -> Iterator[Operands]:
    """One bad element, of A or of B, that meets a zero: inf·0 is NaN, 1e30·0 leaves the others."""
    A, B = operands()
    A[66, at], B[at, 7] = value, 0
    yield A, B
    A, B = operands()
    B[at, 19], A[5, at] = value, 0
    yield A, B


def in_one_line() -> Iterator[Operands]:
    for one, other in ((1e30, -1e30), (math.inf, -math.inf), (1e38, math.nan), (math.inf, 1e30)):
        A, B = operands()
        A[3, 100], A[3, 110], A[3, 243] = one, other, other
        yield A, B
        A, B = operands()
        B[100, 5], B[110, 5], B[243, 5] = one, other, other
        yield A, B
    A, B = operands()
    A[3] = math.inf
    yield A, B
    A, B = operands()
    B[:, 5] = math.nan
    yield A, B


def in_several_lines(value: float) -> Iterator[Operands]:
    A, B = operands()
    A[3, 110], B[100, 5] = value, value
    yield A, B
    A, B = operands()
    A[3, 110] = A[5, 120] = value
    yield A, B
    A, B = operands()
    B[110, 3] = B[120, 4] = value
    yield A, B


def beside_doubt(value: float) -> Iterator[Operands]:
    """A row's scale is too coarse for all but one element, which is multiplied by zeros."""
    A, B = operands()
    A[5, 64], B[64] = 2.0**60, 0
    A[3, 100] = value
    yield A, B
    A, B = operands()
    A[:, 64], B[64, 4] = 0, 2.0**60
    B[100, 3] = value
    yield A, B
    A, B = operands()
    A[5:15, 64], B[64] = 2.0**60, 0  # more than a line
    A[3, 100] = value
    yield A, B


@pytest.mark.usefixtures("alarms")
@pytest.mark.parametrize(("value", "where"), CASES)
@pytest.mark.parametrize("form", FORMS)
def test_one_bad_element_costs_a_row_or_a_column(form: str, value: str, where: str) -> None:
    """Also where it is the one by which others are scaled, whose weight then does not suffice."""
    turn = list(PLACES).index(where) // 2
    for in_b, (A, B) in enumerate(with_one(BAD[value], PLACES[where])):
        for slices in (1, SLICED) if value in EVERYWHERE else slicings(turn + in_b):
            check(of(form, slices), A, B)


@pytest.mark.skipif(ON_GPU, reason="what a kernel calls shows in the interpreter alone")
@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("form", FORMS)
def test_what_outweighs_its_line_is_all_that_is_read(
    form: str, value: str, kernels: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in kernels.values():
        monkeypatch.setitem(names_of_lines(module), "line_of_tiles", alarm)
        monkeypatch.setitem(names_of_lines(module), "line_of_memory", alarm)
    monkeypatch.setattr(settle, "_line", alarm)
    for in_a in (True, False):
        for slices in slicings(list(BAD).index(value) // 2 + in_a):
            A, B = operands()
            if in_a:
                A[66, 100] = BAD[value]
            else:
                B[100, 7] = BAD[value]
            if value == "1e6":
                with pytest.raises(errors.InterpreterError, match="alarm"):
                    check(of(form, slices), A, B)
            else:
                check(of(form, slices), A, B)


@pytest.mark.parametrize("form", FORMS)
def test_a_line_that_no_other_vouches_for_is_added_up(form: str) -> None:
    """The tile has no other row (column): -inf and inf meet in a sum.

    Rows of zeros beyond the matrix show some forms that there are two lines.
    """
    bn = int(FORMS[form].kwargs["bn"])
    A, B = normal(65, K), normal(K, 20)
    A[64, 100], A[64, 110] = -math.inf, 1
    B[100, 3], B[110, 3] = 1, math.inf
    check(of(form, 1), A, B, None, "row")
    A, B = normal(36, K), normal(bn + 1, K).t()
    B[100, bn], B[110, bn] = -math.inf, 1
    A[3, 100], A[3, 110] = 1, math.inf
    check(of(form, 1), A, B, None, "row")


@pytest.mark.parametrize("form", FORMS)
def test_large_elements_behind_the_first_block_are_not_left_out(form: str) -> None:
    """They outgrow the scales of the first one, so that it says nothing of how large they are."""
    A, B = operands()
    B[200] *= 2.0**90
    A[3, 50] = 1e30
    check(of(form, 1), A, B)
    A, B = operands()
    A[:, 200] *= 2.0**90
    B[50, 3] = 1e30
    check(of(form, 1), A, B)


@pytest.mark.parametrize("in_a", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_what_is_left_out_is_as_small_as_the_other_operand_allows(form: str, in_a: bool) -> None:
    """Of that, elements behind the first block are 31 times as large as its; or all are large."""
    for exponent, larger in ((24, 31.0), (12, 2.0**60)):
        A, B = torch.ones(M, K, device=PLACE), torch.ones(K, N, device=PLACE)
        x, y = (A, B.t()) if in_a else (B.t(), A)
        if exponent == 24:
            y[:, 70:], y[:, 200] = larger, 1
        else:
            y *= larger
        x[3, 200] = 2.0**exponent
        check(of(form, 1), A, B)


@pytest.mark.usefixtures("alarms")
@pytest.mark.parametrize("form", FORMS)
def test_several_bad_elements_may_share_a_line(form: str) -> None:
    for turn, (A, B) in enumerate(in_one_line()):  # of A and B alternately
        for slices in slicings(turn + turn // 2):
            check(of(form, slices), A, B)


@pytest.mark.usefixtures("alarms")
@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("form", FORMS)
def test_a_line_may_be_in_doubt_alone(form: str, where: str) -> None:
    """Its scale is too coarse for all but the element that sets it, which meets zeros."""
    at = PLACES[where]
    turn = list(PLACES).index(where)
    A, B = operands()
    A[66, at], B[at] = 2.0**60, 0
    for slices in slicings(turn):
        check(of(form, slices), A, B)
    A, B = operands()
    A[:, at], B[at, 19] = 0, 2.0**60
    for slices in slicings(turn + 1):
        check(of(form, slices), A, B)


@pytest.mark.parametrize("value", ["inf", "NaN", "1e30"])
@pytest.mark.parametrize("form", OTHERS)
def test_forms_that_compute_tiles_again_keep_the_bound(form: str, value: str) -> None:
    for turn, at in enumerate(PLACES.values()):
        for in_b, (A, B) in enumerate(with_one(BAD[value], at)):
            for slices in slicings(turn + in_b):
                check(of(form, slices), A, B, None if slices == 1 else normal(M, N))
    for first, make in enumerate((in_several_lines, beside_doubt), list(BAD).index(value) // 2):
        for turn, (A, B) in enumerate(make(BAD[value]), first):
            for slices in slicings(turn):
                check(of(form, slices), A, B)


@pytest.mark.parametrize("form", OTHERS)
def test_those_forms_keep_it_with_several_bad_elements_in_a_line(form: str) -> None:
    for turn, (A, B) in enumerate(in_one_line()):  # of A and B alternately
        for slices in slicings(turn + turn // 2):
            check(of(form, slices), A, B)


@pytest.mark.usefixtures("alarms")
@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_bad_beyond_an_operand(form: str) -> None:
    """A tile of one row, of one column, of one element; the rest of it is no part of the result."""
    bn = int(FORMS[form].kwargs["bn"])
    for rows, cols in ((65, 20), (68, bn + 1), (65, bn + 1)):
        for value in (math.nan, 1e30):
            A, B = normal(rows, K), normal(cols, K).t()
            A[rows - 1, 100] = value
            check(of(form, SLICED), A, B, None, "row")
            A, B = normal(rows, K), normal(cols, K).t()
            B[100, cols - 1] = value
            check(of(form, 1), A, B, None, "row")


@pytest.mark.usefixtures("alarms")
@pytest.mark.parametrize("layout", ["nn", "tn", "nt", "tt"])
@pytest.mark.parametrize("form", FORMS)
def test_operands_and_results_lie_as_they_may(form: str, layout: str) -> None:
    """C shows beside a large element where that meets zeros. What lies behind k is NaN."""
    orders = [("row", "new"), ("col", "block"), ("block", "row"), ("row", "col")]
    bad = [(math.nan, True), (1e30, True), (-math.inf, False), (1e30, False)]
    first = ["nn", "tn", "nt", "tt"].index(layout)
    for turn, (value, in_a) in enumerate(bad, first):
        A, B = operands()
        if in_a:
            A[66, 100], B[100, :19] = value, 0
        else:
            B[100, 13], A[60:, 100] = value, 0
        A = LAYOUTS["col"](A) if layout[0] == "t" else wider(A)
        B = LAYOUTS["col"](B) if layout[1] == "t" else B
        C = normal(M, N)
        for order, out in orders if ON_GPU else [orders[turn % 4]]:
            for slices in slicings(turn - first + first // 2):
                check(of(form, slices), A, B, LAYOUTS[order](C), out)
        if ON_GPU or turn % 2:
            check(of(form, 1), A, B, C[:1].expand(M, N))
        if ON_GPU or not turn % 2:
            check(of(form, SLICED), A, B, C, "C")


@pytest.mark.parametrize("form", FORMS)
def test_a_result_in_place_keeps_the_bound(form: str) -> None:
    """Lines are looked for in what was stored, which is C there."""
    C = normal(M, N)
    special = C.clone()
    special[7, 9] = math.inf
    for value in (math.inf, 1e30):
        A, B = operands()
        A[66, 100] = value
        check(of(form, 1), A, B, C, "C")
        check(of(form, 1), A, B, special, "C")
        A, B = operands()
        B[100, 3] = value
        check(of(form, 1), A, B, C, "C")
        check(of(form, 1), A, B, special, "C")
    A, B = operands()
    A[66, 3], B[3] = 2.0**60, 0  # in doubt
    check(of(form, 1), A, B, C, "C")


@pytest.mark.parametrize("form", FORMS)
def test_what_c_holds_is_no_line_of_its_own(form: str) -> None:
    A, B = operands()
    A[66, 100] = math.inf
    C = normal(M, N)
    C[67, 3] = C[2, 4] = math.inf
    check(of(form, 1), A, B, C)
    A, B = operands()
    A[66, 3], B[3] = 2.0**60, 0
    check(of(form, 1), A, B, C)


@pytest.mark.parametrize("form", FORMS)
def test_rows_and_columns_are_computed_with_their_tile(form: str) -> None:
    for first, value in enumerate((math.inf, math.nan, 1e30)):
        for turn, (A, B) in enumerate(in_several_lines(value), first):
            for slices in slicings(turn):
                check(of(form, slices), A, B)
    A, B = operands()
    check(of(form, 1), torch.full_like(A, math.inf), B)
    check(of(form, SLICED), A, torch.full_like(B, math.nan))


@pytest.mark.skipif(ON_GPU, reason="a compiled kernel raises no alarm")
@pytest.mark.usefixtures("alarms")
@pytest.mark.parametrize("form", FORMS)
def test_alarms_go_off(form: str) -> None:
    for rows, cols in (((3, 5), ()), ((), (3, 4)), ((3,), (5,))):
        A, B = operands()
        A[rows, 110] = B[100, cols] = math.inf
        with pytest.raises(errors.InterpreterError, match="alarm"):
            check(of(form, 1), A, B)
    A, B = operands()
    A[3, 110] = math.inf
    with pytest.raises(errors.InterpreterError, match="alarm"):
        check(of(form, 1), A, B, normal(M, N), "C")


@pytest.mark.skipif(ON_GPU, reason="a compiled kernel raises no alarm")
@pytest.mark.usefixtures("alarms")
@pytest.mark.parametrize("form", FORMS)
def test_more_than_a_line_is_scaled_again_rather(
    form: str, kernels: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is an alarm where it is computed in IEEE arithmetic."""
    A, B = operands()
    A[:, 110] *= 2.0**8
    with pytest.raises(errors.InterpreterError, match="alarm"):
        check(of(form, 1), A, B)
    for module in kernels.values():
        monkeypatch.setattr(module.settle, "again", lambda: 1.0)
    monkeypatch.setattr(fused, "_safe_scales", SAFE_SCALES)
    check(of(form, 1), A, B)


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("form", FORMS)
def test_doubt_of_other_elements_is_looked_into(form: str, value: str) -> None:
    for turn, (A, B) in enumerate(beside_doubt(BAD[value]), list(BAD).index(value) // 2):
        for slices in slicings(turn):
            check(of(form, slices), A, B)


@pytest.mark.usefixtures("alarms")
@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("form", FORMS)
def test_a_bad_line_may_weigh_little(form: str, value: str) -> None:
    """Others, whose sums cancel, are certified by their weight."""
    for in_a in (True, False):
        x, y = normal(M, 64), normal(64, N)
        A = torch.cat([torch.zeros_like(x), x, x], 1)
        B = torch.cat([torch.zeros_like(y), y, -y], 0)
        if in_a:
            A[3] *= 2.0**-60
            A[3, 170], A[3, 0] = BAD[value], 1
        else:
            B[:, 3] *= 2.0**-60
            A[:, 64], A[:, 128], B[64, 3] = 0, 0, 1
            B[170, 3], B[0, 3] = BAD[value], 1
        check(of(form, 1), A, B)


@pytest.mark.parametrize("value", BAD if ON_GPU else ["NaN", "1e30"])
@pytest.mark.parametrize("form", ["tandem", "tandem, one term", "fused"])
def test_a_line_of_a_gram_matrix_is_mirrored(form: str, value: str) -> None:
    X = normal(132, K)
    X[3, 110], X[100, 110] = BAD[value], 0  # C shows where the bad element meets a zero
    for A, each in ((X, 1), (LAYOUTS["col"](X), SLICED)):
        for slices in (1, SLICED) if ON_GPU else (each,):
            check(of(form, slices), A, A.t())
            check(of(form, slices), A, A.t(), normal(132, 132), "block")
    Y = normal(65, K)  # the last tile is one element, on the diagonal
    Y[64, 110], Y[:30, 110] = BAD[value], 0
    check(of(form, 1), Y, Y.t(), normal(65, 65), "row")


@pytest.mark.usefixtures("alarms")
def test_a_product_computed_transposed_is_as_good() -> None:
    for value in BAD.values():
        A, B = normal(20, K), normal(K, M)
        A[7, 100] = value
        check(turned(streamed(64, 32)), A, B, normal(20, M))
        A, B = normal(20, K), normal(K, M)
        B[100, 66] = value
        check(turned(streamed(64, 32)), A, B, normal(20, M), "col")


@pytest.mark.usefixtures("alarms")
@pytest.mark.parametrize("k", [65, 96, 97, 127, 191])
@pytest.mark.parametrize("form", FORMS)
def test_sums_of_every_length_keep_the_bound(form: str, k: int) -> None:
    """In all columns but one the bad element meets zeros: no other may be missing there."""
    params = FORMS[form].kwargs
    name = f"{params['form']}_product"
    run = getattr(importlib.import_module(f"autogemm.kernels.{name}"), name)
    tiling = importlib.import_module("autogemm.kernels.split_product").Tiling
    A, B = normal(k, 36).t(), normal(k, 20)
    A[3, k - 1], B[k - 1, :19] = 1e30, 0
    pairs = [(A, B), (B.t(), A.t())] if form == "tandem" else [(A, B)]
    for x, y in pairs:
        for stages in (1, 2, 4) if form == "tandem" else (2, 4):
            out = torch.full((len(x), y.shape[1]), math.nan, device=PLACE)
            run(
                1.0, x, y, 0.0, None, out, terms=2, chunk=params["chunk"], slices=1, gain=0.0,
                tiling=tiling(params["bm"], params["bn"], params["bk"], params["warps"], stages),
            )  # fmt: skip
            exact, weight = x.double() @ y.double(), x.double().abs() @ y.double().abs()
            assert ((out.double() - exact).abs() <= 2.0**-24 * (32 + 3 * k) * weight).all()


@pytest.mark.parametrize("form", ["tandem", "streamed"])
def test_unguarded_results_take_c_s_place_all_the_same(form: str) -> None:
    params = FORMS[form].kwargs
    name = f"{form}_product"
    run = getattr(importlib.import_module(f"autogemm.kernels.{name}"), name)
    tiling = importlib.import_module("autogemm.kernels.split_product").Tiling
    A, B = operands()
    A[3, 110] = math.inf
    C = torch.zeros(M, N, device=PLACE)
    run(
        1.0, A, B, 1.0, C, C, terms=2, chunk=params["chunk"], slices=1, gain=0.0, guard=False,
        tiling=tiling(params["bm"], params["bn"], params["bk"], params["warps"], 2),
    )  # fmt: skip
    assert not C[3].isfinite().any()
    others = [row for row in range(M) if row != 3]
    torch.testing.assert_close(C[others], A[others] @ B, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(ON_GPU, reason="what a kernel calls shows in the interpreter alone")
@pytest.mark.parametrize("form", ["tandem", "streamed"])
def test_a_tile_is_computed_again_in_chunks_half_as_long(
    form: str, kernels: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = names_of_settle(kernels[f"{form}_product"])
    lengths: list[int] = []
    real = names["write_again"]

    def noted(*args: Any) -> Any:
        lengths.append(int(args[10]))
        return real(*args)

    monkeypatch.setitem(names, "write_again", noted)
    A, B = normal(16, K), normal(K, 16)
    A[3, 70] = A[5, 70] = math.inf  # two lines
    check(of(form, 1), A, B)
    assert lengths == [int(FORMS[form].kwargs["chunk"]) // 2]


@pytest.mark.skipif(ON_GPU, reason="what a kernel calls shows in the interpreter alone")
@pytest.mark.parametrize(("more", "again"), [(-1, 1), (0, 0)])
@pytest.mark.parametrize(("form", "place"), [("tandem", 11), ("streamed", 14)])
def test_a_weight_must_exceed_what_underflow_may_have_added(
    form: str, place: int, more: int, again: int, kernels: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two products weigh 2^19, a third 1/2 or 1, in scaled units: 13/16 is enough for 104 of k."""
    names = names_of_lines(kernels[f"{form}_product"])
    lines: list[int] = []
    real = names["_store_line"]
    monkeypatch.setitem(names, "_store_line", lambda *x: (lines.append(1), real(*x))[1])
    A, B = torch.zeros(16, 104), torch.zeros(104, 16)
    A[0, 0] = B[1, 0] = 1.0  # these are 2^11, and 2^place, by their lines' scales
    A[0, 2], A[0, 3], A[0, 4] = 2.0**-2, -(2.0**-2), 2.0**-11
    B[2, 0] = B[3, 0] = 2.0 ** (9 - place)
    B[4, 0] = 2.0 ** (more - place)
    check(of(form, 1), A, B)
    assert len(lines) == again


@pytest.mark.parametrize("turned", [False, True], ids=["row", "column"])
@pytest.mark.parametrize(("bm", "bn", "k"), [(64, 128, 64), (64, 64, 128), (128, 64, 200)])
def test_a_line_of_a_fused_tile_costs_less_than_the_tile(
    bm: int, bn: int, k: int, turned: bool
) -> None:
    """All elements but one vanish beside the first: added to it in a row, each would be lost."""
    A, B = normal(bm, k), torch.ones(k, bn, device=PLACE)
    A[3], A[3, 0], A[3, 40], B[40] = 2.0**-24, 1, 1e30, 0
    if turned:
        A, B = B.t(), A.t()
    check(emulated("fused", "fp16x3", *A.shape[:1], *B.shape[1:], chunk=32), A, B)


@pytest.mark.skipif(ON_GPU, reason="what a kernel calls shows in the interpreter alone")
@pytest.mark.parametrize(("bk", "chunk"), [(32, 32), (32, 128), (64, 64), (64, 256)])
def test_a_fused_tile_is_computed_again_in_chunks_half_as_long(
    bk: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []
    real = settle.ieee_tile

    def noted(*args: Any) -> Any:
        lengths.append(args[8].handle.data.item())
        return real(*args)

    monkeypatch.setattr(settle, "ieee_tile", noted)
    A, B = normal(16, 300), normal(300, 16)
    A[3, 70] = A[5, 70] = math.inf  # two lines
    check(emulated("fused", "fp16x3", 64, 16, bk=bk, chunk=chunk), A, B)
    assert lengths == [chunk // 2]
