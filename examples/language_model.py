#!/usr/bin/env python3
"""GPT-2 (transformers' own code, random weights, no download) before and after replace_linear.

    pip install transformers
    python examples/language_model.py                       # GPT-2 small; on a CPU a smaller one
    python examples/language_model.py --record shapes.yaml  # what it multiplies, ...
    python scripts/tune.py --shapes shapes.yaml             # ... tuned, with the saving to expect
    python examples/language_model.py                       # the saving that came of it
"""

from __future__ import annotations

import argparse
import copy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from timing import HEAD, in_turns, line, relative

import autogemm

try:
    from transformers import GPT2Config, GPT2LMHeadModel
except ImportError:
    sys.exit("this example needs the package transformers: pip install transformers")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--layers", type=int, help="12 on a GPU (GPT-2 small), 2 on a CPU")
    parser.add_argument("--vocabulary", type=int, help="50257 on a GPU (GPT-2's), 4096 on a CPU")
    parser.add_argument("--batch", type=int, help="sequences (8 on a GPU, 1 on a CPU)")
    parser.add_argument("--tokens", type=int, help="of a sequence (1024 on a GPU, 128 on a CPU)")
    parser.add_argument("--steps", type=int, default=10, help="training steps to time and compare")
    parser.add_argument("--record", metavar="FILE", help="record one forward and training step")
    options = parser.parse_args()
    small = options.device == "cpu"
    options.layers = options.layers or (2 if small else 12)
    options.vocabulary = options.vocabulary or (4096 if small else 50257)
    options.batch = options.batch or (1 if small else 8)
    options.tokens = options.tokens or (128 if small else 1024)
    return options


class Trainer:
    """A model with its optimiser; one step at a time, the same data for all."""

    def __init__(self, model: torch.nn.Module, batches: torch.Tensor) -> None:
        self.model, self.batches = model, batches
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        self.losses: list[torch.Tensor] = []

    def step(self) -> None:
        ids = self.batches[len(self.losses) % len(self.batches)]
        loss = self.model(ids, labels=ids).loss
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.losses.append(loss.detach())


def main() -> None:
    options = parse()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=options.layers, vocab_size=options.vocabulary, n_positions=options.tokens,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    exact = GPT2LMHeadModel(config).to(device)
    plain = copy.deepcopy(exact).to(dtype)
    tuned = autogemm.replace_linear(copy.deepcopy(plain))
    shape = (options.steps + 4, options.batch, options.tokens)
    batches = torch.randint(options.vocabulary, shape, device=device)
    ids = batches[0]
    count = sum(p.numel() for p in exact.parameters()) / 1e6
    print(f"GPT-2, {options.layers} layers, {count:.0f} M parameters, {options.batch} x "
          f"{options.tokens} tokens, {options.dtype} on {device}")  # fmt: skip

    if options.record:
        trainer = Trainer(copy.deepcopy(plain), batches)
        trainer.step()  # the first step allocates and initialises
        with autogemm.record(options.record) as recording:
            trainer.step()
        print(recording)
        return

    @torch.no_grad()
    def forward(model: torch.nn.Module) -> torch.Tensor:
        return model(ids).logits

    print(HEAD)
    times = in_turns(device, options.steps, lambda: forward(plain), lambda: forward(tuned))
    print(line("forward", *times))
    reference = forward(exact.double() if dtype == torch.float32 else exact)
    for name, model in (("torch", plain), ("autogemm", tuned)):
        print(f"{name:<10} error of the logits {relative(forward(model), reference):.2e}")

    gradients = []
    for model in (plain, tuned):
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    print(f"gradients differ by {relative(gradients[1], gradients[0]):.2e} of their norm")

    runs = [Trainer(model, batches) for model in (plain, tuned)]
    print(line("training step", *in_turns(device, options.steps, runs[0].step, runs[1].step)))
    curves = [torch.stack(run.losses).float().cpu() for run in runs]
    for i in range(0, options.steps + 2, max(1, options.steps // 4)):
        print(f"step {i:>4}  loss {curves[0][i]:.6f} with torch, {curves[1][i]:.6f} with autogemm")
    worst = float(((curves[1] - curves[0]) / curves[0]).abs().max())
    print(f"largest relative difference of a loss {worst:.1e}")


if __name__ == "__main__":
    main()
