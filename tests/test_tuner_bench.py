"""The statistics behind a choice, and the real bench on a CPU."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from invented import AXPBY, CPU, FULL, GPU, entry, row
from recorded_tuning import CUBE, FEW, LEVELS, only, order, statuses

from autogemm import finals, strategies, tuner
from autogemm.accuracy import error_norm, sample_references, worst_ratio
from autogemm.database import Choice, read_table, table_path
from autogemm.database.prediction import Model
from autogemm.device import device_of
from autogemm.finals import choose
from autogemm.measure import (
    ALPHA,
    BETA,
    Workbench,
    in_turns,
    ratio,
    without_directories,
)
from autogemm.operands import make_operands, normal
from autogemm.precision import ErrorBound, Tolerance
from autogemm.problem import LAYOUTS, UPDATES, Problem, Update, _layout, contiguous_problem
from autogemm.strategies import BY_NAME, Candidate, Params, Run
from autogemm.strategies.addmm import Addmm
from autogemm.tuner import candidates_for, tune

pytestmark = pytest.mark.usefixtures("recorded_surroundings")


# ------------------------------------------------------------------------------- statistics


@pytest.mark.parametrize("sigma", [0.003, 0.02, 0.06, 0.2])
@pytest.mark.parametrize("drift", [0.0, 0.3])
def test_the_baseline_against_itself_rarely_finds_a_winner(sigma: float, drift: float) -> None:
    """At most 5 % of 400 problems, whatever the noise, and though clocks drift."""
    draw = random.Random(f"{sigma} {drift}")
    winners = 0
    for problem in range(400):
        calls = iter(range(10_000))

        def timer(calls: Iterator[int] = calls) -> float:
            return 100.0 * (1 + drift * next(calls) / 40) * draw.lognormvariate(0.0, sigma)

        times = in_turns({FULL: timer, AXPBY: timer}, finals.ROUNDS, seed=problem)
        choice = choose(times, FULL)
        assert choice is not None
        winners += choice.candidate != FULL
    assert winners <= 20


def test_a_real_win_is_found_in_the_same_noise() -> None:
    draw = random.Random(7)
    found = 0
    for problem in range(100):
        timers = {
            c: lambda us=us: us * draw.lognormvariate(0.0, 0.02)  # type: ignore[misc]
            for c, us in ((FULL, 100.0), (AXPBY, 90.0))
        }
        choice = choose(in_turns(timers, finals.ROUNDS, seed=problem), FULL)
        assert choice is not None
        found += choice.candidate == AXPBY
    assert found >= 99


@pytest.mark.parametrize(
    ("steady", "unsteady", "winner"),
    [(80.0, 70.0, "split"), (80.0, 60.0, "fused"), (100.0, 85.0, None), (100.0, 70.0, "fused")],
)
def test_what_depends_on_the_data_wins_by_far_or_not_at_all(
    steady: float, unsteady: float, winner: str | None
) -> None:
    params = {"method": "fp16x3", "bm": 64, "bn": 64, "bk": 32, "warps": 4, "stages": 3}
    params |= {"chunk": 128, "slices": 1, "group": 8}
    split, fused = (
        Candidate.of("emulated_fp32", form=form, **params) for form in ("split", "fused")
    )
    times = {FULL: [100.0] * 20, split: [steady] * 20, fused: [unsteady] * 20}
    choice = choose(times, FULL)
    assert choice is not None
    assert choice.candidate.kwargs.get("form") == winner
    assert choice.us == min(times[choice.candidate])
    # A neighbour is predicted by the same rule.
    measured = [row(candidate, us[0]) for candidate, us in times.items()]
    known = Model([(entry(CUBE, {"highest": choice}, measured), 1.0)])
    predicted = known.predict(replace(CUBE, k=CUBE.k + 64), Tolerance("highest"), "graph")
    assert [p.candidate.kwargs.get("form") for p in predicted][:1] == ([winner] if winner else [])


def test_the_interval_of_a_ratio_holds_the_truth_about_as_often_as_it_says() -> None:
    draw = random.Random(11)
    held = 0
    for _ in range(1000):
        base, other = ([draw.lognormvariate(0.0, 0.05) for _ in range(20)] for _ in range(2))
        result = ratio(base, other)
        assert result.low <= result.median <= result.high
        held += result.low <= 1.0 <= result.high
    assert 930 <= held <= 985


@pytest.mark.parametrize("rounds", [1, 2, 3, 5, 20, 21])
def test_a_ratio_of_few_rounds_is_wide_and_not_an_error(rounds: int) -> None:
    result = ratio([2.0 + i for i in range(rounds)], [1.0] * rounds)
    assert result.low <= result.median <= result.high
    if rounds <= 5:
        assert (result.low, result.high) == (2.0, 1.0 + rounds)


def test_turns_are_shuffled_anew_every_round_and_repeat_with_the_seed() -> None:
    def play(seed: int) -> tuple[dict[Candidate, list[float]], list[list[Candidate]]]:
        calls: list[Candidate] = []

        def timer(c: Candidate) -> Callable[[], float]:
            return lambda: calls.append(c) or float(len(calls))  # type: ignore[func-returns-value]

        names = [Candidate.of(word) for word in "abcd"]
        times = in_turns({c: timer(c) for c in names}, 30, seed)
        return times, [calls[i : i + 4] for i in range(0, 120, 4)]

    times, rounds = play(1)
    assert all(len(t) == 30 for t in times.values())
    assert all(len(set(one)) == 4 for one in rounds)
    assert len({tuple(one) for one in rounds}) > 5
    assert play(1) == (times, rounds)
    assert play(2)[1] != rounds


def test_without_the_baseline_there_is_no_choice() -> None:
    assert choose({AXPBY: [1.0] * 20}, FULL) is None
    alone = choose({FULL: [1.0] * 20}, FULL)
    assert alone is not None
    assert (alone.candidate, alone.runner_up, alone.ratio) == (FULL, None, 1.0)


# --------------------------------------------------------------------------- the real bench


SMALL = contiguous_problem(16, 12, 40, torch.float32, device_type="cpu")


@pytest.mark.parametrize("update", ["none", "add", "bias", "inplace"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.complex64])
def test_the_bench_judges_every_candidate_of_a_small_problem(
    dtype: torch.dtype, update: str
) -> None:
    device = device_of(CPU)
    problem = contiguous_problem(16, 12, 40, dtype, update=update, device_type="cpu")
    with Workbench.open(problem, device, CPU) as bench:
        for candidate in candidates_for(problem, device, LEVELS):
            bound = BY_NAME[candidate.strategy].bound(problem, candidate.kwargs)
            row = bench.judge(candidate, bound, lambda us: False)
            assert row.status == "ok", row
            assert row.graph_us is None
            assert row.eager_us is not None
            assert row.eager_us > 0
            assert row.error is not None
            assert 0 <= row.error <= bound.total
            slow = bench.judge(candidate, bound, lambda us: True)
            assert slow.status == "slow"
            assert slow.eager_us is not None
        times = bench.compare([FULL, AXPBY], "eager", 3)
        assert [len(samples) for samples in times.values()] == [3, 3]
        assert min(min(samples) for samples in times.values()) > 0
    assert bench.operands == []
    assert bench.samples == []


class Sloppy(Addmm):
    """Rounds its operands to bfloat16 and claims that nobody will notice."""

    name = "sloppy"

    def parameters(self) -> Mapping[str, Callable[[object], bool]]:
        return {}

    def space(self, problem: Problem, device: object) -> list[dict[str, object]]:
        return [{}]

    def _reasons_not(self, problem: Problem, device: object, params: Params) -> list[str]:
        return []

    def bound(self, problem: Problem, params: Params) -> ErrorBound:
        return ErrorBound(4.0, float(problem.k))

    def bind(self, problem: Problem, device: object, params: Params) -> Run:
        def run(alpha, A, B, beta, C, out):  # type: ignore[no-untyped-def]
            P = A.bfloat16().float() @ B.bfloat16().float()
            result = alpha * P if C is None else alpha * P + beta * C
            return result if out is None else out.copy_(result)

        return run


class Broken(Sloppy):
    """Refuses at run time, as a library may; how is up to the test."""

    name = "broken"
    error: BaseException = RuntimeError("no such kernel\nand a long story")

    def bind(self, problem: Problem, device: object, params: Params) -> Run:
        def run(*_: object) -> torch.Tensor:
            raise self.error

        return run


class NaN(Sloppy):
    """Leaves a NaN in the result."""

    name = "nan"

    def bind(self, problem: Problem, device: object, params: Params) -> Run:
        def run(alpha, A, B, beta, C, out):  # type: ignore[no-untyped-def]
            result = torch.addmm(C, A, B, beta=beta, alpha=alpha)
            result[-1, -1] = torch.nan
            return result

        return run


@pytest.fixture
def suspects(recorded_surroundings: None, monkeypatch: pytest.MonkeyPatch) -> dict[str, Candidate]:
    """Three strategies nobody should use, in every list of strategies."""
    bad = (Sloppy(), Broken(), NaN())
    everyone = (*FEW, *bad)
    monkeypatch.setattr(strategies, "STRATEGIES", everyone)
    monkeypatch.setattr(tuner, "STRATEGIES", everyone)
    for strategy in bad:
        monkeypatch.setitem(BY_NAME, strategy.name, strategy)
    return {strategy.name: Candidate.of(strategy.name) for strategy in bad}


def test_the_bench_catches_a_strategy_that_is_less_accurate_than_it_says(
    suspects: dict[str, Candidate],
) -> None:
    with Workbench.open(SMALL, device_of(CPU), CPU) as bench:
        for name in ("sloppy", "nan"):
            bound = BY_NAME[name].bound(SMALL, {})
            row = bench.judge(suspects[name], bound, lambda us: False)
            assert row.status == "inaccurate"
            assert row.error is not None
            assert row.error > bound.total
            assert "on normal data exceeds" in row.note
            assert (row.graph_us, row.eager_us) == (None, None)


@pytest.mark.parametrize(
    ("error", "status", "note"),
    [
        (RuntimeError("no such kernel\nand a story"), "failed", "RuntimeError: no such kernel"),
        (NotImplementedError("not on Tuesdays"), "unsupported", "NotImplementedError: not on"),
        (ValueError("x" * 500), "failed", "ValueError: xxx"),
        (torch.OutOfMemoryError("too large"), "failed", "OutOfMemoryError: too large"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_bench_notes_what_a_candidate_raises(
    suspects: dict[str, Candidate],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    status: str,
    note: str,
) -> None:
    monkeypatch.setattr(Broken, "error", error)
    with Workbench.open(SMALL, device_of(CPU), CPU) as bench:
        row = bench.judge(suspects["broken"], ErrorBound(4.0, 40.0), lambda us: False)
    assert row.status == status
    assert row.note.startswith(note)
    assert len(row.note) <= 200
    assert "\n" not in row.note


def test_the_bench_notes_what_a_strategy_raises_before_it_runs(
    suspects: dict[str, Candidate], monkeypatch: pytest.MonkeyPatch
) -> None:
    def workspace_bytes(*_: object) -> int:
        raise ZeroDivisionError("no tiles")

    monkeypatch.setattr(Sloppy, "workspace_bytes", workspace_bytes)
    with Workbench.open(SMALL, device_of(CPU), CPU) as bench:
        row = bench.judge(suspects["sloppy"], ErrorBound(4.0, 40.0), lambda us: False)
    assert (row.status, row.note) == ("failed", "ZeroDivisionError: no tiles")


def test_compiling_ahead_leaves_an_operand_that_is_updated_in_place_as_it_was(
    suspects: dict[str, Candidate], monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = pytest.importorskip("autogemm.kernels.launch")
    calls: list[int] = []

    def compile_ahead(tries: Iterable[Callable[[], object]]) -> None:
        calls.extend(1 for each in tries if each() is None)

    monkeypatch.setattr(launch, "compile_ahead", compile_ahead)
    monkeypatch.setattr(Sloppy, "depends_on", ("torch", "triton"))
    problem = replace(SMALL, update="inplace")
    with Workbench.open(problem, device_of(CPU), CPU) as bench:
        bench.device = GPU
        before = bench.operands[0].C.clone()
        bench.prepare([suspects["sloppy"], suspects["broken"], FULL])
        bench.device = device_of(CPU)
        assert torch.equal(bench.operands[0].C, before)
    assert len(calls) == 2


@pytest.mark.parametrize("words", ["CUDA error: an illegal memory access was encountered"])
def test_a_lost_device_is_not_blamed_on_a_candidate(
    suspects: dict[str, Candidate], monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    monkeypatch.setattr(Broken, "error", RuntimeError(words))
    with Workbench.open(SMALL, device_of(CPU), CPU) as bench, pytest.raises(RuntimeError):
        bench.judge(suspects["broken"], ErrorBound(4.0, 40.0), lambda us: False)


def test_a_real_tuning_run_records_the_impostors_and_chooses_none(
    tmp_path: Path, suspects: dict[str, Candidate]
) -> None:
    device = device_of(CPU)
    with torch.no_grad():
        outcome = tune(order(tmp_path, SMALL), device, lambda p: Workbench.open(p, device, CPU))
    entry = only(outcome)
    told = statuses(entry)
    assert told[suspects["sloppy"]] == told[suspects["nan"]] == "inaccurate"
    assert told[suspects["broken"]] == "failed"
    assert set(entry.choices) == set(LEVELS)
    for level in LEVELS:
        assert list(entry.choices[level]) == ["eager"]
        choice: Choice = entry.choices[level]["eager"]
        assert choice.candidate not in suspects.values()
        assert choice.us > 0
    table, _ = read_table(table_path(tmp_path / "tables", device))
    assert table.device == device


def test_the_measured_error_of_a_right_result_is_small_and_of_a_wrong_one_large() -> None:
    """R by its definition: what is off by a thousand units of u·G shows as a thousand."""
    problem = replace(SMALL, dtype=torch.float64)
    samples = sample_references(problem, CPU, ALPHA, BETA)
    bound = ErrorBound(8.0, float(problem.k))

    def exact(alpha, A, B, beta, C, out):  # type: ignore[no-untyped-def]
        return torch.addmm(C, A, B, alpha=alpha, beta=beta)

    right, complaint = worst_ratio(samples, exact, problem, ALPHA, BETA, bound=bound)
    assert complaint == ""
    assert right < 8

    def off(alpha, A, B, beta, C, out):  # type: ignore[no-untyped-def]
        scale = abs(alpha) * (A.abs() @ B.abs()) + abs(beta) * C.abs()
        return exact(alpha, A, B, beta, C, out) + 1000 * 2.0**-53 * scale

    wrong, complaint = worst_ratio(samples, off, problem, ALPHA, BETA, bound=bound)
    assert "exceeds" in complaint
    assert wrong == pytest.approx(1000, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("update", UPDATES)
def test_a_batch_is_judged_on_its_first_middle_and_last_matrix(
    dtype: torch.dtype, update: Update
) -> None:
    problem = replace(SMALL, dtype=dtype, batch=5, update=update)
    samples = sample_references(problem, CPU, ALPHA, BETA)
    bound = ErrorBound(8.0, 3.0 * problem.k)

    def exact(alpha, A, B, beta, C, out):  # type: ignore[no-untyped-def]
        P = alpha * (A @ B)
        result = P if C is None else P + beta * C
        return result if out is None else out.copy_(result)

    right, complaint = worst_ratio(samples, exact, problem, ALPHA, BETA, bound=bound)
    assert complaint == ""
    assert right < 8 + problem.k
    for matrix in (0, 2, 4):

        def off(*call, matrix=matrix):  # type: ignore[no-untyped-def]
            result = exact(*call)
            result[matrix] *= 1.001
            return result

        assert "exceeds" in worst_ratio(samples, off, problem, ALPHA, BETA, bound=bound)[1]
        assert error_norm(samples, off, ALPHA, BETA) > 1e-4


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_operands_of_a_batch_have_the_layouts_of_the_problem(device_type: str) -> None:
    for a, b, out in itertools.product(LAYOUTS, repeat=3):
        if device_type == "cpu" and "unaligned" in a + b + out:
            continue
        problem = Problem(
            m=8, n=16, k=24, dtype=torch.float32, a=a, b=b, out=out, update="inplace",
            device_type=device_type, batch=3,
        )  # fmt: skip
        made = make_operands(problem, CPU, normal)
        for x, layout in ((made.A, a), (made.B, b), (made.out, out)):
            assert x is not None
            word = _layout(tuple(x.shape), x.stride(), 0, x.element_size(), device_type)
            assert (len(x), word) == (3, layout)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("update", ["none", "add", "bias"])
def test_a_result_that_lies_as_no_new_one_would_is_given(update: Update, batch: int) -> None:
    for out in LAYOUTS:
        problem = Problem(
            m=8, n=16, k=24, dtype=torch.float32, out=out, update=update, device_type="cuda",
            batch=batch,
        )  # fmt: skip
        made = make_operands(problem, CPU, normal)
        assert not made.in_place
        assert (made.out is None) == (out == "row")
        for x in (made.out, made.C if update == "add" else None):
            if x is not None:
                assert _layout(tuple(x.shape), x.stride(), 0, x.element_size(), "cuda") == out


def test_a_batch_is_tuned_like_any_other_problem(tmp_path: Path) -> None:
    device = device_of(CPU)
    problem = replace(SMALL, batch=3)
    outcome = tune(order(tmp_path, problem), device, lambda p: Workbench.open(p, device, CPU))
    (entry,) = outcome.entries
    assert entry.problem == problem
    tried = {row.candidate.strategy for row in entry.measured}
    assert tried >= {"baddbmm", "matmul_axpby", "loop"}
    assert "addmm" not in tried
    table, problems = read_table(table_path(tmp_path / "tables", device))
    assert list(table.entries) == [entry.key]
    assert problems == []


@pytest.mark.parametrize("update", ["none", "add", "inplace"])
def test_the_error_norm_is_the_relative_error_on_normal_data(update: str) -> None:
    problem = replace(SMALL, dtype=torch.float64, update=update)
    samples = sample_references(problem, CPU, ALPHA, BETA)
    assert samples[0].name == "normal"
    before = [x.clone() for s in samples for x in (s.operands.A, s.operands.C) if x is not None]

    def exact(alpha, A, B, beta, C, out):  # type: ignore[no-untyped-def]
        P = alpha * (A @ B)
        result = P if C is None else P + beta * C
        return result if out is None else out.copy_(result)

    def off(alpha, A, B, beta, C, out):  # type: ignore[no-untyped-def]
        result = exact(alpha, A, B, beta, C, out)
        result *= 1 + 3e-5
        result[0, 0] += 2e-4 * float(samples[0].reference.norm())
        return result

    assert error_norm(samples, exact, ALPHA, BETA) < 1e-15
    assert error_norm(samples, off, ALPHA, BETA) == pytest.approx(2.02e-4, rel=0.05)
    after = [x for s in samples for x in (s.operands.A, s.operands.C) if x is not None]
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_the_bench_measures_the_error_norm_of_what_is_accurate(
    suspects: dict[str, Candidate],
) -> None:
    with Workbench.open(SMALL, device_of(CPU), CPU) as bench:
        for candidate in (FULL, AXPBY):
            bound = BY_NAME[candidate.strategy].bound(SMALL, candidate.kwargs)
            row = bench.judge(candidate, bound, lambda us: False)
            assert row.error_norm is not None
            assert 1e-9 < row.error_norm < 1e-6
        for name in suspects:
            assert bench.judge(suspects[name], ErrorBound(4.0, 40.0), bool).error_norm is None


def test_judging_an_update_in_place_leaves_the_samples_whole() -> None:
    device = device_of(CPU)
    problem = replace(SMALL, update="inplace")
    with Workbench.open(problem, device, CPU) as bench:
        before = [sample.operands.C.clone() for sample in bench.samples]
        for _ in range(2):
            row = bench.judge(FULL, ErrorBound(3.0, 40.0), lambda us: False)
            assert row.status == "ok"
        for sample, C in zip(bench.samples, before, strict=True):
            assert torch.equal(sample.operands.C, C)


def test_a_failures_note_names_no_directories() -> None:
    told = "RuntimeError: expected one or more of /home/ann/site/dsl/_ir.cu{N}.so or '/opt/x y'."
    assert without_directories(told) == (
        "RuntimeError: expected one or more of _ir.cu{N}.so or 'x y'."
    )
    for kept in ("R = 3/4 of 12 GiB/s", "n/a", "https is no path", "out of memory"):
        assert without_directories(kept) == kept
