"""The call itself, end to end on the CPU: corners, layouts, warm calls, scalars."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from calling import (
    EVERY_DTYPE,
    HIGHEST,
    IN_TURN,
    ONEDNN,
    SPLIT,
    operands,
    same_bits,
    serve,
)
from invented import AXPBY, BF16, FULL

from autogemm import InvalidProblem, api, explain, gemm, gemm_
from autogemm.grading.oracle import check
from autogemm.precision import Tolerance
from autogemm.strategies import Candidate

pytestmark = pytest.mark.usefixtures("tables")


# --------------------------------------------------------------------------- BLAS's corners


CORNERS = (
    "beta = 0 and NaN in C",
    "beta = 0 and no C",
    "alpha = 0 and NaN in A and B",
    "alpha = beta = 0 and NaN everywhere",
    "k = 0",
    "k = 0 and beta = 0",
    "m = 0",
    "n = 0",
)


@EVERY_DTYPE
@pytest.mark.parametrize("form", ["new", "out", "in place"])
@pytest.mark.parametrize("corner", CORNERS)
def test_the_corners_of_blas_hold(corner: str, form: str, dtype: torch.dtype) -> None:
    m, n, k = 0 if corner == "m = 0" else 5, 0 if corner == "n = 0" else 6, 7
    A, B, C = operands(m, n, 0 if corner.startswith("k = 0") else k, dtype)
    alpha = 0.0 if corner.startswith("alpha") else 1.5
    beta = 0.0 if "beta = 0" in corner else -0.5
    if "NaN in A" in corner or "everywhere" in corner:
        A.fill_(torch.nan)
        B.fill_(torch.nan)
    if "NaN in C" in corner or "everywhere" in corner:
        C.fill_(torch.nan)
    no_c = corner == "beta = 0 and no C"
    for call in ("cold", "warm"):
        c = C.clone()
        out = {"new": None, "out": torch.full_like(C, torch.nan), "in place": c}[form]
        result = gemm(alpha, A, B, beta, None if no_c else c, out=out)
        check(result, alpha, A, B, beta, C, HIGHEST)
        assert out is None or result is out, call
        assert form == "in place" or same_bits(c, C), f"{call}: C was written"
        if beta == 0 and (alpha == 0 or k == 0):
            assert same_bits(result, torch.zeros_like(C)), call


def test_a_result_of_nothing_is_fresh_memory_in_row_major_order() -> None:
    A, B, C = operands(4, 5, 3)
    row = torch.randn(1, 5).expand(4, 5)
    for c in (C, C.t().contiguous().t(), row):
        result = gemm(0, A, B, 1, c)
        assert result.is_contiguous()
        assert torch.equal(result, c)
        result.fill_(7)
        assert not (c == 7).any()


def test_explain_says_that_nothing_is_multiplied() -> None:
    A, B, C = operands(4, 5, 3)
    for told, why in (
        (explain(0, A, B, 1, C), "alpha = 0"),
        (explain(1, A[:, :0], B[:0], 1, C), "k = 0"),
        (explain(1, A[:0], B), "empty"),
    ):
        assert (told.strategy, told.parameters, told.source) == ("scale", {}, "corner")
        assert "nothing to multiply" in str(told)
        assert why in str(told)


# ------------------------------------------------------------------------------ layouts, out


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "row": torch.clone,
    "col": lambda x: x.t().contiguous().t(),
    "block": lambda x: _inside(x, (1, 2), 1),
    "transposed block": lambda x: _inside(x.t(), (2, 1), 1).t(),
    "strided": lambda x: _inside(x, (0, 0), 3),
}
BIASES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "one row": lambda x: x[:1].clone().expand_as(x),
    "one column": lambda x: x[:, :1].clone().expand_as(x),
    "one number": lambda x: x[:1, :1].clone().expand_as(x),
}


def _inside(x: torch.Tensor, corner: tuple[int, int], step: int) -> torch.Tensor:
    """The values in a larger buffer of NaN."""
    (i, j), (rows, cols) = corner, x.shape
    buffer = torch.full((rows + 2 * i, cols * step + 2 * j), torch.nan, dtype=x.dtype)
    view = buffer[i : i + rows, j : j + cols * step : step]
    return view.copy_(x)


@EVERY_DTYPE
def test_every_layout_of_every_operand_gives_the_product(dtype: torch.dtype) -> None:
    values = operands(6, 5, 9, dtype)
    alpha, beta = (0.5 - 1j, 1.5j) if dtype.is_complex else (1.5, -0.5)
    for names in itertools.product(LAYOUTS, LAYOUTS, {**LAYOUTS, **BIASES}):
        A, B = (LAYOUTS[name](x) for name, x in zip(names[:2], values, strict=False))
        C = {**LAYOUTS, **BIASES}[names[2]](values[2])
        before = C.clone()
        result = gemm(alpha, A, B, beta, C)
        check(result, alpha, A, B, beta, C, HIGHEST)
        assert result.is_contiguous(), names
        assert same_bits(C, before), names


@EVERY_DTYPE
def test_out_of_every_layout_is_filled_and_its_surroundings_are_not(dtype: torch.dtype) -> None:
    A, B, C = operands(6, 5, 9, dtype)
    for name, beta in itertools.product(LAYOUTS, (0.0, -0.5)):
        for in_place in (False, True):
            out = LAYOUTS[name](C if in_place else torch.full_like(C, torch.nan))
            whole = out if out._base is None else out._base
            outside = int(torch.isnan(whole).sum()) - int(torch.isnan(out).sum())
            result = gemm(1.5, A, B, beta, out if in_place else C, out=out)
            assert result is out
            check(result, 1.5, A, B, beta, C, HIGHEST)
            assert int(torch.isnan(whole).sum()) == outside, (name, beta, in_place)


@pytest.mark.parametrize("candidate", [FULL, AXPBY, SPLIT, IN_TURN, ONEDNN, BF16], ids=str)
def test_every_strategy_that_a_table_may_choose_serves_every_form_of_the_call(
    tables: Path, candidate: Candidate
) -> None:
    serve(tables, candidate, torch.float32, 6, 5, 9)
    A, B, C = operands(6, 5, 9)
    level = "medium" if candidate == BF16 else "highest"
    row = BIASES["one row"](C)
    assert explain(1.5, A, B, 0.5, C, precision=level).source == "exact"
    assert explain(1.5, A, B, 0.5, C, precision=level).plan.candidate == candidate
    for _ in ("cold", "warm"):
        for alpha, beta, c in ((1, 0, None), (1.5, 0, C), (1.5, 0.5, C), (1, 1, C), (-0.5, 2, row)):
            for form in ("new", "out", "in place"):
                if form == "in place" and c is not C:
                    continue
                given = None if c is None else c if c is row else c.clone()
                if beta == 0 and given is not None:
                    given.fill_(torch.nan)
                out = {"new": None, "out": torch.full_like(C, torch.nan), "in place": given}[form]
                result = gemm(alpha, A, B, beta, given, out=out, precision=level)
                check(result, alpha, A, B, beta, c, Tolerance(level))
                assert out is None or result is out
                assert form == "in place" or beta == 0 or same_bits(given, c)


def test_gemm_with_an_underscore_updates_c_and_returns_it() -> None:
    A, B, C = operands(6, 5, 9)
    c = C.clone()
    assert gemm_(1.5, A, B, -0.5, c) is c
    check(c, 1.5, A, B, -0.5, C, HIGHEST)


@pytest.mark.parametrize(
    "alias",
    [lambda c: c.view(6, 5), lambda c: c[:], lambda c: c.detach(), lambda c: c.t().t()],
    ids=["view", "slice", "detach", "transposed twice"],
)
@pytest.mark.parametrize("candidate", [FULL, AXPBY, SPLIT], ids=str)
def test_another_tensor_object_of_exactly_c_updates_c_in_place(
    tables: Path, candidate: Candidate, alias: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    serve(tables, candidate, torch.float32, 6, 5, 9)
    A, B, C = operands(6, 5, 9)
    for beta in (0.0, -0.5):
        for call in ("cold", "warm", "after a call with an out of its own"):
            if call.startswith("after"):
                gemm(1.5, A, B, beta, C, out=torch.empty_like(C))
            c = C.clone()
            out = alias(c)
            assert gemm(1.5, A, B, beta, c, out=out) is out
            check(c, 1.5, A, B, beta, C, HIGHEST)
            assert explain(1.5, A, B, -0.5, c, out=alias(c)).plan.problem.update == "inplace"


def test_out_may_be_another_block_of_the_buffer_that_holds_the_operands() -> None:
    whole = torch.randn(12, 12, generator=torch.Generator().manual_seed(1))
    for transposed in (False, True):  # as in a blocked Cholesky update, L·Lᵀ beside L
        for _ in ("cold", "warm"):
            buffer = whole.clone()
            A, C, out = buffer[4:8, :4], buffer[4:8, 4:8], buffer[:4, 4:8]
            B = A.t() if transposed else buffer[8:, :4]
            a, b, c = A.clone(), B.clone(), C.clone()
            assert gemm(-1, A, B, 1, C, out=out) is out
            check(out, -1, a, b, 1, c, HIGHEST)
            mask = torch.ones_like(buffer, dtype=torch.bool)
            mask[:4, 4:8] = False
            assert same_bits(buffer[mask], whole[mask])


OVERLAPS: dict[str, Callable[[torch.Tensor], tuple[torch.Tensor, ...]]] = {
    "A": lambda x: (x[:4, :4], x[4:8, :4], x[8:, :4], x[:4, :4]),
    "B": lambda x: (x[:4, :4], x[4:8, :4], x[8:, :4], x[4:8, :4]),
    "a part of A": lambda x: (x[:4, :4], x[4:8, :4], x[8:, :4], x[:4, 3:7]),
    "a part of C": lambda x: (x[:4, :4], x[4:8, :4], x[8:, :4], x[7:11, 4:8].t()[:4]),
    "C moved by one": lambda x: (x[:4, :4], x[4:8, :4], x[8:, :4], x[8:, 1:5]),
    "C transposed": lambda x: (x[:4, :4], x[4:8, :4], x[8:, :4], x[8:, :4].t()),
}


@pytest.mark.parametrize("what", OVERLAPS)
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_out_that_shares_memory_with_an_operand_is_refused_and_nothing_is_written(
    what: str, warm: bool
) -> None:
    buffer = torch.randn(12, 12, generator=torch.Generator().manual_seed(2))
    A, B, C, out = OVERLAPS[what](buffer)
    if what == "a part of C":
        out = buffer[7:11, 2:6]
    if warm:  # the same shapes and strides, apart from one another
        elsewhere = torch.empty_like(buffer).as_strided(out.shape, out.stride())
        gemm(1.5, A, B, 0.5, C, out=elsewhere)
    before = buffer.clone()
    with pytest.raises(InvalidProblem, match=r"out shares memory with [ABC], .*\. Pass "):
        gemm(1.5, A, B, 0.5, C, out=out)
    assert same_bits(buffer, before)


def test_out_whose_elements_share_an_address_is_refused() -> None:
    A, B, C = operands(4, 5, 3)
    with pytest.raises(InvalidProblem, match=r"out has shape .*share one address"):
        gemm(1, A, B, 1, C, out=torch.zeros(1, 5).expand(4, 5))
    expanded = torch.zeros(4, 1).expand(4, 5)
    with pytest.raises(InvalidProblem, match="share one address"):
        gemm_(1, A, B, 1, expanded)


# ------------------------------------------------------------------------------- warm calls


@EVERY_DTYPE
def test_a_warm_call_gives_the_cold_ones_bits(dtype: torch.dtype) -> None:
    A, B, C = operands(33, 20, 65, dtype)
    for beta, c in ((0.0, None), (0.5, C)):
        known = len(api._warm)
        cold = gemm(1.5, A, B, beta, c)
        assert len(api._warm) == known + 1
        assert same_bits(gemm(1.5, A, B, beta, c), cold)
        assert len(api._warm) == known + 1


MISUSES: dict[str, tuple[str, Callable[..., object]]] = {
    "B of another dtype": ("B has dtype", lambda f, A, B, C: f(A, B.double(), 1, C)),
    "B of a 16-bit dtype": ("B has dtype", lambda f, A, B, C: f(A, B.half(), 1, C)),
    "C of another dtype": ("C has dtype", lambda f, A, B, C: f(A, B, 1, C.double())),
    "C unread, of another dtype": ("C has dtype", lambda f, A, B, C: f(A, B, 0, C.double())),
    "B elsewhere": ("B is on meta", lambda f, A, B, C: f(A, B.to("meta"), 1, C)),
    "C elsewhere": ("C is on meta", lambda f, A, B, C: f(A, B, 1, C.to("meta"))),
    "C unread, elsewhere": ("C is on meta", lambda f, A, B, C: f(A, B, 0, C.to("meta"))),
    "all elsewhere": (
        "A is on meta",
        lambda f, A, B, C: f(A.to("meta"), B.to("meta"), 1, C.to("meta")),
    ),
    "out elsewhere": ("out is on meta", lambda f, A, B, C: f(A, B, 1, C, out=C.to("meta"))),
    "a smaller C": (r"C is \(6, 4\)", lambda f, A, B, C: f(A, B, 1, C[:, :4])),
    "C as a row": (r"C is \(1, 5\)", lambda f, A, B, C: f(A, B, 1, C[:1])),
    "a transposed B": ("A's columns", lambda f, A, B, C: f(A, B.t(), 1, C)),
    "no C": ("C is missing", lambda f, A, B, C: f(A, B, 1)),
    "a misspelt level": ("precision is 'x'", lambda f, A, B, C: f(A, B, 1, C, precision="x")),
    "a complex beta": ("beta is complex", lambda f, A, B, C: f(A, B, 1j, C)),
    "too large a beta": ("beta is 1e", lambda f, A, B, C: f(A, B, 1e200, C)),
}


@pytest.mark.parametrize("candidate", [FULL, AXPBY, SPLIT, ONEDNN, BF16], ids=str)
@pytest.mark.parametrize("alpha", [1.0, 0.0], ids=["multiplied", "alpha_0"])
def test_a_warm_call_checks_what_a_cold_one_checks(
    tables: Path, candidate: Candidate, alpha: float
) -> None:
    serve(tables, candidate, torch.float32, 6, 5, 9)
    A, B, C = operands(6, 5, 9)
    level = "medium" if candidate == BF16 else None
    for out in (None, torch.empty_like(C)):
        gemm(alpha, A, B, 1.0, C, out=out, precision=level)
        gemm(alpha, A, B, 0.0, C, out=out, precision=level)

    def warm(*args: object, **options: object) -> object:
        return gemm(alpha, *args, **{"precision": level, **options})  # type: ignore[arg-type]

    for what, (message, call) in MISUSES.items():
        before = C.clone()
        with pytest.raises(InvalidProblem, match=message):
            call(warm, A, B, C)
        assert same_bits(C, before), what


def test_half_precision_operands_of_two_types_are_refused_however_warm(tables: Path) -> None:
    for candidate in (FULL, AXPBY, SPLIT):
        serve(tables, candidate, torch.bfloat16, 6, 5, 9)
        A, B, C = operands(6, 5, 9, torch.bfloat16)
        gemm(1, A, B, 1, C)
        for other in (torch.float16, torch.float32):
            with pytest.raises(InvalidProblem, match="B has dtype"):
                gemm(1, A, B.to(other), 1, C)


def test_the_warm_calls_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "_MAX_WARM_CALLS", 8)
    for m in range(1, 40):
        A, B, C = operands(m, 5, 3)
        check(gemm(1.5, A, B, 0.5, C), 1.5, A, B, 0.5, C, HIGHEST)
        check(gemm(1.5, A, B, 0.5, C), 1.5, A, B, 0.5, C, HIGHEST)
        assert len(api._warm) <= 8


def test_reloading_the_tables_forgets_warm_calls(tables: Path) -> None:
    A, B, C = operands(6, 5, 9)
    gemm(1.5, A, B, 0.5, C)
    assert explain(1.5, A, B, 0.5, C).plan.candidate == FULL
    serve(tables, AXPBY, torch.float32, 6, 5, 9)
    assert not api._warm
    assert explain(1.5, A, B, 0.5, C).plan.candidate == AXPBY


# ---------------------------------------------------------------------------------- scalars


@pytest.mark.parametrize(
    ("alpha", "beta"),
    [
        (2, -1),
        (torch.tensor(2.0), torch.tensor(-1.0)),
        (torch.tensor(2), torch.tensor(-1, dtype=torch.int8)),
        (torch.tensor(2.0, dtype=torch.float16), -1),
        (np.float32(2), np.float64(-1)),
        (np.int64(2), np.array(-1.0)),
        (2.0, np.int8(-1)),
    ],
    ids=["int", "0-d", "0-d int", "0-d half", "numpy", "numpy int", "mixed"],
)
def test_scalars_of_every_kind_count_as_the_number_they_hold(alpha: object, beta: object) -> None:
    A, B, C = operands(6, 5, 9)
    expected = gemm(2.0, A, B, -1.0, C)
    for _ in ("cold", "warm"):
        assert same_bits(gemm(alpha, A, B, beta, C), expected)  # type: ignore[arg-type]
        assert same_bits(gemm_(alpha, A, B, beta, C.clone()), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.complex64])
def test_scalars_too_small_for_the_sums_are_not_taken_for_0(dtype: torch.dtype) -> None:
    A, B = torch.tensor([[1.5], [-0.25]], dtype=dtype), torch.tensor([[0.75, -2.0]], dtype=dtype)
    C = torch.ones(2, 2, dtype=dtype)
    for alpha in (5e-324, 1e-50, 1e-40):
        assert torch.equal(gemm(alpha, A, B, 2.0, C), 2 * C)
        assert torch.equal(gemm(0.0, torch.full_like(A, torch.nan), B, alpha, C), alpha * C)
        if not dtype.is_complex:  # of which an infinite part makes the other NaN
            result = gemm(alpha, A, torch.tensor([[torch.inf, -2.0]], dtype=dtype))
            assert torch.equal(result[:, 0], torch.tensor([torch.inf, -torch.inf], dtype=dtype))
            out = torch.full((2, 2), torch.nan, dtype=dtype)
            assert gemm(2.0, A, B, alpha, C, out=out) is out
            assert torch.equal(out, gemm(2.0, A, B))


@pytest.mark.parametrize("zero", [0, torch.tensor(0.0), np.float32(0), -0.0, False * 1.0])
def test_a_zero_of_any_kind_leaves_its_operand_unread(zero: object) -> None:
    A, B, C = operands(6, 5, 9)
    broken = torch.full_like(C, torch.nan)
    check(gemm(1.5, A, B, zero, broken), 1.5, A, B, 0, C, HIGHEST)  # type: ignore[arg-type]
    check(gemm(1.5, A, B, zero), 1.5, A, B, 0, None, HIGHEST)  # type: ignore[arg-type]
    assert same_bits(gemm(zero, A * torch.nan, B, 1, C), C)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize(
    ("alpha", "beta"),
    [(0.5 - 2j, 1j), (torch.tensor(0.5 - 2j), 1), (np.complex64(0.5 - 2j), np.complex128(1j))],
    ids=["python", "0-d", "numpy"],
)
def test_complex_scalars_go_with_complex_operands(
    dtype: torch.dtype, alpha: complex, beta: complex
) -> None:
    A, B, C = operands(6, 5, 9, dtype)
    for _ in ("cold", "warm"):
        result = gemm(alpha, A.conj(), B, beta, C)
        check(result, complex(alpha), A.conj(), B, complex(beta), C, HIGHEST)
        check(gemm(alpha, A, B.mH.mH), complex(alpha), A, B, 0, None, HIGHEST)


def test_integers_that_torch_itself_would_not_take_are_numbers_too() -> None:
    A, B, C = operands(6, 5, 9)
    for _ in ("cold", "warm"):
        result = gemm(2**70, A, B, -(2**65), C)
        check(result, 2.0**70, A, B, -(2.0**65), C, HIGHEST)
        with pytest.raises(InvalidProblem, match="alpha is an integer too large for a float"):
            gemm(10**400, A, B, 1, C)


@pytest.mark.parametrize("name", ["alpha", "beta"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (True, "is a bool; expected a Python number"),
        ("2", "is a str; expected a Python number"),
        (None, "is a NoneType; expected a Python number"),
        ([2.0], "is a list; expected a Python number"),
        (torch.ones(1), r"is a tensor of shape \(1,\); expected a Python number or a 0-d CPU"),
        (torch.ones((), device="meta"), "is a tensor on meta; .*synchronise"),
        (torch.ones((), requires_grad=True), r"is a tensor that requires grad; .*Pass \w+\.item"),
        (np.ones(2), "is a ndarray; expected a Python number"),
        (np.bool_(True), "is a bool; expected a Python number"),
        (1j, r"is complex \(1j\) but the operands are float32"),
        (1e39, r"is 1e\+39, beyond what float32 operands .*expected at most 3\.4"),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
def test_a_scalar_that_is_none_is_refused_by_name(name: str, value: object, message: str) -> None:
    A, B, C = operands(6, 5, 9)
    scalars = {"alpha": 1.0, "beta": 1.0, name: value}
    for ask in (gemm, explain):
        with pytest.raises(InvalidProblem, match=f"^{name} {message}"):
            ask(A=A, B=B, C=C, **scalars)
