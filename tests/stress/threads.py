"""Many threads with different shapes, types, levels and settings; each result is checked."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from invented import always, write_for_this_cpu

from autogemm import gemm, reload_tables
from autogemm.device import device_of
from autogemm.grading.oracle import Limit, Truth, widen
from autogemm.precision import Tolerance
from autogemm.problem import DTYPES, contiguous_problem
from autogemm.strategies import BY_NAME, Candidate
from stress import Figures, GoingOn

THREADS = 8
CHOICES = (
    Candidate.of("matmul_axpby"), Candidate.of("onednn"), Candidate.of("half", dtype="bfloat16"),
    Candidate.of("ksplit", form="batched", chunks=3),
)  # fmt: skip


@dataclass
class Case:
    """One call and what its result must be: within ``bound`` of ``value``, element by element."""

    call: Callable[[], torch.Tensor]
    value: np.ndarray
    bound: np.ndarray

    def check(self) -> None:
        got = widen(self.call())
        wrong = ~(np.abs(got - self.value) <= self.bound)
        assert not wrong.any(), f"{int(wrong.sum())} elements are wrong, one {got[wrong][0]}"


def tune_for_threads(folder: Path) -> None:
    """A table of this CPU that has every kind of strategy serve some of the shapes below."""
    here, entries = device_of(torch.device("cpu")), []
    for m in range(3, 3 + THREADS):
        for n in range(4, 9):
            for update in ("none", "add", "inplace"):
                problem = contiguous_problem(
                    m, n, 20, torch.float32, update=update, device_type="cpu"
                )
                candidate = CHOICES[(m + n) % len(CHOICES)]
                if not BY_NAME[candidate.strategy].reasons_not(problem, here, candidate.kwargs):
                    entries.append(always(candidate, problem))
    write_for_this_cpu(folder, *entries)
    reload_tables()


def cases(seed: int, none_is: str) -> list[Case]:
    """The calls of one thread, each with another type, level, layout, ``out`` or derivative.

    ``none_is`` is the level that torch's settings stand for.
    """
    rng, made = random.Random(seed), []
    for turn in range(48):
        dtype = tuple(DTYPES.values())[(seed + turn) % 6]
        if turn % 2:
            dtype = torch.float32
        m, n, k = 3 + seed % THREADS, 4 + turn % 5, 20
        g = torch.Generator().manual_seed(seed * 1000 + turn)
        wide = torch.complex128 if dtype.is_complex else torch.float64
        A, B, C = (
            torch.randn(*s, dtype=wide, generator=g).to(dtype) for s in ((m, k), (k, n), (m, n))
        )
        level = rng.choice(("highest", "high", "medium", None))
        tolerance = Tolerance(level or (none_is if dtype is torch.float32 else "highest"))
        kind = rng.choice(("plain", "out", "in place", "no C", "transposed", "backward"))
        made.append(_case(kind, A, B, C, level, tolerance))
    return made


def _case(
    kind: str, A: torch.Tensor, B: torch.Tensor, C: torch.Tensor, level: str | None,
    tolerance: Tolerance,
) -> Case:  # fmt: skip
    alpha, beta = 1.5, 0.5
    operands = (alpha, A, B, beta, C)
    if kind == "backward":
        # The gradient of A is alpha·G·Bᴴ with G of ones.
        A = A.clone().requires_grad_()
        G = torch.ones_like(C)
        operands = (alpha, G, B.mH.contiguous(), 0.0, None)

        def call() -> torch.Tensor:
            result = gemm(alpha, A, B, beta, C, precision=level)
            return torch.autograd.grad(result, A, G)[0]

    elif kind == "in place":

        def call() -> torch.Tensor:
            D = C.clone()
            return gemm(alpha, A, B, beta, D, precision=level, out=D)

    elif kind == "out":
        out = torch.empty_like(C)
        call = lambda: gemm(alpha, A, B, beta, C, precision=level, out=out)  # noqa: E731
    elif kind == "no C":
        operands = (alpha, A, B, 0.0, None)
        call = lambda: gemm(alpha, A, B, precision=level)  # noqa: E731
    elif kind == "transposed":
        left = A.t().contiguous().t()
        call = lambda: gemm(alpha, left, B, beta, C, precision=level)  # noqa: E731
    else:
        call = lambda: gemm(alpha, A, B, beta, C, precision=level)  # noqa: E731
    truth = Truth(*operands)
    bound = truth.bound(Limit.of(tolerance, truth.dtype, truth.k, typical=False))
    return Case(call, truth.value, bound)


@contextlib.contextmanager
def mkldnn_set_to(word: str) -> Iterator[None]:
    """torch's process-wide word for float32 products on a CPU."""
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = word
    try:
        yield
    finally:
        matmul.fp32_precision = before


def call_from_threads(going_on: GoingOn, folder: Path, *, reload_every: int = 0) -> Figures:
    """Calls of eight threads at once under each of torch's settings; ``going_on`` counts calls."""
    tune_for_threads(folder)
    with mkldnn_set_to("ieee"):
        first = _threads(lambda done: going_on(2 * done), "highest", reload_every)
        assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
    with mkldnn_set_to("bf16"):
        second = _threads(lambda done: going_on(first + done), "medium", reload_every)
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    return {"threads": THREADS, "calls": first + second, "wrong results": 0}


def _threads(going_on: GoingOn, none_is: str, reload_every: int) -> int:
    start, failures, counts = threading.Barrier(THREADS), [], [0] * THREADS

    def work(number: int) -> None:
        try:
            mine = cases(number, none_is)
            start.wait()
            while going_on(sum(counts)) and not failures:
                for case in mine:
                    case.check()
                counts[number] += len(mine)
                if reload_every and number == 0 and counts[0] % reload_every == 0:
                    reload_tables()
        except BaseException as error:
            failures.append(error)
            start.abort()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise AssertionError(f"a thread got a wrong result: {failures[0]}") from failures[0]
    return sum(counts)
