"""``emulated_fp32`` in form ``continuous``: on a Hopper GPU, else by ``interpreted_gluon``."""

from __future__ import annotations

import pytest
import torch
from gluon_stand_in import fixture_for
from test_kernels import here, normal, serve

from autogemm.grading.oracle import Truth
from autogemm.problem import contiguous_problem
from autogemm.strategies import BY_NAME, Candidate
from autogemm.strategies.base import ParamValue

STRATEGY = BY_NAME["emulated_fp32"]


def continuous(
    bm: int = 64, bn: int = 64, bk: int = 32, warps: int = 4, stages: int = 3,
    **changed: ParamValue,
) -> Candidate:  # fmt: skip
    params: dict[str, ParamValue] = {
        "form": "continuous", "method": "fp16x3", "bm": bm, "bn": bn, "bk": bk, "warps": warps,
        "stages": stages, "chunk": 64, "slices": 1, "group": 8,
    }  # fmt: skip
    return Candidate.of("emulated_fp32", **(params | changed))


REASONS = STRATEGY.reasons_not(
    contiguous_problem(64, 64, 64, torch.float32, device_type="cuda"), here(), continuous().kwargs
)
pytestmark = [
    pytest.mark.skipif(bool(REASONS), reason="; ".join(REASONS)),
    pytest.mark.filterwarnings("ignore:::triton.runtime.interpreter"),
]
kernel = fixture_for("continuous_product")


@pytest.mark.parametrize("layout", ["nn", "tn", "nt", "tt"])
def test_every_layout_keeps_the_bound(layout: str) -> None:
    for m, n, k in ((68, 20, 132), (2, 5, 3), (65, 130, 200)):
        A = normal(k, m).t() if layout[0] == "t" else normal(m, k)
        B = normal(n, k).t() if layout[1] == "t" else normal(k, n)
        C = normal(m, n)
        for method in ("fp16x3", "fp16"):
            truth = Truth(1.5, A.cpu(), B.cpu(), 0.5, C.cpu())
            candidate = continuous(method=method, slices=1 + (layout[0] == "t"))
            for out in ("new", "C", "col"):
                assert serve(candidate, 1.5, A, B, 0.5, C, out, truth), "it was not served"
