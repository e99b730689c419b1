#!/usr/bin/env python3
"""Run a Python program as it is and list the matrix products it computes.

    python scripts/record.py shapes.yaml -- program.py its arguments

Then ``python scripts/tune.py --shapes shapes.yaml`` tunes them.
"""

from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path

ROOT = str(Path(__file__).resolve().parent.parent)
sys.path.insert(0, ROOT)

import autogemm
from autogemm.errors import InvalidProblem


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shapes", type=Path, help="where the recording goes (YAML); replaced")
    parser.add_argument("program", type=Path, help="the program, a .py file")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="what it is given")
    options = parser.parse_args()
    if not options.program.is_file():
        parser.error(f"program is {options.program}; expected a Python file")
    return options


def main() -> int:
    options = parse()
    program = str(options.program)
    sys.argv = [program, *options.arguments]
    # As Python starts a program; this repository stays in reach of processes it starts.
    sys.path[:2] = [str(options.program.resolve().parent)]
    sys.path.append(ROOT)
    recording = None
    try:
        with autogemm.record(options.shapes) as recording:
            runpy.run_path(program, run_name="__main__")
    except InvalidProblem as error:
        if recording is not None:
            raise  # the program's own
        print(error, file=sys.stderr)
        return 1
    finally:
        if recording is not None:
            print(recording)
    return 0


if __name__ == "__main__":
    sys.exit(main())
