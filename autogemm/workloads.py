"""Problems worth tuning: named presets, and what a program has to do with each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from autogemm.errors import InvalidProblem
from autogemm.problem import DTYPES, Problem, Update, contiguous_problem

PRESETS = ("quick", "llm", "science", "full")

_ORDER = {"n": "row", "t": "col"}


@dataclass(frozen=True, slots=True)
class Workload:
    """A problem, and what a program has to do with it."""

    problem: Problem
    count: int = 1
    """How often the program meets it."""
    seconds: float | None = None
    """What all of these calls took in the program; None where nobody knows."""
    level: str = "highest"
    """The accuracy level the program asked for."""
    mode: str = "eager"
    """How it made the calls: ``eager``, or ``graph`` where it captured them."""
    by: str = "torch"
    """Whom it called: ``torch``, or ``autogemm``."""
    ratio: float = 1.0
    """How many times faster than the baseline the calls were already, by the table of then."""


def preset(name: str, device_type: str) -> list[Workload]:
    """The problems of a preset, most useful first.

    ``quick`` is a sample of everything (the default), ``llm`` the products of published
    language models, ``science`` those of covariances, least squares and PCA, ``full`` all.
    """
    if name not in PRESETS:
        raise InvalidProblem(f"the preset is {name!r}; expected one of {', '.join(PRESETS)}.")
    if device_type == "cpu":
        specs = list(_cpu(name))
    else:
        specs = list(_gpu(name))
    unique = dict.fromkeys(specs)
    return [Workload(_problem(spec, device_type)) for spec in unique]


# A spec: dtype, (m, n, k), BLAS's transposition letters of A and B, what becomes of C, the batch.
_Spec = tuple[str, tuple[int, int, int], str, Update, int]


def _problem(spec: _Spec, device_type: str) -> Problem:
    dtype, (m, n, k), letters, update, batch = spec
    return contiguous_problem(
        m,
        n,
        k,
        DTYPES[dtype],
        a=_ORDER[letters[0]],
        b=_ORDER[letters[1]],
        update=update,
        device_type=device_type,
        batch=batch,
    )


def _each(
    dtypes: str,
    shapes: Iterable[tuple[int, int, int]],
    letters: str = "nn",
    update: Update = "add",
    batch: int = 1,
) -> Iterator[_Spec]:
    for dtype in dtypes.split():
        for shape in shapes:
            yield (dtype, shape, letters, update, batch)


def _attention(dtypes: str, heads: int, tokens: int, width: int) -> Iterator[_Spec]:
    """Queries by keys, then weights by values; ``heads`` are those of all sequences."""
    yield from _each(dtypes, [(tokens, tokens, width)], "nt", "none", heads)
    yield from _each(dtypes, [(tokens, width, tokens)], "nn", "none", heads)


def _cube(*sizes: int) -> list[tuple[int, int, int]]:
    return [(size, size, size) for size in sizes]


# Llama 3 8B: fused qkv, output, gate and up fused, down (n, k); GPT-2 small and its head.
_LLAMA = [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)]
_GPT2 = [(2304, 768), (768, 768), (3072, 768), (768, 3072)]


def _tokens(
    counts: Sequence[int], layers: Iterable[tuple[int, int]]
) -> list[tuple[int, int, int]]:
    return [(tokens, n, k) for n, k in layers for tokens in counts]


_ODD = [
    *_cube(1023, 2047, 3001, 4095),
    (8191, 4097, 4096),
    (4096, 4097, 4095),
    (2047, 3071, 1025),
    (777, 20000, 333),
    (65536, 256, 257),
    (1000, 1001, 4099),
]
_ODD_TRANSPOSED = [(2049, 2047, 4099), (1023, 1023, 1023), (4095, 4097, 4095), (512, 3071, 1023)]
_LONG_K = [(256, 256, 262144), (64, 64, 1048576), (512, 512, 65536), (128, 128, 131072)]
_TALL = [(100000, 512, 512), (65536, 256, 256), (200000, 64, 64), (32768, 128, 1024)]
_SKINNY = [
    (16, 4096, 4096),
    (64, 4096, 4096),
    (128, 4096, 14336),
    (32, 8192, 8192),
    (1, 4096, 4096),
]


def _gpu(name: str) -> Iterator[_Spec]:
    if name in ("quick", "full"):
        yield from _each("float32 bfloat16 float16 float64", _cube(1024, 4096))
        yield from _each("float32 bfloat16", [(4095, 4095, 4095), (256, 256, 262144)])
        yield from _each("float32 bfloat16", [(128, 4096, 14336), (2048, 4096, 4096)], "nt")
        yield from _each("bfloat16 float16", [(8191, 4097, 4096), (2047, 2047, 2047)])
        yield from _each("float32", _cube(2048))
    if name in ("llm", "full"):
        yield from _each("bfloat16", _tokens((1, 16, 128, 1024, 8192), _LLAMA), "nt")
        yield from _each("float16", _tokens((16, 2048), _LLAMA), "nt")
        yield from _each("bfloat16 float32", _tokens((1024,), _GPT2), "nt")
        yield from _each("bfloat16 float32", [(2048, 50304, 768)], "nt")
        yield from _each("bfloat16 float16", [(2048, 50257, 768)])
        yield from _each("bfloat16", [(2048, 50257, 768), (16, 50257, 1600)], "nt")
        yield from _each("bfloat16", _tokens((1024,), _LLAMA), "nt", "none")
        yield from _each("bfloat16", [(2048, 3072, 768), (2048, 768, 3072)], "nt", "bias")
        yield from _each("bfloat16 float16", [(2048, 6144, 4096), *_cube(4096)], "nn", "inplace")
        yield from _attention("bfloat16 float32", 96, 1024, 64)  # GPT-2: 8 sequences, 12 heads
        yield from _attention("bfloat16 float16", 32, 2048, 128)  # Llama 3 8B
    if name in ("science", "full"):
        yield from _each("float32 float64", [(512, 512, 65536), (500, 500, 200000)], "tn")
        yield from _each("float32", [(1000, 1000, 100000), (300, 300, 1000003)], "tn", "none")
        yield from _each("float32 float64", [(2048, 2048, 2048), (100000, 64, 512)], "nn", "none")
        yield from _each("float32", _LONG_K)
        yield from _each("float32", _TALL)
        yield from _each("float32 float64", [(4096, 16, 4096), (3000, 2000, 1000)])
        yield from _each("float32 float64", _cube(32), batch=1024)
        yield from _each("float32", _cube(512), batch=16)
    if name == "full":
        yield from _each("float32", _cube(256, 512, 1536, 3072, 6144, 8192))
        yield from _each("float32", _cube(1024, 2048, 4096), "nt")
        yield from _each("float32", _cube(1024, 2048, 4096), "tn")
        yield from _each("float32", _cube(2048, 4096), "tt")
        yield from _each("float32", _SKINNY)
        yield from _each("float32", _SKINNY[:4], "nt")
        yield from _each("float32", [(1024, 1024, 1024)], "tt")
        yield from _each("float32", [(16, 4096, 4096), (128, 4096, 14336)], "tn")
        yield from _each("float32", [(16, 4096, 4096)], "tt")
        yield from _each("float32", [(1, 4096, 4096), (8, 14336, 4096)], "nt")
        for letters in ("nt", "tn", "tt"):
            yield from _each("float32", [*_LONG_K[:2], (100000, 512, 512)], letters)
        yield from _each("float32", _ODD[:8])
        yield from _each("float32", _ODD_TRANSPOSED, "nt")
        yield from _each("float32", _cube(1024, 4096), "nn", "inplace")
        yield from _each("bfloat16", _ODD)
        yield from _each("float16", _ODD[1:])
        yield from _each("bfloat16 float16", _ODD_TRANSPOSED, "nt")
        yield from _each("bfloat16", [(1023, 2047, 1023), (2049, 4095, 2047)], "tn")
        yield from _each("bfloat16", [*_cube(4095, 2047), (1001, 3001, 2001)], "nn", "none")
        yield from _each("bfloat16", [(2048, 4096, 4095), (1024, 2048, 2047), (8192, 1024, 1001)])
        yield from _each("bfloat16", [(2048, 4095, 4096), (1024, 2047, 2048), (512, 8191, 1024)])
        yield from _each("bfloat16 float16", _cube(512, 2048, 8192))
        yield from _each("bfloat16", _cube(2048, 4096), "nt")
        yield from _each("bfloat16", _cube(2048, 4096), "tn")
        yield from _each("bfloat16 float16", _LONG_K[:3])
        yield from _each("bfloat16", [(2048, 2048, 64), (4096, 4096, 128), (100000, 512, 512)])
        # Neighbours for what would stand alone: a table predicts only near what it holds.
        yield from _each("float32", [(4096, 32000, 1024)], "nt")
        yield from _each("float32", [(100000, 256, 256), (50000, 128, 512), (1000, 10000, 333)])
        yield from _each("float32", [(256, 256, 1000000)], "tn", "none")
        yield from _each("bfloat16", [(4096, 1024, 1001), (1000, 16000, 333)])
        yield from _each("float16", [(16, 50257, 1600)], "nt")
        yield from _each("bfloat16 float16", [(32, 50257, 1024), (8, 32001, 4096)], "nt")
        yield from _each("float32", [(8192, 50257, 768)], "nt", "none")
        yield from _attention("float32", 32, 2048, 128)
        yield from _attention("bfloat16 float16", 48, 512, 64)
        yield from _attention("bfloat16", 384, 128, 64)
        yield from _attention("bfloat16", 192, 197, 64)  # ViT: 196 patches and a class token
        yield from _attention("bfloat16", 16, 4096, 128)
        yield from _each("bfloat16", [(128, 14336, 4096), (128, 4096, 14336)], "nt", "none", 8)
        yield from _each("bfloat16", _cube(32), batch=1024)
        yield from _each("float32", _cube(16, 33), batch=4096)
        yield from _each("bfloat16 float16", _cube(512), batch=16)
        yield from _each("bfloat16", _cube(1024), batch=4)
        yield from _each("float64", _cube(512, 2048, 3072, 1001, 3001))
        yield from _each("float64", [(256, 256, 65536), (50000, 256, 256), (64, 4096, 4096)])
        yield from _each("float64", [(2048, 2048, 2048)], "nt")


def _cpu(name: str) -> Iterator[_Spec]:
    if name in ("quick", "full"):
        yield from _each("float32", _cube(64, 256, 512, 1024))
        yield from _each("float32", [(64, 64, 50000), (16, 1024, 1024), (10000, 64, 64)])
        yield from _each("bfloat16", _cube(256, 1024))
        yield from _each("float64", [*_cube(256, 512), (64, 64, 20000)])
        yield from _each("float32", [(128, 768, 768)], "nt")
    if name in ("llm", "full"):
        yield from _each("float32 bfloat16", _tokens((1, 128), _GPT2), "nt")
        yield from _each("bfloat16", [(16, 4096, 4096)], "nt")
        yield from _attention("float32 bfloat16", 12, 128, 64)  # GPT-2
    if name in ("science", "full"):
        yield from _each("float32 float64", [(100, 100, 50000), (256, 256, 8192)], "tn")
        yield from _each("float32", [(32, 32, 200000), (1001, 999, 333), (20000, 128, 128)])
        yield from _each("float32 float64", _cube(32), batch=64)
        yield from _each("float32", _cube(256), batch=8)
    if name == "full":
        yield from _each("float32", _cube(128, 384, 768, 1536), "nn", "none")
        yield from _each("float32", _cube(512), "nt")
        yield from _each("float32", _cube(512), "tn")
        yield from _each("float16", _cube(256, 512))
        yield from _each("complex64", _cube(256))


def most_expensive_first(workloads: Iterable[Workload]) -> list[Workload]:
    """One workload for each problem, by the time it takes in all; where unknown, by its flops."""
    found: dict[Problem, Workload] = {}
    for workload in workloads:
        known = found.get(workload.problem)
        found[workload.problem] = workload if known is None else together(known, workload)
    return sorted(
        found.values(), key=lambda w: (w.seconds or 0.0, w.count * w.problem.flops), reverse=True
    )


def together(one: Workload, other: Workload) -> Workload:
    """Two workloads of one kind as one."""
    times = [w.seconds for w in (one, other) if w.seconds is not None]
    return replace(one, count=one.count + other.count, seconds=sum(times) if times else None)


def levels_of(problem: Problem) -> tuple[str, ...]:
    """The levels at which a problem's answer may differ."""
    if problem.dtype is torch.float32:
        return ("highest", "high", "medium")
    if problem.is_half and problem.device_type == "cuda":
        return ("highest", "high")
    return ("highest",)
