from pathlib import Path

import pytest
from sample_tables import ENVIRONMENT, entry, table

from autogemm.database import dump_table
from autogemm.database.reading import table_from_text

FILE = Path("t.yaml")
TEXT = dump_table(table(entry()))


def problems_with(old, new, count=1, **options):
    """The problems of a table of two entries, the second one edited; the first is kept."""
    first, mark, second = dump_table(table(entry(7), entry())).rpartition("- problem:")
    assert old in second
    found, problems = table_from_text(
        first + mark + second.replace(old, new, count), FILE, **options
    )
    assert list(found.entries) == [entry(7).key]
    return problems


@pytest.mark.parametrize(
    ("old", "new", "path", "complaint"),
    [
        ("2.869", "fast", "choices.highest.graph.ratio", "a positive number, found 'fast'"),
        ("2.869", "0", "choices.highest.graph.ratio", "a positive number, found 0"),
        ("2.869", "true", "choices.highest.graph.ratio", "a positive number, found true"),
        ("2.869", "", "choices.highest.graph.ratio", "a positive number, found null"),
        ("2.869", "[1]", "choices.highest.graph.ratio", "a positive number, found a list"),
        ("327.1", "-327.1", "choices.highest.graph.us", "a positive number, found -327.1"),
        ("327.1", ".nan", "choices.highest.graph.us", "a positive number, found nan"),
        ("327.1", ".inf", "choices.highest.graph.us", "a positive number, found inf"),
        ("327.1", "1e999", "choices.highest.graph.us", "a positive number, found inf"),
        ("us: 327.1, ", "", "choices.highest.graph.us", "a value, found nothing"),
        (
            "rounds: 20",
            "rounds: 20.5",
            "choices.highest.graph.rounds",
            "an integer of at least 0, found 20.5",
        ),
        (
            "rounds: 20, runner_up: {",
            "rounds: 20, runner_up: {with: {}, ",
            "choices.highest.graph.runner_up.with",
            "a mapping, found the key twice",
        ),
        (
            "{form: through}",
            "{form: [a]}",
            "choices.highest.graph.with.form",
            "a number, text, true or false, found a list",
        ),
        (
            "{form: through}",
            "{form: .nan}",
            "choices.highest.graph.with.form",
            "a number, text, true or false, found nan",
        ),
        ("strategy: padded", "strategy: 7", "choices.highest.graph.strategy", "text, found 7"),
        ("graph: {", "graph: fast #", "choices.highest.graph", "a mapping with strategy, us,"),
        ("m: 4095", "m: 0", "problem.m", "an integer of at least 1, found 0"),
        ("m: 4095", "m: true", "problem.m", "an integer of at least 1, found true"),
        ("m: 4095", "m: 4095.0", "problem.m", "an integer of at least 1, found 4095.0"),
        (
            "m: 4095",
            f"m: {'9' * 99}",
            "problem.m",
            f"an integer of at least 1, found '{'9' * 56}...",
        ),
        ("m: 4095", "m: 4095, m: 1", "problem.m", "an integer of at least 1, found the key twice"),
        ("{m: 4095", "{batch: 0, m: 4095", "problem.batch", "an integer of at least 1, found 0"),
        ("{m: 4095", "{batch: x, m: 4095", "problem.batch", "an integer of at least 1, found 'x'"),
        ("dtype: bfloat16", "dtype: fp8", "problem.dtype", "one of float16, bfloat16, float32,"),
        ("a: row", "a: diagonal", "problem.a", "one of row, col, row-unaligned, col-unaligned,"),
        (
            "update: add",
            "update: maybe",
            "problem.update",
            "one of none, add, bias, inplace, found",
        ),
        ("2026-11-22", "2026-02-30", "date", "a date as YYYY-MM-DD, found '2026-02-30'"),
        ("2026-11-22", "yesterday", "date", "a date as YYYY-MM-DD, found 'yesterday'"),
        ("space: 91bd02aa", "space:", "space", "text, found null"),
        (
            ENVIRONMENT.id,
            "deadbeef",
            "environment",
            "an id out of the file's environments, found 'deadbeef'",
        ),
        ("error: 12.3", "error: -1", "measured[0].error", "a number of at least 0, found -1"),
        ("1.62e-07", "-1e-9", "measured[0].error_norm", "a number of at least 0, found -1e-09"),
        ("1.62e-07", ".nan", "measured[0].error_norm", "a number of at least 0, found nan"),
        ("1.62e-07", "small", "measured[0].error_norm", "a number of at least 0, found 'small'"),
        (
            "status: slow",
            "status: lazy",
            "measured[1].status",
            "one of ok, slow, unsupported, inaccurate, failed, found 'lazy'",
        ),
        (
            "workspace_bytes: 4096",
            "workspace_bytes: 1.5",
            "measured[1].workspace_bytes",
            "an integer of at least 0, found 1.5",
        ),
        ("measured:", "measured: 5\n  junk:", "junk", None),
    ],
)
def test_a_bad_value_drops_its_entry_and_is_named_by_its_path(old, new, path, complaint):
    (problem,) = problems_with(old, new)
    expected = f"expected {complaint}" if complaint else "unknown key; expected problem, "
    assert problem.startswith(f"t.yaml: entries[1].{path}: {expected}")


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (
            "ratio:",
            "ratoi:",
            "entries[1].choices.highest.graph.ratio: expected a value, found nothing",
        ),
        (
            "low: 2.850",
            "low: 2.9",
            "entries[1].choices.highest.graph.low: expected low up to high, found 2.9 above 2.88",
        ),
        (
            "highest:",
            "best:",
            "entries[1].choices.best: unknown key; expected highest, high, medium",
        ),
        (
            "graph:",
            "'gra ph':",
            "entries[1].choices.highest.'gra ph': unknown key; expected graph, eager",
        ),
        (
            "m: 4095",
            "m: 7",
            "entries[1]: repeats entries[0], bfloat16 7x512x256 (row x row -> row, add); "
            "the first is kept",
        ),
    ],
)
def test_other_slips_drop_their_entry_too(old, new, problem):
    assert problems_with(old, new) == [f"t.yaml: {problem}"]


