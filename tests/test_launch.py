"""Launching kernels: what is compiled once, what every launch passes, and who starts it."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)
if not torch.cuda.is_available() and "triton" not in sys.modules:
    os.environ["TRITON_INTERPRET"] = "1"  # as the tests of kernels need it, read by the import

import triton

launching = importlib.import_module("autogemm.kernels.launch")
direct = importlib.import_module("autogemm.kernels.direct")
descriptor = importlib.import_module("autogemm.kernels.operands").descriptor

def test_a_launch_goes_to_the_device_that_holds_the_operands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Triton launches on the current device, which need not be the operands'."""
    current = [0]
    seen: list[int] = []

    class OnDevice:
        def __init__(self, index: int) -> None:
            self.index = index

        def __enter__(self) -> None:
            self.before, current[0] = current[0], self.index

        def __exit__(self, *_: object) -> None:
            current[0] = self.before

    fake_torch = SimpleNamespace(
        cuda=SimpleNamespace(current_device=lambda: current[0], device=OnDevice)
    )
    monkeypatch.setattr(launching, "torch", fake_torch)

    class Kernel:
        arg_names: ClassVar = ["x"]

        def __getitem__(self, grid: object) -> Callable[..., None]:
            return lambda *args, **options: seen.append(current[0])

    for index in (0, 1, 0):
        x = SimpleNamespace(
            dtype=torch.float32, data_ptr=lambda: 0, get_device=functools.partial(int, index)
        )
        launching.launch(Kernel(), 1, (x,), (), (), {}, num_warps=1)
    assert seen == [0, 1, 0]
    assert current == [0]


class Compiled:
    """What a kernel compiles to: remembers its launches."""

    def __init__(self) -> None:
        self.launches: list[tuple[tuple[int, ...], tuple[object, ...]]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *args: self.launches.append((grid, args))


class Compiling:
    """A kernel that compiles at every call, and tells with what."""

    def __init__(self, *arg_names: str) -> None:
        self.arg_names = list(arg_names)
        self.calls: list[tuple[tuple[object, ...], dict[str, object]]] = []
        self.made: list[Compiled] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Compiled]:
        def call(*args: object, **options: object) -> Compiled:
            self.calls.append((args, options))
            self.made.append(Compiled())
            return self.made[-1]

        return call


@pytest.mark.parametrize("registers", [None, 128])
def test_a_launch_passes_everything_in_the_kernels_order_the_second_time_too(
    monkeypatch: pytest.MonkeyPatch, registers: int | None
) -> None:
    monkeypatch.setattr(launching, "CompiledKernel", Compiled)
    kernel = Compiling("tiles", "x", "m", "n", "alpha", "BM", "TERMS")
    x, descriptor = torch.empty(3), SimpleNamespace()
    for alpha in (1.5, 2.5):
        launching.launch(
            kernel, 7, (x,), (11, 12), (alpha,), {"BM": 64, "TERMS": 2}, num_warps=8,
            registers=registers, descriptors=(descriptor,),
        )  # fmt: skip
    limit = {} if registers is None else {"maxnreg": registers}
    assert kernel.calls == [
        ((descriptor, x, 11, 12, 1.5), {"BM": 64, "TERMS": 2, "num_warps": 8, **limit})
    ]
    assert kernel.made[0].launches == [((7, 1, 1), (descriptor, x, 11, 12, 2.5, 64, 2))]


def test_constants_in_another_order_than_the_kernels_are_noticed_at_once() -> None:
    kernel = Compiling("x", "m", "BM", "TERMS")
    with pytest.raises(AssertionError, match="TERMS"):
        launching.launch(
            kernel, 1, (torch.empty(3),), (11,), (), {"TERMS": 2, "BM": 64}, num_warps=1
        )


@pytest.mark.parametrize(
    "changed",
    [{"registers": 64}, {"num_warps": 4}, {"integers": (12,)}, {"constants": {"BM": 128}},
     {"tensors": (torch.empty(5)[1:],)}, {"tensors": (torch.empty(5, dtype=torch.float64),)}],
    ids=["registers", "warps", "integers", "constants", "alignment", "type"],
)  # fmt: skip
def test_what_compilation_depends_on_is_compiled_apart(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any]
) -> None:
    monkeypatch.setattr(launching, "CompiledKernel", Compiled)
    kernel = Compiling("x", "m", "alpha", "BM")
    first: dict[str, Any] = {
        "tensors": (torch.empty(5),), "integers": (11,), "floats": (1.0,),
        "constants": {"BM": 64}, "num_warps": 8, "registers": 128,
    }  # fmt: skip
    for given in (first, {**first, **changed}, first, {**first, **changed}):
        launching.launch(kernel, 1, **given)
    assert len(kernel.calls) == 2
    assert [len(made.launches) for made in kernel.made] == [1, 1]


