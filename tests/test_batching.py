"""Products of batches: the same contract, one 2-D product wherever views allow."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import autogemm
from autogemm import InvalidProblem, api, explain, gemm, gemm_
from autogemm.batching import reduced
from autogemm.precision import growth, unit_roundoff
from autogemm.problem import Problem

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64)


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(math.prod(shape) + len(shape))
    return torch.randn(*shape, dtype=dtype, generator=generator)


def check(found: torch.Tensor, alpha: float, A, B, beta: float, C) -> None:
    """The contract of ``highest``, on every element."""
    wide = torch.complex128 if A.dtype.is_complex else torch.float64
    a, b = A.to(wide), B.to(wide)
    exact, bound = alpha * (a @ b), abs(alpha) * (a.abs() @ b.abs())
    if beta != 0:
        exact, bound = exact + beta * C.to(wide), bound + abs(beta) * C.to(wide).abs()
    assert found.shape == exact.shape
    assert found.dtype == A.dtype
    u = 2.0**-53 if A.dtype == torch.float64 else 2.0**-24
    k = A.shape[-1]
    limit = unit_roundoff(A.dtype) * exact.abs() + (8 + growth(A.dtype, k)) * u * bound
    assert ((found.to(wide) - exact).abs() <= limit + 1e-30).all()


def laid_out(x: torch.Tensor, how: str) -> torch.Tensor:
    """The same elements with other strides."""
    if how == "transposed":
        return x.mT.contiguous().mT
    if how == "heads":  # (batch, rows, columns) out of (rows, batch, columns)
        return x.movedim(0, 1).contiguous().movedim(1, 0)
    if how == "strided":
        return torch.stack([x, x], -1)[..., 0]
    return x


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shared", ["neither", "A", "B"])
@pytest.mark.parametrize("lead", [(3,), (2, 3), (1,), (2, 1, 2)], ids=str)
def test_a_batch_keeps_the_contract(
    dtype: torch.dtype, shared: str, lead: tuple[int, ...]
) -> None:
    A = normal(*(() if shared == "A" else lead), 5, 40, dtype=dtype)
    B = normal(*(() if shared == "B" else lead), 40, 7, dtype=dtype)
    C = normal(*lead, 5, 7, dtype=dtype)
    for _ in ("cold", "warm"):
        result = gemm(1.5, A, B, -0.5, C)
        assert result.is_contiguous()
        check(result, 1.5, A, B, -0.5, C)
        check(gemm(1.5, A, B), 1.5, A, B, 0, None)
        out = torch.full_like(C, torch.nan)
        assert gemm(1.5, A, B, -0.5, C, out=out) is out
        assert torch.equal(out, result)
        D = C.clone()
        assert gemm_(1.5, A, B, -0.5, D) is D
        check(D, 1.5, A, B, -0.5, C)
        row = C[..., :1, :].expand(C.shape)
        check(gemm(1.5, A, B, -0.5, row), 1.5, A, B, -0.5, row)


HOWS = ("plain", "transposed", "heads", "strided")


@pytest.mark.parametrize("hows", list(itertools.product(HOWS, repeat=3)), ids="-".join)
def test_any_strides_will_do(hows: tuple[str, str, str]) -> None:
    A, B, C = (
        laid_out(x, how)
        for x, how in zip((normal(3, 5, 8), normal(3, 8, 7), normal(3, 5, 7)), hows, strict=True)
    )
    check(gemm(1.5, A, B, -0.5, C), 1.5, A, B, -0.5, C)
    check(gemm(1.5, A, B[0], -0.5, C), 1.5, A, B[0], -0.5, C)
    before = C.clone()
    for right in (B, B[0]):
        out = laid_out(torch.full((3, 5, 7), torch.nan), hows[2])
        gemm(1.5, A, right, -0.5, C, out=out)
        check(out, 1.5, A, right, -0.5, C)
        assert torch.equal(C, before)
        D = laid_out(before.clone(), hows[2])
        gemm_(1.5, A, right, -0.5, D)
        check(D, 1.5, A, right, -0.5, C)


def test_out_may_have_leading_dimensions_that_do_not_merge() -> None:
    A, B, C = normal(2, 3, 5, 8), normal(2, 3, 8, 7), normal(2, 3, 5, 7)
    for right in (B, B[0, 0]):
        out = torch.zeros(3, 2, 5, 7).transpose(0, 1)
        assert gemm(1.5, A, right, -0.5, C, out=out) is out
        check(out, 1.5, A, right, -0.5, C)
        D = torch.zeros(3, 2, 5, 7).transpose(0, 1).copy_(C)
        gemm_(1.5, A, right, -0.5, D)
        check(D, 1.5, A, right, -0.5, C)


def problem_in(*arguments: object) -> Problem:
    told = explain(*arguments)
    assert told.plan is not None
    return told.plan.problem


def test_a_stack_times_one_matrix_is_one_tall_product() -> None:
    x, W = normal(4, 6, 8), normal(8, 5)
    problem = problem_in(1.0, x, W)
    assert (problem.batch, problem.m, problem.n, problem.k) == (1, 24, 5, 8)
    bias = normal(5).expand(4, 6, 5)
    assert problem_in(1.0, x, W.t().contiguous().t(), 1.0, bias).update == "bias"
    assert problem_in(1.0, x[None], W).m == 24
    heads = x.movedim(0, 1).contiguous().movedim(1, 0)  # rows that do not follow each other
    assert problem_in(1.0, heads, W).batch == 4
    assert problem_in(1.0, x[:1], W).batch == 1
    assert problem_in(1.0, x, normal(4, 8, 5)).batch == 4
    assert problem_in(1.0, x[0], normal(4, 8, 5)).batch == 4


def test_operands_are_reduced_by_views() -> None:
    A, B, C = normal(2, 3, 5, 8), normal(8, 7), normal(2, 3, 5, 7)
    wide = B.expand(2, 3, 8, 7)
    for operands in ((A, B, C, C), (A, wide, C, C), (A[:1, :1], B, C[:1, :1], None)):
        views = reduced(*operands)
        for view, operand in zip(views, operands, strict=True):
            if operand is not None and operand.numel() == operand.untyped_storage().size():
                assert view.data_ptr() == operand.data_ptr()
    views = reduced(A, B, C, C)
    assert views.C is views.out


@pytest.mark.parametrize("shape", [(0, 5, 8), (3, 0, 8), (3, 5, 0), (2, 0, 5, 8)], ids=str)
def test_nothing_to_multiply_gives_beta_c(shape: tuple[int, ...]) -> None:
    A, B = torch.ones(shape), torch.ones(*shape[:-2], shape[-1], 7)
    C = torch.ones(*shape[:-1], 7)
    for right in (B, torch.ones(shape[-1], 7)):
        assert torch.equal(gemm(1.5, A, right, 2.0, C), 2 * C)
        assert torch.equal(gemm(1.5, A, right), torch.zeros_like(C))
        assert explain(1.5, A, right).strategy == "scale"
    A = A.clone().requires_grad_()
    gemm(1.5, A, B, 2.0, C).sum().backward()
    assert torch.equal(A.grad, 7 * 1.5 * torch.ones(shape))


def test_a_c_of_nan_is_not_read_where_beta_is_0_nor_operands_where_alpha_is() -> None:
    A, B, C = normal(3, 5, 8), normal(3, 8, 7), torch.full((3, 5, 7), torch.nan)
    for right in (B, B[0]):
        assert gemm(1.5, A, right, 0.0, C).isfinite().all()
        assert gemm(1.5, A, right, 0.0, C, out=C.clone()).isfinite().all()
        assert torch.equal(gemm(0.0, C.mT, C, 0.0), torch.zeros(3, 7, 7))


WRONG: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], str]] = {
    "batches": ((2, 5, 8), (3, 8, 7), (2, 5, 7), "leading dimensions"),
    "broadcast": ((2, 1, 5, 8), (1, 3, 8, 7), (2, 3, 5, 7), "not broadcast: pass A.expand"),
    "inner sizes": ((2, 5, 8), (2, 7, 8), (2, 5, 7), r"Did you mean B\.mT\?"),
    "C": ((2, 5, 8), (2, 8, 7), (5, 7), r"pass C\.expand\(2, 5, 7\)"),
    "a vector": ((2, 5, 8), (8,), (2, 5, 7), "B has 1 dimension"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_batch_is_said(case: str) -> None:
    a, b, c, words = WRONG[case]
    with pytest.raises(InvalidProblem, match=words):
        gemm(1.0, torch.ones(a), torch.ones(b), 1.0, torch.ones(c))


def test_out_must_not_meet_another_matrix_of_the_batch() -> None:
    buffer = normal(4, 6, 6)
    gemm(1.0, buffer[:2], buffer[2:].clone(), out=buffer[2:])
    with pytest.raises(InvalidProblem, match="out shares memory with A"):
        gemm(1.0, buffer[:2], buffer[:2].clone(), out=buffer[1:3])
    with pytest.raises(InvalidProblem, match="share one address"):
        gemm(1.0, buffer[:2], buffer[2:], out=normal(6, 6).expand(2, 6, 6))


@pytest.mark.parametrize("candidate", ["loop", "matmul_axpby", "baddbmm"])
def test_whatever_serves_a_batch_gives_the_same_gradients(
    candidate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from autogemm.strategies import Candidate

    params = {"loop": {"inner": "matmul_axpby"}, "baddbmm": {"reduction": "full"}}
    wanted = Candidate.of(candidate, **params.get(candidate, {}))
    original = api.dispatch.plan

    def forced(*arguments: object):  # type: ignore[no-untyped-def]
        from dataclasses import replace

        plan = original(*arguments)
        return replace(plan, candidate=wanted) if plan.problem.batch > 1 else plan

    autogemm.reload_tables()
    monkeypatch.setattr(api.dispatch, "plan", forced)
    shapes = ((3, 5, 8), (3, 8, 7), (3, 5, 7))
    A, B, C = (normal(*shape, dtype=torch.float64).requires_grad_() for shape in shapes)
    assert explain(1.5, A, B, 0.5, C).plan.candidate == wanted
    assert torch.autograd.gradcheck(lambda a, b, c: gemm(1.5, a, b, 0.5, c), (A, B, C))
    assert torch.autograd.gradcheck(lambda a, b, c: gemm(1.5, a, b, 0.5, c), (A[0], B, C))
    monkeypatch.undo()
    autogemm.reload_tables()


def test_a_c_that_does_not_merge_and_is_not_read_does_not_matter() -> None:
    A, B, C = normal(2, 6, 5), normal(5, 4), normal(6, 4).expand(2, 6, 4)
    for _ in ("cold", "warm"):
        check(gemm(1.5, A, B, 0.0, C), 1.5, A, B, 0, None)
    check(gemm(1.5, A, B, 0.5, C), 1.5, A, B, 0.5, C)
    assert explain(1.5, A, B, 0.0, C).plan.problem.batch == 1
