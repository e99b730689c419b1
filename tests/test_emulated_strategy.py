"""What ``emulated_fp32`` declares: its bound, its reasons, its space. No kernel runs here."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from invented import GPU, choice, entry, evidence

from autogemm import dispatch
from autogemm.database import Entry
from autogemm.device import Device
from autogemm.precision import ErrorBound, Tolerance
from autogemm.problem import Problem, contiguous_problem
from autogemm.strategies import BY_NAME, Candidate, hopper
from autogemm.strategies.base import ParamValue

ROOT = Path(__file__).parent.parent
STRATEGY = BY_NAME["emulated_fp32"]
PARAMS: dict[str, ParamValue] = {
    "form": "split",
    "method": "fp16x3",
    "bm": 128,
    "bn": 128,
    "bk": 64,
    "warps": 8,
    "stages": 3,
    "chunk": 128,
    "slices": 1,
    "group": 8,
}
CONTINUOUS: dict[str, ParamValue] = {**PARAMS, "form": "continuous"}
FUSED: dict[str, ParamValue] = {**PARAMS, "form": "fused", "bk": 32}
STREAMED: dict[str, ParamValue] = {**PARAMS, "form": "streamed", "bk": 32}
TANDEM: dict[str, ParamValue] = {**PARAMS, "form": "tandem", "bk": 32}
ONE_TERM = {"method": "fp16"}
BLACKWELL = replace(GPU, capability=(10, 0))
LENGTHS = (1, 16, 64, 128, 192, 256, 512, 1000, 4096, 2**14, 2**17, 2**20)


@pytest.fixture(autouse=True)
def triton(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets Triton's version, which is the one that forms in Gluon are for until then."""

    def install(version: str) -> None:
        versions = {"torch": "2.13.0", "triton": version}
        monkeypatch.setattr(hopper, "software_versions", lambda device_type: versions)

    install("3.6.0")
    return install


