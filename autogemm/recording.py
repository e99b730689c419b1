"""What a program multiplies: every matrix product that torch runs, counted and timed.

Choosing what to tune by hand means guessing shapes; a recording lists them, with what each
costs, and ``scripts/tune.py --shapes`` reads it.
"""

from __future__ import annotations

import contextlib
import datetime
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any

import torch
import yaml

from autogemm import dispatch
from autogemm.database.lookup import evidence_for
from autogemm.database.writing import write_text
from autogemm.device import device_of
from autogemm.errors import InvalidProblem
from autogemm.event_times import EventTimes, begin
from autogemm.listener import Facts, Listener
from autogemm.precision import Tolerance
from autogemm.problem import DTYPE_NAMES, Problem, contiguous_problem
from autogemm.report import text_table

_HEADER = """\
# Matrix products of one program, recorded by autogemm.record; scripts/tune.py --shapes reads it.
# ms is the time of all calls of a product together; docs/recording.md explains the rest.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """One kind of product in a recording: what was multiplied, how often, for how long."""

    problem: Problem
    """Sizes, type, layouts, update, and how many of a kind one call computes."""
    level: str
    """The accuracy level that torch's settings, or the call itself, asked for."""
    mode: str
    """``eager``, or ``graph`` where a CUDA graph was being captured."""
    by: str
    """``torch`` or ``autogemm``: who was called."""
    count: int
    """Calls."""
    seconds: float | None
    """The time of all calls together; None where it could not be taken (capture)."""
    share: float | None
    """``seconds`` as a fraction of the recording's; None before the recording has ended."""
    ratio: float
    """How many times faster than ``torch.addmm`` it ran by the tables in use; 1 for torch's own."""

    def __str__(self) -> str:
        return str(self.problem)


@dataclass(slots=True)
class _Tally:
    count: int = 0
    seconds: float = 0.0
    timed: bool = False


class Recording:
    """The products seen so far; complete once the ``record`` block has ended.

    ``seconds`` is the wall time of the block, 0 until it ends.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._tallies: dict[Facts, _Tally] = {}
        self._lock = RLock()  # autograd has a thread for each GPU
        self._events: EventTimes[Facts] = EventTimes(self._add_time)

    @property
    def products(self) -> tuple[Product, ...]:
        """What was recorded, the most expensive first."""
        with self._lock:
            rows = [self._product(facts, tally) for facts, tally in self._tallies.items()]
        return tuple(
            sorted(rows, key=lambda p: (p.seconds or 0.0, p.count * p.problem.flops), reverse=True)
        )

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the recording as YAML, in place of what stood at ``path``; atomic.

        Raises ``InvalidProblem`` where it cannot be written.
        """
        try:
            write_text(Path(path), self._as_yaml())
        except OSError as error:
            raise InvalidProblem(
                f"{path}: the recording cannot be written there ({error.strerror}); expected a "
                "writable file. Call write() of the recording with another path."
            ) from error

    def __str__(self) -> str:
        """A table: problem, level, calls, time, share of the block's time."""
        products = self.products
        if not products:
            return "no matrix product was recorded"
        rows = [
            (
                str(p), p.level, p.mode, p.by, str(p.count),
                *(("-", "-") if p.seconds is None else (
                    f"{p.seconds * 1e3:.2f}", f"{p.seconds * 1e6 / p.count:.1f}")),
                "-" if p.share is None else f"{p.share:.1%}",
            )
            for p in products
        ]  # fmt: skip
        in_all = sum(p.seconds or 0.0 for p in products)
        share = f", {in_all / self.seconds:.1%} of {self.seconds:.4g} s" if self.seconds else ""
        return (
            text_table(("product", "level", "mode", "by", "calls", "ms", "us each", "share"), rows)
            + f"\n{sum(p.count for p in products)} products take {in_all:.4g} s{share}"
        )

    def _product(self, facts: Facts, tally: _Tally) -> Product:
        seconds = tally.seconds if tally.timed else None
        known = facts.by == "autogemm"
        return Product(
            **facts._asdict(),
            count=tally.count,
            seconds=seconds,
            share=seconds / self.seconds if seconds is not None and self.seconds else None,
            ratio=_ratio_in_use(facts.problem, facts.level, facts.mode) if known else 1.0,
        )

    def _as_yaml(self) -> str:
        products = self.products
        types = sorted({p.problem.device_type for p in products})
        program = {
            **({"seconds": _rounded(self.seconds)} if self.seconds else {}),
            "date": datetime.datetime.now().isoformat(" ", "seconds"),
            "device": ", ".join(str(device_of(torch.device(type_))) for type_ in types),
        }
        lines = [f"{_HEADER}program: {_flow(program)}", "products:" if products else "products: []"]
        for product in products:
            share = "" if product.share is None else f"  # {product.share:.1%}"
            lines.append(f"- {_flow(_row(product))}{share}")
        return "\n".join(lines) + "\n"

    # ------------------------------------------------------------ what the listener tells

    def _run(
        self, call: Callable[[], Any], facts_in: Callable[[str], Facts], device: torch.device
    ) -> Any:
        """Run a product and take its time."""
        if device.type != "cuda":
            started = time.perf_counter()
            result = call()
            seconds = time.perf_counter() - started
            facts = facts_in("eager")
            self._count(facts)
            self._add_time(facts, seconds)
            return result
        span = begin(device)
        result = call()
        if span is None:
            self._count(facts_in("graph"))
            return result
        span.end()
        facts = facts_in("eager")
        with self._lock:
            self._count(facts)
            self._events.append(facts, span)
        return result

    def _count(self, facts: Facts) -> None:
        with self._lock:
            self._tallies.setdefault(facts, _Tally()).count += 1

    def _add_time(self, facts: Facts, seconds: float) -> None:
        with self._lock:
            tally = self._tallies[facts]
            tally.seconds += seconds
            tally.timed = True


