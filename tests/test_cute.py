"""The strategy ``cute`` before and behind the kernel: what it asks of quack, and of operands.

A fake ``quack`` checks its arguments as the compiled kernels do and computes with torch.
"""

from __future__ import annotations

import subprocess
import sys
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from calling import python_path
from invented import GPU

import autogemm
from autogemm.grading.oracle import truth_of
from autogemm.problem import Problem, contiguous_problem, problem_of
from autogemm.strategies import BY_NAME
from autogemm.strategies import cute as module
from autogemm.strategies.triton_gemm import TritonGemm

CUTE = BY_NAME["cute"]
HOPPER = replace(GPU, units=132, packages=frozenset({"quack", "cutlass", "triton"}))
PLAIN: dict[str, Any] = {
    "tile_m": 128, "tile_n": 128, "cluster_m": 2, "cluster_n": 1, "pingpong": True,
    "swap": False, "split": 1,
}  # fmt: skip


class Plan(NamedTuple):
    """What quack's kernels are compiled for."""

    orders: tuple[str, ...]
    has_c: bool
    has_row: bool
    has_column: bool
    options: dict[str, Any]


def order(x: torch.Tensor | None) -> str:
    """The contiguous dimension, as the kernel's signature holds it: strides by 16 bytes."""
    if x is None:
        return "none"
    *batch, rows, cols = x.stride()
    assert x.data_ptr() % 16 == 0
    assert (cols == 1 and rows % 8 == 0) or (rows == 1 and cols % 8 == 0), x.stride()
    assert all(stride % 8 == 0 and stride > 0 for stride in batch) or x.shape[0] == 1
    return "last" if cols == 1 else "first"


class Quack:
    """A stand-in for ``quack.gemm``; it counts what it compiles."""

    def __init__(self) -> None:
        self.compiled: list[Plan] = []

    def _build_gemm_plan(
        self, A: Any, B: Any, D: Any, C: Any, *, rowvec_bias: Any, colvec_bias: Any, **options: Any
    ) -> Plan:
        assert options["alpha_mode"] == 1
        assert options["beta_mode"] == (C is not None)
        assert options["split_k"] == 1 or A.ndim == 3, "2D operands do not support split_k"
        assert options["split_k_mode"] == 0
        assert len({x.ndim for x in (A, B, D, C) if x is not None}) == 1
        plan = Plan(
            tuple(map(order, (A, B, D, C))), C is not None, rowvec_bias is not None,
            colvec_bias is not None, options,
        )  # fmt: skip
        self.compiled.append(plan)
        return plan

    def run_gemm_plan(
        self, plan: Plan, A: Any, B: Any, D: Any, C: Any, *,
        rowvec_bias: Any, colvec_bias: Any, alpha: float, beta: float,
    ) -> None:  # fmt: skip
        assert A.ndim == 2 or len({len(x) for x in (A, B, D, C) if x is not None}) == 1
        found = (tuple(map(order, (A, B, D, C))), C is not None, rowvec_bias is not None,
                 colvec_bias is not None)  # fmt: skip
        assert found == plan[:4], "the kernel was compiled for other operands"
        assert type(alpha) is float
        assert type(beta) is float
        B = B if plan.options["b_kn"] else B.mT
        P = torch.matmul(A.float(), B.float()).mul_(alpha)
        if C is not None:
            P += beta * C.float()
        added = ((rowvec_bias, D.shape[-1], -2), (colvec_bias, D.shape[-2], -1))
        for vector, extent, axis in added:
            if vector is not None:
                assert vector.dtype == torch.float32
                assert vector.shape == (len(D) if D.ndim == 3 else 1, extent)
                assert vector.stride(1) == 1
                assert vector.stride(0) % 4 == 0
                P += vector.unsqueeze(axis) if D.ndim == 3 else vector[0].unsqueeze(axis)
        D.copy_(P)


@pytest.fixture
def quack(monkeypatch: pytest.MonkeyPatch) -> Iterator[Quack]:
    fake = Quack()
    package, inner = types.ModuleType("quack"), types.ModuleType("quack.gemm")
    inner._build_gemm_plan = fake._build_gemm_plan  # type: ignore[attr-defined]
    inner.run_gemm_plan = fake.run_gemm_plan  # type: ignore[attr-defined]
    package.gemm = inner  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "quack", package)
    monkeypatch.setitem(sys.modules, "quack.gemm", inner)
    return fake


