"""Kernels of quack compiled side by side, ahead of measuring: real processes, a fake quack."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from calling import python_path

import autogemm

ROOT = Path(autogemm.__file__).parents[1]
PATIENCE_S = 60.0

ASYNC_COMPILE = """
import os, pathlib, sys, time, types
KERNELS = pathlib.Path(os.environ["KERNELS"])
_active_pool = None

class CompilePending(BaseException):
    def __init__(self, sha):
        self.sha = sha

class CompilePool:
    def __init__(self, executor):
        self.executor, self.futures = executor, {}
    def submit(self, sha):
        if sha in self.futures:
            return
        main = sys.modules["__main__"]  # as quack does: processes would run the script again
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            self.futures[sha] = self.executor.submit(_work, sha)
        finally:
            sys.modules["__main__"] = main
    def poll(self, sha):
        return ("done" if self.futures[sha].done() else "pending"), None

def _detect_arch_env():
    return "90", "sm_90a"

def _pool_initializer(quack_arch, cute_dsl_arch):
    os.environ["ARCH"] = f"{quack_arch} {cute_dsl_arch}"

def _work(sha):
    (KERNELS / f"{os.getpid()}.begun").touch()
    time.sleep(float(os.environ.get("SECONDS_EACH", "0")))
    if (KERNELS.parent / "fails").exists():
        raise RuntimeError("no such kernel")
    (KERNELS / sha).write_text(f"{os.getpid()} {os.environ['ARCH']}")
"""
GEMM = """
import hashlib
from quack.cache import async_compile

def run_gemm_plan(*given, **named):
    raise AssertionError("something was launched")

def _build_gemm_plan(A, B, D, C, **options):
    kinds = [None if x is None else (x.ndim, x.stride(-1) == 1, x.dtype) for x in (A, B, D, C)]
    biases = [options.pop(name) is not None for name in ("rowvec_bias", "colvec_bias")]
    sha = hashlib.sha256(repr((kinds, biases, options)).encode()).hexdigest()
    if not (async_compile.KERNELS / sha).exists():
        async_compile._active_pool.submit(sha)
        raise async_compile.CompilePending(sha)
"""
HEAD = """
import sys, torch
from dataclasses import replace
from invented import GPU
from autogemm.compile_ahead import CompileAhead
from autogemm import compile_ahead
from autogemm.problem import contiguous_problem
from autogemm.strategies import BY_NAME

DEVICE = replace(GPU, units=132, packages=frozenset({"quack", "cutlass", "triton"}))
def problem(m, n, k, **facts):
    return contiguous_problem(m, n, k, torch.bfloat16, **facts)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    cache = tmp_path / "site" / "quack" / "cache"
    cache.mkdir(parents=True)
    (tmp_path / "kernels").mkdir()
    for module in (cache.parent / "__init__.py", cache / "__init__.py", cache / "_pool_preload.py"):
        module.touch()
    (cache / "async_compile.py").write_text(ASYNC_COMPILE)
    (cache.parent / "gemm.py").write_text(GEMM)
    return tmp_path


def start(folder: Path, script: str, **environment: str) -> subprocess.Popen[str]:
    """Start a script; it does not stand behind ``if __name__ == "__main__"``, as users' do not."""
    (folder / "script.py").write_text(HEAD + textwrap.dedent(script))
    return subprocess.Popen(
        [sys.executable, str(folder / "script.py")], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={
            **os.environ, "PYTHONPATH": python_path(folder / "site", ROOT, ROOT / "tests"),
            "KERNELS": str(folder / "kernels"), **environment,
        },
    )  # fmt: skip


def output(folder: Path, script: str, **environment: str) -> str:
    process = start(folder, script, **environment)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    return out


def kernels(folder: Path) -> dict[str, str]:
    found = (folder / "kernels").iterdir()
    return {path.name: path.read_text() for path in found if path.suffix != ".begun"}


def wait_until_gone(pids: list[int]) -> None:
    patience = time.monotonic() + PATIENCE_S
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < patience, "processes outlived the one that they worked for"
        time.sleep(0.05)


def begun(folder: Path) -> list[int]:
    return [int(path.stem) for path in (folder / "kernels").glob("*.begun")]


def test_every_kernel_of_a_problem_is_compiled_in_processes_that_end(folder: Path) -> None:
    """And one that cannot be compiled ends nothing."""
    (folder / "fails").touch()
    script = """
    import os, pathlib
    CompileAhead(DEVICE, torch.device("cpu"))([problem(4096, 4096, 4096)])
    kernels = pathlib.Path(os.environ["KERNELS"])
    assert all(path.suffix == ".begun" for path in kernels.iterdir())
    (kernels.parent / "fails").unlink()
    ahead = CompileAhead(DEVICE, torch.device("cpu"))
    ahead(iter([problem(4096, 4096, 4096)]))
    print(os.getpid(), len(BY_NAME["cute"].candidates(problem(4096, 4096, 4096), DEVICE)))
    """
    pid, offered = map(int, output(folder, script).split())
    found = kernels(folder)
    assert len(found) == offered
    by = {int(text.split(" ", 1)[0]) for text in found.values()}
    assert pid not in by
    assert {text.split(" ", 1)[1] for text in found.values()} == {"90 sm_90a"}
    wait_until_gone(list(by))


