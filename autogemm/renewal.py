"""What a new entry of a table keeps of the one it replaces, and what it then says it searched.

Tuning one level leaves the others' choices and rows in place if they were measured under the same
software, beside which more may be installed now. What other versions took is not mixed in.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from autogemm.database import Entry
from autogemm.precision import LEVELS
from autogemm.search import chosen_in
from autogemm.strategies import Candidate, origin_of


def renewed(
    entry: Entry,
    previous: Entry | None,
    offered: Collection[Candidate],
    stale: Collection[Candidate],
    *,
    comparable: bool,
) -> Entry:
    """``entry``, beside what is still true of ``previous``, an entry of the same problem.

    ``entry.space`` is the digest of today's candidates. Old rows stay if ``offered`` today, or
    chosen for a level that was not tuned now, but for ``stale`` ones; nothing stays where the
    two are not ``comparable``.
    """
    if previous is None or not comparable:
        return entry
    others = {name: modes for name, modes in previous.choices.items() if name not in entry.choices}
    kept = {*offered, *chosen_in(replace(previous, choices=others))}
    if _digest(previous) != entry.space:
        # A plug-in's version is in the digest alone: what has changed may be that.
        kept = {candidate for candidate in kept if not origin_of(candidate.strategy)}
    kept -= {row.candidate for row in entry.measured} | set(stale)
    searched = set(entry.choices)
    if previous.environment == entry.environment:
        searched |= searched_levels(previous, entry.space)
    space = entry.space
    if not set(previous.choices) <= searched:
        space += "/" + "+".join(level for level in LEVELS if level in searched)
    return replace(
        entry,
        choices={**others, **entry.choices},
        measured=(*entry.measured, *(r for r in previous.measured if r.candidate in kept)),
        space=space,
    )


def searched_levels(entry: Entry, space: str) -> set[str]:
    """The levels of an entry for which the candidates of digest ``space`` were searched."""
    _, _, some = entry.space.partition("/")
    return set() if _digest(entry) != space else set(some.split("+") if some else entry.choices)


def _digest(entry: Entry) -> str:
    return entry.space.partition("/")[0]
