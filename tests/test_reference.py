"""The oracle against exact rational arithmetic, and against results that are wrong on purpose."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from autogemm.grading.hostile import BASELINE, HOSTILE, names_for, seeded
from autogemm.grading.oracle import (
    FINITE,
    MINUS_INF,
    NOT_A_NUMBER,
    NOT_FINITE,
    PLUS_INF,
    Limit,
    Truth,
    Truths,
    check,
    error_ratio,
    has_oracle,
    reference,
    truth_of,
)
from autogemm.precision import (
    LEVELS,
    ErrorBound,
    Tolerance,
    accumulation_roundoff,
    allowance,
    growth,
    underflow,
    unit_roundoff,
)
from autogemm.problem import DTYPES

INF, NAN = math.inf, math.nan
HIGHEST, HIGH, MEDIUM = map(Tolerance, LEVELS)
ORACLES = [
    pytest.param(
        dtype,
        id=name,
        marks=pytest.mark.skipif(
            not has_oracle(dtype), reason="numpy's long double is no wider than float64 here"
        ),
    )
    for name, dtype in DTYPES.items()
]


def operands(
    name: str, dtype: torch.dtype, m: int = 9, n: int = 8, k: int = 33
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return HOSTILE[name](m, n, k, dtype, seeded(name, m, n, k))


def matrix(*rows: list[complex], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.tensor(rows, dtype=dtype)


# ---------------------------------------------------------------- against exact arithmetic


def exact_part(x: np.generic, part: str) -> Fraction:
    """The exact value of one part of a number; long doubles keep their 64 bits."""
    return Fraction(*getattr(x, part).as_integer_ratio())


def exact_rows(x: torch.Tensor) -> list[list[tuple[Fraction, Fraction]]]:
    wide = x.to(torch.complex128)
    return [[(Fraction(z.real), Fraction(z.imag)) for z in row] for row in wide.tolist()]


def exact_element(
    alpha: complex,
    a: list[tuple[Fraction, Fraction]],
    b: list[tuple[Fraction, Fraction]],
    beta: complex,
    c: tuple[Fraction, Fraction],
) -> tuple[Fraction, Fraction]:
    def times(
        x: tuple[Fraction, Fraction], y: tuple[Fraction, Fraction]
    ) -> tuple[Fraction, Fraction]:
        return x[0] * y[0] - x[1] * y[1], x[0] * y[1] + x[1] * y[0]

    def of(z: complex) -> tuple[Fraction, Fraction]:
        return Fraction(complex(z).real), Fraction(complex(z).imag)

    terms = [times(x, y) for x, y in zip(a, b, strict=True)]
    product = sum(t[0] for t in terms), sum(t[1] for t in terms)
    scaled, added = times(of(alpha), product), times(of(beta), c)
    return scaled[0] + added[0], scaled[1] + added[1]


FINITE_DATA = (
    *BASELINE,
    "exponents_60",
    "exponents_8",
    "cancellation",
    "graded_rows_and_columns",
    "opposed_exponents_to_the_root_of_overflow",
    "largest_numbers",
    "largest_by_smallest_normal",
    "subnormal_A",
    "subnormal_A_and_B",
    "products_around_the_smallest_normal",
)


@pytest.mark.parametrize("dtype", ORACLES)
@pytest.mark.parametrize("scalars", [(1.0, 1.0), (1.5, -0.5), (0.1, 3.7)])
def test_the_value_is_exact_up_to_a_small_fraction_of_what_is_judged(
    dtype: torch.dtype, scalars: tuple[float, float]
) -> None:
    alpha, beta = scalars
    if dtype.is_complex:
        alpha, beta = complex(alpha, 0.25), complex(beta, -0.75)
    m, n, k = 3, 2, 7
    for name in (name for name in FINITE_DATA if name in names_for(dtype)):
        A, B, C = operands(name, dtype, m, n, k)
        value, G = reference(alpha, A, B, beta, C)
        a, b, c = exact_rows(A), exact_rows(B.T), exact_rows(C)
        for i in range(m):
            for j in range(n):
                re, im = exact_element(alpha, a[i], b[j], beta, c[i][j])
                error = max(
                    abs(exact_part(value[i, j], "real") - re),
                    abs(exact_part(value[i, j], "imag") - im),
                )
                negligible = Fraction(accumulation_roundoff(dtype)) / 64
                assert error <= negligible * exact_part(G[i, j], "real"), (name, i, j)


@pytest.mark.parametrize("dtype", ORACLES)
def test_G_is_the_sum_of_the_moduli(dtype: torch.dtype) -> None:
    alpha, beta = (1 - 2j, 0.5j) if dtype.is_complex else (-1.5, -0.5)
    A, B, C = operands("normal", dtype, 4, 3, 6)
    _, G = reference(alpha, A, B, beta, C)
    wide = [x.to(torch.complex128) for x in (A, B, C)]
    for i in range(4):
        for j in range(3):
            terms = [
                abs(alpha) * abs(x) * abs(y) for x, y in zip(wide[0][i], wide[1][:, j], strict=True)
            ]
            expected = float(sum(terms) + abs(beta) * abs(wide[2][i, j]))
            assert float(G[i, j]) == pytest.approx(expected, rel=1e-12)


def test_G_of_numbers_near_the_largest_does_not_overflow() -> None:
    for dtype in (torch.float32, torch.float64):
        if has_oracle(dtype):
            largest = torch.full((2, 2), torch.finfo(dtype).max, dtype=dtype)
            value, G = reference(1.0, largest, largest, 1.0, largest)
            assert np.isfinite(value).all()
            assert np.isfinite(G).all()


# ---------------------------------------------------------------------------- BLAS corners


@pytest.mark.parametrize("dtype", ORACLES)
def test_operands_that_blas_does_not_read_do_not_count(dtype: torch.dtype) -> None:
    A, B, C = operands("normal", dtype, 3, 4, 5)
    spoilt = [torch.full_like(x, NAN) for x in (A, B, C)]

    value, G = reference(1.5, A, B, 0, spoilt[2])
    assert (value == reference(1.5, A, B, 0, None)[0]).all()
    assert np.isfinite(value).all()
    assert np.isfinite(G).all()

    value, G = reference(0, spoilt[0], spoilt[1], 2.0, C)
    assert (value == 2 * reference(0, A, B, 1.0, C)[0]).all()
    assert np.isfinite(G).all()

    value, G = reference(0, *spoilt[:2], 0, spoilt[2])
    assert (value == 0).all()
    assert (G == 0).all()


@pytest.mark.parametrize("dtype", ORACLES)
def test_a_product_over_nothing_leaves_beta_times_C(dtype: torch.dtype) -> None:
    A, B, C = operands("normal", dtype, 3, 4, 5)
    value, _ = reference(1.0, A[:, :0], B[:0], 0.5, C)
    check((0.5 * C).to(dtype), 1.0, A[:, :0], B[:0], 0.5, C, HIGHEST)
    assert np.abs(value - reference(0, A, B, 0.5, C)[0]).max() == 0


def test_empty_results_pass() -> None:
    A, B = torch.ones(0, 3), torch.ones(3, 4)
    check(torch.ones(0, 4), 1.0, A, B, 0, None, HIGHEST)
    assert error_ratio(torch.ones(0, 4), 1.0, A, B, 0, None) == 0


def test_a_missing_C_is_refused_where_beta_needs_it() -> None:
    with pytest.raises(ValueError, match="no C"):
        reference(1.0, torch.ones(1, 1), torch.ones(1, 1), 1.0, None)


# ----------------------------------------------------------------------------- inf and NaN


@pytest.mark.parametrize(
    ("row", "column", "c", "kind"),
    [
        ([1, 2], [3, 4], 5, FINITE),
        ([INF, 2], [3, 4], 5, PLUS_INF),
        ([INF, 2], [-3, 4], 5, MINUS_INF),
        ([INF, 2], [0, 4], 5, NOT_A_NUMBER),
        ([INF, 2], [-0.0, 4], 5, NOT_A_NUMBER),
        ([INF, -INF], [3, 4], 5, NOT_A_NUMBER),
        ([INF, -INF], [3, -4], 5, PLUS_INF),
        ([NAN, 2], [3, 4], 5, NOT_A_NUMBER),
        ([NAN, 2], [0, 4], 5, NOT_A_NUMBER),
        ([1, 2], [3, NAN], 5, NOT_A_NUMBER),
        ([1, 2], [3, INF], 5, PLUS_INF),
        ([1, 2], [3, 4], INF, PLUS_INF),
        ([1, 2], [3, 4], -INF, MINUS_INF),
        ([1, 2], [3, 4], NAN, NOT_A_NUMBER),
        ([INF, 2], [3, 4], INF, PLUS_INF),
        ([INF, 2], [3, 4], -INF, NOT_A_NUMBER),
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_inf_and_nan_are_expected_as_ieee_arithmetic_gives_them(
    row: list[float], column: list[float], c: float, kind: int, dtype: torch.dtype
) -> None:
    A, B = matrix(row, dtype=dtype), matrix(*([x] for x in column), dtype=dtype)
    C = matrix([c], dtype=dtype)
    truth = Truth(1.0, A, B, 1.0, C)
    assert truth.kind.item() == kind

    candidates = {FINITE: 16.0, PLUS_INF: INF, MINUS_INF: -INF, NOT_A_NUMBER: NAN}
    for other, value in candidates.items():
        result = matrix([value], dtype=dtype)
        if other == kind:
            truth.check(result, HIGHEST)
            assert truth.error_ratio(result) == 0
        else:
            with pytest.raises(AssertionError, match=r"element \[0, 0\]"):
                truth.check(result, HIGHEST)
            assert truth.error_ratio(result) == INF


def test_the_signs_of_alpha_and_beta_turn_infinities() -> None:
    A, B = matrix([INF]), matrix([2])
    assert Truth(-1.0, A, B, 0, None).kind.item() == MINUS_INF
    assert Truth(1.0, B, B, -1.0, A).kind.item() == MINUS_INF
    assert Truth(-1.0, A, B, 1.0, A).kind.item() == NOT_A_NUMBER


def test_nan_scalars_make_everything_nan() -> None:
    one = matrix([1])
    assert Truth(NAN, one, one, 0, None).kind.item() == NOT_A_NUMBER
    assert Truth(1.0, one, one, NAN, one).kind.item() == NOT_A_NUMBER
    assert Truth(INF, one, one, 0, None).kind.item() == NOT_FINITE


def test_complex_infinities_only_have_to_stay_visible() -> None:
    A, B = matrix([complex(INF, 0)], dtype=torch.complex64), matrix([2j], dtype=torch.complex64)
    truth = Truth(1.0, A, B, 0, None)
    for value in (complex(NAN, INF), complex(INF, 0), complex(NAN, NAN)):
        truth.check(matrix([value], dtype=torch.complex64), HIGHEST)
    with pytest.raises(AssertionError, match="expected inf or NaN"):
        truth.check(matrix([0], dtype=torch.complex64), HIGHEST)


@pytest.mark.parametrize("name", [n for n in HOSTILE if n.startswith(("inf", "nan", "opposite"))])
def test_a_result_that_hides_inf_or_nan_is_caught(name: str) -> None:
    A, B, C = operands(name, torch.float32)
    truth = Truth(1.0, A, B, 1.0, C)
    right = torch.from_numpy(truth.value.astype(np.float32))
    assert not torch.isfinite(right).all()
    truth.check(right, HIGHEST)
    with pytest.raises(AssertionError):
        truth.check(right.nan_to_num(), HIGHEST)


# -------------------------------------------------------------------------------- overflow


def test_inf_is_right_only_where_the_rounded_result_is_too_large() -> None:
    one = matrix([1], dtype=torch.float16)
    infinite = matrix([INF], dtype=torch.float16)
    for value in (65504.0, 16384.0):
        truth = Truth(1.0, matrix([value], dtype=torch.float16), one, 0, None)
        truth.check(matrix([value], dtype=torch.float16), HIGHEST)
        with pytest.raises(AssertionError, match="element"):
            truth.check(infinite, HIGHEST)
    A = matrix([49152, 49152], dtype=torch.float16)
    truth = Truth(1.0, A, torch.ones(2, 1, dtype=torch.float16), 0, None)
    truth.check(infinite, HIGHEST)
    for wrong in (-INF, NAN, 65504.0):
        with pytest.raises(AssertionError):
            truth.check(matrix([wrong], dtype=torch.float16), HIGHEST)


def test_an_intermediate_overflow_is_tolerated_only_where_native_sums_overflow_too() -> None:
    big = 2.0**100
    cancels = matrix([big, big, 1.0]), matrix([big], [-big], [1.0])  # partial sums reach 2^200
    truth = Truth(1.0, *cancels, 0, None)
    for native in (INF, -INF, NAN, 1.0):
        truth.check(matrix([native]), HIGHEST)
        assert truth.error_ratio(matrix([native])) == 0

    modest = matrix([big, 1.0]), matrix([-1.0], [1.0])
    truth = Truth(1.0, *modest, 1.0, matrix([big]))
    truth.check(matrix([1.0]), HIGHEST)
    for wrong in (INF, -INF, NAN):
        with pytest.raises(AssertionError):
            truth.check(matrix([wrong]), HIGHEST)


def test_terms_of_one_sign_overflow_to_their_own_infinity() -> None:
    big = 2.0**100
    truth = Truth(1.0, matrix([big, 1.0]), matrix([-big], [-1.0]), 0, None)
    truth.check(matrix([-INF]), HIGHEST)
    for wrong in (INF, NAN, -torch.finfo(torch.float32).max):
        with pytest.raises(AssertionError):
            truth.check(matrix([wrong]), HIGHEST)


def test_a_small_alpha_does_not_save_a_product_that_overflows_before_it_is_scaled() -> None:
    truth = Truth(2.0**-30, matrix([2.0**70]), matrix([2.0**70]), 0, None)
    truth.check(matrix([2.0**110]), HIGHEST)
    truth.check(matrix([INF]), HIGHEST)
    with pytest.raises(AssertionError):
        truth.check(matrix([-INF]), HIGHEST)


def test_16_bit_products_may_not_overflow_in_16_bits_on_the_way() -> None:
    A = matrix([256.0, 256.0], dtype=torch.float16)
    B = matrix([256.0], [-256.0], dtype=torch.float16)
    truth = Truth(1.0, A, B, 1.0, matrix([1.0], dtype=torch.float16))
    truth.check(matrix([1.0], dtype=torch.float16), HIGHEST)
    for wrong in (INF, NAN):
        with pytest.raises(AssertionError):
            truth.check(matrix([wrong], dtype=torch.float16), HIGHEST)


# ------------------------------------------------------------------------------- the bound


@pytest.mark.parametrize("dtype", ORACLES)
@pytest.mark.parametrize("typical", [False, True])
def test_one_element_off_by_twice_the_bound_is_caught_and_half_of_it_is_not(
    dtype: torch.dtype, typical: bool
) -> None:
    A, B, C = operands("normal", dtype)
    truth = Truth(1.5, A, B, 0.5, C)
    k = A.shape[1]
    for level in LEVELS:
        along_k = min(growth(dtype, k), 4 * math.sqrt(k)) if typical else growth(dtype, k)
        units = allowance(level, dtype) + along_k
        bound = (
            unit_roundoff(dtype) * np.abs(truth.value)
            + units * accumulation_roundoff(dtype) * truth.G
            + np.longdouble(underflow(dtype, k))
        )
        limit = Limit.of(Tolerance(level), dtype, k, typical)
        assert np.allclose(truth.bound(limit), bound, rtol=1e-12, atol=0)
        spare = bound - unit_roundoff(dtype) * np.abs(truth.value)
        for shift, caught in ((0.9 * spare, False), (2 * bound, True)):
            value = truth.value.copy()
            value[4, 5] += shift[4, 5]
            if caught:
                with pytest.raises(AssertionError, match=r"element \[4, 5\]"):
                    truth.check(rounded(value, dtype), Tolerance(level), typical)
            else:
                truth.check(rounded(value, dtype), Tolerance(level), typical)


def rounded(value: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """The reference in the result's type, rounded to nearest from float64 on."""
    wide = np.complex128 if np.iscomplexobj(value) else np.float64
    with np.errstate(over="ignore"):
        return torch.from_numpy(value.astype(wide)).to(dtype)


