"""The accuracy contract: levels, budgets, error bounds, and what torch's settings mean.

With G = |α||A||B| + |β||C|, taken elementwise, every finite element of a result obeys

    |Ĉ - C| ≤ u_out·|C| + (ρ + a(k))·u·G + max(1, |α|)·underflow(k)

where u is the unit roundoff of the arithmetic that accumulates, u_out that of the result's
own type, ρ what the level allows and a(k) the growth along k (k for real, 3k for complex
types). ``docs/accuracy.md`` derives the constants.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from threading import RLock
from typing import Any

import torch

from autogemm.errors import InvalidProblem

LEVELS = ("highest", "high", "medium")
"""From the most accurate to the least; a level is served by anything at least as accurate."""

_HALVES = (torch.float16, torch.bfloat16)


def unit_roundoff(dtype: torch.dtype) -> float:
    """u_out: half the distance from 1 to the next number of ``dtype`` (2⁻²⁴ for float32)."""
    return float(torch.finfo(dtype).eps) / 2


def accumulation_roundoff(dtype: torch.dtype) -> float:
    """u: the unit roundoff of the accumulator, float32 for 16-bit types, else the type's own."""
    return unit_roundoff(torch.float32 if dtype in _HALVES else dtype)


def underflow(dtype: torch.dtype, k: int) -> float:
    """What underflow may add to an error: every operation rounds to a multiple of ``tiny``.

    That is (k + 2)·tiny of the accumulator's type, (2k + 3)·tiny for complex types, and once
    the result's own smallest subnormal where it is larger (16-bit types).
    """
    own = {torch.float16: 2.0**-24, torch.bfloat16: 2.0**-133}.get(dtype, 0.0)
    tiny = 2.0**-149 if accumulation_roundoff(dtype) > 2.0**-30 else 5e-324
    roundings = 2 * k + 3 if dtype.is_complex else k + 2
    return roundings * tiny + own


def growth(dtype: torch.dtype, k: int) -> float:
    """a(k), promised for all inputs: k rounding errors for a real sum, 3k for a complex one."""
    return 3.0 * k if dtype.is_complex else float(k)


def allowance(level: str, dtype: torch.dtype) -> float:
    """ρ of a level, in units of the accumulator's roundoff."""
    if level == "highest" or dtype not in (torch.float32, *_HALVES):
        return 8.0
    if dtype is torch.float32:
        return {"high": 2.0**14, "medium": 2.0**17}[level]
    # Partial sums rounded to 16 bits, as torch's reduced-precision reduction allows: one
    # rounding per operand of the final sum, doubled.
    return 4 * unit_roundoff(dtype) / accumulation_roundoff(dtype)


