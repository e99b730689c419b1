"""Calls under autograd and torch.compile, beside other threads, and what importing loads."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from calling import HIGHEST, in_threads, operands, serve
from invented import AXPBY

import autogemm
from autogemm import InvalidProblem, explain, gemm
from autogemm.grading.oracle import check
from autogemm.precision import Tolerance, fp32_compute
from autogemm.problem import DTYPES

pytestmark = pytest.mark.usefixtures("tables")


# --------------------------------------------------------------------------------- autograd


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.bfloat16])
@pytest.mark.parametrize("needy", ["A", "B", "C", "ABC"])
def test_gradients_are_those_of_addmm(tables: Path, dtype: torch.dtype, needy: str) -> None:
    serve(tables, AXPBY, dtype, 6, 5, 9)
    values = operands(6, 5, 9, dtype)
    for bias in (False, True):
        gradients = []
        for product in (
            lambda A, B, C: gemm(1.5, A, B, -0.5, C),
            lambda A, B, C: torch.addmm(C, A, B, alpha=1.5, beta=-0.5),
        ):
            A, B, C = (
                x.clone().requires_grad_(name in needy)
                for name, x in zip("ABC", values, strict=True)
            )
            result = product(A, B, C[:1].expand(6, 5) if bias else C)
            assert result.requires_grad
            result.abs().sum().backward()
            gradients.append([None if x.grad is None else x.grad for x in (A, B, C)])
        for ours, torchs in zip(*gradients, strict=True):
            assert (ours is None) == (torchs is None)
            if ours is not None:
                torch.testing.assert_close(ours, torchs)


def test_second_derivatives_are_right_too() -> None:
    A, B, C = (x.requires_grad_() for x in operands(3, 2, 4, torch.float64))
    assert torch.autograd.gradcheck(lambda *x: gemm(1.5, x[0], x[1], -0.5, x[2]), (A, B, C))
    assert torch.autograd.gradgradcheck(lambda *x: gemm(1.5, x[0], x[1], -0.5, x[2]), (A, B, C))


@pytest.mark.parametrize(
    ("m", "n", "k", "alpha", "beta"),
    [(0, 5, 9, 1.5, -0.5), (6, 0, 9, 1.5, -0.5), (6, 5, 0, 1.5, -0.5), (6, 5, 9, 0.0, -0.5),
     (6, 5, 9, 0.0, 0.0), (0, 5, 9, 1.5, 0.0)],
)  # fmt: skip
def test_a_result_of_nothing_can_be_differentiated(
    m: int, n: int, k: int, alpha: float, beta: float
) -> None:
    """An empty batch must not break a training step."""
    for _ in ("cold", "warm"):
        A, B, C = (x.requires_grad_() for x in operands(m, n, k))
        gemm(alpha, A, B, beta, None if beta == 0 else C).sum().backward()
        for x in (A, B):
            assert torch.equal(x.grad, torch.zeros_like(x))
        assert beta == 0 or torch.equal(C.grad, torch.full_like(C, beta))


def test_the_tables_choice_serves_operands_that_require_gradients(
    tables: Path,
) -> None:
    serve(tables, AXPBY, torch.float32, 6, 5, 9)
    A, B, C = (x.requires_grad_() for x in operands(6, 5, 9))
    for _ in ("cold", "warm"):
        assert explain(1, A, B, 1, C).strategy == "matmul_axpby"
        assert gemm(1, A, B, 1, C).requires_grad
        with torch.no_grad():
            assert not gemm(1, A, B, 1, C).requires_grad


def test_out_is_refused_where_autograd_would_lose_track() -> None:
    A, B, C = operands(6, 5, 9)
    for _ in ("cold", "warm"):
        gemm(1, A, B, 1, C, out=torch.empty_like(C))
        for needy in (A, B, C):
            needy.requires_grad_()
            with pytest.raises(InvalidProblem, match=r"requires grad; .*Leave out away"):
                gemm(1, A, B, 1, C, out=torch.empty_like(C))
            with torch.no_grad():
                gemm(1, A, B, 1, C, out=torch.empty_like(C))
            needy.requires_grad_(False)
        with pytest.raises(InvalidProblem, match="requires grad"):
            gemm(1, A, B, 1, C, out=torch.empty_like(C).requires_grad_())


def test_inference_mode_takes_and_gives_ordinary_results() -> None:
    A, B, C = operands(6, 5, 9)
    with torch.inference_mode():
        inside = gemm(1.5, A, B, 0.5, C)
        check(inside, 1.5, A, B, 0.5, C, HIGHEST)
        gemm(1.5, A, B, 0.5, C, out=inside)
    for _ in ("cold", "warm"):
        check(gemm(1.5, A, B, 0.5, inside), 1.5, A, B, 0.5, inside, HIGHEST)
        with pytest.raises(InvalidProblem, match="out is an inference tensor"):
            gemm(1.5, A, B, 0.5, C, out=inside)


# ---------------------------------------------------------------- compiling, threads, imports


def test_torch_compile_traces_the_plain_call_whole() -> None:
    A, B, C = operands(6, 5, 9)
    torch._dynamo.reset()

    @torch.compile(backend="eager", fullgraph=True)
    def step(A: torch.Tensor, B: torch.Tensor, C: torch.Tensor) -> torch.Tensor:
        return gemm(1.5, A, B, -0.5, C).relu() + gemm(2, A, B)

    expected = gemm(1.5, A, B, -0.5, C).relu() + gemm(2, A, B)
    torch.testing.assert_close(step(A, B, C), expected)
    A.requires_grad_()
    step(A, B, C).sum().backward()
    assert A.grad is not None


@pytest.mark.parametrize(
    ("m", "k", "alpha", "beta"), [(0, 9, 1.5, 1), (6, 0, 1.5, 1), (6, 9, 0, 1), (6, 9, 0, 0)]
)
def test_torch_compile_keeps_the_corners(m: int, k: int, alpha: float, beta: float) -> None:
    A, B, C = operands(m, 5, k)
    if alpha == 0:
        A.fill_(torch.nan)
    torch._dynamo.reset()
    step = torch.compile(
        lambda A, B, C: gemm(alpha, A, B, beta, C), backend="eager", fullgraph=True
    )
    check(step(A, B, C), alpha, A, B, beta, C, HIGHEST)


def test_many_threads_get_right_answers() -> None:
    """Eight threads, each its own shapes, types and levels, cold and warm, all at once."""

    def work(seed: int) -> None:
        for turn in range(30):
            dtype = tuple(DTYPES.values())[(seed + turn) % 6]
            level = ("highest", "high", "medium", None)[(seed + turn // 6) % 4]
            A, B, C = operands(3 + seed, 4 + turn % 5, 20, dtype, seed)
            out = (None, C.clone(), torch.empty_like(C))[turn % 3]
            result = gemm(1.5, A, B, 0.5, C, precision=level, out=out)
            check(result, 1.5, A, B, 0.5, C, Tolerance(level or "highest"))
            if turn % 10 == 9:
                autogemm.reload_tables()

    in_threads(work)


@pytest.mark.usefixtures("restored_torch_settings")
def test_another_threads_switch_is_waited_for_where_highest_was_asked() -> None:
    """A call that would see another thread's reduced setting waits until it is put back."""
    A, B, C = operands(64, 48, 96)
    inside, leave, done = threading.Event(), threading.Event(), threading.Event()

    def other() -> None:
        with fp32_compute("cpu", "bf16"):
            inside.set()
            leave.wait()

    def ours() -> None:
        results.append(gemm(1.5, A, B, 0.5, C, precision="highest"))
        done.set()

    results: list[torch.Tensor] = []
    threads = [threading.Thread(target=f) for f in (other, ours)]
    threads[0].start()
    inside.wait()
    threads[1].start()
    waited = not done.wait(0.2)
    leave.set()
    for thread in threads:
        thread.join()
    assert waited
    check(results[0], 1.5, A, B, 0.5, C, HIGHEST, typical=True)


