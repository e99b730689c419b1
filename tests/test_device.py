"""What is read of a device besides what torch says of it."""

from __future__ import annotations

import subprocess
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from autogemm import device


@pytest.fixture
def second_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The current GPU is what torch sees of a host's second one."""
    properties = SimpleNamespace(uuid="aaaa-bbbb")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)


@pytest.mark.usefixtures("second_gpu")
def test_clocks_are_those_of_the_gpu_that_torch_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    def nvidia_smi(query: list[str], **_: Any) -> SimpleNamespace:
        assert (query[0], query[2]) == ("nvidia-smi", "--query-gpu=clocks.sm,clocks.mem")
        told = {"--id=GPU-aaaa-bbbb": "1980, 3201\n"}
        return SimpleNamespace(stdout=told[query[1]])

    monkeypatch.setattr(subprocess, "run", nvidia_smi)
    assert device.clocks() == {"sm_mhz": 1980, "memory_mhz": 3201}


@pytest.mark.usefixtures("second_gpu")
@pytest.mark.parametrize(
    "answer",
    ["[N/A], [N/A]", "No devices were found", "", "1980, 3201\n345, 3201",
     FileNotFoundError("nvidia-smi"), subprocess.TimeoutExpired("nvidia-smi", 10)],
    ids=repr,
)  # fmt: skip
def test_clocks_are_unknown_where_nvidia_smi_cannot_tell(
    monkeypatch: pytest.MonkeyPatch, answer: str | Exception
) -> None:
    def nvidia_smi(query: list[str], **_: Any) -> SimpleNamespace:
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(stdout=answer)

    monkeypatch.setattr(subprocess, "run", nvidia_smi)
    assert device.clocks() == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_there_are_no_clocks() -> None:
    assert device.clocks() == {}
