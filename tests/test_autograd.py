"""Derivatives of gemm: right to second order, by tuned products, at the level of the forward."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

import autogemm
from autogemm import InvalidProblem, api, gemm
from autogemm.dispatch import Plan


def seeded(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(*shape, dtype=dtype, generator=generator) for shape in shapes]


BATCHES: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    "one": ((3, 4), (4, 2), (3, 2)),
    "a row": ((1, 4), (4, 2), (1, 2)),
    "batch": ((2, 3, 4), (2, 4, 2), (2, 3, 2)),
    "shared B": ((2, 3, 4), (4, 2), (2, 3, 2)),
    "shared A": ((3, 4), (2, 4, 2), (2, 3, 2)),
    "two dimensions": ((2, 2, 3, 4), (2, 2, 4, 2), (2, 2, 3, 2)),
    "two dimensions, shared B": ((2, 2, 3, 4), (4, 2), (2, 2, 3, 2)),
    "two dimensions, shared A": ((3, 4), (2, 2, 4, 2), (2, 2, 3, 2)),
}
batches = pytest.mark.parametrize("shapes", BATCHES.values(), ids=BATCHES)


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Plan]]:
    """The plans made, in order."""
    made: list[Plan] = []

    def spy(*arguments: object) -> Plan:
        made.append(original(*arguments))
        return made[-1]

    original = api.dispatch.plan
    autogemm.reload_tables()
    monkeypatch.setattr(api.dispatch, "plan", spy)
    yield made
    monkeypatch.undo()
    autogemm.reload_tables()


@batches
@pytest.mark.parametrize("beta", [-0.5, 0.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_first_and_second_derivatives_are_right(
    shapes: tuple[tuple[int, ...], ...], beta: float, dtype: torch.dtype
) -> None:
    inputs = [x.requires_grad_() for x in seeded(*shapes, dtype=dtype)]
    alpha = 1.5 - 0.5j if dtype.is_complex else 1.5

    def product(A: torch.Tensor, B: torch.Tensor, C: torch.Tensor) -> torch.Tensor:
        return gemm(alpha, A, B, beta, C)

    assert gradcheck(product, inputs, check_forward_ad=True)
    assert gradgradcheck(product, inputs)


@pytest.mark.parametrize("needy", ["A", "B", "C", "AB", "BC"])
def test_only_what_requires_a_gradient_gets_one(needy: str) -> None:
    A, B, C = seeded(*BATCHES["one"])
    for name, x in zip("ABC", (A, B, C), strict=True):
        x.requires_grad_(name in needy)
    gemm(1.5, A, B, 0.5, C).sum().backward()
    for name, x in zip("ABC", (A, B, C), strict=True):
        assert (x.grad is not None) == (name in needy)


def test_transposed_and_strided_operands_have_gradients_of_their_own_shape() -> None:
    A, B, C = (x.requires_grad_() for x in seeded((4, 3), (4, 4), (2, 3)))
    assert gradcheck(lambda a, b, c: gemm(1.5, a.t(), b[:, ::2], 0.5, c.t()), (A, B, C))


def test_a_bias_row_gets_the_sum_over_rows() -> None:
    A, B, bias = (x.requires_grad_() for x in seeded((3, 4), (4, 2), (2,)))
    assert gradcheck(lambda a, b, c: gemm(1.5, a, b, 0.5, c.expand(3, 2)), (A, B, bias))
    assert gradgradcheck(lambda a, b, c: gemm(1.5, a, b, 0.5, c.expand(3, 2)), (A, B, bias))


def test_without_anything_to_differentiate_there_is_no_graph() -> None:
    A, B, C = seeded(*BATCHES["one"])
    assert gemm(1.5, A, B, 0.5, C).grad_fn is None
    A.requires_grad_()
    with torch.no_grad():
        assert gemm(1.5, A, B, 0.5, C).grad_fn is None
    with torch.inference_mode():
        assert gemm(1.5, A, B, 0.5, C).grad_fn is None
    assert gemm(1.5, A.detach(), B, 0.5, C).grad_fn is None


def test_every_product_of_a_training_step_is_planned_here(plans: list[Plan]) -> None:
    A, B, C = (x.requires_grad_() for x in seeded((30, 40), (40, 20), (30, 20)))
    gemm(1.5, A, B, 0.5, C).sum().backward()
    sizes = [(plan.problem.m, plan.problem.n, plan.problem.k) for plan in plans]
    assert sizes == [(30, 20, 40), (30, 40, 20), (40, 20, 30)]


@pytest.mark.parametrize("precision", [None, "medium", 1e-2])
def test_the_backward_products_keep_the_level_of_the_forward(
    plans: list[Plan], precision: str | float | None
) -> None:
    A, B = (x.requires_grad_() for x in seeded((30, 40), (40, 20), dtype=torch.float32))
    setting = torch.backends.mkldnn.matmul.fp32_precision
    try:
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
        result = gemm(1.5, A, B, precision=precision)
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = setting
    result.sum().backward()
    assert len({str(plan.tolerance) for plan in plans}) == 1
    assert str(plans[0].tolerance) == str(precision or "medium")


def test_only_what_the_backward_needs_is_kept() -> None:
    kept: list[int] = []
    A, B, C = seeded(*BATCHES["one"])

    def pack(x: torch.Tensor) -> torch.Tensor:
        kept.append(x.data_ptr())
        return x

    for needy, expected in ((A, [B.data_ptr()]), (B, [A.data_ptr()]), (C, [])):
        needy.requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            result = gemm(1.5, A, B, 0.5, C)
        assert kept == expected
        assert not getattr(result.grad_fn, "saved_for_forward", None)
        needy.requires_grad_(False)
        kept.clear()


def test_an_operand_changed_before_the_backward_is_noticed() -> None:
    A, B = seeded((3, 4), (4, 2))
    A.requires_grad_()
    result = gemm(1.5, A, B)
    B.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.sum().backward()


def test_a_factor_of_zero_reads_nothing_and_gives_gradients_of_zero() -> None:
    A, B, C = (x.requires_grad_() for x in seeded(*BATCHES["one"]))
    with torch.no_grad():
        B.fill_(torch.nan)
    gemm(0.0, A, B, 0.5, C).sum().backward()
    assert torch.equal(A.grad, torch.zeros_like(A))
    with torch.no_grad():
        C.fill_(torch.nan)
    C.grad = None
    gemm(1.0, A, torch.ones_like(B), 0.0, C).sum().backward()
    assert torch.equal(C.grad, torch.zeros_like(C))


def test_gradients_of_16_bit_operands_have_their_type() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        A, B, C = (x.requires_grad_() for x in seeded((30, 40), (40, 20), (30, 20), dtype=dtype))
        gemm(1.5, A, B, 0.5, C).sum().backward()
        wide = [x.detach().double().requires_grad_() for x in (A, B, C)]
        (1.5 * wide[0] @ wide[1] + 0.5 * wide[2]).sum().backward()
        for ours, exact in zip((A, B, C), wide, strict=True):
            assert ours.grad.dtype == dtype
            eps = torch.finfo(dtype).eps
            torch.testing.assert_close(ours.grad.double(), exact.grad, rtol=eps, atol=eps)


def test_a_checkpointed_step_and_threads_of_steps_have_the_same_gradients() -> None:
    inputs = seeded((6, 9), (9, 5), (6, 5))

    def gradients(wrapped: bool) -> list[torch.Tensor]:
        A, B, C = (x.clone().requires_grad_() for x in inputs)

        def step(A: torch.Tensor, B: torch.Tensor, C: torch.Tensor) -> torch.Tensor:
            return gemm(1.5, A, B, 0.5, C).tanh()

        y = checkpoint(step, A, B, C, use_reentrant=False) if wrapped else step(A, B, C)
        y.square().sum().backward()
        return [x.grad for x in (A, B, C)]

    expected = gradients(False)
    results: list[list[torch.Tensor]] = [gradients(True)]
    threads = [
        threading.Thread(target=lambda: results.append(gradients(False))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 5
    for result in results:
        for x, y in zip(result, expected, strict=True):
            assert torch.equal(x, y)


# --------------------------------------------------------------------- torch.func, forward mode

DIMS = [d for d in itertools.product((None, 0, 1, 2), repeat=3) if d != (None, None, None)]


@pytest.mark.parametrize("dims", DIMS, ids=str)
def test_vmap_is_a_loop(dims: tuple[int | None, ...]) -> None:
    A, B, C = seeded((3, 4), (4, 2), (3, 2))
    mapped = [
        x if dim is None else torch.stack([x, 2 * x, x - 1], dim)
        for x, dim in zip((A, B, C), dims, strict=True)
    ]
    found = torch.vmap(lambda a, b, c: gemm(1.5, a, b, 0.5, c), in_dims=dims)(*mapped)
    for i in range(3):
        one = [
            x if dim is None else x.select(dim, i) for x, dim in zip(mapped, dims, strict=True)
        ]
        torch.testing.assert_close(found[i], 1.5 * one[0] @ one[1] + 0.5 * one[2])


@pytest.mark.parametrize("dims", DIMS, ids=str)
@pytest.mark.parametrize("shared", ["A", "B"])
def test_vmap_maps_what_a_batch_shares(shared: str, dims: tuple[int | None, ...]) -> None:
    batch = (2, 5)
    A, B, C = seeded(
        (*(() if shared == "A" else batch), 3, 4), (*(() if shared == "B" else batch), 4, 2),
        (*batch, 3, 2),
    )  # fmt: skip
    mapped = [
        x if dim is None else torch.stack([x, 2 * x, x - 1], dim)
        for x, dim in zip((A, B, C), dims, strict=True)
    ]
    found = torch.vmap(lambda a, b, c: gemm(1.5, a, b, 0.5, c), in_dims=dims)(*mapped)
    for i in range(3):
        a, b, c = (
            x if dim is None else x.select(dim, i) for x, dim in zip(mapped, dims, strict=True)
        )
        torch.testing.assert_close(found[i], 1.5 * a @ b + 0.5 * c)


def test_vmap_nests_and_takes_batches() -> None:
    A, B, C = seeded((2, 5, 3, 4), (5, 4, 2), (2, 5, 3, 2))
    found = torch.vmap(torch.vmap(lambda a, b, c: gemm(1.5, a, b, 0.5, c)), (0, None, 0))(A, B, C)
    torch.testing.assert_close(found, 1.5 * A @ B + 0.5 * C)
    found = torch.vmap(lambda a, c: gemm(1.5, a, B, 0.5, c))(A, C)
    torch.testing.assert_close(found, 1.5 * A @ B + 0.5 * C)
    found = torch.vmap(lambda a: gemm(1.5, a, B[0]))(A)
    torch.testing.assert_close(found, 1.5 * A @ B[0])


def test_per_sample_gradients_jacobians_and_hessians_are_right() -> None:
    x, W = seeded((7, 3, 4), (4, 2))

    def loss(multiply: object, W: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return multiply(x, W).tanh().square().sum()  # type: ignore[operator]

    def both(transform: object) -> tuple[torch.Tensor, torch.Tensor]:
        ours, torchs = (lambda a, b: gemm(1.0, a, b)), torch.matmul
        return transform(ours), transform(torchs)  # type: ignore[operator]

    for transform in (
        lambda f: torch.vmap(torch.func.grad(lambda W, x: loss(f, W, x)), (None, 0))(W, x),
        lambda f: torch.func.jacrev(lambda W: f(x[0], W))(W),
        lambda f: torch.func.jacfwd(lambda W: f(x[0], W))(W),
        lambda f: torch.func.hessian(lambda W: loss(f, W, x[0]))(W),
        lambda f: torch.func.jvp(lambda W: loss(f, W, x[0]), (W,), (W,))[1],
    ):
        ours, torchs = both(transform)
        torch.testing.assert_close(ours, torchs)


def test_forward_mode_adds_up_the_tangents_of_all_operands() -> None:
    A, B, C, dA, dB, dC = seeded(*BATCHES["one"], *BATCHES["one"])
    for beta in (0.5, 0.0):
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(x, d) for x, d in ((A, dA), (B, dB), (C, dC))]
            found = forward_ad.unpack_dual(gemm(1.5, duals[0], duals[1], beta, duals[2])).tangent
        torch.testing.assert_close(found, 1.5 * (dA @ B + A @ dB) + beta * dC)


def test_out_is_refused_inside_transforms() -> None:
    A, B = seeded((3, 4), (4, 2))
    out = torch.empty(3, 2, dtype=torch.float64)
    with forward_ad.dual_level(), pytest.raises(InvalidProblem, match="out is given inside"):
        gemm(1.0, forward_ad.make_dual(A, A), B, out=out)
    with pytest.raises(InvalidProblem, match="out is given inside"):
        torch.vmap(lambda b: gemm(1.0, A, b, out=out))(torch.stack([B, B]))


# ----------------------------------------------------------------------------------- autocast


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_as_it_does_for_addmm(dtype: torch.dtype) -> None:
    A, B, C = (x.requires_grad_() for x in seeded((6, 9), (9, 5), (6, 5), dtype=torch.float32))
    for _ in ("cold", "warm"):
        with torch.autocast("cpu", dtype=dtype):
            ours = gemm(1.0, A, B, 1.0, C)
            torchs = torch.addmm(C, A, B)
            mixed = gemm(1.0, A.to(dtype), B, 1.0, C)
        assert ours.dtype == torchs.dtype == mixed.dtype == dtype
        torch.testing.assert_close(ours, torchs)
        assert torch.equal(mixed, ours)
        ours.sum().backward()
        assert {x.grad.dtype for x in (A, B, C)} == {torch.float32}
    assert gemm(1.0, A, B, 1.0, C).dtype == torch.float32


def test_autocast_casts_a_bias_as_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    A, B, bias = seeded((6, 9), (9, 5), (5,), dtype=torch.float32)
    seen: list[tuple[int, ...]] = []
    original = api.plan_for
    monkeypatch.setattr(api, "plan_for", lambda *a: seen.append(a[3].stride()) or original(*a))
    autogemm.reload_tables()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert gemm(1.0, A, B, 1.0, bias.expand(6, 5)).dtype == torch.bfloat16
    assert seen == [(0, 1)]


def test_autocast_leaves_alone_what_it_leaves_alone_for_addmm() -> None:
    A, B, C = seeded((6, 9), (9, 5), (6, 5))
    out = torch.empty(6, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert gemm(1.0, A, B, 1.0, C).dtype == torch.float64
        assert gemm(1.0, A.float(), B.float(), out=out).dtype == torch.float32
        assert gemm(1.0, A.float(), B.float(), precision="highest").dtype == torch.float32
        with torch.autocast("cpu", enabled=False):
            assert gemm(1.0, A.float(), B.float()).dtype == torch.float32
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert gemm(1.0, A.float(), B.float()).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert gemm(1.0, A.float(), B.float()).dtype == torch.bfloat16


# ------------------------------------------------------------------------ what reviews found


def test_a_result_may_be_updated_in_place_while_training() -> None:
    x, W = seeded((2, 6, 5), (5, 4))
    y = gemm(1.0, x, W.requires_grad_())
    assert not y._is_view()
    y += 1
    y.sum().backward()
    torch.testing.assert_close(W.grad, x.sum((0, 1))[:, None].expand(5, 4))


def test_gradients_of_a_batch_are_batched_themselves() -> None:
    x, W = seeded((2, 3, 5), (5, 4))
    for vectorize in (True, False):
        ours = torch.autograd.functional.jacobian(
            lambda w: gemm(1.0, x, w), W, vectorize=vectorize
        )
        torchs = torch.autograd.functional.jacobian(lambda w: x @ w, W, vectorize=vectorize)
        torch.testing.assert_close(ours, torchs)


@pytest.mark.parametrize("name", ["alpha", "beta"])
def test_a_factor_that_forward_mode_follows_is_refused(name: str) -> None:
    A, B, C = seeded(*BATCHES["one"])
    one = torch.ones((), dtype=torch.float64)

    def call(s: torch.Tensor) -> torch.Tensor:
        return gemm(s, A, B, 0.5, C) if name == "alpha" else gemm(1.5, A, B, s, C)

    with pytest.raises(InvalidProblem, match=f"{name} is a tensor that requires grad"):
        torch.func.jvp(call, (one,), (one,))
    with forward_ad.dual_level(), pytest.raises(InvalidProblem, match="requires grad"):
        call(forward_ad.make_dual(one, one))
    assert torch.equal(call(one), call(1.0))  # type: ignore[arg-type]


def test_a_warm_call_refuses_an_out_that_autograd_would_follow_only_now() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        A, B, w = seeded(*BATCHES["one"], dtype=dtype)
        w.requires_grad_()
        with torch.no_grad():
            gemm(1.0, A, B, out=(w * 1).detach())
            view = w.view(3, 2)
            gemm(1.0, A, B, out=view.data)
        with torch.no_grad():
            gemm(1.0, A, B, out=w)
        with pytest.raises(InvalidProblem, match="requires grad"):
            gemm(1.0, A, B, out=w)


def test_numbers_of_other_kinds_are_remembered_as_numbers() -> None:
    A, B, C = seeded(*BATCHES["one"])
    expected = gemm(1.5, A, B, 0.5, C)
    gemm(np.float64(1.5), A, B, torch.tensor(0.5), C)
    known = len(api._warm)
    for _ in range(3):
        assert torch.equal(gemm(np.float64(1.5), A, B, torch.tensor(0.5), C), expected)
    assert len(api._warm) == known


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("which", ["A", "B"])
def test_a_gradient_lies_as_its_operand_does(which: str, dtype: torch.dtype) -> None:
    """A weight is stored transposed: so is its gradient, and adding it up copies nothing."""
    A, B = (torch.randn(*shape, dtype=dtype) for shape in ((6, 5), (5, 4)))
    if which == "A":
        A = A.t().contiguous().t()
    else:
        B = B.t().contiguous().t()
    A.requires_grad_()
    B.requires_grad_()
    G = torch.randn(6, 4, dtype=dtype)
    found = torch.autograd.grad(gemm(1.5, A, B), (A, B), G)
    wanted = torch.autograd.grad(1.5 * (A @ B), (A, B), G)
    for operand, x, y in zip((A, B), found, wanted, strict=True):
        assert torch.allclose(x, y)
        assert x.stride() == operand.stride()
    assert torch.autograd.gradcheck(lambda a, b: gemm(1.5, a, b), (A, B))


@pytest.mark.parametrize("which", ["A", "B"])
def test_a_gradient_lies_as_torchs_own_does_where_columns_have_gaps_or_are_single(
    which: str,
) -> None:
    for rows, cols, gap in ((6, 5, 2), (1, 5, 0), (1, 5, 1), (6, 1, 0), (6, 1, 1), (1, 1, 0)):
        X = torch.randn(cols, rows + gap)[:, :rows].t().requires_grad_()
        Y = torch.randn(cols, 4) if which == "A" else torch.randn(4, rows)
        operands = (X, Y) if which == "A" else (Y, X)
        found, wanted = (
            torch.autograd.grad(product.sum(), X)[0]
            for product in (gemm(1.5, *operands), torch.addmm(
                torch.zeros(operands[0].shape[0], operands[1].shape[1]), *operands, alpha=1.5
            ))
        )  # fmt: skip
        torch.testing.assert_close(found, wanted)
        assert found.stride() == wanted.stride(), (rows, cols, gap)
