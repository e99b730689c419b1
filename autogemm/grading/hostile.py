"""Operands chosen to break products: named generators, and which types they make sense for.

``HOSTILE[name](m, n, k, dtype, generator)`` gives ``(A, B, C)``, contiguous and on the CPU.
``BASELINE`` names the ordinary random data on which errors grow like the square root of k.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

Operands = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Make = Callable[[int, int, int, torch.dtype, torch.Generator], Operands]

HOSTILE: dict[str, Make] = {}
BASELINE = ("normal", "uniform")

_HALVES = (torch.float16, torch.bfloat16)
_WIDE_RANGE = (
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
)
_SINGLE = (torch.float32, torch.complex64)
_ALL = (torch.float16, *_WIDE_RANGE)
_DTYPES: dict[str, tuple[torch.dtype, ...]] = {}


def names_for(dtype: torch.dtype) -> list[str]:
    """The generators that make sense for a type."""
    return [name for name in HOSTILE if dtype in _DTYPES[name]]


def seeded(*words: object) -> torch.Generator:
    """A generator whose stream depends on the words alone."""
    seed = 0
    for byte in repr(words).encode():
        seed = (seed * 257 + byte) % (2**31 - 1)
    return torch.Generator().manual_seed(seed)


def _hostile(
    name: str, dtypes: tuple[torch.dtype, ...] = _ALL
) -> Callable[[Callable[..., Operands]], Callable[..., Operands]]:
    """Register a generator of real float64 operands; complex ones get two independent parts."""

    def register(draw: Callable[..., Operands]) -> Callable[..., Operands]:
        def make(
            m: int, n: int, k: int, dtype: torch.dtype, generator: torch.Generator
        ) -> Operands:
            real = draw(m, n, k, _real(dtype), generator)
            if not dtype.is_complex:
                a, b, c = (x.to(dtype).contiguous() for x in real)
                return a, b, c
            imag = draw(m, n, k, _real(dtype), generator)
            a, b, c = (
                torch.complex(x.to(_real(dtype)), y.to(_real(dtype)))
                for x, y in zip(real, imag, strict=True)
            )
            return a, b, c

        HOSTILE[name] = make
        _DTYPES[name] = dtypes
        return draw

    return register


def _real(dtype: torch.dtype) -> torch.dtype:
    return {torch.complex64: torch.float32, torch.complex128: torch.float64}.get(dtype, dtype)


def _normal(*shape: int, g: torch.Generator) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=g)


def _uniform(*shape: int, g: torch.Generator) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=g)


def _powers(*shape: int, span: int, g: torch.Generator) -> torch.Tensor:
    exponents = torch.randint(-span, span + 1, shape, generator=g)
    return torch.ldexp(torch.ones(shape, dtype=torch.float64), exponents)


def _span(dtype: torch.dtype, wanted: int) -> int:
    """``wanted``, or as much as the square root of float16's range lets products have."""
    return min(wanted, 6) if dtype is torch.float16 else wanted


def _pick(values: list[float], *shape: int, g: torch.Generator) -> torch.Tensor:
    table = torch.tensor(values, dtype=torch.float64)
    return table[torch.randint(len(values), shape, generator=g)]


# -------------------------------------------------------------------------------- ordinary


@_hostile("normal")
def _(m: int, n: int, k: int, dtype: torch.dtype, g: torch.Generator) -> Operands:
    return _normal(m, k, g=g), _normal(k, n, g=g), _normal(m, n, g=g)


@_hostile("uniform")
def _(m: int, n: int, k: int, dtype: torch.dtype, g: torch.Generator) -> Operands:
    return _uniform(m, k, g=g), _uniform(k, n, g=g), _uniform(m, n, g=g)


# --------------------------------------------------------------------------------- scaling


@_hostile("graded_rows_of_A")
def _(m: int, n: int, k: int, dtype: torch.dtype, g: torch.Generator) -> Operands:
    rows = _powers(m, 1, span=_span(dtype, 60), g=g)
    return rows * _normal(m, k, g=g), _normal(k, n, g=g), rows * _normal(m, n, g=g)