TRITONS = ("3.6.0", "3.7.1", "3.8.0")
"""Versions whose launchers ``direct`` knows."""
TILES = {
    "swizzle": 3, "elem_size": 2, "elem_type": 8, "block_size": [64, 32], "fp4_padded": False,
}  # fmt: skip
ANNOTATIONS = list(range(9))
"""3.7 and later say of each argument what it is: descriptor, extents, strides, and four more."""


class Driver:
    """A GPU's, as far as launches ask it, in a version of Triton."""

    def __init__(self, triton_version: str) -> None:
        self.filled: list[tuple[object, ...]] = []
        self.is_old = triton_version.startswith("3.6.")
        self.is_installed = triton.__version__.startswith(triton_version[:4])
        tiled = "" if self.is_old else "_tiled"
        self.utils = SimpleNamespace(
            **{f"fill_tma_descriptor{tiled}": self.fill}, unload_module=lambda module: None
        )
        self.get_current_device = lambda: 1
        self.get_current_stream = lambda device: 100 + device

    def fill(self, *description: object) -> tuple[object, ...]:
        self.filled.append(description)
        return description


@pytest.fixture(params=TRITONS)
def driver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Driver:
    fake = Driver(request.param)
    versions = {"triton": request.param}
    monkeypatch.setattr(direct, "software_versions", lambda device_type: versions)
    monkeypatch.setattr(triton.runtime.driver, "_active", fake)
    stream_of = fake.get_current_stream
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", stream_of, raising=False)
    return fake


class CudaLauncher:
    """Triton's, in a version that is not installed."""

    def __init__(self, driver: Driver, launcher: Callable[..., None]) -> None:
        def spread(*args: Any) -> None:
            launcher(*args[:13], *expanded(args[13:]))

        def together(*args: Any) -> None:
            launcher(*args[:-1], expanded(args[-1]))

        def expanded(args: tuple[Any, ...]) -> list[Any]:
            x = args[0]
            filled = driver.fill(
                x.base.data_ptr(), 3, 2, 10, TILES["block_size"], x.shape, x.strides, 0
            )
            return [filled, *x.shape, *x.strides, *args[1:]]

        self._is_old, self.launch = driver.is_old, spread if driver.is_old else together

    def __call__(
        self, x: int, y: int, z: int, stream: int, function: object, metadata: object,
        launch_metadata: object, enter: object, leave: object, *args: object,
    ) -> None:  # fmt: skip
        how = (x, y, z, stream, function, self.launch_cooperative_grid, self.launch_pdl)
        listening = (metadata, launch_metadata, enter, leave)
        if self._is_old:
            self.launch(*how, None, None, *listening, *args)
        else:
            kinds = (self.arg_annotations, self.kernel_signature)
            self.launch(*how, *listening, None, None, *kinds, args)


def compiled_by_triton(
    driver: Driver, calls: list[tuple[object, ...]], metas: list[Any] | None = None, **other: object
) -> Any:
    """A kernel of a descriptor, a pointer, two numbers and a constant."""
    from triton.backends.nvidia import driver as nvidia
    from triton.compiler.compiler import CompiledKernel

    def launched(*args: object) -> None:
        calls.append(args)

    launcher: Any = CudaLauncher(driver, launched)
    if driver.is_installed:
        kinds = ["tensordesc<fp16[64,32]>", "*fp32", "i32", "fp32", "constexpr"]
        launcher = object.__new__(nvidia.CudaLauncher)
        launcher.launch = nvidia.wrap_handle_tensordesc(launched, dict(enumerate(kinds)), [TILES])
    vars(launcher).update({
        "global_scratch_size": 0, "global_scratch_align": 1, "profile_scratch_size": 0,
        "profile_scratch_align": 1, "launch_cooperative_grid": True, "launch_pdl": False,
        "num_ctas": 1, "arg_annotations": ANNOTATIONS, "kernel_signature": b"kinds",
        "gsan_enabled": False, **other,
    })  # fmt: skip
    compiled = object.__new__(CompiledKernel)
    metas = [TILES] if metas is None else metas
    vars(compiled).update(
        module=SimpleNamespace(), _run=launcher, function=77, packed_metadata=(4, 1, 0), name="k",
        src=None, metadata=SimpleNamespace(tensordesc_meta=metas, name="k"), metadata_group={},
        hash="",
    )  # fmt: skip
    return compiled


def parts(
    driver: Driver, call: tuple[Any, ...]
) -> tuple[tuple[Any, ...], tuple[Any, ...], tuple[Any, ...]]:
    """What a C function got: how to launch, what is to listen, and the kernel's arguments."""
    if driver.is_old:
        assert call[7:9] == (None, None), "scratch memory"
        return (*call[:7], call[9]), call[10:13], call[13:]
    assert call[11:15] == (None, None, ANNOTATIONS, b"kinds")
    assert len(call) == 16
    return call[:8], call[8:11], tuple(call[15])


