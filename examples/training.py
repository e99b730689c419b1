#!/usr/bin/env python3
"""A small training loop written with gemm: two layers by hand, gradients through autograd.

    python examples/training.py
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from timing import HEAD, in_turns, line

from autogemm import gemm

Linear = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def torchs(x: torch.Tensor, W: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.addmm(b, x, W)


def ours(x: torch.Tensor, W: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return gemm(1.0, x, W, 1.0, b.expand(x.shape[0], W.shape[1]))


def training(
    linear: Linear, tokens: int, width: int, device: torch.device
) -> Iterator[torch.Tensor]:
    """The loss of one step after another; equal for equal ``linear``."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(rows: int, cols: int) -> torch.Tensor:
        return torch.randn(rows, cols, device=device, generator=generator)

    sizes = [(width, 4 * width), (4 * width, width)]
    weights = [(normal(*s) / s[0] ** 0.5).requires_grad_() for s in sizes]
    biases = [torch.zeros(s[1], device=device, requires_grad=True) for s in sizes]
    target = normal(width, width) / width**0.5
    optimizer = torch.optim.Adam([*weights, *biases], lr=1e-3)
    while True:
        x = normal(tokens, width)
        hidden = torch.nn.functional.gelu(linear(x, weights[0], biases[0]))
        loss = (linear(hidden, weights[1], biases[1]) - (x @ target).tanh()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.detach()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--width", type=int, help="features (2048 on a GPU, 256 on a CPU)")
    parser.add_argument("--tokens", type=int, help="a batch (4096 on a GPU, 512 on a CPU)")
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    if options.steps < 3:
        parser.error(f"--steps is {options.steps}; expected at least 3, the first 2 warm up")
    device = torch.device(options.device)
    options.width = options.width or (2048 if device.type == "cuda" else 256)
    options.tokens = options.tokens or (4096 if device.type == "cuda" else 512)

    print(f"{options.tokens} tokens, width {options.width}, float32 on {device}")
    runs = [training(f, options.tokens, options.width, device) for f in (torchs, ours)]
    losses: list[list[float]] = [[], []]

    def step(which: int) -> None:
        losses[which].append(next(runs[which]).item())

    before, after = in_turns(device, options.steps - 2, lambda: step(0), lambda: step(1))
    plain, tuned = losses
    print(HEAD)
    print(line("training step", before, after))
    for i in range(0, options.steps, max(1, options.steps // 6)):
        print(f"step {i:>4}  loss {plain[i]:.6f} with torch, {tuned[i]:.6f} with autogemm")
    worst = max(abs(x - y) / x for x, y in zip(plain, tuned, strict=True))
    print(f"largest relative difference of a loss {worst:.1e}")


if __name__ == "__main__":
    main()
