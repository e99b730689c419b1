"""The file of comparisons with peers: nothing that was timed is lost, or timed twice."""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from autogemm.database.lookup import Evidence
from autogemm.database.writing import write_text
from autogemm.device import Device, software_versions
from autogemm.dispatch import Plan
from autogemm.errors import AutogemmError
from autogemm.peers import BUDGET_OVER, OURS, PEERS, Comparison, Peer, Standing, factors, planned
from autogemm.problem import Problem

_PASSING = (BUDGET_OVER, "OutOfMemoryError", "MemoryError")
"""How reasons begin that another run may not meet."""

_NOTHING_BESIDE = (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM)
"""Why there may be no second file from which the first is renewed as a whole."""


class Figures:
    """A file of comparisons: written after every one, and read by a run that goes on."""

    def __init__(self, path: Path, device: Device) -> None:
        """Raises ``AutogemmError`` where the file holds something else, which is not to be lost."""
        self._path = path.resolve()  # a link stays one
        self._head = {"device": str(device), "versions": dict(software_versions(device.type))}
        self._rows: list[dict[str, Any]] = []
        try:
            if not self._path.is_file() or not (text := self._path.read_text()).strip():
                return
            facts = json.loads(text)
            found = {key: facts[key] for key in self._head}
            self._rows = [row for row in facts["comparisons"] if isinstance(row["problem"], str)]
        except OSError as error:
            raise AutogemmError(f"{path}: cannot be read ({error.strerror})") from error
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            found = None
        if found != self._head:
            whose = "no comparisons" if found is None else f"those of {found}"
            raise AutogemmError(
                f"{path} has {whose}; expected comparisons of {self._head}, or a new file. "
                "Name another one with --json."
            )

    def known(
        self, problems: Iterable[Problem], evidence: Evidence, device: Device,
        peers: Sequence[Peer] | None = None, *, level: str = "highest",
    ) -> dict[Problem, Comparison]:  # fmt: skip
        """What need not be timed again: autogemm would run what it ran, beside the same peers."""
        rows = {row["problem"]: row for row in self._rows}
        chosen = PEERS if peers is None else peers
        found = {}
        for problem in problems:
            if (row := rows.get(str(problem))) is None:
                continue
            wanted = planned(problem, level, device, evidence)
            comparison = _compared_before(row, problem, level, wanted)
            if comparison is None:
                continue
            names = {OURS, *(peer.name for peer in chosen)}
            declined = {peer.name for peer in chosen if peer.reasons_not(problem, device)}
            if _is_lasting(comparison, names) and not declined & comparison.standings.keys():
                found[problem] = comparison
        return found

    def add(self, comparison: Comparison) -> None:
        """Write one more comparison, in place of an earlier one of its problem."""
        row = comparison.as_json()
        self._rows = [r for r in self._rows if r["problem"] != row["problem"]] + [row]
        text = json.dumps({**self._head, "comparisons": self._rows}, indent=1) + "\n"
        if not self._path.exists() or self._path.is_file():  # and no /dev/stdout, no pipe
            try:
                write_text(self._path, text)
                return
            except OSError as error:
                if error.errno not in _NOTHING_BESIDE:
                    raise
        self._path.write_text(text)


def _compared_before(
    row: Mapping[str, Any], problem: Problem, level: str, wanted: Plan
) -> Comparison | None:
    """A row of a file as a comparison, if it is one of what is planned."""
    try:
        if (row["level"], row["mode"], row["choice"], row["factors"]) != (
            level, wanted.mode, str(wanted.candidate), list(factors(problem))
        ):  # fmt: skip
            return None
        comparison = Comparison(
            problem=problem, level=level, mode=wanted.mode, choice=wanted.candidate,
            aa=float(row["aa"]),
            standings={name: Standing(**s) for name, s in row["standings"].items()},
            unable={str(name): str(why) for name, why in row["unable"].items()},
        )  # fmt: skip
        numbers = [x for s in comparison.standings.values() for x in (s.us, s.ratio)]
        if OURS in comparison.standings and all(0 < x < math.inf for x in numbers):
            return comparison
    except (ValueError, LookupError, TypeError, AttributeError):
        pass
    return None


def _is_lasting(comparison: Comparison, names: set[str]) -> bool:
    """Whether all of these were timed, or cannot run for a reason that another run would meet."""
    if comparison.standings.keys() | comparison.unable.keys() != names:
        return False
    return not any(why.startswith(_PASSING) for why in comparison.unable.values())
