"""Conformance of every strategy: its declared facts, every corner of the call, its error bound.

Cases are drawn from what strategies declare, deterministically, so that every value of every
axis is met by every strategy that takes it; a strategy that cannot run here is skipped with
the reasons it gives itself.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from calling import has_bfloat16_passes

from autogemm.aliasing import overlap
from autogemm.device import Device, device_of
from autogemm.grading.hostile import BASELINE, HOSTILE, names_for, seeded
from autogemm.grading.known_faults import known_fault
from autogemm.grading.oracle import Truth, Truths, has_oracle, truth_of
from autogemm.precision import LEVELS, ErrorBound, Tolerance
from autogemm.problem import DTYPE_NAMES, DTYPES, Problem, contiguous_problem, problem_of
from autogemm.strategies import BY_NAME, STRATEGIES, Candidate, Strategy, addmm, baseline
from autogemm.strategies.base import ParamValue

Settings = Callable[[], dict[str, object]]
PLACES = [torch.device("cpu")] + ([torch.device("cuda")] if torch.cuda.is_available() else [])
BY_ID = pytest.mark.parametrize("strategy", STRATEGIES, ids=[s.name for s in STRATEGIES])

BATCHES = (2, 5)
SIZES = (1, 2, 3, 17, 33, 64)
LENGTHS = (1, 2, 3, 17, 64, 100, 257, 1000)
OPERAND_LAYOUTS = ("row", "col", "sliced", "col_sliced", "strided", "lazy", "shared")
C_LAYOUTS = (*OPERAND_LAYOUTS, "one_row", "one_column", "one_number")
OUTS = ("none", "row", "col", "sliced", "strided", "inplace")
ALPHAS = (1.0, 1.5, -0.5)
BETAS = (0.0, 1.0, 0.5)
COMPLEX_ALPHA, COMPLEX_BETA = 0.5 - 1.5j, -0.25 + 0.75j

SMALL_PARAMS: dict[str, list[dict[str, ParamValue]]] = {
    "ksplit": [
        {"form": form, "chunks": chunks}
        for form in ("batched", "sequential")
        for chunks in (2, 3, 7)
    ]
}
"""Parameters that a search space leaves out for small problems."""
FEW_PARAMS: dict[str, list[dict[str, ParamValue]]] = {
    "emulated_fp32": [
        {
            "form": form,
            "method": method,
            "bm": 64,
            "bn": 64,
            "bk": 32,
            "warps": 4,
            "stages": 2,
            "chunk": 64,
            "slices": 1,
            "group": 8,
        }
        for form in ("split", "continuous", "fused", "streamed")
        for method in ("fp16x3", "fp16")
    ],
    "triton_gemm": [
        {
            "bm": bm,
            "bn": bn,
            "bk": 64,
            "warps": 4,
            "stages": 3,
            "slices": slices,
            "group": 8,
            "persistent": persistent,
        }
        for bm, bn, slices, persistent in (
            (64, 64, 1, False),
            (16, 64, 2, False),
            (64, 128, 1, True),
        )
    ]
    + [
        {
            "bm": 64,
            "bn": 64,
            "bk": 64,
            "warps": 4,
            "stages": 3,
            "slices": 1,
            "group": 8,
            "persistent": False,
            "reads": "direct",
        }
    ],
}
"""What stands for a search space too large to be tried whole."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One corner of the call; a batch of 1 is a single product."""

    batch: int
    m: int
    n: int
    k: int
    a: str
    b: str
    c: str
    out: str
    alpha: complex
    beta: complex
    data: str

    def __str__(self) -> str:
        times = f"{self.batch}x" if self.batch > 1 else ""
        return (
            f"{times}{self.m}x{self.n}x{self.k}-{self.a}-{self.b}-{self.c}-out_{self.out}"
            f"-{self.alpha:g}-{self.beta:g}-{self.data}"
        )


# ------------------------------------------------------------------------ laying operands out


@dataclass(frozen=True)
class Placed:
    """A matrix, or a batch, in some layout, and the whole buffer it lives in."""

    matrix: torch.Tensor
    buffer: torch.Tensor

    def surroundings(self) -> torch.Tensor:
        """The buffer's bits outside the matrix (the matrix itself reads as 0 there)."""
        before = self.matrix.clone()
        self.matrix.zero_()
        outside = bits(self.buffer).clone()
        self.matrix.copy_(before)
        return outside


