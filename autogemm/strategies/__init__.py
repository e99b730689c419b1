"""Every way autogemm knows to compute a product; one idea a file.

``STRATEGIES`` is the one list of them, simplest first: the baselines lead it, and a tie
between measured candidates goes to the one that stands earlier.
"""

from autogemm.strategies.addmm import Addmm, baseline
from autogemm.strategies.baddbmm import Baddbmm
from autogemm.strategies.base import Candidate, Params, ParamValue, Run, Strategy
from autogemm.strategies.emulated_fp32 import EmulatedFP32
from autogemm.strategies.half import Half
from autogemm.strategies.ksplit import KSplit
from autogemm.strategies.loop import Loop
from autogemm.strategies.matmul_axpby import MatmulAxpby
from autogemm.strategies.onednn import OneDNN
from autogemm.strategies.padded import Padded
from autogemm.strategies.tf32 import TF32
from autogemm.strategies.triton_gemm import TritonGemm

STRATEGIES: tuple[Strategy, ...] = (
    Addmm(),
    Baddbmm(),
    MatmulAxpby(),
    OneDNN(),
    Loop(),
    KSplit(),
    Padded(),
    TF32(),
    Half(),
    TritonGemm(),
    EmulatedFP32(),
)

BY_NAME: dict[str, Strategy] = {strategy.name: strategy for strategy in STRATEGIES}

__all__ = [
    "BY_NAME",
    "STRATEGIES",
    "Candidate",
    "ParamValue",
    "Params",
    "Run",
    "Strategy",
    "baseline",
]
