"""Peers beside autogemm: everybody's answer is judged, and who cannot run says so once."""

from __future__ import annotations

import json
import math
import os
import runpy
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from invented import AXPBY, CPU, FULL, GPU, always, write_for_this_cpu

from autogemm import contestants, peers
from autogemm.benchmark import plain_addmm
from autogemm.comparisons import Figures
from autogemm.database.lookup import Evidence
from autogemm.device import device_of
from autogemm.peers import Comparison, Peer, Standing, as_text, compare, compared
from autogemm.problem import contiguous_problem
from autogemm.workloads import preset

HERE = device_of(CPU)
PROBLEM = contiguous_problem(24, 20, 300, torch.float32, device_type="cpu")
NOTHING = Evidence(HERE, [])
SCRIPT = Path(peers.__file__).parents[1] / "scripts" / "benchmark.py"


def rounded(operands: Any, alpha: float, beta: float) -> Any:
    """A peer that multiplies in bfloat16."""
    return lambda alpha, A, B, beta, C, out: plain_addmm(
        alpha, A.bfloat16(), B.bfloat16(), beta, C.bfloat16(), None
    ).float()


def slow(operands: Any, alpha: float, beta: float) -> Any:
    def run(*call: Any) -> torch.Tensor:
        time.sleep(2e-4)
        return plain_addmm(*call)

    return run


def broken(operands: Any, alpha: float, beta: float) -> Any:
    raise ValueError("\nno such luck\nand more")


HONEST = Peer("honest", lambda operands, alpha, beta: plain_addmm)
SECOND = Peer("second", lambda operands, alpha, beta: plain_addmm)


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "_ROUNDS", 3)


def test_every_answer_is_judged_and_one_outside_the_contract_cannot_win() -> None:
    found = compare(
        PROBLEM, NOTHING, HERE, CPU, [HONEST, Peer("rounded", rounded), Peer("slow", slow)]
    )
    assert list(found.standings) == ["autogemm", "honest", "rounded", "slow"]
    assert found.unable == {}
    outside = {name for name, standing in found.standings.items() if standing.outside}
    assert outside == {"rounded"}
    assert found.standings["rounded"].error > 1000
    assert found.winner != "rounded"
    assert found.standings["slow"].ratio > 1
    assert found.standings["autogemm"].ratio == 1
    assert found.aa > 0


def test_a_peer_that_fails_is_left_out_with_its_words_and_the_others_go_on() -> None:
    wrong_later = Peer("later", lambda *_: lambda *call: broken(*call[:3]))
    unwilling = Peer("unwilling", broken, lambda problem, device: ["not today", "nor there"])
    found = compare(PROBLEM, NOTHING, HERE, CPU, [Peer("broken", broken), wrong_later, unwilling,
                                                  HONEST])  # fmt: skip
    assert found.unable == {
        "broken": "ValueError: no such luck",
        "later": "ValueError: no such luck",
        "unwilling": "not today; nor there",
    }
    assert set(found.standings) == {"autogemm", "honest"}


