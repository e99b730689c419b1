"""What ``record`` sees of a program, what it writes, and that the program notices nothing."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fresh import run_script
from invented import CPU, GPU, choice, entry, write_for_this_cpu
from routed import every_product_tuned
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

import autogemm
from autogemm import recording as recordings
from autogemm.errors import InvalidProblem
from autogemm.problem import DTYPES, contiguous_problem
from autogemm.recording import Product, Recording
from autogemm.shapes import read_shapes
from autogemm.strategies import Candidate

ROOT = Path(autogemm.__file__).parents[1]


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype)


def seen(recording: Recording) -> dict[str, int]:
    """Product → calls."""
    found = {str(product): product.count for product in recording.products}
    assert len(found) == len(recording.products)
    return found


def only(recording: Recording) -> Product:
    (product,) = recording.products
    return product


A, B, C = normal(4, 5), normal(5, 6), normal(4, 6)
BATCH_A, BATCH_B, BATCH_C = normal(3, 4, 5), normal(3, 5, 6), normal(3, 4, 6)

# ------------------------------------------------------------------------ what is seen

CALLS: dict[str, tuple[Any, str]] = {
    "mm": (lambda: torch.mm(A, B), "row x row -> row, none"),
    "matmul": (lambda: A @ B, "row x row -> row, none"),
    "mm of transposed operands": (
        lambda: normal(5, 4).t() @ normal(6, 5).t(), "col x col -> row, none",
    ),
    "mm of a slice": (lambda: normal(4, 10)[:, ::2] @ B, "strided x row -> row, none"),
    "mm into out": (lambda: torch.mm(A, B, out=C.clone()), "row x row -> row, none"),
    "mm into an out that is resized": (
        lambda: torch.mm(A, B, out=torch.empty(0)), "row x row -> row, none",
    ),
    "mm into a transposed out": (
        lambda: torch.mm(A, B, out=normal(6, 4).t()), "row x row -> col, none",
    ),
    "addmm": (lambda: torch.addmm(C, A, B, alpha=2), "row x row -> row, add"),
    "addmm of a row": (lambda: torch.addmm(C[0], A, B), "row x row -> row, bias"),
    "addmm of a column": (lambda: torch.addmm(C[:, :1], A, B), "row x row -> row, add"),
    "addmm with beta = 0": (lambda: torch.addmm(C, A, B, beta=0), "row x row -> row, none"),
    "addmm into another out": (
        lambda: torch.addmm(C, A, B, out=C.clone()), "row x row -> row, add",
    ),
    "addmm into C": (
        lambda: (c := C.clone(), torch.addmm(c, A, B, out=c)), "row x row -> row, inplace",
    ),
    "addmm_": (lambda: C.clone().addmm_(A, B), "row x row -> row, inplace"),
    "linear": (lambda: F.linear(A, B.t().contiguous()), "row x col -> row, none"),
    "linear with a bias": (
        lambda: F.linear(A, B.t().contiguous(), C[0]), "row x col -> row, bias",
    ),
    "vmap": (
        lambda: torch.vmap(torch.mm, in_dims=(0, None))(A[:, None], B), "row x row -> row, none",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_a_product_is_seen_with_its_layouts_and_what_becomes_of_c(name: str) -> None:
    call, words = CALLS[name]
    with autogemm.record() as recording:
        call()
    assert seen(recording) == {f"float32 4x6x5 ({words})": 1}


def test_a_product_of_one_row_is_seen() -> None:
    with autogemm.record() as recording:
        F.linear(A[:1], B.t())
    assert seen(recording) == {"float32 1x6x5 (row x row -> row, none)": 1}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: torch.bmm(BATCH_A, BATCH_B), "row x row -> row, none"),
        (lambda: BATCH_A @ BATCH_B, "row x row -> row, none"),
        (lambda: torch.einsum("bij,bjk->bik", BATCH_A, BATCH_B), "row x row -> row, none"),
        (lambda: torch.bmm(BATCH_A, BATCH_B, out=BATCH_C.clone()), "row x row -> row, none"),
        (lambda: BATCH_A @ normal(3, 6, 5).mT, "row x col -> row, none"),
        (lambda: torch.baddbmm(BATCH_C, BATCH_A, BATCH_B), "row x row -> row, add"),
        (lambda: torch.baddbmm(C[0], BATCH_A, BATCH_B), "row x row -> row, bias"),
        (lambda: torch.baddbmm(BATCH_C, BATCH_A, BATCH_B, beta=0), "row x row -> row, none"),
        (lambda: BATCH_C.clone().baddbmm_(BATCH_A, BATCH_B), "row x row -> row, inplace"),
    ],
)
def test_a_batch_is_one_call_of_several_products(call: Any, words: str) -> None:
    with autogemm.record() as recording:
        call()
    product = only(recording)
    assert product.count == 1
    assert str(product.problem) == f"float32 3x 4x6x5 ({words})"


@pytest.mark.parametrize("multiply", [torch.matmul, lambda A, B: autogemm.gemm(1.0, A, B)])
def test_a_batch_times_one_matrix_is_one_product(multiply: Any) -> None:
    with autogemm.record() as recording:
        multiply(BATCH_A, B)
    assert seen(recording) == {"float32 12x6x5 (row x row -> row, none)": 1}


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_every_type_of_product_is_seen_as_it_is_computed(dtype: torch.dtype) -> None:
    a, b = normal(2, 3).to(dtype), normal(3, 4).to(dtype)
    with autogemm.record() as recording:
        a @ b
        a @ b
    assert only(recording).problem.dtype == dtype
    assert only(recording).count == 2


def test_under_autocast_the_type_is_the_one_computed_in() -> None:
    with autogemm.record() as recording, torch.autocast("cpu"):
        A @ B
    assert seen(recording) == {"bfloat16 4x6x5 (row x row -> row, none)": 1}


def test_a_layers_gradients_are_seen() -> None:
    layer = torch.nn.Linear(5, 6)
    x = A.clone().requires_grad_()
    with autogemm.record() as recording:
        (layer(x) * C).sum().backward()
    assert seen(recording) == {
        "float32 4x6x5 (row x col -> row, bias)": 1,
        "float32 4x5x6 (row x row -> row, none)": 1,
        "float32 6x5x4 (col x row -> row, none)": 1,
    }


@pytest.mark.parametrize(
    "context", [contextlib.nullcontext, torch.no_grad, torch.inference_mode], ids=str
)
@pytest.mark.parametrize(
    "call",
    [
        lambda: F.linear(A, B.t(), C[0]),
        lambda: A @ B,
        lambda: torch.einsum("ij,jk->ik", A, B),
        lambda: torch.linalg.multi_dot([A, B, B.t()]),
    ],
    ids=["linear", "matmul", "einsum", "multi_dot"],
)
def test_what_torch_takes_apart_is_seen_in_every_mode_of_autograd(
    context: Any, call: Any
) -> None:
    with autogemm.record() as inside, context():
        call()
    with autogemm.record() as plain:
        call()
    assert seen(inside) == seen(plain) != {}


def one(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.mm(a, b)


def forked(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    first, second = torch.jit.fork(one, a, b), torch.jit.fork(one, a, b)
    return torch.jit.wait(first) + torch.jit.wait(second) + torch.mm(a, b)


def test_a_thread_that_inherits_the_modes_is_seen_as_autograds_are() -> None:
    threads = set()

    class Watched(Recording):
        def _run(self, *arguments: Any) -> Any:
            threads.add(threading.get_ident())
            return super()._run(*arguments)

    # TorchScript's tasks take the state of the thread along by what autograd's threads use too.
    recording = Watched()
    with recordings.Listener(recording._run):
        torch.jit.script(forked)(A, B)
    assert sum(seen(recording).values()) == 3
    assert threads != {threading.get_ident()}, "nothing ran in another thread"


def test_a_thread_of_the_programs_own_is_not_seen() -> None:
    with autogemm.record() as recording:
        thread = threading.Thread(target=torch.mm, args=(A, B))
        thread.start()
        thread.join()
    assert recording.products == ()


@pytest.mark.skipif(
    not hasattr(torch.utils._python_dispatch.TorchDispatchMode, "ignore_compile_internals"),
    reason="this torch runs no compiled code under a dispatch mode",
)
def test_a_compiled_function_runs_compiled_and_its_products_are_seen() -> None:
    frames: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        frames.append(graph)
        return graph.forward

    compiled = torch.compile(lambda a, b: (a @ b).relu(), backend=backend, fullgraph=True)
    with autogemm.record() as recording:
        inside = compiled(A, B)
        compiled(A, B)
    assert torch.equal(inside, (A @ B).relu())
    assert seen(recording) == {"float32 4x6x5 (row x row -> row, none)": 2}
    compiled(A, B)
    assert len(frames) == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda: torch.ones(4, 5, dtype=torch.int64) @ torch.ones(5, 6, dtype=torch.int64),
        lambda: torch.empty(4, 5, device="meta") @ torch.empty(5, 6, device="meta"),
        lambda: torch.sparse.mm(A.to_sparse(), B),
        lambda: A[:0] @ B,
        lambda: A[:, :0] @ B[:0],
        lambda: A @ B[:, 0],
        lambda: torch.addbmm(C, BATCH_A, BATCH_B),
        lambda: F.conv2d(normal(1, 2, 5, 5), normal(3, 2, 3, 3)),
        lambda: torch.bmm(*(torch.nested.nested_tensor([x, x]) for x in (A, B))),
    ],
    ids=["int", "meta", "sparse", "no rows", "no k", "vector", "addbmm", "convolution", "nested"],
)
def test_what_no_table_could_have_an_entry_for_passes_unrecorded(call: Any) -> None:
    with autogemm.record() as recording:
        call()
    assert recording.products == ()


def test_fake_tensors_pass_unrecorded() -> None:
    with autogemm.record() as inner, FakeTensorMode() as mode:
        fake = torch.empty(4, 5) @ torch.empty(5, 6)
    with autogemm.record() as outside:
        fake.t() @ fake
    with FakeTensorMode(), autogemm.record() as around:
        torch.empty(4, 5) @ torch.empty(5, 6)
    assert fake.fake_mode is mode
    assert (*inner.products, *outside.products, *around.products) == ()


def test_a_wrapper_of_tensors_takes_itself_apart_and_its_products_are_seen() -> None:
    wrapped = TwoTensor(A, A.clone())
    with autogemm.record() as recording:
        result = wrapped @ B
    assert isinstance(result, TwoTensor)
    assert seen(recording) == {"float32 4x6x5 (row x row -> row, none)": 2}


# --------------------------------------------------------------- levels, autogemm's own calls


def test_the_level_is_what_torchs_settings_ask_for(restored_torch_settings: None) -> None:
    with autogemm.record() as recording:
        A @ B
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
        A @ B
        A.double() @ B.double()
    assert {(p.problem.dtype, p.level) for p in recording.products} == {
        (torch.float32, "highest"), (torch.float32, "medium"), (torch.float64, "highest"),
    }  # fmt: skip


def test_autogemms_own_call_is_one_product_whatever_it_runs() -> None:
    c = C.clone()
    with autogemm.record() as recording:
        torch.ops.autogemm.gemm(1.5, A, B, 0.5, C, None, None)
        torch.ops.autogemm.gemm(1.5, A, B, 0.0, None, "medium", None)
        torch.ops.autogemm.gemm(1.5, A, B, 0.0, C, None, 1e-3)
        torch.ops.autogemm.gemm_out(1.5, A, B, 0.5, c, c, "highest", None)
    assert {(str(p.problem), p.level, p.by, p.count) for p in recording.products} == {
        ("float32 4x6x5 (row x row -> row, add)", "highest", "autogemm", 1),
        ("float32 4x6x5 (row x row -> row, none)", "medium", "autogemm", 1),
        ("float32 4x6x5 (row x row -> row, none)", "highest", "autogemm", 1),
        ("float32 4x6x5 (row x row -> row, inplace)", "highest", "autogemm", 1),
    }
    torch.testing.assert_close(c, 1.5 * (A @ B) + 0.5 * C)


def test_an_update_in_place_is_recorded_as_one() -> None:
    c = C.clone()
    with autogemm.record() as recording:
        autogemm.gemm_(1.0, A, B, 1.0, c)
        autogemm.gemm(1.0, A, B, out=c)
    assert {str(p) for p in recording.products} == {
        "float32 4x6x5 (row x row -> row, inplace)", "float32 4x6x5 (row x row -> row, none)",
    }  # fmt: skip


def test_a_layer_is_recorded_by_whom_it_is_served() -> None:
    layer = autogemm.nn.Linear(5, 6)
    with autogemm.record() as recording:
        layer(A)
    assert only(recording).by == "torch"
    with every_product_tuned(), autogemm.record() as recording:
        layer(A).sum().backward()
    assert {p.by for p in recording.products} == {"autogemm"}
    assert sum(p.count for p in recording.products) == 2  # forward, and the weight's gradient


def test_a_call_served_by_the_table_says_how_much_faster_it_is_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = contiguous_problem(4, 6, 5, torch.float32, update="none", device_type="cpu")
    fast = choice(Candidate.of("matmul_axpby"), ratio=2.5)
    write_for_this_cpu(tmp_path, entry(problem, {"highest": fast}))
    monkeypatch.setenv("AUTOGEMM_TUNING_DB", str(tmp_path))
    autogemm.reload_tables()
    with autogemm.record(tmp_path / "shapes.yaml") as recording:
        torch.ops.autogemm.gemm(1.0, A, B, 0.0, None, None, None)
        torch.mm(A, B)
    assert {p.by: p.ratio for p in recording.products} == {"autogemm": 2.5, "torch": 1.0}
    loads = read_shapes(tmp_path / "shapes.yaml", "cpu").workloads
    assert {load.by: load.ratio for load in loads} == {"autogemm": 2.5, "torch": 1.0}


# ------------------------------------------------------------------- nothing else changes


def train(*, inference: bool = False) -> list[torch.Tensor]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(16, 16),
        torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0),
        torch.nn.LSTM(16, 8, batch_first=True),
    )
    x = normal(3, 7, 16)
    if inference:
        with torch.inference_mode():
            return [model.eval()(x)[0], torch.einsum("bij,bkj->bik", x, x), x[0] @ x[0].t()]
    result = model(x)[0]
    result.square().sum().backward()
    return [result, *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("inference", [False, True])
def test_a_program_computes_the_same_bits_as_without_a_recording(inference: bool) -> None:
    plain = train(inference=inference)
    with autogemm.record() as recording:
        watched = train(inference=inference)
    assert recording.products
    assert len(plain) == len(watched)
    for x, y in zip(plain, watched, strict=True):
        assert torch.equal(x, y)


def test_a_product_that_fails_is_not_counted_and_raises_what_torch_raises() -> None:
    with autogemm.record() as recording:
        A @ B
        with pytest.raises(RuntimeError, match="cannot be multiplied"):
            A @ A
    assert sum(seen(recording).values()) == 1


def test_recordings_nest() -> None:
    with autogemm.record() as outer:
        A @ B
        with autogemm.record() as inner:
            A @ B
    assert (only(outer).count, only(inner).count) == (2, 1)


def test_each_call_of_a_decorated_function_is_a_recording_of_its_own(tmp_path: Path) -> None:
    @autogemm.record(tmp_path / "shapes.yaml")
    def program(times: int) -> int:
        for _ in range(times):
            A @ B
        return times

    assert (program(5), program(3)) == (5, 3)
    assert read_shapes(tmp_path / "shapes.yaml", "cpu").workloads[0].count == 3


# ------------------------------------------------------------------------ times, the table


def test_times_are_those_of_the_products_and_of_the_whole_block() -> None:
    with autogemm.record() as recording:
        torch.mm(normal(100, 100), normal(100, 100))
        A @ B
        assert recording.seconds == 0.0
        assert all(product.share is None for product in recording.products)
    large, small = sorted(recording.products, key=lambda p: -p.problem.m)
    assert large.seconds is not None
    assert small.seconds is not None
    assert 0 < large.seconds + small.seconds <= recording.seconds
    assert large.share == large.seconds / recording.seconds
    assert list(recording.products) == sorted(recording.products, key=lambda p: -(p.seconds or 0))


def test_a_recording_prints_as_a_table() -> None:
    with autogemm.record() as recording:
        A @ B
        BATCH_A @ BATCH_B
    text = str(recording)
    assert "float32 4x6x5 (row x row -> row, none)" in text
    assert "float32 3x 4x6x5" in text
    assert f"of {recording.seconds:.4g} s" in text
    with autogemm.record() as nothing:
        pass
    assert str(nothing) == "no matrix product was recorded"


class Span:
    """A span on an invented GPU, which takes 2 ms for whatever it is given."""

    device = torch.device("cuda", 0)
    ended = False

    def end(self) -> None:
        self.ended = True

    def seconds(self) -> float:
        assert self.ended
        return 2e-3


def test_gpu_times_come_from_events_and_captured_products_have_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spans: list[Span | None] = [Span(), None, Span()]
    monkeypatch.setattr(recordings, "begin", lambda device: spans.pop(0))
    monkeypatch.setattr(recordings, "device_of", lambda device: GPU)
    recording = Recording()
    problem = contiguous_problem(8, 8, 8, torch.float32)

    def facts(mode: str) -> Any:
        return recordings.Facts(problem, "highest", mode, "torch")

    for _ in range(3):
        assert recording._run(lambda: "result", facts, torch.device("cuda", 0)) == "result"
    assert all(product.seconds is None for product in recording.products)
    recording._events.collect()
    assert {(p.mode, p.count, p.seconds) for p in recording.products} == {
        ("eager", 2, 4e-3), ("graph", 1, None),
    }  # fmt: skip
    rows = [line for line in recording._as_yaml().splitlines() if line.startswith("- ")]
    assert "count: 2, ms: 4.0, level: highest, device: cuda}" in rows[0]
    assert "count: 1, level: highest, device: cuda, mode: graph}" in rows[1]


# -------------------------------------------------------------------------------- the file


def test_a_file_reads_back_as_what_was_recorded(tmp_path: Path) -> None:
    path = tmp_path / "shapes.yaml"
    with autogemm.record(path) as recording:
        A @ B
        A.double() @ normal(6, 5).double().t()
        C.clone().addmm_(A, B)
        normal(4, 10)[:, ::2] @ B
        torch.mm(A, B, out=normal(6, 4).t())
    program = read_shapes(path, "cpu")
    assert program.seconds == pytest.approx(recording.seconds, rel=1e-3)
    assert [load.problem for load in program.workloads] == [p.problem for p in recording.products]
    for load, product in zip(program.workloads, recording.products, strict=True):
        assert (load.count, load.level, load.mode) == (product.count, product.level, product.mode)
        assert load.seconds == pytest.approx(product.seconds, rel=1e-3)


def test_an_old_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "shapes.yaml"
    path.write_text("old")
    with autogemm.record(path):
        A @ B
        assert path.read_text() == "old"
    assert read_shapes(path, "cpu").workloads
    assert list(tmp_path.iterdir()) == [path]


def test_a_relative_path_is_that_of_where_the_block_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with autogemm.record("shapes.yaml"):
        A @ B
        os.chdir("elsewhere")
    assert (tmp_path / "shapes.yaml").exists()


def test_a_block_that_raises_leaves_what_was_seen_and_raises(tmp_path: Path) -> None:
    path = tmp_path / "shapes.yaml"

    @autogemm.record(path)
    def program() -> None:
        A @ B
        raise KeyError("the program's own")

    with pytest.raises(KeyError, match="own"):
        program()
    assert read_shapes(path, "cpu").workloads[0].count == 1


def test_a_path_that_cannot_be_written_is_told_before_the_program_runs(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none" / "shapes.yaml"):
        with (
            pytest.raises(InvalidProblem, match="cannot be written there; expected a file in"),
            autogemm.record(path),
        ):
            pytest.fail("the program ran")


def test_writing_that_fails_at_the_end_is_told_and_the_recording_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "shapes.yaml"
    found = []

    def program(error: Exception | None) -> None:
        with autogemm.record(path) as recording:
            found.append(recording)
            A @ B
            if error is not None:
                raise error

    monkeypatch.setattr(recordings, "write_text", full)
    with pytest.raises(InvalidProblem, match=r"No space left.*another path"):
        program(None)
    with pytest.warns(RuntimeWarning, match="No space left"), pytest.raises(KeyError):
        program(KeyError())
    monkeypatch.undo()
    found[0].write(path)
    assert read_shapes(path, "cpu").workloads[0].count == 1


# ------------------------------------------------------------------------------- as a user


PROGRAM = """
import sys, torch
from beside import SIZE
assert __name__ == "__main__"
layer = torch.nn.Linear(SIZE, 8)
for _ in range(int(sys.argv[1])):
    layer(torch.randn(4, SIZE)).square().sum().backward()
