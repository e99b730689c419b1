"""What a grading puts to every strategy: operands, how they lie in memory, scalars.

``netlib``    the sweep of the level-3 BLAS's own test program, small sizes and all layouts; every
              strategy meets all of it, its parameter sets take turns.
``growth``    longer and longer sums: the error may grow with k, and no faster.
``zeros``     every term is 0 in places, where the result must be exactly 0.
``scaling``   A·D times D⁻¹·B, D's exponents up to the root of overflow: no common scale exists.
``strassen``  blocks whose sums and differences must not be mixed.
``hostile``   whatever else ``hostile.py`` knows, inf and NaN included.

The sizes and scalars of ``netlib`` are those of Reference-LAPACK's ``BLAS/TESTING/sblat3.in``
(Dongarra, Du Croz, Duff, Hammarling 1990); ``growth``, ``zeros``, ``scaling`` and ``strassen``
are what Demmel, Li, Langou, Pereira, Gates and Rubio-González ask of an implementation of grade
A ("How to grade the accuracy of an implementation of the BLAS", 2024).
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from autogemm.grading.hostile import BASELINE, HOSTILE, names_for, seeded
from autogemm.problem import DTYPE_NAMES, LAYOUTS

FAMILIES = ("netlib", "growth", "zeros", "scaling", "strassen", "hostile")
OUTS = ("new", "inplace", *LAYOUTS)
"""A new tensor, C itself, or a tensor of its own in a layout."""

_SIZES = (0, 1, 2, 3, 5, 9)
_WIDER_SIZES = (*_SIZES, 16, 33, 65, 130)
"""Netlib's, and what reaches past a vector or a tile."""
_ALPHAS, _BETAS = (0.0, 1.0, 0.7), (0.0, 1.0, 1.3)
_COMPLEX_ALPHAS, _COMPLEX_BETAS = (0.0, 1.0, 0.7 - 0.9j), (0.0, 1.0, 1.3 - 1.1j)
_BEYOND = 1000
_SCALARS = ((1.0, 0.0), (1.5, 0.5), (-0.5, 1.0), (1.0, 1.0))
_GRADE_A = {
    "complementary_zeros": "zeros",
    "zero_rows_and_columns": "zeros",
    "block_diagonal_with_tiny_elements": "zeros",
    "opposed_exponents": "scaling",
    "opposed_exponents_to_the_root_of_overflow": "scaling",
    "unequal_quadrants": "strassen",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """How much of each family is tried."""

    sweep: int | None
    """Draws from the sweep; None for all of Netlib's, and ``_BEYOND`` more."""
    shapes: tuple[tuple[int, int, int], ...]
    """(m, n, k) of hostile operands."""
    scalars: int
    """Pairs of α and β for each of them."""
    lengths: tuple[int, ...]
    """k of ``growth``."""
    parameter_sets: int
    """Of a strategy's search space, for each type."""


EXTENTS = {
    "smoke": Extent(
        sweep=30, shapes=((9, 7, 33),), scalars=1, lengths=(16, 256), parameter_sets=3
    ),
    "quick": Extent(
        sweep=300,
        shapes=((5, 7, 33), (33, 24, 80), (24, 40, 520)),
        scalars=1,
        lengths=(16, 64, 256, 1024, 4096),
        parameter_sets=8,
    ),
    "full": Extent(
        sweep=None,
        shapes=((5, 7, 33), (1, 48, 1000), (33, 24, 80), (130, 136, 264)),
        scalars=4,
        lengths=tuple(2**e for e in range(4, 21, 2)),
        parameter_sets=40,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One product to compute: contiguous operands on the CPU, and how to lay them out."""

    family: str
    name: str
    A: torch.Tensor
    B: torch.Tensor
    C: torch.Tensor
    alpha: complex
    beta: complex
    a: str = "row"
    b: str = "row"
    out: str = "new"
    typical: bool = False
    """Random data, on which errors may grow like 4·√k only."""
    turn: int = 0
    """Its place among all trials of the type."""

    def __str__(self) -> str:
        (m, k), n = self.A.shape, self.B.shape[1]
        return (
            f"{self.family} test {self.name!r}, {m}x{n}x{k}, A {self.a}, B {self.b}, "
            f"out {self.out}, alpha = {self.alpha:g}, beta = {self.beta:g}"
        )


def trials(
    dtype: torch.dtype, extent: Extent, seed: int = 0, *, share: int = 0, shares: int = 1
) -> Iterator[Trial]:
    """Every trial for a type, or one of ``shares`` parts; equal arguments give equal trials."""
    made = itertools.chain(
        _netlib(dtype, extent.sweep, seed),
        _growth(dtype, extent.lengths, seed),
        _hostile(dtype, extent, seed),
    )
    for turn, make in enumerate(made):
        if turn % shares == share:
            yield replace(make(), turn=turn)


_Make = Callable[[], Trial]
"""Draws a trial's operands, which may be long, for who grades it."""


def _netlib(dtype: torch.dtype, draws: int | None, seed: int) -> Iterator[_Make]:
    alphas: Sequence[complex] = _COMPLEX_ALPHAS if dtype.is_complex else _ALPHAS
    betas: Sequence[complex] = _COMPLEX_BETAS if dtype.is_complex else _BETAS
    rng = random.Random(f"{seed} {DTYPE_NAMES[dtype]}")
    generator = seeded("netlib", dtype, seed)
    orders = ("row", "col")
    complete = itertools.product(*[_SIZES] * 3, orders, orders, ("inplace",), alphas, betas)
    axes: tuple[Sequence[Any], ...] = (
        *[_WIDER_SIZES] * 3, LAYOUTS, LAYOUTS, OUTS, alphas, betas
    )  # fmt: skip
    drawn = zip(*(_cycle(axis, rng) for axis in axes), strict=True)
    cases: Iterator[Any] = itertools.islice(drawn, _BEYOND if draws is None else draws)
    if draws is None:
        cases = itertools.chain(complete, cases)
    for m, n, k, a, b, out, alpha, beta in cases:
        A, B, C = (_centred(shape, dtype, generator) for shape in ((m, k), (k, n), (m, n)))
        trial = Trial(
            family="netlib", name="sweep", A=A, B=B, C=C, alpha=alpha, beta=beta, a=a, b=b,
            out=out, typical=True,
        )  # fmt: skip
        yield functools.partial(replace, trial)


def _growth(dtype: torch.dtype, lengths: Sequence[int], seed: int) -> Iterator[_Make]:
    def make(k: int, name: str) -> Trial:
        edge = 64 if k <= 2**12 else 4
        A, B, C = HOSTILE[name](edge, edge, k, dtype, seeded("growth", name, k, seed))
        return Trial(
            family="growth", name=name, A=A, B=B, C=C, alpha=1.0, beta=0.0,
            typical=name in BASELINE,
        )  # fmt: skip

    for k, name in itertools.product(lengths, (*BASELINE, "constant")):
        yield functools.partial(make, k, name)


def _hostile(dtype: torch.dtype, extent: Extent, seed: int) -> Iterator[_Make]:
    def make(name: str, shape: tuple[int, int, int], turn: int) -> Trial:
        A, B, C = HOSTILE[name](*shape, dtype, seeded(name, *shape, seed))
        alpha, beta = _SCALARS[turn % len(_SCALARS)]
        return Trial(
            family=_GRADE_A.get(name, "hostile"), name=name, A=A, B=B, C=C, alpha=alpha,
            beta=beta, out=("new", "row", "inplace")[turn % 3], typical=name in BASELINE,
        )  # fmt: skip

    for place, name in enumerate(names_for(dtype)):
        for i, shape in enumerate(extent.shapes):
            for j in range(extent.scalars):
                yield functools.partial(make, name, shape, place + i + j)


def _cycle(values: Sequence[Any], rng: random.Random) -> Iterator[Any]:
    """The values over and over, each round in an order of its own."""
    while True:
        yield from rng.sample(values, len(values))


def _centred(
    shape: tuple[int, int], dtype: torch.dtype, generator: torch.Generator
) -> torch.Tensor:
    """Uniform elements between -0.5 and 0.5, as Netlib's test has them."""
    real = torch.complex128 if dtype.is_complex else torch.float64
    middle = 0.5 + 0.5j if dtype.is_complex else 0.5
    return (torch.rand(shape, dtype=real, generator=generator) - middle).to(dtype)


def laid_out(values: torch.Tensor, layout: str) -> torch.Tensor:
    """A copy in one of ``problem.LAYOUTS``; what surrounds it in memory is NaN."""
    x = values.mT if layout.startswith("col") else values
    *batch, rows, cols = x.shape
    step = 2 if layout == "strided" else 1
    slack = 0 if layout in ("row", "col") else 1
    wide = x.new_full((*batch, rows, cols * step + slack), torch.nan)
    view = wide[..., : cols * step : step].copy_(x)
    return view.mT if layout.startswith("col") else view
