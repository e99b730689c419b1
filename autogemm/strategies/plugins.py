"""Strategies of other packages, named in the entry-point group ``autogemm.strategies``.

They are looked for when a strategy is first asked for, not at import: reading the entry points
of 60 installed packages takes 2 ms, and a plug-in may import autogemm itself. One that is broken
is left out with a warning, and nothing else comes of it.
"""

from __future__ import annotations

import inspect
import re
import threading
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import overload

from autogemm.errors import PluginWarning
from autogemm.problem import DTYPE_NAMES
from autogemm.strategies.base import Strategy

GROUP = "autogemm.strategies"

_WORD = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Plugins:
    """What was found: strategies, where each is from, and what was left out and why."""

    strategies: tuple[Strategy, ...] = ()
    origins: Mapping[str, str] = field(default_factory=dict)
    """By strategy: its distribution and version, such as ``autogemm-widened 1.0``."""
    left_out: tuple[str, ...] = ()


class Unusable(Exception):
    """An entry point that names no strategy; the message says why."""


def find(taken: Collection[str]) -> Plugins:
    """Load every plug-in installed here, those of one distribution in the order of their names.

    ``taken`` are the names they may not have. Never raises for what a plug-in does wrong.
    """
    strategies: list[Strategy] = []
    origins: dict[str, str] = {}
    left_out: list[str] = []
    try:
        points = sorted(entry_points(group=GROUP), key=lambda p: (_origin(p), p.name))
    except Exception as problem:  # one damaged file hides all: pip and its kin meet it, too
        words = f"of every plug-in: an installed package's entry_points.txt is damaged ({problem})"
        return Plugins(left_out=(words,))
    for point in points:
        try:
            strategy = _strategy(point)
            if strategy.name in taken:
                raise Unusable(f"autogemm has a strategy named {strategy.name!r} itself")
            if strategy.name in origins:
                raise Unusable(f"{origins[strategy.name]} has the name {strategy.name!r} already")
        except (Exception, SystemExit) as problem:  # whatever a foreign module does
            words = _in_short(problem)
            left_out.append(f"{point.name!r} ({point.value}) of {_origin(point)}: {words}")
        else:
            strategies.append(strategy)
            origins[strategy.name] = _origin(point)
    return Plugins(tuple(strategies), origins, tuple(left_out))


def _in_short(problem: BaseException) -> str:
    try:
        words = str(problem).split("\n")[0]
    except Exception:
        words = "without a word"
    return words if isinstance(problem, Unusable) else f"{type(problem).__name__}: {words}"


def _origin(point: EntryPoint) -> str:
    return "an unknown distribution" if point.dist is None else (
        f"{point.dist.name} {point.dist.version}"
    )


def _strategy(point: EntryPoint) -> Strategy:
    """The strategy that an entry point names; raises ``Unusable``, and what its module raises."""
    found = point.load()
    if inspect.isclass(found) and issubclass(found, Strategy):
        found = found()
    if not isinstance(found, Strategy):
        raise Unusable(f"expected a Strategy, its class or an instance; found {found!r}"[:200])
    name = getattr(found, "name", None)
    if not isinstance(name, str) or not _WORD.fullmatch(name):
        raise Unusable(f"its name is {name!r}; expected a lower-case word such as 'widened'")
    for fact, kind in (("device_types", frozenset), ("packages", tuple), ("depends_on", tuple)):
        words = getattr(found, fact)
        if not isinstance(words, kind) or not all(isinstance(word, str) for word in words):
            raise Unusable(f"its {fact} are {words!r}; expected a {kind.__name__} of words")
    dtypes = getattr(found, "dtypes", None)
    if not isinstance(dtypes, frozenset) or not dtypes or not dtypes <= set(DTYPE_NAMES):
        raise Unusable(
            f"its dtypes are {dtypes!r}; expected a frozenset of {', '.join(DTYPE_NAMES.values())}"
        )
    return found


class Strategies(Sequence[Strategy]):
    """The package's own strategies, simplest first, and behind them those of plug-ins."""

    def __init__(self, own: Iterable[Strategy]) -> None:
        self.own = tuple(own)
        self._all: tuple[Strategy, ...] | None = None
        self._plugins = Plugins()
        self._lock = threading.RLock()
        self._looking = False

    @property
    def plugins(self) -> Plugins:
        """What was found besides the package's own."""
        self.all()
        return self._plugins

    @property
    def complete(self) -> bool:
        """Whether plug-ins have been looked for."""
        return self._all is not None

    def all(self) -> tuple[Strategy, ...]:
        """Every strategy; the first call loads the plug-ins, and warns of those left out."""
        if self._all is not None:
            return self._all
        with self._lock:
            if self._all is not None:
                return self._all
            if self._looking:
                return self.own  # a plug-in multiplies while it is imported
            self._looking = True
            try:
                self._plugins = find({strategy.name for strategy in self.own})
                self._all = (*self.own, *self._plugins.strategies)
            finally:
                self._looking = False
        for words in self._plugins.left_out:
            warnings.warn(f"the strategy {words}. It is left out.", PluginWarning, stacklevel=2)
        return self._all

    @overload
    def __getitem__(self, index: int) -> Strategy: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Strategy, ...]: ...
    def __getitem__(self, index: int | slice) -> Strategy | tuple[Strategy, ...]:
        return self.all()[index]

    def __len__(self) -> int:
        return len(self.all())


class ByName(MutableMapping[str, Strategy]):
    """The same strategies by their names."""

    def __init__(self, strategies: Strategies) -> None:
        self._strategies = strategies
        self._names: dict[str, Strategy] | None = None

    @property
    def plugins(self) -> Plugins:
        """What was found besides the package's own."""
        return self._strategies.plugins

    def _all(self) -> dict[str, Strategy]:
        if self._names is not None:
            return self._names
        names = {strategy.name: strategy for strategy in self._strategies}
        if self._strategies.complete:
            self._names = names
        return names

    def __getitem__(self, name: str) -> Strategy:
        return self._all()[name]

    def __setitem__(self, name: str, strategy: Strategy) -> None:
        self._all()[name] = strategy

    def __delitem__(self, name: str) -> None:
        del self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())
