"""What tuning is expected to save a program, from its recording and the tuned entries."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from autogemm.database import Choice, Entry, by_key, key_of
from autogemm.database.lookup import choices_at
from autogemm.report import text_table
from autogemm.workloads import Workload


@dataclass(frozen=True, slots=True)
class Saving:
    """One workload, what the table chose for it, and what that saves."""

    workload: Workload
    choice: Choice | None
    """None where the problem is not tuned."""

    @property
    def seconds(self) -> float:
        """Seconds that all calls together will take less; below 0 where they take more.

        Of a time measured in the program, the part that the measured ratio promises. Where the
        program ran something else than the tuner's baseline, torch's own product of less than
        full accuracy, the ratio says nothing; then it is the difference of the times.
        """
        load, choice = self.workload, self.choice
        if choice is None:
            return 0.0
        if _ran_below_full_accuracy(load):
            return 0.0 if load.seconds is None else load.seconds - load.count * choice.us * 1e-6
        saved = max(0.0, 1 - load.ratio / choice.ratio)
        if load.seconds is None:
            return load.count * choice.baseline_us / load.ratio * saved * 1e-6
        return load.seconds * saved


def savings(workloads: Iterable[Workload], entries: Iterable[Entry]) -> list[Saving]:
    """What each workload gains by the entries, at the level and in the mode it was called."""
    tuned = by_key(entries)
    found = []
    for workload in workloads:
        entry = tuned.get(key_of(workload.problem))
        by_mode = (entry and choices_at(entry, workload.level)) or {}
        choice = by_mode.get(workload.mode) or next(iter(by_mode.values()), None)
        found.append(Saving(workload, choice))
    return found


def saving_table(savings: Sequence[Saving], program_seconds: float | None) -> str:
    """What each product of a program will take less, and all of them together."""
    rows = []
    for saving in sorted(savings, key=lambda s: s.seconds, reverse=True):
        load, choice, spent = saving.workload, saving.choice, saving.workload.seconds
        rows.append(
            (
                str(load.problem), load.level, load.mode, str(load.count),
                "-" if spent is None or not program_seconds else f"{spent / program_seconds:.1%}",
                "-" if spent is None else f"{spent * 1e6 / load.count:.1f}",
                *(("-", "-", "not tuned") if choice is None else (
                    f"{choice.baseline_us:.1f}", f"{choice.us:.1f}", str(choice.candidate))),
                f"{saving.seconds * 1e3:.2f}",
            )
        )  # fmt: skip
    header = (
        "product", "level", "mode", "calls", "share", "recorded us", "addmm us", "us", "choice",
        "saves ms",
    )  # fmt: skip
    total = sum(saving.seconds for saving in savings)
    of = f" of {program_seconds:.4g} s, {total / program_seconds:.1%}" if program_seconds else ""
    return f"{text_table(header, rows)}\nexpected saving: {total:.4g} s{of}"


def _ran_below_full_accuracy(workload: Workload) -> bool:
    """Whether torch computed a float32 product in TF32 or bfloat16, as it was told to."""
    return (
        workload.by == "torch"
        and workload.level != "highest"
        and workload.problem.dtype is torch.float32
    )
