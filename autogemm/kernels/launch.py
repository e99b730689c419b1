"""Launches a kernel without Triton's analysis of its arguments, once it has seen their like.

On the host of an H200 (Triton 3.6) that analysis takes 20-40 µs for the thirty arguments of
these kernels, more than the kernels themselves. It depends on what ``launch`` keys on: every
integer's value, every pointer's type and 16-byte alignment, and the constants. ``direct`` then
spares what Triton does for every launch of a compiled kernel, too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import torch
from triton import knobs
from triton.compiler import CompiledKernel
from triton.tools.tensor_descriptor import TensorDescriptor

from autogemm.aliasing import written as written
from autogemm.kernels.direct import Start, is_watched, starter
from autogemm.kernels.replay import note_launch
from autogemm.kernels.replay import workspace as workspace

REMEMBERED = 4096
"""Kinds of calls whose launches are kept, here and by those who prepare them."""
_REGISTERS = 65536
"""Of a multiprocessor, on every NVIDIA GPU since compute capability 3.5."""
_compiled: dict[Hashable, tuple[Any, Start | None, object]] = {}
"""Compiled kernels, what starts them, and the kernels themselves, whose identity is in the key."""
_only_compiles: ContextVar[bool] = ContextVar("only_compiles", default=False)


def ceil_div(x: int, y: int) -> int:
    """x / y rounded up. Triton's own ``cdiv`` takes 5 µs when called from Python."""
    return -(-x // y)


def registers_for_two(warps: int) -> int:
    """How many registers of a thread let two programs of so many warps share a multiprocessor."""
    return _REGISTERS // (2 * 32 * warps)


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
        id(kernel),  # hashing one takes a microsecond
        integers,
        tuple(constants.values()),
        tuple([(x.dtype, x.data_ptr() & 15) for x in tensors]),
        device,
        num_warps,
        registers,
    )
    found = _compiled.get(key)
    if found is not None:
        compiled, start, _ = found
        rest = (*integers, *floats, *constants.values())
        if start is None or is_watched():
            note_launch(None, blocks)
            compiled[(blocks, 1, 1)](*descriptors, *tensors, *rest)
        else:
            note_launch(start, blocks, descriptors, tensors, rest)
            start(blocks, device, descriptors, tensors, rest)
        return
    note_launch(None, blocks)
    options = {"num_warps": num_warps}
    if registers is not None:
        options["maxnreg"] = registers
    arguments = (*descriptors, *tensors, *integers, *floats)
    # Constants go by name now and by place from the second time on.
    assert kernel.arg_names[len(arguments) :] == list(constants), kernel.arg_names
    if _only_compiles.get():
        kernel.warmup(*arguments, grid=(blocks,), **constants, **options)
        return
    result = kernel[(blocks,)](*arguments, **constants, **options)
    if isinstance(result, CompiledKernel):  # not so in Triton's interpreter
        if len(_compiled) >= REMEMBERED:
            _compiled.clear()
        others = len(arguments) - len(descriptors) + len(constants)
        _compiled[key] = result, starter(result, descriptors, others), kernel


def compile_ahead(calls: Iterable[Callable[[], object]]) -> None:
    """Compile, side by side, what the calls would launch; tensors they return are unwritten.

    A kernel takes a processor a second or so, and tuning meets some hundred. What fails here is
    left to fail where it is launched. Triton before 3.5 and its interpreter do nothing.
    """
    try:
        from triton.runtime._async_compile import AsyncCompileMode
    except ImportError:
        return
    if knobs.runtime.interpret:
        return
    token = _only_compiles.set(True)
    try:
        with (
            ThreadPoolExecutor(os.cpu_count()) as threads,
            AsyncCompileMode(threads, ignore_errors=True),
        ):
            for call in calls:
                call()
    finally:
        _only_compiles.reset(token)
