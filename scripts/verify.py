#!/usr/bin/env python3
"""Check on this machine what autogemm claims: its error bounds, and its tuning table.

Exits with 0 where all of it held, 1 where something did not, 2 where it could not be checked.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from tqdm import tqdm

from autogemm.database import find_table, read_table
from autogemm.device import device_named, device_of
from autogemm.errors import AutogemmError
from autogemm.grading import as_markdown, as_text, grade, grade_side_by_side
from autogemm.journal import device_turn
from autogemm.problem import DTYPES
from autogemm.report import text_table
from autogemm.strategies import BY_NAME
from autogemm.supervisor import supervise
from autogemm.verification import CONFIRMED, Verification, busy, order_for, verify_table


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--accuracy", action="store_true", help="grade every strategy's errors")
    parser.add_argument("--table", action="store_true", help="time the tuning table's rows again")
    parser.add_argument("--device", help="cuda, cuda:1, cpu (default: the GPU if there is one)")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="start nothing after this")
    grading = parser.add_argument_group("with --accuracy")
    extent = grading.add_mutually_exclusive_group()
    extent.add_argument("--quick", action="store_true", help="a sample of every test (default)")
    extent.add_argument("--full", action="store_true", help="all of them, and k up to 2^20")
    grading.add_argument(
        "--dtype", choices=DTYPES, action="append", help="this type only (may be repeated)"
    )
    grading.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (1)")
    grading.add_argument("--markdown", type=Path, metavar="FILE", help="write the scorecard there")
    timing = parser.add_argument_group("with --table")
    timing.add_argument("--db", type=Path, metavar="PATH", help="the table's file or directory")
    timing.add_argument("--sample", type=int, metavar="N", help="check N entries drawn at random")
    timing.add_argument("--retune", action="store_true", help="tune flagged problems anew")
    options = parser.parse_args()
    if options.accuracy == options.table:
        parser.error("name one of --accuracy and --table")
    if options.sample is not None and options.sample < 1:
        parser.error(f"--sample is {options.sample}; expected a positive number")
    if options.jobs < 1:
        parser.error(f"--jobs is {options.jobs}; expected a positive number")
    if options.budget is not None and not options.budget > 0:
        parser.error(f"--budget is {options.budget}; expected a positive number of seconds")
    if options.markdown is not None:
        try:  # not after minutes of grading
            options.markdown.open("a").close()
        except OSError as error:
            parser.error(f"--markdown {options.markdown}: cannot be written ({error.strerror})")
    return options


def main() -> int:
    options = parse()
    try:
        where = device_named(options.device)
        torch.empty(1, device=where)
        if where.type == "cuda":
            torch.cuda.set_device(where)
    except (RuntimeError, AssertionError) as error:
        print(f"--device {options.device}: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    deadline = time.time() + options.budget if options.budget else float("inf")
    try:
        if options.accuracy:
            return show_grades(where, options, deadline)
        return show_table(where, options, deadline)
    except (AutogemmError, RuntimeError) as error:  # a lost device, a killed process, a tuner's end
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def show_grades(where: torch.device, options: argparse.Namespace, deadline: float) -> int:
    extent = "full" if options.full else "quick"
    with tqdm(unit="trial", dynamic_ncols=True, mininterval=1) as bar, torch.no_grad():

        def step(words: str) -> None:
            bar.set_description_str(words[:48], refresh=False)
            bar.update()

        dtypes = [DTYPES[name] for name in options.dtype or DTYPES]
        if options.jobs > 1:
            grades = grade_side_by_side(
                where, extent, jobs=options.jobs, dtypes=dtypes, deadline=deadline, report=step
            )
        else:
            grades = grade(where, extent, dtypes=dtypes, deadline=deadline, report=step)
    print(as_text(grades))
    if options.markdown:
        command = f"python scripts/verify.py --accuracy --device {where.type} --{extent}"
        command += "".join(f" --dtype {name}" for name in options.dtype or ())
        options.markdown.write_text(as_markdown(grades, command), encoding="utf-8")
    return 1 if grades.breaches else 0


def show_table(where: torch.device, options: argparse.Namespace, deadline: float) -> int:
    device = device_of(where)
    table, problems = read_table(find_table(device, options.db), BY_NAME)
    for problem in problems:
        print(problem, file=sys.stderr)
    total = min(len(table.entries), options.sample or len(table.entries))
    print(f"{table.path}: {total} of {len(table.entries)} entries")
    with (
        device_turn(device, wait),
        tqdm(total=total, unit="problem", dynamic_ncols=True, mininterval=1) as bar,
    ):
        found = verify_table(
            table, device, where, sample=options.sample, deadline=deadline,
            report=lambda entry: bar.update(),
        )  # fmt: skip
    print(rows_as_text(found))
    if words := busy():
        print(f"beware: {words}")
    if found.left:
        print(f"the budget is over; {found.left} entries were not checked")
    if not found.flagged:
        return 0
    names = sorted({str(row.problem) for row in found.flagged})
    if not options.retune:
        print(f"{len(names)} problems are stale; --retune tunes these anew, and nothing else")
        return 1
    order = order_for(found.flagged, table, deadline)
    with device_turn(device, wait):
        outcome = supervise(order, str(where), lambda news: None)
    print(f"{len(outcome.entries)} of {len(names)} stale problems tuned anew")
    return 1 if outcome.unfinished else 0


def wait() -> None:
    print("a tuner is at work here; waiting for it")


def rows_as_text(found: Verification) -> str:
    rows = [
        (
            str(row.problem), row.level, row.mode, str(row.choice.candidate),
            f"{row.choice.ratio:.3f}",
            *(("-",) * 3 if row.now is None else
              (f"{row.now.median:.3f}", f"{row.now.low:.3f}", f"{row.now.high:.3f}")),
            "-" if row.error is None else f"{row.error:.3g}", "; ".join(row.flags),
        )
        for row in sorted(found.rows, key=lambda row: (not row.flags, str(row.problem)))
    ]  # fmt: skip
    header = ("problem", "level", "mode", "choice", "stored", "now", "low", "high", "R", "flags")
    share = f", {found.confirmed:.0%} of them within {CONFIRMED:.0%}" if found.timed else ""
    return (
        f"{text_table(header, rows)}\n{len(found.rows)} rows, {len(found.flagged)} flagged; "
        f"{len(found.timed)} choose something else than the baseline and were timed{share}"
    )


if __name__ == "__main__":
    sys.exit(main())
