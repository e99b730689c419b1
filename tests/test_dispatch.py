"""What is chosen from tables, and why: on an invented GPU, and through files for this CPU."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from invented import (
    AXPBY,
    BF16,
    CPU,
    FULL,
    GPU,
    TF32,
    choice,
    entry,
    environment,
    evidence,
    row,
    table,
    write_for_this_cpu,
)

import autogemm
from autogemm import NoStrategy, dispatch, explain, gemm
from autogemm.database import Entry, locations, table_path, write_table
from autogemm.database.lookup import Evidence, evidence_for
from autogemm.device import Device, device_of
from autogemm.errors import DatabaseWarning
from autogemm.grading.oracle import check
from autogemm.precision import Tolerance
from autogemm.problem import Problem, contiguous_problem
from autogemm.strategies import BY_NAME, STRATEGIES, Candidate, baseline

pytestmark = pytest.mark.usefixtures("tables")

HIGHEST, HIGH, MEDIUM = (Tolerance(level) for level in ("highest", "high", "medium"))
CUBE = contiguous_problem(4096, 4096, 4096, torch.float32)
SPLIT = Candidate.of("ksplit", form="batched", chunks=4)


def plan(
    known: Evidence,
    problem: Problem = CUBE,
    tolerance: Tolerance = HIGHEST,
    device: Device = GPU,
    mode: str = "graph",
) -> dispatch.Plan:
    return dispatch.plan(problem, tolerance, device, mode, known)


# ---------------------------------------------------------------------------- exact entries


def test_an_exact_entry_serves_with_what_was_measured_of_it() -> None:
    rows = [row(FULL, 100.0), row(AXPBY, 60.0, error=12.5)]
    known = evidence(entry(CUBE, {"highest": choice(AXPBY, ratio=1.66, us=60.0)}, rows))
    made = plan(known)
    assert made.candidate == AXPBY
    assert made.source == "exact"
    assert (made.expected_us, made.expected_ratio, made.expected_error) == (60.0, 1.66, 12.5)
    assert "2026-11-22" in made.detail
    assert "example.yaml" in made.detail
    assert made.passed_over == ()


def test_a_choice_for_the_baseline_is_an_exact_answer_too() -> None:
    made = plan(evidence(entry(CUBE, {"highest": choice(FULL, ratio=1.0)})))
    assert (made.candidate, made.source) == (FULL, "exact")


def test_each_level_and_mode_has_its_own_choice() -> None:
    made = entry(CUBE, {"highest": choice(AXPBY), "high": choice(TF32)})
    modes = {"graph": choice(AXPBY), "eager": choice(FULL, ratio=1.0)}
    known = evidence(replace(made, choices={**made.choices, "highest": modes}))
    assert plan(known).candidate == AXPBY
    assert plan(known, mode="eager").candidate == FULL
    assert plan(known, tolerance=HIGH).candidate == TF32
    assert plan(known, tolerance=HIGH, mode="eager").candidate == TF32


def test_a_level_that_was_not_tuned_is_served_by_the_next_more_accurate_one() -> None:
    known = evidence(entry(CUBE, {"highest": choice(AXPBY), "high": choice(TF32)}))
    assert plan(known, tolerance=MEDIUM).candidate == TF32
    known = evidence(entry(CUBE, {"highest": choice(AXPBY)}))
    assert plan(known, tolerance=MEDIUM).candidate == AXPBY


def test_a_mode_that_was_not_timed_is_served_by_the_other() -> None:
    made = entry(CUBE, {"highest": choice(AXPBY)})
    known = evidence(replace(made, choices={"highest": {"graph": choice(AXPBY)}}))
    assert plan(known, mode="eager").candidate == AXPBY


@pytest.mark.parametrize("facts", [{"m": 4095}, {"update": "inplace"}, {"a": "col"}])
def test_an_entry_speaks_exactly_for_its_own_problem_alone(facts: dict[str, object]) -> None:
    known = evidence(entry(CUBE, {"highest": choice(AXPBY)}))
    assert plan(known, replace(CUBE, **facts)).source != "exact"


# --------------------------------------------------- choices that cannot serve, and defaults

UNFIT: dict[str, tuple[Candidate, Tolerance, Device, Problem, str]] = {
    "a missing package": (
        TF32, HIGH, replace(GPU, packages=frozenset()), CUBE, "needs the package 'triton'",
    ),
    "an old device": (
        TF32, HIGH, replace(GPU, capability=(7, 0)), CUBE, "needs compute capability 8.0",
    ),
    "too large a bound": (TF32, HIGHEST, GPU, CUBE, "exceeds 4104u of 'highest'"),
    "unknown parameters": (
        Candidate.of("matmul_axpby", speed=9), HIGHEST, GPU, CUBE, "unknown ['speed']",
    ),
    "a missing parameter": (
        Candidate.of("ksplit", form="batched"), HIGHEST, GPU, CUBE, "missing ['chunks']",
    ),
    "an illegal value": (
        Candidate.of("addmm", reduction="lossy"), HIGHEST, GPU, CUBE, "reduction='lossy'",
    ),
    "an unknown strategy": (Candidate.of("magic"), HIGHEST, GPU, CUBE, "'magic' is not known"),
}  # fmt: skip


@pytest.mark.parametrize("why", UNFIT)
@pytest.mark.parametrize("mode", ["graph", "eager"])
def test_a_choice_that_cannot_serve_here_is_passed_over_for_the_default(
    why: str, mode: str
) -> None:
    candidate, tolerance, device, problem, reason = UNFIT[why]
    chosen = {tolerance.level: choice(candidate)}
    known = evidence(entry(CUBE, chosen, [row(FULL, 100.0), row(candidate, 50.0)]))
    made = plan(known, problem, tolerance, device, mode)
    assert made.candidate == FULL
    assert made.source == "default"
    assert [c for c, _ in made.passed_over] == [candidate]
    assert reason in made.passed_over[0][1]
    assert made.bind(device) is not None


def test_what_was_measured_on_a_neighbour_is_fitted_to_the_problem(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = evidence(entry(CUBE, {"highest": choice(AXPBY)}, [row(FULL, 100.0), row(AXPBY, 40.0)]))
    monkeypatch.setattr(type(BY_NAME["matmul_axpby"]), "fitted", lambda *_: SPLIT)
    assert plan(known).candidate == AXPBY
    made = plan(known, replace(CUBE, m=4000))
    assert (made.candidate, made.source) == (SPLIT, "near")


def test_where_a_choice_cannot_run_the_next_best_of_the_entry_does() -> None:
    rows = [row(FULL, 100.0), row(TF32, 20.0), row(AXPBY, 80.0), row(SPLIT, 95.0)]
    known = evidence(entry(CUBE, {"high": choice(TF32)}, rows))
    made = plan(known, CUBE, HIGH, replace(GPU, packages=frozenset()))
    assert made.candidate == AXPBY
    assert made.source == "exact"
    assert made.expected_ratio == pytest.approx(100 / 80)
    assert "needs the package 'triton'" in made.passed_over[0][1]
    # A small gain was measured without finals: it may be noise.
    slim = evidence(entry(CUBE, {"high": choice(TF32)}, [rows[0], rows[1], rows[3]]))
    assert plan(slim, CUBE, HIGH, replace(GPU, packages=frozenset())).candidate == FULL
    # What waits for the host must win by as much as in the finals.
    for us, base_us, candidate in (
        (83.0, 60.0, FULL), (78.0, 60.0, AXPBY), (52.0, 100.0, FULL), (48.0, 100.0, AXPBY),
    ):  # fmt: skip
        waiting = [row(FULL, 100.0, graph_us=base_us), rows[1], row(AXPBY, us, graph_us=40.0)]
        known = evidence(entry(CUBE, {"high": choice(TF32)}, waiting))
        made = plan(known, CUBE, HIGH, replace(GPU, packages=frozenset()), "eager")
        assert made.candidate == candidate
    # Where nothing beat the baseline, nothing stands in for it.
    none = evidence(entry(CUBE, {"high": choice(FULL)}, rows))
    assert plan(none, CUBE, HIGH).candidate == FULL


@pytest.mark.parametrize(
    ("base_us", "ratio", "low", "stays"),
    [
        (100.0, 1.9, 1.8, False),
        (100.0, 2.1, 2.0, True),
        (60.0, 1.4, 1.3, True),
        (60.0, 1.4, 1.05, False),
    ],
)
def test_a_choice_that_a_slower_host_would_undo_is_left_to_the_baseline(
    base_us: float, ratio: float, low: float, stays: bool
) -> None:
    """Choices of older tables did not have to win by as much."""
    rows = [row(FULL, 100.0, graph_us=base_us), row(AXPBY, 100.0 / ratio, graph_us=20.0)]
    chosen = replace(choice(AXPBY, ratio=ratio), low=low)
    known = evidence(entry(CUBE, {"highest": chosen}, rows))
    made = plan(known, CUBE, mode="eager")
    assert made.candidate == (AXPBY if stays else FULL)
    assert made.source == "exact"
    assert stays or "slower host" in made.detail
    assert plan(known, CUBE, mode="graph").candidate == AXPBY


@pytest.mark.parametrize(
    ("base_us", "graph_us", "eager_us", "stays"),
    [
        (190.0, 100.0, 115.0, True),  # exceeds its graph time by no more than addmm's does
        (190.0, 100.0, 117.0, False),
        (180.0, 100.0, 115.0, True),  # addmm itself waits: 1.25 suffices
        (190.0, 80.0, 102.0, False),
        (190.0, 80.0, 87.0, True),
        (70.0, 80.0, 89.0, True),
    ],
)
def test_what_eager_times_of_the_baseline_exceed_its_graph_times_by_is_not_the_host(
    base_us: float, graph_us: float, eager_us: float, stays: bool
) -> None:
    rows = [row(FULL, 200.0, graph_us=base_us), row(AXPBY, eager_us, graph_us=graph_us)]
    known = evidence(entry(CUBE, {"highest": choice(AXPBY, ratio=200.0 / eager_us)}, rows))
    assert plan(known, CUBE, mode="eager").candidate == (AXPBY if stays else FULL)


def test_rows_that_this_version_cannot_read_are_no_evidence() -> None:
    strange = [
        Candidate.of("ksplit", form="batched"),
        Candidate.of("addmm", reduced=False),
        Candidate.of("magic", wand=1),
        Candidate.of("half", dtype="float8"),
    ]
    rows = [row(FULL, 100.0), row(AXPBY, 40.0), *(row(c, 1.0) for c in strange)]
    known = evidence(entry(CUBE, {"highest": choice(AXPBY)}, rows))
    for tolerance in (HIGHEST, MEDIUM, Tolerance("highest", budget=1e-2)):
        for problem in (CUBE, replace(CUBE, m=4000)):
            made = plan(known, problem, tolerance)
            assert made.candidate == AXPBY
            assert known.losers(problem, tolerance, "graph", AXPBY) is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("level", ["highest", "high", "medium"])
def test_without_tables_the_baseline_runs_and_says_why(dtype: torch.dtype, level: str) -> None:
    problem = contiguous_problem(512, 512, 512, dtype)
    made = plan(evidence(), problem, Tolerance(level))
    assert made.source == "default"
    assert made.candidate == baseline(problem, level)
    assert "no tuning table for Example GPU" in made.detail
    assert "scripts/tune.py" in made.detail
    assert (made.expected_us, made.expected_ratio, made.expected_error) == (None, None, None)


# ----------------------------------------------------------------- neighbours and far shapes


def test_a_near_problem_is_served_by_what_won_clearly_next_door() -> None:
    known = evidence(entry(CUBE, {"highest": choice(AXPBY, ratio=3.0)}))
    made = plan(known, replace(CUBE, m=4000, n=4160))
    assert made.candidate == AXPBY
    assert made.source == "near"
    assert "4096x4096x4096" in made.detail
    assert made.expected_ratio is not None
    assert made.expected_ratio > 1


@pytest.mark.parametrize(
    "problem",
    [
        contiguous_problem(16, 16, 16, torch.float32),
        contiguous_problem(1, 1, 4096 * 4096, torch.float32),
        replace(CUBE, dtype=torch.float64),
    ],
    ids=str,
)
def test_far_from_all_evidence_the_baseline_stays(problem: Problem) -> None:
    known = evidence(entry(CUBE, {"highest": choice(AXPBY, ratio=3.0)}))
    made = plan(known, problem)
    assert (made.candidate, made.source) == (FULL, "default")
    assert "near enough" in made.detail


def test_a_neighbours_choice_must_keep_the_level_and_run_at_the_new_problem_too() -> None:
    known = evidence(entry(CUBE, {"highest": choice(AXPBY), "high": choice(TF32, ratio=5.0)}))
    near = replace(CUBE, m=4000)
    assert plan(known, near, HIGH).candidate == TF32
    assert plan(known, near, HIGHEST).candidate != TF32
    bare = replace(GPU, packages=frozenset())
    made = plan(known, near, HIGH, bare)
    assert made.candidate == AXPBY
    assert made.passed_over[0][0] == TF32


# ------------------------------------------------------- other software, other devices


@pytest.mark.parametrize(("ratio", "stays"), [(3.0, True), (1.5, True), (1.1, False)])
def test_under_other_versions_a_large_win_stays_and_a_small_one_is_a_miss(
    ratio: float, stays: bool
) -> None:
    before = environment(torch="2.0.0")
    made = plan(
        evidence(entry(CUBE, {"highest": choice(AXPBY, ratio)}, where=before), where=before)
    )
    assert made.candidate == (AXPBY if stays else FULL)
    assert made.source == ("exact" if stays else "default")
    if stays:
        assert f"torch 2.0.0 then, {torch.__version__.split('+')[0]} now" in made.detail


def test_only_the_software_that_a_strategy_depends_on_makes_its_entry_old() -> None:
    before = environment(triton="2.0.0", driver="1.0")
    aged = evidence(entry(CUBE, {"highest": choice(AXPBY, 1.1)}, where=before), where=before)
    assert plan(aged).candidate == FULL  # its last pass is a Triton kernel
    reduced = Candidate.of("addmm", reduction="reduced")
    problem = contiguous_problem(4096, 4096, 4096, torch.bfloat16)
    chosen = {"highest": choice(FULL, 1.0), "high": choice(reduced, 1.05)}
    made = plan(
        evidence(entry(problem, chosen, where=before), where=before), problem, Tolerance("high")
    )
    assert (made.candidate, made.source) == (reduced, "exact")
    assert "then" not in made.detail
    driver = environment(driver="1.0")
    made = plan(
        evidence(entry(CUBE, {"highest": choice(AXPBY, 1.1)}, where=driver), where=driver)
    )
    assert made.candidate == AXPBY


def test_a_small_win_under_other_versions_counts_no_more_next_door() -> None:
    before = environment(torch="2.0.0")
    known = evidence(entry(CUBE, {"highest": choice(AXPBY, 1.15)}, where=before), where=before)
    assert plan(known, replace(CUBE, m=4000)).candidate == FULL


SIBLING = replace(GPU, name="Example GPU mini", units=60)


@pytest.mark.parametrize(("ratio", "candidate"), [(1.5, AXPBY), (1.1, FULL)])
def test_a_siblings_table_serves_where_its_win_was_large(
    tables: Path, ratio: float, candidate: Candidate
) -> None:
    sibling = table(entry(CUBE, {"highest": choice(AXPBY, ratio)}), device=SIBLING)
    write_table(table_path(tables, SIBLING), sibling)
    known = evidence_for(GPU)
    assert known.sources == (str(table_path(tables, SIBLING)),)
    made = plan(known)
    assert made.candidate == candidate
    if candidate == AXPBY:
        assert SIBLING.slug in made.detail


def test_a_device_of_its_own_kind_is_believed_before_a_sibling(tables: Path) -> None:
    for device, chosen in ((GPU, choice(SPLIT, 1.1)), (SIBLING, choice(AXPBY, 5.0))):
        made = table(entry(CUBE, {"highest": chosen}), device=device)
        write_table(table_path(tables, device), made)
    assert plan(evidence_for(GPU)).candidate == SPLIT
    assert evidence_for(GPU).sources == (str(table_path(tables, GPU)),)
    assert plan(evidence_for(SIBLING)).candidate == AXPBY


@pytest.mark.parametrize(
    "stranger", [{"capability": (8, 0)}, {"type": "cpu", "capability": (0, 0)}], ids=str
)
def test_a_device_of_another_capability_is_no_relative(
    tables: Path, stranger: dict[str, object]
) -> None:
    other = replace(GPU, name="Other", **stranger)
    problem = replace(CUBE, device_type=other.type)
    write_table(
        table_path(tables, other), table(entry(problem, {"highest": choice(AXPBY)}), device=other)
    )
    assert evidence_for(GPU).sources == ()


def test_the_users_own_table_comes_before_the_shipped_one(
    tables: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = tables.parent / "shipped"
    monkeypatch.setattr(locations, "_shipped_directory", lambda: shipped)
    other = replace(CUBE, m=1024)
    shipped_entries = [entry(p, {"highest": choice(SPLIT)}) for p in (CUBE, other)]
    write_table(table_path(shipped, GPU), table(*shipped_entries))
    write_table(table_path(tables, GPU), table(entry(CUBE, {"highest": choice(AXPBY)})))
    known = evidence_for(GPU)
    assert known.sources == (str(table_path(tables, GPU)), str(table_path(shipped, GPU)))
    assert plan(known).candidate == AXPBY
    assert plan(known, other).candidate == SPLIT


# ------------------------------------------------------------------------------------ budgets


def test_a_budget_takes_the_fastest_measured_candidate_that_keeps_it() -> None:
    rows = [row(FULL, 100.0), row(AXPBY, 80.0), row(TF32, 40.0), row(BF16, 20.0)]
    known = evidence(entry(CUBE, {"highest": choice(AXPBY)}, rows))
    for budget, candidate in ((2e-2, BF16), (2e-3, TF32), (5e-4, AXPBY)):
        made = plan(known, tolerance=Tolerance("highest", budget=budget))
        assert made.candidate == candidate
        assert made.source == "exact"
        assert "within the budget" in made.detail
        assert made.expected_us == next(r.graph_us for r in rows if r.candidate == candidate)
    passed_over = plan(known, tolerance=Tolerance("highest", budget=2e-3)).passed_over
    assert [c for c, _ in passed_over] == [BF16]
    assert "exceeds the budget 0.002·G" in passed_over[0][1]


def test_a_budget_prefers_what_won_the_finals_to_what_was_not_in_them() -> None:
    """A row that only seems a little faster was not timed beside the choice."""
    loose = Tolerance("highest", budget=2e-2)
    rows = [row(FULL, 100.0), row(AXPBY, 80.0), row(BF16, 75.0), row(TF32, 200.0)]
    known = evidence(entry(CUBE, {"highest": choice(AXPBY, ratio=1.25)}, rows))
    assert plan(known, tolerance=loose).candidate == AXPBY
    rows[2] = row(BF16, 70.0)
    known = evidence(entry(CUBE, {"highest": choice(AXPBY, ratio=1.25)}, rows))
    assert plan(known, tolerance=loose).candidate == BF16
    # Where the finals kept the baseline it takes as much; where the choice exceeds the budget,
    # what is measured decides.
    rows = [row(FULL, 100.0), row(AXPBY, 93.0), row(BF16, 60.0)]
    known = evidence(entry(CUBE, {"highest": choice(FULL, ratio=1.0)}, rows))
    assert plan(known, tolerance=Tolerance("highest", budget=5e-4)).candidate == FULL
    known = evidence(entry(CUBE, {"medium": choice(BF16, ratio=1.7)}, rows))
    assert plan(known, tolerance=Tolerance("highest", budget=5e-4)).candidate == AXPBY
    assert plan(known, tolerance=loose).candidate == BF16


@pytest.mark.parametrize("status", ["inaccurate", "failed", "unsupported", "slow"])
def test_a_budget_never_takes_what_was_not_measured_well(status: str) -> None:
    rows = [row(FULL, 100.0), row(TF32, 40.0, status=status)]
    known = evidence(entry(CUBE, {"highest": choice(FULL, 1.0)}, rows))
    assert plan(known, tolerance=Tolerance("highest", budget=1e-2)).candidate == FULL


def test_a_budget_that_no_candidate_keeps_lists_every_one_with_its_reason() -> None:
    problem = contiguous_problem(128, 128, 8192, torch.float32)
    with pytest.raises(NoStrategy) as caught:
        plan(evidence(), problem, Tolerance("highest", budget=1e-9))
    lines = str(caught.value).splitlines()
    assert "float32 128x128x8192" in lines[0]
    assert "precision 1e-09" in lines[0]
    assert "Example GPU" in lines[0]
    listed = dict(line.strip().split(": ", 1) for line in lines[1:-1])
    for strategy in STRATEGIES:
        for params in strategy.space(problem, GPU):
            assert listed[str(Candidate.of(strategy.name, **params))]
    assert "runs on cpu, not on cuda" in listed["onednn"]
    assert "exceeds the budget" in listed["addmm(reduction=full)"]
    assert "tightest budget that float32 can promise" in lines[-1]


# --------------------------------------------------------------------------- plans, explain


def test_a_plan_cannot_be_changed() -> None:
    made = plan(evidence())
    for name in ("candidate", "problem", "passed_over"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(made, name, None)
    assert isinstance(made.passed_over, tuple)
    assert hash(made) == hash(plan(evidence()))


def operands() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    a, b, c = (torch.randn(*shape, generator=g) for shape in ((48, 64), (64, 40), (48, 40)))
    return a, b, c


def cpu_entry(candidate: Candidate = AXPBY, **facts: object) -> Entry:
    problem = contiguous_problem(48, 40, 64, torch.float32, device_type="cpu")
    rows = [
        row(FULL, None, eager_us=100.0),
        row(candidate, None, eager_us=50.0, error=3.25),
        row(SPLIT, None, eager_us=75.0),
        row(BF16, None, eager_us=None, status="failed", note="RuntimeError: a test"),
    ]
    return replace(entry(problem, {"highest": choice(candidate)}, rows), **facts)


def test_explain_tells_the_whole_story(tables: Path) -> None:
    path = write_for_this_cpu(tables, cpu_entry())
    A, B, C = operands()
    before = C.clone()
    told = explain(1.5, A, B, 0.5, C)
    assert torch.equal(C, before)
    text = str(told)
    for words in (
        "float32 48x40x64 (row x row -> row, add)",
        str(device_of(CPU)),
        "highest (from torch.backends.mkldnn.matmul.fp32_precision = 'ieee')",
        "matmul_axpby, eager",
        "exact: measured 2026-11-22",
        "50 us, 2.00x addmm",
        "R = 3.25",
        str(path),
        "ksplit(chunks=4, form=batched): measured 75 us, 1.50x the choice",
        "half(dtype=bfloat16): failed when measured: RuntimeError: a test",
        "padded (2 candidates): runs on cuda, not on cpu",
        "tf32 (2 candidates): runs on cuda, not on cpu",
    ):
        assert words in text, text
    assert (told.strategy, told.parameters, told.source) == ("matmul_axpby", {}, "exact")
    assert "precision argument" in str(explain(1.5, A, B, 0.5, C, precision="highest"))
    assert "'high'" not in text


def test_explain_tells_what_was_passed_over(tables: Path) -> None:
    write_for_this_cpu(tables, cpu_entry(candidate=Candidate.of("matmul_axpby", speed=9)))
    A, B, C = operands()
    told = explain(1.5, A, B, 0.5, C)
    assert told.strategy == "ksplit"  # the next best
    assert "the best of what runs here, measured" in str(told)
    assert "matmul_axpby(speed=9): takes the parameters []; unknown ['speed']" in str(told)


# ------------------------------------------------------------------------- damaged tables


def _edit(old: str, new: str) -> Callable[[bytes], bytes]:
    def damage(content: bytes) -> bytes:
        assert old.encode() in content
        return content.replace(old.encode(), new.encode(), 1)

    return damage


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "truncated": (lambda b: b[: len(b) // 2], "truncated|expected"),
    "cut at a line": (lambda b: b[: b.rindex(b"...")], "truncated"),
    "empty": (lambda b: b"", "empty file"),
    "binary": (lambda b: bytes(range(256)) * 20, "expected UTF-8 text"),
    "other text": (lambda b: b"once upon a time\n...\n", "expected a mapping"),
    "not YAML": (_edit("\ndevice:", "\ndevice: ]["), "line [0-9]+, column [0-9]+: expected YAML"),
    "another schema": (_edit("schema: 1", "schema: 2"), "schema: expected 1, .*found 2"),
    "a schema in words": (_edit("schema: 1", "schema: one"), "schema: expected 1"),
    "a key twice": (_edit("schema: 1", "schema: 1\nschema: 1"), "schema: .*the key twice"),
    "no device": (_edit("\ndevice:", "\ndevices:"), "device: expected"),
    "a unit count in words": (_edit("units: ", "units: x"), "device.units: expected an integer"),
    "entries of the wrong kind": (_edit("entries:\n", "entries: {}\nmore:\n"), "more|entries"),
    "a ratio in words": (
        _edit("ratio: 2.000", "ratio: fast"),
        r"entries\[0\]\.choices\.highest\.eager\.ratio: expected a positive number, found 'fast'",
    ),
    "an unknown strategy": (
        _edit("{strategy: matmul_axpby", "{strategy: magic"),
        r"entries\[0\]\.choices\.highest\.eager\.strategy: unknown strategy 'magic'",
    ),
    "an unknown level": (_edit("    highest:", "    best:"), r"entries\[0\]\.choices\.best"),
    "an unknown field": (_edit("rounds: ", "turns: "), r"entries\[0\]\..*(rounds|turns)"),
    "a negative extent": (_edit("m: 48", "m: -48"), r"entries\[0\]\.problem\.m: expected"),
    "an environment of another name": (
        _edit("environment: ", "environment: f"), r"entries\[0\]\.environment",
    ),
    "edited versions": (_edit('versions: {torch: "', 'versions: {torch: "1'), "environments"),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_table_is_one_warning_with_file_and_path_and_then_the_safe_default(
    tables: Path, what: str
) -> None:
    damage, where = DAMAGES[what]
    path = write_for_this_cpu(tables, cpu_entry())
    A, B, C = operands()
    assert explain(1.5, A, B, 0.5, C).strategy == "matmul_axpby"
    path.write_bytes(damage(path.read_bytes()))
    autogemm.reload_tables()
    with pytest.warns(DatabaseWarning, match=where) as caught:
        result = gemm(1.5, A, B, 0.5, C)
    assert len(caught) == 1
    assert str(path) in str(caught[0].message)
    check(result, 1.5, A, B, 0.5, C, HIGHEST, typical=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the table is not read again
        check(gemm(1.5, A, B, 0.5, C), 1.5, A, B, 0.5, C, HIGHEST, typical=True)
        told = explain(1.5, A, B, 0.5, C)
        gemm(1.5, A[:20], B, 0.5, C[:20])
    assert (told.strategy, told.source) == ("addmm", "default")


def test_one_bad_entry_takes_no_other_with_it(tables: Path) -> None:
    good = cpu_entry()
    bad = replace(good, problem=replace(good.problem, m=7))
    path = write_for_this_cpu(tables, good, bad)
    path.write_bytes(_edit("m: 7", "m: none")(path.read_bytes()))
    A, B, C = operands()
    with pytest.warns(DatabaseWarning, match="such entries are left out") as caught:
        assert explain(1.5, A, B, 0.5, C).source == "exact"
    assert len(caught) == 1


def test_a_row_with_strange_parameters_never_breaks_a_call(tables: Path) -> None:
    strange = row(Candidate.of("ksplit", form="batched"), None, eager_us=1.0)
    made = cpu_entry()
    write_for_this_cpu(tables, replace(made, measured=(*made.measured, strange)))
    A, B, C = operands()
    for rows in (48, 47, 24):  # exact and near
        for precision in (None, "medium", 1e-2):
            a, c = A[:rows], C[:rows]
            result = gemm(1.5, a, B, 0.5, c, precision=precision)
            check(result, 1.5, a, B, 0.5, c, Tolerance("medium"))
            assert str(explain(1.5, a, B, 0.5, c, precision=precision))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_table_that_may_not_be_read_is_one_warning(tables: Path) -> None:
    path = write_for_this_cpu(tables, cpu_entry())
    path.chmod(0)
    A, B, C = operands()
    with pytest.warns(DatabaseWarning, match="cannot be read") as caught:
        gemm(1.5, A, B, 0.5, C)
    assert len(caught) == 1


def test_a_directory_in_a_tables_place_is_no_table(tables: Path) -> None:
    table_path(tables, device_of(CPU)).mkdir()
    A, B, C = operands()
    assert explain(1.5, A, B, 0.5, C).source == "default"


def test_a_place_that_does_not_exist_is_no_error(
    tables: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = ["", str(tables / "none"), os.devnull]
    monkeypatch.setenv("AUTOGEMM_TUNING_DB", os.pathsep.join(places))
    A, B, C = operands()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert explain(1.5, A, B, 0.5, C).source == "default"


def test_a_table_named_by_its_file_is_used(tables: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_for_this_cpu(tables, cpu_entry())
    moved = path.rename(tables.parent / "mine.yaml")
    monkeypatch.setenv("AUTOGEMM_TUNING_DB", str(moved))
    A, B, C = operands()
    assert explain(1.5, A, B, 0.5, C).strategy == "matmul_axpby"


def test_another_cpus_table_says_nothing_about_this_one(tables: Path) -> None:
    other = replace(device_of(CPU), units=device_of(CPU).units + 1)
    made = table(cpu_entry(), device=other)
    write_table(table_path(tables, other), made)
    A, B, C = operands()
    assert explain(1.5, A, B, 0.5, C).source == "default"
    copied = table_path(tables, device_of(CPU))
    write_table(copied, made)
    autogemm.reload_tables()
    with pytest.warns(DatabaseWarning, match=f"{copied}: device: expected") as caught:
        assert explain(1.5, A, B, 0.5, C).source == "default"
    assert len(caught) == 1
