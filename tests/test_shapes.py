"""Recordings read as files of shapes; ``test_workloads`` has the hand-written ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from autogemm.errors import InvalidProblem
from autogemm.problem import contiguous_problem
from autogemm.shapes import read_shapes
from autogemm.workloads import Workload, most_expensive_first


def write(folder: Path, text: str) -> Path:
    path = folder / "shapes.yaml"
    path.write_text(text, encoding="utf-8")
    return path


RECORDED = """
program: {seconds: 2.5, date: '2026-11-22 10:00:00', device: Example GPU}
products:
- {m: 8, n: 16, k: 24, layout: nt, update: none, count: 7, ms: 1.5, level: high, device: cuda}
- {m: 8, n: 16, k: 24, layout: nt, update: none, count: 3, ms: 0.5, level: high, device: cuda}
- {m: 8, n: 16, k: 24, layout: nt, update: none, count: 2, device: cuda, mode: graph}
- {m: 8, n: 16, k: 24, a: strided, out: col, update: none, by: autogemm, ratio: 2.5}
- {m: 8, n: 16, k: 24, count: 5, ms: 9, device: cpu}
- {m: 8, n: 16, k: 24, batch: 4, device: cpu}
"""


def test_a_recording_is_read_with_what_it_knows(tmp_path: Path) -> None:
    program = read_shapes(write(tmp_path, RECORDED), "cuda")
    plain = contiguous_problem(8, 16, 24, torch.float32, b="col", update="none")
    first, second, third = program.workloads
    assert first == Workload(plain, 10, pytest.approx(2e-3), "high")
    assert second == Workload(plain, 2, mode="graph")
    assert (third.problem.a, third.problem.b, third.problem.out) == ("strided", "row", "col")
    assert (third.by, third.ratio) == ("autogemm", 2.5)
    assert program.seconds == 2.5
    assert program.left_out == ("2 left out: recorded on cpu",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("products: []", "found nothing"),
        ("products: {m: 1}", "expected a list of problems, each with m, n and k, found a mapping"),
        ("program: 3\nproducts: [{m: 1, n: 1, k: 1}]", "program must be a mapping.*found 3"),
        ("program: {seconds: -1}\nproducts: [{m: 1, n: 1, k: 1}]", "seconds must be a positive"),
        ("- {m: 1, n: 1, k: 1, ms: 0}", "problem 1: ms must be a positive number, found 0"),
        ("- {m: 1, n: 1, k: 1, ms: .inf}", "ms must be a positive number, found inf"),
        ("- {m: 1, n: 1, k: 1, ms: [1]}", "ms must be a positive number"),
        ("- {m: 1, n: 1, k: 1, level: best}", "level must be one of highest, high, medium"),
        ("- {m: 1, n: 1, k: 1, a: diagonal}", "a must be one of row, col"),
        ("- {m: 1, n: 1, k: 1, mode: lazy}", "mode must be one of eager, graph"),
        ("- {m: 1, n: 1, k: 1, batch: 0}", "batch must be a positive integer"),
        ("- {m: 1, n: 1, k: 1, device: tpu}", "device must be one of cpu, cuda"),
        ("- {m: 1, n: 1, k: 1, device: cpu}", "can be tuned on cuda: recorded on cpu.*--device"),
    ],
)
def test_a_bad_recording_is_refused_by_row_and_value(
    tmp_path: Path, text: str, words: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(InvalidProblem) as caught:
        read_shapes(path, "cuda")
    assert re.search(words, str(caught.value)), caught.value
    assert str(caught.value).startswith(f"{path}: ")


def test_what_takes_most_time_comes_first_and_each_problem_once() -> None:
    def load(m: int, **facts: object) -> Workload:
        problem = contiguous_problem(m, 8, 8, torch.float32)
        return Workload(problem, **facts)  # type: ignore[arg-type]

    loads = [
        load(1, count=10),
        load(2, count=100),
        load(3, seconds=1.0),
        load(4, seconds=0.8, level="high"),
        load(4, seconds=0.7, mode="graph"),
    ]
    order = most_expensive_first(loads)
    assert [w.problem.m for w in order] == [4, 3, 2, 1]
    assert order[0].seconds == 1.5
    assert order[0].count == 2
