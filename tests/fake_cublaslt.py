"""A stand-in for nvmath's bindings of cuBLASLt that multiplies in the CPU's memory.

It knows of a call what the real one knows: descriptors, addresses, an algorithm's bytes. It is
stricter, too: whatever the library would read wrongly, or only asks its callers to respect, it
refuses.
"""

from __future__ import annotations

import ctypes
import math
import sys
import time
import types
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import astuple, dataclass
from typing import Any

import pytest
import torch

from autogemm.cublas import library
from autogemm.strategies import cublaslt

DTYPES = {
    2: torch.float16,
    14: torch.bfloat16,
    0: torch.float32,
    1: torch.float64,
    4: torch.complex64,
    5: torch.complex128,
}
COMPUTE_TYPES = {0: 68, 2: 68, 14: 68, 1: 70, 4: 68, 5: 70}
SCALARS = {
    0: (ctypes.c_float, 1),
    1: (ctypes.c_double, 1),
    4: (ctypes.c_float, 2),
    5: (ctypes.c_double, 2),
}
CONFIG = ("algo", "tile", "split_k", "reduction", "swizzle", "custom", "stages", "inner", "cluster")
CONFIG_BYTES = (4, 4, 4, 4, 4, 4, 4, 2, 2)
UNITS = 4
ALIGNED_ONLY, ANY_ALIGNMENT, REFUSED = 66, 21, 7
"""Algorithms: one that needs 16-byte alignment, one that does not, one that serves nothing."""
TILES = (15, 18, 20, 23)  # 64x64, 128x64, 128x128, 128x256
STAGES = (0, 10, 36)


class Error(Exception):
    """``cuBLASLtError``."""


def need(truth: bool, what: str) -> None:
    if not truth:
        raise Error(what)


def words(address: int, kind: Any, count: int = 1) -> list[Any]:
    return list((kind * count).from_address(address))


@dataclass
class Layout:
    """What ``cublasLtMatrixLayout_t`` holds."""

    dtype: int
    rows: int
    cols: int
    lead: int
    count: int = 1
    step: int = 0


