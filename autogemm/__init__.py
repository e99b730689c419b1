"""Matrix products in PyTorch, as fast as the hardware allows at an accuracy you can trust."""

from autogemm.api import explain, gemm, gemm_, reload_tables
from autogemm.auditing import Audit, audit
from autogemm.diagnosis import Diagnosis, doctor
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
    "Audit",
    "AutogemmError",
    "DatabaseError",
    "DatabaseWarning",
    "Diagnosis",
    "Explanation",
    "InvalidProblem",
    "NoStrategy",
    "__version__",
    "audit",
    "doctor",
    "explain",
    "gemm",
    "gemm_",
    "reload_tables",
]
