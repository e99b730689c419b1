"""Who this machine is: the only reader of device properties and software versions.

A ``Device`` is plain data and can be built by hand, so that dispatch, tables and the
tuner are tested without the hardware.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import platform
import re
import subprocess
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

_CPU_FEATURES = (
    "amx_bf16", "amx_fp16", "avx512_bf16", "avx512_fp16", "avx512f", "avx2", "sve", "bf16", "asimd",
)  # fmt: skip


class Installed(Container[str]):
    """The Python packages that can be imported here; each is looked for when it is asked for."""

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and _is_installed(name)


@functools.cache
def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # the package that a dotted name begins with is missing
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One kind of GPU or CPU. Two machines with equal ``Device`` share tuning results.

    ``capability`` is CUDA's compute capability, (0, 0) on a CPU; ``units`` counts
    multiprocessors, or the threads torch uses on a CPU; ``cache_bytes`` is the L2 cache (the
    last level on a CPU); ``features`` names instruction sets that matter to products.
    """

    type: str
    name: str
    capability: tuple[int, int] = (0, 0)
    units: int = 1
    cache_bytes: int = 0
    memory_bytes: int = 0
    features: tuple[str, ...] = ()
    packages: Container[str] = field(default=frozenset(), compare=False)

    @property
    def slug(self) -> str:
        """The name of this device's table, without the suffix."""
        name = self.name if self.type == "cuda" else f"cpu {self.name} {self.units} threads"
        return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")

    @property
    def has_cuda(self) -> bool:
        """Whether this is a CUDA GPU."""
        return self.type == "cuda"

    def has_package(self, name: str) -> bool:
        """Whether a Python package that a strategy needs can be imported here."""
        return name in self.packages

    def __str__(self) -> str:
        return self.name if self.has_cuda else f"{self.name} ({self.units} threads)"


def device_of(device: torch.device) -> Device:
    """The ``Device`` behind a torch device (the current GPU where no index is given)."""
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        return _cuda_device(index)
    return _cpu_device(torch.get_num_threads())


def default_device() -> torch.device:
    """The current GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_named(name: str | None) -> torch.device:
    """The device a user named, ``cpu``, ``cuda`` or ``cuda:N``; None is the default one.

    Raises ``RuntimeError`` (or torch's ``AssertionError``) for anything else, or one not there.
    """
    try:
        where = torch.device(name) if name else default_device()
    except RuntimeError:  # which names all of torch's devices
        raise RuntimeError("expected cpu, cuda or cuda:N") from None
    if where.type not in ("cpu", "cuda") or (where.type == "cpu" and where.index):
        raise RuntimeError("expected cpu, cuda or cuda:N")
    if where.type == "cuda" and where.index is None:
        where = torch.device("cuda", torch.cuda.current_device())
    return where


@functools.cache
def _cuda_device(index: int) -> Device:
    facts = torch.cuda.get_device_properties(index)
    return Device(
        type="cuda",
        name=facts.name,
        capability=(facts.major, facts.minor),
        units=facts.multi_processor_count,
        cache_bytes=facts.L2_cache_size,
        # Rounded to GiB: ECC and firmware move the last megabytes between equal cards.
        memory_bytes=round(facts.total_memory / 2**30) * 2**30,
        features=() if torch.version.hip is None else ("rocm",),
        packages=Installed(),
    )


@functools.cache
def _cpu_device(threads: int) -> Device:
    info = _cpuinfo()
    name = info.get("model name") or platform.processor() or platform.machine() or "cpu"
    if "cpu family" in info:
        name += f" family {info['cpu family']} model {info.get('model', '?')}"
    flags = set((info.get("flags") or info.get("Features") or "").split())
    features = [flag for flag in _CPU_FEATURES if flag in flags]
    if _onednn_has_bf16():
        features.append("onednn_bf16")
    return Device(
        type="cpu",
        name=re.sub(r"\s+", " ", re.sub(r"\((R|TM)\)|\bCPU\b|@.*?GHz", " ", name)).strip(),
        units=threads,
        cache_bytes=_last_level_cache(),
        features=tuple(features),
        packages=Installed(),
    )


def _onednn_has_bf16() -> bool:
    try:
        return bool(
            torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        )
    except (AttributeError, RuntimeError):
        return False


def _cpuinfo() -> dict[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines if ":" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}


def _last_level_cache() -> int:
    best = 0
    for size in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        try:
            text = size.read_text().strip()
        except OSError:
            continue
        if text[:-1].isdigit():
            best = max(best, int(text[:-1]) * {"K": 2**10, "M": 2**20}.get(text[-1], 1))
    return best


# ------------------------------------------------------------------------------- software


@functools.cache
def software_versions(device_type: str) -> Mapping[str, str]:
    """Versions of what a product's speed depends on, by the names strategies declare."""
    versions = {"torch": torch.__version__.split("+")[0]}
    if device_type != "cuda":
        return versions
    versions["cuda"] = torch.version.cuda or torch.version.hip or "unknown"
    for package in ("nvidia-cublas", "nvidia-cublas-cu12"):
        if (version := _package_version(package)) is not None:
            versions["cublas"] = version
            break
    names = (("triton", "triton"), ("nvmath", "nvmath-python"), ("quack", "quack-kernels"))
    for name, package in names:
        if (version := _package_version(package)) is not None:
            versions[name] = version
    if (version := _driver_version()) is not None:
        versions["driver"] = version
    return versions


def is_release(version: str, releases: Iterable[str]) -> bool:
    """Whether a version (3.6.1) is of one of the releases (3.6, 3.7)."""
    return f"{version}.".startswith(tuple(f"{release}." for release in releases))


def _package_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _driver_version() -> str | None:
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return None
    match = re.search(r"\b(\d+\.\d+(?:\.\d+)?)\b", text)
    return match.group(1) if match else None


def clocks() -> dict[str, int]:
    """SM and memory clocks of the current GPU in MHz, empty where nvidia-smi cannot tell."""
    if not torch.cuda.is_available():
        return {}
    try:
        # By its name: nvidia-smi counts GPUs that CUDA_VISIBLE_DEVICES hides from torch.
        uuid = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
        query = [
            "nvidia-smi", f"--id=GPU-{uuid}", "--query-gpu=clocks.sm,clocks.mem",
            "--format=csv,noheader,nounits",
        ]  # fmt: skip
        text = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
        sm, memory = text.strip().split(",")
        return {"sm_mhz": int(sm), "memory_mhz": int(memory)}
    except (AttributeError, OSError, ValueError, subprocess.SubprocessError):
        return {}
