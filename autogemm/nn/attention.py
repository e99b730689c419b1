"""``torch.nn.MultiheadAttention`` with its projections computed by autogemm."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch.nn import functional as F

from autogemm.functional import linear


class _Scope(dict[str, Any]):
    """Names of our own, and all others as their module has them when they are read."""

    def __init__(self, module: dict[str, Any], **names: object) -> None:
        super().__init__(names, __builtins__=builtins)
        self._module = module

    def __missing__(self, name: str) -> Any:
        return self._module[name]


def rebound(function: Callable[..., Any], **names: object) -> Callable[..., Any]:
    """``function`` with some of the names it reads bound to something else."""
    assert isinstance(function, FunctionType)
    return _within(_Scope(function.__globals__, **names), function)


def _within(scope: _Scope, function: Callable[..., Any]) -> Callable[..., Any]:
    assert isinstance(function, FunctionType)
    copy = FunctionType(function.__code__, scope, function.__name__, function.__defaults__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


# torch's own function with other projections: masks, dropout, errors stay torch's, whichever
# version is installed. A copy of its 400 lines here would have to follow each of them.
_SCOPE = _Scope(F.__dict__, linear=linear)
for _name in ("_in_projection", "_in_projection_packed", "multi_head_attention_forward"):
    _SCOPE[_name] = _within(_SCOPE, getattr(F, _name))
attend = _SCOPE["multi_head_attention_forward"]
"""``torch.nn.functional.multi_head_attention_forward``, its projections by ``autogemm.linear``."""


class MultiheadAttention(torch.nn.MultiheadAttention):
    """``torch.nn.MultiheadAttention``, its constructor, parameters and results.

    Where torch would compute all of an evaluation in one fused operator, this computes
    projections and ``scaled_dot_product_attention`` one after the other, as torch itself does
    while training; results agree within rounding.
    """

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        options: dict[str, Any] = {
            "key_padding_mask": key_padding_mask,
            "need_weights": need_weights,
            "attn_mask": attn_mask,
            "average_attn_weights": average_attn_weights,
            "is_causal": is_causal,
        }
        if torch.compiler.is_compiling() or any(x.is_nested for x in (query, key, value)):
            return super().forward(query, key, value, **options)
        turned = self.batch_first and query.dim() == 3
        if turned:
            # Equal arguments stay one object, for they are projected together; and as gemm needs
            # rows one stride apart, what torch copies within its product is copied here.
            turns = {id(x): x.transpose(1, 0).contiguous() for x in (query, key, value)}
            query, key, value = turns[id(query)], turns[id(key)], turns[id(value)]
        attended: tuple[torch.Tensor, torch.Tensor | None] = attend(
            query,
            key,
            value,
            self.embed_dim,
            self.num_heads,
            self.in_proj_weight,
            self.in_proj_bias,
            self.bias_k,
            self.bias_v,
            self.add_zero_attn,
            self.dropout,
            self.out_proj.weight,
            self.out_proj.bias,
            training=self.training,
            use_separate_proj_weight=not self._qkv_same_embed_dim,
            q_proj_weight=self.q_proj_weight,
            k_proj_weight=self.k_proj_weight,
            v_proj_weight=self.v_proj_weight,
            **options,
        )
        result, weights = attended
        return (result.transpose(1, 0) if turned else result), weights
