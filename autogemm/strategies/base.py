"""What a strategy is: declared facts, reasons against it, its bound, and how to run it."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from autogemm.device import Device
from autogemm.precision import ErrorBound
from autogemm.problem import DTYPE_NAMES, Problem

ParamValue = int | float | str | bool
Params = Mapping[str, ParamValue]

Run = Callable[
    [
        complex | float,
        torch.Tensor,
        torch.Tensor,
        complex | float,
        torch.Tensor | None,
        torch.Tensor | None,
    ],
    torch.Tensor,
]
"""``run(alpha, A, B, beta, C, out) -> result``, for checked operands of the bound problem.

With ``out`` None a new tensor is returned; otherwise ``out`` is written and returned. It is
only called where m, n, k ≥ 1 and α ≠ 0; C is None exactly when β = 0. Autograd does not watch.
On a GPU no operand is a negated view, whose stored elements are not its values.
"""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A strategy's name with its parameters: one row of a tuning table's evidence."""

    strategy: str
    params: tuple[tuple[str, ParamValue], ...] = ()

    @classmethod
    def of(cls, strategy: str, /, **params: ParamValue) -> Candidate:
        """``Candidate.of("ksplit", form="batched", chunks=16)``."""
        return cls(strategy, tuple(sorted(params.items())))

    @property
    def kwargs(self) -> dict[str, ParamValue]:
        """The parameters as a dictionary."""
        return dict(self.params)

    def __str__(self) -> str:
        words = ", ".join(f"{key}={_word(value)}" for key, value in self.params)
        return f"{self.strategy}({words})" if words else self.strategy


def _word(value: ParamValue) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


class Strategy(ABC):
    """One way to compute α·A·B + β·C. Instances hold no state."""

    name: ClassVar[str]
    """Its file's name, and its word in tables."""
    dtypes: ClassVar[frozenset[torch.dtype]]
    device_types: ClassVar[frozenset[str]] = frozenset({"cuda", "cpu"})
    packages: ClassVar[tuple[str, ...]] = ()
    """Python packages that must be importable."""
    depends_on: ClassVar[tuple[str, ...]] = ("torch", "cuda", "cublas")
    """The software whose version its speed depends on (keys of ``software_versions``)."""
    min_capability: ClassVar[tuple[int, int]] = (0, 0)
    emulates: ClassVar[bool] = False
    """Whether it multiplies in a narrower type than the operands'."""
    deterministic: ClassVar[bool] = True
    """Whether equal inputs give equal bits on one machine."""
    single: ClassVar[bool] = True
    """Whether it computes a single product: 2-D operands."""
    batched: ClassVar[bool] = False
    """Whether it computes a batch of them: 3-D operands, of which some may be expanded."""
    optional: ClassVar[frozenset[str]] = frozenset()
    """Parameters that may be left out, as tables do that are older than these."""

    @property
    def rank(self) -> int:
        """Simplicity: among equals the strategy that stands first in ``STRATEGIES`` wins."""
        from autogemm.strategies import STRATEGIES

        return next(i for i, strategy in enumerate(STRATEGIES) if strategy.name == self.name)

    @property
    def needs_extras(self) -> bool:
        """Whether it needs packages that PyTorch's CUDA builds do not bring."""
        return not set(self.packages) <= {"triton"}

    def reasons_not(self, problem: Problem, device: Device, params: Params) -> list[str]:
        """Why this strategy cannot serve a problem here; empty means it can.

        Dispatch, tuner, tests' skips and ``explain`` all ask this one question.
        """
        reasons = []
        if problem.device_type not in self.device_types:
            reasons.append(f"runs on {_list(self.device_types)}, not on {problem.device_type}")
        if problem.dtype not in self.dtypes:
            names = _list(DTYPE_NAMES[dtype] for dtype in self.dtypes)
            reasons.append(f"computes {names}, not {DTYPE_NAMES[problem.dtype]}")
        if problem.batch > 1 and not self.batched:
            reasons.append(f"computes one product at a time, not a batch of {problem.batch}")
        if problem.batch == 1 and not self.single:
            reasons.append("computes batches of products, not a single one")
        if problem.device_type == "cuda" and device.capability < self.min_capability:
            need = ".".join(map(str, self.min_capability))
            have = ".".join(map(str, device.capability))
            reasons.append(f"needs compute capability {need}; {device.name} has {have}")
        for package in self.packages:
            if not device.has_package(package):
                reasons.append(f"needs the package {package!r}, which is not installed")
        reasons = reasons or self.wrong_parameters(params)
        return reasons or self._reasons_not(problem, device, params)

    def wrong_parameters(self, params: Params) -> list[str]:
        """Why ``bound`` and ``bind`` do not take these parameters; empty means they do."""
        unknown = set(params) - set(self.parameters())
        missing = set(self.parameters()) - self.optional - set(params)
        if unknown or missing:
            return [
                f"takes the parameters {sorted(self.parameters())}; "
                f"unknown {sorted(unknown)}, missing {sorted(missing)}"
            ]
        return [
            f"does not take {key}={params[key]!r}"
            for key, legal in self.parameters().items()
            if key in params and not legal(params[key])
        ]

    def parameters(self) -> Mapping[str, Callable[[ParamValue], bool]]:
        """Its parameters, each with a test of what values are legal."""
        return {}

    def _reasons_not(self, problem: Problem, device: Device, params: Params) -> list[str]:
        return []

    def space(self, problem: Problem, device: Device) -> Iterable[dict[str, ParamValue]]:
        """Parameter sets worth measuring; those with ``reasons_not`` are dropped by the tuner."""
        return [{}]

    @abstractmethod
    def bound(self, problem: Problem, params: Params) -> ErrorBound:
        """The error it promises for every input."""

    @abstractmethod
    def bind(self, problem: Problem, device: Device, params: Params) -> Run:
        """A function that only runs: everything that can be decided once is decided here."""

    def lowers(self, problem: Problem, params: Params) -> bool:
        """Whether it has torch compute less accurately than torch is set to now.

        Such a setting is the whole process's: it may only run where there is no other thread.
        """
        return False

    def is_steady(self, params: Params) -> bool:
        """Whether its speed on all ordinary data is that on the data it is timed with."""
        return True

    def workspace_bytes(self, problem: Problem, params: Params) -> int:
        """Memory it takes at most besides operands and result, in bytes."""
        return 0

    def launches(self, problem: Problem) -> int:
        """What the host's part of a call grows with: products that are launched one by one."""
        return 1

    def kin(self, candidate: Candidate) -> Candidate:
        """What stands for all candidates alike enough that one's time tells of another's."""
        return candidate

    def fitted(self, candidate: Candidate, problem: Problem, device: Device) -> Candidate:
        """What to run on an untuned problem where ``candidate`` did well on one like it."""
        return candidate

    def candidates(self, problem: Problem, device: Device) -> list[Candidate]:
        """The legal part of its search space."""
        return [
            Candidate.of(self.name, **params)
            for params in self.space(problem, device)
            if not self.reasons_not(problem, device, params)
        ]


