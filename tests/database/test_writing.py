import math
import os
import random
import re
import stat
from dataclasses import replace

import pytest
import torch
import yaml
from sample_tables import ADDMM, CHOICE, DEVICE, ENVIRONMENT, MEASURED, entry, problem, table

from autogemm.database import Environment, Measured, dump_table, read_table, write_table
from autogemm.database.reading import table_from_text
from autogemm.errors import DatabaseError
from autogemm.problem import DTYPES, LAYOUTS, UPDATES
from autogemm.strategies.base import Candidate

TEXT = """\
# How fast each way to compute a matrix product is on one device: measured and written by
# scripts/tune.py. Do not edit by hand; tune again. docs/table-format.md explains every field.
schema: 1
device:
  type: cuda
  name: Abacus 3000 PCIe
  capability: [9, 0]
  units: 132
  cache_bytes: 52428800
  memory_bytes: 85899345920
  features: [beads]
environments:
  ENVIRONMENT:
    versions: {cublas: "13.1.0.3", cuda: "13.0", torch: "2.13.0"}
    clocks: {memory_mhz: 2619, sm_mhz: 1980}
entries:

- problem: {m: 4095, n: 512, k: 256, dtype: bfloat16, a: row, b: row, out: row, update: add}
  environment: ENVIRONMENT
  date: 2026-11-22
  space: 91bd02aa
  choices:
    highest:
      graph: CHOICE
      eager: {strategy: addmm, with: {reduced: false}, us: 331, baseline_us: 938.6, ratio: 2.869, \
low: 2.850, high: 2.880, rounds: 20}
    high:
      graph: CHOICE
  measured:
  - {strategy: addmm, with: {reduced: false}, graph_us: 938.6, eager_us: 941, error: 12.3, \
error_norm: 1.62e-07}
  - {strategy: padded, with: {form: fused}, status: slow, graph_us: 1400, workspace_bytes: 4096}
  - {strategy: padded, with: {form: through}, graph_us: 327.1, eager_us: 331, error: 0}
  - {strategy: tf32, status: unsupported, note: "no tensor cores: a test"}
...
""".replace("ENVIRONMENT", ENVIRONMENT.id).replace(
    "CHOICE",
    "{strategy: padded, with: {form: through}, us: 327.1, baseline_us: 938.6, ratio: 2.869, "
    "low: 2.850, high: 2.880, rounds: 20, "
    "runner_up: {strategy: padded, with: {form: fused}, ratio: 2.801}}",
)


def read_text(text, path="t.yaml"):
    found, problems = table_from_text(text, path)
    assert problems == []
    return found


def random_table(seed):
    """A table of random values of every legal kind, some of them extreme."""
    draw = random.Random(seed)

    def number():
        return draw.choice([draw.random(), 10 ** draw.uniform(-9, 12), 0.09996, 0.9996, 99995.0])

    def parameter():
        words = ["yes", "1e5", "no way", "0x1f", "ä: {b}", "a #b", "-", "12", "null", "a, b"]
        return draw.choice([draw.random(), 1e-7, 1e22, -3, 2**53, True, False, *words])

    def candidate():
        params = {f"p{i}": parameter() for i in range(draw.randrange(4))}
        return Candidate.of(draw.choice(["addmm", "half", "ksplit"]), **params)

    def choice():
        low, high = sorted((number(), number()))
        runner_up = draw.choice([None, candidate()])
        return replace(
            CHOICE,
            candidate=candidate(),
            us=number(),
            baseline_us=number(),
            ratio=number(),
            low=low,
            high=high,
            rounds=draw.randrange(99),
            runner_up=runner_up,
            runner_up_ratio=runner_up and number(),
        )

    def row():
        return Measured(
            candidate=candidate(),
            status=draw.choice(["ok", "slow", "inaccurate"]),
            graph_us=draw.choice([None, number()]),
            eager_us=draw.choice([None, number()]),
            error=draw.choice([None, 0.0, number()]),
            error_norm=draw.choice([None, 0.0, number()]),
            workspace_bytes=draw.randrange(9),
            note="".join(chr(draw.choice([9, 10, 34, 92, 133, 0x2028, 0xFEFF, 0x1F600, 0, 65]))
                         for _ in range(draw.randrange(5))),
        )  # fmt: skip

    def made():
        facts = {name: draw.choice(LAYOUTS) for name in ("a", "b", "out")}
        facts["dtype"] = draw.choice(list(DTYPES.values()))
        facts["batch"] = draw.choice([1, 1, 12])
        return entry(
            problem=problem(draw.randrange(1, 99), update=draw.choice(UPDATES), **facts),
            choices={"highest": {"eager": choice(), "graph": choice()}, "medium": {}},
            measured=tuple(row() for _ in range(5)),
        )

    return table(*(made() for _ in range(20)))