@pytest.mark.parametrize("dtype", ORACLES)
def test_the_correctly_rounded_result_passes_with_nothing_to_spare(dtype: torch.dtype) -> None:
    for name in names_for(dtype):
        A, B, C = operands(name, dtype, 5, 4, 6)
        truth = Truth(1.0, A, B, 1.0, C)
        if (truth.kind != FINITE).any() and dtype.is_complex:
            continue
        # Rounding twice, through float64, may add a sliver to half a unit.
        sliver = ErrorBound(2.0**-6 if dtype.itemsize >= 8 else 0.0, 0.0)
        truth.check(rounded(truth.value, dtype), sliver)


def test_the_error_ratio_is_the_error_in_units_of_u_times_G() -> None:
    A, B = matrix([1.0, -1.0]), matrix([1.0], [1.0])  # exactly 0, and G = 2
    for units in (0.0, 0.5, 3.0, 1000.0):
        result = matrix([units * 2.0**-24 * 2])
        assert error_ratio(result, 1.0, A, B, 0, None) == pytest.approx(units, abs=1e-9)
    C = matrix([1.0])  # the result's own rounding, u*1, is taken off
    result = matrix([1 + 2.0**-20])
    assert error_ratio(result, 1.0, A, B, 1.0, C) == pytest.approx((16 - 1) / 3)