@pytest.mark.usefixtures("restored_torch_settings")
def test_a_level_is_not_read_off_another_threads_switch() -> None:
    """Nobody told torch anything; a call elsewhere only passes through a reduced setting."""
    A, B, C = operands(6, 5, 9)
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with fp32_compute("cpu", "bf16"):
            inside.set()
            leave.wait(3.0)

    thread = threading.Thread(target=other)
    thread.start()
    inside.wait()
    level = explain(1.5, A, B, 0.5, C).plan.tolerance.level
    leave.set()
    thread.join()
    assert level == "highest"


def test_importing_and_calling_autogemm_loads_neither_optuna_nor_triton() -> None:
    script = (
        "import sys, torch, autogemm\n"
        "x = torch.ones(3, 3)\n"
        "autogemm.gemm(1, x, x, 1, x)\n"
        "print([name for name in ('optuna', 'triton', 'sqlalchemy') if name in sys.modules])"
    )
    root = Path(autogemm.__file__).parents[1]
    told = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=root, check=False
    )
    assert told.returncode == 0, told.stderr
    assert told.stdout.strip() == "[]"


def test_a_printed_explanation_sums_up_a_large_space() -> None:
    A = torch.randn(512, 512)
    explanation = autogemm.explain(1.0, A, A)
    text = str(explanation)
    tried = [c for c, _ in explanation.rejected if c.strategy == "emulated_fp32"]
    if tried and not torch.cuda.is_available():
        assert len(tried) > 20
        assert f"emulated_fp32 ({len(tried)} candidates): runs on cuda, not on cpu" in text
    assert len(text.splitlines()) < 60
