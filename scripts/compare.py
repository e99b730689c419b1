#!/usr/bin/env python3
"""Time the table's choices by another version of autogemm, a checkout, in turns with this one.

`git worktree add ../before HEAD~1` makes a checkout of the commit before this one.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
if __name__ == "__main__":  # imports take seconds; until then there is nothing to tell
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import torch

from autogemm.database import find_table, read_table
from autogemm.device import default_device, device_named, device_of
from autogemm.errors import AutogemmError
from autogemm.long_runs import collected, terminate, told
from autogemm.precision import LEVELS
from autogemm.problem import DTYPE_NAMES, DTYPES
from autogemm.report import geomean, text_table
from autogemm.strategies import BY_NAME
from autogemm.versions import compare, version_at


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other", type=Path, help="the directory that holds its autogemm/")
    parser.add_argument("--device", help="cuda, cuda:1, cpu (default: the GPU if there is one)")
    parser.add_argument("--db", type=Path, metavar="PATH", help="the table's file or directory")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="start nothing after this")
    parser.add_argument("--dtype", choices=DTYPES, help="choices for this type only")
    parser.add_argument("--precision", choices=LEVELS, default="highest")
    parser.add_argument(
        "--mode", choices=("graph", "eager"), help="default: graph, on a CPU eager"
    )
    parser.add_argument("--strategy", choices=sorted(BY_NAME), help="choices of it only")
    parser.add_argument("--form", help="choices with this form only: continuous, tandem ...")
    parser.add_argument("--rounds", type=int, default=15, help="default: 15")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: expected 1 or more")
    return options


def main() -> int:
    return told(lambda: run(parse()))


def run(options: argparse.Namespace) -> int:
    try:
        where = device_named(options.device) if options.device else default_device()
        torch.empty(1, device=where)
    except (RuntimeError, AssertionError) as error:
        print(f"--device {options.device}: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    device = device_of(where)
    mode = options.mode or ("graph" if device.has_cuda else "eager")
    if mode == "graph" and not device.has_cuda:
        print("--mode graph: a CPU has no CUDA graphs; expected eager", file=sys.stderr)
        return 2
    if where.type == "cuda" and where.index is not None:
        torch.cuda.set_device(where)
    try:
        table, _ = read_table(find_table(device, options.db), BY_NAME)
        entries = [
            entry for entry in table.entries.values()
            if options.dtype in (None, DTYPE_NAMES[entry.problem.dtype])
        ]  # fmt: skip
        with version_at(options.other) as name, torch.no_grad():
            found, code = collected(
                lambda entry: compare(
                    entry, device, where, name, level=options.precision, mode=mode,
                    strategy=options.strategy, form=options.form, rounds=options.rounds,
                ),
                entries,
                options.budget,
            )  # fmt: skip
    except AutogemmError as error:
        print(error, file=sys.stderr)
        return 1
    if not found:
        print(f"nothing was compared on {device}: no such choice in its table", file=sys.stderr)
        return code or 1
    header = (
        "problem", "choice", "us", "other us", "x other", "low", "high", "A/A", "guard", "other's",
        "bits",
    )  # fmt: skip
    rows = [
        (
            str(each.problem), str(each.candidate), f"{each.us:.1f}", f"{each.other_us:.1f}",
            f"{each.ratio:.3f}", f"{each.low:.3f}", f"{each.high:.3f}", f"{each.aa:.3f}",
            *(("-", "-") if each.guard is None else (f"{share:+.1%}" for share in each.guard)),
            "equal" if each.is_equal else "differ",
        )
        for each in sorted(found, key=lambda each: each.problem.flops)
    ]  # fmt: skip
    print(text_table(header, rows))
    mean = geomean(each.ratio for each in found)
    print(
        f"{options.precision} {mode}: {len(found)} choices, geomean {mean:.3f} x the version at "
        f"{options.other}, {min(each.ratio for each in found):.3f} to "
        f"{max(each.ratio for each in found):.3f}"
    )
    return code


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, terminate)
    sys.exit(main())
