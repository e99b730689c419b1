#!/usr/bin/env python3
"""Re-time every tuned problem against torch.addmm, interleaved, beside an A/A pair.

With --peers, time what a user would pick instead beside it: Inductor, nvmath, quack.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import random
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
if __name__ == "__main__":  # imports take seconds; until then there is nothing to tell
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import torch
from tqdm import tqdm

from autogemm import benchmark, eager_gap, guard_cost, peers
from autogemm.comparisons import Figures
from autogemm.database import find_table, read_table
from autogemm.database.entries import Entry
from autogemm.database.lookup import evidence_at, evidence_for
from autogemm.device import (
    Device,
    clocks,
    default_device,
    device_named,
    device_of,
    software_versions,
)
from autogemm.errors import AutogemmError
from autogemm.long_runs import collected, may_be_replaced, status_of, terminate, told
from autogemm.overhead import launch_costs, overhead
from autogemm.precision import LEVELS
from autogemm.problem import DTYPE_NAMES, DTYPES
from autogemm.report import geomean, text_table
from autogemm.shapes import read_shapes
from autogemm.strategies import BY_NAME
from autogemm.workloads import PRESETS, Workload, preset


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", help="cuda, cuda:1, cpu (default: the GPU if there is one)")
    parser.add_argument("--db", type=Path, metavar="PATH", help="the table's file or directory")
    parser.add_argument(
        "--json", type=Path, metavar="FILE",
        help="write all figures there; with --peers after every problem, and what is there "
        "already is not timed again",
    )
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="start nothing after this")
    parser.add_argument("--sample", type=int, metavar="N", help="re-time N entries drawn at random")
    parser.add_argument("--dtype", choices=DTYPES, help="re-time entries of this type only")
    parser.add_argument("--precision", choices=LEVELS, help="re-time choices of this level only")
    parser.add_argument("--mode", choices=benchmark.MODES, help="time in this way only")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--guard", action="store_true", help="what the guard of emulated float32 costs"
    )
    instead.add_argument(
        "--eager-gap", action="store_true",
        help="what eager calls of the choices at highest take beyond CUDA graphs, in turns",
    )
    instead.add_argument(
        "--regret", action="store_true", help="leave-one-out over the table; times nothing"
    )
    instead.add_argument(
        "--peers", action="store_true", help="time what a user would pick instead, side by side"
    )
    instead.add_argument(
        "--overhead", action="store_true",
        help="host cost of a warm call on 8x8 CPU tensors; on a GPU also of every launch",
    )
    parser.add_argument(
        "--peer", action="append", choices=[peer.name for peer in peers.PEERS],
        help="with --peers: this one only (may be repeated); some take minutes for a problem",
    )
    parser.add_argument("--preset", choices=PRESETS, help="with --peers: which problems (quick)")
    parser.add_argument(
        "--shapes", type=Path, metavar="FILE", help="with --peers: problems in YAML or CSV"
    )
    options = parser.parse_args()
    if options.budget is not None and not options.budget > 0:
        parser.error(f"--budget is {options.budget}; expected a positive number of seconds")
    if options.sample is not None and options.sample < 1:
        parser.error(f"--sample is {options.sample}; expected a positive integer")
    if (options.preset or options.shapes or options.peer) and not options.peers:
        parser.error("--preset and --shapes choose the problems of --peers, --peer whom to time")
    with_table = not (
        options.guard or options.eager_gap or options.regret or options.peers or options.overhead
    )
    if (options.precision or options.mode) and not with_table:
        parser.error("--precision and --mode choose what of the table is timed again, nothing else")
    if options.json is not None:
        if not (with_table or options.peers):
            parser.error("--json is for --peers and for timing the table again")
        try:  # not after minutes of timing
            if with_table and not may_be_replaced(options.json):
                parser.error(
                    f"--json {options.json}: holds something else than this command's figures; "
                    "expected those, or a new file"
                )
            options.json.open("a").close()
        except OSError as error:
            parser.error(f"--json {options.json}: cannot be written ({error.strerror})")
    return options


def main() -> int:
    return told(lambda: run(parse()))


def run(options: argparse.Namespace) -> int:
    if options.overhead:
        return show_overhead()
    try:
        if options.regret:  # needs no hardware
            where = torch.device(options.device) if options.device else default_device()
        else:
            where = device_named(options.device)
            torch.empty(1, device=where)
    except (RuntimeError, AssertionError) as error:
        print(f"--device {options.device}: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    if options.peers:
        return show_peers(device_of(where), where, options)
    try:
        # Leave-one-out needs no hardware: with --db it scores another machine's table too.
        if options.regret and options.db and options.db.suffix == ".yaml":
            path = options.db
        else:
            path = find_table(device_of(where), options.db)
        table, _ = read_table(path, BY_NAME)
    except AutogemmError as error:
        print(error, file=sys.stderr)
        return 1
    if not options.regret and table.device != device_of(where):
        print(
            f"{path}: measured on {table.device}; expected a table of {device_of(where)}. "
            "With --regret any table can be scored.",
            file=sys.stderr,
        )
        return 2
    entries = list(table.entries.values())
    if options.dtype:
        entries = [e for e in entries if DTYPE_NAMES[e.problem.dtype] == options.dtype]
    if options.regret:
        # A table does not say what was installed: as if everything were.
        packages = frozenset(name for strategy in BY_NAME.values() for name in strategy.packages)
        return show_regret(entries, dataclasses.replace(table.device, packages=packages))
    if options.guard:
        return show_guard(entries, device_of(where), where, options.budget)
    if options.eager_gap:
        return show_eager_gap(entries, device_of(where), where, options.budget)
    return show_times(entries, device_of(where), where, options)


def show_overhead() -> int:
    cost = overhead()
    print(
        f"warm gemm {cost.gemm_us:.2f} us ({cost.strategy}), torch.addmm {cost.addmm_us:.2f} us, "
        f"8x8 float32 on the CPU: {cost.ratio:.2f} x"
    )
    if torch.cuda.is_available():
        where = torch.device("cuda", torch.cuda.current_device())
        rows = [
            (str(cost.problem), str(cost.candidate), f"{cost.us:.1f}")
            for cost in launch_costs(device_of(where), where)
        ]
        print(text_table(("problem", "launched", "host us"), rows))
    return 0


def show_peers(device: Device, where: torch.device, options: argparse.Namespace) -> int:
    if where.type == "cuda":
        torch.cuda.set_device(where)
    deadline = time.time() + options.budget if options.budget else float("inf")
    try:
        workloads: list[Workload] = []
        if options.shapes:
            program = read_shapes(options.shapes, where.type)
            for reason in program.left_out:
                print(f"{options.shapes}: {reason}")
            workloads += program.workloads
        if options.preset or not options.shapes:
            workloads += preset(options.preset or "quick", where.type)
        if options.db:
            evidence = evidence_at(find_table(device, options.db), device)
        else:
            evidence = evidence_for(device)
    except AutogemmError as error:
        print(error, file=sys.stderr)
        return 1
    problems = list(dict.fromkeys(load.problem for load in workloads))
    if options.dtype:
        problems = [p for p in problems if DTYPE_NAMES[p.dtype] == options.dtype]
    if options.sample:
        random.Random(0).shuffle(problems)
        problems = problems[: options.sample]
    if not problems:
        print(f"--dtype {options.dtype}: there is no such problem to time", file=sys.stderr)
        return 1
    chosen = [p for p in peers.PEERS if options.peer is None or p.name in options.peer]
    figures, known = None, {}
    if options.json:
        try:
            figures = Figures(options.json, device)
            known = figures.known(problems, evidence, device, chosen)
        except AutogemmError as error:
            print(error, file=sys.stderr)
            return 1
        if known:
            print(f"{options.json}: {len(known)} of {len(problems)} problems were timed before")
    left_out: list[str] = []
    found = peers.compared(
        problems, evidence, device, where, chosen, deadline=deadline, known=known,
        left_out=lambda problem, why: left_out.append(f"{problem} was left out: {why}"),
    )  # fmt: skip
    tqdm.monitor_interval = 0  # its thread would have gemm choose as among other threads
    comparisons: list[peers.Comparison] = []
    why, code = "the budget is over", 0
    try:
        for comparison in tqdm(
            found, total=len(problems), unit="problem", dynamic_ncols=True, mininterval=1
        ):
            comparisons.append(comparison)
            if figures is not None and comparison.problem not in known:
                figures.add(comparison)
    except KeyboardInterrupt as interrupt:  # what was compared took minutes
        why, code = "stopped", status_of(interrupt)
    except OSError as error:
        print(f"--json {options.json}: cannot be written ({error.strerror})", file=sys.stderr)
        why, code = "stopped", 1
    except peers.DeviceLost as error:
        keeping = "the same command" if figures else "--json FILE keeps what was compared, which"
        print(
            f"{error} {keeping} goes on from there; --peer, once for each of the others, leaves "
            "out one that does so again.",
            file=sys.stderr,
        )
        why, code = "the device was lost", 1
    print(f"{device}, level highest, tables: {', '.join(evidence.sources) or 'none'}")
    print(peers.as_text(comparisons, chosen))
    print("\n".join(left_out), end="\n" if left_out else "")
    missing = len(problems) - len(comparisons) - len(left_out)
    if missing:
        print(f"{why}; {missing} problems were not timed")
    return code or int(bool(left_out) and not comparisons)


def show_regret(entries: list[Entry], device: Device) -> int:
    results = benchmark.leave_one_out(entries, device)
    rows = [
        (
            str(r.problem), r.level, r.mode, r.source, str(r.predicted), str(r.best),
            f"{r.regret:.3f}", f"{r.speed:.3f}",
        )
        for r in sorted(results, key=lambda r: -r.regret)
        if r.regret > 1.02 or r.speed < 0.98
    ]  # fmt: skip
    header = ("problem", "level", "mode", "by", "predicted", "best", "regret", "x addmm")
    print(text_table(header, rows))
    for mode in ("graph", "eager"):
        group = [r for r in results if r.mode == mode]
        if group:
            print(
                f"{mode}: {len(group)} left-out choices, geomean regret "
                f"{geomean(r.regret for r in group) - 1:.2%}, slowest "
                f"{min(r.speed for r in group):.3f} x addmm, "
                f"{sum(r.speed < 0.98 for r in group)} below 0.98"
            )
    return 0


def show_guard(
    entries: list[Entry], device: Device, where: torch.device, budget: float | None
) -> int:
    def row_of(entry: Entry) -> list[tuple[str, ...]]:
        cost = guard_cost.guard_cost(entry, device, where)
        if cost is None:
            return []
        return [
            (
                str(entry.problem), str(cost.candidate.kwargs["form"]), f"{cost.us:.1f}",
                f"{cost.share:+.1%}",
                *(f"{share:+.1%}" for share in cost.bad.values()),
            )
        ]  # fmt: skip

    with torch.no_grad():
        rows, code = collected(row_of, entries, budget)
    if not rows:
        print("no emulated_fp32, which alone has a guard, was timed", file=sys.stderr)
        return code or 1
    print("graph time of choices at highest; the guard's share; one bad element, of A or as said:")
    print(text_table(("problem", "form", "us", "guard", *guard_cost.BAD_ELEMENTS), rows))
    return code


def show_eager_gap(
    entries: list[Entry], device: Device, where: torch.device, budget: float | None
) -> int:
    if not device.has_cuda:
        print("--eager-gap: a CPU has no CUDA graphs; expected a GPU", file=sys.stderr)
        return 2

    def row_of(entry: Entry) -> list[tuple[str, ...]]:
        gap = eager_gap.eager_gap(entry, device, where)
        return [] if gap is None else [gap.row()]

    with torch.no_grad():
        rows, code = collected(row_of, sorted(entries, key=lambda e: -e.problem.flops), budget)
    print(text_table(eager_gap.HEAD, rows))
    print("medians of rounds in which all four were timed; * eager calls choose differently")
    return code


def show_times(
    entries: list[Entry], device: Device, where: torch.device, options: argparse.Namespace
) -> int:
    if where.type == "cuda" and where.index is not None:
        torch.cuda.set_device(where)
    random.Random(0).shuffle(entries)
    entries = entries[: options.sample] if options.sample else entries
    tqdm.monitor_interval = 0  # its thread would have gemm choose as among other threads
    with torch.no_grad():
        ceilings = benchmark.measure_ceilings(device, where)
        results, code = collected(
            lambda entry: benchmark.retime(
                entry, device, where, ceilings, level=options.precision, mode=options.mode
            ),
            tqdm(entries, unit="problem", dynamic_ncols=True, mininterval=1),
            options.budget,
        )
    reasons = (reason for e in entries for reason in benchmark.unable(e, device).values())
    left_out = "\n".join(
        f"{count} levels of problems left out: {reason}"
        for reason, count in collections.Counter(reasons).items()
    )
    if not results and not code:
        asked = " ".join(
            f"--{name} {value}" for name in ("dtype", "precision", "mode")
            if (value := getattr(options, name))
        )  # fmt: skip
        print(f"{asked or 'the table'}: there is nothing to time on {device}", file=sys.stderr)
        print(left_out, end="\n" if left_out else "", file=sys.stderr)
        return 1
    results.sort(key=lambda r: (str(r.problem.dtype), r.level, r.mode, r.problem.flops))
    print(
        text_table(
            ("problem", "level", "mode", "choice", "us", "x addmm", "low", "high", "A/A",
             "TFLOP/s", "GB/s", "roofline", "R"),
            [
                (
                    str(r.problem), r.level, r.mode, str(r.candidate), f"{r.us:.1f}",
                    f"{r.ratio:.3f}", f"{r.low:.3f}", f"{r.high:.3f}", f"{r.aa:.3f}",
                    f"{r.tflops:.3g}", f"{r.gbytes:.0f}", f"{r.roofline:.2f}",
                    "-" if r.error is None else f"{r.error:.3g}",
                )
                for r in results
            ],
        )
    )  # fmt: skip
    print("\n".join(benchmark.summary(results)))
    print(left_out, end="\n" if left_out else "")
    if options.json:
        facts = {
            "device": str(device),
            "versions": dict(software_versions(device.type)),
            "clocks": clocks() if device.has_cuda else {},
            "ceilings": {"flops": ceilings.flops, "bytes": ceilings.bytes},
            "results": [r.as_json() for r in results],
        }
        try:
            options.json.write_text(json.dumps(facts, indent=1) + "\n")
        except OSError as error:
            print(f"--json {options.json}: cannot be written ({error.strerror})", file=sys.stderr)
            return code or 1
    return code


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, terminate)
    sys.exit(main())
