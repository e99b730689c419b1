"""Problems worth tuning: named presets, and lists that a user brings in a file."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from autogemm.database.fields import Invalid, found
from autogemm.database.plain import parse
from autogemm.errors import InvalidProblem
from autogemm.problem import DTYPES, UPDATES, Problem, Update, contiguous_problem

PRESETS = ("quick", "llm", "science", "full")

_ORDER = {"n": "row", "t": "col"}


@dataclass(frozen=True, slots=True)
class Workload:
    """A problem, and how often a program meets it."""

    problem: Problem
    count: int = 1


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
        yield from _each("float32", _cube(128), batch=12)
    if name in ("llm", "full"):
        yield from _each("float32 bfloat16", _tokens((1, 128), _GPT2), "nt")
        yield from _each("bfloat16", [(16, 4096, 4096)], "nt")
        yield from _attention("float32 bfloat16", 12, 128, 64)  # GPT-2
    if name in ("science", "full"):
        yield from _each("float32 float64", [(100, 100, 50000), (256, 256, 8192)], "tn")
        yield from _each("float32", [(32, 32, 200000), (1001, 999, 333), (20000, 128, 128)])
        yield from _each("float32 float64", _cube(32), batch=64)
    if name == "full":
        yield from _each("float32", _cube(128, 384, 768, 1536), "nn", "none")
        yield from _each("float32", _cube(512), "nt")
        yield from _each("float32", _cube(512), "tn")
        yield from _each("float16", _cube(256, 512))
        yield from _each("complex64", _cube(256))


# ------------------------------------------------------------------------ files of shapes

_MAX_CHARACTERS = 2**24
_COLUMNS = ("m", "n", "k", "dtype", "layout", "update", "batch", "count")


def read_shapes(path: Path, device_type: str) -> list[Workload]:
    """Read a list of problems from YAML (a list of mappings) or CSV (a header row).

    Columns: ``m``, ``n``, ``k``; optional ``dtype`` (float32), ``layout`` (``nn``, ``nt``,
    ``tn``, ``tt``: BLAS's letters for A and B; nn), ``update`` (none, add, bias, inplace;
    add), ``batch`` (1: a single product) and ``count`` (1). Raises ``InvalidProblem`` naming
    the file, the row and the value.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(_MAX_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidProblem(f"{path}: cannot be read ({error}).") from None
    if len(text) > _MAX_CHARACTERS:
        raise InvalidProblem(
            f"{path}: expected at most {_MAX_CHARACTERS} characters, found a larger file."
        )
    try:
        if path.suffix.lower() == ".csv":
            rows: Any = list(csv.DictReader(io.StringIO(text), skipinitialspace=True))
        else:
            # The subset of YAML that tables are written in: a full loader runs out of stack on
            # "[[[[…", and an error that shows what a few nested aliases stand for never ends.
            rows = parse(text, ended=False)
    except (Invalid, csv.Error) as error:
        kind = "CSV" if path.suffix.lower() == ".csv" else "YAML"
        raise InvalidProblem(f"{path}: is not {kind}: {error}") from None
    if not isinstance(rows, list) or not rows:
        raise InvalidProblem(
            f"{path}: expected a list of problems, each with m, n and k, found "
            f"{found(rows) if rows else 'nothing'}."
        )
    counts: dict[Problem, int] = {}
    for i, row in enumerate(rows):
        workload = _workload(row, f"{path}: problem {i + 1}", device_type)
        counts[workload.problem] = counts.get(workload.problem, 0) + workload.count
    return [Workload(problem, count) for problem, count in counts.items()]


def _workload(row: Any, where: str, device_type: str) -> Workload:
    if not isinstance(row, Mapping):
        raise InvalidProblem(f"{where}: expected a mapping with m, n and k, found {found(row)}.")
    given = {key: value for key, value in row.items() if value not in (None, "")}
    if None in given:  # csv's name for cells beyond the header
        more = ", ".join(map(found, given[None][:4]))
        raise InvalidProblem(f"{where}: more cells than the header has columns: {more}.")
    unknown = ", ".join(sorted(key for key in given if key not in _COLUMNS))
    if unknown:
        raise InvalidProblem(
            f"{where}: unknown column {unknown[:200]}; expected {', '.join(_COLUMNS)}."
        )
    sizes = [_integer(given, key, where) for key in ("m", "n", "k")]
    dtype = _word(given, "dtype", "float32", DTYPES, where)
    letters = _word(given, "layout", "nn", ("nn", "nt", "tn", "tt"), where)
    update = _word(given, "update", "add", UPDATES, where)
    batch = _integer(given, "batch", where) if "batch" in given else 1
    count = _integer(given, "count", where) if "count" in given else 1
    m, n, k = sizes
    spec: Any = (dtype, (m, n, k), letters, update, batch)
    return Workload(_problem(spec, device_type), count)


def _integer(given: Mapping[str, Any], key: str, where: str) -> int:
    value = given.get(key)
    if isinstance(value, str) and value.strip().isdecimal() and len(value) < 20:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
        shown = "nothing" if value is None else found(value)
        raise InvalidProblem(
            f"{where}: {key} must be a positive integer below 2147483648, found {shown}."
        )
    return value


def _word(
    given: Mapping[str, Any], key: str, default: str, legal: Iterable[str], where: str
) -> str:
    value = given.get(key, default)
    value = value.strip() if isinstance(value, str) else value
    if value not in tuple(legal):
        raise InvalidProblem(
            f"{where}: {key} must be one of {', '.join(legal)}, found {found(value)}."
        )
    return str(value)


def levels_of(problem: Problem) -> tuple[str, ...]:
    """The levels at which a problem's answer may differ."""
    if problem.dtype is torch.float32:
        return ("highest", "high", "medium")
    if problem.is_half and problem.device_type == "cuda":
        return ("highest", "high")
    return ("highest",)
