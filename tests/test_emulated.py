"""The kernels behind ``emulated_fp32``: terms, products, certificates; then hostile operands.

They run on a GPU as they are, elsewhere in Triton's interpreter, as ``test_kernels.py`` has it.
The interpreter rounds where tensor cores truncate: only a GPU says whether the bound holds there.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from test_kernels import EMULATED, LAYOUTS, ON_GPU, PLACE, emulated, here, normal, serve

from autogemm.grading.hostile import HOSTILE, names_for, seeded
from autogemm.grading.oracle import Truth
from autogemm.precision import ErrorBound
from autogemm.problem import contiguous_problem
from autogemm.strategies import BY_NAME, Candidate

ceil_div = importlib.import_module("autogemm.kernels.launch").ceil_div
splitting = importlib.import_module("autogemm.kernels.split")
from_split = importlib.import_module("autogemm.kernels.split_product")
fused = importlib.import_module("autogemm.kernels.fused_product")
settle = importlib.import_module("autogemm.kernels.settle")
reduce_slices = importlib.import_module("autogemm.kernels.reduce").reduce_slices

pytestmark = pytest.mark.filterwarnings("ignore:::triton.runtime.interpreter")

STRATEGY = BY_NAME["emulated_fp32"]
FORMS = ("split", "fused")
METHODS = {1: "fp16", 2: "fp16x3"}
LOWEST, LOWEST_SAFE = splitting.LOWEST_EXPONENT.value, splitting._LOWEST_SAFE.value


# ---------------------------------------------------------------------------- terms and scales

OPERANDS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    **LAYOUTS,
    "strided both ways": lambda x: LAYOUTS["strided"](x.repeat_interleave(3, 0))[::3],
    "one row": lambda x: x[:1].expand_as(x),
    "one column": lambda x: x[:, :1].expand_as(x),
    "rows far apart": lambda x: x.new_empty(len(x), 2**20 + 4)[:, : x.shape[1]].copy_(x),
}


def assorted(rows: int, k: int) -> torch.Tensor:
    """Rows of every kind in turn: of every size, with tiny elements, zeros, inf and NaN."""
    g = seeded("assorted", rows, k)
    x = torch.randn(rows, k, dtype=torch.float64, generator=g)
    exponents = torch.randint(-60, 1, (rows, k), generator=g)
    mantissas = 1 + 2.0**-22 * torch.randint(2**22, (rows, k), generator=g) + 2.0**-23
    zeros = torch.rand(rows, k, generator=g) < 0.5
    kinds: list[Callable[[torch.Tensor, int], torch.Tensor]] = [
        lambda row, i: row,
        lambda row, i: torch.ldexp(row, exponents[i]),
        lambda row, i: mantissas[i] * row.sign(),
        lambda row, i: torch.where(zeros[i], 0 * row, torch.ldexp(row, exponents[i] // 2)),
        lambda row, i: 0 * row,
        lambda row, i: row.masked_fill(zeros[i], math.inf),
        lambda row, i: (row * 2.0**-130).clamp(-(2.0**-127), 2.0**-127),
        lambda row, i: row.clamp(-1, 1) * 2.0**-21,
        lambda row, i: row.sign() * torch.finfo(torch.float32).max,
        lambda row, i: (0 * row).masked_fill(zeros[i], -math.inf),
        lambda row, i: row.masked_fill(zeros[i], math.nan),
        lambda row, i: torch.ldexp(row, -70 - i + exponents[i] // 30),
    ]
    out = torch.stack([kinds[i % len(kinds)](row, i) for i, row in enumerate(x)])
    return out.float().to(PLACE)


@dataclass
class Side:
    """One operand and what it was split into, in float64: k along the columns."""

    values: torch.Tensor
    terms: tuple[torch.Tensor, ...]
    scales: torch.Tensor
    bias: int


def sides(A: torch.Tensor, B: torch.Tensor, terms: int, chunk: int) -> tuple[Side, Side]:
    (m, k), n = A.shape, B.shape[1]
    chunks, pitch = -(-k // chunk), -(-k // 8) * 8
    made = splitting.split_both(A, B, terms=terms, chunk=chunk)
    assert made.terms.dtype is torch.float16
    assert made.terms.shape == (terms * (m + n), pitch)
    assert made.terms.is_contiguous()
    assert made.terms.data_ptr() % 16 == 0
    assert made.scales.dtype is torch.float32
    parts = made.terms.double().cpu().split([m] * terms + [n] * terms)
    a_scales, b_scales = made.scales.double().cpu().split([chunks * m, chunks * n])
    a_bias, b_bias = splitting.SCALE_BIASES
    return (
        Side(A.double().cpu(), parts[:terms], a_scales.view(chunks, m), a_bias),
        Side(B.double().cpu().t(), parts[terms:], b_scales.view(chunks, n), b_bias),
    )


def assert_split(side: Side, chunk: int) -> None:
    """The terms are as near as promised, and scales and flags say what they should."""
    count, k = len(side.terms), side.values.shape[1]
    assert not any(part[:, k:].any() for part in side.terms), "no zeros up to the pitch"
    for c, x in enumerate(side.values.split(chunk, 1)):
        hi, *rest = (part[:, c * chunk : c * chunk + x.shape[1]] for part in side.terms)
        finite = x.isfinite()
        largest = torch.where(finite, x.abs(), 0.0).amax(1)
        exponent = (torch.frexp(largest).exponent - 1).clamp(min=LOWEST)
        scaled = torch.ldexp(x, 14 - exponent[:, None])
        held = hi + (2.0**-11 * rest[0] if rest else 0.0)
        # The lo of an element that underflowed is rounded twice, hence a sliver above 2^-36.
        relative, absolute = (2.0**-11, 2.0**-24) if count == 1 else (2.0**-23, 1.001 * 2.0**-36)
        error = (scaled - held).abs()
        assert (error <= (relative * scaled.abs()).clamp(min=absolute))[finite].all()
        in_full = finite & (scaled.abs() >= (2.0**-14 if count == 1 else 2.0**-13))
        assert (error <= relative * scaled.abs())[in_full].all()
        assert torch.equal((hi != 0)[finite], (x != 0)[finite]), "hi is 0 for zeros alone"
        assert torch.equal(hi.sign()[finite], x.sign()[finite])
        if rest:
            assert not hi[~finite].any(), "inf and NaN travel in lo"
        carrier = rest[0] if rest else hi
        assert torch.equal(carrier[~finite].nan_to_num(7.0), x[~finite].nan_to_num(7.0))

        power = torch.ldexp(torch.ones_like(largest), exponent)
        tiny = finite & (x != 0) & (x.abs() < 2.0 ** (count - 29) * power[:, None])
        odd = tiny.any(1) | (~finite).any(1) | ((largest > 0) & (exponent < LOWEST_SAFE))
        scale = side.scales[c]
        assert torch.equal(scale < 0, odd), "flags"
        expected = 2.0**side.bias * power
        assert torch.equal(scale.abs()[largest > 0], expected[largest > 0])
        assert not scale[(largest == 0) & ~odd].any()


def split_and_check(A: torch.Tensor, B: torch.Tensor, terms: int, chunk: int) -> None:
    before = A.clone(), B.clone()
    for side in sides(A, B, terms, chunk):
        assert_split(side, chunk)
    for x, y in zip((A, B), before, strict=True):
        assert torch.equal(x.nan_to_num(7.0), y.nan_to_num(7.0)), "an operand was written"


@pytest.mark.parametrize("terms", [1, 2])
@pytest.mark.parametrize(
    ("a", "b"), [*zip(OPERANDS, [*list(OPERANDS)[1:], "row"], strict=True), ("col", "row")]
)
def test_terms_and_scales_hold_operands_of_every_layout(a: str, b: str, terms: int) -> None:
    A, B = OPERANDS[a](assorted(41, 150)), OPERANDS[b](assorted(36, 150).t().contiguous())
    split_and_check(A, B, terms, 64)


@pytest.mark.parametrize("terms", [1, 2])
@pytest.mark.parametrize(("a", "b"), [("row", "row"), ("col", "col"), ("row", "strided")])
def test_large_operands_that_lie_differently_are_split_one_after_the_other(
    a: str, b: str, terms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches: list[int] = []
    launch = splitting.launch
    monkeypatch.setattr(splitting, "_APART", 0)
    splitting._cut.cache_clear()
    monkeypatch.setattr(splitting, "launch", lambda *x, **y: (launches.append(1), launch(*x, **y)))
    for side in sides(OPERANDS[a](assorted(36, 200)), OPERANDS[b](assorted(200, 28)), terms, 64):
        assert_split(side, 64)
    assert len(launches) == 2
    splitting._cut.cache_clear()


@pytest.mark.parametrize("chunk", [64, 128, 256, 512, 1024, 2048])
@pytest.mark.parametrize("terms", [1, 2])
def test_one_launch_splits_operands_that_lie_differently(chunk: int, terms: int) -> None:
    A, B = OPERANDS["row"](assorted(13, chunk + 70)), OPERANDS["row"](assorted(chunk + 70, 12))
    for side in sides(A, B, terms, chunk):
        assert_split(side, chunk)


def test_one_launch_is_for_few_elements() -> None:
    def launches(side: int, k: int) -> int:
        strides = ((k, 1), (side, 1))
        return len(splitting._cut(side, side, k, 1, 1, *strides, True, True, 2, 512)[2])

    assert launches(2048, 2048) == launches(512, 2048) == 1
    assert launches(2048, 2049) == launches(3072, 3072) == 2


@pytest.mark.parametrize("terms", [1, 2])
@pytest.mark.parametrize("layout", ["row", "col"])
@pytest.mark.parametrize("value", [math.inf, math.nan, 2.0**-60, 2.0**-140, 0.0])
def test_a_stretch_is_split_alike_whatever_is_split_with_it(
    value: float, layout: str, terms: int
) -> None:
    """A program takes a longer way where one of its stretches is odd."""
    A, B = (x.to(PLACE) for x in ordinary(40, 36, 150))
    alone, _ = sides(OPERANDS[layout](A), B, terms, 64)
    assert_split(alone, 64)
    odd = A.clone()
    odd[9, 70] = value
    beside, _ = sides(OPERANDS[layout](odd), B, terms, 64)
    assert_split(beside, 64)
    others = torch.arange(40) != 9
    assert torch.equal(beside.scales[:, others], alone.scales[:, others])
    for part, expected in zip(beside.terms, alone.terms, strict=True):
        assert torch.equal(part[others], expected[others])


@pytest.mark.parametrize("terms", [1, 2])
@pytest.mark.parametrize("chunk", [64, 128, 256, 512, 1024, 2048])
def test_terms_and_scales_hold_stretches_of_every_length(chunk: int, terms: int) -> None:
    A, B = assorted(13, chunk + 70), assorted(12, chunk + 70)
    split_and_check(A, B.t(), terms, chunk)
    split_and_check(A.t().contiguous().t(), B.t().contiguous(), terms, chunk)  # rows contiguous


@pytest.mark.parametrize(
    ("m", "n", "k"), [(1, 1, 1), (1, 40, 63), (70, 2, 64), (33, 65, 65), (4, 8, 12), (64, 64, 128)]
)
def test_terms_and_scales_hold_operands_of_every_size(m: int, n: int, k: int) -> None:
    for layout in ("row", "col"):
        A, B = LAYOUTS[layout](assorted(m, k)), LAYOUTS[layout](assorted(n, k).t())
        split_and_check(A, B, 2, 64)


@pytest.mark.parametrize("terms", [1, 2])
def test_a_stretch_is_flagged_exactly_where_its_terms_may_not_hold_it(terms: int) -> None:
    below = 2.0 ** -(29 - terms)
    lowest = 2.0**LOWEST_SAFE
    cases = [
        (1.0, below, False),
        (1.0, -below, False),
        (1.0, math.nextafter(below, 1), False),
        (1.0, 0.999 * below, True),
        (-1.999, 0.999 * below, True),
        (1.999, below, False),
        (2.0**100, 2.0**100 * below, False),
        (2.0**100, 1.0, True),
        (1.0, 0.0, False),
        (1.0, -0.0, False),
        (0.0, -0.0, False),
        (lowest, lowest, False),
        (lowest, 0.0, False),
        (0.999 * lowest, lowest / 2, True),
        (2.0**-149, 0.0, True),
        (2.0**-127, 2.0**-149, True),
        (1.0, math.inf, True),
        (0.0, -math.inf, True),
        (math.nan, 1.0, True),
        (torch.finfo(torch.float32).max, 2.0**120, False),
    ]
    values = torch.zeros(len(cases), 70)
    for row, (one, other, _) in zip(values, cases, strict=True):
        row[3], row[40], row[65] = one, other, other  # the second stretch holds but one of them
    A, B = values.to(PLACE), values.to(PLACE).t()
    for side in sides(A, B, terms, 64):
        assert (side.scales[0] < 0).tolist() == [flag for *_, flag in cases]
        assert_split(side, 64)


# ------------------------------------------------------------------------------------ products


def product(
    candidate: Candidate,
    A: torch.Tensor,
    B: torch.Tensor,
    out: torch.Tensor,
    *,
    gain: float = 0.0,
    guard: bool = True,
) -> None:
    """A·B by the kernels alone, as the strategy's parameters have it."""
    p = candidate.kwargs
    terms, chunk = (2 if p["method"] == "fp16x3" else 1), p["chunk"]
    bm, bn = p["bm"], p["bn"]
    if bm < 64:
        A, B, out, bm, bn = B.t(), A.t(), out.t(), bn, bm
    tiling = from_split.Tiling(bm, bn, p["bk"], p["warps"], p["stages"], p["group"])
    options = {
        "terms": terms, "chunk": chunk, "slices": p["slices"], "tiling": tiling, "gain": gain,
        "guard": guard,
    }  # fmt: skip
    if p["form"] == "split":
        split = splitting.split_both(A, B, terms=terms, chunk=chunk)
        from_split.split_product(1.0, A, B, 0.0, None, out, split, **options)
    else:
        fused.fused_product(1.0, A, B, 0.0, None, out, **options)