def problem(m: int = 4096, n: int = 4096, k: int = 4096, **facts: Any) -> Problem:
    return contiguous_problem(m, n, k, torch.bfloat16, **facts)


def laid_out(rows: int, cols: int, layout: str) -> torch.Tensor:
    values = torch.randn(rows, cols)
    if layout == "row":
        return values.bfloat16()
    if layout == "col":
        return values.bfloat16().t().contiguous().t()
    if layout == "one row":
        return values[:1].bfloat16().expand(rows, cols)
    if layout == "odd":
        return torch.zeros(rows, cols + 1).bfloat16()[:, 1:].copy_(values)
    if layout == "sliced":
        return torch.zeros(rows, cols + 8).bfloat16()[:, :cols].copy_(values)
    return torch.zeros(rows, 2 * cols).bfloat16()[:, ::2].copy_(values)


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("split", [1, 3])
@pytest.mark.parametrize("c", ["row", "col", "one row", "odd", "sliced", "strided", "none"])
@pytest.mark.parametrize("out", ["none", "row", "col", "sliced", "inplace"])
@pytest.mark.parametrize(("a", "b"), [("row", "col"), ("col", "row"), ("sliced", "sliced")])
def test_every_layout_it_takes_reaches_the_kernel_and_comes_back_right(
    a: str, b: str, c: str, out: str, split: int, swap: bool, quack: Quack
) -> None:
    m, n, k = 24, 40, 200
    A, B = laid_out(m, k, a), laid_out(k, n, b)
    C = None if c == "none" else laid_out(m, n, c)
    if out == "inplace" and c not in ("row", "col", "sliced"):
        pytest.skip("no place that could be written")
    place = C if out == "inplace" else None if out == "none" else laid_out(m, n, out)
    beta = 0.0 if C is None else 0.5
    params = {**PLAIN, "swap": swap, "split": split}
    stated = problem_of(A, B, C, place, C is None)
    on_gpu = replace(stated, device_type="cuda")
    assert CUTE.reasons_not(on_gpu, HOPPER, params) == []
    truth = truth_of(1.5, A, B, beta, C)
    run = CUTE.bind(on_gpu, HOPPER, params)
    result = run(1.5, A, B, beta, C, place)
    assert place is None or result is place
    truth.check(result, CUTE.bound(on_gpu, params), typical=True)
    assert len(quack.compiled) == 1


def batch(count: int, rows: int, cols: int, layout: str) -> torch.Tensor:
    """``shared`` is one matrix for all, ``interleaved`` lies as heads do; both go by rows."""
    values = torch.randn(count, rows, cols).bfloat16()
    if layout == "row":
        return values
    if layout == "col":
        return values.mT.contiguous().mT
    if layout == "shared":
        return values[:1].expand(count, rows, cols)
    if layout == "shared col":
        return values[:1].mT.contiguous().mT.expand(count, rows, cols)
    if layout == "one row":
        return values[0, :1].expand(count, rows, cols)
    if layout == "a row each":
        return values[:, :1].expand(count, rows, cols)
    if layout == "odd":
        return torch.zeros(values.numel() + 1).bfloat16()[1:].view(values.shape).copy_(values)
    if layout == "odd apart":  # all but the first lie where TMA reads no matrix
        return torch.zeros(count, rows * cols + 1).bfloat16()[:, :-1].view_as(values).copy_(values)
    if layout == "interleaved":
        return torch.zeros(rows, count, cols).bfloat16().transpose(0, 1).copy_(values)
    return torch.zeros(count, rows, 2 * cols).bfloat16()[..., ::2].copy_(values)


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize(
    "c",
    ["row", "col", "shared", "one row", "a row each", "odd", "odd apart", "interleaved", "strided",
     "none"],
)  # fmt: skip
@pytest.mark.parametrize("out", ["none", "row", "col", "interleaved", "inplace"])
@pytest.mark.parametrize(
    ("a", "b"),
    [("row", "col"), ("col", "row"), ("interleaved", "interleaved"), ("col", "interleaved")],
)
def test_every_batch_it_takes_reaches_the_kernel_and_comes_back_right(
    a: str, b: str, c: str, out: str, swap: bool, quack: Quack
) -> None:
    count, m, n, k = 3, 24, 40, 72
    A, B = batch(count, m, k, a), batch(count, k, n, b)
    C = None if c == "none" else batch(count, m, n, c)
    if out == "inplace" and c not in ("row", "col", "interleaved"):
        pytest.skip("no place that could be written")
    place = C if out == "inplace" else None if out == "none" else batch(count, m, n, out)
    beta = 0.0 if C is None else 0.5
    params = {**PLAIN, "swap": swap}
    on_gpu = replace(problem_of(A, B, C, place, C is None), device_type="cuda")
    assert CUTE.reasons_not(on_gpu, HOPPER, params) == []
    truth = truth_of(1.5, A, B, beta, C)
    result = CUTE.bind(on_gpu, HOPPER, params)(1.5, A, B, beta, C, place)
    assert place is None or result is place
    assert result.shape == (count, m, n)
    truth.check(result, CUTE.bound(on_gpu, params), typical=True)
    assert len(quack.compiled) == 1
    assert quack.compiled[0].has_c == (c not in ("none", "one row"))
    assert (quack.compiled[0].has_row, quack.compiled[0].has_column) == (
        c == "one row" and not swap, c == "one row" and swap,
    )  # fmt: skip