def test_a_budget_bounds_the_error_by_that_fraction_of_G() -> None:
    A, B = matrix([1.0, -1.0]), matrix([1.0], [1.0])
    check(matrix([1.9e-3]), 1.0, A, B, 0, None, Tolerance("highest", budget=1e-3))
    with pytest.raises(AssertionError, match=r"budget 0\.001"):
        check(matrix([2.1e-3]), 1.0, A, B, 0, None, Tolerance("highest", budget=1e-3))


@pytest.mark.parametrize("dtype", ORACLES)
def test_elements_without_a_term_must_be_exactly_zero(dtype: torch.dtype) -> None:
    A, B, C = operands("complementary_zeros", dtype, 4, 3, 6)
    result = C.clone()
    check(result, 1.0, A, B, 1.0, C, HIGHEST)
    assert error_ratio(result, 1.0, A, B, 1.0, C) == 0
    result[2, 1] = torch.finfo(dtype).tiny * torch.finfo(dtype).eps
    assert result[2, 1] != 0
    with pytest.raises(AssertionError, match=r"element \[2, 1\].*exactly 0"):
        check(result, 1.0, A, B, 1.0, C, HIGHEST)
    assert error_ratio(result, 1.0, A, B, 1.0, C) == INF


def test_underflow_is_allowed_one_smallest_number_a_product() -> None:
    A, B = torch.full((1, 10), 2.0**-75), torch.full((10, 1), 2.0**-76)  # ten times 2^-151
    check(torch.zeros(1, 1), 1.0, A, B, 0, None, ErrorBound(0.0, 0.0))
    A *= 2.0**8
    with pytest.raises(AssertionError):
        check(torch.zeros(1, 1), 1.0, A, B, 0, None, ErrorBound(8.0, 10.0))


