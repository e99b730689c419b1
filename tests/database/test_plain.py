import os
import random
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from sample_tables import entry, table

from autogemm.database import dump_table, plain
from autogemm.database.fields import Invalid
from autogemm.database.reading import table_from_text
from autogemm.errors import DatabaseError

FILE = Path("t.yaml")
TEXT = dump_table(table(entry()))
SHIPPED = (Path(__file__).parents[2] / "tuning_db" / "nvidia-h200.yaml").read_text()


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


def meaning(text, read):
    """What a reader makes of a text, types included: 1, 1.0 and true differ."""
    try:
        return repr(read(text, ended=True))
    except Invalid as error:
        return str(error)


def by_yaml_alone(text, ended):
    return plain._parsed(text, ended)


IN_BRACES = [
    "{a: 1, b: -2.5, c: 1e-7, d: true, e: row-unaligned, f: 2026-11-22, g: 729caa45}",
    '{note: "a, {b}: #c", words: no tensor cores (here), z: "1"}',
    "{a: {b: {c: 1}}, d: {b: {c: 1}}}",
    "{a: {b: {c: {d: 1}}}}",
    "{a: {b: 1}, a: 2}",
    "{a: {b: 1, b: 2}}",
    '{a: "b\\n", c: 1}',
    '{a: {b: "}"}}',
    "{a: 1,b: 2}",
    "{a: 1, }",
    "{a: 1, b}",
    "{a: }",
    "{a: ~, b: null, c: .inf, d: .nan}",
    "{a:  1 }",
    "{a: b c - d, e: -f}",
    "{a: -}",
    "{a: - b}",
    "{a: b:c, d: e #f}",
    "{a: 1} # why",
    "{a: 1}, b: 2}",
    "{a: &b 1}",
    "{a: *b}",
    "{a: !!str b}",
    "{}",
    "{a: {}}",
    f"{{{'a' * 2000}: 1}}",
    f"{{a: {'9' * 99}, b: 007, c: +1, d: 1_000, e: 0x10}}",
]


@pytest.mark.parametrize("braces", IN_BRACES)
@pytest.mark.parametrize(
    "around",
    [
        "{}\n",
        "a: {}\n",
        "- {}\n- {}\n",
        "a:\n- b: {}\n  c:\n  - {}\n",
        "a: {}\na: {}\n",
        "a: {}\n  b\n",
        "a: {}\n: b\n",
        "? a: {}\n",
        "a: |\n  b: {}\nc: {}\n",
        'a: "\n  b: {}\n  "\nc: {}\n',
        "a: b\n  - {}\n",
        "# a: {}\nb: {}\n",
        "a: b {}\n",
        "a:{}\n",
        "a: b: {}\n",
        "- - {}\n",
        "? {}\n: a\n",
        "a: &b {}\n",
        "a: !!map {}\n",
        "[\n- {},\na: {}\n]\n",
        "{ a:\n  b: {}\n  }\n",
        "a: {}\r\nb: {}\n",
        "a: {}\u2028b: {}\n",
        "--- {}\n",
        "a: {}\n...\n---\nb: {}\n",
        "".join("  " * depth + "a:\n" for depth in range(13)) + 26 * " " + "a: {}\n",
        "".join("  " * depth + "a:\n" for depth in range(14)) + 28 * " " + "a: {}\n",
        "".join("  " * depth + "a:\n" for depth in range(16)) + 32 * " " + "a: {}\n",
    ],
)
def test_braces_on_one_line_mean_what_they_mean_to_yaml(parser, around, braces):
    for ending in ("...\n", "", f"# {plain._STAND_IN}\n...\n"):
        text = around.replace("{}", braces) + ending
        assert meaning(text, plain.parse) == meaning(text, by_yaml_alone)


def test_a_text_that_holds_the_stand_in_itself_keeps_its_meaning():
    text = f'a: |\n  {{b: 1}}\nc: "{plain._STAND_IN}"\n...\n'
    assert plain.parse(text) == {"a": "{b: 1}\n", "c": plain._STAND_IN}


def test_no_mistake_in_the_bytes_changes_what_braces_on_one_line_mean():
    draw = random.Random(1)
    entries = SHIPPED.partition("entries:\n")[2].removesuffix("...\n").split("\n\n")
    for start in [TEXT] * 200 + [f"{one[:2000]}}}\n...\n" for one in entries]:
        text = list(start)
        for _ in range(draw.randrange(1, 4)):
            text[draw.randrange(len(text))] = draw.choice(
                "{}[]:,&*!|>'\"%@`#-.?~0\n\t e\\U\x00\x85"
            )
        damaged = "".join(text)
        assert meaning(damaged, plain.parse) == meaning(damaged, by_yaml_alone)


def test_the_shipped_table_is_read_as_yaml_reads_it_and_nearly_all_of_it_without():
    assert meaning(SHIPPED, plain.parse) == meaning(SHIPPED, by_yaml_alone)
    skeleton, _ = plain._without_braces(SHIPPED)
    assert len(skeleton) < len(SHIPPED) / 8


def test_a_long_line_that_is_nearly_a_mapping_costs_no_more_than_its_length():
    for piece in ("a: b ", "a: {", "a: {}", "a: {b: {}, ", ", a: ", "aaaa", 'a: "b" ', "{", "a b "):
        text = "a: {" + piece * (10**6 // len(piece)) + "}"
        started = time.perf_counter()
        plain._without_braces(text)
        assert time.perf_counter() - started < 2, piece


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
    assert "expected at most 16 levels, found one more" in damage(opening * 17)
    # libyaml reads ahead, and newer ones (PyYAML 6.0.4) refuse what they see there themselves.
    assert re.search("at most 16 levels|maximum nesting depth", damage(opening * 100_000))


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