@dataclass(frozen=True, slots=True)
class ErrorBound:
    """What a strategy declares: |err| ≤ u_out·|C| + (rho + growth)·u·G for every input."""

    rho: float
    growth: float

    @property
    def total(self) -> float:
        """rho + growth, in units of u·G."""
        return self.rho + self.growth


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What a call asks for: a level, or a budget ε with |Ĉ - C| ≤ ε·G; and who said so."""

    level: str
    budget: float | None = None
    source: str = "precision argument"

    @property
    def argument(self) -> str | float:
        """The ``precision`` argument that asks for it."""
        return self.level if self.budget is None else self.budget

    def admits(self, bound: ErrorBound, dtype: torch.dtype, k: int) -> bool:
        """Whether a declared bound keeps the promise."""
        return self.shortfall(bound, dtype, k) is None

    def shortfall(self, bound: ErrorBound, dtype: torch.dtype, k: int) -> str | None:
        """Why a declared bound does not keep the promise, or None if it does."""
        if self.budget is None:
            rho = allowance(self.level, dtype)
            limit = rho + growth(dtype, k)
            total = bound.total
            if total > limit:
                return f"its error bound, {total:.4g}u, exceeds {limit:.4g}u of {self.level!r}"
            # What is not the sum over k may not draw on the room that long sums have.
            if bound.rho > rho:
                return f"its rho, {bound.rho:.4g}u, exceeds {rho:.4g}u of {self.level!r}"
            return None
        promised = budget_of(bound, dtype)
        if promised <= self.budget:
            return None
        return f"its error bound, {promised:.2g}·G, exceeds the budget {self.budget:.2g}·G"

    def __str__(self) -> str:
        return self.level if self.budget is None else f"{self.budget:g}"


def budget_of(bound: ErrorBound, dtype: torch.dtype) -> float:
    """The smallest ε that a declared bound promises."""
    return unit_roundoff(dtype) + bound.total * accumulation_roundoff(dtype)


def resolve(precision: object, dtype: torch.dtype, state: PrecisionState) -> Tolerance:
    """Turn the ``precision`` argument into a tolerance; None asks torch's settings.

    Raises ``InvalidProblem`` for anything but None, a level's name or a positive number.
    """
    return state.tolerance(dtype) if precision is None else stated(precision)


def stated(precision: object) -> Tolerance:
    """The tolerance that a ``precision`` argument other than None names, or ``InvalidProblem``."""
    if isinstance(precision, str):
        if precision not in LEVELS:
            raise InvalidProblem(
                f"precision is {precision!r}; expected one of {', '.join(map(repr, LEVELS))}, a "
                "positive number (an error budget), or None to follow torch's settings."
            )
        return Tolerance(level=precision)
    if isinstance(precision, bool) or not isinstance(precision, (int, float)):
        raise InvalidProblem(
            f"precision is a {type(precision).__name__}; expected one of "
            f"{', '.join(map(repr, LEVELS))}, a positive number (an error budget), or None."
        )
    try:
        budget = float(precision)
    except OverflowError:
        budget = math.inf
    if not (math.isfinite(budget) and budget > 0):
        raise InvalidProblem(
            f"precision is {precision!r}; an error budget must be a positive, finite number, "
            "such as 1e-4 for |error| ≤ 1e-4·(|α||A||B| + |β||C|)."
        )
    return Tolerance(level="highest", budget=budget)


# ------------------------------------------------------------------ torch's own settings


@dataclass(frozen=True, slots=True)
class PrecisionState:
    """torch's process-wide settings that decide what its matrix products compute."""

    fp32: str
    """``ieee``, ``tf32`` or ``bf16``, for this device type."""
    reduced_reduction: bool
    """Whether 16-bit products may reduce partial sums in 16 bits."""
    device_type: str

    def tolerance(self, dtype: torch.dtype) -> Tolerance:
        """The level these settings stand for."""
        if dtype is torch.float32:
            level = {"tf32": "high", "bf16": "medium"}.get(self.fp32, "highest")
            if self.device_type == "cuda" and self.fp32 == "tf32" and _legacy_says_medium():
                return Tolerance("medium", source="torch.set_float32_matmul_precision('medium')")
            backend = "mkldnn" if self.device_type == "cpu" else "cuda"
            return Tolerance(
                level, source=f"torch.backends.{backend}.matmul.fp32_precision = {self.fp32!r}"
            )
        if dtype in _HALVES and self.device_type == "cuda":
            short = "fp16" if dtype is torch.float16 else "bf16"
            return Tolerance(
                "high" if self.reduced_reduction else "highest",
                source="torch.backends.cuda.matmul."
                f"allow_{short}_reduced_precision_reduction = {self.reduced_reduction}",
            )
        return Tolerance("highest", source=f"the only level of {str(dtype).split('.')[-1]} here")


def _legacy_says_medium() -> bool:
    try:
        return bool(torch.get_float32_matmul_precision() == "medium")
    except RuntimeError:  # raised by torch once the old and the new settings were mixed
        return False


def _fp32_getter() -> Any:
    fast = getattr(torch._C, "_get_fp32_precision_getter", None)
    if fast is not None:  # seven times cheaper than the property that wraps it
        return fast
    cudnn: Any = torch.backends.cudnn  # where torch keeps the word for all of CUDA
    mkldnn: Any = torch.backends.mkldnn
    settings = {
        ("cuda", "all"): cudnn,
        ("cuda", "matmul"): torch.backends.cuda.matmul,
        ("mkldnn", "all"): mkldnn,
        ("mkldnn", "matmul"): mkldnn.matmul,
    }
    return lambda backend, op: settings[backend, op].fp32_precision


fp32_setting = _fp32_getter()
"""``fp32_setting("cuda" | "mkldnn", "matmul")``: torch's word for float32 products.

With ``"all"`` instead of ``"matmul"``: the value that an unset one is read as.
"""


def raw_cuda_state(dtype: torch.dtype) -> Hashable:
    """The settings that matter to a CUDA call, as torch has them; cheap enough for every call."""
    if dtype is torch.float32:
        setting: Hashable = fp32_setting("cuda", "matmul")
        return "medium" if setting == "tf32" and _legacy_says_medium() else setting
    matmul: Any = torch.backends.cuda.matmul
    if dtype is torch.bfloat16:
        return bool(matmul.allow_bf16_reduced_precision_reduction)
    if dtype is torch.float16:
        return (matmul.allow_fp16_reduced_precision_reduction, matmul.allow_fp16_accumulation)
    return None


def settled() -> AbstractContextManager[object]:
    """A context in which no other thread holds a switch: settings read in it are the user's."""
    return _switch_lock


def current_state(dtype: torch.dtype, device_type: str) -> PrecisionState:
    """Read torch's settings for products of ``dtype`` on ``device_type``."""
    with _switch_lock:
        return _read_state(dtype, device_type)


def _read_state(dtype: torch.dtype, device_type: str) -> PrecisionState:
    fp32 = fp32_setting("cuda" if device_type == "cuda" else "mkldnn", "matmul")
    reduced = device_type == "cuda" and dtype in _HALVES and getattr(
        torch.backends.cuda.matmul,
        f"allow_{'fp16' if dtype is torch.float16 else 'bf16'}_reduced_precision_reduction",
    )
    return PrecisionState(
        fp32="ieee" if fp32 == "none" else fp32,
        reduced_reduction=bool(reduced),
        device_type=device_type,
    )