def test_a_lost_device_ends_it() -> None:
    def lost(*_: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        compare(PROBLEM, NOTHING, HERE, CPU, [Peer("lost", lost)])


def test_peers_get_the_scalars_and_operands_of_the_problem() -> None:
    seen = []

    def watch(operands: Any, alpha: float, beta: float) -> Any:
        seen.append((alpha, beta, operands.C is None, operands.out is None))
        return plain_addmm

    for update in ("none", "add", "bias", "inplace"):
        compare(replace(PROBLEM, update=update), NOTHING, HERE, CPU, [Peer("watch", watch)])
    assert seen == [
        (1.0, 0.0, True, True), (1.5, 0.5, False, True), (1.0, 1.0, False, True),
        (1.5, 0.5, False, False),
    ]  # fmt: skip


def test_a_peer_that_keeps_the_scalars_it_was_prepared_for_is_judged_by_these() -> None:
    def fixed(operands: Any, alpha: float, beta: float) -> Any:
        return lambda _, A, B, __, C, out: plain_addmm(alpha, A, B, beta, C, out)

    for update in ("none", "add", "bias", "inplace"):
        found = compare(replace(PROBLEM, update=update), NOTHING, HERE, CPU, [Peer("fixed", fixed)])
        assert not found.standings["fixed"].outside, update


def test_autogemm_runs_what_the_tables_choose(tmp_path: Path) -> None:
    from autogemm.database.lookup import evidence_at

    path = write_for_this_cpu(tmp_path, always(AXPBY, PROBLEM))
    found = compare(PROBLEM, evidence_at(path, HERE), HERE, CPU, [])
    assert found.choice == AXPBY
    assert compare(PROBLEM, NOTHING, HERE, CPU, []).choice == FULL


def test_after_the_deadline_nothing_is_begun() -> None:
    found = compare(PROBLEM, NOTHING, HERE, CPU, [HONEST], deadline=time.time() - 1)
    assert found.unable == {"honest": "the budget was over"}
    assert list(compared([PROBLEM], NOTHING, HERE, CPU, deadline=time.time() - 1)) == []


def standing(us: float, outside: str = "") -> Standing:
    return Standing(us=us, ratio=us / 100.0, error=3.0, outside=outside)


def test_the_report_marks_winners_and_sums_up_each_peer() -> None:
    def made(m: int, unable: dict[str, str], **times: Standing) -> Comparison:
        return Comparison(
            problem=replace(PROBLEM, m=m), level="highest", mode="graph", choice=AXPBY,
            standings=times, unable=unable, aa=1.001,
        )  # fmt: skip

    text = as_text(
        [
            made(64, {"gone": "was never here"}, autogemm=standing(100.0), fast=standing(200.0)),
            made(65, {"gone": "was never here"}, autogemm=standing(100.0),
                 fast=standing(50.0, "R = 9e9 exceeds 3")),
            made(66, {"gone": "was never here"}, autogemm=standing(100.0), fast=standing(80.0)),
        ],
        [Peer("fast", broken), Peer("gone", broken)],
    )  # fmt: skip
    rows = text.splitlines()
    assert "100.0*  200.0" in rows[1]
    assert "100.0*   50.0!" in rows[2]
    assert "100.0    80.0*" in rows[3]
    mean = (2.0 * 0.5 * 0.8) ** (1 / 3)
    assert f"fast: {mean:.3f} x autogemm's time, the geometric mean of 3 of 3 problems" in text
    assert "fastest on 1" in text
    assert "outside 'highest': float32 65x20x300 (row x row -> row, add): R = 9e9" in text
    assert text.count("was never here") == 1
    assert "gone could not run 3 of them: was never here" in text


@pytest.mark.parametrize(
    ("name", "device", "reason"),
    [
        ("nvmath", HERE, "runs on cuda, not on cpu"),
        ("quack", HERE, "runs on cuda, not on cpu"),
        ("tunableop", HERE, "runs on cuda, not on cpu"),
        ("tunableop", GPU, "nothing but its own product"),
        ("tunableop", replace(GPU, features=("rocm",)), ""),
        ("nvmath", GPU, "needs the package 'nvmath'"),
        ("nvmath", replace(GPU, packages=frozenset({"nvmath"})), ""),
        ("quack", GPU, "needs the package 'quack'"),
        ("quack", replace(GPU, packages=frozenset({"quack"})), "computes 16-bit types"),
        ("torch", HERE, ""),
        ("inductor", HERE, ""),
    ],
)
def test_peers_state_what_they_lack(name: str, device: Any, reason: str) -> None:
    (peer,) = (peer for peer in peers.PEERS if peer.name == name)
    found = peer.reasons_not(PROBLEM, device)
    assert reason in "; ".join(found)
    assert bool(found) == bool(reason)


def test_nvmath_is_given_no_bias_for_a_c() -> None:
    (peer,) = (peer for peer in peers.PEERS if peer.name == "nvmath")
    able = replace(GPU, packages=frozenset({"nvmath"}))
    assert peer.reasons_not(replace(PROBLEM, update="bias"), able) == [
        "takes no bias for a C: it would read a whole matrix"
    ]


def test_a_packages_peer_is_called_as_it_documents_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    import types

    called = []
    fake = types.ModuleType("quack.gemm_interface")

    def gemm(A: Any, B: Any, alpha: float) -> Any:
        called.append("gemm")
        return plain_addmm(alpha, A, B, 0.0, None, None)

    def gemm_add(A: Any, B: Any, C: Any, alpha: float, beta: float) -> Any:
        called.append("gemm_add")
        return plain_addmm(alpha, A, B, beta, C, None)

    def gemm_add_inplace(A: Any, B: Any, out: Any, alpha: float, beta: float) -> None:
        called.append("gemm_add_inplace")
        plain_addmm(alpha, A, B, beta, out, out)

    fake.gemm, fake.gemm_add = gemm, gemm_add  # type: ignore[attr-defined]
    fake.gemm_add_inplace = gemm_add_inplace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "quack", types.ModuleType("quack"))
    monkeypatch.setitem(sys.modules, "quack.gemm_interface", fake)
    quack = Peer("quack", contestants._quack)
    for update in ("none", "add", "inplace"):
        called.clear()
        found = compare(replace(PROBLEM, update=update), NOTHING, HERE, CPU, [quack])
        assert not found.unable
        assert not found.standings["quack"].outside
        assert set(called) == {{"none": "gemm", "add": "gemm_add"}.get(update, "gemm_add_inplace")}


