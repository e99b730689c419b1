"""``emulated_fp32`` in form ``overlapped``: Gluon has no interpreter, so a Hopper GPU is needed."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from test_kernels import ON_GPU, PLACE, here, normal, serve

from autogemm.grading.hostile import HOSTILE, names_for, seeded
from autogemm.grading.oracle import Truth
from autogemm.problem import contiguous_problem
from autogemm.strategies import BY_NAME, Candidate
from autogemm.strategies.base import ParamValue

STRATEGY = BY_NAME["emulated_fp32"]
TILES = ((128, 128, 32, 8), (128, 64, 64, 8), (64, 64, 32, 4), (16, 64, 64, 4))


def overlapped(
    bm: int = 64, bn: int = 64, bk: int = 32, warps: int = 4, **changed: ParamValue
) -> Candidate:
    params: dict[str, ParamValue] = {
        "form": "overlapped", "method": "fp16x3", "bm": bm, "bn": bn, "bk": bk, "warps": warps,
        "stages": 3, "chunk": 64, "slices": 1, "group": 8,
    }  # fmt: skip
    return Candidate.of("emulated_fp32", **(params | changed))


REASONS = STRATEGY.reasons_not(
    contiguous_problem(64, 64, 64, torch.float32, device_type="cuda"), here(), overlapped().kwargs
)
pytestmark = pytest.mark.skipif(
    bool(REASONS) or not ON_GPU, reason="; ".join(REASONS) or "needs a CUDA device"
)


def check(candidate: Candidate, A: torch.Tensor, B: torch.Tensor) -> None:
    """The bound, on every element of A·B, into a new result."""
    truth = Truth(1.0, A.cpu(), B.cpu(), 0.0, None)
    assert serve(candidate, 1.0, A, B, 0.0, None, "new", truth), "it was not served"


@pytest.mark.parametrize("slices", [1, 3])
@pytest.mark.parametrize("layout", ["nn", "tn", "nt", "tt"])
@pytest.mark.parametrize("tile", TILES, ids=str)
def test_every_layout_and_tile_keeps_the_bound(
    tile: tuple[int, int, int, int], layout: str, slices: int
) -> None:
    for m, n, k in ((4, 4, 4), (68, 132, 64), (132, 20, 260), (200, 136, 1000)):
        A = normal(k, m).t() if layout[0] == "t" else normal(m, k)
        B = normal(n, k).t() if layout[1] == "t" else normal(k, n)
        check(overlapped(*tile, slices=slices), A, B)
        check(overlapped(*tile, slices=slices, method="fp16", chunk=512), A, B)


def growing(steps: int) -> torch.Tensor:
    """Magnitudes that grow along k, in so many steps of 2^6."""
    exponents = torch.arange(640, device=PLACE) * steps // 640 * 6
    return torch.ldexp(normal(100, 640), exponents)


def spiked(where: int, exponent: int) -> torch.Tensor:
    A = normal(100, 640)
    A[3, where] = 2.0**exponent
    return A


UNEVEN: dict[str, Callable[[], torch.Tensor]] = {
    "grows once": lambda: growing(2),
    "grows all along": lambda: growing(20),
    "a spike in the first block": lambda: spiked(5, 40),
    "a spike later": lambda: spiked(300, 40),
    "a spike at the end": lambda: spiked(639, 40),
    "a spike near the end of the range": lambda: spiked(300, 120),
}


@pytest.mark.parametrize("met", ["numbers", "zeros"])
@pytest.mark.parametrize("slices", [1, 2])
@pytest.mark.parametrize("name", UNEVEN)
def test_what_outgrows_its_scales_is_computed_again(name: str, slices: int, met: str) -> None:
    A, B = UNEVEN[name](), normal(640, 72)
    if met == "zeros":  # the result is made of what the lowered scales hold worst
        B[A.abs().amax(0) > 2.0**30] = 0
    check(overlapped(slices=slices), A, B)
    check(overlapped(slices=slices), B.t().contiguous(), A.t().contiguous())


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("where", [0, 40, 639])
def test_a_special_element_comes_out_as_native_arithmetic_has_it(where: int, value: float) -> None:
    A, B = normal(100, 640), normal(640, 72)
    A[3, where] = value
    B[where, 7] = 0
    expected = A @ B
    found = STRATEGY.bind(
        contiguous_problem(100, 72, 640, torch.float32, device_type="cuda"),
        here(), overlapped().kwargs,
    )(1.0, A, B, 0.0, None, None)  # fmt: skip
    special = ~expected.isfinite()
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found[special].nan_to_num(7.0), expected[special].nan_to_num(7.0))


@pytest.mark.parametrize("slices", [1, 2])
@pytest.mark.parametrize("name", names_for(torch.float32))
def test_the_bound_holds_on_hostile_operands(name: str, slices: int) -> None:
    A, B, C = (
        x.to(PLACE) for x in HOSTILE[name](68, 36, 200, torch.float32, seeded("overlapped", name))
    )
    for beta, given in ((0.0, None), (0.5, C)):
        truth = Truth(1.5, A.cpu(), B.cpu(), beta, None if given is None else given.cpu())
        assert serve(overlapped(slices=slices), 1.5, A, B, beta, given, "new", truth)