def ceil_div(x: int, y: int) -> int:
    return -(-x // y)


def problem(m: int = 4096, n: int = 4096, k: int = 4096, **facts: object) -> Problem:
    """A problem whose operands are aligned, unless ``facts`` say otherwise."""
    contiguous = contiguous_problem(m, n, k, torch.float32)
    return replace(contiguous, **{"a": "row", "b": "row", "out": "row", **facts})


def bound(k: int, params: dict[str, ParamValue] = PARAMS, **changed: ParamValue) -> ErrorBound:
    return STRATEGY.bound(problem(k=k), {**params, **changed})


def offered(k: int) -> list[dict[str, ParamValue]]:
    """The space for problems large and small, in all orders, and GPUs with and without Gluon."""
    sizes = ((4096, 4096), (100, 300), (16, 4096), (4096, 16), (64, 64))
    found = {
        Candidate.of("emulated_fp32", **params): params
        for device in (GPU, BLACKWELL)
        for m, n in sizes
        for params in STRATEGY.space(problem(m, n, k), device)
    }
    return list(found.values())


def taken(params: dict[str, ParamValue], k: int) -> Problem:
    """A problem that such parameters are for: narrow tiles of form ``streamed`` say which side."""
    if params["form"] == "streamed" and int(params["bm"]) < int(params["bn"]):
        return problem(16, 4096, k)
    return problem(k=k)


def known(where: Problem, level: str, candidate: Candidate) -> Entry:
    return entry(where, {level: choice(candidate)})


# -------------------------------------------------------------------------------- its bound


@pytest.mark.parametrize("k", LENGTHS)
def test_a_choice_serves_a_level_only_where_its_bound_stays_within(k: int) -> None:
    for level, rho in (("highest", 8), ("high", 2**14)):
        for params in offered(k):
            where = taken(params, k)
            candidate = Candidate.of("emulated_fp32", **params)
            declared = STRATEGY.bound(where, params)
            within = declared.rho <= rho and declared.total <= rho + k
            evident = evidence(known(where, level, candidate))
            made = dispatch.plan(where, Tolerance(level), GPU, "graph", evident)
            assert (made.candidate == candidate) == within
            if not within:
                assert made.passed_over[0][0] == candidate
                assert "exceeds" in made.passed_over[0][1]


def test_a_short_sum_is_refused_and_a_long_one_is_not() -> None:
    """What certificates, promotions and roundings cost takes sums of some length to hide."""

    def serves(k: int, level: str, **wanted: ParamValue) -> bool:
        return any(
            Tolerance(level).admits(STRATEGY.bound(problem(k=k), params), torch.float32, k)
            for params in offered(k)
            if wanted.items() <= params.items()
        )

    for form, method, level in (
        ("split", "fp16x3", "highest"),
        ("continuous", "fp16x3", "highest"),
        ("fused", "fp16x3", "highest"),
        ("split", "fp16", "high"),
        ("continuous", "fp16", "high"),
        ("fused", "fp16", "high"),
        ("streamed", "fp16x3", "highest"),
        ("streamed", "fp16", "high"),
    ):
        served = [k for k in LENGTHS if serves(k, level, form=form, method=method)]
        assert 16 not in served
        assert set(LENGTHS[LENGTHS.index(512) :]) <= set(served)
        assert served == [k for k in LENGTHS if k >= served[0]]


@pytest.mark.parametrize(
    ("params", "chunk", "shortest", "words"),
    [
        (PARAMS, 128, 27, "k ≥ 27 in form `split`"),
        (CONTINUOUS, 128, 27, "k ≥ 27 in form `split` (and in `continuous`)"),
        (FUSED, 64, 151, "k ≥ 151 in form `fused`"),
        (STREAMED, 64, 151, "`tandem` and `streamed` alike"),
        ({**FUSED, "bk": 64}, 64, 38, "k ≥ 38 with blocks of 64"),
        (FUSED, 32, 32, "k ≥ 32 with blocks of 32"),
    ],
    ids=["split", "continuous", "fused", "streamed", "blocks of 64", "blocks of 32"],
)
def test_the_shortest_sums_of_the_highest_level_are_those_that_the_page_names(
    params: dict[str, ParamValue], chunk: int, shortest: int, words: str
) -> None:
    served = [
        k
        for k in range(1, 600)
        if Tolerance("highest").admits(bound(k, params, chunk=chunk), torch.float32, k)
    ]
    assert served == list(range(shortest, 600))
    text = " ".join((ROOT / "docs" / "accuracy.md").read_text(encoding="utf-8").split())
    assert words in text


def test_one_term_never_serves_the_highest_level_however_long_the_sum() -> None:
    """A long sum has room for 2^14 units, but operands are never rounded to a shorter type."""
    for k in (4096, 2**17, 2**22):
        for params in (PARAMS, CONTINUOUS, FUSED, STREAMED):
            declared = bound(k, params, **ONE_TERM)
            assert not Tolerance("highest").admits(declared, torch.float32, k)
            assert Tolerance("high").admits(declared, torch.float32, k)


def test_the_rounding_of_operands_is_declared_apart_from_the_sum() -> None:
    for k in LENGTHS:
        for params in offered(k):
            rho = {"fp16x3": 8.0, "fp16": 2.0**14}[str(params["method"])]
            assert STRATEGY.bound(problem(k=k), params).rho == rho


@pytest.mark.parametrize("params", [PARAMS, FUSED, STREAMED], ids=["split", "fused", "streamed"])
def test_shorter_chunks_are_safer_as_long_as_promotions_are_few(
    params: dict[str, ParamValue],
) -> None:
    growths = [bound(2**16, params, chunk=chunk).growth for chunk in (256, 512, 1024, 2048)]
    assert growths == sorted(growths)
    assert bound(2**16, params, chunk=64).growth > bound(2**16, params, chunk=256).growth


def test_three_products_in_one_accumulator_lose_three_times_as_much() -> None:
    """That is why the fused form needs chunks shorter than k at the highest level."""
    k = 2048
    assert not Tolerance("highest").admits(bound(k, FUSED, chunk=k), torch.float32, k)
    assert Tolerance("highest").admits(bound(k, PARAMS, chunk=k), torch.float32, k)
    assert Tolerance("highest").admits(bound(k, FUSED, chunk=512), torch.float32, k)


def modelled(k: int, params: dict[str, ParamValue]) -> float:
    """Units that a sum over k can lose, by the model of docs/accuracy.md, and to promotions.

    At most (products - 1)/2 cut when they are aligned, 2 for every 16 products added, on the
    longest stretch that one accumulator takes; one for each sum that is added to another. Where
    a chunk is one block of k, cross products meet no sum of hi·hi, and weigh 2^-10 of it.
    """
    slices, bk = int(params["slices"]), int(params["bk"])
    split = params["form"] in ("split", "continuous")
    unit = int(params["chunk"]) if split or params["form"] == "streamed" else bk
    slice_k = min(k, unit * math.ceil(math.ceil(k / slices) / unit))  # what the kernels make of it
    chunk = min(slice_k, int(params["chunk"]))
    one_block = params["form"] == "fused" and params["chunk"] == bk
    apart = split or params["method"] == "fp16" or one_block
    products = chunk if apart else 3 * chunk
    steps = math.ceil(chunk / 16) * (1 if apart else 3)
    if one_block and params["method"] == "fp16x3":
        lost = (products + 1 - 1) / 2 + 2 * steps  # the accumulator is a further addend
        lost += 2.0**-10 * ((2 * chunk - 1) / 2 + 2 * 2 * steps + lost)
        return lost + math.ceil(slice_k / chunk) - 1 + math.ceil(k / slice_k) - 1
    sums = math.ceil(slice_k / chunk) - 1 + math.ceil(k / slice_k) - 1
    return (products - 1) / 2 + 2 * steps + sums


@pytest.mark.parametrize("k", [*LENGTHS, 200, 650, 5000])
def test_the_bound_covers_what_truncation_and_promotion_can_lose(k: int) -> None:
    for params in offered(k):
        assert STRATEGY.bound(problem(k=k), params).growth >= modelled(k, params), params


@pytest.mark.parametrize("k", [16, 64, 200, 512, 650, 5000])
def test_the_bound_covers_slices_that_are_rounded_up_to_blocks(k: int) -> None:
    for params in uneven_slices():
        assert STRATEGY.bound(problem(k=k), params).growth >= modelled(k, params), params


@pytest.mark.parametrize("k", [1, 32, 57, 64, 76, 100, 150, 200, 650, 5000])
def test_the_bound_covers_what_is_computed_again(k: int) -> None:
    """In IEEE arithmetic, from chunks of c/2 elements, with 3 units for alpha, beta and C."""
    for params in offered(k):
        slices, bk, chunk = (int(params[name]) for name in ("slices", "bk", "chunk"))
        split = params["form"] in ("split", "continuous")
        unit = chunk if split or params["form"] == "streamed" else bk
        slice_k = min(k, unit * math.ceil(math.ceil(k / slices) / unit))
        c = chunk // 2
        units = min(c, slice_k) + math.ceil(slice_k / c) - 1 + math.ceil(k / slice_k) - 1 + 3
        bound = STRATEGY.bound(problem(k=k), params)
        assert bound.rho + bound.growth >= units, params


def uneven_slices() -> Iterator[dict[str, ParamValue]]:
    """They are longer than k over their number."""
    for slices, bk, chunk in itertools.product((2, 3, 5, 7, 60), (32, 64), (64, 512)):
        for method in ("fp16x3", "fp16"):
            for params in (PARAMS, CONTINUOUS, FUSED, STREAMED):
                yield {**params, "method": method, "slices": slices, "bk": bk, "chunk": chunk}
        yield {**FUSED, "slices": slices, "bk": bk, "chunk": bk}


# ---------------------------------------------------------------------------------- reasons


@pytest.mark.parametrize("size", [(4096, 16), (16, 4096)], ids=str)
def test_the_zeros_that_fill_a_pair_of_blocks_are_multiplied_by_the_factor_too(
    size: tuple[int, int],
) -> None:
    """The factor against truncation counts them; those of a whole chunk it had to count anyway."""
    of_one_step = {
        k: STRATEGY.bound(problem(*size, k), {**STREAMED, "bm": 64, "bn": 64}).growth
        - (1.001 * ((3 * k - 1) / 2 + 6) + k / 8 + 5 + 2)
        for k in (1, 2)
    }
    assert of_one_step == pytest.approx(dict.fromkeys((1, 2), 4 * 0.76))


def test_the_form_that_streams_is_held_to_what_its_one_term_loses() -> None:
    """fp16's smallest number stands for all that underflow in the smaller operand."""
    k = 2**17
    apart = {
        form: bound(k, {**STREAMED, "form": form}, **ONE_TERM).growth
        for form in ("tandem", "streamed")
    }
    assert apart["streamed"] - apart["tandem"] == k / 16


def test_the_continuous_form_promises_and_takes_what_the_split_form_does() -> None:
    for k, slices, chunk, bk in itertools.product(LENGTHS, (1, 2, 7), (64, 512), (32, 64)):
        for method in ("fp16x3", "fp16"):
            changed = {"slices": slices, "chunk": chunk, "bk": bk, "method": method}
            for where in (problem(k=k), problem(512, 768, k), problem(512, 512, k)):
                for ask in (STRATEGY.bound, STRATEGY.workspace_bytes):
                    same = ask(where, {**PARAMS, **changed})
                    assert ask(where, {**CONTINUOUS, **changed}) == same
    assert STRATEGY.is_steady(CONTINUOUS)
    assert STRATEGY.is_steady(PARAMS)
    assert not STRATEGY.is_steady(FUSED)


@pytest.mark.parametrize("params", [PARAMS, FUSED], ids=["split", "fused"])
def test_it_serves_aligned_float32_on_an_nvidia_gpu(params: dict[str, ParamValue]) -> None:
    for update in ("none", "add", "bias", "inplace"):
        assert STRATEGY.reasons_not(problem(update=update), GPU, params) == []
    assert STRATEGY.reasons_not(problem(), BLACKWELL, params) == []


@pytest.mark.parametrize(
    ("where", "device", "reason"),
    [
        (problem(), replace(GPU, features=("rocm",)), "studied on NVIDIA GPUs only"),
        (problem(), replace(GPU, packages=frozenset()), "'triton', which is not installed"),
        (problem(), replace(GPU, capability=(7, 5)), "needs compute capability 9.0"),
        (problem(dtype=torch.bfloat16), GPU, "computes float32, not bfloat16"),
        (problem(dtype=torch.complex64), GPU, "computes float32, not complex64"),
        (problem(device_type="cpu"), GPU, "runs on cuda, not on cpu"),
    ],
    ids=["rocm", "triton", "capability", "bfloat16", "complex64", "cpu"],
)
def test_it_says_why_it_cannot_serve(where: Problem, device: object, reason: str) -> None:
    for params in (PARAMS, FUSED):
        (found,) = STRATEGY.reasons_not(where, device, params)  # type: ignore[arg-type]
        assert reason in found


@pytest.mark.parametrize("size", [(1, 512), (512, 1), (1, 1)], ids=str)
def test_a_vector_is_left_to_others(size: tuple[int, int]) -> None:
    """It is bound by memory, and the stride of its one row may be anything."""
    for params in (PARAMS, CONTINUOUS, FUSED):
        (reason,) = STRATEGY.reasons_not(problem(*size), GPU, params)
        assert "vector" in reason


@pytest.mark.parametrize("layout", ["row-unaligned", "col-unaligned", "strided"])
@pytest.mark.parametrize("side", ["a", "b"])
def test_only_forms_that_split_on_the_way_need_aligned_operands(side: str, layout: str) -> None:
    where = problem(**{side: layout})
    assert STRATEGY.reasons_not(where, GPU, PARAMS) == []
    assert STRATEGY.reasons_not(where, GPU, CONTINUOUS) == []
    (reason,) = STRATEGY.reasons_not(where, GPU, FUSED)
    assert "16-byte aligned" in reason
    assert {c.kwargs["form"] for c in STRATEGY.candidates(where, GPU)} == {"continuous"}
    assert {c.kwargs["form"] for c in STRATEGY.candidates(where, BLACKWELL)} == {"split"}
    for order in ("row", "col"):
        assert STRATEGY.reasons_not(problem(**{side: order}), GPU, FUSED) == []
    assert STRATEGY.reasons_not(problem(out="strided"), GPU, FUSED) == []


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({**PARAMS, "bm": 32}, "at least 64 x 64"),
        ({**PARAMS, "bn": 16}, "at least 64 x 64"),
        ({**CONTINUOUS, "bm": 32}, "form 'continuous' takes tiles of at least 64 x 64"),
        ({**CONTINUOUS, "bn": 32}, "form 'continuous' takes tiles of at least 64 x 64"),
        ({**CONTINUOUS, "bm": 64}, "8 warps compute 128 rows in form 'continuous', not 64"),
        ({**CONTINUOUS, "stages": 1}, "form 'continuous' takes 2 stages or more"),
        ({**CONTINUOUS, "chunk": 32, "bk": 32}, "chunks of 32 are for form 'fused'"),
        ({**FUSED, "bm": 32, "bn": 32}, "needs 64 rows or columns"),
        ({**FUSED, "bm": 16, "bn": 32}, "needs 64 rows or columns"),
        ({**TANDEM, "bm": 64}, "16 rows a warp and at least 64 x 64"),
        ({**TANDEM, "bn": 32}, "16 rows a warp and at least 64 x 64"),
        ({**TANDEM, "bk": 64}, "blocks of 32 elements of k, not bk=64"),
        ({**TANDEM, "chunk": 32}, "whole pairs of blocks"),
        ({**STREAMED, "stages": 1}, "takes 2 stages or more"),
        ({**STREAMED, "bk": 64, "chunk": 64}, "whole pairs of blocks"),
        ({**STREAMED, "chunk": 32}, "whole pairs of blocks"),
        ({**STREAMED, "bm": 32, "bn": 32}, "needs 64 rows or columns"),
        ({**STREAMED, "bm": 16}, "needs 64 rows of A, which stream here, not bm=16"),
        ({**STREAMED, "bm": 64}, "8 warps compute 128 rows, not 64"),
        ({**FUSED, "chunk": 96}, "does not take chunk=96"),
        ({**FUSED, "chunk": 32, "bk": 64}, "blocks of k as short"),
        ({**PARAMS, "chunk": 32, "bk": 32}, "chunks of 32 are for form 'fused'"),
        ({**FUSED, "bk": 128}, "does not take bk=128"),
        ({**FUSED, "slices": 0}, "does not take slices=0"),
        ({**FUSED, "method": "bf16x6"}, "does not take method='bf16x6'"),
        ({**FUSED, "group": True}, "does not take group=True"),
    ],
    ids=str,
)
def test_parameters_that_no_kernel_takes_are_reasons(
    params: dict[str, ParamValue], reason: str
) -> None:
    (found,) = STRATEGY.reasons_not(problem(), GPU, params)
    assert reason in found


