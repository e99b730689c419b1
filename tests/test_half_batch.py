"""Batches by ``triton_gemm``: every matrix by itself, in one launch.

As in ``test_half_product.py`` the kernel runs on a GPU, or in Triton's interpreter.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import replace

import pytest
import torch
from invented import GPU
from test_half_product import HALVES, candidate, product
from test_kernels import PLACE, checked_descriptor, gpu_problem, here, normal, serve

from autogemm.grading.oracle import truth_of
from autogemm.problem import Problem, contiguous_problem
from autogemm.strategies import BY_NAME, Candidate

half_batches = importlib.import_module("autogemm.kernels.half_batch")
operand_tiles = importlib.import_module("autogemm.kernels.operands")
Tiling = importlib.import_module("autogemm.kernels.split_product").Tiling

pytestmark = pytest.mark.filterwarnings("ignore:::triton.runtime.interpreter")

STRATEGY = BY_NAME["triton_gemm"]
TILES = (
    candidate(),
    candidate(bm=128, bn=64, bk=64, persistent=True),
    candidate(bm=64, bn=16),
    candidate(bm=16, bn=64),
)
# (batch, m, n, k): odd wherever aligned rows and columns leave an extent free.
SIZES = {
    "nn": (3, 67, 24, 40),
    "tn": (2, 24, 72, 37),
    "nt": (3, 19, 67, 40),
    "tt": (2, 72, 21, 104),
}


@pytest.fixture(autouse=True)
def _descriptors_are_legal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operand_tiles, "_unchecked", checked_descriptor)


def operands(
    layout: str, batch: int, m: int, n: int, k: int, dtype: torch.dtype = torch.float16
) -> tuple[torch.Tensor, torch.Tensor]:
    A, B = normal(batch, m, k, dtype=dtype), normal(batch, k, n, dtype=dtype)
    return (
        A.mT.contiguous().mT if layout[0] == "t" else A,
        B.mT.contiguous().mT if layout[1] == "t" else B,
    )


def run(
    A: torch.Tensor, B: torch.Tensor, C: torch.Tensor | None = None,
    out: torch.Tensor | None = None, how: Candidate = TILES[0],
) -> torch.Tensor:  # fmt: skip
    """A·B, plus C unless it is None."""
    beta = 0.0 if C is None else 1.0
    problem = gpu_problem(A, B, C, out, beta)
    assert not STRATEGY.reasons_not(problem, here(), how.kwargs)
    return STRATEGY.bind(problem, here(), how.kwargs)(1.0, A, B, beta, C, out)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("layout", SIZES)
@pytest.mark.parametrize("how", TILES, ids=str)
def test_every_layout_keeps_the_bound(
    how: Candidate, layout: str, dtype: torch.dtype
) -> None:
    batch, m, n, _ = SIZES[layout]
    A, B = operands(layout, *SIZES[layout], dtype=dtype)
    C = normal(batch, m, n, dtype=dtype)
    for alpha, beta, addend, out in (
        (1.0, 0.0, None, "new"),
        (-1.5, 0.5, C, "C"),
        (1.0, 2.0, C[0, :1].expand(C.shape), "col"),
        (1.5, 1.0, C[:1].expand(C.shape), "block"),
        (0.5, -1.0, C.mT.contiguous().mT, "row"),
    ):
        truth = truth_of(alpha, A.cpu(), B.cpu(), beta, None if addend is None else addend.cpu())
        assert serve(how, alpha, A, B, beta, addend, out, truth)


@pytest.mark.parametrize("how", TILES, ids=str)
def test_a_batch_has_the_bits_of_its_single_products(how: Candidate) -> None:
    A, B = operands("nn", 2, 67, 24, 104)
    result = run(A, B, how=how)
    assert result.is_contiguous()
    for a, b, found in zip(A, B, result, strict=True):
        assert torch.equal(found, run(a, b, how=how))


@pytest.mark.parametrize("how", TILES[:2], ids=str)
def test_matrices_may_be_shared_or_lie_between_each_other(how: Candidate) -> None:
    A, B = operands("nn", 3, 24, 24, 40)
    exact = run(A, B, how=how)
    heads = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (A, B)]
    assert heads[0].stride(0) < heads[0].stride(1)
    assert torch.equal(run(*heads, how=how), exact)
    for a, b in ((A[1:2].expand(A.shape), B), (A, B[2:].expand(B.shape))):
        assert torch.equal(run(a, b, how=how), run(a.contiguous(), b.contiguous(), how=how))
    beside = normal(3, 24, 48, dtype=torch.float16)
    before = beside.clone()
    C = beside[..., :24]
    assert run(A, B, C, C, how) is C
    assert torch.equal(C, run(A, B, before[..., :24], how=how))
    assert torch.equal(beside[..., 24:], before[..., 24:]), "memory beside the result changed"


@pytest.mark.parametrize("how", TILES, ids=str)
@pytest.mark.parametrize(("layout", "value"), [*zip(SIZES, (math.inf, math.nan) * 2, strict=True)])
def test_what_one_matrix_holds_is_nothing_to_its_neighbours(
    layout: str, value: float, how: Candidate
) -> None:
    """Tiles reach beyond a matrix, over rows and over k; what follows it in memory is another."""
    A, B = operands(layout, 3, *SIZES[layout][1:])
    ordinary = run(A, B, how=how)
    C = torch.zeros_like(ordinary)
    for x in (A, B, C):
        x[1] = value
    result = run(A, B, C, how=how)
    assert torch.equal(result[::2], ordinary[::2])
    assert not result[1].isfinite().any()


def test_a_few_programs_compute_all_tiles_of_all_matrices() -> None:
    A, B = operands("nn", 5, 200, 136, 72)
    exact = run(A, B)
    for programs in (1, 3, 7, 1000):
        out = torch.full_like(exact, math.nan)
        half_batches.half_batch(
            1.0, A, B, 0.0, None, out, tiling=Tiling(64, 64, 32, 4, 2, 1), programs=programs
        )
        assert torch.equal(out, exact)


def test_results_far_apart_are_written_where_they_belong() -> None:
    """Matrices of C and of the result may begin anywhere, in any order."""
    A, B = operands("nn", 3, 24, 24, 40)
    exact = run(A, B)
    memory = torch.zeros(24, 3, 25, dtype=torch.float16, device=PLACE)
    out = memory[..., 1:].transpose(0, 1)
    run(A, B, None, out)
    assert torch.equal(out, exact)
    assert not memory[..., 0].any(), "memory beside the result changed"
    apart = torch.zeros(3, 24 * 24 + 1, dtype=torch.float16, device=PLACE)  # rows alone are aligned
    for C in (None, apart[:, :-1].view(3, 24, 24)):
        out = torch.zeros_like(apart)[:, :-1].view(3, 24, 24)
        assert torch.equal(run(A, B, C, out), exact)
    odd = torch.zeros(3, 24, 27, dtype=torch.float16, device=PLACE)[..., :24]
    assert torch.equal(run(A, B, odd, odd), exact)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("layout", SIZES)
def test_batches_of_odd_sizes_keep_the_bound(layout: str, dtype: torch.dtype) -> None:
    for batch, m, n, k in ((3, 19, 21, 37), (2, 65, 67, 69), (2, 24, 21, 1), (2, 1, 9, 33)):
        A, B = operands(layout, batch, m, n, k, dtype=dtype)
        C = normal(batch, m, n, dtype=dtype)
        truth = truth_of(-0.5, A.cpu(), B.cpu(), 1.5, C.cpu())
        for how in TILES[:2]:
            assert serve(how, -0.5, A, B, 1.5, C, "C" if batch == 3 else "col", truth)


def test_what_is_copied_may_be_shared_or_lie_anywhere() -> None:
    A, B = operands("nn", 3, 19, 21, 37)
    exact = run(A, B)
    assert torch.equal(exact, torch.stack([run(a, b) for a, b in zip(A, B, strict=True)]))
    heads = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (A, B)]
    wide = [torch.full((*x.shape[:2], 64), math.nan).to(x) for x in (A, B)]
    padded = [w[..., : x.shape[2]].copy_(x) for w, x in zip(wide, (A, B), strict=True)]
    apart = [x.new_empty(3, x[0].numel() + 3)[:, 3:].view_as(x).copy_(x) for x in (A, B)]
    for a, b in ((heads[0], B), (A, heads[1]), padded, apart, heads):
        assert torch.equal(run(a, b), exact)
    for a, b in ((A[1:2].expand(A.shape), B), (A, B[2:].expand(B.shape))):
        assert torch.equal(run(a, b), run(a.contiguous(), b.contiguous()))
    A[1], B[1] = math.nan, math.inf
    assert torch.equal(run(A, B)[::2], exact[::2])


def test_the_stride_over_a_single_row_means_nothing() -> None:
    A, B = operands("nn", 3, 1, 24, 40)
    exact = run(A, B)
    for stride in (0, 1, 5):
        assert torch.equal(run(A.as_strided(A.shape, (40, stride, 1)), B), exact)


def test_a_single_product_is_not_handed_to_the_kernel_for_batches() -> None:
    A, B = operands("nn", 2, 24, 24, 40)
    out = torch.empty(24, 24, dtype=torch.float16, device=PLACE)
    assert torch.equal(product(1.0, A[0], B[0], 0.0, None, out), run(A[0], B[0]))


# ------------------------------------------------------------------------------ the strategy


def batch_of(**changed: object) -> Problem:
    problem = contiguous_problem(1024, 1024, 64, torch.bfloat16, device_type="cuda", batch=96)
    return replace(problem, **changed)  # type: ignore[arg-type]


@pytest.mark.parametrize("stride", [(1, 1, 1), (8, 1, 1), (0, 1, 1), (3, 1, 7), (3, 7, 1)])
def test_strides_of_single_elements_mean_nothing(stride: tuple[int, int, int]) -> None:
    """Columns of them seem contiguous either way round."""
    x = torch.arange(40.0, dtype=torch.float16, device=PLACE).as_strided((5, 1, 1), stride)
    made = half_batches.aligned(x)
    assert torch.equal(made[:, :1, :1], x)
    assert not made[:, 1:, :].any()
    assert not made[:, :, 1:].any()


def test_batches_of_aligned_matrices_are_served() -> None:
    for layouts in ({}, {"a": "col"}, {"b": "col"}, {"out": "col"}, {"out": "strided"}):
        for update in ("none", "add", "bias", "inplace"):
            problem = batch_of(update=update, **layouts)
            assert not STRATEGY.reasons_not(problem, GPU, TILES[0].kwargs)


def test_reasons_name_the_operand_that_cannot_be_read() -> None:
    for name, field in (("A", "a"), ("B", "b")):
        (reason,) = STRATEGY.reasons_not(batch_of(**{field: "strided"}), GPU, TILES[0].kwargs)
        assert f"{name} is strided" in reason
        odd = batch_of(**{field: "row-unaligned"})
        assert not STRATEGY.reasons_not(odd, GPU, TILES[0].kwargs)
        (reason,) = STRATEGY.reasons_not(replace(odd, batch=2**21), GPU, TILES[0].kwargs)
        assert "together at most" in reason
    (reason,) = STRATEGY.reasons_not(batch_of(), GPU, candidate(slices=2).kwargs)
    assert "k is whole in batches" in reason
    direct = {**candidate().kwargs, "reads": "direct"}
    assert STRATEGY.reasons_not(batch_of(a="row-unaligned"), GPU, direct)


def test_no_launch_has_more_programs_than_there_can_be() -> None:
    most = batch_of(m=64, n=64, batch=2**31 - 2**16)
    assert not STRATEGY.reasons_not(most, GPU, TILES[0].kwargs)
    for more in (replace(most, batch=most.batch + 1), replace(most, m=65)):
        (reason,) = STRATEGY.reasons_not(more, GPU, TILES[0].kwargs)
        assert "programs at most" in reason


def test_the_space_of_a_batch_has_tiles_of_its_matrices_and_no_slices() -> None:
    found = STRATEGY.candidates(batch_of(), GPU)
    assert found
    assert {c.kwargs["slices"] for c in found} == {1}
    assert {c.kwargs["persistent"] for c in found} == {True, False}
    assert not any("reads" in c.kwargs for c in found)
    narrow = STRATEGY.candidates(batch_of(n=16, k=1024), GPU)
    assert narrow
    assert {c.kwargs["bn"] for c in narrow} == {16}
    few = STRATEGY.candidates(batch_of(batch=2, m=256, n=256), GPU)
    assert not any(c.kwargs["persistent"] for c in few), "programs enough for every tile at once"


def test_a_batch_needs_memory_for_copies_alone() -> None:
    assert STRATEGY.workspace_bytes(batch_of(), TILES[0].kwargs) == 0
    odd = batch_of(a="row-unaligned")
    assert STRATEGY.workspace_bytes(odd, TILES[0].kwargs) == 96 * 1024 * 64 * 2
