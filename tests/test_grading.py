"""The grader: what is right passes, and what is wrong on purpose is caught and named."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch

from autogemm.device import Device
from autogemm.grading import (
    EXTENTS,
    Grades,
    as_markdown,
    as_text,
    grade,
    grade_side_by_side,
    grader,
    known_faults,
    side_by_side,
)
from autogemm.grading.grader import Score, _sampled
from autogemm.grading.oracle import Truth
from autogemm.grading.trials import FAMILIES, Trial, laid_out, trials
from autogemm.precision import ErrorBound
from autogemm.problem import DTYPES, LAYOUTS, Problem, layout_of
from autogemm.strategies import STRATEGIES, Candidate, Run, Strategy
from autogemm.strategies.base import Params

CPU = torch.device("cpu")
Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def test_every_strategy_that_runs_here_keeps_its_bound() -> None:
    grades = grade(CPU, "smoke", dtypes=[torch.float32, torch.bfloat16, torch.complex64])
    assert [str(breach) for breach in grades.breaches] == []
    names = {score.strategy for score in grades.scores}
    assert names >= {"addmm", "baddbmm", "matmul_axpby", "ksplit", "loop", "gemm"}
    for score in grades.scores:
        assert score.results > 0
        assert 0 <= score.worst.share <= 1


# ----------------------------------------------------------------- strategies wrong on purpose


class Wrong(Strategy):
    """Declares what ``addmm`` declares, and computes the product as it is told to."""

    name = "wrong"
    dtypes = frozenset({torch.float32})

    def __init__(self, product: Product) -> None:
        self._product = product

    def bound(self, problem: Problem, params: Params) -> ErrorBound:
        return ErrorBound(4.0, float(problem.k))

    def bind(self, problem: Problem, device: Device, params: Params) -> Run:
        def run(
            alpha: complex | float,
            A: torch.Tensor,
            B: torch.Tensor,
            beta: complex | float,
            C: torch.Tensor | None,
            out: torch.Tensor | None,
        ) -> torch.Tensor:
            P = self._product(A, B) * alpha
            if C is not None:
                P = P.add(C, alpha=beta)
            return P if out is None else out.copy_(P)

        return run


def strassen(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """One level of Strassen's algorithm, on operands padded to even sizes."""
    (m, k), n = A.shape, B.shape[1]
    a, b = A.new_zeros(m + m % 2, k + k % 2), B.new_zeros(k + k % 2, n + n % 2)
    a[:m, :k], b[:k, :n] = A, B
    (a11, a12), (a21, a22) = (half.chunk(2, 1) for half in a.chunk(2))
    (b11, b12), (b21, b22) = (half.chunk(2, 1) for half in b.chunk(2))
    p1, p2, p3 = (a11 + a22) @ (b11 + b22), (a21 + a22) @ b11, a11 @ (b12 - b22)
    p4, p5 = a22 @ (b21 - b11), (a11 + a12) @ b22
    p6, p7 = (a21 - a11) @ (b11 + b12), (a12 - a22) @ (b21 + b22)
    top = torch.cat([p1 + p4 - p5 + p7, p3 + p5], 1)
    return torch.cat([top, torch.cat([p2 + p4, p1 - p2 + p3 + p6], 1)])[:m, :n]


