#!/usr/bin/env python3
"""Ridge regression by normal equations: (XᵀX + λI) w = Xᵀy, two long products and a small solve.

    python examples/least_squares.py
    python examples/least_squares.py --rows 1000003 --columns 300
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from timing import HEAD, in_turns, line, relative

from autogemm import gemm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rows", type=int, help="equations (1000003 on a GPU, 50000 on a CPU)")
    parser.add_argument("--columns", type=int, help="unknowns (300 on a GPU, 100 on a CPU)")
    parser.add_argument("--targets", type=int, default=16, help="right-hand sides")
    parser.add_argument("--ridge", type=float, default=1e-3, help="λ, relative to the rows")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    device = torch.device(options.device)
    n = options.rows or (1_000_003 if device.type == "cuda" else 50_000)
    d = options.columns or (300 if device.type == "cuda" else 100)
    ridge = options.ridge * n

    torch.manual_seed(0)
    X = torch.randn(n, d, device=device)
    w = torch.randn(d, options.targets, device=device)
    y = X @ w + torch.randn(n, options.targets, device=device)
    identity = ridge * torch.eye(d, device=device)

    def before() -> torch.Tensor:
        return solve(torch.addmm(identity, X.t(), X), X.t() @ y)

    def after() -> torch.Tensor:
        gram = gemm(1.0, X.t(), X, 1.0, identity, precision="highest")
        return solve(gram, gemm(1.0, X.t(), y, precision="highest"))

    print(f"ridge regression, {n} equations, {d} unknowns, {options.targets} targets on {device}")
    print(HEAD)
    print(line("normal equations", *in_turns(device, options.rounds, before, after)))

    a, b = X.double(), y.double()
    exact = solve(a.t() @ a + identity.double(), a.t() @ b)
    for name, found in (("torch", before()), ("autogemm", after())):
        print(f"{name:<10} error of the solution {relative(found, exact):.2e}")


def solve(gram: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """gram⁻¹·right by Cholesky."""
    return torch.cholesky_solve(right, torch.linalg.cholesky(gram))


if __name__ == "__main__":
    main()