def test_a_table_is_spelt_for_people():
    assert dump_table(table(entry())) == TEXT


def test_what_is_read_back_is_what_was_written(tmp_path):
    write_table(tmp_path / "t.yaml", table(entry()))
    assert read_table(tmp_path / "t.yaml") == (table(entry(), path=tmp_path / "t.yaml"), [])


def test_a_batch_is_written_where_there_is_one_and_read_back(tmp_path):
    made = table(entry(problem=problem(8, batch=12)), entry(problem=problem(8)))
    text = dump_table(made)
    single, batch = (line for line in text.splitlines() if line.startswith("- problem"))
    assert single.startswith("- problem: {m: 8, ")
    assert batch == single.replace("{m: 8,", "{batch: 12, m: 8,")
    write_table(tmp_path / "t.yaml", made)
    assert read_table(tmp_path / "t.yaml")[0].entries == made.entries


@pytest.mark.parametrize("seed", range(20))
def test_reading_and_writing_again_changes_no_byte(seed):
    text = dump_table(random_table(seed))
    assert dump_table(read_text(text)) == text


@pytest.mark.parametrize("seed", range(5))
def test_any_yaml_reader_sees_the_same_values(seed):
    made = random_table(seed)
    theirs = yaml.safe_load(dump_table(made))
    ours = read_text(dump_table(made))
    for row, (key, ours_entry) in zip(theirs["entries"], ours.entries.items(), strict=True):
        spelt = row["problem"]
        assert (*(v for name, v in spelt.items() if name != "batch"), spelt.get("batch", 1)) == key
        assert [r.get("note", "") for r in row["measured"]] == [r.note for r in ours_entry.measured]
        assert [r.get("with", {}) for r in row["measured"]] == [
            r.candidate.kwargs for r in ours_entry.measured
        ]
        for field in ("graph_us", "error", "error_norm"):
            assert [r.get(field) for r in row["measured"]] == [
                getattr(r, field) for r in ours_entry.measured
            ]


def test_the_order_that_content_came_in_does_not_show():
    shuffled = entry(
        choices=dict(reversed(entry().choices.items())), measured=tuple(reversed(MEASURED))
    )
    environment = Environment(
        versions=dict(reversed(ENVIRONMENT.versions.items())),
        clocks=dict(reversed(ENVIRONMENT.clocks.items())),
    )
    there = replace(table(entry(7), shuffled), environments={environment.id: environment})
    assert dump_table(there) == dump_table(table(entry(), entry(7)))


def test_entries_stand_by_dtype_then_update_then_layouts_then_extents():
    order = [
        problem(1, dtype=torch.float16),
        problem(1, update="none"),
        problem(1),
        problem(2),
        problem(10),
        problem(1, b="row-unaligned"),
        problem(1, update="inplace"),
        problem(1, dtype=torch.float64),
    ]
    text = dump_table(table(*(entry(problem=p) for p in reversed(order))))
    assert [e.problem for e in read_text(text).entries.values()] == order


def test_parameters_keep_their_type_and_every_digit():
    params = {"a": 1, "b": 1.0, "c": True, "d": "1", "e": "true", "f": 0.1 + 0.2, "g": 1e-300}
    row = Measured(candidate=Candidate.of("half", **params), status="ok")
    back = read_text(dump_table(table(entry(measured=(row,))))).entries[entry().key]
    assert repr(back.measured[0].candidate) == repr(row.candidate)


def test_small_ratios_keep_three_digits():
    choice = replace(CHOICE, runner_up_ratio=0.000123456)
    text = dump_table(table(entry(choices={"high": {"graph": choice}})))
    assert "runner_up: {strategy: padded, with: {form: fused}, ratio: 0.000123}" in text


@pytest.mark.parametrize("error", [math.inf, math.nan])
def test_an_error_that_is_not_finite_leaves_only_the_status(error):
    row = Measured(candidate=ADDMM, status="inaccurate", error=error, error_norm=error)
    text = dump_table(table(entry(measured=(row,))))
    assert "- {strategy: addmm, with: {reduced: false}, status: inaccurate}\n" in text
    read_text(text)


def test_any_note_can_be_written_and_read():
    note = 'a "b" \\ # {c: d}\n\t\x00\x85\u2028\ufeff\U0001f600 ' + "long " * 2000
    row = Measured(candidate=ADDMM, status="failed", note=note)
    back = read_text(dump_table(table(entry(measured=(row,)))))
    assert back.entries[entry().key].measured[0].note == note


