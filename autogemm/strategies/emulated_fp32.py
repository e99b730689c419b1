"""float32 products from fp16 tensor cores: hi·hi + hi·lo + lo·hi of operands split in two.

Split operands keep 23 of 24 bits and their products are exact in float32; sums are promoted
to IEEE float32 every ``chunk`` elements of k. Elements too small for their terms, inf and NaN
are dealt with on the device (``kernels/split_product.py``, ``continuous_product.py``,
``fused_product.py``, ``tandem_product.py``, ``streamed_product.py``), so that the bound holds
for every input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch

from autogemm.device import Device
from autogemm.precision import ErrorBound
from autogemm.problem import Problem
from autogemm.strategies.base import (
    Candidate,
    Params,
    ParamValue,
    Run,
    Strategy,
    at_least,
    one_of,
    reasons_against_size,
    tile_of,
)
from autogemm.strategies.emulated_runs import (
    MORE_SLICES,
    STEP,
    TRUNCATION,
    bind,
    share_an_accumulator,
)
from autogemm.strategies.emulated_space import (
    BATCHED,
    IN_PAIRS,
    SPLIT_FORMS,
    fitted,
    space,
    streamed_tile,
)
from autogemm.strategies.hopper import reasons_without_gluon

_LONGEST = 2**25
"""Rows of terms are no longer: offsets within a block of 64 of them fit 32 bits."""


class EmulatedFP32(Strategy):
    """``form`` ``split`` writes split operands first, and so does ``continuous``, whose pipeline
    runs on from chunk to chunk (Hopper only); ``fused`` splits on the way (aligned only),
    ``tandem`` too, one block of k while another is multiplied (Hopper only); ``streamed`` splits
    the smaller operand first and the larger one, aligned, on the way (Hopper only).

    ``method`` ``fp16x3`` keeps float32's accuracy, ``fp16`` (one product of hi) that of
    ``high``. ``bm`` x ``bn`` is the tile, ``bk`` its step along k, ``chunk`` the elements of
    k between promotions, ``slices`` the parts of k computed apart, ``group`` the rows of
    tiles that share columns in time. Batches are for ``fused`` and ``continuous``, with k whole.
    """

    name = "emulated_fp32"
    emulates = True
    dtypes = frozenset({torch.float32})
    device_types = frozenset({"cuda"})
    packages = ("triton",)
    depends_on = ("torch", "triton")
    min_capability = (9, 0)  # earlier tensor cores truncate more than the bound allows for
    batched = True

    def parameters(self) -> Mapping[str, Callable[[ParamValue], bool]]:
        extent = one_of(16, 32, 64, 128, 256)
        return {
            "form": one_of("split", "continuous", "fused", "tandem", "streamed"),
            "method": one_of("fp16x3", "fp16"),
            "bm": extent,
            "bn": extent,
            "bk": one_of(32, 64),
            "warps": one_of(4, 8),
            "stages": one_of(1, 2, 3, 4),
            "chunk": one_of(32, 64, 128, 256, 512, 1024, 2048),
            "slices": at_least(1),
            "group": at_least(1),
        }

    def wrong_parameters(self, params: Params) -> list[str]:
        wrong = super().wrong_parameters(params)
        if wrong:
            return wrong
        form = params["form"]
        if form in SPLIT_FORMS and min(tile_of(params)) < 64:
            return [f"form {form!r} takes tiles of at least 64 x 64"]
        if max(tile_of(params)) < 64:
            return ["a tile needs 64 rows or columns"]
        rows, warps = int(params["bm"]), int(params["warps"])
        if form == "continuous" and rows < 16 * warps:
            return [f"{warps} warps compute {16 * warps} rows in form 'continuous', not {rows}"]
        if form == "continuous" and int(params["stages"]) < 2:
            return ["form 'continuous' takes 2 stages or more: one is read while one is written"]
        if form == "tandem" and (rows != 16 * warps or min(tile_of(params)) < 64):
            return ["form 'tandem' takes tiles of 16 rows a warp and at least 64 x 64"]
        if form == "tandem" and params["bk"] != 32:
            return [f"form 'tandem' takes blocks of 32 elements of k, not bk={params['bk']}"]
        if form == "streamed" and int(params["stages"]) < 2:
            return ["form 'streamed' takes 2 stages or more: one is read while one is written"]
        if form in IN_PAIRS and int(params["chunk"]) % (2 * int(params["bk"])):
            return [f"chunks of form {form!r} are of whole pairs of blocks of k"]
        if int(params["chunk"]) < (int(params["bk"]) if form == "fused" else 64):
            return ["chunks of 32 are for form 'fused' with blocks of k as short"]
        return []

    def _reasons_not(self, problem: Problem, device: Device, params: Params) -> list[str]:
        if "rocm" in device.features:
            return ["the arithmetic of its tensor cores was studied on NVIDIA GPUs only"]
        if min(problem.m, problem.n) == 1:
            return ["a vector times a matrix is bound by memory; splitting it gains nothing"]
        if problem.k >= _LONGEST:
            return [f"k = {problem.k}; offsets are 32-bit below k = {_LONGEST}"]
        if problem.batch > 1 and params["form"] not in BATCHED:
            of = " and ".join(map(repr, BATCHED))
            return [f"form {params['form']!r} computes single products, batches are for {of}"]
        if problem.batch > 1 and params["slices"] != 1:
            return ["k is whole in batches: their matrices fill a device"]
        if reasons := reasons_against_size(problem, *tile_of(params)):
            return reasons
        form = str(params["form"])
        if form == "streamed":
            return _reasons_not_streamed(problem, params) or reasons_without_gluon(device, form)
        if form == "continuous":
            return reasons_without_gluon(device, form)
        if form != "split" and not {problem.a, problem.b} <= {"row", "col"}:
            return ["operands are not 16-byte aligned with one contiguous extent"]
        if form == "tandem":
            return reasons_without_gluon(device, form)
        return []

    def space(self, problem: Problem, device: Device) -> Iterable[dict[str, ParamValue]]:
        return space(problem, device)

    def is_steady(self, params: Params) -> bool:
        """Where rows grow along k, forms that scale by the first block compute tiles twice."""
        return params.get("form") in SPLIT_FORMS

    def kin(self, candidate: Candidate) -> Candidate:
        """Same form, method and tile: chunks, slices and groups are then matters of degree."""
        params = candidate.kwargs
        shared = {key: params[key] for key in ("form", "method", "bm", "bn") if key in params}
        return Candidate.of(self.name, **shared)

    def fitted(self, candidate: Candidate, problem: Problem, device: Device) -> Candidate:
        """A tile no larger than the result, and slices that fill the device with such tiles."""
        return Candidate.of(self.name, **fitted(candidate.kwargs, problem, device))

    def bound(self, problem: Problem, params: Params) -> ErrorBound:
        # docs/accuracy.md, "emulated_fp32", derives every term.
        k, slices, bk = problem.k, int(params["slices"]), int(params["bk"])
        # Slices are of whole chunks where an operand is split beforehand, else of what is brought
        # at a time; the zeros that fill the last one cost nothing.
        split, streamed = params["form"] in SPLIT_FORMS, params["form"] == "streamed"
        at_once = 2 * bk if params["form"] in IN_PAIRS else bk
        unit = int(params["chunk"]) if split or streamed else at_once
        fair = -(-k // slices)
        part = min(k, -(-fair // unit) * unit)
        chunk = min(part, int(params["chunk"]))
        terms = 1 if params["method"] == "fp16" else 2
        in_one = 3 if share_an_accumulator(params) else 1
        steps = in_one * -(-chunk // STEP)
        truncation = 1.001 * ((in_one * chunk - 1) / 2 + 2 * steps)
        if terms == 2 and in_one == 1:
            truncation += 0.002 * chunk
            if not split:  # hi·hi is added to what the cross products left
                truncation += 0.51
        correction = max(one[in_one == 3] for one in TRUNCATION.values())
        correction *= -(-chunk // at_once) * at_once / STEP
        may_be_gram = problem.m == problem.n and params["form"] in ("fused", "tandem")
        most = slices * MORE_SLICES if slices > 1 and may_be_gram else slices
        promotions = -(-part // chunk) + most
        lost = k / 16 if split else k / 8
        if streamed and terms == 1:
            lost = 3 * k / 16
        growth = truncation + correction + promotions + lost + 5
        rho = 8.0 if terms == 2 else 2.0**14
        # What is computed again, in IEEE arithmetic, may cost more where k is short (a tile; a line
        # of one never does).
        length = int(params["chunk"]) // 2
        again = min(length, part) - (-part // length) + most + 1
        return ErrorBound(rho, max(growth, again - rho))

    def bind(
        self, problem: Problem, device: Device, params: Params, *, guard: bool = True
    ) -> Run:
        """``guard`` is left out by the benchmark that measures what it costs, and nowhere else."""
        return bind(problem, device, params, guard)

    def workspace_bytes(self, problem: Problem, params: Params) -> int:
        m, n, k = problem.m, problem.n, problem.k
        slices = int(params["slices"])
        split = params["form"] in SPLIT_FORMS
        if split or params["form"] == "streamed":
            terms = 1 if params["method"] == "fp16" else 2
            chunks = -(-k // int(params["chunk"]))
            results = 4 * slices * m * n if slices > 1 else 0
            rows = problem.batch * (m + n) if split else min(m, n)
            return rows * (2 * terms * (-(-k // 8) * 8) + 4 * chunks) + results
        if slices > 1 and m == n:  # it may be a Gram matrix, which the problem does not tell
            slices = max(slices, min(MORE_SLICES * slices, k // (4 * int(params["bk"]))))
        return 4 * slices * m * n if slices > 1 else 0


def _reasons_not_streamed(problem: Problem, params: Params) -> list[str]:
    transposed = problem.n > problem.m
    larger = problem.b if transposed else problem.a
    if larger not in ("row", "col"):
        return ["the larger operand is not 16-byte aligned with one contiguous extent"]
    rows, _ = streamed_tile(params, transposed)
    if rows < 64:
        side, which = ("bn", "columns of B") if transposed else ("bm", "rows of A")
        return [f"a tile needs 64 {which}, which stream here, not {side}={rows}"]
    if rows < 16 * int(params["warps"]):
        return [f"{params['warps']} warps compute {16 * int(params['warps'])} rows, not {rows}"]
    return []
