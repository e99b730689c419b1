"""What torch has switched on around a call: autocast, transforms, autograd's bookkeeping."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.autograd import forward_ad

import autogemm
from autogemm import DatabaseWarning, InvalidProblem, gemm
from autogemm.database import Choice, Entry, Environment, merge_table, table_path
from autogemm.device import device_of, software_versions
from autogemm.problem import contiguous_problem
from autogemm.strategies import Candidate

A, B, C = torch.randn(24, 40), torch.randn(40, 32), torch.randn(24, 32)


@pytest.fixture(autouse=True)
def tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A table that chooses something else than addmm for these operands."""
    device = device_of(torch.device("cpu"))
    axpby = Candidate.of("matmul_axpby")
    choice = Choice(
        candidate=axpby, us=1.0, baseline_us=2.0, ratio=2.0, low=1.9, high=2.1, rounds=20,
        runner_up=None, runner_up_ratio=None,
    )  # fmt: skip
    environment = Environment(versions=software_versions("cpu"), clocks={})
    entries = [
        Entry(
            problem=contiguous_problem(24, 32, 40, torch.float32, update=u, device_type="cpu"),
            environment=environment.id, date="2026-01-01",
            choices={"highest": {"eager": choice}}, measured=(), space="00000000",
        )
        for u in ("none", "add")
    ]  # fmt: skip
    merge_table(table_path(tmp_path, device), device, environment, entries)
    monkeypatch.setenv("AUTOGEMM_TUNING_DB", str(tmp_path))
    autogemm.reload_tables()
    assert autogemm.explain(1.5, A, B, 0.5, C, precision="highest").strategy == "matmul_axpby"
    yield tmp_path
    monkeypatch.undo()
    autogemm.reload_tables()


def test_autocast_changes_neither_type_nor_accuracy() -> None:
    plain = gemm(1.5, A, B, 0.5, C, precision="highest")
    for _ in range(2):  # cold and warm
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = gemm(1.5, A, B, 0.5, C, precision="highest")
        assert cast.dtype == torch.float32
        assert torch.equal(cast, plain)


def test_forward_mode_differentiation_follows_a_tuned_call() -> None:
    tangent = torch.randn_like(A)
    gemm(1.5, A, B, 0.5, C)
    with forward_ad.dual_level():
        result = gemm(1.5, forward_ad.make_dual(A, tangent), B, 0.5, C)
        found = forward_ad.unpack_dual(result).tangent
    torch.testing.assert_close(found, 1.5 * tangent @ B)


def test_functional_transforms_follow_a_tuned_call() -> None:
    tangent = torch.randn_like(A)
    _, found = torch.func.jvp(lambda a: gemm(1.5, a, B, 0.5, C), (A,), (tangent,))
    torch.testing.assert_close(found, 1.5 * tangent @ B)
    batch = torch.randn(3, 24, 40)
    mapped = torch.func.vmap(lambda a: gemm(1.5, a, B, 0.5, C))(batch)
    torch.testing.assert_close(mapped, 1.5 * batch @ B + 0.5 * C)


def test_a_warm_call_refuses_an_out_that_requires_grad() -> None:
    gemm(1.5, A, B, out=torch.empty(24, 32))
    with pytest.raises(InvalidProblem, match="requires grad"):
        gemm(1.5, A, B, out=torch.zeros(24, 32, requires_grad=True) * 1)


def test_the_type_of_the_precision_argument_is_checked_in_warm_calls_too() -> None:
    gemm(1.5, A, B, precision=1)
    with pytest.raises(InvalidProblem, match="precision is a bool"):
        gemm(1.5, A, B, precision=True)


@pytest.mark.parametrize("place", ["~nobody-has-this-name/x", "x" * 5000])
def test_a_place_that_cannot_be_looked_at_is_warned_of_and_left_out(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOGEMM_TUNING_DB", place)
    autogemm.reload_tables()
    with pytest.warns(DatabaseWarning, match="AUTOGEMM_TUNING_DB"):
        result = gemm(1.5, A, B, 0.5, C)
    torch.testing.assert_close(result, 1.5 * A @ B + 0.5 * C)


def test_a_table_of_another_device_in_this_ones_place_is_warned_of(tuned: Path) -> None:
    path = table_path(tuned, device_of(torch.device("cpu")))
    path.write_text(path.read_text().replace("units: ", "units: 1"))
    autogemm.reload_tables()
    with pytest.warns(DatabaseWarning, match="device: expected"):
        gemm(1.5, A, B, 0.5, C)
