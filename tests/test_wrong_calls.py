"""What a wrong call is told, and that it leaves everything as it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from calling import (
    operands,
    same_bits,
)

from autogemm import InvalidProblem, explain, gemm

pytestmark = pytest.mark.usefixtures("tables")


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
