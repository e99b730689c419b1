"""Threads and processes: right results, and no setting of torch's that others would see lowered."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from calling import python_path
from invented import BF16, CPU, GPU, TF32, always, choice, entry, evidence, row, write_for_this_cpu
from stress import threads, up_to

import autogemm
from autogemm import dispatch, explain, gemm
from autogemm.device import device_of
from autogemm.grading.oracle import check
from autogemm.precision import Tolerance, fp32_compute, fp32_setting, is_alone
from autogemm.problem import contiguous_problem
from autogemm.strategies import BY_NAME, Candidate, baseline, half

pytestmark = pytest.mark.usefixtures("tables")

ROOT = Path(autogemm.__file__).parents[1]
HIGHEST, MEDIUM = Tolerance("highest"), Tolerance("medium")
CUBE = contiguous_problem(512, 512, 512, torch.float32)
SHAPE = (96, 80, 256)
A, B, C = torch.randn(96, 256), torch.randn(256, 80), torch.randn(96, 80)


def setting() -> str:
    return str(fp32_setting("mkldnn", "matmul"))


@pytest.fixture
def chosen_runs(tables: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A table whose choice at ``medium`` needs torch set to bf16; its runs, by torch's word."""
    runs: list[str] = []
    run_on_cpu = half._run_on_cpu

    def recorded(*call: Any) -> torch.Tensor:
        runs.append(setting())
        return run_on_cpu(*call)

    monkeypatch.setattr(half, "_run_on_cpu", recorded)
    problem = contiguous_problem(*SHAPE, torch.float32, device_type="cpu")
    if reasons := BY_NAME["half"].reasons_not(problem, device_of(CPU), BF16.kwargs):
        pytest.skip("; ".join(reasons))
    write_for_this_cpu(tables, always(BF16, problem))
    autogemm.reload_tables()
    return runs


class Spy:
    """Another thread that looks at torch's setting all the time."""

    def __enter__(self) -> Spy:
        self.seen: set[str] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._over.is_set():
            self.seen.add(setting())

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def call_for(seconds: float, precision: str | None) -> list[torch.Tensor]:
    until, results = time.monotonic() + seconds, []
    while time.monotonic() < until:
        results = [gemm(1.5, A, B, 0.5, C, precision=precision)]
    return results


# --------------------------------------------------------------------- torch's own settings


@pytest.mark.usefixtures("restored_torch_settings")
def test_no_other_thread_ever_sees_a_setting_lowered(chosen_runs: list[str]) -> None:
    gemm(1.5, A, B, 0.5, C, precision="medium")  # bound while alone, and warm
    chosen_runs.clear()
    with Spy() as spy:
        (result,) = call_for(0.5, "medium")
    assert spy.seen <= {"none", "ieee"}
    assert chosen_runs == []
    check(result, 1.5, A, B, 0.5, C, HIGHEST)


@pytest.mark.usefixtures("chosen_runs")
def test_the_spy_would_have_seen_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "is_alone", lambda: True)
    with Spy() as spy:
        call_for(0.5, "medium")
    assert "bf16" in spy.seen


def test_a_process_of_one_thread_runs_the_choice_and_one_of_two_the_stand_in(
    chosen_runs: list[str],
) -> None:
    if not is_alone():
        pytest.skip("this test runner has threads of its own")
    check(gemm(1.5, A, B, 0.5, C, precision="medium"), 1.5, A, B, 0.5, C, MEDIUM)
    assert len(chosen_runs) == 1
    with Spy():
        among_threads = gemm(1.5, A, B, 0.5, C, precision="medium")
    check(among_threads, 1.5, A, B, 0.5, C, HIGHEST)
    assert len(chosen_runs) == 1
    gemm(1.5, A, B, 0.5, C, precision="medium")
    assert len(chosen_runs) == 2
    assert "threads   addmm" in str(explain(1.5, A, B, 0.5, C, precision="medium"))


@pytest.mark.usefixtures("restored_torch_settings")
def test_where_torch_is_set_to_bf16_the_choice_runs_in_every_thread(
    chosen_runs: list[str],
) -> None:
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    with Spy() as spy:
        gemm(1.5, A, B, 0.5, C)
    assert chosen_runs == ["bf16"]
    assert spy.seen == {"bf16"}
    assert explain(1.5, A, B, 0.5, C).plan.among_threads is None


@pytest.mark.usefixtures("restored_torch_settings")
def test_full_accuracy_shows_in_other_threads_as_more_accuracy_only() -> None:
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    with Spy() as spy:
        call_for(0.3, "highest")
    assert spy.seen <= {"bf16", "ieee"}
    assert setting() == "bf16"


@pytest.mark.usefixtures("restored_torch_settings")
def test_a_setting_is_put_back_without_showing_the_one_it_would_inherit() -> None:
    mkldnn = torch.backends.mkldnn
    before = mkldnn.fp32_precision
    try:
        mkldnn.fp32_precision = "bf16"
        mkldnn.matmul.fp32_precision = "tf32"
        with Spy() as spy:
            for _ in range(3000):
                with fp32_compute("cpu", "ieee"):
                    pass
        assert spy.seen <= {"tf32", "ieee"}
    finally:
        mkldnn.fp32_precision = before
    assert setting() == "tf32"


@pytest.mark.usefixtures("restored_torch_settings")
def test_what_somebody_sets_during_a_launch_is_not_overwritten() -> None:
    matmul = torch.backends.mkldnn.matmul
    matmul.fp32_precision = "bf16"
    with fp32_compute("cpu", "ieee"):
        matmul.fp32_precision = "tf32"
    assert setting() == "tf32"


