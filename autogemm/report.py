"""Tables for people: what was tuned, what was re-timed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from autogemm.database import Entry
from autogemm.database.lookup import may_lose_elsewhere
from autogemm.precision import LEVELS
from autogemm.problem import DTYPE_NAMES, Problem
from autogemm.strategies import baseline


def text_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns as wide as their content: the first to the left, numbers to the right."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    numeric = [
        all(line[i][:1].isdigit() or line[i] in ("", "-") for line in lines[1:])
        for i in range(len(header))
    ]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in lines
    )


def tuning_table(entries: Iterable[Entry]) -> str:
    """Problem, level, what runs, µs, ratio to the baseline and measured R of tuned entries."""
    rows = []
    for entry in entries:
        measured = {row.candidate: row for row in entry.measured}
        for level, by_mode in entry.choices.items():
            base = baseline(entry.problem, level)
            for mode, choice in by_mode.items():
                runs, us, ratio, note = choice.candidate, choice.us, choice.ratio, ""
                if base in measured and may_lose_elsewhere(
                    choice, measured.get(choice.candidate), measured[base], mode
                ):
                    runs, us, ratio = base, choice.baseline_us, 1.0
                    note = f" ({choice.candidate.strategy} may lose on a slower host)"
                error = measured[runs].error if runs in measured else None
                rows.append(
                    (
                        str(entry.problem), level, mode, f"{runs}{note}",
                        f"{us:.1f}", f"{ratio:.2f}", "-" if error is None else f"{error:.3g}",
                    )
                )
    return text_table(("problem", "level", "mode", "choice", "us", "x addmm", "R"), rows)


def markdown_table(entries: Iterable[Entry], levels: Sequence[str] = LEVELS) -> str:
    """The choices that beat the baseline by graph time (eager on a CPU), as Markdown."""
    lines = [
        "| problem | level | addmm, µs | chosen | µs | times faster | R |",
        "|---|---|--:|---|--:|--:|--:|",
    ]
    for entry in entries:
        errors = {row.candidate: row.error for row in entry.measured}
        for level, by_mode in entry.choices.items():
            choice = by_mode.get("graph") or next(iter(by_mode.values()))
            if choice.ratio > 1 and level in levels:
                error = errors.get(choice.candidate)
                lines.append(
                    f"| {entry.problem} | {level} | {_plain(choice.baseline_us)} "
                    f"| `{choice.candidate}` | {_plain(choice.us)} | {choice.ratio:.2f} "
                    f"| {'' if error is None else _plain(error)} |"
                )
    return "\n".join(lines)


def means(entries: Iterable[Entry], mode: str = "graph") -> list[tuple[str, int, float]]:
    """Kinds of problems: how many have a choice at ``highest``, and its geometric mean ratio.

    Of float32 what is above 1e8 flop; 16-bit types by what becomes of C, odd sizes and batches
    apart.
    """
    ratios: dict[str, list[float]] = {}
    for entry in entries:
        choice = entry.choices.get("highest", {}).get(mode)
        kind = _kind(entry.problem)
        if choice is not None and kind is not None:
            ratios.setdefault(kind, []).append(choice.ratio)
    return [(kind, len(found), geomean(found)) for kind, found in sorted(ratios.items())]


def _kind(problem: Problem) -> str | None:
    name = DTYPE_NAMES[problem.dtype]
    if not problem.is_half:
        if name != "float32":
            return name
        return "float32 above 1e8 flop" if problem.flops > 1e8 else None
    if problem.batch > 1:
        return "16 bits, batches"
    if any("unaligned" in layout for layout in (problem.a, problem.b, problem.out)):
        return "16 bits, odd sizes"
    of_c = {"add": "C added", "none": "no C", "inplace": "in place", "bias": "a bias added"}
    return f"16 bits, aligned, {of_c[problem.update]}"


def _plain(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def geomean(values: Iterable[float]) -> float:
    """The geometric mean; NaN of nothing."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan
