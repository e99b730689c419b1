"""The call itself, end to end on the CPU: corners, aliases, warm calls, errors, settings."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from invented import AXPBY, BF16, CPU, FULL, always, write_for_this_cpu

import autogemm
from autogemm import InvalidProblem, NoStrategy, api, explain, gemm, gemm_
from autogemm.database import locations
from autogemm.device import device_of
from autogemm.grading.oracle import check, error_ratio
from autogemm.precision import Tolerance, fp32_compute
from autogemm.problem import DTYPES, contiguous_problem
from autogemm.strategies import STRATEGIES, Candidate, half

HIGHEST = Tolerance("highest")
SPLIT = Candidate.of("ksplit", form="batched", chunks=3)
IN_TURN = Candidate.of("ksplit", form="sequential", chunks=3)
ONEDNN = Candidate.of("onednn")

EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


@pytest.fixture(autouse=True)
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty directory for tuning tables, and no others on the search path."""
    directory = tmp_path / "tables"
    directory.mkdir()
    monkeypatch.setenv("AUTOGEMM_TUNING_DB", str(directory))
    for place in ("_user_directory", "_shipped_directory"):
        monkeypatch.setattr(locations, place, lambda: tmp_path / "elsewhere")
    autogemm.reload_tables()
    yield directory
    autogemm.reload_tables()


def operands(
    m: int, n: int, k: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed * 7919 + m * 101 + n * 11 + k)
    real = torch.float64 if dtype in (torch.float64, torch.complex128) else torch.float32
    wide = torch.complex128 if dtype.is_complex else real
    a, b, c = (
        torch.randn(*shape, dtype=wide, generator=g).to(dtype) for shape in ((m, k), (k, n), (m, n))
    )
    return a, b, c


def serve(directory: Path, candidate: Candidate, problem_dtype: torch.dtype, *shape: int) -> None:
    """Have the tables of this CPU choose a candidate for one shape, whatever becomes of C."""
    entries = []
    for update in ("none", "add", "bias", "inplace"):
        problem = contiguous_problem(*shape, problem_dtype, update=update, device_type="cpu")
        strategy = next(s for s in STRATEGIES if s.name == candidate.strategy)
        if reasons := strategy.reasons_not(problem, device_of(CPU), candidate.kwargs):
            pytest.skip("; ".join(reasons))
        entries.append(always(candidate, problem))
    write_for_this_cpu(directory, *entries)
    autogemm.reload_tables()


def same_bits(x: torch.Tensor, y: torch.Tensor) -> bool:
    return x.dtype == y.dtype and x.shape == y.shape and torch.equal(_bits(x), _bits(y))


def _bits(x: torch.Tensor) -> torch.Tensor:
    x = x.detach().resolve_conj().contiguous()
    return (torch.view_as_real(x) if x.is_complex() else x).view(torch.uint8)


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


# ------------------------------------------------------------------------------------ errors

