"""``cublaslt`` against a stand-in for the library: every layout, its space, its misses."""

from __future__ import annotations

import gc
import itertools
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import fake_cublaslt
import pytest
import torch
from fake_cublaslt import ALIGNED_ONLY, ANY_ALIGNMENT, REFUSED, Bindings
from invented import GPU as OTHER_GPU

from autogemm import dispatch
from autogemm.aliasing import same_view
from autogemm.precision import Tolerance, underflow, unit_roundoff
from autogemm.problem import DTYPES, Problem, _layout, contiguous_problem
from autogemm.strategies import BY_NAME, Candidate, Run
from autogemm.strategies.base import ParamValue

bindings = fake_cublaslt.bindings

STRATEGY = BY_NAME["cublaslt"]
GPU = replace(OTHER_GPU, units=fake_cublaslt.UNITS, packages=frozenset({"triton", "nvmath"}))
PARAMS: dict[str, ParamValue] = {
    "algo": ANY_ALIGNMENT, "tile": 15, "stages": 0, "split_k": 1, "reduction": 0, "swizzle": 0,
    "custom": 0, "inner": 0, "cluster": 0,
}  # fmt: skip
FAST: dict[str, ParamValue] = {**PARAMS, "algo": ALIGNED_ONLY}
SPLIT: dict[str, ParamValue] = {**PARAMS, "split_k": 4, "reduction": 2}
CUBE = contiguous_problem(64, 48, 32, torch.float32)


def laid_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    if layout.startswith("col"):
        return laid_out(x.mT, layout.replace("col", "row")).mT
    *batch, rows, cols = x.shape
    if layout == "row":
        return x.contiguous()
    if layout == "row_sliced":
        return x.new_empty(*batch, rows + 2, cols + 5)[..., 1:-1, 2:-3].copy_(x)
    if layout == "row_between":  # rows of one matrix between those of another
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "row_shared":
        return x[:1].contiguous().expand(x.shape)
    if layout == "row_apart":
        step = rows * cols + 3
        return x.new_empty(len(x) * step).as_strided(x.shape, (step, cols, 1)).copy_(x)
    return x.new_empty(*batch, 2 * rows, 2 * cols)[..., ::2, ::2].copy_(x)


def problem_for(
    A: torch.Tensor, B: torch.Tensor, C: torch.Tensor | None, out: torch.Tensor | None
) -> Problem:
    """The problem that the same addresses and strides form on a GPU."""

    def layout(x: torch.Tensor) -> str:
        return _layout(tuple(x.shape), x.stride(), x.data_ptr(), x.element_size(), "cuda")

    (*batch, m, k), n = A.shape, B.shape[-1]
    made = contiguous_problem(
        m, n, k, A.dtype, update="none" if C is None else "add", batch=math.prod(batch)
    )
    if C is not None and out is not None and same_view(out, C):
        made = replace(made, update="inplace")
    elif C is not None and m > 1 and not any(C.stride()[:-1]):
        made = replace(made, update="bias")
    return replace(
        made, a=layout(A), b=layout(B), out=made.out if out is None else layout(out)
    )


def check(
    result: torch.Tensor,
    alpha: complex,
    A: torch.Tensor,
    B: torch.Tensor,
    beta: complex,
    C: torch.Tensor | None,
    problem: Problem,
) -> None:
    """Hold a result to the declared bound, C being what it was before."""
    wide = torch.complex128 if A.is_complex() else torch.float64
    exact = alpha * (A.to(wide) @ B.to(wide))
    size = abs(alpha) * (A.to(wide).abs() @ B.to(wide).abs())
    if C is not None:
        exact += beta * C.to(wide)
        size += abs(beta) * C.to(wide).abs()
    own = unit_roundoff(A.dtype)
    u = max(2.0**-53, min(own, 2.0**-24))
    allowed = own * exact.abs() + STRATEGY.bound(problem, PARAMS).total * u * size
    assert ((result.to(wide) - exact).abs() <= allowed + underflow(A.dtype, problem.k)).all()