class Bindings(types.ModuleType):
    """``nvmath.bindings.cublasLt``, as far as autogemm uses it."""

    cuBLASLtError = Error

    class MatmulTile:
        def __init__(self, tile: int) -> None:
            named = {15: "64x64", 18: "128x64", 20: "128x128", 23: "128x256"}
            if tile not in named:
                raise ValueError(tile)
            self.name = f"TILE_{named[tile]}"

    def __init__(self) -> None:
        super().__init__("nvmath.bindings.cublasLt")
        self.alive: dict[int, Any] = {}
        self.calls: list[dict[str, Any]] = []
        self.batches = True
        """Whether its algorithms take them."""
        self._next = 1000

    def _new(self, thing: Any) -> int:
        self._next += 8
        self.alive[self._next] = thing
        return self._next

    def create(self) -> int:
        return 77

    # ----------------------------------------------------------------- descriptors

    def matmul_desc_create(self, compute: int, scale: int) -> int:
        return self._new({"compute": compute, "scale": scale, 3: 0, 4: 0, 7: 1, 8: 0})

    def matmul_desc_set_attribute(self, which: int, attribute: int, at: int, size: int) -> None:
        kind = {3: ctypes.c_int32, 4: ctypes.c_int32, 7: ctypes.c_uint32, 8: ctypes.c_uint64}
        need(ctypes.sizeof(kind[attribute]) == size, "size")
        self.alive[which][attribute] = words(at, kind[attribute])[0]

    def matrix_layout_create(self, dtype: int, rows: int, cols: int, lead: int) -> int:
        need(lead >= rows >= 1 and cols >= 1, f"a leading dimension of {lead} for {rows} rows")
        return self._new(Layout(dtype, rows, cols, lead))

    def matrix_layout_set_attribute(self, which: int, attribute: int, at: int, size: int) -> None:
        name, kind = {5: ("count", ctypes.c_int32), 6: ("step", ctypes.c_int64)}[attribute]
        need(ctypes.sizeof(kind) == size, "size")
        setattr(self.alive[which], name, words(at, kind)[0])

    def matmul_preference_create(self) -> int:
        return self._new({})

    def matmul_preference_set_attribute(
        self, which: int, attribute: int, at: int, size: int
    ) -> None:
        kind = {1: ctypes.c_uint64, 12: ctypes.c_uint64}.get(attribute, ctypes.c_uint32)
        need(ctypes.sizeof(kind) == size, "size")
        self.alive[which][attribute] = words(at, kind)[0]

    def _destroy(self, which: int) -> None:
        del self.alive[which]

    matmul_desc_destroy = matrix_layout_destroy = matmul_preference_destroy = _destroy

    # ------------------------------------------------------------------ algorithms

    def matmul_algo_init(
        self, handle: int, compute: int, scale: int, a: int, b: int, c: int, d: int, algo: int,
        at: int,
    ) -> None:  # fmt: skip
        need(handle == 77 and a == b == c == d, "types")
        need(compute == COMPUTE_TYPES[a], "the compute type")
        need(scale == {2: 0, 14: 0}.get(a, a), "the scalars' type")
        need(algo in (ALIGNED_ONLY, ANY_ALIGNMENT, REFUSED), f"no algorithm {algo}")
        self._write(at, {"algo": algo, "split_k": 1})

    def _write(self, at: int, fields: dict[str, int]) -> None:
        (ctypes.c_int32 * 16).from_address(at)[:] = [
            *(fields.get(name, 0) for name in CONFIG), *[0] * 7
        ]

    def _fields(self, at: int) -> dict[str, int]:
        return dict(zip(CONFIG, words(at, ctypes.c_int32, 9), strict=True))

    def matmul_algo_config_set_attribute(
        self, algo: int, attribute: int, at: int, size: int
    ) -> None:
        need(size == CONFIG_BYTES[attribute], "size")
        kind = ctypes.c_uint16 if size == 2 else ctypes.c_int32
        (ctypes.c_int32 * 16).from_address(algo)[attribute] = words(at, kind)[0]

    def matmul_algo_config_get_attribute(
        self, algo: int, attribute: int, at: int, size: int, written: int
    ) -> None:
        need(size == CONFIG_BYTES[attribute], "size")
        kind = ctypes.c_uint16 if size == 2 else ctypes.c_int32
        kind.from_address(at).value = words(algo, ctypes.c_int32, 16)[attribute]
        ctypes.c_size_t.from_address(written).value = size

    def matmul_algo_cap_get_attribute(
        self, algo: int, attribute: int, at: int, size: int, written: int
    ) -> None:
        least = 16 if self._fields(algo)["algo"] == ALIGNED_ONLY else 1
        kind = ctypes.c_uint64 if attribute == 15 else ctypes.c_uint32
        values = {3: (int(self.batches),), 6: TILES, 13: STAGES, 15: (0,)}.get(attribute, (least,))
        needed = len(values) * ctypes.sizeof(kind)
        ctypes.c_size_t.from_address(written).value = needed
        if size:
            need(size == needed, "size")
            (kind * len(values)).from_address(at)[:] = values

    def matmul_algo_check(
        self, handle: int, desc: int, a: int, b: int, c: int, d: int, algo: int, result: int
    ) -> None:
        fields = self._fields(algo)
        self._shapes(desc, a, b, c, d)
        need(fields["algo"] != REFUSED, "not this problem")
        need(fields["tile"] in TILES and fields["stages"] in STAGES, "no such tile")
        need(fields["swizzle"] <= 1 and fields["custom"] <= 3, "no such option")
        need(fields["cluster"] in (0, 2, 3), "no such cluster")
        need((fields["split_k"] > 1) == (fields["reduction"] != 0), "a split without a scheme")
        if fields["algo"] == ALIGNED_ONLY:
            need(all(self.alive[x].lead * self._size(x) % 16 == 0 for x in (a, b, c, d)), "lead")
        parts = fields["split_k"] if fields["split_k"] > 1 else 0
        edge = Bindings.MatmulTile(fields["tile"]).name.split("_")[1].split("x")
        out = self.alive[d]
        tiles = math.ceil(out.rows / int(edge[0])) * math.ceil(out.cols / int(edge[1]))
        waves = tiles * out.count * max(parts, 1) / UNITS
        self._result(result, fields, self._workspace(d, fields), waves)

    def _workspace(self, d: int, fields: dict[str, int]) -> int:
        _, m, n, _, count, _ = astuple(self.alive[d])
        return count * m * n * 4 * (fields["split_k"] if fields["split_k"] > 1 else 0)

    def _size(self, layout: int) -> int:
        return DTYPES[self.alive[layout].dtype].itemsize

    def _result(self, at: int, fields: dict[str, int], workspace: int, waves: float) -> None:
        self._write(at, fields)
        ctypes.c_uint64.from_address(at + 64).value = workspace
        ctypes.c_int32.from_address(at + 72).value = 0
        ctypes.c_float.from_address(at + 76).value = waves

    def matmul_algo_get_heuristic(
        self, handle: int, desc: int, a: int, b: int, c: int, d: int, preference: int, count: int,
        results: int, found: int,
    ) -> None:  # fmt: skip
        self._shapes(desc, a, b, c, d)
        wanted = self.alive[preference]
        least = min(wanted[attribute] for attribute in (5, 6, 7, 8))
        need(not wanted[12] & 1 << 32, "Gaussian products")
        configs = [{"algo": ANY_ALIGNMENT, "tile": 15, "split_k": 1}]
        if least >= 16:
            configs = [
                {"algo": ALIGNED_ONLY, "tile": 20, "stages": 10, "split_k": 1},
                {"algo": ALIGNED_ONLY, "tile": 20, "stages": 10, "split_k": 2, "reduction": 2},
                *configs,
            ]
        configs = [x for x in configs if not x.get("reduction") or wanted[3] & x["reduction"]]
        configs = [x for x in configs if wanted[1] or x["split_k"] == 1][:count]
        for i, fields in enumerate(configs):
            self._result(results + 96 * i, fields, self._workspace(d, fields), 1.0)
        ctypes.c_int32.from_address(found).value = len(configs)

    # --------------------------------------------------------------------- product

    def _shapes(self, desc: int, a: int, b: int, c: int, d: int) -> tuple[int, int, int]:
        facts = self.alive[desc]
        layouts = [astuple(self.alive[x]) for x in (a, b, c, d)]
        types_, rows, cols, _, counts, steps = zip(*layouts, strict=True)
        need(len(set(types_)) == 1, "types")
        need(len(set(counts)) == 1 and counts[0] >= 1, "one count of matrices for all")
        need(counts[0] == 1 or steps[3] > 0, "every matrix written to the same place")
        need(counts[0] == 1 or facts[7] != 4, "a row for a batch")
        need(facts["compute"] == COMPUTE_TYPES[types_[0]], "the compute type")
        m, k = (cols[0], rows[0]) if facts[3] else (rows[0], cols[0])
        k_too, n = (cols[1], rows[1]) if facts[4] else (rows[1], cols[1])
        need(k == k_too, f"inner extents {k} and {k_too}")
        need((rows[2:], cols[2:]) == ((m, m), (n, n)), "the result's extents")
        return m, n, k

    def matmul(
        self, handle: int, desc: int, alpha: int, at_a: int, a: int, at_b: int, b: int, beta: int,
        at_c: int, c: int, at_d: int, d: int, algo: int, workspace: int, size: int, stream: int,
    ) -> None:  # fmt: skip
        m, _, _ = self._shapes(desc, a, b, c, d)
        facts, fields = self.alive[desc], self._fields(algo)
        need(at_c != at_d or c == d, "in place with two layouts")
        need(size >= self._workspace(d, fields) and bool(workspace) == bool(size), "workspace")
        least = 16 if fields["algo"] == ALIGNED_ONLY else self._size(a)
        for x, y in ((at_a, a), (at_b, b), (at_c, c), (at_d, d)):
            need(not (x | self.alive[y].step * self._size(y)) % least, "a misaligned address")
        time.sleep(0)  # the real one lets other threads run while it reads
        kind, count = SCALARS[facts["scale"]]
        al, be = (complex(*words(x, kind, count)) for x in (alpha, beta))
        A, B, C, D = (self._matrix(x, y) for x, y in ((at_a, a), (at_b, b), (at_c, c), (at_d, d)))
        wide = torch.complex128 if D.is_complex() else torch.float64
        al, be = (x if D.is_complex() else x.real for x in (al, be))
        product = al * (
            (A.mT if facts[3] else A).to(wide) @ (B.mT if facts[4] else B).to(wide)
        )
        if be != 0:
            product += be * C.to(wide)
        if facts[7] == 4:
            memory = (ctypes.c_char * (m * D.element_size())).from_address(facts[8])
            row = torch.frombuffer(memory, dtype=D.dtype)
            product += row.to(wide)[:, None]
        D.copy_(product)
        self.calls.append({
            **fields, "out_of_place": at_c != at_d, "row": facts[7] == 4, "count": len(D),
            "steps": tuple(self.alive[x].step for x in (a, b, c, d)),
        })  # fmt: skip

    def _matrix(self, at: int, layout: int) -> torch.Tensor:
        dtype, rows, cols, lead, count, step = astuple(self.alive[layout])
        elements = step * (count - 1) + lead * (cols - 1) + rows
        memory = (ctypes.c_char * (elements * DTYPES[dtype].itemsize)).from_address(at)
        flat = torch.frombuffer(memory, dtype=DTYPES[dtype])
        return flat.as_strided((count, rows, cols), (step, 1, lead))


@pytest.fixture
def bindings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bindings]:
    """The stand-in, where autogemm looks for nvmath; and torch says that there is a GPU."""
    fake = Bindings()
    package, inner = types.ModuleType("nvmath"), types.ModuleType("nvmath.bindings")
    inner.cublasLt = fake  # type: ignore[attr-defined]
    package.bindings = inner  # type: ignore[attr-defined]
    for module in (package, inner, fake):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", lambda index: nullcontext())
    monkeypatch.setattr(cublaslt, "raw_stream", lambda index: 0)
    caches: Sequence[Any] = (library.library, library.handle)
    for cache in caches:
        cache.cache_clear()
    yield fake
    for cache in caches:
        cache.cache_clear()