def test_kernels_of_later_problems_are_compiled_on_the_way_until_there_are_enough(
    folder: Path,
) -> None:
    script = """
    compile_ahead._AT_ONCE = 20
    asked = []
    def problems():
        for update in ("add", "none", "inplace"):
            for dtype in (torch.bfloat16, torch.float16):
                p = replace(problem(4096, 4096, 4096, update=update), dtype=dtype)
                asked.append(str(p))
                yield p
    ahead = CompileAhead(DEVICE, torch.device("cpu"))
    ahead(problems())
    print(len(asked))
    asked.clear()
    ahead(problems())  # the first one's are there
    print(len(asked))
    asked.clear()
    ahead(list(problems())[2:])  # β = 0 is a kernel of its own, an update in place is none
    ahead(list(problems())[4:])
    for p in (problem(4096, 4096, 4096), problem(4096, 4096, 4096, update="none")):
        print(len(BY_NAME["cute"].candidates(p, DEVICE)))
    """
    many, one, with_c, without_c = map(int, output(folder, script).split())
    assert (many, one) == (2, 1)
    assert len(kernels(folder)) == 2 * (with_c + without_c)


def test_nothing_starts_where_no_strategy_needs_it_or_time_is_over(folder: Path) -> None:
    script = """
    ahead = CompileAhead(GPU, torch.device("cpu"))
    ahead([problem(4096, 4096, 4096), problem(64, 64, 64)])
    print("quack" in sys.modules)
    CompileAhead(DEVICE, torch.device("cpu"), lambda: True)([problem(4096, 4096, 4096)])
    from quack.cache import async_compile
    print(async_compile._active_pool)
    """
    assert output(folder, script).split() == ["False", "None"]
    assert begun(folder) == []


@pytest.mark.parametrize("why", ["stop", "limit"])
def test_whoever_is_told_to_stop_waits_no_longer_and_leaves_nobody(folder: Path, why: str) -> None:
    script = """
    import time, pathlib, os
    def begun():
        return list(pathlib.Path(os.environ["KERNELS"]).glob("*.begun"))
    stop = (lambda: bool(begun())) if os.environ["WHY"] == "stop" else (lambda: False)
    if os.environ["WHY"] == "limit":
        compile_ahead._LIMIT_S = 2.0
    CompileAhead(DEVICE, torch.device("cpu"), stop)([problem(4096, 4096, 4096)])
    """
    start = time.monotonic()
    output(folder, script, SECONDS_EACH="600", WHY=why)
    assert time.monotonic() - start < PATIENCE_S
    wait_until_gone(begun(folder))
    assert kernels(folder) == {}


def test_another_quack_is_left_to_compile_where_it_measures(folder: Path) -> None:
    script = """
    import pathlib
    sys.dont_write_bytecode = True
    module = pathlib.Path(sys.path[1]) / "quack" / "cache" / "async_compile.py"
    for broken in (
        "import libtvm_ffi_that_is_not_there", "raise OSError('libtvm_ffi.so')",
        "_active_pool = None", "def _detect_arch_env(now, otherwise): ...",
    ):
        module.write_text(broken)
        for name in [name for name in sys.modules if name.startswith("quack")]:
            del sys.modules[name]
        CompileAhead(DEVICE, torch.device("cpu"))([problem(4096, 4096, 4096)])
        print("went on")
    """
    assert output(folder, script).split("\n")[:-1] == 4 * ["went on"]


def test_what_is_compiled_is_what_a_call_of_the_problem_asks_for(folder: Path) -> None:
    """In all layouts, for all that becomes of C, swapped and split; kernels do not know extents."""
    script = """
    import itertools
    from autogemm.operands import make_operands, normal
    from quack import gemm
    from quack.cache import async_compile

    async_compile._active_pool = type("Pool", (), {"submit": lambda self, sha: None})()
    def asked(call):
        try:
            call()
        except async_compile.CompilePending as kernel:
            return kernel.sha
    strategy, compared, swapped, split, batches = BY_NAME["cute"], 0, 0, 0, 0
    here = torch.device("cpu")
    ahead = CompileAhead(DEVICE, here)
    for (m, n, k, batch), a, b, update, out in itertools.product(
        ((512, 512, 512, 1), (16, 4096, 128, 1), (256, 8, 512, 1), (64, 64, 2048, 1),
         (128, 256, 64, 1), (128, 256, 64, 6), (64, 16, 128, 3)),
        ("row", "col"), ("row", "col"), ("none", "add", "inplace", "bias"), ("row", "col"),
    ):
        p = replace(problem(m, n, k, a=a, b=b, update=update, batch=batch), out=out)
        given = make_operands(p, here, normal)
        C, D = given.C, given.out
        for c in strategy.candidates(p, DEVICE):
            run = strategy.bind(p, DEVICE, c.kwargs)
            if D is None and out == "col":
                D = torch.empty(p.batch, n, m, dtype=torch.bfloat16).mT
                D = D if batch > 1 else D[0]
            real = asked(lambda: run(1.5, given.A, given.B, 0.5, C, D))
            assert real is not None
            assert asked(lambda: ahead._call(p, c)) == real, (str(p), str(c))
            compared += 1
            swapped += bool(c.kwargs["swap"])
            split += int(c.kwargs["split"]) > 1
            batches += batch > 1
    assert min(compared, swapped, split, batches) > 50, (compared, swapped, split, batches)
    """
    output(folder, script)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
def test_processes_end_with_the_one_they_work_for_however_it_ends(folder: Path) -> None:
    script = "CompileAhead(DEVICE, torch.device('cpu'))([problem(4096, 4096, 4096)])"
    process = start(folder, script, SECONDS_EACH="600")
    patience = time.monotonic() + PATIENCE_S
    while not begun(folder):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < patience
        time.sleep(0.05)
    process.kill()
    process.wait()
    wait_until_gone(begun(folder))