def bits(x: torch.Tensor) -> torch.Tensor:
    """A contiguous tensor's bytes, so that NaN compares equal to itself."""
    return (torch.view_as_real(x) if x.is_complex() else x).view(torch.uint8)


def place(values: torch.Tensor, layout: str) -> Placed:
    """Lay values out; whatever surrounds them in memory is NaN, which no result may show."""
    *batch, rows, cols = values.shape
    if layout == "shared":  # by all matrices of a batch
        core = values[:1].clone() if batch else values.clone()
        return Placed(core.expand(values.shape), core)
    if layout.startswith("one_"):
        keep = {"one_row": (1, cols), "one_column": (rows, 1), "one_number": (1, 1)}[layout]
        core = values[(0,) * len(batch)][: keep[0], : keep[1]].clone()
        return Placed(core.expand(values.shape), core)
    if layout == "lazy":  # a conjugated or negated view: its bits are not its values
        if values.is_complex():
            buffer = values.conj().resolve_conj()
            return Placed(buffer.conj(), buffer)
        # A strategy meets negated views on the CPU only (strategies/base.py).
        if values.dtype in (torch.float32, torch.float64) and not values.is_cuda:
            buffer = torch.complex(torch.zeros_like(values), -values)
            return Placed(buffer.conj().imag, buffer)
        layout = "row"
    if layout.startswith("col"):
        placed = place(values.mT, "sliced" if layout == "col_sliced" else "row")
        return Placed(placed.matrix.mT, placed.buffer)
    above, left, down, right = {
        "row": (0, 0, 1, 1),
        "sliced": (1, 2, 1, 1),
        "strided": (0, 0, 2, 3),
    }[layout]
    shape = (*batch, rows * down + 2 * above, cols * right + 2 * left)
    buffer = torch.full(shape, torch.nan, dtype=values.dtype, device=values.device)
    matrix = buffer[..., above : above + rows * down : down, left : left + cols * right : right]
    matrix.copy_(values)
    return Placed(matrix, buffer)


# ---------------------------------------------------------------------------- drawing cases


def parameter_sets(
    strategy: Strategy, dtype: torch.dtype, device: Device
) -> list[dict[str, ParamValue]]:
    """What the search space offers for a few shapes, and small parameters besides.

    Of a large space only a few stand for the rest.
    """
    unique: dict[Candidate, dict[str, ParamValue]] = {}
    for m, n, k in ((17, 33, 1000), (3, 2, 5)):
        batch = batches_of(strategy)[0]
        problem = contiguous_problem(m, n, k, dtype, device_type=device.type, batch=batch)
        offered = FEW_PARAMS.get(strategy.name) or strategy.space(problem, device)
        for params in (*offered, *SMALL_PARAMS.get(strategy.name, [])):
            unique[Candidate.of(strategy.name, **params)] = params
    return list(unique.values())


def cycle(rng: random.Random, values: Iterable[object]) -> Iterator[object]:
    """The values in random order, over and over, each round in an order of its own."""
    values = list(values)
    while True:
        yield from rng.sample(values, len(values))


def cases(dtype: torch.dtype, seed: str, batches: tuple[int, ...]) -> Iterator[Case]:
    """Endless corners; any run of 18 holds every value of every axis."""
    rng = random.Random(seed)
    complex_too = dtype.is_complex
    axes = {
        "batch": batches,
        "m": SIZES,
        "n": SIZES,
        "k": LENGTHS,
        "a": OPERAND_LAYOUTS,
        "b": OPERAND_LAYOUTS,
        "c": C_LAYOUTS,
        "out": OUTS,
        "alpha": (*ALPHAS, COMPLEX_ALPHA) if complex_too else ALPHAS,
        "beta": (*BETAS, COMPLEX_BETA) if complex_too else BETAS,
        "data": BASELINE,
    }
    streams = {name: cycle(rng, values) for name, values in axes.items()}
    while True:
        case = Case(**{name: next(stream) for name, stream in streams.items()})  # type: ignore[arg-type]
        expanded = case.c.startswith("one_") or (case.c == "shared" and case.batch > 1)
        if case.out == "inplace" and (expanded or case.beta == 0):
            continue  # an expanded C holds no result, and beta = 0 makes C a mere out
        yield case