_MOST_PROGRAMS = 2**31 - 2**16
"""Of a launch, with room below 2³¹ for the tile after a program's last."""


def tile_of(params: Params) -> tuple[int, int]:
    """Rows and columns of the tile that parameters named ``bm`` and ``bn`` say."""
    return int(params["bm"]), int(params["bn"])


def tiles_of(problem: Problem, bm: int, bn: int) -> int:
    """How many tiles of that size cover the result."""
    return -(-problem.m // bm) * -(-problem.n // bn)


def reasons_against_size(problem: Problem, bm: int, bn: int) -> list[str]:
    """Why no launch has a program for each tile of a batch; empty where one has."""
    programs = problem.batch * tiles_of(problem, bm, bn)
    if programs <= _MOST_PROGRAMS:
        return []
    return [f"a launch has {_MOST_PROGRAMS} programs at most; tiles of {bm}x{bn} take {programs}"]


def filling_slices(
    problem: Problem, device: Device, bm: int, bn: int, bk: int, waves: int
) -> int:  # fmt: skip
    """Slices of k, of four blocks at least, with which tiles fill the device ``waves`` times."""
    most = max(1, problem.k // (4 * bk))
    return min(most, max(1, waves * device.units // tiles_of(problem, bm, bn)))


def one_of(*values: ParamValue) -> Callable[[ParamValue], bool]:
    """A parameter's test: the value is one of these, type included."""
    return lambda value: any(value == v and type(value) is type(v) for v in values)


def at_least(minimum: int) -> Callable[[ParamValue], bool]:
    """A parameter's test: an integer of at least ``minimum``."""
    return lambda value: type(value) is int and operator.ge(value, minimum)


def _list(words: Iterable[str]) -> str:
    return ", ".join(sorted(words))
