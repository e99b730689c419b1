"""Matrix products in PyTorch, as fast as the hardware allows at an accuracy you can trust."""

from autogemm import nn
from autogemm.api import explain, gemm, gemm_, reload_tables
from autogemm.auditing import Audit, audit
from autogemm.diagnosis import Diagnosis, doctor
from autogemm.errors import (
    AutogemmError,
    DatabaseError,
    DatabaseWarning,
    InvalidProblem,
    NoStrategy,
    PluginWarning,
)
from autogemm.explanation import Explanation
from autogemm.functional import linear
from autogemm.overriding import override
from autogemm.recording import Product, Recording, record
from autogemm.replacing import replace_linear, restore_linear

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
    "PluginWarning",
    "Product",
    "Recording",
    "__version__",
    "audit",
    "doctor",
    "explain",
    "gemm",
    "gemm_",
    "linear",
    "nn",
    "override",
    "record",
    "reload_tables",
    "replace_linear",
    "restore_linear",
]