def test_narrow_tiles_are_for_the_fused_form() -> None:
    for changed in ({"bm": 16}, {"bn": 16}, {"bm": 32, "bn": 64}):
        assert STRATEGY.reasons_not(problem(), GPU, {**FUSED, **changed}) == []


def test_the_continuous_form_takes_whatever_tile_its_warps_have_rows_for() -> None:
    for bm, bn, bk, warps, stages in itertools.product(
        (64, 128, 256), (64, 128, 256), (32, 64), (4, 8), (2, 3, 4)
    ):
        tile = {"bm": bm, "bn": bn, "bk": bk, "warps": warps, "stages": stages}
        legal = STRATEGY.reasons_not(problem(), GPU, {**CONTINUOUS, **tile}) == []
        assert legal == (bm >= 16 * warps)


@pytest.mark.parametrize(
    "params", [PARAMS, CONTINUOUS, FUSED], ids=["split", "continuous", "fused"]
)
def test_every_form_takes_slices(params: dict[str, ParamValue]) -> None:
    assert STRATEGY.reasons_not(problem(), GPU, {**params, "slices": 4}) == []


@pytest.mark.parametrize("form", ["continuous", "tandem", "streamed"])
def test_forms_in_gluon_are_for_hopper_and_the_triton_that_they_were_written_in(
    form: str, triton: Callable[[str], None]
) -> None:
    params = {**FUSED, "form": form}
    assert STRATEGY.reasons_not(problem(), GPU, params) == []
    for capability in ((9, 1), (10, 0)):
        (reason,) = STRATEGY.reasons_not(problem(), replace(GPU, capability=capability), params)
        assert reason.startswith(f"form {form!r} is written for")
        assert "capability 9.0" in reason
    for known in ("3.6.0", "3.7.1", "3.8.0"):
        triton(known)
        assert STRATEGY.reasons_not(problem(), GPU, params) == []
    for other in ("3.5.1", "3.9.0", "3.60", "none"):
        triton(other)
        (reason,) = STRATEGY.reasons_not(problem(), GPU, params)
        assert reason.startswith(f"form {form!r} is written in Gluon of Triton 3.6, 3.7 or 3.8")
        assert other in reason


