"""``short``: short k in IEEE arithmetic, of matrices and of batches.

Its kernel runs on a GPU as it is, elsewhere in Triton's interpreter, as ``test_kernels.py`` has it.
"""

from __future__ import annotations

import importlib
import itertools
from dataclasses import replace

import pytest
import torch
from invented import GPU
from test_direct_reads import addresses
from test_kernels import (
    LAYOUTS,
    ON_GPU,
    PLACE,
    checked_descriptor,
    gpu_problem,
    here,
    normal,
    serve,
)

from autogemm.grading.hostile import HOSTILE, names_for, seeded
from autogemm.grading.oracle import Truth, truth_of
from autogemm.precision import Tolerance
from autogemm.problem import Problem, contiguous_problem
from autogemm.strategies import BY_NAME, Candidate
from autogemm.strategies.base import ParamValue

epilogue = importlib.import_module("autogemm.kernels.epilogue")
operand_tiles = importlib.import_module("autogemm.kernels.operands")

pytestmark = pytest.mark.filterwarnings("ignore:::triton.runtime.interpreter")

STRATEGY = BY_NAME["short"]
PARAMS: dict[str, ParamValue] = {"bm": 32, "bn": 32, "bk": 32, "warps": 1, "stages": 1}
TILES = [
    Candidate.of("short", **{**PARAMS, **changed})
    for changed in (
        {}, {"bm": 64, "bn": 64, "warps": 4, "stages": 2}, {"bm": 128, "bk": 64, "warps": 4},
        {"reads": "direct"}, {"bm": 64, "stages": 2, "reads": "direct"},
    )
]  # fmt: skip
DIRECT = TILES[3:]
ORDERS = {"n": "row", "t": "col"}


@pytest.fixture(autouse=True)
def _descriptors_are_legal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operand_tiles, "_unchecked", checked_descriptor)


def integers(*shape: int) -> torch.Tensor:
    """Whole numbers from -8 to 8: their products and sums are exact in float32."""
    return (normal(*shape) * 3).round().clamp(-8, 8)


def run(
    alpha: float, A: torch.Tensor, B: torch.Tensor, beta: float, C: torch.Tensor | None,
    out: torch.Tensor | None = None, how: Candidate = TILES[0],
) -> torch.Tensor:  # fmt: skip
    problem = gpu_problem(A, B, C, out, beta)
    assert not STRATEGY.reasons_not(problem, here(), how.kwargs)
    return STRATEGY.bind(problem, here(), how.kwargs)(alpha, A, B, beta, C, out)


@pytest.mark.parametrize("layout", ["nn", "nt", "tn", "tt"])
@pytest.mark.parametrize("how", TILES, ids=str)
def test_every_element_is_the_sum_of_its_products(how: Candidate, layout: str) -> None:
    """In the interpreter the result has another order at each shape, and in each layout."""
    shapes = ((68, 36, 32), (132, 68, 100), (4, 8, 4), (32, 32, 128), (36, 200, 52))
    first = ["nn", "nt", "tn", "tt"].index(layout)
    orders = itertools.islice(itertools.cycle(LAYOUTS.values()), first, None)
    for m, n, k in shapes:
        a, b = (LAYOUTS[ORDERS[letter]] for letter in layout)
        A, B = a(integers(m, k)), b(integers(k, n))
        C = integers(m, n)
        exact = (0.75 * (A.double() @ B.double()) + 0.5 * C.double()).float()
        assert torch.equal(run(0.75, A, B, 0.5, C, how=how), exact)
        for order in LAYOUTS.values() if ON_GPU else itertools.islice(orders, 1):
            out = order(C.clone())
            assert torch.equal(run(0.75, A, B, 0.5, out, out, how), exact)


@pytest.mark.parametrize("layout", ["nn", "nt", "tn", "tt"])
@pytest.mark.parametrize("how", TILES, ids=str)
def test_batches_are_computed_matrix_by_matrix(how: Candidate, layout: str) -> None:
    batch, m, n, k = 3, 36, 68, 52
    A, B = integers(batch, m, k), integers(batch, k, n)
    A = A.mT.contiguous().mT if layout[0] == "t" else A
    B = B.mT.contiguous().mT if layout[1] == "t" else B
    C = integers(batch, m, n)
    exact = -1.5 * (A.double() @ B.double())
    assert torch.equal(run(-1.5, A, B, 0.0, None, how=how), exact.float())
    for addend in (C, C[:1].expand(C.shape), C[0, :1].expand(C.shape), C.mT.contiguous().mT):
        found = run(-1.5, A, B, 2.0, addend, how=how)
        assert torch.equal(found, (exact + 2 * addend.double()).float())
    out = C.mT.contiguous().mT
    assert torch.equal(run(-1.5, A, B, 2.0, out, out, how), (exact + 2 * C.double()).float())
    for a, b in ((A[1:2].expand(A.shape), B), (A, B[2:].expand(B.shape))):
        found = run(1.0, a, b, 0.0, None, how=how)
        assert torch.equal(found, (a.double() @ b.double()).float())


