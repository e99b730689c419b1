"""nvmath's bindings of cuBLASLt and a handle for each GPU, loaded when they are first needed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

raw_stream: Callable[[int], int] = getattr(torch._C, "_cuda_getCurrentRawStream", lambda index: 0)
"""The current stream of a GPU, as cuBLASLt takes it: 0.15 µs, where torch's object takes 6.5."""


@functools.cache
def library() -> Any:
    """nvmath's bindings of cuBLASLt; what it raises where they cannot be loaded is its own."""
    from nvmath.bindings import cublasLt

    return cublasLt


@functools.cache
def handle(index: int) -> int:
    """cuBLASLt's handle for a GPU. Any thread may use it."""
    with torch.cuda.device(index):
        return int(library().create())


def why_not() -> str | None:
    """Why cuBLASLt cannot be asked in this process; None if it can."""
    if not torch.cuda.is_available():
        return "cuBLAS can only be asked where there is a GPU"
    try:
        here()
    except Exception as error:  # nvmath and the loaders beneath it have kinds of their own
        return f"cuBLASLt cannot be used here: {type(error).__name__}: {error}"
    return None


def here() -> int:
    """The handle for the current GPU."""
    return handle(torch.cuda.current_device())
