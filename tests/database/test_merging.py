import multiprocessing
import threading
import warnings
from dataclasses import replace

import filelock
import pytest
from sample_tables import CHOICE, DEVICE, ENVIRONMENT, MEASURED, entry, table

from autogemm.database import (
    Environment,
    by_key,
    dump_table,
    merge_table,
    merging,
    read_table,
    write_table,
)
from autogemm.errors import DatabaseError, DatabaseWarning

NEWER = Environment(versions={**ENVIRONMENT.versions, "torch": "2.14.0"}, clocks={})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "t.yaml"


def merge(path, *entries, environment=ENVIRONMENT, **options):
    return merge_table(path, DEVICE, environment, entries, **options)


def kept(path):
    return sorted(p.name for p in path.parent.glob("*.kept-*"))


def test_the_first_merge_makes_the_file(path):
    assert merge(path, entry()) == table(entry(), path=path)
    assert read_table(path) == (table(entry(), path=path), [])


def test_entries_replace_those_of_their_key_and_leave_the_others(path):
    merge(path, entry(7, space="old"), entry(8))
    merge(path, entry(7, space="new"), entry(9))
    assert {e.problem.m: e.space for e in read_table(path)[0].entries.values()} == {
        7: "new",
        8: "91bd02aa",
        9: "91bd02aa",
    }


def test_measured_rows_are_merged_with_all_they_say(path):
    merge(path, entry(7))
    norms = (0.0, None, 3e-7, 1.0)
    rows = tuple(replace(r, error_norm=x) for r, x in zip(MEASURED, norms, strict=True))
    merge(path, entry(8, measured=rows))
    found = {e.problem.m: e.measured for e in read_table(path)[0].entries.values()}
    assert found == {7: MEASURED, 8: rows}


def test_merging_nothing_leaves_the_bytes_as_they_are(path):
    merge(path, entry())
    before = path.read_bytes()
    merge(path)
    assert path.read_bytes() == before


def test_an_environment_stays_as_long_as_an_entry_needs_it(path):
    merge(path, entry(7), entry(8))
    merge(path, entry(7, NEWER), environment=NEWER)
    assert set(read_table(path)[0].environments) == {ENVIRONMENT.id, NEWER.id}
    merge(path, entry(8, NEWER), environment=NEWER)
    assert set(read_table(path)[0].environments) == {NEWER.id}


def test_the_clocks_seen_last_stand(path):
    merge(path, entry())
    merge(path, entry(7), environment=replace(ENVIRONMENT, clocks={"sm_mhz": 1200}))
    assert read_table(path)[0].environments[ENVIRONMENT.id].clocks == {"sm_mhz": 1200}


def test_an_entry_of_an_environment_that_is_not_given_is_refused(path):
    merge(path, entry())
    before = path.read_bytes()
    with pytest.raises(DatabaseError, match="expected an id out of the file's environments"):
        merge(path, entry(7, NEWER))
    assert path.read_bytes() == before


@pytest.mark.parametrize("facts", [{"name": "Slide Rule 7"}, {"units": 66}])
def test_the_table_of_another_device_is_refused_and_both_are_named(path, facts):
    merge(path, entry())
    before = path.read_bytes()
    other = replace(DEVICE, **facts)
    ((name, here),) = facts.items()
    with pytest.raises(DatabaseError) as error:
        merge_table(path, other, ENVIRONMENT, [entry(7)])
    assert str(error.value) == (
        f"{path}: holds the results of another device: {DEVICE} there and {other} here "
        f"({name} {getattr(DEVICE, name)!r} there, {here!r} here). "
        "Write to another directory, or move the file away."
    )
    assert path.read_bytes() == before
    assert kept(path) == []


def test_installed_packages_make_no_other_device(path):
    merge(path, entry())
    merge_table(path, replace(DEVICE, packages=frozenset({"triton"})), ENVIRONMENT, [entry(7)])
    assert len(read_table(path)[0].entries) == 2


# ---------------------------------------------------------------- nothing tuned is ever lost


def test_a_damaged_file_is_kept_aside_before_it_is_written_anew(path):
    path.parent.mkdir()
    path.write_text("schema: [1\n")
    with pytest.warns(DatabaseWarning) as caught:
        merge(path, entry())
    assert (path.parent / "t.yaml.kept-1").read_text() == "schema: [1\n"
    assert read_table(path) == (table(entry(), path=path), [])
    (warning,) = caught
    assert str(warning.message).startswith(f"{path}: line 2, column 1: expected YAML, ")
    assert str(warning.message).endswith(f" The old file is kept as {path}.kept-1.")
    assert warning.filename == __file__


