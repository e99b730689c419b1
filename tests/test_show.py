"""``scripts/show.py`` prints a table, as much of it as is wanted."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import autogemm

ROOT = Path(autogemm.__file__).parents[1]
SCRIPT = ROOT / "scripts" / "show.py"
TABLE = ROOT / "tuning_db" / "nvidia-h200.yaml"


def show(monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *options])
    monkeypatch.setattr(sys, "path", [*sys.path])
    code = runpy.run_path(str(SCRIPT))["main"]()
    assert isinstance(code, int)
    return code


def test_a_table_is_shown_by_size_type_and_level(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    size = ("--size", "8192x8192x8192", "--dtype", "float32")
    assert show(monkeypatch, str(TABLE), *size) == 0
    said = capsys.readouterr()
    head, *rows = said.out.splitlines()
    assert said.err == ""
    assert head.startswith("problem")
    assert rows
    assert all(row.startswith("float32 8192x8192x8192 (") for row in rows)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
def test_whoever_reads_may_stop_reading() -> None:
    command = f"{sys.executable} {SCRIPT} {TABLE} | head -1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, timeout=120
    )
    assert done.stderr == ""
    assert done.returncode == 0
    assert done.stdout.count("\n") == 1


def test_what_is_no_table_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "table.yaml"
    file.write_text(yaml.safe_dump({"version": 99}))
    for path in (file, tmp_path / "absent.yaml"):
        assert show(monkeypatch, str(path)) == 1
        assert path.name in capsys.readouterr().err


def test_means_are_of_kinds_of_problems(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert show(monkeypatch, str(TABLE), "--means", "--dtype", "float64") == 0
    head, *rows = (line.split() for line in capsys.readouterr().out.splitlines())
    assert head == ["problems", "mode", "number", "x", "addmm"]
    assert [row[:2] for row in rows] == [["float64", "graph"], ["float64", "eager"]]
    assert all(float(row[3]) >= 1 for row in rows)
