"""Audits: real calls checked as they happen, a wrong strategy caught, and no trace without one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from invented import AXPBY, always, write_for_this_cpu

import autogemm
from autogemm import AutogemmError, InvalidProblem, api, auditing, dispatch, explain, gemm
from autogemm.auditing import Mailbox, Tally
from autogemm.database import locations
from autogemm.problem import DTYPES, Problem, contiguous_problem
from autogemm.strategies import BY_NAME, Run
from autogemm.strategies.addmm import Addmm
from autogemm.strategies.matmul_axpby import MatmulAxpby

PROBLEM = contiguous_problem(24, 20, 32, torch.float32, device_type="cpu")
Spoil = Callable[[torch.Tensor], torch.Tensor]


@pytest.fixture(autouse=True)
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A table that has ``matmul_axpby`` serve ``PROBLEM``; nothing is demoted before or after."""
    monkeypatch.setenv("AUTOGEMM_TUNING_DB", str(tmp_path))
    for place in ("_user_directory", "_shipped_directory"):
        monkeypatch.setattr(locations, place, lambda: tmp_path / "elsewhere")
    monkeypatch.setattr(dispatch, "_demoted", {})
    write_for_this_cpu(tmp_path, always(AXPBY, PROBLEM))
    autogemm.reload_tables()
    yield
    assert api._audit is None, "an audit was left on"
    autogemm.reload_tables()


def operands(
    dtype: torch.dtype = torch.float32, batch: tuple[int, ...] = ()
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    real = torch.complex128 if dtype.is_complex else torch.float64
    a, b, c = (
        torch.randn(*batch, *shape, dtype=real, generator=g).to(dtype)
        for shape in ((24, 32), (32, 20), (24, 20))
    )
    return a, b, c


def spoil(monkeypatch: pytest.MonkeyPatch, strategy: type, how: Spoil) -> None:
    """Make a strategy's results wrong."""
    bind = strategy.bind

    def bind_wrong(self: object, problem: Problem, *rest: object) -> Run:
        run = bind(self, problem, *rest)

        def wrong(*call: object) -> torch.Tensor:
            result = run(*call)
            return result.copy_(how(result.clone()))

        return wrong

    monkeypatch.setattr(strategy, "bind", bind_wrong)
    autogemm.reload_tables()


def off_by_a_little(x: torch.Tensor) -> torch.Tensor:
    return x * (1 + 2.0**-12)


# ------------------------------------------------------------------------------ right results


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_right_results_pass_and_are_what_they_are_without_an_audit(
    dtype: torch.dtype, batch: tuple[int, ...], beta: float
) -> None:
    A, B, C = operands(dtype, batch)
    expected = gemm(1.5, A, B, beta, C)
    with autogemm.audit(fraction=1.0) as report:
        results = [gemm(1.5, A, B, beta, C) for _ in range(3)]
        inplace = C.clone()
        gemm(1.5, A, B, beta, inplace, out=inplace)
    assert all(torch.equal(result, expected) for result in results)
    assert torch.equal(inplace, expected)
    assert report.breaches == ()
    assert sum(tally.calls for tally in report.tallies) == 4
    assert sum(tally.sampled for tally in report.tallies) == 4


def test_the_fraction_decides_how_many_calls_are_checked() -> None:
    A, B, C = operands()
    with autogemm.audit(fraction=0.25, seed=3) as report:
        for _ in range(400):
            gemm(1.0, A, B, 1.0, C)
    (tally,) = report.tallies
    assert tally.calls == 400
    assert 60 <= tally.sampled <= 140


def test_corners_are_not_audited_and_special_values_are_no_breach() -> None:
    A, B, C = operands()
    with autogemm.audit(fraction=1.0, rows=24) as report:
        gemm(0.0, A, B, 1.0, C)
        A[3, 5], B[1, 2], C[7, 7] = torch.inf, torch.nan, -torch.inf
        gemm(1.0, A, B, 1.0, C)
        gemm(1.0, 1e30 * torch.ones(24, 32), 1e30 * torch.ones(32, 20))
    assert report.breaches == ()


def test_of_a_large_b_evenly_spread_columns_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auditing, "_MOST_OF_B", 64)
    spoil(monkeypatch, MatmulAxpby, off_by_a_little)
    A, B, C = operands()
    with autogemm.audit(fraction=1.0) as report:
        gemm(1.0, A, B, 1.0, C)
    assert [tally.candidate for tally in report.breaches] == [AXPBY]


def test_products_of_gradients_are_audited_too() -> None:
    A, B, C = operands()
    A.requires_grad_()
    with autogemm.audit(fraction=1.0) as report:
        gemm(1.0, A, B, 1.0, C).sum().backward()
    assert sum(tally.sampled for tally in report.tallies) == 2
    assert A.grad is not None


# ------------------------------------------------------------------------------ wrong results


