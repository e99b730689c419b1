"""Gluon for Triton's interpreter, as far as the kernels for Hopper's warpgroups use it.

Layouts mean nothing to it, shared memory is a list of tiles, and a warpgroup's product reads its
operands as late as the waits in the kernel allow: a buffer that is written too early shows. What
the tensor memory accelerator brings is there when its barrier has been waited for and no earlier;
a tile that is read before, or overwritten while it is read, is an error. So is an element of a
result that is stored and then stored or read again while nobody knows which thread comes first.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor as TensorDescriptor

KERNELS = Path(__file__).parent.parent / "autogemm" / "kernels"
SHARED_NAMES = (
    "checks", "warpgroups", "weights", "lines", "continuous_steps", "continuous_settle",
    "tandem_steps", "tandem_settle", "streamed_steps", "streamed_settle",
)  # fmt: skip
"""The modules whose functions the kernels import, each behind those that it imports."""


def interpreted(
    name: str, folder: Path, change: tuple[str, str] = ("", "")
) -> types.ModuleType:
    """Module ``name`` of kernels with this Gluon in place of Triton's; sources go to ``folder``.

    ``change`` is a part of its source, its own modules', or what it shares, and what stands there.
    """
    own = [each for each in SHARED_NAMES if each.startswith(name.removesuffix("_product"))]
    names = dict.fromkeys((name, *own, *SHARED_NAMES))
    texts = {each: (KERNELS / f"{each}.py").read_text() for each in names}
    where = next((each for each, text in texts.items() if change[0] in text), None)
    assert where is not None, change[0]
    texts[where] = texts[where].replace(*change, 1)  # of the empty string too
    for each in (*SHARED_NAMES, name):
        module = _interpreted(each, folder, texts[each])
    return module


def _interpreted(name: str, folder: Path, text: str) -> types.ModuleType:
    # The interpreter knows constants by this very annotation, and counts with Python's numbers.
    text = text.replace("gl.constexpr", "tl.constexpr")
    text = text.replace("block.to(gl.int64)", "tl.cast(block, tl.int64)")
    text = text.replace("triton.experimental.gluon.language.nvidia.hopper", __name__)
    text = text.replace("triton.experimental.gluon.nvidia.hopper", __name__)
    text = text.replace("from triton.experimental import gluon", f"from {__name__} import gluon")
    text = text.replace(
        "from triton.experimental.gluon import language as gl",
        f"import triton.language as tl\nfrom {__name__} import gl",
    )
    for shared in SHARED_NAMES:
        text = text.replace(f"autogemm.kernels.{shared}", f"interpreted_{shared}")
    path = folder / f"interpreted_{name}.py"  # the interpreter reads it there
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


class Clock:
    """How often all threads have met: between two meetings their order is anybody's guess."""

    meetings = 0
    fences = 0
    """How often what was written to shared memory was shown to the accelerator."""


class Program:
    """What the program that runs has begun."""

    barriers: tuple[Barrier, ...] = ()
    stored: tuple[Any, ...] = ()
    """Addresses, since all threads met."""

    @staticmethod
    def begin(number: int) -> None:
        """The one before it must have ended all that it began; number 0 may follow an error."""
        if number > 0:
            left = any(bar.expected is not None for bar in Program.barriers)
            assert not left, "a program ended before its copies"
        Program.barriers = Program.stored = ()


