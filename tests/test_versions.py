"""Another version of the package is timed in turns with this one."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fresh import run_script
from invented import AXPBY, CPU, choice, entry, row, write_for_this_cpu

import autogemm
from autogemm.device import device_of
from autogemm.errors import AutogemmError
from autogemm.problem import contiguous_problem
from autogemm.strategies import BY_NAME
from autogemm.versions import compare, version_at

CHECKOUT = Path(autogemm.__file__).parents[1]
PROBLEM = contiguous_problem(48, 32, 40, torch.float32, device_type="cpu")
ENTRY = entry(PROBLEM, {"highest": choice(AXPBY, 2.0, 50.0)}, [row(AXPBY, 50.0)])
MODE = next(iter(ENTRY.choices["highest"]))


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout whose ``matmul_axpby`` is half of what it should be."""
    folder = tmp_path_factory.mktemp("other")
    shutil.copytree(CHECKOUT / "autogemm", folder / "autogemm")
    path = folder / "autogemm" / "strategies" / "matmul_axpby.py"
    text = path.read_text()
    assert "def bind(" in text
    path.write_text(f"{text}\n\n_bind = MatmulAxpby.bind\n" + (
        "MatmulAxpby.bind = lambda *given: lambda alpha, *more: _bind(*given)(alpha / 2, *more)\n"
    ))  # fmt: skip
    return folder


def test_both_versions_are_there_at_once_and_the_other_is_gone_afterwards() -> None:
    with version_at(CHECKOUT) as name:
        other = importlib.import_module(f"{name}.strategies").BY_NAME
        assert other.keys() == BY_NAME.keys()
        assert other["addmm"] is not BY_NAME["addmm"]
        assert type(other["addmm"]).__module__.startswith(name)
    assert [each for each in sys.modules if each.startswith(name)] == []
    assert importlib.import_module("autogemm.strategies").BY_NAME is BY_NAME


def test_a_directory_without_the_package_is_told(tmp_path: Path) -> None:
    with pytest.raises(AutogemmError, match="no package autogemm there"), version_at(tmp_path):
        pass


def test_a_choice_is_timed_by_both_versions_on_the_same_operands(changed: Path) -> None:
    found = []
    for checkout in (CHECKOUT, changed):
        with version_at(checkout) as name:
            found += compare(
                ENTRY, device_of(CPU), CPU, name, level="highest", mode="eager", rounds=3
            )
    assert [each.is_equal for each in found] == [True, False]
    for each in found:
        assert (each.problem, each.candidate) == (PROBLEM, AXPBY)
        assert each.us > 0
        assert each.other_us > 0
        assert each.low <= each.ratio <= each.high
        assert each.guard is None


@pytest.mark.parametrize("asked", [{"strategy": "addmm"}, {"form": "fused"}, {"level": "high"}])
def test_what_is_not_asked_for_is_not_timed(asked: dict[str, str]) -> None:
    given = {"level": "highest"} | asked
    assert [*compare(ENTRY, device_of(CPU), CPU, "none", mode="eager", **given)] == []  # type: ignore[arg-type]


def compared(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return run_script(CHECKOUT / "scripts" / "compare.py", *arguments, "--device", "cpu")


def test_the_script_prints_a_row_for_a_choice(tmp_path: Path, changed: Path) -> None:
    table = write_for_this_cpu(tmp_path, ENTRY)
    done = compared(changed, "--db", table, "--rounds", "3")
    assert done.returncode == 0, done.stderr
    head, line, summary = done.stdout.splitlines()
    assert head.startswith("problem")
    assert line.startswith(f"{PROBLEM} ")
    assert line.endswith("differ")
    assert summary.startswith("highest eager: 1 choices, geomean ")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--mode", "graph"), "a CPU has no CUDA graphs; expected eager"),
        (("--rounds", "0"), "--rounds 0: expected 1 or more"),
        (("--form", "tandem"), "nothing was compared"),
    ],
)
def test_the_script_says_what_cannot_be(
    arguments: tuple[str, ...], told: str, tmp_path: Path
) -> None:
    done = compared(CHECKOUT, "--db", write_for_this_cpu(tmp_path, ENTRY), *arguments)
    assert done.returncode != 0
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_the_script_says_that_there_is_no_package(tmp_path: Path) -> None:
    done = compared(tmp_path, "--db", write_for_this_cpu(tmp_path, ENTRY))
    assert done.returncode == 1
    assert "no package autogemm there" in done.stderr
