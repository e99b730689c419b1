"""Starts a compiled kernel through the C function Triton has for it, and nothing else.

On its way there ``CompiledKernel`` asks for the device, collects what profilers want to know,
and asks the driver about every pointer. That is for callers who may have changed any of it; on the
host of a GPU it takes longer than small products do.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
from triton import knobs
from triton.tools.tensor_descriptor import TensorDescriptor

from autogemm.device import is_release, software_versions

_SPREAD = ("3.6",)
_TOGETHER = ("3.7", "3.8")
"""Versions of Triton whose private parts are as this module takes them to be: those that pass
a kernel's arguments one by one, and those that pass them as one sequence."""


class Start:
    """Runs a kernel, given programs, device, descriptors, tensors and everything that follows."""

    __slots__ = ("_kernel", "fill", "fixed", "head", "known", "run")

    def __init__(
        self, run: Callable[..., None], fill: Callable[..., object],
        known: Sequence[tuple[object, ...]], fixed: tuple[object, ...], kernel: object = None,
        *, together: bool = False,
    ) -> None:  # fmt: skip
        self._kernel = kernel  # kept alive: ``fixed`` has its handle
        self.run = run
        """The C function: programs (3), a stream, ``fixed``, descriptors, pointers, the rest."""
        self.head = 4 + len(fixed) if together else 0
        """How many arguments come before the kernel's, if those are passed as one sequence."""
        self.fill = fill
        """Makes a descriptor of an address, one of ``known``, a shape, strides and a padding."""
        self.known, self.fixed = known, fixed

    def __call__(
        self,
        programs: int,
        device: int,
        descriptors: Sequence[TensorDescriptor],
        tensors: Sequence[torch.Tensor],
        rest: Sequence[object],
    ) -> None:
        arguments: list[object] = [programs, 1, 1, stream_of(device), *self.fixed]
        for x, meta in zip(descriptors, self.known, strict=True):
            arguments.append(self.fill(x.base.data_ptr(), *meta, x.shape, x.strides, 0))
            arguments += x.shape
            arguments += x.strides
        arguments += [x.data_ptr() for x in tensors]
        arguments += rest
        if self.head:
            self.run(*arguments[: self.head], arguments[self.head :])
        else:
            self.run(*arguments)


def stream_of(device: int) -> int:
    """A device's current stream."""
    return torch._C._cuda_getCurrentRawStream(device)


def starter(
    compiled: Any, descriptors: Sequence[TensorDescriptor], others: int
) -> Start | None:
    """What starts a compiled kernel that takes these descriptors and so many other arguments.

    None where this Triton is not known to allow it.
    """
    version = software_versions("cuda").get("triton", "")
    try:
        if is_release(version, _SPREAD):
            return _starter(compiled, len(descriptors), together=False)
        if is_release(version, _TOGETHER):
            # The C function reads as many as it was told of, without looking how many there are.
            passed = sum(1 + 2 * len(x.shape) for x in descriptors) + others
            if len(compiled.run.arg_annotations) == passed:
                return _starter(compiled, len(descriptors), together=True)
    except (AttributeError, ImportError, KeyError, TypeError):  # a build that differs
        pass
    return None


def _starter(compiled: Any, descriptors: int, *, together: bool) -> Start | None:
    launcher = compiled.run
    metas = getattr(compiled.metadata, "tensordesc_meta", None) or []
    if (
        type(launcher).__name__ != "CudaLauncher"
        or launcher.global_scratch_size
        or launcher.profile_scratch_size
        or getattr(launcher, "gsan_enabled", False)
        or len(metas) != descriptors
        or not all(metas)
        or any(meta["fp4_padded"] or meta.get("is_im2col") for meta in metas)
    ):
        return None
    from triton.backends.nvidia.driver import TMA_DTYPE_DEVICE_TO_HOST

    run = launcher.launch
    if metas:  # Triton's own expansion of descriptors lies around it
        run = inspect.getclosurevars(run).nonlocals.get("launcher")
        if run is None:
            return None
    utils = triton.runtime.driver.active.utils
    fill = utils.fill_tma_descriptor_tiled if together else utils.fill_tma_descriptor
    known = [
        (
            meta["swizzle"], meta["elem_size"], TMA_DTYPE_DEVICE_TO_HOST[meta["elem_type"]],
            meta["block_size"],
        )
        for meta in metas
    ]  # fmt: skip
    fixed: tuple[object, ...]
    how = (compiled.function, launcher.launch_cooperative_grid, launcher.launch_pdl)
    unwatched, no_scratch = (None, None, None), (None, None)
    if together:
        kinds = (launcher.arg_annotations, launcher.kernel_signature)
        fixed = (*how, compiled.packed_metadata, *unwatched, *no_scratch, *kinds)
    else:
        fixed = (*how, *no_scratch, compiled.packed_metadata, *unwatched)
    return Start(run, fill, known, fixed, compiled, together=together)


def is_watched() -> bool:
    """Whether a profiler wants to hear of launches."""
    for hook in (knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook):
        if hook is not None and getattr(hook, "calls", True):
            return True
    return False
