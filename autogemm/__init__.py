"""Matrix products in PyTorch, as fast as the hardware allows at an accuracy you can trust."""

from autogemm.api import explain, gemm, gemm_, reload_tables
from autogemm.errors import (
    AutogemmError,
    DatabaseError,
    DatabaseWarning,
    InvalidProblem,
    NoStrategy,
)
from autogemm.explanation import Explanation

__version__ = "0.1.0"

__all__ = [
    "AutogemmError",
    "DatabaseError",
    "DatabaseWarning",
    "Explanation",
    "InvalidProblem",
    "NoStrategy",
    "__version__",
    "explain",
    "gemm",
    "gemm_",
    "reload_tables",
]