@pytest.mark.parametrize(
    "how",
    [off_by_a_little, lambda x: x.fill_(torch.nan), lambda x: x.fill_(torch.inf), torch.zeros_like],
    ids=["by_a_little", "nan", "inf", "zeros"],
)
def test_a_wrong_strategy_is_caught_reported_and_demoted(
    how: Spoil, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, MatmulAxpby, how)
    A, B, C = operands()
    assert explain(1.0, A, B, 1.0, C).strategy == "matmul_axpby"
    wrong = gemm(1.0, A, B, 1.0, C)
    with autogemm.audit(fraction=1.0) as report:
        audited = gemm(1.0, A, B, 1.0, C)
        after = gemm(1.0, A, B, 1.0, C)
    assert torch.equal(audited, wrong) or audited.isnan().all()
    torch.testing.assert_close(after, torch.addmm(C, A, B))
    (tally,) = report.breaches
    assert (tally.candidate, tally.problem, tally.demoted) == (AXPBY, PROBLEM, True)
    assert tally.error > tally.allowed
    assert f"matmul_axpby on {PROBLEM} failed an audit: R = " in str(report)
    explanation = explain(1.0, A, B, 1.0, C)
    assert explanation.strategy == "addmm"
    assert "matmul_axpby: failed an audit: R = " in str(explanation)


def test_a_demotion_outlives_the_audit_and_concerns_its_problem_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spoil(monkeypatch, MatmulAxpby, off_by_a_little)
    A, B, C = operands()
    with autogemm.audit(fraction=1.0):
        gemm(1.0, A, B, 1.0, C)
    torch.testing.assert_close(gemm(1.0, A, B, 1.0, C), torch.addmm(C, A, B))
    assert list(dispatch._demoted) == [(PROBLEM, AXPBY)]


def test_a_wrong_element_in_one_row_is_found_once_that_row_is_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def one_row(x: torch.Tensor) -> torch.Tensor:
        x[5] += 1
        return x

    spoil(monkeypatch, MatmulAxpby, one_row)
    A, B, C = operands()
    with autogemm.audit(fraction=1.0, rows=1) as report:
        for _ in range(300):
            gemm(1.0, A, B, 1.0, C)
    assert [tally.candidate for tally in report.breaches] == [AXPBY]


def test_a_wrong_baseline_is_reported_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, Addmm, off_by_a_little)
    A, B, _ = operands(torch.float64)  # the table knows nothing of this type
    with autogemm.audit(fraction=1.0) as report:
        first, again = gemm(1.0, A, B), gemm(1.0, A, B)
    assert torch.equal(first, again)
    assert [tally.demoted for tally in report.breaches] == [False]
    assert "kept: it is the baseline" in str(report)
    assert dispatch._demoted == {}