def problem_for(case: Case, dtype: torch.dtype, place_: torch.device) -> Problem:
    """The problem a case forms (with operands of no particular value)."""
    A, B, C = (torch.zeros(s, dtype=dtype, device=place_) for s in shapes(case))
    a, b, c, out = arrange(case, A, B, C)
    return problem_of(
        a.matrix, b.matrix, None if c is None else c.matrix, matrix_of(out), case.beta == 0
    )


def shapes(case: Case) -> tuple[tuple[int, ...], ...]:
    batch = () if case.batch == 1 else (case.batch,)
    return (*batch, case.m, case.k), (*batch, case.k, case.n), (*batch, case.m, case.n)


def batches_of(strategy: Strategy) -> tuple[int, ...]:
    return (1,) * strategy.single + BATCHES * strategy.batched


def matrix_of(placed: Placed | None) -> torch.Tensor | None:
    return None if placed is None else placed.matrix


def arrange(
    case: Case, A: torch.Tensor, B: torch.Tensor, C: torch.Tensor
) -> tuple[Placed, Placed, Placed | None, Placed | None]:
    """Lay the operands out; C is None where beta = 0, and out starts as NaN unless it is C."""
    a, b = place(A, case.a), place(B, case.b)
    c = None if case.beta == 0 else place(C, case.c)
    if case.out == "none":
        return a, b, c, None
    if case.out == "inplace":
        return a, b, c, c
    return a, b, c, place(torch.full_like(C, torch.nan), case.out)


def candidates() -> Iterator[
    tuple[Strategy, dict[str, ParamValue], torch.dtype, torch.device, Device, str]
]:
    """Every strategy with every parameter set, type and place, and a label for test names."""
    for place_ in PLACES:
        device = device_of(place_)
        for strategy in STRATEGIES:
            for dtype in sorted(strategy.dtypes, key=str):
                for params in parameter_sets(strategy, dtype, device):
                    candidate = Candidate.of(strategy.name, **params)
                    label = f"{place_.type}-{candidate}-{DTYPE_NAMES[dtype]}"
                    yield strategy, params, dtype, place_, device, label