# ---------------------------------------------------------------------------- wrong results


def native(alpha: complex, A: torch.Tensor, B: torch.Tensor, beta: complex, C: torch.Tensor):
    """The result as a user of float64 would compute it."""
    wide = torch.complex128 if A.is_complex() else torch.float64
    return (alpha * (A.to(wide) @ B.to(wide)) + beta * C.to(wide)).to(A.dtype)


def to_bf16(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.bfloat16).to(torch.float32)


def to_tf32(x: torch.Tensor) -> torch.Tensor:
    """Round to nearest, ties away, at 10 stored mantissa bits."""
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


@pytest.mark.parametrize("dtype", ORACLES)
def test_results_of_the_wrong_formula_are_caught(dtype: torch.dtype) -> None:
    A, B, C = operands("normal", dtype, 8, 8, 33)
    right = native(1.5, A, B, 0.5, C)
    check(right, 1.5, A, B, 0.5, C, HIGHEST, typical=True)
    wrong = {
        "transposed C": native(1.5, A, B, 0.5, C.T),
        "transposed result": right.T,
        "beta ignored": native(1.5, A, B, 0.0, C),
        "beta taken for 1": native(1.5, A, B, 1.0, C),
        "alpha ignored": native(1.0, A, B, 0.5, C),
        "alpha applied to C": native(1.5, A, B, 1.5, C),
        "last k left out": native(1.5, A[:, :-1], B[:-1], 0.5, C),
        "last k counted twice": native(1.5, A[:, -1:], B[-1:], 1.0, right),
    }
    if dtype.is_complex:
        wrong["conjugated A"] = native(1.5, A.conj(), B, 0.5, C)
    for what, result in wrong.items():
        assert error_ratio(result, 1.5, A, B, 0.5, C) > 1000, what
        with pytest.raises(AssertionError, match="expected"):
            check(result, 1.5, A, B, 0.5, C, HIGHEST)