def bound_run(problem: Problem, params: dict[str, ParamValue]) -> Run:
    assert STRATEGY.reasons_not(problem, GPU, params) == []
    return STRATEGY.bind(problem, GPU, params)


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("params", [PARAMS, SPLIT], ids=["whole", "split"])
def test_every_layout_of_every_operand_is_computed(
    bindings: Bindings, dtype: torch.dtype, params: dict[str, ParamValue]
) -> None:
    layouts = ("row", "col", "row_sliced", "col_sliced")
    c_layouts = (*layouts, "strided", "one_row", "one_column", "one_number", "none")
    outs = ("none", "row", "col", "row_sliced", "col_sliced", "inplace")
    sizes = ((8, 16, 24), (5, 7, 3), (1, 16, 8), (16, 1, 8), (8, 8, 1), (1, 1, 1))
    axes = itertools.product(layouts, layouts, c_layouts, outs, (1.0, 0.5))
    for i, (a, b, c, to, beta) in enumerate(itertools.islice(axes, 0, None, 13)):
        m, n, k = sizes[i % len(sizes)]
        A, B = laid_out(normal(m, k, dtype=dtype), a), laid_out(normal(k, n, dtype=dtype), b)
        C = normal(m, n, dtype=dtype)
        if c.startswith("one_"):
            if to == "inplace":
                continue
            keep = {"one_row": (1, n), "one_column": (m, 1), "one_number": (1, 1)}[c]
            C = C[: keep[0], : keep[1]].clone().expand(m, n)
        else:
            C = None if c == "none" else laid_out(C, c)
        if to == "inplace":
            out = C
        else:
            out = None if to == "none" else laid_out(A.new_full((m, n), torch.nan), to)
        if to == "inplace" and (C is None or c == "strided"):
            continue
        before = None if C is None else C.clone()
        problem = problem_for(A, B, C, out)
        if "strided" in (problem.a, problem.b, problem.out):
            continue  # a row of one element more than its stride says
        run = bound_run(problem, params)
        result = run(1.5, A, B, 0.0 if C is None else beta, C, out)
        check(result, 1.5, A, B, beta, before, problem)
        if out is not None:
            assert result is out
        else:
            assert result.is_contiguous()
    assert len(bindings.calls) > 80


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_conjugated_views_and_complex_scalars_are_what_they_stand_for(
    bindings: Bindings, dtype: torch.dtype
) -> None:
    A, B, C = (normal(8, 8, dtype=dtype) for _ in range(3))
    for a, b, c in itertools.product((False, True), repeat=3):
        A1, B1, C1 = (x.conj() if lazy else x for x, lazy in ((A, a), (B, b), (C.clone(), c)))
        before = C1.resolve_conj().clone()
        for out in (None, C1, C1.clone(), torch.empty_like(C).conj()):
            C1.copy_(before)
            problem = problem_for(A1, B1, C1, out)
            result = bound_run(problem, PARAMS)(0.5 - 2j, A1, B1, 1j, C1, out)
            check(result.resolve_conj(), 0.5 - 2j, A1, B1, 1j, before, problem)


def test_C_is_read_where_it_lies_and_copied_only_where_it_has_another_form(
    bindings: Bindings,
) -> None:
    A, B, C = normal(16, 16), normal(16, 16), normal(16, 16)
    problem = problem_for(A, B, C, None)
    run = bound_run(problem, FAST)
    for given, out_of_place in (
        (C, True),
        (laid_out(C, "row_sliced")[:, :], False),  # its rows are not aligned
        (normal(16, 32)[:, :16], True),
        (normal(16, 16).T, False),
        (normal(16, 1).expand(16, 16), False),
    ):
        before = given.clone()
        check(run(1.5, A, B, 0.5, given, None), 1.5, A, B, 0.5, before, problem)
        assert bindings.calls[-1]["out_of_place"] == out_of_place
        assert torch.equal(given, before)


def test_one_row_is_added_by_the_epilogue_where_it_needs_no_factor(bindings: Bindings) -> None:
    for dtype in (torch.bfloat16, torch.float32):
        A, B = normal(16, 16, dtype=dtype), normal(16, 16, dtype=dtype)
        C = normal(16, dtype=dtype).expand(16, 16)
        problem = problem_for(A, B, C, None)
        assert problem.update == "bias"
        run = bound_run(problem, PARAMS)
        for beta in (1.0, 0.5, 1.0):
            check(run(1.5, A, B, beta, C, None), 1.5, A, B, beta, C, problem)
            assert bindings.calls[-1]["row"] == (beta == 1)


