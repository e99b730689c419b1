"""A grading for people: a table on the terminal, a page for ``docs/results``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from autogemm.device import software_versions
from autogemm.grading.grader import Breach, Grades, Score, Worst
from autogemm.grading.trials import FAMILIES
from autogemm.problem import DTYPE_NAMES
from autogemm.report import text_table

_HEADER = (
    "strategy", "type", "level", "sets", "results", "R", "bound", "of bound", "Netlib", "k^b",
    "breaches",
)  # fmt: skip
_SHOWN = 20


def verdict(grades: Grades) -> str:
    """One sentence: how much was tried and whether all of it held."""
    results = sum(score.results for score in grades.scores)
    found = len(grades.breaches)
    outcome = "every bound held" if not found else f"{found} results broke their bound"
    inherited = f"; {len(grades.known)} more by known faults of torch's own" if grades.known else ""
    stopped = " (stopped by the budget)" if grades.unfinished else ""
    return (
        f"{results} results graded in {grades.seconds:.0f} s{stopped}: {outcome}{inherited}"
    )


def as_text(grades: Grades) -> str:
    """The table, the worst of each family, the breaches and the verdict."""
    parts = [text_table(_HEADER, [_row(score) for score in grades.scores])]
    parts.append(text_table(("family", "nearest to its bound"), _families(grades)))
    if grades.breaches:
        parts.append("breaches\n" + "\n".join(f"  {b}" for b in grades.breaches[:_SHOWN]))
        if len(grades.breaches) > _SHOWN:
            parts.append(f"  and {len(grades.breaches) - _SHOWN} more")
    if grades.known:
        parts.append("torch's own\n" + "\n".join(f"  {line}" for line in _known(grades.known)))
    parts.append(verdict(grades))
    return "\n\n".join(parts)


def as_markdown(grades: Grades, command: str) -> str:
    """A page that says on what it was measured, by which command, and what came of it."""
    software = software_versions(grades.device.type)
    versions = ", ".join(f"{name} {version}" for name, version in software.items())
    lines = [
        f"# Accuracy on {grades.device}",
        "",
        f"Written by `{command}` ({versions}); [trust.md](../trust.md) says how to read it.",
        "",
        f"**{verdict(grades)}.**",
        "",
        *_markdown(_HEADER, (_row(score) for score in grades.scores)),
        "",
        "R is the error that came nearest to its bound, both in units of u·(|α||A||B| + |β||C|).",
        "*Netlib* is the largest ratio of the level-3 BLAS test (must be below 16), *k^b* the",
        "exponent fitted to the growth of R on random data (grade A: at most 1).",
        "",
        *_markdown(("family", "nearest to its bound"), _families(grades)),
    ]
    if grades.breaches:
        lines += ["", "## Breaches", "", *(f"- {breach}" for breach in grades.breaches[:_SHOWN])]
        if len(grades.breaches) > _SHOWN:
            lines.append(f"- and {len(grades.breaches) - _SHOWN} more")
    if grades.known:
        lines += ["", "## Inherited from torch", ""]
        lines += [f"- {line}" for line in _known(grades.known)]
    return "\n".join(lines) + "\n"


def _row(score: Score) -> tuple[str, ...]:
    worst, slope = score.worst, score.slope
    return (
        score.strategy, DTYPE_NAMES[score.dtype], score.level, str(len(score.candidates)),
        str(score.results), f"{worst.error:.3g}", f"{worst.bound:.4g}", f"{worst.share:.0%}",
        f"{score.netlib:.2f}", "-" if slope is None else f"{slope:.2f}",
        f"{len(score.breaches)}" + (f" + {len(score.known)} known" if score.known else ""),
    )  # fmt: skip


def _families(grades: Grades) -> list[tuple[str, str]]:
    rows = []
    for family in FAMILIES:
        met = [score.families[family] for score in grades.scores if family in score.families]
        if met:
            worst: Worst = max(met, key=lambda w: w.share)
            rows.append(
                (family, f"R = {worst.error:.3g} of {worst.bound:.4g}: {worst.where or '-'}")
            )
    return rows


def _known(breaches: Sequence[Breach]) -> list[str]:
    """A line a fault: whom it befalls, and how often."""
    faults: dict[str, list[Breach]] = {}
    for breach in breaches:
        faults.setdefault(breach.known, []).append(breach)
    lines = []
    for fault, found in faults.items():
        names = sorted({breach.candidate.strategy for breach in found})
        lines.append(f"{fault}: {len(found)} results of {', '.join(names)}")
    return lines


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return lines
