import os
import random
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from sample_tables import entry, table

from autogemm.database import dump_table
from autogemm.database.reading import table_from_text
from autogemm.errors import DatabaseError

FILE = Path("t.yaml")
TEXT = dump_table(table(entry()))


def damage(text):
    with pytest.raises(DatabaseError) as error:
        table_from_text(text, FILE)
    return str(error.value)


def outcome(text):
    """What reading says, be it a table with problems or the one error that is allowed."""
    try:
        return table_from_text(text, FILE)[1]
    except DatabaseError as error:
        return [str(error)]


def test_a_mistake_in_the_bytes_is_never_more_than_a_database_error(parser):
    draw = random.Random(0)
    for _ in range(200):
        text = list(TEXT)
        for _ in range(draw.randrange(1, 4)):
            text[draw.randrange(len(text))] = draw.choice(
                "{}[]:,&*!|>'\"%@`#-.?~0\n\t e\\U\x00\x85"
            )
        assert all(message.startswith("t.yaml: ") for message in outcome("".join(text)))


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("&a abacus", "no anchors, found &a"),
        ("*a", "no aliases, found *a"),
        (
            "!!python/object/apply:os.system ['touch owned']",
            "no tags, found tag:yaml.org,2002:pyth",
        ),
        ("!!str abacus", "no tags, found tag:yaml.org,2002:str"),
        ("! abacus", "no tags, found !"),
        ("{&a b: c}", "a plain word as key, found something else"),
        ("{[a]: c}", "a plain word as key, found something else"),
    ],
)
def test_what_yaml_can_do_beyond_plain_data_is_refused(
    parser, tmp_path, monkeypatch, value, complaint
):
    monkeypatch.chdir(tmp_path)
    message = damage(TEXT.replace("name: Abacus 3000 PCIe", f"name: {value}"))
    assert message.startswith("t.yaml: line 6, column ")
    assert f"expected {complaint}" in message
    assert list(tmp_path.iterdir()) == []


def test_a_yaml_bomb_is_refused_at_its_first_anchor(parser):
    bomb = "a: &a [x, x]\n" + "".join(
        f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
        for old, new in zip("abcdefghijk", "bcdefghijkl", strict=True)
    )
    assert "line 1, column 4: expected no anchors, found &a" in damage(bomb)


@pytest.mark.parametrize("opening", ["[", "{a: "])
def test_nesting_is_refused_before_it_overflows_a_stack(parser, opening):
    assert "expected at most 16 levels, found one more" in damage(opening * 100_000)


def test_tables_are_read_where_pyyaml_lacks_its_c_parser():
    code = """
        import sys
        sys.modules["yaml.cyaml"] = None
        import yaml
        assert not hasattr(yaml, "CSafeLoader")
        from autogemm.database.reading import table_from_text
        table, problems = table_from_text(sys.stdin.read(), "t.yaml")
        assert len(table.entries) == 1 and not problems
    """
    path = os.pathsep.join(filter(None, sys.path))
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        input=TEXT,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": path},
    )