def test_what_a_problem_does_not_say_of_operands_is_looked_at_in_every_call(
    bindings: Bindings,
) -> None:
    A, B, C = normal(16, 16), normal(16, 16), normal(16, 16)
    problem = problem_for(A, B, C, None)
    run = bound_run(problem, FAST)
    wide = laid_out(normal(16, 16), "row_sliced")  # neither its address nor its rows are aligned
    shifted = torch.empty(16 * 16 + 1)[1:].view(16, 16).copy_(A)
    far = normal(16, 64)[:, :16]
    for left, served in ((A, True), (wide, False), (shifted, False), (far, True)):
        count = len(bindings.calls)
        check(run(1.5, left, B, 0.5, C, None), 1.5, left, B, 0.5, C, problem)
        assert len(bindings.calls) - count == served


def test_a_result_written_in_place_is_known_to_autograd(bindings: Bindings) -> None:
    A, B, C = normal(8, 8), normal(8, 8), normal(8, 8)
    version = C._version
    bound_run(problem_for(A, B, C, C), PARAMS)(1.0, A, B, 1.0, C, C)
    assert C._version > version


def test_threads_share_what_is_bound(bindings: Bindings) -> None:
    A, B = normal(16, 16), normal(16, 16)
    problem = problem_for(A, B, normal(16).expand(16, 16), None)
    run = bound_run(problem, PARAMS)

    def calls(seed: int) -> None:
        own = torch.Generator().manual_seed(seed)
        for i in range(60):
            C = torch.randn(16, generator=own).expand(16, 16)
            alpha, beta = seed + 0.25 * i, 1.0 if i % 3 else -0.5
            check(run(alpha, A, B, beta, C, None), alpha, A, B, beta, C, problem)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(calls, range(8)))


def test_descriptors_are_freed_with_what_uses_them(bindings: Bindings) -> None:
    A, B, C = normal(16, 16), normal(16, 16), normal(16).expand(16, 16)
    problem = problem_for(A, B, C, None)
    run = bound_run(problem, PARAMS)
    run(1.0, A, B, 1.0, C, None)
    assert bindings.alive
    del run
    gc.collect()
    assert not bindings.alive


def test_strides_without_end_do_not_fill_the_memory(bindings: Bindings) -> None:
    A, B, buffer = normal(2, 4), normal(4, 4), normal(2, 400)
    problem = problem_for(A, B, None, None)
    run = bound_run(problem, PARAMS)
    for lead in range(4, 400):
        wide = buffer.view(-1)[: 2 * lead].view(2, lead)[:, :4]
        check(run(1.0, wide, B, 0.0, None, None), 1.0, wide, B, 0.0, None, problem)
    gc.collect()
    assert len(bindings.alive) < 500


# --------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("params", [PARAMS, SPLIT], ids=["whole", "split"])
def test_every_layout_of_every_operand_of_a_batch_is_computed(
    bindings: Bindings, dtype: torch.dtype, params: dict[str, ParamValue]
) -> None:
    orders, places = ("row", "col"), ("", "_sliced", "_between", "_shared", "_apart")
    layouts = [order + place for order in orders for place in places]
    c_layouts = (*layouts, "strided", "one_row", "rows", "one_number", "none")
    outs = ("none", "inplace", *(x for x in layouts if "shared" not in x))
    sizes = ((8, 16, 24), (5, 7, 3), (1, 16, 8), (16, 1, 8), (8, 8, 1), (1, 1, 1))
    axes = itertools.product(layouts, layouts, c_layouts, outs, (1.0, 0.5))
    for i, (a, b, c, to, beta) in enumerate(itertools.islice(axes, 0, None, 151)):
        (m, n, k), batch = sizes[i % len(sizes)], 2 + i % 2
        A = laid_out(normal(batch, m, k, dtype=dtype), a)
        B = laid_out(normal(batch, k, n, dtype=dtype), b)
        C: torch.Tensor | None = normal(batch, m, n, dtype=dtype)
        assert C is not None
        if c in ("one_row", "rows", "one_number"):
            keep = {"one_row": (1, 1, n), "rows": (batch, 1, n), "one_number": (1, 1, 1)}[c]
            C = C[: keep[0], : keep[1], : keep[2]].clone().expand(batch, m, n)
        else:
            C = None if c == "none" else laid_out(C, c)
        out = None
        if to == "inplace":
            if c not in layouts or "shared" in c:
                continue
            out = C
        elif to != "none":
            out = laid_out(A.new_full((batch, m, n), torch.nan), to)
        before = None if C is None else C.clone()
        problem = problem_for(A, B, C, out)
        if "strided" in (problem.a, problem.b, problem.out):
            continue  # a row of one element more than its stride says
        count = len(bindings.calls)
        result = bound_run(problem, params)(1.5, A, B, 0.0 if C is None else beta, C, out)
        check(result, 1.5, A, B, beta, before, problem)
        assert result is out if out is not None else result.is_contiguous()
        (call,) = bindings.calls[count:]
        assert call["count"] == batch
    assert len(bindings.calls) > 150


