"""Before and after, timed in turns: what all examples print."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def in_turns(
    device: torch.device, rounds: int, before: Callable[[], object], after: Callable[[], object]
) -> tuple[float, float]:
    """Median seconds of one call of each, timed alternately after two calls to warm up."""

    def seconds(call: Callable[[], object]) -> float:
        wait(device)
        start = time.perf_counter()
        call()
        wait(device)
        return time.perf_counter() - start

    for call in (before, after, before, after):
        call()
    times = [(seconds(before), seconds(after)) for _ in range(rounds)]
    return statistics.median(b for b, _ in times), statistics.median(a for _, a in times)


def wait(device: torch.device) -> None:
    """Until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def line(what: str, before: float, after: float) -> str:
    """One row: milliseconds with torch, with autogemm, and how many times faster."""
    return f"{what:<28}{before * 1e3:>10.2f} ms{after * 1e3:>10.2f} ms{before / after:>8.2f} x"


HEAD = f"{'':<28}{'torch':>13}{'autogemm':>13}{'faster':>10}"


def relative(x: torch.Tensor, y: torch.Tensor) -> float:
    """‖x - y‖ / ‖y‖ in float64."""
    return float((x.double() - y.double()).norm() / y.double().norm())