WRONG: dict[str, tuple[tuple[str, ...], Callable[..., object]]] = {
    "inner sizes": (
        ("A is (6, 9)", "B is (8, 5)", "columns (9)", "rows (8)"),
        lambda f, A, B, C: f(1, A, B[:8], 1, C),
    ),
    "B the wrong way round": (
        ("B is (5, 9)", "Did you mean B.t()?"),
        lambda f, A, B, C: f(1, A, B.t(), 1, C),
    ),
    "A the wrong way round": (
        ("A is (9, 6)", "Did you mean A.t()?"),
        lambda f, A, B, C: f(1, A.t(), B, 1, C),
    ),
    "C of another shape": (
        ("C is (5, 6)", "expected (6, 5)", "shape of A·B"),
        lambda f, A, B, C: f(1, A, B, 1, C.t()),
    ),
    "C to be broadcast": (
        ("C is (1, 5)", "expected (6, 5)", "C.expand(6, 5)"),
        lambda f, A, B, C: f(1, A, B, 1, C[:1]),
    ),
    "C wrong though it is not read": (
        ("C is (5, 6)", "expected (6, 5)"),
        lambda f, A, B, C: f(1, A, B, 0, C.t()),
    ),
    "no C": (
        ("C is missing", "expected a C of shape (6, 5)", "beta=0"),
        lambda f, A, B, C: f(1, A, B, 1),
    ),
    "out of another shape": (
        ("out is (6, 4)", "expected (6, 5)", "Allocate out"),
        lambda f, A, B, C: f(1, A, B, 1, C, out=C[:, :4].clone()),
    ),
    "two dtypes": (
        ("B has dtype torch.float64", "A has torch.float32", "B.to(A.dtype)"),
        lambda f, A, B, C: f(1, A, B.double(), 1, C),
    ),
    "C's dtype": (
        ("C has dtype torch.bfloat16", "A has torch.float32", "C.to(A.dtype)"),
        lambda f, A, B, C: f(1, A, B, 1, C.bfloat16()),
    ),
    "out's dtype": (
        ("out has dtype torch.float64", "A has torch.float32", "out.to(A.dtype)"),
        lambda f, A, B, C: f(1, A, B, 1, C, out=C.double()),
    ),
    "another device": (
        ("B is on meta", "expected a CPU or CUDA tensor", "B.cpu()"),
        lambda f, A, B, C: f(1, A, B.to("meta"), 1, C),
    ),
    "no such device": (
        ("A is on meta", "expected a CPU or CUDA tensor", "A.cpu()"),
        lambda f, A, B, C: f(1, A.to("meta"), B.to("meta"), 1, C.to("meta")),
    ),
    "integers": (
        ("A has dtype torch.int64", "expected one of float16", "A.float()"),
        lambda f, A, B, C: f(1, A.long(), B.long(), 1, C.long()),
    ),
    "truth values": (
        ("A has dtype torch.bool", "expected one of float16"),
        lambda f, A, B, C: f(1, A > 0, B > 0),
    ),
    "a vector": (
        ("A has 1 dimensions, shape (9,)", "expected 2", "A.unsqueeze(0)"),
        lambda f, A, B, C: f(1, A[0], B),
    ),
    "C a vector": (
        ("C has 1 dimensions, shape (5,)", "expected 2", "C.unsqueeze(0)"),
        lambda f, A, B, C: f(1, A, B, 1, C[0]),
    ),
    "batches of different size": (
        ("A is (2, 6, 9) and B is (3, 9, 5)", "leading dimensions (2,) must equal B's (3,)"),
        lambda f, A, B, C: f(1, A.expand(2, 6, 9), B.expand(3, 9, 5)),
    ),
    "a batch": (
        ("C is (6, 5)", "expected (1, 6, 5)", "C.expand(1, 6, 5)"),
        lambda f, A, B, C: f(1, A, B[None], 1, C),
    ),
    "no tensor": (
        ("B is a list", "expected a 2-D torch.Tensor", "torch.as_tensor(B)"),
        lambda f, A, B, C: f(1, A, B.tolist()),
    ),
    "a numpy array": (
        ("A is a ndarray", "expected a 2-D torch.Tensor", "torch.as_tensor(A)"),
        lambda f, A, B, C: f(1, A.numpy(), B),
    ),
    "a sparse matrix": (
        ("A has layout torch.sparse_coo", "expected a dense", "A.to_dense()"),
        lambda f, A, B, C: f(1, A.to_sparse(), B),
    ),
    "a misspelt level": (
        ("precision is 'higest'", "expected one of 'highest', 'high', 'medium'", "budget"),
        lambda f, A, B, C: f(1, A, B, precision="higest"),
    ),
    "a misspelt level where nothing is multiplied": (
        ("precision is 'higest'", "expected one of 'highest', 'high', 'medium'"),
        lambda f, A, B, C: f(0, A, B, precision="higest"),
    ),
    "a dtype for a level": (
        ("precision is a dtype", "expected one of 'highest', 'high', 'medium'"),
        lambda f, A, B, C: f(1, A, B, precision=torch.float32),
    ),
    "a negative budget": (
        ("precision is -0.001", "positive, finite number", "such as 1e-4"),
        lambda f, A, B, C: f(1, A, B, precision=-1e-3),
    ),
    "no budget at all": (
        ("precision is 0.0", "positive, finite number"),
        lambda f, A, B, C: f(1, A, B, precision=0.0),
    ),
    "a NaN for a budget": (
        ("precision is nan", "positive, finite number"),
        lambda f, A, B, C: f(1, A, B, precision=float("nan")),
    ),
    "an infinite budget": (
        ("precision is inf", "positive, finite number"),
        lambda f, A, B, C: f(1, A, B, precision=float("inf")),
    ),
    "a truth value for a budget": (
        ("precision is a bool", "expected one of"),
        lambda f, A, B, C: f(1, A, B, precision=True),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_call_is_told_what_was_found_what_was_expected_and_what_to_do(what: str) -> None:
    words, call = WRONG[what]
    A, B, C = operands(6, 5, 9)
    before = [x.clone() for x in (A, B, C)]
    for ask in (gemm, explain, gemm):
        with pytest.raises(InvalidProblem) as caught:
            call(ask, A, B, C)
        for word in words:
            assert word in str(caught.value)
    assert all(same_bits(x, y) for x, y in zip((A, B, C), before, strict=True))
    assert issubclass(InvalidProblem, ValueError)


def test_a_wrong_call_leaves_out_alone() -> None:
    A, B, C = operands(6, 5, 9)
    out = torch.full_like(C, 7.0)
    for _ in ("cold", "warm"):
        with pytest.raises(InvalidProblem, match="C has dtype"):
            gemm(1, A, B, 1, C.double(), out=out)
        assert (out == 7).all()
        gemm(1, A, B, 1, C, out=out)
        out.fill_(7.0)


# ----------------------------------------------------------------------------- level, budget


@EVERY_DTYPE
@pytest.mark.parametrize("factor", [1.0, 1.5, 100.0])
def test_a_budget_is_kept(dtype: torch.dtype, factor: float) -> None:
    A, B, C = operands(7, 9, 500, dtype)
    budget = factor * tightest(A, B, C)
    check(gemm(1.5, A, B, -0.5, C, precision=budget), 1.5, A, B, -0.5, C, Tolerance("", budget))


@EVERY_DTYPE
def test_too_tight_a_budget_is_told_the_tightest_one(dtype: torch.dtype) -> None:
    for k in (1, 5, 100, 1000, 12345):
        A, B, C = operands(3, 4, k, dtype)
        best = tightest(A, B, C)
        assert best < 0.1
        gemm(1.5, A, B, -0.5, C, precision=best)
        with pytest.raises(NoStrategy, match="exceeds the budget"):
            gemm(1.5, A, B, -0.5, C, precision=best / 1.2)


def tightest(*operands: torch.Tensor) -> float:
    A, B, C = operands
    with pytest.raises(NoStrategy) as caught:
        gemm(1.5, A, B, -0.5, C, precision=1e-30)
    told = re.search(r"tightest budget .* is ([0-9.e-]+)\. Ask for that", str(caught.value))
    assert told is not None, str(caught.value)
    return float(told[1])


def test_a_budget_below_what_one_accumulation_promises_takes_a_split_sum() -> None:
    A, B, C = operands(7, 9, 5000)
    assert explain(1.5, A, B, 0.5, C, precision=1e-3).strategy == "addmm"
    tight = explain(1.5, A, B, 0.5, C, precision=1e-4)
    assert tight.strategy == "ksplit"
    assert any(c == FULL and "budget" in reason for c, reason in tight.plan.passed_over)
    hostile = (torch.ones_like(A) / 3, torch.ones_like(B) / 3)  # every rounding goes one way
    check(
        gemm(1.5, *hostile, 0.5, C, precision=1e-4), 1.5, *hostile, 0.5, C, Tolerance("", 1e-4)
    )


SETTINGS = {"ieee": "highest", "tf32": "high", "bf16": "medium"}


@pytest.mark.usefixtures("restored_torch_settings")
def test_the_level_follows_what_torch_was_told() -> None:
    A, B, C = operands(6, 5, 9)
    assert explain(1, A, B, 1, C).plan.tolerance.level == "highest"
    for setting, level in SETTINGS.items():
        torch.backends.mkldnn.matmul.fp32_precision = setting
        told = explain(1, A, B, 1, C)
        assert told.plan.tolerance.level == level
        assert setting in told.plan.tolerance.source
        assert "torch.backends.mkldnn" in str(told)
        assert explain(1, A, B, 1, C, precision="highest").plan.tolerance.level == "highest"
    wide = [x.double() for x in (A, B, C)]
    assert explain(1, *wide[:2], 1, wide[2]).plan.tolerance.level == "highest"


@pytest.mark.usefixtures("restored_torch_settings")
def test_warm_calls_follow_the_setting_as_it_changes_and_leave_it_alone(
    tables: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(tables, BF16, torch.float32, 48, 40, 64)
    fast: list[int] = []
    real = half._run_on_cpu

    def spy(*args: Any) -> torch.Tensor:
        fast.append(1)
        return real(*args)

    monkeypatch.setattr(half, "_run_on_cpu", spy)
    A, B, C = operands(48, 40, 64)
    for setting in ("ieee", "bf16", "tf32", "bf16", "ieee"):
        torch.backends.mkldnn.matmul.fp32_precision = setting
        for _ in range(3):
            level = SETTINGS[setting]
            told = explain(1, A, B, 1, C)
            assert told.strategy == ("half" if level == "medium" else "addmm"), setting
            fast.clear()
            check(gemm(1, A, B, 1, C), 1, A, B, 1, C, Tolerance(level), typical=True)
            assert bool(fast) == (level == "medium")
            fast.clear()
            check(gemm(1, A, B, 1, C, precision="highest"), 1, A, B, 1, C, HIGHEST, typical=True)
            assert not fast
            assert torch.backends.mkldnn.matmul.fp32_precision == setting


@pytest.mark.usefixtures("restored_torch_settings")
def test_float32_is_not_degraded_unless_somebody_said_so(tables: Path) -> None:
    """The fast 16-bit pass is in the table, and chosen only where it was asked for."""
    serve(tables, BF16, torch.float32, 48, 40, 64)
    A, B, C = operands(48, 40, 64)
    torch.backends.cuda.matmul.fp32_precision = "tf32"  # another device's setting
    for precision in (None, "highest", "high", None):
        for _ in ("cold", "warm"):
            result = gemm(1.5, A, B, 0.5, C, precision=precision)
            check(result, 1.5, A, B, 0.5, C, HIGHEST, typical=True)
    assert explain(1.5, A, B, 0.5, C, precision="medium").strategy == "half"
    if "amx_bf16" in device_of(CPU).features:  # elsewhere torch has no such pass for float32
        fast = gemm(1.5, A, B, 0.5, C, precision="medium")
        assert error_ratio(fast, 1.5, A, B, 0.5, C) > 1000


@pytest.mark.usefixtures("restored_torch_settings")
def test_highest_is_highest_whatever_torch_was_told() -> None:
    A, B, C = operands(64, 48, 96)
    for setting in SETTINGS:
        torch.backends.mkldnn.matmul.fp32_precision = setting
        for _ in ("cold", "warm"):
            result = gemm(1.5, A, B, 0.5, C, precision="highest")
            check(result, 1.5, A, B, 0.5, C, HIGHEST, typical=True)
            assert torch.backends.mkldnn.matmul.fp32_precision == setting


# --------------------------------------------------------------------------------- autograd


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.bfloat16])
@pytest.mark.parametrize("needy", ["A", "B", "C", "ABC"])
def test_gradients_are_those_of_addmm(tables: Path, dtype: torch.dtype, needy: str) -> None:
    serve(tables, AXPBY, dtype, 6, 5, 9)
    values = operands(6, 5, 9, dtype)
    for bias in (False, True):
        gradients = []
        for product in (
            lambda A, B, C: gemm(1.5, A, B, -0.5, C),
            lambda A, B, C: torch.addmm(C, A, B, alpha=1.5, beta=-0.5),
        ):
            A, B, C = (
                x.clone().requires_grad_(name in needy)
                for name, x in zip("ABC", values, strict=True)
            )
            result = product(A, B, C[:1].expand(6, 5) if bias else C)
            assert result.requires_grad
            result.abs().sum().backward()
            gradients.append([None if x.grad is None else x.grad for x in (A, B, C)])
        for ours, torchs in zip(*gradients, strict=True):
            assert (ours is None) == (torchs is None)
            if ours is not None:
                torch.testing.assert_close(ours, torchs)


def test_second_derivatives_are_right_too() -> None:
    A, B, C = (x.requires_grad_() for x in operands(3, 2, 4, torch.float64))
    assert torch.autograd.gradcheck(lambda *x: gemm(1.5, x[0], x[1], -0.5, x[2]), (A, B, C))
    assert torch.autograd.gradgradcheck(lambda *x: gemm(1.5, x[0], x[1], -0.5, x[2]), (A, B, C))


@pytest.mark.parametrize(
    ("m", "n", "k", "alpha", "beta"),
    [(0, 5, 9, 1.5, -0.5), (6, 0, 9, 1.5, -0.5), (6, 5, 0, 1.5, -0.5), (6, 5, 9, 0.0, -0.5),
     (6, 5, 9, 0.0, 0.0), (0, 5, 9, 1.5, 0.0)],
)  # fmt: skip
def test_a_result_of_nothing_can_be_differentiated(
    m: int, n: int, k: int, alpha: float, beta: float
) -> None:
    """An empty batch must not break a training step."""
    for _ in ("cold", "warm"):
        A, B, C = (x.requires_grad_() for x in operands(m, n, k))
        gemm(alpha, A, B, beta, None if beta == 0 else C).sum().backward()
        for x in (A, B):
            assert torch.equal(x.grad, torch.zeros_like(x))
        assert beta == 0 or torch.equal(C.grad, torch.full_like(C, beta))


def test_the_tables_choice_serves_operands_that_require_gradients(
    tables: Path,
) -> None:
    serve(tables, AXPBY, torch.float32, 6, 5, 9)
    A, B, C = (x.requires_grad_() for x in operands(6, 5, 9))
    for _ in ("cold", "warm"):
        assert explain(1, A, B, 1, C).strategy == "matmul_axpby"
        assert gemm(1, A, B, 1, C).requires_grad
        with torch.no_grad():
            assert not gemm(1, A, B, 1, C).requires_grad


def test_out_is_refused_where_autograd_would_lose_track() -> None:
    A, B, C = operands(6, 5, 9)
    for _ in ("cold", "warm"):
        gemm(1, A, B, 1, C, out=torch.empty_like(C))
        for needy in (A, B, C):
            needy.requires_grad_()
            with pytest.raises(InvalidProblem, match=r"requires grad; .*Leave out away"):
                gemm(1, A, B, 1, C, out=torch.empty_like(C))
            with torch.no_grad():
                gemm(1, A, B, 1, C, out=torch.empty_like(C))
            needy.requires_grad_(False)
        with pytest.raises(InvalidProblem, match="requires grad"):
            gemm(1, A, B, 1, C, out=torch.empty_like(C).requires_grad_())


def test_inference_mode_takes_and_gives_ordinary_results() -> None:
    A, B, C = operands(6, 5, 9)
    with torch.inference_mode():
        inside = gemm(1.5, A, B, 0.5, C)
        check(inside, 1.5, A, B, 0.5, C, HIGHEST)
        gemm(1.5, A, B, 0.5, C, out=inside)
    for _ in ("cold", "warm"):
        check(gemm(1.5, A, B, 0.5, inside), 1.5, A, B, 0.5, inside, HIGHEST)
        with pytest.raises(InvalidProblem, match="out is an inference tensor"):
            gemm(1.5, A, B, 0.5, C, out=inside)


# ---------------------------------------------------------------- compiling, threads, imports


def test_torch_compile_traces_the_plain_call_whole() -> None:
    A, B, C = operands(6, 5, 9)
    torch._dynamo.reset()

    @torch.compile(backend="eager", fullgraph=True)
    def step(A: torch.Tensor, B: torch.Tensor, C: torch.Tensor) -> torch.Tensor:
        return gemm(1.5, A, B, -0.5, C).relu() + gemm(2, A, B)

    expected = gemm(1.5, A, B, -0.5, C).relu() + gemm(2, A, B)
    torch.testing.assert_close(step(A, B, C), expected)
    A.requires_grad_()
    step(A, B, C).sum().backward()
    assert A.grad is not None


@pytest.mark.parametrize(
    ("m", "k", "alpha", "beta"), [(0, 9, 1.5, 1), (6, 0, 1.5, 1), (6, 9, 0, 1), (6, 9, 0, 0)]
)
def test_torch_compile_keeps_the_corners(m: int, k: int, alpha: float, beta: float) -> None:
    A, B, C = operands(m, 5, k)
    if alpha == 0:
        A.fill_(torch.nan)
    torch._dynamo.reset()
    step = torch.compile(
        lambda A, B, C: gemm(alpha, A, B, beta, C), backend="eager", fullgraph=True
    )
    check(step(A, B, C), alpha, A, B, beta, C, HIGHEST)


def test_many_threads_get_right_answers() -> None:
    """Eight threads, each its own shapes, types and levels, cold and warm, all at once."""
    start = threading.Barrier(8)
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            start.wait()
            for turn in range(30):
                dtype = tuple(DTYPES.values())[(seed + turn) % 6]
                level = ("highest", "high", "medium", None)[(seed + turn // 6) % 4]
                A, B, C = operands(3 + seed, 4 + turn % 5, 20, dtype, seed)
                out = (None, C.clone(), torch.empty_like(C))[turn % 3]
                result = gemm(1.5, A, B, 0.5, C, precision=level, out=out)
                check(result, 1.5, A, B, 0.5, C, Tolerance(level or "highest"))
                if turn % 10 == 9:
                    autogemm.reload_tables()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]


@pytest.mark.usefixtures("restored_torch_settings")
def test_another_threads_switch_is_waited_for_where_highest_was_asked() -> None:
    """A call that would see another thread's reduced setting waits until it is put back."""
    A, B, C = operands(64, 48, 96)
    inside, leave, done = threading.Event(), threading.Event(), threading.Event()

    def other() -> None:
        with fp32_compute("cpu", "bf16"):
            inside.set()
            leave.wait()

    def ours() -> None:
        results.append(gemm(1.5, A, B, 0.5, C, precision="highest"))
        done.set()

    results: list[torch.Tensor] = []
    threads = [threading.Thread(target=f) for f in (other, ours)]
    threads[0].start()
    inside.wait()
    threads[1].start()
    waited = not done.wait(0.2)
    leave.set()
    for thread in threads:
        thread.join()
    assert waited
    check(results[0], 1.5, A, B, 0.5, C, HIGHEST, typical=True)


@pytest.mark.usefixtures("restored_torch_settings")
def test_a_level_is_not_read_off_another_threads_switch() -> None:
    """Nobody told torch anything; a call elsewhere only passes through a reduced setting."""
    A, B, C = operands(6, 5, 9)
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with fp32_compute("cpu", "bf16"):
            inside.set()
            leave.wait(3.0)

    thread = threading.Thread(target=other)
    thread.start()
    inside.wait()
    level = explain(1.5, A, B, 0.5, C).plan.tolerance.level
    leave.set()
    thread.join()
    assert level == "highest"


def test_importing_and_calling_autogemm_loads_neither_optuna_nor_triton() -> None:
    script = (
        "import sys, torch, autogemm\n"
        "x = torch.ones(3, 3)\n"
        "autogemm.gemm(1, x, x, 1, x)\n"
        "print([name for name in ('optuna', 'triton', 'sqlalchemy') if name in sys.modules])"
    )
    root = Path(autogemm.__file__).parents[1]
    told = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=root, check=False
    )
    assert told.returncode == 0, told.stderr
    assert told.stdout.strip() == "[]"


def test_a_printed_explanation_sums_up_a_large_space() -> None:
    A = torch.randn(512, 512)
    explanation = autogemm.explain(1.0, A, A)
    text = str(explanation)
    tried = [c for c, _ in explanation.rejected if c.strategy == "emulated_fp32"]
    if tried and not torch.cuda.is_available():
        assert len(tried) > 20
        assert f"emulated_fp32 ({len(tried)} candidates): runs on cuda, not on cpu" in text
    assert len(text.splitlines()) < 60
