"""Presets that are legal and varied, and files of shapes, good and bad."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from autogemm.database import key_of
from autogemm.device import Device
from autogemm.errors import InvalidProblem
from autogemm.problem import DTYPES, LAYOUTS, UPDATES, Problem, contiguous_problem
from autogemm.shapes import read_shapes
from autogemm.strategies import BY_NAME, baseline
from autogemm.workloads import PRESETS, Workload, levels_of, preset

DEVICES = {
    "cuda": Device(type="cuda", name="Example GPU", capability=(9, 0)),
    "cpu": Device(type="cpu", name="Example CPU"),
}
ON_EACH = pytest.mark.parametrize("device_type", ["cuda", "cpu"])


# ----------------------------------------------------------------------------------- presets


@ON_EACH
@pytest.mark.parametrize("name", PRESETS)
def test_every_problem_of_a_preset_is_legal_and_stands_there_once(
    name: str, device_type: str
) -> None:
    workloads = preset(name, device_type)
    assert workloads
    keys = Counter(key_of(w.problem) for w in workloads)
    assert max(keys.values()) == 1
    device = DEVICES[device_type]
    for workload in workloads:
        problem = workload.problem
        assert workload.count == 1
        assert min(problem.m, problem.n, problem.k) >= 1
        assert problem.device_type == device_type
        assert problem.dtype in DTYPES.values()
        assert {problem.a, problem.b, problem.out} <= set(LAYOUTS)
        assert problem.update in UPDATES
        for level in levels_of(problem):
            candidate = baseline(problem, level)
            strategy = BY_NAME[candidate.strategy]
            assert strategy.reasons_not(problem, device, candidate.kwargs) == []


def test_the_full_preset_of_a_gpu_has_at_least_150_problems_of_every_kind() -> None:
    problems = [w.problem for w in preset("full", "cuda")]
    assert len({key_of(p) for p in problems}) >= 150
    assert {p.dtype for p in problems} >= {
        torch.float32, torch.bfloat16, torch.float16, torch.float64,
    }  # fmt: skip
    assert {p.update for p in problems} == set(UPDATES)
    assert {p.a.split("-")[0] for p in problems} == {p.b.split("-")[0] for p in problems}
    assert any(p.a.endswith("unaligned") for p in problems)
    assert any(p.k >= 100 * p.m and p.k >= 100 * p.n for p in problems), "no long k"
    assert any(p.m >= 100 * p.n for p in problems), "nothing tall"
    assert any(p.m == 1 for p in problems), "no single row"
    kinds = {(p.dtype, p.update, p.a, p.b) for p in problems}
    assert len(kinds) >= 15


@ON_EACH
def test_the_full_preset_holds_all_the_others(device_type: str) -> None:
    full = {key_of(w.problem) for w in preset("full", device_type)}
    for name in PRESETS:
        assert {key_of(w.problem) for w in preset(name, device_type)} <= full


@ON_EACH
def test_presets_hold_batches_as_attention_makes_them(device_type: str) -> None:
    batches = [w.problem for w in preset("llm", device_type) if w.problem.batch > 1]
    assert {p.dtype for p in batches} >= {torch.float32, torch.bfloat16}
    assert all(p.update == "none" for p in batches)
    scores = [p for p in batches if p.k < p.m]
    assert {(p.b, p.n) for p in scores} == {("col", p.m) for p in scores}
    values = [p for p in batches if p.k == p.m]
    assert {p.b for p in values} == {"row"}
    assert [(p.batch, p.n) for p in values] == [(p.batch, p.k) for p in scores]


def test_the_quick_preset_is_a_small_part_of_everything() -> None:
    assert 5 <= len(preset("quick", "cuda")) <= 60
    assert len({w.problem.dtype for w in preset("quick", "cuda")}) >= 4


def test_no_problem_of_a_preset_needs_more_memory_than_a_common_gpu_has() -> None:
    for workload in preset("full", "cuda"):
        assert workload.problem.min_bytes < 16 * 2**30


@ON_EACH
def test_an_unknown_preset_is_refused_by_name(device_type: str) -> None:
    with pytest.raises(InvalidProblem, match=r"preset is 'tiny'; expected one of quick, llm"):
        preset("tiny", device_type)


def test_levels_are_those_at_which_answers_may_differ() -> None:
    def levels(dtype: torch.dtype, device_type: str = "cuda") -> tuple[str, ...]:
        return levels_of(contiguous_problem(8, 8, 8, dtype, device_type=device_type))

    assert levels(torch.float32) == ("highest", "high", "medium")
    assert levels(torch.float32, "cpu") == ("highest", "high", "medium")
    assert levels(torch.bfloat16) == ("highest", "high")
    assert levels(torch.bfloat16, "cpu") == ("highest",)
    for dtype in (torch.float64, torch.complex64, torch.complex128):
        assert levels(dtype) == ("highest",)


# --------------------------------------------------------------------------- files of shapes


def write(folder: Path, text: str, name: str = "shapes.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


GOOD_YAML = """
# what a program multiplies
- {m: 128, n: 256, k: 512}
- {m: 64, n: 64, k: 1000, dtype: bfloat16, layout: nt, update: inplace, count: 7}
- m: 3
  n: 4
  k: 5
  layout: tt
  update: none
