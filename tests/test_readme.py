"""The README tells what the committed tables hold, and its example runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from autogemm.database import read_table
from autogemm.report import markdown_table, means

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "docs" / "results" / "README.md").read_text(encoding="utf-8")


def printed_rows() -> list[list[str]]:
    """The table's rows for people: problem, level, addmm, chosen, us, times faster, R."""
    table, problems = read_table(ROOT / "tuning_db" / "nvidia-h200.yaml")
    assert problems == []
    return [cells(row) for row in markdown_table(table.entries.values()).splitlines()]


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_every_row_of_the_readme_stands_in_the_committed_table() -> None:
    def shortened(row: list[str]) -> tuple[str, ...]:
        dtype, _, sizes = row[0].split(" (")[0].partition(" ")
        sizes = " × ".join(size.strip() for size in sizes.split("x"))
        return (dtype, sizes, row[2], row[4], row[5], row[3].split("(")[0].strip("`"))

    printed = {shortened(row) for row in printed_rows() if len(row) > 5 and row[1] == "highest"}
    is_row = re.compile(r"\| b?float\d+ \| \d+ ×")
    rows = [cells(line) for line in README.splitlines() if is_row.match(line)]
    assert len(rows) >= 10
    assert [row for row in rows if (*row[:5], row[5].strip("`")) not in printed] == []


def test_every_row_of_the_results_stands_in_the_committed_table() -> None:
    printed = printed_rows()
    rows = [cells(line) for line in RESULTS.splitlines() if re.match(r"\| b?float\d+ \d", line)]
    assert len(rows) >= 30
    assert [row for row in rows if row not in printed] == []


def test_the_readmes_means_are_the_committed_tables() -> None:
    table, _ = read_table(ROOT / "tuning_db" / "nvidia-h200.yaml")
    rows = [cells(line) for line in README.splitlines() if line.startswith("| ")]
    for kind, number, mean in means(table.entries.values()):
        (row,) = (row for row in rows if row[0].split(" (")[0] == kind)
        assert row[1:3] == [str(number), f"{mean:.2f}"]


def test_the_readmes_example_runs() -> None:
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert code is not None
    scope: dict[str, object] = {}
    exec(compile(code.group(1), "README.md", "exec"), scope)
    assert isinstance(scope["D"], torch.Tensor)


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda page: page.name
)
def test_every_page_that_a_page_names_is_there(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in link:
            assert (page.parent / link).exists(), link