def test_a_batch_reaches_the_kernel_as_it_lies(
    quack: Quack, monkeypatch: pytest.MonkeyPatch
) -> None:
    A, B, C = batch(3, 24, 72, "row"), batch(3, 72, 40, "interleaved"), batch(3, 24, 40, "col")
    seen: list[Any] = []
    monkeypatch.setattr(
        sys.modules["quack.gemm"], "run_gemm_plan", lambda plan, *given, **_: seen.extend(given)
    )
    for swap in (False, True):
        stated = problem_of(A, B, C, None, False)
        CUTE.bind(stated, HOPPER, {**PLAIN, "swap": swap})(1.5, A, B, 0.5, C, None)
    a, b, d, c, b_swapped, a_swapped, d_swapped, c_swapped = seen
    assert a is a_swapped is A
    assert b is B
    assert c is C
    assert b_swapped.data_ptr() == B.data_ptr()
    assert b_swapped.stride() == B.mT.stride()
    assert c_swapped.stride() == C.mT.stride()
    assert d.shape == (3, 24, 40)
    assert d_swapped.shape == (3, 40, 24)
    assert CUTE.workspace_bytes(stated, PLAIN) == 0


def test_batches_with_a_shared_operand_are_left_to_triton_gemm(
    quack: Quack, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[Any] = []
    monkeypatch.setattr(
        TritonGemm, "bind", lambda self, problem, device, params: lambda *call: served.append(call)
    )
    A, B = batch(3, 24, 72, "row"), batch(3, 72, 40, "row")
    run = CUTE.bind(problem_of(A, B, None, None, True), HOPPER, PLAIN)
    shared = batch(3, 24, 72, "shared"), batch(3, 72, 40, "shared")
    for a, b in ((shared[0], B), (A, shared[1]), shared):
        call = (1.5, a, b, 0.0, None, None)
        assert run(*call) is None
        assert served.pop() == call
    assert not quack.compiled
    run(1.5, A, B, 0.0, None, None)
    assert not served
    assert len(quack.compiled) == 1
    for n in (16, 64, 72, 4096):
        tile = module._tile(problem(n=n, batch=3))
        assert not TritonGemm().reasons_not(problem(n=n, batch=3), HOPPER, tile)
    without = replace(HOPPER, packages=HOPPER.packages - {"triton"})
    (reason,) = CUTE.reasons_not(problem(batch=3), without, PLAIN)
    assert "shared operand" in reason
    assert "'triton'" in reason
    assert not CUTE.reasons_not(problem(), without, PLAIN)


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (1, 1), (2, 0.5), (1.5, 1.0)])
@pytest.mark.parametrize("c", ["row", "one row"])
def test_no_scalar_needs_a_kernel_of_its_own(
    alpha: float, beta: float, c: str, quack: Quack
) -> None:
    A, B, C = laid_out(16, 64, "row"), laid_out(64, 16, "row"), laid_out(16, 16, c)
    run = CUTE.bind(problem_of(A, B, C, None, False), HOPPER, PLAIN)
    for first, second in ((1.5, 0.5), (alpha, beta)):
        truth_of(first, A, B, second, C).check(
            run(first, A, B, second, C, None), CUTE.bound(problem(k=64), PLAIN), typical=True
        )
    assert len(quack.compiled) == 1


