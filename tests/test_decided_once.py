"""Kernels in the interpreter come out the same, bit by bit, where every call is decided anew."""

from __future__ import annotations

import importlib

import pytest
import torch
from test_kernels import ON_GPU

triton = importlib.import_module("triton")
tl = importlib.import_module("triton.language")
interpreter = importlib.import_module("triton.runtime.interpreter")

pytestmark = pytest.mark.skipif(ON_GPU, reason="kernels are compiled there")


@triton.jit
def _twice(x, y: tl.constexpr):
    return x * y, x + y


@triton.jit
def _kernel(a, b, out, m, n, alpha, TALL: tl.constexpr, WIDE: tl.constexpr):
    i = tl.arange(0, TALL)[:, None]
    j = tl.arange(0, WIDE)[None, :]
    inside = (i < m) & (j < n)
    x = tl.load(a + i * n + j, mask=inside, other=-0.0)
    y = tl.load(b + j * m + i, mask=inside, other=float("inf")).to(tl.float16)
    total = tl.zeros((TALL, WIDE), dtype=tl.float32)
    for step in range(0, m, 2):  # a number that changes, and a constant in its place below
        scaled, moved = _twice(x, 3)
        total += tl.where((scaled > step) & (j % 2 == 0), moved, -alpha)
        total = tl.maximum(total, y.to(tl.float32) * x)
        if step == 4:
            total *= 0.5
    for step in tl.static_range(3):
        total += tl.sqrt(tl.abs(total)) * step
    bits = total.to(tl.int32, bitcast=True) & 0x7FFFFF00
    total = tl.dot(bits.to(tl.float32, bitcast=True), tl.trans(x), tl.dot(x, tl.trans(x)))
    rows = tl.sum(total, 1) / (tl.max(total, 1) + 1)
    k = tl.arange(0, TALL)
    tl.store(out + k, rows, mask=k < m)
    tl.store(out + TALL + k, tl.cdiv(k * m, n).to(tl.float32) + x.shape[1], mask=k < m)


def results() -> list[torch.Tensor]:
    made = []
    for m, n, tall, wide in ((5, 9, 16, 16), (16, 32, 16, 32), (9, 5, 16, 16), (5, 9, 16, 16)):
        for alpha in (1.5, -0.0, 0.0):
            A = torch.linspace(-3, 4, m * n).reshape(m, n)
            B = torch.linspace(7, -2, m * n).reshape(n, m) * (1 + alpha)
            out = torch.zeros(2 * tall)
            _kernel[(1,)](A, B, out, m, n, alpha, tall, wide)
            made.append(out.view(torch.int32))
    return made


@pytest.mark.filterwarnings("ignore:::triton.runtime.interpreter")
def test_a_call_is_repeated_as_it_would_be_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    repeated = results()
    anew = importlib.import_module("interpreting").DECIDED_ANEW
    monkeypatch.setattr(interpreter, "_patch_builtin", anew)
    others = results()
    assert any(x.any() for x in others)
    for x, y in zip(repeated, others, strict=True):
        assert torch.equal(x, y)
