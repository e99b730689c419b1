"""transformers' ``Conv1D``, GPT-2's linear layer; imported only where transformers is loaded."""

from __future__ import annotations

import torch
from transformers import pytorch_utils

from autogemm.functional import linear, routed_linear


class Conv1D(pytorch_utils.Conv1D):  # type: ignore[misc]  # no types where it is not installed
    """``transformers.pytorch_utils.Conv1D``: a linear layer that stores weightᵀ."""

    precision: str | float | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.precision is not None:
            return linear(x, self.weight.t(), self.bias, precision=self.precision)
        result = routed_linear(x, self.weight.t(), self.bias)
        return super().forward(x) if result is None else result
