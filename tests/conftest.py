"""Fixtures that modules share; torch's precision settings never leak from test to test."""

from __future__ import annotations

import gc
import importlib
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# OpenMP's threads wait busily unless told otherwise: with products as small as here they would take
# most of the time, the more so where processes share cores. torch reads this as it is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch


def pytest_configure(config: pytest.Config) -> None:
    """In pyproject.toml the filter would have torch imported before this file is read."""
    config.addinivalue_line("filterwarnings", "error::autogemm.errors.DatabaseWarning")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One for every core and one more: some tests wait for processes that they have started."""
    return (os.cpu_count() or 1) + 1


def read_settings() -> dict[str, object]:
    """Every process-wide setting that decides what torch's products compute."""
    matmul = torch.backends.cuda.matmul
    names = [
        f"allow_{short}_reduced_precision_reduction{suffix}"
        for short in ("fp16", "bf16")
        for suffix in ("", "_split_k")
    ]
    settings: dict[str, object] = {
        "cuda.fp32_precision": matmul.fp32_precision,
        "mkldnn.fp32_precision": torch.backends.mkldnn.matmul.fp32_precision,
        "allow_fp16_accumulation": matmul.allow_fp16_accumulation,
    }
    for name in names:
        settings[name] = getattr(matmul, name, None)  # the split-k half is younger than torch 2.9
    return settings


@pytest.fixture
def torch_settings() -> Callable[[], dict[str, object]]:
    """What reads torch's precision settings as they are now."""
    return read_settings


@pytest.fixture
def restored_torch_settings() -> Iterator[None]:
    """Let a test change torch's precision settings; put them back afterwards."""
    matmul = torch.backends.cuda.matmul
    before = read_settings()
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        matmul.fp32_precision = before["cuda.fp32_precision"]
        torch.backends.mkldnn.matmul.fp32_precision = before["mkldnn.fp32_precision"]
        matmul.allow_fp16_accumulation = before["allow_fp16_accumulation"]
        for short in ("fp16", "bf16"):
            name = f"allow_{short}_reduced_precision_reduction"
            split_k = before[f"{name}_split_k"]
            setattr(matmul, name, (False, False) if split_k is False else before[name])
    assert read_settings() == before


@pytest.fixture(autouse=True)
def _torch_settings_are_left_alone() -> Iterator[None]:
    """Fail a test that changes torch's settings without asking for their restoration."""
    before = read_settings()
    yield
    # torch's own test utilities, once imported, forbid everybody to set what torch.backends holds.
    torch.backends.flags_frozen.__globals__["__allow_nonbracketed_mutation_flag"] = True
    assert read_settings() == before, "the test changed torch's process-wide settings"


def pytest_collection_finish() -> None:
    """Twelve thousand tests need not be looked through at every collection of garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The addresses of elements that kernels read by plain accesses."""
    if torch.cuda.is_available():
        pytest.skip("only the interpreter tells what is read")
    builder = importlib.import_module("triton.runtime.interpreter").InterpreterBuilder
    real = builder.create_masked_load
    found: set[int] = set()

    def load(self: Any, pointers: Any, mask: Any, *rest: Any, **options: Any) -> Any:
        given = np.broadcast_to(mask.data, pointers.data.shape)
        found.update(pointers.data[given].ravel().tolist())
        return real(self, pointers, mask, *rest, **options)

    monkeypatch.setattr(builder, "create_masked_load", load)
    return found


@pytest.fixture
def recorded_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tuning that asks no GPU for its clocks and offers what can be tried out."""
    from recorded_tuning import FEW

    from autogemm import tuner

    monkeypatch.setattr(tuner, "clocks_of", lambda device: {})
    monkeypatch.setattr(tuner, "STRATEGIES", FEW)


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty directory for tuning tables, and no others on the search path."""
    import autogemm
    from autogemm.database import locations

    directory = tmp_path / "tables"
    directory.mkdir()
    monkeypatch.setenv("AUTOGEMM_TUNING_DB", str(directory))
    for place in ("_user_directory", "_shipped_directory"):
        monkeypatch.setattr(locations, place, lambda: tmp_path / "elsewhere")
    autogemm.reload_tables()
    yield directory
    autogemm.reload_tables()