@pytest.mark.parametrize("b", LAYOUTS)
@pytest.mark.parametrize("a", LAYOUTS)
@pytest.mark.parametrize("how", DIRECT, ids=str)
def test_operands_that_are_read_directly_lie_as_they_like(how: Candidate, a: str, b: str) -> None:
    for batch, m, n, k in (((), 37, 70, 33), ((3,), 5, 3, 7), ((2,), 33, 1, 1), ((2,), 1, 35, 65)):
        A, B = LAYOUTS[a](integers(*batch, m, k)), LAYOUTS[b](integers(*batch, k, n))
        C = integers(*batch, m, n)
        exact = (0.75 * (A.double() @ B.double()) + 0.5 * C.double()).float()
        assert torch.equal(run(0.75, A, B, 0.5, C, how=how), exact)
        out = LAYOUTS[b](C)
        assert torch.equal(run(0.75, A, B, 0.5, out, out, how), exact)
        if batch:
            A, B = A[:1].expand(A.shape), B[1:2].expand(B.shape)
            exact = (A.double() @ B.double()).float()
            assert torch.equal(run(1.0, A, B, 0.0, None, how=how), exact)


@pytest.mark.parametrize("b", LAYOUTS)
@pytest.mark.parametrize("a", LAYOUTS)
def test_nothing_is_read_directly_that_holds_no_element(a: str, b: str, reads: set[int]) -> None:
    for batch, m, n, k in (((), 37, 33, 35), ((3,), 5, 33, 7)):
        reads.clear()
        A, B = LAYOUTS[a](integers(*batch, m, k)), LAYOUTS[b](integers(*batch, k, n))
        C = LAYOUTS[b](integers(*batch, m, n))
        run(1.0, A, B, 1.0, C, how=DIRECT[0])
        assert reads == addresses(A, B, C)


@pytest.mark.parametrize("pitch", [36, 37, 40])
@pytest.mark.parametrize("cols", [33, 36])
@pytest.mark.parametrize("start", [0, 1])
def test_rows_of_any_pitch_and_place_are_read(pitch: int, cols: int, start: int) -> None:
    """Whole multiples of 16 bytes or not: the one is told to the compiler, and must be true."""

    def lie(x: torch.Tensor) -> torch.Tensor:
        memory = torch.full((3 * 40 * 40,), torch.nan, device=PLACE)
        return memory.as_strided(x.shape, (36 * pitch + 1, pitch, 1), start).copy_(x)

    A, B, C = lie(integers(2, 35, cols)), lie(integers(2, cols, cols)), lie(integers(2, 35, cols))
    exact = (A.double() @ B.double() + C.double()).float()
    assert torch.equal(run(1.0, A, B, 1.0, C, how=DIRECT[0]), exact)
    for x in (A, B[0], C[0], A[:, :, :32]):
        plain = x.data_ptr() % 16 == 0 and all(s % 4 == 0 for s in x.stride()[:-1])
        known = epilogue.rows_of(x)
        assert known == (2 if plain and x.shape[-1] % 4 == 0 else 1)
        assert epilogue.rows_of(x.mT) == 0
        assert epilogue.rows_of(x.expand(3, *x.shape)[0]) == known


def test_rows_that_are_very_far_apart_are_told() -> None:
    """Offsets within a tile have 32 bits."""
    memory = torch.empty(4, device=PLACE)
    assert epilogue.rows_of(memory.as_strided((1, 4), (2**23 - 4, 1))) == 2
    assert epilogue.rows_of(memory.as_strided((1, 4), (2**23, 1))) == 0


@pytest.mark.skipif(ON_GPU, reason="gigabytes, of which the interpreter touches a few pages")
@pytest.mark.parametrize("which", ["A", "B", "C", "out"])
def test_matrices_may_lie_very_far_apart(which: str) -> None:
    """By less than 32 bits hold, a few of them by more."""
    operands = {"A": integers(3, 5, 7), "B": integers(3, 7, 3), "C": integers(3, 5, 3)}
    operands["out"] = torch.empty(3, 5, 3)
    A, B, C = (operands[name].double() for name in "ABC")
    _, rows, cols = operands[which].shape
    try:
        far = torch.empty(2**31 + 1024).as_strided((3, rows, cols), (2**30 + 4, cols, 1))
    except RuntimeError as error:
        pytest.skip(str(error).splitlines()[0])
    operands[which] = far.copy_(operands[which])
    found = run(1.0, *map(operands.get, "AB"), 1.0, operands["C"], operands["out"], DIRECT[0])
    assert torch.equal(found, (A @ B + C).float())