def test_ids_that_look_like_numbers_are_read_as_text_by_any_yaml_reader():
    made = [Environment(versions={"torch": str(i)}, clocks={}) for i in range(300)]
    assert any(environment.id.isdigit() for environment in made)
    assert any(re.fullmatch(r"[0-9]+e[0-9]+", environment.id) for environment in made)
    entries = [entry(i + 1, environment) for i, environment in enumerate(made)]
    text = dump_table(replace(table(*entries), environments={e.id: e for e in made}))
    theirs = yaml.safe_load(text)
    assert set(theirs["environments"]) == {environment.id for environment in made}
    assert [row["environment"] for row in theirs["entries"]] == [e.id for e in made]
    assert len(read_text(text).entries) == 300


def test_half_a_surrogate_pair_in_a_note_becomes_a_replacement_character():
    row = Measured(candidate=ADDMM, status="failed", note="bad \udc80 name")
    back = read_text(dump_table(table(entry(measured=(row,)))))
    assert back.entries[entry().key].measured[0].note == "bad \N{REPLACEMENT CHARACTER} name"


def test_an_empty_table_can_be_written_and_read():
    empty = replace(table(), environments={})
    assert read_text(dump_table(empty)).entries == {}


def test_an_entry_of_another_kind_of_device_is_refused():
    stray = entry(problem=problem(4, device_type="cpu"))
    with pytest.raises(DatabaseError, match=r"on cpu does not belong into the table of Abacus"):
        dump_table(table(stray))


# ------------------------------------------------------------------------------- the file


@pytest.mark.parametrize(
    ("choice", "complaint"),
    [
        (replace(CHOICE, us=math.nan), r"graph\.us: expected a positive number, found nan"),
        (replace(CHOICE, us=math.inf), r"graph\.us: expected a positive number, found inf"),
        (replace(CHOICE, baseline_us=-1.0), r"graph\.baseline_us: .* found -1"),
        (replace(CHOICE, low=9.0), r"graph\.low: expected low up to high, found 9 above 2\.88"),
    ],
)
def test_what_could_not_be_read_again_is_not_written(tmp_path, choice, complaint):
    path = tmp_path / "t.yaml"
    write_table(path, table(entry()))
    with pytest.raises(DatabaseError, match=rf"not written, .*entries\[0\].*{complaint}"):
        write_table(path, table(entry(choices={"highest": {"graph": choice}})))
    assert path.read_text() == TEXT


def test_an_entry_of_an_unknown_environment_is_not_written(tmp_path):
    stray = entry(environment=Environment(versions={"torch": "1"}, clocks={}))
    with pytest.raises(DatabaseError, match="an id out of the file's environments"):
        write_table(tmp_path / "t.yaml", table(stray))
    assert list(tmp_path.iterdir()) == []


def test_missing_directories_are_made(tmp_path):
    write_table(tmp_path / "a" / "b" / "t.yaml", table(entry()))
    assert (tmp_path / "a" / "b" / "t.yaml").read_bytes() == TEXT.encode()


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("failure", [OSError("disk full"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, step, failure):
    path = tmp_path / "t.yaml"
    write_table(path, table(entry()))

    def fail(*_):
        raise failure

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(type(failure)):
        write_table(path, table(entry(7)))
    assert path.read_text() == TEXT
    assert list(tmp_path.iterdir()) == [path]


def test_the_content_is_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    steps = []
    sync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (steps.append("sync"), sync(handle)))
    monkeypatch.setattr(os, "replace", lambda *names: (steps.append("rename"), rename(*names)))
    write_table(tmp_path / "t.yaml", table(entry()))
    assert steps[:2] == ["sync", "rename"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX modes")
def test_an_existing_file_keeps_its_mode_and_a_new_one_follows_the_umask(tmp_path):
    path = tmp_path / "t.yaml"
    old = os.umask(0o027)
    try:
        write_table(path, table(entry()))
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.chmod(0o664)
    write_table(path, table(entry(7)))
    assert stat.S_IMODE(path.stat().st_mode) == 0o664


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need rights there")
def test_a_symbolic_link_is_followed(tmp_path):
    (tmp_path / "link.yaml").symlink_to(tmp_path / "real.yaml")
    write_table(tmp_path / "link.yaml", table(entry()))
    assert (tmp_path / "link.yaml").is_symlink()
    assert (tmp_path / "real.yaml").read_text() == TEXT


def test_a_device_name_with_odd_characters_survives():
    odd = replace(DEVICE, name='GPU: "x" #1, {β} ', features=("yes", "1.0"))
    assert read_text(dump_table(replace(table(), device=odd))).device == odd