"""
GOOD_CSV = """m, n, k, dtype, layout, update, count
128, 256, 512
64, 64, 1000, bfloat16, nt, inplace, 7
3, 4, 5, , tt, none,
"""


@ON_EACH
@pytest.mark.parametrize(
    ("text", "name"),
    [(GOOD_YAML, "s.yaml"), (GOOD_YAML, "s.txt"), (GOOD_CSV, "s.csv"), (GOOD_CSV, "s.CSV"),
     (GOOD_CSV.replace(", ", ","), "s.csv"), (GOOD_CSV.replace("\n", "\r\n"), "s.csv")],
)  # fmt: skip
def test_a_file_of_shapes_is_read_with_its_defaults(
    tmp_path: Path, text: str, name: str, device_type: str
) -> None:
    def problem(m: int, n: int, k: int, dtype: torch.dtype, **facts: str) -> Problem:
        return contiguous_problem(m, n, k, dtype, device_type=device_type, **facts)  # type: ignore[arg-type]

    assert list(read_shapes(write(tmp_path, text, name), device_type).workloads) == [
        Workload(problem(128, 256, 512, torch.float32)),
        Workload(problem(64, 64, 1000, torch.bfloat16, b="col", update="inplace"), 7),
        Workload(problem(3, 4, 5, torch.float32, a="col", b="col", update="none")),
    ]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("update", UPDATES)
def test_every_dtype_and_update_can_be_asked_for(tmp_path: Path, dtype: str, update: str) -> None:
    path = write(tmp_path, f"- {{m: 2, n: 3, k: 4, dtype: {dtype}, update: {update}}}\n")
    (workload,) = read_shapes(path, "cuda").workloads
    assert workload.problem.dtype == DTYPES[dtype]
    assert workload.problem.update == update


@ON_EACH
@pytest.mark.parametrize("name", ["s.yaml", "s.csv"])
def test_a_batch_is_a_column_of_its_own(tmp_path: Path, name: str, device_type: str) -> None:
    text = "- {m: 3, n: 4, k: 5, batch: 12}\n- {m: 3, n: 4, k: 5}\n- {m: 3, n: 4, k: 5, batch: 1}\n"
    if name == "s.csv":
        text = "m,n,k,batch\n3,4,5,12\n3,4,5,\n3,4,5,1\n"
    single = contiguous_problem(3, 4, 5, torch.float32, device_type=device_type)
    assert read_shapes(write(tmp_path, text, name), device_type).workloads == (
        Workload(replace(single, batch=12)),
        Workload(single, 2),
    )


BAD_YAML = {
    "": "expected a list of problems, each with m, n and k, found nothing",
    "# nothing\n": "found nothing",
    "[]": "found nothing",
    "m: 1\nn: 2\nk: 3\n": "expected a list of problems, each with m, n and k, found a mapping",
    "just words": "found 'just words'",
    "- {m: 1, n: 2, k: [": "is not YAML",
    "- [1, 2, 3]": "problem 1: expected a mapping with m, n and k, found a list",
    "- {m: 1, n: 2, k: 3}\n- null": "problem 2: expected a mapping with m, n and k, found null",
    "- {m: 1, n: 2}": "problem 1: k must be a positive integer.*, found nothing",
    "- {m: 0, n: 2, k: 3}": "m must be a positive integer.*, found 0",
    "- {m: -1, n: 2, k: 3}": "m must be a positive integer.*, found -1",
    "- {m: 1.5, n: 2, k: 3}": "m must be a positive integer.*, found 1.5",
    "- {m: true, n: 2, k: 3}": "m must be a positive integer.*, found true",
    "- {m: many, n: 2, k: 3}": "m must be a positive integer.*, found 'many'",
    "- {m: '²', n: 2, k: 3}": "m must be a positive integer.*, found '²'",
    "- {m: 2026-13-45, n: 2, k: 3}": "m must be a positive integer.*, found '2026-13-45'",
    "- {m: 1, n: 2, k: 3, count: 0}": "count must be a positive integer.*, found 0",
    "- {m: 1, n: 2, k: 3, batch: 0}": "batch must be a positive integer.*, found 0",
    "- {m: 1, n: 2, k: 3, dtype: float8}": "dtype must be one of float16, bfloat16, float32",
    "- {m: 1, n: 2, k: 3, dtype: [float32]}": "dtype must be one of",
    "- {m: 1, n: 2, k: 3, layout: ab}": "layout must be one of nn, nt, tn, tt, found 'ab'",
    "- {m: 1, n: 2, k: 3, update: maybe}": "update must be one of none, add, bias, inplace",
    "- {m: 1, n: 2, k: 3, dtpye: float32}": "unknown column dtpye; expected m, n, k, dtype",
    "- {m: 1, n: 2, k: 3, 4: 5}": "unknown column 4; expected m, n, k",
    "- !!python/object/apply:os.getcwd []": "is not YAML",
    "- &a {m: 1, n: 2, k: 3}\n- *a": "is not YAML.*expected no anchors",
    "[" * 100: "is not YAML.*at most 16 levels",
    "- {m: 1, m: 2, n: 2, k: 3}": "m must be a positive integer.*, found the key twice",
}


def matches(words: str, message: str) -> bool:
    """Whether a message holds these words; ``.*`` stands for any others."""
    return re.search(".*".join(map(re.escape, words.split(".*"))), message, re.S) is not None


@pytest.mark.parametrize("text", BAD_YAML, ids=range(len(BAD_YAML)))
def test_a_bad_yaml_file_is_refused_by_file_row_and_value(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(InvalidProblem) as caught:
        read_shapes(path, "cuda")
    assert str(caught.value).startswith(f"{path}: ")
    assert matches(BAD_YAML[text], str(caught.value))


BAD_CSV = {
    "": "found nothing",
    "m,n,k\n": "found nothing",
    "m,n\n1,2\n": "problem 1: k must be a positive integer.*, found nothing",
    "1,2,3\n4,5,6\n": "unknown column 1, 2, 3; expected m, n, k",
    "m,n,k\n1,2,3\n4,x,6\n": "problem 2: n must be a positive integer.*, found 'x'",
    "m,n,k\n1,2,3,4\n": "problem 1: more cells than the header has columns: '4'",
    f"m,n,k\n1,2,{'9' * 5000}\n": "k must be a positive integer.*, found '999",
    "m,n,k\n1,2,3.0\n": "k must be a positive integer.*, found '3.0'",
    "m,n,k,dtype\n1,2,3,half\n": "dtype must be one of",
    f"m,n,k\n1,2,{'x' * 200_000}\n": "is not CSV.*field larger than field limit",
}


@pytest.mark.parametrize("text", BAD_CSV, ids=range(len(BAD_CSV)))
def test_a_bad_csv_file_is_refused_by_file_row_and_value(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text, "shapes.csv")
    with pytest.raises(InvalidProblem) as caught:
        read_shapes(path, "cuda")
    assert str(caught.value).startswith(f"{path}: ")
    assert matches(BAD_CSV[text], str(caught.value))


def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    binary = tmp_path / "shapes.bin"
    binary.write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "none.yaml", tmp_path, binary):
        with pytest.raises(InvalidProblem, match="cannot be read"):
            read_shapes(path, "cuda")


def test_a_workload_is_told_apart_by_problem_and_count() -> None:
    problem = contiguous_problem(8, 8, 8, torch.float32)
    assert Workload(problem) == Workload(problem, 1)
    assert len({Workload(problem), Workload(problem, 2), Workload(replace(problem, m=9))}) == 3
