#!/usr/bin/env python3
"""Long trials of what must not fail: kills, fuzz, threads, made-up calls, ever new shapes."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from stress import Figures, GoingOn, examples, faults, fuzz, shapes, threads

from autogemm.report import text_table

Part = Callable[[GoingOn, Path], Figures]

PARTS: dict[str, tuple[int, Part]] = {
    "kill-tuning": (50, faults.kill_tuning),
    "kill-writing": (50, faults.kill_writing),
    "torn-journals": (300, faults.tear_journals),
    "crash-and-hang": (1, lambda _, folder: faults.hang_and_crash(folder)),
    "fuzz-tables": (100_000, lambda going_on, _: fuzz.fuzz_tables(going_on)),
    "fuzz-files": (5_000, fuzz.fuzz_files),
    "fuzz-shapes": (20_000, fuzz.fuzz_shapes),
    "calls": (20_000, lambda going_on, _: examples.try_many(going_on)),
    "threads": (1_000_000, threads.call_from_threads),
    "shapes": (1_000_000, shapes.meet_shapes),
}
"""Each with the number of trials of a full run."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", action="append", choices=PARTS, help="only this (may repeat)")
    parser.add_argument("--minutes", type=float, help="stop each part after its share of this")
    options = parser.parse_args()
    if options.minutes is not None and not options.minutes > 0:
        parser.error(f"--minutes is {options.minutes}; expected a positive number of minutes")
    return options


def main() -> int:
    options = parse()
    names = options.part or list(PARTS)
    share_s = float("inf") if options.minutes is None else 60 * options.minutes / len(names)
    rows, failed = [], 0
    for name in names:
        count, part = PARTS[name]
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            os.environ["AUTOGEMM_TUNING_DB"] = folder
            try:
                figures = part(
                    lambda done, count=count, start=start: (
                        done < count and time.monotonic() - start < share_s
                    ),
                    Path(folder),
                )
                told = ", ".join(f"{value} {what}" for what, value in figures.items())
            except Exception as error:
                failed += 1
                traceback.print_exc()
                told = f"FAILED: {str(error)[:200]}"
        rows.append((name, told, f"{time.monotonic() - start:.0f}"))
        print(f"{name}: {told}", flush=True)
    print(text_table(("part", "figures", "s"), rows))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
