"""The two feed-forward blocks of transformers, by the names their checkpoints use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from autogemm.nn.linear import Linear

Activation = Callable[[torch.Tensor], torch.Tensor]


class MLP(torch.nn.Module):
    """``fc2(activation(fc1(x)))``, the block of ViT, CLIP, BERT-like and OPT models.

    State dicts are interchangeable with timm's ``Mlp`` and transformers' ``CLIPMLP``.

    Args:
        in_features: size of the last dimension of x, (..., in_features).
        hidden_features: size of ``fc1``'s output; None: ``in_features``.
        out_features: size of the result's last dimension; None: ``in_features``.
        activation: an elementwise function of a tensor.
        bias: whether both layers have one.
        precision: of both layers; see ``autogemm.linear``.
        device, dtype: of the parameters.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        activation: Activation = F.gelu,
        bias: bool = True,
        *,
        precision: str | float | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        hidden = hidden_features or in_features
        made: dict[str, Any] = {"precision": precision, "device": device, "dtype": dtype}
        self.fc1 = Linear(in_features, hidden, bias, **made)
        self.activation = activation
        self.fc2 = Linear(hidden, out_features or in_features, bias, **made)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.fc2(self.activation(self.fc1(x)))
        return hidden


class GatedMLP(torch.nn.Module):
    """``down_proj(activation(gate_proj(x)) * up_proj(x))``, the block of Llama-like models.

    State dicts are interchangeable with transformers' ``LlamaMLP``.

    Args:
        hidden_size: size of the last dimension of x and of the result.
        intermediate_size: size between the layers.
        activation: an elementwise function of a tensor.
        bias: whether the three layers have one.
        precision: of all three layers; see ``autogemm.linear``.
        device, dtype: of the parameters.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        activation: Activation = F.silu,
        bias: bool = False,
        *,
        precision: str | float | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        made: dict[str, Any] = {"precision": precision, "device": device, "dtype": dtype}
        self.gate_proj = Linear(hidden_size, intermediate_size, bias, **made)
        self.up_proj = Linear(hidden_size, intermediate_size, bias, **made)
        self.activation = activation
        self.down_proj = Linear(intermediate_size, hidden_size, bias, **made)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))
        return result
