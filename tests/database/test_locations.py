import os
from dataclasses import replace
from pathlib import Path

import platformdirs
import pytest
from sample_tables import DEVICE

from autogemm.database import (
    locations,
    search_path,
    table_files,
    table_path,
    write_directory,
)


@pytest.fixture(autouse=True)
def user(monkeypatch, tmp_path):
    """No variable is set, and the user's data directory lies in a temporary place."""
    monkeypatch.delenv(locations.VARIABLE, raising=False)
    monkeypatch.setattr(
        platformdirs, "user_data_path", lambda name, appauthor: tmp_path / "data" / name
    )
    return tmp_path / "data" / "autogemm" / "tuning_db"


@pytest.fixture
def checkout(monkeypatch, tmp_path):
    """The package as a source checkout holds it."""
    (tmp_path / "source" / "tuning_db").mkdir(parents=True)
    (tmp_path / "source" / "pyproject.toml").touch()
    monkeypatch.setattr(locations, "_PACKAGE", tmp_path / "source" / "autogemm")
    return tmp_path / "source" / "tuning_db"


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """The package as a wheel installs it."""
    package = tmp_path / "site-packages" / "autogemm"
    (package / "tuning_db").mkdir(parents=True)
    monkeypatch.setattr(locations, "_PACKAGE", package)
    return package / "tuning_db"


def test_the_users_tables_come_before_the_shipped_ones(installed, user):
    assert search_path() == [user, installed]


def test_a_checkout_reads_the_tables_beside_the_package(checkout, user):
    assert search_path() == [user, checkout]


def test_the_variable_comes_first_and_may_name_several_places(monkeypatch, installed, user):
    places = [Path("/a"), Path("/b/t.yaml")]
    monkeypatch.setenv(locations.VARIABLE, os.pathsep.join(["/a", "", "/b/t.yaml"]))
    assert search_path() == [*places, user, installed]


def test_an_empty_variable_counts_as_none(monkeypatch, installed, user):
    monkeypatch.setenv(locations.VARIABLE, "")
    assert search_path() == [user, installed]
    assert write_directory() == user


def test_places_are_absolute_and_home_is_expanded(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.setenv(locations.VARIABLE, os.pathsep.join(["here", "~/there"]))
    assert search_path()[:2] == [tmp_path / "here", tmp_path / "home" / "there"]


def test_a_place_is_searched_once(monkeypatch, checkout, user):
    monkeypatch.setenv(locations.VARIABLE, str(checkout))
    assert search_path() == [checkout, user]


def test_the_tuner_writes_where_the_variable_points_first(monkeypatch, checkout):
    monkeypatch.setenv(locations.VARIABLE, os.pathsep.join(["/a", "/b"]))
    assert write_directory() == Path("/a")


def test_the_tuner_writes_into_a_checkout(checkout):
    assert write_directory() == checkout


def test_the_tuner_writes_to_the_user_where_the_checkout_is_read_only(monkeypatch, checkout, user):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert write_directory() == user


def test_the_tuner_never_writes_into_an_installed_package(installed, user):
    assert write_directory() == user


def test_a_stray_pyproject_beside_an_installed_package_makes_no_checkout(installed, user):
    (installed.parents[1] / "pyproject.toml").touch()
    assert search_path() == [user, installed]


def test_this_very_package_finds_its_shipped_tables():
    assert search_path()[-1].name == "tuning_db"


def test_the_tables_of_a_directory_are_its_yaml_files_by_name(tmp_path):
    for name in (
        "b.yaml",
        "a.yaml",
        "a.yaml.kept-1",
        "a.yaml.lock",
        ".c.yaml",
        "d.yml",
        "README.md",
    ):
        (tmp_path / name).touch()
    (tmp_path / "e.yaml").mkdir()
    assert table_files(tmp_path) == [tmp_path / "a.yaml", tmp_path / "b.yaml"]


def test_a_place_may_be_a_single_file(tmp_path):
    (tmp_path / "t.yaml").touch()
    assert table_files(tmp_path / "t.yaml") == [tmp_path / "t.yaml"]
    assert table_path(tmp_path / "t.yaml", DEVICE) == tmp_path / "t.yaml"


def test_a_place_that_does_not_exist_has_no_tables(tmp_path):
    assert table_files(tmp_path / "none") == []
    assert table_files(tmp_path / "none.yaml") == []


def test_a_table_is_named_after_its_device(tmp_path):
    cpu = replace(DEVICE, type="cpu", units=8)
    assert table_path(tmp_path, DEVICE) == tmp_path / "abacus-3000-pcie.yaml"
    assert table_path(tmp_path, cpu) == tmp_path / "cpu-abacus-3000-pcie-8-threads.yaml"


def test_a_directory_may_be_named_like_a_file(tmp_path):
    (tmp_path / "x.yaml").mkdir()
    assert table_path(tmp_path / "x.yaml", DEVICE) == tmp_path / "x.yaml" / "abacus-3000-pcie.yaml"
