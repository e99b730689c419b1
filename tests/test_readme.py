"""The README tells what the committed tables hold, and its example runs."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from autogemm.database import read_table
from autogemm.report import markdown_table

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_row_of_the_readme_stands_in_the_committed_table() -> None:
    table, problems = read_table(ROOT / "tuning_db" / "nvidia-h200.yaml")
    assert problems == []
    printed = set(markdown_table(table.entries.values()).splitlines())
    rows = [line for line in README.splitlines() if re.match(r"\| (b?float|complex)", line)]
    assert len(rows) >= 10
    assert [row for row in rows if row not in printed] == []


def test_the_readmes_example_runs() -> None:
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert code is not None
    scope: dict[str, object] = {}
    exec(compile(code.group(1), "README.md", "exec"), scope)
    assert isinstance(scope["D"], torch.Tensor)


def test_every_page_the_readme_names_is_there() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