def test_a_shared_operand_is_read_again_for_every_matrix(bindings: Bindings) -> None:
    A, B, C = normal(3, 16, 16), normal(3, 16, 16), normal(3, 16, 16)
    shared = [x[:1].expand(3, 16, 16) for x in (A, B, C)]
    for choice in itertools.product((False, True), repeat=3):
        a, b, c = (
            y if use else x for x, y, use in zip((A, B, C), shared, choice, strict=True)
        )
        problem = problem_for(a, b, c, None)
        assert problem.update == "add"
        check(bound_run(problem, FAST)(1.5, a, b, 0.5, c, None), 1.5, a, b, 0.5, c, problem)
        call = bindings.calls[-1]
        assert call["out_of_place"]
        steps = [0 if use else 256 for use in choice]
        assert call["steps"] == (steps[1], steps[0], steps[2], 256)


def test_one_row_for_a_batch_is_copied_and_added_in_float32(bindings: Bindings) -> None:
    A, B = (normal(3, 16, 16, dtype=torch.bfloat16) for _ in range(2))
    C = normal(16, dtype=torch.bfloat16).expand(3, 16, 16)
    problem = problem_for(A, B, C, None)
    assert problem.update == "bias"
    for beta in (1.0, 0.5):
        check(bound_run(problem, FAST)(1.5, A, B, beta, C, None), 1.5, A, B, beta, C, problem)
        assert not bindings.calls[-1]["row"]
        assert not bindings.calls[-1]["out_of_place"]


def test_a_step_between_matrices_counts_where_alignment_does(bindings: Bindings) -> None:
    """A problem does not say of every call that its matrices begin at multiples of 16 bytes."""
    A, B, C = normal(3, 16, 16), normal(3, 16, 16), normal(3, 16, 16)
    run = bound_run(problem := problem_for(A, B, C, None), FAST)
    apart = [laid_out(x, "row_apart") for x in (A, B, C)]
    far = normal(3, 17, 16)[:, :16]
    for a, b, c, to, served in (
        (A, B, C, None, True),
        (far, B, C, None, True),
        (apart[0], B, C, None, False),
        (A, apart[1], C, None, False),
        (A, B, apart[2], None, True),
        (A, B, C, laid_out(C, "row_apart"), False),
    ):
        count = len(bindings.calls)
        check(run(1.5, a, b, 0.5, c, to), 1.5, a, b, 0.5, c, problem)
        assert len(bindings.calls) - count == served
        assert not served or bindings.calls[-1]["out_of_place"] == (c is C)
    assert problem_for(apart[0], B, C, None).a == "row-unaligned"
    assert STRATEGY.reasons_not(problem_for(apart[0], B, C, None), GPU, FAST)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_conjugated_views_of_a_batch_are_what_they_stand_for(
    bindings: Bindings, dtype: torch.dtype
) -> None:
    for layout in ("row", "col", "row_between", "col_between", "row_shared", "col_shared"):
        A, B = (laid_out(normal(3, 8, 8, dtype=dtype), layout).conj() for _ in range(2))
        C = normal(3, 8, 8, dtype=dtype).conj()
        before = C.resolve_conj().clone()
        for out in (None, torch.empty_like(before), torch.empty_like(before).conj(), C):
            problem = problem_for(A, B, C, out)
            result = bound_run(problem, PARAMS)(0.5 - 2j, A, B, 1j, C, out)
            check(result.resolve_conj(), 0.5 - 2j, A, B, 1j, before, problem)
    assert len(bindings.calls) == 24


