"""What stays in memory of calls that do not repeat."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from stress import shapes, up_to

import autogemm
from autogemm import api


@pytest.fixture(autouse=True)
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("AUTOGEMM_TUNING_DB", str(tmp_path))
    yield tmp_path
    autogemm.reload_tables()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_ever_new_shapes_do_not_fill_the_memory(
    tables: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "_MAX_WARM_CALLS", 512)
    monkeypatch.setattr(shapes, "FILLED", 2000)
    figures = shapes.meet_shapes(up_to(20_000), tables)
    assert figures["growth MiB"] <= 16


def test_every_cache_of_the_package_has_a_bound_or_a_reason() -> None:
    unbounded = {
        f"{module.__name__}.{name}"
        for module in list(sys.modules.values())
        if getattr(module, "__name__", "").startswith("autogemm")
        for name, value in vars(module).items()
        if isinstance(value, functools._lru_cache_wrapper)
        and value.cache_parameters()["maxsize"] is None
        and value.__module__ == module.__name__
    }
    assert unbounded == {
        "autogemm.cublas.library.library",  # no arguments
        "autogemm.cublas.library.handle",  # one for each GPU
        "autogemm.device._cuda_device",  # one for each GPU
        "autogemm.device._cpu_device",  # one for each number of threads
        "autogemm.device._is_installed",  # one for each package that a strategy names
        "autogemm.device.software_versions",  # one for each type of device
        "autogemm.grading.known_faults.torch_flushes_bfloat16_subnormals",  # no arguments
        "autogemm.grading.known_faults.torch_scales_an_operand_first",  # types, devices
    }

