#!/usr/bin/env python3
"""Print a tuning table for people: what runs for each problem, how fast, against what."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from autogemm.database import Entry, read_table, search_path, table_path
from autogemm.device import default_device, device_of
from autogemm.errors import AutogemmError
from autogemm.precision import LEVELS
from autogemm.problem import DTYPE_NAMES
from autogemm.report import markdown_table, means, text_table, tuning_table


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, help="a table (default: this machine's)")
    parser.add_argument("--size", action="append", metavar="MxNxK", help="only these sizes")
    parser.add_argument("--dtype", action="append", help="only these types")
    parser.add_argument(
        "--level", action="append", choices=LEVELS, help="only these levels (with --markdown)"
    )
    parser.add_argument("--markdown", action="store_true", help="a Markdown table, graph times")
    parser.add_argument(
        "--means", action="store_true", help="geometric means by kind of problem, at highest"
    )
    return parser.parse_args()


def wanted(entry: Entry, options: argparse.Namespace) -> bool:
    problem = entry.problem
    size = f"{problem.m}x{problem.n}x{problem.k}"
    dtype = DTYPE_NAMES[problem.dtype]
    return size in (options.size or [size]) and dtype in (options.dtype or [dtype])


def main() -> int:
    options = parse()
    path = options.file
    if path is None:
        device = device_of(default_device())
        paths = [table_path(directory, device) for directory in search_path()]
        path = next((path for path in paths if path.exists()), None)
        if path is None:
            print(f"no table for {device}; run scripts/tune.py first", file=sys.stderr)
            return 1
    try:
        table, problems = read_table(path)
    except AutogemmError as error:
        print(error, file=sys.stderr)
        return 1
    for problem in problems:
        print(problem, file=sys.stderr)
    entries = [entry for entry in table.entries.values() if wanted(entry, options)]
    if options.means:
        text = text_table(
            ("problems", "mode", "number", "x addmm"),
            [
                (kind, mode, str(number), f"{mean:.2f}")
                for mode in ("graph", "eager")
                for kind, number, mean in means(entries, mode)
            ],
        )
    elif options.markdown:
        text = markdown_table(entries, options.level or LEVELS)
    else:
        text = tuning_table(entries)
    try:
        print(text, flush=True)
    except BrokenPipeError:  # whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
