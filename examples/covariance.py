#!/usr/bin/env python3
"""Principal components of a tall matrix: the covariance XᵀX/n is where the time goes.

    python examples/covariance.py                    # a size for this machine
    python examples/covariance.py --rows 200000 --columns 500
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from timing import HEAD, in_turns, line, relative

from autogemm import explain, gemm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rows", type=int, help="samples (200000 on a GPU, 20000 on a CPU)")
    parser.add_argument("--columns", type=int, help="features (500 on a GPU, 128 on a CPU)")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    device = torch.device(options.device)
    n = options.rows or (200_000 if device.type == "cuda" else 20_000)
    d = options.columns or (500 if device.type == "cuda" else 128)

    torch.manual_seed(0)
    # Features with a falling spectrum, centred, as principal components expect them.
    X = torch.randn(n, d, device=device) * torch.logspace(0, -2, d, device=device)
    X -= X.mean(0)

    def before() -> torch.Tensor:
        return X.t() @ X / n

    def after() -> torch.Tensor:
        return gemm(1 / n, X.t(), X, precision="highest")

    print(f"covariance of {n} x {d} float32 on {device}")
    print(HEAD)
    print(line("covariance", *in_turns(device, options.rounds, before, after)))

    exact = X.double().t() @ X.double() / n
    for name, found in (("torch", before()), ("autogemm", after())):
        values = torch.linalg.eigvalsh(found.double())
        wanted = torch.linalg.eigvalsh(exact)
        worst = float(((values - wanted) / wanted).abs().max())
        print(f"{name:<10} error of the covariance {relative(found, exact):.2e}, "
              f"of an eigenvalue at most {worst:.2e}")  # fmt: skip
    print(explain(1 / n, X.t(), X, precision="highest"))


if __name__ == "__main__":
    main()
