"""Which of cuBLASLt's algorithms are worth measuring on a problem.

There are thousands of legal ones. cuBLAS's heuristic names some, best first by its own model; the
rest differ from its first choice in what that model is known to misjudge.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

from autogemm.cublas.algorithm import (
    CLUSTERS,
    COMPUTE_TYPE,
    FIELDS,
    NO_SPLIT,
    STAGES,
    TILES,
    Algorithm,
    algorithm,
    proposals,
    tile_extents,
)
from autogemm.cublas.product import Product, forms
from autogemm.device import Device
from autogemm.problem import Problem

_WORKSPACE_BYTES = 2**25
"""What torch gives cuBLAS on Hopper."""
_PROPOSALS, _PROPOSALS_WITHOUT_WORKSPACE = 10, 4
_MOST = 24
"""Candidates of one problem: the tuner times them all. Of a batch it is half of each."""
_SPLITS, _SPLITS_TAKEN, _SHORTEST_PART = (2, 3, 4, 6, 8, 12, 16, 24, 32), 6, 128
_TILES_TAKEN = 4
_TILE_EDGE = 64
"""What a row or column of a tile costs, in elements: a guess at loading against multiplying."""


def worth_measuring(problem: Problem, device: Device) -> list[dict[str, int]]:
    """What the heuristic proposes, then what differs from its first choice in a field or two."""
    *_, form = forms(problem)
    share = 1 if problem.batch == 1 else 2
    proposed = list(proposals(form, _PROPOSALS // share, _WORKSPACE_BYTES))
    proposed += proposals(form, _PROPOSALS_WITHOUT_WORKSPACE // share, 0)
    found = {_key(x.fields): None for x in proposed}
    for quota, tries in _variations(problem, device, form, proposed[0]) if proposed else ():
        for fields in tries:
            if quota == 0 or len(found) == _MOST // share:
                break
            if _key(fields) not in found and _is_affordable(algorithm(form, fields)):
                found[_key(fields)] = None
                quota -= 1
    return [dict(zip(FIELDS, values, strict=True)) for values in found]


def first_proposal(problem: Problem) -> dict[str, int] | None:
    """The fields of what the heuristic thinks best; None where it has nothing."""
    *_, form = forms(problem)
    first = next(proposals(form, 1, _WORKSPACE_BYTES), None)
    return None if first is None else first.fields


def _key(fields: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(fields[name] for name in FIELDS)


def _is_affordable(found: Algorithm | None) -> bool:
    return found is not None and found.workspace_bytes <= 2 * _WORKSPACE_BYTES


def _variations(
    problem: Problem, device: Device, form: Product, first: Algorithm
) -> Iterator[tuple[int, Iterable[dict[str, int]]]]:
    """Fields to try around the first proposal, the most promising first, and how many to take."""
    base = first.fields
    whole = base | {"split_k": 1, "reduction": NO_SPLIT}
    alone = algorithm(form, whole) if problem.batch == 1 else None  # batches: k as proposed
    if alone is not None and alone.waves < 1:  # some multiprocessors have nothing to do
        most = min(2 / max(alone.waves, 1e-3), problem.k / _SHORTEST_PART)
        yield _SPLITS_TAKEN, [
            base | {"split_k": parts, "reduction": COMPUTE_TYPE}
            for parts in _SPLITS
            if parts <= most
        ]
    m, n = (problem.n, problem.m) if form.swapped else (problem.m, problem.n)
    stages = first.capability(*STAGES)
    named = ((tile, tile_extents(tile)) for tile in first.capability(*TILES))
    extents = {tile: found for tile, found in named if found is not None}

    def cost(tile: int) -> float:
        rows, cols = extents[tile]
        rounds = math.ceil(problem.batch * -(-m // rows) * -(-n // cols) / device.units)
        return rounds * (rows * cols + _TILE_EDGE * (rows + cols))

    for tile in sorted(extents, key=cost)[: 2 * _TILES_TAKEN]:
        likely = sorted(stages, key=lambda stage: abs(stage - base["stages"]))
        yield 1, [whole | {"tile": tile, "stages": stage} for stage in likely]
    yield 2, [base | {"cluster": cluster} for cluster in CLUSTERS]
    yield 2, [base | {"stages": stage} for stage in reversed(stages)]
    yield 1, [base | {"swizzle": 1 - base["swizzle"]}]
    customs = (base["custom"] + 1, base["custom"] - 1)
    yield 2, [base | {"custom": custom} for custom in customs if custom >= 0]