def test_a_check_that_fails_for_want_of_memory_does_not_fail_the_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_memory(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(auditing._Check, "worst", no_memory)
    A, B, C = operands()
    with autogemm.audit(fraction=1.0) as report:
        gemm(1.0, A, B, 1.0, C)
    assert [tally.sampled for tally in report.tallies] == [0]


# ------------------------------------------------------------------------------ on and off


def test_without_an_audit_nothing_is_wrapped() -> None:
    A, B, C = operands()
    gemm(1.0, A, B, 1.0, C)
    (bare,) = (run for run, _ in api._warm.values())
    with autogemm.audit(fraction=1.0):
        assert api._warm == {}
        gemm(1.0, A, B, 1.0, C)
        (wrapped,) = (run for run, _ in api._warm.values())
        assert wrapped.__qualname__.startswith("Audit.")
    assert api._warm == {}
    gemm(1.0, A, B, 1.0, C)
    (again,) = (run for run, _ in api._warm.values())
    assert again.__qualname__ == bare.__qualname__
    assert not bare.__qualname__.startswith("Audit.")


def test_an_audit_can_be_started_and_stopped_by_hand() -> None:
    A, B, C = operands()
    report = autogemm.audit(fraction=1.0).start()
    gemm(1.0, A, B, 1.0, C)
    assert report.stop() is report
    gemm(1.0, A, B, 1.0, C)
    assert [tally.calls for tally in report.tallies] == [1]
    report.stop()


def test_an_error_ends_the_audit() -> None:
    with pytest.raises(ZeroDivisionError), autogemm.audit():
        raise ZeroDivisionError
    assert api._audit is None


def test_two_audits_at_a_time_are_refused_and_the_first_goes_on() -> None:
    A, B, C = operands()
    with autogemm.audit(fraction=1.0) as report:
        with pytest.raises(AutogemmError, match="on already"), autogemm.audit():
            pass
        gemm(1.0, A, B, 1.0, C)
    assert [tally.calls for tally in report.tallies] == [1]


def test_a_call_that_was_bound_under_an_audit_is_plain_after_it() -> None:
    A, B, C = operands()
    with autogemm.audit(fraction=1.0) as report:
        gemm(1.0, A, B, 1.0, C)
        (stale,) = (run for run, _ in api._warm.values())
    torch.testing.assert_close(stale(1.0, A, B, 1.0, C, None), torch.addmm(C, A, B))
    assert [tally.calls for tally in report.tallies] == [1]


def test_a_captured_call_is_not_audited() -> None:
    A, B, C = operands()
    plan = api.plan_for(A, B, 1.0, C, None, None)
    captured = dispatch.Plan(
        problem=plan.problem, tolerance=plan.tolerance, mode="graph", candidate=plan.candidate,
        source=plan.source, detail=plan.detail,
    )  # fmt: skip
    run = BY_NAME["addmm"].bind(plan.problem, None, {"reduction": "full"})
    report = autogemm.audit(fraction=1.0)
    assert report._wrapped(run, captured) is run
    assert report._wrapped(run, plan) is not run


@pytest.mark.parametrize("fraction", [0, -0.5, 1.5, float("nan")])
def test_a_wrong_fraction_is_an_error(fraction: float) -> None:
    with pytest.raises(InvalidProblem, match="fraction is"):
        autogemm.audit(fraction=fraction)


@pytest.mark.parametrize("rows", [0, -1, 1.5, True])
def test_wrong_rows_are_an_error(rows: object) -> None:
    with pytest.raises(InvalidProblem, match="rows is"):
        autogemm.audit(rows=rows)  # type: ignore[arg-type]


def test_torchs_own_random_numbers_are_left_alone() -> None:
    A, B, C = operands()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with autogemm.audit(fraction=1.0):
        gemm(1.0, A, B, 1.0, C)
    assert torch.equal(torch.rand(3), expected)


def test_calls_of_several_threads_are_all_counted() -> None:
    A, B, C = operands()

    def work() -> None:
        for _ in range(100):
            gemm(1.0, A, B, 1.0, C)

    with autogemm.audit(fraction=0.5) as report:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sum(tally.calls for tally in report.tallies) == 400


# ------------------------------------------------------- outcomes that are still on their way


class Event:
    """An event that says it is done when it is told to, and can be waited for."""

    def __init__(self) -> None:
        self.done = False

    def query(self) -> bool:
        return self.done

    def synchronize(self) -> None:
        self.done = True


def mailbox(size: int) -> tuple[Mailbox, list[Event]]:
    events: list[Event] = []

    def send(worst: torch.Tensor, slot: torch.Tensor) -> Event:
        slot.copy_(worst)
        events.append(Event())
        return events[-1]

    return Mailbox(size, send), events


def test_an_outcome_is_read_when_its_event_says_so_and_not_before() -> None:
    box, events = mailbox(4)
    tally = Tally(PROBLEM, AXPBY, 36.0)
    for value in (1.0, 2.0):
        box.post(torch.tensor(value), tally)
    assert box.collect(wait=False) == []
    events[0].done = True
    assert box.collect(wait=False) == [(tally, 1.0)]
    assert box.collect(wait=True) == [(tally, 2.0)]


def test_a_full_mailbox_takes_no_more_until_something_was_collected() -> None:
    box, _ = mailbox(2)
    tally = Tally(PROBLEM, AXPBY, 36.0)
    for value in (1.0, 2.0, 3.0):
        box.post(torch.tensor(value), tally)
    assert box.full
    assert [value for _, value in box.collect(wait=True)] == [1.0, 2.0]
    assert not box.full


def test_what_a_check_computes_stays_on_the_device_until_it_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Traced with fake tensors, where reading a value raises: nothing in a check waits for one."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    report = autogemm.audit(fraction=1.0)
    with FakeTensorMode():
        A, B, C = torch.empty(24, 32), torch.empty(32, 20), torch.empty(24, 20)
        worst = report._check(A, B, C).worst(1.5, 0.5, torch.empty(24, 20))
    assert worst.shape == ()
    with FakeTensorMode():
        A, B = torch.empty(3, 24, 32).bfloat16(), torch.empty(3, 32, 20).bfloat16()
        worst = report._check(A, B, None).worst(1.5, 0.0, torch.empty(3, 24, 20).bfloat16())
    assert worst.shape == ()


# ---------------------------------------------------------------------------------- on a GPU

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@NEEDS_GPU
@pytest.mark.parametrize("batch", [(), (3,)])
def test_a_gpu_is_not_waited_for(batch: tuple[int, ...]) -> None:
    A, B, C = (x.cuda() for x in operands(batch=batch))
    with autogemm.audit(fraction=1.0) as report:
        gemm(1.5, A, B, 0.5, C)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(10):
                gemm(1.5, A, B, 0.5, C)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert sum(tally.sampled for tally in report.tallies) == 11
    assert report.breaches == ()


@NEEDS_GPU
def test_a_wrong_product_of_a_gpu_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, Addmm, off_by_a_little)
    A, B, C = (x.cuda() for x in operands(torch.float64))
    with autogemm.audit(fraction=1.0) as report:
        gemm(1.0, A, B, 1.0, C)
    assert [tally.demoted for tally in report.breaches] == [False]


@NEEDS_GPU
def test_a_graph_is_captured_and_replayed_while_an_audit_is_on() -> None:
    A, B, C = (x.cuda() for x in operands())
    with autogemm.audit(fraction=1.0) as report:
        expected = gemm(1.5, A, B, 0.5, C)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = gemm(1.5, A, B, 0.5, C)
        graph.replay()
        torch.cuda.synchronize()
    torch.testing.assert_close(captured, expected)
    assert sum(tally.calls for tally in report.tallies) == 1