class Tile:
    """One buffer of shared memory."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.value: Any = None
        self.writes = 0
        """How often the accelerator has begun to write it."""
        self.is_arriving = False
        self.last_read = -1

    def store(self, value: Any) -> None:
        self.value = value

    def load(self, layout: Any = None) -> Any:
        return self.read()

    def read(self) -> Any:
        assert not self.is_arriving, "read before its barrier was waited for"
        self.last_read = Clock.meetings
        return self.value

    def overwrite(self) -> None:
        """A copy begins: whatever was here is gone."""
        assert not self.is_arriving, "two copies at a time"
        assert self.last_read < Clock.meetings, "overwritten while a slower thread may read it"
        self.value = None
        self.is_arriving = True
        self.writes += 1

    def slice(self, start: Any, length: Any, dim: int) -> View:
        return View(self).slice(start, length, dim)

    def index(self, i: Any) -> View:
        return View(self).index(i)

    def permute(self, order: tuple[int, int]) -> View:
        return View(self).permute(order)

    def _reinterpret(self, dtype: Any, shape: Any, layout: Any) -> View:
        return View(self)


class View:
    """A part of a tile, perhaps transposed."""

    def __init__(self, tile: Tile, steps: tuple[Any, ...] = ()) -> None:
        self.tile, self.steps = tile, steps

    def slice(self, start: Any, length: Any, dim: int) -> View:
        part = slice(int(start), int(start) + int(length))
        where = (part, slice(None)) if int(dim) == 0 else (slice(None), part)
        return View(self.tile, (*self.steps, where))

    def index(self, i: Any) -> View:
        return View(self.tile, (*self.steps, int(i)))

    def permute(self, order: tuple[int, int]) -> View:
        return View(self.tile, (*self.steps, None))

    def load(self, layout: Any = None) -> Any:
        return self.read()

    def read(self) -> Any:
        value = self.tile.read()
        data = value.handle.data
        for step in self.steps:
            data = data.T if step is None else data[step]
        handle = type(value.handle)(data.copy(), value.dtype.scalar)
        return tl.tensor(handle, tl.block_type(value.dtype.scalar, list(data.shape)))


class Shared:
    """Buffers of shared memory."""

    def __init__(self, tiles: list[Any]) -> None:
        self.tiles = tiles

    def index(self, i: Any) -> Any:
        return self.tiles[int(i)]


class Barrier:
    """Where the threads wait for what the accelerator brings: phases of odd and even number."""

    def __init__(self) -> None:
        self.phase = -1  # that is under way; before it is made there is none
        self.made = Clock.meetings, Clock.fences
        self.expected: int | None = None
        self.last_wait = -1
        self.copies: list[tuple[Tile, Any]] = []

    def arrive(self) -> None:
        brought = sum(v.handle.data.nbytes for _, v in self.copies)
        assert brought == self.expected, "as many bytes arrive as are expected"
        for tile, value in self.copies:
            assert value.handle.data.shape == tile.shape, "a copy has its tile's shape"
            tile.value, tile.is_arriving = value, False
        self.copies, self.expected, self.phase = [], None, self.phase + 1


class mbarrier:
    @staticmethod
    def MBarrierLayout() -> type[Barrier]:
        return Barrier

    @staticmethod
    def init(bar: Barrier, count: int) -> None:
        assert count == 1
        bar.phase, bar.made = 0, (Clock.meetings, Clock.fences)
        Program.barriers += (bar,)

    @staticmethod
    def invalidate(bar: Barrier) -> None:
        assert bar.expected is None, "a barrier that somebody is to wait at"
        assert bar.last_wait < Clock.meetings, "a slower thread may still wait at it"
        bar.phase = -1

    @staticmethod
    def expect(bar: Barrier, size: Any, pred: Any = True) -> None:
        if bool(pred):
            assert bar.phase >= 0, "a barrier that was not made"
            assert bar.made[0] < Clock.meetings, "other threads may not know that it was made"
            assert bar.made[1] < Clock.fences, "the accelerator may not know that it was made"
            assert bar.expected is None, "nobody waited for what was expected before"
            bar.expected = int(size)

    @staticmethod
    def wait(bar: Barrier, parity: Any) -> None:
        bar.last_wait = Clock.meetings
        if bar.phase % 2 == int(parity):
            assert bar.expected is not None, "it would wait forever"
            bar.arrive()


class tma:
    @staticmethod
    def async_copy_global_to_shared(
        described: Any, at: list[Any], bar: Barrier, tile: Tile, pred: Any = True
    ) -> None:
        if bool(pred):
            tile.overwrite()
            bar.copies.append((tile, described.load(at)))


class Product:
    """One that has been started."""

    started = 0

    def __init__(self, a: Any, b: Any, use_acc: bool) -> None:
        self.a, self.b, self.use_acc = a, b, use_acc
        Product.started += 1
        self.number = Product.started
        self.tiles = [tile for tile in map(_place, (a, b)) if tile is not None]
        assert not any(t.is_arriving for t in self.tiles), "read before its barrier was waited for"
        self.writes = [tile.writes for tile in self.tiles]

    def add_to(self, value: Any) -> Any:
        assert self.writes == [t.writes for t in self.tiles], "overwritten while it is multiplied"
        a = self.a if _place(self.a) is None else self.a.read()
        before = value if self.use_acc else tl.zeros(value.shape, dtype=tl.float32)
        return tl.dot(a, self.b.read(), before)


class Accumulator:
    """A sum with products that have been started and not waited for."""

    def __init__(self, value: Any, started: list[Product]) -> None:
        self.value, self.started = value, started


def _place(x: Any) -> Tile | None:
    return x.tile if isinstance(x, View) else x if isinstance(x, Tile) else None


def warpgroup_mma(a: Any, b: Any, acc: Any, use_acc: Any = True, is_async: bool = False) -> Any:
    """``a`` may lie in registers, which are to be kept until the product has ended."""
    if not isinstance(acc, Accumulator):
        acc = Accumulator(acc, [])
    acc = Accumulator(acc.value, [*acc.started, Product(a, b, bool(use_acc))])
    return acc if is_async else warpgroup_mma_wait(0, [acc, a])[0]


def warpgroup_mma_init(value: Any) -> Any:
    return value


def warpgroup_mma_wait(outstanding: int, deps: list[Any]) -> Any:
    """Products end in the order in which they were started, whatever they are added to.

    An operand in registers that is not among ``deps`` may have been overwritten: to the compiler
    its last use was the start.
    """
    started = [p for x in deps if isinstance(x, Accumulator) for p in x.started]
    started.sort(key=lambda product: product.number)
    ending = started[: max(0, len(started) - outstanding)]
    for product in ending:
        kept = _place(product.a) is not None or any(product.a is x for x in deps)
        assert kept, "its registers were not kept until it ended"
    ended = {product.number for product in ending}
    done = [_after(x, ended) if isinstance(x, Accumulator) else x for x in deps]
    return tuple(done) if len(done) > 1 else done[0]


def _after(acc: Accumulator, ended: set[int]) -> Any:
    value, left = acc.value, list(acc.started)
    while left and left[0].number in ended:
        value = left.pop(0).add_to(value)
    return Accumulator(value, left) if left else value


def mma_v2(a: Any, b: Any, acc: Any) -> Any:
    return tl.dot(a, b, acc)


def fence_async_shared() -> None:
    Clock.fences += 1


def _places(pointer: Any, mask: Any) -> Any:
    """The addresses that are meant."""
    places = pointer.handle.data
    if mask is not None:
        places = places[np.broadcast_to(mask.handle.data, places.shape)]
    return places


def _is_stored(places: Any) -> bool:
    """Whether any of them has been, since all threads met."""
    return any(np.isin(places, before).any() for before in Program.stored)


class _Language:
    """``triton.experimental.gluon.language``; what it shares with Triton's comes from there."""

    def __getattr__(self, name: str) -> Any:
        if name.endswith("Layout"):
            return lambda *args, **kwargs: None
        return getattr(tl, name)

    def program_id(self, axis: int) -> Any:
        number = tl.program_id(axis)
        Program.begin(int(number.handle.data.item()))
        return number

    def store(self, pointer: Any, value: Any, mask: Any = None) -> None:
        """Each layout has other threads store an element."""
        places = _places(pointer, mask)
        assert not _is_stored(places), "stored again while another thread may store it"
        Program.stored += (places,)
        tl.store(pointer, value, mask=mask)

    def load(self, pointer: Any, mask: Any = None, other: Any = None) -> Any:
        """Each layout has other threads load an element."""
        assert not _is_stored(_places(pointer, mask)), "loaded while another thread may store it"
        return tl.load(pointer, mask=mask, other=other)

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

    def static_range(self, stop: Any) -> range:
        return range(int(stop))

    def allocate_shared_memory(self, dtype: Any, shape: Any, layout: Any) -> Shared:
        count, *extents = (int(extent) for extent in shape)
        if layout is Barrier:
            return Shared([Barrier() for _ in range(count)])
        return Shared([Tile(tuple(extents)) for _ in range(count)])

    def thread_barrier(self) -> None:
        Clock.meetings += 1
        Program.stored = ()


def _jit(function: Any = None, **options: Any) -> Any:
    """Kernels have options; other functions are called where the language is patched already."""
    if options.pop("noinline", False):
        return _jit
    if function is None:
        return functools.partial(triton.jit, **options)
    made: Any = triton.jit(function)
    return functools.wraps(function)(lambda *args, **kwargs: made.rewrite()(*args, **kwargs))


gl = _Language()
gluon = types.SimpleNamespace(jit=_jit, constexpr_function=lambda f: f)