def test_a_thread_that_is_about_to_start_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    if not is_alone():
        pytest.skip("this test runner has threads of its own")
    seen: list[bool] = []
    start = threading._start_new_thread  # type: ignore[attr-defined]

    def slow(*args: object) -> object:
        seen.append(is_alone())
        return start(*args)

    monkeypatch.setattr(threading, "_start_new_thread", slow)
    thread = threading.Thread(target=int)
    try:
        thread.start()
    except TypeError:
        pytest.skip("this Python starts threads otherwise")
    thread.join()
    assert seen in ([False], [])
    assert is_alone()


TF32_ROWS = [row(baseline(CUBE, "high"), 100.0), row(TF32, 20.0)]


@pytest.mark.usefixtures("restored_torch_settings")
@pytest.mark.parametrize("word", ["ieee", "tf32"])
def test_tf32_has_a_stand_in_unless_torch_is_set_to_it(word: str) -> None:
    torch.backends.cuda.matmul.fp32_precision = word
    single_pass = Candidate.of("half", dtype="float16")
    rows = [*TF32_ROWS, row(single_pass, 30.0)]
    known = evidence(entry(CUBE, {"high": choice(TF32)}, rows))
    made = dispatch.plan(CUBE, Tolerance("high"), GPU, "graph", known)
    assert made.candidate == TF32
    assert made.among_threads == (single_pass if word == "ieee" else None)


@pytest.mark.usefixtures("restored_torch_settings")
def test_a_stand_in_is_the_safe_default_where_nothing_else_is_much_faster() -> None:
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    known = evidence(entry(CUBE, {"high": choice(TF32)}, TF32_ROWS))
    made = dispatch.plan(CUBE, Tolerance("high"), GPU, "graph", known)
    assert made.among_threads == baseline(CUBE, "highest")


@pytest.mark.usefixtures("restored_torch_settings")
def test_16_bit_partial_sums_have_a_stand_in_where_torch_forbids_them() -> None:
    problem = contiguous_problem(512, 512, 512, torch.float16)
    for allowed in (True, False):
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = allowed
        made = dispatch.plan(problem, Tolerance("high"), GPU, "graph", evidence())
        assert made.candidate == Candidate.of("addmm", reduction="reduced")
        full = Candidate.of("addmm", reduction="full")
        assert made.among_threads == (None if allowed else full)


# ------------------------------------------------------------------------ threads and processes


@pytest.mark.usefixtures("restored_torch_settings")
def test_eight_threads_get_right_results_at_every_level_and_setting(tables: Path) -> None:
    figures = threads.call_from_threads(up_to(3000), tables, reload_every=96)
    assert figures["calls"] >= 3000


def _child(queue: object) -> None:
    torch.set_num_threads(1)  # as torch's own workers do: OpenMP's threads do not survive a fork
    result = gemm(1.5, A, B, 0.5, C, precision="highest")
    check(result, 1.5, A, B, 0.5, C, HIGHEST)
    queue.put((setting(), is_alone()))  # type: ignore[attr-defined]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.usefixtures("restored_torch_settings")
def test_a_fork_while_other_threads_call_inherits_neither_lock_nor_switch() -> None:
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    over = threading.Event()

    def call_on() -> None:
        while not over.is_set():
            with fp32_compute("cpu", "ieee"):
                time.sleep(0.005)
            gemm(1.5, A, B, 0.5, C, precision="highest")

    callers = [threading.Thread(target=call_on) for _ in range(3)]
    for caller in callers:
        caller.start()
    try:
        context = multiprocessing.get_context("fork")
        for _ in range(8):
            queue = context.SimpleQueue()
            child = context.Process(target=_child, args=(queue,))
            child.start()
            child.join(30)
            assert child.exitcode == 0, "the child of a fork hung or failed"
            assert queue.get() == ("bf16", True)
    finally:
        over.set()
        for caller in callers:
            caller.join()
        torch.set_num_threads(count)
    assert setting() == "bf16"


DIGESTS = textwrap.dedent("""
    import hashlib, threading, torch
    from autogemm import gemm
    digest = hashlib.sha256()
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64):
        for m, n, k in ((1, 1, 1), (33, 17, 129), (96, 80, 256), (64, 64, 4000)):
            g = torch.Generator().manual_seed(m + n + k)
            A, B, C = (torch.randn(*s, generator=g, dtype=torch.float64).to(dtype)
                       for s in ((m, k), (k, n), (m, n)))
            results = [gemm(1.5, A, B, 0.5, C) for _ in range(3)]
            assert all(torch.equal(results[0], other) for other in results)
            digest.update(torch.view_as_real(results[0]).numpy().tobytes() if dtype.is_complex
                          else results[0].view(torch.uint8).numpy().tobytes())
    print(digest.hexdigest())
""")


def test_equal_inputs_give_equal_bits_in_every_call_and_process(tables: Path) -> None:
    problem = contiguous_problem(64, 64, 4000, torch.float32, device_type="cpu")
    split = Candidate.of("ksplit", form="batched", chunks=8)
    write_for_this_cpu(tables, always(split, problem))
    environment = {
        **os.environ, "PYTHONPATH": python_path(ROOT), "AUTOGEMM_TUNING_DB": str(tables)
    }  # fmt: skip
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", DIGESTS], env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for _ in range(2)
    ]  # fmt: skip
    told = [run.communicate(timeout=100) for run in runs]
    assert told[0][0], told[0][1]
    assert len(told[0][0].strip()) == len(hashlib.sha256().hexdigest())
    assert told[0][0] == told[1][0]