def test_nan_that_spreads_from_an_unread_C_is_caught() -> None:
    A, B, C = operands("normal", torch.float32)
    C[2, 3] = NAN
    right = native(1.0, A, B, 0.0, torch.zeros_like(C))
    check(right, 1.0, A, B, 0.0, C, HIGHEST)
    with pytest.raises(AssertionError, match=r"element \[2, 3\] is nan"):
        check(right + 0.0 * C, 1.0, A, B, 0.0, C, HIGHEST)


@pytest.mark.parametrize("typical", [False, True])
def test_each_level_catches_what_the_next_coarser_arithmetic_does(typical: bool) -> None:
    A, B, C = operands("uniform", torch.float32)
    exact = native(1.5, A, B, 0.5, C)
    tf32 = native(1.5, to_tf32(A), to_tf32(B), 0.5, C)
    bf16 = native(1.5, to_bf16(A), to_bf16(B), 0.5, C)
    results = {
        "correct": (exact, 3),
        "TF32 operands": (tf32, 2),
        "bfloat16 operands": (bf16, 1),
        "bfloat16 result": (to_bf16(exact), 1),
    }
    for what, (result, levels) in results.items():
        for i, level in enumerate(reversed(LEVELS)):
            passes = True
            try:
                check(result, 1.5, A, B, 0.5, C, Tolerance(level), typical)
            except AssertionError:
                passes = False
            assert passes == (i < levels), f"{what} at {level}"