@functools.cache
def drawn() -> list[Any]:
    """Corners that each candidate takes; for one that takes none, a case to skip."""
    drawn_cases = []
    for strategy, params, dtype, place_, device, label in candidates():
        wanted = max(18, 36 // len(parameter_sets(strategy, dtype, device)))
        endless = cases(dtype, label, batches_of(strategy))
        rounds = 5 if place_.type == "cuda" else 3  # there some forms refuse batches
        proposed = list(itertools.islice(endless, rounds * wanted))
        taken = (
            case
            for case in proposed
            if not strategy.reasons_not(problem_for(case, dtype, place_), device, params)
        )
        drawn_cases += [
            pytest.param(strategy, params, dtype, place_, case, id=f"{label}-{case}")
            for case in list(itertools.islice(taken, wanted)) or proposed[:1]
        ]
    return drawn_cases


# -------------------------------------------------------------------------------- the corners


@pytest.mark.parametrize(("strategy", "params", "dtype", "place_", "case"), drawn())
def test_every_corner_of_the_call_is_computed_within_the_declared_bound(
    strategy: Strategy,
    params: dict[str, ParamValue],
    dtype: torch.dtype,
    place_: torch.device,
    case: Case,
    torch_settings: Settings,
) -> None:
    device, problem = device_of(place_), problem_for(case, dtype, place_)
    skip_unless_it_runs(strategy, problem, device, params)
    size = (case.m, case.n, case.k)
    drawn_values = values_of(case.data, case.batch, *size, dtype, seeded(str(case)))
    a, b, c, out = arrange(case, *(x.to(place_) for x in drawn_values))
    truth = truth_of(case.alpha, a.matrix, b.matrix, case.beta, matrix_of(c))
    inputs = [a, b] if c is None or out is c else [a, b, c]
    before = [bits(x.buffer).clone() for x in inputs]
    surroundings = None if out is None else out.surroundings()
    settings = torch_settings()

    run = strategy.bind(problem, device, params)
    result = run(case.alpha, a.matrix, b.matrix, case.beta, matrix_of(c), matrix_of(out))

    truth.check(result, bound_of(strategy, problem, params), typical=True)
    assert torch_settings() == settings, "torch's process-wide settings changed"
    for x, old in zip(inputs, before, strict=True):
        assert torch.equal(bits(x.buffer), old), "an operand changed"
    if out is None:
        assert all(not overlap(result, x.matrix) for x in inputs), "the result is no new tensor"
        assert result.is_contiguous()
    else:
        assert result is out.matrix
        assert torch.equal(out.surroundings(), surroundings), "memory around out changed"


def values_of(
    name: str, batch: int, m: int, n: int, k: int, dtype: torch.dtype, generator: torch.Generator
) -> tuple[torch.Tensor, ...]:
    """A, B and C; each matrix of a batch is drawn on its own."""
    drawn = [HOSTILE[name](m, n, k, dtype, generator) for _ in range(batch)]
    return drawn[0] if batch == 1 else tuple(map(torch.stack, zip(*drawn, strict=True)))


def skip_unless_it_runs(
    strategy: Strategy, problem: Problem, device: Device, params: dict[str, ParamValue]
) -> None:
    reasons = strategy.reasons_not(problem, device, params)
    if reasons:
        pytest.skip(f"{strategy.name}: {'; '.join(reasons)}")
    if not has_oracle(problem.dtype):
        pytest.skip("numpy's long double is no wider than float64 here")


def bound_of(strategy: Strategy, problem: Problem, params: dict[str, ParamValue]) -> ErrorBound:
    bound = strategy.bound(problem, params)
    assert any(Tolerance(level).admits(bound, problem.dtype, problem.k) for level in LEVELS)
    return bound


def test_the_drawn_corners_hold_every_value_of_every_axis() -> None:
    met: dict[tuple[str, torch.dtype], list[Case]] = {}
    batches = {strategy.name: batches_of(strategy) for strategy in STRATEGIES}
    for param in drawn():
        strategy, _, dtype, place_, case = param.values
        if place_.type == "cpu":
            met.setdefault((strategy.name, dtype), []).append(case)
    for (name, dtype), cases_met in met.items():
        if len(cases_met) < 18:
            continue  # one case, to be skipped
        for field in fields(Case):
            values = {getattr(case, field.name) for case in cases_met}
            expected = {
                "m": SIZES, "n": SIZES, "a": OPERAND_LAYOUTS, "b": OPERAND_LAYOUTS,
                "c": C_LAYOUTS, "out": OUTS, "alpha": ALPHAS, "beta": BETAS, "data": BASELINE,
                "k": LENGTHS[1:], "batch": batches[name],
            }[field.name]  # fmt: skip
            assert values >= set(expected), (name, dtype, field.name)


# ----------------------------------------------------------------------------- hostile data

HOSTILE_SHAPES = ((5, 7, 33), (1, 48, 1000), (33, 24, 80))
HOSTILE_SCALARS = ((1.0, 0.0), (1.0, 1.0), (1.5, 0.5), (-0.5, 1.0))


def hostile_cases() -> list[Any]:
    """What is computed from the same operands stands together, and their truth is found once."""
    found = [
        (name, pytest.param(strategy, params, dtype, place_, name, id=f"{label}-{name}"))
        for strategy, params, dtype, place_, device, label in candidates()
        for name in (
            names_for(dtype) if runs_somewhere(strategy, params, dtype, device) else BASELINE[:1]
        )
    ]
    return [param for _, param in sorted(found, key=lambda x: (str(x[1].values[2]), x[0]))]


def runs_somewhere(
    strategy: Strategy, params: dict[str, ParamValue], dtype: torch.dtype, device: Device
) -> bool:
    return not strategy.reasons_not(hostile_problem(strategy, dtype, device), device, params)


def hostile_problem(strategy: Strategy, dtype: torch.dtype, device: Device) -> Problem:
    return contiguous_problem(
        *HOSTILE_SHAPES[0], dtype, device_type=device.type, batch=batches_of(strategy)[0]
    )


@functools.lru_cache(64)  # more than one dtype and name have
def hostile_values(
    name: str, dtype: torch.dtype, batch: int, shape: tuple[int, int, int]
) -> tuple[torch.Tensor, ...]:
    return values_of(name, batch, *shape, dtype, seeded(name, *shape))


@functools.lru_cache(64)
def hostile_truth(
    name: str,
    dtype: torch.dtype,
    batch: int,
    shape: tuple[int, int, int],
    alpha: float,
    beta: float,
) -> tuple[tuple[torch.Tensor, ...], Truth | Truths]:
    A, B, C = operands = hostile_values(name, dtype, batch, shape)
    return operands, truth_of(alpha, A, B, beta, C)


@pytest.mark.parametrize(("strategy", "params", "dtype", "place_", "name"), hostile_cases())
def test_the_declared_bound_holds_on_hostile_operands(
    strategy: Strategy,
    params: dict[str, ParamValue],
    dtype: torch.dtype,
    place_: torch.device,
    name: str,
) -> None:
    device = device_of(place_)
    skip_unless_it_runs(strategy, hostile_problem(strategy, dtype, device), device, params)
    for alpha, beta, check in hostile_checks(strategy, params, dtype, place_, name):
        try:
            check()
        except AssertionError as failure:
            if known_fault(strategy.name, dtype, place_.type, name, alpha) is None:
                failure.args = (f"alpha = {alpha}, beta = {beta}: {failure}",)
                raise


def hostile_checks(
    strategy: Strategy,
    params: dict[str, ParamValue],
    dtype: torch.dtype,
    place_: torch.device,
    name: str,
) -> Iterator[tuple[float, float, Callable[[], None]]]:
    """Compute for some shapes and scalars, as a new tensor, into one full of NaN, and in place.

    Yields alpha, beta and what checks the result.
    """
    device = device_of(place_)
    batches = batches_of(strategy)[:2]
    for i, shape in enumerate(HOSTILE_SHAPES):
        batch = batches[i % len(batches)]
        for j, (alpha, beta) in enumerate(HOSTILE_SCALARS):
            values, truth = hostile_truth(name, dtype, batch, shape, alpha, beta)
            A, B, C = (x.to(place_, copy=True) for x in values)
            given = None if beta == 0 else C
            out = (None, torch.full_like(C, torch.nan), given)[(i + j) % 3]
            problem = problem_of(A, B, given, out, beta == 0)
            if not strategy.reasons_not(problem, device, params):
                run = strategy.bind(problem, device, params)
                result = run(alpha, A, B, beta, given, out).cpu()
                bound = bound_of(strategy, problem, params)
                typical = name in BASELINE
                yield alpha, beta, functools.partial(truth.check, result, bound, typical)


@pytest.mark.parametrize(
    ("dtype", "name", "alpha"),
    [
        (torch.bfloat16, "subnormal_A_and_large_B", 1.0),
        (torch.float32, "smallest_number_everywhere_in_A", -0.5),
        (torch.float32, "largest_by_smallest_normal", 1.5),
    ],
    ids=["bfloat16_subnormals", "alpha_underflows", "alpha_overflows"],
)
def test_the_baseline_keeps_its_bound_at_the_ends_of_the_range(
    dtype: torch.dtype, name: str, alpha: float
) -> None:
    """The known faults, one by one: fails where torch's BLAS has them, passes elsewhere."""
    baseline, params, cpu = STRATEGIES[0], {"reduction": "full"}, torch.device("cpu")
    assert isinstance(baseline, Strategy)
    for case_alpha, _, check in hostile_checks(baseline, params, dtype, cpu, name):
        if case_alpha == alpha:
            try:
                check()
            except AssertionError:
                reason = known_fault(baseline.name, dtype, cpu.type, name, alpha)
                if reason is None:
                    raise
                pytest.xfail(reason)


# ------------------------------------------------------------------- settings, repetition, grad


@pytest.mark.usefixtures("restored_torch_settings")
@pytest.mark.parametrize("setting", ["tf32", "bf16"])
@BY_ID
def test_torchs_float32_setting_does_not_loosen_what_a_strategy_declares(
    strategy: Strategy, setting: str, torch_settings: Settings
) -> None:
    """float32 never silently becomes TF32: the level chooses the strategy, not the setting."""
    if torch.float32 not in strategy.dtypes:
        pytest.skip(f"{strategy.name} does not compute float32")
    (m, n, k), dtype = (64, 48, 96), torch.float32
    for place_ in PLACES:
        device = device_of(place_)
        backend = torch.backends.mkldnn if place_.type == "cpu" else torch.backends.cuda
        if place_.type == "cuda" and setting == "bf16":
            continue  # not a word of that backend
        backend.matmul.fp32_precision = setting
        settings = torch_settings()
        operands = values_of("uniform", batches_of(strategy)[-1], m, n, k, dtype, seeded(setting))
        A, B, C = (x.to(place_) for x in operands)
        problem = problem_of(A, B, C, None, False)
        sets = parameter_sets(strategy, dtype, device)
        for params in sets:
            if problem.batch > 1 and params.get("form") in ("batched", "split"):
                continue  # for single products only
            skip_unless_it_runs(strategy, problem, device, params)
            run = strategy.bind(problem, device, params)
            result = run(1.5, A, B, 0.5, C, None)
            bound = strategy.bound(problem, params)
            truth_of(1.5, A, B, 0.5, C).check(result, bound, typical=True)
            assert torch_settings() == settings


@pytest.mark.usefixtures("restored_torch_settings")
def test_the_setting_that_is_resisted_would_have_an_effect_here() -> None:
    """The guard of the test above: bfloat16 passes are seen where the CPU has them."""
    if "amx_bf16" not in device_of(torch.device("cpu")).features:
        pytest.skip("torch's bfloat16 passes for float32 need AMX on a CPU")
    if torch.version.cuda and not has_bfloat16_passes():
        pytest.skip("this CPU has AMX, which this build of torch leaves alone")
    A, B, C = HOSTILE["uniform"](64, 48, 96, torch.float32, seeded("bf16"))
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    assert Truth(1.5, A, B, 0.5, C).error_ratio(torch.addmm(C, A, B, alpha=1.5, beta=0.5)) > 1000


@BY_ID
def test_equal_inputs_give_equal_bits_where_a_strategy_says_so(strategy: Strategy) -> None:
    if not strategy.deterministic:
        pytest.skip(f"{strategy.name} does not promise it")
    ran = False
    for place_ in PLACES:
        device = device_of(place_)
        for dtype in strategy.dtypes:
            batch = batches_of(strategy)[0]
            operands = values_of("normal", batch, 33, 17, 257, dtype, seeded("again"))
            A, B, C = (x.to(place_) for x in operands)
            problem = problem_of(A, B, C, None, False)
            for params in parameter_sets(strategy, dtype, device):
                if strategy.reasons_not(problem, device, params):
                    continue
                run = strategy.bind(problem, device, params)
                first, again = (run(1.5, A, B, 0.5, C, None) for _ in range(2))
                assert torch.equal(first, again)
                ran = True
    if not ran:
        pytest.skip(f"{strategy.name} does not run here")


# --------------------------------------------------------------------------- declared facts

GPU = Device(
    type="cuda",
    name="Imaginary 9000",
    capability=(99, 0),
    units=100,
    cache_bytes=2**25,
    memory_bytes=2**35,
    packages=frozenset({"cutlass"}.union(*(strategy.packages for strategy in STRATEGIES))),
)
OLD_GPU = replace(GPU, name="Imaginary 1", capability=(1, 0))
CPU = Device(type="cpu", name="Imaginary CPU", units=4)


def any_problem(strategy: Strategy, device: Device, dtype: torch.dtype | None = None) -> Problem:
    dtype = dtype or min(strategy.dtypes, key=str)
    batch = batches_of(strategy)[0]
    return contiguous_problem(65, 33, 4099, dtype, device_type=device.type, batch=batch)


def test_names_are_unique_and_the_baseline_comes_first() -> None:
    names = [strategy.name for strategy in STRATEGIES]
    assert len(set(names)) == len(names)
    assert names[0] == "addmm"
    assert [strategy.rank for strategy in STRATEGIES] == list(range(len(names)))


@pytest.mark.parametrize("strategy", STRATEGIES.own, ids=[s.name for s in STRATEGIES.own])
def test_a_strategy_is_named_after_its_file(strategy: Strategy) -> None:
    assert type(strategy).__module__ == f"autogemm.strategies.{strategy.name}"


@BY_ID
def test_the_declared_facts_are_words_the_house_knows(strategy: Strategy) -> None:
    assert strategy.dtypes
    assert strategy.dtypes <= set(DTYPES.values())
    assert strategy.device_types
    assert strategy.device_types <= {"cpu", "cuda"}
    assert set(strategy.depends_on) <= {"torch", "cuda", "cublas", "triton", *strategy.packages}
    assert set(strategy.packages) <= set(strategy.depends_on)


@BY_ID
def test_the_bound_serves_a_level_for_every_type_and_length(strategy: Strategy) -> None:
    for device in (GPU, CPU):
        for dtype in strategy.dtypes:
            for k in (1, 2, 16, 1000, 2**20):
                problem = replace(any_problem(strategy, device, dtype), k=k)
                for params in parameter_sets(strategy, dtype, device):
                    if strategy.reasons_not(problem, device, params):
                        continue
                    bound = bound_of(strategy, problem, params)
                    assert bound.rho >= 0
                    assert 0 < bound.growth < float("inf")


@BY_ID
def test_the_search_space_consists_of_legal_parameters(strategy: Strategy) -> None:
    for device in (GPU, CPU):
        for dtype in strategy.dtypes:
            problem = any_problem(strategy, device, dtype)
            offered = [Candidate.of(strategy.name, **p) for p in strategy.space(problem, device)]
            assert len(set(offered)) == len(offered)
            for candidate in offered:
                left_out = set(strategy.parameters()) - set(candidate.kwargs)
                assert left_out <= strategy.optional
                for key, legal in strategy.parameters().items():
                    if key in left_out:
                        continue
                    assert legal(candidate.kwargs[key]), f"{key}={candidate.kwargs[key]!r}"
                space = strategy.workspace_bytes(problem, candidate.kwargs)
                assert type(space) is int
                assert space >= 0
            assert set(strategy.candidates(problem, device)) <= set(offered)


@BY_ID
def test_parameters_that_are_missing_unknown_or_illegal_are_reasons(strategy: Strategy) -> None:
    device = GPU if "cuda" in strategy.device_types else CPU
    problem = any_problem(strategy, device)
    params = parameter_sets(strategy, problem.dtype, device)[0]

    (reason,) = strategy.reasons_not(problem, device, {**params, "misspelt": 1})
    assert "misspelt" in reason
    assert "unknown" in reason
    for key in params:
        left = {name: value for name, value in params.items() if name != key}
        if key not in strategy.optional:
            (reason,) = strategy.reasons_not(problem, device, left)
            assert f"missing ['{key}']" in reason
        for wrong in ("nonsense", -1, 1.5):
            reasons = strategy.reasons_not(problem, device, {**params, key: wrong})
            assert reasons == [f"does not take {key}={wrong!r}"]


@BY_ID
def test_a_type_that_is_not_declared_is_a_reason(strategy: Strategy) -> None:
    device = GPU if "cuda" in strategy.device_types else CPU
    params = parameter_sets(strategy, min(strategy.dtypes, key=str), device)[0]
    for dtype in set(DTYPES.values()) - strategy.dtypes:
        reasons = strategy.reasons_not(any_problem(strategy, device, dtype), device, params)
        assert any(f"not {DTYPE_NAMES[dtype]}" in reason for reason in reasons)


@BY_ID
def test_a_place_that_is_not_declared_is_a_reason(strategy: Strategy) -> None:
    params = parameter_sets(strategy, min(strategy.dtypes, key=str), GPU)[0]
    for device in (GPU, CPU):
        if device.type not in strategy.device_types:
            reasons = strategy.reasons_not(any_problem(strategy, device), device, params)
            assert any(f"not on {device.type}" in reason for reason in reasons)
    if strategy.min_capability > (0, 0):
        reasons = strategy.reasons_not(any_problem(strategy, OLD_GPU), OLD_GPU, params)
        assert any("compute capability" in reason for reason in reasons)
        assert any("Imaginary 1" in reason for reason in reasons)


@BY_ID
def test_a_batch_or_a_single_product_is_a_reason_unless_it_is_declared(strategy: Strategy) -> None:
    assert strategy.single or strategy.batched
    device = GPU if "cuda" in strategy.device_types else CPU
    params = parameter_sets(strategy, min(strategy.dtypes, key=str), device)[-1]
    problem = any_problem(strategy, device)
    reasons = strategy.reasons_not(replace(problem, batch=12), device, params)
    assert any("not a batch of 12" in reason for reason in reasons) != strategy.batched
    reasons = strategy.reasons_not(replace(problem, batch=1), device, params)
    assert any("not a single one" in reason for reason in reasons) != strategy.single


@pytest.mark.parametrize("beta", [1.0, 1.0 - 2.0**-26, 1.0 + 2.0**-25, 0.5])
@pytest.mark.parametrize("out", ["none", "row", "col"])
@pytest.mark.parametrize(("n", "k", "step"), [(6, 5, 1), (1, 5, 1), (6, 1, 1), (6, 5, 2)])
def test_cublas_meets_beta_of_1_in_its_epilogue_alone(
    n: int, k: int, step: int, out: str, beta: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At β = 1 in float32 its other 16-bit products round before they add C."""
    seen: list[tuple[float, torch.Tensor]] = []

    def run(alpha: Any, A: Any, B: Any, beta: float, C: torch.Tensor, out: Any) -> torch.Tensor:
        seen.append((beta, C))
        return C

    monkeypatch.setattr(addmm, "_run", run)
    A, B = torch.ones(4, k, dtype=torch.float16), torch.ones(k, n, dtype=torch.float16)
    C = torch.ones(1, step * n, dtype=torch.float16)[:, ::step].expand(4, n)
    given = {"none": None, "row": torch.empty(4, n).half(), "col": torch.empty(n, 4).half().t()}
    problem = problem_of(A, B, C, given[out], False)
    problem = replace(problem, device_type="cuda")
    assert problem.update == "bias"
    bound = BY_NAME["addmm"].bind(problem, GPU, {"reduction": "full"})
    bound(1.0, A, B, beta, C, given[out])
    [(asked, added)] = seen
    epilogue = (
        added.ndim == 1
        and added.is_contiguous()
        and min(n, k) > 1
        and (given[out] is None or given[out].is_contiguous())
    )
    assert epilogue or np.float32(asked) != 1
    assert abs(asked - beta) <= 2.0**-23
    assert epilogue == (beta == 1 and (n, k, step) == (6, 5, 1) and out != "col")


def test_the_baseline_of_a_batch_is_torchs_batched_product() -> None:
    for device in (GPU, CPU):
        for dtype in DTYPES.values():
            problem = contiguous_problem(64, 64, 64, dtype, device_type=device.type, batch=3)
            for level in LEVELS:
                candidate = baseline(problem, level)
                assert candidate.strategy == "baddbmm"
                assert candidate.params == baseline(replace(problem, batch=1), level).params
                served = BY_NAME["baddbmm"].reasons_not(problem, device, candidate.kwargs)
                assert served == []


@BY_ID
def test_a_missing_package_is_a_reason(strategy: Strategy) -> None:
    device = GPU if "cuda" in strategy.device_types else CPU
    params = parameter_sets(strategy, min(strategy.dtypes, key=str), device)[0]
    bare = replace(device, packages=frozenset())
    reasons = strategy.reasons_not(any_problem(strategy, device), bare, params)
    for package in strategy.packages:
        assert any(package in reason and "not installed" in reason for reason in reasons)


def test_candidates_are_equal_by_name_and_parameters_in_any_order() -> None:
    first = Candidate.of("ksplit", form="batched", chunks=2)
    assert first == Candidate.of("ksplit", chunks=2, form="batched")
    assert len({first, Candidate.of("ksplit", chunks=4, form="batched")}) == 2
    assert str(first) == "ksplit(chunks=2, form=batched)"
    assert str(Candidate.of("addmm")) == "addmm"
    assert str(Candidate.of("tf32", pad=True)) == "tf32(pad=true)"
    assert first.kwargs == {"form": "batched", "chunks": 2}
