"""``torch.nn.Linear`` with its product computed by autogemm."""

from __future__ import annotations

from typing import Any

import torch

from autogemm.functional import linear


class Linear(torch.nn.Linear):
    """``torch.nn.Linear``, its constructor, state dict and results; see ``autogemm.linear``.

    ``precision`` is ``autogemm.linear``'s; it may be assigned at any time, and is no part of
    the state dict.
    """

    precision: str | float | None = None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        precision: str | float | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        if precision is not None:
            self.precision = precision

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return linear(input, self.weight, self.bias, precision=self.precision)

    def extra_repr(self) -> str:
        said = "" if self.precision is None else f", precision={self.precision!r}"
        return super().extra_repr() + said
