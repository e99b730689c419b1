"""Batches by ``emulated_fp32``: every matrix by itself, in one launch.

As in ``test_emulated.py`` the kernels run on a GPU, or in Triton's interpreter.
"""

from __future__ import annotations

import importlib
import math
from typing import Any

import pytest
import torch
from gluon_stand_in import fixture_for
from test_kernels import ON_GPU, PLACE, emulated, gpu_problem, here, normal, serve

from autogemm.grading.hostile import HOSTILE, seeded
from autogemm.grading.oracle import truth_of
from autogemm.problem import contiguous_problem
from autogemm.strategies import BY_NAME, Candidate

settle = importlib.import_module("autogemm.kernels.settle")

pytestmark = pytest.mark.filterwarnings("ignore:::triton.runtime.interpreter")

STRATEGY = BY_NAME["emulated_fp32"]
FUSED = [
    emulated("fused", "fp16x3", chunk=32),
    emulated("fused", "fp16x3", bm=16, bk=64),
    emulated("fused", "fp16", bn=16, chunk=512),
]
CONTINUOUS = [
    candidate
    for candidate in (
        emulated("continuous", "fp16x3", chunk=64),
        emulated("continuous", "fp16", bn=128, bk=64, chunk=512),
    )
    if not STRATEGY.reasons_not(
        contiguous_problem(64, 64, 64, torch.float32, device_type="cuda", batch=2), here(),
        candidate.kwargs,
    )
]  # fmt: skip
CANDIDATES = FUSED + CONTINUOUS
kernel = fixture_for("continuous_product")
# (batch, m, n, k): odd wherever the layout leaves an extent free.
SIZES = {
    "nn": (3, 67, 20, 40),
    "tn": (2, 20, 68, 37),
    "nt": (3, 19, 67, 36),
    "tt": (2, 68, 21, 100),
}
HUGE = 2.0**100