def fixed_point(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """Rows of A and columns of B to 24 bits of their largest element: a normwise bound only."""

    def cut(x: torch.Tensor, dim: int) -> torch.Tensor:
        largest = x.double().abs().nan_to_num(0).amax(dim, keepdim=True)
        unit = 2.0 ** (largest.clamp(min=1e-300).log2().floor() - 23)
        return (x.double() / unit).round() * unit

    return (cut(A, 1) @ cut(B, 0)).float()


def in_tf32(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    def cut(x: torch.Tensor) -> torch.Tensor:
        mantissa, exponent = torch.frexp(x)
        kept = torch.ldexp((mantissa * 2048).round() / 2048, exponent)
        return torch.where(x.isfinite(), kept, x)

    return cut(A) @ cut(B)


def flushing_subnormals(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    tiny = torch.finfo(torch.float32).tiny
    return torch.where(A.abs() < tiny, 0.0, A) @ torch.where(B.abs() < tiny, 0.0, B)


def hiding_nan(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    return (A @ B).nan_to_num(0.0)


def forgetting_a_column(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    P = A @ B
    if P.shape[1] == 9:
        P[:, -1] = 0
    return P


def adding_a_dust_grain(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    return A @ B + 2.0**-100


def summing_in_bfloat16(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    total = A[:, :1] @ B[:1]
    for start in range(1, A.shape[1], 64):
        total = (total + A[:, start : start + 64] @ B[start : start + 64]).bfloat16().float()
    return total


@pytest.mark.parametrize(
    ("product", "family"),
    [
        (strassen, "strassen"),
        (strassen, "zeros"),
        (fixed_point, "scaling"),
        (in_tf32, "growth"),
        (in_tf32, "netlib"),
        (summing_in_bfloat16, "growth"),
        (adding_a_dust_grain, "zeros"),
        (flushing_subnormals, "hostile"),
        (hiding_nan, "hostile"),
        (forgetting_a_column, "netlib"),
    ],
)
def test_a_strategy_wrong_on_purpose_is_caught_by_the_test_made_for_it(
    product: Product, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grader, "trials", lambda *args, **kwargs: only(family))
    grades = grade(CPU, "smoke", strategies=[Wrong(product)], dtypes=[torch.float32])
    assert {breach.candidate.strategy for breach in grades.breaches} == {"wrong"}


def only(family: str) -> list[Trial]:
    extent = replace(EXTENTS["smoke"], sweep=100)
    return [trial for trial in trials(torch.float32, extent) if trial.family == family]


def test_what_is_wrong_in_one_way_only_passes_the_tests_of_other_ways(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grader, "trials", lambda *args, **kwargs: only("growth"))
    for product in (strassen, flushing_subnormals, hiding_nan):
        grades = grade(CPU, "smoke", strategies=[Wrong(product)], dtypes=[torch.float32])
        assert grades.breaches == [], product


def test_a_breach_names_strategy_parameters_test_and_element(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Parameterised(Wrong):
        def parameters(self) -> dict[str, Callable[[object], bool]]:
            return {"pad": lambda value: True}

        def space(self, problem: Problem, device: Device) -> list[dict[str, bool]]:
            return [{"pad": True}]

    monkeypatch.setattr(grader, "trials", lambda *args, **kwargs: only("netlib"))
    wrong = Parameterised(forgetting_a_column)
    grades = grade(CPU, "smoke", strategies=[wrong], dtypes=[torch.float32])
    words = str(grades.breaches[0])
    for word in ("wrong(pad=true)", "float32", "netlib test 'sweep'", "alpha =", "element [", "R"):
        assert word in words
    assert words in as_text(grades)
    assert words in as_markdown(grades, "a command")


def test_a_strategy_that_raises_is_a_breach_and_ends_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(grader, "trials", lambda *args, **kwargs: only("strassen"))
    grades = grade(CPU, "smoke", strategies=[Wrong(failing)], dtypes=[torch.float32])
    assert "raised RuntimeError: no such kernel" in str(grades.breaches[0])
    assert any(score.strategy == "gemm" and score.results for score in grades.scores)


def test_what_torch_does_wrong_itself_is_reported_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grader, "trials", lambda *args, **kwargs: only("netlib"))
    monkeypatch.setattr(grader, "known_fault", lambda *facts: "torch forgets a column")
    wrong = Wrong(forgetting_a_column)
    grades = grade(CPU, "smoke", strategies=[wrong], dtypes=[torch.float32])
    assert grades.breaches == []
    assert grades.known
    assert "torch forgets a column: " in as_text(grades)


Update = Callable[..., torch.Tensor]


def scaling_an_operand_first(operand: int, shape: tuple[int, int, int], update: Update) -> Update:
    """``torch.addmm`` with a kernel for one size that multiplies an operand by α before it sums."""

    def addmm(C: torch.Tensor, *operands: torch.Tensor, alpha: float) -> torch.Tensor:
        A, B = operands
        if (*A.shape, B.shape[1]) != (shape[0], shape[2], shape[1]):
            return C + alpha * (A @ B)
        return update(C, *(alpha * x if i == operand else x for i, x in enumerate(operands)))

    return addmm


@pytest.fixture
def anew() -> Iterator[None]:
    known_faults.torch_scales_an_operand_first.cache_clear()
    yield
    known_faults.torch_scales_an_operand_first.cache_clear()


@pytest.mark.usefixtures("anew")
@pytest.mark.parametrize("operand", [0, 1])
@pytest.mark.parametrize("shape", [(5, 7, 33), (5, 8, 34), (24, 40, 520), (1, 48, 1000)])
def test_alpha_is_seen_to_meet_an_operand_first_in_one_kernel_of_many(
    shape: tuple[int, int, int], operand: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = scaling_an_operand_first(operand, shape, torch.addmm)
    monkeypatch.setattr(torch, "addmm", fault)
    for name, alpha in (
        ("smallest_number_everywhere_in_A", -0.5), ("largest_by_smallest_normal", 1.5),
    ):  # fmt: skip
        assert known_faults.known_fault("addmm", torch.float64, "cpu", name, alpha)
        assert known_faults.known_fault("addmm", torch.float64, "cpu", name, 1.0) is None


@pytest.mark.usefixtures("anew")
def test_nothing_is_excused_where_torch_applies_alpha_to_the_product(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "addmm", scaling_an_operand_first(0, (0, 0, 0), torch.addmm))
    name = "smallest_number_everywhere_in_A"
    assert known_faults.known_fault("addmm", torch.float64, "cpu", name, 0.5) is None


def test_a_strategy_that_applies_alpha_itself_is_not_excused_for_torchs_addmm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(known_faults, "torch_scales_an_operand_first", lambda *kind: True)
    name = "largest_by_smallest_normal"
    for place in ("cpu", "cuda"):
        for strategy in ("matmul_axpby", "ksplit", "triton_gemm", "emulated_fp32"):
            fault = known_faults.known_fault(strategy, torch.float64, place, name, 1.5)
            assert fault is None
    for strategy in ("addmm", "padded", "cublaslt"):
        assert known_faults.known_fault(strategy, torch.float64, "cuda", name, 1.5)


def test_a_batch_is_judged_matrix_by_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    class Second(Wrong):
        single, batched = False, True

    def forgetting_the_second(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
        P = A @ B
        P[1] = 0
        return P

    monkeypatch.setattr(grader, "trials", lambda *args, **kwargs: only("growth"))
    for product, right in ((torch.matmul, True), (forgetting_the_second, False)):
        grades = grade(CPU, "smoke", strategies=[Second(product)], dtypes=[torch.float32])
        assert (grades.breaches == []) == right


# --------------------------------------------------------------------------------- the trials


def test_the_full_sweep_is_netlibs() -> None:
    extent = replace(EXTENTS["full"], shapes=(), lengths=())
    met = [
        (*t.A.shape, t.B.shape[1], t.a, t.b, t.alpha, t.beta) for t in trials(torch.float32, extent)
    ]
    complete = 6**3 * 2 * 2 * 3 * 3
    assert len(set(met[:complete])) == complete
    assert len(met) > complete
    sizes = {size for m, k, n, *_ in met[:complete] for size in (m, n, k)}
    assert sizes == {0, 1, 2, 3, 5, 9}
    assert {alpha for *_, alpha, _ in met} == {0.0, 1.0, 0.7}
    assert {beta for *_, beta in met} == {0.0, 1.0, 1.3}


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
def test_every_type_meets_every_family(dtype: torch.dtype) -> None:
    met = {trial.family for trial in trials(dtype, EXTENTS["smoke"])}
    assert met == set(FAMILIES)


def test_trials_are_the_same_every_time() -> None:
    first, again = (list(trials(torch.float32, EXTENTS["smoke"])) for _ in range(2))
    assert [str(trial) for trial in first] == [str(trial) for trial in again]
    for x, y in zip(first, again, strict=True):
        assert torch.equal(x.A.nan_to_num(9), y.A.nan_to_num(9))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_operands_lie_as_they_are_told_with_nan_around_them(layout: str) -> None:
    values = torch.randn(5, 7)
    x = laid_out(values, layout)
    assert torch.equal(x, values)
    assert layout_of(x) == layout.removesuffix("-unaligned")
    batch = laid_out(torch.stack([values, values]), layout)
    assert torch.equal(batch[1], values)
    whole = torch.as_strided(x, (x.untyped_storage().nbytes() // 4,), (1,), 0)
    assert int(whole.isnan().sum()) == whole.numel() - values.numel()


def test_parameter_sets_share_the_sweep_and_no_trial_of_it_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Three(Wrong):
        def parameters(self) -> dict[str, Callable[[object], bool]]:
            return {"form": lambda value: True}

        def space(self, problem: Problem, device: Device) -> list[dict[str, int]]:
            return [{"form": form} for form in range(3)]

    monkeypatch.setattr(grader, "trials", lambda *args, **kwargs: only("netlib"))
    scores = grade(CPU, "smoke", strategies=[Three(torch.matmul)], dtypes=[torch.float32]).scores
    wrong = next(score for score in scores if score.strategy == "wrong")
    multiplied = [t for t in only("netlib") if t.alpha != 0 and t.A.numel() and t.B.numel()]
    assert wrong.results == len(multiplied)
    assert len(wrong.candidates) == 3


def test_a_sample_of_a_space_holds_every_value_of_every_parameter() -> None:
    space = [
        Candidate.of("x", tile=tile, stages=stages, form=form)
        for tile in (16, 32, 64, 128)
        for stages in (1, 2, 3)
        for form in ("split", "fused")
    ]
    drawn = _sampled(space, 8)
    assert len(drawn) == 8
    assert {pair for c in drawn for pair in c.params} == {pair for c in space for pair in c.params}
    assert _sampled(space, 100) == space


# --------------------------------------------------------------------------------- the figures


def test_netlibs_ratio_is_the_error_in_units_of_eps_times_the_gauge() -> None:
    A, B, C = torch.tensor([[3.0, -4.0]]), torch.tensor([[1.0], [0.5]]), torch.tensor([[2.0]])
    truth = Truth(2.0, A, B, -1.0, C)  # 2·(3 - 2) - 2 = 0; gauge 2·5 + 2 = 12
    assert truth.netlib_ratio(torch.tensor([[0.0]]), 2.0**-23) == 0
    half = torch.tensor([[2.0**-13]], dtype=torch.float16)  # its square, 2^-26, rounds to 0
    assert Truth(1.0, half, half, 0.0, None).netlib_ratio(half * 0, 2.0**-10) == 0
    assert truth.netlib_ratio(torch.tensor([[12 * 2.0**-20]]), 2.0**-23) == 8
    zero = Truth(1.0, 0 * A, B, 0.0, None)
    assert zero.netlib_ratio(torch.tensor([[2.0**-20]]), 2.0**-23) == 8


def test_the_slope_is_the_exponent_of_the_growth() -> None:
    score = Score("x", torch.float32, "highest")
    assert score.slope is None
    score.growth = {k: 0.1 * math.sqrt(k) for k in (16, 256, 4096)}
    assert score.slope == pytest.approx(0.5)
    score.growth = {k: 3.0 * k for k in (16, 256, 4096)}
    assert score.slope == pytest.approx(1.0)


def test_the_scorecard_says_what_it_was_measured_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grader, "trials", lambda *args, **kwargs: only("strassen"))
    grades = grade(CPU, "smoke", strategies=STRATEGIES[:1], dtypes=[torch.float32])
    page = as_markdown(grades, "python scripts/verify.py --accuracy")
    assert str(grades.device) in page
    assert "`python scripts/verify.py --accuracy` (torch " in page
    assert "every bound held" in page
    assert "| addmm | float32 | highest | 1 |" in page
    stopped = Grades(grades.device, "smoke", (), 1.0, unfinished=True)
    assert "stopped by the budget" in as_text(stopped)


def test_nothing_is_begun_after_the_deadline() -> None:
    grades = grade(CPU, "smoke", dtypes=[torch.float32], deadline=0.0)
    assert grades.scores == ()
    assert grades.unfinished


def test_the_page_of_a_grading_is_linked_from_the_docs() -> None:
    docs = Path(__file__).resolve().parent.parent / "docs"
    assert "results/cpu-amd-epyc-2-threads-accuracy.md" in (docs / "trust.md").read_text("utf-8")


def test_several_processes_find_what_one_finds() -> None:
    options = {"dtypes": (torch.float16, torch.float32)}
    alone = grade(torch.device("cpu"), "smoke", **options)
    together = grade_side_by_side(torch.device("cpu"), "smoke", jobs=3, **options)

    def told(grades: Grades) -> list[tuple[object, ...]]:
        return [
            (s.strategy, s.dtype, s.level, s.results, s.candidates, s.netlib, s.growth,
             s.worst.error, len(s.breaches), len(s.known))
            for s in grades.scores
        ]  # fmt: skip

    assert told(together) == told(alone)


def _slow_part(
    where: torch.device, marker: str, *, dtypes: Sequence[torch.dtype], **_: object
) -> None:
    """Stands for a share of the grading: float16 ends at once, all else takes its time."""
    if dtypes[0] is not torch.float16:
        time.sleep(15)
        Path(marker).touch()


def test_ctrl_c_ends_all_processes_of_a_grading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(step: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(side_by_side, "_part", _slow_part)
    marker = tmp_path / "went on"
    with pytest.raises(KeyboardInterrupt):
        grade_side_by_side(
            CPU, str(marker), jobs=1, dtypes=[torch.float16, torch.float32], report=interrupt
        )
    assert not marker.exists()
    assert active_children() == []


def _dies(*_: object, **__: object) -> None:
    os._exit(3)


def test_a_killed_process_of_a_grading_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_by_side, "_part", _dies)
    with pytest.raises(BrokenProcessPool):
        grade_side_by_side(CPU, "smoke", jobs=2, dtypes=[torch.float16])
    assert active_children() == []


def test_several_processes_have_nothing_to_grade_where_no_type_has_an_oracle(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (side_by_side, grader):
        monkeypatch.setattr(module, "has_oracle", lambda dtype: False)
    assert grade_side_by_side(CPU, "smoke", jobs=2).scores == ()
