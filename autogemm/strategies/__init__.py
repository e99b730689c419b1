"""Every way autogemm knows to compute a product; one idea a file.

``STRATEGIES`` is the one list of them, simplest first: the baselines lead it, those of other
packages (``plugins``) end it, and a tie between measured candidates goes to the one that stands
earlier. ``BY_NAME`` holds the same by name.
"""

from autogemm.device import Device
from autogemm.problem import Problem
from autogemm.strategies.addmm import Addmm, baseline
from autogemm.strategies.baddbmm import Baddbmm
from autogemm.strategies.base import Candidate, Params, ParamValue, Run, Strategy
from autogemm.strategies.cublaslt import CublasLt
from autogemm.strategies.cute import Cute
from autogemm.strategies.emulated_fp32 import EmulatedFP32
from autogemm.strategies.half import Half
from autogemm.strategies.ksplit import KSplit
from autogemm.strategies.loop import Loop
from autogemm.strategies.matmul_axpby import MatmulAxpby
from autogemm.strategies.onednn import OneDNN
from autogemm.strategies.padded import Padded
from autogemm.strategies.plugins import ByName, Strategies
from autogemm.strategies.short import Short
from autogemm.strategies.skinny import Skinny
from autogemm.strategies.tf32 import TF32
from autogemm.strategies.triton_gemm import TritonGemm

_OWN: tuple[Strategy, ...] = (
    Addmm(),
    Baddbmm(),
    MatmulAxpby(),
    OneDNN(),
    Loop(),
    KSplit(),
    CublasLt(),
    Padded(),
    TF32(),
    Half(),
    Skinny(),
    Short(),
    TritonGemm(),
    EmulatedFP32(),
    Cute(),
)

STRATEGIES = Strategies(_OWN)

BY_NAME = ByName(STRATEGIES)


def origin_of(name: str) -> str:
    """The distribution and version that a strategy comes from; "" for the package's own."""
    return BY_NAME.plugins.origins.get(name, "")


def reasons_not(candidate: Candidate, problem: Problem, device: Device) -> list[str]:
    """Why a candidate, of a table perhaps, cannot run a problem here; empty where it can."""
    strategy = BY_NAME.get(candidate.strategy)
    if strategy is None:
        return [f"the strategy {candidate.strategy!r} is not known"]
    return strategy.reasons_not(problem, device, candidate.kwargs)


def left_out() -> tuple[str, ...]:
    """The strategies of plug-ins that cannot be used: name, distribution and reason of each."""
    return BY_NAME.plugins.left_out


__all__ = [
    "BY_NAME",
    "STRATEGIES",
    "Candidate",
    "ParamValue",
    "Params",
    "Run",
    "Strategy",
    "baseline",
    "left_out",
    "origin_of",
    "reasons_not",
]