def test_batches_have_a_smaller_space_without_more_splits(bindings: Bindings) -> None:
    for dtype in DTYPES.values():
        for m, n, k in ((64, 64, 4096), (1024, 1024, 64), (33, 7, 5)):
            for update in ("none", "add", "bias", "inplace"):
                problem = contiguous_problem(m, n, k, dtype, update=update, batch=3)  # type: ignore[arg-type]
                found = STRATEGY.candidates(problem, GPU)
                assert 1 <= len(set(found)) == len(found) <= 12
                assert {c.kwargs["split_k"] for c in found} <= {1, 2}  # what is proposed
    many = contiguous_problem(2, 2, 2, torch.float32, batch=2**16)
    assert STRATEGY.candidates(many, GPU) == []
    assert "matrices" in STRATEGY.reasons_not(many, GPU, PARAMS)[0]
    assert STRATEGY.workspace_bytes(replace(CUBE, batch=3), SPLIT) == 3 * 4 * 64 * 48 * 4


# ------------------------------------------------------------------------------- the space


def test_the_space_is_small_the_same_every_time_and_all_of_it_runs(bindings: Bindings) -> None:
    for dtype in DTYPES.values():
        for m, n, k in ((64, 64, 4096), (1024, 512, 64), (33, 7, 5)):
            for update in ("none", "add", "bias", "inplace"):
                problem = contiguous_problem(m, n, k, dtype, update=update)  # type: ignore[arg-type]
                found = STRATEGY.candidates(problem, GPU)
                assert found == STRATEGY.candidates(problem, GPU)
                assert 1 <= len(found) <= 24
                assert len(set(found)) == len(found)
                assert {c.strategy for c in found} == {"cublaslt"}
    gc.collect()
    assert not bindings.alive


def test_products_that_leave_the_gpu_idle_are_offered_splits_others_not(
    bindings: Bindings,
) -> None:
    def splits(m: int, n: int, k: int) -> set[ParamValue]:
        problem = contiguous_problem(m, n, k, torch.bfloat16)
        return {c.kwargs["split_k"] for c in STRATEGY.candidates(problem, GPU)}

    assert splits(64, 64, 65536) >= {1, 2, 4, 8}
    assert splits(4096, 4096, 4096) == {1, 2}  # what the heuristic proposed


def test_an_algorithm_that_needs_aligned_addresses_is_never_offered_to_others(
    bindings: Bindings,
) -> None:
    aligned = contiguous_problem(64, 64, 64, torch.bfloat16)
    assert {c.kwargs["algo"] for c in STRATEGY.candidates(aligned, GPU)} >= {ALIGNED_ONLY}
    for odd in (
        contiguous_problem(63, 65, 67, torch.bfloat16),
        replace(aligned, a="row-unaligned"),
        replace(aligned, b="col-unaligned"),
        replace(aligned, out="row-unaligned"),
    ):
        found = STRATEGY.candidates(odd, GPU)
        assert {c.kwargs["algo"] for c in found} == {ANY_ALIGNMENT}
        assert STRATEGY.reasons_not(odd, GPU, FAST)


def test_an_algorithm_for_single_products_is_never_offered_to_batches(bindings: Bindings) -> None:
    batch = contiguous_problem(64, 64, 64, torch.bfloat16, batch=3)
    assert not STRATEGY.reasons_not(batch, GPU, FAST)
    bindings.batches = False
    (reason,) = STRATEGY.reasons_not(batch, GPU, FAST)
    assert "one product at a time" in reason
    assert not STRATEGY.candidates(batch, GPU)
    assert not STRATEGY.reasons_not(replace(batch, batch=1), GPU, FAST)


def test_the_workspace_is_what_the_algorithm_asks_for(bindings: Bindings) -> None:
    assert STRATEGY.workspace_bytes(CUBE, PARAMS) == 0
    assert STRATEGY.workspace_bytes(CUBE, SPLIT) == 4 * 64 * 48 * 4