@pytest.mark.parametrize("layout", ["row-unaligned", "col-unaligned", "strided"])
def test_only_the_larger_operand_of_the_streamed_form_needs_to_be_aligned(layout: str) -> None:
    for m, n, larger, smaller in ((4096, 64, "a", "b"), (64, 4096, "b", "a")):
        for order in ("row", "col"):
            where = problem(m, n, **{larger: order, smaller: layout, "out": layout})
            assert STRATEGY.reasons_not(where, GPU, STREAMED) == []
        (reason,) = STRATEGY.reasons_not(problem(m, n, **{larger: layout}), GPU, STREAMED)
        assert "the larger operand is not 16-byte aligned" in reason


def test_a_tile_of_the_streamed_form_is_narrow_where_the_smaller_operand_is() -> None:
    narrow = {**STREAMED, "bn": 16, "bm": 64, "warps": 4}
    assert STRATEGY.reasons_not(problem(4096, 16), GPU, narrow) == []
    (reason,) = STRATEGY.reasons_not(problem(16, 4096), GPU, narrow)
    assert "64 columns of B, which stream here, not bn=16" in reason
    assert STRATEGY.reasons_not(problem(16, 4096), GPU, {**narrow, "bm": 16, "bn": 64}) == []


def test_batches_are_for_two_forms_with_k_whole() -> None:
    for changed, word in (
        ({}, None),
        ({"bm": 16}, None),
        ({"form": "continuous", "bk": 64}, None),
        ({"form": "split", "bk": 64}, "batches are for 'fused' and 'continuous'"),
        ({"form": "tandem"}, "batches are for 'fused' and 'continuous'"),
        ({"form": "streamed"}, "batches are for 'fused' and 'continuous'"),
        ({"slices": 2}, "k is whole in batches"),
        ({"form": "continuous", "slices": 2}, "k is whole in batches"),
    ):
        reasons = STRATEGY.reasons_not(problem(batch=12), GPU, {**FUSED, **changed})
        assert reasons == [] if word is None else word in reasons[0]
        assert len(reasons) <= 1
    (reason,) = STRATEGY.reasons_not(problem(batch=12, b="row-unaligned"), GPU, FUSED)
    assert "16-byte aligned" in reason


