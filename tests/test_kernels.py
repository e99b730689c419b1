"""The Triton kernels, and the GPU strategies built on them.

On a GPU they run as they are. Elsewhere Triton's interpreter runs them on CPU tensors, and
what only CUDA's library offers (a float32 result of 16-bit operands, TF32) is played by
stand-ins that treat the ends of the range as badly as any hardware may.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import itertools
import os
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from invented import GPU

from autogemm import problem as problems
from autogemm.device import Device, device_of
from autogemm.grading.hostile import HOSTILE, names_for, seeded
from autogemm.grading.oracle import Truth, Truths, truth_of
from autogemm.precision import ErrorBound
from autogemm.problem import Problem, problem_of, result_shape
from autogemm.strategies import BY_NAME, STRATEGIES, Candidate, addmm

ON_GPU = torch.cuda.is_available()
PLACE = torch.device("cuda" if ON_GPU else "cpu")

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)
if not ON_GPU:
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("Triton was imported before it was told to interpret", allow_module_level=True)
    os.environ["TRITON_INTERPRET"] = "1"  # read as Triton is imported

launching = importlib.import_module("autogemm.kernels.launch")
staging = importlib.import_module("autogemm.kernels.staging")
_unchecked = importlib.import_module("autogemm.kernels.operands")._unchecked
finishing = importlib.import_module("autogemm.kernels.finish")
axpby = importlib.import_module("autogemm.kernels.axpby").axpby


if not ON_GPU:  # seconds become milliseconds
    importlib.import_module("interpreting").prepare()

# The interpreter computes with numpy, which warns of every overflow.
pytestmark = pytest.mark.filterwarnings("ignore:::triton.runtime.interpreter")

BLOCK = staging.FLAG_BLOCK
TINY = 2.0**-126
LARGEST = torch.finfo(torch.float32).max

LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "row": lambda x: x.contiguous().clone(),
    "col": lambda x: x.mT.contiguous().clone().mT,
    "block": lambda x: _inside(x, 3, 1),
    "col block": lambda x: _inside(x.mT, 3, 1).mT,
    "strided": lambda x: _inside(x, 0, 2),
}


def _inside(x: torch.Tensor, border: int, step: int) -> torch.Tensor:
    """The values within a larger buffer of NaN."""
    *batch, rows, cols = x.shape
    shape = (*batch, rows + 2 * border, cols * step + 2 * border)
    buffer = torch.full(shape, torch.nan, dtype=x.dtype, device=x.device)
    return buffer[..., border : border + rows, border : border + cols * step : step].copy_(x)


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    values = torch.randn(*shape, dtype=torch.float64, generator=seeded("normal", *shape))
    return values.to(dtype).to(PLACE)


def assert_rounded(result: torch.Tensor, exact: torch.Tensor) -> None:
    """``result`` is ``exact`` rounded to its type; the interpreter cuts bfloat16 off instead."""
    if result.dtype is torch.bfloat16 and not ON_GPU:
        error = (result.double() - exact.double()).abs()
        assert (error <= torch.finfo(torch.bfloat16).eps * exact.double().abs() + 2.0**-133).all()
    else:
        assert torch.equal(result.nan_to_num(7.0), exact.to(result.dtype).nan_to_num(7.0))


# ----------------------------------------------------------------------------------- staging

CONVERSIONS = [
    (torch.float32, torch.float32),
    (torch.float32, torch.float16),
    (torch.float32, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.bfloat16, torch.bfloat16),
    (torch.float64, torch.float64),
]
SHAPES = [((5, 7), (8, 16)), ((37, 130), (40, 136)), ((1, 1), (4, 4)), ((16, 128), (16, 128))]


@pytest.mark.parametrize(("given", "wanted"), CONVERSIONS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_staging_converts_pads_with_zeros_and_keeps_the_order(
    given: torch.dtype, wanted: torch.dtype, layout: str
) -> None:
    for (rows, cols), (to_rows, to_cols) in SHAPES:
        values = normal(rows, cols, dtype=given)
        x = LAYOUTS[layout](values)
        staged = staging.stage(x, rows=to_rows, cols=to_cols, dtype=wanted)
        assert staged.shape == (to_rows, to_cols)
        assert staged.dtype == wanted
        assert staged.stride(0 if x.stride(0) == 1 and x.stride(1) != 1 else 1) == 1
        assert_rounded(staged[:rows, :cols], values)
        assert not staged[rows:].any()
        assert not staged[:, cols:].any()
        assert torch.equal(x, values), "the operand was written"


def test_a_staged_operand_is_aligned_where_its_extent_is() -> None:
    staged = staging.stage(LAYOUTS["block"](normal(5, 7)), rows=5, cols=8, dtype=torch.float16)
    assert staged.data_ptr() % 16 == 0
    assert staged.stride() == (8, 1)


@pytest.mark.parametrize(("a", "b"), list(itertools.product(LAYOUTS, LAYOUTS)))
def test_two_operands_are_staged_in_one_pass_each_in_its_own_order(a: str, b: str) -> None:
    A, B = LAYOUTS[a](normal(21, 19)), LAYOUTS[b](normal(19, 133))
    left, right = staging.stage_both(A, B, m=24, n=136, k=24, dtype=torch.float16)
    for staged, x, shape in ((left, A, (24, 24)), (right, B, (24, 136))):
        assert staged.shape == shape
        assert_rounded(staged[: x.shape[0], : x.shape[1]], x)
        assert not staged[x.shape[0] :].any()
        assert not staged[:, x.shape[1] :].any()
    assert left.stride(0 if a.startswith("col") else 1) == 1
    assert right.stride(0 if b.startswith("col") else 1) == 1


@pytest.mark.parametrize(("cols", "pitch"), [(129, 129), (500, 513), (1023, 1025), (2050, 2051)])
def test_wide_rows_of_16_bit_elements_are_copied_whole(cols: int, pitch: int) -> None:
    """However many of them make up a block, and from odd addresses."""
    bits = (torch.arange(1 + 20 * pitch) * 3 % 65521).to(torch.int16).to(PLACE)
    x = bits.as_strided((19, cols), (pitch, 1), 1).view(torch.bfloat16)
    wide = -(-cols // 8) * 8
    for operand, shape in ((x, (24, wide)), (x.t(), (wide, 24))):
        staged = staging.stage(operand, rows=shape[0], cols=shape[1], dtype=torch.bfloat16)
        found = (staged if operand is x else staged.t()).contiguous().view(torch.int16)
        assert torch.equal(found[:19, :cols], x.view(torch.int16))
        assert not found[19:].any()
        assert not found[:, cols:].any()


@pytest.mark.parametrize("first", range(4))
@pytest.mark.parametrize("pitch", [9, 10])
def test_16_bit_elements_are_copied_bit_by_bit_from_any_address(first: int, pitch: int) -> None:
    bits = torch.arange(3, 3 + 700 * 90, 90).to(torch.int16).to(PLACE)
    for rows, cols in itertools.product((1, 5), range(1, 10)):
        x = bits.as_strided((rows, cols), (pitch, 1), first).view(torch.bfloat16)
        for operand in (x, x.t()):
            staged = staging.stage(operand, rows=16, cols=16, dtype=torch.bfloat16)
            found = (staged if operand is x else staged.t()).contiguous().view(torch.int16)
            assert torch.equal(found[:rows, :cols], x.contiguous().view(torch.int16))
            assert not found[rows:].any()
            assert not found[:, cols:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_staging_carries_infinities_nan_and_signed_zeros(dtype: torch.dtype) -> None:
    x = torch.tensor([[torch.inf, -torch.inf, torch.nan, -0.0, 0.0]], device=PLACE)
    staged = staging.stage(x, rows=1, cols=8, dtype=dtype)[0]
    assert staged[:2].tolist() == [torch.inf, -torch.inf]
    assert staged[2].isnan()
    assert torch.signbit(staged).tolist()[3:] == [True, False, False, False, False]


# ------------------------------------------------------------------------------------- flags


def outside(x: torch.Tensor, smallest: float, largest: float) -> torch.Tensor:
    """What a flag is for, in torch's words."""
    magnitude = x.double().abs()
    return ((magnitude > 0) & (magnitude < smallest)) | (
        (magnitude > largest) & (magnitude < torch.inf)
    )