def test_parameters_reach_the_kernel(quack: Quack) -> None:
    A, B = laid_out(16, 640, "row"), laid_out(640, 16, "row")
    params = {**PLAIN, "tile_m": 64, "tile_n": 48, "cluster_n": 2, "pingpong": False, "split": 5}
    CUTE.bind(problem_of(A, B, None, None, True), HOPPER, params)(1.0, A, B, 0.0, None, None)
    (plan,) = quack.compiled
    found = {
        "tile_m": "tile_M", "tile_n": "tile_N", "cluster_m": "cluster_M",
        "cluster_n": "cluster_N", "pingpong": "pingpong", "split": "split_k",
    }  # fmt: skip
    assert {ours: plan.options[theirs] for ours, theirs in found.items()} == {
        key: value for key, value in params.items() if key != "swap"
    }
    assert plan.options["b_kn"]


def test_a_result_that_is_written_counts_as_changed(quack: Quack) -> None:
    A, B, out = (laid_out(16, 16, "row") for _ in range(3))
    before = out._version
    CUTE.bind(problem_of(A, B, None, out, True), HOPPER, PLAIN)(1.0, A, B, 0.0, None, out)
    assert out._version > before


@pytest.mark.parametrize(
    ("what", "device", "params", "reason"),
    [
        (problem(a="row", k=4095), HOPPER, {}, "aligned to 16 bytes; A is row-unaligned"),
        (problem(n=4095, b="col"), HOPPER, {}, "the result is row-unaligned"),
        (replace(problem(), b="strided"), HOPPER, {}, "B is strided"),
        (problem(m=1), HOPPER, {}, "a product of one row"),
        (problem(m=1, batch=3), HOPPER, {}, "a product of one row"),
        (problem(n=4095, b="col", batch=3), HOPPER, {}, "the result is row-unaligned"),
        (problem(batch=3), HOPPER, {"split": 2}, "k is whole in batches"),
        (problem(k=64, batch=3), HOPPER, {"split": 2}, "k is whole in batches"),
        (problem(), replace(HOPPER, capability=(10, 0)), {}, "those of compute capability 9.x"),
        (problem(), replace(HOPPER, capability=(8, 0)), {}, "needs compute capability 9.0"),
        (problem(), replace(HOPPER, packages=frozenset()), {}, "needs the package 'quack'"),
        (problem(), replace(HOPPER, packages=frozenset({"quack"})), {}, "'cutlass' that compiles"),
        (problem(), HOPPER, {"tile_m": 256, "pingpong": True}, "no tile of 256x128 with pingpong"),
        (problem(), HOPPER, {"tile_m": 192, "tile_n": 80, "pingpong": False}, "no tile of 192x80"),
        (problem(k=256), HOPPER, {"split": 5}, "k = 256 has 4 steps of 64, too few to split"),
    ],
)
def test_what_it_cannot_serve_is_one_reason(
    what: Problem, device: Any, params: dict[str, Any], reason: str
) -> None:
    (found,) = CUTE.reasons_not(what, device, {**PLAIN, **params})
    assert reason in found


@pytest.mark.parametrize(("version", "fine"), [("0.6.9", True), ("0.7.0", False), ("0.60", False)])
def test_another_version_of_the_package_is_a_reason(
    version: str, fine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "software_versions", lambda device_type: {"quack": version})
    reasons = CUTE.reasons_not(problem(), HOPPER, PLAIN)
    assert reasons == ([] if fine else [f"drives version 0.6 of quack-kernels; {version} is "
                                        "installed"])  # fmt: skip


SHAPES = (
    (8192, 8192, 8192), (2048, 50304, 768), (128, 28672, 4096), (2048, 2048, 64), (96, 96, 96),
    (16, 4096, 4096), (4096, 64, 4096), (256, 256, 262144), (64, 64, 1048576), (2, 8, 8),
    (65, 4096, 512), (100000, 512, 512), (24, 50304, 64),
)  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_the_space_is_small_and_the_kernel_has_every_tile(shape: tuple[int, int, int]) -> None:
    what = problem(*shape)
    offered = list(CUTE.space(what, HOPPER))
    assert 1 <= len(offered) <= 15
    assert len(CUTE.candidates(what, HOPPER)) == len(offered) == len(set(map(str, offered)))
    for params in offered:
        narrow = what.m if params["swap"] else what.n
        assert params["tile_n"] < narrow + 33, "a tile of which much would be empty"


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [2, 96, 4096])
def test_the_space_of_a_batch_is_smaller_and_k_is_whole(
    count: int, shape: tuple[int, int, int]
) -> None:
    what = problem(*shape, batch=count)
    offered = list(CUTE.space(what, HOPPER))
    assert 1 <= len(offered) <= 10
    assert len(CUTE.candidates(what, HOPPER)) == len(offered) == len(set(map(str, offered)))
    for params in offered:
        rows, cols = (what.n, what.m) if params["swap"] else (what.m, what.n)
        assert params["split"] == 1
        assert params["tile_m"] < rows + 64, "a tile of which much would be empty"
        assert params["tile_n"] < cols + 16


