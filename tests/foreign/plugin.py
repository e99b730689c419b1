"""A pytest plugin: every test within ``autogemm.override``, under evidence that serves all by gemm.

``pytest -p plugin`` with this folder and ``tests/`` on the path. ``AUTOGEMM_FOREIGN`` names the
strategy, ``matmul_axpby`` unless told; ``none`` leaves torch alone, for the figures to compare
with. How many products gemm served is printed at the end: none would mean that nothing is proven.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import pytest
from routed import every_product_tuned

import autogemm
from autogemm.strategies import Candidate

PARAMETERS: dict[str, dict[str, Any]] = {"ksplit": {"form": "sequential", "chunks": 2}}

_session = contextlib.ExitStack()
_served: list[Any] | None = None


def pytest_sessionstart() -> None:
    global _served
    name = os.environ.get("AUTOGEMM_FOREIGN", "matmul_axpby")
    if name != "none":
        candidate = Candidate.of(name, **PARAMETERS.get(name, {}))
        _served = _session.enter_context(every_product_tuned(candidate))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    if _served is None:
        return (yield)
    with autogemm.override():
        return (yield)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    said = "torch alone" if _served is None else f"gemm served {len(_served)} products"
    terminalreporter.write_line(f"autogemm: {said}")


def pytest_sessionfinish() -> None:
    _session.close()