# -------------------------------------------------------------------------- space and memory

EXTENTS = (1, 16, 33, 64, 100, 512, 4096, 30000)


def test_the_space_is_legal_without_repeats_and_of_bearable_size() -> None:
    for m, n, k in itertools.product(EXTENTS, EXTENTS, (1, 64, 1000, 2**14, 2**20)):
        space = [Candidate.of("emulated_fp32", **p) for p in STRATEGY.space(problem(m, n, k), GPU)]
        assert 0 < len(space) <= 250
        assert len(set(space)) == len(space)
        for candidate in space:
            assert STRATEGY.wrong_parameters(candidate.kwargs) == []


TYPICAL = [
    (512, 512, 512),
    (4096, 4096, 4096),
    (8192, 8192, 8192),
    (4095, 4095, 4095),
    (64, 64, 4096),
    (16, 4096, 4096),
    (4096, 2, 4096),
    (1000, 1000, 100000),
    (100, 36, 2**18),
]


@pytest.mark.parametrize("size", TYPICAL, ids=lambda size: "x".join(map(str, size)))
def test_typical_problems_have_candidates_at_both_levels(size: tuple[int, int, int]) -> None:
    where = contiguous_problem(*size, torch.float32)
    found = STRATEGY.candidates(where, GPU)
    for level, method in (("highest", "fp16x3"), ("high", "fp16")):
        assert any(
            candidate.kwargs["method"] == method
            and Tolerance(level).admits(
                STRATEGY.bound(where, candidate.kwargs), torch.float32, where.k
            )
            for candidate in found
        )


def test_tiles_are_not_much_larger_than_the_result() -> None:
    for m, n in itertools.product(EXTENTS, EXTENTS):
        for params in STRATEGY.space(problem(m, n, 4096), GPU):
            assert int(params["bm"]) <= max(64, 2 * m)
            assert int(params["bn"]) <= max(64, 2 * n)


def test_k_is_sliced_where_tiles_leave_the_device_idle_and_nowhere_else() -> None:
    def slices(m: int, n: int, k: int) -> set[object]:
        return {params["slices"] for params in STRATEGY.space(problem(m, n, k), GPU)}

    assert slices(8192, 8192, 8192) == {1}
    assert slices(768, 3072, 8192) > {1}, "144 tiles take two waves of 132"
    assert max(slices(64, 64, 2**18)) >= GPU.units  # type: ignore[type-var,operator]
    assert slices(64, 64, 64) == {1}
    for k in (512, 4096, 2**18):
        for params in STRATEGY.space(problem(64, 64, k), GPU):
            assert int(params["slices"]) == 1 or k / int(params["slices"]) >= int(params["bk"])


@pytest.mark.parametrize(
    ("form", "device"), [("split", BLACKWELL), ("continuous", GPU)], ids=["split", "continuous"]
)
def test_forms_split_beforehand_are_offered_as_many_slices_as_their_chunks_make(
    form: str, device: Device
) -> None:
    sliced = 0
    for m, n, k in itertools.product((64, 768, 1167, 3072), (500, 3863), (1024, 3597, 8192)):
        where = problem(m, n, k)
        for params in STRATEGY.space(where, device):
            if params["form"] == form:
                chunk, slices = int(params["chunk"]), int(params["slices"])
                assert ceil_div(k, ceil_div(ceil_div(k, chunk), slices) * chunk) == slices
                sliced += slices > 1
                one = Candidate.of("emulated_fp32", **{**params, "slices": 5})
                assert slices in (1, STRATEGY.fitted(one, where, device).kwargs["slices"])
    assert sliced > 50