def test_matrices_of_the_result_may_begin_anywhere() -> None:
    """Where rows are whole multiples of 16 bytes, and matrices are not."""
    A, B, C = integers(3, 36, 52), integers(3, 52, 40), integers(3, 36, 40)
    exact = (A.double() @ B.double() + 2 * C.double()).float()
    apart = [torch.zeros(3, 36 * 40 + 1, device=PLACE) for _ in range(2)]
    addend, out = (x[:, :-1].view(3, 36, 40) for x in apart)
    addend.copy_(C)
    assert torch.equal(run(1.0, A, B, 2.0, addend, out), exact)
    assert torch.equal(run(1.0, A, B, 2.0, C, out), exact)
    assert not apart[1][:, -1].any(), "memory beside the result changed"


@pytest.mark.parametrize("value", [torch.inf, torch.nan, 3e38])
def test_a_bad_element_reaches_its_row_and_no_other_matrix(value: float) -> None:
    """Tiles reach beyond a matrix's rows, columns and k: what follows it in memory is another."""
    for layout, how in itertools.product(("nn", "tt"), (TILES[0], DIRECT[0])):
        A, B = normal(3, 36, 52), normal(3, 52, 40)
        if layout == "tt":
            A, B = A.mT.contiguous().mT, B.mT.contiguous().mT
        good = run(1.0, A, B, 0.0, None, how=how)
        A[1, 5, 51], B[1, 51, 3] = value, 0.0
        bad = run(1.0, A, B, 0.0, None, how=how)
        assert torch.equal(bad[::2], good[::2])
        others = torch.arange(36, device=PLACE) != 5
        columns = torch.arange(40, device=PLACE) != 3
        assert torch.equal(bad[1][others][:, columns], good[1][others][:, columns])
        truth = truth_of(1.0, A.cpu(), B.cpu(), 0.0, None)
        problem = gpu_problem(A, B, None, None, 0.0)
        truth.check(bad.cpu(), STRATEGY.bound(problem, PARAMS))


@pytest.mark.parametrize("name", names_for(torch.float32))
def test_the_bound_is_kept_on_hostile_operands(name: str) -> None:
    A, B, C = HOSTILE[name](36, 20, 72, torch.float32, seeded("short", name))
    truth = Truth(1.5, A, B, 0.5, C)
    A, B, C = (x.to(PLACE) for x in (A, B, C))
    for how in (*TILES[:2], DIRECT[0]):
        assert serve(how, 1.5, A, B, 0.5, C.clone(), "C", truth)


# ------------------------------------------------------------------------------ the strategy


def problem_of(m: int, n: int, k: int, batch: int = 1) -> Problem:
    return contiguous_problem(m, n, k, torch.float32, device_type="cuda", batch=batch)


def test_it_takes_short_k_and_aligned_operands() -> None:
    def why(problem: Problem) -> str:
        return "; ".join(STRATEGY.reasons_not(problem, GPU, PARAMS))

    assert why(problem_of(200000, 64, 64)) == why(problem_of(32, 32, 32, 1024)) == ""
    assert "programs at most" in why(problem_of(32, 32, 32, 2**31))
    assert "k is 128 at most" in why(problem_of(200000, 64, 132))
    for unaligned in (problem_of(200000, 64, 63), replace(problem_of(64, 64, 64), b="strided")):
        assert "without reads=direct operands are to be 16-byte aligned" in why(unaligned)
        assert not STRATEGY.reasons_not(unaligned, GPU, {**PARAMS, "reads": "direct"})
    half = contiguous_problem(64, 64, 64, torch.float16, device_type="cuda")
    assert "computes float32" in STRATEGY.reasons_not(half, GPU, PARAMS)[0]


def test_its_space_is_what_memory_bounds() -> None:
    small = STRATEGY.candidates(problem_of(32, 32, 32, 1024), GPU)
    assert {(c.kwargs["bm"], c.kwargs["bn"], c.kwargs["bk"]) for c in small} == {(32, 32, 32)}
    tall = STRATEGY.candidates(problem_of(200000, 64, 64), GPU)
    assert {c.kwargs["bn"] for c in tall} == {32, 64}
    assert not any("reads" in c.kwargs for c in tall)
    assert {c.kwargs.get("reads") for c in small} == {None, "direct"}
    for odd in (problem_of(200000, 63, 63), problem_of(5, 5, 5, 4096)):
        found = STRATEGY.candidates(odd, GPU)
        assert found
        assert all(c.kwargs["reads"] == "direct" for c in found)
    assert not STRATEGY.candidates(problem_of(4096, 4096, 64), GPU), "bound by arithmetic"
    assert not STRATEGY.candidates(problem_of(4096, 4096, 4096), GPU)


def test_its_bound_is_within_the_level() -> None:
    problem = problem_of(200000, 64, 128)
    bound = STRATEGY.bound(problem, PARAMS)
    assert Tolerance("highest").admits(bound, problem.dtype, problem.k)