# Below is the only place that touches torch's settings. They belong to the process: torch (2.13,
# github.com/pytorch/pytorch/issues/165741) has none for a thread, and calls of other threads see
# a switch while it is held. So it is held for one launch only, and lowers accuracy only where no
# other thread exists (``is_alone``).
_switch_lock = RLock()


def _renew_lock() -> None:
    global _switch_lock
    _switch_lock = RLock()


if hasattr(os, "register_at_fork"):  # the child inherits the user's settings, not a switch
    os.register_at_fork(
        before=lambda: _switch_lock.acquire(),
        after_in_parent=lambda: _switch_lock.release(),
        after_in_child=_renew_lock,
    )


def is_alone() -> bool:
    """Whether no other thread of this process can call torch before this one lets it.

    Threads that have begun to run Python count, and those that ``threading`` is about to start.
    A process with one thread stays so while that thread is inside torch. Not seen are threads
    that never run Python: those of ``torch.jit.fork`` and of other C++ code.
    """
    return threading.active_count() == 1 and len(sys._current_frames()) == 1


def lowers_fp32(device_type: str, mode: str) -> bool:
    """Whether ``fp32_compute(device_type, mode)`` has less accuracy than torch is set to."""
    order = ("bf16", "tf32", "ieee")
    return order.index(mode) < order.index(current_state(torch.float32, device_type).fp32)


class _Switch:
    """Sets one of torch's settings and restores it; a context.

    A class on torch's own getters, not a generator on its properties: it is entered on every
    call of some plans, and costs a fifth as much. One instance serves any number of calls and
    threads, since the lock is held from entering to leaving; it must not be nested in itself.
    What somebody else sets meanwhile is not overwritten.
    """

    __slots__ = ("_before", "_get", "_held", "_put_back", "_set", "_value")

    def __init__(
        self,
        get: Callable[[], Any],
        set_: Callable[[Any], None],
        value: Any,
        put_back: Callable[[Any], None] | None = None,
    ) -> None:
        self._get = get
        self._set = set_
        self._value = value
        self._put_back = put_back or set_

    def __enter__(self) -> None:
        _switch_lock.acquire()
        try:
            self._before = self._held = self._get()
            if self._before != self._value:
                self._set(self._value)
                self._held = self._get()
        except BaseException:
            _switch_lock.release()
            raise

    def __exit__(self, *_: object) -> None:
        try:
            if self._held != self._before and self._get() == self._held:
                self._put_back(self._before)
        finally:
            _switch_lock.release()


def fp32_compute(device_type: str, mode: str) -> AbstractContextManager[None]:
    """Have torch's float32 products computed as ``mode`` (``ieee``, ``tf32``, ``bf16``)."""
    backend = "cuda" if device_type == "cuda" else "mkldnn"
    matmul: Any = (torch.backends.cuda if backend == "cuda" else torch.backends.mkldnn).matmul

    def get() -> Any:
        return fp32_setting(backend, "matmul")

    def set_(value: Any) -> None:
        matmul.fp32_precision = value

    def put_back(before: Any) -> None:
        # torch reads an unset value as its parent's. To write that back would pin it, deaf to
        # what the caller says to the parent later.
        set_("none" if fp32_setting(backend, "all") == before else before)

    return _Switch(get, set_, mode, put_back)


def reduced_reduction(dtype: torch.dtype, allowed: bool) -> AbstractContextManager[None]:
    """Allow or forbid 16-bit partial sums, and forbid 16-bit accumulation, in CUDA products."""
    matmul: Any = torch.backends.cuda.matmul
    name = f"allow_{'fp16' if dtype is torch.float16 else 'bf16'}_reduced_precision_reduction"
    getter = getattr(torch._C, f"_get_cublas_{name}", None)
    setter = getattr(torch._C, f"_set_cublas_{name}", None)
    if matmul.allow_fp16_accumulation or getter is None or setter is None:
        return _Switch(*_public_settings(matmul, name), (allowed, False))
    before = getter()
    if isinstance(before, tuple):  # (reduced, split k), since torch 2.10
        return _Switch(getter, lambda value: setter(*value), (allowed, True))
    return _Switch(getter, setter, allowed)


def _public_settings(
    matmul: Any, name: str
) -> tuple[Callable[[], tuple[Any, bool]], Callable[[tuple[Any, bool]], None]]:
    """Reader and writer of (reduction, 16-bit accumulation) by torch's public properties."""

    def get() -> tuple[Any, bool]:
        before = getattr(matmul, name)
        if not getattr(matmul, f"{name}_split_k", True):  # a plain bool would allow it again
            before = (before, False)
        return before, matmul.allow_fp16_accumulation

    def set_(value: tuple[Any, bool]) -> None:
        setattr(matmul, name, value[0])
        matmul.allow_fp16_accumulation = value[1]

    return get, set_