@pytest.mark.parametrize("size", [(512, 512, 512), (64, 64, 4096), (4095, 4095, 77), (16, 9, 3)])
def test_the_continuous_form_is_tried_instead_of_the_split_form_where_gluon_serves(
    size: tuple[int, int, int], triton: Callable[[str], None]
) -> None:
    where = problem(*size)

    def forms(device: Device, version: str = "3.6.0") -> set[ParamValue]:
        triton(version)
        found = list(STRATEGY.space(where, device))
        split = [p for p in found if p["form"] in ("split", "continuous")]
        for params in split:
            assert STRATEGY.reasons_not(where, device, params) == []
        return {p["form"] for p in split}

    assert forms(GPU) == {"continuous"}
    assert forms(GPU, "3.8.0") == {"continuous"}
    assert forms(BLACKWELL) == {"split"}
    assert forms(GPU, "3.5.1") == {"split"}
    assert forms(GPU, "none") == {"split"}


@pytest.mark.parametrize("k", [100, 300, 600, 4096, 2**18])
def test_the_streamed_form_is_tried_where_one_operand_is_much_larger(k: int) -> None:
    def found(m: int, n: int) -> list[dict[str, ParamValue]]:
        space = STRATEGY.space(problem(m, n, k), GPU)
        return [params for params in space if params["form"] == "streamed"]

    assert found(4096, 1024) == found(1024, 4096) == []
    for rows, cols in ((4096, 16), (8192, 1024), (30000, 100), (300, 36)):
        tall, wide = found(rows, cols), found(cols, rows)
        turned = [{**params, "bm": params["bn"], "bn": params["bm"]} for params in wide]
        assert tall == turned
        assert {params["method"] for params in tall} == {"fp16x3", "fp16"}
        for params, where in (
            *((params, problem(rows, cols, k)) for params in tall),
            *((params, problem(cols, rows, k)) for params in wide),
        ):
            assert STRATEGY.reasons_not(where, GPU, params) == []
            assert not STRATEGY.is_steady(params)
            chunk, slices = int(params["chunk"]), int(params["slices"])
            assert ceil_div(k, ceil_div(ceil_div(k, chunk), slices) * chunk) == slices
            tiles = ceil_div(where.m, int(params["bm"])) * ceil_div(where.n, int(params["bn"]))
            assert slices == 1 or tiles < GPU.units
        if k >= 300:
            bounds = [STRATEGY.bound(problem(rows, cols, k), params) for params in tall]
            assert any(Tolerance("highest").admits(b, torch.float32, k) for b in bounds)


def test_one_chunk_that_covers_k_is_enough() -> None:
    for k in (16, 64, 100, 256, 1000, 5000):
        covering: Counter[Candidate] = Counter()
        for params in STRATEGY.space(problem(512, 512, k), GPU):
            # Those of split operands are of whole chunks: how many there are goes with the chunk.
            if int(params["chunk"]) * int(params["slices"]) >= k and params["slices"] == 1:
                covering[Candidate.of("emulated_fp32", **{**params, "chunk": 0})] += 1
        assert set(covering.values()) <= {1}


def test_the_workspace_is_terms_and_scales_or_the_slices_results() -> None:
    where = problem(1000, 500, 300)
    terms = 1500 * 304 * 2  # fp16, rows of a multiple of 8
    scales = 1500 * 3 * 4  # float32, for every 128 of k
    assert STRATEGY.workspace_bytes(where, PARAMS) == 2 * terms + scales
    assert STRATEGY.workspace_bytes(where, {**PARAMS, **ONE_TERM}) == terms + scales
    sliced = STRATEGY.workspace_bytes(where, {**PARAMS, "slices": 2})
    assert sliced == 2 * terms + scales + 2 * 1000 * 500 * 4
    assert STRATEGY.workspace_bytes(where, {**CONTINUOUS, "slices": 2}) == sliced
    assert STRATEGY.workspace_bytes(where, FUSED) == 0
    assert STRATEGY.workspace_bytes(where, {**FUSED, "slices": 3}) == 3 * 1000 * 500 * 4
    smaller = 2 * 500 * 304 * 2 + 500 * 3 * 4
    for size in ((1000, 500), (500, 1000)):
        assert STRATEGY.workspace_bytes(problem(*size, 300), STREAMED) == smaller
        sliced = STRATEGY.workspace_bytes(problem(*size, 300), {**STREAMED, "slices": 2})
        assert sliced == smaller + 2 * 1000 * 500 * 4
    square = STRATEGY.workspace_bytes(problem(500, 500, 300), {**STREAMED, "slices": 2})
    assert square == smaller + 2 * 500 * 500 * 4, "of a Gram matrix it makes nothing"


@pytest.mark.parametrize(("k", "slices"), [(100_000, 12), (128 * 7, 7), (128, 3)])
def test_the_workspace_has_room_for_the_slices_of_a_gram_matrix(k: int, slices: int) -> None:
    params = {**FUSED, "bk": 32, "slices": 3}
    assert STRATEGY.workspace_bytes(problem(500, 500, k), params) == slices * 500 * 500 * 4


def replaced(candidate: Candidate, **params: ParamValue) -> Candidate:
    return Candidate.of(candidate.strategy, **{**candidate.kwargs, **params})


