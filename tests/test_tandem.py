"""``emulated_fp32`` in form ``tandem``: on a Hopper GPU, else by ``interpreted_gluon``."""

from __future__ import annotations

import contextlib
import importlib
import math
from pathlib import Path

import pytest
import torch
from gluon_stand_in import UNEVEN, check, fixture_for, marks_for
from test_kernels import ON_GPU, PLACE, here, normal, serve

from autogemm.grading.hostile import HOSTILE, names_for, seeded
from autogemm.grading.oracle import Truth
from autogemm.problem import contiguous_problem
from autogemm.strategies import BY_NAME, Candidate
from autogemm.strategies.base import ParamValue

STRATEGY = BY_NAME["emulated_fp32"]
TILES = ((128, 128, 8, 2), (128, 64, 8, 3), (64, 64, 4, 2), (64, 128, 4, 1))
METHODS = ("fp16x3", "fp16")
SIZES = ((4, 4, 4), (68, 132, 64), (36, 20, 260), *(((200, 136, 1000),) if ON_GPU else ()))


def tandem(
    bm: int = 64, bn: int = 64, warps: int = 4, stages: int = 2, **changed: ParamValue
) -> Candidate:
    params: dict[str, ParamValue] = {
        "form": "tandem", "method": "fp16x3", "bm": bm, "bn": bn, "bk": 32, "warps": warps,
        "stages": stages, "chunk": 64, "slices": 1, "group": 8,
    }  # fmt: skip
    return Candidate.of("emulated_fp32", **(params | changed))


pytestmark = marks_for(tandem())


kernel = fixture_for("tandem_product")


@pytest.mark.parametrize("slices", [1, 3])
@pytest.mark.parametrize("layout", ["nn", "tn", "nt", "tt"])
@pytest.mark.parametrize("tile", TILES, ids=str)
def test_every_layout_and_tile_keeps_the_bound(
    tile: tuple[int, int, int, int], layout: str, slices: int
) -> None:
    """In the interpreter one number of terms, the other one with the other number of slices."""
    few = ["nn", "tn", "nt", "tt"].index(layout) + (slices > 1)
    for turn, (m, n, k) in enumerate(SIZES, few):
        A = normal(k, m).t() if layout[0] == "t" else normal(m, k)
        B = normal(n, k).t() if layout[1] == "t" else normal(k, n)
        if ON_GPU or turn % 2:
            check(tandem(*tile, slices=slices), A, B)
        if ON_GPU or not turn % 2:
            check(tandem(*tile, slices=slices, method="fp16", chunk=512), A, B)


@pytest.mark.parametrize("method", METHODS)
def test_a_gram_matrix_and_a_result_in_place_keep_the_bound(method: str) -> None:
    X = normal(200, 132)
    check(tandem(method=method), X.t(), X)
    check(tandem(method=method, slices=2), X.t(), X)
    check(tandem(128, 64, 8, 3, method=method), X.t(), X)
    A, B, C = normal(68, 260), normal(260, 72), normal(68, 72)
    C[3] *= 2.0**30
    truth = Truth(-0.5, A.cpu(), B.cpu(), 1.5, C.cpu())
    for slices in (1, 2):
        assert serve(tandem(method=method, slices=slices), -0.5, A, B, 1.5, C, "C", truth)
    A[5, 100] = math.inf  # the tile is computed again, and C must still be there
    truth = Truth(-0.5, A.cpu(), B.cpu(), 1.5, C.cpu())
    assert serve(tandem(method=method), -0.5, A, B, 1.5, C, "C", truth)


@pytest.mark.parametrize("k", [1, 31, 33, 64, 65, 127, 191])
def test_sums_of_every_length_keep_the_bound(k: int) -> None:
    """Those shorter than a pair of blocks, and such as end within a block or between pairs."""
    A, B = normal(k, 36).t(), normal(k, 20)
    run = importlib.import_module("autogemm.kernels.tandem_product").tandem_product
    tiling = importlib.import_module("autogemm.kernels.split_product").Tiling
    for stages, slices in ((1, 1), (2, 1), (3, 3)):
        out = torch.full((36, 20), math.nan, device=PLACE)
        run(1.0, A, B, 0.0, None, out, terms=2, chunk=64, slices=slices,
            tiling=tiling(64, 64, 32, 4, stages), gain=0.0)  # fmt: skip
        exact, weight = A.double() @ B.double(), A.double().abs() @ B.double().abs()
        assert ((out.double() - exact).abs() <= 2.0**-24 * (32 + 3 * k) * weight).all()


WAITS = {
    "more on their way than there is memory for": (
        "ahead = pair + STAGES\n", "ahead = pair + STAGES + 1\n"
    ),
    "no meeting before a block is multiplied": (
        "    fence_async_shared()\n    barrier()\n    return warpgroup_mma_init(part)",
        "    fence_async_shared()\n    return warpgroup_mma_init(part)",
    ),
    "no wait for what comes": ("    arrive(bars, number, STAGES)\n", ""),
    "terms put where terms are multiplied": (
        "odd_hi, odd_lo, odd, mine, acc, hi, lo, even, coming, used & 1",
        "odd_hi, odd_lo, odd, mine, acc, hi, lo, even, coming, mine",
    ),
    "terms overwritten while they are multiplied": (
        "3 if TERMS == 2 else 1, deps=", "6 if TERMS == 2 else 2, deps="
    ),
    "no meeting between pairs that are read once more": (
        "for pair in range(zero, pairs):\n                barrier()\n",
        "for pair in range(zero, pairs):\n",
    ),
}  # fmt: skip


