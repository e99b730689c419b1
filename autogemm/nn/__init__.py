"""Layers whose products go through autogemm; state dicts are those of the layers they replace."""

from autogemm.nn.attention import MultiheadAttention
from autogemm.nn.linear import Linear
from autogemm.nn.mlp import MLP, GatedMLP

__all__ = ["MLP", "GatedMLP", "Linear", "MultiheadAttention"]
