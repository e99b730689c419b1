from dataclasses import replace

import pytest
import torch
from sample_tables import ENVIRONMENT, entry, problem

from autogemm.database import Environment, by_key, key_of


def test_a_key_holds_what_tells_entries_of_one_device_apart():
    facts = problem(3, 4, 5, a="col", update="inplace")
    assert key_of(facts) == (3, 4, 5, "bfloat16", "col", "row", "row", "inplace", 1)
    assert entry(problem=facts).key == key_of(facts)


@pytest.mark.parametrize(
    "other",
    [{"m": 9}, {"n": 9}, {"k": 9}, {"dtype": torch.float16}, {"a": "col"}, {"b": "col"},
     {"out": "row-unaligned"}, {"update": "none"}, {"batch": 2}],
)  # fmt: skip
def test_problems_that_differ_in_a_stored_fact_have_different_keys(other):
    assert key_of(replace(problem(3), **other)) != key_of(problem(3))


def test_an_environment_is_known_by_its_versions_alone():
    reordered = Environment(versions=dict(reversed(ENVIRONMENT.versions.items())), clocks={})
    newer = Environment(versions={**ENVIRONMENT.versions, "torch": "2.14.0"}, clocks={})
    assert reordered.id == ENVIRONMENT.id == "7a2604cb"
    assert newer.id != ENVIRONMENT.id


def test_of_two_entries_with_one_key_the_later_stays():
    assert by_key([entry(space="old"), entry(space="new")])[entry().key].space == "new"