@pytest.mark.skipif(ON_GPU, reason="a GPU may be in time by chance")
@pytest.mark.parametrize("name", WAITS)
def test_every_wait_is_needed(name: str, tmp_path: Path) -> None:
    gluon = importlib.import_module("interpreted_gluon")
    errors = importlib.import_module("triton.runtime.errors").InterpreterError
    tiling = importlib.import_module("autogemm.kernels.split_product").Tiling
    A, B = normal(36, 256), normal(256, 20)
    A[3, 200] = 2.0**40
    right = []
    for change in (("", ""), WAITS[name]):
        out = torch.full((36, 20), math.nan)
        with contextlib.suppress(errors):
            gluon.interpreted("tandem_product", tmp_path, change).tandem_product(
                1.0, A, B, 0.0, None, out, terms=2, chunk=128, slices=1,
                tiling=tiling(64, 64, 32, 4, 2), gain=0.0, guard=False,
            )  # fmt: skip
        right.append(torch.allclose(out[4:].double(), A[4:].double() @ B.double(), atol=1e-3))
    assert right == [True, False]


CERTIFICATES = {
    "the first block's": ("least < CERTIFIED + 1.0", "least < 0.0"),
    "the first block's, at a second attempt": ("doubt += 1.0", "doubt += 0.0"),
    "the whole slice's": ("(weight < enough)", "(weight < 0.0)"),
}  # fmt: skip


@pytest.mark.skipif(ON_GPU, reason="the interpreter's kernel alone can be changed")
@pytest.mark.parametrize(("terms", "unit"), [(2, 2.0**-24), (1, 2.0**-10)])
@pytest.mark.parametrize("name", CERTIFICATES)
def test_every_certificate_is_needed(
    name: str, terms: int, unit: float, tmp_path: Path
) -> None:
    """One element makes the scale of others so coarse that nothing is left of them."""
    gluon = importlib.import_module("interpreted_gluon")
    tiling = importlib.import_module("autogemm.kernels.split_product").Tiling
    A, B = normal(36, 128), normal(128, 20)
    at = 100 if "second" in name else 3
    A[:, at], B[at] = 2.0**60, 0
    exact, weight = A.double() @ B.double(), A.double().abs() @ B.double().abs()
    broken = []
    for change in (("", ""), CERTIFICATES[name]):
        out = torch.empty(36, 20)
        gluon.interpreted("tandem_product", tmp_path, change).tandem_product(
            1.0, A, B, 0.0, None, out, terms=terms, chunk=64, slices=1,
            tiling=tiling(64, 64, 32, 4, 2), gain=0.0,
        )  # fmt: skip
        most = unit * (128 if terms == 2 else 1) * weight
        broken.append(bool(((out - exact).abs() > most).any()))
    assert broken == [False, True]


@pytest.mark.parametrize("met", ["numbers", "zeros"])
@pytest.mark.parametrize(("method", "slices"), [("fp16x3", 1), ("fp16x3", 2), ("fp16", 1)])
@pytest.mark.parametrize("name", UNEVEN)
def test_what_outgrows_its_scales_is_computed_again(
    name: str, method: str, slices: int, met: str
) -> None:
    A, B = UNEVEN[name](384), normal(384, 40)
    if met == "zeros":  # the result is made of what the lowered scales hold worst
        B[A.abs().amax(0) > 2.0**30] = 0
    candidate = tandem(method=method, slices=slices)
    check(candidate, A, B)
    check(candidate, B.t().contiguous(), A.t().contiguous())


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("where", [0, 40, 383])
@pytest.mark.parametrize("method", METHODS)
def test_a_special_element_comes_out_as_native_arithmetic_has_it(
    method: str, where: int, value: float
) -> None:
    A, B = normal(36, 384), normal(384, 40)
    A[3, where] = value
    B[where, 7] = 0
    expected = A @ B
    found = STRATEGY.bind(
        contiguous_problem(36, 40, 384, torch.float32, device_type="cuda"),
        here(), tandem(method=method).kwargs,
    )(1.0, A, B, 0.0, None, None)  # fmt: skip
    special = ~expected.isfinite()
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found[special].nan_to_num(7.0), expected[special].nan_to_num(7.0))


@pytest.mark.parametrize("name", names_for(torch.float32))
def test_the_bound_holds_on_hostile_operands(name: str) -> None:
    A, B, C = (
        x.to(PLACE) for x in HOSTILE[name](40, 36, 200, torch.float32, seeded("tandem", name))
    )
    truth = Truth(1.5, A.cpu(), B.cpu(), 0.5, C.cpu())
    for changed in ({"slices": 1}, {"slices": 2}, {"method": "fp16"}):
        assert serve(tandem(**changed), 1.5, A, B, 0.5, C, "new", truth)
