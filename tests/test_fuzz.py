"""Damaged and malicious files: refused in words, at once, and without doing what they say."""

from __future__ import annotations

from pathlib import Path

import pytest
from stress import fuzz, up_to

from autogemm.errors import InvalidProblem
from autogemm.shapes import read_shapes


def test_no_mutation_of_a_table_crashes_its_reader_or_makes_it_do_anything_else() -> None:
    figures = fuzz.fuzz_tables(up_to(3000))
    assert 100 < figures["taken"] < 2900, "the mutations are too mild or too wild to tell"


def test_no_bytes_in_a_tables_file_crash_its_reader(tmp_path: Path) -> None:
    fuzz.fuzz_files(up_to(300), tmp_path)


def test_no_mutation_of_a_list_of_shapes_crashes_its_reader(tmp_path: Path) -> None:
    figures = fuzz.fuzz_shapes(up_to(700), tmp_path)
    assert 50 < figures["taken"] < 950, "the mutations are too mild or too wild to tell"


def test_a_few_lines_that_stand_for_ever_so_many_are_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "shapes.yaml"
    for text in (fuzz.bomb(), fuzz.merge_bomb()):
        path.write_text(text)
        with pytest.raises(InvalidProblem, match="expected no anchors"):
            read_shapes(path, "cpu")


def test_the_watch_sees_what_a_reader_must_not_do(tmp_path: Path) -> None:
    other = tmp_path / "secret"
    other.write_text("")

    def curious(content: bytes) -> bool:
        return other.read_text() == "x"

    with pytest.raises(AssertionError, match="made the reader do"):
        fuzz.read_all(up_to(1), curious, lambda i: b"")