def test_the_first_forms_of_a_batch_suit_its_matrices() -> None:
    def tiles(*shape: int, count: int) -> list[tuple[Any, ...]]:
        names = ("tile_m", "tile_n", "pingpong", "cluster_m", "swap")
        offered = CUTE.space(problem(*shape, batch=count), HOPPER)
        return [tuple(params[name] for name in names) for params in offered]

    scores = tiles(1024, 1024, 64, count=96)
    assert scores[0] == (128, 128, True, 1, False)
    assert {(128, 192, True, 2, False), (128, 256, False, 1, False)} < set(scores)
    for m, n, swap in ((1024, 64, False), (64, 1024, True)):
        found = tiles(m, n, 1024, count=96)
        assert {tile[:2] for tile in found} == {(64, 64), (128, 64), (192, 64), (256, 64)}
        assert {tile[4] for tile in found} == {swap}
    assert tiles(128, 128, 64, count=8)[0][:2] == (64, 64)  # a wave at most
    assert tiles(128, 128, 64, count=800)[0][:2] == (128, 128)
    assert all(tile[3] == 1 for tile in tiles(384, 384, 64, count=96) if tile[0] == 128)


def test_parts_of_k_are_kept_in_float32() -> None:
    (params,) = (p for p in CUTE.space(problem(256, 256, 262144), HOPPER) if p["split"] == 33)
    assert CUTE.workspace_bytes(problem(256, 256, 262144), params) == 4 * (4 * 128 * 128 + 4)
    assert CUTE.workspace_bytes(problem(), PLAIN) == 0


def test_import_and_questions_load_neither_quack_nor_the_dsl() -> None:
    script = (
        "import sys, torch, autogemm\n"
        "A = torch.randn(16, 16).bfloat16()\n"
        "autogemm.gemm(1.0, A, A); autogemm.explain(1.0, A, A); autogemm.doctor('cpu')\n"
        "print({'quack', 'cutlass', 'tvm_ffi'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120,
        env={"PYTHONPATH": python_path(Path(autogemm.__file__).parents[1]), "PATH": ""},
    )  # fmt: skip
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("c", ["row", "col", "one row", "none"])
@pytest.mark.parametrize(
    ("params", "count"),
    [({}, 1), ({"swap": True, "tile_n": 32}, 1), ({"split": 3}, 1),
     ({"tile_m": 64, "pingpong": False}, 1), ({}, 3), ({"swap": True}, 3)],
)  # fmt: skip
def test_quacks_own_compiler_takes_what_is_asked(
    params: dict[str, Any], count: int, c: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It compiles without a GPU; the launch is left out."""
    monkeypatch.setenv("QUACK_ARCH", "90")
    monkeypatch.setenv("CUTE_DSL_ARCH", "sm_90a")  # read where the compiler is imported
    pytest.importorskip("quack.gemm")
    from quack import cache, gemm

    monkeypatch.setattr(cache, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(gemm, "get_max_active_clusters", lambda *_, **__: 132)
    plans: list[Any] = []
    monkeypatch.setattr(gemm, "run_gemm_plan", lambda plan, *_, **__: plans.append(plan))
    A, B = laid_out(256, 512, "row"), laid_out(512, 256, "col")
    C = None if c == "none" else laid_out(256, 256, c)
    if count > 1:
        A, B = batch(count, 256, 512, "row"), batch(count, 512, 256, "col")
        C = None if c == "none" else batch(count, 256, 256, c)
    run = CUTE.bind(problem_of(A, B, C, None, C is None), HOPPER, {**PLAIN, **params})
    run(1.5, A, B, 0.0 if C is None else 0.5, C, None)
    assert plans[0].compiled_fn is not None