def test_a_kernel_is_started_with_what_triton_would_pass(driver: Driver) -> None:
    calls: list[tuple[object, ...]] = []
    compiled = compiled_by_triton(driver, calls)
    x, out = torch.empty(96, 40, dtype=torch.float16), torch.empty(5)
    described = descriptor(x, (96, 36), 40, (64, 32))
    start = direct.starter(compiled, (described,), 4)
    assert start is not None
    rest = (11, 2.5, 64)
    compiled[(7, 1, 1)](described, out, *rest)
    start(7, 1, (described,), (out,), rest)
    theirs, ours = (parts(driver, call) for call in calls)
    assert driver.filled[0] == driver.filled[1]
    assert ours[0] == theirs[0] == (7, 1, 1, 101, 77, True, False, (4, 1, 0))
    assert ours[1] == (None, None, None)  # no profiler listens
    assert ours[2][:5] == theirs[2][:5] == (driver.filled[0], 96, 36, 40, 1)
    assert theirs[2][5] is out
    assert ours[2][5] == out.data_ptr()
    assert ours[2][6:] == theirs[2][6:] == rest


@pytest.mark.parametrize(
    "other",
    [{"global_scratch_size": 8}, {"profile_scratch_size": 8}, {"launch": len},
     {"gsan_enabled": True}, {"metas": [{**TILES, "fp4_padded": True}]},
     {"metas": [{**TILES, "is_im2col": True}]}, {"metas": [None]}],
    ids=str,
)  # fmt: skip
def test_what_is_not_as_expected_is_left_to_triton(
    driver: Driver, other: dict[str, object]
) -> None:
    x = descriptor(torch.empty(96, 40, dtype=torch.float16), (96, 36), 40, (64, 32))
    assert direct.starter(compiled_by_triton(driver, []), (x,), 4) is not None
    assert direct.starter(compiled_by_triton(driver, [], **other), (x,), 4) is None
    assert direct.starter(Compiled(), (), 4) is None
    assert direct.starter(compiled_by_triton(driver, []), (x, x), 4) is None
    if not driver.is_old:
        assert direct.starter(compiled_by_triton(driver, []), (x,), 5) is None


@pytest.mark.parametrize("version", ["3.5.1", "3.9.0", "3.60.0", ""])
def test_another_triton_launches_by_itself(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    monkeypatch.setattr(direct, "software_versions", lambda device_type: {"triton": version})
    x = descriptor(torch.empty(96, 40, dtype=torch.float16), (96, 36), 40, (64, 32))
    assert direct.starter(compiled_by_triton(driver, []), (x,), 4) is None


@pytest.mark.parametrize("together", [False, True])
def test_arguments_are_passed_one_by_one_or_as_one_sequence(
    monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    calls: list[tuple[object, ...]] = []
    monkeypatch.setattr(direct, "stream_of", lambda device: 100 + device)
    start = direct.Start(
        lambda *given: calls.append(given), lambda *given: given, [("tiles",)], (77, False),
        together=together,
    )  # fmt: skip
    x, out = torch.empty(96, 40, dtype=torch.float16), torch.empty(5)
    start(7, 1, (descriptor(x, (96, 36), 40, (64, 32)),), (out,), (11, 2.5))
    filled = (x.data_ptr(), "tiles", [96, 36], [40, 1], 0)
    arguments = [filled, 96, 36, 40, 1, out.data_ptr(), 11, 2.5]
    assert calls == [(7, 1, 1, 101, 77, False, *([arguments] if together else arguments))]


@pytest.mark.parametrize("name", ["launch_enter_hook", "launch_exit_hook"])
def test_a_profiler_sees_every_launch(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    calls: list[tuple[object, ...]] = []
    kernel = Compiling("tiles", "x", "m", "alpha", "BM")
    monkeypatch.setattr(launching, "CompiledKernel", object)
    monkeypatch.setattr(Compiling, "__getitem__", lambda *_: lambda *a, **b: made)
    made = compiled_by_triton(driver, calls)
    x, out = torch.empty(96, 40, dtype=torch.float16), torch.empty(5)
    given = {"num_warps": 4, "descriptors": (descriptor(x, (96, 36), 40, (64, 32)),)}
    runtime = triton.knobs.runtime
    for hook in (runtime.launch_enter_hook, runtime.launch_exit_hook):
        assert not hook.calls
    chain = type(runtime.launch_enter_hook)()
    chain.add(print)
    for hook in (None, None, chain, print, None):  # the first time it is compiled
        monkeypatch.setattr(runtime, name, hook)
        launching.launch(kernel, 7, (out,), (11,), (2.5,), {"BM": 64}, **given)
    place = 1 if name == "launch_enter_hook" else 2
    assert [parts(driver, call)[1][place] for call in calls] == [None, chain, print, None]