@_hostile("graded_columns_of_B")
def _(m: int, n: int, k: int, dtype: torch.dtype, g: torch.Generator) -> Operands:
    columns = _powers(1, n, span=_span(dtype, 60), g=g)
    return _normal(m, k, g=g), columns * _normal(k, n, g=g), columns * _normal(m, n, g=g)


@_hostile("graded_rows_and_columns", _WIDE_RANGE)
def _(m: int, n: int, k: int, dtype: torch.dtype, g: torch.Generator) -> Operands:
    rows, columns = _powers(m, 1, span=60, g=g), _powers(1, n, span=60, g=g)
    return rows * _normal(m, k, g=g), _normal(k, n, g=g) * columns, _normal(m, n, g=g)


def _opposed(span: int) -> Callable[..., Operands]:
    def draw(m: int, n: int, k: int, dtype: torch.dtype, g: torch.Generator) -> Operands:
        limit = int(math.log2(torch.finfo(dtype).max)) // 2
        inner = _powers(k, 1, span=min(span, limit), g=g)
        return _normal(m, k, g=g) * inner.T, _normal(k, n, g=g) / inner, _normal(m, n, g=g)

    return draw


# A row of A against a column of B: every product is ordinary, no common scale exists.
_hostile("opposed_exponents")(_opposed(15))
_hostile("opposed_exponents_to_the_root_of_overflow", _WIDE_RANGE)(_opposed(10_000))


def _exponents(span: int) -> Callable[..., Operands]:
    def draw(m: int, n: int, k: int, dtype: torch.dtype, g: torch.Generator) -> Operands:
        a, b, c = (
            _powers(*shape, span=_span(dtype, span), g=g) * _normal(*shape, g=g)
            for shape in ((m, k), (k, n), (m, n))
        )
        return a, b, c

    return draw


for _span_of_elements in (8, 16, 30, 60):
    _hostile(f"exponents_{_span_of_elements}", _ALL if _span_of_elements == 8 else _WIDE_RANGE)(
        _exponents(_span_of_elements)
    )


# ---------------------------------------------------------------------------- cancellation


@_hostile("cancellation")
def _(m: int, n: int, k: int, dtype: torch.dtype, g: torch.Generator) -> Operands:
    half = k // 2
    a = _normal(m, half, g=g).to(dtype).double()
    b = _normal(half, n, g=g).to(dtype).double()
    few_units = torch.finfo(dtype).eps * torch.randint(-4, 5, b.shape, generator=g)
    rest_a, rest_b = (2.0**-6 * _normal(*shape, g=g) for shape in ((m, k % 2), (k % 2, n)))
    return (
        torch.cat([a, a, rest_a], 1),
        torch.cat([b, -b * (1 + few_units), rest_b], 0),
        torch.finfo(dtype).eps * _normal(m, n, g=g),
    )


@_hostile("C_cancels_the_product")
def _(m: int, n: int, k: int, dtype: torch.dtype, g: torch.Generator) -> Operands:
    a, b = (_normal(*shape, g=g).to(dtype).double() for shape in ((m, k), (k, n)))
    return a, b, -(a @ b)


@_hostile("complementary_zeros")
def _(m: int, n: int, k: int, dtype: torch.dtype, g: torch.Generator) -> Operands:
    """Every product has a factor 0; every second row of C is 0, where the result is exactly 0."""
    kept = (torch.arange(k) % 2 == 0).double()
    c = _normal(m, n, g=g)
    c[::2] = 0
    return _normal(m, k, g=g) * kept, (1 - kept)[:, None] * _normal(k, n, g=g), c


@_hostile("zero_rows_and_columns")
def _(m: int, n: int, k: int, dtype: torch.dtype, g: torch.Generator) -> Operands:
    """The result is exactly 0 in their cross; an algorithm that mixes blocks leaves rubbish."""
    a, b, c = _uniform(m, k, g=g), _uniform(k, n, g=g), _normal(m, n, g=g)
    rows, columns = _uniform(m, g=g) < 0.4, _uniform(n, g=g) < 0.4
    a[rows], b[:, columns] = 0, 0
    c[rows], c[:, columns] = 0, 0
    return a, b, c


