"""Where there is no GPU, kernels in Gluon are those that ``interpreted_gluon`` makes of them."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import pytest
from test_kernels import ON_GPU


def fixture_for(name: str) -> Any:
    """A fixture by which the tests of a file meet a stand-in for module ``name`` of kernels."""

    @pytest.fixture(scope="module", autouse=True)
    def kernel(tmp_path_factory: pytest.TempPathFactory) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            if not ON_GPU:
                gluon = importlib.import_module("interpreted_gluon")
                module = gluon.interpreted(name, tmp_path_factory.mktemp("gluon"))
                patch.setitem(sys.modules, f"autogemm.kernels.{name}", module)
            yield

    return kernel
