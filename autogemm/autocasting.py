"""``torch.autocast`` for products: what it would have ``torch.addmm`` see of the operands."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch

is_on = getattr(torch._C, "_is_any_autocast_enabled", torch.is_autocast_enabled)
"""Whether autocast is on for any kind of device; cheap enough for every call."""

disabled = torch._C._DisableAutocast
"""A context without autocast: what is reached in it is computed in the operands' own type."""


def state() -> Hashable:
    """What a cast depends on besides the operands."""
    return tuple(
        torch.is_autocast_enabled(where) and torch.get_autocast_dtype(where)
        for where in ("cpu", "cuda")
    )


def dtype_for(x: torch.Tensor) -> torch.dtype | None:
    """The type a product of x is computed in under autocast, None where that is off for it."""
    where = x.device.type
    if is_on() and torch.is_autocast_enabled(where):
        return torch.get_autocast_dtype(where)
    return None


def cast(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """x as autocast hands it to a product: float64 and what is not real stay as they are.

    What was expanded stays so: a bias is cast as one row.
    """
    if x.dtype is dtype or not x.dtype.is_floating_point or x.dtype is torch.float64:
        return x
    pairs = zip(x.shape, x.stride(), strict=True)
    expanded = [size > 1 and stride == 0 for size, stride in pairs]
    if not any(expanded):
        return x.to(dtype)
    one = x[tuple(slice(0, 1) if repeats else slice(None) for repeats in expanded)]
    return one.to(dtype).expand(x.shape)


def cast_all(*operands: Any) -> tuple[Any, ...]:
    """Operands as autocast, where it is on for the first one's device, has ``addmm`` see them."""
    first = operands[0]
    dtype = dtype_for(first) if isinstance(first, torch.Tensor) else None
    if dtype is None:
        return operands
    return tuple(
        cast(x, dtype) if isinstance(x, torch.Tensor) and x.device.type == first.device.type else x
        for x in operands
    )
