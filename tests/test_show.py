"""``scripts/show.py`` prints a table, as much of it as is wanted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import autogemm

ROOT = Path(autogemm.__file__).parents[1]
SCRIPT = ROOT / "scripts" / "show.py"
TABLE = ROOT / "tuning_db" / "nvidia-h200.yaml"


def show(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_a_table_is_shown_by_size_type_and_level() -> None:
    done = show(str(TABLE), "--size", "4096x4096x4096", "--dtype", "float32")
    assert done.returncode == 0
    assert done.stderr == ""
    head, *rows = done.stdout.splitlines()
    assert head.startswith("problem")
    assert rows
    assert all(row.startswith("float32 4096x4096x4096 (") for row in rows)


def test_markdown_is_what_the_readme_has() -> None:
    done = show(str(TABLE), "--markdown", "--size", "8192x8192x8192", "--dtype", "float32")
    rows = [row for row in done.stdout.splitlines() if row.startswith("| float32")]
    assert any(row in (ROOT / "README.md").read_text() for row in rows)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
def test_whoever_reads_may_stop_reading() -> None:
    command = f"{sys.executable} {SCRIPT} {TABLE} | head -1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, timeout=120
    )
    assert done.stderr == ""
    assert done.returncode == 0
    assert done.stdout.count("\n") == 1


def test_what_is_no_table_is_told(tmp_path: Path) -> None:
    file = tmp_path / "table.yaml"
    file.write_text(yaml.safe_dump({"version": 99}))
    for path in (file, tmp_path / "absent.yaml"):
        done = show(str(path))
        assert done.returncode == 1
        assert path.name in done.stderr
        assert "Traceback" not in done.stderr