def flags_of(
    A: torch.Tensor, B: torch.Tensor, smallest: float, largest: float, *, store: bool
) -> torch.Tensor:
    (m, k), n = A.shape, B.shape[1]
    count = -(-m // BLOCK) + -(-n // BLOCK)
    flags = torch.zeros(count, dtype=torch.int32, device=PLACE)
    left, right = staging.stage_both(
        A, B, m=m, n=n, k=k, dtype=torch.float32, flags=flags,
        limits=staging.Range(smallest, largest), store=store,
    )  # fmt: skip
    assert store or (left is A and right is B)
    return flags


def expected_flags(A: torch.Tensor, B: torch.Tensor, *limits: float) -> list[int]:
    rows = outside(A, *limits).any(1).split(BLOCK)
    cols = outside(B, *limits).any(0).split(BLOCK)
    return [int(block.any()) for block in (*rows, *cols)]


@pytest.mark.parametrize(
    ("a", "b", "store"),
    [("row", "row", True), ("col", "row", False), ("block", "col block", False),
     ("strided", "strided", True), ("row", "col", False)],
)  # fmt: skip
def test_a_flag_is_set_for_exactly_the_blocks_with_an_element_out_of_range(
    a: str, b: str, store: bool
) -> None:
    m, n, k = 2 * BLOCK + 10, BLOCK + 3, 20
    for i, j in ((0, 0), (BLOCK - 1, k - 1), (BLOCK, 0), (m - 1, k - 1), (2 * BLOCK, 16)):
        for in_a in (True, False):
            A, B = normal(m, k), normal(k, n)
            if in_a:
                A[i, j] = LARGEST
            else:
                B[j, i % n] = 2.0**-140
            flags = flags_of(LAYOUTS[a](A), LAYOUTS[b](B), TINY, 2.0**100, store=store)
            assert flags.tolist() == expected_flags(A, B, TINY, 2.0**100)
            assert sum(flags.tolist()) == 1
    flags = flags_of(LAYOUTS[a](normal(m, k)), LAYOUTS[b](normal(k, n)), TINY, 1e9, store=store)
    assert not flags.any()


INSIDE = [0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1.0]


@pytest.mark.parametrize(
    ("smallest", "largest"),
    [(TINY, (2 - 2.0**-10) * 2.0**127), (2.0**-14, 65504.0), (TINY, (2 - 2.0**-7) * 2.0**127)],
    ids=["tf32", "float16", "bfloat16"],
)
def test_the_range_ends_exactly_where_it_says(smallest: float, largest: float) -> None:
    ends = torch.tensor([smallest, largest], device=PLACE)
    towards_one = torch.nextafter(ends, torch.ones_like(ends))
    away = torch.nextafter(ends, torch.tensor([0.0, torch.inf], device=PLACE))
    values = {
        **dict.fromkeys(INSIDE, 0),
        **dict.fromkeys([*ends.tolist(), *(-ends).tolist(), *towards_one.tolist()], 0),
        **dict.fromkeys([*away.tolist(), *(-away).tolist()], 1),
        2.0**-149: 1,
        -(2.0**-130): 1,
        LARGEST: 1,
        -LARGEST: 1,
    }
    for value, flag in values.items():
        for where in ("A", "B"):
            A, B = torch.ones(2, 3, device=PLACE), torch.ones(3, 2, device=PLACE)
            (A if where == "A" else B)[1, 1] = value
            flags = flags_of(A, B, smallest, largest, store=False)
            assert flags.tolist() == [flag * (where == "A"), flag * (where == "B")], value


# ------------------------------------------------------------------------------------ finish


def finish_case(
    a_flags: list[int], b_flags: list[int], alpha: float, beta: float, c: str, out: str
) -> None:
    m, n, k = BLOCK + 30, BLOCK + 9, 21
    A, B = LAYOUTS["col"](normal(m, k)), LAYOUTS["strided"](normal(k, n))
    P = LAYOUTS["block"](normal(m, n) + 1e4)  # nothing like A·B, so that its use shows
    values = normal(m, n) * 100
    C = {"none": None, "full": LAYOUTS["col block"](values),
         "row": values[:1].expand(m, n), "column": values[:, :1].expand(m, n)}[c]  # fmt: skip
    target = {
        "P": P, "C": C, "row": torch.full_like(values, torch.nan),
        "col": LAYOUTS["col"](torch.full_like(values, torch.nan)),
    }[out]  # fmt: skip
    assert target is not None
    flagged = (
        torch.tensor(a_flags).repeat_interleave(BLOCK)[:m, None]
        + torch.tensor(b_flags).repeat_interleave(BLOCK)[None, :n]
    ).to(PLACE) > 0
    product = A.double() @ B.double()
    expected = alpha * torch.where(flagged, product, P.double())
    if C is not None:
        expected = expected + beta * C.double()
    before = P.clone()
    around = int(torch.isnan(P._base).sum()) if P._base is not None else 0
    flags = torch.tensor(a_flags + b_flags, dtype=torch.int32, device=PLACE)
    finishing.finish(alpha, A, B, P, beta, C, target, flags)
    torch.testing.assert_close(target.double(), expected, rtol=2e-6, atol=2e-4)
    if alpha == 1 and C is None:
        kept = target[~flagged]
        assert torch.equal(kept, before[~flagged]), "an unflagged tile changed"
    if out != "P":
        assert torch.equal(P, before)
    assert P._base is None or int(torch.isnan(P._base).sum()) == around


@pytest.mark.parametrize("a_flags", [[0, 0], [0, 1], [1, 0], [1, 1]], ids=str)
@pytest.mark.parametrize("b_flags", [[0, 0], [0, 1], [1, 1]], ids=str)
@pytest.mark.parametrize("out", ["P", "row"])
def test_exactly_the_flagged_tiles_are_computed_anew(
    a_flags: list[int], b_flags: list[int], out: str
) -> None:
    finish_case(a_flags, b_flags, 1.0, 0.0, "none", out)


@pytest.mark.parametrize("alpha", [1.0, -1.5])
@pytest.mark.parametrize(
    ("c", "out"),
    [("none", "P"), ("none", "col"), ("full", "row"), ("full", "C"), ("full", "P"),
     ("row", "row"), ("row", "P"), ("column", "col")],
)  # fmt: skip
def test_alpha_and_beta_are_applied_to_every_tile(alpha: float, c: str, out: str) -> None:
    finish_case([0, 1], [1, 0], alpha, 0.5, c, out)
    finish_case([0, 0], [0, 0], alpha, 0.5, c, out)


def test_a_nan_in_a_discarded_tile_does_not_survive() -> None:
    m = n = BLOCK + 1
    A, B = normal(m, 5), normal(5, n)
    P = torch.full((m, n), torch.nan, device=PLACE)
    flags = torch.tensor([1, 1, 0, 0], dtype=torch.int32, device=PLACE)
    finishing.finish(1.0, A, B, P, 0.0, None, P, flags)
    torch.testing.assert_close(P, A @ B)


# ------------------------------------------------------------------------------------- axpby


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("c", ["none", "full", "col", "row", "column", "number"])
def test_axpby_combines_any_layouts_in_one_rounding(dtype: torch.dtype, c: str) -> None:
    for (m, n), p, out in itertools.product(
        ((1, 1), (3, 5), (70, 33), (2, 1500)), ("row", "strided"), ("row", "col", "block")
    ):
        P = LAYOUTS[p](normal(m, n))
        values = normal(m, n, dtype=dtype) * 3
        C = {"none": None, "full": values, "col": LAYOUTS["col"](values),
             "row": values[:1].expand(m, n), "column": values[:, :1].expand(m, n),
             "number": values[:1, :1].expand(m, n)}[c]  # fmt: skip
        target = LAYOUTS[out](torch.full((m, n), torch.nan, dtype=dtype, device=PLACE))
        whole = target if target._base is None else target._base
        around = int(torch.isnan(whole).sum()) - m * n
        before = P.clone()
        axpby(-1.25, P, 0.5, C, target)
        exact = -1.25 * P.double() + (0 if C is None else 0.5 * C.double())
        slack = 4 * 2.0**-24 * (P.double().abs() * 1.25 + (0 if C is None else C.double().abs()))
        unit = torch.finfo(dtype).eps * (0.5 if ON_GPU or dtype is not torch.bfloat16 else 1.0)
        assert ((target.double() - exact).abs() <= slack + unit * exact.abs() + 2.0**-24).all()
        assert torch.equal(P, before)
        assert int(torch.isnan(whole).sum()) == around


@pytest.mark.parametrize("layout", ["row", "col", "block"])
def test_axpby_writes_over_p_or_c(layout: str) -> None:
    values, other = normal(20, 37), normal(20, 37) * 3
    expected = 2.0 * values + 0.5 * other
    for target in ("P", "C"):
        P, C = LAYOUTS[layout](values), LAYOUTS[layout](other)
        out = P if target == "P" else C
        axpby(2.0, P, 0.5, C, out)
        torch.testing.assert_close(out, expected)
        assert torch.equal(C if target == "P" else P, other if target == "P" else values)
    alone = LAYOUTS[layout](values)
    axpby(2.0, alone, 0.0, None, alone)
    assert torch.equal(alone, 2.0 * values)


def test_axpby_without_c_reads_none() -> None:
    P = normal(3, 4)
    out = torch.full((3, 4), torch.nan, device=PLACE)
    axpby(2.0, P, 0.0, None, out)
    assert torch.equal(out, 2.0 * P)


# --------------------------------------------------- strategies, from operands to the result


def flushed(x: torch.Tensor) -> torch.Tensor:
    """Subnormals lost, as tensor cores may lose them."""
    return torch.where(x.abs() < torch.finfo(x.dtype).tiny, torch.zeros_like(x), x)


def rounded_to_tf32(x: torch.Tensor) -> torch.Tensor:
    """The nearest number of 11 significant bits; beyond the largest, infinity."""
    bits = flushed(x).contiguous().view(torch.int32)
    rounded = (bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF
    return torch.where(x.isfinite(), rounded.view(torch.float32), x)


class Library:
    """Stand-ins for what CUDA's products do and a CPU's do not; they count their calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fast = 0
        for name in ("mm", "bmm"):
            monkeypatch.setattr(torch, name, functools.partial(self._product, getattr(torch, name)))

    def _product(
        self,
        real: Callable[..., torch.Tensor],
        A: torch.Tensor,
        B: torch.Tensor,
        *,
        out_dtype: torch.dtype | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if out_dtype is not None:
            assert out_dtype is torch.float32
            assert A.dtype == B.dtype
            assert A.element_size() == 2
            A, B = flushed(A).float(), flushed(B).float()
            self.fast += 1
        elif A.dtype is torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32":
            A, B = rounded_to_tf32(A), rounded_to_tf32(B)
            self.fast += 1
        result = real(A, B)
        return result if out is None else out.copy_(result)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library | None:
    return None if ON_GPU else Library(monkeypatch)


def here() -> Device:
    return device_of(PLACE) if ON_GPU else GPU


def checked_descriptor(
    x: torch.Tensor, shape: list[int], strides: list[int], tile: list[int]
) -> object:
    """A descriptor, after a look at what the hardware asks of it and at what it says.

    To stand in for ``operands._unchecked``, which makes it without a look.
    """
    assert x.data_ptr() % 16 == 0
    assert strides[-1] == 1
    assert all(s > 0 and s * x.element_size() % 16 == 0 for s in strides[:-1]), strides
    assert all(1 <= rows <= 256 for rows in tile), tile
    told = x.as_strided(shape, strides)
    meant = x[:1] if x.ndim == 3 and shape[0] == 1 else x
    assert told.shape == meant.shape
    for extent, stride, own in zip(shape, strides, meant.stride(), strict=True):
        assert extent == 1 or stride == own, (strides, x.stride())
    return _unchecked(x, shape, strides, tile)


def gpu_problem(
    A: torch.Tensor, B: torch.Tensor, C: torch.Tensor | None, out: torch.Tensor | None, beta: float
) -> Problem:
    """The problem these operands would form on a GPU."""

    def word(x: torch.Tensor) -> str:
        shape = tuple(x.shape)
        return problems._layout(shape, x.stride(), x.data_ptr(), x.element_size(), "cuda")

    result = torch.empty(result_shape(A, B), dtype=A.dtype) if out is None else out
    return replace(
        problem_of(A, B, C, out, beta == 0), device_type="cuda", a=word(A), b=word(B),
        out=word(result),
    )  # fmt: skip


def bound_here(candidate: Candidate, problem: Problem) -> ErrorBound:
    """The declared bound; doubled where the interpreter cuts bfloat16 off."""
    bound = BY_NAME[candidate.strategy].bound(problem, candidate.kwargs)
    if ON_GPU or "bfloat16" not in str((candidate, problem.dtype)):
        return bound
    return ErrorBound(2 * bound.rho + 2.0**16 * (problem.dtype is torch.bfloat16), bound.growth)


def serve(
    candidate: Candidate,
    alpha: float,
    A: torch.Tensor,
    B: torch.Tensor,
    beta: float,
    C: torch.Tensor | None,
    out: str,
    truth: Truth | Truths,
) -> bool:
    """Bind and run a candidate, and judge its result; False if it does not take the problem."""
    given = None if C is None else C.clone() if out == "C" else C
    target = {
        "new": None, "C": given, "row": torch.full_like(truth_like(A, B), torch.nan),
        "col": LAYOUTS["col"](torch.full_like(truth_like(A, B), torch.nan)),
        "block": LAYOUTS["block"](torch.full_like(truth_like(A, B), torch.nan)),
    }[out]  # fmt: skip
    problem = gpu_problem(A, B, given, target, beta)
    strategy = BY_NAME[candidate.strategy]
    if strategy.reasons_not(problem, here(), candidate.kwargs):
        return False
    before = [x.clone() for x in (A, B) if x is not None]
    result = strategy.bind(problem, here(), candidate.kwargs)(alpha, A, B, beta, given, target)
    assert target is None or result is target
    assert target is not None or result.is_contiguous()
    truth.check(result.cpu(), bound_here(candidate, problem))
    for x, y in zip((A, B), before, strict=True):
        assert torch.equal(x.nan_to_num(7.0), y.nan_to_num(7.0)), "an operand was written"
    if C is not None and out != "C":
        assert given is C
    return True


def truth_like(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    return A.new_empty(result_shape(A, B))


TF32S = [Candidate.of("tf32", pad=pad) for pad in (False, True)]
HALVES = [Candidate.of("half", dtype=word) for word in ("float16", "bfloat16")]
PADDED = [Candidate.of("padded", form=form) for form in ("through", "fused")]


def emulated(
    form: str, method: str, bm: int = 64, bn: int = 64, bk: int = 32, chunk: int = 64,
    slices: int = 1, group: int = 8,
) -> Candidate:  # fmt: skip
    """``emulated_fp32`` with small tiles, which every GPU has room for."""
    return Candidate.of(
        "emulated_fp32", form=form, method=method, bm=bm, bn=bn, bk=bk, warps=4, stages=2,
        chunk=chunk, slices=slices, group=group,
    )  # fmt: skip


EMULATED = [
    emulated("split", "fp16x3", bk=64),
    emulated("split", "fp16", bn=128, chunk=128),
    emulated("split", "fp16x3", slices=2),
    emulated("fused", "fp16x3", slices=2),
    emulated("fused", "fp16", bm=16),
]
OURS = [
    Candidate.of(
        "triton_gemm", bm=bm, bn=bn, bk=32, warps=4, stages=2, slices=slices, group=8,
        persistent=persistent,
    )
    for bm, bn, slices, persistent in ((64, 64, 1, True), (16, 64, 1, False), (64, 128, 2, False))
]  # fmt: skip
SKINNY = [
    Candidate.of("skinny", bn=64, bk=32, warps=4, stages=2, slices=slices) for slices in (1, 3)
]
SHORT = [Candidate.of("short", bm=32, bn=64, bk=32, warps=2, stages=2)]
WIDE = [
    Candidate.of("matmul_axpby"),
    Candidate.of("ksplit", form="batched", chunks=3),
    Candidate.of("ksplit", form="sequential", chunks=3),
]


@pytest.mark.usefixtures("restored_torch_settings")
@pytest.mark.parametrize("candidate", [*TF32S, *HALVES], ids=str)
@pytest.mark.parametrize("name", names_for(torch.float32))
def test_a_guarded_pass_keeps_its_bound_on_hostile_operands(
    candidate: Candidate, name: str, library: Library | None
) -> None:
    """Subnormals, the largest numbers, infinities: what the fast pass loses is repaired."""
    A, B, C = HOSTILE[name](20, 26, 24, torch.float32, seeded("kernels", name))
    truth = Truth(1.0, A, B, 0.5, C)
    A, B, C = (x.to(PLACE) for x in (A, B, C))
    if candidate.kwargs.get("pad"):
        A = LAYOUTS["block"](A)
    assert serve(candidate, 1.0, A, B, 0.5, C, "C", truth)
    assert library is None or library.fast == 1


@pytest.mark.usefixtures("restored_torch_settings")
@pytest.mark.parametrize("candidate", [*TF32S, *HALVES], ids=str)
def test_a_single_hostile_element_costs_accuracy_nowhere(
    candidate: Candidate, library: Library | None
) -> None:
    m, n, k = BLOCK + 7, BLOCK + 9, 20
    pairs = ((2.0**-140, 2.0**120), (LARGEST, 2.0**-120), (torch.inf, 1.0), (torch.nan, 1.0))
    for value, partner in pairs:
        for i, j in ((0, 0), (m - 1, k - 1), (BLOCK - 1, 3)):
            A, B = normal(m, k).cpu(), normal(k, n).cpu()
            A[i] = 0.0
            A[i, j] = value
            B[j, ::2] = partner
            B[j, 1] = 0.0  # infinity by zero is NaN, and only there
            truth = Truth(1.5, A, B, 0.0, None)
            assert serve(candidate, 1.5, LAYOUTS["block"](A.to(PLACE)), B.to(PLACE), 0.0, None,
                         "new", truth)  # fmt: skip


@pytest.mark.usefixtures("restored_torch_settings")
@pytest.mark.parametrize("candidate", [*TF32S, *HALVES], ids=str)
def test_the_guard_is_needed(
    candidate: Candidate, library: Library | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its flags the same pass breaks its bound, so the tests above can fail."""
    if ON_GPU:
        pytest.skip("hardware may do better than the stand-ins")
    m, n, k = 20, 24, 16
    A, B = normal(m, k).cpu(), normal(k, n).cpu()
    A[3] = 0.0
    A[3, 4], B[4] = 2.0**-140, 2.0**120
    truth = Truth(1.0, A, B, 0.0, None)
    A = LAYOUTS["block"](A.to(PLACE))
    assert serve(candidate, 1.0, A, B.to(PLACE), 0.0, None, "new", truth)
    real = staging.stage_both

    def unguarded(*operands: torch.Tensor, **options: object) -> object:
        return real(*operands, **{**options, "flags": None})

    monkeypatch.setattr(staging, "stage_both", unguarded)
    with pytest.raises(AssertionError, match="bound"):
        serve(candidate, 1.0, A, B.to(PLACE), 0.0, None, "new", truth)


ALL_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
COMPUTED = [
    (candidate, dtype)
    for candidate in (*TF32S, *HALVES, *PADDED, *OURS, *SKINNY, *SHORT, *WIDE, *EMULATED)
    for dtype in ALL_TYPES
    if dtype in BY_NAME[candidate.strategy].dtypes
    and (candidate.kwargs.get("form") != "fused" or dtype is not torch.float64)
]


def taken(candidate: Candidate) -> tuple[list[str], tuple[tuple[int, int, int], ...]]:
    """Layouts of operands that a candidate takes, and sizes (m, n, k)."""
    if candidate.strategy == "emulated_fp32" and candidate.kwargs["form"] == "fused":
        return ["row", "col"], ((12, 16, 52), (36, 20, 12), (4, 8, 136))  # 16-byte aligned
    if candidate.strategy == "skinny":
        return ["row", "col"], ((12, 16, 52), (36, 8, 200), (4, 68, 136), (16, 64, 40))
    if candidate.strategy == "short":
        return ["row", "col"], ((12, 16, 52), (36, 8, 100), (68, 132, 40))
    return list(LAYOUTS), ((9, 13, 50), (33, 16, 11), (1, 5, 64))


@pytest.mark.usefixtures("restored_torch_settings")
@pytest.mark.parametrize(("candidate", "dtype"), COMPUTED, ids=str)
def test_every_form_of_the_call_comes_out_right(
    candidate: Candidate, dtype: torch.dtype, library: Library | None
) -> None:
    layouts, sizes = taken(candidate)
    both = list(itertools.product(layouts, layouts))
    random.Random(f"{candidate} {dtype}").shuffle(both)
    pairs, shapes = itertools.cycle(both), itertools.cycle(sizes)
    ran = 0
    for (alpha, beta), c, out in itertools.product(
        ((1.0, 0.0), (1.5, 0.0), (1.0, 0.5), (-1.5, 2.0)),
        ("full", "row"),
        ("new", "C", "row", "col", "block"),
    ):
        if (beta == 0 and (c == "row" or out == "C")) or (c == "row" and out == "C"):
            continue
        (m, n, k), (a, b) = next(shapes), next(pairs)
        A, B, values = (normal(*shape, dtype=dtype) for shape in ((m, k), (k, n), (m, n)))
        C = None if beta == 0 else values if c == "full" else values[:1].expand(m, n)
        truth = Truth(alpha, A.cpu(), B.cpu(), beta, None if C is None else C.cpu())
        ran += serve(candidate, alpha, LAYOUTS[a](A), LAYOUTS[b](B), beta, C, out, truth)
    assert ran > 8


@pytest.mark.parametrize("dtype", ALL_TYPES, ids=str)
@pytest.mark.parametrize("candidate", [Candidate.of("addmm", reduction="full"), PADDED[0]], ids=str)
def test_torch_is_handed_no_result_of_one_row_with_a_stride_below_its_length(
    candidate: Candidate, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At β = 1 torch 2.11 hands the stride to cuBLASLt, which refuses it."""
    torchs_own, strides = addmm._run, []

    def run(alpha: Any, A: Any, B: Any, beta: Any, C: Any, out: Any) -> torch.Tensor:
        assert C is None or out is None or C is out or C.data_ptr() != out.data_ptr()
        if out is not None and len(out) == 1 and out.stride(1) == 1:
            strides.append(out.stride(0))
        return torchs_own(alpha, A, B, beta, C, out)

    monkeypatch.setattr(addmm, "_run", run)
    for n in (5, 16):  # padded, and left where it is
        A, B, C = (normal(*shape, dtype=dtype) for shape in ((1, 48), (48, n), (1, n)))
        A = LAYOUTS["block"](A)
        odd = C.as_strided((1, n), (1, 1))
        truth = Truth(1.5, A.cpu(), B.cpu(), 1.0, C.cpu())
        for addend, out in ((C, "col"), (C, "row"), (odd, "new"), (odd, "col"), (odd, "C")):
            assert serve(candidate, 1.5, A, B, 1.0, addend, out, truth)
    assert strides
    assert min(strides) >= 5, "a stride that says nothing"


BATCHED = [
    Candidate.of("baddbmm", reduction="full"),
    Candidate.of("matmul_axpby"),
    Candidate.of("loop", inner="matmul_axpby"),
    Candidate.of("ksplit", form="sequential", chunks=3),
]


@pytest.mark.usefixtures("restored_torch_settings")
@pytest.mark.parametrize("dtype", ALL_TYPES, ids=str)
@pytest.mark.parametrize("candidate", BATCHED, ids=str)
def test_every_form_of_a_batch_comes_out_right(
    candidate: Candidate, dtype: torch.dtype, library: Library | None
) -> None:
    pairs = itertools.cycle(itertools.product(LAYOUTS, LAYOUTS))
    sizes = itertools.cycle(((3, 9, 13, 50), (2, 1, 5, 64), (4, 5, 1, 7)))
    for (alpha, beta), c, out in itertools.product(
        ((1.0, 0.0), (1.5, 0.0), (1.0, 0.5), (-1.5, 2.0)),
        ("full", "row", "shared", "transposed"),
        ("new", "C", "row", "col", "block"),
    ):
        if (beta == 0 and (c != "full" or out == "C")) or (c in ("row", "shared") and out == "C"):
            continue
        (batch, m, n, k), (a, b) = next(sizes), next(pairs)
        A, B, values = (
            normal(batch, *shape, dtype=dtype) for shape in ((m, k), (k, n), (m, n))
        )
        C = {
            "full": values, "row": values[0, :1].expand(batch, m, n),
            "shared": values[:1].expand(batch, m, n), "transposed": LAYOUTS["col"](values),
        }[c] if beta else None  # fmt: skip
        truth = truth_of(alpha, A.cpu(), B.cpu(), beta, None if C is None else C.cpu())
        assert serve(candidate, alpha, LAYOUTS[a](A), LAYOUTS[b](B), beta, C, out, truth)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_baseline_of_16_bit_batches_multiplies_into_float32(
    dtype: torch.dtype, library: Library | None
) -> None:
    """torch forbids 16-bit partial sums in single products only."""
    if library is None:
        pytest.skip("the stand-ins count what hardware does not tell")
    A, B = normal(3, 8, 16, dtype=dtype), normal(3, 16, 8, dtype=dtype)
    truth = truth_of(1.5, A, B, 0.0, None)
    full = Candidate.of("baddbmm", reduction="full")
    assert serve(full, 1.5, A, B, 0.0, None, "new", truth)
    assert library.fast == 1
    # Where there is no such product, float32 operands serve.
    problem = gpu_problem(A, B, None, None, 0.0)
    run = BY_NAME["baddbmm"].bind(problem, replace(here(), capability=(7, 0)), full.kwargs)
    truth.check(run(1.5, A, B, 0.0, None, None), bound_here(full, problem))
    assert library.fast == 1


def test_all_gpu_strategies_with_kernels_are_tried_here() -> None:
    tried = {candidate.strategy for candidate in (*(c for c, _ in COMPUTED), *BATCHED)}
    with_kernels = {s.name for s in STRATEGIES if "triton" in s.depends_on}
    assert with_kernels <= tried
