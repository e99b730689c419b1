"""``doctor``: what this machine is, what can run on it, what the tables know, what torch says.

It is asked where something is wrong, so nothing here raises: what cannot be told is a line of
the report.
"""

from __future__ import annotations

import platform
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from autogemm.database import Entry, Table, read_table, search_path, table_files, table_path
from autogemm.database.lookup import evidence_for, version_drift
from autogemm.device import Device, default_device, device_of, software_versions
from autogemm.errors import DatabaseError, DatabaseWarning
from autogemm.precision import PrecisionState, current_state
from autogemm.problem import DTYPE_NAMES, DTYPES, Problem, contiguous_problem
from autogemm.strategies import BY_NAME, STRATEGIES, Strategy, left_out, origin_of

_SIZES = ((512, 512, 4096), (513, 511, 4097), (16, 512, 4096))
"""(m, n, k) that stand for all: aligned in every type, in none, and of a few rows."""

_MEANING = {
    ("float32", "highest"): "full float32 accuracy",
    ("float32", "high"): "operands may be rounded to 11 bits, as TF32 does",
    ("float32", "medium"): "operands may be rounded to 8 bits, as bfloat16 does",
    ("half", "highest"): "sums in float32, one rounding at the end",
    ("half", "high"): "partial sums may be rounded to 16 bits",
}


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What ``doctor`` found; ``print`` it."""

    sections: tuple[tuple[str, tuple[str, ...]], ...]
    """Titles with their lines."""
    advice: tuple[str, ...]
    """What to do about it, most useful first; empty where all is well."""

    def section(self, title: str) -> tuple[str, ...]:
        """The lines under a title."""
        return dict(self.sections)[title]

    def __str__(self) -> str:
        parts = [f"{title}\n" + "\n".join(f"  {x}" for x in xs) for title, xs in self.sections]
        if self.advice:
            parts.append("to do\n" + "\n".join(f"  {line}" for line in self.advice))
        return "\n\n".join(parts)


def doctor(device: str | torch.device | None = None) -> Diagnosis:
    """Look at this machine as ``gemm`` sees it and return a report to print.

    ``device`` is a torch device; default: the current GPU if there is one, else the CPU. Never
    raises: a damaged table, a missing package or a device that is not there is a line.
    """
    advice: list[str] = []
    found, trouble = _device(device)
    sections = []
    for title, look in (
        ("machine", _machine),
        ("software", _software),
        ("strategies", _strategies),
        ("tables", _tables),
        ("precision", _precision),
    ):
        lines = [trouble] if trouble and title == "machine" else []
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                lines += look(found, advice.append)
            lines += [f"warning: {w.message}" for w in caught if w.category is DatabaseWarning]
        except Exception as problem:
            lines.append(f"cannot be told: {_in_short(problem)}")
        sections.append((title, tuple(dict.fromkeys(lines))))
    return Diagnosis(tuple(sections), tuple(dict.fromkeys(advice)))


Advise = Callable[[str], None]


def _device(asked: str | torch.device | None) -> tuple[Device, str]:
    """The device to look at; the CPU, and why, where the one asked for cannot be used."""
    try:
        where = default_device() if asked is None else torch.device(asked)
        return device_of(where), ""
    except Exception as problem:
        why = f"{asked or 'the GPU'} cannot be used: {_in_short(problem)}; this is about the CPU"
        return device_of(torch.device("cpu")), why


def _in_short(problem: Exception) -> str:
    return f"{type(problem).__name__}: {problem}".split("\n")[0]


def _machine(device: Device, advise: Advise) -> Iterator[str]:
    yield f"{device} ({device.type})"
    if device.has_cuda:
        yield (
            f"compute capability {device.capability[0]}.{device.capability[1]}, {device.units} "
            f"multiprocessors, {device.memory_bytes / 2**30:.0f} GiB"
        )
    yield f"cache {device.cache_bytes / 2**20:.0f} MiB"
    yield f"instruction sets that matter: {', '.join(device.features) or 'none known'}"
    if not device.has_cuda and torch.backends.cuda.is_built():
        yield "this build of torch has CUDA, but no GPU is used: it is not there, or not asked for"


def _software(device: Device, advise: Advise) -> Iterator[str]:
    yield f"Python {platform.python_version()}, {platform.system()}"
    for name, version in software_versions(device.type).items():
        yield f"{name} {version}"
    if not device.has_package("triton"):
        needed = [strategy.name for strategy in STRATEGIES if "triton" in strategy.packages]
        yield f"triton is not installed: {', '.join(needed)} cannot run"
        if device.has_cuda:
            advise("install triton, which torch's CUDA builds for Linux bring with them")


# ------------------------------------------------------------------------------- strategies


def _strategies(device: Device, advise: Advise) -> Iterator[str]:
    for strategy in STRATEGIES:
        origin = origin_of(strategy.name)
        name = f"{strategy.name} ({origin})" if origin else strategy.name
        try:
            able, reasons = _abilities(strategy, device)
        except Exception as problem:
            if not origin:
                raise
            yield f"{name}: cannot be told: {_in_short(problem)}"
            continue
        if able:
            yield f"{name}: runs {', '.join(able)}"
        for reason, met in reasons.items():
            if not able:
                yield f"{name}: cannot run: {reason}"
            elif set(met) - set(able):
                yield f"{name}: not {', '.join(met)}: {reason}"
    for words in left_out():
        yield f"left out: the strategy {words}"
        advise("repair or uninstall the plug-in whose strategy is left out")


def _abilities(strategy: Strategy, device: Device) -> tuple[list[str], dict[str, list[str]]]:
    """The types it computes here, and its reasons against others, each with the types it meets."""
    able: dict[str, None] = {}
    reasons: dict[str, dict[str, None]] = {}
    for problem in _representative(strategy, device):
        name = DTYPE_NAMES[problem.dtype]
        for params in strategy.space(problem, device):
            against = strategy.reasons_not(problem, device, params)
            if not against:
                able[name] = None
            for reason in against:
                reasons.setdefault(reason, {})[name] = None
    return list(able), {reason: list(names) for reason, names in reasons.items()}


def _representative(strategy: Strategy, device: Device) -> Iterator[Problem]:
    batch = 1 if strategy.single else 2
    for dtype in DTYPES.values():
        if dtype in strategy.dtypes:
            for m, n, k in _SIZES:
                yield contiguous_problem(m, n, k, dtype, device_type=device.type, batch=batch)


# ----------------------------------------------------------------------------------- tables


def _tables(device: Device, advise: Advise) -> Iterator[str]:
    own = 0
    for place in search_path():
        files = table_files(place)
        if not files:
            yield f"{place}: {'no tables' if place.exists() else 'not there'}"
        for path in files:
            try:
                table, problems = read_table(path, BY_NAME)
            except DatabaseError as error:
                yield str(error)
                advise(f"{path} is damaged: restore it, or move it away and run scripts/tune.py")
                continue
            if table.device == device:
                own += 1
                yield f"{path}: {_freshness(table, device, advise)}"
                yield from (f"  left out: {problem}" for problem in problems[:3])
            elif path == table_path(place, device):
                yield f"{path}: has this machine's name, but holds the results of {table.device}"
            else:
                yield f"{path}: of {table.device}, {len(table.entries)} entries"
    used = evidence_for(device).sources
    yield f"in use: {', '.join(used) or 'none: every call runs the baseline'}"
    if not own:
        advise("this machine has no table of its own: run python scripts/tune.py")


def _freshness(table: Table, device: Device, advise: Advise) -> str:
    entries = list(table.entries.values())
    if not entries:
        return "no entries"
    first, last = (pick(entry.date for entry in entries) for pick in (min, max))
    drifted: dict[str, int] = {}
    for entry in entries:
        for drift in _drifts(entry, table, device):
            drifted[drift] = drifted.get(drift, 0) + 1
    when = first if first == last else f"{first} to {last}"
    if not drifted:
        return f"{len(entries)} entries, measured {when}, under the versions of now"
    advise("choices were measured under other versions: python scripts/verify.py --table checks")
    words = "; ".join(f"{count} entries: {drift}" for drift, count in drifted.items())
    return f"{len(entries)} entries, measured {when}, under other versions ({words})"


def _drifts(entry: Entry, table: Table, device: Device) -> set[str]:
    """How the software that an entry's choices depend on has changed."""
    environment = table.environments.get(entry.environment)
    if environment is None:
        return set()
    chosen = {c.candidate for by_mode in entry.choices.values() for c in by_mode.values()}
    drifts = {version_drift(environment.versions, device.type, candidate) for candidate in chosen}
    return drifts - {""}


# -------------------------------------------------------------------------------- precision


def _precision(device: Device, advise: Advise) -> Iterator[str]:
    yield "without precision=, gemm follows what torch was told:"
    for device_type in ("cpu", "cuda"):
        if device_type == "cuda" and not torch.backends.cuda.is_built():
            continue
        place = "CPU" if device_type == "cpu" else "GPU"
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            state = current_state(dtype, device_type)
            yield f"{DTYPE_NAMES[dtype]} on a {place}: {_in_words(dtype, state)}"
    yield "float64 and complex: their own accuracy, whatever torch is told"
    if getattr(torch.backends.cuda.matmul, "allow_fp16_accumulation", False):
        yield "allow_fp16_accumulation is set; gemm keeps sums in float32 all the same"


def _in_words(dtype: torch.dtype, state: PrecisionState) -> str:
    tolerance = state.tolerance(dtype)
    kind = "float32" if dtype is torch.float32 else "half"
    return f"{_MEANING[kind, tolerance.level]} ({tolerance.level!r}; {tolerance.source})"
