"""Gluon for Triton's interpreter, as far as ``kernels/overlapped_product.py`` uses it.

Layouts mean nothing to it, shared memory is a list of tiles, and a warpgroup's product reads its
operands as late as the waits in the kernel allow: a buffer that is written too early shows.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import triton
import triton.language as tl

SOURCE = Path(__file__).parent.parent / "autogemm" / "kernels" / "overlapped_product.py"


def interpreted(folder: Path) -> types.ModuleType:
    """The kernel's module with this Gluon in place of Triton's; its source goes to ``folder``."""
    text = SOURCE.read_text()
    # The interpreter knows constants by this very annotation, and counts with Python's numbers.
    text = text.replace("gl.constexpr", "tl.constexpr")
    text = text.replace("block.to(gl.int64)", "tl.cast(block, tl.int64)")
    text = text.replace("triton.experimental.gluon.language.nvidia.hopper", __name__)
    text = text.replace("from triton.experimental import gluon", f"from {__name__} import gluon")
    text = text.replace(
        "from triton.experimental.gluon import language as gl",
        f"import triton.language as tl\nfrom {__name__} import gl",
    )
    path = folder / "interpreted_overlapped_product.py"  # the interpreter reads it there
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


class Tile:
    """One buffer of shared memory."""

    def __init__(self) -> None:
        self.value: Any = None

    def store(self, value: Any) -> None:
        self.value = value


class Shared:
    """Buffers of shared memory."""

    def __init__(self, count: int) -> None:
        self.tiles = [Tile() for _ in range(count)]

    def index(self, i: Any) -> Tile:
        return self.tiles[int(i)]


class Accumulator:
    """A sum with products that have been started and not waited for."""

    def __init__(self, value: Any, started: list[tuple[Tile, Tile, bool]]) -> None:
        self.value, self.started = value, started


def warpgroup_mma(
    a: Tile, b: Tile, acc: Any, use_acc: Any = True, is_async: bool = False
) -> Any:
    if not isinstance(acc, Accumulator):
        acc = Accumulator(acc, [])
    acc = Accumulator(acc.value, [*acc.started, (a, b, bool(use_acc))])
    return acc if is_async else warpgroup_mma_wait(0, [acc])


def warpgroup_mma_init(value: Any) -> Any:
    return value


def warpgroup_mma_wait(outstanding: int, deps: list[Any]) -> Any:
    (acc,) = deps
    value, started = acc.value, list(acc.started)
    while len(started) > outstanding:
        a, b, use_acc = started.pop(0)
        before = value if use_acc else tl.zeros(value.shape, dtype=tl.float32)
        value = tl.dot(a.value, b.value, before)
    return Accumulator(value, started) if started else value


def fence_async_shared() -> None:
    pass


class _Language:
    """``triton.experimental.gluon.language``; what it shares with Triton's comes from there."""

    def __getattr__(self, name: str) -> Any:
        if name.endswith("Layout"):
            return lambda *args, **kwargs: None
        return getattr(tl, name)

    def arange(self, start: int, end: int, layout: Any = None) -> Any:
        return tl.arange(start, end)

    def zeros(self, shape: Any, dtype: Any, layout: Any = None) -> Any:
        return tl.zeros(shape, dtype=dtype)

    def convert_layout(self, x: Any, layout: Any) -> Any:
        return x

    def permute(self, x: Any, order: Any) -> Any:
        return tl.trans(x)

    def dot_fma(self, x: Any, y: Any, acc: Any) -> Any:
        return tl.dot(x, y, acc, input_precision="ieee")

    def allocate_shared_memory(self, dtype: Any, shape: Any, layout: Any) -> Shared:
        return Shared(int(shape[0]))

    def thread_barrier(self) -> None:
        pass


gl = _Language()
gluon = types.SimpleNamespace(jit=triton.jit, constexpr_function=lambda f: f)