def script(monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--device", "cpu", *options])
    monkeypatch.setattr(sys, "path", [*sys.path])
    code = runpy.run_path(str(SCRIPT))["main"]()
    assert isinstance(code, int)
    return code


def test_the_script_compares_the_problems_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers, "PEERS", (HONEST, Peer("broken", broken)))
    shapes, figures = tmp_path / "shapes.yaml", tmp_path / "figures.json"
    shapes.write_text("- {m: 16, n: 12, k: 20}\n- {m: 16, n: 12, k: 40, update: none}\n")
    assert script(monkeypatch, "--peers", "--shapes", str(shapes), "--json", str(figures)) == 0
    out = capsys.readouterr().out
    assert "float32 16x12x20 (row x row -> row, add)" in out
    assert "the geometric mean of 2 of 2 problems" in out
    assert "broken could not run 2 of them: ValueError: no such luck" in out
    facts = json.loads(figures.read_text())
    names = [comparison["problem"].split(" (")[0] for comparison in facts["comparisons"]]
    assert names == ["float32 16x12x20", "float32 16x12x40"]
    assert all(math.isfinite(c["standings"]["honest"]["ratio"]) for c in facts["comparisons"])


def test_the_script_times_the_peers_that_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers, "PEERS", (HONEST, Peer("broken", broken)))
    shapes = tmp_path / "shapes.yaml"
    shapes.write_text("- {m: 16, n: 12, k: 20}\n")
    assert script(monkeypatch, "--peers", "--shapes", str(shapes), "--peer", "honest") == 0
    out = capsys.readouterr().out
    assert "honest" in out
    assert "broken" not in out
    with pytest.raises(SystemExit):
        script(monkeypatch, "--peers", "--peer", "nobody")
    assert "invalid choice: 'nobody'" in capsys.readouterr().err


def test_the_script_takes_presets_and_stops_at_its_budget(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers, "PEERS", (HONEST,))
    options = ("--peers", "--preset", "quick", "--dtype", "float64", "--budget", "1e-9")
    assert script(monkeypatch, *options) == 0
    assert "the budget is over" in capsys.readouterr().out


def test_shapes_and_a_preset_are_compared_both_and_rows_of_other_devices_are_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers, "PEERS", (HONEST,))
    shapes = tmp_path / "shapes.yaml"
    shapes.write_text("- {m: 16, n: 12, k: 20}\n- {m: 16, n: 12, k: 21, device: cuda}\n")
    options = ("--peers", "--shapes", str(shapes), "--preset", "quick", "--budget", "1e-9")
    assert script(monkeypatch, *options) == 0
    out = capsys.readouterr().out
    assert "shapes.yaml: 1 left out: recorded on cuda" in out
    assert f"{len(preset('quick', 'cpu')) + 1} problems were not timed" in out


def test_ctrl_c_keeps_what_was_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(operands: Any, alpha: float, beta: float) -> Any:
        if operands.A.shape[1] == 40:
            raise KeyboardInterrupt
        return plain_addmm

    monkeypatch.setattr(peers, "PEERS", (Peer("interrupted", interrupted),))
    shapes, figures = tmp_path / "shapes.yaml", tmp_path / "figures.json"
    shapes.write_text("- {m: 16, n: 12, k: 20}\n- {m: 16, n: 12, k: 40}\n")
    options = ("--peers", "--shapes", str(shapes), "--json", str(figures))
    assert script(monkeypatch, *options) == 130
    out = capsys.readouterr().out
    assert "float32 16x12x20 (row x row -> row, add)" in out
    assert "stopped; 1 problems were not timed" in out
    assert len(json.loads(figures.read_text())["comparisons"]) == 1


