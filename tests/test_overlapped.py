"""``emulated_fp32`` in form ``overlapped``: on a Hopper GPU, else by ``interpreted_gluon``."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable

import pytest
import torch
from gluon_stand_in import fixture_for
from test_kernels import ON_GPU, PLACE, here, normal, serve

from autogemm.grading.hostile import HOSTILE, names_for, seeded
from autogemm.grading.oracle import Truth
from autogemm.problem import contiguous_problem
from autogemm.strategies import BY_NAME, Candidate
from autogemm.strategies.base import ParamValue

STRATEGY = BY_NAME["emulated_fp32"]
TILES = ((128, 128, 32, 8), (64, 64, 64, 4), (16, 64, 64, 4))
SIZES = ((4, 4, 4), (68, 132, 64), (36, 20, 260), *(((200, 136, 1000),) if ON_GPU else ()))


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
pytestmark = [
    pytest.mark.skipif(bool(REASONS), reason="; ".join(REASONS)),
    pytest.mark.filterwarnings("ignore:::triton.runtime.interpreter"),
]


kernel = fixture_for("overlapped_product")


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
    for m, n, k in SIZES:
        A = normal(k, m).t() if layout[0] == "t" else normal(m, k)
        B = normal(n, k).t() if layout[1] == "t" else normal(k, n)
        check(overlapped(*tile, slices=slices), A, B)
        check(overlapped(*tile, slices=slices, method="fp16", chunk=512), A, B)


def test_a_gram_matrix_and_a_result_in_place_keep_the_bound() -> None:
    X = normal(200, 132)
    check(overlapped(64, 64), X.t(), X)
    check(overlapped(64, 64, slices=2), X.t(), X)
    A, B, C = normal(68, 260), normal(260, 72), normal(68, 72)
    C[3] *= 2.0**30
    truth = Truth(-0.5, A.cpu(), B.cpu(), 1.5, C.cpu())
    for slices in (1, 2):
        assert serve(overlapped(slices=slices), -0.5, A, B, 1.5, C, "C", truth)
    A[5, 100] = math.inf  # the tile is computed again, and C must still be there
    truth = Truth(-0.5, A.cpu(), B.cpu(), 1.5, C.cpu())
    assert serve(overlapped(), -0.5, A, B, 1.5, C, "C", truth)


@pytest.mark.skipif(ON_GPU, reason="a GPU may be in time by chance")
def test_two_buffers_would_be_written_while_they_are_read() -> None:
    """That is why the strategy asks for three."""
    A, B = normal(64, 260), normal(260, 64)
    run = importlib.import_module("autogemm.kernels.overlapped_product").overlapped_product
    tiling = importlib.import_module("autogemm.kernels.split_product").Tiling
    wrong = []
    for stages in (2, 3):
        out = torch.empty(64, 64)
        run(1.0, A, B, 0.0, None, out, terms=2, chunk=256, slices=1,
            tiling=tiling(64, 64, 32, 4, stages), gain=0.0)  # fmt: skip
        wrong.append(not torch.allclose(out.double(), A.double() @ B.double(), atol=1e-3))
    assert wrong == [True, False]


@pytest.mark.parametrize("which", ["A", "B"])
def test_rows_too_far_apart_for_its_offsets_are_left_to_fused(
    which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("autogemm.kernels.overlapped_product")
    served: list[torch.Tensor] = []
    monkeypatch.setattr(module, "fused_product", lambda *args, **kwargs: served.append(args[1]))
    far, near = torch.empty(4, 2**23, device=PLACE)[:, :4], normal(4, 4)
    A, B = (far, near) if which == "A" else (near, far)
    tiling = importlib.import_module("autogemm.kernels.split_product").Tiling(64, 64, 32, 4, 3)
    module.overlapped_product(
        1.0, A, B, 0.0, None, near.clone(), terms=2, chunk=64, slices=1, tiling=tiling, gain=0.0
    )
    assert served == [A]


def growing(steps: int) -> torch.Tensor:
    """Magnitudes that grow along k, in so many steps of 2^6."""
    exponents = torch.arange(384, device=PLACE) * steps // 384 * 6
    return torch.ldexp(normal(36, 384), exponents)


def spiked(where: int, exponent: int) -> torch.Tensor:
    A = normal(36, 384)
    A[3, where] = 2.0**exponent
    return A


UNEVEN: dict[str, Callable[[], torch.Tensor]] = {
    "grows once": lambda: growing(2),
    "grows all along": lambda: growing(20),
    "a spike in the first block": lambda: spiked(5, 40),
    "a spike later": lambda: spiked(300, 40),
    "a spike at the end": lambda: spiked(383, 40),
    "a spike near the end of the range": lambda: spiked(300, 120),
}


@pytest.mark.parametrize("met", ["numbers", "zeros"])
@pytest.mark.parametrize("slices", [1, 2])
@pytest.mark.parametrize("name", UNEVEN)
def test_what_outgrows_its_scales_is_computed_again(name: str, slices: int, met: str) -> None:
    A, B = UNEVEN[name](), normal(384, 40)
    if met == "zeros":  # the result is made of what the lowered scales hold worst
        B[A.abs().amax(0) > 2.0**30] = 0
    check(overlapped(slices=slices), A, B)
    check(overlapped(slices=slices), B.t().contiguous(), A.t().contiguous())


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("where", [0, 40, 383])
def test_a_special_element_comes_out_as_native_arithmetic_has_it(where: int, value: float) -> None:
    A, B = normal(36, 384), normal(384, 40)
    A[3, where] = value
    B[where, 7] = 0
    expected = A @ B
    found = STRATEGY.bind(
        contiguous_problem(36, 40, 384, torch.float32, device_type="cuda"),
        here(), overlapped().kwargs,
    )(1.0, A, B, 0.0, None, None)  # fmt: skip
    special = ~expected.isfinite()
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found[special].nan_to_num(7.0), expected[special].nan_to_num(7.0))


@pytest.mark.parametrize("name", names_for(torch.float32))
def test_the_bound_holds_on_hostile_operands(name: str) -> None:
    A, B, C = (
        x.to(PLACE) for x in HOSTILE[name](40, 36, 200, torch.float32, seeded("overlapped", name))
    )
    truth = Truth(1.5, A.cpu(), B.cpu(), 0.5, C.cpu())
    for slices in (1, 2):
        assert serve(overlapped(slices=slices), 1.5, A, B, 0.5, C, "new", truth)
