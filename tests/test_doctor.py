"""``doctor``: what it says of machines, tables and settings, and that nothing makes it raise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fresh import run_script
from invented import AXPBY, CPU, GPU, always, choice, entry, environment, write_for_this_cpu

import autogemm
from autogemm import diagnosis, doctor
from autogemm.database import table_path, write_table
from autogemm.database.entries import Table
from autogemm.device import device_of
from autogemm.problem import contiguous_problem
from autogemm.strategies import STRATEGIES

pytestmark = pytest.mark.usefixtures("tables")

PROBLEM = contiguous_problem(24, 20, 32, torch.float32, device_type="cpu")
TITLES = ["machine", "software", "strategies", "tables", "precision"]
ROOT = Path(autogemm.__file__).parents[1]


def text(title: str, **options: object) -> str:
    return "\n".join(doctor("cpu", **options).section(title))


def test_it_prints_every_section() -> None:
    report = doctor("cpu")
    assert [title for title, _ in report.sections] == TITLES
    assert all(lines for _, lines in report.sections)
    for title in TITLES:
        assert f"{title}\n  " in str(report)
    assert str(device_of(CPU)) in str(report)
    assert "cannot be told" not in str(report)


def test_the_script_prints_it() -> None:
    done = run_script(ROOT / "scripts" / "doctor.py", "--device", "cpu")
    assert done.returncode == 0
    assert str(device_of(CPU)) in done.stdout
    assert done.stderr == ""


# ------------------------------------------------------------------------------- strategies


def test_every_strategy_runs_or_says_why_not() -> None:
    told = text("strategies")
    for strategy in STRATEGIES:
        assert f"{strategy.name}: " in told
        if "cpu" not in strategy.device_types:
            assert f"{strategy.name}: cannot run: runs on cuda, not on cpu" in told
    assert "addmm: runs float16, bfloat16, float32" in told


def test_a_missing_package_is_named_with_what_it_would_serve(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bare = replace(GPU, packages=frozenset())
    monkeypatch.setattr(diagnosis, "device_of", lambda where: bare)
    report = doctor("cpu")
    software, strategies = ("\n".join(report.section(t)) for t in ("software", "strategies"))
    assert "triton is not installed: " in software
    assert "emulated_fp32" in software
    assert "emulated_fp32: cannot run: needs the package 'triton'" in strategies
    assert "addmm: runs" in strategies
    assert any("install triton" in line for line in report.advice)


def test_a_strategy_that_runs_on_some_types_says_why_not_on_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Picky(type(STRATEGIES[0])):  # type: ignore[misc]
        def _reasons_not(self, problem: object, *_: object) -> list[str]:
            return ["no patience"] if problem.dtype is torch.float64 else []

    monkeypatch.setattr(diagnosis, "STRATEGIES", (Picky(),))
    told = text("strategies")
    assert "addmm: runs float16" in told
    assert "addmm: not float64: no patience" in told


# ----------------------------------------------------------------------------------- tables


def test_a_machine_without_a_table_is_told_to_tune(tables: Path) -> None:
    report = doctor("cpu")
    assert f"{tables}: no tables" in report.section("tables")
    assert any("run python scripts/tune.py" in line for line in report.advice)


def test_a_table_is_shown_with_its_age(tables: Path) -> None:
    path = write_for_this_cpu(tables, always(AXPBY, PROBLEM))
    report = doctor("cpu")
    told = "\n".join(report.section("tables"))
    assert f"{path}: 1 entries, measured 2026-11-22, under the versions of now" in told
    assert f"in use: {path}" in told
    assert report.advice == ()


def test_choices_of_other_versions_are_counted(tables: Path) -> None:
    old = environment("cpu", torch="1.0.0")
    stale = entry(PROBLEM, {"highest": choice(AXPBY)}, where=old)
    write_for_this_cpu(tables, stale, where=old)
    report = doctor("cpu")
    assert "under other versions (1 entries: torch 1.0.0 then," in "\n".join(
        report.section("tables")
    )
    assert any("verify.py --table" in line for line in report.advice)


@pytest.mark.parametrize(
    "content", [b"", b"schema: [", b"\xff\xfe\x00", b"schema: 7\n", b"- 1\n...\n"]
)
def test_a_damaged_table_is_a_line_and_an_advice(tables: Path, content: bytes) -> None:
    path = table_path(tables, device_of(CPU))
    path.write_bytes(content)
    report = doctor("cpu")
    assert any(str(path) in line for line in report.section("tables"))
    assert any("is damaged" in line for line in report.advice)
    assert "cannot be told" not in str(report)


def test_a_table_of_another_device_under_this_ones_name_is_told(tables: Path) -> None:
    path = table_path(tables, device_of(CPU))
    write_table(path, Table(device=GPU, path=path))
    assert "holds the results of Example GPU" in text("tables")


# -------------------------------------------------------------------------------- precision


@pytest.mark.usefixtures("restored_torch_settings")
def test_torchs_settings_are_said_in_plain_words() -> None:
    assert "float32 on a CPU: full float32 accuracy ('highest'; torch.backends.mkldnn" in text(
        "precision"
    )
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    assert "float32 on a CPU: operands may be rounded to 8 bits" in text("precision")
    torch.backends.mkldnn.matmul.fp32_precision = "tf32"
    assert "float32 on a CPU: operands may be rounded to 11 bits" in text("precision")


@pytest.mark.usefixtures("restored_torch_settings")
def test_a_gpus_settings_are_told_where_torch_is_built_for_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    told = text("precision")
    assert "float16 on a GPU: partial sums may be rounded to 16 bits ('high'; " in told
    assert "bfloat16 on a GPU: sums in float32, one rounding at the end ('highest'; " in told


# ------------------------------------------------------------------------ nothing makes it raise


@pytest.mark.parametrize("device", ["cuda:97", "nonsense", "cpu:x", "meta"])
def test_a_device_that_cannot_be_used_is_a_line(device: str) -> None:
    report = doctor(device)
    if device != "meta":
        assert f"{device} cannot be used" in report.section("machine")[0]
    assert "addmm: runs" in "\n".join(report.section("strategies"))


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("software_versions", "software"),
        ("search_path", "tables"),
        ("contiguous_problem", "strategies"),
        ("current_state", "precision"),
    ],
)
def test_what_fails_is_a_line_and_the_rest_is_told(
    name: str, title: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise RuntimeError("out of order\nand a second line")

    monkeypatch.setattr(diagnosis, name, failing)
    report = doctor("cpu")
    assert "cannot be told: RuntimeError: out of order" in report.section(title)
    for other in set(TITLES) - {title}:
        assert not any("cannot be told" in line for line in report.section(other))
