"""Spans of an invented GPU: begun outside capture alone, read once it has passed them."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch

from autogemm import event_times
from autogemm.event_times import EventTimes, Span, begin


class Gpu:
    """Its clock is how many events were recorded; it has passed those up to ``reached``."""

    def __init__(self) -> None:
        self.recorded = 0
        self.reached = 10**9
        self.capturing = False
        self.queries = 0


class Event:
    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self, stream: Stream) -> None:
        self.gpu = stream.gpu
        self.gpu.recorded += 1
        self.time = self.gpu.recorded

    def query(self) -> bool:
        self.gpu.queries += 1
        return self.time <= self.gpu.reached

    def elapsed_time(self, end: Event) -> float:
        assert end.query()
        return float(end.time - self.time)  # milliseconds


class Stream:
    device = torch.device("cuda", 1)

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    gpu = Gpu()
    entered: list[Any] = []

    @contextlib.contextmanager
    def device(where: torch.device) -> Any:
        entered.append(where)
        yield
        entered.pop()

    def current_stream() -> Stream:
        assert entered == [Stream.device], "the stream of another device"
        return Stream(gpu)

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", current_stream)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: gpu.capturing)
    return gpu


def span() -> Span:
    found = begin(Stream.device)
    assert found is not None
    found.end()
    return found


def test_a_span_has_a_time_once_the_gpu_has_passed_it(gpu: Gpu) -> None:
    gpu.reached = 1
    found = span()
    assert found.seconds() is None
    gpu.reached = 2
    assert found.seconds() == 1e-3
    assert found.device == Stream.device


def test_nothing_is_begun_in_a_stream_that_is_captured(gpu: Gpu) -> None:
    gpu.capturing = True
    assert begin(Stream.device) is None
    assert gpu.recorded == 0


def test_times_are_added_up_as_the_gpu_passes_them(gpu: Gpu) -> None:
    added: list[tuple[str, float]] = []
    times: EventTimes[str] = EventTimes(lambda key, seconds: added.append((key, seconds)))
    gpu.reached = 2
    times.append("a", span())
    times.append("b", span())
    assert added == []
    times.collect()
    assert added == [("a", 1e-3)]
    gpu.reached = 4
    times.collect()
    times.collect()
    assert added == [("a", 1e-3), ("b", 1e-3)]
    assert times.devices == (Stream.device,)


def test_memory_is_bounded_where_the_gpu_keeps_up(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_times, "_MANY", 10)
    added: list[str] = []
    times: EventTimes[str] = EventTimes(lambda key, seconds: added.append(key))
    times._limit = 10
    for _ in range(1000):
        times.append("a", span())
        assert len(times._waiting) < 10
    times.collect()
    assert len(added) == 1000


def test_a_gpu_far_behind_is_not_asked_more_often_than_a_few_times_a_launch(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_times, "_MANY", 10)
    gpu.reached = 0
    times: EventTimes[str] = EventTimes(lambda key, seconds: None)
    times._limit = 10
    for _ in range(1000):
        times.append("a", span())
    assert gpu.queries <= 3 * 1000