def test_a_neighbours_tile_and_slices_are_fitted_to_the_problem() -> None:
    params = {"method": "fp16x3", "warps": 4, "stages": 4, "chunk": 128, "group": 8}
    params |= {"bm": 64, "bn": 64, "bk": 32}
    tuned = Candidate.of("emulated_fp32", form="fused", slices=7, **params)
    wide = contiguous_problem(300, 16, 1_000_000, torch.float32, a="col")
    fitted = STRATEGY.fitted(tuned, wide, GPU).kwargs
    assert (fitted["bm"], fitted["bn"]) == (64, 16)
    tiles = -(-300 // 64)
    assert tiles * fitted["slices"] <= 2 * GPU.units < tiles * (fitted["slices"] + 1)
    assert STRATEGY.reasons_not(wide, GPU, fitted) == []
    short = contiguous_problem(64, 64, 64, torch.float32)
    assert STRATEGY.fitted(tuned, short, GPU).kwargs["slices"] == 1
    for form in ("split", "continuous"):
        whole = Candidate.of("emulated_fp32", form=form, slices=1, **params)
        assert STRATEGY.fitted(whole, wide, GPU) == whole
        sliced = replaced(whole, slices=2)
        assert STRATEGY.fitted(sliced, short, GPU).kwargs["slices"] == 1
        uneven = contiguous_problem(768, 3072, 8192, torch.float32)
        fitted = STRATEGY.fitted(replaced(sliced, bm=128, bn=128), uneven, GPU).kwargs
        waves = -(-144 * fitted["slices"] // GPU.units) / fitted["slices"]
        assert waves <= 1.5, "of two"
    tiles = {"bm": 128, "bn": 64, "bk": 32, "chunk": 256}
    tandem = replaced(tuned, form="tandem", **{**tiles, "bn": 128})
    assert STRATEGY.fitted(tandem, wide, GPU).kwargs["form"] == "fused", "its tiles are wide"


def test_a_neighbours_streamed_tile_is_turned_and_fitted() -> None:
    tuned = Candidate.of("emulated_fp32", **{**STREAMED, "slices": 3, "chunk": 256})
    for size, tile in (
        ((8192, 100, 4096), (128, 128)),
        ((100, 8192, 4096), (128, 128)),
        ((8192, 40, 4096), (64, 64)),
        ((16, 8192, 4096), (16, 64)),
        ((100000, 30, 512), (64, 32)),
    ):
        where = problem(*size)
        fitted = STRATEGY.fitted(tuned, where, GPU)
        assert (fitted.kwargs["bm"], fitted.kwargs["bn"]) == tile
        assert STRATEGY.reasons_not(where, GPU, fitted.kwargs) == []
        assert STRATEGY.fitted(fitted, where, GPU) == fitted
        tiles = ceil_div(where.m, tile[0]) * ceil_div(where.n, tile[1])
        slices = int(fitted.kwargs["slices"])
        assert (slices == 1) if tiles >= GPU.units else (1 < slices <= 2 * GPU.units // tiles)
    for bm, bn in ((64, 128), (128, 64)):  # whichever way it was tuned
        oblong = replaced(tuned, bm=bm, bn=bn, warps=4, stages=2)
        fitted = STRATEGY.fitted(oblong, problem(8192, 512), GPU).kwargs
        assert (fitted["bm"], fitted["bn"]) == (64, 128)
        fitted = STRATEGY.fitted(oblong, problem(512, 8192), GPU).kwargs
        assert (fitted["bm"], fitted["bn"]) == (128, 64)
    narrow = replaced(tuned, bm=64, bn=16, warps=4)
    fitted = STRATEGY.fitted(narrow, problem(16, 8192), GPU).kwargs
    assert (fitted["bm"], fitted["bn"]) == (16, 64), "turned, as the operands are"


# ----------------------------------------------------------------------------------- batches


@pytest.mark.parametrize(
    ("batch", "m", "n", "k"),
    [(16, 512, 512, 512), (96, 1024, 1024, 64), (96, 1024, 64, 1024), (2, 20, 4096, 100)],
)
def test_batches_have_some_candidates_and_some_that_need_no_workspace(
    batch: int, m: int, n: int, k: int
) -> None:
    where = problem(m, n, k, batch=batch)
    space = list(STRATEGY.space(where, GPU))
    found = STRATEGY.candidates(where, GPU)
    assert 5 <= len(found) == len(space) <= 90
    fused = [candidate for candidate in found if candidate.kwargs["form"] == "fused"]
    assert 5 <= len(fused) <= 60
    assert {candidate.kwargs["method"] for candidate in found} == {"fp16x3", "fp16"}
    for level in ("highest", "high"):
        fits = [Tolerance(level).admits(STRATEGY.bound(where, c.kwargs), torch.float32, k)
                for c in found]  # fmt: skip
        assert sum(fits) >= 5
    for candidate in found:
        needed = STRATEGY.workspace_bytes(where, candidate.kwargs)
        assert needed >= (0 if candidate in fused else 2 * batch * (m + n) * k)
        assert needed == 0 or candidate not in fused
        single = STRATEGY.bound(replace(where, batch=1), candidate.kwargs)
        assert STRATEGY.bound(where, candidate.kwargs) == single
        assert STRATEGY.launches(where) == 1


@pytest.mark.parametrize("k", [160, 291, 292, 500, 573, 1135, 1136, 4096])
def test_neighbours_chunks_are_fitted_to_sums_that_the_level_admits(k: int) -> None:
    for chunk in (64, 128, 256, 512):
        streaming = Candidate.of("emulated_fp32", **{**STREAMED, "chunk": chunk})
        batched = Candidate.of("emulated_fp32", **{**FUSED, "chunk": chunk})
        for candidate, where in (
            (streaming, problem(16384, 128, k)),
            (batched, problem(1024, 64, k, batch=96)),
        ):
            fitted = STRATEGY.fitted(candidate, where, GPU).kwargs
            assert STRATEGY.reasons_not(where, GPU, fitted) == []
            bound = STRATEGY.bound(where, fitted)
            assert Tolerance("highest").admits(bound, torch.float32, k), fitted


@pytest.mark.parametrize(
    ("chunk", "k", "expected"),
    [
        (64, 64, 64), (64, 128, 128), (64, 512, 128), (256, 100, 128), (2048, 300, 512),
        (2048, 9000, 2048),
    ],
)  # fmt: skip
def test_a_neighbours_chunk_is_one_that_would_be_tried(chunk: int, k: int, expected: int) -> None:
    for form, batch in (("split", 1), ("continuous", 1), ("continuous", 96)):
        tuned = Candidate.of("emulated_fp32", **{**PARAMS, "form": form, "chunk": chunk})
        fitted = STRATEGY.fitted(tuned, problem(1024, 1024, k, batch=batch), GPU).kwargs
        assert fitted["chunk"] == expected


BRIEF = {
    ("fp16x3", 64, 128, 32, 4, 3), ("fp16", 64, 128, 64, 4, 2), ("fp16", 64, 128, 64, 4, 3)
}  # fmt: skip


def tiles_in(params: dict[str, ParamValue]) -> tuple[ParamValue, ...]:
    return tuple(params[name] for name in ("method", "bm", "bn", "bk", "warps", "stages"))


@pytest.mark.parametrize("batch", [1, 96])
@pytest.mark.parametrize(("k", "tried"), [(64, BRIEF), (128, BRIEF), (129, set()), (4096, set())])
def test_some_tiles_are_for_short_k_alone(k: int, tried: set[tuple[object]], batch: int) -> None:
    """Their choices are fitted to a longer k as tiles that are tried there."""
    where = problem(1024, 1024, k, batch=batch)
    space = [params for params in STRATEGY.space(where, GPU) if params["form"] == "continuous"]
    assert {tiles_in(params) for params in space} & BRIEF == tried
    for method, *tile in BRIEF:
        names = ("bm", "bn", "bk", "warps", "stages")
        params = {**PARAMS, "form": "continuous", "method": method, "chunk": 64}
        tuned = Candidate.of("emulated_fp32", **params | dict(zip(names, tile, strict=True)))
        fitted = STRATEGY.fitted(tuned, where, GPU).kwargs
        assert tiles_in(fitted) in {tiles_in(params) for params in space}
    blackwell = [p for p in STRATEGY.space(where, BLACKWELL) if p["form"] == "split"]
    assert not {tiles_in(params) for params in blackwell} & {t for t in BRIEF if t[3] == 32}


def test_a_batch_is_fitted_with_what_batches_are_computed_with() -> None:
    where = problem(62, 69, 100, batch=3)
    for form, slices in (("tandem", 1), ("fused", 100), ("continuous", 3)):
        candidate = Candidate.of("emulated_fp32", **{**FUSED, "form": form, "slices": slices})
        fitted = STRATEGY.fitted(candidate, where, GPU).kwargs
        assert STRATEGY.reasons_not(where, GPU, fitted) == []


def test_what_did_well_on_a_batch_is_fitted_to_another() -> None:
    wide = Candidate.of("emulated_fp32", **{**FUSED, "chunk": 256})
    for where, tile, chunk in (
        (problem(512, 512, 8192, batch=2), (128, 128), 256),
        (problem(1024, 16, 512, batch=96), (128, 16), 128),
    ):
        fitted = STRATEGY.fitted(wide, where, GPU)
        assert (fitted.kwargs["bm"], fitted.kwargs["bn"]) == tile
        assert fitted.kwargs["slices"] == 1, "however few tiles"
        assert fitted.kwargs["chunk"] == chunk
        assert STRATEGY.reasons_not(where, GPU, fitted.kwargs) == []


@pytest.mark.parametrize("k", [32, 64, 150, 151, 4096])
@pytest.mark.parametrize("chunk", [32, 512])
def test_the_chunks_of_a_batch_are_fitted_to_short_sums(chunk: int, k: int) -> None:
    """Heads have 64 elements or so, and as many keys as there are."""
    for n in (16, 1024):
        where = problem(1024, n, k, batch=96)
        fitted = STRATEGY.fitted(
            Candidate.of("emulated_fp32", **{**FUSED, "chunk": chunk}), where, GPU
        )
        assert STRATEGY.reasons_not(where, GPU, fitted.kwargs) == []
        if k <= 150:
            assert fitted.kwargs["chunk"] == fitted.kwargs["bk"]
        else:
            assert fitted.kwargs["chunk"] == (64 if chunk == 32 or k == 151 else chunk)
        if k > 37 and (k <= 150 or chunk == 32):
            bound = STRATEGY.bound(where, fitted.kwargs)
            assert Tolerance("highest").admits(bound, torch.float32, k)