def test_a_file_with_damaged_entries_is_kept_aside_and_the_others_stay(path):
    write_table(path, table(entry(7), entry(8), entry(9)))
    old = path.read_text().replace("m: 7", "m: -7").replace("m: 9", "m: -9")
    path.write_text(old)
    with pytest.warns(DatabaseWarning, match=r"entries\[0\]\.problem\.m: .* \(and 1 more\)\. The "):
        merge(path, entry(10))
    assert (path.parent / "t.yaml.kept-1").read_text() == old
    assert sorted(e.problem.m for e in read_table(path)[0].entries.values()) == [8, 10]


def test_the_same_damage_is_kept_once_and_other_damage_beside_it(path):
    path.parent.mkdir()
    for content in ("a", "b", "a", "b", "c"):
        path.write_text(content)
        with pytest.warns(DatabaseWarning):
            merge(path, entry())
    assert kept(path) == ["t.yaml.kept-1", "t.yaml.kept-2", "t.yaml.kept-3"]
    assert [(path.parent / name).read_text() for name in kept(path)] == ["a", "b", "c"]


def test_a_sound_file_is_not_kept_aside(path):
    merge(path, entry())
    merge(path, entry(7))
    assert kept(path) == []


def test_the_table_of_a_later_schema_is_kept_aside(path):
    write_table(path, table(entry()))
    path.write_text(path.read_text().replace("schema: 1", "schema: 2"))
    with pytest.warns(DatabaseWarning, match="schema: expected 1, .* found 2"):
        merge(path, entry(7))
    assert "schema: 2" in (path.parent / "t.yaml.kept-1").read_text()


def test_choices_of_strategies_that_are_no_more_are_kept_aside(path):
    merge(path, entry())
    with pytest.warns(DatabaseWarning, match=r"unknown strategy 'padded'; known: addmm\. The old"):
        merge(path, known_strategies={"addmm"})
    assert read_table(path)[0].entries == {}
    assert kept(path) == ["t.yaml.kept-1"]


def test_unknown_strategies_stay_where_none_are_given_as_known(path):
    text = dump_table(table(entry())).replace("padded", "soroban")
    path.parent.mkdir()
    path.write_text(text)
    merge(path, entry(7))
    assert "soroban" in path.read_text()


def test_the_merge_is_done_even_if_warnings_are_errors(path):
    path.parent.mkdir()
    path.write_text("damaged")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DatabaseWarning):
            merge(path, entry())
    assert read_table(path)[0].entries == by_key([entry()])


def test_a_directory_in_place_of_the_file_is_an_error(path):
    path.mkdir(parents=True)
    with pytest.raises(OSError, match=r"t\.yaml"):
        merge(path, entry())


def test_entries_that_could_not_be_read_again_are_refused(path):
    merge(path, entry())
    before = path.read_bytes()
    bad = replace(CHOICE, ratio=float("nan"))
    with pytest.raises(DatabaseError, match=r"ratio: expected a positive number, found nan"):
        merge(path, entry(7, choices={"highest": {"graph": bad}}))
    assert path.read_bytes() == before


# ------------------------------------------------------------------------ several at a time


def merge_twenty(path, first, barrier):
    barrier.wait()
    for m in range(first, first + 20):
        merge(path, entry(m))


def test_two_processes_that_merge_at_once_lose_nothing(path):
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(2)
    both = [spawn.Process(target=merge_twenty, args=(path, m, barrier)) for m in (1, 101)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    found, problems = read_table(path)
    assert problems == []
    assert sorted(e.problem.m for e in found.entries.values()) == [*range(1, 21), *range(101, 121)]
    assert {p.name for p in path.parent.iterdir()} <= {"t.yaml", "t.yaml.lock"}


def test_two_threads_that_merge_at_once_lose_nothing(path):
    barrier = threading.Barrier(2)
    both = [threading.Thread(target=merge_twenty, args=(path, m, barrier)) for m in (1, 101)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join(60)
    assert len(read_table(path)[0].entries) == 40


def test_a_lock_that_is_never_released_is_an_error(path, monkeypatch):
    monkeypatch.setattr(merging, "LOCK_SECONDS", 0.05)
    path.parent.mkdir()
    with (
        filelock.FileLock(f"{path}.lock"),
        pytest.raises(DatabaseError, match=r"another process has held .*t\.yaml\.lock for"),
    ):
        merge(path, entry())
    assert not path.exists()
