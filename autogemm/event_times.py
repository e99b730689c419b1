"""Times of CUDA launches, taken by events and read without ever waiting for the GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import torch

K = TypeVar("K")

_MANY = 4096
"""Spans that wait before those the GPU has passed are read: some hundred bytes each."""


class Span:
    """Two events in one stream, the second where ``end`` is called."""

    __slots__ = ("_ended", "_started", "_stream")

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream
        self._started = torch.cuda.Event(enable_timing=True)
        self._ended = torch.cuda.Event(enable_timing=True)
        self._started.record(stream)

    @property
    def device(self) -> torch.device:
        """Where it is timed."""
        return self._stream.device

    def end(self) -> None:
        """What was launched since the start is what is timed."""
        self._ended.record(self._stream)

    def seconds(self) -> float | None:
        """The time between, None while the GPU has not passed the end."""
        return self._started.elapsed_time(self._ended) / 1e3 if self._ended.query() else None


def begin(device: torch.device) -> Span | None:
    """A span in the device's current stream; None while that is captured and nothing runs."""
    with torch.cuda.device(device):
        if torch.cuda.is_current_stream_capturing():
            return None
        return Span(torch.cuda.current_stream())


class EventTimes(Generic[K]):
    """Keeps spans until the GPU has passed them; ``add(key, seconds)`` is told of each one."""

    def __init__(self, add: Callable[[K, float], None]) -> None:
        self._add = add
        self._waiting: list[tuple[K, Span]] = []
        self._limit = _MANY
        self._devices: dict[torch.device, None] = {}

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """The devices that something was timed on."""
        return tuple(self._devices)

    def append(self, key: K, span: Span) -> None:
        """Take a span that has been ended."""
        self._devices[span.device] = None
        self._waiting.append((key, span))
        if len(self._waiting) >= self._limit:
            self.collect()
            # Where the GPU is far behind, reading them all at every launch would cost more and
            # more.
            self._limit = max(_MANY, 2 * len(self._waiting))

    def collect(self) -> None:
        """Read the spans that the GPU has passed: all of them after a synchronise."""
        left = []
        for key, span in self._waiting:
            seconds = span.seconds()
            if seconds is None:
                left.append((key, span))
            else:
                self._add(key, seconds)
        self._waiting = left
