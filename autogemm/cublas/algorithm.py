"""The algorithms that cuBLASLt has for a product: proposed by it, or had again by their fields."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from autogemm.cublas.library import here, library
from autogemm.cublas.product import TYPES, Product, operands

NO_SPLIT, IN_PLACE, COMPUTE_TYPE, OUTPUT_TYPE = 0, 1, 2, 4
"""Reduction schemes: where, and in which type, the partial sums of a split k are kept."""
_GAUSSIAN = 1 << 32
"""Complex products from three real ones: no componentwise bound holds for them."""

FIELDS: Mapping[str, tuple[int, Any]] = {
    "algo": (0, ctypes.c_int32),
    "tile": (1, ctypes.c_uint32),
    "split_k": (2, ctypes.c_int32),
    "reduction": (3, ctypes.c_uint32),
    "swizzle": (4, ctypes.c_uint32),
    "custom": (5, ctypes.c_uint32),
    "stages": (6, ctypes.c_uint32),
    "inner": (7, ctypes.c_uint16),
    "cluster": (8, ctypes.c_uint16),
}
"""What an algorithm is made of (``cublasLtMatmulAlgoConfigAttributes_t``), by our names."""

CLUSTERS = (2, 3, 5)
"""Clusters of one block, of two along the rows, of two along the columns."""
TILES, STAGES = (6, ctypes.c_uint32), (13, ctypes.c_uint32)
"""Capabilities: the tiles and the stages that an algorithm may be given."""
_BATCHES = (3, ctypes.c_int32)
"""The capability of strided batches, 1 or 0."""

Fields = Mapping[str, int]


class _Result(ctypes.Structure):
    """``cublasLtMatmulHeuristicResult_t``."""

    _fields_ = (
        ("algo", ctypes.c_uint64 * 8),
        ("workspace_bytes", ctypes.c_size_t),
        ("state", ctypes.c_int32),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int32 * 4),
    )


@dataclass(frozen=True, slots=True)
class Algorithm:
    """An algorithm that cuBLASLt accepted for a product."""

    struct: Any
    """``cublasLtMatmulAlgo_t``; only read from now on."""
    workspace_bytes: int
    waves: float
    """Rounds in which the GPU's multiprocessors take their blocks."""

    @property
    def address(self) -> int:
        """Where it lies."""
        return ctypes.addressof(self.struct)

    @property
    def fields(self) -> dict[str, int]:
        """What it is made of."""
        return {name: self._read(name) for name in FIELDS}

    def _read(self, name: str) -> int:
        attribute, kind = FIELDS[name]
        value, written = kind(), ctypes.c_size_t()
        library().matmul_algo_config_get_attribute(
            self.address, attribute, ctypes.addressof(value), ctypes.sizeof(value),
            ctypes.addressof(written),
        )  # fmt: skip
        return int(value.value)

    def capability(self, attribute: int, kind: Any) -> list[int]:
        """A capability (``cublasLtMatmulAlgoCapAttributes_t``), or several; none if not known."""
        lib, written = library(), ctypes.c_size_t()
        at = ctypes.addressof(written)
        try:
            lib.matmul_algo_cap_get_attribute(self.address, attribute, 0, 0, at)
            values = (kind * (written.value // ctypes.sizeof(kind)))()
            if len(values):
                lib.matmul_algo_cap_get_attribute(
                    self.address, attribute, ctypes.addressof(values), ctypes.sizeof(values), at
                )
        except lib.cuBLASLtError:
            return []
        return list(values)


def algorithm(product: Product, fields: Fields) -> Algorithm | None:
    """The algorithm of these fields, or None if this cuBLAS does not offer it for the product."""
    lib, at = library(), here()
    struct, result = (ctypes.c_uint64 * 8)(), _Result()
    data, compute, scale = TYPES[product.problem.dtype]
    try:
        lib.matmul_algo_init(
            at, compute, scale, data, data, data, data, fields["algo"], ctypes.addressof(struct)
        )
        for name, (attribute, kind) in FIELDS.items():
            if name != "algo":
                value = kind(fields[name])
                lib.matmul_algo_config_set_attribute(
                    ctypes.addressof(struct), attribute, ctypes.addressof(value),
                    ctypes.sizeof(value),
                )  # fmt: skip
        lib.matmul_algo_check(
            at, product.descriptor, *product.layouts, ctypes.addressof(struct),
            ctypes.addressof(result),
        )  # fmt: skip
    except lib.cuBLASLtError:
        return None
    return Algorithm(struct, int(result.workspace_bytes), float(result.waves))


def proposals(product: Product, count: int, workspace_bytes: int) -> Iterator[Algorithm]:
    """What cuBLASLt's heuristic offers for a product, best first, within a workspace."""
    lib, preference = library(), library().matmul_preference_create()
    try:
        results, found = (_Result * count)(), ctypes.c_int32()
        for attribute, value in _preferences(product, workspace_bytes):
            lib.matmul_preference_set_attribute(
                preference, attribute, ctypes.addressof(value), ctypes.sizeof(value)
            )
        lib.matmul_algo_get_heuristic(
            here(), product.descriptor, *product.layouts, preference, count,
            ctypes.addressof(results), ctypes.addressof(found),
        )  # fmt: skip
    except lib.cuBLASLtError:  # it has nothing for this product
        return
    finally:
        lib.matmul_preference_destroy(preference)
    for result in results[: found.value]:
        if result.state == 0:
            yield Algorithm(result.algo, int(result.workspace_bytes), float(result.waves))


def _preferences(product: Product, workspace_bytes: int) -> Iterator[tuple[int, Any]]:
    """``cublasLtMatmulPreferenceAttributes_t``: what keeps the accuracy and every alignment."""
    a, b, d = operands(product.problem)
    schemes = COMPUTE_TYPE if product.problem.is_half else IN_PLACE | COMPUTE_TYPE | OUTPUT_TYPE
    yield 1, ctypes.c_uint64(workspace_bytes)
    yield 3, ctypes.c_uint32(schemes)
    for attribute, x in zip((5, 6, 7, 8), (*product.in_order(a, b), d, d), strict=True):
        yield attribute, ctypes.c_uint32(x.alignment)
    yield 12, ctypes.c_uint64(~_GAUSSIAN)


def tile_extents(tile: int) -> tuple[int, int] | None:
    """Rows and columns of a tile, where the bindings know it by a name."""
    try:
        named = re.search(r"(\d+)x(\d+)", library().MatmulTile(tile).name)
    except ValueError:
        return None
    return None if named is None else (int(named[1]), int(named[2]))


def against(product: Product, algorithm: Algorithm) -> str | None:
    """Why an accepted algorithm may not be used for a product all the same; None if it may."""
    a, b, d = operands(product.problem)
    for attribute, x in zip((16, 17, 18, 19), (*product.in_order(a, b), d, d), strict=True):
        needed = max(algorithm.capability(attribute, ctypes.c_uint32), default=1)
        if needed > x.alignment:
            return f"the algorithm needs {needed}-byte alignment where {x.alignment} is certain"
    if product.problem.batch > 1 and not all(algorithm.capability(*_BATCHES)):
        return "the algorithm computes one product at a time"
    (flags,) = algorithm.capability(15, ctypes.c_uint64) or [0]
    if product.problem.dtype.is_complex and flags & _GAUSSIAN:
        return "the algorithm makes complex products from three real ones"
    return None