@contextlib.contextmanager
def record(path: str | os.PathLike[str] | None = None) -> Iterator[Recording]:
    """List every matrix product that runs inside, with counts and times; a context or decorator.

    Args:
        path: where the recording is written when the block ends, also when it ends by an
            exception; a file that is there is replaced. None writes nothing.

    Yields:
        The ``Recording``: ``products``, ``seconds``, ``write(path)``; ``print`` it for a table.

    Raises:
        InvalidProblem: before the block, if ``path`` cannot be written; after it, if writing
            failed all the same. An exception of the block itself comes first: writing then
            only warns.

    Seen are ``mm``, ``addmm``, ``bmm`` and ``baddbmm`` in all their forms, whatever torch
    reduces to them (``linear``, ``matmul``, ``einsum``, their gradients), and autogemm's own
    calls, in the thread of the block and autograd's. Results are what they are without it.
    """
    target = None if path is None else _writable(path)
    recording = Recording()
    with Listener(recording._run):
        torch.empty(0)  # the first use of a mode imports torch's compiler, a second's work
    started = _now(())
    try:
        with Listener(recording._run):
            yield recording
    except BaseException:
        _finish(recording, started, target, failing=True)
        raise
    _finish(recording, started, target, failing=False)


def _finish(recording: Recording, started: float, target: Path | None, *, failing: bool) -> None:
    try:
        try:
            recording.seconds = _now(recording._events.devices) - started
            recording._events.collect()
        finally:  # a GPU that has failed takes its times along, not the counts
            if target is not None:
                recording.write(target)
    except Exception as error:
        if not failing:
            raise
        warnings.warn(f"the recording is not complete: {error}", RuntimeWarning, stacklevel=4)


def _now(devices: tuple[torch.device, ...]) -> float:
    """The time at which the GPUs have done what they were given (the current one if none)."""
    if torch.cuda.is_initialized() and not torch.cuda.is_current_stream_capturing():
        for device in devices or (torch.device("cuda", torch.cuda.current_device()),):
            torch.cuda.synchronize(device)
    return time.perf_counter()


def _writable(path: str | os.PathLike[str]) -> Path:
    target = Path(path).absolute()  # the program may change its directory
    if target.is_dir() or not target.parent.is_dir() or not os.access(target.parent, os.W_OK):
        raise InvalidProblem(
            f"{path}: the recording cannot be written there; expected a file in a directory that "
            "exists and is writable. Create the directory, or name another one."
        )
    return target


# ---------------------------------------------------------------------------- small parts


def _ratio_in_use(problem: Problem, level: str, mode: str) -> float:
    """How many times faster than the baseline the tables say such a call of ``gemm`` ran."""
    device = device_of(torch.device(problem.device_type))
    plan = dispatch.plan(problem, Tolerance(level), device, mode, evidence_for(device))
    return plan.expected_ratio or 1.0


_LETTERS = {"row": "n", "col": "t"}


def _row(product: Product) -> dict[str, object]:
    """A product as a row of the file; what goes without saying is left out."""
    problem = product.problem
    orders = [_LETTERS.get(layout.split("-")[0], "n") for layout in (problem.a, problem.b)]
    fresh = contiguous_problem(
        problem.m, problem.n, problem.k, problem.dtype, device_type=problem.device_type,
        batch=problem.batch,
        a="col" if orders[0] == "t" else "row", b="col" if orders[1] == "t" else "row",
    )  # fmt: skip
    row: dict[str, object] = {"m": problem.m, "n": problem.n, "k": problem.k}
    if problem.batch > 1:
        row["batch"] = problem.batch
    row |= {"dtype": DTYPE_NAMES[problem.dtype], "layout": "".join(orders)}
    for name in ("a", "b", "out"):
        if getattr(problem, name) != getattr(fresh, name):
            row[name] = getattr(problem, name)
    row |= {"update": problem.update, "count": product.count}
    if product.seconds:
        row["ms"] = _rounded(product.seconds * 1e3)
    row |= {"level": product.level, "device": problem.device_type}
    if product.mode != "eager":
        row["mode"] = product.mode
    if product.by != "torch":
        row |= {"by": product.by, "ratio": round(product.ratio, 3)}
    return row


def _rounded(value: float) -> float:
    return float(f"{value:.3e}")


def _flow(fields: Mapping[str, object]) -> str:
    text: str = yaml.safe_dump(
        dict(fields), default_flow_style=True, sort_keys=False, width=math.inf, allow_unicode=True
    )
    return text.strip()
