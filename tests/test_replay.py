"""A call that repeats another one's launches passes what it would have passed the long way."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from invented import GPU

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)
if not torch.cuda.is_available() and "triton" not in sys.modules:
    os.environ["TRITON_INTERPRET"] = "1"  # as the tests of kernels need it, read by the import

from autogemm.problem import problem_of
from autogemm.strategies import BY_NAME

launching = importlib.import_module("autogemm.kernels.launch")
direct = importlib.import_module("autogemm.kernels.direct")
replay = importlib.import_module("autogemm.kernels.replay")
short_product = importlib.import_module("autogemm.kernels.short_product")

DESCRIPTORS = {
    "half_product._product_kernel": 2, "interleaved_product._interleaved_kernel": 9,
    "continuous_product._continuous_kernel": 2, "split_product._product_kernel": 2,
    "fused_product._fused_kernel": 2, "fused_batch._batched_kernel": 2,
    "streamed_product._streamed_kernel": 2, "tandem_product._tandem_kernel": 2,
    "half_batch._batch_kernel": 2, "short_product._short_kernel": 2,
}  # fmt: skip
FIXED = (77, False, False, None, None, (4, 1, 0), None, None, None)
STREAM = 5


@dataclass
class Host:
    """Launches that reach the driver, and memory that is given out at the same places again."""

    launched: list[tuple[object, ...]] = field(default_factory=list)
    looked_up: int = 0
    memory: torch.Tensor = field(default_factory=lambda: torch.empty(2**24, dtype=torch.uint8))
    used: int = 0
    together: bool = False
    """Whether a kernel's arguments are passed as one sequence, as Triton 3.7 and later do."""

    def __post_init__(self) -> None:
        self.memory = self.memory[-self.memory.data_ptr() % 512 :]

    def empty(self, shape: Any, *, dtype: torch.dtype, device: object) -> torch.Tensor:
        size = torch.Size(shape).numel() * dtype.itemsize
        made = self.memory[self.used : self.used + size].view(dtype).view(shape)
        self.used += -(-size // 512) * 512
        return made

    def get(self, key: tuple[int, ...]) -> tuple[None, Any, None]:
        """What ``launch`` finds compiled."""
        self.looked_up += 1
        names = {
            id(getattr(importlib.import_module(f"autogemm.kernels.{module}"), kernel)): count
            for (module, kernel), count in ((k.split("."), c) for k, c in DESCRIPTORS.items())
        }
        short = short_product._short_kernel
        reads = dict(zip(short.arg_names[-len(key[2]) :], key[2], strict=True))
        direct_reads = key[0] == id(short) and reads["A_ROWS"] is not None
        known = [(i, "swizzle") for i in range(0 if direct_reads else names.get(key[0], 0))]
        start = direct.Start(
            lambda *given: self.launched.append(given), lambda *given: given, known, FIXED,
            together=self.together,
        )  # fmt: skip
        return None, start, None

    def goes_the_long_way(self, run: Callable[..., object], *given: object) -> bool:
        """Whether a call asks for compiled kernels, as one that is repeated does not."""
        before = self.looked_up
        self.calls(run, *given)
        return self.looked_up > before

    def calls(self, run: Callable[..., object], *given: object) -> list[tuple[object, ...]]:
        """What a call launches."""
        self.launched, self.used = [], 0
        run(*given)
        return self.launched


@pytest.fixture(params=[False, True], ids=["spread", "together"])
def host(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Host:
    made = Host(together=request.param)
    monkeypatch.setattr(launching, "_compiled", made)
    monkeypatch.setattr(replay, "_empty", made.empty)
    for module in (direct, replay):
        monkeypatch.setattr(module, "stream_of", lambda device: STREAM)
    return made


def laid_out(rows: int, cols: int, layout: str, dtype: torch.dtype) -> torch.Tensor:
    if layout == "row":
        return torch.empty(rows, cols, dtype=dtype)
    if layout == "col":
        return torch.empty(cols, rows, dtype=dtype).t()
    if layout == "odd":  # rows that begin anywhere
        return torch.empty(rows, cols + 1, dtype=dtype)[:, 1:]
    if layout == "shifted":
        return torch.empty(rows * cols + 3, dtype=dtype)[3:].view(rows, cols)
    if layout == "strided":
        return torch.empty(rows, 2 * cols, dtype=dtype)[:, ::2]
    assert layout == "one row"
    return torch.empty(1, cols, dtype=dtype).expand(rows, cols)


def half(**params: object) -> tuple[str, dict[str, object]]:
    plain = {
        "bm": 64, "bn": 64, "bk": 64, "warps": 4, "stages": 3, "slices": 1, "group": 8,
        "persistent": False,
    }  # fmt: skip
    return "triton_gemm", {**plain, **params}


def emulated(form: str, **params: object) -> tuple[str, dict[str, object]]:
    plain = {
        "form": form, "method": "fp16x3", "bm": 64, "bn": 64, "bk": 64, "warps": 4, "stages": 3,
        "chunk": 256, "slices": 1, "group": 8,
    }  # fmt: skip
    return "emulated_fp32", {**plain, **params}


CASES = {
    "half": half(), "half transposed": half(bm=16, bn=64), "half sliced": half(slices=4),
    "half persistent": half(bm=128, bn=256, warps=8, persistent=True),
    "half direct": half(reads="direct"),
    "continuous": emulated("continuous"), "continuous sliced": emulated("continuous", slices=3),
    "one term": emulated("continuous", method="fp16"), "split": emulated("split", slices=3),
    "fused": emulated("fused", stages=2), "fused sliced": emulated("fused", stages=2, slices=3),
    "narrow": emulated("fused", bm=16, chunk=64), "streamed": emulated(
        "streamed", bm=128, bn=128, bk=32, warps=8, slices=2
    ), "tandem": emulated("tandem", bm=128, bn=128, bk=32, warps=8, stages=2, slices=2),
}  # fmt: skip
BATCHES = {
    "continuous": CASES["continuous"], "fused": CASES["fused"], "half": CASES["half"],
    "half persistent": CASES["half persistent"],
    "short": ("short", {"bm": 64, "bn": 64, "bk": 32, "warps": 4, "stages": 2}),
    "short direct": (
        "short", {"bm": 32, "bn": 32, "bk": 32, "warps": 4, "stages": 1, "reads": "direct"}
    ),
}  # fmt: skip
LAYOUTS = [
    ("row", "row", "row", "none"), ("row", "col", "row", "row"), ("col", "row", "col", "col"),
    ("odd", "row", "odd", "none"), ("shifted", "odd", "row", "strided"),
    ("row", "row", "one row", "none"), ("row", "col", "none", "odd"),
    ("row", "row", "none", "none"), ("odd", "odd", "row", "none"),
    ("row", "row", "inplace", "row"), ("col", "col", "inplace", "col"),
]  # fmt: skip


def operands(
    case: str, a: str, b: str, c: str, out: str, m: int = 96, n: int = 80, k: int = 1024
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    dtype = torch.bfloat16 if case.startswith("half") else torch.float32
    if case == "half direct":
        k += 1
    D = None if out == "none" else laid_out(m, n, out, dtype)
    C = D if c == "inplace" else None if c == "none" else laid_out(m, n, c, dtype)
    return laid_out(m, k, a, dtype), laid_out(k, n, b, dtype), C, D


def on_a_gpu(layout: str, x: torch.Tensor) -> str:
    """A layout's word where alignment counts."""
    pitch = max(x.stride()) * x.element_size()
    return layout if pitch % 16 == x.data_ptr() % 16 == 0 else f"{layout}-unaligned"


def bound(case: str, A: torch.Tensor, B: torch.Tensor, C: Any, out: Any) -> Callable[..., Any]:
    name, params = (BATCHES if A.ndim == 3 else CASES)[case]
    what = problem_of(A, B, C, out, C is None)
    what = replace(what, a=on_a_gpu(what.a, A), b=on_a_gpu(what.b, B))
    return BY_NAME[name].bind(what, GPU, params)


def both_ways(
    host: Host, monkeypatch: pytest.MonkeyPatch, bind: Callable[[], Callable[..., Any]],
    sets: list[tuple[Any, ...]],
) -> None:  # fmt: skip
    """Every call but the first repeats it, with what the long way passes."""
    same = 0.5
    scalars = [
        (same, same), (1.5, 0.5), (-0.0, 2.0), (1.0, 0.0), (1.5 + 0j, 0.5 + 0j),
        (float("nan"), float("inf")),
    ]  # fmt: skip
    monkeypatch.setattr(replay, "_device_of", lambda x: None)
    run = bind()
    expected = [
        host.calls(run, alpha, A, B, beta, C, out)
        for (alpha, beta), (A, B, C, out) in zip(scalars * len(sets), sets, strict=False)
    ]
    monkeypatch.setattr(replay, "_device_of", lambda x: 7)
    run = bind()
    for i, ((alpha, beta), (A, B, C, out)) in enumerate(
        zip(scalars * len(sets), sets, strict=False)
    ):
        before = host.looked_up
        found = host.calls(run, alpha, A, B, beta, C, out)
        assert repr(found) == repr(expected[i])  # NaN is not itself
        assert (host.looked_up > before) == (i == 0), "the long way"


@pytest.mark.parametrize("layout", LAYOUTS, ids=" ".join)
@pytest.mark.parametrize("case", CASES)
def test_a_call_is_repeated_as_it_would_have_been_made(
    case: str, layout: tuple[str, str, str, str], host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    if case in ("streamed", "tandem", "fused", "fused sliced", "narrow") and (
        "odd" in layout[:2] or "shifted" in layout[:2]
    ):
        pytest.skip("the form needs aligned operands")
    if case == "half direct" and (layout[0] == "col" or layout[3] == "col"):
        pytest.skip("A by rows is read directly, for a result by rows")
    if case == "half direct" and layout[1] != "row":
        pytest.skip("torch copies this B, which the next test is about")
    sets = [operands(case, *layout) for _ in range(6)]
    both_ways(host, monkeypatch, lambda: bound(case, *sets[0]), sets)


@pytest.mark.parametrize("c", ["none", "col", "inplace"])
@pytest.mark.parametrize("offset", [0, 1, 3, 5])
def test_an_unaligned_b_read_directly_is_repeated(
    offset: int, c: str, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one() -> tuple[Any, ...]:
        A = torch.empty(1025, 96, dtype=torch.bfloat16).t()
        B = torch.empty(80 * 1025 + 8, dtype=torch.bfloat16)[offset:][: 80 * 1025].view(80, 1025)
        D = torch.empty(80, 96, dtype=torch.bfloat16).t()
        C = None if c == "none" else D if c == "inplace" else torch.empty_like(D)
        return A, B.t(), C, D

    sets = [one() for _ in range(3)]
    both_ways(host, monkeypatch, lambda: bound("half direct", *sets[0]), sets)


@pytest.mark.parametrize("which", range(4), ids=["A", "B", "C", "out"])
@pytest.mark.parametrize("case", ["half", "continuous", "split", "fused", "tandem"])
def test_an_operand_whose_rows_lie_further_apart_is_not_taken_for_one_before(
    case: str, which: int, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = operands(case, "row", "row", "row", "row")
    later = list(first)
    rows, cols = later[which].shape  # type: ignore[union-attr]
    later[which] = torch.empty(rows, cols + 16, dtype=first[0].dtype)[:, :cols]
    both: list[tuple[Any, ...]] = [first, first, tuple(later), tuple(later)]

    def launches(run: Callable[..., object]) -> list[list[tuple[object, ...]]]:
        return [host.calls(run, 1.5, A, B, 0.5, C, out) for A, B, C, out in both]

    monkeypatch.setattr(replay, "_device_of", lambda x: None)
    expected = launches(bound(case, *first))
    assert repr(expected[0]) != repr(expected[2])
    monkeypatch.setattr(replay, "_device_of", lambda x: 7)
    assert repr(launches(bound(case, *first))) == repr(expected)


def test_a_c_that_begins_where_the_first_tile_of_a_does_is_not_taken_for_it(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows an odd number of elements apart are described from a multiple of 16 bytes on."""

    def one(alike: bool) -> tuple[Any, ...]:
        A, B, _, _ = operands("half direct", "row", "row", "row", "none")
        whole = torch.empty_like(A)
        return A, B, (A if alike else whole)[:, 8:88], None

    first, later = one(True), one(False)
    monkeypatch.setattr(replay, "_device_of", lambda x: None)
    expected = host.calls(bound("half direct", *later), 1.5, *later[:2], 0.5, *later[2:])
    monkeypatch.setattr(replay, "_device_of", lambda x: 7)
    run = bound("half direct", *first)
    host.calls(run, 1.5, *first[:2], 0.5, *first[2:])
    assert repr(host.calls(run, 1.5, *later[:2], 0.5, *later[2:])) == repr(expected)


def test_a_c_that_is_an_operand_is_told_from_another(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    A, B, C = (torch.empty(96, 96, dtype=torch.bfloat16) for _ in range(3))
    monkeypatch.setattr(replay, "_device_of", lambda x: None)
    expected = host.calls(bound("half", A, B, C, None), 1.5, A, B, 0.5, C, None)
    monkeypatch.setattr(replay, "_device_of", lambda x: 7)
    run = bound("half", A, B, C, None)
    for added in (A, B):
        host.calls(run, 1.5, A, B, 0.5, added, None)
    assert repr(host.calls(run, 1.5, A, B, 0.5, C, None)) == repr(expected)


def test_a_call_of_which_one_launch_is_tritons_own_is_not_repeated(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "_device_of", lambda x: 7)
    A, B, C, _ = operands("continuous", "row", "row", "row", "none")
    run = bound("continuous", A, B, C, None)
    known, product = host.get, importlib.import_module("autogemm.kernels.continuous_product")
    by_triton: list[object] = []

    class Compiled:
        def __getitem__(self, grid: object) -> Callable[..., None]:
            return lambda *given: by_triton.append(given)

    def get(key: tuple[int, ...]) -> Any:
        if key[0] == id(product._continuous_kernel):
            return Compiled(), None, None
        return known(key)

    monkeypatch.setattr(host, "get", get)
    for calls in (1, 2, 3):
        assert len(host.calls(run, 1.5, A, B, 0.5, C, None)) == 1, "the split's"
        assert len(by_triton) == calls


def test_a_call_that_fails_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_: object) -> None:
        replay.workspace(3, dtype=torch.float32, device=torch.device("cpu"))
        raise ZeroDivisionError

    monkeypatch.setattr(replay, "_device_of", lambda x: 7)
    A = torch.empty(4, 4)
    with pytest.raises(ZeroDivisionError):
        replay.into_new(write)(1.0, A, A, 0.0, None, None)
    assert replay._noting.get() is None


def test_a_call_within_a_call_is_noted_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "_device_of", lambda x: 7)
    A, seen = torch.empty(4, 4), []
    inner = replay.into_new(lambda *_: seen.append(replay._noting.get()))

    def write(*_: object) -> None:
        before = replay._noting.get()
        inner(1.0, A, A, 0.0, None, None)
        assert replay._noting.get() is before

    replay.into_new(write)(1.0, A, A, 0.0, None, None)
    assert len(seen) == 1


def test_a_call_is_repeated_on_the_stream_of_its_moment_and_on_its_device_alone(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = iter(range(100, 200))
    device = [7]
    monkeypatch.setattr(replay, "_device_of", lambda x: device[0])
    monkeypatch.setattr(replay, "stream_of", lambda where: 1000 * where + next(streams))
    A, B, C, _ = operands("half", "row", "row", "row", "none")
    run = bound("half", A, B, C, None)
    host.calls(run, 1.5, A, B, 0.5, C, None)
    assert [host.calls(run, 1.5, A, B, 0.5, C, None)[0][3] for _ in range(2)] == [7100, 7101]
    device[0] = 8
    assert host.goes_the_long_way(run, 1.5, A, B, 0.5, C, None)


def test_operands_of_another_device_than_the_current_one_are_not_noted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    for index, found in ((-1, None), (0, None), (1, 1)):
        lying = SimpleNamespace(get_device=lambda index=index: index)
        assert replay._device_of(lying) == found


def test_what_torch_has_a_part_in_is_not_repeated(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "_device_of", lambda x: 7)
    A, B, C, _ = operands("half direct", "row", "col", "row", "none")
    run = bound("half direct", A, B, C, None)
    for _ in range(3):
        assert host.goes_the_long_way(run, 1.5, A, B, 0.5, C, None)


@pytest.mark.parametrize("case", ["continuous", "fused", "tandem"])
def test_a_gram_matrix_is_not_repeated_for_other_operands(
    case: str, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, Y = torch.empty(128, 1024), torch.empty(128, 1024)
    run = bound(case, X, X.t(), None, None)
    monkeypatch.setattr(replay, "_device_of", lambda x: 7)
    of_gram = host.calls(run, 1.0, X, X.t(), 0.0, None, None)
    assert repr(host.calls(run, 1.0, X, X.t(), 0.0, None, None)) == repr(of_gram)
    before = host.looked_up
    of_two = host.calls(run, 1.0, X, Y.t(), 0.0, None, None)
    assert host.looked_up > before
    assert repr(of_two) != repr(of_gram)


@pytest.mark.parametrize("form", BATCHES)
@pytest.mark.parametrize("shared", ["", "A", "B", "odd"])
def test_batches_are_repeated(
    form: str, shared: str, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one() -> tuple[Any, ...]:
        dtype = torch.bfloat16 if form.startswith("half") else torch.float32
        k = 97 if shared == "odd" and form.startswith("half") else 96
        A, B = torch.empty(3, 64, k, dtype=dtype), torch.empty(3, k, 64, dtype=dtype)
        if shared == "A":
            A = A[:1].expand(3, 64, 96)
        elif shared == "B":
            B = B[:1].expand(3, 96, 64)
        return A, B, torch.empty(3, 64, 64, dtype=dtype), None

    sets = [one() for _ in range(3)]
    both_ways(host, monkeypatch, lambda: bound(form, *sets[0]), sets)
    run = bound(form, *sets[0])
    for A, B, C, _ in sets:
        assert run(1.5, A, B, 0.5, C, None).shape == C.shape
    monkeypatch.setattr(replay, "_device_of", lambda x: 7)
    A, B, C, _ = sets[0]
    wide = torch.empty(2, 3, 64, 80, dtype=C.dtype)
    steps = torch.empty(2, 3, 64 * 64 + 8, dtype=C.dtype)[..., :-8]
    for other in (wide[..., :64], steps.view(2, 3, 64, 64)):  # of C and of the result
        for c, out in ((C, other[0]), (other[1], None), (other[1], other[0])):
            long_ways = [host.goes_the_long_way(run, 1.5, A, B, 0.5, c, out) for _ in range(2)]
            assert long_ways == [True, False]


def test_operands_that_lie_otherwise_go_the_long_way_once(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "_device_of", lambda x: 7)
    A, B, C, _ = operands("half", "row", "row", "row", "none")
    run = bound("half", A, B, C, None)
    other = torch.empty(96, 96, dtype=C.dtype)[:, :80]  # type: ignore[union-attr]
    into = torch.empty_like(C)  # type: ignore[arg-type]
    forms = (C, None), (other, None), (C, into), (C, other), (C, C), (None, None), (into, into)
    for c, out in forms:
        long_ways = [host.goes_the_long_way(run, 1.5, A, B, 0.5, c, out) for _ in range(2)]
        assert long_ways == ([True, False] if c is not into else [False, False])


@pytest.mark.parametrize("place", ["A", "B", "C", "out"])
def test_operands_that_begin_elsewhere_within_16_bytes_go_the_long_way(
    place: str, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "_device_of", lambda x: 7)

    def at(offset: int, rows: int, cols: int) -> torch.Tensor:
        return torch.empty(rows * cols + 8, dtype=torch.bfloat16)[offset:][: rows * cols].view(
            rows, cols
        )

    def lying(**offsets: int) -> list[torch.Tensor]:
        extents = {"A": (64, 1025), "B": (1025, 65), "C": (64, 65), "out": (64, 65)}
        return [at(offsets.get(name, 0), *extent) for name, extent in extents.items()]

    run = bound("half", *lying(A=1, B=1))
    for offset in (0, 3):
        for long_way in (True, False):
            A, B, C, out = lying(**{place: offset})
            assert host.goes_the_long_way(run, 1.5, A, B, 0.5, C, out) == long_way


def test_the_result_is_new_or_what_was_given(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "_device_of", lambda x: 7)
    A, B, C, out = operands("continuous", "row", "row", "row", "row")
    run = bound("continuous", A, B, C, out)
    for _ in range(2):
        version = out._version  # type: ignore[union-attr]
        assert run(1.5, A, B, 0.5, C, out) is out
        assert out._version == version + 1  # type: ignore[union-attr]
        made = run(1.5, A, B, 0.5, C, None)
        assert (made.shape, made.dtype, made.is_contiguous()) == ((96, 80), torch.float32, True)
        assert made.data_ptr() != C.data_ptr()  # type: ignore[union-attr]


def test_what_is_not_understood_is_not_repeated(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "_device_of", lambda x: 7)
    A, B, C, _ = operands("continuous", "row", "row", "row", "none")
    run = bound("continuous", A, B, C, None)
    started = host.get
    long_way: Any = lambda key: (lambda *_: lambda *_: None, None, None)  # noqa: E731
    monkeypatch.setattr(host, "get", long_way)  # Triton starts its kernels itself
    with pytest.raises(TypeError):
        run(1.5, A, B, 0.5, C, None)  # the stand-in cannot be launched
    monkeypatch.setattr(host, "get", started)
    monkeypatch.setattr(replay, "workspace", torch.empty)
    split = importlib.import_module("autogemm.kernels.split")
    monkeypatch.setattr(split, "workspace", torch.empty)  # memory that nobody noted
    for _ in range(3):
        assert host.goes_the_long_way(run, 1.5, A, B, 0.5, C, None)


def test_a_profiler_is_told_of_launches_the_long_way(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "_device_of", lambda x: 7)
    A, B, C, _ = operands("half", "row", "row", "row", "none")
    run = bound("half", A, B, C, None)
    host.calls(run, 1.5, A, B, 0.5, C, None)
    monkeypatch.setattr(replay, "is_watched", lambda: True)
    assert host.goes_the_long_way(run, 1.5, A, B, 0.5, C, None)


def test_so_many_ways_to_lie_are_kept_and_no_more(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "_device_of", lambda x: 7)
    monkeypatch.setattr(replay, "_REMEMBERED", 4)
    A, B, _, _ = operands("half", "row", "row", "none", "none")
    run = bound("half", A, B, None, None)
    for wide in (96, 104, 112, 120, 128, 136):
        C = torch.empty(96, wide, dtype=A.dtype)[:, :80]
        calls = [host.calls(run, 1.5, A, B, 0.5, C, None) for _ in range(2)]
        assert repr(calls[0]) == repr(calls[1])
