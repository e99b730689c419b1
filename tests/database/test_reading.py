import os
import random
from pathlib import Path

import pytest
from sample_tables import DEVICE, ENVIRONMENT, entry, table

from autogemm.database import dump_table, read_table, reading
from autogemm.database.reading import table_from_text
from autogemm.errors import DatabaseError

FILE = Path("t.yaml")
TEXT = dump_table(table(entry()))


def damage(text):
    with pytest.raises(DatabaseError) as error:
        table_from_text(text, FILE)
    return str(error.value)


def test_an_environment_whose_id_its_versions_do_not_have_is_dropped_with_its_entries():
    found, problems = table_from_text(TEXT.replace('"13.0"', '"12.9"'), FILE)
    assert found.entries == {}
    assert problems[0].startswith(f"t.yaml: environments.{ENVIRONMENT.id}: expected the id ")
    assert problems[1].startswith("t.yaml: entries[0].environment: expected an id out of")


@pytest.mark.parametrize("bad", ["torch: 2.13", "torch: {}", "sm_mhz: -1", "sm_mhz: fast"])
def test_a_bad_value_in_an_environment_is_named_by_its_path(bad):
    key = bad.split(":")[0]
    text = TEXT.replace('torch: "2.13.0"', bad).replace("sm_mhz: 1980", bad)
    _, problems = table_from_text(text, FILE)
    assert any(key in problem.split(": expected ")[0] for problem in problems)


# --------------------------------------------------------------- the file itself is damaged


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("schema: 1", "schema: 2", "schema: expected 1, the schema this version"),
        ("schema: 1", "schema: true", "schema: expected 1, the schema this version"),
        (
            "schema: 1",
            "",
            "schema: expected 1, the schema this version of autogemm reads, found no",
        ),
        ("schema: 1", "schema: 1\nschema: 1", "found the key twice"),
        ("schema: 1", "schema: 1\nextra: 2", "extra: unknown key; expected schema, device,"),
        ("type: cuda", "type: abacus", "device.type: expected one of cuda, cpu, found 'abacus'"),
        ("units: 132", "units: many", "device.units: expected an integer of at least 1, found 'm"),
        ("units: 132", "unit: 132", "device.units: expected a value, found nothing"),
        ("[9, 0]", "9.0", "device.capability: expected a list, found 9.0"),
        ("[9, 0]", "[9]", "device.capability: expected two integers, found a list"),
        ("[9, 0]", "[9, x]", "device.capability[1]: expected an integer of at least 0, found 'x'"),
        ("entries:\n", "entries: 5\nrest:\n", "rest: unknown key"),
        ("environments:\n", "environments: []\nrest:\n", "rest: unknown key"),
        ("...\n", "...\n---\na: 1\n", "expected nothing after '...', found another document"),
        ("...\n", "", "expected '...' as the last line, found the end of a truncated file"),
        ("features: [beads]", "features: [beads", "line 12, column 13: expected YAML, "),
        ("  units:", "\tunits:", "line 8, column 1: expected YAML, "),
        ("name: Aba", "name: \x07", "expected YAML, "),
    ],
)
def test_damage_to_the_whole_file_is_an_error_with_file_and_place(parser, old, new, complaint):
    message = damage(TEXT.replace(old, new))
    assert message.startswith("t.yaml: ")
    assert complaint in message
    assert message.endswith("move it away and run scripts/tune.py.")


@pytest.mark.parametrize("text", ["", "\n# nothing\n"])
def test_an_empty_file_is_an_error(text):
    assert "expected a table, found an empty file" in damage(text)


@pytest.mark.parametrize("text", ["[]\n...\n", "fast\n...\n", "5\n...\n"])
def test_a_file_that_is_no_mapping_is_an_error(text):
    assert "expected a mapping with schema, device, environments and entries" in damage(text)


def test_a_file_cut_anywhere_is_an_error(parser):
    text = dump_table(table(entry(measured=(), choices={}))).rstrip("\n")
    for length in range(len(text)):
        damage(text[:length])


# --------------------------------------------------------------------------- the way to it


def test_a_file_is_read_whatever_its_line_ends_and_byte_order_mark(tmp_path):
    path = tmp_path / "t.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode())
    assert read_table(path) == (table(entry(), path=path), [])


def test_a_missing_file_is_an_error_that_says_so(tmp_path):
    with pytest.raises(DatabaseError, match=r"t\.yaml: cannot be read: No such file"):
        read_table(tmp_path / "t.yaml")


def test_a_directory_in_place_of_a_file_is_an_error(tmp_path):
    with pytest.raises(DatabaseError, match="expected a file, found a directory"):
        read_table(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are POSIX")
def test_a_pipe_in_place_of_a_file_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "t.yaml")
    with pytest.raises(DatabaseError, match="expected a file, found a special file"):
        read_table(tmp_path / "t.yaml")


def test_a_file_that_may_not_be_read_is_an_error(tmp_path):
    path = tmp_path / "t.yaml"
    path.write_text(TEXT)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(DatabaseError, match=r"t\.yaml: cannot be read: Permission denied"):
        read_table(path)


@pytest.mark.parametrize(
    "content",
    [b"\x80\x81" * 99, random.Random(0).randbytes(999) + b"\xff", TEXT.encode("utf-16")],
    ids=["no text", "noise", "UTF-16"],
)
def test_binary_garbage_is_an_error(tmp_path, content):
    path = tmp_path / "t.yaml"
    path.write_bytes(content)
    with pytest.raises(DatabaseError, match=r"t\.yaml: expected UTF-8 text, found other bytes at"):
        read_table(path)


def test_a_file_over_the_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MAX_BYTES", 100)
    path = tmp_path / "t.yaml"
    path.write_text(TEXT)
    with pytest.raises(DatabaseError, match="expected at most 100 bytes, found a larger file"):
        read_table(path)


def test_a_device_is_read_as_it_was(tmp_path):
    assert table_from_text(TEXT, FILE)[0].device == DEVICE


def test_the_example_in_the_documentation_is_a_table_as_it_would_be_written():
    text = (Path(__file__).parents[2] / "docs" / "table-format.md").read_text()
    example = text.partition("```yaml\n")[2].partition("```")[0]
    found, problems = table_from_text(example, FILE)
    assert problems == []
    assert dump_table(found).endswith(example)
