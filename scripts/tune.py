#!/usr/bin/env python3
"""Tune this machine: measure what computes each product fastest and write it to a table.

Run it once per machine, without arguments. Interrupted at any moment and started again it
goes on where it was; on an unchanged machine a second run measures nothing.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
if __name__ == "__main__":  # imports take seconds; until then there is nothing to tell
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from tqdm import tqdm

from autogemm.database import table_path, write_directory
from autogemm.device import device_named, device_of
from autogemm.errors import AutogemmError
from autogemm.journal import device_turn
from autogemm.precision import LEVELS
from autogemm.report import tuning_table
from autogemm.saving import saving_table, savings
from autogemm.shapes import read_shapes
from autogemm.supervisor import Restarted, TuningFailed, supervise
from autogemm.tuner import Order, Progress
from autogemm.workloads import PRESETS, most_expensive_first, preset


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", help="cuda, cuda:1, cpu (default: the GPU if there is one)")
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        help="which problems: quick is the default; full is every one of this project's table",
    )
    parser.add_argument(
        "--shapes",
        type=Path,
        metavar="FILE",
        help="a recording (scripts/record.py), or problems in YAML or CSV: m, n, k, dtype, …",
    )
    parser.add_argument(
        "--precision",
        choices=LEVELS,
        action="append",
        help="tune this level only (may be repeated; default: all)",
    )
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="start nothing after this")
    parser.add_argument("--db", type=Path, metavar="PATH", help="directory of the table")
    parser.add_argument(
        "--storage", metavar="URL", help="where trials are kept: an Optuna URL or a journal file"
    )
    parser.add_argument("--again", action="store_true", help="measure anew what is tuned already")
    options = parser.parse_args()
    if options.budget is not None and not options.budget > 0:
        parser.error(f"--budget is {options.budget}; expected a positive number of seconds")
    if options.db is not None and options.db.exists() and not options.db.is_dir():
        parser.error(f"--db is {options.db}, a file; expected a directory")
    return options


def main() -> int:
    options = parse()
    try:
        where = device_named(options.device)
        device = device_of(where)
    except (RuntimeError, AssertionError) as error:
        print(f"--device {options.device}: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    started = time.time()
    try:
        program = read_shapes(options.shapes, where.type) if options.shapes else None
        workloads = []
        if program:
            for reason in program.left_out:
                print(f"{options.shapes}: {reason}")
            # What takes most of the program's time first, should the budget run out.
            workloads += most_expensive_first(program.workloads)
        if options.preset or not program:
            workloads += preset(options.preset or "quick", where.type)
        directory = options.db or write_directory()
        order = Order(
            workloads=tuple({w.problem: w for w in reversed(workloads)}.values())[::-1],
            directory=directory.absolute(),
            storage=options.storage,
            levels=tuple(options.precision or LEVELS),
            deadline=started + options.budget if options.budget else float("inf"),
            again=options.again,
        )
        path = table_path(directory, device)
        print(f"tuning {device}: {len(order.workloads)} problems -> {path}")
        with (
            device_turn(device, lambda: print("another tuner is at work here; waiting for it")),
            tqdm(total=len(order.workloads), unit="problem", dynamic_ncols=True) as bar,
        ):
            outcome = supervise(order, str(where), lambda news: show(bar, news))
    except (AutogemmError, TuningFailed) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
        return 130
    print(tuning_table(outcome.entries))
    if program:
        print(saving_table(savings(program.workloads, outcome.entries), program.seconds))
    saved = f" (about {outcome.saved_s:.0f} s saved)" if outcome.saved_s >= 0.5 else ""
    print(
        f"{len(outcome.entries)} problems ({outcome.reused} tuned before), {outcome.measured} "
        f"candidates timed, {outcome.screened} of them stopped early{saved}, "
        f"{time.time() - started:.0f} s"
    )
    if outcome.unfinished:
        print(f"{outcome.unfinished} problems are left; run the same command again to go on")
    # Where no budget ended the run, Ctrl-C did.
    return 130 if outcome.unfinished and not options.budget else 0


def show(bar: tqdm, news: Progress | Restarted) -> None:
    """Move the bar on."""
    if isinstance(news, Restarted):
        bar.write(f"the tuning process {news.reason}; going on in a new one")
        return
    bar.set_description_str(str(news.problem)[:48])
    if news.skipped:
        bar.write(f"{news.problem}: {news.skipped}; left out")
    if news.entry is not None or news.skipped:
        bar.update(news.done - bar.n)
    elif news.measured is not None:
        bar.set_postfix_str(f"{news.measured.candidate}: {news.measured.status}"[:40])


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
