"""Launches a kernel without Triton's analysis of its arguments, once it has seen their like.

On the host of an H200 (Triton 3.6) that analysis takes 20-40 µs for the thirty arguments of
these kernels, more than the kernels themselves. It depends on what ``launch`` keys on: every
integer's value, every pointer's type and 16-byte alignment, and the constants.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from triton.compiler import CompiledKernel
from triton.tools.tensor_descriptor import TensorDescriptor

from autogemm.aliasing import written as written

_MAX_COMPILED = 4096
_compiled: dict[Hashable, Any] = {}


def ceil_div(x: int, y: int) -> int:
    """x / y rounded up. Triton's own ``cdiv`` takes 5 µs when called from Python."""
    return -(-x // y)


def launch(
    kernel: Any,
    blocks: int,
    tensors: tuple[torch.Tensor, ...],
    integers: tuple[int, ...],
    floats: tuple[float, ...],
    constants: Mapping[str, Any],
    *,
    num_warps: int,
    registers: int | None = None,
    descriptors: tuple[TensorDescriptor, ...] = (),
) -> None:
    """Run ``kernel`` on ``blocks`` programs of a one-dimensional grid, on the tensors' device.

    It joins that device's current stream. ``registers`` limits those of a thread, so that
    several programs share a multiprocessor.

    Its parameters must stand in this order: descriptors, tensors, integers, floats,
    ``constants`` (its constexprs, in the mapping's order).
    """
    device = tensors[0].get_device()
    if device >= 0 and device != torch.cuda.current_device():
        with torch.cuda.device(device):  # Triton launches on the current one
            launch(
                kernel, blocks, tensors, integers, floats, constants, num_warps=num_warps,
                registers=registers, descriptors=descriptors,
            )  # fmt: skip
        return
    key = (
        kernel,
        integers,
        tuple(constants.values()),
        tuple([(x.dtype, x.data_ptr() & 15) for x in tensors]),
        device,
        num_warps,
        registers,
    )
    found = _compiled.get(key)
    if found is not None:
        found[(blocks, 1, 1)](*descriptors, *tensors, *integers, *floats, *constants.values())
        return
    options = {"num_warps": num_warps}
    if registers is not None:
        options["maxnreg"] = registers
    result = kernel[(blocks,)](*descriptors, *tensors, *integers, *floats, **constants, **options)
    if isinstance(result, CompiledKernel):  # not so in Triton's interpreter
        if len(_compiled) >= _MAX_COMPILED:
            _compiled.clear()
        _compiled[key] = result
