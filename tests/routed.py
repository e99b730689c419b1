"""Tables that choose something else than the baseline everywhere, so that on a CPU, too, calls
leave torch's own path; and what counts the calls that did.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch

import autogemm
from autogemm.database.lookup import Evidence, Suggestion
from autogemm.problem import Problem
from autogemm.strategies import Candidate

AXPBY = Candidate.of("matmul_axpby")


@contextmanager
def every_product_tuned(candidate: Candidate = AXPBY) -> Iterator[list[torch.Size]]:
    """Evidence for ``candidate`` at every problem; yields the result shapes ``gemm`` served."""
    served: list[torch.Size] = []
    gemm = autogemm.functional.gemm

    def suggestions(self: Evidence, problem: Problem, *rest: object) -> list[Suggestion]:
        return [
            Suggestion(
                candidate=candidate, source="exact", detail="invented", us=1.0, ratio=2.0,
                error=None,
            )
        ]  # fmt: skip

    def counted(*args: object, **kwargs: object) -> torch.Tensor:
        result: torch.Tensor = gemm(*args, **kwargs)
        served.append(result.shape)
        return result

    with (
        mock.patch.object(Evidence, "suggestions", suggestions),
        mock.patch.object(autogemm.functional, "gemm", counted),
    ):
        autogemm.reload_tables()
        yield served
    autogemm.reload_tables()