def test_a_lost_device_keeps_what_was_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lost(operands: Any, alpha: float, beta: float) -> Any:
        if operands.A.shape[1] == 40:
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nand more")
        return plain_addmm

    monkeypatch.setattr(peers, "PEERS", (Peer("lost", lost),))
    shapes = tmp_path / "shapes.yaml"
    shapes.write_text("- {m: 16, n: 12, k: 20}\n- {m: 16, n: 12, k: 40}\n")
    assert script(monkeypatch, "--peers", "--shapes", str(shapes)) == 1
    out, err = capsys.readouterr()
    assert "float32 16x12x20 (row x row -> row, add)" in out
    assert "the device was lost; 1 problems were not timed" in out
    assert (
        "float32 16x12x40 (row x row -> row, add): the device was lost (RuntimeError: CUDA error: "
        "an illegal memory access was encountered), after lost had begun. --json FILE keeps what "
    ) in err
    assert "and more" not in err


def test_what_autogemm_cannot_compute_is_left_out_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shapes = tmp_path / "shapes.yaml"
    shapes.write_text("- {m: 16, n: 12, k: 2147483647}\n- {m: 16, n: 12, k: 40}\n")
    monkeypatch.setattr(peers, "PEERS", (HONEST,))

    def open_or_not(problem: Any, *args: Any, **kwargs: Any) -> Any:
        if problem.k == 2147483647:
            raise torch.OutOfMemoryError("tried to allocate 128 GiB")
        return opened(problem, *args, **kwargs)

    opened = peers.Workbench.open
    monkeypatch.setattr(peers.Workbench, "open", open_or_not)
    assert script(monkeypatch, "--peers", "--shapes", str(shapes)) == 0
    out = capsys.readouterr().out
    assert "float32 16x12x40 (row x row -> row, add) " in out
    assert (
        "float32 16x12x2147483647 (row x row -> row, add) was left out: OutOfMemoryError: tried to "
        "allocate 128 GiB"
    ) in out
    assert "were not timed" not in out