def test_16_bit_partial_sums_are_caught_at_highest_and_pass_at_high() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        # Both halves round the same way: 3 + 1.5 units of 3 in each, no rounding in float32.
        eps = torch.finfo(dtype).eps
        A = torch.tensor([[1.0, 1.0, 1.0, 1.0]], dtype=dtype)
        B = torch.tensor([[3.0], [0.75 * eps], [3.0], [0.75 * eps]], dtype=dtype)
        halves = [(A[:, i : i + 2].double() @ B[i : i + 2].double()).to(dtype) for i in (0, 2)]
        reduced = (halves[0].double() + halves[1].double()).to(dtype)
        check(reduced, 1.0, A, B, 0, None, HIGH)
        C = -torch.full((1, 1), 6.0, dtype=dtype)  # the sum cancels, its roundings stay
        full = (A.double() @ B.double() + C.double()).to(dtype)
        check(full, 1.0, A, B, 1.0, C, HIGHEST)
        with pytest.raises(AssertionError):
            check(reduced + C, 1.0, A, B, 1.0, C, HIGHEST)


def test_shape_and_dtype_are_part_of_the_result() -> None:
    A, B, C = operands("normal", torch.float32, 3, 3, 4)
    right = native(1.0, A, B, 1.0, C)
    for wrong, word in ((right[:2], "shape"), (right.double(), "dtype"), (right[None], "shape")):
        with pytest.raises(AssertionError, match=word):
            check(wrong, 1.0, A, B, 1.0, C, HIGHEST)


def test_a_failure_names_element_values_ratio_and_bound() -> None:
    A, B = matrix([1.0, -1.0], [1.0, 1.0]), matrix([1.0], [1.0])
    result = matrix([1000 * 2.0**-23], [2.0])
    with pytest.raises(AssertionError) as failure:
        check(result, 1.0, A, B, 0, None, HIGHEST)
    message = str(failure.value)
    for part in ("[0, 0]", "0.00011920929", "expected 0", "R = 1000", "allowed 10", "1 of 2"):
        assert part in message


