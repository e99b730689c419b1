"""Damaged and malicious files for the readers of tables and of lists of shapes.

Read in this process, under an audit hook: a reader that opens another file, imports, compiles
or executes anything is caught in the act.
"""

from __future__ import annotations

import random
import resource
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from invented import AXPBY, BF16, CPU, FULL, always, choice, entry, row, table

from autogemm import dispatch
from autogemm.database import dump_table, read_table
from autogemm.database.lookup import Evidence, Source
from autogemm.database.reading import table_from_text
from autogemm.device import device_of
from autogemm.errors import DatabaseError, InvalidProblem
from autogemm.precision import Tolerance
from autogemm.problem import Problem, contiguous_problem
from autogemm.shapes import read_shapes
from autogemm.strategies import BY_NAME, Candidate
from stress import Figures, GoingOn

SECONDS_EACH = 1.0
GROWTH_BYTES = 256 * 2**20
"""What reading all of them may add to the process at its peak."""

CUBE = contiguous_problem(64, 64, 64, torch.float32, device_type="cpu")


def tables() -> list[str]:
    """Small tables as they are written, with every kind of value."""
    split = Candidate.of("ksplit", form="batched", chunks=3)
    tall = replace(CUBE, m=1000, update="bias", batch=2)
    rows = [
        row(FULL, 100.0),
        row(AXPBY, 60.0, error=12.5, error_norm=1e-7, workspace_bytes=4096),
        row(split, None, status="failed", note='"quoted": [1, 2]\n\u2028', error=None),
    ]
    runner_up = replace(choice(AXPBY), runner_up=split, runner_up_ratio=1.5)
    device = device_of(CPU)
    return [
        dump_table(table(entry(CUBE, {"highest": runner_up}, rows), device=device)),
        dump_table(table(always(BF16, CUBE), always(AXPBY, tall), device=device)),
        dump_table(table(device=device)),
    ]


SHAPES = [
    "- {m: 4, n: 8, k: 16, dtype: float32}\n- {m: 5, n: 8, k: 300, layout: tn, count: 7}\n",
    "m,n,k,dtype,update\n4,8,16,float32,bias\n5,8,300,,\n",
]

_DEEP = 3000
NASTY = (
    "!!python/object/apply:os.system ['touch HACKED']", "!!python/name:os.system ''",
    "!!python/object/new:subprocess.Popen [['touch', 'HACKED']]", "!!binary aGFjaw==", "!x y",
    "&a [*a, *a]", "*a", "&a", "<<: {m: 1}", "{<<: [{a: 1}, {b: 2}]}", "? [1]", "? {a: b}\n: c",
    "[" * _DEEP, "{a: " * _DEEP, "- " * _DEEP, "(" * _DEEP, "[" * 15 + "]" * 15,
    "9" * 5000, "-" + "9" * 400, "1e999999", "1e-999999", "0x" + "f" * 999, "0o7", "0b1", "1_000",
    "1:30:00", "190:20:30.15", ".inf", "-.inf", ".nan", "-0.0", "5e-324", "1.7976931348623157e308",
    "18446744073709551616", "2026-13-45", "0000-00-00", "2001-12-14t21:59:43.10-05:00", "~",
    "null", "yes", "=", "''", '""', '"\\0"', '"\\ud800"', "\x00", "\ufeff", "\x85", "\u2028",
    "\u202e", "\U0001f4a9", "ﬁ", "e\u0301", "\x1b[31m", "\x7f", "\t", "\r", "\r\n", "|", ">", "%",
    "%YAML 9.9\n---\n", "---\n", "...\n", "@", "`", "#", "'", '"', ": ", "- ", "? ", ",", "[", "]",
    "{", "}", "../../../../etc/passwd", "/etc/passwd", "..\\..\\x", "file:///etc/passwd",
    "$(touch HACKED)", "__import__('os')", "__class__", "{strategy: ../../addmm}", "addmm\x00",
    "a" * 100_000, "a: " * 2000, "\n" * 5000, " " * 5000, "- [" * 500, "{" * 500 + "}" * 500,
    "x: &x0 [1]\n" + "".join(f"y{i}: &x{i} [*x{i - 1}]\n" for i in range(1, 9)),
)  # fmt: skip