@_hostile("unequal_quadrants")
def _(m: int, n: int, k: int, dtype: torch.dtype, g: torch.Generator) -> Operands:
    """Large first quadrants of A and B, which the last quadrant of the result does not hold."""
    a, b = _normal(m, k, g=g), _normal(k, n, g=g)
    large = 2.0 ** _span(dtype, 24)
    a[: m // 2, : k // 2] *= large
    b[: k // 2, : n // 2] *= large
    return a, b, 0 * _normal(m, n, g=g)


@_hostile("negative_zeros")
def _(m: int, n: int, k: int, dtype: torch.dtype, g: torch.Generator) -> Operands:
    a, b, c = _normal(m, k, g=g), _normal(k, n, g=g), _normal(m, n, g=g)
    a[::2] = -0.0
    b[:, ::2] = -0.0
    c[:, ::3] = -0.0
    return a, b, c


# ------------------------------------------------------------------------------- mantissas


@_hostile("constant")
def _(m: int, n: int, k: int, dtype: torch.dtype, g: torch.Generator) -> Operands:
    """Every rounding goes the same way, so that errors add up instead of averaging out."""
    third = torch.full((), 1 / 3, dtype=torch.float64)
    return third.expand(m, k), third.expand(k, n), third.expand(m, n)


def _ties(bits: int) -> Callable[..., Operands]:
    def draw(m: int, n: int, k: int, dtype: torch.dtype, g: torch.Generator) -> Operands:
        def between(*shape: int) -> torch.Tensor:
            steps = torch.randint(2 ** min(bits, 30), shape, generator=g).double()
            return 1 + (steps + 0.5) * 2.0**-bits

        return between(m, k), between(k, n), between(m, n)

    return draw


def _ones_below(bits: int) -> Callable[..., Operands]:
    def draw(m: int, n: int, k: int, dtype: torch.dtype, g: torch.Generator) -> Operands:
        last = torch.finfo(dtype).eps

        def just_under(*shape: int) -> torch.Tensor:
            steps = torch.randint(1, 9, shape, generator=g).double()
            return 1 + steps * 2.0**-bits - last

        return just_under(m, k), just_under(k, n), just_under(m, n)

    return draw


# Stored mantissa bits that a cut keeps: bfloat16, TF32 and float16, their double splits, float32.
for _bits, _name, _dtypes in (
    (7, "bfloat16", (*_SINGLE, torch.float64)),
    (10, "tf32", (*_SINGLE, torch.float64)),
    (15, "two_bfloat16", _SINGLE),
    (21, "two_float16", _SINGLE),
    (23, "float32", (torch.float64, torch.complex128)),
):
    _hostile(f"ties_of_{_name}", _dtypes)(_ties(_bits))
    _hostile(f"ones_below_{_name}", _dtypes)(_ones_below(_bits))


# ----------------------------------------------------------------------- ends of the range


@_hostile("largest_numbers")
def _(m: int, n: int, k: int, dtype: torch.dtype, g: torch.Generator) -> Operands:
    """A up to the largest finite number; B so small that sums stay finite."""
    facts = torch.finfo(dtype)
    a = facts.max * _pick([1, -1, 1 - facts.eps, 0.75, -0.5, 2.0**-9], m, k, g=g)
    return a, _normal(k, n, g=g) / (8 * k), facts.max / 16 * (2 * _uniform(m, n, g=g) - 1)


@_hostile("largest_by_smallest_normal")
def _(m: int, n: int, k: int, dtype: torch.dtype, g: torch.Generator) -> Operands:
    facts = torch.finfo(dtype)
    a = facts.max * _pick([1, -1, 1 - facts.eps, 0.75], m, k, g=g)
    return a, facts.tiny * (1 + _uniform(k, n, g=g)), _normal(m, n, g=g)


@_hostile("products_that_overflow", (*_HALVES, torch.float32, torch.float64))
def _(m: int, n: int, k: int, dtype: torch.dtype, g: torch.Generator) -> Operands:
    """One row of A and one column of B whose positive products are too large; the rest is not."""
    root = torch.finfo(dtype).max ** 0.5
    a, b = 0.5 + _uniform(m, k, g=g), 0.5 + _uniform(k, n, g=g)
    a[m // 2] *= 4 * root
    b[:, n // 2] *= 4 * root
    return a, b, _uniform(m, n, g=g)


@_hostile("edges_of_float16", (torch.float16, torch.float32, torch.float64, torch.complex64))
def _(m: int, n: int, k: int, dtype: torch.dtype, g: torch.Generator) -> Operands:
    """Around float16's largest number, its smallest normal and its smallest subnormal."""
    large = [65504.0, -65504.0, 32768.0, 1.0]
    if dtype is not torch.float16:
        large += [65519.0, 65520.0, -65536.0, 131008.0]
    small = [2.0**-14, -(2.0**-14), 2.0**-14 - 2.0**-24, 2.0**-24, 2.0**-25, -(2.0**-15), 2.0**-13]
    return _pick(large, m, k, g=g), _pick(small, k, n, g=g), _pick([*large, *small], m, n, g=g)


@_hostile("one_large_element_a_row", _WIDE_RANGE)
def _(m: int, n: int, k: int, dtype: torch.dtype, g: torch.Generator) -> Operands:
    """One element of each row of A dwarfs the others, and meets zeros of B."""
    a, b = _normal(m, k, g=g), _normal(k, n, g=g)
    a[:, k // 2] = 2.0**40
    b[k // 2, ::2] = 0
    return a, b, _normal(m, n, g=g)


def _subnormal(*shape: int, dtype: torch.dtype, g: torch.Generator) -> torch.Tensor:
    return torch.finfo(dtype).tiny * (2 * _uniform(*shape, g=g) - 1)


@_hostile("subnormal_A")
def _(m: int, n: int, k: int, dtype: torch.dtype, g: torch.Generator) -> Operands:
    a = _subnormal(m, k, dtype=dtype, g=g)
    return a, _normal(k, n, g=g), _subnormal(m, n, dtype=dtype, g=g)


@_hostile("subnormal_A_and_large_B")
def _(m: int, n: int, k: int, dtype: torch.dtype, g: torch.Generator) -> Operands:
    """Flushing subnormals to 0 loses results of ordinary size."""
    large = 2.0**-6 / torch.finfo(dtype).tiny
    return _subnormal(m, k, dtype=dtype, g=g), large * _normal(k, n, g=g), _normal(m, n, g=g)


@_hostile("a_few_subnormals_in_A")
def _(m: int, n: int, k: int, dtype: torch.dtype, g: torch.Generator) -> Operands:
    """Only A's first row and B's last column hold subnormals, and large partners to meet them."""
    a, b = _normal(m, k, g=g), _normal(k, n, g=g)
    a[0] = _subnormal(k, dtype=dtype, g=g)
    b[:, 0] *= 2.0 ** _span(dtype, 100)
    b[:, -1] = _subnormal(k, dtype=dtype, g=g)
    return a, b, 0 * _normal(m, n, g=g)


@_hostile("subnormal_A_and_B")
def _(m: int, n: int, k: int, dtype: torch.dtype, g: torch.Generator) -> Operands:
    a, b = (_subnormal(*shape, dtype=dtype, g=g) for shape in ((m, k), (k, n)))
    return a, b, _normal(m, n, g=g)


@_hostile("products_around_the_smallest_normal")
def _(m: int, n: int, k: int, dtype: torch.dtype, g: torch.Generator) -> Operands:
    root = torch.finfo(dtype).tiny ** 0.5
    span = min(_span(dtype, 12), 4 if dtype is torch.float16 else 12)
    a, b = (
        root * _powers(*shape, span=span, g=g) * _normal(*shape, g=g) for shape in ((m, k), (k, n))
    )
    return a, b, _subnormal(m, n, dtype=dtype, g=g)


@_hostile("smallest_number_everywhere_in_A")
def _(m: int, n: int, k: int, dtype: torch.dtype, g: torch.Generator) -> Operands:
    """Scaling A by alpha before the product loses all of it: half of it rounds to 0."""
    smallest = torch.finfo(dtype).tiny * torch.finfo(dtype).eps
    a = torch.full((m, k), smallest, dtype=torch.float64)
    b = _uniform(k, n, g=g) * 2.0**-6 / torch.finfo(dtype).tiny
    return a, b, torch.zeros(m, n, dtype=torch.float64)


def _mirrored(name: str) -> Callable[..., Operands]:
    """The same with A and B exchanged."""
    make = HOSTILE[name]

    def draw(m: int, n: int, k: int, dtype: torch.dtype, g: torch.Generator) -> Operands:
        a, b, c = make(n, m, k, dtype, g)
        return b.T.contiguous(), a.T.contiguous(), c.T.contiguous()

    return draw


for _name in (
    "largest_numbers",
    "largest_by_smallest_normal",
    "one_large_element_a_row",
    "subnormal_A_and_large_B",
    "smallest_number_everywhere_in_A",
):
    _hostile(f"{_name}_mirrored", _DTYPES[_name])(_mirrored(_name))


# -------------------------------------------------------- what a split into fp16 terms loses

_FLOAT32 = (torch.float32,)


@_hostile("far_below_the_maximum_and_alone", _FLOAT32)
def _(m: int, n: int, k: int, dtype: torch.dtype, g: torch.Generator) -> Operands:
    """The maximum of each row of A and column of B meets a 0; the rest is 2^-24 to 2^-44 of it."""
    below = [2.0**-e for e in (24, 26, 27, 28, 29, 30, 34, 44)]
    a, b = 1 + _uniform(m, k, g=g), 1 + _uniform(k, n, g=g)
    a *= _pick(below, m, 1, g=g)
    b *= _pick(below, 1, n, g=g)
    a[:, -1], b[-1] = 0, 1.5
    a[:, 0], b[0] = 1.5, 0
    return a, b, 2.0**-70 * _normal(m, n, g=g)


@_hostile("far_below_the_maximum_and_outweighed", _FLOAT32)
def _(m: int, n: int, k: int, dtype: torch.dtype, g: torch.Generator) -> Operands:
    """Ordinary operands with an element 2^-26 to 2^-29 of the others here and there."""
    a, b = _normal(m, k, g=g), _normal(k, n, g=g)
    for x in (a, b):
        x[_uniform(*x.shape, g=g) < 0.05] *= 2.0 ** -(26 + float(torch.randint(4, (), generator=g)))
    return a, b, _normal(m, n, g=g)


@_hostile("a_tiny_element_meets_a_huge_one", _FLOAT32)
def _(m: int, n: int, k: int, dtype: torch.dtype, g: torch.Generator) -> Operands:
    """Products of ordinary size, of which one has factors of 2^-70 and 2^70."""
    a, b = _normal(m, k, g=g), 2.0**-70 * _normal(k, n, g=g)
    a[:, k // 2] = 2.0**-70
    b[k // 2] = 2.0**70 * (1 + _uniform(n, g=g))
    return a, b, _normal(m, n, g=g)


@_hostile("huge_elements_meet_zeros", _FLOAT32)
def _(m: int, n: int, k: int, dtype: torch.dtype, g: torch.Generator) -> Operands:
    """A up to 2^120, and up to 2^60 in B where A is 0; B is of ordinary size elsewhere."""
    a, b = 2.0**110 * _powers(m, k, span=9, g=g) / k, _normal(k, n, g=g)
    a[:, k // 2] = 0
    b[k // 2] = 2.0**60
    return a, b, _normal(m, n, g=g)


@_hostile("products_around_the_smallest_subnormal", _FLOAT32)
def _(m: int, n: int, k: int, dtype: torch.dtype, g: torch.Generator) -> Operands:
    """Results of about 2^-130 to 2^-145 from operands that are not subnormal."""
    rows = torch.ldexp(torch.ones(m, 1, dtype=torch.float64), torch.arange(m)[:, None] % 8 - 80)
    a, b = rows * _normal(m, k, g=g), 2.0**-63 * _normal(k, n, g=g)
    return a, b, torch.zeros(m, n, dtype=torch.float64)


@_hostile("outliers_after_the_first_block", _FLOAT32)
def _(m: int, n: int, k: int, dtype: torch.dtype, g: torch.Generator) -> Operands:
    """A scale taken from the first elements of k overflows on later ones, 2^4 to 2^20 larger."""
    a, b = 1 + _uniform(m, k, g=g), 1 + _uniform(k, n, g=g)
    late = torch.arange(k) >= min(64, k // 2)
    for x, far in ((a, late[None, :]), (b, late[:, None])):
        rare = far & (_uniform(*x.shape, g=g) < 0.02)
        x[rare] *= torch.ldexp(
            torch.ones(int(rare.sum()), dtype=torch.float64),
            torch.randint(4, 21, (int(rare.sum()),), generator=g),
        )
    return a, b, _normal(m, n, g=g)


@_hostile("leading_zeros_along_k", _FLOAT32)
def _(m: int, n: int, k: int, dtype: torch.dtype, g: torch.Generator) -> Operands:
    """No scale can be taken from the first elements of k; what follows is large, or small."""
    a, b = 2.0**20 * _normal(m, k, g=g), 2.0**-20 * _normal(k, n, g=g)
    a[::2, : min(64, k - 1)] = 0
    b[: min(64, k // 2)] = 0
    return a, b, _normal(m, n, g=g)


@_hostile("block_diagonal_with_tiny_elements", _FLOAT32)
def _(m: int, n: int, k: int, dtype: torch.dtype, g: torch.Generator) -> Operands:
    """Off the diagonal every product has a factor 0, beside elements that no term holds."""
    a, b = _normal(m, k, g=g), _normal(k, n, g=g)
    a[:, ::3] *= 2.0**-40
    b[::5] *= 2.0**-60
    a[: m // 2, k // 2 :] = 0
    a[m // 2 :, : k // 2] = 0
    b[: k // 2, n // 2 :] = 0
    b[k // 2 :, : n // 2] = 0
    return a, b, torch.zeros(m, n, dtype=torch.float64)


# ------------------------------------------------------------------------------ inf and NaN


def _special(
    a_values: tuple[float, ...] = (),
    b_values: tuple[float, ...] = (),
    c_values: tuple[float, ...] = (),
) -> Callable[..., Operands]:
    """Ordinary data with the values set, in one row of A, one column of B and a row of C."""

    def draw(m: int, n: int, k: int, dtype: torch.dtype, g: torch.Generator) -> Operands:
        a, b, c = _normal(m, k, g=g), _normal(k, n, g=g), _normal(m, n, g=g)
        for i, value in enumerate(a_values):
            a[m // 2, (k // 3 + i) % k] = value
        for i, value in enumerate(b_values):
            b[(k // 3 + i) % k, n // 3] = value
        for i, value in enumerate(c_values):
            c[m // 3, (n // 2 + i) % n] = value
        return a, b, c

    return draw


_INF, _NAN = math.inf, math.nan
_hostile("inf_in_A")(_special((_INF,)))
_hostile("inf_in_B")(_special((), (-_INF,)))
_hostile("inf_in_C")(_special((), (), (_INF, -_INF)))
_hostile("nan_in_A")(_special((_NAN,)))
_hostile("nan_in_B")(_special((), (_NAN,)))
_hostile("nan_in_C")(_special((), (), (_NAN,)))
_hostile("inf_in_A_meets_zero_in_B")(_special((_INF,), (0.0,)))
_hostile("inf_in_A_meets_inf_in_B")(_special((_INF,), (-_INF,)))
_hostile("opposite_infs_in_A")(_special((_INF, -_INF)))
_hostile("inf_nan_and_largest_in_A")(_special((_INF, 1e4, _NAN)))


@_hostile("inf_in_A_meets_an_underflowing_element_of_B", _FLOAT32)
def _(m: int, n: int, k: int, dtype: torch.dtype, g: torch.Generator) -> Operands:
    """The partner is 2^-70 of its column's maximum, and no 0: inf, with the sign of the partner."""
    a, b = _normal(m, k, g=g), _normal(k, n, g=g)
    a[m // 2, k // 2] = math.inf
    b[k // 2] *= 2.0**-70
    return a, b, _normal(m, n, g=g)


@_hostile("inf_in_A_against_inf_in_C")
def _(m: int, n: int, k: int, dtype: torch.dtype, g: torch.Generator) -> Operands:
    a, b, c = _uniform(m, k, g=g), 0.5 + _uniform(k, n, g=g), _normal(m, n, g=g)
    a[m // 2, k // 2] = math.inf
    c[m // 2, ::2] = -math.inf
    c[m // 2, 1::2] = math.inf
    return a, b, c
