"""What tests of kernels in Gluon share.

Where there is no GPU these are those that ``interpreted_gluon`` makes of them.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_kernels import ON_GPU, PLACE, here, normal, serve

from autogemm.grading.oracle import Truth
from autogemm.problem import contiguous_problem
from autogemm.strategies import BY_NAME, Candidate


def fixture_for(name: str) -> Any:
    """A fixture by which the tests of a file meet a stand-in for module ``name`` of kernels."""

    @pytest.fixture(scope="module", autouse=True)
    def kernel(tmp_path_factory: pytest.TempPathFactory) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            if not ON_GPU:
                gluon = importlib.import_module("interpreted_gluon")
                module = gluon.interpreted(name, tmp_path_factory.mktemp("gluon"))
                patch.setitem(sys.modules, f"autogemm.kernels.{name}", module)
            yield

    return kernel


def marks_for(candidate: Candidate) -> list[pytest.MarkDecorator]:
    """The marks of a file whose tests are of forms like ``candidate``."""
    problem = contiguous_problem(64, 64, 64, torch.float32, device_type="cuda")
    reasons = BY_NAME["emulated_fp32"].reasons_not(problem, here(), candidate.kwargs)
    return [
        pytest.mark.skipif(bool(reasons), reason="; ".join(reasons)),
        pytest.mark.filterwarnings("ignore:::triton.runtime.interpreter"),
        pytest.mark.filterwarnings("ignore:invalid value encountered in reduce"),  # inf - inf
    ]


def check(candidate: Candidate, A: torch.Tensor, B: torch.Tensor, out: str = "new") -> None:
    """The bound, on every element of A·B."""
    truth = Truth(1.0, A.cpu(), B.cpu(), 0.0, None)
    assert serve(candidate, 1.0, A, B, 0.0, None, out, truth), "it was not served"


def growing(steps: int, k: int) -> torch.Tensor:
    """Magnitudes that grow along k, in so many steps of 2^6."""
    exponents = torch.arange(k, device=PLACE) * steps // k * 6
    return torch.ldexp(normal(36, k), exponents)


def spiked(where: int, exponent: int, k: int) -> torch.Tensor:
    A = normal(36, k)
    A[3, where] = 2.0**exponent
    return A


UNEVEN: dict[str, Callable[[int], torch.Tensor]] = {
    "grows once": lambda k: growing(2, k),
    "grows all along": lambda k: growing(20, k),
    "a spike in the first block": lambda k: spiked(5, 40, k),
    "a spike later": lambda k: spiked(k * 25 // 32, 40, k),
    "a spike at the end": lambda k: spiked(k - 1, 40, k),
    "a spike near the end of the range": lambda k: spiked(k * 25 // 32, 120, k),
    "a spike among zeros": lambda k: (
        spiked(k * 25 // 32, 40, k) * (torch.arange(k, device=PLACE) > k // 2).float()
    ),
}
"""Operands (36, k) that outgrow the scales of their first block."""
