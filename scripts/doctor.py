#!/usr/bin/env python3
"""Say what this machine is to autogemm: what runs, which tables are in use, what torch is told."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import autogemm


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", help="cuda, cuda:1, cpu (default: the GPU if there is one)")
    print(autogemm.doctor(parser.parse_args().device))
    return 0


if __name__ == "__main__":
    sys.exit(main())