def test_lazy_conjugates_and_negations_are_read_as_what_they_stand_for() -> None:
    A, B, _ = operands("normal", torch.complex64, 3, 4, 5)
    value, _ = reference(1, A.conj(), B, 0, None)
    assert (value == reference(1, A.conj_physical(), B, 0, None)[0]).all()
    negative = A.conj().imag
    assert negative.is_neg()
    value, _ = reference(1, negative, B.real, 0, None)
    assert (value == -reference(1, A.imag.clone(), B.real, 0, None)[0]).all()


# ---------------------------------------------------------------------- the hostile operands


@pytest.mark.parametrize("dtype", list(DTYPES.values()), ids=list(DTYPES))
def test_hostile_operands_are_reproducible_and_of_the_type_asked_for(dtype: torch.dtype) -> None:
    for name in names_for(dtype):
        for m, n, k in ((1, 1, 1), (1, 4, 2), (5, 1, 3), (4, 6, 7)):
            first, again = operands(name, dtype, m, n, k), operands(name, dtype, m, n, k)
            for x, y, shape in zip(first, again, ((m, k), (k, n), (m, n)), strict=True):
                assert tuple(x.shape) == shape, name
                assert x.dtype == dtype, name
                assert x.is_contiguous(), name
                assert torch.equal(x.nan_to_num(9), y.nan_to_num(9)), name


@pytest.mark.parametrize("dtype", list(DTYPES.values()), ids=list(DTYPES))
def test_hostile_operands_are_finite_unless_their_name_says_otherwise(dtype: torch.dtype) -> None:
    for name in names_for(dtype):
        finite = all(torch.isfinite(x).all() for x in operands(name, dtype))
        assert finite != any(word in name for word in ("inf_", "infs_", "nan_")), name


def test_every_type_meets_every_kind_of_hostility() -> None:
    for dtype in DTYPES.values():
        names = " ".join(names_for(dtype))
        for word in ("cancel", "graded", "opposed", "zeros", "largest", "subnormal", "inf", "nan"):
            assert word in names, (dtype, word)


def test_hostile_operands_are_as_extreme_as_their_names() -> None:
    A, B, _ = operands("subnormal_A", torch.float32)
    assert (A.abs() < torch.finfo(torch.float32).tiny).all()
    assert (A != 0).all()
    A, B, C = operands("complementary_zeros", torch.float32)
    assert (A.double() @ B.double() == 0).all()
    assert (C == 0).any()
    A, _, _ = operands("largest_numbers", torch.float32)
    assert A.abs().max() == torch.finfo(torch.float32).max
    A, _, _ = operands("ties_of_bfloat16", torch.float32)
    assert ((A - to_bf16(A)).abs() == 2.0**-8).all()
    A, B, _ = operands("cancellation", torch.float32)
    assert ((A.double() @ B.double()).abs() < 1e-3 * (A.abs() @ B.abs())).any()


# --------------------------------------------------------------------------------- batches


def test_a_batch_is_judged_matrix_by_matrix() -> None:
    A, B, C = (torch.stack([x, 2 * x, -x]) for x in operands("normal", torch.float32))
    truth = truth_of(1.5, A, B, 0.5, C)
    assert isinstance(truth, Truths)
    assert isinstance(truth_of(1.5, A[0], B[0], 0.5, C[0]), Truth)
    right = (1.5 * (A.double() @ B.double()) + 0.5 * C.double()).float()
    truth.check(right, HIGHEST)
    wrong = right.clone()
    wrong[1, 2, 3] *= 1.01
    with pytest.raises(AssertionError, match=r"matrix 1: element \[2, 3\]"):
        truth.check(wrong, HIGHEST)
    with pytest.raises(AssertionError, match="2 matrices, expected 3"):
        truth.check(right[:2], HIGHEST)
    with pytest.raises(AssertionError, match="2 dimensions, expected 3"):
        truth.check(right[0], HIGHEST)
    truth_of(1.5, A, B, 0.0, None).check((1.5 * (A.double() @ B.double())).float(), HIGHEST)
