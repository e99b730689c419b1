"""The oracle: alpha*A*B + beta*C in wider arithmetic, and whether a result keeps the contract.

Everything here is written from the contract (docs: accuracy) and from BLAS's definition, and
uses none of the package's arithmetic: only the constants of ``autogemm.precision``. It judges
every element, inf and NaN included, of results small enough for numpy; ``accuracy`` samples
large ones on the device. The oracle has tests of its own in ``test_reference.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from autogemm.precision import (
    ErrorBound,
    Tolerance,
    accumulation_roundoff,
    allowance,
    growth,
    underflow,
    unit_roundoff,
)

Array = np.ndarray[Any, Any]

_WIDE: dict[torch.dtype, Any] = {
    torch.float16: np.float64,
    torch.bfloat16: np.float64,
    torch.float32: np.float64,
    torch.float64: np.longdouble,
    torch.complex64: np.complex128,
    torch.complex128: np.clongdouble,
}

FINITE, NOT_FINITE, NOT_A_NUMBER, PLUS_INF, MINUS_INF = range(5)
"""What an element must be. ``NOT_FINITE``: some inf or NaN, where IEEE arithmetic leaves open
which (complex elements, and an infinite alpha)."""

_WORDS = {
    FINITE: "a finite number",
    NOT_FINITE: "inf or NaN",
    NOT_A_NUMBER: "NaN",
    PLUS_INF: "inf",
    MINUS_INF: "-inf",
}


def has_oracle(dtype: torch.dtype) -> bool:
    """Whether numpy here has an arithmetic wider than ``dtype`` (MSVC's long double is not)."""
    return dtype not in (torch.float64, torch.complex128) or np.finfo(np.longdouble).nmant > 60


@dataclass(frozen=True)
class Limit:
    """An error limit: |err| <= own*u_out*|C| + units*u*G + budget*G + (k + 2)*tiny."""

    own: float
    units: float
    budget: float = 0.0

    @classmethod
    def of(
        cls, tolerance: Tolerance | ErrorBound, dtype: torch.dtype, k: int, typical: bool
    ) -> Limit:
        """What a level, budget or declared bound allows; on typical data growth is 4*sqrt(k)."""
        if isinstance(tolerance, Tolerance) and tolerance.budget is not None:
            return cls(0.0, 0.0, tolerance.budget)
        if isinstance(tolerance, Tolerance):
            rho, along_k = allowance(tolerance.level, dtype), growth(dtype, k)
        else:
            rho, along_k = tolerance.rho, tolerance.growth
        if typical:
            along_k = min(along_k, 4 * math.sqrt(k))
        return cls(1.0, rho + along_k)


class Truth:
    """alpha*A*B + beta*C for one set of operands, with all that is needed to judge results.

    ``value`` and ``G`` are longdouble (clongdouble) arrays; ``kind`` says what an element must
    be, and only where it is ``FINITE`` do the other two mean something.
    """

    def __init__(
        self,
        alpha: complex,
        A: torch.Tensor,
        B: torch.Tensor,
        beta: complex,
        C: torch.Tensor | None,
    ) -> None:
        self.dtype, self.device = A.dtype, A.device
        (self.m, self.k), self.n = A.shape, B.shape[1]
        with np.errstate(all="ignore"):
            self._compute(alpha, A, B, beta, C)

    def _compute(
        self,
        alpha: complex,
        A: torch.Tensor,
        B: torch.Tensor,
        beta: complex,
        C: torch.Tensor | None,
    ) -> None:
        shape = (self.m, self.n)
        extended: Any = np.clongdouble if self.dtype.is_complex else np.longdouble
        self.value = np.zeros(shape, dtype=extended)
        self.G = np.zeros(shape, dtype=np.longdouble)
        self.headroom = np.zeros(shape, dtype=np.longdouble)
        self.terms = np.zeros(shape)  # how many terms of the sum are not 0
        exceptional: Array = np.zeros(shape, dtype=bool)  # whether a term is inf or NaN
        if alpha != 0 and self.k > 0:  # NaN != 0 holds
            a, b = widen(A), widen(B)
            finite_a, finite_b = _only_finite(a), _only_finite(b)
            rows: Any = (~np.isfinite(a)).any(1)
            columns: Any = (~np.isfinite(b)).any(0)
            exceptional |= rows[:, None] | columns[None, :]
            exceptional |= not np.isfinite(alpha)
            self.terms += (a != 0).astype(float) @ (b != 0).astype(float)
            moduli = (np.abs(finite_a) @ np.abs(finite_b)).astype(np.longdouble)
            scale = np.longdouble(abs(alpha)) if np.isfinite(alpha) else np.longdouble(1)
            self.G += scale * moduli
            self.headroom += max(scale, np.longdouble(1)) * moduli
            if self.dtype.is_complex:  # its arithmetic on inf is not unique: see NOT_FINITE
                a, b = finite_a, finite_b
            self.value = extended(alpha) * (a @ b).astype(extended)
        if beta != 0:
            if C is None:
                raise ValueError("beta is not 0 but there is no C")
            c = widen(C).astype(extended)
            exceptional |= ~np.isfinite(c)
            exceptional |= not np.isfinite(beta)
            self.terms += c != 0
            scale = np.longdouble(abs(beta)) if np.isfinite(beta) else np.longdouble(1)
            self.G += scale * np.abs(_only_finite(c))
            self.headroom += scale * np.abs(_only_finite(c))
            if self.dtype.is_complex:
                c = _only_finite(c)
            self.value = self.value + extended(beta) * c
        self.kind = np.full(shape, FINITE)
        if self.dtype.is_complex or (alpha != 0 and math.isinf(abs(alpha))):
            self.kind[exceptional] = NOT_FINITE
        else:
            self.kind[np.isnan(self.value)] = NOT_A_NUMBER
            self.kind[self.value == np.inf] = PLUS_INF
            self.kind[self.value == -np.inf] = MINUS_INF

    def bound(self, limit: Limit) -> Array:
        """The largest error each element may have."""
        allowed = (
            np.longdouble(limit.own * unit_roundoff(self.dtype)) * np.abs(self.value)
            + np.longdouble(limit.units * accumulation_roundoff(self.dtype)) * self.G
            + np.longdouble(limit.budget) * self.G
            + np.longdouble(underflow(self.dtype, self.k))
        )
        bound: Array = np.where(self.terms == 0, np.longdouble(0), allowed)
        return bound

    def may_overflow(self) -> Array:
        """Where native arithmetic's own partial sums can leave the accumulator's range.

        A partial sum of A*B is not yet scaled by alpha, so an alpha below 1 does not help it.
        """
        accumulator = torch.float32 if self.dtype in (torch.float16, torch.bfloat16) else self.dtype
        margin = 1 + (3 * self.k + 8) * unit_roundoff(accumulator)
        largest = np.longdouble(torch.finfo(accumulator).max)
        loose: Array = self.headroom * np.longdouble(margin) > largest
        return loose

    def faults(self, result: torch.Tensor, limit: Limit) -> Array:
        """How wrong each element is, as a multiple of what is allowed; above 1 is a fault.

        inf stands for a wrong inf or NaN, and for anything but 0 where every term is 0.
        """
        with np.errstate(all="ignore"):
            got, bound = widen(result), self.bound(limit)
            error = np.abs(got - self.value)
            ratio = np.where(error == 0, 0, error / np.where(bound == 0, np.longdouble(1), bound))
            ratio[(bound == 0) & (error > 0)] = np.inf
            ratio[~self._both_finite(got)] = 0
            before_rounding = self.bound(replace(limit, own=0.0))
            ratio[self._misplaced(got, before_rounding)] = np.inf
        return ratio

    def _both_finite(self, got: Array) -> Array:
        both: Array = (self.kind == FINITE) & np.isfinite(got)
        return both

    def _misplaced(self, got: Array, slack: Array) -> Array:
        """Where inf and NaN are not what IEEE arithmetic can give, or are missing.

        ``slack`` is the error allowed before the result is rounded to its own type.
        """
        finite, nan = np.isfinite(got), np.isnan(got)
        loose = self.may_overflow()  # a finite part that overflows may meet an opposite infinity
        right = np.select(
            [self.kind == kind for kind in (FINITE, NOT_FINITE, NOT_A_NUMBER, PLUS_INF)],
            [
                finite | self._may_be_infinite(got, slack, loose),
                ~finite,
                nan,
                (got == np.inf) | (nan & loose),
            ],
            (got == -np.inf) | (nan & loose),
        )
        return ~right

    def _may_be_infinite(self, got: Array, slack: Array, loose: Array) -> Array:
        """Where the true value is finite and yet the inf or NaN found is what overflow gives."""
        beyond = _overflow_threshold(self.dtype)
        if self.dtype.is_complex:  # overflow in one part may spoil the other
            return loose | (np.abs(self.value) + slack >= beyond)
        one_sign = np.abs(self.value) >= self.G * (1 - np.longdouble(2) ** -40)
        either = loose & ~one_sign  # partial sums of both signs: opposite infinities may meet
        signed = np.where(np.sign(got) > 0, self.value, -self.value)
        return either | (~np.isnan(got) & ((signed + slack >= beyond) | (loose & (signed > 0))))

    def error_ratio(self, result: torch.Tensor) -> float:
        """R = max over elements of max(0, |err| - u_out*|C| - (k+2)*tiny) / (u*G)."""
        if self.value.size == 0:
            return 0.0
        with np.errstate(all="ignore"):
            got = widen(result)
            excess = np.abs(got - self.value) - self.bound(Limit(1.0, 0.0))
            unit = np.longdouble(accumulation_roundoff(self.dtype)) * self.G
            ratio = np.where(excess > 0, excess / unit, np.longdouble(0))
            ratio[~self._both_finite(got)] = 0
            near = self.bound(Limit(0.0, allowance("highest", self.dtype) + 3 * self.k))
            ratio[self._misplaced(got, near)] = np.inf
        return float(ratio.max())

    def netlib_ratio(self, result: torch.Tensor, eps: float) -> float:
        """The ratio of Netlib's level-3 test (xMMCH of xBLAT3): max |err| / (eps·G).

        Without G where that is 0. Moduli stand for its sums of moduli of real and imaginary part.
        What underflow may add is not counted: in float16 it meets two numbers below 2⁻¹².
        """
        if self.value.size == 0:
            return 0.0
        floor = np.longdouble(underflow(self.dtype, self.k))
        error = np.maximum(np.abs(widen(result) - self.value) - floor, 0) / np.longdouble(eps)
        gauge = np.where(self.G == 0, np.longdouble(1), self.G)
        return float((error / gauge).max())

    def check(
        self, result: torch.Tensor, tolerance: Tolerance | ErrorBound, typical: bool = False
    ) -> None:
        """Assert that a result keeps the contract, element by element."""
        complaint = self.complaint(result, tolerance, typical)
        if complaint:
            raise AssertionError(complaint)

    def complaint(
        self, result: torch.Tensor, tolerance: Tolerance | ErrorBound, typical: bool = False
    ) -> str:
        """What of a result breaks the contract, with the worst element; "" if nothing does."""
        if not isinstance(result, torch.Tensor):
            return f"the result is a {type(result).__name__}"
        for word, got, expected in (
            ("shape", tuple(result.shape), (self.m, self.n)),
            ("dtype", result.dtype, self.dtype),
        ):
            if got != expected:
                return f"the result has {word} {got}, expected {expected}"
        if result.device != self.device:
            return f"the result is on {result.device}, expected {self.device}"
        if self.value.size == 0:
            return ""
        limit = Limit.of(tolerance, self.dtype, self.k, typical)
        faults = self.faults(result, limit)
        worst = np.unravel_index(np.argmax(faults), faults.shape)
        if faults[worst] <= 1:
            return ""
        i, j = (int(x) for x in worst)
        value = widen(result)[i, j]
        wrong = int((faults > 1).sum())
        digits = 9 if unit_roundoff(self.dtype) > 2.0**-30 else 17
        kind = int(self.kind[i, j])
        if kind != FINITE:
            wanted = _WORDS[kind]
        elif self.terms[i, j] == 0:
            wanted = "exactly 0, for every term is 0"
        else:
            wanted = _text(self.value[i, j], digits)
        error = abs(value - self.value[i, j])
        unit = accumulation_roundoff(self.dtype) * self.G[i, j]
        own = unit_roundoff(self.dtype) * abs(self.value[i, j])
        floor = np.longdouble(underflow(self.dtype, self.k))
        if kind != FINITE or not np.isfinite(value) or unit == 0:
            ratio = math.inf
        else:
            ratio = max(0.0, float((error - own - floor) / unit))
        allowed = (
            f"{limit.units:.6g}" if limit.units else f"budget {limit.budget:.3g}*G, no units of u*G"
        )
        return (
            f"element [{i}, {j}] is {_text(value, digits)}, expected {wanted}: "
            f"error {float(error):.4g}, "
            f"bound {float(self.bound(limit)[i, j]):.4g} ({float(faults[worst]):.4g} of it); "
            f"R = {ratio:.6g}, allowed {allowed}; G = {float(self.G[i, j]):.4g}; "
            f"{wrong} of {faults.size} elements are wrong "
            f"({self.m}x{self.n}x{self.k} {self.dtype}{', typical data' if typical else ''})"
        )


class Truths:
    """The same for a batch: a ``Truth`` for each of its matrices."""

    def __init__(
        self,
        alpha: complex,
        A: torch.Tensor,
        B: torch.Tensor,
        beta: complex,
        C: torch.Tensor | None,
    ) -> None:
        addends = [None] * len(A) if C is None else list(C)
        self.each = [Truth(alpha, a, b, beta, c) for a, b, c in zip(A, B, addends, strict=True)]

    def check(
        self, result: torch.Tensor, tolerance: Tolerance | ErrorBound, typical: bool = False
    ) -> None:
        """Assert that every matrix of a result keeps the contract."""
        assert result.ndim == 3, f"the result has {result.ndim} dimensions, expected 3"
        assert len(result) == len(self.each), (
            f"the result has {len(result)} matrices, expected {len(self.each)}"
        )
        for i, (truth, matrix) in enumerate(zip(self.each, result, strict=True)):
            try:
                truth.check(matrix, tolerance, typical)
            except AssertionError as failure:
                failure.args = (f"matrix {i}: {failure}",)
                raise


def truth_of(
    alpha: complex, A: torch.Tensor, B: torch.Tensor, beta: complex, C: torch.Tensor | None
) -> Truth | Truths:
    """The truth about matrices, or about batches of them."""
    return (Truth if A.ndim == 2 else Truths)(alpha, A, B, beta, C)


def reference(
    alpha: complex, A: torch.Tensor, B: torch.Tensor, beta: complex, C: torch.Tensor | None
) -> tuple[Array, Array]:
    """alpha*A*B + beta*C and G = |alpha||A||B| + |beta||C| in wider arithmetic.

    Products are summed in float64 (complex128) for 16-bit and 32-bit operands and in numpy's
    long double for 64-bit ones. BLAS's corners hold by definition: beta = 0 does not read C,
    alpha = 0 reads neither A nor B, and k = 0 gives beta*C. In G, inf and NaN count as 0.
    """
    truth = Truth(alpha, A, B, beta, C)
    return truth.value, truth.G


def error_ratio(
    result: torch.Tensor,
    alpha: complex,
    A: torch.Tensor,
    B: torch.Tensor,
    beta: complex,
    C: torch.Tensor | None,
) -> float:
    """R: the worst error in units of u*G, after the result's own rounding and underflow.

    inf where a finite element came out as inf or NaN or the reverse, and where an element all
    of whose terms are 0 is not 0.
    """
    return Truth(alpha, A, B, beta, C).error_ratio(result)


def check(
    result: torch.Tensor,
    alpha: complex,
    A: torch.Tensor,
    B: torch.Tensor,
    beta: complex,
    C: torch.Tensor | None,
    tolerance: Tolerance | ErrorBound,
    typical: bool = False,
) -> None:
    """Assert that ``result`` keeps the contract at a level, a budget or a declared bound."""
    Truth(alpha, A, B, beta, C).check(result, tolerance, typical)


def widen(x: torch.Tensor) -> Array:
    """A tensor as a numpy array of the wider type, conjugate and negative bits resolved."""
    x = x.detach().cpu().resolve_conj().resolve_neg()
    wide = _WIDE[x.dtype]
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.to(torch.float64)
    return np.ascontiguousarray(x.numpy().astype(wide))


def _only_finite(x: Array) -> Array:
    return np.where(np.isfinite(x), x, np.zeros((), x.dtype))


def _overflow_threshold(dtype: torch.dtype) -> np.longdouble:
    """From here on rounding to nearest gives inf: half a unit above the largest number."""
    u = np.longdouble(unit_roundoff(dtype))
    return np.longdouble(torch.finfo(dtype).max) * ((2 - u) / (2 - 2 * u))


def _text(x: Any, digits: int) -> str:
    return f"{complex(x):.{digits}g}" if np.iscomplexobj(x) else f"{float(x):.{digits}g}"