def operands(layout: str, batch: int, m: int, n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    A = normal(batch, k, m).mT if layout[0] == "t" else normal(batch, m, k)
    B = normal(batch, n, k).mT if layout[1] == "t" else normal(batch, k, n)
    return A, B


def run(
    candidate: Candidate,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """A·B, plus C unless it is None."""
    beta = 0.0 if C is None else 1.0
    problem = gpu_problem(A, B, C, out, beta)
    assert not STRATEGY.reasons_not(problem, here(), candidate.kwargs)
    return STRATEGY.bind(problem, here(), candidate.kwargs)(1.0, A, B, beta, C, out)


@pytest.mark.parametrize("layout", SIZES)
@pytest.mark.parametrize("candidate", CANDIDATES, ids=str)
def test_every_layout_keeps_the_bound(candidate: Candidate, layout: str) -> None:
    batch, m, n, _ = SIZES[layout]
    A, B = operands(layout, *SIZES[layout])
    C = normal(batch, m, n)
    forms = [
        (1.0, 0.0, None, "new"),
        (-1.5, 0.5, C, "C"),
        (1.0, 2.0, C[0, :1].expand(C.shape), "col"),
        (1.5, 1.0, C[:1].expand(C.shape), "block"),
    ]
    first = (CANDIDATES.index(candidate) + list(SIZES).index(layout)) % 2
    for alpha, beta, addend, out in forms[first::2]:
        truth = truth_of(alpha, A.cpu(), B.cpu(), beta, None if addend is None else addend.cpu())
        assert serve(candidate, alpha, A, B, beta, addend, out, truth)


@pytest.mark.parametrize("candidate", CANDIDATES, ids=str)
def test_a_batch_has_the_bits_of_its_single_products(candidate: Candidate) -> None:
    A, B = operands("nn", 2, 67, 20, 100)
    result = run(candidate, A, B)
    assert result.is_contiguous()
    for a, b, found in zip(A, B, result, strict=True):
        assert torch.equal(found, run(candidate, a, b))


@pytest.mark.parametrize("candidate", [*FUSED[:2], *CONTINUOUS], ids=str)
def test_matrices_may_be_shared_or_lie_between_each_other(candidate: Candidate) -> None:
    A, B = operands("nn", 3, 20, 24, 40)
    exact = run(candidate, A, B)
    heads = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (A, B)]
    assert heads[0].stride(0) < heads[0].stride(1)
    assert torch.equal(run(candidate, *heads), exact)
    for a, b in ((A[1:2].expand(A.shape), B), (A, B[2:].expand(B.shape))):
        assert torch.equal(run(candidate, a, b), run(candidate, a.contiguous(), b.contiguous()))
    beside = normal(3, 20, 48)
    before = beside.clone()
    C = beside[..., :24]
    assert run(candidate, A, B, C, C) is C
    assert torch.equal(C, exact + before[..., :24])
    assert torch.equal(beside[..., 24:], before[..., 24:]), "memory beside the result changed"


@pytest.mark.parametrize("value", [math.inf, HUGE])
@pytest.mark.parametrize("shared", ["A", "B"])
def test_a_shared_matrix_is_read_again_as_one_that_is_there_for_each(
    shared: str, value: float
) -> None:
    A, B = operands("nn", 3, 20, 24, 100)
    A[1, 3, 70], B[1, 80, 5] = value, -value
    pairs = {"A": (A[1:2].expand(A.shape), B), "B": (A, B[1:2].expand(B.shape))}
    a, b = pairs[shared]
    found = run(FUSED[0], a, b)
    assert torch.equal(found.nan_to_num(7.0), run(FUSED[0], a.clone(), b.clone()).nan_to_num(7.0))
    for matrix, x, y in zip(found, a, b, strict=True):
        bound = STRATEGY.bound(gpu_problem(x, y, None, None, 0.0), FUSED[0].kwargs)
        truth_of(1.0, x.cpu(), y.cpu(), 0.0, None).check(matrix.cpu(), bound)


@pytest.mark.parametrize(
    ("layout", "value"), [*zip(SIZES, (math.inf, HUGE, math.nan, -math.inf), strict=True)]
)
def test_what_one_matrix_holds_is_nothing_to_its_neighbours(
    layout: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles reach beyond a matrix, over rows and over k; what follows it in memory is another."""
    again: list[int] = []

    def counted(real: Any) -> Any:
        def ieee(*args: Any) -> Any:
            again.append(1)
            return real(*args)

        return ieee

    for name in () if ON_GPU else ("ieee_tile", "_store_line"):
        monkeypatch.setattr(settle, name, counted(getattr(settle, name)))
    _, m, n, k = SIZES[layout]
    A, B = operands(layout, 3, m, n, k)
    ordinary = run(FUSED[0], A, B)
    assert not again
    C = torch.zeros_like(ordinary)
    for x in (A, B, C):
        x[1] = value
    result = run(FUSED[0], A, B, C)
    assert torch.equal(result[::2], ordinary[::2])
    assert torch.equal(result[1].isnan(), (A[1] @ B[1] + C[1]).isnan())
    assert not result[1].isfinite().any()
    tiles = 0 if value == HUGE else -(-m // 64) * -(-n // 64)
    assert ON_GPU or len(again) == tiles, "no tile of another"


@pytest.mark.parametrize("value", [math.inf, HUGE, math.nan])
@pytest.mark.parametrize("layout", SIZES)
@pytest.mark.parametrize("candidate", CONTINUOUS, ids=str)
def test_what_is_split_of_one_matrix_is_nothing_to_its_neighbours(
    candidate: Candidate, layout: str, value: float
) -> None:
    """Tiles reach beyond a matrix's rows and columns, over those of the next."""
    A, B = operands(layout, 3, *SIZES[layout][1:])
    ordinary = run(candidate, A, B)
    for x in (A, B):
        x[1] = value
    result = run(candidate, A, B)
    assert torch.equal(result[::2], ordinary[::2])
    assert torch.equal(result[1].isnan(), (A[1] @ B[1]).isnan())
    assert not result[1].isfinite().any()


@pytest.mark.parametrize("candidate", CONTINUOUS, ids=str)
def test_matrices_that_are_split_beforehand_begin_where_they_like(candidate: Candidate) -> None:
    A, B = operands("nn", 2, 20, 24, 40)
    apart = A.new_empty(2, 20 * 40 + 3)[:, 1 : 20 * 40 + 1].view(2, 20, 40).copy_(A)
    exact = run(candidate, A, B)
    assert torch.equal(run(candidate, apart, B), exact)
    wide = B.new_empty(2, 40, 48)[..., ::2].copy_(B)
    assert torch.equal(run(candidate, A, wide), exact)


@pytest.mark.parametrize("name", ["rows_grow", "late_outliers", "sizes_differ", "cancellation"])
def test_the_bound_holds_on_hostile_batches(name: str) -> None:
    """Rows that grow along k, tiny elements, and scales that a neighbour does not share."""
    A, B = operands("nn", 3, 20, 24, 136)
    if name == "rows_grow":
        A[1] *= torch.logspace(0, 12, 136, base=2.0, device=PLACE)
    elif name == "late_outliers":
        A[2, :, 70:] *= 2.0**30
        B[0, 70:] *= 2.0**-30
    elif name == "sizes_differ":
        A[0] *= HUGE
        A[1, 3, 1:], B[1, 0] = 2.0**-40, 0.0
        A[2] *= 2.0**-100
    else:
        drawn = [HOSTILE[name](20, 24, 136, torch.float32, seeded(name, i)) for i in range(3)]
        A, B = (torch.stack(x).to(PLACE) for x in list(zip(*drawn, strict=True))[:2])
    truth = truth_of(-0.75, A.cpu(), B.cpu(), 0.0, None)
    for candidate in CANDIDATES[1:]:
        assert serve(candidate, -0.75, A, B, 0.0, None, "new", truth)


@pytest.mark.parametrize("candidate", [FUSED[0], *CONTINUOUS[:1]], ids=str)
def test_without_its_guard_a_batch_would_break_its_bound(candidate: Candidate) -> None:
    A, B = operands("nn", 2, 20, 24, 72)
    A[1, 3, 1:] *= 2.0**-40
    B[1, 0] = 0.0
    problem = gpu_problem(A, B, None, None, 0.0)
    truth = truth_of(1.0, A.cpu(), B.cpu(), 0.0, None)
    params = candidate.kwargs
    guarded, bare = (
        STRATEGY.bind(problem, here(), params, guard=guard)(1.0, A, B, 0.0, None, None).cpu()
        for guard in (True, False)
    )
    truth.check(guarded, STRATEGY.bound(problem, params))
    with pytest.raises(AssertionError, match="matrix 1: element"):
        truth.check(bare, STRATEGY.bound(problem, params))


def test_matrices_that_do_not_begin_at_16_bytes_are_not_for_the_fused_form() -> None:
    A, B = operands("nn", 2, 20, 24, 40)
    apart = A.new_empty(2, 20 * 40 + 2)[:, : 20 * 40].view(2, 20, 40)
    for a, b in ((apart, B), (A[..., ::2], B[:, ::2])):
        problem = gpu_problem(a, b, None, None, 0.0)
        for candidate in FUSED:
            (reason,) = STRATEGY.reasons_not(problem, here(), candidate.kwargs)
            assert "16-byte aligned with one contiguous extent" in reason