def test_figures_of_a_peer_that_declines_since_are_timed_again(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    Figures(file, HERE).add(compare(PROBLEM, NOTHING, HERE, CPU, [HONEST]))
    declines = replace(HONEST, reasons_not=lambda problem, device: ["not any more"])
    assert set(Figures(file, HERE).known([PROBLEM], NOTHING, HERE, [HONEST])) == {PROBLEM}
    assert Figures(file, HERE).known([PROBLEM], NOTHING, HERE, [declines]) == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--peers", "--guard"), "not allowed with argument"),
        (("--peers", "--precision", "high"), "--precision and --mode choose what of the table"),
        (("--regret", "--mode", "graph"), "--precision and --mode choose what of the table"),
        (("--guard", "--json", "figures.json"), "--json is for --peers and for timing the table"),
        (("--sample", "0"), "--sample is 0; expected a positive integer"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    options: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with pytest.raises(SystemExit, match="2"):
        script(monkeypatch, *options)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("text", ['{"precious": 1}', "notes", "[" * 100000])
def test_a_file_that_holds_something_else_is_not_replaced(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "precious.json"
    file.write_text(text)
    with pytest.raises(SystemExit, match="2"):
        script(monkeypatch, "--json", str(file))
    assert "holds something else than this command's figures" in capsys.readouterr().err
    assert script(monkeypatch, "--peers", "--json", str(file)) == 1
    assert file.read_text() == text


def test_a_run_that_is_terminated_tells_what_was_compared(tmp_path: Path) -> None:
    shapes, figures = tmp_path / "shapes.yaml", tmp_path / "figures.json"
    shapes.write_text("".join(f"- {{m: 16, n: 12, k: {k}}}\n" for k in range(1, 3001)))
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), "--device", "cpu", "--peers", "--peer", "torch",
         "--shapes", str(shapes), "--json", str(figures)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until = time.monotonic() + 120
    while not (figures.exists() and figures.stat().st_size) and time.monotonic() < until:
        time.sleep(0.05)
    process.terminate()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert "float32 16x12x1 (row x row -> row, add)" in out
    assert "stopped; " in out


def test_every_comparison_is_written_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes, figures = tmp_path / "shapes.yaml", tmp_path / "figures.json"
    written: list[int] = []

    def counting(operands: Any, alpha: float, beta: float) -> Any:
        text = figures.read_text()
        written.append(len(json.loads(text)["comparisons"]) if text else 0)
        return plain_addmm

    monkeypatch.setattr(peers, "PEERS", (Peer("counting", counting),))
    shapes.write_text("".join(f"- {{m: 16, n: 12, k: {k}}}\n" for k in (20, 40, 60)))
    assert script(monkeypatch, "--peers", "--shapes", str(shapes), "--json", str(figures)) == 0
    assert written == [0, 1, 2]


def test_known_problems_are_told_although_the_budget_is_over() -> None:
    problems = [replace(PROBLEM, k=k) for k in (301, 302, 303)]
    known = {problems[2]: compare(problems[2], NOTHING, HERE, CPU, (HONEST,))}
    found = compared(problems, NOTHING, HERE, CPU, (HONEST,), deadline=0.0, known=known)
    assert list(found) == [known[problems[2]]]


def test_what_a_file_has_is_not_timed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared: list[int] = []

    def counted(operands: Any, alpha: float, beta: float) -> Any:
        prepared.append(operands.A.shape[1])
        if operands.A.shape[1] == 60 and prepared.count(60) == 1:
            raise KeyboardInterrupt
        return plain_addmm

    monkeypatch.setattr(peers, "PEERS", (Peer("counted", counted),))
    shapes, figures = tmp_path / "shapes.yaml", tmp_path / "figures.json"
    shapes.write_text("".join(f"- {{m: 16, n: 12, k: {k}}}\n" for k in (20, 40, 60)))
    options = ("--peers", "--shapes", str(shapes), "--json", str(figures))
    assert script(monkeypatch, *options) == 130
    first = json.loads(figures.read_text())
    assert script(monkeypatch, *options) == 0
    assert prepared == [20, 40, 60, 60]
    out = capsys.readouterr().out
    assert "2 of 3 problems were timed before" in out
    assert "the geometric mean of 3 of 3 problems" in out
    facts = json.loads(figures.read_text())
    assert facts["comparisons"][:2] == first["comparisons"]
    assert len(facts["comparisons"]) == 3
    assert [file.name for file in tmp_path.iterdir() if "json" in file.name] == [figures.name]


MADE = ({"device": "another"}, {"versions": {"torch": "0.1"}}, {"comparisons": "damaged"}, {"x": 1})


@pytest.mark.parametrize("change", MADE, ids=str)
def test_a_file_of_another_machine_or_kind_is_refused_and_kept(
    change: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(peers, "PEERS", (HONEST,))
    file = tmp_path / "figures.json"
    Figures(file, HERE).add(compare(PROBLEM, NOTHING, HERE, CPU, (HONEST,)))
    facts = json.loads(file.read_text())
    file.write_text(json.dumps(change if "x" in change else facts | change))
    before = file.read_text()
    assert script(monkeypatch, "--peers", "--preset", "quick", "--json", str(file)) == 1
    said = capsys.readouterr().err
    assert "figures.json has" in said
    assert "or a new file" in said
    assert file.read_text() == before


@pytest.mark.parametrize(
    "change",
    [
        {"choice": "matmul_axpby"},
        {"standings": {}},
        {"standings": {"autogemm": {"us": 1.0}}},
        {"standings": "damaged"},
        {"unable": {"honest": "OutOfMemoryError: CUDA out of memory"}},
        {"unable": {"honest": "the budget was over"}},
        {"level": "high"},
        {"mode": "graph"},
        {"aa": "x"},
    ],
    ids=str,
)
def test_comparisons_that_would_differ_are_timed_again(
    change: dict[str, Any], tmp_path: Path
) -> None:
    file, other = tmp_path / "figures.json", replace(PROBLEM, k=301)
    for problem in (PROBLEM, other):
        Figures(file, HERE).add(compare(problem, NOTHING, HERE, CPU, (HONEST,)))
    both = Figures(file, HERE).known([PROBLEM, other], NOTHING, HERE, (HONEST,))
    assert set(both) == {PROBLEM, other}
    assert Figures(file, HERE).known([PROBLEM], NOTHING, HERE, (HONEST, SECOND)) == {}
    facts = json.loads(file.read_text())
    row = facts["comparisons"][0]
    if "unable" in change:
        del row["standings"]["honest"]
    facts["comparisons"][0] = row | change
    file.write_text(json.dumps(facts))
    kept = Figures(file, HERE).known([PROBLEM, other], NOTHING, HERE, (HONEST,))
    assert kept == {other: both[other]}


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, None, "x"])
@pytest.mark.parametrize("name", ["us", "ratio"])
def test_figures_that_are_none_are_timed_again(name: str, value: object, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    Figures(file, HERE).add(compare(PROBLEM, NOTHING, HERE, CPU, (HONEST,)))
    facts = json.loads(file.read_text())
    facts["comparisons"][0]["standings"]["honest"][name] = value
    file.write_text(json.dumps(facts))
    assert Figures(file, HERE).known([PROBLEM], NOTHING, HERE, (HONEST,)) == {}


def test_what_a_peer_cannot_do_is_not_asked_again(tmp_path: Path) -> None:
    never = Peer("never", broken, lambda problem, device: ["not here"])
    three = (HONEST, never, Peer("fails", broken))
    Figures(tmp_path / "f", HERE).add(compare(PROBLEM, NOTHING, HERE, CPU, three))
    known = Figures(tmp_path / "f", HERE).known([PROBLEM], NOTHING, HERE, three)
    assert known[PROBLEM].unable == {"never": "not here", "fails": "ValueError: no such luck"}


def test_comparisons_of_other_problems_and_peers_stay_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "PEERS", (HONEST, SECOND))
    file = tmp_path / "figures.json"
    for k in (20, 40):
        shapes = tmp_path / f"{k}.yaml"
        shapes.write_text(f"- {{m: 16, n: 12, k: {k}}}\n")
        assert script(monkeypatch, "--peers", "--shapes", str(shapes), "--json", str(file)) == 0
    before = json.loads(file.read_text())
    assert len(before["comparisons"]) == 2
    options = ("--peers", "--shapes", str(shapes), "--json", str(file), "--budget", "1e-9")
    assert script(monkeypatch, *options, "--peer", "second") == 0
    assert json.loads(file.read_text()) == before
    assert script(monkeypatch, *options[:-2], "--peer", "second") == 0
    rows = json.loads(file.read_text())["comparisons"]
    assert [len(row["standings"]) for row in rows] == [3, 2]


def test_a_link_and_what_is_no_file_are_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = compare(PROBLEM, NOTHING, HERE, CPU, (HONEST,))
    link, file = tmp_path / "link", tmp_path / "elsewhere" / "file"
    file.parent.mkdir()
    link.symlink_to(file)
    Figures(link, HERE).add(made)
    assert link.is_symlink()
    assert len(json.loads(file.read_text())["comparisons"]) == 1
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    Figures(pipe, HERE).add(made)
    assert json.loads(os.read(reader, 2**20))["device"] == str(HERE)
    os.close(reader)
    assert pipe.is_fifo()
    long = tmp_path / ("x" * 250)
    Figures(long, HERE).add(made)
    assert len(json.loads(long.read_text())["comparisons"]) == 1
    assert not [left.name for left in tmp_path.rglob(".*")]


def test_a_file_is_whole_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "figures.json"
    Figures(file, HERE).add(compare(PROBLEM, NOTHING, HERE, CPU, (HONEST,)))
    before = file.read_text()

    def stopped(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        Figures(file, HERE).add(compare(PROBLEM, NOTHING, HERE, CPU, (HONEST, SECOND)))
    assert file.read_text() == before
    assert [left.name for left in tmp_path.iterdir()] == [file.name]


def test_what_cannot_be_written_is_told_with_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(peers, "PEERS", (HONEST,))
    shapes = tmp_path / "shapes.yaml"
    shapes.write_text("- {m: 16, n: 12, k: 20}\n- {m: 16, n: 12, k: 40}\n")
    file = tmp_path / "figures.json"
    Figures(file, HERE).add(compare(PROBLEM, NOTHING, HERE, CPU, (HONEST,)))
    before = file.read_text()
    monkeypatch.setattr(os, "replace", full)
    options = ("--shapes", str(shapes), "--json", str(file))
    assert script(monkeypatch, "--peers", *options) == 1
    assert file.read_text() == before
    said = capsys.readouterr()
    assert "cannot be written (No space left on device)" in said.err
    assert "the geometric mean of 1 of 1 problems" in said.out


def test_problems_are_chosen_for_peers_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for options in (("--preset", "quick"), ("--peer", "torch")):
        with pytest.raises(SystemExit):
            script(monkeypatch, *options)
        assert "--preset and --shapes choose the problems of --peers" in capsys.readouterr().err


def test_inductor_runs_where_there_is_a_compiler() -> None:
    (inductor,) = (peer for peer in peers.PEERS if peer.name == "inductor")
    found = compare(replace(PROBLEM, update="inplace"), NOTHING, HERE, CPU, [inductor])
    if found.unable:
        pytest.skip(found.unable["inductor"])
    assert not found.standings["inductor"].outside