def bomb(levels: int = 40, width: int = 9) -> str:
    """A billion laughs: a few lines whose aliases would expand to width**levels items."""
    lines = ["a0: &a0 [lol, lol]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, levels)]
    return "\n".join(lines) + "\n...\n"


def merge_bomb(levels: int = 30) -> str:
    """Merge keys that a loader flattens again and again."""
    lines = ["- &a0 {k0: 1}"]
    lines += [
        f"- &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 4)}], k{i}: 1}}" for i in range(1, levels)
    ]
    return "\n".join(lines) + "\n"


def mutated(rng: random.Random, text: str) -> bytes:
    """``text`` with one to six injuries to its bytes, lines or values."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        text = rng.choice(_INJURIES)(rng, text)
    content = text.encode("utf-8", "surrogatepass")
    if rng.random() < 0.2:
        content = _bytes_changed(rng, content)
    if rng.random() < 0.03:
        content = b"\xef\xbb\xbf" + content
    return content


def _bytes_changed(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        if changed:
            changed[rng.randrange(len(changed))] = rng.choice((0, 9, 10, 13, 0x80, 0xFF, 58, 123))
    return bytes(changed)


def _lines(change: Callable[[random.Random, list[str]], None]) -> Callable[..., str]:
    def injure(rng: random.Random, text: str) -> str:
        lines = text.splitlines(keepends=True) or [""]
        change(rng, lines)
        return "".join(lines)

    return injure


def _place(rng: random.Random, items: list[str] | str) -> int:
    return rng.randrange(len(items)) if items else 0


def _swap(rng: random.Random, lines: list[str]) -> None:
    i, j = _place(rng, lines), _place(rng, lines)
    lines[i], lines[j] = lines[j], lines[i]


def _move_line(rng: random.Random, lines: list[str]) -> None:
    i = _place(rng, lines)
    lines[i] = " " * rng.randint(1, 9) + lines[i].lstrip(" ")


def _value_replaced(rng: random.Random, text: str) -> str:
    places = [i for i, c in enumerate(text) if c == ":"]
    if not places:
        return text
    start = rng.choice(places) + 1
    end = min((e for e in (text.find(c, start) for c in ",}\n") if e >= 0), default=len(text))
    return f"{text[:start]} {rng.choice(NASTY)}{text[end:]}"


def _key_replaced(rng: random.Random, text: str) -> str:
    end = rng.choice([i for i, c in enumerate(text) if c == ":"] or [0])
    start = max(text.rfind(c, 0, end) for c in "{, \n") + 1
    return text[:start] + rng.choice(NASTY) + text[end:]


def _put_in(rng: random.Random, text: str) -> str:
    i = _place(rng, text)
    return text[:i] + rng.choice(NASTY) + text[i:]


def _cut_out(rng: random.Random, text: str) -> str:
    i = _place(rng, text)
    return text[:i] + text[i + rng.randint(1, 80) :]


def _cut_off(rng: random.Random, text: str) -> str:
    return text[: _place(rng, text)]


def _doubled(rng: random.Random, text: str) -> str:
    i = _place(rng, text)
    return text[: i + rng.randint(1, 400)] + text[i:]


def _case_or_ends(rng: random.Random, text: str) -> str:
    return rng.choice((text.upper(), text.replace("\n", "\r\n"), text.replace("\n", "\r")))


_INJURIES: tuple[Callable[[random.Random, str], str], ...] = (
    _value_replaced, _value_replaced, _key_replaced, _put_in, _cut_out, _cut_off, _doubled,
    _case_or_ends, _lines(_swap), _lines(_move_line),
    _lines(lambda rng, lines: lines.insert(_place(rng, lines), rng.choice(lines))),
    _lines(lambda rng, lines: lines.pop(_place(rng, lines)) and None),
    _lines(lambda rng, lines: lines.insert(_place(rng, lines), rng.choice(NASTY) + "\n")),
)  # fmt: skip


# ------------------------------------------------------------------------------- the watch


class Watch:
    """Sees what this process does while files are read; one for the process's life."""

    _FORBIDDEN = ("exec", "compile", "import", "os.", "subprocess.", "ctypes.", "socket.")

    def __init__(self) -> None:
        self.allowed: Path | None = None
        self.on = False
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[object, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            if self.allowed is None or str(args[0]) != str(self.allowed):
                self.seen.append(f"open {args[0]!r}")
        elif event.startswith(self._FORBIDDEN):
            self.seen.append(f"{event} {args[:1]!r}")


_watch: Watch | None = None


def read_all(
    going_on: GoingOn, read: Callable[[bytes], bool], inputs: Callable[[int], bytes]
) -> Figures:
    """Read ``inputs(i)`` for i = 0, 1, …; ``read`` says whether it was taken."""
    global _watch
    watch = _watch = _watch or Watch()
    for i in range(40):  # what a first reading imports and opens is no deed of the content
        read(inputs(i))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    done = taken = 0
    slowest = 0.0
    while going_on(done):
        content = inputs(done)
        watch.seen.clear()
        start = time.perf_counter()
        watch.on = True
        try:
            taken += read(content)
        except BaseException as error:
            raise AssertionError(f"input {done}: {type(error).__name__}: {error}") from error
        finally:
            watch.on = False
        slowest = max(slowest, time.perf_counter() - start)
        assert not watch.seen, f"input {done} made the reader do {watch.seen}"
        assert slowest < SECONDS_EACH, f"input {done} took {slowest:.2f} s"
        done += 1
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024
    assert growth < GROWTH_BYTES, f"reading took {growth / 2**20:.0f} MiB more"
    return {"inputs": done, "taken": taken, "crashes": 0, "slowest ms": round(slowest * 1e3, 1)}


# ------------------------------------------------------------------------------- the readers


def fuzz_tables(going_on: GoingOn, seed: int = 0) -> Figures:
    """Read mutated tables; what is taken is used for a plan, as a call would."""
    bases, device = tables(), device_of(CPU)
    asked = [(CUBE, Tolerance("medium")), (replace(CUBE, m=65), Tolerance("highest", 1e-3))]
    path = Path("table.yaml")
    special = [bomb(), merge_bomb(), "", "\x00" * 100_000, "a" * 10**6, "- " * 10**5, "[" * 10**5]

    def inputs(i: int) -> bytes:
        if i < len(special):
            return special[i].encode()
        rng = random.Random(f"{seed} {i}")
        return mutated(rng, rng.choice(bases))

    def read(content: bytes) -> bool:
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            return False  # read_table has the words for it; see fuzz_files
        try:
            found, problems = table_from_text(text, path, frozenset(BY_NAME))
        except DatabaseError as error:
            return _refused(error)
        assert all(len(problem) < 2000 for problem in problems)
        _plan_with(Evidence(device, [Source(replace(found, device=device), False)]), asked)
        return True

    return read_all(going_on, read, inputs)


def _refused(error: Exception) -> bool:
    assert len(str(error)) < 2000, "the message repeats the file"
    return False


def _plan_with(evidence: Evidence, asked: list[tuple[Problem, Tolerance]]) -> None:
    device = device_of(CPU)
    for problem, tolerance in asked:
        plan = dispatch.plan(problem, tolerance, device, "eager", evidence)
        reason = dispatch.reason_against(plan.candidate, problem, tolerance, device)
        assert reason is None, f"{plan.candidate} was chosen, but {reason}"
        assert str(plan.candidate)


def fuzz_files(going_on: GoingOn, folder: Path, seed: int = 0) -> Figures:
    """The same through a file, bytes that are no UTF-8 included."""
    bases, path = tables(), folder / "table.yaml"
    watch_path(path)

    def inputs(i: int) -> bytes:
        rng = random.Random(f"{seed} {i} file")
        path.write_bytes(_bytes_changed(rng, mutated(rng, rng.choice(bases))))
        return b""

    def read(_: bytes) -> bool:
        try:
            read_table(path, frozenset(BY_NAME))
        except DatabaseError:
            return False
        return True

    return read_all(going_on, read, inputs)


def fuzz_shapes(going_on: GoingOn, folder: Path, seed: int = 0) -> Figures:
    """Read mutated lists of shapes, YAML and CSV, through ``shapes.read_shapes``."""
    paths = [folder / "shapes.yaml", folder / "shapes.csv"]
    special = [bomb(), merge_bomb(), "- &a [*a]", "- " * 10**5, "[" * 10**5, "a" * 10**6]
    current = paths[0]

    def inputs(i: int) -> bytes:
        nonlocal current
        rng = random.Random(f"{seed} {i} shapes")
        kind = rng.randrange(2)
        text = special[i].encode() if i < len(special) else mutated(rng, SHAPES[kind])
        current = paths[kind]
        watch_path(current)
        current.write_bytes(text)
        return b""

    def read(_: bytes) -> bool:
        try:
            found = read_shapes(current, "cpu")
        except InvalidProblem as error:
            return _refused(error)
        for workload in found.workloads:
            problem = workload.problem
            assert min(problem.m, problem.n, problem.k, workload.count) >= 1
        return True

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_all(going_on, read, inputs)


def watch_path(path: Path) -> None:
    """The one file a reader may open."""
    global _watch
    _watch = _watch or Watch()
    _watch.allowed = path
