"""What measured problems say about unseen ones, on an invented device."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from autogemm.database import Entry, Measured
from autogemm.database.prediction import Model, distance
from autogemm.precision import Tolerance
from autogemm.problem import Problem, contiguous_problem
from autogemm.strategies import Candidate

ADDMM = Candidate.of("addmm", reduction="full")
AXPBY = Candidate.of("matmul_axpby")
HIGHEST = Tolerance("highest")


def problem(m: int, n: int, k: int, **facts: object) -> Problem:
    return contiguous_problem(m, n, k, facts.pop("dtype", torch.float32), **facts)  # type: ignore[arg-type]


def entry(at: Problem, times: dict[Candidate, tuple[float, float | None]]) -> Entry:
    rows = tuple(
        Measured(candidate=c, status="ok", graph_us=graph, eager_us=eager, error=1.0)
        for c, (graph, eager) in times.items()
    )
    return Entry(
        problem=at, environment="e", date="2026-01-01", choices={}, measured=rows, space="s"
    )


def model(*entries: Entry, margin: float = 1.02) -> Model:
    return Model((e, margin) for e in entries)


def test_the_distance_counts_every_dimension_on_its_own() -> None:
    assert distance(problem(1, 1, 4096), problem(16, 16, 16)) > 8
    assert distance(problem(64, 64, 64), problem(64, 64, 128)) == pytest.approx(1.0)
    assert distance(problem(64, 64, 64), problem(64, 64, 64)) == 0


def test_the_distance_is_symmetric_and_grows_with_every_difference() -> None:
    base = problem(1024, 1024, 1024)
    others = [
        problem(1024, 1024, 2048),
        replace(base, a="col"),
        replace(base, update="none"),
        replace(base, out="row-unaligned"),
    ]
    for other in others:
        assert distance(base, other) == distance(other, base) > 0


def test_types_that_share_no_kernels_are_infinitely_far_apart() -> None:
    assert distance(problem(8, 8, 8), problem(8, 8, 8, dtype=torch.float64)) == math.inf
    assert distance(problem(8, 8, 8), problem(8, 8, 8, device_type="cpu")) == math.inf
    halves = [problem(8, 8, 8, dtype=dtype) for dtype in (torch.float16, torch.bfloat16)]
    assert 0 < distance(*halves) < math.inf


def test_a_batch_is_a_dimension_of_its_own_and_far_from_single_products() -> None:
    single, batch = problem(64, 64, 64), problem(64, 64, 64, batch=16)
    assert distance(single, batch) == distance(batch, single) == math.inf
    assert distance(batch, replace(batch, batch=32)) == pytest.approx(1.0)
    assert distance(batch, replace(batch, batch=32, m=128)) == pytest.approx(math.sqrt(2))


def test_a_batch_is_predicted_from_batches_against_their_own_baseline() -> None:
    whole = Candidate.of("baddbmm", reduction="full")
    known = entry(problem(512, 512, 512, batch=8), {whole: (100.0, 100.0), AXPBY: (50.0, 50.0)})
    found = model(known).predict(problem(512, 512, 512, batch=9), HIGHEST, "graph")
    assert [p.candidate for p in found] == [AXPBY]
    assert not model(known).predict(problem(512, 512, 512), HIGHEST, "graph")


def test_a_clear_win_next_door_is_predicted() -> None:
    known = entry(problem(1024, 1024, 1024), {ADDMM: (100.0, 100.0), AXPBY: (50.0, 50.0)})
    found = model(known).predict(problem(1100, 1024, 1024), HIGHEST, "graph")
    assert [p.candidate for p in found] == [AXPBY]
    assert found[0].ratio == pytest.approx(2.0)
    assert found[0].distance < 0.2


def test_far_from_all_evidence_nothing_is_predicted() -> None:
    known = entry(problem(1024, 1024, 1024), {ADDMM: (100.0, 100.0), AXPBY: (10.0, 10.0)})
    assert not model(known).predict(problem(16, 16, 16), HIGHEST, "graph")
    assert not model().predict(problem(16, 16, 16), HIGHEST, "graph")


def test_neighbours_that_disagree_predict_nothing() -> None:
    wins = entry(problem(1024, 1024, 1000), {ADDMM: (100.0, 100.0), AXPBY: (50.0, 50.0)})
    loses = entry(problem(1024, 1024, 1048), {ADDMM: (100.0, 100.0), AXPBY: (200.0, 200.0)})
    assert not model(wins, loses).predict(problem(1024, 1024, 1024), HIGHEST, "graph")


def test_a_small_win_is_left_to_the_baseline_when_the_evidence_is_old() -> None:
    known = entry(problem(1024, 1024, 1024), {ADDMM: (110.0, 110.0), AXPBY: (100.0, 100.0)})
    here = problem(1024, 1024, 1024)
    assert model(known, margin=1.02).predict(here, HIGHEST, "graph")
    assert not model(known, margin=1.2).predict(here, HIGHEST, "graph")


def test_a_candidate_that_costs_the_host_more_is_not_predicted_for_small_eager_calls() -> None:
    small = entry(problem(128, 128, 128), {ADDMM: (10.0, 25.0), AXPBY: (4.0, 120.0)})
    here = problem(128, 128, 160)
    assert [p.candidate for p in model(small).predict(here, HIGHEST, "graph")] == [AXPBY]
    assert not model(small).predict(here, HIGHEST, "eager")


@pytest.mark.parametrize(("host", "won"), [(10.0, True), (14.0, False)])
def test_a_candidates_host_cost_is_doubted(host: float, won: bool) -> None:
    """Both wait for the host: the baseline 25 µs, the candidate perhaps longer than measured."""
    small = entry(problem(128, 128, 128), {ADDMM: (10.0, 25.0), AXPBY: (4.0, host)})
    predicted = model(small).predict(problem(128, 128, 128), HIGHEST, "eager")
    assert [p.candidate for p in predicted] == [AXPBY] * won


def test_a_candidate_beyond_the_tolerance_is_not_predicted() -> None:
    tf32 = Candidate.of("tf32", pad=False)
    known = entry(problem(1024, 1024, 1024), {ADDMM: (100.0, 100.0), tf32: (20.0, 20.0)})
    here = problem(1024, 1024, 1024)
    assert not model(known).predict(here, HIGHEST, "graph")
    assert [p.candidate for p in model(known).predict(here, Tolerance("high"), "graph")] == [tf32]


def emulated(chunk: int, bm: int = 128, method: str = "fp16x3") -> Candidate:
    return Candidate.of(
        "emulated_fp32", form="split", method=method, bm=bm, bn=128, bk=64, warps=8, stages=3,
        chunk=chunk, slices=1, group=8,
    )  # fmt: skip


def test_neighbours_searched_at_other_points_of_a_large_space_still_speak_for_its_kin() -> None:
    first = entry(problem(2048, 2048, 2048), {ADDMM: (400.0, 400.0), emulated(512): (100.0, 100.0)})
    second = entry(
        problem(4096, 2048, 2048), {ADDMM: (800.0, 800.0), emulated(1024): (200.0, 200.0)}
    )
    found = model(first, second).predict(problem(2200, 2048, 2048), HIGHEST, "graph")
    assert [p.candidate for p in found] == [emulated(512)]  # the nearer one's
    assert found[0].ratio == pytest.approx(4.0)


def test_another_tile_is_no_kin() -> None:
    first = entry(problem(2048, 2048, 2048), {ADDMM: (400.0, 400.0)})
    second = entry(
        problem(2300, 2048, 2048), {ADDMM: (440.0, 440.0), emulated(512, bm=64): (100.0, 100.0)}
    )
    assert model(first, second).predict(problem(2048, 2048, 2100), HIGHEST, "graph") == []


def test_what_was_noisier_than_the_baseline_is_not_predicted_at_highest() -> None:
    fast, quiet = emulated(2048), emulated(512)
    known = entry(
        problem(2048, 2048, 2048),
        {ADDMM: (400.0, 400.0), fast: (90.0, 90.0), quiet: (100.0, 100.0)},
    )
    norms = {ADDMM: 8e-7, fast: 1.2e-6, quiet: 4e-7}
    rows = tuple(replace(row, error_norm=norms[row.candidate]) for row in known.measured)
    known = replace(known, measured=rows)
    at = problem(2200, 2048, 2048)
    assert [p.candidate for p in model(known).predict(at, HIGHEST, "graph")] == [quiet]
    assert [p.candidate for p in model(known).predict(at, Tolerance("high"), "graph")] == [fast]


def test_an_unknown_strategy_in_the_evidence_is_passed_over() -> None:
    other = Candidate.of("from_the_future", x=1)
    known = entry(problem(64, 64, 64), {ADDMM: (100.0, 100.0), other: (1.0, 1.0)})
    assert not model(known).predict(problem(64, 64, 64), HIGHEST, "graph")


def test_eager_times_that_were_not_taken_are_filled_in_from_the_host_cost() -> None:
    bench = model(entry(problem(64, 64, 64), {ADDMM: (10.0, 25.0), AXPBY: (5.0, 40.0)}))
    row = Measured(candidate=AXPBY, status="slow", graph_us=7.0)
    assert bench.eager_us(row, problem(64, 64, 64)) == pytest.approx(40.0)
    assert bench.eager_us(replace(row, graph_us=90.0), problem(64, 64, 64)) == pytest.approx(90.0)


def test_the_host_cost_of_a_loop_grows_with_the_batch() -> None:
    loop, whole = Candidate.of("loop", inner="addmm"), Candidate.of("baddbmm", reduction="full")
    small = problem(64, 64, 64, batch=4)
    bench = model(entry(small, {whole: (5.0, 20.0), loop: (6.0, 80.0)}))
    row = Measured(candidate=loop, status="slow", graph_us=7.0)
    assert bench.eager_us(row, small) == pytest.approx(80.0)
    assert bench.eager_us(row, replace(small, batch=8)) == pytest.approx(160.0)
    row = replace(row, candidate=whole)
    assert bench.eager_us(row, replace(small, batch=8)) == pytest.approx(20.0)


def test_a_loop_over_more_and_smaller_products_is_not_predicted_to_get_quicker_for_ever() -> None:
    loop, whole = Candidate.of("loop", inner="addmm"), Candidate.of("baddbmm", reduction="full")
    large = entry(problem(2048, 2048, 128, batch=32), {whole: (350.0, 355.0), loop: (205.0, 206.0)})
    tiny = entry(problem(32, 32, 32, batch=512), {whole: (10.0, 20.0), loop: (2000.0, 3000.0)})
    predict = model(large, tiny).predict
    more = predict(problem(2048, 2048, 128, batch=40), HIGHEST, "graph")
    assert [p.candidate for p in more] == [loop]
    # 96 launches of 3.9 us take longer than the whole batch.
    assert predict(problem(1024, 1024, 64, batch=96), HIGHEST, "graph") == []
