"""What a tuned table saves a program: by the time it took, or by the time it would take."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from invented import AXPBY, FULL, TF32, choice, entry

from autogemm.problem import contiguous_problem
from autogemm.saving import Saving, saving_table, savings
from autogemm.workloads import Workload

CUBE = contiguous_problem(512, 512, 512, torch.float32)
OTHER = contiguous_problem(512, 512, 512, torch.float64)
LOAD = Workload(CUBE, count=1000, seconds=2.0)
TWICE = choice(AXPBY, ratio=2.0, us=50.0)


def test_of_a_time_measured_in_the_program_the_ratio_is_saved() -> None:
    assert Saving(LOAD, TWICE).seconds == 1.0
    assert Saving(LOAD, choice(AXPBY, ratio=4.0, us=7.0)).seconds == 1.5


def test_of_an_unknown_time_the_difference_of_the_tuners_times_is_saved() -> None:
    unknown = replace(LOAD, seconds=None)
    assert Saving(unknown, TWICE).seconds == pytest.approx(1000 * (100e-6 - 50e-6))


def test_where_the_baseline_stays_or_nothing_is_tuned_nothing_is_saved() -> None:
    for load in (LOAD, replace(LOAD, seconds=None)):
        assert Saving(load, choice(FULL, ratio=1.0)).seconds == 0.0
        assert Saving(load, None).seconds == 0.0


def test_what_a_table_gave_already_is_not_saved_again() -> None:
    for seconds in (2.0, None):
        load = replace(LOAD, seconds=seconds, by="autogemm", ratio=2.0)
        assert Saving(load, TWICE).seconds == 0.0
        assert Saving(load, choice(AXPBY, ratio=1.9)).seconds == 0.0
    load = replace(LOAD, by="autogemm", ratio=2.0)
    assert Saving(load, choice(AXPBY, ratio=4.0)).seconds == 1.0


def test_against_torchs_own_tf32_the_ratio_to_the_baseline_says_nothing() -> None:
    load = replace(LOAD, level="high", seconds=0.04)  # 40 us each
    assert Saving(load, choice(TF32, ratio=8.0, us=30.0)).seconds == pytest.approx(0.01)
    assert Saving(load, choice(TF32, ratio=8.0, us=50.0)).seconds == pytest.approx(-0.01)
    assert Saving(replace(load, seconds=None), choice(TF32, ratio=8.0, us=30.0)).seconds == 0.0
    by_us = replace(load, by="autogemm")
    assert Saving(by_us, choice(TF32, ratio=8.0, us=30.0)).seconds == pytest.approx(0.035)


def test_the_choice_is_that_of_the_level_and_the_mode_recorded() -> None:
    tuned = entry(CUBE, {"highest": choice(FULL, ratio=1.0), "high": choice(TF32, ratio=4.0)})
    modes = {"graph": choice(AXPBY, ratio=3.0), "eager": choice(FULL, ratio=1.0)}
    tuned = replace(tuned, choices={**tuned.choices, "highest": modes})
    loads = [
        LOAD,
        replace(LOAD, mode="graph"),
        replace(LOAD, level="high"),
        replace(LOAD, level="medium"),
        replace(LOAD, problem=OTHER),
    ]
    found = [saving.choice for saving in savings(loads, [tuned])]
    assert found[0] == modes["eager"]
    assert found[1] == modes["graph"]
    assert found[2] == found[3] == tuned.choices["high"]["eager"]  # nothing nearer was tuned
    assert found[4] is None


def test_a_table_names_what_saves_most_first_and_the_sum() -> None:
    small = replace(LOAD, problem=OTHER, seconds=0.5)
    table = saving_table([Saving(small, TWICE), Saving(LOAD, TWICE)], 5.0)
    header, first, second, total = table.splitlines()
    assert header.split() == [
        "product", "level", "mode", "calls", "share", "recorded", "us", "addmm", "us", "us",
        "choice", "saves", "ms",
    ]  # fmt: skip
    assert first.startswith("float32 512x512x512")
    assert "40.0%" in first
    assert "1000.00" in first
    assert "250.00" in second
    assert total == "expected saving: 1.25 s of 5 s, 25.0%"


def test_a_table_of_hand_written_shapes_has_no_shares() -> None:
    table = saving_table([Saving(Workload(CUBE), TWICE), Saving(Workload(OTHER), None)], None)
    _, first, second, total = table.splitlines()
    assert first.split()[-1] == "0.05"
    assert "not tuned" in second
    assert total == "expected saving: 5e-05 s"