# --------------------------------------------------------------------------------- reasons


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"algo": 12345}, "does not offer"),
        ({"algo": REFUSED}, "does not offer"),
        ({"tile": 634}, "does not offer"),
        ({"cluster": 15}, "does not offer"),
        ({"cluster": 2**16}, "does not take cluster"),
        ({"tile": -1}, "does not take tile"),
        ({"algo": True}, "does not take algo"),
    ],
    ids=str,
)
def test_an_algorithm_that_cublas_does_not_have_is_a_reason_and_no_error(
    bindings: Bindings, changed: dict[str, ParamValue], word: str
) -> None:
    (reason,) = STRATEGY.reasons_not(CUBE, GPU, {**PARAMS, **changed})
    assert word in reason


@pytest.mark.parametrize("reduction", [1, 4])
def test_sixteen_bit_partial_sums_are_refused(bindings: Bindings, reduction: int) -> None:
    params = {**PARAMS, "split_k": 2, "reduction": reduction}
    for dtype in (torch.float16, torch.bfloat16):
        (reason,) = STRATEGY.reasons_not(replace(CUBE, dtype=dtype), GPU, params)
        assert "16 bits" in reason
    assert STRATEGY.reasons_not(CUBE, GPU, params) == []


def test_operands_without_a_contiguous_extent_are_a_reason(bindings: Bindings) -> None:
    for changed in ({"a": "strided"}, {"b": "strided"}, {"out": "strided"}):
        problem = replace(CUBE, **changed)
        (reason,) = STRATEGY.reasons_not(problem, GPU, PARAMS)
        assert "contiguous" in reason
        assert len(list(STRATEGY.space(problem, GPU))) == 1


def test_where_there_is_no_gpu_or_no_library_one_candidate_carries_the_reason(
    bindings: Bindings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reasons() -> list[str]:
        rejected = dispatch.rejected(CUBE, Tolerance("highest"), GPU, Candidate.of("addmm"))
        assert STRATEGY.candidates(CUBE, GPU) == []
        return [reason for candidate, reason in rejected if candidate.strategy == "cublaslt"]

    def broken() -> int:
        raise RuntimeError("libcublasLt is not there")

    monkeypatch.setattr(bindings, "create", broken)
    assert reasons() == ["cuBLASLt cannot be used here: RuntimeError: libcublasLt is not there"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert reasons() == ["cuBLAS can only be asked where there is a GPU"]
    bare = replace(GPU, packages=frozenset({"triton"}))
    rejected = dispatch.rejected(CUBE, Tolerance("highest"), bare, Candidate.of("addmm"))
    assert [reason for c, reason in rejected if c.strategy == "cublaslt"] == [
        "needs the package 'nvmath', which is not installed"
    ]


def test_what_cublas_rejects_while_running_is_raised(
    bindings: Bindings, monkeypatch: pytest.MonkeyPatch
) -> None:
    A, B = normal(8, 8), normal(8, 8)
    run = bound_run(problem_for(A, B, None, None), SPLIT)
    bindings.matmul_algo_check = None  # type: ignore[assignment]
    with pytest.raises(TypeError):
        run(1.0, A, B, 0.0, None, None)


def test_neither_nvmath_nor_a_gpu_is_touched_by_the_import() -> None:
    code = (
        "import sys, torch; before = set(sys.modules); import autogemm; "
        "print(*(set(sys.modules) - before)); print(torch.cuda.is_initialized())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules, initialized = found.stdout.splitlines()
    assert not {name.split(".")[0] for name in modules.split()} & {"nvmath", "cuda"}
    assert initialized == "False"


def test_on_an_untuned_problem_cublas_has_the_first_word(bindings: Bindings) -> None:
    """The algorithm that a neighbour was tuned to may be the wrong one here."""
    problem = contiguous_problem(64, 96, 128, torch.float32)
    tuned, other = STRATEGY.candidates(problem, GPU)[:2]
    fitted = STRATEGY.fitted(other, problem, GPU)
    assert fitted == tuned
    assert STRATEGY.kin(tuned) == STRATEGY.kin(other)
    assert not STRATEGY.reasons_not(problem, GPU, fitted.kwargs)
    nowhere = replace(GPU, packages=frozenset())
    assert STRATEGY.fitted(other, problem, nowhere) == other