@pytest.mark.parametrize("row", ["17", "null", "[]", "text"])
def test_an_entry_that_is_no_mapping_is_dropped(row):
    found, problems = table_from_text(TEXT.replace("entries:\n", f"entries:\n- {row}\n"), FILE)
    assert len(found.entries) == 1
    assert problems[0].startswith("t.yaml: entries[0]: expected a mapping with problem, ")


def test_a_choice_of_an_unknown_strategy_drops_its_entry():
    known = {"tf32", "addmm", "padded"}
    (problem,) = problems_with("padded", "foo", known_strategies=known)
    assert problem == (
        "t.yaml: entries[1].choices.highest.graph.strategy: "
        "unknown strategy 'foo'; known: addmm, padded, tf32"
    )


def test_unknown_strategies_among_the_evidence_go_missing_silently():
    text = TEXT.replace("runner_up: {strategy: padded", "runner_up: {strategy: foo")
    found, problems = table_from_text(text, FILE, {"padded", "addmm"})
    kept = found.entries[entry().key]
    assert problems == []
    assert [row.candidate.strategy for row in kept.measured] == ["addmm", "padded", "padded"]
    assert kept.choices["highest"]["graph"].runner_up is None
    assert kept.choices["highest"]["graph"].runner_up_ratio is None


def test_a_table_from_before_error_norms_is_read_without_them():
    text = TEXT.replace(", error_norm: 1.62e-07", "")
    assert text != TEXT
    found, problems = table_from_text(text, FILE)
    assert problems == []
    rows = found.entries[entry().key].measured
    assert [row.error_norm for row in rows] == [None] * len(rows)
    assert rows[0].error == 12.3


def test_any_strategy_is_taken_where_none_are_given_as_known():
    found, problems = table_from_text(TEXT.replace("padded", "foo"), FILE)
    assert problems == []
    assert found.entries[entry().key].choices["high"]["graph"].candidate.strategy == "foo"


def test_a_merge_key_is_a_key_like_any_other():
    assert "<<" in problems_with("space:", "<<: {}\n  space:")[0]


@pytest.mark.parametrize(
    ("given", "path"), [("with: null, ", ".with"), ("with: {a: [1]}, ", ".with.a")]
)
def test_a_strategy_seen_before_does_not_vouch_for_other_parameters(given, path):
    added = "  - {strategy: tf32, status: failed}\n  - {strategy: tf32, " + given + "error: 1}\n"
    [problem] = problems_with("...\n", added + "...\n")
    assert problem.startswith(f"t.yaml: entries[1].measured[5]{path}: expected a")