torch.randn(3, 4, 5) @ torch.randn(3, 5, 6)
print("arguments", sys.argv[1:])
sys.exit(int(sys.argv[2]))
"""


def script(name: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / name), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=folder, text=True, capture_output=True,
        timeout=300, check=False,
    )  # fmt: skip


def test_a_program_is_recorded_tuned_and_told_what_it_saves(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "program.py").write_text(PROGRAM)
    (tmp_path / "elsewhere" / "beside.py").write_text("SIZE = 16")
    told = script(
        "record.py", "shapes.yaml", "--", "elsewhere/program.py", "5", "3", "--x", folder=tmp_path
    )
    assert told.returncode == 3, told.stderr
    assert "arguments ['5', '3', '--x']" in told.stdout
    assert "float32 4x8x16 (row x col -> row, bias)" in told.stdout

    tuned = script(
        "tune.py", "--device", "cpu", "--shapes", "shapes.yaml", "--db", "tables",
        "--storage", "trials.journal", "--precision", "highest", folder=tmp_path,
    )  # fmt: skip
    assert tuned.returncode == 0, tuned.stderr
    assert "3 problems (0 tuned before)" in tuned.stdout
    assert "float32 3x 4x6x5 (row x row -> row, none)" in tuned.stdout
    assert "recorded us" in tuned.stdout
    seconds = read_shapes(tmp_path / "shapes.yaml", "cpu").seconds
    assert f" s of {seconds:.4g} s, " in tuned.stdout


def test_a_program_or_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    record = ROOT / "scripts" / "record.py"
    missing = run_script(record, "shapes.yaml", "--", "program.py", folder=tmp_path)
    assert missing.returncode == 2
    assert "program is program.py; expected a Python file" in missing.stderr
    (tmp_path / "program.py").write_text("print('ran')")
    told = run_script(record, "none/shapes.yaml", "program.py", folder=tmp_path)
    assert told.returncode == 1
    assert told.stderr.startswith("none/shapes.yaml: the recording cannot be written there")
    assert told.stdout == ""


def test_the_recordings_device_is_named(tmp_path: Path) -> None:
    with autogemm.record(tmp_path / "shapes.yaml"):
        A @ B
    assert str(autogemm.recording.device_of(CPU)) in (tmp_path / "shapes.yaml").read_text()