def bound_of(candidate: Candidate, A: torch.Tensor, B: torch.Tensor) -> ErrorBound:
    problem = contiguous_problem(A.shape[0], B.shape[1], A.shape[1], torch.float32)
    return STRATEGY.bound(problem, candidate.kwargs)


def nowhere(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """A result in which nothing was written."""
    return torch.full((A.shape[0], B.shape[1]), math.nan, device=PLACE)


def integers(*shape: int) -> torch.Tensor:
    """Numbers that one fp16 term holds, and whose sums are exact in float32."""
    return torch.randint(1, 8, shape, generator=seeded("integers", shape)).float().to(PLACE)


@pytest.mark.parametrize("group", [1, 2, 3, 8])
@pytest.mark.parametrize("form", FORMS)
def test_every_tile_is_computed_whatever_their_order(form: str, group: int) -> None:
    A, B = integers(200, 40), integers(40, 132)
    candidate = emulated(form, "fp16x3", group=group)
    out = nowhere(A, B)
    product(candidate, A, B, out)
    assert torch.equal(out, A @ B)


@pytest.mark.parametrize(
    "candidate",
    [
        emulated("split", "fp16x3", 128, 64, 64, chunk=128),
        emulated("split", "fp16", 64, 128, 32, chunk=2048),
        emulated("split", "fp16x3", 64, 64, 64, chunk=64, slices=3),
        emulated("fused", "fp16x3", 128, 64, 32, chunk=512),
        emulated("fused", "fp16x3", 64, 16, 64, chunk=64, slices=3),
        emulated("fused", "fp16", 64, 64, 64, chunk=64),
    ],
    ids=str,
)
def test_products_of_ragged_sizes_keep_the_bound(candidate: Candidate) -> None:
    for m, n, k in ((4, 4, 4), (68, 132, 64), (132, 20, 260), (60, 64, 124)):
        A, B = normal(m, k), normal(k, n)
        out = nowhere(A, B)
        product(candidate, A, B, out)
        Truth(1.0, A.cpu(), B.cpu(), 0.0, None).check(out.cpu(), bound_of(candidate, A, B), True)


@pytest.mark.parametrize(
    ("form", "k", "bk", "chunk", "slices"),
    [
        ("split", 64, 32, 64, 1),
        ("split", 200, 32, 64, 1),
        ("split", 200, 64, 128, 1),
        ("split", 40, 64, 256, 1),
        ("split", 200, 32, 64, 2),
        ("split", 200, 64, 64, 3),
        ("split", 36, 32, 64, 5),
        ("fused", 64, 32, 64, 1),
        ("fused", 200, 32, 64, 1),
        ("fused", 200, 64, 2048, 1),
        ("fused", 200, 32, 64, 2),
        ("fused", 200, 64, 64, 3),
        ("fused", 36, 32, 64, 5),
    ],
)
@pytest.mark.parametrize("terms", [1, 2])
def test_a_partial_sum_is_corrected_by_its_blocks_of_k_and_then_promoted(
    form: str, k: int, bk: int, chunk: int, slices: int, terms: int
) -> None:
    """The correction shows how k was cut: it grows with the blocks that one accumulator took."""
    A, B, gain = integers(8, k), integers(k, 12), 2.0**-5
    candidate = emulated(form, METHODS[terms], bk=bk, chunk=chunk, slices=slices)
    out = nowhere(A, B)
    product(candidate, A, B, out, gain=gain)
    unit = chunk if form == "split" else bk
    slice_k = ceil_div(ceil_div(k, slices), unit) * unit
    expected = torch.zeros(8, 12, dtype=torch.float64, device=PLACE)
    for first in range(0, k, slice_k):
        last = min(first + slice_k, k)
        for at in range(first, last, chunk):
            end = min(at + chunk, last)
            part = A[:, at:end].double() @ B[at:end].double()
            expected += part * (1 + gain * ceil_div(end - at, bk))
    torch.testing.assert_close(out.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_the_correction_for_truncation_stays_within_the_bound(form: str) -> None:
    """Its size on Hopper, on hardware that does not truncate."""
    candidate = emulated(form, "fp16x3", chunk=64)
    A, B = integers(8, 200), integers(200, 12)
    gain = (0.28 if form == "split" else 0.76) * 2 * 2.0**-24
    out = nowhere(A, B)
    product(candidate, A, B, out, gain=gain)
    Truth(1.0, A.cpu(), B.cpu(), 0.0, None).check(out.cpu(), bound_of(candidate, A, B))


@pytest.mark.parametrize("candidate", EMULATED, ids=str)
def test_writing_a_result_is_told_to_autograd(candidate: Candidate) -> None:
    A, B = normal(20, 40), normal(40, 24)
    out = nowhere(A, B)
    before = out._version
    product(candidate, A, B, out)
    assert out._version > before
    with torch.inference_mode():
        product(candidate, A, B, nowhere(A, B))  # keeps no version: nothing to tell, no error


@pytest.mark.parametrize("slices", [1, 2, 3, 33, 70])
def test_slices_are_added_and_combined_with_c(slices: int) -> None:
    m, n = 7, 45
    parts = normal(slices, m, n)
    for c, out in (
        ("none", "row"),
        ("row", "col"),
        ("strided", "block"),
        ("out", "col"),
        ("bias", "row"),
    ):
        values = normal(m, n) * 3
        target = LAYOUTS[out](torch.full_like(values, math.nan))
        C = None
        if c == "out":
            C = target.copy_(values)
        elif c != "none":
            C = values[:1].expand(m, n) if c == "bias" else LAYOUTS[c](values)
        exact = -1.5 * parts.double().sum(0)
        slack = (slices + 4) * 2.0**-24 * 1.5 * parts.double().abs().sum(0)
        if C is not None:
            exact = exact + 0.5 * C.double()
            slack = slack + 4 * 2.0**-24 * C.double().abs()
        whole = target if target._base is None else target._base
        around = int(whole.isnan().sum()) - (0 if c == "out" else m * n)
        reduce_slices(-1.5, parts, 0.5, C, target)
        assert ((target.double() - exact).abs() <= slack).all()
        assert int(whole.isnan().sum()) == around, "memory around out changed"


@pytest.mark.parametrize("candidate", EMULATED, ids=str)
def test_the_workspace_declared_is_what_the_kernels_take(
    candidate: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    A, B = normal(20, 148), normal(148, 24)
    out, taken = nowhere(A, B), []
    real = torch.empty

    def empty(*args: Any, **kwargs: Any) -> torch.Tensor:
        taken.append(real(*args, **kwargs))
        return taken[-1]

    monkeypatch.setattr("autogemm.kernels.replay._empty", empty)
    product(candidate, A, B, out)
    problem = contiguous_problem(20, 24, 148, torch.float32)
    assert sum(x.nbytes for x in taken) == STRATEGY.workspace_bytes(problem, candidate.kwargs)


def test_slices_are_added_in_one_order_always() -> None:
    parts = normal(40, 9, 70)
    first, again = (torch.empty(9, 70, device=PLACE) for _ in range(2))
    reduce_slices(1.0, parts, 0.0, None, first)
    reduce_slices(1.0, parts, 0.0, None, again)
    assert torch.equal(first, again)


# ---------------------------------------------------------------------------------- the guard


@dataclass
class Repairs:
    """How many tiles were weighed, and how many computed again in IEEE arithmetic."""

    weighed: int = 0
    again: int = 0

    @property
    def both(self) -> tuple[int, int]:
        return self.weighed, self.again


@pytest.fixture
def repairs(monkeypatch: pytest.MonkeyPatch) -> Repairs | None:
    """Counts what the kernels do; None on a GPU, whose kernels cannot be watched."""
    if ON_GPU:
        return None
    counts = Repairs()

    def counted(real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            setattr(counts, name, getattr(counts, name) + 1)
            return real(*args)

        return call

    for module in (from_split, fused):
        weigh = "_is_too_light" if module is from_split else "_weight"
        monkeypatch.setattr(module, weigh, counted(getattr(module, weigh), "weighed"))
    for module, name in ((from_split, "ieee_tile"), (settle, "ieee_tile"), (settle, "_store_line")):
        monkeypatch.setattr(module, name, counted(getattr(module, name), "again"))
    return counts


TINY = 2.0**-40
"""Far below what terms hold beside 1."""


def ordinary(m: int = 20, n: int = 24, k: int = 72) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers from 1 to 2: no sum of them is small."""
    g = seeded("ordinary", m, n, k)
    return 1 + torch.rand(m, k, generator=g), 1 + torch.rand(k, n, generator=g)


def with_a_tiny_element() -> tuple[torch.Tensor, torch.Tensor]:
    A, B = ordinary()
    A[3, 5] = TINY
    return A, B


def that_cancel(leading: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Integers whose products sum to exactly 0, and a tiny element; ``leading`` zeros first."""
    x, y = integers(20, 36).cpu(), integers(36, 24).cpu()
    x[3, 5] = TINY
    zeros = torch.zeros(20, leading), torch.zeros(leading, 24)
    return torch.cat([zeros[0], x, x], 1), torch.cat([zeros[1], y, -y], 0)


def late(A: torch.Tensor, B: torch.Tensor, leading: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Behind blocks of zeros, from which nothing can be learnt."""
    return (
        torch.cat([torch.zeros(len(A), leading), A], 1),
        torch.cat([torch.zeros(leading, B.shape[1]), B], 0),
    )


def with_a_large_chunk_that_meets_zeros() -> tuple[torch.Tensor, torch.Tensor]:
    """Beside the scales of the first chunk the last, whose sums cancel, weighs nothing."""
    x, y = integers(20, 32).cpu() * 2.0**-10, integers(32, 24).cpu()
    x[3, 5] = 2.0**-10 * TINY
    A, B = late(x, y, 512)
    A[:, :64], B[:64] = 2.0**20, 0
    return torch.cat([A, x], 1), torch.cat([B, -y], 0)


def uncertified(below: float = TINY, k: int = 72) -> tuple[torch.Tensor, torch.Tensor]:
    """What is large meets zeros: the result is made of what terms do not hold."""
    A, B = ordinary(k=k)
    A[3, 1:] *= below
    B[0] = 0
    return A, B


def with_an_outlier() -> tuple[torch.Tensor, torch.Tensor]:
    A, B = ordinary()
    A[3, 70] = 2.0**8
    return A, B


def with_an_outlier_for_nothing() -> tuple[torch.Tensor, torch.Tensor]:
    """Scales that hold the outlier hold nothing else of its row, and it is multiplied by zeros."""
    A, B = ordinary()
    A[3, 70], B[70] = 2.0**30, 0
    return A, B


def with_zeros_opposite() -> tuple[torch.Tensor, torch.Tensor]:
    """All products with a row have a factor 0, although its elements are far apart."""
    A, B = ordinary()
    A[3], A[3, :2] = 0, torch.tensor([1.0, TINY])
    B[:2] = 0
    return A, B


def with_large_elements_that_meet_zeros() -> tuple[torch.Tensor, torch.Tensor]:
    """What terms make of the other elements overflows, although the result does not."""
    A, B = ordinary()
    A[:, 0], B[0] = 0, 2.0**70
    return 2.0**110 * A, B


def with_large_elements_that_meet_zeros_both_ways() -> tuple[torch.Tensor, torch.Tensor]:
    """The same in two chunks of 64, of opposite signs: infinite sums that cancel to NaN."""
    A, B = torch.ones(20, 128), torch.full((128, 24), 2.0**-6)
    A[0], B[:, 0] = 0, 0
    for at, sign in ((0, 1.0), (64, -1.5)):
        A[0, at : at + 2] = torch.tensor([2.0**127, 2.0**-20])
        B[at + 1, 0] = sign * 2.0**120
    return A, B


def that_grow() -> tuple[torch.Tensor, torch.Tensor]:
    A, B = ordinary()
    A[:, 64:] *= 2.0**20
    return A, B


def where_infinities_meet() -> tuple[torch.Tensor, torch.Tensor]:
    A, B = ordinary()
    A[3, 40], B[40, 7] = math.inf, -math.inf
    return A, B


Make = Callable[[], tuple[torch.Tensor, torch.Tensor]]

# Form, name, terms (None: one and two), operands of one tile, how often it is weighed and
# computed again, and whether the result would be wrong without the guard.
GUARDED: list[tuple[str, str, int | None, Make, tuple[int, int], bool]] = [
    ("split", "nothing_is_flagged", None, ordinary, (0, 0), False),
    ("split", "the_total_certifies", None, with_a_tiny_element, (0, 0), False),
    ("split", "the_sum_of_moduli_certifies", None, that_cancel, (1, 0), False),
    ("split", "nothing_certifies", None, uncertified, (1, 1), True),
    ("split", "the_total_is_a_little_too_small", 2, lambda: uncertified(2.0**-28), (1, 1), False),
    ("split", "the_total_just_suffices", 2, lambda: uncertified(2.0**-28, 200), (0, 0), False),
    ("split", "a_late_chunk_is_flagged", None, lambda: late(*uncertified(), 576), (1, 1), True),
    ("split", "chunks_differ", None, with_a_large_chunk_that_meets_zeros, (1, 1), False),
    ("split", "a_sum_of_zeros_is_exact", None, with_zeros_opposite, (1, 0), False),
    ("split", "infinities_meet", 2, where_infinities_meet, (0, 1), True),
    ("split", "infinities_meet", 1, where_infinities_meet, (0, 0), False),
    ("split", "what_was_lost_overflows", None, with_large_elements_that_meet_zeros, (1, 1), True),
    (
        "split", "what_was_lost_cancels_to_NaN", 1, with_large_elements_that_meet_zeros_both_ways,
        (0, 1), True,
    ),
    ("fused", "the_first_block_certifies", None, with_a_tiny_element, (0, 0), False),
    ("fused", "the_total_certifies", None, lambda: late(*ordinary()), (0, 0), False),
    ("fused", "the_sum_of_moduli_certifies", None, lambda: that_cancel(64), (1, 0), False),
    ("fused", "nothing_certifies", None, uncertified, (1, 1), True),
    (
        "fused",
        "the_total_is_a_little_too_small",
        None,
        lambda: uncertified(2.0**-11),
        (1, 1),
        False,
    ),
    ("fused", "the_total_just_suffices", None, lambda: uncertified(2.0**-10), (0, 0), False),
    ("fused", "a_sum_of_zeros_is_exact", None, with_zeros_opposite, (1, 0), False),
    ("fused", "an_element_outgrows_fp16", None, with_an_outlier, (0, 1), False),
    ("fused", "what_outgrows_fp16_meets_zeros", None, with_an_outlier_for_nothing, (0, 1), True),
    ("fused", "all_outgrow_fp16", None, that_grow, (0, 0), False),
    ("fused", "infinities_meet", 2, where_infinities_meet, (0, 1), True),
    ("fused", "infinities_meet", 1, where_infinities_meet, (0, 1), False),
]


@pytest.mark.parametrize(
    ("form", "terms", "make", "expected", "needed"),
    [
        pytest.param(form, terms, make, expected, needed, id=f"{form}-{METHODS[terms]}-{name}")
        for form, name, only, make, expected, needed in GUARDED
        for terms in (METHODS if only is None else (only,))
    ],
)
def test_a_tile_is_certified_or_computed_again(
    form: str,
    terms: int,
    make: Make,
    expected: tuple[int, int],
    needed: bool,
    repairs: Repairs | None,
) -> None:
    A, B = make()
    truth = Truth(1.0, A, B, 0.0, None)
    A, B = A.to(PLACE), B.to(PLACE)
    candidate = emulated(form, METHODS[terms])
    if form == "split":
        flagged = any((side.scales < 0).any() for side in sides(A, B, terms, 64))
        assert flagged == (make is not ordinary)
    out = nowhere(A, B)
    product(candidate, A, B, out)
    truth.check(out.cpu(), bound_of(candidate, A, B))
    assert repairs is None or repairs.both == expected
    product(candidate, A, B, out, guard=False)
    assert repairs is None or repairs.both == expected
    if needed:
        with pytest.raises(AssertionError, match="element"):
            truth.check(out.cpu(), bound_of(candidate, A, B))
    else:
        truth.check(out.cpu(), bound_of(candidate, A, B))


@pytest.mark.parametrize("value", [1.0, math.inf])
@pytest.mark.parametrize("layouts", [*itertools.product(("row", "col"), repeat=2)])
@pytest.mark.parametrize(("bm", "bn"), [(64, 64), (64, 128), (128, 64), (16, 64), (64, 16)])
def test_a_line_of_a_fused_tile_of_any_size_is_computed_again(
    bm: int, bn: int, layouts: tuple[str, str], value: float, repairs: Repairs | None
) -> None:
    """At once if it holds all that is wrong in the tile. Otherwise lower scales come first."""
    A, B = ordinary(bm + 12, bn + 8, 136)
    A[3, 70] = B[100, bn + 1] = 2.0**5
    A[bm + 2, 5] = value
    wrong = torch.zeros(bm + 12, bn + 8)
    wrong[3] = wrong[:, bn + 1] = 1
    if value == math.inf:
        wrong[bm + 2] = math.inf
    again = 0
    for tile in (x for rows in wrong.split(bm) for x in rows.split(bn, 1)):
        in_one_line = 1 in (tile.any(0).count_nonzero(), tile.any(1).count_nonzero())
        again += bool(tile.any()) and (in_one_line or not tile.isfinite().all())
    truth = Truth(1.0, A, B, 0.0, None)
    A, B = (LAYOUTS[how](x.to(PLACE)) for how, x in zip(layouts, (A, B), strict=True))
    out = nowhere(A, B)
    candidate = emulated("fused", "fp16x3", bm, bn)
    product(candidate, A, B, out)
    truth.check(out.cpu(), bound_of(candidate, A, B))
    assert repairs is None or repairs.again == again


@pytest.mark.parametrize("form", FORMS)
def test_only_the_tiles_that_need_it_are_computed_again(form: str, repairs: Repairs | None) -> None:
    A, B = ordinary(132, 68, 72)
    A[70, 1:] *= TINY  # in the second of three rows of tiles
    B[0] = 0
    truth = Truth(1.0, A, B, 0.0, None)
    A, B = A.to(PLACE), B.to(PLACE)
    out = nowhere(A, B)
    product(emulated(form, "fp16x3"), A, B, out)
    truth.check(out.cpu(), bound_of(emulated(form, "fp16x3"), A, B))
    assert repairs is None or repairs.both == (2, 2)


@pytest.mark.parametrize("form", FORMS)
def test_only_the_slice_that_needs_it_is_computed_again(
    form: str, repairs: Repairs | None
) -> None:
    A, B = ordinary(20, 24, 128)
    A[3, 65:] *= TINY
    B[64] = 0
    truth = Truth(1.0, A, B, 0.0, None)
    A, B = A.to(PLACE), B.to(PLACE)
    candidate = emulated(form, "fp16x3", slices=2)
    out = nowhere(A, B)
    product(candidate, A, B, out)
    truth.check(out.cpu(), bound_of(candidate, A, B))
    assert repairs is None or repairs.both == (1, 1)


@pytest.mark.parametrize("candidate", EMULATED, ids=str)
def test_rows_and_columns_beyond_the_operands_cause_no_repair(
    candidate: Candidate, repairs: Repairs | None
) -> None:
    """What a ragged tile holds besides belongs to other rows, or to nothing."""
    A, B = ordinary(4, 4, 72)
    A, B = A.to(PLACE), B.to(PLACE)
    product(candidate, A, B, nowhere(A, B))
    assert repairs is None or repairs.both == (0, 0)


@pytest.mark.parametrize("terms", METHODS)
def test_what_lies_beyond_the_operands_is_not_weighed(
    terms: int, repairs: Repairs | None
) -> None:
    A, B = that_cancel()
    B[4, 7] = TINY
    A[4], A[4, 0] = 0, 1 + 2.0**-20  # lower terms, which follow A's last row
    A, B = A.to(PLACE), B.to(PLACE)
    product(emulated("split", METHODS[terms]), A, B, nowhere(A, B))
    assert repairs is None or repairs.both == (1, 0)


# ----------------------------------------------------------------------- zeros, inf, NaN, edges


@pytest.mark.parametrize("candidate", EMULATED, ids=str)
def test_products_with_a_factor_0_sum_to_exactly_0_beside_tiny_elements(
    candidate: Candidate,
) -> None:
    for name in ("complementary_zeros", "block_diagonal_with_tiny_elements"):
        A, B, _ = HOSTILE[name](20, 28, 136, torch.float32, seeded(name))
        nothing = (A != 0).double() @ (B != 0).double() == 0
        assert nothing.sum() > 200
        A, B = A.to(PLACE), B.to(PLACE)
        out = nowhere(A, B)
        product(candidate, A, B, out)
        assert not out.cpu()[nothing].any()
        if name != "complementary_zeros":
            assert out.cpu()[~nothing].all()


PARTNERS = (1.0, -1.0, 0.0, -0.0, 2.0**-70, -(2.0**-70), 2.0**-149, -(2.0**-149))


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, -0.0])
@pytest.mark.parametrize("candidate", EMULATED, ids=str)
def test_one_special_element_comes_out_as_native_arithmetic_has_it(
    candidate: Candidate, value: float
) -> None:
    """In any block of k, against ordinary numbers, zeros of both signs, and what underflows."""
    for k_at in (0, 63, 100):
        for in_a in (True, False):
            outer, inner = normal(20, 136).cpu(), normal(136, 24).cpu()
            outer[5, k_at] = value
            inner[k_at, : len(PARTNERS)] = torch.tensor(PARTNERS)
            A, B = (outer, inner) if in_a else (inner.t().contiguous(), outer.t().contiguous())
            native = A @ B
            A, B = A.to(PLACE), B.to(PLACE)
            out = nowhere(A, B)
            product(candidate, A, B, out)
            assert torch.equal(out.cpu().isnan(), native.isnan())
            assert torch.equal(out.cpu() == math.inf, native == math.inf)
            assert torch.equal(out.cpu() == -math.inf, native == -math.inf)
            if not math.isfinite(value):
                assert native.isnan().any()
                assert native.isfinite().any()


@pytest.mark.parametrize("candidate", EMULATED, ids=str)
def test_rows_of_negative_zeros_give_zeros(candidate: Candidate) -> None:
    A, B = normal(20, 136), normal(136, 24)
    A[4], B[:, 7] = -0.0, -0.0
    out = nowhere(A, B)
    product(candidate, A, B, out)
    assert not out[4].any()
    assert not out[:, 7].any()
    assert out.cpu()[5, 6] != 0


def test_many_warps_and_the_registers_they_leave_change_no_result() -> None:
    A, B = normal(20, 136), normal(136, 24)
    truth = Truth(1.0, A.cpu(), B.cpu(), 0.0, None)
    candidate = Candidate.of("emulated_fp32", **{**EMULATED[3].kwargs, "warps": 8, "bm": 128})
    assert serve(candidate, 1.0, A, B, 0.0, None, "new", truth)


# ------------------------------------------------------------------------- sums, as hardware adds


@pytest.fixture
def one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """IEEE products added one by one, as a GPU's multiply-add units do."""
    if ON_GPU:
        return
    interpreter = importlib.import_module("triton.runtime.interpreter")
    real = interpreter.InterpreterBuilder.create_dot

    def dot(builder: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        if a.data.dtype != np.float32:
            return real(builder, a, b, d, *rest)
        total = d.data.astype(np.float64)
        for x, y in zip(a.data.T.astype(np.float64), b.data.astype(np.float64), strict=True):
            total = (total + np.outer(x, y)).astype(np.float32).astype(np.float64)
        return interpreter.TensorHandle(total.astype(np.float32), d.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)


@pytest.mark.usefixtures("one_at_a_time")
@pytest.mark.parametrize("form", FORMS)
def test_a_tile_computed_again_keeps_a_bound_that_is_smaller_than_k(form: str) -> None:
    """Of ordinary arithmetic, rounding down at every step of the second half of a sum."""
    k = 4096
    A, B = torch.full((4, k), 1 + 2.0**-13 - 2.0**-23), torch.ones(k, 4)
    A[3, 1:] *= TINY  # the rest of the tile is computed again for this row's sake
    A[3, 0], B[0, 3] = 2.0**40, 0
    truth = Truth(1.0, A, B, 0.0, None)
    A, B = A.to(PLACE), B.to(PLACE)
    candidate = emulated(form, "fp16x3", bk=64, chunk=128 if form == "split" else 64)
    assert bound_of(candidate, A, B).total < k / 4
    out = nowhere(A, B)
    product(candidate, A, B, out)
    truth.check(out.cpu(), bound_of(candidate, A, B))


def as_hopper_adds(a: np.ndarray, b: np.ndarray, start: np.ndarray) -> np.ndarray:
    """start + a·b as a model of its tensor cores has it (docs/accuracy.md, Tensor cores truncate).

    16 exact products and the sum so far are aligned to the largest exponent, cut two bits below
    float32's last place, added, and cut to 24 bits.
    """
    a, b, total = (x.astype(np.float64) for x in (a, b, start))
    for at in range(0, a.shape[1], 16):
        products = a[:, at : at + 16].T[:, :, None] * b[at : at + 16, None]
        addends = np.concatenate([products, total[None]])
        last = np.ldexp(1.0, np.frexp(np.abs(addends).max(0))[1] - 26)
        total = (np.trunc(addends / last) * last).sum(0)
        last = np.ldexp(1.0, np.frexp(total)[1] - 24)
        total = np.trunc(total / last) * last
    return total.astype(np.float32)


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """fp16 products that truncate; a GPU does by itself what it does."""
    if ON_GPU:
        return
    interpreter = importlib.import_module("triton.runtime.interpreter")
    real = interpreter.InterpreterBuilder.create_dot

    def dot(builder: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        if a.data.dtype != np.float16:
            return real(builder, a, b, d, *rest)
        return interpreter.TensorHandle(as_hopper_adds(a.data, b.data, d.data), d.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)


def test_the_model_truncates() -> None:
    """Its own figures: two bits more than float32 has survive beside the largest addend."""
    one = np.array([[1.0]], dtype=np.float32)
    for below, kept in ((23, 1.0), (24, 0.0), (25, 0.0)):
        a = np.full((1, 2), 2.0 ** -(below - below // 2), dtype=np.float16)
        b = np.array([[2.0 ** -(below // 2)], [0.0]], dtype=np.float16)
        assert as_hopper_adds(a, b, one) == 1 + kept * 2.0**-below
    # Four quarters of a unit add up; as eighths they are gone before they meet.
    for below, count, kept in ((25, 4, 1.0), (26, 8, 0.0)):
        a = np.full((1, count), 2.0**-13, dtype=np.float16)
        b = np.full((count, 1), 2.0 ** -(below - 13), dtype=np.float16)
        assert as_hopper_adds(a, b, one) == 1 + kept * 2.0**-23


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize(
    "name", ["uniform", "constant", "cancellation", "ones_below_two_float16", "exponents_8"]
)
@pytest.mark.parametrize("form", FORMS)
def test_the_bound_holds_where_sums_are_truncated(form: str, name: str) -> None:
    A, B, C = HOSTILE[name](16, 16, 272, torch.float32, seeded("truncated", name))
    truth = Truth(1.0, A, B, 0.5, C)
    A, B, C = A.to(PLACE), B.to(PLACE), C.to(PLACE)
    for method, chunk in (("fp16x3", 64), ("fp16x3", 256), ("fp16", 256)):
        assert serve(emulated(form, method, chunk=chunk), 1.0, A, B, 0.5, C, "row", truth)
    if form == "fused":  # a block of k to a chunk: the bound is less than half
        for bk in (32, 64):
            candidate = emulated(form, "fp16x3", bk=bk, chunk=bk)
            assert serve(candidate, 1.0, A, B, 0.5, C, "row", truth)


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize(("form", "bk"), [("split", 32), ("fused", 32), ("fused", 64)])
def test_the_correction_halves_what_truncation_costs(form: str, bk: int) -> None:
    """The figures of the strategy for Hopper, on sums that are truncated as there."""
    if ON_GPU and here().capability != (9, 0):
        pytest.skip("the figures are Hopper's")
    A, B, _ = HOSTILE["uniform"](32, 32, 256, torch.float32, seeded(form))
    exact = A.double() @ B.double()
    problem = contiguous_problem(32, 32, 256, torch.float32)
    candidate = emulated(form, "fp16x3", bk=bk)
    errors = []
    for capability in ((9, 0), (9, 9)):
        run = STRATEGY.bind(problem, replace(here(), capability=capability), candidate.kwargs)
        result = run(1.0, A.to(PLACE), B.to(PLACE), 0.0, None, None)
        errors.append(float((result.cpu().double() - exact).norm() / exact.norm()))
    corrected, plain = errors
    assert corrected < 0.5 * plain


# ------------------------------------------------------------------------------ hostile operands


@functools.cache
def hostile(name: str, alpha: float, beta: float) -> tuple[tuple[torch.Tensor, ...], Truth]:
    operands = HOSTILE[name](20, 28, 136, torch.float32, seeded("emulated", name))
    return operands, Truth(alpha, operands[0], operands[1], beta, operands[2])


@pytest.mark.parametrize(
    "candidate", EMULATED, ids=lambda c: f"{c.kwargs['form']}-{c.kwargs['method']}"
)
@pytest.mark.parametrize("name", names_for(torch.float32))
def test_the_bound_holds_on_hostile_operands(name: str, candidate: Candidate) -> None:
    (A, B, C), truth = hostile(name, -0.75, 0.5)
    A, B, C = (x.to(PLACE, copy=True) for x in (A, B, C))
    assert serve(candidate, -0.75, A, B, 0.5, C, "C", truth)


ONE_TERM = emulated("split", "fp16", chunk=64)
SINGLE = [name for name in names_for(torch.float32) if name not in names_for(torch.float64)]
"""Made for the short terms that float32 may be split into."""


@pytest.mark.parametrize("name", SINGLE)
def test_the_bound_holds_on_hostile_operands_that_one_block_of_k_holds(name: str) -> None:
    A, B, _ = HOSTILE[name](24, 20, 28, torch.float32, seeded("one block", name))
    truth = Truth(1.0, A, B, 0.0, None)
    for candidate in (*EMULATED, ONE_TERM):
        assert serve(candidate, 1.0, A.to(PLACE), B.to(PLACE), 0.0, None, "col", truth)


# ------------------------------------------------------------------------- ends of the range


def pair(
    edge: int, k: int, a: dict[int, float], b: dict[int, float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """One row of A and one column of B that are 0 but for these places; the rest is ordinary."""
    A, B = normal(edge, k), normal(k, edge)
    A[0], B[:, 0] = 0.0, 0.0
    for at, value in a.items():
        A[0, at] = value
    for at, value in b.items():
        B[at, 0] = value
    return A, B


ENDS: dict[str, tuple[dict[int, float], dict[int, float]]] = {
    "the threshold underflows": ({3: 1.2345 * 2.0**-66}, {3: 1.777 * 2.0**-66}),
    "the result is all but nothing": ({3: 1.2345 * 2.0**-72}, {3: 1.777 * 2.0**-71}),
    "the weight underflows": (
        {0: 2.0**-84, 3: 1.3 * 2.0**-122}, {3: 1.7 * 2.0**89, 5: 1.5 * 2.0**127}
    ),
    "the weight overflows": (
        {**dict.fromkeys(range(64), 2.0**127), 64: 1.0, 65: 1.2345 * 2.0**-40},
        {**dict.fromkeys(range(64), 1.9 * 2.0**-84), 65: 1.3 * 2.0**120},
    ),
}  # fmt: skip


@pytest.mark.parametrize("terms", METHODS)
@pytest.mark.parametrize("edge", [4, 64], ids=["ragged", "whole"])
@pytest.mark.parametrize("name", ENDS)
def test_a_certificate_neither_overflows_nor_underflows(name: str, edge: int, terms: int) -> None:
    A, B = pair(edge, 132, *ENDS[name])
    split = splitting.split_both(A, B, terms=terms, chunk=64)
    out = A.new_empty(edge, edge)
    from_split.split_product(
        1.0, A, B, 0.0, None, out, split, terms=terms, chunk=64, slices=1,
        tiling=from_split.Tiling(64, 64, 64, 4, 2), gain=0.0,
    )  # fmt: skip
    exact = A[0].double() @ B[:, 0].double()
    weight = A[0].double().abs() @ B[:, 0].double().abs()
    rho = {2: 8.0, 1: 2.0**14}[terms]
    bound = 2.0**-24 * (exact.abs() + (rho + 132) * weight) + 134 * 2.0**-149
    assert (out[0, 0].double() - exact).abs() <= bound


@pytest.mark.parametrize("which", ["A", "B"])
def test_rows_a_million_elements_apart_are_read_as_they_lie(which: str) -> None:
    far = normal(4, 2**20)[:, :128]
    near = normal(4, 128)
    A, B = (far, near.t()) if which == "A" else (near, far.t())
    out = A.new_empty(4, 4)
    split = splitting.split_both(A, B, terms=2, chunk=64)
    from_split.split_product(
        1.0, A, B, 0.0, None, out, split, terms=2, chunk=64, slices=1,
        tiling=from_split.Tiling(64, 64, 64, 4, 2), gain=0.0,
    )  # fmt: skip
    assert torch.allclose(out.double(), A.double() @ B.double(), rtol=1e-5, atol=1e-5)
